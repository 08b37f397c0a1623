#ifndef SERVER_COMMAND_H
#define SERVER_COMMAND_H

#include "server/session.h"

/* The command table and what a command sees.
 *
 * The dispatcher (server/dispatch.c) has checked name, arity, authentication and admission, and has
 * begun a node transaction for COMMAND_WRITE; the command reads through call_get(), writes through
 * node_put()/node_delete()/node_clear() and appends exactly one reply to call->out. It never begins or commits.
 * The dispatcher commits and holds the reply back for the right ticket. Inside EXEC all queued
 * commands share one transaction. */

enum command_flags {
    COMMAND_WRITE = 1,
    COMMAND_READ = 2,
    COMMAND_FAST = 4,
    COMMAND_ADMIN = 8,
    COMMAND_NO_AUTH = 16, /* allowed before AUTH */
    COMMAND_NO_MULTI = 32, /* refused inside MULTI */
    COMMAND_IN_MULTI = 64, /* runs at once inside MULTI instead of being queued */
    COMMAND_LOADING = 128,
    COMMAND_KEYS = 256, /* has keys, at first_key..last_key by step */
    COMMAND_KEYSPACE =
        512, /* is about all keys: with several nodes all ranges are asked (server/scatter.c) */
    COMMAND_WRAPS =
        1024, /* runs the command that starts at argument WRAPPED, whose keys are its own */
};

enum { WRAPPED = 3 };

struct call {
    struct server *server;
    struct session *session;
    struct node *node;
    const struct command *command;
    uint32_t argc;
    const struct bytes *argv;
    struct buffer *out;
    int version; /* of RESP */
    uint16_t bucket;
    uint16_t range; /* of all its keys; 0: of several, or it has none */
    enum node_view view;
    bool in_exec;
    bool read_pending; /* a pending record may have been read: the reply waits for its ticket */
    bool abort; /* a put or delete found no room: the dispatcher aborts the transaction; the
                              command has written its error */
    bool retry; /* with abort: there will be room soon; run the command again then */
};

struct command {
    const char *name; /* lower case; "client|setname" for subcommands */
    int arity; /* as Redis: negative is "at least" */
    uint32_t flags;
    int first_key, last_key, step;
    void (*run)(struct call *call);
    const char *group; /* string, generic, transactions, connection, server */
    const char *since;
    const char *complexity;
    const char *summary;
    const char *categories; /* "@read @string @fast" */
};

/* NULL if unknown. Case-insensitive. */
const struct command *command_find(struct bytes name);
const struct command *command_table(uint32_t *count_out);

/* Executes one parsed command of a session: queues it (MULTI) or runs it. False: not now (throttled or
 * blocked); the caller keeps the bytes and calls again after session_continue(). */
bool dispatch(struct session *session, uint32_t argc, const struct bytes *argv);

/* The value of a key in the call's view: OK, or ERR_NOT_FOUND, or (an error reply was written)
 * ERR_CORRUPT. Keys over KEY_SIZE_MAX: the dispatcher refused the command already. */
enum err call_get(struct call *call, struct bytes key, struct value *value_out);
/* Stores bytes; on lack of room writes an error reply and returns false. */
bool call_put(struct call *call, struct bytes key, struct bytes value, int64_t expires_ms);
bool call_delete(struct call *call, struct bytes key);
/* Room for a value of `size` bytes to be filled in by the caller at once; NULL: error reply written. */
uint8_t *call_put_begin(struct call *call, struct bytes key, size_t size, int64_t expires_ms);
/* Case-insensitive comparison of an argument with a lower-case word. */
bool argument_is(struct bytes argument, const char *word);
/* Strict decimal as Redis's string2ll: no spaces, no plus, no leading zeros; false if not or out of range. */
bool argument_integer(struct bytes argument, int64_t *value_out);
/* The errors every family shares. */
void reply_syntax_error(struct call *call);
void reply_not_integer(struct call *call);
void reply_wrong_arity(struct call *call);

/* Finds the command that the arguments name, subcommands included ("client|setname"), and checks the
 * number of arguments. NULL: Redis's error for it (unknown command or subcommand, arity) was written. */
const struct command *command_resolve(uint32_t argc, const struct bytes *argv, struct buffer *out);

/* Where the keys are among the arguments, one every *step_out; false: it has none. */
bool command_keys(const struct command *command, uint32_t argc, const struct bytes *argv,
    uint32_t *first_out, uint32_t *last_out, uint32_t *step_out);
/* The one range of all keys; 0: there are none. False: they are in several. */
bool command_range(struct node *node, const struct command *command, uint32_t argc,
    const struct bytes *argv, uint16_t *range_out);
#define CROSSSLOT_ERROR "CROSSSLOT Keys in request don't hash to the same slot"

