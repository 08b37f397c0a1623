#include <criterion/criterion.h>

#include "cluster/swim/swim.h"
#include "cluster/swim/wire.h"

/* One node, 1, and packets made by hand. */

enum { SELF = 1, PEERS = 4 }; /* members 1..5 */
#define BOOT (UINT64_C(7) << 16)

static struct swim swim;
static uint64_t now_ms;

static void open_with(const struct swim_settings *settings, unsigned peers)
{
    now_ms = 1000;
    swim_init(&swim, SELF, BOOT, settings, 42, now_ms);
    for (unsigned i = 0; i <= peers; i++)
        cr_assert_eq(swim_set_member(&swim, (uint16_t)(SELF + i), 100 + i), OK);
}

static void open_default(void)
{
    struct swim_settings settings = swim_settings_default();
    open_with(&settings, PEERS);
}

static struct swim_wire wire_of(enum swim_type type, uint16_t target, uint32_t sequence)
{
    return (struct swim_wire){
        .type = (uint8_t)type, .target = target, .sequence = sequence, .incarnation = BOOT};
}

static void give(uint16_t from, const struct swim_wire *wire)
{
    uint8_t bytes[SWIM_MESSAGE_MAX];
    uint16_t size = swim_wire_encode(bytes, wire);
    swim_step(&swim, from, bytes_of(bytes, size), now_ms);
}

/* `from` says that `node` is in `state`. */
static void tell_by(
    uint16_t from, uint16_t accuser, uint16_t node, enum swim_state state, uint64_t incarnation)
{
    struct swim_wire wire = wire_of(SWIM_GOSSIP, SELF, 0);
    wire.count = 1;
    wire.updates[0] = (struct swim_update){
        .node = node, .accuser = accuser, .state = (uint8_t)state, .incarnation = incarnation};
    give(from, &wire);
}

static void tell(uint16_t from, uint16_t node, enum swim_state state, uint64_t incarnation)
{
    tell_by(from, 0, node, state, incarnation);
}

static struct swim_wire sent(unsigned i)
{
    struct swim_wire wire;
    cr_assert_lt(i, swim.message_count);
    cr_assert_eq(
        swim_wire_decode(bytes_of(swim.messages[i].bytes, swim.messages[i].size), &wire), OK);
    return wire;
}

/* Index of the first message of that type, or -1. */
static int find_sent(enum swim_type type, uint16_t to)
{
    for (unsigned i = 0; i < swim.message_count; i++) {
        if (sent(i).type == type && (to == 0 || swim.messages[i].to == to)) return (int)i;
    }
    return -1;
}

static void tick(uint64_t passed_ms)
{
    now_ms += passed_ms;
    swim_tick(&swim, now_ms);
}

/* Answers what `node` would answer to the messages of the last call. */
static void answer(uint16_t node)
{
    struct swim_message kept[SWIM_MESSAGES_MAX];
    unsigned count = swim.message_count;
    memcpy(kept, swim.messages, sizeof kept);
    for (unsigned i = 0; i < count; i++) {
        struct swim_wire wire;
        cr_assert_eq(swim_wire_decode(bytes_of(kept[i].bytes, kept[i].size), &wire), OK);
        if (kept[i].to != node || wire.type != SWIM_PING) continue;
        struct swim_wire ack = wire_of(SWIM_ACK, node, wire.sequence);
        give(node, &ack);
    }
}

static void answers(const uint16_t *answering)
{
    struct swim_message kept[SWIM_MESSAGES_MAX];
    unsigned count = swim.message_count;
    memcpy(kept, swim.messages, sizeof kept);
    for (; *answering != 0; answering++) {
        memcpy(swim.messages, kept, sizeof kept);
        swim.message_count = count;
        answer(*answering);
    }
}

/* Ticks for `passed_ms`; the nodes of the list (0-terminated) answer their pings. */
static void run(uint64_t passed_ms, const uint16_t *answering)
{
    for (uint64_t end = now_ms + passed_ms; now_ms < end;) {
        tick(100);
        answers(answering);
    }
}

static const uint16_t everybody[] = {2, 3, 4, 5, 0}, nobody[] = {0};

