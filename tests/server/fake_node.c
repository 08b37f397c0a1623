#include "tests/server/fake_node.h"

#include <stdlib.h>

#include "base/check.h"
#include "cluster/map/map.h"

struct node *fake_node_new(void)
{
    struct node *node = calloc(1, sizeof *node);
    node->alone = true;
    node->next_ticket = 1;
    for (int i = 0; i <= FAKE_RANGES; i++) {
        node->serves[i] = node->has[i] = true;
        node->terms[i] = 1;
    }
    return node;
}

void fake_node_free(struct node *node)
{
    while (node->bytes != NULL) {
        struct fake_bytes *next = node->bytes->next;
        free(node->bytes);
        node->bytes = next;
    }
    free(node);
}

/* values borrow until the turn ends: here, for ever */
static uint8_t *new_bytes(struct node *node, size_t size)
{
    struct fake_bytes *bytes = malloc(sizeof *bytes + size + 1);
    ASSERT(bytes != NULL);
    bytes->next = node->bytes;
    node->bytes = bytes;
    return bytes->at;
}

/* ---- who serves what ---- */

bool node_alone(const struct node *node)
{
    return node->alone;
}

bool node_serves(const struct node *node, uint16_t range)
{
    return node->serves[range];
}

bool node_has(const struct node *node, uint16_t range)
{
    return node->has[range];
}

uint16_t node_range_of(const struct node *node, struct bytes key)
{
    (void)node;
    return map_range(key, FAKE_RANGES);
}

static ticket_t new_ticket(struct node *node)
{
    ASSERT(node->next_ticket < FAKE_TICKETS);
    node->tickets[node->next_ticket] = node->hold_tickets ? TICKET_WAITING : TICKET_DONE;
    return node->next_ticket++;
}

enum ticket_state node_ticket(const struct node *node, ticket_t ticket)
{
    ASSERT(ticket > 0 && ticket < node->next_ticket);
    return node->tickets[ticket];
}

ticket_t node_read_ticket(struct node *node, uint16_t range, enum node_view view)
{
    (void)range;
    (void)view;
    node->read_tickets++;
    return node->alone ? 0 : new_ticket(node);
}

ticket_t node_pending_ticket(struct node *node)
{
    ASSERT(node->alone);
    ticket_t last = node->next_ticket - 1;
    return last > 0 && node->tickets[last] == TICKET_WAITING ? last : 0;
}

/* ---- requests: kept until the test answers them ---- */

enum err node_request_start(
    struct node *node, struct node_request *request, uint16_t range, struct bytes body)
{
    ASSERT(node->request_count < FAKE_REQUESTS);
    request->range = range;
    request->body = (struct buffer){0};
    if (buffer_append(&request->body, body.at, body.size) != OK) return ERR_NOMEM;
    node->requests[node->request_count++] = request;
    node->started++;
    return OK;
}

void node_request_cancel(struct node *node, struct node_request *request)
{
    for (uint32_t i = 0; i < node->request_count; i++) {
        if (node->requests[i] != request) continue;
        memmove(&node->requests[i], &node->requests[i + 1],
            (node->request_count - i - 1) * sizeof node->requests[0]);
        node->request_count--;
        buffer_deinit(&request->body);
        return;
    }
    UNREACHABLE();
}

enum err node_admin_start(struct node *node, struct node_request *request, enum node_admin what,
    const char *name, uint16_t range)
{
    (void)what;
    return node_request_start(node, request, range, bytes_of_text(name));
}

/* ---- keys ---- */

static struct fake_key *find(struct node *node, uint16_t bucket, struct bytes key)
{
    for (int i = 0; i < FAKE_KEYS; i++) {
        struct fake_key *at = &node->keys[i];
        if (at->used && at->bucket == bucket && bytes_equal(bytes_of(at->key, at->key_size), key))
            return at;
    }
    return NULL;
}

