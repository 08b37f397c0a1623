#define _GNU_SOURCE
#include "server/loop_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

/* The epoll back end: level-triggered, one shared receive buffer, sends tried at once.
 *
 * Everything in the epoll set is a pointer whose lowest bits tell what it points to. Streams are
 * freed by their owners in on_closed, and events of the same batch may still name a stream that was closed
 * earlier in it: so on_closed comes after the batch. */

enum { RECEIVE_SIZE = 64 << 10, EVENTS = 256 };
enum tag { TAG_STREAM, TAG_SOURCE, TAG_WAKE, TAG_TIMER };
#define TAG_MASK ((uint64_t)3)

struct loop_epoll {
    struct loop loop;
    int fd;
    int timer_fd;
    int events_count;
    struct loop_stream *closing;
    struct epoll_event events[EVENTS];
    uint8_t received[RECEIVE_SIZE];
};

static struct loop_epoll *epoll_of(struct loop *loop)
{
    return (struct loop_epoll *)(void *)loop;
}

static enum err control(
    struct loop *loop, int operation, int fd, uint32_t events, void *at, enum tag tag)
{
    struct epoll_event event = {.events = events, .data.u64 = (uintptr_t)at | tag};
    if (epoll_ctl(epoll_of(loop)->fd, operation, fd, &event) != 0) return err_from_errno(errno);
    return OK;
}

static void epoll_close(struct loop *loop)
{
    struct loop_epoll *self = epoll_of(loop);
    if (self->timer_fd >= 0) close(self->timer_fd);
    if (self->fd >= 0) close(self->fd);
    loop_deinit(loop);
    free(self);
}

static void list_closing(struct loop_stream *stream)
{
    struct loop_epoll *self = epoll_of(stream->loop);
    if ((stream->flags & LOOP_LISTED) != 0) return;
    stream->flags |= LOOP_LISTED;
    stream->next = self->closing;
    self->closing = stream;
}

static void finish_closing(struct loop_epoll *self)
{
    while (self->closing != NULL) {
        struct loop_stream *stream = self->closing;
        self->closing = stream->next;
        close(stream->fd);
        stream->fd = -1;
        stream->flags &= ~(uint32_t)LOOP_SENDING;
        stream->ops->on_closed(stream);
    }
}

static void epoll_wait_turn(struct loop *loop, bool wait)
{
    struct loop_epoll *self = epoll_of(loop);
    if (self->closing != NULL) wait = false;
    self->events_count = epoll_wait(self->fd, self->events, EVENTS, wait ? -1 : 0);
    if (self->events_count < 0) self->events_count = 0; /* EINTR */
}

static void watch_stream(struct loop_stream *stream)
{
    uint32_t events = 0;
    if ((stream->flags & (LOOP_PAUSED | LOOP_ENDED)) == 0) events |= EPOLLIN;
    if ((stream->flags & LOOP_WANT_OUT) != 0) events |= EPOLLOUT;
    if (control(stream->loop, EPOLL_CTL_MOD, stream->fd, events, stream, TAG_STREAM) != OK)
        loop_close_stream(stream);
}

/* True: all is out. An error closes the stream. */
static bool send_some(struct loop_stream *stream)
{
    while (stream->send_left > 0) {
        ssize_t sent =
            send(stream->fd, stream->send_at, stream->send_left, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EINTR) continue;
            if (errno != EAGAIN && errno != EWOULDBLOCK && errno != ENOBUFS)
                loop_close_stream(stream);
            return false;
        }
        stream->send_at += sent;
        stream->send_left -= (size_t)sent;
    }
    return true;
}

static bool epoll_send(struct loop_stream *stream)
{
    if (send_some(stream)) return true;
    stream->flags |= LOOP_SENDING | LOOP_WANT_OUT;
    if ((stream->flags & LOOP_CLOSING) == 0) watch_stream(stream);
    return false;
}

static void receive(struct loop_stream *stream)
{
    struct loop_epoll *self = epoll_of(stream->loop);
    ssize_t size = recv(stream->fd, self->received, RECEIVE_SIZE, MSG_DONTWAIT);
    if (size > 0) {
        loop_deliver(stream, bytes_of(self->received, (size_t)size));
    } else if (size == 0) {
        loop_deliver_end(stream);
        if ((stream->flags & LOOP_CLOSING) == 0) watch_stream(stream);
    } else if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
        loop_close_stream(stream);
    }
}

