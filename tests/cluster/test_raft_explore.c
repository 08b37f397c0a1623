#include <criterion/criterion.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "tests/cluster/raft_world.h"

/* Every course of events of a small group, up to a depth: which message arrives next (so they are reordered, and lost
 * if never chosen), which arrives twice, who times out, proposes, has its write done, crashes before it. States
 * seen before are not entered again. The monitor looks after every step. */

enum { NODES = 3, LOG = 10, DEPTH = 32, PENDING = 24, HELD = 6, VISITED = 1 << 21, SENTRY = 40 };

struct budget {
    int timeouts, proposals, heartbeats, crashes, repeats;
};

static struct world world;

/* What of the world can differ between two states; copying all of it would take all the time. */
struct saved_node {
    uint8_t head[offsetof(struct raft, progress) + (NODES - 1) * sizeof(struct raft_progress)];
    uint8_t middle[offsetof(struct raft, messages) - offsetof(struct raft, progress_count)];
    bool up, dirty;
    uint64_t term, last, commit;
    raft_node vote;
    uint32_t held_count;
    struct raft_message held[HELD];
    struct world_entry log[LOG], durable[LOG];
};

struct saved {
    struct saved_node nodes[NODES];
    uint32_t pending_count, values;
    struct world_message pending[PENDING];
    struct world_entry committed[LOG];
    uint64_t committed_count, monitor_committed, terms[LOG], commit_terms[LOG];
    raft_node leaders[SENTRY], votes[NODES + 1][SENTRY];
    uint8_t seen[sizeof world.monitor.nodes];
};

static struct saved stack[DEPTH + 1];
static struct visited {
    uint64_t hash;
    int depth;
} visited[VISITED];
static uint64_t states, steps, used;

static void save_node(struct saved_node *saved, const struct world_node *host)
{
    memcpy(saved->head, &host->raft, sizeof saved->head);
    memcpy(saved->middle, &host->raft.progress_count, sizeof saved->middle);
    cr_assert_leq(host->raft.last, LOG - 1);
    cr_assert_leq(host->held_count, HELD);
    saved->up = host->up;
    saved->dirty = host->dirty;
    saved->term = host->term;
    saved->last = host->last;
    saved->commit = host->commit;
    saved->vote = host->vote;
    saved->held_count = host->held_count;
    memcpy(saved->held, host->held, sizeof saved->held);
    memcpy(saved->log, host->log, sizeof saved->log);
    memcpy(saved->durable, host->durable, sizeof saved->durable);
}

static void load_node(struct world_node *host, const struct saved_node *saved)
{
    memcpy(&host->raft, saved->head, sizeof saved->head);
    memcpy(&host->raft.progress_count, saved->middle, sizeof saved->middle);
    host->raft.read_count = 0;
    host->raft.message_count = 0;
    host->up = saved->up;
    host->dirty = saved->dirty;
    host->term = saved->term;
    host->last = saved->last;
    host->commit = saved->commit;
    host->vote = saved->vote;
    host->held_count = saved->held_count;
    memcpy(host->held, saved->held, sizeof saved->held);
    memcpy(host->log, saved->log, sizeof saved->log);
    memcpy(host->durable, saved->durable, sizeof saved->durable);
}

static void save(struct saved *saved)
{
    const struct raft_monitor *monitor = &world.monitor;
    for (int i = 0; i < NODES; i++) {
        save_node(&saved->nodes[i], &world.nodes[i + 1]);
        memcpy(saved->votes[i + 1], monitor->votes[i + 1], sizeof saved->votes[0]);
    }
    cr_assert_leq(world.pending_count, PENDING);
    saved->pending_count = world.pending_count;
    memcpy(saved->pending, world.pending, world.pending_count * sizeof *world.pending);
    saved->values = world.values;
    memcpy(saved->committed, world.committed, sizeof saved->committed);
    saved->committed_count = world.committed_count;
    saved->monitor_committed = monitor->committed;
    memcpy(saved->terms, monitor->terms, sizeof saved->terms);
    memcpy(saved->commit_terms, monitor->commit_terms, sizeof saved->commit_terms);
    memcpy(saved->leaders, monitor->leaders, sizeof saved->leaders);
    memcpy(saved->seen, monitor->nodes, sizeof saved->seen);
}

static void load(const struct saved *saved)
{
    struct raft_monitor *monitor = &world.monitor;
    for (int i = 0; i < NODES; i++) {
        load_node(&world.nodes[i + 1], &saved->nodes[i]);
        memcpy(monitor->votes[i + 1], saved->votes[i + 1], sizeof saved->votes[0]);
    }
    world.pending_count = saved->pending_count;
    memcpy(world.pending, saved->pending, world.pending_count * sizeof *world.pending);
    world.values = saved->values;
    memcpy(world.committed, saved->committed, sizeof saved->committed);
    world.committed_count = saved->committed_count;
    monitor->committed = saved->monitor_committed;
    memcpy(monitor->terms, saved->terms, sizeof saved->terms);
    memcpy(monitor->commit_terms, saved->commit_terms, sizeof saved->commit_terms);
    memcpy(monitor->leaders, saved->leaders, sizeof saved->leaders);
    memcpy(monitor->nodes, saved->seen, sizeof saved->seen);
}

