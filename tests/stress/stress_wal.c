#define _GNU_SOURCE
#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "wal/wal.h"

/* The log on a real disk with all its threads: the log thread, the one that fills slots, one that reads
 * the log back while it is written and recycled, one that watches the counters, and the owner, who sleeps
 * until woken. Meant for ThreadSanitizer; elsewhere it checks the same things faster. */

enum { ROUNDS = 3, BATCHES = 1500, SLOT = 256 << 10, KEEP = 4000 };

struct stress {
    struct wal *wal;
    struct io io;
    int event;
    lsn_t durable;
    lsn_t replayed;

    /* Owner and reader take turns on the reader: `turn` says whose it is. */
    pthread_mutex_t lock;
    pthread_cond_t moved;
    struct wal_reader *reader;
    bool readers_turn;
    bool stop;
    lsn_t read;

    atomic_bool watch_stop;
    atomic_uint_fast64_t watched;
};

static uint8_t byte_of(lsn_t lsn, size_t at)
{
    return (uint8_t)(lsn * 7 + at);
}

static size_t size_of(lsn_t lsn)
{
    return lsn % 500 == 0 ? 60000 : 20 + lsn % 400;
}

static void check_record(const struct wal_record *record)
{
    if (record->type == WAL_RECORD_MARK) return;
    ASSERT(record->payload.size == size_of(record->lsn));
    for (size_t i = 0; i < record->payload.size; i++) {
        ASSERT(record->payload.at[i] == byte_of(record->lsn, i));
    }
}

static enum err on_replay(void *ctx, const struct wal_record *record)
{
    struct stress *stress = ctx;
    ASSERT(record->lsn == stress->replayed + 1);
    check_record(record);
    stress->replayed = record->lsn;
    return OK;
}

static void on_durable(void *ctx, lsn_t lsn)
{
    struct stress *stress = ctx;
    ASSERT(lsn > stress->durable);
    stress->durable = lsn;
}

static void on_wake(void *ctx)
{
    struct stress *stress = ctx;
    uint64_t one = 1;
    ASSERT(write(stress->event, &one, sizeof one) == sizeof one);
}

static void *reader_main(void *argument)
{
    struct stress *stress = argument;
    pthread_mutex_lock(&stress->lock);
    while (!stress->stop) {
        if (!stress->readers_turn) {
            pthread_cond_wait(&stress->moved, &stress->lock);
            continue;
        }
        pthread_mutex_unlock(&stress->lock);
        struct wal_record record;
        enum err err;
        while ((err = wal_reader_next(stress->reader, &record)) == OK) {
            ASSERT(record.lsn == stress->read + 1);
            check_record(&record);
            stress->read = record.lsn;
        }
        ASSERT(err == ERR_NOT_FOUND);
        pthread_mutex_lock(&stress->lock);
        stress->readers_turn = false;
    }
    pthread_mutex_unlock(&stress->lock);
    return NULL;
}

static void *watch_main(void *argument)
{
    struct stress *stress = argument;
    while (!atomic_load(&stress->watch_stop)) {
        struct wal_stats stats;
        wal_stats(stress->wal, &stats);
        atomic_fetch_add(&stress->watched, stats.durable > 0);
        usleep(200);
    }
    return NULL;
}

/* Hands the reader a new end, or a new start when it has fallen behind what is kept. */
static void turn_reader(struct stress *stress)
{
    pthread_mutex_lock(&stress->lock);
    if (!stress->readers_turn) {
        if (stress->read + KEEP / 2 < stress->durable) {
            wal_reader_close(stress->reader);
            stress->reader = NULL;
        }
        if (stress->reader == NULL) {
            enum err err =
                wal_reader_open(stress->wal, stress->read, stress->durable, &stress->reader);
            ASSERT(err == OK);
        } else {
            wal_reader_extend(stress->reader, stress->durable);
        }
        stress->readers_turn = true;
        pthread_cond_signal(&stress->moved);
    }
    pthread_mutex_unlock(&stress->lock);
}

static void await(struct stress *stress, lsn_t lsn)
{
    while (stress->durable < lsn) {
        enum err err = wal_poll(stress->wal);
        ASSERT(err == OK);
        if (stress->durable >= lsn) break;
        uint64_t count;
        ASSERT(read(stress->event, &count, sizeof count) == sizeof count);
    }
    wal_release(stress->wal, stress->durable);
}

static void append_one(struct stress *stress)
{
    size_t size = size_of(wal_next(stress->wal));
    for (int round = 0; wal_admit(stress->wal, size) != OK; round++) {
        ASSERT(round < 100000);
        enum err err = wal_poll(stress->wal);
        ASSERT(err == OK);
        wal_release(stress->wal, stress->durable);
        if (stress->durable > KEEP) {
            pthread_mutex_lock(&stress->lock);
            lsn_t seen = stress->readers_turn ? 0 : stress->read;
            pthread_mutex_unlock(&stress->lock);
            if (seen > 0) {
                wal_trim(stress->wal, seen < stress->durable ? seen : stress->durable);
            }
            turn_reader(stress);
        }
        usleep(100);
    }
    lsn_t lsn;
    uint8_t *at = wal_append(stress->wal, WAL_RECORD_WRITE, 1, size, &lsn);
    ASSERT(at != NULL);
    for (size_t i = 0; i < size; i++) {
        at[i] = byte_of(lsn, i);
    }
}

