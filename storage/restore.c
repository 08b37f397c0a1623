#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "storage/backup.h"
#include "storage/backup_format.h"
#include "storage/engine_meta.h"
#include "storage/folder.h"

/* Reading a backup, for verification and for restoring: one pass, the file taken for hostile. Memory
 * grows only as bytes really arrive, and never beyond what the format allows for a block.
 *
 * Restoring puts the entries into a new bottom store in a temporary folder beside the target, and renames
 * that. Until the rename the target does not change, after it the target is complete. No file of the backup
 * is ever adopted as it is.
 *
 * The restored store is the start of another history: it gets a cluster id and a node id of its own, so that
 * members of the old cluster never take it for one of theirs. Every range goes on from the index it had, as a
 * group of whoever starts on it (RANGE_META_GENESIS); of range 0 only the names of buckets are taken, because members
 * and placement were the old cluster's. The log begins after the backup's LSN and is absent at first; the
 * store's meta says that this is meant. */

enum { READ_STEP = 1 << 20, BATCH_BYTES = 4 << 20, ATTEMPTS = 40 };

struct reader {
    const char *name;
    int fd;
    uint64_t offset; /* bytes taken so far */
    uint64_t size; /* of the file; 0: not known */
    struct backup_codec codec;
    struct backup_header header;
    struct backup_footer footer; /* counted here, compared with the file's */
    uint16_t last_range;
    struct buffer last_key;
    struct buffer stored, raw;
    struct buffer ranges; /* the content of the block of ranges */
    char *detail;
    size_t detail_size;
};

/* What to do with what was read; NULL members: only check. */
struct sink {
    void *ctx;
    enum err (*batch)(void *ctx, struct bytes raw);
    void (*progress)(void *ctx, uint64_t done, uint64_t total);
    void *progress_ctx;
};

