#ifndef WAL_DISK_FILES_H
#define WAL_DISK_FILES_H

#include <stdatomic.h>

#include "base/io.h"
#include "wal/wal.h"

/* The part of a disk on a real folder that both back ends share: all blocking calls. It is the first
 * member of their contexts, so that its functions take either. */
struct disk_files {
    int folder;
    bool direct; /* DISK_DIRECT means O_DIRECT */
    atomic_bool sync_by_write; /* RWF_DSYNC works; else fdatasync after the write */
};

/* Creates the folder (mode 0700) if it is absent, and opens it. */
enum err disk_files_init(struct disk_files *files, const char *folder, bool direct) MUST_CHECK;
void disk_files_deinit(struct disk_files *files);
/* Fills in the blocking calls, write_durable included; ctx stays the caller's to set. */
void disk_files_table(struct disk *disk);
/* The durable write itself: any thread. */
enum err disk_files_write(struct disk_files *files, disk_file file, uint64_t offset, const void *at,
    size_t size) MUST_CHECK;
/* Makes a file, writes a block durably through submit() and poll(), reads it back and removes it. */
enum err disk_probe(const struct disk *disk) MUST_CHECK;

#endif
