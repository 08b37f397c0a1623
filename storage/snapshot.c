#define _GNU_SOURCE
#include "storage/snapshot.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/check.h"
#include "base/logger.h"
#include "storage/engine_meta.h"
#include "storage/range_chunk.h"

/* Sources of snapshots. Every chunk is read in a transaction of its own: a reader that stays long keeps LMDB
 * from reusing pages. So the chunks of a snapshot may be of different states, of later ones towards its end; what
 * was written meanwhile is in the log, and applying it again over any of these states gives the same.
 *
 * One thread makes chunks ahead, a few for each snapshot, taking turns. Chunks are in a ring: `made` counts what
 * the worker finished, `taken` what the owner has asked for; the last one taken stays in place until the next
 * is. */

enum { OPEN_MAX = 4, AHEAD = 4, RING = AHEAD + 1 };

struct chunk_slot {
    uint8_t *memory;
    struct bytes chunk;
};

struct snapshot {
    struct sources *sources;
    uint16_t range;
    struct kv_read *read;
    struct chunk_slot ring[RING];

    /* under the lock */
    uint64_t made;
    uint64_t taken;
    bool busy; /* the worker is at it */
    bool ended;
    enum err result; /* once ended */

    /* the worker's */
    uint16_t last_size;
    uint8_t last[KEY_SIZE_MAX_STORED]; /* last key given; none yet: size 0 */
    uint8_t *big; /* a value that goes in parts, copied: the store may have another one next time */
    struct value big_value;
    size_t big_offset;
    _Atomic uint64_t entries;
    _Atomic uint64_t bytes;
};

struct sources {
    struct streams_config config;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t thread;
    bool started;
    bool stop;
    struct snapshot *open[OPEN_MAX];
    unsigned turn;
};

/* ---- making chunks ---- */

static enum err usable(struct snapshot *snapshot, struct range_meta *meta_out)
{
    const struct kv_ops *ops = snapshot->sources->config.ops;
    char name[32];
    struct bytes bytes;
    snprintf(name, sizeof name, META_RANGE_FORMAT, snapshot->range);
    TRY(ops->meta_get(snapshot->read, name, &bytes));
    TRY(range_meta_decode(bytes, meta_out));
    return (meta_out->flags & RANGE_META_INSTALLING) != 0 ? ERR_CLOSED : OK;
}

static struct bytes last_key(const struct snapshot *snapshot)
{
    return bytes_of(snapshot->last, snapshot->last_size);
}

static void remember(struct snapshot *snapshot, struct bytes key)
{
    ASSERT(key.size <= sizeof snapshot->last);
    memcpy(snapshot->last, key.at, key.size);
    snapshot->last_size = (uint16_t)key.size;
}

static void make_part(struct snapshot *snapshot, struct range_chunk *chunk)
{
    snapshot->big_offset +=
        range_chunk_part(chunk, last_key(snapshot), &snapshot->big_value, snapshot->big_offset);
    if (snapshot->big_offset < snapshot->big_value.bytes.size) return;
    free(snapshot->big);
    snapshot->big = NULL;
}

static enum err begin_big(
    struct snapshot *snapshot, struct range_chunk *chunk, struct bytes key, struct value *value)
{
    snapshot->big = malloc(value->bytes.size);
    if (snapshot->big == NULL) return ERR_NOMEM;
    memcpy(snapshot->big, value->bytes.at, value->bytes.size);
    snapshot->big_value = *value;
    snapshot->big_value.bytes.at = snapshot->big;
    snapshot->big_offset = 0;
    remember(snapshot, key);
    atomic_fetch_add_explicit(&snapshot->entries, 1, memory_order_relaxed);
    make_part(snapshot, chunk);
    return OK;
}

