#ifndef CLUSTER_NET_NNG_INTERNAL_H
#define CLUSTER_NET_NNG_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include <nng/nng.h>
#include <nng/protocol/reqrep0/rep.h>
#include <nng/protocol/reqrep0/req.h>
#include <nng/supplemental/util/platform.h>
#include <sodium.h>

#include "base/buffer.h"
#include "base/check.h"
#include "cluster/envelope.h"
#include "cluster/net_gate.h"
#include "cluster/net_nng.h"

/* Lanes are raw req sockets that dial one raw rep socket. Raw, because then these protocols keep no state, set no
 * timers, push back in both directions and take many senders; push/pull of this NNG crashes when a peer goes away
 * early, and pair locks a returning peer out (docs/decisions/0007-transport.md).
 *
 * A connection begins with a hello, answered on the same connection by a welcome that tells which process listens;
 * frames wait for it, because they must name that process. One packet of a lane is with NNG at a time. Meanwhile frames
 * gather in the lane's queue, already in their form on the wire, and leave together in the next packet: batches grow
 * with the load and cost nobody a delay.
 *
 * Closing. This NNG may wait for ever, and its thread that buries connections with it, if a connection is closed from
 * our side just when it starts or moves data (a part of a message has gone through, the next part is asked for, and
 * the request is dropped in silence). What the other side closes is safe. So nothing is closed here that is young or
 * moving: a lane that is not wanted any more stops sending and dialling, is retired, and is closed when it is quiet.
 *
 * Threads. NNG's callbacks run on its own threads. They touch a lane under lane->lock, and the inbox under
 * inbox.lock; never both, and neither while calling into NNG. Peers, gate and everything else are the owner's. */

enum {
    QUEUE_KEEP = 256 << 10,
    INBOX_PACKETS_MAX = 4096,
    INBOX_BYTES_MAX = 64 << 20,
    INBOUND_MAX = 1024, /* connections to our listener */
    ANSWERS_MAX = 256,
    HANDLED_MAX = 4096, /* packets and events of one poll */
    SEND_TIMEOUT_MS = 1000,
    TICK_MS = 250,
    HELLO_AGAIN_MS = 500,
    REDIAL_MS = 5000,
    QUIET_MS = 250, /* nothing moved for so long: may be closed */
    YOUNG_MS = 500, /* a connection is too young to be closed */
    NEVER_MS = 24 * 3600 * 1000,
    CLOSE_MS = 3000, /* patience with NNG at the end */
    REPLACED_MAX = 64,
    RETIRED_MAX = 256,
    RECONNECT_MIN_MS = 20,
    RECONNECT_MAX_MS = 250,
    ANSWER_SIZE_MAX = 4096, /* what a listener may send back to us */
    ADDRESS_SIZE = 280,
    NODES = 1 << 16,
    KEY_SIZE = crypto_aead_xchacha20poly1305_ietf_KEYBYTES,
};

_Static_assert(crypto_aead_xchacha20poly1305_ietf_NPUBBYTES == ENVELOPE_NONCE_SIZE, "nonce");
_Static_assert(crypto_aead_xchacha20poly1305_ietf_ABYTES == ENVELOPE_TAG_SIZE, "tag");

/* Ends the list of hops in NNG's header; then there is one hop. */
static const uint32_t last_hop = 0x80000001u;

/* What a lane may queue, and how much of it leaves in one packet; a single frame may be larger than either. */
static const struct {
    size_t queue_max;
    size_t packet_max;
} limits[NET_LANES] = {
    [NET_CONTROL] = {1 << 20, 64 << 10},
    [NET_DATA] = {32 << 20, 256 << 10},
    [NET_BULK] = {4 << 20, 0},
};

struct transport;

/* A one-way connection to a peer, with a socket and a dialer of its own. */
struct lane {
    struct transport *transport;
    uint16_t node;
    enum net_lane kind;
    uint64_t serial; /* names this lane in the inbox: who comes after it has another */
    uint64_t since_ms; /* owner's: opened; later, retired */
    struct lane *next; /* owner's: of those retired */
    bool opened; /* owner's */
    nng_socket socket;
    nng_dialer dialer;
    nng_aio *send_aio;
    nng_aio *receive_aio;

    pthread_mutex_t lock; /* of everything below */
    struct buffer queue; /* frames as envelope_put_frame() writes them */
    struct envelope stamp; /* of the next packet */
    uint8_t store_id[ENVELOPE_GREETING_SIZE]; /* ours */
    uint32_t pipe; /* the connection; 0: none */
    uint64_t pipe_ms; /* when it came or went */
    uint64_t moved_ms; /* when NNG last took a packet */
    bool busy; /* send_aio is with NNG */
    uint32_t busy_pipe; /* the connection at that time */
    bool closing;
    bool hello_due;
    bool welcomed;
    uint64_t nonce; /* of the last hello */
    uint64_t hello_ms;
};

struct peer {
    uint16_t node;
    bool up;
    uint64_t boot;
    char url[ADDRESS_SIZE];
    struct lane *lanes[NET_LANES];
    struct peer *next;
};

enum item_kind { ITEM_PACKET, ITEM_ANSWER, ITEM_LANE_DOWN, ITEM_STALLED, ITEM_INBOUND_GONE };

