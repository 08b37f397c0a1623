#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"
#include "server/command_internal.h"
#include "server/forward.h"
#include "server/scatter.h"

/* DBSIZE, KEYS, SCAN, RANDOMKEY, FLUSHDB and FLUSHALL of a cluster, and the SELECT that makes a bucket.
 *
 * SCAN goes range by range, and within one in key order: a key that is there from the first to the last call is met
 * exactly once, as on a node alone. Its cursor is a place (range, key); the place before the first key of a
 * range is (range, ""), so a page never ends right behind the empty key: it has room for two. */

enum { KEYS_PAGE = 10000, SCAN_PAGE_MIN = 2, SCAN_RANGES_MAX = 64, ALL_BUCKETS = 0xffff };

enum work { WORK_COUNT, WORK_KEYS, WORK_SCAN, WORK_RANDOM, WORK_CLEAR };

/* What a session waits for. */
struct scatter_command {
    struct session *session;
    enum work work;
    uint16_t bucket;
    bool running; /* `scatter` */
    bool selecting; /* `select` */
    struct scatter scatter;
    struct bucket_request select;
    struct buffer pattern;
    struct buffer found; /* keys as RESP */
    uint64_t found_count;
    uint64_t keys; /* counted in all ranges */
    uint64_t *counts; /* RANDOMKEY: by range */
    bool drawing; /* RANDOMKEY: the counts are known */
    bool strings;
    int64_t wanted; /* SCAN: visits left in this call */
    uint32_t visited_ranges;
    bool resume; /* SCAN: from `after` */
    bool ended; /* SCAN: the last range is done */
    struct buffer after;
};

static void command_free(struct scatter_command *command)
{
    command->session->scatter = NULL;
    buffer_deinit(&command->pattern);
    buffer_deinit(&command->found);
    buffer_deinit(&command->after);
    free(command->counts);
    free(command);
}

static size_t reply_size(const struct session *session)
{
    return session->out.size - session->out.head;
}

/* NULL: no memory, the error is replied. */
static struct scatter_command *command_new(struct call *call)
{
    struct scatter_command *command = calloc(1, sizeof *command);
    if (command == NULL) {
        resp_error(call->out, "ERR out of memory");
        return NULL;
    }
    ASSERT(call->session->scatter == NULL);
    command->session = call->session;
    command->bucket = call->bucket;
    call->session->scatter = command;
    return command;
}

size_t scatter_command_bytes(const struct session *session)
{
    const struct scatter_command *command = session->scatter;
    return command == NULL ? 0 : sizeof *command + command->found.capacity;
}

void scatter_command_cancel(struct session *session)
{
    struct scatter_command *command = session->scatter;
    if (command == NULL) return;
    if (command->running) scatter_cancel(&command->scatter);
    if (command->selecting) bucket_request_cancel(&command->select);
    command_free(command);
}

/* ---- requests and their replies ---- */

static void ask_walk(struct scatter_command *command, struct scatter_slot *slot,
    struct buffer *body, uint32_t limit, bool resume, struct bytes after)
{
    (void)slot;
    forward_put_head(body, FORWARD_KEYS);
    forward_put_u16(body, command->bucket);
    forward_put_u32(body, limit);
    forward_put_text(body, buffer_view(&command->pattern));
    forward_put_u8(body, resume);
    forward_put_text(body, after);
}

static void ask(struct scatter *scatter, struct scatter_slot *slot, struct buffer *body)
{
    struct scatter_command *command = (struct scatter_command *)(void *)((char *)scatter -
        offsetof(struct scatter_command, scatter));
    uint32_t limit;
    switch (command->work) {
    case WORK_COUNT:
        forward_put_head(body, FORWARD_COUNT);
        forward_put_u16(body, command->bucket);
        break;
    case WORK_KEYS:
        ask_walk(command, slot, body, KEYS_PAGE, slot->place.size > 0, buffer_view(&slot->place));
        break;
    case WORK_SCAN:
        limit = command->wanted < KEYS_PAGE ? (uint32_t)command->wanted : KEYS_PAGE;
        if (limit < SCAN_PAGE_MIN) limit = SCAN_PAGE_MIN;
        ask_walk(command, slot, body, limit, command->resume, buffer_view(&command->after));
        break;
    case WORK_RANDOM:
        forward_put_head(body, command->drawing ? FORWARD_RANDOM : FORWARD_COUNT);
        forward_put_u16(body, command->bucket);
        break;
    case WORK_CLEAR:
        forward_put_head(body, FORWARD_CLEAR);
        forward_put_u16(body, command->bucket);
        break;
    }
}

