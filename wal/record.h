#ifndef WAL_RECORD_H
#define WAL_RECORD_H

#include "base/bytes.h"
#include "base/err.h"
#include "base/io.h"
#include "wal/wal.h"

/* The bytes of the log: segment header, batch header, record. Pure functions; no I/O, no memory of
 * their own. The layout and what each check is for: docs/formats/wal.md. Everything read here may
 * be garbage: a decoder answers ERR_CORRUPT, it never asserts on content. */

enum {
    SEGMENT_HEADER = 128, /* at the start of a slot's first block; the rest of the block is zero */
    BATCH_HEADER = 72,
    RECORD_HEADER = 32,
    RECORD_ALIGN = 8,
    WAL_VERSION = 1,
};

/* The segment starts at a higher LSN than its predecessor ended: an operator accepted a loss. */
#define SEGMENT_CUT 1u

/* One life of a slot. */
struct segment_header {
    uint64_t sequence; /* counts lives of slots over the whole log; never repeats */
    uint64_t nonce; /* random; seeds the checksums of this life's records */
    uint8_t store_id[16];
    uint64_t base_lsn; /* LSN of the first record */
    uint64_t promise; /* all up to here was durable when this header was built */
    uint64_t prev_sequence; /* the predecessor in the chain, 0: none */
    uint64_t prev_end_lsn; /* where the predecessor ends, whatever lies behind that place */
    uint64_t prev_end_offset;
    uint64_t slot_size;
    int64_t wall_ms;
    uint32_t flags;
    uint32_t crc; /* set by both directions */
};

/* One group commit. */
struct batch_header {
    uint64_t sequence;
    uint64_t nonce;
    uint64_t first_lsn;
    uint64_t promise;
    int64_t wall_ms;
    uint32_t records;
    uint32_t bytes; /* of all records, their headers and padding included */
    uint32_t block; /* own place in the slot, in blocks: shows a misdirected write */
    uint32_t previous_crc; /* crc of the batch before, of the segment header for the first */
    uint32_t records_crc; /* over the records' checksums */
    uint32_t crc; /* set by both directions */
};

/* Seed of the batch headers' checksums: they can be told from others' without the segment header. */
uint32_t batch_seed(const uint8_t store_id[16]);
/* Seed of the records' checksums: a stale record never passes for one of this life. */
uint32_t record_seed(uint64_t sequence, uint64_t nonce);

/* Writes SEGMENT_HEADER bytes and zeros up to a block at `at`; sets header->crc. */
void segment_encode(struct segment_header *header, uint8_t *at);
/* ERR_CORRUPT, or ERR_MISMATCH for an intact header of a newer version. */
enum err segment_decode(struct bytes from, struct segment_header *header_out) MUST_CHECK;

/* Writes BATCH_HEADER bytes at `at`; sets header->crc. */
void batch_encode(uint32_t seed, struct batch_header *header, uint8_t *at);
/* Checks the header alone. */
enum err batch_decode(uint32_t seed, struct bytes from, struct batch_header *header_out) MUST_CHECK;
/* Checks every record of a batch; `from` starts at the batch header and holds at least the batch. */
enum err batch_check(
    const struct batch_header *header, uint32_t seed, struct bytes from) MUST_CHECK;
/* Bytes of a batch on disk. */
static inline uint64_t batch_span(const struct batch_header *header)
{
    return ((uint64_t)BATCH_HEADER + header->bytes + DISK_BLOCK - 1) / DISK_BLOCK * DISK_BLOCK;
}

static inline size_t record_span(size_t payload)
{
    return RECORD_HEADER + (payload + RECORD_ALIGN - 1) / RECORD_ALIGN * RECORD_ALIGN;
}

/* Writes the header, all but its checksum, and zeroes the padding behind the payload. */
static inline void record_begin(
    uint8_t *at, uint8_t type, uint64_t group, size_t payload, uint64_t lsn)
{
    size_t span = record_span(payload);
    if (span > RECORD_HEADER) store_u64(at + span - 8, 0);
    store_u32(at + 4, (uint32_t)payload);
    store_u64(at + 8, lsn);
    store_u64(at + 16, group);
    store_u64(at + 24, type);
}

/* The checksum in two steps: the payload's part needs no LSN, segment or place and can be computed
 * while an earlier write is in flight; the header's part closes it. */
uint32_t record_sum_payload(const uint8_t *at);
uint32_t record_sum_header(uint32_t seed, uint32_t payload_sum, const uint8_t *at);

/* Reads the record at the front of *rest without checking its sum (batch_check did) and advances.
 * ERR_NOT_FOUND at the end, ERR_CORRUPT if it does not fit. */
enum err record_next(struct bytes *rest, struct wal_record *record_out) MUST_CHECK;

#endif
