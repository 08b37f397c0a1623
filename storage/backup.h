#ifndef STORAGE_BACKUP_H
#define STORAGE_BACKUP_H

#include "base/buffer.h"
#include "storage/engine.h"

/* Hot backup, restore and verification. The file is our own format (docs/formats/backup.md): a
 * header with the store's identity, zstd-compressed blocks of entries and of log records, each
 * with its CRC32C, and a footer with counts and a CRC of everything. Never a copied LMDB file.
 *
 * A backup is consistent at one LSN, its end point: the bottom store is read in short read
 * transactions (a fuzzy image of states at or after the start LSN), and the log records from the
 * start to the end point are appended; effects are absolute, so replaying them over the image
 * gives the state at the end point exactly. */

struct backup;

/* Owner's thread. Seals and checkpoints nothing; pins the log. */
enum err backup_open(struct engine *engine, const char *cluster_id, const char *name,
    struct backup **backup_out) MUST_CHECK;
/* Any one thread: produces the next bytes of the file into out (up to about 1 MiB).
 * ERR_NOT_FOUND: all was produced. ERR_AGAIN: the image is done; call backup_finish_at() on the
 * owner's thread, then go on. */
enum err backup_next(struct backup *backup, struct buffer *out) MUST_CHECK;
/* Owner's thread: fixes the end point at what is durable now. */
void backup_finish_at(struct backup *backup);
/* Owner's thread. */
void backup_close(struct backup *backup);
/* For progress: entries written so far and expected in all. */
void backup_progress(const struct backup *backup, uint64_t *done_out, uint64_t *total_out);

struct backup_info {
    char cluster_id[33];
    char name[64];
    uint32_t ranges;
    uint64_t end_lsn;
    int64_t wall_ms;
    uint64_t entries;
    uint64_t records;
    uint64_t bytes;
};

/* Reads a whole backup file and checks every checksum. `detail` gets one sentence on
 * ERR_CORRUPT. */
enum err backup_verify(
    const char *file, struct backup_info *info_out, char *detail, size_t detail_size) MUST_CHECK;
/* Restores into `folder`, which must be absent or empty (ERR_EXISTS): builds a temporary folder
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
