#ifndef BENCH_RECORDER_H
#define BENCH_RECORDER_H

#include <stdbool.h>

#include "base/err.h"
#include "base/histogram.h"
#include "bench/workload.h"

/* What happened in a run, as one thread saw it: latencies by operation, the course over time, errors by
 * kind. Memory is bounded whatever the run's length. */

enum { RECORDER_INTERVALS = 1024, RECORDER_ERRORS = 16 };

struct interval {
    uint64_t operations;
    uint64_t p50_ns;
    uint64_t p99_ns;
    uint64_t max_ns;
};

struct error_kind {
    char name[40];
    char example[120];
    uint64_t count;
};

struct recorder {
    struct histogram total[OPERATION_COUNT];
    struct histogram
        live[OPERATION_COUNT]; /* of the interval that runs; merged into total at its end */
    struct histogram lag; /* open loop: how much later than its arrival a request was sent */
    bool detailed; /* intervals have percentiles; for many threads only counts and maxima */
    bool started; /* the warm-up is over */
    bool answered; /* once at least: a pause lies between two answers */
    bool closed; /* the measured time is over; latencies still count, operations do not */
    uint64_t start_ns;
    uint64_t interval_ns;
    uint64_t interval_end_ns;
    uint64_t interval_operations;
    uint64_t interval_max_ns;
    uint64_t last_ns; /* of the newest answer */
    uint64_t pause_max_ns; /* longest time without any answer */
    uint64_t operations;
    uint64_t misses; /* keys that were not there */
    _Atomic uint64_t shown; /* operations, errors: for the progress line */
    _Atomic uint64_t shown_errors;
    uint32_t interval_count;
    struct interval intervals[RECORDER_INTERVALS];
    uint32_t error_kinds;
    struct error_kind errors[RECORDER_ERRORS];
};

/* NULL: no memory. Freed with free(). */
struct recorder *recorder_make(bool detailed);
/* The measured time begins: forgets what was before. */
void recorder_start(struct recorder *recorder, uint64_t now_ns);
/* One operation was answered after `latency_ns`. */
void recorder_add(struct recorder *recorder, enum operation operation, uint64_t latency_ns);
/* Call after each group of answers; keeps the course over time. */
void recorder_turn(struct recorder *recorder, uint64_t now_ns);
/* The measured time is over. */
void recorder_close(struct recorder *recorder, uint64_t now_ns);
void recorder_error(struct recorder *recorder, const char *kind, const char *example);
/* Adds another thread's. Both are closed. */
void recorder_merge(struct recorder *into, struct recorder *from);
/* All operations together. */
void recorder_all(const struct recorder *recorder, struct histogram *all_out);
uint64_t recorder_error_count(const struct recorder *recorder);

#endif
