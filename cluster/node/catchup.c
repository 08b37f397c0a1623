#include <stdlib.h>

#include "cluster/node/node_internal.h"

/* Bringing replicas up to date when their leader has not got in memory what they need: by the log while it is kept
 * (a feed per peer reads it once for all ranges), else by a snapshot of the range, streamed in chunks with a
 * window, over the bulk lane. The same stream repairs a replica whose data is damaged or differs.
 *
 *   SNAPSHOT_BEGIN  u64 id | range meta            SNAPSHOT_ACK   u64 id | u64 chunks taken | u64 state
 *   SNAPSHOT_CHUNK  u64 id | u64 number | chunk    SNAPSHOT_DONE  u64 id | u64 index | u64 ok
 *   SNAPSHOT_END    u64 id | u64 chunks | u64 settled
 *   HASH            u64 index | u64 hash           SNAPSHOT_WANTED u64 least index; REFETCH: empty */

enum {
    OUTGOING_MAX = 4,
    INCOMING_MAX = 4,
    WINDOW = 8,
    QUEUE_BYTES = 2 << 20,
    RESEND_MS = 1000,
    GIVE_UP_MS = 15000,
    HOLD_MS = 20000,
    FEED_BYTES = 512 * 1024, /* per turn */
    FEED_NS = 1500000,
    RUN_BYTES = 96 * 1024,
    RUN_ENTRIES = 512,
    NEW_BEHIND_MAX = 4000, /* entries that a replica without data gets by the log; beyond: a snapshot */
    BEHIND_MAX = 50000,
};

enum ack_state { ACK_GOING, ACK_BUSY, ACK_FAILED };

struct chunk {
    uint64_t number;
    struct buffer bytes;
};

struct outgoing {
    struct outgoing *next;
    uint16_t group, to;
    uint64_t id;
    struct snapshot *source;
    struct range_meta meta;
    struct chunk window[WINDOW];
    uint64_t made, acked; /* chunks; numbers from 1 */
    bool accepted, ended, wait;
    uint64_t settled;
    uint64_t moved_ns, resent_ns;
};

struct incoming {
    uint16_t from;
    uint64_t id;
    struct install *install;
    struct range_meta meta;
    uint64_t taken; /* chunks given to the install */
    uint64_t total; /* of all; 0: not known yet */
    uint64_t settled;
    bool finishing;
    struct chunk queued[WINDOW]; /* came, and the install has no room yet */
    uint64_t heard_ns;
};

struct run {
    struct entry *entries[RUN_ENTRIES];
    uint32_t count;
    size_t bytes;
};

struct feed {
    struct feed *next;
    uint16_t peer;
    struct wal_reader *reader;
    lsn_t after;
    uint8_t *needs; /* by group */
    struct run **runs; /* by group; NULL: none */
    uint64_t moved_ns;
};

/* ---- checkpoints on demand ---- */

static void checkpoint_done(void *ctx, enum err err)
{
    (void)err; /* whoever needed it looks again */
    struct node *node = ctx;
    node->checkpointing = false;
}

static void want_checkpoint(struct node *node)
{
    if (node->checkpointing) return;
    node->checkpointing = true;
    engine_checkpoint(node->engine, checkpoint_done, node);
}

/* ---- snapshots going out ---- */

static void outgoing_free(struct node *node, struct outgoing *out)
{
    struct outgoing **at = &node->outgoing;
    while (*at != out)
        at = &(*at)->next;
    *at = out->next;
    for (int i = 0; i < WINDOW; i++)
        buffer_deinit(&out->window[i].bytes);
    if (out->source != NULL) snapshot_close(out->source);
    node->outgoing_count--;
    free(out);
}

static struct outgoing *outgoing_find(struct node *node, uint16_t group, uint16_t to)
{
    struct outgoing *out = node->outgoing;
    while (out != NULL && (out->group != group || out->to != to))
        out = out->next;
    return out;
}

static void send_begin(struct node *node, struct outgoing *out)
{
    uint8_t bytes[8 + RANGE_META_BYTES_MAX];
    store_u64(bytes, out->id);
    size_t size = range_meta_encode(bytes + 8, &out->meta);
    wire_send(node, out->to, NET_BULK, WIRE_SNAPSHOT_BEGIN, out->group, bytes_of(bytes, 8 + size),
        bytes_of(NULL, 0));
}

static void send_end(struct node *node, struct outgoing *out)
{
    uint8_t *at = wire_add(node, out->to, NET_BULK, WIRE_SNAPSHOT_END, out->group, 24);
    if (at == NULL) return;
    store_u64(at, out->id);
    store_u64(at + 8, out->made);
    store_u64(at + 16, out->settled);
}

/* A snapshot that reaches at least `index`; if none does, a checkpoint is wanted first. True: it is on its
 * way, or will be when there is room. */
