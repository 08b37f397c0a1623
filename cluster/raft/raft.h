#ifndef CLUSTER_RAFT_RAFT_H
#define CLUSTER_RAFT_RAFT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/err.h"

/* One Raft group's protocol core (Ongaro and Ousterhout, 2014; Ongaro's thesis, 2014): a pure step machine. It knows
 * indexes and terms, never the entries' bytes; it has no I/O, no clock, no memory of its own making
 * and no randomness but its seeded generator. The host (cluster/node) keeps the entries, writes the log,
 * sends the messages and applies what is committed.
 *
 * Every call may change what the host has to do next; raft_ready() says it in one struct:
 *   1. if hard_changed: log {term, vote}; entries accepted from a leader (raft_accept in the result
 *      of raft_step) are logged by the host too, in the same order;
 *   2. each message goes out; one with `after_log` only when everything the group had the log written before it
 *      is durable (persist, then send: the host's one gate);
 *   3. entries up to `commit` are applied.
 * The leader's own entries count for a majority only after raft_persisted().
 *
 * Included: pre-vote (thesis 9.6), check-quorum, leadership transfer (3.10), learners (4.2.1), joint
 * consensus (paper, section 6), ReadIndex (6.4) and leases bounded by clock rate drift, pipelined appends
 * with limits in flight (10.2.1), commit by counting entries of the own term only (paper, figure 8). */

/* A node of the cluster; never reused, so it also is the replica's identity in a group. 0: none. */
typedef uint16_t raft_node;

enum {
    RAFT_VOTERS_MAX = 7,
    RAFT_LEARNERS_MAX = 57,
    RAFT_PEERS_MAX = RAFT_VOTERS_MAX * 2 + RAFT_LEARNERS_MAX,
    RAFT_TERM_RUNS = 32, /* older runs are merged into the log's start (see raft.first) */
};

/* Who is in the group. old_count > 0: joint consensus, decisions need both majorities. Sorted, unique; a node is in
 * learners only if it is in neither set of voters. Takes effect when it is appended (thesis 4.1). */
struct raft_config {
    raft_node voters[RAFT_VOTERS_MAX];
    raft_node old_voters[RAFT_VOTERS_MAX];
    raft_node learners[RAFT_LEARNERS_MAX];
    uint8_t voter_count, old_count, learner_count;
};

enum { RAFT_CONFIG_BYTES_MAX = 4 + 2 * RAFT_PEERS_MAX };
/* The payload of a configuration entry. Returns its size. */
size_t raft_config_encode(uint8_t *at, const struct raft_config *config);
/* ERR_CORRUPT if it is not well-formed. */
enum err raft_config_decode(struct bytes bytes, struct raft_config *config_out) MUST_CHECK;
bool raft_config_is_voter(const struct raft_config *config, raft_node node); /* old voters too */
bool raft_config_is_learner(const struct raft_config *config, raft_node node);
bool raft_config_equal(const struct raft_config *a, const struct raft_config *b);
/* True if the nodes for which has() says yes are a majority (of both sets while joint). */
bool raft_config_majority(
    const struct raft_config *config, bool (*has)(void *ctx, raft_node node), void *ctx);

enum raft_message_type {
    RAFT_PREVOTE = 1,
    RAFT_PREVOTE_REPLY,
    RAFT_VOTE,
    RAFT_VOTE_REPLY,
    RAFT_APPEND, /* made with raft_append_next(), never in raft_ready.messages */
    RAFT_APPEND_REPLY,
    RAFT_HEARTBEAT, /* carries commit (never beyond the peer's match) and the read round */
    RAFT_HEARTBEAT_REPLY, /* index, log_term: the last entry, durable or not */
    RAFT_SNAPSHOT_REPLY, /* from the host: a snapshot at `index` is installed; or reject: it failed */
    RAFT_TIMEOUT_NOW, /* transfer: campaign at once, without pre-vote */
    RAFT_READ_INDEX, /* a follower's host asks for a read index (context = its own number) */
    RAFT_READ_INDEX_REPLY,
};

