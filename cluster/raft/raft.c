#include "cluster/raft/raft_internal.h"

#include <string.h>

#include "base/prng.h"

/* Roles, elections, the dispatch of messages, and what a leader does with time. The log view is in raft_log.c,
 * the peers in raft_progress.c, memberships in raft_config.c, reads and leases in raft_read.c.
 *
 * A vote is asked for twice: first without a new term (pre-vote), so that a node that cannot win does not force
 * the others to a new term. Who hears from a leader answers neither, unless that leader itself handed over. */

enum { VOTE_NONE, VOTE_YES, VOTE_NO };

static uint64_t random_below(struct raft *raft, uint64_t bound)
{
    struct prng prng;
    prng_init(&prng, raft->random);
    raft->random = prng_next(&prng);
    return prng_below(&prng, bound);
}

static void election_timer_reset(struct raft *raft)
{
    uint64_t election_ms = raft->settings.election_ms;
    raft->election_at_ms = raft->now_ms + election_ms + random_below(raft, election_ms);
}

static void check_peer(const struct raft *raft, const struct raft_progress *peer)
{
    ASSERT(peer->node != raft->self);
    ASSERT(peer->match < peer->next);
    ASSERT(peer->next <= raft->last + 1);
    ASSERT_IF(peer->state != RAFT_REPLICATE, peer->inflight_count == 0);
}

void raft_check(const struct raft *raft)
{
    ASSERT(raft->commit <= raft->last);
    ASSERT(raft->commit + 1 >= raft->first);
    ASSERT(raft->persisted <= raft->last);
    ASSERT(raft->run_count > 0 && raft->runs[0].index + 1 == raft->first);
    ASSERT(raft_last_term(raft) <= raft->term);
    ASSERT(raft->config_index <= raft->last);
    ASSERT_IF(raft->role == RAFT_CANDIDATE, raft->vote == raft->self);
    ASSERT((raft->role == RAFT_LEADER) == (raft->leader == raft->self));
    if (raft->role != RAFT_LEADER) return;
    ASSERT(raft_last_term(raft) == raft->term);
    ASSERT(raft->round_confirmed <= raft->round);
    for (uint32_t i = 0; i < raft->progress_count; i++) {
        check_peer(raft, &raft->progress[i]);
    }
}

static bool is_sole_voter(const struct raft *raft)
{
    return raft->config.voter_count == 1 && raft->config.old_count == 0 &&
        raft->config.voters[0] == raft->self;
}

/* A group of one need not wait for anybody: it leads from the first tick on. */
static void first_timer(struct raft *raft)
{
    election_timer_reset(raft);
    if (is_sole_voter(raft)) raft->election_at_ms = raft->now_ms;
}

void raft_init(struct raft *raft, raft_node self, const struct raft_settings *settings,
    const struct raft_restore *restore, uint64_t seed, uint64_t now_ms)
{
    ASSERT(self != 0);
    ASSERT(restore->first > 0 && restore->commit + 1 >= restore->first);
    ASSERT(settings->election_ms > settings->heartbeat_ms && settings->heartbeat_ms > 0);
    memset(raft, 0, sizeof *raft);
    raft->settings = *settings;
    raft->self = self;
    raft->random = seed;
    raft->term = restore->term;
    raft->vote = restore->vote;
    if (restore->first_term > raft->term) {
        raft->term = restore->first_term;
        raft->vote = 0;
    }
    raft->first = restore->first;
    raft->last = restore->first - 1;
    raft->commit = restore->commit;
    raft->persisted = raft->last;
    raft->runs[0] = (struct raft_term_run){.index = raft->last, .term = restore->first_term};
    raft->run_count = 1;
    raft->now_ms = now_ms;
    /* the promise not to vote was volatile; a lease that counts on it may still run (2.8) */
    if (settings->leases) raft->no_vote_before_ms = now_ms + settings->election_ms;
    raft_config_reset(raft, &restore->config, restore->config_index);
    first_timer(raft);
}

