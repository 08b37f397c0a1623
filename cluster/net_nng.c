#include "cluster/net_nng.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/logger.h"
#include "cluster/net_nng_internal.h"

/* The owner's part of the transport, and the listener. How it works is in cluster/net_nng_internal.h. */

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
    bool good = packet_open(transport, msg, &item.envelope) &&
        (item.envelope.kind == ENVELOPE_HELLO || item.envelope.kind == ENVELOPE_FRAMES);
    pthread_mutex_lock(&inbox->lock);
    if (good) {
        item.lane = item.envelope.lane;
        item.pipe = inbound_believe(inbox, (uint32_t)nng_pipe_id(nng_msg_get_pipe(msg)));
        good = inbox_push(inbox, &item);
    }
    bool paused = inbox->paused = inbox->closing || inbox_is_full(inbox);
    if (good) {
        inbox_unlock_and_wake(transport);
    } else {
        pthread_mutex_unlock(&inbox->lock);
        nng_msg_free(msg);
    }
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

static struct peer *peer_new(struct transport *transport, uint16_t node, const char *url)
{
    struct peer *peer = calloc(1, sizeof *peer);
    if (peer == NULL) return NULL;
    peer->node = node;
    memcpy(peer->url, url, strlen(url) + 1);
    for (int i = 0; i < NET_LANES; i++) {
        peer->lanes[i] = lane_new(transport, node, (enum net_lane)i);
        if (peer->lanes[i] != NULL) continue;
        while (i-- > 0) {
            lane_free(peer->lanes[i]);
        }
        free(peer);
        return NULL;
    }
    return peer;
}

