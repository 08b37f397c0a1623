/* HTTP: libmicrohttpd behind the gate, inside the loop.
 *
 * Nothing here has a thread: the library runs in external-epoll mode, and its epoll descriptor and the
 * gate's are watched by the loop. turn() alternates between moving bytes and letting the library run until
 * neither has anything to do. The library never listens and never sees a client: it gets the other
 * ends of the gate's socket pairs (server/http_gate.c says why).
 *
 * A request becomes a `struct request` when its line is read and ends in completed(). The library calls
 * handle() for its head, for each piece of its body and, last, when it is whole; every answer is given
 * at that last call, so that a connection is in step whatever was refused. In between a request may be
 * suspended: its password is being verified, its write waits for room, its answer waits for a ticket, other nodes
 * are asked, a backup's next bytes are not there yet. Whoever ends the wait resumes
 * it, and handle() goes on where `step` says.
 *
 * Requests to a key are evaluated by server/http_key.c, here or where the key's range is led. Also an answer that
 * only read (412, 404) waits for its ticket, as it might tell of a write that is never acknowledged, or be old. */

#include "server/http_internal.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/check.h"
#include "base/logger.h"

enum { BACKUPS_MAX = 2, LIBRARY_MEMORY = 64 << 10 };

uint64_t http_now_ns(const struct http *http)
{
    return http->server->io.clock.monotonic_ns(http->server->io.clock.ctx);
}

void request_suspend(struct request *request)
{
    ASSERT(!request->suspended);
    request->suspended = true;
    MHD_suspend_connection(request->link->connection);
}

void request_resume(struct request *request)
{
    if (!request->suspended) return;
    request->suspended = false;
    request->http->library = true;
    MHD_resume_connection(request->link->connection);
}

void request_leave_admission(struct request *request)
{
    if (!request->in_admission) return;
    struct request **at = &request->http->admission;
    while (*at != request)
        at = &(*at)->next_admission;
    *at = request->next_admission;
    request->in_admission = false;
}

void request_count_bytes(struct request *request)
{
    size_t bytes = request->body.capacity + request->value.capacity;
    request->http->server->client_bytes += bytes;
    request->http->server->client_bytes -= request->counted;
    request->counted = bytes;
}

/* ---- answers ---- */

struct outcome outcome_of(unsigned status, const char *code, const char *message)
{
    return (struct outcome){.status = status, .code = code, .message = message};
}

void response_header(struct MHD_Response *response, const char *name, const char *value)
{
    if (MHD_add_response_header(response, name, value) != MHD_YES)
        log_warn("header not set", "name=%s", name);
}

enum MHD_Result request_queue(
    struct request *request, unsigned status, const char *type, struct MHD_Response *response)
{
    struct http *http = request->http;
    if (response == NULL) return MHD_NO;
    if (type != NULL) response_header(response, "Content-Type", type);
    response_header(response, "X-Content-Type-Options", "nosniff");
    enum MHD_Result result = MHD_queue_response(request->link->connection, status, response);
    MHD_destroy_response(response);
    request->answered = true;
    http->stats.answers[status / 100 < 6 ? status / 100 : 0]++;
    return result;
}

struct MHD_Response *response_of(struct bytes body)
{
    /* the library's parameter is not const, but it only reads what it is told to copy */
    union {
        const uint8_t *from;
        void *to;
    } at = {.from = body.at};
    return MHD_create_response_from_buffer(body.size, at.to, MHD_RESPMEM_MUST_COPY);
}

enum MHD_Result request_answer_buffer(
    struct request *request, unsigned status, const char *type, struct buffer *body)
{
    struct MHD_Response *response = response_of(buffer_view(body));
    buffer_deinit(body);
    if (response != NULL) response_header(response, "Cache-Control", "no-store");
    return request_queue(request, status, type, response);
}

enum MHD_Result request_answer_value(struct request *request, struct bytes value)
{
    char tag[32];
    struct MHD_Response *response = response_of(value);
    if (response == NULL) return MHD_NO;
    snprintf(tag, sizeof tag, "\"%llu\"", (unsigned long long)request->outcome.version);
    response_header(response, "ETag", tag);
    response_header(response, "Cache-Control", "no-cache");
    return request_queue(request, 200, "application/octet-stream", response);
}

