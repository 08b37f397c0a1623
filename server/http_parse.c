/* How strict, and why.
 *
 * Two programs that disagree on where a request ends can be played against each other (request
 * smuggling), so whatever RFC 9112 lets a server refuse is refused: a line that does not end in CRLF, a field
 * folded over two lines, a space before the colon, more than one Content-Length even if they agree,
 * Transfer-Encoding that is not exactly "chunked", both of these together. The refusal is final: the caller
 * answers, closes, and never looks at what follows.
 *
 * The checker is a gate before the HTTP library and not a second parser of it: it decides on framing
 * alone and passes the very bytes on that it has judged. A head passes as a whole, so that the library
 * never holds half a request line of somebody who sends one byte a second.
 *
 * Work is linear: `searched` remembers how far a line end was looked for, so a line that arrives byte by
 * byte is not scanned again for each of them. */

#include "server/http_parse.h"

#include "base/check.h"

static bool is_digit(uint8_t byte)
{
    return byte >= '0' && byte <= '9';
}

static int hex_value(uint8_t byte)
{
    if (is_digit(byte)) return byte - '0';
    if (byte >= 'a' && byte <= 'f') return byte - 'a' + 10;
    if (byte >= 'A' && byte <= 'F') return byte - 'A' + 10;
    return -1;
}

