#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "cluster/map/map.h"
#include "sim/linear.h"
#include "sim/sim_cluster_internal.h"

/* Clients of the cluster simulation and the commands they send. Each client does one thing at a time, on any node, and
 * writes down what it saw; the whole list is judged at the end. Keys change with time (epochs), so that no key collects
 * more operations of unknown outcome than a search can order; at the end every key is read once more.
 *
 * A request's body: u8 kind, u8 flags, u8 keys; per key u8 size, bytes; u16 size of argument, bytes; u16 size of the
 * expected value + 1 (0: no value), bytes; i64 delta; i64 expiry in ms (0: none).
 * A reply: u8 status, i64 answer, and per key u16 size of its value + 1 (0: no value), bytes. */

enum {
    CALLERS = 6,
    KEYS_OF_RANGE = 8,
    KEY_BYTES = 24,
    VALUE_BYTES = 5000,
    BODY_BYTES = 4 * VALUE_BYTES,
    EPOCH_MS = 1500,
    THINK_MS = 70,
    PATIENCE_MS = 30000,
    NOISE_BUCKET = 1,
    NOISE_KEYS = 12,
};

/* Kinds of commands: those of enum history_kind, and these. */
enum { PAIR_SET = HISTORY_KINDS, PAIR_GET, NOISE };
enum flag { COMMITTED_VIEW = 1 };
enum status { DONE, REFUSED };

struct command {
    uint8_t kind, flags, key_count;
    struct bytes keys[2];
    struct bytes argument, expected;
    bool has_expected;
    int64_t delta, expires_ms;
};

struct caller {
    struct workload *workload;
    struct node_request request;
    unsigned number;
    bool busy, for_good; /* for_good: tries until it is acknowledged */
    unsigned machine;
    uint64_t next_ns, invoked_ns;
    uint16_t range;
    uint8_t kind;
    bool reading_all;
    char keys[2][KEY_BYTES];
    history_value argument, expected;
    int64_t delta;
    char seen_key[KEY_BYTES]; /* a general key and what this client last saw there: for CAS */
    uint16_t seen_range;
    history_value seen_value;
    struct buffer body;
};

struct workload {
    struct sim_cluster *cluster;
    struct prng prng;
    struct history history;
    struct caller callers[CALLERS];
    struct caller probes[RANGES_MAX + 1];
    bool paused, probing, finishing;
    uint32_t read_key; /* finishing: keys up to here were read or are being read */
    uint64_t tokens;
    char tags[RANGES_MAX + 1][8];
};

/* ---- commands ---- */

static void put_u16(struct buffer *out, uint16_t value)
{
    (void)!buffer_append(out, &value, sizeof value); /* out->failed tells */
}

static void put_bytes(struct buffer *out, struct bytes bytes)
{
    (void)!buffer_append(out, bytes.at, bytes.size);
}

static void encode(struct buffer *out, const struct command *command)
{
    buffer_reset(out, SIZE_MAX);
    uint8_t head[3] = {command->kind, command->flags, command->key_count};
    put_bytes(out, bytes_of(head, sizeof head));
    for (int i = 0; i < command->key_count; i++) {
        uint8_t size = (uint8_t)command->keys[i].size;
        put_bytes(out, bytes_of(&size, 1));
        put_bytes(out, command->keys[i]);
    }
    put_u16(out, (uint16_t)command->argument.size);
    put_bytes(out, command->argument);
    put_u16(out, (uint16_t)(command->has_expected ? command->expected.size + 1 : 0));
    if (command->has_expected) put_bytes(out, command->expected);
    put_bytes(out, bytes_of(&command->delta, sizeof command->delta));
    put_bytes(out, bytes_of(&command->expires_ms, sizeof command->expires_ms));
    ASSERT(!out->failed);
}

