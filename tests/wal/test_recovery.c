#include <stdio.h>

#include <criterion/criterion.h>

#include "base/crc32c.h"
#include "tests/wal/world.h"
#include "wal/record.h"

/* What recovery says to damage: never silently less than was acknowledged, never a refusal without need. */

static struct world world;

static void start(void)
{
    world_init(&world, 3, 1);
    cr_assert_eq(world_open(&world), OK);
}

static void stop(void)
{
    world_deinit(&world);
}

TestSuite(recovery, .init = start, .fini = stop);

/* Where a batch lies. */
struct place {
    char slot[32];
    uint64_t offset;
    struct batch_header header;
};

static const char *slot_file(unsigned number)
{
    static char name[32];
    (void)snprintf(name, sizeof name, "slot-%04u", number);
    return name;
}

/* Finds the batch that holds `lsn`, the newest if there are several. */
static struct place find(lsn_t lsn)
{
    struct place best = {.offset = 0};
    uint32_t seed = batch_seed(world.config.store_id);
    for (unsigned number = 0; number < 64; number++) {
        const char *name = slot_file(number);
        uint64_t size = sim_disk_file_size(world.sim, name);
        for (uint64_t offset = DISK_BLOCK; offset + DISK_BLOCK <= size; offset += DISK_BLOCK) {
            uint8_t block[DISK_BLOCK];
            struct batch_header header;
            cr_assert(sim_disk_peek(world.sim, name, offset, block, sizeof block));
            if (batch_decode(seed, bytes_of(block, sizeof block), &header) != OK) continue;
            if (lsn < header.first_lsn || lsn >= header.first_lsn + header.records) continue;
            if (header.sequence <= best.header.sequence) continue;
            best = (struct place){.offset = offset, .header = header};
            (void)snprintf(best.slot, sizeof best.slot, "%s", name);
        }
    }
    cr_assert_neq(best.offset, 0, "no batch holds LSN %llu", (unsigned long long)lsn);
    return best;
}

static void commit(size_t size, int records)
{
    for (int i = 0; i < records; i++) {
        cr_assert(world_append(&world, size));
    }
    cr_assert_eq(world_commit(&world), OK);
}

static void fill(int batches)
{
    for (int i = 0; i < batches; i++) {
        commit(60 + (size_t)i % 7 * 500, 1 + i % 3);
    }
}

static void flip(lsn_t lsn, uint64_t byte)
{
    struct place place = find(lsn);
    cr_assert(sim_disk_flip(world.sim, place.slot, place.offset + byte, 3));
}

static void expect_open(void)
{
    enum err err = world_open(&world);
    cr_assert_eq(err, OK, "%s: %s", err_name(err), world.report.detail);
    cr_assert_str_empty(world.fault);
}

static void expect_refusal(enum err wanted)
{
    enum err err = world_open(&world);
    cr_assert_eq(err, wanted, "%s: %s", err_name(err), world.report.detail);
    cr_assert_neq(world.report.detail[0], 0);
}

static int sentences;

static void count_sentence(void *ctx, const char *sentence)
{
    (void)ctx;
    cr_assert_neq(sentence[0], 0);
    sentences++;
}

static enum err verify(void)
{
    struct wal_recovery report;
    world.config.applied = world.applied;
    world.config.promised = world.promised;
    world.config.segment_floor = world.segment;
    sentences = 0;
    return wal_verify(&world.config, count_sentence, NULL, &report);
}

Test(recovery, replays_what_is_not_checkpointed)
{
    fill(10);
    world_checkpoint(&world);
    lsn_t applied = world.applied;
    fill(10);
    world_close(&world);
    cr_assert_eq(verify(), OK);
    expect_open();
    cr_assert_geq(world.report.records, world.durable - applied - 2);
    cr_assert_leq(world.report.records, world.durable - applied);
}