void raft_restore_entry(
    struct raft *raft, uint64_t index, uint64_t term, const struct raft_config *config)
{
    if (index < raft->first) return;
    ASSERT(index <= raft->last + 1);
    if (index <= raft->last) raft_log_truncate(raft, index);
    bool room = raft_log_has_room(raft, index, term);
    ASSERT(room);
    raft_log_append(raft, term);
    raft->persisted = raft->last;
    if (config != NULL) raft_config_apply(raft, config, index);
    first_timer(raft);
    /* an entry of a term proves that the term was reached, whatever became of the record that said so */
    if (term > raft->term) {
        raft->term = term;
        raft->vote = 0;
    }
}

void raft_restore_commit(struct raft *raft, uint64_t commit)
{
    if (commit > raft->commit) raft->commit = commit;
}

void raft_ready_clear(struct raft *raft)
{
    raft->hard_changed = false;
    raft->noop_index = 0;
    raft->append_due = false;
    raft->config_wanted = false;
    raft->message_count = 0;
}

struct raft_message *raft_emit(struct raft *raft, enum raft_message_type type, raft_node to)
{
    ASSERT(raft->message_count < RAFT_MESSAGES_MAX);
    ASSERT(to != raft->self);
    struct raft_message *message = &raft->messages[raft->message_count++];
    memset(message, 0, sizeof *message);
    message->type = (uint8_t)type;
    message->from = raft->self;
    message->to = to;
    message->term = raft->term;
    return message;
}

void raft_become_follower(struct raft *raft, uint64_t term, raft_node leader)
{
    ASSERT(term >= raft->term);
    ASSERT(leader != raft->self);
    if (term > raft->term) {
        raft->term = term;
        raft->vote = 0;
        raft->hard_changed = true;
    }
    if (raft->role == RAFT_LEADER) raft_read_stop(raft);
    raft->role = RAFT_FOLLOWER;
    raft->leader = leader;
    raft->transfer_to = 0;
    raft->config_wanted = false;
    election_timer_reset(raft);
}

static void become_leader(struct raft *raft)
{
    ASSERT(raft->role == RAFT_CANDIDATE && raft->vote == raft->self);
    raft->role = RAFT_LEADER;
    raft->leader = raft->self;
    raft->transfer_to = 0;
    raft->lease_void = false;
    raft->round_eager = 0;
    raft->round_wanted = false;
    raft_drop_lease(raft);
    raft->heartbeat_at_ms = raft->now_ms + raft->settings.heartbeat_ms;
    raft->quorum_at_ms = raft->now_ms + raft->settings.election_ms;
    raft_progress_reset(raft);
    /* only an entry of its own term lets a leader commit those before it (Raft, figure 8) */
    raft_log_append(raft, raft->term);
    raft->term_start = raft->last;
    raft->noop_index = raft->last;
    raft->append_due = true;
}

static bool granted(void *ctx, raft_node node)
{
    const struct raft *raft = ctx;
    if (node == raft->self) return true;
    return raft->votes_granted[raft_progress_find(raft, node) - raft->progress] == VOTE_YES;
}

static bool may_grant(void *ctx, raft_node node)
{
    const struct raft *raft = ctx;
    if (node == raft->self) return true;
    return raft->votes_granted[raft_progress_find(raft, node) - raft->progress] != VOTE_NO;
}

static void ask_for_votes(struct raft *raft, enum raft_message_type type, bool forced)
{
    for (uint32_t i = 0; i < raft->progress_count; i++) {
        raft_node node = raft->progress[i].node;
        if (!raft_config_is_voter(&raft->config, node)) continue;
        struct raft_message *ask = raft_emit(raft, type, node);
        if (type == RAFT_PREVOTE) ask->term = raft->term + 1;
        ask->after_log = type == RAFT_VOTE; /* the vote for oneself is one that must not be lost */
        ask->forced = forced;
        ask->index = raft->last;
        ask->log_term = raft_last_term(raft);
    }
}

static void campaign(struct raft *raft, bool forced)
{
    raft->role = RAFT_CANDIDATE;
    raft->leader = 0;
    raft->term++;
    raft->vote = raft->self;
    raft->hard_changed = true;
    memset(raft->votes_granted, VOTE_NONE, sizeof raft->votes_granted);
    election_timer_reset(raft);
    if (raft_config_majority(&raft->config, granted, raft)) {
        become_leader(raft);
    } else {
        ask_for_votes(raft, RAFT_VOTE, forced);
    }
}

