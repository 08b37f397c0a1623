#include <stdlib.h>

#include "base/check.h"
#include "server/forward.h"
#include "server/scatter.h"

/* From a parsed command to its reply.
 *
 * Where it runs. While the node is alone, here. In a cluster each key has a range and each range a leader: a command
 * whose keys are all in one range runs here if this node leads it, else it is forwarded; keys of several ranges are
 * refused; what is about all keys asks all ranges. Only a connection that said READONLY may read what this node
 * happens to have.
 *
 * What a reply waits for. A write is evaluated at once over the pending view and proposed as one
 * entry; its reply leaves when that entry is committed. A read on a session with nothing held
 * back sees committed state and waits until a majority has confirmed that this node still leads; alone, for
 * nothing. With something held back the client may have
 * written what it now reads, so the read takes the pending view, and its reply waits for the newest
 * entry that is pending: what it has shown must not be lost again. The same goes for a write
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

static bool is_error(const struct buffer *out, size_t before)
{
    return out->size - out->head > before && out->at[out->head + before] == '-';
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
    bool failed = is_error(call->out, before);
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

void dispatch_finish(struct session *session, size_t before, ticket_t ticket)
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
    dispatch_finish(session, before, 0);
    return true;
}

bool dispatch_keys_fit(const struct command *command, uint32_t argc, const struct bytes *argv)
{
    uint32_t first, last, step;
    if (!command_keys(command, argc, argv, &first, &last, &step)) return true;
    for (uint32_t i = first; i <= last; i += step) {
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
    dispatch_finish(session, before, 0);
    return true;
}

const char *dispatch_refusal(enum err err)
{
    if (err == ERR_FULL) return "OOM disk full: writes are refused until there is space again";
    if (err == ERR_TOO_LARGE) {
        return "ERR the command is larger than a log record may be (about 32 MiB); "
               "nothing was changed";
    }
    if (err == ERR_POISONED) return "ERR the log failed; this node is stopping";
    return "ERR out of memory";
}

/* A write that the node does not take: false to try again later, else its error is written. */
static bool refuse_write(struct call *call, enum err err, size_t before)
{
    const char *why = dispatch_refusal(err);
    if (err == ERR_AGAIN) {
        call->server->counters.throttled++;
        return false;
    }
    struct session *session = call->session;
    if ((call->command->flags & COMMAND_IN_MULTI) != 0) {
        transaction_discard(session);
        resp_error(&session->out, "EXECABORT Transaction discarded because of: %s", why);
        why = NULL;
    }
    return reject(session, call->command, before, why);
}

ticket_t dispatch_read_ticket(const struct call *call, enum node_view view)
{
    if (call->range != 0) return node_read_ticket(call->node, call->range, view);
    bool all = view == NODE_PENDING && node_alone(call->node);
    return all ? node_pending_ticket(call->node) : 0;
}

bool dispatch_transact(struct call *call, ticket_t *ticket_out)
{
    struct node *node = call->node;
    struct buffer *out = call->out;
    size_t before = out->size - out->head;
    call->view = NODE_PENDING;
    node_txn_begin(node);
    dispatch_run(call);
    if (call->retry) {
        /* what it stores is larger than its arguments, and there is no room for that right now */
        node_txn_abort(node);
        out->size = out->head + before;
        call->server->counters.throttled++;
        return false;
    }
    ticket_t ticket = 0;
    if (call->abort || is_error(out, before)) {
        node_txn_abort(node);
    } else {
        ticket = node_txn_commit(node);
    }
    *ticket_out = ticket != 0 ? ticket : dispatch_read_ticket(call, NODE_PENDING);
    return true;
}

static bool run_write(struct call *call, size_t before)
{
    struct session *session = call->session;
    bool exec = (call->command->flags & COMMAND_IN_MULTI) != 0;
    if (!exec || transaction_writes(session)) {
        enum err err = node_admit(call->node, exec ? session->queue_bytes : session->parser.total);
        if (err != OK) return refuse_write(call, err, before);
    }
    ticket_t ticket;
    if (!dispatch_transact(call, &ticket)) return false;
    dispatch_finish(session, before, ticket);
    return true;
}

static bool run_other(struct call *call, size_t before)
{
    struct session *session = call->session;
    bool held = session->held_count > 0 && !PLANTED_BUG(12);
    bool reads = (call->command->flags & COMMAND_READ) != 0;
    call->view = held ? NODE_PENDING : NODE_COMMITTED;
    call->read_pending = held && reads;
    dispatch_run(call);
    if (session->scatter != NULL) return true; /* SELECT asks others: answered later */
    ticket_t ticket = 0;
    if (call->read_pending) {
        ticket = dispatch_read_ticket(call, NODE_PENDING);
    } else if (reads) {
        ticket = dispatch_read_ticket(call, NODE_COMMITTED);
    }
    dispatch_finish(session, before, ticket);
    return true;
}

static bool run_here(struct call *call, size_t before)
{
    if ((call->command->flags & COMMAND_WRITE) != 0) return run_write(call, before);
    return run_other(call, before);
}

/* ---- with several nodes ---- */

/* What this node has, however old, for a connection that wants no more. */
static bool run_stale(struct call *call, size_t before)
{
    call->view = NODE_COMMITTED;
    dispatch_run(call);
    dispatch_finish(call->session, before, 0);
    return true;
}

static bool stale_wanted(const struct call *call)
{
    const struct session *session = call->session;
    if ((call->command->flags & COMMAND_READ) == 0) return false;
    if ((session->flags & SESSION_READONLY) == 0 && !PLANTED_BUG(55)) return false;
    /* what it has just written through this node it shall see */
    return session->held_count == 0 && node_has(call->node, call->range);
}

static bool exec_in_cluster(struct call *call, size_t before)
{
    struct session *session = call->session;
    bool runs = (session->flags & SESSION_MULTI) != 0 && (session->flags & SESSION_DIRTY_EXEC) == 0;
    if (runs) {
        const char *error = transaction_range(session, &call->range);
        if (error != NULL) {
            transaction_discard(session);
            return reject(session, call->command, before, error);
        }
    }
    if (runs && call->range != 0 && !node_serves(call->node, call->range)) {
        forward_exec(call);
        return true;
    }
    return run_here(call, before);
}

static bool dispatch_in_cluster(struct call *call, size_t before)
{
    const struct command *command = call->command;
    if (argument_is(bytes_of_text(command->name), "exec")) return exec_in_cluster(call, before);
    if ((command->flags & COMMAND_KEYSPACE) != 0) {
        scatter_command(call);
        return true;
    }
    if ((command->flags & (COMMAND_KEYS | COMMAND_WRAPS)) == 0) return run_here(call, before);
    if (!command_range(call->node, command, call->argc, call->argv, &call->range))
        return reject(call->session, command, before, CROSSSLOT_ERROR);
    if (call->range == 0) return run_here(call, before);
    if (stale_wanted(call)) return run_stale(call, before);
    bool watch = (command->flags & COMMAND_IN_MULTI) != 0;
    bool refused = watch && (call->session->flags & SESSION_MULTI) != 0;
    if (refused || node_serves(call->node, call->range)) return run_here(call, before);
    if (watch) {
        forward_watch(call);
    } else {
        forward_command(call);
    }
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
    if ((command->flags & (COMMAND_KEYS | COMMAND_WRAPS)) != 0 &&
        !dispatch_keys_fit(command, argc, argv))
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
    return node_alone(server->node) ? run_here(&call, before) : dispatch_in_cluster(&call, before);
}
