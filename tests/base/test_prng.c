#include <criterion/criterion.h>
#include <signal.h>

#include "base/prng.h"

Test(prng, the_seed_decides_everything)
{
    struct prng one, same, other;
    prng_init(&one, 42);
    prng_init(&same, 42);
    prng_init(&other, 43);
    int equal = 0;
    for (int i = 0; i < 1000; i++) {
        uint64_t value = prng_next(&one);
        cr_assert_eq(value, prng_next(&same));
        equal += value == prng_next(&other);
    }
    cr_assert_eq(equal, 0);
}

/* Computed from the published algorithms (splitmix64 for the state, xoshiro256**). */
Test(prng, gives_the_published_sequence)
{
    struct prng prng = {.s = {1, 2, 3, 4}};
    const uint64_t wanted[] = {11520, 0, 1509978240, 1215971899390074240};
    for (int i = 0; i < 4; i++)
        cr_assert_eq(prng_next(&prng), wanted[i]);
    prng_init(&prng, 0);
    cr_assert_eq(prng.s[0], 0xe220a8397b1dcdafu);
    cr_assert_eq(prng.s[1], 0x6e789e6aa1b965f4u);
}

Test(prng, below_stays_below_and_reaches_all)
{
    struct prng prng;
    prng_init(&prng, 1);
    int seen[10] = {0};
    for (int i = 0; i < 100000; i++)
        seen[prng_below(&prng, 10)]++;
    for (int i = 0; i < 10; i++) {
        cr_assert_gt(seen[i], 9500);
        cr_assert_lt(seen[i], 10500);
    }
    for (int i = 0; i < 100; i++)
        cr_assert_eq(prng_below(&prng, 1), 0);
}

Test(prng, doubles_are_in_the_unit_interval)
{
    struct prng prng;
    prng_init(&prng, 1);
    double sum = 0;
    for (int i = 0; i < 100000; i++) {
        double value = prng_double(&prng);
        cr_assert_geq(value, 0);
        cr_assert_lt(value, 1);
        sum += value;
    }
    cr_assert_float_eq(sum / 100000, 0.5, 0.01);
}

Test(prng, chances_come_true_as_often_as_said)
{
    struct prng prng;
    prng_init(&prng, 1);
    int hits = 0;
    for (int i = 0; i < 90000; i++)
        hits += prng_chance(&prng, 1, 9);
    cr_assert_gt(hits, 9500);
    cr_assert_lt(hits, 10500);
    cr_assert(prng_chance(&prng, 5, 5));
    cr_assert_not(prng_chance(&prng, 0, 5));
}

Test(prng, nothing_below_zero_is_a_bug, .signal = SIGABRT)
{
    struct prng prng;
    prng_init(&prng, 1);
    (void)prng_below(&prng, 0);
}
