/* What INFO, /metrics and /status are made of. All three are written by hand into a buffer: the formats
 * are trivial, and a name stands beside the number it reports.
 *
 * INFO keeps the fields that Redis's clients and tools read (redis_version, loading, role, db0:keys=...)
 * and adds two sections of our own. Prometheus gets base units and the suffixes its linter wants; a
 * histogram is cut down from HdrHistogram's 7,000 slots to a dozen fixed bounds. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "server/command.h"
#include "server/http_parse.h"
#include "server/server.h"

#define REDIS_VERSION "7.0.15"
#define SECOND UINT64_C(1000000000)

enum { FAMILIES_MAX = 16 };

/* What the kernel and the engine say, gathered once a report. */
struct sample {
    struct engine_stats engine;
    struct http_stats http;
    uint64_t rss;
    uint64_t disk_free, disk_total;
    uint64_t cpu_user_us, cpu_system_us;
    uint64_t uptime_s;
    uint64_t used_memory;
};

/* Commands of one group ("string", "generic", ...) together. */
struct family {
    const char *name;
    uint64_t calls, failed, rejected;
    struct histogram *latency_ns;
};

static uint64_t now_ns(const struct server *server)
{
    return server->io.clock.monotonic_ns(server->io.clock.ctx);
}

static uint64_t resident_bytes(void)
{
    char text[128];
    unsigned long long size = 0;
    unsigned long long resident = 0;
    int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    if (got <= 0) return 0;
    text[got] = 0;
    if (sscanf(text, "%llu %llu", &size, &resident) != 2) return 0;
    return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t micros(struct timeval time)
{
    return (uint64_t)time.tv_sec * 1000000 + (uint64_t)time.tv_usec;
}

static void take_sample(struct server *server, struct sample *sample)
{
    struct statvfs disk;
    struct rusage usage;
    *sample = (struct sample){0};
    engine_stats(node_engine(server->node), &sample->engine);
    http_stats(server, &sample->http);
    sample->rss = resident_bytes();
    if (statvfs(server->config.data, &disk) == 0) {
        sample->disk_free = (uint64_t)disk.f_bavail * disk.f_frsize;
        sample->disk_total = (uint64_t)disk.f_blocks * disk.f_frsize;
    }
    if (getrusage(RUSAGE_SELF, &usage) == 0) {
        sample->cpu_user_us = micros(usage.ru_utime);
        sample->cpu_system_us = micros(usage.ru_stime);
    }
    sample->uptime_s = (now_ns(server) - server->started_ns) / SECOND;
    sample->used_memory =
        sample->engine.memtable_bytes + sample->engine.sealed_bytes + server->client_bytes;
}

static void count_keys(struct server *server)
{
    struct report_cache *cache = &server->report;
    uint64_t now = now_ns(server);
    if (cache->counted_ns != 0 && now - cache->counted_ns < SECOND) return;
    cache->counted_ns = now;
    cache->buckets = node_bucket_count(server->node);
    if (cache->buckets > NODE_BUCKETS_MAX) cache->buckets = NODE_BUCKETS_MAX;
    for (uint32_t i = 0; i < cache->buckets; i++)
        cache->keys[i] = node_count(server->node, NODE_COMMITTED, 0, (uint16_t)i);
}

static uint64_t all_keys(struct server *server)
{
    uint64_t keys = 0;
    count_keys(server);
    for (uint32_t i = 0; i < server->report.buckets; i++)
        keys += server->report.keys[i];
    return keys;
}

/* Sums command statistics by group; returns how many groups. Free with families_free(). */
static uint32_t families_gather(const struct server *server, struct family *families)
{
    uint32_t commands;
    uint32_t count = 0;
    const struct command *table = command_table(&commands);
    for (uint32_t i = 0; server->command_stats != NULL && i < commands; i++) {
        const struct command_stats *stats = &server->command_stats[i];
        uint32_t at = 0;
        while (at < count && strcmp(families[at].name, table[i].group) != 0)
            at++;
        if (at == FAMILIES_MAX) continue;
        if (at == count) families[count++] = (struct family){.name = table[i].group};
        struct family *family = &families[at];
        family->calls += stats->calls;
        family->failed += stats->failed;
        family->rejected += stats->rejected;
        if (stats->latency_ns == NULL || stats->latency_ns->count == 0) continue;
        if (family->latency_ns == NULL) family->latency_ns = calloc(1, sizeof *family->latency_ns);
        if (family->latency_ns != NULL) histogram_merge(family->latency_ns, stats->latency_ns);
    }
    return count;
}

static void families_free(struct family *families, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        free(families[i].latency_ns);
}

const char *report_unready(struct server *server)
{
    struct engine_stats stats;
    if (server->hand_over_by_ns != 0) return "the server is stopping";
    engine_stats(node_engine(server->node), &stats);
    if (stats.wal.full)
        return "the log is full: writes are refused until there is room on the disk";
    if (stats.damaged > 0) return "stored values failed their checksum: see the log, and verify";
    if (!node_alone(server->node)) {
        for (uint32_t id = 0; id <= node_ranges(server->node); id++) {
            if (node_range_leader(server->node, (uint16_t)id) == 0)
                return "no leader is known of some range";
        }
    }
    return NULL;
}

static const char *state_name(enum node_state state)
{
    switch (state) {
    case NODE_STATE_ALIVE:
        return "alive";
    case NODE_STATE_SUSPECT:
        return "suspect";
    case NODE_STATE_DEAD:
        return "dead";
    case NODE_STATE_LEFT:
        return "left";
    }
    return "dead";
}

/* ---- Prometheus ---- */

/* `out` and the first error; later calls do nothing. */
struct writer {
    struct buffer *out;
    enum err err;
};

static void line(struct writer *writer, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static void line(struct writer *writer, const char *format, ...)
{
    va_list arguments;
    if (writer->err != OK) return;
    va_start(arguments, format);
    writer->err = buffer_vprintf(writer->out, format, arguments);
    va_end(arguments);
}

static void about(struct writer *writer, const char *name, const char *type, const char *help)
{
    line(writer, "# HELP duramen_%s %s\n# TYPE duramen_%s %s\n", name, help, name, type);
}

static void gauge(struct writer *writer, const char *name, const char *help, uint64_t value)
{
    about(writer, name, "gauge", help);
    line(writer, "duramen_%s %llu\n", name, (unsigned long long)value);
}

static void counter(struct writer *writer, const char *name, const char *help, uint64_t value)
{
    about(writer, name, "counter", help);
    line(writer, "duramen_%s %llu\n", name, (unsigned long long)value);
}

static void sample_of(struct writer *writer, const char *name, const char *label,
    const char *label_value, uint64_t value)
{
    line(writer, "duramen_%s{%s=\"%s\"} %llu\n", name, label, label_value,
        (unsigned long long)value);
}

/* label: `family="string"` or "". unit: 1e9 turns nanoseconds into seconds. */
static void buckets(struct writer *writer, const char *name, const char *label,
    const struct histogram *histogram, const double *bounds, size_t count, double unit)
{
    const char *comma = label[0] != 0 ? "," : "";
    bool empty = histogram == NULL;
    for (size_t i = 0; i < count; i++) {
        uint64_t below = empty ? 0 : histogram_count_below(histogram, (uint64_t)(bounds[i] * unit));
        line(writer, "duramen_%s_bucket{%s%sle=\"%g\"} %llu\n", name, label, comma, bounds[i],
            (unsigned long long)below);
    }
    uint64_t total = empty ? 0 : histogram->count;
    line(writer, "duramen_%s_bucket{%s%sle=\"+Inf\"} %llu\n", name, label, comma,
        (unsigned long long)total);
    const char *open = label[0] != 0 ? "{" : "";
    const char *close_ = label[0] != 0 ? "}" : "";
    line(writer, "duramen_%s_sum%s%s%s %.9g\n", name, open, label, close_,
        empty ? 0.0 : (double)histogram->sum / unit);
    line(writer, "duramen_%s_count%s%s%s %llu\n", name, open, label, close_,
        (unsigned long long)total);
}

static const double seconds_bounds[] = {1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3,
    1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1, 2.5};
static const double records_bounds[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096};
#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

static void metrics_process(
    struct writer *writer, struct server *server, const struct sample *sample)
{
    about(writer, "build_info", "gauge", "The program's version, always 1.");
    line(writer, "duramen_build_info{version=\"%s\"} 1\n", DURAMEN_VERSION);
    gauge(writer, "ready", "1 if /health/ready says yes.", report_unready(server) == NULL);
    about(writer, "start_time_seconds", "gauge", "When the process started, since 1970.");
    line(writer, "duramen_start_time_seconds %.3f\n", (double)server->started_wall_ms / 1000);
    gauge(writer, "uptime_seconds", "Since the process started.", sample->uptime_s);
    gauge(writer, "resident_memory_bytes", "Memory of the process as the kernel counts it.",
        sample->rss);
    about(writer, "cpu_seconds_total", "counter", "Processor time used.");
    line(writer, "duramen_cpu_seconds_total{mode=\"user\"} %.6f\n",
        (double)sample->cpu_user_us / 1e6);
    line(writer, "duramen_cpu_seconds_total{mode=\"system\"} %.6f\n",
        (double)sample->cpu_system_us / 1e6);
    gauge(writer, "disk_free_bytes", "Free on the file system of the data folder.",
        sample->disk_free);
    gauge(writer, "disk_size_bytes", "Size of the file system of the data folder.",
        sample->disk_total);
}

static void metrics_clients(
    struct writer *writer, struct server *server, const struct sample *sample)
{
    static const char *const classes[] = {"other", "1xx", "2xx", "3xx", "4xx", "5xx"};
    const struct server_counters *counters = &server->counters;
    const struct http_stats *http = &sample->http;
    about(writer, "connections", "gauge", "Open client connections.");
    sample_of(writer, "connections", "protocol", "resp", server->session_count);
    sample_of(writer, "connections", "protocol", "http", http->connections);
    about(writer, "connections_accepted_total", "counter", "Client connections taken.");
    sample_of(writer, "connections_accepted_total", "protocol", "resp", counters->connections);
    sample_of(writer, "connections_accepted_total", "protocol", "http", http->accepted);
    about(writer, "connections_rejected_total", "counter", "Client connections over a limit.");
    sample_of(
        writer, "connections_rejected_total", "protocol", "resp", counters->connections_rejected);
    sample_of(writer, "connections_rejected_total", "protocol", "http", http->rejected);
    gauge(writer, "client_buffers_bytes", "Memory in the buffers of all connections.",
        server->client_bytes);
    counter(writer, "received_bytes_total", "Bytes from clients.", counters->net_in);
    counter(writer, "sent_bytes_total", "Bytes to clients.", counters->net_out);
    counter(writer, "error_replies_total", "RESP error replies.", counters->errors);
    counter(writer, "protocol_errors_total", "Connections closed for malformed input.",
        counters->protocol_errors);
    counter(writer, "auth_failures_total", "Wrong or refused passwords.", counters->auth_failures);
    counter(writer, "slow_readers_total", "Connections dropped for not reading their replies.",
        counters->slow_readers);
    counter(writer, "throttled_total", "Times a client had to wait for room.", counters->throttled);
    counter(writer, "keyspace_hits_total", "Reads that found their key.", counters->keyspace_hits);
    counter(writer, "keyspace_misses_total", "Reads of absent keys.", counters->keyspace_misses);
    counter(writer, "http_requests_total", "HTTP requests begun.", counters->http_requests);
    about(writer, "http_answers_total", "counter", "HTTP answers by class of status.");
    for (size_t i = 1; i < COUNT_OF(classes); i++)
        sample_of(writer, "http_answers_total", "status", classes[i], http->answers[i]);
    counter(writer, "http_refused_total", "HTTP requests that were malformed.", http->refused);
    counter(writer, "http_timeouts_total", "HTTP connections ended for being too slow.",
        http->timed_out);
    gauge(writer, "http_backups", "Backups being streamed.", http->backups);
    about(writer, "http_request_seconds", "histogram", "Head of a request to end of its answer.");
    buckets(writer, "http_request_seconds", "", http->latency_ns, seconds_bounds,
        COUNT_OF(seconds_bounds), 1e9);
}

static void metrics_commands(struct writer *writer, struct server *server)
{
    struct family families[FAMILIES_MAX];
    char label[64];
    uint32_t count = families_gather(server, families);
    about(writer, "commands_total", "counter", "RESP commands run, by family.");
    for (uint32_t i = 0; i < count; i++)
        sample_of(writer, "commands_total", "family", families[i].name, families[i].calls);
    about(writer, "commands_failed_total", "counter", "RESP commands that answered an error.");
    for (uint32_t i = 0; i < count; i++)
        sample_of(writer, "commands_failed_total", "family", families[i].name, families[i].failed);
    about(writer, "commands_rejected_total", "counter", "RESP commands that were not run.");
    for (uint32_t i = 0; i < count; i++)
        sample_of(
            writer, "commands_rejected_total", "family", families[i].name, families[i].rejected);
    about(writer, "command_seconds", "histogram", "Evaluation of RESP commands, by family.");
    for (uint32_t i = 0; i < count; i++) {
        snprintf(label, sizeof label, "family=\"%s\"", families[i].name);
        buckets(writer, "command_seconds", label, families[i].latency_ns, seconds_bounds,
            COUNT_OF(seconds_bounds), 1e9);
    }
    families_free(families, count);
}

static void metrics_log(struct writer *writer, const struct sample *sample)
{
    const struct wal_stats *wal = &sample->engine.wal;
    gauge(writer, "log_last_lsn", "Newest record appended.", wal->last);
    gauge(writer, "log_durable_lsn", "Newest record on stable storage.", wal->durable);
    gauge(writer, "log_checkpoint_lsn", "Newest record in the bottom store.",
        sample->engine.checkpointed);
    gauge(writer, "log_bytes", "Size of all log slots on disk.", wal->bytes);
    gauge(writer, "log_spare_slots", "Slots filled ahead.", wal->slots_spare);
    gauge(writer, "log_full", "1 while writes are refused for want of log space.", wal->full);
    counter(writer, "log_batches_total", "Durable writes of the log.", wal->batches);
    counter(writer, "log_payload_bytes_total", "Bytes of records.", wal->payload_bytes);
    counter(writer, "log_written_bytes_total", "Bytes written, headers and padding included.",
        wal->written_bytes);
    counter(writer, "log_delayed_total", "Log writes delayed to let the checkpoint keep up.",
        sample->engine.throttled);
    about(writer, "log_sync_seconds", "histogram", "One durable write of the log.");
    buckets(writer, "log_sync_seconds", "", wal->sync_ns, seconds_bounds, COUNT_OF(seconds_bounds),
        1e9);
    about(writer, "log_batch_records", "histogram", "Records that shared one durable write.");
    buckets(writer, "log_batch_records", "", wal->batch_records, records_bounds,
        COUNT_OF(records_bounds), 1);
}

static void metrics_storage(
    struct writer *writer, struct server *server, const struct sample *sample)
{
    const struct engine_stats *engine = &sample->engine;
    about(writer, "memtable_bytes", "gauge", "Memory of what is not checkpointed yet.");
    sample_of(writer, "memtable_bytes", "state", "active", engine->memtable_bytes);
    sample_of(writer, "memtable_bytes", "state", "sealed", engine->sealed_bytes);
    about(writer, "memtable_entries", "gauge", "Keys not checkpointed yet, removed ones included.");
    sample_of(writer, "memtable_entries", "state", "active", engine->memtable_entries);
    sample_of(writer, "memtable_entries", "state", "sealed", engine->sealed_entries);
    gauge(writer, "memtable_limit_bytes", "Budget of the memtables.", engine->memory_limit);
    counter(writer, "checkpoints_total", "Checkpoints completed.", engine->checkpoints);
    counter(writer, "checkpoint_puts_total", "Entries written by checkpoints.",
        engine->checkpoint_puts);
    counter(writer, "checkpoint_failures_total", "Checkpoint transactions that failed.",
        engine->checkpoint_failures);
    gauge(writer, "checkpoint_running", "1 during a checkpoint.", engine->checkpoint_running);
    about(writer, "checkpoint_last_seconds", "gauge", "Work of the last whole checkpoint.");
    line(writer, "duramen_checkpoint_last_seconds %.6f\n", (double)engine->checkpoint_ns / 1e9);
    gauge(writer, "store_file_bytes", "Size of the LMDB file.", engine->kv.file_bytes);
    gauge(writer, "store_used_bytes", "LMDB pages in use.", engine->kv.used_bytes);
    gauge(writer, "store_map_bytes", "LMDB map size.", engine->kv.map_bytes);
    gauge(writer, "store_entries", "Entries in LMDB.", engine->kv.entries);
    gauge(writer, "store_readers", "LMDB reader slots in use.", engine->kv.readers);
    gauge(writer, "keys", "Keys of all buckets, expired ones not yet removed included.",
        all_keys(server));
    counter(writer, "expired_keys_total", "Keys removed because they had expired.",
        node_expired_count(server->node));
    counter(writer, "scrubbed_values_total", "Values checked in the background.", engine->scrubbed);
    counter(writer, "scrub_rounds_total", "Times every value was checked.", engine->scrub_rounds);
    counter(writer, "damaged_values_total", "Values that failed their checksum.", engine->damaged);
}

static void metrics_cluster(struct writer *writer, struct server *server)
{
    struct node_cluster_stats stats;
    struct node_member members[NODE_MEMBERS_MAX];
    uint32_t states[NODE_STATE_LEFT + 1] = {0};
    uint32_t count = node_members(server->node, members, NODE_MEMBERS_MAX);
    for (uint32_t i = 0; i < count && i < NODE_MEMBERS_MAX; i++)
        states[members[i].state]++;
    node_cluster_stats(server->node, &stats);
    about(writer, "members", "gauge", "Members of the cluster as this node sees them.");
    for (int state = NODE_STATE_ALIVE; state <= NODE_STATE_LEFT; state++)
        sample_of(writer, "members", "state", state_name((enum node_state)state), states[state]);
    gauge(writer, "ranges", "Data ranges of the cluster.", node_ranges(server->node));
    gauge(writer, "ranges_led", "Ranges this node leads, the meta range included.", stats.led);
    counter(writer, "elections_total", "Elections this node stood in.", stats.elections);
    counter(writer, "leader_changes_total", "Changes of a range's leader seen here.",
        stats.leader_changes);
    counter(writer, "config_changes_total", "Changes of a range's replicas begun here.",
        stats.config_changes);
    counter(writer, "forwarded_total", "Requests sent to other nodes.", stats.forwarded);
    counter(writer, "executed_total", "Requests of any node evaluated here by request.",
        stats.executed);
    counter(writer, "unknown_outcomes_total", "Requests whose outcome could not be told.",
        stats.unknown);
    counter(writer, "frames_sent_total", "Frames to other nodes.", stats.frames_sent);
    counter(writer, "frames_received_total", "Frames of other nodes.", stats.frames_received);
    counter(writer, "frames_dropped_total", "Frames that could not be sent.", stats.frames_dropped);
    counter(writer, "log_catch_ups_total", "Replicas brought up to date from the log.",
        stats.log_catch_ups);
    counter(writer, "snapshots_sent_total", "Snapshots sent.", stats.snapshots_sent);
    counter(writer, "snapshots_received_total", "Snapshots installed.", stats.snapshots_received);
    counter(writer, "snapshot_bytes_total", "Bytes of snapshots, both ways.", stats.snapshot_bytes);
    counter(writer, "divergences_total", "Replicas found to differ.", stats.divergences);
    counter(writer, "repairs_total", "Replicas fetched anew.", stats.repairs);
}

enum err report_metrics(struct server *server, struct buffer *out)
{
    struct writer writer = {.out = out};
    struct sample sample;
    take_sample(server, &sample);
    metrics_process(&writer, server, &sample);
    metrics_clients(&writer, server, &sample);
    metrics_commands(&writer, server);
    metrics_log(&writer, &sample);
    metrics_storage(&writer, server, &sample);
    metrics_cluster(&writer, server);
    return writer.err;
}

/* ---- /status ---- */

static void text(struct writer *writer, const char *name, const char *value)
{
    line(writer, "\"%s\":", name);
    if (writer->err == OK)
        writer->err = http_json_string(writer->out, bytes_of_text(value == NULL ? "" : value));
}

static void replica_of(
    struct writer *writer, struct server *server, const struct node_replica *replica)
{
    const char *name = node_member_name(server->node, replica->number);
    char number[16];
    snprintf(number, sizeof number, "#%u", replica->number);
    line(writer, "{");
    text(writer, "name", name == NULL ? number : name);
    line(writer, ",\"role\":\"%s\",\"match\":%llu,\"local\":%s,\"faulty\":%s}",
        replica->voter ? "voter" : "learner", (unsigned long long)replica->match,
        replica->local ? "true" : "false", replica->faulty ? "true" : "false");
}

static void range_of(struct writer *writer, struct server *server, uint32_t id)
{
    struct node_range range;
    node_range_status(server->node, (uint16_t)id, &range);
    uint16_t number = node_range_leader(server->node, (uint16_t)id);
    const char *leader = number == 0 ? NULL : node_member_name(server->node, number);
    line(writer, "{\"id\":%u,", id);
    if (leader == NULL) {
        line(writer, "\"leader\":null");
    } else {
        text(writer, "leader", leader);
    }
    line(writer, ",\"term\":%llu,\"replicas\":[", (unsigned long long)range.term);
    for (uint32_t i = 0; i < range.replica_count; i++) {
        if (i > 0) line(writer, ",");
        replica_of(writer, server, &range.replicas[i]);
    }
    line(writer, "],\"applied\":%llu,\"committed\":%llu,\"catching_up\":%.3f}",
        (unsigned long long)range.applied, (unsigned long long)range.committed, range.catching_up);
}

static void status_members(struct writer *writer, struct server *server)
{
    struct node_member members[NODE_MEMBERS_MAX];
    uint32_t count = node_members(server->node, members, NODE_MEMBERS_MAX);
    if (count > NODE_MEMBERS_MAX) count = NODE_MEMBERS_MAX;
    for (uint32_t i = 0; i < count; i++) {
        const struct node_member *member = &members[i];
        line(writer, i == 0 ? "{" : ",{");
        text(writer, "name", member->name);
        line(writer, ",");
        text(writer, "peer", member->peer);
        line(writer, ",");
        text(writer, "resp", member->resp);
        line(writer, ",");
        text(writer, "http", member->http);
        line(writer, ",");
        text(writer, "zone", member->zone);
        line(writer, ",");
        text(writer, "state", state_name(member->state));
        line(writer, "}");
    }
}

static void status_replication(struct writer *writer, struct server *server)
{
    struct node_cluster_stats stats;
    node_cluster_stats(server->node, &stats);
    line(writer,
        ",\"replication\":{\"led\":%u,\"elections\":%llu,\"leader_changes\":%llu,\"forwarded\":%"
        "llu,"
        "\"executed\":%llu,\"unknown\":%llu,\"snapshots_sent\":%llu,\"snapshots_received\":%llu,"
        "\"snapshot_bytes\":%llu,\"log_catch_ups\":%llu,\"divergences\":%llu,\"repairs\":%llu}",
        stats.led, (unsigned long long)stats.elections, (unsigned long long)stats.leader_changes,
        (unsigned long long)stats.forwarded, (unsigned long long)stats.executed,
        (unsigned long long)stats.unknown, (unsigned long long)stats.snapshots_sent,
        (unsigned long long)stats.snapshots_received, (unsigned long long)stats.snapshot_bytes,
        (unsigned long long)stats.log_catch_ups, (unsigned long long)stats.divergences,
        (unsigned long long)stats.repairs);
}

static void status_storage(
    struct writer *writer, struct server *server, const struct sample *sample)
{
    const struct engine_stats *engine = &sample->engine;
    line(writer,
        ",\"wal\":{\"last\":%llu,\"durable\":%llu,\"checkpoint\":%llu,\"bytes\":%llu,"
        "\"spare_slots\":%u,\"full\":%s}",
        (unsigned long long)engine->wal.last, (unsigned long long)engine->wal.durable,
        (unsigned long long)engine->checkpointed, (unsigned long long)engine->wal.bytes,
        engine->wal.slots_spare, engine->wal.full ? "true" : "false");
    line(writer,
        ",\"memory\":{\"rss\":%llu,\"memtable\":%llu,\"sealed\":%llu,\"limit\":%llu,"
        "\"clients\":%llu}",
        (unsigned long long)sample->rss, (unsigned long long)engine->memtable_bytes,
        (unsigned long long)engine->sealed_bytes, (unsigned long long)engine->memory_limit,
        (unsigned long long)server->client_bytes);
    line(writer,
        ",\"checkpoint\":{\"running\":%s,\"completed\":%llu,\"failures\":%llu,\"puts\":%llu,"
        "\"last_seconds\":%.6f,\"lag\":%llu}",
        engine->checkpoint_running ? "true" : "false", (unsigned long long)engine->checkpoints,
        (unsigned long long)engine->checkpoint_failures,
        (unsigned long long)engine->checkpoint_puts, (double)engine->checkpoint_ns / 1e9,
        (unsigned long long)(engine->applied - engine->checkpointed));
    line(writer,
        ",\"store\":{\"file_bytes\":%llu,\"used_bytes\":%llu,\"map_bytes\":%llu,\"entries\":%llu}",
        (unsigned long long)engine->kv.file_bytes, (unsigned long long)engine->kv.used_bytes,
        (unsigned long long)engine->kv.map_bytes, (unsigned long long)engine->kv.entries);
    line(writer, ",\"disk\":{\"free\":%llu,\"total\":%llu}", (unsigned long long)sample->disk_free,
        (unsigned long long)sample->disk_total);
    const char *why = report_unready(server);
    line(writer, ",\"health\":{\"live\":true,\"ready\":%s,\"reason\":", why ? "false" : "true");
    if (writer->err == OK && why != NULL)
        writer->err = http_json_string(writer->out, bytes_of_text(why));
    if (why == NULL) line(writer, "null");
    line(writer, ",\"damaged\":%llu,\"scrub_rounds\":%llu}", (unsigned long long)engine->damaged,
        (unsigned long long)engine->scrub_rounds);
}

static void status_buckets(struct writer *writer, struct server *server)
{
    bool first = true;
    count_keys(server);
    line(writer, ",\"keys\":%llu,\"buckets\":[", (unsigned long long)all_keys(server));
    for (uint32_t i = 0; i < server->report.buckets; i++) {
        const char *name = node_bucket_name(server->node, (uint16_t)i);
        if (name == NULL || (server->report.keys[i] == 0 && i < NODE_BUCKETS_NUMBERED)) continue;
        line(writer, first ? "{" : ",{");
        first = false;
        text(writer, "name", name);
        line(writer, ",\"keys\":%llu}", (unsigned long long)server->report.keys[i]);
    }
    line(writer, "]");
}

enum err report_status(struct server *server, struct buffer *out)
{
    struct writer writer = {.out = out};
    struct sample sample;
    take_sample(server, &sample);
    line(&writer, "{");
    text(&writer, "node", node_name(server->node));
    line(&writer, ",");
    text(&writer, "cluster_id", node_cluster_id(server->node));
    line(&writer, ",");
    text(&writer, "version", DURAMEN_VERSION);
    line(&writer, ",\"members\":[");
    status_members(&writer, server);
    line(&writer, "],\"ranges\":[");
    for (uint32_t id = 1; id <= node_ranges(server->node); id++) {
        if (id > 1) line(&writer, ",");
        range_of(&writer, server, id);
    }
    line(&writer, "],\"meta\":");
    range_of(&writer, server, 0);
    line(&writer, ",");
    text(&writer, "io", loop_name(server->loop));
    line(&writer, ",");
    text(&writer, "log_io", server->io.disk.name);
    line(&writer, ",\"uptime_seconds\":%llu", (unsigned long long)sample.uptime_s);
    line(&writer, ",\"connections\":{\"resp\":%u,\"http\":%u}", server->session_count,
        sample.http.connections);
    status_replication(&writer, server);
    status_storage(&writer, server, &sample);
    status_buckets(&writer, server);
    line(&writer, "}\n");
    return writer.err;
}

/* ---- INFO ---- */

#define FIELD(name, format, ...) line(writer, name ":" format "\r\n", __VA_ARGS__)
#define U(value) ((unsigned long long)(value))

static void human(char *target, size_t size, uint64_t bytes)
{
    static const char units[] = "BKMGT";
    double value = (double)bytes;
    size_t unit = 0;
    for (; value >= 1024 && unit < 4; unit++)
        value /= 1024;
    snprintf(target, size, unit == 0 ? "%.0f%c" : "%.2f%c", value, units[unit]);
}

static int port_of(const char *address)
{
    const char *colon = strrchr(address, ':');
    uint64_t port;
    return colon != NULL && http_decimal(bytes_of_text(colon + 1), 65535, &port) ? (int)port : 0;
}

static void info_server(struct writer *writer, struct server *server, const struct sample *sample)
{
    struct utsname system;
    char run_id[49];
    if (uname(&system) != 0) system = (struct utsname){.sysname = "Linux"};
    snprintf(run_id, sizeof run_id, "%016llx%016llx%016llx", U(server->run_id[0]),
        U(server->run_id[1]), U(server->run_id[2]));
    run_id[40] = 0;
    FIELD("redis_version", "%s", REDIS_VERSION);
    FIELD("duramen_version", "%s", DURAMEN_VERSION);
    FIELD("redis_mode", "%s", "standalone");
    FIELD("os", "%s %s %s", system.sysname, system.release, system.machine);
    FIELD("arch_bits", "%zu", sizeof(void *) * 8);
    FIELD("multiplexing_api", "%s", loop_name(server->loop));
    FIELD("process_id", "%ld", (long)getpid());
    FIELD("run_id", "%s", run_id);
    FIELD("tcp_port", "%d", port_of(server->resp_text));
    FIELD("http_address", "%s", server->http_text);
    FIELD("node_name", "%s", node_name(server->node));
    FIELD("cluster_id", "%s", node_cluster_id(server->node));
    FIELD("server_time_usec", "%llu", U(server->io.clock.wall_ms(server->io.clock.ctx)) * 1000);
    FIELD("uptime_in_seconds", "%llu", U(sample->uptime_s));
    FIELD("uptime_in_days", "%llu", U(sample->uptime_s / 86400));
    FIELD("io", "%s", loop_name(server->loop));
}

static void info_clients(struct writer *writer, struct server *server, const struct sample *sample)
{
    FIELD("connected_clients", "%u", server->session_count);
    FIELD("cluster_connections", "%d", 0);
    FIELD("maxclients", "%u", server->config.connections_max);
    FIELD("client_memory", "%llu", U(server->client_bytes));
    FIELD("blocked_clients", "%d", 0);
    FIELD("http_connections", "%u", sample->http.connections);
}

static void info_memory(struct writer *writer, struct server *server, const struct sample *sample)
{
    char text_[32];
    human(text_, sizeof text_, sample->used_memory);
    FIELD("used_memory", "%llu", U(sample->used_memory));
    FIELD("used_memory_human", "%s", text_);
    human(text_, sizeof text_, sample->rss);
    FIELD("used_memory_rss", "%llu", U(sample->rss));
    FIELD("used_memory_rss_human", "%s", text_);
    FIELD("used_memory_dataset", "%llu",
        U(sample->engine.memtable_bytes + sample->engine.sealed_bytes));
    FIELD("maxmemory", "%llu", U(server->config.memory));
    human(text_, sizeof text_, server->config.memory);
    FIELD("maxmemory_human", "%s", text_);
    FIELD("maxmemory_policy", "%s", "noeviction");
    FIELD("mem_clients_normal", "%llu", U(server->client_bytes));
    FIELD("mem_allocator", "%s", "libc");
}

static void info_persistence(
    struct writer *writer, struct server *server, const struct sample *sample)
{
    const struct engine_stats *engine = &sample->engine;
    (void)server;
    FIELD("loading", "%d", 0);
    FIELD("async_loading", "%d", 0);
    FIELD("rdb_changes_since_last_save", "%llu", U(engine->applied - engine->checkpointed));
    FIELD("rdb_bgsave_in_progress", "%d", engine->checkpoint_running);
    FIELD("rdb_last_bgsave_status", "%s", engine->checkpoint_failures == 0 ? "ok" : "err");
    FIELD("aof_enabled", "%d", 1);
    FIELD("aof_rewrite_in_progress", "%d", engine->checkpoint_running);
    FIELD("aof_last_bgrewrite_status", "%s", engine->checkpoint_failures == 0 ? "ok" : "err");
    FIELD("aof_last_write_status", "%s", engine->wal.full ? "err" : "ok");
    FIELD("aof_current_size", "%llu", U(engine->wal.bytes));
}

static void info_stats(struct writer *writer, struct server *server, const struct sample *sample)
{
    const struct server_counters *counters = &server->counters;
    FIELD("total_connections_received", "%llu", U(counters->connections));
    FIELD("total_commands_processed", "%llu", U(counters->commands));
    FIELD("total_net_input_bytes", "%llu", U(counters->net_in));
    FIELD("total_net_output_bytes", "%llu", U(counters->net_out));
    FIELD("rejected_connections", "%llu", U(counters->connections_rejected));
    FIELD("expired_keys", "%llu", U(node_expired_count(server->node)));
    FIELD("evicted_keys", "%d", 0);
    FIELD("keyspace_hits", "%llu", U(counters->keyspace_hits));
    FIELD("keyspace_misses", "%llu", U(counters->keyspace_misses));
    FIELD("total_error_replies", "%llu", U(counters->errors));
    FIELD("protocol_errors", "%llu", U(counters->protocol_errors));
    FIELD("auth_failures", "%llu", U(counters->auth_failures));
    FIELD("slow_readers_dropped", "%llu", U(counters->slow_readers));
    FIELD("throttled", "%llu", U(counters->throttled));
    FIELD("http_requests", "%llu", U(counters->http_requests));
    FIELD("http_refused", "%llu", U(sample->http.refused));
}

static void info_replication(
    struct writer *writer, struct server *server, const struct sample *sample)
{
    FIELD("role", "%s", "master");
    struct node_cluster_stats stats;
    struct node_member members[NODE_MEMBERS_MAX];
    uint32_t count = node_members(server->node, members, NODE_MEMBERS_MAX);
    uint32_t listed = count < NODE_MEMBERS_MAX ? count : NODE_MEMBERS_MAX, alive = 0;
    for (uint32_t i = 0; i < listed; i++)
        alive += members[i].state == NODE_STATE_ALIVE;
    node_cluster_stats(server->node, &stats);
    FIELD("connected_slaves", "%u", alive > 0 ? alive - 1 : 0);
    FIELD("cluster_members", "%u", count);
    FIELD("ranges_led", "%u", stats.led);
    for (uint32_t i = 0; i < listed; i++)
        line(writer, "member%u:name=%s,peer=%s,resp=%s,state=%s\r\n", i, members[i].name,
            members[i].peer, members[i].resp, state_name(members[i].state));
    FIELD("master_failover_state", "%s", "no-failover");
    FIELD("master_replid", "%s00000000", node_cluster_id(server->node));
    FIELD("master_replid2", "%040d", 0);
    FIELD("master_repl_offset", "%llu", U(sample->engine.wal.durable));
    FIELD("second_repl_offset", "%d", -1);
    FIELD("repl_backlog_active", "%d", 0);
    FIELD("elections", "%llu", U(stats.elections));
    FIELD("leader_changes", "%llu", U(stats.leader_changes));
    FIELD("forwarded", "%llu", U(stats.forwarded));
    FIELD("executed", "%llu", U(stats.executed));
    FIELD("unknown_outcomes", "%llu", U(stats.unknown));
}

static void info_cpu(struct writer *writer, struct server *server, const struct sample *sample)
{
    (void)server;
    FIELD("used_cpu_sys", "%.6f", (double)sample->cpu_system_us / 1e6);
    FIELD("used_cpu_user", "%.6f", (double)sample->cpu_user_us / 1e6);
}

static void info_commandstats(
    struct writer *writer, struct server *server, const struct sample *sample)
{
    uint32_t count;
    const struct command *table = command_table(&count);
    (void)sample;
    for (uint32_t i = 0; server->command_stats != NULL && i < count; i++) {
        const struct command_stats *stats = &server->command_stats[i];
        if (stats->calls == 0 && stats->rejected == 0) continue;
        double usec = (double)stats->ns / 1e3;
        line(writer,
            "cmdstat_%s:calls=%llu,usec=%.0f,usec_per_call=%.2f,rejected_calls=%llu,"
            "failed_calls=%llu\r\n",
            table[i].name, U(stats->calls), usec, stats->calls ? usec / (double)stats->calls : 0,
            U(stats->rejected), U(stats->failed));
    }
}

static void info_latencystats(
    struct writer *writer, struct server *server, const struct sample *sample)
{
    uint32_t count;
    const struct command *table = command_table(&count);
    (void)sample;
    for (uint32_t i = 0; server->command_stats != NULL && i < count; i++) {
        const struct histogram *latency = server->command_stats[i].latency_ns;
        if (latency == NULL || latency->count == 0) continue;
        line(writer, "latency_percentiles_usec_%s:p50=%.3f,p99=%.3f,p99.9=%.3f\r\n", table[i].name,
            (double)histogram_quantile(latency, 0.5) / 1e3,
            (double)histogram_quantile(latency, 0.99) / 1e3,
            (double)histogram_quantile(latency, 0.999) / 1e3);
    }
}

static void info_cluster(struct writer *writer, struct server *server, const struct sample *sample)
{
    (void)server;
    (void)sample;
    FIELD("cluster_enabled", "%d", 0);
}

static void info_keyspace(struct writer *writer, struct server *server, const struct sample *sample)
{
    count_keys(server);
    uint64_t expires = sample->engine.expires;
    for (uint32_t i = 0; i < server->report.buckets && i < NODE_BUCKETS_NUMBERED; i++) {
        uint64_t keys = server->report.keys[i];
        if (keys == 0) continue;
        /* how many of them expire is known for the store as a whole only */
        uint64_t here = i == 0 ? (expires < keys ? expires : keys) : 0;
        line(writer, "db%u:keys=%llu,expires=%llu,avg_ttl=0\r\n", i, U(keys), U(here));
    }
}

static void info_log(struct writer *writer, struct server *server, const struct sample *sample)
{
    const struct wal_stats *wal = &sample->engine.wal;
    FIELD("log_io", "%s", server->io.disk.name);
    FIELD("log_last", "%llu", U(wal->last));
    FIELD("log_durable", "%llu", U(wal->durable));
    FIELD("log_checkpoint", "%llu", U(sample->engine.checkpointed));
    FIELD("log_bytes", "%llu", U(wal->bytes));
    FIELD("log_spare_slots", "%u", wal->slots_spare);
    FIELD("log_full", "%d", wal->full);
    FIELD("log_batches", "%llu", U(wal->batches));
    FIELD("log_payload_bytes", "%llu", U(wal->payload_bytes));
    FIELD("log_written_bytes", "%llu", U(wal->written_bytes));
    if (wal->sync_ns != NULL) {
        FIELD("log_sync_usec_p50", "%.1f", (double)histogram_quantile(wal->sync_ns, 0.5) / 1e3);
        FIELD("log_sync_usec_p99", "%.1f", (double)histogram_quantile(wal->sync_ns, 0.99) / 1e3);
    }
    if (wal->batch_records != NULL)
        FIELD("log_batch_records_mean", "%.2f", histogram_mean(wal->batch_records));
}

static void info_engine(struct writer *writer, struct server *server, const struct sample *sample)
{
    const struct engine_stats *engine = &sample->engine;
    FIELD("ranges", "%u", node_ranges(server->node));
    FIELD("memtable_bytes", "%llu", U(engine->memtable_bytes));
    FIELD("memtable_entries", "%llu", U(engine->memtable_entries));
    FIELD("memtable_sealed_bytes", "%llu", U(engine->sealed_bytes));
    FIELD("memtable_sealed_entries", "%llu", U(engine->sealed_entries));
    FIELD("memtable_limit", "%llu", U(engine->memory_limit));
    FIELD("checkpoints", "%llu", U(engine->checkpoints));
    FIELD("checkpoint_running", "%d", engine->checkpoint_running);
    FIELD("checkpoint_puts", "%llu", U(engine->checkpoint_puts));
    FIELD("checkpoint_failures", "%llu", U(engine->checkpoint_failures));
    FIELD("checkpoint_last_seconds", "%.6f", (double)engine->checkpoint_ns / 1e9);
    FIELD("writes_delayed", "%llu", U(engine->throttled));
    FIELD("store_file_bytes", "%llu", U(engine->kv.file_bytes));
    FIELD("store_used_bytes", "%llu", U(engine->kv.used_bytes));
    FIELD("store_map_bytes", "%llu", U(engine->kv.map_bytes));
    FIELD("store_entries", "%llu", U(engine->kv.entries));
    FIELD("values_scrubbed", "%llu", U(engine->scrubbed));
    FIELD("scrub_rounds", "%llu", U(engine->scrub_rounds));
    FIELD("values_damaged", "%llu", U(engine->damaged));
    FIELD("disk_free_bytes", "%llu", U(sample->disk_free));
    count_keys(server);
    for (uint32_t i = NODE_BUCKETS_NUMBERED; i < server->report.buckets; i++) {
        const char *name = node_bucket_name(server->node, (uint16_t)i);
        if (name != NULL) line(writer, "bucket_%s:keys=%llu\r\n", name, U(server->report.keys[i]));
    }
}

/* In Redis's order; commandstats and latencystats only when asked for. */
static const struct info_section {
    const char *name; /* lower case, as it is asked for */
    const char *title;
    bool on_demand;
    void (*write)(struct writer *writer, struct server *server, const struct sample *sample);
} info_sections[] = {
    {"server", "Server", false, info_server},
    {"clients", "Clients", false, info_clients},
    {"memory", "Memory", false, info_memory},
    {"persistence", "Persistence", false, info_persistence},
    {"stats", "Stats", false, info_stats},
    {"replication", "Replication", false, info_replication},
    {"cpu", "CPU", false, info_cpu},
    {"commandstats", "Commandstats", true, info_commandstats},
    {"latencystats", "Latencystats", true, info_latencystats},
    {"cluster", "Cluster", false, info_cluster},
    {"keyspace", "Keyspace", false, info_keyspace},
    {"log", "Log", false, info_log},
    {"engine", "Engine", false, info_engine},
};

enum err report_info(struct server *server, struct bytes section, struct buffer *out)
{
    struct writer writer = {.out = out};
    struct sample sample;
    bool standard = section.size == 0 || http_text_equal(section, "default");
    bool all = http_text_equal(section, "all") || http_text_equal(section, "everything");
    bool first = true;
    take_sample(server, &sample);
    for (size_t i = 0; i < COUNT_OF(info_sections); i++) {
        const struct info_section *entry = &info_sections[i];
        bool wanted =
            all || (standard && !entry->on_demand) || http_text_equal(section, entry->name);
        if (!wanted) continue;
        line(&writer, "%s# %s\r\n", first ? "" : "\r\n", entry->title);
        first = false;
        entry->write(&writer, server, &sample);
    }
    return writer.err;
}
