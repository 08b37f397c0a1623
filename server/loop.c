#define _GNU_SOURCE
#include "server/loop_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/check.h"

/* The turn, wake-ups and sources, common to both back ends.
 *
 * Waking. A thread that has something for the loop sets wake_pending, and writes to the eventfd only
 * if the loop sleeps or is about to. The loop announces its sleep first and looks at wake_pending
 * afterwards; the waker does it the other way round. All four accesses are sequentially consistent, so
 * at least one of the two sees the other, and a busy loop costs its wakers no system call. */

enum err loop_init(struct loop *loop, const struct loop_config *config, const struct loop_ops *ops)
{
    loop->config = *config;
    loop->ops = ops;
    loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return loop->wake_fd < 0 ? err_from_errno(errno) : OK;
}

void loop_deinit(struct loop *loop)
{
    while (loop->sources != NULL) {
        struct loop_source *source = loop->sources;
        loop->sources = source->next;
        free(source);
    }
    if (loop->wake_fd >= 0) close(loop->wake_fd);
}

enum err loop_open(const struct loop_config *config, struct loop **loop_out)
{
    if (!config->uring) return loop_epoll_open(config, loop_out);
    const char *refused = getenv("DURAMEN_NO_URING");
    if (refused != NULL && refused[0] != '\0' && refused[0] != '0') return ERR_UNSUPPORTED;
    return loop_uring_open(config, loop_out);
}

void loop_close(struct loop *loop)
{
    loop->ops->close(loop);
}

const char *loop_name(const struct loop *loop)
{
    return loop->ops->name;
}

uint32_t loop_turn_streams(const struct loop *loop)
{
    return loop->turn_streams;
}

void loop_wake(struct loop *loop)
{
    if (atomic_exchange(&loop->wake_pending, true)) return;
    if (!atomic_load(&loop->sleeping)) return;
    uint64_t one = 1;
    int saved = errno;
    /* fails only when the counter is full, and then the loop is woken anyway */
    ssize_t ignored = write(loop->wake_fd, &one, sizeof one);
    (void)ignored;
    errno = saved;
}

void loop_drain_wake(struct loop *loop)
{
    uint64_t count;
    ssize_t ignored = read(loop->wake_fd, &count, sizeof count);
    (void)ignored;
}

void loop_stop(struct loop *loop)
{
    loop->stopping = true;
}

/* listeners that ran out of descriptors get another chance */
static void rearm_listeners(struct loop *loop)
{
    loop->accept_failed = false;
    for (struct loop_source *source = loop->sources; source != NULL; source = source->next) {
        if (!source->listening || source->armed || source->gone) continue;
        if (loop->ops->arm(loop, source) != OK) loop->accept_failed = true;
    }
}

/* frees sources that are gone; never within a batch of events, which may still name them */
static void sweep(struct loop *loop)
{
    loop->sweep = false;
    for (struct loop_source **at = &loop->sources; *at != NULL;) {
        struct loop_source *source = *at;
        if (source->gone && !source->armed) {
            *at = source->next;
            free(source);
        } else {
            at = &source->next;
        }
    }
}

void loop_run(struct loop *loop)
{
    const struct loop_config *config = &loop->config;
    bool again = false;
    loop->stopping = false;
    while (!loop->stopping) {
        if (again) {
            loop->ops->wait(loop, false);
        } else {
            atomic_store(&loop->sleeping, true);
            loop->ops->wait(loop, !atomic_load(&loop->wake_pending));
            atomic_store_explicit(&loop->sleeping, false, memory_order_relaxed);
        }
        loop->turn++;
        loop->turn_streams = 0;
        if (config->on_turn_begin != NULL) config->on_turn_begin(config->ctx);
        if (atomic_load_explicit(&loop->wake_pending, memory_order_relaxed)) {
            atomic_store(&loop->wake_pending, false);
            if (config->on_wake != NULL) config->on_wake(config->ctx);
        }
        loop->ops->handle(loop);
        if (loop->sweep) sweep(loop);
        if (loop->tick_due) {
            loop->tick_due = false;
            if (loop->accept_failed) rearm_listeners(loop);
            if (config->on_tick != NULL) config->on_tick(config->ctx);
        }
        again = config->on_turn_end != NULL && config->on_turn_end(config->ctx);
    }
}

