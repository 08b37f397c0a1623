#include <stdlib.h>

#include "base/check.h"
#include "sim/linear.h"

/* Zones. A cluster is the write of a value with all reads of it. Let `end` be the first time at which one of
 * them has ended and `start` the last time at which one of them begins. In every right order a cluster is
 * one block (the value is written once), and cluster a can be before b only if nothing of b has ended
 * before something of a begins: not (end_b < start_a). So two clusters contradict each other exactly if
 * end_b < start_a and end_a < start_b, and Gibbons and Korach prove that if no two do, all of them can be
 * ordered. With forward zones [end, start], where end < start, this means: two of them overlap; or a
 * backward zone [start, end] lies within a forward one.
 *
 * The value that is not there is a cluster whose write has ended before all time. A write without an answer
 * belongs to its cluster if the value was read, with an end that never comes; otherwise it may as well not
 * have happened. */

struct cluster {
    history_value value;
    bool written, failed;
    uint32_t write; /* operation; only if written */
    uint64_t end, start;
    uint32_t end_op, start_op;
    uint32_t reads;
    uint32_t first_read; /* the read that ends first */
    uint64_t first_read_end;
};

static int by_number(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

bool linear_is_register(struct history *history, const uint32_t *ops, uint32_t count)
{
    uint32_t writes = 0;
    bool unique = true;
    history_value *values = malloc((count + 1) * sizeof *values);
    if (values == NULL) return false;
    for (uint32_t i = 0; i < count && unique; i++) {
        const struct history_op *op = &history->ops[ops[i]];
        if (op->outcome == HISTORY_FAILED) continue;
        if (op->kind == HISTORY_SET)
            values[writes++] = op->argument;
        else if (op->kind != HISTORY_GET)
            unique = false;
    }
    qsort(values, writes, sizeof *values, by_number);
    for (uint32_t i = 1; i < writes && unique; i++)
        unique = values[i] != values[i - 1];
    free(values);
    return unique;
}

/* Operations by value, so that a cluster is a run: (value, operation) pairs. */
struct pair {
    history_value value;
    uint32_t op;
};

static int by_value(const void *a, const void *b)
{
    const struct pair *x = a, *y = b;
    if (x->value != y->value) return (x->value > y->value) - (x->value < y->value);
    return (x->op > y->op) - (x->op < y->op);
}

static uint32_t collect_pairs(
    const struct history *history, const uint32_t *ops, uint32_t count, struct pair *pairs)
{
    uint32_t used = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct history_op *op = &history->ops[ops[i]];
        if (op->kind == HISTORY_SET)
            pairs[used++] = (struct pair){op->argument, ops[i]};
        else if (op->outcome == HISTORY_OK)
            pairs[used++] = (struct pair){op->result, ops[i]};
    }
    qsort(pairs, used, sizeof *pairs, by_value);
    return used;
}

static void cluster_begin(struct cluster *cluster, history_value value)
{
    *cluster = (struct cluster){.value = value, .end = UINT64_MAX, .first_read_end = UINT64_MAX};
    if (value == HISTORY_NONE) {
        cluster->written = true;
        cluster->end = 0;
    }
}

static void cluster_add(struct cluster *cluster, const struct history_op *op, uint32_t number)
{
    if (op->outcome == HISTORY_FAILED) {
        cluster->failed = true;
        return;
    }
    if (op->kind == HISTORY_SET) {
        cluster->written = true;
        cluster->write = number;
    } else {
        cluster->reads++;
        if (op->ret < cluster->first_read_end) {
            cluster->first_read_end = op->ret;
            cluster->first_read = number;
        }
    }
    uint64_t end = op->outcome == HISTORY_OK ? op->ret : UINT64_MAX;
    if (end < cluster->end) {
        cluster->end = end;
        cluster->end_op = number;
    }
    if (op->invoke >= cluster->start) {
        cluster->start = op->invoke;
        cluster->start_op = number;
    }
}

static enum linear_verdict contradiction(
    struct linear_report *report, const char *reason, const uint32_t *ops, uint32_t count)
{
    report->reason = reason;
    report->op_count = 0;
    report->order_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        bool there = false;
        for (uint32_t j = 0; j < report->op_count; j++)
            there |= report->ops[j] == ops[i];
        if (!there) report->ops[report->op_count++] = ops[i];
    }
    return NOT_LINEAR;
}