/* Runs call->command: the one place that counts, times and (slowlog) remembers it. Used by dispatch()
 * and, for each queued command, by EXEC. Neither begins nor commits. server/dispatch.c. */
void dispatch_run(struct call *call);
/* Runs a command that may write in a transaction of its own, for which there is room, and says what its reply waits
 * for. False: there is no room after all; nothing was changed or replied. */
bool dispatch_transact(struct call *call, ticket_t *ticket_out);
/* What a reply waits for that wrote nothing and has read call->range in `view`. */
ticket_t dispatch_read_ticket(const struct call *call, enum node_view view);
/* Takes note of the reply that begins at `before`; CLIENT REPLY may have switched it off. */
void dispatch_finish(struct session *session, size_t before, ticket_t ticket);
/* What node_admit() says, for people. */
const char *dispatch_refusal(enum err err);
/* No key of the command is over KEY_SIZE_MAX. */
bool dispatch_keys_fit(const struct command *command, uint32_t argc, const struct bytes *argv);

/* server/command_transaction.c. A command queued after MULTI: one allocation, arguments behind it. */
struct queued_command {
    struct queued_command *next;
    const struct command *command;
    uint32_t argc;
    struct bytes argv[];
};
/* Appends a copy to the session's queue and adds its size to queue_bytes; false: no memory. */
bool transaction_queue(struct session *session, const struct command *command, uint32_t argc,
    const struct bytes *argv);
/* Forgets the newest so many watched keys: their WATCH failed. */
void transaction_unwatch(struct session *session, uint32_t newest);
/* Leaves MULTI: drops the queue and the watched keys. Also for closing sessions and RESET. */
void transaction_discard(struct session *session);
/* One of the queued commands may write. */
bool transaction_writes(const struct session *session);
/* The one range of all queued commands and watched keys, 0 if they have no keys. NULL, or the error. */
const char *transaction_range(struct session *session, uint16_t *range_out);
/* Enters a key whose version another node will tell. NULL: watched already, or (*failed_out) no memory. */
struct watched_key *transaction_watch_remote(
    struct session *session, struct bytes key, bool *failed_out);
/* The error of a transaction for which there was no room. */
void transaction_abort_error(struct buffer *out, bool retry);
/* Watches an absent key for somebody else; 0: no memory. */
uint64_t transaction_watch_absent(
    struct server *server, uint16_t range, uint16_t bucket, struct bytes key);
/* The key was not written since: asked by the node that has watched it. */
bool transaction_watch_untouched(
    struct server *server, uint64_t token, uint16_t bucket, struct bytes key);
/* Version of a key as a transaction sees it; 0: absent. A damaged value counts as a version of its
 * own, so that the commands of the transaction meet it and answer. */
uint64_t transaction_version(struct node *node, uint16_t bucket, struct bytes key);
/* Whoever writes a key other than through call_put() says so: WATCH of absent keys depends on it. */
void transaction_touch(struct server *server, uint16_t bucket, struct bytes key);
/* For closing sessions and RESET (server/command_connection.c): back to how a new connection is. */
void connection_reset(struct session *session);

/* server/command_server.c: slow commands, newest first in server->slowlog. */
struct slowlog_entry {
    struct slowlog_entry *next;
    uint64_t id;
    int64_t wall_s;
    uint64_t duration_us;
    uint32_t argc;
    char address[64], name[64];
    struct bytes argv[]; /* shortened as Redis does: 32 arguments of 128 bytes */
};
/* Keeps the command if it took server->config.slowlog_us or longer. */
void slowlog_record(const struct call *call, uint64_t duration_us);
void slowlog_reset(struct server *server);

/* Where sessions of exactly-once writes are remembered, hidden from every walk (server/command_once.c). */
enum { ONCE_BUCKET = NODE_BUCKETS_MAX };
/* The key in ONCE_BUCKET under which `range` remembers a client of the front door `front` ('r' or 'h': replies differ);
 * returns its size. */
enum { ONCE_CLIENT_MAX = 128 };
size_t once_key(struct server *server, uint16_t range, char front, struct bytes client,
    uint8_t at[KEY_SIZE_MAX]);

/* A number below `most`, or 0. */
uint64_t commands_random(struct server *server, uint64_t most);
/* server/command.c: frees what commands keep in server->commands (SCAN's cursors, settings). */
void commands_close(struct server *server);

/* Families of commands, each a table ending with a NULL name. */
extern const struct command commands_string[];
extern const struct command commands_key[];
extern const struct command commands_expire[];
extern const struct command commands_transaction[];
extern const struct command commands_connection[];
extern const struct command commands_server[];
extern const struct command commands_describe[];
extern const struct command commands_once[];

#endif
