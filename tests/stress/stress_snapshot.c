#define _GNU_SOURCE
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

#include "base/check.h"
#include "storage/engine.h"
#include "storage/kv_check.h"

/* Two engines on LMDB with all their threads: a range is sent from one to the other while both write to other
 * ranges and checkpoint, and the target is read. Then both must have the same, and their stores must
 * add up. Prints how fast. */

enum { RANGES = 2, MOVED = 2, BUSY = 1, VALUE = 40 };

static void sleep_us(long us)
{
    nanosleep(&(struct timespec){.tv_nsec = us * 1000}, NULL);
}

struct side {
    char root[64], wal[80], db[80];
    struct io io;
    struct engine *engine;
    struct range_meta metas[RANGES + 1];
    uint32_t writes;
};

static enum err on_range(void *ctx, uint16_t range, const struct range_meta *meta)
{
    struct side *side = ctx;
    side->metas[range] = *meta;
    return OK;
}

static enum err on_replay(void *ctx, struct engine *engine, const struct wal_record *record)
{
    (void)ctx, (void)engine, (void)record;
    return OK;
}

static void on_durable(void *ctx, lsn_t lsn)
{
    (void)ctx, (void)lsn;
}

static void range_meta(void *ctx, uint16_t range, struct range_meta *meta)
{
    struct side *side = ctx;
    *meta = side->metas[range];
}

static lsn_t low_water(void *ctx)
{
    (void)ctx;
    return 0;
}

static void open_side(struct side *side)
{
    snprintf(side->root, sizeof side->root, "/tmp/duramen-snapshot-XXXXXX");
    ASSERT(mkdtemp(side->root) != NULL);
    snprintf(side->wal, sizeof side->wal, "%s/wal", side->root);
    snprintf(side->db, sizeof side->db, "%s/db", side->root);
    side->io = (struct io){.clock = clock_real(), .seed = 5};
    enum err err = disk_posix_open(side->wal, LOG_IO_POSIX, &side->io.disk);
    ASSERT(err == OK);
    struct engine_config config = {
        .io = &side->io,
        .kv = &kv_lmdb,
        .kv_folder = side->db,
        .ranges = RANGES,
        .memory = 256 << 20,
        .slot_size = 4 << 20,
        .log_bytes_max = 64 << 20,
        .map_size = UINT64_C(4) << 30,
        .background = true,
        .create = true,
        .ctx = side,
        .on_durable = on_durable,
        .on_range = on_range,
        .on_replay = on_replay,
        .range_meta = range_meta,
        .low_water = low_water,
    };
    struct engine_report report;
    err = engine_open(&config, &report, &side->engine);
    if (err != OK) fprintf(stderr, "%s\n", report.detail);
    ASSERT(err == OK);
}

static int remove_one(const char *name, const struct stat *status, int kind, struct FTW *where)
{
    (void)status, (void)kind, (void)where;
    return remove(name);
}

