#define _GNU_SOURCE
#include "tests/storage/harness.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "base/hash.h"

static void on_durable(void *ctx, lsn_t lsn)
{
    struct harness *harness = ctx;
    if (harness->engine == NULL) return;
    struct wal *wal = engine_wal(harness->engine);
    struct wal_record record;
    while (harness->applied < lsn && wal_next_record(wal, harness->applied, &record)) {
        cr_assert_leq(record.lsn, lsn);
        cr_assert_eq(engine_apply(harness->engine, &record), OK);
        harness->applied = record.lsn;
    }
    wal_release(wal, harness->applied);
}

enum err harness_try_open(struct harness *harness, const char *path, struct engine_report *report)
{
    char detail[512];
    struct folder_identity wanted = {.ranges = 1};
    enum err err = folder_open(path, true, &wanted, &harness->folder, detail, sizeof detail);
    if (err != OK) {
        snprintf(report->detail, sizeof report->detail, "%.300s", detail);
        return err;
    }
    harness->io = (struct io){.clock = clock_real(), .seed = 42};
    cr_assert_eq(disk_posix_open(harness->folder.wal, LOG_IO_POSIX, &harness->io.disk), OK);
    struct engine_config config = {
        .io = &harness->io,
        .kv = &kv_lmdb,
        .kv_folder = harness->folder.db,
        .ranges = harness->folder.identity.ranges,
        .memory = 64 << 20,
        .slot_size = 64 << 20,
        .log_bytes_max = UINT64_C(1) << 30,
        .map_size = UINT64_C(1) << 30,
        .chunk_puts = 100,
        .create = true,
        .ctx = harness,
        .on_durable = on_durable,
    };
    memcpy(config.store_id, harness->folder.identity.node_id, 16);
    harness->engine = NULL;
    err = engine_open(&config, report, &harness->engine);
    if (err != OK) {
        disk_posix_close(&harness->io.disk);
        folder_close(&harness->folder);
        return err;
    }
    harness->applied = engine_applied(harness->engine);
    return OK;
}

void harness_open(struct harness *harness, const char *path)
{
    struct engine_report report;
    enum err err = harness_try_open(harness, path, &report);
    cr_assert_eq(err, OK, "%s: %s", err_name(err), report.detail);
}

void harness_create(struct harness *harness, uint32_t ranges)
{
    *harness = (struct harness){.root = "/tmp/duramen-store-XXXXXX"};
    cr_assert_not_null(mkdtemp(harness->root));
    char path[128], detail[512];
    snprintf(path, sizeof path, "%s/data", harness->root);
    struct folder_identity wanted = {.name = "alpha", .ranges = ranges};
    struct folder folder;
    cr_assert_eq(
        folder_open(path, false, &wanted, &folder, detail, sizeof detail), OK, "%s", detail);
    folder_close(&folder);
    harness_open(harness, path);
}

void harness_close(struct harness *harness, bool checkpoint)
{
    if (harness->engine == NULL) return;
    engine_close(harness->engine, checkpoint);
    harness->engine = NULL;
    disk_posix_close(&harness->io.disk);
    folder_close(&harness->folder);
}

static int remove_one(const char *name, const struct stat *status, int kind, struct FTW *where)
{
    (void)status, (void)kind, (void)where;
    return remove(name);
}

