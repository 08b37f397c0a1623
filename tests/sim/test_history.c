#define _GNU_SOURCE /* fmemopen */

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/prng.h"
#include "sim/history.h"
#include "sim/linear.h"

/* The checkers against histories whose verdict is known, and against each other. */

static struct history history;

static enum err read_text(const char *text, uint32_t *line_out)
{
    const char *why = NULL;
    FILE *file = fmemopen((void *)(uintptr_t)text, strlen(text), "r");
    cr_assert_not_null(file);
    enum err err = history_read(&history, file, line_out, &why);
    fclose(file);
    return err;
}

static void load(const char *text)
{
    uint32_t line;
    history_init(&history);
    cr_assert_eq(read_text(text, &line), OK, "line %u of\n%s", line, text);
}

static int by_invoke(const void *a, const void *b)
{
    uint64_t x = history.ops[*(const uint32_t *)a].invoke,
             y = history.ops[*(const uint32_t *)b].invoke;
    return (x > y) - (x < y);
}

static uint32_t all_ops(uint32_t *ops)
{
    for (uint32_t i = 0; i < history.count; i++)
        ops[i] = i;
    qsort(ops, history.count, sizeof *ops, by_invoke);
    return history.count;
}

/* The reference: every order of every subset that holds what must be in it. */
static bool brute_force(const uint32_t *ops, uint32_t count, uint32_t done, history_value state)
{
    uint64_t end = UINT64_MAX;
    bool exhausted = false;
    for (uint32_t i = 0; i < count; i++) {
        const struct history_op *op = &history.ops[ops[i]];
        if (!(done & 1u << i) && op->outcome == HISTORY_OK && op->ret < end) end = op->ret;
    }
    if (end == UINT64_MAX) return true;
    for (uint32_t i = 0; i < count; i++) {
        const struct history_op *op = &history.ops[ops[i]];
        history_value after;
        if (done & 1u << i || op->outcome == HISTORY_FAILED || op->invoke > end) continue;
        if (!history_apply(&history, op, state, &after, &exhausted)) continue;
        if (brute_force(ops, count, done | 1u << i, after)) return true;
    }
    return false;
}

struct example {
    const char *name;
    bool legal;
    const char *text;
};

