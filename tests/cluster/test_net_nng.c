#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

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

static void send_text(struct end *from, uint16_t to, enum net_lane lane, const char *text)
{
    cr_assert_eq(from->net.send(from->net.ctx, to, lane, bytes_of_text(text)), OK);
}

static bool last_is(const struct end *end, uint16_t from, const char *text)
{
    const struct got *got = &end->got[end->got_count - 1];
    return got->from.node == from &&
        bytes_equal(bytes_of(end->bytes.at + got->offset, got->size), bytes_of_text(text));
}

Test(net_nng, both_sides_are_told_when_a_peer_comes_and_goes)
{
    open_pair(NULL);
    cr_assert(wait_count(&a.events[NET_PEER_UP], 1, 5000));
    cr_assert(wait_count(&b.events[NET_PEER_UP], 1, 5000));
    end_close(&b);
    b.net.ctx = NULL;
    cr_assert(wait_count(&a.events[NET_PEER_DOWN], 1, 1000));
    send_text(&a, 2, NET_DATA, "wait for it");
    struct net_identity again = identity_of('c', 2, 2);
    b = (struct end){.keep = true};
    end_open(&b, &again, NULL);
    connect_ends(&a, 2, &b); /* it has another port now */
    send_text(&a, 2, NET_DATA, "hello again");
    cr_assert(wait_count(&b.frames, 1, 5000));
    cr_assert(last_is(&b, 1, "hello again"));
    cr_assert(wait_count(&a.events[NET_PEER_UP], 2, 5000));
    cr_assert_eq(a.net.set_peer(a.net.ctx, 2, NULL), OK);
    cr_assert_eq(a.net.send(a.net.ctx, 2, NET_DATA, bytes_of("x", 1)), ERR_NOT_FOUND);
    end_close(&a);
    end_close(&b);
}

Test(net_nng, a_kick_reconnects_what_does_not_move)
{
    open_pair("secret");
    cr_assert(wait_count(&a.events[NET_PEER_UP], 1, 5000));
    a.net.kick(a.net.ctx, 2);
    run_for(all, 3, 50);
    cr_assert_eq(a.events[NET_PEER_DOWN], 0, "it came a moment ago");
    run_for(all, 3, 600);
    a.net.kick(a.net.ctx, 2);
    cr_assert(wait_count(&a.events[NET_PEER_DOWN], 1, 5000));
    cr_assert(wait_count(&a.events[NET_PEER_UP], 2, 5000));
    send_text(&a, 2, NET_CONTROL, "still here");
    cr_assert(wait_count(&b.frames, 1, 5000));
    /* while nobody is there */
    end_close(&b);
    b.net.ctx = NULL;
    cr_assert(wait_count(&a.events[NET_PEER_DOWN], 2, 5000));
    run_for(all, 3, 600);
    send_text(&a, 2, NET_CONTROL, "kept");
    size_t queued = a.net.queued(a.net.ctx, 2, NET_CONTROL);
    a.net.kick(a.net.ctx, 2);
    cr_assert_geq(counters_of(&a).redials, 2);
    cr_assert_eq(a.net.queued(a.net.ctx, 2, NET_CONTROL), queued);
    run_for(all, 3, 1000); /* what was replaced is closed meanwhile */
    end_close(&a);
}

Test(net_nng, addresses_that_are_none_are_refused)
{
    open_pair(NULL);
    static const char *const wrong[] = {
        "", "nowhere", "a b:1", ":", "host:port", "127.0.0.1:99999"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        cr_assert_eq(a.net.set_peer(a.net.ctx, 9, wrong[i]), ERR_INVALID, "%s", wrong[i]);
    }
    struct net net;
    char detail[200];
    struct net_nng_config config = {.listen = a.address};
    cr_assert_eq(net_nng_open(&config, &net, detail, sizeof detail), ERR_BUSY);
    cr_assert_neq(strstr(detail, a.address), NULL);
    config.listen = "here";
    cr_assert_eq(net_nng_open(&config, &net, detail, sizeof detail), ERR_INVALID);
    end_close(&a);
    end_close(&b);
}