enum MHD_Result request_answer(struct request *request)
{
    const struct outcome *outcome = &request->outcome;
    struct buffer body = {0};
    char text[32];
    enum err err = OK;
    if (outcome->value) return request_answer_value(request, buffer_view(&request->value));
    if (outcome->page)
        return request_answer_buffer(request, 200, "application/json", &request->value);
    if (outcome->code != NULL) {
        err = buffer_printf(&body, "{\"error\":{\"code\":\"%s\",\"message\":", outcome->code);
        if (err == OK) err = http_json_string(&body, bytes_of_text(outcome->message));
        if (err == OK) err = buffer_append(&body, "}}\n", 3);
    }
    struct MHD_Response *response = err == OK ? response_of(buffer_view(&body)) : NULL;
    buffer_deinit(&body);
    if (response == NULL) return MHD_NO;
    if (outcome->version != 0) {
        snprintf(text, sizeof text, "\"%llu\"", (unsigned long long)outcome->version);
        response_header(response, "ETag", text);
    }
    if (outcome->allow != NULL) response_header(response, "Allow", outcome->allow);
    if (outcome->challenge != NULL)
        response_header(response, "WWW-Authenticate", outcome->challenge);
    if (outcome->retry_s != 0) {
        snprintf(text, sizeof text, "%u", outcome->retry_s);
        response_header(response, "Retry-After", text);
    }
    response_header(response, "Cache-Control", "no-store");
    return request_queue(
        request, outcome->status, outcome->code != NULL ? "application/json" : NULL, response);
}

enum MHD_Result request_answer_error(
    struct request *request, unsigned status, const char *code, const char *message)
{
    request->outcome = outcome_of(status, code, message);
    return request_answer(request);
}

enum MHD_Result request_answer_err(struct request *request, enum err err)
{
    switch (err) {
    case ERR_CORRUPT:
        return request_answer_error(
            request, 500, "corrupt", "the stored bytes fail their checksum");
    case ERR_NOMEM:
        return request_answer_error(request, 503, "no_memory", "the server is out of memory");
    default:
        break;
    }
    return request_answer_error(request, 500, "internal", err_text(err));
}

/* ---- what a request asks for ---- */

enum err request_query(struct request *request, struct parameter *parameters, size_t count)
{
    struct bytes rest = request->target.query;
    struct bytes name;
    struct bytes value;
    while (http_query_next(&rest, &name, &value)) {
        size_t i = 0;
        while (i < count && !bytes_equal(name, bytes_of_text(parameters[i].name)))
            i++;
        if (i == count || parameters[i].found) return ERR_INVALID;
        parameters[i].found = true;
        TRY(http_percent_decode(
            value, true, parameters[i].at, sizeof parameters[i].at, &parameters[i].size));
    }
    return OK;
}

struct bytes parameter_value(const struct parameter *parameter)
{
    return bytes_of(parameter->at, parameter->size);
}

static void refuse(struct request *request, struct outcome outcome)
{
    if (request->outcome.status == 0) request->outcome = outcome;
}

static void route_key(struct request *request, struct bytes text)
{
    request->route = ROUTE_KEY;
    switch (http_percent_decode(text, false, request->key, KEY_SIZE_MAX, &request->key_size)) {
    case OK:
        return;
    case ERR_TOO_LARGE:
        refuse(request, outcome_of(400, "key_too_large", "the key is over the limit of 400 bytes"));
        return;
    default:
        refuse(request, outcome_of(400, "bad_key", "the key holds a bad percent escape"));
    }
}

static void route_bucket(struct request *request, struct bytes rest)
{
    const uint8_t *slash = memchr(rest.at, '/', rest.size);
    struct bytes name = bytes_of(rest.at, slash == NULL ? rest.size : (size_t)(slash - rest.at));
    rest = bytes_of(rest.at + name.size, rest.size - name.size);
    bool one = bytes_have_prefix(rest, bytes_of_text("/kv/"));
    if (!one && !bytes_equal(rest, bytes_of_text("/kv"))) return;
    size_t size = 0;
    uint64_t number;
    if (http_percent_decode(
            name, false, (uint8_t *)request->bucket_name, NODE_BUCKET_NAME_MAX, &size) != OK ||
        size == 0 || memchr(request->bucket_name, 0, size) != NULL)
        refuse(request,
            outcome_of(400, "bad_bucket",
                "a bucket is a number up to 15, or a letter and up to 63 letters, digits, "
                "'_', '.' or '-'"));
    if (http_decimal(bytes_of(request->bucket_name, size), NODE_BUCKETS_NUMBERED - 1, &number)) {
        request->bucket = (uint16_t)number;
    } else {
        request->has_bucket = true;
    }
    request->route = ROUTE_KEYS;
    if (one) route_key(request, bytes_of(rest.at + 4, rest.size - 4));
}

