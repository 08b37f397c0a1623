#include "sim/sim_kv.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/hash.h"

/* All databases of a store are one ordered map; a key there starts with the number of its database.
 * The map is a treap (Seidel, Aragon 1996) whose nodes are counted and copied on write, so that a
 * snapshot is one reference to a root, and a transaction is a root of its own that replaces the
 * store's at commit. A node's priority is a hash of its key: the shape, and with it every order, is
 * the same in each run. */

enum {
    FRONT = 4,
    SPACE_META = 0x10000, /* below: the ranges */
    SPACE_EXPIRY,
    SPACE_COUNTS,
    KEY_MAX = 500,
    EXPIRY_FRONT = 10,
    NAME_MAX_BYTES = FRONT + EXPIRY_FRONT + KEY_MAX,
};

struct node {
    struct node *left;
    struct node *right;
    uint64_t priority;
    uint32_t references;
    uint32_t key_size;
    size_t value_size;
    uint64_t count; /* of the subtree */
    uint8_t data[]; /* key, value */
};

struct kv_read {
    struct kv *kv;
    struct kv_read *next;
    struct node *root;
    bool active;
    struct sim_cursor *cursors;
};

struct sim_cursor {
    struct kv_read *read;
    struct sim_cursor *next;
    uint16_t range;
    size_t name_size; /* 0: before the first */
    uint8_t name[NAME_MAX_BYTES];
};

struct kv_write {
    struct kv *kv;
    struct node *root;
    bool active;
    enum err failed;
};

struct kv {
    struct store *store;
    uint32_t ranges;
    bool read_only;
    struct kv_read *reads;
    struct kv_write write;
};

struct store {
    struct store *next;
    char name[SIM_KV_NAME];
    bool created;
    struct kv *open;
    struct node *root;
    uint64_t commits;
    uint64_t fail_after;
    enum err fail_with;
};

struct sim_kv_world {
    uint64_t magic; /* what open() checks before it trusts a folder name */
    struct store *stores;
};
#define WORLD_MAGIC UINT64_C(0x5d1a7e0c3b94f682)

/* ---- the map */

static struct bytes node_key(const struct node *node)
{
    return bytes_of(node->data, node->key_size);
}

static struct bytes node_value(const struct node *node)
{
    return bytes_of(node->data + node->key_size, node->value_size);
}

static uint64_t map_count(const struct node *node)
{
    return node == NULL ? 0 : node->count;
}

static void node_recount(struct node *node)
{
    node->count = 1 + map_count(node->left) + map_count(node->right);
}

static struct node *node_hold(struct node *node)
{
    if (node != NULL) node->references++;
    return node;
}

static void node_drop(struct node *node)
{
    if (node == NULL || --node->references > 0) return;
    node_drop(node->left);
    node_drop(node->right);
    free(node);
}

/* The simulator has no use for out-of-memory faults of its own tables. */
static struct node *node_alloc(size_t data_size)
{
    struct node *node = malloc(sizeof *node + data_size);
    ASSERT(node != NULL);
    return node;
}

static struct node *node_new(struct bytes key, size_t value_size)
{
    struct node *node = node_alloc(key.size + value_size);
    *node = (struct node){
        .priority = hash64(0, key),
        .references = 1,
        .key_size = (uint32_t)key.size,
        .value_size = value_size,
        .count = 1,
    };
    memcpy(node->data, key.at, key.size);
    return node;
}

/* The same node if nobody else refers to it, else a copy; takes over the reference. */
static struct node *node_own(struct node *node)
{
    if (node->references == 1) return node;
    size_t size = node->key_size + node->value_size;
    struct node *copy = node_alloc(size);
    memcpy(copy, node, sizeof *node + size);
    copy->references = 1;
    node_hold(copy->left);
    node_hold(copy->right);
    node_drop(node);
    return copy;
}

static const struct node *map_find(const struct node *node, struct bytes key)
{
    while (node != NULL) {
        int order = bytes_compare(key, node_key(node));
        if (order == 0) return node;
        node = order < 0 ? node->left : node->right;
    }
    return NULL;
}

/* The first node with a key >= `key` (> with `beyond`). */
static const struct node *map_from(const struct node *node, struct bytes key, bool beyond)
{
    const struct node *best = NULL;
    while (node != NULL) {
        int order = bytes_compare(node_key(node), key);
        if (order > 0 || (order == 0 && !beyond)) {
            best = node;
            node = node->left;
        } else {
            node = node->right;
        }
    }
    return best;
}

