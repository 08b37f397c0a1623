#ifndef STORAGE_ENGINE_H
#define STORAGE_ENGINE_H

#include "base/io.h"
#include "storage/effect.h"
#include "storage/kv.h"
#include "storage/memtable.h"
#include "wal/wal.h"

/* The storage engine of a node: log + memtables + bottom store as one versioned key space.
 *
 *   append -> (durable) -> apply to the active memtable -> seal -> checkpoint, range by range -> trim the log
 *
 * Reads see the active memtable, then the sealed one, then the bottom store, which together always
 * hold exactly what was applied. Recovery replays the log over the checkpointed state; a range's
 * applied index and its data are committed in one transaction, and effects are absolute, so nothing
 * is applied twice or left out.
 *
 * One thread owns an engine (the node's loop, or whoever holds storage/store.h's lock). A checkpoint
 * thread works beside it when config.background is set; in the simulator engine_checkpoint_step()
 * is called instead. */

struct engine;

struct engine_config {
    const struct io *io;
    const struct kv_ops *kv;
    const char *kv_folder;
    uint8_t store_id[16];
    uint32_t ranges; /* data ranges, ids 1..ranges; range 0 is the system's */
    size_t memory; /* budget of the memtables (both), checkpoint buffers included */
    uint64_t slot_size; /* 0: default */
    uint64_t log_bytes_max;
    lsn_t accept_loss;
    uint64_t map_size; /* of the bottom store; 0: sized to the disk */
    uint32_t chunk_puts; /* entries per checkpoint transaction; 0: default */
    bool background; /* own checkpoint thread, slot filling in the background */
    bool create;
    bool turns; /* engine_flush() ends every turn in which engine_poll() ran */
    bool scrub; /* visit every stored value in the background */
    void *ctx;
    /* Records up to lsn are durable. From engine_poll() and engine_flush(). */
    void (*on_durable)(void *ctx, lsn_t lsn);
    /* From any thread: engine_poll() has something to do. May be NULL. */
    void *wake_ctx;
    void (*wake)(void *wake_ctx);
};

struct engine_report {
    struct wal_recovery log;
    lsn_t checkpointed; /* before replay */
    uint64_t replay_ns;
    char detail[320]; /* one sentence when open fails */
};

enum err engine_open(const struct engine_config *config, struct engine_report *report,
    struct engine **engine_out) MUST_CHECK;
/* checkpoint: bring everything into the bottom store first (a clean shutdown). */
void engine_close(struct engine *engine, bool checkpoint);

struct wal *engine_wal(struct engine *engine);
struct kv *engine_kv(struct engine *engine);
const struct kv_ops *engine_kv_ops(const struct engine *engine);
/* Everything up to here is in the bottom store. */
lsn_t engine_checkpointed(const struct engine *engine);

/* OK, or why a write of `size` bytes cannot be taken now: ERR_FULL, ERR_TOO_LARGE, ERR_POISONED, or
 * ERR_AGAIN (memory budget: wait for the checkpoint; engine's wake() tells when it moved). */
enum err engine_admit(struct engine *engine, size_t size) MUST_CHECK;
/* Sends off what was appended; `alone`: nobody else needs this thread meanwhile, so write in it.
 * Applies back-pressure by delaying the write as the memtable fills faster than it is checkpointed. */
void engine_flush(struct engine *engine, bool alone);
/* Reaps log and checkpoint. ERR_POISONED: stop the process (exit 4). */
enum err engine_poll(struct engine *engine) MUST_CHECK;
/* Periodic work (10 ms to 1 s): promise marks, sealing by age, map and disk checks. */
void engine_tick(struct engine *engine);

/* Applies a committed record to the active memtable, in order of LSN, each once. ERR_NOMEM and
 * ERR_CORRUPT are fatal: what was committed cannot be shown, so the caller stops the node. */
enum err engine_apply(struct engine *engine, const struct wal_record *record) MUST_CHECK;
/* Lets the memory that applying this record will touch come closer; for records some places ahead. */
void engine_prefetch(const struct engine *engine, const struct wal_record *record);
/* Applies the records after engine_applied() up to lsn that are in the log's memory. */
enum err engine_apply_up_to(struct engine *engine, lsn_t lsn) MUST_CHECK;
lsn_t engine_applied(const struct engine *engine);

/* Committed state. `key` is bucket-prefixed (u16 BE + user's). The value borrows until the next
 * engine_apply, engine_poll or engine_read_done. Expired keys are returned: the caller knows the time. */
enum err engine_get(
    struct engine *engine, uint16_t range, struct bytes key, struct value *value_out) MUST_CHECK;
/* Lets go of the read snapshot; call once a loop turn. */
void engine_read_done(struct engine *engine);

/* Walks a range in key order over all layers at one consistent view, from the first key >= from
 * (> from if `after`). each() returns false to stop. ERR_CORRUPT: a damaged value was met (the walk
 * went on; its key is counted in the stats). */
enum err engine_scan(struct engine *engine, uint16_t range, struct bytes from, bool after,
    bool (*each)(void *ctx, struct bytes key, const struct value *value), void *ctx) MUST_CHECK;
/* Step-wise form of the same, for merging ranges; open cursors end at the next apply or poll. */
struct engine_cursor;
enum err engine_cursor_open(struct engine *engine, uint16_t range, struct bytes from, bool after,
    struct engine_cursor **cursor_out) MUST_CHECK;
/* ERR_NOT_FOUND at the end. */
enum err engine_cursor_next(
    struct engine_cursor *cursor, struct bytes *key_out, struct value *value_out) MUST_CHECK;
void engine_cursor_close(struct engine_cursor *cursor);

/* Exact number of keys of a bucket (expired ones not yet removed included). */
uint64_t engine_count(struct engine *engine, uint16_t bucket);
/* Calls each() for up to `limit` keys whose expiry is at or before `until`. */
void engine_expired(struct engine *engine, int64_t until, uint32_t limit,
    void (*each)(void *ctx, uint16_t range, struct bytes key), void *ctx);

/* Seals now and calls done(ctx) (from engine_poll) when all applied so far is in the bottom store. */
void engine_checkpoint(struct engine *engine, void (*done)(void *ctx, enum err err), void *ctx);
/* Simulator and shutdown: does one step of the checkpoint in the caller's thread. False: nothing to do. */
bool engine_checkpoint_step(struct engine *engine);

struct engine_stats {
    struct wal_stats wal;
    struct kv_stats kv;
    lsn_t applied;
    lsn_t checkpointed;
    uint64_t memtable_bytes;
    uint64_t memtable_entries;
    uint64_t sealed_bytes;
    uint64_t sealed_entries;
    uint64_t memory_limit;
    uint64_t checkpoints;
    uint64_t checkpoint_puts;
    uint64_t checkpoint_ns; /* spent in the last whole checkpoint */
    uint64_t checkpoint_failures;
    bool checkpoint_running;
    uint64_t throttled; /* flushes that were delayed */
    uint64_t damaged; /* values that failed their checksum */
    uint64_t scrubbed; /* values checked by the scrub */
    uint64_t scrub_rounds;
    uint64_t expires; /* keys with an expiry (an estimate) */
};
void engine_stats(struct engine *engine, struct engine_stats *stats_out);
/* Applied index of a range: the LSN of the newest record applied to it. */
lsn_t engine_range_applied(const struct engine *engine, uint16_t range);

#endif
