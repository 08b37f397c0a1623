#ifndef SERVER_SERVER_H
#define SERVER_SERVER_H

#include <netinet/in.h>

#include "base/buffer.h"
#include "base/histogram.h"
#include "cluster/node/node.h"
#include "server/loop.h"
#include "server/resp.h"

/* The running server: one struct, nothing global. Owned by the loop's thread. */

struct session;
struct folder;
struct command;
struct executor;
struct peers;
struct bucket_request;

enum { SESSION_LISTS = 3 }; /* enum session_list, server/session.h */

/* What the operator set (server/config.c fills it: flag > environment > file > default). */
struct server_config {
    const char *data;
    char *listen;          /* "host:port" or "off" */
    char *http;
    char *peer;
    char *join;
    char *name;
    char *zone;
    uint32_t replicas;
    uint32_t ranges;
    uint64_t memory;
    uint64_t log_bytes;
    enum log_io log_io;
    char *io;              /* "auto", "uring" or "posix": of the loop */
    char *cluster_secret_file; /* shared by all nodes; needed where --peer is not loopback */
    uint32_t join_timeout_s;
    uint32_t deadline_ms;  /* of a request that needs other nodes */
    bool leases;           /* answer reads by lease */
    char *password_hash;   /* argon2id string, NULL: no authentication */
    uint32_t connections_max;
    uint64_t output_limit;     /* bytes held for one slow reader before it is dropped */
    uint64_t client_memory;    /* of all connections together */
    uint32_t idle_timeout_s;   /* 0: none */
    uint64_t slowlog_us;       /* slower commands are kept; UINT64_MAX: none */
    uint32_t slowlog_max;
    bool debug_command;
    bool scrub;
    lsn_t accept_loss;
    char *allowed_hosts;       /* HTTP Host allow-list beside loopback names, comma-separated */
    char *log_level;
    bool log_json;
};

struct server_counters {
    uint64_t commands;
    uint64_t connections;
    uint64_t connections_rejected;
    uint64_t net_in;
    uint64_t net_out;
    uint64_t errors;         /* error replies */
    uint64_t protocol_errors;
    uint64_t auth_failures;
    uint64_t slow_readers;   /* dropped */
    uint64_t throttled;      /* times a connection waited for memory */
    uint64_t keyspace_hits;
    uint64_t keyspace_misses;
    uint64_t http_requests;
};

struct slowlog_entry;

/* Statistics of one command, kept by dispatch_run(); its place in the array is its place in
 * command_table(). `failed` counts error replies of the command itself, `rejected` those of the dispatcher
 * (arity, authentication, no room). */
struct command_stats {
    uint64_t calls;
    uint64_t failed;
    uint64_t rejected;
    uint64_t ns;                  /* spent in all calls */
    struct histogram *latency_ns; /* allocated at the first call; NULL: never called */
};

/* Counting keys walks the memtables: done at most once a second, for whoever reports. */
struct report_cache {
    uint64_t counted_ns; /* 0: never */
    uint32_t buckets;
    uint64_t keys[NODE_BUCKETS_MAX];
};

/* Somebody (HTTP) waits for a ticket: on_ready runs from the loop when it waits no more. Embedded. */
struct ticket_waiter {
    ticket_t ticket;
    void (*on_ready)(struct ticket_waiter *waiter, enum ticket_state state);
    struct ticket_waiter *next;
};

