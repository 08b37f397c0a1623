#include "cluster/node/node.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/hash.h"
#include "cluster/map/map.h"
#include "cluster/node/node_internal.h"

/* Life of a node: opening (what the store and the log say of every range), turns, closing. */

enum { CACHE_SHARE = 8, TICK_LIMIT_MS = 50, SLOW_LOG_MS = 2000, FRAMES_PER_POLL = 256 };

struct group *group_of(const struct node *node, uint16_t range)
{
    return range < node->group_slots ? node->groups[range] : NULL;
}

uint64_t node_clock_ns(const struct node *node)
{
    const struct clock *clock = &node->config.io->clock;
    return clock->monotonic_ns(clock->ctx);
}

void node_fail(struct node *node, const char *why)
{
    if (!node->failed) log_error(why, "node=%s", node->name);
    node->failed = true;
}

static void tell_tickets(struct node *node)
{
    if (!node->tickets_moved) return;
    node->tickets_moved = false;
    if (node->config.on_tickets != NULL) node->config.on_tickets(node->config.ctx);
}

/* ---- opening: called by the engine ---- */

static enum err on_range(void *ctx, uint16_t range, const struct range_meta *meta)
{
    struct node *node = ctx;
    if (range >= node->group_slots) return ERR_CORRUPT;
    struct raft_restore restore = {
        .term = meta->hard_term,
        .vote = meta->vote,
        .first = meta->index + 1,
        .first_term = meta->term,
        .commit = meta->index,
        .config_index = meta->config_index,
    };
    bool genesis = (meta->flags & RANGE_META_GENESIS) != 0;
    if (genesis) {
        restore.config.voters[0] = node->config.number;
        restore.config.voter_count = 1;
    } else if (meta->config_size > 0) {
        TRY(raft_config_decode(bytes_of(meta->config, meta->config_size), &restore.config));
    }
    struct group *group = group_create(node, range, &restore);
    if (group == NULL) return ERR_NOMEM;
    group->hash = meta->hash;
    group->settled = meta->settled > meta->index ? meta->settled : 0;
    group->quarantined = (meta->flags & RANGE_META_INSTALLING) != 0;
    group->forgetful = (meta->flags & RANGE_META_FORGETFUL) != 0 && group->settled != 0;
    return OK;
}

static enum err replay_entry(
    struct node *node, uint16_t id, lsn_t lsn, const struct entry_record *record)
{
    if (id >= node->group_slots) return ERR_CORRUPT;
    struct group *group = node->groups[id];
    if (group == NULL) {
        struct raft_restore restore = {.first = 1};
        group = group_create(node, id, &restore);
        if (group == NULL) return ERR_NOMEM;
    }
    struct raft *raft = &group->raft;
    group->log_lsn = lsn;
    entries_logged(&group->entries, record->index, lsn);
    /* in the data already, or left behind by a snapshot that was installed over it */
    if (record->index <= group->applied || record->index > raft->last + 1) return OK;
    if (record->term < raft_term_at(raft, record->index - 1)) return OK;
    struct raft_config config;
    bool is_config = record->kind == ENTRY_CONFIG;
    if (is_config) TRY(raft_config_decode(record->data, &config));
    raft_restore_entry(raft, record->index, record->term, is_config ? &config : NULL);
    group_truncate(group, record->index);
    struct entry *entry = entry_new(record->index, record->term, record->kind, record->data.size);
    if (entry == NULL) return ERR_NOMEM;
    if (entry->size > 0) memcpy(entry->data, record->data.at, entry->size);
    entry->lsn = lsn;
    group_keep(group, entry);
    raft_restore_commit(raft, record->commit < raft->last ? record->commit : raft->last);
    return OK;
}

/* applies what the records themselves say is committed */
static enum err replay_commits(struct group *group)
{
    while (group->applied < (PLANTED_BUG(57) ? group->raft.last : group->raft.commit)) {
        const struct entry *entry = entries_get(&group->entries, group->applied + 1);
        if (entry == NULL) break;
        TRY(group_apply_one(
            group, entry->index, entry->term, entry->kind, bytes_of(entry->data, entry->size)));
    }
    return OK;
}

