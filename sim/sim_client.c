#include "sim/sim_client.h"

#include <stdarg.h>
#include <stdio.h>

#include "base/buffer.h"
#include "base/hash.h"

void sim_violation(struct sim_client *client, const char *format, ...)
{
    if (client->violated) return;
    client->violated = true;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(client->detail, client->detail_size, format, arguments);
    va_end(arguments);
}

void sim_trace(struct sim_client *client, uint64_t event, uint64_t detail)
{
    uint64_t words[2] = {event, detail};
    client->hash = hash64(client->hash, bytes_of(words, sizeof words));
}

static bool live(const struct node *node, const struct model_value *value)
{
    return value->present && (value->expires_ms == 0 || value->expires_ms > node_now_ms(node));
}

static uint32_t draw_size(struct prng *prng)
{
    switch (prng_below(prng, 12)) {
    case 0:
        return 0;
    case 1:
        return (uint32_t)prng_below(prng, 12000);
    case 2:
        return (uint32_t)prng_below(prng, 3000);
    default:
        return (uint32_t)prng_below(prng, 200);
    }
}

/* ---- reading ---- */

static void compare(struct sim_client *client, struct node *node, const char *where, int bucket,
    uint8_t key, enum err err, const struct value *value, const struct model_value *expected)
{
    if (err == ERR_CORRUPT && client->damage_expected) {
        client->counts->damage++;
        return;
    }
    if (!live(node, expected)) {
        if (err != ERR_NOT_FOUND)
            sim_violation(client, "%s: key %u of bucket %d should be absent but is %s", where, key,
                bucket, err_name(err));
        return;
    }
    if (err != OK) {
        sim_violation(client, "%s: key %u of bucket %d (transaction %llu) is %s", where, key,
            bucket, (unsigned long long)expected->version, err_name(err));
    } else if (!model_matches(expected, value->bytes)) {
        sim_violation(client,
            "%s: key %u of bucket %d has a wrong value (version %llu, not that of transaction "
            "%llu)",
            where, key, bucket, (unsigned long long)value->version,
            (unsigned long long)expected->version);
    } else if (value->expires_ms != expected->expires_ms) {
        sim_violation(client, "%s: key %u of bucket %d has another expiry", where, key, bucket);
    }
}

static void check_key(
    struct sim_client *client, struct node *node, enum node_view view, int bucket, uint8_t key)
{
    uint8_t buffer[KEY_SIZE_MAX];
    struct value value;
    enum err err = node_get(node, view, client->buckets[bucket], model_key(key, buffer), &value);
    const struct model_value *expected = view == NODE_PENDING
        ? &client->model.pending[bucket][key]
        : &client->model.committed[bucket][key];
    compare(client, node, view == NODE_PENDING ? "pending read" : "committed read", bucket, key,
        err, &value, expected);
    client->counts->reads++;
}

void sim_client_read(struct sim_client *client, struct node *node)
{
    for (int i = 0; i < 4; i++) {
        int bucket = (int)prng_below(&client->prng, MODEL_BUCKETS);
        uint8_t key = (uint8_t)prng_below(&client->prng, MODEL_KEYS);
        check_key(client, node, NODE_COMMITTED, bucket, key);
        check_key(client, node, NODE_PENDING, bucket, key);
    }
}

static void check_count(struct sim_client *client, struct node *node, int bucket)
{
    uint64_t least = 0, most = 0;
    for (int key = 0; key < MODEL_KEYS; key++) {
        const struct model_value *value = &client->model.committed[bucket][key];
        least += live(node, value) ? 1 : 0;
        most += value->present ? 1 : 0;
    }
    uint64_t count = node_count(node, NODE_COMMITTED, 0, client->buckets[bucket]);
    if (count < least || count > most)
        sim_violation(client, "count of bucket %d is %llu, not within %llu..%llu", bucket,
            (unsigned long long)count, (unsigned long long)least, (unsigned long long)most);
}

/* The same for what readers do not see: keys that have expired and are not removed yet. */
static bool agrees_below(const struct sim_client *client, struct node *node)
{
    uint8_t stored[KEY_SIZE_MAX_STORED], buffer[KEY_SIZE_MAX];
    for (int bucket = 0; bucket < MODEL_BUCKETS; bucket++) {
        for (uint8_t i = 0; i < MODEL_KEYS; i++) {
            const struct model_value *expected = &client->model.committed[bucket][i];
            struct bytes key = model_key(i, buffer);
            struct value value;
            enum err err = engine_get(node_engine(node), node_range_of(node, key),
                effect_stored_key(stored, client->buckets[bucket], key), &value);
            if (err == OK && (!expected->present || !model_matches(expected, value.bytes)))
                return false;
        }
    }
    return true;
}

