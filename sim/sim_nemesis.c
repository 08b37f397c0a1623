#include <stdio.h>
#include <string.h>

#include "sim/sim_cluster_internal.h"

/* What goes wrong, and when. Every kind begins by chance at its scenario's rate and ends by itself; damage waits until
 * the cluster is whole, so that it stays with a minority. */

enum weather_kind { WEATHER_LOSS, WEATHER_DELAY, WEATHER_DUPLICATE };

static const struct scenario scenarios[] = {
    {.name = "cluster",
        .rates = {[SIM_FAULT_LOSS] = 1500,
            [SIM_FAULT_DELAY] = 1000,
            [SIM_FAULT_DUPLICATE] = 1000,
            [SIM_FAULT_RESET] = 2000,
            [SIM_FAULT_ONE_WAY] = 1000,
            [SIM_FAULT_PARTITION] = 800,
            [SIM_FAULT_KILL] = 1500,
            [SIM_FAULT_PAUSE] = 1000,
            [SIM_FAULT_TRANSFER] = 1500,
            [SIM_FAULT_STOP] = 700}},
    {.name = "partition",
        .rates = {[SIM_FAULT_LOSS] = 2000,
            [SIM_FAULT_DELAY] = 2000,
            [SIM_FAULT_RESET] = 3000,
            [SIM_FAULT_ONE_WAY] = 4000,
            [SIM_FAULT_PARTITION] = 4000,
            [SIM_FAULT_ISOLATE] = 3000,
            [SIM_FAULT_PAUSE] = 1000,
            [SIM_FAULT_TRANSFER] = 500}},
    {.name = "crash",
        .rates = {[SIM_FAULT_LOSS] = 500,
            [SIM_FAULT_KILL] = 3000,
            [SIM_FAULT_POWER] = 3000,
            [SIM_FAULT_TORN] = 3000,
            [SIM_FAULT_ALL_DOWN] = 700,
            [SIM_FAULT_PAUSE] = 500,
            [SIM_FAULT_STOP] = 1000}},
    {.name = "membership",
        .rates = {[SIM_FAULT_JOIN] = 4000,
            [SIM_FAULT_REMOVE] = 3000,
            [SIM_FAULT_TRANSFER] = 3000,
            [SIM_FAULT_STOP] = 1500,
            [SIM_FAULT_KILL] = 1000,
            [SIM_FAULT_POWER] = 800,
            [SIM_FAULT_WIPE] = 1000,
            [SIM_FAULT_PARTITION] = 500}},
    {.name = "disk",
        .rates = {[SIM_FAULT_SLOW_DISK] = 2500,
            [SIM_FAULT_FULL] = 2000,
            [SIM_FAULT_EIO] = 2500,
            [SIM_FAULT_STORE] = 2500,
            [SIM_FAULT_ROT_LOG] = 4000,
            [SIM_FAULT_ROT_STORE] = 4000,
            [SIM_FAULT_WIPE] = 1000,
            [SIM_FAULT_POWER] = 1000,
            [SIM_FAULT_TORN] = 1500}},
    {.name = "clock",
        .rates = {[SIM_FAULT_JUMP] = 4000,
            [SIM_FAULT_DRIFT] = 4000,
            [SIM_FAULT_PAUSE] = 3000,
            [SIM_FAULT_KILL] = 800,
            [SIM_FAULT_PARTITION] = 1000,
            [SIM_FAULT_TRANSFER] = 1000}},
    {.name = "all"},
};
enum { SCENARIOS = sizeof scenarios / sizeof scenarios[0] };

const char *const *sim_cluster_scenarios(void)
{
    static const char *names[SCENARIOS + 1];
    for (int i = 0; i < SCENARIOS; i++)
        names[i] = scenarios[i].name;
    return names;
}

static uint64_t between_ms(struct nemesis *nemesis, uint64_t least, uint64_t most)
{
    return (least + prng_below(&nemesis->prng, most - least + 1)) * MILLISECOND;
}