static bool outgoing_start(struct group *group, uint16_t to, uint64_t index)
{
    struct node *node = group->node;
    if (outgoing_find(node, group->id, to) != NULL || node->outgoing_count >= OUTGOING_MAX)
        return true;
    if (group->quarantined || group->holding) return false;
    struct outgoing *out = calloc(1, sizeof *out);
    if (out == NULL) return false;
    enum err err = snapshot_open(node->engine, group->id, &out->meta, &out->source);
    if (err == OK && (out->meta.flags & RANGE_META_INSTALLING) != 0) err = ERR_AGAIN;
    if (err == OK && (out->meta.index == 0 || out->meta.index < index)) err = ERR_NOT_FOUND;
    if (err != OK) {
        if (out->source != NULL) snapshot_close(out->source);
        free(out);
        if (err == ERR_NOT_FOUND) want_checkpoint(node);
        return err == ERR_NOT_FOUND;
    }
    out->group = group->id;
    out->to = to;
    out->id = ++node->snapshot_next ^ (node->config.incarnation << 40);
    out->moved_ns = out->resent_ns = node->now_ns;
    out->next = node->outgoing;
    node->outgoing = out;
    node->outgoing_count++;
    node->stats.snapshots_sent++;
    raft_snapshot_begin(&group->raft, to, out->meta.index);
    send_begin(node, out);
    return true;
}

static void send_chunk(struct node *node, struct outgoing *out, const struct chunk *chunk)
{
    uint8_t head[16];
    store_u64(head, out->id);
    store_u64(head + 8, chunk->number);
    struct bytes bytes = buffer_view(&chunk->bytes);
    uint8_t *at = wire_add(
        node, out->to, NET_BULK, WIRE_SNAPSHOT_CHUNK, out->group, sizeof head + bytes.size);
    if (at == NULL) return;
    memcpy(at, head, sizeof head);
    memcpy(at + sizeof head, bytes.at, bytes.size);
    node->stats.snapshot_bytes += bytes.size;
}

static void outgoing_failed(struct node *node, struct outgoing *out, enum err err)
{
    struct group *group = group_of(node, out->group);
    log_warn("a snapshot could not be sent", "range=%u to=%u error=%s", out->group, out->to,
        err_name(err));
    uint16_t to = out->to;
    outgoing_free(node, out);
    if (group == NULL) return;
    raft_snapshot_end(&group->raft, to, false, 0);
    if (err == ERR_CORRUPT) group->damaged = true;
}

/* false: it is gone */
static bool outgoing_pump(struct node *node, struct outgoing *out)
{
    if (!out->accepted || out->wait) return true;
    while (!out->ended && out->made - out->acked < WINDOW &&
        wire_queued(node, out->to, NET_BULK) < QUEUE_BYTES) {
        struct bytes bytes;
        enum err err = snapshot_next(out->source, &bytes);
        if (err == ERR_AGAIN) break;
        if (err == ERR_NOT_FOUND) {
            out->ended = true;
            const struct group *group = group_of(node, out->group);
            out->settled = group->applied > group->settled ? group->applied : group->settled;
            send_end(node, out);
            break;
        }
        struct chunk *chunk = &out->window[(out->made + 1) % WINDOW];
        buffer_reset(&chunk->bytes, SNAPSHOT_CHUNK_MAX);
        if (err == OK) err = buffer_append(&chunk->bytes, bytes.at, bytes.size);
        if (err != OK) {
            outgoing_failed(node, out, err);
            return false;
        }
        chunk->number = ++out->made;
        send_chunk(node, out, chunk);
    }
    return true;
}

static void outgoing_tick(struct node *node, struct outgoing *out)
{
    const struct group *group = group_of(node, out->group);
    if (group == NULL || group->raft.role != RAFT_LEADER) {
        outgoing_free(node, out);
        return;
    }
    if (node->now_ns - out->moved_ns > (uint64_t)GIVE_UP_MS * 1000000) {
        outgoing_failed(node, out, ERR_CLOSED);
        return;
    }
    if (node->now_ns - out->resent_ns < (uint64_t)RESEND_MS * 1000000) return;
    out->resent_ns = node->now_ns;
    bool stalled = node->now_ns - out->moved_ns >= (uint64_t)RESEND_MS * 1000000;
    if (!out->accepted || out->wait) {
        out->wait = false;
        out->accepted = false;
        send_begin(node, out);
    } else if (stalled) {
        for (uint64_t number = out->acked + 1; number <= out->made; number++)
            send_chunk(node, out, &out->window[number % WINDOW]);
        if (out->ended) send_end(node, out);
    }
}

static void on_ack(struct node *node, uint16_t from, const struct message *message)
{
    if (message->body.size < 24) return;
    struct outgoing *out = outgoing_find(node, (uint16_t)message->group, from);
    if (out == NULL || out->id != load_u64(message->body.at)) return;
    uint64_t taken = load_u64(message->body.at + 8), state = load_u64(message->body.at + 16);
    if (state == ACK_FAILED) {
        outgoing_failed(node, out, ERR_CLOSED);
        return;
    }
    out->wait = state == ACK_BUSY;
    out->accepted = true;
    if (out->wait) {
        /* it will take it soon: as alive as if it moved */
        out->moved_ns = node->now_ns;
        out->resent_ns = node->now_ns - (uint64_t)(RESEND_MS - 200) * 1000000;
        return;
    }
    if (taken < out->acked || taken > out->made) return;
    out->acked = taken;
    out->moved_ns = node->now_ns;
    (void)outgoing_pump(node, out);
}