/* Something for the owner. */
struct item {
    enum item_kind kind;
    nng_msg *msg; /* opened and checked; NULL of events */
    struct envelope envelope;
    uint32_t pipe;
    uint16_t node;
    enum net_lane lane;
    uint64_t serial;
};

struct ring {
    struct item *at;
    size_t capacity, head, count;
};

enum { RINGS = NET_LANES };

struct inbox {
    pthread_mutex_t lock;
    struct ring rings[RINGS]; /* by lane; the first has events and greetings too */
    size_t packets, bytes;
    bool paused; /* the listener's receive waits for room */
    bool signalled; /* the owner was woken and has not come yet */
    bool tick;
    bool closing;
    struct {
        uint32_t pipe;
        bool believed; /* an authentic packet came from it */
    } inbound[INBOUND_MAX];
    size_t inbound_count;
};

/* Where sockets are closed: by a thread of its own, because NNG may not come back from it. It has memory of its own,
 * because then nobody else can free it. */
struct grave {
    struct transport *transport;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct lane *retired;
    size_t count;
    bool all; /* the transport itself too */
    bool over; /* it is gone */
};

struct transport {
    nng_socket listener;
    char address[ADDRESS_SIZE];
    nng_aio *receive_aio;
    nng_aio *tick_aio;
    bool started;
    bool polling;

    void *receiver;
    void (*on_frame)(void *, const struct net_peer *, enum net_lane, struct bytes);
    void (*on_event)(void *, uint16_t, enum net_event);
    void (*wake)(void *);

    uint64_t boot;
    struct net_gate gate;
    struct peer **peers; /* by node */
    struct peer *first;
    struct grave *grave;
    uint64_t serials;
    struct {
        uint32_t pipe;
        uint64_t at_ms;
    } replaced[REPLACED_MAX]; /* connections to us whose senders speak on others now */
    size_t replaced_count;
    atomic_uint_least64_t seq[NET_LANES];

    bool sealed;
    uint8_t key[KEY_SIZE];
    uint8_t nonce_prefix[16];
    atomic_uint_least64_t nonces;

    struct inbox inbox;
    struct item current; /* the packet being delivered; msg NULL: none */
    struct bytes current_rest;
    struct net_peer current_from;

    /* welcomes and refusals on their way to NNG */
    pthread_mutex_t answers_lock;
    nng_aio *answer_aio;
    nng_msg *answers[ANSWERS_MAX];
    size_t answers_head, answers_count;
    bool answering;

    struct {
        atomic_uint_least64_t frames_sent, packets_sent, bytes_sent;
        atomic_uint_least64_t frames_received, packets_received, bytes_received;
        atomic_uint_least64_t full, stalls, redials, refused_cluster, refused_clone, was_refused;
        atomic_uint_least64_t dropped_malformed, dropped_unauthentic, dropped_stale;
        atomic_uint_least64_t dropped_stranger, dropped_duplicate, dropped_unsent,
            dropped_connections;
    } counters;
};

#define COUNT(transport, name, by)                                                                 \
    atomic_fetch_add_explicit(&(transport)->counters.name, (by), memory_order_relaxed)

static inline uint64_t now_ms(void)
{
    return (uint64_t)nng_clock();
}

void ring_deinit(struct ring *ring);
/* Wakes the owner unless it was woken already. Takes inbox.lock held, gives it back. */
void inbox_unlock_and_wake(struct transport *transport);
bool inbox_is_full(const struct inbox *inbox);
/* Under inbox.lock. False: no memory; the item is still the caller's. */
bool inbox_push(struct inbox *inbox, const struct item *item);
void inbox_event(struct transport *transport, const struct item *item);
/* Control first, so that a vote never waits behind data; a quarter of the turns go the other way round, so that
 * nothing waits for ever. */
bool inbox_pop(struct inbox *inbox, unsigned turn, struct item *out);
/* Turns header and plain body into what travels. `packet` has room for the tag if we seal. */
void packet_close(struct transport *transport, uint8_t *packet, size_t body_size);
/* The reverse, in place: checks everything that can be checked without knowing the sender. */
bool packet_open(struct transport *transport, nng_msg *msg, struct envelope *out);
struct bytes packet_body(nng_msg *msg, const struct envelope *envelope);
/* A packet with its header written and its body to be filled; NULL: no memory. */
nng_msg *packet_new(struct transport *transport, struct envelope *envelope);
void stamp_identity(struct transport *transport, struct envelope *envelope);
/* Gives NNG the next packet, if it has none and there is one. From any thread. */
void lane_pump(struct lane *lane);
/* What a peer's packets are addressed to. */
uint16_t number_of(uint16_t node);
enum err lane_open(struct lane *lane, const char *url);
/* Under lane->lock, or before anybody else knows the lane. */
void lane_stamp(struct lane *lane, uint16_t to);
struct lane *lane_new(struct transport *transport, uint16_t node, enum net_lane kind);
void lane_free(struct lane *lane);
/* Stops sending and dialling; the grave's thread does the rest. */
void lane_retire(struct lane *lane);
struct grave *grave_open(struct transport *transport);
/* Closes the transport and everything retired. False if NNG is stuck in it: then it is left there. */
bool grave_close(struct grave *grave);
void aios_free(struct transport *transport);
void transport_free(struct transport *transport);

#endif
