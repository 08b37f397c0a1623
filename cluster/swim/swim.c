#include "cluster/swim/swim.h"

#include "base/check.h"
#include "cluster/swim/wire.h"

/* Time. All deadlines are in time awake (clock_ms): a call that comes later than two ticks means that this
 * process did not run, so the answers it waits for may lie unread in its queues. Counting such time
 * against the peers is how a slow node accuses everybody.
 *
 * Spreading. What is new about a member (sends below a limit logarithmic in the number of members) goes
 * with every message, the least told first, and is told to some peers every gossip_ms. Each message also
 * has a few entries of the table in turn, which repairs what loss left behind, and what the sender thinks
 * of the receiver, so that nobody stays accused without hearing of it. */

enum {
    SYNC_PER_MESSAGE = 4,
    PROBE_ENDS_AFTER = 5, /* times the timeout: direct, then indirect there and back */
    HINT_SPACING_MS = 200,
    RTT_MAX_MS = 1000,
    NO_NEWS = UINT8_MAX,
    CONFIRMATIONS_MAX = 3,
};
_Static_assert(
    CONFIRMATIONS_MAX < (int)SWIM_CONFIRMERS_MAX, "the first accuser and all confirmations");

struct swim_settings swim_settings_default(void)
{
    return (struct swim_settings){
        .tick_ms = 100,
        .probe_ms = 1000,
        .timeout_ms = 100,
        .gossip_ms = 200,
        .suspicion_ms = 1000,
        .suspicion_factor = 6,
        .indirect = SWIM_INDIRECT_MAX,
        .fanout = 2,
        .lifeguard = true,
    };
}

const char *swim_state_name(enum swim_state state)
{
    switch (state) {
    case SWIM_ALIVE:
        return "alive";
    case SWIM_SUSPECT:
        return "suspect";
    case SWIM_DEAD:
        return "dead";
    case SWIM_LEFT:
        return "left";
    }
    UNREACHABLE();
}

void swim_init(struct swim *swim, uint16_t self, uint64_t incarnation,
    const struct swim_settings *settings, uint64_t seed, uint64_t now_ms)
{
    ASSERT(self != 0);
    ASSERT(incarnation > 0 && incarnation < SWIM_INCARNATION_MAX);
    ASSERT(settings->tick_ms > 0 && settings->probe_ms > 0 && settings->timeout_ms > 0);
    ASSERT(settings->gossip_ms > 0 && settings->suspicion_ms > 0);
    ASSERT(settings->suspicion_factor > 0);
    ASSERT(settings->indirect <= SWIM_INDIRECT_MAX);
    memset(swim, 0, sizeof *swim);
    swim->settings = *settings;
    prng_init(&swim->prng, seed ^ self);
    swim->self = self;
    swim->incarnation = incarnation;
    swim->host_ms = now_ms;
    swim->clock_ms = now_ms;
    swim->sequence = (uint32_t)prng_next(&swim->prng);
    /* nodes that start together do not probe together */
    swim->next_probe_ms = now_ms + prng_below(&swim->prng, settings->probe_ms);
    swim->next_revive_ms = now_ms + prng_below(&swim->prng, settings->probe_ms);
}

/* Members */

/* Index of the first peer that is not below `node`. */
static uint32_t peer_place(const struct swim *swim, uint16_t node)
{
    uint32_t low = 0, high = swim->peer_count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (swim->peers[middle].node < node)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static const struct swim_peer *peer_find(const struct swim *swim, uint16_t node)
{
    uint32_t place = peer_place(swim, node);
    if (place == swim->peer_count || swim->peers[place].node != node) return NULL;
    return &swim->peers[place];
}

static struct swim_peer *peer_of(struct swim *swim, uint16_t node)
{
    const struct swim_peer *peer = peer_find(swim, node);
    return peer == NULL ? NULL : &swim->peers[peer - swim->peers];
}

static bool peer_live(const struct swim_peer *peer)
{
    return peer->state == SWIM_ALIVE || peer->state == SWIM_SUSPECT;
}

static uint32_t live_count(const struct swim *swim)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < swim->peer_count; i++)
        count += peer_live(&swim->peers[i]);
    return count;
}

