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
    replica_checkpoint(&replica);
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

/* ---- random histories ---- */

enum { MODEL_KEYS = 60 };

struct model {
    uint32_t values[REPLICA_RANGES + 1][MODEL_KEYS]; /* 0: absent */
    uint32_t next;
};

static void model_check(struct replica *replica, const struct model *model, uint64_t seed)
{
    for (uint16_t range = 0; range <= REPLICA_RANGES; range++) {
        uint64_t count = 0;
        for (unsigned key = 0; key < MODEL_KEYS; key++) {
            char text[32];
            uint32_t value = model->values[range][key];
            snprintf(text, sizeof text, "%u", value);
            replica_expect(replica, range, numbered("key", key), value == 0 ? NULL : text);
            count += value != 0;
        }
        cr_assert_eq(replica_count(replica, range), count, "range %u, seed %llu", range,
            (unsigned long long)seed);
    }
}

static void model_write(struct replica *replica, struct model *model, struct prng *prng)
{
    uint16_t range = (uint16_t)prng_below(prng, REPLICA_RANGES + 1);
    unsigned key = (unsigned)prng_below(prng, MODEL_KEYS);
    uint64_t dice = prng_below(prng, 100);
    char text[32];
    if (dice < 3) {
        memset(model->values[range], 0, sizeof model->values[range]);
        replica_clear(replica, range, 0);
    } else if (dice < 20) {
        model->values[range][key] = 0;
        replica_put(replica, range, numbered("key", key), NULL);
    } else if (dice < 25) {
        replica_nothing(replica, range);
    } else {
        model->values[range][key] = ++model->next;
        snprintf(text, sizeof text, "%u", model->next);
        replica_put(replica, range, numbered("key", key), text);
    }
}

static void model_turn(struct replica *replica, struct model *model, struct prng *prng)
{
    uint64_t dice = prng_below(prng, 100);
    if (dice < 70) {
        model_write(replica, model, prng);
    } else if (dice < 82) {
        (void)step(replica);
        replica_poll(replica);
    } else if (dice < 88) {
        engine_checkpoint(replica->engine, ignore, NULL);
    } else if (dice < 94) {
        /* from here on nothing is known to be committed, or everything is */
        replica_commit(replica, prng_chance(prng, 1, 2) ? 0 : replica->seen);
    } else if (dice < 96) {
        engine_tick(replica->engine);
    } else if (dice < 98) {
        replica_commit(replica, 0);
        engine_checkpoint_forget(replica->engine, NULL);
        replica_crash(replica);
        replica_open(replica);
    } else {
        replica->held = 0;
        replica_crash(replica);
        replica_open(replica);
    }
}

Test(replicated, random_histories_come_out_right_whatever_is_checkpointed_when)
{
    for (uint64_t seed = 1; seed <= 300; seed++) {
        struct replica replica = {.chunk_puts = 7, .slot_size = 64 << 10, .log_bytes_max = 8 << 20};
        struct model model = {0};
        struct prng prng;
        prng_init(&prng, seed);
        replica_create(&replica);
        for (int turn = 0; turn < 400; turn++) {
            model_turn(&replica, &model, &prng);
            if (turn % 50 == 49) {
                replica_commit(&replica, 0);
                model_check(&replica, &model, seed);
                replica_check_store(&replica);
            }
        }
        replica.held = 0;
        replica_crash(&replica);
        replica_open(&replica);
        model_check(&replica, &model, seed);
        replica_destroy(&replica);
    }
}

/* ---- snapshots ---- */

struct outcome {
    bool ended;
    enum err result;
};

static void install_done(void *ctx, enum err result)
{
    struct outcome *outcome = ctx;
    cr_assert_not(outcome->ended, "once");
    outcome->ended = true;
    outcome->result = result;
}

static enum err next_chunk(struct replica *source, struct snapshot *snapshot, struct bytes *chunk)
{
    enum err err;
    while ((err = snapshot_next(snapshot, chunk)) == ERR_AGAIN)
        replica_poll(source);
    return err;
}

static void add_chunk(struct replica *target, struct install *install, struct bytes chunk)
{
    enum err err;
    while ((err = install_add(install, chunk)) == ERR_AGAIN)
        replica_poll(target);
    cr_assert_eq(err, OK);
}

