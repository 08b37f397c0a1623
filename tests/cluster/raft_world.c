#include "tests/cluster/raft_world.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"

static const char *const TYPES[] = {"?", "PREVOTE", "PREVOTE_REPLY", "VOTE", "VOTE_REPLY", "APPEND",
    "APPEND_REPLY", "HEARTBEAT", "HEARTBEAT_REPLY", "SNAPSHOT_REPLY", "TIMEOUT_NOW", "READ_INDEX",
    "READ_INDEX_REPLY"};
static const char *const ROLES[] = {"follower", "precandidate", "candidate", "leader"};
static const char *const STATES[] = {"probe", "replicate", "snapshot"};

struct raft_settings world_settings(void)
{
    return (struct raft_settings){.heartbeat_ms = 100,
        .election_ms = 600,
        .hint_spread_ms = 100,
        .inflight_messages = 256,
        .inflight_bytes = 8 << 20,
        .pre_vote = true,
        .check_quorum = true};
}

static uint8_t parse_nodes(raft_node *nodes, const char *text)
{
    uint8_t count = 0;
    for (; *text != '\0'; text++) {
        nodes[count++] = (raft_node)(*text - '0');
    }
    return count;
}

struct raft_config world_config(const char *voters, const char *old, const char *learners)
{
    struct raft_config config = {0};
    config.voter_count = parse_nodes(config.voters, voters);
    config.old_count = parse_nodes(config.old_voters, old);
    config.learner_count = parse_nodes(config.learners, learners);
    return config;
}

void world_note(struct world *world, const char *format, ...)
{
    if (!world->tracing) return;
    size_t room = sizeof world->trace - world->trace_size;
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(world->trace + world->trace_size, room, format, arguments);
    va_end(arguments);
    ASSERT(size >= 0 && (size_t)size < room);
    world->trace_size += (size_t)size;
}

static void note_message(struct world *world, const struct world_message *message, const char *what)
{
    if (!world->tracing) return;
    const struct raft_message *m = &message->m;
    const char *type = m->type == WORLD_INSTALL ? "INSTALL" : TYPES[m->type];
    world_note(
        world, "%u>%u %s%s t%d", m->from, m->to, type, m->reject ? "(no)" : "", (int)m->term);
    if (m->forced) world_note(world, " forced");
    if (m->index > 0 || m->log_term > 0) {
        world_note(world, " at %d/%d", (int)m->index, (int)m->log_term);
    }
    if (m->type == RAFT_APPEND_REPLY && m->reject) world_note(world, " hint %d", (int)m->hint);
    for (uint32_t i = 0; i < message->count; i++) {
        world_note(world, "%s%d", i == 0 ? " terms " : ",", (int)message->entries[i].term);
    }
    if (m->commit > 0) world_note(world, " commit %d", (int)m->commit);
    if (m->round > 0) world_note(world, " round %d", (int)m->round);
    world_note(world, "%s\n", what);
}

struct seen {
    uint64_t term, commit, last, confirmed;
    uint8_t role, states[WORLD_NODES + 1];
    raft_node leader, vote;
};

static struct seen look(const struct raft *raft)
{
    struct seen seen = {.term = raft->term,
        .commit = raft->commit,
        .last = raft->last,
        .confirmed = raft->round_confirmed,
        .role = raft->role,
        .leader = raft->leader,
        .vote = raft->vote};
    for (uint32_t i = 0; i < raft->progress_count && raft->role == RAFT_LEADER; i++) {
        seen.states[raft->progress[i].node] = (uint8_t)(raft->progress[i].state + 1);
    }
    return seen;
}

