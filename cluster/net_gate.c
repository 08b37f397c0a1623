#include "cluster/net_gate.h"

#include <stdlib.h>

#include "base/check.h"

enum { NUMBERS = 1 << 16 };

static const uint8_t no_cluster[16];

static bool same_cluster(const uint8_t a[16], const uint8_t b[16])
{
    return memcmp(a, b, 16) == 0;
}

enum err gate_init(struct net_gate *gate, uint64_t boot)
{
    ASSERT(boot != 0);
    *gate = (struct net_gate){.boot = boot};
    /* half a megabyte of address space; pages come as numbers are heard */
    gate->members = calloc(NUMBERS, sizeof(struct gate_sender *));
    return gate->members == NULL ? ERR_NOMEM : OK;
}

void gate_deinit(struct net_gate *gate)
{
    while (gate->heard != NULL) {
        struct gate_sender *next = gate->heard->next;
        free(gate->heard);
        gate->heard = next;
    }
    free(gate->members);
    *gate = (struct net_gate){0};
}

void gate_set_identity(struct net_gate *gate, const struct net_identity *self)
{
    ASSERT((self->node == 0) == same_cluster(self->cluster_id, no_cluster));
    gate->self = *self;
}

static bool alive(const struct gate_sender *sender, uint64_t now_ms)
{
    return sender->pipes[1][NET_CONTROL] != 0 || now_ms - sender->heard_ms < GATE_ALIVE_MS;
}

/* May the sender's cluster speak to us? A node that has none listens to every cluster: it asked one to take it. */
static bool cluster_fits(const struct net_gate *gate, const uint8_t cluster_id[16])
{
    return gate->self.node == 0 || same_cluster(cluster_id, gate->self.cluster_id);
}

/* A joiner says so, and nobody else does. */
static bool names_fit(const struct envelope *envelope)
{
    bool join = (envelope->flags & ENVELOPE_JOIN) != 0;
    return envelope->from_boot != 0 && join == (envelope->from == 0) &&
        join == same_cluster(envelope->cluster_id, no_cluster);
}

static struct gate_sender *joiner_find(struct net_gate *gate, uint64_t boot)
{
    for (size_t i = 0; i < GATE_JOINERS_MAX; i++) {
        if (gate->joiners[i].peer.boot == boot) return &gate->joiners[i];
    }
    return NULL;
}

/* A free place, or that of the joiner heard longest ago: what it sent before could then be played again, which is why
 * asking to join must be harmless to repeat. */
static struct gate_sender *joiner_place(struct net_gate *gate)
{
    struct gate_sender *oldest = &gate->joiners[0];
    for (size_t i = 0; i < GATE_JOINERS_MAX; i++) {
        struct gate_sender *sender = &gate->joiners[i];
        if (sender->peer.boot == 0) return sender;
        if (sender->heard_ms < oldest->heard_ms) oldest = sender;
    }
    return oldest;
}

static enum gate_verdict may_speak_for(
    const struct net_gate *gate, const struct envelope *hello, uint64_t now_ms)
{
    if (hello->from == gate->self.node) return GATE_REFUSED_CLONE;
    const struct gate_sender *known = gate->members[hello->from];
    if (known == NULL || known->peer.boot == hello->from_boot) return GATE_OK;
    /* of another cluster: heard before we belonged to one */
    if (!same_cluster(known->cluster_id, hello->cluster_id)) return GATE_OK;
    if (hello->incarnation < known->peer.incarnation && !PLANTED_BUG(39)) return GATE_REFUSED_CLONE;
    if (hello->incarnation == known->peer.incarnation && alive(known, now_ms))
        return GATE_REFUSED_CLONE;
    return GATE_OK;
}

static struct gate_sender *sender_for(struct net_gate *gate, const struct envelope *hello)
{
    if (hello->from == 0) {
        struct gate_sender *known = joiner_find(gate, hello->from_boot);
        return known != NULL ? known : joiner_place(gate);
    }
    struct gate_sender *known = gate->members[hello->from];
    if (known == NULL) {
        known = calloc(1, sizeof *known);
        if (known == NULL) return NULL;
        known->next = gate->heard;
        gate->heard = gate->members[hello->from] = known;
    }
    return known;
}

