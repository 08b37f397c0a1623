#ifndef STORAGE_FOLDER_H
#define STORAGE_FOLDER_H

#include "base/err.h"
#include "base/io.h"

/* The data folder of a node:
 *   identity   text: format version, cluster id, node id, name, number of ranges, CRC; written once by rename
 *   lock       flock()ed while a node runs
 *   wal/       log slots
 *   db/        the bottom store (LMDB)
 * mode 0700, files 0600. */

enum { FOLDER_FORMAT = 1 };

struct folder_identity {
    uint32_t format;
    uint8_t cluster_id[16];
    uint8_t node_id[16];
    char name[64];
    uint32_t ranges;
};

struct folder {
    char path[4000];
    char wal[4096];
    char db[4096];
    int lock_fd;
    struct folder_identity identity;
    bool created;
};

/* Opens (creating if absent or empty, unless `existing`) and locks. On failure *detail is one
 * sentence that says what to do: ERR_BUSY (another process), ERR_MISMATCH (foreign or newer),
 * ERR_PERMISSION, ERR_CORRUPT, ERR_NOT_FOUND. `wanted` gives name ("" = make one up) and ranges for creation. */
enum err folder_open(const char *path, bool existing, const struct folder_identity *wanted,
    struct folder *folder_out, char *detail, size_t detail_size) MUST_CHECK;
void folder_close(struct folder *folder);
/* Writes an identity file into an empty folder (restore). */
enum err folder_write_identity(const char *path, const struct folder_identity *identity) MUST_CHECK;

#endif
