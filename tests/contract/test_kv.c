#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/prng.h"
#include "sim/sim_clock.h"
#include "sim/sim_kv.h"
#include "storage/kv.h"
#include "storage/kv_check.h"

/* What storage/kv.h promises, on both implementations: CONTRACT(name) is a test of the suite kv_lmdb
 * and one of kv_sim. Below the shared part is what only one of them can do. */

enum { RANGES = 4 };

struct store {
    const struct kv_ops *ops;
    struct sim_kv_world *world;
    char parent[64];
    char folder[SIM_KV_FOLDER];
    struct kv_config config;
    struct kv *kv;
};

static void store_open(struct store *store)
{
    cr_assert_eq(store->ops->open(&store->config, &store->kv), OK);
}

static void store_setup(struct store *store, const struct kv_ops *ops)
{
    *store = (struct store){.ops = ops};
    if (ops == &sim_kv) {
        store->world = sim_kv_world_new();
        sim_kv_folder(store->world, "store", store->folder);
    } else {
        strcpy(store->parent, "/tmp/duramen-kv-XXXXXX");
        cr_assert_not_null(mkdtemp(store->parent));
        snprintf(store->folder, sizeof store->folder, "%s/db", store->parent);
    }
    store->config = (struct kv_config){.folder = store->folder, .ranges = RANGES, .create = true};
    store_open(store);
}

static void store_teardown(struct store *store)
{
    store->ops->close(store->kv);
    sim_kv_world_free(store->world);
    if (store->parent[0] == '\0') return;
    const char *const files[] = {"db/data.mdb", "db/lock.mdb"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[SIM_KV_FOLDER + 16];
        snprintf(path, sizeof path, "%s/%s", store->parent, files[i]);
        unlink(path);
    }
    rmdir(store->folder);
    rmdir(store->parent);
}

static void store_reopen(struct store *store)
{
    store->ops->close(store->kv);
    store->config.create = false;
    store_open(store);
}

#define CONTRACT(name)                                                                             \
    static void contract_##name(struct store *store);                                              \
    Test(kv_lmdb, name)                                                                            \
    {                                                                                              \
        struct store store;                                                                        \
        store_setup(&store, &kv_lmdb);                                                             \
        contract_##name(&store);                                                                   \
        store_teardown(&store);                                                                    \
    }                                                                                              \
    Test(kv_sim, name)                                                                             \
    {                                                                                              \
        struct store store;                                                                        \
        store_setup(&store, &sim_kv);                                                              \
        contract_##name(&store);                                                                   \
        store_teardown(&store);                                                                    \
    }                                                                                              \
    static void contract_##name(struct store *store)

/* A key of a bucket; in a buffer of its own each time, eight in turn. */
static struct bytes key_of(uint16_t bucket, const char *text)
{
    static uint8_t buffers[8][512];
    static unsigned turn;
    uint8_t *at = buffers[turn++ % 8];
    store_u16_be(at, bucket);
    memcpy(at + 2, text, strlen(text));
    return bytes_of(at, 2 + strlen(text));
}

static struct bytes numbered(uint16_t bucket, unsigned number)
{
    char text[32];
    snprintf(text, sizeof text, "key:%08u", number);
    return key_of(bucket, text);
}

static struct kv_write *begin(struct store *store)
{
    struct kv_write *write;
    cr_assert_eq(store->ops->write_begin(store->kv, &write), OK);
    return write;
}

static void put(struct store *store, struct kv_write *write, uint16_t range, struct bytes key,
    const char *text, int64_t expires_ms)
{
    struct value value = {.bytes = bytes_of_text(text), .expires_ms = expires_ms, .version = 7};
    cr_assert_eq(store->ops->put(write, range, key, &value), OK);
}

static void put_one(
    struct store *store, uint16_t range, struct bytes key, const char *text, int64_t expires_ms)
{
    struct kv_write *write = begin(store);
    put(store, write, range, key, text, expires_ms);
    cr_assert_eq(store->ops->commit(write), OK);
}

static struct kv_read *reading(struct store *store)
{
    struct kv_read *read;
    cr_assert_eq(store->ops->read_begin(store->kv, &read), OK);
    return read;
}

static void expect(
    struct store *store, struct kv_read *read, uint16_t range, struct bytes key, const char *text)
{
    struct value value;
    enum err err = store->ops->get(read, range, key, &value);
    if (text == NULL) {
        cr_assert_eq(err, ERR_NOT_FOUND);
        return;
    }
    cr_assert_eq(err, OK);
    cr_assert(bytes_equal(value.bytes, bytes_of_text(text)));
}

static void expect_now(struct store *store, uint16_t range, struct bytes key, const char *text)
{
    struct kv_read *read = reading(store);
    expect(store, read, range, key, text);
    store->ops->read_end(read);
}

static uint64_t count(struct store *store, uint16_t bucket)
{
    struct kv_read *read = reading(store);
    uint64_t keys = 0;
    for (uint16_t range = 1; range < RANGES; range++) {
        uint64_t more = 12345;
        cr_assert_eq(store->ops->count(read, range, bucket, &more), OK);
        keys += more;
    }
    store->ops->read_end(read);
    return keys;
}

/* ---- values */

CONTRACT(a_committed_value_is_returned_whole)
{
    struct value value = {.bytes = bytes_of_text("text"),
        .expires_ms = 123456789,
        .version = UINT64_C(0xabcdef012345),
        .flags = 5};
    struct kv_write *write = begin(store);
    cr_assert_eq(store->ops->put(write, 2, key_of(1, "k"), &value), OK);
    cr_assert_eq(store->ops->commit(write), OK);
    struct kv_read *read = reading(store);
    struct value found;
    cr_assert_eq(store->ops->get(read, 2, key_of(1, "k"), &found), OK);
    cr_assert(bytes_equal(found.bytes, value.bytes));
    cr_assert_eq(found.expires_ms, value.expires_ms);
    cr_assert_eq(found.version, value.version);
    cr_assert_eq(found.flags, value.flags);
    cr_assert_eq(store->ops->get(read, 1, key_of(1, "k"), &found), ERR_NOT_FOUND, "other range");
    cr_assert_eq(store->ops->get(read, 2, key_of(2, "k"), &found), ERR_NOT_FOUND, "other bucket");
    store->ops->read_end(read);
}

CONTRACT(values_of_every_size_survive_overwriting_by_every_other)
{
    const size_t sizes[] = {0, 1, 100, 101, 2000, 2100, 4096, 70000, 16 << 20};
    enum { COUNT = sizeof sizes / sizeof *sizes };
    uint8_t *bytes = malloc(16 << 20);
    for (size_t old = 0; old < COUNT; old++) {
        for (size_t new = 0; new < COUNT; new ++) {
            if (old == COUNT - 1 && new > 2) continue; /* 16 MiB twice takes its time */
            const size_t pair[] = {sizes[old], sizes[new]};
            for (int i = 0; i < 2; i++) {
                memset(bytes, 'a' + i, pair[i]);
                struct value value = {.bytes = bytes_of(bytes, pair[i]), .version = 1}, found;
                struct kv_write *write = begin(store);
                cr_assert_eq(store->ops->put(write, 1, key_of(0, "k"), &value), OK);
                cr_assert_eq(store->ops->commit(write), OK);
                struct kv_read *read = reading(store);
                cr_assert_eq(store->ops->get(read, 1, key_of(0, "k"), &found), OK);
                cr_assert(bytes_equal(found.bytes, value.bytes));
                store->ops->read_end(read);
            }
        }
    }
    cr_assert_eq(count(store, 0), 1);
    free(bytes);
}