static void peer_free(struct peer *peer)
{
    for (int i = 0; i < NET_LANES; i++) {
        lane_retire(peer->lanes[i]);
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
    enum err result = lane_open(fresh->lanes[NET_CONTROL], url);
    if (result == OK) result = lane_open(fresh->lanes[NET_DATA], url);
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
    struct lane *lane = peer->lanes[kind];
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
    struct lane *lane = peer->lanes[kind];
    pthread_mutex_lock(&lane->lock);
    size_t live = lane->queue.size - lane->queue.head;
    pthread_mutex_unlock(&lane->lock);
    return live;
}

/* A new lane takes over: the dialer of the old one may sit in a connect() that takes minutes to fail. */
static void lane_redial(struct peer *peer, enum net_lane kind)
{
    struct lane *old = peer->lanes[kind];
    struct grave *grave = old->transport->grave;
    pthread_mutex_lock(&grave->lock);
    bool full = grave->count >= RETIRED_MAX; /* NNG is stuck; dialers that are not still dial */
    pthread_mutex_unlock(&grave->lock);
    if (full) return;
    struct lane *fresh = lane_new(old->transport, peer->node, kind);
    if (fresh == NULL) return; /* tried again later */
    if (lane_open(fresh, peer->url) != OK) {
        lane_free(fresh);
        return;
    }
    COUNT(old->transport, redials, 1);
    pthread_mutex_lock(&old->lock);
    struct buffer queue = old->queue;
    old->queue = (struct buffer){0};
    pthread_mutex_unlock(&old->lock);
    pthread_mutex_lock(&fresh->lock);
    fresh->queue = queue;
    pthread_mutex_unlock(&fresh->lock);
    peer->lanes[kind] = fresh;
    lane_retire(old);
}

static void transport_kick(void *ctx, uint16_t node)
{
    struct transport *transport = ctx;
    struct peer *peer = transport->peers[node];
    if (peer == NULL) return;
    uint64_t now = now_ms();
    for (int i = 0; i < NET_LANES; i++) {
        struct lane *lane = peer->lanes[i];
        if (!lane->opened) continue;
        pthread_mutex_lock(&lane->lock);
        uint32_t pipe = lane->pipe;
        bool young = now - lane->pipe_ms < YOUNG_MS;
        bool moving = now - lane->moved_ms < QUIET_MS;
        pthread_mutex_unlock(&lane->lock);
        if (young || moving) continue; /* it works on it, or works */
        if (pipe == 0 || nng_pipe_close((nng_pipe){.id = pipe}) != 0) {
            lane_redial(peer, (enum net_lane)i);
        }
    }
}

static void transport_set_identity(void *ctx, const struct net_identity *self)
{
    struct transport *transport = ctx;
    ASSERT(self->node < NET_BY_ADDRESS);
    gate_set_identity(&transport->gate, self);
    for (struct peer *peer = transport->first; peer != NULL; peer = peer->next) {
        for (int i = 0; i < NET_LANES; i++) {
            struct lane *lane = peer->lanes[i];
            pthread_mutex_lock(&lane->lock);
            lane_stamp(lane, number_of(peer->node));
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
    struct lane *lane = peer->lanes[item->lane];
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
    enum gate_verdict verdict = gate_answer(&transport->gate, answer, number_of(peer->node), nonce);
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
    struct lane *lane = peer->lanes[NET_CONTROL];
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

/* The sender has closed it itself, unless it died without a word. */
static void note_replaced(struct transport *transport, uint32_t pipe)
{
    if (transport->replaced_count == REPLACED_MAX) return; /* then keep-alive finds it out */
    transport->replaced[transport->replaced_count].pipe = pipe;
    transport->replaced[transport->replaced_count++].at_ms = now_ms();
}

static void close_replaced(struct transport *transport)
{
    uint64_t now = now_ms();
    size_t kept = 0;
    for (size_t i = 0; i < transport->replaced_count; i++) {
        if (now - transport->replaced[i].at_ms < REDIAL_MS) {
            transport->replaced[kept++] = transport->replaced[i];
        } else {
            (void)nng_pipe_close((nng_pipe){.id = transport->replaced[i].pipe}); /* or gone */
        }
    }
    transport->replaced_count = kept;
}

static bool handle_frames(struct transport *transport, struct item *item)
{
    uint32_t old_pipe;
    enum gate_verdict verdict = gate_frames(&transport->gate, &item->envelope, item->pipe, now_ms(),
        &transport->current_from, &old_pipe);
    switch (verdict) {
    case GATE_OK:
        if (old_pipe != 0) note_replaced(transport, old_pipe);
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
static void lane_watch(struct peer *peer, enum net_lane kind)
{
    struct lane *lane = peer->lanes[kind];
    uint64_t now = now_ms();
    bool redial = false;
    pthread_mutex_lock(&lane->lock);
    if (lane->pipe != 0) {
        if (!lane->welcomed && now - lane->hello_ms >= HELLO_AGAIN_MS) lane->hello_due = true;
    } else if (lane->queue.size > lane->queue.head && now - lane->pipe_ms >= REDIAL_MS) {
        redial = true;
    }
    pthread_mutex_unlock(&lane->lock);
    if (redial) {
        lane_redial(peer, kind);
    } else {
        lane_pump(lane);
    }
}

static void tick(struct transport *transport)
{
    for (struct peer *peer = transport->first; peer != NULL; peer = peer->next) {
        for (int i = 0; i < NET_LANES; i++) {
            if (peer->lanes[i]->opened) lane_watch(peer, (enum net_lane)i);
        }
    }
    close_replaced(transport);
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
    pthread_mutex_lock(&transport->inbox.lock);
    transport->receiver = receiver;
    transport->on_frame = on_frame;
    transport->on_event = on_event;
    transport->wake = wake;
    bool again = transport->started; /* a node that has just joined takes over */
    transport->started = true;
    pthread_mutex_unlock(&transport->inbox.lock);
    gate_set_identity(&transport->gate, self);
    if (again) return;
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

void transport_free(struct transport *transport)
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

void aios_free(struct transport *transport)
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
    if (result == 0) {
        transport->grave = grave_open(transport);
        if (transport->grave == NULL) {
            nng_close(transport->listener);
            aios_free(transport);
            result = NNG_ENOMEM;
        }
    }
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
    transport->inbox.closing = true;
    pthread_mutex_unlock(&transport->inbox.lock);
    while (transport->first != NULL) {
        peer_forget(transport, transport->first);
    }
    struct grave *grave = transport->grave;
    *net = (struct net){0};
    if (!grave_close(grave))
        log_warn("the network library does not let go", "seconds=%d", CLOSE_MS / 1000);
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
