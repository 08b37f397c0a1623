#include <signal.h>

#include <criterion/criterion.h>

#include "tests/wal/world.h"
#include "wal/record.h"

/* Appending, group commit, admission, rollover and recycling, on the simulated disk. */

static struct world world;

static void start(void)
{
    world_init(&world, 1, 1);
}

static void stop(void)
{
    world_deinit(&world);
}

TestSuite(wal, .init = start, .fini = stop);

static void open_fresh(void)
{
    cr_assert_eq(world_open(&world), OK);
    cr_assert_str_empty(world.fault);
}

static void append(size_t size)
{
    cr_assert(world_append(&world, size));
}

static struct wal_stats stats(void)
{
    struct wal_stats out;
    wal_stats(world.wal, &out);
    return out;
}

Test(wal, a_new_log_starts_with_a_mark)
{
    open_fresh();
    cr_assert_eq(world.report.records, 0);
    cr_assert_eq(world.report.last, 1);
    cr_assert_eq(world.replayed, 1, "the mark is replayed");
    cr_assert_eq(wal_next(world.wal), 2);
    cr_assert_eq(stats().durable, 1);
    cr_assert_eq(wal_segment(world.wal), 1);
    cr_assert_eq(stats().slots_spare, 2);
}

Test(wal, nothing_is_durable_before_its_write_has_ended)
{
    open_fresh();
    append(100);
    wal_flush(world.wal, 0);
    cr_assert(wal_in_flight(world.wal));
    cr_assert_eq(wal_poll(world.wal), OK);
    cr_assert_eq(world.durable_calls, 0, "reported while the write was in flight");
    world.flushed = world.last;
    cr_assert_eq(world_wait(&world), OK);
    cr_assert_eq(world.durable_calls, 1);
    cr_assert_eq(world.durable, 2);
}

Test(wal, what_arrives_during_a_write_goes_into_one_batch)
{
    open_fresh();
    uint64_t batches = stats().batches;
    append(100);
    wal_flush(world.wal, 0);
    for (int i = 0; i < 50; i++) {
        append(100);
        wal_flush(world.wal, 0);
    }
    cr_assert_eq(stats().batches, batches + 1, "one write in flight at depth 1");
    cr_assert_eq(world_commit(&world), OK);
    cr_assert_eq(stats().batches, batches + 2);
    cr_assert_eq(world.durable_calls, 2);
    cr_assert_eq(world.durable, 52);
}

Test(wal, what_was_not_flushed_is_not_sent)
{
    open_fresh();
    append(100);
    cr_assert_eq(wal_poll(world.wal), OK);
    cr_assert_not(wal_in_flight(world.wal));
    wal_flush(world.wal, 0);
    append(100); /* not flushed, must not ride along when the first write ends */
    uint64_t due = sim_disk_next_due(world.sim);
    sim_disk_run_until(world.sim, due);
    cr_assert_eq(wal_poll(world.wal), OK);
    cr_assert_eq(world.durable, 2);
    cr_assert_not(wal_in_flight(world.wal));
    cr_assert_eq(world_commit(&world), OK);
    cr_assert_eq(world.durable, 3);
}

Test(wal, an_inline_flush_is_durable_on_return)
{
    open_fresh();
    append(100);
    append(3000);
    wal_flush_inline(world.wal);
    cr_assert_eq(world.durable, 3);
    cr_assert_not(wal_in_flight(world.wal));
    append(10);
    wal_flush(world.wal, 0);
    append(10);
    wal_flush_inline(world.wal);
    cr_assert_eq(world.durable, 3, "with a write in flight it is like any flush");
    cr_assert_eq(world_commit(&world), OK);
    cr_assert_eq(world.durable, 5);
}

Test(wal, deeper_writes_that_end_out_of_order_are_reported_in_order)
{
    world.config.depth = 4;
    open_fresh();
    for (int i = 0; i < 4; i++) {
        append(100);
        wal_flush(world.wal, 0);
    }
    cr_assert_eq(stats().batches, 4, "all four in flight");
    sim_disk_run_all(world.sim);
    world.flushed = world.last;
    cr_assert_eq(world_wait(&world), OK);
    cr_assert_eq(world.durable, 5);
    cr_assert_str_empty(world.fault);
}

Test(wal, a_delay_holds_the_write_back)
{
    open_fresh();
    sim_disk_set_latency(world.sim, 1000, 1000);
    append(100);
    sim_disk_run_until(world.sim, world.now_ns);
    wal_flush(world.wal, 5000);
    cr_assert_eq(sim_disk_next_due(world.sim), world.now_ns + 5000000 + 1000);
}

