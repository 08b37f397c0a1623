#include "server/http_internal.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"
#include "server/forward.h"
#include "server/http_key.h"

/* Requests to keys, pages of keys, and the operator's changes: what may concern other nodes. A request that has to
 * wait is suspended; go_on() says where it continues. */

enum {
    PAGE_LIMIT_DEFAULT = 100,
    PAGE_LIMIT_MAX = 1000,
    PAGE_BYTES_MAX = 1 << 20,
};
#define TTL_MS_MAX (UINT64_C(100) * 365 * 86400 * 1000)

static bool consistency_valid(const struct parameter *parameter)
{
    return !parameter->found ||
        bytes_equal(parameter_value(parameter), bytes_of_text("linearizable")) ||
        bytes_equal(parameter_value(parameter), bytes_of_text("local"));
}

/* ---- what has to be waited for ---- */

static void go_on(struct request *request, enum step step)
{
    request->step = step;
    request_resume(request);
}

static struct outcome outcome_error(enum node_outcome outcome, bool writes)
{
    if (outcome == NODE_UNKNOWN && writes)
        return outcome_of(
            504, "unknown", "the outcome is not known: it may or may not have been applied");
    return outcome_of(
        503, "unavailable", "no majority of the replicas can be reached; nothing was changed");
}

static void on_ticket(struct ticket_waiter *waiter, enum ticket_state state)
{
    struct request *request = (struct request *)((char *)waiter - offsetof(struct request, waiter));
    request->waits_for_ticket = false;
    if (state == TICKET_UNKNOWN) request->outcome = outcome_error(NODE_UNKNOWN, true);
    if (state == TICKET_REFUSED) request->outcome = outcome_error(NODE_UNAVAILABLE, true);
    go_on(request, STEP_ANSWER);
}

/* The outcome is decided; tells it when `ticket` is done. */
static enum MHD_Result answer_after(struct request *request, ticket_t ticket)
{
    request->step = STEP_COMMIT;
    if (ticket != 0) {
        request->waits_for_ticket = true;
        request->waiter = (struct ticket_waiter){.ticket = ticket, .on_ready = on_ticket};
        server_wait(request->http->server, &request->waiter);
        if (request->waits_for_ticket) {
            request_suspend(request);
            return MHD_YES;
        }
    }
    request->step = STEP_ANSWER;
    return request_answer(request);
}

static enum MHD_Result wait_for_others(struct request *request)
{
    request->step = STEP_REMOTE;
    request_suspend(request);
    return MHD_YES;
}

static void list_cancel(struct request *request);

void request_cancel_remote(struct request *request)
{
    if (request->remote_active) node_request_cancel(request->http->server->node, &request->remote);
    request->remote_active = false;
    bucket_request_cancel(&request->bucket_request);
    list_cancel(request);
}

/* ---- values ---- */

static const char bucket_names[] =
    "a bucket is a number up to 15, or a letter and up to 63 letters, digits, '_', '.' or '-'";

static void on_bucket(struct bucket_request *bucket, const char *text, uint16_t id)
{
    struct request *request =
        (struct request *)((char *)bucket - offsetof(struct request, bucket_request));
    if (text != NULL) {
        bool unknown = strncmp(text, "UNKNOWN", 7) == 0;
        bool down = strncmp(text, "CLUSTERDOWN", 11) == 0;
        snprintf(request->message, sizeof request->message, "%s", text);
        request->outcome = unknown ? outcome_error(NODE_UNKNOWN, true)
            : down                 ? outcome_error(NODE_UNAVAILABLE, true)
                                   : outcome_of(507, "too_many_buckets", request->message);
        go_on(request, STEP_ANSWER);
    } else if (id == BUCKET_ABSENT) {
        request->outcome = outcome_of(404, "bucket_not_found", "there is no such bucket");
        go_on(request, STEP_ANSWER);
    } else {
        request->bucket = id;
        request->bucket_known = true;
        go_on(request, STEP_BODY);
    }
}

