#include "sim/linear.h"

#include <inttypes.h>
#include <stdlib.h>

#include "base/check.h"

/* Operations by key and begin; carried along, as qsort has no context. */
struct sorted {
    uint32_t key, op;
    uint64_t invoke;
};

static int by_key(const void *a, const void *b)
{
    const struct sorted *x = a, *y = b;
    if (x->key != y->key) return (x->key > y->key) - (x->key < y->key);
    if (x->invoke != y->invoke) return (x->invoke > y->invoke) - (x->invoke < y->invoke);
    return (x->op > y->op) - (x->op < y->op);
}

static uint32_t *sort_ops(const struct history *history)
{
    struct sorted *sorted = malloc((history->count + 1u) * sizeof *sorted);
    uint32_t *ops = malloc((history->count + 1u) * sizeof *ops);
    if (sorted != NULL && ops != NULL) {
        for (uint32_t i = 0; i < history->count; i++)
            sorted[i] = (struct sorted){history->ops[i].key, i, history->ops[i].invoke};
        qsort(sorted, history->count, sizeof *sorted, by_key);
        for (uint32_t i = 0; i < history->count; i++)
            ops[i] = sorted[i].op;
    } else {
        free(ops);
        ops = NULL;
    }
    free(sorted);
    return ops;
}

enum linear_verdict linear_check(struct history *history, const struct linear_settings *settings,
    struct linear_report *report_out)
{
    enum linear_verdict worst = LINEAR;
    *report_out = (struct linear_report){0};
    uint32_t *ops = sort_ops(history);
    if (ops == NULL) return GAVE_UP;
    for (uint32_t first = 0, last; first < history->count && worst != NOT_LINEAR; first = last) {
        uint32_t key = history->ops[ops[first]].key;
        for (last = first; last < history->count && history->ops[ops[last]].key == key;)
            last++;
        report_out->keys++;
        enum linear_verdict verdict = linear_is_register(history, ops + first, last - first)
            ? linear_zones(history, ops + first, last - first, report_out)
            : linear_search(history, ops + first, last - first, settings, report_out);
        if (verdict == LINEAR) continue;
        report_out->gave_up += verdict == GAVE_UP;
        worst = verdict;
        report_out->key = key;
    }
    free(ops);
    return worst;
}

static void write_ops(
    const struct history *history, const uint32_t *ops, uint32_t count, FILE *file)
{
    for (uint32_t i = 0; i < count; i++) {
        if (history->ops[ops[i]].line > 0)
            fprintf(file, "  line %u: ", history->ops[ops[i]].line);
        else
            fprintf(file, "  #%u: ", ops[i]);
        history_write(history, &history->ops[ops[i]], file);
    }
}

void linear_explain(const struct history *history, const struct linear_report *report, FILE *file)
{
    if (report->reason == NULL) return;
    fprintf(file, "not linearizable: %s\n", report->reason);
    if (!report->searched) {
        write_ops(history, report->ops, report->op_count, file);
        return;
    }
    fprintf(file, "the longest order that fits ends with\n");
    write_ops(history, report->order, report->order_count, file);
    struct bytes state = bytes_of("-", 1);
    if (report->state != HISTORY_NONE) state = history_bytes(history, report->state);
    fprintf(file, "the value then is %.*s, and none of these can come next:\n",
        (int)(state.size < 200 ? state.size : 200), (const char *)state.at);
    write_ops(history, report->ops, report->op_count, file);
    fprintf(file, "all was well until the end of\n");
    write_ops(history, &report->prefix, 1, file);
}
