#ifndef SERVER_SESSION_H
#define SERVER_SESSION_H

#include "server/server.h"

/* A client's RESP connection.
 *
 * Commands are parsed and evaluated in the order they arrive. Replies go to `out` at once; those
 * that wait for a ticket hold back themselves and whatever comes behind them (struct held). */

enum session_flags {
    SESSION_AUTHENTICATED = 1,
    SESSION_MULTI = 2,        /* between MULTI and EXEC */
    SESSION_DIRTY_EXEC = 4,   /* a queued command was refused: EXEC answers EXECABORT */
    SESSION_CLOSE_AFTER = 8,  /* close once the output is out */
    SESSION_REPLY_OFF = 16,   /* CLIENT REPLY OFF */
    SESSION_REPLY_SKIP = 32,  /* skip the reply of the next command */
    SESSION_REPLY_SKIP_NEXT = 64,
    SESSION_PAUSED = 128,     /* reading stopped: memory, throttle, auth or DEBUG SLEEP */
    SESSION_READONLY = 256,   /* READONLY: local reads are wanted */
    SESSION_CLOSING = 512,
    SESSION_BLOCKED = 1024,   /* waits for something other than a ticket (auth, WAIT, sliced command) */
};

/* Output up to `end` (a count of all bytes ever written to `out`) leaves when `ticket` is committed. */
struct held {
    uint64_t end;
    ticket_t ticket;
    uint32_t replies; /* how many replies it covers: what -UNKNOWN would have to replace */
};

struct queued_command; /* of MULTI */

struct watched_key {
    uint16_t bucket;
    uint64_t version; /* at WATCH; 0: absent */
    bool expired;     /* was there but expired already at WATCH */
    struct buffer key;
    struct watched_key *next;
};

struct session {
    struct loop_stream stream;
    struct server *server;
    struct session *next_all, *previous_all;
    struct session *next_held; /* in the server's list of sessions with held replies */
    bool in_held_list;
    uint64_t id;
    uint32_t flags;
    uint32_t source;       /* IPv4 address or hash of it, for limits */
    uint16_t bucket;
    int resp_version;
    struct resp_parser parser;
    struct buffer in;      /* unparsed rest */
    struct buffer out;     /* replies not yet given to the loop */
    struct buffer sending; /* owned by the loop until on_sent */
    uint64_t out_total;    /* all bytes ever appended to out: the scale of held.end */
    uint64_t out_given;    /* of these, moved to sending */
    struct held *held;     /* ring of held_capacity, held_count from held_first */
    uint32_t held_first, held_count, held_capacity;
    struct queued_command *queue, *queue_last;
    uint32_t queue_count;
    uint64_t queue_bytes;
    struct watched_key *watched;
    char name[64];
    char lib_name[32], lib_version[32];
    char address[64], local_address[64];
    uint64_t created_ns, last_ns;
    uint64_t counted_bytes; /* of server.client_bytes */
    const struct command *last_command;
    uint64_t commands;
};

/* server/session.c */
void session_accept(void *server, int fd);
/* Goes on with parsing after a pause. */
void session_continue(struct session *session);
/* Releases what is committed and hands it to the loop. */
void session_release(struct session *session, ticket_t committed);
/* Closes (CLIENT KILL, shutdown); after_output: what is written so far still goes out. */
void session_close(struct session *session, bool after_output);
void sessions_on_committed(struct server *server, ticket_t committed);
/* End of a loop turn: outputs go out. */
void sessions_turn_end(struct server *server);
/* Periodic: idle and pre-auth time-outs, slow readers, paused sessions. */
void sessions_tick(struct server *server);
void sessions_close_all(struct server *server);

#endif
