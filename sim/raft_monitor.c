#include "sim/raft_monitor.h"

#include <string.h>

#include "base/check.h"

void raft_monitor_init(struct raft_monitor *monitor)
{
    memset(monitor, 0, sizeof *monitor);
}

void raft_monitor_crashed(struct raft_monitor *monitor, raft_node node)
{
    ASSERT(node < RAFT_MONITOR_NODES);
    monitor->nodes[node].term = 0;
    monitor->nodes[node].commit = 0;
    monitor->nodes[node].leads = false;
}

static const char *committed_here(struct raft_monitor *monitor, const struct raft *raft)
{
    uint64_t index = monitor->nodes[raft->self].commit + 1;
    if (index + 1 < raft->first) index = raft->first - 1;
    for (; index <= raft->commit; index++) {
        ASSERT(index < RAFT_MONITOR_ENTRIES);
        uint64_t term = raft_term_at(raft, index);
        if (index > monitor->committed) {
            monitor->terms[index] = term;
            monitor->commit_terms[index] = raft->term;
            monitor->committed = index;
        } else if (index > 0 && monitor->terms[index] != term) {
            return "two replicas committed different entries at one index";
        } else if (raft->term < monitor->commit_terms[index]) {
            monitor->commit_terms[index] = raft->term;
        }
    }
    monitor->nodes[raft->self].commit = raft->commit;
    return NULL;
}

static const char *new_leader(struct raft_monitor *monitor, const struct raft *raft)
{
    ASSERT(raft->term < RAFT_MONITOR_TERMS);
    raft_node *leader = &monitor->leaders[raft->term];
    if (*leader != 0 && *leader != raft->self) return "two leaders in one term";
    *leader = raft->self;
    for (uint64_t index = raft->first; index <= monitor->committed; index++) {
        if (monitor->commit_terms[index] >= raft->term) continue;
        if (raft_term_at(raft, index) != monitor->terms[index]) {
            return "a leader lacks a committed entry";
        }
    }
    return NULL;
}

const char *raft_monitor_observe(struct raft_monitor *monitor, const struct raft *raft)
{
    ASSERT(raft->self < RAFT_MONITOR_NODES);
    if (raft->term < monitor->nodes[raft->self].term) return "a term went back";
    if (raft->commit < monitor->nodes[raft->self].commit) return "a commit index went back";
    if (raft->diverged) return "a leader contradicted a committed entry";
    bool fresh = raft->role == RAFT_LEADER &&
        !(monitor->nodes[raft->self].leads && monitor->nodes[raft->self].term == raft->term);
    monitor->nodes[raft->self].term = raft->term;
    monitor->nodes[raft->self].leads = raft->role == RAFT_LEADER;
    const char *broken = committed_here(monitor, raft);
    if (broken == NULL && fresh) broken = new_leader(monitor, raft);
    return broken;
}

const char *raft_monitor_sent(struct raft_monitor *monitor, const struct raft_message *message)
{
    raft_node vote = 0;
    if (message->type == RAFT_VOTE) vote = message->from;
    if (message->type == RAFT_VOTE_REPLY && !message->reject) vote = message->to;
    if (vote == 0) return NULL;
    ASSERT(message->from < RAFT_MONITOR_NODES && message->term < RAFT_MONITOR_TERMS);
    raft_node *known = &monitor->votes[message->from][message->term];
    if (*known != 0 && *known != vote) return "two votes of one node in one term";
    *known = vote;
    return NULL;
}

const char *raft_monitor_logs(const struct raft *a, const struct raft *b)
{
    uint64_t first = a->first > b->first ? a->first : b->first;
    uint64_t last = a->last < b->last ? a->last : b->last;
    bool agree = false;
    for (uint64_t index = last; index + 1 >= first && index > 0; index--) {
        bool same = raft_term_at(a, index) == raft_term_at(b, index);
        if (agree && !same) return "two logs agree on an entry and differ before it";
        agree |= same;
    }
    return NULL;
}