Test(recovery, a_flip_anywhere_in_the_log_is_damage_and_never_a_shorter_log)
{
    fill(60);
    world_close(&world);
    cr_assert_eq(verify(), OK);
    lsn_t last = world.durable;
    int refused = 0;
    int harmless = 0;
    for (lsn_t lsn = 2; lsn <= last; lsn++) {
        struct place place = find(lsn);
        if (place.header.first_lsn != lsn) continue;
        uint64_t used = BATCH_HEADER + place.header.bytes;
        for (uint64_t byte = 0; byte < batch_span(&place.header); byte += 13) {
            struct sim_disk *intact = world.sim;
            if (byte > 400 && byte % 5 != 0) continue;
            world.sim = sim_disk_clone(intact, byte);
            world.io.disk = sim_disk_table(world.sim);
            cr_assert(sim_disk_flip(world.sim, place.slot, place.offset + byte, (int)(byte % 8)));
            enum err checked = verify();
            enum err err = world_open(&world);
            if (byte < used) {
                cr_assert_eq(err, ERR_CORRUPT, "LSN %llu, byte %llu: %s: %s",
                    (unsigned long long)lsn, (unsigned long long)byte, err_name(err),
                    world.report.detail);
                cr_assert_eq(checked, ERR_CORRUPT);
                cr_assert_geq(sentences, 1);
                refused++;
            } else {
                cr_assert_eq(err, OK, "padding carries nothing: %s", world.report.detail);
                cr_assert_str_empty(world.fault);
                cr_assert_eq(checked, OK);
                harmless++;
                world_close(&world);
                world.durable = last;
            }
            sim_disk_destroy(world.sim);
            world.sim = intact;
            world.io.disk = sim_disk_table(world.sim);
        }
    }
    cr_assert_gt(refused, 1000);
    cr_assert_gt(harmless, 100);
}

Test(recovery, the_last_batch_damaged_without_a_later_promise_is_a_torn_tail)
{
    fill(5);
    lsn_t before = world.durable;
    commit(100, 2);
    sim_disk_cut(world.sim);
    world_bury(&world);
    flip(before + 1, 100);
    world.durable = before; /* the one case that cannot be told apart; an idle mark closes it */
    expect_open();
    cr_assert(world.report.torn_tail);
    cr_assert_eq(world.report.last, before + 1, "its LSN goes to the mark");
}

Test(recovery, an_idle_mark_makes_the_last_batch_recognisable)
{
    fill(5);
    lsn_t before = world.durable;
    commit(100, 2);
    world_idle(&world);
    cr_assert_eq(world_wait(&world), OK);
    sim_disk_cut(world.sim);
    world_bury(&world);
    flip(before + 1, 100);
    expect_refusal(ERR_CORRUPT);
}

Test(recovery, the_bottom_stores_promise_counts_too)
{
    fill(5);
    lsn_t before = world.durable;
    commit(100, 2);
    world.promised = world.durable;
    sim_disk_cut(world.sim);
    world_bury(&world);
    flip(before + 1, 100);
    expect_refusal(ERR_CORRUPT);
}

Test(recovery, a_block_that_cannot_be_read_is_damage)
{
    fill(20);
    world_close(&world);
    struct place place = find(10);
    cr_assert(sim_disk_break_block(world.sim, place.slot, place.offset));
    cr_assert_eq(verify(), ERR_CORRUPT);
    expect_refusal(ERR_CORRUPT);
}

Test(recovery, an_unreadable_block_behind_the_end_is_no_damage)
{
    fill(3);
    world_close(&world);
    cr_assert(sim_disk_break_block(world.sim, slot_file(0), WORLD_SLOT - DISK_BLOCK));
    expect_open();
}

Test(recovery, damage_below_the_checkpoint_does_not_prevent_opening)
{
    fill(8);
    lsn_t old = world.durable - 2;
    world_checkpoint(&world);
    fill(3);
    world_close(&world);
    flip(old, 100);
    flip(3, 10);
    cr_assert_eq(verify(), ERR_CORRUPT, "verify still tells");
    expect_open();
}

