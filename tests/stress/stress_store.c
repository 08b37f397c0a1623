#define _GNU_SOURCE
#include <ftw.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/check.h"
#include "cluster/node/store.h"

/* Threads write, read, delete and walk one store while its checkpoints run; then it is opened again. Every
 * thread owns its keys and knows what must be in them. Under ThreadSanitizer this looks for races between the
 * threads of log, checkpoint and callers; anywhere it looks for lost or foreign values. */

enum { THREADS = 4, ROUNDS = 12, KEYS = 120, VALUE_SIZE = 2000, CHECKPOINT_EVERY = 3 };

struct writer {
    struct store *store;
    unsigned number;
    pthread_t thread;
};

static void must(enum err err, const char *what)
{
    if (err == OK) return;
    fprintf(stderr, "%s: %s\n", what, err_text(err));
    exit(1);
}

static struct bytes key_of(char *text, size_t size, unsigned writer, unsigned key)
{
    snprintf(text, size, "writer %u key %u", writer, key);
    return bytes_of_text(text);
}

/* A value says whose it is and in which round it was written, from its first byte to its last. */
static void fill(char value[VALUE_SIZE], unsigned writer, unsigned key, unsigned round)
{
    memset(value, (int)('a' + (writer + key + round) % 26), VALUE_SIZE);
    snprintf(value, 64, "%u.%u.%u", writer, key, round);
}

static bool is_gone(unsigned key, unsigned round)
{
    return (key + round) % 10 == 0;
}

static void check_key(struct store *store, unsigned writer, unsigned key, unsigned round)
{
    char text[64], found[VALUE_SIZE], wanted[VALUE_SIZE];
    size_t size = 0;
    enum err err =
        store_get(store, key_of(text, sizeof text, writer, key), found, sizeof found, &size);
    if (is_gone(key, round)) {
        ASSERT(err == ERR_NOT_FOUND);
        return;
    }
    must(err, text);
    fill(wanted, writer, key, round);
    ASSERT(size == VALUE_SIZE && memcmp(found, wanted, VALUE_SIZE) == 0);
}

static void *write_keys(void *ctx)
{
    struct writer *writer = ctx;
    for (unsigned round = 0; round < ROUNDS; round++) {
        for (unsigned key = 0; key < KEYS; key++) {
            char text[64], value[VALUE_SIZE];
            struct bytes name = key_of(text, sizeof text, writer->number, key);
            fill(value, writer->number, key, round);
            enum err err = is_gone(key, round)
                ? store_delete(writer->store, name)
                : store_put(writer->store, name, bytes_of(value, VALUE_SIZE));
            must(err, "write");
            check_key(writer->store, writer->number, key, round);
        }
        if (round % CHECKPOINT_EVERY != writer->number % CHECKPOINT_EVERY) continue;
        enum err err = store_checkpoint(writer->store);
        if (err != ERR_BUSY) must(err, "checkpoint"); /* busy: another thread asked first */
    }
    return NULL;
}

static bool count_value(void *ctx, struct bytes key, struct bytes value)
{
    unsigned *count = ctx;
    ASSERT(key.size > 0 && value.size == VALUE_SIZE);
    (*count)++;
    return true;
}

static unsigned count_keys(struct store *store)
{
    unsigned count = 0;
    must(store_scan(store, count_value, &count), "scan");
    return count;
}

static void *walk_keys(void *ctx)
{
    struct store *store = ctx;
    for (unsigned i = 0; i < ROUNDS; i++)
        ASSERT(count_keys(store) <= THREADS * KEYS);
    return NULL;
}

static void check_all(struct store *store)
{
    unsigned expected = 0;
    for (unsigned writer = 0; writer < THREADS; writer++) {
        for (unsigned key = 0; key < KEYS; key++) {
            check_key(store, writer, key, ROUNDS - 1);
            expected += !is_gone(key, ROUNDS - 1);
        }
    }
    ASSERT(count_keys(store) == expected);
}

static int remove_entry(const char *path, const struct stat *status, int type, struct FTW *place)
{
    (void)status;
    (void)type;
    (void)place;
    return remove(path);
}

int main(void)
{
    const char *parent = getenv("TMPDIR");
    char folder[4096], data[4128];
    snprintf(folder, sizeof folder, "%s/duramen-stress-XXXXXX", parent != NULL ? parent : "/tmp");
    ASSERT(mkdtemp(folder) != NULL);
    snprintf(data, sizeof data, "%s/data", folder);
    struct store_config config = {.folder = data, .memory = 16 << 20, .ranges = 8};
    struct store *store;
    must(store_open(&config, &store), "open");

    struct writer writers[THREADS];
    pthread_t walker;
    for (unsigned i = 0; i < THREADS; i++) {
        writers[i] = (struct writer){.store = store, .number = i};
        ASSERT(pthread_create(&writers[i].thread, NULL, write_keys, &writers[i]) == 0);
    }
    ASSERT(pthread_create(&walker, NULL, walk_keys, store) == 0);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(writers[i].thread, NULL);
    pthread_join(walker, NULL);

    check_all(store);
    store_close(store);
    must(store_open(&config, &store), "open again");
    check_all(store);
    store_close(store);
    nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    printf("%d writes by %d threads, all found\n", THREADS * ROUNDS * KEYS, THREADS);
    return 0;
}
