#include <criterion/criterion.h>
#include <stdlib.h>

#include "base/prng.h"
#include "storage/effect.h"
#include "storage/range_chunk.h"
#include "storage/range_meta.h"

/* The two codecs of a range: what the store keeps of it, and the chunks it travels in. */

static struct range_meta some_meta(uint16_t config_size)
{
    struct range_meta meta = {
        .index = 7,
        .term = 3,
        .hash = UINT64_MAX,
        .settled = 9,
        .hard_term = 4,
        .config_index = 5,
        .vote = 65535,
        .flags = RANGE_META_INSTALLING | RANGE_META_GENESIS,
        .config_size = config_size,
    };
    for (int i = 0; i < config_size; i++)
        meta.config[i] = (uint8_t)i;
    return meta;
}

Test(range, a_meta_survives_encoding)
{
    for (uint16_t size = 0; size <= RANGE_META_CONFIG_MAX; size = (uint16_t)(size + 64)) {
        struct range_meta meta = some_meta(size), again;
        uint8_t at[RANGE_META_BYTES_MAX];
        size_t encoded = range_meta_encode(at, &meta);
        cr_assert_eq(range_meta_decode(bytes_of(at, encoded), &again), OK);
        cr_assert_eq(memcmp(&meta, &again, sizeof meta), 0);
        for (size_t cut = 0; cut < encoded; cut++)
            cr_assert_eq(range_meta_decode(bytes_of(at, cut), &again), ERR_CORRUPT);
    }
}

Test(range, a_meta_of_another_form_is_refused)
{
    struct range_meta meta = some_meta(8), again;
    uint8_t at[RANGE_META_BYTES_MAX + 1];
    size_t size = range_meta_encode(at, &meta);
    cr_assert_eq(range_meta_decode(bytes_of(at, size + 1), &again), ERR_CORRUPT, "longer");
    at[0]++;
    cr_assert_eq(range_meta_decode(bytes_of(at, size), &again), ERR_CORRUPT, "format");
    at[0]--;
    at[2] |= 128;
    cr_assert_eq(range_meta_decode(bytes_of(at, size), &again), ERR_CORRUPT, "flags");
    at[2] &= 127;
    at[7] = 2;
    cr_assert_eq(range_meta_decode(bytes_of(at, size), &again), ERR_CORRUPT, "configuration");
}

static struct bytes make_chunk(uint8_t *at, size_t capacity, int entries)
{
    struct range_chunk chunk;
    range_chunk_begin(&chunk, at, capacity);
    for (int i = 0; i < entries; i++) {
        uint8_t key[] = {0, 0, (uint8_t)i, 'k'};
        struct value value = {
            .bytes = bytes_of((const uint8_t *)"value", (size_t)(i % 6)),
            .version = UINT64_C(1) << 47 | (unsigned)i,
            .expires_ms = i % 3 == 0 ? 0 : INT64_MAX - i,
            .flags = (uint8_t)i,
        };
        cr_assert(range_chunk_add(&chunk, bytes_of(key, sizeof key), &value));
    }
    return range_chunk_end(&chunk, 300, RANGE_CHUNK_ENTRIES);
}

Test(range, a_chunk_survives_encoding)
{
    static uint8_t at[4096];
    struct bytes whole = make_chunk(at, sizeof at, 40), rest, key;
    struct range_chunk_front front;
    cr_assert_eq(range_chunk_open(whole, &front, &rest), OK);
    cr_assert_eq(front.range, 300);
    cr_assert_eq(front.entries, 40);
    cr_assert_eq(front.kind, RANGE_CHUNK_ENTRIES);
    struct value value;
    for (int i = 0; i < 40; i++) {
        cr_assert_eq(range_chunk_next(&rest, &key, &value), OK);
        cr_assert_eq(key.size, 4);
        cr_assert_eq(key.at[2], i);
        cr_assert_eq(value.bytes.size, i % 6);
        cr_assert_eq(value.version, UINT64_C(1) << 47 | (unsigned)i);
        cr_assert_eq(value.expires_ms, i % 3 == 0 ? 0 : INT64_MAX - i);
        cr_assert_eq(value.flags, i);
    }
    cr_assert_eq(range_chunk_next(&rest, &key, &value), ERR_NOT_FOUND);
}

Test(range, every_flipped_bit_and_every_cut_of_a_chunk_is_seen)
{
    static uint8_t at[512];
    struct bytes whole = make_chunk(at, sizeof at, 5), rest;
    struct range_chunk_front front;
    for (size_t bit = 0; bit < whole.size * 8; bit++) {
        at[bit / 8] ^= (uint8_t)(1 << bit % 8);
        cr_assert_eq(range_chunk_open(whole, &front, &rest), ERR_CORRUPT, "bit %zu", bit);
        at[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    for (size_t cut = 0; cut < whole.size; cut++)
        cr_assert_eq(range_chunk_open(bytes_of(at, cut), &front, &rest), ERR_CORRUPT);
}

Test(range, a_chunk_is_never_larger_than_its_room)
{
    static uint8_t at[200], bytes[100];
    struct range_chunk chunk;
    range_chunk_begin(&chunk, at, sizeof at);
    struct value value = {.bytes = bytes_of(bytes, sizeof bytes), .version = 1};
    cr_assert(range_chunk_add(&chunk, bytes_of_text("ab"), &value));
    cr_assert_not(range_chunk_add(&chunk, bytes_of_text("ac"), &value));
    cr_assert_eq(chunk.entries, 1);
    cr_assert_leq(range_chunk_end(&chunk, 1, RANGE_CHUNK_ENTRIES).size, sizeof at);
}

Test(range, a_large_value_goes_in_parts)
{
    static uint8_t at[1000], large[2500], together[2500];
    for (size_t i = 0; i < sizeof large; i++)
        large[i] = (uint8_t)(i * 7);
    struct value value = {
        .bytes = bytes_of(large, sizeof large), .version = 5, .expires_ms = 12, .flags = 3};
    size_t offset = 0, parts = 0;
    while (offset < sizeof large) {
        struct range_chunk chunk;
        range_chunk_begin(&chunk, at, sizeof at);
        size_t size = range_chunk_part(&chunk, bytes_of_text("\1\2key"), &value, offset);
        struct bytes whole = range_chunk_end(&chunk, 2, RANGE_CHUNK_PART), rest, key;
        struct range_chunk_front front;
        struct value part;
        size_t at_offset, all;
        cr_assert_eq(range_chunk_open(whole, &front, &rest), OK);
        cr_assert_eq(front.kind, RANGE_CHUNK_PART);
        cr_assert_eq(range_chunk_part_get(rest, &key, &part, &at_offset, &all), OK);
        cr_assert(bytes_equal(key, bytes_of_text("\1\2key")));
        cr_assert_eq(at_offset, offset);
        cr_assert_eq(all, sizeof large);
        cr_assert_eq(part.bytes.size, size);
        cr_assert_eq(part.version, 5);
        cr_assert_eq(part.expires_ms, 12);
        cr_assert_eq(part.flags, 3);
        memcpy(together + offset, part.bytes.at, size);
        offset += size;
        parts++;
    }
    cr_assert_eq(parts, 3);
    cr_assert_eq(memcmp(together, large, sizeof large), 0);
}