/* What the owner of a range does while its snapshot comes. */
static void expect_snapshot(struct replica *target, uint16_t range)
{
    if (engine_range_in_memory(target->engine, range)) replica_checkpoint(target);
    target->ranges[range].meta.flags = RANGE_META_INSTALLING;
}

/* chunks < 0: all of them, and finished */
static struct range_meta transfer(
    struct replica *source, struct replica *target, uint16_t range, int chunks)
{
    struct range_meta meta;
    struct snapshot *snapshot;
    struct install *install;
    struct outcome outcome = {0};
    cr_assert_eq(snapshot_open(source->engine, range, &meta, &snapshot), OK);
    expect_snapshot(target, range);
    cr_assert_eq(install_begin(target->engine, range, &target->ranges[range].meta, install_done,
                     &outcome, &install),
        OK);
    struct bytes chunk;
    enum err err = OK;
    while (chunks-- != 0 && (err = next_chunk(source, snapshot, &chunk)) == OK)
        add_chunk(target, install, chunk);
    if (err == ERR_NOT_FOUND) {
        install_finish(install, &meta);
        while (!outcome.ended)
            replica_poll(target);
        cr_assert_eq(outcome.result, OK);
        target->ranges[range].meta = meta;
        target->ranges[range].proposed = meta.index;
    } else {
        cr_assert_eq(err, OK);
        for (int i = 0; i < 50; i++)
            replica_poll(target);
    }
    install_close(install);
    snapshot_close(snapshot);
    return meta;
}

static struct bytes random_bytes(size_t size, uint64_t seed)
{
    static uint8_t at[2 << 20];
    struct prng prng;
    prng_init(&prng, seed);
    cr_assert_leq(size, sizeof at);
    for (size_t i = 0; i < size; i++)
        at[i] = (uint8_t)prng_next(&prng);
    return bytes_of(at, size);
}

static void fill_source(struct replica *source)
{
    put_many(source, 2, 0, 500);
    for (unsigned i = 0; i < 30; i++)
        replica_put_value(source, 2, numbered("blob", i), random_bytes(i * 2000, i), 0);
    replica_put_value(source, 2, "huge", random_bytes(1500000, 99), 0);
    replica_put_value(source, 2, "just", random_bytes(SNAPSHOT_CHUNK_MAX, 98), 0);
    for (unsigned i = 0; i < 50; i++)
        replica_put_value(source, 2, numbered("soon", i), random_bytes(10, i), 1000000 + i);
    replica_put(source, 2, "key-00007", NULL);
    put_many(source, 1, 0, 5);
    put_many(source, 3, 0, 5);
    replica_checkpoint(source);
}

static void fill_target(struct replica *target)
{
    put_many(target, 2, 400, 900);
    for (unsigned i = 0; i < 20; i++)
        replica_put_value(target, 2, numbered("old", i), random_bytes(100, i), 5000 + i);
    put_many(target, 1, 0, 40);
    replica_put_value(target, 1, "expires", random_bytes(100, 1), 7000);
    replica_checkpoint(target);
}

static const struct replica big_log = {.slot_size = 8 << 20, .log_bytes_max = 128 << 20};

Test(replicated, an_installed_snapshot_equals_its_source_and_touches_no_other_range)
{
    struct replica source = big_log, target = big_log;
    replica_create(&source);
    replica_create(&target);
    fill_source(&source);
    fill_target(&target);
    uint64_t other = replica_hash(&target, 1);
    transfer(&source, &target, 2, -1);
    for (int round = 0; round < 3; round++) {
        cr_assert_eq(replica_hash(&target, 2), replica_hash(&source, 2));
        cr_assert_eq(replica_count(&target, 2), replica_count(&source, 2));
        cr_assert_eq(replica_hash(&target, 1), other);
        cr_assert_eq(replica_count(&target, 1), 41);
        cr_assert_eq(
            engine_range_applied(target.engine, 2), engine_range_applied(source.engine, 2));
        replica_check_store(&target);
        if (round == 0) replica_crash(&target), replica_open(&target);
        if (round == 1) {
            replica_put(&target, 2, "after", "it goes on");
            replica_put(&source, 2, "after", "it goes on");
            replica_checkpoint(&target);
            replica_crash(&target);
            replica_open(&target);
        }
    }
    cr_assert_eq(target.ranges[2].meta.flags, 0);
    replica_destroy(&target);
    replica_destroy(&source);
}