static void find_route(struct request *request)
{
    static const struct {
        const char *path;
        enum route route;
    } fixed[] = {
        {"/kv", ROUTE_KEYS},
        {"/status", ROUTE_STATUS},
        {"/metrics", ROUTE_METRICS},
        {"/health/live", ROUTE_LIVE},
        {"/health/ready", ROUTE_READY},
        {"/backup", ROUTE_BACKUP},
    };
    struct bytes path = request->target.path;
    if (bytes_have_prefix(path, bytes_of_text("/kv/"))) {
        route_key(request, bytes_of(path.at + 4, path.size - 4));
        return;
    }
    static const struct {
        const char *path;
        enum node_admin admin;
    } changes[] = {
        {"/admin/member/remove", NODE_MEMBER_REMOVE},
        {"/admin/member/replace", NODE_MEMBER_REPLACE},
        {"/admin/leader/transfer", NODE_LEADER_TRANSFER},
    };
    for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) {
        if (!bytes_equal(path, bytes_of_text(changes[i].path))) continue;
        request->route = ROUTE_ADMIN;
        request->admin = changes[i].admin;
        return;
    }
    if (bytes_have_prefix(path, bytes_of_text("/buckets/"))) {
        route_bucket(request, bytes_of(path.at + 9, path.size - 9));
        return;
    }
    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++) {
        if (bytes_equal(path, bytes_of_text(fixed[i].path))) request->route = fixed[i].route;
    }
    if (request->route != ROUTE_NONE) return;
    if (web_asset_find(path, &request->asset)) request->route = ROUTE_PAGE;
}

static enum MHD_Result each_field(
    void *ctx, enum MHD_ValueKind kind, const char *name, const char *value)
{
    struct request *request = ctx;
    struct bytes text = bytes_of_text(name);
    struct bytes *target = http_text_equal(text, "host") ? &request->host
        : http_text_equal(text, "origin")                ? &request->origin
        : http_text_equal(text, "if-match")              ? &request->if_match
        : http_text_equal(text, "if-none-match")         ? &request->if_none_match
        : http_text_equal(text, "authorization")         ? &request->authorization
        : http_text_equal(text, "duramen-client")        ? &request->client
        : http_text_equal(text, "duramen-sequence")      ? &request->sequence
                                                         : NULL;
    (void)kind;
    if (target == NULL) return MHD_YES;
    if (target->at != NULL) request->repeated = true;
    *target = bytes_of_text(value == NULL ? "" : value);
    return MHD_YES;
}

/* A name in our own list, or the very address the client has reached us at. What a page of another
 * site can make a browser send here is a name it controls (DNS rebinding), never one of these. */
static bool host_allowed(struct request *request, struct bytes host)
{
    struct server *server = request->http->server;
    struct bytes name;
    struct bytes listen;
    uint16_t port;
    if (http_host_parse(host, &name, &port) != OK) return false;
    if (http_text_equal(name, "localhost") || http_text_equal(name, "127.0.0.1") ||
        http_text_equal(name, "::1"))
        return true;
    if (server->config.http != NULL &&
        http_host_parse(bytes_of_text(server->config.http), &listen, &port) == OK &&
        http_names_equal(name, listen))
        return true;
    const char *at = server->config.allowed_hosts;
    while (at != NULL && *at != 0) {
        size_t size = strcspn(at, ", ");
        if (size > 0 && http_names_equal(name, bytes_of(at, size))) return true;
        at += size;
        at += strspn(at, ", ");
    }
    char text[64];
    if (name.size >= sizeof text || request->link->gate == NULL) return false;
    memcpy(text, name.at, name.size);
    text[name.size] = 0;
    const struct sockaddr_storage *local = gate_local(request->link->gate);
    struct in_addr four;
    struct in6_addr six;
    if (local->ss_family == AF_INET && inet_pton(AF_INET, text, &four) == 1)
        return four.s_addr == ((const struct sockaddr_in *)local)->sin_addr.s_addr;
    if (local->ss_family != AF_INET6) return false;
    const struct in6_addr *own = &((const struct sockaddr_in6 *)local)->sin6_addr;
    if (inet_pton(AF_INET6, text, &six) == 1) return memcmp(&six, own, sizeof six) == 0;
    return inet_pton(AF_INET, text, &four) == 1 && IN6_IS_ADDR_V4MAPPED(own) &&
        memcmp(own->s6_addr + 12, &four, 4) == 0;
}

bool request_changes_state(const struct request *request)
{
    return request->method != METHOD_GET && request->method != METHOD_HEAD;
}