Test(swim, a_packet_adds_nobody)
{
    open_default();
    tell(2, 77, SWIM_ALIVE, BOOT);
    cr_assert_eq(swim.peer_count, PEERS);
    cr_assert_eq(swim_state(&swim, 77), SWIM_DEAD);
    cr_assert_eq(swim.counters.foreign, 1);
}

Test(swim, who_is_no_member_is_neither_heard_nor_answered)
{
    open_default();
    struct swim_wire ping = wire_of(SWIM_PING, SELF, 9);
    ping.count = 1;
    ping.updates[0] = (struct swim_update){.node = 3, .state = SWIM_DEAD, .incarnation = BOOT};
    give(77, &ping);
    cr_assert_eq(swim.message_count, 0);
    cr_assert_eq(swim.event_count, 0);
    cr_assert_eq(swim_state(&swim, 3), SWIM_ALIVE);
    give(SELF, &ping);
    cr_assert_eq(swim.message_count, 0, "nor is an echo of itself");
    cr_assert_eq(swim.counters.foreign, 2);
}

Test(swim, what_is_meant_for_another_node_is_refused)
{
    open_default();
    struct swim_wire ping = wire_of(SWIM_PING, 3, 9);
    give(2, &ping);
    cr_assert_eq(swim.message_count, 0);
    cr_assert_eq(swim.counters.foreign, 1);
}

Test(swim, a_ping_is_answered_with_its_sequence)
{
    open_default();
    struct swim_wire ping = wire_of(SWIM_PING, SELF, 12345);
    give(2, &ping);
    cr_assert_eq(swim.message_count, 1);
    cr_assert_eq(swim.messages[0].to, 2);
    struct swim_wire ack = sent(0);
    cr_assert_eq(ack.type, SWIM_ACK);
    cr_assert_eq(ack.sequence, 12345);
    cr_assert_eq(ack.target, SELF);
    cr_assert_eq(ack.incarnation, BOOT);
}

Test(swim, knowledge_only_moves_up)
{
    for (int before = SWIM_ALIVE; before <= SWIM_LEFT; before++) {
        for (int after = SWIM_ALIVE; after <= SWIM_LEFT; after++) {
            for (int step = -1; step <= 1; step++) {
                open_default();
                tell(2, 3, SWIM_ALIVE, BOOT + 5);
                tell(2, 3, (enum swim_state)before, BOOT + 5);
                cr_assert_eq(swim_state(&swim, 3), before);
                tell(4, 3, (enum swim_state)after, BOOT + 5 + (uint64_t)(int64_t)step);
                bool up = step > 0 || (step == 0 && after > before);
                cr_assert_eq(swim_state(&swim, 3), up ? after : before, "%d -> %d at %+d", before,
                    after, step);
                cr_assert_eq(swim.event_count, up && before != after);
            }
        }
    }
}

Test(swim, an_old_incarnation_changes_nothing)
{
    open_default();
    tell(3, 3, SWIM_ALIVE, BOOT + 9);
    tell(2, 3, SWIM_SUSPECT, BOOT + 8);
    tell(2, 3, SWIM_DEAD, BOOT + 8);
    tell(2, 3, SWIM_LEFT, BOOT + 8);
    cr_assert_eq(swim_state(&swim, 3), SWIM_ALIVE);
    cr_assert_eq(swim_incarnation(&swim, 3), BOOT + 9);
    struct swim_wire ping = wire_of(SWIM_PING, SELF, 1);
    ping.incarnation = BOOT + 2;
    give(3, &ping);
    cr_assert_eq(swim_incarnation(&swim, 3), BOOT + 9, "nor does a header");
}

