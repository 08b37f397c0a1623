#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "sim/sim_cluster_internal.h"

/* What must hold at every moment, and what must hold once everything is healed. */

/* the meta group has three voters in clusters of any size, and everybody else as learners */
enum { CLOSE_BEHIND = 64, SHOWN_KEY = 40, META_VOTERS = 3 };

/* ---- one leader a term ---- */

static struct led *led_slot(struct monitor *monitor, uint16_t group, uint64_t term)
{
    size_t mask = monitor->led_capacity - 1;
    size_t at = (size_t)((term * 31 + group) * UINT64_C(0x9e3779b97f4a7c15) >> 20) & mask;
    while (monitor->led[at].leader != 0 &&
        (monitor->led[at].group != group || monitor->led[at].term != term))
        at = (at + 1) & mask;
    return &monitor->led[at];
}

static void led_grow(struct monitor *monitor)
{
    struct monitor old = *monitor;
    monitor->led_capacity = old.led_capacity == 0 ? 256 : old.led_capacity * 2;
    monitor->led = calloc(monitor->led_capacity, sizeof *monitor->led);
    ASSERT(monitor->led != NULL);
    for (size_t i = 0; i < old.led_capacity; i++) {
        if (old.led[i].leader != 0)
            *led_slot(monitor, old.led[i].group, old.led[i].term) = old.led[i];
    }
    free(old.led);
}

static void check_leader(struct machine *machine, uint16_t group, uint64_t term, uint16_t leader)
{
    struct monitor *monitor = &machine->cluster->monitor;
    if (monitor->led_count * 2 >= monitor->led_capacity) led_grow(monitor);
    struct led *led = led_slot(monitor, group, term);
    if (led->leader == 0) {
        *led = (struct led){.term = term, .group = group, .leader = leader};
        monitor->led_count++;
        sim_cluster_trace(machine->cluster, 50 + group, term * 1000 + leader);
    } else if (led->leader != leader) {
        sim_cluster_violation(machine->cluster,
            "range %u has two leaders in term %llu: %u and, as m%u says, %u", group,
            (unsigned long long)term, led->leader, machine->index, leader);
    }
}

static void check_group(struct machine *machine, uint16_t group)
{
    struct watched *watched = &machine->watched[group];
    if (!node_has(machine->node, group)) {
        *watched = (struct watched){0};
        return;
    }
    struct node_range range;
    node_range_status(machine->node, group, &range);
    if (range.leader != 0 && range.term != 0)
        check_leader(machine, group, range.term, range.leader);
    uint64_t applied = engine_range_applied(node_engine(machine->node), group);
    /* a replica that was left out shows what the leader reports, not what it has; a leader shows its own */
    bool own = range.leader == machine->number;
    bool back = own && watched->leads &&
        (range.term < watched->term || range.committed < watched->committed);
    if (back || applied < watched->applied)
        sim_cluster_violation(machine->cluster,
            "range %u on m%u went back: term %llu to %llu, committed %llu to %llu, applied %llu to "
            "%llu",
            group, machine->index, (unsigned long long)watched->term,
            (unsigned long long)range.term, (unsigned long long)watched->committed,
            (unsigned long long)range.committed, (unsigned long long)watched->applied,
            (unsigned long long)applied);
    if (range.applied > range.committed)
        sim_cluster_violation(machine->cluster, "range %u on m%u applied %llu of %llu committed",
            group, machine->index, (unsigned long long)range.applied,
            (unsigned long long)range.committed);
    *watched = (struct watched){
        .leads = own, .term = range.term, .applied = applied, .committed = range.committed};
}

void monitor_machine(struct machine *machine)
{
    for (uint16_t group = 0; group <= machine->cluster->ranges; group++)
        check_group(machine, group);
}

void monitor_process_ends(struct machine *machine)
{
    memset(machine->watched, 0, sizeof machine->watched);
}

void monitor_collect(struct machine *machine)
{
    if (machine->node == NULL) return;
    uint64_t *seen = machine->cluster->result->seen;
    struct node_cluster_stats stats;
    node_cluster_stats(machine->node, &stats);
    seen[SIM_SEEN_ELECTIONS] += stats.elections;
    seen[SIM_SEEN_SNAPSHOTS] += stats.snapshots_received;
    seen[SIM_SEEN_LOG_CATCH_UPS] += stats.log_catch_ups;
    seen[SIM_SEEN_CONFIG_CHANGES] += stats.config_changes;
    seen[SIM_SEEN_FORWARDED] += stats.forwarded;
    seen[SIM_SEEN_DIVERGENCES] += stats.divergences;
    seen[SIM_SEEN_REPAIRS] += stats.repairs;
    struct engine_stats engine;
    engine_stats(node_engine(machine->node), &engine);
    seen[SIM_SEEN_CHECKPOINTS] += engine.checkpoints;
}

