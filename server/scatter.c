#include "server/scatter.h"

#include <stdio.h>

#include "base/check.h"
#include "server/forward.h"
#include "server/glob.h"

/* ---- asking ---- */

static void on_reply(struct node_request *request, enum node_outcome outcome, struct bytes reply);

static void note_failure(struct scatter *scatter, enum node_outcome outcome, const char *error)
{
    /* what is worst is told: that something may have happened */
    if (!scatter->failed || outcome == NODE_UNKNOWN) scatter->outcome = outcome;
    if (!scatter->failed && error != NULL)
        snprintf(scatter->error, sizeof scatter->error, "%s", error);
    scatter->failed = true;
}

static enum err ask(struct scatter *scatter, struct scatter_slot *slot)
{
    struct buffer body = {0};
    scatter->ask(scatter, slot, &body);
    slot->request =
        (struct node_request){.done = on_reply, .ctx = slot, .read_only = !scatter->writes};
    enum err err = body.failed ? ERR_NOMEM
                               : node_request_start(scatter->server->node, &slot->request,
                                     slot->range, buffer_view(&body));
    buffer_deinit(&body);
    slot->active = err == OK;
    if (slot->active) scatter->running++;
    return err;
}

/* The slot's next range; false: there is none, or it could not be asked. */
static bool ask_next(struct scatter *scatter, struct scatter_slot *slot)
{
    if (scatter->next > scatter->last) return false;
    if (scatter->failed && !scatter->writes) return false;
    slot->range = (uint16_t)scatter->next++;
    buffer_reset(&slot->place, 0);
    enum err err = ask(scatter, slot);
    if (err != OK) note_failure(scatter, NODE_UNAVAILABLE, "ERR out of memory");
    return err == OK;
}

static void free_slots(struct scatter *scatter)
{
    for (uint32_t i = 0; i < SCATTER_SLOTS; i++)
        buffer_deinit(&scatter->slots[i].place);
}

static const char *verdict(struct scatter *scatter)
{
    if (!scatter->failed) return NULL;
    if (scatter->writes && (scatter->outcome == NODE_UNKNOWN || scatter->replied))
        return "UNKNOWN some of the ranges have answered and some have not: it may have been "
               "applied in part";
    if (scatter->error[0] != '\0') return scatter->error;
    return "CLUSTERDOWN not every range can be reached; nothing was changed";
}

static void take_reply(struct scatter *scatter, struct scatter_slot *slot, struct bytes reply)
{
    struct forward_reader reader = {.rest = reply};
    uint8_t result = forward_get_u8(&reader);
    if (result != FORWARD_DONE) {
        char text[200];
        struct bytes error = forward_get_text(&reader);
        snprintf(text, sizeof text, "%.*s", (int)(error.size < 190 ? error.size : 190),
            (const char *)error.at);
        note_failure(scatter, NODE_UNAVAILABLE,
            error.size > 0 ? text : "ERR a range's answer makes no sense");
        return;
    }
    scatter->replied = true;
    bool range_done = scatter->take(scatter, slot, &reader);
    if (reader.failed) {
        note_failure(scatter, NODE_UNAVAILABLE, "ERR a range's answer makes no sense");
    } else if (!range_done && ask(scatter, slot) != OK) {
        note_failure(scatter, NODE_UNAVAILABLE, "ERR out of memory");
    }
}

static void on_reply(struct node_request *request, enum node_outcome outcome, struct bytes reply)
{
    struct scatter_slot *slot = request->ctx;
    struct scatter *scatter = slot->scatter;
    ASSERT(slot->active && scatter->running > 0);
    slot->active = false;
    scatter->running--;
    if (outcome != NODE_REPLIED) {
        note_failure(scatter, outcome, NULL);
    } else if (!scatter->failed || scatter->writes) {
        take_reply(scatter, slot, reply);
    }
    if (!slot->active) (void)ask_next(scatter, slot);
    if (scatter->running > 0) return;
    free_slots(scatter);
    scatter->done(scatter, verdict(scatter));
}

enum err scatter_start(struct scatter *scatter)
{
    ASSERT(scatter->first <= scatter->last);
    scatter->next = scatter->first;
    for (uint32_t i = 0; i < SCATTER_SLOTS; i++) {
        scatter->slots[i].scatter = scatter;
        if (!ask_next(scatter, &scatter->slots[i])) break;
    }
    if (scatter->running > 0) return OK;
    free_slots(scatter);
    return ERR_NOMEM;
}

