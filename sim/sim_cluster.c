#include "sim/sim_cluster.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "sim/sim_cluster_internal.h"

/* The world of the cluster simulation: one virtual time, moved from event to event. */

enum { SETUP_MS = 60000, FINISH_MS = 60000, QUIET_MS = 30000, TEND_STEPS = 10 };

static const char *const fault_texts[] = {
#define FAULT_TEXT(name, text) [SIM_FAULT_##name] = text,
    SIM_FAULT_MAP(FAULT_TEXT)};
static const char *const seen_texts[] = {
#define SEEN_TEXT(name, text) [SIM_SEEN_##name] = text,
    SIM_SEEN_MAP(SEEN_TEXT)};

const char *sim_fault_text(enum sim_fault fault)
{
    return fault_texts[fault];
}

const char *sim_seen_text(enum sim_seen seen)
{
    return seen_texts[seen];
}

void sim_cluster_violation(struct sim_cluster *cluster, const char *format, ...)
{
    if (cluster->violated) return;
    cluster->violated = true;
    cluster->result->outcome = SIM_UNSAFE;
    int size = snprintf(cluster->result->detail, sizeof cluster->result->detail,
        "at %.3f s: ", (double)cluster->now_ns / 1e9);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(cluster->result->detail + size, sizeof cluster->result->detail - (size_t)size, format,
        arguments);
    va_end(arguments);
}

static void stuck(struct sim_cluster *cluster, const char *what, const char *why)
{
    if (cluster->violated || cluster->result->outcome != SIM_OK) return;
    cluster->result->outcome = SIM_STUCK;
    snprintf(cluster->result->detail, sizeof cluster->result->detail, "at %.3f s: %s: %s",
        (double)cluster->now_ns / 1e9, what, why);
}

void sim_cluster_trace(struct sim_cluster *cluster, uint64_t event, uint64_t detail)
{
    uint64_t words[3] = {event, detail, cluster->now_ns};
    cluster->hash = hash64(cluster->hash, bytes_of(words, sizeof words));
}

void sim_cluster_note(struct sim_cluster *cluster, const char *format, ...)
{
    if (!cluster->options->verbose) return;
    va_list arguments;
    va_start(arguments, format);
    printf("%9.3f ", (double)cluster->now_ns / 1e9);
    vprintf(format, arguments);
    printf("\n");
    va_end(arguments);
}

/* ---- time ---- */

static void set_now(struct sim_cluster *cluster, uint64_t now_ns)
{
    cluster->now_ns = now_ns;
    sim_net_run_until(cluster->net, now_ns);
}

/* A machine without a process becomes due when it is to start again. */
static void machine_event(struct machine *machine)
{
    switch (machine->state) {
    case MACHINE_DOWN:
        machine_start(machine);
        return;
    case MACHINE_DAMAGED:
        machine_join(machine, true);
        return;
    case MACHINE_EMPTY:
        if (machine->founder)
            machine_start(machine);
        else
            machine_join(machine, false);
        return;
    case MACHINE_JOINING:
    case MACHINE_RUNNING:
    case MACHINE_STOPPING:
        machine_turn(machine, NULL);
        return;
    }
    UNREACHABLE();
}

/* Runs whatever is due next, but nothing after `until`. */
static void next_event(struct sim_cluster *cluster, uint64_t until)
{
    uint64_t due = workload_due(cluster->workload);
    struct machine *first = NULL;
    for (unsigned i = 0; i < cluster->machine_count; i++) {
        uint64_t at = machine_due(&cluster->machines[i]);
        if (at >= due) continue;
        due = at;
        first = &cluster->machines[i];
    }
    if (due > until) {
        set_now(cluster, until);
        return;
    }
    if (due > cluster->now_ns) set_now(cluster, due);
    if (first == NULL)
        workload_step(cluster->workload);
    else
        machine_event(first);
}