static const struct example examples[] = {
    {"nothing", true, ""},
    {"a read of nothing", true, "1 2 1 ok k GET = -\n"},
    {"a value nobody wrote", false, "1 2 1 ok k GET = v\n"},
    {"write then read", true, "1 2 1 ok k SET a\n3 4 1 ok k GET = a\n"},
    {"a stale read", false, "1 2 1 ok k SET a\n3 4 1 ok k SET b\n5 6 2 ok k GET = a\n"},
    {"a stale read of nothing", false, "1 2 1 ok k SET a\n3 4 2 ok k GET = -\n"},
    {"a read during the write sees the old", true,
        "1 2 1 ok k SET a\n3 9 1 ok k SET b\n4 5 2 ok k GET = a\n"},
    {"a read during the write sees the new", true,
        "1 2 1 ok k SET a\n3 9 1 ok k SET b\n4 5 2 ok k GET = b\n"},
    {"new then old", false,
        "1 2 1 ok k SET a\n3 20 1 ok k SET b\n4 5 2 ok k GET = b\n6 7 3 ok k GET = a\n"},
    {"old then new", true,
        "1 2 1 ok k SET a\n3 20 1 ok k SET b\n4 5 2 ok k GET = a\n6 7 3 ok k GET = b\n"},
    {"reads at the same time may differ", true,
        "1 2 1 ok k SET a\n3 20 1 ok k SET b\n4 7 2 ok k GET = b\n5 8 3 ok k GET = a\n"},
    {"ends at the time where another begins", true, "1 5 1 ok k SET a\n5 9 2 ok k GET = -\n"},
    {"two readers see two writes in opposite orders", false,
        "1 20 1 ok k SET a\n1 20 2 ok k SET b\n2 3 3 ok k GET = a\n2 3 4 ok k GET = b\n"
        "4 5 3 ok k GET = b\n4 5 4 ok k GET = a\n"},
    {"a write from the future", false, "1 2 1 ok k GET = a\n3 4 2 ok k SET a\n"},
    {"a value comes back", false,
        "1 2 1 ok k SET a\n3 4 1 ok k SET b\n5 6 1 ok k GET = b\n7 8 1 ok k GET = a\n"},
    {"a failed write that is seen", false, "1 2 1 failed k SET a\n3 4 2 ok k GET = a\n"},
    {"a failed write that is not seen", true, "1 2 1 failed k SET a\n3 4 2 ok k GET = -\n"},
    {"an unknown write that is not seen", true, "1 - 1 unknown k SET a\n3 4 2 ok k GET = -\n"},
    {"an unknown write seen much later", true,
        "1 - 1 unknown k SET a\n3 4 2 ok k GET = -\n5 6 2 ok k SET b\n7 8 2 ok k GET = b\n9 10 2 "
        "ok k GET = a\n"},
    {"an unknown write seen and then gone", false,
        "1 - 1 unknown k SET a\n3 4 2 ok k GET = a\n5 6 2 ok k GET = -\n"},
    {"an unknown write applied twice", false,
        "1 - 1 unknown k SET a\n3 4 2 ok k GET = a\n5 6 2 ok k SET b\n7 8 2 ok k GET = b\n9 10 2 "
        "ok k GET = a\n"},
    {"an unknown write seen before it began", false, "1 2 2 ok k GET = a\n3 - 1 unknown k SET a\n"},
    {"unknown reads say nothing", true,
        "1 2 1 ok k SET a\n3 - 2 unknown k GET\n5 6 1 ok k GET = a\n"},
    {"keys are apart", true, "1 2 1 ok k SET a\n3 4 1 ok l GET = -\n5 6 1 ok k GET = a\n"},
    {"one bad key among good ones", false,
        "1 2 1 ok k SET a\n3 4 1 ok l GET = a\n5 6 1 ok k GET = a\n"},
    {"the order of lines does not count", true, "5 6 1 ok k GET = a\n1 2 1 ok k SET a\n"},
    {"the same value twice", true,
        "1 2 1 ok k SET a\n3 4 1 ok k SET b\n5 6 1 ok k SET a\n7 8 2 ok k GET = a\n"},
    {"the same value twice, overwritten", false,
        "1 2 1 ok k SET a\n3 4 1 ok k SET a\n5 6 1 ok k SET b\n7 8 2 ok k GET = a\n"},

    {"increments count", true,
        "1 2 1 ok k INCR 1 = 1\n1 5 2 ok k INCR 1 = 2\n6 7 1 ok k GET = 2\n"},
    {"a lost update", false, "1 5 1 ok k INCR 1 = 1\n1 5 2 ok k INCR 1 = 1\n6 7 1 ok k GET = 1\n"},
    {"an increment applied twice", false, "1 2 1 ok k INCR 1 = 1\n3 4 2 ok k GET = 2\n"},
    {"an unknown increment applied once", true, "1 - 1 unknown k INCR 1\n3 4 2 ok k INCR 1 = 2\n"},
    {"an unknown increment not applied", true, "1 - 1 unknown k INCR 1\n3 4 2 ok k INCR 1 = 1\n"},
    {"an unknown increment applied twice", false,
        "1 - 1 unknown k INCR 1\n3 4 2 ok k INCR 1 = 3\n"},
    {"two of three unknown increments", true,
        "1 - 1 unknown k INCR 1\n1 - 2 unknown k INCR 1\n1 - 3 unknown k INCR 1\n3 4 4 ok k GET = "
        "2\n"},
    {"an increment taken back", false,
        "1 - 1 unknown k INCR 1\n3 4 2 ok k GET = 1\n5 6 2 ok k INCR 1 = 1\n"},
    {"an increment of a failed one", false, "1 2 1 failed k INCR 5\n3 4 2 ok k INCR 1 = 6\n"},
    {"an increment of what is no number", false, "1 2 1 ok k SET 1x\n3 4 2 ok k INCR 1 = 2\n"},
    {"an increment beyond the numbers", false,
        "1 2 1 ok k SET 9223372036854775807\n3 4 2 ok k INCR 1 = -9223372036854775808\n"},
    {"an increment of a written number", true, "1 2 1 ok k SET -5\n3 4 2 ok k INCR -3 = -8\n"},
    {"an unknown increment that would be refused", true,
        "1 2 1 ok k SET x\n3 - 2 unknown k INCR 1\n5 6 1 ok k GET = x\n"},

    {"of two that set if nothing is there one wins", true,
        "1 5 1 ok k SETNX a = 1\n1 5 2 ok k SETNX b = 0\n6 7 3 ok k GET = a\n"},
    {"both win", false, "1 5 1 ok k SETNX a = 1\n1 5 2 ok k SETNX b = 1\n"},
    {"both lose", false, "1 5 1 ok k SETNX a = 0\n1 5 2 ok k SETNX b = 0\n"},
    {"both lose against an unknown third", true,
        "1 5 1 ok k SETNX a = 0\n1 5 2 ok k SETNX b = 0\n2 - 3 unknown k SETNX c\n6 7 1 ok k GET = "
        "c\n"},
    {"swaps in a row", true,
        "1 2 1 ok k CAS - a = 1\n3 4 1 ok k CAS a b = 1\n5 6 2 ok k CAS a c = 0\n"},
    {"two swaps from the same value", false,
        "1 2 1 ok k SET a\n3 9 1 ok k CAS a b = 1\n3 9 2 ok k CAS a c = 1\n"},
    {"a swap that failed though it could not", false, "1 2 1 ok k SET a\n3 4 1 ok k CAS a b = 0\n"},
    {"a swap that failed as another was under way", true,
        "1 2 1 ok k SET a\n3 9 1 ok k SET x\n4 5 1 ok k CAS a b = 0\n6 7 1 ok k GET = x\n"},
    {"appends in some order", true,
        "1 5 1 ok k APPEND ab = 3\n1 5 2 ok k APPEND c = 1\n6 7 1 ok k GET = cab\n"},
    {"appends in another order than their lengths say", false,
        "1 5 1 ok k APPEND ab = 3\n1 5 2 ok k APPEND c = 1\n6 7 1 ok k GET = abc\n"},
    {"an append applied twice", false, "1 2 1 ok k APPEND a = 1\n3 4 1 ok k GET = aa\n"},
    {"a lost append", false, "1 2 1 ok k APPEND a = 1\n3 4 1 ok k APPEND b = 1\n"},
    {"an append to a number is a number", true,
        "1 2 1 ok k INCR 1 = 1\n3 4 1 ok k APPEND 0 = 2\n5 6 1 ok k INCR 1 = 11\n"},
    {"deleted once", true, "1 2 1 ok k SET a\n3 9 1 ok k DEL = 1\n3 9 2 ok k DEL = 0\n"},
    {"deleted twice", false, "1 2 1 ok k SET a\n3 9 1 ok k DEL = 1\n3 9 2 ok k DEL = 1\n"},
    {"a deleted value that is read", false,
        "1 2 1 ok k SET a\n3 4 1 ok k DEL = 1\n5 6 2 ok k GET = a\n"},
    {"an unknown delete explains a hole", true,
        "1 2 1 ok k SET a\n3 - 1 unknown k DEL\n5 6 2 ok k GET = -\n"},
    {"exchanges form a chain", true,
        "1 9 1 ok k GETSET a = -\n1 9 2 ok k GETSET b = c\n1 9 3 ok k GETSET c = a\n10 11 1 ok k "
        "GET = b\n"},
    {"exchanges form a circle", false,
        "1 9 1 ok k GETSET a = b\n1 9 2 ok k GETSET b = c\n1 9 3 ok k GETSET c = a\n"},
    {"an exchange that lost a write", false,
        "1 2 1 ok k SET a\n3 4 2 ok k SET b\n5 6 1 ok k GETSET c = a\n"},
    {"odd bytes", true,
        "1 2 1 ok k%20k SET %00%FF%20\n3 4 1 ok k%20k GET = %00%ff%20\n5 6 1 ok k%20k APPEND % = "
        "3\n"},
    {"a value that looks like none", true, "1 2 1 ok k SET %2D\n3 4 1 ok k GET = %2D\n"},
};

