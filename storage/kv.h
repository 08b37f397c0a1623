#ifndef STORAGE_KV_H
#define STORAGE_KV_H

#include <stdbool.h>

#include "base/bytes.h"
#include "base/err.h"
#include "storage/memtable.h"

/* The bottom level: an ordered store of checkpointed state, with one writer at a time and snapshot
 * readers. Two implementations: kv_lmdb.c (the only file that sees lmdb.h) and, in the
 * simulator, sim_kv. One contract suite runs on both.
 *
 * A range is a named database of its own (so it can be dropped and appended to by itself), keyed
 * by u16 bucket big-endian + user key; the stored form of a value is kv_value_*'s, below. How
 * many keys each bucket has is kept exact, in the same transaction. An index by expiry
 * (big-endian expires_ms | u16 range | key) is kept exact beside them. Meta keys hold identity
 * and, per range, the applied index, written in the transaction of the data. */

struct kv;
struct kv_read; /* a read transaction: one consistent snapshot */
struct kv_write; /* the write transaction */

struct kv_config {
    /* Created if absent and `create`; its parent must exist. One open at a time: else ERR_BUSY. */
    const char *folder;
    uint32_t ranges; /* highest range id + 1 */
    uint64_t map_size; /* 0: sized to the disk */
    bool create;
    bool read_only; /* verify */
};

struct kv_stats {
    uint64_t file_bytes;
    uint64_t used_bytes; /* pages in use */
    uint64_t map_bytes;
    uint64_t entries;
    uint32_t readers;
    uint32_t depth; /* of the deepest range */
};

struct kv_ops {
    const char *name;
    enum err (*open)(const struct kv_config *config, struct kv **kv_out);
    void (*close)(struct kv *kv);

    /* Snapshot reads. A kv_read belongs to one thread at a time; reset() lets go of the snapshot
     * (and its pages), renew() takes the newest. Cheap enough for once a loop turn. */
    enum err (*read_begin)(struct kv *kv, struct kv_read **read_out);
    void (*read_reset)(struct kv_read *read);
    enum err (*read_renew)(struct kv_read *read);
    void (*read_end)(struct kv_read *read);

    /* ERR_NOT_FOUND, ERR_CORRUPT (checksum), or the value; borrowed until reset/end. */
    enum err (*get)(
        struct kv_read *read, uint16_t range, struct bytes key, struct value *value_out);
    /* Keys of a bucket in a range (expired ones not yet removed included). */
    enum err (*count)(struct kv_read *read, uint16_t range, uint16_t bucket, uint64_t *count_out);
    /* Calls each() for every bucket of the range whose count is not zero, in order of buckets. */
    enum err (*counts)(struct kv_read *read, uint16_t range,
        void (*each)(void *ctx, uint16_t bucket, uint64_t count), void *ctx);
    enum err (*meta_get)(struct kv_read *read, const char *name, struct bytes *value_out);

    /* The sum of kv_entry_sum() over all entries of a range, kept exact by the writes: what the range
     * must add up to, whatever LMDB's pages say. NULL: this implementation keeps none. */
    enum err (*sum)(struct kv_read *read, uint16_t range, uint64_t *sum_out);

    /* Cursor over one range. seek: first key >= from. next: the one after. ERR_NOT_FOUND at the
     * end; ERR_CORRUPT fills the key and, of the value, the version as it is stored, and the cursor
     * can go on. */
    enum err (*cursor_open)(struct kv_read *read, uint16_t range, void **cursor_out);
    enum err (*cursor_seek)(
        void *cursor, struct bytes from, struct bytes *key_out, struct value *value_out);
    enum err (*cursor_next)(void *cursor, struct bytes *key_out, struct value *value_out);
    void (*cursor_close)(void *cursor);

    /* Calls each() for every key with max(from, 1) <= expires_ms <= until, oldest first; stops when
     * it returns false. */
    enum err (*expired)(struct kv_read *read, int64_t from, int64_t until,
        bool (*each)(void *ctx, uint16_t range, struct bytes key, int64_t expires_ms), void *ctx);

    /* One write transaction at a time: a second thread's begin waits for the first to end. Each from begin to
     * commit or abort in one thread. Keys beyond the last of a range are appended, so sorted loads leave
     * full pages. Commit is fully synced; after any error the transaction is gone and the store is as before
     * (abort() then does nothing, and more calls on it repeat the error). ERR_FULL: disk or map full (the map is
     * grown when it can be: then ERR_AGAIN, and the caller repeats the transaction). ERR_IO from write_begin
     * after a failed commit: the store must be reopened before it takes writes again. */
    enum err (*write_begin)(struct kv *kv, struct kv_write **write_out);
    enum err (*put)(
        struct kv_write *write, uint16_t range, struct bytes key, const struct value *value);
    enum err (*del)(struct kv_write *write, uint16_t range, struct bytes key); /* absent is OK */
    /* Removes up to `limit` keys of a bucket in a range; *done_out when none is left. */
    enum err (*clear)(
        struct kv_write *write, uint16_t range, uint16_t bucket, uint32_t limit, bool *done_out);
    /* Removes everything of a range, all buckets: at once where no key of it expires, else up to `limit`
     * keys; *done_out when nothing is left. */
    enum err (*range_reset)(struct kv_write *write, uint16_t range, uint32_t limit, bool *done_out);
    enum err (*meta_put)(struct kv_write *write, const char *name, struct bytes value);
    enum err (*commit)(struct kv_write *write);
    void (*abort)(struct kv_write *write);

    void (*stats)(struct kv *kv, struct kv_stats *stats_out);
};

extern const struct kv_ops kv_lmdb;

/* The stored form of a value (docs/formats/store.md):
 *   u32 crc32c over (u16 range, key, everything after this field) | u8 flags | u8 options |
 *   u48 version | [i64 expires_ms, if bit 0 of options] | bytes
 * Shared by kv implementations, so that both check the same thing. Versions are below 2^48. */
size_t kv_value_size(const struct value *value);
void kv_value_encode(uint8_t *at, uint16_t range, struct bytes key, const struct value *value);
/* ERR_CORRUPT if the checksum or the shape is wrong. The result borrows from `stored`. */
enum err kv_value_decode(
    uint16_t range, struct bytes key, struct bytes stored, struct value *value_out) MUST_CHECK;
/* The expiry alone, unchecked: for finding the index entry of a value that is overwritten. */
int64_t kv_value_expires(struct bytes stored);
/* The version alone, unchecked; 0 if there is none. */
uint64_t kv_value_version(struct bytes stored);
/* What one entry adds to the sum of its range (kv_ops.sum). */
uint64_t kv_entry_sum(struct bytes key, uint64_t version);

#endif