static void pre_campaign(struct raft *raft)
{
    raft->role = RAFT_PRECANDIDATE;
    raft->leader = 0;
    memset(raft->votes_granted, VOTE_NONE, sizeof raft->votes_granted);
    election_timer_reset(raft);
    if (!raft->settings.pre_vote || PLANTED_BUG(29) ||
        raft_config_majority(&raft->config, granted, raft)) {
        campaign(raft, false);
    } else {
        ask_for_votes(raft, RAFT_PREVOTE, false);
    }
}

static bool may_campaign(struct raft *raft)
{
    return !raft->faulty && !raft->passive && !raft->diverged &&
        raft_config_is_voter(&raft->config, raft->self) &&
        raft_log_has_room(raft, raft->last + 1, raft->term + 1);
}

/* Somebody leads and was heard lately: votes for others are not considered. */
static bool has_live_leader(const struct raft *raft)
{
    if (!raft->settings.check_quorum) return false;
    if (raft->role == RAFT_LEADER) return true;
    /* a lease counts on the time since the heartbeat, whatever else made us forget who sent it */
    if (raft->leader == 0 && !raft->settings.leases) return false;
    return raft->heard_ms > 0 && raft->now_ms < raft->heard_ms + raft->settings.election_ms;
}

static bool may_vote(const struct raft *raft, const struct raft_message *message)
{
    if (raft->faulty || raft->diverged) return false;
    if (message->forced) return true;
    return !has_live_leader(raft) && raft->now_ms >= raft->no_vote_before_ms;
}

static bool is_up_to_date(const struct raft *raft, const struct raft_message *message)
{
    uint64_t last_term = raft_last_term(raft);
    if (message->log_term != last_term) return message->log_term > last_term;
    return message->index >= raft->last;
}

static void on_prevote(struct raft *raft, const struct raft_message *message)
{
    bool grant = message->term > raft->term && is_up_to_date(raft, message);
    struct raft_message *reply = raft_emit(raft, RAFT_PREVOTE_REPLY, message->from);
    reply->reject = !grant;
    if (grant) reply->term = message->term;
}

static void on_vote(struct raft *raft, const struct raft_message *message)
{
    bool is_free = (raft->vote == 0 && raft->leader == 0) || PLANTED_BUG(30);
    bool grant = (is_free || raft->vote == message->from) && is_up_to_date(raft, message);
    struct raft_message *reply = raft_emit(raft, RAFT_VOTE_REPLY, message->from);
    reply->reject = !grant;
    if (!grant) return;
    reply->after_log = true;
    if (raft->vote != message->from) {
        raft->vote = message->from;
        raft->hard_changed = true;
    }
    election_timer_reset(raft);
}

static void on_vote_reply(struct raft *raft, const struct raft_message *message, bool pre)
{
    if (raft->role != (pre ? RAFT_PRECANDIDATE : RAFT_CANDIDATE)) return;
    if (message->term != raft->term + (pre && !message->reject ? 1 : 0)) return;
    const struct raft_progress *peer = raft_progress_find(raft, message->from);
    if (peer == NULL) return;
    uint8_t *vote = &raft->votes_granted[peer - raft->progress];
    if (*vote == VOTE_NONE) *vote = message->reject ? VOTE_NO : VOTE_YES;
    if (!raft_config_majority(&raft->config, may_grant, raft)) {
        raft_become_follower(raft, raft->term, 0);
        /* A split vote: whoever lost tries again soon, at different times. Only with pre-votes, which
         * keep one that cannot win from disturbing the others. */
        if (!pre && raft->settings.pre_vote && !raft->settings.leases) {
            uint64_t spread_ms = raft->settings.hint_spread_ms;
            uint64_t at_ms = raft->now_ms + spread_ms / 2 + random_below(raft, 2 * spread_ms + 1);
            if (at_ms < raft->election_at_ms) raft->election_at_ms = at_ms;
        }
    } else if (raft_config_majority(&raft->config, granted, raft)) {
        if (pre) {
            campaign(raft, false);
        } else {
            become_leader(raft);
        }
    }
}

static void on_timeout_now(struct raft *raft)
{
    /* without pre-vote: the leader itself wants it, and the others hear from it still */
    if (raft->role == RAFT_FOLLOWER && may_campaign(raft)) campaign(raft, true);
}

