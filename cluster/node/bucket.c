#include "cluster/node/node_internal.h"

/* Buckets: numbered ones exist always, names are keys of range 0. */

static const char bucket_prefix[] = "bucket/";

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

bool bucket_load(void *ctx, struct bytes key, const struct value *value)
{
    struct node *node = ctx;
    struct bytes user_key = bytes_of(key.at + 2, key.size - 2);
    if (load_u16_be(key.at) != META_BUCKET) return true;
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
        .range = META_RANGE,
        .bucket = META_BUCKET,
        .key = bytes_of(key, prefix + name.size),
    };
    uint8_t *value = txn_add_effect(node, &effect, 2);
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
