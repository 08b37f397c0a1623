#include "server/command_internal.h"

#include <stdio.h>

#include "server/glob.h"

/* The key space: what exists, names and walks. Walks go in (range, key) order, so a key that is there from
 * the first to the last call of a SCAN is met exactly once, whatever is written meanwhile. */

static void run_del(struct call *call)
{
    int64_t deleted = 0;
    for (uint32_t i = 1; i < call->argc; i++) {
        struct value value;
        size_t mark = reply_mark(call);
        enum err found = call_get(call, call->argv[i], &value);
        /* a damaged value is the one thing left to do with which is deleting it */
        if (found == ERR_CORRUPT) reply_back(call, mark);
        if (found == ERR_NOT_FOUND) continue;
        if (!call_delete(call, call->argv[i])) return;
        deleted++;
    }
    resp_integer(call->out, deleted);
}

static void run_exists(struct call *call)
{
    int64_t count = 0;
    for (uint32_t i = 1; i < call->argc; i++) {
        struct value value;
        enum err found = call_get(call, call->argv[i], &value);
        if (found == ERR_CORRUPT) return;
        if (found == OK) count++;
    }
    resp_integer(call->out, count);
}

static void run_type(struct call *call)
{
    struct value value;
    enum err found = call_get(call, call->argv[1], &value);
    if (found == ERR_CORRUPT) return;
    resp_simple(call->out, found == OK ? "string" : "none");
}

static void rename_key(struct call *call, bool only_new)
{
    struct value value, other;
    struct bytes from = call->argv[1], to = call->argv[2];
    enum err found = call_get(call, from, &value);
    if (found == ERR_CORRUPT) return;
    if (found == ERR_NOT_FOUND) {
        resp_error(call->out, "ERR no such key");
        return;
    }
    bool done = !bytes_equal(from, to);
    if (done && only_new) {
        enum err taken = call_get(call, to, &other);
        if (taken == ERR_CORRUPT) return;
        if (taken == OK) done = false;
    }
    if (done) {
        if (!call_put(call, to, value.bytes, value.expires_ms)) return;
        if (!call_delete(call, from)) return;
    }
    if (only_new) {
        resp_integer(call->out, done);
    } else {
        reply_ok(call);
    }
}

static void run_rename(struct call *call)
{
    rename_key(call, false);
}

static void run_renamenx(struct call *call)
{
    rename_key(call, true);
}

static void run_copy(struct call *call)
{
    struct value value, other;
    bool replace = false;
    uint16_t source = call->bucket, target = call->bucket;
    for (uint32_t i = 3; i < call->argc; i++) {
        if (argument_is(call->argv[i], "replace")) {
            replace = true;
        } else if (argument_is(call->argv[i], "db") && i + 1 < call->argc) {
            int64_t number;
            if (!integer_argument(call, call->argv[++i], &number)) return;
            if (!database_number(call, number, &target)) return;
        } else {
            reply_syntax_error(call);
            return;
        }
    }
    if (source == target && bytes_equal(call->argv[1], call->argv[2])) {
        resp_error(call->out, "ERR source and destination objects are the same");
        return;
    }
    enum err found = call_get(call, call->argv[1], &value);
    if (found == ERR_CORRUPT) return;
    bool copied = found == OK;
    call->bucket = target;
    if (copied && !replace) {
        found = call_get(call, call->argv[2], &other);
        copied = found == ERR_NOT_FOUND;
    }
    if (copied && !call_put(call, call->argv[2], value.bytes, value.expires_ms)) {
        found = ERR_CORRUPT; /* the error is written */
    }
    call->bucket = source;
    if (found != ERR_CORRUPT) resp_integer(call->out, copied);
}

/* KEYS */

struct keys_walk {
    struct call *call;
    struct bytes pattern;
    bool all;
    bool strings; /* SCAN TYPE: the only type there is so far is wanted */
    uint64_t matched;
};

static bool keys_visit(void *ctx, struct bytes key, const struct value *value)
{
    struct keys_walk *walk = ctx;
    (void)value;
    if (walk->strings && (walk->all || glob_match(walk->pattern, key, false))) {
        resp_bulk(walk->call->out, key);
        walk->matched++;
    }
    return true;
}

static void reply_walk_error(struct call *call, enum err err)
{
    if (err == ERR_CORRUPT) {
        resp_error(
            call->out, "ERR a stored value met by the walk is damaged: it fails its checksum");
    } else {
        resp_error(call->out, "ERR the keys cannot be read: %s", err_text(err));
    }
}

