#include <criterion/criterion.h>
#include <stdio.h>

#include "base/prng.h"
#include "cluster/map/members.h"

/* The table of nodes: its stored form, and what the meta leader accepts and refuses. */

/* ---- a cluster to decide on: decisions are applied as the driver would ---- */

struct table {
    struct members members;
    struct members_decision decision;
    uint64_t index;
};

static void put(struct table *table, const char *key, const uint8_t *value, size_t size)
{
    struct bytes bytes = bytes_of(value, size);
    cr_assert_eq(members_apply(&table->members, ++table->index, bytes_of_text(key), &bytes), OK);
}

static void commit(struct table *table)
{
    const struct members_decision *decision = &table->decision;
    cr_assert(decision->accepted, "%s", decision->detail);
    uint8_t value[MEMBERS_VALUE_MAX];
    char key[MEMBERS_KEY_MAX];
    if (decision->erased != 0) {
        members_key(decision->erased, key);
        cr_assert_eq(members_apply(&table->members, ++table->index, bytes_of_text(key), NULL), OK);
    }
    for (uint32_t i = 0; i < decision->changed_count; i++) {
        members_key(decision->changed[i].number, key);
        put(table, key, value, member_encode(&decision->changed[i], value));
    }
    if (decision->cluster_changed) {
        put(table, MEMBERS_CLUSTER_KEY, value,
            members_cluster_encode(decision->next_number, decision->replicas, value));
    }
}

static void refused(const struct table *table, const char *part)
{
    cr_assert(!table->decision.accepted);
    cr_assert_eq(table->decision.changed_count, 0);
    cr_assert(!table->decision.cluster_changed);
    cr_assert_eq(table->decision.erased, 0);
    cr_assert_not_null(strstr(table->decision.detail, part), "\"%s\" does not say \"%s\"",
        table->decision.detail, part);
    cr_assert_lt(strlen(table->decision.detail), MEMBERS_DETAIL_MAX - 1);
}

/* Store `store` says it is `name`, in its `incarnation`th start. */
static struct members_identity identity_of(const char *name, uint8_t store, uint64_t incarnation)
{
    struct members_identity identity = {.name = name,
        .peer = "10.0.0.1:7000",
        .resp = "10.0.0.1:6379",
        .http = "10.0.0.1:8080",
        .zone = "z",
        .incarnation = incarnation,
        .boot = store * 1000u + incarnation};
    memset(identity.store_id, store, sizeof identity.store_id);
    return identity;
}

static struct members_alive alive_of(const uint16_t *numbers)
{
    struct members_alive alive = {.numbers = numbers};
    while (numbers[alive.count] != 0)
        alive.count++;
    return alive;
}
#define ALIVE(...) alive_of((const uint16_t[]){__VA_ARGS__, 0})
static const struct members_alive nobody;

static bool join(
    struct table *table, const char *name, uint8_t store, bool replace, struct members_alive alive)
{
    struct members_identity identity = identity_of(name, store, 0);
    return members_decide_join(&table->members, &identity, replace, alive, &table->decision);
}

static bool restart(struct table *table, uint16_t number, uint8_t store, uint64_t incarnation)
{
    struct members_identity identity = identity_of(NULL, store, incarnation);
    return members_decide_restart(&table->members, number, &identity, &table->decision);
}

/* Members a, b, c, ... with numbers and stores 1, 2, 3, ..., all started once. */
static void found(struct table *table, uint32_t count)
{
    memset(table, 0, sizeof *table);
    members_init(&table->members);
    struct members_identity identity = identity_of("a", 1, 1);
    members_decide_found(&table->members, &identity, 3, &table->decision);
    commit(table);
    for (uint32_t i = 2; i <= count; i++) {
        char name[8];
        snprintf(name, sizeof name, "%c", (int)('a' + i - 1));
        cr_assert(join(table, name, (uint8_t)i, false, nobody));
        commit(table);
        cr_assert(restart(table, (uint16_t)i, (uint8_t)i, 1));
        commit(table);
    }
}

