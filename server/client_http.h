#ifndef SERVER_CLIENT_HTTP_H
#define SERVER_CLIENT_HTTP_H

#include <stdbool.h>

#include "base/bytes.h"
#include "base/err.h"

/* The HTTP client of the operator's commands. The one source that sees libcurl. Blocks. */

struct client_request {
    const char *node; /* "host:port" */
    const char *path; /* "/status" */
    const char *password; /* NULL: none; sent as a bearer token */
    bool post; /* without a body; else GET */
    /* Gets the body as it comes; false stops the transfer. Called only for status 200. */
    bool (*on_body)(void *ctx, struct bytes bytes);
    /* Called several times a second, with what is known: total 0 is unknown. May be NULL. */
    void (*on_progress)(void *ctx, uint64_t received, uint64_t total);
    void *ctx;
};

/* OK: status 200 and the whole body was delivered. Else `detail` gets a sentence that names the
 * node and says what happened. ERR_CLOSED: not reached, or lost on the way; ERR_TRUNCATED: on_body
 * stopped it; ERR_PERMISSION: 401 or 403; ERR_IO: any other status. */
enum err client_get(
    const struct client_request *request, char *detail, size_t detail_size) MUST_CHECK;

#endif
