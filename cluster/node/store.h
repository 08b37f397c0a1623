#ifndef CLUSTER_NODE_STORE_H
#define CLUSTER_NODE_STORE_H

#include "base/err.h"
#include "storage/engine.h"

/* The engine for C programs that embed it: thread-safe, blocking. Any number of threads call
 * store_put(); their records share one log write (group commit) and each returns when its own is
 * durable. For an event loop there is the submit form. */

struct store;

struct store_config {
    const char *folder;
    size_t memory; /* 0: 512 MiB */
    enum log_io log_io;
    uint32_t ranges; /* 0: 64; fixed at creation */
    uint64_t log_bytes_max;
    bool no_checkpoint; /* for measurements only */
};

enum err store_open(const struct store_config *config, struct store **store_out) MUST_CHECK;
/* Checkpoints and closes. */
void store_close(struct store *store);

/* Durable when it returns OK. ERR_POISONED: outcome unknown, the store must be closed. */
enum err store_put(struct store *store, struct bytes key, struct bytes value) MUST_CHECK;
enum err store_delete(struct store *store, struct bytes key) MUST_CHECK;
/* Copies up to `capacity` bytes; *size_out is the value's size. ERR_NOT_FOUND, ERR_CORRUPT. */
enum err store_get(
    struct store *store, struct bytes key, void *at, size_t capacity, size_t *size_out) MUST_CHECK;
/* Visits keys of all ranges in (range, key) order from the start; each() false stops. */
enum err store_scan(struct store *store,
    bool (*each)(void *ctx, struct bytes key, struct bytes value), void *ctx) MUST_CHECK;

/* Appends without waiting; *lsn_out is durable once store_durable() >= it. ERR_AGAIN: wait first. */
enum err store_submit(
    struct store *store, struct bytes key, struct bytes value, lsn_t *lsn_out) MUST_CHECK;
/* Sends off what was submitted. */
void store_flush(struct store *store);
/* Sends it off and returns when everything up to lsn is durable. If the log is idle the write is done in
 * this thread, other threads waiting meanwhile: for a loop that is the store's only user. */
enum err store_commit(struct store *store, lsn_t lsn) MUST_CHECK;
/* Waits until more than `after` is durable; returns what is durable now. ERR_POISONED via *err_out. */
lsn_t store_wait(struct store *store, lsn_t after, enum err *err_out);
lsn_t store_durable(struct store *store);
/* Brings everything into the bottom store; blocks. */
enum err store_checkpoint(struct store *store) MUST_CHECK;
void store_stats(struct store *store, struct engine_stats *stats_out);

#endif
