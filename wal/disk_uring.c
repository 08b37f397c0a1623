#define _GNU_SOURCE
#include <errno.h>
#include <liburing.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "base/logger.h"
#include "wal/disk_files.h"

/* Durable writes through a ring of their own.
 *
 * The ring belongs to the log's owner alone: it submits and reaps, without a lock. The kernel raises an
 * eventfd for each completion, and a small thread that does nothing but read that eventfd calls wake,
 * so an owner that sleeps elsewhere learns of it.
 *
 * ring-dsync: one write with RWF_DSYNC. ring-link: a write linked to an fdatasync; a short write breaks
 * the link, so the rest is sent again with a sync of its own behind it, and only a sync that followed
 * the last byte counts. A delay is a time-out linked in front.
 *
 * No kernel polling thread, ever: on two processors it starves the worker that completes the flush, and
 * a sync takes 4 ms. */

enum { SLOTS = 64, ENTRIES = SLOTS * 4, RESUBMITS = 64 };

/* user_data: index of the slot and what the completion is of. */
enum part { PART_DELAY, PART_WRITE, PART_SYNC };

struct ring_op {
    struct disk_op *op; /* NULL: free */
    size_t written;
    int rounds; /* resubmissions that made no headway */
    bool delay;
    bool write_ok; /* ring-link: all bytes written, the sync's result decides */
    int pending; /* completions to come */
    int failure; /* errno, 0: none */
    struct __kernel_timespec timeout;
};

struct disk_uring {
    struct disk_files files; /* first */
    struct io_uring ring;
    bool link;
    struct ring_op ops[SLOTS];
    int busy;
    struct disk_op *waiting; /* no slot was free */
    struct disk_op *waiting_last;
    struct disk_op *failed; /* could not be submitted at all */
    bool dead; /* the kernel took no more: everything fails from here on */
    int event;
    pthread_t waiter;
    atomic_bool stop;
    pthread_mutex_t lock; /* of wake */
    void (*wake)(void *wake_ctx);
    void *wake_ctx;
};

static void *waiter_main(void *argument)
{
    struct disk_uring *uring = argument;
    for (;;) {
        uint64_t count;
        if (read(uring->event, &count, sizeof count) < 0 && errno != EINTR) return NULL;
        if (atomic_load(&uring->stop)) return NULL;
        pthread_mutex_lock(&uring->lock);
        void (*wake)(void *) = uring->wake;
        void *wake_ctx = uring->wake_ctx;
        pthread_mutex_unlock(&uring->lock);
        if (wake != NULL) {
            wake(wake_ctx);
        }
    }
}

static void raise_event(struct disk_uring *uring)
{
    uint64_t one = 1;
    (void)!write(uring->event, &one, sizeof one); /* fails only when it is raised already */
}

/* Brings everything prepared to the kernel. Busy answers are retried for a while: they mean that
 * completions are to be reaped or memory to be freed by somebody else. */
static int push_all(struct disk_uring *uring)
{
    for (int round = 0;; round++) {
        int sent = io_uring_submit(&uring->ring);
        if (sent >= 0 && io_uring_sq_ready(&uring->ring) == 0) return 0;
        bool again = sent >= 0 || sent == -EAGAIN || sent == -EBUSY || sent == -EINTR;
        if (!again || round == 1000) return sent < 0 ? -sent : EAGAIN;
        if (round > 10) {
            nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
        }
    }
}

static void set_data(struct io_uring_sqe *sqe, const struct disk_uring *uring,
    const struct ring_op *ring_op, enum part part)
{
    sqe->user_data = (uint64_t)(ring_op - uring->ops) * 4 + (uint64_t)part;
}

