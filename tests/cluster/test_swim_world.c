#include <criterion/criterion.h>
#include <stdlib.h>

#include "cluster/swim/swim.h"
#include "cluster/swim/wire.h"

/* Many nodes and a network that loses, delays and cuts. Nodes may be down or stalled: a stalled node does
 * nothing, and when it runs again its timers fire before it reads what has come meanwhile, as an event loop
 * does it at its worst. */

enum { NODES_MAX = 33, STEP_MS = 10, PACKETS_MAX = 20000, RECORDED_MAX = 3000 };

struct packet {
    uint64_t at_ms;
    uint16_t from;
    struct swim_message message;
};

struct world {
    unsigned count; /* nodes 1..count */
    uint64_t now_ms;
    struct prng prng;
    unsigned loss_percent;
    struct swim_settings settings;
    struct swim nodes[NODES_MAX];
    uint64_t boots[NODES_MAX];
    bool down[NODES_MAX];
    uint64_t stalled_until_ms[NODES_MAX];
    uint64_t next_tick_ms[NODES_MAX];
    bool cut[NODES_MAX][NODES_MAX]; /* from, to */
    uint32_t packet_count;
    struct packet packets[PACKETS_MAX];
    uint32_t recorded_count;
    struct packet recorded[RECORDED_MAX];
    uint64_t sent, bytes;
    unsigned suspicions, deaths; /* events about nodes that run */
    unsigned true_deaths;
};

static struct world world;

static void boot(uint16_t node)
{
    world.down[node] = false;
    swim_init(&world.nodes[node], node, ++world.boots[node] << 16, &world.settings,
        prng_next(&world.prng), world.now_ms);
    for (uint16_t other = 1; other <= world.count; other++)
        cr_assert_eq(swim_set_member(&world.nodes[node], other, other), OK);
}

static void open_world(unsigned count, uint64_t seed, bool lifeguard)
{
    memset(&world, 0, sizeof world);
    world.count = count;
    world.now_ms = 1000;
    world.settings = swim_settings_default();
    world.settings.lifeguard = lifeguard;
    prng_init(&world.prng, seed);
    for (uint16_t node = 1; node <= count; node++) {
        world.next_tick_ms[node] = world.now_ms + prng_below(&world.prng, 100);
        boot(node);
    }
}

static void note_events(const struct swim *swim)
{
    for (uint32_t i = 0; i < swim->event_count; i++) {
        const struct swim_event *event = &swim->events[i];
        cr_assert_neq(event->before, event->state);
        if (world.down[event->node])
            world.true_deaths += event->state == SWIM_DEAD;
        else if (event->state == SWIM_DEAD)
            world.deaths++;
        else if (event->state == SWIM_SUSPECT)
            world.suspicions++;
    }
}

static void carry(uint16_t from)
{
    const struct swim *swim = &world.nodes[from];
    note_events(swim);
    for (uint32_t i = 0; i < swim->message_count; i++) {
        const struct swim_message *message = &swim->messages[i];
        world.sent++;
        world.bytes += message->size;
        struct packet packet = {.from = from,
            .message = *message,
            .at_ms = world.now_ms + 1 + prng_below(&world.prng, 5)};
        if (world.recorded_count < RECORDED_MAX) world.recorded[world.recorded_count++] = packet;
        if (prng_chance(&world.prng, world.loss_percent, 100)) continue;
        if (world.cut[from][message->to]) continue;
        cr_assert_lt(world.packet_count, PACKETS_MAX);
        world.packets[world.packet_count++] = packet;
    }
}

static bool runs(uint16_t node)
{
    return !world.down[node] && world.stalled_until_ms[node] <= world.now_ms;
}

static void deliver(void)
{
    uint32_t kept = 0, count = world.packet_count;
    static struct packet due[PACKETS_MAX];
    uint32_t due_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint16_t to = world.packets[i].message.to;
        if (world.down[to]) continue;
        if (world.packets[i].at_ms <= world.now_ms && runs(to))
            due[due_count++] = world.packets[i];
        else
            world.packets[kept++] = world.packets[i];
    }
    world.packet_count = kept;
    for (uint32_t i = 0; i < due_count; i++) {
        const struct swim_message *message = &due[i].message;
        swim_step(&world.nodes[message->to], due[i].from, bytes_of(message->bytes, message->size),
            world.now_ms);
        carry(message->to);
    }
}

