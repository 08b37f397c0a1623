#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <jansson.h>
#include <stdio.h>
#include <unistd.h>

#include "bench/bench.h"

static int run(const char *const *flags, json_t **root_out)
{
    char file[] = "/tmp/bench-engine.XXXXXX";
    char *argv[32] = {(char *)"bench", (char *)"--no-progress", (char *)"--json", file,
        (char *)"--keys", (char *)"2000"};
    int argc = 6;
    close(mkstemp(file));
    for (; *flags != NULL; flags++)
        argv[argc++] = (char *)*flags;
    fclose(stdout);
    stdout = fopen("/dev/null", "w");
    int code = bench_main(argc, argv);
    *root_out = json_load_file(file, 0, NULL);
    unlink(file);
    return code;
}

static json_t *result(json_t *root, size_t i)
{
    return json_array_get(json_object_get(root, "results"), i);
}

static double number(json_t *object, const char *name)
{
    return json_number_value(json_object_get(object, name));
}

Test(load_engine, engines_take_turns_and_each_does_its_requests)
{
    json_t *root;
    const char *flags[] = {"--engine", "disk,lmdb,log", "--in-flight", "4", "--requests", "200",
        "--rounds", "3", NULL};
    cr_assert_eq(run(flags, &root), 0);
    cr_assert_eq(json_array_size(json_object_get(root, "results")), 3);
    for (size_t i = 0; i < 3; i++) {
        cr_assert_eq(number(result(root, i), "operations"), 200);
        cr_assert_eq(json_array_size(json_object_get(result(root, i), "rounds")), 3);
    }
    json_decref(root);
}

Test(load_engine, reads_find_what_was_loaded_in_every_form_of_the_engine)
{
    json_t *root;
    const char *flags[] = {"--engine", "duramen,lmdb", "--workload", "f", "--in-flight", "8",
        "--requests", "500", "--dirty", "50", NULL};
    cr_assert_eq(run(flags, &root), 0);
    for (size_t i = 0; i < 2; i++) {
        cr_assert_eq(number(result(root, i), "operations"), 500);
        cr_assert_eq(number(result(root, i), "misses"), 0);
    }
    json_decref(root);
}

Test(load_engine, a_scan_counts_entries)
{
    json_t *root;
    const char *flags[] = {"--engine", "duramen,lmdb", "--scan", "--requests", "3", NULL};
    cr_assert_eq(run(flags, &root), 0);
    for (size_t i = 0; i < 2; i++)
        cr_assert_eq(number(result(root, i), "operations"), 6000);
    json_decref(root);
}

Test(load_engine, apply_brings_the_batch_down)
{
    json_t *root;
    const char *flags[] = {
        "--engine", "duramen,lmdb", "--workload", "apply", "--requests", "1000", NULL};
    cr_assert_eq(run(flags, &root), 0);
    for (size_t i = 0; i < 2; i++) {
        double puts = number(result(root, i), "operations");
        cr_assert(puts > 700 && puts <= 1000, "%g distinct keys of 1000 draws from 2000", puts);
    }
    json_decref(root);
}

Test(load_engine, an_engine_that_cannot_read_says_so)
{
    json_t *root;
    const char *flags[] = {"--engine", "disk", "--read", NULL};
    fclose(stderr);
    stderr = fopen("/dev/null", "w");
    cr_assert_eq(run(flags, &root), 1);
    cr_assert_null(root);
}

Test(load_engine, a_wrong_flag_ends_with_code_2, .exit_code = 2)
{
    json_t *root;
    const char *flags[] = {"--workload", "nonsense", NULL};
    fclose(stderr);
    stderr = fopen("/dev/null", "w");
    run(flags, &root);
}
