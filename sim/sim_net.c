#include "sim/sim_net.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/hash.h"
#include "base/prng.h"

/* Frames stay in the sender's connection until the receiver polls: there they are lost when the
 * connection breaks. A connection whose sender died may live on as a ghost, so that what a dead
 * process has said can still arrive. A frame's `ready_ns` is when it is at the receiver if nothing
 * holds it back; it never precedes that of the frame before it in the lane. */

enum {
    PEERS_MAX = 80,
    GHOSTS_MAX = 64,
    EVENTS_MAX = 64,
    SENDERS_MAX = 256,
    RETRY_NS = 100000000,
    STALL_NS = 1000000000,
    PORT = 7381,
    NANOSECONDS_PER_BYTE = 5,
};

static const size_t lane_bytes_max[NET_LANES] = {256 << 10, 2 << 20, 2 << 20};

struct frame {
    struct frame *next;
    uint64_t ready_ns;
    uint64_t order; /* of sending, over the whole network */
    uint64_t sequence; /* in its lane, as the transport numbers it */
    struct net_peer from;
    uint8_t cluster_id[16];
    bool sent; /* left the queue for the wire: lost if the connection breaks */
    size_t size;
    uint8_t at[];
};

struct lane {
    struct frame *first, **end;
    size_t bytes;
    uint64_t last_ready_ns;
};

struct peer {
    uint16_t node; /* 0: free */
    int target; /* machine; -1: nobody has this address */
    bool up;
    uint64_t up_at_ns; /* connecting: when it stands */
    uint64_t retry_at_ns;
    struct lane lanes[NET_LANES];
};

/* What is still under way from a process that is gone. */
struct ghost {
    unsigned from;
    uint64_t until_ns;
    struct peer peer;
};

struct event {
    uint64_t at_ns;
    uint16_t node;
    enum net_event what;
};

/* What a receiver's transport remembers of a sender's lane. */
struct sender {
    uint64_t boot;
    unsigned machine;
    uint64_t sequence[2][NET_LANES]; /* by whether it was addressed by number */
    uint64_t newest_order;
};

struct machine {
    struct sim_net *net;
    unsigned number;
    bool running, listening;
    uint64_t boot;
    uint64_t sequence; /* of the last frame sent */
    struct net_identity self;
    void *receiver;
    void (*on_frame)(
        void *receiver, const struct net_peer *from, enum net_lane lane, struct bytes frame);
    void (*on_event)(void *receiver, uint16_t node, enum net_event event);
    struct peer peers[PEERS_MAX];
    unsigned peer_count;
    struct event events[EVENTS_MAX];
    unsigned event_count;
    struct sender senders[SENDERS_MAX];
    unsigned sender_count;
    uint64_t incarnations[UINT8_MAX]; /* highest seen, by node number */
};

struct sim_net {
    struct prng prng;
    uint64_t now_ns;
    uint64_t order;
    uint64_t hash;
    struct sim_net_weather weather;
    struct sim_net_counts counts;
    bool cut[SIM_NET_MACHINES_MAX][SIM_NET_MACHINES_MAX];
    struct machine machines[SIM_NET_MACHINES_MAX];
    struct ghost ghosts[GHOSTS_MAX];
    unsigned ghost_count;
};

static uint64_t draw_delay(struct sim_net *net)
{
    const struct sim_net_weather *weather = &net->weather;
    uint64_t spread = weather->delay_max_ns - weather->delay_min_ns;
    uint64_t delay = weather->delay_min_ns + prng_below(&net->prng, spread + 1);
    if (weather->slow_ppm > 0 && prng_chance(&net->prng, weather->slow_ppm, 1000000)) {
        delay += prng_below(&net->prng, weather->slow_ns + 1);
        net->counts.late++;
    }
    return delay;
}

/* ---- connections ---- */

static void lane_pop(struct lane *lane)
{
    struct frame *frame = lane->first;
    lane->first = frame->next;
    if (lane->first == NULL) lane->end = &lane->first;
    lane->bytes -= frame->size;
    free(frame);
}

static void lane_clear(struct lane *lane)
{
    while (lane->first != NULL)
        lane_pop(lane);
}

