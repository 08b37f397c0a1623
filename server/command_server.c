#define _GNU_SOURCE
#include "server/command_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/check.h"
#include "server/glob.h"

/* The server itself: INFO, CONFIG, SLOWLOG, MEMORY and what little else Redis's tools ask for. */

/* CONFIG. A parameter is here if the program has it, or if clients and benchmarks ask for it and
 * there is one true answer. Only a few can be set while running; setting one of the others to what it
 * is anyway is accepted, for scripts that do so to be sure. */

struct parameter {
    const char *name;
    const char *fixed; /* or NULL and: */
    void (*get)(const struct server *server, struct buffer *out);
    void (*set)(struct server *server, int64_t value); /* NULL: not while running */
    int64_t least, most;
};

static void get_directory(const struct server *server, struct buffer *out)
{
    buffer_printf(out, "%s", server->config.data == NULL ? "" : server->config.data);
}

static void get_clients_max(const struct server *server, struct buffer *out)
{
    buffer_printf(out, "%u", server->config.connections_max);
}

static void get_port(const struct server *server, struct buffer *out)
{
    const char *colon = strrchr(server->resp_text, ':');
    buffer_printf(out, "%s", colon == NULL ? "0" : colon + 1);
}

static void get_bulk_max(const struct server *server, struct buffer *out)
{
    (void)server;
    buffer_printf(out, "%d", (int)VALUE_SIZE_MAX);
}

static void get_slowlog_us(const struct server *server, struct buffer *out)
{
    uint64_t us = server->config.slowlog_us;
    buffer_printf(out, "%lld", us > INT64_MAX ? -1LL : (long long)us);
}

static void set_slowlog_us(struct server *server, int64_t value)
{
    server->config.slowlog_us = value < 0 ? UINT64_MAX : (uint64_t)value;
}

static void get_slowlog_max(const struct server *server, struct buffer *out)
{
    buffer_printf(out, "%u", server->config.slowlog_max);
}

static void slowlog_trim(struct server *server, uint32_t most);

static void set_slowlog_max(struct server *server, int64_t value)
{
    server->config.slowlog_max = (uint32_t)value;
    slowlog_trim(server, server->config.slowlog_max);
}

static void get_timeout(const struct server *server, struct buffer *out)
{
    buffer_printf(out, "%u", server->config.idle_timeout_s);
}

static void set_timeout(struct server *server, int64_t value)
{
    server->config.idle_timeout_s = (uint32_t)value;
}

static const struct parameter parameters[] = {
    {.name = "appendfsync", .fixed = "always"},
    {.name = "appendonly", .fixed = "yes"},
    {.name = "cluster-enabled", .fixed = "no"},
    {.name = "databases", .fixed = "16"},
    {.name = "dir", .get = get_directory},
    {.name = "maxclients", .get = get_clients_max},
    {.name = "maxmemory", .fixed = "0"},
    {.name = "maxmemory-policy", .fixed = "noeviction"},
    {.name = "notify-keyspace-events", .fixed = ""},
    {.name = "port", .get = get_port},
    {.name = "proto-max-bulk-len", .get = get_bulk_max},
    {.name = "replica-read-only", .fixed = "yes"},
    {.name = "save", .fixed = ""},
    {.name = "slowlog-log-slower-than",
        .get = get_slowlog_us,
        .set = set_slowlog_us,
        .least = -1,
        .most = INT64_MAX},
    {.name = "slowlog-max-len",
        .get = get_slowlog_max,
        .set = set_slowlog_max,
        .least = 0,
        .most = UINT32_MAX},
    {.name = "timeout", .get = get_timeout, .set = set_timeout, .least = 0, .most = INT32_MAX},
};

enum { PARAMETERS = sizeof parameters / sizeof *parameters };

