#include "server/command_internal.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"

/* Strings. Every command that changes a value looks it up in the pending view, computes the whole new
 * value and stores that: what is logged is the result, never the operation. Values found by call_get()
 * stay where they are until the turn ends, so an old value may be copied into a new one. */

enum set_options {
    SET_NX = 1,
    SET_XX = 2,
    SET_GET = 4,
    SET_KEEPTTL = 8,
    SET_PERSIST = 16,
    SET_EX = 32,
    SET_PX = 64,
    SET_EXAT = 128,
    SET_PXAT = 256,
    SET_EXPIRES = SET_EX | SET_PX | SET_EXAT | SET_PXAT,
};

struct set_request {
    uint32_t options;
    struct bytes expiry; /* if any of SET_EXPIRES is set */
};

/* Parses what follows in SET (from 3) or GETEX (from 2). An expiry option may be repeated, as Redis lets it
 * be; two different ones may not stand together. */
static bool parse_set_options(struct call *call, uint32_t from, bool getex, struct set_request *out)
{
    static const struct {
        const char *word;
        uint32_t option;
        uint32_t against; /* not after any of these */
        bool set, getex, amount;
    } known[] = {
        {"nx", SET_NX, SET_XX, true, false, false},
        {"xx", SET_XX, SET_NX, true, false, false},
        {"get", SET_GET, 0, true, false, false},
        {"keepttl", SET_KEEPTTL, SET_PERSIST | SET_EXPIRES, true, false, false},
        {"persist", SET_PERSIST, SET_KEEPTTL | SET_EXPIRES, false, true, false},
        {"ex", SET_EX, SET_KEEPTTL | SET_PERSIST | (SET_EXPIRES & ~SET_EX), true, true, true},
        {"px", SET_PX, SET_KEEPTTL | SET_PERSIST | (SET_EXPIRES & ~SET_PX), true, true, true},
        {"exat", SET_EXAT, SET_KEEPTTL | SET_PERSIST | (SET_EXPIRES & ~SET_EXAT), true, true, true},
        {"pxat", SET_PXAT, SET_KEEPTTL | SET_PERSIST | (SET_EXPIRES & ~SET_PXAT), true, true, true},
    };
    *out = (struct set_request){0};
    for (uint32_t i = from; i < call->argc; i++) {
        bool taken = false;
        for (size_t k = 0; k < sizeof known / sizeof *known && !taken; k++) {
            if (!(getex ? known[k].getex : known[k].set)) continue;
            if (!argument_is(call->argv[i], known[k].word)) continue;
            if ((out->options & known[k].against) != 0) break;
            if (known[k].amount) {
                if (i + 1 >= call->argc) break;
                out->expiry = call->argv[++i];
            }
            out->options |= known[k].option;
            taken = true;
        }
        if (!taken) {
            reply_syntax_error(call);
            return false;
        }
    }
    return true;
}

static uint32_t expiry_unit(uint32_t options)
{
    uint32_t unit = 0;
    if ((options & (SET_EX | SET_EXAT)) != 0) unit |= EXPIRY_SECONDS;
    if ((options & (SET_EXAT | SET_PXAT)) != 0) unit |= EXPIRY_ABSOLUTE;
    return unit;
}

static void reply_value(struct call *call, enum err found, const struct value *value)
{
    if (found == OK) {
        resp_bulk(call->out, value->bytes);
    } else {
        resp_null(call->out, call->version);
    }
}

static void run_get(struct call *call)
{
    struct value value;
    enum err found = call_get(call, call->argv[1], &value);
    if (found == ERR_CORRUPT) return;
    reply_value(call, found, &value);
}