void monitor_deinit(struct monitor *monitor)
{
    free(monitor->led);
    *monitor = (struct monitor){0};
}

/* ---- whole, quiet, equal ---- */

struct machine *monitor_machine_of(struct sim_cluster *cluster, uint16_t number)
{
    for (unsigned i = 0; i < cluster->machine_count; i++) {
        if (cluster->machines[i].number == number && number != 0) return &cluster->machines[i];
    }
    return NULL;
}

struct machine *monitor_leader(struct sim_cluster *cluster, uint16_t group, struct node_range *out)
{
    struct machine *leader = NULL;
    for (unsigned i = 0; i < cluster->machine_count; i++) {
        struct machine *machine = &cluster->machines[i];
        struct node_range range;
        if (machine->node == NULL || !node_has(machine->node, group)) continue;
        node_range_status(machine->node, group, &range);
        if (range.leader != machine->number) continue;
        if (leader != NULL && range.term < out->term) continue;
        leader = machine;
        *out = range;
    }
    return leader;
}

static uint32_t wanted_voters(const struct sim_cluster *cluster, uint16_t group)
{
    uint32_t members = 0, wanted = group == 0 ? META_VOTERS : cluster->replicas;
    for (unsigned i = 0; i < cluster->machine_count; i++) {
        const struct machine *machine = &cluster->machines[i];
        members += machine->number != 0 && !machine->removing && !machine->removed;
    }
    return members < wanted ? members : wanted;
}

static bool replica_whole(struct sim_cluster *cluster, uint16_t group,
    const struct node_replica *replica, uint64_t committed, char *why, size_t why_size)
{
    const struct machine *machine = monitor_machine_of(cluster, replica->number);
    if (machine == NULL || machine->node == NULL) {
        snprintf(why, why_size, "range %u: replica %u does not run", group, replica->number);
        return false;
    }
    struct node_range own;
    bool has = node_has(machine->node, group);
    if (has) node_range_status(machine->node, group, &own);
    if (!has || replica->faulty || own.applied + CLOSE_BEHIND < committed || own.catching_up < 1) {
        snprintf(why, why_size,
            "range %u: replica %u on m%u is %s (applied %llu of %llu, catching up %.2f)", group,
            replica->number, machine->index,
            !has                  ? "without data"
                : replica->faulty ? "faulty"
                                  : "behind",
            has ? (unsigned long long)own.applied : 0, (unsigned long long)committed,
            has ? own.catching_up : 0);
        return false;
    }
    return true;
}

static bool group_whole(struct sim_cluster *cluster, uint16_t group, char *why, size_t why_size)
{
    struct node_range range;
    if (monitor_leader(cluster, group, &range) == NULL) {
        snprintf(why, why_size, "range %u has no leader", group);
        return false;
    }
    uint32_t voters = 0;
    for (uint32_t i = 0; i < range.replica_count; i++) {
        const struct node_replica *replica = &range.replicas[i];
        /* every node has a copy of the meta group's data */
        if (!replica->voter && group == 0) continue;
        if (!replica->voter) {
            snprintf(why, why_size, "range %u: %u is still a learner", group, replica->number);
            return false;
        }
        voters++;
        if (!replica_whole(cluster, group, replica, range.committed, why, why_size)) return false;
    }
    uint32_t wanted = wanted_voters(cluster, group);
    if (voters < wanted || (group != 0 && voters > cluster->replicas)) {
        snprintf(why, why_size, "range %u has %u voters instead of %u", group, voters, wanted);
        return false;
    }
    return true;
}

bool monitor_whole(struct sim_cluster *cluster, char *why, size_t why_size)
{
    for (uint16_t group = 0; group <= cluster->ranges; group++) {
        if (!group_whole(cluster, group, why, why_size)) return false;
    }
    return true;
}

