#ifndef SIM_SIM_NET_H
#define SIM_SIM_NET_H

#include "base/io.h"

/* The network between simulated machines: lanes as base/io.h promises them, over wires that fail as
 * the seed says.
 *
 * Model. A machine has one address ("10.0.0.N:7381", N its number here) and at most one process. A
 * peer that is set is a connection with three lanes, each a queue in order; the lanes delay their
 * frames independently, so that frames of different lanes overtake each other. A connection is
 * attempted again and again until the process at the address listens and both directions pass.
 * While it does not stand, frames wait in their lanes. A cut direction holds frames back, as a
 * retransmitting transport does; after a second the connection breaks and what was under way is
 * lost, so "sent" never means delivered. A process that dies breaks its connections at once; a
 * machine that loses power says nothing. Beyond what such transports do, single frames may vanish
 * (loss), and may arrive again later below the transport, whose sequence numbers must then filter
 * them.
 *
 * Everything random is drawn from the seed; time is what the caller says; one thread. */

enum { SIM_NET_MACHINES_MAX = 16 };

struct sim_net;

struct sim_net_weather {
    uint64_t delay_min_ns, delay_max_ns;
    uint32_t loss_ppm; /* a frame vanishes */
    uint32_t slow_ppm; /* a frame takes up to slow_ns longer */
    uint64_t slow_ns;
    uint32_t duplicate_ppm; /* a frame comes again below the transport */
    uint32_t reset_ppm; /* per frame: the connection breaks */
};

struct sim_net_counts {
    uint64_t sent, delivered, lost, vanished, held, late, duplicated, filtered, overtaken, refused,
        resets, stalls, downs, ups;
    uint64_t
        foreign; /* refused by the receiver's transport: other cluster, other addressee, older process */
};

struct sim_net *sim_net_create(uint64_t seed);
void sim_net_destroy(struct sim_net *net);
/* The table for the process on machine `machine`; calls of a process that does not run do nothing. */
struct net sim_net_table(struct sim_net *net, unsigned machine);
/* "10.0.0.N:7381"; `at` has room for 24. */
void sim_net_address(unsigned machine, char *at);

/* A process begins (it listens once start() was called) ... */
void sim_net_up(struct sim_net *net, unsigned machine, uint64_t boot);
/* ... and ends; silent: without a word to its peers (power cut). */
void sim_net_down(struct sim_net *net, unsigned machine, bool silent);
/* Time moves on. */
void sim_net_run_until(struct sim_net *net, uint64_t now_ns);
/* When a poll() of the machine has something to do; UINT64_MAX: nothing in sight. */
uint64_t sim_net_next_due(const struct sim_net *net, unsigned machine);

void sim_net_set_weather(struct sim_net *net, const struct sim_net_weather *weather);
/* Nothing passes in this direction (or everything again). */
void sim_net_cut(struct sim_net *net, unsigned from, unsigned to, bool cut);
bool sim_net_is_cut(const struct sim_net *net, unsigned from, unsigned to);
/* Breaks what connections there are between the two. */
void sim_net_reset(struct sim_net *net, unsigned a, unsigned b);
void sim_net_counts(const struct sim_net *net, struct sim_net_counts *out);
/* Hash of everything delivered so far. */
uint64_t sim_net_hash(const struct sim_net *net);

#endif
