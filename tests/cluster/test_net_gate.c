#include <criterion/criterion.h>

#include "cluster/net_gate.h"

/* Whom a node believes: the rules of cluster/net_gate.h, one by one. We are node 1 of cluster 'c', boot 100. */

static struct net_gate gate;
static uint32_t old_pipe;
static const uint8_t store_id[16] = {42};

static void setup(void)
{
    struct net_identity self = {.node = 1, .incarnation = 5};
    memset(self.cluster_id, 'c', 16);
    cr_assert_eq(gate_init(&gate, 100), OK);
    gate_set_identity(&gate, &self);
}

static void teardown(void)
{
    gate_deinit(&gate);
}

TestSuite(net_gate, .init = setup, .fini = teardown, .timeout = 20);

static struct envelope envelope(
    uint8_t kind, char cluster, uint16_t from, uint64_t boot, uint64_t incarnation)
{
    struct envelope made = {
        .kind = kind,
        .flags = from == 0 ? ENVELOPE_JOIN : 0,
        .from = from,
        .from_boot = boot,
        .to = 1,
        .to_boot = 100,
        .incarnation = incarnation,
    };
    memset(made.cluster_id, cluster, 16);
    return made;
}

static enum gate_verdict hello(
    char cluster, uint16_t from, uint64_t boot, uint64_t incarnation, uint64_t now)
{
    struct envelope made = envelope(ENVELOPE_HELLO, cluster, from, boot, incarnation);
    return gate_hello(&gate, &made, store_id, now);
}

static enum gate_verdict frames(uint16_t from, uint64_t boot, uint64_t seq)
{
    struct envelope made = envelope(ENVELOPE_FRAMES, from == 0 ? 0 : 'c', from, boot, 0);
    made.seq = seq;
    struct net_peer peer;
    enum gate_verdict verdict = gate_frames(&gate, &made, 9, 0, &peer, &old_pipe);
    if (verdict == GATE_OK) {
        cr_assert_eq(peer.node, from);
        cr_assert_eq(peer.boot, boot);
        cr_assert_eq(peer.store_id[0], 42);
    }
    return verdict;
}

Test(net_gate, frames_count_after_a_hello_only)
{
    cr_assert_eq(frames(2, 200, 1), GATE_STRANGER);
    cr_assert_eq(hello('c', 2, 200, 1, 0), GATE_OK);
    cr_assert_eq(frames(2, 200, 1), GATE_OK);
    cr_assert_eq(frames(2, 201, 2), GATE_STRANGER, "another process of the number");
    cr_assert_eq(frames(3, 200, 2), GATE_STRANGER, "another number of the process");
}

Test(net_gate, a_frame_counts_once)
{
    cr_assert_eq(hello('c', 2, 200, 1, 0), GATE_OK);
    cr_assert_eq(frames(2, 200, 1), GATE_OK);
    cr_assert_eq(frames(2, 200, 1), GATE_DUPLICATE);
    cr_assert_eq(frames(2, 200, 5), GATE_OK, "some got lost");
    cr_assert_eq(frames(2, 200, 4), GATE_DUPLICATE);
    cr_assert_eq(hello('c', 2, 200, 1, 0), GATE_OK, "a new connection");
    cr_assert_eq(frames(2, 200, 5), GATE_DUPLICATE, "does not start over");
    cr_assert_eq(frames(2, 200, 6), GATE_OK);
}

Test(net_gate, lanes_count_for_themselves)
{
    cr_assert_eq(hello('c', 2, 200, 1, 0), GATE_OK);
    cr_assert_eq(frames(2, 200, 5), GATE_OK);
    struct envelope made = envelope(ENVELOPE_FRAMES, 'c', 2, 200, 1);
    struct net_peer peer;
    made.lane = NET_BULK;
    made.seq = 1;
    cr_assert_eq(gate_frames(&gate, &made, 9, 0, &peer, &old_pipe), GATE_OK);
    cr_assert_eq(gate_frames(&gate, &made, 9, 0, &peer, &old_pipe), GATE_DUPLICATE);
}

Test(net_gate, frames_for_an_earlier_process_of_ours_are_stale)
{
    cr_assert_eq(hello('c', 2, 200, 1, 0), GATE_OK);
    struct envelope made = envelope(ENVELOPE_FRAMES, 'c', 2, 200, 1);
    struct net_peer peer;
    made.seq = 1;
    made.to_boot = 99;
    cr_assert_eq(gate_frames(&gate, &made, 9, 0, &peer, &old_pipe), GATE_STALE);
    made.to_boot = 0;
    cr_assert_eq(gate_frames(&gate, &made, 9, 0, &peer, &old_pipe), GATE_STALE);
}

