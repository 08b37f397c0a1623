#include "server/command_internal.h"

/* Expiry. A key's expiry is an absolute time of the node that leads its range, fixed when the command
 * is evaluated; setting it stores the value again, since what the log holds are whole values. */

enum expire_options { EXPIRE_NX = 1, EXPIRE_XX = 2, EXPIRE_GT = 4, EXPIRE_LT = 8 };

static bool parse_expire_options(struct call *call, uint32_t *options_out)
{
    uint32_t options = 0;
    for (uint32_t i = 3; i < call->argc; i++) {
        struct bytes option = call->argv[i];
        if (argument_is(option, "nx")) {
            options |= EXPIRE_NX;
        } else if (argument_is(option, "xx")) {
            options |= EXPIRE_XX;
        } else if (argument_is(option, "gt")) {
            options |= EXPIRE_GT;
        } else if (argument_is(option, "lt")) {
            options |= EXPIRE_LT;
        } else {
            resp_error(call->out, "ERR Unsupported option %.*s",
                (int)(option.size < 128 ? option.size : 128), (const char *)option.at);
            return false;
        }
    }
    if ((options & EXPIRE_NX) != 0 && (options & (EXPIRE_XX | EXPIRE_GT | EXPIRE_LT)) != 0) {
        resp_error(
            call->out, "ERR NX and XX, GT or LT options at the same time are not compatible");
        return false;
    }
    if ((options & EXPIRE_GT) != 0 && (options & EXPIRE_LT) != 0) {
        resp_error(call->out, "ERR GT and LT options at the same time are not compatible");
        return false;
    }
    *options_out = options;
    return true;
}

/* Whether the options let `when` replace the key's expiry. No expiry counts as later than any. */
static bool expire_allowed(uint32_t options, int64_t current, int64_t when)
{
    if ((options & EXPIRE_NX) != 0 && current != 0) return false;
    if ((options & EXPIRE_XX) != 0 && current == 0) return false;
    if ((options & EXPIRE_GT) != 0 && (current == 0 || when <= current)) return false;
    if ((options & EXPIRE_LT) != 0 && current != 0 && when >= current) return false;
    return true;
}

static void expire(struct call *call, uint32_t unit)
{
    struct value value;
    uint32_t options;
    int64_t when;
    int64_t base = (unit & EXPIRY_ABSOLUTE) != 0 ? 0 : node_now_ms(call->node);
    if (!parse_expire_options(call, &options)) return;
    if (!integer_argument(call, call->argv[2], &when)) return;
    /* a time in the past is legal, and deletes; one that does not fit is not */
    bool fits = true;
    if ((unit & EXPIRY_SECONDS) != 0) fits = !__builtin_mul_overflow(when, 1000, &when);
    if (fits) fits = when <= INT64_MAX - base;
    if (!fits) {
        resp_error(call->out, "ERR invalid expire time in '%s' command", call->command->name);
        return;
    }
    when += base;
    enum err found = call_get(call, call->argv[1], &value);
    if (found == ERR_CORRUPT) return;
    if (found == ERR_NOT_FOUND || !expire_allowed(options, value.expires_ms, when)) {
        resp_integer(call->out, 0);
        return;
    }
    if (when <= node_now_ms(call->node)) {
        if (!call_delete(call, call->argv[1])) return;
    } else {
        if (!call_put(call, call->argv[1], value.bytes, when)) return;
    }
    resp_integer(call->out, 1);
}

static void run_expire(struct call *call)
{
    expire(call, EXPIRY_SECONDS);
}

static void run_pexpire(struct call *call)
{
    expire(call, 0);
}

static void run_expireat(struct call *call)
{
    expire(call, EXPIRY_SECONDS | EXPIRY_ABSOLUTE);
}

static void run_pexpireat(struct call *call)
{
    expire(call, EXPIRY_ABSOLUTE);
}

/* -2: no such key, -1: no expiry. Seconds are rounded to the nearest. */
static void remaining(struct call *call, uint32_t unit)
{
    struct value value;
    enum err found = call_get(call, call->argv[1], &value);
    if (found == ERR_CORRUPT) return;
    int64_t answer = -1;
    if (found == ERR_NOT_FOUND) {
        answer = -2;
    } else if (value.expires_ms != 0) {
        answer = value.expires_ms;
        if ((unit & EXPIRY_ABSOLUTE) == 0) answer -= node_now_ms(call->node);
        if (answer < 0) answer = 0;
        if ((unit & EXPIRY_SECONDS) != 0) answer = answer / 1000 + (answer % 1000 >= 500);
    }
    resp_integer(call->out, answer);
}

static void run_ttl(struct call *call)
{
    remaining(call, EXPIRY_SECONDS);
}

static void run_pttl(struct call *call)
{
    remaining(call, 0);
}

static void run_expiretime(struct call *call)
{
    remaining(call, EXPIRY_SECONDS | EXPIRY_ABSOLUTE);
}

static void run_pexpiretime(struct call *call)
{
    remaining(call, EXPIRY_ABSOLUTE);
}

static void run_persist(struct call *call)
{
    struct value value;
    enum err found = call_get(call, call->argv[1], &value);
    if (found == ERR_CORRUPT) return;
    bool persists = found == OK && value.expires_ms != 0;
    if (persists && !call_put(call, call->argv[1], value.bytes, 0)) return;
    resp_integer(call->out, persists);
}

#define WRITE_FAST COMMAND_WRITE | COMMAND_KEYS | COMMAND_FAST
#define READ_FAST COMMAND_READ | COMMAND_KEYS | COMMAND_FAST
#define KEY_WRITE "@keyspace @write @fast"
#define KEY_READ "@keyspace @read @fast"

const struct command commands_expire[] = {
    {"expire", -3, WRITE_FAST, 1, 1, 1, run_expire, "generic", "1.0.0", "O(size of the value)",
        "Set a key's time to live in seconds", KEY_WRITE},
    {"expireat", -3, WRITE_FAST, 1, 1, 1, run_expireat, "generic", "1.2.0", "O(size of the value)",
        "Set the expiration for a key as a UNIX timestamp", KEY_WRITE},
    {"expiretime", 2, READ_FAST, 1, 1, 1, run_expiretime, "generic", "7.0.0", "O(1)",
        "Get the expiration Unix timestamp for a key", KEY_READ},
    {"persist", 2, WRITE_FAST, 1, 1, 1, run_persist, "generic", "2.2.0", "O(size of the value)",
        "Remove the expiration from a key", KEY_WRITE},
    {"pexpire", -3, WRITE_FAST, 1, 1, 1, run_pexpire, "generic", "2.6.0", "O(size of the value)",
        "Set a key's time to live in milliseconds", KEY_WRITE},
    {"pexpireat", -3, WRITE_FAST, 1, 1, 1, run_pexpireat, "generic", "2.6.0",
        "O(size of the value)",
        "Set the expiration for a key as a UNIX timestamp specified in milliseconds", KEY_WRITE},
    {"pexpiretime", 2, READ_FAST, 1, 1, 1, run_pexpiretime, "generic", "7.0.0", "O(1)",
        "Get the expiration Unix timestamp for a key in milliseconds", KEY_READ},
    {"pttl", 2, READ_FAST, 1, 1, 1, run_pttl, "generic", "2.6.0", "O(1)",
        "Get the time to live for a key in milliseconds", KEY_READ},
    {"ttl", 2, READ_FAST, 1, 1, 1, run_ttl, "generic", "1.0.0", "O(1)",
        "Get the time to live for a key in seconds", KEY_READ},
    {.name = NULL},
};
