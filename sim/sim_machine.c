#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "sim/sim_cluster_internal.h"

/* One machine of the cluster simulation: what is around a node. The process comes and goes; the disk, the bottom
 * store and what the identity file says stay. */

enum {
    MEMORY = 192 * 1024,
    LOG_BYTES = 8 * 1024 * 1024,
    CHUNK_PUTS = 16,
    REFUSED_RETRY_MS = 1000,
    POWER_OFF_WALL_MS = 1700000000,
};

static void random_id(struct prng *prng, uint8_t id[16])
{
    store_u64(id, prng_next(prng));
    store_u64(id + 8, prng_next(prng));
}

static void new_disk(struct machine *machine)
{
    struct prng *prng = &machine->cluster->prng;
    sim_disk_destroy(machine->disk);
    machine->disk = sim_disk_create(&(struct sim_disk_config){
        .seed = prng_next(prng),
        .latency_min_ns = 50000,
        .latency_max_ns = 50000 + prng_below(prng, 8000000),
        .sector = prng_chance(prng, 1, 2) ? 512 : 4096,
    });
    sim_disk_run_until(machine->disk, machine->cluster->now_ns);
}

void machine_init(struct sim_cluster *cluster, unsigned index)
{
    struct machine *machine = &cluster->machines[index];
    *machine = (struct machine){.cluster = cluster, .index = index, .state = MACHINE_EMPTY};
    sim_clock_init(&machine->clock, (int64_t)POWER_OFF_WALL_MS * 1000);
    new_disk(machine);
    snprintf(machine->store, sizeof machine->store, "store%u", index);
    sim_kv_folder(cluster->stores, machine->store, machine->folder);
    sim_net_address(index, machine->peer_address);
    snprintf(machine->resp_address, sizeof machine->resp_address, "10.0.0.%u:7379", index);
    snprintf(machine->http_address, sizeof machine->http_address, "10.0.0.%u:7380", index);
    snprintf(machine->name, sizeof machine->name, "m%u", index);
    machine->restart_ns = UINT64_MAX;
    machine->founder = index == 0;
    if (machine->founder) random_id(&cluster->prng, machine->cluster_id);
    machine->ranges = cluster->ranges;
    machine->replicas = cluster->replicas;
    random_id(&cluster->prng, machine->store_id);
}

bool machine_has_process(const struct machine *machine)
{
    return machine->state == MACHINE_JOINING || machine->state == MACHINE_RUNNING ||
        machine->state == MACHINE_STOPPING;
}

bool machine_serves(const struct machine *machine)
{
    return machine->node != NULL && machine->state == MACHINE_RUNNING;
}

static uint64_t drifted(const struct machine *machine, uint64_t ns)
{
    return ns * 1000000 / (uint64_t)(1000000 + machine->clock.drift_ppm);
}

/* ---- the process ---- */

static void on_tickets(void *ctx)
{
    (void)ctx; /* requests come by node_request_start() alone */
}

static bool on_execute(void *ctx, struct node_execution *execution)
{
    return workload_execute(ctx, execution);
}

static void on_wake(void *ctx)
{
    struct machine *machine = ctx;
    machine->poll_ns = machine->cluster->now_ns + 20000;
}

static void process_begins(struct machine *machine)
{
    struct sim_cluster *cluster = machine->cluster;
    sim_clock_advance(&machine->clock, cluster->now_ns - machine->clock.true_ns);
    if (sim_disk_is_cut(machine->disk)) sim_disk_restart(machine->disk);
    sim_disk_run_until(machine->disk, cluster->now_ns);
    sim_net_up(cluster->net, machine->index, prng_next(&cluster->prng));
    machine->io = (struct io){
        .clock = sim_clock_io(&machine->clock),
        .disk = sim_disk_table(machine->disk),
        .net = sim_net_table(cluster->net, machine->index),
        .seed = prng_next(&cluster->prng),
    };
    machine->next_tick_ns = cluster->now_ns + prng_below(&cluster->prng, TICK_NS);
    machine->poll_ns = cluster->now_ns;
    machine->paused_until_ns = 0;
    machine->restart_ns = UINT64_MAX;
}

static void process_ends(struct machine *machine, bool silent)
{
    struct sim_cluster *cluster = machine->cluster;
    sim_net_down(cluster->net, machine->index, silent);
    workload_process_ends(cluster->workload, machine->index);
    nemesis_process_ends(cluster, machine->index);
    monitor_collect(machine);
    monitor_process_ends(machine);
    machine->paused_until_ns = 0;
}

