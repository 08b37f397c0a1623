#ifndef SIM_SIM_DISK_H
#define SIM_SIM_DISK_H

#include "base/io.h"

/* A folder on a disk that exists only in memory and behaves as badly as a real one may.
 *
 * Model. Every file has what a reader sees and what would be there after a power cut. A write changes
 * the first; sync() copies to the second. A durable write (submit, write_durable) does both for its
 * own bytes when it completes. Creations, renames and removals are seen at once and become durable,
 * in order, with sync_folder(). At a power cut each sector that was written and not synced is kept or
 * dropped on its own, a write in flight likewise, a random number of the folder's changes survives from
 * the front, and the length of a file that grew falls anywhere between old and new.
 *
 * Determinism. Everything random is drawn from the seed; time is what sim_disk_run_until() says. One
 * thread only.
 *
 * Counting. Each call that changes anything is an operation: open that creates, write, sync,
 * sync_folder, fill, rename, remove, submit, write_durable. "Cut at operation N" and "fail operation N"
 * count from 1 with the next one, so a workload can be run once to count and then once for every N.
 *
 * After a cut every call answers ERR_IO, and writes in flight end with ERR_IO at the next poll(), so
 * that owners can be torn down; only then may sim_disk_restart() make the disk usable again, which
 * closes every file still open. sim_disk_kill() instead models the death of the process alone: what was
 * written stays visible, still unsynced. */

struct sim_disk;

struct sim_disk_config {
    uint64_t seed;
    uint64_t capacity; /* bytes of all files together; 0: no limit */
    uint64_t latency_min_ns; /* of a submitted write; both 0: done at the next poll() */
    uint64_t latency_max_ns;
    uint32_t sector; /* what is written whole or not at all: 512 (default) or 4096 */
};

struct sim_disk *sim_disk_create(const struct sim_disk_config *config);
void sim_disk_destroy(struct sim_disk *sim);
/* The table to hand to a node. Its name is "sim". */
struct disk sim_disk_table(struct sim_disk *sim);

/* Time moves on: submitted writes that are due by then end (poll() runs their done()). A caller that
 * polls a thousand times in vain gets the next one anyway, so that blocking loops end. */
void sim_disk_run_until(struct sim_disk *sim, uint64_t now_ns);
/* Ends all writes in flight in random order. */
void sim_disk_run_all(struct sim_disk *sim);
/* When the next write in flight is due; UINT64_MAX if there is none. */
uint64_t sim_disk_next_due(const struct sim_disk *sim);

/* Operations so far. */
uint64_t sim_disk_operations(const struct sim_disk *sim);

/* Power goes now: see above. */
void sim_disk_cut(struct sim_disk *sim);
/* Power goes in the middle of the operation-th operation from now; 0: never. */
void sim_disk_cut_at(struct sim_disk *sim, uint64_t operation);
bool sim_disk_is_cut(const struct sim_disk *sim);
/* The process dies, the machine does not. Writes in flight reach the disk or not, each on its own. */
void sim_disk_kill(struct sim_disk *sim);
/* After a cut or a kill. Cancels planned faults. */
void sim_disk_restart(struct sim_disk *sim);

/* The operation-th operation from now, and the count - 1 after it, fail with this error. A write that
 * fails leaves a random part of its sectors behind. 0 cancels. */
void sim_disk_fail_at(struct sim_disk *sim, uint64_t operation, uint64_t count, enum err error);
/* Durable writes (submit and write_durable alike) from the operation-th on that ... */
enum sim_disk_lie {
    SIM_DISK_LOSE, /* ... report success and store nothing */
    SIM_DISK_MISDIRECT, /* ... land one block further */
    SIM_DISK_TEAR, /* ... report success and store a random part */
};
void sim_disk_lie_at(struct sim_disk *sim, uint64_t operation, enum sim_disk_lie lie);
void sim_disk_set_capacity(struct sim_disk *sim, uint64_t capacity);
void sim_disk_set_latency(struct sim_disk *sim, uint64_t min_ns, uint64_t max_ns);

/* Damage to what is stored. False: no such file, or behind its end. */
bool sim_disk_flip(struct sim_disk *sim, const char *name, uint64_t offset, int bit);
/* The block cannot be read until it is written again. */
bool sim_disk_break_block(struct sim_disk *sim, const char *name, uint64_t offset);
/* Reads and writes content behind everybody's back; durable at once. Writing makes the file. */
bool sim_disk_peek(struct sim_disk *sim, const char *name, uint64_t offset, void *at, size_t size);
void sim_disk_poke(
    struct sim_disk *sim, const char *name, uint64_t offset, const void *at, size_t size);
/* The file with the newest durable write; "" if there is none. */
void sim_disk_newest(const struct sim_disk *sim, char *name_out, size_t size);
/* Size of a file, or 0. */
uint64_t sim_disk_file_size(const struct sim_disk *sim, const char *name);

/* Everything stored, for putting a disk back into an earlier state. */
struct sim_disk *sim_disk_clone(const struct sim_disk *sim, uint64_t seed);
/* Hash of everything durable: equal runs have equal hashes. */
uint64_t sim_disk_hash(const struct sim_disk *sim);

#endif
