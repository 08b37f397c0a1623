#ifndef CLUSTER_NODE_NODE_H
#define CLUSTER_NODE_NODE_H

#include "base/buffer.h"
#include "base/io.h"
#include "storage/engine.h"

/* The driver of a node: propose -> log -> replicate -> commit -> apply, written once. Every range is a Raft group
 * (cluster/raft); range 0 is the meta group, whose data is the table of members and buckets. A cluster of one is the
 * same path with a majority of one.
 *
 * A command is evaluated by the leader of its range when it arrives, over the pending view: committed state plus the
 * effects of entries that are proposed but not yet committed. Its effects go into one entry. Its reply is
 * written at once but held back until a ticket is done: the entry, and every entry it may have read from, is
 * committed; a reply that wrote nothing waits until a majority has confirmed that this node still led when it was
 * evaluated (thesis 6.4), so it is never stale.
 *
 * Any node takes any request: node_request_start() finds the leader, waits for one to be elected, and gives the
 * reply, or says that the outcome is not known, or that the request certainly was not applied, within the deadline.
 *
 * All calls belong to the node's one thread. */

struct node;
struct join_peer; /* cluster/node/join.h */

/* Something a reply waits for; 0: nothing. Ever growing. */
typedef uint64_t ticket_t;

enum ticket_state {
    TICKET_DONE,
    TICKET_WAITING,
    TICKET_UNKNOWN, /* it may or may not be committed: leadership was lost, or the deadline passed */
    TICKET_REFUSED, /* certainly nothing was changed: a read that could not be confirmed */
};

enum { NODE_TEXT_MAX = 80, NODE_MEMBERS_MAX = 64, NODE_DEADLINE_MS = 2000 };

/* A request that is evaluated here for some node (perhaps this one). */
struct node_execution {
    uint16_t range;
    struct bytes body; /* what node_request_start() got */
    struct buffer *reply; /* to be filled */
    ticket_t ticket; /* to be set: what the reply waits for */
};

struct node_config {
    const struct io *io;
    const struct kv_ops *kv;
    const char *kv_folder;
    const char *name; /* NULL: made up at creation */
    uint8_t cluster_id[16];
    uint8_t store_id[16]; /* of this node alone: what its log and store carry */
    uint16_t number; /* of this node in the cluster, never reused; 1 for who starts one */
    uint64_t incarnation; /* starts of this folder, this one included */
    const char *peer, *resp, *http,
        *zone; /* addresses as others reach them; may be NULL when alone */
    uint32_t replicas; /* wanted per range; 3 */
    uint32_t ranges;
    size_t memory;
    uint64_t log_bytes_max;
    uint64_t slot_size;
    uint64_t map_size;
    uint32_t chunk_puts;
    lsn_t accept_loss;
    bool create; /* a new folder */
    bool
        joined; /* with create: member of a cluster that exists (join.h), not the start of a new one */
    bool background;
    bool scrub;
    bool leases; /* answer reads by lease */
    /* Where others were when last heard of, until the member table says; may be NULL. */
    const struct join_peer *peers;
    uint32_t peer_count;
    uint32_t deadline_ms; /* 0: NODE_DEADLINE_MS */
    void *ctx;
    /* Some ticket is not WAITING any more. From node_poll(), node_flush() and node_tick(). */
    void (*on_tickets)(void *ctx);
    /* Evaluates a request that came by node_request_start(), here or elsewhere; this node leads its
     * range. False: no room now; it is asked again later. */
    bool (*execute)(void *ctx, struct node_execution *execution);
    /* From any thread: node_poll() has something to do. */
    void (*wake)(void *ctx);
};

/* ERR_CORRUPT with a report: damaged; a member of a larger cluster may be rebuilt by its peers (node_damage()). */
enum err node_open(const struct node_config *config, struct engine_report *report,
    struct node **node_out) MUST_CHECK;
/* With `checkpoint` everything is in the bottom store afterwards: the next start replays nothing. */
void node_close(struct node *node, bool checkpoint);

/* Milliseconds since 1970 as this node sees it: never goes back, fixed within a loop turn. */
int64_t node_now_ms(const struct node *node);
/* Takes the time anew; once at the start of a loop turn. */
void node_turn_begin(struct node *node);
/* Sends off what was proposed in this turn, to the log and to the peers; lets go of the read snapshot. */
void node_turn_end(struct node *node, bool alone);
/* Takes in what log, checkpoint and network have. */
enum err node_poll(struct node *node) MUST_CHECK;
/* Periodic, every 10 to 20 ms: elections, heartbeats, expiry, deadlines, membership. */
void node_tick(struct node *node);
/* Once nothing is under way, the log notes that what was acknowledged is durable, so
 * that damage to the very last batch cannot pass for an unfinished write. */
void node_idle(struct node *node);

