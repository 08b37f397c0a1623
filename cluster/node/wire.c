#include <stdlib.h>

#include "cluster/node/node_internal.h"

/* Messages to a peer collect in one buffer per lane and leave as few frames at the end of the turn.
 * Lazy ones (periodic heartbeats and their answers) wait a little longer for company. */

enum {
    FRAME_BYTES = 256 * 1024, /* a frame is sent when it reaches this */
    PART_BYTES = 192 * 1024,
    LAZY_MS = 120,
    PART_HEADER = 24,
};

struct peer *peer_of(struct node *node, uint16_t number)
{
    if (number == 0 || number > NODE_NUMBERS_MAX) return NULL;
    if (node->peers[number - 1] == NULL) {
        struct peer *peer = calloc(1, sizeof *peer);
        if (peer == NULL) return NULL;
        peer->number = number;
        node->peers[number - 1] = peer;
        if (number > node->peers_end) node->peers_end = number;
    }
    return node->peers[number - 1];
}

static void send_frame(struct node *node, struct peer *peer, enum net_lane lane)
{
    struct lane_buffer *buffer = &peer->lanes[lane];
    struct bytes frame = buffer_view(&buffer->frame);
    if (frame.size == 0) return;
    const struct net *net = &node->config.io->net;
    enum err err = net->send(net->ctx, peer->number, lane, frame);
    /* a full queue or a peer without a connection: what was in it is lost, which every protocol expects */
    if (err == OK) {
        node->stats.frames_sent++;
    } else {
        node->stats.frames_dropped++;
    }
    buffer_reset(&buffer->frame, 2 * FRAME_BYTES);
    buffer->urgent = false;
    if (lane == NET_CONTROL) peer->lazy_ns = 0;
}

uint8_t *wire_add(struct node *node, uint16_t to, enum net_lane lane, enum wire_type type,
    uint32_t group, size_t size)
{
    ASSERT(message_size(size) <= NET_FRAME_MAX);
    if (node->config.io->net.ctx == NULL || to == node->config.number) return NULL;
    struct peer *peer = peer_of(node, to);
    if (peer == NULL) return NULL;
    struct lane_buffer *buffer = &peer->lanes[lane];
    size_t used = buffer_view(&buffer->frame).size;
    if (used > 0 && used + message_size(size) > FRAME_BYTES) send_frame(node, peer, lane);
    buffer->urgent = true;
    return message_add(&buffer->frame, (uint16_t)type, group, size);
}

static bool send_parts(struct node *node, uint16_t to, enum net_lane lane, enum wire_type type,
    uint32_t group, struct bytes head, struct bytes body)
{
    struct peer *peer = peer_of(node, to);
    if (peer == NULL) return false;
    uint64_t id = ++peer->part_id;
    size_t total = head.size + body.size;
    for (size_t offset = 0; offset < total;) {
        size_t size = total - offset < PART_BYTES ? total - offset : PART_BYTES;
        uint8_t *at = wire_add(node, to, lane, WIRE_PART, group, PART_HEADER + size);
        if (at == NULL) return false;
        store_u64(at, id);
        store_u64(at + 8, total);
        store_u32(at + 16, (uint32_t)offset);
        store_u32(at + 20, type);
        for (size_t i = 0; i < size;) {
            bool in_head = offset + i < head.size;
            const uint8_t *from = in_head ? head.at + offset + i : body.at + offset + i - head.size;
            size_t run = in_head ? head.size - offset - i : size - i;
            if (run > size - i) run = size - i;
            memcpy(at + PART_HEADER + i, from, run);
            i += run;
        }
        offset += size;
    }
    return true;
}

bool wire_send(struct node *node, uint16_t to, enum net_lane lane, enum wire_type type,
    uint32_t group, struct bytes head, struct bytes body)
{
    if (head.size + body.size > PART_BYTES)
        return send_parts(node, to, lane, type, group, head, body);
    uint8_t *at = wire_add(node, to, lane, type, group, head.size + body.size);
    if (at == NULL) return false;
    if (head.size > 0) memcpy(at, head.at, head.size);
    if (body.size > 0) memcpy(at + head.size, body.at, body.size);
    return true;
}

