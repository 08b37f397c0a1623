#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/prng.h"
#include "storage/backup.h"
#include "tests/storage/harness.h"

struct findings {
    int count;
    char text[16384];
};

static void on_found(void *ctx, const char *sentence)
{
    struct findings *findings = ctx;
    findings->count++;
    size_t used = strlen(findings->text);
    snprintf(findings->text + used, sizeof findings->text - used, "%s\n", sentence);
}

static enum err verify(const char *path, struct findings *findings)
{
    uint64_t values, records;
    *findings = (struct findings){0};
    return folder_verify(path, on_found, findings, &values, &records);
}

static void fill(struct harness *store, int count)
{
    for (int i = 0; i < count; i++) {
        char key[32], value[400];
        snprintf(key, sizeof key, "key-%04d", i);
        memset(value, 'a' + i % 26, sizeof value);
        harness_put(store, (uint16_t)(i % 2), key, bytes_of(value, (size_t)(i % 400)),
            i % 3 == 0 ? 2000000000000 + i : 0);
    }
}

static char path[128], data[160];

static void open_scene(struct harness *store, int count, bool checkpoint)
{
    harness_create(store, 3);
    snprintf(path, sizeof path, "%s/data", store->root);
    snprintf(data, sizeof data, "%s/db/data.mdb", path);
    fill(store, count);
    if (checkpoint) harness_checkpoint(store);
}

Test(verify, a_sound_folder_is_sound)
{
    struct harness store;
    struct findings findings;
    open_scene(&store, 300, true);
    harness_clear(&store, 1);
    fill(&store, 50);
    harness_close(&store, false);
    uint64_t values, records;
    findings = (struct findings){0};
    cr_assert_eq(
        folder_verify(path, on_found, &findings, &values, &records), OK, "%s", findings.text);
    cr_assert_eq(values, 300);
    cr_assert_gt(records, 50);
    harness_open(&store, path);
    harness_close(&store, true);
    cr_assert_eq(
        folder_verify(path, on_found, &findings, &values, &records), OK, "%s", findings.text);
    cr_assert_eq(values, 175);
    harness_destroy(&store);
}

Test(verify, a_running_node_is_left_alone)
{
    struct harness store;
    struct findings findings;
    open_scene(&store, 1, false);
    cr_assert_eq(verify(path, &findings), ERR_BUSY);
    harness_destroy(&store);
}

Test(verify, a_fresh_and_a_restored_folder_are_sound)
{
    struct harness store;
    struct findings findings;
    open_scene(&store, 100, true);
    struct backup *backup;
    struct buffer out = {0};
    cr_assert_eq(backup_open(store.engine, "00112233445566778899aabbccddeeff", "a", &backup), OK);
    enum err err;
    while ((err = backup_next(backup, &out)) != ERR_NOT_FOUND) {
        cr_assert(err == OK || err == ERR_AGAIN);
        engine_checkpoint_step(store.engine);
        cr_assert_eq(engine_poll(store.engine), OK);
    }
    backup_close(backup);
    char file[160], restored[160], detail[512];
    snprintf(file, sizeof file, "%s/backup", store.root);
    snprintf(restored, sizeof restored, "%s/restored", store.root);
    harness_write_file(file, buffer_view(&out));
    buffer_deinit(&out);
    struct backup_info info;
    cr_assert_eq(backup_restore(file, restored, false, NULL, NULL, &info, detail, sizeof detail),
        OK, "%s", detail);
    cr_assert_eq(verify(restored, &findings), OK, "%s", findings.text);

    char fresh[160];
    snprintf(fresh, sizeof fresh, "%s/fresh", store.root);
    struct folder_identity wanted = {.ranges = 1};
    struct folder folder;
    cr_assert_eq(folder_open(fresh, false, &wanted, &folder, detail, sizeof detail), OK);
    folder_close(&folder);
    cr_assert_eq(verify(fresh, &findings), OK, "%s", findings.text);
    harness_destroy(&store);
}

/* the offset of `text` in a file, -1 if it is not there; the last one if `last` */
static off_t find_in(const char *name, const char *text, bool last)
{
    struct buffer content = {0};
    harness_read_file(name, &content);
    off_t found = -1;
    size_t size = strlen(text);
    for (size_t i = 0; i + size <= content.size && (last || found < 0); i++)
        if (memcmp(content.at + i, text, size) == 0) found = (off_t)i;
    buffer_deinit(&content);
    return found;
}

static void overwrite(const char *name, off_t offset, const void *at, size_t size)
{
    int fd = open(name, O_WRONLY);
    cr_assert(fd >= 0);
    cr_assert_eq(pwrite(fd, at, size, offset), (ssize_t)size);
    close(fd);
}