/* Prepares what is left of the op. There is always room: ENTRIES is more than all slots need. */
static void prepare(struct disk_uring *uring, struct ring_op *ring_op)
{
    struct disk_op *op = ring_op->op;
    struct io_uring_sqe *sqe;
    if (ring_op->delay) {
        ring_op->timeout = (struct __kernel_timespec){.tv_sec = op->delay_us / 1000000,
            .tv_nsec = (long long)(op->delay_us % 1000000) * 1000};
        sqe = io_uring_get_sqe(&uring->ring);
        ASSERT(sqe != NULL);
        io_uring_prep_timeout(sqe, &ring_op->timeout, 0, IORING_TIMEOUT_ETIME_SUCCESS);
        sqe->flags |= IOSQE_IO_LINK;
        set_data(sqe, uring, ring_op, PART_DELAY);
        ring_op->pending++;
    }
    sqe = io_uring_get_sqe(&uring->ring);
    ASSERT(sqe != NULL);
    io_uring_prep_write(sqe, op->file, op->at + ring_op->written,
        (unsigned)(op->size - ring_op->written), op->offset + ring_op->written);
    ring_op->write_ok = false;
    ring_op->pending++;
    set_data(sqe, uring, ring_op, PART_WRITE);
    if (!uring->link) {
        sqe->rw_flags = RWF_DSYNC;
        return;
    }
    sqe->flags |= IOSQE_IO_LINK;
    sqe = io_uring_get_sqe(&uring->ring);
    ASSERT(sqe != NULL);
    io_uring_prep_fsync(sqe, op->file, IORING_FSYNC_DATASYNC);
    set_data(sqe, uring, ring_op, PART_SYNC);
    ring_op->pending++;
}

static struct ring_op *free_slot(struct disk_uring *uring)
{
    if (uring->busy == SLOTS) return NULL;
    for (int i = 0; i < SLOTS; i++) {
        if (uring->ops[i].op == NULL) return &uring->ops[i];
    }
    return NULL;
}

/* The kernel takes nothing any more: all ops fail, from the next poll(). */
static void fail_all(struct disk_uring *uring, int number)
{
    uring->dead = true;
    log_error("io_uring takes no more requests", "errno=%d", number);
    for (int i = 0; i < SLOTS; i++) {
        struct ring_op *ring_op = &uring->ops[i];
        if (ring_op->op == NULL) continue;
        ring_op->failure = number;
        struct disk_op *op = ring_op->op;
        op->next = uring->failed;
        uring->failed = op;
        ring_op->op = NULL;
        uring->busy--;
    }
    while (uring->waiting != NULL) {
        struct disk_op *op = uring->waiting;
        uring->waiting = op->next;
        op->next = uring->failed;
        uring->failed = op;
    }
    raise_event(uring);
}

static void start(struct disk_uring *uring, struct ring_op *slot, struct disk_op *op)
{
    *slot = (struct ring_op){.op = op, .delay = op->delay_us > 0};
    uring->busy++;
    prepare(uring, slot);
}

static void uring_submit(void *ctx, struct disk_op *op)
{
    struct disk_uring *uring = ctx;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    op->submitted_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    op->next = NULL;
    if (uring->dead) {
        op->next = uring->failed;
        uring->failed = op;
        raise_event(uring);
        return;
    }
    struct ring_op *slot = free_slot(uring);
    if (slot == NULL) {
        if (uring->waiting == NULL) {
            uring->waiting = op;
        } else {
            uring->waiting_last->next = op;
        }
        uring->waiting_last = op;
        return;
    }
    start(uring, slot, op);
    int failure = push_all(uring);
    if (failure != 0) {
        fail_all(uring, failure);
    }
}

/* Notes one completion. True when none of the op is outstanding any more. */
static bool note(struct ring_op *ring_op, enum part part, int result)
{
    ring_op->pending--;
    if (part == PART_DELAY) {
        /* A kernel that ends the chain here gets the write again without the delay. */
        ring_op->delay = false;
    } else if (part == PART_WRITE) {
        if (result > 0) {
            ring_op->written += (size_t)result;
            ring_op->rounds = 0;
            ring_op->write_ok = ring_op->written == ring_op->op->size;
        } else if (result != -ECANCELED && result != -EINTR && result != -EAGAIN) {
            ring_op->failure = result == 0 ? EIO : -result;
        }
    } else if (result < 0 && (ring_op->write_ok || result != -ECANCELED)) {
        /* Never asked for again. Cancelled behind a short write it did not start, and does not count. */
        ring_op->failure = -result;
    }
    return ring_op->pending == 0;
}

