#ifndef SERVER_HTTP_INTERNAL_H
#define SERVER_HTTP_INTERNAL_H

#include <microhttpd.h>

#include "server/http_backup.h"
#include "server/http_gate.h"
#include "server/http_parse.h"
#include "server/scatter.h"
#include "web/assets.h"

/* What server/http.c and server/http_data.c share. */

enum { ADMISSION_MS = 2000 }; /* the request deadline */
#define MILLISECOND UINT64_C(1000000)

enum route {
    ROUTE_NONE,
    ROUTE_KEY,
    ROUTE_KEYS,
    ROUTE_STATUS,
    ROUTE_METRICS,
    ROUTE_LIVE,
    ROUTE_READY,
    ROUTE_BACKUP,
    ROUTE_ADMIN,
    ROUTE_PAGE,
};

enum step {
    STEP_NEW, /* nothing decided yet */
    STEP_AUTH, /* suspended: auth_check() will tell */
    STEP_BODY, /* body is arriving, or all is there */
    STEP_ADMISSION, /* suspended: no room for the write yet */
    STEP_COMMIT, /* suspended: `outcome` is decided and waits for its ticket */
    STEP_REMOTE, /* suspended: other nodes are asked */
    STEP_ANSWER, /* `outcome` may be told */
    STEP_STREAM, /* a backup is being sent */
};

enum method { METHOD_GET, METHOD_HEAD, METHOD_PUT, METHOD_DELETE, METHOD_POST, METHOD_OTHER };

/* What will be answered. */
struct outcome {
    unsigned status;
    const char *code; /* of an error */
    const char *message;
    const char *allow;
    const char *challenge; /* WWW-Authenticate */
    uint64_t version; /* ETag, if not 0 */
    unsigned retry_s;
    bool value; /* request.value is the body */
    bool page; /* and it is JSON */
};

struct list; /* a page that all ranges are asked for */

/* Between the gate and a connection of the library; outlives either. */
struct link {
    struct http *http;
    struct gate *gate; /* NULL: the client is gone */
    struct MHD_Connection *connection;
    struct request *request;
    int fd;
    bool known; /* the library has reported the connection */
    struct link *next, *previous;
};

struct request {
    struct http *http;
    struct link *link;
    enum step step;
    enum method method;
    bool suspended;
    bool answered;
    bool waits_for_ticket;
    enum auth_result auth;
    struct buffer target_text;
    struct http_target target;
    enum route route;
    struct web_asset asset;
    bool has_bucket; /* named; bucket_known: `bucket` is its id */
    bool bucket_known;
    uint16_t bucket;
    char bucket_name[NODE_BUCKET_NAME_MAX + 1];
    uint8_t key[KEY_SIZE_MAX];
    size_t key_size;
    struct buffer body;
    size_t counted; /* of server.client_bytes */
    struct buffer value; /* of an answer that has to wait, or came from another node */
    char code[64], message[256]; /* of an answer from another node */
    bool remote_active;
    struct node_request remote;
    struct bucket_request bucket_request;
    struct list *list; /* a page that all ranges are asked for */
    enum node_admin admin;
    uint32_t admin_range, admin_last; /* still to be asked: these */
    uint32_t admin_done;
    struct outcome outcome;
    struct ticket_waiter waiter;
    uint64_t began_ns;
    struct request *next_admission;
    bool in_admission;
    struct backup_stream *stream;
    struct request *next_stream;
    /* header fields, as the library holds them */
    struct bytes host, origin, if_match, if_none_match, authorization, client, sequence;
    bool repeated; /* one of these came twice */
};

struct dying_stream {
    struct backup_stream *stream;
    struct dying_stream *next;
};

struct http {
    struct server *server;
    struct gates *gates;
    struct MHD_Daemon *daemon;
    int daemon_fd;
    bool library; /* MHD_run() has something to do */
    bool running; /* inside turn(): no recursion */
    struct link *links;
    struct request *admission; /* wait for room */
    struct request *streams; /* being sent */
    struct dying_stream *dying; /* workers that have not ended yet */
    uint32_t stream_count;
    uint64_t swept_ns;
    struct http_stats stats;
};

/* The value of a query parameter, decoded; a parameter that comes twice is refused. */
struct parameter {
    const char *name;
    bool found;
    uint8_t at[KEY_SIZE_MAX + 256];
    size_t size;
};

/* ---- server/http.c ---- */

uint64_t http_now_ns(const struct http *http);
bool request_changes_state(const struct request *request);
/* The library leaves the request alone until it is resumed; then handle() goes on at `step`. */
void request_suspend(struct request *request);
void request_resume(struct request *request);
void request_leave_admission(struct request *request);
/* Keeps server.client_bytes in step with the buffers. */
void request_count_bytes(struct request *request);
/* Each parameter at most once, and no other. */
enum err request_query(struct request *request, struct parameter *parameters, size_t count);
struct bytes parameter_value(const struct parameter *parameter);
/* An error to be told. */
struct outcome outcome_of(unsigned status, const char *code, const char *message);
struct MHD_Response *response_of(struct bytes body);
void response_header(struct MHD_Response *response, const char *name, const char *value);
enum MHD_Result request_queue(
    struct request *request, unsigned status, const char *type, struct MHD_Response *response);
enum MHD_Result request_answer_buffer(
    struct request *request, unsigned status, const char *type, struct buffer *body);
/* Tells request->outcome. */
enum MHD_Result request_answer(struct request *request);
enum MHD_Result request_answer_error(
    struct request *request, unsigned status, const char *code, const char *message);
enum MHD_Result request_answer_err(struct request *request, enum err err);
enum MHD_Result request_answer_value(struct request *request, struct bytes value);

/* ---- server/http_data.c: keys, pages of them, and what changes the cluster ---- */

enum MHD_Result request_run_key(struct request *request);
enum MHD_Result request_list_keys(struct request *request);
enum MHD_Result request_start_admin(struct request *request);
/* Nobody waits for what other nodes were asked. */
void request_cancel_remote(struct request *request);

#endif