static struct bytes take(struct bytes *rest, size_t size)
{
    ASSERT(rest->size >= size); /* requests arrive whole or not at all */
    struct bytes taken = bytes_of(rest->at, size);
    *rest = bytes_of(rest->at + size, rest->size - size);
    return taken;
}

static struct command decode(struct bytes body)
{
    struct command command = {0};
    struct bytes head = take(&body, 3);
    command.kind = head.at[0];
    command.flags = head.at[1];
    command.key_count = head.at[2];
    ASSERT(command.key_count <= 2);
    for (int i = 0; i < command.key_count; i++)
        command.keys[i] = take(&body, take(&body, 1).at[0]);
    command.argument = take(&body, load_u16(take(&body, 2).at));
    uint16_t expected = load_u16(take(&body, 2).at);
    command.has_expected = expected > 0;
    if (expected > 0) command.expected = take(&body, expected - 1u);
    command.delta = (int64_t)load_u64(take(&body, 8).at);
    command.expires_ms = (int64_t)load_u64(take(&body, 8).at);
    ASSERT(body.size == 0);
    return command;
}

/* ---- the server's side ---- */

struct evaluation {
    struct machine *machine;
    struct node *node;
    const struct command *command;
    struct buffer *reply;
    bool present; /* of the first key */
    struct bytes value;
    bool failed; /* stored bytes are damaged */
};

static void read_key(struct evaluation *evaluation, enum node_view view, struct bytes key)
{
    struct value value;
    enum err err = node_get(evaluation->node, view, 0, key, &value);
    evaluation->present = err == OK;
    evaluation->value = err == OK ? value.bytes : bytes_of(NULL, 0);
    if (err == OK || err == ERR_NOT_FOUND) return;
    evaluation->failed = true;
    struct machine *machine = evaluation->machine;
    if (err != ERR_CORRUPT || !machine->silent_damage)
        sim_cluster_violation(
            machine->cluster, "m%u answers a read with %s", machine->index, err_name(err));
}

static void reply_head(struct buffer *reply, enum status status, int64_t answer)
{
    uint8_t head[9] = {(uint8_t)status};
    store_u64(head + 1, (uint64_t)answer);
    put_bytes(reply, bytes_of(head, sizeof head));
}

static void reply_value(struct evaluation *evaluation)
{
    put_u16(evaluation->reply, (uint16_t)(evaluation->present ? evaluation->value.size + 1 : 0));
    put_bytes(evaluation->reply, evaluation->value);
}

static bool is_write(uint8_t kind)
{
    return kind != HISTORY_GET && kind != PAIR_GET;
}

static void put(struct evaluation *evaluation, struct bytes key, struct bytes before,
    struct bytes value, uint16_t bucket, int64_t expires_ms)
{
    uint8_t *at = node_put(evaluation->node, bucket, key, before.size + value.size, expires_ms);
    if (at == NULL) {
        sim_cluster_violation(evaluation->machine->cluster,
            "m%u refused a put inside an admitted transaction", evaluation->machine->index);
        return;
    }
    if (before.size > 0) memcpy(at, before.at, before.size);
    if (value.size > 0) memcpy(at + before.size, value.at, value.size);
}

static bool number_of(struct bytes text, int64_t *number_out)
{
    char copy[24];
    if (text.size == 0 || text.size >= sizeof copy) return false;
    memcpy(copy, text.at, text.size);
    copy[text.size] = '\0';
    char *end;
    *number_out = strtoll(copy, &end, 10);
    return *end == '\0';
}

static void increment(struct evaluation *evaluation)
{
    const struct command *command = evaluation->command;
    int64_t number = 0;
    if (evaluation->present && !number_of(evaluation->value, &number)) {
        sim_cluster_violation(evaluation->machine->cluster, "m%u has a counter that is no number",
            evaluation->machine->index);
        return;
    }
    number += command->delta;
    char text[24];
    int size = snprintf(text, sizeof text, "%lld", (long long)number);
    put(evaluation, command->keys[0], bytes_of(NULL, 0), bytes_of(text, (size_t)size), 0, 0);
    reply_head(evaluation->reply, DONE, number);
}

