#include <stdlib.h>

#include "base/hash.h"
#include "cluster/map/reconcile.h"
#include "cluster/node/node_internal.h"

/* One range's Raft group on this node: the core decides, this file does: log, then send, then apply. The order is
 * kept in one place, group_ready(): what a message rests on is in the log before it, and the message waits in
 * the gate until that part of the log is durable. */

enum {
    APPEND_BYTES = 128 * 1024, /* of entries in one message, but always at least one */
    APPEND_ENTRIES = 1024,
    APPEND_CONFIGS = 4,
    QUEUE_BYTES_MAX = 16 << 20, /* to one peer; beyond that appends wait */
    ENTRY_WIRE_HEADER = 16,
    CACHE_TRIES = 64,
};

struct raft_settings group_settings(const struct node *node)
{
    return (struct raft_settings){
        .heartbeat_ms = 100,
        .election_ms = 600,
        .hint_spread_ms = 100,
        .inflight_messages = 256,
        .inflight_bytes = 8 << 20,
        .leases = node->config.leases,
        .pre_vote = true,
        .check_quorum = true,
    };
}

struct group *group_create(struct node *node, uint16_t id, const struct raft_restore *restore)
{
    ASSERT(id < node->group_slots && node->groups[id] == NULL);
    struct group *group = calloc(1, sizeof *group);
    if (group == NULL) return NULL;
    group->node = node;
    group->id = id;
    uint64_t seed = node->config.io->seed;
    if (pending_init(&group->pending, seed) != OK) {
        free(group);
        return NULL;
    }
    struct raft_settings settings = group_settings(node);
    uint64_t random = hash64(seed + node->config.number, bytes_of(&id, sizeof id));
    raft_init(&group->raft, node->config.number, &settings, restore, random, node->now_mono_ms);
    entries_init(&group->entries, restore->first);
    group->applied = restore->first - 1;
    group->applied_term = restore->first_term;
    group->applied_config = restore->config;
    group->applied_config_index = restore->config_index;
    node->groups[id] = group;
    return group;
}

void group_free(struct group *group)
{
    pending_deinit(&group->pending);
    entries_deinit(&group->entries);
    free(group->writes.at);
    free(group->reads.at);
    free(group);
}

bool group_serves(const struct group *group)
{
    const struct raft *raft = &group->raft;
    return raft_serving(raft) && group->applied == raft->commit && !group->quarantined &&
        !group->holding && group->applied >= group->settled && raft->transfer_to == 0;
}

void group_mark_dirty(struct group *group)
{
    if (group->dirty) return;
    group->dirty = true;
    group->node->dirty[group->node->dirty_count++] = group->id;
}

/* ---- memory of entries ---- */

static bool evictable(const struct node *node, const struct group *group)
{
    const struct entry *entry = entries_get(&group->entries, group->entries.first);
    return entry != NULL && entry->index <= group->applied && entry->lsn <= node->durable;
}

static bool cached_push(struct node *node, uint16_t id)
{
    if (node->cached_count == node->cached_capacity) {
        size_t capacity = node->cached_capacity == 0 ? 1024 : node->cached_capacity * 2;
        uint16_t *ring = calloc(capacity, sizeof *ring);
        if (ring == NULL) return false;
        for (size_t i = 0; i < node->cached_count; i++)
            ring[i] = node->cached[(node->cached_first + i) & (node->cached_capacity - 1)];
        free(node->cached);
        node->cached = ring;
        node->cached_first = 0;
        node->cached_capacity = capacity;
    }
    node->cached[(node->cached_first + node->cached_count++) & (node->cached_capacity - 1)] = id;
    return true;
}

static void evict(struct node *node)
{
    for (int tries = 0; tries < CACHE_TRIES; tries++) {
        if (node->cache_bytes <= node->cache_max || node->cached_count == 0) return;
        uint16_t id = node->cached[node->cached_first];
        node->cached_first = (node->cached_first + 1) & (node->cached_capacity - 1);
        node->cached_count--;
        struct group *group = node->groups[id];
        if (group == NULL || group->entries.count == 0) continue;
        if (evictable(node, group)) {
            size_t before = group->entries.bytes;
            entries_evict(&group->entries);
            node->cache_bytes -= before - group->entries.bytes;
        } else {
            (void)cached_push(node, id); /* there is room: one was just taken out */
        }
    }
}