static void check_browser(struct request *request)
{
    struct bytes authority = request->target.authority;
    struct bytes origin;
    if (request->repeated) {
        refuse(request,
            outcome_of(400, "bad_request", "a header field that must be single came twice"));
        return;
    }
    /* in absolute form the target's authority counts, and Host with it */
    if ((request->host.at != NULL && !host_allowed(request, request->host)) ||
        (authority.size > 0 && !host_allowed(request, authority))) {
        refuse(request,
            outcome_of(
                421, "wrong_host", "this Host is not served here; add it with --allowed-hosts"));
        return;
    }
    if (!request_changes_state(request) || request->origin.at == NULL) return;
    if (http_origin_host(request->origin, &origin) != OK ||
        !http_names_equal(origin, request->host))
        refuse(
            request, outcome_of(403, "foreign_origin", "writes from another origin are refused"));
}

static void on_authenticated(void *ctx, enum auth_result result)
{
    struct request *request = ctx;
    request->auth = result;
    if (request->link == NULL) { /* completed meanwhile: see completed() */
        free(request);
        return;
    }
    request->step = STEP_BODY;
    request_resume(request);
}

static void take_auth(struct request *request, enum auth_result result)
{
    request->auth = result;
    switch (result) {
    case AUTH_OK:
    case AUTH_WAIT:
        return;
    case AUTH_WRONG:
        refuse(request,
            (struct outcome){.status = 401,
                .code = "unauthorized",
                .message = "a password is needed",
                .challenge = "Basic realm=\"duramen\", charset=\"UTF-8\""});
        return;
    case AUTH_LIMITED:
        refuse(request,
            (struct outcome){.status = 429,
                .code = "too_many_attempts",
                .message = "too many wrong passwords from this address; wait",
                .retry_s = 1});
        return;
    }
}

static void check_password(struct request *request)
{
    struct bytes text = request->authorization;
    uint8_t decoded[1024];
    size_t size;
    if (!auth_required(request->http->server) || request->route == ROUTE_LIVE ||
        request->route == ROUTE_READY) {
        request->auth = AUTH_OK;
        return;
    }
    struct bytes password = {0};
    if (text.size > 7 && http_text_equal(bytes_of(text.at, 7), "bearer ")) {
        password = bytes_of(text.at + 7, text.size - 7);
    } else if (text.size > 6 && http_text_equal(bytes_of(text.at, 6), "basic ") &&
        http_base64_decode(bytes_of(text.at + 6, text.size - 6), decoded, sizeof decoded, &size) ==
            OK) {
        const uint8_t *colon = memchr(decoded, ':', size);
        if (colon != NULL) password = bytes_of(colon + 1, size - (size_t)(colon - decoded) - 1);
    }
    if (password.size == 0) {
        take_auth(request, AUTH_WRONG);
        return;
    }
    uint32_t source = request->link->gate == NULL ? 0 : gate_source(request->link->gate);
    take_auth(
        request, auth_check(request->http->server, password, source, on_authenticated, request));
}

static void check_method(struct request *request)
{
    const char *allow = NULL;
    switch (request->route) {
    case ROUTE_NONE:
        refuse(request, outcome_of(404, "not_found", "there is nothing at this path"));
        return;
    case ROUTE_KEY:
        if (request->method == METHOD_OTHER || request->method == METHOD_POST)
            allow = "GET, HEAD, PUT, DELETE";
        break;
    case ROUTE_ADMIN:
        if (request->method != METHOD_POST) allow = "POST";
        break;
    case ROUTE_BACKUP:
        if (request->method != METHOD_GET) allow = "GET";
        break;
    case ROUTE_KEYS:
    case ROUTE_STATUS:
    case ROUTE_METRICS:
    case ROUTE_LIVE:
    case ROUTE_READY:
    case ROUTE_PAGE:
        if (request->method != METHOD_GET && request->method != METHOD_HEAD) allow = "GET, HEAD";
        break;
    }
    if (allow == NULL) return;
    struct outcome outcome =
        outcome_of(405, "method_not_allowed", "this path does not take this method");
    outcome.allow = allow;
    refuse(request, outcome);
}

/* ---- backup ---- */

static void wake_loop(void *ctx)
{
    struct http *http = ctx;
    loop_wake(http->server->loop);
}

static ssize_t read_stream(void *ctx, uint64_t position, char *at, size_t capacity)
{
    struct request *request = ctx;
    size_t size = 0;
    (void)position;
    switch (backup_stream_read(request->stream, at, capacity, &size)) {
    case OK:
        return (ssize_t)size;
    case ERR_AGAIN:
        request_suspend(request);
        return 0;
    case ERR_NOT_FOUND:
        return MHD_CONTENT_READER_END_OF_STREAM;
    default:
        /* the transfer ends without its last chunk, so the client knows that it is incomplete */
        return MHD_CONTENT_READER_END_WITH_ERROR;
    }
}