static void close_side(struct side *side)
{
    engine_close(side->engine, false);
    disk_posix_close(&side->io.disk);
    nftw(side->root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void put(struct side *side, uint16_t range, uint32_t number, uint8_t fill)
{
    uint8_t bytes[256], value[VALUE];
    char key[32];
    snprintf(key, sizeof key, "key:%010u", number);
    memset(value, fill, sizeof value);
    struct effect effect = {.kind = EFFECT_PUT, .range = range, .key = bytes_of_text(key)};
    if (number % 10 == 0) effect.expires_ms = 1000 + number;
    uint8_t *at = effect_encode(bytes, &effect, sizeof value);
    memcpy(at, value, sizeof value);
    size_t size = effect_size(effect.key.size, sizeof value);
    enum err err =
        engine_apply_entry(side->engine, range, ++side->metas[range].index, bytes_of(bytes, size));
    ASSERT(err == OK);
}

static void poll_side(struct side *side)
{
    enum err err = engine_poll(side->engine);
    ASSERT(err == OK);
    engine_read_done(side->engine);
}

static void checkpointed(void *ctx, enum err err)
{
    /* busy: one that busy() asked for is still under way */
    *(int *)ctx = err == OK ? 1 : -1;
}

static void checkpoint(struct side *side)
{
    int done = -1;
    while (done != 1) {
        if (done < 0) {
            done = 0;
            engine_checkpoint(side->engine, checkpointed, &done);
        }
        poll_side(side);
        sleep_us(200);
    }
}

static void ignore(void *ctx, enum err err)
{
    (void)ctx, (void)err;
}

static void busy(struct side *side)
{
    for (int i = 0; i < 20; i++) {
        put(side, BUSY, side->writes * 7919 % 50000, (uint8_t)side->writes);
        side->writes++;
    }
    if (side->writes % 2000 == 0) engine_checkpoint(side->engine, ignore, NULL);
    poll_side(side);
}

struct outcome {
    bool ended;
    enum err result;
};

static void install_done(void *ctx, enum err result)
{
    *(struct outcome *)ctx = (struct outcome){.ended = true, .result = result};
}

static double seconds(void)
{
    struct clock clock = clock_real();
    return (double)clock.monotonic_ns(clock.ctx) / 1e9;
}

static void transfer(struct side *source, struct side *target, bool disturb)
{
    struct range_meta meta;
    struct snapshot *snapshot;
    struct install *install;
    struct outcome outcome = {0};
    enum err err = snapshot_open(source->engine, MOVED, &meta, &snapshot);
    ASSERT(err == OK);
    if (engine_range_in_memory(target->engine, MOVED)) checkpoint(target);
    target->metas[MOVED].flags = RANGE_META_INSTALLING;
    err = install_begin(
        target->engine, MOVED, &target->metas[MOVED], install_done, &outcome, &install);
    ASSERT(err == OK);
    double started = seconds();
    struct bytes chunk = {0};
    for (;;) {
        if (chunk.size == 0) err = snapshot_next(snapshot, &chunk);
        if (chunk.size > 0) err = install_add(install, chunk);
        if (err == OK) chunk.size = 0;
        if (err == ERR_NOT_FOUND) break;
        ASSERT(err == OK || err == ERR_AGAIN);
        if (disturb) {
            busy(source);
            busy(target);
        } else {
            poll_side(source);
            poll_side(target);
        }
        if (err == ERR_AGAIN) sleep_us(100);
    }
    uint64_t entries, bytes;
    snapshot_progress(snapshot, &entries, &bytes);
    double read = seconds() - started;
    install_finish(install, &meta);
    while (!outcome.ended) {
        poll_side(target);
        sleep_us(200);
    }
    ASSERT(outcome.result == OK);
    double whole = seconds() - started;
    target->metas[MOVED] = meta;
    snapshot_close(snapshot);
    install_close(install);
    printf("%llu entries, %.1f MB%s: read in %.2f s, installed in %.2f s (%.2f M/s)\n",
        (unsigned long long)entries, (double)bytes / 1e6, disturb ? " beside writes" : "", read,
        whole, (double)entries / whole / 1e6);
}

static bool sum(void *ctx, struct bytes key, const struct value *value)
{
    *(uint64_t *)ctx += kv_entry_sum(key, value->version) + value->bytes.at[0];
    return true;
}

static void found(void *ctx, bool missing, const char *sentence)
{
    (void)ctx, (void)missing;
    fprintf(stderr, "%s\n", sentence);
    abort();
}

static void check(struct side *side)
{
    struct kv_read *read;
    enum err err = kv_lmdb.read_begin(engine_kv(side->engine), &read);
    ASSERT(err == OK);
    struct kv_check check = {
        .ops = &kv_lmdb, .read = read, .ranges = RANGES, .expiry = true, .found = found};
    err = kv_check(&check);
    ASSERT(err == OK);
    kv_lmdb.read_end(read);
}

int main(int argc, char **argv)
{
    uint32_t keys = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 100000;
    static struct side source, target;
    open_side(&source);
    open_side(&target);
    for (uint32_t i = 0; i < keys; i++) {
        put(&source, MOVED, i, (uint8_t)i);
        if (i % 5 == 0) put(&target, MOVED, i * 3, 1);
    }
    checkpoint(&source);
    checkpoint(&target);
    transfer(&source, &target, false);
    transfer(&source, &target, true);
    uint64_t sums[2] = {0};
    enum err err = engine_scan(source.engine, MOVED, bytes_of(NULL, 0), false, sum, &sums[0]);
    if (err == OK) err = engine_scan(target.engine, MOVED, bytes_of(NULL, 0), false, sum, &sums[1]);
    ASSERT(err == OK && sums[0] == sums[1]);
    ASSERT(engine_count_range(target.engine, MOVED, 0) == keys);
    engine_read_done(source.engine);
    engine_read_done(target.engine);
    checkpoint(&source);
    checkpoint(&target);
    check(&source);
    check(&target);
    close_side(&source);
    close_side(&target);
    return 0;
}