/* Appends the keys of a reply to what was found; true: the range is done, else *after borrows the place. */
static bool take_walk(
    struct scatter_command *command, struct forward_reader *reader, struct bytes *after_out)
{
    bool done = forward_get_u8(reader) != 0;
    *after_out = forward_get_text(reader);
    uint32_t visited = forward_get_u32(reader);
    uint32_t count = forward_get_u32(reader);
    for (uint32_t i = 0; i < count && !reader->failed; i++) {
        struct bytes key = forward_get_text(reader);
        if (!command->strings) continue;
        resp_bulk(&command->found, key);
        command->found_count++;
    }
    command->wanted -= visited;
    if (after_out->size > KEY_SIZE_MAX || command->found.failed) reader->failed = true;
    return done || reader->failed;
}

static bool take_scan(
    struct scatter_command *command, struct scatter_slot *slot, struct forward_reader *reader)
{
    struct bytes after;
    bool done = take_walk(command, reader, &after);
    if (reader->failed) return true;
    buffer_reset(&command->after, KEY_SIZE_MAX);
    command->resume = !done;
    if (!done && buffer_append(&command->after, after.at, after.size) != OK) reader->failed = true;
    struct scatter *scatter = &command->scatter;
    if (done) {
        command->visited_ranges++;
        command->ended = slot->range == node_ranges(scatter->server->node);
    }
    bool enough = command->wanted <= 0 || command->visited_ranges >= SCAN_RANGES_MAX;
    if (done && !command->ended && !enough) {
        /* the next range, in the same slot */
        scatter->last++;
        return true;
    }
    return enough || command->ended;
}

static bool take(struct scatter *scatter, struct scatter_slot *slot, struct forward_reader *reader)
{
    struct scatter_command *command = (struct scatter_command *)(void *)((char *)scatter -
        offsetof(struct scatter_command, scatter));
    struct bytes after;
    uint64_t count;
    switch (command->work) {
    case WORK_COUNT:
        command->keys += forward_get_u64(reader);
        break;
    case WORK_KEYS:
        if (take_walk(command, reader, &after)) break;
        buffer_reset(&slot->place, KEY_SIZE_MAX);
        if (buffer_append(&slot->place, after.at, after.size) != OK) reader->failed = true;
        return false;
    case WORK_SCAN:
        return take_scan(command, slot, reader);
    case WORK_RANDOM:
        if (!command->drawing) {
            count = forward_get_u64(reader);
            command->counts[slot->range] = count;
            command->keys += count;
        } else if (forward_get_u8(reader) != 0) {
            resp_bulk(&command->found, forward_get_text(reader));
            command->found_count = 1;
        } else {
            command->counts[slot->range] = 0; /* all of them had expired */
        }
        break;
    case WORK_CLEAR:
        break;
    }
    return true;
}

/* ---- the end ---- */

static void reply_found(struct scatter_command *command, struct buffer *out)
{
    struct bytes keys = buffer_view(&command->found);
    resp_array(out, command->found_count);
    if (keys.size > 0 && buffer_append(out, keys.at, keys.size) != OK) out->failed = true;
}

static void reply_scan(struct scatter_command *command, struct buffer *out)
{
    uint64_t next = 0;
    if (!command->ended) {
        struct node_position position = {0};
        struct bytes after = buffer_view(&command->after);
        /* the range that was done last is followed by the beginning of the next */
        position.range =
            (uint16_t)(command->resume ? command->scatter.last : command->scatter.last + 1);
        position.key_size = command->resume ? (uint16_t)after.size : 0;
        if (position.key_size > 0) memcpy(position.key, after.at, after.size);
        struct command_state *state = commands_state(command->scatter.server);
        next = state == NULL ? 0 : cursor_keep(state, command->bucket, &position);
        if (next == 0) {
            resp_error(out, "ERR out of memory");
            return;
        }
    }
    char text[24];
    int size = snprintf(text, sizeof text, "%llu", (unsigned long long)next);
    resp_array(out, 2);
    resp_bulk(out, bytes_of(text, (size_t)size));
    reply_found(command, out);
}

static bool start(struct scatter_command *command, uint16_t first, uint16_t last);

/* Draws the range in proportion to its keys; false: there are none left to try. */
static bool draw(struct scatter_command *command)
{
    struct server *server = command->session->server;
    uint32_t ranges = node_ranges(server->node);
    uint64_t keys = 0;
    for (uint32_t range = 1; range <= ranges; range++)
        keys += command->counts[range];
    if (keys == 0) return false;
    uint64_t chosen = commands_random(server, keys);
    uint32_t range = 1;
    while (chosen >= command->counts[range])
        chosen -= command->counts[range++];
    command->drawing = true;
    return start(command, (uint16_t)range, (uint16_t)range);
}

