#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/logger.h"
#include "sim/sim.h"

/* A campaign of the single-node simulator: every scenario over fixed seeds, some fresh ones, and one seed
 * twice. Fails on a violation, on a stuck node, on a trace that differs between equal seeds, and
 * when a kind of fault never fired, because a sleeping fault proves nothing.
 *
 *   test_sim [seeds per scenario]      DURAMEN_SIM_SEEDS overrides */

static struct sim_counts total;

static void add_counts(const struct sim_counts *counts)
{
    const uint64_t *from = (const uint64_t *)counts;
    uint64_t *to = (uint64_t *)&total;
    for (size_t i = 0; i < sizeof total / sizeof *to; i++)
        to[i] += from[i];
}

static int run(uint64_t seed, const char *scenario, struct sim_result *result)
{
    struct sim_options options = {.seed = seed, .ticks = 1000, .scenario = scenario};
    sim_engine_run(&options, result);
    add_counts(&result->counts);
    if (result->outcome == SIM_OK) return 0;
    printf("FAIL seed %" PRIu64 " scenario %s: %s\n  replay: duramen sim --seed %" PRIu64
           " --ticks 1000%s%s\n",
        seed, result->scenario, result->detail, seed, scenario == NULL ? "" : " --scenario ",
        scenario == NULL ? "" : scenario);
    return 1;
}

static int must_have_fired(const char *what, uint64_t count)
{
    printf("  %-24s %" PRIu64 "\n", what, count);
    if (count > 0) return 0;
    printf("FAIL: %s never happened: the campaign proves nothing about it\n", what);
    return 1;
}

int main(int argc, char **argv)
{
    const char *wanted = getenv("DURAMEN_SIM_SEEDS");
    uint64_t seeds = strtoull(wanted != NULL ? wanted : argc > 1 ? argv[1] : "20", NULL, 10);
    logger_setup(LOG_NONE, false);
    int failures = 0;
    uint64_t runs = 0;
    struct sim_result result, again;
    for (const char *const *scenario = sim_scenarios(); *scenario != NULL; scenario++) {
        for (uint64_t seed = 1; seed <= seeds; seed++, runs++)
            failures += run(seed, *scenario, &result);
    }
    FILE *random = fopen("/dev/urandom", "rb");
    uint64_t fresh = 0;
    if (random == NULL || fread(&fresh, sizeof fresh, 1, random) != 1) fresh = 1;
    if (random != NULL) fclose(random);
    fresh >>= 16;
    printf("fresh seeds from %" PRIu64 "\n", fresh);
    for (uint64_t i = 0; i < seeds; i++, runs++)
        failures += run(fresh + i, NULL, &result);

    failures += run(7, "mixed", &result) + run(7, "mixed", &again);
    if (result.trace_hash != again.trace_hash) {
        printf("FAIL: seed 7 gives two different traces\n");
        failures++;
    }
    printf("%" PRIu64 " runs\n", runs);
    failures += must_have_fired("transactions", total.transactions);
    failures += must_have_fired("crashes", total.crashes);
    failures += must_have_fired("recoveries", total.recoveries);
    failures += must_have_fired("torn tails", total.torn);
    failures += must_have_fired("log errors", total.io_errors);
    failures += must_have_fired("refusals (full)", total.full);
    failures += must_have_fired("store errors", total.map_errors);
    failures += must_have_fired("damaged reads", total.damage);
    failures += must_have_fired("checkpoints", total.checkpoints);
    failures += must_have_fired("expired keys", total.expired);
    failures += must_have_fired("clears", total.clears);
    failures += must_have_fired("clock jumps", total.clock_jumps);
    return failures == 0 ? 0 : 1;
}