static const struct node *map_at(const struct node *node, uint64_t index)
{
    for (;;) {
        uint64_t left = map_count(node->left);
        if (index == left) return node;
        if (index < left) {
            node = node->left;
        } else {
            index -= left + 1;
            node = node->right;
        }
    }
}

/* Takes over `root`; keys < key go left, keys > key right, and the node of the key itself is dropped. */
static void map_split(struct node *root, struct bytes key, struct node **left, struct node **right)
{
    if (root == NULL) {
        *left = *right = NULL;
        return;
    }
    int order = bytes_compare(node_key(root), key);
    if (order == 0) {
        *left = node_hold(root->left);
        *right = node_hold(root->right);
        node_drop(root);
        return;
    }
    root = node_own(root);
    if (order < 0) {
        map_split(root->right, key, &root->right, right);
        *left = root;
    } else {
        map_split(root->left, key, left, &root->left);
        *right = root;
    }
    node_recount(root);
}

static struct node *map_join(struct node *left, struct node *right)
{
    if (left == NULL) return right;
    if (right == NULL) return left;
    struct node *root;
    if (left->priority > right->priority) {
        root = node_own(left);
        root->right = map_join(root->right, right);
    } else {
        root = node_own(right);
        root->left = map_join(left, root->left);
    }
    node_recount(root);
    return root;
}

static struct node *map_insert(struct node *root, struct node *fresh)
{
    if (root == NULL) return fresh;
    if (fresh->priority > root->priority || bytes_equal(node_key(root), node_key(fresh))) {
        map_split(root, node_key(fresh), &fresh->left, &fresh->right);
        node_recount(fresh);
        return fresh;
    }
    root = node_own(root);
    if (bytes_compare(node_key(fresh), node_key(root)) < 0) {
        root->left = map_insert(root->left, fresh);
    } else {
        root->right = map_insert(root->right, fresh);
    }
    node_recount(root);
    return root;
}

static struct node *map_remove(struct node *root, struct bytes key)
{
    struct node *left, *right;
    map_split(root, key, &left, &right);
    return map_join(left, right);
}

/* A key of the map: number of the database, then the key there. */
struct name {
    size_t size;
    uint8_t at[NAME_MAX_BYTES];
};

static struct name name_of(uint32_t space, struct bytes key)
{
    struct name name = {.size = FRONT + key.size};
    ASSERT(name.size <= sizeof name.at);
    store_u16_be(name.at, (uint16_t)(space >> 16));
    store_u16_be(name.at + 2, (uint16_t)space);
    if (key.size > 0) memcpy(name.at + FRONT, key.at, key.size);
    return name;
}

static struct bytes name_view(const struct name *name)
{
    return bytes_of(name->at, name->size);
}

static struct bytes user_key(const struct node *node)
{
    return bytes_of(node->data + FRONT, node->key_size - FRONT);
}

static uint32_t space_of(const struct node *node)
{
    return (uint32_t)load_u16_be(node->data) << 16 | load_u16_be(node->data + 2);
}

static void map_put(struct node **root, uint32_t space, struct bytes key, struct bytes value)
{
    struct name name = name_of(space, key);
    struct node *fresh = node_new(name_view(&name), value.size);
    if (value.size > 0) memcpy(fresh->data + fresh->key_size, value.at, value.size);
    *root = map_insert(*root, fresh);
}

static const struct node *map_get(const struct node *root, uint32_t space, struct bytes key)
{
    struct name name = name_of(space, key);
    return map_find(root, name_view(&name));
}

static void map_del(struct node **root, uint32_t space, struct bytes key)
{
    struct name name = name_of(space, key);
    *root = map_remove(*root, name_view(&name));
}

/* ---- reading */

static enum err sim_read_begin(struct kv *kv, struct kv_read **read_out)
{
    struct kv_read *read = calloc(1, sizeof *read);
    if (read == NULL) return ERR_NOMEM;
    read->kv = kv;
    read->root = node_hold(kv->store->root);
    read->active = true;
    read->next = kv->reads;
    kv->reads = read;
    *read_out = read;
    return OK;
}

static void sim_read_reset(struct kv_read *read)
{
    node_drop(read->root);
    read->root = NULL;
    read->active = false;
}

static enum err sim_read_renew(struct kv_read *read)
{
    sim_read_reset(read);
    read->root = node_hold(read->kv->store->root);
    read->active = true;
    return OK;
}