bool sim_client_agrees(struct sim_client *client, struct node *node)
{
    struct sim_client quiet = *client;
    struct sim_counts counts = {0};
    char detail[8];
    quiet.counts = &counts;
    quiet.detail = detail;
    quiet.detail_size = sizeof detail;
    for (int bucket = 0; bucket < MODEL_BUCKETS; bucket++) {
        for (uint8_t key = 0; key < MODEL_KEYS; key++)
            check_key(&quiet, node, NODE_COMMITTED, bucket, key);
        if (!client->damage_expected) check_count(&quiet, node, bucket);
    }
    return !quiet.violated && agrees_below(client, node);
}

struct visit {
    struct sim_client *client;
    struct node *node;
    int bucket;
    const char *where;
    bool seen[MODEL_KEYS];
    bool ordered;
    struct buffer last;
    const struct model_value *expected;
};

static int key_number(struct bytes key)
{
    uint8_t buffer[KEY_SIZE_MAX];
    for (uint8_t i = 0; i < MODEL_KEYS; i++) {
        if (bytes_equal(model_key(i, buffer), key)) return i;
    }
    return -1;
}

static bool visit_key(void *ctx, struct bytes key, const struct value *value)
{
    struct visit *visit = ctx;
    int number = key_number(key);
    if (number < 0) {
        sim_violation(visit->client, "%s: a key nobody wrote", visit->where);
        return true;
    }
    if (visit->seen[number])
        sim_violation(visit->client, "%s: key %d came twice", visit->where, number);
    if (visit->ordered && bytes_compare(buffer_view(&visit->last), key) >= 0 &&
        visit->last.size > 0)
        sim_violation(visit->client, "%s: keys are out of order", visit->where);
    visit->seen[number] = true;
    buffer_reset(&visit->last, SIZE_MAX);
    if (buffer_append(&visit->last, key.at, key.size) != OK) return false;
    compare(visit->client, visit->node, visit->where, visit->bucket, (uint8_t)number, OK, value,
        &visit->expected[number]);
    return true;
}

static void visit_end(struct visit *visit)
{
    for (int key = 0; key < MODEL_KEYS; key++) {
        if (live(visit->node, &visit->expected[key]) && !visit->seen[key] &&
            !visit->client->damage_expected)
            sim_violation(visit->client, "%s: key %d of bucket %d did not come", visit->where, key,
                visit->bucket);
    }
    buffer_deinit(&visit->last);
}

static void check_walk(
    struct sim_client *client, struct node *node, enum node_view view, int bucket)
{
    struct visit visit = {.client = client,
        .node = node,
        .bucket = bucket,
        .where = "walk",
        .expected =
            view == NODE_PENDING ? client->model.pending[bucket] : client->model.committed[bucket]};
    struct node_position position = {0};
    bool done = false;
    for (int pages = 0; !done && pages < 1000; pages++) {
        uint64_t limit = 1 + prng_below(&client->prng, 20);
        enum err err = node_walk(
            node, view, client->buckets[bucket], &position, limit, &done, visit_key, &visit);
        if (err != OK && !(err == ERR_CORRUPT && client->damage_expected))
            sim_violation(client, "walk: %s", err_name(err));
    }
    if (!done) sim_violation(client, "walk: does not end");
    visit_end(&visit);
}

static void check_pages(struct sim_client *client, struct node *node, int bucket)
{
    struct visit visit = {.client = client,
        .node = node,
        .bucket = bucket,
        .where = "page",
        .ordered = true,
        .expected = client->model.committed[bucket]};
    struct buffer after = {0};
    bool more = true;
    for (int pages = 0; more && pages < 1000; pages++) {
        uint64_t limit = 1 + prng_below(&client->prng, 20);
        enum err err = node_page(node, 0, client->buckets[bucket], bytes_of_text("key:"),
            buffer_view(&after), limit, &more, visit_key, &visit);
        if (err != OK && !(err == ERR_CORRUPT && client->damage_expected))
            sim_violation(client, "page: %s", err_name(err));
        buffer_reset(&after, SIZE_MAX);
        if (buffer_append(&after, visit.last.at, visit.last.size) != OK) break;
    }
    if (more) sim_violation(client, "pages: they do not end");
    buffer_deinit(&after);
    visit_end(&visit);
}

void sim_client_check_all(struct sim_client *client, struct node *node)
{
    for (int bucket = 0; bucket < MODEL_BUCKETS; bucket++) {
        for (uint8_t key = 0; key < MODEL_KEYS; key++)
            check_key(client, node, NODE_COMMITTED, bucket, key);
        check_walk(client, node, NODE_COMMITTED, bucket);
        check_walk(client, node, NODE_PENDING, bucket);
        check_pages(client, node, bucket);
        if (!client->damage_expected) check_count(client, node, bucket);
    }
}

/* ---- writing ---- */

static struct model_effect *new_effect(
    struct model_transaction *transaction, enum model_kind kind, int bucket, uint8_t key)
{
    struct model_effect *effect = &transaction->effects[transaction->count++];
    *effect = (struct model_effect){.kind = kind, .bucket = (uint8_t)bucket, .key = key};
    return effect;
}

