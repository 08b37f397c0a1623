#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/check.h"
#include "base/logger.h"
#include "storage/range_chunk.h"
#include "storage/snapshot.h"

/* Sinks of snapshots: the range is emptied, then sorted entries are appended in transactions of some megabytes,
 * which leaves full pages and writes each once. The first transaction marks the range as INSTALLING, the last
 * one takes the mark away together with its last entries; so a crash in between leaves something that
 * says itself what it is.
 *
 * The owner's thread checks every chunk when it comes (checksum, order of keys) and puts parts of large values
 * together; the worker takes what waits, and holds the store's write transaction only while it has
 * entries at hand: the checkpoint writes in between. */

enum {
    BATCH_BYTES = 8 << 20, /* worth a transaction */
    QUEUE_BYTES = 16 << 20,
    RESET_KEYS = 50000,
};

enum phase { PHASE_RESET, PHASE_LOAD, PHASE_ENDED };

struct item {
    struct item *next;
    size_t size;
    bool big; /* one entry, whole: key and value are set */
    struct bytes key;
    struct value value;
    uint8_t at[];
};

struct install {
    struct sinks *sinks;
    struct install *next;
    uint16_t range;
    void (*done)(void *ctx, enum err result);
    void *ctx;

    /* the owner's */
    enum err refused; /* a chunk was wrong: nothing more is taken */
    uint16_t last_size;
    uint8_t last[KEY_SIZE_MAX_STORED];
    struct item *part; /* a large value under construction */
    size_t part_filled;
    bool reported;

    /* under the lock */
    enum phase phase;
    struct item *first, *newest;
    size_t queued;
    bool finishing;
    bool busy; /* the worker is at it */
    enum err result;
    struct range_meta meta; /* the last one, once finishing */
};

struct sinks {
    struct streams_config config;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t thread;
    bool started;
    bool stop;
    struct install *open;
};

/* ---- transactions ---- */

/* A transaction whose meta is noted in the table. */
static enum err in_transaction(const struct streams_config *config,
    enum err (*fill)(void *ctx, struct kv_write *write), void (*committed)(void *ctx), void *ctx)
{
    struct kv_write *write;
    enum err err;
    range_table_lock(config->table);
    do {
        err = config->ops->write_begin(config->kv, &write);
        if (err != OK) break;
        err = fill(ctx, write);
        if (err == OK) {
            err = config->ops->commit(write);
        } else {
            config->ops->abort(write);
        }
        range_table_outcome(config->table, err == OK);
    } while (err == ERR_AGAIN); /* the map has grown */
    if (err == OK && committed != NULL) committed(ctx);
    range_table_unlock(config->table);
    return err;
}

struct reset {
    const struct streams_config *config;
    uint16_t range;
    const struct range_meta *meta; /* NULL: as wanted */
    bool done;
};

static enum err fill_reset(void *ctx, struct kv_write *write)
{
    struct reset *reset = ctx;
    const struct kv_ops *ops = reset->config->ops;
    struct range_table *table = reset->config->table;
    TRY(ops->range_reset(write, reset->range, RESET_KEYS, &reset->done));
    if (PLANTED_BUG(45)) return OK;
    struct range_meta meta = range_table_wanted(table, reset->range);
    /* until it is empty the range is neither what it was nor what it shall be */
    if (reset->meta != NULL && reset->done) {
        meta = *reset->meta;
    } else {
        meta.flags |= RANGE_META_INSTALLING;
    }
    return range_table_write_as(table, ops, write, reset->range, &meta);
}

static enum err reset_step(
    const struct streams_config *config, uint16_t range, const struct range_meta *meta, bool *done)
{
    struct reset reset = {.config = config, .range = range, .meta = meta};
    TRY(in_transaction(config, fill_reset, NULL, &reset));
    *done = reset.done;
    return OK;
}

enum err sinks_remove(
    const struct streams_config *config, uint16_t range, const struct range_meta *meta)
{
    bool done = false;
    while (!done)
        TRY(reset_step(config, range, meta, &done));
    return OK;
}

struct load {
    struct install *install;
    const struct item *items;
    bool last;
    struct range_meta meta; /* as it is written, if last */
};

