#include <stdlib.h>

#include "cluster/map/map.h"
#include "cluster/node/node_internal.h"

/* Reading: the committed state of a range with, for the pending view, what is proposed but not committed over it. */

/* ---- reading ---- */

static struct value pending_value(const struct pending_entry *entry)
{
    return (struct value){
        .bytes = entry->effect.value,
        .expires_ms = entry->effect.expires_ms,
        .version = entry->lsn, /* the index it has in its range */
        .flags = entry->effect.flags,
    };
}

/* expired keys are found too */
static enum err get_raw(struct node *node, enum node_view view, uint16_t range, uint16_t bucket,
    struct bytes key, struct value *value_out)
{
    const struct group *group = group_of(node, range);
    if (view == NODE_PENDING && group != NULL && !PLANTED_BUG(23)) {
        const struct pending_entry *entry;
        switch (pending_find(&group->pending, range, bucket, key, &entry)) {
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

enum err node_get_in(struct node *node, enum node_view view, uint16_t range, uint16_t bucket,
    struct bytes key, struct value *value_out)
{
    struct value value;
    enum err err = get_raw(node, view, range, bucket, key, &value);
    if (err == ERR_CORRUPT && group_of(node, range) != NULL) group_of(node, range)->damaged = true;
    if (err != OK) return err;
    if (has_expired(node, &value)) return ERR_NOT_FOUND;
    *value_out = value;
    return OK;
}

enum err node_get(struct node *node, enum node_view view, uint16_t bucket, struct bytes key,
    struct value *value_out)
{
    if (key.size > KEY_SIZE_MAX) return ERR_TOO_LARGE;
    return node_get_in(node, view, node_range_of(node, key), bucket, key, value_out);
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
        const struct group *group = group_of(walk->node, walk->range);
        switch (pending_find(&group->pending, walk->range, walk->bucket, key, &entry)) {
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
    uint32_t only = position->only_range;
    uint32_t first = after ? position->range : only != 0 ? only : 1;
    uint32_t last = only != 0 ? only : node->config.ranges;
    for (uint32_t range = first; range <= last; range++) {
        if (group_of(node, (uint16_t)range) == NULL) continue;
        bool here = after && range == first;
        struct bytes from = effect_stored_key(
            buffer, bucket, bytes_of(position->key, here ? position->key_size : 0));
        walk.range = (uint16_t)range;
        enum err err = engine_scan(node->engine, walk.range, from, here, walk_committed, &walk);
        if (err == ERR_CORRUPT) damage = err;
        if (err != OK && err != ERR_CORRUPT) return err;
        if (walk.stopped) return damage;
    }
    for (uint32_t range = 1; range <= node->config.ranges && view == NODE_PENDING; range++) {
        const struct group *group = group_of(node, (uint16_t)range);
        if (group == NULL || (only != 0 && range != only)) continue;
        pending_each(&group->pending, bucket, walk_pending, &walk);
    }
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

enum err node_page(struct node *node, uint16_t only_range, uint16_t bucket, struct bytes prefix,
    struct bytes after, uint64_t limit, bool *more_out,
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
        if (only_range != 0 && range != only_range) continue;
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
    const struct group *group;
    uint16_t bucket;
    int64_t keys;
};

static void count_pending(void *ctx, const struct pending_entry *entry)
{
    struct count *count = ctx;
    struct value value;
    bool cleared = pending_cleared(&count->group->pending, count->bucket);
    bool before = !cleared &&
        get_raw(count->node, NODE_COMMITTED, entry->effect.range, count->bucket, entry->effect.key,
            &value) == OK;
    count->keys += (entry->effect.kind == EFFECT_PUT ? 1 : 0) - (before ? 1 : 0);
}

/* what the pending effects of a range add to its number of keys */
static int64_t pending_count(struct node *node, uint16_t range, uint16_t bucket)
{
    const struct group *group = group_of(node, range);
    if (group == NULL) return 0;
    struct count count = {.node = node, .group = group, .bucket = bucket};
    if (pending_cleared(&group->pending, bucket))
        count.keys = -(int64_t)engine_count_range(node->engine, range, bucket);
    pending_each(&group->pending, bucket, count_pending, &count);
    return count.keys;
}

uint64_t node_count(struct node *node, enum node_view view, uint16_t only_range, uint16_t bucket)
{
    int64_t keys =
        (int64_t)(only_range == 0 ? engine_count(node->engine, bucket)
                                  : engine_count_range(node->engine, only_range, bucket));
    for (uint32_t range = 1; range <= node->config.ranges && view == NODE_PENDING; range++) {
        if (only_range == 0 || range == only_range)
            keys += pending_count(node, (uint16_t)range, bucket);
    }
    return keys < 0 ? 0 : (uint64_t)keys;
}

bool read_is_expired(struct node *node, uint16_t range, uint16_t bucket, struct bytes key)
{
    struct value value;
    return get_raw(node, NODE_PENDING, range, bucket, key, &value) == OK &&
        has_expired(node, &value);
}
