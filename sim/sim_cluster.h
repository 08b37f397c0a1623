#ifndef SIM_SIM_CLUSTER_H
#define SIM_SIM_CLUSTER_H

#include "sim/sim.h"
#include "sim/sim_net.h"

/* The deterministic simulator of a cluster: several shipped nodes, each with its own clocks, disk
 * and bottom store, over one simulated network. One seed decides everything; the same seed gives
 * the same trace hash.
 *
 * A run has three parts. Set-up: one machine starts a cluster, the others join. Chaos: clients work
 * on any node while faults of the scenario begin and end. Then everything is healed, and the run
 * demands: every range has a leader and takes a write within SIM_HEALED_MS, every replica catches
 * up, all replicas have the same content, and the clients' histories, the last reads included, are
 * linearizable.
 *
 * Checked all the time: no term of a range has two leaders; a node's commit and applied index do
 * not go back while it runs; damage is reported and never answered; a node stops itself only for a
 * reason that was injected.
 *
 * Damage (bit rot, wiped disks) is kept to a minority of the voters at a time, so that what was
 * acknowledged can be repaired; crashes, power cuts and cuts of the network may hit everybody at
 * once. */

/* Faults, each with a counter, so that a campaign can show that each one fired. */
#define SIM_FAULT_MAP(X)                                                                           \
    X(LOSS, "messages lost at random")                                                             \
    X(DELAY, "messages delayed by up to seconds")                                                  \
    X(DUPLICATE, "frames repeated below the transport")                                            \
    X(RESET, "connections reset")                                                                  \
    X(ONE_WAY, "one-way cuts")                                                                     \
    X(PARTITION, "partitions in two")                                                              \
    X(ISOLATE, "machines cut off")                                                                 \
    X(KILL, "processes killed")                                                                    \
    X(POWER, "power cuts")                                                                         \
    X(TORN, "power cuts within a write")                                                           \
    X(ALL_DOWN, "power cuts of all machines at once")                                              \
    X(PAUSE, "processes paused")                                                                   \
    X(SLOW_DISK, "slow disks")                                                                     \
    X(FULL, "full disks")                                                                          \
    X(EIO, "failing log writes")                                                                   \
    X(STORE, "failing commits of the bottom store")                                                \
    X(ROT_LOG, "flipped bits in a log")                                                            \
    X(ROT_STORE, "flipped bits in a bottom store")                                                 \
    X(WIPE, "disks lost and machines replaced")                                                    \
    X(JUMP, "jumps of a wall clock")                                                               \
    X(DRIFT, "changes of a clock's rate")                                                          \
    X(JOIN, "nodes that joined")                                                                   \
    X(REMOVE, "members removed")                                                                   \
    X(TRANSFER, "leader transfers")                                                                \
    X(STOP, "clean stops")

#define SIM_FAULT_ENUM(name, text) SIM_FAULT_##name,
enum sim_fault { SIM_FAULT_MAP(SIM_FAULT_ENUM) SIM_FAULTS };

/* What the system was seen doing. */
#define SIM_SEEN_MAP(X)                                                                            \
    X(ELECTIONS, "elections")                                                                      \
    X(SNAPSHOTS, "snapshots received")                                                             \
    X(LOG_CATCH_UPS, "catch-ups from the log on disk")                                             \
    X(CONFIG_CHANGES, "changes of configurations")                                                 \
    X(FORWARDED, "requests forwarded")                                                             \
    X(CHECKPOINTS, "checkpoints")                                                                  \
    X(DIVERGENCES, "divergences found by hashes")                                                  \
    X(REPAIRS, "repairs")                                                                          \
    X(DAMAGED_STARTS, "starts that found damage")                                                  \
    X(TORN_TAILS, "torn tails")                                                                    \
    X(STOPS, "nodes that stopped for lost durability")                                             \
    X(OPERATIONS, "client operations")                                                             \
    X(ACKNOWLEDGED, "acknowledged")                                                                \
    X(UNKNOWN, "of unknown outcome")                                                               \
    X(REFUSED, "certainly not applied")                                                            \
    X(FRAMES, "frames delivered")                                                                  \
    X(FRAMES_LOST, "frames lost")                                                                  \
    X(FILTERED, "duplicates filtered")                                                             \
    X(OVERTAKEN, "frames overtaken by another lane")                                               \
    X(STALLS, "connections stalled")                                                               \
    X(LANE_FULL, "sends refused for a full lane")                                                  \
    X(LEASES, "runs with leases")                                                                  \
    X(KEYS, "keys whose history was judged")                                                       \
    X(GAVE_UP, "keys whose history was too hard to judge")

#define SIM_SEEN_ENUM(name, text) SIM_SEEN_##name,
enum sim_seen { SIM_SEEN_MAP(SIM_SEEN_ENUM) SIM_SEEN };

enum {
    SIM_HEALED_MS = 10000, /* a write to every range commits within this after the last fault */
    SIM_CONVERGED_MS = 120000, /* all replicas are whole within this */
};

struct sim_cluster_options {
    uint64_t seed;
    uint32_t nodes; /* 3..7 */
    uint64_t ticks; /* of 10 ms, with faults */
    const char *scenario; /* NULL: drawn from the seed */
    int verbose;
};

struct sim_cluster_result {
    enum sim_outcome outcome;
    const char *scenario;
    uint64_t trace_hash;
    uint64_t simulated_ms;
    uint64_t events; /* turns of nodes */
    char detail[512]; /* what was violated */
    uint64_t faults[SIM_FAULTS];
    uint64_t seen[SIM_SEEN];
};

/* Runs one seed. */
void sim_cluster_run(const struct sim_cluster_options *options, struct sim_cluster_result *result);
/* Names of the scenarios, ending with NULL. */
const char *const *sim_cluster_scenarios(void);
const char *sim_fault_text(enum sim_fault fault);
const char *sim_seen_text(enum sim_seen seen);

#endif
