#include <criterion/criterion.h>

#include "tests/wal/world.h"

/* A scripted workload is crashed at every operation of the disk, and its recovery again, over many seeds.
 * Whatever is torn, dropped or kept: what was reported durable is there, in order and unchanged, and
 * an honest disk is never called damaged. */

static const size_t sizes[] = {8, 60, 132, 900, 3000, 4000, 9000, 20000};

/* One run of the workload. Every decision is drawn from the world's own generator, so that two runs of
 * one seed are alike up to the fault. Returns the first error, which is the crash. */
static enum err script(struct world *world, int steps)
{
    if (world->wal == NULL) {
        TRY(world_open(world));
    }
    for (int step = 0; step < steps; step++) {
        uint64_t dice = prng_below(&world->prng, 100);
        uint64_t records = 1 + prng_below(&world->prng, 4);
        for (uint64_t i = 0; i < records && dice < 80; i++) {
            size_t size = sizes[prng_below(&world->prng, sizeof sizes / sizeof *sizes)];
            if (world_append(world, size)) continue;
            TRY(wal_poll(world->wal));
            world_checkpoint(world);
            TRY(wal_poll(world->wal));
        }
        if (dice < 55) {
            TRY(world_commit(world));
        } else if (dice < 65) {
            wal_flush(world->wal, 0);
            world->flushed = world->last;
            world->now_ns += prng_below(&world->prng, 150000);
            sim_disk_run_until(world->sim, world->now_ns);
            TRY(wal_poll(world->wal));
        } else if (dice < 80) {
            wal_flush_inline(world->wal);
            TRY(wal_poll(world->wal));
        } else if (dice < 88) {
            world_checkpoint(world);
        } else if (dice < 94) {
            world_idle(world);
            TRY(wal_poll(world->wal));
        } else {
            wal_flush(world->wal, 0);
            world->flushed = world->last;
            TRY(world_wait(world));
            world_close(world);
            if (sim_disk_is_cut(world->sim)) return ERR_IO;
            TRY(world_open(world));
        }
        if (sim_disk_is_cut(world->sim)) return ERR_IO;
        if (world->fault[0] != 0) return ERR_CORRUPT;
        wal_release(world->wal, world->durable);
    }
    return OK;
}

enum { STEPS = 45 };

static void expect_sound(struct world *world, const char *when, uint64_t seed, uint64_t at)
{
    cr_assert_str_empty(world->fault, "%s, seed %llu, operation %llu: %s", when,
        (unsigned long long)seed, (unsigned long long)at, world->fault);
}

/* Crashes recovery itself up to twice, then opens in peace and goes on working. */
static void recover(struct world *world, uint64_t seed, uint64_t at)
{
    expect_sound(world, "before the crash", seed, at);
    world_bury(world);
    for (int again = 0; again < 2; again++) {
        sim_disk_cut_at(world->sim, 1 + prng_below(&world->prng, 8));
        enum err err = world_open(world);
        if (!sim_disk_is_cut(world->sim)) {
            cr_assert_eq(err, OK, "seed %llu, operation %llu: %s: %s", (unsigned long long)seed,
                (unsigned long long)at, err_name(err), world->report.detail);
            sim_disk_cut(world->sim);
        }
        expect_sound(world, "in recovery", seed, at);
        world_bury(world);
    }
    enum err err = world_open(world);
    cr_assert_eq(err, OK, "seed %llu, operation %llu: %s: %s", (unsigned long long)seed,
        (unsigned long long)at, err_name(err), world->report.detail);
    expect_sound(world, "after recovery", seed, at);
    cr_assert_eq(script(world, 6), OK);
    world_close(world);
    cr_assert_eq(world_open(world), OK, "%s", world->report.detail);
    expect_sound(world, "in the next life", seed, at);
}

static uint64_t count_operations(uint64_t seed, uint32_t depth, uint64_t capacity)
{
    struct world world;
    world_init(&world, seed, depth);
    sim_disk_set_capacity(world.sim, capacity);
    cr_assert_eq(script(&world, STEPS), OK);
    expect_sound(&world, "without a crash", seed, 0);
    uint64_t operations = sim_disk_operations(world.sim);
    world_deinit(&world);
    return operations;
}

