#define _GNU_SOURCE
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/buffer.h"
#include "base/check.h"
#include "bench/bench_internal.h"
#include "bench/reply.h"

/* The load generator over RESP.
 *
 * It shares the processors with the server it measures, so its first aim is to be cheap: one epoll loop a
 * thread; per wake-up of a connection one recv and one send, and nothing else in the kernel. Requests are
 * built in one scratch buffer that all connections of a thread share and that therefore stays in the
 * first-level cache; when every request has the same operation the buffer keeps its templates and only the
 * digits of the keys are patched. Received bytes land in one shared buffer too; a reply that has exactly
 * the expected bytes is matched without the parser.
 *
 * Closed loop: a connection sends `pipeline` requests, waits for all the replies, and sends the next
 * ones; latency is from the send to the reply. Open loop: arrivals come from a schedule and are handed to
 * connections with room in their window, in turn; latency is from the scheduled arrival to the reply. */

enum {
    RECEIVE_SIZE = 256 * 1024,
    EVENTS = 256,
    SCAN_KEY_SIZE = 5 + KEY_SIZE + 2, /* $16 CRLF key CRLF */
    SCAN_HEAD_SIZE = 32,
    DRAIN_NS = 2000000000,
    SPIN_NS = 30000, /* sleeping and waking for less than this costs more than it saves */
};

struct slot {
    uint64_t start_ns;
    uint64_t key;
    uint32_t span;
    uint8_t operation;
    bool second; /* the SET of a read-modify-write */
    bool waits; /* for the reply to WAIT: the SET's own has come */
    bool failed; /* and was an error */
};

struct chained {
    uint64_t start_ns;
    uint64_t key;
};

struct connection {
    int fd; /* -1: lost */
    bool blocked; /* waits for EPOLLOUT */
    bool queued; /* open loop: is in the queue of those with room */
    uint32_t in_flight;
    uint32_t oldest; /* in slots, a ring of `pipeline` */
    uint32_t chained_count;
    struct reply_parser parser;
    struct buffer unread;
    struct buffer unsent;
    struct slot *slots;
    struct chained *chained; /* read-modify-writes whose read is answered */
};

struct generator {
    struct worker *worker;
    const struct bench_options *options;
    struct clock clock;
    int epoll;
    uint32_t count;
    uint32_t alive;
    uint32_t in_flight;
    uint64_t left; /* requests that may still be issued */
    struct connection *connections;
    struct slot *slots;
    struct chained *chained;
    uint32_t *queue; /* open loop: ring of connections with room */
    uint32_t queue_head;
    uint32_t queue_count;
    struct schedule schedule;
    uint8_t *scratch;
    size_t scratch_size;
    uint8_t *received;
    uint8_t *set_template;
    size_t set_size;
    size_t set_digits; /* where in the template */
    size_t set_value;
    uint8_t get_template[64];
    size_t get_size;
    size_t get_digits;
    uint8_t *expected; /* head of the reply to a GET: "$100" CRLF */
    size_t expected_head;
    int prefilled; /* operation whose templates fill the scratch buffer, or -1 */
    struct prng values;
};

/* --- connecting ------------------------------------------------------------------------------- */

static bool split_address(const char *node, char *host, size_t host_size, const char **port_out)
{
    const char *colon = strrchr(node, ':');
    if (colon == NULL || colon[1] == 0) return false;
    size_t size = (size_t)(colon - node);
    if (size >= 2 && node[0] == '[' && node[size - 1] == ']') {
        node++;
        size -= 2;
    }
    if (size == 0 || size >= host_size) return false;
    memcpy(host, node, size);
    host[size] = 0;
    *port_out = colon + 1;
    return true;
}

