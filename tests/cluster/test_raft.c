#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/cluster/raft_world.h"

/* The rules one by one. Those that are a course of events are compared with a recorded trace
 * (tests/golden/raft; UPDATE_GOLDEN=1 rewrites them, and the difference is read before it is committed). */

static struct world world;

static void begin(uint32_t count)
{
    struct raft_settings settings = world_settings();
    world_init(&world, count, &settings, 1);
}

static void begin_with_leases(uint32_t count)
{
    struct raft_settings settings = world_settings();
    settings.leases = true;
    world_init(&world, count, &settings, 1);
}

static void sound(void)
{
    world_check(&world);
    cr_assert_null(world.broken, "%s", world.broken);
}

static void golden(const char *name)
{
    static char expected[WORLD_TRACE];
    char path[512];
    sound();
    snprintf(path, sizeof path, "%s/%s.txt", GOLDEN, name);
    if (getenv("UPDATE_GOLDEN") != NULL) {
        FILE *file = fopen(path, "w");
        cr_assert_not_null(file);
        cr_assert_eq(fwrite(world.trace, 1, world.trace_size, file), world.trace_size);
        fclose(file);
    }
    FILE *file = fopen(path, "r");
    cr_assert_not_null(file, "%s is missing", path);
    size_t size = fread(expected, 1, sizeof expected - 1, file);
    fclose(file);
    expected[size] = '\0';
    cr_assert_str_eq(world.trace, expected, "the trace differs from %s:\n%s", path, world.trace);
}

static struct raft *at(raft_node node)
{
    return world_raft(&world, node);
}

/* --- elections --- */

Test(raft, a_group_of_one_leads_at_its_first_tick)
{
    begin(1);
    world_tick(&world, 1, 10);
    cr_assert_eq(at(1)->role, RAFT_LEADER);
    cr_assert_not(raft_serving(at(1)), "nothing is durable yet");
    cr_assert_eq(raft_read_round(at(1)), 0);
    world_flush(&world, 1);
    cr_assert(raft_serving(at(1)));
    uint64_t round = raft_read_round(at(1));
    cr_assert_gt(round, 0);
    cr_assert_geq(at(1)->round_confirmed, round);
    uint64_t index = world_propose(&world, 1);
    cr_assert_eq(at(1)->commit, index - 1);
    world_flush(&world, 1);
    cr_assert_eq(at(1)->commit, index);
    world_crash(&world, 1);
    world_restart(&world, 1);
    world_tick(&world, 1, 0);
    cr_assert_eq(at(1)->role, RAFT_LEADER);
    cr_assert_eq(at(1)->last, index + 1);
    sound();
}

Test(raft, a_leader_is_replaced_and_what_it_had_not_committed_is_too)
{
    begin(3);
    world.tracing = true;
    world_elect(&world, 1);
    world_propose(&world, 1);
    world_settle(&world);
    world_isolate(&world, 1, true);
    world_note(&world, "1 is cut off\n");
    world_propose(&world, 1);
    world_settle(&world);
    world_elect(&world, 2);
    world_propose(&world, 2);
    world_settle(&world);
    world_note(&world, "1 is back\n");
    world_isolate(&world, 1, false);
    world_heartbeat(&world, 2);
    world_settle(&world);
    world_heartbeat(&world, 2);
    world_settle(&world);
    cr_assert_eq(at(1)->role, RAFT_FOLLOWER);
    cr_assert_eq(at(1)->commit, at(2)->commit);
    golden("leader_change");
}

Test(raft, a_leader_brings_all_logs_of_figure_7_in_line)
{
    static const char *const LOGS[] = {
        "1114455666", "111445566", "1114", "11144556666", "111445566677", "1114444", "11122233333"};
    begin(7);
    for (raft_node node = 1; node <= 7; node++) {
        world_give_log(&world, node, LOGS[node - 1], node == 1 ? 9 : 0);
    }
    world.tracing = true;
    world_elect(&world, 1);
    if (at(1)->role != RAFT_LEADER) world_elect(&world, 1);
    cr_assert_eq(at(1)->role, RAFT_LEADER);
    world_heartbeat(&world, 1);
    world_settle(&world);
    for (raft_node node = 2; node <= 7; node++) {
        cr_assert_eq(at(node)->last, at(1)->last);
        for (uint64_t i = 1; i <= at(1)->last; i++) {
            cr_assert_eq(raft_term_at(at(node), i), raft_term_at(at(1), i));
        }
        cr_assert_eq(at(node)->commit, at(1)->last);
    }
    golden("figure_7");
}

