#define _GNU_SOURCE /* getline */

#include "sim/history.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/hash.h"

struct history_string {
    uint8_t *at;
    uint32_t size;
};

static const char *const kind_names[HISTORY_KINDS] = {
    "GET", "SET", "SETNX", "CAS", "INCR", "APPEND", "DEL", "GETSET"};
static const char *const outcome_names[] = {"ok", "failed", "unknown"};

void history_init(struct history *history)
{
    *history = (struct history){0};
}

static void strings_deinit(struct history_strings *strings)
{
    for (uint32_t i = 1; i < strings->count; i++)
        free(strings->all[i].at);
    free(strings->all);
    free(strings->slots);
}

void history_deinit(struct history *history)
{
    strings_deinit(&history->values);
    strings_deinit(&history->keys);
    free(history->ops);
    *history = (struct history){0};
}

void history_clear(struct history *history)
{
    history->count = 0;
}

/* Strings */

static struct bytes string_bytes(const struct history_strings *strings, uint32_t number)
{
    ASSERT(number > 0 && number < strings->count);
    return bytes_of(strings->all[number].at, strings->all[number].size);
}

static uint32_t *slot_of(const struct history_strings *strings, struct bytes bytes)
{
    uint32_t mask = strings->slot_count - 1;
    uint32_t slot = (uint32_t)hash64(0, bytes) & mask;
    while (strings->slots[slot] != 0 &&
        !bytes_equal(string_bytes(strings, strings->slots[slot]), bytes))
        slot = (slot + 1) & mask;
    return &strings->slots[slot];
}

static bool strings_grow(struct history_strings *strings)
{
    if (strings->count + 1 < strings->capacity) return true;
    uint32_t capacity = strings->capacity == 0 ? 64 : strings->capacity * 2;
    if (capacity > UINT32_C(1) << 30) return false;
    struct history_string *all = realloc(strings->all, capacity * sizeof *all);
    if (all == NULL) return false;
    strings->all = all;
    uint32_t *slots = calloc(capacity * 2, sizeof *slots);
    if (slots == NULL) return false;
    free(strings->slots);
    strings->slots = slots;
    strings->slot_count = capacity * 2;
    strings->capacity = capacity;
    if (strings->count == 0) strings->count = 1;
    for (uint32_t i = 1; i < strings->count; i++)
        *slot_of(strings, string_bytes(strings, i)) = i;
    return true;
}

static uint32_t strings_intern(struct history_strings *strings, struct bytes bytes)
{
    enum { BYTES_MAX = 1 << 30 };
    if (bytes.size > HISTORY_VALUE_MAX || strings->bytes + bytes.size > BYTES_MAX) return 0;
    if (!strings_grow(strings)) return 0;
    uint32_t *slot = slot_of(strings, bytes);
    if (*slot != 0) return *slot;
    uint8_t *copy = malloc(bytes.size + 1);
    if (copy == NULL) return 0;
    if (bytes.size > 0) memcpy(copy, bytes.at, bytes.size);
    strings->all[strings->count] = (struct history_string){copy, (uint32_t)bytes.size};
    strings->bytes += bytes.size;
    *slot = strings->count++;
    return *slot;
}

history_value history_intern(struct history *history, struct bytes bytes)
{
    return strings_intern(&history->values, bytes);
}

struct bytes history_bytes(const struct history *history, history_value value)
{
    return string_bytes(&history->values, value);
}

uint32_t history_key(struct history *history, struct bytes name)
{
    return strings_intern(&history->keys, name);
}

struct bytes history_key_name(const struct history *history, uint32_t key)
{
    if (key == 0 || key >= history->keys.count) return bytes_of("", 0);
    return string_bytes(&history->keys, key);
}

enum err history_add(struct history *history, const struct history_op *op)
{
    if (op->invoke == 0) return ERR_INVALID;
    if (op->outcome == HISTORY_OK && op->ret < op->invoke) return ERR_INVALID;
    if (history->count == history->capacity) {
        uint32_t capacity = history->capacity == 0 ? 256 : history->capacity * 2;
        if (capacity > UINT32_C(1) << 30) return ERR_NOMEM;
        struct history_op *ops = realloc(history->ops, capacity * sizeof *ops);
        if (ops == NULL) return ERR_NOMEM;
        history->ops = ops;
        history->capacity = capacity;
    }
    history->ops[history->count++] = *op;
    return OK;
}

