#define _POSIX_C_SOURCE 200809L
#include <stdlib.h>
#include <time.h>

#include "cluster/net_nng_internal.h"

/* The part of the transport that NNG's threads run: the inbox, packets, lanes, and where lanes end. */

/* ---- the inbox: filled by NNG's threads, emptied by the owner ---- */

void ring_deinit(struct ring *ring)
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

void inbox_unlock_and_wake(struct transport *transport)
{
    bool wake = !transport->inbox.signalled && transport->started;
    if (wake) transport->inbox.signalled = true;
    /* both under the lock: another receiver may take over */
    void (*call)(void *) = transport->wake;
    void *receiver = transport->receiver;
    pthread_mutex_unlock(&transport->inbox.lock);
    if (wake) call(receiver);
}

bool inbox_is_full(const struct inbox *inbox)
{
    return inbox->packets >= INBOX_PACKETS_MAX || inbox->bytes >= INBOX_BYTES_MAX;
}

bool inbox_push(struct inbox *inbox, const struct item *item)
{
    bool frames = item->kind == ITEM_PACKET && item->envelope.kind == ENVELOPE_FRAMES;
    if (!ring_push(&inbox->rings[frames ? item->lane : NET_CONTROL], item)) return false;
    if (item->msg != NULL) {
        inbox->packets++;
        inbox->bytes += nng_msg_len(item->msg);
    }
    return true;
}

void inbox_event(struct transport *transport, const struct item *item)
{
    pthread_mutex_lock(&transport->inbox.lock);
    (void)inbox_push(
        &transport->inbox, item); /* an event lost for want of memory: time-outs find it out */
    inbox_unlock_and_wake(transport);
}

bool inbox_pop(struct inbox *inbox, unsigned turn, struct item *out)
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

void packet_close(struct transport *transport, uint8_t *packet, size_t body_size)
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

bool packet_open(struct transport *transport, nng_msg *msg, struct envelope *out)
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

struct bytes packet_body(nng_msg *msg, const struct envelope *envelope)
{
    return bytes_of((uint8_t *)nng_msg_body(msg) + ENVELOPE_SIZE, envelope->body_size);
}

nng_msg *packet_new(struct transport *transport, struct envelope *envelope)
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

void stamp_identity(struct transport *transport, struct envelope *envelope)
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