static int connect_node(const char *node)
{
    char host[256];
    const char *port;
    if (!split_address(node, host, sizeof host, &port)) {
        fprintf(stderr, "duramen bench: --node wants HOST:PORT, not '%s'\n", node);
        return -1;
    }
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *list;
    int failed = getaddrinfo(host, port, &hints, &list);
    if (failed != 0) {
        fprintf(stderr, "duramen bench: cannot resolve %s: %s\n", node, gai_strerror(failed));
        return -1;
    }
    int fd = -1;
    int reason = 0;
    for (struct addrinfo *each = list; each != NULL && fd < 0; each = each->ai_next) {
        fd = socket(each->ai_family, each->ai_socktype | SOCK_CLOEXEC, each->ai_protocol);
        if (fd >= 0 && connect(fd, each->ai_addr, each->ai_addrlen) != 0) {
            reason = errno;
            close(fd);
            fd = -1;
        }
    }
    freeaddrinfo(list);
    if (fd < 0) {
        fprintf(stderr, "duramen bench: cannot connect to %s: %s; is the server running?\n", node,
            strerror(reason));
        return -1;
    }
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

/* Sends one command and waits for its reply, whose raw bytes go into *raw (if it is not NULL). */
static bool ask(int fd, struct bytes command, struct buffer *raw, struct reply *reply_out)
{
    struct buffer own = {0};
    struct buffer *into = raw == NULL ? &own : raw;
    struct reply_parser parser = {0};
    size_t parsed = 0;
    bool answered = false;
    buffer_reset(into, 0);
    if (send(fd, command.at, command.size, MSG_NOSIGNAL) != (ssize_t)command.size) return false;
    while (!answered) {
        uint8_t *room = buffer_reserve(into, 16384);
        if (room == NULL) break;
        ssize_t got = recv(fd, room, 16384, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        buffer_wrote(into, (size_t)got);
        struct bytes view = buffer_view(into);
        size_t consumed;
        enum reply_result result = reply_parse(
            &parser, bytes_of(view.at + parsed, view.size - parsed), &consumed, reply_out);
        parsed += consumed;
        if (result == REPLY_BROKEN) break;
        answered = result == REPLY_DONE;
    }
    if (raw == NULL) {
        reply_out->text = bytes_of(NULL, 0); /* it borrowed from what is freed now */
        buffer_deinit(&own);
    }
    return answered;
}

static bool greet(int fd, const struct bench_options *options)
{
    struct buffer command = {0};
    struct buffer raw = {0};
    struct reply reply;
    bool fine = true;
    if (options->resp3 && options->password != NULL) {
        buffer_printf(&command,
            "*5\r\n$5\r\nHELLO\r\n$1\r\n3\r\n$4\r\nAUTH\r\n$7\r\ndefault\r\n$%zu\r\n%s\r\n",
            strlen(options->password), options->password);
    } else if (options->resp3) {
        buffer_printf(&command, "*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n");
    } else if (options->password != NULL) {
        buffer_printf(&command, "*2\r\n$4\r\nAUTH\r\n$%zu\r\n%s\r\n", strlen(options->password),
            options->password);
    }
    if (command.size > 0) {
        fine = ask(fd, buffer_view(&command), &raw, &reply);
        if (!fine) {
            fprintf(stderr, "duramen bench: the server closed the connection at the greeting\n");
        } else if (reply.type == '-') {
            fprintf(stderr, "duramen bench: the server refused the greeting: %.*s\n",
                (int)reply.text.size, (const char *)reply.text.at);
            fine = false;
        }
    }
    buffer_deinit(&command);
    buffer_deinit(&raw);
    return fine;
}

/* The value of "field:value" in INFO's text; empty if absent. */
static void info_field(struct bytes text, const char *field, char *at, size_t size)
{
    size_t field_size = strlen(field);
    at[0] = 0;
    for (size_t i = 0; i + field_size + 1 < text.size; i++) {
        bool line_start = i == 0 || text.at[i - 1] == '\n';
        if (!line_start || memcmp(text.at + i, field, field_size) != 0) continue;
        if (text.at[i + field_size] != ':') continue;
        size_t from = i + field_size + 1;
        size_t end = from;
        while (end < text.size && text.at[end] != '\r' && text.at[end] != '\n')
            end++;
        snprintf(at, size, "%.*s", (int)(end - from), (const char *)text.at + from);
        return;
    }
}

/* The last string of a CONFIG GET reply, RESP2 or 3; empty if the server has no such setting. */
static void config_value(int fd, const char *name, char *at, size_t size)
{
    struct buffer command = {0};
    struct buffer raw = {0};
    struct reply reply;
    at[0] = 0;
    buffer_printf(
        &command, "*3\r\n$6\r\nCONFIG\r\n$3\r\nGET\r\n$%zu\r\n%s\r\n", strlen(name), name);
    if (ask(fd, buffer_view(&command), &raw, &reply) && reply.strings == 2) {
        struct bytes view = buffer_view(&raw);
        size_t end = view.size - 2;
        size_t from = end;
        while (from > 0 && view.at[from - 1] != '\n')
            from--;
        snprintf(at, size, "%.*s", (int)(end - from), (const char *)view.at + from);
    }
    buffer_deinit(&command);
    buffer_deinit(&raw);
}

static void append_field(char *at, size_t size, const char *name, const char *value)
{
    if (value[0] == 0) return;
    size_t used = strlen(at);
    snprintf(at + used, size - used, "%s%s %s", used == 0 ? "" : ", ", name, value);
}

/* The peer of this connection has the address that we have: its process can be found here. */
static bool is_local(int fd)
{
    struct sockaddr_storage here;
    struct sockaddr_storage there;
    socklen_t here_size = sizeof here;
    socklen_t there_size = sizeof there;
    memset(&here, 0, sizeof here);
    memset(&there, 0, sizeof there);
    if (getsockname(fd, (struct sockaddr *)&here, &here_size) != 0 ||
        getpeername(fd, (struct sockaddr *)&there, &there_size) != 0)
        return false;
    if (here.ss_family == AF_INET) {
        const struct sockaddr_in *one = (const struct sockaddr_in *)&here;
        const struct sockaddr_in *two = (const struct sockaddr_in *)&there;
        return one->sin_addr.s_addr == two->sin_addr.s_addr;
    }
    const struct sockaddr_in6 *one = (const struct sockaddr_in6 *)&here;
    const struct sockaddr_in6 *two = (const struct sockaddr_in6 *)&there;
    return memcmp(&one->sin6_addr, &two->sin6_addr, sizeof one->sin6_addr) == 0;
}

/* Who answers there: versions and how it syncs, for the header (detail NULL: not wanted); its process, if it is on
 * this machine. */
static bool describe_node(const struct bench_options *options, const char *node, char *detail,
    size_t detail_size, struct servers *servers)
{
    static const struct bytes info = {(const uint8_t *)"*1\r\n$4\r\nINFO\r\n", 14};
    static const char *const versions[] = {"duramen_version", "valkey_version", "redis_version"};
    static const char *const settings[] = {"appendonly", "appendfsync", "log-io", "replicas"};
    int fd = connect_node(node);
    if (fd < 0) return false;
    struct buffer raw = {0};
    struct reply reply;
    char value[128];
    bool fine = greet(fd, options);
    if (fine && ask(fd, info, &raw, &reply)) {
        struct bytes text = buffer_view(&raw);
        for (size_t i = 0; detail != NULL && i < sizeof versions / sizeof versions[0]; i++) {
            info_field(text, versions[i], value, sizeof value);
            append_field(detail, detail_size, versions[i], value);
        }
        info_field(text, "process_id", value, sizeof value);
        long pid = strtol(value, NULL, 10);
        if (is_local(fd) && pid > 0) {
            servers->pids[servers->count++] = pid;
        }
        for (size_t i = 0; detail != NULL && i < sizeof settings / sizeof settings[0]; i++) {
            config_value(fd, settings[i], value, sizeof value);
            append_field(detail, detail_size, settings[i], value);
        }
    }
    buffer_deinit(&raw);
    close(fd);
    return fine;
}

static bool describe_target(
    const struct bench_options *options, struct run_result *result, struct servers *servers_out)
{
    servers_out->count = 0;
    for (uint32_t i = 0; i < options->node_count; i++) {
        char *detail = i == 0 ? result->detail : NULL;
        if (!describe_node(options, options->nodes[i], detail, sizeof result->detail, servers_out))
            return false;
    }
    if (result->detail[0] == 0) {
        snprintf(result->detail, sizeof result->detail, "version unknown");
    }
    if (options->node_count == 1) {
        snprintf(result->name, sizeof result->name, "%s", options->nodes[0]);
        return true;
    }
    snprintf(result->name, sizeof result->name, "%u nodes", options->node_count);
    for (uint32_t i = 0; i < options->node_count; i++)
        append_field(result->detail, sizeof result->detail, "node", options->nodes[i]);
    return true;
}

/* --- sending ---------------------------------------------------------------------------------- */

static void watch_output(struct generator *generator, struct connection *connection, bool wanted)
{
    if (connection->blocked == wanted) return;
    connection->blocked = wanted;
    struct epoll_event event = {.events = EPOLLIN | (wanted ? (uint32_t)EPOLLOUT : 0),
        .data.u32 = (uint32_t)(connection - generator->connections)};
    epoll_ctl(generator->epoll, EPOLL_CTL_MOD, connection->fd, &event);
}

static void lose(struct generator *generator, struct connection *connection, const char *reason)
{
    struct recorder *recorder = generator->worker->recorder;
    for (uint32_t i = 0; i < connection->in_flight; i++)
        recorder_error(recorder, "connection lost", reason);
    if (connection->in_flight == 0) {
        recorder_error(recorder, "connection lost", reason);
    }
    generator->in_flight -= connection->in_flight;
    connection->in_flight = 0;
    close(connection->fd); /* leaves the epoll set by itself */
    connection->fd = -1;
    generator->alive--;
}

static void send_bytes(
    struct generator *generator, struct connection *connection, const uint8_t *at, size_t size)
{
    size_t sent = 0;
    if (connection->unsent.size == 0) {
        ssize_t count = send(connection->fd, at, size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (count < 0 && errno != EAGAIN && errno != EINTR) {
            lose(generator, connection, strerror(errno));
            return;
        }
        sent = count < 0 ? 0 : (size_t)count;
    }
    if (sent == size) return;
    if (buffer_append(&connection->unsent, at + sent, size - sent) != OK) {
        lose(generator, connection, "out of memory in the load generator");
        return;
    }
    watch_output(generator, connection, true);
}

static void send_rest(struct generator *generator, struct connection *connection)
{
    struct bytes rest = buffer_view(&connection->unsent);
    ssize_t count = send(connection->fd, rest.at, rest.size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count < 0) {
        if (errno != EAGAIN && errno != EINTR) {
            lose(generator, connection, strerror(errno));
        }
        return;
    }
    buffer_consume(&connection->unsent, (size_t)count);
    if (buffer_view(&connection->unsent).size == 0) {
        buffer_reset(&connection->unsent, RECEIVE_SIZE);
        watch_output(generator, connection, false);
    }
}

static uint8_t *build_scan(uint8_t *at, const struct slot *slot)
{
    at += snprintf((char *)at, SCAN_HEAD_SIZE, "*%u\r\n$4\r\nMGET\r\n", slot->span + 1);
    for (uint32_t i = 0; i < slot->span; i++) {
        uint8_t *key = at + 5;
        memcpy(at, "$16\r\n", 5);
        key_write(key, slot->key + i);
        memcpy(key + KEY_SIZE, "\r\n", 2);
        at += SCAN_KEY_SIZE;
    }
    return at;
}

static uint8_t *build_request(struct generator *generator, uint8_t *at, const struct slot *slot)
{
    bool reading =
        slot->operation == OPERATION_GET || (slot->operation == OPERATION_RMW && !slot->second);
    if (slot->operation == OPERATION_SCAN) return build_scan(at, slot);
    if (reading) {
        if (generator->prefilled != OPERATION_GET) {
            memcpy(at, generator->get_template, generator->get_size);
        }
        key_patch(at + generator->get_digits, slot->key);
        return at + generator->get_size;
    }
    if (generator->prefilled != OPERATION_SET) {
        memcpy(at, generator->set_template, generator->set_size);
    }
    key_patch(at + generator->set_digits, slot->key);
    if (generator->options->random_values) {
        value_fill(at + generator->set_value, generator->options->value_size, &generator->values);
    }
    return at + generator->set_size;
}

static struct slot *push_slot(struct generator *generator, struct connection *connection)
{
    uint32_t pipeline = generator->options->pipeline;
    ASSERT(connection->in_flight < pipeline);
    uint32_t at = connection->oldest + connection->in_flight;
    if (at >= pipeline) {
        at -= pipeline;
    }
    connection->in_flight++;
    generator->in_flight++;
    return &connection->slots[at];
}

/* Sends up to `fresh` new requests, behind the second halves of read-modify-writes. Open loop: the
 * arrival times are the schedule's; closed loop: `now`. */
static void issue(
    struct generator *generator, struct connection *connection, uint32_t fresh, uint64_t now)
{
    struct worker *worker = generator->worker;
    bool open_loop = generator->options->rate > 0;
    uint8_t *at = generator->scratch;
    for (uint32_t i = 0; i < connection->chained_count; i++) {
        struct slot *slot = push_slot(generator, connection);
        *slot = (struct slot){.start_ns = connection->chained[i].start_ns,
            .key = connection->chained[i].key,
            .operation = OPERATION_RMW,
            .second = true};
        at = build_request(generator, at, slot);
    }
    connection->chained_count = 0;
    uint32_t room = generator->options->pipeline - connection->in_flight;
    if (fresh > room) {
        fresh = room;
    }
    if (fresh > generator->left) {
        fresh = (uint32_t)generator->left;
    }
    generator->left -= fresh;
    for (uint32_t i = 0; i < fresh; i++) {
        struct request request = workload_next(&worker->workload);
        struct slot *slot = push_slot(generator, connection);
        slot->start_ns = now;
        slot->key = request.key;
        slot->span = request.span;
        slot->operation = (uint8_t)request.operation;
        slot->second = false;
        slot->waits = false;
        slot->failed = false;
        if (open_loop) {
            slot->start_ns = schedule_take(&generator->schedule);
            if (worker->recorder->started) {
                histogram_record(
                    &worker->recorder->lag, now > slot->start_ns ? now - slot->start_ns : 0);
            }
        }
        at = build_request(generator, at, slot);
    }
    if (at > generator->scratch) {
        send_bytes(generator, connection, generator->scratch, (size_t)(at - generator->scratch));
    }
}

/* --- receiving -------------------------------------------------------------------------------- */

static void count_error_reply(struct recorder *recorder, struct bytes text)
{
    char kind[40];
    char example[120];
    size_t word = 0;
    while (word < text.size && text.at[word] != ' ')
        word++;
    snprintf(kind, sizeof kind, "-%.*s", (int)(word > 30 ? 30 : word), (const char *)text.at);
    snprintf(example, sizeof example, "%.*s", (int)(text.size > 110 ? 110 : text.size),
        (const char *)text.at);
    recorder_error(recorder, kind, example);
}

/* True if the reply is what the request asked for (an absent key is fine, and counted). */
static bool check_reply(
    struct generator *generator, const struct slot *slot, const struct reply *reply)
{
    struct recorder *recorder = generator->worker->recorder;
    char example[120];
    if (reply->type == '-' || reply->type == '!') {
        count_error_reply(recorder, reply->text);
        return false;
    }
    bool fine = false;
    bool reading =
        slot->operation == OPERATION_GET || (slot->operation == OPERATION_RMW && !slot->second);
    if (slot->operation == OPERATION_SCAN) {
        uint64_t wanted = (uint64_t)generator->options->value_size * reply->strings;
        fine =
            (reply->type == '*') && reply->number == (int64_t)slot->span && reply->bytes == wanted;
        recorder->misses += reply->nulls;
    } else if (reading) {
        fine = reply->type == '_' ||
            (reply->type == '$' && reply->number == (int64_t)generator->options->value_size);
        recorder->misses += reply->type == '_';
    } else {
        fine = reply->type == '+' && bytes_equal(reply->text, bytes_of_text("OK"));
    }
    if (!fine) {
        snprintf(example, sizeof example, "%s answered by '%c' with %lld",
            operation_name((enum operation)slot->operation), reply->type, (long long)reply->number);
        recorder_error(recorder, "wrong reply", example);
    }
    return fine;
}

static bool followed_by_wait(const struct generator *generator, const struct slot *slot)
{
    return generator->options->wait > 0 &&
        (slot->operation == OPERATION_SET || slot->operation == OPERATION_INSERT || slot->second);
}

/* The reply to the WAIT behind a SET: how many replicas have it. */
static bool check_wait(
    struct generator *generator, const struct slot *slot, const struct reply *reply)
{
    ASSERT(reply != NULL);
    if (slot->failed) return false;
    if (reply->type == ':' && reply->number >= (int64_t)generator->options->wait) return true;
    if (reply->type == '-') {
        count_error_reply(generator->worker->recorder, reply->text);
    } else {
        recorder_error(generator->worker->recorder, "too few replicas",
            "WAIT counted less than was asked for");
    }
    return false;
}

static void finish_oldest(struct generator *generator, struct connection *connection,
    const struct reply *reply, uint64_t now)
{
    struct slot *slot = &connection->slots[connection->oldest];
    struct recorder *recorder = generator->worker->recorder;
    bool fine;
    if (slot->waits) {
        fine = check_wait(generator, slot, reply);
    } else {
        fine = reply == NULL || check_reply(generator, slot, reply);
        if (followed_by_wait(generator, slot)) {
            slot->waits = true;
            slot->failed = !fine;
            return;
        }
    }
    if (fine && slot->operation == OPERATION_RMW && !slot->second) {
        connection->chained[connection->chained_count++] =
            (struct chained){.start_ns = slot->start_ns, .key = slot->key};
    } else if (fine) {
        recorder_add(recorder, (enum operation)slot->operation,
            now > slot->start_ns ? now - slot->start_ns : 0);
        if (slot->operation == OPERATION_INSERT) {
            workload_confirm(&generator->worker->workload);
        }
    }
    connection->oldest++;
    if (connection->oldest == generator->options->pipeline) {
        connection->oldest = 0;
    }
    connection->in_flight--;
    generator->in_flight--;
}

/* Size of the reply at the front if it is byte for byte the one expected; 0: let the parser look. */
static size_t match_expected(
    const struct generator *generator, const struct slot *slot, struct bytes input)
{
    if (slot->waits) return 0;
    if (slot->operation == OPERATION_GET) {
        size_t size = generator->expected_head + generator->options->value_size + 2;
        if (input.size < size ||
            memcmp(input.at, generator->expected, generator->expected_head) != 0 ||
            input.at[size - 2] != '\r' || input.at[size - 1] != '\n')
            return 0;
        return size;
    }
    if (slot->operation == OPERATION_SET || slot->operation == OPERATION_INSERT)
        return input.size >= 5 && memcmp(input.at, "+OK\r\n", 5) == 0 ? 5 : 0;
    return 0;
}

/* Takes whole replies off `input`; false: the connection was lost. */
static bool take_replies(struct generator *generator, struct connection *connection,
    struct bytes input, uint64_t now, size_t *consumed_out)
{
    size_t at = 0;
    while (at < input.size) {
        struct bytes rest = bytes_of(input.at + at, input.size - at);
        if (connection->in_flight > 0 && reply_idle(&connection->parser)) {
            size_t size = match_expected(generator, &connection->slots[connection->oldest], rest);
            if (size > 0) {
                finish_oldest(generator, connection, NULL, now);
                at += size;
                continue;
            }
        }
        struct reply reply;
        size_t consumed;
        enum reply_result result = reply_parse(&connection->parser, rest, &consumed, &reply);
        at += consumed;
        if (result == REPLY_MORE) break;
        if (result == REPLY_BROKEN || connection->in_flight == 0) {
            recorder_error(generator->worker->recorder, "not RESP",
                result == REPLY_BROKEN ? "bytes that are no reply" : "a reply nobody asked for");
            lose(generator, connection, "closed after bytes that are no RESP reply");
            return false;
        }
        finish_oldest(generator, connection, &reply, now);
    }
    *consumed_out = at;
    return true;
}

static void receive(struct generator *generator, struct connection *connection, uint64_t *now_out)
{
    struct bytes kept = buffer_view(&connection->unread);
    ASSERT(kept.size <= REPLY_LINE_MAX + RECEIVE_SIZE);
    memcpy(generator->received, kept.at == NULL ? generator->received : kept.at, kept.size);
    ssize_t got = recv(connection->fd, generator->received + kept.size, RECEIVE_SIZE, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
        lose(generator, connection, got == 0 ? "closed by the server" : strerror(errno));
        return;
    }
    uint64_t now = generator->clock.monotonic_ns(generator->clock.ctx);
    *now_out = now;
    worker_clock(generator->worker, now);
    struct bytes input = bytes_of(generator->received, kept.size + (size_t)got);
    size_t consumed = 0;
    if (!take_replies(generator, connection, input, now, &consumed)) return;
    if (kept.size > 0) {
        buffer_reset(&connection->unread, RECEIVE_SIZE);
    }
    if (consumed < input.size &&
        buffer_append(&connection->unread, input.at + consumed, input.size - consumed) != OK) {
        lose(generator, connection, "out of memory in the load generator");
    }
}

/* --- the loop --------------------------------------------------------------------------------- */

static void enqueue(struct generator *generator, struct connection *connection)
{
    if (connection->queued || connection->fd < 0) return;
    if (connection->in_flight + connection->chained_count >= generator->options->pipeline) return;
    uint32_t at = (generator->queue_head + generator->queue_count) % generator->count;
    generator->queue[at] = (uint32_t)(connection - generator->connections);
    generator->queue_count++;
    connection->queued = true;
}

/* Hands arrivals that are due to connections with room, spread evenly. */
static void issue_due(struct generator *generator, uint64_t now, uint64_t end_ns)
{
    uint64_t due = schedule_due(&generator->schedule, now < end_ns ? now : end_ns);
    while (due > 0 && generator->queue_count > 0 && generator->left > 0) {
        struct connection *connection =
            &generator->connections[generator->queue[generator->queue_head]];
        generator->queue_head = (generator->queue_head + 1) % generator->count;
        uint64_t part = (due + generator->queue_count - 1) / generator->queue_count;
        generator->queue_count--;
        connection->queued = false;
        if (connection->fd < 0) continue;
        uint64_t before = generator->schedule.taken;
        issue(generator, connection, part > UINT32_MAX ? UINT32_MAX : (uint32_t)part, now);
        uint64_t taken = generator->schedule.taken - before;
        due -= taken < due ? taken : due;
        enqueue(generator, connection);
    }
}

static void wait_events(struct generator *generator, struct epoll_event *events, int *count_out,
    uint64_t now, bool issuing, uint64_t limit_ns)
{
    uint64_t wait = limit_ns > now ? limit_ns - now : 0;
    if (issuing && generator->options->rate > 0 && generator->queue_count > 0) {
        uint64_t next = schedule_next_ns(&generator->schedule);
        uint64_t until = next > now ? next - now : 0;
        if (until < SPIN_NS) {
            until = 0;
        }
        wait = until < wait ? until : wait;
    }
    if (wait > 100000000) {
        wait = 100000000; /* looks at crew->stop now and then */
    }
    struct timespec time = {.tv_nsec = (long)wait};
    *count_out = epoll_pwait2(generator->epoll, events, EVENTS, &time, NULL);
}

static void answer_events(
    struct generator *generator, const struct epoll_event *events, int count, bool issuing)
{
    uint64_t now = 0;
    for (int i = 0; i < count; i++) {
        struct connection *connection = &generator->connections[events[i].data.u32];
        if (connection->fd < 0) continue;
        if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
            receive(generator, connection, &now);
        }
        if (connection->fd >= 0 && (events[i].events & EPOLLOUT)) {
            send_rest(generator, connection);
        }
        if (connection->fd < 0) continue;
        if (generator->options->rate > 0) {
            if (connection->chained_count > 0) {
                issue(generator, connection, 0, now);
            }
            enqueue(generator, connection);
        } else if (connection->in_flight == 0) {
            issue(generator, connection, issuing ? generator->options->pipeline : 0, now);
        }
    }
    if (now > 0) {
        recorder_turn(generator->worker->recorder, now);
    }
}

static void run_loop(struct generator *generator)
{
    struct crew *crew = generator->worker->crew;
    const struct bench_options *options = generator->options;
    struct epoll_event events[EVENTS];
    uint64_t now = generator->clock.monotonic_ns(generator->clock.ctx);
    bool issuing = true;
    worker_clock(generator->worker, now);
    if (options->rate > 0) {
        schedule_init(&generator->schedule, now, options->rate / crew->count);
    }
    for (uint32_t i = 0; i < generator->count; i++) {
        if (options->rate > 0) {
            enqueue(generator, &generator->connections[i]);
        } else {
            now = generator->clock.monotonic_ns(generator->clock.ctx);
            issue(generator, &generator->connections[i], options->pipeline, now);
        }
    }
    for (;;) {
        now = generator->clock.monotonic_ns(generator->clock.ctx);
        if (issuing && (now >= crew->end_ns || generator->left == 0 || atomic_load(&crew->stop))) {
            if (options->rate > 0 && generator->left > 0 && now >= crew->end_ns) {
                generator->worker->unsent = schedule_due(&generator->schedule, crew->end_ns);
            }
            issuing = false;
        }
        if (now >= crew->end_ns) {
            recorder_close(generator->worker->recorder, now);
        }
        if (!issuing && generator->in_flight == 0) return;
        if (now >= crew->end_ns && now - crew->end_ns > DRAIN_NS) {
            for (uint32_t i = 0; i < generator->in_flight; i++) {
                recorder_error(generator->worker->recorder, "no answer",
                    "not answered within 2 s after the end of the run");
            }
            return;
        }
        if (generator->alive == 0) {
            generator->worker->failed = true;
            fprintf(stderr, "duramen bench: all connections were lost; see the server's log\n");
            return;
        }
        if (options->rate > 0 && issuing) {
            issue_due(generator, now, crew->end_ns);
        }
        int count;
        wait_events(generator, events, &count, now, issuing,
            now < crew->end_ns ? crew->end_ns : crew->end_ns + DRAIN_NS);
        answer_events(generator, events, count, issuing);
    }
}

/* --- set-up ----------------------------------------------------------------------------------- */

static bool make_templates(struct generator *generator)
{
    const struct bench_options *options = generator->options;
    size_t value_size = options->value_size;
    struct prng content;
    prng_init(&content, generator->worker->crew->mix->seed);
    enum { EXPECTED_SIZE = 32 };
    size_t template_size = value_size + 128;
    generator->set_template = malloc(template_size);
    generator->expected = malloc(EXPECTED_SIZE);
    if (generator->set_template == NULL || generator->expected == NULL) return false;
    int head = snprintf((char *)generator->set_template, template_size,
        "*3\r\n$3\r\nSET\r\n$16\r\nkey:000000000000\r\n$%zu\r\n", value_size);
    generator->set_digits = strlen("*3\r\n$3\r\nSET\r\n$16\r\nkey:");
    generator->set_value = (size_t)head;
    value_fill(generator->set_template + head, value_size, &content);
    memcpy(generator->set_template + (size_t)head + value_size, "\r\n", 2);
    generator->set_size = (size_t)head + value_size + 2;
    if (options->wait > 0) {
        char *behind = (char *)generator->set_template + generator->set_size;
        generator->set_size += (size_t)snprintf(behind, template_size - generator->set_size,
            "*3\r\n$4\r\nWAIT\r\n$1\r\n%u\r\n$1\r\n0\r\n", options->wait);
    }
    generator->get_size = (size_t)snprintf((char *)generator->get_template,
        sizeof generator->get_template, "*2\r\n$3\r\nGET\r\n$16\r\nkey:000000000000\r\n");
    generator->get_digits = strlen("*2\r\n$3\r\nGET\r\n$16\r\nkey:");
    generator->expected_head =
        (size_t)snprintf((char *)generator->expected, EXPECTED_SIZE, "$%zu\r\n", value_size);
    prng_init(
        &generator->values, generator->worker->crew->mix->seed + 77 + generator->worker->index);

    size_t request_max =
        generator->set_size > generator->get_size ? generator->set_size : generator->get_size;
    if (generator->worker->crew->mix->parts[OPERATION_SCAN] > 0) {
        size_t scan = SCAN_HEAD_SIZE + (size_t)generator->worker->workload.scan_max * SCAN_KEY_SIZE;
        request_max = scan > request_max ? scan : request_max;
    }
    generator->scratch_size = request_max * options->pipeline;
    generator->scratch = malloc(generator->scratch_size);
    generator->received = malloc(2 * RECEIVE_SIZE + REPLY_LINE_MAX);
    if (generator->scratch == NULL || generator->received == NULL) return false;

    int only = generator->worker->workload.only;
    generator->prefilled = -1;
    if (only == OPERATION_GET || only == OPERATION_SET || only == OPERATION_INSERT) {
        bool get = only == OPERATION_GET;
        size_t size = get ? generator->get_size : generator->set_size;
        for (uint32_t i = 0; i < options->pipeline; i++) {
            memcpy(generator->scratch + i * size,
                get ? generator->get_template : generator->set_template, size);
        }
        generator->prefilled = get ? OPERATION_GET : OPERATION_SET;
    }
    return true;
}

static bool open_connections(struct generator *generator)
{
    const struct bench_options *options = generator->options;
    for (uint32_t i = 0; i < generator->count; i++)
        generator->connections[i].fd = -1;
    generator->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (generator->epoll < 0) return false;
    for (uint32_t i = 0; i < generator->count; i++) {
        struct connection *connection = &generator->connections[i];
        connection->slots = generator->slots + (size_t)i * options->pipeline;
        connection->chained = generator->chained + (size_t)i * options->pipeline;
        uint32_t number = i * generator->worker->crew->count + generator->worker->index;
        connection->fd = connect_node(options->nodes[number % options->node_count]);
        if (connection->fd < 0 || !greet(connection->fd, options)) return false;
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
        if (epoll_ctl(generator->epoll, EPOLL_CTL_ADD, connection->fd, &event) != 0) return false;
        generator->alive++;
    }
    return true;
}

static bool generator_init(struct generator *generator, struct worker *worker)
{
    const struct bench_options *options = worker->crew->options;
    uint32_t threads = worker->crew->count;
    memset(generator, 0, sizeof *generator);
    generator->worker = worker;
    generator->options = options;
    generator->clock = worker->crew->clock;
    generator->epoll = -1;
    generator->left = worker->requests;
    generator->count =
        options->clients / threads + (worker->index < options->clients % threads ? 1 : 0);
    size_t slots = (size_t)generator->count * options->pipeline;
    generator->connections = calloc(generator->count, sizeof *generator->connections);
    generator->slots = calloc(slots, sizeof *generator->slots);
    generator->chained = calloc(slots, sizeof *generator->chained);
    generator->queue = calloc(generator->count, sizeof *generator->queue);
    if (generator->connections == NULL || generator->slots == NULL || generator->chained == NULL ||
        generator->queue == NULL || !make_templates(generator)) {
        fprintf(stderr, "duramen bench: out of memory; use fewer clients or a shorter pipeline\n");
        return false;
    }
    return open_connections(generator);
}

static void generator_deinit(struct generator *generator)
{
    for (uint32_t i = 0; generator->connections != NULL && i < generator->count; i++) {
        struct connection *connection = &generator->connections[i];
        if (connection->fd >= 0) {
            close(connection->fd);
        }
        buffer_deinit(&connection->unread);
        buffer_deinit(&connection->unsent);
    }
    if (generator->epoll >= 0) {
        close(generator->epoll);
    }
    free(generator->connections);
    free(generator->slots);
    free(generator->chained);
    free(generator->queue);
    free(generator->set_template);
    free(generator->expected);
    free(generator->scratch);
    free(generator->received);
}

static void resp_work(struct worker *worker)
{
    struct generator generator;
    /* the kernel may otherwise let a timed wait oversleep by 50 µs */
    prctl(PR_SET_TIMERSLACK, 1UL);
    if (generator_init(&generator, worker)) {
        run_loop(&generator);
    } else {
        worker->failed = true;
    }
    generator_deinit(&generator);
}

/* Every key once, in order, deeply pipelined. */
static bool load_keys(
    const struct bench_options *options, struct run_result *result, const struct servers *servers)
{
    struct bench_options loading = *options;
    struct keyspace empty = {0};
    struct run_result loaded = {0};
    loading.rate = 0;
    loading.clients = 16;
    loading.pipeline = 64;
    loading.wait = 0;
    loading.mix = (struct workload_config){.seed = options->mix.seed};
    loading.mix.parts[OPERATION_INSERT] = 1;
    struct crew crew = {.options = &loading,
        .count = 1,
        .work = resp_work,
        .keyspace = &empty,
        .mix = &loading.mix,
        .servers = *servers,
        .label = "loading",
        .requests = options->keys};
    bool fine = crew_run(&crew, 0, 0, &loaded) == OK;
    if (fine) {
        result_finish(&loaded);
        result->load_rate = loaded.shown->rate;
        const struct recorder *recorder = loaded.shown->recorder;
        if (recorder_error_count(recorder) > 0) {
            fprintf(stderr, "duramen bench: loading failed: %s (%s)\n", recorder->errors[0].name,
                recorder->errors[0].example);
            fine = false;
        }
    }
    result_deinit(&loaded);
    return fine;
}

bool load_resp(const struct bench_options *options, struct run_result *result)
{
    struct servers servers;
    if (!describe_target(options, result, &servers)) return false;
    if (options->load && !load_keys(options, result, &servers)) return false;
    if (options->load_only) return true;
    for (uint32_t i = 0; i < options->rounds; i++) {
        struct keyspace keyspace = {.loaded = options->keys};
        struct crew crew = {.options = options,
            .count = options->threads < options->clients ? options->threads : options->clients,
            .work = resp_work,
            .keyspace = &keyspace,
            .mix = &options->mix,
            .servers = servers,
            .label = options->workload_name,
            .requests = options->requests};
        if (crew_run(&crew, options->warmup, options->seconds, result) != OK) return false;
    }
    result_finish(result);
    return true;
}
