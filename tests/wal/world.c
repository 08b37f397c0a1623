#include "tests/wal/world.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"

static uint64_t world_now(void *ctx)
{
    const struct world *world = ctx;
    return world->now_ns;
}

static int64_t world_wall(void *ctx)
{
    const struct world *world = ctx;
    return (int64_t)(world->now_ns / 1000000);
}

void world_fault(struct world *world, const char *format, ...)
{
    if (world->fault[0] != 0) return;
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(world->fault, sizeof world->fault, format, arguments);
    va_end(arguments);
}

void world_payload(uint64_t id, uint8_t *at, size_t size)
{
    struct prng prng;
    prng_init(&prng, id);
    if (size >= 8) {
        store_u64(at, id);
    }
    for (size_t i = 8; i < size; i++) {
        at[i] = (uint8_t)(id * 31 + i);
    }
}

bool world_matches(const struct world *world, const struct wal_record *record)
{
    uint64_t id = world->written[record->lsn % WORLD_LSNS];
    /* A MARK may take an LSN whose record was lost before anybody was told of it. */
    if (record->type == WAL_RECORD_MARK) return id == 0 || record->lsn > world->durable;
    if (record->payload.size < 8 || load_u64(record->payload.at) != id) return false;
    if (record->group != id % 5) return false;
    for (size_t i = 8; i < record->payload.size; i++) {
        if (record->payload.at[i] != (uint8_t)(id * 31 + i)) return false;
    }
    return true;
}

static enum err world_replay(void *ctx, const struct wal_record *record)
{
    struct world *world = ctx;
    lsn_t expected = world->replayed + 1;
    if (record->lsn != expected && world->config.accept_loss == 0) {
        world_fault(world, "LSN %llu was replayed, expected %llu", (unsigned long long)record->lsn,
            (unsigned long long)expected);
    }
    if (!world_matches(world, record)) {
        world_fault(
            world, "LSN %llu was replayed with another content", (unsigned long long)record->lsn);
    }
    if (record->type == WAL_RECORD_MARK) {
        world->written[record->lsn % WORLD_LSNS] = 0;
    }
    world->replayed = record->lsn;
    return OK;
}

static void world_durable(void *ctx, lsn_t lsn)
{
    struct world *world = ctx;
    if (lsn <= world->durable) {
        world_fault(world, "LSN %llu was reported after %llu", (unsigned long long)lsn,
            (unsigned long long)world->durable);
    }
    if (lsn > world->last) {
        world_fault(world, "LSN %llu was never appended", (unsigned long long)lsn);
    }
    world->durable = lsn;
    world->durable_calls++;
}

void world_init(struct world *world, uint64_t seed, uint32_t depth)
{
    memset(world, 0, sizeof *world);
    prng_init(&world->prng, seed);
    struct sim_disk_config disk = {
        .seed = prng_next(&world->prng), .latency_min_ns = 50000, .latency_max_ns = 200000};
    world->sim = sim_disk_create(&disk);
    world->now_ns = 1000000000;
    world->io.clock =
        (struct clock){.ctx = world, .monotonic_ns = world_now, .wall_ms = world_wall};
    world->io.disk = sim_disk_table(world->sim);
    world->io.seed = prng_next(&world->prng);
    world->next_id = 1;
    world->config = (struct wal_config){
        .io = &world->io,
        .store_id = {1, 2, 3, 4},
        .slot_size = WORLD_SLOT,
        .spare_slots = 2,
        .bytes_max = 64 * WORLD_SLOT,
        .depth = depth,
        .ctx = world,
        .on_replay = world_replay,
        .on_durable = world_durable,
    };
}

void world_deinit(struct world *world)
{
    world_close(world);
    sim_disk_destroy(world->sim);
    world->sim = NULL;
}

enum err world_open(struct world *world)
{
    ASSERT(world->wal == NULL);
    world->config.applied = world->applied;
    world->config.promised = world->promised;
    world->config.segment_floor = world->segment;
    world->replayed = world->applied;
    world->now_ns += 1000000;
    enum err err = wal_open(&world->config, &world->report, &world->wal);
    if (err != OK) {
        world->wal = NULL;
        return err;
    }
    if (world->replayed != world->report.last) {
        world_fault(world, "replay ended at LSN %llu, the report says %llu",
            (unsigned long long)world->replayed, (unsigned long long)world->report.last);
    }
    if (world->report.last < world->durable && world->config.accept_loss == 0) {
        world_fault(world, "LSN %llu was durable, the log ends at %llu",
            (unsigned long long)world->durable, (unsigned long long)world->report.last);
    }
    world->last = world->report.last;
    world->flushed = world->last;
    world->durable = world->last;
    wal_release(world->wal, world->last);
    return OK;
}

void world_idle(struct world *world)
{
    lsn_t next = wal_next(world->wal);
    wal_idle(world->wal);
    if (wal_next(world->wal) == next) return;
    world->written[next % WORLD_LSNS] = 0;
    world->last = next;
    world->flushed = next;
}

void world_close(struct world *world)
{
    if (world->wal == NULL) return;
    if (world->durable == world->last) {
        world->written[(world->last + 1) % WORLD_LSNS] = 0; /* closing may leave a MARK */
    }
    wal_close(world->wal);
    world->wal = NULL;
}

void world_bury(struct world *world)
{
    world_close(world);
    sim_disk_restart(world->sim);
}

bool world_append(struct world *world, size_t size)
{
    if (wal_admit(world->wal, size) != OK) return false;
    uint64_t id = world->next_id++;
    lsn_t lsn;
    uint8_t *at = wal_append(world->wal, WAL_RECORD_WRITE, id % 5, size, &lsn);
    ASSERT(at != NULL && size >= 8);
    world_payload(id, at, size);
    world->written[lsn % WORLD_LSNS] = id;
    world->last = lsn;
    return true;
}

enum err world_commit(struct world *world)
{
    wal_flush(world->wal, 0);
    world->flushed = world->last;
    return world_wait(world);
}

enum err world_wait(struct world *world)
{
    for (int round = 0; world->durable < world->flushed; round++) {
        ASSERT(round < 10000);
        uint64_t due = sim_disk_next_due(world->sim);
        if (due != UINT64_MAX && due > world->now_ns) {
            world->now_ns = due;
        }
        sim_disk_run_until(world->sim, world->now_ns);
        TRY(wal_poll(world->wal));
    }
    wal_release(world->wal, world->durable);
    return OK;
}

void world_checkpoint(struct world *world)
{
    world->applied = world->durable;
    world->promised = world->durable;
    world->segment = wal_segment(world->wal);
    wal_trim(world->wal, world->applied);
}