Test(swim, a_replayed_alive_does_not_wake_the_dead)
{
    open_default();
    struct swim_wire ping = wire_of(SWIM_PING, SELF, 1);
    ping.incarnation = BOOT + 3;
    give(3, &ping);
    tell(2, 3, SWIM_DEAD, BOOT + 3);
    cr_assert_eq(swim_state(&swim, 3), SWIM_DEAD);
    tell(4, 3, SWIM_ALIVE, BOOT + 3);
    cr_assert_eq(swim_state(&swim, 3), SWIM_DEAD);
    give(3, &ping);
    cr_assert_eq(swim_state(&swim, 3), SWIM_DEAD);
    struct swim_wire ack = sent(0);
    cr_assert_eq(ack.updates[0].node, 3, "but it is told what is said of it");
    cr_assert_eq(ack.updates[0].state, SWIM_DEAD);
    tell(4, 3, SWIM_ALIVE, BOOT + 4);
    cr_assert_eq(swim_state(&swim, 3), SWIM_ALIVE, "and taken back when it says otherwise");
    cr_assert_eq(swim.event_count, 1);
    cr_assert_eq(swim.events[0].before, SWIM_DEAD);
    cr_assert_eq(swim.events[0].state, SWIM_ALIVE);
}

Test(swim, a_restart_outranks_all_of_the_life_before)
{
    open_default();
    tell(2, 3, SWIM_DEAD, BOOT + 65000);
    struct swim_wire ping = wire_of(SWIM_PING, SELF, 1);
    ping.incarnation = UINT64_C(8) << 16;
    give(3, &ping);
    cr_assert_eq(swim_state(&swim, 3), SWIM_ALIVE);
}

Test(swim, an_accusation_is_refuted_with_a_higher_incarnation)
{
    open_default();
    tell(2, SELF, SWIM_SUSPECT, BOOT);
    cr_assert_eq(swim_incarnation(&swim, SELF), BOOT + 1);
    cr_assert_eq(swim.message_count, 1, "the accuser hears it at once");
    cr_assert_eq(swim.messages[0].to, 2);
    cr_assert_eq(sent(0).incarnation, BOOT + 1);
    tell(2, SELF, SWIM_SUSPECT, BOOT);
    cr_assert_eq(swim_incarnation(&swim, SELF), BOOT + 1, "once is enough");
    cr_assert_eq(swim.message_count, 0);
    tell(3, SELF, SWIM_DEAD, BOOT + 1);
    cr_assert_eq(swim_incarnation(&swim, SELF), BOOT + 2);
    tell(3, SELF, SWIM_LEFT, BOOT + 2);
    cr_assert_eq(swim_incarnation(&swim, SELF), BOOT + 3);
    cr_assert_eq(swim.counters.refuted, 3);
    tick(100);
    cr_assert_geq(find_sent(SWIM_GOSSIP, 0), 0, "and others soon");
}

Test(swim, a_node_whose_boot_counter_went_back_outruns_its_past)
{
    open_default();
    tell(2, SELF, SWIM_ALIVE, BOOT + 70000);
    cr_assert_eq(swim_incarnation(&swim, SELF), BOOT + 70001);
    tell(2, SELF, SWIM_DEAD, SWIM_INCARNATION_MAX);
    cr_assert_eq(
        swim_incarnation(&swim, SELF), BOOT + 70001, "but is not driven to the end of numbers");
}

Test(swim, an_answering_peer_is_not_suspected)
{
    open_default();
    run(60000, everybody);
    for (uint16_t node = 2; node <= 5; node++)
        cr_assert_eq(swim_state(&swim, node), SWIM_ALIVE);
    cr_assert_eq(swim.counters.failed_probes, 0);
    cr_assert_eq(swim.health, 0);
}

Test(swim, a_silent_peer_is_suspected_then_dead)
{
    static const uint16_t others[] = {3, 4, 5, 0};
    open_default();
    bool suspected = false;
    for (int i = 0; i < 250 && swim_state(&swim, 2) != SWIM_DEAD; i++) {
        run(100, others);
        suspected |= swim_state(&swim, 2) == SWIM_SUSPECT;
    }
    cr_assert(suspected);
    cr_assert_eq(swim_state(&swim, 2), SWIM_DEAD);
    cr_assert_eq(swim_state(&swim, 3), SWIM_ALIVE);
}

Test(swim, a_frozen_peer_times_out_though_its_connection_stands)
{
    static const uint16_t others[] = {3, 4, 5, 0};
    open_default();
    swim_hint(&swim, 2, true);
    run(25000, others);
    cr_assert_eq(swim_state(&swim, 2), SWIM_DEAD);
}