static void run_set(struct call *call)
{
    struct set_request request;
    struct value old;
    int64_t expires_ms = 0;
    enum err found = ERR_NOT_FOUND;
    if (call->argc > 3) {
        if (!parse_set_options(call, 3, false, &request)) return;
    } else {
        request = (struct set_request){0};
    }
    if ((request.options & SET_EXPIRES) != 0 &&
        !expiry_argument(call, request.expiry, expiry_unit(request.options), &expires_ms)) {
        return;
    }
    if (PLANTED_BUG(15)) request.options |= SET_KEEPTTL;
    if ((request.options & (SET_NX | SET_XX | SET_GET | SET_KEEPTTL)) != 0) {
        found = call_get(call, call->argv[1], &old);
        if (found == ERR_CORRUPT) return;
    }
    if ((request.options & SET_GET) != 0) count_lookup(call, found);
    bool refused = ((request.options & SET_NX) != 0 && found == OK) ||
        ((request.options & SET_XX) != 0 && found != OK);
    if (refused) {
        if ((request.options & SET_GET) != 0) {
            reply_value(call, found, &old);
        } else {
            resp_null(call->out, call->version);
        }
        return;
    }
    if ((request.options & SET_KEEPTTL) != 0 && found == OK) expires_ms = old.expires_ms;
    if (!call_put(call, call->argv[1], call->argv[2], expires_ms)) return;
    if ((request.options & SET_GET) != 0) {
        reply_value(call, found, &old);
    } else {
        reply_ok(call);
    }
}

static void run_setnx(struct call *call)
{
    struct value old;
    enum err found = call_get(call, call->argv[1], &old);
    if (found == ERR_CORRUPT) return;
    if (found == ERR_NOT_FOUND && !call_put(call, call->argv[1], call->argv[2], 0)) return;
    resp_integer(call->out, found == ERR_NOT_FOUND);
}

static void set_with_expiry(struct call *call, uint32_t unit)
{
    int64_t expires_ms;
    if (!expiry_argument(call, call->argv[2], unit, &expires_ms)) return;
    if (!call_put(call, call->argv[1], call->argv[3], expires_ms)) return;
    reply_ok(call);
}

static void run_setex(struct call *call)
{
    set_with_expiry(call, EXPIRY_SECONDS);
}

static void run_psetex(struct call *call)
{
    set_with_expiry(call, 0);
}

static void run_getset(struct call *call)
{
    struct value old;
    enum err found = call_get(call, call->argv[1], &old);
    if (found == ERR_CORRUPT) return;
    count_lookup(call, found);
    if (!call_put(call, call->argv[1], call->argv[2], 0)) return;
    reply_value(call, found, &old);
}

static void run_getdel(struct call *call)
{
    struct value old;
    enum err found = call_get(call, call->argv[1], &old);
    if (found == ERR_CORRUPT) return;
    count_lookup(call, found);
    if (found == OK && !call_delete(call, call->argv[1])) return;
    reply_value(call, found, &old);
}

static void run_getex(struct call *call)
{
    struct set_request request;
    struct value value;
    int64_t expires_ms = 0;
    if (!parse_set_options(call, 2, true, &request)) return;
    enum err found = call_get(call, call->argv[1], &value);
    if (found == ERR_CORRUPT) return;
    count_lookup(call, found);
    if (found == ERR_NOT_FOUND) {
        resp_null(call->out, call->version);
        return;
    }
    bool expires = (request.options & SET_EXPIRES) != 0;
    if (expires &&
        !expiry_argument(call, request.expiry, expiry_unit(request.options), &expires_ms)) {
        return;
    }
    if (expires && expires_ms <= node_now_ms(call->node)) {
        if (!call_delete(call, call->argv[1])) return;
    } else if (expires || ((request.options & SET_PERSIST) != 0 && value.expires_ms != 0)) {
        if (!call_put(call, call->argv[1], value.bytes, expires_ms)) return;
    }
    reply_value(call, OK, &value);
}

static void run_mget(struct call *call)
{
    size_t mark = reply_mark(call);
    resp_array(call->out, call->argc - 1);
    for (uint32_t i = 1; i < call->argc; i++) {
        struct value value;
        enum err found = call_get(call, call->argv[i], &value);
        if (found == ERR_CORRUPT) {
            /* an error amid an array is no reply: it becomes the whole one */
            reply_back(call, mark);
            resp_error(call->out, "ERR a stored value is damaged: it fails its checksum");
            return;
        }
        reply_value(call, found, &value);
    }
}

