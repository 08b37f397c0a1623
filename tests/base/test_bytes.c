#include <criterion/criterion.h>
#include <signal.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/hash.h"

Test(bytes, order_is_that_of_memcmp_with_prefixes_first)
{
    const struct bytes ordered[] = {
        bytes_of(NULL, 0),
        bytes_of("\0", 1),
        bytes_of("\0\0", 2),
        bytes_of_text("a"),
        bytes_of_text("aa"),
        bytes_of_text("ab"),
        bytes_of_text("b"),
        bytes_of("\xff", 1),
    };
    enum { COUNT = sizeof ordered / sizeof *ordered };
    for (int i = 0; i < COUNT; i++) {
        for (int k = 0; k < COUNT; k++) {
            int order = bytes_compare(ordered[i], ordered[k]);
            cr_assert_eq((order > 0) - (order < 0), (i > k) - (i < k));
            cr_assert_eq(bytes_equal(ordered[i], ordered[k]), i == k);
        }
    }
}

Test(bytes, prefixes)
{
    struct bytes text = bytes_of_text("abc");
    cr_assert(bytes_have_prefix(text, bytes_of(NULL, 0)));
    cr_assert(bytes_have_prefix(text, bytes_of_text("ab")));
    cr_assert(bytes_have_prefix(text, text));
    cr_assert_not(bytes_have_prefix(text, bytes_of_text("abcd")));
    cr_assert_not(bytes_have_prefix(text, bytes_of_text("b")));
}

Test(bytes, scalars_are_stored_in_the_order_their_name_says)
{
    uint8_t at[9] = {0};
    store_u64(at + 1, 0x0102030405060708);
    cr_assert_eq(at[1], 8);
    cr_assert_eq(load_u64(at + 1), 0x0102030405060708);
    store_u64_be(at + 1, 0x0102030405060708);
    cr_assert_eq(at[1], 1);
    cr_assert_eq(load_u64_be(at + 1), 0x0102030405060708);
    store_u32(at + 1, 0x01020304);
    cr_assert_eq(at[1], 4);
    cr_assert_eq(load_u32(at + 1), 0x01020304);
    store_u16(at + 1, 0x0102);
    cr_assert_eq(at[1], 2);
    cr_assert_eq(load_u16(at + 1), 0x0102);
    store_u16_be(at + 1, 0x0102);
    cr_assert_eq(at[1], 1);
    cr_assert_eq(load_u16_be(at + 1), 0x0102);
}

Test(bytes, rounding_up)
{
    cr_assert_eq(round_up(0, 8), 0);
    cr_assert_eq(round_up(1, 8), 8);
    cr_assert_eq(round_up(8, 8), 8);
    cr_assert_eq(round_up(9, 4096), 4096);
}

Test(hash, is_xxh3_and_depends_on_every_input)
{
    cr_assert_eq(hash64(0, bytes_of("", 0)), 0x2d06800538d394c2u, "XXH3_64bits of nothing");
    cr_assert_neq(hash64(0, bytes_of_text("a")), hash64(1, bytes_of_text("a")));
    cr_assert_neq(hash64(0, bytes_of_text("a")), hash64(0, bytes_of_text("b")));
    cr_assert_neq(hash64(0, bytes_of("a", 1)), hash64(0, bytes_of("a\0", 2)));
}

Test(check, a_false_assertion_stops_the_process, .signal = SIGABRT)
{
    int one = 1;
    ASSERT(one == 2);
}

Test(check, an_implication_holds_unless_only_its_end_is_false)
{
    int yes = 1, no = 0;
    ASSERT_IF(no, no);
    ASSERT_IF(no, yes);
    ASSERT_IF(yes, yes);
}

Test(check, a_broken_implication_stops_the_process, .signal = SIGABRT)
{
    int yes = 1, no = 0;
    ASSERT_IF(yes, no);
}
