#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/check.h"
#include "base/hash.h"
#include "base/logger.h"
#include "server/forward.h"
#include "server/scatter.h"

/* Connections of RESP clients.
 *
 * Input. What the loop delivers is parsed where it lies; only an incomplete rest is copied into `in`,
 * and what comes behind it is appended there until the command is whole. A session that cannot go on (paused,
 * blocked) collects into `in` as well; past IN_PAUSED_MAX it stops reading, and TCP tells the peer.
 *
 * Output. Replies are appended to `out` in order. out_total counts all bytes ever appended,
 * out_released how many of them may leave, out_given how many have left for `sending`. A reply that waits
 * for a ticket gets an entry in the ring `held`: bytes up to its `end` are released when the ticket is
 * done. A reply that waits for nothing, but stands behind one that does, gets one too: the client sees replies in
 * the order of its commands. Ranges commit independently of each other, so each ticket is asked for by itself;
 * an entry whose outcome will never be known, or whose answer could not be confirmed, is replaced by errors when it
 * comes to the front.
 *
 *     given <= released <= total,  held ends ascend,  held empty => released == total
 *
 * Sending. A session with released output is in the list DIRTY; at the end of the turn each gives all it
 * may to the loop as one send. While that is out, `out` fills for the next: the two buffers take turns.
 *
 * Memory. client_bytes adds up all buffers of all sessions. A peer that does not read is not parsed
 * beyond half the output limit, and is dropped at the limit or when it has not taken a byte for STALLED_MAX_S.
 * Over the budget for all clients, commands that are half here and big are refused (their bytes are
 * skipped as they come), and sessions with more than OUT_OVER_BUDGET of output wait until it is taken. */

enum {
    BUFFER_KEEP = 16 << 10, /* of an active session's buffers; idle ones have none */
    IN_PAUSED_MAX = 64 << 10,
    IN_OVER_BUDGET = 64 << 10,
    OUT_OVER_BUDGET = 64 << 10,
    OUT_UNAUTHENTICATED = 4 << 10,
    STALLED_MAX_S = 5,
    UNAUTHENTICATED_MAX_S = 10,
    VISITS = 10, /* ticks in which sessions_tick() gets around */
};

static struct session *session_of(struct loop_stream *stream)
{
    return (struct session *)(void *)((char *)stream - offsetof(struct session, stream));
}

static void list_add(struct session *session, enum session_list list)
{
    struct session_link *link = &session->links[list];
    if (link->at != NULL) return;
    struct session **head = &session->server->session_lists[list];
    link->next = *head;
    link->at = head;
    if (*head != NULL) (*head)->links[list].at = &link->next;
    *head = session;
    if (list == SESSION_LIST_HELD) session->server->held_count++;
}

static void list_remove(struct session *session, enum session_list list)
{
    struct session_link *link = &session->links[list];
    if (link->at == NULL) return;
    *link->at = link->next;
    if (link->next != NULL) link->next->links[list].at = link->at;
    link->at = NULL;
    if (list == SESSION_LIST_HELD) session->server->held_count--;
}

/* ---- memory ---- */

static void account(struct session *session)
{
    uint64_t bytes = sizeof *session + session->in.capacity + session->out.capacity +
        session->sending.capacity + session->parser.scratch.capacity +
        session->parser.capacity * sizeof(struct bytes) +
        session->held_capacity * sizeof(struct held) + session->queue_bytes +
        forward_bytes(session) + scatter_command_bytes(session);
    session->server->client_bytes += bytes - session->counted_bytes;
    session->counted_bytes = bytes;
}

static bool over_budget(const struct server *server)
{
    return server->config.client_memory != 0 && server->client_bytes > server->config.client_memory;
}

static uint64_t output_bytes(const struct session *session)
{
    return session->out.size - session->out.head + session->stream.send_left;
}

static uint64_t output_limit(const struct session *session)
{
    if ((session->flags & SESSION_AUTHENTICATED) == 0) return OUT_UNAUTHENTICATED;
    return session->server->config.output_limit;
}

/* so much output waits for the peer that no further command is run for it */
static bool output_crowded(const struct session *session)
{
    uint64_t bytes = output_bytes(session);
    if (bytes <= OUT_OVER_BUDGET) return false;
    return bytes > output_limit(session) / 2 || over_budget(session->server);
}

