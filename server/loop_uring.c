#define _GNU_SOURCE
#include "server/loop_internal.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/check.h"

/* The io_uring back end.
 *
 * One ring, owned by one thread (SINGLE_ISSUER), whose completions are made only when that thread
 * enters the kernel to wait (DEFER_TASKRUN): nothing interrupts a turn. Each connection has one
 * multishot receive armed that takes its memory from a ring of buffers shared by all, so an idle
 * connection costs none; each listener has one multishot accept. All that a turn asks for goes into
 * the submission queue and is submitted by the call that waits for the next.
 *
 * Life of a stream: the kernel holds a receive and at most one send (in_flight counts them). Closing
 * shuts the socket down, which ends both; on_closed comes when the last of them is back, and only then
 * may the owner free the memory that user_data points to.
 *
 * Buffers that run out (-ENOBUFS) end the receives that met it; they are armed again at the end of
 * the turn, when this turn's buffers are back in the ring.
 *
 * Any failure while opening means ERR_UNSUPPORTED: containers and hardened kernels refuse io_uring in
 * several ways, some of them only at the second step. The probe therefore makes the real thing work
 * once: a receive of one byte over a socket pair through the buffer ring. */

enum { ENTRIES = 1024, COMPLETIONS = 8192, BUFFERS = 512, BUFFER_SIZE = 16 << 10, GROUP = 0 };

/* lowest bits of user_data; the rest is the pointer to the stream or source */
enum tag { TAG_RECEIVE, TAG_SEND, TAG_SOURCE, TAG_WAKE, TAG_TIMER, TAG_NONE };
#define TAG_MASK ((uint64_t)7)

struct loop_uring {
    struct loop loop;
    struct io_uring ring;
    bool ring_open;
    bool buffers_registered;
    struct io_uring_buf_ring *buffer_ring;
    uint8_t *buffers;
    struct __kernel_timespec tick;
    struct loop_stream *starved; /* receives that found no buffer */
    struct loop_stream *closed; /* nothing in flight any more: on_closed is due */
};

_Static_assert(_Alignof(struct loop_stream) >= 8 && _Alignof(struct loop_source) >= 8,
    "user_data has room for a tag");

static const size_t buffer_ring_size = BUFFERS * sizeof(struct io_uring_buf);
static const size_t buffers_size = (size_t)BUFFERS * BUFFER_SIZE;

static struct loop_uring *uring_of(struct loop *loop)
{
    return (struct loop_uring *)(void *)loop;
}

static uint64_t user_data(const void *at, enum tag tag)
{
    return (uintptr_t)at | (uint64_t)tag;
}

static struct io_uring_sqe *new_entry(struct loop_uring *self)
{
    struct io_uring_sqe *entry = io_uring_get_sqe(&self->ring);
    while (entry == NULL) {
        io_uring_submit(&self->ring);
        entry = io_uring_get_sqe(&self->ring);
    }
    return entry;
}

static void give_buffer(struct loop_uring *self, uint32_t id)
{
    io_uring_buf_ring_add(self->buffer_ring, self->buffers + (size_t)id * BUFFER_SIZE, BUFFER_SIZE,
        (unsigned short)id, io_uring_buf_ring_mask(BUFFERS), 0);
    io_uring_buf_ring_advance(self->buffer_ring, 1);
}

static void arm_receive(struct loop_uring *self, struct loop_stream *stream, uint32_t poll_first)
{
    ASSERT((stream->flags & LOOP_RECEIVING) == 0);
    struct io_uring_sqe *entry = new_entry(self);
    io_uring_prep_recv_multishot(entry, stream->fd, NULL, 0, 0);
    entry->ioprio |= (uint16_t)poll_first;
    entry->flags |= IOSQE_BUFFER_SELECT;
    entry->buf_group = GROUP;
    entry->user_data = user_data(stream, TAG_RECEIVE);
    stream->flags |= LOOP_RECEIVING;
    stream->in_flight++;
}

static void arm_wake(struct loop_uring *self)
{
    struct io_uring_sqe *entry = new_entry(self);
    io_uring_prep_poll_multishot(entry, self->loop.wake_fd, POLLIN);
    entry->user_data = user_data(NULL, TAG_WAKE);
}