/* A leader of the current term spoke. False: impossible, we lead that term. */
static bool hear_leader(struct raft *raft, raft_node from)
{
    if (raft->role == RAFT_LEADER) return false;
    if (raft->role != RAFT_FOLLOWER || raft->leader != from) {
        raft_become_follower(raft, raft->term, from);
    }
    raft->heard_ms = raft->now_ms;
    election_timer_reset(raft);
    return true;
}

static void follow_commit(struct raft *raft, uint64_t commit)
{
    if (commit > raft->last) commit = raft->last;
    if (commit > raft->commit) raft->commit = commit;
}

static bool terms_make_sense(
    const struct raft_message *message, const uint64_t *terms, uint32_t count)
{
    if (message->index > UINT64_MAX - 1 - count) return false;
    uint64_t before = message->log_term;
    for (uint32_t i = 0; i < count; i++) {
        if (terms[i] < before || terms[i] > message->term) return false;
        before = terms[i];
    }
    return true;
}

static void refuse_append(struct raft *raft, const struct raft_message *message)
{
    struct raft_message *reply = raft_emit(raft, RAFT_APPEND_REPLY, message->from);
    uint64_t from = message->index < raft->last ? message->index : raft->last;
    reply->reject = true;
    reply->index = message->index;
    reply->hint = raft_log_agree(raft, from, message->log_term);
    if (reply->hint < raft->commit) reply->hint = raft->commit;
    reply->log_term = raft_term_at(raft, reply->hint);
}

/* Takes the entries that the log does not have yet. Returns the last index that matches now. */
static uint64_t take_entries(struct raft *raft, const struct raft_message *message,
    const uint64_t *terms, const struct raft_config *const *configs, uint32_t count,
    struct raft_accept *accept_out)
{
    uint64_t index = message->index + 1;
    uint32_t i = 0;
    /* what is here already is skipped: an old append must not shorten the log */
    while (i < count && raft_term_at(raft, index + i) == terms[i] && !PLANTED_BUG(31)) {
        i++;
    }
    if (i == count && !PLANTED_BUG(31)) return message->index + count;
    if (i < count && !raft_log_has_room(raft, index + i, terms[i])) return index + i - 1;
    accept_out->first = index + i;
    accept_out->truncates = index + i <= raft->last;
    if (accept_out->truncates) raft_log_truncate(raft, index + i);
    for (; i < count && raft_log_has_room(raft, raft->last + 1, terms[i]); i++) {
        raft_log_append(raft, terms[i]);
        if (configs != NULL && configs[i] != NULL) raft_config_apply(raft, configs[i], raft->last);
    }
    accept_out->last = raft->last;
    return raft->last;
}

/* A leader has every committed entry. One that shows another term for such an entry is proof of damage. */
static bool contradicts_commit(const struct raft *raft, const struct raft_message *message,
    const uint64_t *terms, uint32_t count)
{
    if (message->index > raft->commit) return false;
    uint64_t term = raft_term_at(raft, message->index);
    if (term != 0 && term != message->log_term) return true;
    for (uint32_t i = 0; i < count && message->index + 1 + i <= raft->commit; i++) {
        term = raft_term_at(raft, message->index + 1 + i);
        if (term != 0 && term != terms[i]) return true;
    }
    return false;
}

static void on_append(struct raft *raft, const struct raft_message *message, const uint64_t *terms,
    const struct raft_config *const *configs, uint32_t count, struct raft_accept *accept_out)
{
    if (!terms_make_sense(message, terms, count) || !hear_leader(raft, message->from)) return;
    if (contradicts_commit(raft, message, terms, count)) raft->diverged = true;
    if (raft->diverged) return;
    uint64_t match = raft->commit;
    if (message->index >= raft->commit) {
        if (message->index > raft->last ||
            raft_term_at(raft, message->index) != message->log_term) {
            refuse_append(raft, message);
            return;
        }
        match = take_entries(raft, message, terms, configs, count, accept_out);
        follow_commit(raft, message->commit < match ? message->commit : match);
    }
    struct raft_message *reply = raft_emit(raft, RAFT_APPEND_REPLY, message->from);
    reply->index = match;
    reply->after_log = true;
}