/* --- the identity of a state: times and round numbers are left out --- */

struct words {
    uint64_t at[256];
    size_t count;
};

static void put(struct words *words, uint64_t word)
{
    cr_assert_lt(words->count, sizeof words->at / sizeof *words->at);
    words->at[words->count++] = word;
}

static void put_entries(struct words *words, const struct world_entry *entries, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        put(words, entries[i].term << 32 | entries[i].value);
    }
}

static void put_message(struct words *words, const struct raft_message *m)
{
    put(words,
        (uint64_t)m->type | (uint64_t)m->reject << 8 | (uint64_t)m->from << 16 |
            (uint64_t)m->to << 32);
    put(words, m->term << 32 | m->index);
    put(words, m->log_term << 32 | m->hint);
    put(words, m->commit);
}

static uint64_t hash_words(const struct words *words)
{
    return hash64(0, bytes_of(words->at, words->count * sizeof *words->at));
}

static void put_node(struct words *words, const struct world_node *host)
{
    const struct raft *raft = &host->raft;
    put(words,
        (uint64_t)host->up | (uint64_t)host->dirty << 1 | (uint64_t)raft->role << 8 |
            (uint64_t)raft->leader << 16 | (uint64_t)raft->vote << 32);
    put(words, raft->term << 32 | raft->last);
    put(words, raft->commit << 32 | raft->persisted);
    put_entries(words, host->log + 1, raft->last);
    put(words, host->term << 32 | host->vote);
    put(words, host->last << 32 | host->commit);
    put_entries(words, host->durable + 1, host->last);
    for (uint32_t i = 0; i < raft->progress_count; i++) {
        const struct raft_progress *peer = &raft->progress[i];
        bool votes = raft->role == RAFT_CANDIDATE || raft->role == RAFT_PRECANDIDATE;
        if (votes) put(words, raft->votes_granted[i]);
        if (raft->role != RAFT_LEADER) continue;
        put(words, peer->match << 32 | peer->next);
        put(words,
            (uint64_t)peer->state | (uint64_t)peer->probe_sent << 8 |
                (uint64_t)peer->inflight_used << 16);
    }
    for (uint32_t i = 0; i < host->held_count; i++) {
        put_message(words, &host->held[i]);
    }
}

static uint64_t identity(const struct budget *budget)
{
    struct words words = {.count = 0};
    for (int i = 1; i <= NODES; i++) {
        put_node(&words, &world.nodes[i]);
    }
    put(&words,
        (uint64_t)(budget->timeouts << 16 | budget->proposals << 12 | budget->heartbeats << 8 |
            budget->crashes << 4 | budget->repeats));
    uint64_t messages = 0; /* a set: the order they are kept in means nothing */
    for (uint32_t i = 0; i < world.pending_count; i++) {
        struct words one = {.count = 0};
        put_message(&one, &world.pending[i].m);
        put_entries(&one, world.pending[i].entries, world.pending[i].count);
        messages += hash_words(&one);
    }
    put(&words, messages);
    return hash_words(&words) | 1;
}

/* False: this state was entered before with at least as much depth left. */
static bool enter(uint64_t hash, int depth)
{
    for (uint64_t at = hash % VISITED;; at = (at + 1) % VISITED) {
        if (visited[at].hash == 0) {
            visited[at] = (struct visited){.hash = hash, .depth = depth};
            used++;
            states++;
            return true;
        }
        if (visited[at].hash != hash) continue;
        if (visited[at].depth >= depth) return false;
        visited[at].depth = depth;
        return true;
    }
}

/* --- actions --- */

static char path[DEPTH + 1][64];
static uint64_t states_max;

static void explore(int level, int depth, struct budget budget);

static void broken(int level)
{
    for (int i = 0; i <= level; i++) {
        fprintf(stderr, "  %s\n", path[i]);
    }
    cr_assert_fail("%s", world.broken);
}

/* After an action: checks, goes deeper, takes it back. */
static void go_on(int level, int depth, struct budget budget)
{
    steps++;
    world_check(&world);
    if (world.broken != NULL) broken(level);
    if (world.pending_count < PENDING - 8) explore(level + 1, depth - 1, budget);
    load(&stack[level]);
}