Test(replicated, an_empty_range_is_installed_as_empty)
{
    struct replica source = {0}, target = {0};
    replica_create(&source);
    replica_create(&target);
    replica_put(&source, 2, "a", "1");
    replica_put(&source, 2, "a", NULL);
    replica_checkpoint(&source);
    put_many(&target, 2, 0, 10);
    transfer(&source, &target, 2, -1);
    cr_assert_eq(replica_count(&target, 2), 0);
    replica_expect(&target, 2, "key-00001", NULL);
    replica_check_store(&target);
    replica_destroy(&target);
    replica_destroy(&source);
}

Test(replicated, a_snapshot_that_came_in_part_never_passes_for_whole)
{
    for (int chunks = 0; chunks < 12; chunks += 2) {
        struct replica source = big_log, target = big_log;
        replica_create(&source);
        replica_create(&target);
        fill_source(&source);
        fill_target(&target);
        transfer(&source, &target, 2, chunks);
        target.ranges[2].meta.flags = 0; /* whatever the owner says now */
        replica_put(&target, 1, "more", "1");
        replica_checkpoint(&target);
        replica_crash(&target);
        replica_open(&target);
        cr_assert(target.ranges[2].known);
        cr_assert_eq(target.ranges[2].meta.flags, RANGE_META_INSTALLING, "after %d chunks", chunks);
        cr_assert_eq(target.ranges[1].meta.flags, 0);
        cr_assert_eq(replica_count(&target, 1), 42);
        replica_check_store(&target);
        transfer(&source, &target, 2, -1);
        cr_assert_eq(replica_hash(&target, 2), replica_hash(&source, 2), "the second time");
        replica_check_store(&target);
        replica_destroy(&target);
        replica_destroy(&source);
    }
}

/* At every commit of the store, in the middle of an install. */
Test(replicated, a_crash_at_any_transaction_of_an_install_leaves_the_mark)
{
    bool installed = false;
    for (uint64_t commit = 1; !installed; commit++) {
        struct replica source = big_log, target = big_log;
        replica_create(&source);
        replica_create(&target);
        put_many(&source, 2, 0, 300);
        replica_put_value(&source, 2, "huge", random_bytes(1500000, 99), 0);
        replica_checkpoint(&source);
        fill_target(&target);
        struct range_meta meta;
        struct snapshot *snapshot;
        struct install *install;
        struct outcome outcome = {0};
        cr_assert_eq(snapshot_open(source.engine, 2, &meta, &snapshot), OK);
        expect_snapshot(&target, 2);
        struct range_meta before = target.ranges[2].meta;
        sim_kv_fail_commit(target.stores, "node", commit, ERR_IO);
        cr_assert_eq(
            install_begin(target.engine, 2, &before, install_done, &outcome, &install), OK);
        struct bytes chunk;
        while (!outcome.ended && next_chunk(&source, snapshot, &chunk) == OK) {
            enum err err = install_add(install, chunk);
            cr_assert(err == OK || err == ERR_IO);
            replica_poll(&target);
        }
        install_finish(install, &meta);
        while (!outcome.ended)
            replica_poll(&target);
        installed = outcome.result == OK;
        cr_assert(installed || outcome.result == ERR_IO);
        sim_kv_fail_commit(target.stores, "node", 0, OK);
        install_close(install);
        snapshot_close(snapshot);
        replica_crash(&target);
        replica_open(&target);
        if (installed) {
            cr_assert_eq(replica_hash(&target, 2), replica_hash(&source, 2));
        } else if (commit > 1) {
            cr_assert_eq(target.ranges[2].meta.flags, RANGE_META_INSTALLING);
        } else {
            cr_assert_eq(target.ranges[2].meta.index, 520, "nothing happened");
        }
        replica_check_store(&target);
        replica_destroy(&target);
        replica_destroy(&source);
    }
}

