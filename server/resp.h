#ifndef SERVER_RESP_H
#define SERVER_RESP_H

#include "base/buffer.h"
#include "base/bytes.h"
#include "base/err.h"

/* RESP2 and RESP3: a pure parser of requests and writers of replies. Base only, no I/O.
 * Errors and limits are Redis 7's, word for word, where Redis has them. Nothing is allocated by an
 * announced size: memory grows with the bytes and arguments that have arrived. */

/* Above this an announced argument is a protocol error; between a connection's bulk_max and this the
 * command is refused, its bytes are skipped as they come, and the connection lives on. */
enum { RESP_ANNOUNCED_MAX = 512 << 20, RESP_ARGUMENTS_MAX = 1 << 20, RESP_INLINE_MAX = 64 << 10 };

struct resp_limits {
    uint32_t
        arguments_max; /* of one command, default RESP_ARGUMENTS_MAX; 10 before authentication */
    uint32_t bulk_max; /* of one argument, default VALUE_SIZE_MAX; 16 KiB before authentication */
    uint32_t inline_max; /* RESP_INLINE_MAX */
    uint64_t command_max; /* all arguments together */
    bool unauthenticated; /* more arguments or a longer one than allowed end the connection */
};

/* State across calls, so that a command that arrives in pieces is not scanned again from its start. */
struct resp_parser {
    const uint8_t *base; /* where the input was at the last call: argv points into it */
    int64_t arguments_left; /* of the multibulk being read; -1: between commands */
    int64_t bulk_left; /* size of the bulk being read; -1: its header is next */
    size_t scanned; /* bytes of the command that are parsed */
    uint64_t total; /* sum of the arguments' sizes; of the last command after RESP_COMMAND */
    const char *refusal; /* the command is refused with this error once its bytes are skipped */
    uint32_t argc;
    uint32_t capacity;
    struct bytes *argv;
    struct buffer scratch; /* arguments of an inline command, unescaped */
    char error[96];
};

void resp_parser_init(struct resp_parser *parser);
void resp_parser_deinit(struct resp_parser *parser);
/* Frees the memory that a big command left; only between commands. */
void resp_parser_trim(struct resp_parser *parser);
/* Refuses the command that is half here: its bytes are dropped from now on, and the next results are
 * RESP_MORE and, at its end, RESP_REFUSED with `text` (a constant, e.g. "OOM ..."). False: no multibulk
 * command is half here. */
bool resp_parser_refuse(struct resp_parser *parser, const char *text);

enum resp_result {
    RESP_MORE, /* incomplete: drop *consumed_out bytes (0, unless a command is being skipped), and
                   * call again with the rest and more behind it */
    RESP_COMMAND, /* *argc_out, *argv_out (borrowing from input or parser) and *consumed_out are set;
                   * argc 0: nothing to do */
    RESP_REFUSED, /* a command over a limit was skipped: *error_out is its reply without "-" and CRLF */
    RESP_ERROR, /* *error_out likewise; the connection must be closed after it */
    RESP_FOREIGN, /* HTTP on the RESP port: close silently, and log it */
};
enum resp_result resp_parse(struct resp_parser *parser, const struct resp_limits *limits,
    struct bytes input, size_t *consumed_out, uint32_t *argc_out, const struct bytes **argv_out,
    const char **error_out);

/* Reply writers append to `out`. `version` is 2 or 3 where the two differ. Without memory the reply
 * is cut and out->failed is set: the connection cannot go on and its owner closes it. */
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