enum found { FOUND, DECIDED, ASKED };

/* The id of the bucket: known, or the outcome is decided, or others are asked and the request comes back.
 * *make_out: a node alone is to make it. */
static enum found find_bucket(struct request *request, bool make, bool *make_out)
{
    struct server *server = request->http->server;
    *make_out = false;
    if (!request->has_bucket || request->bucket_known) return FOUND;
    enum err err =
        node_bucket_find(server->node, bytes_of_text(request->bucket_name), &request->bucket);
    if (err == OK) return FOUND;
    if (err == ERR_INVALID) {
        request->outcome = outcome_of(400, "bad_bucket", bucket_names);
        return DECIDED;
    }
    if (node_alone(server->node)) {
        *make_out = make;
        if (make) return FOUND;
        request->outcome = outcome_of(404, "bucket_not_found", "there is no such bucket");
        return DECIDED;
    }
    struct bucket_request *bucket = &request->bucket_request;
    *bucket = (struct bucket_request){.server = server, .only_find = !make, .done = on_bucket};
    memcpy(bucket->name, request->bucket_name, sizeof bucket->name);
    if (bucket_request_start(bucket) == OK) return ASKED;
    request->outcome = outcome_of(503, "no_memory", "the server is out of memory");
    return DECIDED;
}

/* Fills in what the request asks for, but for the bucket; false: the outcome is decided. */
static bool read_key_request(struct request *request, struct forward_key *key, bool *local_out)
{
    struct parameter parameters[] = {{.name = "consistency"}, {.name = "ttl_ms"}};
    bool put = request->method == METHOD_PUT, get = !request_changes_state(request);
    *key = (struct forward_key){.method = get ? FORWARD_GET
            : put                             ? FORWARD_PUT
                                              : FORWARD_DELETE,
        .key = bytes_of(request->key, request->key_size),
        .has_if_match = request->if_match.at != NULL,
        .has_if_none_match = request->if_none_match.at != NULL,
        .if_match = request->if_match,
        .if_none_match = request->if_none_match,
        .client = request->client,
        .body = buffer_view(&request->body)};
    if (request_query(request, parameters, 2) != OK || !consistency_valid(&parameters[0]) ||
        (!put && parameters[1].found)) {
        request->outcome = outcome_of(400, "bad_query",
            get ? "GET takes ?consistency=linearizable or ?consistency=local, and nothing else"
                : put ? "PUT takes ?ttl_ms= and nothing else"
                      : "DELETE takes no parameters");
        return false;
    }
    *local_out =
        parameters[0].found && bytes_equal(parameter_value(&parameters[0]), bytes_of_text("local"));
    if (parameters[1].found &&
        (!http_decimal(parameter_value(&parameters[1]), TTL_MS_MAX, &key->ttl_ms) ||
            key->ttl_ms == 0)) {
        request->outcome =
            outcome_of(400, "bad_ttl", "ttl_ms is a number of milliseconds from 1 to 100 years");
        return false;
    }
    if (get || (request->client.at == NULL && request->sequence.at == NULL)) return true;
    if (request->client.size > 0 && request->client.size <= ONCE_CLIENT_MAX &&
        request->sequence.at != NULL &&
        http_decimal(request->sequence, INT64_MAX, &key->sequence) && key->sequence > 0)
        return true;
    request->outcome = outcome_of(400, "bad_sequence",
        "Duramen-Client (1 to 128 bytes) and Duramen-Sequence (a number from 1) belong together");
    return false;
}