static void ring_remove(struct swim *swim, uint16_t node)
{
    uint32_t kept = swim->ring_at;
    for (uint32_t i = swim->ring_at; i < swim->ring_count; i++) {
        if (swim->ring[i] != node) swim->ring[kept++] = swim->ring[i];
    }
    swim->ring_count = kept;
}

/* Puts the node somewhere into what is left of the round, once. */
static void ring_insert(struct swim *swim, uint16_t node)
{
    ring_remove(swim, node);
    memmove(swim->ring, swim->ring + swim->ring_at,
        (swim->ring_count - swim->ring_at) * sizeof swim->ring[0]);
    swim->ring_count -= swim->ring_at;
    swim->ring_at = 0;
    ASSERT(swim->ring_count < SWIM_PEERS_MAX);
    uint32_t other = (uint32_t)prng_below(&swim->prng, ++swim->ring_count);
    swim->ring[swim->ring_count - 1] = swim->ring[other];
    swim->ring[other] = node;
}

/* Probes of and for a node that is no longer what it was. */
static void forget_work(struct swim *swim, uint16_t node)
{
    for (unsigned i = 0; i < SWIM_PROBES_MAX; i++) {
        if (swim->probes[i].target == node) swim->probes[i].target = 0;
    }
    for (unsigned i = 0; i < SWIM_RELAYS_MAX; i++) {
        if (swim->relays[i].target == node || swim->relays[i].asker == node)
            swim->relays[i].target = 0;
    }
}

enum err swim_set_member(struct swim *swim, uint16_t node, uint64_t store)
{
    ASSERT(node != 0);
    if (node == swim->self) return OK;
    uint32_t place = peer_place(swim, node);
    struct swim_peer *peer = &swim->peers[place];
    if (place < swim->peer_count && peer->node == node) {
        if (peer->store == store) return OK;
        forget_work(swim, node);
    } else {
        if (swim->peer_count == SWIM_PEERS_MAX) return ERR_TOO_LARGE;
        memmove(peer + 1, peer, (swim->peer_count - place) * sizeof *peer);
        swim->peer_count++;
    }
    *peer = (struct swim_peer){.node = node, .store = store, .sends = NO_NEWS};
    ring_insert(swim, node);
    return OK;
}

void swim_remove_member(struct swim *swim, uint16_t node)
{
    struct swim_peer *peer = peer_of(swim, node);
    if (peer == NULL) return;
    uint32_t after = swim->peer_count - (uint32_t)(peer - swim->peers) - 1;
    memmove(peer, peer + 1, after * sizeof *peer);
    swim->peer_count--;
    ring_remove(swim, node);
    forget_work(swim, node);
}

enum swim_state swim_state(const struct swim *swim, uint16_t node)
{
    if (node == swim->self) return swim->left ? SWIM_LEFT : SWIM_ALIVE;
    const struct swim_peer *peer = peer_find(swim, node);
    return peer == NULL ? SWIM_DEAD : (enum swim_state)peer->state;
}

uint64_t swim_incarnation(const struct swim *swim, uint16_t node)
{
    if (node == swim->self) return swim->incarnation;
    const struct swim_peer *peer = peer_find(swim, node);
    return peer == NULL ? 0 : peer->incarnation;
}

uint32_t swim_rtt_ms(const struct swim *swim, uint16_t node)
{
    const struct swim_peer *peer = peer_find(swim, node);
    return peer == NULL ? 0 : peer->rtt_ms;
}

/* Lifeguard's local health: how much this node trusts its own sense of time. */

static void health_worsen(struct swim *swim, unsigned by)
{
    if (!swim->settings.lifeguard) return;
    unsigned health = swim->health + by;
    swim->health = (uint8_t)(health < SWIM_HEALTH_MAX ? health : SWIM_HEALTH_MAX);
}