Test(raft, an_entry_of_an_earlier_term_is_not_committed_by_counting)
{
    /* Raft, figure 8: (a) S1 leads term 2 and its entry 2 is on S1 and S2 only */
    begin(5);
    world_give_log(&world, 1, "12", 1);
    world_give_log(&world, 2, "12", 1);
    world_give_log(&world, 3, "1", 1);
    world_give_log(&world, 4, "1", 1);
    world_give_log(&world, 5, "13", 1); /* (b) S5 led term 3 */
    world.tracing = true;
    /* (c) S1 leads term 4 and copies entry 2 to S3, but not its own: one entry a message */
    world.batch = 1;
    for (raft_node node = 1; node <= 5; node++) {
        if (at(node)->term < 3) {
            at(node)->term = 3;
            world.nodes[node].term = 3;
        }
    }
    world.cut[1][5] = true;
    world.cut[5][1] = true;
    world_timeout(&world, 1);
    for (raft_node node = 2; node <= 4; node++) {
        while (world_find(&world, RAFT_PREVOTE, 1, node) >= 0) {
            world_deliver(&world, (uint32_t)world_find(&world, RAFT_PREVOTE, 1, node), false);
        }
    }
    while (at(1)->role != RAFT_LEADER) {
        int next = world_find(&world, RAFT_PREVOTE_REPLY, 0, 1);
        if (next < 0) next = world_find(&world, RAFT_VOTE, 1, 0);
        if (next < 0) next = world_find(&world, RAFT_VOTE_REPLY, 0, 1);
        if (next >= 0) world_deliver(&world, (uint32_t)next, false);
        for (raft_node node = 1; next < 0 && node <= 5; node++) {
            world_flush(&world, node);
        }
    }
    cr_assert_eq(at(1)->term, 4);
    /* its own entry reaches nobody; entry 2 reaches S2 and S3 */
    world_isolate(&world, 4, true);
    world_isolate(&world, 5, true);
    for (int i = 0; i < 100 && at(3)->last < 2; i++) {
        int next = world_find(&world, RAFT_APPEND, 1, 3);
        if (next < 0) next = world_find(&world, RAFT_APPEND_REPLY, 3, 1);
        cr_assert_geq(next, 0);
        world_deliver(&world, (uint32_t)next, false);
        world_flush(&world, 3);
    }
    cr_assert_eq(at(3)->last, 2);
    for (int next = 0; next >= 0;) {
        next = world_find(&world, RAFT_APPEND_REPLY, 3, 1);
        if (next >= 0) world_deliver(&world, (uint32_t)next, false);
    }
    /* entry 2 is on S1, S2 and S3 now, a majority, and must not be committed: (d) can still happen */
    while (world_find(&world, RAFT_APPEND, 1, 2) >= 0 && at(2)->last < 3) {
        int next = world_find(&world, RAFT_APPEND, 1, 2);
        if (world.pending[next].count > 0 && world.pending[next].m.index >= 2) {
            world_drop(&world, (uint32_t)next);
            continue;
        }
        world_deliver(&world, (uint32_t)next, false);
        world_flush(&world, 2);
    }
    struct raft_message reply = {
        .type = RAFT_APPEND_REPLY, .from = 2, .to = 1, .term = 4, .index = 2};
    world_send(&world, &reply);
    world_deliver(&world, world.pending_count - 1, false);
    world_flush(&world, 1);
    cr_assert_eq(raft_progress_of(at(1), 2)->match, 2);
    cr_assert_eq(raft_progress_of(at(1), 3)->match, 2);
    cr_assert_eq(at(1)->commit, 1, "entry 2 is of term 2, and term 4 counts");
    /* (e) with an entry of its own term on a majority both are */
    world_settle(&world);
    world_heartbeat(&world, 1);
    world_settle(&world);
    cr_assert_eq(at(1)->commit, 3);
    golden("figure_8");
}

Test(raft, a_node_that_cannot_win_does_not_raise_the_term)
{
    begin(3);
    world_elect(&world, 1);
    world_isolate(&world, 3, true);
    world.tracing = true;
    uint64_t term = at(3)->term;
    for (int i = 0; i < 3; i++) {
        world_timeout(&world, 3);
        world_settle(&world);
    }
    cr_assert_eq(at(3)->term, term);
    world_isolate(&world, 3, false);
    world_timeout(&world, 3);
    world_settle(&world);
    world_heartbeat(&world, 1);
    world_settle(&world);
    cr_assert_eq(at(1)->role, RAFT_LEADER);
    cr_assert_eq(at(1)->term, term);
    cr_assert_eq(at(3)->leader, 1);
    golden("prevote_keeps_the_term");
}

Test(raft, a_leader_without_a_majority_gives_up_its_role)
{
    begin(3);
    world_elect(&world, 1);
    world_run(&world, 300);
    world.tracing = true;
    world_isolate(&world, 1, true);
    cr_assert(raft_quorum_active(at(1)));
    cr_assert_not(raft_quorum_active(at(2)));
    uint64_t ms = 0;
    while (at(1)->role == RAFT_LEADER && ms < 5000) {
        world_tick(&world, 1, 10);
        world.pending_count = 0;
        ms += 10;
    }
    cr_assert_geq(ms, 300);
    cr_assert_leq(ms, 1200, "two windows at most");
    cr_assert_eq(at(1)->leader, 0);
    golden("check_quorum");
}

Test(raft, votes_are_not_given_while_a_leader_is_heard)
{
    begin(3);
    world_elect(&world, 1);
    world_run(&world, 1000);
    uint64_t term = at(1)->term;
    struct raft_message vote = {.type = RAFT_VOTE, .from = 3, .to = 2, .term = term + 5};
    vote.index = 1000;
    vote.log_term = term + 4;
    world_send(&world, &vote);
    vote.to = 1;
    world_send(&world, &vote);
    world_settle(&world);
    cr_assert_eq(at(1)->role, RAFT_LEADER);
    cr_assert_eq(at(2)->term, term, "ignored, the term too");
    vote.forced = true;
    vote.to = 2;
    world_send(&world, &vote);
    world_deliver(&world, 0, false);
    cr_assert_eq(at(2)->term, term + 5);
    cr_assert_eq(at(2)->vote, 3);
}

Test(raft, a_node_alone_with_a_higher_term_is_freed)
{
    begin(3);
    world_elect(&world, 1);
    at(3)->term += 7; /* it voted in an election that came to nothing */
    at(3)->vote = 0;
    at(3)->leader = 0;
    world_run(&world, 4000);
    raft_node leader = world_leader(&world);
    cr_assert_neq(leader, 0);
    cr_assert_geq(at(leader)->term, 8);
    for (raft_node node = 1; node <= 3; node++) {
        cr_assert_eq(at(node)->leader, leader);
    }
    sound();
}

Test(raft, a_vote_outlives_a_crash_only_if_it_was_durable_when_it_was_told)
{
    begin(3);
    world.cut[2][1] = true; /* the answers do not arrive */
    struct raft_message vote = {.type = RAFT_VOTE, .from = 1, .to = 2, .term = 5};
    world_send(&world, &vote);
    world_deliver(&world, 0, false);
    cr_assert_eq(at(2)->vote, 1);
    cr_assert_eq(world.pending_count, 0, "told before it was durable");
    world_crash(&world, 2);
    world_restart(&world, 2);
    cr_assert_eq(at(2)->vote, 0);
    /* nobody was told, so the other one may have it now */
    vote.from = 3;
    world_send(&world, &vote);
    world_deliver(&world, 0, false);
    world_flush(&world, 2);
    cr_assert_eq(world.pending_count, 1);
    cr_assert_not(world.pending[0].m.reject);
    world_crash(&world, 2);
    world_restart(&world, 2);
    cr_assert_eq(at(2)->vote, 3);
    vote.from = 1;
    world_send(&world, &vote);
    world_deliver(&world, 1, false);
    cr_assert_eq(at(2)->vote, 3);
    cr_assert(world.pending[1].m.reject);
    sound();
}