__attribute__((format(printf, 3, 4))) static enum err explain(
    struct reader *reader, enum err err, const char *format, ...)
{
    char sentence[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    snprintf(reader->detail, reader->detail_size, "%s: %s", reader->name, sentence);
    return err;
}

static enum err damaged(struct reader *reader, uint64_t offset, const char *what)
{
    return explain(reader, ERR_CORRUPT,
        "block %" PRIu32 " at byte %" PRIu64
        " %s; the backup is damaged and cannot be used, take another.",
        reader->codec.sequence, offset, what);
}

/* Exactly `size` bytes; ERR_TRUNCATED at the end of the file. */
static enum err read_bytes(struct reader *reader, void *to, size_t size)
{
    uint8_t *at = to;
    while (size > 0) {
        ssize_t got = read(reader->fd, at, size);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            return explain(reader, err_from_errno(errno), "cannot be read (%s).", strerror(errno));
        if (got == 0) return ERR_TRUNCATED;
        at += got;
        size -= (size_t)got;
        reader->offset += (uint64_t)got;
    }
    return OK;
}

static enum err read_stored(struct reader *reader, size_t size)
{
    buffer_reset(&reader->stored, 2 * (size_t)READ_STEP);
    while (size > 0) {
        size_t step = size < READ_STEP ? size : READ_STEP;
        uint8_t *at = buffer_reserve(&reader->stored, step);
        if (at == NULL) return explain(reader, ERR_NOMEM, "there is not enough memory.");
        TRY(read_bytes(reader, at, step));
        buffer_wrote(&reader->stored, step);
        size -= step;
    }
    return OK;
}

static enum err check_entries(struct reader *reader)
{
    struct bytes rest = buffer_view(&reader->raw);
    for (;;) {
        struct backup_entry entry;
        enum err err = backup_entry_next(&rest, reader->header.ranges, &entry);
        if (err == ERR_NOT_FOUND) return OK;
        TRY(err);
        bool first = reader->footer.entries == 0;
        if (!first && entry.range < reader->last_range) return ERR_CORRUPT;
        if (!first && entry.range == reader->last_range &&
            bytes_compare(entry.key, buffer_view(&reader->last_key)) <= 0)
            return ERR_CORRUPT;
        reader->last_range = entry.range;
        buffer_reset(&reader->last_key, SIZE_MAX);
        TRY(buffer_append(&reader->last_key, entry.key.at, entry.key.size));
        reader->footer.entries++;
    }
}

static enum err check_ranges(struct reader *reader)
{
    struct bytes rest = buffer_view(&reader->raw);
    struct backup_range range;
    uint64_t count = 0;
    enum err err;
    if (reader->footer.blocks > 0) return ERR_CORRUPT;
    while ((err = backup_range_next(&rest, &range)) == OK)
        count++;
    if (err != ERR_NOT_FOUND || count != (uint64_t)reader->header.ranges + 1) return ERR_CORRUPT;
    struct bytes raw = buffer_view(&reader->raw);
    buffer_reset(&reader->ranges, SIZE_MAX);
    return buffer_append(&reader->ranges, raw.at, raw.size);
}

static enum err check_footer(struct reader *reader, uint64_t offset)
{
    struct backup_footer footer;
    TRY(backup_footer_decode(buffer_view(&reader->raw), &footer));
    if (footer.entries != reader->footer.entries || footer.blocks != reader->footer.blocks ||
        footer.bytes != offset)
        return ERR_CORRUPT;
    reader->footer = footer;
    return OK;
}

static enum err check_block(
    struct reader *reader, enum backup_kind kind, uint64_t offset, bool *end_out)
{
    /* the ranges come first, and only then */
    if ((kind == BACKUP_RANGES) != (reader->footer.blocks == 0)) return ERR_CORRUPT;
    switch (kind) {
    case BACKUP_ENTRIES:
        return check_entries(reader);
    case BACKUP_RANGES:
        return check_ranges(reader);
    case BACKUP_FOOTER:
        *end_out = true;
        return check_footer(reader, offset);
    }
    return ERR_CORRUPT;
}

static enum err read_block(struct reader *reader, const struct sink *sink, bool *end_out)
{
    uint64_t offset = reader->offset;
    uint8_t head[BACKUP_BLOCK_HEAD_SIZE];
    struct backup_block block;
    enum err err = read_bytes(reader, head, sizeof head);
    if (err == ERR_TRUNCATED)
        return explain(reader, ERR_CORRUPT,
            "ends at byte %" PRIu64
            " without its footer; the backup is not complete and cannot be used, take another.",
            reader->offset);
    TRY(err);
    if (backup_block_head(&reader->codec, head, &block) != OK)
        return damaged(reader, offset, "has no valid head");
    err = read_stored(reader, block.stored_size);
    if (err == ERR_TRUNCATED) return damaged(reader, offset, "is cut off");
    TRY(err);
    err = backup_unpack(&reader->codec, &block, buffer_view(&reader->stored), &reader->raw);
    if (err == ERR_CORRUPT) return damaged(reader, offset, "fails its checksum");
    if (err != OK) return explain(reader, err, "%s.", err_text(err));
    err = check_block(reader, block.kind, offset, end_out);
    if (err == ERR_CORRUPT) return damaged(reader, offset, "has content that makes no sense");
    if (err != OK) return explain(reader, err, "%s.", err_text(err));
    if (!*end_out) reader->footer.blocks++;
    if (sink->batch != NULL && block.kind == BACKUP_ENTRIES) {
        err = sink->batch(sink->ctx, buffer_view(&reader->raw));
        if (err != OK && reader->detail[0] == 0)
            return explain(reader, err, "restoring stopped: %s.", err_text(err));
        TRY(err);
    }
    if (sink->progress != NULL) sink->progress(sink->progress_ctx, reader->offset, reader->size);
    return OK;
}

static enum err reader_open(
    struct reader *reader, const char *file, char *detail, size_t detail_size)
{
    *reader = (struct reader){.name = file, .fd = -1, .detail = detail, .detail_size = detail_size};
    if (detail_size > 0) detail[0] = 0;
    bool standard_input = strcmp(file, "-") == 0;
    reader->name = standard_input ? "standard input" : file;
    reader->fd = standard_input ? dup(0) : open(file, O_RDONLY | O_CLOEXEC);
    struct stat stat;
    if (reader->fd < 0 || fstat(reader->fd, &stat) != 0)
        return explain(reader, err_from_errno(errno), "cannot be opened (%s).", strerror(errno));
    if (S_ISDIR(stat.st_mode))
        return explain(reader, ERR_INVALID, "is a folder; a backup is a file.");
    reader->size = S_ISREG(stat.st_mode) ? (uint64_t)stat.st_size : 0;