static uint8_t state_of(const struct table *table, uint16_t number)
{
    const struct member *member = members_by_number(&table->members, number);
    cr_assert_not_null(member);
    return member->state;
}

/* ---- stored form ---- */

static struct member sample(void)
{
    struct member member = {.number = 7,
        .successor = 9,
        .state = MEMBER_LEAVING,
        .joined = true,
        .incarnation = 12,
        .boot = 0x1122334455667788u,
        .store_id = {1, 2, 3},
        .name = "node-7",
        .peer = "10.0.0.7:7000",
        .resp = "10.0.0.7:6379",
        .http = "",
        .zone = "south 1"};
    return member;
}

Test(members, a_record_comes_back_as_it_was_stored)
{
    struct member in = sample(), out;
    uint8_t value[MEMBERS_VALUE_MAX];
    size_t size = member_encode(&in, value);
    cr_assert_eq(member_decode(bytes_of(value, size), &out), OK);
    cr_assert_eq(out.number, in.number);
    cr_assert_eq(out.successor, in.successor);
    cr_assert_eq(out.state, in.state);
    cr_assert_eq(out.joined, in.joined);
    cr_assert_eq(out.replaceable, in.replaceable);
    cr_assert_eq(out.incarnation, in.incarnation);
    cr_assert_eq(out.boot, in.boot);
    cr_assert_eq(memcmp(out.store_id, in.store_id, sizeof in.store_id), 0);
    cr_assert_str_eq(out.name, in.name);
    cr_assert_str_eq(out.peer, in.peer);
    cr_assert_str_eq(out.resp, in.resp);
    cr_assert_str_eq(out.http, in.http);
    cr_assert_str_eq(out.zone, in.zone);
}

Test(members, every_cut_of_a_record_is_refused_and_a_newer_one_is_named)
{
    struct member in = sample(), out;
    uint8_t value[MEMBERS_VALUE_MAX + 1] = {0};
    size_t size = member_encode(&in, value);
    for (size_t cut = 0; cut < size; cut++)
        cr_assert_eq(member_decode(bytes_of(value, cut), &out), ERR_CORRUPT, "%zu", cut);
    cr_assert_eq(member_decode(bytes_of(value, size + 1), &out), ERR_CORRUPT);
    value[0]++;
    cr_assert_eq(member_decode(bytes_of(value, size), &out), ERR_MISMATCH);
}

Test(members, what_is_taken_is_what_would_be_written)
{
    struct prng prng;
    prng_init(&prng, 3);
    struct member in = sample(), out;
    uint8_t value[MEMBERS_VALUE_MAX], again[MEMBERS_VALUE_MAX];
    size_t size = member_encode(&in, value);
    for (int round = 0; round < 20000; round++) {
        uint8_t flipped[MEMBERS_VALUE_MAX];
        memcpy(flipped, value, size);
        size_t at = prng_below(&prng, size);
        flipped[at] = (uint8_t)(flipped[at] ^ (1u << prng_below(&prng, 8)));
        if (member_decode(bytes_of(flipped, size), &out) != OK) continue;
        cr_assert(
            bytes_equal(bytes_of(flipped, size), bytes_of(again, member_encode(&out, again))));
    }
}

Test(members, keys_that_are_not_the_tables_are_left_alone)
{
    struct table table;
    found(&table, 2);
    uint64_t epoch = table.members.epoch;
    static const char *const others[] = {"", "node/", "node/0000", "node/000001", "node/00000",
        "node/99999", "node/0000x", "clusters", "bucket/1"};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        cr_assert_eq(members_apply(&table.members, 99, bytes_of_text(others[i]), NULL),
            ERR_NOT_FOUND, "%s", others[i]);
    }
    struct member other = sample();
    uint8_t value[MEMBERS_VALUE_MAX];
    struct bytes bytes = bytes_of(value, member_encode(&other, value));
    cr_assert_eq(members_apply(&table.members, 99, bytes_of_text("node/00008"), &bytes),
        ERR_CORRUPT, "key and record name different nodes");
    cr_assert_eq(table.members.epoch, epoch);
    cr_assert_eq(members_apply(&table.members, 99, bytes_of_text("node/00007"), &bytes), OK);
    cr_assert_eq(table.members.epoch, 99);
    cr_assert_eq(members_apply(&table.members, 100, bytes_of_text("node/00001"), NULL), OK);
    cr_assert_eq(table.members.count, 2);
    cr_assert_null(members_by_number(&table.members, 1));
}

