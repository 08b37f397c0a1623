#define _POSIX_C_SOURCE 200809L
#include "storage/backup.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/check.h"
#include "base/logger.h"
#include "storage/backup_format.h"
#include "storage/engine_meta.h"

/* The moment of a backup is when its checkpoint is published: the store then has what was applied when that
 * checkpoint was sealed and nothing later, because the next one has not begun. The read transaction opened
 * then is the backup's for as long as it takes. */

enum { KEY_MAX = KEY_SIZE_MAX + 2, WAIT_MS = 5 };

enum phase { PHASE_WAIT, PHASE_HEADER, PHASE_RANGES, PHASE_IMAGE, PHASE_FOOTER, PHASE_DONE };

struct backup {
    struct engine *engine;
    struct kv *kv;
    const struct kv_ops *ops;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool ready; /* under the lock: `cut` and `read` are set */
    enum err cut;
    struct kv_read *read;
    struct backup_codec codec;
    bool codec_ready;
    struct buffer raw;
    enum phase phase;
    enum err failed; /* once an error, always an error: a file with a hole must not be finished */

    uint32_t range; /* where the image is */
    size_t key_size;
    uint8_t key[KEY_MAX];
    bool range_begun;

    struct backup_header header;
    struct backup_footer footer;
    _Atomic uint64_t done;
    uint64_t total;
};

