#include <lmdb.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "bench/engine.h"

/* LMDB by itself, one tree: what the engine's bottom store could do at best, and what one synced
 * transaction per put costs. This is the second source that includes lmdb.h, on purpose: it measures the
 * library, not our use of it, so it must not go through storage/kv.h. Flags are the ones the bottom store
 * uses. */

enum {
    LOAD_BATCH = 100000,
    RENEW_EVERY =
        256, /* gets on one snapshot: the cost of renewing disappears, pages are not pinned long */
    APPLY_CHUNKS = 64, /* as many as the bottom store has ranges */
};

struct lmdb {
    MDB_env *env;
    MDB_dbi tree;
    const struct bench_options *options;
    char file[4200];
    uint64_t applies;
};

struct lmdb_session {
    struct lmdb *engine;
    MDB_txn *txn;
    MDB_cursor *cursor;
    uint32_t gets;
};

static enum err err_of(int code)
{
    if (code == MDB_SUCCESS) return OK;
    if (code == MDB_NOTFOUND) return ERR_NOT_FOUND;
    if (code == MDB_MAP_FULL) return ERR_FULL;
    fprintf(stderr, "duramen bench: lmdb: %s\n", mdb_strerror(code));
    return code > 0 ? err_from_errno(code) : ERR_IO;
}

static MDB_val val_of(struct bytes bytes)
{
    union {
        const uint8_t *borrowed;
        void *data;
    } at = {.borrowed = bytes.at};
    return (MDB_val){.mv_size = bytes.size, .mv_data = at.data};
}

static enum err lmdb_open(const struct engine_setup *setup, void **engine_out)
{
    struct lmdb *engine = calloc(1, sizeof *engine);
    if (engine == NULL) return ERR_NOMEM;
    engine->options = setup->options;
    snprintf(engine->file, sizeof engine->file, "%s/data.mdb", setup->folder);
    size_t map =
        (size_t)(setup->options->keys * (setup->options->value_size + 512ull) * 4 + (4ull << 30));
    MDB_txn *txn = NULL;
    int code = mdb_env_create(&engine->env);
    if (code == 0) code = mdb_env_set_mapsize(engine->env, map);
    if (code == 0) code = mdb_env_set_maxreaders(engine->env, 4200);
    if (code == 0) code = mdb_env_open(engine->env, setup->folder, MDB_NOTLS | MDB_NORDAHEAD, 0600);
    if (code == 0) code = mdb_txn_begin(engine->env, NULL, 0, &txn);
    if (code == 0) {
        code = mdb_dbi_open(txn, NULL, 0, &engine->tree);
        if (code == 0) {
            code = mdb_txn_commit(txn);
        } else {
            mdb_txn_abort(txn);
        }
    }
    if (code != 0) {
        mdb_env_close(engine->env);
        free(engine);
        return err_of(code);
    }
    *engine_out = engine;
    return OK;
}

static void lmdb_close(void *handle)
{
    struct lmdb *engine = handle;
    mdb_env_close(engine->env);
    free(engine);
}

static void lmdb_describe(void *handle, char *at, size_t size)
{
    (void)handle;
    snprintf(at, size, "%d.%d.%d, one synced transaction per put", MDB_VERSION_MAJOR,
        MDB_VERSION_MINOR, MDB_VERSION_PATCH);
}

/* Runs put for keys number_of(i), from <= i < upto, in one transaction. */
static enum err put_run(struct lmdb *engine, const uint64_t *numbers, uint64_t from, uint64_t upto,
    struct bytes value, unsigned flags)
{
    MDB_txn *txn;
    MDB_cursor *cursor;
    uint8_t key[KEY_SIZE];
    TRY(err_of(mdb_txn_begin(engine->env, NULL, 0, &txn)));
    int code = mdb_cursor_open(txn, engine->tree, &cursor);
    for (uint64_t i = from; i < upto && code == 0; i++) {
        key_write(key, numbers == NULL ? i : numbers[i]);
        MDB_val name = val_of(bytes_of(key, KEY_SIZE));
        MDB_val data = val_of(value);
        code = mdb_cursor_put(cursor, &name, &data, flags);
    }
    if (code != 0) {
        mdb_txn_abort(txn);
        return err_of(code);
    }
    mdb_cursor_close(cursor);
    return err_of(mdb_txn_commit(txn));
}

static enum err lmdb_load(void *handle, uint64_t count, struct bytes value)
{
    struct lmdb *engine = handle;
    mdb_env_set_flags(engine->env, MDB_NOSYNC, 1);
    for (uint64_t i = 0; i < count; i += LOAD_BATCH) {
        uint64_t upto = count - i < LOAD_BATCH ? count : i + LOAD_BATCH;
        TRY(put_run(engine, NULL, i, upto, value, MDB_APPEND));
    }
    mdb_env_set_flags(engine->env, MDB_NOSYNC, 0);
    return err_of(mdb_env_sync(engine->env, 1));
}

