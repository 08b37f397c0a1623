#include <criterion/criterion.h>
#include <stdlib.h>

#include "server/http_parse.h"

/* Feeds `text` in pieces of `step` bytes, as a connection would: what passed is taken off the front. */
struct fed {
    enum http_feed result;
    int status;
    size_t passed;
    size_t skipped;
};

static struct fed feed(const char *text, size_t size, size_t step)
{
    struct http_framing framing;
    struct fed fed = {.result = HTTP_FEED_MORE};
    size_t taken = 0;
    size_t shown = 0;
    http_framing_init(&framing, 1000);
    while (shown < size && fed.result == HTTP_FEED_MORE) {
        shown = size - shown < step ? size : shown + step;
        for (;;) {
            size_t skip;
            size_t pass;
            fed.result =
                http_framing_feed(&framing, bytes_of(text + taken, shown - taken), &skip, &pass);
            cr_assert(pass <= shown - taken && skip <= pass);
            taken += pass;
            fed.skipped += skip;
            if (fed.result != HTTP_FEED_MORE || skip == 0) break;
        }
    }
    fed.status = framing.status;
    fed.passed = taken;
    return fed;
}

static void expect(const char *text, enum http_feed result, int status, size_t passed)
{
    size_t size = strlen(text);
    for (size_t step = 1; step <= size; step++) {
        struct fed fed = feed(text, size, step);
        cr_assert_eq(fed.result, result, "step %zu: %s", step, text);
        if (result == HTTP_FEED_ERROR) cr_assert_eq(fed.status, status, "%d: %s", fed.status, text);
        if (result == HTTP_FEED_DONE) cr_assert_eq(fed.passed, passed, "%zu: %s", fed.passed, text);
    }
}

static void expect_whole(const char *text)
{
    expect(text, HTTP_FEED_DONE, 0, strlen(text));
}

#define HEAD "PUT /kv/a HTTP/1.1\r\nHost: localhost\r\n"