void group_keep(struct group *group, struct entry *entry)
{
    struct node *node = group->node;
    size_t before = group->entries.bytes;
    if (entries_add(&group->entries, entry) != OK || !cached_push(node, group->id)) {
        node_fail(node, "no memory for an entry");
        return;
    }
    node->cache_bytes += group->entries.bytes - before;
    evict(node);
}

void group_truncate(struct group *group, uint64_t index)
{
    size_t before = group->entries.bytes;
    entries_truncate(&group->entries, index);
    group->node->cache_bytes -= before - group->entries.bytes;
}

void group_forget(struct group *group, uint64_t next)
{
    group->node->cache_bytes -= group->entries.bytes;
    entries_reset(&group->entries, next);
}

/* ---- the log ---- */

static bool mark_push(struct node *node, struct durable_mark mark)
{
    if (node->mark_count == node->mark_capacity) {
        size_t capacity = node->mark_capacity == 0 ? 256 : node->mark_capacity * 2;
        struct durable_mark *marks = calloc(capacity, sizeof *marks);
        if (marks == NULL) return false;
        for (size_t i = 0; i < node->mark_count; i++)
            marks[i] = node->marks[(node->mark_first + i) & (node->mark_capacity - 1)];
        free(node->marks);
        node->marks = marks;
        node->mark_first = 0;
        node->mark_capacity = capacity;
    }
    node->marks[(node->mark_first + node->mark_count++) & (node->mark_capacity - 1)] = mark;
    return true;
}

static bool gate_push(struct node *node, struct gated gated)
{
    if (node->gate_count == node->gate_capacity) {
        size_t capacity = node->gate_capacity == 0 ? 64 : node->gate_capacity * 2;
        struct gated *gate = calloc(capacity, sizeof *gate);
        if (gate == NULL) return false;
        for (size_t i = 0; i < node->gate_count; i++)
            gate[i] = node->gate[(node->gate_first + i) & (node->gate_capacity - 1)];
        free(node->gate);
        node->gate = gate;
        node->gate_first = 0;
        node->gate_capacity = capacity;
    }
    node->gate[(node->gate_first + node->gate_count++) & (node->gate_capacity - 1)] = gated;
    return true;
}

bool group_logged(struct group *group, struct entry *entry)
{
    struct node *node = group->node;
    group->log_lsn = entry->lsn;
    entries_logged(&group->entries, entry->index, entry->lsn);
    struct durable_mark mark = {
        .lsn = entry->lsn, .group = group->id, .index = entry->index, .term = entry->term};
    if (!mark_push(node, mark)) {
        node_fail(node, "no memory");
        return false;
    }
    if (group->appended_ns == 0) group->appended_ns = node->now_ns;
    group_keep(group, entry);
    return !node->failed;
}

bool group_log(struct group *group, struct entry *entry)
{
    struct node *node = group->node;
    uint8_t *at = wal_append(engine_wal(node->engine), WAL_RECORD_ENTRY, group->id,
        entry_record_size(entry->size), &entry->lsn);
    if (at == NULL) {
        free(entry);
        node_fail(node, "no memory for a log record");
        return false;
    }
    struct entry_record record = {.index = entry->index,
        .term = entry->term,
        .commit = group->raft.commit,
        .kind = entry->kind};
    entry_record_encode(at, &record);
    if (entry->size > 0) memcpy(at + ENTRY_RECORD_HEADER, entry->data, entry->size);
    return group_logged(group, entry);
}

static void log_hard(struct group *group)
{
    struct node *node = group->node;
    lsn_t lsn;
    uint8_t *at =
        wal_append(engine_wal(node->engine), WAL_RECORD_HARD, group->id, HARD_RECORD_SIZE, &lsn);
    if (at == NULL) {
        node_fail(node, "no memory for a log record");
        return;
    }
    hard_record_encode(at, group->raft.term, group->raft.vote);
    group->log_lsn = lsn;
}