Test(replicated, writes_during_a_snapshot_are_made_good_by_the_log)
{
    struct replica source = big_log, target = big_log;
    replica_create(&source);
    replica_create(&target);
    fill_source(&source);
    struct range_meta meta;
    struct snapshot *snapshot;
    struct install *install;
    struct outcome outcome = {0};
    cr_assert_eq(snapshot_open(source.engine, 2, &meta, &snapshot), OK);
    lsn_t from = source.seen;
    expect_snapshot(&target, 2);
    cr_assert_eq(
        install_begin(target.engine, 2, &target.ranges[2].meta, install_done, &outcome, &install),
        OK);
    struct bytes chunk;
    unsigned round = 0;
    while (next_chunk(&source, snapshot, &chunk) == OK) {
        add_chunk(&target, install, chunk);
        replica_put(&source, 2, numbered("key", round * 31), "changed");
        replica_put(&source, 2, numbered("soon", round), NULL);
        replica_put(&source, 2, numbered("another", round), "new");
        if (round++ % 2 == 0) replica_checkpoint(&source);
    }
    snapshot_close(snapshot);
    install_finish(install, &meta);
    while (!outcome.ended)
        replica_poll(&target);
    cr_assert_eq(outcome.result, OK);
    install_close(install);
    target.ranges[2].meta = meta;
    target.ranges[2].proposed = meta.index;
    /* the entries after the snapshot's index, as replication brings them */
    struct wal_reader *reader;
    struct wal_record record;
    cr_assert_eq(wal_reader_open(engine_wal(source.engine), from, source.seen, &reader), OK);
    while (wal_reader_next(reader, &record) == OK) {
        if (record.type != WAL_RECORD_ENTRY || record.group != 2) continue;
        struct bytes effects = bytes_of(record.payload.at + 8, record.payload.size - 8);
        cr_assert_eq(
            engine_apply_entry(target.engine, 2, load_u64(record.payload.at), effects), OK);
        target.ranges[2].meta.index = load_u64(record.payload.at);
    }
    wal_reader_close(reader);
    cr_assert_eq(replica_hash(&target, 2), replica_hash(&source, 2));
    replica_checkpoint(&target);
    cr_assert_eq(replica_count(&target, 2), replica_count(&source, 2));
    replica_check_store(&target);
    replica_destroy(&target);
    replica_destroy(&source);
}

Test(replicated, damaged_or_misplaced_chunks_are_refused)
{
    struct replica source = big_log, target = big_log;
    replica_create(&source);
    replica_create(&target);
    fill_source(&source);
    struct range_meta meta;
    struct snapshot *snapshot;
    struct bytes chunk;
    uint8_t *copies[3];
    size_t sizes[3];
    cr_assert_eq(snapshot_open(source.engine, 2, &meta, &snapshot), OK);
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(next_chunk(&source, snapshot, &chunk), OK);
        copies[i] = malloc(chunk.size);
        sizes[i] = chunk.size;
        memcpy(copies[i], chunk.at, chunk.size);
    }
    snapshot_close(snapshot);
    for (int wrong = 0; wrong < 5; wrong++) {
        struct install *install;
        struct outcome outcome = {0};
        uint16_t range = wrong == 0 ? 3 : 2;
        expect_snapshot(&target, range);
        cr_assert_eq(install_begin(target.engine, range, &target.ranges[range].meta, install_done,
                         &outcome, &install),
            OK);
        replica_poll(&target);
        struct bytes first = bytes_of(copies[0], sizes[0]);
        if (wrong == 0) cr_assert_eq(install_add(install, first), ERR_INVALID, "another range");
        if (wrong == 1) {
            copies[0][100] ^= 4;
            cr_assert_eq(install_add(install, first), ERR_CORRUPT, "a flipped bit");
            copies[0][100] ^= 4;
            add_chunk(&target, install, first);
            cr_assert_eq(install_add(install, first), ERR_INVALID, "the same once more");
            cr_assert_eq(install_add(install, bytes_of(copies[1], sizes[1])), ERR_INVALID,
                "and nothing after that");
        }
        if (wrong == 2) {
            cr_assert_eq(install_add(install, bytes_of(copies[0], 20)), ERR_CORRUPT, "cut");
            cr_assert_eq(install_add(install, bytes_of(copies[0], sizes[0] - 1)), ERR_CORRUPT);
            add_chunk(&target, install, first);
            cr_assert_eq(install_add(install, first), ERR_INVALID);
        }
        if (wrong == 3) {
            add_chunk(&target, install, first);
            cr_assert_eq(install_add(install, first), ERR_INVALID, "twice");
        }
        if (wrong == 4) {
            add_chunk(&target, install, bytes_of(copies[2], sizes[2]));
            cr_assert_eq(install_add(install, first), ERR_INVALID, "out of order");
        }
        install_finish(install, &meta);
        while (!outcome.ended)
            replica_poll(&target);
        cr_assert_eq(outcome.result, ERR_INVALID);
        install_close(install);
    }
    replica_crash(&target);
    replica_open(&target);
    cr_assert_eq(target.ranges[2].meta.flags, RANGE_META_INSTALLING);
    for (int i = 0; i < 3; i++)
        free(copies[i]);
    replica_destroy(&target);
    replica_destroy(&source);
}

