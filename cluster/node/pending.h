#ifndef CLUSTER_NODE_PENDING_H
#define CLUSTER_NODE_PENDING_H

#include "storage/effect.h"
#include "wal/wal.h"

/* Effects that are proposed but not yet committed, by key: what the pending view sees before the
 * committed state. One entry a key, the newest; it goes when its record is committed and applied. A
 * cleared bucket is a mark that hides what is older. If leadership is lost, the table is dropped
 * and the committed state is untouched.
 *
 * Effects of the open transaction are entered at once, numbered with the LSN their record will get, and can be
 * undone until the transaction is closed. */

struct pending_entry {
    struct pending_entry *chain;
    uint64_t hash;
    lsn_t lsn;
    lsn_t queued; /* LSN this entry was last put in the queue for */
    uint64_t order; /* of all effects and clears */
    struct effect effect; /* key and value point to the transaction's memory, then to the log's */
};

struct pending_undo {
    struct pending_entry *entry; /* NULL: a clear */
    struct pending_entry before; /* valid if existed */
    bool existed;
    uint16_t bucket;
    lsn_t clear_lsn;
    uint64_t clear_order;
};

struct pending {
    struct pending_entry **slots;
    size_t slot_count; /* a power of two */
    size_t count;
    struct pending_entry *free;
    uint64_t hash_seed;
    uint64_t order;
    struct {
        struct pending_entry *entry;
        lsn_t lsn;
    } * queue; /* ring, oldest first */
    size_t queue_first, queue_count, queue_capacity;
    struct {
        uint16_t bucket;
        lsn_t lsn;
        uint64_t order;
    } * clears;
    size_t clear_count, clear_capacity;
    struct pending_undo *undo;
    size_t undo_count, undo_capacity;
};

enum err pending_init(struct pending *pending, uint64_t hash_seed) MUST_CHECK;
void pending_deinit(struct pending *pending);

enum pending_found { PENDING_MISS, PENDING_VALUE, PENDING_GONE };
/* *entry_out only for PENDING_VALUE. */
enum pending_found pending_find(const struct pending *pending, uint16_t range, uint16_t bucket,
    struct bytes key, const struct pending_entry **entry_out);
/* True if a pending clear hides the committed keys of the bucket. */
bool pending_cleared(const struct pending *pending, uint16_t bucket);

/* Makes sure the next `effects` calls of pending_add or pending_clear cannot fail. */
enum err pending_reserve(struct pending *pending, size_t effects) MUST_CHECK;
/* Enters an effect of the open transaction; key and value must stay where they are. Returns its entry. */
struct pending_entry *pending_add(struct pending *pending, const struct effect *effect, lsn_t lsn);
void pending_clear(struct pending *pending, uint16_t bucket, lsn_t lsn);
/* Ends the transaction: what it entered stays until pending_applied(). */
void pending_keep(struct pending *pending);
/* Takes back everything since the last keep. */
void pending_undo_all(struct pending *pending);
/* Records up to lsn are applied. */
void pending_applied(struct pending *pending, lsn_t lsn);

/* Visits every entry of a bucket that no clear hides, deletions too. */
void pending_each(const struct pending *pending, uint16_t bucket,
    void (*each)(void *ctx, const struct pending_entry *entry), void *ctx);

#endif
