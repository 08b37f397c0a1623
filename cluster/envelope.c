#include "cluster/envelope.h"

#include "base/check.h"
#include "base/crc32c.h"

enum {
    MAGIC = 0x31464e44, /* "DNF1" */
    VERSION = 1,
};

enum {
    AT_MAGIC = 0,
    AT_VERSION = 4,
    AT_LANE = 5,
    AT_KIND = 6,
    AT_FLAGS = 7,
    AT_CLUSTER = 8,
    AT_FROM = 24,
    AT_TO = 26,
    AT_COUNT = 28,
    AT_FROM_BOOT = 32,
    AT_TO_BOOT = 40,
    AT_INCARNATION = 48,
    AT_SEQ = 56,
    AT_BODY_SIZE = 64,
    AT_SUM = 68,
};

void envelope_encode(const struct envelope *envelope, uint8_t at[ENVELOPE_SIZE])
{
    ASSERT(envelope->lane < NET_LANES);
    ASSERT(envelope->kind >= ENVELOPE_HELLO && envelope->kind <= ENVELOPE_FRAMES);
    ASSERT(envelope->body_size <= ENVELOPE_BODY_MAX);
    memset(at, 0, ENVELOPE_SIZE);
    store_u32(at + AT_MAGIC, MAGIC);
    at[AT_VERSION] = VERSION;
    at[AT_LANE] = envelope->lane;
    at[AT_KIND] = envelope->kind;
    at[AT_FLAGS] = envelope->flags;
    memcpy(at + AT_CLUSTER, envelope->cluster_id, 16);
    store_u16(at + AT_FROM, envelope->from);
    store_u16(at + AT_TO, envelope->to);
    store_u32(at + AT_COUNT, envelope->count);
    store_u64(at + AT_FROM_BOOT, envelope->from_boot);
    store_u64(at + AT_TO_BOOT, envelope->to_boot);
    store_u64(at + AT_INCARNATION, envelope->incarnation);
    store_u64(at + AT_SEQ, envelope->seq);
    store_u32(at + AT_BODY_SIZE, envelope->body_size);
}

static uint32_t sum_of(struct bytes packet)
{
    static const uint8_t zeros[4];
    uint32_t sum = crc32c(0, packet.at, AT_SUM);
    sum = crc32c(sum, zeros, sizeof zeros);
    return crc32c(sum, packet.at + AT_SUM + 4, packet.size - AT_SUM - 4);
}

void envelope_sum(uint8_t *packet, size_t size)
{
    ASSERT(size >= ENVELOPE_SIZE);
    store_u32(packet + AT_SUM, sum_of(bytes_of(packet, size)));
}

enum err envelope_check_sum(struct bytes packet)
{
    ASSERT(packet.size >= ENVELOPE_SIZE);
    return load_u32(packet.at + AT_SUM) == sum_of(packet) ? OK : ERR_CORRUPT;
}

enum err envelope_decode(struct bytes packet, struct envelope *out)
{
    const uint8_t *at = packet.at;
    if (packet.size < ENVELOPE_SIZE || load_u32(at + AT_MAGIC) != MAGIC) return ERR_CORRUPT;
    if (at[AT_VERSION] != VERSION) return ERR_MISMATCH;
    if (at[AT_LANE] >= NET_LANES) return ERR_CORRUPT;
    if (at[AT_KIND] < ENVELOPE_HELLO || at[AT_KIND] > ENVELOPE_FRAMES) return ERR_CORRUPT;
    uint8_t flags = at[AT_FLAGS];
    if ((flags & ~(ENVELOPE_JOIN | ENVELOPE_SEALED)) != 0) return ERR_CORRUPT;
    size_t body_size = load_u32(at + AT_BODY_SIZE);
    size_t tag_size = (flags & ENVELOPE_SEALED) != 0 ? ENVELOPE_TAG_SIZE : 0;
    if (body_size > ENVELOPE_BODY_MAX) return ERR_CORRUPT;
    if (packet.size != ENVELOPE_SIZE + body_size + tag_size) return ERR_CORRUPT;
    *out = (struct envelope){
        .lane = at[AT_LANE],
        .kind = at[AT_KIND],
        .flags = flags,
        .from = load_u16(at + AT_FROM),
        .to = load_u16(at + AT_TO),
        .count = load_u32(at + AT_COUNT),
        .from_boot = load_u64(at + AT_FROM_BOOT),
        .to_boot = load_u64(at + AT_TO_BOOT),
        .incarnation = load_u64(at + AT_INCARNATION),
        .seq = load_u64(at + AT_SEQ),
        .body_size = (uint32_t)body_size,
    };
    memcpy(out->cluster_id, at + AT_CLUSTER, 16);
    return OK;
}

enum err envelope_check_body(const struct envelope *envelope, struct bytes body)
{
    ASSERT(body.size == envelope->body_size);
    switch ((enum envelope_kind)envelope->kind) {
    case ENVELOPE_HELLO:
    case ENVELOPE_WELCOME:
        return envelope->count == 0 && body.size == ENVELOPE_GREETING_SIZE ? OK : ERR_CORRUPT;
    case ENVELOPE_REFUSED_CLUSTER:
    case ENVELOPE_REFUSED_CLONE:
        return envelope->count == 0 && body.size == 0 ? OK : ERR_CORRUPT;
    case ENVELOPE_FRAMES:
        break;
    }
    uint32_t count = 0;
    struct bytes frame;
    while (body.size > 0) {
        TRY(envelope_next_frame(&body, &frame));
        count++;
    }
    return count > 0 && count == envelope->count ? OK : ERR_CORRUPT;
}

void envelope_put_frame(uint8_t *at, struct bytes frame)
{
    ASSERT(frame.size <= NET_FRAME_MAX);
    size_t span = envelope_frame_span(frame.size);
    store_u32(at, (uint32_t)frame.size);
    store_u32(at + 4, 0);
    if (frame.size > 0) memcpy(at + ENVELOPE_FRAME_HEADER_SIZE, frame.at, frame.size);
    size_t end = ENVELOPE_FRAME_HEADER_SIZE + frame.size;
    memset(at + end, 0, span - end);
}

enum err envelope_next_frame(struct bytes *rest, struct bytes *frame_out)
{
    if (rest->size == 0) return ERR_NOT_FOUND;
    if (rest->size < ENVELOPE_FRAME_HEADER_SIZE) return ERR_CORRUPT;
    size_t size = load_u32(rest->at);
    if (load_u32(rest->at + 4) != 0 || size > NET_FRAME_MAX) return ERR_CORRUPT;
    size_t span = envelope_frame_span(size);
    if (span > rest->size) return ERR_CORRUPT;
    for (size_t i = ENVELOPE_FRAME_HEADER_SIZE + size; i < span; i++) {
        if (rest->at[i] != 0) return ERR_CORRUPT;
    }
    *frame_out = bytes_of(rest->at + ENVELOPE_FRAME_HEADER_SIZE, size);
    rest->at += span;
    rest->size -= span;
    return OK;
}