static void on_heartbeat(struct raft *raft, const struct raft_message *message)
{
    if (!hear_leader(raft, message->from)) return;
    follow_commit(raft, message->commit);
    struct raft_message *reply = raft_emit(raft, RAFT_HEARTBEAT_REPLY, message->from);
    reply->round = message->round;
    reply->lazy = message->lazy;
    reply->index = raft->last;
    reply->log_term = raft_last_term(raft);
}

/* The sender is behind: it learns the term, so that a node that is alone with a higher one (it voted in an
 * election that failed) is not left out for ever. */
static void answer_stale(struct raft *raft, const struct raft_message *message)
{
    enum raft_message_type type;
    if (message->type == RAFT_APPEND || message->type == RAFT_HEARTBEAT) {
        type = RAFT_APPEND_REPLY;
    } else if (message->type == RAFT_PREVOTE) {
        type = RAFT_PREVOTE_REPLY;
    } else if (message->type == RAFT_VOTE) {
        type = RAFT_VOTE_REPLY;
    } else {
        return;
    }
    struct raft_message *reply = raft_emit(raft, type, message->from);
    reply->reject = true;
    reply->index = message->index;
}

/* Compares terms. False: the message is dealt with. */
static bool accept_term(struct raft *raft, const struct raft_message *message)
{
    bool asks = message->type == RAFT_PREVOTE || message->type == RAFT_VOTE;
    if (asks && message->term >= raft->term && !may_vote(raft, message)) return false;
    if (message->term == raft->term) return true;
    if (message->term < raft->term) {
        if (message->type == RAFT_READ_INDEX) return true;
        answer_stale(raft, message);
        return false;
    }
    if (message->type == RAFT_PREVOTE) return true;
    if (message->type == RAFT_PREVOTE_REPLY && !message->reject) return true;
    bool leads = message->type == RAFT_APPEND || message->type == RAFT_HEARTBEAT;
    raft_become_follower(raft, message->term, leads ? message->from : 0);
    return true;
}

static void note_heard(struct raft *raft, const struct raft_message *message)
{
    if (raft->role != RAFT_LEADER || message->term != raft->term) return;
    struct raft_progress *peer = raft_progress_of(raft, message->from);
    if (peer == NULL) return;
    peer->active = true;
    peer->heard_ms = raft->now_ms;
}

void raft_step(struct raft *raft, const struct raft_message *message, const uint64_t *terms,
    const struct raft_config *const *configs, uint32_t count, struct raft_accept *accept_out)
{
    *accept_out = (struct raft_accept){.first = 1, .last = 0};
    if (message->from == 0 || message->from == raft->self || message->to != raft->self) return;
    if (!accept_term(raft, message)) return;
    note_heard(raft, message);
    switch ((enum raft_message_type)message->type) {
    case RAFT_PREVOTE:
        on_prevote(raft, message);
        break;
    case RAFT_PREVOTE_REPLY:
        on_vote_reply(raft, message, true);
        break;
    case RAFT_VOTE:
        on_vote(raft, message);
        break;
    case RAFT_VOTE_REPLY:
        on_vote_reply(raft, message, false);
        break;
    case RAFT_APPEND:
        on_append(raft, message, terms, configs, count, accept_out);
        break;
    case RAFT_APPEND_REPLY:
        raft_on_append_reply(raft, message);
        break;
    case RAFT_HEARTBEAT:
        on_heartbeat(raft, message);
        break;
    case RAFT_HEARTBEAT_REPLY:
        raft_on_heartbeat_reply(raft, message);
        break;
    case RAFT_SNAPSHOT_REPLY:
        raft_on_snapshot_reply(raft, message);
        break;
    case RAFT_TIMEOUT_NOW:
        on_timeout_now(raft);
        break;
    case RAFT_READ_INDEX:
        raft_on_read_index(raft, message);
        break;
    case RAFT_READ_INDEX_REPLY:
        break; /* the host's */
    }
    raft_check(raft);
}

static bool is_active(void *ctx, raft_node node)
{
    const struct raft *raft = ctx;
    return node == raft->self || raft_progress_find(raft, node)->active;
}

static bool was_heard(void *ctx, raft_node node)
{
    const struct raft *raft = ctx;
    if (node == raft->self) return true;
    uint64_t heard_ms = raft_progress_find(raft, node)->heard_ms;
    return heard_ms > 0 && raft->now_ms - heard_ms < raft->settings.election_ms;
}

