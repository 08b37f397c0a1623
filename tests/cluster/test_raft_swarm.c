#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/prng.h"
#include "tests/cluster/raft_world.h"

/* Random courses of a group of five and its changes of members: lost, repeated and reordered messages, cut links,
 * crashes, slow logs, compaction and snapshots, transfers, hints, reads. Each seed draws its own rates. Afterwards all
 * is well again, and the group must get something done. SWARM_SEED runs one seed with a trace at its end, SWARM_SEEDS
 * more of them. */

enum { FIRST_NODES = 5, ALL_NODES = 7, STEPS = 4000, READS = 8, INDEX_MAX = WORLD_ENTRIES - 80 };

static struct world world;
static struct prng prng;
static uint64_t seed;

static struct rates {
    uint64_t drop, repeat, cut, crash, propose, config, compact, transfer, flush, read;
} rates;

/* A read under way at a leader: what was committed anywhere when it came must be in what it sees. */
static struct read {
    raft_node node;
    uint64_t term, round, commit, needs;
} reads[READS];

static struct {
    uint64_t elections, commits, configs, joints, snapshots, crashes, reads, leases, transfers;
} count;

static bool chance(uint64_t per_thousand)
{
    return prng_chance(&prng, per_thousand, 1000) != 0;
}

static raft_node any_node(void)
{
    return (raft_node)(1 + prng_below(&prng, ALL_NODES));
}

static void expect(bool good, const char *sentence)
{
    if (!good && world.broken == NULL) world.broken = sentence;
}

static void draw_rates(void)
{
    rates.drop = prng_below(&prng, 150);
    rates.repeat = prng_below(&prng, 100);
    rates.cut = prng_below(&prng, 6);
    rates.crash = prng_below(&prng, 8);
    rates.propose = prng_below(&prng, 120);
    rates.config = prng_below(&prng, 10);
    rates.compact = prng_below(&prng, 20);
    rates.transfer = prng_below(&prng, 6);
    rates.flush = 50 + prng_below(&prng, 950);
    rates.read = prng_below(&prng, 60);
}

static bool in(const raft_node *nodes, size_t size, raft_node node)
{
    for (size_t i = 0; i < size; i++) {
        if (nodes[i] == node) return true;
    }
    return false;
}

static uint8_t toggle(raft_node *nodes, uint8_t size, raft_node node)
{
    uint8_t kept = 0;
    for (uint8_t i = 0; i < size; i++) {
        if (nodes[i] != node) nodes[kept++] = nodes[i];
    }
    if (kept < size) {
        nodes[kept] = 0;
        return kept;
    }
    for (; kept > 0 && nodes[kept - 1] > node; kept--) {
        nodes[kept] = nodes[kept - 1];
    }
    nodes[kept] = node;
    return (uint8_t)(size + 1);
}

static void change_config(raft_node leader)
{
    struct raft_config config = world_raft(&world, leader)->config;
    raft_node node = any_node();
    if (config.old_count > 0 || config.learner_count > 1) return;
    bool was_voter = in(config.voters, config.voter_count, node);
    if (in(config.learners, config.learner_count, node)) {
        config.learner_count = toggle(config.learners, config.learner_count, node);
    }
    if (!was_voter && chance(300)) {
        config.learner_count = toggle(config.learners, config.learner_count, node);
    } else if (chance(500)) {
        config.voter_count = toggle(config.voters, config.voter_count, node);
    } else {
        memcpy(config.old_voters, config.voters, sizeof config.voters);
        config.old_count = config.voter_count;
        config.voter_count = toggle(config.voters, config.voter_count, node);
        raft_node other = any_node();
        config.voter_count = toggle(config.voters, config.voter_count, other);
        if (in(config.learners, config.learner_count, other)) {
            config.learner_count = toggle(config.learners, config.learner_count, other);
        }
        /* who goes is in the old set still, so it cannot be a learner yet */
    }
    if (config.voter_count < 2) return;
    if (world.config_count + 4 > WORLD_CONFIGS) return;
    if (world_propose_config(&world, leader, config) == 0) return;
    count.configs++;
    count.joints += config.old_count > 0;
}