static void on_done(struct node *node, uint16_t from, const struct message *message)
{
    if (message->body.size < 24) return;
    struct outgoing *out = outgoing_find(node, (uint16_t)message->group, from);
    if (out == NULL || out->id != load_u64(message->body.at)) return;
    uint64_t index = load_u64(message->body.at + 8);
    bool done = load_u64(message->body.at + 16) != 0;
    outgoing_free(node, out);
    struct group *group = group_of(node, (uint16_t)message->group);
    if (group == NULL) return;
    raft_snapshot_end(&group->raft, from, done, index);
    group_ready(group);
    /* others may have waited for the place */
    for (uint32_t i = 0; i < node->group_slots; i++) {
        if (node->groups[i] != NULL && node->groups[i]->raft.role == RAFT_LEADER)
            group_mark_dirty(node->groups[i]);
    }
}

/* ---- snapshots coming in ---- */

static void send_ack(struct node *node, uint16_t to, uint16_t group, uint64_t id, uint64_t taken,
    enum ack_state state)
{
    uint8_t *at = wire_add(node, to, NET_CONTROL, WIRE_SNAPSHOT_ACK, group, 24);
    if (at == NULL) return;
    store_u64(at, id);
    store_u64(at + 8, taken);
    store_u64(at + 16, state);
}

static void send_done(
    struct node *node, uint16_t to, uint16_t group, uint64_t id, uint64_t index, bool done)
{
    uint8_t *at = wire_add(node, to, NET_CONTROL, WIRE_SNAPSHOT_DONE, group, 24);
    if (at == NULL) return;
    store_u64(at, id);
    store_u64(at + 8, index);
    store_u64(at + 16, done ? 1 : 0);
}

static void incoming_free(struct group *group)
{
    struct incoming *in = group->incoming;
    if (in == NULL) return;
    group->incoming = NULL;
    group->node->incoming_count--;
    for (int i = 0; i < WINDOW; i++)
        buffer_deinit(&in->queued[i].bytes);
    if (in->install != NULL) install_close(in->install);
    free(in);
}

static struct range_meta meta_of_votes(const struct group *group)
{
    return (struct range_meta){
        .hard_term = group->raft.term, .vote = group->raft.vote, .flags = RANGE_META_INSTALLING};
}

static void on_installed(void *ctx, enum err result)
{
    struct group *group = ctx;
    struct node *node = group->node;
    struct incoming *in = group->incoming;
    ASSERT(in != NULL);
    struct range_meta meta = in->meta;
    uint64_t id = in->id, settled = in->settled;
    uint16_t from = in->from;
    struct raft_config config = {0};
    if (result == OK && meta.config_size > 0)
        result = raft_config_decode(bytes_of(meta.config, meta.config_size), &config);
    if (result != OK) {
        log_warn(
            "a snapshot could not be installed", "range=%u error=%s", group->id, err_name(result));
        group->quarantined = true;
        incoming_free(group);
        send_done(node, from, group->id, id, 0, false);
        return;
    }
    incoming_free(group);
    raft_installed(&group->raft, meta.index, meta.term, &config, meta.config_index);
    if (group->raft.last == meta.index) group_forget(group, meta.index + 1);
    group->applied = meta.index;
    group->applied_term = meta.term;
    group->applied_config = config;
    group->applied_config_index = meta.config_index;
    group->hash = meta.hash;
    memset(group->hashes, 0, sizeof group->hashes);
    if (!group->forgetful || settled > group->settled) group->settled = settled;
    group->quarantined = group->holding = group->damaged = false;
    node->stats.snapshots_received++;
    if (group->applied >= group->settled) group->settled = 0;
    /* It votes at once, although it serves only when all up to settled is applied: everything the
     * snapshot covers beyond what this replica had acknowledged was committed by a majority without
     * it. Unless a restart has cost it its log: then it votes when it has what its leader had. */
    group->forgetful = group->forgetful && group->settled != 0;
    raft_set_faulty(&group->raft, group->forgetful);
    raft_set_passive(&group->raft, false);
    if (group->id == META_RANGE) {
        if (membership_load(node) != OK) node_fail(node, "the member table cannot be read");
        membership_table_changed(node);
    }
    send_done(node, from, group->id, id, meta.index, true);
    group_ready(group);
}

static void finish_if_whole(struct group *group)
{
    struct incoming *in = group->incoming;
    if (in->finishing || in->total == 0 || in->taken + 1 != in->total) return;
    in->finishing = true;
    struct range_meta meta = in->meta;
    meta.hard_term = group->raft.term;
    meta.vote = group->raft.vote;
    meta.settled = in->settled;
    meta.flags = 0;
    if (group->forgetful) {
        meta.flags = RANGE_META_FORGETFUL;
        if (group->settled > meta.settled) meta.settled = group->settled;
    }
    install_finish(in->install, &meta);
}