Test(recovery, damage_of_the_whole_log_below_the_checkpoint_is_no_loss)
{
    fill(8);
    world_checkpoint(&world);
    lsn_t last = world.durable;
    sim_disk_cut(world.sim);
    world_bury(&world);
    for (lsn_t lsn = 2; lsn <= last; lsn++) {
        flip(lsn, 80);
    }
    expect_open();
    cr_assert_eq(world.report.last, last + 1);
    fill(3);
    world_close(&world);
    expect_open();
}

Test(recovery, a_lost_header_of_a_needed_segment_is_damage)
{
    fill(60);
    cr_assert_gt(wal_segment(world.wal), 2);
    world_close(&world);
    struct place place = find(20);
    cr_assert(sim_disk_flip(world.sim, place.slot, 40, 1));
    cr_assert_eq(verify(), ERR_CORRUPT);
    expect_refusal(ERR_CORRUPT);
}

Test(recovery, a_lost_header_of_the_newest_segment_is_damage)
{
    fill(60);
    struct place place = find(world.durable);
    world_close(&world);
    cr_assert(sim_disk_flip(world.sim, place.slot, 40, 1));
    expect_refusal(ERR_CORRUPT);
}

static void remove_file(const char *name)
{
    cr_assert_eq(world.io.disk.remove(world.io.disk.ctx, name), OK);
}

Test(recovery, a_slot_that_is_gone_is_a_gap)
{
    fill(60);
    world_close(&world);
    struct place place = find(20);
    remove_file(place.slot);
    cr_assert_eq(verify(), ERR_CORRUPT);
    expect_refusal(ERR_GAP);
}

Test(recovery, the_newest_slot_gone_is_noticed_by_the_checkpoints_memory)
{
    fill(60);
    struct place place = find(world.durable);
    world.segment = wal_segment(world.wal);
    world_close(&world);
    remove_file(place.slot);
    expect_refusal(ERR_GAP);
}

Test(recovery, no_slots_at_all_is_a_gap_unless_nothing_was_ever_written)
{
    fill(3);
    world_checkpoint(&world);
    world_close(&world);
    for (unsigned number = 0; number < 8; number++) {
        (void)!world.io.disk.remove(world.io.disk.ctx, slot_file(number));
    }
    expect_refusal(ERR_GAP);
    world.config.fresh = true; /* a restored store */
    world.segment = 0;
    world.promised = 0;
    expect_open();
    cr_assert_eq(world.report.last, world.applied + 1);
}

Test(recovery, accepted_loss_cuts_and_skips_the_numbers)
{
    fill(40);
    lsn_t last = world.durable;
    world_close(&world);
    struct place place = find(20);
    lsn_t damaged = place.header.first_lsn;
    flip(20, 100);
    world.config.accept_loss = damaged + 1;
    expect_refusal(ERR_CORRUPT);
    world.config.accept_loss = damaged;
    expect_open();
    cr_assert_gt(world.report.last, last, "no LSN is given out twice");
    world.config.accept_loss = 0;
    fill(10);
    lsn_t end = world.durable;
    world_close(&world);
    /* The hole stays known: later openings replay around it, without being told again. */
    world.config.accept_loss = 1;
    expect_open();
    cr_assert_gt(world.report.last, end);
    cr_assert_gt(world.report.records, damaged - 1);
    world.config.accept_loss = 0;
    world_checkpoint(&world);
    fill(2);
    world_close(&world);
    expect_open();
}

Test(recovery, accepted_loss_of_a_gap_goes_on_behind_it)
{
    fill(60);
    world_close(&world);
    struct place place = find(5);
    lsn_t last = world.durable;
    remove_file(place.slot);
    expect_refusal(ERR_GAP);
    world.config.accept_loss = 1;
    expect_open();
    cr_assert_gt(world.report.last, last);
    world.config.accept_loss = 0;
    world.replayed = world.report.last;
    fill(3);
    world_checkpoint(&world);
    fill(3);
    world_close(&world);
    expect_open();
}

