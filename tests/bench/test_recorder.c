#include "bench/recorder.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

enum { MS = 1000000 };

Test(recorder, what_came_before_the_start_does_not_count)
{
    struct recorder *recorder = recorder_make(true);
    struct histogram all;
    recorder_add(recorder, OPERATION_GET, 5 * MS);
    recorder_start(recorder, 1000 * MS);
    recorder_add(recorder, OPERATION_GET, 1 * MS);
    recorder_turn(recorder, 1001 * MS);
    recorder_close(recorder, 1002 * MS);
    recorder_all(recorder, &all);
    cr_assert_eq(all.count, 1);
    cr_assert_eq(recorder->operations, 1);
    cr_assert_eq(all.max, 1 * MS);
    free(recorder);
}

Test(recorder, late_answers_keep_their_latency_but_are_not_throughput)
{
    struct recorder *recorder = recorder_make(true);
    struct histogram all;
    recorder_start(recorder, 0);
    recorder_add(recorder, OPERATION_SET, 1 * MS);
    recorder_close(recorder, 100 * MS);
    recorder_add(recorder, OPERATION_SET, 700 * MS);
    recorder_all(recorder, &all);
    cr_assert_eq(recorder->operations, 1);
    cr_assert_eq(all.count, 2);
    cr_assert_eq(all.max, 700 * MS);
    free(recorder);
}

Test(recorder, intervals_show_the_course_and_an_idle_one_is_zero)
{
    struct recorder *recorder = recorder_make(true);
    recorder_start(recorder, 0);
    for (uint64_t i = 1; i <= 10; i++) {
        recorder_add(recorder, OPERATION_GET, i * MS);
        recorder_turn(recorder, i * MS);
    }
    recorder_add(recorder, OPERATION_GET, 3 * MS);
    recorder_turn(recorder, 250 * MS);
    cr_assert_eq(recorder->interval_count, 2);
    cr_assert_eq(recorder->intervals[0].operations, 11);
    cr_assert(recorder->intervals[0].p99_ns >= 10 * MS);
    cr_assert(recorder->intervals[0].p50_ns < 7 * MS);
    cr_assert_eq(recorder->intervals[1].operations, 0);
    cr_assert_eq(recorder->pause_max_ns, 240 * MS);
    free(recorder);
}

Test(recorder, a_long_run_joins_intervals_and_loses_nothing)
{
    struct recorder *recorder = recorder_make(true);
    recorder_start(recorder, 0);
    uint64_t intervals = RECORDER_INTERVALS * 3;
    for (uint64_t i = 0; i < intervals; i++) {
        recorder_add(recorder, OPERATION_SET, 1 * MS);
        recorder_turn(recorder, (i * 100 + 50) * MS);
    }
    recorder_close(recorder, intervals * 100 * MS);
    uint64_t counted = 0;
    for (uint32_t i = 0; i < recorder->interval_count; i++)
        counted += recorder->intervals[i].operations;
    cr_assert_eq(counted, intervals);
    cr_assert_eq(recorder->interval_ns, 400u * MS);
    cr_assert(recorder->interval_count <= RECORDER_INTERVALS);
    free(recorder);
}

Test(recorder, merging_adds_threads)
{
    struct recorder *one = recorder_make(true);
    struct recorder *two = recorder_make(true);
    struct histogram all;
    recorder_start(one, 0);
    recorder_start(two, 0);
    for (uint64_t i = 1; i <= 300; i++) {
        recorder_add(one, OPERATION_GET, 1 * MS);
        recorder_add(two, OPERATION_SET, 2 * MS);
        recorder_turn(one, i * MS);
        recorder_turn(two, i * MS);
    }
    recorder_error(one, "-ERR", "first");
    recorder_error(two, "-ERR", "second");
    recorder_error(two, "-ERR", "third");
    recorder_error(two, "-OTHER", "fourth");
    recorder_close(one, 300 * MS);
    recorder_close(two, 300 * MS);
    recorder_merge(one, two);
    recorder_all(one, &all);
    cr_assert_eq(all.count, 600);
    cr_assert_eq(one->operations, 600);
    cr_assert_eq(one->intervals[0].operations, 200);
    cr_assert_eq(one->error_kinds, 2);
    cr_assert_eq(one->errors[0].count, 3);
    cr_assert_str_eq(one->errors[0].example, "first");
    cr_assert_eq(recorder_error_count(one), 4);
    free(one);
    free(two);
}

Test(recorder, more_kinds_of_errors_than_places_are_still_counted)
{
    struct recorder *recorder = recorder_make(true);
    recorder_start(recorder, 0);
    for (int i = 0; i < 100; i++) {
        char kind[16];
        snprintf(kind, sizeof kind, "-E%d", i);
        recorder_error(recorder, kind, "example");
    }
    cr_assert_eq(recorder_error_count(recorder), 100);
    cr_assert_eq(recorder->error_kinds, RECORDER_ERRORS);
    free(recorder);
}