enum { EXAMPLES = sizeof examples / sizeof examples[0] };

Test(history, the_verdict_on_hand_made_histories)
{
    struct linear_settings settings = {0};
    for (unsigned i = 0; i < EXAMPLES; i++) {
        struct linear_report report;
        load(examples[i].text);
        enum linear_verdict verdict = linear_check(&history, &settings, &report);
        cr_expect_eq(
            verdict, examples[i].legal ? LINEAR : NOT_LINEAR, "%s: %d", examples[i].name, verdict);
        cr_expect_eq(verdict == NOT_LINEAR, report.reason != NULL);
        history_deinit(&history);
    }
}

Test(history, search_alone_says_the_same)
{
    struct linear_settings settings = {0};
    for (unsigned i = 0; i < EXAMPLES; i++) {
        uint32_t ops[16];
        struct linear_report report = {0};
        load(examples[i].text);
        if (history.keys.count <= 2) {
            uint32_t count = all_ops(ops);
            enum linear_verdict verdict = linear_search(&history, ops, count, &settings, &report);
            cr_expect_eq(verdict, examples[i].legal ? LINEAR : NOT_LINEAR, "%s", examples[i].name);
            cr_expect_eq(brute_force(ops, count, 0, HISTORY_NONE), examples[i].legal, "%s",
                examples[i].name);
        }
        history_deinit(&history);
    }
}