/* gives queued chunks to the install, in order */
static void incoming_pump(struct group *group)
{
    struct incoming *in = group->incoming;
    uint64_t before = in->taken;
    for (;;) {
        struct chunk *chunk = &in->queued[(in->taken + 1) % WINDOW];
        if (chunk->number != in->taken + 1) break;
        enum err err = install_add(in->install, buffer_view(&chunk->bytes));
        if (err == ERR_AGAIN) break;
        chunk->number = 0;
        buffer_reset(&chunk->bytes, SNAPSHOT_CHUNK_MAX);
        /* a damaged chunk will be sent again */
        if (err == ERR_CORRUPT) break;
        if (err != OK) {
            send_ack(group->node, in->from, group->id, in->id, in->taken, ACK_FAILED);
            incoming_free(group);
            group->quarantined = true;
            return;
        }
        in->taken++;
    }
    if (in->taken != before)
        send_ack(group->node, in->from, group->id, in->id, in->taken, ACK_GOING);
    finish_if_whole(group);
}

static struct group *group_for_snapshot(struct node *node, uint32_t id)
{
    if (id >= node->group_slots) return NULL;
    if (node->groups[id] != NULL) return node->groups[id];
    struct raft_restore restore = {.first = 1};
    return group_create(node, (uint16_t)id, &restore);
}

static void on_begin(struct node *node, uint16_t from, const struct message *message)
{
    struct range_meta meta;
    if (message->body.size < 8) return;
    uint64_t id = load_u64(message->body.at);
    if (range_meta_decode(bytes_of(message->body.at + 8, message->body.size - 8), &meta) != OK)
        return;
    struct group *group = group_for_snapshot(node, message->group);
    if (group == NULL || group->raft.role == RAFT_LEADER) return;
    struct incoming *in = group->incoming;
    if (in != NULL && in->id == id && in->from == from) {
        send_ack(node, from, group->id, id, in->taken, ACK_GOING);
        return;
    }
    if (meta.index <= group->applied && !group->quarantined) {
        send_done(node, from, group->id, id, group->applied, true);
        return;
    }
    if (in != NULL && (in->finishing || node->now_ns - in->heard_ns < 3000000000ull)) {
        send_ack(node, from, group->id, id, 0, ACK_BUSY);
        return;
    }
    if (in != NULL) incoming_free(group);
    if (node->incoming_count >= INCOMING_MAX) {
        send_ack(node, from, group->id, id, 0, ACK_BUSY);
        return;
    }
    /* what the memtables have of the range must not come down over the snapshot later */
    group->holding = true;
    group->holding_ns = node->now_ns;
    if (engine_range_in_memory(node->engine, group->id)) {
        want_checkpoint(node);
        send_ack(node, from, group->id, id, 0, ACK_BUSY);
        return;
    }
    in = calloc(1, sizeof *in);
    if (in == NULL) return;
    in->from = from;
    in->id = id;
    in->meta = meta;
    in->heard_ns = node->now_ns;
    group->incoming = in;
    node->incoming_count++;
    struct range_meta votes = meta_of_votes(group);
    /* A crash in the middle costs this replica its log. What is beyond all it ever had is committed by a majority
     * without it, so then nothing is forgotten that matters. */
    uint64_t had = group->raft.last > group->settled ? group->raft.last : group->settled;
    if (group->forgetful || in->meta.index <= had) {
        votes.flags |= RANGE_META_FORGETFUL;
        votes.settled = had;
    }
    enum err err =
        install_begin(node->engine, group->id, &votes, on_installed, group, &in->install);
    if (err != OK) {
        incoming_free(group);
        send_ack(node, from, group->id, id, 0, err == ERR_AGAIN ? ACK_BUSY : ACK_FAILED);
        return;
    }
    raft_set_passive(&group->raft, true);
    send_ack(node, from, group->id, id, 0, ACK_GOING);
}

static void on_chunk(struct node *node, uint16_t from, const struct message *message)
{
    struct group *group = group_of(node, (uint16_t)message->group);
    if (group == NULL || group->incoming == NULL || message->body.size < 16) return;
    struct incoming *in = group->incoming;
    if (in->from != from || in->id != load_u64(message->body.at)) return;
    in->heard_ns = node->now_ns;
    uint64_t number = load_u64(message->body.at + 8);
    if (number <= in->taken) {
        send_ack(node, from, group->id, in->id, in->taken, ACK_GOING);
        return;
    }
    if (number > in->taken + WINDOW) return;
    struct chunk *chunk = &in->queued[number % WINDOW];
    if (chunk->number != number) {
        buffer_reset(&chunk->bytes, SNAPSHOT_CHUNK_MAX);
        struct bytes bytes = bytes_of(message->body.at + 16, message->body.size - 16);
        if (buffer_append(&chunk->bytes, bytes.at, bytes.size) != OK) return;
        chunk->number = number;
    }
    incoming_pump(group);
}