Test(members, the_table_stays_sorted_whatever_comes_first)
{
    struct prng prng;
    prng_init(&prng, 8);
    struct members members;
    members_init(&members);
    for (int round = 0; round < 3000; round++) {
        struct member member = sample();
        member.number = (uint16_t)(1 + prng_below(&prng, 80));
        uint8_t value[MEMBERS_VALUE_MAX];
        char key[MEMBERS_KEY_MAX];
        struct bytes bytes = bytes_of(value, member_encode(&member, value));
        members_key(member.number, key);
        bool known = members_by_number(&members, member.number) != NULL;
        bool full = members.count == MEMBERS_MAX;
        bool erase = prng_chance(&prng, 1, 4);
        enum err err = members_apply(&members, 1, bytes_of_text(key), erase ? NULL : &bytes);
        cr_assert_eq(err, !erase && !known && full ? ERR_FULL : OK);
        if (err == OK) cr_assert_eq(members_by_number(&members, member.number) != NULL, !erase);
        for (uint32_t i = 1; i < members.count; i++)
            cr_assert_lt(members.at[i - 1].number, members.at[i].number);
    }
}

/* ---- joining ---- */

Test(members, the_first_node_is_a_member_at_once)
{
    struct table table;
    found(&table, 1);
    cr_assert_eq(state_of(&table, 1), MEMBER_MEMBER);
    cr_assert_eq(table.members.next_number, 2);
    cr_assert_eq(table.members.replicas, 3);
}

Test(members, a_newcomer_gets_the_next_number_and_is_a_member_when_it_starts)
{
    struct table table;
    found(&table, 1);
    cr_assert(join(&table, "b", 2, false, ALIVE(1)));
    cr_assert_eq(table.decision.number, 2);
    commit(&table);
    cr_assert_eq(state_of(&table, 2), MEMBER_JOINING);
    uint16_t numbers[MEMBERS_MAX], zones[MEMBERS_MAX];
    cr_assert_eq(members_placeable(&table.members, numbers, zones), 1, "it holds nothing yet");
    cr_assert(restart(&table, 2, 2, 1));
    commit(&table);
    cr_assert_eq(state_of(&table, 2), MEMBER_MEMBER);
    cr_assert_eq(members_placeable(&table.members, numbers, zones), 2);
    cr_assert_eq(members_by_name(&table.members, "b")->number, 2);
}

Test(members, asking_again_is_harmless)
{
    struct table table;
    found(&table, 1);
    cr_assert(join(&table, "b", 2, false, ALIVE(1)));
    commit(&table);
    cr_assert(join(&table, "b", 2, false, ALIVE(1)));
    cr_assert_eq(table.decision.number, 2);
    cr_assert_eq(table.decision.changed_count, 0, "nothing to propose");
    struct members_identity moved = identity_of("b", 2, 0);
    moved.peer = "10.0.0.2:7000";
    cr_assert(members_decide_join(&table.members, &moved, false, nobody, &table.decision));
    cr_assert_eq(table.decision.changed_count, 1);
    commit(&table);
    cr_assert_str_eq(members_by_number(&table.members, 2)->peer, "10.0.0.2:7000");
    cr_assert(restart(&table, 2, 2, 1));
    commit(&table);
    cr_assert(restart(&table, 2, 2, 1), "the same process again");
    cr_assert_eq(table.decision.changed_count, 0);
    cr_assert(join(&table, "b", 2, false, ALIVE(1, 2)), "a late question");
    cr_assert_eq(table.decision.changed_count, 0);
}