static void sim_cursor_close(void *ctx)
{
    struct sim_cursor *cursor = ctx;
    if (cursor == NULL) return;
    struct sim_cursor **link = &cursor->read->cursors;
    while (*link != cursor)
        link = &(*link)->next;
    *link = cursor->next;
    free(cursor);
}

static void sim_read_end(struct kv_read *read)
{
    if (read == NULL) return;
    while (read->cursors != NULL)
        sim_cursor_close(read->cursors);
    sim_read_reset(read);
    struct kv_read **link = &read->kv->reads;
    while (*link != read)
        link = &(*link)->next;
    *link = read->next;
    free(read);
}

static enum err sim_get(
    struct kv_read *read, uint16_t range, struct bytes key, struct value *value_out)
{
    ASSERT(read->active);
    ASSERT(range < read->kv->ranges);
    if (key.size > KEY_MAX) return ERR_NOT_FOUND;
    const struct node *node = map_get(read->root, range, key);
    if (node == NULL) return ERR_NOT_FOUND;
    return kv_value_decode(range, key, node_value(node), value_out);
}

/* Name of a count: u16 range, u16 bucket. */
static uint64_t count_of(const struct node *root, const uint8_t name[4])
{
    const struct node *node = map_get(root, SPACE_COUNTS, bytes_of(name, 4));
    return node == NULL ? 0 : load_u64(node_value(node).at);
}

static enum err sim_count(
    struct kv_read *read, uint16_t range, uint16_t bucket, uint64_t *count_out)
{
    ASSERT(read->active);
    uint8_t name[4];
    store_u16_be(name, range);
    store_u16_be(name + 2, bucket);
    *count_out = count_of(read->root, name);
    return OK;
}

static enum err sim_counts(struct kv_read *read, uint16_t range,
    void (*each)(void *ctx, uint16_t bucket, uint64_t count), void *ctx)
{
    ASSERT(read->active);
    uint8_t front[2];
    store_u16_be(front, range);
    struct name name = name_of(SPACE_COUNTS, bytes_of(front, sizeof front));
    const struct node *node = map_from(read->root, name_view(&name), false);
    while (node != NULL && bytes_have_prefix(node_key(node), name_view(&name))) {
        each(ctx, load_u16_be(user_key(node).at + 2), load_u64(node_value(node).at));
        node = map_from(read->root, node_key(node), true);
    }
    return OK;
}

static enum err sim_meta_get(struct kv_read *read, const char *name, struct bytes *value_out)
{
    ASSERT(read->active);
    const struct node *node = map_get(read->root, SPACE_META, bytes_of_text(name));
    if (node == NULL) return ERR_NOT_FOUND;
    *value_out = node_value(node);
    return OK;
}

static enum err sim_cursor_open(struct kv_read *read, uint16_t range, void **cursor_out)
{
    ASSERT(read->active);
    ASSERT(range < read->kv->ranges);
    struct sim_cursor *cursor = calloc(1, sizeof *cursor);
    if (cursor == NULL) return ERR_NOMEM;
    cursor->read = read;
    cursor->range = range;
    cursor->next = read->cursors;
    read->cursors = cursor;
    *cursor_out = cursor;
    return OK;
}

static enum err cursor_stand(struct sim_cursor *cursor, const struct node *node,
    struct bytes *key_out, struct value *value_out)
{
    if (node == NULL || space_of(node) != cursor->range) return ERR_NOT_FOUND;
    cursor->name_size = node->key_size;
    memcpy(cursor->name, node->data, node->key_size);
    *key_out = user_key(node);
    return kv_value_decode(cursor->range, *key_out, node_value(node), value_out);
}

static enum err sim_cursor_seek(
    void *ctx, struct bytes from, struct bytes *key_out, struct value *value_out)
{
    struct sim_cursor *cursor = ctx;
    ASSERT(cursor->read->active);
    struct name name = name_of(cursor->range, from);
    const struct node *node = map_from(cursor->read->root, name_view(&name), false);
    return cursor_stand(cursor, node, key_out, value_out);
}

static enum err sim_cursor_next(void *ctx, struct bytes *key_out, struct value *value_out)
{
    struct sim_cursor *cursor = ctx;
    ASSERT(cursor->read->active);
    if (cursor->name_size == 0) return sim_cursor_seek(ctx, bytes_of("", 0), key_out, value_out);
    struct bytes name = bytes_of(cursor->name, cursor->name_size);
    return cursor_stand(cursor, map_from(cursor->read->root, name, true), key_out, value_out);
}

