#ifndef SERVER_LOOP_INTERNAL_H
#define SERVER_LOOP_INTERNAL_H

#include <stdatomic.h>

#include "server/loop.h"

/* What the two back ends share. Each embeds struct loop as its first member. */

/* A listening or watched descriptor. It lives until the kernel holds nothing of it. */
struct loop_source {
    int fd;
    bool listening;
    bool armed; /* the kernel watches it */
    bool gone; /* unlistened or unwatched */
    void (*on_accept)(void *ctx, int fd);
    void (*on_ready)(void *ctx);
    void *ctx;
    struct loop_source *next;
};

struct loop_ops {
    const char *name;
    void (*close)(struct loop *loop);
    /* Submits, and waits for an event unless `wait` is false. */
    void (*wait)(struct loop *loop, bool wait);
    /* Handles what the wait brought. */
    void (*handle)(struct loop *loop);
    /* Starts watching a new source, or one whose accepting had failed. */
    enum err (*arm)(struct loop *loop, struct loop_source *source);
    /* Stops it (source->gone is set); clears armed, now or later. */
    void (*disarm)(struct loop *loop, struct loop_source *source);
    void (*start_stream)(struct loop_stream *stream);
    void (*pause)(struct loop_stream *stream);
    void (*resume)(struct loop_stream *stream);
    bool (*send)(struct loop_stream *stream);
    void (*close_stream)(struct loop_stream *stream);
};

enum loop_stream_flags {
    LOOP_PAUSED = 1,
    LOOP_CLOSING = 2,
    LOOP_SENDING = 4,
    LOOP_RECEIVING = 8, /* uring: a receive is armed */
    LOOP_LISTED = 16, /* in the back end's list (closing, or waiting for buffers) */
    LOOP_WANT_OUT = 32, /* epoll: waits for room in the socket */
    LOOP_ENDED = 64, /* the peer has finished sending */
};

struct loop {
    struct loop_config config;
    const struct loop_ops *ops;
    int wake_fd;
    atomic_bool wake_pending;
    atomic_bool sleeping; /* or about to: a waker must write to wake_fd */
    bool stopping;
    bool tick_due;
    bool sweep; /* some source may be freed */
    bool accept_failed; /* some listener is disarmed until the next tick */
    uint32_t turn;
    uint32_t turn_streams;
    struct loop_source *sources;
};

enum err loop_uring_open(const struct loop_config *config, struct loop **loop_out) MUST_CHECK;
enum err loop_epoll_open(const struct loop_config *config, struct loop **loop_out) MUST_CHECK;

/* Common parts for the back ends. */
enum err loop_init(
    struct loop *loop, const struct loop_config *config, const struct loop_ops *ops) MUST_CHECK;
void loop_deinit(struct loop *loop);
/* Empties the eventfd behind wake_fd. */
void loop_drain_wake(struct loop *loop);
void loop_deliver(struct loop_stream *stream, struct bytes bytes);
void loop_deliver_end(struct loop_stream *stream);
/* accept() failed for want of descriptors or memory: tried again at the next tick. */
void loop_accept_failed(struct loop *loop, struct loop_source *source);

#endif