CONTRACT(keys_up_to_the_limit_are_stored_and_longer_ones_refused)
{
    uint8_t at[600];
    memset(at, 'k', sizeof at);
    const size_t sizes[] = {1, 2, 402, 500};
    struct value value = {.bytes = bytes_of_text("v"), .expires_ms = 9, .version = 1};
    struct kv_write *write = begin(store);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        cr_assert_eq(store->ops->put(write, 1, bytes_of(at, sizes[i]), &value), OK);
    cr_assert_eq(store->ops->del(write, 1, bytes_of(at, 501)), OK);
    cr_assert_eq(store->ops->commit(write), OK);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        expect_now(store, 1, bytes_of(at, sizes[i]), "v");
    write = begin(store);
    cr_assert_eq(store->ops->put(write, 1, bytes_of(at, 501), &value), ERR_TOO_LARGE);
    store->ops->abort(write);
}

CONTRACT(a_deleted_key_is_gone_and_deleting_nothing_is_fine)
{
    put_one(store, 1, key_of(0, "a"), "1", 0);
    put_one(store, 1, key_of(0, "b"), "2", 0);
    struct kv_write *write = begin(store);
    cr_assert_eq(store->ops->del(write, 1, key_of(0, "a")), OK);
    cr_assert_eq(store->ops->del(write, 1, key_of(0, "a")), OK);
    cr_assert_eq(store->ops->del(write, 1, key_of(0, "never")), OK);
    cr_assert_eq(store->ops->del(write, 2, key_of(0, "b")), OK);
    cr_assert_eq(store->ops->commit(write), OK);
    expect_now(store, 1, key_of(0, "a"), NULL);
    expect_now(store, 1, key_of(0, "b"), "2");
    cr_assert_eq(count(store, 0), 1);
}

/* ---- transactions */

CONTRACT(a_snapshot_does_not_move_until_renewed)
{
    put_one(store, 1, key_of(0, "a"), "old", 0);
    struct kv_read *read = reading(store);
    expect(store, read, 1, key_of(0, "a"), "old");
    put_one(store, 1, key_of(0, "a"), "new", 0);
    put_one(store, 1, key_of(0, "b"), "more", 0);
    expect(store, read, 1, key_of(0, "a"), "old");
    expect(store, read, 1, key_of(0, "b"), NULL);
    store->ops->read_reset(read);
    cr_assert_eq(store->ops->read_renew(read), OK);
    expect(store, read, 1, key_of(0, "a"), "new");
    put_one(store, 1, key_of(0, "a"), "newest", 0);
    cr_assert_eq(store->ops->read_renew(read), OK, "without a reset before");
    expect(store, read, 1, key_of(0, "a"), "newest");
    store->ops->read_reset(read);
    store->ops->read_reset(read);
    store->ops->read_end(read);
}

CONTRACT(an_aborted_transaction_leaves_nothing)
{
    put_one(store, 1, key_of(0, "a"), "1", 50);
    struct kv_write *write = begin(store);
    put(store, write, 1, key_of(0, "a"), "2", 60);
    put(store, write, 1, key_of(0, "b"), "2", 0);
    cr_assert_eq(store->ops->meta_put(write, "m", bytes_of_text("x")), OK);
    store->ops->abort(write);
    expect_now(store, 1, key_of(0, "a"), "1");
    expect_now(store, 1, key_of(0, "b"), NULL);
    cr_assert_eq(count(store, 0), 1);
    struct kv_read *read = reading(store);
    struct bytes meta;
    cr_assert_eq(store->ops->meta_get(read, "m", &meta), ERR_NOT_FOUND);
    store->ops->read_end(read);
    put_one(store, 1, key_of(0, "c"), "3", 0);
    cr_assert_eq(count(store, 0), 2, "and nothing of it leaks into the next");
}

CONTRACT(writes_are_not_seen_before_their_commit)
{
    struct kv_write *write = begin(store);
    put(store, write, 1, key_of(0, "a"), "1", 0);
    expect_now(store, 1, key_of(0, "a"), NULL);
    cr_assert_eq(store->ops->commit(write), OK);
    expect_now(store, 1, key_of(0, "a"), "1");
}

CONTRACT(what_was_committed_is_there_after_a_reopen)
{
    struct kv_write *write = begin(store);
    put(store, write, 0, key_of(0, "system"), "s", 0);
    put(store, write, 3, key_of(9, "a"), "1", 77);
    cr_assert_eq(store->ops->meta_put(write, "applied", bytes_of_text("12")), OK);
    cr_assert_eq(store->ops->commit(write), OK);
    write = begin(store);
    put(store, write, 3, key_of(9, "b"), "2", 0);
    store->ops->abort(write);
    store_reopen(store);
    expect_now(store, 3, key_of(9, "a"), "1");
    expect_now(store, 3, key_of(9, "b"), NULL);
    expect_now(store, 0, key_of(0, "system"), "s");
    cr_assert_eq(count(store, 9), 1);
    struct kv_read *read = reading(store);
    struct bytes meta;
    cr_assert_eq(store->ops->meta_get(read, "applied", &meta), OK);
    cr_assert(bytes_equal(meta, bytes_of_text("12")));
    cr_assert_eq(store->ops->meta_get(read, "other", &meta), ERR_NOT_FOUND);
    store->ops->read_end(read);
}

CONTRACT(meta_values_can_be_replaced)
{
    for (int i = 0; i < 3; i++) {
        char text[8];
        snprintf(text, sizeof text, "%0*d", i + 1, i);
        struct kv_write *write = begin(store);
        cr_assert_eq(store->ops->meta_put(write, "m", bytes_of_text(text)), OK);
        cr_assert_eq(store->ops->commit(write), OK);
        struct kv_read *read = reading(store);
        struct bytes meta;
        cr_assert_eq(store->ops->meta_get(read, "m", &meta), OK);
        cr_assert(bytes_equal(meta, bytes_of_text(text)));
        store->ops->read_end(read);
    }
}

CONTRACT(a_second_open_is_refused)
{
    struct kv *second;
    cr_assert_eq(store->ops->open(&store->config, &second), ERR_BUSY);
    put_one(store, 1, key_of(0, "a"), "1", 0);
    expect_now(store, 1, key_of(0, "a"), "1");
}