static void handle_stream(struct loop_stream *stream, uint32_t events)
{
    if ((stream->flags & LOOP_CLOSING) != 0) return;
    if ((events & EPOLLOUT) != 0 && (stream->flags & LOOP_WANT_OUT) != 0 && send_some(stream)) {
        stream->flags &= ~(uint32_t)(LOOP_SENDING | LOOP_WANT_OUT);
        watch_stream(stream);
        if ((stream->flags & LOOP_CLOSING) == 0) stream->ops->on_sent(stream);
    }
    if ((stream->flags & LOOP_CLOSING) != 0) return;
    if ((events & EPOLLIN) != 0 && (stream->flags & (LOOP_PAUSED | LOOP_ENDED)) == 0) {
        receive(stream);
    } else if ((events & (EPOLLERR | EPOLLHUP)) != 0) {
        loop_close_stream(stream);
    }
}

static void accept_some(struct loop *loop, struct loop_source *source)
{
    for (int i = 0; i < 64 && !source->gone; i++) {
        int fd = accept4(source->fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd >= 0) {
            source->on_accept(source->ctx, fd);
            continue;
        }
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            loop->ops->disarm(loop, source);
            loop_accept_failed(loop, source);
        }
        return;
    }
}

static void epoll_handle(struct loop *loop)
{
    struct loop_epoll *self = epoll_of(loop);
    for (int i = 0; i < self->events_count; i++) {
        uint64_t data = self->events[i].data.u64;
        void *at = (void *)(uintptr_t)(data & ~TAG_MASK);
        struct loop_source *source = at;
        switch ((enum tag)(data & TAG_MASK)) {
        case TAG_STREAM:
            handle_stream(at, self->events[i].events);
            break;
        case TAG_SOURCE:
            if (source->gone) break;
            if (source->listening) {
                accept_some(loop, source);
            } else {
                source->on_ready(source->ctx);
            }
            break;
        case TAG_WAKE:
            loop_drain_wake(loop);
            break;
        case TAG_TIMER: {
            uint64_t times;
            if (read(self->timer_fd, &times, sizeof times) == (ssize_t)sizeof times)
                loop->tick_due = true;
            break;
        }
        }
    }
    finish_closing(self);
}

static enum err epoll_arm(struct loop *loop, struct loop_source *source)
{
    enum err err = control(loop, EPOLL_CTL_ADD, source->fd, EPOLLIN, source, TAG_SOURCE);
    if (err == OK) source->armed = true;
    return err;
}

static void epoll_disarm(struct loop *loop, struct loop_source *source)
{
    epoll_ctl(epoll_of(loop)->fd, EPOLL_CTL_DEL, source->fd, NULL);
    source->armed = false;
}

static void epoll_start_stream(struct loop_stream *stream)
{
    if (control(stream->loop, EPOLL_CTL_ADD, stream->fd, EPOLLIN, stream, TAG_STREAM) != OK)
        loop_close_stream(stream);
}

static const struct loop_ops loop_epoll_ops = {
    .name = "posix",
    .close = epoll_close,
    .wait = epoll_wait_turn,
    .handle = epoll_handle,
    .arm = epoll_arm,
    .disarm = epoll_disarm,
    .start_stream = epoll_start_stream,
    .pause = watch_stream,
    .resume = watch_stream,
    .send = epoll_send,
    .close_stream = list_closing,
};

static enum err start_timer(struct loop_epoll *self, uint32_t period_ms)
{
    if (period_ms == 0) return OK;
    self->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (self->timer_fd < 0) return err_from_errno(errno);
    struct timespec period = {
        .tv_sec = period_ms / 1000, .tv_nsec = (long)(period_ms % 1000) * 1000000};
    struct itimerspec spec = {.it_interval = period, .it_value = period};
    if (timerfd_settime(self->timer_fd, 0, &spec, NULL) != 0) return err_from_errno(errno);
    return control(&self->loop, EPOLL_CTL_ADD, self->timer_fd, EPOLLIN, NULL, TAG_TIMER);
}

enum err loop_epoll_open(const struct loop_config *config, struct loop **loop_out)
{
    struct loop_epoll *self = calloc(1, sizeof *self);
    if (self == NULL) return ERR_NOMEM;
    self->loop.wake_fd = -1;
    self->timer_fd = -1;
    self->fd = epoll_create1(EPOLL_CLOEXEC);
    enum err err = self->fd < 0 ? err_from_errno(errno) : OK;
    if (err == OK) err = loop_init(&self->loop, config, &loop_epoll_ops);
    if (err == OK)
        err = control(&self->loop, EPOLL_CTL_ADD, self->loop.wake_fd, EPOLLIN, NULL, TAG_WAKE);
    if (err == OK) err = start_timer(self, config->tick_ms);
    if (err != OK) {
        epoll_close(&self->loop);
        return err;
    }
    *loop_out = &self->loop;
    return OK;
}