/* Writes the reply and, within the open transaction, the effects. */
static void evaluate_write(struct evaluation *evaluation)
{
    const struct command *command = evaluation->command;
    struct buffer *reply = evaluation->reply;
    struct bytes key = command->keys[0], none = bytes_of(NULL, 0);
    bool same;
    switch (command->kind) {
    case HISTORY_SET:
        put(evaluation, key, none, command->argument, 0, 0);
        reply_head(reply, DONE, 1);
        return;
    case HISTORY_SETNX:
        if (!evaluation->present) put(evaluation, key, none, command->argument, 0, 0);
        reply_head(reply, DONE, evaluation->present ? 0 : 1);
        return;
    case HISTORY_CAS:
        same = evaluation->present == command->has_expected &&
            (!evaluation->present || bytes_equal(evaluation->value, command->expected));
        if (same) put(evaluation, key, none, command->argument, 0, 0);
        reply_head(reply, DONE, same ? 1 : 0);
        return;
    case HISTORY_INCR:
        increment(evaluation);
        return;
    case HISTORY_APPEND:
        reply_head(reply, DONE, (int64_t)(evaluation->value.size + command->argument.size));
        put(evaluation, key, evaluation->value, command->argument, 0, 0);
        return;
    case HISTORY_DEL:
        if (evaluation->present && !node_delete(evaluation->node, 0, key))
            sim_cluster_violation(evaluation->machine->cluster, "a small delete was refused");
        reply_head(reply, DONE, evaluation->present ? 1 : 0);
        return;
    case HISTORY_GETSET:
        reply_head(reply, DONE, 1);
        reply_value(evaluation);
        put(evaluation, key, none, command->argument, 0, 0);
        return;
    case PAIR_SET:
        put(evaluation, key, none, command->argument, 0, 0);
        put(evaluation, command->keys[1], none, command->argument, 0, 0);
        reply_head(reply, DONE, 1);
        return;
    case NOISE:
        put(evaluation, key, none, command->argument, NOISE_BUCKET,
            command->expires_ms == 0 ? 0 : node_now_ms(evaluation->node) + command->expires_ms);
        reply_head(reply, DONE, 1);
        return;
    default:
        UNREACHABLE();
    }
}

static bool execute_write(struct evaluation *evaluation, struct node_execution *execution)
{
    struct node *node = evaluation->node;
    /* an append writes what is there as well */
    enum err admitted = node_admit(node, 2 * (VALUE_BYTES + KEY_BYTES) + evaluation->value.size);
    if (admitted == ERR_AGAIN) return false;
    if (admitted != OK) {
        reply_head(execution->reply, REFUSED, (int64_t)admitted);
        return true;
    }
    node_txn_begin(node);
    read_key(evaluation, NODE_PENDING, evaluation->command->keys[0]);
    if (evaluation->failed) {
        node_txn_abort(node);
        reply_head(execution->reply, REFUSED, ERR_CORRUPT);
        return true;
    }
    evaluate_write(evaluation);
    execution->ticket = node_txn_commit(node);
    /* what wrote nothing has still seen something */
    if (execution->ticket == 0)
        execution->ticket = node_read_ticket(node, execution->range, NODE_PENDING);
    return true;
}

static void execute_read(struct evaluation *evaluation, struct node_execution *execution)
{
    const struct command *command = evaluation->command;
    enum node_view view = command->flags & COMMITTED_VIEW ? NODE_COMMITTED : NODE_PENDING;
    size_t mark = execution->reply->size;
    reply_head(execution->reply, DONE, 0);
    for (int i = 0; i < command->key_count; i++) {
        read_key(evaluation, view, command->keys[i]);
        reply_value(evaluation);
    }
    execution->ticket = node_read_ticket(evaluation->node, execution->range, view);
    if (!evaluation->failed) return;
    execution->reply->size = mark;
    reply_head(execution->reply, REFUSED, ERR_CORRUPT);
}