CONTRACT(an_absent_store_is_not_made_up)
{
    store->ops->close(store->kv);
    struct kv_config config = store->config;
    char folder[SIM_KV_FOLDER + 8];
    snprintf(folder, sizeof folder, "%s-none", store->folder);
    config.folder = folder;
    config.create = false;
    struct kv *kv;
    cr_assert_eq(store->ops->open(&config, &kv), ERR_NOT_FOUND);
    config.create = true;
    config.read_only = true;
    cr_assert_eq(store->ops->open(&config, &kv), ERR_NOT_FOUND);
    store_open(store);
}

CONTRACT(a_read_only_open_reads)
{
    put_one(store, 1, key_of(0, "a"), "1", 0);
    store->ops->close(store->kv);
    store->config.read_only = true;
    store->config.create = false;
    store_open(store);
    expect_now(store, 1, key_of(0, "a"), "1");
    cr_assert_eq(count(store, 0), 1);
    struct kv_stats stats;
    store->ops->stats(store->kv, &stats);
    cr_assert_eq(stats.entries, 1);
}

/* ---- cursors */

CONTRACT(a_cursor_walks_one_range_in_order)
{
    struct kv_write *write = begin(store);
    for (unsigned i = 0; i < 3000; i++)
        put(store, write, 2, numbered(1, i * 7919 % 3000 * 2), "v", 0);
    put(store, write, 1, numbered(1, 1), "other", 0);
    put(store, write, 3, numbered(1, 1), "other", 0);
    cr_assert_eq(store->ops->commit(write), OK);
    struct kv_read *read = reading(store);
    void *cursor;
    struct bytes key;
    struct value value;
    cr_assert_eq(store->ops->cursor_open(read, 2, &cursor), OK);
    enum err err = store->ops->cursor_seek(cursor, bytes_of("", 0), &key, &value);
    for (unsigned i = 0; i < 3000; i++) {
        cr_assert_eq(err, OK);
        cr_assert(bytes_equal(key, numbered(1, i * 2)));
        cr_assert(bytes_equal(value.bytes, bytes_of_text("v")));
        err = store->ops->cursor_next(cursor, &key, &value);
    }
    cr_assert_eq(err, ERR_NOT_FOUND);
    cr_assert_eq(store->ops->cursor_seek(cursor, numbered(1, 100), &key, &value), OK);
    cr_assert(bytes_equal(key, numbered(1, 100)), "the key itself");
    cr_assert_eq(store->ops->cursor_seek(cursor, numbered(1, 101), &key, &value), OK);
    cr_assert(bytes_equal(key, numbered(1, 102)), "the next if it is absent");
    cr_assert_eq(store->ops->cursor_seek(cursor, numbered(1, 6000), &key, &value), ERR_NOT_FOUND);
    cr_assert_eq(store->ops->cursor_seek(cursor, numbered(0, 6000), &key, &value), OK);
    cr_assert(bytes_equal(key, numbered(1, 0)));
    store->ops->cursor_close(cursor);
    cr_assert_eq(store->ops->cursor_open(read, 0, &cursor), OK);
    cr_assert_eq(
        store->ops->cursor_seek(cursor, bytes_of("", 0), &key, &value), ERR_NOT_FOUND, "empty");
    store->ops->cursor_close(cursor);
    store->ops->read_end(read);
}

/* ---- counts */

struct counted {
    uint64_t buckets;
    uint64_t keys;
    uint64_t last;
};

static void count_bucket(void *ctx, uint16_t bucket, uint64_t keys)
{
    struct counted *counted = ctx;
    cr_assert(counted->buckets == 0 || bucket > counted->last, "in order of buckets");
    counted->last = bucket;
    counted->buckets++;
    counted->keys += keys;
}

static struct counted counts_of(struct store *store, uint16_t range)
{
    struct kv_read *read = reading(store);
    struct counted counted = {0};
    cr_assert_eq(store->ops->counts(read, range, count_bucket, &counted), OK);
    store->ops->read_end(read);
    return counted;
}

CONTRACT(counts_are_exact_and_of_one_range)
{
    cr_assert_eq(count(store, 5), 0);
    struct kv_write *write = begin(store);
    put(store, write, 1, key_of(5, "a"), "1", 0);
    put(store, write, 2, key_of(5, "a"), "1", 0);
    put(store, write, 2, key_of(5, "a"), "again", 0);
    put(store, write, 2, key_of(6, "a"), "1", 0);
    put(store, write, 0, key_of(5, "a"), "1", 0);
    cr_assert_eq(store->ops->del(write, 2, key_of(6, "a")), OK);
    put(store, write, 2, key_of(7, "came and went"), "1", 0);
    cr_assert_eq(store->ops->del(write, 2, key_of(7, "came and went")), OK);
    cr_assert_eq(store->ops->commit(write), OK);
    cr_assert_eq(count(store, 5), 2);
    cr_assert_eq(count(store, 6), 0);
    cr_assert_eq(count(store, 7), 0);
    for (uint16_t range = 0; range < RANGES; range++) {
        struct counted counted = counts_of(store, range);
        cr_assert_eq(counted.buckets, range == 3 ? 0 : 1);
        cr_assert_eq(counted.keys, range == 3 ? 0 : 1);
    }
    write = begin(store);
    cr_assert_eq(store->ops->del(write, 0, key_of(5, "a")), OK);
    cr_assert_eq(store->ops->del(write, 1, key_of(5, "a")), OK);
    cr_assert_eq(store->ops->commit(write), OK);
    cr_assert_eq(count(store, 5), 1);
}

/* ---- emptying a range */

CONTRACT(a_range_is_emptied_and_no_other_is)
{
    for (int expiring = 0; expiring <= 100; expiring += 100) {
        struct kv_write *write = begin(store);
        for (uint16_t range = 0; range < RANGES; range++) {
            for (unsigned i = 0; i < 300; i++)
                put(store, write, range, numbered((uint16_t)(i / 100), i), "1",
                    (int)i < expiring ? 1000 + i : 0);
        }
        cr_assert_eq(store->ops->commit(write), OK);
        unsigned steps = 0;
        for (bool done = false; !done; steps++) {
            write = begin(store);
            cr_assert_eq(store->ops->range_reset(write, 2, 30, &done), OK);
            cr_assert_eq(store->ops->commit(write), OK);
            cr_assert_leq(steps, 20);
        }
        for (uint16_t range = 0; range < RANGES; range++) {
            cr_assert_eq(counts_of(store, range).keys, range == 2 ? 0 : 300);
            expect_now(store, range, numbered(1, 150), range == 2 ? NULL : "1");
        }
        struct kv_read *read = reading(store);
        uint64_t sum = 1;
        if (store->ops->sum != NULL) cr_assert_eq(store->ops->sum(read, 2, &sum), OK);
        if (store->ops->sum != NULL) cr_assert_eq(sum, 0);
        store->ops->read_end(read);
        /* and can be filled again, in the same transaction as well */
        write = begin(store);
        put(store, write, 2, numbered(0, 1), "before", 5);
        bool done;
        cr_assert_eq(store->ops->range_reset(write, 2, 30, &done), OK);
        cr_assert(done);
        put(store, write, 2, numbered(0, 2), "after", 7);
        cr_assert_eq(store->ops->commit(write), OK);
        expect_now(store, 2, numbered(0, 1), NULL);
        expect_now(store, 2, numbered(0, 2), "after");
        cr_assert_eq(counts_of(store, 2).keys, 1);
    }
}