static void parameter_text(
    const struct server *server, const struct parameter *parameter, struct buffer *out)
{
    if (parameter->fixed != NULL) {
        buffer_printf(out, "%s", parameter->fixed);
    } else {
        parameter->get(server, out);
    }
}

static void run_config_get(struct call *call)
{
    struct bytes names[PARAMETERS] = {{0}}; /* a name given whole is shown as it was spelled */
    uint64_t count = 0;
    for (size_t i = 0; i < PARAMETERS; i++) {
        struct bytes name = bytes_of_text(parameters[i].name);
        for (uint32_t k = 2; k < call->argc && names[i].size == 0; k++) {
            if (argument_is(call->argv[k], parameters[i].name)) {
                names[i] = call->argv[k];
            } else if (glob_match(call->argv[k], name, true)) {
                names[i] = name;
            }
        }
        count += names[i].size > 0;
    }
    resp_map(call->out, call->version, count);
    for (size_t i = 0; i < PARAMETERS; i++) {
        if (names[i].size == 0) continue;
        struct buffer text = {0};
        parameter_text(call->server, &parameters[i], &text);
        resp_bulk(call->out, names[i]);
        resp_bulk(call->out, buffer_view(&text));
        buffer_deinit(&text);
    }
}

/* Why the parameter cannot become `value`; NULL: it can. */
static const char *parameter_refusal(const struct server *server, const struct parameter *parameter,
    struct bytes value, int64_t *number_out, char *room, size_t room_size)
{
    if (parameter->set == NULL) {
        struct buffer text = {0};
        parameter_text(server, parameter, &text);
        bool same = bytes_equal(buffer_view(&text), value);
        buffer_deinit(&text);
        return same ? NULL : "can't set immutable config";
    }
    if (!argument_integer(value, number_out)) return "argument couldn't be parsed into an integer";
    if (*number_out < parameter->least || *number_out > parameter->most) {
        snprintf(room, room_size, "argument must be between %lld and %lld inclusive",
            (long long)parameter->least, (long long)parameter->most);
        return room;
    }
    return NULL;
}

static void run_config_set(struct call *call)
{
    /* first all are checked, then all are set: a command that fails has changed nothing */
    int64_t numbers[PARAMETERS];
    bool chosen[PARAMETERS] = {false};
    if (call->argc % 2 != 0) {
        reply_syntax_error(call);
        return;
    }
    for (uint32_t i = 2; i < call->argc; i += 2) {
        struct bytes name = call->argv[i];
        char room[96];
        size_t at = 0;
        while (at < PARAMETERS && !argument_is(name, parameters[at].name))
            at++;
        if (at == PARAMETERS) {
            resp_error(call->out,
                "ERR Unknown option or number of arguments for CONFIG SET - '%.*s'",
                (int)(name.size < 128 ? name.size : 128), (const char *)name.at);
            return;
        }
        const char *refusal = chosen[at] ? "duplicate parameter"
                                         : parameter_refusal(call->server, &parameters[at],
                                               call->argv[i + 1], &numbers[at], room, sizeof room);
        if (refusal != NULL) {
            resp_error(call->out, "ERR CONFIG SET failed (possibly related to argument '%s') - %s",
                parameters[at].name, refusal);
            return;
        }
        chosen[at] = true;
    }
    for (size_t i = 0; i < PARAMETERS; i++) {
        if (chosen[i] && parameters[i].set != NULL) parameters[i].set(call->server, numbers[i]);
    }
    reply_ok(call);
}

static void run_config_resetstat(struct call *call)
{
    struct server *server = call->server;
    uint32_t count;
    (void)command_table(&count);
    server->counters = (struct server_counters){0};
    for (uint32_t i = 0; server->command_stats != NULL && i < count; i++) {
        struct command_stats *stats = &server->command_stats[i];
        stats->calls = stats->failed = stats->rejected = stats->ns = 0;
        if (stats->latency_ns != NULL) histogram_reset(stats->latency_ns);
    }
    reply_ok(call);
}