static enum err sim_expired(struct kv_read *read, int64_t from, int64_t until,
    bool (*each)(void *ctx, uint16_t range, struct bytes key, int64_t expires_ms), void *ctx)
{
    ASSERT(read->active);
    uint8_t start[8];
    store_u64_be(start, from > 1 ? (uint64_t)from : 1);
    struct name name = name_of(SPACE_EXPIRY, bytes_of(start, sizeof start));
    const struct node *node = map_from(read->root, name_view(&name), false);
    while (node != NULL && space_of(node) == SPACE_EXPIRY) {
        struct bytes entry = user_key(node);
        int64_t expires_ms = (int64_t)load_u64_be(entry.at);
        struct bytes key = bytes_of(entry.at + EXPIRY_FRONT, entry.size - EXPIRY_FRONT);
        if (expires_ms > until || !each(ctx, load_u16_be(entry.at + 8), key, expires_ms)) break;
        node = map_from(read->root, node_key(node), true);
    }
    return OK;
}

/* ---- writing */

static void write_end(struct kv_write *write)
{
    node_drop(write->root);
    write->root = NULL;
    write->active = false;
}

static enum err sim_write_begin(struct kv *kv, struct kv_write **write_out)
{
    ASSERT(!kv->read_only);
    ASSERT(!kv->write.active);
    kv->write = (struct kv_write){.kv = kv, .root = node_hold(kv->store->root), .active = true};
    *write_out = &kv->write;
    return OK;
}

static void count_change(struct kv_write *write, uint16_t range, struct bytes key, int64_t by)
{
    if (key.size < 2) return;
    uint8_t name[4], stored[8];
    store_u16_be(name, range);
    memcpy(name + 2, key.at, 2);
    uint64_t count = count_of(write->root, name) + (uint64_t)by;
    store_u64(stored, count);
    if (count > 0) {
        map_put(&write->root, SPACE_COUNTS, bytes_of(name, 4), bytes_of(stored, sizeof stored));
    } else {
        map_del(&write->root, SPACE_COUNTS, bytes_of(name, 4));
    }
}

static void expiry_change(
    struct kv_write *write, uint16_t range, struct bytes key, int64_t expires_ms, bool add)
{
    if (expires_ms <= 0) return;
    uint8_t entry[EXPIRY_FRONT + KEY_MAX];
    store_u64_be(entry, (uint64_t)expires_ms);
    store_u16_be(entry + 8, range);
    memcpy(entry + EXPIRY_FRONT, key.at, key.size);
    struct bytes view = bytes_of(entry, EXPIRY_FRONT + key.size);
    if (add) {
        map_put(&write->root, SPACE_EXPIRY, view, bytes_of("", 0));
    } else {
        map_del(&write->root, SPACE_EXPIRY, view);
    }
}

static enum err sim_put(
    struct kv_write *write, uint16_t range, struct bytes key, const struct value *value)
{
    if (!write->active) return write->failed;
    ASSERT(range < write->kv->ranges);
    ASSERT(key.size > 0);
    if (key.size > KEY_MAX) {
        write_end(write);
        return write->failed = ERR_TOO_LARGE;
    }
    const struct node *old = map_get(write->root, range, key);
    int64_t old_ms = old == NULL ? 0 : kv_value_expires(node_value(old));
    if (old == NULL) count_change(write, range, key, 1);
    if (!(PLANTED_BUG(10) && value->expires_ms != 0))
        expiry_change(write, range, key, old_ms, false);
    expiry_change(write, range, key, value->expires_ms, true);
    struct name name = name_of(range, key);
    struct node *fresh = node_new(name_view(&name), kv_value_size(value));
    kv_value_encode(fresh->data + fresh->key_size, range, key, value);
    write->root = map_insert(write->root, fresh);
    return OK;
}

static void remove_node(struct kv_write *write, uint16_t range, const struct node *node)
{
    struct name name = {.size = node->key_size};
    memcpy(name.at, node->data, node->key_size);
    struct bytes key = bytes_of(name.at + FRONT, name.size - FRONT);
    expiry_change(write, range, key, kv_value_expires(node_value(node)), false);
    count_change(write, range, key, -1);
    write->root = map_remove(write->root, name_view(&name));
}