Test(recovery, lies_of_the_disk_are_found)
{
    for (int lie = SIM_DISK_LOSE; lie <= SIM_DISK_TEAR; lie++) {
        for (uint64_t at = 1; at < 30; at++) {
            struct world other;
            world_init(&other, 50 + at, 1);
            cr_assert_eq(world_open(&other), OK);
            sim_disk_lie_at(other.sim, at, (enum sim_disk_lie)lie);
            for (int i = 0; i < 45; i++) {
                cr_assert(world_append(&other, 5000));
                cr_assert_eq(world_commit(&other), OK);
            }
            world_close(&other);
            enum err err = world_open(&other);
            /* A torn write may by chance be whole. Everything else must not pass. */
            if (err == OK) {
                cr_assert_eq(lie, SIM_DISK_TEAR);
                cr_assert_str_empty(other.fault);
            } else {
                cr_assert(err == ERR_CORRUPT || err == ERR_GAP, "%s", err_name(err));
            }
            world_deinit(&other);
        }
    }
}

Test(recovery, another_stores_slots_are_refused)
{
    fill(3);
    world_close(&world);
    world.config.store_id[0]++;
    expect_refusal(ERR_MISMATCH);
    cr_assert_eq(verify(), ERR_MISMATCH);
}

Test(recovery, a_newer_format_is_refused)
{
    fill(3);
    world_close(&world);
    uint8_t block[DISK_BLOCK];
    cr_assert(sim_disk_peek(world.sim, slot_file(0), 0, block, sizeof block));
    struct segment_header header;
    cr_assert_eq(segment_decode(bytes_of(block, sizeof block), &header), OK);
    store_u16(block + 8, WAL_VERSION + 1);
    /* The sum is the only thing that is like it was. */
    store_u32(block + 4, crc32c(0, block + 8, SEGMENT_HEADER - 8));
    sim_disk_poke(world.sim, slot_file(0), 0, block, sizeof block);
    expect_refusal(ERR_MISMATCH);
}

/* A batch as an earlier life of the slot left it, right behind the end and with the next LSN. */
Test(recovery, a_stale_batch_of_an_earlier_life_is_not_taken)
{
    fill(1);
    sim_disk_cut(world.sim);
    world_bury(&world);
    lsn_t end = world.durable;
    struct place last = find(end);
    uint8_t block[DISK_BLOCK] = {0};
    uint8_t *record = block + BATCH_HEADER;
    uint64_t offset = last.offset + batch_span(&last.header);
    struct batch_header header = {
        .sequence = last.header.sequence,
        .nonce = last.header.nonce + 1,
        .first_lsn = end + 1,
        .promise = 0,
        .records = 1,
        .bytes = (uint32_t)record_span(8),
        .block = (uint32_t)(offset / DISK_BLOCK),
        .previous_crc = last.header.crc,
    };
    record_begin(record, WAL_RECORD_WRITE, 0, 8, end + 1);
    uint32_t sum = record_sum_header(
        record_seed(header.sequence, header.nonce), record_sum_payload(record), record);
    store_u32(record, sum);
    header.records_crc = crc32c(0, record, 4);
    batch_encode(batch_seed(world.config.store_id), &header, block);
    sim_disk_poke(world.sim, last.slot, offset, block, sizeof block);
    expect_open();
    cr_assert_eq(world.report.last, end + 1, "the mark, and nothing else");
}

Test(recovery, leftovers_in_the_folder_are_ignored_or_removed)
{
    fill(3);
    world_close(&world);
    sim_disk_poke(world.sim, "slot-0009.new", 0, "half", 4);
    sim_disk_poke(world.sim, "notes.txt", 0, "mine", 4);
    sim_disk_poke(world.sim, "slot-12", 0, "mine", 4);
    expect_open();
    cr_assert_eq(sim_disk_file_size(world.sim, "slot-0009.new"), 0);
    cr_assert_eq(sim_disk_file_size(world.sim, "notes.txt"), 4);
    cr_assert_eq(sim_disk_file_size(world.sim, "slot-12"), 4);
}

/* Puts the first `size` bytes of a slot in place of all of it. */
static void cut_off(const char *name, uint64_t size)
{
    static uint8_t content[WORLD_SLOT];
    cr_assert(sim_disk_peek(world.sim, name, 0, content, (size_t)size));
    remove_file(name);
    sim_disk_poke(world.sim, name, 0, content, (size_t)size);
}

