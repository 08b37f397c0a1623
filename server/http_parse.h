#ifndef SERVER_HTTP_PARSE_H
#define SERVER_HTTP_PARSE_H

#include <stdbool.h>

#include "base/buffer.h"
#include "base/bytes.h"
#include "base/err.h"

/* The pure half of the HTTP side: where a request begins and ends (RFC 9112, read strictly), and the
 * little languages inside it: targets, percent escapes, queries, entity tags, hosts, base64, JSON text.
 * Base only, no I/O; everything here takes hostile bytes. */

enum {
    HTTP_REQUEST_LINE_MAX = 8192,
    HTTP_HEADERS_MAX = 16384, /* all field lines of a head, and all of a trailer */
    HTTP_FIELDS_MAX = 100,
    HTTP_CHUNK_EXTENSION_MAX = 256,
};

enum http_framing_state {
    HTTP_REQUEST_LINE,
    HTTP_FIELDS,
    HTTP_BODY, /* of Content-Length */
    HTTP_CHUNK_SIZE,
    HTTP_CHUNK_DATA,
    HTTP_CHUNK_END, /* the CRLF behind a chunk's data */
    HTTP_TRAILER,
    HTTP_DONE,
    HTTP_REFUSED,
};

/* One request's framing across calls. */
struct http_framing {
    enum http_framing_state state;
    size_t searched; /* bytes of the input known to hold no line end */
    size_t line; /* where the line being read starts, in a head */
    size_t fields_size;
    uint32_t fields;
    int minor; /* HTTP/1.minor */
    bool host, length, chunked;
    bool host_of_target; /* the target is in absolute form */
    bool blank; /* an empty line before the request was skipped */
    uint64_t left; /* of the body or of the chunk */
    uint64_t body; /* body bytes announced or seen so far */
    uint64_t body_max;
    int status; /* HTTP_REFUSED: what to answer, */
    const char *reason; /* and why */
};

void http_framing_init(struct http_framing *framing, uint64_t body_max);

enum http_feed {
    HTTP_FEED_MORE, /* the first *pass_out bytes are well-framed; show the rest again, and more */
    HTTP_FEED_DONE, /* the request ends with the first *pass_out bytes */
    HTTP_FEED_ERROR, /* status and reason are set; nothing behind *pass_out may be taken for a request */
};
/* `input` begins where the last call's *pass_out ended. Of a head nothing passes before all of it has
 * been seen and found good; of a chunked body no line passes before it is complete. The first *skip_out bytes are to
 * be dropped instead of passed on (an empty line before the request); *pass_out counts them too. */
enum http_feed http_framing_feed(
    struct http_framing *framing, struct bytes input, size_t *skip_out, size_t *pass_out);

/* Takes apart a request target. `authority` is empty in origin form; path without the query.
 * ERR_INVALID for anything that is neither "/..." nor "http://authority/...". */
struct http_target {
    struct bytes authority, path, query;
    bool has_query;
};
enum err http_target_parse(struct bytes target, struct http_target *target_out) MUST_CHECK;

/* Decodes %XX, once. ERR_INVALID: a bad escape or a raw control byte; ERR_TOO_LARGE: over `capacity`.
 * plus: '+' means a space, as in queries. */
enum err http_percent_decode(
    struct bytes text, bool plus, uint8_t *at, size_t capacity, size_t *size_out) MUST_CHECK;
/* Takes the next name=value pair, still encoded, off the front of *rest; false at the end. */
bool http_query_next(struct bytes *rest, struct bytes *name_out, struct bytes *value_out);
/* Digits only, at most `max`. */
bool http_decimal(struct bytes text, uint64_t max, uint64_t *value_out);

/* Does a list of entity tags ("*" or "\"5\", W/\"6\"") match a resource of that version (0: there is
 * none)? Tags are compared strongly, unless `weak`. ERR_INVALID: not a list of entity tags. */
enum err http_tags_match(
    struct bytes list, uint64_t version, bool weak, bool *match_out) MUST_CHECK;

/* Splits "name", "name:port", "[v6]:port"; the brackets are not part of the name. port 0: none given. */
enum err http_host_parse(struct bytes host, struct bytes *name_out, uint16_t *port_out) MUST_CHECK;
/* "http://host:port" of an Origin header; ERR_INVALID for "null" and everything else. */
enum err http_origin_host(struct bytes origin, struct bytes *host_out) MUST_CHECK;
bool http_text_equal(struct bytes text, const char *word); /* ASCII case-insensitive */
bool http_names_equal(struct bytes a, struct bytes b); /* likewise */

/* Standard base64, with padding; the decoder takes the URL alphabet as well and padding may be absent. */
enum err http_base64_append(struct buffer *out, struct bytes bytes, bool url) MUST_CHECK;
enum err http_base64_decode(
    struct bytes text, uint8_t *at, size_t capacity, size_t *size_out) MUST_CHECK;

bool http_utf8_valid(struct bytes text);
/* A JSON string, quotes included; bytes that are not UTF-8 become U+FFFD. */
enum err http_json_string(struct buffer *out, struct bytes text) MUST_CHECK;

#endif
