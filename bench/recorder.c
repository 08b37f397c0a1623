#include "bench/recorder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

/* Answers go into one histogram per operation that belongs to the running interval. At the interval's
 * end its percentiles are noted and it is merged into the total, so that an answer costs one count and
 * a run of any length has a course over time. When the table of intervals is full, neighbours are
 * joined and intervals become twice as long. */

enum { FIRST_INTERVAL_NS = 100000000 };

struct recorder *recorder_make(bool detailed)
{
    struct recorder *recorder = calloc(1, sizeof *recorder);
    if (recorder != NULL) {
        recorder->detailed = detailed;
        recorder->interval_ns = FIRST_INTERVAL_NS;
    }
    return recorder;
}

void recorder_start(struct recorder *recorder, uint64_t now_ns)
{
    bool detailed = recorder->detailed;
    memset(recorder, 0, sizeof *recorder);
    recorder->detailed = detailed;
    recorder->started = true;
    recorder->start_ns = now_ns;
    recorder->last_ns = now_ns;
    recorder->interval_ns = FIRST_INTERVAL_NS;
    recorder->interval_end_ns = now_ns + FIRST_INTERVAL_NS;
}

void recorder_add(struct recorder *recorder, enum operation operation, uint64_t latency_ns)
{
    histogram_record(
        recorder->detailed ? &recorder->live[operation] : &recorder->total[operation], latency_ns);
    if (recorder->closed) return;
    recorder->operations++;
    recorder->interval_operations++;
    if (latency_ns > recorder->interval_max_ns) {
        recorder->interval_max_ns = latency_ns;
    }
}

static void join_intervals(struct recorder *recorder)
{
    uint32_t joined = (recorder->interval_count + 1) / 2;
    for (uint32_t i = 0; i < joined; i++) {
        const struct interval none = {0};
        const struct interval *one = &recorder->intervals[(size_t)2 * i];
        const struct interval *two =
            2 * i + 1 < recorder->interval_count ? &recorder->intervals[(size_t)2 * i + 1] : &none;
        recorder->intervals[i] = (struct interval){
            .operations = one->operations + two->operations,
            .p50_ns = two->p50_ns == 0 ? one->p50_ns : (one->p50_ns + two->p50_ns) / 2,
            .p99_ns = one->p99_ns > two->p99_ns ? one->p99_ns : two->p99_ns,
            .max_ns = one->max_ns > two->max_ns ? one->max_ns : two->max_ns,
        };
    }
    recorder->interval_count = joined;
    recorder->interval_ns *= 2;
}

/* merges the live histograms into the total; fills the interval's percentiles */
static void fold_live(struct recorder *recorder, struct interval *interval)
{
    static const int none = -1;
    int busiest = none;
    for (int i = 0; i < OPERATION_COUNT; i++) {
        if (recorder->live[i].count == 0) continue;
        histogram_merge(&recorder->total[i], &recorder->live[i]);
        if (busiest == none) {
            busiest = i;
            continue;
        }
        histogram_merge(&recorder->live[busiest], &recorder->live[i]);
        histogram_reset(&recorder->live[i]);
    }
    if (busiest == none) return;
    interval->p50_ns = histogram_quantile(&recorder->live[busiest], 0.5);
    interval->p99_ns = histogram_quantile(&recorder->live[busiest], 0.99);
    histogram_reset(&recorder->live[busiest]);
}

static void end_interval(struct recorder *recorder)
{
    struct interval interval = {
        .operations = recorder->interval_operations,
        .max_ns = recorder->interval_max_ns,
    };
    if (recorder->detailed) {
        fold_live(recorder, &interval);
    }
    recorder->intervals[recorder->interval_count++] = interval;
    if (recorder->interval_count == RECORDER_INTERVALS) {
        join_intervals(recorder);
    }
    recorder->interval_operations = 0;
    recorder->interval_max_ns = 0;
    recorder->interval_end_ns += recorder->interval_ns;
}