bool workload_execute(struct machine *machine, struct node_execution *execution)
{
    struct command command = decode(execution->body);
    if (!node_serves(machine->node, execution->range))
        sim_cluster_violation(machine->cluster,
            "m%u was asked to evaluate a request for range %u, which it does not serve",
            machine->index, execution->range);
    struct evaluation evaluation = {
        .machine = machine, .node = machine->node, .command = &command, .reply = execution->reply};
    execution->ticket = 0;
    sim_cluster_trace(machine->cluster, 300 + machine->index, command.kind);
    if (is_write(command.kind)) return execute_write(&evaluation, execution);
    execute_read(&evaluation, execution);
    return true;
}

/* ---- what clients saw ---- */

static struct history_op op_of(struct caller *caller, int key, enum history_outcome outcome)
{
    struct history *history = &caller->workload->history;
    enum history_kind kind = (enum history_kind)caller->kind;
    if (caller->kind == PAIR_SET) kind = HISTORY_SET;
    if (caller->kind == PAIR_GET) kind = HISTORY_GET;
    return (struct history_op){
        .client = caller->number,
        .key = history_key(history, bytes_of_text(caller->keys[key])),
        .kind = kind,
        .outcome = outcome,
        .argument = caller->argument,
        .expected = caller->expected,
        .delta = caller->delta,
        .invoke = caller->invoked_ns + 1,
        .ret = caller->workload->cluster->now_ns + 1,
    };
}

static void add_op(struct caller *caller, const struct history_op *op)
{
    if (history_add(&caller->workload->history, op) != OK)
        sim_cluster_violation(caller->workload->cluster, "no memory for the history");
}

static void note_without_answer(struct caller *caller, enum history_outcome outcome)
{
    if (caller->kind == NOISE) return;
    if (!is_write(caller->kind)) return;
    struct history_op op = op_of(caller, 0, outcome);
    add_op(caller, &op);
    if (caller->kind != PAIR_SET) return;
    op = op_of(caller, 1, outcome);
    add_op(caller, &op);
}

static void note_answer(struct caller *caller, struct bytes reply)
{
    struct history *history = &caller->workload->history;
    int64_t answer = (int64_t)load_u64(take(&reply, 8).at);
    int keys = caller->kind == PAIR_SET || caller->kind == PAIR_GET ? 2 : 1;
    history_value results[2] = {HISTORY_NONE, HISTORY_NONE};
    for (int i = 0; i < keys && reply.size > 0; i++) {
        uint16_t size = load_u16(take(&reply, 2).at);
        if (size > 0) results[i] = history_intern(history, take(&reply, size - 1u));
    }
    if (caller->kind == NOISE) return;
    if (caller->keys[0][0] == 'g' && (caller->kind == HISTORY_GET || caller->kind == HISTORY_SET)) {
        memcpy(caller->seen_key, caller->keys[0], KEY_BYTES);
        caller->seen_range = caller->range;
        caller->seen_value = caller->kind == HISTORY_GET ? results[0] : caller->argument;
    }
    if (caller->kind == PAIR_GET && results[0] != results[1])
        sim_cluster_violation(caller->workload->cluster,
            "%s and %s are always written together but were read with different values",
            caller->keys[0], caller->keys[1]);
    for (int i = 0; i < keys; i++) {
        struct history_op op = op_of(caller, i, HISTORY_OK);
        op.answer = answer;
        op.result = results[i];
        add_op(caller, &op);
    }
}

