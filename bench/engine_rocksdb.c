#include <dlfcn.h>
#include <rocksdb/c.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "bench/engine.h"

/* RocksDB through its C interface, opened at run time: the one program that also serves must neither link
 * nor load a library that only a comparison needs. Set up as a careful user would for small values on fast
 * storage: no compression, Bloom filters of 10 bits, a block cache of --memory, every put synced. */

#define ROCKSDB_CALLS(X)                                                                           \
    X(options_create)                                                                              \
    X(options_destroy)                                                                             \
    X(options_set_create_if_missing)                                                               \
    X(options_set_compression)                                                                     \
    X(options_increase_parallelism)                                                                \
    X(options_set_block_based_table_factory)                                                       \
    X(block_based_options_create)                                                                  \
    X(block_based_options_destroy)                                                                 \
    X(block_based_options_set_filter_policy)                                                       \
    X(block_based_options_set_block_cache)                                                         \
    X(filterpolicy_create_bloom_full)                                                              \
    X(cache_create_lru)                                                                            \
    X(cache_destroy)                                                                               \
    X(open)                                                                                        \
    X(close)                                                                                       \
    X(put)                                                                                         \
    X(get_pinned)                                                                                  \
    X(pinnableslice_value)                                                                         \
    X(pinnableslice_destroy)                                                                       \
    X(compact_range)                                                                               \
    X(flush)                                                                                       \
    X(flushoptions_create)                                                                         \
    X(flushoptions_destroy)                                                                        \
    X(flushoptions_set_wait)                                                                       \
    X(writeoptions_create)                                                                         \
    X(writeoptions_destroy)                                                                        \
    X(writeoptions_set_sync)                                                                       \
    X(readoptions_create)                                                                          \
    X(readoptions_destroy)                                                                         \
    X(create_iterator)                                                                             \
    X(iter_seek_to_first)                                                                          \
    X(iter_valid)                                                                                  \
    X(iter_next)                                                                                   \
    X(iter_key)                                                                                    \
    X(iter_value)                                                                                  \
    X(iter_destroy)                                                                                \
    X(property_int)                                                                                \
    X(free)

struct rocksdb_calls {
#define DECLARE(name) __typeof__(rocksdb_##name) *name;
    ROCKSDB_CALLS(DECLARE)
#undef DECLARE
};

struct rocks {
    void *library;
    struct rocksdb_calls calls;
    rocksdb_t *db;
    rocksdb_options_t *options;
    rocksdb_block_based_table_options_t *table;
    rocksdb_cache_t *cache;
    rocksdb_writeoptions_t *synced;
    rocksdb_writeoptions_t *unsynced;
    rocksdb_readoptions_t *reading;
    char library_name[64];
};

static enum err complain(struct rocks *engine, char *error)
{
    if (error == NULL) return OK;
    fprintf(stderr, "duramen bench: rocksdb: %s\n", error);
    engine->calls.free(error);
    return ERR_IO;
}

