#ifndef CLUSTER_NET_GATE_H
#define CLUSTER_NET_GATE_H

#include "base/io.h"
#include "cluster/envelope.h"

/* Whom a node believes: which process speaks for which number, and which envelopes are new. Pure.
 *
 * A process is named by its boot, a random number; a folder counts its starts (incarnation). Rules:
 *
 * - One process speaks for a node number: the one with the highest incarnation seen. An older one, or another of the
 *   same incarnation while the first is alive, is a clone and is refused.
 * - Frames count only after their process has said hello, only if they name our own boot (which they learned from our
 *   welcome), and only if their sequence number is above all before: what was recorded once can never be played
 *   again, neither to this process nor to the next.
 * - A node without a number (it wants to join) speaks under number 0; several may at the same time.
 *
 * Not decided here: whether the number is a member, and whether its store id is the right one. */

enum gate_verdict {
    GATE_OK,
    GATE_REFUSED_CLUSTER, /* hello of another cluster */
    GATE_REFUSED_CLONE, /* hello of an old or second process of the number */
    GATE_SENSELESS, /* contradicts itself */
    GATE_STALE, /* names another process of ours: recorded, or in flight when we started */
    GATE_MISADDRESSED, /* for another number */
    GATE_STRANGER, /* no hello before, or of a process that was replaced */
    GATE_DUPLICATE,
};

enum {
    GATE_JOINERS_MAX = 64,
    GATE_ALIVE_MS = 2000, /* a process heard within this time is alive, even without a connection */
};

struct gate_sender {
    struct net_peer peer;
    uint8_t cluster_id[16];
    /* by whether they address us by number: two connections of a lane, if the sender has us as peer twice */
    uint32_t pipes[2][NET_LANES]; /* where frames came from last; 0: nowhere */
    uint64_t seq[2][NET_LANES]; /* last accepted */
    uint64_t heard_ms;
    struct gate_sender *next; /* of the members heard */
};

struct net_gate {
    struct net_identity self;
    uint64_t boot;
    struct gate_sender **members; /* by number; NULL: never heard */
    struct gate_sender *heard; /* all of them */
    struct gate_sender joiners[GATE_JOINERS_MAX]; /* boot 0: free */
};

/* `boot` is not 0. */
enum err gate_init(struct net_gate *gate, uint64_t boot) MUST_CHECK;
void gate_deinit(struct net_gate *gate);
/* Who we are, from now on. Joiners that became members say hello again. */
void gate_set_identity(struct net_gate *gate, const struct net_identity *self);

/* A hello came in. GATE_OK: its process now speaks for its number. Hellos can be played again, therefore one of a
 * process known already changes nothing. */
enum gate_verdict gate_hello(struct net_gate *gate, const struct envelope *hello,
    const uint8_t store_id[16], uint64_t now_ms);

/* May the frames in this envelope, come on connection `pipe`, be delivered? GATE_OK: yes, as from *from_out.
 * `old_pipe_out` is the connection that this one has replaced, or 0. */
enum gate_verdict gate_frames(struct net_gate *gate, const struct envelope *frames, uint32_t pipe,
    uint64_t now_ms, struct net_peer *from_out, uint32_t *old_pipe_out);

/* A welcome or a refusal came back on a connection of ours to `node` (0: whoever listens there), whose hello carried
 * `nonce`. GATE_OK: it is the answer to it. */
enum gate_verdict gate_answer(
    const struct net_gate *gate, const struct envelope *answer, uint16_t node, uint64_t nonce);

/* A connection to us broke. True, with its number, if it was the control connection of a member's process
 * that knows us by number. */
bool gate_pipe_gone(struct net_gate *gate, uint32_t pipe, uint16_t *node_out);

#endif