static void drop_slow_reader(struct session *session)
{
    session->server->counters.slow_readers++;
    log_warn("a client that does not read its replies was disconnected",
        "client=%s id=%llu waiting_bytes=%llu", session->address, (unsigned long long)session->id,
        (unsigned long long)output_bytes(session));
    session_close(session, false);
}

/* ---- output ---- */

static void mark_dirty(struct session *session)
{
    list_add(session, SESSION_LIST_DIRTY);
}

static struct held *held_at(const struct session *session, uint32_t index)
{
    return &session->held[(session->held_first + index) & (session->held_capacity - 1)];
}

static bool held_grow(struct session *session)
{
    uint32_t capacity = session->held_capacity == 0 ? 4 : session->held_capacity * 2;
    struct held *held = malloc(capacity * sizeof *held);
    if (held == NULL) return false;
    for (uint32_t i = 0; i < session->held_count; i++)
        held[i] = *held_at(session, i);
    free(session->held);
    session->held = held;
    session->held_first = 0;
    session->held_capacity = capacity;
    return true;
}

static uint64_t held_end(const struct session *session)
{
    return session->held_count == 0 ? session->out_released
                                    : held_at(session, session->held_count - 1)->end;
}

/* One more entry of the ring, or the last one if that waits for the same. */
static bool hold(struct session *session, ticket_t ticket, uint64_t end)
{
    /* CLIENT REPLY OFF leaves no bytes, but what was written is still to be seen by what follows */
    uint32_t replies = end > held_end(session);
    if (replies == 0 && ticket == 0) return true;
    struct held *last = session->held_count == 0 ? NULL : held_at(session, session->held_count - 1);
    if (last != NULL && last->ticket == ticket) {
        last->end = end;
        last->replies += replies;
        return true;
    }
    if (session->held_count == session->held_capacity && !held_grow(session)) return false;
    session->held_count++;
    *held_at(session, session->held_count - 1) =
        (struct held){.end = end, .ticket = ticket, .replies = replies};
    list_add(session, SESSION_LIST_HELD);
    return true;
}

void session_replied(struct session *session, ticket_t ticket)
{
    struct server *server = session->server;
    uint64_t total = session->out_given + (session->out.size - session->out.head);
    session->out_total = total;
    if (session->out.failed) {
        log_error("no memory for a reply", "client=%s", session->address);
        session_close(session, false);
        return;
    }
    enum ticket_state state =
        ticket == 0 || PLANTED_BUG(11) ? TICKET_DONE : node_ticket(server->node, ticket);
    if (state == TICKET_DONE && session->held_count == 0) {
        session->out_released = total;
        mark_dirty(session);
    } else if (!hold(session, state == TICKET_DONE ? 0 : ticket, total)) {
        session_close(session, false);
        return;
    }
    if (state == TICKET_UNKNOWN || state == TICKET_REFUSED) session_release(session);
    if (output_bytes(session) > output_limit(session) && !PLANTED_BUG(13))
        drop_slow_reader(session);
}

/* What stands first in the ring is not to be told: errors take the place of its replies. */
static bool replace_front(struct session *session, const char *error)
{
    struct held *front = held_at(session, 0);
    struct buffer errors = {0};
    struct buffer *out = &session->out;
    for (uint32_t i = 0; i < front->replies; i++)
        resp_error(&errors, "%s", error);
    session->server->counters.errors += front->replies;
    size_t place = (size_t)(session->out_released - session->out_given);
    size_t old = (size_t)(front->end - session->out_released);
    size_t rest = out->size - out->head - place - old;
    struct bytes fresh = buffer_view(&errors);
    bool room = !errors.failed;
    if (room && fresh.size > old) room = buffer_reserve(out, fresh.size - old) != NULL;
    if (room) {
        uint8_t *at = out->at + out->head + place;
        memmove(at + fresh.size, at + old, rest);
        if (fresh.size > 0) memcpy(at, fresh.at, fresh.size);
        out->size = out->head + place + fresh.size + rest;
        uint64_t change = (uint64_t)fresh.size - old; /* modulo 2^64: may be less */
        session->out_total += change;
        for (uint32_t i = 0; i < session->held_count; i++)
            held_at(session, i)->end += change;
    }
    buffer_deinit(&errors);
    return room;
}