static void arm_timer(struct loop_uring *self)
{
    if (self->loop.config.tick_ms == 0) return;
    struct io_uring_sqe *entry = new_entry(self);
    io_uring_prep_timeout(entry, &self->tick, 0, 0);
    entry->user_data = user_data(NULL, TAG_TIMER);
}

static void list_closed(struct loop_uring *self, struct loop_stream *stream)
{
    ASSERT((stream->flags & LOOP_CLOSING) != 0 && stream->in_flight == 0);
    if ((stream->flags & LOOP_LISTED) != 0) return;
    stream->flags |= LOOP_LISTED;
    stream->next = self->closed;
    self->closed = stream;
}

static void uring_close_stream(struct loop_stream *stream)
{
    struct loop_uring *self = uring_of(stream->loop);
    if (stream->in_flight == 0) {
        /* one that waits for buffers is in that list and is found closing there */
        list_closed(self, stream);
        return;
    }
    shutdown(stream->fd, SHUT_RDWR);
}

static void finish_closed(struct loop_uring *self)
{
    while (self->closed != NULL) {
        struct loop_stream *stream = self->closed;
        self->closed = stream->next;
        close(stream->fd);
        stream->fd = -1;
        stream->flags &= ~(uint32_t)LOOP_SENDING;
        stream->ops->on_closed(stream);
    }
}

static void on_receive(
    struct loop_uring *self, struct loop_stream *stream, int result, uint32_t flags)
{
    if ((flags & IORING_CQE_F_MORE) == 0) {
        stream->flags &= ~(uint32_t)LOOP_RECEIVING;
        stream->in_flight--;
    }
    if ((flags & IORING_CQE_F_BUFFER) != 0) {
        uint32_t id = flags >> IORING_CQE_BUFFER_SHIFT;
        if (result > 0 && (stream->flags & LOOP_CLOSING) == 0)
            loop_deliver(
                stream, bytes_of(self->buffers + (size_t)id * BUFFER_SIZE, (size_t)result));
        give_buffer(self, id);
    }
    if ((flags & IORING_CQE_F_MORE) != 0) return;

    if (result == 0) {
        loop_deliver_end(stream);
    } else if (result < 0 && result != -ENOBUFS && result != -ECANCELED && result != -EINTR &&
        result != -EAGAIN) {
        loop_close_stream(stream);
    }
    if ((stream->flags & LOOP_CLOSING) != 0) {
        if (stream->in_flight == 0) list_closed(self, stream);
        return;
    }
    /* on_data may have resumed, and so armed, it already */
    if ((stream->flags & (LOOP_PAUSED | LOOP_ENDED | LOOP_RECEIVING)) != 0) return;
    if (result == -ENOBUFS) {
        stream->flags |= LOOP_LISTED;
        stream->next = self->starved;
        self->starved = stream;
    } else {
        arm_receive(self, stream, 0);
    }
}

/* this turn's buffers are back: those that found none try again */
static void feed_starved(struct loop_uring *self)
{
    while (self->starved != NULL) {
        struct loop_stream *stream = self->starved;
        self->starved = stream->next;
        stream->flags &= ~(uint32_t)LOOP_LISTED;
        if ((stream->flags & LOOP_CLOSING) != 0) {
            if (stream->in_flight == 0) list_closed(self, stream);
        } else if ((stream->flags & (LOOP_PAUSED | LOOP_ENDED | LOOP_RECEIVING)) == 0) {
            arm_receive(self, stream, 0);
        }
    }
}

static void submit_send(struct loop_uring *self, struct loop_stream *stream)
{
    struct io_uring_sqe *entry = new_entry(self);
    io_uring_prep_send(entry, stream->fd, stream->send_at, stream->send_left, MSG_NOSIGNAL);
    entry->user_data = user_data(stream, TAG_SEND);
    stream->in_flight++;
}

static bool uring_send(struct loop_stream *stream)
{
    stream->flags |= LOOP_SENDING;
    submit_send(uring_of(stream->loop), stream);
    return false;
}

static void on_send(struct loop_uring *self, struct loop_stream *stream, int result)
{
    stream->in_flight--;
    if (result > 0) {
        stream->send_at += result;
        stream->send_left -= (size_t)result;
    } else if (result != -EAGAIN && result != -EINTR) {
        loop_close_stream(stream);
    }
    if ((stream->flags & LOOP_CLOSING) != 0) {
        if (stream->in_flight == 0) list_closed(self, stream);
    } else if (stream->send_left > 0) {
        submit_send(self, stream);
    } else {
        stream->flags &= ~(uint32_t)LOOP_SENDING;
        stream->ops->on_sent(stream);
    }
}

