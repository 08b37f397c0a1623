#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "sim/sim_disk.h"
#include "wal/wal.h"

/* What base/io.h promises of a disk, asked of every disk there is, the simulated one included: tests that
 * run on it prove something only as far as it behaves like the others. */

enum kind { KIND_DSYNC, KIND_POSIX, KIND_RING_DSYNC, KIND_RING_LINK, KIND_SIM };

struct rig {
    enum kind kind;
    char folder[64];
    struct disk disk;
    struct sim_disk *sim;
    sem_t woken;
    uint8_t *memory; /* aligned */
};

enum { MEMORY = 1 << 20 };

static struct rig rig;

static void wake(void *ctx)
{
    struct rig *woken = ctx;
    sem_post(&woken->woken);
}

static const enum log_io modes[] = {
    LOG_IO_DSYNC, LOG_IO_POSIX, LOG_IO_RING_DSYNC, LOG_IO_RING_LINK};

static void open_in(const char *parent)
{
    (void)snprintf(rig.folder, sizeof rig.folder, "%s/disk-XXXXXX", parent);
    cr_assert_not_null(mkdtemp(rig.folder));
    char inner[80];
    (void)snprintf(inner, sizeof inner, "%s/wal", rig.folder);
    bool ring = rig.kind == KIND_RING_DSYNC || rig.kind == KIND_RING_LINK;
    enum err err = ring ? disk_uring_open(inner, modes[rig.kind], &rig.disk)
                        : disk_posix_open(inner, modes[rig.kind], &rig.disk);
    if (err == ERR_UNSUPPORTED) {
        (void)rmdir(inner);
        (void)rmdir(rig.folder);
        cr_skip_test("no io_uring here");
    }
    cr_assert_eq(err, OK, "%s", err_name(err));
}

static void rig_open(enum kind kind)
{
    rig = (struct rig){.kind = kind};
    rig.memory = aligned_alloc(DISK_BLOCK, MEMORY);
    cr_assert_not_null(rig.memory);
    cr_assert_eq(sem_init(&rig.woken, 0, 0), 0);
    if (kind == KIND_SIM) {
        struct sim_disk_config config = {.seed = 1, .latency_min_ns = 10, .latency_max_ns = 1000};
        rig.sim = sim_disk_create(&config);
        rig.disk = sim_disk_table(rig.sim);
    } else {
        const char *parent = getenv("TMPDIR");
        open_in(parent == NULL ? "/tmp" : parent);
    }
    rig.disk.set_wake(rig.disk.ctx, wake, &rig);
}

static void remove_each(void *ctx, const char *name)
{
    char path[192];
    (void)snprintf(path, sizeof path, "%s/wal/%s", (const char *)ctx, name);
    (void)unlink(path);
}

static void rig_close(void)
{
    if (rig.sim != NULL) {
        sim_disk_destroy(rig.sim);
    } else {
        char inner[80];
        (void)snprintf(inner, sizeof inner, "%s/wal", rig.folder);
        (void)rig.disk.list(rig.disk.ctx, remove_each, rig.folder);
        disk_close(&rig.disk);
        (void)rmdir(inner);
        (void)rmdir(rig.folder);
    }
    sem_destroy(&rig.woken);
    free(rig.memory);
}

/* Waits until wake was called, then polls. */
static int await(void)
{
    if (rig.sim != NULL) {
        sim_disk_run_all(rig.sim);
    }
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 20;
    cr_assert_eq(sem_timedwait(&rig.woken, &until), 0, "nobody was woken");
    return rig.disk.poll(rig.disk.ctx);
}

static disk_file create(const char *name, uint64_t size)
{
    disk_file file;
    int flags = DISK_CREATE | DISK_EXCLUSIVE | DISK_DIRECT;
    enum err err = rig.disk.open(rig.disk.ctx, name, flags, &file);
    cr_assert_eq(err, OK, "%s", err_name(err));
    if (size > 0) {
        err = rig.disk.fill(rig.disk.ctx, file, size);
        cr_assert_eq(err, OK, "%s", err_name(err));
    }
    return file;
}

struct ticket {
    struct disk_op op;
    int done;
    enum err result;
};