Test(members, a_wiped_node_is_not_taken_under_its_old_name)
{
    struct table table;
    found(&table, 3);
    cr_assert(!join(&table, "b", 99, false, ALIVE(1, 3)));
    refused(&table, "b is a member with another data folder");
    refused(&table, "duramen member replace b");
    cr_assert(!restart(&table, 2, 99, 5));
    refused(&table, "duramen member replace b");
}

Test(members, who_is_removed_before_it_came_does_not_come)
{
    struct table table;
    found(&table, 1);
    cr_assert(join(&table, "b", 2, false, ALIVE(1)));
    commit(&table);
    cr_assert(members_decide_remove(&table.members, "b", ALIVE(1), &table.decision));
    commit(&table);
    cr_assert(!join(&table, "b", 2, false, ALIVE(1)));
    refused(&table, "is being removed");
    cr_assert(!join(&table, "b", 3, true, ALIVE(1)));
    refused(&table, "choose another name");
}

Test(members, names_are_made_up_where_none_is_given)
{
    struct table table;
    found(&table, 1);
    cr_assert(join(&table, "node-3", 2, false, nobody));
    commit(&table);
    cr_assert(join(&table, "", 3, false, nobody));
    commit(&table);
    cr_assert_str_eq(members_by_number(&table.members, 3)->name, "node-4");
    cr_assert(join(&table, NULL, 4, false, nobody));
    commit(&table);
    cr_assert_str_eq(members_by_number(&table.members, 4)->name, "node-5");
}

Test(members, illegal_texts_are_refused)
{
    struct table table;
    found(&table, 1);
    char longest[MEMBERS_ADDRESS_MAX + 2];
    memset(longest, 'x', sizeof longest);
    longest[sizeof longest - 1] = '\0';
    cr_assert(!join(&table, "b c", 2, false, nobody));
    refused(&table, "a name has up to 63");
    cr_assert(!join(&table, longest, 2, false, nobody));
    refused(&table, "a name has up to 63");
    struct members_identity identity = identity_of("b", 2, 0);
    identity.peer = longest;
    cr_assert(!members_decide_join(&table.members, &identity, false, nobody, &table.decision));
    refused(&table, "an address");
    identity.peer = "";
    cr_assert(!members_decide_join(&table.members, &identity, false, nobody, &table.decision));
    refused(&table, "peer address");
    identity.peer = "host:1";
    identity.zone = "a\nb";
    cr_assert(!members_decide_join(&table.members, &identity, false, nobody, &table.decision));
    refused(&table, "the zone");
}

Test(members, a_full_table_takes_nobody_but_in_the_place_of_a_removed_one)
{
    struct table table;
    found(&table, 1);
    for (uint32_t i = 2; i <= MEMBERS_MAX; i++) {
        cr_assert(join(&table, "", (uint8_t)i, false, nobody));
        commit(&table);
    }
    cr_assert(!join(&table, "", 200, false, nobody));
    refused(&table, "64 members already");
    cr_assert(members_decide_remove(&table.members, "node-40", nobody, &table.decision));
    commit(&table);
    cr_assert(members_decide_gone(&table.members, 40, false, &table.decision));
    commit(&table);
    cr_assert(join(&table, "", 200, false, nobody));
    cr_assert_eq(table.decision.number, 65, "numbers are not reused");
    commit(&table);
    cr_assert_null(members_by_number(&table.members, 40));
    cr_assert(!restart(&table, 40, 40, 1));
    refused(&table, "was removed");
}

/* ---- coming back ---- */

Test(members, an_older_copy_of_a_folder_is_refused)
{
    struct table table;
    found(&table, 3);
    cr_assert(restart(&table, 2, 2, 7));
    commit(&table);
    cr_assert(!restart(&table, 2, 2, 6));
    refused(&table, "older copy");
    cr_assert(restart(&table, 2, 2, 8));
}