enum err node_get(struct node *node, enum node_view view, uint16_t bucket, struct bytes key,
    struct value *value_out)
{
    (void)view;
    const struct fake_key *at = find(node, bucket, key);
    if (at == NULL) return ERR_NOT_FOUND;
    *value_out = (struct value){.bytes = bytes_of(at->value, at->value_size),
        .version = at->version,
        .expires_ms = at->expires_ms};
    return OK;
}

enum err node_admit(struct node *node, size_t size)
{
    (void)size;
    return node->admits;
}

void node_txn_begin(struct node *node)
{
    ASSERT(node->before == NULL);
    node->before = malloc(sizeof node->keys);
    ASSERT(node->before != NULL);
    memcpy(node->before, node->keys, sizeof node->keys);
    node->wrote = false;
}

uint8_t *node_put(
    struct node *node, uint16_t bucket, struct bytes key, size_t value_size, int64_t expires_ms)
{
    ASSERT(node->before != NULL && key.size <= sizeof node->keys[0].key);
    struct fake_key *at = find(node, bucket, key);
    for (int i = 0; at == NULL; i++) {
        ASSERT(i < FAKE_KEYS);
        if (!node->keys[i].used) at = &node->keys[i];
    }
    *at = (struct fake_key){.used = true,
        .range = map_range(key, FAKE_RANGES),
        .bucket = bucket,
        .key_size = key.size,
        .value = new_bytes(node, value_size),
        .value_size = value_size,
        .expires_ms = expires_ms,
        .version = ++node->version};
    if (key.size > 0) memcpy(at->key, key.at, key.size);
    node->wrote = true;
    return at->value;
}

bool node_delete(struct node *node, uint16_t bucket, struct bytes key)
{
    struct fake_key *at = find(node, bucket, key);
    if (at != NULL) *at = (struct fake_key){0};
    node->wrote = true;
    return true;
}

bool node_clear(struct node *node, uint16_t bucket, uint16_t range)
{
    for (int i = 0; i < FAKE_KEYS; i++) {
        struct fake_key *at = &node->keys[i];
        if (at->used && at->bucket == bucket && (range == 0xffff || at->range == range))
            *at = (struct fake_key){0};
    }
    node->wrote = true;
    return true;
}

ticket_t node_txn_commit(struct node *node)
{
    ASSERT(node->before != NULL);
    free(node->before);
    node->before = NULL;
    if (!node->wrote) return 0;
    node->writes++;
    return new_ticket(node);
}

void node_txn_abort(struct node *node)
{
    ASSERT(node->before != NULL);
    memcpy(node->keys, node->before, sizeof node->keys);
    free(node->before);
    node->before = NULL;
}

enum err node_walk(struct node *node, enum node_view view, uint16_t bucket,
    struct node_position *position, uint64_t limit, bool *done_out,
    bool (*each)(void *ctx, struct bytes key, const struct value *value), void *ctx)
{
    (void)view;
    ASSERT(position->only_range != 0);
    struct bytes after = bytes_of(position->key, position->key_size);
    bool resume = position->range != 0;
    for (;;) {
        const struct fake_key *least = NULL;
        for (int i = 0; i < FAKE_KEYS; i++) {
            const struct fake_key *at = &node->keys[i];
            struct bytes key = bytes_of(at->key, at->key_size);
            if (!at->used || at->bucket != bucket || at->range != position->only_range) continue;
            if (resume && bytes_compare(key, after) <= 0) continue;
            if (least == NULL || bytes_compare(key, bytes_of(least->key, least->key_size)) < 0)
                least = at;
        }
        *done_out = least == NULL;
        if (least == NULL || limit-- == 0) return OK;
        resume = true;
        position->range = position->only_range;
        position->key_size = (uint16_t)least->key_size;
        memcpy(position->key, least->key, least->key_size);
        after = bytes_of(position->key, position->key_size);
        struct value value = {.bytes = bytes_of(least->value, least->value_size)};
        if (!each(ctx, after, &value)) return OK;
    }
}