static void ticket_done(struct disk_op *op, enum err result)
{
    struct ticket *ticket = op->ctx;
    ticket->done++;
    ticket->result = result;
}

static struct ticket ticket(disk_file file, uint64_t offset, size_t size)
{
    return (struct ticket){
        .op = {
            .file = file, .offset = offset, .at = rig.memory, .size = size, .done = ticket_done}};
}

static void send(struct ticket *ticket)
{
    ticket->op.ctx = ticket;
    rig.disk.submit(rig.disk.ctx, &ticket->op);
}

static void files_open_as_asked(void)
{
    disk_file file;
    cr_assert_eq(rig.disk.open(rig.disk.ctx, "absent", 0, &file), ERR_NOT_FOUND);
    file = create("one", 0);
    disk_file again;
    cr_assert_eq(
        rig.disk.open(rig.disk.ctx, "one", DISK_CREATE | DISK_EXCLUSIVE, &again), ERR_EXISTS);
    cr_assert_eq(rig.disk.open(rig.disk.ctx, "one", DISK_CREATE, &again), OK);
    uint64_t size = 7;
    cr_assert_eq(rig.disk.size(rig.disk.ctx, again, &size), OK);
    cr_assert_eq(size, 0);
    rig.disk.close(rig.disk.ctx, file);
    rig.disk.close(rig.disk.ctx, again);
}

static void what_is_written_is_read(void)
{
    disk_file file = create("one", 0);
    for (size_t i = 0; i < MEMORY / 2; i++) {
        rig.memory[i] = (uint8_t)(i / 4096 + i);
    }
    cr_assert_eq(rig.disk.write(rig.disk.ctx, file, 8192, rig.memory, 65536), OK);
    cr_assert_eq(rig.disk.sync(rig.disk.ctx, file), OK);
    uint64_t size;
    cr_assert_eq(rig.disk.size(rig.disk.ctx, file, &size), OK);
    cr_assert_eq(size, 8192 + 65536);
    uint8_t *back = rig.memory + MEMORY / 2;
    cr_assert_eq(rig.disk.read(rig.disk.ctx, file, 8192, back, 65536), OK);
    cr_assert_eq(memcmp(rig.memory, back, 65536), 0);
    cr_assert_eq(rig.disk.read(rig.disk.ctx, file, 0, back, 8192), OK);
    for (size_t i = 0; i < 8192; i++) {
        cr_assert_eq(back[i], 0, "a hole reads as zeros");
    }
    cr_assert_eq(rig.disk.read(rig.disk.ctx, file, 65536, back, 65536), ERR_TRUNCATED);
    rig.disk.close(rig.disk.ctx, file);
}

static void a_filled_file_is_zeros_of_the_asked_size(void)
{
    disk_file file = create("one", 3 << 19);
    uint64_t size;
    cr_assert_eq(rig.disk.size(rig.disk.ctx, file, &size), OK);
    cr_assert_eq(size, 3 << 19);
    memset(rig.memory, 1, MEMORY);
    cr_assert_eq(rig.disk.read(rig.disk.ctx, file, 1 << 19, rig.memory, MEMORY), OK);
    for (size_t i = 0; i < MEMORY; i++) {
        cr_assert_eq(rig.memory[i], 0);
    }
    rig.disk.close(rig.disk.ctx, file);
}

static void a_durable_write_ends_once_and_from_poll(void)
{
    disk_file file = create("one", 1 << 20);
    memset(rig.memory, 0x5a, MEMORY);
    struct ticket one = ticket(file, 4096, 8192);
    send(&one);
    cr_assert_eq(one.done, 0, "never inside submit");
    int ended = 0;
    while (ended == 0) {
        ended = await();
    }
    cr_assert_eq(ended, 1);
    cr_assert_eq(one.done, 1);
    cr_assert_eq(one.result, OK);
    cr_assert_eq(rig.disk.poll(rig.disk.ctx), 0);
    cr_assert_eq(rig.disk.read(rig.disk.ctx, file, 0, rig.memory, 16384), OK);
    for (size_t i = 0; i < 16384; i++) {
        cr_assert_eq(rig.memory[i], i >= 4096 && i < 12288 ? 0x5a : 0);
    }
    rig.disk.close(rig.disk.ctx, file);
}