void nemesis_init(struct sim_cluster *cluster)
{
    struct nemesis *nemesis = &cluster->nemesis;
    *nemesis = (struct nemesis){0};
    prng_init(&nemesis->prng, prng_next(&cluster->prng));
    struct prng *prng = &nemesis->prng;
    nemesis->scenario = scenarios[prng_below(prng, SCENARIOS)];
    for (int i = 0; cluster->options->scenario != NULL && i < SCENARIOS; i++) {
        if (strcmp(scenarios[i].name, cluster->options->scenario) == 0)
            nemesis->scenario = scenarios[i];
    }
    /* a swarm: which kinds meet, and how often, is drawn too */
    bool all = strcmp(nemesis->scenario.name, "all") == 0;
    uint32_t intensity = 1u << prng_below(prng, 3);
    for (int i = 0; i < SIM_FAULTS; i++) {
        bool on = prng_chance(prng, 1, 2);
        uint32_t rate = (uint32_t)(200 + prng_below(prng, 1500));
        if (all) nemesis->scenario.rates[i] = on ? rate : 0;
        nemesis->scenario.rates[i] *= intensity;
    }
    nemesis->weather = (struct sim_net_weather){
        .delay_min_ns = 50000,
        .delay_max_ns = 100000 + prng_below(prng, 4) * 1500000,
    };
    sim_net_set_weather(cluster->net, &nemesis->weather);
}

static bool happens(struct nemesis *nemesis, enum sim_fault fault)
{
    uint32_t rate = nemesis->scenario.rates[fault];
    return rate > 0 && prng_chance(&nemesis->prng, rate, 1000000);
}

static void count(
    struct sim_cluster *cluster, enum sim_fault fault, const char *what, unsigned where)
{
    cluster->result->faults[fault]++;
    sim_cluster_trace(cluster, 100 + (uint64_t)fault, where);
    if (what != NULL) sim_cluster_note(cluster, "%s m%u", what, where);
}

static struct machine *any_machine(
    struct sim_cluster *cluster, bool (*fits)(const struct machine *))
{
    unsigned start = (unsigned)prng_below(&cluster->nemesis.prng, cluster->machine_count);
    for (unsigned i = 0; i < cluster->machine_count; i++) {
        struct machine *machine = &cluster->machines[(start + i) % cluster->machine_count];
        if (fits(machine)) return machine;
    }
    return NULL;
}

static bool is_running(const struct machine *machine)
{
    return machine->state == MACHINE_RUNNING && machine->paused_until_ns == 0;
}

static bool is_empty(const struct machine *machine)
{
    return machine->state == MACHINE_EMPTY && machine->restart_ns == UINT64_MAX &&
        machine->number == 0;
}

/* ---- network ---- */

static void set_weather(struct sim_cluster *cluster, enum weather_kind kind, uint64_t ns)
{
    struct nemesis *nemesis = &cluster->nemesis;
    nemesis->weather_until_ns[kind] = cluster->now_ns + ns;
    sim_net_set_weather(cluster->net, &nemesis->weather);
}

static void clear_cuts(struct sim_cluster *cluster)
{
    for (unsigned a = 0; a < cluster->machine_count; a++) {
        for (unsigned b = 0; b < cluster->machine_count; b++)
            sim_net_cut(cluster->net, a, b, false);
    }
    cluster->nemesis.cut_until_ns = 0;
}

static void hold_cut(struct sim_cluster *cluster)
{
    struct nemesis *nemesis = &cluster->nemesis;
    uint64_t until = cluster->now_ns + between_ms(nemesis, 100, 6000);
    if (until > nemesis->cut_until_ns) nemesis->cut_until_ns = until;
}

static void cut_one_way(struct sim_cluster *cluster)
{
    struct prng *prng = &cluster->nemesis.prng;
    unsigned from = (unsigned)prng_below(prng, cluster->machine_count);
    bool everywhere = prng_chance(prng, 1, 3), outward = prng_chance(prng, 1, 2);
    unsigned to = (unsigned)prng_below(prng, cluster->machine_count);
    for (unsigned i = 0; i < cluster->machine_count; i++) {
        if (i == from || (!everywhere && i != to)) continue;
        sim_net_cut(cluster->net, outward ? from : i, outward ? i : from, true);
    }
    count(cluster, SIM_FAULT_ONE_WAY, "one-way cut at", from);
    hold_cut(cluster);
}

