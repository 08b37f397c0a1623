#ifndef SIM_SIM_CLUSTER_INTERNAL_H
#define SIM_SIM_CLUSTER_INTERNAL_H

#include "base/check.h"
#include "base/prng.h"
#include "cluster/node/join.h"
#include "cluster/node/node.h"
#include "sim/sim_clock.h"
#include "sim/sim_cluster.h"
#include "sim/sim_disk.h"
#include "sim/sim_kv.h"

/* What the files of the cluster simulator share; nobody else includes this. */

enum {
    MACHINES_MAX = 10,
    RANGES_MAX = 4,
    GROUPS_MAX = RANGES_MAX + 1,
    MILLISECOND = 1000000,
    TICK_NS = 10 * MILLISECOND,
    SLOT_SIZE = 64 * 1024,
};

enum machine_state {
    MACHINE_EMPTY, /* no folder: may join */
    MACHINE_JOINING,
    MACHINE_RUNNING,
    MACHINE_STOPPING, /* hands over, then stops cleanly */
    MACHINE_DOWN, /* has a folder, no process */
    MACHINE_DAMAGED, /* refused to start: to be replaced */
};

/* What the monitor remembers of a group on one machine while its process lives. */
struct watched {
    bool leads;
    uint64_t term, applied, committed;
};

struct machine {
    struct sim_cluster *cluster;
    unsigned index;
    enum machine_state state;
    struct sim_disk *disk;
    struct sim_clock clock;
    struct io io;
    char store[16], folder[SIM_KV_FOLDER];
    char peer_address[24], resp_address[24], http_address[24];

    /* the identity file */
    uint8_t cluster_id[16], store_id[16];
    uint16_t number; /* 0: none yet */
    uint64_t incarnation;
    char name[64];
    uint32_t ranges, replicas;
    struct join_peer peers[JOIN_PEERS_MAX];
    uint32_t peer_count;
    bool made; /* the folder has been opened once */
    bool founder; /* starts the cluster */
    bool leases;

    struct node *node;
    struct join join;
    bool replacing; /* joins in the place of a dead member of its name */
    uint64_t next_tick_ns, poll_ns, restart_ns, paused_until_ns, stop_by_ns;
    bool in_turn;
    bool excused; /* an error may come from what was injected */
    bool tainted; /* its data is damaged or lost: until the cluster is whole again */
    bool silent_damage; /* a stored value of it was damaged some time */
    bool removing, removed; /* as the operator sees it */
    bool removal_asked; /* some time: an answer that never came may still have been obeyed */
    struct watched watched[GROUPS_MAX];
    const char *seeds[MACHINES_MAX + 1];
};

struct scenario {
    const char *name;
    /* per million and tick: a fault of the kind begins; 0: never */
    uint32_t rates[SIM_FAULTS];
};

struct nemesis {
    struct prng prng;
    struct sim_net_weather weather;
    uint64_t weather_until_ns[4];
    uint64_t cut_until_ns, slow_until_ns[MACHINES_MAX], full_until_ns[MACHINES_MAX];
    struct scenario scenario;
};

struct admin {
    struct node_request request;
    bool busy;
    unsigned via, target;
    enum node_admin what;
};

struct monitor {
    /* who was seen to lead a group in a term: a table by hash of both */
    struct led {
        uint64_t term;
        uint16_t group, leader;
    } * led;
    size_t led_count, led_capacity;
};

struct workload; /* sim_workload.c */

struct sim_cluster {
    const struct sim_cluster_options *options;
    struct sim_cluster_result *result;
    struct prng prng;
    uint64_t now_ns;
    uint64_t hash;
    bool violated;
    bool chaos;
    uint32_t ranges, replicas;
    struct sim_net *net;
    struct sim_kv_world *stores;
    struct machine machines[MACHINES_MAX];
    unsigned machine_count; /* founders and spares */
    unsigned member_count; /* that join at the begin */
    struct nemesis nemesis;
    struct admin admin;
    struct monitor monitor;
    struct workload *workload;
};

