#ifndef BENCH_BENCH_INTERNAL_H
#define BENCH_BENCH_INTERNAL_H

#include <pthread.h>
#include <stdio.h>

#include "base/io.h"
#include "bench/recorder.h"
#include "bench/workload.h"
#include "wal/wal.h"

/* What the parts of the bench share. */

enum workload_kind {
    WORKLOAD_SET,
    WORKLOAD_GET,
    WORKLOAD_MIXED,
    WORKLOAD_A, /* 50 % reads, 50 % updates, zipfian */
    WORKLOAD_B, /* 95 % reads, 5 % updates, zipfian */
    WORKLOAD_C, /* reads, zipfian */
    WORKLOAD_D, /* 95 % reads, 5 % inserts, latest */
    WORKLOAD_E, /* 95 % short scans, 5 % inserts, zipfian */
    WORKLOAD_F, /* 50 % reads, 50 % read-modify-writes, zipfian */
    WORKLOAD_SCAN, /* engines: ordered scan of everything */
    WORKLOAD_APPLY, /* engines: a sorted batch into the bottom store */
    WORKLOAD_LOAD, /* every key once, in order */
};

enum { ENGINES_MAX = 8, ROUNDS_MAX = 64, NODES_MAX = 64 };

struct bench_options {
    char *nodes[NODES_MAX]; /* host:port; connections are spread over them in turn */
    uint32_t node_count;
    char *engines; /* NULL: over RESP */
    char *dir; /* where engines keep their data; NULL: a temporary folder */
    char *json;
    char *plot;
    char *emit;
    char *password;
    enum workload_kind workload;
    const char *workload_name;
    struct workload_config mix;
    uint32_t clients;
    uint32_t pipeline;
    double rate; /* 0: closed loop */
    double seconds;
    double warmup;
    uint64_t requests; /* 0: by time */
    uint32_t value_size;
    uint64_t keys;
    uint32_t threads;
    uint32_t in_flight; /* 0: blocking threads */
    uint32_t rounds;
    uint32_t busy; /* threads that do nothing but occupy cores */
    uint32_t dirty; /* per cent of the keys rewritten after the load, to stay in memory */
    uint64_t memory;
    uint64_t log_bytes;
    uint32_t ranges;
    enum log_io log_io;
    uint32_t wait; /* replicas that must have a SET: WAIT behind it; 0: none */
    bool load;
    bool load_only;
    bool checkpoint;
    bool random_values;
    bool resp3;
    bool progress;
};

/* Parses the command line. True: run. False: *exit_out is the exit code, and stderr has the reason.
 * argp exits by itself for --help (0) and for unknown options (2). */
bool options_parse(int argc, char **argv, struct bench_options *options_out, int *exit_out);
/* "4KiB", "10M", "64" to a number; false if it is not one. */
bool options_number(const char *text, uint64_t *number_out);
/* A sentence about the load, e.g. "set, 50 clients x 1, closed loop". */
void options_describe(const struct bench_options *options, char *at, size_t size);

/* CPU time used so far, for "who was busy". */
struct cpu_mark {
    uint64_t wall_ns;
    uint64_t self_ns;
    uint64_t server_ns; /* of those on this machine */
    uint64_t machine_ns;
};

struct machine {
    char cpu[96];
    char kernel[96];
    long cores;
    uint64_t memory;
};

void machine_describe(struct machine *machine_out);
/* The processes of the servers on this machine. */
struct servers {
    long pids[NODES_MAX];
    uint32_t count;
};

void cpu_mark_take(struct cpu_mark *mark_out, const struct servers *servers);

struct round {
    struct recorder *recorder;
    double seconds;
    double rate; /* operations a second */
    double cpu_self; /* per cent of one core */
    double cpu_server;
    double cpu_other;
    uint64_t unsent; /* open loop: arrivals that were never sent */
};

/* The result of one target or engine, all rounds. */
struct run_result {
    char name[64];
    char detail[400]; /* versions, sync mode */
    struct round rounds[ROUNDS_MAX];
    uint32_t round_count;
    const struct round *shown; /* the median round by rate; set by result_finish() */
    double load_rate; /* operations a second while loading; 0: not loaded */
    uint64_t file_bytes; /* of the bottom store; 0: unknown */
    uint64_t data_bytes;
    char note[200];
};

/* Threads that run one workload for a given time. The caller's thread shows progress. */
struct crew;

struct worker {
    struct crew *crew;
    uint32_t index;
    struct recorder *recorder;
    struct workload workload;
    uint64_t requests; /* this worker's share; UINT64_MAX: until the time is over */
    uint64_t unsent;
    void *own;
    bool failed;
    pthread_t thread;
};

struct crew {
    const struct bench_options *options;
    struct clock clock;
    uint32_t count;
    struct worker *workers;
    void (*work)(struct worker *worker); /* returns when end_ns or its requests are reached */
    struct keyspace *keyspace;
    const struct workload_config *mix;
    void *ctx;
    struct servers servers;
    const char *label; /* of the progress line */
    uint64_t begin_ns; /* the warm-up ends */
    uint64_t end_ns;
    uint64_t requests; /* 0: by time */
    _Atomic bool stop; /* a worker failed */
    uint32_t running;
    pthread_mutex_t lock;
    pthread_cond_t finished;
};

/* Fills the parts of *crew that are not set, runs it, and adds a round to *result. The caller has set
 * options, count, work, keyspace, mix, ctx, servers, label, requests. ERR_NOMEM, ERR_IO (a worker
 * failed; it has said why). */
enum err crew_run(
    struct crew *crew, double warmup, double seconds, struct run_result *result) MUST_CHECK;
/* What a worker does first when the warm-up may be over. */
static inline void worker_clock(struct worker *worker, uint64_t now_ns)
{
    if (!worker->recorder->started && now_ns >= worker->crew->begin_ns) {
        recorder_start(worker->recorder, now_ns);
    }
}
/* Finds the median round; call after the last one. */
void result_finish(struct run_result *result);
void result_deinit(struct run_result *result);

/* One run over RESP; false after an explanation on stderr. */
bool load_resp(const struct bench_options *options, struct run_result *result);
/* Engines in this process, interleaved by rounds. */
bool load_engines(
    const struct bench_options *options, struct run_result *results, uint32_t *count_out);

/* Human-readable report on `out`; the first result is what the others are compared with. */
void report_print(FILE *out, const struct bench_options *options, const struct run_result *results,
    uint32_t count);
/* "1,234,567" */
void report_count(uint64_t count, char *at, size_t size);
/* "12.3 µs", "1.04 ms", three digits */
void report_time(uint64_t ns, char *at, size_t size);
/* "100 B", "1.5 KiB" */
void report_bytes(uint64_t bytes, char *at, size_t size);
/* True after writing everything as one JSON object. */
bool report_json(const char *file, const struct bench_options *options,
    const struct run_result *results, uint32_t count);
/* Latency by percentile, and throughput and p99 over time, as an SVG. */
bool plot_write(const char *file, const struct bench_options *options,
    const struct run_result *results, uint32_t count);
/* The largest value that falls into a slot of struct histogram. */
uint64_t report_slot_top(unsigned slot);

#endif