static void put(struct sim_client *client, struct node *node, struct model_transaction *transaction,
    int bucket, uint8_t key, uint64_t token, int64_t expires_ms)
{
    uint8_t buffer[KEY_SIZE_MAX];
    uint32_t size = draw_size(&client->prng);
    uint8_t *at = node_put(node, client->buckets[bucket], model_key(key, buffer), size, expires_ms);
    if (at == NULL) {
        sim_violation(client, "a small put was refused inside an admitted transaction");
        return;
    }
    model_fill(token, at, size);
    struct model_effect *effect = new_effect(transaction, MODEL_PUT, bucket, key);
    effect->value = (struct model_value){
        .present = true, .size = size, .token = token, .expires_ms = expires_ms};
}

/* what the transaction itself has done to the key so far, else the model's pending state */
static struct model_value current(const struct sim_client *client,
    const struct model_transaction *transaction, int bucket, uint8_t key)
{
    struct model_value value = client->model.pending[bucket][key];
    for (uint32_t i = 0; i < transaction->count; i++) {
        const struct model_effect *effect = &transaction->effects[i];
        if (effect->bucket != bucket) continue;
        if (effect->kind == MODEL_CLEAR) value = (struct model_value){0};
        if (effect->key != key) continue;
        if (effect->kind == MODEL_PUT) value = effect->value;
        if (effect->kind == MODEL_DELETE) value = (struct model_value){0};
    }
    return value;
}

static void one_operation(
    struct sim_client *client, struct node *node, struct model_transaction *transaction)
{
    struct prng *prng = &client->prng;
    int bucket = (int)prng_below(prng, MODEL_BUCKETS);
    uint8_t key = (uint8_t)prng_below(prng, MODEL_KEYS);
    uint8_t buffer[KEY_SIZE_MAX];
    uint64_t kind = prng_below(prng, 100);
    if (kind < 2 && client->use_clear) {
        if (!node_clear(node, client->buckets[bucket], 0xffff))
            sim_violation(client, "clear was refused");
        new_effect(transaction, MODEL_CLEAR, bucket, 0);
        client->counts->clears++;
    } else if (kind < 22) {
        if (!node_delete(node, client->buckets[bucket], model_key(key, buffer)))
            sim_violation(client, "delete was refused");
        new_effect(transaction, MODEL_DELETE, bucket, key);
    } else if (kind < 45) {
        /* read-modify-write, as INCR does: a second application would show */
        struct model_value before = current(client, transaction, bucket, key);
        struct value value;
        enum err err =
            node_get(node, NODE_PENDING, client->buckets[bucket], model_key(key, buffer), &value);
        if (err == ERR_CORRUPT && client->damage_expected) return;
        if (live(node, &before) != (err == OK) ||
            (err == OK && !model_matches(&before, value.bytes)))
            sim_violation(client, "read before write: key %u of bucket %d is not what was written",
                key, bucket);
        put(client, node, transaction, bucket, key, before.token + 1, 0);
    } else {
        int64_t expires_ms = 0;
        if (client->use_expiry && prng_chance(prng, 1, 3))
            expires_ms = node_now_ms(node) + 1 + (int64_t)prng_below(prng, 3000);
        put(client, node, transaction, bucket, key, prng_next(prng), expires_ms);
    }
}

void sim_client_write(struct sim_client *client, struct node *node)
{
    struct model_transaction transaction = {0};
    uint64_t operations =
        prng_chance(&client->prng, 1, 4) ? 1 + prng_below(&client->prng, MODEL_EFFECTS_MAX) : 1;
    enum err admitted = node_admit(node, operations * (KEY_SIZE_MAX + 12000));
    sim_trace(client, 1, (uint64_t)(int64_t)admitted);
    if (admitted == ERR_FULL) client->counts->full++;
    if (admitted != OK) return;
    node_txn_begin(node);
    for (uint64_t i = 0; i < operations; i++)
        one_operation(client, node, &transaction);
    if (prng_chance(&client->prng, 1, 20)) {
        node_txn_abort(node);
        return;
    }
    transaction.node_ticket = node_txn_commit(node);
    sim_trace(client, 2, transaction.node_ticket);
    if (transaction.count == 0) return;
    if (transaction.node_ticket == 0) {
        sim_violation(client, "a transaction with effects got no ticket");
        return;
    }
    transaction.ticket = ++client->proposed;
    client->counts->transactions++;
    model_propose(&client->model, &transaction);
}

void sim_client_begin(struct sim_client *client, struct node *node)
{
    static const char *const names[MODEL_BUCKETS] = {"0", "3", "orders"};
    for (int i = 0; i < MODEL_BUCKETS; i++) {
        enum err err = node_bucket_find(node, bytes_of_text(names[i]), &client->buckets[i]);
        if (err == OK) continue;
        if (err != ERR_NOT_FOUND || node_admit(node, 100) != OK) {
            sim_violation(client, "bucket %s cannot be made: %s", names[i], err_name(err));
            return;
        }
        node_txn_begin(node);
        err = node_bucket_make(node, bytes_of_text(names[i]), &client->buckets[i]);
        if (err != OK)
            sim_violation(client, "bucket %s cannot be made: %s", names[i], err_name(err));
        node_txn_commit(node);
    }
}
