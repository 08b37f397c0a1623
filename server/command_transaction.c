#include "server/command_internal.h"

#include <stdlib.h>

#include "base/check.h"
#include "base/hash.h"

/* MULTI, EXEC, DISCARD, WATCH, UNWATCH.
 *
 * Between MULTI and EXEC the dispatcher queues copies of the commands. EXEC runs them one after the other in the one
 * node transaction that the dispatcher has begun for it, so they become one log record: all or nothing, also over a
 * power cut.
 *
 * WATCH remembers the version of each key (the LSN of the record that wrote it). EXEC compares with what it would
 * read itself, the pending view. Nothing else runs in between, so equal versions mean that nobody wrote
 * the key since WATCH. An absent key has no version, and to be absent again is not to be unchanged: the
 * client may have read it in between. So absent keys (and those that had expired) are entered in a table, and every
 * put marks those of its key. */

bool transaction_queue(
    struct session *session, const struct command *command, uint32_t argc, const struct bytes *argv)
{
    size_t size = 0;
    for (uint32_t i = 0; i < argc; i++)
        size += argv[i].size;
    struct queued_command *queued =
        malloc(sizeof *queued + argc * sizeof(struct bytes) + (size == 0 ? 1 : size));
    if (queued == NULL) return false;
    queued->next = NULL;
    queued->command = command;
    queued->argc = argc;
    uint8_t *at = (uint8_t *)&queued->argv[argc];
    for (uint32_t i = 0; i < argc; i++) {
        queued->argv[i] = bytes_of(at, argv[i].size);
        if (argv[i].size > 0) memcpy(at, argv[i].at, argv[i].size);
        at += argv[i].size;
    }
    if (session->queue_last != NULL) {
        session->queue_last->next = queued;
    } else {
        session->queue = queued;
    }
    session->queue_last = queued;
    session->queue_count++;
    session->queue_bytes += size;
    return true;
}

static void free_queue(struct queued_command *queued)
{
    while (queued != NULL) {
        struct queued_command *next = queued->next;
        free(queued);
        queued = next;
    }
}

static uint64_t watch_hash(const struct command_state *state, uint16_t bucket, struct bytes key)
{
    return hash64(state->hash_seed + bucket, key);
}

static void watch_enter(
    struct command_state *state, struct watch *watch, uint16_t bucket, struct bytes key)
{
    watch->hash = watch_hash(state, bucket, key);
    watch->at = &state->watches[watch->hash % WATCH_CHAINS];
    watch->chain = *watch->at;
    if (watch->chain != NULL) watch->chain->at = &watch->chain;
    *watch->at = watch;
    state->watch_count++;
}

static void watch_leave(struct command_state *state, struct watch *watch)
{
    if (watch->at == NULL) return;
    ASSERT(state != NULL && state->watch_count > 0);
    *watch->at = watch->chain;
    if (watch->chain != NULL) watch->chain->at = watch->at;
    state->watch_count--;
}

void transaction_touch(struct server *server, uint16_t bucket, struct bytes key)
{
    struct command_state *state = server->commands;
    if (state == NULL || state->watch_count == 0) return;
    uint64_t hash = watch_hash(state, bucket, key);
    struct watch *watch = state->watches[hash % WATCH_CHAINS];
    for (; watch != NULL; watch = watch->chain) {
        if (watch->hash == hash && watch->base.bucket == bucket &&
            bytes_equal(buffer_view(&watch->base.key), key)) {
            watch->touched = true;
        }
    }
}

static struct watch *watch_of(struct watched_key *watched)
{
    return (struct watch *)(void *)watched;
}

void transaction_unwatch(struct session *session, uint32_t newest)
{
    for (; newest > 0 && session->watched != NULL; newest--) {
        struct watch *watch = watch_of(session->watched);
        session->watched = watch->base.next;
        watch_leave(session->server->commands, watch);
        buffer_deinit(&watch->base.key);
        free(watch);
    }
}

static void unwatch(struct session *session)
{
    transaction_unwatch(session, UINT32_MAX);
}

void transaction_discard(struct session *session)
{
    free_queue(session->queue);
    session->queue = session->queue_last = NULL;
    session->queue_count = 0;
    session->queue_bytes = 0;
    session->flags &= ~(uint32_t)(SESSION_MULTI | SESSION_DIRTY_EXEC);
    unwatch(session);
}

static void run_multi(struct call *call)
{
    if ((call->session->flags & SESSION_MULTI) != 0) {
        resp_error(call->out, "ERR MULTI calls can not be nested");
        return;
    }
    call->session->flags |= SESSION_MULTI;
    reply_ok(call);
}

static void run_discard(struct call *call)
{
    if ((call->session->flags & SESSION_MULTI) == 0) {
        resp_error(call->out, "ERR DISCARD without MULTI");
        return;
    }
    transaction_discard(call->session);
    reply_ok(call);
}

uint64_t transaction_version(struct node *node, uint16_t bucket, struct bytes key)
{
    struct value value;
    enum err err = node_get(node, NODE_PENDING, bucket, key, &value);
    if (err == OK) return value.version;
    return err == ERR_NOT_FOUND ? 0 : UINT64_MAX;
}

