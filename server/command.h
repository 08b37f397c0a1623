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
};

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

/* Runs call->command: the one place that counts, times and (slowlog) remembers it. Used by dispatch()
 * and, for each queued command, by EXEC. Neither begins nor commits. server/dispatch.c. */
void dispatch_run(struct call *call);

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
/* Leaves MULTI: drops the queue and the watched keys. Also for closing sessions and RESET. */
void transaction_discard(struct session *session);
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

#endif