static void add_event(struct machine *machine, uint16_t node, enum net_event what, uint64_t at_ns)
{
    if (!machine->running || machine->event_count == EVENTS_MAX) return;
    machine->events[machine->event_count++] =
        (struct event){.at_ns = at_ns, .node = node, .what = what};
}

/* What was on the wire is lost; what only waited goes over the next connection. */
static void connection_break(struct machine *machine, struct peer *peer, enum net_event what)
{
    struct sim_net *net = machine->net;
    bool stood = peer->up;
    peer->up = false;
    peer->up_at_ns = UINT64_MAX;
    peer->retry_at_ns = net->now_ns + RETRY_NS / 2 + prng_below(&net->prng, RETRY_NS);
    for (int i = 0; i < NET_LANES; i++) {
        struct lane *lane = &peer->lanes[i];
        while (lane->first != NULL && lane->first->sent) {
            net->counts.lost++;
            lane_pop(lane);
        }
        lane->last_ready_ns = 0;
    }
    if (!stood) return;
    if (what == NET_PEER_STALLED) net->counts.stalls++;
    if (what == NET_PEER_DOWN) net->counts.downs++;
    add_event(machine, peer->node, what, net->now_ns + draw_delay(net));
}

static void put_on_wire(struct sim_net *net, struct lane *lane, struct frame *frame)
{
    uint64_t ready = net->now_ns + draw_delay(net) + frame->size * NANOSECONDS_PER_BYTE;
    if (ready < lane->last_ready_ns) ready = lane->last_ready_ns;
    lane->last_ready_ns = ready;
    frame->ready_ns = ready;
    frame->sent = true;
}

static void connection_stands(struct machine *machine, struct peer *peer)
{
    struct sim_net *net = machine->net;
    peer->up = true;
    peer->up_at_ns = UINT64_MAX;
    net->counts.ups++;
    add_event(machine, peer->node, NET_PEER_UP, net->now_ns);
    for (int i = 0; i < NET_LANES; i++) {
        for (struct frame *frame = peer->lanes[i].first; frame != NULL; frame = frame->next)
            put_on_wire(net, &peer->lanes[i], frame);
    }
}

static bool reachable(const struct machine *machine, const struct peer *peer)
{
    if (peer->target < 0) return false;
    const struct sim_net *net = machine->net;
    unsigned to = (unsigned)peer->target;
    return net->machines[to].listening && !net->cut[machine->number][to] &&
        !net->cut[to][machine->number];
}

static bool stalled(const struct machine *machine, const struct peer *peer)
{
    const struct sim_net *net = machine->net;
    bool silent = !net->machines[peer->target].running || net->cut[machine->number][peer->target];
    for (int i = 0; i < NET_LANES; i++) {
        const struct frame *first = peer->lanes[i].first;
        if (first == NULL || first->ready_ns + STALL_NS > net->now_ns) continue;
        /* a process that only pauses has its kernel take what fits */
        if (silent || peer->lanes[i].bytes > lane_bytes_max[i] / 2) return true;
    }
    return false;
}

static void connection_tend(struct machine *machine, struct peer *peer)
{
    struct sim_net *net = machine->net;
    if (peer->up) {
        if (stalled(machine, peer)) connection_break(machine, peer, NET_PEER_STALLED);
        return;
    }
    if (peer->up_at_ns <= net->now_ns) {
        peer->up_at_ns = UINT64_MAX;
        if (reachable(machine, peer)) connection_stands(machine, peer);
    } else if (peer->up_at_ns == UINT64_MAX && peer->retry_at_ns <= net->now_ns) {
        peer->retry_at_ns = net->now_ns + RETRY_NS;
        if (reachable(machine, peer)) peer->up_at_ns = net->now_ns + 2 * draw_delay(net);
    }
}

static struct peer *find_peer(struct machine *machine, uint16_t node)
{
    for (unsigned i = 0; i < machine->peer_count; i++) {
        if (machine->peers[i].node == node) return &machine->peers[i];
    }
    return NULL;
}

static void clear_lanes(struct peer *peer)
{
    for (int i = 0; i < NET_LANES; i++)
        lane_clear(&peer->lanes[i]);
}