static void health_improve(struct swim *swim)
{
    if (swim->health > 0) swim->health--;
}

/* Each call begins here. */
static void begin(struct swim *swim, uint64_t now_ms)
{
    swim->message_count = 0;
    swim->event_count = 0;
    if (now_ms <= swim->host_ms) return;
    uint64_t passed = now_ms - swim->host_ms;
    uint64_t awake = 2 * (uint64_t)swim->settings.tick_ms;
    swim->host_ms = now_ms;
    if (swim->settings.lifeguard && passed > awake) {
        swim->counters.stalls++;
        health_worsen(swim, 1);
        passed = awake;
    }
    swim->clock_ms += passed;
}

/* And ends here. */
static void finish(struct swim *swim)
{
    for (uint32_t i = 0; i < swim->peer_count; i++) {
        struct swim_peer *peer = &swim->peers[i];
        ASSERT_IF(i > 0, swim->peers[i - 1].node < peer->node);
        ASSERT_IF(peer->state == SWIM_SUSPECT, peer->confirmer_count > 0);
        if (peer->state == peer->reported) continue;
        swim->events[swim->event_count++] = (struct swim_event){
            .node = peer->node,
            .before = (enum swim_state)peer->reported,
            .state = (enum swim_state)peer->state,
            .incarnation = peer->incarnation,
        };
        peer->reported = peer->state;
    }
    ASSERT(swim->health <= SWIM_HEALTH_MAX);
    ASSERT(swim->ring_at <= swim->ring_count);
    ASSERT(swim->ring_count <= SWIM_PEERS_MAX);
}

/* Sending */

static unsigned log2_ceil(uint32_t value)
{
    unsigned log = 0;
    while ((UINT32_C(1) << log) < value)
        log++;
    return log;
}

static unsigned sends_limit(const struct swim *swim)
{
    return 3 * log2_ceil(swim->peer_count + 2);
}

static void update_add(struct swim_wire *wire, const struct swim_peer *peer)
{
    if (wire->count == SWIM_UPDATES_MAX) return;
    for (unsigned i = 0; i < wire->count; i++) {
        if (wire->updates[i].node == peer->node) return;
    }
    struct swim_update *update = &wire->updates[wire->count++];
    *update = (struct swim_update){
        .node = peer->node, .state = peer->state, .incarnation = peer->incarnation};
    /* each accuser gets its turn, so that confirmations add up everywhere */
    if (peer->state == SWIM_SUSPECT)
        update->accuser = peer->confirmers[peer->sends % peer->confirmer_count];
}

static bool peer_known(const struct swim_peer *peer)
{
    return peer->incarnation > 0 || peer->state != SWIM_ALIVE;
}

static void add_news(struct swim *swim, struct swim_wire *wire)
{
    uint32_t news[SWIM_PEERS_MAX], count = 0;
    unsigned limit = sends_limit(swim);
    for (unsigned level = 0; level < limit; level++) {
        for (uint32_t i = 0; i < swim->peer_count; i++) {
            if (swim->peers[i].sends == level) news[count++] = i;
        }
    }
    for (uint32_t i = 0; i < count && wire->count < SWIM_UPDATES_MAX - SYNC_PER_MESSAGE; i++) {
        update_add(wire, &swim->peers[news[i]]);
        swim->peers[news[i]].sends++;
    }
    if (swim->sends < limit) swim->sends++; /* in the header of every message */
}

static void add_sync(struct swim *swim, struct swim_wire *wire)
{
    uint32_t looked = swim->peer_count < SYNC_PER_MESSAGE ? swim->peer_count : SYNC_PER_MESSAGE;
    for (uint32_t i = 0; i < looked; i++) {
        const struct swim_peer *peer = &swim->peers[swim->sync_at++ % swim->peer_count];
        if (peer_known(peer)) update_add(wire, peer);
    }
}