static void run_config_help(struct call *call)
{
    static const char *const lines[] = {
        "GET <pattern>",
        "    Return parameters matching the glob-like <pattern> and their values.",
        "SET <directive> <value>",
        "    Set the configuration <directive> to <value>.",
        "RESETSTAT",
        "    Reset statistics reported by the INFO command.",
        NULL,
    };
    reply_help(call, lines);
}

/* INFO, TIME, ROLE, WAIT, DEBUG, FUNCTION */

static void run_info(struct call *call)
{
    struct buffer text = {0};
    enum err err = OK;
    if (call->argc == 1) err = report_info(call->server, bytes_of("", 0), &text);
    for (uint32_t i = 1; i < call->argc && err == OK; i++) {
        struct buffer section = {0};
        err = report_info(call->server, call->argv[i], &section);
        struct bytes view = buffer_view(&section);
        if (err == OK && text.size > 0 && view.size > 0) err = buffer_append(&text, "\r\n", 2);
        if (err == OK) err = buffer_append(&text, view.at, view.size);
        buffer_deinit(&section);
    }
    if (err == OK) {
        resp_verbatim(call->out, call->version, buffer_view(&text));
    } else {
        resp_error(call->out, "ERR the report cannot be made: %s", err_text(err));
    }
    buffer_deinit(&text);
}

static void reply_number_text(struct call *call, int64_t number)
{
    char text[24];
    int size = snprintf(text, sizeof text, "%lld", (long long)number);
    resp_bulk(call->out, bytes_of(text, (size_t)size));
}

static void run_time(struct call *call)
{
    const struct clock *clock = &call->server->io.clock;
    int64_t now_ms = clock->wall_ms(clock->ctx);
    resp_array(call->out, 2);
    reply_number_text(call, now_ms / 1000);
    reply_number_text(call, now_ms % 1000 * 1000);
}

static void run_role(struct call *call)
{
    resp_array(call->out, 3);
    reply_text(call, "master");
    resp_integer(call->out, 0);
    resp_array(call->out, 0);
}

static void run_wait(struct call *call)
{
    int64_t replicas, timeout;
    if (!integer_argument(call, call->argv[1], &replicas)) return;
    if (!argument_integer(call->argv[2], &timeout)) {
        resp_error(call->out, "ERR timeout is not an integer or out of range");
        return;
    }
    if (timeout < 0) {
        resp_error(call->out, "ERR timeout is negative");
        return;
    }
    /* whatever was answered is on a majority already; without replies to wait for, so is what was sent before */
    struct node_range range;
    node_range_status(call->node, 1, &range);
    uint32_t voters = 0;
    for (uint32_t i = 0; i < range.replica_count; i++)
        voters += range.replicas[i].voter;
    resp_integer(call->out, voters / 2); /* of the majority, all but the leader */
}

static void run_debug(struct call *call)
{
    if (!call->server->config.debug_command) {
        resp_error(call->out,
            "ERR DEBUG command not allowed. If the enable-debug-command option is set to "
            "\"local\", "
            "you can run it from a local connection, otherwise you need to set this option in the "
            "configuration file, and then restart the server.");
        return;
    }
    if (call->argc == 3 && argument_is(call->argv[1], "sleep")) {
        /* Stops the whole node, as Redis does: it is there to see what a node that hangs does. */
        char text[32] = {0};
        if (call->argv[2].size < sizeof text) memcpy(text, call->argv[2].at, call->argv[2].size);
        double seconds = strtod(text, NULL);
        if (!(seconds > 0)) seconds = 0;
        if (seconds > 3600) seconds = 3600;
        struct timespec left = {.tv_sec = (time_t)seconds,
            .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9)};
        while (nanosleep(&left, &left) != 0 && errno == EINTR) {
        }
        reply_ok(call);
        return;
    }
    resp_error(call->out,
        "ERR unknown subcommand or wrong number of arguments for '%.*s'. Try DEBUG HELP.",
        (int)(call->argv[1].size < 128 ? call->argv[1].size : 128), (const char *)call->argv[1].at);
}