static void partition(struct sim_cluster *cluster, uint64_t side, enum sim_fault fault)
{
    for (unsigned a = 0; a < cluster->machine_count; a++) {
        for (unsigned b = 0; b < cluster->machine_count; b++) {
            if ((side >> a & 1) != (side >> b & 1)) sim_net_cut(cluster->net, a, b, true);
        }
    }
    count(cluster, fault, "cut off: set", (unsigned)side);
    hold_cut(cluster);
}

static void network(struct sim_cluster *cluster)
{
    struct nemesis *nemesis = &cluster->nemesis;
    struct prng *prng = &nemesis->prng;
    if (happens(nemesis, SIM_FAULT_LOSS)) {
        nemesis->weather.loss_ppm = (uint32_t)prng_below(prng, 200000);
        set_weather(cluster, WEATHER_LOSS, between_ms(nemesis, 100, 5000));
    }
    if (happens(nemesis, SIM_FAULT_DELAY)) {
        nemesis->weather.slow_ppm = (uint32_t)prng_below(prng, 200000);
        nemesis->weather.slow_ns = between_ms(nemesis, 5, 1500);
        set_weather(cluster, WEATHER_DELAY, between_ms(nemesis, 100, 5000));
    }
    if (happens(nemesis, SIM_FAULT_DUPLICATE)) {
        nemesis->weather.duplicate_ppm = (uint32_t)prng_below(prng, 300000);
        set_weather(cluster, WEATHER_DUPLICATE, between_ms(nemesis, 100, 5000));
    }
    if (happens(nemesis, SIM_FAULT_RESET)) {
        unsigned a = (unsigned)prng_below(prng, cluster->machine_count);
        unsigned b = (unsigned)prng_below(prng, cluster->machine_count);
        sim_net_reset(cluster->net, a, b);
        count(cluster, SIM_FAULT_RESET, NULL, a);
    }
    if (happens(nemesis, SIM_FAULT_ONE_WAY)) cut_one_way(cluster);
    if (happens(nemesis, SIM_FAULT_PARTITION))
        partition(
            cluster, prng_below(prng, UINT64_C(1) << cluster->machine_count), SIM_FAULT_PARTITION);
    if (happens(nemesis, SIM_FAULT_ISOLATE))
        partition(
            cluster, UINT64_C(1) << prng_below(prng, cluster->machine_count), SIM_FAULT_ISOLATE);
}

/* Loss, delay and repetition count when they did something. */
static void calm_down(struct sim_cluster *cluster)
{
    struct nemesis *nemesis = &cluster->nemesis;
    uint64_t now = cluster->now_ns;
    bool changed = false;
    for (int i = 0; i <= WEATHER_DUPLICATE; i++) {
        if (nemesis->weather_until_ns[i] == 0 || nemesis->weather_until_ns[i] > now) continue;
        nemesis->weather_until_ns[i] = 0;
        if (i == WEATHER_LOSS) nemesis->weather.loss_ppm = 0;
        if (i == WEATHER_DELAY) nemesis->weather.slow_ppm = 0;
        if (i == WEATHER_DUPLICATE) nemesis->weather.duplicate_ppm = 0;
        changed = true;
    }
    if (changed) sim_net_set_weather(cluster->net, &nemesis->weather);
    if (nemesis->cut_until_ns != 0 && nemesis->cut_until_ns <= now) clear_cuts(cluster);
    for (unsigned i = 0; i < cluster->machine_count; i++) {
        struct machine *machine = &cluster->machines[i];
        if (nemesis->slow_until_ns[i] != 0 && nemesis->slow_until_ns[i] <= now) {
            nemesis->slow_until_ns[i] = 0;
            sim_disk_set_latency(machine->disk, 50000, 2000000);
        }
        if (nemesis->full_until_ns[i] != 0 && nemesis->full_until_ns[i] <= now) {
            nemesis->full_until_ns[i] = 0;
            sim_disk_set_capacity(machine->disk, 0);
        }
        if (machine->paused_until_ns <= now) machine->paused_until_ns = 0;
    }
}

/* ---- processes and disks ---- */

