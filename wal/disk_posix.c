#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "wal/disk_files.h"

/* A folder on a real file system, with a thread that does the durable writes.
 *
 * The write is one pwritev2(RWF_DSYNC) on an O_DIRECT descriptor: the kernel writes and flushes in
 * one call, and since slots are filled beforehand no metadata is touched. On a device without FUA
 * and with busy processors this blocking form keeps several times the rate of io_uring, whose
 * completion waits for a kernel worker of no priority (docs/decisions/0003-log-io.md). A file system that
 * refuses O_DIRECT or RWF_DSYNC gets buffered writes and fdatasync.
 *
 * Handing over costs two wake-ups, which on two processors is what there is to save: the log thread
 * is signalled only when it sleeps, and it calls wake only if poll() has emptied the finished list
 * since the last call. */

/* Files */

static int open_flags(const struct disk_files *files, int flags)
{
    int how = O_CLOEXEC | O_NOFOLLOW;
    how |= (flags & DISK_READ_ONLY) != 0 ? O_RDONLY : O_RDWR;
    if ((flags & DISK_CREATE) != 0) {
        how |= O_CREAT;
    }
    if ((flags & DISK_EXCLUSIVE) != 0) {
        how |= O_EXCL;
    }
    if ((flags & DISK_DIRECT) != 0 && files->direct) {
        how |= O_DIRECT;
    }
    return how;
}

static enum err files_open(void *ctx, const char *name, int flags, disk_file *file_out)
{
    struct disk_files *files = ctx;
    int how = open_flags(files, flags);
    int fd = openat(files->folder, name, how, 0600);
    if (fd < 0 && errno == EINVAL && (how & O_DIRECT) != 0) {
        /* The file may have been created before O_DIRECT was refused. */
        fd = openat(files->folder, name, how & ~(O_DIRECT | O_EXCL), 0600);
    }
    if (fd < 0) return errno == ENOENT ? ERR_NOT_FOUND : err_from_errno(errno);
    *file_out = fd;
    return OK;
}

static void files_close(void *ctx, disk_file file)
{
    (void)ctx;
    (void)close(file);
}

static enum err files_size(void *ctx, disk_file file, uint64_t *size_out)
{
    (void)ctx;
    struct stat info;
    if (fstat(file, &info) != 0) return err_from_errno(errno);
    *size_out = (uint64_t)info.st_size;
    return OK;
}