Test(swim, helpers_are_asked_and_their_ack_counts)
{
    open_default();
    swim_hint(&swim, 2, true);
    tick(100);
    int ping = find_sent(SWIM_PING, 2);
    cr_assert_geq(ping, 0);
    uint32_t sequence = sent((unsigned)ping).sequence;
    tick(100);
    int request = find_sent(SWIM_PING_REQ, 0);
    cr_assert_geq(request, 0);
    cr_assert_eq(sent((unsigned)request).target, 2);
    cr_assert_eq(sent((unsigned)request).sequence, sequence);
    uint16_t helper = swim.messages[request].to;
    struct swim_wire ack = wire_of(SWIM_ACK, 2, sequence);
    give(helper, &ack);
    for (unsigned i = 0; i < SWIM_PROBES_MAX; i++)
        cr_assert_neq(swim.probes[i].target, 2);
    cr_assert_eq(swim_rtt_ms(&swim, 2), 0, "a detour says nothing of the way");
}

Test(swim, an_ack_counts_only_for_its_probe)
{
    open_default();
    swim_hint(&swim, 2, true);
    tick(100);
    uint32_t sequence = sent((unsigned)find_sent(SWIM_PING, 2)).sequence;
    struct swim_wire ack = wire_of(SWIM_ACK, 2, sequence + 1);
    give(2, &ack);
    ack = wire_of(SWIM_ACK, 2, sequence);
    give(3, &ack);
    ack = wire_of(SWIM_ACK, 3, sequence);
    give(2, &ack);
    run(600, nobody);
    cr_assert_eq(swim_state(&swim, 2), SWIM_SUSPECT);
}

Test(swim, a_probe_for_another_is_made_and_answered)
{
    open_default();
    struct swim_wire request = wire_of(SWIM_PING_REQ, 3, 55);
    give(2, &request);
    cr_assert_eq(swim.message_count, 1);
    cr_assert_eq(swim.messages[0].to, 3);
    struct swim_wire ack = wire_of(SWIM_ACK, 3, sent(0).sequence);
    give(4, &ack);
    cr_assert_eq(swim.message_count, 0, "only the one that was asked");
    give(3, &ack);
    cr_assert_eq(swim.message_count, 1);
    cr_assert_eq(swim.messages[0].to, 2);
    cr_assert_eq(sent(0).type, SWIM_ACK);
    cr_assert_eq(sent(0).target, 3);
    cr_assert_eq(sent(0).sequence, 55);
    give(3, &ack);
    cr_assert_eq(swim.message_count, 0, "once");
}

Test(swim, a_helper_says_so_when_it_hears_nothing_either)
{
    open_default();
    struct swim_wire request = wire_of(SWIM_PING_REQ, 3, 55);
    give(2, &request);
    tick(110);
    int nack = find_sent(SWIM_NACK, 2);
    cr_assert_geq(nack, 0);
    cr_assert_eq(sent((unsigned)nack).sequence, 55);
    cr_assert_eq(sent((unsigned)nack).target, 3);
    tick(100);
    cr_assert_eq(find_sent(SWIM_NACK, 2), -1, "once");
}

Test(swim, strangers_cannot_use_a_helper)
{
    open_default();
    struct swim_wire request = wire_of(SWIM_PING_REQ, 77, 55);
    give(2, &request);
    cr_assert_eq(swim.message_count, 0, "a target that is no member");
    request.target = 3;
    give(77, &request);
    cr_assert_eq(swim.message_count, 0, "an asker that is no member");
}

/* Lets a probe of node 2 fail while `nacks` of its helpers say so; returns the change of health. */
static int health_after(unsigned nacks)
{
    open_default();
    swim.health = 0;
    swim_hint(&swim, 2, true);
    swim.next_probe_ms = now_ms + 100000;
    tick(100);
    uint32_t sequence = sent((unsigned)find_sent(SWIM_PING, 2)).sequence;
    tick(100);
    uint16_t helpers[SWIM_INDIRECT_MAX];
    unsigned count = 0;
    for (unsigned i = 0; i < swim.message_count; i++) {
        if (sent(i).type == SWIM_PING_REQ) helpers[count++] = swim.messages[i].to;
    }
    cr_assert_eq(count, 3);
    for (unsigned i = 0; i < nacks; i++) {
        struct swim_wire nack = wire_of(SWIM_NACK, 2, sequence);
        give(helpers[i], &nack);
        give(helpers[i], &nack);
    }
    run(500, nobody);
    cr_assert_eq(swim_state(&swim, 2), SWIM_SUSPECT);
    return swim.health;
}

