/* Why there is a gate.
 *
 * libmicrohttpd 0.9.75 is lenient where leniency is dangerous (Content-Length beside Transfer-Encoding,
 * two Content-Lengths, bare line feeds, folded fields), shows its user no raw bytes, and knows a time-out
 * since the last byte but none for a head as a whole. So it does not get the client's socket. The gate reads
 * the client, lets server/http_parse.c judge the framing, and writes what is good into a socket pair whose
 * other end the library serves; the answer comes back the same way.
 *
 *   client <-> gate.fd   in -> (framing) -> pair   library
 *                        out <-------------- pair
 *
 * One request at a time is inside: the next head is not passed on before the answer of the one before is
 * complete (gate_completed). So a refusal always comes after the answers that precede it, at a moment
 * when the library has nothing to say, and the gate can write it itself. A pair is made at the first
 * complete head: who never sends one costs a descriptor and a small buffer, and is the first to go when
 * connections run short.
 *
 * All sockets sit, edge-triggered, in one epoll set that the loop watches. Flags remember which
 * directions are open, and pump() moves bytes until none of them leads anywhere. Each buffer is bounded (a
 * direction is not read while what it fills is full), so back-pressure reaches both sides. */

#define _GNU_SOURCE /* accept4, EPOLLRDHUP */
#include "server/http_gate.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/check.h"
#include "base/hash.h"
#include "base/logger.h"

enum {
    BUFFER_MAX = 64 << 10,
    READ_SIZE = 32 << 10,
    LINGER_SECONDS = 2,
    LINGER_BYTES = 64 << 20, /* who sends a body that was refused should still get to read why */
};
#define SECOND UINT64_C(1000000000)

enum gate_phase {
    PHASE_OPEN,
    PHASE_LAST, /* `out` holds the end of what will be said; nothing more is read */
    PHASE_LINGER, /* said and half closed: waits for the client to close, so that it reads what was said */
    PHASE_DEAD, /* to be freed by whoever holds the list */
};

/* What an epoll event points at: which of a gate's two descriptors. */
struct gate_end {
    struct gate *gate;
    bool pair;
};

struct gate {
    struct gates *gates;
    struct gate *next, *previous;
    struct gate *next_dead;
    struct gate *next_poked;
    bool poked;
    int fd, pair;
    struct gate_end client_end, pair_end;
    bool can_read, can_write, pair_can_read, pair_can_write;
    bool hung_up, pair_hung_up; /* epoll saw the end coming: a short read does not mean "empty" */
    bool end_of_input; /* the client will send no more */
    bool pair_ended; /* the library has closed */
    bool broken; /* the client's socket is of no use any more */
    bool busy; /* a request is with the library */
    bool whole; /* all of it */
    enum gate_phase phase;
    struct http_framing framing;
    struct buffer in; /* from the client; the first `passable` bytes are judged */
    size_t passable;
    struct buffer out; /* to the client */
    size_t counted; /* of server.client_bytes */
    uint64_t since_ns; /* of what `sweep` limits: the head, the pause, the body, lingering */
    uint64_t sent_ns; /* the client last took something */
    size_t discarded;
    uint32_t source;
    struct sockaddr_storage peer, local;
    socklen_t peer_size;
    bool local_known;
};

struct gates {
    struct server *server;
    struct gate_ops ops;
    int epoll;
    int listen_fd;
    struct gate *first;
    struct gate *dead;
    struct gate *poked; /* completed by the library: the next request may go in */
    struct gates_stats stats;
    bool library; /* something was passed on, or room was made */
    bool draining; /* the server stops */
};

static uint64_t now_ns(const struct gates *gates)
{
    return gates->server->io.clock.monotonic_ns(gates->server->io.clock.ctx);
}

const struct gates_stats *gates_stats(const struct gates *gates)
{
    return &gates->stats;
}

int gates_fd(const struct gates *gates)
{
    return gates->epoll;
}

uint32_t gate_source(const struct gate *gate)
{
    return gate->source;
}