static bool put_pairs(struct call *call)
{
    for (uint32_t i = 1; i < call->argc; i += 2) {
        if (!call_put(call, call->argv[i], call->argv[i + 1], 0)) return false;
    }
    return true;
}

static void run_mset(struct call *call)
{
    if (call->argc % 2 == 0) {
        reply_wrong_arity(call);
        return;
    }
    if (put_pairs(call)) reply_ok(call);
}

static void run_msetnx(struct call *call)
{
    if (call->argc % 2 == 0) {
        reply_wrong_arity(call);
        return;
    }
    for (uint32_t i = 1; i < call->argc; i += 2) {
        struct value value;
        enum err found = call_get(call, call->argv[i], &value);
        if (found == ERR_CORRUPT) return;
        if (found == OK) {
            resp_integer(call->out, 0);
            return;
        }
    }
    if (put_pairs(call)) resp_integer(call->out, 1);
}

static void run_append(struct call *call)
{
    struct value old;
    struct bytes more = call->argv[2];
    enum err found = call_get(call, call->argv[1], &old);
    if (found == ERR_CORRUPT) return;
    if (found == ERR_NOT_FOUND) old = (struct value){0};
    uint64_t size = (uint64_t)old.bytes.size + more.size;
    if (!value_fits(call, size)) return;
    uint8_t *at = call_put_begin(call, call->argv[1], size, old.expires_ms);
    if (at == NULL) return;
    if (old.bytes.size > 0) memcpy(at, old.bytes.at, old.bytes.size);
    if (more.size > 0) memcpy(at + old.bytes.size, more.at, more.size);
    resp_integer(call->out, (int64_t)size);
}

static void run_strlen(struct call *call)
{
    struct value value;
    enum err found = call_get(call, call->argv[1], &value);
    if (found == ERR_CORRUPT) return;
    resp_integer(call->out, found == OK ? (int64_t)value.bytes.size : 0);
}

static void run_getrange(struct call *call)
{
    struct value value;
    int64_t start, end;
    if (!integer_argument(call, call->argv[2], &start)) return;
    if (!integer_argument(call, call->argv[3], &end)) return;
    enum err found = call_get(call, call->argv[1], &value);
    if (found == ERR_CORRUPT) return;
    int64_t size = found == OK ? (int64_t)value.bytes.size : 0;
    bool none = start < 0 && end < 0 && start > end;
    if (start < 0) start = start < -size ? 0 : start + size;
    if (end < 0) end = end < -size ? 0 : end + size;
    if (end >= size) end = size - 1;
    if (none || size == 0 || start > end) {
        resp_bulk(call->out, bytes_of("", 0));
    } else {
        resp_bulk(call->out, bytes_of(value.bytes.at + start, (size_t)(end - start + 1)));
    }
}

static void run_setrange(struct call *call)
{
    struct value old;
    struct bytes patch = call->argv[3];
    int64_t offset;
    if (!integer_argument(call, call->argv[2], &offset)) return;
    if (offset < 0) {
        resp_error(call->out, "ERR offset is out of range");
        return;
    }
    enum err found = call_get(call, call->argv[1], &old);
    if (found == ERR_CORRUPT) return;
    if (found == ERR_NOT_FOUND) old = (struct value){0};
    if (patch.size == 0) {
        resp_integer(call->out, (int64_t)old.bytes.size);
        return;
    }
    uint64_t end = (uint64_t)offset + patch.size;
    if (!value_fits(call, end)) return;
    uint64_t size = end > old.bytes.size ? end : old.bytes.size;
    uint8_t *at = call_put_begin(call, call->argv[1], size, old.expires_ms);
    if (at == NULL) return;
    if (old.bytes.size > 0) memcpy(at, old.bytes.at, old.bytes.size);
    if (size > old.bytes.size) memset(at + old.bytes.size, 0, size - old.bytes.size);
    memcpy(at + offset, patch.at, patch.size);
    resp_integer(call->out, (int64_t)size);
}

