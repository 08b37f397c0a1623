#ifndef WAL_WAL_H
#define WAL_WAL_H

#include "base/bytes.h"
#include "base/err.h"
#include "base/histogram.h"
#include "base/io.h"

/* The write-ahead log of a node: one log for all ranges.
 *
 * Records are appended to an open batch; wal_flush() closes it and writes it as one
 * block-aligned durable write; a batch is never rewritten, and is valid as a whole or not at
 * all. Everything that arrives while one write is in flight goes into the next batch (group
 * commit). Files are fixed-size slots, zero-filled ahead of need and recycled, so that a commit
 * touches no metadata. Format and recovery rules: docs/formats/wal.md.
 *
 * Guarantees: on_durable(lsn) is called only after every byte of every record up to lsn is on
 * stable storage, in order of LSN. wal_open() gives back every record that was ever reported
 * durable and not trimmed, or refuses (ERR_CORRUPT, ERR_GAP): a torn tail is told from damage by
 * the promises in later batches.
 *
 * One thread owns a log; only wal_reader_* and the counters of wal_stats may be used from
 * others. An error of a write or sync poisons the log: wal_poll() returns ERR_POISONED, nothing
 * is retried. */

struct wal;

/* LSNs count records from 1; 0 means none. */
typedef uint64_t lsn_t;

enum wal_record_type {
    WAL_RECORD_WRITE = 1, /* effects on keys, payload is storage/effect.h's */
    WAL_RECORD_MARK = 2, /* nothing; carries a promise while the log is idle */
    WAL_RECORD_ENTRY = 3, /* one Raft entry of the record's group: cluster/node/records.h */
    WAL_RECORD_ENTRIES = 4, /* entries of several groups, atomically */
    WAL_RECORD_HARD = 5, /* term and vote of the record's group */
};

struct wal_record {
    lsn_t lsn;
    uint64_t group; /* range id; WAL_GROUP_MANY for a record that touches several */
    uint8_t type;
    struct bytes payload;
};

#define WAL_GROUP_MANY UINT64_MAX

struct wal_config {
    const struct io *io;
    uint8_t store_id[16]; /* refuses another store's slots */
    uint64_t slot_size; /* default 64 MiB; a multiple of DISK_BLOCK */
    uint32_t spare_slots; /* filled ahead; default 2 */
    uint64_t bytes_max; /* budget of all slots; at it wal_admit() says ERR_FULL; default 4 GiB */
    uint32_t depth; /* writes in flight, default 1 */
    uint64_t segment_floor; /* from kv meta: newest slot sequence a checkpoint knew; 0 if none */
    lsn_t applied; /* from kv meta: everything up to here is checkpointed */
    lsn_t promised; /* from kv meta: highest LSN known durable then */
    lsn_t accept_loss; /* operator's --accept-loss: cut damage at or after this LSN; 0 = no */
    bool fresh; /* a restored store: no slots are expected although applied > 0 */
    bool turns; /* the owner calls wal_flush() after wal_poll() whenever wal_waiting() */
    bool background; /* fill slots in a thread of its own (false in the simulator) */
    void *ctx;
    /* Before on_replay: this record comes a few places later. For prefetching; may be NULL. */
    void (*on_ahead)(void *ctx, const struct wal_record *record);
    /* Replay, from wal_open() only, in order of LSN, from applied + 1 on, WAL_RECORD_MARKs
     * included; the last is the MARK that opening writes (unless the disk is full). LSNs are
     * consecutive but for one case: where an operator accepted a loss the numbers of what was
     * lost are skipped, never given out again. */
    enum err (*on_replay)(void *ctx, const struct wal_record *record);
    /* From wal_poll() or wal_flush_inline(): all records up to lsn are durable. */
    void (*on_durable)(void *ctx, lsn_t lsn);
    /* From any thread: a slot was filled, wal_poll() has something to do. May be NULL. */
    void (*wake)(void *ctx);
};

/* What recovery found; detail is a sentence that names slot, offset and LSNs. */
struct wal_recovery {
    uint64_t records;
    uint64_t bytes;
    lsn_t recovered; /* where the log ended */
    lsn_t last; /* now: the MARK that opens the new segment included */
    uint32_t slots;
    bool torn_tail;
    char detail[256];
};

struct wal_stats {
    lsn_t last; /* highest LSN appended */
    lsn_t durable;
    lsn_t trimmed; /* records up to here may be gone */
    uint64_t bytes; /* of all slots on disk */
    uint64_t batches;
    uint64_t payload_bytes;
    uint64_t written_bytes;
    uint32_t slots_spare;
    bool full; /* wal_admit() refuses */
    const struct histogram *sync_ns;
    const struct histogram *batch_records;
};

/* Opens, recovers and replays, or creates if the folder has no slots and `applied` is 0.
 * Fills *report also on ERR_CORRUPT and ERR_GAP. */
enum err wal_open(
    const struct wal_config *config, struct wal_recovery *report, struct wal **wal_out) MUST_CHECK;
/* Waits for what was flushed, leaves a promise for it, and frees everything; what was never flushed
 * is gone. on_durable() is not called any more. */