Test(swim, missing_nacks_are_a_sign_of_own_weakness)
{
    cr_assert_eq(health_after(3), 0);
    cr_assert_eq(health_after(1), 2);
    cr_assert_eq(health_after(0), 3);
}

Test(swim, a_weak_node_gives_more_time)
{
    open_default();
    swim.health = 3;
    swim.next_probe_ms = now_ms + 100000;
    swim_hint(&swim, 2, true);
    tick(100);
    cr_assert_geq(find_sent(SWIM_PING, 2), 0);
    run(300, nobody);
    cr_assert_eq(find_sent(SWIM_PING_REQ, 0), -1);
    run(1500, nobody);
    cr_assert_eq(swim_state(&swim, 2), SWIM_ALIVE, "the probe ends after four times the time");
    run(300, nobody);
    cr_assert_eq(swim_state(&swim, 2), SWIM_SUSPECT);
}

/* How long node 2 stays a suspect when `confirmations` others accuse it too. */
static uint64_t suspicion_lasts(unsigned confirmations, bool lifeguard)
{
    struct swim_settings settings = swim_settings_default();
    settings.lifeguard = lifeguard;
    open_with(&settings, 7);
    swim.next_probe_ms = now_ms + 1000000;
    uint64_t start = now_ms;
    tell_by(3, 3, 2, SWIM_SUSPECT, BOOT);
    for (unsigned i = 0; i < confirmations; i++) {
        tell_by(3, (uint16_t)(4 + i), 2, SWIM_SUSPECT, BOOT);
        tell_by(4, (uint16_t)(4 + i), 2, SWIM_SUSPECT, BOOT);
    }
    tell_by(4, 3, 2, SWIM_SUSPECT, BOOT);
    tell_by(4, 77, 2, SWIM_SUSPECT, BOOT);
    while (swim_state(&swim, 2) == SWIM_SUSPECT)
        tick(100);
    cr_assert_eq(swim_state(&swim, 2), SWIM_DEAD);
    return now_ms - start;
}

Test(swim, confirmations_shorten_a_suspicion)
{
    cr_assert_eq(suspicion_lasts(0, true), 6000);
    cr_assert_eq(suspicion_lasts(1, true), 3500);
    cr_assert_eq(suspicion_lasts(2, true), 2100);
    cr_assert_eq(suspicion_lasts(3, true), 1000);
    cr_assert_eq(suspicion_lasts(0, false), 1000, "plain SWIM has one time for all");
}

Test(swim, a_suspect_that_refutes_is_alive)
{
    open_default();
    tell_by(3, 3, 2, SWIM_SUSPECT, BOOT);
    cr_assert_eq(swim_state(&swim, 2), SWIM_SUSPECT);
    struct swim_wire ping = wire_of(SWIM_PING, SELF, 1);
    give(2, &ping);
    cr_assert_eq(swim_state(&swim, 2), SWIM_SUSPECT, "a word at the accused incarnation is none");
    ping.incarnation = BOOT + 1;
    give(2, &ping);
    cr_assert_eq(swim_state(&swim, 2), SWIM_ALIVE);
    run(20000, everybody);
    cr_assert_eq(swim_state(&swim, 2), SWIM_ALIVE);
}

Test(swim, own_stall_is_not_held_against_the_others)
{
    open_default();
    run(5000, everybody);
    swim_hint(&swim, 2, true);
    tick(100);
    uint32_t sequence = sent((unsigned)find_sent(SWIM_PING, 2)).sequence;
    tick(10000);
    cr_assert_eq(swim.counters.stalls, 1);
    cr_assert_gt(swim.health, 0);
    cr_assert_eq(swim_state(&swim, 2), SWIM_ALIVE);
    struct swim_wire ack = wire_of(SWIM_ACK, 2, sequence);
    give(2, &ack);
    run(2000, everybody);
    cr_assert_eq(swim_state(&swim, 2), SWIM_ALIVE);
    cr_assert_eq(swim.counters.failed_probes, 0);
}

