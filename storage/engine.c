#define _POSIX_C_SOURCE 200809L
#include "storage/engine.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/logger.h"
#include "storage/checkpoint.h"
#include "storage/engine_meta.h"
#include "storage/expiry_heap.h"
#include "storage/kv_check.h"
#include "storage/snapshot.h"

/* Two layers in memory over the bottom store. `active` takes what is applied; when it is big enough it
 * becomes `sealed`, which the checkpoint brings into the store while a new active fills. There is at
 * most one sealed layer: if the active one is full again before the checkpoint is through, writers
 * are slowed, first by delaying log writes a little (throttle_us), then by refusing (ERR_AGAIN).
 *
 * Lookups go active, sealed, store. While a checkpoint is under way the store holds a part of the
 * sealed layer already; that does no harm, as the sealed layer is asked first and says the same. */

enum {
    CHUNK_PUTS = 5000,
    CHECKPOINT_PAUSE_US = 5000,
    SEAL_AGE_MS = 60000,
    THROTTLE_SLACK_PERCENT = 30,
    THROTTLE_US_MAX = 4000,
    CLOSE_ATTEMPTS = 3,
    ADMIT_WAIT_MS = 10000,
    AHEAD = 16, /* records whose cache misses overlap */
    CHECK_MS = 2000, /* of a start, for looking whether the store is whole */
    WAITERS_MAX = 8,
    SEAL_SLOTS = 8, /* of log grown since the last seal: metas alone are worth a checkpoint then */
};

struct layer {
    struct memtable *memtable; /* NULL: no such layer */
    struct expiry_heap expiry;
    bool used; /* something was applied to it */
    lsn_t last; /* embedded: of what was applied; of a sealed one: what the checkpoint reaches */
    uint64_t first_ns; /* when the first record came */
};

/* who asked for a checkpoint */
struct waiter {
    void (*done)(void *ctx, enum err err);
    void *ctx;
    uint64_t seal; /* number of the seal that covers what was applied then */
};

struct engine {
    struct engine_config config;
    struct wal *wal;
    struct kv *kv;
    struct kv_read *read;
    bool reading;
    struct layer active, sealed;
    struct memtable
        *spare; /* emptied, with its pages: touching fresh ones costs more than an insert */
    struct checkpoint checkpoint;
    bool checkpoint_ready;
    struct range_table *table; /* NULL: an embedded store, which has none of the next four either */
    struct sources *sources;
    struct sinks *sinks;
    bool *installing; /* by range id: what the store has is not usable, and its meta says so */
    lsn_t applied; /* replicated: low water as of the last seal */
    lsn_t checkpointed;
    uint64_t *range_applied; /* by range id */
    lsn_t promised; /* what the store's meta says; a floor until the log is open */
    uint64_t segment;
    size_t seal_bytes;
    bool seal_wanted;
    struct waiter waiters[WAITERS_MAX];
    uint32_t waiter_count;
    uint64_t seals;
    uint64_t sealed_segment; /* newest of the log at the last seal */
    int64_t expired_from; /* expiries before this were handed out already */
    uint64_t damaged;
    uint64_t throttled;
    uint64_t waiting_since_ns; /* writes have been put off since; 0: they are not */
    enum err failed;
};

/* ---- layers ---- */

static enum err layer_open(struct engine *engine, struct layer *layer)
{
    *layer = (struct layer){.memtable = engine->spare};
    engine->spare = NULL;
    if (layer->memtable == NULL)
        layer->memtable = memtable_new(engine->config.ranges + 1, engine->config.io->seed);
    return layer->memtable == NULL ? ERR_NOMEM : OK;
}

static void layer_close(struct layer *layer)
{
    if (layer->memtable != NULL) memtable_free(layer->memtable);
    expiry_heap_deinit(&layer->expiry);
    *layer = (struct layer){0};
}

static size_t layer_bytes(const struct layer *layer)
{
    return layer->memtable == NULL ? 0 : memtable_bytes(layer->memtable) + layer->expiry.bytes;
}

static uint64_t now_ns(const struct engine *engine)
{
    const struct clock *clock = &engine->config.io->clock;
    return clock->monotonic_ns(clock->ctx);
}

static uint64_t slot_size(const struct engine *engine)
{
    return engine->config.slot_size == 0 ? 64u << 20 : engine->config.slot_size;
}

/* ---- sealing and checkpoints ---- */

static void want_metas(struct engine *engine)
{
    for (uint32_t range = 0; range <= engine->config.ranges; range++) {
        struct range_meta meta = {0};
        engine->config.range_meta(engine->config.ctx, (uint16_t)range, &meta);
        if (engine->installing[range]) {
            range_table_want_hard(engine->table, (uint16_t)range, &meta);
            continue;
        }
        /* entries without effects (elections, configurations) need not have passed through here */
        ASSERT(meta.index >= engine->range_applied[range]);
        engine->range_applied[range] = meta.index;
        range_table_want(engine->table, (uint16_t)range, &meta);
    }
}

static enum err seal(struct engine *engine)
{
    ASSERT(engine->sealed.memtable == NULL);
    struct layer fresh;
    TRY(layer_open(engine, &fresh));
    engine->sealed = engine->active;
    engine->active = fresh;
    engine->seal_wanted = false;
    engine->seals++;
    if (engine->table != NULL) {
        /* Data comes in although the oldest record that is not applied has not moved. While the log is replayed it
         * does not move at all: nobody knows yet which of the later records count. */
        lsn_t low = engine->wal == NULL ? 0 : engine->config.low_water(engine->config.ctx);
        if (low > engine->applied) engine->applied = low;
        engine->sealed.last = engine->applied;
        want_metas(engine);
    }
    struct checkpoint_job job = {
        .memtable = engine->sealed.memtable,
        .lsn = engine->sealed.last,
        .promised = engine->promised > engine->sealed.last ? engine->promised : engine->sealed.last,
        .segment = engine->segment,
    };
    if (engine->wal != NULL) {
        struct wal_stats stats;
        wal_stats(engine->wal, &stats);
        if (stats.durable > job.promised) job.promised = stats.durable;
        ASSERT(job.lsn <= stats.durable);
        job.segment = engine->sealed_segment = wal_segment(engine->wal);
    }
    ASSERT(job.lsn > engine->checkpointed || engine->table != NULL);
    checkpoint_start(&engine->checkpoint, &job);
    return OK;
}

