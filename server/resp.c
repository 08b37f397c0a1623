#include "server/resp.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"

/* The parser.
 *
 * Input is what the connection has received and not yet consumed. Parsed arguments are views into
 * it; nothing is copied. A command that is all there is parsed in one pass. When the end is missing,
 * `scanned` remembers how far the pass came, and argv holds the arguments found so far; the next
 * call goes on from there. Between the calls the caller may have moved the bytes (a buffer that
 * grew): the views are then moved by the same distance, once, which the doubling of buffers makes
 * cheap over a command's life.
 *
 * A command over a limit that is not an attack (a value that is too long) is refused: from then on
 * its bytes are consumed as they arrive, so it costs no memory, and its end yields RESP_REFUSED.
 *
 * As Redis does, the two bytes after an argument are taken for CRLF unseen, and a header line ends
 * at its first CR. */

void resp_parser_init(struct resp_parser *parser)
{
    *parser = (struct resp_parser){.arguments_left = -1, .bulk_left = -1};
}

void resp_parser_deinit(struct resp_parser *parser)
{
    free(parser->argv);
    buffer_deinit(&parser->scratch);
    resp_parser_init(parser);
}

void resp_parser_trim(struct resp_parser *parser)
{
    if (parser->arguments_left >= 0) return;
    resp_parser_deinit(parser);
}

bool resp_parser_refuse(struct resp_parser *parser, const char *text)
{
    if (parser->arguments_left < 0) return false;
    if (parser->refusal == NULL) {
        parser->refusal = text;
        /* from here on counted with the CRLF behind it */
        if (parser->bulk_left >= 0) parser->bulk_left += 2;
    }
    return true;
}

/* ready for the next command; memory is kept */
static void start_over(struct resp_parser *parser)
{
    parser->arguments_left = -1;
    parser->bulk_left = -1;
    parser->scanned = 0;
    parser->refusal = NULL;
}

static bool push_argument(struct resp_parser *parser, const uint8_t *at, size_t size)
{
    if (parser->argc == parser->capacity) {
        uint32_t capacity = parser->capacity == 0 ? 16 : parser->capacity * 2;
        struct bytes *argv = realloc(parser->argv, capacity * sizeof *argv);
        if (argv == NULL) return false;
        parser->argv = argv;
        parser->capacity = capacity;
    }
    parser->argv[parser->argc++] = bytes_of(at, size);
    return true;
}

/* Strict decimal: no plus, no spaces, no leading zeros. */
static bool parse_length(const uint8_t *at, size_t size, int64_t *value_out)
{
    bool negative = size > 0 && at[0] == '-';
    if (negative) {
        at++;
        size--;
    }
    if (size == 0 || size > 18 || (at[0] == '0' && (size > 1 || negative))) return false;
    int64_t value = 0;
    for (size_t i = 0; i < size; i++) {
        if (at[i] < '0' || at[i] > '9') return false;
        value = value * 10 + (at[i] - '0');
    }
    *value_out = negative ? -value : value;
    return true;
}

enum line { LINE_MORE, LINE_BAD, LINE_OK };

/* Reads the number of a header line whose first byte (of `type`) is at `from`; *next_out is behind its CRLF. */
static inline enum line header_number(
    struct bytes input, size_t from, int64_t *value_out, size_t *next_out)
{
    /* nearly always one to three digits: read them without a search */
    size_t i = from + 1;
    int64_t value = 0;
    while (i < input.size && i < from + 9 && input.at[i] >= '0' && input.at[i] <= '9')
        value = value * 10 + (input.at[i++] - '0');
    if (i + 1 < input.size && input.at[i] == '\r' && i > from + 1 &&
        (input.at[from + 1] != '0' || i == from + 2)) {
        *value_out = value;
        *next_out = i + 2;
        return LINE_OK;
    }
    const uint8_t *end = memchr(input.at + from, '\r', input.size - from);
    if (end == NULL) return LINE_MORE;
    size_t at = (size_t)(end - input.at);
    if (at + 1 >= input.size) return LINE_MORE;
    if (!parse_length(input.at + from + 1, at - from - 1, value_out)) return LINE_BAD;
    *next_out = at + 2;
    return LINE_OK;
}