static int hex_value(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* The highest range id, as the store itself says. */
static enum err read_ranges(struct backup *backup)
{
    struct bytes value;
    TRY(backup->ops->meta_get(backup->read, META_RANGES, &value));
    uint32_t ranges = value.size == 4 ? load_u32(value.at) : 0;
    if (ranges < 2 || ranges > UINT16_MAX) return ERR_CORRUPT;
    backup->header.ranges = ranges - 1;
    return OK;
}

static enum err read_lsn(struct backup *backup)
{
    struct bytes value;
    enum err err = backup->ops->meta_get(backup->read, META_APPLIED, &value);
    if (err == ERR_NOT_FOUND) return OK; /* nothing was ever written */
    TRY(err);
    if (value.size != 8 || load_u64(value.at) >= BACKUP_LSN_END) return ERR_CORRUPT;
    backup->header.lsn = load_u64(value.at);
    return OK;
}

static enum err read_range_meta(struct backup *backup, uint32_t range, struct backup_range *out)
{
    char name[32];
    struct bytes value;
    struct range_meta meta;
    *out = (struct backup_range){0};
    snprintf(name, sizeof name, META_RANGE_FORMAT, range);
    enum err err = backup->ops->meta_get(backup->read, name, &value);
    if (err == ERR_NOT_FOUND) return OK;
    TRY(err);
    if (value.size == 8) {
        out->index = load_u64(value.at); /* an embedded store's */
        return OK;
    }
    TRY(range_meta_decode(value, &meta));
    if ((meta.flags & RANGE_META_INSTALLING) != 0 || meta.settled > meta.index) {
        log_error("no backup while a snapshot is installed or caught up with", "range=%u", range);
        return ERR_CLOSED;
    }
    *out = (struct backup_range){.index = meta.index, .term = meta.term, .hash = meta.hash};
    return OK;
}

static enum err read_metas(struct backup *backup)
{
    TRY(read_ranges(backup));
    TRY(read_lsn(backup));
    buffer_reset(&backup->raw, 2 * (size_t)BACKUP_RAW_TARGET);
    for (uint32_t range = 0; range <= backup->header.ranges; range++) {
        struct backup_range one;
        TRY(read_range_meta(backup, range, &one));
        TRY(backup_range_append(&backup->raw, &one));
    }
    return OK;
}

/* owner's thread: the store is as it was when the checkpoint was sealed */
static void on_checkpoint(void *ctx, enum err err)
{
    struct backup *backup = ctx;
    if (err == OK) err = backup->ops->read_begin(backup->kv, &backup->read);
    if (err == OK) err = read_metas(backup);
    pthread_mutex_lock(&backup->lock);
    backup->ready = true;
    backup->cut = err;
    pthread_cond_broadcast(&backup->changed);
    pthread_mutex_unlock(&backup->lock);
}

enum err backup_open(
    struct engine *engine, const char *cluster_id, const char *name, struct backup **backup_out)
{
    struct backup *backup = calloc(1, sizeof *backup);
    if (backup == NULL) return ERR_NOMEM;
    backup->engine = engine;
    backup->kv = engine_kv(engine);
    backup->ops = engine_kv_ops(engine);
    struct clock clock = clock_real(); /* for people to read; nothing depends on it */
    backup->header.wall_ms = clock.wall_ms(clock.ctx);
    for (int i = 0; i < 32; i++) {
        int digit = cluster_id[i] == 0 ? -1 : hex_value(cluster_id[i]);
        if (digit < 0) {
            free(backup);
            return ERR_INVALID;
        }
        backup->header.cluster_id[i / 2] = (uint8_t)(backup->header.cluster_id[i / 2] << 4 | digit);
    }
    size_t name_size = strnlen(name, sizeof backup->header.name - 1);
    memcpy(backup->header.name, name, name_size);
    struct kv_stats stats;
    backup->ops->stats(backup->kv, &stats);
    backup->total = stats.entries;
    pthread_mutex_init(&backup->lock, NULL);
    pthread_cond_init(&backup->changed, NULL);
    engine_checkpoint(engine, on_checkpoint, backup);
    if (backup->ready && backup->cut == ERR_BUSY) {
        backup_close(backup);
        return ERR_BUSY;
    }
    *backup_out = backup;
    return OK;
}

void backup_close(struct backup *backup)
{
    engine_checkpoint_forget(backup->engine, backup);
    if (backup->read != NULL) backup->ops->read_end(backup->read);
    if (backup->codec_ready) backup_packer_deinit(&backup->codec);
    buffer_deinit(&backup->raw);
    pthread_cond_destroy(&backup->changed);
    pthread_mutex_destroy(&backup->lock);
    free(backup);
}

bool backup_finish_at(struct backup *backup)
{
    pthread_mutex_lock(&backup->lock);
    bool ready = backup->ready;
    pthread_mutex_unlock(&backup->lock);
    return ready;
}

void backup_progress(const struct backup *backup, uint64_t *done_out, uint64_t *total_out)
{
    uint64_t done = atomic_load_explicit(&backup->done, memory_order_relaxed);
    *done_out = done;
    *total_out = done > backup->total ? done : backup->total;
}

static enum err next_wait(struct backup *backup)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += WAIT_MS * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_mutex_lock(&backup->lock);
    if (!backup->ready) (void)pthread_cond_timedwait(&backup->changed, &backup->lock, &until);
    bool ready = backup->ready;
    enum err cut = backup->cut;
    pthread_mutex_unlock(&backup->lock);
    if (!ready) return ERR_AGAIN;
    backup->phase = PHASE_HEADER;
    return cut == ERR_AGAIN ? ERR_IO : cut;
}

static enum err next_header(struct backup *backup, struct buffer *out)
{
    uint8_t *at = buffer_reserve(out, BACKUP_HEADER_SIZE);
    if (at == NULL) return ERR_NOMEM;
    backup_header_encode(at, &backup->header);
    TRY(backup_packer_init(&backup->codec, at));
    backup->codec_ready = true;
    buffer_wrote(out, BACKUP_HEADER_SIZE);
    backup->phase = PHASE_RANGES;
    return OK;
}

static enum err next_ranges(struct backup *backup, struct buffer *out)
{
    backup->phase = PHASE_IMAGE;
    backup->footer.blocks++;
    return backup_pack(&backup->codec, BACKUP_RANGES, buffer_view(&backup->raw), out);
}