static void run(uint64_t passed_ms)
{
    for (uint64_t end = world.now_ms + passed_ms; world.now_ms < end;) {
        world.now_ms += STEP_MS;
        for (uint16_t node = 1; node <= world.count; node++) {
            if (!runs(node) || world.now_ms < world.next_tick_ms[node]) continue;
            world.next_tick_ms[node] = world.now_ms + 100;
            swim_tick(&world.nodes[node], world.now_ms);
            carry(node);
        }
        deliver();
    }
}

/* All nodes that run see `node` in that state. */
static bool all_see(uint16_t node, enum swim_state state)
{
    for (uint16_t other = 1; other <= world.count; other++) {
        if (other == node || world.down[other]) continue;
        if (swim_state(&world.nodes[other], node) != state) return false;
    }
    return true;
}

static bool all_alive(void)
{
    for (uint16_t node = 1; node <= world.count; node++) {
        if (!all_see(node, SWIM_ALIVE)) return false;
    }
    return true;
}

/* Runs until all see it; returns the milliseconds it took. */
static uint64_t until(uint16_t node, enum swim_state state, uint64_t bound_ms)
{
    uint64_t start = world.now_ms;
    while (!all_see(node, state)) {
        cr_assert_lt(world.now_ms - start, bound_ms, "%u nodes: node %u is not %s everywhere",
            world.count, node, swim_state_name(state));
        run(STEP_MS);
    }
    return world.now_ms - start;
}

static uint64_t until_all_alive(uint64_t bound_ms)
{
    uint64_t start = world.now_ms;
    while (!all_alive()) {
        cr_assert_lt(world.now_ms - start, bound_ms, "%u nodes do not agree", world.count);
        run(STEP_MS);
    }
    return world.now_ms - start;
}

static const unsigned sizes[] = {3, 4, 5, 8, 16, 32};
enum { SIZES = sizeof sizes / sizeof sizes[0] };

Test(swim_world, a_crash_is_known_everywhere_and_nobody_else_is_accused)
{
    for (unsigned i = 0; i < SIZES; i++) {
        open_world(sizes[i], 100 + i, true);
        run(5000);
        world.down[2] = true;
        uint64_t known = until(2, SWIM_DEAD, 12000);
        cr_log_info("%u nodes: dead everywhere after %llu ms", sizes[i], (unsigned long long)known);
        cr_assert_eq(world.deaths, 0);
        cr_assert_eq(world.suspicions, 0);
        run(5000);
        boot(2);
        cr_assert_leq(until_all_alive(5000), 5000);
    }
}

Test(swim_world, lost_connections_make_it_fast)
{
    for (unsigned i = 0; i < SIZES; i++) {
        open_world(sizes[i], 150 + i, true);
        run(5000);
        world.down[2] = true;
        for (uint16_t node = 1; node <= sizes[i]; node++)
            swim_hint(&world.nodes[node], 2, false);
        cr_assert_leq(until(2, SWIM_DEAD, 12000), 2500, "%u nodes", sizes[i]);
        cr_assert_eq(world.deaths, 0);
    }
}

Test(swim_world, idle_nodes_say_little)
{
    for (unsigned i = 0; i < SIZES + 1; i++) {
        unsigned count = i < SIZES ? sizes[i] : 2;
        open_world(count, 200 + i, true);
        run(30000);
        world.sent = world.bytes = 0;
        run(60000);
        double pairs = count * (count - 1) / 2.0;
        double rate = (double)world.sent / 60 / pairs;
        cr_assert_leq(rate, 2.1, "%u nodes: %.2f messages a second and pair", count, rate);
        cr_assert_leq(world.sent, count * 2u * 61);
        cr_assert_leq(world.bytes / world.sent, 120);
        cr_assert_eq(world.suspicions, 0);
    }
}

Test(swim_world, lost_messages_kill_nobody)
{
    for (unsigned i = 0; i < SIZES; i++) {
        open_world(sizes[i], 300 + i, true);
        world.loss_percent = 10;
        run(120000);
        cr_assert_eq(world.deaths, 0, "%u nodes", sizes[i]);
        world.loss_percent = 0;
        until_all_alive(10000);
    }
}

Test(swim_world, the_dead_are_found_under_loss)
{
    for (unsigned i = 0; i < SIZES; i++) {
        open_world(sizes[i], 400 + i, true);
        world.loss_percent = 20;
        run(5000);
        world.down[3] = true;
        until(3, SWIM_DEAD, 40000);
    }
}

static void cut_between(unsigned first_of_other_side, bool cut)
{
    for (unsigned from = 1; from <= world.count; from++) {
        for (unsigned to = 1; to <= world.count; to++) {
            if ((from < first_of_other_side) != (to < first_of_other_side))
                world.cut[from][to] = cut;
        }
    }
}