static void trim_log(struct engine *engine)
{
    if (engine->wal == NULL) return;
    lsn_t lsn = engine->checkpointed;
    if (engine->config.keep_after != NULL && !PLANTED_BUG(47)) {
        lsn_t keep = engine->config.keep_after(engine->config.ctx);
        lsn_t most = wal_lsn_before_end(engine->wal, engine->config.log_bytes_max / 2);
        if (keep < most) keep = most;
        if (keep < lsn) lsn = keep;
    }
    wal_trim(engine->wal, lsn);
}

/* The store now has what the last seal had, and nothing else: the next seal comes after this. */
static void tell_waiters(struct engine *engine)
{
    struct waiter ready[WAITERS_MAX];
    uint32_t count = 0, kept = 0;
    for (uint32_t i = 0; i < engine->waiter_count; i++) {
        struct waiter waiter = engine->waiters[i];
        if (waiter.seal <= engine->seals) {
            ready[count++] = waiter;
        } else {
            engine->waiters[kept++] = waiter;
        }
    }
    engine->waiter_count = kept;
    for (uint32_t i = 0; i < count; i++)
        ready[i].done(ready[i].ctx, OK);
}

/* takes over a finished checkpoint */
static void publish(struct engine *engine)
{
    ASSERT(engine->sealed.memtable != NULL);
    /* a snapshot from before the last step would miss what only the sealed layer had */
    engine_read_done(engine);
    engine->checkpointed = engine->sealed.last;
    ASSERT(engine->spare == NULL);
    engine->spare = engine->sealed.memtable;
    memtable_reset(engine->spare, engine->seal_bytes + engine->seal_bytes / 4);
    engine->sealed.memtable = NULL;
    layer_close(&engine->sealed);
    trim_log(engine);
    tell_waiters(engine);
}

static bool low_water_moved(const struct engine *engine)
{
    return engine->table != NULL &&
        engine->config.low_water(engine->config.ctx) > engine->checkpointed;
}

/* slots the log went on by since the last seal */
static uint64_t slots_since_seal(const struct engine *engine)
{
    uint64_t segment = wal_segment(engine->wal);
    return segment > engine->sealed_segment ? segment - engine->sealed_segment : 0;
}

static bool log_is_due(struct engine *engine)
{
    if (engine->wal == NULL || engine->config.log_bytes_max == 0) return false;
    struct wal_stats stats;
    wal_stats(engine->wal, &stats);
    bool pressed = stats.bytes > engine->config.log_bytes_max / 2 && stats.slots_spare < 2;
    if (engine->table == NULL) return pressed;
    /* a seal helps only if records between the last one and now have become needless */
    uint64_t slots = slots_since_seal(engine);
    if (slots == 0 || !(pressed || slots >= SEAL_SLOTS)) return false;
    return low_water_moved(engine);
}

static bool active_is_due(struct engine *engine)
{
    if (engine->table != NULL && (engine->seal_wanted || log_is_due(engine))) return true;
    if (!engine->active.used) return false;
    if (engine->seal_wanted || layer_bytes(&engine->active) >= engine->seal_bytes) return true;
    uint64_t age_ns = now_ns(engine) - engine->active.first_ns;
    if (age_ns >= (uint64_t)SEAL_AGE_MS * 1000000u) return true;
    return engine->table == NULL && log_is_due(engine);
}

/* share of the active layer that is filled beyond what the checkpoint's progress allows */
static double overfill(const struct engine *engine)
{
    if (engine->sealed.memtable == NULL) return 0;
    double fill = (double)layer_bytes(&engine->active) / (double)engine->seal_bytes;
    return fill - checkpoint_progress(&engine->checkpoint) - THROTTLE_SLACK_PERCENT / 100.0;
}

static void maintain(struct engine *engine)
{
    if (checkpoint_collect(&engine->checkpoint)) publish(engine);
    if (engine->sealed.memtable == NULL && active_is_due(engine)) {
        enum err err = seal(engine);
        if (err != OK) log_warn("cannot seal the memtable now", "error=%s", err_name(err));
    }
    /* the pause between steps leaves the disk to the log, unless writers are ahead */
    bool behind = overfill(engine) > -THROTTLE_SLACK_PERCENT / 200.0 || engine->waiter_count > 0;
    atomic_store(&engine->checkpoint.pause_us, behind ? 0 : CHECKPOINT_PAUSE_US);
}

/* ---- open, close ---- */

static uint64_t meta_number(struct engine *engine, const char *name)
{
    struct bytes value;
    if (engine->config.kv->meta_get(engine->read, name, &value) != OK) return 0;
    uint64_t number = 0;
    memcpy(&number, value.at, value.size < sizeof number ? value.size : sizeof number);
    return number;
}

static enum err meta_create(struct engine *engine)
{
    const struct kv_ops *ops = engine->config.kv;
    uint8_t ranges[4];
    store_u32(ranges, engine->config.ranges + 1);
    struct kv_write *write;
    TRY(ops->write_begin(engine->kv, &write));
    enum err err = ops->meta_put(write, META_STORE, bytes_of(engine->config.store_id, 16));
    if (err == OK) err = ops->meta_put(write, META_RANGES, bytes_of(ranges, sizeof ranges));
    if (err == OK) return ops->commit(write);
    ops->abort(write);
    return err;
}

static enum err load_ranges(struct engine *engine, struct engine_report *report)
{
    enum err err = range_table_load(engine->table, engine->config.kv, engine->read);
    if (err == ERR_CORRUPT)
        snprintf(report->detail, sizeof report->detail,
            "the state of a range in the bottom store is damaged; restore a backup into a new "
            "folder");
    for (uint32_t range = 0; range <= engine->config.ranges && err == OK; range++) {
        const struct range_slot *slot = &engine->table->slots[range];
        engine->range_applied[range] = slot->stored.index;
        engine->installing[range] = (slot->stored.flags & RANGE_META_INSTALLING) != 0;
        if (slot->in_store)
            err = engine->config.on_range(engine->config.ctx, (uint16_t)range, &slot->stored);
    }
    return err;
}

