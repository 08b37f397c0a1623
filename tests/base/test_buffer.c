#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>

#include "base/buffer.h"
#include "base/prng.h"

Test(buffer, zeroed_memory_is_an_empty_buffer)
{
    struct buffer buffer = {0};
    cr_assert_eq(buffer_view(&buffer).size, 0);
    buffer_consume(&buffer, 0);
    buffer_reset(&buffer, 0);
    buffer_deinit(&buffer);
    cr_assert_eq(buffer_append(&buffer, "x", 1), OK, "usable after deinit");
    buffer_deinit(&buffer);
}

Test(buffer, gives_back_what_was_appended_in_order)
{
    struct buffer buffer = {0};
    struct prng prng;
    prng_init(&prng, 4);
    uint8_t in = 0, out = 0, bytes[700];
    size_t live = 0;
    for (int round = 0; round < 3000; round++) {
        size_t more = (size_t)prng_below(&prng, sizeof bytes);
        for (size_t i = 0; i < more; i++)
            bytes[i] = in++;
        if (prng_chance(&prng, 1, 2)) {
            cr_assert_eq(buffer_append(&buffer, bytes, more), OK);
        } else {
            uint8_t *at = buffer_reserve(&buffer, more + 100);
            memcpy(at, bytes, more);
            buffer_wrote(&buffer, more);
        }
        live += more;
        size_t less = (size_t)prng_below(&prng, live + 1);
        struct bytes view = buffer_view(&buffer);
        cr_assert_eq(view.size, live);
        for (size_t i = 0; i < less; i++)
            cr_assert_eq(view.at[i], out++);
        buffer_consume(&buffer, less);
        live -= less;
    }
    buffer_deinit(&buffer);
}

Test(buffer, consumed_space_is_used_again)
{
    struct buffer buffer = {0};
    char bytes[100] = {0};
    for (int i = 0; i < 100000; i++) {
        cr_assert_eq(buffer_append(&buffer, bytes, sizeof bytes), OK);
        if (i > 0) buffer_consume(&buffer, sizeof bytes);
    }
    cr_assert_leq(buffer.capacity, 4096);
    buffer_deinit(&buffer);
}

Test(buffer, printf_appends_text_without_its_end)
{
    struct buffer buffer = {0};
    cr_assert_eq(buffer_printf(&buffer, "%s=%d", "a", 5), OK);
    cr_assert_eq(buffer_printf(&buffer, ";%0200d", 7), OK);
    cr_assert_eq(buffer_view(&buffer).size, 3 + 201);
    cr_assert(bytes_have_prefix(buffer_view(&buffer), bytes_of_text("a=5;00")));
    buffer_deinit(&buffer);
}

Test(buffer, reset_keeps_little_memory_and_drops_much)
{
    struct buffer buffer = {0};
    cr_assert_not_null(buffer_reserve(&buffer, 1000));
    buffer_wrote(&buffer, 10);
    buffer_reset(&buffer, 1 << 20);
    cr_assert_not_null(buffer.at);
    cr_assert_eq(buffer_view(&buffer).size, 0);
    cr_assert_not_null(buffer_reserve(&buffer, 5000));
    buffer_reset(&buffer, 1000);
    cr_assert_null(buffer.at);
}

Test(buffer, an_impossible_size_is_refused)
{
    struct buffer buffer = {0};
    cr_assert_eq(buffer_append(&buffer, "abc", 3), OK);
    cr_assert_null(buffer_reserve(&buffer, SIZE_MAX - 8));
    cr_assert(bytes_equal(buffer_view(&buffer), bytes_of_text("abc")));
    buffer_deinit(&buffer);
}

Test(buffer, consuming_more_than_there_is_is_a_bug, .signal = SIGABRT)
{
    struct buffer buffer = {0};
    buffer_consume(&buffer, 1);
}
