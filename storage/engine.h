#ifndef STORAGE_ENGINE_H
#define STORAGE_ENGINE_H

#include "base/io.h"
#include "storage/effect.h"
#include "storage/kv.h"
#include "storage/memtable.h"
#include "storage/range_meta.h"
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
    /* The replicated node (all four, or none: then records of type WAL_RECORD_WRITE are replayed and applied in
     * order of LSN, as for an embedded store).
     * At open, once for every range that has it, before any record: what range_meta() gave. `settled` may be above
     * `index` because a checkpoint was cut short: then the data has parts of later entries. */
    enum err (*on_range)(void *ctx, uint16_t range, const struct range_meta *meta);
    /* At open, every record after the checkpoint, in order; the callee calls engine_apply_entry() for what it knows
     * to be committed. `engine` is not yet returned by engine_open() and has no log yet (engine_wal() is NULL).
     * A memtable may be sealed between two records, so range_meta() must be right then, too. */
    enum err (*on_replay)(void *ctx, struct engine *engine, const struct wal_record *record);
    /* When a memtable is sealed: what to keep beside the range's data. range_meta.index must be what was applied;
     * a range this node never had: all zero. Of a range under an install only hard_term and vote are looked at. */
    void (*range_meta)(void *ctx, uint16_t range, struct range_meta *meta_out);
    /* When a memtable is sealed, and to see whether that is due: every record up to the result is applied or void,
     * and durable. It may fall back: the engine keeps the highest. Not asked during replay. */
    lsn_t (*low_water)(void *ctx);
    /* Records after the result stay in the log although they are checkpointed (others need them); the engine
     * keeps at most half of log_bytes_max for that. NULL: none. */
    lsn_t (*keep_after)(void *ctx);
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
/* The replicated form: applies the effects (without the 8 bytes of time) of a range's entry `index`, which becomes the
 * version of every value it writes. In order of index within a range, each once. All effects must be of this
 * range (EFFECT_CLEAR_BUCKET clears in this range alone): else ERR_CORRUPT. */
enum err engine_apply_entry(
    struct engine *engine, uint16_t range, uint64_t index, struct bytes effects) MUST_CHECK;
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

/* Exact number of keys of a bucket (expired ones not yet removed included), in all ranges of this node but 0, or
 * in one. */
uint64_t engine_count(struct engine *engine, uint16_t bucket);
uint64_t engine_count_range(struct engine *engine, uint16_t range, uint16_t bucket);
/* Calls each() for up to `limit` keys whose expiry is at or before `until`. */
void engine_expired(struct engine *engine, int64_t until, uint32_t limit,
    void (*each)(void *ctx, uint16_t range, struct bytes key), void *ctx);

/* Seals as soon as it can and calls done(ctx) (from engine_poll, or at once) when all applied so far is in the bottom
 * store: in done() the store holds exactly what was applied when that seal was made. ERR_BUSY: too many wait. */
void engine_checkpoint(struct engine *engine, void (*done)(void *ctx, enum err err), void *ctx);
/* Whoever waits with this ctx does not any more. */
void engine_checkpoint_forget(struct engine *engine, const void *ctx);
/* Simulator and shutdown: does one step of the checkpoint in the caller's thread. False: nothing to do. */
bool engine_checkpoint_step(struct engine *engine);

/* Snapshots of one range: a stream of chunks, made and taken in by worker threads (in the caller's thread if
 * !config.background, from engine_poll()). The source reads the bottom store in short read transactions. The
 * data is an image of states at or after meta.index: exact once all entries up to what was applied at the source
 * when the stream ended are applied over it, because effects are absolute. Chunks are opaque (docs/formats/store.md),
 * checked by a CRC32C, at most SNAPSHOT_CHUNK_MAX bytes. */
enum { SNAPSHOT_CHUNK_MAX = 256 << 10 };
struct snapshot;
/* Owner's thread. *meta_out is the range's meta as of now; chunks are as of now or later. ERR_NOT_FOUND: nothing of the
 * range was ever checkpointed (seal first: engine_checkpoint()); ERR_CLOSED: it is INSTALLING itself; ERR_AGAIN: four
 * are open. All snapshots and installs are closed before engine_close(). */
enum err snapshot_open(struct engine *engine, uint16_t range, struct range_meta *meta_out,
    struct snapshot **snapshot_out) MUST_CHECK;
/* The next chunk, valid until the next call: OK, ERR_AGAIN (not yet: engine's wake() tells), ERR_NOT_FOUND (all was
 * given), or why it failed (ERR_CORRUPT: the source is damaged; ERR_CLOSED: the range was replaced meanwhile). */
enum err snapshot_next(struct snapshot *snapshot, struct bytes *chunk_out) MUST_CHECK;
void snapshot_progress(const struct snapshot *snapshot, uint64_t *entries_out, uint64_t *bytes_out);
void snapshot_close(struct snapshot *snapshot);

/* Replaces everything a range has by what chunks bring. Owner's thread. Precondition: no entry of the range is in a
 * memtable (engine_range_in_memory() is false: checkpoint first) and none is applied until it is done. From the first
 * change on, the stored meta says RANGE_META_INSTALLING, so a crash leaves nothing half done that could pass for whole.
 * Sorted entries are appended to an empty database: no log write, few syncs. */
struct install;
bool engine_range_in_memory(const struct engine *engine, uint16_t range);
/* done(ctx, result) comes from engine_poll() after install_finish() or on failure. */
enum err install_begin(struct engine *engine, uint16_t range, const struct range_meta *meta_while,
    void (*done)(void *ctx, enum err result), void *ctx, struct install **install_out) MUST_CHECK;
/* Copies the chunk. ERR_AGAIN: the queue is full (engine's wake() tells when it is not). ERR_CORRUPT: its checksum; it
 * may be sent again. ERR_INVALID: whole, but of another range or out of order: nothing more is taken then, and a
 * finish fails. Or what done() was told. */
enum err install_add(struct install *install, struct bytes chunk) MUST_CHECK;
/* No more chunks: writes `meta`, without RANGE_META_INSTALLING, in the last transaction. A newer term or vote that
 * config.range_meta() gave meanwhile is kept. */
void install_finish(struct install *install, const struct range_meta *meta);
/* Owner's thread; also after done, or from it. Without a finish the range stays INSTALLING until an install or
 * engine_range_remove() succeeds. */
void install_close(struct install *install);
/* Removes everything of a range (this node is no replica any more); meta is kept as given (votes must survive).
 * Same precondition as install_begin(). Blocks for some transactions. */
enum err engine_range_remove(
    struct engine *engine, uint16_t range, const struct range_meta *meta) MUST_CHECK;

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
/* Applied index of a range; of an embedded store, the LSN of the newest record applied to it. */
uint64_t engine_range_applied(const struct engine *engine, uint16_t range);

#endif
