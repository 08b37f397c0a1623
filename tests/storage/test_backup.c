#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "base/prng.h"
#include "storage/backup.h"
#include "storage/backup_format.h"
#include "tests/storage/harness.h"
#include "tests/storage/replicated.h"

static const char cluster[] = "00112233445566778899aabbccddeeff";

struct scene {
    struct harness store;
    struct harness restored;
    char file[128];
    char target[128];
    char detail[512];
    struct buffer before, after;
    struct backup_info info;
};

static void scene_open(struct scene *scene, uint32_t ranges)
{
    *scene = (struct scene){0};
    harness_create(&scene->store, ranges);
    snprintf(scene->file, sizeof scene->file, "%s/backup", scene->store.root);
    snprintf(scene->target, sizeof scene->target, "%s/restored", scene->store.root);
}

static void scene_close(struct scene *scene)
{
    harness_close(&scene->restored, false);
    harness_destroy(&scene->store);
    buffer_deinit(&scene->before);
    buffer_deinit(&scene->after);
}

static void put_some(struct harness *store, struct prng *prng, int count)
{
    for (int i = 0; i < count; i++) {
        char key[32];
        uint8_t value[300];
        snprintf(key, sizeof key, "key-%03u", (unsigned)prng_below(prng, 400));
        size_t size = prng_below(prng, sizeof value);
        memset(value, (int)prng_below(prng, 256), size);
        uint16_t bucket = (uint16_t)prng_below(prng, 3);
        if (prng_chance(prng, 1, 5))
            harness_delete(store, bucket, key);
        else
            harness_put(store, bucket, key, bytes_of(value, size),
                prng_chance(prng, 1, 3) ? (int64_t)(2000000000000u + prng_below(prng, 1000)) : 0);
    }
}

/* Takes a backup into `file`. The state at its moment goes to `dump`; between() runs after that, and
 * again after every block. */
static void take_backup(struct harness *store, const char *file, struct buffer *dump,
    void (*between)(void *ctx, struct harness *store), void *ctx)
{
    struct backup *backup;
    struct buffer out = {0};
    cr_assert_eq(backup_open(store->engine, cluster, "alpha", &backup), OK);
    while (!backup_finish_at(backup)) {
        cr_assert_eq(backup_next(backup, &out), ERR_AGAIN);
        engine_checkpoint_step(store->engine);
        cr_assert_eq(engine_poll(store->engine), OK);
    }
    if (dump != NULL) harness_dump(store, dump);
    /* what comes now must not be in the backup */
    harness_put(store, 0, "too late", bytes_of_text("x"), 0);
    if (between != NULL) between(ctx, store);
    enum err err;
    while ((err = backup_next(backup, &out)) != ERR_NOT_FOUND) {
        cr_assert_eq(err, OK, "%s", err_name(err));
        if (between != NULL) between(ctx, store);
    }
    uint64_t done, total;
    backup_progress(backup, &done, &total);
    cr_assert_leq(done, total);
    backup_close(backup);
    harness_write_file(file, buffer_view(&out));
    buffer_deinit(&out);
}

static void restore_and_compare(struct scene *scene)
{
    enum err err = backup_restore(scene->file, scene->target, false, NULL, NULL, &scene->info,
        scene->detail, sizeof scene->detail);
    cr_assert_eq(err, OK, "%s", scene->detail);
    harness_open(&scene->restored, scene->target);
    harness_dump(&scene->restored, &scene->after);
    cr_assert_str_eq((char *)scene->after.at, (char *)scene->before.at);
}

static enum err verify_file(struct scene *scene)
{
    return backup_verify(scene->file, &scene->info, scene->detail, sizeof scene->detail);
}

Test(backup, a_restored_store_equals_the_state_at_its_moment)
{
    struct scene scene;
    scene_open(&scene, 4);
    struct prng prng;
    prng_init(&prng, 1);
    put_some(&scene.store, &prng, 500);
    harness_checkpoint(&scene.store);
    put_some(&scene.store, &prng, 300);
    take_backup(&scene.store, scene.file, &scene.before, NULL, NULL);
    cr_assert_eq(verify_file(&scene), OK, "%s", scene.detail);
    cr_assert_str_eq(scene.info.cluster_id, cluster);
    cr_assert_str_eq(scene.info.name, "alpha");
    cr_assert_eq(scene.info.ranges, 4);
    cr_assert_gt(scene.info.entries, 0);
    restore_and_compare(&scene);
    cr_assert_gt(scene.after.size, 1000);
    scene_close(&scene);
}

