#include "bench/workload.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

Test(workload, keys_are_a_prefix_and_twelve_digits)
{
    uint8_t key[KEY_SIZE + 1] = {0};
    key_write(key, 42);
    cr_assert_str_eq((char *)key, "key:000000000042");
    key_patch(key + KEY_PREFIX_SIZE, 999999999999u);
    cr_assert_str_eq((char *)key, "key:999999999999");
}

static struct workload make(struct keyspace *keyspace, struct workload_config *config)
{
    struct workload workload;
    workload_init(&workload, config, keyspace, 0, NULL);
    return workload;
}

Test(workload, the_mix_keeps_its_proportions)
{
    struct keyspace keyspace = {.loaded = 1000};
    struct workload_config config = {
        .parts = {[OPERATION_GET] = 10, [OPERATION_SET] = 1}, .seed = 7};
    struct workload workload = make(&keyspace, &config);
    int sets = 0;
    for (int i = 0; i < 110000; i++)
        sets += workload_next(&workload).operation == OPERATION_SET;
    cr_assert(sets > 9500 && sets < 10500, "%d sets of 110000", sets);
}

Test(workload, the_same_seed_gives_the_same_requests_and_another_does_not)
{
    struct keyspace keyspace = {.loaded = 1000000};
    struct workload_config config = {
        .parts = {1, 1}, .distribution = DISTRIBUTION_ZIPFIAN, .theta = 0.99, .seed = 3};
    struct workload one = make(&keyspace, &config);
    struct workload two = make(&keyspace, &config);
    config.seed = 4;
    struct workload other = make(&keyspace, &config);
    int same = 0;
    for (int i = 0; i < 1000; i++) {
        struct request a = workload_next(&one);
        struct request b = workload_next(&two);
        cr_assert_eq(a.key, b.key);
        cr_assert_eq(a.operation, b.operation);
        same += workload_next(&other).key == a.key;
    }
    cr_assert(same < 200, "%d of 1000 keys are the same under another seed", same);
}

Test(workload, inserts_are_new_keys_and_each_comes_once)
{
    struct keyspace keyspace = {.loaded = 10};
    struct workload_config config = {.parts = {[OPERATION_INSERT] = 1}, .seed = 1};
    struct workload workload = make(&keyspace, &config);
    for (uint64_t i = 0; i < 100; i++)
        cr_assert_eq(workload_next(&workload).key, 10 + i);
}

Test(workload, latest_prefers_new_keys_and_sees_confirmed_inserts)
{
    struct keyspace keyspace = {.loaded = 1000};
    struct workload_config config = {.parts = {[OPERATION_GET] = 1},
        .distribution = DISTRIBUTION_LATEST,
        .theta = 0.99,
        .seed = 1};
    struct workload workload = make(&keyspace, &config);
    for (int i = 0; i < 50; i++)
        workload_confirm(&workload);
    int newest = 0;
    for (int i = 0; i < 10000; i++) {
        uint64_t key = workload_next(&workload).key;
        cr_assert(key < 1050);
        newest += key == 1049;
    }
    cr_assert(newest > 1000, "the newest key came %d times of 10000", newest);
}

Test(workload, scans_stay_inside_the_key_space)
{
    struct keyspace keyspace = {.loaded = 120};
    struct workload_config config = {.parts = {[OPERATION_SCAN] = 1}, .scan_max = 100, .seed = 1};
    struct workload workload = make(&keyspace, &config);
    for (int i = 0; i < 10000; i++) {
        struct request request = workload_next(&workload);
        cr_assert(request.span >= 1 && request.span <= 100);
        cr_assert(request.key + request.span <= 120);
    }
}

Test(zipfian, zeta_by_formula_equals_the_sum)
{
    double sum = 0;
    for (uint64_t i = 1; i <= 1000000; i++)
        sum += pow((double)i, -0.99);
    cr_assert_float_eq(zipfian_zeta(1000000, 0.99), sum, sum * 1e-9);
    cr_assert_float_eq(zipfian_zeta(1, 0.99), 1, 1e-12);
}