void recorder_turn(struct recorder *recorder, uint64_t now_ns)
{
    if (!recorder->started || recorder->closed) return;
    uint64_t pause = now_ns > recorder->last_ns ? now_ns - recorder->last_ns : 0;
    if (recorder->answered && pause > recorder->pause_max_ns) {
        recorder->pause_max_ns = pause;
    }
    recorder->answered = true;
    recorder->last_ns = now_ns;
    if (now_ns < recorder->interval_end_ns) return;
    while (now_ns >= recorder->interval_end_ns)
        end_interval(recorder);
    atomic_store_explicit(&recorder->shown, recorder->operations, memory_order_relaxed);
    atomic_store_explicit(
        &recorder->shown_errors, recorder_error_count(recorder), memory_order_relaxed);
}

void recorder_close(struct recorder *recorder, uint64_t now_ns)
{
    if (recorder->closed) return;
    recorder_turn(recorder, now_ns);
    /* an interval that has hardly begun would look like a drop */
    uint64_t open_ns = recorder->interval_ns - (recorder->interval_end_ns - now_ns);
    if (recorder->started && open_ns * 2 > recorder->interval_ns) {
        recorder->interval_operations =
            recorder->interval_operations * recorder->interval_ns / open_ns;
        end_interval(recorder);
    }
    recorder->closed = true;
}

static void settle(struct recorder *recorder)
{
    struct interval unused;
    if (recorder->detailed) {
        fold_live(recorder, &unused);
    }
}

void recorder_merge(struct recorder *into, struct recorder *from)
{
    settle(into);
    settle(from);
    for (int i = 0; i < OPERATION_COUNT; i++)
        histogram_merge(&into->total[i], &from->total[i]);
    histogram_merge(&into->lag, &from->lag);
    into->operations += from->operations;
    into->misses += from->misses;
    if (from->pause_max_ns > into->pause_max_ns) {
        into->pause_max_ns = from->pause_max_ns;
    }
    while (into->interval_ns < from->interval_ns)
        join_intervals(into);
    while (from->interval_ns < into->interval_ns)
        join_intervals(from);
    for (uint32_t i = 0; i < from->interval_count && i < into->interval_count; i++) {
        struct interval *to = &into->intervals[i];
        const struct interval *add = &from->intervals[i];
        to->operations += add->operations;
        to->p50_ns = to->p50_ns > add->p50_ns ? to->p50_ns : add->p50_ns;
        to->p99_ns = to->p99_ns > add->p99_ns ? to->p99_ns : add->p99_ns;
        to->max_ns = to->max_ns > add->max_ns ? to->max_ns : add->max_ns;
    }
    if (from->interval_count < into->interval_count) {
        into->interval_count = from->interval_count;
    }
    for (uint32_t i = 0; i < from->error_kinds; i++) {
        const struct error_kind *kind = &from->errors[i];
        recorder_error(into, kind->name, kind->example);
        for (uint32_t j = 0; j < into->error_kinds; j++) {
            if (strcmp(into->errors[j].name, kind->name) == 0) {
                into->errors[j].count += kind->count - 1;
            }
        }
    }
}

void recorder_error(struct recorder *recorder, const char *kind, const char *example)
{
    struct error_kind *found = NULL;
    for (uint32_t i = 0; i < recorder->error_kinds && found == NULL; i++) {
        if (strcmp(recorder->errors[i].name, kind) == 0) {
            found = &recorder->errors[i];
        }
    }
    if (found == NULL && recorder->error_kinds == RECORDER_ERRORS) {
        found = &recorder->errors[RECORDER_ERRORS - 1];
        snprintf(found->name, sizeof found->name, "others");
    }
    if (found == NULL) {
        found = &recorder->errors[recorder->error_kinds++];
        snprintf(found->name, sizeof found->name, "%s", kind);
        snprintf(found->example, sizeof found->example, "%s", example);
    }
    found->count++;
}

uint64_t recorder_error_count(const struct recorder *recorder)
{
    uint64_t count = 0;
    for (uint32_t i = 0; i < recorder->error_kinds; i++)
        count += recorder->errors[i].count;
    return count;
}

void recorder_all(const struct recorder *recorder, struct histogram *all_out)
{
    histogram_reset(all_out);
    for (int i = 0; i < OPERATION_COUNT; i++) {
        histogram_merge(all_out, &recorder->total[i]);
        histogram_merge(all_out, &recorder->live[i]);
    }
}
