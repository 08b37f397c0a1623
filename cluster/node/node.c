#include "cluster/node/node.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/logger.h"
#include "cluster/map/map.h"
#include "cluster/node/pending.h"

/* A group of one: a record is committed when it is durable here. What is proposed goes to the log and
 * into the pending table; when the log says durable, records are applied in order, the table forgets
 * them, and on_committed tells whoever holds replies back. */

enum {
    SYSTEM_RANGE = 0,
    SYSTEM_BUCKET = 0,
    EXPIRED_PER_TICK = 5000,
    SCRATCH_BYTES = 64 * 1024,
};

static const char bucket_prefix[] = "bucket/";

/* Memory of the open transaction: effects side by side, never moved. */
struct scratch {
    struct scratch *next;
    size_t capacity;
    size_t used;
    uint8_t at[];
};

struct txn_effect {
    struct pending_entry *entry; /* NULL: a clear */
    size_t offset; /* in the record's payload */
};

struct node {
    struct node_config config;
    char name[64];
    char cluster_id[33];
    struct engine *engine;
    struct pending pending;
    ticket_t committed;
    ticket_t proposed;
    int64_t now_ms;
    bool failed;

    bool in_txn;
    struct scratch *scratch; /* the chunk in use is first */
    struct txn_effect *effects;
    size_t effect_count, effect_capacity;
    size_t txn_bytes;
    uint32_t buckets_before; /* bucket_count at begin */

    char (*buckets)[NODE_BUCKET_NAME_MAX + 1]; /* names by id - NODE_BUCKETS_NUMBERED */
    uint32_t bucket_count; /* named ones */
    char numbers[NODE_BUCKETS_NUMBERED][4];
    uint64_t expired;
};

/* ---- committing ---- */

static void apply_up_to(struct node *node, lsn_t lsn)
{
    enum err err = engine_apply_up_to(node->engine, lsn);
    if (err != OK) {
        log_error("a committed record cannot be applied", "error=%s lsn=%llu", err_name(err),
            (unsigned long long)engine_applied(node->engine));
        node->failed = true;
        return;
    }
    pending_applied(&node->pending, lsn);
    wal_release(engine_wal(node->engine), lsn);
}

static void on_durable(void *ctx, lsn_t lsn)
{
    struct node *node = ctx;
    /* while the engine opens, there is nobody to tell and nothing to apply */
    if (node->engine == NULL || node->failed) return;
    ASSERT(lsn >= node->committed);
    apply_up_to(node, lsn);
    if (node->failed) return;
    node->committed = lsn;
    if (node->config.on_committed != NULL) node->config.on_committed(node->config.ctx, lsn);
}

/* ---- opening ---- */

static bool legal_bucket_name(struct bytes name)
{
    if (name.size == 0 || name.size > NODE_BUCKET_NAME_MAX) return false;
    for (size_t i = 0; i < name.size; i++) {
        uint8_t c = name.at[i];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        bool other = (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '-';
        if (!letter && (i == 0 || !other)) return false;
    }
    return true;
}

static bool load_bucket(void *ctx, struct bytes key, const struct value *value)
{
    struct node *node = ctx;
    struct bytes user_key = bytes_of(key.at + 2, key.size - 2);
    size_t prefix = sizeof bucket_prefix - 1;
    if (!bytes_have_prefix(user_key, bytes_of(bucket_prefix, prefix))) return true;
    struct bytes name = bytes_of(user_key.at + prefix, user_key.size - prefix);
    if (!legal_bucket_name(name) || value->bytes.size != 2) return true;
    uint32_t id = load_u16(value->bytes.at);
    if (id < NODE_BUCKETS_NUMBERED || id >= NODE_BUCKETS_MAX) return true;
    uint32_t index = id - NODE_BUCKETS_NUMBERED;
    memcpy(node->buckets[index], name.at, name.size);
    node->buckets[index][name.size] = '\0';
    if (index >= node->bucket_count) node->bucket_count = index + 1;
    return true;
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
        .wake_ctx = config->ctx,
        .wake = config->wake,
    };
    memcpy(engine_config.store_id, config->store_id, sizeof engine_config.store_id);
    return engine_open(&engine_config, report, &node->engine);
}

static void node_free(struct node *node)
{
    pending_deinit(&node->pending);
    while (node->scratch != NULL) {
        struct scratch *next = node->scratch->next;
        free(node->scratch);
        node->scratch = next;
    }
    free(node->effects);
    free(node->buckets);
    free(node);
}