static void tick(struct sim_cluster *cluster, uint64_t *ticks)
{
    uint64_t until = cluster->now_ns + TICK_NS;
    while (cluster->now_ns < until && !cluster->violated)
        next_event(cluster, until);
    nemesis_step(cluster);
    if (++*ticks % TEND_STEPS != 0) return;
    nemesis_tend(cluster);
    workload_check_patience(cluster->workload);
}

/* ---- parts of a run ---- */

static bool going(const struct sim_cluster *cluster)
{
    return !cluster->violated && cluster->result->outcome == SIM_OK;
}

static bool run_until_whole(struct sim_cluster *cluster, uint64_t most_ms, const char *what)
{
    char why[200] = "";
    uint64_t ticks = 0;
    while (going(cluster)) {
        tick(cluster, &ticks);
        if (ticks % TEND_STEPS != 0) continue;
        bool all = true;
        for (unsigned i = 0; i < cluster->machine_count; i++) {
            const struct machine *machine = &cluster->machines[i];
            bool at_rest = machine->state == MACHINE_EMPTY && machine->restart_ns == UINT64_MAX &&
                i >= cluster->member_count;
            bool gone = machine->state == MACHINE_EMPTY && machine->number == 0 &&
                machine->restart_ns == UINT64_MAX;
            if (machine->state == MACHINE_RUNNING || at_rest || gone) continue;
            all = false;
            snprintf(why, sizeof why, "m%u is in state %d: %.100s", i, (int)machine->state,
                machine->state == MACHINE_JOINING ? machine->join.result.detail : "");
        }
        if (all && monitor_whole(cluster, why, sizeof why)) return true;
        if (ticks * 10 > most_ms) stuck(cluster, what, why);
    }
    return false;
}

static void set_up(struct sim_cluster *cluster)
{
    for (unsigned i = 0; i < cluster->member_count; i++)
        cluster->machines[i].restart_ns = cluster->now_ns + i * 50 * MILLISECOND;
    run_until_whole(cluster, SETUP_MS, "the cluster is not whole after its set-up");
}

static void demand_writes(struct sim_cluster *cluster)
{
    uint64_t ticks = 0;
    workload_probe_start(cluster->workload);
    while (going(cluster) && !workload_probe_done(cluster->workload)) {
        tick(cluster, &ticks);
        if (ticks * 10 <= SIM_HEALED_MS) continue;
        char why[200] = "every range has a leader and its replicas";
        (void)monitor_whole(cluster, why, sizeof why);
        stuck(cluster, "not every range took a write within 10 s after the last fault", why);
    }
}

/* Clients end, expiry goes on; contents are compared at a moment at which all replicas have applied all. */
static void demand_equality(struct sim_cluster *cluster)
{
    uint64_t ticks = 0;
    char why[200] = "";
    workload_pause(cluster->workload, true);
    while (going(cluster)) {
        tick(cluster, &ticks);
        bool idle = workload_idle(cluster->workload);
        if (!idle) snprintf(why, sizeof why, "requests are under way");
        if (idle && monitor_quiet(cluster, why, sizeof why)) break;
        if (ticks * 10 > QUIET_MS)
            stuck(cluster, "the replicas do not come to the same point", why);
    }
    if (going(cluster)) monitor_compare(cluster);
}

static void demand_history(struct sim_cluster *cluster)
{
    uint64_t ticks = 0;
    workload_finish_start(cluster->workload);
    while (going(cluster) && !workload_finish_done(cluster->workload)) {
        tick(cluster, &ticks);
        if (ticks * 10 > FINISH_MS) stuck(cluster, "the last reads", "they take too long");
    }
    if (going(cluster)) workload_check(cluster->workload);
}