Test(replicated, a_damaged_source_stops_its_snapshot)
{
    struct replica source = {0};
    replica_create(&source);
    put_many(&source, 2, 0, 500);
    replica_checkpoint(&source);
    uint8_t at[KEY_SIZE_MAX_STORED];
    struct bytes key = effect_stored_key(at, 0, bytes_of_text("key-00321"));
    cr_assert_eq(sim_kv_rot(source.stores, "node", 2, key, 77), OK);
    struct range_meta meta;
    struct snapshot *snapshot;
    struct bytes chunk;
    cr_assert_eq(snapshot_open(source.engine, 2, &meta, &snapshot), OK);
    enum err err;
    while ((err = next_chunk(&source, snapshot, &chunk)) == OK)
        ;
    cr_assert_eq(err, ERR_CORRUPT);
    snapshot_close(snapshot);
    replica_destroy(&source);
}

Test(replicated, what_cannot_be_a_source_says_so)
{
    struct replica source = {0};
    replica_create(&source);
    struct range_meta meta;
    struct snapshot *snapshots[5];
    cr_assert_eq(snapshot_open(source.engine, 2, &meta, &snapshots[0]), ERR_NOT_FOUND);
    replica_put(&source, 2, "a", "1");
    replica_checkpoint(&source);
    for (int i = 0; i < 4; i++)
        cr_assert_eq(snapshot_open(source.engine, 2, &meta, &snapshots[i]), OK);
    cr_assert_eq(snapshot_open(source.engine, 2, &meta, &snapshots[4]), ERR_AGAIN, "a fifth");
    for (int i = 0; i < 4; i++) {
        struct bytes chunk;
        cr_assert_eq(next_chunk(&source, snapshots[i], &chunk), OK);
        cr_assert_eq(next_chunk(&source, snapshots[i], &chunk), ERR_NOT_FOUND);
        uint64_t entries, bytes;
        snapshot_progress(snapshots[i], &entries, &bytes);
        cr_assert_eq(entries, 1);
        snapshot_close(snapshots[i]);
    }
    struct install *install;
    struct outcome outcome = {0};
    expect_snapshot(&source, 2);
    cr_assert_eq(
        install_begin(source.engine, 2, &source.ranges[2].meta, install_done, &outcome, &install),
        OK);
    replica_poll(&source);
    cr_assert_eq(snapshot_open(source.engine, 2, &meta, &snapshots[0]), ERR_CLOSED);
    install_close(install);
    cr_assert_not(outcome.ended, "who closes it does not want to know");
    replica_destroy(&source);
}