static void on_end(struct node *node, uint16_t from, const struct message *message)
{
    struct group *group = group_of(node, (uint16_t)message->group);
    if (group == NULL || group->incoming == NULL || message->body.size < 24) return;
    struct incoming *in = group->incoming;
    if (in->from != from || in->id != load_u64(message->body.at)) return;
    in->heard_ns = node->now_ns;
    in->total = load_u64(message->body.at + 8) + 1;
    in->settled = load_u64(message->body.at + 16);
    finish_if_whole(group);
}

double catchup_progress(const struct group *group)
{
    const struct incoming *in = group->incoming;
    if (in == NULL) return group->quarantined ? 0 : 1;
    if (in->total > 0) return (double)in->taken / (double)in->total;
    /* how many chunks there will be is known at the end only */
    return 1 - 1 / (1 + (double)in->taken / 16);
}

/* ---- repair ---- */

void catchup_refetch(struct group *group)
{
    if (group->quarantined) return;
    log_warn("this replica's data is not to be trusted; it is fetched anew", "range=%u", group->id);
    group->quarantined = true;
    group->damaged = false;
    group->node->stats.repairs++;
    raft_set_passive(&group->raft, true);
    group_ready(group);
}

/* a damaged leader hands over first; others have the data */
static void repair(struct group *group)
{
    const struct raft_config *config = &group->raft.config;
    if (config->voter_count < 2 && config->old_count == 0 && config->learner_count == 0) return;
    if (group->raft.role == RAFT_LEADER && !group->repair_asked && raft_transfer(&group->raft, 0)) {
        group->repair_asked = true;
        group_ready(group);
        return;
    }
    if (group->raft.role == RAFT_LEADER && group->raft.transfer_to != 0) return;
    group->repair_asked = false;
    catchup_refetch(group);
}

static uint64_t own_hash(const struct group *group, uint64_t index)
{
    for (int i = 0; i < HASHES_KEPT; i++) {
        if (group->hashes[i].index == index) return group->hashes[i].hash;
    }
    return 0;
}

/* The majority is right. */
static void on_hash(struct node *node, uint16_t from, const struct message *message)
{
    struct group *group = group_of(node, (uint16_t)message->group);
    if (group == NULL || group->raft.role != RAFT_LEADER || message->body.size < 16) return;
    uint64_t index = load_u64(message->body.at), hash = load_u64(message->body.at + 8);
    uint64_t own = own_hash(group, index);
    if (index != group->hash_index || own == 0) return;
    uint32_t same = 1, as_this = 0;
    uint16_t odd[RAFT_PEERS_MAX];
    uint32_t odd_count = 0;
    for (uint32_t i = 0; i < group->raft.progress_count; i++) {
        const struct raft_progress *progress = &group->raft.progress[i];
        if (progress->node == from) group->peer_hash[i] = hash;
        uint64_t said = group->peer_hash[i];
        if (said == 0 || !raft_config_is_voter(&group->raft.config, progress->node)) {
            if (progress->node == from && hash != own) odd[odd_count++] = from;
            continue;
        }
        same += said == own ? 1 : 0;
        as_this += said == hash ? 1 : 0;
        if (said != own) odd[odd_count++] = progress->node;
    }
    if (odd_count == 0) return;
    uint32_t majority = group->raft.config.voter_count / 2u + 1;
    if (same >= majority) {
        for (uint32_t i = 0; i < odd_count; i++) {
            node->stats.divergences++;
            log_error("a replica differs from the others", "range=%u member=%u", group->id, odd[i]);
            (void)wire_add(node, odd[i], NET_CONTROL, WIRE_REFETCH, group->id, 0);
        }
        memset(group->peer_hash, 0, sizeof group->peer_hash);
    } else if (hash != own && as_this >= majority) {
        node->stats.divergences++;
        log_error("this leader differs from the others", "range=%u", group->id);
        group->damaged = true;
    }
}

/* ---- feeds: catching up by the log ---- */

static void run_clear(struct run *run)
{
    for (uint32_t i = 0; i < run->count; i++)
        free(run->entries[i]);
    run->count = 0;
    run->bytes = 0;
}

static void feed_close_reader(struct node *node, struct feed *feed)
{
    if (feed->reader != NULL) wal_reader_close(feed->reader);
    feed->reader = NULL;
    for (uint32_t i = 0; i < node->group_slots; i++) {
        if (feed->runs[i] != NULL) run_clear(feed->runs[i]);
    }
}

static void feed_free(struct node *node, struct feed *feed)
{
    struct feed **at = &node->feeds;
    while (*at != feed)
        at = &(*at)->next;
    *at = feed->next;
    if (feed->runs != NULL) feed_close_reader(node, feed);
    for (uint32_t i = 0; feed->runs != NULL && i < node->group_slots; i++)
        free(feed->runs[i]);
    free(feed->runs);
    free(feed->needs);
    free(feed);
}

static struct feed *feed_of(struct node *node, uint16_t peer)
{
    for (struct feed *feed = node->feeds; feed != NULL; feed = feed->next) {
        if (feed->peer == peer) return feed;
    }
    struct feed *feed = calloc(1, sizeof *feed);
    if (feed == NULL) return NULL;
    feed->peer = peer;
    feed->next = node->feeds;
    node->feeds = feed;
    feed->needs = calloc(node->group_slots, 1);
    feed->runs = calloc(node->group_slots, sizeof(struct run *));
    if (feed->needs == NULL || feed->runs == NULL) {
        feed_free(node, feed);
        return NULL;
    }
    feed->moved_ns = node->now_ns;
    node->stats.log_catch_ups++;
    return feed;
}

