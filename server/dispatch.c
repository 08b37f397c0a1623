#include <stdlib.h>

#include "base/check.h"
#include "server/command.h"

/* From a parsed command to its reply.
 *
 * What a reply waits for. A write is evaluated at once over the pending view and proposed as one
 * record; its reply leaves when that record is committed. A read on a session with nothing held
 * back sees committed state and waits for nothing. With something held back the client may have
 * written what it now reads, so the read takes the pending view, and its reply waits for the newest
 * record that is pending: what it has shown must not be lost again. The same goes for a write
 * that came to no effect (SET NX of a key that is there).
 *
 * An error reply means that nothing was changed: the transaction is dropped. A write for which there
 * is no room right now (ERR_AGAIN) is not run; the session keeps its bytes and tries again. */

enum {
    QUEUE_BYTES_MAX = 64 << 20,
    QUEUE_COUNT_MAX = 1 << 20,
};

static struct command_stats *stats_of(const struct server *server, const struct command *command)
{
    if (server->command_stats == NULL) return NULL;
    uint32_t count;
    return &server->command_stats[command - command_table(&count)];
}

static uint64_t clock_ns(const struct server *server)
{
    return server->io.clock.monotonic_ns(server->io.clock.ctx);
}

void dispatch_run(struct call *call)
{
    struct server *server = call->server;
    size_t before = call->out->size - call->out->head;
    uint64_t start_ns = clock_ns(server);
    call->command->run(call);
    uint64_t spent_ns = clock_ns(server) - start_ns;

    server->counters.commands++;
    call->session->commands++;
    const struct buffer *out = call->out;
    bool failed = out->size - out->head > before && out->at[out->head + before] == '-';
    if (failed) server->counters.errors++;
    struct command_stats *stats = stats_of(server, call->command);
    if (stats != NULL) {
        stats->calls++;
        stats->failed += failed;
        stats->ns += spent_ns;
        if (stats->latency_ns == NULL) stats->latency_ns = calloc(1, sizeof *stats->latency_ns);
        if (stats->latency_ns != NULL) histogram_record(stats->latency_ns, spent_ns);
    }
    if (spent_ns / 1000 >= server->config.slowlog_us) slowlog_record(call, spent_ns / 1000);
}

/* Takes note of a reply at the end of `out`; CLIENT REPLY may have switched it off. */
static void finish(struct session *session, size_t before, ticket_t ticket)
{
    uint32_t flags = session->flags;
    if ((flags & (SESSION_REPLY_OFF | SESSION_REPLY_SKIP | SESSION_REPLY_SKIP_NEXT)) != 0) {
        if ((flags & (SESSION_REPLY_OFF | SESSION_REPLY_SKIP)) != 0)
            session->out.size = session->out.head + before;
        flags &= ~(uint32_t)SESSION_REPLY_SKIP;
        if ((flags & SESSION_REPLY_SKIP_NEXT) != 0) flags |= SESSION_REPLY_SKIP;
        session->flags = flags & ~(uint32_t)SESSION_REPLY_SKIP_NEXT;
    }
    session_replied(session, ticket);
}

/* The error is written already, or `error` is written now; inside MULTI it spoils the transaction. */
static bool reject(
    struct session *session, const struct command *command, size_t before, const char *error)
{
    if (error != NULL) resp_error(&session->out, "%s", error);
    session->server->counters.errors++;
    if (command != NULL) {
        struct command_stats *stats = stats_of(session->server, command);
        if (stats != NULL) stats->rejected++;
    }
    if ((session->flags & SESSION_MULTI) != 0) session->flags |= SESSION_DIRTY_EXEC;
    finish(session, before, 0);
    return true;
}

static bool keys_fit(const struct command *command, uint32_t argc, const struct bytes *argv)
{
    int64_t last = command->last_key < 0 ? (int64_t)argc + command->last_key : command->last_key;
    int64_t step = command->step > 0 ? command->step : 1;
    for (int64_t i = command->first_key; i > 0 && i <= last && i < argc; i += step) {
        if (argv[i].size > KEY_SIZE_MAX) return false;
    }
    return true;
}