static enum err open_node(struct machine *machine, struct engine_report *report)
{
    struct sim_cluster *cluster = machine->cluster;
    machine->incarnation++;
    struct node_config config = {
        .io = &machine->io,
        .kv = &sim_kv,
        .kv_folder = machine->folder,
        .name = machine->name,
        .number = machine->number,
        .incarnation = machine->incarnation,
        .peer = machine->peer_address,
        .resp = machine->resp_address,
        .http = machine->http_address,
        .zone = "",
        .replicas = machine->replicas,
        .ranges = machine->ranges,
        .memory = MEMORY,
        .log_bytes_max = LOG_BYTES,
        .slot_size = SLOT_SIZE,
        .chunk_puts = CHUNK_PUTS,
        .create = !machine->made,
        .joined = !machine->founder,
        .leases = machine->leases,
        .peers = machine->peers,
        .peer_count = machine->peer_count,
        .ctx = machine,
        .on_tickets = on_tickets,
        .execute = on_execute,
        .wake = on_wake,
    };
    memcpy(config.cluster_id, machine->cluster_id, sizeof config.cluster_id);
    memcpy(config.store_id, machine->store_id, sizeof config.store_id);
    enum err err = node_open(&config, report, &machine->node);
    if (err != OK) machine->node = NULL;
    sim_cluster_trace(cluster, 10 + machine->index, (uint64_t)(int64_t)err);
    if (report->log.torn_tail) cluster->result->seen[SIM_SEEN_TORN_TAILS]++;
    return err;
}

static void leave_process(struct machine *machine, enum machine_state state, uint64_t down_ns)
{
    machine->node = NULL;
    machine->state = state;
    machine->restart_ns = down_ns == UINT64_MAX ? UINT64_MAX : machine->cluster->now_ns + down_ns;
}

/* The node did not come up: its damage is found and said, or a planned fault hit the start. */
static void start_failed(struct machine *machine, enum err err, const char *detail)
{
    struct sim_cluster *cluster = machine->cluster;
    sim_cluster_note(cluster, "m%u does not start: %s %s", machine->index, err_name(err), detail);
    process_ends(machine, false);
    bool cut = sim_disk_is_cut(machine->disk);
    if (!cut) sim_disk_kill(machine->disk);
    if (err == ERR_CORRUPT && (machine->tainted || machine->silent_damage)) {
        cluster->result->seen[SIM_SEEN_DAMAGED_STARTS]++;
        leave_process(machine, MACHINE_DAMAGED, UINT64_MAX);
        return;
    }
    if (!cut && !machine->excused)
        sim_cluster_violation(cluster, "m%u refuses to start although nothing is wrong: %s: %s",
            machine->index, err_name(err), detail);
    leave_process(machine, MACHINE_DOWN, 100 * MILLISECOND);
}

/* false: the node does not open, and what becomes of the machine is settled */
static bool bring_up(struct machine *machine)
{
    struct engine_report report = {0};
    enum err err = open_node(machine, &report);
    if (err == OK && sim_disk_is_cut(machine->disk)) {
        node_close(machine->node, false);
        machine->node = NULL;
        err = ERR_IO;
    }
    if (err != OK) {
        start_failed(machine, err, report.detail);
        return false;
    }
    machine->made = true;
    machine->excused = false;
    machine->state = MACHINE_RUNNING;
    return true;
}

void machine_start(struct machine *machine)
{
    ASSERT(!machine_has_process(machine) && machine->node == NULL);
    struct sim_cluster *cluster = machine->cluster;
    if (machine->founder && machine->number == 0) machine->number = 1;
    ASSERT(machine->number != 0);
    process_begins(machine);
    if (!bring_up(machine)) return;
    sim_cluster_note(cluster, "m%u runs as number %u, start %llu", machine->index, machine->number,
        (unsigned long long)machine->incarnation);
}

