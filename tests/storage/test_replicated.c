#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/storage/replicated.h"

static char *numbered(const char *front, unsigned number)
{
    static char text[64];
    snprintf(text, sizeof text, "%s-%05u", front, number);
    return text;
}

static void put_many(struct replica *replica, uint16_t range, unsigned from, unsigned to)
{
    for (unsigned i = from; i < to; i++) {
        char value[32];
        snprintf(value, sizeof value, "value %u", i);
        replica_put(replica, range, numbered("key", i), value);
    }
}

/* one transaction of the checkpoint; false when nothing is left */
static bool step(struct replica *replica)
{
    return engine_checkpoint_step(replica->engine);
}

static void ignore(void *ctx, enum err err)
{
    (void)ctx, (void)err;
}

/* starts a checkpoint and does some of its steps, without taking over the result */
static void checkpoint_partly(struct replica *replica, int steps)
{
    engine_checkpoint(replica->engine, ignore, NULL);
    while (steps-- > 0)
        cr_assert(step(replica));
}

Test(replicated, an_entry_is_read_with_its_index_as_version)
{
    struct replica replica = {0};
    replica_create(&replica);
    replica_put(&replica, 1, "other", "x");
    replica_put(&replica, 2, "a", "1");
    replica_put(&replica, 2, "a", "2");
    uint8_t at[KEY_SIZE_MAX_STORED];
    struct value value;
    struct bytes key = effect_stored_key(at, 0, bytes_of_text("a"));
    cr_assert_eq(engine_get(replica.engine, 2, key, &value), OK);
    cr_assert_eq(value.version, 2, "the second entry of its range");
    replica_checkpoint(&replica);
    cr_assert_eq(engine_get(replica.engine, 2, key, &value), OK);
    cr_assert_eq(value.version, 2);
    cr_assert_eq(engine_range_applied(replica.engine, 2), 2);
    cr_assert_eq(engine_range_applied(replica.engine, 1), 1);
    engine_read_done(replica.engine);
    replica_destroy(&replica);
}

Test(replicated, effects_of_another_range_are_refused)
{
    struct replica replica = {0};
    replica_create(&replica);
    struct effect effect = {.kind = EFFECT_PUT, .range = 2, .key = bytes_of_text("a")};
    uint8_t bytes[64];
    size_t size = effect_size(1, 0);
    effect_encode(bytes, &effect, 0);
    cr_assert_eq(engine_apply_entry(replica.engine, 1, 1, bytes_of(bytes, size)), ERR_CORRUPT);
    replica_destroy(&replica);
}

Test(replicated, metas_come_back_with_everything_at_the_next_open)
{
    struct replica replica = {0};
    replica_create(&replica);
    cr_assert_not(replica.ranges[1].known, "nothing was stored yet");
    put_many(&replica, 1, 0, 250);
    replica_put(&replica, 2, "a", "1");
    struct range_meta *meta = &replica.ranges[3].meta;
    meta->hard_term = 9;
    meta->vote = 2;
    meta->config_size = 3;
    memcpy(meta->config, "abc", 3);
    replica_checkpoint(&replica);
    struct range_meta first = replica.ranges[1].meta;
    replica_put(&replica, 2, "a", "2");
    replica_crash(&replica);
    replica_open(&replica);
    cr_assert(replica.ranges[1].known && replica.ranges[2].known && replica.ranges[3].known);
    cr_assert_not(replica.ranges[0].known, "a range that was never here has no meta");
    cr_assert_eq(replica.ranges[1].meta.index, 250);
    cr_assert_eq(replica.ranges[1].meta.hash, first.hash);
    cr_assert_eq(replica.ranges[3].meta.hard_term, 9);
    cr_assert_eq(replica.ranges[3].meta.vote, 2);
    cr_assert_eq(memcmp(replica.ranges[3].meta.config, "abc", 3), 0);
    cr_assert_eq(replica.ranges[2].meta.index, 2, "replayed");
    replica_expect(&replica, 2, "a", "2");
    replica_expect(&replica, 1, "key-00249", "value 249");
    cr_assert_eq(replica_count(&replica, 1), 250);
    replica_check_store(&replica);
    replica_destroy(&replica);
}

