#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "base/prng.h"
#include "storage/memtable.h"

static struct bytes key_make(uint8_t *at, uint16_t bucket, const char *text)
{
    store_u16_be(at, bucket);
    memcpy(at + 2, text, strlen(text));
    return bytes_of(at, 2 + strlen(text));
}

static void put_text(
    struct memtable *memtable, uint16_t range, uint16_t bucket, const char *key, const char *text)
{
    uint8_t at[512];
    struct value value = {.bytes = bytes_of_text(text), .version = 1};
    cr_assert_eq(memtable_put(memtable, range, key_make(at, bucket, key), &value), OK);
}

static enum memtable_found get_text(const struct memtable *memtable, uint16_t range,
    uint16_t bucket, const char *key, struct value *value_out)
{
    uint8_t at[512];
    return memtable_get(memtable, range, key_make(at, bucket, key), value_out);
}

Test(memtable, an_empty_table_holds_nothing)
{
    struct memtable *memtable = memtable_new(3, 1);
    struct value value;
    cr_assert_eq(get_text(memtable, 1, 0, "a", &value), MEMTABLE_MISS);
    cr_assert_eq(memtable_count(memtable), 0);
    struct memtable_cursor cursor;
    struct memtable_entry entry;
    memtable_seek(memtable, 2, bytes_of("", 0), &cursor);
    cr_assert_not(memtable_cursor_get(&cursor, &entry));
    memtable_cursor_next(&cursor);
    cr_assert_not(memtable_cursor_get(&cursor, &entry));
    memtable_free(memtable);
    memtable_free(NULL);
}

Test(memtable, a_put_value_is_returned_whole)
{
    struct memtable *memtable = memtable_new(3, 1);
    uint8_t at[64];
    struct bytes key = key_make(at, 7, "name");
    struct value value = {
        .bytes = bytes_of_text("text"), .expires_ms = 12345, .version = 99, .flags = 3};
    cr_assert_eq(memtable_put(memtable, 2, key, &value), OK);
    struct value found;
    cr_assert_eq(memtable_get(memtable, 2, key, &found), MEMTABLE_VALUE);
    cr_assert(bytes_equal(found.bytes, value.bytes));
    cr_assert_eq(found.expires_ms, 12345);
    cr_assert_eq(found.version, 99);
    cr_assert_eq(found.flags, 3);
    cr_assert_eq(memtable_get(memtable, 1, key, &found), MEMTABLE_MISS, "another range");
    cr_assert_eq(get_text(memtable, 2, 8, "name", &found), MEMTABLE_MISS, "another bucket");
    cr_assert_eq(memtable_range_count(memtable, 2), 1);
    cr_assert_eq(memtable_range_count(memtable, 1), 0);
    memtable_free(memtable);
}

Test(memtable, an_overwrite_in_place_replaces_every_field)
{
    struct memtable *memtable = memtable_new(2, 1);
    uint8_t at[64];
    struct bytes key = key_make(at, 0, "k");
    struct value value = {
        .bytes = bytes_of_text("long text"), .expires_ms = 5, .version = 1, .flags = 1};
    cr_assert_eq(memtable_put(memtable, 1, key, &value), OK);
    size_t bytes = memtable_bytes(memtable);
    value = (struct value){.bytes = bytes_of_text("short"), .version = 2};
    cr_assert_eq(memtable_put(memtable, 1, key, &value), OK);
    cr_assert_eq(memtable_bytes(memtable), bytes, "it fits, so nothing is allocated");
    struct value found;
    cr_assert_eq(memtable_get(memtable, 1, key, &found), MEMTABLE_VALUE);
    cr_assert(bytes_equal(found.bytes, bytes_of_text("short")));
    cr_assert_eq(found.expires_ms, 0);
    cr_assert_eq(found.version, 2);
    cr_assert_eq(found.flags, 0);
    cr_assert_eq(memtable_count(memtable), 1);
    memtable_free(memtable);
}