static void run_function_flush(struct call *call)
{
    bool valid = call->argc == 2 ||
        (call->argc == 3 &&
            (argument_is(call->argv[2], "sync") || argument_is(call->argv[2], "async")));
    if (valid) {
        reply_ok(call); /* there are none */
    } else {
        resp_error(call->out, "ERR FUNCTION FLUSH only supports SYNC|ASYNC option");
    }
}

/* MEMORY */

static void run_memory_usage(struct call *call)
{
    enum { OVERHEAD = 48 }; /* of an entry beside its bytes */
    struct value value;
    int64_t samples;
    for (uint32_t i = 3; i < call->argc; i++) {
        if (!argument_is(call->argv[i], "samples") || i + 1 >= call->argc) {
            reply_syntax_error(call);
            return;
        }
        if (!integer_argument(call, call->argv[++i], &samples)) return;
        if (samples < 0) {
            reply_syntax_error(call);
            return;
        }
    }
    enum err found = call_get(call, call->argv[2], &value);
    if (found == ERR_CORRUPT) return;
    if (found == ERR_NOT_FOUND) {
        resp_null(call->out, call->version);
        return;
    }
    resp_integer(call->out,
        (int64_t)(OVERHEAD + round_up(call->argv[2].size, 8) + round_up(value.bytes.size, 8)));
}

static void run_memory_help(struct call *call)
{
    static const char *const lines[] = {
        "USAGE <key> [SAMPLES <count>]",
        "    Return memory in bytes used by <key> and its value.",
        NULL,
    };
    reply_help(call, lines);
}

/* SLOWLOG */

enum { SLOWLOG_ARGUMENTS = 32, SLOWLOG_ARGUMENT_SIZE = 128, SLOWLOG_ROOM = 192 };

static void slowlog_trim(struct server *server, uint32_t most)
{
    struct slowlog_entry **link = &server->slowlog;
    for (uint32_t kept = 0; kept < most && *link != NULL; kept++)
        link = &(*link)->next;
    while (*link != NULL) {
        struct slowlog_entry *entry = *link;
        *link = entry->next;
        free(entry);
        server->slowlog_count--;
    }
}

void slowlog_reset(struct server *server)
{
    slowlog_trim(server, 0);
}

/* Passwords never enter the log of slow commands. */
static bool is_secret(const struct call *call, uint32_t position)
{
    if (strcmp(call->command->name, "auth") == 0) return position >= 1;
    if (strcmp(call->command->name, "hello") != 0) return false;
    for (uint32_t i = 2; i < position; i++) {
        if (argument_is(call->argv[i], "auth")) return position <= i + 2;
    }
    return false;
}

/* One argument as it is kept, in at most SLOWLOG_ROOM bytes. */
static size_t shorten(const struct call *call, uint32_t position, uint32_t kept, uint8_t *at)
{
    struct bytes argument = call->argv[position];
    int size;
    if (kept < call->argc && position == kept - 1) {
        size = snprintf((char *)at, SLOWLOG_ROOM, "... (%u more arguments)", call->argc - kept + 1);
        return (size_t)size;
    }
    if (is_secret(call, position)) argument = bytes_of_text("(redacted)");
    if (argument.size <= SLOWLOG_ARGUMENT_SIZE) {
        if (argument.size > 0) memcpy(at, argument.at, argument.size);
        return argument.size;
    }
    memcpy(at, argument.at, SLOWLOG_ARGUMENT_SIZE);
    size = snprintf((char *)at + SLOWLOG_ARGUMENT_SIZE, SLOWLOG_ROOM - SLOWLOG_ARGUMENT_SIZE,
        "... (%zu more bytes)", argument.size - SLOWLOG_ARGUMENT_SIZE);
    return SLOWLOG_ARGUMENT_SIZE + (size_t)size;
}

