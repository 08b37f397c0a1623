#ifndef SERVER_HTTP_GATE_H
#define SERVER_HTTP_GATE_H

#include "server/http_parse.h"
#include "server/server.h"

/* The gate before the HTTP library: owns the clients' sockets, judges framing and pace, and passes what is good
 * on through a socket pair, one request at a time. See http_gate.c. All of it belongs to the loop's thread. */

struct gates;
struct gate;

enum {
    GATES_MAX = 1024, /* connections */
    GATES_SOURCE_MAX = 512, /* of these, from one address */
    GATE_HEAD_SECONDS =
        10, /* from the first byte of a head to its last, and from accept to the first */
    GATE_IDLE_SECONDS = 60, /* between requests */
    GATE_STALL_SECONDS = 60, /* a client that takes no byte of its answer */
    GATE_BODY_GRACE_SECONDS = 10,
    GATE_BODY_RATE = 1024, /* bytes a second, on average, after the grace */
};

struct gate_ops {
    /* The library's end of the pair: takes it over. False: could not, and has closed it. */
    bool (*adopt)(
        void *ctx, struct gate *gate, int fd, const struct sockaddr *peer, socklen_t size);
    /* The client is gone, or was refused in the middle of a body: whatever the library does for it is for nobody.
     * The gate is freed after this. */
    void (*abandon)(void *ctx, struct gate *gate);
    void *ctx;
};

struct gates_stats {
    uint64_t accepted;
    uint64_t rejected; /* at a limit, or evicted for a newer one */
    uint64_t refused; /* malformed requests */
    uint64_t timed_out; /* too slow a head or body, or a stalled reader */
    uint32_t open;
};

enum err gates_open(struct server *server, int listen_fd, const struct gate_ops *ops,
    struct gates **gates_out) MUST_CHECK;
void gates_close(struct gates *gates);
/* Readable when gates_poll() has something to do. */
int gates_fd(const struct gates *gates);
/* Moves bytes; true if the library has something to read or write now. */
bool gates_poll(struct gates *gates);
/* Time limits; every 100 ms to 1 s. */
void gates_sweep(struct gates *gates, uint64_t now_ns);
const struct gates_stats *gates_stats(const struct gates *gates);

/* Takes no more connections and no more requests; what is being answered still is. */
void gates_drain(struct gates *gates);
/* Something is being answered. */
bool gates_busy(const struct gates *gates);

/* The library has written the whole answer of the request that was passed on. */
void gate_completed(struct gate *gate);
/* For limits by source: the peer's IPv4 address, or a hash of it. */
uint32_t gate_source(const struct gate *gate);
/* The address the client reached us at. */
const struct sockaddr_storage *gate_local(struct gate *gate);

#endif