/* Ends of empty lanes point into the struct itself. */
static void move_peer(struct peer *to, const struct peer *from)
{
    if (to == from) return;
    *to = *from;
    for (int i = 0; i < NET_LANES; i++) {
        if (to->lanes[i].first == NULL) to->lanes[i].end = &to->lanes[i].first;
    }
}

static void remove_peer(struct machine *machine, struct peer *peer)
{
    move_peer(peer, &machine->peers[--machine->peer_count]);
}

static void forget_peer(struct machine *machine, struct peer *peer)
{
    clear_lanes(peer);
    remove_peer(machine, peer);
}

static void leave_ghost(struct machine *machine, struct peer *peer)
{
    struct sim_net *net = machine->net;
    bool lives = peer->up && peer->target >= 0 && net->ghost_count < GHOSTS_MAX &&
        prng_chance(&net->prng, 2, 3);
    if (!lives) {
        forget_peer(machine, peer);
        return;
    }
    struct ghost *ghost = &net->ghosts[net->ghost_count++];
    ghost->from = machine->number;
    ghost->until_ns = net->now_ns + STALL_NS;
    move_peer(&ghost->peer, peer);
    remove_peer(machine, peer);
}

static void drop_ghost(struct sim_net *net, struct ghost *ghost)
{
    clear_lanes(&ghost->peer);
    struct ghost *last = &net->ghosts[--net->ghost_count];
    if (ghost == last) return;
    ghost->from = last->from;
    ghost->until_ns = last->until_ns;
    move_peer(&ghost->peer, &last->peer);
}

/* ---- the table ---- */

static void table_start(void *ctx, const struct net_identity *self, void *receiver,
    void (*on_frame)(
        void *receiver, const struct net_peer *from, enum net_lane lane, struct bytes frame),
    void (*on_event)(void *receiver, uint16_t node, enum net_event event),
    void (*wake)(void *receiver))
{
    struct machine *machine = ctx;
    (void)wake; /* the simulation's loop asks sim_net_next_due() */
    if (!machine->running) return;
    machine->self = *self;
    machine->receiver = receiver;
    machine->on_frame = on_frame;
    machine->on_event = on_event;
    machine->listening = true;
}

static void table_set_identity(void *ctx, const struct net_identity *self)
{
    struct machine *machine = ctx;
    machine->self = *self;
}

static int machine_at(const char *address)
{
    unsigned number;
    char text[24];
    if (sscanf(address, "10.0.0.%u:", &number) != 1 || number >= SIM_NET_MACHINES_MAX) return -1;
    sim_net_address(number, text);
    return strcmp(text, address) == 0 ? (int)number : -1;
}

static enum err table_set_peer(void *ctx, uint16_t node, const char *address)
{
    struct machine *machine = ctx;
    if (!machine->running) return OK;
    struct peer *peer = find_peer(machine, node);
    if (address == NULL) {
        if (peer != NULL) forget_peer(machine, peer);
        return OK;
    }
    int target = machine_at(address);
    if (peer != NULL && peer->target == target) return OK;
    if (peer != NULL) forget_peer(machine, peer);
    if (machine->peer_count == PEERS_MAX) return ERR_FULL;
    peer = &machine->peers[machine->peer_count++];
    *peer = (struct peer){
        .node = node,
        .target = target,
        .up_at_ns = UINT64_MAX,
        .retry_at_ns = machine->net->now_ns,
    };
    for (int i = 0; i < NET_LANES; i++)
        peer->lanes[i].end = &peer->lanes[i].first;
    return OK;
}

static struct frame *frame_new(
    struct machine *machine, struct lane *lane, struct bytes bytes, uint64_t sequence)
{
    struct frame *frame = malloc(sizeof *frame + bytes.size);
    ASSERT(frame != NULL);
    *frame = (struct frame){
        .order = machine->net->order++,
        .sequence = sequence,
        .from = {.node = machine->self.node,
            .boot = machine->boot,
            .incarnation = machine->self.incarnation},
        .size = bytes.size,
        .ready_ns = UINT64_MAX,
    };
    memcpy(frame->from.store_id, machine->self.store_id, sizeof frame->from.store_id);
    memcpy(frame->cluster_id, machine->self.cluster_id, sizeof frame->cluster_id);
    memcpy(frame->at, bytes.at, bytes.size);
    *lane->end = frame;
    lane->end = &frame->next;
    lane->bytes += bytes.size;
    return frame;
}