Test(memtable, a_deleted_key_hides_older_layers)
{
    struct memtable *memtable = memtable_new(2, 1);
    struct value found;
    uint8_t at[64];
    put_text(memtable, 1, 0, "here", "x");
    cr_assert_eq(memtable_delete(memtable, 1, key_make(at, 0, "here"), 2), OK);
    cr_assert_eq(memtable_delete(memtable, 1, key_make(at, 0, "never"), 3), OK);
    cr_assert_eq(get_text(memtable, 1, 0, "here", &found), MEMTABLE_GONE);
    cr_assert_eq(get_text(memtable, 1, 0, "never", &found), MEMTABLE_GONE);
    cr_assert_eq(memtable_count(memtable), 2, "tombstones count");
    struct memtable_cursor cursor;
    struct memtable_entry entry;
    memtable_seek(memtable, 1, bytes_of("", 0), &cursor);
    cr_assert(memtable_cursor_get(&cursor, &entry));
    cr_assert(entry.tombstone);
    cr_assert_eq(entry.value.version, 2);
    cr_assert_eq(entry.value.bytes.size, 0);
    put_text(memtable, 1, 0, "here", "a longer value than before");
    cr_assert_eq(get_text(memtable, 1, 0, "here", &found), MEMTABLE_VALUE);
    cr_assert(bytes_equal(found.bytes, bytes_of_text("a longer value than before")));
    memtable_free(memtable);
}

Test(memtable, large_values_come_and_go)
{
    struct memtable *memtable = memtable_new(2, 1);
    uint8_t at[64];
    struct bytes key = key_make(at, 0, "large");
    size_t empty = memtable_bytes(memtable);
    const size_t sizes[] = {100, 128 << 10, 16 << 20, 1 << 20, 3, 200 << 10, 0};
    uint8_t *bytes = malloc(16 << 20);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        memset(bytes, 'a' + (int)i, sizes[i]);
        struct value value = {.bytes = bytes_of(bytes, sizes[i]), .version = i}, found;
        cr_assert_eq(memtable_put(memtable, 1, key, &value), OK);
        cr_assert_eq(memtable_get(memtable, 1, key, &found), MEMTABLE_VALUE);
        cr_assert(bytes_equal(found.bytes, value.bytes));
        cr_assert_geq(memtable_bytes(memtable), sizes[i]);
        cr_assert_leq(memtable_bytes(memtable), (16 << 20) + (1 << 20), "nothing piles up");
    }
    cr_assert_leq(memtable_bytes(memtable), empty + (1 << 20), "the large places are gone");
    memtable_free(memtable);
    free(bytes);
}

/* ---- against a model */

enum { MODEL_KEYS = 6000 };

struct model_entry {
    bool present;
    bool tombstone;
    uint64_t version;
    int64_t expires_ms;
    size_t value_size;
    uint8_t fill;
};

struct model {
    struct memtable *memtable;
    struct model_entry entries[MODEL_KEYS];
    uint32_t order[MODEL_KEYS]; /* ids in key order */
    bool cleared[3][4];
    struct prng prng;
};

/* Shapes of keys that share much, little, nothing; with zeros; prefixes of each other. */
static struct bytes model_key(uint32_t id, uint8_t *at)
{
    char text[512];
    int size;
    switch (id % 6) {
    case 0:
        size = snprintf(text, sizeof text, "key:%012u", id);
        break;
    case 1:
        size = snprintf(text, sizeof text,
            "a-rather-long-prefix-that-does-not-fit-into-a-node-because-it-goes-on-and-on:%08u:"
            "tail",
            id);
        break;
    case 2: { /* prefixes of each other, with zeros */
        size = (int)(id / 6 % 390);
        memset(text, 0, (size_t)size);
        int digits = snprintf(text + size, sizeof text - (size_t)size, "%u", id / 6 / 390);
        size += digits;
        break;
    }
    case 3: {
        uint64_t mixed = id * UINT64_C(0x9e3779b97f4a7c15);
        memcpy(text, &mixed, 8);
        size = 8;
        break;
    }
    case 4:
        size = snprintf(text, sizeof text, "%u", id);
        break;
    default:
        size = snprintf(text, sizeof text, "user:%u:name", id);
        break;
    }
    store_u16_be(at, (uint16_t)(id / 7 % 4));
    memcpy(at + 2, text, (size_t)size);
    return bytes_of(at, (size_t)size + 2);
}

static int model_compare(const void *a, const void *b)
{
    uint8_t left[512], right[512];
    return bytes_compare(
        model_key(*(const uint32_t *)a, left), model_key(*(const uint32_t *)b, right));
}

