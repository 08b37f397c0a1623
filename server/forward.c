#include "server/forward.h"

#include <stdlib.h>

#include "base/check.h"
#include "server/command_internal.h"
#include "server/http_key.h"
#include "server/scatter.h"

/* ---- asking ---- */

enum { BODY_KEEP = 16 << 10 };

/* What another node does for a session: one thing at a time. */
struct forwarded {
    struct node_request request;
    struct session *session;
    enum forward_kind kind;
    bool active;
    bool writes;
    uint32_t
        watched; /* WATCH: so many at the front of the session's list wait for their versions */
    uint16_t range;
    struct buffer body;
};

static size_t reply_size(const struct session *session)
{
    return session->out.size - session->out.head;
}

void forward_finish(struct session *session, size_t before)
{
    struct buffer *out = &session->out;
    if (reply_size(session) > before && out->at[out->head + before] == '-')
        session->server->counters.errors++;
    dispatch_finish(session, before, 0);
    session->flags &= ~(uint32_t)SESSION_BLOCKED;
    session_continue(session);
}

void forward_outcome_error(struct buffer *out, enum node_outcome outcome, bool writes)
{
    ASSERT(outcome != NODE_REPLIED);
    if (outcome == NODE_UNKNOWN && writes) {
        resp_error(
            out, "UNKNOWN the outcome is not known: the write may or may not have been applied");
    } else {
        resp_error(out,
            "CLUSTERDOWN no majority of this range's replicas can be reached; nothing was changed");
    }
}

void forward_start_error(struct buffer *out, enum err err)
{
    if (err == ERR_TOO_LARGE) {
        resp_error(
            out, "ERR the command is larger than nodes hand to each other; nothing was changed");
    } else {
        resp_error(out, "ERR out of memory");
    }
}

/* RESP from another node, or an error if it cannot be that. */
static void append_resp(struct buffer *out, struct bytes reply)
{
    static const char types[] = "+-:$*_#,(!=%~";
    if (reply.size == 0 || memchr(types, reply.at[0], sizeof types - 1) == NULL) {
        resp_error(out, "ERR the node that leads this key gave no answer that can be understood");
    } else if (buffer_append(out, reply.at, reply.size) != OK) {
        out->failed = true;
    }
}

static void append_error(struct buffer *out, struct bytes text)
{
    int size = (int)(text.size < 512 ? text.size : 512);
    resp_error(out, "%.*s", size, (const char *)text.at);
}

static bool has_keys(const struct queued_command *queued)
{
    return (queued->command->flags & COMMAND_KEYS) != 0;
}

/* The replies of the commands with keys came from elsewhere; the others are answered here, in their places. */
static void merge_exec(struct session *session, struct forward_reader *reader)
{
    struct queued_command *queue = session->queue;
    uint32_t count = session->queue_count;
    session->queue = NULL;
    transaction_discard(session);
    resp_array(&session->out, count);
    while (queue != NULL) {
        struct queued_command *next = queue->next;
        if (has_keys(queue)) {
            append_resp(&session->out, forward_get_text(reader));
        } else {
            struct call call = {.server = session->server,
                .session = session,
                .node = session->server->node,
                .command = queue->command,
                .argc = queue->argc,
                .argv = queue->argv,
                .out = &session->out,
                .version = session->resp_version,
                .bucket = session->bucket,
                .view = NODE_COMMITTED,
                .in_exec = true};
            dispatch_run(&call);
        }
        free(queue);
        queue = next;
    }
}

static void take_exec(struct session *session, struct forward_reader *reader)
{
    uint8_t result = forward_get_u8(reader);
    if (result == FORWARD_DONE) {
        merge_exec(session, reader);
        return;
    }
    transaction_discard(session);
    if (result == FORWARD_CHANGED) {
        resp_null_array(&session->out, session->resp_version);
    } else {
        append_error(&session->out, forward_get_text(reader));
    }
}

static void take_watch(struct forwarded *forwarded, struct forward_reader *reader)
{
    struct session *session = forwarded->session;
    struct watched_key *key = session->watched;
    if (forward_get_u8(reader) != FORWARD_DONE) {
        append_error(&session->out, forward_get_text(reader));
        transaction_unwatch(session, forwarded->watched);
        return;
    }
    for (uint32_t i = 0; i < forwarded->watched; i++, key = key->next) {
        ASSERT(key != NULL);
        key->version = forward_get_u64(reader);
        key->token = forward_get_u64(reader);
    }
    resp_simple(&session->out, "OK");
}

