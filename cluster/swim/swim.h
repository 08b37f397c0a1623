#ifndef CLUSTER_SWIM_SWIM_H
#define CLUSTER_SWIM_SWIM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/err.h"
#include "base/prng.h"

/* Failure detector of one node: SWIM (Das, Gupta, Motivala 2002) with the three parts of Lifeguard (Dadgar,
 * Phillips, Currey 2018). Pure: no I/O, no clock, no memory of its own making, and no randomness but
 * its seeded generator.
 *
 * What it says is a hint. It may choose a route, wake somebody or colour a page; it never adds or removes
 * a voter and never changes the size of a quorum.
 *
 * Who exists comes from the committed member table (swim_set_member); a packet never adds anybody. What is
 * known of a member only moves up in the order (incarnation, ALIVE < SUSPECT < DEAD < LEFT), and only the
 * member itself raises its incarnation, so that a replayed packet changes nothing. A node that is wrongly
 * accused learns of it from any message, raises its incarnation and is taken back, also when it had been
 * declared dead. A restart outranks everything said of earlier lives: incarnations start at boot counter << 16.
 *
 * Outputs (messages, events) are in the struct and valid until the next swim_step, swim_tick or swim_leave. The
 * host sends the messages as they are, in any order; loss, repetition and delay are expected. It calls swim_tick
 * about every tick_ms; a late call is understood as this node having been stalled: its own timers do not run
 * meanwhile, and it trusts itself less. */

enum {
    SWIM_PEERS_MAX = 256,
    SWIM_MESSAGE_MAX = 1200, /* bytes of an encoded message */
    SWIM_MESSAGES_MAX = 24, /* out of one call */
    SWIM_HEALTH_MAX = 7,
    SWIM_CONFIRMERS_MAX = 4,
    SWIM_PROBES_MAX = 8,
    SWIM_RELAYS_MAX = 32,
    SWIM_INDIRECT_MAX = 3,
};

/* Higher incarnations are refused as damaged; a refutation never reaches it. */
#define SWIM_INCARNATION_MAX (UINT64_C(1) << 62)

/* In the order in which they override each other at the same incarnation. */
enum swim_state { SWIM_ALIVE, SWIM_SUSPECT, SWIM_DEAD, SWIM_LEFT };

struct swim_settings {
    uint32_t tick_ms; /* 100: how often the host means to call swim_tick */
    uint32_t
        probe_ms; /* 1000: one peer is probed in each such period (two periods if there is one peer) */
    uint32_t timeout_ms; /* 100: for an answer, plus the smoothed round trip time */
    uint32_t gossip_ms; /* 200: while there is news, it is told this often */
    uint32_t suspicion_ms; /* 1000: a suspect has at least this long to defend itself */
    uint32_t suspicion_factor; /* 6: and this many times as long as long as nobody else confirms */
    uint32_t
        indirect; /* 3: peers asked to probe one that does not answer; at most SWIM_INDIRECT_MAX */
    uint32_t fanout; /* 2: peers told per gossip_ms */
    bool lifeguard; /* true; false only to compare */
};

/* The defaults above, good for up to about 32 nodes. */
struct swim_settings swim_settings_default(void);

struct swim_message {
    uint16_t to;
    uint16_t size;
    uint8_t bytes[SWIM_MESSAGE_MAX];
};

/* The state of a member is another than at the end of the previous call. */
struct swim_event {
    uint16_t node;
    enum swim_state before, state;
    uint64_t incarnation;
};

struct swim_peer {
    uint16_t node;
    uint8_t state, reported; /* enum swim_state */
    bool connected; /* last hint of the transport */
    bool urgent; /* probe out of turn */
    uint8_t sends; /* how often the state below was told; at the limit it is no news */
    uint8_t confirmer_count; /* who accuses it; the first started the suspicion */
    uint16_t confirmers[SWIM_CONFIRMERS_MAX];
    uint64_t store; /* of the member table */
    uint64_t incarnation; /* 0: never heard of */
    uint64_t suspect_ms; /* since when */
    uint64_t probed_ms;
    uint32_t rtt_ms; /* smoothed */
};

