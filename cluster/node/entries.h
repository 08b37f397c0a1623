#ifndef CLUSTER_NODE_ENTRIES_H
#define CLUSTER_NODE_ENTRIES_H

#include "base/bytes.h"
#include "base/err.h"
#include "wal/wal.h"

/* The entries of one group that are in memory: a gapless run of indexes, newest at the end. Older ones are on disk
 * only; samples say where in the log to start reading for them. */

struct entry {
    uint64_t index, term;
    lsn_t lsn;
    uint32_t size;
    uint8_t kind;
    uint8_t data[];
};

struct entry_sample {
    uint64_t index;
    lsn_t lsn; /* no entry from `index` on is in the log before this */
};

struct entries {
    struct entry **ring;
    uint64_t first; /* index of the oldest in memory; first + count is the next to come */
    uint64_t count;
    uint64_t capacity;
    struct entry_sample *samples; /* ascending in both */
    size_t sample_first, sample_count, sample_capacity;
    size_t bytes;
};

/* Empty; the first entry to come has index `next`. */
void entries_init(struct entries *entries, uint64_t next);
void entries_deinit(struct entries *entries);
/* Forgets everything, samples too; the next to come is `next`. */
void entries_reset(struct entries *entries, uint64_t next);
/* A new entry with room for `size` bytes, to be filled and given to entries_add(). NULL: no memory. */
struct entry *entry_new(uint64_t index, uint64_t term, uint8_t kind, size_t size);
/* Takes ownership; index must be first + count. ERR_NOMEM: the caller keeps it. */
enum err entries_add(struct entries *entries, struct entry *entry) MUST_CHECK;
/* NULL if not in memory. */
struct entry *entries_get(const struct entries *entries, uint64_t index);
/* Drops entries from `index` on (they are void). */
void entries_truncate(struct entries *entries, uint64_t index);
/* Drops the oldest from memory. */
void entries_evict(struct entries *entries);
/* Notes that entry `index` is logged at lsn. */
void entries_logged(struct entries *entries, uint64_t index, lsn_t lsn);
/* Where to read from to find entry `index`; 0: the log may not have it any more. */
lsn_t entries_lsn(const struct entries *entries, uint64_t index);
/* The log has lost what is at or before `lsn`; returns the lowest index that can be read (from disk or memory). */
uint64_t entries_trimmed(struct entries *entries, lsn_t lsn);

#endif
