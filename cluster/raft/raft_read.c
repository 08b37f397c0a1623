#include "cluster/raft/raft_internal.h"

/* Reads that see everything acknowledged before they came (thesis 6.4). A round is one heartbeat to
 * every voter with the round's number; when a majority has answered it, nobody else led when it was sent.
 * Reads that come while a round for reads is under way share the next one.
 *
 * The lease counts from the moment a round was sent, not from its answers: a voter that answers refuses to vote
 * for election_ms after it received the heartbeat, which is later. A tenth of that time is left for clocks that
 * do not run at the same rate. */

enum { ROUNDS_REMEMBERED = sizeof((struct raft *)0)->round_sent_ms / sizeof(uint64_t) };

static uint64_t round_of(const struct raft *raft, raft_node node)
{
    if (node == raft->self) return raft->round;
    return raft_progress_find(raft, node)->round;
}

static void renew_lease(struct raft *raft, uint64_t round)
{
    if (!raft->settings.leases || raft->lease_void || raft->transfer_to != 0) return;
    if (round <= raft->lease_round || raft->round - round >= ROUNDS_REMEMBERED) return;
    uint64_t until = raft->round_sent_ms[round % ROUNDS_REMEMBERED] +
        (uint64_t)raft->settings.election_ms * 9 / 10;
    if (until > raft->lease_until_ms) raft->lease_until_ms = until;
}

static void answer_read(
    struct raft *raft, raft_node to, uint64_t context, uint64_t index, bool reject)
{
    struct raft_message *reply = raft_emit(raft, RAFT_READ_INDEX_REPLY, to);
    reply->round = context;
    reply->index = index;
    reply->reject = reject;
}

static void answer_reads(struct raft *raft)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < raft->read_count; i++) {
        if (raft->reads[i].round <= raft->round_confirmed) {
            answer_read(
                raft, raft->reads[i].to, raft->reads[i].context, raft->reads[i].index, false);
        } else {
            raft->reads[kept++] = raft->reads[i];
        }
    }
    raft->read_count = kept;
}

/* True if a further round was confirmed. */
static bool confirm(struct raft *raft)
{
    uint64_t round = raft_config_reached(&raft->config, round_of, raft);
    ASSERT(round <= raft->round);
    if (round <= raft->round_confirmed) return false;
    raft->round_confirmed = round;
    renew_lease(raft, round);
    answer_reads(raft);
    return true;
}

void raft_round_start(struct raft *raft, bool lazy)
{
    ASSERT(raft->role == RAFT_LEADER);
    raft->round++;
    raft->round_sent_ms[raft->round % ROUNDS_REMEMBERED] = raft->now_ms;
    if (!lazy || raft->round_wanted) raft->round_eager = raft->round;
    for (uint32_t i = 0; i < raft->progress_count; i++) {
        const struct raft_progress *peer = &raft->progress[i];
        if (!lazy && !raft_config_is_voter(&raft->config, peer->node)) continue;
        struct raft_message *beat = raft_emit(raft, RAFT_HEARTBEAT, peer->node);
        beat->round = raft->round;
        beat->lazy = lazy && !raft->round_wanted;
        /* never beyond what is known to match: the rest of that log may be another leader's */
        beat->commit = raft->commit < peer->match ? raft->commit : peer->match;
        if (PLANTED_BUG(32)) beat->commit = raft->commit;
    }
    raft->round_wanted = false;
    (void)confirm(raft); /* a group of one needs nobody */
}

void raft_on_heartbeat_reply(struct raft *raft, const struct raft_message *message)
{
    struct raft_progress *peer = raft_progress_of(raft, message->from);
    if (raft->role != RAFT_LEADER || peer == NULL || message->round > raft->round) return;
    if (message->round > peer->round) peer->round = message->round;
    raft_progress_revive(raft, peer, message);
    if (confirm(raft) && raft->round_wanted && raft->round_confirmed >= raft->round_eager) {
        raft_round_start(raft, false);
    }
}

uint64_t raft_read_round(struct raft *raft)
{
    if (raft->role != RAFT_LEADER) return 0;
    if (!raft_serving(raft) && !PLANTED_BUG(36)) return 0;
    if (PLANTED_BUG(35)) return raft->round_confirmed = ++raft->round;
    if (raft->round_eager > raft->round_confirmed) {
        raft->round_wanted = true;
        return raft->round + 1;
    }
    raft_round_start(raft, false);
    raft_check(raft);
    return raft->round;
}

void raft_on_read_index(struct raft *raft, const struct raft_message *message)
{
    uint64_t round = 0;
    if (raft->read_count < sizeof raft->reads / sizeof *raft->reads) round = raft_read_round(raft);
    if (round == 0 || round <= raft->round_confirmed) {
        answer_read(raft, message->from, message->round, raft->commit, round == 0);
        return;
    }
    raft->reads[raft->read_count].context = message->round;
    raft->reads[raft->read_count].index = raft->commit;
    raft->reads[raft->read_count].round = round;
    raft->reads[raft->read_count].to = message->from;
    raft->read_count++;
}

void raft_read_stop(struct raft *raft)
{
    for (uint32_t i = 0; i < raft->read_count; i++) {
        answer_read(raft, raft->reads[i].to, raft->reads[i].context, 0, true);
    }
    raft->read_count = 0;
    raft->round_wanted = false;
    raft->round_eager = 0;
    raft_drop_lease(raft);
}

bool raft_lease_valid(const struct raft *raft, uint64_t now_ms)
{
    return raft->settings.leases && raft_serving(raft) && now_ms < raft->lease_until_ms;
}

void raft_drop_lease(struct raft *raft)
{
    raft->lease_until_ms = 0;
    raft->lease_round = raft->round;
}
