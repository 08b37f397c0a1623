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
 * suspended, for one of four reasons: its password is being verified, its write waits for room, its
 * write waits to be durable, a backup's next bytes are not there yet. Whoever ends the wait resumes
 * it, and handle() goes on where `step` says.
 *
 * Writes are evaluated as RESP commands are: over the pending view, inside one node transaction, answered when
 * the ticket is committed. Also an answer that only read the pending view (412, 404 of a DELETE) waits
 * for the newest pending record, as it might tell of a write that is never acknowledged. */

#include <arpa/inet.h>
#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/check.h"
#include "base/logger.h"
#include "server/command.h"
#include "server/http_backup.h"
#include "server/http_gate.h"
#include "server/http_parse.h"
#include "server/server.h"
#include "web/assets.h"

enum {
    PAGE_LIMIT_DEFAULT = 100,
    PAGE_LIMIT_MAX = 1000,
    PAGE_BYTES_MAX = 1 << 20,
    BACKUPS_MAX = 2,
    ADMISSION_MS = 2000, /* the request deadline */
    LIBRARY_MEMORY = 64 << 10,
};
#define TTL_MS_MAX (UINT64_C(100) * 365 * 86400 * 1000)
#define MILLISECOND UINT64_C(1000000)

enum route {
    ROUTE_NONE,
    ROUTE_KEY,
    ROUTE_KEYS,
    ROUTE_STATUS,
    ROUTE_METRICS,
    ROUTE_LIVE,
    ROUTE_READY,
    ROUTE_BACKUP,
    ROUTE_PAGE,
};

enum step {
    STEP_NEW, /* nothing decided yet */
    STEP_AUTH, /* suspended: auth_check() will tell */
    STEP_BODY, /* body is arriving, or all is there */
    STEP_ADMISSION, /* suspended: no room for the write yet */
    STEP_COMMIT, /* suspended: `outcome` is decided and waits for its ticket */
    STEP_ANSWER, /* `outcome` may be told */
    STEP_STREAM, /* a backup is being sent */
};

enum method { METHOD_GET, METHOD_HEAD, METHOD_PUT, METHOD_DELETE, METHOD_OTHER };

/* What will be answered. */
struct outcome {
    unsigned status;
    const char *code; /* of an error */
    const char *message;
    const char *allow;
    const char *challenge; /* WWW-Authenticate */
    uint64_t version; /* ETag, if not 0 */
    unsigned retry_s;
};

/* Between the gate and a connection of the library; outlives either. */
struct link {
    struct http *http;
    struct gate *gate; /* NULL: the client is gone */
    struct MHD_Connection *connection;
    struct request *request;
    int fd;
    bool known; /* the library has reported the connection */
    struct link *next, *previous;
};

struct request {
    struct http *http;
    struct link *link;
    enum step step;
    enum method method;
    bool suspended;
    bool answered;
    bool waits_for_ticket;
    enum auth_result auth;
    struct buffer target_text;
    struct http_target target;
    enum route route;
    struct web_asset asset;
    bool has_bucket;
    uint16_t bucket;
    char bucket_name[NODE_BUCKET_NAME_MAX + 1];
    uint8_t key[KEY_SIZE_MAX];
    size_t key_size;
    struct buffer body;
    size_t counted; /* of server.client_bytes */
    struct outcome outcome;
    struct ticket_waiter waiter;
    uint64_t began_ns;
    struct request *next_admission;
    bool in_admission;
    struct backup_stream *stream;
    struct request *next_stream;
    /* header fields, as the library holds them */
    struct bytes host, origin, if_match, if_none_match, authorization;
    bool repeated; /* one of these came twice */
};

struct dying_stream {
    struct backup_stream *stream;
    struct dying_stream *next;
};

struct http {
    struct server *server;
    struct gates *gates;
    struct MHD_Daemon *daemon;
    int daemon_fd;
    bool library; /* MHD_run() has something to do */
    bool running; /* inside turn(): no recursion */
    struct link *links;
    struct request *admission; /* wait for room */
    struct request *streams; /* being sent */
    struct dying_stream *dying; /* workers that have not ended yet */
    uint32_t stream_count;
    uint64_t swept_ns;
    struct http_stats stats;
};

static uint64_t now_ns(const struct http *http)
{
    return http->server->io.clock.monotonic_ns(http->server->io.clock.ctx);
}