static void disturb(void *ctx, struct harness *store)
{
    struct prng *prng = ctx;
    put_some(store, prng, 60);
    if (prng_chance(prng, 1, 3)) harness_clear(store, (uint16_t)prng_below(prng, 3));
    if (prng_chance(prng, 1, 2)) harness_checkpoint(store);
}

Test(backup, changes_while_the_image_is_read_stay_out_of_it)
{
    for (uint64_t seed = 1; seed <= 6; seed++) {
        struct scene scene;
        scene_open(&scene, 3);
        struct prng prng;
        prng_init(&prng, seed);
        /* Values that do not compress, so that the image has several blocks. */
        static uint8_t noise[32768];
        for (size_t i = 0; i < sizeof noise; i++)
            noise[i] = (uint8_t)prng_next(&prng);
        for (int i = 0; i < 80; i++) {
            char key[16];
            snprintf(key, sizeof key, "key-%03d", i * 5);
            harness_put(
                &scene.store, (uint16_t)(i % 3), key, bytes_of(noise, sizeof noise - (size_t)i), 0);
        }
        harness_checkpoint(&scene.store);
        take_backup(&scene.store, scene.file, &scene.before, disturb, &prng);
        cr_assert_eq(verify_file(&scene), OK, "%s", scene.detail);
        restore_and_compare(&scene);
        scene_close(&scene);
    }
}

Test(backup, an_empty_store_can_be_backed_up_and_restored)
{
    struct scene scene;
    scene_open(&scene, 2);
    take_backup(&scene.store, scene.file, &scene.before, NULL, NULL);
    restore_and_compare(&scene);
    scene_close(&scene);
}

Test(backup, the_largest_value_goes_through)
{
    struct scene scene;
    scene_open(&scene, 1);
    uint8_t *value = malloc(VALUE_SIZE_MAX);
    struct prng prng;
    prng_init(&prng, 3);
    for (size_t i = 0; i < VALUE_SIZE_MAX; i += 8)
        store_u64(value + i, prng_next(&prng));
    harness_put(&scene.store, 0, "in the image", bytes_of(value, VALUE_SIZE_MAX), 0);
    harness_checkpoint(&scene.store);
    value[0]++;
    harness_put(&scene.store, 0, "in memory", bytes_of(value, VALUE_SIZE_MAX), 0);
    free(value);
    take_backup(&scene.store, scene.file, &scene.before, NULL, NULL);
    restore_and_compare(&scene);
    scene_close(&scene);
}

Test(backup, a_restored_store_starts_a_history_of_its_own)
{
    struct scene scene;
    scene_open(&scene, 4);
    struct prng prng;
    prng_init(&prng, 7);
    put_some(&scene.store, &prng, 100);
    take_backup(&scene.store, scene.file, &scene.before, NULL, NULL);
    restore_and_compare(&scene);
    const struct folder_identity *old = &scene.store.folder.identity;
    const struct folder_identity *new = &scene.restored.folder.identity;
    cr_assert_neq(memcmp(old->cluster_id, new->cluster_id, 16), 0);
    cr_assert_neq(memcmp(old->node_id, new->node_id, 16), 0);
    cr_assert_eq(new->restored_from[1], 0x11);
    cr_assert_eq(new->restored_lsn, scene.info.end_lsn);
    cr_assert_str_eq(new->name, "alpha");

    /* It takes writes with LSNs behind the backup's, and keeps them over a crash. */
    cr_assert_geq(scene.restored.applied, scene.info.end_lsn);
    harness_put(&scene.restored, 0, "new", bytes_of_text("value"), 0);
    harness_dump(&scene.restored, &scene.before);
    harness_close(&scene.restored, false);
    harness_open(&scene.restored, scene.target);
    harness_dump(&scene.restored, &scene.after);
    cr_assert_str_eq((char *)scene.after.at, (char *)scene.before.at);
    scene_close(&scene);
}