static void crash_everywhere(uint64_t seed, uint32_t depth, uint64_t capacity)
{
    uint64_t operations = count_operations(seed, depth, capacity);
    cr_assert_gt(operations, 30);
    for (uint64_t at = 1; at <= operations; at++) {
        struct world world;
        world_init(&world, seed, depth);
        sim_disk_set_capacity(world.sim, capacity);
        sim_disk_cut_at(world.sim, at);
        (void)!script(&world, STEPS);
        if (sim_disk_is_cut(world.sim)) {
            recover(&world, seed, at);
        }
        world_deinit(&world);
    }
}

Test(crash, power_cut_at_every_operation)
{
    for (uint64_t seed = 1; seed <= 12; seed++) {
        crash_everywhere(seed, 1, 0);
    }
}

Test(crash, power_cut_at_every_operation_with_several_writes_in_flight)
{
    for (uint64_t seed = 101; seed <= 112; seed++) {
        crash_everywhere(seed, 3, 0);
    }
}

/* Three slots and no space for a fourth: opening may have to do without a segment of its own. */
Test(crash, power_cut_at_every_operation_on_a_full_disk)
{
    for (uint64_t seed = 151; seed <= 162; seed++) {
        crash_everywhere(seed, 1 + (uint32_t)(seed % 2), (uint64_t)3 * WORLD_SLOT + 5000);
    }
}

Test(crash, the_death_of_the_process_at_random_places)
{
    for (uint64_t seed = 201; seed <= 320; seed++) {
        struct world world;
        world_init(&world, seed, 1 + (uint32_t)(seed % 3));
        int steps = 1 + (int)prng_below(&world.prng, STEPS);
        cr_assert_eq(script(&world, steps), OK);
        if (world_append(&world, 900)) {
            wal_flush(world.wal, 0);
        }
        sim_disk_kill(world.sim);
        expect_sound(&world, "before the kill", seed, 0);
        world_bury(&world);
        cr_assert_eq(
            world_open(&world), OK, "seed %llu: %s", (unsigned long long)seed, world.report.detail);
        expect_sound(&world, "after the kill", seed, 0);
        /* What recovery has replayed must survive a power cut right after it. */
        recover(&world, seed, 0);
        world_deinit(&world);
    }
}

static void fail_everywhere(uint64_t seed, enum err error, uint64_t count)
{
    uint64_t operations = count_operations(seed, 1, 0);
    for (uint64_t at = 1; at <= operations; at++) {
        struct world world;
        world_init(&world, seed, 1);
        sim_disk_fail_at(world.sim, at, count, error);
        (void)!script(&world, STEPS);
        expect_sound(&world, "with a failing disk", seed, at);
        world_bury(&world);
        enum err err = world_open(&world);
        cr_assert_eq(err, OK, "seed %llu, operation %llu: %s: %s", (unsigned long long)seed,
            (unsigned long long)at, err_name(err), world.report.detail);
        expect_sound(&world, "after a failing disk", seed, at);
        cr_assert_eq(script(&world, 6), OK);
        expect_sound(&world, "later", seed, at);
        world_deinit(&world);
    }
}

Test(crash, an_error_at_every_operation)
{
    for (uint64_t seed = 401; seed <= 406; seed++) {
        fail_everywhere(seed, ERR_IO, 1);
        fail_everywhere(seed, ERR_IO, 1000000);
    }
}

Test(crash, no_space_at_every_operation)
{
    for (uint64_t seed = 501; seed <= 506; seed++) {
        fail_everywhere(seed, ERR_FULL, 1);
        fail_everywhere(seed, ERR_FULL, 5);
    }
}

Test(crash, equal_seeds_leave_equal_disks)
{
    uint64_t hash[2];
    for (int run = 0; run < 2; run++) {
        struct world world;
        world_init(&world, 77, 2);
        sim_disk_cut_at(world.sim, 40);
        (void)!script(&world, STEPS);
        hash[run] = sim_disk_hash(world.sim);
        world_deinit(&world);
    }
    cr_assert_eq(hash[0], hash[1]);
}