void groups_on_durable(struct node *node, lsn_t lsn)
{
    node->durable = lsn;
    while (node->mark_count > 0) {
        struct durable_mark mark = node->marks[node->mark_first];
        if (mark.lsn > lsn) break;
        node->mark_first = (node->mark_first + 1) & (node->mark_capacity - 1);
        node->mark_count--;
        struct group *group = node->groups[mark.group];
        if (group == NULL) continue;
        if (group->log_lsn <= lsn) group->appended_ns = 0;
        if (group->raft.role != RAFT_LEADER) continue;
        raft_persisted(&group->raft, mark.index, mark.term);
        const struct durable_mark *next =
            node->mark_count > 0 ? &node->marks[node->mark_first] : NULL;
        bool more = next != NULL && next->lsn <= lsn && next->group == mark.group;
        if (!more) group_ready(group);
        if (node->failed) return;
    }
    while (node->gate_count > 0 && node->gate[node->gate_first].lsn <= lsn) {
        struct gated gated = node->gate[node->gate_first];
        node->gate_first = (node->gate_first + 1) & (node->gate_capacity - 1);
        node->gate_count--;
        wire_send_raft(node, gated.group, &gated.message);
    }
}

/* ---- applying ---- */

void group_note_hash(struct group *group)
{
    if (group->applied % HASH_EVERY != 0) return;
    group->hash_at = (group->hash_at + 1) % HASHES_KEPT;
    group->hashes[group->hash_at] = (struct index_hash){group->applied, group->hash};
}

static enum err apply_effects(struct group *group, uint64_t index, struct bytes data)
{
    struct bytes effects = bytes_of(data.at + 8, data.size - 8);
    if (PLANTED_BUG(60) && group->node->config.number == 2 && index % 50 == 0) return OK;
    TRY(engine_apply_entry(group->node->engine, group->id, index, effects));
    group->hash = hash64(group->hash + index, effects);
    if (group->id == META_RANGE) membership_applied(group->node, effects);
    return OK;
}

enum err group_apply_one(
    struct group *group, uint64_t index, uint64_t term, uint8_t kind, struct bytes data)
{
    ASSERT(index == group->applied + 1);
    ASSERT(term >= group->applied_term);
    if (kind == ENTRY_EFFECTS) {
        if (data.size < 8) return ERR_CORRUPT;
        TRY(apply_effects(group, index, data));
    } else if (kind == ENTRY_CONFIG) {
        TRY(raft_config_decode(data, &group->applied_config));
        group->applied_config_index = index;
    }
    group->applied = index;
    group->applied_term = term;
    group_note_hash(group);
    return OK;
}

static void finish_writes(struct group *group)
{
    struct waiting *first;
    while ((first = waiting_first(&group->writes)) != NULL && first->index <= group->applied) {
        ticket_t ticket = first->ticket;
        waiting_pop(&group->writes);
        ticket_part_done(group->node, ticket);
    }
}

static void finish_reads(struct group *group)
{
    struct waiting *first;
    while ((first = waiting_first(&group->reads)) != NULL &&
        first->round <= group->raft.round_confirmed && first->index <= group->applied) {
        ticket_t ticket = first->ticket;
        waiting_pop(&group->reads);
        ticket_part_done(group->node, ticket);
    }
}

void group_apply(struct group *group)
{
    struct node *node = group->node;
    if (group->holding || group->quarantined) return;
    uint64_t before = group->applied;
    while (group->applied < group->raft.commit) {
        const struct entry *entry = entries_get(&group->entries, group->applied + 1);
        enum err err;
        if (entry == NULL) {
            uint64_t was = group->applied;
            err = catchup_apply_from_log(group);
            if (err == OK && group->applied == was) break;
        } else {
            ASSERT(entry->term == raft_term_at(&group->raft, entry->index));
            err = group_apply_one(
                group, entry->index, entry->term, entry->kind, bytes_of(entry->data, entry->size));
        }
        if (err != OK) {
            log_error("a committed entry cannot be applied", "range=%u index=%llu error=%s",
                group->id, (unsigned long long)group->applied + 1, err_name(err));
            node_fail(node, "a committed entry cannot be applied");
            return;
        }
    }
    if (group->applied == before) return;
    pending_applied(&group->pending, group->applied);
    finish_writes(group);
    if (group->settled != 0 && group->applied >= group->settled) {
        group->settled = 0;
        if (group->forgetful) raft_set_faulty(&group->raft, false);
        group->forgetful = false;
    }
}

