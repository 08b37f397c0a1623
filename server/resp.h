#ifndef SERVER_RESP_H
#define SERVER_RESP_H

#include "base/buffer.h"
#include "base/bytes.h"
#include "base/err.h"

/* RESP2 and RESP3: a pure parser of requests and writers of replies. Base only, no I/O.
 * Limits: reference faults S4. Nothing is allocated by an announced size. */

struct resp_limits {
    uint32_t arguments_max; /* of one command, default 1,048,576; 10 before authentication */
    uint32_t bulk_max;      /* of one argument; default VALUE_SIZE_MAX; 16 KiB before authentication */
    uint32_t inline_max;    /* 64 KiB */
    uint64_t command_max;   /* all arguments together */
};

/* State across calls, so that a command that arrives in pieces is not scanned again from its start. */
struct resp_parser {
    int64_t arguments_left; /* of the multibulk being read; -1: between commands */
    int64_t bulk_left;      /* size of the bulk being read; -1: its header is next */
    size_t scanned;         /* bytes of the command that are parsed */
    uint64_t total;         /* sum of the arguments' sizes */
    uint32_t argc;
    uint32_t capacity;
    struct resp_span { uint32_t offset_low; uint32_t offset_high; uint32_t size; } *spans;
    struct bytes *argv;
};

void resp_parser_init(struct resp_parser *parser);
void resp_parser_deinit(struct resp_parser *parser);

enum resp_result {
    RESP_MORE,    /* incomplete: call again with the same bytes and more behind them */
    RESP_COMMAND, /* *argc_out, *argv_out (borrowing from input) and *consumed_out are set; argc 0: nothing to do */
    RESP_ERROR,   /* *error_out is the reply without "-ERR " and CRLF; the connection must be closed after it */
    RESP_FOREIGN, /* HTTP on the RESP port: close silently, and log it */
};
enum resp_result resp_parse(struct resp_parser *parser, const struct resp_limits *limits,
    struct bytes input, size_t *consumed_out, uint32_t *argc_out, const struct bytes **argv_out,
    const char **error_out);

/* Reply writers append to `out`. `version` is 2 or 3 where the two differ. All of them drop the
 * connection's reply on lack of memory by setting out->failed... callers check buffer sizes. */
void resp_simple(struct buffer *out, const char *text);
/* "-" text CRLF; CR, LF and other control bytes in text become spaces. */
void resp_error(struct buffer *out, const char *format, ...) __attribute__((format(printf, 2, 3)));
void resp_integer(struct buffer *out, int64_t value);
void resp_bulk(struct buffer *out, struct bytes value);
void resp_null(struct buffer *out, int version);
void resp_null_array(struct buffer *out, int version);
void resp_array(struct buffer *out, uint64_t count);
void resp_map(struct buffer *out, int version, uint64_t pairs);
void resp_set(struct buffer *out, int version, uint64_t count);
void resp_verbatim(struct buffer *out, int version, struct bytes text);
void resp_push(struct buffer *out, int version, uint64_t count);

#endif