Test(history, an_explanation_names_the_lines)
{
    static const char *const texts[] = {
        "1 2 1 ok k SET a\n3 4 1 ok k SET b\n# then\n5 6 2 ok k GET = a\n7 8 2 ok k GET = b\n9 10 "
        "1 ok k SET c\n",
        "1 2 1 ok k SET a\n3 4 1 ok k INCR 1 = 1\n# then\n5 6 2 ok k GET = a\n7 8 2 ok k GET = b\n",
    };
    static const char *const expected[] = {
        "not linearizable: two values each were there before the other, by what ended before "
        "something else began\n"
        "  line 1: 1 2 1 ok k SET a\n  line 4: 5 6 2 ok k GET = a\n  line 2: 3 4 1 ok k SET b\n"
        "  line 5: 7 8 2 ok k GET = b\n",
        "not linearizable: no order of the operations explains their results\n"
        "the longest order that fits ends with\n  line 1: 1 2 1 ok k SET a\n"
        "the value then is a, and none of these can come next:\n  line 2: 3 4 1 ok k INCR 1 = 1\n"
        "all was well until the end of\n  line 2: 3 4 1 ok k INCR 1 = 1\n",
    };
    for (unsigned i = 0; i < 2; i++) {
        struct linear_settings settings = {0};
        struct linear_report report;
        char *text = NULL;
        size_t size;
        load(texts[i]);
        cr_assert_eq(linear_check(&history, &settings, &report), NOT_LINEAR);
        FILE *file = open_memstream(&text, &size);
        linear_explain(&history, &report, file);
        fclose(file);
        cr_assert_str_eq(text, expected[i]);
        free(text);
        history_deinit(&history);
    }
}

Test(history, what_is_written_reads_back)
{
    for (unsigned i = 0; i < EXAMPLES; i++) {
        char *text = NULL;
        size_t size;
        load(examples[i].text);
        FILE *file = open_memstream(&text, &size);
        for (uint32_t j = 0; j < history.count; j++)
            history_write(&history, &history.ops[j], file);
        fclose(file);
        struct history first = history;
        load(text);
        cr_assert_eq(history.count, first.count);
        for (uint32_t j = 0; j < history.count; j++) {
            struct history_op a = first.ops[j], b = history.ops[j];
            cr_assert(a.kind == b.kind && a.outcome == b.outcome && a.argument == b.argument);
            cr_assert(a.expected == b.expected && a.result == b.result && a.delta == b.delta);
            cr_assert(a.answer == b.answer && a.invoke == b.invoke && a.client == b.client);
            cr_assert(a.key == b.key);
            cr_assert(a.outcome == HISTORY_UNKNOWN || a.ret == b.ret);
        }
        history_deinit(&history);
        history_deinit(&first);
        free(text);
    }
}