static enum err uring_arm(struct loop *loop, struct loop_source *source)
{
    struct io_uring_sqe *entry = new_entry(uring_of(loop));
    if (source->listening) {
        io_uring_prep_multishot_accept(entry, source->fd, NULL, NULL, SOCK_CLOEXEC);
    } else {
        io_uring_prep_poll_add(entry, source->fd, POLLIN);
    }
    entry->user_data = user_data(source, TAG_SOURCE);
    source->armed = true;
    return OK;
}

static void uring_disarm(struct loop *loop, struct loop_source *source)
{
    struct loop_uring *self = uring_of(loop);
    struct io_uring_sqe *entry = new_entry(self);
    io_uring_prep_cancel64(entry, user_data(source, TAG_SOURCE), 0);
    entry->user_data = user_data(NULL, TAG_NONE);
    /* at once: the caller is about to close the descriptor */
    io_uring_submit(&self->ring);
}

static void on_source(struct loop *loop, struct loop_source *source, int result, uint32_t flags)
{
    if ((flags & IORING_CQE_F_MORE) == 0) source->armed = false;
    if (source->gone) {
        if (source->listening && result >= 0) close(result);
        loop->sweep = true;
        return;
    }
    if (source->listening) {
        if (result >= 0) {
            source->on_accept(source->ctx, result);
        } else if (result != -ECONNABORTED && result != -EINTR && result != -EAGAIN &&
            !source->armed) {
            loop_accept_failed(loop, source);
            return;
        }
    } else if (result != -ECANCELED) {
        source->on_ready(source->ctx);
    }
    if (!source->armed && !source->gone) {
        enum err err = uring_arm(loop, source);
        ASSERT(err == OK);
    }
}

static void on_completion(struct loop_uring *self, uint64_t data, int result, uint32_t flags)
{
    void *at = (void *)(uintptr_t)(data & ~TAG_MASK);
    switch ((enum tag)(data & TAG_MASK)) {
    case TAG_RECEIVE:
        on_receive(self, at, result, flags);
        break;
    case TAG_SEND:
        on_send(self, at, result);
        break;
    case TAG_SOURCE:
        on_source(&self->loop, at, result, flags);
        break;
    case TAG_WAKE:
        loop_drain_wake(&self->loop);
        if ((flags & IORING_CQE_F_MORE) == 0) arm_wake(self);
        break;
    case TAG_TIMER:
        self->loop.tick_due = true;
        arm_timer(self);
        break;
    case TAG_NONE:
        break;
    }
}

static void uring_wait(struct loop *loop, bool wait)
{
    struct loop_uring *self = uring_of(loop);
    if (self->closed != NULL) wait = false;
    /* errors (EINTR, EBUSY while completions overflow) end in a turn that finds what there is */
    if (wait) {
        io_uring_submit_and_wait(&self->ring, 1);
    } else {
        io_uring_submit_and_get_events(&self->ring);
    }
}

static void uring_handle(struct loop *loop)
{
    struct loop_uring *self = uring_of(loop);
    struct io_uring_cqe *completion;
    unsigned head, count = 0;
    io_uring_for_each_cqe(&self->ring, head, completion)
    {
        on_completion(self, completion->user_data, completion->res, completion->flags);
        count++;
    }
    io_uring_cq_advance(&self->ring, count);
    feed_starved(self);
    finish_closed(self);
}

static void uring_start_stream(struct loop_stream *stream)
{
    arm_receive(uring_of(stream->loop), stream, IORING_RECVSEND_POLL_FIRST);
}

static void uring_pause(struct loop_stream *stream)
{
    if ((stream->flags & LOOP_RECEIVING) == 0) return;
    struct io_uring_sqe *entry = new_entry(uring_of(stream->loop));
    io_uring_prep_cancel64(entry, user_data(stream, TAG_RECEIVE), 0);
    entry->user_data = user_data(NULL, TAG_NONE);
}

static void uring_resume(struct loop_stream *stream)
{
    /* if the cancelled receive is not back yet, its end arms the next */
    if ((stream->flags & (LOOP_RECEIVING | LOOP_LISTED | LOOP_ENDED)) == 0)
        arm_receive(uring_of(stream->loop), stream, 0);
}