void machine_join(struct machine *machine, bool replace)
{
    ASSERT(!machine_has_process(machine));
    struct sim_cluster *cluster = machine->cluster;
    /* who asked before and did not hear the answer asks again under the same store id */
    if (replace || machine->number != 0 || machine->made) machine_wipe(machine);
    machine->founder = false;
    machine->replacing = replace;
    process_begins(machine);
    struct join_request request = {
        .seeds = machine->seeds,
        .name = machine->name,
        .zone = "",
        .peer = machine->peer_address,
        .resp = machine->resp_address,
        .http = machine->http_address,
        .replace = replace,
    };
    memcpy(request.store_id, machine->store_id, sizeof request.store_id);
    join_start(&machine->join, &machine->io, &request);
    machine->state = MACHINE_JOINING;
    sim_cluster_note(
        cluster, "m%u asks to %s", machine->index, replace ? "replace itself" : "join");
}

static void joined(struct machine *machine)
{
    struct sim_cluster *cluster = machine->cluster;
    const struct join_result *result = &machine->join.result;
    memcpy(machine->cluster_id, result->cluster_id, sizeof machine->cluster_id);
    machine->number = result->number;
    machine->ranges = result->ranges;
    machine->replicas = result->replicas;
    snprintf(machine->name, sizeof machine->name, "%s", result->name);
    memcpy(machine->peers, result->peers, sizeof machine->peers);
    machine->peer_count = result->peer_count;
    if (result->ranges != cluster->ranges || result->number == 0)
        sim_cluster_violation(cluster, "m%u joined as number %u of a cluster with %u ranges",
            machine->index, result->number, result->ranges);
    struct machine *other = NULL;
    for (unsigned i = 0; i < cluster->machine_count; i++) {
        struct machine *candidate = &cluster->machines[i];
        if (candidate != machine && candidate->number == machine->number) other = candidate;
    }
    if (other != NULL)
        sim_cluster_violation(cluster, "m%u and m%u both are number %u", machine->index,
            other->index, machine->number);
    cluster->result->faults[machine->replacing ? SIM_FAULT_WIPE : SIM_FAULT_JOIN]++;
    machine->removing = machine->removed = machine->removal_asked = false;
    if (!bring_up(machine)) return;
    sim_cluster_note(cluster, "m%u joined as number %u", machine->index, machine->number);
}

static void join_turn(struct machine *machine)
{
    struct sim_cluster *cluster = machine->cluster;
    enum err err = join_poll(&machine->join);
    if (err == OK) {
        joined(machine);
        return;
    }
    if (err == ERR_AGAIN) return;
    sim_cluster_note(cluster, "m%u may not join: %s %s", machine->index, err_name(err),
        machine->join.result.detail);
    process_ends(machine, false);
    sim_disk_kill(machine->disk);
    leave_process(machine, machine->replacing ? MACHINE_DAMAGED : MACHINE_EMPTY,
        (uint64_t)REFUSED_RETRY_MS * MILLISECOND);
}

void machine_crash(struct machine *machine, bool power, uint64_t down_ns)
{
    if (!machine_has_process(machine)) return;
    sim_cluster_note(
        machine->cluster, "m%u %s", machine->index, power ? "loses power" : "is killed");
    sim_cluster_trace(machine->cluster, 30 + machine->index, power);
    if (!sim_disk_is_cut(machine->disk)) {
        if (power)
            sim_disk_cut(machine->disk);
        else
            sim_disk_kill(machine->disk);
    }
    process_ends(machine, power);
    if (machine->node != NULL) node_close(machine->node, false);
    if (power) sim_clock_restart(&machine->clock);
    bool member = machine->state != MACHINE_JOINING;
    enum machine_state without = machine->replacing ? MACHINE_DAMAGED : MACHINE_EMPTY;
    leave_process(machine, member ? MACHINE_DOWN : without, down_ns);
}

void machine_stop(struct machine *machine, uint64_t down_ns)
{
    if (machine->state != MACHINE_RUNNING) return;
    sim_cluster_note(machine->cluster, "m%u stops", machine->index);
    machine->state = MACHINE_STOPPING;
    machine->stop_by_ns = machine->cluster->now_ns + (uint64_t)3000 * MILLISECOND;
    machine->restart_ns = down_ns;
}

static void stop_turn(struct machine *machine)
{
    struct sim_cluster *cluster = machine->cluster;
    bool patience = cluster->now_ns < machine->stop_by_ns;
    if (!node_hand_over(machine->node) && patience) return;
    uint64_t down_ns = machine->restart_ns;
    process_ends(machine, false);
    node_close(machine->node, true);
    if (!sim_disk_is_cut(machine->disk)) sim_disk_kill(machine->disk);
    leave_process(machine, MACHINE_DOWN, down_ns);
    cluster->result->faults[SIM_FAULT_STOP]++;
    sim_cluster_note(cluster, "m%u has stopped", machine->index);
}