Test(raft, a_node_votes_once_in_a_term)
{
    begin(3);
    struct raft_message vote = {.type = RAFT_VOTE, .from = 1, .to = 2, .term = 5};
    world_send(&world, &vote);
    vote.from = 3;
    world_send(&world, &vote);
    world_deliver(&world, 0, false);
    world_deliver(&world, 0, false);
    world_flush(&world, 2);
    cr_assert_eq(world.pending_count, 2);
    cr_assert_neq(world.pending[0].m.reject, world.pending[1].m.reject);
    sound();
}

Test(raft, the_term_of_an_entry_is_known_even_if_its_record_of_the_term_is_lost)
{
    struct raft_settings settings = world_settings();
    struct raft_restore restore = {
        .term = 2, .vote = 3, .first = 11, .first_term = 4, .commit = 10};
    restore.config = world_config("123", "", "");
    raft_init(at(1), 1, &settings, &restore, 1, 1000);
    cr_assert_eq(at(1)->term, 4);
    cr_assert_eq(at(1)->vote, 0);
    at(1)->vote = 2;
    raft_restore_entry(at(1), 9, 2, NULL); /* the store has it already */
    raft_restore_entry(at(1), 11, 4, NULL);
    cr_assert_eq(at(1)->vote, 2);
    raft_restore_entry(at(1), 12, 6, NULL);
    cr_assert_eq(at(1)->term, 6);
    cr_assert_eq(at(1)->vote, 0);
    raft_restore_entry(at(1), 12, 7, NULL);
    cr_assert_eq(at(1)->last, 12);
    cr_assert_eq(raft_term_at(at(1), 12), 7);
    cr_assert_eq(raft_term_at(at(1), 10), 4);
    cr_assert_eq(raft_term_at(at(1), 9), 0);
    cr_assert_eq(raft_term_at(at(1), 13), 0);
    raft_restore_commit(at(1), 11);
    cr_assert_eq(at(1)->commit, 11);
}

Test(raft, an_installed_snapshot_replaces_a_log_that_lacks_it_and_leaves_one_that_has_it)
{
    begin(3);
    world_give_log(&world, 2, "11222", 1);
    struct raft_config config = world_config("12", "", "3");
    raft_installed(at(2), 3, 2, &config, 2);
    cr_assert_eq(at(2)->last, 5, "what follows it stays");
    cr_assert_eq(at(2)->commit, 3);
    cr_assert_eq(at(2)->config.voter_count, 3, "the log knows");
    world_timeout(&world, 2);
    cr_assert_eq(at(2)->role, RAFT_PRECANDIDATE);
    raft_installed(at(2), 4, 9, &config, 2);
    cr_assert_eq(at(2)->role, RAFT_FOLLOWER);
    cr_assert_eq(at(2)->term, 9);
    cr_assert(at(2)->hard_changed);
    cr_assert_eq(at(2)->last, 4);
    cr_assert_eq(at(2)->first, 5);
    cr_assert_eq(at(2)->commit, 4);
    cr_assert(raft_config_equal(&at(2)->config, &config));
    raft_installed(at(2), 2, 1, &config, 2); /* an older one that came late */
    cr_assert_eq(at(2)->commit, 4);
}

Test(raft, a_learner_votes_if_it_is_asked)
{
    /* its log may lack the configuration that makes it a voter */
    begin(3);
    world_elect(&world, 1);
    world_add_node(&world, 4);
    world_propose_config(&world, 1, world_config("123", "", "4"));
    world_settle(&world);
    at(4)->leader = 0;
    struct raft_message vote = {.type = RAFT_VOTE, .from = 2, .to = 4, .term = 9, .index = 50};
    vote.log_term = 8;
    world_send(&world, &vote);
    world_deliver(&world, 0, false);
    cr_assert_eq(at(4)->vote, 2);
    world_timeout(&world, 4);
    cr_assert_eq(at(4)->role, RAFT_FOLLOWER);
}

Test(raft, a_log_that_is_behind_gets_no_vote)
{
    begin(3);
    world_give_log(&world, 1, "112", 0);
    world_give_log(&world, 2, "1111", 0);
    world_give_log(&world, 3, "112", 0);
    world_elect(&world, 2);
    cr_assert_neq(at(2)->role, RAFT_LEADER, "longer, but of an older term");
    world_elect(&world, 1);
    cr_assert_eq(at(1)->role, RAFT_LEADER);
    sound();
}

Test(raft, a_hint_that_the_leader_is_down_makes_an_election_fast)
{
    begin(3);
    world_elect(&world, 1);
    world_run(&world, 500);
    world_crash(&world, 1);
    raft_hint_down(at(2), 1);
    raft_hint_down(at(3), 1);
    world_run(&world, 110);
    raft_node leader = world_leader(&world);
    cr_assert(leader == 2 || leader == 3);
    sound();
}

Test(raft, a_false_hint_costs_nothing)
{
    begin(3);
    world_elect(&world, 1);
    world_run(&world, 500);
    uint64_t term = at(1)->term;
    for (int i = 0; i < 10; i++) {
        raft_hint_down(at(2), 1);
        world_run(&world, 150);
    }
    cr_assert_eq(world_leader(&world), 1);
    cr_assert_eq(at(2)->term, term);
    cr_assert_eq(at(2)->leader, 1);
}

Test(raft, a_faulty_replica_neither_votes_nor_campaigns)
{
    begin(3);
    raft_set_faulty(at(3), true);
    world_isolate(&world, 2, true);
    world_run(&world, 3000);
    cr_assert_eq(world_leader(&world), 0, "1 alone has no majority");
    cr_assert_eq(at(3)->term, 0);
    world_isolate(&world, 2, false);
    world_run(&world, 3000);
    raft_node leader = world_leader(&world);
    cr_assert(leader == 1 || leader == 2);
    cr_assert_eq(at(3)->leader, leader);
    sound();
}

/* --- transfer --- */

Test(raft, a_transfer_waits_for_the_log_and_needs_no_time_out)
{
    begin(3);
    world_elect(&world, 1);
    world_run(&world, 300);
    world_propose(&world, 1);
    world.tracing = true;
    cr_assert(raft_transfer(at(1), 2));
    world_ready(&world, 1);
    cr_assert_eq(world_find(&world, RAFT_TIMEOUT_NOW, 1, 2), -1, "2 lacks an entry");
    cr_assert_eq(world_propose(&world, 1), 0);
    world_settle(&world);
    cr_assert_eq(at(2)->role, RAFT_LEADER);
    cr_assert_eq(at(1)->leader, 2);
    golden("transfer");
}