struct raft_message {
    uint8_t type;
    bool reject;
    bool forced; /* VOTE in a transfer: voters with a live leader grant too */
    bool lazy; /* periodic: may wait for the next frame to that peer */
    bool after_log; /* leaves only when what was logged before is durable */
    raft_node from, to;
    uint64_t term;
    uint64_t index; /* APPEND: of the entry before the first; REPLY: match, or on reject the refused one; VOTE: last */
    uint64_t log_term; /* of that entry; in a rejecting APPEND_REPLY: term of the hint */
    uint64_t hint; /* rejecting APPEND_REPLY: highest index that may match */
    uint64_t commit;
    uint64_t round; /* HEARTBEAT and its reply: read round; READ_INDEX: context */
};

enum raft_role { RAFT_FOLLOWER, RAFT_PRECANDIDATE, RAFT_CANDIDATE, RAFT_LEADER };

struct raft_settings {
    uint32_t heartbeat_ms;      /* 100 */
    uint32_t election_ms;       /* 600: minimum; the time-out is random in [election_ms, 2 * election_ms) */
    uint32_t hint_spread_ms;    /* 100: after a lost connection to the leader, a pre-vote starts within this */
    uint32_t inflight_messages; /* 256 per peer */
    uint64_t inflight_bytes;    /* 8 MiB per peer */
    bool leases;                /* answer reads by lease; then a restarted node does not vote for election_ms */
    bool pre_vote;              /* true; false only in tests */
    bool check_quorum;          /* true; false only in tests */
};

enum raft_progress_state { RAFT_PROBE, RAFT_REPLICATE, RAFT_SNAPSHOT };

struct raft_progress {
    raft_node node;
    uint8_t state;
    bool active;      /* heard from within the current check-quorum window */
    bool probe_sent;  /* PROBE: wait for the answer (or the next heartbeat reply) */
    uint64_t match, next;
    uint64_t snapshot; /* SNAPSHOT: index it will have */
    uint64_t round;   /* newest read round confirmed */
    uint64_t heard_ms;
    uint64_t acked_ms; /* match moved, or the window ceased to be empty */
    /* in flight: a window of (last index, bytes) is summed up by these */
    uint32_t inflight_count;
    uint64_t inflight_bytes;
    /* ring; more messages than this merge in the newest */
    struct {
        uint64_t last;
        uint32_t bytes, count;
    } inflight[32];
    uint8_t inflight_first, inflight_used;
};

struct raft_term_run {
    uint64_t index; /* first index of the run */
    uint64_t term;
};

enum { RAFT_MESSAGES_MAX = RAFT_PEERS_MAX * 2 + 8 };

struct raft {
    struct raft_settings settings;
    raft_node self;
    uint64_t random; /* base/prng state of this group */

    /* hard state */
    uint64_t term;
    raft_node vote;

    /* log: entries first..last exist; first - 1 is the snapshot's or the oldest whose term is known */
    uint64_t first, last;
    uint64_t commit;
    uint64_t persisted; /* own entries durable up to here (leader) */
    struct raft_term_run runs[RAFT_TERM_RUNS]; /* runs[0] covers first - 1 */
    uint32_t run_count;

    struct raft_config config; /* in force: the newest appended */
    uint64_t config_index;
    struct raft_config config_before; /* in force before config_index; for a truncation */
    uint64_t config_before_index;

    uint8_t role;
    raft_node leader; /* 0: unknown */
    bool diverged; /* a leader contradicted a committed entry: the host must stop this replica */
    bool faulty; /* its log may lack what it acknowledged: neither votes nor campaigns (raft_set_faulty) */
    bool passive; /* its log is whole, its data is not: votes, but does not campaign (raft_set_passive) */
    uint64_t now_ms;
    uint64_t heard_ms;     /* follower: from the leader */
    uint64_t election_at_ms;
    uint64_t heartbeat_at_ms;
    uint64_t quorum_at_ms; /* leader: end of the check-quorum window */
    uint64_t no_vote_before_ms; /* leases: after a restart */
    uint64_t term_start;   /* leader: index of its first entry (the no-op) */

