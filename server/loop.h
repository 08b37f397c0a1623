#ifndef SERVER_LOOP_H
#define SERVER_LOOP_H

#include <stdbool.h>

#include "base/bytes.h"
#include "base/err.h"

/* The event loop of one thread: accepted connections, readiness of other descriptors, wake-ups and
 * a periodic tick. Two back ends: io_uring (multishot accept and receive into a ring of provided buffers,
 * what a turn asks of the kernel submitted by one system call) and epoll, for where io_uring is not
 * allowed. What was measured and why it is as it is: docs/decisions/0005-event-loop.md.
 *
 * A turn: wait, on_turn_begin, on_wake (if woken), the events, on_tick (if due), on_turn_end. All
 * calls but loop_wake() belong to the thread that called loop_open(), which also runs the loop. */

struct loop;
struct loop_stream;

/* A connection. Embedded in its owner's struct; callbacks come from loop_run() only. */
struct loop_stream_ops {
    /* Bytes arrived; borrowed for the call. The owner may pause, send or close in it. */
    void (*on_data)(struct loop_stream *stream, struct bytes bytes);
    /* The peer has finished sending (it may still read): the owner sends what it owes and closes. May
     * be NULL: then the loop closes. */
    void (*on_end)(struct loop_stream *stream);
    /* The bytes given to loop_send() are out (all of them) and may be reused. */
    void (*on_sent)(struct loop_stream *stream);
    /* The last callback: peer gone, error, or loop_close_stream() finished. The descriptor is closed, and
     * the owner may free the struct. */
    void (*on_closed)(struct loop_stream *stream);
};

struct loop_stream {
    struct loop *loop;
    const struct loop_stream_ops *ops;
    int fd;
    uint32_t flags; /* the loop's */
    uint32_t in_flight; /* operations the kernel still holds */
    uint32_t turn; /* the last in which data came */
    const uint8_t *send_at;
    size_t send_left;
    struct loop_stream *next; /* the loop's */
};

struct loop_config {
    bool uring; /* false: epoll */
    uint32_t tick_ms; /* period of on_tick; 0: none */
    void *ctx;
    /* Any of these may be NULL. */
    void (*on_turn_begin)(void *ctx);
    /* End of a turn, before the loop sleeps. Returns true to be called again without sleeping. */
    bool (*on_turn_end)(void *ctx);
    void (*on_wake)(void *ctx);
    void (*on_tick)(void *ctx);
};

/* ERR_UNSUPPORTED if io_uring is wanted and cannot be had (or DURAMEN_NO_URING is set in the
 * environment): open again without. */
enum err loop_open(const struct loop_config *config, struct loop **loop_out) MUST_CHECK;
/* All streams must be closed (on_closed ran); listeners and watches are dropped. */
void loop_close(struct loop *loop);
/* Runs until loop_stop(). */
void loop_run(struct loop *loop);
/* loop_run() returns after the turn. */
void loop_stop(struct loop *loop);
/* From any thread or a signal handler: on_wake runs soon. Coalesces. */
void loop_wake(struct loop *loop);
/* "uring" or "posix" */
const char *loop_name(const struct loop *loop);
/* Streams that had data in this turn so far: 1 means that one client is alone. */
uint32_t loop_turn_streams(const struct loop *loop);

/* Accepts on a listening, non-blocking descriptor; backs off by itself when descriptors run out. */
enum err loop_listen(
    struct loop *loop, int fd, void (*on_accept)(void *ctx, int fd), void *ctx) MUST_CHECK;
/* No on_accept after it; the descriptor is the caller's to close. */
void loop_unlisten(struct loop *loop, int fd);
/* Takes the descriptor, a connected stream socket in blocking mode; data starts to flow. */
void loop_start_stream(
    struct loop *loop, struct loop_stream *stream, const struct loop_stream_ops *ops, int fd);
/* Stops and restarts on_data (back-pressure reaches the peer through TCP). What the kernel has
 * handed over already still comes after a pause, some hundred KiB at most: the owner keeps it. */
void loop_pause(struct loop_stream *stream);
void loop_resume(struct loop_stream *stream);
/* One send at a time. True: all bytes are out already and on_sent will not come. False: they must
 * stay where they are until on_sent or on_closed. */
bool loop_send(struct loop_stream *stream, const void *at, size_t size);
bool loop_sending(const struct loop_stream *stream);
/* Asks for the end; on_closed comes later, from the loop. Idempotent. Unsent bytes are dropped. */
void loop_close_stream(struct loop_stream *stream);

/* Calls on_ready(ctx) whenever fd is readable: one-shot, armed again after each call. */
enum err loop_watch(struct loop *loop, int fd, void (*on_ready)(void *ctx), void *ctx) MUST_CHECK;
void loop_unwatch(struct loop *loop, int fd);

#endif