Test(raft, a_transfer_to_a_dead_node_ends)
{
    begin(3);
    world_elect(&world, 1);
    world_isolate(&world, 2, true);
    world_propose(&world, 1);
    world_settle(&world);
    cr_assert(raft_transfer(at(1), 2));
    world_run(&world, 700);
    cr_assert_eq(at(1)->role, RAFT_LEADER);
    cr_assert_neq(world_propose(&world, 1), 0);
    cr_assert_not(raft_transfer(at(1), 9), "not in the group");
    cr_assert_not(raft_transfer(at(2), 1), "not the leader");
    sound();
}

/* --- configurations --- */

Test(raft, a_learner_is_never_counted)
{
    begin(3);
    world_elect(&world, 1);
    world_add_node(&world, 4);
    world_add_node(&world, 5);
    cr_assert_neq(world_propose_config(&world, 1, world_config("123", "", "45")), 0);
    world_settle(&world);
    cr_assert_eq(at(4)->last, at(1)->last);
    uint64_t commit = at(1)->commit;
    world_isolate(&world, 2, true);
    world_isolate(&world, 3, true);
    world_propose(&world, 1);
    world_settle(&world);
    cr_assert_eq(raft_progress_of(at(1), 4)->match, at(1)->last);
    cr_assert_eq(raft_progress_of(at(1), 5)->match, at(1)->last);
    cr_assert_eq(at(1)->commit, commit);
    uint64_t round = raft_read_round(at(1));
    world_ready(&world, 1);
    world_heartbeat(&world, 1);
    world_settle(&world);
    cr_assert_lt(at(1)->round_confirmed, round);
    world_timeout(&world, 4);
    world_settle(&world);
    cr_assert_eq(at(4)->role, RAFT_FOLLOWER);
    sound();
}

Test(raft, while_joint_both_majorities_decide)
{
    begin(3);
    world_elect(&world, 1);
    for (raft_node node = 4; node <= 5; node++) {
        world_add_node(&world, node);
    }
    world_propose_config(&world, 1, world_config("123", "", "45"));
    world_settle(&world);
    uint64_t before = at(1)->commit;
    world.tracing = true;
    world.leave_joint = false;
    /* old 1 2 3, new 1 4 5 */
    world_isolate(&world, 2, true);
    world_isolate(&world, 3, true);
    cr_assert_neq(world_propose_config(&world, 1, world_config("145", "123", "")), 0);
    world_settle(&world);
    cr_assert_eq(at(1)->commit, before, "a majority of the new one alone");
    world_isolate(&world, 2, false);
    world_isolate(&world, 3, false);
    world_isolate(&world, 4, true);
    world_isolate(&world, 5, true);
    world_propose(&world, 1);
    world_run(&world, 350);
    uint64_t index = at(1)->config_index;
    cr_assert_eq(at(1)->commit, index, "the first answers were those of 4 and 5");
    world_isolate(&world, 4, false);
    world_run(&world, 350);
    cr_assert_eq(at(1)->commit, at(1)->last);
    world.leave_joint = true;
    world_run(&world, 350);
    cr_assert_eq(at(1)->config.old_count, 0);
    cr_assert_eq(at(1)->commit, at(1)->last);
    golden("joint");
}

Test(raft, a_leader_that_is_removed_goes_when_that_is_committed)
{
    begin(3);
    world_elect(&world, 1);
    world_run(&world, 200);
    world.tracing = true;
    cr_assert_neq(world_propose_config(&world, 1, world_config("23", "", "")), 0);
    cr_assert_eq(at(1)->role, RAFT_LEADER);
    world_settle(&world);
    cr_assert_neq(at(1)->role, RAFT_LEADER);
    raft_node leader = world_leader(&world);
    cr_assert(leader == 2 || leader == 3);
    world_run(&world, 3000);
    cr_assert_eq(world_leader(&world), leader, "the removed one disturbs nobody");
    golden("removed_leader");
}

Test(raft, a_configuration_that_is_truncated_is_taken_back)
{
    begin(3);
    world_elect(&world, 1);
    world_add_node(&world, 4);
    world_isolate(&world, 1, true);
    world.tracing = true;
    cr_assert_neq(world_propose_config(&world, 1, world_config("1234", "", "")), 0);
    world_settle(&world);
    cr_assert_eq(at(1)->config.voter_count, 4);
    world_crash(&world, 1);
    world_restart(&world, 1);
    cr_assert_eq(at(1)->config.voter_count, 4, "it is in the log");
    world_elect(&world, 2);
    world_isolate(&world, 1, false);
    world_heartbeat(&world, 2);
    world_settle(&world);
    cr_assert_eq(at(1)->config.voter_count, 3);
    cr_assert_null(raft_progress_of(at(1), 4));
    golden("config_rollback");
}

Test(raft, one_change_at_a_time_and_none_before_an_own_entry_is_committed)
{
    begin(3);
    world_timeout(&world, 1);
    while (at(1)->role != RAFT_LEADER) {
        if (world.pending_count > 0) world_deliver(&world, 0, false);
        for (raft_node node = 1; node <= 3; node++) {
            if (at(1)->role != RAFT_LEADER) world_flush(&world, node);
        }
    }
    cr_assert_eq(world_propose_config(&world, 1, world_config("12", "", "")), 0);
    world_settle(&world);
    cr_assert_neq(world_propose_config(&world, 1, world_config("12", "", "")), 0);
    cr_assert_eq(world_propose_config(&world, 1, world_config("1", "", "")), 0);
    world_settle(&world);
    cr_assert_neq(world_propose_config(&world, 1, world_config("1", "", "")), 0);
    world_settle(&world);
    cr_assert_eq(at(1)->commit, at(1)->last);
    sound();
}

Test(raft, two_voters_at_once_without_a_joint_step_is_a_bug, .signal = SIGABRT)
{
    begin(3);
    world_elect(&world, 1);
    world_propose_config(&world, 1, world_config("12345", "", ""));
}

