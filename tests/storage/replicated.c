#define _GNU_SOURCE
#include "tests/storage/replicated.h"

#include <criterion/criterion.h>
#include <stdio.h>

#include "base/hash.h"
#include "storage/kv_check.h"

static void apply(struct replica *replica, struct engine *engine, const struct wal_record *record)
{
    if (record->lsn <= replica->seen) return;
    replica->seen = record->lsn;
    if (record->type != WAL_RECORD_ENTRY) return;
    uint16_t range = (uint16_t)record->group;
    struct range_meta *meta = &replica->ranges[range].meta;
    uint64_t index = load_u64(record->payload.at);
    struct bytes effects = bytes_of(record->payload.at + 8, record->payload.size - 8);
    cr_assert_eq(engine_apply_entry(engine, range, index, effects), OK);
    if (index <= meta->index) return;
    cr_assert_eq(index, meta->index + 1);
    meta->index = index;
    meta->term = 1;
    meta->hash = hash64(meta->hash, effects);
}

static enum err on_range(void *ctx, uint16_t range, const struct range_meta *meta)
{
    struct replica *replica = ctx;
    replica->ranges[range].meta = *meta;
    replica->ranges[range].proposed = meta->index;
    replica->ranges[range].known = true;
    return OK;
}

static enum err on_replay(void *ctx, struct engine *engine, const struct wal_record *record)
{
    struct replica *replica = ctx;
    replica->replayed++;
    if (record->type == WAL_RECORD_ENTRY) {
        struct replica_range *range = &replica->ranges[record->group];
        uint64_t index = load_u64(record->payload.at);
        if (index > range->proposed) range->proposed = index;
        /* a snapshot that was not whole: its entries are not applied before it is */
        if ((range->meta.flags & RANGE_META_INSTALLING) != 0) return OK;
        if (replica->held > 0 && record->lsn > replica->held) return OK;
    }
    apply(replica, engine, record);
    return OK;
}

static void give_meta(void *ctx, uint16_t range, struct range_meta *meta)
{
    struct replica *replica = ctx;
    *meta = replica->ranges[range].meta;
}

static lsn_t low_water(void *ctx)
{
    struct replica *replica = ctx;
    return replica->low > 0 ? replica->low : replica->seen;
}

static lsn_t keep_after(void *ctx)
{
    struct replica *replica = ctx;
    return replica->keep;
}

static void on_durable(void *ctx, lsn_t lsn)
{
    struct replica *replica = ctx;
    if (replica->engine == NULL) return;
    struct wal *wal = engine_wal(replica->engine);
    struct wal_record record;
    while (replica->seen < lsn && wal_next_record(wal, replica->seen, &record) &&
        record.lsn <= lsn && (replica->held == 0 || record.lsn <= replica->held))
        apply(replica, replica->engine, &record);
    wal_release(wal, replica->seen);
}

void replica_open(struct replica *replica)
{
    for (int i = 0; i <= REPLICA_RANGES; i++)
        replica->ranges[i] = (struct replica_range){0};
    replica->seen = 0;
    replica->replayed = 0;
    replica->io = (struct io){
        .clock = sim_clock_io(&replica->clock),
        .disk = sim_disk_table(replica->disk),
        .seed = 7,
    };
    struct engine_config config = {
        .io = &replica->io,
        .kv = replica->kv == NULL ? &sim_kv : replica->kv,
        .kv_folder = replica->kv == NULL ? replica->folder : replica->kv_folder,
        .ranges = REPLICA_RANGES,
        .memory = replica->memory == 0 ? 64 << 20 : replica->memory,
        .slot_size = replica->slot_size,
        .log_bytes_max = replica->log_bytes_max,
        .chunk_puts = replica->chunk_puts,
        .map_size = replica->kv == NULL ? 0 : UINT64_C(1) << 30,
        .background = replica->background,
        .create = true,
        .ctx = replica,
        .on_durable = on_durable,
        .on_range = on_range,
        .on_replay = on_replay,
        .range_meta = give_meta,
        .low_water = low_water,
        .keep_after = keep_after,
    };
    memcpy(config.store_id, replica->store_id, 16);
    struct engine *engine;
    enum err err = engine_open(&config, &replica->report, &engine);
    cr_assert_eq(err, OK, "%s: %s", err_name(err), replica->report.detail);
    replica->engine = engine;
    struct wal_stats stats;
    wal_stats(engine_wal(engine), &stats);
    if (replica->held == 0) replica->seen = stats.durable;
    wal_release(engine_wal(engine), replica->seen);
}

void replica_create(struct replica *replica)
{
    if (replica->slot_size == 0) replica->slot_size = 1 << 20;
    if (replica->log_bytes_max == 0) replica->log_bytes_max = 64 << 20;
    if (replica->chunk_puts == 0) replica->chunk_puts = 100;
    replica->keep = UINT64_MAX;
    sim_clock_init(&replica->clock, 1700000000000);
    replica->disk = sim_disk_create(&(struct sim_disk_config){.seed = 3});
    replica->stores = sim_kv_world_new();
    cr_assert_not_null(replica->stores);
    sim_kv_folder(replica->stores, "node", replica->folder);
    replica_open(replica);
}

void replica_crash(struct replica *replica)
{
    sim_disk_cut(replica->disk);
    engine_close(replica->engine, false);
    replica->engine = NULL;
    sim_disk_restart(replica->disk);
}