static void on_reply(struct forwarded *forwarded, struct bytes reply)
{
    struct session *session = forwarded->session;
    struct forward_reader reader = {.rest = reply};
    switch (forwarded->kind) {
    case FORWARD_EXEC:
        take_exec(session, &reader);
        break;
    case FORWARD_WATCH:
        take_watch(forwarded, &reader);
        break;
    default:
        append_resp(&session->out, reply);
        break;
    }
}

static void on_done(struct node_request *request, enum node_outcome outcome, struct bytes reply)
{
    struct forwarded *forwarded = request->ctx;
    struct session *session = forwarded->session;
    struct node *node = session->server->node;
    ASSERT(forwarded->active);
    if (PLANTED_BUG(54) && outcome == NODE_UNKNOWN &&
        node_request_start(node, request, forwarded->range, buffer_view(&forwarded->body)) == OK)
        return;
    forwarded->active = false;
    buffer_reset(&forwarded->body, BODY_KEEP);
    size_t before = reply_size(session);
    if (outcome == NODE_REPLIED) {
        on_reply(forwarded, reply);
    } else {
        if (forwarded->kind == FORWARD_EXEC) transaction_discard(session);
        if (forwarded->kind == FORWARD_WATCH) transaction_unwatch(session, forwarded->watched);
        forward_outcome_error(&session->out, outcome, forwarded->writes);
    }
    forward_finish(session, before);
}

/* What the session asks with; its body has the head already. NULL: no memory, the error is replied. */
static struct forwarded *begin(struct call *call, enum forward_kind kind)
{
    struct session *session = call->session;
    if (session->forwarded == NULL) session->forwarded = calloc(1, sizeof *session->forwarded);
    struct forwarded *forwarded = session->forwarded;
    if (forwarded == NULL) {
        size_t before = reply_size(session);
        resp_error(&session->out, "ERR out of memory");
        dispatch_finish(session, before, 0);
        return NULL;
    }
    ASSERT(!forwarded->active);
    forwarded->session = session;
    forwarded->kind = kind;
    forwarded->range = call->range;
    forward_put_head(&forwarded->body, kind);
    return forwarded;
}

static void start(struct call *call, struct forwarded *forwarded)
{
    struct session *session = call->session;
    enum err err = ERR_NOMEM;
    forwarded->request =
        (struct node_request){.done = on_done, .ctx = forwarded, .read_only = !forwarded->writes};
    if (!forwarded->body.failed)
        err = node_request_start(
            call->node, &forwarded->request, call->range, buffer_view(&forwarded->body));
    if (err == OK) {
        forwarded->active = true;
        session->flags |= SESSION_BLOCKED;
        if (!PLANTED_BUG(54)) buffer_reset(&forwarded->body, BODY_KEEP);
        return;
    }
    forwarded->body.failed = false;
    buffer_reset(&forwarded->body, BODY_KEEP);
    size_t before = reply_size(session);
    if (forwarded->kind == FORWARD_EXEC) transaction_discard(session);
    forward_start_error(&session->out, err);
    dispatch_finish(session, before, 0);
}

void forward_command(struct call *call)
{
    struct forwarded *forwarded = begin(call, FORWARD_COMMAND);
    if (forwarded == NULL) return;
    struct buffer *body = &forwarded->body;
    forwarded->writes = (call->command->flags & COMMAND_WRITE) != 0;
    forward_put_u8(body, (uint8_t)call->version);
    forward_put_u16(body, call->bucket);
    forward_put_arguments(body, call->argc, call->argv);
    start(call, forwarded);
}

void forward_watch(struct call *call)
{
    struct forwarded *forwarded = begin(call, FORWARD_WATCH);
    if (forwarded == NULL) return;
    struct buffer *body = &forwarded->body;
    size_t place = body->size;
    forwarded->writes = false;
    forwarded->watched = 0;
    forward_put_u16(body, call->bucket);
    forward_put_u32(body, 0);
    bool failed = body->failed;
    for (uint32_t i = 1; i < call->argc && !failed; i++) {
        if (transaction_watch_remote(call->session, call->argv[i], &failed) != NULL)
            forwarded->watched++;
    }
    /* newest first, as in the session's list */
    const struct watched_key *key = call->session->watched;
    for (uint32_t i = 0; i < forwarded->watched; i++, key = key->next)
        forward_put_text(body, buffer_view(&key->key));
    if (failed) body->failed = true;
    if (!body->failed) store_u32(body->at + place + 2, forwarded->watched);
    if (forwarded->watched == 0 && !body->failed) { /* all were watched before */
        buffer_reset(body, BODY_KEEP);
        size_t before = reply_size(call->session);
        resp_simple(&call->session->out, "OK");
        dispatch_finish(call->session, before, 0);
        return;
    }
    start(call, forwarded);
}

