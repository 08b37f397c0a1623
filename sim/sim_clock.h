#ifndef SIM_SIM_CLOCK_H
#define SIM_SIM_CLOCK_H

#include "base/io.h"

/* A node's clocks in the simulator. True time moves only by sim_clock_advance(); the node's
 * monotonic clock runs at its own rate (drift) and its wall clock may jump. */
struct sim_clock {
    uint64_t true_ns; /* since the start */
    uint64_t monotonic_ns; /* as the node sees it */
    int64_t wall_ns; /* as the node sees it, since 1970 */
    int64_t drift_ppm; /* how much faster (or slower) than true time the node's clocks run */
    int64_t drift_rest; /* what integer division left over, in millionths of a nanosecond */
};

/* `wall_ms`: the wall clock at the start. */
void sim_clock_init(struct sim_clock *clock, int64_t wall_ms);
/* The table to pass on; borrows `clock`. */
struct clock sim_clock_io(struct sim_clock *clock);
/* Lets `ns` of true time pass. */
void sim_clock_advance(struct sim_clock *clock, uint64_t ns);
/* From now on the node's clocks run 1 + ppm/1000000 as fast as true time; ppm > -1000000. */
void sim_clock_set_drift(struct sim_clock *clock, int64_t ppm);
/* Moves the wall clock, forward or back; the monotonic clock does not notice. */
void sim_clock_jump_wall(struct sim_clock *clock, int64_t ms);
/* The machine restarts: the monotonic clock begins anew. */
void sim_clock_restart(struct sim_clock *clock);

#endif