static enum err put_item(struct install *install, struct kv_write *write, const struct item *item)
{
    const struct kv_ops *ops = install->sinks->config.ops;
    if (item->big) return ops->put(write, install->range, item->key, &item->value);
    struct range_chunk_front front;
    struct bytes rest, key;
    struct value value;
    TRY(range_chunk_open(bytes_of(item->at, item->size), &front, &rest));
    enum err err;
    while ((err = range_chunk_next(&rest, &key, &value)) == OK)
        TRY(ops->put(write, install->range, key, &value));
    return err == ERR_NOT_FOUND ? OK : err;
}

static enum err fill_load(void *ctx, struct kv_write *write)
{
    struct load *load = ctx;
    struct install *install = load->install;
    const struct streams_config *config = &install->sinks->config;
    for (const struct item *item = load->items; item != NULL; item = item->next)
        TRY(put_item(install, write, item));
    if (!load->last) return OK;
    load->meta = install->meta;
    /* the group may have voted since the owner said what to write */
    struct range_meta wanted = range_table_wanted(config->table, install->range);
    range_meta_merge_hard(&load->meta, &wanted);
    load->meta.flags &= (uint16_t)~RANGE_META_INSTALLING;
    if (load->meta.settled <= load->meta.index) load->meta.settled = 0;
    return range_table_write_as(config->table, config->ops, write, install->range, &load->meta);
}

static void load_committed(void *ctx)
{
    struct load *load = ctx;
    struct install *install = load->install;
    /* what a running checkpoint still writes of the range */
    if (load->last) range_table_want(install->sinks->config.table, install->range, &load->meta);
}

static void items_free(struct item *item)
{
    while (item != NULL) {
        struct item *next = item->next;
        free(item);
        item = next;
    }
}

/* ---- the worker ---- */

static bool ready(const struct install *install)
{
    switch (install->phase) {
    case PHASE_RESET:
        return true;
    case PHASE_LOAD:
        return install->finishing || install->queued >= BATCH_BYTES;
    case PHASE_ENDED:
        return false;
    }
    return false;
}

/* lock held; round robin: who had a turn goes to the end of the list */
static struct install *next_turn(struct sinks *sinks)
{
    struct install **link = &sinks->open;
    while (*link != NULL && !ready(*link))
        link = &(*link)->next;
    struct install *install = *link;
    if (install == NULL) return NULL;
    *link = install->next;
    install->next = NULL;
    while (*link != NULL)
        link = &(*link)->next;
    *link = install;
    return install;
}

static void end(struct install *install, enum err result)
{
    install->phase = PHASE_ENDED;
    install->result = result;
    if (result != OK)
        log_error("a snapshot cannot be installed", "range=%u error=%s", install->range,
            err_name(result));
}

/* lock held, let go of meanwhile */
static void step_reset(struct sinks *sinks, struct install *install)
{
    bool done = false;
    pthread_mutex_unlock(&sinks->lock);
    enum err err = reset_step(&sinks->config, install->range, NULL, &done);
    pthread_mutex_lock(&sinks->lock);
    if (err != OK) {
        end(install, err);
    } else if (done) {
        install->phase = PHASE_LOAD;
    }
}

static void step_load(struct sinks *sinks, struct install *install)
{
    struct item *items = install->first;
    struct load load = {.install = install, .items = items, .last = install->finishing};
    install->first = install->newest = NULL;
    pthread_mutex_unlock(&sinks->lock);
    enum err err = in_transaction(&sinks->config, fill_load, load_committed, &load);
    size_t size = 0;
    for (const struct item *item = items; item != NULL; item = item->next)
        size += item->size;
    items_free(items);
    pthread_mutex_lock(&sinks->lock);
    ASSERT(install->queued >= size);
    install->queued -= size;
    if (load.last && err == OK) install->meta = load.meta;
    if (err != OK || load.last) end(install, err);
}

/* lock held; false: nothing to do */
static bool step(struct sinks *sinks)
{
    struct install *install = next_turn(sinks);
    if (install == NULL) return false;
    install->busy = true;
    if (install->phase == PHASE_RESET) {
        step_reset(sinks, install);
    } else {
        step_load(sinks, install);
    }
    install->busy = false;
    pthread_cond_broadcast(&sinks->changed);
    return true;
}

bool sinks_step(struct sinks *sinks)
{
    ASSERT(!sinks->started);
    pthread_mutex_lock(&sinks->lock);
    bool did = step(sinks);
    pthread_mutex_unlock(&sinks->lock);
    return did;
}