static enum err replay_record(struct node *node, const struct wal_record *record)
{
    struct entry_record entry;
    enum err err = OK;
    switch (record->type) {
    case WAL_RECORD_ENTRY:
        err = entry_record_decode(record->payload, &entry);
        if (err != OK || record->group > UINT16_MAX) return ERR_CORRUPT;
        TRY(replay_entry(node, (uint16_t)record->group, record->lsn, &entry));
        if (node->groups[record->group] != NULL) return replay_commits(node->groups[record->group]);
        return OK;
    case WAL_RECORD_ENTRIES: {
        struct bytes rest = record->payload;
        uint16_t id;
        while ((err = entry_part_next(&rest, &id, &entry)) == OK) {
            TRY(replay_entry(node, id, record->lsn, &entry));
            TRY(replay_commits(node->groups[id]));
        }
        return err == ERR_NOT_FOUND ? OK : err;
    }
    case WAL_RECORD_HARD: {
        uint64_t term;
        uint16_t vote;
        TRY(hard_record_decode(record->payload, &term, &vote));
        if (record->group >= node->group_slots) return ERR_CORRUPT;
        struct group *group = node->groups[record->group];
        if (group == NULL) {
            struct raft_restore restore = {.first = 1};
            group = group_create(node, (uint16_t)record->group, &restore);
            if (group == NULL) return ERR_NOMEM;
        }
        group->log_lsn = record->lsn;
        /* the store may know a newer one: its metadata can be younger than this part of the log */
        if (term < group->raft.term || (term == group->raft.term && vote == 0)) return OK;
        group->raft.term = term;
        group->raft.vote = vote;
        return OK;
    }
    default:
        return OK;
    }
}

static enum err on_replay(void *ctx, struct engine *engine, const struct wal_record *record)
{
    struct node *node = ctx;
    node->engine = engine;
    TRY(replay_record(node, record));
    /* only now: a memtable sealed meanwhile does not hold all of this record */
    node->durable = record->lsn;
    return OK;
}

static void range_meta_of(void *ctx, uint16_t range, struct range_meta *meta_out)
{
    const struct node *node = ctx;
    const struct group *group = group_of(node, range);
    *meta_out = (struct range_meta){0};
    if (group == NULL) return;
    const struct raft *raft = &group->raft;
    meta_out->index = group->applied;
    meta_out->term = group->applied_term;
    meta_out->hash = group->hash;
    meta_out->settled = group->settled;
    meta_out->hard_term = raft->term;
    meta_out->vote = raft->vote;
    meta_out->config_index = group->applied_config_index;
    /* a replica to be has no configuration before its first entry of that kind */
    if (group->applied_config.voter_count > 0)
        meta_out->config_size =
            (uint16_t)raft_config_encode(meta_out->config, &group->applied_config);
    if (group->quarantined || group->incoming != NULL) meta_out->flags = RANGE_META_INSTALLING;
    if (group->forgetful) meta_out->flags |= RANGE_META_FORGETFUL;
}

static lsn_t low_water(void *ctx)
{
    const struct node *node = ctx;
    struct wal_stats stats = {.durable = node->durable};
    /* while the log is replayed, what is durable is what was read so far */
    if (engine_wal(node->engine) != NULL && !node->opening)
        wal_stats(engine_wal(node->engine), &stats);
    lsn_t low = stats.durable;
    for (uint32_t i = 0; i < node->group_slots; i++) {
        const struct group *group = node->groups[i];
        if (group == NULL) continue;
        if (group->applied >= group->raft.last) continue;
        const struct entry *entry = entries_get(&group->entries, group->applied + 1);
        lsn_t lsn = entry != NULL ? entry->lsn : entries_lsn(&group->entries, group->applied + 1);
        if (lsn > 0 && lsn - 1 < low) low = lsn - 1;
    }
    return low;
}

static lsn_t keep_after(void *ctx)
{
    return catchup_keep_after(ctx);
}

static void on_durable(void *ctx, lsn_t lsn)
{
    struct node *node = ctx;
    /* while the engine opens, there is nobody to tell and nothing to apply */
    if (node->engine == NULL || node->failed || node->opening) return;
    wal_release(engine_wal(node->engine), lsn);
    groups_on_durable(node, lsn);
    if (!node->failed) tell_tickets(node);
}

static enum err open_engine(struct node *node, struct engine_report *report)
{
    const struct node_config *config = &node->config;
    struct engine_config engine_config = {
        .io = config->io,
        .kv = config->kv,
        .kv_folder = config->kv_folder,
        .ranges = config->ranges,
        .memory = config->memory,
        .slot_size = config->slot_size,
        .log_bytes_max = config->log_bytes_max,
        .accept_loss = config->accept_loss,
        .map_size = config->map_size,
        .chunk_puts = config->chunk_puts,
        .background = config->background,
        .create = config->create,
        .turns = true,
        .scrub = config->scrub,
        .ctx = node,
        .on_durable = on_durable,
        .on_range = on_range,
        .on_replay = on_replay,
        .range_meta = range_meta_of,
        .low_water = low_water,
        .keep_after = keep_after,
        .wake_ctx = config->ctx,
        .wake = config->wake,
    };
    memcpy(engine_config.store_id, config->store_id, sizeof engine_config.store_id);
    return engine_open(&engine_config, report, &node->engine);
}

