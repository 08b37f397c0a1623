#include "server/http_key.h"

#include "server/command.h"
#include "server/http_parse.h"

static struct forward_answer error(uint16_t status, const char *code, const char *message)
{
    return (struct forward_answer){
        .status = status, .code = bytes_of_text(code), .message = bytes_of_text(message)};
}

static ticket_t read_ticket(struct server *server, uint16_t range, enum node_view view)
{
    if (range != 0) return node_read_ticket(server->node, range, view);
    bool all = view == NODE_PENDING && node_alone(server->node);
    return all ? node_pending_ticket(server->node) : 0;
}

/* Evaluates If-Match and If-None-Match; true: go on. version 0: there is no such key. */
static bool conditions_hold(
    const struct forward_key *request, uint64_t version, struct forward_answer *answer)
{
    bool match;
    if (request->has_if_match) {
        if (http_tags_match(request->if_match, version, false, &match) != OK) {
            *answer = error(400, "bad_condition", "If-Match is not a list of \"version\"");
            return false;
        }
        if (!match) {
            *answer = error(412, "precondition_failed", "the key's version is another one");
            answer->version = version;
            return false;
        }
    }
    if (request->has_if_none_match) {
        if (http_tags_match(request->if_none_match, version, true, &match) != OK) {
            *answer =
                error(400, "bad_condition", "If-None-Match is not \"*\" or a list of \"version\"");
            return false;
        }
        if (match) {
            *answer = request->method != FORWARD_GET
                ? error(412, "precondition_failed", "the key exists")
                : (struct forward_answer){.status = 304};
            answer->version = version;
            return false;
        }
    }
    return true;
}

static void get(
    struct server *server, const struct forward_key *request, struct forward_answer *answer)
{
    struct value value;
    enum err err = node_get(server->node, NODE_COMMITTED, request->bucket, request->key, &value);
    if (err != OK && err != ERR_NOT_FOUND) {
        *answer = err == ERR_CORRUPT ? error(500, "corrupt", "the stored bytes fail their checksum")
                                     : error(500, "internal", err_text(err));
        return;
    }
    if (!conditions_hold(request, err == OK ? value.version : 0, answer)) return;
    if (err == ERR_NOT_FOUND) {
        server->counters.keyspace_misses++;
        *answer = error(404, "not_found", "there is no such key");
        return;
    }
    server->counters.keyspace_hits++;
    *answer = (struct forward_answer){.status = 200, .version = value.version, .body = value.bytes};
}

/* Puts or deletes inside the open transaction and decides the answer; false: abort it. */
static bool write(
    struct server *server, const struct forward_key *request, struct forward_answer *answer)
{
    struct node *node = server->node;
    struct value old;
    enum err err = node_get(node, NODE_PENDING, request->bucket, request->key, &old);
    if (err != OK && err != ERR_NOT_FOUND && err != ERR_CORRUPT) {
        *answer = error(500, "internal", err_text(err));
        return false;
    }
    /* a damaged value has no version to compare with, but may be replaced and removed */
    if (!conditions_hold(request, err == OK ? old.version : 0, answer)) return false;
    if (request->method == FORWARD_DELETE) {
        if (err == ERR_NOT_FOUND) {
            *answer = error(404, "not_found", "there is no such key");
            return false;
        }
        *answer = (struct forward_answer){.status = 204};
        if (node_delete(node, request->bucket, request->key)) return true;
    } else {
        int64_t expires_ms =
            request->ttl_ms == 0 ? 0 : node_now_ms(node) + (int64_t)request->ttl_ms;
        transaction_touch(server, request->bucket, request->key);
        uint8_t *at = node_put(node, request->bucket, request->key, request->body.size, expires_ms);
        *answer = (struct forward_answer){.status = err == ERR_NOT_FOUND ? 201 : 204};
        if (at != NULL) {
            if (request->body.size > 0) memcpy(at, request->body.at, request->body.size);
            return true;
        }
    }
    *answer = error(503, "no_memory", "the server is out of memory");
    return false;
}

/* ---- exactly once ---- */

struct once {
    uint8_t at[KEY_SIZE_MAX];
    struct bytes key;
    struct bytes record; /* at NULL: none */
};