Test(raft, configurations_survive_their_encoding)
{
    uint8_t bytes[RAFT_CONFIG_BYTES_MAX];
    struct raft_config config = world_config("1359", "234", "78");
    struct raft_config decoded;
    size_t size = raft_config_encode(bytes, &config);
    cr_assert_eq(raft_config_decode(bytes_of(bytes, size), &decoded), OK);
    cr_assert(raft_config_equal(&config, &decoded));
    for (size_t cut = 0; cut < size; cut++) {
        cr_assert_eq(raft_config_decode(bytes_of(bytes, cut), &decoded), ERR_CORRUPT);
    }
    bytes[4] = 5; /* 5 3 5 9 */
    cr_assert_eq(raft_config_decode(bytes_of(bytes, size), &decoded), ERR_CORRUPT, "not sorted");
    bytes[4] = 1;
    bytes[size - 2] = 9; /* a learner that is a voter */
    cr_assert_eq(raft_config_decode(bytes_of(bytes, size), &decoded), ERR_CORRUPT);
    struct raft_config full = {0};
    for (raft_node i = 0; i < RAFT_LEARNERS_MAX; i++) {
        full.learners[i] = (raft_node)(i + 100);
        if (i >= RAFT_VOTERS_MAX) continue;
        full.voters[i] = (raft_node)(i + 1);
        full.old_voters[i] = (raft_node)(i + 50);
    }
    full.voter_count = full.old_count = RAFT_VOTERS_MAX;
    full.learner_count = RAFT_LEARNERS_MAX;
    cr_assert_leq(raft_config_encode(bytes, &full), sizeof bytes);
}

static bool has_below_four(void *ctx, raft_node node)
{
    (void)ctx;
    return node < 4;
}

Test(raft, a_majority_is_more_than_half_of_each_set)
{
    struct raft_config config = world_config("123456", "", "");
    cr_assert_not(raft_config_majority(&config, has_below_four, NULL));
    config = world_config("12345", "", "");
    cr_assert(raft_config_majority(&config, has_below_four, NULL));
    config = world_config("123", "145", "");
    cr_assert_not(raft_config_majority(&config, has_below_four, NULL));
    config = world_config("145", "123", "");
    cr_assert_not(raft_config_majority(&config, has_below_four, NULL));
    config = world_config("", "", "");
    cr_assert_not(raft_config_majority(&config, has_below_four, NULL));
}

/* --- replication --- */

Test(raft, an_old_append_never_shortens_the_log)
{
    begin(3);
    world_elect(&world, 1);
    for (int i = 0; i < 6; i++) {
        world_propose(&world, 1);
    }
    int position;
    while ((position = world_find(&world, RAFT_APPEND, 1, 2)) >= 0) {
        world_deliver(&world, (uint32_t)position, false);
    }
    cr_assert_eq(at(2)->last, 7);
    cr_assert_eq(at(2)->commit, 1);
    /* the first of them once more, and an empty one */
    struct raft_message old = {.type = RAFT_APPEND, .from = 1, .to = 2, .term = 1, .index = 1};
    old.log_term = 1;
    uint64_t term = 1;
    struct raft_accept accept;
    for (uint32_t count = 0; count < 2; count++) {
        raft_step(at(2), &old, &term, NULL, count, &accept);
        cr_assert_eq(at(2)->last, 7);
        cr_assert_gt(accept.first, accept.last);
        cr_assert_not(accept.truncates);
    }
    world_ready(&world, 2);
    world_settle(&world);
    cr_assert_eq(at(1)->commit, at(1)->last);
    sound();
}

Test(raft, a_heartbeat_does_not_commit_what_may_not_match)
{
    begin(3);
    world_give_log(&world, 1, "11", 2);
    world_give_log(&world, 2, "11", 2);
    world_give_log(&world, 3, "1222", 0); /* of a leader that failed; 3 of them not ours */
    at(1)->term = at(2)->term = 2;
    world_isolate(&world, 3, true);
    world_elect(&world, 1);
    cr_assert_eq(at(1)->role, RAFT_LEADER);
    cr_assert_eq(at(1)->commit, 3);
    world_isolate(&world, 3, false);
    world_heartbeat(&world, 1);
    while (world_find(&world, RAFT_HEARTBEAT, 1, 3) >= 0) {
        world_deliver(&world, (uint32_t)world_find(&world, RAFT_HEARTBEAT, 1, 3), false);
    }
    cr_assert_eq(at(3)->commit, 0);
    world_settle(&world);
    cr_assert_eq(at(3)->last, 3);
    sound();
}

Test(raft, a_peer_is_probed_then_fed_and_gets_a_snapshot_when_the_log_is_gone)
{
    begin(3);
    world_elect(&world, 1);
    world_isolate(&world, 3, true);
    for (int i = 0; i < 5; i++) {
        world_propose(&world, 1);
    }
    world_settle(&world);
    cr_assert_eq(raft_progress_of(at(1), 2)->state, RAFT_REPLICATE);
    raft_compact(at(1), at(1)->commit - 1);
    cr_assert_eq(at(1)->first, at(1)->commit);
    cr_assert_eq(raft_term_at(at(1), 1), 0);
    world.tracing = true;
    world.slow_snapshots = true;
    at(1)->settings.election_ms = 600;
    world_run(&world, 700); /* nothing goes on to a peer that is not there */
    world_isolate(&world, 3, false);
    world_run(&world, 300);
    cr_assert_eq(raft_progress_of(at(1), 3)->state, RAFT_SNAPSHOT);
    /* it failed: probed again, and begun again */
    raft_snapshot_end(at(1), 3, false, 0);
    cr_assert_eq(raft_progress_of(at(1), 3)->state, RAFT_PROBE);
    world.slow_snapshots = false;
    world_run(&world, 300);
    cr_assert_eq(raft_progress_of(at(1), 3)->state, RAFT_REPLICATE);
    cr_assert_eq(at(3)->last, at(1)->last);
    cr_assert_eq(at(3)->commit, at(1)->commit);
    golden("probe_replicate_snapshot");
}

Test(raft, the_snapshot_state_ends_when_an_append_reply_reaches_the_log)
{
    begin(3);
    world_elect(&world, 1);
    world_isolate(&world, 3, true);
    for (int i = 0; i < 5; i++) {
        world_propose(&world, 1);
    }
    world_settle(&world);
    raft_snapshot_begin(at(1), 3, at(1)->commit);
    struct raft_append append;
    cr_assert_not(raft_append_next(at(1), 3, &append));
    world_isolate(&world, 3, false);
    /* the snapshot's index came to it in another way: another leader's append, answered to us */
    struct raft_message reply = {
        .type = RAFT_APPEND_REPLY, .from = 3, .to = 1, .term = at(1)->term};
    reply.index = at(1)->commit;
    world_send(&world, &reply);
    world_deliver(&world, 0, false);
    cr_assert_eq(raft_progress_of(at(1), 3)->state, RAFT_REPLICATE);
}

