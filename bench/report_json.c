#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "bench/bench_internal.h"

/* One object, written by hand: the shape is small and fixed, and the bench stays free of a library. */

static void put_text(struct buffer *out, const char *text)
{
    buffer_printf(out, "\"");
    for (const unsigned char *each = (const unsigned char *)text; *each != 0; each++) {
        if (*each == '"' || *each == '\\') {
            buffer_printf(out, "\\%c", *each);
        } else if (*each < 0x20) {
            buffer_printf(out, "\\u%04x", *each);
        } else {
            buffer_printf(out, "%c", *each);
        }
    }
    buffer_printf(out, "\"");
}

static void put_latency(struct buffer *out, const struct histogram *histogram)
{
    static const struct {
        const char *name;
        double quantile;
    } points[] = {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p99_9", 0.999}, {"p99_99", 0.9999}};
    buffer_printf(out, "{\"count\":%" PRIu64 ",\"min\":%" PRIu64 ",\"mean\":%.1f", histogram->count,
        histogram->min, histogram_mean(histogram));
    for (size_t i = 0; i < sizeof points / sizeof points[0]; i++) {
        buffer_printf(out, ",\"%s\":%" PRIu64, points[i].name,
            histogram_quantile(histogram, points[i].quantile));
    }
    buffer_printf(out, ",\"max\":%" PRIu64 "}", histogram->max);
}

static void put_histogram(struct buffer *out, const struct histogram *histogram)
{
    const char *comma = "";
    buffer_printf(out, "[");
    for (unsigned i = 0; i < HISTOGRAM_SLOTS; i++) {
        if (histogram->slots[i] == 0) continue;
        buffer_printf(
            out, "%s[%" PRIu64 ",%" PRIu64 "]", comma, report_slot_top(i), histogram->slots[i]);
        comma = ",";
    }
    buffer_printf(out, "]");
}

static void put_operations(
    struct buffer *out, const struct recorder *recorder, struct histogram *room)
{
    const char *comma = "";
    buffer_printf(out, "{");
    for (int i = 0; i < OPERATION_COUNT; i++) {
        *room = recorder->total[i];
        histogram_merge(room, &recorder->live[i]);
        if (room->count == 0) continue;
        buffer_printf(out, "%s\"%s\":", comma, operation_name((enum operation)i));
        put_latency(out, room);
        comma = ",";
    }
    buffer_printf(out, "}");
}

static void put_timeline(struct buffer *out, const struct recorder *recorder)
{
    buffer_printf(out, "{\"interval_ns\":%" PRIu64 ",\"intervals\":[", recorder->interval_ns);
    for (uint32_t i = 0; i < recorder->interval_count; i++) {
        const struct interval *interval = &recorder->intervals[i];
        buffer_printf(out, "%s[%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64 "]", i == 0 ? "" : ",",
            interval->operations, interval->p50_ns, interval->p99_ns, interval->max_ns);
    }
    buffer_printf(out, "],\"columns\":[\"operations\",\"p50_ns\",\"p99_ns\",\"max_ns\"]}");
}