static void send(
    struct swim *swim, enum swim_type type, uint16_t to, uint16_t target, uint32_t sequence)
{
    if (swim->message_count == SWIM_MESSAGES_MAX) {
        swim->counters.dropped++;
        return;
    }
    struct swim_wire wire = {
        .type = (uint8_t)type,
        .state = swim->left ? SWIM_LEFT : SWIM_ALIVE,
        .target = target,
        .sequence = sequence,
        .incarnation = swim->incarnation,
    };
    const struct swim_peer *peer = peer_find(swim, to);
    ASSERT(peer != NULL);
    if (peer_known(peer)) update_add(&wire, peer);
    add_news(swim, &wire);
    add_sync(swim, &wire);
    struct swim_message *message = &swim->messages[swim->message_count++];
    message->to = to;
    message->size = swim_wire_encode(message->bytes, &wire);
    ASSERT(message->size <= SWIM_MESSAGE_MAX);
    swim->counters.sent++;
}

/* Up to `wanted` different peers for which `fits` says yes, other than `except`; returns how many. */
static unsigned pick(struct swim *swim, unsigned wanted, bool (*fits)(const struct swim_peer *),
    uint16_t except, uint16_t *nodes_out)
{
    uint16_t fitting[SWIM_PEERS_MAX];
    unsigned count = 0, picked = 0;
    for (uint32_t i = 0; i < swim->peer_count; i++) {
        if (swim->peers[i].node != except && fits(&swim->peers[i]))
            fitting[count++] = swim->peers[i].node;
    }
    for (; picked < wanted && picked < count; picked++) {
        unsigned other = picked + (unsigned)prng_below(&swim->prng, count - picked);
        nodes_out[picked] = fitting[other];
        fitting[other] = fitting[picked];
    }
    return picked;
}

/* What is known of a member */

/* The probe of `target` that runs; for 0 a free one. NULL: none. */
static struct swim_probe *probe_of(struct swim *swim, uint16_t target)
{
    for (unsigned i = 0; i < SWIM_PROBES_MAX; i++) {
        if (swim->probes[i].target == target) return &swim->probes[i];
    }
    return NULL;
}

static void probe_drop(struct swim *swim, uint16_t target)
{
    struct swim_probe *probe = probe_of(swim, target);
    if (probe != NULL) probe->target = 0;
}

static void peer_change(struct swim *swim, struct swim_peer *peer, uint64_t incarnation,
    enum swim_state state, uint16_t accuser)
{
    bool was_live = peer_live(peer);
    peer->incarnation = incarnation;
    peer->state = (uint8_t)state;
    peer->sends = 0;
    peer->confirmer_count = 0;
    if (state == SWIM_SUSPECT) {
        peer->suspect_ms = swim->clock_ms;
        peer->confirmers[peer->confirmer_count++] = accuser;
    }
    if (!was_live && peer_live(peer)) ring_insert(swim, peer->node);
    if (was_live && !peer_live(peer)) probe_drop(swim, peer->node);
}

static void peer_confirm(struct swim *swim, struct swim_peer *peer, uint16_t accuser)
{
    ASSERT(peer->state == SWIM_SUSPECT);
    if (!swim->settings.lifeguard || peer->confirmer_count == SWIM_CONFIRMERS_MAX) return;
    if (accuser == peer->node) return;
    if (accuser != swim->self && peer_find(swim, accuser) == NULL) return;
    for (unsigned i = 0; i < peer->confirmer_count; i++) {
        if (peer->confirmers[i] == accuser) return;
    }
    peer->confirmers[peer->confirmer_count++] = accuser;
    peer->sends = 0;
}

/* Somebody says this node is not what it is, or was more than it is (its boot counter went back). */
static void accused(struct swim *swim, const struct swim_update *update)
{
    if (swim->left || update->incarnation < swim->incarnation) return;
    if (update->state == SWIM_ALIVE && update->incarnation == swim->incarnation) return;
    if (update->incarnation >= SWIM_INCARNATION_MAX - 1) return;
    swim->incarnation = update->incarnation + 1;
    swim->sends = 0;
    swim->counters.refuted++;
    if (update->state != SWIM_ALIVE) health_worsen(swim, 1);
}