static enum err sim_del(struct kv_write *write, uint16_t range, struct bytes key)
{
    if (!write->active) return write->failed;
    ASSERT(range < write->kv->ranges);
    if (key.size > KEY_MAX) return OK;
    const struct node *node = map_get(write->root, range, key);
    if (node != NULL) remove_node(write, range, node);
    return OK;
}

static enum err sim_clear(
    struct kv_write *write, uint16_t range, uint16_t bucket, uint32_t limit, bool *done_out)
{
    if (!write->active) return write->failed;
    ASSERT(range < write->kv->ranges);
    uint8_t prefix[2];
    store_u16_be(prefix, bucket);
    struct name name = name_of(range, bytes_of(prefix, sizeof prefix));
    for (uint32_t removed = 0;; removed++) {
        const struct node *node = map_from(write->root, name_view(&name), false);
        *done_out = node == NULL || !bytes_have_prefix(node_key(node), name_view(&name));
        if (*done_out || removed == limit) return OK;
        remove_node(write, range, node);
    }
}

static enum err sim_range_reset(
    struct kv_write *write, uint16_t range, uint32_t limit, bool *done_out)
{
    if (!write->active) return write->failed;
    ASSERT(range < write->kv->ranges);
    struct name name = name_of(range, bytes_of("", 0));
    for (uint32_t removed = 0;; removed++) {
        const struct node *node = map_from(write->root, name_view(&name), false);
        *done_out = node == NULL || space_of(node) != range;
        if (*done_out || removed == limit) return OK;
        remove_node(write, range, node);
    }
}

static enum err sim_meta_put(struct kv_write *write, const char *name, struct bytes value)
{
    if (!write->active) return write->failed;
    map_put(&write->root, SPACE_META, bytes_of_text(name), value);
    return OK;
}

static enum err sim_commit(struct kv_write *write)
{
    if (!write->active) return write->failed;
    struct store *store = write->kv->store;
    if (store->fail_after > 0 && --store->fail_after == 0) {
        write_end(write);
        return write->failed = store->fail_with;
    }
    node_drop(store->root);
    store->root = node_hold(write->root);
    store->commits++;
    write_end(write);
    return OK;
}

static void sim_abort(struct kv_write *write)
{
    if (write != NULL && write->active) write_end(write);
}

/* ---- worlds and stores */

static struct store *store_find(struct sim_kv_world *world, const char *name)
{
    ASSERT(world->magic == WORLD_MAGIC);
    for (struct store *store = world->stores; store != NULL; store = store->next) {
        if (strcmp(store->name, name) == 0) return store;
    }
    ASSERT(strlen(name) < SIM_KV_NAME && strchr(name, ':') == NULL);
    struct store *store = calloc(1, sizeof *store);
    ASSERT(store != NULL);
    memcpy(store->name, name, strlen(name));
    store->next = world->stores;
    world->stores = store;
    return store;
}

static enum err sim_open(const struct kv_config *config, struct kv **kv_out)
{
    uintptr_t address = 0;
    int name_at = 0;
    if (sscanf(config->folder, "sim:%" SCNxPTR ":%n", &address, &name_at) != 1 || name_at == 0)
        return ERR_INVALID;
    struct sim_kv_world *world = (struct sim_kv_world *)address;
    struct store *store = store_find(world, config->folder + name_at);
    if (store->open != NULL) return ERR_BUSY;
    if (!store->created && (!config->create || config->read_only)) return ERR_NOT_FOUND;
    struct kv *kv = calloc(1, sizeof *kv);
    if (kv == NULL) return ERR_NOMEM;
    kv->store = store;
    kv->ranges = config->ranges;
    kv->read_only = config->read_only;
    store->open = kv;
    store->created = true;
    *kv_out = kv;
    return OK;
}

static void sim_close(struct kv *kv)
{
    if (kv == NULL) return;
    ASSERT(!kv->write.active);
    ASSERT(kv->reads == NULL);
    kv->store->open = NULL;
    free(kv);
}

static void sim_stats(struct kv *kv, struct kv_stats *stats_out)
{
    *stats_out = (struct kv_stats){0};
    for (const struct kv_read *read = kv->reads; read != NULL; read = read->next)
        stats_out->readers++;
    const struct node *root = kv->store->root;
    const struct node *node = root == NULL ? NULL : map_at(root, 0);
    for (; node != NULL; node = map_from(root, node_key(node), true)) {
        stats_out->used_bytes += node->key_size + node->value_size;
        if (space_of(node) < SPACE_META) stats_out->entries++;
    }
    stats_out->file_bytes = stats_out->used_bytes;
    stats_out->map_bytes = stats_out->used_bytes;
    stats_out->depth = 1;
}