/* A backup is of one moment of one node, so the node must hold every range. */
static bool holds_all(const struct node *node)
{
    for (uint32_t range = 1; range <= node_ranges(node); range++) {
        if (!node_alone(node) && !node_has(node, (uint16_t)range)) return false;
    }
    return true;
}

static enum MHD_Result start_backup(struct request *request)
{
    struct http *http = request->http;
    struct node *node = http->server->node;
    if (request->target.query.size > 0)
        return request_answer_error(request, 400, "bad_query", "a backup takes no parameters");
    if (!holds_all(node))
        return request_answer_error(request, 409, "not_whole",
            "this node does not hold every range, so its backup would not be whole; with more "
            "nodes than replicas, raise the replicas or take the backup of a node that has all");
    if (http->stream_count >= BACKUPS_MAX) {
        request->outcome =
            outcome_of(503, "busy", "two backups are running already; try again later");
        request->outcome.retry_s = 30;
        return request_answer(request);
    }
    enum err err = backup_stream_open(node_engine(node), node_cluster_id(node), node_name(node),
        wake_loop, http, &request->stream);
    if (err != OK) return request_answer_err(request, err);
    http->stream_count++;
    request->next_stream = http->streams;
    http->streams = request;
    request->step = STEP_STREAM;
    struct MHD_Response *response =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 128 << 10, read_stream, request, NULL);
    if (response == NULL) return MHD_NO;
    response_header(response, "Content-Disposition", "attachment; filename=\"duramen.backup\"");
    response_header(response, "Cache-Control", "no-store");
    return request_queue(request, 200, "application/octet-stream", response);
}

static void end_stream(struct request *request)
{
    struct http *http = request->http;
    if (request->stream == NULL) return;
    struct request **at = &http->streams;
    while (*at != request)
        at = &(*at)->next_stream;
    *at = request->next_stream;
    backup_stream_cancel(request->stream);
    struct dying_stream *dying = calloc(1, sizeof *dying);
    if (dying == NULL) { /* nowhere to remember it: wait for it now */
        (void)backup_stream_reap(request->stream, true);
        http->stream_count--;
    } else {
        dying->stream = request->stream;
        dying->next = http->dying;
        http->dying = dying;
    }
    request->stream = NULL;
}

static void poll_streams(struct http *http, bool wait)
{
    for (struct request *request = http->streams; request != NULL; request = request->next_stream) {
        if (backup_stream_poll(request->stream)) request_resume(request);
    }
    struct dying_stream **at = &http->dying;
    while (*at != NULL) {
        struct dying_stream *dying = *at;
        if (backup_stream_reap(dying->stream, wait)) {
            *at = dying->next;
            http->stream_count--;
            free(dying);
        } else {
            at = &dying->next;
        }
    }
}

/* ---- pages and reports ---- */