enum { MANY = 200 };

static void many_writes_in_flight_all_end(void)
{
    disk_file file = create("one", 1 << 20);
    static struct ticket tickets[MANY];
    memset(rig.memory, 0x77, MEMORY);
    for (int i = 0; i < MANY; i++) {
        tickets[i] = ticket(file, (uint64_t)i * DISK_BLOCK, DISK_BLOCK);
        send(&tickets[i]);
    }
    int ended = 0;
    while (ended < MANY) {
        ended += await();
    }
    for (int i = 0; i < MANY; i++) {
        cr_assert_eq(tickets[i].done, 1);
        cr_assert_eq(tickets[i].result, OK);
    }
    memset(rig.memory, 0, MEMORY);
    cr_assert_eq(rig.disk.read(rig.disk.ctx, file, 0, rig.memory, (size_t)MANY * DISK_BLOCK), OK);
    for (size_t i = 0; i < (size_t)MANY * DISK_BLOCK; i++) {
        cr_assert_eq(rig.memory[i], 0x77);
    }
    rig.disk.close(rig.disk.ctx, file);
}

static struct ticket follow;

static void submit_follow(struct disk_op *op, enum err result)
{
    ticket_done(op, result);
    follow = ticket(op->file, 65536, DISK_BLOCK);
    send(&follow);
}

static void more_may_be_submitted_from_done(void)
{
    disk_file file = create("one", 1 << 20);
    memset(rig.memory, 1, MEMORY);
    struct ticket one = ticket(file, 0, DISK_BLOCK);
    one.op.done = submit_follow;
    send(&one);
    while (one.done == 0 || follow.done == 0) {
        (void)await();
    }
    cr_assert_eq(follow.result, OK);
    follow = (struct ticket){0};
    rig.disk.close(rig.disk.ctx, file);
}

static void a_write_in_the_callers_thread_is_done_on_return(void)
{
    disk_file file = create("one", 1 << 20);
    memset(rig.memory, 0x33, MEMORY);
    cr_assert_eq(rig.disk.write_durable(rig.disk.ctx, file, 4096, rig.memory, 200 << 10), OK);
    memset(rig.memory, 0, MEMORY);
    cr_assert_eq(rig.disk.read(rig.disk.ctx, file, 4096, rig.memory, 200 << 10), OK);
    cr_assert_eq(rig.memory[0], 0x33);
    cr_assert_eq(rig.memory[(200 << 10) - 1], 0x33);
    rig.disk.close(rig.disk.ctx, file);
}

static void count_name(void *ctx, const char *name)
{
    int *seen = ctx;
    if (strcmp(name, "two") == 0) {
        *seen |= 2;
    } else {
        *seen |= strcmp(name, "one") == 0 ? 1 : 4;
    }
}

static void names_can_be_listed_renamed_and_removed(void)
{
    disk_file file = create("one", DISK_BLOCK);
    int seen = 0;
    cr_assert_eq(rig.disk.list(rig.disk.ctx, count_name, &seen), OK);
    cr_assert_eq(seen, 1);
    cr_assert_eq(rig.disk.rename(rig.disk.ctx, "one", "two"), OK);
    cr_assert_eq(rig.disk.rename(rig.disk.ctx, "one", "two"), ERR_NOT_FOUND);
    cr_assert_eq(rig.disk.sync_folder(rig.disk.ctx), OK);
    seen = 0;
    cr_assert_eq(rig.disk.list(rig.disk.ctx, count_name, &seen), OK);
    cr_assert_eq(seen, 2);
    cr_assert_eq(rig.disk.remove(rig.disk.ctx, "two"), OK);
    cr_assert_eq(rig.disk.remove(rig.disk.ctx, "two"), ERR_NOT_FOUND);
    seen = 0;
    cr_assert_eq(rig.disk.list(rig.disk.ctx, count_name, &seen), OK);
    cr_assert_eq(seen, 0);
    /* An open file outlives its name. */
    cr_assert_eq(rig.disk.write(rig.disk.ctx, file, 0, rig.memory, DISK_BLOCK), OK);
    rig.disk.close(rig.disk.ctx, file);
    uint64_t space = 0;
    cr_assert_eq(rig.disk.space(rig.disk.ctx, &space), OK);
    cr_assert_gt(space, 0);
}