/* True: run it. Else the answer is decided. */
static bool once_begin(struct server *server, const struct forward_key *request, struct once *once,
    struct forward_answer *answer)
{
    struct value value = {0};
    struct bytes reply = {0};
    uint16_t range = node_range_of(server->node, request->key);
    size_t size = once_key(server, range, 'h', request->client, once->at);
    once->key = bytes_of(once->at, size);
    enum err found = node_get(server->node, NODE_PENDING, ONCE_BUCKET, once->key, &value);
    if (found != OK && found != ERR_NOT_FOUND) {
        *answer = error(500, "internal", err_text(found));
        return false;
    }
    once->record = found == OK ? value.bytes : (struct bytes){0};
    struct forward_reader reader = {0};
    switch (once_judge(once->record, request->sequence, &reply)) {
    case ONCE_NEW:
        return true;
    case ONCE_REPEATED:
        reader.rest = reply;
        forward_get_answer(&reader, answer);
        if (!forward_at_end(&reader))
            *answer = error(500, "corrupt", "what is known of this client cannot be read");
        return false;
    case ONCE_OLD:
        *answer = error(409, "sequence_old", "this number was used before; its answer is not kept");
        return false;
    case ONCE_EXPIRED:
        *answer = error(409, "session_expired",
            "nothing is known of this client here; nothing was run: start anew with "
            "another Duramen-Client and number 1");
        return false;
    }
    return false;
}

static bool once_end(struct server *server, const struct forward_key *request,
    const struct once *once, struct forward_answer *answer)
{
    struct buffer reply = {0}, next = {0};
    forward_put_answer(&reply, answer);
    once_remember(&next, once->record, request->sequence, buffer_view(&reply));
    struct bytes text = buffer_view(&next);
    uint8_t *at = reply.failed || next.failed
        ? NULL
        : node_put(server->node, ONCE_BUCKET, once->key, text.size,
              node_now_ms(server->node) + ONCE_EXPIRY_MS);
    if (at != NULL) memcpy(at, text.at, text.size);
    buffer_deinit(&reply);
    buffer_deinit(&next);
    if (at == NULL) *answer = error(503, "no_memory", "the server is out of memory");
    return at != NULL;
}

/* ---- */

static bool make_bucket(
    struct server *server, struct bytes name, uint16_t *bucket_out, struct forward_answer *answer)
{
    enum err err = node_bucket_make(server->node, name, bucket_out);
    if (err == ERR_FULL)
        *answer = error(507, "too_many_buckets", "the limit of 1024 buckets is reached");
    else if (err != OK)
        *answer = error(500, "internal", err_text(err));
    return err == OK;
}

/* False: no room now. */
static bool admit(
    struct server *server, const struct forward_key *request, struct forward_answer *answer)
{
    enum { OVERHEAD = 128 };
    size_t size = request->key.size + request->body.size + OVERHEAD;
    enum err err = node_admit(server->node, size);
    answer->status = 0;
    if (err == ERR_AGAIN) return false;
    if (err == ERR_FULL)
        *answer = error(507, "full", "no space is left for the log; nothing was written");
    else if (err == ERR_TOO_LARGE)
        *answer = error(413, "too_large", "the value is larger than one log record can hold");
    else if (err != OK)
        *answer = error(503, "unavailable", err_text(err));
    return true;
}

bool http_key_evaluate(struct server *server, uint16_t range, const struct forward_key *request,
    struct forward_answer *answer_out, ticket_t *ticket_out)
{
    struct node *node = server->node;
    struct value value;
    *answer_out = (struct forward_answer){0};
    *ticket_out = 0;
    if (request->method == FORWARD_GET) {
        get(server, request, answer_out);
        *ticket_out = read_ticket(server, range, NODE_COMMITTED);
        return true;
    }
    if (!admit(server, request, answer_out)) return false;
    if (answer_out->status != 0) return true;
    struct once once;
    bool exactly_once = request->client.size > 0;
    struct forward_key there = *request;
    node_txn_begin(node);
    if (request->new_bucket.size > 0 &&
        !make_bucket(server, request->new_bucket, &there.bucket, answer_out)) {
        node_txn_abort(node);
        *ticket_out = read_ticket(server, range, NODE_PENDING);
        return true;
    }
    request = &there;
    bool keep = (!exactly_once || once_begin(server, request, &once, answer_out)) &&
        write(server, request, answer_out);
    /* an answer that is to be the same when it is asked for again has no version: that is known after the commit */
    if (keep && exactly_once) keep = once_end(server, request, &once, answer_out);
    if (keep) {
        *ticket_out = node_txn_commit(node);
    } else {
        node_txn_abort(node);
    }
    if (keep && !exactly_once && request->method == FORWARD_PUT &&
        node_get(node, NODE_PENDING, request->bucket, request->key, &value) == OK)
        answer_out->version = value.version;
    if (*ticket_out == 0) *ticket_out = read_ticket(server, range, NODE_PENDING);
    return true;
}