static enum err table_send(void *ctx, uint16_t node, enum net_lane which, struct bytes bytes)
{
    struct machine *machine = ctx;
    struct sim_net *net = machine->net;
    if (!machine->running) return OK;
    if (bytes.size > NET_FRAME_MAX) return ERR_TOO_LARGE;
    struct peer *peer = find_peer(machine, node);
    if (peer == NULL) return ERR_NOT_FOUND;
    struct lane *lane = &peer->lanes[which];
    if (lane->bytes > 0 && lane->bytes + bytes.size > lane_bytes_max[which]) {
        net->counts.refused++;
        return ERR_AGAIN;
    }
    net->counts.sent++;
    uint64_t sequence = ++machine->sequence;
    if (peer->up && prng_chance(&net->prng, net->weather.loss_ppm, 1000000)) {
        net->counts.vanished++;
        net->counts.lost++;
        return OK;
    }
    struct frame *frame = frame_new(machine, lane, bytes, sequence);
    if (!peer->up) return OK;
    put_on_wire(net, lane, frame);
    if (prng_chance(&net->prng, net->weather.duplicate_ppm, 1000000)) {
        net->counts.duplicated++;
        put_on_wire(net, lane, frame_new(machine, lane, bytes, sequence));
    }
    if (prng_chance(&net->prng, net->weather.reset_ppm, 1000000)) {
        net->counts.resets++;
        connection_break(machine, peer, NET_PEER_DOWN);
    }
    return OK;
}

static size_t table_queued(void *ctx, uint16_t node, enum net_lane lane)
{
    struct machine *machine = ctx;
    const struct peer *peer = find_peer(machine, node);
    return peer == NULL ? 0 : peer->lanes[lane].bytes;
}

static void table_kick(void *ctx, uint16_t node)
{
    struct machine *machine = ctx;
    struct peer *peer = find_peer(machine, node);
    if (peer != NULL && !peer->up) peer->retry_at_ns = machine->net->now_ns;
}

/* ---- receiving ---- */

static struct sender *sender_of(struct machine *machine, unsigned from, uint64_t boot)
{
    for (unsigned i = 0; i < machine->sender_count; i++) {
        struct sender *sender = &machine->senders[i];
        if (sender->boot == boot && sender->machine == from) return sender;
    }
    if (machine->sender_count == SENDERS_MAX) machine->sender_count = 0;
    struct sender *sender = &machine->senders[machine->sender_count++];
    *sender = (struct sender){.boot = boot, .machine = from};
    return sender;
}

/* What a transport refuses before anybody sees it. */
static bool acceptable(struct machine *to, const struct peer *peer, const struct frame *frame)
{
    static const uint8_t none[16];
    bool addressed = peer->node < 0xff00 && to->self.node != 0;
    if (addressed && peer->node != to->self.node) return false;
    bool member = frame->from.node != 0 && to->self.node != 0;
    bool known =
        memcmp(frame->cluster_id, none, 16) != 0 && memcmp(to->self.cluster_id, none, 16) != 0;
    if (member && known && memcmp(frame->cluster_id, to->self.cluster_id, 16) != 0) return false;
    if (frame->from.node == 0 || frame->from.node >= UINT8_MAX) return true;
    uint64_t *newest = &to->incarnations[frame->from.node];
    if (frame->from.incarnation < *newest) return false;
    *newest = frame->from.incarnation;
    return true;
}

