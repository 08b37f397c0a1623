#include <argp.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/io.h"
#include "base/logger.h"
#include "sim/sim.h"
#include "sim/sim_cluster.h"

/* duramen sim: prints the seed first, so that whatever happens can be replayed. */

struct arguments {
    uint64_t seed, ticks, nodes, runs;
    const char *scenario;
    bool seeded, verbose, coverage;
};

enum {
    EXIT_USAGE = 2,
    EXIT_SAFETY = 1,
    EXIT_LIVENESS = 3,
    DEFAULT_TICKS = 2000,
    DEFAULT_NODES = 3,
    NODES_MAX = 7,
};

static const struct argp_option flags[] = {
    {"seed", 's', "N", 0, "First seed; drawn from the clock if absent", 0},
    {"ticks", 't', "N", 0,
        "Steps of the phase with faults, of 10 ms each with several nodes (default 2000)", 0},
    {"runs", 'r', "N", 0, "Seeds to run, counting up from the first (default 1)", 0},
    {"nodes", 'n', "N", 0,
        "Nodes, 3 to 7 (default 3), or 1: another simulation, of the store alone", 0},
    {"scenario", 'c', "NAME", 0,
        "cluster, partition, crash, membership, disk, clock or all; with one node calm, crash, "
        "cache, torn, eio, full, store, rot, clock or mixed; drawn from the seed if absent",
        0},
    {"coverage", 'C', NULL, 0, "Show at the end how often each kind of fault happened", 0},
    {"verbose", 'v', NULL, 0, "Show the node's own log lines", 0},
    {0},
};

static bool number(const char *text, uint64_t *number_out)
{
    char *end;
    *number_out = strtoull(text, &end, 0);
    return *text != '\0' && *text != '-' && *end == '\0';
}

static bool known_scenario(const char *name, const char *const *known)
{
    for (; *known != NULL; known++) {
        if (strcmp(*known, name) == 0) return true;
    }
    return false;
}