/* After a crash at any step of a checkpoint, ranges may be ahead of the log's replay or halfway. */
Test(replicated, a_crash_between_any_two_steps_of_a_checkpoint_loses_nothing)
{
    bool ended = false;
    for (int steps = 1; !ended; steps++) {
        struct replica replica = {.chunk_puts = 50};
        replica_create(&replica);
        put_many(&replica, 1, 0, 120);
        put_many(&replica, 2, 0, 10);
        replica_checkpoint(&replica);
        replica_clear(&replica, 2, 0);
        put_many(&replica, 1, 60, 200);
        put_many(&replica, 2, 5, 90);
        replica_put(&replica, 1, "key-00003", NULL);
        put_many(&replica, 3, 0, 60);
        uint64_t hashes[] = {
            0, replica_hash(&replica, 1), replica_hash(&replica, 2), replica_hash(&replica, 3)};
        engine_checkpoint(replica.engine, ignore, NULL);
        for (int i = 0; i < steps && !ended; i++) {
            cr_assert(step(&replica));
            struct engine_stats stats;
            engine_stats(replica.engine, &stats);
            ended = stats.checkpoints == 2;
        }
        replica_crash(&replica);
        replica_open(&replica);
        for (uint16_t range = 1; range <= 3; range++)
            cr_assert_eq(
                replica_hash(&replica, range), hashes[range], "range %u, %d steps", range, steps);
        cr_assert_eq(replica_count(&replica, 1), 199);
        cr_assert_eq(replica_count(&replica, 2), 85);
        replica_checkpoint(&replica);
        replica_check_store(&replica);
        cr_assert_eq(replica_hash(&replica, 2), hashes[2]);
        replica_destroy(&replica);
    }
}

Test(replicated, a_range_that_is_partly_checkpointed_says_so)
{
    struct replica replica = {.chunk_puts = 50};
    replica_create(&replica);
    put_many(&replica, 1, 0, 20);
    replica_checkpoint(&replica);
    lsn_t committed = replica.seen;
    put_many(&replica, 1, 0, 120);
    checkpoint_partly(&replica, 1);
    replica_crash(&replica);
    /* what is committed is not known again yet */
    replica.held = committed;
    replica_open(&replica);
    cr_assert_eq(replica.ranges[1].meta.index, 20);
    cr_assert_eq(replica.ranges[1].meta.settled, 140, "values are from entries up to there");
    replica.seen = replica.held;
    replica.held = 0;
    replica_destroy(&replica);
}

Test(replicated, the_log_is_replayed_from_low_water_although_more_is_in_the_store)
{
    struct replica replica = {0};
    replica_create(&replica);
    put_many(&replica, 1, 0, 5);
    lsn_t low = replica.seen;
    put_many(&replica, 1, 5, 30);
    replica.low = low;
    replica_checkpoint(&replica);
    cr_assert_eq(engine_checkpointed(replica.engine), low);
    replica_put(&replica, 1, "key-00001", "new");
    replica.low = 0;
    replica_crash(&replica);
    replica_open(&replica);
    cr_assert_eq(replica.report.checkpointed, low);
    cr_assert_geq(replica.replayed, 26);
    cr_assert_eq(replica.ranges[1].meta.index, 31);
    replica_expect(&replica, 1, "key-00001", "new");
    replica_expect(&replica, 1, "key-00029", "value 29");
    replica_destroy(&replica);
}

Test(replicated, low_water_that_falls_back_takes_nothing_back)
{
    struct replica replica = {0};
    replica_create(&replica);
    put_many(&replica, 1, 0, 10);
    replica_checkpoint(&replica);
    lsn_t before = engine_checkpointed(replica.engine);
    cr_assert_eq(before, replica.seen);
    put_many(&replica, 1, 10, 20);
    replica.low = 3;
    replica_checkpoint(&replica);
    cr_assert_eq(engine_checkpointed(replica.engine), before, "and the data is in the store");
    replica.low = 0;
    replica_crash(&replica);
    replica_open(&replica);
    cr_assert_eq(replica.ranges[1].meta.index, 20);
    replica_expect(&replica, 1, "key-00019", "value 19");
    replica_destroy(&replica);
}