static const char unknown_error[] =
    "UNKNOWN the outcome is not known: the write may or may not have been applied";
static const char refused_error[] =
    "CLUSTERDOWN the answer could not be confirmed by a majority; nothing was changed";

void session_release(struct session *session)
{
    uint32_t before = session->held_count;
    while (session->held_count > 0) {
        ticket_t ticket = held_at(session, 0)->ticket;
        enum ticket_state state =
            ticket == 0 ? TICKET_DONE : node_ticket(session->server->node, ticket);
        if (PLANTED_BUG(53) && state == TICKET_UNKNOWN) state = TICKET_DONE;
        if (state == TICKET_WAITING) break;
        if (state != TICKET_DONE &&
            !replace_front(session, state == TICKET_UNKNOWN ? unknown_error : refused_error)) {
            session_close(session, false);
            return;
        }
        session->out_released = held_at(session, 0)->end;
        session->held_first = (session->held_first + 1) & (session->held_capacity - 1);
        session->held_count--;
    }
    if (session->held_count == before) return;
    if (session->held_count == 0) {
        ASSERT(session->out_released == session->out_total);
        list_remove(session, SESSION_LIST_HELD);
    }
    mark_dirty(session);
}

void sessions_on_tickets(struct server *server)
{
    struct session *session = server->session_lists[SESSION_LIST_HELD];
    while (session != NULL) {
        struct session *next = session->links[SESSION_LIST_HELD].next;
        session_release(session);
        session = next;
    }
}

/* everything the peer will ever get from us is out */
static bool finished(const struct session *session)
{
    uint32_t waits = SESSION_PAUSED | SESSION_BLOCKED;
    /* what others were asked for is still to be answered */
    bool last =
        ((session->flags & SESSION_CLOSE_AFTER) != 0 && (session->flags & SESSION_BLOCKED) == 0) ||
        ((session->flags & SESSION_ENDED) != 0 && (session->flags & waits) == 0);
    return last && session->held_count == 0 && session->out.size == session->out.head &&
        !loop_sending(&session->stream);
}

static void give_output(struct session *session)
{
    while (!loop_sending(&session->stream) && session->out_released > session->out_given) {
        size_t size = (size_t)(session->out_released - session->out_given);
        struct buffer *sending = &session->sending;
        if (size == session->out.size - session->out.head) {
            struct buffer empty = *sending;
            *sending = session->out;
            session->out = empty;
        } else if (buffer_append(sending, session->out.at + session->out.head, size) == OK) {
            buffer_consume(&session->out, size);
        } else {
            session_close(session, false);
            return;
        }
        session->out_given += size;
        session->server->counters.net_out += size;
        struct bytes bytes = buffer_view(sending);
        if (!loop_send(&session->stream, bytes.at, bytes.size)) return;
        buffer_reset(sending, BUFFER_KEEP);
    }
}

static void on_sent(struct loop_stream *stream)
{
    struct session *session = session_of(stream);
    buffer_reset(&session->sending, BUFFER_KEEP);
    session->stalled_left = 0;
    if (session->out_released > session->out_given ||
        (session->flags & (SESSION_CLOSE_AFTER | SESSION_ENDED)) != 0) {
        mark_dirty(session);
    }
    if ((session->flags & SESSION_PAUSED) != 0 && !output_crowded(session))
        session_continue(session);
}

void sessions_turn_end(struct server *server)
{
    struct session *session;
    while ((session = server->session_lists[SESSION_LIST_DIRTY]) != NULL) {
        list_remove(session, SESSION_LIST_DIRTY);
        if ((session->flags & SESSION_CLOSING) != 0) continue;
        give_output(session);
        if (finished(session)) session_close(session, false);
        account(session);
    }
}

/* ---- input ---- */

static void wait_for_retry(struct session *session)
{
    session->flags |= SESSION_PAUSED;
    list_add(session, SESSION_LIST_PAUSED);
}

static void error_reply(struct session *session, const char *error)
{
    session->server->counters.errors++;
    resp_error(&session->out, "%s", error);
    session_replied(session, 0);
}