void wal_close(struct wal *wal);

/* OK, or why a new write of `size` payload bytes must be refused now: ERR_FULL (no spare slot and
 * none can be had; clears itself), ERR_AGAIN (a slot is being filled), ERR_TOO_LARGE (over
 * wal_record_size_max), ERR_POISONED. */
enum err wal_admit(struct wal *wal, size_t size) MUST_CHECK;
/* Largest payload of one record: about half a slot. */
size_t wal_record_size_max(const struct wal *wal);
/* Adds a record of `size` payload bytes to the open batch and returns where the caller writes
 * them before the next wal_flush(). The bytes stay readable there until wal_release(). NULL: no
 * memory. */
void *wal_append(struct wal *wal, uint8_t type, uint64_t group, size_t size, lsn_t *lsn_out);
/* The LSN the next wal_append() will get. */
lsn_t wal_next(const struct wal *wal);

/* Sends the open batch off if fewer than `depth` writes are in flight; else it goes by itself
 * from wal_poll() as soon as one is done. delay_us: see struct disk_op. */
void wal_flush(struct wal *wal, uint32_t delay_us);
/* The same in the caller's thread, returning when durable (on_durable has run); only if nothing is
 * in flight, else it does what wal_flush does. */
void wal_flush_inline(struct wal *wal);
/* Reaps finished writes: on_durable() runs. ERR_POISONED once a write failed. */
enum err wal_poll(struct wal *wal) MUST_CHECK;
/* Writes a MARK if the newest durable record has no promise on disk yet. Call when idle for 10
 * ms. */
void wal_idle(struct wal *wal);
bool wal_in_flight(const struct wal *wal);
/* True if records wait to be sent off. */
bool wal_waiting(const struct wal *wal);

/* The record after `lsn` among those still in memory; false if there is none. */
bool wal_next_record(struct wal *wal, lsn_t lsn, struct wal_record *record_out);
/* Records up to lsn are applied: their memory may be reused. */
void wal_release(struct wal *wal, lsn_t lsn);

/* Records up to lsn are checkpointed: slots may be recycled. */
void wal_trim(struct wal *wal, lsn_t lsn);
/* An LSN so that the slots with later records are at most about `bytes`; 0 if all slots are less than that. */
lsn_t wal_lsn_before_end(const struct wal *wal, uint64_t bytes);
/* Sequence number of the newest slot in use, for wal_config.segment_floor. */
uint64_t wal_segment(const struct wal *wal);

void wal_stats(const struct wal *wal, struct wal_stats *stats_out);

/* Reads durable records back from disk. Opening pins the slots from `after` on (owner's thread);
 * reading is for any one thread; closing unpins (owner's thread). Holds no lock while reading. */
struct wal_reader;
enum err wal_reader_open(
    struct wal *wal, lsn_t after, lsn_t upto, struct wal_reader **reader_out) MUST_CHECK;
/* OK and the next record (valid until the next call), ERR_NOT_FOUND after the last. */
enum err wal_reader_next(struct wal_reader *reader, struct wal_record *record_out) MUST_CHECK;
/* Extends the end of what this reader returns and lets go of slots it has read to their end; upto must be
 * durable. Owner's thread, between reads. */
void wal_reader_extend(struct wal_reader *reader, lsn_t upto);
void wal_reader_close(struct wal_reader *reader);

/* Checks every checksum of a stopped node's slots; calls found() with a sentence per damage.
 * Reads only. ERR_CORRUPT if anything was found. */
enum err wal_verify(const struct wal_config *config, void (*found)(void *ctx, const char *sentence),
    void *ctx, struct wal_recovery *report) MUST_CHECK;

/* Disk back ends. `folder` is created mode 0700 if absent. Each owns its threads; destroy joins.
 * --log-io: auto, dsync (blocking pwritev2 with RWF_DSYNC on a log thread), ring-dsync,
 * ring-link (io_uring), posix (pwrite + fdatasync on a log thread). auto probes with a real
 * write and sync. */
enum log_io { LOG_IO_AUTO, LOG_IO_DSYNC, LOG_IO_RING_DSYNC, LOG_IO_RING_LINK, LOG_IO_POSIX };
enum err disk_posix_open(const char *folder, enum log_io mode, struct disk *disk_out) MUST_CHECK;
void disk_posix_close(struct disk *disk);
/* The log thread keeps to the processor of the thread that submits: see disk_follow(). */
void disk_posix_follow(struct disk *disk);
enum err disk_uring_open(const char *folder, enum log_io mode, struct disk *disk_out) MUST_CHECK;
void disk_uring_close(struct disk *disk);
/* Chooses by the rule of docs/decisions/0003-log-io.md; *mode_out says what was chosen. */
enum err disk_open(const char *folder, enum log_io wanted, struct disk *disk_out,
    enum log_io *mode_out) MUST_CHECK;
void disk_close(struct disk *disk);
/* For an owner that is one event loop on a machine of few processors: the log's thread, if there is one,
 * shares the owner's processor (docs/decisions/0003-log-io.md has the measurement). */
void disk_follow(struct disk *disk);
const char *log_io_name(enum log_io mode);

#endif