void slowlog_record(const struct call *call, uint64_t duration_us)
{
    struct server *server = call->server;
    if (duration_us < server->config.slowlog_us || server->config.slowlog_max == 0) return;
    uint32_t kept = call->argc < SLOWLOG_ARGUMENTS ? call->argc : SLOWLOG_ARGUMENTS;
    uint8_t room[SLOWLOG_ARGUMENTS][SLOWLOG_ROOM];
    size_t sizes[SLOWLOG_ARGUMENTS], total = 0;
    for (uint32_t i = 0; i < kept; i++) {
        sizes[i] = shorten(call, i, kept, room[i]);
        total += sizes[i];
    }
    struct slowlog_entry *entry = malloc(sizeof *entry + kept * sizeof(struct bytes) + total);
    if (entry == NULL) return; /* a log of curiosities is not worth an error */
    entry->id = server->slowlog_next_id++;
    entry->wall_s = node_now_ms(call->node) / 1000;
    entry->duration_us = duration_us;
    entry->argc = kept;
    memcpy(entry->address, call->session->address, sizeof entry->address);
    memcpy(entry->name, call->session->name, sizeof entry->name);
    uint8_t *at = (uint8_t *)&entry->argv[kept];
    for (uint32_t i = 0; i < kept; i++) {
        memcpy(at, room[i], sizes[i]);
        entry->argv[i] = bytes_of(at, sizes[i]);
        at += sizes[i];
    }
    entry->next = server->slowlog;
    server->slowlog = entry;
    server->slowlog_count++;
    slowlog_trim(server, server->config.slowlog_max);
}

static void run_slowlog_get(struct call *call)
{
    struct server *server = call->server;
    int64_t wanted = 10;
    if (call->argc > 3) {
        reply_wrong_arity(call);
        return;
    }
    if (call->argc == 3) {
        if (!argument_integer(call->argv[2], &wanted) || wanted < -1) {
            resp_error(call->out, "ERR count should be greater than or equal to -1");
            return;
        }
    }
    if (wanted == -1 || wanted > (int64_t)server->slowlog_count) wanted = server->slowlog_count;
    resp_array(call->out, (uint64_t)wanted);
    const struct slowlog_entry *entry = server->slowlog;
    for (; wanted > 0; wanted--, entry = entry->next) {
        resp_array(call->out, 6);
        resp_integer(call->out, (int64_t)entry->id);
        resp_integer(call->out, entry->wall_s);
        resp_integer(call->out, (int64_t)entry->duration_us);
        resp_array(call->out, entry->argc);
        for (uint32_t i = 0; i < entry->argc; i++)
            resp_bulk(call->out, entry->argv[i]);
        reply_text(call, entry->address);
        reply_text(call, entry->name);
    }
}

static void run_slowlog_len(struct call *call)
{
    resp_integer(call->out, call->server->slowlog_count);
}

static void run_slowlog_reset(struct call *call)
{
    slowlog_reset(call->server);
    reply_ok(call);
}

static void run_slowlog_help(struct call *call)
{
    static const char *const lines[] = {
        "GET [<count>]",
        "    Return top <count> entries from the slowlog (default: 10, -1 mean all).",
        "    Entries are made of:",
        "    id, timestamp, time in microseconds, arguments array, client IP and port,",
        "    client name",
        "LEN",
        "    Return the length of the slowlog.",
        "RESET",
        "    Reset the slowlog.",
        NULL,
    };
    reply_help(call, lines);
}

#define ADMIN COMMAND_ADMIN | COMMAND_LOADING
#define ADMIN_SLOW "@admin @slow @dangerous"