static void run_keys(struct call *call)
{
    struct node_position position = {0};
    bool done = false;
    struct keys_walk walk = {.call = call,
        .pattern = call->argv[1],
        .all = call->argv[1].size == 1 && call->argv[1].at[0] == '*',
        .strings = true};
    size_t mark = reply_array_begin(call);
    while (!done) {
        enum err err = node_walk(
            call->node, call->view, call->bucket, &position, UINT64_MAX, &done, keys_visit, &walk);
        if (err != OK) {
            reply_back(call, mark);
            reply_walk_error(call, err);
            return;
        }
    }
    reply_array_end(call, mark, walk.matched);
}

static bool cursor_argument(struct call *call, uint64_t *cursor_out)
{
    struct bytes argument = call->argv[1];
    uint64_t number = 0;
    bool valid = argument.size > 0;
    for (size_t i = 0; i < argument.size && valid; i++) {
        uint8_t byte = argument.at[i];
        valid = byte >= '0' && byte <= '9' && !__builtin_mul_overflow(number, 10, &number) &&
            !__builtin_add_overflow(number, (uint64_t)(byte - '0'), &number);
    }
    if (!valid) resp_error(call->out, "ERR invalid cursor");
    *cursor_out = number;
    return valid;
}

bool scan_arguments(struct call *call, struct scan_arguments *scan_out)
{
    *scan_out =
        (struct scan_arguments){.count = 10, .pattern = bytes_of_text("*"), .strings = true};
    if (!cursor_argument(call, &scan_out->cursor)) return false;
    for (uint32_t i = 2; i < call->argc; i += 2) {
        if (i + 1 >= call->argc) {
            reply_syntax_error(call);
            return false;
        }
        struct bytes option = call->argv[i], argument = call->argv[i + 1];
        if (argument_is(option, "count")) {
            if (!integer_argument(call, argument, &scan_out->count)) return false;
            if (scan_out->count < 1) {
                reply_syntax_error(call);
                return false;
            }
        } else if (argument_is(option, "match")) {
            scan_out->pattern = argument;
        } else if (argument_is(option, "type")) {
            scan_out->strings = argument_is(argument, "string");
        } else {
            reply_syntax_error(call);
            return false;
        }
    }
    return true;
}

static void run_scan(struct call *call)
{
    struct scan_arguments scan;
    if (!scan_arguments(call, &scan)) return;
    uint64_t cursor = scan.cursor;
    int64_t count = scan.count;
    struct node_position position = {0};
    struct keys_walk walk = {.call = call,
        .pattern = scan.pattern,
        .all = scan.pattern.size == 1 && scan.pattern.at[0] == '*',
        .strings = scan.strings};
    struct command_state *state = commands_state(call->server);
    if (state == NULL) {
        resp_error(call->out, "ERR out of memory");
        return;
    }
    if (cursor != 0 && !cursor_find(state, call->bucket, cursor, &position)) {
        resp_error(call->out, "ERR invalid cursor");
        return;
    }
    /* the cursor comes first in the reply and is known last: keys go behind, then both change places */
    size_t mark = reply_mark(call);
    size_t array = reply_array_begin(call);
    bool done = false;
    enum err err = node_walk(
        call->node, call->view, call->bucket, &position, (uint64_t)count, &done, keys_visit, &walk);
    uint64_t next = err == OK && !done ? cursor_keep(state, call->bucket, &position) : 0;
    if (err == OK && !done && next == 0) err = ERR_NOMEM;
    if (err != OK) {
        reply_back(call, mark);
        reply_walk_error(call, err);
        return;
    }
    reply_array_end(call, array, walk.matched);

    struct buffer head = {0};
    resp_array(&head, 2);
    char text[24];
    int size = snprintf(text, sizeof text, "%llu", (unsigned long long)next);
    resp_bulk(&head, bytes_of(text, (size_t)size));
    struct bytes front = buffer_view(&head);
    if (buffer_reserve(call->out, front.size) == NULL) {
        buffer_deinit(&head);
        reply_back(call, mark);
        resp_error(call->out, "ERR out of memory");
        return;
    }
    uint8_t *at = call->out->at + call->out->head + mark;
    memmove(at + front.size, at, reply_mark(call) - mark);
    memcpy(at, front.at, front.size);
    buffer_wrote(call->out, front.size);
    buffer_deinit(&head);
}

/* RANDOMKEY: a random range, then a random number of steps into it, at most so many. Ranges hold keys
 * by hash, so each is a fair sample of all; within a very large range the first keys are likelier. */
enum { RANDOM_STEPS_MAX = 256 };

struct random_walk {
    struct call *call;
    uint64_t skip;
    bool found;
};

static bool random_visit(void *ctx, struct bytes key, const struct value *value)
{
    struct random_walk *walk = ctx;
    (void)value;
    if (walk->skip-- > 0) return true;
    resp_bulk(walk->call->out, key);
    walk->found = true;
    return false;
}