static void caller_ends(struct caller *caller, enum history_outcome outcome)
{
    struct workload *workload = caller->workload;
    uint64_t *seen = workload->cluster->result->seen;
    caller->busy = false;
    caller->next_ns =
        workload->cluster->now_ns + prng_below(&workload->prng, (uint64_t)THINK_MS * MILLISECOND);
    if (workload->finishing || workload->probing) caller->next_ns = workload->cluster->now_ns;
    seen[outcome == HISTORY_OK          ? SIM_SEEN_ACKNOWLEDGED
            : outcome == HISTORY_FAILED ? SIM_SEEN_REFUSED
                                        : SIM_SEEN_UNKNOWN]++;
    if (outcome == HISTORY_OK) {
        caller->for_good = caller->reading_all = false;
    } else {
        /* the next try is somebody else's, perhaps elsewhere */
        caller->number += 100;
        caller->next_ns += 20 * MILLISECOND;
    }
}

static void on_done(struct node_request *request, enum node_outcome outcome, struct bytes reply)
{
    struct caller *caller = request->ctx;
    ASSERT(caller->busy);
    if (caller->for_good || (caller->reading_all && outcome != NODE_REPLIED))
        sim_cluster_note(caller->workload->cluster, "request for range %u at m%u: outcome %d",
            caller->range, caller->machine, (int)outcome);
    sim_cluster_trace(caller->workload->cluster, 400 + caller->number % 100, (uint64_t)outcome);
    switch (outcome) {
    case NODE_REPLIED:
        if (take(&reply, 1).at[0] == DONE) {
            note_answer(caller, reply);
            caller_ends(caller, HISTORY_OK);
        } else {
            note_without_answer(caller, HISTORY_FAILED);
            caller_ends(caller, HISTORY_FAILED);
        }
        return;
    case NODE_UNKNOWN:
        note_without_answer(caller, HISTORY_UNKNOWN);
        caller_ends(caller, HISTORY_UNKNOWN);
        return;
    case NODE_UNAVAILABLE:
        note_without_answer(caller, HISTORY_FAILED);
        caller_ends(caller, HISTORY_FAILED);
        return;
    }
    UNREACHABLE();
}

/* ---- clients ---- */

static void draw_value(struct workload *workload, struct bytes *out, char at[VALUE_BYTES])
{
    struct prng *prng = &workload->prng;
    int size = snprintf(at, VALUE_BYTES, "v%llu", (unsigned long long)++workload->tokens);
    int more = 0;
    if (prng_chance(prng, 1, 6)) more = (int)prng_below(prng, 300);
    if (prng_chance(prng, 1, 30)) more = (int)prng_below(prng, VALUE_BYTES - 40);
    memset(at + size, '.', (size_t)more);
    *out = bytes_of(at, (size_t)(size + more));
}

static void draw_key(struct caller *caller, char kind, int which, char *at)
{
    const struct workload *workload = caller->workload;
    uint64_t epoch = workload->cluster->now_ns / ((uint64_t)EPOCH_MS * MILLISECOND);
    snprintf(at, KEY_BYTES, "%c%d.%llu%s", kind, which, (unsigned long long)epoch,
        workload->tags[caller->range]);
}

static uint8_t draw_kind(struct prng *prng, char type)
{
    static const uint8_t general[] = {HISTORY_GET, HISTORY_GET, HISTORY_GET, HISTORY_SET,
        HISTORY_SET, HISTORY_SETNX, HISTORY_CAS, HISTORY_CAS, HISTORY_DEL, HISTORY_GETSET};
    switch (type) {
    case 'r':
        return prng_chance(prng, 1, 2) ? HISTORY_GET : HISTORY_SET;
    case 'c':
        return prng_chance(prng, 1, 3) ? HISTORY_GET : HISTORY_INCR;
    case 'a':
        return prng_chance(prng, 1, 3) ? HISTORY_GET : HISTORY_APPEND;
    case 'p':
        return prng_chance(prng, 1, 2) ? PAIR_GET : PAIR_SET;
    case 'n':
        return NOISE;
    default:
        return general[prng_below(prng, sizeof general / sizeof general[0])];
    }
}

