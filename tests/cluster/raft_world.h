#ifndef TESTS_CLUSTER_RAFT_WORLD_H
#define TESTS_CLUSTER_RAFT_WORLD_H

#include "cluster/raft/raft.h"
#include "sim/raft_monitor.h"

/* A network of Raft replicas for tests: a host for each that keeps entries, a log that is durable when the test
 * says so, and messages that arrive in the order the test says. Nodes are 1..WORLD_NODES. */

enum {
    WORLD_NODES = 9,
    WORLD_ENTRIES = 600,
    WORLD_BATCH = 16,
    WORLD_PENDING = 256,
    WORLD_HELD = 64,
    WORLD_CONFIGS = 128,
    WORLD_TRACE = 1 << 16,
    WORLD_INSTALL = 100, /* message type of the test's own: a snapshot arrives */
};

struct world_entry {
    uint64_t term;
    uint32_t value; /* unique for each proposal; 0: the leader's empty entry */
    uint32_t config; /* 1 + position in configs, 0: none */
};

struct world_message {
    struct raft_message m;
    uint32_t count;
    struct world_entry entries[WORLD_BATCH];
};

struct world_node {
    struct raft raft;
    bool up, exists;
    bool dirty; /* something was logged that is not durable */
    struct world_entry log[WORLD_ENTRIES];
    /* what survives a crash */
    uint64_t term, first, first_term, last, commit, config_index;
    raft_node vote;
    struct raft_config config; /* as of first - 1 */
    struct world_entry durable[WORLD_ENTRIES];
    uint32_t held_count;
    struct raft_message held[WORLD_HELD];
};

struct world {
    struct raft_settings settings;
    uint64_t seed;
    struct world_node nodes[WORLD_NODES + 1];
    struct raft_config initial;
    struct raft_config configs[WORLD_CONFIGS];
    uint32_t config_count;
    struct world_message pending[WORLD_PENDING];
    uint32_t pending_count;
    bool cut[WORLD_NODES + 1][WORLD_NODES + 1]; /* from, to */
    uint32_t batch; /* entries a message at most */
    uint32_t values;
    bool leave_joint; /* propose the leaving configuration when the core asks */
    bool flush_at_once; /* what is logged is durable with the step */
    bool slow_snapshots; /* a snapshot is begun, but never arrives by itself */
    bool crash_next; /* the node dies after the step: what waits for its log is lost */
    uint32_t dropped, snapshots;
    uint32_t read_replies; /* READ_INDEX_REPLY seen, and the newest */
    struct raft_message read_reply;
    struct raft_monitor monitor;
    struct world_entry committed[WORLD_ENTRIES];
    uint64_t committed_count;
    const char *broken;
    bool tracing;
    size_t trace_size;
    char trace[WORLD_TRACE];
};

struct raft_settings world_settings(void);
struct raft_config world_config(
    const char *voters, const char *old, const char *learners); /* "123" */
/* Nodes 1..count start as voters. */
void world_init(
    struct world *world, uint32_t count, const struct raft_settings *settings, uint64_t seed);
struct raft *world_raft(struct world *world, raft_node node);
/* A node with nothing in its log; it waits to be found by a leader. */
void world_add_node(struct world *world, raft_node node);
/* Puts entries of these terms in the log of a node before anything runs; durable. "1123": four entries. */
void world_give_log(struct world *world, raft_node node, const char *terms, uint64_t commit);

void world_tick(struct world *world, raft_node node, uint64_t ms);
/* The node's election (or the leader's heartbeat) is due now. */
void world_timeout(struct world *world, raft_node node);
void world_heartbeat(struct world *world, raft_node node);
uint64_t world_propose(struct world *world, raft_node node);
uint64_t world_propose_config(struct world *world, raft_node node, struct raft_config config);
/* Takes the results of calls the test made itself on the node's core. */
void world_ready(struct world *world, raft_node node);
/* What was logged is durable. */
void world_flush(struct world *world, raft_node node);
void world_crash(struct world *world, raft_node node);
void world_restart(struct world *world, raft_node node);

void world_send(struct world *world, const struct raft_message *message);
void world_deliver(struct world *world, uint32_t position, bool keep);
void world_drop(struct world *world, uint32_t position);
/* Position of the oldest pending message of that type from .. to (0: any), or -1. */
int world_find(const struct world *world, uint8_t type, raft_node from, raft_node to);
void world_isolate(struct world *world, raft_node node, bool cut);
/* Flushes and delivers until nothing is left. */
void world_settle(struct world *world);
/* Time passes for all in steps of 10 ms, with everything delivered in between. */
void world_run(struct world *world, uint64_t ms);
/* Makes a node the leader: its timeout, then everything is delivered. */
void world_elect(struct world *world, raft_node node);
raft_node world_leader(const struct world *world); /* of the highest term, 0: none */

/* A line of the trace. */
void world_note(struct world *world, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Compares the logs of all nodes and the content of entries. */
void world_check(struct world *world);

#endif