void scatter_cancel(struct scatter *scatter)
{
    for (uint32_t i = 0; i < SCATTER_SLOTS; i++) {
        struct scatter_slot *slot = &scatter->slots[i];
        if (slot->active) node_request_cancel(scatter->server->node, &slot->request);
        slot->active = false;
    }
    scatter->running = 0;
    free_slots(scatter);
}

/* ---- buckets ---- */

enum { META_RANGE = 0 };

static void bucket_leave(struct bucket_request *bucket)
{
    struct bucket_request **at = &bucket->server->bucket_requests;
    while (*at != NULL && *at != bucket)
        at = &(*at)->next;
    if (*at != NULL) *at = bucket->next;
    bucket->waiting = false;
}

static void on_bucket(struct node_request *request, enum node_outcome outcome, struct bytes reply)
{
    struct bucket_request *bucket = request->ctx;
    struct server *server = bucket->server;
    struct forward_reader reader = {.rest = reply};
    bucket->asking = false;
    if (outcome == NODE_UNKNOWN) {
        bucket->done(
            bucket, "UNKNOWN the bucket may or may not have been made; select it again", 0);
    } else if (outcome == NODE_UNAVAILABLE) {
        bucket->done(bucket,
            "CLUSTERDOWN no majority can be reached that could make a bucket; nothing was changed",
            0);
    } else if (forward_get_u8(&reader) != FORWARD_DONE) {
        char text[200];
        struct bytes error = forward_get_text(&reader);
        snprintf(text, sizeof text, "%.*s", (int)(error.size < 190 ? error.size : 190),
            (const char *)error.at);
        bucket->done(bucket, text, 0);
    } else if (forward_get_u16(&reader) == BUCKET_ABSENT) {
        bucket->done(bucket, NULL, BUCKET_ABSENT);
    } else {
        /* this node hears of it a moment later */
        bucket->waiting = true;
        bucket->until_ns = server->now_ns + server->config.deadline_ms * UINT64_C(1000000);
        bucket->next = server->bucket_requests;
        server->bucket_requests = bucket;
    }
}

enum err bucket_request_start(struct bucket_request *bucket)
{
    struct buffer body = {0};
    forward_put_head(&body, FORWARD_BUCKET);
    forward_put_u8(&body, !bucket->only_find);
    forward_put_text(&body, bytes_of_text(bucket->name));
    bucket->request =
        (struct node_request){.done = on_bucket, .ctx = bucket, .read_only = bucket->only_find};
    enum err err = body.failed ? ERR_NOMEM
                               : node_request_start(bucket->server->node, &bucket->request,
                                     META_RANGE, buffer_view(&body));
    buffer_deinit(&body);
    bucket->asking = err == OK;
    return err;
}

void bucket_request_cancel(struct bucket_request *bucket)
{
    if (bucket->asking) node_request_cancel(bucket->server->node, &bucket->request);
    bucket->asking = false;
    if (bucket->waiting) bucket_leave(bucket);
}

void bucket_requests_poll(struct server *server)
{
    struct bucket_request *bucket = server->bucket_requests;
    while (bucket != NULL) {
        struct bucket_request *next = bucket->next;
        uint16_t id = 0;
        bool known = node_bucket_find(server->node, bytes_of_text(bucket->name), &id) == OK;
        if (known || server->now_ns >= bucket->until_ns) {
            bucket_leave(bucket);
            bucket->done(bucket,
                known ? NULL
                      : "CLUSTERDOWN this node has not heard of the bucket yet; select it again",
                id);
        }
        bucket = next;
    }
}

/* ---- answering ---- */

enum { WALK_BYTES = 256 << 10, ALL_BUCKETS = 0xffff, RANDOM_STEPS_MAX = 256 };

static bool fail(struct node_execution *execution, const char *error)
{
    struct buffer *reply = execution->reply;
    reply->size = reply->head;
    forward_put_u8(reply, FORWARD_FAILED);
    forward_put_text(reply, bytes_of_text(error));
    return true;
}

static const char malformed[] = "ERR a request from another node cannot be understood";

static bool fail_with(struct node_execution *execution, enum err err)
{
    char text[160];
    snprintf(text, sizeof text,
        err == ERR_CORRUPT ? "ERR a stored value met by the walk is damaged: it fails its checksum"
                           : "ERR the keys cannot be read: %s",
        err_text(err));
    return fail(execution, text);
}

struct walk {
    struct buffer *reply;
    struct bytes pattern;
    uint32_t visited, count;
};

static bool visit_key(void *ctx, struct bytes key, const struct value *value)
{
    struct walk *walk = ctx;
    (void)value;
    walk->visited++;
    bool all = walk->pattern.size == 1 && walk->pattern.at[0] == '*';
    if (all || glob_match(walk->pattern, key, false)) {
        forward_put_text(walk->reply, key);
        walk->count++;
    }
    return walk->reply->size < WALK_BYTES;
}

