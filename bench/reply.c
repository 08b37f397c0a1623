#include "bench/reply.h"

/* A reply is a tree of elements; reading it depth first needs only one number, how many elements are
 * still to come: a leaf takes one away, an aggregate of n takes one away and adds n. An attribute
 * (RESP3 '|') announces something beside the reply, so it takes none away. */

static bool parse_number(struct bytes text, int64_t *number_out)
{
    size_t i = 0;
    bool negative = false;
    if (text.size > 0 && (text.at[0] == '-' || text.at[0] == '+')) {
        negative = text.at[0] == '-';
        i = 1;
    }
    if (i == text.size || text.size - i > 18) return false;
    int64_t number = 0;
    for (; i < text.size; i++) {
        if (text.at[i] < '0' || text.at[i] > '9') return false;
        number = number * 10 + (text.at[i] - '0');
    }
    *number_out = negative ? -number : number;
    return true;
}

static void note_null(struct reply_parser *parser, bool top)
{
    if (top) {
        parser->reply.type = '_';
    } else {
        parser->reply.nulls++;
    }
}

/* One header line, type byte first, without CRLF. */
static bool take_line(struct reply_parser *parser, struct bytes line)
{
    char type = (char)line.at[0];
    struct bytes text = bytes_of(line.at + 1, line.size - 1);
    int64_t number = 0;
    /* behind an attribute, the last element left is the reply itself */
    bool top = !parser->busy || (parser->reply.type == 0 && parser->pending == 1);
    if (!parser->busy) {
        parser->busy = true;
        parser->pending = 1;
        parser->pushed = type == '>';
    }
    if (top) {
        parser->reply = (struct reply){.type = type, .text = text};
    }
    switch (type) {
    case '+':
    case '-':
    case ',':
    case '#':
    case '(':
        parser->pending--;
        return true;
    case '_':
        note_null(parser, top);
        parser->pending--;
        return true;
    case ':':
        if (!parse_number(text, &number)) return false;
        if (top) {
            parser->reply.number = number;
        }
        parser->pending--;
        return true;
    case '$':
    case '=':
    case '!':
        if (!parse_number(text, &number) || number < -1) return false;
        parser->pending--;
        if (number == -1) {
            note_null(parser, top);
            return true;
        }
        if (top) {
            parser->reply.number = number;
        } else {
            parser->reply.strings++;
        }
        parser->reply.bytes += (uint64_t)number;
        parser->in_body = true;
        parser->body_left = (uint64_t)number;
        return true;
    case '*':
    case '~':
    case '>':
    case '%':
    case '|':
        if (!parse_number(text, &number) || number < -1 || number > INT32_MAX) return false;
        if (number == -1) {
            parser->pending--;
            note_null(parser, top);
            return true;
        }
        if (top) {
            parser->reply.number = number;
        }
        if (type == '%' || type == '|') {
            number *= 2;
        }
        parser->pending += (uint64_t)number;
        if (type == '|') {
            if (top) {
                parser->reply.type = 0; /* the reply itself comes after the attribute */
            }
            return true;
        }
        parser->pending--;
        return true;
    default:
        return false;
    }
}

/* Skips string bytes; false: not followed by CRLF. */
static bool skip_body(struct reply_parser *parser, struct bytes input, size_t *at)
{
    size_t left = input.size - *at;
    if (left <= parser->body_left) {
        *at += left;
        parser->body_left -= left;
        return true;
    }
    *at += (size_t)parser->body_left;
    parser->body_left = 0;
    if (input.size - *at < 2) return true;
    if (input.at[*at] != '\r' || input.at[*at + 1] != '\n') return false;
    *at += 2;
    parser->in_body = false;
    return true;
}

enum reply_result reply_parse(
    struct reply_parser *parser, struct bytes input, size_t *consumed_out, struct reply *reply_out)
{
    size_t at = 0;
    while (at < input.size) {
        if (parser->in_body) {
            if (!skip_body(parser, input, &at)) return REPLY_BROKEN;
            if (parser->in_body) break;
        } else {
            const uint8_t *end = memchr(input.at + at, '\n', input.size - at);
            if (end == NULL) {
                if (input.size - at > REPLY_LINE_MAX) return REPLY_BROKEN;
                break;
            }
            size_t size = (size_t)(end - (input.at + at));
            if (size < 2 || end[-1] != '\r') return REPLY_BROKEN;
            if (!take_line(parser, bytes_of(input.at + at, size - 1))) return REPLY_BROKEN;
            at += size + 1;
        }
        if (!parser->in_body && parser->pending == 0) {
            parser->busy = false;
            if (parser->pushed) {
                parser->pushed = false;
                continue;
            }
            *reply_out = parser->reply;
            *consumed_out = at;
            return REPLY_DONE;
        }
    }
    *consumed_out = at;
    return REPLY_MORE;
}
