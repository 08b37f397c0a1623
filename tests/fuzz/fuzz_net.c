#include <stdint.h>
#include <stdlib.h>

#include "base/check.h"
#include "cluster/envelope.h"
#include "cluster/message.h"
#include "cluster/net_gate.h"

/* Packets from the network between nodes: the envelope, the frames in it, the messages in those, and the rules whom to
 * believe. The first byte: bit 0 mends the sum, so that the checks behind it are reached; bit 1 sets the size. The
 * rest may hold several packets, each behind its size of two bytes, for one gate. */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_messages(struct bytes frame)
{
    struct message message;
    while (message_next(&frame, &message) == OK) {
        ASSERT(message.type != 0);
    }
}

static void read_frames(struct bytes body)
{
    struct bytes frame;
    while (envelope_next_frame(&body, &frame) == OK) {
        ASSERT(frame.size <= NET_FRAME_MAX);
        read_messages(frame);
    }
    ASSERT(body.size == 0); /* envelope_check_body() has said so */
}

static void judge(struct net_gate *gate, struct envelope *envelope, const uint8_t *body)
{
    struct net_peer from;
    uint32_t old_pipe;
    uint64_t now = envelope->seq % 5000;
    switch ((enum envelope_kind)envelope->kind) {
    case ENVELOPE_HELLO:
        (void)gate_hello(gate, envelope, body, now);
        return;
    case ENVELOPE_FRAMES:
        if (gate_frames(gate, envelope, 1 + envelope->count % 5, now, &from, &old_pipe) ==
            GATE_OK) {
            ASSERT(from.node == envelope->from && from.boot == envelope->from_boot);
            ASSERT(gate_frames(gate, envelope, 1, now, &from, &old_pipe) == GATE_DUPLICATE);
        }
        return;
    case ENVELOPE_WELCOME:
    case ENVELOPE_REFUSED_CLUSTER:
    case ENVELOPE_REFUSED_CLONE:
        (void)gate_answer(gate, envelope, envelope->from, envelope->seq);
        return;
    }
}

static void take_packet(struct net_gate *gate, const uint8_t *data, size_t size, uint8_t mend)
{
    uint8_t *packet =
        malloc(size == 0 ? 1 : size); /* of its exact size: a read behind the end is seen */
    if (packet == NULL) return;
    memcpy(packet, data, size);
    if (size >= ENVELOPE_SIZE) {
        if ((mend & 2) != 0) store_u32(packet + 64, (uint32_t)(size - ENVELOPE_SIZE));
        if ((mend & 1) != 0) envelope_sum(packet, size);
    }
    struct envelope envelope;
    if (envelope_decode(bytes_of(packet, size), &envelope) == OK &&
        (envelope.flags & ENVELOPE_SEALED) == 0 &&
        envelope_check_sum(bytes_of(packet, size)) == OK &&
        envelope_check_body(&envelope, bytes_of(packet + ENVELOPE_SIZE, envelope.body_size)) ==
            OK) {
        if (envelope.kind == ENVELOPE_FRAMES) {
            read_frames(bytes_of(packet + ENVELOPE_SIZE, envelope.body_size));
        }
        judge(gate, &envelope, packet + ENVELOPE_SIZE);
    }
    read_messages(bytes_of(packet, size));
    free(packet);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct net_gate gate;
    struct net_identity self = {.node = 1, .incarnation = 1, .cluster_id = {'c'}};
    if (size < 1 || gate_init(&gate, 7) != OK) return 0;
    gate_set_identity(&gate, &self);
    uint8_t mend = data[0];
    size_t at = 1;
    while (size - at >= 2) {
        size_t packet_size = load_u16(data + at);
        at += 2;
        if (packet_size > size - at) packet_size = size - at;
        take_packet(&gate, data + at, packet_size, mend);
        at += packet_size;
    }
    gate_deinit(&gate);
    return 0;
}