void machine_wipe(struct machine *machine)
{
    machine_crash(machine, true, UINT64_MAX);
    sim_kv_wipe(machine->cluster->stores, machine->store);
    new_disk(machine);
    random_id(&machine->cluster->prng, machine->store_id);
    machine->number = 0;
    machine->incarnation = 0;
    machine->peer_count = 0;
    machine->made = false;
    machine->excused = false;
    machine->silent_damage = false;
    machine->state = MACHINE_EMPTY;
    machine->restart_ns = UINT64_MAX;
}

void machine_pause(struct machine *machine, uint64_t ns)
{
    machine->paused_until_ns = machine->cluster->now_ns + ns;
}

/* ---- turns ---- */

uint64_t machine_due(const struct machine *machine)
{
    if (!machine_has_process(machine)) return machine->restart_ns;
    uint64_t due = machine->next_tick_ns;
    uint64_t net = sim_net_next_due(machine->cluster->net, machine->index);
    uint64_t disk = sim_disk_next_due(machine->disk);
    if (net < due) due = net;
    if (disk < due) due = disk;
    if (machine->poll_ns < due) due = machine->poll_ns;
    if (due < machine->paused_until_ns) due = machine->paused_until_ns;
    return due;
}

/* The node stopped itself, or its disk is gone. */
static void node_failed(struct machine *machine)
{
    struct sim_cluster *cluster = machine->cluster;
    bool cut = sim_disk_is_cut(machine->disk);
    /* a member that was removed is told so, and ends */
    if (!cut && !machine->excused && !machine->removal_asked)
        sim_cluster_violation(
            cluster, "m%u stopped itself although its disk did nothing wrong", machine->index);
    cluster->result->seen[SIM_SEEN_STOPS]++;
    machine_crash(machine, cut, prng_below(&cluster->prng, (uint64_t)2000 * MILLISECOND));
}

static void node_turn(struct machine *machine, bool tick, const struct machine_call *call)
{
    struct prng *prng = &machine->cluster->prng;
    struct node *node = machine->node;
    node_turn_begin(node);
    enum err err = node_poll(node);
    if (err == ERR_PERMISSION && machine->removal_asked) {
        sim_cluster_note(machine->cluster, "m%u was removed and is told so", machine->index);
        machine->removing = machine->removed = machine->removal_asked = false;
        machine_wipe(machine);
        return;
    }
    if (err != OK || sim_disk_is_cut(machine->disk)) {
        node_failed(machine);
        return;
    }
    if (tick) node_tick(node);
    if (call != NULL) {
        err = node_request_start(node, call->request, call->range, call->body);
        if (err != OK)
            sim_cluster_violation(
                machine->cluster, "a small request was refused: %s", err_name(err));
    }
    for (uint64_t steps = prng_below(prng, 3); steps > 0; steps--)
        engine_checkpoint_step(node_engine(node));
    node_turn_end(node, prng_chance(prng, 1, 16));
    if (tick && prng_chance(prng, 1, 8)) node_idle(node);
    if (sim_disk_is_cut(machine->disk)) node_failed(machine);
}

void machine_turn(struct machine *machine, const struct machine_call *call)
{
    struct sim_cluster *cluster = machine->cluster;
    ASSERT(!machine->in_turn);
    machine->in_turn = true;
    cluster->result->events++;
    sim_clock_advance(&machine->clock, cluster->now_ns - machine->clock.true_ns);
    sim_disk_run_until(machine->disk, cluster->now_ns);
    bool tick = machine->next_tick_ns <= cluster->now_ns;
    if (tick) machine->next_tick_ns = cluster->now_ns + drifted(machine, TICK_NS);
    if (machine->poll_ns <= cluster->now_ns) machine->poll_ns = UINT64_MAX;
    if (machine->state == MACHINE_JOINING) {
        join_turn(machine);
    } else {
        node_turn(machine, tick, call);
        if (machine->state == MACHINE_STOPPING && tick) stop_turn(machine);
    }
    machine->in_turn = false;
    if (machine->node != NULL) monitor_machine(machine);
}

void machine_deinit(struct machine *machine)
{
    machine_crash(machine, true, UINT64_MAX);
    sim_disk_destroy(machine->disk);
    machine->disk = NULL;
}