/* ---- clearing */

CONTRACT(clearing_takes_the_bucket_of_that_range_alone)
{
    struct kv_write *write = begin(store);
    for (unsigned i = 0; i < 500; i++) {
        put(store, write, 1, numbered(1, i), "v", 0);
        put(store, write, 1, numbered(2, i), "v", i % 2 ? 1000 : 0);
        put(store, write, 1, numbered(3, i), "v", 0);
        put(store, write, 2, numbered(2, i), "v", 0);
    }
    cr_assert_eq(store->ops->commit(write), OK);
    bool done = false;
    unsigned rounds = 0;
    while (!done) {
        write = begin(store);
        cr_assert_eq(store->ops->clear(write, 1, 2, 200, &done), OK);
        cr_assert_eq(store->ops->commit(write), OK);
        rounds++;
        cr_assert_leq(rounds, 4);
    }
    cr_assert_geq(rounds, 3);
    cr_assert_eq(count(store, 1), 500);
    cr_assert_eq(count(store, 2), 500, "range 2 still has them");
    cr_assert_eq(count(store, 3), 500);
    expect_now(store, 1, numbered(2, 0), NULL);
    expect_now(store, 1, numbered(1, 499), "v");
    expect_now(store, 1, numbered(3, 0), "v");
    expect_now(store, 2, numbered(2, 7), "v");
}

static bool count_each(void *ctx, uint16_t range, struct bytes key, int64_t expires_ms)
{
    (void)range;
    (void)key;
    (void)expires_ms;
    *(unsigned *)ctx += 1;
    return true;
}

static unsigned expired_count(struct store *store, int64_t from, int64_t until)
{
    struct kv_read *read = reading(store);
    unsigned seen = 0;
    cr_assert_eq(store->ops->expired(read, from, until, count_each, &seen), OK);
    store->ops->read_end(read);
    return seen;
}

CONTRACT(clearing_a_range_of_one_bucket_empties_it)
{
    for (int with_expiry = 0; with_expiry < 2; with_expiry++) {
        struct kv_write *write = begin(store);
        for (unsigned i = 0; i < 5000; i++)
            put(store, write, 1, numbered(4, i), "v", with_expiry ? (int64_t)i + 1 : 0);
        bool done = false;
        cr_assert_eq(store->ops->clear(write, 1, 4, 1000000, &done), OK, "what is uncommitted too");
        cr_assert(done);
        put(store, write, 1, numbered(4, 3), "after", 0);
        cr_assert_eq(store->ops->commit(write), OK);
        cr_assert_eq(count(store, 4), 1);
        expect_now(store, 1, numbered(4, 3), "after");
        expect_now(store, 1, numbered(4, 4), NULL);
        cr_assert_eq(expired_count(store, 0, INT64_MAX), 0);
        write = begin(store);
        cr_assert_eq(store->ops->clear(write, 1, 4, 1000000, &done), OK);
        cr_assert(done);
        cr_assert_eq(store->ops->clear(write, 1, 4, 1000000, &done), OK, "nothing left");
        cr_assert(done);
        cr_assert_eq(store->ops->commit(write), OK);
        cr_assert_eq(count(store, 4), 0);
    }
}

/* ---- expiry */

struct expired {
    unsigned seen;
    unsigned stop_after;
    int64_t times[16];
    uint16_t ranges[16];
    char names[16][16];
};

static bool expired_note(void *ctx, uint16_t range, struct bytes key, int64_t expires_ms)
{
    struct expired *expired = ctx;
    cr_assert_lt(expired->seen, 16);
    expired->times[expired->seen] = expires_ms;
    expired->ranges[expired->seen] = range;
    memcpy(expired->names[expired->seen], key.at + 2, key.size - 2);
    expired->seen++;
    return expired->seen != expired->stop_after;
}

CONTRACT(expired_keys_come_oldest_first)
{
    struct kv_write *write = begin(store);
    put(store, write, 1, key_of(0, "c"), "v", 300);
    put(store, write, 2, key_of(0, "a"), "v", 100);
    put(store, write, 3, key_of(0, "b"), "v", 200);
    put(store, write, 1, key_of(0, "never"), "v", 0);
    put(store, write, 1, key_of(0, "late"), "v", INT64_C(1) << 60);
    cr_assert_eq(store->ops->commit(write), OK);
    struct kv_read *read = reading(store);
    struct expired expired = {0};
    cr_assert_eq(store->ops->expired(read, 0, 300, expired_note, &expired), OK);
    cr_assert_eq(expired.seen, 3);
    cr_assert_str_eq(expired.names[0], "a");
    cr_assert_str_eq(expired.names[1], "b");
    cr_assert_str_eq(expired.names[2], "c");
    cr_assert_eq(expired.ranges[1], 3);
    cr_assert_eq(expired.times[2], 300);
    expired = (struct expired){0};
    cr_assert_eq(store->ops->expired(read, 101, 299, expired_note, &expired), OK);
    cr_assert_eq(expired.seen, 1);
    cr_assert_str_eq(expired.names[0], "b");
    expired = (struct expired){.stop_after = 2};
    cr_assert_eq(store->ops->expired(read, INT64_MIN, INT64_MAX, expired_note, &expired), OK);
    cr_assert_eq(expired.seen, 2, "each() said stop");
    store->ops->read_end(read);
}

CONTRACT(the_expiry_index_follows_every_change)
{
    put_one(store, 1, key_of(0, "a"), "v", 100);
    put_one(store, 1, key_of(0, "b"), "v", 100);
    cr_assert_eq(expired_count(store, 0, 1000), 2);
    put_one(store, 1, key_of(0, "a"), "v", 500);
    cr_assert_eq(expired_count(store, 0, 499), 1, "the old time is gone");
    cr_assert_eq(expired_count(store, 0, 1000), 2, "the new one is there, once");
    put_one(store, 1, key_of(0, "a"), "w", 500);
    cr_assert_eq(expired_count(store, 0, 1000), 2);
    put_one(store, 1, key_of(0, "a"), "w", 0);
    cr_assert_eq(expired_count(store, 0, 1000), 1, "no longer expires");
    struct kv_write *write = begin(store);
    cr_assert_eq(store->ops->del(write, 1, key_of(0, "b")), OK);
    cr_assert_eq(store->ops->commit(write), OK);
    cr_assert_eq(expired_count(store, 0, INT64_MAX), 0, "deleted");
}

/* ---- against a model */

enum { MODEL_KEYS = 400 };

struct model_entry {
    bool present;
    uint32_t size;
    int64_t expires_ms;
    uint64_t version;
};