static bool is_space(uint8_t byte)
{
    return byte == ' ' || (byte >= '\t' && byte <= '\r');
}

static int hex_digit(uint8_t byte)
{
    if (byte >= '0' && byte <= '9') return byte - '0';
    if (byte >= 'a' && byte <= 'f') return byte - 'a' + 10;
    if (byte >= 'A' && byte <= 'F') return byte - 'A' + 10;
    return -1;
}

static uint8_t unescape(uint8_t byte)
{
    switch (byte) {
    case 'n':
        return '\n';
    case 'r':
        return '\r';
    case 't':
        return '\t';
    case 'b':
        return '\b';
    case 'a':
        return '\a';
    default:
        return byte;
    }
}

/* Copies one word of an inline command from line[*at_in_out] to `target`, quotes and escapes
 * resolved; false: a quote is not closed, or is not followed by a space. */
static bool inline_word(struct bytes line, size_t *position, uint8_t *target, size_t *size_out)
{
    size_t i = *position, used = 0;
    uint8_t quote = 0;
    for (;; i++) {
        if (i == line.size) {
            if (quote != 0) return false;
            break;
        }
        uint8_t byte = line.at[i];
        if (byte == 0) {
            if (quote != 0) return false;
            break;
        }
        if (quote == 0) {
            if (is_space(byte)) break;
            if (byte == '"' || byte == '\'') {
                quote = byte;
            } else {
                target[used++] = byte;
            }
        } else if (byte == quote) {
            i++;
            if (i < line.size && line.at[i] != 0 && !is_space(line.at[i])) return false;
            break;
        } else if (byte == '\\' && i + 1 < line.size) {
            if (quote == '\'') {
                if (line.at[i + 1] == '\'') byte = line.at[++i];
                target[used++] = byte;
            } else if (line.at[i + 1] == 'x' && i + 3 < line.size &&
                hex_digit(line.at[i + 2]) >= 0 && hex_digit(line.at[i + 3]) >= 0) {
                target[used++] =
                    (uint8_t)(hex_digit(line.at[i + 2]) * 16 + hex_digit(line.at[i + 3]));
                i += 3;
            } else {
                target[used++] = unescape(line.at[++i]);
            }
        } else {
            target[used++] = byte;
        }
    }
    *position = i;
    *size_out = used;
    return true;
}

static bool word_is(struct bytes word, const char *upper)
{
    if (word.size != strlen(upper)) return false;
    for (size_t i = 0; i < word.size; i++) {
        uint8_t byte = word.at[i];
        if (byte >= 'a' && byte <= 'z') byte = (uint8_t)(byte - 'a' + 'A');
        if (byte != (uint8_t)upper[i]) return false;
    }
    return true;
}

/* A browser or HTTP client was pointed here, perhaps by somebody who wants a request's body run as
 * commands. "POST" and "Host:" are what Redis looks for; any request line says HTTP/ third. */
static bool is_http(uint32_t argc, const struct bytes *argv)
{
    if (argc == 0) return false;
    if (word_is(argv[0], "POST") || word_is(argv[0], "HOST:")) return true;
    return argc == 3 && bytes_have_prefix(argv[2], bytes_of("HTTP/", 5));
}

static enum resp_result parse_inline(struct resp_parser *parser, const struct resp_limits *limits,
    struct bytes input, size_t *consumed_out, const char **error_out)
{
    size_t from = parser->scanned;
    const uint8_t *end = memchr(input.at + from, '\n', input.size - from);
    size_t length = end == NULL ? input.size : (size_t)(end - input.at);
    if (length > limits->inline_max) {
        *error_out = "ERR Protocol error: too big inline request";
        return RESP_ERROR;
    }
    if (end == NULL) {
        parser->scanned = input.size;
        return RESP_MORE;
    }
    parser->scanned = 0;
    parser->argc = 0;
    *consumed_out = length + 1;
    if (length > 0 && input.at[length - 1] == '\r') length--;