static void deliveries(int level, int depth, struct budget budget)
{
    uint32_t count = world.pending_count;
    for (uint32_t k = 0; k < count; k++) {
        const struct raft_message *m = &world.pending[k].m;
        raft_node to = m->to;
        if (!world.nodes[to].up) continue;
        snprintf(path[level], sizeof path[level], "%u>%u type %d t%d at %d", m->from, to, m->type,
            (int)m->term, (int)m->index);
        world_deliver(&world, k, false);
        go_on(level, depth, budget);
        struct budget less = budget;
        if (less.crashes-- > 0) {
            world.crash_next = true;
            world_deliver(&world, k, false);
            world.crash_next = false;
            world_restart(&world, to);
            strcat(path[level], ", and a crash");
            go_on(level, depth, less);
        }
        less = budget;
        if (less.repeats-- > 0) {
            world_deliver(&world, k, true);
            strcat(path[level], ", kept");
            go_on(level, depth, less);
        }
    }
}

static void at_node(int level, int depth, struct budget budget, raft_node node)
{
    struct world_node *host = &world.nodes[node];
    struct budget less = budget;
    if (host->dirty) {
        snprintf(path[level], sizeof path[level], "%u flushes", node);
        world_flush(&world, node);
        go_on(level, depth, less);
    }
    if (host->raft.role != RAFT_LEADER && less.timeouts-- > 0) {
        snprintf(path[level], sizeof path[level], "%u times out", node);
        world_timeout(&world, node);
        go_on(level, depth, less);
    }
    less = budget;
    if (host->raft.role == RAFT_LEADER && less.proposals-- > 0) {
        snprintf(path[level], sizeof path[level], "%u proposes", node);
        world_propose(&world, node);
        go_on(level, depth, less);
    }
    less = budget;
    if (host->raft.role == RAFT_LEADER && less.heartbeats-- > 0) {
        snprintf(path[level], sizeof path[level], "%u sends heartbeats", node);
        world_heartbeat(&world, node);
        go_on(level, depth, less);
    }
    less = budget;
    if (less.crashes-- > 0) {
        snprintf(path[level], sizeof path[level], "%u crashes", node);
        world_crash(&world, node);
        world_restart(&world, node);
        go_on(level, depth, less);
    }
}

static void explore(int level, int depth, struct budget budget)
{
    if (depth == 0 || states >= states_max) return;
    if (!enter(identity(&budget), depth)) return;
    cr_assert_lt(used, VISITED * 3 / 4);
    save(&stack[level]);
    deliveries(level, depth, budget);
    for (raft_node node = 1; node <= NODES; node++) {
        at_node(level, depth, budget, node);
    }
}

static void begin(bool flush_at_once, bool pre_vote)
{
    struct raft_settings settings = world_settings();
    settings.pre_vote = pre_vote;
    settings.check_quorum = false;
    world_init(&world, NODES, &settings, 1);
    world.flush_at_once = flush_at_once;
}

static void run(const char *name, int depth, uint64_t max, struct budget budget)
{
#ifdef __SANITIZE_ADDRESS__
    depth -= 2; /* ten times slower */
#endif
    states_max = max;
    explore(0, depth, budget);
    fprintf(stderr, "%s: %lu states, %lu steps%s\n", name, (unsigned long)states,
        (unsigned long)steps, states >= max ? ", not all" : "");
    cr_assert_gt(states, 1000);
    cr_assert_lt(states, max, "the bound is there for changes that need a look");
}

Test(raft_explore, elections)
{
    begin(true, false);
    run("elections", 10, 1500000, (struct budget){.timeouts = 3, .crashes = 1});
}

Test(raft_explore, elections_with_pre_votes)
{
    begin(true, true);
    run("elections with pre-votes", 12, 1500000, (struct budget){.timeouts = 2, .crashes = 1});
}

Test(raft_explore, elections_with_slow_logs)
{
    begin(false, false);
    run("elections with slow logs", 14, 1500000, (struct budget){.timeouts = 2, .crashes = 1});
}

static void with_leader(bool flush_at_once)
{
    begin(true, false);
    world_elect(&world, 1);
    world_settle(&world);
    world.flush_at_once = flush_at_once;
}

Test(raft_explore, entries_and_a_new_leader)
{
    with_leader(true);
    run("entries and a new leader", 11, 1500000,
        (struct budget){.timeouts = 1, .proposals = 2, .heartbeats = 1, .repeats = 1});
}

Test(raft_explore, entries_with_slow_logs_and_a_crash)
{
    with_leader(false);
    run("entries with slow logs", 12, 1500000,
        (struct budget){.timeouts = 1, .proposals = 2, .crashes = 1});
}

/* Raft, figure 8 (c): 1 leads term 4; entry 2 of its term 2 is on 1 and 2; 3 has another one of term 3. */
Test(raft_explore, what_is_left_of_failed_terms)
{
    begin(true, false);
    world_give_log(&world, 1, "12", 1);
    world_give_log(&world, 2, "1", 1);
    world_give_log(&world, 3, "13", 1);
    world.batch = 1;
    run("what is left of failed terms", 12, 1500000,
        (struct budget){.timeouts = 3, .heartbeats = 1});
}
