#include <stdlib.h>

#include "cluster/map/map.h"
#include "cluster/node/node_internal.h"

/* Transactions: effects collect side by side and become one entry of their range at commit. While this node is alone
 * they may touch several ranges: then the entries share one log record, which is there as a whole or not at all. */

enum { SCRATCH_BYTES = 64 * 1024, EXPIRED_PER_TICK = 5000, TIME_BYTES = 8 };

enum err node_admit(struct node *node, size_t size)
{
    if (node->failed) return ERR_POISONED;
    return engine_admit(node->engine, size + EFFECT_HEADER + ENTRY_RECORD_HEADER + 16);
}

void node_txn_begin(struct node *node)
{
    ASSERT(!node->in_txn);
    node->in_txn = true;
    node->effect_count = 0;
    node->touched_count = 0;
    node->txn_bytes = TIME_BYTES;
    node->buckets_before = node->bucket_count;
    ASSERT(node->scratch == NULL || node->scratch->used == 0);
}

/* memory for one encoded effect, or NULL */
static uint8_t *scratch_take(struct node *node, size_t size)
{
    struct scratch *scratch = node->scratch;
    if (scratch == NULL || scratch->capacity - scratch->used < size) {
        size_t capacity = size > SCRATCH_BYTES ? size : SCRATCH_BYTES;
        struct scratch *fresh = malloc(sizeof *fresh + capacity);
        if (fresh == NULL) return NULL;
        fresh->next = scratch;
        fresh->capacity = capacity;
        fresh->used = 0;
        node->scratch = scratch = fresh;
    }
    uint8_t *at = scratch->at + scratch->used;
    scratch->used += size;
    return at;
}

/* keeps one ordinary chunk for the next transaction */
static void scratch_reset(struct node *node)
{
    while (node->scratch != NULL &&
        (node->scratch->next != NULL || node->scratch->capacity > SCRATCH_BYTES)) {
        struct scratch *next = node->scratch->next;
        free(node->scratch);
        node->scratch = next;
    }
    if (node->scratch != NULL) node->scratch->used = 0;
}

/* room for one more effect of the transaction in every table; false: refuse it */
static bool reserve_effect(struct node *node, struct group *group, size_t size)
{
    size_t heads = (node->touched_count + 1) * (size_t)64; /* of the record's parts */
    if (node->txn_bytes + size + heads > wal_record_size_max(engine_wal(node->engine)))
        return false;
    if (node->effect_count == node->effect_capacity) {
        size_t capacity = node->effect_capacity == 0 ? 64 : node->effect_capacity * 2;
        struct txn_effect *effects = realloc(node->effects, capacity * sizeof *effects);
        if (effects == NULL) return false;
        node->effects = effects;
        node->effect_capacity = capacity;
    }
    return pending_reserve(&group->pending, 1) == OK;
}

static void touch(struct node *node, uint16_t range)
{
    for (uint32_t i = node->touched_count; i-- > 0;) {
        if (node->touched[i] == range) return;
    }
    ASSERT(node->touched_count < node->group_slots);
    node->touched[node->touched_count++] = range;
}

uint8_t *txn_add_effect(struct node *node, struct effect *effect, size_t value_size)
{
    ASSERT(node->in_txn);
    struct group *group = group_of(node, effect->range);
    ASSERT(group != NULL);
    size_t size = effect_size(effect->key.size, value_size);
    if (!reserve_effect(node, group, size)) return NULL;
    uint8_t *at = scratch_take(node, size);
    if (at == NULL) return NULL;
    uint8_t *value = effect_encode(at, effect, value_size);
    effect->key = bytes_of(at + EFFECT_HEADER, effect->key.size);
    effect->value = bytes_of(value, value_size);
    touch(node, effect->range);
    uint64_t index = group->raft.last + 1;
    struct txn_effect *entry = &node->effects[node->effect_count++];
    *entry = (struct txn_effect){.at = at, .size = size, .range = effect->range};
    if (effect->kind == EFFECT_CLEAR_BUCKET) {
        pending_clear(&group->pending, effect->bucket, index);
    } else {
        entry->entry = pending_add(&group->pending, effect, index);
    }
    node->txn_bytes += size;
    return value;
}

uint8_t *node_put_in(struct node *node, uint16_t range, uint16_t bucket, struct bytes key,
    size_t value_size, int64_t expires_ms)
{
    ASSERT(key.size <= KEY_SIZE_MAX && value_size <= VALUE_SIZE_MAX);
    struct effect effect = {
        .kind = EFFECT_PUT,
        .flags = TYPE_STRING,
        .range = range,
        .bucket = bucket,
        .expires_ms = expires_ms,
        .key = key,
    };
    return txn_add_effect(node, &effect, value_size);
}