/* ERR_NOT_FOUND: the range has no more. *kind_out says what the chunk became. */
static enum err fill_entries(
    struct snapshot *snapshot, struct range_chunk *chunk, uint8_t *kind_out)
{
    const struct kv_ops *ops = snapshot->sources->config.ops;
    void *cursor;
    TRY(ops->cursor_open(snapshot->read, snapshot->range, &cursor));
    struct bytes key,
        added = {0}; /* keys stay where they are as long as the snapshot of the store does */
    struct value value;
    struct bytes from = last_key(snapshot);
    enum err err = ops->cursor_seek(cursor, from, &key, &value);
    if ((err == OK || err == ERR_CORRUPT) && from.size > 0 && bytes_equal(key, from))
        err = ops->cursor_next(cursor, &key, &value);
    while (err == OK) {
        if (!range_chunk_add(chunk, key, &value)) {
            if (chunk->entries > 0) break;
            err = begin_big(snapshot, chunk, key, &value);
            *kind_out = RANGE_CHUNK_PART;
            break;
        }
        added = key;
        err = ops->cursor_next(cursor, &key, &value);
    }
    if (added.size > 0) remember(snapshot, added);
    ops->cursor_close(cursor);
    if (err == ERR_CORRUPT)
        log_error("a snapshot stopped at a damaged value", "range=%u", snapshot->range);
    return err == ERR_NOT_FOUND && chunk->entries > 0 ? OK : err;
}

static enum err make_chunk(struct snapshot *snapshot, struct chunk_slot *slot)
{
    const struct kv_ops *ops = snapshot->sources->config.ops;
    if (slot->memory == NULL) slot->memory = malloc(SNAPSHOT_CHUNK_MAX);
    if (slot->memory == NULL) return ERR_NOMEM;
    struct range_chunk chunk;
    range_chunk_begin(&chunk, slot->memory, SNAPSHOT_CHUNK_MAX);
    uint8_t kind = RANGE_CHUNK_ENTRIES;
    if (snapshot->big != NULL) {
        make_part(snapshot, &chunk);
        kind = RANGE_CHUNK_PART;
    } else {
        TRY(ops->read_renew(snapshot->read));
        struct range_meta meta;
        enum err err = usable(snapshot, &meta);
        if (err == OK) err = fill_entries(snapshot, &chunk, &kind);
        ops->read_reset(snapshot->read);
        if (err != OK) return err;
    }
    slot->chunk = range_chunk_end(&chunk, snapshot->range, kind);
    if (kind == RANGE_CHUNK_ENTRIES)
        atomic_fetch_add_explicit(&snapshot->entries, chunk.entries, memory_order_relaxed);
    atomic_fetch_add_explicit(&snapshot->bytes, slot->chunk.size, memory_order_relaxed);
    return OK;
}

/* lock held; NULL: nothing to do */
static struct snapshot *next_turn(struct sources *sources)
{
    for (unsigned i = 0; i < OPEN_MAX; i++) {
        struct snapshot *snapshot = sources->open[sources->turn++ % OPEN_MAX];
        if (snapshot == NULL || snapshot->ended) continue;
        if (snapshot->made - snapshot->taken < AHEAD) return snapshot;
    }
    return NULL;
}

/* lock held, let go of meanwhile; false: nothing to do */
static bool step(struct sources *sources)
{
    struct snapshot *snapshot = next_turn(sources);
    if (snapshot == NULL) return false;
    snapshot->busy = true;
    struct chunk_slot *slot = &snapshot->ring[snapshot->made % RING];
    pthread_mutex_unlock(&sources->lock);
    enum err err = make_chunk(snapshot, slot);
    pthread_mutex_lock(&sources->lock);
    snapshot->busy = false;
    if (err == OK) {
        snapshot->made++;
    } else {
        snapshot->ended = true;
        snapshot->result = err;
    }
    pthread_cond_broadcast(&sources->changed);
    return true;
}

bool sources_step(struct sources *sources)
{
    ASSERT(!sources->started);
    pthread_mutex_lock(&sources->lock);
    bool did = step(sources);
    pthread_mutex_unlock(&sources->lock);
    return did;
}

static void *sources_thread(void *argument)
{
    struct sources *sources = argument;
    (void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 10);
    pthread_mutex_lock(&sources->lock);
    while (!sources->stop) {
        if (!step(sources)) {
            pthread_cond_wait(&sources->changed, &sources->lock);
            continue;
        }
        pthread_mutex_unlock(&sources->lock);
        if (sources->config.wake != NULL) sources->config.wake(sources->config.wake_ctx);
        pthread_mutex_lock(&sources->lock);
    }
    pthread_mutex_unlock(&sources->lock);
    return NULL;
}