/* True if `update` says more than what is known of `peer`. */
static bool overrides(const struct swim_peer *peer, const struct swim_update *update)
{
    if (update->incarnation < peer->incarnation) return PLANTED_BUG(42);
    if (update->incarnation > peer->incarnation) return true;
    if (PLANTED_BUG(43) && peer->state == SWIM_DEAD && update->state == SWIM_ALIVE) return true;
    return update->state > peer->state;
}

static void take_update(struct swim *swim, const struct swim_update *update)
{
    if (update->node == swim->self) {
        accused(swim, update);
        return;
    }
    struct swim_peer *peer = peer_of(swim, update->node);
    if (peer == NULL) {
        swim->counters.foreign++;
        return;
    }
    if (overrides(peer, update))
        peer_change(
            swim, peer, update->incarnation, (enum swim_state)update->state, update->accuser);
    else if (update->state == SWIM_SUSPECT && peer->state == SWIM_SUSPECT &&
        update->incarnation == peer->incarnation)
        peer_confirm(swim, peer, update->accuser);
}

/* Own probe of `peer` failed. */
static void suspect(struct swim *swim, struct swim_peer *peer)
{
    if (peer->state == SWIM_ALIVE) {
        peer_change(swim, peer, peer->incarnation, SWIM_SUSPECT, swim->self);
        /* its answers may be lost but not this; so it can defend itself from the start */
        send(swim, SWIM_GOSSIP, peer->node, peer->node, 0);
    } else if (peer->state == SWIM_SUSPECT) {
        peer_confirm(swim, peer, swim->self);
    }
}

/* Lifeguard's dynamic suspicion: starts at the maximum, falls with the logarithm of the confirmations. */
static uint64_t suspicion_ms(const struct swim *swim, const struct swim_peer *peer)
{
    /* log(confirmations + 1) / log(expected + 1), in thousandths */
    static const uint16_t fall[CONFIRMATIONS_MAX + 1][CONFIRMATIONS_MAX + 1] = {
        {1000}, {0, 1000}, {0, 631, 1000}, {0, 500, 792, 1000}};
    uint32_t nodes = live_count(swim) + 1;
    unsigned scale = log2_ceil(nodes);
    uint64_t least = (uint64_t)swim->settings.suspicion_ms * (scale > 5 ? scale : 5) / 5;
    if (!swim->settings.lifeguard) return least;
    unsigned expected = nodes > 2 ? nodes - 2 : 0;
    if (expected > CONFIRMATIONS_MAX) expected = CONFIRMATIONS_MAX;
    unsigned confirmations = peer->confirmer_count - 1u;
    if (confirmations > expected) confirmations = expected;
    uint64_t span = least * (swim->settings.suspicion_factor - 1);
    return least + span - span * fall[expected][confirmations] / 1000;
}

static void expire_suspicions(struct swim *swim)
{
    for (uint32_t i = 0; i < swim->peer_count; i++) {
        struct swim_peer *peer = &swim->peers[i];
        if (peer->state != SWIM_SUSPECT) continue;
        if (swim->clock_ms - peer->suspect_ms < suspicion_ms(swim, peer)) continue;
        if (PLANTED_BUG(44) && peer->connected) continue;
        peer_change(swim, peer, peer->incarnation, SWIM_DEAD, 0);
    }
}

/* Probing */

static uint64_t timeout_ms(const struct swim *swim, const struct swim_peer *peer)
{
    return (uint64_t)swim->settings.timeout_ms + peer->rtt_ms;
}

static bool regular_probe_runs(const struct swim *swim)
{
    for (unsigned i = 0; i < SWIM_PROBES_MAX; i++) {
        if (swim->probes[i].target != 0 && swim->probes[i].regular) return true;
    }
    return false;
}