static uint16_t model_range(uint32_t id)
{
    return (uint16_t)(id % 3 == 0 ? 0 : 1 + id % 5 % 2);
}

static void model_check_get(struct model *model, uint32_t id)
{
    uint8_t at[512], fill[4096];
    struct bytes key = model_key(id, at);
    struct model_entry *entry = &model->entries[id];
    struct value found;
    enum memtable_found result = memtable_get(model->memtable, model_range(id), key, &found);
    if (entry->present && !entry->tombstone) {
        cr_assert_eq(result, MEMTABLE_VALUE);
        cr_assert_eq(found.version, entry->version);
        cr_assert_eq(found.expires_ms, entry->expires_ms);
        memset(fill, entry->fill, sizeof fill);
        cr_assert(bytes_equal(found.bytes, bytes_of(fill, entry->value_size)));
    } else if (entry->present || model->cleared[model_range(id)][load_u16_be(key.at)]) {
        cr_assert_eq(result, MEMTABLE_GONE);
    } else {
        cr_assert_eq(result, MEMTABLE_MISS);
    }
}

static void model_check_walk(struct model *model, uint16_t range, uint32_t from)
{
    uint8_t at[512];
    struct memtable_cursor cursor;
    struct memtable_entry entry;
    memtable_seek(model->memtable, range,
        from == 0 ? bytes_of("", 0) : model_key(model->order[from], at), &cursor);
    uint64_t seen = 0;
    for (uint32_t i = from; i < MODEL_KEYS; i++) {
        uint32_t id = model->order[i];
        if (model_range(id) != range || !model->entries[id].present) continue;
        cr_assert(memtable_cursor_get(&cursor, &entry));
        cr_assert(bytes_equal(entry.key, model_key(id, at)));
        cr_assert_eq(entry.value.version, model->entries[id].version);
        cr_assert_eq(entry.tombstone, model->entries[id].tombstone);
        memtable_cursor_next(&cursor);
        seen++;
    }
    cr_assert_not(memtable_cursor_get(&cursor, &entry));
    if (from == 0) cr_assert_eq(memtable_range_count(model->memtable, range), seen);
}

static void model_step(struct model *model, uint64_t version)
{
    uint8_t at[512], fill[4096];
    uint32_t id = (uint32_t)prng_below(&model->prng, MODEL_KEYS);
    struct bytes key = model_key(id, at);
    struct model_entry *entry = &model->entries[id];
    uint64_t dice = prng_below(&model->prng, 100000);
    if (dice < 20) {
        uint16_t bucket = (uint16_t)prng_below(&model->prng, 4);
        uint16_t range = (uint16_t)prng_below(&model->prng, 3);
        cr_assert_eq(memtable_clear_bucket(model->memtable, range, bucket), OK);
        model->cleared[range][bucket] = true;
        for (uint32_t i = 0; i < MODEL_KEYS; i++) {
            if (model_range(i) == range && i / 7 % 4 == bucket) model->entries[i].present = false;
        }
    } else if (dice < 20000) {
        cr_assert_eq(memtable_delete(model->memtable, model_range(id), key, version), OK);
        *entry = (struct model_entry){.present = true, .tombstone = true, .version = version};
    } else {
        *entry = (struct model_entry){
            .present = true,
            .version = version,
            .expires_ms = prng_chance(&model->prng, 1, 3) ? (int64_t)version : 0,
            .value_size = (size_t)prng_below(&model->prng, dice < 25000 ? sizeof fill : 60),
            .fill = (uint8_t)version,
        };
        memset(fill, entry->fill, entry->value_size);
        struct value value = {.bytes = bytes_of(fill, entry->value_size),
            .expires_ms = entry->expires_ms,
            .version = version};
        cr_assert_eq(memtable_put(model->memtable, model_range(id), key, &value), OK);
    }
    model_check_get(model, id);
}

