#define _GNU_SOURCE
#include "storage/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "base/logger.h"
#include "storage/engine_meta.h"

enum {
    CLEARS_PER_STEP = 64,
    SCRUB_ENTRIES = 2000,
    SCRUB_PERIOD_MS = 100,
    RETRY_MS = 500,
};

static void *checkpoint_thread(void *argument);

enum err checkpoint_init(struct checkpoint *checkpoint, const struct checkpoint_config *config)
{
    *checkpoint = (struct checkpoint){.config = *config};
    ASSERT(config->chunk_puts > 0);
    pthread_mutex_init(&checkpoint->lock, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&checkpoint->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    if (config->background) {
        if (pthread_create(&checkpoint->thread, NULL, checkpoint_thread, checkpoint) != 0) {
            pthread_cond_destroy(&checkpoint->changed);
            pthread_mutex_destroy(&checkpoint->lock);
            return ERR_NOMEM;
        }
        checkpoint->thread_started = true;
    }
    return OK;
}

void checkpoint_deinit(struct checkpoint *checkpoint)
{
    if (checkpoint->thread_started) {
        pthread_mutex_lock(&checkpoint->lock);
        checkpoint->stop = true;
        pthread_cond_broadcast(&checkpoint->changed);
        pthread_mutex_unlock(&checkpoint->lock);
        pthread_join(checkpoint->thread, NULL);
        checkpoint->thread_started = false;
    }
    free(checkpoint->cleared);
    checkpoint->cleared = NULL;
    pthread_cond_destroy(&checkpoint->changed);
    pthread_mutex_destroy(&checkpoint->lock);
}

static void note_cleared(void *ctx, uint16_t range, uint16_t bucket)
{
    struct checkpoint *checkpoint = ctx;
    uint32_t count = checkpoint->cleared_count;
    if ((count & (count - 1)) == 0) {
        size_t capacity = count == 0 ? 1 : (size_t)count * 2;
        struct checkpoint_clear *cleared =
            realloc(checkpoint->cleared, capacity * sizeof *checkpoint->cleared);
        /* a bucket that is not cleared would show removed keys again: as fatal as a lost write */
        ASSERT(cleared != NULL);
        checkpoint->cleared = cleared;
    }
    checkpoint->cleared[checkpoint->cleared_count++] =
        (struct checkpoint_clear){.range = range, .bucket = bucket};
}

void checkpoint_start(struct checkpoint *checkpoint, const struct checkpoint_job *job)
{
    pthread_mutex_lock(&checkpoint->lock);
    ASSERT(atomic_load(&checkpoint->state) == CHECKPOINT_IDLE);
    checkpoint->job = *job;
    checkpoint->range = 0;
    checkpoint->key_size = 0;
    checkpoint->cleared_count = checkpoint->cleared_done = 0;
    memtable_each_cleared(job->memtable, note_cleared, checkpoint);
    atomic_store(&checkpoint->merged, 0);
    atomic_store(&checkpoint->total, memtable_count(job->memtable));
    checkpoint->started_ns = checkpoint->config.clock->monotonic_ns(checkpoint->config.clock->ctx);
    atomic_store(&checkpoint->state, CHECKPOINT_RUNNING);
    pthread_cond_broadcast(&checkpoint->changed);
    pthread_mutex_unlock(&checkpoint->lock);
}

bool checkpoint_collect(struct checkpoint *checkpoint)
{
    int expected = CHECKPOINT_DONE;
    return atomic_compare_exchange_strong(&checkpoint->state, &expected, CHECKPOINT_IDLE);
}

double checkpoint_progress(const struct checkpoint *checkpoint)
{
    if (atomic_load(&checkpoint->state) != CHECKPOINT_RUNNING) return 1.0;
    uint64_t total = atomic_load(&checkpoint->total);
    return total == 0 ? 0.0 : (double)atomic_load(&checkpoint->merged) / (double)total;
}

static enum err put_number(
    const struct kv_ops *ops, struct kv_write *write, const char *name, uint64_t number)
{
    uint8_t bytes[8];
    store_u64(bytes, number);
    return ops->meta_put(write, name, bytes_of(bytes, sizeof bytes));
}

/* where a step got to; becomes the checkpoint's position once its transaction is committed */
struct step {
    struct kv_write *write;
    uint32_t range;
    uint16_t key_size;
    uint8_t key[KEY_SIZE_MAX_STORED];
    uint32_t cleared_done;
    uint64_t entries;
    uint64_t weight; /* entries, big values counting more: what bounds a transaction */
    bool finished;
};

/* the transaction touches a range that it may not complete */
static enum err note_partial(struct checkpoint *checkpoint, struct step *step, uint16_t range)
{
    struct range_table *table = checkpoint->config.table;
    if (table == NULL) return OK;
    return range_table_write_partial(table, checkpoint->config.ops, step->write, range);
}

static enum err step_clear(struct checkpoint *checkpoint, struct step *step)
{
    const struct kv_ops *ops = checkpoint->config.ops;
    for (int calls = 0; calls < CLEARS_PER_STEP && step->cleared_done < checkpoint->cleared_count;
         calls++) {
        const struct checkpoint_clear *clear = &checkpoint->cleared[step->cleared_done];
        bool done = false;
        TRY(note_partial(checkpoint, step, clear->range));
        TRY(ops->clear(
            step->write, clear->range, clear->bucket, checkpoint->config.chunk_puts, &done));
        if (!done) break;
        step->cleared_done++;
    }
    return OK;
}

static enum err step_put_entries(struct checkpoint *checkpoint, struct step *step, bool *all_out)
{
    const struct kv_ops *ops = checkpoint->config.ops;
    struct memtable_cursor cursor;
    struct memtable_entry entry;
    memtable_seek(checkpoint->job.memtable, (uint16_t)step->range,
        bytes_of(step->key, step->key_size), &cursor);
    /* the position names the last key that is done */
    if (step->key_size > 0 && memtable_cursor_get(&cursor, &entry) &&
        bytes_equal(entry.key, bytes_of(step->key, step->key_size)))
        memtable_cursor_next(&cursor);
    *all_out = false;
    while (memtable_cursor_get(&cursor, &entry)) {
        if (step->weight >= checkpoint->config.chunk_puts) return OK;
        if (entry.tombstone && !PLANTED_BUG(21)) {
            TRY(ops->del(step->write, entry.range, entry.key));
        } else if (!entry.tombstone) {
            TRY(ops->put(step->write, entry.range, entry.key, &entry.value));
        }
        step->entries++;
        step->weight += 1 + entry.value.bytes.size / DISK_BLOCK;
        ASSERT(entry.key.size <= sizeof step->key);
        memcpy(step->key, entry.key.at, entry.key.size);
        step->key_size = (uint16_t)entry.key.size;
        memtable_cursor_next(&cursor);
    }
    *all_out = true;
    return OK;
}

static enum err step_put_range(struct checkpoint *checkpoint, struct step *step)
{
    const struct kv_ops *ops = checkpoint->config.ops;
    uint16_t range = (uint16_t)step->range;
    bool all;
    TRY(step_put_entries(checkpoint, step, &all));
    if (!all) return note_partial(checkpoint, step, range);
    if (memtable_range_count(checkpoint->job.memtable, range) > 0) {
        if (checkpoint->config.table != NULL) {
            TRY(range_table_write(checkpoint->config.table, ops, step->write, range));
        } else {
            char name[32];
            snprintf(name, sizeof name, META_RANGE_FORMAT, step->range);
            TRY(put_number(ops, step->write, name, checkpoint->job.lsn));
        }
    }
    step->range++;
    step->key_size = 0;
    return OK;
}

/* ranges without entries: their term, vote or index may have moved */
static enum err step_metas(struct checkpoint *checkpoint, struct step *step)
{
    struct range_table *table = checkpoint->config.table;
    if (table == NULL) return OK;
    for (uint32_t range = 0; range < checkpoint->config.ranges; range++)
        TRY(range_table_write(table, checkpoint->config.ops, step->write, (uint16_t)range));
    return OK;
}

static enum err step_fill(struct checkpoint *checkpoint, struct step *step)
{
    const struct kv_ops *ops = checkpoint->config.ops;
    if (PLANTED_BUG(20)) TRY(put_number(ops, step->write, META_APPLIED, checkpoint->job.lsn));
    if (PLANTED_BUG(24)) step->cleared_done = checkpoint->cleared_count;
    if (PLANTED_BUG(46)) TRY(step_metas(checkpoint, step));
    if (step->cleared_done < checkpoint->cleared_count) TRY(step_clear(checkpoint, step));
    if (step->cleared_done < checkpoint->cleared_count) return OK;
    while (step->range < checkpoint->config.ranges && step->weight < checkpoint->config.chunk_puts)
        TRY(step_put_range(checkpoint, step));
    if (step->range < checkpoint->config.ranges) return OK;
    TRY(step_metas(checkpoint, step));
    TRY(put_number(ops, step->write, META_APPLIED, checkpoint->job.lsn));
    TRY(put_number(ops, step->write, META_PROMISED, checkpoint->job.promised));
    TRY(put_number(ops, step->write, META_SEGMENT, checkpoint->job.segment));
    step->finished = true;
    return OK;
}

static void step_publish(struct checkpoint *checkpoint, const struct step *step)
{
    pthread_mutex_lock(&checkpoint->lock);
    checkpoint->range = step->range;
    checkpoint->key_size = step->key_size;
    memcpy(checkpoint->key, step->key, step->key_size);
    checkpoint->cleared_done = step->cleared_done;
    atomic_fetch_add(&checkpoint->puts, step->entries);
    atomic_fetch_add(&checkpoint->merged, step->entries);
    atomic_fetch_add(&checkpoint->merge_sequence, 1);
    if (step->finished) {
        const struct clock *clock = checkpoint->config.clock;
        atomic_store(
            &checkpoint->last_ns, clock->monotonic_ns(clock->ctx) - checkpoint->started_ns);
        atomic_fetch_add(&checkpoint->checkpoints, 1);
        atomic_store(&checkpoint->state, CHECKPOINT_DONE);
        pthread_cond_broadcast(&checkpoint->changed);
    }
    pthread_mutex_unlock(&checkpoint->lock);
}

static enum err step_run(struct checkpoint *checkpoint)
{
    const struct kv_ops *ops = checkpoint->config.ops;
    struct step step = {
        .range = checkpoint->range,
        .key_size = checkpoint->key_size,
        .cleared_done = checkpoint->cleared_done,
    };
    memcpy(step.key, checkpoint->key, checkpoint->key_size);
    TRY(ops->write_begin(checkpoint->config.kv, &step.write));
    enum err err = step_fill(checkpoint, &step);
    if (err != OK) {
        ops->abort(step.write);
        return err;
    }
    atomic_fetch_add(&checkpoint->merge_sequence, 1);
    err = ops->commit(step.write);
    if (err == OK) {
        atomic_store(&checkpoint->failing, false);
        step_publish(checkpoint, &step);
    } else {
        atomic_fetch_add(&checkpoint->merge_sequence, 1);
    }
    return err;
}

enum err checkpoint_step(struct checkpoint *checkpoint)
{
    if (atomic_load(&checkpoint->state) != CHECKPOINT_RUNNING) return OK;
    struct range_table *table = checkpoint->config.table;
    if (table != NULL) range_table_lock(table);
    enum err err = step_run(checkpoint);
    if (table != NULL) {
        range_table_outcome(table, err == OK);
        range_table_unlock(table);
    }
    if (err == OK || err == ERR_AGAIN)
        return OK; /* the map has grown: the next call repeats the step */
    atomic_store(&checkpoint->failing, true);
    atomic_fetch_add(&checkpoint->failures, 1);
    log_warn("checkpoint step failed; it will be repeated", "error=%s failures=%llu", err_name(err),
        (unsigned long long)atomic_load(&checkpoint->failures));
    return err;
}

enum err checkpoint_wait(struct checkpoint *checkpoint, uint32_t attempts)
{
    if (!checkpoint->thread_started) {
        while (atomic_load(&checkpoint->state) == CHECKPOINT_RUNNING) {
            enum err err = checkpoint_step(checkpoint);
            if (err != OK && attempts-- <= 1) return err;
        }
        return OK;
    }
    uint64_t failures = atomic_load(&checkpoint->failures);
    enum err err = OK;
    pthread_mutex_lock(&checkpoint->lock);
    while (atomic_load(&checkpoint->state) == CHECKPOINT_RUNNING) {
        if (atomic_load(&checkpoint->failures) - failures >= attempts) {
            err = ERR_FULL;
            break;
        }
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += 1;
        pthread_cond_timedwait(&checkpoint->changed, &checkpoint->lock, &until);
    }
    pthread_mutex_unlock(&checkpoint->lock);
    return err;
}

void checkpoint_position(struct checkpoint *checkpoint, void (*renew)(void *ctx), void *ctx,
    uint32_t *range_out, uint8_t *key_out, uint16_t *key_size_out)
{
    for (;;) {
        uint64_t before = atomic_load(&checkpoint->merge_sequence);
        if ((before & 1) == 0) {
            renew(ctx);
            pthread_mutex_lock(&checkpoint->lock);
            bool idle = atomic_load(&checkpoint->state) != CHECKPOINT_RUNNING;
            *range_out = idle ? checkpoint->config.ranges : checkpoint->range;
            *key_size_out = idle ? 0 : checkpoint->key_size;
            memcpy(key_out, checkpoint->key, *key_size_out);
            pthread_mutex_unlock(&checkpoint->lock);
            if (atomic_load(&checkpoint->merge_sequence) == before) return;
        }
        struct timespec pause = {.tv_nsec = 200000};
        nanosleep(&pause, NULL);
    }
}

/* Looks at the next entries of the store; every value's checksum is checked by the cursor. */
static void scrub_step(struct checkpoint *checkpoint)
{
    const struct kv_ops *ops = checkpoint->config.ops;
    struct kv_read *read;
    if (ops->read_begin(checkpoint->config.kv, &read) != OK) return;
    void *cursor;
    uint64_t seen = 0;
    enum err err = ops->cursor_open(read, (uint16_t)checkpoint->scrub_range, &cursor);
    if (err == OK) {
        struct bytes key;
        struct value value;
        struct bytes from = bytes_of(checkpoint->scrub_key, checkpoint->scrub_key_size);
        err = ops->cursor_seek(cursor, from, &key, &value);
        if (err != ERR_NOT_FOUND && from.size > 0 && bytes_equal(key, from))
            err = ops->cursor_next(cursor, &key, &value);
        while (err == OK || err == ERR_CORRUPT) {
            if (err == ERR_CORRUPT) {
                atomic_fetch_add(&checkpoint->damaged, 1);
                log_error("scrub found a damaged value", "range=%u key_size=%zu",
                    checkpoint->scrub_range, key.size);
            }
            if (key.size > sizeof checkpoint->scrub_key) break;
            memcpy(checkpoint->scrub_key, key.at, key.size);
            checkpoint->scrub_key_size = (uint16_t)key.size;
            if (++seen >= SCRUB_ENTRIES) break;
            err = ops->cursor_next(cursor, &key, &value);
        }
        ops->cursor_close(cursor);
    }
    ops->read_end(read);
    atomic_fetch_add(&checkpoint->scrubbed, seen);
    if (seen >= SCRUB_ENTRIES) return;
    checkpoint->scrub_key_size = 0;
    if (++checkpoint->scrub_range >= checkpoint->config.ranges) {
        checkpoint->scrub_range = 0;
        atomic_fetch_add(&checkpoint->scrub_rounds, 1);
    }
}

/* sleeps, but not through a stop or (if `for_job`) a new job; lock held */
static void rest(struct checkpoint *checkpoint, uint64_t ns, bool for_job)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t total = (uint64_t)until.tv_nsec + ns;
    until.tv_sec += (time_t)(total / 1000000000u);
    until.tv_nsec = (long)(total % 1000000000u);
    while (
        !checkpoint->stop && !(for_job && atomic_load(&checkpoint->state) == CHECKPOINT_RUNNING)) {
        if (pthread_cond_timedwait(&checkpoint->changed, &checkpoint->lock, &until) != 0) return;
    }
}