static lsn_t run(struct stress *stress, lsn_t applied)
{
    struct wal_config config = {
        .io = &stress->io,
        .slot_size = SLOT,
        .spare_slots = 2,
        .bytes_max = 64 * SLOT,
        .applied = applied,
        .promised = applied,
        .background = true,
        .ctx = stress,
        .on_replay = on_replay,
        .on_durable = on_durable,
        .wake = on_wake,
    };
    struct wal_recovery report;
    stress->replayed = applied;
    enum err err = wal_open(&config, &report, &stress->wal);
    if (err != OK) {
        fprintf(stderr, "%s: %s\n", err_name(err), report.detail);
        abort();
    }
    ASSERT(report.last > stress->durable);
    stress->durable = report.last;
    stress->read = report.last;
    stress->stop = false;
    stress->readers_turn = false;
    atomic_store(&stress->watch_stop, false);
    pthread_t reader;
    pthread_t watcher;
    ASSERT(pthread_create(&reader, NULL, reader_main, stress) == 0);
    ASSERT(pthread_create(&watcher, NULL, watch_main, stress) == 0);
    for (int batch = 0; batch < BATCHES; batch++) {
        for (int i = 0; i <= batch % 13; i++) {
            append_one(stress);
        }
        if (batch % 17 == 0) {
            wal_flush_inline(stress->wal);
        } else {
            wal_flush(stress->wal, batch % 301 == 0 ? 500 : 0);
        }
        if (batch % 3 == 0) {
            await(stress, wal_next(stress->wal) - 1);
            turn_reader(stress);
        }
        if (batch % 50 == 0 && stress->durable > KEEP) {
            lsn_t upto = stress->durable - KEEP;
            if (upto > applied) {
                wal_trim(stress->wal, upto);
            }
        }
    }
    await(stress, wal_next(stress->wal) - 1);
    wal_idle(stress->wal);
    await(stress, wal_next(stress->wal) - 1);
    pthread_mutex_lock(&stress->lock);
    while (stress->readers_turn) {
        pthread_mutex_unlock(&stress->lock);
        usleep(100);
        pthread_mutex_lock(&stress->lock);
    }
    stress->stop = true;
    pthread_cond_signal(&stress->moved);
    pthread_mutex_unlock(&stress->lock);
    pthread_join(reader, NULL);
    atomic_store(&stress->watch_stop, true);
    pthread_join(watcher, NULL);
    ASSERT(atomic_load(&stress->watched) > 0);
    if (stress->reader != NULL) {
        wal_reader_extend(stress->reader, stress->durable);
        wal_reader_close(stress->reader);
        stress->reader = NULL;
    }
    struct wal_stats stats;
    wal_stats(stress->wal, &stats);
    wal_close(stress->wal);
    return stats.trimmed;
}

static void remove_each(void *ctx, const char *name)
{
    const struct disk *disk = ctx;
    enum err err = disk->remove(disk->ctx, name);
    ASSERT(err == OK);
}

static void stress_disk(const char *folder, enum log_io mode)
{
    struct stress stress = {.io = {.clock = clock_real(), .seed = 11}};
    enum log_io chosen;
    enum err err = disk_open(folder, mode, &stress.io.disk, &chosen);
    if (err == ERR_UNSUPPORTED) return;
    ASSERT(err == OK);
    stress.event = eventfd(0, EFD_CLOEXEC);
    ASSERT(stress.event >= 0);
    pthread_mutex_init(&stress.lock, NULL);
    pthread_cond_init(&stress.moved, NULL);
    stress.io.disk.set_wake(stress.io.disk.ctx, on_wake, &stress);
    lsn_t applied = 0;
    for (int round = 0; round < ROUNDS; round++) {
        applied = run(&stress, applied);
    }
    printf("%s: %llu records\n", log_io_name(chosen), (unsigned long long)stress.durable);
    enum err listed = stress.io.disk.list(stress.io.disk.ctx, remove_each, &stress.io.disk);
    ASSERT(listed == OK);
    disk_close(&stress.io.disk);
    pthread_cond_destroy(&stress.moved);
    pthread_mutex_destroy(&stress.lock);
    (void)close(stress.event);
    (void)rmdir(folder);
}

int main(void)
{
    const char *parent = getenv("TMPDIR");
    char folder[128];
    (void)snprintf(folder, sizeof folder, "%s/stress-wal-XXXXXX", parent == NULL ? "/tmp" : parent);
    ASSERT(mkdtemp(folder) != NULL);
    char inner[160];
    (void)snprintf(inner, sizeof inner, "%s/wal", folder);
    static const enum log_io modes[] = {LOG_IO_DSYNC, LOG_IO_POSIX, LOG_IO_RING_DSYNC};
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        stress_disk(inner, modes[i]);
    }
    (void)rmdir(folder);
    return 0;
}
