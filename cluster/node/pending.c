#include "cluster/node/pending.h"

#include <stdlib.h>

#include "base/check.h"
#include "base/hash.h"

enum { FIRST_SLOTS = 1024 };

enum err pending_init(struct pending *pending, uint64_t hash_seed)
{
    *pending = (struct pending){.hash_seed = hash_seed, .slot_count = FIRST_SLOTS};
    pending->slots = calloc(FIRST_SLOTS, sizeof(struct pending_entry *));
    return pending->slots == NULL ? ERR_NOMEM : OK;
}

static void free_chain(struct pending_entry *entry)
{
    while (entry != NULL) {
        struct pending_entry *next = entry->chain;
        free(entry);
        entry = next;
    }
}

void pending_deinit(struct pending *pending)
{
    for (size_t i = 0; pending->slots != NULL && i < pending->slot_count; i++)
        free_chain(pending->slots[i]);
    free_chain(pending->free);
    free(pending->slots);
    free(pending->queue);
    free(pending->clears);
    free(pending->undo);
    *pending = (struct pending){0};
}

static uint64_t hash_key(const struct pending *pending, uint16_t bucket, struct bytes key)
{
    return hash64(pending->hash_seed + bucket, key);
}

static uint64_t clear_order(const struct pending *pending, uint16_t bucket)
{
    for (size_t i = 0; i < pending->clear_count; i++) {
        if (pending->clears[i].bucket == bucket) return pending->clears[i].order;
    }
    return 0;
}

bool pending_cleared(const struct pending *pending, uint16_t bucket)
{
    return clear_order(pending, bucket) != 0;
}

static struct pending_entry *find(
    const struct pending *pending, uint64_t hash, uint16_t range, uint16_t bucket, struct bytes key)
{
    struct pending_entry *entry = pending->slots[hash & (pending->slot_count - 1)];
    for (; entry != NULL; entry = entry->chain) {
        if (entry->hash == hash && entry->effect.bucket == bucket && entry->effect.range == range &&
            bytes_equal(entry->effect.key, key))
            return entry;
    }
    return NULL;
}

enum pending_found pending_find(const struct pending *pending, uint16_t range, uint16_t bucket,
    struct bytes key, const struct pending_entry **entry_out)
{
    if (pending->count == 0 && pending->clear_count == 0) return PENDING_MISS;
    const struct pending_entry *entry =
        find(pending, hash_key(pending, bucket, key), range, bucket, key);
    /* clearing a bucket does not reach the system's range */
    uint64_t cleared = range == 0 ? 0 : clear_order(pending, bucket);
    if (entry != NULL && entry->order > cleared) {
        if (entry->effect.kind == EFFECT_DELETE) return PENDING_GONE;
        *entry_out = entry;
        return PENDING_VALUE;
    }
    return cleared != 0 ? PENDING_GONE : PENDING_MISS;
}

static enum err grow_slots(struct pending *pending)
{
    size_t slot_count = pending->slot_count * 2;
    struct pending_entry **slots = calloc(slot_count, sizeof(struct pending_entry *));
    if (slots == NULL) return ERR_NOMEM;
    for (size_t i = 0; i < pending->slot_count; i++) {
        struct pending_entry *entry = pending->slots[i];
        while (entry != NULL) {
            struct pending_entry *next = entry->chain;
            entry->chain = slots[entry->hash & (slot_count - 1)];
            slots[entry->hash & (slot_count - 1)] = entry;
            entry = next;
        }
    }
    free(pending->slots);
    pending->slots = slots;
    pending->slot_count = slot_count;
    return OK;
}

static enum err grow_queue(struct pending *pending, size_t more)
{
    size_t capacity = pending->queue_capacity == 0 ? 1024 : pending->queue_capacity;
    while (capacity < pending->queue_count + more)
        capacity *= 2;
    if (capacity == pending->queue_capacity) return OK;
    void *queue = malloc(capacity * sizeof *pending->queue);
    if (queue == NULL) return ERR_NOMEM;
    size_t element = sizeof *pending->queue;
    for (size_t i = 0; i < pending->queue_count; i++) {
        memcpy((uint8_t *)queue + i * element,
            &pending->queue[(pending->queue_first + i) % pending->queue_capacity], element);
    }
    free(pending->queue);
    pending->queue = queue;
    pending->queue_first = 0;
    pending->queue_capacity = capacity;
    return OK;
}

/* makes room for one more element in an array that doubles */
static enum err room(void **at, size_t *capacity, size_t needed, size_t element)
{
    if (needed <= *capacity) return OK;
    size_t wanted = *capacity == 0 ? 64 : *capacity;
    while (wanted < needed)
        wanted *= 2;
    void *grown = realloc(*at, wanted * element);
    if (grown == NULL) return ERR_NOMEM;
    *at = grown;
    *capacity = wanted;
    return OK;
}

enum err pending_reserve(struct pending *pending, size_t effects)
{
    while (pending->count + effects > pending->slot_count)
        TRY(grow_slots(pending));
    /* the open transaction's entries are queued too, when it is kept */
    TRY(grow_queue(pending, pending->undo_count + effects));
    TRY(room((void **)&pending->undo, &pending->undo_capacity, pending->undo_count + effects,
        sizeof *pending->undo));
    TRY(room((void **)&pending->clears, &pending->clear_capacity, pending->clear_count + effects,
        sizeof *pending->clears));
    size_t spare = 0;
    for (struct pending_entry *entry = pending->free; entry != NULL && spare < effects;
         entry = entry->chain)
        spare++;
    for (; spare < effects; spare++) {
        struct pending_entry *entry = calloc(1, sizeof *entry);
        if (entry == NULL) return ERR_NOMEM;
        entry->chain = pending->free;
        pending->free = entry;
    }
    return OK;
}