static void protocol_error(struct session *session, const char *error)
{
    session->server->counters.protocol_errors++;
    log_info("protocol error", "client=%s error=\"%s\"", session->address, error);
    error_reply(session, error);
    session->flags |= SESSION_CLOSE_AFTER;
    mark_dirty(session);
}

enum { STOP = SESSION_PAUSED | SESSION_BLOCKED | SESSION_CLOSE_AFTER | SESSION_CLOSING };

/* Runs the commands that are whole; returns how many bytes are done with. */
static size_t parse(struct session *session, struct bytes input)
{
    struct server *server = session->server;
    size_t used = 0;
    while (used < input.size && (session->flags & STOP) == 0) {
        if (output_crowded(session)) {
            wait_for_retry(session);
            break;
        }
        const struct resp_limits *limits =
            &server->limits[(session->flags & SESSION_AUTHENTICATED) != 0];
        size_t consumed;
        uint32_t argc;
        const struct bytes *argv;
        const char *error;
        switch (resp_parse(&session->parser, limits, bytes_of(input.at + used, input.size - used),
            &consumed, &argc, &argv, &error)) {
        case RESP_MORE:
            return used + consumed;
        case RESP_COMMAND:
            if (argc > 0 && !dispatch(session, argc, argv)) {
                wait_for_retry(session);
                return used;
            }
            used += consumed;
            break;
        case RESP_REFUSED:
            used += consumed;
            if ((session->flags & SESSION_MULTI) != 0) session->flags |= SESSION_DIRTY_EXEC;
            error_reply(session, error);
            break;
        case RESP_ERROR:
            protocol_error(session, error);
            return input.size;
        case RESP_FOREIGN:
            server->counters.protocol_errors++;
            log_warn("HTTP was sent to the RESP port; the connection was closed", "client=%s",
                session->address);
            session_close(session, false);
            return input.size;
        }
    }
    return used;
}

/* parses what is in `in` */
static void parse_kept(struct session *session)
{
    struct bytes kept = buffer_view(&session->in);
    buffer_consume(&session->in, parse(session, kept));
    if (session->in.size == 0) buffer_reset(&session->in, BUFFER_KEEP);
}

/* the rest of a delivery is kept until more comes, or until the session goes on */
static void keep(struct session *session, struct bytes rest)
{
    struct server *server = session->server;
    if (rest.size == 0) return;
    if (buffer_append(&session->in, rest.at, rest.size) != OK) {
        log_error("no memory for a client's command", "client=%s", session->address);
        session_close(session, false);
        return;
    }
    if (session->in.size - session->in.head > IN_OVER_BUDGET && over_budget(server) &&
        (session->flags & STOP) == 0 &&
        resp_parser_refuse(
            &session->parser, "OOM command refused: connections use all the memory they may")) {
        server->counters.throttled++;
        parse_kept(session);
        buffer_reset(&session->in, session->in.size == 0 ? BUFFER_KEEP : SIZE_MAX);
    }
}

static void note_activity(struct session *session)
{
    struct server *server = session->server;
    session->last_ns = server->now_ns;
    if (server->active_session == session->id) return;
    server->active_session = session->id;
    server->other_active_ns = server->now_ns;
}

/* after input was taken: what follows from the flags it left */
static void settle(struct session *session)
{
    uint32_t waits = session->flags & (SESSION_PAUSED | SESSION_BLOCKED);
    if (waits != 0 && session->in.size - session->in.head > IN_PAUSED_MAX &&
        (session->flags & SESSION_STOPPED_READING) == 0) {
        session->flags |= SESSION_STOPPED_READING;
        loop_pause(&session->stream);
    } else if (waits == 0 && (session->flags & SESSION_STOPPED_READING) != 0) {
        session->flags &= ~(uint32_t)SESSION_STOPPED_READING;
        loop_resume(&session->stream);
    }
    if ((session->flags & (SESSION_CLOSE_AFTER | SESSION_ENDED)) != 0) mark_dirty(session);
    account(session);
}