static void processes(struct sim_cluster *cluster)
{
    struct nemesis *nemesis = &cluster->nemesis;
    struct machine *machine;
    for (int power = 0; power <= 1; power++) {
        enum sim_fault fault = power ? SIM_FAULT_POWER : SIM_FAULT_KILL;
        if (!happens(nemesis, fault)) continue;
        machine = any_machine(cluster, machine_has_process);
        if (machine == NULL) continue;
        count(cluster, fault, NULL, machine->index);
        machine_crash(machine, power, between_ms(nemesis, 1, 4000));
    }
    if (happens(nemesis, SIM_FAULT_TORN) && (machine = any_machine(cluster, is_running)) != NULL) {
        sim_disk_cut_at(machine->disk, 1 + prng_below(&nemesis->prng, 20));
        count(cluster, SIM_FAULT_TORN, "power goes within a write of", machine->index);
    }
    if (happens(nemesis, SIM_FAULT_ALL_DOWN)) {
        count(cluster, SIM_FAULT_ALL_DOWN, "power goes everywhere, even", 0);
        for (unsigned i = 0; i < cluster->machine_count; i++) {
            machine = &cluster->machines[i];
            if (machine_has_process(machine))
                machine_crash(machine, true, between_ms(nemesis, 1, 3000));
        }
    }
    if (happens(nemesis, SIM_FAULT_PAUSE) && (machine = any_machine(cluster, is_running)) != NULL) {
        machine_pause(machine, between_ms(nemesis, 20, 5000));
        count(cluster, SIM_FAULT_PAUSE, "pause of", machine->index);
    }
    if (happens(nemesis, SIM_FAULT_STOP) && (machine = any_machine(cluster, is_running)) != NULL)
        machine_stop(machine, between_ms(nemesis, 1, 2000));
}

static void disks(struct sim_cluster *cluster)
{
    struct nemesis *nemesis = &cluster->nemesis;
    struct prng *prng = &nemesis->prng;
    struct machine *machine;
    if (happens(nemesis, SIM_FAULT_SLOW_DISK) &&
        (machine = any_machine(cluster, is_running)) != NULL) {
        uint64_t least = between_ms(nemesis, 5, 200);
        sim_disk_set_latency(machine->disk, least, least * 3);
        nemesis->slow_until_ns[machine->index] = cluster->now_ns + between_ms(nemesis, 500, 5000);
        count(cluster, SIM_FAULT_SLOW_DISK, "slow disk of", machine->index);
    }
    if (happens(nemesis, SIM_FAULT_FULL) && (machine = any_machine(cluster, is_running)) != NULL) {
        sim_disk_set_capacity(machine->disk, 3 * SLOT_SIZE);
        nemesis->full_until_ns[machine->index] = cluster->now_ns + between_ms(nemesis, 200, 4000);
        count(cluster, SIM_FAULT_FULL, "full disk of", machine->index);
    }
    if (happens(nemesis, SIM_FAULT_EIO) && (machine = any_machine(cluster, is_running)) != NULL) {
        sim_disk_fail_at(machine->disk, 1 + prng_below(prng, 20), 1, ERR_IO);
        machine->excused = true;
        count(cluster, SIM_FAULT_EIO, "an error waits on the disk of", machine->index);
    }
    if (happens(nemesis, SIM_FAULT_STORE) && (machine = any_machine(cluster, is_running)) != NULL) {
        sim_kv_fail_commit(cluster->stores, machine->store, 1 + prng_below(prng, 3),
            prng_chance(prng, 1, 2) ? ERR_FULL : ERR_IO);
        count(cluster, SIM_FAULT_STORE, "a failing commit waits in the store of", machine->index);
    }
}

static void clocks(struct sim_cluster *cluster)
{
    struct nemesis *nemesis = &cluster->nemesis;
    struct prng *prng = &nemesis->prng;
    if (happens(nemesis, SIM_FAULT_JUMP)) {
        struct machine *machine = &cluster->machines[prng_below(prng, cluster->machine_count)];
        int64_t ms = (int64_t)prng_below(prng, prng_chance(prng, 1, 4) ? 86400000 : 5000);
        if (prng_chance(prng, 1, 2)) ms = -ms;
        sim_clock_jump_wall(&machine->clock, ms);
        count(cluster, SIM_FAULT_JUMP, NULL, machine->index);
    }
    if (happens(nemesis, SIM_FAULT_DRIFT)) {
        struct machine *machine = &cluster->machines[prng_below(prng, cluster->machine_count)];
        /* leases hold for clocks that differ by a few per cent; everything else for any */
        uint64_t most = machine->leases ? 20000 : 300000;
        sim_clock_set_drift(&machine->clock, (int64_t)prng_below(prng, 2 * most) - (int64_t)most);
        count(cluster, SIM_FAULT_DRIFT, NULL, machine->index);
    }
}

