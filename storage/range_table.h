#ifndef STORAGE_RANGE_TABLE_H
#define STORAGE_RANGE_TABLE_H

#include <pthread.h>
#include <stdbool.h>

#include "storage/kv.h"
#include "storage/range_meta.h"

/* The metadata of every range of a replicated node: what is to be written and what is written. The
 * checkpoint, installs of snapshots and removals all write it, in transactions of their own.
 *
 * Who writes holds `order` from before the transaction begins until its outcome is noted, so what is
 * stored is known exactly. `wanted` has a latch of its own: the owner of the engine changes it without
 * waiting for a transaction. */

struct range_slot {
    struct range_meta wanted; /* under latch */
    /* the rest under order */
    struct range_meta stored;
    struct range_meta written; /* by the transaction under way */
    bool in_store;
    bool touched; /* `written` is valid */
};

struct range_table {
    pthread_mutex_t order;
    pthread_mutex_t latch;
    uint32_t ranges; /* highest range id + 1 */
    struct range_slot *slots;
};

/* NULL: no memory. */
struct range_table *range_table_new(uint32_t ranges);
void range_table_free(struct range_table *table);
/* Reads what the store has. ERR_CORRUPT. */
enum err range_table_load(
    struct range_table *table, const struct kv_ops *ops, struct kv_read *read) MUST_CHECK;

/* From any thread. */
void range_table_want(struct range_table *table, uint16_t range, const struct range_meta *meta);
struct range_meta range_table_wanted(struct range_table *table, uint16_t range);
/* Takes over term and vote alone if they are newer: a vote that was given must never be lost. */
void range_table_want_hard(
    struct range_table *table, uint16_t range, const struct range_meta *meta);
void range_meta_merge_hard(struct range_meta *meta, const struct range_meta *other);

void range_table_lock(struct range_table *table);
void range_table_unlock(struct range_table *table);
/* Order held. Adds the range's meta to the transaction, as it is wanted now; nothing if it is stored so. */
enum err range_table_write(struct range_table *table, const struct kv_ops *ops,
    struct kv_write *write, uint16_t range) MUST_CHECK;
/* Order held. The same with a meta of the caller's. */
enum err range_table_write_as(struct range_table *table, const struct kv_ops *ops,
    struct kv_write *write, uint16_t range, const struct range_meta *meta) MUST_CHECK;
/* Order held. The transaction brings a part of what the range will have at wanted.index: notes that the data is
 * whole only there. */
enum err range_table_write_partial(struct range_table *table, const struct kv_ops *ops,
    struct kv_write *write, uint16_t range) MUST_CHECK;
/* Order held. The outcome of the transaction. */
void range_table_outcome(struct range_table *table, bool committed);

#endif