static enum err add_source(struct loop *loop, struct loop_source wanted)
{
    struct loop_source *source = malloc(sizeof *source);
    if (source == NULL) return ERR_NOMEM;
    *source = wanted;
    enum err err = loop->ops->arm(loop, source);
    if (err != OK) {
        free(source);
        return err;
    }
    source->next = loop->sources;
    loop->sources = source;
    return OK;
}

static void remove_source(struct loop *loop, int fd)
{
    for (struct loop_source *source = loop->sources; source != NULL; source = source->next) {
        if (source->fd != fd || source->gone) continue;
        source->gone = true;
        loop->sweep = true;
        if (source->armed) loop->ops->disarm(loop, source);
        return;
    }
}

void loop_accept_failed(struct loop *loop, struct loop_source *source)
{
    ASSERT(source->listening && !source->armed);
    loop->accept_failed = true;
}

enum err loop_listen(struct loop *loop, int fd, void (*on_accept)(void *ctx, int fd), void *ctx)
{
    return add_source(loop,
        (struct loop_source){.fd = fd, .listening = true, .on_accept = on_accept, .ctx = ctx});
}

void loop_unlisten(struct loop *loop, int fd)
{
    remove_source(loop, fd);
}

enum err loop_watch(struct loop *loop, int fd, void (*on_ready)(void *ctx), void *ctx)
{
    return add_source(loop, (struct loop_source){.fd = fd, .on_ready = on_ready, .ctx = ctx});
}

void loop_unwatch(struct loop *loop, int fd)
{
    remove_source(loop, fd);
}

void loop_deliver(struct loop_stream *stream, struct bytes bytes)
{
    struct loop *loop = stream->loop;
    if (stream->turn != loop->turn) {
        stream->turn = loop->turn;
        loop->turn_streams++;
    }
    stream->ops->on_data(stream, bytes);
}

void loop_deliver_end(struct loop_stream *stream)
{
    if ((stream->flags & (LOOP_ENDED | LOOP_CLOSING)) != 0) return;
    stream->flags |= LOOP_ENDED;
    if (stream->ops->on_end != NULL) {
        stream->ops->on_end(stream);
    } else {
        loop_close_stream(stream);
    }
}

void loop_start_stream(
    struct loop *loop, struct loop_stream *stream, const struct loop_stream_ops *ops, int fd)
{
    *stream = (struct loop_stream){.loop = loop, .ops = ops, .fd = fd};
    loop->ops->start_stream(stream);
}

void loop_pause(struct loop_stream *stream)
{
    if ((stream->flags & (LOOP_PAUSED | LOOP_CLOSING)) != 0) return;
    stream->flags |= LOOP_PAUSED;
    stream->loop->ops->pause(stream);
}

void loop_resume(struct loop_stream *stream)
{
    if ((stream->flags & LOOP_PAUSED) == 0) return;
    stream->flags &= ~(uint32_t)LOOP_PAUSED;
    if ((stream->flags & LOOP_CLOSING) == 0) stream->loop->ops->resume(stream);
}

bool loop_send(struct loop_stream *stream, const void *at, size_t size)
{
    ASSERT((stream->flags & LOOP_SENDING) == 0);
    if ((stream->flags & LOOP_CLOSING) != 0 || size == 0) return true;
    stream->send_at = at;
    stream->send_left = size;
    return stream->loop->ops->send(stream);
}

bool loop_sending(const struct loop_stream *stream)
{
    return (stream->flags & LOOP_SENDING) != 0;
}

void loop_close_stream(struct loop_stream *stream)
{
    if ((stream->flags & LOOP_CLOSING) != 0) return;
    stream->flags |= LOOP_CLOSING;
    stream->loop->ops->close_stream(stream);
}