/* The model of a key */

/* As Redis reads integers: no spaces, no plus, no leading zeros. */
static bool number_of(struct bytes text, int64_t *number_out)
{
    char copy[24], back[24];
    if (text.size == 0 || text.size >= sizeof copy) return false;
    memcpy(copy, text.at, text.size);
    copy[text.size] = 0;
    char *end;
    errno = 0;
    long long number = strtoll(copy, &end, 10);
    if (errno != 0 || *end != 0) return false;
    snprintf(back, sizeof back, "%lld", number);
    *number_out = number;
    return strcmp(copy, back) == 0;
}

static bool apply_incr(struct history *history, const struct history_op *op, history_value state,
    history_value *state_out, bool *exhausted)
{
    int64_t number = 0;
    char text[24];
    if (state != HISTORY_NONE && !number_of(history_bytes(history, state), &number)) return false;
    if (__builtin_add_overflow(number, op->delta, &number)) return false;
    if (op->outcome == HISTORY_OK && number != op->answer) return false;
    int size = snprintf(text, sizeof text, "%" PRId64, number);
    *state_out = history_intern(history, bytes_of(text, (size_t)size));
    *exhausted |= *state_out == HISTORY_NONE;
    return *state_out != HISTORY_NONE;
}

static bool apply_append(struct history *history, const struct history_op *op, history_value state,
    history_value *state_out, bool *exhausted)
{
    struct bytes left = state == HISTORY_NONE ? bytes_of("", 0) : history_bytes(history, state);
    struct bytes right = history_bytes(history, op->argument);
    size_t size = left.size + right.size;
    if (op->outcome == HISTORY_OK && (uint64_t)op->answer != size) return false;
    uint8_t *joined = malloc(size + 1);
    *state_out = HISTORY_NONE;
    if (joined != NULL) {
        if (left.size > 0) memcpy(joined, left.at, left.size);
        if (right.size > 0) memcpy(joined + left.size, right.at, right.size);
        *state_out = history_intern(history, bytes_of(joined, size));
        free(joined);
    }
    *exhausted |= *state_out == HISTORY_NONE;
    return *state_out != HISTORY_NONE;
}

bool history_apply(struct history *history, const struct history_op *op, history_value state,
    history_value *state_out, bool *exhausted)
{
    bool known = op->outcome == HISTORY_OK;
    bool there = state != HISTORY_NONE;
    switch (op->kind) {
    case HISTORY_GET:
        *state_out = state;
        return !known || op->result == state;
    case HISTORY_SET:
        *state_out = op->argument;
        return true;
    case HISTORY_SETNX:
        *state_out = there ? state : op->argument;
        return !known || op->answer == !there;
    case HISTORY_CAS:
        *state_out = state == op->expected ? op->argument : state;
        return !known || op->answer == (state == op->expected);
    case HISTORY_INCR:
        return apply_incr(history, op, state, state_out, exhausted);
    case HISTORY_APPEND:
        return apply_append(history, op, state, state_out, exhausted);
    case HISTORY_DEL:
        *state_out = HISTORY_NONE;
        return !known || op->answer == there;
    case HISTORY_GETSET:
        *state_out = op->argument;
        return !known || op->result == state;
    }
    UNREACHABLE();
}

/* Text */

enum { FIELDS_MAX = 12 };

struct line {
    unsigned count;
    char *fields[FIELDS_MAX];
};

static bool line_split(char *text, struct line *line)
{
    line->count = 0;
    for (;;) {
        text += strspn(text, " \t\r\n");
        if (*text == 0) return true;
        if (line->count == FIELDS_MAX) return false;
        line->fields[line->count++] = text;
        text += strcspn(text, " \t\r\n");
        if (*text != 0) *text++ = 0;
    }
}

static bool parse_u64(const char *text, uint64_t max, uint64_t *number_out)
{
    char *end;
    if (*text < '0' || *text > '9') return false;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    if (errno != 0 || *end != 0 || number > max) return false;
    *number_out = number;
    return true;
}

