#ifndef SIM_RAFT_MONITOR_H
#define SIM_RAFT_MONITOR_H

#include <stdbool.h>
#include <stdint.h>

#include "cluster/raft/raft.h"

/* Watches all replicas of one Raft group and says when a property of the protocol is broken (Raft, figure 3, and
 * what follows from it): at most one leader a term, one vote a term and node, terms and commit never go back,
 * a committed entry is the same everywhere and in the log of every later leader, logs that agree on an entry
 * agree on all before it. Pure; it knows indexes and terms, and the host compares the entries' content. Returns are
 * NULL or the sentence of what is broken. */

enum { RAFT_MONITOR_NODES = 16, RAFT_MONITOR_TERMS = 512, RAFT_MONITOR_ENTRIES = 4096 };

struct raft_monitor {
    struct {
        uint64_t term, commit;
        bool leads;
    } nodes[RAFT_MONITOR_NODES];
    raft_node leaders[RAFT_MONITOR_TERMS];
    raft_node votes[RAFT_MONITOR_NODES][RAFT_MONITOR_TERMS];
    uint64_t committed; /* highest index that is committed anywhere */
    uint64_t terms[RAFT_MONITOR_ENTRIES];
    uint64_t commit_terms[RAFT_MONITOR_ENTRIES]; /* newest term in which that became known */
};

void raft_monitor_init(struct raft_monitor *monitor);
/* After each call to a replica. Nodes must be below RAFT_MONITOR_NODES. */
const char *raft_monitor_observe(struct raft_monitor *monitor, const struct raft *raft);
/* A message really leaves a node: what it says must stay true after a crash. */
const char *raft_monitor_sent(struct raft_monitor *monitor, const struct raft_message *message);
/* The node crashed; its volatile state may be younger than what it restarts with. */
void raft_monitor_crashed(struct raft_monitor *monitor, raft_node node);
/* Compares two logs. */
const char *raft_monitor_logs(const struct raft *a, const struct raft *b);

#endif