/* ---- who serves what ---- */

/* The cluster has one member, this one: commands may touch several ranges at once. */
bool node_alone(const struct node *node);
/* This node leads the range and may evaluate requests for it now. */
bool node_serves(const struct node *node, uint16_t range);
/* This node has the range's data, maybe behind: for reads that may be stale. */
bool node_has(const struct node *node, uint16_t range);
uint16_t node_range_of(const struct node *node, struct bytes key);

enum ticket_state node_ticket(const struct node *node, ticket_t ticket);
/* What a reply waits for that wrote nothing: that this node led the range at this moment and, with NODE_PENDING,
 * that what is proposed now is committed. 0: nothing (group of one, valid lease). */
enum node_view { NODE_COMMITTED, NODE_PENDING };
ticket_t node_read_ticket(struct node *node, uint16_t range, enum node_view view);
/* The same for a command over several or all ranges, only while node_alone(). */
ticket_t node_pending_ticket(struct node *node);

/* ---- requests for any node's ranges ---- */

enum node_outcome {
    NODE_REPLIED,
    NODE_UNKNOWN, /* it may or may not have been applied */
    NODE_UNAVAILABLE, /* certainly not applied: no leader could be reached within the deadline */
};

/* Embedded by its owner, who leaves it alone until done() ran or it is cancelled. */
struct node_request {
    void (*done)(struct node_request *request, enum node_outcome outcome, struct bytes reply);
    void *ctx;
    bool read_only; /* set by the owner: it may be evaluated twice */
    bool admin; /* the node's own kind */
    /* the node's */
    struct node_request *next, **at;
    uint64_t id;
    uint64_t deadline_ns;
    uint64_t passed_ns; /* another leader than the one asked is known, since */
    uint16_t range, sent_to;
    uint8_t state;
    struct buffer body;
};
/* Copies `body` (at most NODE_REQUEST_MAX bytes). done() comes later, never from within, in order for requests of the
 * same range that were started in order and meet no election. ERR_TOO_LARGE, ERR_NOMEM. */
enum { NODE_REQUEST_MAX = 40 << 20 };
enum err node_request_start(
    struct node *node, struct node_request *request, uint16_t range, struct bytes body) MUST_CHECK;
void node_request_cancel(struct node *node, struct node_request *request);

/* ---- the cluster as this node knows it ---- */

enum node_state { NODE_STATE_ALIVE, NODE_STATE_SUSPECT, NODE_STATE_DEAD, NODE_STATE_LEFT };
struct node_member {
    uint16_t number;
    enum node_state state;
    char name[64];
    char peer[NODE_TEXT_MAX], resp[NODE_TEXT_MAX], http[NODE_TEXT_MAX], zone[64];
};
/* Returns how many there are; fills at most `max`. */
uint32_t node_members(const struct node *node, struct node_member *out, uint32_t max);
const char *node_member_name(const struct node *node, uint16_t number); /* NULL: unknown */

struct node_replica {
    uint16_t number;
    bool voter;
    bool local;
    bool faulty; /* known to be under repair */
    uint64_t match;
};
struct node_range {
    uint16_t id;
    uint16_t leader; /* 0: none known */
    uint64_t term, applied, committed;
    struct node_replica replicas[16];
    uint32_t replica_count;
    double catching_up; /* 0..1: progress of a snapshot coming in here; 1: none */
};
void node_range_status(const struct node *node, uint16_t range, struct node_range *out);
/* Who leads the range as far as this node knows: if its own replica was left out, whoever reports to
 * lead. 0: nobody known. */
uint16_t node_range_leader(const struct node *node, uint16_t range);

struct node_cluster_stats {
    uint64_t elections, leader_changes, snapshots_sent, snapshots_received, snapshot_bytes;
    uint64_t frames_sent, frames_received, frames_dropped, forwarded, executed, unknown;
    uint64_t divergences, repairs, config_changes, log_catch_ups;
    uint32_t led; /* ranges led here */
};
void node_cluster_stats(const struct node *node, struct node_cluster_stats *out);

/* ---- operator's changes: any node takes them; reply is one sentence, ok says which kind ---- */

enum node_admin { NODE_MEMBER_REMOVE, NODE_MEMBER_REPLACE, NODE_LEADER_TRANSFER };
/* name: of a member. LEADER_TRANSFER: all ranges move to it (range 0xffff) or one range. done()
 * gets a reply whose first byte is '+' (done) or '-' (refused, the rest says why). */
enum err node_admin_start(struct node *node, struct node_request *request, enum node_admin what,
    const char *name, uint16_t range) MUST_CHECK;

/* Planned stop: hands every led range over and lets what is under way finish; call until it says
 * true (done or nothing to hand over) or patience ends. */
bool node_hand_over(struct node *node);

