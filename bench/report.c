#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "bench/bench_internal.h"

uint64_t report_slot_top(unsigned slot)
{
    unsigned exponent = slot >> HISTOGRAM_SUB_BITS;
    if (exponent <= 1) return slot;
    exponent--;
    uint64_t base = (slot & ((1u << HISTOGRAM_SUB_BITS) - 1)) | (1u << HISTOGRAM_SUB_BITS);
    return ((base + 1) << exponent) - 1;
}

void report_count(uint64_t count, char *at, size_t size)
{
    char digits[24];
    int length = snprintf(digits, sizeof digits, "%" PRIu64, count);
    size_t used = 0;
    ASSERT(size >= 32);
    for (int i = 0; i < length; i++) {
        if (i > 0 && (length - i) % 3 == 0) {
            at[used++] = ',';
        }
        at[used++] = digits[i];
    }
    at[used] = 0;
}

void report_time(uint64_t ns, char *at, size_t size)
{
    static const struct {
        const char *name;
        double size;
    } units[] = {{"ns", 1}, {"µs", 1e3}, {"ms", 1e6}, {"s", 1e9}};
    size_t i = 0;
    while (i + 1 < sizeof units / sizeof units[0] && (double)ns >= 999.5 * units[i].size)
        i++;
    double value = (double)ns / units[i].size;
    int places = i == 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
    snprintf(at, size, "%.*f %s", places, value, units[i].name);
}

void report_bytes(uint64_t bytes, char *at, size_t size)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    size_t i = 0;
    while (value >= 1024 && i + 1 < sizeof units / sizeof units[0]) {
        value /= 1024;
        i++;
    }
    bool whole = i == 0 || value >= 100 || value == (double)(uint64_t)value;
    snprintf(at, size, "%.*f %s", whole ? 0 : 1, value, units[i]);
}

/* Right-aligned in `width` columns; µ is two bytes and one column. */
static void print_cell(FILE *out, const char *text, int width)
{
    int columns = 0;
    for (const char *each = text; *each != 0; each++)
        columns += ((unsigned char)*each & 0xc0) != 0x80;
    fprintf(out, "%*s%s", columns < width ? width - columns : 1, "", text);
}

enum { NAME_WIDTH = 22, RATE_WIDTH = 13, TIME_WIDTH = 9 };

static void print_heading(FILE *out)
{
    static const char *const headings[] = {"p50", "p90", "p99", "p99.9", "p99.99", "max"};
    fprintf(out, "%-*s", NAME_WIDTH, "");
    print_cell(out, "operations/s", RATE_WIDTH);
    for (size_t i = 0; i < sizeof headings / sizeof headings[0]; i++)
        print_cell(out, headings[i], TIME_WIDTH + 1);
    fprintf(out, "\n");
}

static void print_row(
    FILE *out, const char *name, double rate, const struct histogram *histogram, double ratio)
{
    static const double quantiles[] = {0.5, 0.9, 0.99, 0.999, 0.9999};
    char cell[32];
    fprintf(out, "%-*s", NAME_WIDTH, name);
    report_count((uint64_t)(rate + 0.5), cell, sizeof cell);
    print_cell(out, cell, RATE_WIDTH);
    for (size_t i = 0; i < sizeof quantiles / sizeof quantiles[0]; i++) {
        report_time(histogram_quantile(histogram, quantiles[i]), cell, sizeof cell);
        print_cell(out, cell, TIME_WIDTH + 1);
    }
    report_time(histogram->max, cell, sizeof cell);
    print_cell(out, cell, TIME_WIDTH + 1);
    if (ratio > 0) {
        fprintf(out, "   %.2f x", ratio);
    }
    fprintf(out, "\n");
}

static void print_operations(FILE *out, const struct round *round)
{
    const struct recorder *recorder = round->recorder;
    uint64_t all = 0;
    int kinds = 0;
    for (int i = 0; i < OPERATION_COUNT; i++) {
        uint64_t count = recorder->total[i].count + recorder->live[i].count;
        all += count;
        kinds += count > 0;
    }
    if (kinds < 2) return;
    struct histogram *merged = malloc(sizeof *merged);
    if (merged == NULL) return;
    for (int i = 0; i < OPERATION_COUNT; i++) {
        *merged = recorder->total[i];
        histogram_merge(merged, &recorder->live[i]);
        if (merged->count == 0) continue;
        char name[32];
        snprintf(name, sizeof name, "  %s", operation_name((enum operation)i));
        print_row(out, name, round->rate * (double)merged->count / (double)all, merged, 0);
    }
    free(merged);
}