/* Only a live peer that is not being probed. */
static void probe_start(
    struct swim *swim, struct swim_probe *probe, struct swim_peer *peer, bool regular)
{
    ASSERT(probe->target == 0);
    ASSERT(peer_live(peer));
    uint64_t timeout = timeout_ms(swim, peer) * (1u + swim->health);
    *probe = (struct swim_probe){
        .target = peer->node,
        .regular = regular,
        .sequence = swim->sequence++,
        .start_ms = swim->clock_ms,
        /* without a connection the answer can only come by way of others */
        .ask_ms = swim->clock_ms + (peer->urgent && !peer->connected ? 0 : timeout),
        .end_ms = swim->clock_ms + PROBE_ENDS_AFTER * timeout,
    };
    peer->urgent = false;
    peer->probed_ms = swim->clock_ms;
    swim->counters.probes++;
    send(swim, SWIM_PING, peer->node, peer->node, probe->sequence);
}

static bool peer_alive(const struct swim_peer *peer)
{
    return peer->state == SWIM_ALIVE;
}

static void probe_ask(struct swim *swim, struct swim_probe *probe)
{
    probe->asked = true;
    probe->helper_count =
        (uint8_t)pick(swim, swim->settings.indirect, peer_alive, probe->target, probe->helpers);
    for (unsigned i = 0; i < probe->helper_count; i++)
        send(swim, SWIM_PING_REQ, probe->helpers[i], probe->target, probe->sequence);
}

static void probe_fail(struct swim *swim, struct swim_probe *probe)
{
    struct swim_peer *peer = peer_of(swim, probe->target);
    ASSERT(peer != NULL);
    ASSERT(probe->nacks <= probe->helper_count);
    swim->counters.failed_probes++;
    /* helpers that did not even say no: perhaps it is this node that hears nobody */
    health_worsen(
        swim, probe->helper_count > 0 ? (unsigned)(probe->helper_count - probe->nacks) : 1);
    probe->target = 0;
    suspect(swim, peer);
}

static void run_probes(struct swim *swim)
{
    for (unsigned i = 0; i < SWIM_PROBES_MAX; i++) {
        struct swim_probe *probe = &swim->probes[i];
        if (probe->target == 0) continue;
        if (swim->clock_ms >= probe->end_ms)
            probe_fail(swim, probe);
        else if (!probe->asked && swim->clock_ms >= probe->ask_ms)
            probe_ask(swim, probe);
    }
}

static void run_relays(struct swim *swim)
{
    for (unsigned i = 0; i < SWIM_RELAYS_MAX; i++) {
        struct swim_relay *relay = &swim->relays[i];
        if (relay->target == 0) continue;
        if (!relay->nacked && swim->clock_ms >= relay->nack_ms) {
            relay->nacked = true;
            if (swim->settings.lifeguard)
                send(swim, SWIM_NACK, relay->asker, relay->target, relay->asker_sequence);
        }
        if (swim->clock_ms >= relay->end_ms) relay->target = 0;
    }
}

/* A message that counts for nothing but what it carries: a dead node that is back defends itself. */
static void ping_again(struct swim *swim, struct swim_peer *peer)
{
    peer->urgent = false;
    peer->probed_ms = swim->clock_ms;
    send(swim, SWIM_PING, peer->node, peer->node, swim->sequence++);
}

/* It stays urgent if it has to wait. */
static void start_urgent(struct swim *swim, struct swim_peer *peer)
{
    struct swim_probe *running = probe_of(swim, peer->node);
    struct swim_probe *unused = probe_of(swim, 0);
    if (running != NULL) {
        if (!peer->connected) running->ask_ms = swim->clock_ms;
        peer->urgent = false;
        return;
    }
    if (peer->probed_ms != 0 && swim->clock_ms < peer->probed_ms + HINT_SPACING_MS) return;
    if (!peer_live(peer))
        ping_again(swim, peer);
    else if (unused != NULL)
        probe_start(swim, unused, peer, false);
}