const struct sockaddr_storage *gate_local(struct gate *gate)
{
    socklen_t size = sizeof gate->local;
    if (!gate->local_known) {
        if (getsockname(gate->fd, (struct sockaddr *)&gate->local, &size) != 0)
            gate->local.ss_family = AF_UNSPEC;
        gate->local_known = true;
    }
    return &gate->local;
}

static uint32_t source_of(const struct sockaddr_storage *peer)
{
    if (peer->ss_family == AF_INET) return ((const struct sockaddr_in *)peer)->sin_addr.s_addr;
    if (peer->ss_family == AF_INET6) {
        /* a /64 is one subscriber */
        const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)peer;
        if (IN6_IS_ADDR_V4MAPPED(&six->sin6_addr)) {
            uint32_t four;
            memcpy(&four, six->sin6_addr.s6_addr + 12, 4);
            return four;
        }
        return (uint32_t)hash64(0, bytes_of(six->sin6_addr.s6_addr, 8));
    }
    return 0;
}

/* Keeps server.client_bytes in step with what this connection holds. */
static void count_memory(struct gate *gate)
{
    size_t held = gate->in.capacity + gate->out.capacity;
    gate->gates->server->client_bytes += held;
    gate->gates->server->client_bytes -= gate->counted;
    gate->counted = held;
}

static void close_pair(struct gate *gate)
{
    if (gate->pair < 0) return;
    close(gate->pair);
    gate->pair = -1;
    gate->pair_ended = true;
    gate->gates->library = true;
    gate->gates->ops.abandon(gate->gates->ops.ctx, gate);
}

static void kill_gate(struct gate *gate)
{
    struct gates *gates = gate->gates;
    if (gate->phase == PHASE_DEAD) return;
    close_pair(gate);
    close(gate->fd);
    gate->phase = PHASE_DEAD;
    if (gate->previous != NULL) gate->previous->next = gate->next;
    if (gate->previous == NULL) gates->first = gate->next;
    if (gate->next != NULL) gate->next->previous = gate->previous;
    gate->next_dead = gates->dead;
    gates->dead = gate;
    gates->stats.open--;
    buffer_deinit(&gate->in);
    buffer_deinit(&gate->out);
    count_memory(gate);
}

/* Events of one epoll_wait() may still point at a gate that died of an earlier one, and so may the
 * list of the poked. */
static void bury(struct gates *gates)
{
    if (gates->poked != NULL) return;
    while (gates->dead != NULL) {
        struct gate *gate = gates->dead;
        gates->dead = gate->next_dead;
        free(gate);
    }
}

static const char *phrase_of(int status)
{
    switch (status) {
    case 400:
        return "Bad Request";
    case 408:
        return "Request Timeout";
    case 413:
        return "Content Too Large";
    case 414:
        return "URI Too Long";
    case 431:
        return "Request Header Fields Too Large";
    case 503:
        return "Service Unavailable";
    case 505:
        return "HTTP Version Not Supported";
    }
    return "Error";
}

static const char *code_of(int status)
{
    switch (status) {
    case 408:
        return "timeout";
    case 413:
        return "too_large";
    case 414:
        return "target_too_long";
    case 431:
        return "headers_too_large";
    case 503:
        return "busy";
    case 505:
        return "version_not_supported";
    }
    return "bad_request";
}

/* Says why and ends the connection. Nothing of the request, or not all, is with the library. */
static void refuse(struct gate *gate, int status, const char *reason)
{
    ASSERT(!(gate->busy && gate->whole));
    close_pair(gate);
    char body[256];
    int size = snprintf(body, sizeof body, "{\"error\":{\"code\":\"%s\",\"message\":\"%s\"}}\n",
        code_of(status), reason);
    if (buffer_printf(&gate->out,
            "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nX-Content-Type-Options: "
            "nosniff\r\n"
            "Content-Length: %d\r\nConnection: close\r\n\r\n%s",
            status, phrase_of(status), size, body) != OK)
        gate->broken = true;
    buffer_deinit(&gate->in);
    gate->passable = 0;
    gate->phase = PHASE_LAST;
    gate->sent_ns = now_ns(gate->gates);
}

/* ---- moving bytes ---- */