enum err node_open(
    const struct node_config *config, struct engine_report *report, struct node **node_out)
{
    ASSERT(map_ranges_valid(config->ranges));
    struct node *node = calloc(1, sizeof *node);
    if (node == NULL) return ERR_NOMEM;
    node->config = *config;
    snprintf(node->name, sizeof node->name, "%s", config->name == NULL ? "node" : config->name);
    for (int i = 0; i < 16; i++)
        snprintf(node->cluster_id + (size_t)i * 2, 3, "%02x", config->cluster_id[i]);
    for (int i = 0; i < NODE_BUCKETS_NUMBERED; i++)
        snprintf(node->numbers[i], sizeof node->numbers[i], "%d", i);
    node->buckets = calloc(NODE_BUCKETS_MAX, sizeof *node->buckets);
    enum err err = node->buckets == NULL ? ERR_NOMEM : OK;
    if (err == OK) err = pending_init(&node->pending, config->io->seed);
    if (err == OK) err = open_engine(node, report);
    if (err == OK) {
        err = engine_scan(node->engine, SYSTEM_RANGE, bytes_of(NULL, 0), false, load_bucket, node);
        engine_read_done(node->engine);
        if (err == ERR_CORRUPT)
            snprintf(report->detail, sizeof report->detail,
                "a record of the system range (names of buckets) is damaged; run duramen verify");
        if (err != OK) engine_close(node->engine, false);
    }
    if (err != OK) {
        node_free(node);
        return err;
    }
    struct wal_stats stats;
    wal_stats(engine_wal(node->engine), &stats);
    apply_up_to(node, stats.durable);
    node->committed = node->proposed = stats.durable;
    node_turn_begin(node);
    *node_out = node;
    return OK;
}

void node_close(struct node *node, bool checkpoint)
{
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
}

void node_turn_end(struct node *node, bool alone)
{
    ASSERT(!node->in_txn);
    if (!node->failed && wal_waiting(engine_wal(node->engine))) engine_flush(node->engine, alone);
    engine_read_done(node->engine);
}

enum err node_poll(struct node *node)
{
    if (node->failed) return ERR_POISONED;
    enum err err = engine_poll(node->engine);
    if (err != OK) node->failed = true;
    return node->failed ? ERR_POISONED : OK;
}

ticket_t node_committed(const struct node *node)
{
    return node->committed;
}

ticket_t node_pending_ticket(const struct node *node)
{
    return node->proposed > node->committed ? node->proposed : 0;
}

/* ---- reading ---- */

static struct value pending_value(const struct pending_entry *entry)
{
    return (struct value){
        .bytes = entry->effect.value,
        .expires_ms = entry->effect.expires_ms,
        .version = entry->lsn,
        .flags = entry->effect.flags,
    };
}

/* expired keys are found too */
static enum err get_raw(struct node *node, enum node_view view, uint16_t range, uint16_t bucket,
    struct bytes key, struct value *value_out)
{
    if (view == NODE_PENDING && !PLANTED_BUG(23)) {
        const struct pending_entry *entry;
        switch (pending_find(&node->pending, range, bucket, key, &entry)) {
        case PENDING_VALUE:
            *value_out = pending_value(entry);
            return OK;
        case PENDING_GONE:
            return ERR_NOT_FOUND;
        case PENDING_MISS:
            break;
        }
    }
    uint8_t buffer[KEY_SIZE_MAX_STORED];
    return engine_get(node->engine, range, effect_stored_key(buffer, bucket, key), value_out);
}

static bool has_expired(const struct node *node, const struct value *value)
{
    return value->expires_ms != 0 && value->expires_ms <= node->now_ms && !PLANTED_BUG(26);
}

enum err node_get(struct node *node, enum node_view view, uint16_t bucket, struct bytes key,
    struct value *value_out)
{
    if (key.size > KEY_SIZE_MAX) return ERR_TOO_LARGE;
    struct value value;
    uint16_t range = map_range(key, node->config.ranges);
    TRY(get_raw(node, view, range, bucket, key, &value));
    if (has_expired(node, &value)) return ERR_NOT_FOUND;
    *value_out = value;
    return OK;
}

/* ---- transactions ---- */

enum err node_admit(struct node *node, size_t size)
{
    if (node->failed) return ERR_POISONED;
    return engine_admit(node->engine, size + EFFECT_HEADER + 16);
}