void catchup_start(struct group *group, const struct raft_append *append)
{
    struct node *node = group->node;
    /* A new replica far behind is faster filled by a snapshot than by repeating history */
    const struct raft_progress *progress = raft_progress_of(&group->raft, append->to);
    uint64_t behind = group->raft.last - append->first;
    uint64_t most = progress != NULL && progress->match == 0 ? NEW_BEHIND_MAX : BEHIND_MAX;
    if (behind > most && progress != NULL && progress->active &&
        outgoing_start(group, append->to, append->first + behind / 2))
        return;
    bool on_disk = !append->snapshot && append->first >= group->raft.first &&
        entries_lsn(&group->entries, append->first) > node->trimmed;
    if (!on_disk) {
        (void)outgoing_start(group, append->to, 0);
        return;
    }
    struct feed *feed = feed_of(node, append->to);
    if (feed != NULL) feed->needs[group->id] = 1;
}

/* The group still needs the log for this peer: it leads, and what comes next is not in memory. */
static bool still_needs(struct node *node, struct feed *feed, uint32_t id)
{
    struct group *group = node->groups[id];
    if (feed->needs[id] == 0) return false;
    feed->needs[id] = 0;
    if (group == NULL || group->raft.role != RAFT_LEADER) return false;
    const struct raft_progress *progress = raft_progress_of(&group->raft, feed->peer);
    if (progress == NULL || progress->state == RAFT_SNAPSHOT) return false;
    if (progress->next >= group->entries.first || progress->next < group->raft.first) {
        group_mark_dirty(group);
        return false;
    }
    feed->needs[id] = 1;
    return true;
}

static bool feed_open(struct node *node, struct feed *feed)
{
    lsn_t from = 0;
    for (uint32_t i = 0; i < node->group_slots; i++) {
        if (!still_needs(node, feed, i)) continue;
        struct group *group = node->groups[i];
        lsn_t lsn = entries_lsn(&group->entries, raft_progress_of(&group->raft, feed->peer)->next);
        if (lsn > node->trimmed && (from == 0 || lsn < from)) from = lsn;
    }
    if (from == 0) return false;
    feed->after = from - 1;
    return wal_reader_open(engine_wal(node->engine), from - 1, node->durable, &feed->reader) == OK;
}

/* false: the window is full; the run waits */
static bool run_send(struct node *node, struct feed *feed, uint32_t id)
{
    struct run *run = feed->runs[id];
    struct group *group = node->groups[id];
    if (run == NULL || run->count == 0) return true;
    if (group == NULL || group->raft.role != RAFT_LEADER) {
        run_clear(run);
        return true;
    }
    const struct raft_progress *progress = raft_progress_of(&group->raft, feed->peer);
    bool fits = progress != NULL && progress->next == run->entries[0]->index;
    struct raft_append append;
    if (fits && !raft_append_next(&group->raft, feed->peer, &append)) return false;
    if (fits && append.first == run->entries[0]->index) {
        group_send_run(group, &append, run->entries, run->count);
        feed->moved_ns = node->now_ns;
    }
    run_clear(run);
    (void)still_needs(node, feed, id);
    return true;
}

static bool runs_send(struct node *node, struct feed *feed)
{
    bool all = true;
    for (uint32_t i = 0; i < node->group_slots; i++)
        all = run_send(node, feed, i) && all;
    return all;
}

static void feed_entry(
    struct node *node, struct feed *feed, uint16_t id, lsn_t lsn, const struct entry_record *record)
{
    if (id >= node->group_slots || feed->needs[id] == 0) return;
    struct group *group = node->groups[id];
    if (group == NULL || group->raft.role != RAFT_LEADER) return;
    const struct raft_progress *progress = raft_progress_of(&group->raft, feed->peer);
    if (progress == NULL) return;
    struct run *run = feed->runs[id];
    uint64_t expected =
        run != NULL && run->count > 0 ? run->entries[0]->index + run->count : progress->next;
    bool wanted = record->index == expected && record->index < group->entries.first &&
        record->term == raft_term_at(&group->raft, record->index);
    if (!wanted) return;
    if (run == NULL) run = feed->runs[id] = calloc(1, sizeof *run);
    if (run == NULL || run->count == RUN_ENTRIES || run->bytes > RUN_BYTES) return;
    struct entry *entry = entry_new(record->index, record->term, record->kind, record->data.size);
    if (entry == NULL) return;
    if (entry->size > 0) memcpy(entry->data, record->data.at, entry->size);
    entry->lsn = lsn;
    run->entries[run->count++] = entry;
    run->bytes += entry->size + sizeof *entry;
}