    struct bytes line = bytes_of(input.at, length);
    /* unescaping only shortens */
    parser->scratch.head = parser->scratch.size = 0;
    uint8_t *target = buffer_reserve(&parser->scratch, length + 1);
    if (target == NULL) {
        *error_out = "ERR out of memory";
        return RESP_ERROR;
    }
    size_t position = 0;
    for (;;) {
        while (position < line.size && is_space(line.at[position]))
            position++;
        if (position == line.size || line.at[position] == 0) break;
        size_t size;
        if (!inline_word(line, &position, target, &size)) {
            *error_out = "ERR Protocol error: unbalanced quotes in request";
            return RESP_ERROR;
        }
        if (!push_argument(parser, target, size)) {
            *error_out = "ERR out of memory";
            return RESP_ERROR;
        }
        parser->total += size;
        target += size;
    }
    if (is_http(parser->argc, parser->argv)) return RESP_FOREIGN;
    return RESP_COMMAND;
}

/* the bytes moved since the last call: so do the views into them */
static void move_arguments(struct resp_parser *parser, const uint8_t *base)
{
    uintptr_t distance = (uintptr_t)base - (uintptr_t)parser->base;
    for (uint32_t i = 0; i < parser->argc; i++)
        parser->argv[i].at = (const uint8_t *)((uintptr_t)parser->argv[i].at + distance);
}

static void refuse_size(struct resp_parser *parser, const char *what, uint64_t limit)
{
    if (parser->refusal != NULL) return;
    snprintf(parser->error, sizeof parser->error, "ERR %s is larger than the limit of %llu bytes",
        what, (unsigned long long)limit);
    parser->refusal = parser->error;
}

/* Reads the header of the next argument at `position`; result RESP_COMMAND means that it is read. */
static enum resp_result parse_bulk_header(struct resp_parser *parser,
    const struct resp_limits *limits, struct bytes input, size_t *position, const char **error_out)
{
    struct bytes rest = bytes_of(input.at + *position, input.size - *position);
    if (rest.size > 0 && rest.at[0] != '$') {
        /* the end of the line is looked for first, as Redis does */
        const uint8_t *end = memchr(rest.at, '\r', rest.size);
        if (end == rest.at + rest.size - 1) return RESP_MORE;
        if (end == NULL && rest.size <= limits->inline_max) return RESP_MORE;
        if (end == NULL) {
            *error_out = "ERR Protocol error: too big bulk count string";
            return RESP_ERROR;
        }
        snprintf(parser->error, sizeof parser->error, "ERR Protocol error: expected '$', got '%c'",
            rest.at[0] >= ' ' && rest.at[0] < 0x7f ? rest.at[0] : ' ');
        *error_out = parser->error;
        return RESP_ERROR;
    }
    int64_t size;
    switch (header_number(input, *position, &size, position)) {
    case LINE_MORE:
        if (rest.size <= limits->inline_max) return RESP_MORE;
        *error_out = "ERR Protocol error: too big bulk count string";
        return RESP_ERROR;
    case LINE_BAD:
        *error_out = "ERR Protocol error: invalid bulk length";
        return RESP_ERROR;
    case LINE_OK:
        break;
    }
    if (size < 0 || size > RESP_ANNOUNCED_MAX) {
        *error_out = "ERR Protocol error: invalid bulk length";
        return RESP_ERROR;
    }
    if (size > limits->bulk_max) {
        if (limits->unauthenticated) {
            *error_out = "ERR Protocol error: unauthenticated bulk length";
            return RESP_ERROR;
        }
        refuse_size(parser, "value", limits->bulk_max);
    }
    parser->total += (uint64_t)size;
    if (parser->total > limits->command_max) refuse_size(parser, "command", limits->command_max);
    parser->bulk_left = size;
    return RESP_COMMAND;
}

static enum resp_result parse_multibulk_header(struct resp_parser *parser,
    const struct resp_limits *limits, struct bytes input, size_t *position, const char **error_out)
{
    int64_t count;
    switch (header_number(input, *position, &count, position)) {
    case LINE_MORE:
        if (input.size <= limits->inline_max) return RESP_MORE;
        *error_out = "ERR Protocol error: too big mbulk count string";
        return RESP_ERROR;
    case LINE_BAD:
        *error_out = "ERR Protocol error: invalid multibulk length";
        return RESP_ERROR;
    case LINE_OK:
        break;
    }
    if (count > limits->arguments_max) {
        *error_out = limits->unauthenticated && count <= RESP_ARGUMENTS_MAX
            ? "ERR Protocol error: unauthenticated multibulk length"
            : "ERR Protocol error: invalid multibulk length";
        return RESP_ERROR;
    }
    parser->argc = 0;
    parser->arguments_left = count < 0 ? 0 : count;
    parser->bulk_left = -1;
    return RESP_COMMAND;
}