/* reads what the store knows of log and identity */
static enum err meta_load(struct engine *engine, struct engine_report *report, bool *fresh_out)
{
    const struct kv_ops *ops = engine->config.kv;
    struct bytes store;
    enum err err = ops->meta_get(engine->read, META_STORE, &store);
    if (err == ERR_NOT_FOUND) {
        ops->read_reset(engine->read);
        TRY(meta_create(engine));
        TRY(ops->read_renew(engine->read));
    } else if (err != OK) {
        return err;
    } else if (store.size != 16 || memcmp(store.at, engine->config.store_id, 16) != 0) {
        snprintf(report->detail, sizeof report->detail,
            "the bottom store in this folder belongs to another node; restore the folder's own "
            "db/");
        return ERR_MISMATCH;
    }
    uint64_t ranges = meta_number(engine, META_RANGES);
    if (ranges != engine->config.ranges + 1) {
        snprintf(report->detail, sizeof report->detail,
            "the store has %llu ranges but its identity says %u", (unsigned long long)ranges - 1,
            engine->config.ranges);
        return ERR_MISMATCH;
    }
    engine->applied = engine->checkpointed = meta_number(engine, META_APPLIED);
    engine->promised = meta_number(engine, META_PROMISED);
    engine->segment = meta_number(engine, META_SEGMENT);
    *fresh_out = meta_number(engine, META_LOG_ABSENT) != 0;
    if (engine->table != NULL) return load_ranges(engine, report);
    for (uint32_t range = 0; range <= engine->config.ranges; range++) {
        char name[32];
        snprintf(name, sizeof name, META_RANGE_FORMAT, range);
        engine->range_applied[range] = meta_number(engine, name);
    }
    return OK;
}

static enum err on_replay(void *ctx, const struct wal_record *record)
{
    struct engine *engine = ctx;
    /* the same roles as while serving, only that this thread waits for the checkpoint */
    if (layer_bytes(&engine->active) >= engine->seal_bytes) {
        if (engine->sealed.memtable != NULL) {
            TRY(checkpoint_wait(&engine->checkpoint, CLOSE_ATTEMPTS));
            if (checkpoint_collect(&engine->checkpoint)) publish(engine);
        }
        TRY(seal(engine));
    }
    if (engine->table != NULL) return engine->config.on_replay(engine->config.ctx, engine, record);
    return engine_apply(engine, record);
}

static void on_ahead(void *ctx, const struct wal_record *record)
{
    engine_prefetch(ctx, record);
}

/* from the log's filler: writes that were put off have room now */
static void on_slot(void *ctx)
{
    struct engine *engine = ctx;
    if (engine->config.wake != NULL) engine->config.wake(engine->config.wake_ctx);
}

static void on_durable(void *ctx, lsn_t lsn)
{
    struct engine *engine = ctx;
    engine->config.on_durable(engine->config.ctx, lsn);
}

static enum err clear_log_absent(struct engine *engine)
{
    const struct kv_ops *ops = engine->config.kv;
    uint8_t zero = 0;
    struct kv_write *write;
    TRY(ops->write_begin(engine->kv, &write));
    enum err err = ops->meta_put(write, META_LOG_ABSENT, bytes_of(&zero, 1));
    if (err == OK) return ops->commit(write);
    ops->abort(write);
    return err;
}

static enum err open_log(struct engine *engine, struct engine_report *report, bool fresh)
{
    struct wal_config config = {
        .io = engine->config.io,
        .slot_size = slot_size(engine),
        .spare_slots = 2,
        .bytes_max = engine->config.log_bytes_max,
        .depth = 1,
        .segment_floor = engine->segment,
        .applied = engine->applied,
        .promised = engine->promised,
        .accept_loss = engine->config.accept_loss,
        .fresh = fresh,
        .turns = engine->config.turns,
        .background = engine->config.background,
        .ctx = engine,
        .on_ahead = on_ahead,
        .on_replay = on_replay,
        .on_durable = on_durable,
        .wake = on_slot,
    };
    memcpy(config.store_id, engine->config.store_id, sizeof config.store_id);
    uint64_t started = now_ns(engine);
    enum err err = wal_open(&config, &report->log, &engine->wal);
    report->replay_ns = now_ns(engine) - started;
    if (err != OK) {
        snprintf(report->detail, sizeof report->detail, "%s", report->log.detail);
        return err;
    }
    /* who needs older records is known once the owner has taken over */
    if (engine->table == NULL) wal_trim(engine->wal, engine->checkpointed);
    engine->sealed_segment = engine->segment;
    if (fresh) return clear_log_absent(engine);
    return OK;
}

static void engine_free(struct engine *engine)
{
    if (engine->wal != NULL) wal_close(engine->wal);
    sources_free(engine->sources);
    sinks_free(engine->sinks);
    if (engine->checkpoint_ready) checkpoint_deinit(&engine->checkpoint);
    layer_close(&engine->active);
    layer_close(&engine->sealed);
    if (engine->spare != NULL) memtable_free(engine->spare);
    if (engine->read != NULL) engine->config.kv->read_end(engine->read);
    if (engine->kv != NULL) engine->config.kv->close(engine->kv);
    range_table_free(engine->table);
    free(engine->installing);
    free(engine->range_applied);
    free(engine);
}

struct store_check {
    struct engine *engine;
    struct engine_report *report;
    uint64_t until_ns;
    bool missing;
};

static void check_found(void *ctx, bool missing, const char *sentence)
{
    struct store_check *check = ctx;
    log_error("the bottom store is damaged", "%s", sentence);
    if (missing && !check->missing)
        snprintf(check->report->detail, sizeof check->report->detail,
            "the bottom store is damaged: %.200s; restore a backup into a new folder", sentence);
    check->missing = check->missing || missing;
}

static bool check_go_on(void *ctx, uint16_t range, uint64_t values)
{
    (void)range, (void)values;
    struct store_check *check = ctx;
    return now_ns(check->engine) < check->until_ns;
}

/* A store that lost keys would answer "absent" with a straight face, so it is not served. A value that
 * cannot be read is no such danger: reading it is answered with an error. */
static enum err check_store(struct engine *engine, struct engine_report *report)
{
    if (engine->config.kv->sum == NULL) return OK;
    struct store_check ctx = {
        .engine = engine,
        .report = report,
        .until_ns = now_ns(engine) + (uint64_t)CHECK_MS * 1000000u,
    };
    struct kv_check check = {
        .ops = engine->config.kv,
        .read = engine->read,
        .ranges = engine->config.ranges,
        .ctx = &ctx,
        .found = check_found,
        .go_on = check_go_on,
    };
    enum err err = kv_check(&check);
    engine->damaged += check.unreadable;
    if (!check.complete)
        log_info("the bottom store was checked in part at the start", "values=%llu",
            (unsigned long long)check.values);
    if (err == ERR_CORRUPT && (!ctx.missing || engine->config.accept_loss > 0)) return OK;
    return err;
}