Test(memtable, behaves_like_a_sorted_list)
{
    for (uint64_t seed = 1; seed <= 3; seed++) {
        struct model *model = calloc(1, sizeof *model);
        prng_init(&model->prng, seed);
        model->memtable = memtable_new(3, seed);
        for (uint32_t i = 0; i < MODEL_KEYS; i++)
            model->order[i] = i;
        qsort(model->order, MODEL_KEYS, sizeof *model->order, model_compare);
        for (uint64_t version = 1; version <= 60000; version++) {
            model_step(model, version);
            if (version % 6000 == 0) {
                for (uint16_t range = 0; range < 3; range++) {
                    model_check_walk(model, range, 0);
                    model_check_walk(
                        model, range, 1 + (uint32_t)prng_below(&model->prng, MODEL_KEYS - 1));
                }
            }
            if (version == 30000) {
                memtable_reset(model->memtable, 1 << 20);
                memset(model->entries, 0, sizeof model->entries);
                memset(model->cleared, 0, sizeof model->cleared);
                cr_assert_eq(memtable_count(model->memtable), 0);
            }
        }
        uint64_t present = 0;
        for (uint32_t id = 0; id < MODEL_KEYS; id++) {
            model_check_get(model, id);
            if (model->entries[id].present) present++;
        }
        cr_assert_eq(memtable_count(model->memtable), present);
        memtable_free(model->memtable);
        free(model);
    }
}

Test(memtable, keys_in_ascending_and_descending_order_stay_in_order)
{
    for (int down = 0; down < 2; down++) {
        struct memtable *memtable = memtable_new(2, 5);
        char text[32];
        for (unsigned i = 0; i < 20000; i++) {
            snprintf(text, sizeof text, "key:%08u", down ? 19999 - i : i);
            put_text(memtable, 1, 0, text, "v");
        }
        struct memtable_cursor cursor;
        struct memtable_entry entry;
        uint8_t at[64];
        memtable_seek(memtable, 1, key_make(at, 0, "key:00010000"), &cursor);
        for (unsigned i = 10000; i < 20000; i++) {
            cr_assert(memtable_cursor_get(&cursor, &entry));
            snprintf(text, sizeof text, "key:%08u", i);
            cr_assert(bytes_equal(entry.key, key_make(at, 0, text)));
            memtable_cursor_next(&cursor);
        }
        cr_assert_not(memtable_cursor_get(&cursor, &entry));
        memtable_free(memtable);
    }
}

Test(memtable, ascending_keys_leave_full_nodes)
{
    struct memtable *ordered = memtable_new(2, 5), *shuffled = memtable_new(2, 5);
    char text[32];
    for (unsigned i = 0; i < 40000; i++) {
        snprintf(text, sizeof text, "%08u", i);
        put_text(ordered, 1, 0, text, "");
        snprintf(text, sizeof text, "%08u", i * 7919u % 40000u);
        put_text(shuffled, 1, 0, text, "");
    }
    cr_assert_eq(memtable_count(shuffled), 40000);
    cr_assert_lt(memtable_bytes(ordered), memtable_bytes(shuffled));
    memtable_free(ordered);
    memtable_free(shuffled);
}

Test(memtable, memory_per_entry_stays_in_its_budget)
{
    struct memtable *memtable = memtable_new(65, 5);
    struct prng prng;
    prng_init(&prng, 3);
    uint8_t value[100] = {1}, key[20] = {0};
    enum { ENTRIES = 200000 };
    for (unsigned i = 0; i < ENTRIES; i++) {
        store_u64(key + 2, prng_next(&prng));
        struct value put = {.bytes = bytes_of(value, sizeof value), .version = i};
        uint16_t range = (uint16_t)(1 + i % 64);
        cr_assert_eq(memtable_put(memtable, range, bytes_of(key, sizeof key), &put), OK);
    }
    cr_assert_leq(memtable_bytes(memtable) / ENTRIES, 200);
    cr_assert_geq(memtable_bytes(memtable) / ENTRIES, 120, "and is not made up");
    memtable_free(memtable);
}

/* ---- clearing a bucket */

static void note_cleared(void *ctx, uint16_t range, uint16_t bucket)
{
    uint64_t *sum = ctx;
    *sum = *sum * 1000 + bucket * 100u + range;
}

static void clear_all(struct memtable *memtable, uint32_t ranges, uint16_t bucket)
{
    for (uint32_t range = 1; range < ranges; range++)
        cr_assert_eq(memtable_clear_bucket(memtable, (uint16_t)range, bucket), OK);
}

