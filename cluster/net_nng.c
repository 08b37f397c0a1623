#include "cluster/net_nng.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include <nng/nng.h>
#include <nng/protocol/reqrep0/rep.h>
#include <nng/protocol/reqrep0/req.h>
#include <nng/supplemental/util/platform.h>
#include <sodium.h>

#include "base/buffer.h"
#include "base/check.h"
#include "cluster/envelope.h"
#include "cluster/net_gate.h"

/* Lanes are raw req sockets that dial one raw rep socket. Raw, because then these protocols keep no state, set no
 * timers, push back in both directions and take many senders; push/pull of this NNG crashes when a peer goes away
 * early, and pair locks a returning peer out (docs/decisions/0007-transport.md).
 *
 * A connection begins with a hello, answered on the same connection by a welcome that tells which process listens;
 * frames wait for it, because they must name that process. One packet of a lane is with NNG at a time. Meanwhile frames
 * gather in the lane's queue, already in their form on the wire, and leave together in the next packet: batches grow
 * with the load and cost nobody a delay.
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

/* A one-way connection to a peer. Lives as long as its peer. */
struct lane {
    struct transport *transport;
    uint16_t node;
    enum net_lane kind;
    uint64_t serial; /* names this lane in the inbox; a peer set anew has others */
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
    uint64_t down_since_ms;
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
    struct lane lanes[NET_LANES];
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
    struct {
        uint32_t pipe;
        bool believed; /* an authentic packet came from it */
    } inbound[INBOUND_MAX];
    size_t inbound_count;
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
    uint64_t serials;
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

static uint64_t now_ms(void)
{
    return (uint64_t)nng_clock();
}

/* ---- the inbox: filled by NNG's threads, emptied by the owner ---- */

static void ring_deinit(struct ring *ring)
{
    for (size_t i = 0; i < ring->count; i++) {
        nng_msg *msg = ring->at[(ring->head + i) & (ring->capacity - 1)].msg;
        if (msg != NULL) nng_msg_free(msg);
    }
    free(ring->at);
    *ring = (struct ring){0};
}

static bool ring_grow(struct ring *ring)
{
    size_t capacity = ring->capacity == 0 ? 64 : ring->capacity * 2;
    struct item *at = malloc(capacity * sizeof *at);
    if (at == NULL) return false;
    for (size_t i = 0; i < ring->count; i++) {
        at[i] = ring->at[(ring->head + i) & (ring->capacity - 1)];
    }
    free(ring->at);
    *ring = (struct ring){.at = at, .capacity = capacity, .count = ring->count};
    return true;
}

static bool ring_push(struct ring *ring, const struct item *item)
{
    if (ring->count == ring->capacity && !ring_grow(ring)) return false;
    if (PLANTED_BUG(41) && item->kind == ITEM_PACKET && ring->count > 0) {
        ring->head = (ring->head + ring->capacity - 1) & (ring->capacity - 1);
        ring->at[ring->head] = *item;
    } else {
        ring->at[(ring->head + ring->count) & (ring->capacity - 1)] = *item;
    }
    ring->count++;
    return true;
}

static bool ring_pop(struct ring *ring, struct item *out)
{
    if (ring->count == 0) return false;
    *out = ring->at[ring->head];
    ring->head = (ring->head + 1) & (ring->capacity - 1);
    ring->count--;
    return true;
}

/* Wakes the owner unless it was woken already. Takes inbox.lock held, gives it back. */
static void inbox_unlock_and_wake(struct transport *transport)
{
    bool wake = !transport->inbox.signalled && transport->started;
    if (wake) transport->inbox.signalled = true;
    pthread_mutex_unlock(&transport->inbox.lock);
    if (wake) transport->wake(transport->receiver);
}

static bool inbox_is_full(const struct inbox *inbox)
{
    return inbox->packets >= INBOX_PACKETS_MAX || inbox->bytes >= INBOX_BYTES_MAX;
}

/* Under inbox.lock. False: no memory; the item is still the caller's. */
static bool inbox_push(struct inbox *inbox, const struct item *item)
{
    bool frames = item->kind == ITEM_PACKET && item->envelope.kind == ENVELOPE_FRAMES;
    if (!ring_push(&inbox->rings[frames ? item->lane : NET_CONTROL], item)) return false;
    if (item->msg != NULL) {
        inbox->packets++;
        inbox->bytes += nng_msg_len(item->msg);
    }
    return true;
}

static void inbox_event(struct transport *transport, const struct item *item)
{
    pthread_mutex_lock(&transport->inbox.lock);
    (void)inbox_push(
        &transport->inbox, item); /* an event lost for want of memory: time-outs find it out */
    inbox_unlock_and_wake(transport);
}

/* Control first, so that a vote never waits behind data; a quarter of the turns go the other way round, so that
 * nothing waits for ever. */
static bool inbox_pop(struct inbox *inbox, unsigned turn, struct item *out)
{
    bool found = false;
    pthread_mutex_lock(&inbox->lock);
    for (int i = 0; i < RINGS && !found; i++) {
        found = ring_pop(&inbox->rings[turn % 4 == 3 ? RINGS - 1 - i : i], out);
    }
    if (found && out->msg != NULL) {
        inbox->packets--;
        inbox->bytes -= nng_msg_len(out->msg);
    }
    pthread_mutex_unlock(&inbox->lock);
    return found;
}

/* ---- packets ---- */

/* Turns header and plain body into what travels. `packet` has room for the tag if we seal. */
static void packet_close(struct transport *transport, uint8_t *packet, size_t body_size)
{
    if (!transport->sealed) {
        envelope_sum(packet, ENVELOPE_SIZE + body_size);
        return;
    }
    uint8_t *nonce = packet + ENVELOPE_PUBLIC_SIZE;
    memcpy(nonce, transport->nonce_prefix, sizeof transport->nonce_prefix);
    store_u64(nonce + sizeof transport->nonce_prefix, atomic_fetch_add(&transport->nonces, 1));
    uint8_t *body = packet + ENVELOPE_SIZE;
    (void)crypto_aead_xchacha20poly1305_ietf_encrypt(
        body, NULL, body, body_size, packet, ENVELOPE_PUBLIC_SIZE, NULL, nonce, transport->key);
}

/* The reverse, in place: checks everything that can be checked without knowing the sender. */
static bool packet_open(struct transport *transport, nng_msg *msg, struct envelope *out)
{
    uint8_t *packet = nng_msg_body(msg);
    struct bytes whole = bytes_of(packet, nng_msg_len(msg));
    if (envelope_decode(whole, out) != OK) {
        COUNT(transport, dropped_malformed, 1);
        return false;
    }
    bool sealed = (out->flags & ENVELOPE_SEALED) != 0;
    uint8_t *body = packet + ENVELOPE_SIZE;
    if (sealed != transport->sealed ||
        (sealed &&
            crypto_aead_xchacha20poly1305_ietf_decrypt(body, NULL, NULL, body,
                whole.size - ENVELOPE_SIZE, packet, ENVELOPE_PUBLIC_SIZE,
                packet + ENVELOPE_PUBLIC_SIZE, transport->key) != 0)) {
        COUNT(transport, dropped_unauthentic, 1);
        return false;
    }
    if ((!sealed && envelope_check_sum(whole) != OK) ||
        envelope_check_body(out, bytes_of(body, out->body_size)) != OK) {
        COUNT(transport, dropped_malformed, 1);
        return false;
    }
    return true;
}

static struct bytes packet_body(nng_msg *msg, const struct envelope *envelope)
{
    return bytes_of((uint8_t *)nng_msg_body(msg) + ENVELOPE_SIZE, envelope->body_size);
}

/* A packet with its header written and its body to be filled; NULL: no memory. */
static nng_msg *packet_new(struct transport *transport, struct envelope *envelope)
{
    size_t size = ENVELOPE_SIZE + envelope->body_size;
    if (transport->sealed) {
        envelope->flags |= ENVELOPE_SEALED;
        size += ENVELOPE_TAG_SIZE;
    }
    nng_msg *msg;
    if (nng_msg_alloc(&msg, size) != 0) return NULL;
    envelope_encode(envelope, nng_msg_body(msg));
    return msg;
}

static void stamp_identity(struct transport *transport, struct envelope *envelope)
{
    const struct net_identity *self = &transport->gate.self;
    memcpy(envelope->cluster_id, self->cluster_id, 16);
    envelope->flags = self->node == 0 ? ENVELOPE_JOIN : 0;
    envelope->from = self->node;
    envelope->incarnation = self->incarnation;
    envelope->from_boot = transport->boot;
}

/* ---- a lane: queue to NNG ---- */

/* How much of the queue the next packet takes: whole frames, at least one. */
static size_t lane_take(const struct lane *lane, uint32_t *count_out)
{
    struct bytes rest = buffer_view(&lane->queue);
    struct bytes frame;
    size_t taken = 0;
    uint32_t count = 0;
    while (envelope_next_frame(&rest, &frame) == OK) {
        size_t span = envelope_frame_span(frame.size);
        if (count > 0 && taken + span > limits[lane->kind].packet_max) break;
        taken += span;
        count++;
    }
    ASSERT(count > 0);
    *count_out = count;
    return taken;
}

/* Under lane->lock. */
static nng_msg *lane_hello(struct lane *lane)
{
    struct transport *transport = lane->transport;
    struct envelope envelope = lane->stamp;
    envelope.kind = ENVELOPE_HELLO;
    envelope.body_size = ENVELOPE_GREETING_SIZE;
    randombytes_buf(&envelope.seq, sizeof envelope.seq);
    nng_msg *msg = packet_new(transport, &envelope);
    if (msg == NULL) return NULL;
    memcpy((uint8_t *)nng_msg_body(msg) + ENVELOPE_SIZE, lane->store_id, ENVELOPE_GREETING_SIZE);
    lane->nonce = envelope.seq;
    lane->hello_due = false;
    lane->hello_ms = now_ms();
    return msg;
}

/* Under lane->lock. */
static nng_msg *lane_frames(struct lane *lane, uint32_t *count_out)
{
    struct transport *transport = lane->transport;
    struct envelope envelope = lane->stamp;
    size_t size = lane_take(lane, count_out);
    envelope.kind = ENVELOPE_FRAMES;
    envelope.count = *count_out;
    envelope.body_size = (uint32_t)size;
    envelope.seq = atomic_fetch_add(&transport->seq[lane->kind], 1) + 1;
    nng_msg *msg = packet_new(transport, &envelope);
    if (msg == NULL) return NULL;
    memcpy((uint8_t *)nng_msg_body(msg) + ENVELOPE_SIZE, buffer_view(&lane->queue).at, size);
    buffer_consume(&lane->queue, size);
    if (lane->queue.size == lane->queue.head) buffer_reset(&lane->queue, QUEUE_KEEP);
    return msg;
}

/* Gives NNG the next packet, if it has none and there is one. From any thread. */
static void lane_pump(struct lane *lane)
{
    struct transport *transport = lane->transport;
    nng_msg *msg = NULL;
    uint32_t frames = 0;
    pthread_mutex_lock(&lane->lock);
    if (!lane->busy && !lane->closing && lane->pipe != 0) {
        if (lane->hello_due) {
            msg = lane_hello(lane);
        } else if (lane->welcomed && lane->queue.size > lane->queue.head) {
            msg = lane_frames(lane, &frames);
        }
        if (msg != NULL) {
            lane->busy = true;
            lane->busy_pipe = lane->pipe;
        }
    }
    pthread_mutex_unlock(&lane->lock);
    if (msg == NULL) return;
    size_t size = nng_msg_len(msg);
    packet_close(transport, nng_msg_body(msg),
        size - ENVELOPE_SIZE - (transport->sealed ? ENVELOPE_TAG_SIZE : 0));
    COUNT(transport, packets_sent, 1);
    COUNT(transport, frames_sent, frames);
    COUNT(transport, bytes_sent, size);
    (void)nng_msg_header_append_u32(msg, last_hop); /* its header has room for it */
    nng_aio_set_msg(lane->send_aio, msg);
    nng_aio_set_timeout(lane->send_aio, SEND_TIMEOUT_MS);
    nng_send_aio(lane->socket, lane->send_aio);
}

static struct item lane_item(const struct lane *lane, enum item_kind kind)
{
    return (struct item){
        .kind = kind, .node = lane->node, .lane = lane->kind, .serial = lane->serial};
}

/* NNG took the packet, or had no taker for a second. */
static void lane_sent(void *arg)
{
    struct lane *lane = arg;
    int result = nng_aio_result(lane->send_aio);
    uint32_t stalled = 0;
    if (result != 0) {
        nng_msg *msg = nng_aio_get_msg(lane->send_aio);
        if (msg != NULL) nng_msg_free(msg);
        nng_aio_set_msg(lane->send_aio, NULL);
        COUNT(lane->transport, dropped_unsent, 1);
    }
    pthread_mutex_lock(&lane->lock);
    lane->busy = false;
    if (result == NNG_ECLOSED || result == NNG_ECANCELED) lane->closing = true;
    if (result == NNG_ETIMEDOUT && lane->pipe != 0 && lane->pipe == lane->busy_pipe) {
        stalled = lane->pipe;
        lane->pipe = 0;
        lane->welcomed = false;
        lane->down_since_ms = now_ms();
    }
    pthread_mutex_unlock(&lane->lock);
    if (stalled != 0) {
        COUNT(lane->transport, stalls, 1);
        struct item item = lane_item(lane, ITEM_STALLED);
        inbox_event(lane->transport, &item);
        (void)nng_pipe_close((nng_pipe){.id = stalled}); /* gone already: all the better */
    }
    lane_pump(lane);
}

/* A connection of ours came or went. Taken before it starts, because the end of a connection that breaks at once may
 * be told before its start is. */
static void lane_pipe(nng_pipe pipe, nng_pipe_ev event, void *arg)
{
    struct lane *lane = arg;
    uint32_t id = (uint32_t)nng_pipe_id(pipe);
    bool down = false;
    pthread_mutex_lock(&lane->lock);
    if (event == NNG_PIPE_EV_ADD_PRE) {
        lane->pipe = id;
        lane->hello_due = true;
        lane->welcomed = false;
    } else if (lane->pipe == id) {
        lane->pipe = 0;
        lane->welcomed = false;
        lane->down_since_ms = now_ms();
        down = true;
    }
    pthread_mutex_unlock(&lane->lock);
    if (down) {
        struct item item = lane_item(lane, ITEM_LANE_DOWN);
        inbox_event(lane->transport, &item);
    }
    lane_pump(lane);
}

/* An answer came back on a connection of ours. */
static void lane_answered(void *arg)
{
    struct lane *lane = arg;
    struct transport *transport = lane->transport;
    if (nng_aio_result(lane->receive_aio) != 0) return; /* the socket is closed */
    nng_msg *msg = nng_aio_get_msg(lane->receive_aio);
    nng_aio_set_msg(lane->receive_aio, NULL);
    struct item item = lane_item(lane, ITEM_ANSWER);
    bool kept = false;
    if (packet_open(transport, msg, &item.envelope) && item.envelope.kind != ENVELOPE_HELLO &&
        item.envelope.kind != ENVELOPE_FRAMES) {
        item.msg = msg;
        pthread_mutex_lock(&transport->inbox.lock);
        /* one lost for want of room is asked for again by the next hello */
        kept = !inbox_is_full(&transport->inbox) && inbox_push(&transport->inbox, &item);
        inbox_unlock_and_wake(transport);
    }
    if (!kept) nng_msg_free(msg);
    nng_recv_aio(lane->socket, lane->receive_aio);
}

/* ---- the listener ---- */

/* Under inbox.lock: notes that somebody we believe speaks on it. 0: the connection is gone already. */
static uint32_t inbound_believe(struct inbox *inbox, uint32_t pipe)
{
    for (size_t i = 0; i < inbox->inbound_count; i++) {
        if (inbox->inbound[i].pipe != pipe) continue;
        inbox->inbound[i].believed = true;
        return pipe;
    }
    return 0;
}

static void listener_received(void *arg)
{
    struct transport *transport = arg;
    struct inbox *inbox = &transport->inbox;
    if (nng_aio_result(transport->receive_aio) != 0) return; /* the socket is closed */
    nng_msg *msg = nng_aio_get_msg(transport->receive_aio);
    nng_aio_set_msg(transport->receive_aio, NULL);
    struct item item = {.kind = ITEM_PACKET, .msg = msg};
    bool kept = false;
    bool paused = false;
    if (packet_open(transport, msg, &item.envelope) &&
        (item.envelope.kind == ENVELOPE_HELLO || item.envelope.kind == ENVELOPE_FRAMES)) {
        item.lane = item.envelope.lane;
        pthread_mutex_lock(&inbox->lock);
        item.pipe = inbound_believe(inbox, (uint32_t)nng_pipe_id(nng_msg_get_pipe(msg)));
        kept = inbox_push(inbox, &item);
        paused = inbox->paused = inbox_is_full(inbox);
        inbox_unlock_and_wake(transport);
    }
    if (!kept) nng_msg_free(msg);
    if (!paused) nng_recv_aio(transport->listener, transport->receive_aio);
}

static void listener_pipe(nng_pipe pipe, nng_pipe_ev event, void *arg)
{
    struct transport *transport = arg;
    struct inbox *inbox = &transport->inbox;
    uint32_t id = (uint32_t)nng_pipe_id(pipe);
    bool refuse = false;
    bool gone = false;
    pthread_mutex_lock(&inbox->lock);
    if (event == NNG_PIPE_EV_ADD_PRE) {
        refuse = inbox->inbound_count == INBOUND_MAX;
        if (!refuse) {
            inbox->inbound[inbox->inbound_count].pipe = id;
            inbox->inbound[inbox->inbound_count++].believed = false;
        }
    } else {
        for (size_t i = 0; i < inbox->inbound_count; i++) {
            if (inbox->inbound[i].pipe != id) continue;
            gone = inbox->inbound[i].believed;
            inbox->inbound[i] = inbox->inbound[--inbox->inbound_count];
            break;
        }
    }
    pthread_mutex_unlock(&inbox->lock);
    if (refuse) {
        COUNT(transport, dropped_connections, 1);
        (void)nng_pipe_close(pipe);
    }
    if (gone) {
        struct item item = {.kind = ITEM_INBOUND_GONE, .pipe = id};
        inbox_event(transport, &item);
    }
}

/* ---- answers to hellos, back on the connection they came on ---- */

static void answers_pump(struct transport *transport)
{
    nng_msg *msg = NULL;
    pthread_mutex_lock(&transport->answers_lock);
    if (!transport->answering && transport->answers_count > 0) {
        msg = transport->answers[transport->answers_head];
        transport->answers_head = (transport->answers_head + 1) % ANSWERS_MAX;
        transport->answers_count--;
        transport->answering = true;
    }
    pthread_mutex_unlock(&transport->answers_lock);
    if (msg == NULL) return;
    nng_aio_set_msg(transport->answer_aio, msg);
    nng_send_aio(transport->listener, transport->answer_aio);
}

static void answer_sent(void *arg)
{
    struct transport *transport = arg;
    int result = nng_aio_result(transport->answer_aio);
    if (result != 0) {
        nng_msg *msg = nng_aio_get_msg(transport->answer_aio);
        if (msg != NULL) nng_msg_free(msg);
        nng_aio_set_msg(transport->answer_aio, NULL);
    }
    pthread_mutex_lock(&transport->answers_lock);
    transport->answering = false;
    pthread_mutex_unlock(&transport->answers_lock);
    if (result != NNG_ECLOSED && result != NNG_ECANCELED) answers_pump(transport);
}

static void answer_hello(struct transport *transport, const struct envelope *hello, uint32_t pipe,
    enum envelope_kind kind)
{
    bool welcome = kind == ENVELOPE_WELCOME;
    struct envelope envelope = {
        .lane = hello->lane,
        .kind = (uint8_t)kind,
        .to = hello->from,
        .to_boot = hello->from_boot,
        .seq = hello->seq,
        .body_size = welcome ? ENVELOPE_GREETING_SIZE : 0,
    };
    stamp_identity(transport, &envelope);
    nng_msg *msg = packet_new(transport, &envelope);
    if (msg == NULL) return;
    uint8_t *packet = nng_msg_body(msg);
    if (welcome)
        memcpy(packet + ENVELOPE_SIZE, transport->gate.self.store_id, ENVELOPE_GREETING_SIZE);
    packet_close(transport, packet, envelope.body_size);
    (void)nng_msg_header_append_u32(msg, pipe); /* its header has room for both */
    (void)nng_msg_header_append_u32(msg, last_hop);
    pthread_mutex_lock(&transport->answers_lock);
    bool room = transport->answers_count < ANSWERS_MAX;
    if (room) {
        size_t place = (transport->answers_head + transport->answers_count) % ANSWERS_MAX;
        transport->answers[place] = msg;
        transport->answers_count++;
    }
    pthread_mutex_unlock(&transport->answers_lock);
    if (!room) nng_msg_free(msg); /* it will say hello again */
    answers_pump(transport);
}

/* ---- peers: the owner's ---- */

static uint16_t number_of(const struct peer *peer)
{
    return peer->node < NET_BY_ADDRESS ? peer->node : 0;
}

/* "host:port"; NNG would take more for one than connects anywhere. */
static bool address_is_sound(const char *address, bool any_port)
{
    static const char host_letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:[]%";
    const char *colon = strrchr(address, ':');
    if (colon == NULL || colon == address || strlen(address) > ADDRESS_SIZE - 16) return false;
    if (address + strspn(address, host_letters) <= colon) return false;
    size_t digits = strspn(colon + 1, "0123456789");
    if (digits == 0 || digits > 5 || colon[1 + digits] != 0) return false;
    long port = strtol(colon + 1, NULL, 10);
    return port <= UINT16_MAX && (port > 0 || any_port);
}

static enum err lane_dial(struct lane *lane, const char *url)
{
    int result = nng_dialer_create(&lane->dialer, lane->socket, url);
    if (result == NNG_ENOMEM) return ERR_NOMEM;
    if (result != 0) return ERR_INVALID;
    (void)nng_dialer_set_bool(
        lane->dialer, NNG_OPT_TCP_KEEPALIVE, true); /* worth having, not needed */
    result = nng_dialer_start(lane->dialer, NNG_FLAG_NONBLOCK);
    if (result == 0) return OK;
    (void)nng_dialer_close(lane->dialer);
    return result == NNG_ENOMEM ? ERR_NOMEM : ERR_INVALID;
}

static void lane_close(struct lane *lane)
{
    if (!lane->opened) return;
    lane->opened = false;
    pthread_mutex_lock(&lane->lock);
    lane->closing = true;
    pthread_mutex_unlock(&lane->lock);
    nng_close(lane->socket);
    nng_aio_stop(lane->send_aio);
    nng_aio_stop(lane->receive_aio);
    nng_aio_free(lane->send_aio);
    nng_aio_free(lane->receive_aio);
}

static enum err lane_open(struct lane *lane, const char *url)
{
    ASSERT(!lane->opened && lane->pipe == 0 && !lane->busy);
    if (nng_req0_open_raw(&lane->socket) != 0) return ERR_NOMEM;
    if (nng_aio_alloc(&lane->send_aio, lane_sent, lane) != 0) goto fail;
    if (nng_aio_alloc(&lane->receive_aio, lane_answered, lane) != 0) goto fail_send_aio;
    lane->closing = false;
    lane->opened = true;
    lane->down_since_ms = now_ms();
    int result = nng_socket_set_size(lane->socket, NNG_OPT_RECVMAXSZ, ANSWER_SIZE_MAX);
    result |= nng_socket_set_ms(lane->socket, NNG_OPT_RECONNMINT, RECONNECT_MIN_MS);
    result |= nng_socket_set_ms(lane->socket, NNG_OPT_RECONNMAXT, RECONNECT_MAX_MS);
    result |= nng_pipe_notify(lane->socket, NNG_PIPE_EV_ADD_PRE, lane_pipe, lane);
    result |= nng_pipe_notify(lane->socket, NNG_PIPE_EV_REM_POST, lane_pipe, lane);
    ASSERT(result == 0);
    nng_recv_aio(lane->socket, lane->receive_aio);
    enum err dialled = lane_dial(lane, url);
    if (dialled != OK) lane_close(lane);
    return dialled;

fail_send_aio:
    nng_aio_free(lane->send_aio);
fail:
    nng_close(lane->socket);
    return ERR_NOMEM;
}

/* Under lane->lock, or before anybody else knows the lane. */
static void lane_stamp(struct lane *lane, uint16_t to)
{
    struct transport *transport = lane->transport;
    stamp_identity(transport, &lane->stamp);
    lane->stamp.lane = (uint8_t)lane->kind;
    lane->stamp.to = to;
    memcpy(lane->store_id, transport->gate.self.store_id, sizeof lane->store_id);
}

static struct peer *peer_new(struct transport *transport, uint16_t node, const char *url)
{
    struct peer *peer = calloc(1, sizeof *peer);
    if (peer == NULL) return NULL;
    peer->node = node;
    memcpy(peer->url, url, strlen(url) + 1);
    for (int i = 0; i < NET_LANES; i++) {
        struct lane *lane = &peer->lanes[i];
        lane->transport = transport;
        lane->node = node;
        lane->kind = (enum net_lane)i;
        lane->serial = ++transport->serials;
        lane_stamp(lane, number_of(peer));
        pthread_mutex_init(&lane->lock, NULL);
    }
    return peer;
}

static void peer_free(struct peer *peer)
{
    for (int i = 0; i < NET_LANES; i++) {
        lane_close(&peer->lanes[i]);
        buffer_deinit(&peer->lanes[i].queue);
        pthread_mutex_destroy(&peer->lanes[i].lock);
    }
    free(peer);
}

static void peer_forget(struct transport *transport, struct peer *peer)
{
    struct peer **link = &transport->first;
    while (*link != peer) {
        link = &(*link)->next;
    }
    *link = peer->next;
    transport->peers[peer->node] = NULL;
    peer_free(peer);
}

static void arm_tick(struct transport *transport)
{
    nng_sleep_aio(TICK_MS, transport->tick_aio);
}

static enum err transport_set_peer(void *ctx, uint16_t node, const char *address)
{
    struct transport *transport = ctx;
    ASSERT(transport->started);
    ASSERT(node != 0);
    struct peer *peer = transport->peers[node];
    if (address == NULL) {
        if (peer != NULL) peer_forget(transport, peer);
        return OK;
    }
    char url[ADDRESS_SIZE];
    if (!address_is_sound(address, false)) return ERR_INVALID;
    (void)snprintf(url, sizeof url, "tcp://%s", address); /* fits */
    if (peer != NULL && strcmp(peer->url, url) == 0) return OK;
    struct peer *fresh = peer_new(transport, node, url);
    if (fresh == NULL) return ERR_NOMEM;
    enum err result = lane_open(&fresh->lanes[NET_CONTROL], url);
    if (result == OK) result = lane_open(&fresh->lanes[NET_DATA], url);
    if (result != OK) {
        peer_free(fresh);
        return result;
    }
    if (peer != NULL) peer_forget(transport, peer);
    fresh->next = transport->first;
    transport->first = transport->peers[node] = fresh;
    return OK;
}

static enum err transport_send(void *ctx, uint16_t node, enum net_lane kind, struct bytes frame)
{
    struct transport *transport = ctx;
    struct peer *peer = transport->peers[node];
    if (peer == NULL) return ERR_NOT_FOUND;
    if (frame.size > NET_FRAME_MAX) return ERR_TOO_LARGE;
    struct lane *lane = &peer->lanes[kind];
    if (!lane->opened && lane_open(lane, peer->url) != OK) return ERR_AGAIN;
    size_t span = envelope_frame_span(frame.size);
    pthread_mutex_lock(&lane->lock);
    size_t live = lane->queue.size - lane->queue.head;
    uint8_t *at = NULL;
    if (live == 0 || live + span <= limits[kind].queue_max) at = buffer_reserve(&lane->queue, span);
    if (at != NULL) {
        envelope_put_frame(at, frame);
        buffer_wrote(&lane->queue, span);
    }
    bool pump = at != NULL && !lane->busy && lane->welcomed;
    pthread_mutex_unlock(&lane->lock);
    if (pump) lane_pump(lane);
    if (at != NULL) return OK;
    COUNT(transport, full, 1);
    return ERR_AGAIN;
}

static size_t transport_queued(void *ctx, uint16_t node, enum net_lane kind)
{
    struct transport *transport = ctx;
    struct peer *peer = transport->peers[node];
    if (peer == NULL) return 0;
    struct lane *lane = &peer->lanes[kind];
    pthread_mutex_lock(&lane->lock);
    size_t live = lane->queue.size - lane->queue.head;
    pthread_mutex_unlock(&lane->lock);
    return live;
}

/* A new dialer on the same socket: the old one may sit in a connect() that takes minutes to fail. */
static void lane_redial(struct lane *lane, const char *url)
{
    COUNT(lane->transport, redials, 1);
    (void)nng_dialer_close(lane->dialer); /* absent if the last redial failed */
    (void)lane_dial(lane, url); /* a failure is tried again by the next one */
    pthread_mutex_lock(&lane->lock);
    lane->down_since_ms = now_ms();
    pthread_mutex_unlock(&lane->lock);
}

static void transport_kick(void *ctx, uint16_t node)
{
    struct transport *transport = ctx;
    struct peer *peer = transport->peers[node];
    if (peer == NULL) return;
    for (int i = 0; i < NET_LANES; i++) {
        struct lane *lane = &peer->lanes[i];
        if (!lane->opened) continue;
        pthread_mutex_lock(&lane->lock);
        uint32_t pipe = lane->pipe;
        pthread_mutex_unlock(&lane->lock);
        if (pipe == 0 || nng_pipe_close((nng_pipe){.id = pipe}) != 0) lane_redial(lane, peer->url);
    }
}

static void transport_set_identity(void *ctx, const struct net_identity *self)
{
    struct transport *transport = ctx;
    ASSERT(self->node < NET_BY_ADDRESS);
    gate_set_identity(&transport->gate, self);
    for (struct peer *peer = transport->first; peer != NULL; peer = peer->next) {
        for (int i = 0; i < NET_LANES; i++) {
            struct lane *lane = &peer->lanes[i];
            pthread_mutex_lock(&lane->lock);
            lane_stamp(lane, number_of(peer));
            lane->welcomed = false;
            lane->hello_due = true;
            pthread_mutex_unlock(&lane->lock);
            if (lane->opened) lane_pump(lane);
        }
    }
}

/* ---- what the owner does with the inbox ---- */

static void tell(struct transport *transport, uint16_t node, enum net_event event)
{
    transport->on_event(transport->receiver, node, event);
}

static void peer_is_down(struct transport *transport, struct peer *peer)
{
    if (!peer->up) return;
    peer->up = false;
    tell(transport, peer->node, NET_PEER_DOWN);
}

static struct lane *lane_of(struct transport *transport, const struct item *item)
{
    struct peer *peer = transport->peers[item->node];
    if (peer == NULL) return NULL;
    struct lane *lane = &peer->lanes[item->lane];
    return lane->serial == item->serial ? lane : NULL;
}

static void handle_hello(struct transport *transport, const struct item *item)
{
    const struct envelope *hello = &item->envelope;
    if (item->pipe == 0) return; /* nobody there any more to be welcomed */
    enum gate_verdict verdict =
        gate_hello(&transport->gate, hello, packet_body(item->msg, hello).at, now_ms());
    switch (verdict) {
    case GATE_OK:
        answer_hello(transport, hello, item->pipe, ENVELOPE_WELCOME);
        return;
    case GATE_REFUSED_CLUSTER:
        COUNT(transport, refused_cluster, 1);
        answer_hello(transport, hello, item->pipe, ENVELOPE_REFUSED_CLUSTER);
        return;
    case GATE_REFUSED_CLONE:
        COUNT(transport, refused_clone, 1);
        answer_hello(transport, hello, item->pipe, ENVELOPE_REFUSED_CLONE);
        return;
    case GATE_SENSELESS:
    case GATE_STALE:
    case GATE_MISADDRESSED:
    case GATE_STRANGER:
    case GATE_DUPLICATE:
        COUNT(transport, dropped_stranger, 1);
        return;
    }
}

static void handle_welcome(struct transport *transport, struct peer *peer, struct lane *lane,
    const struct envelope *answer)
{
    pthread_mutex_lock(&lane->lock);
    lane->welcomed = lane->pipe != 0;
    lane->stamp.to_boot = answer->from_boot;
    bool welcomed = lane->welcomed;
    pthread_mutex_unlock(&lane->lock);
    lane_pump(lane);
    if (lane->kind != NET_CONTROL || !welcomed) return;
    if (peer->boot != answer->from_boot) peer_is_down(transport, peer);
    peer->boot = answer->from_boot;
    if (peer->up) return;
    peer->up = true;
    tell(transport, peer->node, NET_PEER_UP);
}

static void handle_answer(struct transport *transport, const struct item *item)
{
    struct lane *lane = lane_of(transport, item);
    if (lane == NULL) return;
    struct peer *peer = transport->peers[item->node];
    const struct envelope *answer = &item->envelope;
    pthread_mutex_lock(&lane->lock);
    uint64_t nonce = lane->nonce;
    pthread_mutex_unlock(&lane->lock);
    enum gate_verdict verdict = gate_answer(&transport->gate, answer, number_of(peer), nonce);
    if (verdict != GATE_OK) {
        if (verdict == GATE_STALE) {
            COUNT(transport, dropped_stale, 1);
        } else {
            COUNT(transport, dropped_stranger, 1);
        }
        return;
    }
    if (answer->kind == ENVELOPE_WELCOME) {
        handle_welcome(transport, peer, lane, answer);
        return;
    }
    COUNT(transport, was_refused, 1);
    if (lane->kind != NET_CONTROL) return; /* said once is enough */
    bool cluster = answer->kind == ENVELOPE_REFUSED_CLUSTER;
    tell(transport, peer->node, cluster ? NET_REFUSED_CLUSTER : NET_REFUSED_CLONE);
}

static void handle_inbound_gone(struct transport *transport, uint32_t pipe)
{
    uint16_t node;
    if (!gate_pipe_gone(&transport->gate, pipe, &node)) return;
    struct peer *peer = transport->peers[node];
    if (peer == NULL || !peer->up) return;
    /* if only this connection broke, the answer to another hello will say that the process lives */
    struct lane *lane = &peer->lanes[NET_CONTROL];
    pthread_mutex_lock(&lane->lock);
    lane->hello_due = true;
    pthread_mutex_unlock(&lane->lock);
    lane_pump(lane);
    peer_is_down(transport, peer);
}

static void handle_stalled(struct transport *transport, const struct item *item)
{
    if (lane_of(transport, item) == NULL) return;
    if (item->lane == NET_CONTROL) transport->peers[item->node]->up = false;
    tell(transport, item->node, NET_PEER_STALLED);
}

static bool handle_frames(struct transport *transport, struct item *item)
{
    uint32_t old_pipe;
    enum gate_verdict verdict = gate_frames(&transport->gate, &item->envelope, item->pipe, now_ms(),
        &transport->current_from, &old_pipe);
    switch (verdict) {
    case GATE_OK:
        if (old_pipe != 0)
            (void)nng_pipe_close((nng_pipe){.id = old_pipe}); /* may be gone already */
        COUNT(transport, packets_received, 1);
        COUNT(transport, bytes_received, nng_msg_len(item->msg));
        transport->current = *item;
        transport->current_rest = packet_body(item->msg, &item->envelope);
        return true;
    case GATE_STALE:
        COUNT(transport, dropped_stale, 1);
        break;
    case GATE_DUPLICATE:
        COUNT(transport, dropped_duplicate, 1);
        break;
    case GATE_REFUSED_CLUSTER:
    case GATE_REFUSED_CLONE:
    case GATE_SENSELESS:
    case GATE_MISADDRESSED:
    case GATE_STRANGER:
        COUNT(transport, dropped_stranger, 1);
        break;
    }
    return false;
}

static void handle_item(struct transport *transport, struct item *item)
{
    bool kept = false;
    switch (item->kind) {
    case ITEM_PACKET:
        if (item->envelope.kind == ENVELOPE_HELLO) {
            handle_hello(transport, item);
        } else {
            kept = handle_frames(transport, item);
        }
        break;
    case ITEM_ANSWER:
        handle_answer(transport, item);
        break;
    case ITEM_LANE_DOWN:
        if (item->lane == NET_CONTROL && lane_of(transport, item) != NULL) {
            peer_is_down(transport, transport->peers[item->node]);
        }
        break;
    case ITEM_STALLED:
        handle_stalled(transport, item);
        break;
    case ITEM_INBOUND_GONE:
        handle_inbound_gone(transport, item->pipe);
        break;
    }
    if (!kept && item->msg != NULL) nng_msg_free(item->msg);
}

/* Hands out frames of the packet in hand, at most `limit`; lets go of it behind its last. */
static int deliver(struct transport *transport, int limit)
{
    int delivered = 0;
    struct bytes frame;
    while (delivered < limit && envelope_next_frame(&transport->current_rest, &frame) == OK) {
        delivered++;
        transport->on_frame(
            transport->receiver, &transport->current_from, transport->current.lane, frame);
    }
    COUNT(transport, frames_received, (uint64_t)delivered);
    if (transport->current_rest.size == 0) {
        nng_msg_free(transport->current.msg);
        transport->current.msg = NULL;
    }
    return delivered;
}

static void tick_is_due(void *arg)
{
    struct transport *transport = arg;
    if (nng_aio_result(transport->tick_aio) != 0) return; /* stopped */
    pthread_mutex_lock(&transport->inbox.lock);
    transport->inbox.tick = true;
    inbox_unlock_and_wake(transport);
}

/* Says hello again where the answer got lost, dials anew where nothing comes of it. */
static void lane_watch(struct lane *lane, const char *url)
{
    uint64_t now = now_ms();
    bool redial = false;
    pthread_mutex_lock(&lane->lock);
    if (lane->pipe != 0) {
        if (!lane->welcomed && now - lane->hello_ms >= HELLO_AGAIN_MS) lane->hello_due = true;
    } else if (lane->queue.size > lane->queue.head && now - lane->down_since_ms >= REDIAL_MS) {
        redial = true;
    }
    pthread_mutex_unlock(&lane->lock);
    if (redial) lane_redial(lane, url);
    lane_pump(lane);
}

static void tick(struct transport *transport)
{
    for (struct peer *peer = transport->first; peer != NULL; peer = peer->next) {
        for (int i = 0; i < NET_LANES; i++) {
            if (peer->lanes[i].opened) lane_watch(&peer->lanes[i], peer->url);
        }
    }
    arm_tick(transport);
}

/* After a poll: lets the listener go on if there is room again, and calls for another poll if there is more. */
static void poll_end(struct transport *transport)
{
    struct inbox *inbox = &transport->inbox;
    pthread_mutex_lock(&inbox->lock);
    bool resume = inbox->paused && inbox->packets < INBOX_PACKETS_MAX / 2 &&
        inbox->bytes < INBOX_BYTES_MAX / 2;
    if (resume) inbox->paused = false;
    bool more = transport->current.msg != NULL;
    for (int i = 0; i < RINGS; i++) {
        if (inbox->rings[i].count > 0) more = true;
    }
    if (more) {
        inbox_unlock_and_wake(transport);
    } else {
        pthread_mutex_unlock(&inbox->lock);
    }
    if (resume) nng_recv_aio(transport->listener, transport->receive_aio);
}

static int transport_poll_frames(void *ctx, int limit)
{
    struct transport *transport = ctx;
    struct inbox *inbox = &transport->inbox;
    ASSERT(transport->started && !transport->polling);
    transport->polling = true;
    pthread_mutex_lock(&inbox->lock);
    inbox->signalled = false;
    bool due = inbox->tick;
    inbox->tick = false;
    pthread_mutex_unlock(&inbox->lock);
    if (due) tick(transport);
    int delivered = 0;
    for (unsigned turn = 0; turn < HANDLED_MAX && delivered < limit; turn++) {
        struct item item;
        if (transport->current.msg == NULL) {
            if (!inbox_pop(inbox, turn, &item)) break;
            handle_item(transport, &item);
        }
        if (transport->current.msg != NULL) delivered += deliver(transport, limit - delivered);
    }
    poll_end(transport);
    transport->polling = false;
    return delivered;
}

static void transport_start(void *ctx, const struct net_identity *self, void *receiver,
    void (*on_frame)(void *, const struct net_peer *, enum net_lane, struct bytes),
    void (*on_event)(void *, uint16_t, enum net_event), void (*wake)(void *))
{
    struct transport *transport = ctx;
    ASSERT(self->node < NET_BY_ADDRESS);
    transport->receiver = receiver;
    transport->on_frame = on_frame;
    transport->on_event = on_event;
    transport->wake = wake;
    gate_set_identity(&transport->gate, self);
    if (transport->started) return; /* another receiver takes over: a node that has just joined */
    pthread_mutex_lock(&transport->inbox.lock);
    transport->started = true;
    pthread_mutex_unlock(&transport->inbox.lock);
    nng_recv_aio(transport->listener, transport->receive_aio);
    arm_tick(transport);
}

/* ---- open and close ---- */

static enum err error_of(int result)
{
    switch (result) {
    case NNG_EADDRINUSE:
        return ERR_BUSY;
    case NNG_EADDRINVAL:
    case NNG_EINVAL:
    case NNG_ENOTSUP:
        return ERR_INVALID;
    case NNG_EPERM:
        return ERR_PERMISSION;
    case NNG_ENOMEM:
        return ERR_NOMEM;
    default:
        return ERR_IO;
    }
}

static void take_secret(struct transport *transport, struct bytes secret)
{
    static const uint8_t context[] = "duramen: key of the transport, 1";
    transport->sealed = secret.size > 0;
    if (!transport->sealed) return;
    int result = crypto_generichash(
        transport->key, KEY_SIZE, secret.at, secret.size, context, sizeof context - 1);
    ASSERT(result == 0);
    randombytes_buf(transport->nonce_prefix, sizeof transport->nonce_prefix);
}

/* The address taken, with the port the system chose. */
static int note_address(struct transport *transport, const char *listen, nng_listener listener)
{
    int port = 0;
    int result = nng_listener_get_int(listener, NNG_OPT_TCP_BOUND_PORT, &port);
    if (result != 0) return result;
    int host = (int)(strrchr(listen, ':') - listen);
    (void)snprintf(transport->address, sizeof transport->address, "%.*s:%d", host, listen, port);
    return 0;
}

static int listen_on(struct transport *transport, const char *listen)
{
    char url[ADDRESS_SIZE];
    if (!address_is_sound(listen, true)) return NNG_EADDRINVAL;
    (void)snprintf(url, sizeof url, "tcp://%s", listen); /* fits */
    nng_listener listener;
    nng_socket socket = transport->listener;
    /* four bytes of NNG's own header come before the packet */
    int result = nng_socket_set_size(socket, NNG_OPT_RECVMAXSZ, ENVELOPE_PACKET_MAX + 16);
    if (result == 0)
        result = nng_pipe_notify(socket, NNG_PIPE_EV_ADD_PRE, listener_pipe, transport);
    if (result == 0)
        result = nng_pipe_notify(socket, NNG_PIPE_EV_REM_POST, listener_pipe, transport);
    if (result == 0) result = nng_listener_create(&listener, socket, url);
    if (result != 0) return result;
    (void)nng_listener_set_bool(
        listener, NNG_OPT_TCP_KEEPALIVE, true); /* worth having, not needed */
    result = nng_listener_start(listener, 0);
    return result == 0 ? note_address(transport, listen, listener) : result;
}

static void transport_free(struct transport *transport)
{
    for (int i = 0; i < RINGS; i++) {
        ring_deinit(&transport->inbox.rings[i]);
    }
    if (transport->current.msg != NULL) nng_msg_free(transport->current.msg);
    for (; transport->answers_count > 0; transport->answers_count--) {
        nng_msg_free(transport->answers[transport->answers_head]);
        transport->answers_head = (transport->answers_head + 1) % ANSWERS_MAX;
    }
    gate_deinit(&transport->gate);
    free(transport->peers);
    pthread_mutex_destroy(&transport->inbox.lock);
    pthread_mutex_destroy(&transport->answers_lock);
    sodium_memzero(transport->key, sizeof transport->key);
    free(transport);
}

static struct transport *transport_new(void)
{
    struct transport *transport = calloc(1, sizeof *transport);
    if (transport == NULL) return NULL;
    pthread_mutex_init(&transport->inbox.lock, NULL);
    pthread_mutex_init(&transport->answers_lock, NULL);
    while (transport->boot == 0) {
        randombytes_buf(&transport->boot, sizeof transport->boot);
    }
    transport->peers = calloc(NODES, sizeof(struct peer *));
    if (transport->peers != NULL && gate_init(&transport->gate, transport->boot) == OK)
        return transport;
    transport_free(transport);
    return NULL;
}

static void aios_free(struct transport *transport)
{
    nng_aio *aios[] = {transport->receive_aio, transport->answer_aio, transport->tick_aio};
    for (size_t i = 0; i < sizeof aios / sizeof *aios; i++) {
        if (aios[i] != NULL) nng_aio_stop(aios[i]);
    }
    for (size_t i = 0; i < sizeof aios / sizeof *aios; i++) {
        if (aios[i] != NULL) nng_aio_free(aios[i]);
    }
}

static int open_listener(struct transport *transport, const char *listen)
{
    int result = nng_rep0_open_raw(&transport->listener);
    if (result != 0) return result;
    result = nng_aio_alloc(&transport->receive_aio, listener_received, transport);
    if (result == 0) result = nng_aio_alloc(&transport->answer_aio, answer_sent, transport);
    if (result == 0) result = nng_aio_alloc(&transport->tick_aio, tick_is_due, transport);
    if (result == 0) result = listen_on(transport, listen);
    if (result == 0) return 0;
    nng_close(transport->listener);
    aios_free(transport);
    return result;
}

enum err net_nng_open(
    const struct net_nng_config *config, struct net *net_out, char *detail, size_t detail_size)
{
    if (sodium_init() < 0) {
        (void)snprintf(detail, detail_size, "the crypto library does not start");
        return ERR_UNSUPPORTED;
    }
    struct transport *transport = transport_new();
    if (transport == NULL) {
        (void)snprintf(detail, detail_size, "out of memory");
        return ERR_NOMEM;
    }
    take_secret(transport, config->secret);
    int result = open_listener(transport, config->listen);
    if (result != 0) {
        (void)snprintf(
            detail, detail_size, "cannot listen on %s: %s", config->listen, nng_strerror(result));
        transport_free(transport);
        return error_of(result);
    }
    *net_out = (struct net){
        .ctx = transport,
        .name = "nng",
        .start = transport_start,
        .set_identity = transport_set_identity,
        .set_peer = transport_set_peer,
        .send = transport_send,
        .queued = transport_queued,
        .kick = transport_kick,
        .poll = transport_poll_frames,
    };
    return OK;
}

void net_nng_close(struct net *net)
{
    struct transport *transport = net->ctx;
    ASSERT(!transport->polling);
    pthread_mutex_lock(&transport->inbox.lock);
    transport->inbox.signalled = true; /* nobody is woken from here on */
    pthread_mutex_unlock(&transport->inbox.lock);
    while (transport->first != NULL) {
        peer_forget(transport, transport->first);
    }
    nng_close(transport->listener);
    aios_free(transport);
    transport_free(transport);
    *net = (struct net){0};
}

const char *net_nng_address(const struct net *net)
{
    const struct transport *transport = net->ctx;
    return transport->address;
}

void net_nng_counters(const struct net *net, struct net_nng_counters *out)
{
    struct transport *transport = net->ctx;
#define TAKE(name) out->name = atomic_load_explicit(&transport->counters.name, memory_order_relaxed)
    TAKE(frames_sent);
    TAKE(packets_sent);
    TAKE(bytes_sent);
    TAKE(frames_received);
    TAKE(packets_received);
    TAKE(bytes_received);
    TAKE(full);
    TAKE(stalls);
    TAKE(redials);
    TAKE(refused_cluster);
    TAKE(refused_clone);
    TAKE(was_refused);
    TAKE(dropped_malformed);
    TAKE(dropped_unauthentic);
    TAKE(dropped_stale);
    TAKE(dropped_stranger);
    TAKE(dropped_duplicate);
    TAKE(dropped_unsent);
    TAKE(dropped_connections);
#undef TAKE
}
