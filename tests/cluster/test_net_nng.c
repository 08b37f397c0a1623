#include <criterion/criterion.h>
#include <stdio.h>

#include "tests/cluster/net_world.h"

/* The transport between nodes, over real loopback connections. */

TestSuite(net_nng, .timeout = 60);

static struct end a, b, c;
static struct end *all[] = {&a, &b, &c};

static void connect_ends(struct end *from, uint16_t node, const struct end *to)
{
    cr_assert_eq(from->net.set_peer(from->net.ctx, node, to->address), OK);
}

/* Nodes 1 and 2 of cluster 'c', each other's peers. */
static void open_pair(const char *secret)
{
    struct net_identity first = identity_of('c', 1, 1);
    struct net_identity second = identity_of('c', 2, 1);
    end_open(&a, &first, secret);
    end_open(&b, &second, secret);
    a.keep = b.keep = true;
    connect_ends(&a, 2, &b);
    connect_ends(&b, 1, &a);
}

struct want {
    const uint64_t *value;
    uint64_t at_least;
};

static bool reached(void *ctx)
{
    const struct want *want = ctx;
    return *want->value >= want->at_least;
}

static bool wait_count(const uint64_t *value, uint64_t at_least, int ms)
{
    struct want want = {.value = value, .at_least = at_least};
    return wait_for(all, 3, reached, &want, ms);
}

static uint64_t number_at(const struct end *end, size_t i)
{
    cr_assert_lt(i, end->got_count);
    cr_assert_eq(end->got[i].size, 8);
    return load_u64(end->bytes.at + end->got[i].offset);
}

Test(net_nng, frames_arrive_once_and_in_order_on_every_lane)
{
    open_pair(NULL);
    enum { EACH = 20000 };
    for (uint64_t i = 0; i < EACH; i++) {
        for (int lane = 0; lane < NET_LANES; lane++) {
            uint64_t number = i;
            send_patiently(all, 3, &a, 2, (enum net_lane)lane, bytes_of(&number, sizeof number));
        }
    }
    cr_assert(wait_count(&b.frames, EACH * NET_LANES, 30000));
    run_for(all, 3, 50);
    cr_assert_eq(b.frames, EACH * NET_LANES);
    uint64_t next[NET_LANES] = {0};
    for (size_t i = 0; i < b.got_count; i++) {
        cr_assert_eq(number_at(&b, i), next[b.got[i].lane]++);
        cr_assert_eq(b.got[i].from.node, 1);
        cr_assert_eq(b.got[i].from.incarnation, 1);
        cr_assert_eq(b.got[i].from.store_id[0], '1');
    }
    struct net_nng_counters counters = counters_of(&a);
    cr_assert_eq(counters.frames_sent, EACH * NET_LANES);
    cr_assert_lt(counters.packets_sent, EACH * NET_LANES, "frames that wait leave together");
    end_close(&a);
    end_close(&b);
}

Test(net_nng, big_frames_arrive_whole_and_larger_ones_are_refused)
{
    open_pair("a secret");
    uint8_t *big = malloc(NET_FRAME_MAX + 1);
    for (size_t i = 0; i < NET_FRAME_MAX; i++) {
        big[i] = (uint8_t)(i * 31 + (i >> 9));
    }
    for (int lane = 0; lane < NET_LANES; lane++) {
        struct bytes frame = bytes_of(big, NET_FRAME_MAX + 1);
        cr_assert_eq(a.net.send(a.net.ctx, 2, (enum net_lane)lane, frame), ERR_TOO_LARGE);
        frame.size = NET_FRAME_MAX;
        send_patiently(all, 3, &a, 2, (enum net_lane)lane, frame);
        frame.size = 0;
        send_patiently(all, 3, &a, 2, (enum net_lane)lane, frame);
    }
    cr_assert(wait_count(&b.frames, (uint64_t)2 * NET_LANES, 10000));
    for (size_t i = 0; i < b.got_count; i++) {
        cr_assert(b.got[i].size == 0 || b.got[i].size == NET_FRAME_MAX);
        cr_assert_eq(memcmp(b.bytes.at + b.got[i].offset, big, b.got[i].size), 0);
    }
    cr_assert_eq(a.net.send(a.net.ctx, 3, NET_DATA, bytes_of(big, 1)), ERR_NOT_FOUND);
    free(big);
    end_close(&a);
    end_close(&b);
}

Test(net_nng, a_full_queue_says_so_and_loses_nothing_it_took)
{
    struct net_identity first = identity_of('c', 1, 1);
    struct net_identity second = identity_of('c', 2, 1);
    end_open(&a, &first, NULL);
    end_open(&b, &second, NULL);
    end_close(&b); /* nobody listens there now */
    connect_ends(&a, 2, &b);
    uint8_t frame[1000] = {0};
    uint64_t taken[NET_LANES] = {0};
    for (int lane = 0; lane < NET_LANES; lane++) {
        while (a.net.send(a.net.ctx, 2, (enum net_lane)lane, bytes_of(frame, sizeof frame)) == OK) {
            taken[lane]++;
        }
        cr_assert_eq(
            a.net.send(a.net.ctx, 2, (enum net_lane)lane, bytes_of(frame, 1000)), ERR_AGAIN);
    }
    cr_assert(taken[NET_CONTROL] * 1008 > 256 << 10 && taken[NET_CONTROL] * 1008 <= 1 << 20);
    cr_assert(taken[NET_DATA] * 1008 > 31 << 20 && taken[NET_DATA] * 1008 <= 32 << 20);
    cr_assert(taken[NET_BULK] * 1008 > 3 << 20 && taken[NET_BULK] * 1008 <= 4 << 20);
    cr_assert_eq(a.net.queued(a.net.ctx, 2, NET_BULK), taken[NET_BULK] * 1008);
    cr_assert_eq(counters_of(&a).full, 6);
    end_close(&a);
}