static void feed_record(struct node *node, struct feed *feed, const struct wal_record *record)
{
    struct entry_record entry;
    feed->after = record->lsn;
    if (record->type == WAL_RECORD_ENTRY) {
        if (entry_record_decode(record->payload, &entry) == OK && record->group <= UINT16_MAX)
            feed_entry(node, feed, (uint16_t)record->group, record->lsn, &entry);
    } else if (record->type == WAL_RECORD_ENTRIES) {
        struct bytes rest = record->payload;
        uint16_t id;
        while (entry_part_next(&rest, &id, &entry) == OK)
            feed_entry(node, feed, id, record->lsn, &entry);
    }
}

static bool feed_full(const struct node *node, const struct feed *feed)
{
    for (uint32_t i = 0; i < node->group_slots; i++) {
        const struct run *run = feed->runs[i];
        if (run != NULL && (run->count == RUN_ENTRIES || run->bytes > RUN_BYTES)) return true;
    }
    return false;
}

/* one slice of reading; false: the feed has nothing more to do */
static bool feed_turn(struct node *node, struct feed *feed)
{
    if (!runs_send(node, feed)) return node->now_ns - feed->moved_ns < 5000000000ull;
    if (wire_queued(node, feed->peer, NET_DATA) > QUEUE_BYTES) return true;
    if (feed->reader == NULL && !feed_open(node, feed)) return false;
    uint64_t started_ns = node_clock_ns(node);
    size_t bytes = 0;
    while (bytes < FEED_BYTES && !feed_full(node, feed)) {
        struct wal_record record;
        enum err err = wal_reader_next(feed->reader, &record);
        if (err != OK) {
            (void)runs_send(node, feed);
            feed_close_reader(node, feed);
            if (err != ERR_NOT_FOUND) {
                log_warn("the log cannot be read back", "error=%s", err_name(err));
                return false;
            }
            return true; /* opened again from where it is still needed */
        }
        bytes += record.payload.size + 32;
        feed_record(node, feed, &record);
        if (node_clock_ns(node) - started_ns > FEED_NS) break;
    }
    (void)runs_send(node, feed);
    return true;
}

/* ---- own entries that are on disk only ---- */

enum err catchup_apply_from_log(struct group *group)
{
    struct node *node = group->node;
    lsn_t lsn = entries_lsn(&group->entries, group->applied + 1);
    if (lsn == 0 || lsn <= node->trimmed) {
        /* neither in memory nor in the log: only the others have it */
        if (!group->quarantined) catchup_refetch(group);
        return OK;
    }
    struct wal_reader *reader;
    TRY(wal_reader_open(engine_wal(node->engine), lsn - 1, node->durable, &reader));
    enum err err = OK;
    while (err == OK && group->applied < group->raft.commit &&
        entries_get(&group->entries, group->applied + 1) == NULL) {
        struct wal_record record;
        err = wal_reader_next(reader, &record);
        if (err != OK) break;
        struct entry_record entry;
        uint16_t id = (uint16_t)record.group;
        struct bytes rest = record.payload;
        bool many = record.type == WAL_RECORD_ENTRIES;
        bool one = record.type == WAL_RECORD_ENTRY && record.group == group->id;
        if (one) err = entry_record_decode(record.payload, &entry);
        while (err == OK && (one || (many && entry_part_next(&rest, &id, &entry) == OK))) {
            one = false;
            bool next = id == group->id && entry.index == group->applied + 1 &&
                entry.index <= group->raft.commit &&
                entry.term == raft_term_at(&group->raft, entry.index);
            if (next) err = group_apply_one(group, entry.index, entry.term, entry.kind, entry.data);
        }
    }
    wal_reader_close(reader);
    return err == ERR_NOT_FOUND ? OK : err;
}

/* ---- leaving a range ---- */

void catchup_drop_data(struct group *group)
{
    struct node *node = group->node;
    if (group->incoming != NULL) return;
    group->holding = true;
    group->holding_ns = node->now_ns;
    if (engine_range_in_memory(node->engine, group->id)) {
        want_checkpoint(node);
        return;
    }
    /* Without its log it would vote for one that a majority has left behind: so it votes no more
     * until, as a replica anew, it has applied what it had. */
    uint64_t had = group->raft.last > group->settled ? group->raft.last : group->settled;
    struct range_meta votes = meta_of_votes(group);
    votes.flags = RANGE_META_FORGETFUL;
    votes.settled = had;
    if (engine_range_remove(node->engine, group->id, &votes) != OK) return;
    log_info("this node holds the range no more", "range=%u", group->id);
    struct raft_restore restore = {.term = group->raft.term, .vote = group->raft.vote, .first = 1};
    uint16_t id = group->id;
    group_forget(group, 1);
    bool dirty = group->dirty;
    node->groups[id] = NULL;
    group_free(group);
    group = group_create(node, id, &restore);
    if (group == NULL) node_fail(node, "no memory for a range");
    if (group == NULL) return;
    group->dirty = dirty;
    group->settled = had;
    group->forgetful = true;
    raft_set_faulty(&group->raft, group->forgetful);
}

/* What is in memory must follow the snapshot without a gap: older entries of the log may be gone. */
static void ask_for_snapshot(struct group *group)
{
    uint8_t *at = wire_add(
        group->node, group->raft.leader, NET_CONTROL, WIRE_SNAPSHOT_WANTED, group->id, 8);
    if (at != NULL) store_u64(at, group->entries.first - 1);
}