static enum err lmdb_put(void *handle, struct bytes key, struct bytes value)
{
    struct lmdb *engine = handle;
    MDB_txn *txn;
    MDB_val name = val_of(key);
    MDB_val data = val_of(value);
    TRY(err_of(mdb_txn_begin(engine->env, NULL, 0, &txn)));
    int code = mdb_put(txn, engine->tree, &name, &data, 0);
    if (code != 0) {
        mdb_txn_abort(txn);
        return err_of(code);
    }
    return err_of(mdb_txn_commit(txn));
}

static void *lmdb_session_open(void *handle)
{
    struct lmdb_session *session = calloc(1, sizeof *session);
    if (session == NULL) return NULL;
    session->engine = handle;
    if (mdb_txn_begin(session->engine->env, NULL, MDB_RDONLY, &session->txn) != 0) {
        free(session);
        return NULL;
    }
    mdb_txn_reset(session->txn);
    return session;
}

static void lmdb_session_close(void *handle)
{
    struct lmdb_session *session = handle;
    mdb_txn_abort(session->txn);
    free(session);
}

static enum err lmdb_get(
    void *handle, struct bytes key, void *at, size_t capacity, size_t *size_out)
{
    struct lmdb_session *session = handle;
    if (session->gets++ % RENEW_EVERY == 0) {
        mdb_txn_reset(session->txn);
        TRY(err_of(mdb_txn_renew(session->txn)));
    }
    MDB_val name = val_of(key);
    MDB_val data;
    TRY(err_of(mdb_get(session->txn, session->engine->tree, &name, &data)));
    size_t size = data.mv_size < capacity ? data.mv_size : capacity;
    if (size > 0) {
        memcpy(at, data.mv_data, size);
    }
    *size_out = data.mv_size;
    return OK;
}

static enum err lmdb_scan(void *handle, uint64_t *entries_out, uint64_t *bytes_out)
{
    struct lmdb_session *session = handle;
    MDB_cursor *cursor;
    mdb_txn_reset(session->txn);
    session->gets = 0;
    TRY(err_of(mdb_txn_renew(session->txn)));
    TRY(err_of(mdb_cursor_open(session->txn, session->engine->tree, &cursor)));
    MDB_val key;
    MDB_val value;
    uint64_t entries = 0;
    uint64_t bytes = 0;
    int code = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
    while (code == 0) {
        entries++;
        bytes += key.mv_size + value.mv_size +
            (value.mv_size == 0 ? 0 : *(const uint8_t *)value.mv_data & 1u);
        code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
    }
    mdb_cursor_close(cursor);
    mdb_txn_reset(session->txn);
    *entries_out = entries;
    *bytes_out = bytes;
    return code == MDB_NOTFOUND ? OK : err_of(code);
}

static int compare_numbers(const void *a, const void *b)
{
    uint64_t one = *(const uint64_t *)a;
    uint64_t two = *(const uint64_t *)b;
    return (one > two) - (one < two);
}

/* The batch is sorted and freed of duplicates before the clock starts, as a memtable would have it, and
 * committed in as many contiguous chunks as the bottom store has ranges, each a synced transaction. */
static enum err lmdb_apply(
    void *handle, uint64_t count, struct bytes value, uint64_t *puts_out, uint64_t *ns_out)
{
    struct lmdb *engine = handle;
    struct clock clock = clock_real();
    struct prng prng;
    uint64_t *numbers = malloc(count * sizeof *numbers);
    if (numbers == NULL) return ERR_NOMEM;
    prng_init(&prng, engine->options->mix.seed + 1000 + engine->applies++);
    for (uint64_t i = 0; i < count; i++)
        numbers[i] = prng_below(&prng, engine->options->keys);
    qsort(numbers, count, sizeof *numbers, compare_numbers);
    uint64_t distinct = 0;
    for (uint64_t i = 0; i < count; i++) {
        if (i == 0 || numbers[i] != numbers[i - 1]) {
            numbers[distinct++] = numbers[i];
        }
    }
    uint64_t start = clock.monotonic_ns(clock.ctx);
    enum err err = OK;
    for (uint64_t i = 0; i < APPLY_CHUNKS && err == OK; i++) {
        err = put_run(engine, numbers, distinct * i / APPLY_CHUNKS,
            distinct * (i + 1) / APPLY_CHUNKS, value, 0);
    }
    *ns_out = clock.monotonic_ns(clock.ctx) - start;
    *puts_out = distinct;
    free(numbers);
    return err;
}

static uint64_t lmdb_file_bytes(void *handle)
{
    struct lmdb *engine = handle;
    struct stat status;
    return stat(engine->file, &status) == 0 ? (uint64_t)status.st_blocks * 512 : 0;
}

const struct engine_driver engine_lmdb = {
    .name = "lmdb",
    .open = lmdb_open,
    .close = lmdb_close,
    .describe = lmdb_describe,
    .load = lmdb_load,
    .session_open = lmdb_session_open,
    .session_close = lmdb_session_close,
    .put = lmdb_put,
    .get = lmdb_get,
    .scan = lmdb_scan,
    .apply = lmdb_apply,
    .file_bytes = lmdb_file_bytes,
};