uint8_t *node_put(
    struct node *node, uint16_t bucket, struct bytes key, size_t value_size, int64_t expires_ms)
{
    return node_put_in(node, node_range_of(node, key), bucket, key, value_size, expires_ms);
}

static bool delete_in(struct node *node, uint16_t range, uint16_t bucket, struct bytes key)
{
    ASSERT(key.size <= KEY_SIZE_MAX);
    struct effect effect = {.kind = EFFECT_DELETE, .range = range, .bucket = bucket, .key = key};
    return txn_add_effect(node, &effect, 0) != NULL;
}

bool node_delete(struct node *node, uint16_t bucket, struct bytes key)
{
    return delete_in(node, node_range_of(node, key), bucket, key);
}

bool node_clear(struct node *node, uint16_t bucket, uint16_t range)
{
    bool all = range == ALL_RANGES;
    uint32_t first = all ? 1 : range, last = all ? node->config.ranges : range;
    for (uint32_t id = first; id <= last; id++) {
        struct effect effect = {
            .kind = EFFECT_CLEAR_BUCKET, .range = (uint16_t)id, .bucket = bucket};
        if (txn_add_effect(node, &effect, 0) == NULL) return false;
    }
    return true;
}

/* ---- commit ---- */

/* pending entries point into the entry's memory from now on */
static void repoint(struct txn_effect *effect, uint8_t *at)
{
    if (effect->entry == NULL) return;
    /* if the key was written twice in this transaction, its last effect is what counts; an earlier
     * one of another size is repaired by the later one's turn */
    size_t key_size = effect->entry->effect.key.size;
    effect->entry->effect.key.at = at + EFFECT_HEADER;
    effect->entry->effect.value.at = at + EFFECT_HEADER + key_size;
}

/* the range's effects, in order, as its next entry; NULL: no memory */
static struct entry *gather(struct node *node, struct group *group)
{
    size_t size = TIME_BYTES;
    for (size_t i = 0; i < node->effect_count; i++) {
        if (node->effects[i].range == group->id) size += node->effects[i].size;
    }
    struct entry *entry = entry_new(0, group->raft.term, ENTRY_EFFECTS, size);
    if (entry == NULL) return NULL;
    store_u64(entry->data, (uint64_t)node->now_ms);
    uint8_t *at = entry->data + TIME_BYTES;
    for (size_t i = 0; i < node->effect_count; i++) {
        struct txn_effect *effect = &node->effects[i];
        if (effect->range != group->id) continue;
        memcpy(at, effect->at, effect->size);
        repoint(effect, at);
        at += effect->size;
    }
    return entry;
}

static bool propose(struct group *group, struct entry *entry, ticket_t ticket)
{
    entry->index = raft_propose(&group->raft);
    /* callers looked whether this node serves the range, and nothing happened since */
    ASSERT(entry->index != 0);
    pending_keep(&group->pending);
    group->last_write = ticket;
    return waiting_push(&group->writes, (struct waiting){.ticket = ticket, .index = entry->index});
}

static bool commit_one(struct node *node, ticket_t ticket)
{
    struct group *group = group_of(node, node->touched[0]);
    struct entry *entry = gather(node, group);
    if (entry == NULL) return false;
    if (!propose(group, entry, ticket) || !group_log(group, entry)) return false;
    group_ready(group);
    return true;
}

static bool commit_several(struct node *node, ticket_t ticket)
{
    struct entry **entries = calloc(node->touched_count, sizeof(struct entry *));
    size_t size = 0;
    for (uint32_t i = 0; entries != NULL && i < node->touched_count; i++) {
        entries[i] = gather(node, group_of(node, node->touched[i]));
        if (entries[i] == NULL) return false; /* the node stops */
        size += entry_part_size(entries[i]->size);
    }
    lsn_t lsn = 0;
    uint8_t *at = entries == NULL
        ? NULL
        : wal_append(engine_wal(node->engine), WAL_RECORD_ENTRIES, WAL_GROUP_MANY, size, &lsn);
    if (at == NULL) return false;
    for (uint32_t i = 0; i < node->touched_count; i++) {
        struct group *group = group_of(node, node->touched[i]);
        struct entry *entry = entries[i];
        if (!propose(group, entry, ticket)) return false;
        entry->lsn = lsn;
        struct entry_record record = {.index = entry->index,
            .term = entry->term,
            .commit = group->raft.commit,
            .kind = entry->kind,
            .data = bytes_of(entry->data, entry->size)};
        memcpy(entry_part_encode(at, group->id, &record), entry->data, entry->size);
        at += entry_part_size(entry->size);
        if (!group_logged(group, entry)) return false;
    }
    free(entries);
    for (uint32_t i = 0; i < node->touched_count; i++)
        group_ready(group_of(node, node->touched[i]));
    return true;
}