enum gate_verdict gate_hello(struct net_gate *gate, const struct envelope *hello,
    const uint8_t store_id[16], uint64_t now_ms)
{
    ASSERT(hello->kind == ENVELOPE_HELLO);
    if (!names_fit(hello) || hello->from_boot == gate->boot) return GATE_SENSELESS;
    if (hello->from != 0) {
        if (!cluster_fits(gate, hello->cluster_id)) return GATE_REFUSED_CLUSTER;
        enum gate_verdict verdict = may_speak_for(gate, hello, now_ms);
        if (verdict != GATE_OK) return verdict;
    }
    struct gate_sender *sender = sender_for(gate, hello);
    if (sender == NULL) return GATE_STRANGER; /* no memory: it will say hello again */
    if (sender->peer.boot == hello->from_boot) return GATE_OK;
    *sender = (struct gate_sender){
        .peer = {.node = hello->from, .boot = hello->from_boot, .incarnation = hello->incarnation},
        .heard_ms = now_ms,
        .next = sender->next,
    };
    memcpy(sender->peer.store_id, store_id, 16);
    memcpy(sender->cluster_id, hello->cluster_id, 16);
    return GATE_OK;
}

enum gate_verdict gate_frames(struct net_gate *gate, const struct envelope *frames, uint32_t pipe,
    uint64_t now_ms, struct net_peer *from_out, uint32_t *old_pipe_out)
{
    ASSERT(frames->kind == ENVELOPE_FRAMES);
    *old_pipe_out = 0;
    if (!names_fit(frames)) return GATE_SENSELESS;
    if (frames->to_boot != gate->boot && !PLANTED_BUG(38)) return GATE_STALE;
    if (frames->to != 0 && frames->to != gate->self.node) return GATE_MISADDRESSED;
    if (frames->from != 0 && !cluster_fits(gate, frames->cluster_id)) return GATE_STRANGER;
    struct gate_sender *sender =
        frames->from == 0 ? joiner_find(gate, frames->from_boot) : gate->members[frames->from];
    if (sender == NULL || sender->peer.boot != frames->from_boot) return GATE_STRANGER;
    if (!same_cluster(sender->cluster_id, frames->cluster_id)) return GATE_STRANGER;
    int by_number = frames->to != 0;
    uint64_t *seq = &sender->seq[by_number][frames->lane];
    if (frames->seq <= *seq && !PLANTED_BUG(40)) return GATE_DUPLICATE;
    *seq = frames->seq;
    uint32_t *known_pipe = &sender->pipes[by_number][frames->lane];
    if (*known_pipe != pipe) *old_pipe_out = *known_pipe;
    *known_pipe = pipe;
    sender->heard_ms = now_ms;
    *from_out = sender->peer;
    return GATE_OK;
}

enum gate_verdict gate_answer(
    const struct net_gate *gate, const struct envelope *answer, uint16_t node, uint64_t nonce)
{
    if (answer->to_boot != gate->boot || answer->seq != nonce) return GATE_STALE;
    if (!names_fit(answer) || answer->from_boot == gate->boot) return GATE_SENSELESS;
    if (answer->kind != ENVELOPE_WELCOME) return GATE_OK;
    if (node != 0 && answer->from != node) return GATE_MISADDRESSED;
    if (answer->from != 0 && !cluster_fits(gate, answer->cluster_id)) return GATE_STRANGER;
    const struct gate_sender *known = answer->from == 0 ? NULL : gate->members[answer->from];
    if (known != NULL && same_cluster(known->cluster_id, answer->cluster_id) &&
        answer->incarnation < known->peer.incarnation) {
        return GATE_STRANGER;
    }
    return GATE_OK;
}

static bool forget_pipe(struct gate_sender *sender, uint32_t pipe)
{
    bool control = sender->pipes[1][NET_CONTROL] == pipe;
    for (int lane = 0; lane < NET_LANES; lane++) {
        if (sender->pipes[0][lane] == pipe) sender->pipes[0][lane] = 0;
        if (sender->pipes[1][lane] == pipe) sender->pipes[1][lane] = 0;
    }
    return control;
}

bool gate_pipe_gone(struct net_gate *gate, uint32_t pipe, uint16_t *node_out)
{
    ASSERT(pipe != 0);
    for (size_t i = 0; i < GATE_JOINERS_MAX; i++) {
        forget_pipe(&gate->joiners[i], pipe);
    }
    for (struct gate_sender *sender = gate->heard; sender != NULL; sender = sender->next) {
        if (!forget_pipe(sender, pipe)) continue;
        *node_out = sender->peer.node;
        return true;
    }
    return false;
}