static void done(struct scatter *scatter, const char *error)
{
    struct scatter_command *command = (struct scatter_command *)(void *)((char *)scatter -
        offsetof(struct scatter_command, scatter));
    struct session *session = command->session;
    struct buffer *out = &session->out;
    command->running = false;
    if (error == NULL && command->work == WORK_RANDOM && command->found_count == 0 && draw(command))
        return;
    size_t before = reply_size(session);
    if (error != NULL) {
        resp_error(out, "%s", error);
    } else {
        struct bytes found = buffer_view(&command->found);
        switch (command->work) {
        case WORK_COUNT:
            resp_integer(out, (int64_t)command->keys);
            break;
        case WORK_KEYS:
            reply_found(command, out);
            break;
        case WORK_SCAN:
            reply_scan(command, out);
            break;
        case WORK_RANDOM:
            if (command->found_count == 0) {
                resp_null(out, session->resp_version);
            } else if (buffer_append(out, found.at, found.size) != OK) {
                out->failed = true;
            }
            break;
        case WORK_CLEAR:
            resp_simple(out, "OK");
            break;
        }
    }
    command_free(command);
    forward_finish(session, before);
}

static bool start(struct scatter_command *command, uint16_t first, uint16_t last)
{
    command->scatter = (struct scatter){.server = command->session->server,
        .first = first,
        .last = last,
        .writes = command->work == WORK_CLEAR,
        .ask = ask,
        .take = take,
        .done = done};
    command->running = scatter_start(&command->scatter) == OK;
    return command->running;
}

/* ---- beginnings ---- */

/* Fills in what SCAN's arguments say; false: an error was replied. */
static bool prepare_scan(struct call *call, struct scatter_command *command, uint16_t *first_out)
{
    struct scan_arguments scan;
    struct node_position position = {0};
    if (!scan_arguments(call, &scan)) return false;
    struct command_state *state = commands_state(call->server);
    if (scan.cursor != 0 &&
        (state == NULL || !cursor_find(state, call->bucket, scan.cursor, &position) ||
            position.range == 0 || position.range > node_ranges(call->node))) {
        resp_error(call->out, "ERR invalid cursor");
        return false;
    }
    *first_out = position.range == 0 ? 1 : position.range;
    command->wanted = scan.count;
    command->strings = scan.strings;
    command->resume = position.key_size > 0;
    if (buffer_append(&command->pattern, scan.pattern.at, scan.pattern.size) == OK &&
        buffer_append(&command->after, position.key, position.key_size) == OK)
        return true;
    resp_error(call->out, "ERR out of memory");
    return false;
}

/* False: an error was replied. */
static bool prepare(
    struct call *call, struct scatter_command *command, uint16_t *first_out, uint16_t *last_out)
{
    const char *name = call->command->name;
    *first_out = 1;
    *last_out = (uint16_t)node_ranges(call->node);
    command->strings = true;
    if (strcmp(name, "dbsize") == 0) {
        command->work = WORK_COUNT;
    } else if (strcmp(name, "keys") == 0) {
        command->work = WORK_KEYS;
        if (buffer_append(&command->pattern, call->argv[1].at, call->argv[1].size) != OK) {
            resp_error(call->out, "ERR out of memory");
            return false;
        }
    } else if (strcmp(name, "scan") == 0) {
        command->work = WORK_SCAN;
        if (!prepare_scan(call, command, first_out)) return false;
        *last_out = *first_out;
    } else if (strcmp(name, "randomkey") == 0) {
        command->work = WORK_RANDOM;
        command->counts = calloc(node_ranges(call->node) + 1, sizeof *command->counts);
        if (command->counts == NULL) {
            resp_error(call->out, "ERR out of memory");
            return false;
        }
    } else {
        command->work = WORK_CLEAR;
        if (!flush_options(call)) return false;
        if (strcmp(name, "flushall") == 0) command->bucket = ALL_BUCKETS;
    }
    return true;
}

void scatter_command(struct call *call)
{
    struct session *session = call->session;
    size_t before = reply_size(session);
    uint16_t first, last;
    struct scatter_command *command = command_new(call);
    if (command != NULL && prepare(call, command, &first, &last)) {
        if (start(command, first, last)) {
            session->flags |= SESSION_BLOCKED;
            return;
        }
        resp_error(call->out, "ERR out of memory");
    }
    if (command != NULL) command_free(command);
    session->server->counters.errors++;
    dispatch_finish(session, before, 0);
}

/* ---- SELECT ---- */

static void on_selected(struct bucket_request *select, const char *error, uint16_t id)
{
    struct scatter_command *command = (struct scatter_command *)(void *)((char *)select -
        offsetof(struct scatter_command, select));
    struct session *session = command->session;
    size_t before = reply_size(session);
    if (error != NULL) {
        resp_error(&session->out, "%s", error);
    } else {
        session->bucket = id;
        resp_simple(&session->out, "OK");
    }
    command_free(command);
    forward_finish(session, before);
}

void scatter_select(struct call *call, struct bytes name)
{
    struct scatter_command *command = command_new(call);
    if (command == NULL) return;
    ASSERT(name.size <= NODE_BUCKET_NAME_MAX);
    command->select.server = call->server;
    command->select.done = on_selected;
    memcpy(command->select.name, name.at, name.size);
    if (bucket_request_start(&command->select) == OK) {
        command->selecting = true;
        call->session->flags |= SESSION_BLOCKED;
        return;
    }
    command_free(command);
    resp_error(call->out, "ERR out of memory");
}