Test(http_framing, requests_end_where_their_length_says)
{
    expect_whole("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    expect_whole("GET / HTTP/1.0\r\n\r\n");
    expect_whole("\r\nGET / HTTP/1.0\r\n\r\n");
    expect_whole(HEAD "Content-Length: 5\r\n\r\nhello");
    expect_whole(HEAD "Content-Length:0\r\n\r\n");
    expect_whole(
        HEAD "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;x=y\r\n!\r\n0\r\nA: b\r\n\r\n");
    /* the next request is not part of this one */
    expect(HEAD "Content-Length: 2\r\n\r\nheGET / HT", HTTP_FEED_DONE, 0,
        strlen(HEAD "Content-Length: 2\r\n\r\nhe"));
}

Test(http_framing, nothing_of_a_head_passes_before_all_of_it)
{
    static const char text[] = HEAD "Content-Length: 5\r\n\r";
    struct fed fed = feed(text, sizeof text - 1, sizeof text - 1);
    cr_assert_eq(fed.result, HTTP_FEED_MORE);
    cr_assert_eq(fed.passed, 0);
}

Test(http_framing, what_could_be_read_in_two_ways_is_refused)
{
    static const char *const bad[] = {
        HEAD "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        HEAD "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        HEAD "Content-Length: 5\r\nContent-Length: 5\r\n\r\n",
        HEAD "Content-Length: 5,5\r\n\r\n",
        HEAD "Content-Length: +5\r\n\r\n",
        HEAD "Content-Length: 5 5\r\n\r\n",
        HEAD "Content-Length: 99999999999999999999\r\n\r\n",
        HEAD "Content-Length : 5\r\n\r\n",
        HEAD "Transfer-Encoding: gzip\r\n\r\n",
        HEAD "Transfer-Encoding: chunked, chunked\r\n\r\n",
        HEAD "Host: localhost\r\n\r\n",
        HEAD "X: a\r\n b\r\n\r\n",
        HEAD "X: a\nY: b\r\n\r\n",
        HEAD "X: a\rb\r\n\r\n",
        HEAD "X\r\n\r\n",
        HEAD "Transfer-Encoding: chunked\r\n\r\n0x1\r\n",
        HEAD "Transfer-Encoding: chunked\r\n\r\n1 \r\n",
        HEAD "Transfer-Encoding: chunked\r\n\r\n1\n",
        HEAD "Transfer-Encoding: chunked\r\n\r\n1\r\nab",
        HEAD "Transfer-Encoding: chunked\r\n\r\n1\r\na\rb",
        HEAD "Transfer-Encoding: chunked\r\n\r\n1\r\na\n",
        HEAD "Transfer-Encoding: chunked\r\n\r\n0\r\nHost: b\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET /\r\n",
        "GET / HTTP/1.1 \r\n",
        "GET  / HTTP/1.1\r\n",
        "GET /a#b HTTP/1.1\r\n",
        "GET a HTTP/1.1\r\n",
        "\r\n\r\nGET / HTTP/1.0\r\n\r\n",
        "*1\r\n$4\r\nPING\r\n",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        expect(bad[i], HTTP_FEED_ERROR, 400, 0);
    expect("GET / HTTP/2.0\r\n", HTTP_FEED_ERROR, 505, 0);
}

Test(http_framing, limits_have_their_own_status)
{
    static char text[60000];
    memset(text, 'x', sizeof text);
    memcpy(text, "GET /", 5);
    cr_assert_eq(feed(text, sizeof text, 1000).status, 414);
    memcpy(text, "GET / HTTP/1.1\r\nX: ", 19);
    cr_assert_eq(feed(text, sizeof text, 1000).status, 431);
    size_t size = 16;
    for (int i = 0; i < 101; i++, size += 6)
        memcpy(text + size, "A: b\r\n", 6);
    cr_assert_eq(feed(text, size, 100).status, 431);
    expect(HEAD "Content-Length: 1001\r\n\r\n", HTTP_FEED_ERROR, 413, 0);
    expect(HEAD "Transfer-Encoding: chunked\r\n\r\n3e9\r\n", HTTP_FEED_ERROR, 413, 0);
    expect_whole(HEAD "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
}

Test(http_framing, chunks_together_count_against_the_limit)
{
    char text[4096] = HEAD "Transfer-Encoding: chunked\r\n\r\n";
    size_t size = strlen(text);
    for (int i = 0; i < 101; i++, size += 15)
        memcpy(text + size, "a\r\n0123456789\r\n", 15);
    cr_assert_eq(feed(text, size, 7).status, 413);
}

static struct bytes of(const char *text)
{
    return bytes_of_text(text);
}

Test(http_target, forms_are_taken_apart)
{
    struct http_target target;
    cr_assert_eq(http_target_parse(of("/a/b?c=d?e"), &target), OK);
    cr_assert(bytes_equal(target.path, of("/a/b")) && bytes_equal(target.query, of("c=d?e")));
    cr_assert_eq(target.authority.size, 0);
    cr_assert_eq(http_target_parse(of("http://h:1/a"), &target), OK);
    cr_assert(bytes_equal(target.authority, of("h:1")) && bytes_equal(target.path, of("/a")));
    cr_assert_eq(http_target_parse(of("HTTP://h"), &target), OK);
    cr_assert(bytes_equal(target.path, of("/")));
    cr_assert_eq(http_target_parse(of("http://u@h/"), &target), ERR_INVALID);
    cr_assert_eq(http_target_parse(of("http:///"), &target), ERR_INVALID);
    cr_assert_eq(http_target_parse(of("a"), &target), ERR_INVALID);
    cr_assert_eq(http_target_parse(of(""), &target), ERR_INVALID);
}

static enum err decode(const char *text, bool plus, const char *expected, size_t size)
{
    uint8_t at[8];
    size_t got = 99;
    enum err err = http_percent_decode(of(text), plus, at, sizeof at, &got);
    if (err == OK) cr_assert(got == size && memcmp(at, expected, size) == 0, "%s", text);
    return err;
}

Test(http_percent, escapes_are_decoded_once)
{
    cr_assert_eq(decode("a%2Fb", false, "a/b", 3), OK);
    cr_assert_eq(decode("%25%32%46", false, "%2F", 3), OK);
    cr_assert_eq(decode("%00%fF", false, "\0\xff", 2), OK);
    cr_assert_eq(decode("a+b", false, "a+b", 3), OK);
    cr_assert_eq(decode("a+b%2B", true, "a b+", 4), OK);
    cr_assert_eq(decode("", false, "", 0), OK);
    cr_assert_eq(decode("12345678", false, "12345678", 8), OK);
    cr_assert_eq(decode("123456789", false, "", 0), ERR_TOO_LARGE);
    cr_assert_eq(decode("%", false, "", 0), ERR_INVALID);
    cr_assert_eq(decode("%4", false, "", 0), ERR_INVALID);
    cr_assert_eq(decode("%g0", false, "", 0), ERR_INVALID);
    cr_assert_eq(decode("a\nb", false, "", 0), ERR_INVALID);
}

Test(http_query, pairs_come_in_order)
{
    struct bytes rest = of("a=1&&b&c=x=y&");
    struct bytes name;
    struct bytes value;
    cr_assert(http_query_next(&rest, &name, &value));
    cr_assert(bytes_equal(name, of("a")) && bytes_equal(value, of("1")));
    cr_assert(http_query_next(&rest, &name, &value));
    cr_assert(bytes_equal(name, of("b")) && value.size == 0);
    cr_assert(http_query_next(&rest, &name, &value));
    cr_assert(bytes_equal(name, of("c")) && bytes_equal(value, of("x=y")));
    cr_assert(!http_query_next(&rest, &name, &value));
}

Test(http_decimal, only_digits_within_the_limit)
{
    uint64_t value;
    cr_assert(http_decimal(of("0"), 10, &value) && value == 0);
    cr_assert(http_decimal(of("10"), 10, &value) && value == 10);
    cr_assert(http_decimal(of("18446744073709551615"), UINT64_MAX, &value) && value == UINT64_MAX);
    cr_assert(!http_decimal(of("18446744073709551616"), UINT64_MAX, &value));
    cr_assert(!http_decimal(of("11"), 10, &value));
    cr_assert(!http_decimal(of("5"), 3, &value));
    cr_assert(!http_decimal(of(""), 10, &value));
    cr_assert(!http_decimal(of("+1"), 10, &value));
    cr_assert(!http_decimal(of("1 "), 10, &value));
}

/* 1: match, 0: no match, -1: not a list */
static int tags(const char *list, uint64_t version, bool weak)
{
    bool match;
    return http_tags_match(of(list), version, weak, &match) != OK ? -1 : match;
}

Test(http_tags, are_compared_as_versions)
{
    cr_assert_eq(tags("\"5\"", 5, false), 1);
    cr_assert_eq(tags("\"5\"", 6, false), 0);
    cr_assert_eq(tags("\"05\"", 5, false), 0);
    cr_assert_eq(tags("W/\"5\"", 5, false), 0);
    cr_assert_eq(tags("W/\"5\"", 5, true), 1);
    cr_assert_eq(tags("\"1\", \"5\" ,\"7\"", 5, false), 1);
    cr_assert_eq(tags("\"a,b\",\"5\"", 5, false), 1);
    cr_assert_eq(tags("*", 5, false), 1);
    cr_assert_eq(tags("*", 0, false), 0);
    cr_assert_eq(tags("\"0\"", 0, false), 0);
    cr_assert_eq(tags("5", 5, false), -1);
    cr_assert_eq(tags("\"5", 5, false), -1);
    cr_assert_eq(tags("\"5\" \"6\"", 5, false), -1);
    cr_assert_eq(tags("\"5\",", 5, false), -1);
    cr_assert_eq(tags(",\"5\"", 5, false), -1);
    cr_assert_eq(tags("", 5, false), -1);
}

static bool host(const char *text, const char *name, uint16_t port)
{
    struct bytes got;
    uint16_t got_port = 1;
    if (http_host_parse(of(text), &got, &got_port) != OK) return false;
    return bytes_equal(got, of(name)) && got_port == port;
}

Test(http_host, names_addresses_and_ports)
{
    struct bytes name;
    cr_assert(host("a.b-c_d", "a.b-c_d", 0));
    cr_assert(host("127.0.0.1:80", "127.0.0.1", 80));
    cr_assert(host("[::1]:65535", "::1", 65535));
    cr_assert(host("[::1]", "::1", 0));
    cr_assert(host("a:", "a", 0));
    static const char *const bad[] = {
        "", ":80", "a:65536", "a:x", "a b", "a/b", "a@b", "[::1", "[::1]x", "::1", "[g]"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        cr_assert(!host(bad[i], bad[i], 0), "%s", bad[i]);
    cr_assert_eq(http_origin_host(of("http://a:1"), &name), OK);
    cr_assert(bytes_equal(name, of("a:1")));
    cr_assert_eq(http_origin_host(of("https://a"), &name), OK);
    cr_assert_eq(http_origin_host(of("null"), &name), ERR_INVALID);
    cr_assert_eq(http_origin_host(of("http://a/"), &name), ERR_INVALID);
}

static void there_and_back(const char *text, size_t size, const char *encoded, bool url)
{
    struct buffer out = {0};
    uint8_t at[64];
    size_t got;
    cr_assert_eq(http_base64_append(&out, bytes_of(text, size), url), OK);
    cr_assert(bytes_equal(buffer_view(&out), of(encoded)), "%s", encoded);
    cr_assert_eq(http_base64_decode(of(encoded), at, sizeof at, &got), OK);
    cr_assert(got == size && memcmp(at, text, size) == 0, "%s", encoded);
    buffer_deinit(&out);
}

Test(http_base64, both_alphabets_there_and_back)
{
    there_and_back("", 0, "", false);
    there_and_back("f", 1, "Zg==", false);
    there_and_back("fo", 2, "Zm8=", false);
    there_and_back("foo", 3, "Zm9v", false);
    there_and_back("f", 1, "Zg", true);
    there_and_back("fo", 2, "Zm8", true);
    there_and_back("\xfb\xff\xfe", 3, "+//+", false);
    there_and_back("\xfb\xff\xfe", 3, "-__-", true);
    uint8_t at[4];
    size_t got;
    static const char *const bad[] = {"Z", "Zg=", "Z===", "Zh==", "Zm9", "Z m8", "Zg==Zg==", "!"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        cr_assert_eq(
            http_base64_decode(of(bad[i]), at, sizeof at, &got), ERR_INVALID, "%s", bad[i]);
    cr_assert_eq(http_base64_decode(of("Zm9vYmFy"), at, sizeof at, &got), ERR_TOO_LARGE);
}

Test(http_utf8, overlong_forms_and_surrogates_are_not_valid)
{
    cr_assert(http_utf8_valid(of("")));
    cr_assert(http_utf8_valid(of("a\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80")));
    static const char *const bad[] = {"\x80", "\xc0\x80", "\xc1\xbf", "\xe0\x80\x80",
        "\xed\xa0\x80", "\xf0\x80\x80\x80", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xc3",
        "\xe2\x82", "a\xff"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        cr_assert(!http_utf8_valid(of(bad[i])), "case %zu", i);
}

Test(http_json, strings_are_escaped)
{
    struct buffer out = {0};
    cr_assert_eq(http_json_string(&out, bytes_of("a\"\\\n\0\x7f\xc3\xa4\xff", 9)), OK);
    cr_assert(bytes_equal(
        buffer_view(&out), of("\"a\\\"\\\\\\u000a\\u0000\\u007f\xc3\xa4\xef\xbf\xbd\"")));
    buffer_deinit(&out);
}
