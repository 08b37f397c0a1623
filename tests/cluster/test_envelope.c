#include <criterion/criterion.h>
#include <stdlib.h>

#include "cluster/envelope.h"

static const struct envelope sample = {
    .lane = NET_DATA,
    .kind = ENVELOPE_FRAMES,
    .cluster_id = {1, 2, 3},
    .from = 7,
    .to = 9,
    .from_boot = 0x1122334455667788u,
    .to_boot = 0x99aabbccddeeff00u,
    .incarnation = 12,
    .seq = 345,
};

/* A packet of three frames of 0, 5 and 64 bytes. */
static size_t make(uint8_t *at, uint8_t flags)
{
    static const size_t sizes[] = {0, 5, 64};
    uint8_t content[64];
    memset(content, 'x', sizeof content);
    struct envelope envelope = sample;
    envelope.flags = flags;
    envelope.count = 3;
    size_t end = ENVELOPE_SIZE;
    for (size_t i = 0; i < 3; i++) {
        envelope_put_frame(at + end, bytes_of(content, sizes[i]));
        end += envelope_frame_span(sizes[i]);
    }
    envelope.body_size = (uint32_t)(end - ENVELOPE_SIZE);
    envelope_encode(&envelope, at);
    envelope_sum(at, end);
    return end;
}

static enum err open_packet(struct bytes packet, struct envelope *out)
{
    TRY(envelope_decode(packet, out));
    TRY(envelope_check_sum(packet));
    return envelope_check_body(out, bytes_of(packet.at + ENVELOPE_SIZE, out->body_size));
}

Test(envelope, every_field_comes_back)
{
    uint8_t packet[512];
    struct bytes whole = bytes_of(packet, make(packet, 0));
    struct envelope out;
    cr_assert_eq(open_packet(whole, &out), OK);
    cr_assert_eq(out.lane, sample.lane);
    cr_assert_eq(out.kind, sample.kind);
    cr_assert_eq(out.flags, 0);
    cr_assert_eq(memcmp(out.cluster_id, sample.cluster_id, 16), 0);
    cr_assert_eq(out.from, sample.from);
    cr_assert_eq(out.to, sample.to);
    cr_assert_eq(out.count, 3);
    cr_assert_eq(out.from_boot, sample.from_boot);
    cr_assert_eq(out.to_boot, sample.to_boot);
    cr_assert_eq(out.incarnation, sample.incarnation);
    cr_assert_eq(out.seq, sample.seq);
    struct bytes rest = bytes_of(packet + ENVELOPE_SIZE, out.body_size);
    struct bytes frame;
    cr_assert(envelope_next_frame(&rest, &frame) == OK && frame.size == 0);
    cr_assert(envelope_next_frame(&rest, &frame) == OK && frame.size == 5);
    cr_assert(envelope_next_frame(&rest, &frame) == OK && frame.size == 64 && frame.at[63] == 'x');
    cr_assert_eq(envelope_next_frame(&rest, &frame), ERR_NOT_FOUND);
}

Test(envelope, every_flipped_bit_and_every_cut_is_seen)
{
    uint8_t packet[512];
    size_t size = make(packet, 0);
    struct envelope out;
    for (size_t bit = 0; bit < size * 8; bit++) {
        packet[bit / 8] ^= (uint8_t)(1u << bit % 8);
        cr_assert_neq(open_packet(bytes_of(packet, size), &out), OK, "bit %zu", bit);
        packet[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    for (size_t cut = 0; cut < size; cut++) {
        uint8_t *copy = malloc(cut + 1);
        memcpy(copy, packet, cut);
        cr_assert_eq(envelope_decode(bytes_of(copy, cut), &out), ERR_CORRUPT);
        free(copy);
    }
    packet[4] = 2;
    cr_assert_eq(envelope_decode(bytes_of(packet, size), &out), ERR_MISMATCH, "another version");
}

Test(envelope, a_sealed_one_has_room_for_its_tag)
{
    uint8_t packet[512] = {0};
    size_t size = make(packet, ENVELOPE_SEALED);
    struct envelope out;
    cr_assert_eq(envelope_decode(bytes_of(packet, size), &out), ERR_CORRUPT);
    cr_assert_eq(envelope_decode(bytes_of(packet, size + ENVELOPE_TAG_SIZE), &out), OK);
}

static enum err check(uint8_t kind, uint32_t count, const uint8_t *body, size_t size)
{
    struct envelope envelope = {.kind = kind, .count = count, .body_size = (uint32_t)size};
    return envelope_check_body(&envelope, bytes_of(body, size));
}

Test(envelope, bodies_are_what_their_kind_says)
{
    uint8_t body[64] = {0};
    envelope_put_frame(body, bytes_of("abc", 3));
    cr_assert_eq(check(ENVELOPE_FRAMES, 1, body, 16), OK);
    cr_assert_eq(check(ENVELOPE_FRAMES, 2, body, 16), ERR_CORRUPT, "fewer than counted");
    cr_assert_eq(check(ENVELOPE_FRAMES, 1, body, 24), ERR_CORRUPT, "more than counted");
    cr_assert_eq(check(ENVELOPE_FRAMES, 0, body, 0), ERR_CORRUPT, "none");
    cr_assert_eq(check(ENVELOPE_FRAMES, 1, body, 12), ERR_CORRUPT, "cut");
    body[15] = 1;
    cr_assert_eq(check(ENVELOPE_FRAMES, 1, body, 16), ERR_CORRUPT, "padding is zero");
    store_u32(body, 0xffffffffu);
    cr_assert_eq(check(ENVELOPE_FRAMES, 1, body, 16), ERR_CORRUPT, "lengths do not wrap");
    cr_assert_eq(check(ENVELOPE_HELLO, 0, body, 16), OK);
    cr_assert_eq(check(ENVELOPE_HELLO, 0, body, 8), ERR_CORRUPT);
    cr_assert_eq(check(ENVELOPE_WELCOME, 1, body, 16), ERR_CORRUPT);
    cr_assert_eq(check(ENVELOPE_REFUSED_CLONE, 0, body, 0), OK);
    cr_assert_eq(check(ENVELOPE_REFUSED_CLUSTER, 0, body, 8), ERR_CORRUPT);
}