static struct streams_config streams_config(const struct engine *engine)
{
    return (struct streams_config){
        .ops = engine->config.kv,
        .kv = engine->kv,
        .table = engine->table,
        .background = engine->config.background,
        .wake_ctx = engine->config.wake_ctx,
        .wake = engine->config.wake,
    };
}

static enum err open_streams(struct engine *engine)
{
    struct streams_config config = streams_config(engine);
    TRY(sources_new(&config, &engine->sources));
    return sinks_new(&config, &engine->sinks);
}

static enum err open_parts(struct engine *engine, struct engine_report *report)
{
    const struct engine_config *config = &engine->config;
    const struct kv_ops *ops = config->kv;
    engine->range_applied = calloc(config->ranges + 1, sizeof *engine->range_applied);
    if (engine->range_applied == NULL) return ERR_NOMEM;
    if (config->on_replay != NULL) {
        engine->table = range_table_new(config->ranges + 1);
        engine->installing = calloc(config->ranges + 1, sizeof *engine->installing);
        if (engine->table == NULL || engine->installing == NULL) return ERR_NOMEM;
    }
    TRY(layer_open(engine, &engine->active));
    struct kv_config kv_config = {
        .folder = config->kv_folder,
        .ranges = config->ranges + 1,
        .map_size = config->map_size,
        .create = config->create,
    };
    enum err err = ops->open(&kv_config, &engine->kv);
    if (err != OK) {
        snprintf(report->detail, sizeof report->detail, "cannot open the bottom store in %s: %s",
            config->kv_folder, err_text(err));
        return err;
    }
    TRY(ops->read_begin(engine->kv, &engine->read));
    bool fresh = false;
    TRY(meta_load(engine, report, &fresh));
    TRY(check_store(engine, report));
    ops->read_reset(engine->read);
    report->checkpointed = engine->checkpointed;

    struct checkpoint_config checkpoint_config = {
        .ops = ops,
        .kv = engine->kv,
        .clock = &config->io->clock,
        .table = engine->table,
        .ranges = config->ranges + 1,
        .chunk_puts = config->chunk_puts == 0 ? CHUNK_PUTS : config->chunk_puts,
        .background = config->background,
        .scrub = config->scrub,
        .wake_ctx = config->wake_ctx,
        .wake = config->wake,
    };
    TRY(checkpoint_init(&engine->checkpoint, &checkpoint_config));
    engine->checkpoint_ready = true;
    if (engine->table != NULL) TRY(open_streams(engine));
    return open_log(engine, report, fresh);
}

enum err engine_open(
    const struct engine_config *config, struct engine_report *report, struct engine **engine_out)
{
    ASSERT(config->ranges > 0 && config->on_durable != NULL);
    bool replicated = config->on_replay != NULL;
    ASSERT((config->on_range != NULL) == replicated && (config->range_meta != NULL) == replicated);
    ASSERT((config->low_water != NULL) == replicated);
    *report = (struct engine_report){0};
    struct engine *engine = calloc(1, sizeof *engine);
    if (engine == NULL) return ERR_NOMEM;
    engine->config = *config;
    /* active and sealed together stay within the budget even when the active one overfills by the
     * slack and a little more */
    engine->seal_bytes = config->memory / 5 * 2;
    if (engine->seal_bytes < 64 * 1024) engine->seal_bytes = 64 * 1024;
    enum err err = open_parts(engine, report);
    if (err != OK) {
        if (report->detail[0] == '\0')
            snprintf(report->detail, sizeof report->detail, "%s", err_text(err));
        engine_free(engine);
        return err;
    }
    *engine_out = engine;
    return OK;
}

/* runs checkpoints until everything applied is in the bottom store */
static enum err drain(struct engine *engine)
{
    /* a node's ranges may have voted or moved on without a change of data */
    bool metas = engine->table != NULL;
    while (engine->sealed.memtable != NULL || engine->active.used || metas) {
        if (engine->sealed.memtable == NULL) {
            TRY(seal(engine));
            metas = false;
        }
        atomic_store(&engine->checkpoint.pause_us, 0);
        TRY(checkpoint_wait(&engine->checkpoint, CLOSE_ATTEMPTS));
        if (checkpoint_collect(&engine->checkpoint)) publish(engine);
    }
    return OK;
}

void engine_close(struct engine *engine, bool checkpoint)
{
    if (checkpoint && engine->failed == OK) {
        wal_idle(engine->wal);
        enum err err = drain(engine);
        if (err != OK)
            log_warn("closing without a checkpoint; the next start replays the log", "error=%s",
                err_name(err));
    }
    engine_free(engine);
}

/* ---- writes ---- */

/* whether the log is at its budget rather than out of disk: a checkpoint makes room then */
static bool at_log_budget(struct engine *engine)
{
    struct wal_stats stats;
    wal_stats(engine->wal, &stats);
    return stats.bytes + slot_size(engine) > engine->config.log_bytes_max;
}

/* Room that the checkpoint (or the log's filler) is about to make is worth waiting for, but not for ever,
 * and not if the checkpoint itself has no room. */
static enum err wait_or_refuse(struct engine *engine)
{
    uint64_t now = now_ns(engine);
    if (engine->waiting_since_ns == 0) engine->waiting_since_ns = now;
    if (atomic_load(&engine->checkpoint.failing)) return ERR_FULL;
    if (now - engine->waiting_since_ns > (uint64_t)ADMIT_WAIT_MS * 1000000u) return ERR_FULL;
    if (engine->active.used || low_water_moved(engine)) engine->seal_wanted = true;
    return ERR_AGAIN;
}

enum err engine_admit(struct engine *engine, size_t size)
{
    if (engine->failed != OK) return ERR_POISONED;
    enum err err = wal_admit(engine->wal, size);
    if (err == ERR_FULL && at_log_budget(engine)) err = ERR_AGAIN;
    if (err == OK && engine->sealed.memtable != NULL &&
        layer_bytes(&engine->active) + size > engine->seal_bytes + engine->seal_bytes / 4)
        err = ERR_AGAIN;
    if (err == ERR_AGAIN) return wait_or_refuse(engine);
    engine->waiting_since_ns = 0;
    return err;
}