Test(memtable, clearing_a_bucket_hides_it_and_nothing_else)
{
    struct memtable *memtable = memtable_new(3, 1);
    struct value found;
    put_text(memtable, 1, 4, "a", "1");
    put_text(memtable, 2, 4, "b", "2");
    put_text(memtable, 1, 3, "a", "3");
    put_text(memtable, 1, 5, "a", "4");
    put_text(memtable, 0, 4, "a", "5");
    put_text(memtable, 2, 4, "a", "6");
    cr_assert_not(memtable_cleared(memtable, 1, 4));
    cr_assert_eq(memtable_clear_bucket(memtable, 1, 4), OK);
    cr_assert(memtable_cleared(memtable, 1, 4));
    cr_assert_not(memtable_cleared(memtable, 1, 3));
    cr_assert_not(memtable_cleared(memtable, 2, 4));
    cr_assert(memtable_range_cleared(memtable, 1));
    cr_assert_not(memtable_range_cleared(memtable, 2));
    cr_assert_eq(get_text(memtable, 1, 4, "a", &found), MEMTABLE_GONE);
    cr_assert_eq(get_text(memtable, 1, 4, "never", &found), MEMTABLE_GONE);
    cr_assert_eq(get_text(memtable, 1, 3, "a", &found), MEMTABLE_VALUE);
    cr_assert_eq(get_text(memtable, 1, 5, "a", &found), MEMTABLE_VALUE);
    cr_assert_eq(get_text(memtable, 1, 5, "never", &found), MEMTABLE_MISS);
    cr_assert_eq(get_text(memtable, 2, 4, "b", &found), MEMTABLE_VALUE, "another range");
    cr_assert_eq(get_text(memtable, 2, 4, "never", &found), MEMTABLE_MISS);
    cr_assert_eq(get_text(memtable, 0, 4, "a", &found), MEMTABLE_VALUE);
    cr_assert_eq(get_text(memtable, 0, 4, "b", &found), MEMTABLE_MISS);
    cr_assert_eq(memtable_count(memtable), 5);
    memtable_free(memtable);
}

Test(memtable, a_cleared_bucket_takes_new_keys)
{
    struct memtable *memtable = memtable_new(2, 1);
    struct value found;
    put_text(memtable, 1, 4, "a", "1");
    put_text(memtable, 1, 4, "b", "1");
    put_text(memtable, 1, 6, "c", "1");
    cr_assert_eq(memtable_clear_bucket(memtable, 1, 4), OK);
    put_text(memtable, 1, 4, "a", "2");
    put_text(memtable, 1, 4, "b", "a value that does not fit where the old one was");
    cr_assert_eq(get_text(memtable, 1, 4, "a", &found), MEMTABLE_VALUE);
    cr_assert(bytes_equal(found.bytes, bytes_of_text("2")));
    cr_assert_eq(get_text(memtable, 1, 4, "b", &found), MEMTABLE_VALUE);
    cr_assert_eq(memtable_count(memtable), 3);
    struct memtable_cursor cursor;
    struct memtable_entry entry;
    unsigned seen = 0;
    memtable_seek(memtable, 1, bytes_of("", 0), &cursor);
    for (; memtable_cursor_get(&cursor, &entry); memtable_cursor_next(&cursor))
        seen++;
    cr_assert_eq(seen, 3);
    cr_assert_eq(memtable_clear_bucket(memtable, 1, 4), OK);
    cr_assert_eq(memtable_clear_bucket(memtable, 1, 6), OK);
    cr_assert_eq(memtable_count(memtable), 0);
    uint64_t sum = 0;
    memtable_each_cleared(memtable, note_cleared, &sum);
    cr_assert_eq(sum, 401 * 1000 + 601, "each bucket of the range once");
    memtable_free(memtable);
}

Test(memtable, clearing_everything_gives_the_memory_back)
{
    struct memtable *memtable = memtable_new(3, 1);
    size_t empty = memtable_bytes(memtable);
    char text[32];
    for (unsigned i = 0; i < 30000; i++) {
        snprintf(text, sizeof text, "%u", i);
        put_text(memtable, (uint16_t)(1 + i % 2), 0, text, "0123456789");
    }
    cr_assert_geq(memtable_bytes(memtable), empty + 30000 * 20);
    clear_all(memtable, 3, 0);
    cr_assert_leq(memtable_bytes(memtable), empty + 4096);
    put_text(memtable, 1, 0, "again", "x");
    cr_assert_eq(memtable_count(memtable), 1);
    memtable_free(memtable);
}