void sim_cluster_violation(struct sim_cluster *cluster, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void sim_cluster_trace(struct sim_cluster *cluster, uint64_t event, uint64_t detail);
/* With --verbose: one line about what happens. */
void sim_cluster_note(struct sim_cluster *cluster, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* ---- sim_machine.c: one machine ---- */

void machine_init(struct sim_cluster *cluster, unsigned index);
void machine_deinit(struct machine *machine);
/* A process that answers requests. */
bool machine_serves(const struct machine *machine);
bool machine_has_process(const struct machine *machine);
/* Starts the cluster (founder), or what its folder holds. */
void machine_start(struct machine *machine);
/* Joins with an empty folder; `replace`: in the place of the member of the machine's name. */
void machine_join(struct machine *machine, bool replace);
/* The process ends now; power: and with it everything not synced. Starts again after `down_ns`. */
void machine_crash(struct machine *machine, bool power, uint64_t down_ns);
/* Hands over and stops; starts again after `down_ns`. */
void machine_stop(struct machine *machine, uint64_t down_ns);
/* No process any more and an empty disk. */
void machine_wipe(struct machine *machine);
void machine_pause(struct machine *machine, uint64_t ns);
/* When the machine wants a turn. */
uint64_t machine_due(const struct machine *machine);
/* One turn of its loop; request: to be started in it, or NULL. */
struct machine_call {
    struct node_request *request;
    uint16_t range;
    struct bytes body;
};
void machine_turn(struct machine *machine, const struct machine_call *call);

/* ---- sim_workload.c: clients ---- */

struct workload *workload_new(struct sim_cluster *cluster);
void workload_free(struct workload *workload);
/* The node's execute(): this machine leads the range. */
bool workload_execute(struct machine *machine, struct node_execution *execution);
/* When a client wants to do something; UINT64_MAX: never. */
uint64_t workload_due(const struct workload *workload);
void workload_step(struct workload *workload);
/* The process of the machine ends: what clients wait for there is unknown. */
void workload_process_ends(struct workload *workload, unsigned machine);
/* No new operations; what is under way goes on. */
/* A request that was never answered is a violation. */
void workload_check_patience(struct workload *workload);
void workload_pause(struct workload *workload, bool pause);
bool workload_idle(const struct workload *workload);
/* One write to each group from now on; false: some are still missing. */
void workload_probe_start(struct workload *workload);
bool workload_probe_done(const struct workload *workload);
/* Reads every key once more and has the histories checked. */
void workload_finish_start(struct workload *workload);
bool workload_finish_done(const struct workload *workload);
void workload_check(struct workload *workload);

/* ---- sim_monitor.c: what must hold ---- */

/* After a turn of the machine. */
void monitor_machine(struct machine *machine);
/* The machine's process ended: a new one may begin lower. */
void monitor_process_ends(struct machine *machine);
/* Every group has a leader and as many voters as it wants, all of them caught up and none under repair. */
bool monitor_whole(struct sim_cluster *cluster, char *why, size_t why_size);
/* All replicas have applied all there is. */
bool monitor_quiet(struct sim_cluster *cluster, char *why, size_t why_size);
/* All replicas have the same content. */
void monitor_compare(struct sim_cluster *cluster);
void monitor_collect(struct machine *machine);
void monitor_deinit(struct monitor *monitor);
/* The machine that the others' member table knows by this number; NULL: none. */
struct machine *monitor_machine_of(struct sim_cluster *cluster, uint16_t number);
/* A node that leads the group as far as it knows; NULL: none. */
struct machine *monitor_leader(struct sim_cluster *cluster, uint16_t group, struct node_range *out);

/* ---- sim_nemesis.c: faults ---- */

void nemesis_init(struct sim_cluster *cluster);
/* Every 10 ms of true time. */
void nemesis_step(struct sim_cluster *cluster);
/* Ends all faults and starts what is down. */
void nemesis_heal(struct sim_cluster *cluster);
/* Keeps machines that must be replaced or started moving, with or without chaos. */
void nemesis_tend(struct sim_cluster *cluster);
void nemesis_process_ends(struct sim_cluster *cluster, unsigned machine);

#endif