static void on_data(struct loop_stream *stream, struct bytes bytes)
{
    struct session *session = session_of(stream);
    session->server->counters.net_in += bytes.size;
    note_activity(session);
    if ((session->flags & (SESSION_CLOSE_AFTER | SESSION_CLOSING)) != 0) return;
    if (session->in.size == 0) {
        size_t used = (session->flags & STOP) != 0 ? 0 : parse(session, bytes);
        keep(session, bytes_of(bytes.at + used, bytes.size - used));
    } else {
        keep(session, bytes);
        if ((session->flags & STOP) == 0) parse_kept(session);
    }
    settle(session);
}

static void on_end(struct loop_stream *stream)
{
    struct session *session = session_of(stream);
    session->flags |= SESSION_ENDED;
    mark_dirty(session);
}

void session_continue(struct session *session)
{
    if ((session->flags & SESSION_CLOSING) != 0) return;
    /* whoever blocked the session may have written its reply */
    uint64_t total = session->out_given + (session->out.size - session->out.head);
    if (total != held_end(session)) session_replied(session, 0);
    session->flags &= ~(uint32_t)SESSION_PAUSED;
    list_remove(session, SESSION_LIST_PAUSED);
    if ((session->flags & STOP) == 0) parse_kept(session);
    settle(session);
}

void sessions_retry(struct server *server)
{
    /* those that must wait on go into the list anew */
    struct session *list = server->session_lists[SESSION_LIST_PAUSED];
    if (list == NULL) return;
    server->session_lists[SESSION_LIST_PAUSED] = NULL;
    list->links[SESSION_LIST_PAUSED].at = &list;
    while (list != NULL) {
        struct session *session = list;
        list_remove(session, SESSION_LIST_PAUSED);
        session_continue(session);
    }
}

/* ---- life ---- */

static void describe_address(const struct sockaddr_storage *address, char *text, size_t size)
{
    char host[INET6_ADDRSTRLEN] = "?";
    unsigned port = 0;
    if (address->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)address;
        inet_ntop(AF_INET, &in->sin_addr, host, sizeof host);
        port = ntohs(in->sin_port);
        snprintf(text, size, "%s:%u", host, port);
    } else if (address->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)(const void *)address;
        inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof host);
        port = ntohs(in6->sin6_port);
        snprintf(text, size, "[%s]:%u", host, port);
    } else {
        snprintf(text, size, "?:0");
    }
}

static uint32_t source_of(const struct sockaddr_storage *address)
{
    if (address->ss_family == AF_INET) {
        return ((const struct sockaddr_in *)(const void *)address)->sin_addr.s_addr;
    }
    if (address->ss_family != AF_INET6) return 0;
    /* a /64 is one source: its owner chooses the rest */
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)(const void *)address;
    return (uint32_t)hash64(0, bytes_of(&in6->sin6_addr, 8));
}

static void on_closed(struct loop_stream *stream)
{
    struct session *session = session_of(stream);
    struct server *server = session->server;
    session->flags |= SESSION_CLOSING;
    for (int list = 0; list < SESSION_LISTS; list++)
        list_remove(session, (enum session_list)list);
    if (server->session_cursor == session) server->session_cursor = session->next_all;
    if (session->previous_all != NULL) {
        session->previous_all->next_all = session->next_all;
    } else {
        server->sessions = session->next_all;
    }
    if (session->next_all != NULL) session->next_all->previous_all = session->previous_all;
    server->session_count--;
    server->client_bytes -= session->counted_bytes;
    connection_reset(session);
    forward_cancel(session);
    scatter_command_cancel(session);
    resp_parser_deinit(&session->parser);
    buffer_deinit(&session->in);
    buffer_deinit(&session->out);
    buffer_deinit(&session->sending);
    free(session->held);
    free(session);
}

static const struct loop_stream_ops stream_ops = {
    .on_data = on_data,
    .on_end = on_end,
    .on_sent = on_sent,
    .on_closed = on_closed,
};

static void reject(struct server *server, int fd, const char *text)
{
    server->counters.connections_rejected++;
    /* the socket is new: there is room for a line */
    (void)!send(fd, text, strlen(text), MSG_DONTWAIT | MSG_NOSIGNAL);
    close(fd);
}