/* The founding configuration is the first entry of every range's log: what a restart finds there is all it needs. */
static enum err found_group(struct node *node, uint16_t id)
{
    struct raft_restore restore = {.first = 1};
    struct group *group = group_create(node, id, &restore);
    if (group == NULL) return ERR_NOMEM;
    struct raft_config config = {.voter_count = 1};
    config.voters[0] = node->config.number;
    uint8_t bytes[RAFT_CONFIG_BYTES_MAX];
    size_t size = raft_config_encode(bytes, &config);
    struct entry *entry = entry_new(1, 1, ENTRY_CONFIG, size);
    if (entry == NULL) return ERR_NOMEM;
    memcpy(entry->data, bytes, size);
    raft_restore_entry(&group->raft, 1, 1, &config);
    raft_restore_commit(&group->raft, 1);
    return group_log(group, entry) ? OK : ERR_NOMEM;
}

/* the start of a cluster: every range is a group of one */
static enum err found(struct node *node)
{
    for (uint32_t i = 0; i < node->group_slots; i++) {
        if (node->groups[i] == NULL) TRY(found_group(node, (uint16_t)i));
    }
    return OK;
}

static enum err make_tables(struct node *node)
{
    node->group_slots = node->config.ranges + 1;
    node->groups = calloc(node->group_slots, sizeof(struct group *));
    node->reports = calloc(node->group_slots, sizeof *node->reports);
    node->dirty = calloc(node->group_slots, sizeof *node->dirty);
    node->reading = calloc(node->group_slots, sizeof *node->reading);
    node->touched = calloc(node->group_slots, sizeof *node->touched);
    node->peers = calloc(NODE_NUMBERS_MAX, sizeof(struct peer *));
    node->buckets = calloc(NODE_BUCKETS_MAX, sizeof *node->buckets);
    node->placement = calloc(node->group_slots, sizeof *node->placement);
    bool all = node->groups != NULL && node->reports != NULL && node->dirty != NULL &&
        node->reading != NULL && node->touched != NULL && node->peers != NULL &&
        node->buckets != NULL && node->placement != NULL;
    return all ? OK : ERR_NOMEM;
}

static void node_free(struct node *node)
{
    requests_free(node);
    catchup_free(node);
    for (uint32_t i = 0; node->groups != NULL && i < node->group_slots; i++) {
        if (node->groups[i] != NULL) group_free(node->groups[i]);
    }
    wire_free(node);
    while (node->scratch != NULL) {
        struct scratch *next = node->scratch->next;
        free(node->scratch);
        node->scratch = next;
    }
    free(node->groups);
    free(node->reports);
    free(node->dirty);
    free(node->reading);
    free(node->touched);
    free(node->marks);
    free(node->gate);
    free(node->cached);
    free(node->tickets);
    free(node->effects);
    free(node->buckets);
    free(node->placement);
    free(node);
}

/* a lone founder's ranges exist from the start: a folder that never logged anything has none of them stored */
static enum err start_groups(struct node *node)
{
    bool founder = !node->config.joined && node->config.number == 1;
    const struct group *meta = node->groups[META_RANGE];
    bool empty = meta == NULL || (meta->raft.last == 0 && meta->raft.config.voter_count == 0);
    if (founder && (node->config.create || empty)) TRY(found(node));
    for (uint32_t i = 0; i < node->group_slots; i++) {
        struct group *group = node->groups[i];
        if (group == NULL) continue;
        /* data that is whole only at settled does not hinder: the log is whole, so it may vote and lead, and it
         * serves when all up to there is applied */
        if (!group->quarantined && group->applied >= group->settled) {
            group->settled = 0;
            group->forgetful = false;
        }
        if (group->forgetful) raft_set_faulty(&group->raft, true);
        if (group->quarantined) raft_set_passive(&group->raft, true);
        group_ready(group);
    }
    return OK;
}