struct model {
    struct model_entry entries[RANGES][MODEL_KEYS];
};

/* ids in key order: three buckets, one after the other */
static struct bytes model_key(unsigned id)
{
    return numbered((uint16_t)(id * 3 / MODEL_KEYS), id);
}

static void model_check(struct store *store, const struct model *model)
{
    struct kv_read *read = reading(store);
    unsigned expiring = 0;
    uint64_t counts[3] = {0}, entries = 0;
    for (uint16_t range = 0; range < RANGES; range++) {
        void *cursor;
        struct bytes key;
        struct value value;
        uint64_t before = entries;
        cr_assert_eq(store->ops->cursor_open(read, range, &cursor), OK);
        enum err err = store->ops->cursor_seek(cursor, bytes_of("", 0), &key, &value);
        for (unsigned id = 0; id < MODEL_KEYS; id++) {
            const struct model_entry *entry = &model->entries[range][id];
            struct value got;
            cr_assert_eq(store->ops->get(read, range, model_key(id), &got),
                entry->present ? OK : ERR_NOT_FOUND);
            if (!entry->present) continue;
            cr_assert_eq(err, OK);
            cr_assert(bytes_equal(key, model_key(id)));
            cr_assert_eq(value.version, entry->version);
            cr_assert_eq(value.expires_ms, entry->expires_ms);
            cr_assert_eq(value.bytes.size, entry->size);
            cr_assert(bytes_equal(value.bytes, got.bytes));
            entries++;
            if (entry->expires_ms > 0) expiring++;
            if (range > 0) counts[id * 3 / MODEL_KEYS]++;
            err = store->ops->cursor_next(cursor, &key, &value);
        }
        cr_assert_eq(err, ERR_NOT_FOUND);
        store->ops->cursor_close(cursor);
        struct counted counted = {0};
        cr_assert_eq(store->ops->counts(read, range, count_bucket, &counted), OK);
        cr_assert_eq(counted.keys, entries - before);
    }
    store->ops->read_end(read);
    for (uint16_t bucket = 0; bucket < 3; bucket++)
        cr_assert_eq(count(store, bucket), counts[bucket]);
    cr_assert_eq(expired_count(store, 0, INT64_MAX), expiring);
    struct kv_stats stats;
    store->ops->stats(store->kv, &stats);
    cr_assert_eq(stats.entries, entries);
}

static void model_change(
    struct store *store, struct kv_write *write, struct model *model, struct prng *prng)
{
    static uint8_t bytes[9000];
    static uint64_t version;
    uint16_t range = (uint16_t)prng_below(prng, RANGES);
    unsigned id = (unsigned)prng_below(prng, MODEL_KEYS);
    struct model_entry *entry = &model->entries[range][id];
    uint64_t dice = prng_below(prng, 1000);
    if (dice < 1) {
        bool done = false;
        while (!done)
            cr_assert_eq(store->ops->range_reset(write, range, 40, &done), OK);
        memset(model->entries[range], 0, sizeof model->entries[range]);
    } else if (dice < 4) {
        uint16_t bucket = (uint16_t)prng_below(prng, 3);
        bool done;
        cr_assert_eq(store->ops->clear(write, range, bucket, 1 << 20, &done), OK);
        cr_assert(done);
        for (unsigned i = 0; i < MODEL_KEYS; i++) {
            if (i * 3 / MODEL_KEYS == bucket) model->entries[range][i].present = false;
        }
    } else if (dice < 300) {
        cr_assert_eq(store->ops->del(write, range, model_key(id)), OK);
        entry->present = false;
    } else {
        *entry = (struct model_entry){
            .present = true,
            .size = (uint32_t)prng_below(prng, dice < 330 ? sizeof bytes : 150),
            .expires_ms = prng_chance(prng, 1, 3) ? (int64_t)prng_below(prng, 50) + 1 : 0,
            .version = ++version,
        };
        struct value value = {.bytes = bytes_of(bytes, entry->size),
            .expires_ms = entry->expires_ms,
            .version = entry->version};
        cr_assert_eq(store->ops->put(write, range, model_key(id), &value), OK);
    }
}

CONTRACT(behaves_like_sorted_lists)
{
    struct model *model = calloc(1, sizeof *model), *before = calloc(1, sizeof *before);
    struct prng prng;
    prng_init(&prng, 17);
    for (int round = 0; round < 60; round++) {
        *before = *model;
        struct kv_write *write = begin(store);
        uint64_t changes = prng_below(&prng, 600);
        for (uint64_t i = 0; i < changes; i++)
            model_change(store, write, model, &prng);
        if (prng_chance(&prng, 1, 4)) {
            store->ops->abort(write);
            *model = *before;
        } else {
            cr_assert_eq(store->ops->commit(write), OK);
        }
        if (prng_chance(&prng, 1, 6)) store_reopen(store);
        model_check(store, model);
    }
    free(model);
    free(before);
}

/* ---- only LMDB */

Test(kv_lmdb, folder_and_files_are_the_owners_alone)
{
    struct store store;
    store_setup(&store, &kv_lmdb);
    struct stat status;
    char path[SIM_KV_FOLDER + 16];
    cr_assert_eq(stat(store.folder, &status), 0);
    cr_assert_eq(status.st_mode & 0777, 0700);
    snprintf(path, sizeof path, "%s/data.mdb", store.folder);
    cr_assert_eq(stat(path, &status), 0);
    cr_assert_eq(status.st_mode & 0777, 0600);
    store_teardown(&store);
}

/* Fills until ERR_AGAIN, then repeats the transaction, as the checkpoint does. */
static void fill(struct store *store, unsigned from, unsigned to)
{
    static char text[1001];
    memset(text, 'x', 1000);
    for (unsigned start = from; start < to;) {
        enum err err = OK;
        struct kv_write *write = begin(store);
        for (unsigned i = start; i < start + 500 && err == OK; i++) {
            struct value value = {.bytes = bytes_of_text(text), .version = 1};
            err = store->ops->put(write, 1, numbered(0, i), &value);
        }
        if (err == OK) err = store->ops->commit(write);
        cr_assert(err == OK || err == ERR_AGAIN);
        if (err == OK) start += 500;
        store->ops->abort(write);
    }
}

Test(kv_lmdb, a_full_map_grows_and_the_transaction_is_repeated)
{
    struct store store;
    store_setup(&store, &kv_lmdb);
    store.config.map_size = 1 << 20;
    store_reopen(&store);
    struct kv_stats stats;
    store.ops->stats(store.kv, &stats);
    cr_assert_eq(stats.map_bytes, 1 << 20);
    fill(&store, 0, 10000);
    store.ops->stats(store.kv, &stats);
    cr_assert_geq(stats.map_bytes, 16 << 20);
    cr_assert_eq(count(&store, 0), 10000);
    cr_assert_eq(stats.entries, 10000);
    store_teardown(&store);
}

struct writer {
    struct store *store;
    uint16_t range;
};

