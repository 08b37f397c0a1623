#include "sim/sim_clock.h"

#include "base/check.h"

static uint64_t sim_monotonic_ns(void *ctx)
{
    const struct sim_clock *clock = ctx;
    return clock->monotonic_ns;
}

static int64_t sim_wall_ms(void *ctx)
{
    const struct sim_clock *clock = ctx;
    int64_t ms = clock->wall_ns / 1000000;
    return clock->wall_ns % 1000000 < 0 ? ms - 1 : ms;
}

void sim_clock_init(struct sim_clock *clock, int64_t wall_ms)
{
    /* a monotonic clock never starts at 0 in the world, and code must not rely on it */
    *clock = (struct sim_clock){.monotonic_ns = 1000000000, .wall_ns = wall_ms * 1000000};
}

struct clock sim_clock_io(struct sim_clock *clock)
{
    return (struct clock){.ctx = clock, .monotonic_ns = sim_monotonic_ns, .wall_ms = sim_wall_ms};
}

void sim_clock_advance(struct sim_clock *clock, uint64_t ns)
{
    const int64_t million = 1000000;
    ASSERT(ns <= (uint64_t)(INT64_MAX / (2 * million)));
    int64_t shifted = (int64_t)ns * clock->drift_ppm + clock->drift_rest;
    clock->drift_rest = shifted % million;
    int64_t seen = (int64_t)ns + shifted / million;
    /* left-over parts may owe a nanosecond; a monotonic clock waits for that instead of going back */
    if (seen < 0) {
        clock->drift_rest += seen * million;
        seen = 0;
    }
    clock->true_ns += ns;
    clock->monotonic_ns += (uint64_t)seen;
    clock->wall_ns += seen;
}

void sim_clock_set_drift(struct sim_clock *clock, int64_t ppm)
{
    ASSERT(ppm > -1000000 && ppm <= 1000000);
    clock->drift_ppm = ppm;
    clock->drift_rest = 0;
}

void sim_clock_jump_wall(struct sim_clock *clock, int64_t ms)
{
    clock->wall_ns += ms * 1000000;
}

void sim_clock_restart(struct sim_clock *clock)
{
    clock->monotonic_ns = 1000000000;
}