static void note_change(struct world *world, raft_node node, const struct seen *before)
{
    if (!world->tracing) return;
    struct seen now = look(&world->nodes[node].raft);
    if (now.term != before->term || now.role != before->role || now.leader != before->leader ||
        now.vote != before->vote) {
        world_note(world, "    %u: %s of term %d, leader %u, voted %u\n", node, ROLES[now.role],
            (int)now.term, now.leader, now.vote);
    }
    if (now.last != before->last || now.commit != before->commit) {
        world_note(world, "    %u: last %d commit %d\n", node, (int)now.last, (int)now.commit);
    }
    for (raft_node peer = 1; peer <= WORLD_NODES; peer++) {
        if (now.states[peer] == before->states[peer] || now.states[peer] == 0) continue;
        world_note(world, "    %u: %u is in %s\n", node, peer, STATES[now.states[peer] - 1]);
    }
    if (now.confirmed != before->confirmed) {
        world_note(world, "    %u: round %d confirmed\n", node, (int)now.confirmed);
    }
}

struct raft *world_raft(struct world *world, raft_node node)
{
    return &world->nodes[node].raft;
}

static const struct raft_config *config_at(
    const struct world *world, const struct world_entry *entry)
{
    return entry->config == 0 ? NULL : &world->configs[entry->config - 1];
}

static void set_broken(struct world *world, const char *broken)
{
    if (broken == NULL || world->broken != NULL) return;
    world->broken = broken;
    world_note(world, "BROKEN: %s\n", broken);
}

static void start(struct world *world, raft_node node)
{
    struct world_node *host = &world->nodes[node];
    struct raft_restore restore = {.term = host->term,
        .vote = host->vote,
        .first = host->first,
        .first_term = host->first_term,
        .commit = host->first - 1,
        .config = host->config,
        .config_index = host->config_index};
    uint64_t now_ms = host->raft.now_ms > 0 ? host->raft.now_ms : 1000;
    world->seed = world->seed * 6364136223846793005u + 1442695040888963407u;
    raft_init(&host->raft, node, &world->settings, &restore, world->seed, now_ms);
    for (uint64_t index = host->first; index <= host->last; index++) {
        host->log[index] = host->durable[index];
        const struct world_entry *entry = &host->log[index];
        raft_restore_entry(&host->raft, index, entry->term, config_at(world, entry));
    }
    raft_restore_commit(&host->raft, host->commit);
    host->up = true;
    host->exists = true;
    host->dirty = false;
    host->held_count = 0;
    set_broken(world, raft_monitor_observe(&world->monitor, &host->raft));
}

void world_add_node(struct world *world, raft_node node)
{
    struct world_node *host = &world->nodes[node];
    host->first = 1;
    start(world, node);
}

void world_init(
    struct world *world, uint32_t count, const struct raft_settings *settings, uint64_t seed)
{
    memset(world, 0, sizeof *world);
    world->settings = *settings;
    world->seed = seed;
    world->batch = WORLD_BATCH;
    world->leave_joint = true;
    world->initial.voter_count = (uint8_t)count;
    raft_monitor_init(&world->monitor);
    for (raft_node node = 1; node <= count; node++) {
        world->initial.voters[node - 1] = node;
    }
    for (raft_node node = 1; node <= count; node++) {
        world->nodes[node].config = world->initial;
        world_add_node(world, node);
    }
}

void world_give_log(struct world *world, raft_node node, const char *terms, uint64_t commit)
{
    struct world_node *host = &world->nodes[node];
    for (uint64_t i = 0; terms[i] != '\0'; i++) {
        uint64_t term = (uint64_t)(terms[i] - '0');
        host->durable[i + 1] =
            (struct world_entry){.term = term, .value = (uint32_t)(term * 100 + i)};
        host->last = i + 1;
        host->term = term;
    }
    host->commit = commit;
    start(world, node);
}

static void enqueue(struct world *world, const struct world_message *message)
{
    set_broken(world, raft_monitor_sent(&world->monitor, &message->m));
    if (message->m.type == RAFT_READ_INDEX_REPLY) {
        world->read_replies++;
        world->read_reply = message->m;
    }
    if (world->pending_count == WORLD_PENDING) {
        world->dropped++;
        return;
    }
    struct world_message *slot = &world->pending[world->pending_count++];
    slot->m = message->m;
    slot->count = message->count;
    memcpy(slot->entries, message->entries, message->count * sizeof *message->entries);
}