/* RFC 9110 5.6.2: what methods and field names are made of */
static bool is_token(uint8_t byte)
{
    if (is_digit(byte) || (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z')) return true;
    return byte != 0 && strchr("!#$%&'*+-.^_`|~", byte) != NULL;
}

static bool is_control(uint8_t byte)
{
    return byte < 0x20 || byte == 0x7f;
}

static uint8_t lower(uint8_t byte)
{
    return byte >= 'A' && byte <= 'Z' ? (uint8_t)(byte + 32) : byte;
}

bool http_names_equal(struct bytes a, struct bytes b)
{
    if (a.size != b.size) return false;
    for (size_t i = 0; i < a.size; i++) {
        if (lower(a.at[i]) != lower(b.at[i])) return false;
    }
    return true;
}

bool http_text_equal(struct bytes text, const char *word)
{
    return http_names_equal(text, bytes_of_text(word));
}

bool http_decimal(struct bytes text, uint64_t max, uint64_t *value_out)
{
    uint64_t value = 0;
    if (text.size == 0 || text.size > 20) return false;
    for (size_t i = 0; i < text.size; i++) {
        if (!is_digit(text.at[i])) return false;
        uint64_t digit = (uint64_t)(text.at[i] - '0');
        if (value > (max - digit) / 10 || digit > max) return false;
        value = value * 10 + digit;
    }
    *value_out = value;
    return true;
}

static struct bytes trim(struct bytes text)
{
    while (text.size > 0 && (text.at[0] == ' ' || text.at[0] == '\t')) {
        text.at++;
        text.size--;
    }
    while (text.size > 0 && (text.at[text.size - 1] == ' ' || text.at[text.size - 1] == '\t'))
        text.size--;
    return text;
}

/* ---- framing ---- */

void http_framing_init(struct http_framing *framing, uint64_t body_max)
{
    *framing = (struct http_framing){.state = HTTP_REQUEST_LINE, .body_max = body_max};
}

static enum http_feed refuse(struct http_framing *framing, int status, const char *reason)
{
    framing->state = HTTP_REFUSED;
    framing->status = status;
    framing->reason = reason;
    return HTTP_FEED_ERROR;
}

static enum http_feed check_request_line(struct http_framing *framing, struct bytes line)
{
    size_t at = 0;
    while (at < line.size && is_token(line.at[at]))
        at++;
    if (at == 0 || at > 32 || at == line.size || line.at[at] != ' ')
        return refuse(framing, 400, "the request line does not begin with a method and a space");
    struct bytes method = bytes_of(line.at, at);
    size_t start = ++at;
    while (at < line.size && line.at[at] != ' ') {
        if (is_control(line.at[at]) || line.at[at] == '#')
            return refuse(framing, 400, "the request target holds a control byte or a fragment");
        at++;
    }
    struct bytes target = bytes_of(line.at + start, at - start);
    if (target.size == 0 || at == line.size)
        return refuse(framing, 400, "the request line has no target or no version");
    struct bytes version = bytes_of(line.at + at + 1, line.size - at - 1);
    if (version.size != 8 || memcmp(version.at, "HTTP/", 5) != 0 || !is_digit(version.at[5]) ||
        version.at[6] != '.' || !is_digit(version.at[7]))
        return refuse(framing, 400, "the request line does not end in an HTTP version");
    if (version.at[5] != '1' || version.at[7] > '1')
        return refuse(framing, 505, "only HTTP/1.0 and HTTP/1.1 are spoken here");
    framing->minor = version.at[7] - '0';
    struct http_target parts;
    if (http_target_parse(target, &parts) == OK) {
        framing->host_of_target = parts.authority.size > 0;
    } else if (!(target.size == 1 && target.at[0] == '*' &&
                   bytes_equal(method, bytes_of_text("OPTIONS")))) {
        return refuse(framing, 400, "the request target must begin with '/'");
    }
    return HTTP_FEED_MORE;
}

static enum http_feed check_field(struct http_framing *framing, struct bytes line, bool trailer)
{
    if (++framing->fields > HTTP_FIELDS_MAX)
        return refuse(framing, 431, "more than 100 header fields");
    if (line.at[0] == ' ' || line.at[0] == '\t')
        return refuse(framing, 400, "a header field is folded over several lines");
    size_t at = 0;
    while (at < line.size && is_token(line.at[at]))
        at++;
    if (at == 0 || at == line.size || line.at[at] != ':')
        return refuse(framing, 400, "a header field is not 'name: value'");
    struct bytes name = bytes_of(line.at, at);
    struct bytes value = trim(bytes_of(line.at + at + 1, line.size - at - 1));
    for (size_t i = 0; i < value.size; i++) {
        if (is_control(value.at[i]) && value.at[i] != '\t')
            return refuse(framing, 400, "a header field holds a control byte");
    }
    bool length = http_text_equal(name, "content-length");
    bool encoding = http_text_equal(name, "transfer-encoding");
    bool host = http_text_equal(name, "host");
    if (!length && !encoding && !host) return HTTP_FEED_MORE;
    if (trailer) return refuse(framing, 400, "a trailer holds a field that belongs into the head");
    if (host) {
        struct bytes host_name;
        uint16_t port;
        if (framing->host) return refuse(framing, 400, "more than one Host");
        if (http_host_parse(value, &host_name, &port) != OK)
            return refuse(framing, 400, "Host is not a host name");
        framing->host = true;
        return HTTP_FEED_MORE;
    }
    if (length) {
        if (framing->length) return refuse(framing, 400, "more than one Content-Length");
        if (!http_decimal(value, UINT64_MAX / 2, &framing->left))
            return refuse(framing, 400, "Content-Length is not a number");
        framing->length = true;
    } else {
        if (framing->chunked) return refuse(framing, 400, "more than one Transfer-Encoding");
        if (!http_text_equal(value, "chunked"))
            return refuse(framing, 400, "Transfer-Encoding is not exactly 'chunked'");
        framing->chunked = true;
    }
    if (framing->length && framing->chunked)
        return refuse(framing, 400, "Content-Length together with Transfer-Encoding");
    return HTTP_FEED_MORE;
}

static enum http_feed end_of_head(struct http_framing *framing)
{
    if (framing->minor >= 1 && !framing->host)
        return refuse(framing, 400, "an HTTP/1.1 request needs a Host");
    if (framing->minor == 0 && framing->chunked)
        return refuse(framing, 400, "Transfer-Encoding in an HTTP/1.0 request");
    if (framing->chunked) {
        framing->state = HTTP_CHUNK_SIZE;
        return HTTP_FEED_MORE;
    }
    if (framing->left > framing->body_max)
        return refuse(framing, 413, "the body is larger than the limit of 16777216 bytes");
    framing->body = framing->left;
    framing->state = framing->left > 0 ? HTTP_BODY : HTTP_DONE;
    return HTTP_FEED_MORE;
}

/* Size line of a chunk, without its CRLF. */
static enum http_feed check_chunk_size(struct http_framing *framing, struct bytes line)
{
    uint64_t size = 0;
    size_t at = 0;
    for (; at < line.size && hex_value(line.at[at]) >= 0; at++) {
        if (at == 15) return refuse(framing, 400, "a chunk size has more than 15 digits");
        size = size << 4 | (uint64_t)hex_value(line.at[at]);
    }
    if (at == 0 || (at < line.size && line.at[at] != ';'))
        return refuse(framing, 400, "a chunk does not begin with its size in hexadecimal");
    if (line.size - at > HTTP_CHUNK_EXTENSION_MAX)
        return refuse(framing, 400, "a chunk extension is longer than 256 bytes");
    for (size_t i = at; i < line.size; i++) {
        if (is_control(line.at[i]) && line.at[i] != '\t')
            return refuse(framing, 400, "a chunk extension holds a control byte");
    }
    if (size > framing->body_max - framing->body)
        return refuse(framing, 413, "the body is larger than the limit of 16777216 bytes");
    framing->body += size;
    framing->left = size;
    framing->fields = 0;
    framing->fields_size = 0;
    framing->state = size > 0 ? HTTP_CHUNK_DATA : HTTP_TRAILER;
    return HTTP_FEED_MORE;
}

/* Finds a whole line at *at. True: *line_out is it without CRLF, and *at is behind it. False: not there yet
 * (*at as it was) or refused. */
static bool next_line(struct http_framing *framing, struct bytes input, size_t *at,
    struct bytes *line_out, size_t limit, int status, const char *reason)
{
    size_t from = framing->searched > *at ? framing->searched : *at;
    const uint8_t *end =
        from < input.size ? memchr(input.at + from, '\n', input.size - from) : NULL;
    size_t size = (end == NULL ? input.size : (size_t)(end - input.at)) - *at;
    if (size > limit + 1) { /* the CR is not counted */
        refuse(framing, status, reason);
        return false;
    }
    if (end == NULL) {
        framing->searched = input.size;
        return false;
    }
    if (size == 0 || end[-1] != '\r') {
        refuse(framing, 400, "a line does not end in CRLF");
        return false;
    }
    *line_out = bytes_of(input.at + *at, size - 1);
    *at += size + 1;
    framing->searched = *at;
    return true;
}

enum http_feed http_framing_feed(
    struct http_framing *framing, struct bytes input, size_t *skip_out, size_t *pass_out)
{
    size_t passed = 0; /* of input, may go on */
    struct bytes line;
    *skip_out = 0;
    *pass_out = 0;
    for (;;) {
        switch (framing->state) {
        case HTTP_REQUEST_LINE: {
            size_t at = framing->line;
            /* another protocol's greeting need not wait for a line end that never comes */
            if (input.size > 0 && !is_token(input.at[0]) && input.at[0] != '\r' &&
                input.at[0] != '\n') {
                (void)refuse(framing, 400, "the request line does not begin with a method");
                break;
            }
            if (!next_line(framing, input, &at, &line, HTTP_REQUEST_LINE_MAX, 414,
                    "the request line is longer than 8192 bytes"))
                goto wait;
            if (line.size == 0 && !framing->blank) {
                /* RFC 9112 2.2: one empty line before a request is forgiven */
                framing->blank = true;
                framing->searched = 0;
                *skip_out = *pass_out = at;
                return HTTP_FEED_MORE;
            }
            framing->line = at;
            framing->state = HTTP_FIELDS;
            (void)check_request_line(framing, line);
            break;
        }
        case HTTP_FIELDS: {
            size_t at = framing->line;
            if (!next_line(framing, input, &at, &line, HTTP_HEADERS_MAX - framing->fields_size, 431,
                    "the header fields are longer than 16384 bytes"))
                goto wait;
            framing->fields_size += at - framing->line;
            framing->line = at;
            if (framing->fields_size > HTTP_HEADERS_MAX) {
                (void)refuse(framing, 431, "the header fields are longer than 16384 bytes");
            } else if (line.size > 0) {
                (void)check_field(framing, line, false);
            } else if (end_of_head(framing) == HTTP_FEED_MORE) {
                passed = at;
            }
            break;
        }
        case HTTP_BODY:
        case HTTP_CHUNK_DATA: {
            size_t take =
                input.size - passed < framing->left ? input.size - passed : (size_t)framing->left;
            passed += take;
            framing->left -= take;
            if (framing->left > 0) goto wait;
            framing->state = framing->state == HTTP_BODY ? HTTP_DONE : HTTP_CHUNK_END;
            break;
        }
        case HTTP_CHUNK_END:
            if (input.size - passed >= 1 && input.at[passed] != '\r') {
                (void)refuse(framing, 400, "a chunk is longer than its size says");
                break;
            }
            if (input.size - passed < 2) goto wait;
            if (input.at[passed + 1] != '\n') {
                (void)refuse(framing, 400, "a chunk is longer than its size says");
                break;
            }
            passed += 2;
            framing->state = HTTP_CHUNK_SIZE;
            break;
        case HTTP_CHUNK_SIZE: {
            size_t at = passed;
            if (!next_line(framing, input, &at, &line, 16 + HTTP_CHUNK_EXTENSION_MAX, 400,
                    "a chunk extension is longer than 256 bytes"))
                goto wait;
            if (check_chunk_size(framing, line) == HTTP_FEED_MORE) passed = at;
            break;
        }
        case HTTP_TRAILER: {
            size_t at = passed;
            if (!next_line(framing, input, &at, &line, HTTP_HEADERS_MAX - framing->fields_size, 431,
                    "the trailer is longer than 16384 bytes"))
                goto wait;
            framing->fields_size += at - passed;
            if (framing->fields_size > HTTP_HEADERS_MAX) {
                (void)refuse(framing, 431, "the trailer is longer than 16384 bytes");
            } else if (line.size == 0) {
                passed = at;
                framing->state = HTTP_DONE;
            } else if (check_field(framing, line, true) == HTTP_FEED_MORE) {
                passed = at;
            }
            break;
        }
        case HTTP_DONE:
            *pass_out = passed;
            framing->searched = framing->line = 0;
            return HTTP_FEED_DONE;
        case HTTP_REFUSED:
            *pass_out = passed;
            return HTTP_FEED_ERROR;
        }
    }
wait:
    if (framing->state == HTTP_REFUSED) {
        *pass_out = passed;
        return HTTP_FEED_ERROR;
    }
    /* positions are relative to the input, which the caller advances by what passed */
    framing->searched = framing->searched > passed ? framing->searched - passed : 0;
    if (passed > 0) framing->line = 0;
    *pass_out = passed;
    return HTTP_FEED_MORE;
}

/* ---- targets, queries, tags, hosts ---- */

enum err http_target_parse(struct bytes target, struct http_target *target_out)
{
    struct http_target parts = {0};
    struct bytes rest = target;
    if (rest.size > 7 && http_text_equal(bytes_of(rest.at, 7), "http://")) {
        size_t end = 7;
        while (end < rest.size && rest.at[end] != '/' && rest.at[end] != '?')
            end++;
        struct bytes name;
        uint16_t port;
        parts.authority = bytes_of(rest.at + 7, end - 7);
        TRY(http_host_parse(parts.authority, &name, &port));
        rest = bytes_of(rest.at + end, rest.size - end);
        if (rest.size == 0) rest = bytes_of("/", 1);
    }
    if (rest.size == 0 || rest.at[0] != '/') return ERR_INVALID;
    const uint8_t *mark = memchr(rest.at, '?', rest.size);
    parts.path = rest;
    if (mark != NULL) {
        parts.path.size = (size_t)(mark - rest.at);
        parts.query = bytes_of(mark + 1, rest.size - parts.path.size - 1);
        parts.has_query = true;
    }
    *target_out = parts;
    return OK;
}

enum err http_percent_decode(
    struct bytes text, bool plus, uint8_t *at, size_t capacity, size_t *size_out)
{
    size_t size = 0;
    for (size_t i = 0; i < text.size; i++) {
        uint8_t byte = text.at[i];
        if (is_control(byte)) return ERR_INVALID;
        if (byte == '%') {
            if (text.size - i < 3) return ERR_INVALID;
            int high = hex_value(text.at[i + 1]);
            int low = hex_value(text.at[i + 2]);
            if (high < 0 || low < 0) return ERR_INVALID;
            byte = (uint8_t)(high << 4 | low);
            i += 2;
        } else if (byte == '+' && plus) {
            byte = ' ';
        }
        if (size == capacity) return ERR_TOO_LARGE;
        at[size++] = byte;
    }
    *size_out = size;
    return OK;
}

bool http_query_next(struct bytes *rest, struct bytes *name_out, struct bytes *value_out)
{
    while (rest->size > 0) {
        const uint8_t *end = memchr(rest->at, '&', rest->size);
        struct bytes pair = bytes_of(rest->at, end == NULL ? rest->size : (size_t)(end - rest->at));
        size_t taken = pair.size + (end == NULL ? 0 : 1);
        *rest = bytes_of(rest->at + taken, rest->size - taken);
        if (pair.size == 0) continue;
        const uint8_t *equals = memchr(pair.at, '=', pair.size);
        size_t name_size = equals == NULL ? pair.size : (size_t)(equals - pair.at);
        *name_out = bytes_of(pair.at, name_size);
        *value_out = equals == NULL ? bytes_of(pair.at + pair.size, 0)
                                    : bytes_of(equals + 1, pair.size - name_size - 1);
        return true;
    }
    return false;
}

enum err http_tags_match(struct bytes list, uint64_t version, bool weak, bool *match_out)
{
    list = trim(list);
    if (list.size == 1 && list.at[0] == '*') {
        *match_out = version != 0;
        return OK;
    }
    bool match = false;
    bool any = false;
    while (list.size > 0) {
        if (any) {
            if (list.at[0] != ',') return ERR_INVALID;
            list = trim(bytes_of(list.at + 1, list.size - 1));
        }
        bool is_weak = list.size >= 2 && list.at[0] == 'W' && list.at[1] == '/';
        if (is_weak) list = bytes_of(list.at + 2, list.size - 2);
        if (list.size < 2 || list.at[0] != '"') return ERR_INVALID;
        const uint8_t *end = memchr(list.at + 1, '"', list.size - 1);
        if (end == NULL) return ERR_INVALID;
        struct bytes tag = bytes_of(list.at + 1, (size_t)(end - list.at) - 1);
        uint64_t value;
        if (version != 0 && (weak || !is_weak) && http_decimal(tag, UINT64_MAX, &value) &&
            value == version && (tag.size == 1 || tag.at[0] != '0'))
            match = true;
        list = trim(bytes_of(end + 1, list.size - tag.size - 2));
        any = true;
    }
    if (!any) return ERR_INVALID;
    *match_out = match;
    return OK;
}

enum err http_host_parse(struct bytes host, struct bytes *name_out, uint16_t *port_out)
{
    struct bytes name;
    struct bytes rest;
    if (host.size > 0 && host.at[0] == '[') {
        const uint8_t *end = memchr(host.at, ']', host.size);
        if (end == NULL) return ERR_INVALID;
        name = bytes_of(host.at + 1, (size_t)(end - host.at) - 1);
        rest = bytes_of(end + 1, host.size - name.size - 2);
        for (size_t i = 0; i < name.size; i++) {
            if (hex_value(name.at[i]) < 0 && name.at[i] != ':' && name.at[i] != '.')
                return ERR_INVALID;
        }
    } else {
        const uint8_t *colon = host.size > 0 ? memchr(host.at, ':', host.size) : NULL;
        name = bytes_of(host.at, colon == NULL ? host.size : (size_t)(colon - host.at));
        rest = bytes_of(host.at + name.size, host.size - name.size);
        for (size_t i = 0; i < name.size; i++) {
            uint8_t byte = lower(name.at[i]);
            if (!is_digit(byte) && !(byte >= 'a' && byte <= 'z') && byte != '-' && byte != '.' &&
                byte != '_')
                return ERR_INVALID;
        }
    }
    uint64_t port = 0;
    if (name.size == 0 || name.size > 255) return ERR_INVALID;
    if (rest.size > 0) {
        if (rest.at[0] != ':') return ERR_INVALID;
        if (rest.size > 1 && !http_decimal(bytes_of(rest.at + 1, rest.size - 1), 65535, &port))
            return ERR_INVALID;
    }
    *name_out = name;
    *port_out = (uint16_t)port;
    return OK;
}

enum err http_origin_host(struct bytes origin, struct bytes *host_out)
{
    size_t scheme = 0;
    if (origin.size > 7 && http_text_equal(bytes_of(origin.at, 7), "http://")) {
        scheme = 7;
    } else if (origin.size > 8 && http_text_equal(bytes_of(origin.at, 8), "https://")) {
        scheme = 8;
    } else {
        return ERR_INVALID;
    }
    struct bytes host = bytes_of(origin.at + scheme, origin.size - scheme);
    struct bytes name;
    uint16_t port;
    TRY(http_host_parse(host, &name, &port));
    *host_out = host;
    return OK;
}

/* ---- base64, UTF-8, JSON ---- */

static const char base64_standard[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
static const char base64_url[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

enum err http_base64_append(struct buffer *out, struct bytes bytes, bool url)
{
    const char *alphabet = url ? base64_url : base64_standard;
    char *at = buffer_reserve(out, (bytes.size + 2) / 3 * 4);
    if (at == NULL && bytes.size > 0) return ERR_NOMEM;
    char *start = at;
    for (size_t i = 0; i < bytes.size; i += 3) {
        size_t left = bytes.size - i;
        uint32_t group = (uint32_t)bytes.at[i] << 16;
        if (left > 1) group |= (uint32_t)bytes.at[i + 1] << 8;
        if (left > 2) group |= bytes.at[i + 2];
        *at++ = alphabet[group >> 18];
        *at++ = alphabet[group >> 12 & 63];
        if (left > 1 || !url) *at++ = left > 1 ? alphabet[group >> 6 & 63] : '=';
        if (left > 2 || !url) *at++ = left > 2 ? alphabet[group & 63] : '=';
    }
    buffer_wrote(out, (size_t)(at - start));
    return OK;
}

static int base64_value(uint8_t byte)
{
    if (byte >= 'A' && byte <= 'Z') return byte - 'A';
    if (byte >= 'a' && byte <= 'z') return byte - 'a' + 26;
    if (is_digit(byte)) return byte - '0' + 52;
    if (byte == '+' || byte == '-') return 62;
    if (byte == '/' || byte == '_') return 63;
    return -1;
}

enum err http_base64_decode(struct bytes text, uint8_t *at, size_t capacity, size_t *size_out)
{
    size_t padding = 0;
    while (text.size > 0 && padding < 2 && text.at[text.size - 1] == '=') {
        text.size--;
        padding++;
    }
    if (text.size % 4 == 1) return ERR_INVALID;
    if (padding > 0 && (text.size + padding) % 4 != 0) return ERR_INVALID;
    uint32_t group = 0;
    int bits = 0;
    size_t size = 0;
    for (size_t i = 0; i < text.size; i++) {
        int value = base64_value(text.at[i]);
        if (value < 0) return ERR_INVALID;
        group = (group << 6 | (uint32_t)value) & 0xffffff;
        bits += 6;
        if (bits >= 8) {
            bits -= 8;
            if (size == capacity) return ERR_TOO_LARGE;
            at[size++] = (uint8_t)(group >> bits);
        }
    }
    /* one text per byte string: what does not make a byte must be zero */
    if ((group & ((1u << bits) - 1)) != 0) return ERR_INVALID;
    *size_out = size;
    return OK;
}

/* Size of the UTF-8 character at the front, 0 if it is none (overlong forms and surrogates are not). */
static size_t utf8_size(struct bytes text)
{
    uint8_t first = text.at[0];
    if (first < 0x80) return 1;
    size_t size = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    if (first < 0xc2 || first > 0xf4 || text.size < size) return 0;
    for (size_t i = 1; i < size; i++) {
        if ((text.at[i] & 0xc0) != 0x80) return 0;
    }
    uint8_t second = text.at[1];
    if (first == 0xe0 && second < 0xa0) return 0;
    if (first == 0xed && second > 0x9f) return 0;
    if (first == 0xf0 && second < 0x90) return 0;
    if (first == 0xf4 && second > 0x8f) return 0;
    return size;
}

bool http_utf8_valid(struct bytes text)
{
    while (text.size > 0) {
        size_t size = utf8_size(text);
        if (size == 0) return false;
        text = bytes_of(text.at + size, text.size - size);
    }
    return true;
}

enum err http_json_string(struct buffer *out, struct bytes text)
{
    TRY(buffer_append(out, "\"", 1));
    while (text.size > 0) {
        size_t plain = 0;
        while (plain < text.size && text.at[plain] >= 0x20 && text.at[plain] < 0x7f &&
            text.at[plain] != '"' && text.at[plain] != '\\')
            plain++;
        if (plain > 0) {
            TRY(buffer_append(out, text.at, plain));
            text = bytes_of(text.at + plain, text.size - plain);
            continue;
        }
        uint8_t byte = text.at[0];
        size_t size = utf8_size(text);
        if (byte == '"' || byte == '\\') {
            char escaped[2] = {'\\', (char)byte};
            TRY(buffer_append(out, escaped, 2));
        } else if (byte < 0x20 || byte == 0x7f) {
            TRY(buffer_printf(out, "\\u%04x", byte));
        } else if (size > 0) {
            TRY(buffer_append(out, text.at, size));
        } else {
            TRY(buffer_append(out, "\xef\xbf\xbd", 3));
            size = 1;
        }
        text = bytes_of(text.at + size, text.size - size);
    }
    return buffer_append(out, "\"", 1);
}