Test(zipfian, ranks_come_as_often_as_the_law_says)
{
    enum { ITEMS = 1000, DRAWS = 2000000 };
    static uint32_t seen[ITEMS];
    struct zipfian zipfian;
    struct prng prng;
    zipfian_init(&zipfian, ITEMS, 0.99);
    prng_init(&prng, 1);
    for (int i = 0; i < DRAWS; i++) {
        uint64_t rank = zipfian_next(&zipfian, &prng);
        cr_assert(rank < ITEMS);
        seen[rank]++;
    }
    double zeta = zipfian_zeta(ITEMS, 0.99);
    /* the two first ranks are exact by construction; the rest follows a continuous approximation,
     * which is 20 % off at worst, just behind them */
    for (int rank = 0; rank < 2; rank++) {
        double expected = DRAWS * pow(rank + 1, -0.99) / zeta;
        cr_assert_float_eq(seen[rank], expected, expected * 0.02);
    }
    double head = 0;
    double head_expected = 0;
    for (int rank = 0; rank < 100; rank++) {
        head += seen[rank];
        head_expected += DRAWS * pow(rank + 1, -0.99) / zeta;
    }
    cr_assert_float_eq(head, head_expected, head_expected * 0.03);
    cr_assert(seen[999] > 0);
}

Test(zipfian, one_and_two_items_are_fine)
{
    struct zipfian zipfian;
    struct prng prng;
    prng_init(&prng, 1);
    zipfian_init(&zipfian, 1, 0.99);
    for (int i = 0; i < 100; i++)
        cr_assert_eq(zipfian_next(&zipfian, &prng), 0);
    zipfian_init(&zipfian, 2, 0.99);
    int second = 0;
    for (int i = 0; i < 10000; i++) {
        uint64_t rank = zipfian_next(&zipfian, &prng);
        cr_assert(rank < 2);
        second += rank == 1;
    }
    cr_assert(second > 3000 && second < 3700, "%d", second);
}

Test(schedule, arrivals_are_due_at_their_times)
{
    struct schedule schedule;
    schedule_init(&schedule, 1000000, 1000); /* one every millisecond */
    cr_assert_eq(schedule_due(&schedule, 999999), 0);
    cr_assert_eq(schedule_due(&schedule, 1000000), 1);
    cr_assert_eq(schedule_due(&schedule, 3500000), 3);
    cr_assert_eq(schedule_take(&schedule), 1000000);
    cr_assert_eq(schedule_take(&schedule), 2000000);
    cr_assert_eq(schedule_due(&schedule, 3500000), 1);
    cr_assert_eq(schedule_next_ns(&schedule), 3000000);
}

Test(schedule, a_stall_leaves_every_arrival_due_at_its_old_time)
{
    struct schedule schedule;
    schedule_init(&schedule, 0, 10000);
    while (schedule_due(&schedule, 1000000) > 0)
        schedule_take(&schedule);
    /* nobody looked for a second: the 10,000 arrivals of that second are all there, and the first of
     * them has waited the whole second */
    cr_assert_eq(schedule_due(&schedule, 1001000000), 10000);
    cr_assert_eq(schedule_take(&schedule), 1100000);
}

Test(schedule, odd_rates_do_not_drift)
{
    struct schedule schedule;
    schedule_init(&schedule, 0, 30000);
    schedule.taken = 30000u * 3600u; /* an hour later */
    cr_assert_float_eq((double)schedule_next_ns(&schedule), 3600e9, 1000);
}

Test(workload, values_differ_and_fill_every_byte)
{
    struct prng prng;
    uint8_t one[13];
    uint8_t two[13];
    prng_init(&prng, 1);
    value_fill(one, sizeof one, &prng);
    value_fill(two, sizeof two, &prng);
    cr_assert(memcmp(one, two, sizeof one) != 0);
}
