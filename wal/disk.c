#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>

#include "base/check.h"
#include "wal/disk_files.h"
#include "wal/wal.h"

/* Choosing how the log is written. The rule and the measurements behind it are in
 * docs/decisions/0003-log-io.md: io_uring only where the device takes FUA writes, and only after a
 * real write and sync went through it. */

const char *log_io_name(enum log_io mode)
{
    switch (mode) {
    case LOG_IO_AUTO:
        return "auto";
    case LOG_IO_DSYNC:
        return "dsync";
    case LOG_IO_RING_DSYNC:
        return "ring-dsync";
    case LOG_IO_RING_LINK:
        return "ring-link";
    case LOG_IO_POSIX:
        return "posix";
    }
    UNREACHABLE();
}

/* Whether the device under the folder takes forced-unit-access writes, so that a durable write needs
 * no flush of its whole cache behind it. Unknown counts as no. */
static bool device_has_fua(const char *folder)
{
    struct stat info;
    if (stat(folder, &info) != 0) return false;
    /* A partition has no queue of its own; its parent does. */
    static const char *const places[] = {"queue/fua", "../queue/fua"};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        char path[96];
        (void)snprintf(path, sizeof path, "/sys/dev/block/%u:%u/%s", major(info.st_dev),
            minor(info.st_dev), places[i]);
        FILE *file = fopen(path, "re");
        if (file == NULL) continue;
        int first = fgetc(file);
        (void)fclose(file);
        return first == '1';
    }
    return false;
}

struct probe {
    bool done;
    enum err result;
};

static void probe_done(struct disk_op *op, enum err result)
{
    struct probe *probe = op->ctx;
    probe->result = result;
    probe->done = true;
}

static enum err probe_write(const struct disk *disk, disk_file file, uint8_t *block, uint8_t *back)
{
    TRY(disk->fill(disk->ctx, file, DISK_BLOCK));
    memset(block, 0xd5, DISK_BLOCK);
    struct probe probe = {0};
    struct disk_op op = {
        .file = file, .at = block, .size = DISK_BLOCK, .done = probe_done, .ctx = &probe};
    disk->submit(disk->ctx, &op);
    /* A write that hangs here would hang the log: there is nothing better to do than to wait. */
    while (!probe.done) {
        if (disk->poll(disk->ctx) == 0) {
            nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
        }
    }
    TRY(probe.result);
    TRY(disk->read(disk->ctx, file, 0, back, DISK_BLOCK));
    return memcmp(block, back, DISK_BLOCK) == 0 ? OK : ERR_IO;
}

enum err disk_probe(const struct disk *disk)
{
    uint8_t *memory = aligned_alloc(DISK_BLOCK, 2 * (size_t)DISK_BLOCK);
    if (memory == NULL) return ERR_NOMEM;
    disk_file file;
    enum err err = disk->open(disk->ctx, "probe.tmp", DISK_CREATE | DISK_DIRECT, &file);
    if (err == OK) {
        err = probe_write(disk, file, memory, memory + DISK_BLOCK);
        disk->close(disk->ctx, file);
        (void)!disk->remove(disk->ctx, "probe.tmp"); /* the next probe takes the file as it is */
    }
    free(memory);
    return err;
}

enum err disk_open(
    const char *folder, enum log_io wanted, struct disk *disk_out, enum log_io *mode_out)
{
    *mode_out = wanted;
    if (wanted == LOG_IO_RING_DSYNC || wanted == LOG_IO_RING_LINK)
        return disk_uring_open(folder, wanted, disk_out);
    if (wanted == LOG_IO_AUTO) {
        /* Opening makes the folder, which the question about its device needs. */
        *mode_out = LOG_IO_DSYNC;
        TRY(disk_posix_open(folder, LOG_IO_DSYNC, disk_out));
        struct disk ring;
        if (device_has_fua(folder) && disk_uring_open(folder, LOG_IO_RING_DSYNC, &ring) == OK) {
            disk_posix_close(disk_out);
            *disk_out = ring;
            *mode_out = LOG_IO_RING_DSYNC;
            return OK;
        }
    } else {
        TRY(disk_posix_open(folder, wanted, disk_out));
    }
    enum err err = disk_probe(disk_out);
    /* A node must be able to start on a full disk, if only to be emptied. */
    if (err == OK || err == ERR_FULL) return OK;
    disk_posix_close(disk_out);
    return err;
}

void disk_follow(struct disk *disk)
{
    if (strcmp(disk->name, "posix") == 0) disk_posix_follow(disk);
}

void disk_close(struct disk *disk)
{
    if (disk->ctx == NULL) return;
    if (strcmp(disk->name, "uring") == 0) {
        disk_uring_close(disk);
    } else {
        disk_posix_close(disk);
    }
}