    uint64_t round;           /* newest read round started */
    uint64_t round_confirmed; /* newest confirmed by a majority */
    uint64_t round_sent_ms[16]; /* of rounds, for the lease: ring by round */
    uint64_t round_eager;     /* newest started for reads; at most one of these is under way */
    uint64_t lease_until_ms;
    uint64_t lease_round;     /* rounds up to this one do not renew the lease */
    bool lease_void;          /* TIMEOUT_NOW left in this term and may still arrive: no lease until the next */
    bool round_wanted;

    raft_node transfer_to; /* 0: none */
    uint64_t transfer_until_ms;
    bool transfer_sent;

    uint8_t votes_granted[RAFT_PEERS_MAX]; /* by position in progress: 0 none, 1 yes, 2 no */
    struct raft_progress progress[RAFT_PEERS_MAX]; /* of all but self, sorted by node */
    uint32_t progress_count;

    /* the result of the calls since raft_ready_clear() */
    bool hard_changed;
    uint64_t noop_index; /* nonzero: elected; the host logs an empty entry with this index and raft->term */
    bool append_due; /* raft_append_next() may have something for somebody */
    bool config_wanted; /* leader: the joint configuration is committed; propose raft_config_leave() */
    struct raft_message messages[RAFT_MESSAGES_MAX];
    uint32_t message_count;
    /* READ_INDEX of followers, waiting for their round */
    struct {
        uint64_t context, index, round;
        raft_node to;
    } reads[64];
    uint32_t read_count;
};

/* What the log and the bottom store gave back at start. */
struct raft_restore {
    uint64_t term;
    raft_node vote;
    uint64_t first;      /* applied index + 1: where the log starts */
    uint64_t first_term; /* term of first - 1 */
    uint64_t commit;     /* known committed, at least first - 1 */
    struct raft_config config; /* as of first - 1 */
    uint64_t config_index;
};

/* Starts as follower with an empty log after first - 1; raft_restore_entry() adds what the log has. */
void raft_init(struct raft *raft, raft_node self, const struct raft_settings *settings,
    const struct raft_restore *restore, uint64_t seed, uint64_t now_ms);
/* Only before the first other call. An index at or below last truncates first. config: of a configuration
 * entry, else NULL. */
void raft_restore_entry(
    struct raft *raft, uint64_t index, uint64_t term, const struct raft_config *config);
/* The known commit index of what was restored (each logged entry carries the one of its time): after each
 * entry, so that the table of term runs can let go of old ones. In the end it must not be beyond `last`: a
 * replica that lost committed entries is damaged, and the host does not start it. */
void raft_restore_commit(struct raft *raft, uint64_t commit);

/* Result of a step with entries. */
struct raft_accept {
    uint64_t first, last; /* entries of the message the host must log and keep; first > last: none */
    bool truncates; /* what the host has from `first` on is void */
};

/* A message came in. For RAFT_APPEND: terms[i] is the term of entry message->index + 1 + i, and
 * configs[i] (configs may be NULL) its configuration if it is such an entry. If the host has no room for the
 * entries it does not step the message at all. */
void raft_step(struct raft *raft, const struct raft_message *message, const uint64_t *terms,
    const struct raft_config *const *configs, uint32_t count, struct raft_accept *accept_out);
/* Time passes; called before raft_step() for what came in meanwhile, so that now_ms is fresh there. The host
 * limits how far one call moves now_ms after it was itself kept waiting, so that a starved process does not depose a
 * healthy leader. */
void raft_tick(struct raft *raft, uint64_t now_ms);
/* The connection to `node`'s process broke: if it leads, a pre-vote starts at once (not with leases). */
void raft_hint_down(struct raft *raft, raft_node node);