static uint32_t throttle_us(struct engine *engine)
{
    double over = overfill(engine);
    if (over <= 0) return 0;
    engine->throttled++;
    double delay = over * THROTTLE_US_MAX;
    return delay > THROTTLE_US_MAX ? THROTTLE_US_MAX : (uint32_t)delay;
}

void engine_flush(struct engine *engine, bool alone)
{
    uint32_t delay_us = throttle_us(engine);
    if (alone && delay_us == 0) {
        wal_flush_inline(engine->wal);
    } else {
        wal_flush(engine->wal, delay_us);
    }
}

static void install_ended(void *ctx, uint16_t range, enum err result, const struct range_meta *meta)
{
    struct engine *engine = ctx;
    if (result != OK) return;
    engine->range_applied[range] = meta->index;
    engine->installing[range] = false;
    engine_read_done(engine);
    /* the new keys may expire at times whose keys were already asked for */
    engine->expired_from = 0;
}

static void poll_streams(struct engine *engine)
{
    if (!engine->config.background) {
        (void)sources_step(engine->sources);
        (void)sinks_step(engine->sinks);
    }
    sinks_collect(engine->sinks, install_ended, engine);
}

enum err engine_poll(struct engine *engine)
{
    enum err err = wal_poll(engine->wal);
    if (err != OK) engine->failed = err;
    if (engine->failed != OK) return engine->failed;
    if (engine->table != NULL) poll_streams(engine);
    maintain(engine);
    return OK;
}

void engine_tick(struct engine *engine)
{
    if (engine->failed != OK) return;
    maintain(engine);
    if (engine->table != NULL) trim_log(engine);
    if (!wal_in_flight(engine->wal)) wal_idle(engine->wal);
}

static enum err apply_effect(struct engine *engine, const struct effect *effect, uint64_t version)
{
    struct memtable *memtable = engine->active.memtable;
    if (effect->range > engine->config.ranges) return ERR_CORRUPT;
    if (effect->kind == EFFECT_CLEAR_BUCKET && PLANTED_BUG(25) && engine->wal == NULL) return OK;
    engine->range_applied[effect->range] = version;
    if (effect->kind == EFFECT_CLEAR_BUCKET)
        return memtable_clear_bucket(memtable, effect->range, effect->bucket);

    uint8_t stored[KEY_SIZE_MAX_STORED];
    struct bytes key = effect_stored_key(stored, effect->bucket, effect->key);
    if (effect->kind == EFFECT_DELETE)
        return memtable_delete(memtable, effect->range, key, version);

    struct value value = {
        .bytes = effect->value,
        .expires_ms = effect->expires_ms,
        .version = version,
        .flags = effect->flags,
    };
    TRY(memtable_put(memtable, effect->range, key, &value));
    if (effect->expires_ms == 0) return OK;
    return expiry_heap_add(&engine->active.expiry, effect->expires_ms, effect->range, key);
}

static void note_use(struct engine *engine)
{
    if (engine->active.used) return;
    engine->active.used = true;
    engine->active.first_ns = now_ns(engine);
}

enum err engine_apply(struct engine *engine, const struct wal_record *record)
{
    ASSERT(engine->table == NULL);
    ASSERT(record->lsn > engine->applied);
    engine->applied = record->lsn;
    if (record->type != WAL_RECORD_WRITE) return OK;
    note_use(engine);
    engine->active.last = record->lsn;
    struct bytes rest = record->payload;
    if (rest.size < 8) return engine->failed = ERR_CORRUPT;
    rest = bytes_of(rest.at + 8, rest.size - 8);
    struct effect effect;
    enum err err;
    while ((err = effect_next(&rest, &effect)) == OK) {
        err = apply_effect(engine, &effect, record->lsn);
        if (err != OK) break;
    }
    if (err == ERR_NOT_FOUND) return OK;
    return engine->failed = err;
}

enum err engine_apply_entry(
    struct engine *engine, uint16_t range, uint64_t index, struct bytes effects)
{
    ASSERT(engine->table != NULL && range <= engine->config.ranges);
    uint64_t applied = engine->range_applied[range];
    /* A crash between two transactions of a checkpoint leaves ranges that are ahead of the log's replay. */
    if (engine->wal == NULL && index <= applied) return OK;
    /* Half a snapshot: the next one replaces it and all that could be applied to it. */
    if (engine->wal == NULL && engine->installing[range]) return OK;
    ASSERT(index > applied);
    ASSERT(!engine->installing[range]);
    note_use(engine);
    engine->range_applied[range] = index;
    struct effect effect;
    enum err err;
    while ((err = effect_next(&effects, &effect)) == OK) {
        err = effect.range == range ? apply_effect(engine, &effect, index) : ERR_CORRUPT;
        if (err != OK) break;
    }
    if (err == ERR_NOT_FOUND) return OK;
    return engine->failed = err;
}

void engine_prefetch(const struct engine *engine, const struct wal_record *record)
{
    if (record->type != WAL_RECORD_WRITE || record->payload.size < 8) return;
    struct bytes rest = bytes_of(record->payload.at + 8, record->payload.size - 8);
    struct effect effect;
    /* the first effect stands for the record: most have one, and this is only a hint */
    if (effect_next(&rest, &effect) != OK || effect.kind == EFFECT_CLEAR_BUCKET) return;
    if (effect.range > engine->config.ranges) return;
    uint8_t stored[KEY_SIZE_MAX_STORED];
    memtable_prefetch(engine->active.memtable, effect.range,
        effect_stored_key(stored, effect.bucket, effect.key));
}

enum err engine_apply_up_to(struct engine *engine, lsn_t lsn)
{
    struct wal_record ahead[AHEAD];
    for (;;) {
        size_t count = 0;
        lsn_t last = engine->applied;
        while (count < AHEAD && wal_next_record(engine->wal, last, &ahead[count]) &&
            ahead[count].lsn <= lsn) {
            engine_prefetch(engine, &ahead[count]);
            last = ahead[count++].lsn;
        }
        if (count == 0) return OK;
        for (size_t i = 0; i < count; i++)
            TRY(engine_apply(engine, &ahead[i]));
    }
}

