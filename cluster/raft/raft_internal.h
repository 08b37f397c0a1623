#ifndef CLUSTER_RAFT_RAFT_INTERNAL_H
#define CLUSTER_RAFT_RAFT_INTERNAL_H

#include "base/check.h"
#include "cluster/raft/raft.h"

/* What the sources of the Raft core share. raft.c has roles, elections and the dispatch of messages. */

enum { RAFT_SNAPSHOT_SILENCE_MS = 10000 }; /* SNAPSHOT state of a silent peer ends */

/* raft.c */
/* A new message in the result, of the current term; the caller fills the rest. */
struct raft_message *raft_emit(struct raft *raft, enum raft_message_type type, raft_node to);
void raft_become_follower(struct raft *raft, uint64_t term, raft_node leader);
/* Counts what is durable on a majority and moves commit. */
void raft_advance_commit(struct raft *raft);
/* Sends TIMEOUT_NOW once the target of a transfer has everything. */
void raft_transfer_check(struct raft *raft);
/* Asserts what must hold between two calls. */
void raft_check(const struct raft *raft);

/* raft_log.c */
uint64_t raft_last_term(const struct raft *raft);
/* Room for an entry of this term at `index`, what is there being truncated? Gives up the oldest run if that is
 * committed and makes some. */
bool raft_log_has_room(struct raft *raft, uint64_t index, uint64_t term);
/* Appends the entry last + 1. */
void raft_log_append(struct raft *raft, uint64_t term);
/* Forgets the entries from index on; rolls the configuration back if it was among them. */
void raft_log_truncate(struct raft *raft, uint64_t index);
/* The highest index <= index whose term is <= term: where two logs may still agree. */
uint64_t raft_log_agree(const struct raft *raft, uint64_t index, uint64_t term);

/* raft_config.c */
bool raft_config_valid(const struct raft_config *config);
/* True if `to` may follow `from` directly: each decision of one overlaps each of the other. */
bool raft_config_may_follow(const struct raft_config *from, const struct raft_config *to);
/* The configuration of entry `index` takes effect. */
void raft_config_apply(struct raft *raft, const struct raft_config *config, uint64_t index);
/* Back to the one before it. */
void raft_config_roll_back(struct raft *raft);
/* Replaces the whole history. */
void raft_config_reset(struct raft *raft, const struct raft_config *config, uint64_t index);
/* The highest value that a majority (of both sets while joint) reaches. */
uint64_t raft_config_reached(const struct raft_config *config,
    uint64_t (*value_of)(const struct raft *raft, raft_node node), const struct raft *raft);

/* raft_progress.c */
const struct raft_progress *raft_progress_find(const struct raft *raft, raft_node node);
/* The table has exactly the other nodes of the configuration. */
void raft_progress_sync(struct raft *raft);
/* Start of a leader's term: all peers are probed from last + 1. */
void raft_progress_reset(struct raft *raft);
void raft_on_append_reply(struct raft *raft, const struct raft_message *message);
void raft_on_snapshot_reply(struct raft *raft, const struct raft_message *message);
/* An answer to a heartbeat: revives a probe, detects lost appends. */
void raft_progress_revive(
    struct raft *raft, struct raft_progress *peer, const struct raft_message *message);
/* Ends the SNAPSHOT state of peers that have long been silent. */
void raft_progress_tick(struct raft *raft);

/* raft_read.c */
/* Starts a round: heartbeats to all peers, or to voters only when reads wait for it. */
void raft_round_start(struct raft *raft, bool lazy);
void raft_on_heartbeat_reply(struct raft *raft, const struct raft_message *message);
void raft_on_read_index(struct raft *raft, const struct raft_message *message);
/* The leader's role ended: reads are refused, the lease is void. */
void raft_read_stop(struct raft *raft);

#endif