static void add_integer(struct call *call, int64_t amount)
{
    struct value old;
    char text[24];
    int64_t number = 0;
    if (PLANTED_BUG(16)) call->view = NODE_COMMITTED;
    enum err found = call_get(call, call->argv[1], &old);
    if (found == ERR_CORRUPT) return;
    if (found == ERR_NOT_FOUND) old = (struct value){0};
    if (found == OK && !integer_argument(call, old.bytes, &number)) return;
    if (__builtin_add_overflow(number, amount, &number)) {
        resp_error(call->out, "ERR increment or decrement would overflow");
        return;
    }
    int size = snprintf(text, sizeof text, "%lld", (long long)number);
    if (!call_put(call, call->argv[1], bytes_of(text, (size_t)size), old.expires_ms)) return;
    resp_integer(call->out, number);
}

static void run_incr(struct call *call)
{
    add_integer(call, 1);
}

static void run_decr(struct call *call)
{
    add_integer(call, -1);
}

static void run_incrby(struct call *call)
{
    int64_t amount;
    if (!integer_argument(call, call->argv[2], &amount)) return;
    add_integer(call, amount);
}

static void run_decrby(struct call *call)
{
    int64_t amount;
    if (!integer_argument(call, call->argv[2], &amount)) return;
    if (amount == INT64_MIN) {
        resp_error(call->out, "ERR decrement would overflow");
        return;
    }
    add_integer(call, -amount);
}

enum { FLOAT_TEXT_MAX = 5 * 1024 };

static bool float_argument(struct call *call, struct bytes argument, long double *value_out)
{
    char text[FLOAT_TEXT_MAX];
    char *end = NULL;
    bool valid = argument.size > 0 && argument.size < sizeof text;
    if (valid) {
        memcpy(text, argument.at, argument.size);
        text[argument.size] = 0;
        errno = 0;
        long double value = strtold(text, &end);
        valid = !isspace((unsigned char)text[0]) && end == text + argument.size && !isnan(value);
        if (errno == ERANGE && (isinf(value) || value == 0)) valid = false;
        *value_out = value;
    }
    if (!valid) resp_error(call->out, "ERR value is not a valid float");
    return valid;
}

/* 17 digits behind the point, without the zeros at their end, and never an exponent. */
static size_t float_text(long double value, char *text)
{
    int size = snprintf(text, FLOAT_TEXT_MAX, "%.17Lf", value);
    ASSERT(size > 0 && size < FLOAT_TEXT_MAX);
    size_t used = (size_t)size;
    if (memchr(text, '.', used) != NULL) {
        while (text[used - 1] == '0')
            used--;
        if (text[used - 1] == '.') used--;
    }
    if (used == 2 && text[0] == '-' && text[1] == '0') {
        text[0] = '0';
        used = 1;
    }
    return used;
}

static void run_incrbyfloat(struct call *call)
{
    struct value old;
    char text[FLOAT_TEXT_MAX];
    long double number = 0, amount;
    enum err found = call_get(call, call->argv[1], &old);
    if (found == ERR_CORRUPT) return;
    if (found == ERR_NOT_FOUND) old = (struct value){0};
    if (found == OK && !float_argument(call, old.bytes, &number)) return;
    if (!float_argument(call, call->argv[2], &amount)) return;
    number += amount;
    if (isnan(number) || isinf(number)) {
        resp_error(call->out, "ERR increment would produce NaN or Infinity");
        return;
    }
    size_t size = float_text(number, text);
    if (!call_put(call, call->argv[1], bytes_of(text, size), old.expires_ms)) return;
    resp_bulk(call->out, bytes_of(text, size));
}

#define WRITE COMMAND_WRITE | COMMAND_KEYS
#define READ COMMAND_READ | COMMAND_KEYS
#define FAST COMMAND_FAST
#define STRING_WRITE "@write @string @slow"
#define STRING_WRITE_FAST "@write @string @fast"
#define STRING_READ "@read @string @slow"
#define STRING_READ_FAST "@read @string @fast"

