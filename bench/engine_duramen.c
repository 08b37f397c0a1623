#define _GNU_SOURCE
#include <stdlib.h>
#include <time.h>

#include "bench/engine.h"
#include "cluster/node/store.h"

/* Our own engine through its embedding interface: what a C program that links it would get. */

struct duramen {
    struct store *store;
    const struct bench_options *options;
    enum log_io log_io;
    bool checkpoint;
};

enum { LOAD_WINDOW = 8192 };

static void pause_briefly(void)
{
    struct timespec time = {.tv_nsec = 200000};
    nanosleep(&time, NULL);
}

static enum err duramen_open(const struct engine_setup *setup, void **engine_out)
{
    struct duramen *engine = calloc(1, sizeof *engine);
    if (engine == NULL) return ERR_NOMEM;
    engine->options = setup->options;
    engine->log_io = setup->log_io;
    engine->checkpoint = setup->checkpoint;
    struct store_config config = {
        .folder = setup->folder,
        .memory = setup->options->memory,
        .log_io = setup->log_io,
        .ranges = setup->options->ranges,
        .log_bytes_max = setup->options->log_bytes,
        .no_checkpoint = !setup->checkpoint,
    };
    enum err err = store_open(&config, &engine->store);
    if (err != OK) {
        free(engine);
        return err;
    }
    *engine_out = engine;
    return OK;
}

static void duramen_close(void *handle)
{
    struct duramen *engine = handle;
    store_close(engine->store);
    free(engine);
}

static void duramen_describe(void *handle, char *at, size_t size)
{
    struct duramen *engine = handle;
    snprintf(at, size, "%s, every put synced, log %s, checkpoints %s", DURAMEN_VERSION,
        log_io_name(engine->log_io), engine->checkpoint ? "on" : "off");
}

static enum err duramen_submit(
    void *handle, struct bytes key, struct bytes value, uint64_t *token_out)
{
    struct duramen *engine = handle;
    return store_submit(engine->store, key, value, token_out);
}

static enum err duramen_wait(void *handle, uint64_t after, uint64_t *done_out)
{
    struct duramen *engine = handle;
    enum err err = store_commit(engine->store, after + 1);
    *done_out = store_durable(engine->store);
    return err;
}

/* Submits, waiting out a full memtable; *done follows what is durable. */
static enum err submit_patiently(
    struct duramen *engine, struct bytes key, struct bytes value, uint64_t *last, uint64_t *done)
{
    for (;;) {
        enum err err = store_submit(engine->store, key, value, last);
        if (err != ERR_AGAIN && err != ERR_FULL) return err;
        if (*last > *done) {
            TRY(duramen_wait(engine, *done, done));
        } else {
            pause_briefly();
        }
    }
}

static enum err wait_for_all(struct duramen *engine, uint64_t last, uint64_t *done)
{
    while (*done < last)
        TRY(duramen_wait(engine, *done, done));
    return OK;
}

static enum err duramen_load(void *handle, uint64_t count, struct bytes value)
{
    struct duramen *engine = handle;
    uint8_t key[KEY_SIZE];
    uint64_t done = store_durable(engine->store);
    uint64_t last = done;
    for (uint64_t i = 0; i < count; i++) {
        key_write(key, i);
        TRY(submit_patiently(engine, bytes_of(key, KEY_SIZE), value, &last, &done));
        if (i % (LOAD_WINDOW / 2) == 0) {
            store_flush(engine->store);
        }
        if (last - done >= LOAD_WINDOW) {
            TRY(duramen_wait(engine, done, &done));
        }
    }
    return wait_for_all(engine, last, &done);
}

static enum err duramen_settle(void *handle)
{
    struct duramen *engine = handle;
    return store_checkpoint(engine->store);
}

static void *duramen_session_open(void *handle)
{
    return handle;
}

static void duramen_session_close(void *session)
{
    (void)session;
}

static enum err duramen_put(void *handle, struct bytes key, struct bytes value)
{
    struct duramen *engine = handle;
    return store_put(engine->store, key, value);
}

static enum err duramen_get(
    void *session, struct bytes key, void *at, size_t capacity, size_t *size_out)
{
    struct duramen *engine = session;
    return store_get(engine->store, key, at, capacity, size_out);
}

struct walk {
    uint64_t entries;
    uint64_t bytes;
};

static bool walk_entry(void *ctx, struct bytes key, struct bytes value)
{
    struct walk *walk = ctx;
    walk->entries++;
    walk->bytes += key.size + value.size + (value.size == 0 ? 0 : value.at[0] & 1u);
    return true;
}

static enum err duramen_scan(void *session, uint64_t *entries_out, uint64_t *bytes_out)
{
    struct duramen *engine = session;
    struct walk walk = {0};
    enum err err = store_scan(engine->store, walk_entry, &walk);
    *entries_out = walk.entries;
    *bytes_out = walk.bytes;
    return err;
}

/* The batch waits in the memtable (there are no checkpoints meanwhile when the workload is apply), and
 * is then brought down by one checkpoint, which is what is timed. */
static enum err duramen_apply(
    void *handle, uint64_t count, struct bytes value, uint64_t *puts_out, uint64_t *ns_out)
{
    struct duramen *engine = handle;
    struct clock clock = clock_real();
    struct prng prng;
    struct engine_stats stats;
    uint8_t key[KEY_SIZE];
    uint64_t done = store_durable(engine->store);
    uint64_t last = done;
    store_stats(engine->store, &stats);
    prng_init(&prng, engine->options->mix.seed + stats.applied);
    for (uint64_t i = 0; i < count; i++) {
        key_write(key, prng_below(&prng, engine->options->keys));
        TRY(submit_patiently(engine, bytes_of(key, KEY_SIZE), value, &last, &done));
        if (last - done >= LOAD_WINDOW) {
            TRY(duramen_wait(engine, done, &done));
        }
    }
    TRY(wait_for_all(engine, last, &done));
    store_stats(engine->store, &stats);
    uint64_t puts_before = stats.checkpoint_puts;
    uint64_t start = clock.monotonic_ns(clock.ctx);
    TRY(store_checkpoint(engine->store));
    *ns_out = clock.monotonic_ns(clock.ctx) - start;
    store_stats(engine->store, &stats);
    *puts_out = stats.checkpoint_puts - puts_before;
    return OK;
}

static uint64_t duramen_file_bytes(void *handle)
{
    struct duramen *engine = handle;
    struct engine_stats stats;
    store_stats(engine->store, &stats);
    return stats.kv.file_bytes;
}

const struct engine_driver engine_duramen = {
    .name = "duramen",
    .open = duramen_open,
    .close = duramen_close,
    .describe = duramen_describe,
    .load = duramen_load,
    .settle = duramen_settle,
    .session_open = duramen_session_open,
    .session_close = duramen_session_close,
    .put = duramen_put,
    .get = duramen_get,
    .scan = duramen_scan,
    .submit = duramen_submit,
    .wait = duramen_wait,
    .apply = duramen_apply,
    .file_bytes = duramen_file_bytes,
};