static void *write_on(void *ctx)
{
    struct writer *writer = ctx;
    const struct kv_ops *ops = writer->store->ops;
    uint8_t key[16] = {0};
    for (unsigned round = 0; round < 60; round++) {
        struct kv_write *write;
        if (ops->write_begin(writer->store->kv, &write) != OK) abort();
        for (unsigned i = 0; i < 50; i++) {
            store_u32(key + 4, (round * 31 + i * 7) % 500);
            struct value value = {.bytes = bytes_of(key, 8), .expires_ms = i % 3, .version = round};
            enum err err = i % 5 == 4 ? ops->del(write, writer->range, bytes_of(key, 8))
                                      : ops->put(write, writer->range, bytes_of(key, 8), &value);
            if (err != OK) abort();
        }
        if (round % 7 == 6) {
            ops->abort(write);
        } else if (ops->commit(write) != OK) {
            abort();
        }
    }
    return NULL;
}

static void check_found(void *ctx, bool missing, const char *sentence)
{
    (void)ctx, (void)missing;
    cr_assert_fail("%s", sentence);
}

Test(kv_lmdb, threads_write_in_turn_and_counts_and_sums_stay_exact)
{
    struct store store;
    store_setup(&store, &kv_lmdb);
    struct writer writers[3];
    pthread_t threads[3];
    for (uint16_t i = 0; i < 3; i++) {
        /* two of them in the same range */
        writers[i] = (struct writer){.store = &store, .range = (uint16_t)(1 + i / 2)};
        cr_assert_eq(pthread_create(&threads[i], NULL, write_on, &writers[i]), 0);
    }
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    struct kv_read *read = reading(&store);
    struct kv_check check = {
        .ops = &kv_lmdb, .read = read, .ranges = RANGES - 1, .expiry = true, .found = check_found};
    cr_assert_eq(kv_check(&check), OK);
    cr_assert_gt(check.values, 100);
    store.ops->read_end(read);
    store_teardown(&store);
}

struct reader {
    struct store *store;
    pthread_barrier_t started;
    atomic_bool stop;
    unsigned rounds;
    unsigned wrong;
};

static void *read_on(void *ctx)
{
    struct reader *reader = ctx;
    const struct kv_ops *ops = reader->store->ops;
    uint8_t at[32];
    struct bytes key = numbered(7, 3);
    memcpy(at, key.at, key.size);
    key.at = at;
    struct kv_read *read;
    if (ops->read_begin(reader->store->kv, &read) != OK) abort();
    pthread_barrier_wait(&reader->started);
    do {
        struct value value;
        if (ops->get(read, 1, key, &value) != OK ||
            !bytes_equal(value.bytes, bytes_of_text("steady")))
            reader->wrong++;
        ops->read_reset(read);
        if (ops->read_renew(read) != OK) reader->wrong++;
        reader->rounds++;
    } while (!atomic_load(&reader->stop));
    ops->read_end(read);
    return NULL;
}

Test(kv_lmdb, the_map_grows_below_readers_that_come_and_go)
{
    struct store store;
    store_setup(&store, &kv_lmdb);
    store.config.map_size = 1 << 20;
    store_reopen(&store);
    put_one(&store, 1, numbered(7, 3), "steady", 0);
    struct reader readers[2];
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        readers[i] = (struct reader){.store = &store};
        pthread_barrier_init(&readers[i].started, NULL, 2);
        cr_assert_eq(pthread_create(&threads[i], NULL, read_on, &readers[i]), 0);
        pthread_barrier_wait(&readers[i].started);
    }
    fill(&store, 0, 10000);
    for (int i = 0; i < 2; i++) {
        atomic_store(&readers[i].stop, true);
        pthread_join(threads[i], NULL);
        pthread_barrier_destroy(&readers[i].started);
        cr_assert_gt(readers[i].rounds, 0);
        cr_assert_eq(readers[i].wrong, 0);
    }
    cr_assert_eq(count(&store, 0), 10000);
    store_teardown(&store);
}

/* Address space limits do not work below sanitizers, which reserve terabytes. */
#if !defined(__SANITIZE_ADDRESS__)
Test(kv_lmdb, the_map_fits_into_a_limited_address_space)
{
    struct store store;
    store_setup(&store, &kv_lmdb);
    store.ops->close(store.kv);
    struct rlimit limit;
    getrlimit(RLIMIT_AS, &limit);
    limit.rlim_cur = 1 << 30;
    setrlimit(RLIMIT_AS, &limit);
    store_open(&store);
    struct kv_stats stats;
    store.ops->stats(store.kv, &stats);
    cr_assert_leq(stats.map_bytes, 1 << 30);
    cr_assert_geq(stats.map_bytes, 256 << 20);
    put_one(&store, 1, key_of(0, "a"), "1", 0);
    store_reopen(&store);
    expect_now(&store, 1, key_of(0, "a"), "1");
    store_teardown(&store);
}

Test(kv_lmdb, a_map_that_cannot_grow_is_full_and_the_store_as_before)
{
    struct store store;
    store_setup(&store, &kv_lmdb);
    store.config.map_size = 200 << 20;
    store_reopen(&store);
    put_one(&store, 1, key_of(0, "a"), "before", 0);
    struct rlimit limit;
    getrlimit(RLIMIT_AS, &limit);
    limit.rlim_cur = 500 << 20;
    setrlimit(RLIMIT_AS, &limit);
    uint8_t *large = calloc(1, 16 << 20);
    cr_assert_not_null(large);
    struct value value = {.bytes = bytes_of(large, 16 << 20), .version = 1};
    struct kv_write *write = begin(&store);
    put(&store, write, 1, key_of(0, "a"), "after", 0);
    enum err err = OK;
    for (unsigned i = 0; i < 20 && err == OK; i++)
        err = store.ops->put(write, 1, numbered(0, i), &value);
    cr_assert(err == ERR_FULL || err == ERR_NOMEM);
    cr_assert_eq(store.ops->commit(write), err, "the transaction is gone");
    store.ops->abort(write);
    expect_now(&store, 1, key_of(0, "a"), "before");
    cr_assert_eq(count(&store, 0), 1);
    put_one(&store, 1, key_of(0, "a"), "after", 0);
    expect_now(&store, 1, key_of(0, "a"), "after");
    free(large);
    store_teardown(&store);
}
#endif