Test(members, a_second_process_on_a_copy_is_refused)
{
    struct table table;
    found(&table, 3);
    cr_assert(restart(&table, 2, 2, 7));
    commit(&table);
    struct members_identity clone = identity_of(NULL, 2, 7);
    clone.boot++;
    cr_assert(!members_decide_restart(&table.members, 2, &clone, &table.decision));
    refused(&table, "two processes");
}

Test(members, who_was_removed_or_never_known_stays_out)
{
    struct table table;
    found(&table, 4);
    cr_assert(members_decide_remove(&table.members, "d", ALIVE(1, 2, 3, 4), &table.decision));
    commit(&table);
    cr_assert(restart(&table, 4, 4, 2), "while it leaves it may restart");
    commit(&table);
    cr_assert_eq(state_of(&table, 4), MEMBER_LEAVING);
    cr_assert(!members_decide_gone(&table.members, 4, true, &table.decision));
    refused(&table, "still has replicas");
    cr_assert(members_decide_gone(&table.members, 4, false, &table.decision));
    commit(&table);
    cr_assert(!restart(&table, 4, 4, 3));
    refused(&table, "was removed");
    cr_assert(!join(&table, "d", 4, false, nobody));
    refused(&table, "was removed");
    cr_assert(join(&table, "d", 44, false, nobody), "its name is free");
    cr_assert(!restart(&table, 30, 4, 3));
    refused(&table, "has not given out number 30");
}

Test(members, a_node_with_a_damaged_log_comes_back_with_a_new_number)
{
    struct table table;
    found(&table, 3);
    struct members_identity old = identity_of(NULL, 2, 1);
    uint8_t fresh[MEMBERS_STORE_ID];
    memset(fresh, 77, sizeof fresh);
    cr_assert(
        members_decide_renew(&table.members, 2, &old, fresh, ALIVE(1, 2, 3), &table.decision));
    cr_assert_eq(table.decision.number, 4);
    commit(&table);
    cr_assert_eq(state_of(&table, 2), MEMBER_LEAVING);
    cr_assert_eq(members_by_number(&table.members, 2)->successor, 4);
    cr_assert_eq(members_by_name(&table.members, "b")->number, 4);
    cr_assert(
        members_decide_renew(&table.members, 2, &old, fresh, ALIVE(1, 2, 3), &table.decision));
    cr_assert_eq(table.decision.number, 4, "asking again");
    cr_assert_eq(table.decision.changed_count, 0);
    fresh[0]++;
    cr_assert(
        !members_decide_renew(&table.members, 2, &old, fresh, ALIVE(1, 2, 3), &table.decision));
    refused(&table, "took the place");
    cr_assert(!restart(&table, 2, 2, 2));
    refused(&table, "took the place");
    cr_assert(restart(&table, 4, 77, 1));
    commit(&table);
    cr_assert_eq(state_of(&table, 4), MEMBER_MEMBER);
    cr_assert(members_decide_gone(&table.members, 2, false, &table.decision));
}

Test(members, a_damaged_node_waits_while_another_is_dead)
{
    struct table table;
    found(&table, 3);
    struct members_identity old = identity_of(NULL, 2, 1);
    uint8_t fresh[MEMBERS_STORE_ID] = {7};
    cr_assert(!members_decide_renew(&table.members, 2, &old, fresh, ALIVE(1, 2), &table.decision));
    refused(&table, "no majority");
    found(&table, 1);
    old = identity_of(NULL, 1, 1);
    cr_assert(!members_decide_renew(&table.members, 1, &old, fresh, ALIVE(1), &table.decision));
}

/* ---- the operator ---- */

static void expect_remove(
    uint32_t count, const char *name, struct members_alive alive, const char *refusal)
{
    struct table table;
    found(&table, count);
    bool accepted = members_decide_remove(&table.members, name, alive, &table.decision);
    cr_expect_eq(
        accepted, refusal == NULL, "%u members, remove %s: %s", count, name, table.decision.detail);
    if (!accepted && refusal != NULL) refused(&table, refusal);
}

