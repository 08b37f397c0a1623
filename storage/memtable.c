#define _GNU_SOURCE
#include "storage/memtable.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "base/check.h"
#include "base/hash.h"

/* Three parts share one arena:
 *
 *   records   header, key, value; never moved, so that trees and index refer to them by a 32-bit
 *             number (offset in the arena / 8) instead of a pointer
 *   trees     one B+tree per range: the order. A node knows how many bytes all its keys share
 *             (`skip`), keeps the first of them inline, and for each key the 8 bytes after them as
 *             a big-endian number. Keys in real use are long and alike ("user:000000012345"): without
 *             the skip the numbers would all be equal and every step of a search would have to
 *             fetch a record from memory.
 *   index     a hash table from key to record: finds hits, misses and the place to overwrite with
 *             one or two cache misses. It is cut into segments that grow one at a time, so
 *             no put ever waits for a rehash of the whole. It does what a Bloom filter in front
 *             of the trees would do for misses, and for hits and overwrites what that cannot;
 *             docs/decisions/0004-memtable.md has the measurements.
 *
 * The trees are touched only by a put of a new key, by growth of a value beyond its place, and by
 * walks. Nothing is freed before the whole, but for values of their own mapping (BIG and up). A
 * replaced or dropped record stays in the arena: a separator in an inner node may still name it for
 * its key.
 *
 * Clearing a bucket cuts its entries out of the leaves and marks the records dead; the index keeps
 * naming them, which a get reads as "not here" and a put of the same key uses as its place. Leaves may
 * be empty therefore, and nodes are never merged: a memtable lives for minutes. */

enum {
    FANOUT = 64,
    SHARED_INLINE = 48,
    CHUNK = 2 << 20,
    CHUNK_UNITS = CHUNK / 8,
    CHUNKS_MAX = 1 << 14, /* 32-bit record numbers: 32 GiB */
    BIG = 128 << 10, /* values from here on have a mapping of their own */
    SEGMENTS = 1024,
    SEGMENT_BITS = 10,
    /* regrow a node's skip at a split only if that many bytes are won: it reads all its records */
    REGROW_LEAST = 4,
};

typedef uint32_t record_ref; /* 0: none */

enum record_state { RECORD_TOMBSTONE = 1, RECORD_BIG = 2, RECORD_DEAD = 4 };

/* key[] is followed by `capacity` bytes for the value or, if BIG, by a pointer to its mapping */
struct record {
    uint64_t version;
    int64_t expires_ms;
    uint32_t value_size;
    uint32_t capacity;
    uint16_t key_size;
    uint8_t flags;
    uint8_t state;
    uint8_t note; /* alone in its byte: the owner may set it while others read a sealed table */
    uint8_t key[];
};
enum { RECORD_HEADER = offsetof(struct record, key) };

/* the front of a value's own mapping; all of them are in one list */
struct big {
    struct big *next;
    struct big **link; /* what points here */
    size_t size; /* of the mapping */
    uint64_t range;
};

struct node {
    uint16_t count;
    uint16_t skip; /* bytes shared by all keys; those past SHARED_INLINE are read from refs[0] */
    bool leaf;
    uint8_t padding[3];
    struct node *next; /* leaves: to the right */
    uint8_t shared[SHARED_INLINE];
    uint64_t prefixes[FANOUT]; /* the 8 bytes after the shared ones, zero padded */
    record_ref
        refs[FANOUT]; /* leaf: the records; inner: separators, the least key to their right */
};
struct inner {
    struct node node;
    struct node *children[FANOUT + 1];
};
_Static_assert(offsetof(struct node, prefixes) == 64, "prefixes start a cache line");

struct tree {
    struct node *root;
    uint64_t count;
};

/* Open addressing, linear probing. A slot is (low half of the hash) << 32 | record; the place follows
 * from the half in the slot alone, so growing touches no record. */
struct segment {
    uint64_t *slots;
    uint32_t used;
    uint32_t size;
};

struct cleared {
    uint16_t bucket;
    uint64_t *ranges; /* one bit a range */
};

struct memtable {
    uint64_t seed;
    uint32_t ranges;
    uint8_t **chunks;
    uint32_t chunk_count; /* in use */
    uint32_t chunks_mapped; /* in use or kept for later */
    uint32_t chunk_capacity;
    size_t chunk_used; /* of the last one */
    size_t bytes;
    uint64_t count;
    struct big *bigs;
    struct cleared *cleared; /* ordered by bucket */
    size_t cleared_count;
    size_t cleared_capacity;
    struct segment segments[SEGMENTS];
    struct tree trees[];
};

