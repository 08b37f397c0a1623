#define _GNU_SOURCE
#include <errno.h>
#include <ftw.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "bench/engine.h"

/* Engines in this process, under the same workloads as a server. All of them are opened and loaded first,
 * then measured in turn, round by round (A B C A B C), so that a slow minute of the machine hits all
 * alike. Two ways to put load on one:
 *
 *   --threads N    N threads, each blocks in put or get until it is done;
 *   --in-flight N  one thread submits, and sends off and waits when N writes are under way: how an event
 *                  loop uses an engine. One that has only blocking calls gets N threads instead.
 */

enum { READ_RUN = 64 /* reads between two looks at the clock's limit */ };

struct target {
    const struct engine_driver *driver;
    enum log_io log_io;
    char name[64];
    char folder[4096];
    void *engine;
};

struct engine_run {
    const struct target *target;
    struct bytes value;
    uint32_t window; /* 0: blocking */
};

struct waiting {
    uint64_t token;
    uint64_t start_ns;
    enum operation operation;
};

struct hogs {
    pthread_t *threads;
    uint32_t count;
    _Atomic bool stop;
};

static const struct engine_driver *const drivers[] = {
    &engine_duramen,
    &engine_lmdb,
#ifdef BENCH_ROCKSDB
    &engine_rocksdb,
#endif
    &engine_log,
    &engine_disk,
};

static bool complain(const struct target *target, const char *doing, enum err err)
{
    fprintf(stderr, "duramen bench: %s: %s: %s\n", target->name, doing, err_text(err));
    return false;
}

/* Writing the value anew keeps every put different where --random-values asks for it. */
static struct bytes next_value(struct worker *worker, uint8_t *room, struct bytes value)
{
    if (!worker->crew->options->random_values) return value;
    value_fill(room, value.size, &worker->workload.prng);
    return bytes_of(room, value.size);
}

static enum err read_key(struct worker *worker, void *session, uint64_t number, uint8_t *room)
{
    struct engine_run *run = worker->crew->ctx;
    size_t capacity = worker->crew->options->value_size;
    uint8_t key[KEY_SIZE];
    size_t size = 0;
    key_write(key, number);
    enum err err =
        run->target->driver->get(session, bytes_of(key, KEY_SIZE), room, capacity, &size);
    if (err == ERR_NOT_FOUND) {
        worker->recorder->misses++;
        return OK;
    }
    if (err == OK && size != capacity) {
        recorder_error(worker->recorder, "wrong value", "a value of another size");
    }
    return err;
}

/* A scan of a mix is `span` consecutive keys, read one by one: the same work that MGET is over RESP. */
static enum err read_request(
    struct worker *worker, void *session, const struct request *request, uint8_t *room)
{
    uint32_t span = request->operation == OPERATION_SCAN ? request->span : 1;
    for (uint32_t i = 0; i < span; i++)
        TRY(read_key(worker, session, request->key + i, room));
    return OK;
}

static bool reads(enum operation operation)
{
    return operation == OPERATION_GET || operation == OPERATION_SCAN || operation == OPERATION_RMW;
}

static bool writes(enum operation operation)
{
    return operation == OPERATION_SET || operation == OPERATION_INSERT ||
        operation == OPERATION_RMW;
}

static bool over(const struct worker *worker, uint64_t now, uint64_t issued)
{
    return now >= worker->crew->end_ns || issued >= worker->requests ||
        atomic_load_explicit(&worker->crew->stop, memory_order_relaxed);
}

static void fail(struct worker *worker, const char *doing, enum err err)
{
    struct engine_run *run = worker->crew->ctx;
    complain(run->target, doing, err);
    worker->failed = true;
}

static void work_blocking(struct worker *worker, void *session, uint8_t *room)
{
    struct engine_run *run = worker->crew->ctx;
    const struct engine_driver *driver = run->target->driver;
    struct clock clock = worker->crew->clock;
    uint64_t now = clock.monotonic_ns(clock.ctx);
    uint8_t key[KEY_SIZE];
    for (uint64_t issued = 0; !over(worker, now, issued); issued++) {
        struct request request = workload_next(&worker->workload);
        uint64_t start = now;
        enum err err = OK;
        worker_clock(worker, now);
        if (reads(request.operation)) {
            err = read_request(worker, session, &request, room);
        }
        if (err == OK && writes(request.operation)) {
            key_write(key, request.key);
            err = driver->put(
                run->target->engine, bytes_of(key, KEY_SIZE), next_value(worker, room, run->value));
        }
        if (err != OK) {
            fail(worker, operation_name(request.operation), err);
            return;
        }
        now = clock.monotonic_ns(clock.ctx);
        if (request.operation == OPERATION_INSERT) {
            workload_confirm(&worker->workload);
        }
        recorder_add(worker->recorder, request.operation, now - start);
        recorder_turn(worker->recorder, now);
    }
}