void world_send(struct world *world, const struct raft_message *message)
{
    struct world_message wrapped;
    wrapped.m = *message;
    wrapped.count = 0;
    enqueue(world, &wrapped);
}

static void send_snapshot(struct world *world, raft_node from, raft_node to)
{
    struct world_node *host = &world->nodes[from];
    raft_snapshot_begin(&host->raft, to, host->raft.commit);
    if (world->slow_snapshots) return;
    struct raft_message install = {.type = WORLD_INSTALL, .from = from, .to = to};
    install.term = host->raft.term;
    install.index = host->raft.commit;
    install.log_term = raft_term_at(&host->raft, install.index);
    world_send(world, &install);
}

static void send_appends(struct world *world, raft_node node, raft_node to)
{
    struct world_node *host = &world->nodes[node];
    struct raft_append append;
    while (raft_append_next(&host->raft, to, &append)) {
        if (append.snapshot) {
            send_snapshot(world, node, to);
            return;
        }
        struct world_message message = {.m = {.type = RAFT_APPEND, .from = node, .to = to}};
        message.m.term = append.term;
        message.m.index = append.previous;
        message.m.log_term = append.previous_term;
        message.m.commit = append.commit;
        for (uint64_t i = append.first; i <= append.last && message.count < world->batch; i++) {
            message.entries[message.count++] = host->log[i];
        }
        enqueue(world, &message);
        raft_append_sent(&host->raft, to, append.previous + message.count, message.count * 100);
    }
}

static void check_committed(struct world *world, raft_node node)
{
    struct world_node *host = &world->nodes[node];
    for (uint64_t i = world->committed_count + 1; i <= host->raft.commit; i++) {
        world->committed[i] = host->log[i];
        world->committed_count = i;
    }
    uint64_t i = host->raft.commit;
    if (i > 0 && i + 1 > host->raft.first &&
        (world->committed[i].value != host->log[i].value ||
            world->committed[i].term != host->log[i].term)) {
        set_broken(world, "a committed entry has two contents");
    }
}

static void route(struct world *world, raft_node node)
{
    struct world_node *host = &world->nodes[node];
    for (uint32_t i = 0; i < host->raft.message_count; i++) {
        const struct raft_message *message = &host->raft.messages[i];
        if (!message->after_log || !host->dirty) {
            world_send(world, message);
        } else if (host->held_count < WORLD_HELD) {
            host->held[host->held_count++] = *message;
        } else {
            world->dropped++;
        }
    }
}

static void take_flags(struct world *world, raft_node node)
{
    struct world_node *host = &world->nodes[node];
    struct raft *raft = &host->raft;
    if (raft->hard_changed) host->dirty = true;
    if (raft->noop_index != 0) {
        host->log[raft->noop_index] = (struct world_entry){.term = raft->term};
        host->dirty = true;
    }
    route(world, node);
    bool due = raft->append_due;
    bool leave = raft->config_wanted && world->leave_joint;
    raft_ready_clear(raft);
    for (uint32_t i = 0; due && i < raft->progress_count; i++) {
        send_appends(world, node, raft->progress[i].node);
    }
    check_committed(world, node);
    set_broken(world, raft_monitor_observe(&world->monitor, raft));
    if (leave) {
        struct raft_config left;
        raft_config_leave(&raft->config, &left);
        (void)world_propose_config(world, node, left);
    }
}

void world_ready(struct world *world, raft_node node)
{
    struct world_node *host = &world->nodes[node];
    take_flags(world, node);
    if (world->crash_next) {
        world_crash(world, node);
    } else if (world->flush_at_once && host->dirty) {
        world_flush(world, node);
    }
}

void world_flush(struct world *world, raft_node node)
{
    struct world_node *host = &world->nodes[node];
    if (!host->up || !host->dirty) return;
    struct seen before = look(&host->raft);
    struct raft *raft = &host->raft;
    host->term = raft->term;
    host->vote = raft->vote;
    host->commit = raft->commit;
    for (uint64_t i = host->first; i <= raft->last; i++) {
        host->durable[i] = host->log[i];
    }
    host->last = raft->last;
    host->dirty = false;
    uint32_t held = host->held_count;
    host->held_count = 0;
    for (uint32_t i = 0; i < held; i++) {
        world_send(world, &host->held[i]);
    }
    raft_persisted(raft, raft->last, raft_term_at(raft, raft->last));
    world_note(world, "%u is durable to %d\n", node, (int)raft->last);
    note_change(world, node, &before);
    bool crash = world->crash_next;
    world->crash_next = false;
    world_ready(world, node);
    world->crash_next = crash;
}