Test(memtable, a_reset_table_is_as_new)
{
    struct memtable *memtable = memtable_new(2, 1);
    size_t empty = memtable_bytes(memtable);
    for (int round = 0; round < 3; round++) {
        char text[32];
        struct value found;
        for (unsigned i = 0; i < 50000; i++) {
            snprintf(text, sizeof text, "%d/%u", round, i);
            put_text(memtable, 1, 0, text, "0123456789");
        }
        cr_assert_eq(memtable_clear_bucket(memtable, 1, 3), OK);
        cr_assert_eq(memtable_count(memtable), 50000);
        memtable_reset(memtable, round == 1 ? 0 : SIZE_MAX);
        cr_assert_not(memtable_cleared(memtable, 1, 3));
        cr_assert_eq(get_text(memtable, 1, 0, text, &found), MEMTABLE_MISS);
        cr_assert_eq(memtable_count(memtable), 0);
        cr_assert_leq(memtable_bytes(memtable), empty + 4096);
    }
    memtable_free(memtable);
}

Test(memtable, notes_stay_with_their_key)
{
    struct memtable *memtable = memtable_new(2, 1);
    put_text(memtable, 1, 0, "a", "1");
    put_text(memtable, 1, 0, "b", "1");
    struct memtable_cursor cursor;
    uint8_t at[64];
    memtable_seek(memtable, 1, key_make(at, 0, "b"), &cursor);
    cr_assert_eq(memtable_cursor_note(&cursor), 0);
    memtable_cursor_set_note(&cursor, 2);
    put_text(memtable, 1, 0, "b", "2");
    put_text(memtable, 1, 0, "b", "more than fits in the place of the old one");
    memtable_seek(memtable, 1, key_make(at, 0, "a"), &cursor);
    cr_assert_eq(memtable_cursor_note(&cursor), 0);
    memtable_cursor_next(&cursor);
    cr_assert_eq(memtable_cursor_note(&cursor), 2);
    cr_assert_eq(memtable_clear_bucket(memtable, 1, 0), OK);
    put_text(memtable, 1, 0, "b", "3");
    memtable_seek(memtable, 1, bytes_of("", 0), &cursor);
    cr_assert_eq(memtable_cursor_note(&cursor), 0, "what was known of the old key is forgotten");
    memtable_free(memtable);
}

/* Address space limits do not work below sanitizers, which reserve terabytes. */
#if !defined(__SANITIZE_ADDRESS__)
Test(memtable, running_out_of_memory_leaves_it_unchanged)
{
    struct memtable *memtable = memtable_new(2, 1);
    char text[32], filler[2000];
    memset(filler, 'x', sizeof filler);
    struct value value = {.bytes = bytes_of(filler, sizeof filler), .version = 1};
    put_text(memtable, 1, 0, "first", "x");
    unsigned stored = 0;
    struct rlimit limit, before;
    getrlimit(RLIMIT_AS, &before);
    limit = before;
    limit.rlim_cur = 256 << 20;
    setrlimit(RLIMIT_AS, &limit);
    uint8_t at[64];
    enum err err = OK;
    for (; stored < 1000000 && err == OK; stored++) {
        snprintf(text, sizeof text, "key:%u", stored);
        err = memtable_put(memtable, 1, key_make(at, 0, text), &value);
    }
    stored--;
    setrlimit(RLIMIT_AS, &before);
    cr_assert_eq(err, ERR_NOMEM);
    cr_assert_eq(memtable_count(memtable), stored + 1);
    struct value found;
    cr_assert_eq(get_text(memtable, 1, 0, text, &found), MEMTABLE_MISS);
    cr_assert_eq(get_text(memtable, 1, 0, "key:0", &found), MEMTABLE_VALUE);
    struct memtable_cursor cursor;
    struct memtable_entry entry;
    unsigned seen = 0;
    memtable_seek(memtable, 1, bytes_of("", 0), &cursor);
    for (; memtable_cursor_get(&cursor, &entry); memtable_cursor_next(&cursor))
        seen++;
    cr_assert_eq(seen, stored + 1);
    cr_assert_eq(memtable_put(memtable, 1, key_make(at, 0, text), &value), OK, "later it works");
    memtable_free(memtable);
}
#endif