bool raft_quorum_active(const struct raft *raft)
{
    /* the callback only reads */
    return raft->role == RAFT_LEADER &&
        raft_config_majority(&raft->config, was_heard, (void *)raft);
}

/* False: no majority answered for a whole window, and the role is given up. */
static bool check_quorum(struct raft *raft)
{
    if (raft->now_ms < raft->quorum_at_ms) return true;
    raft->quorum_at_ms = raft->now_ms + raft->settings.election_ms;
    if (raft->settings.check_quorum && !raft_config_majority(&raft->config, is_active, raft)) {
        raft_become_follower(raft, raft->term, 0);
        return false;
    }
    for (uint32_t i = 0; i < raft->progress_count; i++) {
        raft->progress[i].active = false;
    }
    return true;
}

static void tick_leader(struct raft *raft)
{
    if (!check_quorum(raft)) return;
    if (raft->transfer_to != 0 && raft->now_ms >= raft->transfer_until_ms) raft->transfer_to = 0;
    raft_progress_tick(raft);
    if (raft->now_ms < raft->heartbeat_at_ms) return;
    raft->heartbeat_at_ms = raft->now_ms + raft->settings.heartbeat_ms;
    raft_round_start(raft, true);
    if (raft->config.old_count > 0 && raft->config_index <= raft->commit && raft_serving(raft)) {
        raft->config_wanted = true; /* again: the host may have been unable to propose */
    }
}

void raft_tick(struct raft *raft, uint64_t now_ms)
{
    ASSERT(now_ms >= raft->now_ms);
    raft->now_ms = now_ms;
    if (raft->role == RAFT_LEADER) {
        tick_leader(raft);
    } else if (now_ms >= raft->election_at_ms) {
        bool may_ask = now_ms >= raft->no_vote_before_ms || is_sole_voter(raft);
        if (may_ask && may_campaign(raft)) {
            pre_campaign(raft);
        } else {
            raft_become_follower(raft, raft->term, 0);
        }
    }
    raft_check(raft);
}

/* The voters that are left start one after the other, so that they do not split the vote; who is
 * first turns with the term. */
static uint64_t hint_delay(struct raft *raft, raft_node gone)
{
    const struct raft_config *config = &raft->config;
    uint64_t rank = 0, count = 0;
    for (uint8_t i = 0; i < config->voter_count; i++) {
        if (config->voters[i] == gone) continue;
        if (config->voters[i] < raft->self) rank++;
        count++;
    }
    if (count > 0) rank = (rank + raft->term) % count;
    uint64_t spread_ms = raft->settings.hint_spread_ms;
    return rank * spread_ms + random_below(raft, spread_ms / 4 + 1);
}

void raft_hint_down(struct raft *raft, raft_node node)
{
    if (raft->role != RAFT_FOLLOWER || raft->leader != node || node == 0) return;
    if (raft->settings.leases) return; /* they rely on the time in which votes are refused */
    raft->leader = 0;
    uint64_t at_ms = raft->now_ms + hint_delay(raft, node);
    if (at_ms < raft->election_at_ms) raft->election_at_ms = at_ms;
}

uint64_t raft_propose(struct raft *raft)
{
    if (raft->role != RAFT_LEADER || raft->transfer_to != 0) return 0;
    raft_log_append(raft, raft->term);
    raft->append_due = true;
    return raft->last;
}

uint64_t raft_propose_config(struct raft *raft, const struct raft_config *config)
{
    if (!raft_serving(raft) || raft->transfer_to != 0) return 0;
    /* Ongaro, 2015: without a committed entry of the own term two majorities that do not meet
     * can each commit a change of one server */
    if (raft->config_index > raft->commit) return 0;
    ASSERT(raft_config_valid(config));
    ASSERT(raft_config_may_follow(&raft->config, config));
    raft_log_append(raft, raft->term);
    raft_config_apply(raft, config, raft->last);
    /* what voters of the old configuration promised says nothing about the new one's */
    raft_drop_lease(raft);
    raft->append_due = true;
    raft_check(raft);
    return raft->last;
}

static uint64_t match_of(const struct raft *raft, raft_node node)
{
    if (node == raft->self) return raft->persisted;
    return raft_progress_find(raft, node)->match;
}