static void deliver(struct machine *to, unsigned from, struct peer *peer, enum net_lane which)
{
    struct sim_net *net = to->net;
    struct lane *lane = &peer->lanes[which];
    struct frame *frame = lane->first;
    lane->first = frame->next;
    if (lane->first == NULL) lane->end = &lane->first;
    lane->bytes -= frame->size;
    struct sender *sender = sender_of(to, from, frame->from.boot);
    uint64_t *newest = &sender->sequence[peer->node < 0xff00][which];
    if (frame->sequence <= *newest) {
        net->counts.filtered++;
    } else if (!acceptable(to, peer, frame)) {
        net->counts.foreign++;
    } else {
        *newest = frame->sequence;
        if (frame->order < sender->newest_order) net->counts.overtaken++;
        if (frame->order > sender->newest_order) sender->newest_order = frame->order;
        net->counts.delivered++;
        net->hash = hash64(net->hash ^ net->now_ns ^ to->number, bytes_of(frame->at, frame->size));
        to->on_frame(to->receiver, &frame->from, which, bytes_of(frame->at, frame->size));
    }
    free(frame);
}

/* The earliest frame on its way to a machine. */
struct arrival {
    uint64_t ready_ns;
    uint64_t order;
    unsigned from;
    struct peer *peer;
    enum net_lane lane;
};

static void look_at(struct arrival *best, unsigned from, unsigned to, struct peer *peer)
{
    if (peer->target != (int)to || !peer->up) return;
    for (int i = 0; i < NET_LANES; i++) {
        const struct frame *frame = peer->lanes[i].first;
        if (frame == NULL || frame->ready_ns > best->ready_ns) continue;
        if (frame->ready_ns == best->ready_ns && frame->order > best->order) continue;
        *best = (struct arrival){.ready_ns = frame->ready_ns,
            .order = frame->order,
            .from = from,
            .peer = peer,
            .lane = (enum net_lane)i};
    }
}

static struct arrival next_arrival(struct sim_net *net, unsigned to)
{
    struct arrival best = {.ready_ns = UINT64_MAX, .order = UINT64_MAX};
    for (unsigned i = 0; i < SIM_NET_MACHINES_MAX; i++) {
        struct machine *from = &net->machines[i];
        if (!from->running || net->cut[i][to]) continue;
        for (unsigned p = 0; p < from->peer_count; p++)
            look_at(&best, i, to, &from->peers[p]);
    }
    for (unsigned i = 0; i < net->ghost_count; i++) {
        struct ghost *ghost = &net->ghosts[i];
        if (!net->cut[ghost->from][to]) look_at(&best, ghost->from, to, &ghost->peer);
    }
    return best;
}

static void deliver_events(struct machine *machine)
{
    for (unsigned i = 0; i < machine->event_count;) {
        struct event event = machine->events[i];
        if (event.at_ns > machine->net->now_ns) {
            i++;
            continue;
        }
        memmove(&machine->events[i], &machine->events[i + 1],
            (--machine->event_count - i) * sizeof event);
        uint64_t words[3] = {event.at_ns, event.node, (uint64_t)event.what};
        machine->net->hash = hash64(machine->net->hash, bytes_of(words, sizeof words));
        machine->on_event(machine->receiver, event.node, event.what);
        i = 0;
    }
}

static int table_poll(void *ctx, int limit)
{
    struct machine *machine = ctx;
    struct sim_net *net = machine->net;
    if (!machine->listening) return 0;
    deliver_events(machine);
    int count = 0;
    for (; count < limit; count++) {
        struct arrival next = next_arrival(net, machine->number);
        if (next.ready_ns > net->now_ns) break;
        deliver(machine, next.from, next.peer, next.lane);
    }
    return count;
}

/* ---- the world's side ---- */

struct sim_net *sim_net_create(uint64_t seed)
{
    struct sim_net *net = calloc(1, sizeof *net);
    ASSERT(net != NULL);
    prng_init(&net->prng, seed);
    net->weather = (struct sim_net_weather){.delay_min_ns = 50000, .delay_max_ns = 500000};
    for (unsigned i = 0; i < SIM_NET_MACHINES_MAX; i++) {
        net->machines[i].net = net;
        net->machines[i].number = i;
    }
    return net;
}

void sim_net_destroy(struct sim_net *net)
{
    if (net == NULL) return;
    for (unsigned i = 0; i < SIM_NET_MACHINES_MAX; i++) {
        while (net->machines[i].peer_count > 0)
            forget_peer(&net->machines[i], &net->machines[i].peers[0]);
    }
    while (net->ghost_count > 0)
        drop_ghost(net, &net->ghosts[0]);
    free(net);
}