static enum MHD_Result answer_page(struct request *request)
{
    const struct web_asset *asset = &request->asset;
    if (request->if_none_match.at != NULL) {
        bool match;
        /* one build has one content: its tag is a number made of the content */
        if (http_tags_match(request->if_none_match, asset->version, true, &match) == OK && match) {
            request->outcome = (struct outcome){.status = 304, .version = asset->version};
            return request_answer(request);
        }
    }
    char tag[32];
    struct MHD_Response *response = response_of(asset->content);
    if (response == NULL) return MHD_NO;
    snprintf(tag, sizeof tag, "\"%llu\"", (unsigned long long)asset->version);
    response_header(response, "ETag", tag);
    response_header(response, "Cache-Control", "no-cache");
    response_header(response, "Content-Security-Policy",
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
    response_header(response, "Referrer-Policy", "no-referrer");
    response_header(response, "X-Frame-Options", "DENY");
    return request_queue(request, 200, asset->type, response);
}

static enum MHD_Result answer_report(struct request *request, const char *type,
    enum err (*report)(struct server *server, struct buffer *out))
{
    struct buffer out = {0};
    enum err err = report(request->http->server, &out);
    if (err == OK) return request_answer_buffer(request, 200, type, &out);
    buffer_deinit(&out);
    return request_answer_err(request, err);
}

static enum MHD_Result answer_ready(struct request *request)
{
    const char *why = report_unready(request->http->server);
    struct buffer out = {0};
    if (why != NULL) return request_answer_error(request, 503, "not_ready", why);
    if (buffer_printf(&out, "{\"ready\":true}\n") != OK)
        return request_answer_err(request, ERR_NOMEM);
    return request_answer_buffer(request, 200, "application/json", &out);
}

static enum MHD_Result run(struct request *request)
{
    struct buffer out = {0};
    switch (request->route) {
    case ROUTE_KEY:
        return request_run_key(request);
    case ROUTE_KEYS:
        return request_list_keys(request);
    case ROUTE_STATUS:
        return answer_report(request, "application/json", report_status);
    case ROUTE_METRICS:
        return answer_report(request, "text/plain; version=0.0.4; charset=utf-8", report_metrics);
    case ROUTE_LIVE:
        if (buffer_printf(&out, "{\"live\":true}\n") != OK)
            return request_answer_err(request, ERR_NOMEM);
        return request_answer_buffer(request, 200, "application/json", &out);
    case ROUTE_READY:
        return answer_ready(request);
    case ROUTE_BACKUP:
        return start_backup(request);
    case ROUTE_ADMIN:
        return request_start_admin(request);
    case ROUTE_PAGE:
        return answer_page(request);
    case ROUTE_NONE:
        break;
    }
    UNREACHABLE();
}

/* ---- the library's callbacks ---- */

/* The request line is read: the one place where the target's bytes are still as they came. */
static void *begin(void *ctx, const char *target, struct MHD_Connection *connection)
{
    struct http *http = ctx;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    struct link *link = info == NULL ? NULL : info->socket_context;
    struct request *request = link == NULL ? NULL : calloc(1, sizeof *request);
    if (request == NULL) return NULL;
    request->http = http;
    request->link = link;
    request->began_ns = http_now_ns(http);
    link->request = request;
    struct bytes text = bytes_of_text(target);
    if (buffer_append(&request->target_text, text.at, text.size) != OK)
        refuse(request, outcome_of(503, "no_memory", "the server is out of memory"));
    http->server->counters.http_requests++;
    return request;
}

static enum method method_of(const char *method)
{
    if (strcmp(method, "GET") == 0) return METHOD_GET;
    if (strcmp(method, "HEAD") == 0) return METHOD_HEAD;
    if (strcmp(method, "PUT") == 0) return METHOD_PUT;
    if (strcmp(method, "DELETE") == 0) return METHOD_DELETE;
    if (strcmp(method, "POST") == 0) return METHOD_POST;
    return METHOD_OTHER;
}

/* Head complete. */
static enum MHD_Result start(struct request *request, const char *method)
{
    request->method = method_of(method);
    request->step = STEP_BODY;
    struct bytes text = buffer_view(&request->target_text);
    if (text.size > 0 && http_target_parse(text, &request->target) == OK) {
        find_route(request);
    } else {
        request->target = (struct http_target){0}; /* OPTIONS *: no route */
    }
    MHD_get_connection_values(request->link->connection, MHD_HEADER_KIND, each_field, request);
    check_browser(request);
    if (request->outcome.status == 421 || request->outcome.status == 403) return MHD_YES;
    check_password(request);
    if (request->auth == AUTH_OK || request->auth == AUTH_WAIT) check_method(request);
    if (request->auth == AUTH_WAIT) {
        request->step = STEP_AUTH;
        request_suspend(request);
    }
    return MHD_YES;
}

static void take_body(struct request *request, const char *at, size_t size)
{
    struct server *server = request->http->server;
    if (request->outcome.status != 0 || request->method != METHOD_PUT ||
        request->route != ROUTE_KEY)
        return;
    if (server->config.client_memory > 0 &&
        server->client_bytes + size > server->config.client_memory) {
        request->outcome =
            outcome_of(503, "busy", "the memory for clients is used up; try again later");
        request->outcome.retry_s = 1;
    } else if (request->body.size + size > VALUE_SIZE_MAX) {
        request->outcome =
            outcome_of(413, "too_large", "the value is over the limit of 16777216 bytes");
    } else if (buffer_append(&request->body, at, size) != OK) {
        request->outcome = outcome_of(503, "no_memory", "the server is out of memory");
    }
    if (request->outcome.status != 0) buffer_deinit(&request->body);
    request_count_bytes(request);
}

static enum MHD_Result handle(void *ctx, struct MHD_Connection *connection, const char *url,
    const char *method, const char *version, const char *data, size_t *size, void **context)
{
    struct request *request = *context;
    (void)ctx;
    (void)connection;
    (void)url;
    (void)version;
    if (request == NULL || request->link->gate == NULL) return MHD_NO;
    switch (request->step) {
    case STEP_NEW:
        return start(request, method);
    case STEP_AUTH: /* on_authenticated() moves on */
    case STEP_COMMIT:
    case STEP_REMOTE:
        UNREACHABLE();
    case STEP_BODY:
        if (request->auth != AUTH_OK) take_auth(request, request->auth);
        if (*size > 0) {
            take_body(request, data, *size);
            *size = 0;
            return MHD_YES;
        }
        if (request->outcome.status != 0) return request_answer(request);
        return run(request);
    case STEP_ADMISSION:
        return request_run_key(request);
    case STEP_ANSWER:
        return request_answer(request);
    case STEP_STREAM:
        break;
    }
    return MHD_NO;
}

/* The answer is out, or the connection failed. */
static void completed(void *ctx, struct MHD_Connection *connection, void **context,
    enum MHD_RequestTerminationCode why)
{
    struct http *http = ctx;
    struct request *request = *context;
    (void)connection;
    if (request == NULL) return;
    *context = NULL;
    if (why == MHD_REQUEST_TERMINATED_COMPLETED_OK) {
        if (http->stats.latency_ns == NULL)
            http->stats.latency_ns = calloc(1, sizeof *http->stats.latency_ns);
        if (http->stats.latency_ns != NULL && request->route != ROUTE_BACKUP)
            histogram_record(http->stats.latency_ns, http_now_ns(http) - request->began_ns);
    }
    struct link *link = request->link;
    if (request->waits_for_ticket) server_unwait(http->server, &request->waiter);
    request_leave_admission(request);
    request_cancel_remote(request);
    end_stream(request);
    buffer_deinit(&request->body);
    buffer_deinit(&request->value);
    request_count_bytes(request);
    buffer_deinit(&request->target_text);
    link->request = NULL;
    if (request->step == STEP_AUTH) {
        request->link = NULL; /* on_authenticated() frees it */
    } else {
        free(request);
    }
    if (link->gate != NULL) gate_completed(link->gate);
}

static void free_link(struct link *link)
{
    if (link->previous != NULL) link->previous->next = link->next;
    if (link->previous == NULL) link->http->links = link->next;
    if (link->next != NULL) link->next->previous = link->previous;
    free(link);
}

static void connection_changed(void *ctx, struct MHD_Connection *connection, void **context,
    enum MHD_ConnectionNotificationCode what)
{
    struct http *http = ctx;
    if (what == MHD_CONNECTION_NOTIFY_CLOSED) {
        if (*context != NULL) free_link(*context);
        *context = NULL;
        return;
    }
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    if (info == NULL) return;
    for (struct link *link = http->links; link != NULL; link = link->next) {
        if (link->known || link->fd != info->connect_fd) continue;
        link->known = true;
        link->connection = connection;
        *context = link;
        return;
    }
}

static void library_log(void *ctx, const char *format, va_list arguments)
{
    char text[256];
    (void)ctx;
    vsnprintf(text, sizeof text, format, arguments);
    text[strcspn(text, "\r\n")] = 0;
    log_debug("libmicrohttpd", "text=\"%s\"", text);
}

/* ---- the gate's callbacks ---- */

static bool adopt(void *ctx, struct gate *gate, int fd, const struct sockaddr *peer, socklen_t size)
{
    struct http *http = ctx;
    struct link *link = calloc(1, sizeof *link);
    if (link == NULL) return false;
    link->http = http;
    link->gate = gate;
    link->fd = fd;
    /* newest first: connection_changed() finds it at once */
    link->next = http->links;
    if (link->next != NULL) link->next->previous = link;
    http->links = link;
    if (MHD_add_connection(http->daemon, fd, peer, size) == MHD_YES) return true;
    free_link(link); /* the library has closed fd */
    return false;
}

static void abandon(void *ctx, struct gate *gate)
{
    struct http *http = ctx;
    struct link *link = http->links;
    while (link != NULL && link->gate != gate)
        link = link->next;
    if (link == NULL) return;
    link->gate = NULL;
    if (!link->known && link->connection == NULL) {
        /* never reported: the library has not looked at it yet, and may still do so */
        return;
    }
    struct request *request = link->request;
    if (request == NULL) return;
    if (request->waits_for_ticket) {
        server_unwait(http->server, &request->waiter);
        request->waits_for_ticket = false;
    }
    request_leave_admission(request);
    request_cancel_remote(request);
    /* a password being verified keeps its request suspended until the verdict comes */
    if (request->step != STEP_AUTH) request_resume(request);
}

/* ---- turns ---- */

static void retry_admissions(struct http *http)
{
    struct request *request = http->admission;
    if (request == NULL) return;
    uint64_t now = http_now_ns(http);
    bool room = node_admit(http->server->node, 0) != ERR_AGAIN;
    struct request *next;
    for (; request != NULL; request = next) {
        next = request->next_admission;
        if (!room && now - request->began_ns <= ADMISSION_MS * MILLISECOND) continue;
        request_leave_admission(request);
        request_resume(request);
    }
}

static void run_library(struct http *http)
{
    MHD_UNSIGNED_LONG_LONG timeout;
    http->library = false;
    for (int round = 0; round < 16; round++) {
        if (MHD_run(http->daemon) != MHD_YES) log_warn("libmicrohttpd could not run", "%s", "");
        if (MHD_get_timeout(http->daemon, &timeout) != MHD_YES || timeout > 0) return;
    }
    http->library = true;
}

static void turn(struct http *http)
{
    if (http->running) return;
    http->running = true;
    retry_admissions(http);
    if (http->streams != NULL || http->dying != NULL) poll_streams(http, false);
    bool more = true;
    for (int round = 0; more && round < 64; round++) {
        more = gates_poll(http->gates);
        if (!more && !http->library) break;
        run_library(http);
        more = true;
    }
    /* the rest in the next turn, after other work of the loop */
    if (more) loop_wake(http->server->loop);
    uint64_t now = http_now_ns(http);
    if (now - http->swept_ns > 250 * MILLISECOND) {
        http->swept_ns = now;
        gates_sweep(http->gates, now);
    }
    http->running = false;
}

static void on_gates(void *ctx)
{
    turn(ctx);
}

static void on_library(void *ctx)
{
    struct http *http = ctx;
    http->library = true;
    turn(http);
}

void http_turn(struct server *server)
{
    struct http *http = server->http;
    if (http == NULL) return;
    if (!http->library && http->admission == NULL && http->streams == NULL && http->dying == NULL &&
        http_now_ns(http) - http->swept_ns <= 250 * MILLISECOND)
        return;
    turn(http);
}

enum err http_open(struct server *server, int listen_fd)
{
    struct http *http = calloc(1, sizeof *http);
    if (http == NULL) return ERR_NOMEM;
    http->server = server;
    http->swept_ns = http_now_ns(http);
    server->http = http;
    http->daemon = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_USE_NO_LISTEN_SOCKET | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0,
        NULL, NULL, handle, http,
        /* first, so that nothing is printed */
        MHD_OPTION_EXTERNAL_LOGGER, library_log, NULL, MHD_OPTION_URI_LOG_CALLBACK, begin, http,
        MHD_OPTION_NOTIFY_COMPLETED, completed, http, MHD_OPTION_NOTIFY_CONNECTION,
        connection_changed, http, MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)GATES_MAX + 64, MHD_OPTION_CONNECTION_TIMEOUT, 0u, /* the gate has better ones */
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)LIBRARY_MEMORY,
        MHD_OPTION_CONNECTION_MEMORY_INCREMENT, (size_t)8192, MHD_OPTION_END);
    enum err err = http->daemon == NULL ? ERR_NOMEM : OK;
    if (err == OK) {
        http->daemon_fd = MHD_get_daemon_info(http->daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
        struct gate_ops ops = {.adopt = adopt, .abandon = abandon, .ctx = http};
        err = gates_open(server, listen_fd, &ops, &http->gates);
    }
    if (err == OK) err = loop_watch(server->loop, http->daemon_fd, on_library, http);
    if (err == OK) err = loop_watch(server->loop, gates_fd(http->gates), on_gates, http);
    if (err == OK) return OK;
    http_close(server);
    return err;
}

