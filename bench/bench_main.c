#define _GNU_SOURCE
#include "bench/bench.h"

#include <stdlib.h>
#include <string.h>

#include "bench/bench_internal.h"

/* The load as RESP commands in a file: for `redis-cli --pipe`, and as the same bytes for other tools. */
static bool emit(const struct bench_options *options)
{
    FILE *out = strcmp(options->emit, "-") == 0 ? stdout : fopen(options->emit, "we");
    uint8_t *value = malloc((size_t)options->value_size + 1);
    struct prng prng;
    bool fine = out != NULL && value != NULL;
    if (fine) {
        prng_init(&prng, options->mix.seed);
        value_fill(value, options->value_size, &prng);
    }
    for (uint64_t i = 0; fine && i < options->keys; i++) {
        uint8_t key[KEY_SIZE];
        key_write(key, i);
        if (options->random_values) {
            value_fill(value, options->value_size, &prng);
        }
        fprintf(out, "*3\r\n$3\r\nSET\r\n$16\r\n%.*s\r\n$%u\r\n", KEY_SIZE, (const char *)key,
            options->value_size);
        fwrite(value, 1, options->value_size, out);
        fine = fwrite("\r\n", 1, 2, out) == 2;
    }
    fine = out != NULL && (out == stdout ? fflush(out) == 0 : fclose(out) == 0) && fine;
    free(value);
    if (!fine) {
        fprintf(stderr, "duramen bench: cannot write %s; is the disk full?\n", options->emit);
    }
    return fine;
}

static bool write_reports(
    const struct bench_options *options, const struct run_result *results, uint32_t count)
{
    bool fine = true;
    bool json_to_stdout = options->json != NULL && strcmp(options->json, "-") == 0;
    report_print(json_to_stdout ? stderr : stdout, options, results, count);
    if (options->json != NULL && !report_json(options->json, options, results, count)) {
        fprintf(stderr, "duramen bench: cannot write the JSON file %s\n", options->json);
        fine = false;
    }
    if (options->plot != NULL && !options->load_only &&
        !plot_write(options->plot, options, results, count)) {
        fprintf(stderr, "duramen bench: cannot write the picture %s\n", options->plot);
        fine = false;
    }
    return fine;
}

static bool had_errors(const struct run_result *results, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (results[i].shown != NULL && recorder_error_count(results[i].shown->recorder) > 0)
            return true;
    }
    return false;
}

int bench_main(int argc, char **argv)
{
    struct bench_options options;
    int code;
    if (!options_parse(argc, argv, &options, &code)) return code;
    if (options.emit != NULL) return emit(&options) ? 0 : 1;

    struct run_result *results = calloc(ENGINES_MAX, sizeof *results);
    if (results == NULL) return 1;
    uint32_t count = 1;
    bool fine = options.engines == NULL ? load_resp(&options, &results[0])
                                        : load_engines(&options, results, &count);
    if (fine) {
        fine = write_reports(&options, results, count) && !had_errors(results, count);
    }
    for (uint32_t i = 0; i < count; i++)
        result_deinit(&results[i]);
    free(results);
    return fine ? 0 : 1;
}