static void world_open(struct sim_cluster *cluster, const struct sim_cluster_options *options,
    struct sim_cluster_result *result)
{
    *result = (struct sim_cluster_result){0};
    *cluster = (struct sim_cluster){
        .options = options, .result = result, .hash = options->seed, .now_ns = MILLISECOND};
    prng_init(&cluster->prng, options->seed);
    struct prng *prng = &cluster->prng;
    cluster->member_count = options->nodes;
    cluster->machine_count = options->nodes + 2;
    ASSERT(cluster->machine_count <= MACHINES_MAX && options->nodes >= 1);
    cluster->ranges = prng_chance(prng, 1, 2) ? 2 : 4;
    cluster->replicas = options->nodes >= 5 && prng_chance(prng, 1, 2) ? 5 : 3;
    cluster->net = sim_net_create(prng_next(prng));
    cluster->stores = sim_kv_world_new();
    ASSERT(cluster->stores != NULL);
    bool leases = prng_chance(prng, 1, 3);
    result->seen[SIM_SEEN_LEASES] = leases;
    for (unsigned i = 0; i < cluster->machine_count; i++)
        machine_init(cluster, i);
    for (unsigned i = 0; i < cluster->machine_count; i++) {
        struct machine *machine = &cluster->machines[i];
        machine->leases = leases;
        unsigned count = 0;
        for (unsigned k = 0; k < cluster->machine_count; k++) {
            if (k != i) machine->seeds[count++] = cluster->machines[k].peer_address;
        }
    }
    nemesis_init(cluster);
    result->scenario = cluster->nemesis.scenario.name;
    cluster->workload = workload_new(cluster);
    set_now(cluster, cluster->now_ns);
}

static void world_close(struct sim_cluster *cluster)
{
    struct sim_cluster_result *result = cluster->result;
    struct sim_net_counts net;
    sim_net_counts(cluster->net, &net);
    result->seen[SIM_SEEN_FRAMES] = net.delivered;
    result->seen[SIM_SEEN_FRAMES_LOST] = net.lost;
    result->seen[SIM_SEEN_FILTERED] = net.filtered;
    result->seen[SIM_SEEN_OVERTAKEN] = net.overtaken;
    result->seen[SIM_SEEN_STALLS] = net.stalls;
    result->seen[SIM_SEEN_LANE_FULL] = net.refused;
    if (cluster->nemesis.scenario.rates[SIM_FAULT_LOSS] > 0)
        result->faults[SIM_FAULT_LOSS] = net.vanished;
    result->faults[SIM_FAULT_DELAY] = net.late;
    result->faults[SIM_FAULT_DUPLICATE] = net.duplicated;
    result->trace_hash = cluster->hash ^ sim_net_hash(cluster->net);
    result->simulated_ms = cluster->now_ns / MILLISECOND;
    for (unsigned i = 0; i < cluster->machine_count; i++)
        machine_deinit(&cluster->machines[i]);
    workload_free(cluster->workload);
    monitor_deinit(&cluster->monitor);
    sim_kv_world_free(cluster->stores);
    sim_net_destroy(cluster->net);
}

void sim_cluster_run(const struct sim_cluster_options *options, struct sim_cluster_result *result)
{
    struct sim_cluster *cluster = malloc(sizeof *cluster);
    ASSERT(cluster != NULL);
    world_open(cluster, options, result);
    /* now and then faults do not wait for the set-up */
    bool impatient = prng_chance(&cluster->prng, 1, 4);
    cluster->chaos = impatient;
    if (impatient) {
        for (unsigned i = 0; i < cluster->member_count; i++)
            cluster->machines[i].restart_ns = cluster->now_ns + i * 50 * MILLISECOND;
    } else {
        set_up(cluster);
    }
    cluster->chaos = true;
    uint64_t ticks = 0;
    while (going(cluster) && ticks < options->ticks)
        tick(cluster, &ticks);
    cluster->chaos = false;
    sim_cluster_note(cluster, "all faults end");
    nemesis_heal(cluster);
    demand_writes(cluster);
    run_until_whole(cluster, SIM_CONVERGED_MS, "the cluster is not whole after the faults");
    demand_equality(cluster);
    demand_history(cluster);
    world_close(cluster);
    free(cluster);
}