Test(replicated, a_vote_during_an_install_is_kept)
{
    struct replica source = {0}, target = {0};
    replica_create(&source);
    replica_create(&target);
    put_many(&source, 2, 0, 50);
    replica_checkpoint(&source);
    struct range_meta meta;
    struct snapshot *snapshot;
    struct install *install;
    struct outcome outcome = {0};
    struct bytes chunk;
    cr_assert_eq(snapshot_open(source.engine, 2, &meta, &snapshot), OK);
    expect_snapshot(&target, 2);
    cr_assert_eq(
        install_begin(target.engine, 2, &target.ranges[2].meta, install_done, &outcome, &install),
        OK);
    while (next_chunk(&source, snapshot, &chunk) == OK)
        add_chunk(&target, install, chunk);
    meta.hard_term = 4;
    meta.vote = 1;
    /* a checkpoint is sealed before the finish and one is between its two */
    target.ranges[2].meta.hard_term = 7;
    target.ranges[2].meta.vote = 3;
    checkpoint_partly(&target, 0);
    install_finish(install, &meta);
    while (!outcome.ended)
        replica_poll(&target);
    while (step(&target))
        replica_poll(&target);
    install_close(install);
    snapshot_close(snapshot);
    replica_crash(&target);
    replica_open(&target);
    cr_assert_eq(target.ranges[2].meta.hard_term, 7);
    cr_assert_eq(target.ranges[2].meta.vote, 3);
    cr_assert_eq(target.ranges[2].meta.flags, 0);
    cr_assert_eq(target.ranges[2].meta.index, 50);
    cr_assert_eq(replica_count(&target, 2), 50);
    replica_destroy(&target);
    replica_destroy(&source);
}

static void count_expired(void *ctx, uint16_t range, struct bytes key)
{
    (void)range, (void)key;
    (*(unsigned *)ctx)++;
}

Test(replicated, keys_of_a_snapshot_expire_although_their_time_was_asked_for)
{
    struct replica source = {0}, target = {0};
    replica_create(&source);
    replica_create(&target);
    replica_put_value(&source, 2, "old", bytes_of_text("x"), 500);
    replica_checkpoint(&source);
    replica_put_value(&target, 1, "later", bytes_of_text("x"), 900);
    replica_checkpoint(&target);
    unsigned expired = 0;
    while (engine_expired(target.engine, 1000, 10, count_expired, &expired), expired < 1)
        ;
    engine_read_done(target.engine);
    transfer(&source, &target, 2, -1);
    expired = 0;
    for (int i = 0; i < 3; i++)
        engine_expired(target.engine, 1000, 10, count_expired, &expired);
    cr_assert_geq(expired, 1);
    replica_destroy(&target);
    replica_destroy(&source);
}

Test(replicated, a_removed_range_is_gone_and_its_vote_stays)
{
    struct replica replica = big_log;
    replica_create(&replica);
    fill_target(&replica);
    struct range_meta meta = {.hard_term = 5, .vote = 2};
    cr_assert_eq(engine_range_remove(replica.engine, 2, &meta), OK);
    replica.ranges[2].meta = meta;
    cr_assert_eq(replica_count(&replica, 2), 0);
    replica_expect(&replica, 2, "key-00401", NULL);
    cr_assert_eq(engine_range_applied(replica.engine, 2), 0);
    replica_check_store(&replica);
    replica_checkpoint(&replica);
    replica_crash(&replica);
    replica_open(&replica);
    cr_assert_eq(replica.ranges[2].meta.hard_term, 5);
    cr_assert_eq(replica.ranges[2].meta.vote, 2);
    cr_assert_eq(replica.ranges[2].meta.index, 0);
    cr_assert_eq(replica_count(&replica, 1), 41);
    replica_destroy(&replica);
}

/* A log that is larger than the memtables is checkpointed while it is replayed. */
Test(replicated, a_replay_that_is_cut_short_begins_again_where_it_began)
{
    struct replica replica = {.slot_size = 1 << 20, .log_bytes_max = 64 << 20};
    replica_create(&replica);
    for (unsigned i = 0; i < 60; i++)
        replica_put_value(&replica, 1, numbered("big", i), random_bytes(20000, i), 0);
    uint64_t hash = replica_hash(&replica, 1);
    lsn_t all = replica.seen;
    /* entries of another range that nobody knows to be committed */
    replica.held = all;
    replica_put(&replica, 2, "undecided", "x");
    replica_crash(&replica);
    replica.memory = 400 << 10;
    for (int round = 0; round < 3; round++) {
        replica.held = all;
        replica_open(&replica);
        cr_assert_eq(replica.report.checkpointed, 0);
        cr_assert_eq(replica_hash(&replica, 1), hash);
        replica_crash(&replica);
    }
    replica.held = 0;
    replica_open(&replica);
    replica_expect(&replica, 2, "undecided", "x");
    cr_assert_eq(replica_hash(&replica, 1), hash);
    replica_destroy(&replica);
}