static bool read_client(struct gate *gate)
{
    size_t held = gate->in.size - gate->in.head;
    if (!gate->can_read || gate->end_of_input || gate->phase != PHASE_OPEN) return false;
    /* what follows a whole request waits in the kernel */
    if ((gate->busy && gate->whole) || held >= BUFFER_MAX) return false;
    void *at = buffer_reserve(&gate->in, READ_SIZE);
    if (at == NULL) {
        gate->broken = true;
        return true;
    }
    ssize_t got = recv(gate->fd, at, READ_SIZE, 0);
    if (got < 0) {
        if (errno == EINTR) return true;
        gate->can_read = false;
        if (errno != EAGAIN && errno != EWOULDBLOCK) gate->broken = true;
        return gate->broken;
    }
    if (got == 0) {
        gate->end_of_input = true;
        return true;
    }
    if (got < READ_SIZE && !gate->hung_up) gate->can_read = false;
    if (held == 0 && !gate->busy) gate->since_ns = now_ns(gate->gates);
    buffer_wrote(&gate->in, (size_t)got);
    gate->gates->server->counters.net_in += (uint64_t)got;
    return true;
}

static bool open_pair(struct gate *gate)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) != 0) return false;
    struct epoll_event event = {
        .events = EPOLLIN | EPOLLOUT | EPOLLET,
        .data.ptr = &gate->pair_end,
    };
    if (epoll_ctl(gate->gates->epoll, EPOLL_CTL_ADD, ends[0], &event) != 0) {
        close(ends[0]);
        close(ends[1]);
        return false;
    }
    if (!gate->gates->ops.adopt(gate->gates->ops.ctx, gate, ends[1],
            (const struct sockaddr *)&gate->peer, gate->peer_size)) {
        close(ends[0]);
        return false;
    }
    gate->pair = ends[0];
    gate->pair_can_write = true;
    return true;
}

/* Lets the framing checker see what has come. */
static bool judge(struct gate *gate)
{
    if (gate->phase != PHASE_OPEN || (gate->busy && gate->whole)) return false;
    /* a refusal closes the pair: the answer before it has to be out of it */
    if (!gate->busy && gate->pair >= 0 && gate->pair_can_read) return false;
    struct bytes held = buffer_view(&gate->in);
    struct bytes fresh = bytes_of(held.at + gate->passable, held.size - gate->passable);
    if (fresh.size == 0) return false;
    size_t skip;
    size_t pass;
    enum http_feed result = http_framing_feed(&gate->framing, fresh, &skip, &pass);
    if (skip > 0) { /* only at the front, before anything of this request passed */
        ASSERT(gate->passable == 0 && skip == pass);
        buffer_consume(&gate->in, skip);
        return true;
    }
    if (result == HTTP_FEED_ERROR) {
        gate->gates->stats.refused++;
        gate->gates->server->counters.protocol_errors++;
        log_debug("HTTP request refused", "status=%d reason=\"%s\"", gate->framing.status,
            gate->framing.reason);
        refuse(gate, gate->framing.status, gate->framing.reason);
        return true;
    }
    if (pass == 0) return false;
    if (!gate->busy) {
        if (gate->pair < 0 && !open_pair(gate)) {
            refuse(gate, 503, "no room for another connection; try again later");
            return true;
        }
        gate->busy = true;
        gate->since_ns = now_ns(gate->gates);
    }
    gate->passable += pass;
    if (result == HTTP_FEED_DONE) gate->whole = true;
    return true;
}

static bool pass_on(struct gate *gate)
{
    if (gate->passable == 0 || gate->pair < 0 || !gate->pair_can_write) return false;
    struct bytes held = buffer_view(&gate->in);
    ssize_t sent = send(gate->pair, held.at, gate->passable, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno == EINTR) return true;
        gate->pair_can_write = false;
        /* closed by the library: it has answered already, and wants no more of this body */
        if (errno != EAGAIN && errno != EWOULDBLOCK) {
            gate->passable = 0;
            gate->whole = true;
        }
        return false;
    }
    buffer_consume(&gate->in, (size_t)sent);
    gate->passable -= (size_t)sent;
    gate->gates->library = true;
    return true;
}