static error_t parse(int key, char *argument, struct argp_state *state)
{
    struct arguments *arguments = state->input;
    switch (key) {
    case 's':
        arguments->seeded = true;
        if (!number(argument, &arguments->seed)) argp_error(state, "--seed needs a number");
        return 0;
    case 't':
        if (!number(argument, &arguments->ticks)) argp_error(state, "--ticks needs a number");
        return 0;
    case 'r':
        if (!number(argument, &arguments->runs) || arguments->runs == 0)
            argp_error(state, "--runs needs a number above 0");
        return 0;
    case 'n':
        if (!number(argument, &arguments->nodes) || arguments->nodes == 0 ||
            arguments->nodes == 2 || arguments->nodes > NODES_MAX)
            argp_error(state, "--nodes needs 1, or a number from 3 to %d", NODES_MAX);
        return 0;
    case 'c':
        arguments->scenario = argument;
        return 0;
    case 'C':
        arguments->coverage = true;
        return 0;
    case 'v':
        arguments->verbose = true;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "unexpected argument '%s'", argument);
        return 0;
    case ARGP_KEY_END:
        if (arguments->scenario != NULL &&
            !known_scenario(arguments->scenario,
                arguments->nodes == 1 ? sim_scenarios() : sim_cluster_scenarios()))
            argp_error(state, "unknown scenario '%s' for this number of nodes; see --help",
                arguments->scenario);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp parser = {
    .options = flags,
    .parser = parse,
    .doc =
        "Run the deterministic simulator: shipped nodes over simulated disks, stores, clocks and "
        "network, with faults drawn from the seed; clients' histories are checked for "
        "linearizability, replicas for equality.\v"
        "Exit status: 0 all held, 1 a safety violation, 3 no progress after the faults ended.\n"
        "Replay what was found with the printed seed, nodes, ticks and scenario.",
};

static const char *verdict(enum sim_outcome outcome)
{
    switch (outcome) {
    case SIM_OK:
        return "ok";
    case SIM_UNSAFE:
        return "SAFETY VIOLATED";
    case SIM_STUCK:
        return "STUCK";
    }
    return "?";
}

static void print_replay(const struct arguments *arguments, const char *detail)
{
    printf("  %s\n  replay: duramen sim --nodes %" PRIu64 " --seed %" PRIu64 " --ticks %" PRIu64
           "%s%s\n",
        detail, arguments->nodes, arguments->seed, arguments->ticks,
        arguments->scenario == NULL ? "" : " --scenario ",
        arguments->scenario == NULL ? "" : arguments->scenario);
}

static enum sim_outcome run_one_node(const struct arguments *arguments)
{
    struct sim_options options = {.seed = arguments->seed,
        .ticks = arguments->ticks,
        .scenario = arguments->scenario,
        .verbose = arguments->verbose};
    struct sim_result result;
    sim_engine_run(&options, &result);
    const struct sim_counts *counts = &result.counts;
    printf("seed %" PRIu64 " scenario %s: %s, trace %016" PRIx64 ", %" PRIu64 " ms simulated\n",
        arguments->seed, result.scenario, verdict(result.outcome), result.trace_hash,
        result.simulated_ms);
    printf("  transactions %" PRIu64 " commits %" PRIu64 " reads %" PRIu64 " crashes %" PRIu64
           " recoveries %" PRIu64 " torn tails %" PRIu64 " io errors %" PRIu64
           " refused (full) %" PRIu64 " store errors %" PRIu64 " damaged reads %" PRIu64
           " clears %" PRIu64 " clock jumps %" PRIu64 "\n",
        counts->transactions, counts->commits, counts->reads, counts->crashes, counts->recoveries,
        counts->torn, counts->io_errors, counts->full, counts->map_errors, counts->damage,
        counts->clears, counts->clock_jumps);
    if (result.outcome != SIM_OK) print_replay(arguments, result.detail);
    return result.outcome;
}

/* What all runs of the campaign add up to. */
struct campaign {
    uint64_t runs, events, simulated_ms, real_ns;
    uint64_t faults[SIM_FAULTS], seen[SIM_SEEN];
};

static uint64_t real_ns(void)
{
    struct clock clock = clock_real();
    return clock.monotonic_ns(clock.ctx);
}

static enum sim_outcome run_cluster(const struct arguments *arguments, struct campaign *campaign)
{
    struct sim_cluster_options options = {.seed = arguments->seed,
        .nodes = (uint32_t)arguments->nodes,
        .ticks = arguments->ticks,
        .scenario = arguments->scenario,
        .verbose = arguments->verbose};
    struct sim_cluster_result result;
    uint64_t start = real_ns();
    sim_cluster_run(&options, &result);
    uint64_t took = real_ns() - start;
    campaign->runs++;
    campaign->real_ns += took;
    campaign->events += result.events;
    campaign->simulated_ms += result.simulated_ms;
    uint64_t faults = 0;
    for (int i = 0; i < SIM_FAULTS; i++) {
        campaign->faults[i] += result.faults[i];
        if (i > SIM_FAULT_DUPLICATE) faults += result.faults[i];
    }
    for (int i = 0; i < SIM_SEEN; i++)
        campaign->seen[i] += result.seen[i];
    printf("seed %" PRIu64 " scenario %s: %s, trace %016" PRIx64 ", %.1f s simulated, %" PRIu64
           " turns, %" PRIu64 " faults, %" PRIu64 " operations (%" PRIu64 " acknowledged, %" PRIu64
           " unknown)\n",
        arguments->seed, result.scenario, verdict(result.outcome), result.trace_hash,
        (double)result.simulated_ms / 1e3, result.events, faults, result.seen[SIM_SEEN_OPERATIONS],
        result.seen[SIM_SEEN_ACKNOWLEDGED], result.seen[SIM_SEEN_UNKNOWN]);
    if (result.outcome != SIM_OK) print_replay(arguments, result.detail);
    return result.outcome;
}

static void print_campaign(const struct campaign *campaign, bool coverage)
{
    double simulated = (double)campaign->simulated_ms / 1e3, real = (double)campaign->real_ns / 1e9;
    printf("%" PRIu64 " runs, %.0f s simulated in %.2f s: %.0f times real time, %.0f turns/s\n",
        campaign->runs, simulated, real, simulated / real, (double)campaign->events / real);
    if (!coverage) return;
    printf("faults:\n");
    for (int i = 0; i < SIM_FAULTS; i++)
        printf("  %-44s %" PRIu64 "\n", sim_fault_text((enum sim_fault)i), campaign->faults[i]);
    printf("seen:\n");
    for (int i = 0; i < SIM_SEEN; i++)
        printf("  %-44s %" PRIu64 "\n", sim_seen_text((enum sim_seen)i), campaign->seen[i]);
}

int sim_main(int argc, char **argv)
{
    struct arguments arguments = {.ticks = DEFAULT_TICKS, .nodes = DEFAULT_NODES, .runs = 1};
    argp_err_exit_status = EXIT_USAGE;
    argp_parse(&parser, argc, argv, ARGP_IN_ORDER, NULL, &arguments);
    if (!arguments.seeded) {
        struct timespec now;
        timespec_get(&now, TIME_UTC);
        arguments.seed = (uint64_t)now.tv_sec * 1000003u + (uint64_t)now.tv_nsec % 1000003u;
    }
    printf("seed %" PRIu64 ", duramen %s\n", arguments.seed, DURAMEN_VERSION);
    fflush(stdout);
    logger_setup(arguments.verbose ? LOG_DEBUG : LOG_NONE, false);
    int code = 0;
    struct campaign campaign = {0};
    for (uint64_t run = 0; run < arguments.runs; run++) {
        enum sim_outcome outcome =
            arguments.nodes == 1 ? run_one_node(&arguments) : run_cluster(&arguments, &campaign);
        fflush(stdout);
        if (outcome == SIM_UNSAFE) return EXIT_SAFETY;
        if (outcome == SIM_STUCK) code = EXIT_LIVENESS;
        arguments.seed++;
    }
    if (arguments.nodes > 1) print_campaign(&campaign, arguments.coverage);
    return code;
}
