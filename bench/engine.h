#ifndef BENCH_ENGINE_H
#define BENCH_ENGINE_H

#include "bench/bench_internal.h"

/* A storage engine in this process, as the bench drives it. Functions that an engine cannot offer are
 * NULL. Everything but open, close, load, settle and apply may be called from any thread unless it is
 * said otherwise. */

struct engine_setup {
    const struct bench_options *options;
    const char *folder; /* empty, its own */
    enum log_io log_io;
    bool checkpoint; /* while measuring */
};

struct engine_driver {
    const char *name;

    enum err (*open)(const struct engine_setup *setup, void **engine_out);
    void (*close)(void *engine);
    /* Version and what a sync is, for the header. */
    void (*describe)(void *engine, char *at, size_t size);

    /* Writes keys 0 .. count-1 in order as fast as it can, durable at the end. */
    enum err (*load)(void *engine, uint64_t count, struct bytes value);
    /* Finishes background work, so that what is measured next is not disturbed by the load. */
    enum err (*settle)(void *engine);

    /* One caller's state (a read transaction), for get. */
    void *(*session_open)(void *engine);
    void (*session_close)(void *session);
    /* Durable when it returns. */
    enum err (*put)(void *engine, struct bytes key, struct bytes value);
    enum err (*get)(void *session, struct bytes key, void *at, size_t capacity, size_t *size_out);
    /* Walks everything in the engine's key order. */
    enum err (*scan)(void *session, uint64_t *entries_out, uint64_t *bytes_out);

    /* One thread: submits without waiting; *token_out rises. ERR_AGAIN: wait first. */
    enum err (*submit)(void *engine, struct bytes key, struct bytes value, uint64_t *token_out);
    /* Sends off what was submitted and waits until more than `after` is durable. */
    enum err (*wait)(void *engine, uint64_t after, uint64_t *done_out);

    /* Brings `count` random puts into the bottom store; what it took without the preparation. */
    enum err (*apply)(
        void *engine, uint64_t count, struct bytes value, uint64_t *puts_out, uint64_t *ns_out);
    uint64_t (*file_bytes)(void *engine);
};

/* Everything it took the driver to describe itself is in its source. */
extern const struct engine_driver engine_duramen;
extern const struct engine_driver engine_lmdb;
extern const struct engine_driver engine_rocksdb;
extern const struct engine_driver engine_log;
extern const struct engine_driver engine_disk;

#endif