void wire_encode_raft(uint8_t *at, const struct raft_message *message)
{
    store_u64(at,
        (uint64_t)message->type | (message->reject ? 1u << 8 : 0) |
            (message->forced ? 1u << 9 : 0) | (message->lazy ? 1u << 10 : 0));
    store_u64(at + 8, message->term);
    store_u64(at + 16, message->index);
    store_u64(at + 24, message->log_term);
    store_u64(at + 32, message->hint);
    store_u64(at + 40, message->commit);
    store_u64(at + 48, message->round);
}

enum err wire_decode_raft(struct bytes bytes, struct raft_message *message_out)
{
    if (bytes.size < WIRE_RAFT_SIZE) return ERR_CORRUPT;
    uint64_t word = load_u64(bytes.at);
    *message_out = (struct raft_message){
        .type = (uint8_t)word,
        .reject = (word >> 8 & 1) != 0,
        .forced = (word >> 9 & 1) != 0,
        .lazy = (word >> 10 & 1) != 0,
        .term = load_u64(bytes.at + 8),
        .index = load_u64(bytes.at + 16),
        .log_term = load_u64(bytes.at + 24),
        .hint = load_u64(bytes.at + 32),
        .commit = load_u64(bytes.at + 40),
        .round = load_u64(bytes.at + 48),
    };
    bool known = message_out->type >= RAFT_PREVOTE && message_out->type <= RAFT_READ_INDEX_REPLY;
    return known && word >> 11 == 0 ? OK : ERR_CORRUPT;
}

/* what elections hang on has a lane of its own; what every operation needs shares frames with the data */
static enum net_lane lane_of(const struct raft_message *message)
{
    switch (message->type) {
    case RAFT_APPEND_REPLY:
        return NET_DATA;
    case RAFT_HEARTBEAT:
    case RAFT_HEARTBEAT_REPLY:
        return message->lazy ? NET_CONTROL : NET_DATA;
    default:
        return NET_CONTROL;
    }
}

void wire_send_raft(struct node *node, uint16_t group, const struct raft_message *message)
{
    enum net_lane lane = lane_of(message);
    struct peer *peer = peer_of(node, message->to);
    if (peer == NULL) return;
    bool urgent = peer->lanes[lane].urgent;
    uint8_t *at = wire_add(node, message->to, lane, WIRE_RAFT, group, WIRE_RAFT_SIZE);
    if (at == NULL) return;
    wire_encode_raft(at, message);
    if (message->lazy && lane == NET_CONTROL) {
        peer->lanes[lane].urgent = urgent;
        if (peer->lazy_ns == 0) peer->lazy_ns = node->now_ns == 0 ? 1 : node->now_ns;
    }
}

void wire_flush(struct node *node, bool lazy_too)
{
    if (node->config.io->net.ctx == NULL) return;
    for (uint32_t i = 0; i < node->peers_end; i++) {
        struct peer *peer = node->peers[i];
        if (peer == NULL || !peer->addressed) continue;
        bool lazy_due = lazy_too && peer->lazy_ns != 0 &&
            node->now_ns - peer->lazy_ns >= (uint64_t)LAZY_MS * 1000000;
        for (int lane = 0; lane < NET_LANES; lane++) {
            if (peer->lanes[lane].urgent || (lane == NET_CONTROL && lazy_due))
                send_frame(node, peer, (enum net_lane)lane);
        }
    }
}

size_t wire_queued(struct node *node, uint16_t to, enum net_lane lane)
{
    const struct net *net = &node->config.io->net;
    struct peer *peer = peer_of(node, to);
    if (peer == NULL) return SIZE_MAX;
    return net->queued(net->ctx, to, lane) + buffer_view(&peer->lanes[lane].frame).size;
}

/* ---- coming in ---- */

static void dispatch(struct node *node, const struct net_peer *from, enum net_lane lane,
    const struct message *message);