static void flip(const char *name, off_t offset)
{
    int fd = open(name, O_RDWR);
    uint8_t byte;
    cr_assert_eq(pread(fd, &byte, 1, offset), 1);
    byte ^= 4;
    cr_assert_eq(pwrite(fd, &byte, 1, offset), 1);
    close(fd);
}

Test(verify, a_flipped_bit_of_a_value_is_named_with_range_and_key)
{
    struct harness store;
    struct findings findings;
    open_scene(&store, 30, false);
    harness_put(&store, 7, "treasure\n", bytes_of_text("find-me-in-the-file"), 0);
    harness_close(&store, true);
    off_t at = find_in(data, "find-me-in-the-file", true);
    cr_assert_geq(at, 0);
    flip(data, at + 3);
    cr_assert_eq(verify(path, &findings), ERR_CORRUPT);
    cr_assert_eq(findings.count, 1, "%s", findings.text);
    cr_assert_not_null(strstr(findings.text, "db/data.mdb"), "%s", findings.text);
    cr_assert_not_null(
        strstr(findings.text, "bucket 7, key \"treasure\\x0a\""), "%s", findings.text);
    harness_destroy(&store);
}

Test(verify, a_flipped_bit_of_the_log_is_named)
{
    struct harness store;
    struct findings findings;
    open_scene(&store, 30, false);
    harness_put(&store, 7, "treasure", bytes_of_text("find-me-in-the-log"), 0);
    fill(&store, 30);
    harness_close(&store, false);
    char slot[256];
    int number = 0;
    do {
        cr_assert_lt(number, 5);
        snprintf(slot, sizeof slot, "%s/wal/slot-%04d", path, number++);
    } while (find_in(slot, "find-me-in-the-log", true) < 0);
    flip(slot, find_in(slot, "find-me-in-the-log", true) + 3);
    cr_assert_eq(verify(path, &findings), ERR_CORRUPT);
    cr_assert_geq(findings.count, 1);
    cr_assert_not_null(strstr(findings.text, "slot-"), "%s", findings.text);
    harness_destroy(&store);
}

Test(verify, a_damaged_or_missing_identity_is_named)
{
    struct harness store;
    struct findings findings;
    open_scene(&store, 3, true);
    harness_close(&store, true);
    char identity[160];
    snprintf(identity, sizeof identity, "%s/identity", path);
    flip(identity, 40);
    cr_assert_eq(verify(path, &findings), ERR_CORRUPT);
    cr_assert_not_null(strstr(findings.text, "identity"), "%s", findings.text);
    cr_assert_eq(unlink(identity), 0);
    cr_assert_eq(verify(path, &findings), ERR_CORRUPT);
    cr_assert_not_null(strstr(findings.text, "identity"), "%s", findings.text);
    harness_destroy(&store);
}

/* LMDB may abort, fault or run in circles on these: none of it may reach the caller. */
Test(verify, damaged_pages_are_reported_and_never_fatal, .timeout = 100)
{
    struct harness store;
    struct findings findings;
    open_scene(&store, 600, true);
    harness_close(&store, true);
    struct buffer whole = {0};
    harness_read_file(data, &whole);
    struct prng prng;
    prng_init(&prng, 11);
    int reported = 0;
    for (int trial = 0; trial < 60; trial++) {
        size_t pages = whole.size / 4096;
        size_t page = 2 + prng_below(&prng, pages - 2);
        uint8_t zeros[4096] = {0};
        harness_write_file(data, buffer_view(&whole));
        switch (trial % 3) {
        case 0:
            overwrite(data, (off_t)page * 4096, zeros, sizeof zeros);
            break;
        case 1:
            overwrite(data, (off_t)page * 4096,
                whole.at + 4096 * (2 + prng_below(&prng, pages - 2)), 4096);
            break;
        case 2:
            cr_assert_eq(truncate(data, (off_t)page * 4096), 0);
            break;
        }
        enum err err = verify(path, &findings);
        cr_assert(err == OK || err == ERR_CORRUPT, "%s", err_name(err));
        cr_assert_eq(err == ERR_CORRUPT, findings.count > 0);
        reported += err == ERR_CORRUPT;
    }
    cr_assert_gt(reported, 30);
    buffer_deinit(&whole);
    harness_destroy(&store);
}