/* The next of the round that is live; NULL: nobody is. */
static struct swim_peer *ring_next(struct swim *swim)
{
    for (unsigned round = 0; round < 2; round++) {
        while (swim->ring_at < swim->ring_count) {
            struct swim_peer *peer = peer_of(swim, swim->ring[swim->ring_at++]);
            ASSERT(peer != NULL);
            if (peer_live(peer)) return peer;
        }
        swim->ring_at = 0;
        swim->ring_count = pick(swim, SWIM_PEERS_MAX, peer_live, 0, swim->ring);
    }
    return NULL;
}

static void start_regular(struct swim *swim)
{
    uint64_t period = (uint64_t)swim->settings.probe_ms * (1u + swim->health);
    struct swim_probe *probe = probe_of(swim, 0);
    if (swim->clock_ms < swim->next_probe_ms || probe == NULL || regular_probe_runs(swim)) return;
    swim->next_probe_ms = swim->clock_ms + (swim->peer_count == 1 ? 2 * period : period);
    struct swim_peer *peer = ring_next(swim);
    if (peer != NULL && probe_of(swim, peer->node) == NULL) probe_start(swim, probe, peer, true);
}

static void revive(struct swim *swim)
{
    if (swim->clock_ms < swim->next_revive_ms) return;
    swim->next_revive_ms = swim->clock_ms + swim->settings.probe_ms;
    for (uint32_t i = 0; i < swim->peer_count; i++) {
        struct swim_peer *peer = &swim->peers[swim->revive_at++ % swim->peer_count];
        if (peer->state != SWIM_DEAD) continue;
        ping_again(swim, peer);
        return;
    }
}

static void start_probes(struct swim *swim)
{
    for (uint32_t i = 0; i < swim->peer_count; i++) {
        if (swim->peers[i].urgent) start_urgent(swim, &swim->peers[i]);
    }
    start_regular(swim);
    revive(swim);
}

static bool have_news(const struct swim *swim)
{
    unsigned limit = sends_limit(swim);
    if (swim->sends < limit) return true;
    for (uint32_t i = 0; i < swim->peer_count; i++) {
        if (swim->peers[i].sends < limit) return true;
    }
    return false;
}

static void gossip(struct swim *swim, unsigned fanout)
{
    uint16_t targets[SWIM_PEERS_MAX];
    unsigned count = pick(swim, fanout, peer_live, 0, targets);
    for (unsigned i = 0; i < count; i++)
        send(swim, SWIM_GOSSIP, targets[i], targets[i], 0);
}

void swim_tick(struct swim *swim, uint64_t now_ms)
{
    begin(swim, now_ms);
    run_relays(swim);
    if (!swim->left) {
        run_probes(swim);
        expire_suspicions(swim);
        start_probes(swim);
    }
    if (swim->clock_ms >= swim->next_gossip_ms && have_news(swim)) {
        swim->next_gossip_ms = swim->clock_ms + swim->settings.gossip_ms;
        gossip(swim, swim->settings.fanout);
    }
    finish(swim);
}

void swim_hint(struct swim *swim, uint16_t node, bool up)
{
    struct swim_peer *peer = peer_of(swim, node);
    if (peer == NULL) return;
    peer->connected = up;
    peer->urgent = up || peer_live(peer);
}

void swim_leave(struct swim *swim, uint64_t now_ms)
{
    begin(swim, now_ms);
    swim->left = true;
    swim->sends = 0;
    memset(swim->probes, 0, sizeof swim->probes);
    gossip(swim, SWIM_MESSAGES_MAX);
    finish(swim);
}

/* Receiving */

static void take_ping_req(struct swim *swim, uint16_t from, const struct swim_wire *wire)
{
    struct swim_peer *peer = peer_of(swim, wire->target);
    if (peer == NULL || wire->target == from) return;
    for (unsigned i = 0; i < SWIM_RELAYS_MAX; i++) {
        struct swim_relay *relay = &swim->relays[i];
        if (relay->target != 0) continue;
        uint64_t timeout = timeout_ms(swim, peer);
        *relay = (struct swim_relay){
            .target = wire->target,
            .asker = from,
            .sequence = swim->sequence++,
            .asker_sequence = wire->sequence,
            .nack_ms = swim->clock_ms + timeout,
            .end_ms = swim->clock_ms + PROBE_ENDS_AFTER * timeout,
        };
        send(swim, SWIM_PING, relay->target, relay->target, relay->sequence);
        return;
    }
}