void world_tick(struct world *world, raft_node node, uint64_t ms)
{
    struct world_node *host = &world->nodes[node];
    if (!host->up) return;
    struct seen before = look(&host->raft);
    raft_tick(&host->raft, host->raft.now_ms + ms);
    note_change(world, node, &before);
    world_ready(world, node);
}

void world_timeout(struct world *world, raft_node node)
{
    struct raft *raft = world_raft(world, node);
    world_note(world, "%u times out\n", node);
    raft->election_at_ms = raft->now_ms;
    raft->heard_ms = 0;
    world_tick(world, node, 0);
}

void world_heartbeat(struct world *world, raft_node node)
{
    struct raft *raft = world_raft(world, node);
    raft->heartbeat_at_ms = raft->now_ms;
    world_tick(world, node, 0);
}

static uint64_t proposed(struct world *world, raft_node node, uint64_t index, uint32_t config)
{
    struct world_node *host = &world->nodes[node];
    if (index != 0) {
        ASSERT(index < WORLD_ENTRIES);
        host->log[index] = (struct world_entry){
            .term = host->raft.term, .value = ++world->values, .config = config};
        host->dirty = true;
        world_note(world, "%u proposes %d\n", node, (int)index);
    }
    world_ready(world, node);
    return index;
}

uint64_t world_propose(struct world *world, raft_node node)
{
    return proposed(world, node, raft_propose(world_raft(world, node)), 0);
}

uint64_t world_propose_config(struct world *world, raft_node node, struct raft_config config)
{
    ASSERT(world->config_count < WORLD_CONFIGS);
    uint64_t index = raft_propose_config(world_raft(world, node), &config);
    if (index == 0) return 0;
    world->configs[world->config_count++] = config;
    return proposed(world, node, index, world->config_count);
}

void world_crash(struct world *world, raft_node node)
{
    struct world_node *host = &world->nodes[node];
    if (!host->up) return;
    world_note(world, "%u crashes\n", node);
    host->up = false;
    host->dirty = false;
    host->held_count = 0;
    raft_monitor_crashed(&world->monitor, node);
}

void world_restart(struct world *world, raft_node node)
{
    world_note(world, "%u starts\n", node);
    start(world, node);
}

static void install(struct world *world, const struct raft_message *message)
{
    struct world_node *host = &world->nodes[message->to];
    struct raft *raft = &host->raft;
    if (message->index > raft->commit) {
        /* the content up to a committed index is the same everywhere */
        struct raft_config config = world->initial;
        uint64_t config_index = 0;
        for (uint64_t i = 1; i <= message->index; i++) {
            if (world->committed[i].config == 0) continue;
            config = *config_at(world, &world->committed[i]);
            config_index = i;
        }
        world->snapshots++;
        bool had_it = raft_term_at(raft, message->index) == message->log_term;
        raft_installed(raft, message->index, message->log_term, &config, config_index);
        if (!had_it) {
            memcpy(host->log, world->committed, sizeof *host->log * (message->index + 1));
            host->first = message->index + 1;
            host->first_term = message->log_term;
            host->config = config;
            host->config_index = config_index;
            host->last = message->index;
            host->commit = message->index;
        }
        host->dirty = true;
    }
    world_ready(world, message->to);
    if (!host->up) return;
    struct raft_message reply = {.type = RAFT_SNAPSHOT_REPLY,
        .from = message->to,
        .to = message->from,
        .term = raft->term,
        .index = message->index};
    if (host->dirty) world_flush(world, message->to);
    world_send(world, &reply);
}

