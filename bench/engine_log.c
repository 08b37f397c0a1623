#define _GNU_SOURCE
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "bench/engine.h"
#include "storage/effect.h"

/* The log alone, driven by one thread as the server's loop drives it: append, flush, reap. Records are
 * encoded and checksummed, nothing is applied; what is durable is trimmed at once. By default the thread
 * writes itself, as the loop does when nobody else needs it; with a back end named (log:ring-dsync) that
 * back end's way of writing beside the loop is what is measured. */

struct log_engine {
    struct disk disk;
    struct io io;
    struct wal *wal;
    enum log_io mode;
    int wake; /* eventfd: the disk's thread has finished a write */
    lsn_t durable;
    bool alone; /* write in this thread; else as the back end does */
};

static void on_wake(void *ctx)
{
    struct log_engine *engine = ctx;
    eventfd_write(engine->wake, 1);
}

static enum err on_replay(void *ctx, const struct wal_record *record)
{
    (void)ctx;
    (void)record;
    return OK;
}

static void on_durable(void *ctx, lsn_t lsn)
{
    struct log_engine *engine = ctx;
    engine->durable = lsn;
}

static enum err log_engine_open(const struct engine_setup *setup, void **engine_out)
{
    struct log_engine *engine = calloc(1, sizeof *engine);
    if (engine == NULL) return ERR_NOMEM;
    engine->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    engine->io.clock = clock_real();
    engine->io.seed = setup->options->mix.seed;
    engine->alone = setup->log_io == LOG_IO_AUTO;
    enum err err = engine->wake < 0
        ? ERR_IO
        : disk_open(setup->folder, setup->log_io, &engine->io.disk, &engine->mode);
    if (err != OK) {
        free(engine);
        return err;
    }
    engine->io.disk.set_wake(engine->io.disk.ctx, on_wake, engine);
    struct wal_config config = {
        .io = &engine->io,
        .bytes_max = setup->options->log_bytes,
        .background = true,
        .ctx = engine,
        .on_replay = on_replay,
        .on_durable = on_durable,
        .wake = on_wake,
    };
    struct wal_recovery report;
    err = wal_open(&config, &report, &engine->wal);
    if (err != OK) {
        fprintf(stderr, "duramen bench: cannot open the log: %s\n", report.detail);
        disk_close(&engine->io.disk);
        close(engine->wake);
        free(engine);
        return err;
    }
    *engine_out = engine;
    return OK;
}

static void log_engine_close(void *handle)
{
    struct log_engine *engine = handle;
    wal_close(engine->wal);
    disk_close(&engine->io.disk);
    close(engine->wake);
    free(engine);
}

static void log_engine_describe(void *handle, char *at, size_t size)
{
    struct log_engine *engine = handle;
    snprintf(at, size, "%s, %s, every batch synced", DURAMEN_VERSION,
        engine->alone ? "written by its own thread" : log_io_name(engine->mode));
}

static enum err log_engine_submit(
    void *handle, struct bytes key, struct bytes value, uint64_t *token_out)
{
    struct log_engine *engine = handle;
    size_t size = 8 + effect_size(key.size, value.size);
    TRY(wal_admit(engine->wal, size));
    struct effect effect = {.kind = EFFECT_PUT, .range = 1, .key = key};
    uint8_t *at = wal_append(engine->wal, WAL_RECORD_WRITE, effect.range, size, token_out);
    if (at == NULL) return ERR_NOMEM;
    store_u64(at, 0);
    uint8_t *target = effect_encode(at + 8, &effect, value.size);
    if (value.size > 0) {
        memcpy(target, value.at, value.size);
    }
    return OK;
}

static enum err log_engine_wait(void *handle, uint64_t after, uint64_t *done_out)
{
    struct log_engine *engine = handle;
    if (engine->alone) {
        wal_flush_inline(engine->wal);
    } else {
        wal_flush(engine->wal, 0);
    }
    while (engine->durable <= after) {
        TRY(wal_poll(engine->wal));
        if (engine->durable > after) break;
        struct pollfd wait = {.fd = engine->wake, .events = POLLIN};
        eventfd_t count;
        poll(&wait, 1, 100);
        (void)!eventfd_read(engine->wake, &count); /* only resets the counter */
    }
    wal_release(engine->wal, engine->durable);
    wal_trim(engine->wal, engine->durable);
    *done_out = engine->durable;
    return OK;
}

const struct engine_driver engine_log = {
    .name = "log",
    .open = log_engine_open,
    .close = log_engine_close,
    .describe = log_engine_describe,
    .submit = log_engine_submit,
    .wait = log_engine_wait,
};