enum err node_open(
    const struct node_config *config, struct engine_report *report, struct node **node_out)
{
    ASSERT(map_ranges_valid(config->ranges));
    ASSERT(config->number > 0 && config->number <= NODE_NUMBERS_MAX);
    struct node *node = calloc(1, sizeof *node);
    if (node == NULL) return ERR_NOMEM;
    node->config = *config;
    node->opening = true;
    if (node->config.deadline_ms == 0) node->config.deadline_ms = NODE_DEADLINE_MS;
    if (node->config.replicas == 0) node->config.replicas = 3;
    snprintf(node->name, sizeof node->name, "%s", config->name == NULL ? "node" : config->name);
    for (int i = 0; i < 16; i++)
        snprintf(node->cluster_id + (size_t)i * 2, 3, "%02x", config->cluster_id[i]);
    for (int i = 0; i < NODE_BUCKETS_NUMBERED; i++)
        snprintf(node->numbers[i], sizeof node->numbers[i], "%d", i);
    node->cache_max = config->memory / CACHE_SHARE;
    node->ticket_base = node->ticket_next = 1;
    node->request_next = hash64(config->io->seed, bytes_of(&config->incarnation, 8)) | 1;
    node->now_ns = node->ticked_ns = node_clock_ns(node);
    node->now_mono_ms = 1000;
    enum err err = make_tables(node);
    if (err == OK) {
        membership_open(node);
        err = open_engine(node, report);
    }
    if (err == OK) {
        err = membership_load(node);
        if (err == ERR_CORRUPT)
            snprintf(report->detail, sizeof report->detail,
                "a record of the system range (members, names of buckets) is damaged; run "
                "duramen verify");
        if (err != OK) engine_close(node->engine, false);
    }
    if (err != OK) {
        node_free(node);
        return err;
    }
    struct wal_stats stats;
    wal_stats(engine_wal(node->engine), &stats);
    wal_release(engine_wal(node->engine), stats.durable);
    node->durable = stats.durable;
    node->opening = false;
    node_turn_begin(node);
    err = start_groups(node);
    if (err != OK) {
        engine_close(node->engine, false);
        node_free(node);
        return err;
    }
    wire_start(node);
    membership_first_peers(node);
    membership_table_changed(node);
    node_tick(node);
    *node_out = node;
    return OK;
}

void node_close(struct node *node, bool checkpoint)
{
    catchup_free(node); /* its snapshots belong to the engine */
    engine_close(node->engine, checkpoint && !node->failed);
    node->engine = NULL;
    node_free(node);
}

/* ---- turns ---- */

int64_t node_now_ms(const struct node *node)
{
    return node->now_ms;
}

void node_turn_begin(struct node *node)
{
    const struct clock *clock = &node->config.io->clock;
    int64_t now_ms = clock->wall_ms(clock->ctx);
    /* a wall clock that jumps back does not bring expired keys back */
    if (now_ms > node->now_ms) node->now_ms = now_ms;
    node->now_ns = node_clock_ns(node);
}

static void start_reads(struct node *node)
{
    for (uint32_t i = 0; i < node->reading_count; i++) {
        struct group *group = node->groups[node->reading[i]];
        ticket_t ticket = group->turn_read;
        if (ticket == 0) continue;
        group->turn_read = 0;
        uint64_t round = raft_read_round(&group->raft);
        struct waiting waiting = {
            .ticket = ticket, .index = group->turn_read_index, .round = round};
        if (round == 0) {
            ticket_fail(node, ticket, TICKET_REFUSED);
        } else if (!waiting_push(&group->reads, waiting)) {
            node_fail(node, "no memory");
        }
        group_ready(group);
    }
    node->reading_count = 0;
}

static void send_dirty(struct node *node)
{
    /* sending may make other groups dirty no more, and the same again */
    for (uint32_t i = 0; i < node->dirty_count; i++) {
        struct group *group = node->groups[node->dirty[i]];
        group->dirty = false;
        group_send_appends(group);
        if (node->failed) break;
    }
    node->dirty_count = 0;
}

void node_turn_end(struct node *node, bool alone)
{
    ASSERT(!node->in_txn);
    if (!node->failed) {
        requests_turn(node);
        start_reads(node);
        catchup_turn(node);
        send_dirty(node);
        wire_flush(node, false);
        if (wal_waiting(engine_wal(node->engine))) engine_flush(node->engine, alone);
        tell_tickets(node);
    }
    engine_read_done(node->engine);
}

enum err node_poll(struct node *node)
{
    if (node->failed) return ERR_POISONED;
    const struct net *net = &node->config.io->net;
    node->now_ns = node_clock_ns(node);
    enum err err = engine_poll(node->engine);
    if (err != OK) node->failed = true;
    if (!node->failed && net->ctx != NULL) (void)net->poll(net->ctx, FRAMES_PER_POLL);
    if (!node->failed) tell_tickets(node);
    if (node->refused) return ERR_PERMISSION;
    return node->failed ? ERR_POISONED : OK;
}

