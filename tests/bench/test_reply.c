#include "bench/reply.h"

#include <criterion/criterion.h>
#include <stdlib.h>

/* Feeds `text` in pieces of `piece` bytes, as a socket would, and returns how the last reply ended. */
static enum reply_result feed(const char *text, size_t piece, struct reply *reply, int *replies)
{
    struct reply_parser parser = {0};
    size_t size = strlen(text);
    size_t from = 0;
    enum reply_result result = REPLY_MORE;
    *replies = 0;
    for (size_t upto = piece < size ? piece : size;;) {
        while (from < upto) {
            size_t consumed = 0;
            result = reply_parse(&parser, bytes_of(text + from, upto - from), &consumed, reply);
            from += consumed;
            if (result == REPLY_BROKEN) return result;
            if (result == REPLY_MORE) break;
            (*replies)++;
        }
        if (upto == size) break;
        upto = upto + piece < size ? upto + piece : size;
    }
    return from == size && reply_idle(&parser) ? REPLY_DONE : REPLY_MORE;
}

static struct reply only(const char *text)
{
    struct reply first = {0};
    for (size_t piece = 1; piece <= strlen(text); piece++) {
        struct reply reply = {0};
        int replies;
        cr_assert_eq(feed(text, piece, &reply, &replies), REPLY_DONE, "pieces of %zu", piece);
        cr_assert_eq(replies, 1, "pieces of %zu", piece);
        if (piece == 1) {
            first = reply;
        }
        cr_assert_eq(first.type, reply.type);
        cr_assert_eq(first.number, reply.number);
        cr_assert_eq(first.bytes, reply.bytes);
        cr_assert_eq(first.nulls, reply.nulls);
        cr_assert_eq(first.strings, reply.strings);
    }
    return first;
}

Test(reply, strings_are_counted_and_skipped)
{
    struct reply reply = only("$5\r\nhello\r\n");
    cr_assert_eq(reply.type, '$');
    cr_assert_eq(reply.number, 5);
    cr_assert_eq(only("$0\r\n\r\n").number, 0);
    cr_assert_eq(only("$2\r\n\r\n\r\n").number, 2);
}

Test(reply, a_body_may_look_like_a_reply)
{
    cr_assert_eq(only("$6\r\n+OK\r\n\n\r\n").number, 6);
}

Test(reply, nulls_of_both_versions_are_nulls)
{
    cr_assert_eq(only("$-1\r\n").type, '_');
    cr_assert_eq(only("*-1\r\n").type, '_');
    cr_assert_eq(only("_\r\n").type, '_');
}

Test(reply, lines_and_integers_are_read)
{
    cr_assert_eq(only("+OK\r\n").type, '+');
    cr_assert_eq(only(":-42\r\n").number, -42);
    cr_assert_eq(only("-ERR no\r\n").type, '-');
    cr_assert_eq(only(",1.5\r\n").type, ',');
    cr_assert_eq(only("#t\r\n").type, '#');
}

Test(reply, the_text_of_an_error_is_given)
{
    struct reply_parser parser = {0};
    struct reply reply;
    size_t consumed;
    const char *text = "-LOADING wait\r\n+next";
    cr_assert_eq(reply_parse(&parser, bytes_of_text(text), &consumed, &reply), REPLY_DONE);
    cr_assert_eq(consumed, 15);
    cr_assert(bytes_equal(reply.text, bytes_of_text("LOADING wait")));
}

Test(reply, arrays_count_their_strings_and_nulls)
{
    struct reply reply = only("*4\r\n$3\r\nabc\r\n$-1\r\n:7\r\n$2\r\nxy\r\n");
    cr_assert_eq(reply.type, '*');
    cr_assert_eq(reply.number, 4);
    cr_assert_eq(reply.strings, 2);
    cr_assert_eq(reply.nulls, 1);
    cr_assert_eq(reply.bytes, 5);
    cr_assert_eq(only("*0\r\n").number, 0);
}

Test(reply, trees_of_resp3_end_where_they_should)
{
    struct reply reply =
        only("%2\r\n+server\r\n$5\r\nredis\r\n+modules\r\n*2\r\n*0\r\n~1\r\n:1\r\n");
    cr_assert_eq(reply.type, '%');
    cr_assert_eq(reply.number, 2);
}

Test(reply, a_push_is_dropped_and_an_attribute_is_skipped)
{
    cr_assert_eq(only(">2\r\n+invalidate\r\n*1\r\n$1\r\na\r\n:5\r\n").number, 5);
    struct reply reply = only("|1\r\n+ttl\r\n:3600\r\n$3\r\nabc\r\n");
    cr_assert_eq(reply.type, '$');
    cr_assert_eq(reply.number, 3);
}

Test(reply, several_replies_come_one_by_one)
{
    for (size_t piece = 1; piece < 20; piece++) {
        struct reply reply;
        int replies;
        cr_assert_eq(
            feed("+OK\r\n$1\r\na\r\n:1\r\n*1\r\n+x\r\n", piece, &reply, &replies), REPLY_DONE);
        cr_assert_eq(replies, 4);
    }
}

Test(reply, what_is_no_reply_is_broken)
{
    static const char *const texts[] = {"HTTP/1.1 400\r\n", "$abc\r\n", "$-2\r\n", ":\r\n", "+a\n",
        "$3\r\nabcd\r\n", "*99999999999999999999\r\n", "\r\n"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct reply reply;
        int replies;
        cr_assert_eq(feed(texts[i], 1000, &reply, &replies), REPLY_BROKEN, "%s", texts[i]);
    }
}

Test(reply, a_line_without_end_is_broken_at_the_limit)
{
    struct reply_parser parser = {0};
    struct reply reply;
    size_t consumed;
    size_t size = REPLY_LINE_MAX + 2;
    char *text = malloc(size);
    memset(text, 'a', size);
    text[0] = '+';
    cr_assert_eq(reply_parse(&parser, bytes_of(text, size), &consumed, &reply), REPLY_BROKEN);
    cr_assert_eq(reply_parse(&parser, bytes_of(text, size - 2), &consumed, &reply), REPLY_MORE);
    free(text);
}
