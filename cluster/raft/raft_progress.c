#include "cluster/raft/raft_internal.h"

#include <string.h>

/* What the leader knows of each peer. PROBE: where the logs meet is not known, one append at a time, the next
 * after an answer or a heartbeat's. REPLICATE: appends follow each other up to the limits of the window (thesis
 * 10.2.1). SNAPSHOT: nothing is appended while the host streams one; ends when an append reply shows that the log
 * meets, when the host says so, or when the peer was silent for long. */

const struct raft_progress *raft_progress_find(const struct raft *raft, raft_node node)
{
    uint32_t low = 0;
    uint32_t high = raft->progress_count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (raft->progress[middle].node < node) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low == raft->progress_count || raft->progress[low].node != node) return NULL;
    return &raft->progress[low];
}

struct raft_progress *raft_progress_of(struct raft *raft, raft_node node)
{
    const struct raft_progress *peer = raft_progress_find(raft, node);
    return peer == NULL ? NULL : &raft->progress[peer - raft->progress];
}

static void window_clear(struct raft_progress *peer)
{
    peer->inflight_count = 0;
    peer->inflight_bytes = 0;
    peer->inflight_first = 0;
    peer->inflight_used = 0;
}

enum {
    WINDOW_SLOTS = sizeof((struct raft_progress *)0)->inflight /
        sizeof(((struct raft_progress *)0)->inflight[0])
};

static void window_add(struct raft_progress *peer, uint64_t last, uint32_t bytes)
{
    if (peer->inflight_used < WINDOW_SLOTS) {
        uint32_t slot = (peer->inflight_first + peer->inflight_used) % WINDOW_SLOTS;
        peer->inflight[slot].last = last;
        peer->inflight[slot].bytes = bytes;
        peer->inflight[slot].count = 1;
        peer->inflight_used++;
    } else {
        uint32_t slot = (peer->inflight_first + WINDOW_SLOTS - 1u) % WINDOW_SLOTS;
        ASSERT(peer->inflight[slot].last < last);
        peer->inflight[slot].last = last;
        peer->inflight[slot].bytes += bytes;
        peer->inflight[slot].count++;
    }
    peer->inflight_count++;
    peer->inflight_bytes += bytes;
}

static void window_free(struct raft_progress *peer, uint64_t match)
{
    while (peer->inflight_used > 0 && peer->inflight[peer->inflight_first].last <= match) {
        ASSERT(peer->inflight_count >= peer->inflight[peer->inflight_first].count);
        ASSERT(peer->inflight_bytes >= peer->inflight[peer->inflight_first].bytes);
        peer->inflight_count -= peer->inflight[peer->inflight_first].count;
        peer->inflight_bytes -= peer->inflight[peer->inflight_first].bytes;
        peer->inflight_first = (uint8_t)((peer->inflight_first + 1u) % WINDOW_SLOTS);
        peer->inflight_used--;
    }
    ASSERT_IF(peer->inflight_used == 0, peer->inflight_count == 0 && peer->inflight_bytes == 0);
}

static void become_probe(struct raft *raft, struct raft_progress *peer, uint64_t next)
{
    ASSERT(next > peer->match && next <= raft->last + 1);
    window_clear(peer);
    peer->state = RAFT_PROBE;
    peer->next = next;
    peer->probe_sent = false;
    peer->snapshot = 0;
    raft->append_due = true;
}

static void become_replicate(struct raft *raft, struct raft_progress *peer)
{
    window_clear(peer);
    peer->state = RAFT_REPLICATE;
    peer->next = peer->match + 1;
    peer->probe_sent = false;
    peer->snapshot = 0;
    raft->append_due = true;
}

static void start_peer(const struct raft *raft, struct raft_progress *peer, raft_node node)
{
    *peer = (struct raft_progress){.node = node, .state = RAFT_PROBE, .next = raft->last + 1};
    peer->acked_ms = raft->now_ms;
}

void raft_progress_reset(struct raft *raft)
{
    for (uint32_t i = 0; i < raft->progress_count; i++) {
        start_peer(raft, &raft->progress[i], raft->progress[i].node);
    }
}

