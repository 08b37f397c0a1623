#ifndef STORAGE_FOLDER_H
#define STORAGE_FOLDER_H

#include "base/err.h"
#include "base/io.h"

/* The data folder of a node (docs/formats/folder.md):
 *   identity   text: format version, cluster id, node id, name, number of ranges, number in the cluster, CRC;
 *              replaced as a whole, by rename
 *   incarnation  text: how many times a node was started on this folder, CRC; replaced likewise
 *   lock       flock()ed while a node runs
 *   wal/       log slots
 *   db/        the bottom store (LMDB)
 * mode 0700, files 0600. */

enum { FOLDER_FORMAT = 2 };

struct folder_identity {
    uint32_t format;
    uint8_t cluster_id[16];
    uint8_t node_id[16];
    char name[64]; /* letters, digits, '_', '.', '-' */
    uint32_t ranges;
    uint16_t node_number; /* in the cluster; 0: none yet */
    uint8_t restored_from
        [16]; /* cluster a backup was taken of, if this folder came from one; else zeros */
    uint64_t restored_lsn; /* and the point of it */
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
 * ERR_PERMISSION, ERR_CORRUPT, ERR_NOT_FOUND. `wanted` gives name ("" = make one up) and ranges for creation;
 * ids of zeros are made up, too. */
enum err folder_open(const char *path, bool existing, const struct folder_identity *wanted,
    struct folder *folder_out, char *detail, size_t detail_size) MUST_CHECK;
void folder_close(struct folder *folder);
/* Writes an identity file into an empty folder (restore), durably, and makes wal/ and db/ in it. */
enum err folder_write_identity(const char *path, const struct folder_identity *identity) MUST_CHECK;
/* Replaces the identity of an open folder, durably and at once: what becomes known when a node joins. */
enum err folder_rewrite_identity(
    struct folder *folder, const struct folder_identity *identity) MUST_CHECK;
/* Counts one more start, durably, and gives its number: 1 the first time. ERR_CORRUPT: the count is damaged. */
enum err folder_next_incarnation(struct folder *folder, uint64_t *incarnation_out) MUST_CHECK;
/* Reads the identity of a folder that may not be written to (verify). ERR_NOT_FOUND: no such file. */
enum err folder_read_identity(const char *path, struct folder_identity *identity_out, char *detail,
    size_t detail_size) MUST_CHECK;
/* 128 random bits from the system. */
enum err folder_random_id(uint8_t id_out[16]) MUST_CHECK;

/* The identity file's text, for its tests: encode returns the size (at most FOLDER_IDENTITY_MAX). */
enum { FOLDER_IDENTITY_MAX = 512 };
size_t folder_identity_encode(char *at, const struct folder_identity *identity);
/* ERR_CORRUPT, or ERR_MISMATCH: whole, but of another format, which identity_out->format says. */
enum err folder_identity_decode(struct bytes text, struct folder_identity *identity_out) MUST_CHECK;
bool folder_name_valid(const char *name);

#endif