Test(net_nng, another_cluster_is_refused_and_told)
{
    struct net_identity first = identity_of('c', 1, 1);
    struct net_identity second = identity_of('d', 2, 1);
    end_open(&a, &first, NULL);
    end_open(&b, &second, NULL);
    connect_ends(&a, 2, &b);
    send_text(&a, 2, NET_CONTROL, "hello?");
    cr_assert(wait_count(&a.events[NET_REFUSED_CLUSTER], 1, 5000));
    cr_assert_geq(counters_of(&b).refused_cluster, 1);
    cr_assert_eq(b.frames, 0);
    cr_assert_eq(a.events[NET_PEER_UP], 0);
    end_close(&a);
    end_close(&b);
}

Test(net_nng, an_old_process_and_a_copy_are_refused_and_told)
{
    open_pair(NULL);
    send_text(&a, 2, NET_CONTROL, "the real one");
    cr_assert(wait_count(&b.frames, 1, 5000));
    struct net_identity copy = identity_of('c', 1, 1);
    end_open(&c, &copy, NULL);
    connect_ends(&c, 2, &b);
    send_text(&c, 2, NET_CONTROL, "a copy");
    cr_assert(wait_count(&c.events[NET_REFUSED_CLONE], 1, 5000));
    cr_assert_geq(counters_of(&b).refused_clone, 1);
    send_text(&a, 2, NET_CONTROL, "still the real one");
    cr_assert(wait_count(&b.frames, 2, 5000));
    cr_assert(last_is(&b, 1, "still the real one"));
    end_close(&c);
    /* a later start takes over, and the first is told */
    copy.incarnation = 2;
    c = (struct end){.keep = true};
    end_open(&c, &copy, NULL);
    connect_ends(&c, 2, &b);
    send_text(&c, 2, NET_CONTROL, "later");
    cr_assert(wait_count(&b.frames, 3, 5000));
    cr_assert(last_is(&b, 1, "later"));
    send_text(&a, 2, NET_CONTROL, "from the past");
    run_for(all, 3, 600);
    a.net.kick(a.net.ctx, 2);
    cr_assert(wait_count(&a.events[NET_REFUSED_CLONE], 1, 5000));
    send_text(&a, 2, NET_CONTROL, "from the past");
    run_for(all, 3, 100);
    cr_assert_eq(b.frames, 3);
    end_close(&a);
    end_close(&b);
    end_close(&c);
}

Test(net_nng, who_listens_under_another_number_gets_nothing)
{
    open_pair(NULL);
    connect_ends(&a, 3, &b); /* it is 2 */
    send_text(&a, 3, NET_CONTROL, "for node 3");
    cr_assert(wait_count(&a.events[NET_PEER_UP], 1, 5000));
    run_for(all, 3, 300);
    cr_assert_eq(b.frames, 0);
    cr_assert_eq(a.events[NET_PEER_UP], 1, "of node 2");
    cr_assert_geq(counters_of(&a).dropped_stranger, 1);
    end_close(&a);
    end_close(&b);
}

Test(net_nng, a_joiner_asks_and_becomes_a_member)
{
    struct net_identity member = identity_of('c', 1, 1);
    struct net_identity joiner = identity_of(0, 0, 1);
    end_open(&a, &member, "secret");
    end_open(&b, &joiner, "secret");
    a.keep = b.keep = true;
    connect_ends(&b, NET_BY_ADDRESS, &a);
    send_text(&b, NET_BY_ADDRESS, NET_CONTROL, "may I?");
    cr_assert(wait_count(&a.frames, 1, 5000));
    cr_assert(last_is(&a, 0, "may I?"));
    connect_ends(&a, NET_BY_ADDRESS + 7, &b);
    send_text(&a, NET_BY_ADDRESS + 7, NET_CONTROL, "you are 5");
    cr_assert(wait_count(&b.frames, 1, 5000));
    cr_assert(last_is(&b, 1, "you are 5"));
    struct net_identity self = identity_of('c', 5, 1);
    b.net.set_identity(b.net.ctx, &self);
    send_text(&b, NET_BY_ADDRESS, NET_CONTROL, "I am 5");
    cr_assert(wait_count(&a.frames, 2, 5000));
    cr_assert(last_is(&a, 5, "I am 5"));
    connect_ends(&a, 5, &b);
    connect_ends(&b, 1, &a);
    send_text(&a, 5, NET_DATA, "welcome");
    send_text(&b, 1, NET_DATA, "thank you");
    cr_assert(wait_count(&a.frames, 3, 5000));
    cr_assert(wait_count(&b.frames, 2, 5000));
    cr_assert(last_is(&a, 5, "thank you") && last_is(&b, 1, "welcome"));
    cr_assert_eq(a.net.set_peer(a.net.ctx, NET_BY_ADDRESS + 7, NULL), OK);
    end_close(&a);
    end_close(&b);
}