/* What the caller does next: kind, keys and arguments, encoded into its body. */
static void draw_operation(struct caller *caller)
{
    static const char types[] = "rrggggccaappn";
    struct workload *workload = caller->workload;
    struct prng *prng = &workload->prng;
    char type = types[prng_below(prng, sizeof types - 1)];
    caller->range = (uint16_t)(1 + prng_below(prng, workload->cluster->ranges));
    caller->kind = draw_kind(prng, type);
    if (type == 'n')
        snprintf(caller->keys[0], KEY_BYTES, "n%u%s", (unsigned)prng_below(prng, NOISE_KEYS),
            workload->tags[caller->range]);
    else
        draw_key(caller, type, type == 'p' ? 0 : (int)prng_below(prng, 2), caller->keys[0]);
    draw_key(caller, type, 1, caller->keys[1]);
    struct command command = {
        .kind = caller->kind,
        .flags = prng_chance(prng, 1, 3) ? COMMITTED_VIEW : 0,
        .key_count = type == 'p' ? 2 : 1,
        .keys = {bytes_of_text(caller->keys[0]), bytes_of_text(caller->keys[1])},
        .delta = 1 + (int64_t)prng_below(prng, 5),
        .expires_ms = prng_chance(prng, 1, 2) ? 0 : 1 + (int64_t)prng_below(prng, 2000),
    };
    char value[VALUE_BYTES], expected[VALUE_BYTES];
    struct history *history = &workload->history;
    if (caller->kind == HISTORY_APPEND)
        command.argument = bytes_of(value,
            (size_t)snprintf(value, sizeof value, "%llu,", (unsigned long long)++workload->tokens));
    else if (is_write(caller->kind) && caller->kind != HISTORY_INCR)
        draw_value(workload, &command.argument, value);
    caller->expected = HISTORY_NONE;
    if (caller->kind == HISTORY_CAS && caller->seen_key[0] != '\0' && prng_chance(prng, 4, 5)) {
        /* of what this client last saw, so that it fits now and then */
        memcpy(caller->keys[0], caller->seen_key, KEY_BYTES);
        command.keys[0] = bytes_of_text(caller->keys[0]);
        caller->range = caller->seen_range;
        caller->expected = caller->seen_value;
    }
    if (caller->expected != HISTORY_NONE) {
        struct bytes bytes = history_bytes(history, caller->expected);
        memcpy(expected, bytes.at, bytes.size);
        command.expected = bytes_of(expected, bytes.size);
        command.has_expected = true;
    }
    caller->argument =
        command.argument.size == 0 ? HISTORY_NONE : history_intern(history, command.argument);
    caller->delta = command.delta;
    encode(&caller->body, &command);
}

static void draw_probe(struct caller *caller)
{
    struct workload *workload = caller->workload;
    char value[VALUE_BYTES];
    struct command command = {.kind = HISTORY_SET, .key_count = 1};
    snprintf(caller->keys[0], KEY_BYTES, "probe%s", workload->tags[caller->range]);
    command.keys[0] = bytes_of_text(caller->keys[0]);
    draw_value(workload, &command.argument, value);
    caller->kind = HISTORY_SET;
    caller->argument = history_intern(&workload->history, command.argument);
    encode(&caller->body, &command);
}

static void draw_last_read(struct caller *caller)
{
    struct workload *workload = caller->workload;
    struct history *history = &workload->history;
    if (!caller->reading_all) {
        struct bytes name = history_key_name(history, ++workload->read_key);
        ASSERT(name.size < KEY_BYTES);
        memcpy(caller->keys[0], name.at, name.size);
        caller->keys[0][name.size] = '\0';
        caller->reading_all = true;
    }
    struct command command = {.kind = HISTORY_GET, .key_count = 1};
    command.keys[0] = bytes_of_text(caller->keys[0]);
    caller->range = map_range(command.keys[0], workload->cluster->ranges);
    caller->kind = HISTORY_GET;
    encode(&caller->body, &command);
}