static void run_randomkey(struct call *call)
{
    struct command_state *state = commands_state(call->server);
    uint64_t count = node_count(call->node, call->view, 0, call->bucket);
    uint32_t ranges = node_ranges(call->node);
    if (state != NULL && count > 0) {
        /* few keys: any of all; many: any of the first of a random range, from the start if it is empty */
        for (int attempt = 0; attempt < 3; attempt++) {
            bool few = count <= RANDOM_STEPS_MAX || attempt == 1;
            uint64_t most = few ? count : count / ranges + 1;
            if (attempt == 2) most = 1; /* some are expired: whichever comes first */
            if (most > RANDOM_STEPS_MAX) most = RANDOM_STEPS_MAX;
            struct random_walk walk = {.call = call, .skip = prng_below(&state->random, most)};
            struct node_position position = {0};
            bool done = false;
            if (!few && attempt == 0)
                position.range = (uint16_t)(1 + prng_below(&state->random, ranges));
            while (!done && !walk.found) {
                enum err err = node_walk(call->node, call->view, call->bucket, &position,
                    walk.skip + 1, &done, random_visit, &walk);
                if (err != OK) {
                    reply_walk_error(call, err);
                    return;
                }
            }
            if (walk.found) return;
        }
    }
    resp_null(call->out, call->version);
}

static void run_dbsize(struct call *call)
{
    resp_integer(call->out, (int64_t)node_count(call->node, call->view, 0, call->bucket));
}

bool flush_options(struct call *call)
{
    if (call->argc == 1) return true;
    if (call->argc == 2 &&
        (argument_is(call->argv[1], "sync") || argument_is(call->argv[1], "async"))) {
        return true;
    }
    reply_syntax_error(call);
    return false;
}

enum { RANGES_ALL = 0xffff };

static bool clear(struct call *call, uint16_t bucket)
{
    if (node_count(call->node, call->view, 0, bucket) == 0) return true;
    if (node_clear(call->node, bucket, RANGES_ALL)) return true;
    call->abort = true;
    resp_error(call->out, "OOM no room for this write; nothing was changed");
    return false;
}

static void run_flushdb(struct call *call)
{
    if (!flush_options(call)) return;
    if (clear(call, call->bucket)) reply_ok(call);
}

static void run_flushall(struct call *call)
{
    if (!flush_options(call)) return;
    uint32_t count = node_bucket_count(call->node);
    for (uint32_t bucket = 0; bucket < count; bucket++) {
        if (node_bucket_name(call->node, (uint16_t)bucket) == NULL) continue;
        if (!clear(call, (uint16_t)bucket)) return;
    }
    reply_ok(call);
}

/* OBJECT. Encodings are Redis's names for what the value looks like; here all are the same bytes. */

static void object_value(struct call *call, void (*show)(struct call *, const struct value *))
{
    struct value value;
    enum err found = call_get(call, call->argv[2], &value);
    if (found == ERR_CORRUPT) return;
    if (found == ERR_NOT_FOUND) {
        resp_null(call->out, call->version);
    } else {
        show(call, &value);
    }
}

static void show_encoding(struct call *call, const struct value *value)
{
    enum { EMBEDDED_MAX = 44 };
    int64_t number;
    if (argument_integer(value->bytes, &number)) {
        reply_text(call, "int");
    } else {
        reply_text(call, value->bytes.size <= EMBEDDED_MAX ? "embstr" : "raw");
    }
}

static void show_frequency(struct call *call, const struct value *value)
{
    (void)value;
    resp_error(call->out,
        "ERR An LFU maxmemory policy is not selected, access frequency not tracked. "
        "Please note that when switching between policies at runtime LRU and LFU "
        "data will take some time to adjust.");
}

/* Reads leave no trace here, so a key is never known to be idle. */
static void show_idle(struct call *call, const struct value *value)
{
    (void)value;
    resp_integer(call->out, 0);
}

static void show_references(struct call *call, const struct value *value)
{
    (void)value;
    resp_integer(call->out, 1);
}

static void run_object_encoding(struct call *call)
{
    object_value(call, show_encoding);
}

static void run_object_freq(struct call *call)
{
    object_value(call, show_frequency);
}

static void run_object_idletime(struct call *call)
{
    object_value(call, show_idle);
}

static void run_object_refcount(struct call *call)
{
    object_value(call, show_references);
}

static void run_object_help(struct call *call)
{
    static const char *const lines[] = {
        "ENCODING <key>",
        "    Return the kind of internal representation Redis would choose for the value.",
        "FREQ <key>",
        "    Access frequencies are not tracked: an error.",
        "IDLETIME <key>",
        "    Access times are not tracked: always 0.",
        "REFCOUNT <key>",
        "    Return the number of references of the value: always 1.",
        NULL,
    };
    reply_help(call, lines);
}

