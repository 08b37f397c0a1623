#ifndef STORAGE_RANGE_CHUNK_H
#define STORAGE_RANGE_CHUNK_H

#include <stdbool.h>

#include "base/bytes.h"
#include "base/err.h"
#include "storage/memtable.h"

/* The bytes of a range's snapshot: chunks of sorted entries (docs/formats/store.md). Pure codec; what is read
 * may be garbage.
 *
 *   u32 magic | u32 crc32c of all that follows | u32 size of all | u32 entries | u16 range | u8 kind | 5 zeros |
 *   entries: u16 key_size | u8 flags | u8 options | u32 value_size | u64 version | [i64 expires_ms, if bit 0 of
 *   options] | key | value, without padding
 *
 * A value too large for a chunk goes in parts: chunks of kind RANGE_CHUNK_PART hold one entry each, whose value is
 * behind a u32 of its offset in the whole one; value_size is the whole one's. */

enum {
    RANGE_CHUNK_FRONT = 28,
    RANGE_CHUNK_ENTRIES = 1,
    RANGE_CHUNK_PART = 2,
    RANGE_ENTRY_FRONT_MAX = 24,
};

/* Fills `at`, which has room for `capacity` bytes. */
struct range_chunk {
    uint8_t *at;
    size_t capacity;
    size_t size;
    uint32_t entries;
};

void range_chunk_begin(struct range_chunk *chunk, uint8_t *at, size_t capacity);
/* False: it does not fit; nothing was added. */
bool range_chunk_add(struct range_chunk *chunk, struct bytes key, const struct value *value);
/* Makes a chunk of one part, as large as fits, of the value from `offset` on; returns the part's size. */
size_t range_chunk_part(
    struct range_chunk *chunk, struct bytes key, const struct value *value, size_t offset);
/* Writes the front. The chunk has at least one entry. */
struct bytes range_chunk_end(struct range_chunk *chunk, uint16_t range, uint8_t kind);

struct range_chunk_front {
    uint32_t entries;
    uint16_t range;
    uint8_t kind;
};
/* Checks front and checksum; *entries_out is what range_chunk_next() walks. */
enum err range_chunk_open(
    struct bytes chunk, struct range_chunk_front *front_out, struct bytes *entries_out) MUST_CHECK;
/* ERR_NOT_FOUND at the end, ERR_CORRUPT on nonsense. The results borrow. */
enum err range_chunk_next(
    struct bytes *rest, struct bytes *key_out, struct value *value_out) MUST_CHECK;
/* The entry of a part: value_out->bytes is the part. */
enum err range_chunk_part_get(struct bytes entries, struct bytes *key_out, struct value *value_out,
    size_t *offset_out, size_t *whole_out) MUST_CHECK;

#endif