Test(net_nng, without_the_same_secret_nobody_hears_anybody)
{
    struct net_identity first = identity_of('c', 1, 1);
    struct net_identity second = identity_of('c', 2, 1);
    struct net_identity third = identity_of('c', 3, 1);
    end_open(&a, &first, "one");
    end_open(&b, &second, "other");
    end_open(&c, &third, NULL);
    for (int i = 0; i < 3; i++) {
        for (int k = 0; k < 3; k++) {
            if (i == k) continue;
            connect_ends(all[i], (uint16_t)(k + 1), all[k]);
            send_text(all[i], (uint16_t)(k + 1), NET_CONTROL, "pst");
        }
    }
    run_for(all, 3, 300);
    for (int i = 0; i < 3; i++) {
        struct net_nng_counters counters = counters_of(all[i]);
        cr_assert_eq(all[i]->frames, 0);
        cr_assert_eq(all[i]->events[NET_PEER_UP], 0);
        cr_assert_eq(all[i]->events[NET_REFUSED_CLUSTER] + all[i]->events[NET_REFUSED_CLONE], 0);
        cr_assert_geq(counters.dropped_unauthentic, 2);
        cr_assert_eq(counters.dropped_malformed, 0);
        end_close(all[i]);
    }
}

/* Plays every connection that `relay` saw to `address`, as it was. */
static void play_again(struct relay *relay, const char *address)
{
    for (size_t i = 0; i < relay->connections; i++) {
        int fd = connect_to(address);
        cr_assert_geq(fd, 0);
        struct bytes all_of_it = buffer_view(&relay->recorded[i]);
        write_all(fd, all_of_it.at, all_of_it.size);
        run_for(all, 3, 100);
        close(fd);
    }
}

static void recorded_words_mean_nothing(const char *secret)
{
    struct net_identity first = identity_of('c', 1, 1);
    struct net_identity second = identity_of('c', 2, 1);
    end_open(&a, &first, secret);
    end_open(&b, &second, secret);
    struct relay relay;
    relay_open(&relay, b.address);
    cr_assert_eq(a.net.set_peer(a.net.ctx, 2, relay.address), OK);
    for (int i = 0; i < 100; i++) {
        send_text(&a, 2, NET_CONTROL, "do it");
        send_text(&a, 2, NET_DATA, "do that");
    }
    cr_assert(wait_count(&b.frames, 200, 5000));
    play_again(&relay, b.address);
    cr_assert_eq(b.frames, 200);
    cr_assert_geq(counters_of(&b).dropped_duplicate, 2);
    /* nor to the next process of the node */
    second.incarnation++;
    end_open(&c, &second, secret);
    play_again(&relay, c.address);
    cr_assert_eq(c.frames, 0);
    cr_assert_geq(counters_of(&c).dropped_stale, 2);
    end_close(&a);
    end_close(&b);
    end_close(&c);
    relay_close(&relay);
}

Test(net_nng, what_was_recorded_cannot_be_played_again)
{
    recorded_words_mean_nothing(NULL);
}

Test(net_nng, sealed_or_not)
{
    recorded_words_mean_nothing("secret");
}

static uint64_t last_number[NET_LANES];

static void expect_growing(
    struct end *end, const struct net_peer *from, enum net_lane lane, struct bytes frame)
{
    (void)end;
    (void)from;
    uint64_t number = load_u64(frame.at);
    cr_assert_gt(number, last_number[lane]);
    last_number[lane] = number;
}