/* The voter that has most; 0 if there is none but us. */
static raft_node most_advanced(const struct raft *raft)
{
    raft_node best = 0;
    uint64_t match = 0;
    for (uint32_t i = 0; i < raft->config.voter_count; i++) {
        raft_node node = raft->config.voters[i];
        if (node == raft->self) continue;
        const struct raft_progress *peer = raft_progress_find(raft, node);
        if (!peer->active && !was_heard((void *)raft, node)) continue;
        if (best != 0 && peer->match <= match) continue;
        best = node;
        match = peer->match;
    }
    return best;
}

static void config_committed(struct raft *raft)
{
    if (raft->config.old_count > 0) {
        raft->config_wanted = true;
    } else if (!raft_config_is_voter(&raft->config, raft->self)) {
        /* its last act: somebody who is in the group need not wait for a time-out */
        raft_node heir = most_advanced(raft);
        if (heir != 0) (void)raft_emit(raft, RAFT_TIMEOUT_NOW, heir);
        raft_become_follower(raft, raft->term, 0);
    }
}

void raft_advance_commit(struct raft *raft)
{
    ASSERT(raft->role == RAFT_LEADER);
    uint64_t index = raft_config_reached(&raft->config, match_of, raft);
    ASSERT(index <= raft->last);
    if (index <= raft->commit) return;
    /* Raft, 5.4.2: only entries of the own term commit by counting */
    if (index < raft->term_start && !PLANTED_BUG(28)) return;
    uint64_t before = raft->commit;
    raft->commit = index;
    if (raft->config_index > before && raft->config_index <= index) config_committed(raft);
}

void raft_persisted(struct raft *raft, uint64_t index, uint64_t term)
{
    if (raft->role != RAFT_LEADER || index > raft->last || index <= raft->persisted) return;
    /* Only writes of this term count: an older one may be of an entry that was replaced meanwhile, even by one of
     * the same term as before, while the record that replaced it is still on its way to the disk. */
    if ((term != raft->term || index < raft->term_start) && !PLANTED_BUG(37)) return;
    raft->persisted = index;
    raft_advance_commit(raft);
    raft_check(raft);
}

void raft_transfer_check(struct raft *raft)
{
    if (raft->transfer_to == 0 || raft->transfer_sent) return;
    const struct raft_progress *peer = raft_progress_find(raft, raft->transfer_to);
    ASSERT(peer != NULL); /* configurations do not change while a transfer is under way */
    if (peer->match < raft->last) return;
    (void)raft_emit(raft, RAFT_TIMEOUT_NOW, peer->node);
    raft->transfer_sent = true;
    /* it may arrive long after the transfer was given up */
    raft->lease_void = true;
}

bool raft_transfer(struct raft *raft, raft_node to)
{
    if (raft->role != RAFT_LEADER || raft->transfer_to != 0) return false;
    if (to == 0) to = most_advanced(raft);
    if (to == 0 || to == raft->self) return false;
    const struct raft_config *config = &raft->config;
    bool voter = false;
    for (uint32_t i = 0; i < config->voter_count; i++) {
        voter |= config->voters[i] == to;
    }
    if (!voter) return false;
    raft_drop_lease(raft);
    raft->transfer_to = to;
    raft->transfer_until_ms = raft->now_ms + raft->settings.election_ms;
    raft->transfer_sent = false;
    raft->append_due = true;
    raft_transfer_check(raft);
    raft_check(raft);
    return true;
}

void raft_step_down(struct raft *raft)
{
    if (raft->role != RAFT_LEADER) return;
    raft_become_follower(raft, raft->term, 0);
    /* the others come first */
    raft->election_at_ms += raft->settings.election_ms;
    raft_check(raft);
}

void raft_set_faulty(struct raft *raft, bool faulty)
{
    raft->faulty = faulty;
    if (faulty && raft->role != RAFT_FOLLOWER) raft_become_follower(raft, raft->term, 0);
}

void raft_set_passive(struct raft *raft, bool passive)
{
    raft->passive = passive;
    if (passive && raft->role != RAFT_FOLLOWER) raft_become_follower(raft, raft->term, 0);
}

bool raft_serving(const struct raft *raft)
{
    return raft->role == RAFT_LEADER && raft->commit >= raft->term_start;
}
