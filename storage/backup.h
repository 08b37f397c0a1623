#ifndef STORAGE_BACKUP_H
#define STORAGE_BACKUP_H

#include "base/buffer.h"
#include "storage/engine.h"

/* Hot backup, restore and verification. The file is our own format (docs/formats/backup.md): a
 * header with the store's identity, zstd-compressed blocks (where each range was, then entries),
 * each with its CRC32C, and a footer with counts. Never a copied LMDB file.
 *
 * A backup is of one moment: opening asks for a checkpoint of everything applied, and when that is done, and
 * before another begins, a read transaction is opened that the whole backup is read through. While it is
 * open the bottom store's file grows by what is written meanwhile. */

struct backup;

/* Owner's thread. ERR_BUSY: too many wait for a checkpoint. */
enum err backup_open(struct engine *engine, const char *cluster_id, const char *name,
    struct backup **backup_out) MUST_CHECK;
/* Any one thread: produces the next bytes of the file into out (up to about 1 MiB).
 * ERR_NOT_FOUND: all was produced. ERR_AGAIN: the checkpoint is not done, although the call waited a few
 * milliseconds for it; call backup_finish_at() on the owner's thread, let that thread poll the engine, and go on.
 * ERR_CLOSED: a range's snapshot is being installed, so there is no moment to be had; try later. */
enum err backup_next(struct backup *backup, struct buffer *out) MUST_CHECK;
/* Owner's thread, after ERR_AGAIN: says whether the moment the backup is of has come. */
bool backup_finish_at(struct backup *backup);
/* Owner's thread. */
void backup_close(struct backup *backup);
/* For progress: entries written so far and expected in all. */
void backup_progress(const struct backup *backup, uint64_t *done_out, uint64_t *total_out);

struct backup_info {
    char cluster_id[33];
    char name[64];
    uint32_t ranges;
    uint64_t end_lsn; /* of the log at the moment the backup is of */
    int64_t wall_ms;
    uint64_t entries;
    uint64_t bytes;
};

/* Reads a whole backup file and checks every checksum. `detail` gets one sentence on
 * ERR_CORRUPT. */
enum err backup_verify(
    const char *file, struct backup_info *info_out, char *detail, size_t detail_size) MUST_CHECK;
/* Every range of the restored store has RANGE_META_GENESIS: whoever starts on it is a cluster of its own. Of range
 * 0 only the names of buckets are taken over.
 * Restores into `folder`, which must be absent or empty (ERR_EXISTS): builds a temporary folder
 * beside it, syncs, renames. dry_run: reads and checks only. progress may be NULL. */
enum err backup_restore(const char *file, const char *folder, bool dry_run,
    void (*progress)(void *ctx, uint64_t done, uint64_t total), void *ctx,
    struct backup_info *info_out, char *detail, size_t detail_size) MUST_CHECK;

/* Verifies a stopped node's folder: identity, log, every stored value. found() gets a sentence
 * per damage (which file, range, key, LSN). ERR_CORRUPT if there was any; ERR_BUSY if a node
 * runs on it. */
enum err folder_verify(const char *folder, void (*found)(void *ctx, const char *sentence),
    void *ctx, uint64_t *values_out, uint64_t *records_out) MUST_CHECK;

#endif