Test(raft, the_snapshot_state_of_a_silent_peer_ends)
{
    begin(3);
    world_elect(&world, 1);
    world_isolate(&world, 3, true);
    world_propose(&world, 1);
    world_settle(&world);
    raft_snapshot_begin(at(1), 3, at(1)->commit);
    world_run(&world, 9900);
    cr_assert_eq(raft_progress_of(at(1), 3)->state, RAFT_SNAPSHOT);
    world_run(&world, 200);
    cr_assert_eq(raft_progress_of(at(1), 3)->state, RAFT_PROBE);
}

Test(raft, what_is_in_flight_is_limited)
{
    struct raft_settings settings = world_settings();
    settings.inflight_messages = 40;
    world_init(&world, 3, &settings, 1);
    world_elect(&world, 1);
    world_isolate(&world, 2, true);
    world.batch = 1;
    for (int i = 0; i < 60; i++) {
        world_propose(&world, 1);
    }
    const struct raft_progress *peer = raft_progress_of(at(1), 3);
    cr_assert_eq(peer->inflight_count, 40);
    cr_assert_eq(peer->inflight_bytes, 4000);
    cr_assert_eq(peer->inflight_used, 32, "the rest is summed up in the newest");
    uint64_t sent = peer->next - 1;
    struct raft_append append;
    cr_assert_not(raft_append_next(at(1), 3, &append));
    struct raft_message reply = {
        .type = RAFT_APPEND_REPLY, .from = 3, .to = 1, .term = at(1)->term};
    reply.index = peer->match + 1;
    world.pending_count = 0;
    world_send(&world, &reply);
    world_deliver(&world, 0, false);
    cr_assert_eq(peer->next, sent + 2, "room for one");
    cr_assert_eq(peer->inflight_count, 40);
    cr_assert(peer->inflight_used == 32);
    at(1)->settings.inflight_messages = 256;
    at(1)->settings.inflight_bytes = 4000;
    cr_assert_not(raft_append_next(at(1), 3, &append), "nor more bytes");
}

Test(raft, a_lost_append_is_sent_again)
{
    begin(3);
    world_elect(&world, 1);
    world_run(&world, 300);
    world_propose(&world, 1);
    int position = world_find(&world, RAFT_APPEND, 1, 3);
    cr_assert_geq(position, 0);
    world_drop(&world, (uint32_t)position);
    world_settle(&world);
    cr_assert_lt(at(3)->last, at(1)->last);
    cr_assert_eq(raft_progress_of(at(1), 3)->state, RAFT_REPLICATE);
    world_run(&world, 500);
    cr_assert_eq(at(3)->last, at(1)->last);
    /* one that arrived, but the answer did not: it is asked for, not sent once more */
    world_propose(&world, 1);
    world_deliver(&world, (uint32_t)world_find(&world, RAFT_APPEND, 1, 3), false);
    world_flush(&world, 3);
    world_drop(&world, (uint32_t)world_find(&world, RAFT_APPEND_REPLY, 3, 1));
    world_settle(&world);
    cr_assert_lt(raft_progress_of(at(1), 3)->match, at(1)->last);
    world.tracing = true;
    world_run(&world, 500);
    world.tracing = false;
    cr_assert_eq(raft_progress_of(at(1), 3)->match, at(1)->last);
    cr_assert_not_null(strstr(world.trace, "1>3 APPEND t1"));
    cr_assert_null(strstr(world.trace, "terms"), "%s", world.trace);
    /* and in a chain of many the gap shows by itself */
    for (int i = 0; i < 4; i++) {
        world_propose(&world, 1);
        if (i == 1) world_drop(&world, (uint32_t)world_find(&world, RAFT_APPEND, 1, 3));
    }
    world_settle(&world);
    cr_assert_eq(at(3)->last, at(1)->last);
    sound();
}

Test(raft, a_write_that_was_overtaken_is_not_taken_for_durable)
{
    /* the log of 1 when its record of (6, term 1) ends at last: 5 is of term 2, 6 is a new one of term 3 */
    begin(3);
    world_elect(&world, 1);
    for (int i = 0; i < 3; i++) {
        world_propose(&world, 1);
    }
    world_settle(&world);
    cr_assert_eq(at(1)->last, 4);
    world_isolate(&world, 1, true);
    world_propose(&world, 1);
    world_propose(&world, 1); /* 5 and 6 of term 1 are being written */
    world.pending_count = 0;
    struct raft_message append = {.type = RAFT_APPEND, .from = 2, .to = 1, .term = 2};
    append.index = 4;
    append.log_term = 1;
    uint64_t term = 2;
    struct raft_accept accept;
    raft_step(at(1), &append, &term, NULL, 1, &accept);
    cr_assert_eq(accept.first, 5);
    cr_assert(accept.truncates);
    raft_ready_clear(at(1));
    at(1)->role = RAFT_PRECANDIDATE;
    at(1)->leader = 0;
    struct raft_message yes = {.type = RAFT_PREVOTE_REPLY, .from = 3, .to = 1, .term = 3};
    raft_step(at(1), &yes, NULL, NULL, 0, &accept);
    yes.type = RAFT_VOTE_REPLY;
    raft_step(at(1), &yes, NULL, NULL, 0, &accept);
    cr_assert_eq(at(1)->role, RAFT_LEADER);
    cr_assert_eq(at(1)->noop_index, 6);
    raft_ready_clear(at(1));
    raft_persisted(at(1), 6, 1);
    raft_persisted(at(1), 5, 2);
    cr_assert_leq(at(1)->persisted, 4);
    struct raft_message reply = {
        .type = RAFT_APPEND_REPLY, .from = 3, .to = 1, .term = 3, .index = 6};
    raft_step(at(1), &reply, NULL, NULL, 0, &accept);
    cr_assert_eq(at(1)->commit, 4, "6 is durable on 3 only");
    raft_persisted(at(1), 6, 3);
    cr_assert_eq(at(1)->commit, 6);
}