static struct machine *draw_machine(struct caller *caller)
{
    struct sim_cluster *cluster = caller->workload->cluster;
    bool stays = prng_chance(&caller->workload->prng, 9, 10);
    unsigned start = stays ? caller->machine
                           : (unsigned)prng_below(&caller->workload->prng, cluster->machine_count);
    for (unsigned i = 0; i < cluster->machine_count; i++) {
        struct machine *machine = &cluster->machines[(start + i) % cluster->machine_count];
        if (!machine_serves(machine) || machine->paused_until_ns != 0) continue;
        caller->machine = machine->index;
        return machine;
    }
    return NULL;
}

static void caller_step(struct caller *caller)
{
    struct workload *workload = caller->workload;
    struct sim_cluster *cluster = workload->cluster;
    struct machine *machine = draw_machine(caller);
    caller->next_ns = cluster->now_ns + 20 * MILLISECOND;
    if (machine == NULL) return;
    if (caller->for_good)
        draw_probe(caller);
    else if (workload->finishing)
        draw_last_read(caller);
    else
        draw_operation(caller);
    caller->busy = true;
    caller->invoked_ns = cluster->now_ns;
    caller->request = (struct node_request){.done = on_done, .ctx = caller};
    cluster->result->seen[SIM_SEEN_OPERATIONS]++;
    struct machine_call call = {
        .request = &caller->request, .range = caller->range, .body = buffer_view(&caller->body)};
    machine_turn(machine, &call);
}

static bool wants_to_act(const struct workload *workload, const struct caller *caller)
{
    if (caller->busy) return false;
    if (caller->for_good) return true;
    if (caller >= workload->probes && caller < workload->probes + RANGES_MAX + 1) return false;
    if (workload->finishing)
        return caller->reading_all || workload->read_key < workload->history.keys.count;
    return !workload->paused;
}

static struct caller *caller_at(const struct workload *workload, unsigned i)
{
    const struct caller *caller =
        i < CALLERS ? &workload->callers[i] : &workload->probes[i - CALLERS];
    return (struct caller *)(uintptr_t)caller;
}
enum { ALL_CALLERS = CALLERS + RANGES_MAX + 1 };

uint64_t workload_due(const struct workload *workload)
{
    uint64_t due = UINT64_MAX;
    for (unsigned i = 0; i < ALL_CALLERS; i++) {
        const struct caller *caller = caller_at(workload, i);
        if (wants_to_act(workload, caller) && caller->next_ns < due) due = caller->next_ns;
    }
    return due;
}

void workload_step(struct workload *workload)
{
    for (unsigned i = 0; i < ALL_CALLERS; i++) {
        struct caller *caller = caller_at(workload, i);
        if (wants_to_act(workload, caller) && caller->next_ns <= workload->cluster->now_ns)
            caller_step(caller);
    }
}

void workload_process_ends(struct workload *workload, unsigned machine)
{
    for (unsigned i = 0; i < ALL_CALLERS; i++) {
        struct caller *caller = caller_at(workload, i);
        if (!caller->busy || caller->machine != machine) continue;
        node_request_cancel(workload->cluster->machines[machine].node, &caller->request);
        note_without_answer(caller, HISTORY_UNKNOWN);
        caller_ends(caller, HISTORY_UNKNOWN);
    }
}

void workload_pause(struct workload *workload, bool pause)
{
    workload->paused = pause;
}

bool workload_idle(const struct workload *workload)
{
    for (unsigned i = 0; i < ALL_CALLERS; i++) {
        if (caller_at(workload, i)->busy) return false;
    }
    return true;
}