void lane_pump(struct lane *lane)
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
    if (result == 0) lane->moved_ms = now_ms();
    if (result == NNG_ECLOSED || result == NNG_ECANCELED) lane->closing = true;
    if (result == NNG_ETIMEDOUT && lane->pipe != 0 && lane->pipe == lane->busy_pipe) {
        stalled = lane->pipe;
        lane->pipe = 0;
        lane->welcomed = false;
        lane->pipe_ms = now_ms();
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
        lane->pipe_ms = now_ms();
        lane->hello_due = true;
        lane->welcomed = false;
    } else if (lane->pipe == id) {
        lane->pipe = 0;
        lane->welcomed = false;
        lane->pipe_ms = now_ms();
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

/* ---- the life of a lane ---- */

uint16_t number_of(uint16_t node)
{
    return node < NET_BY_ADDRESS ? node : 0;
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

enum err lane_open(struct lane *lane, const char *url)
{
    ASSERT(!lane->opened && lane->pipe == 0 && !lane->busy);
    if (nng_req0_open_raw(&lane->socket) != 0) return ERR_NOMEM;
    if (nng_aio_alloc(&lane->send_aio, lane_sent, lane) != 0) goto fail;
    if (nng_aio_alloc(&lane->receive_aio, lane_answered, lane) != 0) goto fail_send_aio;
    lane->opened = true;
    lane->since_ms = lane->pipe_ms = now_ms();
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

void lane_stamp(struct lane *lane, uint16_t to)
{
    struct transport *transport = lane->transport;
    stamp_identity(transport, &lane->stamp);
    lane->stamp.lane = (uint8_t)lane->kind;
    lane->stamp.to = to;
    memcpy(lane->store_id, transport->gate.self.store_id, sizeof lane->store_id);
}

struct lane *lane_new(struct transport *transport, uint16_t node, enum net_lane kind)
{
    struct lane *lane = calloc(1, sizeof *lane);
    if (lane == NULL) return NULL;
    lane->transport = transport;
    lane->node = node;
    lane->kind = kind;
    lane->serial = ++transport->serials;
    lane_stamp(lane, number_of(node));
    pthread_mutex_init(&lane->lock, NULL);
    return lane;
}

void lane_free(struct lane *lane)
{
    lane_close(lane);
    buffer_deinit(&lane->queue);
    pthread_mutex_destroy(&lane->lock);
    free(lane);
}

void lane_retire(struct lane *lane)
{
    struct transport *transport = lane->transport;
    if (!lane->opened) {
        lane_free(lane);
        return;
    }
    pthread_mutex_lock(&lane->lock);
    lane->closing = true;
    buffer_deinit(&lane->queue);
    pthread_mutex_unlock(&lane->lock);
    int result = nng_dialer_set_ms(lane->dialer, NNG_OPT_RECONNMINT, NEVER_MS);
    result |= nng_dialer_set_ms(lane->dialer, NNG_OPT_RECONNMAXT, NEVER_MS);
    ASSERT(result == 0);
    struct grave *grave = transport->grave;
    pthread_mutex_lock(&grave->lock);
    lane->since_ms = now_ms();
    lane->next = grave->retired;
    grave->retired = lane;
    grave->count++;
    pthread_cond_signal(&grave->changed);
    pthread_mutex_unlock(&grave->lock);
}

/* ---- the grave ---- */

static bool lane_is_quiet(
    struct lane *lane, uint64_t young_ms, uint64_t quiet_ms, uint32_t *pipe_out)
{
    uint64_t now = now_ms();
    pthread_mutex_lock(&lane->lock);
    bool quiet = !lane->busy && now - lane->pipe_ms >= young_ms &&
        now - lane->moved_ms >= quiet_ms && now - lane->since_ms >= quiet_ms;
    *pipe_out = lane->pipe;
    pthread_mutex_unlock(&lane->lock);
    return quiet;
}

/* Closes connections that are quiet, and takes a lane without one off the list. Under grave->lock. */
static struct lane *grave_next(struct grave *grave)
{
    for (struct lane **link = &grave->retired; *link != NULL; link = &(*link)->next) {
        struct lane *lane = *link;
        uint32_t pipe;
        if (!lane_is_quiet(lane, YOUNG_MS, QUIET_MS, &pipe)) continue;
        if (pipe != 0) {
            (void)nng_pipe_close((nng_pipe){.id = pipe}); /* or gone by itself */
            continue;
        }
        *link = lane->next;
        return lane;
    }
    return NULL;
}

static bool grave_is_quiet(const struct grave *grave)
{
    bool quiet = true;
    for (struct lane *lane = grave->retired; lane != NULL; lane = lane->next) {
        uint32_t pipe;
        if (!lane_is_quiet(lane, 50, 20, &pipe)) quiet = false;
    }
    return quiet;
}

static void bury_transport(struct grave *grave)
{
    /* Nobody takes packets any more, so connections to us come to rest between two of them. */
    nng_msleep(20);
    for (int i = 0; i < 100 && !grave_is_quiet(grave); i++) {
        nng_msleep(10);
    }
    while (grave->retired != NULL) {
        struct lane *lane = grave->retired;
        grave->retired = lane->next;
        lane_free(lane);
    }
    nng_close(grave->transport->listener);
    aios_free(grave->transport);
    transport_free(grave->transport);
}

static void *grave_run(void *arg)
{
    struct grave *grave = arg;
    pthread_mutex_lock(&grave->lock);
    while (!grave->all) {
        if (grave->retired == NULL) {
            pthread_cond_wait(&grave->changed, &grave->lock);
            continue;
        }
        struct lane *lane = grave_next(grave);
        pthread_mutex_unlock(&grave->lock);
        if (lane != NULL) {
            lane_free(lane);
        } else {
            nng_msleep(QUIET_MS / 5);
        }
        pthread_mutex_lock(&grave->lock);
        if (lane != NULL) grave->count--;
    }
    pthread_mutex_unlock(&grave->lock);
    bury_transport(grave);
    pthread_mutex_lock(&grave->lock);
    grave->over = true;
    pthread_cond_signal(&grave->changed);
    pthread_mutex_unlock(&grave->lock);
    return NULL;
}

struct grave *grave_open(struct transport *transport)
{
    struct grave *grave = calloc(1, sizeof *grave);
    if (grave == NULL) return NULL;
    grave->transport = transport;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&grave->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&grave->lock, NULL);
    if (pthread_create(&grave->thread, NULL, grave_run, grave) == 0) return grave;
    free(grave);
    return NULL;
}

bool grave_close(struct grave *grave)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += CLOSE_MS / 1000;
    int result = 0;
    pthread_mutex_lock(&grave->lock);
    grave->all = true;
    pthread_cond_signal(&grave->changed);
    while (!grave->over && result == 0) {
        result = pthread_cond_timedwait(&grave->changed, &grave->lock, &until);
    }
    bool over = grave->over;
    pthread_mutex_unlock(&grave->lock);
    if (!over) {
        (void)pthread_detach(grave->thread);
        return false;
    }
    (void)pthread_join(grave->thread, NULL);
    pthread_cond_destroy(&grave->changed);
    pthread_mutex_destroy(&grave->lock);
    free(grave);
    return true;
}