void http_stop(struct server *server)
{
    struct http *http = server->http;
    if (http != NULL) gates_drain(http->gates);
}

bool http_busy(const struct server *server)
{
    const struct http *http = server->http;
    return http != NULL && gates_busy(http->gates);
}

void http_close(struct server *server)
{
    struct http *http = server->http;
    if (http == NULL) return;
    server->http = NULL;
    if (http->gates != NULL) {
        loop_unwatch(server->loop, http->daemon_fd);
        loop_unwatch(server->loop, gates_fd(http->gates));
        gates_close(http->gates);
    }
    if (http->daemon != NULL) {
        /* the library must not be stopped with suspended connections */
        for (struct link *link = http->links; link != NULL; link = link->next) {
            if (link->request != NULL) request_resume(link->request);
        }
        run_library(http);
        MHD_stop_daemon(http->daemon);
    }
    while (http->links != NULL)
        free_link(http->links);
    poll_streams(http, true);
    ASSERT(http->streams == NULL);
    free(http->stats.latency_ns);
    free(http);
}

void http_stats(const struct server *server, struct http_stats *stats_out)
{
    const struct http *http = server->http;
    *stats_out = (struct http_stats){0};
    if (http == NULL) return;
    const struct gates_stats *gates = gates_stats(http->gates);
    *stats_out = http->stats;
    stats_out->connections = gates->open;
    stats_out->accepted = gates->accepted;
    stats_out->rejected = gates->rejected;
    stats_out->refused = gates->refused;
    stats_out->timed_out = gates->timed_out;
    stats_out->backups = http->stream_count;
}