static enum err files_read(void *ctx, disk_file file, uint64_t offset, void *at, size_t size)
{
    (void)ctx;
    uint8_t *to = at;
    while (size > 0) {
        ssize_t got = pread(file, to, size, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return err_from_errno(errno);
        if (got == 0) return ERR_TRUNCATED;
        to += got;
        offset += (uint64_t)got;
        size -= (size_t)got;
    }
    return OK;
}

/* Leaves O_DIRECT on a descriptor whose file system took the flag but not the transfer. */
static bool leave_direct(int file)
{
    int flags = fcntl(file, F_GETFL);
    if (flags < 0 || (flags & O_DIRECT) == 0) return false;
    return fcntl(file, F_SETFL, flags & ~O_DIRECT) == 0;
}

static enum err write_all(
    disk_file file, uint64_t offset, const uint8_t *from, size_t size, int flags, int *errno_out)
{
    *errno_out = 0;
    while (size > 0) {
        struct iovec part = {.iov_base = (void *)(uintptr_t)from, .iov_len = size};
        ssize_t put = pwritev2(file, &part, 1, (off_t)offset, flags);
        if (put < 0) {
            if (errno == EINTR) continue;
            if (errno == EINVAL && leave_direct(file)) continue;
            *errno_out = errno;
            return err_from_errno(errno);
        }
        if (put == 0) return ERR_IO;
        from += put;
        offset += (uint64_t)put;
        size -= (size_t)put;
    }
    return OK;
}

static enum err files_write(void *ctx, disk_file file, uint64_t offset, const void *at, size_t size)
{
    (void)ctx;
    int number;
    return write_all(file, offset, at, size, 0, &number);
}

static enum err files_sync(void *ctx, disk_file file)
{
    (void)ctx;
    /* EINTR from fsync leaves it open whether it happened: not retried, like any error. */
    return fsync(file) == 0 ? OK : err_from_errno(errno);
}

static enum err files_sync_folder(void *ctx)
{
    struct disk_files *files = ctx;
    return fsync(files->folder) == 0 ? OK : err_from_errno(errno);
}

enum { FILL_PART = 1 << 20 };

static enum err files_fill(void *ctx, disk_file file, uint64_t size)
{
    /* First the extents, in one piece and with ENOSPC at once, then zeros, because a write into an
     * unwritten extent costs a metadata update each. */
    if (fallocate(file, 0, 0, (off_t)size) != 0 && errno != EOPNOTSUPP && errno != ENOSYS)
        return err_from_errno(errno);
    uint8_t *zeros = aligned_alloc(DISK_BLOCK, FILL_PART);
    if (zeros == NULL) return ERR_NOMEM;
    memset(zeros, 0, FILL_PART);
    enum err err = OK;
    for (uint64_t at = 0; at < size && err == OK; at += FILL_PART) {
        uint64_t left = size - at;
        err = files_write(ctx, file, at, zeros, left < FILL_PART ? (size_t)left : FILL_PART);
    }
    free(zeros);
    return err == OK ? files_sync(ctx, file) : err;
}

static enum err files_rename(void *ctx, const char *from, const char *to)
{
    struct disk_files *files = ctx;
    int failed = renameat(files->folder, from, files->folder, to);
    if (failed == 0) return OK;
    return errno == ENOENT ? ERR_NOT_FOUND : err_from_errno(errno);
}

static enum err files_remove(void *ctx, const char *name)
{
    struct disk_files *files = ctx;
    if (unlinkat(files->folder, name, 0) == 0) return OK;
    return errno == ENOENT ? ERR_NOT_FOUND : err_from_errno(errno);
}

static enum err files_list(
    void *ctx, void (*each)(void *each_ctx, const char *name), void *each_ctx)
{
    struct disk_files *files = ctx;
    /* A descriptor of its own: the position in a folder belongs to the open file. */
    int fd = openat(files->folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return err_from_errno(errno);
    DIR *folder = fdopendir(fd);
    if (folder == NULL) {
        (void)close(fd);
        return ERR_NOMEM;
    }
    enum err err = OK;
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(folder);
        if (entry == NULL) {
            err = errno == 0 ? OK : err_from_errno(errno);
            break;
        }
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        each(each_ctx, entry->d_name);
    }
    (void)closedir(folder);
    return err;
}

static enum err files_space(void *ctx, uint64_t *free_out)
{
    struct disk_files *files = ctx;
    struct statvfs info;
    if (fstatvfs(files->folder, &info) != 0) return err_from_errno(errno);
    *free_out = (uint64_t)info.f_bavail * info.f_frsize;
    return OK;
}

enum err disk_files_write(
    struct disk_files *files, disk_file file, uint64_t offset, const void *at, size_t size)
{
    int number;
    if (atomic_load_explicit(&files->sync_by_write, memory_order_relaxed)) {
        enum err err = write_all(file, offset, at, size, RWF_DSYNC, &number);
        if (number != EOPNOTSUPP && number != ENOSYS) return err;
        atomic_store_explicit(&files->sync_by_write, false, memory_order_relaxed);
    }
    TRY(write_all(file, offset, at, size, 0, &number));
    return fdatasync(file) == 0 ? OK : err_from_errno(errno);
}

static enum err files_write_durable(
    void *ctx, disk_file file, uint64_t offset, const void *at, size_t size)
{
    return disk_files_write(ctx, file, offset, at, size);
}

enum err disk_files_init(struct disk_files *files, const char *folder, bool direct)
{
    files->direct = direct;
    atomic_init(&files->sync_by_write, direct);
    bool made = mkdir(folder, 0700) == 0;
    if (!made && errno != EEXIST) return err_from_errno(errno);
    files->folder = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (files->folder < 0) return err_from_errno(errno);
    if (!made) return OK;
    int parent = openat(files->folder, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    enum err err = parent < 0 || fsync(parent) != 0 ? err_from_errno(errno) : OK;
    if (parent >= 0) {
        (void)close(parent);
    }
    if (err != OK) {
        (void)close(files->folder);
    }
    return err;
}

void disk_files_deinit(struct disk_files *files)
{
    (void)close(files->folder);
}

void disk_files_table(struct disk *disk)
{
    disk->open = files_open;
    disk->close = files_close;
    disk->size = files_size;
    disk->read = files_read;
    disk->write = files_write;
    disk->sync = files_sync;
    disk->sync_folder = files_sync_folder;
    disk->fill = files_fill;
    disk->rename = files_rename;
    disk->remove = files_remove;
    disk->list = files_list;
    disk->space = files_space;
    disk->write_durable = files_write_durable;
}

/* The log thread */

struct disk_posix {
    struct disk_files files; /* first */
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t work;
    bool asleep; /* all under lock, down to ... */
    bool stop;
    struct disk_op *queue;
    struct disk_op *queue_last;
    struct disk_op *finished;
    struct disk_op *finished_last;
    void (*wake)(void *wake_ctx);
    void *wake_ctx; /* ... here */
    atomic_bool any_finished; /* lets poll() look without the lock */
    bool follow; /* the submitter's alone */
    int cpu; /* where the log thread was put; -1: nowhere */
};

static void push(struct disk_op **first, struct disk_op **last, struct disk_op *op)
{
    op->next = NULL;
    if (*first == NULL) {
        *first = op;
    } else {
        (*last)->next = op;
    }
    *last = op;
}

static void nap_us(uint32_t us)
{
    struct timespec left = {.tv_sec = us / 1000000, .tv_nsec = (long)(us % 1000000) * 1000};
    while (nanosleep(&left, &left) != 0 && errno == EINTR) {
    }
}

/* The result travels in the op's own memory until poll(): size is not needed any more. */
static void op_keep_result(struct disk_op *op, enum err result)
{
    op->size = (size_t)-result;
}

static enum err op_result(const struct disk_op *op)
{
    return (enum err)(-(long)op->size);
}

static void *log_main(void *argument)
{
    struct disk_posix *posix = argument;
    /* Helps most when all processors are busy; needs CAP_SYS_NICE, and its absence is no error. */
    (void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), -10);
    pthread_mutex_lock(&posix->lock);
    for (;;) {
        struct disk_op *op = posix->queue;
        if (op == NULL) {
            if (posix->stop) break;
            posix->asleep = true;
            pthread_cond_wait(&posix->work, &posix->lock);
            posix->asleep = false;
            continue;
        }
        posix->queue = op->next;
        pthread_mutex_unlock(&posix->lock);
        if (op->delay_us > 0) {
            nap_us(op->delay_us);
        }
        enum err result = disk_files_write(&posix->files, op->file, op->offset, op->at, op->size);
        pthread_mutex_lock(&posix->lock);
        op_keep_result(op, result);
        bool first = posix->finished == NULL;
        push(&posix->finished, &posix->finished_last, op);
        atomic_store_explicit(&posix->any_finished, true, memory_order_release);
        void (*wake)(void *) = posix->wake;
        void *wake_ctx = posix->wake_ctx;
        if (first && wake != NULL) {
            pthread_mutex_unlock(&posix->lock);
            wake(wake_ctx);
            pthread_mutex_lock(&posix->lock);
        }
    }
    pthread_mutex_unlock(&posix->lock);
    return NULL;
}

static uint64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Moves the log thread to the submitter's processor. The two work in turns: the loop submits and
 * sleeps, the log thread starts the write and sleeps, and so on. On one processor each hand-over is a switch
 * of threads; across two it is an interrupt to a processor that may have to leave its idle state,
 * and the client gets the other processor to itself. */
static void follow(struct disk_posix *posix)
{
    int cpu = sched_getcpu();
    if (cpu < 0 || cpu == posix->cpu || cpu >= CPU_SETSIZE) return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    /* if it is not allowed, the thread stays where the scheduler puts it */
    (void)pthread_setaffinity_np(posix->thread, sizeof set, &set);
    posix->cpu = cpu;
}

static void posix_submit(void *ctx, struct disk_op *op)
{
    struct disk_posix *posix = ctx;
    op->submitted_ns = monotonic_ns();
    if (posix->follow) {
        follow(posix);
    }
    pthread_mutex_lock(&posix->lock);
    push(&posix->queue, &posix->queue_last, op);
    bool asleep = posix->asleep;
    pthread_mutex_unlock(&posix->lock);
    if (asleep) {
        pthread_cond_signal(&posix->work);
    }
}

static int posix_poll(void *ctx)
{
    struct disk_posix *posix = ctx;
    if (!atomic_load_explicit(&posix->any_finished, memory_order_acquire)) return 0;
    pthread_mutex_lock(&posix->lock);
    struct disk_op *op = posix->finished;
    posix->finished = NULL;
    atomic_store_explicit(&posix->any_finished, false, memory_order_relaxed);
    pthread_mutex_unlock(&posix->lock);
    int count = 0;
    while (op != NULL) {
        struct disk_op *next = op->next;
        op->done(op, op_result(op));
        op = next;
        count++;
    }
    return count;
}

static void posix_set_wake(void *ctx, void (*wake)(void *wake_ctx), void *wake_ctx)
{
    struct disk_posix *posix = ctx;
    pthread_mutex_lock(&posix->lock);
    posix->wake = wake;
    posix->wake_ctx = wake_ctx;
    pthread_mutex_unlock(&posix->lock);
}

enum err disk_posix_open(const char *folder, enum log_io mode, struct disk *disk_out)
{
    ASSERT(mode == LOG_IO_AUTO || mode == LOG_IO_DSYNC || mode == LOG_IO_POSIX);
    struct disk_posix *posix = calloc(1, sizeof *posix);
    if (posix == NULL) return ERR_NOMEM;
    enum err err = disk_files_init(&posix->files, folder, mode != LOG_IO_POSIX);
    if (err != OK) {
        free(posix);
        return err;
    }
    pthread_mutex_init(&posix->lock, NULL);
    pthread_cond_init(&posix->work, NULL);
    /* Signals are for the threads that expect them. */
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&posix->thread, NULL, log_main, posix);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed != 0) {
        pthread_cond_destroy(&posix->work);
        pthread_mutex_destroy(&posix->lock);
        disk_files_deinit(&posix->files);
        free(posix);
        return ERR_NOMEM;
    }
    posix->cpu = -1;
    *disk_out = (struct disk){.ctx = posix, .name = "posix"};
    disk_files_table(disk_out);
    disk_out->submit = posix_submit;
    disk_out->poll = posix_poll;
    disk_out->set_wake = posix_set_wake;
    return OK;
}

void disk_posix_follow(struct disk *disk)
{
    struct disk_posix *posix = disk->ctx;
    posix->follow = true;
}

void disk_posix_close(struct disk *disk)
{
    struct disk_posix *posix = disk->ctx;
    if (posix == NULL) return;
    pthread_mutex_lock(&posix->lock);
    posix->stop = true;
    pthread_cond_signal(&posix->work);
    pthread_mutex_unlock(&posix->lock);
    pthread_join(posix->thread, NULL);
    pthread_cond_destroy(&posix->work);
    pthread_mutex_destroy(&posix->lock);
    disk_files_deinit(&posix->files);
    free(posix);
    *disk = (struct disk){0};
}