bool monitor_quiet(struct sim_cluster *cluster, char *why, size_t why_size)
{
    for (uint16_t group = 0; group <= cluster->ranges; group++) {
        struct node_range range;
        snprintf(why, why_size, "range %u has no leader", group);
        if (monitor_leader(cluster, group, &range) == NULL) return false;
        for (uint32_t i = 0; i < range.replica_count; i++) {
            uint16_t number = range.replicas[i].number;
            const struct machine *machine = monitor_machine_of(cluster, number);
            struct node_range own = {0};
            bool has = machine != NULL && machine->node != NULL && node_has(machine->node, group);
            if (has) node_range_status(machine->node, group, &own);
            snprintf(why, why_size, "range %u: %u %s %llu of %llu", group, number,
                has ? "applied" : "has no data,", (unsigned long long)own.applied,
                (unsigned long long)range.committed);
            if (!has || own.applied != range.committed || range.applied != range.committed)
                return false;
        }
    }
    return true;
}

struct image {
    struct buffer bytes;
    uint64_t keys;
};

static bool add_to_image(void *ctx, struct bytes key, const struct value *value)
{
    struct image *image = ctx;
    uint8_t head[28];
    store_u32(head, (uint32_t)key.size);
    store_u32(head + 4, (uint32_t)value->bytes.size);
    store_u64(head + 8, value->version);
    store_u64(head + 16, (uint64_t)value->expires_ms);
    store_u32(head + 24, value->flags);
    image->keys++;
    return buffer_append(&image->bytes, head, sizeof head) == OK &&
        buffer_append(&image->bytes, key.at, key.size) == OK &&
        buffer_append(&image->bytes, value->bytes.at, value->bytes.size) == OK;
}

/* The first entry in which two images differ, as text. */
static void describe(const struct image *image, size_t at, char *out, size_t size)
{
    size_t entry = 0;
    const uint8_t *bytes = image->bytes.at;
    if (at >= image->bytes.size) {
        snprintf(out, size, "nothing");
        return;
    }
    for (;;) {
        size_t next = entry + 28 + load_u32(bytes + entry) + load_u32(bytes + entry + 4);
        if (next > at) break;
        entry = next;
    }
    size_t key = load_u32(bytes + entry);
    snprintf(out, size, "bucket %u key %.*s version %llu size %u expires %lld",
        load_u16_be(bytes + entry + 28), (int)(key - 2 < SHOWN_KEY ? key - 2 : SHOWN_KEY),
        (const char *)bytes + entry + 30, (unsigned long long)load_u64(bytes + entry + 8),
        load_u32(bytes + entry + 4), (long long)load_u64(bytes + entry + 16));
}

static void compare_images(struct sim_cluster *cluster, uint16_t group, const struct machine *a,
    const struct image *one, const struct machine *b, const struct image *two)
{
    size_t shared = one->bytes.size < two->bytes.size ? one->bytes.size : two->bytes.size;
    size_t at = 0;
    while (at < shared && one->bytes.at[at] == two->bytes.at[at])
        at++;
    if (at == one->bytes.size && at == two->bytes.size) return;
    char first[160], second[160];
    describe(one, at, first, sizeof first);
    describe(two, at, second, sizeof second);
    sim_cluster_violation(cluster,
        "range %u differs: m%u (%llu keys) has %s; m%u (%llu keys) has %s", group, a->index,
        (unsigned long long)one->keys, first, b->index, (unsigned long long)two->keys, second);
}

static void compare_group(struct sim_cluster *cluster, uint16_t group)
{
    struct image images[MACHINES_MAX] = {0};
    struct node_range range;
    struct machine *leader = monitor_leader(cluster, group, &range);
    struct machine *reference = NULL;
    for (uint32_t i = 0; leader != NULL && i < range.replica_count; i++) {
        struct machine *machine = monitor_machine_of(cluster, range.replicas[i].number);
        if (machine == NULL || machine->node == NULL) continue;
        struct image *image = &images[machine->index];
        enum err err = engine_scan(
            node_engine(machine->node), group, bytes_of(NULL, 0), false, add_to_image, image);
        engine_read_done(node_engine(machine->node));
        if (err == ERR_CORRUPT && machine->silent_damage) continue;
        if (err != OK)
            sim_cluster_violation(cluster, "range %u cannot be read on m%u: %s", group,
                machine->index, err_name(err));
        if (reference == NULL)
            reference = machine;
        else
            compare_images(cluster, group, reference, &images[reference->index], machine, image);
    }
    for (unsigned i = 0; i < MACHINES_MAX; i++)
        buffer_deinit(&images[i].bytes);
}

void monitor_compare(struct sim_cluster *cluster)
{
    for (uint16_t group = 0; group <= cluster->ranges; group++)
        compare_group(cluster, group);
}