Test(net_gate, frames_for_another_number_are_not_ours)
{
    cr_assert_eq(hello('c', 2, 200, 1, 0), GATE_OK);
    struct envelope made = envelope(ENVELOPE_FRAMES, 'c', 2, 200, 1);
    struct net_peer peer;
    made.seq = 1;
    made.to = 3;
    cr_assert_eq(gate_frames(&gate, &made, 9, 0, &peer, &old_pipe), GATE_MISADDRESSED);
    made.to = 0;
    cr_assert_eq(
        gate_frames(&gate, &made, 9, 0, &peer, &old_pipe), GATE_OK, "addressed by address");
}

Test(net_gate, another_cluster_is_refused)
{
    cr_assert_eq(hello('d', 2, 200, 1, 0), GATE_REFUSED_CLUSTER);
    cr_assert_eq(frames(2, 200, 1), GATE_STRANGER);
}

Test(net_gate, a_later_start_replaces_an_earlier_one_for_good)
{
    cr_assert_eq(hello('c', 2, 200, 3, 0), GATE_OK);
    cr_assert_eq(frames(2, 200, 70), GATE_OK);
    cr_assert_eq(hello('c', 2, 201, 4, 1), GATE_OK, "even while the first seems alive");
    cr_assert_eq(frames(2, 201, 1), GATE_OK);
    cr_assert_eq(frames(2, 200, 71), GATE_STRANGER);
    cr_assert_eq(hello('c', 2, 200, 3, 1), GATE_REFUSED_CLONE);
    cr_assert_eq(hello('c', 2, 200, 3, 1000000), GATE_REFUSED_CLONE, "however long ago");
    cr_assert_eq(frames(2, 201, 2), GATE_OK);
}

Test(net_gate, of_two_with_the_same_incarnation_the_living_one_stays)
{
    cr_assert_eq(hello('c', 2, 200, 3, 0), GATE_OK);
    cr_assert_eq(frames(2, 200, 1), GATE_OK);
    cr_assert_eq(hello('c', 2, 201, 3, 100000), GATE_REFUSED_CLONE, "the first is connected");
    uint16_t node = 0;
    cr_assert(gate_pipe_gone(&gate, 9, &node));
    cr_assert_eq(node, 2);
    cr_assert_eq(
        hello('c', 2, 201, 3, GATE_ALIVE_MS - 1), GATE_REFUSED_CLONE, "heard a moment ago");
    cr_assert_eq(hello('c', 2, 201, 3, GATE_ALIVE_MS), GATE_OK);
    cr_assert_eq(hello('c', 2, 200, 3, GATE_ALIVE_MS), GATE_REFUSED_CLONE);
}

Test(net_gate, nobody_else_speaks_for_our_own_number)
{
    cr_assert_eq(hello('c', 1, 200, 5, 0), GATE_REFUSED_CLONE);
    cr_assert_eq(hello('c', 1, 200, 6, 0), GATE_REFUSED_CLONE);
    cr_assert_eq(hello('c', 1, 100, 5, 0), GATE_SENSELESS, "our own words");
}

Test(net_gate, joiners_are_heard_and_nobody_pretends_to_be_one)
{
    cr_assert_eq(hello(0, 0, 300, 1, 0), GATE_OK);
    cr_assert_eq(hello(0, 0, 301, 1, 0), GATE_OK, "several at a time");
    cr_assert_eq(frames(0, 300, 1), GATE_OK);
    cr_assert_eq(frames(0, 301, 1), GATE_OK);
    cr_assert_eq(frames(0, 300, 1), GATE_DUPLICATE);
    cr_assert_eq(frames(0, 302, 1), GATE_STRANGER);
    cr_assert_eq(hello(0, 7, 303, 1, 0), GATE_SENSELESS, "a number without a cluster");
    cr_assert_eq(hello('c', 0, 304, 1, 0), GATE_SENSELESS, "a cluster without a number");
    struct envelope made = envelope(ENVELOPE_HELLO, 0, 0, 305, 1);
    made.flags = 0;
    cr_assert_eq(gate_hello(&gate, &made, store_id, 0), GATE_SENSELESS);
    for (uint64_t boot = 1000; boot < 1000 + 3 * GATE_JOINERS_MAX; boot++) {
        cr_assert_eq(hello(0, 0, boot, 1, boot), GATE_OK, "there is always room for one more");
        cr_assert_eq(frames(0, boot, 1), GATE_OK);
    }
}

