#ifndef CLUSTER_NODE_NODE_INTERNAL_H
#define CLUSTER_NODE_NODE_INTERNAL_H

#include "base/check.h"
#include "base/logger.h"
#include "cluster/map/members.h"
#include "cluster/map/place.h"
#include "cluster/message.h"
#include "cluster/node/entries.h"
#include "cluster/node/node.h"
#include "cluster/node/pending.h"
#include "cluster/node/records.h"
#include "cluster/raft/raft.h"
#include "cluster/swim/swim.h"

/* What the files of the driver share; nobody else includes this. */

enum {
    META_RANGE = 0,
    META_BUCKET = 0, /* names of buckets */
    MEMBER_BUCKET = 1, /* the member table */
    ALL_RANGES = 0xffff,
    HASHES_KEPT = 64, /* rolling hashes of recent indexes, to compare with other replicas */
    HASH_EVERY = 16,
};

/* What goes over the wire, message.type. */
enum wire_type {
    WIRE_RAFT = 1, /* a raft message without entries */
    WIRE_APPEND,
    WIRE_PART, /* of a message larger than a frame */
    WIRE_REQUEST,
    WIRE_REPLY,
    WIRE_SWIM,
    WIRE_JOIN,
    WIRE_JOIN_REPLY,
    WIRE_ANNOUNCE, /* a restarted member says where it is now */
    WIRE_REPORT, /* a leader tells everybody about its range */
    WIRE_HASH, /* a replica's rolling hash at an index */
    WIRE_REFETCH, /* leader to replica: your data is not what the others have */
    WIRE_SNAPSHOT_WANTED, /* replica to leader */
    WIRE_SNAPSHOT_BEGIN,
    WIRE_SNAPSHOT_CHUNK,
    WIRE_SNAPSHOT_ACK,
    WIRE_SNAPSHOT_END,
    WIRE_SNAPSHOT_DONE,
    WIRE_ADDRESS, /* a leader says where it is: the other's table may be too old to know */
};

struct ticket_slot {
    uint64_t started_ns;
    uint8_t state;
    uint16_t remaining; /* parts that are still waited for */
};

/* A ticket's part in one group: done when `index` is applied (and, for a read, the round is confirmed). */
struct waiting {
    ticket_t ticket;
    uint64_t index;
    uint64_t round; /* 0: a write */
};

struct waiting_queue {
    struct waiting *at;
    size_t first, count, capacity;
};

struct index_hash {
    uint64_t index, hash;
};

struct incoming; /* a snapshot coming in: catchup.c */

struct group {
    struct node *node;
    uint16_t id;
    bool dirty; /* in node->dirty: look for appends at the end of the turn */
    bool leading; /* as of the last group_ready() */
    uint64_t leading_term;
    bool quarantined; /* data is not to be trusted: wants a snapshot */
    bool holding; /* nothing is applied: a snapshot is about to be installed */
    bool damaged; /* its data is to be fetched anew */
    bool repair_asked;
    bool forgetful; /* what it had acknowledged is not all in its log: no vote before settled is applied */
    uint64_t holding_ns;
    struct raft raft;
    struct entries entries;
    struct pending pending;
    uint64_t applied, applied_term;
    uint64_t hash;
    uint64_t settled; /* the data is whole once this is applied */
    lsn_t log_lsn; /* of the newest record of this group */
    struct raft_config applied_config; /* as of applied */
    uint64_t applied_config_index;
    struct waiting_queue writes, reads;
    ticket_t turn_read; /* read ticket of this turn, 0: none */
    uint64_t turn_read_index;
    ticket_t last_write;
    struct incoming *incoming;
    struct index_hash hashes[HASHES_KEPT];
    uint32_t hash_at;
    /* leader: what the replicas say about hash_index */
    uint64_t hash_index;
    uint64_t peer_hash[RAFT_PEERS_MAX];
    uint64_t reconcile_ns;
    uint64_t stale_ns; /* this node is in no configuration that a leader reports, since */
    uint64_t transfer_ns;
    uint64_t
        appended_ns; /* leader: when the oldest not yet durable own entry was logged; 0: none */
};

/* What the leader of a range last said about it. */
struct range_report {
    uint64_t term, applied, committed, heard_ns;
    uint16_t leader;
    uint64_t config_index;
    uint32_t count;
    struct node_replica replicas[16];
};

struct durable_mark {
    lsn_t lsn;
    uint16_t group;
    uint64_t index, term;
};
struct gated {
    lsn_t lsn;
    uint16_t group;
    struct raft_message message;
};

/* Memory of the open transaction: effects side by side, never moved. */
struct scratch {
    struct scratch *next;
    size_t capacity;
    size_t used;
    uint8_t at[];
};
struct txn_effect {
    struct pending_entry *entry; /* NULL: a clear */
    uint8_t *at;
    size_t size;
    uint16_t range;
};