const struct command commands_server[] = {
    {"config", -2, 0, 0, 0, 0, NULL, "server", "2.0.0", "Depends on subcommand.",
        "A container for server configuration commands", "@slow"},
    {"config|get", -3, ADMIN, 0, 0, 0, run_config_get, "server", "2.0.0",
        "O(N) when N is the number of configuration parameters provided",
        "Get the values of configuration parameters", ADMIN_SLOW},
    {"config|help", 2, COMMAND_LOADING, 0, 0, 0, run_config_help, "server", "5.0.0", "O(1)",
        "Show helpful text about the different subcommands", "@slow"},
    {"config|resetstat", 2, ADMIN, 0, 0, 0, run_config_resetstat, "server", "2.0.0", "O(1)",
        "Reset the stats returned by INFO", ADMIN_SLOW},
    {"config|set", -4, ADMIN, 0, 0, 0, run_config_set, "server", "2.0.0",
        "O(N) when N is the number of configuration parameters provided",
        "Set configuration parameters to the given values", ADMIN_SLOW},
    {"debug", -2, ADMIN, 0, 0, 0, run_debug, "server", "1.0.0", "Depends on subcommand.",
        "A container for debugging commands", ADMIN_SLOW},
    {"function", -2, 0, 0, 0, 0, NULL, "scripting", "7.0.0", "Depends on subcommand.",
        "A container for function commands", "@slow"},
    {"function|flush", -2, 0, 0, 0, 0, run_function_flush, "scripting", "7.0.0", "O(1)",
        "Deleting all functions", "@write @slow @scripting"},
    {"info", -1, COMMAND_LOADING, 0, 0, 0, run_info, "server", "1.0.0", "O(1)",
        "Get information and statistics about the server", "@slow @dangerous"},
    {"memory", -2, 0, 0, 0, 0, NULL, "server", "4.0.0", "Depends on subcommand.",
        "A container for memory diagnostics commands", "@slow"},
    {"memory|help", 2, 0, 0, 0, 0, run_memory_help, "server", "4.0.0", "O(1)",
        "Show helpful text about the different subcommands", "@slow"},
    {"memory|usage", -3, COMMAND_READ | COMMAND_KEYS, 2, 2, 1, run_memory_usage, "server", "4.0.0",
        "O(1)", "Estimate the memory usage of a key", "@read @slow"},
    {"role", 1, COMMAND_FAST | COMMAND_LOADING, 0, 0, 0, run_role, "server", "2.8.12", "O(1)",
        "Return the role of the instance in the context of replication", "@admin @fast @dangerous"},
    {"slowlog", -2, 0, 0, 0, 0, NULL, "server", "2.2.12", "Depends on subcommand.",
        "A container for slow log commands", "@slow"},
    {"slowlog|get", -2, ADMIN, 0, 0, 0, run_slowlog_get, "server", "2.2.12",
        "O(N) where N is the number of entries returned", "Get the slow log's entries", ADMIN_SLOW},
    {"slowlog|help", 2, COMMAND_LOADING, 0, 0, 0, run_slowlog_help, "server", "6.2.0", "O(1)",
        "Show helpful text about the different subcommands", "@slow"},
    {"slowlog|len", 2, ADMIN, 0, 0, 0, run_slowlog_len, "server", "2.2.12", "O(1)",
        "Get the slow log's length", ADMIN_SLOW},
    {"slowlog|reset", 2, ADMIN, 0, 0, 0, run_slowlog_reset, "server", "2.2.12",
        "O(N) where N is the number of entries in the slowlog",
        "Clear all entries from the slow log", ADMIN_SLOW},
    {"time", 1, COMMAND_FAST | COMMAND_LOADING, 0, 0, 0, run_time, "server", "2.6.0", "O(1)",
        "Return the current server time", "@fast"},
    {"wait", 3, 0, 0, 0, 0, run_wait, "generic", "3.0.0", "O(1)",
        "Wait for the synchronous replication of all write commands sent in the context of the "
        "current connection",
        "@slow @connection"},
    {.name = NULL},
};
