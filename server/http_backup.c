#define _GNU_SOURCE
/* One worker per backup, and between it and the loop a queue of a few chunks: the client's pace reaches the disk
 * through the queue's bound, and a slow disk never holds up the loop. The end point of a backup has to be
 * fixed on the loop's thread (it reads the log's state), so the worker asks for it and waits. */

#include "server/http_backup.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/check.h"
#include "base/logger.h"
#include "storage/backup.h"

enum { QUEUE_CHUNKS = 3 };

struct backup_stream {
    struct backup *backup;
    void (*wake)(void *ctx);
    void *ctx;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct buffer queue[QUEUE_CHUNKS];
    uint32_t first, count;
    bool wants_end; /* the worker waits for backup_finish_at() */
    bool cancelled;
    bool ended; /* the worker is past its last use of anything here */
    enum err result; /* ERR_NOT_FOUND: complete; ERR_AGAIN: still working */
};

static void push(struct backup_stream *stream, struct buffer *chunk)
{
    while (stream->count == QUEUE_CHUNKS && !stream->cancelled)
        pthread_cond_wait(&stream->changed, &stream->mutex);
    if (stream->cancelled) return;
    stream->queue[(stream->first + stream->count++) % QUEUE_CHUNKS] = *chunk;
    *chunk = (struct buffer){0};
    if (stream->count == 1) stream->wake(stream->ctx);
}

static void *work(void *argument)
{
    struct backup_stream *stream = argument;
    /* a backup takes what the loop and the log leave; clients must not notice it */
    (void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 19);
    enum err err = OK;
    struct buffer chunk = {0};
    bool cancelled = false;
    while (!cancelled && (err == OK || err == ERR_AGAIN)) {
        err = backup_next(stream->backup, &chunk);
        pthread_mutex_lock(&stream->mutex);
        if (buffer_view(&chunk).size > 0) push(stream, &chunk);
        if (err == ERR_AGAIN) {
            stream->wants_end = true;
            stream->wake(stream->ctx);
            while (stream->wants_end && !stream->cancelled)
                pthread_cond_wait(&stream->changed, &stream->mutex);
        }
        cancelled = stream->cancelled;
        pthread_mutex_unlock(&stream->mutex);
    }
    buffer_deinit(&chunk);
    if (!cancelled && err != ERR_NOT_FOUND) log_error("backup failed", "error=%s", err_name(err));
    pthread_mutex_lock(&stream->mutex);
    stream->result = err == ERR_NOT_FOUND ? ERR_NOT_FOUND : err == OK ? ERR_CLOSED : err;
    stream->ended = true;
    stream->wake(stream->ctx);
    pthread_mutex_unlock(&stream->mutex);
    return NULL;
}

enum err backup_stream_open(struct engine *engine, const char *cluster_id, const char *name,
    void (*wake)(void *ctx), void *ctx, struct backup_stream **stream_out)
{
    struct backup_stream *stream = calloc(1, sizeof *stream);
    if (stream == NULL) return ERR_NOMEM;
    stream->wake = wake;
    stream->ctx = ctx;
    stream->result = ERR_AGAIN;
    enum err err = backup_open(engine, cluster_id, name, &stream->backup);
    if (err != OK) {
        free(stream);
        return err;
    }
    pthread_mutex_init(&stream->mutex, NULL);
    pthread_cond_init(&stream->changed, NULL);
    if (pthread_create(&stream->thread, NULL, work, stream) != 0) {
        backup_close(stream->backup);
        pthread_mutex_destroy(&stream->mutex);
        pthread_cond_destroy(&stream->changed);
        free(stream);
        return ERR_NOMEM;
    }
    *stream_out = stream;
    return OK;
}

enum err backup_stream_read(
    struct backup_stream *stream, void *at, size_t capacity, size_t *size_out)
{
    enum err err = OK;
    pthread_mutex_lock(&stream->mutex);
    if (stream->count > 0) {
        struct buffer *chunk = &stream->queue[stream->first];
        struct bytes held = buffer_view(chunk);
        size_t size = held.size < capacity ? held.size : capacity;
        memcpy(at, held.at, size);
        buffer_consume(chunk, size);
        if (size == held.size) {
            buffer_deinit(chunk);
            stream->first = (stream->first + 1) % QUEUE_CHUNKS;
            stream->count--;
            pthread_cond_signal(&stream->changed);
        }
        *size_out = size;
    } else {
        err = stream->result;
    }
    pthread_mutex_unlock(&stream->mutex);
    return err;
}

bool backup_stream_poll(struct backup_stream *stream)
{
    pthread_mutex_lock(&stream->mutex);
    if (stream->wants_end) {
        backup_finish_at(stream->backup);
        stream->wants_end = false;
        pthread_cond_signal(&stream->changed);
    }
    bool ready = stream->count > 0 || stream->result != ERR_AGAIN;
    pthread_mutex_unlock(&stream->mutex);
    return ready;
}

void backup_stream_cancel(struct backup_stream *stream)
{
    pthread_mutex_lock(&stream->mutex);
    stream->cancelled = true;
    pthread_cond_signal(&stream->changed);
    pthread_mutex_unlock(&stream->mutex);
}

bool backup_stream_reap(struct backup_stream *stream, bool wait)
{
    pthread_mutex_lock(&stream->mutex);
    bool ended = stream->ended;
    pthread_mutex_unlock(&stream->mutex);
    if (!ended && !wait) return false;
    pthread_join(stream->thread, NULL);
    backup_close(stream->backup);
    for (uint32_t i = 0; i < stream->count; i++)
        buffer_deinit(&stream->queue[(stream->first + i) % QUEUE_CHUNKS]);
    pthread_mutex_destroy(&stream->mutex);
    pthread_cond_destroy(&stream->changed);
    free(stream);
    return true;
}