static enum MHD_Result wait_for_room(struct request *request)
{
    struct http *http = request->http;
    uint64_t waited = http_now_ns(http) - request->began_ns;
    if (request->step == STEP_ADMISSION && waited > ADMISSION_MS * MILLISECOND) {
        request->outcome = outcome_of(
            503, "overloaded", "the store cannot take writes this fast; nothing was written");
        request->outcome.retry_s = 1;
        return request_answer(request);
    }
    if (request->step != STEP_ADMISSION) request->began_ns = http_now_ns(http);
    request->step = STEP_ADMISSION;
    request->next_admission = http->admission;
    http->admission = request;
    request->in_admission = true;
    http->server->counters.throttled++;
    request_suspend(request);
    return MHD_YES;
}

/* The texts of the answer are constants here, so that the outcome may keep them. */
static void take_answer(struct request *request, const struct forward_answer *answer)
{
    request->outcome = (struct outcome){.status = answer->status,
        .code = answer->code.size > 0 ? (const char *)answer->code.at : NULL,
        .message = answer->message.size > 0 ? (const char *)answer->message.at : "",
        .version = answer->version,
        .value = answer->status == 200};
}

static enum MHD_Result evaluate_here(
    struct request *request, uint16_t range, const struct forward_key *key, bool stale)
{
    struct forward_answer result;
    ticket_t ticket;
    if (!http_key_evaluate(request->http->server, range, key, &result, &ticket))
        return wait_for_room(request);
    if (stale) ticket = 0;
    take_answer(request, &result);
    if (ticket == 0 && request->outcome.value) return request_answer_value(request, result.body);
    buffer_deinit(&request->body);
    if (request->outcome.value &&
        buffer_append(&request->value, result.body.at, result.body.size) != OK)
        request->outcome = outcome_of(503, "no_memory", "the server is out of memory");
    request_count_bytes(request);
    return answer_after(request, ticket);
}

static void copy_text(char *target, size_t size, struct bytes text)
{
    snprintf(target, size, "%.*s", (int)(text.size < size ? text.size : size - 1),
        (const char *)text.at);
}

static void on_key_answered(
    struct node_request *remote, enum node_outcome outcome, struct bytes reply)
{
    struct request *request = remote->ctx;
    struct forward_reader reader = {.rest = reply};
    struct forward_answer result = {0};
    request->remote_active = false;
    if (outcome != NODE_REPLIED) {
        request->outcome = outcome_error(outcome, request_changes_state(request));
        go_on(request, STEP_ANSWER);
        return;
    }
    forward_get_answer(&reader, &result);
    if (!forward_at_end(&reader) || result.status < 200 || result.status > 599) {
        request->outcome = outcome_of(500, "internal", "another node's answer makes no sense");
    } else if (buffer_append(&request->value, result.body.at, result.body.size) != OK) {
        request->outcome = outcome_of(503, "no_memory", "the server is out of memory");
    } else {
        copy_text(request->code, sizeof request->code, result.code);
        copy_text(request->message, sizeof request->message, result.message);
        request->outcome = (struct outcome){.status = result.status,
            .code = result.code.size > 0 ? request->code : NULL,
            .message = request->message,
            .version = result.version,
            .value = result.status == 200};
        request_count_bytes(request);
    }
    go_on(request, STEP_ANSWER);
}

static enum MHD_Result evaluate_there(
    struct request *request, uint16_t range, const struct forward_key *key)
{
    struct buffer body = {0};
    forward_put_head(&body, FORWARD_KEY);
    forward_put_key(&body, key);
    request->remote = (struct node_request){
        .done = on_key_answered, .ctx = request, .read_only = key->method == FORWARD_GET};
    enum err err = body.failed ? ERR_NOMEM
                               : node_request_start(request->http->server->node, &request->remote,
                                     range, buffer_view(&body));
    buffer_deinit(&body);
    if (err == ERR_TOO_LARGE)
        return request_answer_error(
            request, 413, "too_large", "the value is larger than nodes hand over");
    if (err != OK) return request_answer_err(request, err);
    request->remote_active = true;
    buffer_deinit(&request->body);
    request_count_bytes(request);
    return wait_for_others(request);
}