struct lane_buffer {
    struct buffer frame; /* messages that leave at the end of the turn */
    bool urgent; /* something other than lazy messages is in it */
};
struct assembly {
    struct buffer body;
    uint64_t id;
    size_t total;
};
struct peer {
    uint16_t number;
    bool up;
    bool addressed; /* the transport knows where it is */
    struct lane_buffer lanes[NET_LANES];
    struct assembly assembly[NET_LANES];
    uint64_t boot;
    uint64_t lazy_ns; /* since when something lazy waits */
    uint64_t part_id;
};

struct execution_item; /* a request from some node, waiting for its turn or its ticket: request.c */

struct outgoing; /* a snapshot being sent: catchup.c */
struct feed; /* catch-up by log: catchup.c */

struct node {
    struct node_config config;
    char name[64];
    char cluster_id[33];
    struct engine *engine;
    int64_t now_ms;
    uint64_t now_ns, now_mono_ms; /* monotonic, of this turn */
    uint64_t ticked_ns;
    bool failed;
    bool opening;
    bool refused; /* the cluster does not want this process */
    bool handing_over;

    uint32_t group_slots; /* ranges + 1 */
    struct group **groups; /* NULL: no replica here */
    struct range_report *reports;
    uint16_t *dirty, *reading;
    uint32_t dirty_count, reading_count;

    lsn_t durable;
    struct durable_mark *marks; /* ring, by lsn */
    size_t mark_first, mark_count, mark_capacity;
    struct gated *gate; /* ring, by lsn */
    size_t gate_first, gate_count, gate_capacity;
    uint16_t *cached; /* ring of group ids, one per entry in memory, oldest first */
    size_t cached_first, cached_count, cached_capacity;
    size_t cache_bytes, cache_max;
    lsn_t trimmed;

    struct ticket_slot *tickets; /* ring */
    ticket_t ticket_base, ticket_next; /* [base, next) are in the ring */
    size_t ticket_capacity;
    bool tickets_moved;

    bool in_txn;
    struct scratch *scratch; /* the chunk in use is first */
    struct txn_effect *effects;
    size_t effect_count, effect_capacity;
    size_t txn_bytes;
    uint32_t buckets_before;
    uint16_t *touched; /* ranges of the open transaction */
    uint32_t touched_count;

    char (*buckets)[NODE_BUCKET_NAME_MAX + 1];
    uint32_t bucket_count;
    char numbers[NODE_BUCKETS_NUMBERED][4];
    uint64_t expired;

    struct peer **peers; /* by node number - 1 up to NODE_NUMBERS_MAX */
    uint32_t peers_end; /* none from here on */
    struct members members;
    uint64_t members_epoch; /* counts changes seen here */
    uint64_t placed_epoch;
    uint32_t placeable; /* members that may hold replicas */
    struct place_range *placement;
    struct swim swim;
    bool alone;
    uint64_t announce_ns, report_ns, reconcile_ns, slow_tick_ns;
    uint64_t seen_ns[MEMBERS_MAX]; /* meta leader: since when a member's state is not as expected */
    uint16_t joiner_slot;

    struct node_request *requests; /* all, newest first */
    uint64_t request_next;
    struct execution_item *executions, *executions_last; /* to be evaluated, in order of arrival */
    struct execution_item *replies; /* evaluated, wait for their tickets */

    struct outgoing *outgoing;
    uint32_t outgoing_count, incoming_count;
    uint64_t snapshot_next, repair_ns;
    bool checkpointing;
    struct feed *feeds;
    struct node_cluster_stats stats;
};

enum { NODE_NUMBERS_MAX = 1024 };

/* node.c */
struct group *group_of(const struct node *node, uint16_t range);
void node_fail(struct node *node, const char *why);
uint64_t node_clock_ns(const struct node *node);

/* txn.c, read.c, bucket.c */
uint8_t *txn_add_effect(struct node *node, struct effect *effect, size_t value_size);
void txn_remove_expired(struct node *node);
bool read_is_expired(struct node *node, uint16_t range, uint16_t bucket, struct bytes key);
/* A stored key and value of range 0: takes note of a bucket's name. */
bool bucket_load(void *ctx, struct bytes key, const struct value *value);

/* group.c: one range's Raft group on this node */
struct group *group_create(struct node *node, uint16_t id, const struct raft_restore *restore);
void group_free(struct group *group);
struct raft_settings group_settings(const struct node *node);
/* Does what the core wants: logs, sends or gates messages, applies. After every call into the core. */
void group_ready(struct group *group);
/* Logs an entry that the core has indexed already, and keeps it. false: no memory (the node fails). */
bool group_log(struct group *group, struct entry *entry);
/* The same for an entry that the caller has put into the log at entry->lsn. */
bool group_logged(struct group *group, struct entry *entry);
/* `config` changed by one step of the reconciler (enum reconcile_kind). */
void group_next_config(struct raft_config *config, int kind, uint16_t node, const uint16_t *voters,
    uint8_t voter_count);
