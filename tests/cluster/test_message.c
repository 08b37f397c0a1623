#include <criterion/criterion.h>

#include "cluster/message.h"

Test(message, what_was_added_comes_out_in_order)
{
    struct buffer out = {0};
    for (uint32_t i = 0; i < 100; i++) {
        uint8_t *body = message_add(&out, (uint16_t)(i + 1), i * 7, i);
        cr_assert_not_null(body);
        memset(body, (int)i, i);
    }
    cr_assert_eq(out.size % 8, 0);
    struct bytes rest = buffer_view(&out);
    struct message message;
    for (uint32_t i = 0; i < 100; i++) {
        cr_assert_eq(message_next(&rest, &message), OK);
        cr_assert_eq(message.type, i + 1);
        cr_assert_eq(message.group, i * 7);
        cr_assert_eq(message.flags, 0);
        cr_assert_eq(message.body.size, i);
        cr_assert_eq((size_t)(message.body.at - out.at) % 8, 0);
        for (uint32_t k = 0; k < i; k++)
            cr_assert_eq(message.body.at[k], i);
    }
    cr_assert_eq(message_next(&rest, &message), ERR_NOT_FOUND);
    buffer_deinit(&out);
}

Test(message, a_body_may_be_built_piece_by_piece)
{
    struct buffer out = {0};
    size_t mark = message_begin(&out, 3, 9);
    cr_assert_eq(buffer_append(&out, "hello ", 6), OK);
    cr_assert_eq(buffer_append(&out, "world", 5), OK);
    cr_assert_eq(message_end(&out, mark), OK);
    mark = message_begin(&out, 4, 10);
    cr_assert_eq(message_end(&out, mark), OK);
    struct bytes rest = buffer_view(&out);
    struct message message;
    cr_assert_eq(message_next(&rest, &message), OK);
    cr_assert(bytes_equal(message.body, bytes_of_text("hello world")));
    cr_assert_eq(message_next(&rest, &message), OK);
    cr_assert_eq(message.type, 4);
    cr_assert_eq(message.body.size, 0);
    cr_assert_eq(rest.size, 0);
    buffer_deinit(&out);
}

Test(message, a_message_that_found_no_memory_leaves_nothing)
{
    struct buffer out = {0};
    cr_assert_not_null(message_add(&out, 1, 1, 3));
    size_t before = out.size;
    size_t mark = message_begin(&out, 2, 2);
    out.failed = true;
    cr_assert_eq(message_end(&out, mark), ERR_NOMEM);
    cr_assert_eq(out.size, before);
    buffer_deinit(&out);
}

/* Every cut and every flipped bit is refused or yields messages that lie inside the bytes given. */
Test(message, damaged_bytes_never_reach_outside)
{
    struct buffer out = {0};
    for (uint32_t i = 0; i < 5; i++)
        cr_assert_not_null(message_add(&out, 1, 2, i * 5));
    for (size_t cut = 0; cut <= out.size; cut++) {
        uint8_t *copy = malloc(cut + 1); /* of its exact size, for the address sanitizer */
        memcpy(copy, out.at, cut);
        struct bytes rest = bytes_of(copy, cut);
        struct message message;
        enum err result;
        while ((result = message_next(&rest, &message)) == OK) {
            cr_assert(message.body.at + message.body.size <= copy + cut);
        }
        cr_assert(result == ERR_CORRUPT || rest.size == 0);
        free(copy);
    }
    for (size_t bit = 0; bit < out.size * 8; bit++) {
        out.at[bit / 8] ^= (uint8_t)(1u << bit % 8);
        struct bytes rest = buffer_view(&out);
        struct message message;
        while (message_next(&rest, &message) == OK) {
            cr_assert(message.body.at + message.body.size <= out.at + out.size);
        }
        out.at[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    buffer_deinit(&out);
}

Test(message, what_is_no_message_is_refused)
{
    struct message message;
    uint8_t raw[24] = {0};
    struct bytes rest = bytes_of(raw, sizeof raw);
    cr_assert_eq(message_next(&rest, &message), ERR_CORRUPT, "a message has a type");
    raw[0] = 1;
    raw[8] = 9;
    cr_assert_eq(message_next(&rest, &message), ERR_CORRUPT, "longer than what is there");
    raw[8] = 7;
    raw[23] = 1;
    cr_assert_eq(message_next(&rest, &message), ERR_CORRUPT, "padding is zero");
    raw[23] = 0;
    raw[12] = 1;
    cr_assert_eq(message_next(&rest, &message), ERR_CORRUPT, "the reserved field is zero");
    memset(raw + 8, 0xff, 4);
    raw[12] = 0;
    cr_assert_eq(message_next(&rest, &message), ERR_CORRUPT, "lengths do not wrap");
    cr_assert_eq(rest.size, sizeof raw);
}