/* ---- reads ---- */

static enum err reading(struct engine *engine)
{
    if (engine->reading) return OK;
    TRY(engine->config.kv->read_renew(engine->read));
    engine->reading = true;
    return OK;
}

void engine_read_done(struct engine *engine)
{
    if (!engine->reading) return;
    engine->config.kv->read_reset(engine->read);
    engine->reading = false;
}

enum err engine_get(
    struct engine *engine, uint16_t range, struct bytes key, struct value *value_out)
{
    enum memtable_found found = memtable_get(engine->active.memtable, range, key, value_out);
    if (found == MEMTABLE_MISS && engine->sealed.memtable != NULL)
        found = memtable_get(engine->sealed.memtable, range, key, value_out);
    if (found == MEMTABLE_VALUE) return OK;
    if (found == MEMTABLE_GONE) return ERR_NOT_FOUND;
    TRY(reading(engine));
    enum err err = engine->config.kv->get(engine->read, range, key, value_out);
    if (err == ERR_CORRUPT) {
        engine->damaged++;
        log_error("a stored value fails its checksum", "range=%u", range);
    }
    return err;
}

/* One sorted stream per layer; the newest layer that has the smallest key wins. */
enum { LAYERS = 3, STORE = 2 };

struct engine_cursor {
    struct engine *engine;
    struct memtable_cursor memory[STORE];
    bool in_memory[STORE];
    void *store;
    bool have[LAYERS];
    bool advance[LAYERS];
    struct memtable_entry entry[LAYERS];
    uint16_t range;
    bool cleared; /* some layer in memory has cleared a bucket of the range */
    enum err store_error; /* OK, or ERR_CORRUPT for the store's current key */
};

static void load_memory(struct engine_cursor *cursor, int layer)
{
    cursor->have[layer] = cursor->in_memory[layer] &&
        memtable_cursor_get(&cursor->memory[layer], &cursor->entry[layer]);
}

static enum err load_store(struct engine_cursor *cursor, enum err err)
{
    cursor->have[STORE] = err == OK || err == ERR_CORRUPT;
    cursor->store_error = err == ERR_CORRUPT ? ERR_CORRUPT : OK;
    cursor->entry[STORE].tombstone = false;
    return cursor->have[STORE] || err == ERR_NOT_FOUND ? OK : err;
}

static void advance_layer(struct engine_cursor *cursor, int layer, enum err *err)
{
    cursor->advance[layer] = false;
    if (layer == STORE) {
        struct memtable_entry *entry = &cursor->entry[STORE];
        *err = load_store(cursor,
            cursor->engine->config.kv->cursor_next(cursor->store, &entry->key, &entry->value));
    } else {
        memtable_cursor_next(&cursor->memory[layer]);
        load_memory(cursor, layer);
    }
}

enum err engine_cursor_open(struct engine *engine, uint16_t range, struct bytes from, bool after,
    struct engine_cursor **cursor_out)
{
    TRY(reading(engine));
    struct engine_cursor *cursor = calloc(1, sizeof *cursor);
    if (cursor == NULL) return ERR_NOMEM;
    cursor->engine = engine;
    cursor->range = range;
    const struct memtable *memtables[STORE] = {engine->active.memtable, engine->sealed.memtable};
    for (int layer = 0; layer < STORE; layer++) {
        cursor->in_memory[layer] = memtables[layer] != NULL;
        if (memtables[layer] != NULL && memtable_range_cleared(memtables[layer], range))
            cursor->cleared = true;
        if (memtables[layer] != NULL)
            memtable_seek(memtables[layer], range, from, &cursor->memory[layer]);
        load_memory(cursor, layer);
    }
    const struct kv_ops *ops = engine->config.kv;
    enum err err = ops->cursor_open(engine->read, range, &cursor->store);
    if (err != OK) {
        free(cursor);
        return err;
    }
    struct memtable_entry *entry = &cursor->entry[STORE];
    err = load_store(cursor, ops->cursor_seek(cursor->store, from, &entry->key, &entry->value));
    if (after) {
        for (int layer = 0; layer < LAYERS && err == OK; layer++) {
            if (cursor->have[layer] && bytes_equal(cursor->entry[layer].key, from))
                advance_layer(cursor, layer, &err);
        }
    }
    if (err != OK) {
        engine_cursor_close(cursor);
        return err;
    }
    *cursor_out = cursor;
    return OK;
}

/* whether a newer layer's clearing of the key's bucket hides it */
static bool hidden(const struct engine_cursor *cursor, int layer, struct bytes key)
{
    if (!cursor->cleared) return false;
    uint16_t bucket = load_u16_be(key.at);
    const struct engine *engine = cursor->engine;
    if (layer > 0 && memtable_cleared(engine->active.memtable, cursor->range, bucket)) return true;
    return layer > 1 && engine->sealed.memtable != NULL &&
        memtable_cleared(engine->sealed.memtable, cursor->range, bucket);
}

/* The layer with the smallest key, the newest of equals; every layer that has the key is marked to move
 * on. -1 at the end. */
static int choose(struct engine_cursor *cursor)
{
    if (!cursor->have[0] && !cursor->have[1]) {
        /* nearly all of a large store: nothing in memory to merge with */
        cursor->advance[STORE] = cursor->have[STORE];
        return cursor->have[STORE] ? STORE : -1;
    }
    int winner = -1;
    for (int layer = 0; layer < LAYERS; layer++) {
        if (!cursor->have[layer]) continue;
        int order =
            winner < 0 ? -1 : bytes_compare(cursor->entry[layer].key, cursor->entry[winner].key);
        if (order < 0) {
            for (int newer = 0; newer < layer; newer++)
                cursor->advance[newer] = false;
            winner = layer;
        }
        if (order <= 0) cursor->advance[layer] = true;
    }
    return winner;
}

enum err engine_cursor_next(
    struct engine_cursor *cursor, struct bytes *key_out, struct value *value_out)
{
    for (;;) {
        enum err err = OK;
        for (int layer = 0; layer < LAYERS; layer++) {
            if (cursor->advance[layer]) advance_layer(cursor, layer, &err);
            if (err != OK) return err;
        }
        int winner = choose(cursor);
        if (winner < 0) return ERR_NOT_FOUND;
        const struct memtable_entry *entry = &cursor->entry[winner];
        if (entry->tombstone || hidden(cursor, winner, entry->key)) continue;
        *key_out = entry->key;
        if (winner == STORE && cursor->store_error != OK) {
            cursor->engine->damaged++;
            return cursor->store_error;
        }
        *value_out = entry->value;
        return OK;
    }
}

