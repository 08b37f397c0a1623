#define _GNU_SOURCE
#include <argp.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "bench/bench_internal.h"
#include "storage/effect.h"

enum option_key {
    OPTION_NODE = 256,
    OPTION_ENGINE,
    OPTION_WORKLOAD,
    OPTION_CLIENTS,
    OPTION_PIPELINE,
    OPTION_RATE,
    OPTION_SECONDS,
    OPTION_WARMUP,
    OPTION_REQUESTS,
    OPTION_VALUE_SIZE,
    OPTION_RANDOM_VALUES,
    OPTION_KEYS,
    OPTION_DISTRIBUTION,
    OPTION_THETA,
    OPTION_RATIO,
    OPTION_LOAD,
    OPTION_LOAD_ONLY,
    OPTION_SEED,
    OPTION_THREADS,
    OPTION_IN_FLIGHT,
    OPTION_ROUNDS,
    OPTION_BUSY,
    OPTION_DIR,
    OPTION_MEMORY,
    OPTION_LOG_BYTES,
    OPTION_RANGES,
    OPTION_LOG_IO,
    OPTION_CHECKPOINT,
    OPTION_DIRTY,
    OPTION_READ,
    OPTION_SCAN,
    OPTION_PASSWORD,
    OPTION_RESP3,
    OPTION_WAIT,
    OPTION_JSON,
    OPTION_PLOT,
    OPTION_EMIT,
    OPTION_NO_PROGRESS,
};

static const struct argp_option option_list[] = {
    {0, 0, 0, 0, "Target", 1},
    {"node", OPTION_NODE, "HOST:PORT[,...]", 0,
        "RESP server to load (default 127.0.0.1:7379). Several, here or by repeating the flag, are "
        "nodes of one cluster: connections are spread over them in turn",
        1},
    {"password", OPTION_PASSWORD, "TEXT", 0, "AUTH with it (or set DURAMEN_PASSWORD)", 1},
    {"resp3", OPTION_RESP3, 0, 0, "Open connections with HELLO 3", 1},
    {"wait", OPTION_WAIT, "N", 0,
        "Send WAIT N behind every SET; both are one operation (Redis with replicas)", 1},
    {"engine", OPTION_ENGINE, "NAME[,NAME...]", 0,
        "Instead of a server, engines in this process: duramen, lmdb, rocksdb, log, disk. "
        "Several are measured in turn, round by round. NAME:IO chooses the log's back end, as in "
        "log:dsync,log:ring-dsync",
        1},
    {0, 0, 0, 0, "Load", 2},
    {"workload", OPTION_WORKLOAD, "NAME", 0,
        "set (default), get, mixed, the YCSB mixes a to f; for engines also scan and apply", 2},
    {"ratio", OPTION_RATIO, "SET:GET", 0, "Of the mixed workload (default 1:10)", 2},
    {"clients", OPTION_CLIENTS, "N", 0, "Connections (default 50)", 2},
    {"pipeline", OPTION_PIPELINE, "N", 0, "Requests in flight on each connection (default 1)", 2},
    {"rate", OPTION_RATE, "N", 0,
        "Open loop: N arrivals a second whatever the answers do; latency counts from the arrival",
        2},
    {"seconds", OPTION_SECONDS, "S", 0, "Measured time (default 10)", 2},
    {"warmup", OPTION_WARMUP, "S", 0, "Time before it that does not count (default 0)", 2},
    {"requests", OPTION_REQUESTS, "N", 0, "Stop after N requests instead", 2},
    {"threads", OPTION_THREADS, "N", 0,
        "RESP: generator threads (default 1). Engines: threads that block in put or get", 2},
    {"in-flight", OPTION_IN_FLIGHT, "N", 0,
        "Engines: one thread keeps N writes in flight; engines without that use N threads", 2},
    {"rounds", OPTION_ROUNDS, "N", 0, "Repeat, and report the median (default 1)", 2},
    {"busy", OPTION_BUSY, "N", 0, "N threads that do nothing but occupy the processors", 2},
    {0, 0, 0, 0, "Data", 3},
    {"keys", OPTION_KEYS, "N", 0, "Keys \"key:000000000000\" up to N (default 1,000,000)", 3},
    {"value-size", OPTION_VALUE_SIZE, "BYTES", 0, "Size of values (default 100)", 3},
    {"random-values", OPTION_RANDOM_VALUES, 0, 0,
        "Other bytes in every value; else one block that no compressor can shrink", 3},
    {"distribution", OPTION_DISTRIBUTION, "NAME", 0,
        "uniform, zipfian, latest (default: as the workload says)", 3},
    {"theta", OPTION_THETA, "X", 0, "Skew of zipfian, above 0 and below 1 (default 0.99)", 3},
    {"load", OPTION_LOAD, 0, 0, "Write all keys first (engines always do)", 3},
    {"load-only", OPTION_LOAD_ONLY, 0, 0, "Write all keys and stop", 3},
    {"seed", OPTION_SEED, "N", 0, "Of all random choices (default 1)", 3},
    {0, 0, 0, 0, "Engines", 4},
    {"dir", OPTION_DIR, "DIR", 0, "Where they keep their data (default: a temporary folder)", 4},
    {"memory", OPTION_MEMORY, "BYTES", 0, "Memtables or block cache (default 512MiB)", 4},
    {"log-bytes", OPTION_LOG_BYTES, "BYTES", 0, "Budget of the log (default: the engine's)", 4},
    {"ranges", OPTION_RANGES, "N", 0, "Ranges of a new store (default: the engine's)", 4},
    {"log-io", OPTION_LOG_IO, "NAME", 0, "auto, dsync, ring-dsync, ring-link, posix", 4},
    {"checkpoint", OPTION_CHECKPOINT, "on|off", 0, "Checkpoints while measuring (default on)", 4},
    {"dirty", OPTION_DIRTY, "PERCENT", 0,
        "Rewrite that share of the keys after the load, so that it is still in the memtable", 4},
    {"read", OPTION_READ, 0, 0, "Same as --workload get", 4},
    {"scan", OPTION_SCAN, 0, 0, "Same as --workload scan", 4},
    {0, 0, 0, 0, "Output", 5},
    {"json", OPTION_JSON, "FILE", 0, "Everything as one JSON object ('-': standard output)", 5},
    {"plot", OPTION_PLOT, "FILE.svg", 0, "Latency and throughput as a picture", 5},
    {"emit", OPTION_EMIT, "FILE", 0,
        "Write the load as RESP commands into FILE ('-': standard output) and stop", 5},
    {"no-progress", OPTION_NO_PROGRESS, 0, 0, "No progress line", 5},
    {0, 0, 0, 0, 0, 0},
};

