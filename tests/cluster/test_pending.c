#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#include "cluster/node/pending.h"

/* The pending table alone: what commands see before their records are committed. */

static struct pending pending;

static void setup(void)
{
    cr_assert_eq(pending_init(&pending, 7), OK);
}

static void teardown(void)
{
    pending_deinit(&pending);
}

TestSuite(pending, .init = setup, .fini = teardown, .timeout = 20);

static void add(uint8_t kind, const char *key, const char *value, lsn_t lsn)
{
    struct effect effect = {
        .kind = kind, .range = 1, .key = bytes_of_text(key), .value = bytes_of_text(value)};
    cr_assert_eq(pending_reserve(&pending, 1), OK);
    pending_add(&pending, &effect, lsn);
}

static void clear(uint16_t bucket, lsn_t lsn)
{
    cr_assert_eq(pending_reserve(&pending, 1), OK);
    pending_clear(&pending, bucket, lsn);
}

static const char *find(const char *key)
{
    static char text[64];
    const struct pending_entry *entry;
    switch (pending_find(&pending, 1, 0, bytes_of_text(key), &entry)) {
    case PENDING_MISS:
        return "miss";
    case PENDING_GONE:
        return "gone";
    case PENDING_VALUE:
        snprintf(text, sizeof text, "%.*s", (int)entry->effect.value.size, entry->effect.value.at);
        return text;
    }
    return "?";
}

Test(pending, shows_the_newest_effect_of_a_key)
{
    add(EFFECT_PUT, "a", "1", 1);
    pending_keep(&pending);
    add(EFFECT_PUT, "a", "2", 2);
    pending_keep(&pending);
    cr_assert_str_eq(find("a"), "2");
    cr_assert_str_eq(find("b"), "miss");
}

Test(pending, a_deletion_is_gone_not_a_miss)
{
    add(EFFECT_DELETE, "a", "", 1);
    pending_keep(&pending);
    cr_assert_str_eq(find("a"), "gone");
}

Test(pending, an_entry_goes_when_its_own_record_is_applied_not_an_older_one)
{
    add(EFFECT_PUT, "a", "1", 1);
    pending_keep(&pending);
    add(EFFECT_PUT, "a", "2", 2);
    pending_keep(&pending);
    pending_applied(&pending, 1);
    cr_assert_str_eq(find("a"), "2");
    pending_applied(&pending, 2);
    cr_assert_str_eq(find("a"), "miss");
    cr_assert_eq(pending.count, 0);
}

Test(pending, a_key_written_twice_in_one_record_is_forgotten_once)
{
    add(EFFECT_PUT, "a", "1", 1);
    add(EFFECT_PUT, "a", "2", 1);
    pending_keep(&pending);
    cr_assert_str_eq(find("a"), "2");
    pending_applied(&pending, 1);
    cr_assert_eq(pending.count, 0);
    cr_assert_eq(pending.queue_count, 0);
}

Test(pending, undo_brings_back_what_was_pending_before)
{
    add(EFFECT_PUT, "a", "1", 1);
    pending_keep(&pending);
    add(EFFECT_PUT, "a", "2", 2);
    add(EFFECT_PUT, "b", "9", 2);
    clear(0, 2);
    cr_assert_str_eq(find("a"), "gone");
    pending_undo_all(&pending);
    cr_assert_str_eq(find("a"), "1");
    cr_assert_str_eq(find("b"), "miss");
    cr_assert(!pending_cleared(&pending, 0));
    pending_applied(&pending, 1);
    cr_assert_eq(pending.count, 0);
}

Test(pending, a_clear_hides_older_effects_and_committed_keys_but_not_newer_ones)
{
    add(EFFECT_PUT, "a", "1", 1);
    clear(0, 1);
    add(EFFECT_PUT, "b", "2", 1);
    pending_keep(&pending);
    cr_assert_str_eq(find("a"), "gone");
    cr_assert_str_eq(find("unknown"), "gone");
    cr_assert_str_eq(find("b"), "2");
    pending_applied(&pending, 1);
    cr_assert_str_eq(find("unknown"), "miss");
}

Test(pending, a_clear_does_not_reach_the_system_range)
{
    clear(0, 1);
    pending_keep(&pending);
    const struct pending_entry *entry;
    cr_assert_eq(pending_find(&pending, 0, 0, bytes_of_text("bucket/x"), &entry), PENDING_MISS);
}

Test(pending, grows_and_shrinks_with_many_keys)
{
    static char keys[5000][16];
    for (int i = 0; i < 5000; i++) {
        snprintf(keys[i], sizeof keys[i], "key%d", i);
        add(EFFECT_PUT, keys[i], keys[i], (lsn_t)i + 1);
        pending_keep(&pending);
    }
    for (int i = 0; i < 5000; i++)
        cr_assert_str_eq(find(keys[i]), keys[i]);
    pending_applied(&pending, 2500);
    cr_assert_str_eq(find(keys[2499]), "miss");
    cr_assert_str_eq(find(keys[2500]), keys[2500]);
    pending_applied(&pending, 5000);
    cr_assert_eq(pending.count, 0);
}
