#ifndef CLUSTER_NODE_RECORDS_H
#define CLUSTER_NODE_RECORDS_H

#include "base/bytes.h"
#include "base/err.h"

/* The payloads of replication's log records (docs/formats/wal.md) and of entries on the wire. Pure codec.
 *
 *   WAL_RECORD_ENTRY:   u64 index | u64 term | u64 commit | u8 kind | 7 zero | data
 *   WAL_RECORD_ENTRIES: for each entry u32 group | u32 size | an ENTRY of that size | zeros to 8
 *   WAL_RECORD_HARD:    u64 term | u64 vote
 *
 * `commit` is the group's commit index when the entry was logged, so that a restart knows at once what was
 * committed. A later record with an index at or below an earlier one voids that and what follows it. */

enum entry_kind {
    ENTRY_NOOP = 1, /* a leader's first */
    ENTRY_EFFECTS = 2, /* i64 time of the proposer, then effects (storage/effect.h) */
    ENTRY_CONFIG = 3, /* cluster/raft/raft.h's configuration */
};

enum { ENTRY_RECORD_HEADER = 32 };

struct entry_record {
    uint64_t index, term, commit;
    uint8_t kind;
    struct bytes data; /* borrows */
};

static inline size_t entry_record_size(size_t data)
{
    return ENTRY_RECORD_HEADER + data;
}
/* Writes the header at `at`; data goes behind it. */
void entry_record_encode(uint8_t *at, const struct entry_record *entry);
enum err entry_record_decode(struct bytes payload, struct entry_record *entry_out) MUST_CHECK;

/* One part of an ENTRIES record: writes its frame and header, returns where `data` goes. */
size_t entry_part_size(size_t data);
uint8_t *entry_part_encode(uint8_t *at, uint16_t group, const struct entry_record *entry);
/* Takes the first part off *rest: ERR_NOT_FOUND at the end, ERR_CORRUPT. */
enum err entry_part_next(
    struct bytes *rest, uint16_t *group_out, struct entry_record *entry_out) MUST_CHECK;

enum { HARD_RECORD_SIZE = 16 };
void hard_record_encode(uint8_t *at, uint64_t term, uint16_t vote);
enum err hard_record_decode(
    struct bytes payload, uint64_t *term_out, uint16_t *vote_out) MUST_CHECK;

#endif