Test(history, malformed_lines_are_refused)
{
    static const char *const lines[] = {"1", "1 2 1 ok k", "1 2 1 ok k GET", "1 2 1 ok k GET v",
        "1 2 1 ok k GET =", "0 2 1 ok k GET = v", "3 2 1 ok k GET = v", "1 - 1 ok k GET = v",
        "-1 2 1 ok k GET = v", "x 2 1 ok k GET = v", "1 2 1 fine k GET = v", "1 2 1 ok k PUT v",
        "1 2 1 ok k SET", "1 2 1 ok k SET -", "1 2 1 ok k SET v = 1", "1 2 1 ok k SETNX v = 2",
        "1 2 1 ok k SETNX v", "1 2 1 ok k INCR x = 1", "1 2 1 ok k INCR 1 = 01",
        "1 2 1 ok k INCR 99999999999999999999 = 1", "1 2 1 ok k APPEND v = -1",
        "1 2 1 ok k CAS a = 1", "1 2 1 ok k CAS a b c = 1", "1 2 1 ok % SET %4",
        "1 2 1 ok % SET %zz", "1 2 1 ok k SET a=b", "1 2 1 unknown k GET = v",
        "1 2 1 failed k DEL = 1", "1 2 1 ok k GET = v 1 2 3 4 5 6 7 8",
        "1 99999999999999999999999 1 ok k GET = v", "1 2 99999999999 ok k GET = v"};
    for (unsigned i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        char text[200];
        uint32_t line;
        snprintf(text, sizeof text, "1 2 1 ok k SET v\n\n%s\n", lines[i]);
        history_init(&history);
        cr_expect_eq(read_text(text, &line), ERR_INVALID, "%s", lines[i]);
        cr_expect_eq(line, 3);
        cr_expect_eq(history.count, 1);
        history_deinit(&history);
    }
}

/* Histories of a real register: operations take effect at one moment between their begin and end. */

struct generator {
    struct prng prng;
    uint32_t count, clients;
    unsigned unknown_percent, failed_percent;
    bool unique; /* a register whose values are written once */
    bool sure_appends; /* appends have an answer */
};

static history_value small_value(struct generator *generator)
{
    char text[8];
    int size = snprintf(text, sizeof text, "%d", (int)prng_below(&generator->prng, 3));
    return history_intern(&history, bytes_of(text, (size_t)size));
}

static void draw_op(struct generator *generator, struct history_op *op, uint32_t number)
{
    char text[16];
    op->kind = (enum history_kind)prng_below(&generator->prng, HISTORY_KINDS);
    op->argument =
        op->kind == HISTORY_GET || op->kind == HISTORY_DEL ? HISTORY_NONE : small_value(generator);
    if (op->kind == HISTORY_CAS && prng_chance(&generator->prng, 2, 3))
        op->expected = small_value(generator);
    op->delta = 1 + (int64_t)prng_below(&generator->prng, 2);
    if (!generator->unique) return;
    op->kind = prng_chance(&generator->prng, 1, 2) ? HISTORY_GET : HISTORY_SET;
    int size = snprintf(text, sizeof text, "w%u", number);
    op->argument = history_intern(&history, bytes_of(text, (size_t)size));
}

/* The result `op` has in `state`, given by trying: history_apply only says whether one fits. */
static void give_result(struct history_op *op, history_value state)
{
    struct history_op unknown = *op;
    history_value after = HISTORY_NONE;
    bool exhausted = false;
    unknown.outcome = HISTORY_UNKNOWN;
    if (!history_apply(&history, &unknown, state, &after, &exhausted)) {
        op->outcome = HISTORY_FAILED; /* refused */
        return;
    }
    op->result = state;
    if (op->kind == HISTORY_SETNX) op->answer = state == HISTORY_NONE;
    if (op->kind == HISTORY_CAS) op->answer = state == op->expected;
    if (op->kind == HISTORY_DEL) op->answer = state != HISTORY_NONE;
    if (op->kind == HISTORY_APPEND) op->answer = (int64_t)history_bytes(&history, after).size;
    if (op->kind == HISTORY_INCR) {
        char text[24] = {0};
        struct bytes bytes = history_bytes(&history, after);
        memcpy(text, bytes.at, bytes.size);
        op->answer = strtoll(text, NULL, 10);
    }
}