static void put_result(struct buffer *out, const struct run_result *result, struct histogram *room)
{
    const struct round *round = result->shown;
    buffer_printf(out, "{\"name\":");
    put_text(out, result->name);
    buffer_printf(out, ",\"detail\":");
    put_text(out, result->detail);
    buffer_printf(out, ",\"note\":");
    put_text(out, result->note);
    buffer_printf(out,
        ",\"load_per_second\":%.1f,\"file_bytes\":%" PRIu64 ",\"data_bytes\":%" PRIu64,
        result->load_rate, result->file_bytes, result->data_bytes);
    if (round != NULL) {
        const struct recorder *recorder = round->recorder;
        buffer_printf(out,
            ",\"operations_per_second\":%.1f,\"operations\":%" PRIu64
            ",\"seconds\":%.6f,\"misses\":%" PRIu64 ",\"unsent\":%" PRIu64,
            round->rate, recorder->operations, round->seconds, recorder->misses, round->unsent);
        buffer_printf(out, ",\"rounds\":[");
        for (uint32_t i = 0; i < result->round_count; i++)
            buffer_printf(out, "%s%.1f", i == 0 ? "" : ",", result->rounds[i].rate);
        buffer_printf(out, "],\"cpu_percent\":{\"self\":%.1f,\"server\":%.1f,\"others\":%.1f}",
            round->cpu_self, round->cpu_server, round->cpu_other);
        if (recorder->detailed) {
            buffer_printf(out, ",\"pause_max_ns\":%" PRIu64, recorder->pause_max_ns);
        }
        buffer_printf(out, ",\"errors\":{");
        for (uint32_t i = 0; i < recorder->error_kinds; i++) {
            buffer_printf(out, "%s", i == 0 ? "" : ",");
            put_text(out, recorder->errors[i].name);
            buffer_printf(out, ":{\"count\":%" PRIu64 ",\"example\":", recorder->errors[i].count);
            put_text(out, recorder->errors[i].example);
            buffer_printf(out, "}");
        }
        recorder_all(recorder, room);
        buffer_printf(out, "},\"latency_ns\":");
        put_latency(out, room);
        buffer_printf(out, ",\"histogram_ns\":");
        put_histogram(out, room);
        buffer_printf(out, ",\"by_operation_ns\":");
        put_operations(out, recorder, room);
        if (recorder->lag.count > 0) {
            buffer_printf(out, ",\"send_lag_ns\":");
            put_latency(out, &recorder->lag);
        }
        buffer_printf(out, ",\"timeline\":");
        put_timeline(out, recorder);
    }
    buffer_printf(out, "}");
}

static void put_settings(struct buffer *out, const struct bench_options *options)
{
    char text[512];
    options_describe(options, text, sizeof text);
    buffer_printf(out, "{\"summary\":");
    put_text(out, text);
    buffer_printf(out, ",\"workload\":");
    put_text(out, options->workload_name);
    buffer_printf(out,
        ",\"clients\":%u,\"pipeline\":%u,\"rate\":%.1f,\"seconds\":%.3f,\"warmup\":%.3f"
        ",\"requests\":%" PRIu64 ",\"threads\":%u,\"in_flight\":%u,\"rounds\":%u,\"busy\":%u",
        options->clients, options->pipeline, options->rate, options->seconds, options->warmup,
        options->requests, options->threads, options->in_flight, options->rounds, options->busy);
    buffer_printf(out,
        ",\"keys\":%" PRIu64 ",\"value_size\":%u,\"random_values\":%s,\"seed\":%" PRIu64
        ",\"memory\":%" PRIu64 ",\"checkpoint\":%s,\"dirty_percent\":%u}",
        options->keys, options->value_size, options->random_values ? "true" : "false",
        options->mix.seed, options->memory, options->checkpoint ? "true" : "false", options->dirty);
}

bool report_json(const char *file, const struct bench_options *options,
    const struct run_result *results, uint32_t count)
{
    struct buffer out = {0};
    struct machine machine;
    struct histogram *room = malloc(sizeof *room);
    if (room == NULL) return false;
    machine_describe(&machine);
    buffer_printf(&out, "{\"program\":\"duramen bench\",\"version\":");
    put_text(&out, DURAMEN_VERSION);
    buffer_printf(&out, ",\"settings\":");
    put_settings(&out, options);
    buffer_printf(&out,
        ",\"machine\":{\"cores\":%ld,\"memory_bytes\":%" PRIu64 ",\"cpu\":", machine.cores,
        machine.memory);
    put_text(&out, machine.cpu);
    buffer_printf(&out, ",\"kernel\":");
    put_text(&out, machine.kernel);
    buffer_printf(&out, "},\"results\":[");
    for (uint32_t i = 0; i < count; i++) {
        buffer_printf(&out, "%s", i == 0 ? "" : ",");
        put_result(&out, &results[i], room);
    }
    enum err last = buffer_printf(&out, "]}\n");
    free(room);

    bool fine = last == OK;
    FILE *to = strcmp(file, "-") == 0 ? stdout : fopen(file, "we");
    fine = fine && to != NULL && fwrite(out.at, 1, out.size, to) == out.size;
    fine = to != NULL && (to == stdout ? fflush(to) == 0 : fclose(to) == 0) && fine;
    buffer_deinit(&out);
    return fine;
}
