#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "bench/engine.h"
#include "storage/effect.h"
#include "wal/record.h"

/* The device's own limit for durable writes, as a log could reach it at best: blocks of a zero-filled file
 * are overwritten in order with O_DIRECT and RWF_DSYNC, one write at a time, each as large as the records
 * in flight would make it. Nothing is encoded, checked or handed between threads. */

#define FILE_BYTES ((uint64_t)256 << 20)
enum { FILL_BYTES = 1 << 20 };

struct disk_limit {
    int fd;
    uint64_t offset;
    uint64_t submitted;
    uint64_t done;
    size_t pending; /* bytes of the records submitted since the last write */
    uint64_t writes;
    size_t write_bytes; /* of the last write */
    uint8_t *block;
    size_t block_size;
    bool direct;
};

static enum err disk_limit_fill(struct disk_limit *engine)
{
    for (uint64_t at = 0; at < FILE_BYTES; at += FILL_BYTES) {
        if (pwrite(engine->fd, engine->block, FILL_BYTES, (off_t)at) != FILL_BYTES)
            return err_from_errno(errno);
    }
    return fsync(engine->fd) == 0 ? OK : err_from_errno(errno);
}

static enum err disk_limit_open(const struct engine_setup *setup, void **engine_out)
{
    char file[4200];
    struct disk_limit *engine = calloc(1, sizeof *engine);
    if (engine == NULL) return ERR_NOMEM;
    snprintf(file, sizeof file, "%s/blocks", setup->folder);
    uint32_t in_flight =
        setup->options->in_flight > 0 ? setup->options->in_flight : setup->options->threads;
    size_t record = record_span(8 + effect_size(KEY_SIZE, setup->options->value_size));
    engine->block_size = round_up(BATCH_HEADER + record * in_flight, DISK_BLOCK);
    if (engine->block_size < FILL_BYTES) {
        engine->block_size = FILL_BYTES;
    }
    engine->direct = true;
    engine->fd = open(file, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_DIRECT, 0600);
    if (engine->fd < 0 && errno == EINVAL) {
        engine->direct = false; /* a file system without it, such as tmpfs */
        engine->fd = open(file, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    }
    enum err err = engine->fd < 0 ? err_from_errno(errno) : OK;
    if (err == OK && engine->block_size > FILE_BYTES) {
        err = ERR_TOO_LARGE;
    }
    void *block = NULL;
    if (err == OK && posix_memalign(&block, DISK_BLOCK, engine->block_size) != 0) {
        err = ERR_NOMEM;
    }
    if (err == OK) {
        engine->block = block;
        memset(engine->block, 0, engine->block_size);
        err = disk_limit_fill(engine);
    }
    if (err != OK) {
        if (engine->fd >= 0) {
            close(engine->fd);
        }
        free(engine->block);
        free(engine);
        return err;
    }
    memset(engine->block, 0x5a, engine->block_size);
    *engine_out = engine;
    return OK;
}

static void disk_limit_close(void *handle)
{
    struct disk_limit *engine = handle;
    close(engine->fd);
    free(engine->block);
    free(engine);
}

static void disk_limit_describe(void *handle, char *at, size_t size)
{
    struct disk_limit *engine = handle;
    snprintf(at, size, "zero-filled file, overwritten in order%s, RWF_DSYNC, one write at a time",
        engine->direct ? ", O_DIRECT" : " (no O_DIRECT here)");
}

static enum err disk_limit_submit(
    void *handle, struct bytes key, struct bytes value, uint64_t *token_out)
{
    struct disk_limit *engine = handle;
    engine->pending += record_span(8 + effect_size(key.size, value.size));
    *token_out = ++engine->submitted;
    return OK;
}

static enum err disk_limit_wait(void *handle, uint64_t after, uint64_t *done_out)
{
    struct disk_limit *engine = handle;
    (void)after;
    size_t size = round_up(BATCH_HEADER + engine->pending, DISK_BLOCK);
    if (engine->offset + size > FILE_BYTES) {
        engine->offset = 0;
    }
    struct iovec vector = {.iov_base = engine->block, .iov_len = size};
    if (pwritev2(engine->fd, &vector, 1, (off_t)engine->offset, RWF_DSYNC) != (ssize_t)size)
        return err_from_errno(errno);
    engine->offset += size;
    engine->pending = 0;
    engine->done = engine->submitted;
    engine->writes++;
    engine->write_bytes = size;
    *done_out = engine->done;
    return OK;
}

const struct engine_driver engine_disk = {
    .name = "disk",
    .open = disk_limit_open,
    .close = disk_limit_close,
    .describe = disk_limit_describe,
    .submit = disk_limit_submit,
    .wait = disk_limit_wait,
};
