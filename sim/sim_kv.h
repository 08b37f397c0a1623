#ifndef SIM_SIM_KV_H
#define SIM_SIM_KV_H

#include "base/prng.h"
#include "storage/kv.h"

/* The bottom store in memory, for the simulator and for tests: the same contract as kv_lmdb (one
 * suite runs on both), plus faults. A store lives in a world under a name, so that it survives
 * close and reopen. kv_ops.open() gets no more than a folder name; so the world's address is put
 * into it: "sim:0x7f...:name", made by sim_kv_folder(). Everything is in one thread.
 *
 *   struct sim_kv_world *world = sim_kv_world_new();
 *   char folder[SIM_KV_FOLDER];
 *   sim_kv_folder(world, "node-1", folder);
 *   sim_kv.open(&(struct kv_config){.folder = folder, .ranges = 2, .create = true}, &kv);
 */

extern const struct kv_ops sim_kv;

enum { SIM_KV_FOLDER = 128, SIM_KV_NAME = 64 };

struct sim_kv_world;

/* NULL: no memory. */
struct sim_kv_world *sim_kv_world_new(void);
/* Frees all stores, and whatever handles on them are still open. */
void sim_kv_world_free(struct sim_kv_world *world);
/* Writes the folder name of store `name` (shorter than SIM_KV_NAME, without ':'). */
void sim_kv_folder(struct sim_kv_world *world, const char *name, char folder_out[SIM_KV_FOLDER]);

/* The process that has the store open dies: handle, snapshots, cursors and what was not committed
 * are gone, and must not be touched again. What was committed is there at the next open. */
void sim_kv_crash(struct sim_kv_world *world, const char *name);
/* The disk is lost: the store is as if never created. It must not be open. */
void sim_kv_wipe(struct sim_kv_world *world, const char *name);
/* The `after`-th commit from now (1: the next) fails with `err`, once; 0 takes it back. */
void sim_kv_fail_commit(struct sim_kv_world *world, const char *name, uint64_t after, enum err err);
/* Flips bit `bit` (mod size) of what is stored for the key. */
enum err sim_kv_rot(struct sim_kv_world *world, const char *name, uint16_t range, struct bytes key,
    uint64_t bit) MUST_CHECK;
/* Flips a random bit of a random value and says which; ERR_NOT_FOUND if there is none. The key
 * borrows until the store changes. */
enum err sim_kv_rot_any(struct sim_kv_world *world, const char *name, struct prng *prng,
    uint16_t *range_out, struct bytes *key_out) MUST_CHECK;
/* Commits so far. */
uint64_t sim_kv_commits(struct sim_kv_world *world, const char *name);

#endif