Test(backup, a_backup_of_a_restored_store_works)
{
    struct scene scene;
    scene_open(&scene, 4);
    struct prng prng;
    prng_init(&prng, 9);
    put_some(&scene.store, &prng, 100);
    take_backup(&scene.store, scene.file, &scene.before, NULL, NULL);
    restore_and_compare(&scene);
    put_some(&scene.restored, &prng, 100);
    take_backup(&scene.restored, scene.file, &scene.before, NULL, NULL);
    harness_close(&scene.restored, true);
    strcat(scene.target, "2");
    restore_and_compare(&scene);
    scene_close(&scene);
}

Test(backup, every_flipped_byte_and_every_cut_is_refused)
{
    struct scene scene;
    scene_open(&scene, 2);
    struct prng prng;
    prng_init(&prng, 5);
    uint8_t noise[700];
    for (size_t i = 0; i < sizeof noise; i++)
        noise[i] = (uint8_t)prng_next(&prng);
    put_some(&scene.store, &prng, 10);
    harness_put(&scene.store, 0, "noise", bytes_of(noise, sizeof noise), 0);
    harness_checkpoint(&scene.store);
    put_some(&scene.store, &prng, 10);
    harness_put(&scene.store, 0, "more noise", bytes_of(noise, sizeof noise), 0);
    take_backup(&scene.store, scene.file, NULL, NULL, NULL);
    cr_assert_eq(verify_file(&scene), OK, "%s", scene.detail);

    struct buffer whole = {0};
    harness_read_file(scene.file, &whole);
    cr_assert_gt(whole.size, 1000);
    for (size_t i = 0; i < whole.size; i++) {
        whole.at[i] ^= (uint8_t)(1 << i % 8);
        harness_write_file(scene.file, buffer_view(&whole));
        cr_assert_eq(verify_file(&scene), ERR_CORRUPT, "byte %zu", i);
        cr_assert_not_null(strstr(scene.detail, "backup"), "byte %zu: %s", i, scene.detail);
        whole.at[i] ^= (uint8_t)(1 << i % 8);
    }
    for (size_t i = 0; i < whole.size; i += 7) {
        harness_write_file(scene.file, bytes_of(whole.at, i));
        cr_assert_eq(verify_file(&scene), ERR_CORRUPT, "cut at %zu", i);
    }
    cr_assert_eq(buffer_append(&whole, "", 1), OK);
    harness_write_file(scene.file, buffer_view(&whole));
    cr_assert_eq(verify_file(&scene), ERR_CORRUPT, "a byte too many");
    buffer_deinit(&whole);
    scene_close(&scene);
}

Test(backup, blocks_of_another_backup_or_in_another_order_are_refused)
{
    uint8_t header[BACKUP_HEADER_SIZE], raw[64];
    struct backup_header fields = {.name = "a", .ranges = 1};
    backup_header_encode(header, &fields);
    struct backup_codec packer, unpacker;
    struct buffer blocks[3] = {0}, out = {0};
    cr_assert_eq(backup_packer_init(&packer, header), OK);
    for (int i = 0; i < 3; i++) {
        memset(raw, i, sizeof raw);
        cr_assert_eq(
            backup_pack(&packer, BACKUP_ENTRIES, bytes_of(raw, sizeof raw), &blocks[i]), OK);
    }
    backup_packer_deinit(&packer);

    struct backup_block block;
    struct bytes stored;
    cr_assert_eq(backup_unpacker_init(&unpacker, header), OK);
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(backup_block_head(&unpacker, blocks[i].at, &block), OK);
        stored = bytes_of(blocks[i].at + BACKUP_BLOCK_HEAD_SIZE, block.stored_size);
        cr_assert_eq(backup_unpack(&unpacker, &block, stored, &out), OK);
        cr_assert_eq(out.size, sizeof raw);
        cr_assert_eq(out.at[63], i);
    }
    backup_unpacker_deinit(&unpacker);

    cr_assert_eq(backup_unpacker_init(&unpacker, header), OK);
    cr_assert_eq(backup_block_head(&unpacker, blocks[1].at, &block), ERR_CORRUPT);
    backup_unpacker_deinit(&unpacker);

    fields.lsn = 1;
    backup_header_encode(header, &fields);
    cr_assert_eq(backup_unpacker_init(&unpacker, header), OK);
    cr_assert_eq(backup_block_head(&unpacker, blocks[0].at, &block), OK);
    stored = bytes_of(blocks[0].at + BACKUP_BLOCK_HEAD_SIZE, block.stored_size);
    cr_assert_eq(backup_unpack(&unpacker, &block, stored, &out), ERR_CORRUPT);
    backup_unpacker_deinit(&unpacker);
    for (int i = 0; i < 3; i++)
        buffer_deinit(&blocks[i]);
    buffer_deinit(&out);
}