static bool read_library(struct gate *gate)
{
    if (gate->pair < 0 || !gate->pair_can_read || gate->out.size - gate->out.head >= BUFFER_MAX)
        return false;
    bool empty = gate->out.size == gate->out.head;
    void *at = buffer_reserve(&gate->out, READ_SIZE);
    if (at == NULL) {
        gate->broken = true;
        return true;
    }
    ssize_t got = recv(gate->pair, at, READ_SIZE, 0);
    if (got < 0 && errno == EINTR) return true;
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        gate->pair_can_read = false;
        return false;
    }
    if (got <= 0) {
        gate->pair_ended = true;
        gate->pair_can_read = false;
        close_pair(gate);
        gate->busy = false;
        if (gate->phase == PHASE_OPEN) gate->phase = PHASE_LAST;
        return true;
    }
    if (got < READ_SIZE && !gate->pair_hung_up) gate->pair_can_read = false;
    if (empty) gate->sent_ns = now_ns(gate->gates);
    buffer_wrote(&gate->out, (size_t)got);
    gate->gates->library = true; /* it may have more to write */
    return true;
}

static bool write_client(struct gate *gate)
{
    struct bytes held = buffer_view(&gate->out);
    if (held.size == 0 || !gate->can_write) return false;
    ssize_t sent = send(gate->fd, held.at, held.size, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno == EINTR) return true;
        gate->can_write = false;
        if (errno != EAGAIN && errno != EWOULDBLOCK) gate->broken = true;
        return gate->broken;
    }
    buffer_consume(&gate->out, (size_t)sent);
    gate->gates->server->counters.net_out += (uint64_t)sent;
    gate->sent_ns = now_ns(gate->gates);
    return true;
}

/* Closing a socket that holds unread bytes resets the connection and may destroy the answer on its
 * way: so half of it is closed, and what still comes is read and forgotten, for a while. */
static bool linger(struct gate *gate)
{
    if (gate->phase == PHASE_LAST && gate->out.size == gate->out.head) {
        if (gate->end_of_input || shutdown(gate->fd, SHUT_WR) != 0) {
            gate->broken = true;
            return true;
        }
        gate->phase = PHASE_LINGER;
        gate->since_ns = now_ns(gate->gates);
    }
    if (gate->phase != PHASE_LINGER || !gate->can_read) return false;
    char waste[32 << 10];
    ssize_t got = recv(gate->fd, waste, sizeof waste, 0);
    if (got < 0 && errno == EINTR) return true;
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        gate->can_read = false;
        return false;
    }
    if (got > 0) gate->discarded += (size_t)got;
    if (got <= 0 || gate->discarded > LINGER_BYTES) gate->broken = true;
    return true;
}

static void pump(struct gate *gate)
{
    bool moved = true;
    while (moved && !gate->broken && gate->phase != PHASE_DEAD) {
        moved = read_library(gate);
        moved = write_client(gate) || moved;
        moved = read_client(gate) || moved;
        moved = judge(gate) || moved;
        moved = pass_on(gate) || moved;
        moved = linger(gate) || moved;
    }
    /* half closed after a whole request is fine; in the middle of one, or with nothing owed, it is the end */
    if (gate->phase == PHASE_OPEN && gate->end_of_input && gate->passable == 0 &&
        !(gate->busy && gate->whole) && (gate->busy || gate->out.size == gate->out.head))
        gate->broken = true;
    if (gate->broken) {
        kill_gate(gate);
        return;
    }
    if (gate->phase == PHASE_DEAD) return;
    /* an idle connection keeps no buffers to speak of */
    if (gate->in.size == gate->in.head && gate->in.capacity > 4096) buffer_reset(&gate->in, 4096);
    if (gate->out.size == gate->out.head && gate->out.capacity > 4096)
        buffer_reset(&gate->out, 4096);
    count_memory(gate);
}

void gate_completed(struct gate *gate)
{
    if (gate->phase != PHASE_OPEN || !gate->busy) return;
    if (!gate->whole) return; /* answered early: the library closes, and so does the gate */
    gate->busy = gate->whole = false;
    gate->pair_can_read = true; /* epoll will say so, but perhaps behind another event */
    http_framing_init(&gate->framing, VALUE_SIZE_MAX);
    gate->since_ns = now_ns(gate->gates);
    if (gate->gates->draining) gate->phase = PHASE_LAST;
    if (gate->poked) return;
    gate->poked = true;
    gate->next_poked = gate->gates->poked;
    gate->gates->poked = gate;
}