static void suspend(struct request *request)
{
    ASSERT(!request->suspended);
    request->suspended = true;
    MHD_suspend_connection(request->link->connection);
}

static void resume(struct request *request)
{
    if (!request->suspended) return;
    request->suspended = false;
    request->http->library = true;
    MHD_resume_connection(request->link->connection);
}

static void leave_admission(struct request *request)
{
    if (!request->in_admission) return;
    struct request **at = &request->http->admission;
    while (*at != request)
        at = &(*at)->next_admission;
    *at = request->next_admission;
    request->in_admission = false;
}

static void count_body(struct request *request)
{
    request->http->server->client_bytes += request->body.capacity;
    request->http->server->client_bytes -= request->counted;
    request->counted = request->body.capacity;
}

/* ---- answers ---- */

static struct outcome error(unsigned status, const char *code, const char *message)
{
    return (struct outcome){.status = status, .code = code, .message = message};
}

static void header(struct MHD_Response *response, const char *name, const char *value)
{
    if (MHD_add_response_header(response, name, value) != MHD_YES)
        log_warn("header not set", "name=%s", name);
}

static enum MHD_Result queue(
    struct request *request, unsigned status, const char *type, struct MHD_Response *response)
{
    struct http *http = request->http;
    if (response == NULL) return MHD_NO;
    if (type != NULL) header(response, "Content-Type", type);
    header(response, "X-Content-Type-Options", "nosniff");
    enum MHD_Result result = MHD_queue_response(request->link->connection, status, response);
    MHD_destroy_response(response);
    request->answered = true;
    http->stats.answers[status / 100 < 6 ? status / 100 : 0]++;
    return result;
}

static struct MHD_Response *copied(struct bytes body)
{
    /* the library's parameter is not const, but it only reads what it is told to copy */
    union {
        const uint8_t *from;
        void *to;
    } at = {.from = body.at};
    return MHD_create_response_from_buffer(body.size, at.to, MHD_RESPMEM_MUST_COPY);
}

static enum MHD_Result answer_buffer(
    struct request *request, unsigned status, const char *type, struct buffer *body)
{
    struct MHD_Response *response = copied(buffer_view(body));
    buffer_deinit(body);
    if (response != NULL) header(response, "Cache-Control", "no-store");
    return queue(request, status, type, response);
}

static enum MHD_Result answer(struct request *request)
{
    const struct outcome *outcome = &request->outcome;
    struct buffer body = {0};
    char text[32];
    enum err err = OK;
    if (outcome->code != NULL) {
        err = buffer_printf(&body, "{\"error\":{\"code\":\"%s\",\"message\":", outcome->code);
        if (err == OK) err = http_json_string(&body, bytes_of_text(outcome->message));
        if (err == OK) err = buffer_append(&body, "}}\n", 3);
    }
    struct MHD_Response *response = err == OK ? copied(buffer_view(&body)) : NULL;
    buffer_deinit(&body);
    if (response == NULL) return MHD_NO;
    if (outcome->version != 0) {
        snprintf(text, sizeof text, "\"%llu\"", (unsigned long long)outcome->version);
        header(response, "ETag", text);
    }
    if (outcome->allow != NULL) header(response, "Allow", outcome->allow);
    if (outcome->challenge != NULL) header(response, "WWW-Authenticate", outcome->challenge);
    if (outcome->retry_s != 0) {
        snprintf(text, sizeof text, "%u", outcome->retry_s);
        header(response, "Retry-After", text);
    }
    header(response, "Cache-Control", "no-store");
    return queue(
        request, outcome->status, outcome->code != NULL ? "application/json" : NULL, response);
}

static enum MHD_Result answer_error(
    struct request *request, unsigned status, const char *code, const char *message)
{
    request->outcome = error(status, code, message);
    return answer(request);
}

static enum MHD_Result answer_err(struct request *request, enum err err)
{
    switch (err) {
    case ERR_CORRUPT:
        return answer_error(request, 500, "corrupt", "the stored bytes fail their checksum");
    case ERR_NOMEM:
        return answer_error(request, 503, "no_memory", "the server is out of memory");
    default:
        break;
    }
    return answer_error(request, 500, "internal", err_text(err));
}

/* ---- what a request asks for ---- */