static bool queue(
    struct session *session, const struct command *command, uint32_t argc, const struct bytes *argv)
{
    size_t before = session->out.size - session->out.head;
    if ((command->flags & COMMAND_NO_MULTI) != 0)
        return reject(session, command, before, "ERR Command not allowed inside a transaction");
    if (session->queue_count >= QUEUE_COUNT_MAX ||
        session->queue_bytes + session->parser.total > QUEUE_BYTES_MAX) {
        return reject(session, command, before,
            "ERR the transaction is larger than the limit of 67108864 bytes or 1048576 commands");
    }
    if (!transaction_queue(session, command, argc, argv))
        return reject(session, command, before, "ERR out of memory");
    resp_simple(&session->out, "QUEUED");
    finish(session, before, 0);
    return true;
}

/* EXEC writes if one of the queued commands may */
static bool queue_writes(const struct session *session)
{
    for (const struct queued_command *queued = session->queue; queued != NULL;
         queued = queued->next) {
        if ((queued->command->flags & COMMAND_WRITE) != 0) return true;
    }
    return false;
}

/* A write that the node does not take: false to try again later, else its error is written. */
static bool refuse_write(struct call *call, enum err err, size_t before)
{
    const char *why = "ERR out of memory";
    if (err == ERR_AGAIN) {
        call->server->counters.throttled++;
        return false;
    }
    if (err == ERR_FULL) why = "OOM disk full: writes are refused until there is space again";
    if (err == ERR_TOO_LARGE) {
        why = "ERR the command is larger than a log record may be (about 32 MiB); "
              "nothing was changed";
    }
    if (err == ERR_POISONED) why = "ERR the log failed; this node is stopping";
    struct session *session = call->session;
    if ((call->command->flags & COMMAND_IN_MULTI) != 0) {
        transaction_discard(session);
        resp_error(&session->out, "EXECABORT Transaction discarded because of: %s", why);
        why = NULL;
    }
    return reject(session, call->command, before, why);
}

static bool run_write(struct call *call, size_t before)
{
    struct session *session = call->session;
    struct node *node = call->node;
    bool exec = (call->command->flags & COMMAND_IN_MULTI) != 0;
    if (!exec || queue_writes(session)) {
        enum err err = node_admit(node, exec ? session->queue_bytes : session->parser.total);
        if (err != OK) return refuse_write(call, err, before);
    }
    call->view = NODE_PENDING;
    node_txn_begin(node);
    dispatch_run(call);
    struct buffer *out = &session->out;
    if (call->retry) {
        /* what it stores is larger than its arguments, and there is no room for that right now */
        node_txn_abort(node);
        out->size = out->head + before;
        call->server->counters.throttled++;
        return false;
    }
    bool failed = out->size - out->head > before && out->at[out->head + before] == '-';
    ticket_t ticket = 0;
    if (call->abort || failed) {
        node_txn_abort(node);
    } else {
        ticket = node_txn_commit(node);
    }
    if (ticket == 0) ticket = node_pending_ticket(node);
    finish(session, before, ticket);
    return true;
}

static bool run_other(struct call *call, size_t before)
{
    struct session *session = call->session;
    bool held = session->held_count > 0 && !PLANTED_BUG(12);
    call->view = held ? NODE_PENDING : NODE_COMMITTED;
    call->read_pending = held && (call->command->flags & COMMAND_READ) != 0;
    dispatch_run(call);
    finish(session, before, call->read_pending ? node_pending_ticket(call->node) : 0);
    return true;
}

bool dispatch(struct session *session, uint32_t argc, const struct bytes *argv)
{
    struct server *server = session->server;
    size_t before = session->out.size - session->out.head;
    const struct command *command = command_resolve(argc, argv, &session->out);
    if (command == NULL) {
        (void)reject(session, NULL, before, NULL);
        /* EXEC ends its transaction even if it cannot be understood */
        if (argument_is(argv[0], "exec")) transaction_discard(session);
        return true;
    }
    if ((session->flags & SESSION_AUTHENTICATED) == 0 && (command->flags & COMMAND_NO_AUTH) == 0)
        return reject(session, command, before, "NOAUTH Authentication required.");
    if ((command->flags & COMMAND_KEYS) != 0 && !keys_fit(command, argc, argv))
        return reject(session, command, before, "ERR key is longer than 400 bytes");
    session->last_command = command;
    if ((session->flags & SESSION_MULTI) != 0 && (command->flags & COMMAND_IN_MULTI) == 0)
        return queue(session, command, argc, argv);

    struct call call = {
        .server = server,
        .session = session,
        .node = server->node,
        .command = command,
        .argc = argc,
        .argv = argv,
        .out = &session->out,
        .version = session->resp_version,
        .bucket = session->bucket,
    };
    if ((command->flags & COMMAND_WRITE) != 0) return run_write(&call, before);
    return run_other(&call, before);
}