static void on_wanted(struct group *group, uint16_t from, const struct message *message)
{
    uint64_t least = message->body.size >= 8 ? load_u64(message->body.at) : 0;
    if (least > group->applied) least = group->applied;
    (void)outgoing_start(group, from, least);
}

/* ---- turns ---- */

void catchup_on_message(
    struct node *node, uint16_t from, enum net_lane lane, const struct message *message)
{
    (void)lane;
    if (message->group >= node->group_slots) return;
    struct group *group = node->groups[message->group];
    switch (message->type) {
    case WIRE_SNAPSHOT_BEGIN:
        on_begin(node, from, message);
        break;
    case WIRE_SNAPSHOT_CHUNK:
        on_chunk(node, from, message);
        break;
    case WIRE_SNAPSHOT_END:
        on_end(node, from, message);
        break;
    case WIRE_SNAPSHOT_ACK:
        on_ack(node, from, message);
        break;
    case WIRE_SNAPSHOT_DONE:
        on_done(node, from, message);
        break;
    case WIRE_SNAPSHOT_WANTED:
        if (group != NULL && group->raft.role == RAFT_LEADER &&
            raft_progress_of(&group->raft, from) != NULL)
            on_wanted(group, from, message);
        break;
    case WIRE_HASH:
        on_hash(node, from, message);
        break;
    case WIRE_REFETCH:
        if (group != NULL && group->raft.leader == from) catchup_refetch(group);
        break;
    default:
        break;
    }
}

void catchup_turn(struct node *node)
{
    for (struct outgoing *out = node->outgoing, *next; out != NULL; out = next) {
        next = out->next;
        (void)outgoing_pump(node, out);
    }
    for (uint32_t i = 0; i < node->group_slots && node->incoming_count > 0; i++) {
        struct group *group = node->groups[i];
        if (group != NULL && group->incoming != NULL && group->incoming->install != NULL)
            incoming_pump(group);
    }
    for (struct feed *feed = node->feeds, *next; feed != NULL; feed = next) {
        next = feed->next;
        lsn_t before = feed->after;
        if (!feed_turn(node, feed)) {
            feed_free(node, feed);
        } else if (feed->after != before && node->config.wake != NULL) {
            node->config.wake(node->config.ctx); /* goes on in the next turn */
        }
    }
}

void catchup_tick(struct node *node)
{
    for (struct outgoing *out = node->outgoing, *next; out != NULL; out = next) {
        next = out->next;
        outgoing_tick(node, out);
    }
    catchup_turn(node);
    bool second = node->now_ns >= node->repair_ns;
    if (second) node->repair_ns = node->now_ns + 500000000;
    for (uint32_t i = 0; i < node->group_slots && second; i++) {
        struct group *group = node->groups[i];
        if (group == NULL) continue;
        if (group->damaged) repair(group);
        bool idle = group->incoming == NULL;
        if (idle && group->holding &&
            node->now_ns - group->holding_ns > (uint64_t)HOLD_MS * 1000000) {
            group->holding = false;
            group_apply(group);
        }
        if (group->incoming != NULL && !group->incoming->finishing &&
            node->now_ns - group->incoming->heard_ns > (uint64_t)GIVE_UP_MS * 1000000) {
            group->quarantined = true;
            incoming_free(group);
        }
        if (group->quarantined && idle && group->raft.leader != 0) ask_for_snapshot(group);
    }
}

void catchup_peer_down(struct node *node, uint16_t number)
{
    for (struct feed *feed = node->feeds, *next; feed != NULL; feed = next) {
        next = feed->next;
        if (feed->peer == number) feed_free(node, feed);
    }
}

lsn_t catchup_keep_after(const struct node *node)
{
    lsn_t keep = UINT64_MAX;
    for (const struct feed *feed = node->feeds; feed != NULL; feed = feed->next) {
        if (feed->reader != NULL && feed->after < keep) keep = feed->after;
    }
    for (uint32_t i = 0; i < node->group_slots; i++) {
        const struct group *group = node->groups[i];
        if (group == NULL || group->raft.role != RAFT_LEADER) continue;
        for (uint32_t p = 0; p < group->raft.progress_count; p++) {
            const struct raft_progress *progress = &group->raft.progress[p];
            uint64_t from = progress->state == RAFT_SNAPSHOT ? progress->snapshot : progress->match;
            if (from >= group->raft.last) continue;
            lsn_t lsn = entries_lsn(&group->entries, from + 1);
            if (lsn > 0 && lsn - 1 < keep) keep = lsn - 1;
        }
    }
    return keep;
}

void catchup_free(struct node *node)
{
    while (node->outgoing != NULL)
        outgoing_free(node, node->outgoing);
    while (node->feeds != NULL)
        feed_free(node, node->feeds);
    for (uint32_t i = 0; node->groups != NULL && i < node->group_slots; i++) {
        if (node->groups[i] != NULL) incoming_free(node->groups[i]);
    }
}