static bool answer_keys(struct server *server, uint16_t bucket, struct forward_reader *reader,
    struct node_execution *execution)
{
    uint32_t limit = forward_get_u32(reader);
    struct bytes pattern = forward_get_text(reader);
    bool resume = forward_get_u8(reader) != 0;
    struct bytes after = forward_get_text(reader);
    if (!forward_at_end(reader) || after.size > KEY_SIZE_MAX || limit == 0)
        return fail(execution, malformed);
    struct buffer keys = {0};
    struct walk walk = {.reply = &keys, .pattern = pattern};
    struct node_position position = {.only_range = execution->range};
    if (resume) {
        position.range = execution->range;
        position.key_size = (uint16_t)after.size;
        if (after.size > 0) memcpy(position.key, after.at, after.size);
    }
    bool done = false;
    enum err err =
        node_walk(server->node, NODE_COMMITTED, bucket, &position, limit, &done, visit_key, &walk);
    if (err == OK && keys.failed) err = ERR_NOMEM;
    if (err == OK) {
        struct buffer *reply = execution->reply;
        struct bytes found = buffer_view(&keys);
        forward_put_u8(reply, FORWARD_DONE);
        forward_put_u8(reply, done);
        forward_put_text(reply, bytes_of(position.key, done ? 0 : position.key_size));
        forward_put_u32(reply, walk.visited);
        forward_put_u32(reply, walk.count);
        if (found.size > 0 && buffer_append(reply, found.at, found.size) != OK) err = ERR_NOMEM;
    }
    buffer_deinit(&keys);
    return err == OK ? true : fail_with(execution, err);
}

struct random {
    uint64_t skip;
    struct buffer *reply;
    bool found;
};

static bool visit_random(void *ctx, struct bytes key, const struct value *value)
{
    struct random *random = ctx;
    (void)value;
    if (random->skip-- > 0) return true;
    forward_put_u8(random->reply, 1);
    forward_put_text(random->reply, key);
    random->found = true;
    return false;
}

/* One of the first keys of the range; the first if that many are not there any more. */
static bool answer_random(struct server *server, uint16_t bucket, struct node_execution *execution)
{
    struct buffer *reply = execution->reply;
    uint64_t count = node_count(server->node, NODE_COMMITTED, execution->range, bucket);
    if (count > RANDOM_STEPS_MAX) count = RANDOM_STEPS_MAX;
    forward_put_u8(reply, FORWARD_DONE);
    struct random random = {.reply = reply, .skip = commands_random(server, count)};
    for (int attempt = 0; attempt < 2 && !random.found && count > 0; attempt++) {
        struct node_position position = {.only_range = execution->range};
        bool done = false;
        while (!done && !random.found) {
            enum err err = node_walk(server->node, NODE_COMMITTED, bucket, &position,
                RANDOM_STEPS_MAX, &done, visit_random, &random);
            if (err != OK) return fail_with(execution, err);
        }
        random.skip = 0;
    }
    if (!random.found) {
        forward_put_u8(reply, 0);
        forward_put_text(reply, bytes_of("", 0));
    }
    return true;
}

static bool answer_clear(struct server *server, uint16_t bucket, struct node_execution *execution)
{
    struct node *node = server->node;
    uint16_t range = execution->range;
    enum { RECORD_SIZE = 4096 };
    enum err err = node_admit(node, RECORD_SIZE);
    if (err == ERR_AGAIN) return false;
    if (err != OK) return fail(execution, dispatch_refusal(err));
    /* also buckets whose names this node has not heard of yet */
    uint32_t first = bucket == ALL_BUCKETS ? 0 : bucket;
    uint32_t end = bucket == ALL_BUCKETS ? NODE_BUCKETS_MAX : (uint32_t)bucket + 1;
    bool room = true;
    node_txn_begin(node);
    for (uint32_t id = first; id < end && room; id++) {
        if (node_count(node, NODE_PENDING, range, (uint16_t)id) > 0)
            room = node_clear(node, (uint16_t)id, range);
    }
    if (!room) {
        node_txn_abort(node);
        return fail(execution, "OOM no room for this write; nothing was changed");
    }
    execution->ticket = node_txn_commit(node);
    forward_put_u8(execution->reply, FORWARD_DONE);
    return true;
}

struct page {
    struct buffer entries;
    uint32_t count, bytes;
    bool cut;
};

