#ifndef SERVER_FORWARD_WIRE_H
#define SERVER_FORWARD_WIRE_H

#include "base/buffer.h"

/* The bytes of a request that another node evaluates, and of its reply. Pure; base only.
 *
 * A body is: u8 version of this format, u8 kind, then what the kind has. Scalars are little-endian, texts a u32 size
 * and the bytes. Bodies come from the network: every read is checked against what is there, and what is read borrows
 * from the body.
 *
 *   COMMAND  u8 resp, u16 bucket, arguments                     -> RESP
 *   EXEC     u8 resp, u32 n, n * {u16 bucket, u64 version, u64 token, key}, u32 n, n * {u16 bucket, arguments}
 *                                                               -> u8 result, then RESP (an error) or n * text (RESP)
 *   WATCH    u16 bucket, arguments (keys only)                  -> u8 result, n * {u64 version, u64 token}
 *   KEY      struct forward_key, in order                       -> struct forward_answer, in order
 *   COUNT    u16 bucket                                         -> u8 result, u64
 *   KEYS     u16 bucket, u32 limit, pattern, u8 resume, after    -> u8 result, u8 done, after, u32 visited, u32 n,
 *                                                                  n * text
 *   RANDOM   u16 bucket                                         -> u8 result, u8 found, text
 *   CLEAR    u16 bucket (0xffff: all)                           -> u8 result
 *   PAGE     u16 bucket, u32 limit, u32 bytes, prefix, after    -> u8 result, u8 more, u32 n, n * struct forward_entry
 *   BUCKET   u8 make, name                                      -> u8 result, u16 bucket (0xffff: there is none)
 *
 * A result that is not FORWARD_DONE is followed by a text, the error as RESP has it without the '-'. */

enum { FORWARD_VERSION = 1, FORWARD_ARGUMENTS_MAX = 1 << 20 };

enum forward_kind {
    FORWARD_COMMAND = 1,
    FORWARD_EXEC,
    FORWARD_WATCH,
    FORWARD_KEY,
    FORWARD_COUNT,
    FORWARD_KEYS,
    FORWARD_RANDOM,
    FORWARD_CLEAR,
    FORWARD_PAGE,
    FORWARD_BUCKET,
};

enum forward_result {
    FORWARD_FAILED,
    FORWARD_DONE,
    FORWARD_CHANGED, /* EXEC: a watched key is not what it was */
};

/* ---- writing: a failed append is remembered by the buffer ---- */

void forward_put_u8(struct buffer *out, uint8_t value);
void forward_put_u16(struct buffer *out, uint16_t value);
void forward_put_u32(struct buffer *out, uint32_t value);
void forward_put_u64(struct buffer *out, uint64_t value);
void forward_put_text(struct buffer *out, struct bytes text);
void forward_put_head(struct buffer *out, enum forward_kind kind);
void forward_put_arguments(struct buffer *out, uint32_t argc, const struct bytes *argv);

/* ---- reading ---- */

/* What is left to read. Once something was missing, every further read gives zero or nothing. */
struct forward_reader {
    struct bytes rest;
    bool failed;
};

uint8_t forward_get_u8(struct forward_reader *reader);
uint16_t forward_get_u16(struct forward_reader *reader);
uint32_t forward_get_u32(struct forward_reader *reader);
uint64_t forward_get_u64(struct forward_reader *reader);
struct bytes forward_get_text(struct forward_reader *reader);
/* 0: not a body of this format. */
enum forward_kind forward_get_head(struct forward_reader *reader);
/* Everything was read and was there. */
bool forward_at_end(const struct forward_reader *reader);

/* The arguments of one command; zero-initialised is valid; reused from one to the next. */
struct forward_arguments {
    struct bytes *argv;
    uint32_t argc, capacity;
};
void forward_arguments_deinit(struct forward_arguments *arguments);
/* At least one. False, and the reader has failed: not there, too many, or no memory. */
bool forward_get_arguments(struct forward_reader *reader, struct forward_arguments *arguments);

/* A request to one key over HTTP. */
enum forward_method { FORWARD_GET, FORWARD_PUT, FORWARD_DELETE };
struct forward_key {
    enum forward_method method;
    uint16_t bucket;
    struct bytes
        new_bucket; /* not sent: made in the same transaction, by a node alone; empty: `bucket` exists */
    struct bytes key;
    bool has_if_match, has_if_none_match;
    struct bytes if_match, if_none_match;
    uint64_t ttl_ms; /* 0: none */
    struct bytes client; /* exactly once; empty: not asked for */
    uint64_t sequence;
    struct bytes body;
};
struct forward_answer {
    uint16_t status;
    uint64_t version; /* 0: none */
    struct bytes code, message; /* of an error */
    struct bytes body;
};
struct forward_entry {
    struct bytes key, value;
    uint64_t version;
    int64_t expires_ms;
};
void forward_put_key(struct buffer *out, const struct forward_key *key);
void forward_get_key(struct forward_reader *reader, struct forward_key *key_out);
void forward_put_answer(struct buffer *out, const struct forward_answer *answer);
void forward_get_answer(struct forward_reader *reader, struct forward_answer *answer_out);
void forward_put_entry(struct buffer *out, const struct forward_entry *entry);
void forward_get_entry(struct forward_reader *reader, struct forward_entry *entry_out);

/* ---- exactly once: what a range remembers of a client ---- */

/* The last writes of one client in one range and their replies, as stored:
 *   u8 1 | u64 last sequence | u32 n | n * {u64 sequence, u8 kept, reply} */
enum { ONCE_WINDOW = 16, ONCE_REPLY_MAX = 4096, ONCE_EXPIRY_MS = 3600 * 1000 };

enum once_verdict {
    ONCE_NEW, /* run it */
    ONCE_REPEATED, /* here is the reply */
    ONCE_OLD, /* was run or refused long ago; the reply is not kept */
    ONCE_EXPIRED, /* nothing is known of this client although this is not its first write */
};

/* `record`: as stored; at NULL: there is none. */
enum once_verdict once_judge(struct bytes record, uint64_t sequence, struct bytes *reply_out);
/* Appends the record that follows when `sequence` was answered by `reply`. */
void once_remember(struct buffer *out, struct bytes record, uint64_t sequence, struct bytes reply);

#endif
