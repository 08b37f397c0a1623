#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>

#include "cluster/map/map.h"

Test(map, slots_are_those_of_redis_cluster)
{
    /* CRC16/XMODEM of "123456789" is 0x31c3, below 16384 */
    cr_assert_eq(map_slot(bytes_of_text("123456789")), 0x31c3);
    /* CLUSTER KEYSLOT of Redis 7 */
    cr_assert_eq(map_slot(bytes_of_text("foo")), 12182);
    cr_assert_eq(map_slot(bytes_of_text("bar")), 5061);
    cr_assert_eq(map_slot(bytes_of_text("hello")), 866);
    cr_assert_eq(map_slot(bytes_of_text("")), 0);
}

Test(map, a_hash_tag_decides_alone)
{
    uint16_t user = map_slot(bytes_of_text("user1000"));
    cr_assert_eq(map_slot(bytes_of_text("{user1000}.following")), user);
    cr_assert_eq(map_slot(bytes_of_text("a{user1000}b{other}")), user, "the first tag counts");
    cr_assert_eq(map_slot(bytes_of_text("foo{bar}")), map_slot(bytes_of_text("bar")));
}

Test(map, what_is_no_hash_tag_hashes_whole)
{
    /* the corner cases of the Redis Cluster specification */
    cr_assert_neq(map_slot(bytes_of_text("foo{}{bar}")), map_slot(bytes_of_text("bar")));
    cr_assert_eq(map_slot(bytes_of_text("foo{{bar}}zap")), map_slot(bytes_of_text("{bar")));
    cr_assert_eq(map_slot(bytes_of_text("foo{bar}{zap}")), map_slot(bytes_of_text("bar")));
    cr_assert_neq(map_slot(bytes_of_text("{bar")), map_slot(bytes_of_text("bar")));
    cr_assert_neq(map_slot(bytes_of_text("bar}")), map_slot(bytes_of_text("bar")));
    cr_assert_neq(map_slot(bytes_of_text("}{bar}")), map_slot(bytes_of_text("}{bar")));
    cr_assert_eq(map_slot(bytes_of_text("foo{")), map_slot(bytes_of("foo{", 4)));
    cr_assert_eq(
        map_slot(bytes_of("{\0}x", 4)), map_slot(bytes_of("\0", 1)), "zeros are bytes");
}

Test(map, ranges_are_powers_of_two)
{
    cr_assert(map_ranges_valid(1));
    cr_assert(map_ranges_valid(64));
    cr_assert(map_ranges_valid(16384));
    cr_assert_not(map_ranges_valid(0));
    cr_assert_not(map_ranges_valid(3));
    cr_assert_not(map_ranges_valid(32768));
}

Test(map, ranges_are_equal_arcs_counted_from_one)
{
    enum { RANGES = 64, KEYS = 64000 };
    unsigned counts[RANGES + 1] = {0};
    for (unsigned i = 0; i < KEYS; i++) {
        char key[24];
        int size = snprintf(key, sizeof key, "key:%u", i);
        struct bytes bytes = bytes_of(key, (size_t)size);
        uint16_t range = map_range(bytes, RANGES);
        cr_assert_eq(range, map_slot(bytes) / (MAP_SLOTS / RANGES) + 1);
        cr_assert_eq(map_range(bytes, 1), 1);
        cr_assert_eq(map_range(bytes, MAP_RANGES_MAX), map_slot(bytes) + 1);
        counts[range]++;
    }
    cr_assert_eq(counts[0], 0, "range 0 is the system's");
    for (unsigned range = 1; range <= RANGES; range++) {
        cr_assert_gt(counts[range], KEYS / RANGES / 2);
        cr_assert_lt(counts[range], KEYS / RANGES * 2);
    }
}

Test(map, an_illegal_number_of_ranges_is_a_bug, .signal = SIGABRT)
{
    (void)map_range(bytes_of_text("a"), 3);
}