static void *checkpoint_thread(void *argument)
{
    struct checkpoint *checkpoint = argument;
    /* behind the log and the loop wherever they want the processor; without the right to, as it is */
    (void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 19);
    pthread_mutex_lock(&checkpoint->lock);
    while (!checkpoint->stop) {
        if (atomic_load(&checkpoint->state) != CHECKPOINT_RUNNING) {
            if (checkpoint->config.scrub) {
                pthread_mutex_unlock(&checkpoint->lock);
                scrub_step(checkpoint);
                pthread_mutex_lock(&checkpoint->lock);
            }
            rest(checkpoint, SCRUB_PERIOD_MS * 1000000u, true);
            continue;
        }
        pthread_mutex_unlock(&checkpoint->lock);
        enum err err = checkpoint_step(checkpoint);
        if (checkpoint->config.wake != NULL) checkpoint->config.wake(checkpoint->config.wake_ctx);
        pthread_mutex_lock(&checkpoint->lock);
        if (err != OK) {
            pthread_cond_broadcast(&checkpoint->changed);
            rest(checkpoint, RETRY_MS * 1000000u, false);
        } else if (atomic_load(&checkpoint->pause_us) > 0) {
            rest(checkpoint, (uint64_t)atomic_load(&checkpoint->pause_us) * 1000u, false);
        }
    }
    pthread_mutex_unlock(&checkpoint->lock);
    return NULL;
}