/* The term in which we lead the key's range: what was not touched here may have been elsewhere in another one. */
static uint64_t term_of(struct node *node, struct bytes key)
{
    if (node_alone(node)) return 0;
    struct node_range range;
    node_range_status(node, node_range_of(node, key), &range);
    return range.term;
}

/* NULL: no memory, or (*known_out) the session watches the key already. */
static struct watch *watch_new(struct session *session, struct bytes key, bool *known_out)
{
    *known_out = false;
    for (struct watched_key *other = session->watched; other != NULL; other = other->next) {
        if (other->bucket == session->bucket && bytes_equal(buffer_view(&other->key), key)) {
            *known_out = true;
            return NULL;
        }
    }
    struct command_state *state = commands_state(session->server);
    struct watch *watch = state == NULL ? NULL : calloc(1, sizeof *watch);
    if (watch == NULL) return NULL;
    if (buffer_append(&watch->base.key, key.at, key.size) != OK) {
        free(watch);
        return NULL;
    }
    watch->base.bucket = session->bucket;
    watch->base.next = session->watched;
    session->watched = &watch->base;
    return watch;
}

static bool watch_key(struct call *call, struct bytes key)
{
    bool known;
    struct watch *watch = watch_new(call->session, key, &known);
    if (watch == NULL) return known;
    watch->base.version = transaction_version(call->node, call->bucket, key);
    if (watch->base.version == 0) {
        watch->term = term_of(call->node, key);
        watch_enter(call->server->commands, watch, call->bucket, key);
    }
    return true;
}

struct watched_key *transaction_watch_remote(
    struct session *session, struct bytes key, bool *failed_out)
{
    bool known;
    struct watch *watch = watch_new(session, key, &known);
    *failed_out = watch == NULL && !known;
    return watch == NULL ? NULL : &watch->base;
}

/* Absent keys that are watched for clients of other nodes: the oldest make room for new ones, and whose watch is
 * gone has lost its transaction, as after any change. */
struct remote_watch {
    struct watch watch;
    uint64_t token;
};

uint64_t transaction_watch_absent(
    struct server *server, uint16_t range, uint16_t bucket, struct bytes key)
{
    struct command_state *state = commands_state(server);
    (void)range;
    if (state == NULL) return 0;
    if (state->remote == NULL) {
        state->remote = calloc(REMOTE_WATCHES, sizeof *state->remote);
        if (state->remote == NULL) return 0;
        /* of this life of the process only */
        state->remote_next = prng_next(&state->random) >> 1;
    }
    uint64_t token = ++state->remote_next;
    struct remote_watch *remote = &state->remote[token % REMOTE_WATCHES];
    watch_leave(state, &remote->watch);
    buffer_deinit(&remote->watch.base.key);
    *remote = (struct remote_watch){0};
    if (buffer_append(&remote->watch.base.key, key.at, key.size) != OK) return 0;
    remote->watch.base.bucket = bucket;
    remote->watch.term = term_of(server->node, key);
    remote->token = token;
    watch_enter(state, &remote->watch, bucket, key);
    return token;
}

bool transaction_watch_untouched(
    struct server *server, uint64_t token, uint16_t bucket, struct bytes key)
{
    struct command_state *state = server->commands;
    if (token == 0 || state == NULL || state->remote == NULL) return false;
    const struct remote_watch *remote = &state->remote[token % REMOTE_WATCHES];
    return remote->token == token && !remote->watch.touched &&
        remote->watch.base.bucket == bucket &&
        bytes_equal(buffer_view(&remote->watch.base.key), key) &&
        remote->watch.term == term_of(server->node, key);
}

void transaction_state_close(struct command_state *state)
{
    for (uint32_t i = 0; state->remote != NULL && i < REMOTE_WATCHES; i++)
        buffer_deinit(&state->remote[i].watch.base.key);
    free(state->remote);
}

static void run_watch(struct call *call)
{
    if ((call->session->flags & SESSION_MULTI) != 0) {
        resp_error(call->out, "ERR WATCH inside MULTI is not allowed");
        return;
    }
    for (uint32_t i = 1; i < call->argc; i++) {
        if (!watch_key(call, call->argv[i])) {
            resp_error(call->out, "ERR out of memory");
            return;
        }
    }
    /* a version that is only proposed may be lost, and its number used for another value */
    if (call->range != 0) call->read_pending = true;
    reply_ok(call);
}

static void run_unwatch(struct call *call)
{
    unwatch(call->session);
    reply_ok(call);
}

static bool watched_changed(struct call *call)
{
    for (struct watched_key *key = call->session->watched; key != NULL; key = key->next) {
        struct bytes name = buffer_view(&key->key);
        uint64_t version = transaction_version(call->node, key->bucket, name);
        if (PLANTED_BUG(14) && version == 0) continue;
        if (version != key->version || watch_of(key)->touched) return true;
        /* absent then and now, but watched elsewhere, or not since by us alone */
        if (version == 0 &&
            (watch_of(key)->at == NULL || watch_of(key)->term != term_of(call->node, name)))
            return true;
    }
    return false;
}