/* ---- the owner's calls ---- */

enum err sources_new(const struct streams_config *config, struct sources **sources_out)
{
    struct sources *sources = calloc(1, sizeof *sources);
    if (sources == NULL) return ERR_NOMEM;
    sources->config = *config;
    pthread_mutex_init(&sources->lock, NULL);
    pthread_cond_init(&sources->changed, NULL);
    *sources_out = sources;
    return OK;
}

void sources_free(struct sources *sources)
{
    if (sources == NULL) return;
    for (int i = 0; i < OPEN_MAX; i++)
        ASSERT(sources->open[i] == NULL);
    if (sources->started) {
        pthread_mutex_lock(&sources->lock);
        sources->stop = true;
        pthread_cond_broadcast(&sources->changed);
        pthread_mutex_unlock(&sources->lock);
        pthread_join(sources->thread, NULL);
    }
    pthread_cond_destroy(&sources->changed);
    pthread_mutex_destroy(&sources->lock);
    free(sources);
}

static enum err add(struct sources *sources, struct snapshot *snapshot)
{
    if (sources->config.background && !sources->started) {
        if (pthread_create(&sources->thread, NULL, sources_thread, sources) != 0) return ERR_NOMEM;
        sources->started = true;
    }
    enum err err = ERR_AGAIN;
    pthread_mutex_lock(&sources->lock);
    for (int i = 0; i < OPEN_MAX && err != OK; i++) {
        if (sources->open[i] != NULL) continue;
        sources->open[i] = snapshot;
        err = OK;
    }
    pthread_cond_broadcast(&sources->changed);
    pthread_mutex_unlock(&sources->lock);
    return err;
}

enum err sources_open(struct sources *sources, uint16_t range, struct range_meta *meta_out,
    struct snapshot **snapshot_out)
{
    const struct kv_ops *ops = sources->config.ops;
    struct snapshot *snapshot = calloc(1, sizeof *snapshot);
    if (snapshot == NULL) return ERR_NOMEM;
    snapshot->sources = sources;
    snapshot->range = range;
    struct range_meta meta;
    enum err err = ops->read_begin(sources->config.kv, &snapshot->read);
    if (err == OK) {
        err = usable(snapshot, &meta);
        ops->read_reset(snapshot->read);
        if (err == OK) err = add(sources, snapshot);
        if (err != OK) ops->read_end(snapshot->read);
    }
    if (err != OK) {
        free(snapshot);
        return err;
    }
    *meta_out = meta;
    *snapshot_out = snapshot;
    return OK;
}

enum err snapshot_next(struct snapshot *snapshot, struct bytes *chunk_out)
{
    struct sources *sources = snapshot->sources;
    enum err err = ERR_AGAIN;
    pthread_mutex_lock(&sources->lock);
    if (snapshot->made > snapshot->taken) {
        *chunk_out = snapshot->ring[snapshot->taken++ % RING].chunk;
        pthread_cond_broadcast(&sources->changed);
        err = OK;
    } else if (snapshot->ended) {
        err = snapshot->result;
    }
    pthread_mutex_unlock(&sources->lock);
    return err;
}

void snapshot_progress(const struct snapshot *snapshot, uint64_t *entries_out, uint64_t *bytes_out)
{
    *entries_out = atomic_load_explicit(&snapshot->entries, memory_order_relaxed);
    *bytes_out = atomic_load_explicit(&snapshot->bytes, memory_order_relaxed);
}

void snapshot_close(struct snapshot *snapshot)
{
    if (snapshot == NULL) return;
    struct sources *sources = snapshot->sources;
    pthread_mutex_lock(&sources->lock);
    snapshot->ended = true;
    while (snapshot->busy)
        pthread_cond_wait(&sources->changed, &sources->lock);
    for (int i = 0; i < OPEN_MAX; i++) {
        if (sources->open[i] == snapshot) sources->open[i] = NULL;
    }
    pthread_mutex_unlock(&sources->lock);
    sources->config.ops->read_end(snapshot->read);
    for (int i = 0; i < RING; i++)
        free(snapshot->ring[i].memory);
    free(snapshot->big);
    free(snapshot);
}