struct net sim_net_table(struct sim_net *net, unsigned machine)
{
    ASSERT(machine < SIM_NET_MACHINES_MAX);
    return (struct net){
        .ctx = &net->machines[machine],
        .name = "sim",
        .start = table_start,
        .set_identity = table_set_identity,
        .set_peer = table_set_peer,
        .send = table_send,
        .queued = table_queued,
        .kick = table_kick,
        .poll = table_poll,
    };
}

void sim_net_address(unsigned machine, char *at)
{
    snprintf(at, 24, "10.0.0.%u:%d", machine, PORT);
}

void sim_net_up(struct sim_net *net, unsigned machine, uint64_t boot)
{
    struct machine *starting = &net->machines[machine];
    ASSERT(!starting->running);
    starting->running = true;
    starting->listening = false;
    starting->boot = boot;
    starting->event_count = 0;
    starting->sender_count = 0;
    memset(starting->incarnations, 0, sizeof starting->incarnations);
}

void sim_net_down(struct sim_net *net, unsigned machine, bool silent)
{
    struct machine *dying = &net->machines[machine];
    if (!dying->running) return;
    dying->running = dying->listening = false;
    while (dying->peer_count > 0)
        leave_ghost(dying, &dying->peers[0]);
    dying->event_count = 0;
    for (unsigned i = 0; i < SIM_NET_MACHINES_MAX; i++) {
        struct machine *other = &net->machines[i];
        for (unsigned p = 0; p < other->peer_count; p++) {
            struct peer *peer = &other->peers[p];
            if (peer->target != (int)machine || !peer->up) continue;
            if (!silent && !net->cut[machine][i]) connection_break(other, peer, NET_PEER_DOWN);
        }
    }
}

void sim_net_run_until(struct sim_net *net, uint64_t now_ns)
{
    ASSERT(now_ns >= net->now_ns);
    net->now_ns = now_ns;
    for (unsigned i = 0; i < SIM_NET_MACHINES_MAX; i++) {
        struct machine *machine = &net->machines[i];
        for (unsigned p = 0; p < machine->peer_count; p++)
            connection_tend(machine, &machine->peers[p]);
    }
    for (unsigned i = 0; i < net->ghost_count;) {
        if (net->ghosts[i].until_ns > now_ns)
            i++;
        else
            drop_ghost(net, &net->ghosts[i]);
    }
}

uint64_t sim_net_next_due(const struct sim_net *net, unsigned machine)
{
    const struct machine *to = &net->machines[machine];
    if (!to->listening) return UINT64_MAX;
    uint64_t due = next_arrival((struct sim_net *)(uintptr_t)net, machine).ready_ns;
    for (unsigned i = 0; i < to->event_count; i++) {
        if (to->events[i].at_ns < due) due = to->events[i].at_ns;
    }
    return due;
}

void sim_net_set_weather(struct sim_net *net, const struct sim_net_weather *weather)
{
    ASSERT(weather->delay_max_ns >= weather->delay_min_ns);
    net->weather = *weather;
}

void sim_net_cut(struct sim_net *net, unsigned from, unsigned to, bool cut)
{
    if (cut && !net->cut[from][to]) net->counts.held++;
    net->cut[from][to] = cut;
}

bool sim_net_is_cut(const struct sim_net *net, unsigned from, unsigned to)
{
    return net->cut[from][to];
}

static void reset_towards(struct machine *machine, unsigned target)
{
    for (unsigned p = 0; p < machine->peer_count; p++) {
        struct peer *peer = &machine->peers[p];
        if (peer->target == (int)target && peer->up) connection_break(machine, peer, NET_PEER_DOWN);
    }
}

void sim_net_reset(struct sim_net *net, unsigned a, unsigned b)
{
    net->counts.resets++;
    reset_towards(&net->machines[a], b);
    reset_towards(&net->machines[b], a);
}

void sim_net_counts(const struct sim_net *net, struct sim_net_counts *out)
{
    *out = net->counts;
}

uint64_t sim_net_hash(const struct sim_net *net)
{
    return net->hash;
}