static void start_read(raft_node node)
{
    struct raft *raft = world_raft(&world, node);
    struct read *read = &reads[prng_below(&prng, READS)];
    uint64_t commit = raft->commit;
    uint64_t needs = world.committed_count;
    uint64_t round = raft_read_round(raft);
    if (round != 0) *read = (struct read){node, raft->term, round, commit, needs};
    world_ready(&world, node);
}

static void check_reads(void)
{
    for (int i = 0; i < READS; i++) {
        struct read *read = &reads[i];
        if (read->node == 0) continue;
        const struct raft *raft = world_raft(&world, read->node);
        bool lost =
            !world.nodes[read->node].up || raft->role != RAFT_LEADER || raft->term != read->term;
        if (!lost && raft->round_confirmed < read->round) continue;
        if (!lost) {
            count.reads++;
            expect(read->commit >= read->needs, "a read did not see what was committed before it");
        }
        read->node = 0;
    }
    for (raft_node node = 1; node <= ALL_NODES; node++) {
        const struct raft *raft = world_raft(&world, node);
        if (!world.nodes[node].up || !raft_lease_valid(raft, raft->now_ms)) continue;
        count.leases++;
        expect(
            raft->commit >= world.committed_count, "a lease was valid while another one committed");
    }
}

/* Clocks that run at rates of their own: up to drift_max thousandths fast or slow. */
static int drift_max, drift[ALL_NODES + 1], drifted[ALL_NODES + 1];

static void draw_drift(void)
{
    for (raft_node node = 1; node <= ALL_NODES; node++) {
        drift[node] = (int)prng_below(&prng, (uint64_t)(2 * drift_max + 1)) - drift_max;
        drifted[node] = 0;
    }
}

static uint64_t ten_ms(raft_node node)
{
    drifted[node] += 10 * drift[node];
    int whole_ms = drifted[node] / 1000;
    drifted[node] -= whole_ms * 1000;
    return (uint64_t)(10 + whole_ms);
}

/* A host knows when a stream of its own ended. */
static void end_lost_snapshots(void)
{
    for (raft_node node = 1; node <= ALL_NODES; node++) {
        struct raft *raft = world_raft(&world, node);
        if (!world.nodes[node].up || raft->role != RAFT_LEADER) continue;
        for (uint32_t i = 0; i < raft->progress_count; i++) {
            raft_node to = raft->progress[i].node;
            if (raft->progress[i].state != RAFT_SNAPSHOT) continue;
            if (world_find(&world, WORLD_INSTALL, node, to) >= 0) continue;
            raft_snapshot_end(raft, to, false, 0);
        }
        world_ready(&world, node);
    }
}

static void time_passes(void)
{
    end_lost_snapshots();
    for (raft_node node = 1; node <= ALL_NODES; node++) {
        world_tick(&world, node, ten_ms(node));
        if (chance(rates.flush)) world_flush(&world, node);
    }
}

static void deliver_some(void)
{
    for (uint64_t i = prng_below(&prng, 12); i > 0 && world.pending_count > 0; i--) {
        /* mostly in order, for a network is */
        uint32_t among = chance(700) ? 1 : world.pending_count;
        uint32_t position = (uint32_t)prng_below(&prng, among);
        if (chance(rates.drop)) {
            world_drop(&world, position);
        } else {
            world_deliver(&world, position, world.pending_count < 200 && chance(rates.repeat));
        }
    }
    while (world.pending_count > 150) {
        world_drop(&world, (uint32_t)prng_below(&prng, world.pending_count));
    }
}

static void crash_or_restart(void)
{
    raft_node node = any_node();
    if (world.nodes[node].up) {
        world_crash(&world, node);
        count.crashes++;
    } else {
        world_restart(&world, node);
    }
}

