#include <criterion/criterion.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/prng.h"

Test(crc32c, matches_published_values)
{
    cr_assert_eq(crc32c(0, "123456789", 9), 0xe3069283);
    /* RFC 3720 B.4 */
    uint8_t at[32];
    memset(at, 0, sizeof at);
    cr_assert_eq(crc32c(0, at, sizeof at), 0x8a9136aa);
    memset(at, 0xff, sizeof at);
    cr_assert_eq(crc32c(0, at, sizeof at), 0x62a8ab43);
    for (int i = 0; i < 32; i++)
        at[i] = (uint8_t)i;
    cr_assert_eq(crc32c(0, at, sizeof at), 0x46dd794e);
    for (int i = 0; i < 32; i++)
        at[i] = (uint8_t)(31 - i);
    cr_assert_eq(crc32c(0, at, sizeof at), 0x113fdb5c);
}

/* bit by bit, from the definition */
static uint32_t slow(const uint8_t *at, size_t size)
{
    uint32_t crc = ~0u;
    for (size_t i = 0; i < size; i++) {
        crc ^= at[i];
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78u : 0);
    }
    return ~crc;
}

Test(crc32c, agrees_with_the_definition_at_any_size_and_alignment)
{
    uint8_t at[300];
    struct prng prng;
    prng_init(&prng, 1);
    for (size_t i = 0; i < sizeof at; i++)
        at[i] = (uint8_t)prng_next(&prng);
    for (size_t start = 0; start < 9; start++) {
        for (size_t size = 0; size < 280; size++)
            cr_assert_eq(crc32c(0, at + start, size), slow(at + start, size));
    }
}

Test(crc32c, can_be_continued)
{
    const char *text = "a text that is summed in two parts";
    size_t size = strlen(text);
    uint32_t whole = crc32c(0, text, size);
    for (size_t cut = 0; cut <= size; cut++)
        cr_assert_eq(crc32c(crc32c(0, text, cut), text + cut, size - cut), whole);
}
