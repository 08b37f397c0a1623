#ifndef CLUSTER_NODE_NODE_H
#define CLUSTER_NODE_NODE_H

#include "base/io.h"
#include "storage/engine.h"

/* The driver of a node: propose -> log -> commit -> apply, written once. With one node a record is
 * committed when it is durable here; replication changes only what "committed" waits for.
 *
 * A command is evaluated when it arrives, over the pending view: committed state plus the effects of
 * records that are proposed but not yet committed. Its effects go into one log record. Its reply is
 * written at once but held back until the record, and every record it may have read from, is
 * committed: node_txn_commit() and node_pending_ticket() give the ticket to wait for.
 * A read on a connection that has nothing held back uses the committed view and waits for nothing.
 *
 * All calls belong to the node's one thread. */

struct node;

/* Tickets are ordered; ticket t is fulfilled when node_committed() >= t. 0: nothing to wait for. */
typedef uint64_t ticket_t;

struct node_config {
    const struct io *io;
    const struct kv_ops *kv;
    const char *kv_folder;
    const char *name; /* NULL: made up at creation */
    uint8_t cluster_id[16];
    uint8_t store_id[16]; /* of this node alone: what its log and store carry */
    uint32_t ranges;
    size_t memory;
    uint64_t log_bytes_max;
    uint64_t slot_size;
    uint64_t map_size;
    uint32_t chunk_puts;
    lsn_t accept_loss;
    bool create;
    bool background;
    bool scrub;
    void *ctx;
    /* node_committed() has moved. From node_poll() and node_flush(). */
    void (*on_committed)(void *ctx, ticket_t committed);
    /* From any thread: node_poll() has something to do. */
    void (*wake)(void *ctx);
};

enum err node_open(const struct node_config *config, struct engine_report *report,
    struct node **node_out) MUST_CHECK;
/* With `checkpoint` everything is in the bottom store afterwards: the next start replays nothing. */
void node_close(struct node *node, bool checkpoint);

/* Milliseconds since 1970 as this node sees it: never goes back, fixed within a loop turn. */
int64_t node_now_ms(const struct node *node);
/* Takes the time anew; once at the start of a loop turn. */
void node_turn_begin(struct node *node);
/* Sends off what was proposed in this turn; lets go of the read snapshot. */
void node_turn_end(struct node *node, bool alone);
enum err node_poll(struct node *node) MUST_CHECK;
/* Periodic: expiry, promises, sealing by age. Every 100 ms or so. */
void node_tick(struct node *node);
/* More often (10 to 20 ms): once nothing is under way, the log notes that what was acknowledged is durable, so
 * that damage to the very last batch cannot pass for an unfinished write. */
void node_idle(struct node *node);

ticket_t node_committed(const struct node *node);
/* The ticket of the newest proposed record: what a reply that used the pending view waits for.
 * 0 if nothing is pending. */
ticket_t node_pending_ticket(const struct node *node);

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

enum node_view { NODE_COMMITTED, NODE_PENDING };

/* ERR_NOT_FOUND if absent or expired at node_now_ms(); ERR_CORRUPT if its stored bytes are damaged;
 * ERR_TOO_LARGE for a key over KEY_SIZE_MAX (no such key can exist: callers check first). The value
 * borrows until the turn ends (txn calls do not disturb it). */
enum err node_get(struct node *node, enum node_view view, uint16_t bucket, struct bytes key,
    struct value *value_out) MUST_CHECK;

/* One transaction at a time; its effects are visible to NODE_PENDING reads at once and become one log
 * record at commit. Callers ask node_admit() first, so that nothing here can fail half way. */
/* OK, ERR_FULL, ERR_TOO_LARGE, ERR_POISONED, or ERR_AGAIN: keep the command and try again after the
 * next wake. `size`: about what keys and values of the command add up to. */
enum err node_admit(struct node *node, size_t size) MUST_CHECK;
void node_txn_begin(struct node *node);
/* Returns where to write value_size bytes before anything else is called; NULL: this transaction
 * would become too large or there is no memory, and nothing was changed by this call. */
uint8_t *node_put(
    struct node *node, uint16_t bucket, struct bytes key, size_t value_size, int64_t expires_ms);
/* Deleting what is absent is allowed (and logged): look first. False: as NULL above. */
bool node_delete(struct node *node, uint16_t bucket, struct bytes key);
bool node_clear(struct node *node, uint16_t bucket);
/* Proposes the effects as one record; 0 if there were none. */
ticket_t node_txn_commit(struct node *node);
/* Drops the effects since begin. */
void node_txn_abort(struct node *node);

/* Walks the keys of a bucket in (range, key) order; absent and expired keys are left out. */
struct node_position {
    uint16_t range; /* 0: from the start */
    uint16_t key_size;
    uint8_t key[KEY_SIZE_MAX]; /* the walk goes on after this key */
};
/* Visits up to `limit` entries from *position, which is advanced; *done_out at the end. each() may return
 * false to stop after this entry. With NODE_PENDING, keys that are only pending come with the last page. */
enum err node_walk(struct node *node, enum node_view view, uint16_t bucket,
    struct node_position *position, uint64_t limit, bool *done_out,
    bool (*each)(void *ctx, struct bytes key, const struct value *value), void *ctx) MUST_CHECK;
/* In key order over all ranges, committed view: keys that have `prefix` and are > `after`. */
enum err node_page(struct node *node, uint16_t bucket, struct bytes prefix, struct bytes after,
    uint64_t limit, bool *more_out,
    bool (*each)(void *ctx, struct bytes key, const struct value *value), void *ctx) MUST_CHECK;
/* Keys of a bucket, expired ones not yet removed included. */
uint64_t node_count(struct node *node, enum node_view view, uint16_t bucket);

struct engine *node_engine(struct node *node);
const char *node_name(const struct node *node);
/* 32 hex digits. */
const char *node_cluster_id(const struct node *node);
uint32_t node_ranges(const struct node *node);
/* Keys removed because they had expired. */
uint64_t node_expired_count(const struct node *node);

#endif