static void take_part(struct node *node, const struct net_peer *from, enum net_lane lane,
    const struct message *message)
{
    struct peer *peer = peer_of(node, from->node);
    if (peer == NULL || message->body.size <= PART_HEADER) return;
    const uint8_t *at = message->body.at;
    uint64_t id = load_u64(at), total = load_u64(at + 8);
    uint32_t offset = load_u32(at + 16), type = load_u32(at + 20);
    struct assembly *assembly = &peer->assembly[lane];
    if (total > (uint64_t)NODE_REQUEST_MAX + (8u << 20) || type == WIRE_PART || type > UINT16_MAX)
        return;
    if (offset == 0) {
        buffer_reset(&assembly->body, 0);
        assembly->id = id;
        assembly->total = total;
    }
    /* a part before this one was lost: the rest is of no use */
    if (assembly->id != id || assembly->total != total || assembly->body.size != offset) return;
    size_t size = message->body.size - PART_HEADER;
    if (size > total - offset || buffer_append(&assembly->body, at + PART_HEADER, size) != OK) {
        assembly->id = 0;
        return;
    }
    if (assembly->body.size < total) return;
    struct message whole = {
        .type = (uint16_t)type, .group = message->group, .body = buffer_view(&assembly->body)};
    dispatch(node, from, lane, &whole);
    buffer_reset(&assembly->body, 0);
    assembly->id = 0;
}

static void dispatch(struct node *node, const struct net_peer *from, enum net_lane lane,
    const struct message *message)
{
    switch (message->type) {
    case WIRE_RAFT:
        group_on_message(node, from->node, message);
        break;
    case WIRE_APPEND:
        group_on_append(node, from->node, message);
        break;
    case WIRE_PART:
        take_part(node, from, lane, message);
        break;
    case WIRE_REQUEST:
    case WIRE_REPLY:
        requests_on_message(node, from->node, message);
        break;
    case WIRE_SWIM:
    case WIRE_JOIN:
    case WIRE_ANNOUNCE:
    case WIRE_REPORT:
    case WIRE_ADDRESS:
        membership_on_message(node, from, message);
        break;
    case WIRE_JOIN_REPLY:
        break; /* an answer to an earlier question */
    default:
        catchup_on_message(node, from->node, lane, message);
        break;
    }
}

static void on_frame(
    void *receiver, const struct net_peer *from, enum net_lane lane, struct bytes frame)
{
    struct node *node = receiver;
    if (node->failed || node->opening) return;
    node->stats.frames_received++;
    struct message message;
    if (from->node == 0) {
        /* a stranger may ask to join and nothing else */
        if (message_next(&frame, &message) == OK && message.type == WIRE_JOIN)
            membership_on_message(node, from, &message);
        return;
    }
    struct peer *peer = peer_of(node, from->node);
    if (peer == NULL || from->node == node->config.number) return;
    if (peer->boot != from->boot) {
        for (int i = 0; i < NET_LANES; i++)
            peer->assembly[i].id = 0;
        peer->boot = from->boot;
    }
    while (message_next(&frame, &message) == OK)
        dispatch(node, from, lane, &message);
}

static void on_event(void *receiver, uint16_t number, enum net_event event)
{
    struct node *node = receiver;
    if (!node->failed && !node->opening) membership_event(node, number, event);
}

static void on_wake(void *receiver)
{
    struct node *node = receiver;
    if (node->config.wake != NULL) node->config.wake(node->config.ctx);
}

void wire_start(struct node *node)
{
    const struct net *net = &node->config.io->net;
    if (net->ctx == NULL) return;
    struct net_identity identity = {
        .node = node->config.number, .incarnation = node->config.incarnation};
    memcpy(identity.cluster_id, node->config.cluster_id, sizeof identity.cluster_id);
    memcpy(identity.store_id, node->config.store_id, sizeof identity.store_id);
    net->start(net->ctx, &identity, node, on_frame, on_event, on_wake);
    net->set_identity(net->ctx, &identity);
}

void wire_free(struct node *node)
{
    for (uint32_t i = 0; node->peers != NULL && i < NODE_NUMBERS_MAX; i++) {
        struct peer *peer = node->peers[i];
        if (peer == NULL) continue;
        for (int lane = 0; lane < NET_LANES; lane++) {
            buffer_deinit(&peer->lanes[lane].frame);
            buffer_deinit(&peer->assembly[lane].body);
        }
        free(peer);
    }
    free(node->peers);
}