void node_txn_begin(struct node *node)
{
    ASSERT(!node->in_txn);
    node->in_txn = true;
    node->effect_count = 0;
    node->txn_bytes = 8; /* the proposer's time */
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
static bool reserve_effect(struct node *node, size_t size)
{
    if (node->txn_bytes + size > wal_record_size_max(engine_wal(node->engine))) return false;
    if (node->effect_count == node->effect_capacity) {
        size_t capacity = node->effect_capacity == 0 ? 64 : node->effect_capacity * 2;
        struct txn_effect *effects = realloc(node->effects, capacity * sizeof *effects);
        if (effects == NULL) return false;
        node->effects = effects;
        node->effect_capacity = capacity;
    }
    return pending_reserve(&node->pending, 1) == OK;
}

/* adds an effect; returns where its value goes, NULL if it must be refused */
static uint8_t *add_effect(struct node *node, struct effect *effect, size_t value_size)
{
    ASSERT(node->in_txn);
    size_t size = effect_size(effect->key.size, value_size);
    if (!reserve_effect(node, size)) return NULL;
    uint8_t *at = scratch_take(node, size);
    if (at == NULL) return NULL;
    uint8_t *value = effect_encode(at, effect, value_size);
    effect->key = bytes_of(at + EFFECT_HEADER, effect->key.size);
    effect->value = bytes_of(value, value_size);
    lsn_t lsn = wal_next(engine_wal(node->engine));
    struct txn_effect *entry = &node->effects[node->effect_count++];
    entry->offset = node->txn_bytes;
    entry->entry = NULL;
    if (effect->kind == EFFECT_CLEAR_BUCKET) {
        pending_clear(&node->pending, effect->bucket, lsn);
    } else {
        entry->entry = pending_add(&node->pending, effect, lsn);
    }
    node->txn_bytes += size;
    return value;
}

uint8_t *node_put(
    struct node *node, uint16_t bucket, struct bytes key, size_t value_size, int64_t expires_ms)
{
    ASSERT(key.size <= KEY_SIZE_MAX && value_size <= VALUE_SIZE_MAX);
    struct effect effect = {
        .kind = EFFECT_PUT,
        .flags = TYPE_STRING,
        .range = map_range(key, node->config.ranges),
        .bucket = bucket,
        .expires_ms = expires_ms,
        .key = key,
    };
    return add_effect(node, &effect, value_size);
}

bool node_delete(struct node *node, uint16_t bucket, struct bytes key)
{
    ASSERT(key.size <= KEY_SIZE_MAX);
    struct effect effect = {
        .kind = EFFECT_DELETE,
        .range = map_range(key, node->config.ranges),
        .bucket = bucket,
        .key = key,
    };
    return add_effect(node, &effect, 0) != NULL;
}

bool node_clear(struct node *node, uint16_t bucket)
{
    struct effect effect = {.kind = EFFECT_CLEAR_BUCKET, .bucket = bucket};
    return add_effect(node, &effect, 0) != NULL;
}

/* copies the transaction's memory, oldest chunk first */
static uint8_t *copy_scratch(const struct scratch *scratch, uint8_t *target)
{
    if (scratch == NULL) return target;
    target = copy_scratch(scratch->next, target);
    memcpy(target, scratch->at, scratch->used);
    return target + scratch->used;
}

/* the range all effects are in, or WAL_GROUP_MANY */
static uint64_t record_group(const struct node *node)
{
    uint64_t group = WAL_GROUP_MANY;
    for (size_t i = 0; i < node->effect_count; i++) {
        const struct pending_entry *entry = node->effects[i].entry;
        if (entry == NULL) return WAL_GROUP_MANY;
        if (i > 0 && entry->effect.range != group) return WAL_GROUP_MANY;
        group = entry->effect.range;
    }
    return group;
}

/* pending entries point into the log's memory from now on */
static void repoint(struct node *node, uint8_t *payload)
{
    for (size_t i = 0; i < node->effect_count; i++) {
        struct pending_entry *entry = node->effects[i].entry;
        if (entry == NULL) continue;
        const uint8_t *key = payload + node->effects[i].offset + EFFECT_HEADER;
        size_t key_size = entry->effect.key.size;
        /* if the key was written twice in this transaction, its last effect is what counts; an earlier
         * one of another size is repaired by the later one's turn */
        entry->effect.key.at = key;
        entry->effect.value.at = key + key_size;
    }
}

ticket_t node_txn_commit(struct node *node)
{
    ASSERT(node->in_txn);
    node->in_txn = false;
    if (node->effect_count == 0) return 0;
    lsn_t lsn;
    uint8_t *payload = wal_append(
        engine_wal(node->engine), WAL_RECORD_WRITE, record_group(node), node->txn_bytes, &lsn);
    if (payload == NULL) {
        /* the log has no memory although it admitted the write: stop rather than answer wrongly. The
         * ticket is never fulfilled, so no reply leaves */
        log_error("no memory for a log record", "bytes=%zu", node->txn_bytes);
        node->failed = true;
        pending_undo_all(&node->pending);
        scratch_reset(node);
        return UINT64_MAX;
    }
    ASSERT(lsn > node->proposed);
    store_u64(payload, (uint64_t)node->now_ms);
    uint8_t *end = copy_scratch(node->scratch, payload + 8);
    ASSERT((size_t)(end - payload) == node->txn_bytes);
    repoint(node, payload);
    pending_keep(&node->pending);
    scratch_reset(node);
    node->proposed = lsn;
    return lsn;
}

void node_txn_abort(struct node *node)
{
    ASSERT(node->in_txn);
    node->in_txn = false;
    pending_undo_all(&node->pending);
    node->bucket_count = node->buckets_before;
    scratch_reset(node);
}

/* ---- buckets ---- */

static bool numbered_bucket(struct bytes name, uint16_t *bucket_out)
{
    if (name.size == 0 || name.size > 2) return false;
    uint16_t number = 0;
    for (size_t i = 0; i < name.size; i++) {
        if (name.at[i] < '0' || name.at[i] > '9') return false;
        number = (uint16_t)(number * 10 + (name.at[i] - '0'));
    }
    if (name.size == 2 && name.at[0] == '0') return false;
    *bucket_out = number;
    return number < NODE_BUCKETS_NUMBERED;
}

enum err node_bucket_find(struct node *node, struct bytes name, uint16_t *bucket_out)
{
    if (numbered_bucket(name, bucket_out)) return OK;
    if (!legal_bucket_name(name)) return ERR_INVALID;
    for (uint32_t i = 0; i < node->bucket_count; i++) {
        if (bytes_equal(bytes_of_text(node->buckets[i]), name)) {
            *bucket_out = (uint16_t)(i + NODE_BUCKETS_NUMBERED);
            return OK;
        }
    }
    return ERR_NOT_FOUND;
}

enum err node_bucket_make(struct node *node, struct bytes name, uint16_t *bucket_out)
{
    enum err err = node_bucket_find(node, name, bucket_out);
    if (err != ERR_NOT_FOUND) return err;
    if (node->bucket_count + NODE_BUCKETS_NUMBERED >= NODE_BUCKETS_MAX) return ERR_FULL;
    uint8_t key[sizeof bucket_prefix + NODE_BUCKET_NAME_MAX];
    size_t prefix = sizeof bucket_prefix - 1;
    memcpy(key, bucket_prefix, prefix);
    memcpy(key + prefix, name.at, name.size);
    struct effect effect = {
        .kind = EFFECT_PUT,
        .range = SYSTEM_RANGE,
        .bucket = SYSTEM_BUCKET,
        .key = bytes_of(key, prefix + name.size),
    };
    uint8_t *value = add_effect(node, &effect, 2);
    if (value == NULL) return ERR_NOMEM;
    uint16_t id = (uint16_t)(node->bucket_count + NODE_BUCKETS_NUMBERED);
    store_u16(value, id);
    memcpy(node->buckets[node->bucket_count], name.at, name.size);
    node->buckets[node->bucket_count][name.size] = '\0';
    node->bucket_count++;
    *bucket_out = id;
    return OK;
}

const char *node_bucket_name(const struct node *node, uint16_t bucket)
{
    if (bucket < NODE_BUCKETS_NUMBERED) return node->numbers[bucket];
    uint32_t index = (uint32_t)bucket - NODE_BUCKETS_NUMBERED;
    return index < node->bucket_count ? node->buckets[index] : NULL;
}

uint32_t node_bucket_count(const struct node *node)
{
    return node->bucket_count + NODE_BUCKETS_NUMBERED;
}

/* ---- walking ---- */

struct walk {
    struct node *node;
    enum node_view view;
    uint16_t range;
    uint16_t bucket;
    struct node_position *position;
    uint64_t left;
    bool stopped; /* by limit or by each() */
    bool (*each)(void *ctx, struct bytes key, const struct value *value);
    void *ctx;
};

static bool walk_committed(void *ctx, struct bytes stored, const struct value *value)
{
    struct walk *walk = ctx;
    if (load_u16_be(stored.at) != walk->bucket) return false;
    if (walk->left == 0) {
        walk->stopped = true;
        return false;
    }
    walk->left--;
    struct bytes key = bytes_of(stored.at + 2, stored.size - 2);
    walk->position->range = walk->range;
    walk->position->key_size = (uint16_t)key.size;
    memcpy(walk->position->key, key.at, key.size);
    struct value shown = *value;
    if (walk->view == NODE_PENDING) {
        const struct pending_entry *entry;
        switch (pending_find(&walk->node->pending, walk->range, walk->bucket, key, &entry)) {
        case PENDING_GONE:
            return true;
        case PENDING_VALUE:
            shown = pending_value(entry);
            break;
        case PENDING_MISS:
            break;
        }
    }
    if (has_expired(walk->node, &shown)) return true;
    if (!walk->each(walk->ctx, key, &shown)) walk->stopped = true;
    return !walk->stopped;
}

static void walk_pending(void *ctx, const struct pending_entry *entry)
{
    struct walk *walk = ctx;
    if (walk->stopped || entry->effect.kind != EFFECT_PUT) return;
    struct value value;
    /* what the committed state has was visited there, with its pending value */
    if (get_raw(walk->node, NODE_COMMITTED, entry->effect.range, walk->bucket, entry->effect.key,
            &value) == OK)
        return;
    value = pending_value(entry);
    if (has_expired(walk->node, &value)) return;
    if (!walk->each(walk->ctx, entry->effect.key, &value)) walk->stopped = true;
}

enum err node_walk(struct node *node, enum node_view view, uint16_t bucket,
    struct node_position *position, uint64_t limit, bool *done_out,
    bool (*each)(void *ctx, struct bytes key, const struct value *value), void *ctx)
{
    struct walk walk = {.node = node,
        .view = view,
        .bucket = bucket,
        .position = position,
        .left = limit,
        .each = each,
        .ctx = ctx};
    enum err damage = OK;
    *done_out = false;
    uint8_t buffer[KEY_SIZE_MAX_STORED];
    bool after = position->range != 0;
    uint32_t first = after ? position->range : 1;
    for (uint32_t range = first; range <= node->config.ranges; range++) {
        bool here = after && range == first;
        struct bytes from = effect_stored_key(
            buffer, bucket, bytes_of(position->key, here ? position->key_size : 0));
        walk.range = (uint16_t)range;
        enum err err = engine_scan(node->engine, walk.range, from, here, walk_committed, &walk);
        if (err == ERR_CORRUPT) damage = err;
        if (err != OK && err != ERR_CORRUPT) return err;
        if (walk.stopped) return damage;
    }
    if (view == NODE_PENDING) pending_each(&node->pending, bucket, walk_pending, &walk);
    *done_out = true;
    return damage;
}

/* ---- pages in key order: a heap of one cursor a range ---- */

struct page_source {
    struct engine_cursor *cursor;
    struct bytes key; /* stored form */
    struct value value;
    enum err err; /* OK or ERR_CORRUPT for this key */
};

static void sift_down(struct page_source **heap, size_t count, size_t at)
{
    for (;;) {
        size_t least = at;
        for (size_t child = 2 * at + 1; child <= 2 * at + 2 && child < count; child++) {
            if (bytes_compare(heap[child]->key, heap[least]->key) < 0) least = child;
        }
        if (least == at) return;
        struct page_source *swap = heap[at];
        heap[at] = heap[least];
        heap[least] = swap;
        at = least;
    }
}

/* the source's next key that still has the prefix; false at its end */
static bool source_next(struct page_source *source, struct bytes prefix, enum err *failed)
{
    source->err = engine_cursor_next(source->cursor, &source->key, &source->value);
    if (source->err != OK && source->err != ERR_CORRUPT) {
        if (source->err != ERR_NOT_FOUND) *failed = source->err;
        return false;
    }
    return bytes_have_prefix(source->key, prefix);
}

static void page_merge(struct node *node, struct page_source **heap, size_t count,
    struct bytes prefix, uint64_t limit, bool *more_out, enum err *err,
    bool (*each)(void *ctx, struct bytes key, const struct value *value), void *ctx)
{
    for (size_t i = count / 2; i-- > 0;)
        sift_down(heap, count, i);
    while (count > 0 && (*err == OK || *err == ERR_CORRUPT)) {
        struct page_source *source = heap[0];
        if (source->err == ERR_CORRUPT) {
            *err = ERR_CORRUPT;
        } else if (!has_expired(node, &source->value)) {
            struct bytes key = bytes_of(source->key.at + 2, source->key.size - 2);
            if (limit == 0 || !each(ctx, key, &source->value)) {
                *more_out = true;
                return;
            }
            limit--;
        }
        if (!source_next(source, prefix, err)) heap[0] = heap[--count];
        sift_down(heap, count, 0);
    }
}

enum err node_page(struct node *node, uint16_t bucket, struct bytes prefix, struct bytes after,
    uint64_t limit, bool *more_out,
    bool (*each)(void *ctx, struct bytes key, const struct value *value), void *ctx)
{
    if (prefix.size > KEY_SIZE_MAX || after.size > KEY_SIZE_MAX) return ERR_TOO_LARGE;
    uint8_t prefix_buffer[KEY_SIZE_MAX_STORED], from_buffer[KEY_SIZE_MAX_STORED];
    struct bytes stored_prefix = effect_stored_key(prefix_buffer, bucket, prefix);
    bool resume = after.size > 0 && bytes_compare(after, prefix) >= 0;
    struct bytes from = effect_stored_key(from_buffer, bucket, resume ? after : prefix);
    *more_out = false;

    uint32_t ranges = node->config.ranges;
    struct page_source *sources = calloc(ranges, sizeof *sources);
    struct page_source **heap = calloc(ranges, sizeof *heap);
    enum err err = sources == NULL || heap == NULL ? ERR_NOMEM : OK;
    size_t opened = 0, count = 0;
    for (uint32_t range = 1; range <= ranges && err == OK; range++) {
        struct page_source *source = &sources[opened];
        err = engine_cursor_open(node->engine, (uint16_t)range, from, resume, &source->cursor);
        if (err != OK) break;
        opened++;
        if (source_next(source, stored_prefix, &err)) heap[count++] = source;
    }
    if (err == OK) page_merge(node, heap, count, stored_prefix, limit, more_out, &err, each, ctx);
    for (size_t i = 0; i < opened; i++)
        engine_cursor_close(sources[i].cursor);
    free(sources);
    free(heap);
    return err;
}

/* ---- counting ---- */

struct count {
    struct node *node;
    uint16_t bucket;
    int64_t keys;
};

static void count_pending(void *ctx, const struct pending_entry *entry)
{
    struct count *count = ctx;
    struct value value;
    bool cleared = pending_cleared(&count->node->pending, count->bucket);
    bool before = !cleared &&
        get_raw(count->node, NODE_COMMITTED, entry->effect.range, count->bucket, entry->effect.key,
            &value) == OK;
    count->keys += (entry->effect.kind == EFFECT_PUT ? 1 : 0) - (before ? 1 : 0);
}

uint64_t node_count(struct node *node, enum node_view view, uint16_t bucket)
{
    struct count count = {.node = node, .bucket = bucket};
    bool cleared = view == NODE_PENDING && pending_cleared(&node->pending, bucket);
    if (!cleared) count.keys = (int64_t)engine_count(node->engine, bucket);
    if (view == NODE_PENDING) pending_each(&node->pending, bucket, count_pending, &count);
    return count.keys < 0 ? 0 : (uint64_t)count.keys;
}

/* ---- expiry ---- */

static void remove_expired(void *ctx, uint16_t range, struct bytes stored)
{
    struct node *node = ctx;
    struct value value;
    uint16_t bucket = load_u16_be(stored.at);
    struct bytes key = bytes_of(stored.at + 2, stored.size - 2);
    if (get_raw(node, NODE_PENDING, range, bucket, key, &value) != OK) return;
    if (has_expired(node, &value) && node_delete(node, bucket, key)) node->expired++;
}

void node_idle(struct node *node)
{
    struct wal *wal = engine_wal(node->engine);
    if (!node->failed && !wal_waiting(wal) && !wal_in_flight(wal)) wal_idle(wal);
}

void node_tick(struct node *node)
{
    if (node->failed) return;
    engine_tick(node->engine);
    node_turn_begin(node);
    /* all deletions of a tick are one record */
    size_t each = effect_size(KEY_SIZE_MAX, 0);
    size_t fit = wal_record_size_max(engine_wal(node->engine)) / 2 / each;
    uint32_t limit = fit < EXPIRED_PER_TICK ? (uint32_t)fit : EXPIRED_PER_TICK;
    if (limit == 0 || node_admit(node, limit * each) != OK) return;
    node_txn_begin(node);
    engine_expired(node->engine, node->now_ms, limit, remove_expired, node);
    node_txn_commit(node);
}

/* ---- the rest ---- */

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