static void act_on_leader(raft_node leader)
{
    struct raft *raft = world_raft(&world, leader);
    if (raft->last < INDEX_MAX && chance(rates.propose)) world_propose(&world, leader);
    if (raft->last < INDEX_MAX && chance(rates.config)) change_config(leader);
    if (chance(rates.read)) start_read(leader);
    if (chance(rates.transfer)) {
        count.transfers += raft_transfer(raft, chance(500) ? 0 : any_node());
        world_ready(&world, leader);
    }
    if (chance(1)) {
        raft_step_down(raft);
        world_ready(&world, leader);
    }
}

static void step(void)
{
    if (chance(rates.cut)) world.cut[any_node()][any_node()] ^= true;
    if (chance(rates.cut)) world_isolate(&world, any_node(), chance(500));
    if (chance(rates.crash)) crash_or_restart();
    raft_node node = any_node();
    if (world.nodes[node].up) {
        struct raft *raft = world_raft(&world, node);
        if (chance(rates.compact) && raft->commit > 3) raft_compact(raft, raft->commit - 3);
        if (chance(10)) raft_hint_down(raft, raft->leader);
    }
    for (node = 1; node <= ALL_NODES; node++) {
        if (world.nodes[node].up && world_raft(&world, node)->role == RAFT_LEADER)
            act_on_leader(node);
    }
    if (chance(300)) time_passes();
    deliver_some();
    check_reads();
}

static void all_is_well_again(void)
{
    memset(world.cut, 0, sizeof world.cut);
    for (raft_node node = 1; node <= ALL_NODES; node++) {
        if (!world.nodes[node].up) world_restart(&world, node);
    }
    /* without pre-votes removed nodes and those that are behind split the votes for a while */
    uint64_t patience_ms = world.settings.pre_vote ? 6000 : 30000;
    world_run(&world, patience_ms);
    end_lost_snapshots();
    world_run(&world, patience_ms);
    world.tracing = getenv("SWARM_SEED") != NULL;
    world.trace_size = 0;
    raft_node leader = world_leader(&world);
    expect(leader != 0, "no leader, though all is well");
    if (leader == 0) return;
    uint64_t index = world_propose(&world, leader);
    expect(index != 0, "a leader takes nothing");
    world_run(&world, 3000);
    expect(world_leader(&world) == leader, "a leader is replaced, though all is well");
    const struct raft *raft = world_raft(&world, leader);
    expect(raft->config.old_count == 0, "still joint");
    expect(raft->commit >= index, "nothing is committed");
    for (raft_node node = 1; node <= ALL_NODES; node++) {
        if (!raft_config_is_voter(&raft->config, node) &&
            !raft_config_is_learner(&raft->config, node)) {
            continue;
        }
        expect(world_raft(&world, node)->commit == raft->commit, "a member was left behind");
    }
    world_check(&world);
}

static void run_seed(uint64_t number, bool leases, bool pre_vote)
{
    seed = number;
    prng_init(&prng, number);
    memset(reads, 0, sizeof reads);
    struct raft_settings settings = world_settings();
    settings.leases = leases;
    settings.pre_vote = pre_vote;
    settings.inflight_messages = (uint32_t)(1 + prng_below(&prng, 8));
    world_init(&world, FIRST_NODES, &settings, number);
    world.batch = (uint32_t)(1 + prng_below(&prng, WORLD_BATCH));
    for (raft_node node = FIRST_NODES + 1; node <= ALL_NODES; node++) {
        world_add_node(&world, node);
    }
    draw_rates();
    draw_drift();
    bool tracing = getenv("SWARM_SEED") != NULL;
    for (int i = 0; i < STEPS && world.broken == NULL; i++) {
        world.tracing = tracing;
        if (world.trace_size > WORLD_TRACE / 2) {
            memmove(world.trace, world.trace + WORLD_TRACE / 4, WORLD_TRACE / 4);
            world.trace_size = WORLD_TRACE / 4;
        }
        step();
        if (i % 16 == 0) world_check(&world);
    }
    if (world.broken == NULL) {
        world.tracing = false;
        all_is_well_again();
    }
    if (tracing) fprintf(stderr, "%.*s\n", (int)world.trace_size, world.trace);
    if (world.broken != NULL) return;
    count.elections += world_raft(&world, world_leader(&world))->term;
    count.commits += world.committed_count;
    count.snapshots += world.snapshots;
}