static void a_write_that_cannot_be_whole_fails(void)
{
    disk_file file = create("one", 64 << 10);
    memset(rig.memory, 9, MEMORY);
    if (rig.sim != NULL) {
        sim_disk_set_capacity(rig.sim, 128 << 10);
    } else {
        /* The kernel writes up to the limit, so this is a short write followed by an error. */
        (void)signal(SIGXFSZ, SIG_IGN);
        struct rlimit limit = {.rlim_cur = 128 << 10, .rlim_max = 128 << 10};
        cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    }
    struct ticket one = ticket(file, 96 << 10, 64 << 10);
    send(&one);
    while (one.done == 0) {
        (void)await();
    }
    cr_assert_eq(one.result, ERR_FULL, "%s", err_name(one.result));
    cr_assert_eq(
        rig.disk.write_durable(rig.disk.ctx, file, 96 << 10, rig.memory, 64 << 10), ERR_FULL);
    rig.disk.close(rig.disk.ctx, file);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void a_delay_is_kept(void)
{
    disk_file file = create("one", 64 << 10);
    memset(rig.memory, 9, MEMORY);
    struct ticket one = ticket(file, 0, DISK_BLOCK);
    one.op.delay_us = 30000;
    uint64_t started = now_ns();
    send(&one);
    if (rig.sim != NULL) {
        cr_assert_geq(sim_disk_next_due(rig.sim), 30000000);
    }
    while (one.done == 0) {
        (void)await();
    }
    cr_assert_eq(one.result, OK);
    if (rig.sim == NULL) {
        cr_assert_geq(now_ns() - started, 30000000);
    }
    rig.disk.close(rig.disk.ctx, file);
}

#define DISK_TESTS(suite, which)                                                                   \
    static void suite##_rig(void)                                                                  \
    {                                                                                              \
        rig_open(which);                                                                           \
    }                                                                                              \
    TestSuite(suite, .init = suite##_rig, .fini = rig_close);                                      \
    Test(suite, opens_files_as_asked)                                                              \
    {                                                                                              \
        files_open_as_asked();                                                                     \
    }                                                                                              \
    Test(suite, reads_what_is_written)                                                             \
    {                                                                                              \
        what_is_written_is_read();                                                                 \
    }                                                                                              \
    Test(suite, fills_files_with_zeros)                                                            \
    {                                                                                              \
        a_filled_file_is_zeros_of_the_asked_size();                                                \
    }                                                                                              \
    Test(suite, ends_a_durable_write_once_and_from_poll)                                           \
    {                                                                                              \
        a_durable_write_ends_once_and_from_poll();                                                 \
    }                                                                                              \
    Test(suite, ends_all_of_many_writes)                                                           \
    {                                                                                              \
        many_writes_in_flight_all_end();                                                           \
    }                                                                                              \
    Test(suite, takes_more_from_within_done)                                                       \
    {                                                                                              \
        more_may_be_submitted_from_done();                                                         \
    }                                                                                              \
    Test(suite, writes_durably_in_the_callers_thread)                                              \
    {                                                                                              \
        a_write_in_the_callers_thread_is_done_on_return();                                         \
    }                                                                                              \
    Test(suite, lists_renames_and_removes)                                                         \
    {                                                                                              \
        names_can_be_listed_renamed_and_removed();                                                 \
    }                                                                                              \
    Test(suite, fails_a_write_that_cannot_be_whole)                                                \
    {                                                                                              \
        a_write_that_cannot_be_whole_fails();                                                      \
    }                                                                                              \
    Test(suite, keeps_a_delay)                                                                     \
    {                                                                                              \
        a_delay_is_kept();                                                                         \
    }

DISK_TESTS(disk_dsync, KIND_DSYNC)
DISK_TESTS(disk_posix, KIND_POSIX)
DISK_TESTS(disk_ring_dsync, KIND_RING_DSYNC)
DISK_TESTS(disk_ring_link, KIND_RING_LINK)
DISK_TESTS(disk_sim, KIND_SIM)

/* What only real folders have. */

static void real_open(void)
{
    rig_open(KIND_DSYNC);
}

TestSuite(disk_real, .init = real_open, .fini = rig_close);

Test(disk_real, keeps_others_out)
{
    char path[192];
    (void)snprintf(path, sizeof path, "%s/wal", rig.folder);
    struct stat info;
    cr_assert_eq(stat(path, &info), 0);
    cr_assert_eq(info.st_mode & 0777, 0700);
    rig.disk.close(rig.disk.ctx, create("one", 0));
    (void)snprintf(path, sizeof path, "%s/wal/one", rig.folder);
    cr_assert_eq(stat(path, &info), 0);
    cr_assert_eq(info.st_mode & 0777, 0600);
}

Test(disk_real, follows_no_symbolic_links)
{
    char path[192];
    (void)snprintf(path, sizeof path, "%s/wal/slot-0000", rig.folder);
    cr_assert_eq(symlink("/etc/passwd", path), 0);
    disk_file file;
    cr_assert_neq(rig.disk.open(rig.disk.ctx, "slot-0000", 0, &file), OK);
}

Test(disk_real, chooses_by_probe_and_can_be_kept_from_the_ring)
{
    struct disk disk;
    enum log_io mode;
    char inner[80];
    (void)snprintf(inner, sizeof inner, "%s/wal", rig.folder);
    cr_assert_eq(disk_open(inner, LOG_IO_AUTO, &disk, &mode), OK);
    cr_assert(mode == LOG_IO_DSYNC || mode == LOG_IO_RING_DSYNC);
    cr_assert_str_eq(disk.name, mode == LOG_IO_DSYNC ? "posix" : "uring");
    disk_close(&disk);
    cr_assert_eq(disk_open(inner, LOG_IO_POSIX, &disk, &mode), OK);
    cr_assert_eq(mode, LOG_IO_POSIX);
    disk_close(&disk);
    cr_assert_eq(setenv("DURAMEN_NO_URING", "1", 1), 0);
    cr_assert_eq(disk_open(inner, LOG_IO_RING_DSYNC, &disk, &mode), ERR_UNSUPPORTED);
    cr_assert_eq(disk_open(inner, LOG_IO_RING_LINK, &disk, &mode), ERR_UNSUPPORTED);
    cr_assert_eq(disk_open(inner, LOG_IO_AUTO, &disk, &mode), OK);
    cr_assert_eq(mode, LOG_IO_DSYNC);
    disk_close(&disk);
    int names = 0;
    cr_assert_eq(rig.disk.list(rig.disk.ctx, count_name, &names), OK);
    cr_assert_eq(names, 0, "probes clean up");
}

Test(disk_real, a_folder_that_cannot_be_made_is_an_error)
{
    struct disk disk;
    enum log_io mode;
    cr_assert_neq(disk_open("/proc/no/such", LOG_IO_AUTO, &disk, &mode), OK);
    cr_assert_neq(disk_open("/dev/null", LOG_IO_DSYNC, &disk, &mode), OK);
}

Test(disk_real, modes_have_names)
{
    cr_assert_str_eq(log_io_name(LOG_IO_AUTO), "auto");
    cr_assert_str_eq(log_io_name(LOG_IO_DSYNC), "dsync");
    cr_assert_str_eq(log_io_name(LOG_IO_RING_DSYNC), "ring-dsync");
    cr_assert_str_eq(log_io_name(LOG_IO_RING_LINK), "ring-link");
    cr_assert_str_eq(log_io_name(LOG_IO_POSIX), "posix");
}

/* A file system in memory may refuse O_DIRECT or synchronous writes; the log must work there. */
static void shm_open_rig(void)
{
    if (access("/dev/shm", W_OK) != 0) {
        cr_skip_test("no /dev/shm");
    }
    rig = (struct rig){.kind = KIND_DSYNC};
    rig.memory = aligned_alloc(DISK_BLOCK, MEMORY);
    cr_assert_eq(sem_init(&rig.woken, 0, 0), 0);
    open_in("/dev/shm");
    rig.disk.set_wake(rig.disk.ctx, wake, &rig);
}

TestSuite(disk_memory, .init = shm_open_rig, .fini = rig_close);

Test(disk_memory, works_without_direct_transfers)
{
    a_durable_write_ends_once_and_from_poll();
}