static bool in_config(const struct raft_config *config, raft_node node)
{
    return raft_config_is_voter(config, node) || raft_config_is_learner(config, node);
}

static void add_peers(struct raft *raft, const raft_node *nodes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (nodes[i] == raft->self || raft_progress_find(raft, nodes[i]) != NULL) continue;
        ASSERT(raft->progress_count < RAFT_PEERS_MAX);
        uint32_t at = raft->progress_count++;
        for (; at > 0 && raft->progress[at - 1].node > nodes[i]; at--) {
            raft->progress[at] = raft->progress[at - 1];
        }
        start_peer(raft, &raft->progress[at], nodes[i]);
        /* no check-quorum window is lost on a peer that had no time to answer */
        raft->progress[at].active = true;
    }
}

void raft_progress_sync(struct raft *raft)
{
    const struct raft_config *config = &raft->config;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < raft->progress_count; i++) {
        if (!in_config(config, raft->progress[i].node)) continue;
        if (kept != i) raft->progress[kept] = raft->progress[i];
        kept++;
    }
    raft->progress_count = kept;
    add_peers(raft, config->voters, config->voter_count);
    add_peers(raft, config->old_voters, config->old_count);
    add_peers(raft, config->learners, config->learner_count);
    /* votes are by position; nobody counts any while configurations change */
    ASSERT(raft->role == RAFT_FOLLOWER || raft->role == RAFT_LEADER);
    memset(raft->votes_granted, 0, sizeof raft->votes_granted);
}

/* The peer durably has the log up to index, and it is ours. */
static void matched(struct raft *raft, struct raft_progress *peer, uint64_t index)
{
    bool further = index > peer->match;
    if (further) {
        peer->match = index;
        peer->acked_ms = raft->now_ms;
        if (peer->next <= index) peer->next = index + 1;
    }
    switch ((enum raft_progress_state)peer->state) {
    case RAFT_PROBE:
        if (index == peer->match) become_replicate(raft, peer);
        break;
    case RAFT_REPLICATE:
        window_free(peer, peer->match);
        if (peer->next <= raft->last) raft->append_due = true;
        break;
    case RAFT_SNAPSHOT:
        /* whichever way it got there: with first - 1 it has what the log continues */
        if (peer->match + 1 >= raft->first && (peer->match >= peer->snapshot || further)) {
            become_replicate(raft, peer);
        }
        break;
    }
    if (!further) return;
    raft_advance_commit(raft);
    if (raft->role == RAFT_LEADER) raft_transfer_check(raft);
}

static void refused(
    struct raft *raft, struct raft_progress *peer, const struct raft_message *message)
{
    if (peer->state == RAFT_REPLICATE) {
        /* an append got lost on the way to this one; all since the last match is open */
        if (message->index > peer->match) become_probe(raft, peer, peer->match + 1);
        return;
    }
    /* an answer to an earlier probe says nothing about this one */
    if (peer->state != RAFT_PROBE || message->index != peer->next - 1) return;
    uint64_t hint = message->hint < message->index ? message->hint : message->index - 1;
    if (message->log_term > 0) hint = raft_log_agree(raft, hint, message->log_term);
    uint64_t next = (hint > peer->match ? hint : peer->match) + 1;
    bool nearer = next < peer->next;
    become_probe(raft, peer, next);
    /* a peer that lost what it acknowledged must not be asked as fast as it answers */
    peer->probe_sent = !nearer;
}

void raft_on_append_reply(struct raft *raft, const struct raft_message *message)
{
    struct raft_progress *peer = raft_progress_of(raft, message->from);
    if (raft->role != RAFT_LEADER || peer == NULL) return;
    if (message->index > raft->last) return;
    if (!message->reject) {
        matched(raft, peer, message->index);
    } else if (message->index > 0) {
        refused(raft, peer, message);
    }
}

void raft_on_snapshot_reply(struct raft *raft, const struct raft_message *message)
{
    raft_snapshot_end(raft, message->from, !message->reject, message->index);
}