struct sim_kv_world *sim_kv_world_new(void)
{
    struct sim_kv_world *world = calloc(1, sizeof *world);
    if (world != NULL) world->magic = WORLD_MAGIC;
    return world;
}

void sim_kv_folder(struct sim_kv_world *world, const char *name, char folder_out[SIM_KV_FOLDER])
{
    ASSERT(strlen(name) < SIM_KV_NAME && strchr(name, ':') == NULL);
    snprintf(folder_out, SIM_KV_FOLDER, "sim:0x%" PRIxPTR ":%s", (uintptr_t)world, name);
}

static void store_crash(struct store *store)
{
    struct kv *kv = store->open;
    if (kv == NULL) return;
    if (kv->write.active) write_end(&kv->write);
    while (kv->reads != NULL)
        sim_read_end(kv->reads);
    sim_close(kv);
}

void sim_kv_crash(struct sim_kv_world *world, const char *name)
{
    store_crash(store_find(world, name));
}

void sim_kv_wipe(struct sim_kv_world *world, const char *name)
{
    struct store *store = store_find(world, name);
    ASSERT(store->open == NULL);
    node_drop(store->root);
    store->root = NULL;
    store->created = false;
}

void sim_kv_world_free(struct sim_kv_world *world)
{
    if (world == NULL) return;
    while (world->stores != NULL) {
        struct store *store = world->stores;
        world->stores = store->next;
        store_crash(store);
        node_drop(store->root);
        free(store);
    }
    free(world);
}

void sim_kv_fail_commit(struct sim_kv_world *world, const char *name, uint64_t after, enum err err)
{
    struct store *store = store_find(world, name);
    store->fail_after = after;
    store->fail_with = err;
}

/* The damage is on the disk: snapshots that share the node see it too. */
static void node_rot(const struct node *node, uint64_t bit)
{
    uint8_t *value = (uint8_t *)(uintptr_t)node_value(node).at;
    bit %= node->value_size * 8;
    value[bit / 8] ^= (uint8_t)(1u << (bit % 8));
}

enum err sim_kv_rot(
    struct sim_kv_world *world, const char *name, uint16_t range, struct bytes key, uint64_t bit)
{
    const struct node *node = map_get(store_find(world, name)->root, range, key);
    if (node == NULL) return ERR_NOT_FOUND;
    node_rot(node, bit);
    return OK;
}

enum err sim_kv_rot_any(struct sim_kv_world *world, const char *name, struct prng *prng,
    uint16_t *range_out, struct bytes *key_out)
{
    const struct node *root = store_find(world, name)->root;
    struct name end = name_of(SPACE_META, bytes_of("", 0));
    uint64_t values = 0;
    /* values come before everything else; count them by their place */
    for (const struct node *node = root; node != NULL;) {
        if (bytes_compare(node_key(node), name_view(&end)) < 0) {
            values += map_count(node->left) + 1;
            node = node->right;
        } else {
            node = node->left;
        }
    }
    if (values == 0) return ERR_NOT_FOUND;
    const struct node *node = map_at(root, prng_below(prng, values));
    node_rot(node, prng_next(prng));
    *range_out = (uint16_t)space_of(node);
    *key_out = user_key(node);
    return OK;
}

uint64_t sim_kv_commits(struct sim_kv_world *world, const char *name)
{
    return store_find(world, name)->commits;
}

const struct kv_ops sim_kv = {
    .name = "sim",
    .open = sim_open,
    .close = sim_close,
    .read_begin = sim_read_begin,
    .read_reset = sim_read_reset,
    .read_renew = sim_read_renew,
    .read_end = sim_read_end,
    .get = sim_get,
    .count = sim_count,
    .counts = sim_counts,
    .meta_get = sim_meta_get,
    .cursor_open = sim_cursor_open,
    .cursor_seek = sim_cursor_seek,
    .cursor_next = sim_cursor_next,
    .cursor_close = sim_cursor_close,
    .expired = sim_expired,
    .write_begin = sim_write_begin,
    .put = sim_put,
    .del = sim_del,
    .clear = sim_clear,
    .range_reset = sim_range_reset,
    .meta_put = sim_meta_put,
    .commit = sim_commit,
    .abort = sim_abort,
    .stats = sim_stats,
};