Test(recovery, a_slot_that_was_cut_off_is_damage)
{
    fill(60);
    struct place place = find(world.durable);
    world_close(&world);
    struct sim_disk *intact = world.sim;
    static const uint64_t sizes[] = {0, 5, 2, 1};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        world.sim = sim_disk_clone(intact, i);
        world.io.disk = sim_disk_table(world.sim);
        uint64_t size = i == 0 ? place.offset + 100 : sizes[i] * DISK_BLOCK;
        cut_off(place.slot, size);
        cr_assert_eq(verify(), ERR_CORRUPT);
        expect_refusal(ERR_CORRUPT);
        sim_disk_destroy(world.sim);
    }
    world.sim = intact;
    world.io.disk = sim_disk_table(world.sim);
}

Test(recovery, a_slot_cut_off_below_the_checkpoint_is_no_loss)
{
    fill(60);
    struct place place = find(5);
    world_checkpoint(&world);
    fill(2);
    world_close(&world);
    cut_off(place.slot, WORLD_SLOT / 2);
    expect_open();
}

Test(recovery, blocks_that_changed_places_hide_no_promise)
{
    fill(12);
    lsn_t before = world.durable;
    commit(100, 2);
    commit(100, 1);
    sim_disk_cut(world.sim);
    world_bury(&world);
    struct place one = find(before + 1);
    struct place two = find(before + 3);
    cr_assert_str_eq(one.slot, two.slot);
    uint8_t blocks[2][DISK_BLOCK];
    cr_assert(sim_disk_peek(world.sim, one.slot, one.offset, blocks[0], DISK_BLOCK));
    cr_assert(sim_disk_peek(world.sim, two.slot, two.offset, blocks[1], DISK_BLOCK));
    sim_disk_poke(world.sim, one.slot, one.offset, blocks[1], DISK_BLOCK);
    sim_disk_poke(world.sim, two.slot, two.offset, blocks[0], DISK_BLOCK);
    expect_refusal(ERR_CORRUPT);
}

/* The number of a half-made slot once decided the number of the next one, which replaced an older. */
Test(recovery, a_new_slot_never_replaces_an_old_one)
{
    fill(60);
    world_close(&world);
    sim_disk_poke(world.sim, "slot-0001.new", 0, "half", 4);
    expect_open();
    fill(60);
    world_close(&world);
    expect_open();
}

Test(recovery, the_size_of_slots_may_change_between_runs)
{
    fill(60);
    world_close(&world);
    world.config.slot_size = 2 * WORLD_SLOT;
    expect_open();
    fill(60);
    world_checkpoint(&world);
    world_close(&world);
    world.config.slot_size = WORLD_SLOT / 2;
    expect_open();
    for (int i = 0; i < 40; i++) {
        commit(900, 2);
        world_checkpoint(&world);
    }
    struct wal_stats stats;
    wal_stats(world.wal, &stats);
    cr_assert_leq(stats.bytes, (uint64_t)6 * WORLD_SLOT / 2, "the larger ones are gone");
    world_close(&world);
    expect_open();
}

static enum err refuse(void *ctx, const struct wal_record *record)
{
    (void)ctx;
    return record->lsn == 5 ? ERR_NOMEM : OK;
}

Test(recovery, an_error_of_the_replay_ends_the_opening)
{
    fill(10);
    world_close(&world);
    world.config.on_replay = refuse;
    struct wal_recovery report;
    struct wal *wal;
    cr_assert_eq(wal_open(&world.config, &report, &wal), ERR_NOMEM);
}

Test(recovery, verify_names_every_damage)
{
    fill(30);
    world_close(&world);
    flip(10, 100);
    flip(30, 100);
    cr_assert_eq(verify(), ERR_CORRUPT);
    cr_assert_geq(sentences, 2);
    uint64_t before = sim_disk_hash(world.sim);
    (void)!verify();
    cr_assert_eq(sim_disk_hash(world.sim), before, "it reads only");
}
