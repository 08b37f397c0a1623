#include "server/command_internal.h"

#include <stdlib.h>

#include "base/check.h"

/* MULTI, EXEC, DISCARD, WATCH, UNWATCH.
 *
 * Between MULTI and EXEC the dispatcher queues copies of the commands. EXEC runs them one after the other in the one
 * node transaction that the dispatcher has begun for it, so they become one log record: all or nothing, also over a
 * power cut.
 *
 * WATCH remembers the version of each key (the LSN of the record that wrote it; 0: absent or expired).
 * EXEC compares with what it would read itself, the pending view. Nothing else runs in between, so
 * equal versions mean that nobody wrote the key since WATCH. A key that was absent, was created and is absent again
 * counts as unchanged. */

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

static void unwatch(struct session *session)
{
    while (session->watched != NULL) {
        struct watched_key *watched = session->watched;
        session->watched = watched->next;
        buffer_deinit(&watched->key);
        free(watched);
    }
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

/* Version of a key as a transaction sees it; 0: absent. A damaged value counts as a version of its
 * own, so that the commands of the transaction meet it and answer. */
static uint64_t version_of(struct call *call, uint16_t bucket, struct bytes key)
{
    struct value value;
    enum err err = node_get(call->node, NODE_PENDING, bucket, key, &value);
    if (err == OK) return value.version;
    return err == ERR_NOT_FOUND ? 0 : UINT64_MAX;
}

static bool watch_key(struct call *call, struct bytes key)
{
    struct session *session = call->session;
    for (struct watched_key *other = session->watched; other != NULL; other = other->next) {
        if (other->bucket == call->bucket && bytes_equal(buffer_view(&other->key), key))
            return true;
    }
    struct watched_key *watched = calloc(1, sizeof *watched);
    if (watched == NULL) return false;
    if (buffer_append(&watched->key, key.at, key.size) != OK) {
        free(watched);
        return false;
    }
    watched->bucket = call->bucket;
    watched->version = version_of(call, call->bucket, key);
    watched->next = session->watched;
    session->watched = watched;
    return true;
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
        uint64_t version = version_of(call, key->bucket, buffer_view(&key->key));
        if (PLANTED_BUG(14) && version == 0) continue;
        if (version != key->version) return true;
    }
    return false;
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
            reply_back(call, mark);
            resp_error(call->out,
                "EXECABORT Transaction discarded: it is larger than one log record "
                "may be, or memory is used up.");
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