static void print_rounds(FILE *out, const struct run_result *result)
{
    if (result->round_count < 2) return;
    fprintf(out, "  rounds: ");
    for (uint32_t i = 0; i < result->round_count; i++) {
        char rate[32];
        report_count((uint64_t)result->rounds[i].rate, rate, sizeof rate);
        fprintf(out, "%s%s", i == 0 ? "" : ", ", rate);
    }
    fprintf(out, "\n");
}

/* What a cluster's own errors say about the request; empty for others. */
static const char *meaning_of(const char *error)
{
    if (strcmp(error, "-UNKNOWN") == 0) return " (may or may not have been applied)";
    if (strcmp(error, "-CLUSTERDOWN") == 0) return " (not applied)";
    return "";
}

static void print_troubles(
    FILE *out, const struct bench_options *options, const struct round *round)
{
    const struct recorder *recorder = round->recorder;
    char text[32];
    if (recorder->misses > 0) {
        report_count(recorder->misses, text, sizeof text);
        fprintf(out, "  %s reads found no key%s\n", text,
            options->load || options->engines != NULL ? "" : "; write them first with --load");
    }
    for (uint32_t i = 0; i < recorder->error_kinds; i++) {
        report_count(recorder->errors[i].count, text, sizeof text);
        fprintf(out, "  error %s: %s times%s, e.g. \"%s\"\n", recorder->errors[i].name, text,
            meaning_of(recorder->errors[i].name), recorder->errors[i].example);
    }
    if (options->rate > 0) {
        char p99[32];
        report_time(histogram_quantile(&recorder->lag, 0.5), text, sizeof text);
        report_time(histogram_quantile(&recorder->lag, 0.99), p99, sizeof p99);
        fprintf(out, "  sent after arrival: p50 %s, p99 %s\n", text, p99);
    }
    if (round->unsent > 0) {
        report_count(round->unsent, text, sizeof text);
        fprintf(out,
            "  %s arrivals could not be sent before the end: the rate is above what is "
            "possible with this window\n",
            text);
    }
}

static void print_result(FILE *out, const struct bench_options *options,
    const struct run_result *result, double base_rate, struct histogram *all)
{
    const struct round *round = result->shown;
    char text[32];
    double ratio = base_rate > 0 ? round->rate / base_rate : 0;
    recorder_all(round->recorder, all);
    print_row(out, result->name, round->rate, all, ratio);
    print_operations(out, round);
    print_rounds(out, result);
    print_troubles(out, options, round);
    fprintf(out, "  processors: %s %.0f %%", options->engines == NULL ? "generator" : "bench",
        round->cpu_self);
    if (options->engines == NULL && round->cpu_server > 0) {
        fprintf(out, ", server %.0f %%", round->cpu_server);
    }
    fprintf(out, ", others %.0f %% of a core", round->cpu_other);
    report_time(round->recorder->pause_max_ns, text, sizeof text);
    if (round->recorder->detailed) {
        fprintf(out, "; longest pause %s", text);
    }
    fprintf(out, "\n");
    if (result->load_rate > 0) {
        report_count((uint64_t)result->load_rate, text, sizeof text);
        fprintf(out, "  loaded at %s keys/s\n", text);
    }
    if (result->file_bytes > 0 && result->data_bytes > 0) {
        report_bytes(result->file_bytes, text, sizeof text);
        fprintf(out, "  file %s, %.2f x the keys and values\n", text,
            (double)result->file_bytes / (double)result->data_bytes);
    }
    if (result->note[0] != 0) {
        fprintf(out, "  %s\n", result->note);
    }
}

void report_print(FILE *out, const struct bench_options *options, const struct run_result *results,
    uint32_t count)
{
    struct machine machine;
    char text[512];
    char memory[32];
    machine_describe(&machine);
    report_bytes(machine.memory, memory, sizeof memory);
    for (uint32_t i = 0; i < count; i++)
        fprintf(out, "%-8s %s: %s\n", i == 0 ? "target" : "", results[i].name, results[i].detail);
    options_describe(options, text, sizeof text);
    fprintf(out, "%-8s %s\n", "load", text);
    fprintf(out, "%-8s %ld cores (%s), %s, %s\n\n", "machine", machine.cores, machine.cpu, memory,
        machine.kernel);
    struct histogram *all = malloc(sizeof *all);
    if (all == NULL) return;
    print_heading(out);
    for (uint32_t i = 0; i < count; i++) {
        if (results[i].shown == NULL) continue;
        double base = i == 0 || results[0].shown == NULL ? 0 : results[0].shown->rate;
        print_result(out, options, &results[i], base, all);
    }
    free(all);
}