Test(swim, a_suspicion_waits_while_this_node_sleeps)
{
    open_default();
    tell_by(3, 3, 2, SWIM_SUSPECT, BOOT);
    tick(3600000);
    cr_assert_eq(swim_state(&swim, 2), SWIM_SUSPECT);
    tell(2, 2, SWIM_ALIVE, BOOT + 1);
    cr_assert_eq(swim_state(&swim, 2), SWIM_ALIVE);
}

Test(swim, time_that_goes_back_stands_still)
{
    open_default();
    run(3000, everybody);
    uint64_t clock = swim.clock_ms;
    swim_tick(&swim, 5);
    cr_assert_eq(swim.clock_ms, clock);
}

Test(swim, a_hint_only_makes_the_next_tick_probe)
{
    open_default();
    swim.next_probe_ms = now_ms + 100000;
    swim_hint(&swim, 2, false);
    cr_assert_eq(swim_state(&swim, 2), SWIM_ALIVE);
    tick(10);
    cr_assert_geq(find_sent(SWIM_PING, 2), 0);
    uint32_t sequence = sent((unsigned)find_sent(SWIM_PING, 2)).sequence;
    tick(10);
    cr_assert_geq(find_sent(SWIM_PING_REQ, 0), 0, "without a connection others are asked at once");
    struct swim_wire ack = wire_of(SWIM_ACK, 2, sequence);
    give(2, &ack);
    swim_hint(&swim, 2, true);
    tick(10);
    cr_assert_eq(find_sent(SWIM_PING, 2), -1, "a flapping connection is no storm");
    tick(200);
    cr_assert_geq(find_sent(SWIM_PING, 2), 0);
    swim_hint(&swim, 77, true);
    cr_assert_eq(swim.peer_count, PEERS);
}

Test(swim, the_dead_are_asked_now_and_then)
{
    static const uint16_t others[] = {2, 4, 5, 0};
    open_default();
    tell(2, 3, SWIM_DEAD, BOOT);
    unsigned pings = 0;
    for (int i = 0; i < 100; i++) {
        tick(100);
        int ping = find_sent(SWIM_PING, 3);
        if (ping >= 0) {
            pings++;
            cr_assert_eq(sent((unsigned)ping).updates[0].node, 3);
            cr_assert_eq(sent((unsigned)ping).updates[0].state, SWIM_DEAD);
        }
        answers(others);
    }
    cr_assert_geq(pings, 9);
    cr_assert_leq(pings, 11);
    cr_assert_eq(swim_state(&swim, 3), SWIM_DEAD);
    swim_hint(&swim, 3, true);
    tick(100);
    cr_assert_eq(swim_state(&swim, 3), SWIM_DEAD);
}

Test(swim, who_left_is_not_dead_and_not_asked)
{
    open_default();
    struct swim_wire ping = wire_of(SWIM_PING, SELF, 1);
    ping.state = SWIM_LEFT;
    give(3, &ping);
    cr_assert_eq(swim_state(&swim, 3), SWIM_LEFT);
    cr_assert_eq(swim.events[0].state, SWIM_LEFT);
    tell(2, 3, SWIM_DEAD, BOOT);
    cr_assert_eq(swim_state(&swim, 3), SWIM_LEFT);
    for (int i = 0; i < 100; i++) {
        tick(100);
        cr_assert_eq(find_sent(SWIM_PING, 3), -1);
    }
    ping.state = SWIM_ALIVE;
    ping.incarnation = UINT64_C(8) << 16;
    give(3, &ping);
    cr_assert_eq(swim_state(&swim, 3), SWIM_ALIVE, "it may come back");
}

Test(swim, leaving_is_told_and_not_defended)
{
    open_default();
    swim_leave(&swim, now_ms);
    cr_assert_eq(swim.message_count, PEERS);
    for (unsigned i = 0; i < PEERS; i++)
        cr_assert_eq(sent(i).state, SWIM_LEFT);
    cr_assert_eq(swim_state(&swim, SELF), SWIM_LEFT);
    tell(2, SELF, SWIM_DEAD, BOOT + 3);
    cr_assert_eq(swim_incarnation(&swim, SELF), BOOT);
    run(20000, nobody);
    for (uint16_t node = 2; node <= 5; node++)
        cr_assert_eq(swim_state(&swim, node), SWIM_ALIVE, "who has left accuses nobody");
}