void replica_close(struct replica *replica, bool checkpoint)
{
    engine_close(replica->engine, checkpoint);
    replica->engine = NULL;
}

void replica_destroy(struct replica *replica)
{
    if (replica->engine != NULL) replica_close(replica, false);
    sim_kv_world_free(replica->stores);
    sim_disk_destroy(replica->disk);
}

static void append(struct replica *replica, uint16_t range, const struct effect *effect)
{
    struct replica_range *state = &replica->ranges[range];
    struct wal *wal = engine_wal(replica->engine);
    size_t size = 8 + (effect == NULL ? 0 : effect_size(effect->key.size, effect->value.size));
    enum err err;
    while ((err = engine_admit(replica->engine, size)) == ERR_AGAIN) {
        engine_checkpoint_step(replica->engine);
        replica_poll(replica);
    }
    cr_assert_eq(err, OK);
    lsn_t lsn;
    uint8_t *at = wal_append(wal, WAL_RECORD_ENTRY, range, size, &lsn);
    cr_assert_not_null(at);
    store_u64(at, ++state->proposed);
    if (effect != NULL) {
        uint8_t *value = effect_encode(at + 8, effect, effect->value.size);
        if (effect->value.size > 0) memcpy(value, effect->value.at, effect->value.size);
    }
    engine_flush(replica->engine, true);
    struct wal_stats stats;
    do {
        replica_poll(replica);
        wal_stats(wal, &stats);
    } while (stats.durable < lsn);
}

void replica_put_value(struct replica *replica, uint16_t range, const char *key, struct bytes value,
    int64_t expires_ms)
{
    struct effect effect = {
        .kind = value.at == NULL ? EFFECT_DELETE : EFFECT_PUT,
        .range = range,
        .expires_ms = expires_ms,
        .key = bytes_of_text(key),
        .value = value,
    };
    append(replica, range, &effect);
}

void replica_put(struct replica *replica, uint16_t range, const char *key, const char *value)
{
    struct bytes bytes = value == NULL ? bytes_of(NULL, 0) : bytes_of_text(value);
    replica_put_value(replica, range, key, bytes, 0);
}

void replica_clear(struct replica *replica, uint16_t range, uint16_t bucket)
{
    struct effect effect = {.kind = EFFECT_CLEAR_BUCKET, .range = range, .bucket = bucket};
    append(replica, range, &effect);
}

void replica_nothing(struct replica *replica, uint16_t range)
{
    append(replica, range, NULL);
}

void replica_commit(struct replica *replica, lsn_t lsn)
{
    replica->held = lsn;
    struct wal_stats stats;
    wal_stats(engine_wal(replica->engine), &stats);
    on_durable(replica, stats.durable);
}

void replica_poll(struct replica *replica)
{
    cr_assert_eq(engine_poll(replica->engine), OK);
}

static void on_checkpoint(void *ctx, enum err err)
{
    cr_assert_eq(err, OK);
    *(bool *)ctx = true;
}

void replica_checkpoint(struct replica *replica)
{
    bool done = false;
    engine_checkpoint(replica->engine, on_checkpoint, &done);
    while (!done) {
        if (!replica->background) engine_checkpoint_step(replica->engine);
        replica_poll(replica);
    }
}

static struct bytes stored_key(const char *key, uint8_t at[KEY_SIZE_MAX_STORED])
{
    return effect_stored_key(at, 0, bytes_of_text(key));
}

void replica_expect(struct replica *replica, uint16_t range, const char *key, const char *value)
{
    uint8_t at[KEY_SIZE_MAX_STORED];
    struct value found;
    enum err err = engine_get(replica->engine, range, stored_key(key, at), &found);
    cr_assert_eq(err, value == NULL ? ERR_NOT_FOUND : OK, "%u/%s: %s", range, key, err_name(err));
    if (value != NULL)
        cr_assert(bytes_equal(found.bytes, bytes_of_text(value)), "%u/%s is %.*s", range, key,
            (int)found.bytes.size, (const char *)found.bytes.at);
    engine_read_done(replica->engine);
}

uint64_t replica_count(struct replica *replica, uint16_t range)
{
    uint64_t count = engine_count_range(replica->engine, range, 0);
    engine_read_done(replica->engine);
    return count;
}

static bool hash_one(void *ctx, struct bytes key, const struct value *value)
{
    uint64_t *hash = ctx;
    *hash = hash64(*hash, key);
    *hash = hash64(*hash + (uint64_t)value->expires_ms * 31 + value->version, value->bytes);
    return true;
}

uint64_t replica_hash(struct replica *replica, uint16_t range)
{
    uint64_t hash = 1;
    cr_assert_eq(
        engine_scan(replica->engine, range, bytes_of(NULL, 0), false, hash_one, &hash), OK);
    engine_read_done(replica->engine);
    return hash;
}

static void found(void *ctx, bool missing, const char *sentence)
{
    (void)ctx, (void)missing;
    cr_assert_fail("%s", sentence);
}

void replica_check_store(struct replica *replica)
{
    const struct kv_ops *ops = engine_kv_ops(replica->engine);
    struct kv_read *read;
    cr_assert_eq(ops->read_begin(engine_kv(replica->engine), &read), OK);
    struct kv_check check = {
        .ops = ops, .read = read, .ranges = REPLICA_RANGES, .expiry = true, .found = found};
    cr_assert_eq(kv_check(&check), OK);
    ops->read_end(read);
}
