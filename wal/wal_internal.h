#ifndef WAL_WAL_INTERNAL_H
#define WAL_WAL_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "wal/record.h"
#include "wal/wal.h"

/* What wal.c, recovery.c and reader.c share. */

enum {
    CHUNK_SIZE = 1 << 20, /* memory of an ordinary batch, room for a segment header included */
    CHUNK_POOL = 8, /* free chunks kept */
    SLOT_MARKS = 64, /* sparse index: one entry per 1/64 of a slot */
    SLOT_NAME = 32,
};

/* A place to start reading a slot from. */
struct slot_mark {
    lsn_t lsn; /* first of a batch; 0: none in this part */
    uint64_t offset;
    uint32_t previous_crc;
};

/* A file of the log. Used slots carry a segment; spare ones are filled and ready for the next. */
struct slot {
    struct slot *next;
    disk_file file;
    uint32_t number;
    uint64_t size;

    /* The segment, if used. */
    uint64_t sequence;
    uint64_t nonce;
    uint32_t crc; /* of the segment header: what the first batch chains to */
    lsn_t base;
    lsn_t cover; /* base, or less after an accepted loss: the gap belongs to this segment */
    lsn_t end; /* last LSN placed in it; base - 1 if none */
    uint64_t end_offset; /* where the next batch goes */
    uint32_t pins; /* readers on it */
    struct slot_mark marks[SLOT_MARKS];
};

struct slot_list {
    struct slot *first;
    struct slot *last;
    uint32_t count;
};

/* Memory of one batch, from its first append until its records are released. */
struct chunk {
    struct chunk *next; /* in order of LSN */
    struct wal *wal;
    uint8_t *memory; /* one block for a segment header, then the batch */
    size_t capacity; /* of the batch */
    size_t size; /* of the batch so far */
    size_t summed; /* records before this offset have the sum of their payload */
    lsn_t first;
    uint32_t records;
    bool pooled;
    bool sent;
    bool done;
    enum err result;
    lsn_t promise;
    uint64_t sequence;
    uint64_t started_ns;
    struct disk_op op;
};

static inline lsn_t chunk_last(const struct chunk *chunk)
{
    return chunk->first + chunk->records - 1;
}

static inline uint8_t *chunk_batch(const struct chunk *chunk)
{
    return chunk->memory + DISK_BLOCK;
}

/* Where batches will go, computed ahead by the rule that places them, so that admission knows
 * whether all that was taken fits into what is there. */
struct wal_plan {
    uint64_t offset;
    uint32_t slots; /* spares it needs */
};

/* Fills slots in a thread of its own: one job at a time. */
struct filler {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t work;
    bool running;
    bool stop; /* under lock */
    bool wanted; /* under lock: a job waits or runs */
    uint32_t number; /* under lock: of the job */
    struct slot *slot; /* under lock: the result, NULL if it failed */
    enum err result; /* under lock */
    atomic_bool ready; /* a result waits for the owner */
};

/* What recovery hands to wal_open() beside the lists of slots. */
struct recovered {
    lsn_t end; /* last LSN there is */
    lsn_t base; /* LSN the new segment starts with: end + 1, more after a loss */
    uint64_t prev_sequence;
    uint64_t prev_offset;
    bool lost; /* accepted by the operator */
};

struct wal {
    struct wal_config config;
    struct io io;
    uint32_t seed; /* of batch headers */
    size_t chunk_size;

    /* Batches, oldest first. unsent and undurable point into the list. */
    struct chunk *oldest;
    struct chunk *newest;
    struct chunk *open;
    struct chunk *unsent;
    struct chunk *undurable;
    struct chunk *pool;
    uint32_t pooled;
    uint32_t in_flight;
    uint32_t delay_us;

    lsn_t next;
    lsn_t flushed; /* wal_flush() was called when this was the last LSN */
    lsn_t released;
    lsn_t reported; /* to on_durable */
    lsn_t promised; /* highest promise that is durable itself */
    lsn_t last_data; /* newest record that is not a MARK */
    uint64_t durable_sequence;

    /* Slots. The last of `used` is current. */
    struct slot_list used;
    struct slot_list spare;
    uint32_t next_number;
    uint64_t sequence; /* newest ever seen */
    uint32_t previous_crc; /* of the last batch placed in the current segment */
    struct wal_plan plan;
    struct recovered recovered; /* what the first segment of this run records of the one before */
    bool starting; /* that segment is not there yet */
    uint64_t retry_ns; /* no new slot before; 0: none failed */
    bool poisoned;
    struct filler filler;

    /* Position of wal_next_record(). */
    struct chunk *seek_chunk;
    size_t seek_offset;
    lsn_t seek_lsn;

    /* Written by the owner only, read by anyone. */
    _Atomic uint64_t last;
    _Atomic uint64_t durable;
    _Atomic uint64_t trimmed;
    _Atomic uint64_t bytes;
    _Atomic uint64_t batches;
    _Atomic uint64_t payload_bytes;
    _Atomic uint64_t written_bytes;
    _Atomic uint32_t slots_spare;
    atomic_bool full;

    struct histogram sync_ns;
    struct histogram batch_records;
};

void slot_name(uint32_t number, char name[SLOT_NAME]);
void slot_list_push(struct slot_list *list, struct slot *slot);
struct slot *slot_list_pop(struct slot_list *list);
/* Remembers the place of a batch in the sparse index. */
void slot_mark(struct slot *slot, lsn_t first, uint64_t offset, uint32_t previous_crc);
/* The last known place at or before the batch that holds lsn. */
struct slot_mark slot_find(const struct slot *slot, lsn_t lsn);

/* Reads blocks of a slot through one large buffer. What the device cannot read comes back as zeros,
 * which no check accepts. */
struct window {
    const struct disk *disk;
    disk_file file;
    uint64_t limit; /* size of the slot */
    uint8_t *memory;
    size_t capacity;
    uint64_t offset; /* of the bytes held */
    size_t size;
    uint32_t unreadable; /* blocks the device refused */
};

/* `capacity` is a hint, rounded up to blocks; the memory grows with the batches met. */
enum err window_init(struct window *window, const struct disk *disk, size_t capacity) MUST_CHECK;
void window_deinit(struct window *window);
void window_seek(struct window *window, disk_file file, uint64_t limit);
/* Makes [offset, offset + size) readable at *out; the size is cut at the slot's end, but is at least
 * a block. ERR_NOT_FOUND behind the end, ERR_NOMEM. */
enum err window_get(
    struct window *window, uint64_t offset, size_t size, struct bytes *out) MUST_CHECK;

/* What a batch at some place must be. */
struct expect {
    uint64_t sequence;
    uint64_t nonce;
    lsn_t first; /* 0: any */
    uint32_t previous_crc;
    bool chained; /* previous_crc counts */
};

/* Reads and checks the header of the batch at `offset`, not its records; errors as window_batch(). */
enum err window_header(struct window *window, uint32_t seed, uint64_t offset,
    const struct expect *expect, struct batch_header *header_out) MUST_CHECK;
/* Reads and checks the batch at `offset`: ERR_CORRUPT if it is not what is expected there or fails
 * a checksum, ERR_NOT_FOUND behind the end. *records_out borrows from the window. */
enum err window_batch(struct window *window, uint32_t seed, uint64_t offset,
    const struct expect *expect, struct batch_header *header_out,
    struct bytes *records_out) MUST_CHECK;

/* Reads the slots, replays, and fills wal->used, spare, sequence and next_number. */
enum err recovery_run(
    struct wal *wal, struct wal_recovery *report, struct recovered *out) MUST_CHECK;

#endif