/* What is known only when all flags are read. */
struct parsing {
    struct bench_options *options;
    int distribution; /* -1: as the workload says */
    uint32_t ratio_set;
    uint32_t ratio_get;
    bool threads_given;
};

bool options_number(const char *text, uint64_t *number_out)
{
    static const struct {
        const char *unit;
        uint64_t factor;
    } units[] = {
        {"", 1},
        {"k", 1000},
        {"M", 1000000},
        {"G", 1000000000},
        {"KiB", 1u << 10},
        {"MiB", 1u << 20},
        {"GiB", 1u << 30},
        {"KB", 1000},
        {"MB", 1000000},
        {"GB", 1000000000},
    };
    char *end;
    if (text[0] < '0' || text[0] > '9') return false;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    if (errno != 0) return false;
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (strcasecmp(end, units[i].unit) != 0) continue;
        return !__builtin_mul_overflow((uint64_t)number, units[i].factor, number_out);
    }
    return false;
}

static uint64_t number_in(
    struct argp_state *state, const char *name, const char *text, uint64_t least, uint64_t most)
{
    uint64_t number = 0;
    if (!options_number(text, &number) || number < least || number > most) {
        argp_error(state, "--%s wants a number from %llu to %llu, not '%s'", name,
            (unsigned long long)least, (unsigned long long)most, text);
    }
    return number;
}

static double real_in(
    struct argp_state *state, const char *name, const char *text, double above, double most)
{
    char *end;
    double number = strtod(text, &end);
    if (end == text || *end != 0 || !(number > above) || number > most) {
        argp_error(state, "--%s wants a number above %g and at most %g, not '%s'", name, above,
            most, text);
    }
    return number;
}

static void parse_workload(
    struct argp_state *state, struct bench_options *options, const char *text)
{
    static const struct {
        const char *name;
        enum workload_kind kind;
    } names[] = {
        {"set", WORKLOAD_SET},
        {"get", WORKLOAD_GET},
        {"mixed", WORKLOAD_MIXED},
        {"a", WORKLOAD_A},
        {"b", WORKLOAD_B},
        {"c", WORKLOAD_C},
        {"d", WORKLOAD_D},
        {"e", WORKLOAD_E},
        {"f", WORKLOAD_F},
        {"scan", WORKLOAD_SCAN},
        {"apply", WORKLOAD_APPLY},
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcasecmp(text, names[i].name) == 0) {
            options->workload = names[i].kind;
            options->workload_name = names[i].name;
            return;
        }
    }
    argp_error(state, "--workload wants set, get, mixed, a to f, scan or apply, not '%s'", text);
}