/* ---- damage ---- */

/* The only machine that may be damaged now; NULL: none may. */
static struct machine *damage_target(struct sim_cluster *cluster)
{
    char why[200];
    bool whole = monitor_whole(cluster, why, sizeof why);
    struct machine *marked = NULL;
    unsigned members = 0;
    for (unsigned i = 0; i < cluster->machine_count; i++) {
        struct machine *machine = &cluster->machines[i];
        if (machine->removing || machine->removed) return NULL;
        members += machine->number != 0;
        if (machine->tainted) return NULL;
        if (machine->silent_damage) marked = machine;
    }
    if (!whole || members < 3 || cluster->replicas < 3) return NULL;
    struct machine *target = marked;
    if (target == NULL) target = any_machine(cluster, is_running);
    return target != NULL && is_running(target) ? target : NULL;
}

struct slots {
    struct sim_cluster *cluster;
    struct machine *machine;
    char chosen[64];
    char last[64];
    unsigned count;
};

static void consider_slot(void *ctx, const char *name)
{
    struct slots *slots = ctx;
    slots->count++;
    if (prng_chance(&slots->cluster->nemesis.prng, 1, slots->count))
        snprintf(slots->chosen, sizeof slots->chosen, "%s", name);
}

/* Not at the end of what was written: a flipped bit in the very last batch cannot be told from a write that never
 * ended, and is left to the tests of the log. */
static bool rot_log(struct machine *machine)
{
    struct sim_cluster *cluster = machine->cluster;
    struct prng *prng = &cluster->nemesis.prng;
    struct slots slots = {.cluster = cluster, .machine = machine};
    char newest[64];
    sim_disk_newest(machine->disk, newest, sizeof newest);
    struct disk table = sim_disk_table(machine->disk);
    if (table.list(table.ctx, consider_slot, &slots) != OK || slots.count < 2) return false;
    if (strcmp(slots.chosen, newest) == 0) return false;
    uint64_t size = sim_disk_file_size(machine->disk, slots.chosen);
    uint8_t block[64];
    for (int attempt = 0; attempt < 20 && size > 2 * DISK_BLOCK; attempt++) {
        uint64_t offset = prng_below(prng, size / 2 - sizeof block);
        if (!sim_disk_peek(machine->disk, slots.chosen, offset, block, sizeof block)) return false;
        for (size_t i = 0; i < sizeof block; i++) {
            if (block[i] != 0) return sim_disk_flip(machine->disk, slots.chosen, offset + i, 3);
        }
    }
    return false;
}

static void damage(struct sim_cluster *cluster)
{
    struct nemesis *nemesis = &cluster->nemesis;
    struct prng *prng = &nemesis->prng;
    bool wipe = happens(nemesis, SIM_FAULT_WIPE);
    bool log = happens(nemesis, SIM_FAULT_ROT_LOG);
    bool store = happens(nemesis, SIM_FAULT_ROT_STORE);
    if (!wipe && !log && !store) return;
    struct machine *target = damage_target(cluster);
    if (target == NULL) return;
    if (wipe) {
        sim_cluster_note(cluster, "m%u loses its disk", target->index);
        target->tainted = true;
        machine_crash(target, true, UINT64_MAX);
        target->state = MACHINE_DAMAGED;
    } else if (log) {
        machine_crash(target, false, between_ms(nemesis, 1, 500));
        sim_disk_restart(target->disk);
        bool flipped = false;
        for (uint64_t bits = 1 + prng_below(prng, 3); bits > 0; bits--)
            flipped = rot_log(target) || flipped;
        if (!flipped) return;
        target->tainted = target->excused = true;
        count(cluster, SIM_FAULT_ROT_LOG, "bits flip in the log of", target->index);
    } else {
        uint16_t range;
        struct bytes key;
        if (sim_kv_rot_any(cluster->stores, target->store, prng, &range, &key) != OK) return;
        target->tainted = target->silent_damage = target->excused = true;
        count(cluster, SIM_FAULT_ROT_STORE, "a bit flips in the store of", target->index);
    }
}