static void run_seeds(uint64_t from, uint64_t seeds, bool leases, bool pre_vote)
{
    if (getenv("SWARM_SEED") != NULL) {
        from = strtoull(getenv("SWARM_SEED"), NULL, 10);
        seeds = 1;
    }
    if (getenv("SWARM_SEEDS") != NULL) seeds = strtoull(getenv("SWARM_SEEDS"), NULL, 10);
#ifdef __SANITIZE_ADDRESS__
    seeds = (seeds + 9) / 10;
#endif
    for (uint64_t i = 0; i < seeds; i++) {
        run_seed(from + i, leases, pre_vote);
        cr_assert_null(world.broken, "seed %lu: %s", (unsigned long)seed, world.broken);
    }
    fprintf(stderr, "%lu seeds: %lu terms, %lu entries, %lu changes, %lu joint, %lu snapshots,",
        (unsigned long)seeds, (unsigned long)count.elections, (unsigned long)count.commits,
        (unsigned long)count.configs, (unsigned long)count.joints, (unsigned long)count.snapshots);
    fprintf(stderr, " %lu crashes, %lu transfers, %lu reads, %lu moments with a lease\n",
        (unsigned long)count.crashes, (unsigned long)count.transfers, (unsigned long)count.reads,
        (unsigned long)count.leases);
    if (seeds < 10) return;
    cr_assert_gt(count.configs, seeds / 2);
    cr_assert_gt(count.joints, seeds / 8);
    cr_assert_gt(count.reads, seeds);
    cr_assert_gt(count.crashes, seeds);
    cr_assert_gt(count.snapshots, seeds / 8);
    cr_assert_gt(count.transfers, seeds / 2);
    if (leases) cr_assert_gt(count.leases, seeds);
}

Test(raft_swarm, all_holds_and_the_group_recovers)
{
    drift_max = 30;
    run_seeds(1000, 2000, false, true);
}

Test(raft_swarm, with_leases)
{
    drift_max = 30; /* 5 in a hundred are the limit */
    run_seeds(20000, 1500, true, true);
}

Test(raft_swarm, without_pre_vote)
{
    drift_max = 30;
    run_seeds(30000, 500, false, false);
}

/* A leader is cut off right after a heartbeat, and the others elect another one. True: the old one's lease was
 * still valid when the new one had committed something. */
static bool lease_outlives(uint64_t number, uint64_t leader_ms, uint64_t others_ms)
{
    struct raft_settings settings = world_settings();
    settings.leases = true;
    world_init(&world, 3, &settings, number);
    world_run(&world, 3000);
    raft_node old = world_leader(&world);
    world_heartbeat(&world, old);
    world_settle(&world);
    cr_assert(raft_lease_valid(world_raft(&world, old), world_raft(&world, old)->now_ms));
    uint64_t committed = world.committed_count;
    world_isolate(&world, old, true);
    while (raft_lease_valid(world_raft(&world, old), world_raft(&world, old)->now_ms)) {
        for (raft_node node = 1; node <= 3; node++) {
            world_tick(&world, node, node == old ? leader_ms : others_ms);
        }
        world_settle(&world);
        if (world.committed_count > committed) return true;
    }
    return false;
}

Test(raft_swarm, a_lease_holds_with_clocks_that_differ_by_a_tenth_and_not_by_half)
{
    bool broken = false;
    for (uint64_t i = 0; i < 100; i++) {
        cr_assert_not(lease_outlives(i, 10, 11), "seed %lu", (unsigned long)i);
        cr_assert_not(lease_outlives(i, 11, 10), "seed %lu", (unsigned long)i);
        broken |= lease_outlives(i, 10, 15);
    }
    cr_assert(broken, "this check cannot fail");
}