Test(backup, a_damaged_backup_restores_nothing_and_leaves_nothing)
{
    struct scene scene;
    scene_open(&scene, 2);
    struct prng prng;
    prng_init(&prng, 6);
    uint8_t noise[4000];
    for (size_t i = 0; i < sizeof noise; i++)
        noise[i] = (uint8_t)prng_next(&prng);
    harness_put(&scene.store, 0, "noise", bytes_of(noise, sizeof noise), 0);
    take_backup(&scene.store, scene.file, NULL, NULL, NULL);
    struct buffer whole = {0};
    harness_read_file(scene.file, &whole);
    whole.at[whole.size / 2] ^= 0x10;
    harness_write_file(scene.file, buffer_view(&whole));
    int before = harness_entries(scene.store.root);
    cr_assert_eq(backup_restore(scene.file, scene.target, false, NULL, NULL, &scene.info,
                     scene.detail, sizeof scene.detail),
        ERR_CORRUPT);
    cr_assert_not_null(strstr(scene.detail, "block"), "%s", scene.detail);
    cr_assert_eq(harness_entries(scene.store.root), before);
    buffer_deinit(&whole);
    scene_close(&scene);
}

Test(backup, nothing_is_restored_over_data)
{
    struct scene scene;
    scene_open(&scene, 2);
    harness_put(&scene.store, 0, "a", bytes_of_text("b"), 0);
    take_backup(&scene.store, scene.file, &scene.before, NULL, NULL);
    char inside[160];
    cr_assert_eq(mkdir(scene.target, 0700), 0);
    snprintf(inside, sizeof inside, "%s/precious", scene.target);
    harness_write_file(inside, bytes_of_text("x"));
    cr_assert_eq(backup_restore(scene.file, scene.target, false, NULL, NULL, &scene.info,
                     scene.detail, sizeof scene.detail),
        ERR_EXISTS);
    cr_assert_eq(access(inside, F_OK), 0);
    cr_assert_eq(harness_entries(scene.target), 1);
    cr_assert_eq(unlink(inside), 0);
    restore_and_compare(&scene); /* an empty one is taken */
    scene_close(&scene);
}

Test(backup, a_dry_run_changes_nothing)
{
    struct scene scene;
    scene_open(&scene, 2);
    harness_put(&scene.store, 0, "a", bytes_of_text("b"), 0);
    take_backup(&scene.store, scene.file, NULL, NULL, NULL);
    int before = harness_entries(scene.store.root);
    cr_assert_eq(backup_restore(scene.file, scene.target, true, NULL, NULL, &scene.info,
                     scene.detail, sizeof scene.detail),
        OK);
    cr_assert_eq(scene.info.entries, 1);
    cr_assert_eq(harness_entries(scene.store.root), before);
    scene_close(&scene);
}

Test(backup, what_is_no_backup_is_refused_with_a_sentence)
{
    struct scene scene;
    scene_open(&scene, 1);
    cr_assert_neq(verify_file(&scene), OK);
    cr_assert_not_null(strstr(scene.detail, "cannot be opened"));
    harness_write_file(scene.file, bytes_of_text("hello"));
    cr_assert_eq(verify_file(&scene), ERR_CORRUPT);
    cr_assert_not_null(strstr(scene.detail, "too short"));
    cr_assert_eq(backup_verify(scene.store.root, &scene.info, scene.detail, sizeof scene.detail),
        ERR_INVALID);
    scene_close(&scene);
}

