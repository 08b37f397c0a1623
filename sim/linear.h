#ifndef SIM_LINEAR_H
#define SIM_LINEAR_H

#include <stdint.h>
#include <stdio.h>

#include "sim/history.h"

/* Is a history linearizable: is there, for each key, one order of its operations that explains every result
 * and in which none that ended before another began comes after it? Keys begin without a value.
 *
 * Two ways. Zones (Gibbons, Korach 1997) decide keys that only see GET and SET of values that are written once:
 * n log n, whatever the concurrency. Search (Wing, Gong 1993; Lowe 2017) decides everything else, by
 * trying orders and remembering where it was; it is exponential at its worst, so it has a limit and says when it
 * gave up. Both know operations without an answer: they happened at any later time, or never. */

enum linear_verdict { LINEAR, NOT_LINEAR, GAVE_UP };

enum { LINEAR_EXPLAIN_MAX = 24 };

struct linear_settings {
    uint64_t steps_max; /* per key; 0: the default, 8,000,000 (a few seconds) */
    uint32_t cache_max; /* remembered places per key; 0: the default, 4,000,000 (some 160 MiB) */
};

struct linear_report {
    uint32_t keys, by_zones, by_search, gave_up; /* keys */
    uint64_t steps;
    /* of the first key that is not linearizable */
    uint32_t key;
    const char *reason; /* a constant sentence */
    bool searched; /* found by search, not by zones */
    uint32_t
        order_count; /* search: the last of the longest order that explains all results so far ... */
    uint32_t order[LINEAR_EXPLAIN_MAX];
    uint32_t
        op_count; /* ... and none of these can come next; zones: the operations that contradict each other */
    uint32_t ops[LINEAR_EXPLAIN_MAX];
    history_value state; /* search: after that order */
    uint32_t prefix; /* search: the operation with whose end the history stops being linearizable */
};

/* Checks every key. NOT_LINEAR if one is not; else GAVE_UP if one could not be decided; else LINEAR. May intern
 * values. Takes O(n) memory from the heap; without memory it gives up. */
enum linear_verdict linear_check(struct history *history, const struct linear_settings *settings,
    struct linear_report *report_out);

/* The operations ops[0..count) of the history, all of one key, sorted by invoke. Adds to the report's numbers. */
enum linear_verdict linear_zones(
    struct history *history, const uint32_t *ops, uint32_t count, struct linear_report *report);
enum linear_verdict linear_search(struct history *history, const uint32_t *ops, uint32_t count,
    const struct linear_settings *settings, struct linear_report *report);
/* True if linear_zones() can decide these: GET and SET only, each value is written once. */
bool linear_is_register(struct history *history, const uint32_t *ops, uint32_t count);

/* Prints a violation for a person. */
void linear_explain(const struct history *history, const struct linear_report *report, FILE *file);

#endif