static void receive(struct world *world, const struct world_message *message)
{
    struct world_node *host = &world->nodes[message->m.to];
    if (message->m.type == WORLD_INSTALL) {
        if (message->m.term >= host->raft.term) install(world, &message->m);
        return;
    }
    uint64_t terms[WORLD_BATCH];
    const struct raft_config *configs[WORLD_BATCH];
    for (uint32_t i = 0; i < message->count; i++) {
        terms[i] = message->entries[i].term;
        configs[i] = config_at(world, &message->entries[i]);
    }
    struct raft_accept accept;
    raft_step(&host->raft, &message->m, terms, configs, message->count, &accept);
    for (uint64_t i = accept.first; i <= accept.last; i++) {
        host->log[i] = message->entries[i - message->m.index - 1];
        host->dirty = true;
    }
}

void world_deliver(struct world *world, uint32_t position, bool keep)
{
    ASSERT(position < world->pending_count);
    static struct world_message message; /* too large to be copied twice for each call */
    message = world->pending[position];
    if (!keep) world_drop(world, position);
    raft_node to = message.m.to;
    if (!world->nodes[to].up || world->cut[message.m.from][to]) {
        note_message(world, &message, " lost");
        return;
    }
    note_message(world, &message, "");
    struct seen before = look(&world->nodes[to].raft);
    receive(world, &message);
    note_change(world, to, &before);
    if (message.m.type != WORLD_INSTALL) world_ready(world, to);
}

void world_drop(struct world *world, uint32_t position)
{
    world->pending_count--;
    memmove(world->pending + position, world->pending + position + 1,
        (world->pending_count - position) * sizeof *world->pending);
}

int world_find(const struct world *world, uint8_t type, raft_node from, raft_node to)
{
    for (uint32_t i = 0; i < world->pending_count; i++) {
        const struct raft_message *m = &world->pending[i].m;
        if (type != 0 && m->type != type) continue;
        if ((from == 0 || m->from == from) && (to == 0 || m->to == to)) return (int)i;
    }
    return -1;
}

void world_isolate(struct world *world, raft_node node, bool cut)
{
    for (raft_node other = 1; other <= WORLD_NODES; other++) {
        world->cut[node][other] = cut;
        world->cut[other][node] = cut;
    }
}

void world_settle(struct world *world)
{
    for (int i = 0; i < 100000; i++) {
        bool idle = world->pending_count == 0;
        if (!idle) world_deliver(world, 0, false);
        for (raft_node node = 1; idle && node <= WORLD_NODES; node++) {
            if (!world->nodes[node].up || !world->nodes[node].dirty) continue;
            idle = false;
            world_flush(world, node);
        }
        if (idle) return;
    }
    set_broken(world, "the messages never end");
}

void world_run(struct world *world, uint64_t ms)
{
    for (uint64_t passed = 0; passed < ms; passed += 10) {
        for (raft_node node = 1; node <= WORLD_NODES; node++) {
            world_tick(world, node, 10);
        }
        world_settle(world);
    }
}

void world_elect(struct world *world, raft_node node)
{
    for (raft_node other = 1; other <= WORLD_NODES; other++) {
        world_raft(world, other)->heard_ms = 0; /* nobody has a live leader */
    }
    world_timeout(world, node);
    world_settle(world);
}

raft_node world_leader(const struct world *world)
{
    raft_node leader = 0;
    uint64_t term = 0;
    for (raft_node node = 1; node <= WORLD_NODES; node++) {
        const struct raft *raft = &world->nodes[node].raft;
        if (!world->nodes[node].up || raft->role != RAFT_LEADER || raft->term <= term) continue;
        leader = node;
        term = raft->term;
    }
    return leader;
}

void world_check(struct world *world)
{
    for (raft_node a = 1; a <= WORLD_NODES; a++) {
        if (!world->nodes[a].up) continue;
        for (raft_node b = (raft_node)(a + 1); b <= WORLD_NODES; b++) {
            if (!world->nodes[b].up) continue;
            set_broken(world, raft_monitor_logs(world_raft(world, a), world_raft(world, b)));
        }
    }
}
