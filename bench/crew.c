#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "bench/bench_internal.h"

enum { PROGRESS_NS = 200000000 };

static void *worker_main(void *argument)
{
    struct worker *worker = argument;
    struct crew *crew = worker->crew;
    crew->work(worker);
    recorder_close(worker->recorder, crew->clock.monotonic_ns(crew->clock.ctx));
    if (worker->failed) {
        atomic_store(&crew->stop, true);
    }
    pthread_mutex_lock(&crew->lock);
    crew->running--;
    pthread_cond_signal(&crew->finished);
    pthread_mutex_unlock(&crew->lock);
    return NULL;
}

static void show_progress(
    const struct crew *crew, uint64_t now_ns, uint64_t *before, uint64_t *before_ns)
{
    uint64_t done = 0;
    uint64_t errors = 0;
    for (uint32_t i = 0; i < crew->count; i++) {
        const struct recorder *recorder = crew->workers[i].recorder;
        done += atomic_load_explicit(&recorder->shown, memory_order_relaxed);
        errors += atomic_load_explicit(&recorder->shown_errors, memory_order_relaxed);
    }
    if (now_ns - *before_ns < PROGRESS_NS || now_ns < crew->begin_ns) return;
    double rate =
        done < *before ? 0 : (double)(done - *before) * 1e9 / (double)(now_ns - *before_ns);
    char rate_text[32];
    char done_text[32];
    report_count((uint64_t)rate, rate_text, sizeof rate_text);
    report_count(done, done_text, sizeof done_text);
    fprintf(stderr, "\r\033[K%s  %.1f s  %s operations/s  %s done", crew->label,
        (double)(now_ns - crew->begin_ns) / 1e9, rate_text, done_text);
    if (errors > 0) {
        fprintf(stderr, "  %llu errors", (unsigned long long)errors);
    }
    *before = done;
    *before_ns = now_ns;
}

/* Waits on crew->finished until `until_ns` of the monotonic clock. */
static void wait_until(struct crew *crew, uint64_t until_ns)
{
    struct timespec at = {
        .tv_sec = (time_t)(until_ns / 1000000000u), .tv_nsec = (long)(until_ns % 1000000000u)};
    pthread_cond_timedwait(&crew->finished, &crew->lock, &at);
}

static void watch(struct crew *crew, struct cpu_mark *begin, struct cpu_mark *end)
{
    bool progress = crew->options->progress && isatty(STDERR_FILENO);
    bool begun = false;
    bool ended = false;
    uint64_t before = 0;
    uint64_t before_ns = crew->begin_ns;
    cpu_mark_take(begin, &crew->servers);
    pthread_mutex_lock(&crew->lock);
    while (crew->running > 0) {
        uint64_t now = crew->clock.monotonic_ns(crew->clock.ctx);
        if (!begun && now >= crew->begin_ns) {
            cpu_mark_take(begin, &crew->servers);
            begun = true;
        }
        if (!ended && now >= crew->end_ns) {
            cpu_mark_take(end, &crew->servers);
            ended = true;
        }
        if (progress) {
            show_progress(crew, now, &before, &before_ns);
        }
        uint64_t until = now + (progress ? PROGRESS_NS : 10000000000u);
        uint64_t next = !begun ? crew->begin_ns : crew->end_ns;
        wait_until(crew, next > now && next < until ? next : until);
    }
    pthread_mutex_unlock(&crew->lock);
    if (!ended) {
        cpu_mark_take(end, &crew->servers);
    }
    if (progress) {
        fprintf(stderr, "\r\033[K");
    }
}

static double share(uint64_t used, uint64_t wall)
{
    return wall == 0 ? 0 : 100.0 * (double)used / (double)wall;
}

