#define _POSIX_C_SOURCE 200809L
#include "storage/backup.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/logger.h"
#include "storage/backup_format.h"
#include "storage/engine_meta.h"

/* The image is read while the checkpoint goes on writing: each read transaction sees the store as it
 * then was, and lives for one block at most, so that no old pages are held back. The image is
 * therefore of no single moment. What makes it one is the log: every record after `start`, which was
 * checkpointed before the first read, follows up to `end`, which is fixed after the last. A key that
 * no such record touches has had one value since `start`, and the image has it; any other key
 * gets what the last record says, whatever the image had. `end` must not be before anything the
 * image may hold, hence "after the last read". */

enum { KEY_MAX = KEY_SIZE_MAX + 2, READ_ENTRIES_MAX = 8192 };

enum phase { PHASE_HEADER, PHASE_IMAGE, PHASE_WAIT, PHASE_LOG, PHASE_FOOTER, PHASE_DONE };

struct backup {
    struct engine *engine;
    struct kv *kv;
    const struct kv_ops *ops;
    struct kv_read *read;
    struct wal_reader *reader;
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
    lsn_t last; /* LSN of the newest record written */
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
    struct wal_stats log;
    wal_stats(engine_wal(engine), &log);
    backup->header.start_lsn = engine_checkpointed(engine);
    backup->last = backup->header.start_lsn;
    enum err err = backup->ops->read_begin(backup->kv, &backup->read);
    if (err == OK) {
        err = read_ranges(backup);
        backup->ops->read_reset(backup->read);
    }
    if (err == OK)
        err = wal_reader_open(
            engine_wal(engine), backup->header.start_lsn, log.durable, &backup->reader);
    if (err != OK) {
        backup_close(backup);
        return err;
    }
    *backup_out = backup;
    return OK;
}

void backup_close(struct backup *backup)
{
    if (backup->reader != NULL) wal_reader_close(backup->reader);
    if (backup->read != NULL) backup->ops->read_end(backup->read);
    if (backup->codec_ready) backup_packer_deinit(&backup->codec);
    buffer_deinit(&backup->raw);
    free(backup);
}

void backup_progress(const struct backup *backup, uint64_t *done_out, uint64_t *total_out)
{
    uint64_t done = atomic_load_explicit(&backup->done, memory_order_relaxed);
    *done_out = done;
    *total_out = done > backup->total ? done : backup->total;
}

static enum err next_header(struct backup *backup, struct buffer *out)
{
    uint8_t *at = buffer_reserve(out, BACKUP_HEADER_SIZE);
    if (at == NULL) return ERR_NOMEM;
    backup_header_encode(at, &backup->header);
    TRY(backup_packer_init(&backup->codec, at));
    backup->codec_ready = true;
    buffer_wrote(out, BACKUP_HEADER_SIZE);
    backup->phase = PHASE_IMAGE;
    return OK;
}

/* Reads on in the current range until the block is full, enough was read under one snapshot, or
 * the range ends (*end_out). */
static enum err read_range(struct backup *backup, uint32_t *budget, bool *end_out)
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
        if (--*budget == 0 || backup->raw.size >= BACKUP_RAW_TARGET) break;
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
    while (backup->raw.size < BACKUP_RAW_TARGET && backup->range <= backup->header.ranges) {
        TRY(backup->ops->read_renew(backup->read));
        enum err err = OK;
        uint32_t budget = READ_ENTRIES_MAX;
        while (err == OK && budget > 0 && backup->raw.size < BACKUP_RAW_TARGET &&
            backup->range <= backup->header.ranges) {
            bool end = false;
            err = read_range(backup, &budget, &end);
            if (!end) continue;
            backup->range++;
            backup->range_begun = false;
            backup->key_size = 0;
        }
        backup->ops->read_reset(backup->read);
        TRY(err);
    }
    atomic_store_explicit(&backup->done, backup->footer.entries, memory_order_relaxed);
    if (backup->range > backup->header.ranges) backup->phase = PHASE_WAIT;
    if (backup->raw.size == 0) return OK;
    backup->footer.blocks++;
    return backup_pack(&backup->codec, BACKUP_ENTRIES, buffer_view(&backup->raw), out);
}

void backup_finish_at(struct backup *backup)
{
    if (backup->phase != PHASE_WAIT) return;
    struct wal_stats log;
    wal_stats(engine_wal(backup->engine), &log);
    backup->footer.end_lsn = engine_applied(backup->engine);
    ASSERT(backup->footer.end_lsn <= log.durable);
    ASSERT(backup->footer.end_lsn >= backup->header.start_lsn);
    wal_reader_extend(backup->reader, backup->footer.end_lsn);
    backup->phase = PLANTED_BUG(17) ? PHASE_FOOTER : PHASE_LOG;
}

static enum err next_log(struct backup *backup, struct buffer *out)
{
    buffer_reset(&backup->raw, 4 * (size_t)BACKUP_RAW_TARGET);
    while (backup->raw.size < BACKUP_RAW_TARGET) {
        struct wal_record record;
        enum err err = wal_reader_next(backup->reader, &record);
        if (err == ERR_NOT_FOUND || (err == OK && record.lsn > backup->footer.end_lsn)) {
            backup->phase = PHASE_FOOTER;
            break;
        }
        TRY(err);
        if (record.lsn <= backup->last) return ERR_CORRUPT;
        backup->last = record.lsn;
        if (record.type != WAL_RECORD_WRITE) continue;
        struct backup_record copy = {
            .lsn = record.lsn,
            .group = record.group,
            .type = record.type,
            .payload = record.payload,
        };
        TRY(backup_record_append(&backup->raw, &copy));
        backup->footer.records++;
    }
    if (backup->raw.size == 0) return OK;
    backup->footer.blocks++;
    return backup_pack(&backup->codec, BACKUP_RECORDS, buffer_view(&backup->raw), out);
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
    case PHASE_HEADER:
        return next_header(backup, out);
    case PHASE_IMAGE:
        return next_image(backup, out);
    case PHASE_WAIT:
        return ERR_AGAIN;
    case PHASE_LOG:
        return next_log(backup, out);
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
