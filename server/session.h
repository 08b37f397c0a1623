#ifndef SERVER_SESSION_H
#define SERVER_SESSION_H

#include "server/server.h"

/* A client's RESP connection.
 *
 * Commands are parsed and evaluated in the order they arrive. Replies go to `out` at once; those
 * that wait for a ticket hold back themselves and whatever comes behind them (struct held). */

enum session_flags {
    SESSION_AUTHENTICATED = 1,
    SESSION_MULTI = 2, /* between MULTI and EXEC */
    SESSION_DIRTY_EXEC = 4, /* a queued command was refused: EXEC answers EXECABORT */
    SESSION_CLOSE_AFTER = 8, /* close once the output is out */
    SESSION_REPLY_OFF = 16, /* CLIENT REPLY OFF */
    SESSION_REPLY_SKIP = 32, /* skip the reply of the next command */
    SESSION_REPLY_SKIP_NEXT = 64,
    SESSION_PAUSED = 128, /* parses nothing until a retry: no room for a write, output too long */
    SESSION_READONLY = 256, /* READONLY: local reads are wanted */
    SESSION_CLOSING = 512,
    SESSION_BLOCKED = 1024, /* waits for something other than a ticket (auth, WAIT, sliced command);
                                 who set it clears it and calls session_continue() */
    SESSION_ENDED = 2048, /* the peer sends no more: closed once it has its replies */
    SESSION_STOPPED_READING = 4096, /* loop_pause() is in force */
};

/* The server's lists of sessions; a session may be in each. */
enum session_list {
    SESSION_LIST_HELD, /* has replies that wait for a ticket */
    SESSION_LIST_DIRTY, /* has something for the end of the turn: output, or to be closed */
    SESSION_LIST_PAUSED, /* to be tried again */
};

struct session_link {
    struct session *next;
    struct session **at; /* what points here; NULL: not in the list */
};

/* Output up to `end` (a count of all bytes ever written to `out`), from the end of the one before, leaves when
 * `ticket` is done. */
struct held {
    uint64_t end;
    ticket_t ticket; /* 0: waits only for those before it */
    uint32_t
        replies; /* how many it covers: so many errors replace them if the ticket comes to nothing */
};

struct queued_command; /* of MULTI */
struct forwarded; /* server/forward.c */
struct scatter_command; /* server/scatter_command.c */

struct watched_key {
    uint16_t bucket;
    uint64_t version; /* at WATCH; 0: absent */
    uint64_t
        token; /* of the node that watches an absent key for us (server/forward.h); 0: this one does */
    struct buffer key;
    struct watched_key *next;
};

struct session {
    struct loop_stream stream;
    struct server *server;
    struct session *next_all, *previous_all;
    struct session_link links[SESSION_LISTS];
    uint64_t id;
    uint32_t flags;
    uint32_t source; /* IPv4 address or hash of it, for limits */
    uint16_t bucket;
    int resp_version;
    struct resp_parser parser;
    struct buffer in; /* unparsed rest */
    struct buffer out; /* replies not yet given to the loop */
    struct buffer sending; /* owned by the loop until on_sent */
    uint64_t out_total; /* all bytes ever appended to out: the scale of held.end */
    uint64_t out_released; /* of these, what may leave */
    uint64_t out_given; /* of these, moved to sending */
    uint64_t stalled_left; /* bytes not taken by the peer when it was last looked at */
    uint64_t stalled_since_ns;
    struct held *held; /* ring of held_capacity, held_count from held_first */
    uint32_t held_first, held_count, held_capacity;
    struct queued_command *queue, *queue_last;
    uint32_t queue_count;
    uint64_t queue_bytes;
    struct watched_key *watched;
    struct forwarded *forwarded; /* what other nodes do for it; NULL: never asked for anything */
    struct scatter_command *scatter; /* a command that all ranges answer; NULL: none is under way */
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
/* Goes on with parsing after a pause; replies written to `out` meanwhile are taken note of. */
void session_continue(struct session *session);
/* Releases what waits no more and hands it to the loop; replies that came to nothing become errors. */
void session_release(struct session *session);
/* The command just run has appended its reply, which waits for `ticket` (0: for nothing of its own). */
void session_replied(struct session *session, ticket_t ticket);
/* Closes (CLIENT KILL, shutdown); after_output: what is written so far still goes out. */
void session_close(struct session *session, bool after_output);
/* Tries those again that could not go on; from on_wake and on_tick. */
void sessions_retry(struct server *server);
/* Some ticket is done, or came to nothing. */
void sessions_on_tickets(struct server *server);
/* End of a loop turn: outputs go out. */
void sessions_turn_end(struct server *server);
/* Periodic: idle and pre-auth time-outs, slow readers, paused sessions. */
void sessions_tick(struct server *server);
void sessions_close_all(struct server *server);

#endif