/* ---- life ---- */

/* Makes room by ending the connection that has waited longest without a request; false: all of them work. */
static bool evict(struct gates *gates, bool of_source, uint32_t source)
{
    struct gate *oldest = NULL;
    for (struct gate *gate = gates->first; gate != NULL; gate = gate->next) {
        if (of_source && gate->source != source) continue;
        if (gate->busy || gate->phase == PHASE_LAST) continue;
        if (oldest == NULL || gate->since_ns < oldest->since_ns) oldest = gate;
    }
    if (oldest == NULL) return false;
    gates->stats.rejected++;
    kill_gate(oldest);
    return true;
}

static bool has_room(struct gates *gates, uint32_t source)
{
    if (gates->stats.open >= GATES_MAX && !evict(gates, false, 0)) return false;
    if (gates->stats.open < GATES_SOURCE_MAX) return true;
    uint32_t same = 0;
    for (struct gate *gate = gates->first; gate != NULL; gate = gate->next)
        same += gate->source == source;
    return same < GATES_SOURCE_MAX || evict(gates, true, source);
}

static void accept_client(void *ctx, int fd)
{
    struct gates *gates = ctx;
    struct sockaddr_storage peer = {0};
    socklen_t size = sizeof peer;
    int one = 1;
    gates->stats.accepted++;
    if (getpeername(fd, (struct sockaddr *)&peer, &size) != 0) {
        close(fd);
        return;
    }
    uint32_t source = source_of(&peer);
    struct gate *gate = has_room(gates, source) ? calloc(1, sizeof *gate) : NULL;
    if (gate == NULL) {
        static const char busy[] = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n"
                                   "Connection: close\r\n\r\n";
        gates->stats.rejected++;
        /* best effort: whether it still reads does not matter */
        ssize_t sent = send(fd, busy, sizeof busy - 1, MSG_NOSIGNAL | MSG_DONTWAIT);
        (void)sent;
        close(fd);
        return;
    }
    int flags = fcntl(fd, F_GETFL);
    (void)fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    gate->gates = gates;
    gate->fd = fd;
    gate->pair = -1;
    gate->client_end = (struct gate_end){.gate = gate, .pair = false};
    gate->pair_end = (struct gate_end){.gate = gate, .pair = true};
    gate->peer = peer;
    gate->peer_size = size;
    gate->source = source;
    gate->since_ns = now_ns(gates);
    http_framing_init(&gate->framing, VALUE_SIZE_MAX);
    struct epoll_event event = {
        .events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
        .data.ptr = &gate->client_end,
    };
    if (epoll_ctl(gates->epoll, EPOLL_CTL_ADD, fd, &event) != 0) {
        log_warn("HTTP connection not taken", "errno=%d", errno);
        close(fd);
        free(gate);
        return;
    }
    gate->next = gates->first;
    if (gate->next != NULL) gate->next->previous = gate;
    gates->first = gate;
    gates->stats.open++;
    gate->can_read = gate->can_write = true;
    pump(gate);
}

enum err gates_open(
    struct server *server, int listen_fd, const struct gate_ops *ops, struct gates **gates_out)
{
    struct gates *gates = calloc(1, sizeof *gates);
    if (gates == NULL) return ERR_NOMEM;
    gates->server = server;
    gates->ops = *ops;
    gates->listen_fd = listen_fd;
    gates->epoll = epoll_create1(EPOLL_CLOEXEC);
    enum err err = gates->epoll < 0 ? err_from_errno(errno) : OK;
    if (err == OK) err = loop_listen(server->loop, listen_fd, accept_client, gates);
    if (err != OK) {
        if (gates->epoll >= 0) close(gates->epoll);
        free(gates);
        return err;
    }
    *gates_out = gates;
    return OK;
}