enum MHD_Result request_run_key(struct request *request)
{
    struct node *node = request->http->server->node;
    struct forward_key key;
    bool local, make;
    if (!read_key_request(request, &key, &local)) return request_answer(request);
    switch (find_bucket(request, request->method == METHOD_PUT, &make)) {
    case FOUND:
        break;
    case DECIDED:
        return request_answer(request);
    case ASKED:
        return wait_for_others(request);
    }
    key.bucket = request->bucket;
    if (make) key.new_bucket = bytes_of_text(request->bucket_name);
    if (node_alone(node)) return evaluate_here(request, 0, &key, false);
    uint16_t range = node_range_of(node, key.key);
    bool stale = local && key.method == FORWARD_GET && node_has(node, range);
    if (stale || node_serves(node, range)) return evaluate_here(request, range, &key, stale);
    return evaluate_there(request, range, &key);
}

/* ---- operator's changes ---- */

/* {"done":"sentence"} */
static void take_done(struct request *request)
{
    enum err err = buffer_append(&request->value, "{\"done\":", 8);
    if (err == OK) err = http_json_string(&request->value, bytes_of_text(request->message));
    if (err == OK) err = buffer_append(&request->value, "}\n", 2);
    request->outcome = (struct outcome){.status = 200, .page = true};
    if (err != OK) request->outcome = outcome_of(503, "no_memory", "done, but memory is used up");
}

static void on_admin(struct node_request *remote, enum node_outcome outcome, struct bytes reply);

/* A change to one range, or to the table of members; false: it could not be begun, and the outcome is decided. */
static bool ask_admin(struct request *request)
{
    struct node *node = request->http->server->node;
    request->remote = (struct node_request){.done = on_admin, .ctx = request};
    enum err err = node_admin_start(
        node, &request->remote, request->admin, request->code, (uint16_t)request->admin_range);
    request->remote_active = err == OK;
    if (err != OK) request->outcome = outcome_of(503, "unavailable", err_text(err));
    return err == OK;
}

/* All ranges were asked, one after the other: those whose replicas are elsewhere have refused. */
static void sum_up_transfer(struct request *request)
{
    if (request->admin_done == 0) {
        request->outcome = outcome_of(409, "refused", request->message);
        return;
    }
    snprintf(request->message, sizeof request->message, "%u ranges are led by %s now",
        request->admin_done, request->code);
    take_done(request);
}

static void on_admin(struct node_request *remote, enum node_outcome outcome, struct bytes reply)
{
    struct request *request = remote->ctx;
    bool all = request->admin_last > 0;
    bool replied = outcome == NODE_REPLIED && reply.size > 0;
    bool done = replied && reply.at[0] == '+';
    request->remote_active = false;
    request->outcome = outcome_error(replied ? NODE_UNAVAILABLE : outcome, true);
    if (replied) {
        struct bytes sentence = bytes_of(reply.at + 1, reply.size - 1);
        if (!all || !done) copy_text(request->message, sizeof request->message, sentence);
        request->outcome = outcome_of(409, "refused", request->message);
        request->admin_done += done;
    }
    if (all && replied && request->admin_range++ < request->admin_last) {
        if (ask_admin(request)) return;
    } else if (all && replied) {
        sum_up_transfer(request);
    } else if (done) {
        take_done(request);
    }
    go_on(request, STEP_ANSWER);
}

