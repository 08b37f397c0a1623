#ifndef TESTS_STORAGE_REPLICATED_H
#define TESTS_STORAGE_REPLICATED_H

#include "sim/sim_clock.h"
#include "sim/sim_disk.h"
#include "sim/sim_kv.h"
#include "storage/engine.h"

/* A node's engine in replicated mode, in one thread, with a group of one in place of Raft: an entry is committed when
 * the test says so. The log's records are of type WAL_RECORD_ENTRY: u64 index, effects. */

enum { REPLICA_RANGES = 3 };

struct replica_range {
    uint64_t proposed; /* last index in the log */
    struct range_meta meta; /* as of what is applied */
    bool known; /* on_range() came at the last open */
};

struct replica {
    struct sim_kv_world *stores;
    char folder[SIM_KV_FOLDER];
    struct sim_disk *disk;
    struct sim_clock clock;
    struct io io;
    struct engine *engine;
    struct engine_report report;
    struct replica_range ranges[REPLICA_RANGES + 1];
    lsn_t seen; /* records up to here were applied */
    lsn_t held; /* records after this one count as not committed; 0: all are committed */
    lsn_t low; /* answer of low_water() if not 0 */
    lsn_t keep; /* answer of keep_after() */
    uint64_t slot_size, log_bytes_max;
    uint32_t chunk_puts;
    size_t memory;
    uint32_t replayed;
    bool power_cut; /* an open failed because of it */
    const struct kv_ops *kv; /* sim_kv unless set */
    const char *kv_folder;
    uint8_t store_id[16];
    bool background;
};

void replica_create(struct replica *replica);
void replica_open(struct replica *replica);
/* The process dies: what is in memory is gone. */
void replica_crash(struct replica *replica);
void replica_close(struct replica *replica, bool checkpoint);
void replica_destroy(struct replica *replica);

/* Appends an entry to a range's log, durable on return, and applied if committed. NULL value: a delete. */
void replica_put(struct replica *replica, uint16_t range, const char *key, const char *value);
void replica_put_value(struct replica *replica, uint16_t range, const char *key, struct bytes value,
    int64_t expires_ms);
void replica_clear(struct replica *replica, uint16_t range, uint16_t bucket);
/* An entry without effects. */
void replica_nothing(struct replica *replica, uint16_t range);
/* Everything up to lsn is committed; applies it. 0: everything. */
void replica_commit(struct replica *replica, lsn_t lsn);
void replica_checkpoint(struct replica *replica);
/* One turn of the owner. */
void replica_poll(struct replica *replica);

void replica_expect(struct replica *replica, uint16_t range, const char *key, const char *value);
uint64_t replica_count(struct replica *replica, uint16_t range);
/* Hash of all keys, values, expiries and versions of a range. */
uint64_t replica_hash(struct replica *replica, uint16_t range);
/* Checks the store as verify does, after a checkpoint or not. */
void replica_check_store(struct replica *replica);

#endif