Test(wal, records_stay_readable_until_released)
{
    open_fresh();
    for (int i = 0; i < 150; i++) {
        append(8 + (size_t)i * 7);
        if (i % 10 == 0) {
            wal_flush(world.wal, 0);
        }
    }
    struct wal_record record;
    lsn_t lsn = 1;
    while (wal_next_record(world.wal, lsn, &record)) {
        cr_assert_eq(record.lsn, lsn + 1);
        cr_assert(world_matches(&world, &record), "LSN %llu", (unsigned long long)record.lsn);
        lsn = record.lsn;
    }
    cr_assert_eq(lsn, 151);
    world.flushed = world.last;
    wal_flush(world.wal, 0);
    cr_assert_eq(world_wait(&world), OK);
    cr_assert_not(wal_next_record(world.wal, 1, &record), "all are released");
    append(100);
    cr_assert(wal_next_record(world.wal, 7, &record), "the next there is");
    cr_assert_eq(record.lsn, 152);
}

Test(wal, a_record_larger_than_a_chunk_is_a_batch_of_its_own)
{
    world.config.slot_size = 8 << 20;
    world.config.bytes_max = 64 << 20;
    open_fresh();
    append(100);
    append(3 << 20);
    append(100);
    cr_assert_eq(world_commit(&world), OK);
    append(wal_record_size_max(world.wal));
    cr_assert_eq(world_commit(&world), OK);
    cr_assert_eq(wal_admit(world.wal, wal_record_size_max(world.wal) + 1), ERR_TOO_LARGE);
    world_close(&world);
    cr_assert_eq(world_open(&world), OK);
    cr_assert_str_empty(world.fault);
    cr_assert_geq(world.report.records, 5);
}

Test(wal, the_largest_record_fits_whatever_stands_before_it)
{
    open_fresh();
    for (int round = 0; round < 40; round++) {
        append(8 + (size_t)round * 501);
        append(wal_record_size_max(world.wal));
        cr_assert_eq(world_commit(&world), OK);
        world_checkpoint(&world);
    }
    world_close(&world);
    cr_assert_eq(world_open(&world), OK);
    cr_assert_str_empty(world.fault);
}

Test(wal, slots_are_recycled_and_the_log_does_not_grow)
{
    open_fresh();
    for (int i = 0; i < 2000; i++) {
        append(1000);
        cr_assert_eq(world_commit(&world), OK);
        if (i % 20 == 19) {
            world_checkpoint(&world);
        }
    }
    cr_assert_leq(stats().bytes, (uint64_t)6 * WORLD_SLOT);
    cr_assert_gt(wal_segment(world.wal), 100);
    world_close(&world);
    cr_assert_eq(world_open(&world), OK);
    cr_assert_str_empty(world.fault);
}

Test(wal, without_room_writes_are_refused_and_the_admitted_ones_fit)
{
    world.config.bytes_max = 3 * WORLD_SLOT;
    open_fresh();
    int taken = 0;
    while (world_append(&world, 700)) {
        taken++;
        cr_assert_lt(taken, 1000);
        if (taken % 3 == 0) {
            wal_flush(world.wal, 0);
        }
    }
    cr_assert_gt(taken, 100);
    cr_assert_eq(wal_admit(world.wal, 700), ERR_FULL);
    cr_assert(stats().full);
    cr_assert_eq(world_commit(&world), OK, "all that was admitted has its place");
    cr_assert_eq(world.durable, world.last);
    cr_assert_eq(stats().bytes, (uint64_t)3 * WORLD_SLOT);
    world_idle(&world);
    cr_assert_eq(world_wait(&world), OK, "the place of a mark is reserved");
    world_checkpoint(&world);
    cr_assert_eq(wal_admit(world.wal, 700), OK, "room again");
    cr_assert_not(stats().full);
    append(700);
    cr_assert_eq(world_commit(&world), OK);
    world_close(&world);
    cr_assert_eq(world_open(&world), OK);
    cr_assert_str_empty(world.fault);
}

Test(wal, a_full_disk_refuses_writes_until_there_is_space)
{
    open_fresh();
    sim_disk_set_capacity(world.sim, 3 * WORLD_SLOT);
    while (world_append(&world, 700)) {
        cr_assert_eq(world_commit(&world), OK);
    }
    cr_assert_eq(wal_admit(world.wal, 8), ERR_FULL);
    cr_assert_eq(stats().slots_spare, 0);
    sim_disk_set_capacity(world.sim, 0);
    cr_assert_eq(wal_admit(world.wal, 8), ERR_FULL, "tried again every second only");
    world.now_ns += 1100000000;
    cr_assert_eq(wal_admit(world.wal, 8), OK);
    append(700);
    cr_assert_eq(world_commit(&world), OK);
    world_close(&world);
    cr_assert_eq(world_open(&world), OK);
    cr_assert_str_empty(world.fault);
}