/* The value of a query parameter, decoded; a parameter that comes twice is refused. */
struct parameter {
    const char *name;
    bool found;
    uint8_t at[KEY_SIZE_MAX + 256];
    size_t size;
};

static enum err read_query(struct request *request, struct parameter *parameters, size_t count)
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

static struct bytes value_of(const struct parameter *parameter)
{
    return bytes_of(parameter->at, parameter->size);
}

static bool consistency_valid(const struct parameter *parameter)
{
    return !parameter->found || bytes_equal(value_of(parameter), bytes_of_text("linearizable")) ||
        bytes_equal(value_of(parameter), bytes_of_text("local"));
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
        refuse(request, error(400, "key_too_large", "the key is over the limit of 400 bytes"));
        return;
    default:
        refuse(request, error(400, "bad_key", "the key holds a bad percent escape"));
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
            error(400, "bad_bucket",
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

static bool changes_state(const struct request *request)
{
    return request->method != METHOD_GET && request->method != METHOD_HEAD;
}

static void check_browser(struct request *request)
{
    struct bytes authority = request->target.authority;
    struct bytes origin;
    if (request->repeated) {
        refuse(request, error(400, "bad_request", "a header field that must be single came twice"));
        return;
    }
    /* in absolute form the target's authority counts, and Host with it */
    if ((request->host.at != NULL && !host_allowed(request, request->host)) ||
        (authority.size > 0 && !host_allowed(request, authority))) {
        refuse(request,
            error(421, "wrong_host", "this Host is not served here; add it with --allowed-hosts"));
        return;
    }
    if (!changes_state(request) || request->origin.at == NULL) return;
    if (http_origin_host(request->origin, &origin) != OK ||
        !http_names_equal(origin, request->host))
        refuse(request, error(403, "foreign_origin", "writes from another origin are refused"));
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
    resume(request);
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
        refuse(request, error(404, "not_found", "there is nothing at this path"));
        return;
    case ROUTE_KEY:
        if (request->method == METHOD_OTHER) allow = "GET, HEAD, PUT, DELETE";
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
        error(405, "method_not_allowed", "this path does not take this method");
    outcome.allow = allow;
    refuse(request, outcome);
}

/* ---- values ---- */

/* OK, or the bucket's absence was turned into an outcome. `make`: within a transaction. */
static bool find_bucket(struct request *request, bool make)
{
    struct node *node = request->http->server->node;
    if (!request->has_bucket) return true;
    struct bytes name = bytes_of_text(request->bucket_name);
    enum err err = make ? node_bucket_make(node, name, &request->bucket)
                        : node_bucket_find(node, name, &request->bucket);
    if (err == OK) return true;
    if (err == ERR_NOT_FOUND) {
        request->outcome = error(404, "bucket_not_found", "there is no such bucket");
    } else if (err == ERR_INVALID) {
        request->outcome = error(400, "bad_bucket",
            "a bucket is a number up to 15, or a letter and up to 63 letters, digits, '_', '.' or "
            "'-'");
    } else if (err == ERR_FULL) {
        request->outcome = error(507, "too_many_buckets", "the limit of 1024 buckets is reached");
    } else {
        request->outcome = error(500, "internal", err_text(err));
    }
    return false;
}

/* Evaluates If-Match and If-None-Match; true: go on. version 0: there is no such key. */
static bool conditions_hold(struct request *request, uint64_t version)
{
    bool match;
    if (request->if_match.at != NULL) {
        if (http_tags_match(request->if_match, version, false, &match) != OK) {
            request->outcome = error(400, "bad_condition", "If-Match is not a list of \"version\"");
            return false;
        }
        if (!match) {
            request->outcome =
                error(412, "precondition_failed", "the key's version is another one");
            request->outcome.version = version;
            return false;
        }
    }
    if (request->if_none_match.at != NULL) {
        if (http_tags_match(request->if_none_match, version, true, &match) != OK) {
            request->outcome =
                error(400, "bad_condition", "If-None-Match is not \"*\" or a list of \"version\"");
            return false;
        }
        if (match) {
            request->outcome = changes_state(request)
                ? error(412, "precondition_failed", "the key exists")
                : (struct outcome){.status = 304};
            request->outcome.version = version;
            return false;
        }
    }
    return true;
}

static enum MHD_Result get_key(struct request *request)
{
    struct parameter parameters[] = {{.name = "consistency"}};
    struct value value;
    if (read_query(request, parameters, 1) != OK || !consistency_valid(&parameters[0]))
        return answer_error(request, 400, "bad_query",
            "GET takes ?consistency=linearizable or ?consistency=local, and nothing else");
    if (!find_bucket(request, false)) return answer(request);
    struct server *server = request->http->server;
    enum err err = node_get(server->node, NODE_COMMITTED, request->bucket,
        bytes_of(request->key, request->key_size), &value);
    if (err != OK && err != ERR_NOT_FOUND) return answer_err(request, err);
    if (!conditions_hold(request, err == OK ? value.version : 0)) return answer(request);
    if (err == ERR_NOT_FOUND) {
        server->counters.keyspace_misses++;
        return answer_error(request, 404, "not_found", "there is no such key");
    }
    server->counters.keyspace_hits++;
    char tag[32];
    struct MHD_Response *response = copied(value.bytes);
    if (response == NULL) return MHD_NO;
    snprintf(tag, sizeof tag, "\"%llu\"", (unsigned long long)value.version);
    header(response, "ETag", tag);
    header(response, "Cache-Control", "no-cache");
    return queue(request, 200, "application/octet-stream", response);
}

static void on_committed(struct ticket_waiter *waiter)
{
    struct request *request = (struct request *)((char *)waiter - offsetof(struct request, waiter));
    request->waits_for_ticket = false;
    request->step = STEP_ANSWER;
    resume(request);
}

/* The outcome is decided; tells it when `ticket` is committed. */
static enum MHD_Result answer_after(struct request *request, ticket_t ticket)
{
    request->step = STEP_COMMIT;
    if (ticket != 0) {
        request->waits_for_ticket = true;
        request->waiter = (struct ticket_waiter){.ticket = ticket, .on_ready = on_committed};
        server_wait(request->http->server, &request->waiter);
        if (request->waits_for_ticket) {
            suspend(request);
            return MHD_YES;
        }
    }
    request->step = STEP_ANSWER;
    return answer(request);
}

/* Puts or deletes inside the open transaction and decides the outcome; false: abort it. */
static bool evaluate_write(struct request *request, int64_t expires_ms)
{
    struct node *node = request->http->server->node;
    struct bytes key = bytes_of(request->key, request->key_size);
    struct value old;
    if (!find_bucket(request, request->method == METHOD_PUT)) return false;
    enum err err = node_get(node, NODE_PENDING, request->bucket, key, &old);
    if (err != OK && err != ERR_NOT_FOUND && err != ERR_CORRUPT) {
        request->outcome = error(500, "internal", err_text(err));
        return false;
    }
    /* a damaged value has no version to compare with, but may be replaced and removed */
    if (!conditions_hold(request, err == OK ? old.version : 0)) return false;
    if (request->method == METHOD_DELETE) {
        if (err == ERR_NOT_FOUND) {
            request->outcome = error(404, "not_found", "there is no such key");
            return false;
        }
        request->outcome = (struct outcome){.status = 204};
        if (node_delete(node, request->bucket, key)) return true;
    } else {
        struct bytes body = buffer_view(&request->body);
        transaction_touch(request->http->server, request->bucket, key);
        uint8_t *at = node_put(node, request->bucket, key, body.size, expires_ms);
        request->outcome = (struct outcome){.status = err == ERR_NOT_FOUND ? 201 : 204};
        if (at != NULL) {
            if (body.size > 0) memcpy(at, body.at, body.size);
            return true;
        }
    }
    request->outcome = error(503, "no_memory", "the server is out of memory");
    return false;
}

static enum MHD_Result write_key(struct request *request)
{
    struct parameter parameters[] = {{.name = "ttl_ms"}, {.name = "consistency"}};
    struct server *server = request->http->server;
    uint64_t ttl_ms = 0;
    bool put = request->method == METHOD_PUT;
    if (read_query(request, parameters, 2) != OK || !consistency_valid(&parameters[1]) ||
        (!put && parameters[0].found))
        return answer_error(request, 400, "bad_query",
            put ? "PUT takes ?ttl_ms= and nothing else" : "DELETE takes no parameters");
    if (parameters[0].found &&
        (!http_decimal(value_of(&parameters[0]), TTL_MS_MAX, &ttl_ms) || ttl_ms == 0))
        return answer_error(
            request, 400, "bad_ttl", "ttl_ms is a number of milliseconds from 1 to 100 years");
    enum err err = node_admit(server->node, request->key_size + request->body.size + 128);
    if (err == ERR_AGAIN) {
        uint64_t waited = now_ns(request->http) - request->began_ns;
        if (request->step == STEP_ADMISSION && waited > ADMISSION_MS * MILLISECOND) {
            request->outcome = error(
                503, "overloaded", "the store cannot take writes this fast; nothing was written");
            request->outcome.retry_s = 1;
            return answer(request);
        }
        if (request->step != STEP_ADMISSION) request->began_ns = now_ns(request->http);
        request->step = STEP_ADMISSION;
        request->next_admission = request->http->admission;
        request->http->admission = request;
        request->in_admission = true;
        server->counters.throttled++;
        suspend(request);
        return MHD_YES;
    }
    if (err == ERR_FULL)
        return answer_error(
            request, 507, "full", "no space is left for the log; nothing was written");
    if (err == ERR_TOO_LARGE)
        return answer_error(
            request, 413, "too_large", "the value is larger than one log record can hold");
    if (err != OK) return answer_error(request, 503, "unavailable", err_text(err));

    int64_t expires_ms = ttl_ms == 0 ? 0 : node_now_ms(server->node) + (int64_t)ttl_ms;
    node_txn_begin(server->node);
    if (!evaluate_write(request, expires_ms)) {
        node_txn_abort(server->node);
        return answer_after(request, node_pending_ticket(server->node));
    }
    ticket_t ticket = node_txn_commit(server->node);
    if (put) {
        struct value value;
        if (node_get(server->node, NODE_PENDING, request->bucket,
                bytes_of(request->key, request->key_size), &value) == OK)
            request->outcome.version = value.version;
    }
    buffer_deinit(&request->body);
    count_body(request);
    return answer_after(request, ticket != 0 ? ticket : node_pending_ticket(server->node));
}

/* ---- lists of keys ---- */

struct page {
    struct buffer out;
    uint64_t count;
    int64_t now_ms;
    bool cut; /* the next entry would not fit */
    enum err err;
    uint8_t last[KEY_SIZE_MAX];
    size_t last_size;
};

static enum err append_entry(struct page *page, struct bytes key, const struct value *value)
{
    struct buffer *out = &page->out;
    TRY(buffer_append(out, page->count > 0 ? ",{" : "{", page->count > 0 ? 2 : 1));
    if (http_utf8_valid(key)) {
        TRY(buffer_append(out, "\"key\":", 6));
        TRY(http_json_string(out, key));
    } else {
        TRY(buffer_append(out, "\"key_base64\":\"", 14));
        TRY(http_base64_append(out, key, false));
        TRY(buffer_append(out, "\"", 1));
    }
    TRY(buffer_append(out, ",\"value_base64\":\"", 17));
    TRY(http_base64_append(out, value->bytes, false));
    TRY(buffer_printf(out, "\",\"version\":%llu,\"ttl_ms\":", (unsigned long long)value->version));
    if (value->expires_ms == 0) return buffer_append(out, "null}", 5);
    int64_t left = value->expires_ms - page->now_ms;
    return buffer_printf(out, "%lld}", (long long)(left > 0 ? left : 0));
}

static bool each_entry(void *ctx, struct bytes key, const struct value *value)
{
    struct page *page = ctx;
    if (page->count > 0 && page->out.size + value->bytes.size / 3 * 4 > PAGE_BYTES_MAX) {
        page->cut = true;
        return false;
    }
    page->err = append_entry(page, key, value);
    if (page->err != OK) return false;
    page->count++;
    page->last_size = key.size;
    if (key.size > 0) memcpy(page->last, key.at, key.size);
    return true;
}

static enum MHD_Result list_keys(struct request *request)
{
    struct parameter parameters[] = {
        {.name = "prefix"}, {.name = "limit"}, {.name = "cursor"}, {.name = "consistency"}};
    struct node *node = request->http->server->node;
    uint64_t limit = PAGE_LIMIT_DEFAULT;
    uint8_t after[KEY_SIZE_MAX];
    size_t after_size = 0;
    if (read_query(request, parameters, 4) != OK || !consistency_valid(&parameters[3]))
        return answer_error(
            request, 400, "bad_query", "a list takes ?prefix=, ?limit= and ?cursor=");
    if (parameters[0].size > KEY_SIZE_MAX)
        return answer_error(
            request, 400, "key_too_large", "the prefix is over the limit of 400 bytes");
    if (parameters[1].found &&
        (!http_decimal(value_of(&parameters[1]), UINT32_MAX, &limit) || limit == 0))
        return answer_error(request, 400, "bad_query", "limit is a number from 1 to 1000");
    if (limit > PAGE_LIMIT_MAX) limit = PAGE_LIMIT_MAX;
    if (parameters[2].found &&
        http_base64_decode(value_of(&parameters[2]), after, sizeof after, &after_size) != OK)
        return answer_error(request, 400, "bad_cursor", "this cursor was not given out here");
    if (!find_bucket(request, false)) return answer(request);
    struct page *page = calloc(1, sizeof *page);
    if (page == NULL) return answer_err(request, ERR_NOMEM);
    page->now_ms = node_now_ms(node);
    bool more = false;
    enum err err = buffer_append(&page->out, "{\"entries\":[", 12);
    if (err == OK)
        err = node_page(node, request->bucket, value_of(&parameters[0]),
            bytes_of(after, after_size), limit, &more, each_entry, page);
    if (err == OK) err = page->err;
    if (err == OK) err = buffer_append(&page->out, "],\"cursor\":", 11);
    if (err == OK && (more || page->cut) && page->count > 0) {
        err = buffer_append(&page->out, "\"", 1);
        if (err == OK)
            err = http_base64_append(&page->out, bytes_of(page->last, page->last_size), true);
        if (err == OK) err = buffer_append(&page->out, "\"}\n", 3);
    } else if (err == OK) {
        err = buffer_append(&page->out, "null}\n", 6);
    }
    struct buffer out = page->out;
    free(page);
    if (err == OK) return answer_buffer(request, 200, "application/json", &out);
    buffer_deinit(&out);
    return answer_err(request, err);
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
        suspend(request);
        return 0;
    case ERR_NOT_FOUND:
        return MHD_CONTENT_READER_END_OF_STREAM;
    default:
        /* the transfer ends without its last chunk, so the client knows that it is incomplete */
        return MHD_CONTENT_READER_END_WITH_ERROR;
    }
}

static enum MHD_Result start_backup(struct request *request)
{
    struct http *http = request->http;
    struct node *node = http->server->node;
    if (request->target.query.size > 0)
        return answer_error(request, 400, "bad_query", "a backup takes no parameters");
    if (http->stream_count >= BACKUPS_MAX) {
        request->outcome = error(503, "busy", "two backups are running already; try again later");
        request->outcome.retry_s = 30;
        return answer(request);
    }
    enum err err = backup_stream_open(node_engine(node), node_cluster_id(node), node_name(node),
        wake_loop, http, &request->stream);
    if (err != OK) return answer_err(request, err);
    http->stream_count++;
    request->next_stream = http->streams;
    http->streams = request;
    request->step = STEP_STREAM;
    struct MHD_Response *response =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 128 << 10, read_stream, request, NULL);
    if (response == NULL) return MHD_NO;
    header(response, "Content-Disposition", "attachment; filename=\"duramen.backup\"");
    header(response, "Cache-Control", "no-store");
    return queue(request, 200, "application/octet-stream", response);
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
        if (backup_stream_poll(request->stream)) resume(request);
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
            return answer(request);
        }
    }
    char tag[32];
    struct MHD_Response *response = copied(asset->content);
    if (response == NULL) return MHD_NO;
    snprintf(tag, sizeof tag, "\"%llu\"", (unsigned long long)asset->version);
    header(response, "ETag", tag);
    header(response, "Cache-Control", "no-cache");
    header(response, "Content-Security-Policy",
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
    header(response, "Referrer-Policy", "no-referrer");
    header(response, "X-Frame-Options", "DENY");
    return queue(request, 200, asset->type, response);
}

