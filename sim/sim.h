#ifndef SIM_SIM_H
#define SIM_SIM_H

#include <stdint.h>

#include "base/err.h"

/* The deterministic simulator of one node: the shipped node, engine and log, over a simulated clock, disk
 * and bottom store. One seed decides everything; the same seed gives the same trace hash.
 *
 * A model of the key space is kept beside the node. Checked after every step and after every
 * recovery: reads are what the model says at the committed ticket; nothing acknowledged is lost,
 * nothing unacknowledged appears unless its whole transaction does (the recovered state is the
 * model at exactly the recovered LSN); scans, pages and counts agree; damage is reported, never
 * answered wrongly; and once faults end, new writes commit within a bound. */

enum sim_outcome { SIM_OK = 0, SIM_UNSAFE = 1, SIM_STUCK = 3 };

struct sim_options {
    uint64_t seed;
    uint64_t ticks; /* steps of the chaos phase */
    const char *scenario; /* NULL: drawn from the seed */
    int verbose;
};

struct sim_counts {
    uint64_t commits, crashes, recoveries, torn, io_errors, full, damage, checkpoints, reads,
        transactions;
    uint64_t clears, expired, clock_jumps, map_errors;
};

struct sim_result {
    enum sim_outcome outcome;
    uint64_t trace_hash;
    uint64_t simulated_ms;
    const char *scenario;
    char detail[256]; /* what was violated */
    struct sim_counts counts;
};

/* Runs one seed. */
void sim_engine_run(const struct sim_options *options, struct sim_result *result);
/* Names of the scenarios, ending with NULL. */
const char *const *sim_scenarios(void);

/* The subcommand: duramen sim. Returns the exit code. */
int sim_main(int argc, char **argv);

#endif
