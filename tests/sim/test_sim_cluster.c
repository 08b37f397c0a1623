#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/logger.h"
#include "sim/sim_cluster.h"

/* A campaign of the cluster simulator: every scenario over fixed seeds and some fresh ones, with three and with five
 * nodes, and one seed twice. Fails on a violation, on a cluster that is stuck, on a trace that differs between equal
 * seeds, and when a kind of fault never fired or the system never did what the campaign is about, because a
 * sleeping fault proves nothing.
 *
 *   test_sim_cluster [seeds per scenario]      DURAMEN_SIM_SEEDS overrides */

enum { TICKS = 1000 };

static uint64_t faults[SIM_FAULTS], seen[SIM_SEEN], simulated_ms;

static int run(
    uint64_t seed, const char *scenario, uint32_t nodes, struct sim_cluster_result *result)
{
    struct sim_cluster_options options = {
        .seed = seed, .nodes = nodes, .ticks = TICKS, .scenario = scenario};
    /* an assertion of the node ends the campaign: the line above it says where */
    printf("nodes %" PRIu32 " seed %" PRIu64 " scenario %s\n", nodes, seed,
        scenario == NULL ? "drawn" : scenario);
    fflush(stdout);
    sim_cluster_run(&options, result);
    for (int i = 0; i < SIM_FAULTS; i++)
        faults[i] += result->faults[i];
    for (int i = 0; i < SIM_SEEN; i++)
        seen[i] += result->seen[i];
    simulated_ms += result->simulated_ms;
    if (result->outcome == SIM_OK) return 0;
    printf("FAIL (%s) seed %" PRIu64 " scenario %s: %s\n  replay: duramen sim --nodes %" PRIu32
           " --seed %" PRIu64 " --ticks %d%s%s\n",
        result->outcome == SIM_UNSAFE ? "safety" : "liveness", seed, result->scenario,
        result->detail, nodes, seed, TICKS, scenario == NULL ? "" : " --scenario ",
        scenario == NULL ? "" : scenario);
    return 1;
}

static uint64_t fresh_seed(void)
{
    uint64_t seed = 1;
    FILE *random = fopen("/dev/urandom", "rb");
    if (random == NULL || fread(&seed, sizeof seed, 1, random) != 1) seed = 1;
    if (random != NULL) fclose(random);
    return seed >> 16;
}

static int must_have_happened(const char *what, uint64_t count)
{
    printf("  %-44s %" PRIu64 "\n", what, count);
    if (count > 0) return 0;
    printf("FAIL: %s: never; the campaign proves nothing about it\n", what);
    return 1;
}

static int check_coverage(uint64_t seeds)
{
    static const enum sim_seen wanted[] = {SIM_SEEN_ELECTIONS, SIM_SEEN_SNAPSHOTS,
        SIM_SEEN_CONFIG_CHANGES, SIM_SEEN_FORWARDED, SIM_SEEN_CHECKPOINTS, SIM_SEEN_STOPS,
        SIM_SEEN_ACKNOWLEDGED, SIM_SEEN_UNKNOWN, SIM_SEEN_REFUSED, SIM_SEEN_FILTERED,
        SIM_SEEN_OVERTAKEN, SIM_SEEN_STALLS, SIM_SEEN_LEASES, SIM_SEEN_KEYS};
    int failures = 0;
    /* a campaign of a few seeds cannot promise that everything happens */
    if (seeds < 8) return 0;
    for (int i = 0; i < SIM_FAULTS; i++)
        failures += must_have_happened(sim_fault_text((enum sim_fault)i), faults[i]);
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++)
        failures += must_have_happened(sim_seen_text(wanted[i]), seen[wanted[i]]);
    for (int i = 0; i < SIM_SEEN; i++)
        printf("  (seen) %-37s %" PRIu64 "\n", sim_seen_text((enum sim_seen)i), seen[i]);
    return failures;
}

static int same_twice(uint64_t seed, const char *scenario)
{
    struct sim_cluster_result first, second;
    int failures = run(seed, scenario, 3, &first) + run(seed, scenario, 3, &second);
    if (first.trace_hash == second.trace_hash && first.events == second.events) return failures;
    printf("FAIL: seed %" PRIu64 " gives two different traces\n", seed);
    return failures + 1;
}

int main(int argc, char **argv)
{
    const char *wanted = getenv("DURAMEN_SIM_SEEDS");
    uint64_t seeds = strtoull(wanted != NULL ? wanted : argc > 1 ? argv[1] : "8", NULL, 10);
    logger_setup(LOG_NONE, false);
    int failures = 0;
    uint64_t runs = 0;
    struct sim_cluster_result result;
    for (const char *const *name = sim_cluster_scenarios(); *name != NULL; name++) {
        for (uint64_t seed = 1; seed <= seeds; seed++, runs++)
            failures += run(seed, *name, seed % 4 == 0 ? 5 : 3, &result);
    }
    uint64_t fresh = fresh_seed();
    for (uint64_t i = 0; i < seeds; i++, runs++)
        failures += run(fresh + i, NULL, 3, &result);
    failures += same_twice(7, "all") + same_twice(8, "membership");
    printf("%" PRIu64 " runs, %" PRIu64 " s simulated\n", runs, simulated_ms / 1000);
    failures += check_coverage(seeds);
    return failures == 0 ? 0 : 1;
}