enum MHD_Result request_start_admin(struct request *request)
{
    struct parameter parameters[] = {{.name = "name"}, {.name = "range"}};
    struct node *node = request->http->server->node;
    uint64_t range = 0;
    bool transfer = request->admin == NODE_LEADER_TRANSFER;
    if (request_query(request, parameters, 2) != OK || !parameters[0].found ||
        parameters[0].size == 0 || parameters[0].size >= sizeof request->code ||
        memchr(parameters[0].at, 0, parameters[0].size) != NULL)
        return request_answer_error(request, 400, "bad_query", "say whom: ?name=NAME of a member");
    if (parameters[1].found &&
        (!transfer || !http_decimal(parameter_value(&parameters[1]), node_ranges(node), &range)))
        return request_answer_error(
            request, 400, "bad_query", "?range= is the id of a range, of leader/transfer only");
    copy_text(request->code, sizeof request->code, parameter_value(&parameters[0]));
    request->admin_range = (uint32_t)range;
    request->admin_last = transfer && !parameters[1].found ? node_ranges(node) : 0;
    return ask_admin(request) ? wait_for_others(request) : request_answer(request);
}

/* ---- lists of keys ---- */

struct page {
    struct buffer out;
    uint64_t count;
    int64_t now_ms;
    bool cut; /* the next entry would not fit */
    enum err err;
    uint8_t last[KEY_SIZE_MAX];
    size_t last_size;
};

static enum err append_entry(struct page *page, struct bytes key, const struct value *value)
{
    struct buffer *out = &page->out;
    TRY(buffer_append(out, page->count > 0 ? ",{" : "{", page->count > 0 ? 2 : 1));
    if (http_utf8_valid(key)) {
        TRY(buffer_append(out, "\"key\":", 6));
        TRY(http_json_string(out, key));
    } else {
        TRY(buffer_append(out, "\"key_base64\":\"", 14));
        TRY(http_base64_append(out, key, false));
        TRY(buffer_append(out, "\"", 1));
    }
    TRY(buffer_append(out, ",\"value_base64\":\"", 17));
    TRY(http_base64_append(out, value->bytes, false));
    TRY(buffer_printf(out, "\",\"version\":%llu,\"ttl_ms\":", (unsigned long long)value->version));
    if (value->expires_ms == 0) return buffer_append(out, "null}", 5);
    int64_t left = value->expires_ms - page->now_ms;
    return buffer_printf(out, "%lld}", (long long)(left > 0 ? left : 0));
}

static bool each_entry(void *ctx, struct bytes key, const struct value *value)
{
    struct page *page = ctx;
    if (page->count > 0 && page->out.size + value->bytes.size / 3 * 4 > PAGE_BYTES_MAX) {
        page->cut = true;
        return false;
    }
    page->err = append_entry(page, key, value);
    if (page->err != OK) return false;
    page->count++;
    page->last_size = key.size;
    if (key.size > 0) memcpy(page->last, key.at, key.size);
    return true;
}

static enum err end_page(struct page *page, bool more)
{
    struct buffer *out = &page->out;
    TRY(buffer_append(out, "],\"cursor\":", 11));
    if (!more || page->count == 0) return buffer_append(out, "null}\n", 6);
    TRY(buffer_append(out, "\"", 1));
    TRY(http_base64_append(out, bytes_of(page->last, page->last_size), true));
    return buffer_append(out, "\"}\n", 3);
}

/* ---- the page of a cluster: each range gives its next entries in order, and they are merged */

/* What a range has sent: entries in order of keys. */
struct list_source {
    struct buffer entries;
    struct forward_reader reader;
    struct forward_entry next;
    uint32_t left; /* entries behind `next` */
    bool has_next;
    bool more; /* the range has further ones */
};

struct list {
    struct request *request;
    bool running;
    uint64_t limit;
    uint32_t range_limit; /* entries one range is asked for */
    uint8_t prefix[KEY_SIZE_MAX], after[KEY_SIZE_MAX];
    size_t prefix_size, after_size;
    struct scatter scatter;
    uint32_t source_count;
    struct list_source sources[]; /* by range - 1 */
};

static void list_free(struct request *request)
{
    struct list *list = request->list;
    for (uint32_t i = 0; i < list->source_count; i++)
        buffer_deinit(&list->sources[i].entries);
    free(list);
    request->list = NULL;
}