/* The bucket behind a queued SELECT, as running it will find it. */
static uint16_t bucket_behind(
    struct node *node, const struct queued_command *queued, uint16_t bucket)
{
    int64_t number;
    uint16_t found;
    if (strcmp(queued->command->name, "select") != 0) return bucket;
    if (argument_integer(queued->argv[1], &number))
        return number >= 0 && number < NODE_BUCKETS_NUMBERED ? (uint16_t)number : bucket;
    return node_bucket_find(node, queued->argv[1], &found) == OK ? found : bucket;
}

void forward_exec(struct call *call)
{
    struct session *session = call->session;
    struct forwarded *forwarded = begin(call, FORWARD_EXEC);
    if (forwarded == NULL) return;
    struct buffer *body = &forwarded->body;
    forwarded->writes = transaction_writes(session);
    forward_put_u8(body, (uint8_t)call->version);
    uint32_t count = 0;
    for (const struct watched_key *key = session->watched; key != NULL; key = key->next)
        count++;
    forward_put_u32(body, count);
    for (const struct watched_key *key = session->watched; key != NULL; key = key->next) {
        forward_put_u16(body, key->bucket);
        forward_put_u64(body, key->version);
        forward_put_u64(body, key->token);
        forward_put_text(body, buffer_view(&key->key));
    }
    count = 0;
    for (const struct queued_command *queued = session->queue; queued != NULL;
         queued = queued->next)
        count += has_keys(queued);
    forward_put_u32(body, count);
    uint16_t bucket = session->bucket;
    for (const struct queued_command *queued = session->queue; queued != NULL;
         queued = queued->next) {
        if (has_keys(queued)) {
            forward_put_u16(body, bucket);
            forward_put_arguments(body, queued->argc, queued->argv);
        }
        bucket = bucket_behind(call->node, queued, bucket);
    }
    start(call, forwarded);
}

size_t forward_bytes(const struct session *session)
{
    const struct forwarded *forwarded = session->forwarded;
    if (forwarded == NULL) return 0;
    size_t sent = forwarded->active ? forwarded->request.body.capacity : 0;
    return sizeof *forwarded + forwarded->body.capacity + sent;
}

void forward_cancel(struct session *session)
{
    struct forwarded *forwarded = session->forwarded;
    if (forwarded == NULL) return;
    if (forwarded->active) node_request_cancel(session->server->node, &forwarded->request);
    buffer_deinit(&forwarded->body);
    free(forwarded);
    session->forwarded = NULL;
}

/* ---- answering ---- */

/* What commands of other nodes' clients run on. */
struct executor {
    struct session session; /* of nobody: never listed, never read from */
    struct forward_arguments arguments;
};

static struct executor *executor_of(struct server *server)
{
    if (server->executor == NULL) {
        server->executor = calloc(1, sizeof *server->executor);
        if (server->executor == NULL) return NULL;
        struct session *session = &server->executor->session;
        session->server = server;
        session->flags = SESSION_AUTHENTICATED;
        memcpy(session->address, "another node", sizeof "another node");
    }
    return server->executor;
}

void forward_close(struct server *server)
{
    if (server->executor == NULL) return;
    forward_arguments_deinit(&server->executor->arguments);
    free(server->executor);
    server->executor = NULL;
}

struct context {
    struct server *server;
    struct executor *executor;
    struct node_execution *execution;
    struct forward_reader reader;
};

/* An error for a reply that starts with a result. */
static void fail(struct context *context, const char *error)
{
    struct buffer *reply = context->execution->reply;
    reply->size = reply->head;
    forward_put_u8(reply, FORWARD_FAILED);
    forward_put_text(reply, bytes_of_text(error));
}

static const char malformed[] = "ERR a request from another node cannot be understood";