Test(raft, a_leader_that_contradicts_a_committed_entry_is_noticed)
{
    begin(3);
    world_elect(&world, 1);
    world_propose(&world, 1);
    world_settle(&world);
    world_heartbeat(&world, 1);
    world_settle(&world);
    cr_assert_eq(at(2)->commit, 2);
    struct raft_message append = {.type = RAFT_APPEND, .from = 3, .to = 2, .term = 9, .index = 1};
    append.log_term = 1;
    uint64_t term = 7;
    struct raft_accept accept;
    raft_step(at(2), &append, &term, NULL, 1, &accept);
    cr_assert(at(2)->diverged);
    cr_assert_eq(at(2)->last, 2);
    cr_assert_gt(accept.first, accept.last);
}

Test(raft, nonsense_from_a_peer_does_no_harm)
{
    begin(3);
    world_elect(&world, 1);
    world_propose(&world, 1);
    world_settle(&world);
    struct raft_accept accept;
    uint64_t seed = 7;
    for (int i = 0; i < 200000; i++) {
        uint64_t words[8];
        for (int k = 0; k < 8; k++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            words[k] = seed >> 33;
        }
        raft_node node = (raft_node)(1 + words[0] % 3);
        struct raft *raft = at(node);
        struct raft_message m = {
            .type = (uint8_t)(words[1] % 15), .from = (raft_node)(words[2] % 5)};
        m.to = node;
        m.reject = words[3] % 2;
        m.term = raft->term - 1 + words[3] / 2 % 3;
        m.index = words[4] % 4 == 0 ? UINT64_MAX - words[4] % 7 : words[4] % (raft->last + 3);
        m.log_term = words[5] % (raft->term + 1);
        m.hint = words[5] % 3 == 0 ? UINT64_MAX : words[5] % 9;
        m.commit = words[6] % 3 == 0 ? UINT64_MAX : 0;
        m.round = words[6] % 5;
        uint64_t terms[3] = {words[7] % 9, words[7] % 11, words[7] % 13};
        if (raft->diverged) raft->diverged = false;
        if (raft->last > 400) break;
        raft_step(raft, &m, terms, NULL, (uint32_t)(words[7] % 4), &accept);
        raft_ready_clear(raft);
    }
}

Test(raft, many_terms_in_the_log_give_up_the_oldest)
{
    begin(1);
    for (int i = 0; i < 100; i++) {
        world_tick(&world, 1, 2000);
        cr_assert_eq(at(1)->role, RAFT_LEADER);
        world_flush(&world, 1);
        cr_assert_eq(at(1)->commit, at(1)->last);
        raft_step_down(at(1));
    }
    cr_assert_eq(at(1)->last, 100);
    cr_assert_gt(at(1)->first, 60);
    for (uint64_t i = at(1)->first - 1; i <= 100; i++) {
        cr_assert_eq(raft_term_at(at(1), i), i);
    }
    sound();
}

Test(raft, a_log_of_too_many_uncommitted_terms_takes_no_more)
{
    begin(3);
    struct raft_message append = {.type = RAFT_APPEND, .from = 1, .to = 2, .term = 100};
    uint64_t terms[50];
    for (uint64_t i = 0; i < 50; i++) {
        terms[i] = i + 1;
    }
    struct raft_accept accept;
    raft_step(at(2), &append, terms, NULL, 50, &accept);
    cr_assert_eq(accept.last, RAFT_TERM_RUNS - 1);
    cr_assert_eq(at(2)->messages[0].index, accept.last, "and says so");
    raft_ready_clear(at(2));
    append.index = append.log_term = accept.last;
    raft_step(at(2), &append, terms + append.index, NULL, 1, &accept);
    cr_assert_gt(accept.first, accept.last);
    cr_assert_not(accept.truncates);
    raft_ready_clear(at(2));
    append.commit = 20;
    raft_step(at(2), &append, NULL, NULL, 0, &accept);
    cr_assert_eq(at(2)->commit, 20);
    raft_ready_clear(at(2));
    raft_step(at(2), &append, terms + append.index, NULL, 15, &accept);
    cr_assert_eq(accept.last, append.index + 15);
}

/* --- reads --- */

Test(raft, a_read_waits_for_a_majority)
{
    begin(3);
    world_elect(&world, 1);
    world_heartbeat(&world, 1);
    world_settle(&world);
    world.tracing = true;
    world_isolate(&world, 2, true);
    uint64_t round = raft_read_round(at(1));
    cr_assert_gt(round, 0);
    cr_assert_lt(at(1)->round_confirmed, round);
    world_ready(&world, 1);
    cr_assert_geq(world_find(&world, RAFT_HEARTBEAT, 1, 3), 0, "sent at once");
    uint64_t later = raft_read_round(at(1));
    cr_assert_gt(later, round, "it may have come after the heartbeats left");
    cr_assert_eq(raft_read_round(at(1)), later, "these two share one");
    world_ready(&world, 1);
    world_settle(&world);
    cr_assert_geq(at(1)->round_confirmed, later);
    world_isolate(&world, 3, true);
    round = raft_read_round(at(1));
    world_ready(&world, 1);
    world_heartbeat(&world, 1);
    world_settle(&world);
    cr_assert_lt(at(1)->round_confirmed, round, "nobody answers");
    golden("read_rounds");
}

Test(raft, no_reads_before_an_own_entry_is_committed)
{
    begin(3);
    world_elect(&world, 1);
    world_propose(&world, 1);
    world_settle(&world);
    /* 2 is elected; it has all entries, but may not know which of them are committed */
    world_isolate(&world, 1, true);
    world_timeout(&world, 2);
    while (at(2)->role != RAFT_LEADER) {
        if (world.pending_count > 0) world_deliver(&world, 0, false);
        for (raft_node node = 2; node <= 3; node++) {
            if (at(2)->role != RAFT_LEADER) world_flush(&world, node);
        }
        at(3)->heard_ms = 0;
    }
    cr_assert_lt(at(2)->commit, at(1)->commit);
    cr_assert_eq(raft_read_round(at(2)), 0);
    world_settle(&world);
    cr_assert_neq(raft_read_round(at(2)), 0);
}

