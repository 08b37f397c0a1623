#ifndef STORAGE_MEMTABLE_H
#define STORAGE_MEMTABLE_H

#include <stdbool.h>

#include "base/bytes.h"
#include "base/err.h"

/* What was written since the last checkpoint, in memory, in key order: one B+tree per range
 * (fan-out 64; a node keeps the bytes all its keys share once and, per key, the 8 bytes after
 * them, so that a search seldom leaves the node), a hash index over all of them for gets and
 * overwrites (it also is the filter that keeps misses cheap), arena memory freed as a whole.
 * Holds committed state only, one version a key; an overwrite reuses the old place when it fits.
 * Removed keys stay as tombstones. Single owner while active; once sealed it is immutable and
 * may be read by any thread. */

struct memtable;

/* A value as stored anywhere in the engine; `at` of bytes borrows from where it was found. */
struct value {
    struct bytes bytes;
    int64_t expires_ms; /* 0: never */
    uint64_t version; /* of the record that wrote it: index within the range, or LSN (embedded) */
    uint8_t flags; /* data type */
};

struct memtable_entry {
    uint16_t range;
    struct bytes key; /* u16 bucket big-endian, then the user's key */
    struct value value;
    bool tombstone;
};

/* `ranges`: highest range id + 1. NULL: no memory. */
struct memtable *memtable_new(uint32_t ranges, uint64_t hash_seed);
void memtable_free(struct memtable *memtable);
/* Empties it for the next use: as new, but up to `keep` bytes of its arena stay mapped and
 * touched. Getting memory from the kernel is half the cost of an insertion: an owner that
 * rotates two memtables reuses the one whose checkpoint is done. */
void memtable_reset(struct memtable *memtable, size_t keep);

/* Inserts or replaces; copies key and value. `key` is bucket-prefixed as in memtable_entry.
 * ERR_NOMEM leaves it unchanged. */
enum err memtable_put(struct memtable *memtable, uint16_t range, struct bytes key,
    const struct value *value) MUST_CHECK;
/* Asks the processor to fetch what a put or get of the key will look at first. Called for some keys ahead,
 * so that their cache misses overlap. */
void memtable_prefetch(const struct memtable *memtable, uint16_t range, struct bytes key);
/* Records that the key is gone, whatever older layers say. */
enum err memtable_delete(
    struct memtable *memtable, uint16_t range, struct bytes key, uint64_t version) MUST_CHECK;
/* Drops every entry of the bucket in the range and hides whatever older layers have of it there. */
enum err memtable_clear_bucket(
    struct memtable *memtable, uint16_t range, uint16_t bucket) MUST_CHECK;

enum memtable_found { MEMTABLE_MISS, MEMTABLE_VALUE, MEMTABLE_GONE };
/* MEMTABLE_MISS: ask the older layer. MEMTABLE_GONE: deleted or cleared here, do not ask. */
enum memtable_found memtable_get(
    const struct memtable *memtable, uint16_t range, struct bytes key, struct value *value_out);
/* True if older layers must not be asked about this bucket of the range. */
bool memtable_cleared(const struct memtable *memtable, uint16_t range, uint16_t bucket);
/* True if any bucket of the range was cleared. */
bool memtable_range_cleared(const struct memtable *memtable, uint16_t range);
/* Calls each() for every bucket cleared in a range here, in order of buckets. */
void memtable_each_cleared(const struct memtable *memtable,
    void (*each)(void *ctx, uint16_t range, uint16_t bucket), void *ctx);

/* Memory in use (records and what became garbage of them, nodes, index), and number of entries,
 * tombstones included. */
size_t memtable_bytes(const struct memtable *memtable);
uint64_t memtable_count(const struct memtable *memtable);
uint64_t memtable_range_count(const struct memtable *memtable, uint16_t range);

/* Walks one range in key order, from the first key >= `from`. Valid until the next change. */
struct memtable_cursor {
    const struct memtable *memtable;
    const void *leaf;
    uint32_t index;
    uint16_t range;
};
void memtable_seek(const struct memtable *memtable, uint16_t range, struct bytes from,
    struct memtable_cursor *cursor);
bool memtable_cursor_get(const struct memtable_cursor *cursor, struct memtable_entry *entry_out);
void memtable_cursor_next(struct memtable_cursor *cursor);

/* A note kept beside each entry for the owner: whether the key is known to exist in older layers
 * (for exact counting). 0 unknown, 1 exists below, 2 absent below. Survives overwrites. */
uint8_t memtable_cursor_note(const struct memtable_cursor *cursor);
void memtable_cursor_set_note(struct memtable_cursor *cursor, uint8_t note);

#endif