Test(swim_world, a_healed_partition_is_forgotten)
{
    for (unsigned i = 0; i < SIZES; i++) {
        open_world(sizes[i], 500 + i, true);
        run(5000);
        unsigned other = sizes[i] / 2 + 1;
        cut_between(other, true);
        run(60000);
        for (uint16_t from = 1; from <= sizes[i]; from++) {
            for (uint16_t to = 1; to <= sizes[i]; to++) {
                if (from == to) continue;
                bool same = (from < other) == (to < other);
                cr_assert_eq(swim_state(&world.nodes[from], to), same ? SWIM_ALIVE : SWIM_DEAD,
                    "%u nodes: %u sees %u as %s", sizes[i], from, to,
                    swim_state_name(swim_state(&world.nodes[from], to)));
            }
        }
        cut_between(other, false);
        uint64_t healed = until_all_alive(20000);
        cr_log_info("%u nodes: healed after %llu ms", sizes[i], (unsigned long long)healed);
    }
}

Test(swim_world, one_broken_link_is_no_death)
{
    open_world(5, 600, true);
    world.cut[1][2] = true;
    run(60000);
    cr_assert_eq(world.deaths, 0, "one way");
    world.cut[2][1] = true;
    run(60000);
    cr_assert_eq(world.deaths, 0, "both ways");
    world.cut[1][2] = world.cut[2][1] = false;
    run(10000);
    cr_assert(all_alive());
}

Test(swim_world, a_frozen_node_is_dead_and_taken_back)
{
    for (unsigned i = 0; i < SIZES; i++) {
        open_world(sizes[i], 700 + i, true);
        run(5000);
        world.stalled_until_ms[2] = world.now_ms + 60000;
        for (uint16_t node = 1; node <= sizes[i]; node++)
            swim_hint(&world.nodes[node], 2, true);
        until(2, SWIM_DEAD, 20000);
        world.stalled_until_ms[2] = 0;
        until_all_alive(10000);
        for (uint16_t node = 1; node <= sizes[i]; node++) {
            if (node != 2) cr_assert_eq(swim_state(&world.nodes[2], node), SWIM_ALIVE);
        }
    }
}

Test(swim_world, who_leaves_is_left_everywhere)
{
    for (unsigned i = 0; i < SIZES; i++) {
        open_world(sizes[i], 800 + i, true);
        world.loss_percent = 10;
        run(5000);
        swim_leave(&world.nodes[3], world.now_ms);
        carry(3);
        run(300);
        world.down[3] = true;
        until(3, SWIM_LEFT, 10000);
        run(30000);
        cr_assert(all_see(3, SWIM_LEFT));
        cr_assert_eq(world.true_deaths, 0);
        boot(3);
        until_all_alive(10000);
    }
}

Test(swim_world, replayed_packets_change_nothing)
{
    open_world(5, 900, true);
    run(5000);
    /* a life with all that can be said in it, recorded */
    world.recorded_count = 0;
    world.stalled_until_ms[2] = world.now_ms + 20000;
    until(2, SWIM_DEAD, 20000);
    world.stalled_until_ms[2] = 0;
    until_all_alive(10000);
    swim_leave(&world.nodes[4], world.now_ms);
    carry(4);
    run(2000);
    boot(4);
    until_all_alive(10000);
    uint32_t recorded = world.recorded_count;
    cr_assert_lt(recorded, RECORDED_MAX);
    cr_assert_gt(recorded, 150);
    world.recorded_count = RECORDED_MAX; /* not what is said from here on */
    run(60000);
    world.suspicions = world.deaths = 0;
    uint64_t incarnations[NODES_MAX];
    for (uint16_t node = 1; node <= 5; node++)
        incarnations[node] = swim_incarnation(&world.nodes[node], node);
    for (uint32_t i = 0; i < recorded; i++) {
        const struct packet *packet = &world.recorded[i];
        swim_step(&world.nodes[packet->message.to], packet->from,
            bytes_of(packet->message.bytes, packet->message.size), world.now_ms);
        cr_assert_eq(world.nodes[packet->message.to].event_count, 0);
        carry(packet->message.to);
        if (i % 20 == 0) run(20);
    }
    run(10000);
    cr_assert(all_alive());
    cr_assert_eq(world.suspicions + world.deaths, 0);
    for (uint16_t node = 1; node <= 5; node++)
        cr_assert_eq(swim_incarnation(&world.nodes[node], node), incarnations[node]);
}

