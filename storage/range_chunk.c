#include "storage/range_chunk.h"

#include "base/check.h"
#include "base/crc32c.h"
#include "storage/effect.h"

#define MAGIC UINT32_C(0x6b6e6863)

enum { ENTRY_FRONT = 16, OPTION_EXPIRES = 1, PART_FRONT = 4 };
_Static_assert(ENTRY_FRONT + 8 == RANGE_ENTRY_FRONT_MAX, "the front of an entry that expires");

void range_chunk_begin(struct range_chunk *chunk, uint8_t *at, size_t capacity)
{
    ASSERT(capacity > RANGE_CHUNK_FRONT);
    *chunk = (struct range_chunk){.at = at, .capacity = capacity, .size = RANGE_CHUNK_FRONT};
}

static size_t front_size(const struct value *value)
{
    return value->expires_ms != 0 ? RANGE_ENTRY_FRONT_MAX : ENTRY_FRONT;
}

/* everything of an entry but its value */
static void put_front(struct range_chunk *chunk, struct bytes key, const struct value *value)
{
    ASSERT(key.size <= KEY_SIZE_MAX_STORED && value->bytes.size <= VALUE_SIZE_MAX);
    uint8_t *at = chunk->at + chunk->size;
    store_u16(at, (uint16_t)key.size);
    at[2] = value->flags;
    at[3] = value->expires_ms != 0 ? OPTION_EXPIRES : 0;
    store_u32(at + 4, (uint32_t)value->bytes.size);
    store_u64(at + 8, value->version);
    if (value->expires_ms != 0) store_u64(at + ENTRY_FRONT, (uint64_t)value->expires_ms);
    chunk->size += front_size(value);
    memcpy(chunk->at + chunk->size, key.at, key.size);
    chunk->size += key.size;
    chunk->entries++;
}

bool range_chunk_add(struct range_chunk *chunk, struct bytes key, const struct value *value)
{
    size_t size = front_size(value) + key.size + value->bytes.size;
    if (size > chunk->capacity - chunk->size) return false;
    put_front(chunk, key, value);
    if (value->bytes.size > 0) memcpy(chunk->at + chunk->size, value->bytes.at, value->bytes.size);
    chunk->size += value->bytes.size;
    return true;
}

size_t range_chunk_part(
    struct range_chunk *chunk, struct bytes key, const struct value *value, size_t offset)
{
    ASSERT(chunk->entries == 0 && offset < value->bytes.size);
    ASSERT(chunk->capacity - chunk->size > front_size(value) + key.size + PART_FRONT);
    put_front(chunk, key, value);
    store_u32(chunk->at + chunk->size, (uint32_t)offset);
    chunk->size += PART_FRONT;
    size_t room = chunk->capacity - chunk->size;
    size_t left = value->bytes.size - offset;
    size_t size = left < room ? left : room;
    memcpy(chunk->at + chunk->size, value->bytes.at + offset, size);
    chunk->size += size;
    return size;
}

struct bytes range_chunk_end(struct range_chunk *chunk, uint16_t range, uint8_t kind)
{
    ASSERT(chunk->entries > 0);
    uint8_t *at = chunk->at;
    store_u32(at, MAGIC);
    store_u32(at + 8, (uint32_t)chunk->size);
    store_u32(at + 12, chunk->entries);
    store_u16(at + 16, range);
    at[18] = kind;
    memset(at + 19, 0, RANGE_CHUNK_FRONT - 19);
    store_u32(at + 4, crc32c(0, at + 8, chunk->size - 8));
    return bytes_of(at, chunk->size);
}

enum err range_chunk_open(
    struct bytes chunk, struct range_chunk_front *front_out, struct bytes *entries_out)
{
    const uint8_t *at = chunk.at;
    if (chunk.size <= RANGE_CHUNK_FRONT || load_u32(at) != MAGIC) return ERR_CORRUPT;
    if (load_u32(at + 8) != chunk.size) return ERR_CORRUPT;
    if (load_u32(at + 4) != crc32c(0, at + 8, chunk.size - 8)) return ERR_CORRUPT;
    struct range_chunk_front front = {
        .entries = load_u32(at + 12), .range = load_u16(at + 16), .kind = at[18]};
    if (front.kind != RANGE_CHUNK_ENTRIES && front.kind != RANGE_CHUNK_PART) return ERR_CORRUPT;
    if (front.entries == 0) return ERR_CORRUPT;
    *front_out = front;
    *entries_out = bytes_of(at + RANGE_CHUNK_FRONT, chunk.size - RANGE_CHUNK_FRONT);
    return OK;
}

/* reads front and key; *value_out has the whole value's size and no bytes */
static enum err get_front(struct bytes *rest, struct bytes *key_out, struct value *value_out)
{
    if (rest->size < ENTRY_FRONT) return ERR_CORRUPT;
    const uint8_t *at = rest->at;
    size_t key_size = load_u16(at), value_size = load_u32(at + 4);
    if (key_size < 2 || key_size > KEY_SIZE_MAX_STORED || value_size > VALUE_SIZE_MAX)
        return ERR_CORRUPT;
    if ((at[3] & ~OPTION_EXPIRES) != 0 || load_u64(at + 8) >> 48 != 0) return ERR_CORRUPT;
    size_t front = at[3] != 0 ? RANGE_ENTRY_FRONT_MAX : ENTRY_FRONT;
    if (rest->size < front + key_size) return ERR_CORRUPT;
    *value_out = (struct value){
        .bytes = {.size = value_size},
        .version = load_u64(at + 8),
        .flags = at[2],
        .expires_ms = at[3] != 0 ? (int64_t)load_u64(at + ENTRY_FRONT) : 0,
    };
    if (at[3] != 0 && value_out->expires_ms == 0) return ERR_CORRUPT;
    *key_out = bytes_of(at + front, key_size);
    *rest = bytes_of(at + front + key_size, rest->size - front - key_size);
    return OK;
}

enum err range_chunk_next(struct bytes *rest, struct bytes *key_out, struct value *value_out)
{
    if (rest->size == 0) return ERR_NOT_FOUND;
    struct bytes left = *rest;
    TRY(get_front(&left, key_out, value_out));
    size_t size = value_out->bytes.size;
    if (left.size < size) return ERR_CORRUPT;
    value_out->bytes = bytes_of(left.at, size);
    *rest = bytes_of(left.at + size, left.size - size);
    return OK;
}

enum err range_chunk_part_get(struct bytes entries, struct bytes *key_out, struct value *value_out,
    size_t *offset_out, size_t *whole_out)
{
    TRY(get_front(&entries, key_out, value_out));
    if (entries.size <= PART_FRONT) return ERR_CORRUPT;
    size_t offset = load_u32(entries.at), whole = value_out->bytes.size;
    size_t size = entries.size - PART_FRONT;
    if (offset >= whole || size > whole - offset) return ERR_CORRUPT;
    value_out->bytes = bytes_of(entries.at + PART_FRONT, size);
    *offset_out = offset;
    *whole_out = whole;
    return OK;
}