static struct call call_of(struct context *context, int version, uint16_t bucket)
{
    const struct forward_arguments *arguments = &context->executor->arguments;
    return (struct call){.server = context->server,
        .session = &context->executor->session,
        .node = context->server->node,
        .argc = arguments->argc,
        .argv = arguments->argv,
        .out = context->execution->reply,
        .version = version == 3 ? 3 : 2,
        .bucket = bucket,
        .range = context->execution->range,
        .view = NODE_COMMITTED};
}

/* The command, if it is one that may be run for others in this range; else its error is replied. */
static const struct command *resolve(struct context *context, const struct call *call)
{
    const struct command *command = command_resolve(call->argc, call->argv, call->out);
    uint16_t range;
    if (command == NULL) return NULL;
    if ((command->flags & (COMMAND_KEYS | COMMAND_WRAPS)) == 0 ||
        ((command->flags & COMMAND_IN_MULTI) != 0)) {
        resp_error(call->out, "ERR '%s' is not for other nodes to run", command->name);
    } else if (!dispatch_keys_fit(command, call->argc, call->argv)) {
        resp_error(call->out, "ERR key is longer than 400 bytes");
    } else if (!command_range(call->node, command, call->argc, call->argv, &range) ||
        (range != 0 && range != context->execution->range)) {
        resp_error(call->out, "%s", CROSSSLOT_ERROR);
    } else {
        return command;
    }
    return NULL;
}

static bool execute_command(struct context *context)
{
    struct node_execution *execution = context->execution;
    int version = forward_get_u8(&context->reader);
    uint16_t bucket = forward_get_u16(&context->reader);
    if (!forward_get_arguments(&context->reader, &context->executor->arguments)) {
        resp_error(execution->reply, "%s", malformed);
        return true;
    }
    struct call call = call_of(context, version, bucket);
    call.command = resolve(context, &call);
    if (call.command == NULL) return true;
    if ((call.command->flags & COMMAND_WRITE) == 0) {
        dispatch_run(&call);
        execution->ticket = dispatch_read_ticket(&call, NODE_COMMITTED);
        return true;
    }
    enum err err = node_admit(call.node, execution->body.size);
    if (err == ERR_AGAIN) return false;
    if (err != OK) {
        resp_error(call.out, "%s", dispatch_refusal(err));
        return true;
    }
    return dispatch_transact(&call, &execution->ticket);
}

/* Reads on over the watched keys; false: one has changed. */
static bool watched_unchanged(struct context *context)
{
    struct forward_reader *reader = &context->reader;
    bool same = true;
    uint32_t count = forward_get_u32(reader);
    for (uint32_t i = 0; i < count && !reader->failed; i++) {
        uint16_t bucket = forward_get_u16(reader);
        uint64_t version = forward_get_u64(reader);
        uint64_t token = forward_get_u64(reader);
        struct bytes key = forward_get_text(reader);
        if (reader->failed || key.size > KEY_SIZE_MAX) {
            reader->failed = true;
            break;
        }
        if (transaction_version(context->server->node, bucket, key) != version ||
            (version == 0 && !transaction_watch_untouched(context->server, token, bucket, key)))
            same = false;
    }
    return same;
}

/* Runs the commands in the open transaction, each reply behind its size. False: an error is replied instead. */
static bool run_commands(struct context *context, int version, bool *wrote_out)
{
    struct buffer *reply = context->execution->reply;
    uint32_t count = forward_get_u32(&context->reader);
    *wrote_out = false;
    for (uint32_t i = 0; i < count; i++) {
        uint16_t bucket = forward_get_u16(&context->reader);
        if (!forward_get_arguments(&context->reader, &context->executor->arguments)) return false;
        struct call call = call_of(context, version, bucket);
        call.view = NODE_PENDING;
        call.in_exec = true;
        forward_put_u32(reply, 0);
        size_t mark = reply->size - reply->head;
        call.command = resolve(context, &call);
        if (call.command != NULL) {
            dispatch_run(&call);
            *wrote_out |= (call.command->flags & COMMAND_WRITE) != 0;
        }
        if (call.abort) {
            struct buffer text = {0};
            transaction_abort_error(&text, call.retry);
            /* as texts are: without the '-' and the end of the line */
            struct bytes line = buffer_view(&text);
            reply->size = reply->head;
            forward_put_u8(reply, FORWARD_FAILED);
            forward_put_text(
                reply, line.size > 3 ? bytes_of(line.at + 1, line.size - 3) : bytes_of("", 0));
            buffer_deinit(&text);
            return false;
        }
        size_t size = reply->size - reply->head - mark;
        if (!reply->failed) store_u32(reply->at + reply->head + mark - 4, (uint32_t)size);
    }
    return true;
}