Test(net_gate, a_joiner_hears_members_of_any_cluster_until_it_belongs_to_one)
{
    struct net_identity self = {.incarnation = 1};
    gate_set_identity(&gate, &self);
    cr_assert_eq(hello('c', 2, 200, 1, 0), GATE_OK);
    cr_assert_eq(hello('d', 2, 201, 1, 0), GATE_OK, "another cluster has a node 2 of its own");
    struct envelope made = envelope(ENVELOPE_FRAMES, 'd', 2, 201, 1);
    struct net_peer peer;
    made.seq = 1;
    made.to = 0;
    cr_assert_eq(gate_frames(&gate, &made, 10, 0, &peer, &old_pipe), GATE_OK);
    self.node = 1;
    memset(self.cluster_id, 'c', 16);
    gate_set_identity(&gate, &self);
    made.seq = 2;
    cr_assert_eq(gate_frames(&gate, &made, 10, 0, &peer, &old_pipe), GATE_STRANGER);
    cr_assert_eq(hello('c', 2, 200, 1, 0), GATE_OK);
    cr_assert_eq(frames(2, 200, 1), GATE_OK);
}

Test(net_gate, an_answer_is_to_our_hello_and_from_whom_we_called)
{
    struct envelope made = envelope(ENVELOPE_WELCOME, 'c', 2, 200, 4);
    made.seq = 77;
    cr_assert_eq(gate_answer(&gate, &made, 2, 77), GATE_OK);
    cr_assert_eq(gate_answer(&gate, &made, 0, 77), GATE_OK);
    cr_assert_eq(gate_answer(&gate, &made, 3, 77), GATE_MISADDRESSED);
    cr_assert_eq(gate_answer(&gate, &made, 2, 78), GATE_STALE);
    made.to_boot = 99;
    cr_assert_eq(gate_answer(&gate, &made, 2, 77), GATE_STALE);
    made.to_boot = 100;
    memset(made.cluster_id, 'd', 16);
    cr_assert_eq(gate_answer(&gate, &made, 2, 77), GATE_STRANGER);
    made.kind = ENVELOPE_REFUSED_CLUSTER;
    cr_assert_eq(gate_answer(&gate, &made, 2, 77), GATE_OK);
    made = envelope(ENVELOPE_WELCOME, 'c', 2, 200, 4);
    made.seq = 77;
    cr_assert_eq(hello('c', 2, 201, 5, 0), GATE_OK);
    cr_assert_eq(gate_answer(&gate, &made, 2, 77), GATE_STRANGER, "an earlier start than known");
}

Test(net_gate, a_connection_is_replaced_by_new_frames_alone)
{
    cr_assert_eq(hello('c', 2, 200, 3, 0), GATE_OK);
    struct envelope made = envelope(ENVELOPE_FRAMES, 'c', 2, 200, 3);
    struct net_peer peer;
    made.seq = 1;
    cr_assert_eq(gate_frames(&gate, &made, 9, 0, &peer, &old_pipe), GATE_OK);
    cr_assert_eq(old_pipe, 0);
    cr_assert_eq(gate_frames(&gate, &made, 10, 0, &peer, &old_pipe), GATE_DUPLICATE);
    cr_assert_eq(old_pipe, 0, "recorded frames do not break the connection");
    made.seq = 2;
    cr_assert_eq(gate_frames(&gate, &made, 11, 0, &peer, &old_pipe), GATE_OK);
    cr_assert_eq(old_pipe, 9);
    made.to = 0;
    cr_assert_eq(
        gate_frames(&gate, &made, 12, 0, &peer, &old_pipe), GATE_OK, "has a count of its own");
    cr_assert_eq(old_pipe, 0, "and a connection");
    uint16_t node;
    cr_assert_not(gate_pipe_gone(&gate, 9, &node));
    cr_assert_not(gate_pipe_gone(&gate, 12, &node));
    cr_assert(gate_pipe_gone(&gate, 11, &node));
    cr_assert_eq(node, 2);
}