void engine_cursor_close(struct engine_cursor *cursor)
{
    cursor->engine->config.kv->cursor_close(cursor->store);
    free(cursor);
}

enum err engine_scan(struct engine *engine, uint16_t range, struct bytes from, bool after,
    bool (*each)(void *ctx, struct bytes key, const struct value *value), void *ctx)
{
    struct engine_cursor *cursor;
    TRY(engine_cursor_open(engine, range, from, after, &cursor));
    enum err damage = OK, err;
    for (;;) {
        struct bytes key;
        struct value value;
        err = engine_cursor_next(cursor, &key, &value);
        if (err == ERR_CORRUPT) {
            damage = err;
            continue;
        }
        if (err != OK || !each(ctx, key, &value)) break;
    }
    engine_cursor_close(cursor);
    if (err != OK && err != ERR_NOT_FOUND) return err;
    return damage;
}

/* ---- counting ---- */

enum { NOTE_UNKNOWN, NOTE_BELOW, NOTE_ABSENT };

static void renew_for_count(void *ctx)
{
    struct engine *engine = ctx;
    engine_read_done(engine);
    /* without a snapshot the count below reads 0 from the store and says so in the log */
    if (reading(engine) != OK) log_warn("cannot read the bottom store for a count", "%s", "");
}

/* where the checkpoint stands: entries of the sealed layer up to here are in the snapshot */
struct merged_to {
    uint32_t range;
    uint16_t key_size;
    uint8_t key[KEY_SIZE_MAX_STORED];
};

static bool is_merged(const struct merged_to *to, uint16_t range, struct bytes key)
{
    if (range != to->range) return range < to->range;
    return to->key_size > 0 && bytes_compare(key, bytes_of(to->key, to->key_size)) <= 0;
}

static bool exists_below(struct engine *engine, const struct layer *layer,
    struct memtable_cursor *cursor, const struct memtable_entry *entry)
{
    uint8_t note = memtable_cursor_note(cursor);
    if (note == NOTE_UNKNOWN) {
        struct value value;
        enum memtable_found found = MEMTABLE_MISS;
        if (layer == &engine->active && engine->sealed.memtable != NULL)
            found = memtable_get(engine->sealed.memtable, entry->range, entry->key, &value);
        bool exists = found == MEMTABLE_VALUE;
        if (found == MEMTABLE_MISS) {
            enum err err = engine->config.kv->get(engine->read, entry->range, entry->key, &value);
            exists = err == OK || err == ERR_CORRUPT;
        }
        note = exists ? NOTE_BELOW : NOTE_ABSENT;
        memtable_cursor_set_note(cursor, note);
    }
    return note == NOTE_BELOW;
}

/* what a layer adds to the keys of a bucket in a range; alone: nothing below it counts */
static int64_t layer_count(struct engine *engine, const struct layer *layer, uint16_t range,
    uint16_t bucket, bool alone, const struct merged_to *merged)
{
    if (memtable_range_count(layer->memtable, range) == 0) return 0;
    uint8_t prefix[2];
    store_u16_be(prefix, bucket);
    int64_t count = 0;
    struct memtable_cursor cursor;
    struct memtable_entry entry;
    memtable_seek(layer->memtable, range, bytes_of(prefix, 2), &cursor);
    for (; memtable_cursor_get(&cursor, &entry) && load_u16_be(entry.key.at) == bucket;
         memtable_cursor_next(&cursor)) {
        if (!alone && merged != NULL && is_merged(merged, entry.range, entry.key)) continue;
        count += entry.tombstone ? 0 : 1;
        if (!alone) count -= exists_below(engine, layer, &cursor, &entry) ? 1 : 0;
    }
    return count;
}

static int64_t count_range(
    struct engine *engine, uint16_t range, uint16_t bucket, const struct merged_to *merged)
{
    bool cleared = memtable_cleared(engine->active.memtable, range, bucket);
    int64_t count = layer_count(engine, &engine->active, range, bucket, cleared, NULL);
    if (!cleared && engine->sealed.memtable != NULL && !PLANTED_BUG(22)) {
        cleared = memtable_cleared(engine->sealed.memtable, range, bucket);
        count += layer_count(engine, &engine->sealed, range, bucket, cleared, merged);
    }
    uint64_t stored = 0;
    if (!cleared && engine->reading &&
        engine->config.kv->count(engine->read, range, bucket, &stored) != OK)
        stored = 0;
    return count + (int64_t)stored;
}

static struct merged_to counting_position(struct engine *engine)
{
    struct merged_to merged = {0};
    checkpoint_position(
        &engine->checkpoint, renew_for_count, engine, &merged.range, merged.key, &merged.key_size);
    return merged;
}

uint64_t engine_count(struct engine *engine, uint16_t bucket)
{
    struct merged_to merged = counting_position(engine);
    int64_t count = 0;
    for (uint32_t range = 1; range <= engine->config.ranges; range++)
        count += count_range(engine, (uint16_t)range, bucket, &merged);
    return count < 0 ? 0 : (uint64_t)count;
}

uint64_t engine_count_range(struct engine *engine, uint16_t range, uint16_t bucket)
{
    ASSERT(range <= engine->config.ranges);
    struct merged_to merged = counting_position(engine);
    int64_t count = count_range(engine, range, bucket, &merged);
    return count < 0 ? 0 : (uint64_t)count;
}

/* ---- expiry ---- */

struct expired_walk {
    struct engine *engine;
    uint32_t left;
    int64_t last_ms;
    void (*each)(void *ctx, uint16_t range, struct bytes key);
    void *ctx;
};

static bool expired_in_store(void *ctx, uint16_t range, struct bytes key, int64_t expires_ms)
{
    struct expired_walk *walk = ctx;
    struct value value;
    /* where a newer layer has the key, that layer's own entry counts */
    enum memtable_found found = memtable_get(walk->engine->active.memtable, range, key, &value);
    if (found == MEMTABLE_MISS && walk->engine->sealed.memtable != NULL)
        found = memtable_get(walk->engine->sealed.memtable, range, key, &value);
    if (found == MEMTABLE_MISS) {
        if (walk->left == 0) return false;
        walk->left--;
        walk->each(walk->ctx, range, key);
    }
    walk->last_ms = expires_ms;
    return true;
}