const struct command commands_string[] = {
    {"append", 3, WRITE | FAST, 1, 1, 1, run_append, "string", "2.0.0", "O(size of the new value)",
        "Append a value to a key", STRING_WRITE_FAST},
    {"decr", 2, WRITE | FAST, 1, 1, 1, run_decr, "string", "1.0.0", "O(1)",
        "Decrement the integer value of a key by one", STRING_WRITE_FAST},
    {"decrby", 3, WRITE | FAST, 1, 1, 1, run_decrby, "string", "1.0.0", "O(1)",
        "Decrement the integer value of a key by the given number", STRING_WRITE_FAST},
    {"get", 2, READ | FAST, 1, 1, 1, run_get, "string", "1.0.0", "O(1)", "Get the value of a key",
        STRING_READ_FAST},
    {"getdel", 2, WRITE | FAST, 1, 1, 1, run_getdel, "string", "6.2.0", "O(1)",
        "Get the value of a key and delete the key", STRING_WRITE_FAST},
    {"getex", -2, WRITE | FAST, 1, 1, 1, run_getex, "string", "6.2.0", "O(size of the value)",
        "Get the value of a key and optionally set its expiration", STRING_WRITE_FAST},
    {"getrange", 4, READ, 1, 1, 1, run_getrange, "string", "2.4.0", "O(size of the part)",
        "Get a substring of the string stored at a key", STRING_READ},
    {"getset", 3, WRITE | FAST, 1, 1, 1, run_getset, "string", "1.0.0", "O(1)",
        "Set the string value of a key and return its old value", STRING_WRITE_FAST},
    {"incr", 2, WRITE | FAST, 1, 1, 1, run_incr, "string", "1.0.0", "O(1)",
        "Increment the integer value of a key by one", STRING_WRITE_FAST},
    {"incrby", 3, WRITE | FAST, 1, 1, 1, run_incrby, "string", "1.0.0", "O(1)",
        "Increment the integer value of a key by the given amount", STRING_WRITE_FAST},
    {"incrbyfloat", 3, WRITE | FAST, 1, 1, 1, run_incrbyfloat, "string", "2.6.0", "O(1)",
        "Increment the float value of a key by the given amount", STRING_WRITE_FAST},
    {"mget", -2, READ | FAST, 1, -1, 1, run_mget, "string", "1.0.0",
        "O(N) where N is the number of keys", "Get the values of all the given keys",
        STRING_READ_FAST},
    {"mset", -3, WRITE, 1, -1, 2, run_mset, "string", "1.0.1", "O(N) where N is the number of keys",
        "Set multiple keys to multiple values", STRING_WRITE},
    {"msetnx", -3, WRITE, 1, -1, 2, run_msetnx, "string", "1.0.1",
        "O(N) where N is the number of keys",
        "Set multiple keys to multiple values, only if none of the keys exist", STRING_WRITE},
    {"psetex", 4, WRITE, 1, 1, 1, run_psetex, "string", "2.6.0", "O(1)",
        "Set the value and expiration in milliseconds of a key", STRING_WRITE},
    {"set", -3, WRITE, 1, 1, 1, run_set, "string", "1.0.0", "O(1)", "Set the string value of a key",
        STRING_WRITE},
    {"setex", 4, WRITE, 1, 1, 1, run_setex, "string", "2.0.0", "O(1)",
        "Set the value and expiration of a key", STRING_WRITE},
    {"setnx", 3, WRITE | FAST, 1, 1, 1, run_setnx, "string", "1.0.0", "O(1)",
        "Set the value of a key, only if the key does not exist", STRING_WRITE_FAST},
    {"setrange", 4, WRITE, 1, 1, 1, run_setrange, "string", "2.2.0", "O(size of the new value)",
        "Overwrite part of a string at key starting at the specified offset", STRING_WRITE},
    {"strlen", 2, READ | FAST, 1, 1, 1, run_strlen, "string", "2.2.0", "O(1)",
        "Get the length of the value stored in a key", STRING_READ_FAST},
    {"substr", 4, READ, 1, 1, 1, run_getrange, "string", "1.0.0", "O(size of the part)",
        "Get a substring of the string stored at a key", STRING_READ},
    {.name = NULL},
};