Test(members, a_removal_that_would_lose_a_majority_is_refused)
{
    expect_remove(1, "a", ALIVE(1), "only member");
    expect_remove(2, "b", ALIVE(1, 2), NULL);
    expect_remove(2, "b", ALIVE(1), "no majority");
    expect_remove(3, "c", ALIVE(1, 2, 3), NULL);
    expect_remove(3, "c", ALIVE(1, 2), NULL);
    expect_remove(3, "b", ALIVE(1, 2), "c looks dead");
    expect_remove(3, "a", ALIVE(1), "no majority");
    expect_remove(4, "b", ALIVE(1, 2, 3), NULL);
    expect_remove(5, "b", ALIVE(1, 2, 3), "d looks dead");
    expect_remove(5, "e", ALIVE(1, 2, 3), NULL);
    expect_remove(3, "x", ALIVE(1, 2, 3), "no member called \"x\"");
}

Test(members, removals_count_what_is_leaving_already)
{
    struct table table;
    found(&table, 3);
    cr_assert(members_decide_remove(&table.members, "c", ALIVE(1, 2, 3), &table.decision));
    commit(&table);
    cr_assert(members_decide_remove(&table.members, "c", ALIVE(1, 2, 3), &table.decision));
    cr_assert_eq(table.decision.changed_count, 0, "it leaves already");
    cr_assert(members_decide_remove(&table.members, "b", ALIVE(1, 2, 3), &table.decision));
    commit(&table);
    cr_assert(!members_decide_remove(&table.members, "a", ALIVE(1, 2, 3), &table.decision));
    refused(&table, "only member");
}

/* Every cluster of up to five and every guess at who is alive: what is accepted leaves a majority. */
Test(members, no_accepted_removal_leaves_a_range_without_a_majority)
{
    for (uint32_t count = 1; count <= 5; count++) {
        for (uint32_t living = 0; living < 1u << count; living++) {
            uint16_t numbers[8] = {0};
            uint32_t live_count = 0;
            for (uint16_t i = 1; i <= count; i++) {
                if ((living >> (i - 1) & 1) != 0) numbers[live_count++] = i;
            }
            for (uint16_t victim = 1; victim <= count; victim++) {
                struct table table;
                found(&table, count);
                char name[2] = {(char)('a' + victim - 1), '\0'};
                if (!members_decide_remove(
                        &table.members, name, alive_of(numbers), &table.decision))
                    continue;
                uint32_t left = count - 1, replicas = left < 3 ? left : 3;
                uint32_t dead = left - live_count + (living >> (victim - 1) & 1);
                cr_assert_gt(left, 0);
                uint32_t worst = dead < replicas ? dead : replicas;
                cr_assert_gt((replicas - worst) * 2, replicas, "%u nodes, living %x, victim %u",
                    count, living, victim);
            }
        }
    }
}

Test(members, a_dead_member_is_replaced_under_its_name)
{
    struct table table;
    found(&table, 3);
    cr_assert(!members_decide_replace(&table.members, "b", ALIVE(1, 2, 3), &table.decision));
    refused(&table, "b looks alive");
    cr_assert(members_decide_replace(&table.members, "b", ALIVE(1, 3), &table.decision));
    commit(&table);
    cr_assert(join(&table, "b", 22, false, ALIVE(1, 3)));
    cr_assert_eq(table.decision.number, 4);
    commit(&table);
    cr_assert_eq(state_of(&table, 2), MEMBER_LEAVING);
    cr_assert_eq(state_of(&table, 4), MEMBER_JOINING);
    cr_assert_eq(members_by_name(&table.members, "b")->number, 4);
    cr_assert(!restart(&table, 2, 2, 9));
    refused(&table, "took the place of b");
    cr_assert(!join(&table, "b", 2, true, ALIVE(1, 3)), "the old folder again");
    refused(&table, "was removed");
}