    uint8_t header[BACKUP_HEADER_SIZE];
    enum err err = read_bytes(reader, header, sizeof header);
    if (err == ERR_TRUNCATED) return explain(reader, ERR_CORRUPT, "is too short to be a backup.");
    TRY(err);
    uint32_t format = 0;
    err = backup_header_decode(header, &reader->header, &format);
    if (err == ERR_MISMATCH && format < BACKUP_FORMAT)
        return explain(reader, err,
            "was made by a pre-release of Duramen, whose backups cannot be read any more; restore "
            "it with that "
            "version.");
    if (err == ERR_MISMATCH)
        return explain(reader, err, "was made by a newer version of Duramen; use that version.");
    if (err != OK)
        return explain(reader, err, "is not a Duramen backup, or its header is damaged.");
    err = backup_unpacker_init(&reader->codec, header);
    if (err != OK) return explain(reader, err, "%s.", err_text(err));
    return OK;
}

static void reader_close(struct reader *reader)
{
    if (reader->fd >= 0) close(reader->fd);
    if (reader->codec.zstd != NULL) backup_unpacker_deinit(&reader->codec);
    buffer_deinit(&reader->stored);
    buffer_deinit(&reader->raw);
    buffer_deinit(&reader->last_key);
    buffer_deinit(&reader->ranges);
}

static enum err read_all(struct reader *reader, const struct sink *sink)
{
    bool end = false;
    while (!end)
        TRY(read_block(reader, sink, &end));
    uint8_t more;
    enum err err = read_bytes(reader, &more, 1);
    if (err == OK)
        return explain(reader, ERR_CORRUPT, "has bytes after its end; it is not what was written.");
    return err == ERR_TRUNCATED ? OK : err;
}

static void fill_info(const struct reader *reader, struct backup_info *info_out)
{
    *info_out = (struct backup_info){
        .ranges = reader->header.ranges,
        .end_lsn = reader->header.lsn,
        .wall_ms = reader->header.wall_ms,
        .entries = reader->footer.entries,
        .bytes = reader->offset,
    };
    for (int i = 0; i < 16; i++)
        snprintf(info_out->cluster_id + 2 * i, 3, "%02x", reader->header.cluster_id[i]);
    memcpy(info_out->name, reader->header.name, sizeof info_out->name);
}

static enum err verify(const char *file, void (*progress)(void *ctx, uint64_t done, uint64_t total),
    void *ctx, struct backup_info *info_out, char *detail, size_t detail_size)
{
    struct reader reader;
    struct sink sink = {.progress = progress, .progress_ctx = ctx};
    enum err err = reader_open(&reader, file, detail, detail_size);
    if (err == OK) err = read_all(&reader, &sink);
    if (err == OK) fill_info(&reader, info_out);
    reader_close(&reader);
    return err;
}

enum err backup_verify(
    const char *file, struct backup_info *info_out, char *detail, size_t detail_size)
{
    return verify(file, NULL, NULL, info_out, detail, detail_size);
}

/* The new store while it is filled. */
struct target {
    const struct kv_ops *ops;
    struct kv *kv;
    uint32_t ranges;
    struct buffer batch; /* entries that are not written yet */
};

/* Of the system's range, whose keys are in bucket 0, what belongs to the data: the buckets' names. */
static bool taken_over(const struct backup_entry *entry)
{
    return entry->range != 0 ||
        bytes_have_prefix(entry->key, bytes_of((const uint8_t *)"\0\0bucket/", 9));
}

static enum err put_entries(struct target *target, struct kv_write *write)
{
    struct bytes rest = buffer_view(&target->batch);
    for (;;) {
        struct backup_entry entry;
        enum err err = backup_entry_next(&rest, target->ranges, &entry);
        if (err == ERR_NOT_FOUND) return OK;
        TRY(err);
        if (!taken_over(&entry)) continue;
        TRY(target->ops->put(write, entry.range, entry.key, &entry.value));
    }
}

static enum err put_number(
    struct target *target, struct kv_write *write, const char *name, uint64_t number)
{
    uint8_t bytes[8];
    store_u64(bytes, number);
    return target->ops->meta_put(write, name, bytes_of(bytes, sizeof bytes));
}

static enum err put_ranges(struct target *target, struct kv_write *write, struct bytes ranges)
{
    for (uint32_t id = 0; id <= target->ranges; id++) {
        struct backup_range range;
        TRY(backup_range_next(&ranges, &range));
        struct range_meta meta = {
            .index = range.index,
            .term = range.term,
            .hash = range.hash,
            .hard_term = range.term,
            .flags = RANGE_META_GENESIS,
        };
        char name[32];
        uint8_t encoded[RANGE_META_BYTES_MAX];
        snprintf(name, sizeof name, META_RANGE_FORMAT, id);
        size_t size = range_meta_encode(encoded, &meta);
        TRY(target->ops->meta_put(write, name, bytes_of(encoded, size)));
    }
    return OK;
}

static enum err put_meta(struct target *target, struct kv_write *write, const uint8_t node_id[16],
    const struct reader *reader)
{
    lsn_t lsn = reader->header.lsn;
    uint8_t ranges[4], absent = 1;
    store_u32(ranges, target->ranges + 1);
    TRY(target->ops->meta_put(write, META_STORE, bytes_of(node_id, 16)));
    TRY(target->ops->meta_put(write, META_RANGES, bytes_of(ranges, sizeof ranges)));
    TRY(target->ops->meta_put(write, META_LOG_ABSENT, bytes_of(&absent, 1)));
    TRY(put_ranges(target, write, buffer_view(&reader->ranges)));
    TRY(put_number(target, write, META_PROMISED, lsn));
    return put_number(target, write, META_APPLIED, lsn);
}

/* Writes what is collected in one transaction; again from its start when the store had to grow. */
static enum err flush_batch(struct target *target)
{
    if (target->batch.size == 0) return OK;
    enum err err = ERR_AGAIN;
    for (int attempt = 0; err == ERR_AGAIN && attempt < ATTEMPTS; attempt++) {
        struct kv_write *write;
        err = target->ops->write_begin(target->kv, &write);
        if (err != OK) continue;
        err = put_entries(target, write);
        if (err == OK)
            err = target->ops->commit(write);
        else
            target->ops->abort(write);
    }
    buffer_reset(&target->batch, 2 * (size_t)BATCH_BYTES);
    return err;
}

static enum err on_batch(void *ctx, struct bytes raw)
{
    struct target *target = ctx;
    TRY(buffer_append(&target->batch, raw.at, raw.size));
    return target->batch.size >= BATCH_BYTES ? flush_batch(target) : OK;
}

static enum err finish_target(
    struct target *target, const uint8_t node_id[16], const struct reader *reader)
{
    TRY(flush_batch(target));
    struct kv_write *write;
    TRY(target->ops->write_begin(target->kv, &write));
    enum err err = put_meta(target, write, node_id, reader);
    if (err == OK) return target->ops->commit(write);
    target->ops->abort(write);
    return err;
}

static enum err sync_folder(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return err_from_errno(errno);
    enum err err = fsync(fd) == 0 ? OK : err_from_errno(errno);
    close(fd);
    return err;
}

/* Removes what this restore made: a folder of files and folders of files. */
static void remove_folder(int parent_fd, const char *name, int depth)
{
    int fd = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    DIR *folder = fd < 0 ? NULL : fdopendir(fd);
    if (folder == NULL) {
        if (fd >= 0) close(fd);
        return;
    }
    for (struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        if (unlinkat(fd, entry->d_name, 0) != 0 && depth > 0)
            remove_folder(fd, entry->d_name, depth - 1);
    }
    closedir(folder);
    (void)unlinkat(parent_fd, name, AT_REMOVEDIR); /* what is left over shows by its name */
}

static enum err check_empty(const char *path)
{
    DIR *folder = opendir(path);
    if (folder == NULL)
        return errno == ENOENT ? OK : errno == ENOTDIR ? ERR_EXISTS : err_from_errno(errno);
    enum err err = OK;
    for (struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) err = ERR_EXISTS;
    }
    closedir(folder);
    return err;
}