#define WRITE COMMAND_WRITE | COMMAND_KEYS
#define READ COMMAND_READ | COMMAND_KEYS
#define FAST COMMAND_FAST
#define KEY_WRITE "@keyspace @write @slow"
#define KEY_WRITE_FAST "@keyspace @write @fast"
#define KEY_READ "@keyspace @read @slow"
#define KEY_READ_FAST "@keyspace @read @fast"
#define PER_KEY "O(N) where N is the number of keys"

const struct command commands_key[] = {
    {"copy", -3, WRITE, 1, 2, 1, run_copy, "generic", "6.2.0", "O(size of the value)", "Copy a key",
        KEY_WRITE},
    {"dbsize", 1, COMMAND_READ | COMMAND_KEYSPACE | FAST, 0, 0, 0, run_dbsize, "server", "1.0.0",
        "O(1)", "Return the number of keys in the selected database", KEY_READ_FAST},
    {"del", -2, WRITE, 1, -1, 1, run_del, "generic", "1.0.0", PER_KEY, "Delete a key", KEY_WRITE},
    {"exists", -2, READ | FAST, 1, -1, 1, run_exists, "generic", "1.0.0", PER_KEY,
        "Determine if a key exists", KEY_READ_FAST},
    {"flushall", -1, COMMAND_WRITE | COMMAND_KEYSPACE, 0, 0, 0, run_flushall, "server", "1.0.0",
        "O(N) where N is the number of buckets", "Remove all keys from all databases",
        "@keyspace @write @slow @dangerous"},
    {"flushdb", -1, COMMAND_WRITE | COMMAND_KEYSPACE, 0, 0, 0, run_flushdb, "server", "1.0.0",
        "O(1)", "Remove all keys from the current database", "@keyspace @write @slow @dangerous"},
    {"keys", 2, COMMAND_READ | COMMAND_KEYSPACE, 0, 0, 0, run_keys, "generic", "1.0.0",
        "O(N) with N being the number of keys in the database",
        "Find all keys matching the given pattern", "@keyspace @read @slow @dangerous"},
    {"object", -2, 0, 0, 0, 0, NULL, "generic", "2.2.3", "Depends on subcommand.",
        "A container for object introspection commands", "@slow"},
    {"object|encoding", 3, READ, 2, 2, 1, run_object_encoding, "generic", "2.2.3", "O(1)",
        "Inspect the internal encoding of an object", KEY_READ},
    {"object|freq", 3, READ, 2, 2, 1, run_object_freq, "generic", "4.0.0", "O(1)",
        "Get the logarithmic access frequency counter of an object", KEY_READ},
    {"object|help", 2, COMMAND_LOADING, 0, 0, 0, run_object_help, "generic", "6.2.0", "O(1)",
        "Show helpful text about the different subcommands", "@keyspace @slow"},
    {"object|idletime", 3, READ, 2, 2, 1, run_object_idletime, "generic", "2.2.3", "O(1)",
        "Get the time since an object was last accessed", KEY_READ},
    {"object|refcount", 3, READ, 2, 2, 1, run_object_refcount, "generic", "2.2.3", "O(1)",
        "Get the number of references to the value of the key", KEY_READ},
    {"randomkey", 1, COMMAND_READ | COMMAND_KEYSPACE, 0, 0, 0, run_randomkey, "generic", "1.0.0",
        "O(1)", "Return a random key from the keyspace", KEY_READ},
    {"rename", 3, WRITE, 1, 2, 1, run_rename, "generic", "1.0.0", "O(size of the value)",
        "Rename a key", KEY_WRITE},
    {"renamenx", 3, WRITE | FAST, 1, 2, 1, run_renamenx, "generic", "1.0.0", "O(size of the value)",
        "Rename a key, only if the new key does not exist", KEY_WRITE_FAST},
    {"scan", -2, COMMAND_READ | COMMAND_KEYSPACE, 0, 0, 0, run_scan, "generic", "2.8.0",
        "O(1) for every call, O(N) for a complete iteration",
        "Incrementally iterate the keys space", KEY_READ},
    {"touch", -2, READ | FAST, 1, -1, 1, run_exists, "generic", "3.2.1", PER_KEY,
        "Return the number of those of the given keys that exist", KEY_READ_FAST},
    {"type", 2, READ | FAST, 1, 1, 1, run_type, "generic", "1.0.0", "O(1)",
        "Determine the type stored at key", KEY_READ_FAST},
    {"unlink", -2, WRITE | FAST, 1, -1, 1, run_del, "generic", "4.0.0", PER_KEY, "Delete a key",
        KEY_WRITE_FAST},
    {.name = NULL},
};
