#include "cluster/raft/raft_internal.h"

#include <string.h>

/* The log as the protocol sees it: indexes and terms. Terms never fall along a log, so a short table of runs
 * (first index, term) says the term of every entry. runs[0].index is first - 1 always. A table that is full
 * gives up its oldest run, if that is committed: then `first` moves up and a peer that far behind
 * is sent a snapshot, as after a compaction. */

static uint32_t run_of(const struct raft *raft, uint64_t index)
{
    uint32_t at = raft->run_count;
    while (at > 0 && raft->runs[at - 1].index > index) {
        at--;
    }
    ASSERT(at > 0);
    return at - 1;
}

uint64_t raft_term_at(const struct raft *raft, uint64_t index)
{
    if (index + 1 < raft->first || index > raft->last) return 0;
    return raft->runs[run_of(raft, index)].term;
}

uint64_t raft_last_term(const struct raft *raft)
{
    return raft->runs[raft->run_count - 1].term;
}

/* first - 1 becomes `index`, an index of the log. */
static void start_after(struct raft *raft, uint64_t index)
{
    ASSERT(index + 1 >= raft->first && index <= raft->commit);
    uint32_t run = run_of(raft, index);
    memmove(raft->runs, raft->runs + run, (raft->run_count - run) * sizeof *raft->runs);
    raft->run_count -= run;
    raft->runs[0].index = index;
    raft->first = index + 1;
}

bool raft_log_has_room(struct raft *raft, uint64_t index, uint64_t term)
{
    ASSERT(index >= raft->first && index <= raft->last + 1);
    uint32_t before = run_of(raft, index - 1);
    if (before + 1 < RAFT_TERM_RUNS || raft->runs[before].term == term) return true;
    if (raft->runs[1].index > raft->commit) return false;
    start_after(raft, raft->runs[1].index);
    return true;
}

void raft_log_append(struct raft *raft, uint64_t term)
{
    ASSERT(term >= raft_last_term(raft));
    raft->last++;
    if (raft_last_term(raft) == term) return;
    ASSERT(raft->run_count < RAFT_TERM_RUNS);
    raft->runs[raft->run_count++] = (struct raft_term_run){.index = raft->last, .term = term};
}

void raft_log_truncate(struct raft *raft, uint64_t index)
{
    ASSERT(index >= raft->first && index <= raft->last);
    raft->last = index - 1;
    while (raft->runs[raft->run_count - 1].index >= index) {
        raft->run_count--;
        ASSERT(raft->run_count > 0);
    }
    if (raft->persisted > raft->last) raft->persisted = raft->last;
    if (raft->config_index >= index) raft_config_roll_back(raft);
}

uint64_t raft_log_agree(const struct raft *raft, uint64_t index, uint64_t term)
{
    ASSERT(index <= raft->last);
    if (index + 1 < raft->first) return index;
    uint32_t run = run_of(raft, index);
    if (raft->runs[run].term <= term) return index;
    while (run > 0 && raft->runs[run].term > term) {
        run--;
    }
    return raft->runs[run].term <= term ? raft->runs[run + 1].index - 1 : raft->first - 1;
}

void raft_compact(struct raft *raft, uint64_t index)
{
    ASSERT(index <= raft->commit);
    if (index < raft->first) return;
    start_after(raft, index);
    raft_check(raft);
}

void raft_installed(struct raft *raft, uint64_t index, uint64_t term,
    const struct raft_config *config, uint64_t config_index)
{
    ASSERT(raft->role != RAFT_LEADER);
    ASSERT(config_index <= index);
    if (index + 1 < raft->first) return;
    if (raft->role != RAFT_FOLLOWER || term > raft->term) {
        raft_become_follower(raft, term > raft->term ? term : raft->term, 0);
    }
    if (raft_term_at(raft, index) == term) {
        /* the log has it; what follows it stays (Raft, figure 13) */
        if (index > raft->commit) raft->commit = index;
    } else {
        ASSERT(index > raft->commit);
        raft->first = index + 1;
        raft->last = index;
        raft->commit = index;
        raft->persisted = index;
        raft->runs[0] = (struct raft_term_run){.index = index, .term = term};
        raft->run_count = 1;
        raft_config_reset(raft, config, config_index);
    }
    raft_check(raft);
}
