#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>

#include "base/prng.h"
#include "storage/effect.h"

static size_t encode(uint8_t *at, const struct effect *effect)
{
    uint8_t *value = effect_encode(at, effect, effect->value.size);
    if (effect->value.size > 0) memcpy(value, effect->value.at, effect->value.size);
    return effect_size(effect->key.size, effect->value.size);
}

Test(effect, several_come_back_in_order)
{
    const struct effect effects[] = {
        {.kind = EFFECT_PUT,
            .flags = 2,
            .range = 3,
            .bucket = 4,
            .expires_ms = 1234567890123,
            .key = bytes_of_text("name"),
            .value = bytes_of_text("value")},
        {.kind = EFFECT_DELETE, .range = 65535, .bucket = 65535, .key = bytes_of_text("x")},
        {.kind = EFFECT_CLEAR_BUCKET, .bucket = 9},
        {.kind = EFFECT_PUT, .range = 1, .key = bytes_of_text("empty"), .expires_ms = -1},
    };
    enum { COUNT = sizeof effects / sizeof *effects };
    _Alignas(8) uint8_t payload[512];
    size_t size = 0;
    memset(payload, 0xff, sizeof payload);
    for (size_t i = 0; i < COUNT; i++) {
        size += encode(payload + size, &effects[i]);
        cr_assert_eq(size % 8, 0);
    }
    struct bytes rest = bytes_of(payload, size);
    for (size_t i = 0; i < COUNT; i++) {
        struct effect back;
        cr_assert_eq(effect_next(&rest, &back), OK);
        cr_assert_eq(back.kind, effects[i].kind);
        cr_assert_eq(back.flags, effects[i].flags);
        cr_assert_eq(back.range, effects[i].range);
        cr_assert_eq(back.bucket, effects[i].bucket);
        cr_assert_eq(back.expires_ms, effects[i].expires_ms);
        cr_assert(bytes_equal(back.key, effects[i].key));
        cr_assert(bytes_equal(back.value, effects[i].value));
    }
    struct effect back;
    cr_assert_eq(effect_next(&rest, &back), ERR_NOT_FOUND);
}

Test(effect, has_the_documented_bytes)
{
    struct effect effect = {.kind = EFFECT_PUT,
        .flags = 7,
        .range = 0x0102,
        .bucket = 0x0304,
        .expires_ms = 0x1122,
        .key = bytes_of_text("ab"),
        .value = bytes_of_text("xyz")};
    uint8_t at[64];
    memset(at, 0xff, sizeof at);
    static const uint8_t wanted[] = {1, 7, 2, 1, 4, 3, 2, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0x22, 0x11, 0,
        0, 0, 0, 0, 0, 'a', 'b', 'x', 'y', 'z', 0, 0, 0};
    cr_assert_eq(encode(at, &effect), sizeof wanted);
    cr_assert_arr_eq(at, wanted, sizeof wanted, "no padding is left as it was");
}

Test(effect, largest_key_and_value_pass)
{
    uint8_t *key = calloc(1, KEY_SIZE_MAX), *value = calloc(1, VALUE_SIZE_MAX);
    struct effect effect = {.kind = EFFECT_PUT,
        .key = bytes_of(key, KEY_SIZE_MAX),
        .value = bytes_of(value, VALUE_SIZE_MAX)};
    size_t size = effect_size(KEY_SIZE_MAX, VALUE_SIZE_MAX);
    uint8_t *at = malloc(size);
    cr_assert_eq(encode(at, &effect), size);
    struct bytes rest = bytes_of(at, size);
    struct effect back;
    cr_assert_eq(effect_next(&rest, &back), OK);
    cr_assert_eq(back.value.size, VALUE_SIZE_MAX);
    cr_assert_eq(rest.size, 0);
    free(at);
    free(key);
    free(value);
}

Test(effect, nonsense_is_corrupt_not_a_crash)
{
    struct effect effect = {
        .kind = EFFECT_PUT, .key = bytes_of_text("name"), .value = bytes_of_text("value")};
    uint8_t good[64];
    size_t size = encode(good, &effect);
    struct effect back;
    for (size_t cut = 1; cut < size; cut++) {
        uint8_t *at = malloc(cut);
        memcpy(at, good, cut);
        struct bytes rest = bytes_of(at, cut);
        cr_assert_eq(effect_next(&rest, &back), ERR_CORRUPT);
        cr_assert_eq(rest.size, cut, "nothing is taken");
        free(at);
    }
    const struct {
        size_t at;
        uint8_t byte;
    } damages[] = {{0, 0}, {0, 4}, {7, 0xff}, {11, 0xff}, {8, 0xf0}};
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        uint8_t bad[64];
        memcpy(bad, good, size);
        bad[damages[i].at] = damages[i].byte;
        struct bytes rest = bytes_of(bad, size);
        cr_assert_eq(effect_next(&rest, &back), ERR_CORRUPT, "case %zu", i);
    }
}

Test(effect, a_key_beyond_the_limit_is_a_bug, .signal = SIGABRT)
{
    uint8_t at[1024], key[KEY_SIZE_MAX + 1] = {0};
    struct effect effect = {.kind = EFFECT_PUT, .key = bytes_of(key, sizeof key)};
    effect_encode(at, &effect, 0);
}
