#include "storage/effect.h"

#include "base/check.h"

struct bytes effect_stored_key(uint8_t *at, uint16_t bucket, struct bytes key)
{
    store_u16_be(at, bucket);
    if (key.size > 0) memcpy(at + 2, key.at, key.size);
    return bytes_of(at, key.size + 2);
}

size_t effect_size(size_t key_size, size_t value_size)
{
    return round_up(EFFECT_HEADER + key_size + value_size, 8);
}

uint8_t *effect_encode(uint8_t *at, const struct effect *effect, size_t value_size)
{
    ASSERT(effect->key.size <= KEY_SIZE_MAX);
    ASSERT(value_size <= VALUE_SIZE_MAX);
    ASSERT(effect->kind >= EFFECT_PUT && effect->kind <= EFFECT_CLEAR_BUCKET);
    at[0] = effect->kind;
    at[1] = effect->flags;
    store_u16(at + 2, effect->range);
    store_u16(at + 4, effect->bucket);
    store_u16(at + 6, (uint16_t)effect->key.size);
    store_u32(at + 8, (uint32_t)value_size);
    store_u32(at + 12, 0);
    store_u64(at + 16, (uint64_t)effect->expires_ms);
    if (effect->key.size > 0) memcpy(at + EFFECT_HEADER, effect->key.at, effect->key.size);
    uint8_t *value = at + EFFECT_HEADER + effect->key.size;
    size_t used = EFFECT_HEADER + effect->key.size + value_size;
    memset(at + used, 0, effect_size(effect->key.size, value_size) - used);
    return value;
}

enum err effect_next(struct bytes *rest, struct effect *effect_out)
{
    if (rest->size == 0) return ERR_NOT_FOUND;
    if (rest->size < EFFECT_HEADER) return ERR_CORRUPT;
    const uint8_t *at = rest->at;
    size_t key_size = load_u16(at + 6);
    size_t value_size = load_u32(at + 8);
    if (at[0] < EFFECT_PUT || at[0] > EFFECT_CLEAR_BUCKET) return ERR_CORRUPT;
    if (key_size > KEY_SIZE_MAX || value_size > VALUE_SIZE_MAX) return ERR_CORRUPT;
    size_t size = effect_size(key_size, value_size);
    if (size > rest->size) return ERR_CORRUPT;
    *effect_out = (struct effect){
        .kind = at[0],
        .flags = at[1],
        .range = load_u16(at + 2),
        .bucket = load_u16(at + 4),
        .expires_ms = (int64_t)load_u64(at + 16),
        .key = bytes_of(at + EFFECT_HEADER, key_size),
        .value = bytes_of(at + EFFECT_HEADER + key_size, value_size),
    };
    *rest = bytes_of(at + size, rest->size - size);
    return OK;
}