static void add_round(struct crew *crew, struct run_result *result, const struct cpu_mark *begin,
    const struct cpu_mark *end)
{
    struct recorder *first = crew->workers[0].recorder;
    uint64_t last_ns = first->last_ns;
    uint64_t unsent = crew->workers[0].unsent;
    for (uint32_t i = 1; i < crew->count; i++) {
        struct worker *worker = &crew->workers[i];
        unsent += worker->unsent;
        if (worker->recorder->last_ns > last_ns) {
            last_ns = worker->recorder->last_ns;
        }
        recorder_merge(first, worker->recorder);
    }
    uint64_t start_ns = first->started ? first->start_ns : crew->begin_ns;
    double seconds = last_ns > start_ns ? (double)(last_ns - start_ns) / 1e9 : 0;
    if (crew->requests == 0 && last_ns < crew->end_ns) {
        seconds = (double)(crew->end_ns - start_ns) / 1e9; /* silence at the end counts */
    }
    uint64_t wall = end->wall_ns - begin->wall_ns;
    uint64_t self = end->self_ns - begin->self_ns;
    uint64_t server = end->server_ns - begin->server_ns;
    uint64_t machine = end->machine_ns - begin->machine_ns;
    ASSERT(result->round_count < ROUNDS_MAX);
    result->rounds[result->round_count++] = (struct round){
        .recorder = first,
        .seconds = seconds,
        .rate = seconds > 0 ? (double)first->operations / seconds : 0,
        .cpu_self = share(self, wall),
        .cpu_server = share(server, wall),
        .cpu_other = share(machine > self + server ? machine - self - server : 0, wall),
        .unsent = unsent,
    };
    crew->workers[0].recorder = NULL;
}

void result_finish(struct run_result *result)
{
    /* the round that has as many slower ones before it as half of all; ties by position */
    for (uint32_t i = 0; i < result->round_count; i++) {
        uint32_t slower = 0;
        for (uint32_t j = 0; j < result->round_count; j++) {
            double other = result->rounds[j].rate;
            if (other < result->rounds[i].rate || (other <= result->rounds[i].rate && j < i)) {
                slower++;
            }
        }
        if (slower == (result->round_count - 1) / 2) {
            result->shown = &result->rounds[i];
        }
    }
}

void result_deinit(struct run_result *result)
{
    for (uint32_t i = 0; i < result->round_count; i++)
        free(result->rounds[i].recorder);
    result->round_count = 0;
    result->shown = NULL;
}

static enum err make_workers(struct crew *crew)
{
    crew->workers = calloc(crew->count, sizeof *crew->workers);
    if (crew->workers == NULL) return ERR_NOMEM;
    for (uint32_t i = 0; i < crew->count; i++) {
        struct worker *worker = &crew->workers[i];
        worker->crew = crew;
        worker->index = i;
        worker->recorder = recorder_make(crew->count <= 4);
        if (worker->recorder == NULL) return ERR_NOMEM;
        workload_init(&worker->workload, crew->mix, crew->keyspace, i,
            i == 0 ? NULL : &crew->workers[0].workload);
        worker->requests = UINT64_MAX;
        if (crew->requests > 0) {
            worker->requests =
                crew->requests / crew->count + (i < crew->requests % crew->count ? 1 : 0);
        }
    }
    return OK;
}

enum err crew_run(struct crew *crew, double warmup, double seconds, struct run_result *result)
{
    crew->clock = clock_real();
    atomic_store(&crew->stop, false);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&crew->lock, NULL);
    pthread_cond_init(&crew->finished, &monotonic);
    pthread_condattr_destroy(&monotonic);

    enum err err = make_workers(crew);
    uint32_t started = 0;
    if (err == OK) {
        uint64_t now = crew->clock.monotonic_ns(crew->clock.ctx);
        crew->begin_ns = now + (uint64_t)(warmup * 1e9);
        crew->end_ns = crew->requests > 0 ? UINT64_MAX : crew->begin_ns + (uint64_t)(seconds * 1e9);
        crew->running = crew->count;
        for (; started < crew->count; started++) {
            struct worker *worker = &crew->workers[started];
            if (pthread_create(&worker->thread, NULL, worker_main, worker) != 0) break;
        }
        if (started < crew->count) {
            atomic_store(&crew->stop, true);
            pthread_mutex_lock(&crew->lock);
            crew->running -= crew->count - started;
            pthread_mutex_unlock(&crew->lock);
            err = ERR_NOMEM;
        }
        struct cpu_mark begin;
        struct cpu_mark end;
        watch(crew, &begin, &end);
        for (uint32_t i = 0; i < started; i++)
            pthread_join(crew->workers[i].thread, NULL);
        if (err == OK && atomic_load(&crew->stop)) {
            err = ERR_IO;
        }
        if (err == OK) {
            add_round(crew, result, &begin, &end);
        }
    }
    for (uint32_t i = 0; crew->workers != NULL && i < crew->count; i++)
        free(crew->workers[i].recorder);
    free(crew->workers);
    crew->workers = NULL;
    pthread_cond_destroy(&crew->finished);
    pthread_mutex_destroy(&crew->lock);
    return err;
}