static int uring_poll(void *ctx)
{
    struct disk_uring *uring = ctx;
    int count = 0;
    bool prepared = false;
    struct io_uring_cqe *cqe;
    while (!uring->dead && io_uring_peek_cqe(&uring->ring, &cqe) == 0) {
        uint64_t data = cqe->user_data;
        int result = cqe->res;
        io_uring_cqe_seen(&uring->ring, cqe);
        struct ring_op *ring_op = &uring->ops[data / 4];
        ASSERT(ring_op->op != NULL);
        if (!note(ring_op, (enum part)(data % 4), result)) continue;
        struct disk_op *op = ring_op->op;
        bool whole = ring_op->written == op->size;
        if (ring_op->failure == 0 && !whole) {
            if (++ring_op->rounds < RESUBMITS) {
                prepare(uring, ring_op);
                prepared = true;
                continue;
            }
            ring_op->failure = EIO;
        }
        enum err err = ring_op->failure == 0 ? OK : err_from_errno(ring_op->failure);
        ring_op->op = NULL;
        uring->busy--;
        struct disk_op *next = uring->waiting;
        if (next != NULL) {
            uring->waiting = next->next;
            start(uring, ring_op, next);
            prepared = true;
        }
        op->done(op, err);
        count++;
    }
    if (prepared) {
        int failure = push_all(uring);
        if (failure != 0) {
            fail_all(uring, failure);
        }
    }
    while (uring->failed != NULL) {
        struct disk_op *op = uring->failed;
        uring->failed = op->next;
        op->done(op, ERR_IO);
        count++;
    }
    return count;
}

static void uring_set_wake(void *ctx, void (*wake)(void *wake_ctx), void *wake_ctx)
{
    struct disk_uring *uring = ctx;
    pthread_mutex_lock(&uring->lock);
    uring->wake = wake;
    uring->wake_ctx = wake_ctx;
    pthread_mutex_unlock(&uring->lock);
}

static enum err ring_start(struct disk_uring *uring)
{
    uring->event = eventfd(0, EFD_CLOEXEC);
    if (uring->event < 0) return err_from_errno(errno);
    int failed = io_uring_queue_init(ENTRIES, &uring->ring, 0);
    if (failed < 0) {
        (void)close(uring->event);
        return ERR_UNSUPPORTED;
    }
    bool ok = io_uring_register_eventfd(&uring->ring, uring->event) == 0;
    if (ok) {
        sigset_t all;
        sigset_t before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        ok = pthread_create(&uring->waiter, NULL, waiter_main, uring) == 0;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    if (!ok) {
        io_uring_queue_exit(&uring->ring);
        (void)close(uring->event);
        return ERR_UNSUPPORTED;
    }
    return OK;
}

enum err disk_uring_open(const char *folder, enum log_io mode, struct disk *disk_out)
{
    ASSERT(mode == LOG_IO_AUTO || mode == LOG_IO_RING_DSYNC || mode == LOG_IO_RING_LINK);
    const char *refused = getenv("DURAMEN_NO_URING");
    if (refused != NULL && strcmp(refused, "1") == 0) return ERR_UNSUPPORTED;
    struct disk_uring *uring = calloc(1, sizeof *uring);
    if (uring == NULL) return ERR_NOMEM;
    uring->link = mode == LOG_IO_RING_LINK;
    enum err err = disk_files_init(&uring->files, folder, true);
    if (err != OK) {
        free(uring);
        return err;
    }
    pthread_mutex_init(&uring->lock, NULL);
    err = ring_start(uring);
    if (err != OK) {
        pthread_mutex_destroy(&uring->lock);
        disk_files_deinit(&uring->files);
        free(uring);
        return err;
    }
    struct disk disk = {.ctx = uring, .name = "uring"};
    disk_files_table(&disk);
    disk.submit = uring_submit;
    disk.poll = uring_poll;
    disk.set_wake = uring_set_wake;
    err = disk_probe(&disk);
    /* On a full disk nothing can be tried; the ring itself works, and starting matters more. */
    if (err != OK && err != ERR_FULL) {
        disk_uring_close(&disk);
        return err == ERR_NOMEM ? err : ERR_UNSUPPORTED;
    }
    *disk_out = disk;
    return OK;
}

void disk_uring_close(struct disk *disk)
{
    struct disk_uring *uring = disk->ctx;
    if (uring == NULL) return;
    atomic_store(&uring->stop, true);
    raise_event(uring);
    pthread_join(uring->waiter, NULL);
    io_uring_queue_exit(&uring->ring);
    (void)close(uring->event);
    pthread_mutex_destroy(&uring->lock);
    disk_files_deinit(&uring->files);
    free(uring);
    *disk = (struct disk){0};
}