void workload_check_patience(struct workload *workload)
{
    struct sim_cluster *cluster = workload->cluster;
    for (unsigned i = 0; i < ALL_CALLERS; i++) {
        const struct caller *caller = caller_at(workload, i);
        uint64_t patience = (uint64_t)PATIENCE_MS * MILLISECOND;
        if (caller->busy && cluster->now_ns - caller->invoked_ns > patience)
            sim_cluster_violation(cluster, "m%u never answered a request for range %u",
                caller->machine, caller->range);
    }
}

void workload_probe_start(struct workload *workload)
{
    workload->probing = true;
    for (uint16_t range = 1; range <= workload->cluster->ranges; range++) {
        struct caller *caller = &workload->probes[range];
        caller->for_good = true;
        caller->range = range;
        caller->next_ns = workload->cluster->now_ns;
    }
}

bool workload_probe_done(const struct workload *workload)
{
    for (uint16_t range = 1; range <= workload->cluster->ranges; range++) {
        if (workload->probes[range].for_good) return false;
    }
    return true;
}

void workload_finish_start(struct workload *workload)
{
    workload->finishing = true;
    workload->read_key = 0;
    for (unsigned i = 0; i < CALLERS; i++)
        workload->callers[i].next_ns = workload->cluster->now_ns;
}

bool workload_finish_done(const struct workload *workload)
{
    for (unsigned i = 0; i < ALL_CALLERS; i++) {
        const struct caller *caller = caller_at(workload, i);
        if (caller->busy || wants_to_act(workload, caller)) return false;
    }
    return true;
}

static void describe_op(const struct history *history, uint32_t index, char *at, size_t size)
{
    FILE *file = fmemopen(at, size, "w");
    if (file == NULL) return;
    history_write(history, &history->ops[index], file);
    fclose(file);
    at[size - 1] = '\0';
    char *end = strchr(at, '\n');
    if (end != NULL) *end = '\0';
}

void workload_check(struct workload *workload)
{
    struct sim_cluster *cluster = workload->cluster;
    struct linear_report report = {0};
    struct linear_settings settings = {.steps_max = 300000, .cache_max = 300000};
    enum linear_verdict verdict = linear_check(&workload->history, &settings, &report);
    cluster->result->seen[SIM_SEEN_GAVE_UP] += report.gave_up;
    cluster->result->seen[SIM_SEEN_KEYS] += report.keys;
    if (verdict != NOT_LINEAR) return;
    if (cluster->options->verbose) linear_explain(&workload->history, &report, stdout);
    struct bytes key = history_key_name(&workload->history, report.key);
    char first[120] = "", second[120] = "";
    if (report.op_count > 0) describe_op(&workload->history, report.ops[0], first, sizeof first);
    if (report.op_count > 1) describe_op(&workload->history, report.ops[1], second, sizeof second);
    sim_cluster_violation(cluster, "key %.*s is not linearizable: %s (%s; %s)", (int)key.size,
        (const char *)key.at, report.reason, first, second);
}

struct workload *workload_new(struct sim_cluster *cluster)
{
    struct workload *workload = calloc(1, sizeof *workload);
    ASSERT(workload != NULL);
    workload->cluster = cluster;
    prng_init(&workload->prng, prng_next(&cluster->prng));
    history_init(&workload->history);
    for (uint16_t range = 1; range <= cluster->ranges; range++) {
        char *tag = workload->tags[range];
        for (unsigned i = 0;; i++) {
            snprintf(tag, sizeof workload->tags[range], "{%u}", i);
            if (map_range(bytes_of_text(tag), cluster->ranges) == range) break;
        }
    }
    for (unsigned i = 0; i < ALL_CALLERS; i++) {
        struct caller *caller = caller_at(workload, i);
        caller->workload = workload;
        caller->number = i + 1;
        caller->machine = (unsigned)prng_below(&workload->prng, cluster->member_count);
    }
    return workload;
}

void workload_free(struct workload *workload)
{
    for (unsigned i = 0; i < ALL_CALLERS; i++)
        buffer_deinit(&caller_at(workload, i)->body);
    history_deinit(&workload->history);
    free(workload);
}
