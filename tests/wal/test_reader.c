#include <criterion/criterion.h>

#include "tests/wal/world.h"
#include "wal/record.h"

/* Reading the log back while it goes on. */

static struct world world;

static void start(void)
{
    world_init(&world, 5, 1);
    cr_assert_eq(world_open(&world), OK);
}

static void stop(void)
{
    world_deinit(&world);
}

TestSuite(reader, .init = start, .fini = stop);

static void fill(int batches)
{
    for (int i = 0; i < batches; i++) {
        for (int record = 0; record <= i % 4; record++) {
            cr_assert(world_append(&world, 50 + (size_t)(i % 9) * 400));
        }
        cr_assert_eq(world_commit(&world), OK);
    }
}

/* Reads up to the end and returns the last LSN seen. */
static lsn_t drain(struct wal_reader *reader, lsn_t after)
{
    struct wal_record record;
    enum err err;
    while ((err = wal_reader_next(reader, &record)) == OK) {
        cr_assert_eq(record.lsn, after + 1);
        cr_assert(world_matches(&world, &record), "LSN %llu", (unsigned long long)record.lsn);
        after = record.lsn;
    }
    cr_assert_eq(err, ERR_NOT_FOUND, "%s", err_name(err));
    return after;
}

Test(reader, returns_exactly_what_lies_between)
{
    fill(60);
    cr_assert_gt(wal_segment(world.wal), 3);
    for (lsn_t after = 0; after < world.durable; after += 7) {
        for (lsn_t upto = after; upto <= world.durable; upto += 19) {
            struct wal_reader *reader;
            cr_assert_eq(wal_reader_open(world.wal, after, upto, &reader), OK);
            cr_assert_eq(drain(reader, after), upto);
            wal_reader_close(reader);
        }
    }
}

Test(reader, follows_the_log_as_it_grows)
{
    fill(3);
    struct wal_reader *reader;
    cr_assert_eq(wal_reader_open(world.wal, 0, world.durable, &reader), OK);
    lsn_t at = 0;
    for (int round = 0; round < 40; round++) {
        at = drain(reader, at);
        cr_assert_eq(at, world.durable);
        fill(1 + round % 5);
        wal_reader_extend(reader, world.durable);
    }
    cr_assert_eq(drain(reader, at), world.durable);
    wal_reader_close(reader);
}

Test(reader, holds_on_to_its_slots_while_the_log_is_recycled)
{
    fill(20);
    lsn_t upto = world.durable;
    struct wal_reader *reader;
    cr_assert_eq(wal_reader_open(world.wal, 0, upto, &reader), OK);
    for (int i = 0; i < 20; i++) {
        fill(4);
        world_checkpoint(&world);
    }
    cr_assert_eq(drain(reader, 0), upto);
    struct wal_stats before;
    wal_stats(world.wal, &before);
    wal_reader_close(reader);
    fill(4);
    world_checkpoint(&world);
    struct wal_stats after;
    wal_stats(world.wal, &after);
    cr_assert_gt(after.slots_spare, before.slots_spare, "they are given back behind it");
}

Test(reader, what_is_recycled_is_a_gap)
{
    for (int i = 0; i < 20; i++) {
        fill(4);
        world_checkpoint(&world);
    }
    struct wal_reader *reader;
    cr_assert_eq(wal_reader_open(world.wal, 0, world.durable, &reader), ERR_GAP);
    cr_assert_eq(wal_reader_open(world.wal, world.durable, world.durable, &reader), OK);
    cr_assert_eq(drain(reader, world.durable), world.durable);
    wal_reader_close(reader);
}

Test(reader, does_not_serve_a_damaged_record)
{
    fill(20);
    struct wal_reader *reader;
    cr_assert_eq(wal_reader_open(world.wal, 0, world.durable, &reader), OK);
    cr_assert(sim_disk_flip(world.sim, "slot-0000", 5 * DISK_BLOCK + 200, 2));
    struct wal_record record;
    enum err err;
    lsn_t last = 0;
    while ((err = wal_reader_next(reader, &record)) == OK) {
        last = record.lsn;
    }
    cr_assert_eq(err, ERR_CORRUPT);
    cr_assert_lt(last, world.durable);
    wal_reader_close(reader);
}

Test(reader, reads_over_an_accepted_loss)
{
    fill(20);
    lsn_t last = world.durable;
    world_close(&world);
    cr_assert(sim_disk_flip(world.sim, "slot-0000", 5 * DISK_BLOCK + 200, 2));
    cr_assert_eq(world_open(&world), ERR_CORRUPT);
    world.config.accept_loss = 1;
    cr_assert_eq(world_open(&world), OK);
    fill(5);
    struct wal_reader *reader;
    cr_assert_eq(wal_reader_open(world.wal, 0, world.durable, &reader), OK);
    struct wal_record record;
    lsn_t before = 0;
    int jumps = 0;
    while (wal_reader_next(reader, &record) == OK) {
        cr_assert(world_matches(&world, &record));
        jumps += record.lsn != before + 1;
        cr_assert(record.lsn == before + 1 || record.lsn > last);
        before = record.lsn;
    }
    cr_assert_eq(before, world.durable);
    cr_assert_eq(jumps, 1);
    wal_reader_close(reader);
    cr_assert_eq(wal_reader_open(world.wal, last - 1, world.durable, &reader), OK, "in the hole");
    cr_assert_eq(wal_reader_next(reader, &record), OK);
    cr_assert_gt(record.lsn, last);
    wal_reader_close(reader);
}

Test(reader, reads_records_of_the_run_before)
{
    fill(30);
    world_close(&world);
    cr_assert_eq(world_open(&world), OK);
    fill(5);
    struct wal_reader *reader;
    cr_assert_eq(wal_reader_open(world.wal, 3, world.durable, &reader), OK);
    cr_assert_eq(drain(reader, 3), world.durable);
    wal_reader_close(reader);
}

Test(reader, a_reader_that_follows_lets_go_of_what_it_has_read)
{
    fill(30);
    struct wal_reader *reader;
    cr_assert_eq(wal_reader_open(world.wal, 0, world.durable, &reader), OK);
    lsn_t read = 0;
    uint64_t most = 0;
    for (int round = 0; round < 20; round++) {
        read = drain(reader, read);
        fill(15);
        wal_reader_extend(reader, world.durable);
        world_checkpoint(&world);
        struct wal_stats stats;
        wal_stats(world.wal, &stats);
        if (round == 5) most = stats.bytes;
        if (round > 5) cr_assert_leq(stats.bytes, most, "the log does not grow");
    }
    cr_assert_eq(drain(reader, read), world.durable);
    wal_reader_close(reader);
}