bool transaction_writes(const struct session *session)
{
    for (const struct queued_command *queued = session->queue; queued != NULL;
         queued = queued->next) {
        if ((queued->command->flags & COMMAND_WRITE) != 0) return true;
    }
    return false;
}

const char *transaction_range(struct session *session, uint16_t *range_out)
{
    struct node *node = session->server->node;
    uint16_t all = 0, range;
    for (const struct watched_key *key = session->watched; key != NULL; key = key->next) {
        range = node_range_of(node, buffer_view(&key->key));
        if (all != 0 && range != all) return CROSSSLOT_ERROR;
        all = range;
    }
    for (const struct queued_command *queued = session->queue; queued != NULL;
         queued = queued->next) {
        if ((queued->command->flags & COMMAND_KEYSPACE) != 0) {
            return "EXECABORT Transaction discarded because of: KEYS, SCAN, DBSIZE, RANDOMKEY, "
                   "FLUSHDB and "
                   "FLUSHALL concern the ranges of several nodes";
        }
        if (!command_range(node, queued->command, queued->argc, queued->argv, &range))
            return CROSSSLOT_ERROR;
        if (range != 0 && all != 0 && range != all) return CROSSSLOT_ERROR;
        if (range != 0) all = range;
    }
    *range_out = all;
    return NULL;
}

void transaction_abort_error(struct buffer *out, bool retry)
{
    if (retry) {
        resp_error(
            out, "TRYAGAIN the store is catching up with writes; the transaction was discarded");
    } else {
        resp_error(out,
            "EXECABORT Transaction discarded: there is no room for it, or it "
            "is larger than one log record may be.");
    }
}

static void run_exec(struct call *call)
{
    struct session *session = call->session;
    if ((session->flags & SESSION_MULTI) == 0) {
        resp_error(call->out, "ERR EXEC without MULTI");
        return;
    }
    if ((session->flags & SESSION_DIRTY_EXEC) != 0) {
        transaction_discard(session);
        resp_error(call->out, "EXECABORT Transaction discarded because of previous errors.");
        return;
    }
    if (session->watched != NULL) {
        call->read_pending = true;
        if (watched_changed(call)) {
            transaction_discard(session);
            resp_null_array(call->out, call->version);
            return;
        }
    }
    /* the queue leaves the session first: a queued command may reset or end it */
    struct queued_command *queue = session->queue;
    uint32_t count = session->queue_count;
    session->queue = NULL;
    transaction_discard(session);

    size_t mark = reply_mark(call);
    uint16_t bucket = session->bucket;
    resp_array(call->out, count);
    for (struct queued_command *queued = queue; queued != NULL; queued = queued->next) {
        struct call one = {.server = call->server,
            .session = session,
            .node = call->node,
            .command = queued->command,
            .argc = queued->argc,
            .argv = queued->argv,
            .out = call->out,
            .version = session->resp_version,
            .bucket = session->bucket,
            .view = NODE_PENDING,
            .in_exec = true};
        dispatch_run(&one);
        if (one.read_pending) call->read_pending = true;
        if (one.abort) {
            /* half a transaction is none: the dispatcher drops what the others did */
            call->abort = true;
            session->bucket = bucket; /* a bucket made by SELECT goes with the rest */
            reply_back(call, mark);
            transaction_abort_error(call->out, one.retry);
            break;
        }
    }
    free_queue(queue);
}

#define TRANSACTION "@fast @transaction"

const struct command commands_transaction[] = {
    {"discard", 1, COMMAND_FAST | COMMAND_IN_MULTI | COMMAND_LOADING, 0, 0, 0, run_discard,
        "transactions", "2.0.0", "O(N), when N is the number of queued commands",
        "Discard all commands issued after MULTI", TRANSACTION},
    {"exec", 1, COMMAND_WRITE | COMMAND_IN_MULTI | COMMAND_LOADING, 0, 0, 0, run_exec,
        "transactions", "1.2.0", "Depends on commands in the transaction",
        "Execute all commands issued after MULTI", "@slow @transaction"},
    {"multi", 1, COMMAND_FAST | COMMAND_IN_MULTI | COMMAND_LOADING, 0, 0, 0, run_multi,
        "transactions", "1.2.0", "O(1)", "Mark the start of a transaction block", TRANSACTION},
    {"unwatch", 1, COMMAND_FAST | COMMAND_LOADING, 0, 0, 0, run_unwatch, "transactions", "2.2.0",
        "O(1)", "Forget about all watched keys", TRANSACTION},
    {"watch", -2, COMMAND_FAST | COMMAND_IN_MULTI | COMMAND_KEYS | COMMAND_LOADING, 1, -1, 1,
        run_watch, "transactions", "2.2.0", "O(N) where N is the number of keys to watch",
        "Watch the given keys to determine execution of the MULTI/EXEC block", TRANSACTION},
    {.name = NULL},
};