struct swim_probe {
    uint16_t target; /* 0: free */
    bool asked; /* helpers have been asked */
    bool regular; /* of the round, not out of turn */
    uint8_t helper_count, nacks;
    uint16_t helpers[SWIM_INDIRECT_MAX];
    uint32_t sequence;
    uint64_t start_ms, ask_ms, end_ms;
};

/* A probe made for somebody else. */
struct swim_relay {
    uint16_t target, asker; /* target 0: free */
    bool nacked;
    uint32_t sequence, asker_sequence;
    uint64_t nack_ms, end_ms;
};

struct swim_counters {
    uint64_t malformed; /* messages that do not decode */
    uint64_t
        foreign; /* messages from, or updates about, nodes that are no members; messages for somebody else */
    uint64_t refuted; /* accusations of this node it has answered */
    uint64_t stalls; /* calls that came late */
    uint64_t probes, failed_probes;
    uint64_t sent, dropped; /* messages; dropped: too many for one call */
};

struct swim {
    struct swim_settings settings;
    struct prng prng;
    uint16_t self;
    bool left;
    uint8_t health; /* 0: good .. SWIM_HEALTH_MAX; stretches this node's own probe times */
    uint8_t sends; /* as in struct swim_peer, of the news about this node */
    uint64_t incarnation;
    uint64_t host_ms; /* of the last call */
    uint64_t clock_ms; /* time awake: all times in here */
    uint64_t next_probe_ms, next_revive_ms, next_gossip_ms;
    uint32_t sequence;
    uint32_t peer_count;
    struct swim_peer peers[SWIM_PEERS_MAX]; /* sorted by node */
    uint32_t ring_at, ring_count;
    uint16_t ring[SWIM_PEERS_MAX]; /* who is probed in this round, shuffled */
    uint32_t revive_at, sync_at; /* cursors into peers */
    struct swim_probe probes[SWIM_PROBES_MAX];
    struct swim_relay relays[SWIM_RELAYS_MAX];
    struct swim_counters counters;

    uint32_t message_count, event_count;
    struct swim_message messages[SWIM_MESSAGES_MAX];
    struct swim_event events[SWIM_PEERS_MAX];
};

/* Nodes are not 0. The host passes boot counter << 16, the counter raised and made durable before this call. */
void swim_init(struct swim *swim, uint16_t self, uint64_t incarnation,
    const struct swim_settings *settings, uint64_t seed, uint64_t now_ms);

/* The member table has `node` with this store: a node it did not have, or has with another store, starts as
 * ALIVE, without an event, and is probed within the round. Nothing happens for the node itself. ERR_TOO_LARGE: beyond
 * SWIM_PEERS_MAX. */
enum err swim_set_member(struct swim *swim, uint16_t node, uint64_t store) MUST_CHECK;
/* The member table has `node` no longer: it is forgotten at once, without an event. */
void swim_remove_member(struct swim *swim, uint16_t node);

/* A message from `from`, which the transport has authenticated. What cannot be decoded, does not come from a
 * member or is not for this node is counted and has no effect. */
void swim_step(struct swim *swim, uint16_t from, struct bytes message, uint64_t now_ms);
/* Time passes. */
void swim_tick(struct swim *swim, uint64_t now_ms);
/* The transport saw a connection come or go. Only makes the next tick probe that node; no output. */
void swim_hint(struct swim *swim, uint16_t node, bool up);
/* This node goes on purpose: tells it to as many as fit into one call (the host sends what comes out; later ticks
 * tell the others), does not defend itself any more and accuses nobody. It still answers. */
void swim_leave(struct swim *swim, uint64_t now_ms);

/* ALIVE for the node itself until it left; DEAD for nodes that are no members. */
enum swim_state swim_state(const struct swim *swim, uint16_t node);
/* Incarnation known of a member or of this node; 0: never heard of. Own: boot counter << 16 plus refutations; should
 * it ever reach the next boot counter, the host raises its stored counter to incarnation >> 16. */
uint64_t swim_incarnation(const struct swim *swim, uint16_t node);
/* Smoothed round trip time to a member; 0: not known. */
uint32_t swim_rtt_ms(const struct swim *swim, uint16_t node);
/* "alive", "suspect", "dead", "left". */
const char *swim_state_name(enum swim_state state);

#endif