/* What one cluster can do wrong by itself. */
static enum linear_verdict check_cluster(
    const struct history *history, const struct cluster *cluster, struct linear_report *report)
{
    uint32_t ops[2] = {cluster->first_read, cluster->write};
    if (cluster->reads == 0) return LINEAR;
    if (!cluster->written)
        return contradiction(report,
            cluster->failed ? "a value was read whose write had failed"
                            : "a value was read that nobody wrote",
            ops, 1);
    if (cluster->value != HISTORY_NONE &&
        cluster->first_read_end < history->ops[cluster->write].invoke)
        return contradiction(report, "a value was read before its write began", ops, 2);
    return LINEAR;
}

static enum linear_verdict check_pair(
    const struct cluster *a, const struct cluster *b, struct linear_report *report)
{
    if (!(b->end < a->start && a->end < b->start)) return LINEAR;
    const struct cluster *both[2] = {a, b};
    uint32_t ops[6], count = 0;
    for (unsigned i = 0; i < 2; i++) {
        if (both[i]->value != HISTORY_NONE) ops[count++] = both[i]->write;
        if (both[i]->end != 0) ops[count++] = both[i]->end_op;
        if (both[i]->start != 0) ops[count++] = both[i]->start_op;
    }
    return contradiction(report,
        "two values each were there before the other, by what ended before something else began",
        ops, count);
}

static int by_end(const void *a, const void *b)
{
    const struct cluster *x = a, *y = b;
    return (x->end > y->end) - (x->end < y->end);
}

/* The forward zones, forward[0..count), sorted; the last one that begins before `time`. */
static const struct cluster *last_before(
    const struct cluster *forward, uint32_t count, uint64_t time)
{
    uint32_t low = 0, high = count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (forward[middle].end < time)
            low = middle + 1;
        else
            high = middle;
    }
    return low == 0 ? NULL : &forward[low - 1];
}

static enum linear_verdict check_zones(
    struct cluster *clusters, uint32_t count, struct linear_report *report)
{
    uint32_t forward = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (clusters[i].end >= clusters[i].start) continue;
        struct cluster swapped = clusters[i];
        clusters[i] = clusters[forward];
        clusters[forward++] = swapped;
    }
    qsort(clusters, forward, sizeof *clusters, by_end);
    for (uint32_t i = 1; i < forward; i++) {
        if (check_pair(&clusters[i - 1], &clusters[i], report) != LINEAR) return NOT_LINEAR;
    }
    for (uint32_t i = forward; i < count; i++) {
        const struct cluster *around = last_before(clusters, forward, clusters[i].start);
        if (around != NULL && check_pair(around, &clusters[i], report) != LINEAR) return NOT_LINEAR;
    }
    return LINEAR;
}

static enum linear_verdict check_clusters(struct history *history, const struct pair *pairs,
    uint32_t count, struct cluster *clusters, struct linear_report *report)
{
    uint32_t used = 0;
    for (uint32_t i = 0; i < count;) {
        struct cluster *cluster = &clusters[used];
        cluster_begin(cluster, pairs[i].value);
        for (; i < count && pairs[i].value == cluster->value; i++)
            cluster_add(cluster, &history->ops[pairs[i].op], pairs[i].op);
        if (check_cluster(history, cluster, report) != LINEAR) return NOT_LINEAR;
        bool happened = cluster->reads > 0 ||
            (cluster->written && history->ops[cluster->write].outcome == HISTORY_OK);
        if (happened) used++;
    }
    return check_zones(clusters, used, report);
}

enum linear_verdict linear_zones(
    struct history *history, const uint32_t *ops, uint32_t count, struct linear_report *report)
{
    struct pair *pairs = malloc((count + 1) * sizeof *pairs);
    struct cluster *clusters = malloc((count + 1) * sizeof *clusters);
    enum linear_verdict verdict = GAVE_UP;
    if (pairs != NULL && clusters != NULL) {
        uint32_t used = collect_pairs(history, ops, count, pairs);
        verdict = check_clusters(history, pairs, used, clusters, report);
    }
    free(pairs);
    free(clusters);
    report->by_zones++;
    report->steps += count;
    return verdict;
}