/* Buckets. 0..15 exist always (Redis databases); others are named, ids from 16, made on demand. */
enum { NODE_BUCKETS_NUMBERED = 16, NODE_BUCKETS_MAX = 1024, NODE_BUCKET_NAME_MAX = 64 };
/* ERR_NOT_FOUND, ERR_INVALID (not a legal name: a letter, then letters, digits, '_', '.', '-'). */
enum err node_bucket_find(struct node *node, struct bytes name, uint16_t *bucket_out) MUST_CHECK;
/* Within a txn: finds or creates. ERR_FULL at NODE_BUCKETS_MAX. */
enum err node_bucket_make(struct node *node, struct bytes name, uint16_t *bucket_out) MUST_CHECK;
/* Name of a bucket, "3" for numbered ones; NULL if there is none. */
const char *node_bucket_name(const struct node *node, uint16_t bucket);
/* Highest bucket id + 1. */
uint32_t node_bucket_count(const struct node *node);

/* ERR_NOT_FOUND if absent or expired at node_now_ms(); ERR_CORRUPT if its stored bytes are damaged;
 * ERR_TOO_LARGE for a key over KEY_SIZE_MAX (no such key can exist: callers check first). The value
 * borrows until the turn ends (txn calls do not disturb it). */
enum err node_get(struct node *node, enum node_view view, uint16_t bucket, struct bytes key,
    struct value *value_out) MUST_CHECK;

/* One transaction at a time; its effects are visible to NODE_PENDING reads at once and become one log
 * record at commit. Callers ask node_admit() first, so that nothing here can fail half way. */
/* OK, ERR_FULL, ERR_TOO_LARGE, ERR_POISONED, or ERR_AGAIN: keep the command and try again after the
 * next wake or tick. `size`: about what keys and values of the command add up to. */
enum err node_admit(struct node *node, size_t size) MUST_CHECK;
void node_txn_begin(struct node *node);
/* Returns where to write value_size bytes before anything else is called; NULL: this transaction
 * would become too large or there is no memory, and nothing was changed by this call. */
uint8_t *node_put(
    struct node *node, uint16_t bucket, struct bytes key, size_t value_size, int64_t expires_ms);
/* The same into a range that is not the key's own: for records that belong to other keys. */
uint8_t *node_put_in(struct node *node, uint16_t range, uint16_t bucket, struct bytes key,
    size_t value_size, int64_t expires_ms);
/* Reads such a record. */
enum err node_get_in(struct node *node, enum node_view view, uint16_t range, uint16_t bucket,
    struct bytes key, struct value *value_out) MUST_CHECK;
/* Deleting what is absent is allowed (and logged): look first. False: as NULL above. */
bool node_delete(struct node *node, uint16_t bucket, struct bytes key);
/* Removes all keys of a bucket in one range; range 0xffff: in all, only while node_alone(). */
bool node_clear(struct node *node, uint16_t bucket, uint16_t range);
/* Proposes the effects; 0 if there were none. They must be of one range that this node serves, or node_alone(). */
ticket_t node_txn_commit(struct node *node);
/* Drops the effects since begin. */
void node_txn_abort(struct node *node);

/* Walks the keys of a bucket in (range, key) order; absent and expired keys are left out. With
 * several nodes each range is walked where it is led (only_range). */
struct node_position {
    uint16_t only_range; /* 0: all ranges of this node */
    uint16_t range; /* 0: from the start */
    uint16_t key_size;
    uint8_t key[KEY_SIZE_MAX]; /* the walk goes on after this key */
};
/* Visits up to `limit` entries from *position, which is advanced; *done_out at the end. each() may return
 * false to stop after this entry. With NODE_PENDING, keys that are only pending come with the last page. */
enum err node_walk(struct node *node, enum node_view view, uint16_t bucket,
    struct node_position *position, uint64_t limit, bool *done_out,
    bool (*each)(void *ctx, struct bytes key, const struct value *value), void *ctx) MUST_CHECK;
/* In key order over all ranges of this node (only_range != 0: over one), committed view: keys that
 * have `prefix` and are > `after`. */
enum err node_page(struct node *node, uint16_t only_range, uint16_t bucket, struct bytes prefix,
    struct bytes after, uint64_t limit, bool *more_out,
    bool (*each)(void *ctx, struct bytes key, const struct value *value), void *ctx) MUST_CHECK;
/* Keys of a bucket, expired ones not yet removed included; only_range as above. */
uint64_t node_count(struct node *node, enum node_view view, uint16_t only_range, uint16_t bucket);

struct engine *node_engine(struct node *node);
const char *node_name(const struct node *node);
/* 32 hex digits. */
const char *node_cluster_id(const struct node *node);
uint32_t node_ranges(const struct node *node);
/* Keys removed because they had expired. */
uint64_t node_expired_count(const struct node *node);

#endif