Test(replicated, a_log_of_nothing_but_votes_is_trimmed)
{
    struct replica replica = {.slot_size = 32 << 10, .log_bytes_max = 1 << 20};
    replica_create(&replica);
    for (unsigned i = 0; i < 2000; i++) {
        replica_nothing(&replica, (uint16_t)(1 + i % 3));
        replica.ranges[1].meta.hard_term = i;
        step(&replica);
    }
    struct wal_stats stats;
    wal_stats(engine_wal(replica.engine), &stats);
    cr_assert_gt(stats.trimmed, 1000);
    cr_assert_leq(stats.bytes, 1 << 20);
    replica_crash(&replica);
    replica_open(&replica);
    cr_assert_gt(replica.ranges[1].meta.hard_term, 1000);
    replica_destroy(&replica);
}

Test(replicated, records_that_others_need_stay_in_the_log)
{
    struct replica replica = {.slot_size = 32 << 10, .log_bytes_max = 4 << 20};
    replica_create(&replica);
    replica.keep = 50;
    for (unsigned i = 0; i < 300; i++)
        replica_put(&replica, 1, numbered("key", i % 10), "x");
    replica_checkpoint(&replica);
    struct wal_reader *reader;
    cr_assert_eq(wal_reader_open(engine_wal(replica.engine), 50, replica.seen, &reader), OK);
    struct wal_record record;
    cr_assert_eq(wal_reader_next(reader, &record), OK);
    cr_assert_eq(record.lsn, 51);
    wal_reader_close(reader);

    /* but not more than half of what the log may have */
    for (unsigned i = 0; i < 1200; i++) {
        replica_put(&replica, 1, numbered("key", i % 10), "x");
        if (i % 100 == 0) replica_checkpoint(&replica);
    }
    replica_checkpoint(&replica);
    cr_assert_eq(wal_reader_open(engine_wal(replica.engine), 50, replica.seen, &reader), ERR_GAP);
    struct wal_stats stats;
    wal_stats(engine_wal(replica.engine), &stats);
    cr_assert_leq(stats.bytes, 3 << 20);
    replica_destroy(&replica);
}

Test(replicated, a_clear_is_of_one_range)
{
    struct replica replica = {0};
    replica_create(&replica);
    for (uint16_t range = 0; range <= 3; range++)
        put_many(&replica, range, 0, 10);
    replica_clear(&replica, 2, 0);
    replica_put(&replica, 2, "key-00003", "again");
    for (int round = 0; round < 4; round++) {
        for (uint16_t range = 0; range <= 3; range++) {
            replica_expect(&replica, range, "key-00005", range == 2 ? NULL : "value 5");
            replica_expect(&replica, range, "key-00003", range == 2 ? "again" : "value 3");
            cr_assert_eq(replica_count(&replica, range), range == 2 ? 1 : 10);
        }
        cr_assert_eq(engine_count(replica.engine, 0), 21, "range 0 is not counted");
        engine_read_done(replica.engine);
        if (round == 0) checkpoint_partly(&replica, 1);
        if (round == 1) replica_poll(&replica), replica_checkpoint(&replica);
        if (round == 2) replica_crash(&replica), replica_open(&replica);
    }
    replica_check_store(&replica);
    replica_destroy(&replica);
}

Test(replicated, a_range_is_in_memory_until_it_is_checkpointed)
{
    struct replica replica = {0};
    replica_create(&replica);
    cr_assert_not(engine_range_in_memory(replica.engine, 1));
    replica_put(&replica, 1, "a", "1");
    replica_clear(&replica, 2, 7);
    cr_assert(engine_range_in_memory(replica.engine, 1));
    cr_assert(engine_range_in_memory(replica.engine, 2), "a clear counts");
    cr_assert_not(engine_range_in_memory(replica.engine, 3));
    checkpoint_partly(&replica, 0);
    cr_assert(engine_range_in_memory(replica.engine, 1), "sealed");
    while (engine_range_in_memory(replica.engine, 1)) {
        step(&replica);
        replica_poll(&replica);
    }
    cr_assert_not(engine_range_in_memory(replica.engine, 2));
    replica_destroy(&replica);
}
