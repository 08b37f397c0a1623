#ifndef BENCH_REPLY_H
#define BENCH_REPLY_H

#include <stdbool.h>

#include "base/bytes.h"

/* The client's side of RESP2 and RESP3: reads replies as they arrive, in any pieces. A pure parser.
 * Bodies of strings are counted and skipped, not kept: a load generator checks shapes and sizes, so it
 * needs no more memory for a 16 MiB reply than for a short one. */

struct reply {
    char type; /* '+', '-', ':', '$', '*', '_', '%', ... of the reply itself; a null is '_' */
    int64_t number; /* an integer's value; a string's size; an aggregate's count of elements */
    uint64_t strings; /* strings inside an aggregate */
    uint64_t nulls; /* nulls inside an aggregate */
    uint64_t bytes; /* of all strings */
    struct bytes text; /* of '+', '-' and other one-line replies; borrows from the input */
};

struct reply_parser {
    bool busy; /* inside a reply */
    bool pushed; /* inside an out-of-band push, which is dropped */
    bool in_body;
    uint64_t pending; /* elements still to come */
    uint64_t body_left; /* of the string being skipped, its CRLF not counted */
    struct reply reply;
};

enum { REPLY_LINE_MAX = 65536 };

enum reply_result {
    REPLY_MORE, /* no whole reply yet; *consumed_out bytes are done with, call again with the rest */
    REPLY_DONE, /* *reply_out is set; *consumed_out bytes belong to it */
    REPLY_BROKEN, /* these bytes are not RESP */
};

/* Zero-initialised is ready. */
enum reply_result reply_parse(
    struct reply_parser *parser, struct bytes input, size_t *consumed_out, struct reply *reply_out);

/* Between two replies: bytes may be matched against an expected reply directly. */
static inline bool reply_idle(const struct reply_parser *parser)
{
    return !parser->busy;
}

#endif
