#include "storage/expiry_heap.h"

#include <stdlib.h>

#include "base/check.h"

enum { CHUNK_BYTES = 64 * 1024 };

struct expiry_chunk {
    struct expiry_chunk *next;
    size_t used;
    uint8_t at[CHUNK_BYTES];
};

void expiry_heap_deinit(struct expiry_heap *heap)
{
    while (heap->chunks != NULL) {
        struct expiry_chunk *next = heap->chunks->next;
        free(heap->chunks);
        heap->chunks = next;
    }
    free(heap->entries);
    *heap = (struct expiry_heap){0};
}

static const uint8_t *keep_key(struct expiry_heap *heap, struct bytes key)
{
    ASSERT(key.size <= CHUNK_BYTES);
    struct expiry_chunk *chunk = heap->chunks;
    if (chunk == NULL || CHUNK_BYTES - chunk->used < key.size) {
        chunk = malloc(sizeof *chunk);
        if (chunk == NULL) return NULL;
        chunk->next = heap->chunks;
        chunk->used = 0;
        heap->chunks = chunk;
        heap->bytes += sizeof *chunk;
    }
    uint8_t *at = chunk->at + chunk->used;
    memcpy(at, key.at, key.size);
    chunk->used += key.size;
    return at;
}

enum err expiry_heap_add(
    struct expiry_heap *heap, int64_t expires_ms, uint16_t range, struct bytes key)
{
    ASSERT(expires_ms > 0);
    if (heap->count == heap->capacity) {
        size_t capacity = heap->capacity == 0 ? 256 : heap->capacity * 2;
        struct expiry_entry *entries = realloc(heap->entries, capacity * sizeof *entries);
        if (entries == NULL) return ERR_NOMEM;
        heap->bytes += (capacity - heap->capacity) * sizeof *entries;
        heap->entries = entries;
        heap->capacity = capacity;
    }
    const uint8_t *kept = keep_key(heap, key);
    if (kept == NULL) return ERR_NOMEM;
    size_t hole = heap->count++;
    while (hole > 0 && heap->entries[(hole - 1) / 2].expires_ms > expires_ms) {
        heap->entries[hole] = heap->entries[(hole - 1) / 2];
        hole = (hole - 1) / 2;
    }
    heap->entries[hole] = (struct expiry_entry){
        .expires_ms = expires_ms, .key = kept, .range = range, .key_size = (uint16_t)key.size};
    return OK;
}

bool expiry_heap_take(struct expiry_heap *heap, int64_t until, struct expiry_entry *entry_out)
{
    if (heap->count == 0 || heap->entries[0].expires_ms > until) return false;
    *entry_out = heap->entries[0];
    struct expiry_entry last = heap->entries[--heap->count];
    size_t hole = 0;
    for (;;) {
        size_t child = 2 * hole + 1;
        if (child >= heap->count) break;
        if (child + 1 < heap->count &&
            heap->entries[child + 1].expires_ms < heap->entries[child].expires_ms)
            child++;
        if (heap->entries[child].expires_ms >= last.expires_ms) break;
        heap->entries[hole] = heap->entries[child];
        hole = child;
    }
    heap->entries[hole] = last;
    return true;
}