static void list_cancel(struct request *request)
{
    if (request->list == NULL) return;
    if (request->list->running) scatter_cancel(&request->list->scatter);
    list_free(request);
}

static struct list *list_of(struct scatter *scatter)
{
    return (struct list *)(void *)((char *)scatter - offsetof(struct list, scatter));
}

static void list_ask(struct scatter *scatter, struct scatter_slot *slot, struct buffer *body)
{
    const struct list *list = list_of(scatter);
    (void)slot;
    forward_put_head(body, FORWARD_PAGE);
    forward_put_u16(body, list->request->bucket);
    forward_put_u32(body, list->range_limit);
    forward_put_u32(body, PAGE_BYTES_MAX / 4);
    forward_put_text(body, bytes_of(list->prefix, list->prefix_size));
    forward_put_text(body, bytes_of(list->after, list->after_size));
}

static void source_advance(struct list_source *source)
{
    source->has_next = source->left > 0;
    if (!source->has_next) return;
    source->left--;
    forward_get_entry(&source->reader, &source->next);
    if (source->reader.failed) source->has_next = false;
}

static bool list_take(
    struct scatter *scatter, struct scatter_slot *slot, struct forward_reader *reader)
{
    struct list_source *source = &list_of(scatter)->sources[slot->range - 1];
    source->more = forward_get_u8(reader) != 0;
    source->left = forward_get_u32(reader);
    if (buffer_append(&source->entries, reader->rest.at, reader->rest.size) != OK)
        reader->failed = true;
    source->reader.rest = buffer_view(&source->entries);
    source_advance(source);
    if (source->reader.failed) reader->failed = true;
    return true;
}

/* Merges while it is certain what comes next: up to where a range's part ends though it has more. */
static enum err list_merge(struct list *list, struct page *page, bool *more_out)
{
    uint64_t left = list->limit;
    for (;;) {
        struct list_source *least = NULL;
        bool uncertain = false;
        *more_out = false;
        for (uint32_t i = 0; i < list->source_count; i++) {
            struct list_source *source = &list->sources[i];
            *more_out = *more_out || source->has_next || source->more;
            if (!source->has_next) {
                uncertain = uncertain || source->more;
            } else if (least == NULL || bytes_compare(source->next.key, least->next.key) < 0) {
                least = source;
            }
        }
        if (least == NULL || uncertain || left-- == 0) return OK;
        const struct forward_entry *entry = &least->next;
        struct value value = {
            .bytes = entry->value, .version = entry->version, .expires_ms = entry->expires_ms};
        if (entry->key.size > KEY_SIZE_MAX) return ERR_INVALID;
        if (!each_entry(page, entry->key, &value)) return page->err;
        source_advance(least);
        if (least->reader.failed) return ERR_INVALID;
    }
}

static void list_done(struct scatter *scatter, const char *text)
{
    struct list *list = list_of(scatter);
    struct request *request = list->request;
    list->running = false;
    struct page *page = text == NULL ? calloc(1, sizeof *page) : NULL;
    if (page == NULL) {
        request->outcome = text == NULL
            ? outcome_of(503, "no_memory", "the server is out of memory")
            : strncmp(text, "CLUSTERDOWN", 11) == 0
            ? outcome_of(503, "unavailable", "not every range can be reached")
            : outcome_of(500, "internal", "a range could not be read");
    } else {
        bool more = false;
        page->now_ms = node_now_ms(request->http->server->node);
        enum err err = buffer_append(&page->out, "{\"entries\":[", 12);
        if (err == OK) err = list_merge(list, page, &more);
        if (err == OK) err = end_page(page, more);
        request->value = page->out;
        free(page);
        request->outcome = (struct outcome){.status = 200, .page = true};
        if (err != OK) request->outcome = outcome_of(500, "internal", err_text(err));
        request_count_bytes(request);
    }
    list_free(request);
    go_on(request, STEP_ANSWER);
}

