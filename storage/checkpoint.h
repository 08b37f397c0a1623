#ifndef STORAGE_CHECKPOINT_H
#define STORAGE_CHECKPOINT_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/io.h"
#include "storage/effect.h"
#include "storage/kv.h"
#include "storage/memtable.h"
#include "storage/range_table.h"
#include "wal/wal.h"

/* Brings one sealed memtable into the bottom store, and scrubs the store when it has nothing to do.
 *
 * The work is a sequence of steps, each one fully synced transaction of at most `chunk_puts` entries
 * that are neighbours in key order: the cost of LMDB is pages, so a big sorted batch in small
 * contiguous transactions is fastest, and keeps the file small and the log's disk free in between.
 * A range's meta is written in the transaction that completes the range; in the last one those of ranges
 * without entries, and the store's applied LSN. A step that fails is repeated; nothing is lost meanwhile, since
 * log and memtable hold it all.
 *
 * A step is either done by the checkpoint's own thread or by whoever calls checkpoint_step(). */

enum checkpoint_state { CHECKPOINT_IDLE, CHECKPOINT_RUNNING, CHECKPOINT_DONE };

struct checkpoint_config {
    const struct kv_ops *ops;
    struct kv *kv;
    const struct clock *clock;
    struct range_table *table; /* NULL: an embedded store, whose ranges have an LSN for a meta */
    uint32_t ranges; /* highest range id + 1 */
    uint32_t chunk_puts;
    bool background;
    bool scrub;
    void *wake_ctx;
    void (*wake)(void *ctx); /* from the thread, after a step; may be NULL */
};

/* a bucket of a range that loses what it has before the memtable's entries come */
struct checkpoint_clear {
    uint16_t range;
    uint16_t bucket;
};

struct checkpoint_job {
    const struct memtable *memtable; /* may be empty: then the metas are what moves */
    lsn_t lsn; /* everything up to here is in memtable or store */
    lsn_t promised;
    uint64_t segment;
};

struct checkpoint {
    struct checkpoint_config config;
    pthread_t thread;
    bool thread_started;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stop;
    _Atomic int state;
    struct checkpoint_job job;

    /* where the job is; written by the worker, under `lock` */
    uint32_t range; /* entries of lower ranges are in the store */
    uint16_t key_size; /* and those of `range` up to this key */
    uint8_t key[KEY_SIZE_MAX_STORED];
    struct checkpoint_clear *cleared;
    uint32_t cleared_count, cleared_done;

    _Atomic uint64_t merge_sequence; /* odd while a commit may become visible */
    _Atomic uint64_t merged; /* entries done */
    _Atomic uint64_t total;
    _Atomic uint32_t pause_us;
    _Atomic uint64_t failures;
    _Atomic bool failing; /* the last step failed */
    _Atomic uint64_t puts;
    _Atomic uint64_t checkpoints;
    _Atomic uint64_t last_ns;
    _Atomic uint64_t damaged;
    _Atomic uint64_t scrubbed;
    _Atomic uint64_t scrub_rounds;
    uint64_t started_ns;
    /* scrub position */
    uint32_t scrub_range;
    uint16_t scrub_key_size;
    uint8_t scrub_key[KEY_SIZE_MAX_STORED];
};

enum err checkpoint_init(
    struct checkpoint *checkpoint, const struct checkpoint_config *config) MUST_CHECK;
/* Stops the thread after its current step. */
void checkpoint_deinit(struct checkpoint *checkpoint);
/* State must be IDLE. The memtable must stay until DONE was seen and checkpoint_collect() called. */
void checkpoint_start(struct checkpoint *checkpoint, const struct checkpoint_job *job);
/* True once per finished job; the state is IDLE again. */
bool checkpoint_collect(struct checkpoint *checkpoint);
/* One step in the caller's thread (only without a thread of its own). OK: progress was made or nothing
 * to do; else why the step failed (it will be repeated by the next call). */
enum err checkpoint_step(struct checkpoint *checkpoint);
/* Blocks until the running job is done (or has failed `attempts` times in a row: its error). */
enum err checkpoint_wait(struct checkpoint *checkpoint, uint32_t attempts) MUST_CHECK;
/* Share of the running job that is done, 0..1; 1 when idle. */
double checkpoint_progress(const struct checkpoint *checkpoint);

/* For counting: a consistent pair of a store snapshot and the position that is in it. `renew` takes the
 * snapshot. */
void checkpoint_position(struct checkpoint *checkpoint, void (*renew)(void *ctx), void *ctx,
    uint32_t *range_out, uint8_t *key_out, uint16_t *key_size_out);

#endif
