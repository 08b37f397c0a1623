#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>

#include "base/prng.h"
#include "storage/kv.h"

static struct bytes encode(uint8_t *at, uint16_t range, struct bytes key, const struct value *value)
{
    kv_value_encode(at, range, key, value);
    return bytes_of(at, kv_value_size(value));
}

Test(kv_value, comes_back_as_it_was)
{
    const struct value values[] = {
        {.bytes = bytes_of_text("text"), .version = 7},
        {.bytes = bytes_of_text(""), .version = 0},
        {.bytes = bytes_of_text("text"), .expires_ms = 1, .version = (UINT64_C(1) << 48) - 1},
        {.bytes = bytes_of_text(""), .expires_ms = INT64_MAX, .version = 1, .flags = 255},
        {.bytes = bytes_of_text("x"), .expires_ms = -5, .version = 1},
    };
    struct bytes key = bytes_of_text("key");
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        uint8_t at[64];
        struct bytes stored = encode(at, 3, key, &values[i]);
        struct value back;
        cr_assert_eq(kv_value_decode(3, key, stored, &back), OK);
        cr_assert(bytes_equal(back.bytes, values[i].bytes));
        cr_assert_eq(back.expires_ms, values[i].expires_ms);
        cr_assert_eq(back.version, values[i].version);
        cr_assert_eq(back.flags, values[i].flags);
        cr_assert_eq(kv_value_expires(stored), values[i].expires_ms);
    }
}

Test(kv_value, has_the_documented_bytes)
{
    struct value value = {.bytes = bytes_of_text("hello"),
        .expires_ms = 0x1122334455,
        .version = 0x0a0b0c0d0e0f,
        .flags = 9};
    uint8_t at[64];
    struct bytes stored = encode(at, 0x0102, bytes_of_text("k"), &value);
    static const uint8_t after_crc[] = {9, 1, 0x0f, 0x0e, 0x0d, 0x0c, 0x0b, 0x0a, 0x55, 0x44, 0x33,
        0x22, 0x11, 0, 0, 0, 'h', 'e', 'l', 'l', 'o'};
    cr_assert_eq(stored.size, 4 + sizeof after_crc);
    cr_assert_arr_eq(stored.at + 4, after_crc, sizeof after_crc);
    value.expires_ms = 0;
    stored = encode(at, 0x0102, bytes_of_text("k"), &value);
    cr_assert_eq(stored.size, 12 + 5);
    cr_assert_eq(stored.at[5], 0);
}

Test(kv_value, any_flipped_bit_is_found)
{
    struct value value = {.bytes = bytes_of_text("some bytes"), .expires_ms = 77, .version = 5};
    struct bytes key = bytes_of_text("key");
    uint8_t at[64];
    struct bytes stored = encode(at, 1, key, &value);
    for (size_t bit = 0; bit < stored.size * 8; bit++) {
        at[bit / 8] ^= (uint8_t)(1u << (bit % 8));
        struct value back;
        cr_assert_eq(kv_value_decode(1, key, stored, &back), ERR_CORRUPT, "bit %zu", bit);
        at[bit / 8] ^= (uint8_t)(1u << (bit % 8));
    }
}

Test(kv_value, a_value_in_the_wrong_place_is_found)
{
    struct value value = {.bytes = bytes_of_text("some bytes"), .version = 5}, back;
    uint8_t at[64];
    struct bytes stored = encode(at, 1, bytes_of_text("key"), &value);
    cr_assert_eq(kv_value_decode(1, bytes_of_text("key"), stored, &back), OK);
    cr_assert_eq(kv_value_decode(1, bytes_of_text("kez"), stored, &back), ERR_CORRUPT);
    cr_assert_eq(kv_value_decode(2, bytes_of_text("key"), stored, &back), ERR_CORRUPT);
    cr_assert_eq(kv_value_decode(257, bytes_of_text("key"), stored, &back), ERR_CORRUPT);
}

Test(kv_value, every_cut_is_found)
{
    struct value value = {.bytes = bytes_of_text("some bytes"), .expires_ms = 1, .version = 5},
                 back;
    uint8_t at[64];
    struct bytes stored = encode(at, 1, bytes_of_text("key"), &value);
    for (size_t size = 0; size < stored.size; size++)
        cr_assert_eq(
            kv_value_decode(1, bytes_of_text("key"), bytes_of(at, size), &back), ERR_CORRUPT);
}

Test(kv_value, noise_is_refused_without_harm)
{
    struct prng prng;
    prng_init(&prng, 11);
    for (int round = 0; round < 100000; round++) {
        size_t size = (size_t)prng_below(&prng, 40);
        uint8_t *noise = malloc(size + 1); /* exact, so that a sanitizer sees a read too far */
        for (size_t i = 0; i < size; i++)
            noise[i] = (uint8_t)prng_next(&prng);
        struct value back;
        cr_assert_eq(
            kv_value_decode(1, bytes_of_text("key"), bytes_of(noise, size), &back), ERR_CORRUPT);
        (void)kv_value_expires(bytes_of(noise, size));
        free(noise);
    }
}

Test(kv_value, a_version_beyond_its_field_is_a_bug, .signal = SIGABRT)
{
    uint8_t at[64];
    struct value value = {.version = UINT64_C(1) << 48};
    kv_value_encode(at, 1, bytes_of_text("key"), &value);
}