struct server {
    struct server_config config;
    struct io io;
    struct node *node;
    struct loop *loop;
    struct disk *disk;
    struct session *sessions;       /* all, newest first, linked by session.next_all */
    struct session *session_lists[SESSION_LISTS];
    struct session *session_cursor; /* the next that sessions_tick() visits */
    uint32_t session_count;
    uint32_t held_count;            /* sessions with held replies */
    uint64_t next_session_id;
    uint64_t client_bytes;          /* memory in all connections' buffers */
    struct resp_limits limits[2];   /* before and after authentication */
    uint32_t turn;                  /* counts the loop's */
    uint64_t now_ns;                /* monotonic, taken once a turn */
    uint64_t active_session;        /* id of the last one that sent something */
    uint64_t other_active_ns;       /* when the active session last changed */
    uint64_t stop_by_ns;            /* shutdown: sessions are cut off then */
    uint64_t handed_over_ns;        /* shutdown: since when nothing is led here; 0: something is */
    uint64_t hand_over_by_ns;       /* before that: others lead what this node led; 0: not stopping yet */
    struct ticket_waiter *waiters;
    struct peers *peers;            /* server/peer.c's */
    struct executor *executor;      /* server/forward.c's; forward_close() frees it */
    struct bucket_request *bucket_requests; /* that wait to be known here; server/scatter.c's */
    struct server_counters counters;
    uint64_t started_ns;
    int64_t started_wall_ms;
    int listen_fd, http_fd, signal_fd;
    struct sockaddr_storage resp_address, http_address;
    char resp_text[80], http_text[80], peer_text[80]; /* "host:port" as served, "off" */
    void *http;                     /* server/http.c's */
    void *auth;                     /* server/auth.c's */
    struct command_state *commands; /* server/command.c's; commands_close() frees it */
    struct report_cache report;
    struct command_stats *command_stats; /* one per entry of command_table(); NULL: not kept */
    struct slowlog_entry *slowlog;
    uint32_t slowlog_count;
    uint64_t slowlog_next_id;
    uint64_t run_id[3];             /* random, shown by INFO */
    uint32_t ticks;
    bool stopping;
    int exit_code;
    uint64_t peers_hash;            /* of what the folder's file `peers` has */
    const struct folder *folder;
};

/* Loop callbacks and life cycle: server/server.c. Returns the process's exit code. */
int server_run(struct server_config *config);
/* Registers a waiter; if its ticket does not wait (any more), on_ready runs before this returns. */
void server_wait(struct server *server, struct ticket_waiter *waiter);
void server_unwait(struct server *server, struct ticket_waiter *waiter);

/* server/http.c. Serves on listen_fd inside the loop. */
enum err http_open(struct server *server, int listen_fd) MUST_CHECK;
void http_close(struct server *server);
/* The server stops: no new connection, no new request; what is being answered still is. */
void http_stop(struct server *server);
/* Something is being answered. */
bool http_busy(const struct server *server);
/* Gives libmicrohttpd its turn; from on_turn_end, before node_turn_end(), so that what it proposes leaves
 * with the turn's batch. Cheap when there is nothing to do. */
void http_turn(struct server *server);
struct http_stats {
    uint32_t connections;         /* open */
    uint64_t accepted;
    uint64_t rejected;            /* at a limit */
    uint64_t refused;             /* malformed requests */
    uint64_t timed_out;
    uint64_t answers[6];          /* by hundreds of the status: answers[2] is 2xx */
    uint64_t backups;             /* running */
    struct histogram *latency_ns; /* head to answer; NULL before the first */
};
/* All zero while HTTP is off. */
void http_stats(const struct server *server, struct http_stats *stats_out);

/* server/report.c: what INFO, /metrics and /status are made of. */
enum err report_metrics(struct server *server, struct buffer *out) MUST_CHECK;
enum err report_status(struct server *server, struct buffer *out) MUST_CHECK;
/* Why /health/ready says no; NULL: ready. */
const char *report_unready(struct server *server);
/* section: "" default, or a section's name, "all", "everything" */
enum err report_info(struct server *server, struct bytes section, struct buffer *out) MUST_CHECK;

/* server/auth.c. Verification runs on a worker thread; a verified secret is remembered by hash. */
/* Makes the argon2id string that is kept instead of `password` (crypto_pwhash_STRBYTES, 128 bytes, do).
 * Takes milliseconds; for start-up. ERR_NOMEM. */
enum err auth_hash(const char *password, char *out, size_t size) MUST_CHECK;
enum auth_result { AUTH_OK, AUTH_WRONG, AUTH_WAIT, AUTH_LIMITED };
enum err auth_open(struct server *server) MUST_CHECK;
void auth_close(struct server *server);
bool auth_required(const struct server *server);
/* AUTH_WAIT: on_done(ctx, result) comes from the loop later. `source` is the peer's address. */
enum auth_result auth_check(struct server *server, struct bytes password, uint32_t source,
    void (*on_done)(void *ctx, enum auth_result result), void *ctx);
/* From on_wake: delivers finished verifications. */
void auth_poll(struct server *server);

#endif