Test(swim_world, a_replayed_death_does_not_outlive_its_subject)
{
    open_world(5, 950, true);
    run(5000);
    world.down[2] = true;
    until(2, SWIM_DEAD, 20000);
    world.recorded_count = 0;
    run(5000);
    uint32_t recorded = world.recorded_count;
    boot(2);
    until_all_alive(10000);
    world.deaths = world.suspicions = 0;
    for (uint32_t i = 0; i < recorded; i++) {
        const struct packet *packet = &world.recorded[i];
        swim_step(&world.nodes[packet->message.to], packet->from,
            bytes_of(packet->message.bytes, packet->message.size), world.now_ms);
        carry(packet->message.to);
    }
    cr_assert(all_alive());
    cr_assert_eq(world.suspicions + world.deaths, 0);
}

/* Every node is stalled for about `percent` of the time, half a second to three seconds each time. */
static void run_stalled(uint64_t passed_ms, unsigned percent)
{
    for (uint64_t end = world.now_ms + passed_ms; world.now_ms < end; run(100)) {
        for (uint16_t node = 1; node <= world.count; node++) {
            /* 1750 ms on average; drawn every 100 ms */
            if (runs(node) && prng_chance(&world.prng, percent * 10, (100 - percent) * 175))
                world.stalled_until_ms[node] = world.now_ms + 500 + prng_below(&world.prng, 2500);
        }
    }
}

static unsigned false_deaths(unsigned count, unsigned percent, bool lifeguard, uint64_t seed)
{
    open_world(count, seed, lifeguard);
    run_stalled(600000, percent);
    unsigned deaths = world.deaths;
    memset(world.stalled_until_ms, 0, sizeof world.stalled_until_ms);
    run(15000);
    cr_assert(all_alive(), "%u nodes, %u %%", count, percent);
    return deaths;
}

Test(swim_world, stalls_kill_far_less_often_than_in_plain_swim)
{
    unsigned with = 0, without = 0;
    for (uint64_t seed = 1; seed <= 2; seed++) {
        with += false_deaths(16, 10, true, seed);
        without += false_deaths(16, 10, false, seed);
    }
    cr_log_info("false deaths at 10 %%: %u, plain %u", with, without);
    cr_assert_gt(without, 20, "the measure measures: %u", without);
    cr_assert_leq(with * 10, without, "%u against %u", with, without);
}

Test(swim_world, a_crash_is_known_though_everybody_stalls)
{
    for (unsigned i = 0; i < SIZES; i++) {
        open_world(sizes[i], 1200 + i, true);
        run_stalled(60000, 10);
        world.down[1] = true;
        run_stalled(60000, 10);
        run(1000);
        cr_assert(all_see(1, SWIM_DEAD), "%u nodes", sizes[i]);
    }
}

Test(swim_world, heavy_stalls_are_survived)
{
    unsigned with = false_deaths(8, 30, true, 5), without = false_deaths(8, 30, false, 5);
    cr_log_info("false deaths at 30 %%: %u, plain %u", with, without);
    cr_assert_leq(with * 3, without, "%u against %u", with, without);
}

Test(swim_world, chaos_ends_in_agreement)
{
    for (uint64_t seed = 1; seed <= 8; seed++) {
        open_world(3 + (unsigned)seed * 2, 1000 + seed, true);
        for (unsigned i = 0; i < 300; i++) {
            uint16_t node = (uint16_t)(1 + prng_below(&world.prng, world.count));
            switch (prng_below(&world.prng, 6)) {
            case 0:
                world.down[node] = true;
                break;
            case 1:
                if (world.down[node]) boot(node);
                break;
            case 2:
                world.stalled_until_ms[node] = world.now_ms + prng_below(&world.prng, 8000);
                break;
            case 3:
                cut_between(1 + (unsigned)prng_below(&world.prng, world.count), true);
                break;
            case 4:
                memset(world.cut, 0, sizeof world.cut);
                break;
            case 5:
                world.loss_percent = (unsigned)prng_below(&world.prng, 50);
                break;
            }
            swim_hint(
                &world.nodes[node], (uint16_t)(1 + prng_below(&world.prng, world.count)), i % 2);
            run(prng_below(&world.prng, 3000));
        }
        memset(world.cut, 0, sizeof world.cut);
        memset(world.stalled_until_ms, 0, sizeof world.stalled_until_ms);
        world.loss_percent = 0;
        for (uint16_t node = 1; node <= world.count; node++) {
            if (world.down[node]) boot(node);
        }
        until_all_alive(40000);
    }
}