Test(kv_lmdb, a_full_disk_costs_the_transaction_and_nothing_else)
{
    struct store store;
    store_setup(&store, &kv_lmdb);
    put_one(&store, 1, key_of(0, "a"), "before", 0);
    char path[SIM_KV_FOLDER + 16];
    struct stat status;
    snprintf(path, sizeof path, "%s/data.mdb", store.folder);
    cr_assert_eq(stat(path, &status), 0);
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit limit, unlimited;
    getrlimit(RLIMIT_FSIZE, &unlimited);
    limit = unlimited;
    limit.rlim_cur = (rlim_t)status.st_size;
    setrlimit(RLIMIT_FSIZE, &limit);
    uint8_t *large = calloc(1, 1 << 20);
    struct value value = {.bytes = bytes_of(large, 1 << 20), .version = 1};
    struct kv_write *write = begin(&store);
    put(&store, write, 1, key_of(0, "a"), "after", 0);
    cr_assert_eq(store.ops->put(write, 1, key_of(0, "b"), &value), OK);
    cr_assert_eq(store.ops->commit(write), ERR_FULL);
    store.ops->abort(write);
    expect_now(&store, 1, key_of(0, "a"), "before");
    expect_now(&store, 1, key_of(0, "b"), NULL);
    cr_assert_eq(count(&store, 0), 1);
    setrlimit(RLIMIT_FSIZE, &unlimited);
    put_one(&store, 1, key_of(0, "a"), "after", 0);
    store_reopen(&store);
    expect_now(&store, 1, key_of(0, "a"), "after");
    free(large);
    store_teardown(&store);
}

/* Changes one byte of the database file where `text` is. */
static void damage_file(struct store *store, const char *text)
{
    char path[SIM_KV_FOLDER + 16];
    snprintf(path, sizeof path, "%s/data.mdb", store->folder);
    int file = open(path, O_RDWR | O_CLOEXEC);
    cr_assert_geq(file, 0);
    struct stat status;
    cr_assert_eq(fstat(file, &status), 0);
    char *bytes = malloc((size_t)status.st_size);
    cr_assert_eq(pread(file, bytes, (size_t)status.st_size, 0), status.st_size);
    unsigned found = 0;
    char *at = bytes;
    while ((at = memmem(at, (size_t)(bytes + status.st_size - at), text, strlen(text))) != NULL) {
        char damaged = (char)(*at ^ 4);
        cr_assert_eq(pwrite(file, &damaged, 1, at - bytes), 1);
        found++;
        at++;
    }
    cr_assert_geq(found, 1);
    free(bytes);
    close(file);
}

Test(kv_lmdb, damage_in_the_file_is_found_and_the_walk_goes_on)
{
    struct store store;
    store_setup(&store, &kv_lmdb);
    struct kv_write *write = begin(&store);
    put(&store, write, 1, key_of(0, "a"), "first", 0);
    put(&store, write, 1, key_of(0, "b"), "the damaged one", 0);
    put(&store, write, 1, key_of(0, "c"), "third", 0);
    cr_assert_eq(store.ops->commit(write), OK);
    store.ops->close(store.kv);
    damage_file(&store, "the damaged one");
    store_open(&store);
    struct kv_read *read = reading(&store);
    struct value value;
    cr_assert_eq(store.ops->get(read, 1, key_of(0, "b"), &value), ERR_CORRUPT);
    expect(&store, read, 1, key_of(0, "a"), "first");
    void *cursor;
    struct bytes key;
    cr_assert_eq(store.ops->cursor_open(read, 1, &cursor), OK);
    cr_assert_eq(store.ops->cursor_seek(cursor, bytes_of("", 0), &key, &value), OK);
    cr_assert_eq(store.ops->cursor_next(cursor, &key, &value), ERR_CORRUPT);
    cr_assert(bytes_equal(key, key_of(0, "b")), "says which");
    cr_assert_eq(store.ops->cursor_next(cursor, &key, &value), OK);
    cr_assert(bytes_equal(key, key_of(0, "c")));
    store.ops->cursor_close(cursor);
    store.ops->read_end(read);
    put_one(&store, 1, key_of(0, "b"), "repaired", 0);
    expect_now(&store, 1, key_of(0, "b"), "repaired");
    store_teardown(&store);
}

Test(kv_lmdb, a_file_that_is_no_store_is_refused)
{
    struct store store;
    store_setup(&store, &kv_lmdb);
    store.ops->close(store.kv);
    char path[SIM_KV_FOLDER + 16], noise[8192];
    memset(noise, 0x5a, sizeof noise);
    snprintf(path, sizeof path, "%s/data.mdb", store.folder);
    int file = open(path, O_WRONLY | O_CLOEXEC);
    cr_assert_eq(pwrite(file, noise, sizeof noise, 0), (ssize_t)sizeof noise);
    close(file);
    cr_assert_eq(store.ops->open(&store.config, &store.kv), ERR_CORRUPT);
    unlink(path);
    store_open(&store);
    store_teardown(&store);
}

Test(kv_lmdb, a_newer_format_is_refused)
{
    struct store store;
    store_setup(&store, &kv_lmdb);
    struct kv_write *write = begin(&store);
    cr_assert_eq(store.ops->meta_put(write, "format", bytes_of("\2\0\0\0", 4)), OK);
    cr_assert_eq(store.ops->commit(write), OK);
    store.ops->close(store.kv);
    cr_assert_eq(store.ops->open(&store.config, &store.kv), ERR_MISMATCH);
    store.kv = NULL;
    store_teardown(&store);
}

Test(kv_lmdb, ordered_loads_leave_full_pages)
{
    enum { KEYS = 20000 };
    uint64_t used[2];
    unsigned *order = malloc(KEYS * sizeof *order);
    struct prng prng;
    prng_init(&prng, 9);
    for (unsigned i = 0; i < KEYS; i++)
        order[i] = i;
    for (int shuffled = 0; shuffled < 2; shuffled++) {
        for (unsigned i = KEYS - 1; shuffled && i > 0; i--) {
            unsigned other = (unsigned)prng_below(&prng, i + 1), id = order[i];
            order[i] = order[other];
            order[other] = id;
        }
        struct store store;
        store_setup(&store, &kv_lmdb);
        for (unsigned start = 0; start < KEYS; start += 5000) {
            struct kv_write *write = begin(&store);
            for (unsigned i = start; i < start + 5000; i++)
                put(&store, write, 1, numbered(0, order[i]), "value", 0);
            cr_assert_eq(store.ops->commit(write), OK);
        }
        struct kv_stats stats;
        store.ops->stats(store.kv, &stats);
        cr_assert_eq(stats.entries, KEYS);
        cr_assert_leq(stats.used_bytes, stats.file_bytes);
        used[shuffled] = stats.used_bytes;
        store_teardown(&store);
    }
    /* a key with its value takes 42 bytes of a page: node header 8, key 14, value 17, alignment,
     * pointer 2 */
    cr_assert_leq((double)used[0], 1.15 * KEYS * 42);
    cr_assert_geq((double)used[1], 1.2 * (double)used[0]);
    free(order);
}

/* ---- only the simulated store */

Test(kv_sim, a_crash_loses_what_was_not_committed)
{
    struct store store;
    store_setup(&store, &sim_kv);
    put_one(&store, 1, key_of(0, "a"), "1", 0);
    struct kv_read *read = reading(&store);
    void *cursor;
    cr_assert_eq(store.ops->cursor_open(read, 1, &cursor), OK);
    struct kv_write *write = begin(&store);
    put(&store, write, 1, key_of(0, "a"), "2", 0);
    put(&store, write, 1, key_of(0, "b"), "2", 0);
    sim_kv_crash(store.world, "store");
    store.config.create = false;
    store_open(&store);
    expect_now(&store, 1, key_of(0, "a"), "1");
    expect_now(&store, 1, key_of(0, "b"), NULL);
    cr_assert_eq(count(&store, 0), 1);
    cr_assert_eq(sim_kv_commits(store.world, "store"), 1);
    store_teardown(&store);
}