static void generate(struct generator *generator)
{
    uint64_t free_at[64] = {0};
    uint64_t now = 1;
    history_value state = HISTORY_NONE;
    history_init(&history);
    for (uint32_t i = 0; i < generator->count; i++) {
        struct history_op op = {.key = 1, .outcome = HISTORY_OK};
        bool exhausted = false;
        op.client = (uint32_t)prng_below(&generator->prng, generator->clients);
        /* moments of effect are in the order of i; begin and end reach out from there */
        now += 1 + prng_below(&generator->prng, 4);
        uint64_t back = prng_below(&generator->prng, 4 * generator->clients);
        op.invoke = now > back ? now - back : 1;
        if (op.invoke <= free_at[op.client]) op.invoke = free_at[op.client] + 1;
        if (op.invoke > now) now = op.invoke;
        op.ret = now + prng_below(&generator->prng, 4 * generator->clients);
        free_at[op.client] = op.ret;
        draw_op(generator, &op, i);
        give_result(&op, state);
        bool failed = op.outcome == HISTORY_FAILED ||
            prng_chance(&generator->prng, generator->failed_percent, 100);
        bool unknown = !failed && prng_chance(&generator->prng, generator->unknown_percent, 100);
        if (op.kind == HISTORY_APPEND && generator->sure_appends) unknown = false;
        if (failed) op.outcome = HISTORY_FAILED;
        if (!failed && (!unknown || prng_chance(&generator->prng, 1, 2)))
            history_apply(&history, &op, state, &state, &exhausted);
        if (unknown) op.outcome = HISTORY_UNKNOWN;
        cr_assert_eq(history_add(&history, &op), OK);
    }
}

/* Changes one thing, which may make the history illegal or not. */
static void mutate(struct generator *generator)
{
    struct history_op *op = &history.ops[prng_below(&generator->prng, history.count)];
    struct history_op *other = &history.ops[prng_below(&generator->prng, history.count)];
    if (generator->unique && prng_chance(&generator->prng, 2, 3)) {
        op->result = other->argument;
        return;
    }
    switch (prng_below(&generator->prng, 6)) {
    case 0:
        op->result = prng_chance(&generator->prng, 1, 3) ? HISTORY_NONE : other->argument;
        break;
    case 1:
        op->answer = !op->answer;
        break;
    case 2:
        op->ret = op->invoke + (op->ret - op->invoke) / 3;
        break;
    case 3:
        op->outcome = HISTORY_FAILED;
        break;
    case 4: {
        uint64_t span = op->ret - op->invoke;
        op->invoke = other->invoke;
        op->ret = other->invoke + span;
        break;
    }
    case 5:
        op->outcome = op->outcome == HISTORY_UNKNOWN ? HISTORY_OK : HISTORY_UNKNOWN;
        break;
    }
}

static void compare(struct generator *generator, unsigned rounds, unsigned *illegal)
{
    struct linear_settings settings = {0};
    for (unsigned round = 0; round < rounds; round++) {
        uint32_t ops[16];
        struct linear_report zones = {0}, search = {0};
        generator->count = 1 + (uint32_t)prng_below(&generator->prng, 7);
        generator->clients = 1 + (uint32_t)prng_below(&generator->prng, 5);
        generate(generator);
        uint32_t count = all_ops(ops);
        bool untouched = round % 4 == 0;
        for (uint64_t i = untouched ? 0 : 1 + prng_below(&generator->prng, 3); i > 0; i--)
            mutate(generator);
        count = all_ops(ops);
        bool legal = brute_force(ops, count, 0, HISTORY_NONE);
        enum linear_verdict found = linear_search(&history, ops, count, &settings, &search);
        if (found != (legal ? LINEAR : NOT_LINEAR)) {
            for (uint32_t i = 0; i < count; i++)
                history_write(&history, &history.ops[ops[i]], stderr);
            linear_explain(&history, &search, stderr);
        }
        cr_assert(legal || !untouched, "round %u: what was recorded is legal", round);
        cr_assert_eq(found, legal ? LINEAR : NOT_LINEAR, "round %u: search", round);
        if (linear_is_register(&history, ops, count))
            cr_assert_eq(
                linear_zones(&history, ops, count, &zones), found, "round %u: zones", round);
        else
            cr_assert_not(generator->unique);
        *illegal += !legal;
        history_deinit(&history);
    }
}

Test(history, three_checkers_agree_on_registers)
{
    unsigned illegal = 0;
    struct generator generator = {.unique = true, .unknown_percent = 15, .failed_percent = 5};
    prng_init(&generator.prng, 1);
    compare(&generator, 40000, &illegal);
    cr_assert_gt(illegal, 4000);
    cr_assert_lt(illegal, 36000);
}