static bool open_library(struct rocks *engine)
{
    static const char *const names[] = {"librocksdb.so", "librocksdb.so.7.8", "librocksdb.so.7",
        "librocksdb.so.8", "librocksdb.so.9", "librocksdb.so.10"};
    for (size_t i = 0; i < sizeof names / sizeof names[0] && engine->library == NULL; i++) {
        engine->library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        snprintf(engine->library_name, sizeof engine->library_name, "%s", names[i]);
    }
    if (engine->library == NULL) {
        fprintf(stderr,
            "duramen bench: librocksdb is not installed (%s); on Debian: librocksdb-dev\n",
            dlerror());
        return false;
    }
#define FIND(name)                                                                                 \
    *(void **)&engine->calls.name = dlsym(engine->library, "rocksdb_" #name);                      \
    if (engine->calls.name == NULL) {                                                              \
        fprintf(stderr, "duramen bench: this librocksdb has no rocksdb_" #name "\n");              \
        return false;                                                                              \
    }
    ROCKSDB_CALLS(FIND)
#undef FIND
    return true;
}

static void rocks_close(void *handle)
{
    struct rocks *engine = handle;
    struct rocksdb_calls *calls = &engine->calls;
    if (engine->db != NULL) {
        calls->close(engine->db);
    }
    if (engine->options != NULL) {
        calls->readoptions_destroy(engine->reading);
        calls->writeoptions_destroy(engine->synced);
        calls->writeoptions_destroy(engine->unsynced);
        calls->options_destroy(engine->options);
        calls->block_based_options_destroy(engine->table);
        calls->cache_destroy(engine->cache);
    }
    /* the library keeps threads of its own; unloading it under them would crash */
    free(engine);
}

static enum err rocks_open(const struct engine_setup *setup, void **engine_out)
{
    struct rocks *engine = calloc(1, sizeof *engine);
    if (engine == NULL) return ERR_NOMEM;
    if (!open_library(engine)) {
        free(engine);
        return ERR_UNSUPPORTED;
    }
    struct rocksdb_calls *calls = &engine->calls;
    uint64_t cache_bytes = setup->options->memory == 0 ? 512u << 20 : setup->options->memory;
    engine->options = calls->options_create();
    engine->table = calls->block_based_options_create();
    engine->cache = calls->cache_create_lru((size_t)cache_bytes);
    calls->block_based_options_set_filter_policy(
        engine->table, calls->filterpolicy_create_bloom_full(10));
    calls->block_based_options_set_block_cache(engine->table, engine->cache);
    calls->options_set_block_based_table_factory(engine->options, engine->table);
    calls->options_set_create_if_missing(engine->options, 1);
    calls->options_set_compression(engine->options, rocksdb_no_compression);
    calls->options_increase_parallelism(engine->options, 2);
    engine->synced = calls->writeoptions_create();
    calls->writeoptions_set_sync(engine->synced, 1);
    engine->unsynced = calls->writeoptions_create();
    engine->reading = calls->readoptions_create();
    char *error = NULL;
    engine->db = calls->open(engine->options, setup->folder, &error);
    enum err err = complain(engine, error);
    if (err != OK) {
        engine->db = NULL;
        rocks_close(engine);
        return err;
    }
    *engine_out = engine;
    return OK;
}

static void rocks_describe(void *handle, char *at, size_t size)
{
    struct rocks *engine = handle;
    snprintf(at, size, "%s, sync=1, no compression, Bloom 10", engine->library_name);
}

static enum err rocks_write(
    struct rocks *engine, rocksdb_writeoptions_t *how, struct bytes key, struct bytes value)
{
    char *error = NULL;
    engine->calls.put(engine->db, how, (const char *)key.at, key.size, (const char *)value.at,
        value.size, &error);
    return complain(engine, error);
}

static enum err rocks_put(void *handle, struct bytes key, struct bytes value)
{
    struct rocks *engine = handle;
    return rocks_write(engine, engine->synced, key, value);
}

static enum err rocks_settle(void *handle)
{
    struct rocks *engine = handle;
    char *error = NULL;
    rocksdb_flushoptions_t *how = engine->calls.flushoptions_create();
    engine->calls.flushoptions_set_wait(how, 1);
    engine->calls.flush(engine->db, how, &error);
    engine->calls.flushoptions_destroy(how);
    engine->calls.compact_range(engine->db, NULL, 0, NULL, 0);
    return complain(engine, error);
}

static enum err rocks_load(void *handle, uint64_t count, struct bytes value)
{
    struct rocks *engine = handle;
    uint8_t key[KEY_SIZE];
    for (uint64_t i = 0; i < count; i++) {
        key_write(key, i);
        TRY(rocks_write(engine, engine->unsynced, bytes_of(key, KEY_SIZE), value));
    }
    return OK;
}

static void *rocks_session_open(void *handle)
{
    return handle;
}

static void rocks_session_close(void *session)
{
    (void)session;
}

static enum err rocks_get(
    void *session, struct bytes key, void *at, size_t capacity, size_t *size_out)
{
    struct rocks *engine = session;
    char *error = NULL;
    rocksdb_pinnableslice_t *slice = engine->calls.get_pinned(
        engine->db, engine->reading, (const char *)key.at, key.size, &error);
    TRY(complain(engine, error));
    if (slice == NULL) return ERR_NOT_FOUND;
    size_t size;
    const char *value = engine->calls.pinnableslice_value(slice, &size);
    if (size > 0) {
        memcpy(at, value, size < capacity ? size : capacity);
    }
    *size_out = size;
    engine->calls.pinnableslice_destroy(slice);
    return OK;
}

static enum err rocks_scan(void *session, uint64_t *entries_out, uint64_t *bytes_out)
{
    struct rocks *engine = session;
    struct rocksdb_calls *calls = &engine->calls;
    uint64_t entries = 0;
    uint64_t bytes = 0;
    rocksdb_iterator_t *iterator = calls->create_iterator(engine->db, engine->reading);
    for (calls->iter_seek_to_first(iterator); calls->iter_valid(iterator);
         calls->iter_next(iterator)) {
        size_t key_size;
        size_t value_size;
        (void)calls->iter_key(iterator, &key_size);
        const char *value = calls->iter_value(iterator, &value_size);
        entries++;
        bytes += key_size + value_size + (value_size == 0 ? 0 : (uint8_t)value[0] & 1u);
    }
    calls->iter_destroy(iterator);
    *entries_out = entries;
    *bytes_out = bytes;
    return OK;
}

static uint64_t rocks_file_bytes(void *handle)
{
    struct rocks *engine = handle;
    uint64_t bytes = 0;
    return engine->calls.property_int(engine->db, "rocksdb.total-sst-files-size", &bytes) == 0
        ? bytes
        : 0;
}

const struct engine_driver engine_rocksdb = {
    .name = "rocksdb",
    .open = rocks_open,
    .close = rocks_close,
    .describe = rocks_describe,
    .load = rocks_load,
    .settle = rocks_settle,
    .session_open = rocks_session_open,
    .session_close = rocks_session_close,
    .put = rocks_put,
    .get = rocks_get,
    .scan = rocks_scan,
    .file_bytes = rocks_file_bytes,
};
