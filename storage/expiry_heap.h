#ifndef STORAGE_EXPIRY_HEAP_H
#define STORAGE_EXPIRY_HEAP_H

#include <stdbool.h>

#include "base/bytes.h"
#include "base/err.h"

/* Keys of one memtable that have an expiry, earliest first: a binary heap whose keys live in an arena,
 * freed as a whole. An entry is a hint: the key may have been overwritten since, so whoever takes one
 * looks the key up. Its memory counts towards the memtable's budget, which bounds it. */

struct expiry_entry {
    int64_t expires_ms;
    const uint8_t *key;
    uint16_t range;
    uint16_t key_size;
};

struct expiry_chunk;

/* Zero-initialised is empty. */
struct expiry_heap {
    struct expiry_entry *entries;
    size_t count;
    size_t capacity;
    struct expiry_chunk *chunks;
    size_t bytes;
};

void expiry_heap_deinit(struct expiry_heap *heap);
/* Copies the key. */
enum err expiry_heap_add(
    struct expiry_heap *heap, int64_t expires_ms, uint16_t range, struct bytes key) MUST_CHECK;
/* Takes the earliest entry if it expires at or before `until`. Its key stays valid until deinit. */
bool expiry_heap_take(struct expiry_heap *heap, int64_t until, struct expiry_entry *entry_out);

#endif
