#define _GNU_SOURCE
#include "cluster/node/store.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "base/logger.h"
#include "cluster/map/map.h"
#include "storage/folder.h"

/* One lock around an engine. Whoever puts appends under it, starts a log write if none is under way, and
 * sleeps. The log's thread, when a write is done, takes the lock, reaps (which applies the records and
 * sends off what came meanwhile) and wakes the sleepers of that batch.
 *
 * Wake-ups are what limits blocking threads, not the disk. Sleepers wait on one of two futex words,
 * by the parity of their batch, so that a finished batch does not wake those of the next one. */

enum { SLEEP_MS = 10, DEFAULT_RANGES = 64, BUCKET = 0 };
#define DEFAULT_MEMORY ((size_t)512 << 20)
#define DEFAULT_LOG_BYTES ((uint64_t)4 << 30)

struct store {
    pthread_mutex_t lock;
    struct engine *engine;
    struct folder folder;
    struct io io;
    uint32_t ranges;
    uint64_t open_batch; /* number of the batch that appends go to */
    uint64_t durable_batches;
    _Atomic uint64_t durable; /* LSN */
    _Atomic uint32_t words[2]; /* futexes, by parity of the batch */
    _Atomic uint32_t any; /* futex of store_wait() */
    _Atomic int failed; /* enum err */
    _Atomic bool open;
    bool flushed_since; /* on_durable ran in this poll */
    _Atomic uint32_t putters; /* threads inside a blocking write */
};