enum err node_page(struct node *node, uint16_t only_range, uint16_t bucket, struct bytes prefix,
    struct bytes after, uint64_t limit, bool *more_out,
    bool (*each)(void *ctx, struct bytes key, const struct value *value), void *ctx)
{
    (void)node, (void)only_range, (void)bucket, (void)prefix, (void)after, (void)limit;
    (void)each, (void)ctx;
    *more_out = false;
    return OK;
}

uint64_t node_count(struct node *node, enum node_view view, uint16_t only_range, uint16_t bucket)
{
    uint64_t count = 0;
    (void)view;
    for (int i = 0; i < FAKE_KEYS; i++) {
        const struct fake_key *at = &node->keys[i];
        count += at->used && at->bucket == bucket && (only_range == 0 || at->range == only_range);
    }
    return count;
}

/* ---- buckets ---- */

enum err node_bucket_find(struct node *node, struct bytes name, uint16_t *bucket_out)
{
    if (node->bucket[0] == '\0' || !bytes_equal(bytes_of_text(node->bucket), name))
        return ERR_NOT_FOUND;
    *bucket_out = NODE_BUCKETS_NUMBERED;
    return OK;
}

enum err node_bucket_make(struct node *node, struct bytes name, uint16_t *bucket_out)
{
    if (node->bucket[0] != '\0') return node_bucket_find(node, name, bucket_out);
    memcpy(node->bucket, name.at, name.size);
    node->wrote = true;
    *bucket_out = NODE_BUCKETS_NUMBERED;
    return OK;
}

const char *node_bucket_name(const struct node *node, uint16_t bucket)
{
    if (bucket < NODE_BUCKETS_NUMBERED) return "0";
    return bucket == NODE_BUCKETS_NUMBERED && node->bucket[0] != '\0' ? node->bucket : NULL;
}

uint32_t node_bucket_count(const struct node *node)
{
    return NODE_BUCKETS_NUMBERED + (node->bucket[0] != '\0');
}

/* ---- the rest ---- */

int64_t node_now_ms(const struct node *node)
{
    (void)node;
    return 1000;
}

uint32_t node_ranges(const struct node *node)
{
    (void)node;
    return FAKE_RANGES;
}

void node_range_status(const struct node *node, uint16_t range, struct node_range *out)
{
    *out = (struct node_range){.id = range, .term = node->terms[range], .catching_up = 1};
    for (uint16_t i = 0; i < 3; i++)
        out->replicas[i] = (struct node_replica){.number = (uint16_t)(i + 1), .voter = true};
    out->replica_count = 3;
}

uint16_t node_range_leader(const struct node *node, uint16_t range)
{
    (void)node, (void)range;
    return 0;
}

uint32_t node_members(const struct node *node, struct node_member *out, uint32_t max)
{
    (void)node, (void)out, (void)max;
    return 0;
}

const char *node_member_name(const struct node *node, uint16_t number)
{
    (void)node, (void)number;
    return NULL;
}

void node_cluster_stats(const struct node *node, struct node_cluster_stats *out)
{
    (void)node;
    *out = (struct node_cluster_stats){0};
}

struct engine *node_engine(struct node *node)
{
    (void)node;
    return NULL;
}

const char *node_name(const struct node *node)
{
    (void)node;
    return "fake";
}

const char *node_cluster_id(const struct node *node)
{
    (void)node;
    return "00000000000000000000000000000000";
}

uint64_t node_expired_count(const struct node *node)
{
    (void)node;
    return 0;
}

enum err node_open(
    const struct node_config *config, struct engine_report *report, struct node **node_out)
{
    (void)config, (void)report, (void)node_out;
    return ERR_UNSUPPORTED;
}

void node_close(struct node *node, bool checkpoint)
{
    (void)node, (void)checkpoint;
}

void node_turn_begin(struct node *node)
{
    (void)node;
}

void node_turn_end(struct node *node, bool alone)
{
    (void)node, (void)alone;
}

enum err node_poll(struct node *node)
{
    (void)node;
    return OK;
}

void node_tick(struct node *node)
{
    (void)node;
}

void node_idle(struct node *node)
{
    (void)node;
}

bool node_hand_over(struct node *node)
{
    (void)node;
    return true;
}