static int parse_distribution(struct argp_state *state, const char *text)
{
    if (strcmp(text, "uniform") == 0) return DISTRIBUTION_UNIFORM;
    if (strcmp(text, "zipfian") == 0) return DISTRIBUTION_ZIPFIAN;
    if (strcmp(text, "latest") == 0) return DISTRIBUTION_LATEST;
    argp_error(state, "--distribution wants uniform, zipfian or latest, not '%s'", text);
    return -1;
}

static void parse_ratio(struct argp_state *state, struct parsing *parsing, const char *text)
{
    unsigned set;
    unsigned get;
    char rest;
    if (sscanf(text, "%u:%u%c", &set, &get, &rest) != 2 || set + get == 0 || set > 1000000 ||
        get > 1000000) {
        argp_error(state, "--ratio wants SET:GET, as in 1:10, not '%s'", text);
    }
    parsing->ratio_set = set;
    parsing->ratio_get = get;
}

static void parse_log_io(struct argp_state *state, struct bench_options *options, const char *text)
{
    for (int mode = LOG_IO_AUTO; mode <= LOG_IO_POSIX; mode++) {
        if (strcmp(text, log_io_name((enum log_io)mode)) == 0) {
            options->log_io = (enum log_io)mode;
            return;
        }
    }
    argp_error(state, "--log-io wants auto, dsync, ring-dsync, ring-link or posix, not '%s'", text);
}

static void parse_nodes(struct argp_state *state, struct bench_options *options, char *text)
{
    for (char *node; (node = strsep(&text, ",")) != NULL;) {
        if (node[0] == 0) {
            argp_error(state, "--node wants HOST:PORT, several separated by commas");
        }
        if (options->node_count == NODES_MAX) {
            argp_error(state, "--node takes at most %d addresses", NODES_MAX);
        }
        options->nodes[options->node_count++] = node;
    }
}

static void parse_switch(struct argp_state *state, const char *name, const char *text, bool *on_out)
{
    if (strcmp(text, "on") != 0 && strcmp(text, "off") != 0) {
        argp_error(state, "--%s wants on or off, not '%s'", name, text);
    }
    *on_out = strcmp(text, "on") == 0;
}

static void set_parts(struct parsing *parsing)
{
    struct bench_options *options = parsing->options;
    uint32_t *parts = options->mix.parts;
    enum distribution distribution = DISTRIBUTION_UNIFORM;
    switch (options->workload) {
    case WORKLOAD_SET:
    case WORKLOAD_APPLY:
        parts[OPERATION_SET] = 1;
        break;
    case WORKLOAD_GET:
        parts[OPERATION_GET] = 1;
        break;
    case WORKLOAD_MIXED:
        parts[OPERATION_SET] = parsing->ratio_set;
        parts[OPERATION_GET] = parsing->ratio_get;
        break;
    case WORKLOAD_A:
        parts[OPERATION_GET] = 1;
        parts[OPERATION_SET] = 1;
        distribution = DISTRIBUTION_ZIPFIAN;
        break;
    case WORKLOAD_B:
        parts[OPERATION_GET] = 19;
        parts[OPERATION_SET] = 1;
        distribution = DISTRIBUTION_ZIPFIAN;
        break;
    case WORKLOAD_C:
        parts[OPERATION_GET] = 1;
        distribution = DISTRIBUTION_ZIPFIAN;
        break;
    case WORKLOAD_D:
        parts[OPERATION_GET] = 19;
        parts[OPERATION_INSERT] = 1;
        distribution = DISTRIBUTION_LATEST;
        break;
    case WORKLOAD_E:
        parts[OPERATION_SCAN] = 19;
        parts[OPERATION_INSERT] = 1;
        distribution = DISTRIBUTION_ZIPFIAN;
        break;
    case WORKLOAD_F:
        parts[OPERATION_GET] = 1;
        parts[OPERATION_RMW] = 1;
        distribution = DISTRIBUTION_ZIPFIAN;
        break;
    case WORKLOAD_SCAN:
        parts[OPERATION_SCAN] = 1;
        break;
    case WORKLOAD_LOAD:
        parts[OPERATION_INSERT] = 1;
        break;
    }
    options->mix.distribution =
        parsing->distribution < 0 ? distribution : (enum distribution)parsing->distribution;
}