Test(net_nng, one_who_does_not_listen_is_told_of_and_heard_again_later)
{
    open_pair(NULL);
    b.keep = false;
    b.on_frame = expect_growing;
    static uint8_t frame[NET_FRAME_MAX / 2] = {1};
    uint64_t number = 1;
    cr_assert_eq(a.net.send(a.net.ctx, 2, NET_DATA, bytes_of(frame, 64)), OK);
    cr_assert(wait_count(&b.frames, 1, 5000));
    struct end *alone[] = {&a};
    uint64_t end = now_in_ms() + 15000;
    while (a.events[NET_PEER_STALLED] == 0 && now_in_ms() < end) {
        store_u64(frame, number + 1);
        if (a.net.send(a.net.ctx, 2, NET_DATA, bytes_of(frame, sizeof frame)) == OK) number++;
        run_for(alone, 1, 1);
    }
    cr_assert_geq(a.events[NET_PEER_STALLED], 1);
    cr_assert_leq(number * sizeof frame, (size_t)200 << 20, "what waits is bounded");
    /* it listens again: the rest comes, in order */
    for (int i = 0; i < 100 && last_number[NET_DATA] <= number; i++) {
        store_u64(frame, number + 1 + (uint64_t)i);
        send_patiently(all, 3, &a, 2, NET_DATA, bytes_of(frame, 64));
        run_for(all, 3, 50);
    }
    cr_assert_gt(last_number[NET_DATA], number);
    end_close(&a);
    end_close(&b);
}

/* ---- one lane does not wait for another ---- */

enum { PINGS = 150 };

static uint64_t now_in_us(void)
{
    struct clock clock = clock_real();
    return clock.monotonic_ns(clock.ctx) / 1000;
}

static uint64_t echoes[NET_LANES];

static void answer_ping(
    struct end *end, const struct net_peer *from, enum net_lane lane, struct bytes frame)
{
    if (frame.size == 8) (void)end->net.send(end->net.ctx, from->node, lane, frame);
}

static void count_echo(
    struct end *end, const struct net_peer *from, enum net_lane lane, struct bytes frame)
{
    (void)end;
    (void)from;
    (void)frame;
    echoes[lane]++;
}

static bool add_bulk(void)
{
    static uint8_t chunk[256 << 10];
    return a.net.send(a.net.ctx, 2, NET_BULK, bytes_of(chunk, sizeof chunk)) == OK;
}

static int by_value(const void *one, const void *other)
{
    uint64_t x = *(const uint64_t *)one;
    uint64_t y = *(const uint64_t *)other;
    return (x > y) - (x < y);
}

/* Round trips on `lane` while the bulk lane is kept full; the median and the 95th of a hundred in microseconds. */
static void ping(enum net_lane lane, bool full, uint64_t *median_out, uint64_t *high_out)
{
    static uint64_t took[PINGS];
    for (int i = 0; i < PINGS; i++) {
        uint64_t number = echoes[lane] + 1;
        uint64_t end = now_in_ms() + 5000;
        while (full && add_bulk()) {
        }
        uint64_t start = now_in_us();
        send_patiently(all, 3, &a, 2, lane, bytes_of(&number, sizeof number));
        while (!wait_count(&echoes[lane], number, 2)) {
            cr_assert_lt(now_in_ms(), end);
            while (full && lane != NET_BULK && add_bulk()) {
            }
        }
        took[i] = now_in_us() - start;
    }
    qsort(took, PINGS, sizeof *took, by_value);
    *median_out = took[PINGS / 2];
    *high_out = took[PINGS * 95 / 100];
}

Test(net_nng, votes_do_not_wait_behind_bulk)
{
    open_pair(NULL);
    a.keep = b.keep = false;
    b.on_frame = answer_ping;
    a.on_frame = count_echo;
    uint64_t median, high, bulk_median, bulk_high;
    ping(NET_CONTROL, false, &median, &high);
    printf("idle: control %llu us, 95%% %llu us\n", (unsigned long long)median,
        (unsigned long long)high);
    ping(NET_CONTROL, true, &median, &high);
    ping(NET_BULK, true, &bulk_median, &bulk_high);
    printf("beside bulk: control %llu us, 95%% %llu us; bulk %llu us\n", (unsigned long long)median,
        (unsigned long long)high, (unsigned long long)bulk_median);
    cr_assert_lt(median, bulk_median, "control passes the bulk that waits");
    cr_assert_lt(high, 500000);
    end_close(&a);
    end_close(&b);
}