Test(backup, entries_and_ranges_survive_encoding)
{
    struct buffer raw = {0};
    uint8_t key[2 + KEY_SIZE_MAX];
    memset(key, 'k', sizeof key);
    struct backup_entry entries[] = {
        {.range = 0, .key = bytes_of(key, 2), .value = {.version = 1}},
        {.range = 3,
            .key = bytes_of(key, sizeof key),
            .value = {.bytes = bytes_of_text("v"),
                .version = (UINT64_C(1) << 48) - 1,
                .expires_ms = INT64_MAX,
                .flags = 255}},
    };
    for (int i = 0; i < 2; i++)
        cr_assert_eq(backup_entry_append(&raw, &entries[i]), OK);
    struct bytes rest = buffer_view(&raw);
    struct backup_entry entry;
    for (int i = 0; i < 2; i++) {
        cr_assert_eq(backup_entry_next(&rest, 3, &entry), OK);
        cr_assert_eq(entry.range, entries[i].range);
        cr_assert(bytes_equal(entry.key, entries[i].key));
        cr_assert(bytes_equal(entry.value.bytes, entries[i].value.bytes));
        cr_assert_eq(entry.value.version, entries[i].value.version);
        cr_assert_eq(entry.value.expires_ms, entries[i].value.expires_ms);
        cr_assert_eq(entry.value.flags, entries[i].value.flags);
    }
    cr_assert_eq(backup_entry_next(&rest, 3, &entry), ERR_NOT_FOUND);
    /* a range that does not exist, and every cut */
    rest = buffer_view(&raw);
    cr_assert_eq(backup_entry_next(&rest, 2, &entry), OK);
    cr_assert_eq(backup_entry_next(&rest, 2, &entry), ERR_CORRUPT);
    for (size_t i = 1; i < 18; i++) {
        rest = bytes_of(raw.at, i);
        cr_assert_eq(backup_entry_next(&rest, 3, &entry), ERR_CORRUPT);
    }
    buffer_reset(&raw, SIZE_MAX);
    struct backup_range range = {.index = BACKUP_LSN_END - 1, .term = 5, .hash = UINT64_MAX}, same;
    cr_assert_eq(backup_range_append(&raw, &range), OK);
    rest = buffer_view(&raw);
    cr_assert_eq(backup_range_next(&rest, &same), OK);
    cr_assert(same.index == range.index && same.term == 5 && same.hash == UINT64_MAX);
    cr_assert_eq(backup_range_next(&rest, &same), ERR_NOT_FOUND);
    rest = bytes_of(raw.at, BACKUP_RANGE_SIZE - 1);
    cr_assert_eq(backup_range_next(&rest, &same), ERR_CORRUPT);
    buffer_deinit(&raw);
}

Test(backup, another_format_is_refused_as_such)
{
    for (uint32_t format = BACKUP_FORMAT - 1; format <= BACKUP_FORMAT + 1; format += 2) {
        struct scene scene;
        scene_open(&scene, 1);
        uint8_t header[BACKUP_HEADER_SIZE];
        struct backup_header fields = {.name = "a", .ranges = 1};
        backup_header_encode(header, &fields);
        store_u32(header + 8, format);
        store_u32(header + 252, crc32c(0, header, 252));
        harness_write_file(scene.file, bytes_of(header, sizeof header));
        cr_assert_eq(verify_file(&scene), ERR_MISMATCH);
        const char *word = format < BACKUP_FORMAT ? "pre-release" : "newer version";
        cr_assert_not_null(strstr(scene.detail, word), "%s", scene.detail);
        scene_close(&scene);
    }
}

/* ---- of a replicated node ---- */

static enum err replica_backup(struct replica *replica, const char *file)
{
    struct backup *backup;
    struct buffer out = {0};
    cr_assert_eq(backup_open(replica->engine, cluster, "alpha", &backup), OK);
    enum err err;
    while ((err = backup_next(backup, &out)) == OK || err == ERR_AGAIN) {
        engine_checkpoint_step(replica->engine);
        replica_poll(replica);
        if (backup_finish_at(backup)) replica_put(replica, 1, "too late", "x");
    }
    backup_close(backup);
    if (err == ERR_NOT_FOUND) harness_write_file(file, buffer_view(&out));
    buffer_deinit(&out);
    return err;
}

