#ifndef SERVER_HTTP_BACKUP_H
#define SERVER_HTTP_BACKUP_H

#include "server/server.h"

/* A hot backup as a stream of bytes: a worker thread reads and compresses, the loop takes what is ready. */

struct backup_stream;

/* The loop's thread, as for all calls here. wake() is called, from the worker, when
 * backup_stream_poll() has something to do. */
enum err backup_stream_open(struct engine *engine, const char *cluster_id, const char *name,
    void (*wake)(void *ctx), void *ctx, struct backup_stream **stream_out) MUST_CHECK;
/* Copies up to `capacity` bytes. ERR_AGAIN: none yet; ERR_NOT_FOUND: that was all; else the backup failed. */
enum err backup_stream_read(
    struct backup_stream *stream, void *at, size_t capacity, size_t *size_out) MUST_CHECK;
/* Fixes the end point when the worker asks for it. True if read would not say ERR_AGAIN. */
bool backup_stream_poll(struct backup_stream *stream);
/* Nobody wants the rest. Never blocks for long: backup_stream_reap() frees it once the worker has ended. */
void backup_stream_cancel(struct backup_stream *stream);
/* True: it is freed. `wait`: joins the worker however long it takes. */
bool backup_stream_reap(struct backup_stream *stream, bool wait);

#endif
