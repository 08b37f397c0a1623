#include "server/glob.h"

#include <criterion/criterion.h>
#include <stdlib.h>

static bool match(const char *pattern, const char *text)
{
    return glob_match(bytes_of_text(pattern), bytes_of_text(text), false);
}

Test(glob, literals_match_themselves_only)
{
    cr_assert(match("abc", "abc"));
    cr_assert_not(match("abc", "abcd"));
    cr_assert_not(match("abcd", "abc"));
    cr_assert_not(match("abc", "aBc"));
    cr_assert(match("", ""));
    cr_assert_not(match("", "a"));
    cr_assert_not(match("a", ""));
}

Test(glob, a_star_takes_any_bytes_and_none)
{
    cr_assert(match("*", ""));
    cr_assert(match("*", "abc"));
    cr_assert(match("a*", "a"));
    cr_assert(match("a*c", "abbbc"));
    cr_assert_not(match("a*c", "abbbd"));
    cr_assert(match("*b*", "abc"));
    cr_assert(match("a**c", "ac"));
    cr_assert(match("*ab", "aab"));
    cr_assert(match("*aab*aab", "aaabxaaab"));
    cr_assert_not(match("*a*b", "b"));
}

Test(glob, a_question_mark_takes_exactly_one_byte)
{
    cr_assert(match("a?c", "abc"));
    cr_assert_not(match("a?c", "ac"));
    cr_assert_not(match("?", ""));
    cr_assert(match("*?", "x"));
    cr_assert(match("key:1??", "key:123"));
    cr_assert_not(match("key:1??", "key:1234"));
}

Test(glob, classes_match_members_ranges_and_negations)
{
    cr_assert(match("h[ae]llo", "hallo"));
    cr_assert_not(match("h[ae]llo", "hillo"));
    cr_assert(match("h[^e]llo", "hallo"));
    cr_assert_not(match("h[^e]llo", "hello"));
    cr_assert(match("h[a-c]llo", "hbllo"));
    cr_assert_not(match("h[a-c]llo", "hdllo"));
    cr_assert(match("[c-a]", "b"), "a range may be written backwards");
    cr_assert(match("[a\\]b]", "]"));
    cr_assert(match("[a-]", "^"), "a range ends at whatever stands there, the bracket too");
    cr_assert_not(match("[a-]", "-"));
    cr_assert(match("[ab", "a"), "an open class ends with the pattern");
    cr_assert_not(match("[ab", "c"));
    cr_assert_not(match("[]", "a"));
    cr_assert_not(match("[]a", "]"), "nothing is in an empty class");
    cr_assert(match("[^]", "a"));
    cr_assert(match("*[0-9]", "key7"));
}

Test(glob, a_backslash_makes_the_next_byte_literal)
{
    cr_assert(match("a\\*c", "a*c"));
    cr_assert_not(match("a\\*c", "abc"));
    cr_assert(match("\\[x\\]", "[x]"));
    cr_assert(match("\\?", "?"));
    cr_assert_not(match("\\?", "a"));
    cr_assert(match("a\\", "a\\"), "at the end it is itself");
}

Test(glob, case_is_folded_only_on_request)
{
    cr_assert(glob_match(bytes_of_text("MaxMem*"), bytes_of_text("maxmemory"), true));
    cr_assert(glob_match(bytes_of_text("[A-C]x"), bytes_of_text("bX"), true));
    cr_assert_not(glob_match(bytes_of_text("MaxMem*"), bytes_of_text("maxmemory"), false));
}

Test(glob, bytes_of_any_value_are_matched)
{
    cr_assert(glob_match(bytes_of("a\0*", 3), bytes_of("a\0\xff\n", 4), false));
    cr_assert_not(glob_match(bytes_of("a\0b", 3), bytes_of("a", 1), false));
}

/* A recursive matcher takes longer than the age of the universe for this. */
Test(glob, many_stars_cost_no_more_than_pattern_times_text, .timeout = 5)
{
    char text[401], pattern[202];
    memset(text, 'a', sizeof text);
    text[400] = 0;
    for (size_t i = 0; i < 200; i += 2) {
        pattern[i] = 'a';
        pattern[i + 1] = '*';
    }
    pattern[200] = 'b';
    pattern[201] = 0;
    for (int i = 0; i < 1000; i++)
        cr_assert_not(match(pattern, text));
}

Test(glob, work_is_capped_whatever_the_pattern, .timeout = 5)
{
    enum { SIZE = 1 << 20 };
    uint8_t *pattern = malloc(SIZE), *text = malloc(SIZE);
    memset(pattern, 'a', SIZE);
    memset(text, 'a', SIZE);
    pattern[0] = '*';
    pattern[SIZE / 2] = 'b';
    cr_assert_not(glob_match(bytes_of(pattern, SIZE), bytes_of(text, SIZE), false));
    free(pattern);
    free(text);
}

/* The obvious recursive definition, on short inputs drawn by counting. */
static bool naive(const char *pattern, const char *text)
{
    if (*pattern == 0) return *text == 0;
    if (*pattern == '*')
        return naive(pattern + 1, text) || (*text != 0 && naive(pattern, text + 1));
    if (*text == 0) return false;
    return (*pattern == '?' || *pattern == *text) && naive(pattern + 1, text + 1);
}

Test(glob, agrees_with_the_obvious_definition_on_all_short_inputs)
{
    static const char signs[] = "ab*?";
    static const char letters[] = "ab";
    char pattern[8], text[8];
    for (int p = 0; p < 4 * 4 * 4 * 4 * 4; p++) {
        for (int i = 0, rest = p; i < 5; i++, rest /= 4)
            pattern[i] = signs[rest % 4];
        pattern[5] = 0;
        for (int size = 0; size <= 6; size++) {
            for (int t = 0; t < 1 << size; t++) {
                for (int i = 0; i < size; i++)
                    text[i] = letters[(t >> i) & 1];
                text[size] = 0;
                cr_assert_eq(match(pattern, text), naive(pattern, text), "%s %s", pattern, text);
            }
        }
    }
}