static bool execute_exec(struct context *context)
{
    struct node_execution *execution = context->execution;
    struct node *node = context->server->node;
    int version = forward_get_u8(&context->reader);
    bool wrote = false;
    enum err err = node_admit(node, execution->body.size);
    if (err == ERR_AGAIN) return false;
    if (err != OK) {
        fail(context, dispatch_refusal(err));
        return true;
    }
    node_txn_begin(node);
    bool same = watched_unchanged(context);
    forward_put_u8(execution->reply, same ? FORWARD_DONE : FORWARD_CHANGED);
    bool keep = same && run_commands(context, version, &wrote);
    if (context->reader.failed) {
        keep = false;
        fail(context, malformed);
    }
    if (keep && wrote) {
        execution->ticket = node_txn_commit(node);
    } else {
        node_txn_abort(node);
    }
    if (execution->ticket == 0)
        execution->ticket = node_read_ticket(node, execution->range, NODE_PENDING);
    return true;
}

static bool execute_watch(struct context *context)
{
    struct node_execution *execution = context->execution;
    struct server *server = context->server;
    const struct forward_arguments *arguments = &context->executor->arguments;
    uint16_t bucket = forward_get_u16(&context->reader);
    if (!forward_get_arguments(&context->reader, &context->executor->arguments)) {
        fail(context, malformed);
        return true;
    }
    forward_put_u8(execution->reply, FORWARD_DONE);
    for (uint32_t i = 0; i < arguments->argc; i++) {
        struct bytes key = arguments->argv[i];
        uint64_t version = 0, token = 0;
        if (key.size <= KEY_SIZE_MAX) {
            version = transaction_version(server->node, bucket, key);
            if (version == 0)
                token = transaction_watch_absent(server, execution->range, bucket, key);
        }
        forward_put_u64(execution->reply, version);
        forward_put_u64(execution->reply, token);
    }
    execution->ticket = node_read_ticket(server->node, execution->range, NODE_PENDING);
    return true;
}

static bool execute_key(struct context *context)
{
    struct node_execution *execution = context->execution;
    struct forward_key request = {0};
    struct forward_answer answer = {
        .status = 400, .code = bytes_of_text("bad_request"), .message = bytes_of_text(malformed)};
    forward_get_key(&context->reader, &request);
    bool legal = forward_at_end(&context->reader) && request.key.size <= KEY_SIZE_MAX &&
        request.body.size <= VALUE_SIZE_MAX && request.client.size <= ONCE_CLIENT_MAX &&
        request.ttl_ms <= INT64_MAX / 2 &&
        node_range_of(context->server->node, request.key) == execution->range;
    if (legal &&
        !http_key_evaluate(
            context->server, execution->range, &request, &answer, &execution->ticket))
        return false;
    forward_put_answer(execution->reply, &answer);
    return true;
}

bool forward_execute(void *ctx, struct node_execution *execution)
{
    struct server *server = ctx;
    struct context context = {.server = server,
        .executor = executor_of(server),
        .execution = execution,
        .reader = {.rest = execution->body}};
    execution->ticket = 0;
    if (context.executor == NULL) return false;
    enum forward_kind kind = forward_get_head(&context.reader);
    bool done = true;
    switch (kind) {
    case FORWARD_COMMAND:
        done = execute_command(&context);
        break;
    case FORWARD_EXEC:
        done = execute_exec(&context);
        break;
    case FORWARD_WATCH:
        done = execute_watch(&context);
        break;
    case FORWARD_KEY:
        done = execute_key(&context);
        break;
    case FORWARD_COUNT:
    case FORWARD_KEYS:
    case FORWARD_RANDOM:
    case FORWARD_CLEAR:
    case FORWARD_PAGE:
    case FORWARD_BUCKET:
        done = scatter_execute(server, kind, &context.reader, execution);
        break;
    default:
        fail(&context, malformed);
        break;
    }
    if (!done) execution->reply->size = execution->reply->head;
    return done;
}