/* ---- leadership ---- */

void group_lost_leadership(struct group *group)
{
    struct node *node = group->node;
    struct waiting *first;
    while ((first = waiting_first(&group->writes)) != NULL) {
        ticket_fail(node, first->ticket, TICKET_UNKNOWN);
        waiting_pop(&group->writes);
    }
    while ((first = waiting_first(&group->reads)) != NULL) {
        ticket_fail(node, first->ticket, TICKET_REFUSED);
        waiting_pop(&group->reads);
    }
    if (group->turn_read != 0) ticket_fail(node, group->turn_read, TICKET_REFUSED);
    group->turn_read = 0;
    uint64_t seed = node->config.io->seed;
    pending_deinit(&group->pending);
    if (pending_init(&group->pending, seed) != OK) node_fail(node, "no memory");
}

static void note_role(struct group *group, bool led)
{
    bool leads = group->raft.role == RAFT_LEADER;
    if (led == leads) return;
    struct node *node = group->node;
    node->stats.leader_changes++;
    if (leads) {
        node->stats.led++;
        node->report_ns = 0; /* everybody should know at once */
        group->transfer_ns = node->now_ns; /* stays for a while, wherever it is wanted */
        /* the snapshot it waited for comes no more: it is the one to send them */
        if (group->incoming == NULL) group->holding = false;
        group->hash_index = 0;
        group->reconcile_ns = 0;
    } else {
        node->stats.led--;
        group_lost_leadership(group);
    }
}

static void add_noop(struct group *group, uint64_t index)
{
    struct entry *entry = entry_new(index, group->raft.term, ENTRY_NOOP, 0);
    if (entry == NULL) {
        node_fail(group->node, "no memory for an entry");
        return;
    }
    group_log(group, entry);
}

/* sorted sets of node numbers; return the new count */
static uint8_t insert(uint16_t *set, uint8_t count, uint16_t node)
{
    uint8_t at = 0;
    while (at < count && set[at] < node)
        at++;
    if (at < count && set[at] == node) return count;
    memmove(set + at + 1, set + at, (size_t)(count - at) * sizeof *set);
    set[at] = node;
    return count + 1;
}

static uint8_t erase(uint16_t *set, uint8_t count, uint16_t node)
{
    uint8_t at = 0;
    while (at < count && set[at] != node)
        at++;
    if (at == count) return count;
    memmove(set + at, set + at + 1, (size_t)(count - at - 1) * sizeof *set);
    return count - 1;
}

bool group_propose_config(struct group *group, const struct raft_config *config)
{
    uint8_t bytes[RAFT_CONFIG_BYTES_MAX];
    size_t size = raft_config_encode(bytes, config);
    struct entry *entry = entry_new(0, group->raft.term, ENTRY_CONFIG, size);
    if (entry == NULL) return false;
    entry->index = raft_propose_config(&group->raft, config);
    if (entry->index == 0) {
        free(entry);
        return false;
    }
    memcpy(entry->data, bytes, size);
    group->node->stats.config_changes++;
    bool done = group_log(group, entry);
    group_ready(group);
    return done;
}

static void send_messages(struct group *group)
{
    struct node *node = group->node;
    struct raft *raft = &group->raft;
    for (uint32_t i = 0; i < raft->message_count; i++) {
        const struct raft_message *message = &raft->messages[i];
        if (message->type == RAFT_PREVOTE || message->type == RAFT_VOTE) node->stats.elections++;
        bool gate = message->after_log && group->log_lsn > node->durable && !PLANTED_BUG(56);
        if (!gate) {
            wire_send_raft(node, group->id, message);
        } else if (!gate_push(node,
                       (struct gated){
                           .lsn = group->log_lsn, .group = group->id, .message = *message})) {
            node_fail(node, "no memory");
        }
    }
}