/* Reads on in the current range until the block is full or the range ends (*end_out). */
static enum err read_range(struct backup *backup, bool *end_out)
{
    void *cursor;
    TRY(backup->ops->cursor_open(backup->read, (uint16_t)backup->range, &cursor));
    struct backup_entry entry = {.range = (uint16_t)backup->range};
    enum err err = backup->ops->cursor_seek(
        cursor, bytes_of(backup->key, backup->key_size), &entry.key, &entry.value);
    /* The key the last block ended with may still be there. */
    if ((err == OK || err == ERR_CORRUPT) && backup->range_begun &&
        bytes_equal(entry.key, bytes_of(backup->key, backup->key_size)))
        err = backup->ops->cursor_next(cursor, &entry.key, &entry.value);
    while (err == OK) {
        if (entry.key.size < 2 || entry.key.size > KEY_MAX) {
            err = ERR_CORRUPT;
            break;
        }
        err = backup_entry_append(&backup->raw, &entry);
        if (err != OK) break;
        backup->range_begun = true;
        backup->key_size = entry.key.size;
        memcpy(backup->key, entry.key.at, entry.key.size);
        backup->footer.entries++;
        if (backup->raw.size >= BACKUP_RAW_TARGET) break;
        err = backup->ops->cursor_next(cursor, &entry.key, &entry.value);
    }
    backup->ops->cursor_close(cursor);
    *end_out = err == ERR_NOT_FOUND;
    if (err == ERR_CORRUPT)
        log_error("a backup met a damaged value and was given up", "range=%u", backup->range);
    return *end_out ? OK : err;
}

static enum err next_image(struct backup *backup, struct buffer *out)
{
    buffer_reset(&backup->raw, 4 * (size_t)BACKUP_RAW_TARGET);
    if (PLANTED_BUG(17)) TRY(backup->ops->read_renew(backup->read));
    while (backup->raw.size < BACKUP_RAW_TARGET && backup->range <= backup->header.ranges) {
        bool end = false;
        TRY(read_range(backup, &end));
        if (!end) continue;
        backup->range++;
        backup->range_begun = false;
        backup->key_size = 0;
    }
    atomic_store_explicit(&backup->done, backup->footer.entries, memory_order_relaxed);
    if (backup->range > backup->header.ranges) {
        backup->phase = PHASE_FOOTER;
        /* the pages it held back may be used again */
        backup->ops->read_reset(backup->read);
    }
    if (backup->raw.size == 0) return OK;
    backup->footer.blocks++;
    return backup_pack(&backup->codec, BACKUP_ENTRIES, buffer_view(&backup->raw), out);
}

static enum err next_footer(struct backup *backup, struct buffer *out)
{
    uint8_t raw[BACKUP_FOOTER_SIZE];
    backup_footer_encode(raw, &backup->footer);
    backup->phase = PHASE_DONE;
    return backup_pack(&backup->codec, BACKUP_FOOTER, bytes_of(raw, sizeof raw), out);
}

static enum err next_part(struct backup *backup, struct buffer *out)
{
    switch (backup->phase) {
    case PHASE_WAIT:
        return next_wait(backup);
    case PHASE_HEADER:
        return next_header(backup, out);
    case PHASE_RANGES:
        return next_ranges(backup, out);
    case PHASE_IMAGE:
        return next_image(backup, out);
    case PHASE_FOOTER:
        return next_footer(backup, out);
    case PHASE_DONE:
        return ERR_NOT_FOUND;
    }
    UNREACHABLE();
}

enum err backup_next(struct backup *backup, struct buffer *out)
{
    if (backup->failed != OK) return backup->failed;
    size_t before = out->size;
    enum err err;
    /* A step may have nothing to write; a caller shall get bytes or one of the two signals. */
    do {
        err = next_part(backup, out);
    } while (err == OK && out->size == before);
    if (err == OK) {
        if (backup->phase != PHASE_DONE) backup->footer.bytes += out->size - before;
    } else if (err != ERR_AGAIN && err != ERR_NOT_FOUND) {
        backup->failed = err;
    }
    return err;
}