static bool asked_of(const struct swim_probe *probe, uint16_t helper)
{
    for (unsigned i = 0; i < probe->helper_count; i++) {
        if (probe->helpers[i] == helper) return true;
    }
    return false;
}

/* The probe of ours that a message about `wire->target` belongs to. */
static struct swim_probe *probe_answered(struct swim *swim, const struct swim_wire *wire)
{
    struct swim_probe *probe = probe_of(swim, wire->target);
    return probe != NULL && probe->sequence == wire->sequence ? probe : NULL;
}

static void take_ack(struct swim *swim, uint16_t from, const struct swim_wire *wire)
{
    struct swim_probe *probe = probe_answered(swim, wire);
    if (probe != NULL && from == probe->target) {
        struct swim_peer *peer = peer_of(swim, from);
        uint64_t passed = swim->clock_ms - probe->start_ms;
        uint32_t rtt = (uint32_t)(passed < RTT_MAX_MS ? passed : RTT_MAX_MS);
        peer->rtt_ms = peer->rtt_ms == 0 ? rtt : (7 * peer->rtt_ms + rtt) / 8;
    }
    if (probe != NULL && (from == probe->target || asked_of(probe, from))) {
        probe->target = 0;
        health_improve(swim);
        return;
    }
    for (unsigned i = 0; i < SWIM_RELAYS_MAX; i++) {
        struct swim_relay *relay = &swim->relays[i];
        if (relay->target == 0 || relay->target != from || relay->sequence != wire->sequence)
            continue;
        send(swim, SWIM_ACK, relay->asker, relay->target, relay->asker_sequence);
        relay->target = 0;
        return;
    }
}

/* Helpers that said no are kept in front, so that each counts once. */
static void take_nack(struct swim *swim, uint16_t from, const struct swim_wire *wire)
{
    struct swim_probe *probe = probe_answered(swim, wire);
    if (probe == NULL) return;
    for (unsigned i = probe->nacks; i < probe->helper_count; i++) {
        if (probe->helpers[i] != from) continue;
        probe->helpers[i] = probe->helpers[probe->nacks];
        probe->helpers[probe->nacks++] = from;
        return;
    }
}

static bool for_me(const struct swim *swim, uint16_t from, const struct swim_wire *wire)
{
    if (peer_find(swim, from) == NULL) return false;
    if (wire->type == SWIM_PING || wire->type == SWIM_GOSSIP) return wire->target == swim->self;
    return wire->target != swim->self;
}

void swim_step(struct swim *swim, uint16_t from, struct bytes message, uint64_t now_ms)
{
    struct swim_wire wire;
    begin(swim, now_ms);
    if (swim_wire_decode(message, &wire) != OK) {
        swim->counters.malformed++;
        return;
    }
    if (!for_me(swim, from, &wire)) {
        swim->counters.foreign++;
        return;
    }
    uint64_t incarnation = swim->incarnation;
    struct swim_update own = {.node = from, .state = wire.state, .incarnation = wire.incarnation};
    take_update(swim, &own);
    for (unsigned i = 0; i < wire.count; i++)
        take_update(swim, &wire.updates[i]);
    ASSERT(swim->incarnation >= incarnation);

    switch ((enum swim_type)wire.type) {
    case SWIM_PING:
        send(swim, SWIM_ACK, from, swim->self, wire.sequence);
        break;
    case SWIM_ACK:
        take_ack(swim, from, &wire);
        break;
    case SWIM_PING_REQ:
        take_ping_req(swim, from, &wire);
        break;
    case SWIM_NACK:
        take_nack(swim, from, &wire);
        break;
    case SWIM_GOSSIP:
        /* who accuses us hears the answer at once */
        if (swim->incarnation > incarnation) send(swim, SWIM_GOSSIP, from, from, 0);
        break;
    }
    finish(swim);
}