ticket_t node_txn_commit(struct node *node)
{
    ASSERT(node->in_txn);
    node->in_txn = false;
    if (node->effect_count == 0) return 0;
    ASSERT(node->touched_count == 1 || node->alone);
    ticket_t ticket = ticket_new(node, (uint16_t)node->touched_count);
    bool done = !node->failed &&
        (node->touched_count == 1 ? commit_one(node, ticket) : commit_several(node, ticket));
    scratch_reset(node);
    if (!done) {
        /* the log has no memory although it admitted the write: stop rather than answer wrongly. The
         * ticket is never fulfilled, so no reply leaves */
        node_fail(node, "no memory for a log record");
        return UINT64_MAX;
    }
    return ticket;
}

void node_txn_abort(struct node *node)
{
    ASSERT(node->in_txn);
    node->in_txn = false;
    for (uint32_t i = 0; i < node->touched_count; i++)
        pending_undo_all(&group_of(node, node->touched[i])->pending);
    node->bucket_count = node->buckets_before;
    scratch_reset(node);
}

/* ---- what replies that wrote nothing wait for ---- */

static bool sole_voter(const struct group *group)
{
    const struct raft_config *config = &group->raft.config;
    return config->voter_count == 1 && config->old_count == 0;
}

ticket_t node_read_ticket(struct node *node, uint16_t range, enum node_view view)
{
    struct group *group = group_of(node, range);
    ASSERT(group != NULL);
    uint64_t index = view == NODE_PENDING ? group->raft.last : 0;
    bool pending = index > group->applied;
    if (sole_voter(group) || raft_lease_valid(&group->raft, node->now_mono_ms))
        return pending ? group->last_write : 0;
    if (group->turn_read == 0) {
        group->turn_read = ticket_new(node, 1);
        group->turn_read_index = 0;
        node->reading[node->reading_count++] = range;
    }
    if (pending && index > group->turn_read_index) group->turn_read_index = index;
    return group->turn_read;
}

ticket_t node_pending_ticket(struct node *node)
{
    /* tickets of a lone node are done in order: all its ranges share one log */
    ticket_t last = node->ticket_next - 1;
    return node_ticket(node, last) == TICKET_WAITING ? last : 0;
}

/* ---- expiry ---- */

struct expiring {
    struct node *node;
    size_t count, most;
    struct {
        uint16_t range, bucket, size;
        uint8_t key[KEY_SIZE_MAX];
    } at[256];
};

static void note_expired(void *ctx, uint16_t range, struct bytes stored)
{
    struct expiring *expiring = ctx;
    const struct group *group = group_of(expiring->node, range);
    if (group == NULL || !group_serves(group)) return;
    if (expiring->count == expiring->most) return;
    struct bytes key = bytes_of(stored.at + 2, stored.size - 2);
    size_t i = expiring->count++;
    expiring->at[i].range = range;
    expiring->at[i].bucket = load_u16_be(stored.at);
    expiring->at[i].size = (uint16_t)key.size;
    memcpy(expiring->at[i].key, key.at, key.size);
}

static int by_range(const void *a, const void *b)
{
    return (int)load_u16(a) - (int)load_u16(b);
}

void txn_remove_expired(struct node *node)
{
    static _Thread_local struct expiring expiring;
    size_t each = effect_size(KEY_SIZE_MAX, 0);
    size_t most = wal_record_size_max(engine_wal(node->engine)) / 2 / each;
    if (most > 256) most = 256;
    if (most == 0) return;
    expiring.most = most;
    for (size_t round = 0; round < EXPIRED_PER_TICK / most; round++) {
        if (node_admit(node, most * each) != OK) return;
        expiring.node = node;
        expiring.count = 0;
        engine_expired(node->engine, node->now_ms, EXPIRED_PER_TICK, note_expired, &expiring);
        if (expiring.count == 0) return;
        qsort(expiring.at, expiring.count, sizeof expiring.at[0], by_range);
        size_t removed = 0;
        for (size_t i = 0; i < expiring.count;) {
            uint16_t range = expiring.at[i].range;
            node_txn_begin(node);
            for (; i < expiring.count && expiring.at[i].range == range; i++) {
                struct bytes key = bytes_of(expiring.at[i].key, expiring.at[i].size);
                if (!read_is_expired(node, range, expiring.at[i].bucket, key)) continue;
                if (delete_in(node, range, expiring.at[i].bucket, key)) removed++;
            }
            node_txn_commit(node);
        }
        node->expired += removed;
        if (removed == 0 || expiring.count < most) return;
    }
}