void session_accept(void *ctx, int fd)
{
    struct server *server = ctx;
    if (server->stopping) {
        close(fd);
        return;
    }
    if (server->session_count >= server->config.connections_max) {
        reject(server, fd, "-ERR max number of clients reached\r\n");
        return;
    }
    struct session *session = calloc(1, sizeof *session);
    if (session == NULL) {
        reject(server, fd, "-ERR out of memory\r\n");
        return;
    }
    int one = 1;
    (void)!setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    (void)!setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);

    session->server = server;
    session->id = ++server->next_session_id;
    session->resp_version = 2;
    session->created_ns = session->last_ns = server->now_ns;
    resp_parser_init(&session->parser);
    if (!auth_required(server)) session->flags |= SESSION_AUTHENTICATED;

    struct sockaddr_storage address = {0};
    socklen_t size = sizeof address;
    if (getpeername(fd, (struct sockaddr *)&address, &size) != 0) address.ss_family = AF_UNSPEC;
    describe_address(&address, session->address, sizeof session->address);
    session->source = source_of(&address);
    size = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &size) != 0) address.ss_family = AF_UNSPEC;
    describe_address(&address, session->local_address, sizeof session->local_address);

    session->next_all = server->sessions;
    if (server->sessions != NULL) server->sessions->previous_all = session;
    server->sessions = session;
    server->session_count++;
    server->counters.connections++;
    account(session);
    loop_start_stream(server->loop, &session->stream, &stream_ops, fd);
}

void session_close(struct session *session, bool after_output)
{
    if ((session->flags & SESSION_CLOSING) != 0) return;
    if (after_output) {
        session->flags |= SESSION_CLOSE_AFTER;
        mark_dirty(session);
        return;
    }
    session->flags |= SESSION_CLOSING;
    loop_close_stream(&session->stream);
}

void sessions_close_all(struct server *server)
{
    for (struct session *session = server->sessions; session != NULL; session = session->next_all)
        session_close(session, false);
}

/* gives back what an idle session does not need */
static void shrink(struct session *session)
{
    if (session->in.size == session->in.head) {
        buffer_deinit(&session->in);
        resp_parser_trim(&session->parser);
    }
    if (session->out.size == session->out.head) buffer_deinit(&session->out);
    if (!loop_sending(&session->stream)) buffer_deinit(&session->sending);
    if ((session->flags & SESSION_BLOCKED) == 0) forward_cancel(session); /* nothing is under way */
    if (session->held_count == 0) {
        free(session->held);
        session->held = NULL;
        session->held_capacity = session->held_first = 0;
    }
    account(session);
}

/* about once a second, more often when there are few */
static void visit(struct session *session)
{
    struct server *server = session->server;
    const uint64_t second = 1000000000;
    if ((session->flags & SESSION_CLOSING) != 0) return;
    uint64_t idle_ns = server->now_ns - session->last_ns;
    uint64_t left = session->stream.send_left;
    if (left == 0 || left != session->stalled_left) session->stalled_since_ns = server->now_ns;
    session->stalled_left = left;
    if (!PLANTED_BUG(13) && server->now_ns - session->stalled_since_ns >= STALLED_MAX_S * second &&
        (output_crowded(session) || (session->flags & SESSION_CLOSE_AFTER) != 0)) {
        drop_slow_reader(session);
        return;
    }
    if ((session->flags & SESSION_AUTHENTICATED) == 0 &&
        server->now_ns - session->created_ns > UNAUTHENTICATED_MAX_S * second) {
        log_info("a client did not authenticate in time", "client=%s", session->address);
        session_close(session, false);
        return;
    }
    uint32_t timeout_s = server->config.idle_timeout_s;
    if (timeout_s > 0 && idle_ns > timeout_s * second && session->held_count == 0 &&
        (session->flags & (SESSION_BLOCKED | SESSION_PAUSED)) == 0) {
        session_close(session, false);
        return;
    }
    if (idle_ns > second) shrink(session);
}

void sessions_tick(struct server *server)
{
    uint32_t visits = server->session_count / VISITS + 1;
    for (uint32_t i = 0; i < visits; i++) {
        struct session *session = server->session_cursor;
        if (session == NULL) session = server->sessions;
        if (session == NULL) break;
        server->session_cursor = session->next_all;
        visit(session);
    }
    sessions_retry(server);
}