Test(raft, a_deposed_leader_confirms_no_read)
{
    begin(3);
    world_elect(&world, 1);
    world_isolate(&world, 1, true);
    uint64_t round = raft_read_round(at(1));
    world_ready(&world, 1);
    world.pending_count = 0;
    world_elect(&world, 2);
    world_isolate(&world, 1, false);
    /* answers of the new term do not count for the old one's round */
    struct raft_message reply = {.type = RAFT_HEARTBEAT_REPLY, .from = 2, .to = 1, .round = round};
    reply.term = at(2)->term;
    world_send(&world, &reply);
    world_deliver(&world, 0, false);
    cr_assert_lt(at(1)->round_confirmed, round);
    cr_assert_eq(at(1)->role, RAFT_FOLLOWER);
    cr_assert_eq(raft_read_round(at(1)), 0);
    sound();
}

Test(raft, a_follower_asks_the_leader_for_an_index)
{
    begin(3);
    world_elect(&world, 1);
    world_propose(&world, 1);
    world_settle(&world);
    struct raft_message ask = {.type = RAFT_READ_INDEX, .from = 3, .to = 1, .round = 77};
    ask.term = at(3)->term;
    world_send(&world, &ask);
    world_deliver(&world, 0, false);
    cr_assert_eq(world.read_replies, 0, "not before a majority was heard");
    world_settle(&world);
    cr_assert_eq(world.read_replies, 1);
    cr_assert_eq(world.read_reply.round, 77);
    cr_assert_eq(world.read_reply.index, at(1)->commit);
    cr_assert_not(world.read_reply.reject);
    ask.to = 2;
    world_send(&world, &ask);
    world_settle(&world);
    cr_assert(world.read_reply.reject, "2 does not lead");
    /* the role ends while one waits */
    ask.to = 1;
    world_send(&world, &ask);
    world_deliver(&world, 0, false);
    ask.round = 78;
    world_send(&world, &ask);
    world_deliver(&world, world.pending_count - 1, false);
    int position = world_find(&world, RAFT_HEARTBEAT, 1, 3);
    cr_assert_geq(position, 0);
    world_deliver(&world, (uint32_t)position, false);
    world_deliver(&world, (uint32_t)world_find(&world, RAFT_HEARTBEAT_REPLY, 3, 1), false);
    cr_assert_eq(world.read_replies, 3, "the second one came after that round");
    cr_assert_eq(world.read_reply.round, 77);
    raft_step_down(at(1));
    world_ready(&world, 1);
    cr_assert(world.read_reply.reject);
    cr_assert_eq(world.read_reply.round, 78);
    cr_assert_eq(world.read_reply.to, 3);
    cr_assert_eq(world.read_replies, 4);
}

Test(raft, a_lease_counts_from_the_moment_a_round_was_sent)
{
    begin_with_leases(3);
    cr_assert_eq(at(1)->no_vote_before_ms, at(1)->now_ms + 600);
    world_run(&world, 3000);
    raft_node leader = world_leader(&world);
    cr_assert_neq(leader, 0);
    struct raft *raft = at(leader);
    cr_assert(raft_lease_valid(raft, raft->now_ms));
    /* a round sent now, answered much later */
    raft_drop_lease(raft);
    cr_assert_not(raft_lease_valid(raft, raft->now_ms));
    uint64_t sent_ms = raft->now_ms;
    cr_assert_neq(raft_read_round(raft), 0);
    world_ready(&world, leader);
    for (int i = 0; i < 5; i++) {
        raft_tick(raft, raft->now_ms + 10);
    }
    world_settle(&world);
    cr_assert_eq(raft->lease_until_ms, sent_ms + 540);
    cr_assert(raft_lease_valid(raft, sent_ms + 539));
    cr_assert_not(raft_lease_valid(raft, sent_ms + 540));
    raft_node follower = leader == 1 ? 2 : 1;
    cr_assert_not(raft_lease_valid(at(follower), at(follower)->now_ms));
    raft_hint_down(at(follower), leader);
    cr_assert_eq(at(follower)->leader, leader, "no fast elections with leases");
}

Test(raft, answers_to_a_round_from_before_do_not_bring_a_dropped_lease_back)
{
    begin_with_leases(3);
    world_run(&world, 3000);
    raft_node leader = world_leader(&world);
    world_heartbeat(&world, leader);
    raft_drop_lease(at(leader));
    world_settle(&world);
    cr_assert_not(raft_lease_valid(at(leader), at(leader)->now_ms));
    world_heartbeat(&world, leader);
    world_settle(&world);
    cr_assert(raft_lease_valid(at(leader), at(leader)->now_ms));
}

Test(raft, a_transfer_ends_the_lease_for_the_whole_term)
{
    begin_with_leases(3);
    world_run(&world, 3000);
    raft_node leader = world_leader(&world);
    raft_node target = leader == 1 ? 2 : 1;
    cr_assert(raft_transfer(at(leader), target));
    world_ready(&world, leader);
    cr_assert_not(raft_lease_valid(at(leader), at(leader)->now_ms));
    int position = world_find(&world, RAFT_TIMEOUT_NOW, leader, target);
    cr_assert_geq(position, 0);
    static struct world_message late;
    late = world.pending[position];
    world_drop(&world, (uint32_t)position);
    world_run(&world, 1500);
    cr_assert_eq(world_leader(&world), leader);
    cr_assert_not(raft_lease_valid(at(leader), at(leader)->now_ms), "it may still arrive");
    world_send(&world, &late.m);
    world_settle(&world);
    cr_assert_eq(world_leader(&world), target);
    sound();
}

Test(raft, with_leases_a_restarted_node_does_not_vote_at_once)
{
    begin_with_leases(3);
    world_run(&world, 3000);
    raft_node leader = world_leader(&world);
    raft_node voter = leader == 1 ? 2 : 1;
    raft_node other = (raft_node)(6 - leader - voter);
    world_isolate(&world, leader, true);
    world_crash(&world, voter);
    world_restart(&world, voter);
    world_crash(&world, other);
    world_restart(&world, other);
    uint64_t until_ms = at(leader)->lease_until_ms;
    at(other)->no_vote_before_ms = 0; /* this one would ask at once */
    world_timeout(&world, other);
    world_settle(&world);
    cr_assert_neq(at(other)->role, RAFT_LEADER);
    while (world_leader(&world) == leader && at(leader)->now_ms < until_ms) {
        world_run(&world, 10);
        cr_assert_neq(at(other)->role, RAFT_LEADER);
        cr_assert_neq(at(voter)->role, RAFT_LEADER);
    }
}