bool group_propose_config(struct group *group, const struct raft_config *config);
enum err group_apply_one(
    struct group *group, uint64_t index, uint64_t term, uint8_t kind, struct bytes data) MUST_CHECK;
/* Drops entries from `index` on (they are void), or all of them, from memory. */
void group_truncate(struct group *group, uint64_t index);
void group_forget(struct group *group, uint64_t next);
/* Keeps an entry in memory, evicting old ones. */
void group_keep(struct group *group, struct entry *entry);
void group_apply(struct group *group);
void group_on_message(struct node *node, uint16_t from, const struct message *message);
void group_on_append(struct node *node, uint16_t from, const struct message *message);
/* Sends what followers lack; at the end of a turn. */
void group_send_appends(struct group *group);
void group_mark_dirty(struct group *group);
void groups_on_durable(struct node *node, lsn_t lsn);
void groups_trimmed(struct node *node);
bool group_serves(const struct group *group);
/* Appends entries first..last (all in memory) as one message to a peer; returns the last that fits. */
uint64_t group_send_entries(struct group *group, const struct raft_append *append, uint64_t last);
/* One message with the entries given. */
void group_send_run(struct group *group, const struct raft_append *append,
    struct entry *const *entries, uint32_t count);
/* Everything waiting on this group as leader is given up: entries that are proposed become UNKNOWN. */
void group_lost_leadership(struct group *group);
void group_note_hash(struct group *group);

/* ticket.c */
ticket_t ticket_new(struct node *node, uint16_t parts);
void ticket_part_done(struct node *node, ticket_t ticket);
void ticket_fail(struct node *node, ticket_t ticket, enum ticket_state state);
void tickets_tick(struct node *node);
bool waiting_push(struct waiting_queue *queue, struct waiting waiting);
struct waiting *waiting_first(struct waiting_queue *queue);
void waiting_pop(struct waiting_queue *queue);

/* wire.c: messages to and from peers */
struct peer *peer_of(struct node *node, uint16_t number);
/* Room for a message that leaves at the end of the turn; NULL: no memory or no such peer. For
 * bodies that fit a frame. */
uint8_t *wire_add(struct node *node, uint16_t to, enum net_lane lane, enum wire_type type,
    uint32_t group, size_t size);
/* The same for any size: a body that does not fit is sent in parts. */
bool wire_send(struct node *node, uint16_t to, enum net_lane lane, enum wire_type type,
    uint32_t group, struct bytes head, struct bytes body);
void wire_send_raft(struct node *node, uint16_t group, const struct raft_message *message);
enum { WIRE_RAFT_SIZE = 56 };
void wire_encode_raft(uint8_t *at, const struct raft_message *message);
enum err wire_decode_raft(struct bytes bytes, struct raft_message *message_out) MUST_CHECK;
void wire_flush(struct node *node, bool lazy_too);
void wire_start(struct node *node);
void wire_free(struct node *node);
size_t wire_queued(struct node *node, uint16_t to, enum net_lane lane);

/* membership.c: member table, joining, failure detector, placement, reports */
void membership_open(struct node *node);
/* Addresses from before the table is known. */
void membership_first_peers(struct node *node);
/* An entry of range 0 was applied. */
void membership_applied(struct node *node, struct bytes effects);
enum err membership_load(struct node *node) MUST_CHECK;
void membership_tick(struct node *node);
void membership_on_message(
    struct node *node, const struct net_peer *from, const struct message *message);
void membership_event(struct node *node, uint16_t number, enum net_event event);
void membership_table_changed(struct node *node);
bool membership_looks_alive(const struct node *node, uint16_t number);
/* An operator's change that came as a request to range 0: fills reply; returns its ticket. */
ticket_t membership_execute(struct node *node, struct bytes body, struct buffer *reply);

/* request.c */
void requests_on_message(struct node *node, uint16_t from, const struct message *message);
void requests_turn(struct node *node);
void requests_tick(struct node *node);
void requests_peer_down(struct node *node, uint16_t number);
void requests_free(struct node *node);

/* catchup.c */
void catchup_on_message(
    struct node *node, uint16_t from, enum net_lane lane, const struct message *message);
/* The peer needs entries from `index` that are not in memory. */
void catchup_start(struct group *group, const struct raft_append *append);
void catchup_turn(struct node *node);
void catchup_tick(struct node *node);
void catchup_peer_down(struct node *node, uint16_t number);
void catchup_free(struct node *node);
/* Applies committed entries that are on disk only, up to what is in memory. */
enum err catchup_apply_from_log(struct group *group);
/* Asks the leader for this range's data. */
void catchup_refetch(struct group *group);
lsn_t catchup_keep_after(const struct node *node);
/* This node is no replica any more: its data goes, its votes stay. */
void catchup_drop_data(struct group *group);
/* 0..1: how much of a snapshot is in; 1: none is coming. */
double catchup_progress(const struct group *group);

#endif
