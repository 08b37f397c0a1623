#ifndef TESTS_WAL_WORLD_H
#define TESTS_WAL_WORLD_H

#include "base/prng.h"
#include "sim/sim_disk.h"
#include "wal/wal.h"

/* A log on a simulated disk, beside a model of what it must hold: what was appended under each LSN, what
 * was reported durable, and the bottom store's memory of its last checkpoint. Every replayed or read
 * record is compared with the model. A fault of the log is a sentence in `fault`; tests assert that it
 * is empty. */

enum { WORLD_LSNS = 1 << 16 };

struct world {
    struct sim_disk *sim;
    struct io io;
    uint64_t now_ns;
    struct prng prng;
    struct wal_config config;
    struct wal *wal;
    struct wal_recovery report;

    uint64_t written[WORLD_LSNS]; /* id of what was appended last under an LSN; 0: nothing */
    lsn_t last; /* appended */
    lsn_t flushed;
    lsn_t durable; /* reported */
    lsn_t replayed;
    uint64_t next_id;
    uint64_t durable_calls;

    /* The bottom store's meta. */
    lsn_t applied;
    lsn_t promised;
    uint64_t segment;

    char fault[256];
};

enum { WORLD_SLOT = 64 << 10 };

void world_init(struct world *world, uint64_t seed, uint32_t depth);
void world_deinit(struct world *world);
/* Opens the log with the bottom store's memory and checks what is replayed. */
enum err world_open(struct world *world);
void world_close(struct world *world);
/* Drops a log whose disk was cut or killed, and makes the disk usable. */
void world_bury(struct world *world);
/* Appends a record of `size` payload bytes; its content follows from an id of its own. False: refused. */
bool world_append(struct world *world, size_t size);
/* Flushes, then lets time run until everything is durable. */
enum err world_commit(struct world *world);
/* The same without the flush. */
enum err world_wait(struct world *world);
/* wal_idle(); not waited for. */
void world_idle(struct world *world);
/* Remembers everything durable as checkpointed and trims. */
void world_checkpoint(struct world *world);
/* What record `id` of `size` bytes looks like. */
void world_payload(uint64_t id, uint8_t *at, size_t size);
/* True if the record is what the model has under its LSN. */
bool world_matches(const struct world *world, const struct wal_record *record);
void world_fault(struct world *world, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