static enum MHD_Result answer_report(struct request *request, const char *type,
    enum err (*report)(struct server *server, struct buffer *out))
{
    struct buffer out = {0};
    enum err err = report(request->http->server, &out);
    if (err == OK) return answer_buffer(request, 200, type, &out);
    buffer_deinit(&out);
    return answer_err(request, err);
}

static enum MHD_Result answer_ready(struct request *request)
{
    const char *why = report_unready(request->http->server);
    struct buffer out = {0};
    if (why != NULL) return answer_error(request, 503, "not_ready", why);
    if (buffer_printf(&out, "{\"ready\":true}\n") != OK) return answer_err(request, ERR_NOMEM);
    return answer_buffer(request, 200, "application/json", &out);
}

static enum MHD_Result run(struct request *request)
{
    struct buffer out = {0};
    switch (request->route) {
    case ROUTE_KEY:
        return changes_state(request) ? write_key(request) : get_key(request);
    case ROUTE_KEYS:
        return list_keys(request);
    case ROUTE_STATUS:
        return answer_report(request, "application/json", report_status);
    case ROUTE_METRICS:
        return answer_report(request, "text/plain; version=0.0.4; charset=utf-8", report_metrics);
    case ROUTE_LIVE:
        if (buffer_printf(&out, "{\"live\":true}\n") != OK) return answer_err(request, ERR_NOMEM);
        return answer_buffer(request, 200, "application/json", &out);
    case ROUTE_READY:
        return answer_ready(request);
    case ROUTE_BACKUP:
        return start_backup(request);
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
    request->began_ns = now_ns(http);
    link->request = request;
    struct bytes text = bytes_of_text(target);
    if (buffer_append(&request->target_text, text.at, text.size) != OK)
        refuse(request, error(503, "no_memory", "the server is out of memory"));
    http->server->counters.http_requests++;
    return request;
}

static enum method method_of(const char *method)
{
    if (strcmp(method, "GET") == 0) return METHOD_GET;
    if (strcmp(method, "HEAD") == 0) return METHOD_HEAD;
    if (strcmp(method, "PUT") == 0) return METHOD_PUT;
    if (strcmp(method, "DELETE") == 0) return METHOD_DELETE;
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
        suspend(request);
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
        request->outcome = error(503, "busy", "the memory for clients is used up; try again later");
        request->outcome.retry_s = 1;
    } else if (request->body.size + size > VALUE_SIZE_MAX) {
        request->outcome = error(413, "too_large", "the value is over the limit of 16777216 bytes");
    } else if (buffer_append(&request->body, at, size) != OK) {
        request->outcome = error(503, "no_memory", "the server is out of memory");
    }
    if (request->outcome.status != 0) buffer_deinit(&request->body);
    count_body(request);
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
        UNREACHABLE();
    case STEP_BODY:
        if (request->auth != AUTH_OK) take_auth(request, request->auth);
        if (*size > 0) {
            take_body(request, data, *size);
            *size = 0;
            return MHD_YES;
        }
        if (request->outcome.status != 0) return answer(request);
        return run(request);
    case STEP_ADMISSION:
        return write_key(request);
    case STEP_ANSWER:
        return answer(request);
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
            histogram_record(http->stats.latency_ns, now_ns(http) - request->began_ns);
    }
    struct link *link = request->link;
    if (request->waits_for_ticket) server_unwait(http->server, &request->waiter);
    leave_admission(request);
    end_stream(request);
    buffer_deinit(&request->body);
    count_body(request);
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
    leave_admission(request);
    /* a password being verified keeps its request suspended until the verdict comes */
    if (request->step != STEP_AUTH) resume(request);
}

/* ---- turns ---- */

static void retry_admissions(struct http *http)
{
    struct request *request = http->admission;
    if (request == NULL) return;
    uint64_t now = now_ns(http);
    bool room = node_admit(http->server->node, 0) != ERR_AGAIN;
    struct request *next;
    for (; request != NULL; request = next) {
        next = request->next_admission;
        if (!room && now - request->began_ns <= ADMISSION_MS * MILLISECOND) continue;
        leave_admission(request);
        resume(request);
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
    uint64_t now = now_ns(http);
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
        now_ns(http) - http->swept_ns <= 250 * MILLISECOND)
        return;
    turn(http);
}

enum err http_open(struct server *server, int listen_fd)
{
    struct http *http = calloc(1, sizeof *http);
    if (http == NULL) return ERR_NOMEM;
    http->server = server;
    http->swept_ns = now_ns(http);
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
            if (link->request != NULL) resume(link->request);
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