void group_ready(struct group *group)
{
    struct node *node = group->node;
    struct raft *raft = &group->raft;
    if (node->failed || node->opening) return;
    bool led = group->leading;
    group->leading = raft->role == RAFT_LEADER;
    /* a leader of a new term that led before has lost what it led */
    if (led && group->leading && group->leading_term != raft->term) note_role(group, true);
    if (raft->diverged) {
        node_fail(node, "a leader contradicts what is committed here");
        return;
    }
    if (raft->hard_changed && !PLANTED_BUG(59)) log_hard(group);
    note_role(group, led);
    group->leading_term = raft->term;
    uint64_t noop = raft->noop_index;
    raft->noop_index = 0;
    if (noop != 0) add_noop(group, noop);
    send_messages(group);
    bool leave = raft->config_wanted;
    if (raft->append_due) group_mark_dirty(group);
    raft_ready_clear(raft);
    group_apply(group);
    if (group->reads.count > 0) finish_reads(group);
    if (leave && raft->role == RAFT_LEADER && !node->failed) {
        struct raft_config next;
        raft_config_leave(&raft->config, &next);
        group_propose_config(group, &next);
    }
}

void group_next_config(struct raft_config *config, int kind, uint16_t node, const uint16_t *voters,
    uint8_t voter_count)
{
    switch (kind) {
    case RECONCILE_ADD_LEARNER:
        config->learner_count = insert(config->learners, config->learner_count, node);
        break;
    case RECONCILE_REMOVE_LEARNER:
        config->learner_count = erase(config->learners, config->learner_count, node);
        break;
    case RECONCILE_PROMOTE:
        config->learner_count = erase(config->learners, config->learner_count, node);
        config->voter_count = insert(config->voters, config->voter_count, node);
        break;
    case RECONCILE_REMOVE_VOTER:
        config->voter_count = erase(config->voters, config->voter_count, node);
        break;
    case RECONCILE_JOINT:
        memcpy(config->old_voters, config->voters, sizeof config->old_voters);
        config->old_count = config->voter_count;
        config->voter_count = 0;
        for (uint8_t i = 0; i < voter_count; i++) {
            config->voter_count = insert(config->voters, config->voter_count, voters[i]);
            config->learner_count = erase(config->learners, config->learner_count, voters[i]);
        }
        break;
    default:
        ASSERT(false);
    }
}

/* ---- messages in ---- */

static struct group *group_for_message(struct node *node, uint32_t id)
{
    if (id >= node->group_slots) return NULL;
    if (node->groups[id] != NULL) return node->groups[id];
    /* the first word of a range that is to have a replica here */
    struct raft_restore restore = {.first = 1};
    return group_create(node, (uint16_t)id, &restore);
}

void group_on_message(struct node *node, uint16_t from, const struct message *message)
{
    struct raft_message raft_message;
    if (wire_decode_raft(message->body, &raft_message) != OK) return;
    if (raft_message.type == RAFT_APPEND) return;
    struct group *group = group_for_message(node, message->group);
    if (group == NULL) return;
    raft_message.from = from;
    raft_message.to = node->config.number;
    struct raft_accept accept;
    raft_step(&group->raft, &raft_message, NULL, NULL, 0, &accept);
    group_ready(group);
}

struct batch {
    uint64_t terms[APPEND_ENTRIES];
    const struct raft_config *configs[APPEND_ENTRIES];
    struct raft_config decoded[APPEND_CONFIGS];
    struct bytes data[APPEND_ENTRIES];
    uint8_t kinds[APPEND_ENTRIES];
    uint32_t count, config_count;
};

