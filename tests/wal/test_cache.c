#include <criterion/criterion.h>
#include <string.h>

#include "base/check.h"
#include "sim/sim_clock.h"
#include "sim/sim_disk.h"
#include "wal/wal.h"

/* What a process that died left in a cache must survive a later power cut, once a recovery served it. */

TestSuite(wal_cache, .timeout = 60);

static lsn_t replayed;

static enum err on_replay(void *ctx, const struct wal_record *record)
{
    (void)ctx;
    if (record->type == WAL_RECORD_WRITE) replayed = record->lsn;
    return OK;
}

static void on_durable(void *ctx, lsn_t lsn)
{
    (void)ctx;
    (void)lsn;
}

static struct wal *open_log(const struct io *io)
{
    struct wal_config config = {
        .io = io,
        .store_id = {1},
        .slot_size = 64 * 1024,
        .spare_slots = 1,
        .bytes_max = 1 << 20,
        .depth = 1,
        .on_replay = on_replay,
        .on_durable = on_durable,
    };
    struct wal_recovery report;
    struct wal *wal;
    replayed = 0;
    cr_assert_eq(wal_open(&config, &report, &wal), OK, "%s", report.detail);
    return wal;
}

/* Returns whether the record in flight at the kill was recovered; checks that a cut cannot take it. */
static bool kill_then_cut(uint64_t seed)
{
    struct sim_clock clock;
    sim_clock_init(&clock, 1700000000000);
    struct sim_disk *disk = sim_disk_create(&(struct sim_disk_config){
        .seed = seed, .latency_min_ns = 1000000, .latency_max_ns = 2000000});
    struct io io = {.clock = sim_clock_io(&clock), .disk = sim_disk_table(disk), .seed = seed};
    struct wal *wal = open_log(&io);
    lsn_t lsn;
    memset(wal_append(wal, WAL_RECORD_WRITE, 1, 100, &lsn), 7, 100);
    wal_flush(wal, 0);
    sim_disk_kill(disk);
    wal_close(wal);
    sim_disk_restart(disk);

    wal = open_log(&io);
    lsn_t served = replayed;
    sim_disk_cut(disk);
    wal_close(wal);
    sim_disk_restart(disk);

    wal = open_log(&io);
    cr_assert(replayed >= served, "seed %llu: LSN %llu was served and is gone",
        (unsigned long long)seed, (unsigned long long)served);
    wal_close(wal);
    sim_disk_destroy(disk);
    return served == lsn;
}

Test(wal_cache, what_recovery_served_survives_a_power_cut)
{
    int recovered = 0;
    for (uint64_t seed = 1; seed <= 300; seed++)
        recovered += kill_then_cut(seed) ? 1 : 0;
    /* both outcomes of a write in flight must have been seen, or nothing was tested */
    cr_assert(recovered > 10 && recovered < 290, "%d of 300 recovered", recovered);
}