void engine_expired(struct engine *engine, int64_t until, uint32_t limit,
    void (*each)(void *ctx, uint16_t range, struct bytes key), void *ctx)
{
    struct layer *layers[] = {&engine->active, &engine->sealed};
    for (int i = 0; i < 2; i++) {
        struct expiry_entry entry;
        while (limit > 0 && expiry_heap_take(&layers[i]->expiry, until, &entry)) {
            limit--;
            each(ctx, entry.range, bytes_of(entry.key, entry.key_size));
        }
    }
    if (limit == 0 || reading(engine) != OK) return;
    struct expired_walk walk = {
        .engine = engine, .left = limit, .last_ms = engine->expired_from, .each = each, .ctx = ctx};
    enum err err = engine->config.kv->expired(
        engine->read, engine->expired_from, until, expired_in_store, &walk);
    if (err != OK) log_warn("cannot read the expiry index", "error=%s", err_name(err));
    engine->expired_from = walk.last_ms;
}

/* ---- the rest ---- */

void engine_checkpoint(struct engine *engine, void (*done)(void *ctx, enum err err), void *ctx)
{
    if (engine->waiter_count == WAITERS_MAX) {
        done(ctx, ERR_BUSY);
        return;
    }
    bool needed = engine->active.used || engine->table != NULL;
    if (!needed && engine->sealed.memtable == NULL) {
        done(ctx, OK);
        return;
    }
    engine->waiters[engine->waiter_count++] =
        (struct waiter){.done = done, .ctx = ctx, .seal = engine->seals + (needed ? 1 : 0)};
    if (needed) engine->seal_wanted = true;
    maintain(engine);
}

void engine_checkpoint_forget(struct engine *engine, const void *ctx)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < engine->waiter_count; i++) {
        if (engine->waiters[i].ctx != ctx) engine->waiters[kept++] = engine->waiters[i];
    }
    engine->waiter_count = kept;
}

bool engine_range_in_memory(const struct engine *engine, uint16_t range)
{
    ASSERT(range <= engine->config.ranges);
    const struct memtable *memtables[] = {engine->active.memtable, engine->sealed.memtable};
    for (int i = 0; i < 2; i++) {
        if (memtables[i] == NULL) continue;
        if (memtable_range_count(memtables[i], range) > 0) return true;
        if (memtable_range_cleared(memtables[i], range)) return true;
    }
    return false;
}

enum err snapshot_open(struct engine *engine, uint16_t range, struct range_meta *meta_out,
    struct snapshot **snapshot_out)
{
    if (engine->table == NULL) return ERR_UNSUPPORTED;
    ASSERT(range <= engine->config.ranges);
    return sources_open(engine->sources, range, meta_out, snapshot_out);
}

enum err install_begin(struct engine *engine, uint16_t range, const struct range_meta *meta_while,
    void (*done)(void *ctx, enum err result), void *ctx, struct install **install_out)
{
    if (engine->table == NULL) return ERR_UNSUPPORTED;
    ASSERT(!engine_range_in_memory(engine, range));
    TRY(sinks_begin(engine->sinks, range, meta_while, done, ctx, install_out));
    engine->installing[range] = true;
    return OK;
}

enum err engine_range_remove(struct engine *engine, uint16_t range, const struct range_meta *meta)
{
    if (engine->table == NULL) return ERR_UNSUPPORTED;
    ASSERT(!engine_range_in_memory(engine, range));
    struct streams_config config = streams_config(engine);
    engine_read_done(engine);
    engine->installing[range] = true;
    range_table_want(engine->table, range, meta);
    TRY(sinks_remove(&config, range, meta));
    engine->installing[range] = (meta->flags & RANGE_META_INSTALLING) != 0;
    engine->range_applied[range] = meta->index;
    return OK;
}

bool engine_checkpoint_step(struct engine *engine)
{
    if (engine->sealed.memtable == NULL) return false;
    /* a failed step is counted and repeated; the caller only wants to know if there is more */
    (void)!checkpoint_step(&engine->checkpoint);
    return true;
}

struct wal *engine_wal(struct engine *engine)
{
    return engine->wal;
}

struct kv *engine_kv(struct engine *engine)
{
    return engine->kv;
}

const struct kv_ops *engine_kv_ops(const struct engine *engine)
{
    return engine->config.kv;
}

lsn_t engine_applied(const struct engine *engine)
{
    return engine->applied;
}

lsn_t engine_checkpointed(const struct engine *engine)
{
    return engine->checkpointed;
}

uint64_t engine_range_applied(const struct engine *engine, uint16_t range)
{
    ASSERT(range <= engine->config.ranges);
    return engine->range_applied[range];
}

void engine_stats(struct engine *engine, struct engine_stats *stats_out)
{
    struct checkpoint *checkpoint = &engine->checkpoint;
    *stats_out = (struct engine_stats){
        .applied =
            engine->table == NULL ? engine->applied : engine->config.low_water(engine->config.ctx),
        .checkpointed = engine->checkpointed,
        .memtable_bytes = layer_bytes(&engine->active),
        .memtable_entries = memtable_count(engine->active.memtable),
        .sealed_bytes = layer_bytes(&engine->sealed),
        .sealed_entries =
            engine->sealed.memtable == NULL ? 0 : memtable_count(engine->sealed.memtable),
        .memory_limit = engine->config.memory,
        .checkpoints = atomic_load(&checkpoint->checkpoints),
        .checkpoint_puts = atomic_load(&checkpoint->puts),
        .checkpoint_ns = atomic_load(&checkpoint->last_ns),
        .checkpoint_failures = atomic_load(&checkpoint->failures),
        .checkpoint_running = engine->sealed.memtable != NULL,
        .throttled = engine->throttled,
        .damaged = engine->damaged + atomic_load(&checkpoint->damaged),
        .scrubbed = atomic_load(&checkpoint->scrubbed),
        .scrub_rounds = atomic_load(&checkpoint->scrub_rounds),
        .expires = engine->active.expiry.count + engine->sealed.expiry.count,
    };
    wal_stats(engine->wal, &stats_out->wal);
    engine->config.kv->stats(engine->kv, &stats_out->kv);
}