static bool visit_entry(void *ctx, struct bytes key, const struct value *value)
{
    struct page *page = ctx;
    if (page->count > 0 && page->entries.size + value->bytes.size > page->bytes) {
        page->cut = true;
        return false;
    }
    struct forward_entry entry = {.key = key,
        .value = value->bytes,
        .version = value->version,
        .expires_ms = value->expires_ms};
    forward_put_entry(&page->entries, &entry);
    page->count++;
    return true;
}

static bool answer_page(struct server *server, uint16_t bucket, struct forward_reader *reader,
    struct node_execution *execution)
{
    uint32_t limit = forward_get_u32(reader);
    struct page page = {.bytes = forward_get_u32(reader)};
    struct bytes prefix = forward_get_text(reader);
    struct bytes after = forward_get_text(reader);
    if (!forward_at_end(reader) || limit == 0) return fail(execution, malformed);
    bool more = false;
    enum err err = node_page(
        server->node, execution->range, bucket, prefix, after, limit, &more, visit_entry, &page);
    if (err == OK && page.entries.failed) err = ERR_NOMEM;
    if (err == OK) {
        struct bytes entries = buffer_view(&page.entries);
        forward_put_u8(execution->reply, FORWARD_DONE);
        forward_put_u8(execution->reply, more || page.cut);
        forward_put_u32(execution->reply, page.count);
        if (entries.size > 0 && buffer_append(execution->reply, entries.at, entries.size) != OK)
            err = ERR_NOMEM;
    }
    buffer_deinit(&page.entries);
    return err == OK ? true : fail_with(execution, err);
}

static bool answer_bucket(
    struct server *server, struct forward_reader *reader, struct node_execution *execution)
{
    enum { RECORD_SIZE = 512 };
    struct node *node = server->node;
    bool make = forward_get_u8(reader) != 0;
    struct bytes name = forward_get_text(reader);
    uint16_t bucket = 0;
    if (!forward_at_end(reader) || execution->range != META_RANGE)
        return fail(execution, malformed);
    enum err err = node_bucket_find(node, name, &bucket);
    if (err == OK || (err == ERR_NOT_FOUND && !make)) {
        execution->ticket = node_read_ticket(node, META_RANGE, NODE_PENDING);
        forward_put_u8(execution->reply, FORWARD_DONE);
        forward_put_u16(execution->reply, err == OK ? bucket : BUCKET_ABSENT);
        return true;
    }
    err = node_admit(node, RECORD_SIZE);
    if (err == ERR_AGAIN) return false;
    if (err != OK) return fail(execution, dispatch_refusal(err));
    node_txn_begin(node);
    err = node_bucket_make(node, name, &bucket);
    if (err != OK) {
        char text[160];
        node_txn_abort(node);
        if (err == ERR_FULL)
            snprintf(
                text, sizeof text, "ERR no room for another bucket: %d at most", NODE_BUCKETS_MAX);
        else
            snprintf(text, sizeof text, "ERR the bucket cannot be made: %s", err_text(err));
        return fail(execution, text);
    }
    execution->ticket = node_txn_commit(node);
    if (execution->ticket == 0)
        execution->ticket = node_read_ticket(node, META_RANGE, NODE_PENDING);
    forward_put_u8(execution->reply, FORWARD_DONE);
    forward_put_u16(execution->reply, bucket);
    return true;
}

bool scatter_execute(struct server *server, enum forward_kind kind, struct forward_reader *reader,
    struct node_execution *execution)
{
    struct node *node = server->node;
    bool done = true;
    if (kind == FORWARD_BUCKET) return answer_bucket(server, reader, execution);
    uint16_t bucket = forward_get_u16(reader);
    if (reader->failed || (bucket >= NODE_BUCKETS_MAX && bucket != ALL_BUCKETS))
        return fail(execution, malformed);
    switch (kind) {
    case FORWARD_COUNT:
        forward_put_u8(execution->reply, FORWARD_DONE);
        forward_put_u64(
            execution->reply, node_count(node, NODE_COMMITTED, execution->range, bucket));
        break;
    case FORWARD_KEYS:
        done = answer_keys(server, bucket, reader, execution);
        break;
    case FORWARD_RANDOM:
        done = answer_random(server, bucket, execution);
        break;
    case FORWARD_CLEAR:
        done = answer_clear(server, bucket, execution);
        break;
    case FORWARD_PAGE:
        done = answer_page(server, bucket, reader, execution);
        break;
    default:
        UNREACHABLE();
    }
    if (done && execution->ticket == 0) {
        execution->ticket = node_read_ticket(
            node, execution->range, kind == FORWARD_CLEAR ? NODE_PENDING : NODE_COMMITTED);
    }
    return done;
}