static void futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
    struct timespec timeout = {.tv_nsec = SLEEP_MS * 1000000};
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, &timeout, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *word)
{
    atomic_fetch_add(word, 1);
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

static void on_durable(void *ctx, lsn_t lsn)
{
    struct store *store = ctx;
    enum err err = engine_apply_up_to(store->engine, lsn);
    if (err != OK) {
        atomic_store(&store->failed, (int)err);
        return;
    }
    wal_release(engine_wal(store->engine), lsn);
    atomic_store(&store->durable, lsn);
    store->flushed_since = true;
}

/* lock held; returns the words to wake afterwards as a bit set */
static unsigned poll_locked(struct store *store)
{
    store->flushed_since = false;
    bool was_in_flight = wal_in_flight(engine_wal(store->engine));
    enum err err = engine_poll(store->engine);
    if (err != OK) atomic_store(&store->failed, (int)err);
    engine_read_done(store->engine);
    unsigned wake = 0;
    if (store->flushed_since) {
        wake = 1u << (store->durable_batches++ & 1);
        if (was_in_flight && wal_in_flight(engine_wal(store->engine))) store->open_batch++;
    }
    return err != OK ? 3u : wake;
}

static void wake_sleepers(struct store *store, unsigned words)
{
    if (words == 0) return;
    if ((words & 1) != 0) futex_wake_all(&store->words[0]);
    if ((words & 2) != 0) futex_wake_all(&store->words[1]);
    futex_wake_all(&store->any);
}

/* from the log's and the checkpoint's thread */
static void on_wake(void *ctx)
{
    struct store *store = ctx;
    if (!atomic_load(&store->open)) return;
    pthread_mutex_lock(&store->lock);
    unsigned words = poll_locked(store);
    pthread_mutex_unlock(&store->lock);
    wake_sleepers(store, words);
}

/* lock held. alone: nobody else wants the store, so the write is done in this thread, which saves two
 * hand-overs; durable on return if the log was idle */
static void flush_locked(struct store *store, bool alone)
{
    bool was_in_flight = wal_in_flight(engine_wal(store->engine));
    engine_flush(store->engine, alone);
    if (alone) {
        /* a write in this thread wakes nobody to reap it */
        enum err err = engine_poll(store->engine);
        if (err != OK) atomic_store(&store->failed, (int)err);
    }
    if (!was_in_flight && wal_in_flight(engine_wal(store->engine))) store->open_batch++;
}

static enum err open_engine(struct store *store, const struct store_config *config)
{
    struct engine_config engine_config = {
        .io = &store->io,
        .kv = &kv_lmdb,
        .kv_folder = store->folder.db,
        .ranges = store->folder.identity.ranges,
        .memory = config->memory == 0 ? DEFAULT_MEMORY : config->memory,
        .log_bytes_max = config->log_bytes_max == 0 ? DEFAULT_LOG_BYTES : config->log_bytes_max,
        .background = true,
        .create = true,
        .scrub = false,
        .ctx = store,
        .on_durable = on_durable,
        .wake_ctx = store,
        .wake = on_wake,
    };
    if (config->no_checkpoint) {
        engine_config.memory = SIZE_MAX / 4;
        engine_config.log_bytes_max = UINT64_MAX / 4;
    }
    memcpy(engine_config.store_id, store->folder.identity.node_id, 16);
    struct engine_report report;
    enum err err = engine_open(&engine_config, &report, &store->engine);
    if (err != OK) log_error("cannot open the store", "%s", report.detail);
    return err;
}

enum err store_open(const struct store_config *config, struct store **store_out)
{
    struct store *store = calloc(1, sizeof *store);
    if (store == NULL) return ERR_NOMEM;
    /* the lock is held for less than a hand-over takes: waiters try for a moment before they sleep */
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(&store->lock, &attributes);
    pthread_mutexattr_destroy(&attributes);
    struct folder_identity wanted = {
        .ranges = config->ranges == 0 ? DEFAULT_RANGES : config->ranges};
    char detail[512];
    enum err err =
        folder_open(config->folder, false, &wanted, &store->folder, detail, sizeof detail);
    if (err != OK) {
        log_error("cannot open the folder", "%s", detail);
        goto fail;
    }
    store->ranges = store->folder.identity.ranges;
    store->io.clock = clock_real();
    store->io.seed = store->io.clock.monotonic_ns(NULL) ^ (uint64_t)getpid() << 32;
    enum log_io mode;
    err = disk_open(store->folder.wal, config->log_io, &store->io.disk, &mode);
    if (err != OK) goto fail_folder;
    store->io.disk.set_wake(store->io.disk.ctx, on_wake, store);
    err = open_engine(store, config);
    if (err != OK) goto fail_disk;
    struct wal_stats stats;
    wal_stats(engine_wal(store->engine), &stats);
    atomic_store(&store->durable, stats.durable);
    atomic_store(&store->open, true);
    *store_out = store;
    return OK;

fail_disk:
    disk_close(&store->io.disk);
fail_folder:
    folder_close(&store->folder);
fail:
    pthread_mutex_destroy(&store->lock);
    free(store);
    return err;
}

void store_close(struct store *store)
{
    pthread_mutex_lock(&store->lock);
    engine_flush(store->engine, false);
    pthread_mutex_unlock(&store->lock);
    while (atomic_load(&store->failed) == OK) {
        pthread_mutex_lock(&store->lock);
        unsigned words = poll_locked(store);
        bool busy = wal_in_flight(engine_wal(store->engine));
        pthread_mutex_unlock(&store->lock);
        wake_sleepers(store, words);
        if (!busy) break;
        futex_wait(&store->any, atomic_load(&store->any));
    }
    atomic_store(&store->open, false);
    engine_close(store->engine, atomic_load(&store->failed) == OK);
    disk_close(&store->io.disk);
    folder_close(&store->folder);
    pthread_mutex_destroy(&store->lock);
    free(store);
}

/* lock held; appends one effect */
static enum err append_locked(
    struct store *store, uint8_t kind, struct bytes key, struct bytes value, lsn_t *lsn_out)
{
    if (atomic_load(&store->failed) != OK) return ERR_POISONED;
    size_t size = 8 + effect_size(key.size, value.size);
    TRY(engine_admit(store->engine, size));
    struct effect effect = {
        .kind = kind, .range = map_range(key, store->ranges), .bucket = BUCKET, .key = key};
    uint8_t *at =
        wal_append(engine_wal(store->engine), WAL_RECORD_WRITE, effect.range, size, lsn_out);
    if (at == NULL) return ERR_NOMEM;
    store_u64(at, (uint64_t)store->io.clock.wall_ms(store->io.clock.ctx));
    uint8_t *target = effect_encode(at + 8, &effect, value.size);
    if (value.size > 0) memcpy(target, value.at, value.size);
    return OK;
}

static enum err write_and_wait(
    struct store *store, uint8_t kind, struct bytes key, struct bytes value)
{
    if (key.size > KEY_SIZE_MAX || value.size > VALUE_SIZE_MAX) return ERR_TOO_LARGE;
    lsn_t lsn;
    uint64_t batch;
    for (;;) {
        uint32_t seen = atomic_load(&store->any);
        pthread_mutex_lock(&store->lock);
        enum err err = append_locked(store, kind, key, value, &lsn);
        batch = store->open_batch;
        if (err == OK) flush_locked(store, atomic_load(&store->putters) == 1);
        pthread_mutex_unlock(&store->lock);
        if (err == OK) break;
        if (err != ERR_AGAIN) return err;
        futex_wait(&store->any, seen);
    }
    _Atomic uint32_t *word = &store->words[batch & 1];
    for (;;) {
        uint32_t seen = atomic_load(word);
        if (atomic_load(&store->durable) >= lsn) return OK;
        if (atomic_load(&store->failed) != OK) return ERR_POISONED;
        futex_wait(word, seen);
    }
}

static enum err write_blocking(
    struct store *store, uint8_t kind, struct bytes key, struct bytes value)
{
    atomic_fetch_add(&store->putters, 1);
    enum err err = write_and_wait(store, kind, key, value);
    atomic_fetch_sub(&store->putters, 1);
    return err;
}

enum err store_put(struct store *store, struct bytes key, struct bytes value)
{
    return write_blocking(store, EFFECT_PUT, key, value);
}

enum err store_delete(struct store *store, struct bytes key)
{
    return write_blocking(store, EFFECT_DELETE, key, bytes_of(NULL, 0));
}

enum err store_submit(struct store *store, struct bytes key, struct bytes value, lsn_t *lsn_out)
{
    if (key.size > KEY_SIZE_MAX || value.size > VALUE_SIZE_MAX) return ERR_TOO_LARGE;
    pthread_mutex_lock(&store->lock);
    enum err err = append_locked(store, EFFECT_PUT, key, value, lsn_out);
    pthread_mutex_unlock(&store->lock);
    return err;
}

void store_flush(struct store *store)
{
    pthread_mutex_lock(&store->lock);
    flush_locked(store, false);
    pthread_mutex_unlock(&store->lock);
}

enum err store_commit(struct store *store, lsn_t lsn)
{
    pthread_mutex_lock(&store->lock);
    flush_locked(store, true);
    pthread_mutex_unlock(&store->lock);
    enum err err = OK;
    while (err == OK && store_durable(store) < lsn)
        store_wait(store, lsn - 1, &err);
    return err;
}

lsn_t store_durable(struct store *store)
{
    return atomic_load(&store->durable);
}

lsn_t store_wait(struct store *store, lsn_t after, enum err *err_out)
{
    for (;;) {
        uint32_t seen = atomic_load(&store->any);
        lsn_t durable = atomic_load(&store->durable);
        *err_out = atomic_load(&store->failed) == OK ? OK : ERR_POISONED;
        if (durable > after || *err_out != OK) return durable;
        futex_wait(&store->any, seen);
    }
}

enum err store_get(
    struct store *store, struct bytes key, void *at, size_t capacity, size_t *size_out)
{
    if (key.size > KEY_SIZE_MAX) return ERR_NOT_FOUND;
    uint8_t buffer[KEY_SIZE_MAX_STORED];
    struct value value;
    uint16_t range = map_range(key, store->ranges);
    pthread_mutex_lock(&store->lock);
    enum err err = engine_get(store->engine, range, effect_stored_key(buffer, BUCKET, key), &value);
    if (err == OK) {
        size_t size = value.bytes.size < capacity ? value.bytes.size : capacity;
        if (size > 0) memcpy(at, value.bytes.at, size);
        *size_out = value.bytes.size;
    }
    /* the snapshot stays for the next reader; every wake of the log or the checkpoint lets go of it */
    pthread_mutex_unlock(&store->lock);
    return err;
}

struct scan {
    bool (*each)(void *ctx, struct bytes key, struct bytes value);
    void *ctx;
    bool stopped;
};

static bool scan_entry(void *ctx, struct bytes key, const struct value *value)
{
    struct scan *scan = ctx;
    struct bytes user_key = bytes_of(key.at + 2, key.size - 2);
    scan->stopped = !scan->each(scan->ctx, user_key, value->bytes);
    return !scan->stopped;
}

enum err store_scan(
    struct store *store, bool (*each)(void *ctx, struct bytes key, struct bytes value), void *ctx)
{
    struct scan scan = {.each = each, .ctx = ctx};
    enum err result = OK;
    pthread_mutex_lock(&store->lock);
    for (uint32_t range = 1; range <= store->ranges && !scan.stopped; range++) {
        enum err err = engine_scan(
            store->engine, (uint16_t)range, bytes_of(NULL, 0), false, scan_entry, &scan);
        if (err != OK) result = err;
        if (err != OK && err != ERR_CORRUPT) break;
    }
    engine_read_done(store->engine);
    pthread_mutex_unlock(&store->lock);
    return result;
}

struct checkpoint_wait {
    struct store *store;
    _Atomic bool done;
    enum err err;
};

static void on_checkpoint(void *ctx, enum err err)
{
    struct checkpoint_wait *wait = ctx;
    wait->err = err;
    atomic_store(&wait->done, true);
}

enum err store_checkpoint(struct store *store)
{
    struct checkpoint_wait wait = {.store = store};
    pthread_mutex_lock(&store->lock);
    engine_checkpoint(store->engine, on_checkpoint, &wait);
    pthread_mutex_unlock(&store->lock);
    while (!atomic_load(&wait.done)) {
        on_wake(store);
        futex_wait(&store->any, atomic_load(&store->any));
    }
    return wait.err;
}

void store_stats(struct store *store, struct engine_stats *stats_out)
{
    pthread_mutex_lock(&store->lock);
    engine_stats(store->engine, stats_out);
    pthread_mutex_unlock(&store->lock);
}
