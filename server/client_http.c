#include "server/client_http.h"

#include <curl/curl.h>
#include <stdio.h>
#include <string.h>

/* Only plain HTTP, to exactly the node named: no proxy from the environment, no redirects, no
 * ~/.netrc. A transfer that stands still for 30 seconds is given up. */

struct transfer {
    const struct client_request *request;
    CURL *curl;
    char error_body[256]; /* the start of an error's JSON body */
    size_t error_size;
    bool stopped;
};

static size_t take_body(char *at, size_t size, size_t count, void *ctx)
{
    struct transfer *transfer = ctx;
    size_t bytes = size * count;
    long status = 0;
    curl_easy_getinfo(transfer->curl, CURLINFO_RESPONSE_CODE, &status);
    if (status != 200) {
        size_t room = sizeof transfer->error_body - 1 - transfer->error_size;
        size_t taken = bytes < room ? bytes : room;
        memcpy(transfer->error_body + transfer->error_size, at, taken);
        transfer->error_size += taken;
        return bytes;
    }
    if (transfer->request->on_body(transfer->request->ctx, bytes_of(at, bytes))) return bytes;
    transfer->stopped = true;
    return 0;
}

static int show_progress(
    void *ctx, curl_off_t total, curl_off_t received, curl_off_t up_total, curl_off_t up)
{
    struct transfer *transfer = ctx;
    (void)up_total;
    (void)up;
    transfer->request->on_progress(transfer->request->ctx, received > 0 ? (uint64_t)received : 0,
        total > 0 ? (uint64_t)total : 0);
    return 0;
}

/* The text after "message": in {"error":{"code":...,"message":"..."}}, or the whole body. */
static void error_message(struct transfer *transfer, char *target, size_t capacity)
{
    const char *key = "\"message\":\"";
    const char *at = strstr(transfer->error_body, key);
    at = at != NULL ? at + strlen(key) : transfer->error_body;
    size_t used = 0;
    for (; *at != '\0' && *at != '"' && used + 1 < capacity; at++)
        target[used++] = (unsigned char)*at < 0x20 || *at == 0x7f ? ' ' : *at;
    target[used] = '\0';
}

static enum err judge(struct transfer *transfer, CURLcode code, const char *curl_error,
    char *detail, size_t detail_size)
{
    const struct client_request *request = transfer->request;
    long status = 0;
    curl_easy_getinfo(transfer->curl, CURLINFO_RESPONSE_CODE, &status);
    if (transfer->stopped) {
        snprintf(detail, detail_size, "the transfer from %s was stopped", request->node);
        return ERR_TRUNCATED;
    }
    if (code != CURLE_OK) {
        bool connected = status != 0;
        snprintf(detail, detail_size,
            connected ? "the connection to %s was lost (%s)"
                      : "no node answers HTTP at %s (%s); name one with --node HOST:HTTPPORT",
            request->node, curl_error[0] != '\0' ? curl_error : curl_easy_strerror(code));
        return ERR_CLOSED;
    }
    if (status == 200) return OK;
    char message[200];
    error_message(transfer, message, sizeof message);
    bool refused = status == 401 || status == 403;
    snprintf(detail, detail_size, "%s answered %ld to %s: %s%s", request->node, status,
        request->path, message, refused ? "; give the password with --password-file" : "");
    return refused ? ERR_PERMISSION : ERR_IO;
}

enum err client_get(const struct client_request *request, char *detail, size_t detail_size)
{
    CURL *curl = NULL;
    if (curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK) curl = curl_easy_init();
    if (curl == NULL) {
        snprintf(detail, detail_size, "%s", err_text(ERR_NOMEM));
        return ERR_NOMEM;
    }
    struct transfer transfer = {.request = request, .curl = curl};
    char url[512], curl_error[CURL_ERROR_SIZE] = "";
    snprintf(url, sizeof url, "http://%s%s", request->node, request->path);
    CURLcode code = curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http");
    curl_easy_setopt(curl, CURLOPT_PROXY, "");
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "duramen/" DURAMEN_VERSION);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, 5L);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, 30L);
    curl_easy_setopt(curl, CURLOPT_BUFFERSIZE, 262144L);
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, curl_error);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take_body);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &transfer);
    if (request->post) {
        curl_easy_setopt(curl, CURLOPT_POST, 1L);
        curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE, 0L);
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, "");
    }
    if (request->password != NULL) {
        curl_easy_setopt(curl, CURLOPT_HTTPAUTH, (long)CURLAUTH_BEARER);
        curl_easy_setopt(curl, CURLOPT_XOAUTH2_BEARER, request->password);
    }
    if (request->on_progress != NULL) {
        curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
        curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, show_progress);
        curl_easy_setopt(curl, CURLOPT_XFERINFODATA, &transfer);
    }
    if (code == CURLE_OK) code = curl_easy_perform(curl);
    enum err err = judge(&transfer, code, curl_error, detail, detail_size);
    curl_easy_cleanup(curl);
    curl_global_cleanup();
    return err;
}