/* Fills the folder `path`, which exists and is empty. */
static enum err fill_folder(struct reader *reader, struct sink *sink, const char *path)
{
    struct target target = {.ops = &kv_lmdb, .ranges = reader->header.ranges};
    struct folder_identity identity = {.format = FOLDER_FORMAT, .ranges = reader->header.ranges};
    TRY(folder_random_id(identity.cluster_id));
    TRY(folder_random_id(identity.node_id));
    memcpy(identity.restored_from, reader->header.cluster_id, 16);
    if (folder_name_valid(reader->header.name))
        memcpy(identity.name, reader->header.name, sizeof identity.name);
    else
        snprintf(identity.name, sizeof identity.name, "restored");

    char db[4096], wal[4096];
    snprintf(db, sizeof db, "%s/db", path);
    snprintf(wal, sizeof wal, "%s/wal", path);
    if (mkdir(db, 0700) != 0 || mkdir(wal, 0700) != 0) return err_from_errno(errno);
    struct kv_config config = {.folder = db, .ranges = target.ranges + 1, .create = true};
    TRY(target.ops->open(&config, &target.kv));
    sink->ctx = &target;
    sink->batch = on_batch;
    enum err err = read_all(reader, sink);
    if (err == OK) err = finish_target(&target, identity.node_id, reader);
    target.ops->close(target.kv);
    buffer_deinit(&target.batch);
    identity.restored_lsn = reader->header.lsn;
    if (err == OK) err = sync_folder(db);
    if (err == OK) err = folder_write_identity(path, &identity);
    return err;
}