/* count entries behind the header: u64 term | u32 size | u8 kind | 3 zero | data | zeros to 8 */
static enum err decode_entries(struct bytes rest, uint32_t count, struct batch *batch)
{
    if (count > APPEND_ENTRIES) return ERR_CORRUPT;
    batch->count = count;
    batch->config_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (rest.size < ENTRY_WIRE_HEADER) return ERR_CORRUPT;
        uint32_t size = load_u32(rest.at + 8);
        size_t span = ENTRY_WIRE_HEADER + round_up(size, 8);
        if (span > rest.size) return ERR_CORRUPT;
        batch->terms[i] = load_u64(rest.at);
        batch->kinds[i] = rest.at[12];
        batch->data[i] = bytes_of(rest.at + ENTRY_WIRE_HEADER, size);
        batch->configs[i] = NULL;
        bool known = batch->kinds[i] >= ENTRY_NOOP && batch->kinds[i] <= ENTRY_CONFIG;
        if (!known || (batch->kinds[i] == ENTRY_EFFECTS && size < 8)) return ERR_CORRUPT;
        if (batch->kinds[i] == ENTRY_CONFIG) {
            if (batch->config_count == APPEND_CONFIGS) return ERR_CORRUPT;
            struct raft_config *config = &batch->decoded[batch->config_count++];
            TRY(raft_config_decode(batch->data[i], config));
            batch->configs[i] = config;
        }
        rest = bytes_of(rest.at + span, rest.size - span);
    }
    return rest.size == 0 ? OK : ERR_CORRUPT;
}

static void log_accepted(struct group *group, const struct raft_accept *accept, uint64_t previous,
    const struct batch *batch)
{
    if (accept->truncates) group_truncate(group, accept->first);
    for (uint64_t index = accept->first; index <= accept->last; index++) {
        uint64_t i = index - previous - 1;
        ASSERT(i < batch->count);
        struct entry *entry =
            entry_new(index, batch->terms[i], batch->kinds[i], batch->data[i].size);
        if (entry == NULL) {
            node_fail(group->node, "no memory for an entry");
            return;
        }
        if (entry->size > 0) memcpy(entry->data, batch->data[i].at, entry->size);
        if (!group_log(group, entry)) return;
    }
}

void group_on_append(struct node *node, uint16_t from, const struct message *message)
{
    struct raft_message raft_message;
    if (wire_decode_raft(message->body, &raft_message) != OK) return;
    if (raft_message.type != RAFT_APPEND || message->body.size < WIRE_RAFT_SIZE + 8) return;
    struct group *group = group_for_message(node, message->group);
    if (group == NULL) return;
    static _Thread_local struct batch batch;
    uint32_t count = load_u32(message->body.at + WIRE_RAFT_SIZE);
    struct bytes rest =
        bytes_of(message->body.at + WIRE_RAFT_SIZE + 8, message->body.size - WIRE_RAFT_SIZE - 8);
    if (decode_entries(rest, count, &batch) != OK) return;
    /* No room: only what comes before the entries is looked at. It may let what is here already be committed, and
     * so make room; the leader sends the entries again. */
    if (count > 0 && engine_admit(node->engine, rest.size) != OK) count = 0;
    /* A crash while a snapshot comes in costs the log: nothing may be acknowledged that was not when it
     * began (catchup.c, on_begin). */
    if (group->incoming != NULL) count = 0;
    raft_message.from = from;
    raft_message.to = node->config.number;
    struct raft_accept accept;
    raft_step(&group->raft, &raft_message, batch.terms, batch.configs, count, &accept);
    if (accept.first <= accept.last) log_accepted(group, &accept, raft_message.index, &batch);
    group_ready(group);
}

/* ---- messages out ---- */

static size_t entry_wire_size(const struct entry *entry)
{
    return ENTRY_WIRE_HEADER + round_up(entry->size, 8);
}

static void encode_entry(uint8_t *at, const struct entry *entry)
{
    size_t span = entry_wire_size(entry);
    store_u64(at + span - 8, 0);
    store_u64(at, entry->term);
    store_u32(at + 8, entry->size);
    store_u32(at + 12, entry->kind);
    if (entry->size > 0) memcpy(at + ENTRY_WIRE_HEADER, entry->data, entry->size);
}