static void uring_close(struct loop *loop)
{
    struct loop_uring *self = uring_of(loop);
    if (self->ring_open) io_uring_queue_exit(&self->ring);
    if (self->buffer_ring != NULL) munmap(self->buffer_ring, buffer_ring_size);
    if (self->buffers != NULL) munmap(self->buffers, buffers_size);
    loop_deinit(loop);
    free(self);
}

static const struct loop_ops loop_uring_ops = {
    .name = "uring",
    .close = uring_close,
    .wait = uring_wait,
    .handle = uring_handle,
    .arm = uring_arm,
    .disarm = uring_disarm,
    .start_stream = uring_start_stream,
    .pause = uring_pause,
    .resume = uring_resume,
    .send = uring_send,
    .close_stream = uring_close_stream,
};

static bool open_ring(struct loop_uring *self)
{
    static const unsigned modes[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
        0,
    };
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        struct io_uring_params params = {
            .flags = modes[i] | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP,
            .cq_entries = COMPLETIONS,
        };
        int result = io_uring_queue_init_params(ENTRIES, &self->ring, &params);
        if (result == 0) {
            self->ring_open = true;
            /* saves the look-up of the descriptor at every call; older kernels do without */
            io_uring_register_ring_fd(&self->ring);
            return true;
        }
        if (result != -EINVAL) return false;
    }
    return false;
}

static void *map(size_t size)
{
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

static bool register_buffers(struct loop_uring *self)
{
    self->buffer_ring = map(buffer_ring_size);
    self->buffers = map(buffers_size);
    if (self->buffer_ring == NULL || self->buffers == NULL) return false;
    struct io_uring_buf_reg registration = {
        .ring_addr = (uintptr_t)self->buffer_ring, .ring_entries = BUFFERS, .bgid = GROUP};
    if (io_uring_register_buf_ring(&self->ring, &registration, 0) != 0) return false;
    io_uring_buf_ring_init(self->buffer_ring);
    for (uint32_t i = 0; i < BUFFERS; i++)
        give_buffer(self, i);
    return true;
}

/* waits for one completion with a deadline, so that an odd kernel cannot hang the start */
static bool probe_completion(struct loop_uring *self, int *result_out, uint32_t *flags_out)
{
    struct __kernel_timespec second = {.tv_sec = 1};
    struct io_uring_cqe *completion;
    if (io_uring_submit_and_wait_timeout(&self->ring, &completion, 1, &second, NULL) < 0)
        return false;
    if (io_uring_peek_cqe(&self->ring, &completion) != 0) return false;
    *result_out = completion->res;
    *flags_out = completion->flags;
    io_uring_cqe_seen(&self->ring, completion);
    return true;
}

static bool probe(struct loop_uring *self)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) return false;
    struct io_uring_sqe *entry = new_entry(self);
    io_uring_prep_recv_multishot(entry, pair[0], NULL, 0, 0);
    entry->flags |= IOSQE_BUFFER_SELECT;
    entry->buf_group = GROUP;
    int result = 0;
    uint32_t flags = 0;
    bool works = write(pair[1], "x", 1) == 1 && probe_completion(self, &result, &flags) &&
        result == 1 && (flags & IORING_CQE_F_BUFFER) != 0 && (flags & IORING_CQE_F_MORE) != 0;
    if (works) give_buffer(self, flags >> IORING_CQE_BUFFER_SHIFT);
    close(pair[1]);
    works = works && probe_completion(self, &result, &flags) && result == 0 &&
        (flags & IORING_CQE_F_MORE) == 0;
    close(pair[0]);
    return works;
}

enum err loop_uring_open(const struct loop_config *config, struct loop **loop_out)
{
    struct loop_uring *self = calloc(1, sizeof *self);
    if (self == NULL) return ERR_NOMEM;
    self->loop.wake_fd = -1;
    self->tick = (struct __kernel_timespec){
        .tv_sec = config->tick_ms / 1000, .tv_nsec = (long long)(config->tick_ms % 1000) * 1000000};
    enum err err = loop_init(&self->loop, config, &loop_uring_ops);
    if (err == OK && !(open_ring(self) && register_buffers(self) && probe(self)))
        err = ERR_UNSUPPORTED;
    if (err != OK) {
        uring_close(&self->loop);
        return err;
    }
    arm_wake(self);
    arm_timer(self);
    *loop_out = &self->loop;
    return OK;
}