/* ---- membership ---- */

static void admin_done(struct node_request *request, enum node_outcome outcome, struct bytes reply)
{
    struct sim_cluster *cluster = request->ctx;
    struct admin *admin = &cluster->admin;
    struct machine *target = &cluster->machines[admin->target];
    bool done = outcome == NODE_REPLIED && reply.size > 0 && reply.at[0] == '+';
    bool refused = outcome == NODE_UNAVAILABLE ||
        (outcome == NODE_REPLIED && reply.size > 0 && reply.at[0] == '-');
    admin->busy = false;
    sim_cluster_note(cluster, "admin %d for m%u: outcome %d %.*s", (int)admin->what, target->index,
        (int)outcome, (int)(reply.size < 100 ? reply.size : 100), (const char *)reply.at);
    sim_cluster_trace(cluster, 200 + (uint64_t)admin->what, (uint64_t)outcome);
    if (admin->what == NODE_MEMBER_REMOVE) {
        if (done) cluster->result->faults[SIM_FAULT_REMOVE]++;
        target->removed = done;
        if (refused) target->removing = false;
    } else if (admin->what == NODE_LEADER_TRANSFER && done) {
        cluster->result->faults[SIM_FAULT_TRANSFER]++;
    }
}

static void admin_start(struct sim_cluster *cluster, struct machine *via, struct machine *target,
    enum node_admin what, uint16_t range)
{
    struct admin *admin = &cluster->admin;
    *admin = (struct admin){.busy = true, .via = via->index, .target = target->index, .what = what};
    admin->request.done = admin_done;
    admin->request.ctx = cluster;
    enum err err = node_admin_start(via->node, &admin->request, what, target->name, range);
    if (err == OK) return;
    admin->busy = false;
    sim_cluster_note(cluster, "admin %d is refused at once: %s", (int)what, err_name(err));
    if (what == NODE_MEMBER_REMOVE) target->removing = false;
}

static bool anybody_tainted(const struct sim_cluster *cluster)
{
    for (unsigned i = 0; i < cluster->machine_count; i++) {
        const struct machine *machine = &cluster->machines[i];
        if (machine->tainted || machine->removing || machine->state == MACHINE_DAMAGED) return true;
    }
    return false;
}

static unsigned member_count(const struct sim_cluster *cluster)
{
    unsigned members = 0;
    for (unsigned i = 0; i < cluster->machine_count; i++)
        members += cluster->machines[i].number != 0;
    return members;
}

static void membership(struct sim_cluster *cluster)
{
    struct nemesis *nemesis = &cluster->nemesis;
    struct machine *machine;
    if (happens(nemesis, SIM_FAULT_JOIN) && (machine = any_machine(cluster, is_empty)) != NULL)
        machine_join(machine, false);
    bool remove = happens(nemesis, SIM_FAULT_REMOVE);
    bool transfer = happens(nemesis, SIM_FAULT_TRANSFER);
    if (cluster->admin.busy || (!remove && !transfer)) return;
    struct machine *via = any_machine(cluster, is_running);
    struct machine *target = any_machine(cluster, is_running);
    if (via == NULL || target == NULL) return;
    if (remove && !anybody_tainted(cluster) && member_count(cluster) > 3) {
        target->removing = target->removal_asked = true;
        admin_start(cluster, via, target, NODE_MEMBER_REMOVE, 0);
    } else if (transfer) {
        uint16_t range = (uint16_t)prng_below(&nemesis->prng, cluster->ranges + 1);
        if (prng_chance(&nemesis->prng, 1, 3)) range = 0xffff;
        admin_start(cluster, via, target, NODE_LEADER_TRANSFER, range);
    }
}

/* What the meta group's leader has in its table: 1 a member, 0 not, -1 nobody knows. */
static int is_member(struct sim_cluster *cluster, uint16_t number)
{
    static struct node_member members[NODE_MEMBERS_MAX];
    struct node_range meta;
    struct machine *leader = monitor_leader(cluster, 0, &meta);
    if (leader == NULL) return -1;
    uint32_t found = node_members(leader->node, members, NODE_MEMBERS_MAX);
    for (uint32_t i = 0; i < found && i < NODE_MEMBERS_MAX; i++) {
        if (members[i].number == number) return members[i].state == NODE_STATE_LEFT ? 0 : 1;
    }
    return 0;
}