static void *sinks_thread(void *argument)
{
    struct sinks *sinks = argument;
    (void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 10);
    pthread_mutex_lock(&sinks->lock);
    while (!sinks->stop) {
        if (!step(sinks)) {
            pthread_cond_wait(&sinks->changed, &sinks->lock);
            continue;
        }
        pthread_mutex_unlock(&sinks->lock);
        if (sinks->config.wake != NULL) sinks->config.wake(sinks->config.wake_ctx);
        pthread_mutex_lock(&sinks->lock);
    }
    pthread_mutex_unlock(&sinks->lock);
    return NULL;
}

/* ---- the owner's calls ---- */

enum err sinks_new(const struct streams_config *config, struct sinks **sinks_out)
{
    struct sinks *sinks = calloc(1, sizeof *sinks);
    if (sinks == NULL) return ERR_NOMEM;
    sinks->config = *config;
    pthread_mutex_init(&sinks->lock, NULL);
    pthread_cond_init(&sinks->changed, NULL);
    *sinks_out = sinks;
    return OK;
}

void sinks_free(struct sinks *sinks)
{
    if (sinks == NULL) return;
    ASSERT(sinks->open == NULL);
    if (sinks->started) {
        pthread_mutex_lock(&sinks->lock);
        sinks->stop = true;
        pthread_cond_broadcast(&sinks->changed);
        pthread_mutex_unlock(&sinks->lock);
        pthread_join(sinks->thread, NULL);
    }
    pthread_cond_destroy(&sinks->changed);
    pthread_mutex_destroy(&sinks->lock);
    free(sinks);
}

enum err sinks_begin(struct sinks *sinks, uint16_t range, const struct range_meta *meta_while,
    void (*done)(void *ctx, enum err result), void *ctx, struct install **install_out)
{
    if (sinks->config.background && !sinks->started) {
        if (pthread_create(&sinks->thread, NULL, sinks_thread, sinks) != 0) return ERR_NOMEM;
        sinks->started = true;
    }
    struct install *install = calloc(1, sizeof *install);
    if (install == NULL) return ERR_NOMEM;
    install->sinks = sinks;
    install->range = range;
    install->done = done;
    install->ctx = ctx;
    struct range_meta meta = *meta_while;
    meta.flags |= RANGE_META_INSTALLING;
    if (PLANTED_BUG(45)) meta.flags = 0;
    range_table_want(sinks->config.table, range, &meta);
    pthread_mutex_lock(&sinks->lock);
    for (const struct install *other = sinks->open; other != NULL; other = other->next)
        ASSERT(other->range != range);
    install->next = sinks->open;
    sinks->open = install;
    pthread_cond_broadcast(&sinks->changed);
    pthread_mutex_unlock(&sinks->lock);
    *install_out = install;
    return OK;
}

static enum err follows(struct install *install, struct bytes key)
{
    if (bytes_compare(key, bytes_of(install->last, install->last_size)) <= 0) return ERR_INVALID;
    memcpy(install->last, key.at, key.size);
    install->last_size = (uint16_t)key.size;
    return OK;
}

static enum err check_entries(struct install *install, struct bytes entries, uint32_t count)
{
    struct bytes key, previous = bytes_of(install->last, install->last_size);
    struct value value;
    enum err err;
    while ((err = range_chunk_next(&entries, &key, &value)) == OK) {
        if (bytes_compare(key, previous) <= 0) return ERR_INVALID;
        previous = key;
        count--;
    }
    if (err != ERR_NOT_FOUND || count != 0) return ERR_INVALID;
    return follows(install, previous);
}

static struct item *item_new(size_t size)
{
    struct item *item = malloc(sizeof *item + size);
    if (item != NULL) *item = (struct item){.size = size};
    return item;
}

/* The first part of a value: an item with room for all of it. */
static enum err part_begin(
    struct install *install, struct bytes key, const struct value *value, size_t whole)
{
    TRY(follows(install, key));
    struct item *item = item_new(key.size + whole);
    if (item == NULL) return ERR_NOMEM;
    item->big = true;
    memcpy(item->at, key.at, key.size);
    item->key = bytes_of(item->at, key.size);
    item->value = *value;
    item->value.bytes = bytes_of(item->at + key.size, whole);
    install->part = item;
    install->part_filled = 0;
    return OK;
}