void raft_progress_revive(
    struct raft *raft, struct raft_progress *peer, const struct raft_message *message)
{
    if (peer->match >= raft->last) return;
    if (peer->state == RAFT_PROBE) {
        peer->probe_sent = false;
        raft->append_due = true;
    } else if (peer->state == RAFT_REPLICATE) {
        uint64_t patience_ms = (uint64_t)raft->settings.heartbeat_ms * 2;
        if (peer->next > peer->match + 1 && raft->now_ms > peer->acked_ms + patience_ms) {
            peer->acked_ms = raft->now_ms;
            /* a log that ends with an entry of this term is ours: it is only slow to the disk, or its answers
             * got lost, and what arrived need not be sent again */
            bool ours = message->log_term == raft->term && message->index <= raft->last;
            uint64_t arrived = ours ? message->index : 0;
            become_probe(raft, peer, (arrived > peer->match ? arrived : peer->match) + 1);
        } else {
            raft->append_due = true;
        }
    }
}

void raft_progress_tick(struct raft *raft)
{
    for (uint32_t i = 0; i < raft->progress_count; i++) {
        struct raft_progress *peer = &raft->progress[i];
        if (peer->state != RAFT_SNAPSHOT) continue;
        if (raft->now_ms - peer->heard_ms < RAFT_SNAPSHOT_SILENCE_MS) continue;
        become_probe(raft, peer, peer->match + 1);
    }
}

bool raft_append_next(struct raft *raft, raft_node to, struct raft_append *append_out)
{
    struct raft_progress *peer = raft_progress_of(raft, to);
    if (raft->role != RAFT_LEADER || peer == NULL || peer->state == RAFT_SNAPSHOT) return false;
    if (peer->state == RAFT_PROBE && (peer->probe_sent || peer->match == raft->last)) return false;
    if (peer->state == RAFT_REPLICATE && peer->next > raft->last) return false;
    const struct raft_settings *settings = &raft->settings;
    if (peer->inflight_count >= settings->inflight_messages) return false;
    if (peer->inflight_bytes >= settings->inflight_bytes) return false;
    bool snapshot = peer->next < raft->first;
    if (snapshot && !peer->active) return false; /* nobody is there to take it */
    *append_out = (struct raft_append){
        .to = to,
        .term = raft->term,
        .previous = peer->next - 1,
        .previous_term = raft_term_at(raft, peer->next - 1),
        .commit = raft->commit,
        .first = peer->next,
        .last = raft->last,
        .bytes_max = settings->inflight_bytes - peer->inflight_bytes,
        .snapshot = snapshot,
    };
    return true;
}

void raft_append_sent(struct raft *raft, raft_node to, uint64_t last, uint64_t bytes)
{
    struct raft_progress *peer = raft_progress_of(raft, to);
    ASSERT(raft->role == RAFT_LEADER && peer != NULL);
    ASSERT(last + 1 >= peer->next && last <= raft->last);
    ASSERT(bytes <= UINT32_MAX);
    if (peer->state == RAFT_PROBE) {
        peer->probe_sent = true;
        return;
    }
    ASSERT(peer->state == RAFT_REPLICATE);
    if (last < peer->next) return;
    if (peer->next == peer->match + 1) peer->acked_ms = raft->now_ms;
    window_add(peer, last, (uint32_t)bytes);
    peer->next = last + 1;
}

void raft_snapshot_begin(struct raft *raft, raft_node to, uint64_t index)
{
    struct raft_progress *peer = raft_progress_of(raft, to);
    ASSERT(raft->role == RAFT_LEADER && peer != NULL);
    ASSERT(index <= raft->commit);
    window_clear(peer);
    peer->state = RAFT_SNAPSHOT;
    peer->snapshot = index;
    peer->next = peer->match + 1;
    peer->probe_sent = false;
    peer->heard_ms = raft->now_ms;
}

void raft_snapshot_end(struct raft *raft, raft_node to, bool success, uint64_t index)
{
    struct raft_progress *peer = raft_progress_of(raft, to);
    if (raft->role != RAFT_LEADER || peer == NULL) return;
    if (success && index <= raft->commit) matched(raft, peer, index);
    if (raft->role == RAFT_LEADER && peer->state == RAFT_SNAPSHOT) {
        become_probe(raft, peer, peer->match + 1);
    }
}