static enum err restore_into(struct reader *reader, struct sink *sink, const char *folder)
{
    char target[3900], temporary[3960], parent[3900];
    size_t size = strlen(folder);
    while (size > 1 && folder[size - 1] == '/')
        size--;
    if (size == 0 || size >= sizeof target)
        return explain(reader, ERR_INVALID, "the path of the folder is empty or too long.");
    snprintf(target, sizeof target, "%.*s", (int)size, folder);
    const char *slash = strrchr(target, '/');
    if (slash == NULL)
        snprintf(parent, sizeof parent, ".");
    else
        snprintf(
            parent, sizeof parent, "%.*s", slash == target ? 1 : (int)(slash - target), target);

    enum err err = check_empty(target);
    if (err == ERR_EXISTS)
        return explain(reader, err,
            "%s is not an empty folder, and nothing is restored over data; choose a new one.",
            target);
    if (err != OK) return explain(reader, err, "%s cannot be read: %s.", target, err_text(err));
    snprintf(temporary, sizeof temporary, "%s.restore-XXXXXX", target);
    if (mkdtemp(temporary) == NULL)
        return explain(reader, err_from_errno(errno), "no folder can be made in %s (%s).", parent,
            strerror(errno));

    err = fill_folder(reader, sink, temporary);
    if (err == OK) err = sync_folder(temporary);
    if (err == OK && rename(temporary, target) != 0) {
        int number = errno;
        err = number == ENOTEMPTY || number == EEXIST ? ERR_EXISTS : err_from_errno(number);
        explain(reader, err, "%s cannot be put in place (%s); restore into a new folder beside it.",
            target, strerror(number));
    }
    if (err != OK) {
        remove_folder(AT_FDCWD, temporary, 1);
        if (reader->detail[0] == 0)
            explain(reader, err, "restoring into %s stopped: %s; nothing was changed there.",
                target, err_text(err));
        return err;
    }
    err = sync_folder(parent);
    if (err != OK)
        explain(reader, err, "%s is restored, but %s cannot be synced: %s.", target, parent,
            err_text(err));
    return err;
}

enum err backup_restore(const char *file, const char *folder, bool dry_run,
    void (*progress)(void *ctx, uint64_t done, uint64_t total), void *ctx,
    struct backup_info *info_out, char *detail, size_t detail_size)
{
    ASSERT(detail_size > 0);
    if (dry_run) return verify(file, progress, ctx, info_out, detail, detail_size);
    struct reader reader;
    struct sink sink = {.progress = progress, .progress_ctx = ctx};
    enum err err = reader_open(&reader, file, detail, detail_size);
    if (err == OK) err = restore_into(&reader, &sink, folder);
    if (err == OK) fill_info(&reader, info_out);
    reader_close(&reader);
    return err;
}