static bool parse_i64(const char *text, int64_t *number_out)
{
    return number_of(bytes_of_text(text), number_out);
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
}

static bool plain(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
        (c != 0 && strchr("._:/+@{}[]~,-", c) != NULL);
}

/* Takes the escapes out, in place. */
static bool unescape(char *text, struct bytes *bytes_out)
{
    size_t size = 0;
    bytes_out->at = (const uint8_t *)text;
    bytes_out->size = 0;
    if (strcmp(text, "%") == 0) return true;
    for (const char *from = text; *from != 0; from++) {
        char c = *from;
        if (c == '%') {
            int high = hex_digit(from[1]);
            int low = high < 0 ? -1 : hex_digit(from[2]);
            if (low < 0) return false;
            c = (char)(high * 16 + low);
            from += 2;
        } else if (!plain(c)) {
            return false;
        }
        text[size++] = c;
    }
    bytes_out->size = size;
    return size <= HISTORY_VALUE_MAX;
}

static bool parse_value(
    struct history *history, char *text, bool none_allowed, history_value *value_out)
{
    struct bytes bytes;
    *value_out = HISTORY_NONE;
    if (strcmp(text, "-") == 0) return none_allowed;
    if (!unescape(text, &bytes)) return false;
    *value_out = history_intern(history, bytes);
    return *value_out != HISTORY_NONE;
}

static bool parse_times(const struct line *line, struct history_op *op)
{
    uint64_t client;
    if (!parse_u64(line->fields[0], UINT64_MAX - 1, &op->invoke) || op->invoke == 0) return false;
    if (!parse_u64(line->fields[2], UINT32_MAX, &client)) return false;
    op->client = (uint32_t)client;
    op->ret = op->invoke;
    if (strcmp(line->fields[1], "-") == 0) return op->outcome != HISTORY_OK;
    return parse_u64(line->fields[1], UINT64_MAX - 1, &op->ret) && op->ret >= op->invoke;
}

static int name_of(const char *text, const char *const *names, int count)
{
    for (int i = 0; i < count; i++) {
        if (strcmp(text, names[i]) == 0) return i;
    }
    return -1;
}

static bool parse_arguments(struct history *history, const struct line *line, struct history_op *op)
{
    char *const *arguments = line->fields + 6;
    switch (op->kind) {
    case HISTORY_GET:
    case HISTORY_DEL:
        return true;
    case HISTORY_SET:
    case HISTORY_SETNX:
    case HISTORY_APPEND:
    case HISTORY_GETSET:
        return parse_value(history, arguments[0], false, &op->argument);
    case HISTORY_CAS:
        return parse_value(history, arguments[0], true, &op->expected) &&
            parse_value(history, arguments[1], false, &op->argument);
    case HISTORY_INCR:
        return parse_i64(arguments[0], &op->delta);
    }
    UNREACHABLE();
}

static bool parse_result(struct history *history, char *text, struct history_op *op)
{
    switch (op->kind) {
    case HISTORY_GET:
    case HISTORY_GETSET:
        return parse_value(history, text, true, &op->result);
    case HISTORY_SETNX:
    case HISTORY_CAS:
    case HISTORY_DEL:
        return parse_i64(text, &op->answer) && (op->answer == 0 || op->answer == 1);
    case HISTORY_INCR:
        return parse_i64(text, &op->answer);
    case HISTORY_APPEND:
        return parse_i64(text, &op->answer) && op->answer >= 0;
    case HISTORY_SET:
        return false; /* it has none */
    }
    UNREACHABLE();
}

