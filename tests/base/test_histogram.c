#include <criterion/criterion.h>
#include <stdlib.h>

#include "base/histogram.h"
#include "base/prng.h"

Test(histogram, empty_answers_zero)
{
    struct histogram *histogram = calloc(1, sizeof *histogram);
    cr_assert_eq(histogram_quantile(histogram, 0.5), 0);
    cr_assert_eq(histogram_mean(histogram), 0);
    cr_assert_eq(histogram_count_below(histogram, 100), 0);
    free(histogram);
}

Test(histogram, small_values_are_exact)
{
    struct histogram *histogram = calloc(1, sizeof *histogram);
    for (uint64_t i = 1; i <= 100; i++)
        histogram_record(histogram, i);
    cr_assert_eq(histogram_quantile(histogram, 0), 1);
    cr_assert_eq(histogram_quantile(histogram, 0.01), 1);
    cr_assert_eq(histogram_quantile(histogram, 0.5), 50);
    cr_assert_eq(histogram_quantile(histogram, 0.99), 99);
    cr_assert_eq(histogram_quantile(histogram, 1), 100);
    cr_assert_eq(histogram->min, 1);
    cr_assert_eq(histogram->max, 100);
    cr_assert_float_eq(histogram_mean(histogram), 50.5, 1e-9);
    cr_assert_eq(histogram_count_below(histogram, 42), 42);
    free(histogram);
}

Test(histogram, any_value_is_within_its_precision)
{
    struct histogram *histogram = calloc(1, sizeof *histogram);
    struct prng prng;
    prng_init(&prng, 2);
    for (int i = 0; i < 5000; i++) {
        uint64_t value = prng_next(&prng) >> prng_below(&prng, 64);
        histogram_reset(histogram);
        histogram_record(histogram, value);
        histogram_record(histogram, UINT64_MAX); /* so that max does not hide the slot's value */
        uint64_t seen = histogram_quantile(histogram, 0.5);
        cr_assert_geq(seen, value);
        cr_assert_leq((double)(seen - value), (double)value * 0.008);
    }
    free(histogram);
}

Test(histogram, quantiles_agree_with_sorting)
{
    enum { COUNT = 20001 };
    struct histogram *histogram = calloc(1, sizeof *histogram);
    struct prng prng;
    prng_init(&prng, 3);
    uint64_t *values = malloc(COUNT * sizeof *values);
    for (int i = 0; i < COUNT; i++) {
        values[i] = prng_below(&prng, 1000) * prng_below(&prng, 1000) + 1;
        histogram_record(histogram, values[i]);
    }
    for (int i = 1; i < COUNT; i++) { /* insertion into buckets would do; this is enough */
        uint64_t value = values[i];
        int place = i;
        while (place > 0 && values[place - 1] > value) {
            values[place] = values[place - 1];
            place--;
        }
        values[place] = value;
    }
    const double quantiles[] = {0.001, 0.25, 0.5, 0.9, 0.99, 0.999, 1};
    for (size_t i = 0; i < sizeof quantiles / sizeof *quantiles; i++) {
        double exact = quantiles[i] * COUNT;
        uint64_t rank = (uint64_t)exact;
        if ((double)rank < exact) rank++;
        uint64_t wanted = values[rank - 1], seen = histogram_quantile(histogram, quantiles[i]);
        cr_assert_geq(seen, wanted);
        cr_assert_leq((double)seen, (double)wanted * 1.008);
    }
    free(values);
    free(histogram);
}

Test(histogram, merged_is_as_recorded_together)
{
    struct histogram *parts = calloc(3, sizeof *parts);
    for (uint64_t i = 0; i < 1000; i++) {
        histogram_record(&parts[i % 2], i * i);
        histogram_record(&parts[2], i * i);
    }
    histogram_merge(&parts[0], &parts[1]);
    cr_assert_arr_eq((uint8_t *)&parts[0], (uint8_t *)&parts[2], sizeof *parts);
    histogram_reset(&parts[1]);
    histogram_merge(&parts[0], &parts[1]);
    cr_assert_arr_eq((uint8_t *)&parts[0], (uint8_t *)&parts[2], sizeof *parts);
    histogram_record_many(&parts[1], 5, 3);
    histogram_record_many(&parts[1], 9, 0);
    cr_assert_eq(parts[1].count, 3);
    cr_assert_eq(parts[1].sum, 15);
    cr_assert_eq(parts[1].max, 5);
    free(parts);
}

Test(histogram, takes_the_largest_value)
{
    struct histogram *histogram = calloc(1, sizeof *histogram);
    histogram_record(histogram, UINT64_MAX);
    histogram_record(histogram, 0);
    cr_assert_eq(histogram_quantile(histogram, 1), UINT64_MAX);
    cr_assert_eq(histogram->min, 0);
    free(histogram);
}
