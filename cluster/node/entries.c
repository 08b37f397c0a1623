#include "cluster/node/entries.h"

#include <stdlib.h>

#include "base/check.h"

enum { FIRST_CAPACITY = 16, SAMPLE_EVERY = 64 };

void entries_init(struct entries *entries, uint64_t next)
{
    *entries = (struct entries){.first = next};
}

static void free_all(struct entries *entries)
{
    for (uint64_t i = 0; i < entries->count; i++)
        free(entries->ring[(entries->first + i) & (entries->capacity - 1)]);
    entries->count = 0;
    entries->bytes = 0;
}

void entries_deinit(struct entries *entries)
{
    free_all(entries);
    free(entries->ring);
    free(entries->samples);
    *entries = (struct entries){0};
}

void entries_reset(struct entries *entries, uint64_t next)
{
    free_all(entries);
    entries->first = next;
    entries->sample_first = entries->sample_count = 0;
}

struct entry *entry_new(uint64_t index, uint64_t term, uint8_t kind, size_t size)
{
    struct entry *entry = malloc(sizeof *entry + size);
    if (entry == NULL) return NULL;
    *entry = (struct entry){.index = index, .term = term, .kind = kind, .size = (uint32_t)size};
    return entry;
}

static enum err grow(struct entries *entries)
{
    uint64_t capacity = entries->capacity == 0 ? FIRST_CAPACITY : entries->capacity * 2;
    struct entry **ring = calloc(capacity, sizeof *ring);
    if (ring == NULL) return ERR_NOMEM;
    for (uint64_t i = 0; i < entries->count; i++) {
        uint64_t index = entries->first + i;
        ring[index & (capacity - 1)] = entries->ring[index & (entries->capacity - 1)];
    }
    free(entries->ring);
    entries->ring = ring;
    entries->capacity = capacity;
    return OK;
}

enum err entries_add(struct entries *entries, struct entry *entry)
{
    ASSERT(entry->index == entries->first + entries->count);
    if (entries->count == entries->capacity) TRY(grow(entries));
    entries->ring[entry->index & (entries->capacity - 1)] = entry;
    entries->count++;
    entries->bytes += sizeof *entry + entry->size;
    return OK;
}

struct entry *entries_get(const struct entries *entries, uint64_t index)
{
    if (index < entries->first || index >= entries->first + entries->count) return NULL;
    return entries->ring[index & (entries->capacity - 1)];
}

void entries_truncate(struct entries *entries, uint64_t index)
{
    while (entries->count > 0 && entries->first + entries->count > index) {
        struct entry *entry = entries_get(entries, entries->first + entries->count - 1);
        entries->bytes -= sizeof *entry + entry->size;
        entries->count--;
        free(entry);
    }
    if (entries->count == 0 && entries->first > index) entries->first = index;
    while (entries->sample_count > entries->sample_first &&
        entries->samples[entries->sample_count - 1].index > index)
        entries->sample_count--;
}

void entries_evict(struct entries *entries)
{
    ASSERT(entries->count > 0);
    struct entry *entry = entries_get(entries, entries->first);
    entries->bytes -= sizeof *entry + entry->size;
    entries->first++;
    entries->count--;
    free(entry);
}

static bool sample_room(struct entries *entries)
{
    if (entries->sample_count < entries->sample_capacity) return true;
    if (entries->sample_first > entries->sample_capacity / 2) {
        size_t live = entries->sample_count - entries->sample_first;
        memmove(entries->samples, entries->samples + entries->sample_first,
            live * sizeof *entries->samples);
        entries->sample_first = 0;
        entries->sample_count = live;
        return true;
    }
    size_t capacity = entries->sample_capacity == 0 ? 16 : entries->sample_capacity * 2;
    struct entry_sample *samples = realloc(entries->samples, capacity * sizeof *samples);
    if (samples == NULL) return false;
    entries->samples = samples;
    entries->sample_capacity = capacity;
    return true;
}

void entries_logged(struct entries *entries, uint64_t index, lsn_t lsn)
{
    bool none = entries->sample_first == entries->sample_count;
    const struct entry_sample *last = none ? NULL : &entries->samples[entries->sample_count - 1];
    if (last != NULL && index < last->index + SAMPLE_EVERY) return;
    /* without memory for a sample, reading only starts earlier */
    if (!sample_room(entries)) return;
    entries->samples[entries->sample_count++] = (struct entry_sample){index, lsn};
}

lsn_t entries_lsn(const struct entries *entries, uint64_t index)
{
    lsn_t lsn = 0;
    for (size_t i = entries->sample_first; i < entries->sample_count; i++) {
        if (entries->samples[i].index > index) break;
        lsn = entries->samples[i].lsn;
    }
    return lsn;
}

uint64_t entries_trimmed(struct entries *entries, lsn_t lsn)
{
    while (entries->sample_first < entries->sample_count &&
        entries->samples[entries->sample_first].lsn <= lsn)
        entries->sample_first++;
    uint64_t on_disk = entries->sample_first < entries->sample_count
        ? entries->samples[entries->sample_first].index
        : entries->first;
    return on_disk < entries->first ? on_disk : entries->first;
}