Test(backup, a_replicated_node_comes_back_as_a_genesis_with_its_indexes)
{
    struct scene scene;
    scene_open(&scene, 1);
    struct replica source = {0}, restored = {0};
    replica_create(&source);
    for (int i = 0; i < 300; i++) {
        char key[16];
        snprintf(key, sizeof key, "key-%03d", i);
        replica_put(&source, (uint16_t)(1 + i % 2), key, "value");
    }
    replica_put(&source, 0, "bucket/users", "7");
    replica_put(&source, 0, "member/3", "elsewhere");
    replica_put_value(&source, 1, "expires", bytes_of_text("x"), 5000);
    source.ranges[1].meta.hard_term = 8;
    source.ranges[1].meta.vote = 2;
    source.ranges[1].meta.config_size = 4;
    struct range_meta metas[] = {
        source.ranges[0].meta, source.ranges[1].meta, source.ranges[2].meta};
    uint64_t hashes[] = {0, replica_hash(&source, 1), replica_hash(&source, 2)};
    cr_assert_eq(replica_backup(&source, scene.file), ERR_NOT_FOUND);
    cr_assert_eq(backup_restore(scene.file, scene.target, false, NULL, NULL, &scene.info,
                     scene.detail, sizeof scene.detail),
        OK, "%s", scene.detail);

    struct folder folder;
    struct folder_identity wanted = {.ranges = 1};
    cr_assert_eq(
        folder_open(scene.target, true, &wanted, &folder, scene.detail, sizeof scene.detail), OK);
    cr_assert_eq(folder.identity.ranges, REPLICA_RANGES);
    restored.kv = &kv_lmdb;
    restored.kv_folder = folder.db;
    memcpy(restored.store_id, folder.identity.node_id, 16);
    replica_create(&restored);
    for (uint16_t range = 0; range <= 2; range++) {
        const struct range_meta *meta = &restored.ranges[range].meta;
        cr_assert(restored.ranges[range].known);
        cr_assert_eq(meta->flags, RANGE_META_GENESIS);
        cr_assert_eq(meta->index, metas[range].index);
        cr_assert_eq(meta->hash, metas[range].hash);
        cr_assert_eq(meta->hard_term, metas[range].term, "the term of its last entry");
        cr_assert_eq(meta->vote, 0);
        cr_assert_eq(meta->config_size, 0);
        if (range > 0) cr_assert_eq(replica_hash(&restored, range), hashes[range]);
    }
    cr_assert(restored.ranges[3].known, "a range without data, too");
    replica_expect(&restored, 0, "bucket/users", "7");
    replica_expect(&restored, 0, "member/3", NULL);
    replica_put(&restored, 1, "goes on", "from there");
    replica_checkpoint(&restored);
    replica_check_store(&restored);
    replica_destroy(&restored);
    folder_close(&folder);
    replica_destroy(&source);
    scene_close(&scene);
}

static void nothing(void *ctx, enum err err)
{
    (void)ctx, (void)err;
}

Test(backup, no_backup_is_taken_of_half_a_snapshot)
{
    struct scene scene;
    scene_open(&scene, 1);
    struct replica source = {0};
    replica_create(&source);
    replica_put(&source, 1, "a", "1");
    replica_checkpoint(&source);
    struct install *install;
    cr_assert_eq(
        install_begin(source.engine, 2, &source.ranges[2].meta, nothing, NULL, &install), OK);
    cr_assert_eq(replica_backup(&source, scene.file), ERR_CLOSED);
    install_close(install);
    replica_destroy(&source);
    scene_close(&scene);
}

Test(backup, a_backup_that_is_given_up_leaves_nothing_waiting)
{
    struct scene scene;
    scene_open(&scene, 1);
    harness_put(&scene.store, 0, "a", bytes_of_text("1"), 0);
    struct backup *backup;
    cr_assert_eq(backup_open(scene.store.engine, cluster, "alpha", &backup), OK);
    backup_close(backup);
    harness_checkpoint(&scene.store);
    harness_put(&scene.store, 0, "b", bytes_of_text("1"), 0);
    take_backup(&scene.store, scene.file, &scene.before, NULL, NULL);
    restore_and_compare(&scene);
    scene_close(&scene);
}