/* Leader only: appends one entry to the log view and returns its index. 0: not leader, or a
 * transfer is under way. The host logs and keeps it. */
uint64_t raft_propose(struct raft *raft);
/* The same for a configuration. 0 also if the last change is not committed or no entry of the own term is.
 * The caller gives joint configurations for anything but adding or removing learners or one voter. */
uint64_t raft_propose_config(struct raft *raft, const struct raft_config *config);
/* The configuration that ends a joint one. */
void raft_config_leave(const struct raft_config *joint, struct raft_config *out);
/* Leader: own entries up to (index, term) are durable; ignored if the log there has another term. */
void raft_persisted(struct raft *raft, uint64_t index, uint64_t term);
/* Entries up to `index` (committed and applied) are no longer kept by the host. */
void raft_compact(struct raft *raft, uint64_t index);
/* A snapshot was installed here: the log restarts after (index, term) unless it has that entry. */
void raft_installed(struct raft *raft, uint64_t index, uint64_t term,
    const struct raft_config *config, uint64_t config_index);

/* Leader: what to send next to a peer. False: nothing (caught up, window full, probing, snapshot under
 * way). The host fills entries first..; it calls raft_append_sent() with what it really sent (last ==
 * first - 1: an empty append, for probing). If entry `first` is not kept any more it starts a snapshot:
 * raft_snapshot_begin(). Call again until false. */
struct raft_append {
    raft_node to;
    uint64_t term, previous, previous_term, commit;
    uint64_t first, last; /* last: highest that may be sent */
    uint64_t bytes_max; /* room in the window; one entry may always go */
    bool snapshot; /* the log view does not reach back that far: raft_snapshot_begin() is all that helps */
};
bool raft_append_next(struct raft *raft, raft_node to, struct raft_append *append_out);
void raft_append_sent(struct raft *raft, raft_node to, uint64_t last, uint64_t bytes);
void raft_snapshot_begin(struct raft *raft, raft_node to, uint64_t index);
/* The stream to `to` ended: on success `index` is there, else it is probed again. */
void raft_snapshot_end(struct raft *raft, raft_node to, bool success, uint64_t index);

/* Reads (thesis 6.4). Leader: starts or joins a round; a read evaluated before this call on a state with
 * applied == commit is linearizable once raft->round_confirmed >= the result. 0: cannot (not leader, or no
 * entry of the own term is committed yet). A group of one confirms at once. A read still waiting when role or
 * term changes has failed, whatever round_confirmed becomes later. */
uint64_t raft_read_round(struct raft *raft);
/* A lease is valid now: no round is needed. The host passes a fresh time. */
bool raft_lease_valid(const struct raft *raft, uint64_t now_ms);
/* The host's own thread was late: leases are given up. */
void raft_drop_lease(struct raft *raft);

/* Leader: hands over to `to` (0: the most advanced voter). No proposals are taken until it happened or
 * election_ms passed. False: not leader or nobody suits. */
bool raft_transfer(struct raft *raft, raft_node to);
/* Leader: gives up its role (full disk, stalled log). */
void raft_step_down(struct raft *raft);
/* While on, neither votes nor campaigns: the data behind the log is damaged or being refilled. */
void raft_set_faulty(struct raft *raft, bool faulty);
/* While on, does not campaign: the data behind the log is damaged or being replaced, so as a leader
 * it could serve nobody. */
void raft_set_passive(struct raft *raft, bool passive);

/* Term of an index in first - 1 .. last, else 0. */
uint64_t raft_term_at(const struct raft *raft, uint64_t index);
struct raft_progress *raft_progress_of(struct raft *raft, raft_node node);
/* Leader with a committed entry of its own term. */
bool raft_serving(const struct raft *raft);
/* A majority answered within the last election_ms. */
bool raft_quorum_active(const struct raft *raft);
/* The host took messages and flags. */
void raft_ready_clear(struct raft *raft);

#endif