Test(kv_sim, a_commit_fails_when_told_to)
{
    struct store store;
    store_setup(&store, &sim_kv);
    put_one(&store, 1, key_of(0, "a"), "1", 0);
    sim_kv_fail_commit(store.world, "store", 2, ERR_FULL);
    put_one(&store, 1, key_of(0, "a"), "2", 0);
    struct kv_write *write = begin(&store);
    put(&store, write, 1, key_of(0, "a"), "3", 0);
    cr_assert_eq(store.ops->commit(write), ERR_FULL);
    store.ops->abort(write);
    expect_now(&store, 1, key_of(0, "a"), "2");
    put_one(&store, 1, key_of(0, "a"), "4", 0);
    expect_now(&store, 1, key_of(0, "a"), "4");
    store_teardown(&store);
}

Test(kv_sim, rot_is_found_on_reading)
{
    struct store store;
    store_setup(&store, &sim_kv);
    for (unsigned i = 0; i < 50; i++)
        put_one(&store, (uint16_t)(i % RANGES), numbered(0, i), "value", i);
    cr_assert_eq(sim_kv_rot(store.world, "store", 1, key_of(0, "none"), 0), ERR_NOT_FOUND);
    struct value value;
    struct kv_read *read = reading(&store);
    for (uint64_t bit = 0; bit < 200; bit++) {
        cr_assert_eq(sim_kv_rot(store.world, "store", 1, numbered(0, 1), bit), OK);
        cr_assert_eq(store.ops->get(read, 1, numbered(0, 1), &value), ERR_CORRUPT);
        cr_assert_eq(sim_kv_rot(store.world, "store", 1, numbered(0, 1), bit), OK);
        expect(&store, read, 1, numbered(0, 1), "value");
    }
    struct prng prng;
    prng_init(&prng, 1);
    bool hit[RANGES] = {false};
    for (int i = 0; i < 100; i++) {
        uint16_t range;
        struct bytes key;
        struct prng again = prng;
        cr_assert_eq(sim_kv_rot_any(store.world, "store", &prng, &range, &key), OK);
        cr_assert_eq(store.ops->get(read, range, key, &value), ERR_CORRUPT);
        hit[range] = true;
        cr_assert_eq(sim_kv_rot_any(store.world, "store", &again, &range, &key), OK);
        cr_assert_eq(store.ops->get(read, range, key, &value), OK, "the same seed, the same bit");
    }
    for (int range = 0; range < RANGES; range++)
        cr_assert(hit[range]);
    store.ops->read_end(read);
    store_teardown(&store);
}

Test(kv_sim, a_wiped_store_is_as_if_never_created)
{
    struct store store;
    store_setup(&store, &sim_kv);
    put_one(&store, 1, key_of(0, "a"), "1", 0);
    sim_kv_crash(store.world, "store");
    sim_kv_wipe(store.world, "store");
    store.config.create = false;
    cr_assert_eq(store.ops->open(&store.config, &store.kv), ERR_NOT_FOUND);
    store.config.create = true;
    store_open(&store);
    expect_now(&store, 1, key_of(0, "a"), NULL);
    store_teardown(&store);
}

Test(kv_sim, stores_of_one_world_are_apart)
{
    struct store store;
    store_setup(&store, &sim_kv);
    put_one(&store, 1, key_of(0, "a"), "1", 0);
    struct store other = store;
    sim_kv_folder(store.world, "other", other.folder);
    other.config.folder = other.folder;
    store_open(&other);
    expect_now(&other, 1, key_of(0, "a"), NULL);
    put_one(&other, 1, key_of(0, "a"), "2", 0);
    expect_now(&store, 1, key_of(0, "a"), "1");
    other.ops->close(other.kv);
    store_teardown(&store);
}

Test(kv_sim, a_folder_that_is_no_world_is_refused)
{
    struct kv_config config = {.folder = "/tmp/somewhere", .ranges = 1, .create = true};
    struct kv *kv;
    cr_assert_eq(sim_kv.open(&config, &kv), ERR_INVALID);
    config.folder = "sim:0x10";
    cr_assert_eq(sim_kv.open(&config, &kv), ERR_INVALID);
}

/* ---- the simulator's clock */

Test(sim_clock, time_moves_only_when_told)
{
    struct sim_clock sim;
    sim_clock_init(&sim, 1700000000000);
    struct clock clock = sim_clock_io(&sim);
    uint64_t start = clock.monotonic_ns(clock.ctx);
    cr_assert_eq(clock.monotonic_ns(clock.ctx), start);
    cr_assert_eq(clock.wall_ms(clock.ctx), 1700000000000);
    sim_clock_advance(&sim, 1500000);
    cr_assert_eq(clock.monotonic_ns(clock.ctx), start + 1500000);
    cr_assert_eq(clock.wall_ms(clock.ctx), 1700000000001);
}

Test(sim_clock, drift_adds_up_exactly_in_steps_of_any_size)
{
    const int64_t drifts[] = {0, 1, -1, 200, -300000, 999999, -999999};
    for (size_t i = 0; i < sizeof drifts / sizeof *drifts; i++) {
        struct sim_clock sim;
        sim_clock_init(&sim, 0);
        struct clock clock = sim_clock_io(&sim);
        uint64_t start = clock.monotonic_ns(clock.ctx), last = start;
        sim_clock_set_drift(&sim, drifts[i]);
        for (int step = 0; step < 1000000; step++) {
            sim_clock_advance(&sim, step % 2 ? 7 : 13);
            cr_assert_geq(clock.monotonic_ns(clock.ctx), last);
            last = clock.monotonic_ns(clock.ctx);
        }
        cr_assert_eq((int64_t)(last - start), 10000000 + 10 * drifts[i]);
        cr_assert_eq(sim.true_ns, 10000000);
    }
}

Test(sim_clock, the_wall_jumps_and_the_monotonic_clock_does_not)
{
    struct sim_clock sim;
    sim_clock_init(&sim, 5000);
    struct clock clock = sim_clock_io(&sim);
    uint64_t start = clock.monotonic_ns(clock.ctx);
    sim_clock_jump_wall(&sim, -7000);
    cr_assert_eq(clock.wall_ms(clock.ctx), -2000);
    sim_clock_advance(&sim, 1);
    cr_assert_eq(clock.wall_ms(clock.ctx), -2000, "rounded down on both sides of zero");
    sim_clock_jump_wall(&sim, 100000);
    cr_assert_eq(clock.wall_ms(clock.ctx), 98000);
    cr_assert_eq(clock.monotonic_ns(clock.ctx), start + 1);
    sim_clock_restart(&sim);
    cr_assert_eq(clock.monotonic_ns(clock.ctx), start);
}
