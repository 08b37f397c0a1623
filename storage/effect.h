#ifndef STORAGE_EFFECT_H
#define STORAGE_EFFECT_H

#include "base/bytes.h"
#include "base/err.h"

/* Effects: what a log record of type WAL_RECORD_WRITE does to keys. Absolute, never relative: a
 * command (INCR, SET NX, EXEC) is evaluated once, by the node that leads the range, and what is
 * logged is its result. Applying a record twice therefore changes nothing, and replicas cannot
 * come to different results (docs/decisions/0001-effects-in-the-log.md).
 *
 * Payload: i64 wall_ms of the proposer, then effects, each at an 8-byte boundary of the payload:
 *   u8 kind | u8 flags | u16 range | u16 bucket | u16 key_size | u32 value_size | u32 zero | i64 expires_ms |
 *   key | value | zero padding to 8
 */
enum effect_kind {
    EFFECT_PUT = 1,
    EFFECT_DELETE = 2,
    EFFECT_CLEAR_BUCKET = 3, /* removes every key of `bucket` in `range` */
};

enum { EFFECT_HEADER = 24, KEY_SIZE_MAX = 400, VALUE_SIZE_MAX = 16 << 20 };

/* A key as memtable and bottom store have it: u16 bucket big-endian, then the user's key. */
enum { KEY_SIZE_MAX_STORED = KEY_SIZE_MAX + 2 };
/* Writes that form of a key of at most KEY_SIZE_MAX bytes to `at`, which has room for
 * KEY_SIZE_MAX_STORED; the result borrows from `at`. */
struct bytes effect_stored_key(uint8_t *at, uint16_t bucket, struct bytes key);

struct effect {
    uint8_t kind;
    uint8_t flags; /* data type of the value, TYPE_STRING so far */
    uint16_t range;
    uint16_t bucket;
    int64_t expires_ms; /* 0: never */
    struct bytes key; /* as the user gave it */
    struct bytes value;
};

enum { TYPE_STRING = 0 };

/* Encoded size, padding included. */
size_t effect_size(size_t key_size, size_t value_size);
/* Writes header and key at `at` and zeroes the padding; returns where value_size bytes of value go. */
uint8_t *effect_encode(uint8_t *at, const struct effect *effect, size_t value_size);
/* Reads one effect from the front of *rest (at first: the payload after its 8 bytes of time) and
 * advances it. ERR_NOT_FOUND at the end, ERR_CORRUPT on nonsense. The result borrows. */
enum err effect_next(struct bytes *rest, struct effect *effect_out) MUST_CHECK;

#endif
