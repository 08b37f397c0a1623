#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <jansson.h>
#include <stdlib.h>
#include <unistd.h>

#include "bench/bench_internal.h"

Test(report, counts_have_separators)
{
    char text[32];
    report_count(0, text, sizeof text);
    cr_assert_str_eq(text, "0");
    report_count(999, text, sizeof text);
    cr_assert_str_eq(text, "999");
    report_count(1234567, text, sizeof text);
    cr_assert_str_eq(text, "1,234,567");
}

Test(report, times_have_three_digits_and_a_unit)
{
    static const struct {
        uint64_t ns;
        const char *text;
    } cases[] = {{0, "0 ns"}, {999, "999 ns"}, {1000, "1.00 µs"}, {12345, "12.3 µs"},
        {999400, "999 µs"}, {999600, "1.00 ms"}, {123456789, "123 ms"}, {1500000000, "1.50 s"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[32];
        report_time(cases[i].ns, text, sizeof text);
        cr_assert_str_eq(text, cases[i].text);
    }
}

Test(report, sizes_are_binary)
{
    char text[32];
    report_bytes(100, text, sizeof text);
    cr_assert_str_eq(text, "100 B");
    report_bytes(1536, text, sizeof text);
    cr_assert_str_eq(text, "1.5 KiB");
    report_bytes(512u << 20, text, sizeof text);
    cr_assert_str_eq(text, "512 MiB");
}

Test(report, numbers_on_the_command_line_have_units)
{
    uint64_t number;
    cr_assert(options_number("64", &number) && number == 64);
    cr_assert(options_number("10M", &number) && number == 10000000);
    cr_assert(options_number("4KiB", &number) && number == 4096);
    cr_assert(options_number("2gib", &number) && number == 2147483648u);
    cr_assert_not(options_number("", &number));
    cr_assert_not(options_number("-1", &number));
    cr_assert_not(options_number("1x", &number));
    cr_assert_not(options_number("99999999999999999999", &number));
    cr_assert_not(options_number("99999999999999999GiB", &number));
}

/* The slot tops printed into JSON are the histogram's own: each value lies in the slot whose top is the
 * first at or above it. */
Test(report, slot_tops_agree_with_the_histogram)
{
    for (uint64_t value = 1; value < UINT64_MAX / 3; value += value / 7 + 1) {
        struct histogram *histogram = calloc(1, sizeof *histogram);
        histogram_record(histogram, value);
        unsigned slot = 0;
        while (histogram->slots[slot] == 0)
            slot++;
        cr_assert(report_slot_top(slot) >= value);
        cr_assert(slot == 0 || report_slot_top(slot - 1) < value);
        free(histogram);
    }
}

static void fill(struct run_result *result, const char *name, uint64_t base_ns)
{
    struct recorder *recorder = recorder_make(true);
    snprintf(result->name, sizeof result->name, "%s", name);
    snprintf(result->detail, sizeof result->detail, "a \"quoted\" <detail> & more\n");
    recorder_start(recorder, 0);
    for (uint64_t i = 1; i <= 1000; i++) {
        recorder_add(recorder, i % 2 == 0 ? OPERATION_GET : OPERATION_SET, base_ns + i * 1000);
        recorder_turn(recorder, i * 1000000);
    }
    recorder_error(recorder, "-ERR", "an example");
    recorder_close(recorder, 1000000000);
    result->rounds[result->round_count++] =
        (struct round){.recorder = recorder, .seconds = 1, .rate = 1000};
    result_finish(result);
}

static struct bench_options some_options(void)
{
    struct bench_options options = {.workload_name = "mixed",
        .clients = 50,
        .pipeline = 1,
        .seconds = 1,
        .keys = 1000,
        .value_size = 100,
        .threads = 1,
        .rounds = 1};
    return options;
}

static char *read_all(const char *file)
{
    FILE *in = fopen(file, "r");
    char *text = calloc(1, 1 << 20);
    size_t size = in == NULL ? 0 : fread(text, 1, (1 << 20) - 1, in);
    if (in != NULL) fclose(in);
    cr_assert(size > 0);
    return text;
}

Test(report, json_is_one_valid_object_with_everything)
{
    char file[] = "/tmp/bench-json.XXXXXX";
    int fd = mkstemp(file);
    struct run_result result = {0};
    struct bench_options options = some_options();
    fill(&result, "host:1", 1000000);
    cr_assert(report_json(file, &options, &result, 1));
    close(fd);
    json_error_t error;
    json_t *root = json_load_file(file, JSON_REJECT_DUPLICATES, &error);
    cr_assert_not_null(root, "%s", error.text);
    json_t *first = json_array_get(json_object_get(root, "results"), 0);
    json_t *latency = json_object_get(first, "latency_ns");
    cr_assert_eq(json_integer_value(json_object_get(latency, "count")), 1000);
    cr_assert_eq(json_integer_value(json_object_get(latency, "max")), 2000000);
    long long p50 = json_integer_value(json_object_get(latency, "p50"));
    cr_assert(p50 > 1480000 && p50 < 1520000, "%lld", p50);
    long long counted = 0;
    size_t i;
    json_t *pair;
    json_array_foreach(json_object_get(first, "histogram_ns"), i, pair)
    {
        counted += json_integer_value(json_array_get(pair, 1));
    }
    cr_assert_eq(counted, 1000);
    cr_assert_eq(json_object_size(json_object_get(first, "by_operation_ns")), 2);
    cr_assert_eq(json_object_size(json_object_get(first, "errors")), 1);
    json_decref(root);
    result_deinit(&result);
    unlink(file);
}

Test(report, the_picture_has_a_line_for_each_target_and_escapes_names)
{
    char file[] = "/tmp/bench-plot.XXXXXX";
    int fd = mkstemp(file);
    struct run_result results[2] = {0};
    struct bench_options options = some_options();
    fill(&results[0], "a<b>&c", 1000000);
    fill(&results[1], "other", 2000000);
    cr_assert(plot_write(file, &options, results, 2));
    close(fd);
    char *text = read_all(file);
    int lines = 0;
    for (const char *at = text; (at = strstr(at, "<polyline")) != NULL; at++)
        lines++;
    cr_assert_eq(lines, 6); /* three panels, two targets */
    cr_assert_not_null(strstr(text, "a&lt;b>&amp;c"));
    cr_assert_null(strstr(text, "nan"));
    cr_assert_null(strstr(text, "inf"));
    cr_assert_str_eq(text + strlen(text) - 7, "</svg>\n");
    free(text);
    result_deinit(&results[0]);
    result_deinit(&results[1]);
    unlink(file);
}

Test(report, the_median_round_is_shown)
{
    static const double rates[] = {500, 900, 100, 700, 300};
    struct run_result result = {0};
    for (size_t i = 0; i < 5; i++)
        result.rounds[result.round_count++] = (struct round){.rate = rates[i]};
    result_finish(&result);
    cr_assert_eq(result.shown->rate, 500);
    result.round_count = 1;
    result_finish(&result);
    cr_assert_eq(result.shown->rate, 500);
}