Test(wal, a_full_disk_does_not_prevent_opening)
{
    open_fresh();
    sim_disk_set_capacity(world.sim, 3 * WORLD_SLOT);
    while (world_append(&world, 700)) {
        cr_assert_eq(world_commit(&world), OK);
    }
    for (int again = 0; again < 3; again++) {
        world_close(&world);
        cr_assert_eq(world_open(&world), OK, "%s", world.report.detail);
        cr_assert_str_empty(world.fault);
        cr_assert_eq(wal_admit(world.wal, 8), ERR_FULL);
    }
    sim_disk_set_capacity(world.sim, 0);
    world.now_ns += 1100000000;
    append(700);
    cr_assert_eq(world_commit(&world), OK);
    append(700);
    cr_assert_eq(world_commit(&world), OK);
    world_close(&world);
    cr_assert_eq(world_open(&world), OK);
    cr_assert_str_empty(world.fault);
}

Test(wal, an_idle_log_leaves_one_promise)
{
    open_fresh();
    append(100);
    cr_assert_eq(world_commit(&world), OK);
    lsn_t next = wal_next(world.wal);
    world_idle(&world);
    cr_assert_eq(wal_next(world.wal), next + 1);
    world_idle(&world);
    cr_assert_eq(wal_next(world.wal), next + 1, "nothing while a write is in flight");
    cr_assert_eq(world_wait(&world), OK);
    world_idle(&world);
    cr_assert_eq(wal_next(world.wal), next + 1, "a mark needs no promise itself");
}

Test(wal, a_failed_write_poisons_the_log_for_good)
{
    open_fresh();
    append(100);
    sim_disk_fail_at(world.sim, 1, 1, ERR_IO);
    wal_flush(world.wal, 0);
    world.flushed = world.last;
    cr_assert_eq(world_wait(&world), ERR_POISONED);
    cr_assert_eq(world.durable_calls, 0);
    cr_assert_eq(wal_poll(world.wal), ERR_POISONED, "it stays so");
    cr_assert_eq(wal_admit(world.wal, 8), ERR_POISONED);
    uint64_t operations = sim_disk_operations(world.sim);
    wal_flush(world.wal, 0);
    wal_idle(world.wal);
    (void)!wal_poll(world.wal);
    cr_assert_eq(sim_disk_operations(world.sim), operations, "nothing is retried");
}

Test(wal, a_failed_inline_write_poisons_too)
{
    open_fresh();
    append(100);
    sim_disk_fail_at(world.sim, 1, 1, ERR_IO);
    wal_flush_inline(world.wal);
    cr_assert_eq(world.durable_calls, 0);
    cr_assert_eq(wal_poll(world.wal), ERR_POISONED);
}

Test(wal, an_error_behind_a_success_does_not_take_the_success_back)
{
    world.config.depth = 2;
    open_fresh();
    append(100);
    wal_flush(world.wal, 0);
    sim_disk_fail_at(world.sim, 1, 1, ERR_IO);
    append(100);
    wal_flush(world.wal, 0);
    sim_disk_run_all(world.sim);
    cr_assert_eq(wal_poll(world.wal), ERR_POISONED);
    cr_assert_leq(world.durable, 2, "the failed one is never reported");
}

Test(wal, no_byte_of_older_batches_leaks_into_padding)
{
    open_fresh();
    append(3900);
    cr_assert_eq(world_commit(&world), OK);
    append(8);
    cr_assert_eq(world_commit(&world), OK);
    uint8_t block[DISK_BLOCK];
    cr_assert(sim_disk_peek(world.sim, "slot-0000", 3 * DISK_BLOCK, block, sizeof block));
    cr_assert_eq(load_u64(block + 24), 3, "the batch of the second record");
    for (size_t i = BATCH_HEADER + RECORD_HEADER + 8; i < sizeof block; i++) {
        cr_assert_eq(block[i], 0, "byte %zu", i);
    }
}

Test(wal, too_large_an_append_is_a_bug, .signal = SIGABRT)
{
    open_fresh();
    (void)wal_append(world.wal, WAL_RECORD_WRITE, 0, wal_record_size_max(world.wal) + 1, NULL);
}