/* ---- arena */

static bool arena_grow(struct memtable *memtable)
{
    if (memtable->chunk_count == CHUNKS_MAX) return false;
    if (memtable->chunk_count == memtable->chunk_capacity) {
        uint32_t capacity = memtable->chunk_capacity == 0 ? 16 : memtable->chunk_capacity * 2;
        uint8_t **chunks = realloc(memtable->chunks, capacity * sizeof *chunks);
        if (chunks == NULL) return false;
        memtable->chunks = chunks;
        memtable->chunk_capacity = capacity;
    }
    if (memtable->chunk_count == memtable->chunks_mapped) {
        /* no huge pages: zeroing one stops the caller for up to some milliseconds, and what they
         * save on address translation did not show in the measurements */
        uint8_t *chunk =
            mmap(NULL, CHUNK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (chunk == MAP_FAILED) return false;
        memtable->chunks[memtable->chunks_mapped++] = chunk;
    }
    if (memtable->chunk_count > 0) memtable->bytes += CHUNK - memtable->chunk_used;
    memtable->chunk_count++;
    memtable->chunk_used = memtable->chunk_count == 1 ? 64 : 0; /* record 0 is none */
    return true;
}

/* Returns memory, with whatever is in it, that starts at a multiple of `align`, or NULL. */
static uint8_t *arena_take(
    struct memtable *memtable, size_t size, size_t align, record_ref *ref_out)
{
    ASSERT(size <= CHUNK - 64);
    size_t start = round_up(memtable->chunk_used, align);
    if (memtable->chunk_count == 0 || start + size > CHUNK) {
        if (!arena_grow(memtable)) return NULL;
        start = round_up(memtable->chunk_used, align);
    }
    memtable->bytes += start + size - memtable->chunk_used;
    memtable->chunk_used = start + size;
    *ref_out = (memtable->chunk_count - 1) * (uint32_t)CHUNK_UNITS + (uint32_t)(start / 8);
    return memtable->chunks[memtable->chunk_count - 1] + start;
}

/* Empties the arena; up to `keep` bytes stay mapped for what comes. */
static void arena_reset(struct memtable *memtable, size_t keep)
{
    while (memtable->chunks_mapped * (size_t)CHUNK > keep)
        munmap(memtable->chunks[--memtable->chunks_mapped], CHUNK);
    memtable->chunk_count = 0;
    memtable->chunk_used = 0;
}

static inline struct record *record_at(const struct memtable *memtable, record_ref ref)
{
    uint8_t *chunk = memtable->chunks[ref / CHUNK_UNITS];
    return (struct record *)(void *)(chunk + (size_t)(ref % CHUNK_UNITS) * 8);
}

static inline struct bytes record_key(const struct record *record)
{
    return bytes_of(record->key, record->key_size);
}

/* ---- records */

static struct big *record_big(const struct record *record)
{
    struct big *big;
    memcpy(&big, record->key + record->key_size, sizeof big);
    return big;
}

static uint8_t *record_value(struct record *record)
{
    if ((record->state & RECORD_BIG) != 0) return (uint8_t *)(record_big(record) + 1);
    return record->key + record->key_size;
}

static void big_free(struct memtable *memtable, struct big *big)
{
    *big->link = big->next;
    if (big->next != NULL) big->next->link = big->link;
    memtable->bytes -= big->size;
    munmap(big, big->size);
}

static struct record *record_new(struct memtable *memtable, uint16_t range, struct bytes key,
    size_t value_size, record_ref *ref_out)
{
    bool is_big = value_size >= BIG;
    size_t place = is_big ? sizeof(struct big *) : value_size;
    size_t size = round_up(RECORD_HEADER + key.size + place, 8);
    struct record *record = (struct record *)(void *)arena_take(memtable, size, 8, ref_out);
    if (record == NULL) return NULL;
    *record = (struct record){
        .capacity = (uint32_t)(size - RECORD_HEADER - key.size),
        .key_size = (uint16_t)key.size,
    };
    if (key.size > 0) memcpy(record->key, key.at, key.size);
    if (!is_big) return record;

    size_t mapping = round_up(sizeof(struct big) + value_size, 4096);
    struct big *big =
        mmap(NULL, mapping, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (big == MAP_FAILED) return NULL;
    *big = (struct big){
        .next = memtable->bigs, .link = &memtable->bigs, .size = mapping, .range = range};
    if (big->next != NULL) big->next->link = &big->next;
    memtable->bigs = big;
    memtable->bytes += mapping;
    memcpy(record->key + record->key_size, &big, sizeof big);
    record->state = RECORD_BIG;
    record->capacity = (uint32_t)(mapping - sizeof *big);
    return record;
}

static void record_drop(struct memtable *memtable, struct record *record)
{
    if ((record->state & RECORD_BIG) != 0) {
        big_free(memtable, record_big(record));
        record->state &= (uint8_t)~RECORD_BIG;
        record->capacity = sizeof(struct big *);
        record->value_size = 0;
    }
    record->state |= RECORD_DEAD;
}

/* ---- nodes */

static inline uint64_t prefix_of(struct bytes key, size_t skip)
{
    if (key.size >= skip + 8) return load_u64_be(key.at + skip);
    uint8_t padded[8] = {0};
    if (key.size > skip) memcpy(padded, key.at + skip, key.size - skip);
    return load_u64_be(padded);
}

static size_t common_size(struct bytes a, struct bytes b)
{
    size_t least = a.size < b.size ? a.size : b.size;
    size_t i = 0;
    while (i + 8 <= least) {
        uint64_t differ = load_u64(a.at + i) ^ load_u64(b.at + i);
        if (differ != 0) return i + (size_t)__builtin_ctzll(differ) / 8;
        i += 8;
    }
    while (i < least && a.at[i] == b.at[i])
        i++;
    return i;
}

static inline struct node **children_of(struct node *node)
{
    ASSERT(!node->leaf);
    return ((struct inner *)(void *)node)->children;
}

static struct node *node_new(struct memtable *memtable, bool leaf)
{
    record_ref ignored;
    size_t size = leaf ? sizeof(struct node) : round_up(sizeof(struct inner), 64);
    struct node *node = (struct node *)(void *)arena_take(memtable, size, 64, &ignored);
    if (node == NULL) return NULL;
    memset(node, 0, offsetof(struct node, prefixes));
    node->leaf = leaf;
    return node;
}

static inline void node_prefetch(const struct node *node)
{
    const char *at = (const char *)node;
    for (size_t line = 0; line < sizeof(struct node); line += 64)
        __builtin_prefetch(at + line);
}

/* the bytes that all keys of the node share */
static struct bytes node_shared(const struct memtable *memtable, const struct node *node)
{
    if (node->skip <= SHARED_INLINE) return bytes_of(node->shared, node->skip);
    return bytes_of(record_at(memtable, node->refs[0])->key, node->skip);
}

static void node_set_shared(struct node *node, struct bytes key, size_t skip)
{
    node->skip = (uint16_t)skip;
    memcpy(node->shared, key.at, skip < SHARED_INLINE ? skip : SHARED_INLINE);
}

/* How many keys of the node are less than `key` or, with `or_equal`, not greater. */
static inline unsigned node_search(
    const struct memtable *memtable, const struct node *node, struct bytes key, bool or_equal)
{
    unsigned count = node->count;
    if (count == 0) return 0;
    size_t skip = node->skip;
    if (skip > 0) {
        struct bytes shared = node_shared(memtable, node);
        size_t least = key.size < skip ? key.size : skip;
        int order = least == 0 ? 0 : memcmp(key.at, shared.at, least);
        if (order < 0 || (order == 0 && key.size < skip)) return 0;
        if (order > 0) return count;
    }
    uint64_t prefix = prefix_of(key, skip);
    const uint64_t *base = node->prefixes;
    unsigned left = count;
    while (left > 1) {
        unsigned half = left / 2;
        base = base[half - 1] < prefix ? base + half : base;
        left -= half;
    }
    unsigned low = (unsigned)(base - node->prefixes) + (*base < prefix);
    unsigned high = low;
    while (high < count && node->prefixes[high] == prefix)
        high++;
    while (low < high) {
        unsigned middle = (low + high) / 2;
        int order = bytes_compare(record_key(record_at(memtable, node->refs[middle])), key);
        if (order < 0 || (order == 0 && or_equal)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* Makes the node skip fewer bytes. No record is read but one: the bytes that join a prefix are the
 * shared ones. */
static void node_shrink(const struct memtable *memtable, struct node *node, size_t skip)
{
    struct bytes shared = node_shared(memtable, node);
    size_t back = shared.size - skip;
    uint64_t front = prefix_of(shared, skip);
    for (unsigned i = 0; i < node->count; i++)
        node->prefixes[i] = front | (back >= 8 ? 0 : node->prefixes[i] >> (8 * back));
    node->skip = (uint16_t)skip;
}

/* After a split the keys may share more. Worth it only if much is won, as all records are read. */
static void node_regrow(const struct memtable *memtable, struct node *node)
{
    if (node->count == 0) return;
    uint64_t differ = node->prefixes[0] ^ node->prefixes[node->count - 1];
    if (differ != 0 && __builtin_clzll(differ) / 8 < REGROW_LEAST) return;
    for (unsigned i = 0; i < node->count; i++)
        __builtin_prefetch(record_at(memtable, node->refs[i])->key);
    struct bytes first = record_key(record_at(memtable, node->refs[0]));
    struct bytes last = record_key(record_at(memtable, node->refs[node->count - 1]));
    size_t skip = common_size(first, last);
    ASSERT(skip >= node->skip);
    if (skip == node->skip) return;
    node_set_shared(node, first, skip);
    for (unsigned i = 0; i < node->count; i++)
        node->prefixes[i] = prefix_of(record_key(record_at(memtable, node->refs[i])), skip);
}

/* Makes room at `index` and puts the record there. */
static void node_insert(const struct memtable *memtable, struct node *node, unsigned index,
    record_ref ref, struct bytes key)
{
    ASSERT(node->count < FANOUT);
    if (node->count == 0) {
        node_set_shared(node, key, key.size);
    } else {
        size_t common = common_size(node_shared(memtable, node), key);
        if (common < node->skip) node_shrink(memtable, node, common);
    }
    size_t after = node->count - index;
    memmove(node->prefixes + index + 1, node->prefixes + index, after * sizeof *node->prefixes);
    memmove(node->refs + index + 1, node->refs + index, after * sizeof *node->refs);
    node->prefixes[index] = prefix_of(key, node->skip);
    node->refs[index] = ref;
    node->count++;
}

static void node_cut(struct node *node, unsigned from, unsigned to)
{
    ASSERT(from <= to && to <= node->count);
    size_t after = node->count - to;
    memmove(node->prefixes + from, node->prefixes + to, after * sizeof *node->prefixes);
    memmove(node->refs + from, node->refs + to, after * sizeof *node->refs);
    node->count = (uint16_t)(node->count - (to - from));
}

/* ---- trees */

/* Splits the full child at `index`; `parent` has room. Keys that arrive in order leave full nodes
 * behind: at the right edge only the last is moved. */
static bool tree_split(
    struct memtable *memtable, struct node *parent, unsigned index, struct bytes key)
{
    struct node *left = children_of(parent)[index];
    struct node *right = node_new(memtable, left->leaf);
    if (right == NULL) return false;
    ASSERT(left->count == FANOUT);
    unsigned half = FANOUT / 2;
    bool edge = index == parent->count;
    if (edge && node_search(memtable, left, key, true) == FANOUT)
        half = left->leaf ? FANOUT - 1 : FANOUT - 2;

    record_ref separator = left->refs[half];
    unsigned first = left->leaf ? half : half + 1; /* an inner separator moves up */
    right->count = (uint16_t)(FANOUT - first);
    node_set_shared(right, node_shared(memtable, left), left->skip);
    memcpy(right->prefixes, left->prefixes + first, right->count * sizeof *right->prefixes);
    memcpy(right->refs, left->refs + first, right->count * sizeof *right->refs);
    if (left->leaf) {
        right->next = left->next;
        left->next = right;
    } else {
        memcpy(children_of(right), children_of(left) + first,
            (right->count + 1u) * sizeof(struct node *));
    }
    left->count = (uint16_t)half;
    node_regrow(memtable, left);
    node_regrow(memtable, right);

    struct node **children = children_of(parent);
    memmove(children + index + 2, children + index + 1,
        (parent->count - index) * sizeof(struct node *));
    children[index + 1] = right;
    node_insert(memtable, parent, index, separator, record_key(record_at(memtable, separator)));
    return true;
}

/* Adds a record whose key is not in the tree. Full nodes are split on the way down, so that running
 * out of memory at any point leaves a valid tree without the key. */
static enum err tree_insert(
    struct memtable *memtable, struct tree *tree, record_ref ref, struct bytes key)
{
    if (tree->root == NULL) {
        tree->root = node_new(memtable, true);
        if (tree->root == NULL) return ERR_NOMEM;
    }
    if (tree->root->count == FANOUT) {
        struct node *root = node_new(memtable, false);
        if (root == NULL) return ERR_NOMEM;
        children_of(root)[0] = tree->root;
        if (!tree_split(memtable, root, 0, key)) return ERR_NOMEM;
        tree->root = root;
    }
    struct node *node = tree->root;
    while (!node->leaf) {
        unsigned index = node_search(memtable, node, key, true);
        struct node *child = children_of(node)[index];
        node_prefetch(child);
        if (child->count == FANOUT) {
            if (!tree_split(memtable, node, index, key)) return ERR_NOMEM;
            struct record *separator = record_at(memtable, node->refs[index]);
            if (bytes_compare(record_key(separator), key) <= 0)
                child = children_of(node)[index + 1];
        }
        node = child;
    }
    node_insert(memtable, node, node_search(memtable, node, key, false), ref, key);
    tree->count++;
    memtable->count++;
    return OK;
}

/* The leaf and index of the first key >= `key`; the index may be the leaf's count. */
static struct node *tree_find(
    const struct memtable *memtable, const struct tree *tree, struct bytes key, unsigned *index_out)
{
    struct node *node = tree->root;
    while (!node->leaf) {
        node = children_of(node)[node_search(memtable, node, key, true)];
        node_prefetch(node);
    }
    *index_out = node_search(memtable, node, key, false);
    return node;
}

static void tree_replace(
    struct memtable *memtable, struct tree *tree, record_ref old, record_ref ref, struct bytes key)
{
    unsigned index;
    struct node *leaf = tree_find(memtable, tree, key, &index);
    ASSERT(index < leaf->count && leaf->refs[index] == old);
    leaf->refs[index] = ref;
}

/* ---- index */

static inline struct segment *segment_of(const struct memtable *memtable, uint64_t hash)
{
    return (struct segment *)&memtable->segments[hash >> (64 - SEGMENT_BITS)];
}

static inline uint32_t segment_start(const struct segment *segment, uint32_t tag)
{
    return (uint32_t)(((uint64_t)tag * segment->size) >> 32);
}

static inline uint64_t key_hash(const struct memtable *memtable, uint16_t range, struct bytes key)
{
    return hash64(memtable->seed + range * UINT64_C(0x9e3779b97f4a7c15), key);
}

/* The slot that names the key's record, or NULL. */
static inline uint64_t *segment_find(
    const struct memtable *memtable, const struct segment *segment, uint64_t hash, struct bytes key)
{
    if (segment->used == 0) return NULL;
    uint32_t tag = (uint32_t)hash;
    uint32_t place = segment_start(segment, tag);
    for (;;) {
        uint64_t slot = segment->slots[place];
        if (slot == 0) return NULL;
        if ((uint32_t)(slot >> 32) == tag &&
            bytes_equal(record_key(record_at(memtable, (record_ref)slot)), key))
            return &segment->slots[place];
        place = place + 1 == segment->size ? 0 : place + 1;
    }
}

static void segment_add(struct segment *segment, uint32_t tag, record_ref ref)
{
    uint32_t place = segment_start(segment, tag);
    while (segment->slots[place] != 0)
        place = place + 1 == segment->size ? 0 : place + 1;
    segment->slots[place] = (uint64_t)tag << 32 | ref;
    segment->used++;
}

/* Makes sure that one more fits, with a quarter of the slots free. */
static bool segment_reserve(struct memtable *memtable, struct segment *segment)
{
    if ((segment->used + 1) * 4ull <= segment->size * 3ull) return true;
    struct segment grown = {.size = segment->size == 0 ? 8 : segment->size + segment->size / 2};
    grown.slots = calloc(grown.size, sizeof *grown.slots);
    if (grown.slots == NULL) return false;
    for (uint32_t i = 0; i < segment->size; i++) {
        uint64_t slot = segment->slots[i];
        if (slot != 0) segment_add(&grown, (uint32_t)(slot >> 32), (record_ref)slot);
    }
    memtable->bytes += (grown.size - segment->size) * sizeof *grown.slots;
    free(segment->slots);
    *segment = grown;
    return true;
}

static void index_free(struct memtable *memtable)
{
    for (unsigned i = 0; i < SEGMENTS; i++) {
        memtable->bytes -= memtable->segments[i].size * sizeof(uint64_t);
        free(memtable->segments[i].slots);
        memtable->segments[i] = (struct segment){0};
    }
}

/* ---- interface */

struct memtable *memtable_new(uint32_t ranges, uint64_t hash_seed)
{
    ASSERT(ranges >= 1 && ranges <= UINT16_MAX + 1u);
    size_t size = sizeof(struct memtable) + ranges * sizeof(struct tree);
    struct memtable *memtable = calloc(1, size);
    if (memtable == NULL) return NULL;
    memtable->seed = hash_seed;
    memtable->ranges = ranges;
    memtable->bytes = size;
    return memtable;
}

static size_t bitmap_size(const struct memtable *memtable)
{
    return (memtable->ranges + 63) / 64 * sizeof(uint64_t);
}

static void drop_all(struct memtable *memtable, size_t keep)
{
    while (memtable->bigs != NULL)
        big_free(memtable, memtable->bigs);
    index_free(memtable);
    arena_reset(memtable, keep);
    memset(memtable->trees, 0, memtable->ranges * sizeof *memtable->trees);
    memtable->count = 0;
    memtable->bytes = sizeof *memtable + memtable->ranges * sizeof *memtable->trees +
        memtable->cleared_capacity * sizeof *memtable->cleared +
        memtable->cleared_count * bitmap_size(memtable);
}

static void cleared_reset(struct memtable *memtable)
{
    for (size_t i = 0; i < memtable->cleared_count; i++)
        free(memtable->cleared[i].ranges);
    memtable->cleared_count = 0;
}

void memtable_reset(struct memtable *memtable, size_t keep)
{
    cleared_reset(memtable);
    drop_all(memtable, keep);
}

void memtable_free(struct memtable *memtable)
{
    if (memtable == NULL) return;
    cleared_reset(memtable);
    drop_all(memtable, 0);
    free(memtable->chunks);
    free(memtable->cleared);
    free(memtable);
}

static void record_fill(
    struct record *record, const struct value *value, bool tombstone, bool in_place)
{
    record->version = value->version;
    if (!(PLANTED_BUG(8) && in_place)) record->expires_ms = value->expires_ms;
    record->flags = value->flags;
    record->value_size = (uint32_t)value->bytes.size;
    if (value->bytes.size > 0) memmove(record_value(record), value->bytes.at, value->bytes.size);
    record->state = (uint8_t)((record->state & RECORD_BIG) | (tombstone ? RECORD_TOMBSTONE : 0));
}

/* In place if it fits; but a large place is not kept for something small. */
static bool record_fits(const struct record *record, size_t size)
{
    if ((record->state & RECORD_BIG) != 0) return size >= BIG && size <= record->capacity;
    return size <= record->capacity;
}

static enum err put(struct memtable *memtable, uint16_t range, struct bytes key,
    const struct value *value, bool tombstone)
{
    ASSERT(range < memtable->ranges);
    ASSERT(key.size <= UINT16_MAX);
    struct tree *tree = &memtable->trees[range];
    size_t size = value->bytes.size;
    uint64_t hash = key_hash(memtable, range, key);
    struct segment *segment = segment_of(memtable, hash);
    uint64_t *slot = segment_find(memtable, segment, hash, key);
    if (slot == NULL) {
        record_ref ref;
        if (!segment_reserve(memtable, segment)) return ERR_NOMEM;
        struct record *record = record_new(memtable, range, key, size, &ref);
        if (record == NULL) return ERR_NOMEM;
        record_fill(record, value, tombstone, false);
        enum err err = tree_insert(memtable, tree, ref, key);
        if (err != OK) {
            record_drop(memtable, record);
            return err;
        }
        segment_add(segment, (uint32_t)hash, ref);
        return OK;
    }

    record_ref old_ref = (record_ref)*slot;
    struct record *old = record_at(memtable, old_ref);
    bool dead = (old->state & RECORD_DEAD) != 0;
    if (record_fits(old, size)) {
        if (dead) {
            TRY(tree_insert(memtable, tree, old_ref, record_key(old)));
            old->note = 0;
        }
        record_fill(old, value, tombstone, true);
        return OK;
    }
    /* a value that grows once tends to grow again: some room, as long as it is small */
    record_ref ref;
    size_t room = size < BIG / 2 ? size + size / 4 : size;
    struct record *record = record_new(memtable, range, key, room, &ref);
    if (record == NULL) return ERR_NOMEM;
    record_fill(record, value, tombstone, false);
    if (dead) {
        enum err err = tree_insert(memtable, tree, ref, record_key(record));
        if (err != OK) {
            record_drop(memtable, record);
            return err;
        }
    } else {
        record->note = old->note;
        tree_replace(memtable, tree, old_ref, ref, key);
    }
    record_drop(memtable, old);
    *slot = (uint64_t)(uint32_t)hash << 32 | ref;
    return OK;
}

void memtable_prefetch(const struct memtable *memtable, uint16_t range, struct bytes key)
{
    uint64_t hash = key_hash(memtable, range, key);
    const struct segment *segment = segment_of(memtable, hash);
    if (segment->used == 0) return;
    __builtin_prefetch(&segment->slots[segment_start(segment, (uint32_t)hash)]);
}

enum err memtable_put(
    struct memtable *memtable, uint16_t range, struct bytes key, const struct value *value)
{
    return put(memtable, range, key, value, false);
}

enum err memtable_delete(
    struct memtable *memtable, uint16_t range, struct bytes key, uint64_t version)
{
    struct value value = {.version = version};
    return put(memtable, range, key, &value, true);
}

static size_t cleared_find(const struct memtable *memtable, uint16_t bucket)
{
    size_t low = 0, high = memtable->cleared_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (memtable->cleared[middle].bucket < bucket) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static enum err cleared_add(struct memtable *memtable, uint16_t range, uint16_t bucket)
{
    size_t place = cleared_find(memtable, bucket);
    if (place == memtable->cleared_count || memtable->cleared[place].bucket != bucket) {
        if (memtable->cleared_count == memtable->cleared_capacity) {
            size_t capacity = memtable->cleared_capacity == 0 ? 8 : memtable->cleared_capacity * 2;
            struct cleared *cleared = realloc(memtable->cleared, capacity * sizeof *cleared);
            if (cleared == NULL) return ERR_NOMEM;
            memtable->bytes += (capacity - memtable->cleared_capacity) * sizeof *cleared;
            memtable->cleared = cleared;
            memtable->cleared_capacity = capacity;
        }
        uint64_t *ranges = calloc(1, bitmap_size(memtable));
        if (ranges == NULL) return ERR_NOMEM;
        memmove(memtable->cleared + place + 1, memtable->cleared + place,
            (memtable->cleared_count - place) * sizeof *memtable->cleared);
        memtable->cleared[place] = (struct cleared){.bucket = bucket, .ranges = ranges};
        memtable->cleared_count++;
        memtable->bytes += bitmap_size(memtable);
    }
    memtable->cleared[place].ranges[range / 64] |= UINT64_C(1) << range % 64;
    return OK;
}

static void tree_clear(struct memtable *memtable, struct tree *tree, struct bytes bucket)
{
    if (tree->count == 0) return;
    unsigned from;
    struct node *leaf = tree_find(memtable, tree, bucket, &from);
    for (; leaf != NULL; leaf = leaf->next, from = 0) {
        unsigned to = from;
        for (unsigned ahead = from; ahead < leaf->count; ahead++)
            __builtin_prefetch(record_at(memtable, leaf->refs[ahead]));
        while (to < leaf->count) {
            struct record *record = record_at(memtable, leaf->refs[to]);
            if (!bytes_have_prefix(record_key(record), bucket)) break;
            record_drop(memtable, record);
            to++;
        }
        bool more = to == leaf->count;
        node_cut(leaf, from, to);
        tree->count -= to - from;
        memtable->count -= to - from;
        if (!more) return;
    }
}

enum err memtable_clear_bucket(struct memtable *memtable, uint16_t range, uint16_t bucket)
{
    ASSERT(range < memtable->ranges);
    TRY(cleared_add(memtable, range, bucket));
    uint8_t prefix[2];
    store_u16_be(prefix, bucket);
    uint64_t before = memtable->count;
    tree_clear(memtable, &memtable->trees[range], bytes_of(prefix, sizeof prefix));
    /* nothing is left: start over instead of keeping it all as garbage */
    if (before > 0 && memtable->count == 0) drop_all(memtable, CHUNK);
    return OK;
}

bool memtable_cleared(const struct memtable *memtable, uint16_t range, uint16_t bucket)
{
    if (memtable->cleared_count == 0) return false;
    size_t place = cleared_find(memtable, bucket);
    if (place == memtable->cleared_count) return false;
    const struct cleared *cleared = &memtable->cleared[place];
    if (cleared->bucket != bucket) return false;
    return PLANTED_BUG(48) || (cleared->ranges[range / 64] >> range % 64 & 1) != 0;
}

bool memtable_range_cleared(const struct memtable *memtable, uint16_t range)
{
    for (size_t i = 0; i < memtable->cleared_count; i++) {
        if ((memtable->cleared[i].ranges[range / 64] >> range % 64 & 1) != 0) return true;
    }
    return false;
}

void memtable_each_cleared(const struct memtable *memtable,
    void (*each)(void *ctx, uint16_t range, uint16_t bucket), void *ctx)
{
    for (size_t i = 0; i < memtable->cleared_count; i++) {
        for (uint32_t range = 0; range < memtable->ranges; range++) {
            if ((memtable->cleared[i].ranges[range / 64] >> range % 64 & 1) != 0)
                each(ctx, (uint16_t)range, memtable->cleared[i].bucket);
        }
    }
}

static inline struct value record_as_value(const struct record *record)
{
    return (struct value){
        .bytes = bytes_of(record_value((struct record *)record), record->value_size),
        .expires_ms = record->expires_ms,
        .version = record->version,
        .flags = record->flags,
    };
}

enum memtable_found memtable_get(
    const struct memtable *memtable, uint16_t range, struct bytes key, struct value *value_out)
{
    ASSERT(range < memtable->ranges);
    uint64_t hash = key_hash(memtable, range, key);
    uint64_t *slot = segment_find(memtable, segment_of(memtable, hash), hash, key);
    if (slot != NULL) {
        struct record *record = record_at(memtable, (record_ref)*slot);
        if ((record->state & (RECORD_TOMBSTONE | RECORD_DEAD)) == 0) {
            *value_out = record_as_value(record);
            return MEMTABLE_VALUE;
        }
        if ((record->state & RECORD_DEAD) == 0)
            return PLANTED_BUG(9) ? MEMTABLE_MISS : MEMTABLE_GONE;
    }
    if (memtable->cleared_count > 0 && key.size >= 2 &&
        memtable_cleared(memtable, range, load_u16_be(key.at)))
        return MEMTABLE_GONE;
    return MEMTABLE_MISS;
}

size_t memtable_bytes(const struct memtable *memtable)
{
    return memtable->bytes;
}

uint64_t memtable_count(const struct memtable *memtable)
{
    return memtable->count;
}

uint64_t memtable_range_count(const struct memtable *memtable, uint16_t range)
{
    ASSERT(range < memtable->ranges);
    return memtable->trees[range].count;
}

/* ---- walking */

/* Moves a cursor that stands behind the last entry of its leaf to the next entry there is. */
static void cursor_settle(struct memtable_cursor *cursor)
{
    const struct node *leaf = cursor->leaf;
    while (leaf != NULL && cursor->index >= leaf->count) {
        leaf = leaf->next;
        cursor->index = 0;
    }
    cursor->leaf = leaf;
}

void memtable_seek(const struct memtable *memtable, uint16_t range, struct bytes from,
    struct memtable_cursor *cursor)
{
    ASSERT(range < memtable->ranges);
    *cursor = (struct memtable_cursor){.memtable = memtable, .range = range};
    const struct tree *tree = &memtable->trees[range];
    if (tree->root == NULL) return;
    unsigned index;
    cursor->leaf = tree_find(memtable, tree, from, &index);
    cursor->index = index;
    cursor_settle(cursor);
}

bool memtable_cursor_get(const struct memtable_cursor *cursor, struct memtable_entry *entry_out)
{
    const struct node *leaf = cursor->leaf;
    if (leaf == NULL) return false;
    const struct record *record = record_at(cursor->memtable, leaf->refs[cursor->index]);
    *entry_out = (struct memtable_entry){
        .range = cursor->range,
        .key = record_key(record),
        .value = record_as_value(record),
        .tombstone = (record->state & RECORD_TOMBSTONE) != 0,
    };
    return true;
}

void memtable_cursor_next(struct memtable_cursor *cursor)
{
    enum { AHEAD = 16 };
    const struct node *leaf = cursor->leaf;
    if (leaf == NULL) return;
    /* records lie in the order of their arrival: every one is a cache miss if not asked for early */
    unsigned ahead = cursor->index + AHEAD;
    if (ahead < leaf->count) {
        __builtin_prefetch(record_at(cursor->memtable, leaf->refs[ahead]));
    } else if (leaf->next != NULL && ahead - leaf->count < leaf->next->count) {
        __builtin_prefetch(record_at(cursor->memtable, leaf->next->refs[ahead - leaf->count]));
    }
    cursor->index++;
    if (cursor->index >= leaf->count) {
        cursor_settle(cursor);
        leaf = cursor->leaf;
        if (leaf != NULL && leaf->next != NULL) {
            __builtin_prefetch(leaf->next);
            for (unsigned i = 0; i < AHEAD; i += 16)
                __builtin_prefetch(leaf->next->refs + i);
        }
    }
}

uint8_t memtable_cursor_note(const struct memtable_cursor *cursor)
{
    const struct node *leaf = cursor->leaf;
    ASSERT(leaf != NULL);
    return record_at(cursor->memtable, leaf->refs[cursor->index])->note;
}

void memtable_cursor_set_note(struct memtable_cursor *cursor, uint8_t note)
{
    const struct node *leaf = cursor->leaf;
    ASSERT(leaf != NULL);
    record_at(cursor->memtable, leaf->refs[cursor->index])->note = note;
}