struct window {
    struct waiting *ring;
    uint32_t capacity;
    uint32_t head;
    uint32_t count;
    uint64_t issued;
};

static void pause_briefly(void)
{
    struct timespec time = {.tv_nsec = 100000};
    nanosleep(&time, NULL);
}

/* Sends off what is in the window, waits for at least one, and takes off what is done. */
static enum err reap(struct worker *worker, struct window *window)
{
    struct engine_run *run = worker->crew->ctx;
    struct clock clock = worker->crew->clock;
    uint64_t done;
    if (window->count == 0) {
        pause_briefly(); /* refused with nothing under way: a full memtable, so time must pass */
        return OK;
    }
    TRY(run->target->driver->wait(
        run->target->engine, window->ring[window->head].token - 1, &done));
    uint64_t now = clock.monotonic_ns(clock.ctx);
    worker_clock(worker, now);
    while (window->count > 0 && window->ring[window->head].token <= done) {
        const struct waiting *waiting = &window->ring[window->head];
        recorder_add(worker->recorder, waiting->operation, now - waiting->start_ns);
        if (waiting->operation == OPERATION_INSERT) {
            workload_confirm(&worker->workload);
        }
        window->head = (window->head + 1) % window->capacity;
        window->count--;
    }
    recorder_turn(worker->recorder, now);
    return OK;
}

/* Submits writes and answers reads until the window is full; ERR_AGAIN: the engine wants a wait. */
static enum err fill_window(struct worker *worker, struct window *window, void *session,
    struct request *kept, bool *has_kept, uint8_t *room)
{
    struct engine_run *run = worker->crew->ctx;
    const struct engine_driver *driver = run->target->driver;
    struct clock clock = worker->crew->clock;
    uint64_t now = clock.monotonic_ns(clock.ctx);
    uint8_t key[KEY_SIZE];
    uint32_t reads_left = READ_RUN;
    while (
        window->count < window->capacity && reads_left > 0 && window->issued < worker->requests) {
        struct request request = *has_kept ? *kept : workload_next(&worker->workload);
        *has_kept = false;
        if (reads(request.operation)) {
            worker_clock(worker, now);
            TRY(read_request(worker, session, &request, room));
            uint64_t end = clock.monotonic_ns(clock.ctx);
            reads_left--;
            if (!writes(request.operation)) {
                recorder_add(worker->recorder, request.operation, end - now);
                recorder_turn(worker->recorder, end);
                window->issued++;
                now = end;
                continue;
            }
        }
        uint32_t at = (window->head + window->count) % window->capacity;
        struct waiting *waiting = &window->ring[at];
        key_write(key, request.key);
        enum err err = driver->submit(run->target->engine, bytes_of(key, KEY_SIZE),
            next_value(worker, room, run->value), &waiting->token);
        if (err == ERR_AGAIN || err == ERR_FULL) {
            *kept = request;
            *has_kept = true;
            return OK;
        }
        if (err != OK) return err;
        waiting->start_ns = now;
        waiting->operation = request.operation;
        window->count++;
        window->issued++;
    }
    return OK;
}

static void work_window(struct worker *worker, void *session, uint8_t *room)
{
    struct engine_run *run = worker->crew->ctx;
    struct clock clock = worker->crew->clock;
    struct window window = {.capacity = run->window};
    struct request kept = {0};
    bool has_kept = false;
    window.ring = calloc(window.capacity, sizeof *window.ring);
    enum err err = window.ring == NULL ? ERR_NOMEM : OK;
    while (err == OK) {
        uint64_t now = clock.monotonic_ns(clock.ctx);
        worker_clock(worker, now);
        bool ending = over(worker, now, window.issued);
        if (ending && now >= worker->crew->end_ns) {
            recorder_close(worker->recorder, now);
        }
        if (ending && window.count == 0) break;
        if (!ending) {
            err = fill_window(worker, &window, session, &kept, &has_kept, room);
        }
        if (err == OK && (window.count > 0 || has_kept)) {
            err = reap(worker, &window);
        }
    }
    if (err != OK) {
        fail(worker, "run", err);
    }
    free(window.ring);
}

