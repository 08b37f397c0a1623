#ifndef SERVER_SCATTER_H
#define SERVER_SCATTER_H

#include "server/command.h"
#include "server/forward_wire.h"

/* What concerns all ranges of a cluster: each is asked where it is led, a number of them at a time, and the
 * answers are put together. Nothing is ever answered from a part of them: if one range cannot say, the whole is an
 * error. There is no one moment that all answers hold for. */

enum { SCATTER_SLOTS = 32 };

struct scatter;

struct scatter_slot {
    struct node_request request;
    struct scatter *scatter;
    uint16_t range;
    bool active;
    struct buffer place; /* the owner's: where the range goes on */
};

/* Embedded by its owner, who fills in the first part; after done() it is over. */
struct scatter {
    struct server *server;
    uint16_t first, last; /* ranges */
    bool writes;
    /* Appends the request to a range; `slot->place` is empty at its first one. */
    void (*ask)(struct scatter *scatter, struct scatter_slot *slot, struct buffer *body);
    /* Takes a reply whose result was FORWARD_DONE; false: the range is to be asked again. Sets reader->failed on what
     * does not make sense. */
    bool (*take)(struct scatter *scatter, struct scatter_slot *slot, struct forward_reader *reader);
    /* error: NULL, or what to answer instead, without '-'. */
    void (*done)(struct scatter *scatter, const char *error);
    /* its own */
    uint32_t next, running;
    bool failed, replied;
    enum node_outcome outcome;
    char error[200];
    struct scatter_slot slots[SCATTER_SLOTS];
};

/* done() comes later, never from within. ERR_NOMEM, and nothing is under way. */
enum err scatter_start(struct scatter *scatter) MUST_CHECK;
void scatter_cancel(struct scatter *scatter);

enum { BUCKET_ABSENT = 0xffff };

/* A bucket by its name, made if there is none, and known to this node when done() runs. Embedded. */
struct bucket_request {
    struct node_request request;
    struct server *server;
    char name[NODE_BUCKET_NAME_MAX + 1];
    bool only_find; /* do not make it: BUCKET_ABSENT if there is none */
    void (*done)(struct bucket_request *bucket, const char *error, uint16_t id);
    bool asking, waiting;
    uint64_t until_ns;
    struct bucket_request *next;
};
/* The caller fills in name, only_find, server and done. */
enum err bucket_request_start(struct bucket_request *bucket) MUST_CHECK;
void bucket_request_cancel(struct bucket_request *bucket);
/* From on_wake and on_tick. */
void bucket_requests_poll(struct server *server);

/* The answering side, for forward_execute(). */
bool scatter_execute(struct server *server, enum forward_kind kind, struct forward_reader *reader,
    struct node_execution *execution);

/* server/scatter_command.c: a COMMAND_KEYSPACE command; the session is blocked until it is answered. */
void scatter_command(struct call *call);
/* SELECT of a name that is not known here; blocks as well. */
void scatter_select(struct call *call, struct bytes name);
/* Memory of such a command that is under way. */
size_t scatter_command_bytes(const struct session *session);
/* The session closes. */
void scatter_command_cancel(struct session *session);

#endif
