#include "server/forward_wire.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

/* What goes between nodes comes back as it was, and nothing else is taken. */

Test(forward_wire, arguments_come_back)
{
    struct bytes argv[] = {bytes_of_text("SET"), bytes_of_text(""), bytes_of("a\0b", 3)};
    struct buffer body = {0};
    forward_put_head(&body, FORWARD_COMMAND);
    forward_put_arguments(&body, 3, argv);
    struct forward_reader reader = {.rest = buffer_view(&body)};
    struct forward_arguments arguments = {0};
    cr_assert_eq(forward_get_head(&reader), FORWARD_COMMAND);
    cr_assert(forward_get_arguments(&reader, &arguments));
    cr_assert_eq(arguments.argc, 3);
    for (int i = 0; i < 3; i++)
        cr_assert(bytes_equal(arguments.argv[i], argv[i]));
    cr_assert(forward_at_end(&reader));
    forward_arguments_deinit(&arguments);
    buffer_deinit(&body);
}

Test(forward_wire, every_cut_is_noticed)
{
    struct bytes argv[] = {bytes_of_text("SET"), bytes_of_text("key"), bytes_of_text("value")};
    struct buffer body = {0};
    forward_put_arguments(&body, 3, argv);
    struct forward_arguments arguments = {0};
    for (size_t size = 0; size < body.size; size++) {
        struct forward_reader reader = {.rest = bytes_of(body.at, size)};
        cr_assert_not(forward_get_arguments(&reader, &arguments), "cut at %zu", size);
        cr_assert(reader.failed);
        cr_assert_eq(forward_get_u64(&reader), 0);
        cr_assert_not(forward_at_end(&reader));
    }
    forward_arguments_deinit(&arguments);
    buffer_deinit(&body);
}

Test(forward_wire, a_count_that_the_body_cannot_hold_costs_no_memory)
{
    struct buffer body = {0};
    forward_put_u32(&body, 1 << 19);
    forward_put_text(&body, bytes_of_text("x"));
    struct forward_reader reader = {.rest = buffer_view(&body)};
    struct forward_arguments arguments = {0};
    cr_assert_not(forward_get_arguments(&reader, &arguments));
    cr_assert_null(arguments.argv);
    buffer_deinit(&body);
}

Test(forward_wire, other_versions_and_kinds_are_refused)
{
    const uint8_t bodies[][2] = {{0, 1}, {2, 1}, {1, 0}, {1, 11}, {255, 255}};
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        struct forward_reader reader = {.rest = bytes_of(bodies[i], 2)};
        cr_assert_eq((int)forward_get_head(&reader), 0);
    }
}

Test(forward_wire, a_request_to_a_key_comes_back)
{
    struct forward_key key = {.method = FORWARD_PUT,
        .bucket = 7,
        .key = bytes_of_text("k"),
        .has_if_match = true,
        .if_match = bytes_of_text("\"3\""),
        .ttl_ms = 99,
        .client = bytes_of_text("me"),
        .sequence = 5,
        .body = bytes_of_text("value")};
    struct forward_key back = {0};
    struct buffer body = {0};
    forward_put_key(&body, &key);
    struct forward_reader reader = {.rest = buffer_view(&body)};
    forward_get_key(&reader, &back);
    cr_assert(forward_at_end(&reader));
    cr_assert_eq(back.method, FORWARD_PUT);
    cr_assert_eq(back.bucket, 7);
    cr_assert(back.has_if_match);
    cr_assert_not(back.has_if_none_match);
    cr_assert(bytes_equal(back.if_match, key.if_match));
    cr_assert_eq(back.ttl_ms, 99);
    cr_assert(bytes_equal(back.client, key.client));
    cr_assert_eq(back.sequence, 5);
    cr_assert(bytes_equal(back.body, key.body));
    for (size_t size = 0; size < body.size; size++) {
        reader = (struct forward_reader){.rest = bytes_of(body.at, size)};
        forward_get_key(&reader, &back);
        cr_assert_not(forward_at_end(&reader));
    }
    buffer_deinit(&body);
}

/* Exactly once */

static struct bytes next_record(struct buffer *record, uint64_t sequence, const char *reply)
{
    struct buffer next = {0};
    struct bytes before = record->size == 0 ? (struct bytes){0} : buffer_view(record);
    once_remember(&next, before, sequence, bytes_of_text(reply));
    buffer_deinit(record);
    *record = next;
    return buffer_view(record);
}

Test(forward_wire, a_client_is_remembered_by_its_last_replies)
{
    struct buffer record = {0};
    struct bytes reply;
    cr_assert_eq(once_judge((struct bytes){0}, 1, &reply), ONCE_NEW);
    cr_assert_eq(once_judge((struct bytes){0}, 2, &reply), ONCE_EXPIRED);
    struct bytes bytes = {0};
    for (uint64_t i = 1; i <= 40; i++) {
        char text[16];
        snprintf(text, sizeof text, ":%d\r\n", (int)i);
        bytes = next_record(&record, i, text);
        cr_assert_eq(once_judge(bytes, i, &reply), ONCE_REPEATED);
        cr_assert(bytes_equal(reply, bytes_of_text(text)));
        cr_assert_eq(once_judge(bytes, i + 1, &reply), ONCE_NEW);
    }
    cr_assert_eq(once_judge(bytes, 40 - ONCE_WINDOW + 1, &reply), ONCE_REPEATED);
    cr_assert_eq(once_judge(bytes, 40 - ONCE_WINDOW, &reply), ONCE_OLD);
    cr_assert_eq(once_judge(bytes, 1, &reply), ONCE_OLD);
    buffer_deinit(&record);
}

Test(forward_wire, a_reply_that_is_too_large_to_keep_is_not_run_again_for_it)
{
    char *large = malloc(ONCE_REPLY_MAX + 2);
    memset(large, 'x', ONCE_REPLY_MAX + 1);
    large[ONCE_REPLY_MAX + 1] = '\0';
    struct buffer record = {0};
    struct bytes reply;
    struct bytes bytes = next_record(&record, 1, large);
    cr_assert_lt(bytes.size, 100);
    cr_assert_eq(once_judge(bytes, 1, &reply), ONCE_OLD);
    buffer_deinit(&record);
    free(large);
}

Test(forward_wire, a_damaged_record_never_makes_a_write_run_twice)
{
    struct buffer record = {0};
    struct bytes reply;
    for (uint64_t i = 1; i <= 3; i++)
        (void)next_record(&record, i, ":1\r\n");
    for (size_t size = 9; size < record.size; size++) {
        enum once_verdict verdict = once_judge(bytes_of(record.at, size), 2, &reply);
        cr_assert(verdict == ONCE_OLD || verdict == ONCE_REPEATED, "cut at %zu", size);
    }
    buffer_deinit(&record);
}