Test(verify, a_missing_store_or_log_is_damage)
{
    struct harness store;
    struct findings findings;
    open_scene(&store, 30, true);
    harness_close(&store, true);
    char saved[200];
    snprintf(saved, sizeof saved, "%s/saved", store.root);
    cr_assert_eq(rename(data, saved), 0);
    cr_assert_eq(verify(path, &findings), ERR_CORRUPT);
    cr_assert_not_null(strstr(findings.text, "data.mdb is missing"), "%s", findings.text);
    cr_assert_eq(rename(saved, data), 0);
    char log[200];
    snprintf(log, sizeof log, "%s/wal", path);
    cr_assert_eq(rename(log, saved), 0);
    cr_assert_eq(verify(path, &findings), ERR_CORRUPT);
    cr_assert_not_null(strstr(findings.text, "wal"), "%s", findings.text);
    cr_assert_eq(rename(saved, log), 0);
    cr_assert_eq(verify(path, &findings), OK, "%s", findings.text);
    harness_destroy(&store);
}

Test(verify, what_is_no_data_folder_is_not_verified)
{
    struct findings findings;
    cr_assert_eq(verify("/nowhere/at/all", &findings), ERR_NOT_FOUND);
    char empty[] = "/tmp/duramen-empty-XXXXXX";
    cr_assert_not_null(mkdtemp(empty));
    cr_assert_eq(verify(empty, &findings), ERR_NOT_FOUND);
    rmdir(empty);
}

/* All copies of a text in a file, old pages included, get the same flipped bit. */
static void flip_all(const char *name, const char *text, size_t at, uint8_t bits)
{
    struct buffer content = {0};
    size_t size = strlen(text);
    int count = 0;
    harness_read_file(name, &content);
    for (size_t i = 0; i + size <= content.size; i++) {
        if (memcmp(content.at + i, text, size) != 0) continue;
        content.at[i + at] ^= bits;
        count++;
    }
    cr_assert_gt(count, 0);
    harness_write_file(name, buffer_view(&content));
    buffer_deinit(&content);
}

Test(verify, a_store_that_lost_a_key_is_not_opened)
{
    struct harness store;
    struct findings findings;
    struct engine_report report;
    open_scene(&store, 300, true);
    harness_close(&store, true);
    /* The value under the changed key fails its checksum, but a search for the old key finds nothing. */
    flip_all(data, "key-0123", 7, 1);
    cr_assert_eq(harness_try_open(&store, path, &report), ERR_CORRUPT);
    cr_assert_not_null(strstr(report.detail, "do not add up"), "%s", report.detail);
    cr_assert_eq(verify(path, &findings), ERR_CORRUPT);
    cr_assert_not_null(strstr(findings.text, "do not add up"), "%s", findings.text);
    harness_destroy(&store);
}

Test(verify, an_unreadable_value_alone_does_not_keep_a_store_closed_and_can_be_replaced)
{
    struct harness store;
    struct findings findings;
    open_scene(&store, 30, false);
    harness_put(&store, 0, "treasure", bytes_of_text("find-me-in-the-file"), 0);
    harness_put(&store, 0, "jewel", bytes_of_text("seek-me-in-the-file"), 0);
    harness_close(&store, true);
    flip_all(data, "find-me-in-the-file", 3, 4);
    flip_all(data, "seek-me-in-the-file", 3, 4);
    harness_open(&store, path);
    struct engine_stats stats;
    engine_stats(store.engine, &stats);
    cr_assert_eq(stats.damaged, 2);
    harness_put(&store, 0, "treasure", bytes_of_text("new"), 0);
    harness_delete(&store, 0, "jewel");
    harness_close(&store, true);
    cr_assert_eq(verify(path, &findings), OK, "%s", findings.text);
    harness_open(&store, path);
    engine_stats(store.engine, &stats);
    cr_assert_eq(stats.damaged, 0);
    harness_destroy(&store);
}

Test(verify, sums_and_counts_hold_through_every_kind_of_write)
{
    struct harness store;
    struct findings findings;
    struct prng prng;
    prng_init(&prng, 21);
    open_scene(&store, 10, false);
    for (int round = 0; round < 12; round++) {
        for (int i = 0; i < 60; i++) {
            char key[16];
            snprintf(key, sizeof key, "key-%03u", (unsigned)prng_below(&prng, 150));
            uint16_t bucket = (uint16_t)prng_below(&prng, 3);
            if (prng_chance(&prng, 1, 4))
                harness_delete(&store, bucket, key);
            else
                harness_put(&store, bucket, key, bytes_of_text(key),
                    prng_chance(&prng, 1, 4) ? 2000000000000 + i : 0);
        }
        if (prng_chance(&prng, 1, 3)) harness_clear(&store, (uint16_t)prng_below(&prng, 3));
        harness_checkpoint(&store);
        if (round % 3 != 2) continue;
        harness_close(&store, prng_chance(&prng, 1, 2));
        cr_assert_eq(verify(path, &findings), OK, "%s", findings.text);
        harness_open(&store, path);
    }
    harness_destroy(&store);
}