Test(history, search_and_reference_agree_on_everything_else)
{
    unsigned illegal = 0;
    struct generator generator = {.unknown_percent = 20, .failed_percent = 5};
    prng_init(&generator.prng, 2);
    compare(&generator, 40000, &illegal);
    cr_assert_gt(illegal, 4000);
    cr_assert_lt(illegal, 36000);
}

Test(history, search_and_reference_agree_when_half_the_answers_are_missing)
{
    unsigned illegal = 0;
    struct generator generator = {.unknown_percent = 50, .failed_percent = 5};
    prng_init(&generator.prng, 3);
    compare(&generator, 40000, &illegal);
    cr_assert_gt(illegal, 2000);
    cr_assert_lt(illegal, 38000);
}

Test(history, long_histories_are_decided)
{
    struct linear_settings settings = {0};
    for (unsigned i = 0; i < 8; i++) {
        struct linear_report report;
        struct generator generator = {
            .count = 20000, .clients = 8, .unique = i % 2, .unknown_percent = i < 4 ? 0 : 1};
        prng_init(&generator.prng, 100 + i);
        generate(&generator);
        cr_assert_eq(linear_check(&history, &settings, &report), LINEAR, "%u", i);
        cr_assert_eq(report.by_zones, i % 2);
        history_deinit(&history);
    }
}

Test(history, search_decides_a_long_register_too)
{
    struct linear_settings settings = {0};
    struct linear_report zones = {0}, search = {0};
    struct generator generator = {
        .count = 3000, .clients = 6, .unique = true, .unknown_percent = 1};
    static uint32_t ops[3000];
    prng_init(&generator.prng, 7);
    for (unsigned i = 0; i < 6; i++) {
        generate(&generator);
        uint32_t count = all_ops(ops);
        if (i > 1) {
            /* an old value comes back in the middle */
            struct history_op *op = NULL;
            for (uint32_t j = count / 2; op == NULL; j++) {
                struct history_op *some = &history.ops[ops[j]];
                if (some->kind == HISTORY_GET && some->outcome == HISTORY_OK) op = some;
            }
            op->result = history.ops[ops[10 * i]].argument;
        }
        enum linear_verdict verdict = linear_zones(&history, ops, count, &zones);
        cr_assert_eq(verdict, i > 1 ? NOT_LINEAR : LINEAR);
        cr_assert_eq(linear_search(&history, ops, count, &settings, &search), verdict);
        history_deinit(&history);
    }
}

Test(history, one_wrong_answer_in_a_long_history_is_found)
{
    struct linear_settings settings = {0};
    struct generator generator = {
        .count = 5000, .clients = 6, .unknown_percent = 1, .sure_appends = true};
    prng_init(&generator.prng, 9);
    for (unsigned i = 0; i < 6; i++) {
        struct linear_report report;
        generate(&generator);
        uint32_t wrong = 800;
        while (history.ops[wrong].kind != HISTORY_GET || history.ops[wrong].outcome != HISTORY_OK)
            wrong++;
        history.ops[wrong].result = history_intern(&history, bytes_of_text("of nobody"));
        cr_assert_eq(linear_check(&history, &settings, &report), NOT_LINEAR, "%u", i);
        cr_assert_eq(report.prefix, wrong, "the shortest beginning ends with it");
        history_deinit(&history);
    }
}

Test(history, giving_up_is_said)
{
    /* many writes at once, and a sum that only the very last order can give */
    struct linear_settings settings = {.steps_max = 1000};
    struct linear_report report;
    history_init(&history);
    for (uint32_t i = 0; i < 24; i++) {
        struct history_op op = {.key = 1,
            .kind = HISTORY_INCR,
            .outcome = HISTORY_UNKNOWN,
            .delta = 1 << i,
            .invoke = 1};
        cr_assert_eq(history_add(&history, &op), OK);
    }
    struct history_op read = {.key = 1, .outcome = HISTORY_OK, .invoke = 2, .ret = 3};
    read.result = history_intern(&history, bytes_of_text("16777217"));
    cr_assert_eq(history_add(&history, &read), OK);
    cr_assert_eq(linear_check(&history, &settings, &report), GAVE_UP);
    cr_assert_eq(report.gave_up, 1);
    settings = (struct linear_settings){.cache_max = 100};
    cr_assert_eq(linear_check(&history, &settings, &report), GAVE_UP);
    history_deinit(&history);
}