/* *item_out: the whole value, if this was its last part */
static enum err part_add(struct install *install, struct bytes entries, struct item **item_out)
{
    struct bytes key;
    struct value value;
    size_t offset, whole;
    if (range_chunk_part_get(entries, &key, &value, &offset, &whole) != OK) return ERR_INVALID;
    if (install->part == NULL) {
        if (offset != 0) return ERR_INVALID;
        TRY(part_begin(install, key, &value, whole));
    }
    struct item *part = install->part;
    bool same = bytes_equal(key, part->key) && whole == part->value.bytes.size &&
        value.version == part->value.version;
    if (!same || offset != install->part_filled) return ERR_INVALID;
    memcpy(part->at + part->key.size + offset, value.bytes.at, value.bytes.size);
    install->part_filled += value.bytes.size;
    if (install->part_filled < whole) return OK;
    *item_out = part;
    install->part = NULL;
    return OK;
}

/* *item_out: what to queue, NULL while a large value is incomplete. ERR_CORRUPT, ERR_NOMEM: nothing has changed. */
static enum err take_chunk(struct install *install, struct bytes chunk, struct item **item_out)
{
    struct range_chunk_front front;
    struct bytes entries;
    TRY(range_chunk_open(chunk, &front, &entries));
    if (front.range != install->range) return ERR_INVALID;
    if (front.kind == RANGE_CHUNK_PART) return part_add(install, entries, item_out);
    if (install->part != NULL) return ERR_INVALID;
    struct item *item = item_new(chunk.size);
    if (item == NULL) return ERR_NOMEM;
    enum err err = check_entries(install, entries, front.entries);
    if (err != OK) {
        free(item);
        return err;
    }
    memcpy(item->at, chunk.at, chunk.size);
    *item_out = item;
    return OK;
}

enum err install_add(struct install *install, struct bytes chunk)
{
    struct sinks *sinks = install->sinks;
    ASSERT(!install->finishing);
    if (install->refused != OK) return install->refused;
    pthread_mutex_lock(&sinks->lock);
    bool full = install->queued >= QUEUE_BYTES;
    bool ended = install->phase == PHASE_ENDED;
    enum err result = install->result;
    pthread_mutex_unlock(&sinks->lock);
    if (ended) return result;
    if (full) return ERR_AGAIN;
    struct item *item = NULL;
    enum err err = take_chunk(install, chunk, &item);
    if (err == ERR_INVALID) install->refused = err;
    if (err != OK) return err;
    if (item == NULL) return OK;
    pthread_mutex_lock(&sinks->lock);
    if (install->newest != NULL) {
        install->newest->next = item;
    } else {
        install->first = item;
    }
    install->newest = item;
    install->queued += item->size;
    pthread_cond_broadcast(&sinks->changed);
    pthread_mutex_unlock(&sinks->lock);
    return OK;
}

void install_finish(struct install *install, const struct range_meta *meta)
{
    struct sinks *sinks = install->sinks;
    ASSERT(!install->finishing);
    enum err refused = install->refused;
    if (refused == OK && install->part != NULL) refused = ERR_INVALID;
    pthread_mutex_lock(&sinks->lock);
    if (refused == OK) {
        install->meta = *meta;
        install->finishing = true;
    } else {
        /* what was wrong stays wrong: nothing of it may be taken for whole */
        while (install->busy)
            pthread_cond_wait(&sinks->changed, &sinks->lock);
        if (install->phase != PHASE_ENDED) end(install, refused);
    }
    pthread_cond_broadcast(&sinks->changed);
    pthread_mutex_unlock(&sinks->lock);
}

void install_close(struct install *install)
{
    if (install == NULL) return;
    struct sinks *sinks = install->sinks;
    pthread_mutex_lock(&sinks->lock);
    while (install->busy)
        pthread_cond_wait(&sinks->changed, &sinks->lock);
    struct install **link = &sinks->open;
    while (*link != install)
        link = &(*link)->next;
    *link = install->next;
    pthread_mutex_unlock(&sinks->lock);
    items_free(install->first);
    free(install->part);
    free(install);
}

void sinks_collect(struct sinks *sinks,
    void (*ended)(void *ctx, uint16_t range, enum err result, const struct range_meta *meta),
    void *ctx)
{
    for (;;) {
        pthread_mutex_lock(&sinks->lock);
        struct install *install = sinks->open;
        while (install != NULL &&
            (install->phase != PHASE_ENDED || install->reported || install->busy))
            install = install->next;
        pthread_mutex_unlock(&sinks->lock);
        if (install == NULL) return;
        install->reported = true;
        ended(ctx, install->range, install->result, &install->meta);
        /* may close it */
        install->done(install->ctx, install->result);
    }
}