void harness_destroy(struct harness *harness)
{
    harness_close(harness, false);
    nftw(harness->root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void write_effect(struct harness *harness, const struct effect *effect)
{
    struct wal *wal = engine_wal(harness->engine);
    size_t size = 8 + effect_size(effect->key.size, effect->value.size);
    enum err err;
    while ((err = engine_admit(harness->engine, size)) == ERR_AGAIN)
        harness_checkpoint(harness);
    cr_assert_eq(err, OK);
    lsn_t lsn;
    uint8_t *at = wal_append(wal, WAL_RECORD_WRITE, effect->range, size, &lsn);
    cr_assert_not_null(at);
    store_u64(at, 1700000000000u);
    uint8_t *value = effect_encode(at + 8, effect, effect->value.size);
    if (effect->value.size > 0) memcpy(value, effect->value.at, effect->value.size);
    engine_flush(harness->engine, true);
    while (harness->applied < lsn)
        cr_assert_eq(engine_poll(harness->engine), OK);
}

static uint16_t range_of(const struct harness *harness, const char *key)
{
    return (uint16_t)(1 + hash64(0, bytes_of_text(key)) % harness->folder.identity.ranges);
}

void harness_put(struct harness *harness, uint16_t bucket, const char *key, struct bytes value,
    int64_t expires_ms)
{
    struct effect effect = {
        .kind = EFFECT_PUT,
        .range = range_of(harness, key),
        .bucket = bucket,
        .expires_ms = expires_ms,
        .key = bytes_of_text(key),
        .value = value,
    };
    write_effect(harness, &effect);
}

void harness_delete(struct harness *harness, uint16_t bucket, const char *key)
{
    struct effect effect = {
        .kind = EFFECT_DELETE,
        .range = range_of(harness, key),
        .bucket = bucket,
        .key = bytes_of_text(key),
    };
    write_effect(harness, &effect);
}

void harness_clear(struct harness *harness, uint16_t bucket)
{
    for (uint32_t range = 1; range <= harness->folder.identity.ranges; range++) {
        struct effect effect = {
            .kind = EFFECT_CLEAR_BUCKET, .range = (uint16_t)range, .bucket = bucket};
        write_effect(harness, &effect);
    }
}

static void on_checkpoint(void *ctx, enum err err)
{
    cr_assert_eq(err, OK);
    *(bool *)ctx = true;
}

void harness_checkpoint(struct harness *harness)
{
    bool done = false;
    engine_checkpoint(harness->engine, on_checkpoint, &done);
    while (!done) {
        engine_checkpoint_step(harness->engine);
        cr_assert_eq(engine_poll(harness->engine), OK);
    }
}

struct dump {
    struct buffer *text;
    uint16_t range;
};

static bool dump_one(void *ctx, struct bytes key, const struct value *value)
{
    struct dump *dump = ctx;
    enum err err = buffer_printf(dump->text,
        "%u %u %.*s = %zu bytes, crc %08x, expires %" PRId64 ", version %" PRIu64 "\n", dump->range,
        load_u16_be(key.at), (int)key.size - 2, (const char *)key.at + 2, value->bytes.size,
        crc32c(0, value->bytes.at, value->bytes.size), value->expires_ms, value->version);
    cr_assert_eq(err, OK);
    return true;
}

void harness_dump(struct harness *harness, struct buffer *text)
{
    buffer_reset(text, SIZE_MAX);
    for (uint32_t range = 0; range <= harness->folder.identity.ranges; range++) {
        struct dump dump = {.text = text, .range = (uint16_t)range};
        cr_assert_eq(
            engine_scan(harness->engine, (uint16_t)range, bytes_of("", 0), false, dump_one, &dump),
            OK);
    }
    engine_read_done(harness->engine);
    cr_assert_eq(buffer_append(text, "", 1), OK);
}

void harness_read_file(const char *path, struct buffer *content)
{
    buffer_reset(content, SIZE_MAX);
    int fd = open(path, O_RDONLY);
    cr_assert(fd >= 0, "%s", path);
    ssize_t got;
    do {
        uint8_t *at = buffer_reserve(content, 1 << 16);
        got = read(fd, at, 1 << 16);
        cr_assert(got >= 0);
        buffer_wrote(content, (size_t)got);
    } while (got > 0);
    close(fd);
}

void harness_write_file(const char *path, struct bytes content)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    cr_assert(fd >= 0, "%s", path);
    while (content.size > 0) {
        ssize_t wrote = write(fd, content.at, content.size);
        cr_assert(wrote > 0);
        content = bytes_of(content.at + wrote, content.size - (size_t)wrote);
    }
    close(fd);
}

int harness_entries(const char *path)
{
    DIR *folder = opendir(path);
    cr_assert_not_null(folder);
    int count = -2;
    while (readdir(folder) != NULL)
        count++;
    closedir(folder);
    return count;
}
