#ifndef SERVER_COMMAND_INTERNAL_H
#define SERVER_COMMAND_INTERNAL_H

#include "base/prng.h"
#include "server/command.h"

/* What the families of commands share among themselves. */

/* The Redis release whose commands these are; clients look at it to know what they may send. */
#define REDIS_COMPATIBLE_VERSION "7.0.15"

enum { CURSOR_COUNT_MAX = 16384 };

/* Where a SCAN goes on. Kept here and not in the cursor, because a place in key order is a key and
 * a cursor is a number. The number is a hash of the place: the same place has the same number. */
struct cursor {
    uint64_t id;
    uint32_t next; /* in its hash chain */
    uint32_t newer, older; /* by last use */
    uint16_t bucket;
    uint16_t range;
    uint16_t key_size;
    uint16_t key_capacity;
    uint8_t *key;
};

/* A watched key. One that was absent has no version to compare, so it is kept in a table by key, and whoever
 * writes it marks it: it may be gone again by EXEC, after the client has read it. */
struct watch {
    struct watched_key base; /* first: the session links these */
    uint64_t hash;
    uint64_t term; /* of an absent key's range */
    bool touched;
    struct watch *chain;
    struct watch **at; /* what points to this one in the table; NULL: not in it */
};

enum { WATCH_CHAINS = 4096, REMOTE_WATCHES = 4096 };

struct remote_watch;

/* What commands keep in the server between calls. */
struct command_state {
    struct cursor *cursors; /* CURSOR_COUNT_MAX + 1; number 0 means none */
    uint32_t *chains; /* CURSOR_COUNT_MAX heads */
    uint32_t cursor_count;
    uint32_t newest, oldest;
    uint64_t hash_seed;
    struct prng random; /* RANDOMKEY */
    struct watch *watches[WATCH_CHAINS];
    uint32_t watch_count;
    struct remote_watch *remote; /* REMOTE_WATCHES by token, made when first needed */
    uint64_t remote_next;
    uint32_t *once_tags; /* by range: what makes a key belong to it; made when first needed */
};

/* What SCAN was asked for; false: an error was replied. */
struct scan_arguments {
    uint64_t cursor;
    int64_t count;
    struct bytes pattern;
    bool strings; /* the only type there is so far is wanted, or any */
};
bool scan_arguments(struct call *call, struct scan_arguments *scan_out);
/* FLUSHDB and FLUSHALL take SYNC or ASYNC; false: an error was replied. */
bool flush_options(struct call *call);
/* Frees what transactions keep there. */
void transaction_state_close(struct command_state *state);
/* NULL: no memory. */
struct command_state *commands_state(struct server *server);
/* Remembers the place and returns its cursor, never 0; 0: no memory. */
uint64_t cursor_keep(
    struct command_state *state, uint16_t bucket, const struct node_position *position);
/* False: no such cursor (any more), or of another bucket. */
bool cursor_find(
    struct command_state *state, uint16_t bucket, uint64_t id, struct node_position *position_out);

void reply_ok(struct call *call);
void reply_text(struct call *call, const char *text);
/* Counts a lookup of a command that writes as well, and so is not counted by call_get(). */
void count_lookup(struct call *call, enum err found);
/* Writes the error and returns false if it is not one. */
bool integer_argument(struct call *call, struct bytes argument, int64_t *value_out);
/* The help text of a container: a NULL-terminated list of lines. */
void reply_help(struct call *call, const char *const *lines);
/* How long the reply is so far, and back to that length. */
size_t reply_mark(const struct call *call);
void reply_back(struct call *call, size_t mark);
/* An array whose count is known only at its end. */
size_t reply_array_begin(struct call *call);
void reply_array_end(struct call *call, size_t mark, uint64_t count);
/* After call_put() has found room, or written its error. */
bool value_fits(struct call *call, uint64_t size);

/* The expiry of SET, GETEX and SETEX: what `amount` means as a time in ms; writes the error. */
enum expiry_unit { EXPIRY_SECONDS = 1, EXPIRY_ABSOLUTE = 2 };
bool expiry_argument(
    struct call *call, struct bytes amount, uint32_t unit, int64_t *expires_ms_out);

/* The same limits for every name of a connection. */
bool client_name_valid(struct call *call, struct bytes name);

/* Top-level commands whose name starts with "name|": the subcommands of a container. */
bool command_is_subcommand_of(const struct command *command, const struct command *container);
bool command_is_top_level(const struct command *command);

/* The bucket of a Redis database number; false: an error was replied. */
bool database_number(struct call *call, int64_t number, uint16_t *bucket_out);

#endif