static enum MHD_Result list_from_all(
    struct request *request, struct bytes prefix, struct bytes after, uint64_t limit)
{
    enum { LIMIT_LEAST = 16 };
    struct server *server = request->http->server;
    uint32_t ranges = node_ranges(server->node);
    struct list *list = calloc(1, sizeof *list + ranges * sizeof list->sources[0]);
    if (list == NULL) return request_answer_err(request, ERR_NOMEM);
    request->list = list;
    list->request = request;
    list->source_count = ranges;
    list->limit = limit;
    /* keys are spread by hash: twice the fair share is nearly always enough for a full page */
    list->range_limit = (uint32_t)(2 * limit / ranges + LIMIT_LEAST);
    if (list->range_limit > limit) list->range_limit = (uint32_t)limit;
    memcpy(list->prefix, prefix.at, prefix.size);
    list->prefix_size = prefix.size;
    memcpy(list->after, after.at, after.size);
    list->after_size = after.size;
    list->scatter = (struct scatter){.server = server,
        .first = 1,
        .last = (uint16_t)ranges,
        .ask = list_ask,
        .take = list_take,
        .done = list_done};
    if (scatter_start(&list->scatter) != OK) {
        list_free(request);
        return request_answer_err(request, ERR_NOMEM);
    }
    list->running = true;
    return wait_for_others(request);
}

static enum MHD_Result list_here(
    struct request *request, struct bytes prefix, struct bytes after, uint64_t limit)
{
    struct node *node = request->http->server->node;
    struct page *page = calloc(1, sizeof *page);
    if (page == NULL) return request_answer_err(request, ERR_NOMEM);
    page->now_ms = node_now_ms(node);
    bool more = false;
    enum err err = buffer_append(&page->out, "{\"entries\":[", 12);
    if (err == OK)
        err = node_page(node, 0, request->bucket, prefix, after, limit, &more, each_entry, page);
    if (err == OK) err = page->err;
    if (err == OK) err = end_page(page, more || page->cut);
    struct buffer out = page->out;
    free(page);
    if (err == OK) return request_answer_buffer(request, 200, "application/json", &out);
    buffer_deinit(&out);
    return request_answer_err(request, err);
}

enum MHD_Result request_list_keys(struct request *request)
{
    struct parameter parameters[] = {
        {.name = "prefix"}, {.name = "limit"}, {.name = "cursor"}, {.name = "consistency"}};
    uint64_t limit = PAGE_LIMIT_DEFAULT;
    uint8_t after[KEY_SIZE_MAX];
    size_t after_size = 0;
    bool make;
    if (request_query(request, parameters, 4) != OK || !consistency_valid(&parameters[3]))
        return request_answer_error(
            request, 400, "bad_query", "a list takes ?prefix=, ?limit= and ?cursor=");
    if (parameters[0].size > KEY_SIZE_MAX)
        return request_answer_error(
            request, 400, "key_too_large", "the prefix is over the limit of 400 bytes");
    if (parameters[1].found &&
        (!http_decimal(parameter_value(&parameters[1]), UINT32_MAX, &limit) || limit == 0))
        return request_answer_error(request, 400, "bad_query", "limit is a number from 1 to 1000");
    if (limit > PAGE_LIMIT_MAX) limit = PAGE_LIMIT_MAX;
    if (parameters[2].found &&
        http_base64_decode(parameter_value(&parameters[2]), after, sizeof after, &after_size) != OK)
        return request_answer_error(
            request, 400, "bad_cursor", "this cursor was not given out here");
    switch (find_bucket(request, false, &make)) {
    case FOUND:
        break;
    case DECIDED:
        return request_answer(request);
    case ASKED:
        return wait_for_others(request);
    }
    struct bytes prefix = parameter_value(&parameters[0]), from = bytes_of(after, after_size);
    return node_alone(request->http->server->node) ? list_here(request, prefix, from, limit)
                                                   : list_from_all(request, prefix, from, limit);
}