/* NULL, or what is wrong with the line. */
static const char *parse_line(
    struct history *history, const struct line *line, struct history_op *op)
{
    static const uint8_t argument_counts[HISTORY_KINDS] = {0, 1, 1, 2, 1, 1, 0, 1};
    struct bytes key;
    if (line->count < 6) return "fewer than six fields";
    int outcome = name_of(line->fields[3], outcome_names, 3);
    int kind = name_of(line->fields[5], kind_names, HISTORY_KINDS);
    if (outcome < 0) return "the outcome is not ok, failed or unknown";
    if (kind < 0) return "the kind of the operation is not known";
    op->outcome = (enum history_outcome)outcome;
    op->kind = (enum history_kind)kind;
    if (!parse_times(line, op)) return "times or client are wrong";
    if (!unescape(line->fields[4], &key)) return "the key is not well written";
    op->key = history_key(history, key);
    if (op->key == 0) return "out of memory";
    unsigned plain_count = 6u + argument_counts[kind];
    bool has_result = line->count == plain_count + 2 && strcmp(line->fields[plain_count], "=") == 0;
    if (line->count != plain_count && !has_result) return "arguments or result do not fit the kind";
    if (!parse_arguments(history, line, op)) return "an argument is not well written";
    bool wants_result = outcome == HISTORY_OK && kind != HISTORY_SET;
    if (wants_result && !has_result) return "the result is missing";
    if (has_result && !wants_result) return "a result where there can be none";
    if (has_result && !parse_result(history, line->fields[plain_count + 1], op))
        return "the result is not well written";
    return NULL;
}

enum err history_read(struct history *history, FILE *file, uint32_t *line_out, const char **why_out)
{
    char *text = NULL;
    size_t capacity = 0;
    enum err err = OK;
    ssize_t size;
    *line_out = 0;
    while (err == OK && (size = getline(&text, &capacity, file)) >= 0) {
        struct line line;
        struct history_op op = {.line = ++*line_out};
        *why_out = "there is a zero byte in it";
        err = ERR_INVALID;
        if (strlen(text) != (size_t)size) break;
        *why_out = "too many fields";
        if (!line_split(text, &line)) break;
        err = OK;
        if (line.count == 0 || line.fields[0][0] == '#') continue;
        *why_out = parse_line(history, &line, &op);
        err = *why_out == NULL ? history_add(history, &op) : ERR_INVALID;
        if (err == ERR_NOMEM) *why_out = "out of memory";
    }
    if (err == OK && ferror(file)) {
        *why_out = "it cannot be read";
        err = ERR_IO;
    }
    free(text);
    return err;
}

static void write_bytes(struct bytes bytes, FILE *file)
{
    if (bytes.size == 0) {
        fputc('%', file);
    } else if (bytes.size == 1 && bytes.at[0] == '-') {
        fputs("%2D", file);
    } else {
        for (size_t i = 0; i < bytes.size; i++) {
            if (plain((char)bytes.at[i]))
                fputc(bytes.at[i], file);
            else
                fprintf(file, "%%%02X", bytes.at[i]);
        }
    }
}

static void write_value(
    const struct history *history, const char *before, history_value value, FILE *file)
{
    fputs(before, file);
    if (value == HISTORY_NONE)
        fputc('-', file);
    else
        write_bytes(history_bytes(history, value), file);
}

static void write_arguments(const struct history *history, const struct history_op *op, FILE *file)
{
    switch (op->kind) {
    case HISTORY_GET:
    case HISTORY_DEL:
        break;
    case HISTORY_CAS:
        write_value(history, " ", op->expected, file);
        write_value(history, " ", op->argument, file);
        break;
    case HISTORY_SET:
    case HISTORY_SETNX:
    case HISTORY_APPEND:
    case HISTORY_GETSET:
        write_value(history, " ", op->argument, file);
        break;
    case HISTORY_INCR:
        fprintf(file, " %" PRId64, op->delta);
        break;
    }
}

void history_write(const struct history *history, const struct history_op *op, FILE *file)
{
    struct bytes name = history_key_name(history, op->key);
    fprintf(file, "%" PRIu64, op->invoke);
    if (op->outcome == HISTORY_UNKNOWN)
        fputs(" -", file);
    else
        fprintf(file, " %" PRIu64, op->ret);
    fprintf(file, " %u %s ", op->client, outcome_names[op->outcome]);
    if (name.size == 0 && op->key >= history->keys.count)
        fprintf(file, "%u", op->key);
    else
        write_bytes(name, file);
    fprintf(file, " %s", kind_names[op->kind]);
    write_arguments(history, op, file);
    if (op->outcome == HISTORY_OK && op->kind != HISTORY_SET) {
        if (op->kind == HISTORY_GET || op->kind == HISTORY_GETSET)
            write_value(history, " = ", op->result, file);
        else
            fprintf(file, " = %" PRId64, op->answer);
    }
    fputc('\n', file);
}