void node_idle(struct node *node)
{
    struct wal *wal = engine_wal(node->engine);
    if (!node->failed && !wal_waiting(wal) && !wal_in_flight(wal)) wal_idle(wal);
}

/* A leader whose disk takes nothing hands over or, at last, steps down. */
static void watch_disk(struct group *group)
{
    struct node *node = group->node;
    if (group->raft.role != RAFT_LEADER || group->appended_ns == 0) return;
    if (group->raft.progress_count == 0) return;
    uint64_t stalled_ms = (node->now_ns - group->appended_ns) / 1000000;
    if (stalled_ms < SLOW_LOG_MS) return;
    if (!raft_transfer(&group->raft, 0) || stalled_ms > 2 * SLOW_LOG_MS)
        raft_step_down(&group->raft);
    group_ready(group);
}

static void tick_groups(struct node *node)
{
    /* A process that was kept waiting does not count that time against its leaders; what they sent meanwhile was
     * taken in first. With leases time is time. */
    uint64_t passed_ms = (node->now_ns - node->ticked_ns) / 1000000;
    if (passed_ms == 0) return;
    node->ticked_ns += passed_ms * 1000000;
    bool late = passed_ms > TICK_LIMIT_MS;
    if (late && !node->config.leases) passed_ms = TICK_LIMIT_MS;
    node->now_mono_ms += passed_ms;
    for (uint32_t i = 0; i < node->group_slots; i++) {
        struct group *group = node->groups[i];
        if (group == NULL) continue;
        if (late && node->config.leases) raft_drop_lease(&group->raft);
        raft_tick(&group->raft, node->now_mono_ms);
        struct raft *raft = &group->raft;
        if (raft->hard_changed || raft->message_count > 0 || raft->append_due ||
            raft->noop_index != 0 || raft->config_wanted ||
            (raft->role == RAFT_LEADER) != group->leading)
            group_ready(group);
        watch_disk(group);
        if (node->failed) return;
    }
}

void node_tick(struct node *node)
{
    if (node->failed) return;
    node_turn_begin(node);
    engine_tick(node->engine);
    tick_groups(node);
    if (node->failed) return;
    tickets_tick(node);
    requests_tick(node);
    membership_tick(node);
    catchup_tick(node);
    if (node->now_ns - node->slow_tick_ns >= UINT64_C(100000000)) {
        node->slow_tick_ns = node->now_ns;
        groups_trimmed(node);
        txn_remove_expired(node);
    }
    requests_turn(node);
    start_reads(node);
    send_dirty(node);
    wire_flush(node, true);
    tell_tickets(node);
}

/* ---- the rest ---- */

bool node_alone(const struct node *node)
{
    return node->alone;
}

bool node_serves(const struct node *node, uint16_t range)
{
    const struct group *group = group_of(node, range);
    return group != NULL && !node->failed && !node->handing_over && group_serves(group);
}

bool node_has(const struct node *node, uint16_t range)
{
    const struct group *group = group_of(node, range);
    return group != NULL && !group->quarantined && !group->holding && group->stale_ns == 0 &&
        (raft_config_is_voter(&group->raft.config, node->config.number) ||
            raft_config_is_learner(&group->raft.config, node->config.number)) &&
        group->applied >= group->settled && group->applied > 0;
}

uint16_t node_range_of(const struct node *node, struct bytes key)
{
    return map_range(key, node->config.ranges);
}

bool node_hand_over(struct node *node)
{
    bool busy = false;
    for (uint32_t i = 0; i < node->group_slots; i++) {
        struct group *group = node->groups[i];
        if (group == NULL || group->raft.role != RAFT_LEADER) continue;
        const struct raft_config *config = &group->raft.config;
        if (config->voter_count < 2 && config->old_count == 0) continue;
        busy = true;
        if (group->raft.transfer_to != 0) continue;
        /* what is under way is finished first: a hand-over makes nothing unknown */
        if (group->writes.count > 0 || group->reads.count > 0 || group->turn_read != 0) {
            node->handing_over = true;
            continue;
        }
        raft_transfer(&group->raft, 0);
        group_ready(group);
    }
    node->handing_over = true;
    return !busy && node->executions == NULL && node->replies == NULL;
}

struct engine *node_engine(struct node *node)
{
    return node->engine;
}

const char *node_name(const struct node *node)
{
    return node->name;
}

const char *node_cluster_id(const struct node *node)
{
    return node->cluster_id;
}

uint32_t node_ranges(const struct node *node)
{
    return node->config.ranges;
}

uint64_t node_expired_count(const struct node *node)
{
    return node->expired;
}

void node_cluster_stats(const struct node *node, struct node_cluster_stats *out)
{
    *out = node->stats;
}
