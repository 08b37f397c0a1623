#include <argp.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/logger.h"
#include "sim/sim.h"

/* duramen sim: prints the seed first, so that whatever happens can be replayed. */

struct arguments {
    struct sim_options options;
    uint64_t runs;
    bool seeded;
};

enum { EXIT_USAGE = 2, EXIT_SAFETY = 1, EXIT_LIVENESS = 3, DEFAULT_TICKS = 2000 };

static const struct argp_option flags[] = {
    {"seed", 's', "N", 0, "First seed; drawn from the clock if absent", 0},
    {"ticks", 't', "N", 0, "Steps of the phase with faults (default 2000)", 0},
    {"runs", 'r', "N", 0, "Seeds to run, counting up from the first (default 1)", 0},
    {"nodes", 'n', "N", 0, "Nodes; this version simulates 1", 0},
    {"scenario", 'c', "NAME", 0,
        "calm, crash, cache, torn, eio, full, store, rot, clock or mixed; "
        "drawn from the seed if absent",
        0},
    {"verbose", 'v', NULL, 0, "Show the node's own log lines", 0},
    {0},
};

static bool number(const char *text, uint64_t *number_out)
{
    char *end;
    *number_out = strtoull(text, &end, 0);
    return *text != '\0' && *text != '-' && *end == '\0';
}

static bool known_scenario(const char *name)
{
    for (const char *const *known = sim_scenarios(); *known != NULL; known++) {
        if (strcmp(*known, name) == 0) return true;
    }
    return false;
}

static error_t parse(int key, char *argument, struct argp_state *state)
{
    struct arguments *arguments = state->input;
    uint64_t nodes;
    switch (key) {
    case 's':
        arguments->seeded = true;
        if (!number(argument, &arguments->options.seed)) argp_error(state, "--seed needs a number");
        return 0;
    case 't':
        if (!number(argument, &arguments->options.ticks))
            argp_error(state, "--ticks needs a number");
        return 0;
    case 'r':
        if (!number(argument, &arguments->runs) || arguments->runs == 0)
            argp_error(state, "--runs needs a number above 0");
        return 0;
    case 'n':
        if (!number(argument, &nodes) || nodes != 1)
            argp_error(state, "--nodes: this version simulates one node");
        return 0;
    case 'c':
        if (!known_scenario(argument))
            argp_error(state, "unknown scenario '%s'; see --help", argument);
        arguments->options.scenario = argument;
        return 0;
    case 'v':
        arguments->options.verbose = 1;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "unexpected argument '%s'", argument);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp parser = {
    .options = flags,
    .parser = parse,
    .doc = "Run the deterministic simulator: the shipped node over a simulated disk, store and "
           "clock, with "
           "faults drawn from the seed, checked against a model.\v"
           "Exit status: 0 all held, 1 a safety violation, 3 no progress after the faults ended.\n"
           "Replay what was found with the printed seed, ticks and scenario.",
};

static void print(const struct sim_options *options, const struct sim_result *result)
{
    const struct sim_counts *counts = &result->counts;
    printf("seed %" PRIu64 " scenario %s: %s, trace %016" PRIx64 ", %" PRIu64 " ms simulated\n",
        options->seed, result->scenario,
        result->outcome == SIM_OK           ? "ok"
            : result->outcome == SIM_UNSAFE ? "SAFETY VIOLATED"
                                            : "STUCK",
        result->trace_hash, result->simulated_ms);
    printf("  transactions %" PRIu64 " commits %" PRIu64 " reads %" PRIu64 " crashes %" PRIu64
           " recoveries %" PRIu64 " torn tails %" PRIu64 " io errors %" PRIu64
           " refused (full) %" PRIu64 " store errors %" PRIu64 " damaged reads %" PRIu64
           " clears %" PRIu64 " clock jumps %" PRIu64 "\n",
        counts->transactions, counts->commits, counts->reads, counts->crashes, counts->recoveries,
        counts->torn, counts->io_errors, counts->full, counts->map_errors, counts->damage,
        counts->clears, counts->clock_jumps);
    if (result->outcome != SIM_OK) {
        printf("  %s\n  replay: duramen sim --seed %" PRIu64 " --ticks %" PRIu64 "%s%s\n",
            result->detail, options->seed, options->ticks,
            options->scenario == NULL ? "" : " --scenario ",
            options->scenario == NULL ? "" : options->scenario);
    }
    fflush(stdout);
}

int sim_main(int argc, char **argv)
{
    struct arguments arguments = {.options = {.ticks = DEFAULT_TICKS}, .runs = 1};
    argp_err_exit_status = EXIT_USAGE;
    argp_parse(&parser, argc, argv, ARGP_IN_ORDER, NULL, &arguments);
    if (!arguments.seeded) {
        struct timespec now;
        timespec_get(&now, TIME_UTC);
        arguments.options.seed = (uint64_t)now.tv_sec * 1000003u + (uint64_t)now.tv_nsec % 1000003u;
    }
    printf("seed %" PRIu64 ", duramen %s\n", arguments.options.seed, DURAMEN_VERSION);
    fflush(stdout);
    logger_setup(arguments.options.verbose ? LOG_DEBUG : LOG_NONE, false);
    int code = 0;
    for (uint64_t run = 0; run < arguments.runs; run++) {
        struct sim_result result;
        sim_engine_run(&arguments.options, &result);
        print(&arguments.options, &result);
        if (result.outcome == SIM_UNSAFE) return EXIT_SAFETY;
        if (result.outcome == SIM_STUCK) code = EXIT_LIVENESS;
        arguments.options.seed++;
    }
    return code;
}