static void finish(struct argp_state *state, struct parsing *parsing)
{
    static char default_node[] = "127.0.0.1:7379";
    struct bench_options *options = parsing->options;
    set_parts(parsing);
    if (options->node_count == 0) {
        options->nodes[options->node_count++] = default_node;
    }
    if (options->engines == NULL) {
        if (options->workload == WORKLOAD_SCAN || options->workload == WORKLOAD_APPLY) {
            argp_error(
                state, "workload %s measures an engine; add --engine", options->workload_name);
        }
        if (options->in_flight > 0) {
            argp_error(state, "--in-flight is for engines; over RESP use --clients and --pipeline");
        }
    } else if (options->rate > 0) {
        argp_error(state, "--rate is for RESP; engines run in a closed loop");
    }
    if (options->mix.distribution == DISTRIBUTION_LATEST && options->keys < 2) {
        argp_error(state, "--distribution latest needs --keys of at least 2");
    }
    if ((uint64_t)options->pipeline * options->value_size > (256u << 20)) {
        argp_error(state, "--pipeline times --value-size is above 256 MiB; lower one of them");
    }
}

static error_t parse_option(int key, char *text, struct argp_state *state)
{
    struct parsing *parsing = state->input;
    struct bench_options *options = parsing->options;
    switch (key) {
    case OPTION_NODE:
        parse_nodes(state, options, text);
        break;
    case OPTION_ENGINE:
        options->engines = text;
        break;
    case OPTION_WORKLOAD:
        parse_workload(state, options, text);
        break;
    case OPTION_READ:
        parse_workload(state, options, "get");
        break;
    case OPTION_SCAN:
        parse_workload(state, options, "scan");
        break;
    case OPTION_CLIENTS:
        options->clients = (uint32_t)number_in(state, "clients", text, 1, 100000);
        break;
    case OPTION_PIPELINE:
        options->pipeline = (uint32_t)number_in(state, "pipeline", text, 1, 100000);
        break;
    case OPTION_RATE:
        options->rate = (double)number_in(state, "rate", text, 1, 1000000000);
        break;
    case OPTION_SECONDS:
        options->seconds = real_in(state, "seconds", text, 0, 1e6);
        break;
    case OPTION_WARMUP:
        options->warmup = real_in(state, "warmup", text, -1e-9, 1e6);
        break;
    case OPTION_REQUESTS:
        options->requests = number_in(state, "requests", text, 1, UINT64_MAX / 2);
        break;
    case OPTION_VALUE_SIZE:
        options->value_size = (uint32_t)number_in(state, "value-size", text, 0, VALUE_SIZE_MAX);
        break;
    case OPTION_RANDOM_VALUES:
        options->random_values = true;
        break;
    case OPTION_KEYS:
        options->keys = number_in(state, "keys", text, 1, 100000000000);
        break;
    case OPTION_DISTRIBUTION:
        parsing->distribution = parse_distribution(state, text);
        break;
    case OPTION_THETA:
        options->mix.theta = real_in(state, "theta", text, 0, 0.9999);
        break;
    case OPTION_RATIO:
        parse_ratio(state, parsing, text);
        break;
    case OPTION_LOAD:
        options->load = true;
        break;
    case OPTION_LOAD_ONLY:
        options->load = true;
        options->load_only = true;
        break;
    case OPTION_SEED:
        options->mix.seed = number_in(state, "seed", text, 0, UINT64_MAX);
        break;
    case OPTION_THREADS:
        options->threads = (uint32_t)number_in(state, "threads", text, 1, 4096);
        break;
    case OPTION_IN_FLIGHT:
        options->in_flight = (uint32_t)number_in(state, "in-flight", text, 1, 1u << 20);
        break;
    case OPTION_ROUNDS:
        options->rounds = (uint32_t)number_in(state, "rounds", text, 1, ROUNDS_MAX);
        break;
    case OPTION_BUSY:
        options->busy = (uint32_t)number_in(state, "busy", text, 0, 1024);
        break;
    case OPTION_DIR:
        options->dir = text;
        break;
    case OPTION_MEMORY:
        options->memory = number_in(state, "memory", text, 1u << 20, 1ull << 44);
        break;
    case OPTION_LOG_BYTES:
        options->log_bytes = number_in(state, "log-bytes", text, 1u << 20, 1ull << 44);
        break;
    case OPTION_RANGES:
        options->ranges = (uint32_t)number_in(state, "ranges", text, 1, 16384);
        break;
    case OPTION_LOG_IO:
        parse_log_io(state, options, text);
        break;
    case OPTION_CHECKPOINT:
        parse_switch(state, "checkpoint", text, &options->checkpoint);
        break;
    case OPTION_DIRTY:
        options->dirty = (uint32_t)number_in(state, "dirty", text, 0, 100);
        break;
    case OPTION_PASSWORD:
        options->password = text;
        break;
    case OPTION_RESP3:
        options->resp3 = true;
        break;
    case OPTION_WAIT:
        options->wait = (uint32_t)number_in(state, "wait", text, 1, 9);
        break;
    case OPTION_JSON:
        options->json = text;
        break;
    case OPTION_PLOT:
        options->plot = text;
        break;
    case OPTION_EMIT:
        options->emit = text;
        break;
    case OPTION_NO_PROGRESS:
        options->progress = false;
        break;
    case ARGP_KEY_ARG:
        argp_error(state, "'%s' is not an option; options start with --", text);
        break;
    case ARGP_KEY_END:
        finish(state, parsing);
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

bool options_parse(int argc, char **argv, struct bench_options *options_out, int *exit_out)
{
    static const struct argp parser = {
        .options = option_list,
        .parser = parse_option,
        .doc =
            "Puts load on any RESP server, or on a storage engine in this process, and reports "
            "throughput and latency.\v"
            "Examples:\n"
            "  duramen bench --load --clients 50 --workload get\n"
            "  duramen bench --node 127.0.0.1:6379 --workload a --rate 50000 --plot a.svg\n"
            "  duramen bench --node 127.0.0.1:7379,127.0.0.1:7389,127.0.0.1:7399 --workload mixed\n"
            "  duramen bench --engine duramen,lmdb,rocksdb --in-flight 64 --rounds 3\n"
            "  duramen bench --engine disk,log --in-flight 64\n"
            "What is measured, and how: docs/BENCH.md.",
    };
    static char program[] = "duramen bench";
    struct parsing parsing = {
        .options = options_out, .distribution = -1, .ratio_set = 1, .ratio_get = 10};
    *options_out = (struct bench_options){
        .workload = WORKLOAD_SET,
        .workload_name = "set",
        .mix = {.theta = 0.99, .scan_max = 100, .seed = 1},
        .clients = 50,
        .pipeline = 1,
        .seconds = 10,
        .value_size = 100,
        .keys = 1000000,
        .threads = 1,
        .rounds = 1,
        .checkpoint = true,
        .progress = true,
        .password = secure_getenv("DURAMEN_PASSWORD"),
    };
    argv[0] = program;
    argp_err_exit_status = 2;
    error_t failed = argp_parse(&parser, argc, argv, 0, NULL, &parsing);
    *exit_out = 2;
    return failed == 0;
}

void options_describe(const struct bench_options *options, char *at, size_t size)
{
    static const char *const distributions[] = {"uniform", "zipfian", "latest"};
    char keys[32];
    char value[32];
    char load[160];
    report_count(options->keys, keys, sizeof keys);
    report_bytes(options->value_size, value, sizeof value);
    if (options->engines != NULL && options->in_flight > 0) {
        snprintf(load, sizeof load, "%u in flight", options->in_flight);
    } else if (options->engines != NULL) {
        snprintf(
            load, sizeof load, "%u thread%s", options->threads, options->threads == 1 ? "" : "s");
    } else if (options->rate > 0) {
        char rate[32];
        report_count((uint64_t)options->rate, rate, sizeof rate);
        snprintf(load, sizeof load, "open loop %s/s over %u connections, window %u", rate,
            options->clients, options->pipeline);
    } else {
        snprintf(
            load, sizeof load, "closed loop %u clients x %u", options->clients, options->pipeline);
    }
    if (options->engines == NULL && options->node_count > 1) {
        size_t used = strlen(load);
        snprintf(load + used, sizeof load - used, " over %u nodes", options->node_count);
    }
    snprintf(at, size, "%s, %s, %s keys %s, values %s%s, seed %llu%s", options->workload_name, load,
        keys, distributions[options->mix.distribution], value,
        options->random_values ? " random" : "", (unsigned long long)options->mix.seed,
        options->busy > 0 ? ", busy cores" : "");
    if (options->wait > 0) {
        size_t used = strlen(at);
        snprintf(at + used, size - used, ", WAIT %u after each SET", options->wait);
    }
}