Test(members, a_join_may_ask_for_the_place_of_a_dead_member_itself)
{
    struct table table;
    found(&table, 3);
    cr_assert(!join(&table, "b", 22, true, ALIVE(1, 2, 3)));
    refused(&table, "stop it before");
    cr_assert(!join(&table, "x", 22, true, ALIVE(1, 3)));
    refused(&table, "no member called \"x\"");
    cr_assert(!join(&table, "b", 22, true, ALIVE(1)));
    refused(&table, "no majority");
    cr_assert(join(&table, "b", 22, true, ALIVE(1, 3)));
    commit(&table);
    cr_assert_eq(members_by_name(&table.members, "b")->number, 4);
}

Test(members, a_mark_is_void_when_the_old_node_comes_back)
{
    struct table table;
    found(&table, 3);
    cr_assert(members_decide_replace(&table.members, "b", ALIVE(1, 3), &table.decision));
    commit(&table);
    cr_assert(restart(&table, 2, 2, 2));
    commit(&table);
    cr_assert(!join(&table, "b", 22, false, ALIVE(1, 3)));
    refused(&table, "another data folder");
}

/* ---- down and up ---- */

Test(members, a_node_is_not_declared_down_while_more_than_a_third_look_dead)
{
    struct table table;
    found(&table, 3);
    cr_assert(!members_decide_down(&table.members, 3, ALIVE(1), &table.decision));
    refused(&table, "more than a third");
    cr_assert(!members_decide_down(&table.members, 3, ALIVE(1, 3), &table.decision));
    refused(&table, "looks alive");
    cr_assert(members_decide_down(&table.members, 3, ALIVE(1, 2), &table.decision));
    commit(&table);
    cr_assert_eq(state_of(&table, 3), MEMBER_DOWN);
    uint16_t numbers[MEMBERS_MAX], zones[MEMBERS_MAX];
    cr_assert_eq(members_placeable(&table.members, numbers, zones), 3,
        "nobody else could hold what it holds");
    cr_assert(join(&table, "d", 4, false, ALIVE(1, 2)));
    commit(&table);
    cr_assert(restart(&table, 4, 4, 1));
    commit(&table);
    cr_assert_eq(members_placeable(&table.members, numbers, zones), 3);
    cr_assert_eq(numbers[2], 4, "now somebody can");
    cr_assert(!members_decide_up(&table.members, 3, ALIVE(1, 2, 4), &table.decision));
    cr_assert(members_decide_up(&table.members, 3, ALIVE(1, 2, 3, 4), &table.decision));
    commit(&table);
    cr_assert_eq(members_placeable(&table.members, numbers, zones), 4);
}

Test(members, equal_zones_have_equal_numbers)
{
    struct table table;
    found(&table, 4);
    static const char *const names[] = {"x", "y", "x", ""};
    for (uint16_t i = 1; i <= 4; i++) {
        struct members_identity identity = identity_of(NULL, (uint8_t)i, 2);
        identity.zone = names[i - 1];
        cr_assert(members_decide_restart(&table.members, i, &identity, &table.decision));
        commit(&table);
    }
    uint16_t numbers[MEMBERS_MAX], zones[MEMBERS_MAX];
    cr_assert_eq(members_placeable(&table.members, numbers, zones), 4);
    cr_assert_eq(zones[0], zones[2]);
    cr_assert_neq(zones[0], zones[1]);
    cr_assert_neq(zones[0], zones[3]);
    cr_assert_neq(zones[1], zones[3]);
}

Test(members, the_number_of_replicas_has_bounds)
{
    struct table table;
    found(&table, 1);
    cr_assert(!members_decide_replicas(&table.members, 0, &table.decision));
    refused(&table, "from 1 to 7");
    cr_assert(!members_decide_replicas(&table.members, 8, &table.decision));
    cr_assert(members_decide_replicas(&table.members, 5, &table.decision));
    commit(&table);
    cr_assert_eq(table.members.replicas, 5);
    cr_assert_eq(table.members.next_number, 2);
}