void group_send_run(struct group *group, const struct raft_append *append,
    struct entry *const *entries, uint32_t count)
{
    struct node *node = group->node;
    size_t size = 0;
    for (uint32_t i = 0; i < count; i++)
        size += entry_wire_size(entries[i]);
    uint64_t last = append->first + count - 1;
    struct raft_message message = {
        .type = RAFT_APPEND,
        .term = append->term,
        .index = append->previous,
        .log_term = append->previous_term,
        .commit = append->commit < last ? append->commit : last,
    };
    if (append->commit < append->previous) message.commit = append->commit;
    uint8_t head[WIRE_RAFT_SIZE + 8];
    wire_encode_raft(head, &message);
    store_u64(head + WIRE_RAFT_SIZE, count);
    if (sizeof head + size <= APPEND_BYTES + 8192) {
        uint8_t *at =
            wire_add(node, append->to, NET_DATA, WIRE_APPEND, group->id, sizeof head + size);
        if (at != NULL) {
            memcpy(at, head, sizeof head);
            at += sizeof head;
            for (uint32_t i = 0; i < count; i++) {
                encode_entry(at, entries[i]);
                at += entry_wire_size(entries[i]);
            }
        }
    } else {
        uint8_t *body = malloc(size);
        if (body != NULL) {
            uint8_t *at = body;
            for (uint32_t i = 0; i < count; i++) {
                encode_entry(at, entries[i]);
                at += entry_wire_size(entries[i]);
            }
            wire_send(node, append->to, NET_DATA, WIRE_APPEND, group->id,
                bytes_of(head, sizeof head), bytes_of(body, size));
            free(body);
        }
    }
    /* what was not sent for lack of memory is as lost as anything else */
    raft_append_sent(&group->raft, append->to, last, size);
}

uint64_t group_send_entries(struct group *group, const struct raft_append *append, uint64_t last)
{
    struct entry *run[APPEND_ENTRIES];
    uint32_t count = 0, configs = 0;
    size_t size = 0;
    uint64_t limit = append->bytes_max < APPEND_BYTES ? append->bytes_max : APPEND_BYTES;
    for (uint64_t index = append->first; index <= last && count < APPEND_ENTRIES; index++) {
        struct entry *entry = entries_get(&group->entries, index);
        ASSERT(entry != NULL);
        if (count > 0 && size + entry_wire_size(entry) > limit) break;
        if (entry->kind == ENTRY_CONFIG && configs++ == APPEND_CONFIGS) break;
        size += entry_wire_size(entry);
        run[count++] = entry;
    }
    group_send_run(group, append, run, count);
    return append->first + count - 1;
}

void group_send_appends(struct group *group)
{
    struct node *node = group->node;
    struct raft *raft = &group->raft;
    for (uint32_t i = 0; i < raft->progress_count && raft->role == RAFT_LEADER; i++) {
        uint16_t to = raft->progress[i].node;
        struct raft_append append;
        while (wire_queued(node, to, NET_DATA) < QUEUE_BYTES_MAX &&
            raft_append_next(raft, to, &append)) {
            bool gone = append.last >= append.first && append.first < group->entries.first;
            if (gone || append.snapshot) {
                catchup_start(group, &append);
                break;
            }
            group_send_entries(group, &append, append.last);
        }
    }
    if (raft->message_count > 0 || raft->hard_changed) group_ready(group);
}

void groups_trimmed(struct node *node)
{
    struct wal_stats stats;
    wal_stats(engine_wal(node->engine), &stats);
    if (stats.trimmed == node->trimmed) return;
    node->trimmed = stats.trimmed;
    for (uint32_t i = 0; i < node->group_slots; i++) {
        struct group *group = node->groups[i];
        if (group == NULL) continue;
        uint64_t lowest = entries_trimmed(&group->entries, stats.trimmed);
        uint64_t upto = lowest - 1 < group->applied ? lowest - 1 : group->applied;
        if (upto >= group->raft.first) raft_compact(&group->raft, upto);
    }
}