struct pending_entry *pending_add(struct pending *pending, const struct effect *effect, lsn_t lsn)
{
    uint64_t hash = hash_key(pending, effect->bucket, effect->key);
    struct pending_entry *entry = find(pending, hash, effect->range, effect->bucket, effect->key);
    ASSERT(pending->undo_count < pending->undo_capacity);
    struct pending_undo *undo = &pending->undo[pending->undo_count++];
    undo->existed = entry != NULL;
    if (entry != NULL) {
        undo->before = *entry;
    } else {
        entry = pending->free;
        ASSERT(entry != NULL);
        pending->free = entry->chain;
        struct pending_entry **slot = &pending->slots[hash & (pending->slot_count - 1)];
        entry->chain = *slot;
        *slot = entry;
        entry->hash = hash;
        entry->queued = 0;
        pending->count++;
    }
    undo->entry = entry;
    entry->lsn = lsn;
    entry->order = ++pending->order;
    entry->effect = *effect;
    return entry;
}

void pending_clear(struct pending *pending, uint16_t bucket, lsn_t lsn)
{
    ASSERT(pending->undo_count < pending->undo_capacity);
    struct pending_undo *undo = &pending->undo[pending->undo_count++];
    *undo = (struct pending_undo){.bucket = bucket};
    size_t i = 0;
    while (i < pending->clear_count && pending->clears[i].bucket != bucket)
        i++;
    if (i < pending->clear_count) {
        undo->existed = true;
        undo->clear_lsn = pending->clears[i].lsn;
        undo->clear_order = pending->clears[i].order;
    } else {
        ASSERT(pending->clear_count < pending->clear_capacity);
        pending->clear_count++;
        pending->clears[i].bucket = bucket;
    }
    pending->clears[i].lsn = lsn;
    pending->clears[i].order = ++pending->order;
}

void pending_keep(struct pending *pending)
{
    for (size_t i = 0; i < pending->undo_count; i++) {
        struct pending_entry *entry = pending->undo[i].entry;
        if (entry == NULL || entry->queued == entry->lsn) continue;
        entry->queued = entry->lsn;
        ASSERT(pending->queue_count < pending->queue_capacity);
        size_t at = (pending->queue_first + pending->queue_count++) % pending->queue_capacity;
        pending->queue[at].entry = entry;
        pending->queue[at].lsn = entry->lsn;
    }
    pending->undo_count = 0;
}

static void unlink_entry(struct pending *pending, struct pending_entry *entry)
{
    struct pending_entry **link = &pending->slots[entry->hash & (pending->slot_count - 1)];
    while (*link != entry)
        link = &(*link)->chain;
    *link = entry->chain;
    entry->chain = pending->free;
    pending->free = entry;
    pending->count--;
}

static void remove_clear(struct pending *pending, size_t i)
{
    pending->clears[i] = pending->clears[--pending->clear_count];
}

void pending_undo_all(struct pending *pending)
{
    while (pending->undo_count > 0) {
        struct pending_undo *undo = &pending->undo[--pending->undo_count];
        if (undo->entry != NULL && undo->existed) {
            /* the chain may have changed since: it stays */
            undo->before.chain = undo->entry->chain;
            *undo->entry = undo->before;
        } else if (undo->entry != NULL) {
            unlink_entry(pending, undo->entry);
        } else {
            size_t i = 0;
            while (pending->clears[i].bucket != undo->bucket)
                i++;
            pending->clears[i].lsn = undo->clear_lsn;
            pending->clears[i].order = undo->clear_order;
            if (!undo->existed) remove_clear(pending, i);
        }
    }
}

void pending_applied(struct pending *pending, lsn_t lsn)
{
    while (pending->queue_count > 0 && pending->queue[pending->queue_first].lsn <= lsn) {
        struct pending_entry *entry = pending->queue[pending->queue_first].entry;
        /* a newer effect on the key keeps the entry, and has its own place in the queue */
        if (entry->lsn == pending->queue[pending->queue_first].lsn) unlink_entry(pending, entry);
        pending->queue_first = (pending->queue_first + 1) % pending->queue_capacity;
        pending->queue_count--;
    }
    for (size_t i = pending->clear_count; i-- > 0;) {
        if (pending->clears[i].lsn <= lsn) remove_clear(pending, i);
    }
    ASSERT_IF(pending->queue_count == 0 && pending->undo_count == 0, pending->count == 0);
}

void pending_each(const struct pending *pending, uint16_t bucket,
    void (*each)(void *ctx, const struct pending_entry *entry), void *ctx)
{
    if (pending->count == 0) return;
    uint64_t cleared = clear_order(pending, bucket);
    for (size_t i = 0; i < pending->slot_count; i++) {
        for (const struct pending_entry *entry = pending->slots[i]; entry != NULL;
             entry = entry->chain) {
            if (entry->effect.bucket == bucket && entry->effect.range != 0 &&
                entry->order > cleared)
                each(ctx, entry);
        }
    }
}
