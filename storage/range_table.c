#include "storage/range_table.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"
#include "storage/engine_meta.h"

struct range_table *range_table_new(uint32_t ranges)
{
    struct range_table *table = calloc(1, sizeof *table);
    if (table == NULL) return NULL;
    table->slots = calloc(ranges, sizeof *table->slots);
    if (table->slots == NULL) {
        free(table);
        return NULL;
    }
    table->ranges = ranges;
    pthread_mutex_init(&table->order, NULL);
    pthread_mutex_init(&table->latch, NULL);
    return table;
}

void range_table_free(struct range_table *table)
{
    if (table == NULL) return;
    pthread_mutex_destroy(&table->order);
    pthread_mutex_destroy(&table->latch);
    free(table->slots);
    free(table);
}

enum err range_table_load(struct range_table *table, const struct kv_ops *ops, struct kv_read *read)
{
    for (uint32_t range = 0; range < table->ranges; range++) {
        struct range_slot *slot = &table->slots[range];
        char name[32];
        struct bytes bytes;
        snprintf(name, sizeof name, META_RANGE_FORMAT, range);
        enum err err = ops->meta_get(read, name, &bytes);
        if (err == ERR_NOT_FOUND) continue;
        TRY(err);
        TRY(range_meta_decode(bytes, &slot->stored));
        slot->wanted = slot->stored;
        slot->in_store = true;
    }
    return OK;
}

void range_table_want(struct range_table *table, uint16_t range, const struct range_meta *meta)
{
    ASSERT(range < table->ranges);
    pthread_mutex_lock(&table->latch);
    table->slots[range].wanted = *meta;
    pthread_mutex_unlock(&table->latch);
}

struct range_meta range_table_wanted(struct range_table *table, uint16_t range)
{
    ASSERT(range < table->ranges);
    pthread_mutex_lock(&table->latch);
    struct range_meta meta = table->slots[range].wanted;
    pthread_mutex_unlock(&table->latch);
    return meta;
}

void range_meta_merge_hard(struct range_meta *meta, const struct range_meta *other)
{
    if (other->hard_term < meta->hard_term) return;
    if (other->hard_term == meta->hard_term && other->vote == 0) return;
    meta->hard_term = other->hard_term;
    meta->vote = other->vote;
}

void range_table_want_hard(struct range_table *table, uint16_t range, const struct range_meta *meta)
{
    ASSERT(range < table->ranges);
    pthread_mutex_lock(&table->latch);
    range_meta_merge_hard(&table->slots[range].wanted, meta);
    pthread_mutex_unlock(&table->latch);
}

void range_table_lock(struct range_table *table)
{
    pthread_mutex_lock(&table->order);
}

void range_table_unlock(struct range_table *table)
{
    pthread_mutex_unlock(&table->order);
}

static bool same(const struct range_meta *a, const struct range_meta *b)
{
    return a->index == b->index && a->term == b->term && a->hash == b->hash &&
        a->settled == b->settled && a->hard_term == b->hard_term &&
        a->config_index == b->config_index && a->vote == b->vote && a->flags == b->flags &&
        bytes_equal(bytes_of(a->config, a->config_size), bytes_of(b->config, b->config_size));
}

enum err range_table_write_as(struct range_table *table, const struct kv_ops *ops,
    struct kv_write *write, uint16_t range, const struct range_meta *meta)
{
    struct range_slot *slot = &table->slots[range];
    const struct range_meta *now = slot->touched ? &slot->written : &slot->stored;
    if (same(now, meta)) return OK;
    uint8_t encoded[RANGE_META_BYTES_MAX];
    size_t size = range_meta_encode(encoded, meta);
    char name[32];
    snprintf(name, sizeof name, META_RANGE_FORMAT, range);
    TRY(ops->meta_put(write, name, bytes_of(encoded, size)));
    slot->written = *meta;
    slot->touched = true;
    return OK;
}

enum err range_table_write(
    struct range_table *table, const struct kv_ops *ops, struct kv_write *write, uint16_t range)
{
    struct range_meta meta = range_table_wanted(table, range);
    if (meta.settled <= meta.index) meta.settled = 0;
    return range_table_write_as(table, ops, write, range, &meta);
}

enum err range_table_write_partial(
    struct range_table *table, const struct kv_ops *ops, struct kv_write *write, uint16_t range)
{
    struct range_slot *slot = &table->slots[range];
    struct range_meta wanted = range_table_wanted(table, range);
    struct range_meta meta = slot->touched ? slot->written : slot->stored;
    if (meta.settled < wanted.index) meta.settled = wanted.index;
    if (meta.settled <= meta.index) meta.settled = 0;
    return range_table_write_as(table, ops, write, range, &meta);
}

void range_table_outcome(struct range_table *table, bool committed)
{
    for (uint32_t range = 0; range < table->ranges; range++) {
        struct range_slot *slot = &table->slots[range];
        if (slot->touched && committed) {
            slot->stored = slot->written;
            slot->in_store = true;
        }
        slot->touched = false;
    }
}