static void work_scan(struct worker *worker, void *session)
{
    struct engine_run *run = worker->crew->ctx;
    struct clock clock = worker->crew->clock;
    uint64_t now = clock.monotonic_ns(clock.ctx);
    for (uint64_t issued = 0; !over(worker, now, issued); issued++) {
        uint64_t entries = 0;
        uint64_t bytes = 0;
        uint64_t start = now;
        worker_clock(worker, now);
        enum err err = run->target->driver->scan(session, &entries, &bytes);
        if (err != OK) {
            fail(worker, "scan", err);
            return;
        }
        now = clock.monotonic_ns(clock.ctx);
        recorder_add(worker->recorder, OPERATION_SCAN, now - start);
        worker->recorder->operations += entries - 1; /* what counts is entries, not walks */
        recorder_turn(worker->recorder, now);
    }
}

static void engine_work(struct worker *worker)
{
    struct engine_run *run = worker->crew->ctx;
    const struct engine_driver *driver = run->target->driver;
    void *session = NULL;
    uint8_t *room = malloc(run->value.size + 1);
    if (driver->session_open != NULL) {
        session = driver->session_open(run->target->engine);
    }
    if (room == NULL || (driver->session_open != NULL && session == NULL)) {
        fail(worker, "session", ERR_NOMEM);
    } else if (worker->crew->options->workload == WORKLOAD_SCAN) {
        work_scan(worker, session);
    } else if (run->window > 0) {
        work_window(worker, session, room);
    } else {
        work_blocking(worker, session, room);
    }
    if (session != NULL) {
        driver->session_close(session);
    }
    free(room);
}

/* --- preparation ------------------------------------------------------------------------------ */

static int remove_entry(const char *path, const struct stat *status, int type, struct FTW *walk)
{
    (void)status;
    (void)type;
    (void)walk;
    return remove(path);
}