/* Arguments of a refused command: takes what is there and forgets it. True at the command's end. */
static enum resp_result skip_arguments(struct resp_parser *parser, const struct resp_limits *limits,
    struct bytes input, size_t *position, const char **error_out)
{
    parser->argc = 0;
    while (parser->arguments_left > 0) {
        if (parser->bulk_left < 0) {
            enum resp_result result = parse_bulk_header(parser, limits, input, position, error_out);
            if (result != RESP_COMMAND) return result;
            parser->bulk_left += 2;
        }
        size_t there = input.size - *position;
        size_t take = there < (size_t)parser->bulk_left ? there : (size_t)parser->bulk_left;
        *position += take;
        parser->bulk_left -= (int64_t)take;
        if (parser->bulk_left > 0) return RESP_MORE;
        parser->bulk_left = -1;
        parser->arguments_left--;
    }
    return RESP_COMMAND;
}

static enum resp_result parse_arguments(struct resp_parser *parser,
    const struct resp_limits *limits, struct bytes input, size_t *position, const char **error_out)
{
    while (parser->arguments_left > 0) {
        if (parser->bulk_left < 0) {
            enum resp_result result = parse_bulk_header(parser, limits, input, position, error_out);
            if (result != RESP_COMMAND) return result;
            if (parser->refusal != NULL) {
                parser->bulk_left += 2;
                return RESP_COMMAND;
            }
        }
        size_t size = (size_t)parser->bulk_left;
        if (input.size - *position < size + 2) return RESP_MORE;
        if (!push_argument(parser, input.at + *position, size)) {
            *error_out = "ERR out of memory";
            return RESP_ERROR;
        }
        *position += size + 2;
        parser->bulk_left = -1;
        parser->arguments_left--;
    }
    return RESP_COMMAND;
}

enum resp_result resp_parse(struct resp_parser *parser, const struct resp_limits *limits,
    struct bytes input, size_t *consumed_out, uint32_t *argc_out, const struct bytes **argv_out,
    const char **error_out)
{
    *consumed_out = 0;
    enum resp_result result = RESP_COMMAND;
    size_t position = parser->scanned;
    if (parser->arguments_left < 0) {
        if (input.size == 0) return RESP_MORE;
        parser->total = 0;
        if (input.at[0] != '*') {
            result = parse_inline(parser, limits, input, consumed_out, error_out);
            *argc_out = parser->argc;
            *argv_out = parser->argv;
            return result;
        }
        result = parse_multibulk_header(parser, limits, input, &position, error_out);
        if (result != RESP_COMMAND) return result;
    } else if (parser->argc > 0 && parser->base != input.at) {
        move_arguments(parser, input.at);
    }
    parser->base = input.at;

    bool skipping = parser->refusal != NULL;
    if (!skipping) {
        result = parse_arguments(parser, limits, input, &position, error_out);
        skipping = parser->refusal != NULL;
    }
    if (skipping && result == RESP_COMMAND)
        result = skip_arguments(parser, limits, input, &position, error_out);

    if (result == RESP_ERROR) return result;
    if (result == RESP_MORE) {
        parser->scanned = skipping ? 0 : position;
        if (skipping) *consumed_out = position;
        return result;
    }
    *consumed_out = position;
    *argc_out = parser->argc;
    *argv_out = parser->argv;
    if (skipping) {
        *error_out = parser->refusal;
        result = RESP_REFUSED;
    }
    start_over(parser);
    return result;
}

static const char digit_pairs[] =
    "00010203040506070809101112131415161718192021222324252627282930313233"
    "34353637383940414243444546474849505152535455565758596061626364656667"
    "6869707172737475767778798081828384858687888990919293949596979899";

enum { DIGITS_MAX = 20 };

/* Writes value in decimal so that it ends before `end`; returns where it starts. */
static uint8_t *digits_before(uint8_t *end, uint64_t value)
{
    while (value >= 100) {
        end -= 2;
        memcpy(end, digit_pairs + value % 100 * 2, 2);
        value /= 100;
    }
    if (value >= 10) {
        end -= 2;
        memcpy(end, digit_pairs + value * 2, 2);
    } else {
        *--end = (uint8_t)('0' + value);
    }
    return end;
}