Test(swim, members_come_and_go_by_the_table_only)
{
    open_default();
    tell(2, 3, SWIM_DEAD, BOOT + 5);
    cr_assert_eq(swim_set_member(&swim, 3, 102), OK);
    cr_assert_eq(swim_state(&swim, 3), SWIM_DEAD, "the same member");
    cr_assert_eq(swim_set_member(&swim, 3, 999), OK);
    cr_assert_eq(swim_state(&swim, 3), SWIM_ALIVE, "another store is another node");
    cr_assert_eq(swim_incarnation(&swim, 3), 0);
    swim_hint(&swim, 3, true);
    tick(100);
    cr_assert_geq(find_sent(SWIM_PING, 3), 0);
    swim_remove_member(&swim, 3);
    cr_assert_eq(swim_state(&swim, 3), SWIM_DEAD);
    run(20000, everybody);
    tell(2, 3, SWIM_ALIVE, BOOT + 9);
    cr_assert_eq(swim.peer_count, PEERS - 1);
    swim_remove_member(&swim, 3);
}

Test(swim, a_full_table_and_full_messages_fit)
{
    struct swim_settings settings = swim_settings_default();
    open_with(&settings, SWIM_PEERS_MAX);
    cr_assert_eq(swim_set_member(&swim, 999, 0), ERR_TOO_LARGE);
    for (uint16_t node = 2; node < 2 + SWIM_PEERS_MAX; node++)
        tell(2, node, node % 2 ? SWIM_SUSPECT : SWIM_ALIVE, BOOT + 1);
    swim_tick(&swim, now_ms += 100);
    for (unsigned i = 0; i < swim.message_count; i++) {
        cr_assert_leq(swim.messages[i].size, SWIM_MESSAGE_MAX);
        cr_assert_gt(sent(i).count, 70);
    }
    for (uint16_t node = 2; node < 2 + SWIM_PEERS_MAX; node++)
        swim_hint(&swim, node, node % 3);
    run(30000, everybody);
    while (swim.peer_count > 0)
        swim_remove_member(&swim, swim.peers[swim.peer_count / 2].node);
    run(1000, nobody);
    cr_assert_eq(swim.message_count, 0);
}

Test(swim, messages_survive_the_codec_and_damage_does_not)
{
    struct swim_wire wire = wire_of(SWIM_PING, SELF, 77), back;
    wire.count = 3;
    wire.updates[0] =
        (struct swim_update){.node = 2, .state = SWIM_SUSPECT, .accuser = 9, .incarnation = BOOT};
    wire.updates[1] =
        (struct swim_update){.node = 3, .state = SWIM_LEFT, .incarnation = SWIM_INCARNATION_MAX};
    wire.updates[2] = (struct swim_update){.node = 65535, .state = SWIM_ALIVE};
    uint8_t bytes[SWIM_MESSAGE_MAX], again[SWIM_MESSAGE_MAX];
    uint16_t size = swim_wire_encode(bytes, &wire);
    cr_assert_eq(swim_wire_decode(bytes_of(bytes, size), &back), OK);
    cr_assert_eq(swim_wire_encode(again, &back), size);
    cr_assert_arr_eq(bytes, again, size);
    for (uint16_t cut = 0; cut < size; cut++)
        cr_assert_eq(swim_wire_decode(bytes_of(bytes, cut), &back), ERR_CORRUPT);
    for (unsigned bit = 0; bit < size * 8u; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        if (swim_wire_decode(bytes_of(bytes, size), &back) == OK) {
            cr_assert_eq(swim_wire_encode(again, &back), size);
            cr_assert_arr_eq(bytes, again, size, "bit %u is ignored", bit);
        }
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    open_default();
    swim_step(&swim, 2, bytes_of(bytes, size - 1u), now_ms);
    cr_assert_eq(swim.counters.malformed, 1);
    cr_assert_eq(swim.message_count, 0);
}