static void remove_folder(const char *path)
{
    nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static bool can_do(const struct target *target, const struct bench_options *options)
{
    const struct engine_driver *driver = target->driver;
    bool reading = options->mix.parts[OPERATION_GET] + options->mix.parts[OPERATION_SCAN] +
            options->mix.parts[OPERATION_RMW] >
        0;
    bool fine = true;
    if (options->workload == WORKLOAD_SCAN) {
        fine = driver->scan != NULL;
    } else if (options->workload == WORKLOAD_APPLY) {
        fine = driver->apply != NULL;
    } else if (reading) {
        fine = driver->get != NULL;
    }
    if (!fine) {
        fprintf(stderr, "duramen bench: engine %s cannot run workload %s\n", target->name,
            options->workload_name);
    }
    return fine;
}

static bool parse_target(const char *text, struct target *target, enum log_io log_io)
{
    const char *colon = strchr(text, ':');
    size_t size = colon == NULL ? strlen(text) : (size_t)(colon - text);
    target->log_io = log_io;
    snprintf(target->name, sizeof target->name, "%s", text);
    for (size_t i = 0; i < sizeof drivers / sizeof drivers[0]; i++) {
        if (strlen(drivers[i]->name) == size && strncmp(text, drivers[i]->name, size) == 0) {
            target->driver = drivers[i];
        }
    }
    bool known = target->driver != NULL;
    if (known && colon != NULL) {
        known = false;
        for (int mode = LOG_IO_AUTO; mode <= LOG_IO_POSIX; mode++) {
            if (strcmp(colon + 1, log_io_name((enum log_io)mode)) == 0) {
                target->log_io = (enum log_io)mode;
                known = true;
            }
        }
    }
    if (!known) {
        fprintf(stderr,
            "duramen bench: no engine '%s'; there are duramen, lmdb, rocksdb%s, log, disk, and "
            "NAME:auto, dsync, ring-dsync, ring-link, posix\n",
            text,
#ifdef BENCH_ROCKSDB
            ""
#else
            " (not in this build: install librocksdb-dev and configure again)"
#endif
        );
    }
    return known;
}

static bool parse_targets(
    const struct bench_options *options, struct target *targets, uint32_t *count_out)
{
    char list[512];
    char *rest = list;
    uint32_t count = 0;
    snprintf(list, sizeof list, "%s", options->engines);
    for (char *each = strsep(&rest, ","); each != NULL; each = strsep(&rest, ",")) {
        if (count == ENGINES_MAX) {
            fprintf(stderr, "duramen bench: at most %d engines in one run\n", ENGINES_MAX);
            return false;
        }
        if (!parse_target(each, &targets[count], options->log_io)) return false;
        if (!can_do(&targets[count], options)) return false;
        count++;
    }
    *count_out = count;
    return true;
}

/* Random puts that stay above the bottom store until the next checkpoint. */
static enum err make_dirty(
    struct target *target, const struct bench_options *options, struct bytes value)
{
    if (options->dirty == 0 || target->driver->submit == NULL) return OK;
    struct prng prng;
    uint8_t key[KEY_SIZE];
    uint64_t token = 0;
    uint64_t done = 0;
    uint64_t count = options->keys * options->dirty / 100;
    prng_init(&prng, options->mix.seed + 5);
    for (uint64_t i = 0; i < count;) {
        key_write(key, prng_below(&prng, options->keys));
        enum err err =
            target->driver->submit(target->engine, bytes_of(key, KEY_SIZE), value, &token);
        if (err != OK && err != ERR_AGAIN) return err;
        i += err == OK;
        if ((err == ERR_AGAIN || i % 1024 == 0) && token > done) {
            TRY(target->driver->wait(target->engine, done, &done));
        }
    }
    while (done < token)
        TRY(target->driver->wait(target->engine, done, &done));
    return OK;
}

static bool prepare(struct target *target, const struct bench_options *options, struct bytes value,
    struct run_result *result)
{
    struct clock clock = clock_real();
    const struct engine_driver *driver = target->driver;
    struct engine_setup setup = {.options = options,
        .folder = target->folder,
        .log_io = target->log_io,
        .checkpoint = options->checkpoint && options->workload != WORKLOAD_APPLY};
    snprintf(result->name, sizeof result->name, "%s", target->name);
    if (mkdir(target->folder, 0700) != 0) {
        fprintf(stderr, "duramen bench: cannot make the folder %s: %s\n", target->folder,
            strerror(errno));
        return false;
    }
    enum err err = driver->open(&setup, &target->engine);
    if (err != OK) {
        target->engine = NULL;
        return complain(target, "open", err);
    }
    driver->describe(target->engine, result->detail, sizeof result->detail);
    if (driver->load != NULL) {
        if (options->progress && isatty(STDERR_FILENO)) {
            fprintf(stderr, "\r\033[Kloading %s", target->name);
        }
        uint64_t start = clock.monotonic_ns(clock.ctx);
        err = driver->load(target->engine, options->keys, value);
        if (err != OK) return complain(target, "load", err);
        uint64_t took = clock.monotonic_ns(clock.ctx) - start;
        result->load_rate = (double)options->keys * 1e9 / (double)took;
        result->data_bytes = options->keys * (KEY_SIZE + (uint64_t)options->value_size);
    }
    if (driver->settle != NULL) {
        err = driver->settle(target->engine);
        if (err != OK) return complain(target, "settle after the load", err);
    }
    err = make_dirty(target, options, value);
    if (err != OK) return complain(target, "rewrite", err);
    return true;
}

static bool run_apply(struct target *target, const struct bench_options *options,
    struct bytes value, struct run_result *result)
{
    uint64_t count = options->requests > 0 ? options->requests : options->keys / 10;
    uint64_t puts = 0;
    uint64_t ns = 0;
    struct recorder *recorder = recorder_make(true);
    enum err err = recorder == NULL ? ERR_NOMEM : OK;
    if (err == OK) {
        err = target->driver->apply(target->engine, count == 0 ? 1 : count, value, &puts, &ns);
    }
    if (err != OK) {
        free(recorder);
        return complain(target, "apply", err);
    }
    recorder_start(recorder, 0);
    recorder_add(recorder, OPERATION_SET, ns);
    recorder->operations = puts;
    recorder_close(recorder, 0);
    result->rounds[result->round_count++] = (struct round){
        .recorder = recorder,
        .seconds = (double)ns / 1e9,
        .rate = (double)puts * 1e9 / (double)ns,
    };
    return true;
}

static bool run_round(struct target *target, const struct bench_options *options,
    struct bytes value, struct run_result *result)
{
    if (options->workload == WORKLOAD_APPLY) return run_apply(target, options, value, result);
    struct keyspace keyspace = {.loaded = options->keys};
    struct engine_run run = {.target = target, .value = value};
    uint32_t concurrency = options->in_flight > 0 ? options->in_flight : options->threads;
    bool window =
        target->driver->submit != NULL && (options->in_flight > 0 || target->driver->put == NULL);
    if (options->workload == WORKLOAD_SCAN) {
        window = false;
        concurrency = options->threads;
    }
    if (window) {
        run.window = concurrency;
    }
    struct crew crew = {.options = options,
        .count = window ? 1 : concurrency,
        .work = engine_work,
        .keyspace = &keyspace,
        .mix = &options->mix,
        .ctx = &run,
        .label = target->name,
        .requests = options->requests};
    return crew_run(&crew, options->warmup, options->seconds, result) == OK;
}

/* --- busy processors -------------------------------------------------------------------------- */

static void *hog_main(void *argument)
{
    struct hogs *hogs = argument;
    uint64_t state = 1;
    while (!atomic_load_explicit(&hogs->stop, memory_order_relaxed)) {
        for (int i = 0; i < 10000; i++)
            state = state * 6364136223846793005u + 1442695040888963407u;
    }
    return (void *)(uintptr_t)(state & 1); /* used, so that the loop stays */
}

static bool hogs_start(struct hogs *hogs, uint32_t wanted)
{
    *hogs = (struct hogs){0};
    if (wanted == 0) return true;
    hogs->threads = calloc(wanted, sizeof *hogs->threads);
    if (hogs->threads == NULL) return false;
    while (hogs->count < wanted &&
        pthread_create(&hogs->threads[hogs->count], NULL, hog_main, hogs) == 0)
        hogs->count++;
    return hogs->count == wanted;
}

static void hogs_stop(struct hogs *hogs)
{
    atomic_store(&hogs->stop, true);
    for (uint32_t i = 0; i < hogs->count; i++)
        pthread_join(hogs->threads[i], NULL);
    free(hogs->threads);
}

/* --- all of it -------------------------------------------------------------------------------- */

static bool run_rounds(const struct bench_options *options, struct target *targets, uint32_t count,
    struct bytes value, struct run_result *results)
{
    for (uint32_t round = 0; round < options->rounds; round++) {
        for (uint32_t i = 0; i < count; i++) {
            if (!run_round(&targets[i], options, value, &results[i])) return false;
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        result_finish(&results[i]);
        if (targets[i].driver->file_bytes != NULL) {
            results[i].file_bytes = targets[i].driver->file_bytes(targets[i].engine);
        }
    }
    return true;
}

static bool make_root(const struct bench_options *options, char *root, size_t size)
{
    const char *base = secure_getenv("TMPDIR");
    if (options->dir != NULL) {
        snprintf(root, size, "%s/duramen-bench.XXXXXX", options->dir);
    } else {
        /* not /tmp: where that is in memory, syncs would cost nothing */
        snprintf(root, size, "%s/duramen-bench.XXXXXX", base == NULL ? "/var/tmp" : base);
    }
    if (mkdtemp(root) == NULL) {
        fprintf(stderr, "duramen bench: cannot make a folder %s: %s; choose another with --dir\n",
            root, strerror(errno));
        return false;
    }
    return true;
}

bool load_engines(
    const struct bench_options *options, struct run_result *results, uint32_t *count_out)
{
    struct target targets[ENGINES_MAX] = {0};
    struct hogs hogs = {0};
    struct prng prng;
    char root[4000];
    uint32_t count = 0;
    if (!parse_targets(options, targets, &count)) return false;
    if (!make_root(options, root, sizeof root)) return false;
    uint8_t *content = malloc((size_t)options->value_size + 1);
    bool fine = content != NULL;
    if (fine) {
        prng_init(&prng, options->mix.seed);
        value_fill(content, options->value_size, &prng);
    }
    struct bytes value = bytes_of(content, options->value_size);
    for (uint32_t i = 0; i < count && fine; i++) {
        snprintf(targets[i].folder, sizeof targets[i].folder, "%s/%u", root, i);
        fine = prepare(&targets[i], options, value, &results[i]);
    }
    if (options->progress && isatty(STDERR_FILENO)) {
        fprintf(stderr, "\r\033[K");
    }
    if (fine && !options->load_only) {
        fine =
            hogs_start(&hogs, options->busy) && run_rounds(options, targets, count, value, results);
        hogs_stop(&hogs);
    }
    for (uint32_t i = 0; i < count; i++) {
        if (targets[i].engine != NULL) {
            targets[i].driver->close(targets[i].engine);
        }
    }
    remove_folder(root);
    free(content);
    *count_out = count;
    return fine;
}