static bool is_replica(struct sim_cluster *cluster, uint16_t number)
{
    for (uint16_t group = 0; group <= cluster->ranges; group++) {
        struct node_range range;
        if (monitor_leader(cluster, group, &range) == NULL) return true;
        for (uint32_t i = 0; i < range.replica_count; i++) {
            if (range.replicas[i].number == number) return true;
        }
    }
    return false;
}

/* A machine that was removed goes once no group counts on it; one whose removal is uncertain is looked up. */
static void follow_removal(struct sim_cluster *cluster, struct machine *machine)
{
    if (!machine->removal_asked || machine->number == 0) return;
    if (cluster->admin.busy && cluster->admin.target == machine->index) return;
    int member = is_member(cluster, machine->number);
    if (member == 1 && !machine->removed) machine->removing = false;
    if (member != 0 || is_replica(cluster, machine->number)) return;
    sim_cluster_note(cluster, "m%u is removed and goes", machine->index);
    machine_wipe(machine);
    machine->removing = machine->removed = machine->removal_asked = false;
    machine->tainted = false;
}

void nemesis_tend(struct sim_cluster *cluster)
{
    struct nemesis *nemesis = &cluster->nemesis;
    char why[160];
    if (monitor_whole(cluster, why, sizeof why)) {
        for (unsigned i = 0; i < cluster->machine_count; i++) {
            if (machine_serves(&cluster->machines[i])) cluster->machines[i].tainted = false;
        }
    }
    for (unsigned i = 0; i < cluster->machine_count; i++) {
        struct machine *machine = &cluster->machines[i];
        follow_removal(cluster, machine);
        if (machine->state == MACHINE_DAMAGED && machine->restart_ns == UINT64_MAX)
            machine->restart_ns = cluster->now_ns + between_ms(nemesis, 100, 2000);
    }
}

void nemesis_process_ends(struct sim_cluster *cluster, unsigned index)
{
    struct nemesis *nemesis = &cluster->nemesis;
    struct machine *machine = &cluster->machines[index];
    struct admin *admin = &cluster->admin;
    if (admin->busy && admin->via == index) {
        node_request_cancel(machine->node, &admin->request);
        admin->busy = false;
    }
    /* what waits on its disk does not outlive the process */
    if (nemesis->full_until_ns[index] != 0) nemesis->full_until_ns[index] = cluster->now_ns;
    sim_disk_set_capacity(machine->disk, 0);
    sim_kv_fail_commit(cluster->stores, machine->store, 0, OK);
}

void nemesis_step(struct sim_cluster *cluster)
{
    calm_down(cluster);
    if (!cluster->chaos) return;
    network(cluster);
    processes(cluster);
    disks(cluster);
    clocks(cluster);
    damage(cluster);
    membership(cluster);
}

void nemesis_heal(struct sim_cluster *cluster)
{
    struct nemesis *nemesis = &cluster->nemesis;
    clear_cuts(cluster);
    for (int i = 0; i <= WEATHER_DUPLICATE; i++)
        nemesis->weather_until_ns[i] = cluster->now_ns;
    for (unsigned i = 0; i < cluster->machine_count; i++) {
        struct machine *machine = &cluster->machines[i];
        nemesis->slow_until_ns[i] = nemesis->full_until_ns[i] = cluster->now_ns;
        machine->paused_until_ns = 0;
        sim_clock_advance(&machine->clock, cluster->now_ns - machine->clock.true_ns);
        sim_clock_set_drift(&machine->clock, 0);
        if (!sim_disk_is_cut(machine->disk)) {
            sim_disk_cut_at(machine->disk, 0);
            sim_disk_fail_at(machine->disk, 0, 0, OK);
        }
        sim_kv_fail_commit(cluster->stores, machine->store, 0, OK);
        uint64_t soon = cluster->now_ns + 100 * MILLISECOND;
        if (machine->restart_ns != UINT64_MAX && machine->restart_ns > soon &&
            machine->state != MACHINE_STOPPING)
            machine->restart_ns = soon;
    }
    calm_down(cluster);
}