/* Appends type, number, CRLF; leaves room for `more` bytes behind them. NULL: no memory. */
static uint8_t *header(struct buffer *out, char type, bool negative, uint64_t value, size_t more)
{
    uint8_t *at = buffer_reserve(out, DIGITS_MAX + 4 + more);
    if (at == NULL) return NULL;
    uint8_t *start = at;
    *at++ = (uint8_t)type;
    if (negative) *at++ = '-';
    if (value < 10) {
        *at++ = (uint8_t)('0' + value);
    } else {
        uint8_t digits[DIGITS_MAX];
        uint8_t *first = digits_before(digits + sizeof digits, value);
        size_t length = (size_t)(digits + sizeof digits - first);
        memcpy(at, first, length);
        at += length;
    }
    memcpy(at, "\r\n", 2);
    at += 2;
    buffer_wrote(out, (size_t)(at - start));
    return at;
}

static void raw(struct buffer *out, const char *text, size_t size)
{
    uint8_t *at = buffer_reserve(out, size);
    if (at == NULL) return;
    memcpy(at, text, size);
    buffer_wrote(out, size);
}

void resp_simple(struct buffer *out, const char *text)
{
    size_t size = strlen(text);
    uint8_t *at = buffer_reserve(out, size + 3);
    if (at == NULL) return;
    at[0] = '+';
    memcpy(at + 1, text, size);
    memcpy(at + 1 + size, "\r\n", 2);
    buffer_wrote(out, size + 3);
}

void resp_error(struct buffer *out, const char *format, ...)
{
    size_t before = out->size - out->head;
    raw(out, "-", 1);
    va_list arguments;
    va_start(arguments, format);
    enum err err = buffer_vprintf(out, format, arguments);
    va_end(arguments);
    if (err != OK) {
        out->failed = true;
        return;
    }
    for (size_t i = out->head + before; i < out->size; i++) {
        if (out->at[i] < ' ' || out->at[i] == 0x7f) out->at[i] = ' ';
    }
    raw(out, "\r\n", 2);
}

void resp_integer(struct buffer *out, int64_t value)
{
    uint64_t magnitude = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    header(out, ':', value < 0, magnitude, 0);
}

void resp_bulk(struct buffer *out, struct bytes value)
{
    uint8_t *at = header(out, '$', false, value.size, value.size + 2);
    if (at == NULL) return;
    if (value.size > 0) memcpy(at, value.at, value.size);
    memcpy(at + value.size, "\r\n", 2);
    buffer_wrote(out, value.size + 2);
}

void resp_null(struct buffer *out, int version)
{
    if (version >= 3) {
        raw(out, "_\r\n", 3);
    } else {
        raw(out, "$-1\r\n", 5);
    }
}

void resp_null_array(struct buffer *out, int version)
{
    if (version >= 3) {
        raw(out, "_\r\n", 3);
    } else {
        raw(out, "*-1\r\n", 5);
    }
}

void resp_array(struct buffer *out, uint64_t count)
{
    header(out, '*', false, count, 0);
}

void resp_map(struct buffer *out, int version, uint64_t pairs)
{
    header(out, version >= 3 ? '%' : '*', false, version >= 3 ? pairs : pairs * 2, 0);
}

void resp_set(struct buffer *out, int version, uint64_t count)
{
    header(out, version >= 3 ? '~' : '*', false, count, 0);
}

void resp_push(struct buffer *out, int version, uint64_t count)
{
    header(out, version >= 3 ? '>' : '*', false, count, 0);
}

void resp_verbatim(struct buffer *out, int version, struct bytes text)
{
    if (version < 3) {
        resp_bulk(out, text);
        return;
    }
    uint8_t *at = header(out, '=', false, text.size + 4, text.size + 6);
    if (at == NULL) return;
    memcpy(at, "txt:", 4);
    if (text.size > 0) memcpy(at + 4, text.at, text.size);
    memcpy(at + 4 + text.size, "\r\n", 2);
    buffer_wrote(out, text.size + 6);
}