void gates_drain(struct gates *gates)
{
    struct gate *next;
    if (gates->draining) return;
    gates->draining = true;
    loop_unlisten(gates->server->loop, gates->listen_fd);
    for (struct gate *gate = gates->first; gate != NULL; gate = next) {
        next = gate->next;
        if (!gate->busy && gate->out.size == gate->out.head) kill_gate(gate);
    }
}

bool gates_busy(const struct gates *gates)
{
    for (const struct gate *gate = gates->first; gate != NULL; gate = gate->next) {
        if (gate->busy || gate->out.size > gate->out.head) return true;
    }
    return false;
}

void gates_close(struct gates *gates)
{
    gates_drain(gates);
    while (gates->first != NULL)
        kill_gate(gates->first);
    gates->poked = NULL;
    bury(gates);
    close(gates->epoll);
    free(gates);
}

bool gates_poll(struct gates *gates)
{
    struct epoll_event events[64];
    int count;
    /* bounded, so that other work of the loop gets its turn; what is left makes gates_fd() readable */
    for (int round = 0; round < 4; round++) {
        count = epoll_wait(gates->epoll, events, 64, 0);
        for (int i = 0; i < count; i++) {
            struct gate_end *end = events[i].data.ptr;
            struct gate *gate = end->gate;
            uint32_t what = events[i].events;
            if (gate->phase == PHASE_DEAD) continue;
            if (end->pair) {
                if (what & (EPOLLHUP | EPOLLERR)) gate->pair_hung_up = true;
                if (what & (EPOLLIN | EPOLLHUP | EPOLLERR)) gate->pair_can_read = true;
                if (what & (EPOLLOUT | EPOLLHUP | EPOLLERR)) gate->pair_can_write = true;
            } else {
                if (what & EPOLLRDHUP) gate->hung_up = true;
                if (what & (EPOLLIN | EPOLLRDHUP)) gate->can_read = true;
                if (what & EPOLLOUT) gate->can_write = true;
                if (what & (EPOLLHUP | EPOLLERR)) gate->broken = true;
            }
            pump(gate);
        }
        while (gates->poked != NULL) {
            struct gate *gate = gates->poked;
            gates->poked = gate->next_poked;
            gate->poked = false;
            if (gate->phase != PHASE_DEAD) pump(gate);
        }
        if (count < 64) break;
    }
    bury(gates);
    bool library = gates->library;
    gates->library = false;
    return library;
}

static void sweep_one(struct gate *gate, uint64_t now)
{
    uint64_t age = now > gate->since_ns ? now - gate->since_ns : 0;
    bool unsent = gate->out.size > gate->out.head;
    if (gate->phase == PHASE_LINGER) {
        if (age > LINGER_SECONDS * SECOND) kill_gate(gate);
        return;
    }
    if (unsent) {
        if (now > gate->sent_ns + GATE_STALL_SECONDS * SECOND) {
            gate->gates->stats.timed_out++;
            kill_gate(gate);
        }
        return;
    }
    if (gate->busy) {
        if (gate->whole || age < GATE_BODY_GRACE_SECONDS * SECOND) return;
        uint64_t received = gate->framing.body - gate->framing.left;
        uint64_t wanted = (age / SECOND - GATE_BODY_GRACE_SECONDS) * GATE_BODY_RATE;
        if (received >= wanted || gate->passable > 0) return;
        gate->gates->stats.timed_out++;
        refuse(gate, 408, "the body came too slowly");
        pump(gate);
        return;
    }
    bool nothing = gate->in.size == gate->in.head;
    if (nothing && gate->pair >= 0) {
        if (age > GATE_IDLE_SECONDS * SECOND) kill_gate(gate);
    } else if (age > GATE_HEAD_SECONDS * SECOND) {
        gate->gates->stats.timed_out++;
        if (nothing) {
            kill_gate(gate);
        } else {
            refuse(gate, 408, "the request head took longer than 10 seconds");
            pump(gate);
        }
    }
}

void gates_sweep(struct gates *gates, uint64_t now)
{
    struct gate *next;
    for (struct gate *gate = gates->first; gate != NULL; gate = next) {
        next = gate->next;
        sweep_one(gate, now);
    }
    bury(gates);
}
