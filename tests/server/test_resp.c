#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#include "server/resp.h"

static const struct resp_limits usual = {
    .arguments_max = RESP_ARGUMENTS_MAX,
    .bulk_max = 16 << 20,
    .inline_max = RESP_INLINE_MAX,
    .command_max = 64 << 20,
};

/* Feeds `input` in pieces that end at the given sizes (and then all of it), as a connection would:
 * unconsumed bytes are given again, from another address each time. Writes what came out, one line a
 * result, into `report`. */
struct feeding {
    struct resp_parser parser;
    struct resp_limits limits;
    uint8_t *rest;
    size_t rest_size;
    struct buffer report;
    bool ended;
};

static void feeding_init(struct feeding *feeding)
{
    *feeding = (struct feeding){.limits = usual};
    resp_parser_init(&feeding->parser);
}

static void feeding_deinit(struct feeding *feeding)
{
    resp_parser_deinit(&feeding->parser);
    buffer_deinit(&feeding->report);
    free(feeding->rest);
}

static void report_command(struct feeding *feeding, uint32_t argc, const struct bytes *argv)
{
    buffer_printf(&feeding->report, "command");
    for (uint32_t i = 0; i < argc; i++)
        buffer_printf(&feeding->report, " [%.*s]", (int)argv[i].size, (const char *)argv[i].at);
    buffer_printf(&feeding->report, "\n");
}

static void feed(struct feeding *feeding, const void *at, size_t size)
{
    if (feeding->ended) return;
    /* an exact allocation at a new address: a view that was not moved, or goes too far, is found */
    uint8_t *input = malloc(feeding->rest_size + size + 1);
    if (feeding->rest_size > 0) memcpy(input, feeding->rest, feeding->rest_size);
    memcpy(input + feeding->rest_size, at, size);
    size_t total = feeding->rest_size + size, used = 0;
    input = realloc(input, total > 0 ? total : 1);
    for (bool more = true; more && !feeding->ended;) {
        size_t consumed;
        uint32_t argc;
        const struct bytes *argv;
        const char *error;
        switch (resp_parse(&feeding->parser, &feeding->limits, bytes_of(input + used, total - used),
            &consumed, &argc, &argv, &error)) {
        case RESP_MORE:
            more = false;
            break;
        case RESP_COMMAND:
            if (argc > 0) report_command(feeding, argc, argv);
            break;
        case RESP_REFUSED:
            buffer_printf(&feeding->report, "refused %s\n", error);
            break;
        case RESP_ERROR:
            buffer_printf(&feeding->report, "error %s\n", error);
            feeding->ended = true;
            consumed = 0;
            break;
        case RESP_FOREIGN:
            buffer_printf(&feeding->report, "foreign\n");
            feeding->ended = true;
            consumed = 0;
            break;
        }
        cr_assert_leq(consumed, total - used);
        used += consumed;
    }
    uint8_t *rest = malloc(total - used + 1);
    memcpy(rest, input + used, total - used);
    free(feeding->rest);
    free(input);
    feeding->rest = rest;
    feeding->rest_size = total - used;
}

static const char *report_text(struct feeding *feeding)
{
    buffer_printf(&feeding->report, "%c", 0);
    return (const char *)feeding->report.at;
}

static void expect(const void *input, size_t size, const char *wanted)
{
    struct feeding whole;
    feeding_init(&whole);
    feed(&whole, input, size);
    cr_expect_str_eq(report_text(&whole), wanted, "for %.*s", (int)size, (const char *)input);
    feeding_deinit(&whole);
    for (size_t cut = 1; cut < size && size < 1000; cut++) {
        struct feeding two;
        feeding_init(&two);
        feed(&two, input, cut);
        feed(&two, (const uint8_t *)input + cut, size - cut);
        cr_expect_str_eq(report_text(&two), wanted, "cut at %zu", cut);
        feeding_deinit(&two);
    }
    struct feeding dripped;
    feeding_init(&dripped);
    for (size_t i = 0; i < size && size < 1000; i++)
        feed(&dripped, (const uint8_t *)input + i, 1);
    if (size < 1000) cr_expect_str_eq(report_text(&dripped), wanted, "byte by byte");
    feeding_deinit(&dripped);
}

static void expect_text(const char *input, const char *wanted)
{
    expect(input, strlen(input), wanted);
}

Test(resp_parse, commands_are_found_wherever_they_are_cut)
{
    expect_text("*1\r\n$4\r\nPING\r\n", "command [PING]\n");
    expect_text(
        "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$11\r\nhello world\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n",
        "command [SET] [k] [hello world]\ncommand [GET] [k]\n");
    expect_text("*2\r\n$4\r\nECHO\r\n$0\r\n\r\n*1\r\n$4\r\nPING\r\n",
        "command [ECHO] []\ncommand [PING]\n");
    expect_text("*2\r\n$4\r\nECHO\r\n$4\r\n\r\n\r\n\r\nPING\r\n",
        "command [ECHO] [\r\n\r\n]\ncommand [PING]\n");
}

Test(resp_parse, empty_commands_are_passed_over)
{
    expect_text("\r\n*1\r\n$4\r\nPING\r\n", "command [PING]\n");
    expect_text("\n\n   \r\n*0\r\n*-1\r\n*-10\r\nPING\r\n", "command [PING]\n");
}

Test(resp_parse, inline_commands_know_quotes_and_escapes)
{
    expect_text("PING\r\n", "command [PING]\n");
    expect_text("set  key\tvalue \n", "command [set] [key] [value]\n");
    expect_text("set \"a b\" 'c d'\r\n", "command [set] [a b] [c d]\n");
    expect_text(
        "set \"\\x41\\n\\t\\\"q\\\\\" 'it\\'s \\n'\r\n", "command [set] [A\n\t\"q\\] [it's \\n]\n");
    expect_text("set \"\" ''\r\n", "command [set] [] []\n");
    expect_text("echo \"\\xzz\"\r\n", "command [echo] [xzz]\n");
    expect_text("echo ab\"c d\"\r\n", "command [echo] [abc d]\n");
}

Test(resp_parse, unbalanced_quotes_end_the_connection)
{
    const char *wanted = "error ERR Protocol error: unbalanced quotes in request\n";
    expect_text("set \"a b\r\n", wanted);
    expect_text("set 'a b\r\n", wanted);
    expect_text("set \"a\"b\r\n", wanted);
    expect_text("set 'a'b\r\n", wanted);
    expect("set \"a\0b\"\r\n", 11, wanted);
}

Test(resp_parse, wrong_lengths_get_the_errors_of_redis)
{
    const char *multibulk = "error ERR Protocol error: invalid multibulk length\n";
    const char *bulk = "error ERR Protocol error: invalid bulk length\n";
    expect_text("*3000000000\r\n", multibulk);
    expect_text("*2147483647\r\n", multibulk);
    expect_text("*1048577\r\n", multibulk);
    expect_text("*\r\n", multibulk);
    expect_text("*abc\r\n", multibulk);
    expect_text("*+1\r\n", multibulk);
    expect_text("*01\r\n", multibulk);
    expect_text("*-0\r\n", multibulk);
    expect_text("* 1\r\n", multibulk);
    expect_text("*99999999999999999999\r\n", multibulk);
    expect_text("*1\r\n$-1\r\n", bulk);
    expect_text("*1\r\n$-2\r\n", bulk);
    expect_text("*1\r\n$\r\n", bulk);
    expect_text("*1\r\n$x\r\n", bulk);
    expect_text("*1\r\n$00\r\n", bulk);
    expect_text("*1\r\n$2000000000\r\n", bulk);
    expect_text("*1\r\n$9223372036854775808\r\n", bulk);
    expect_text("*1\r\n$18446744073709551617\r\n", bulk);
    expect_text("*3\r\n$3\r\nSET\r\n$1\r\nx\r\nfooz\r\n",
        "error ERR Protocol error: expected '$', got 'f'\n");
    expect_text("*1\r\n\x01zz\r\n", "error ERR Protocol error: expected '$', got ' '\n");
}

Test(resp_parse, lines_without_an_end_are_cut_off)
{
    size_t size = RESP_INLINE_MAX + 2;
    char *text = malloc(size + 16);
    memset(text, 'A', size);
    expect(text, size, "error ERR Protocol error: too big inline request\n");
    text[0] = '*';
    expect(text, size, "error ERR Protocol error: too big mbulk count string\n");
    memcpy(text, "*1\r\n$", 5);
    expect(text, size + 4, "error ERR Protocol error: too big bulk count string\n");
    text[4] = 'x';
    expect(text, size + 4, "error ERR Protocol error: too big bulk count string\n");
    /* and a long line that ends in time is none */
    memset(text, 'A', size);
    text[RESP_INLINE_MAX] = '\n';
    struct feeding feeding;
    feeding_init(&feeding);
    feed(&feeding, text, RESP_INLINE_MAX + 1);
    cr_assert_eq(bytes_have_prefix(buffer_view(&feeding.report), bytes_of_text("command [AAA")), 1);
    feeding_deinit(&feeding);
    free(text);
}

Test(resp_parse, http_is_not_taken_for_commands)
{
    expect_text("GET / HTTP/1.1\r\n", "foreign\n");
    expect_text("POST / HTTP/1.1\r\n", "foreign\n");
    expect_text("post x\r\n", "foreign\n");
    expect_text("Host: localhost\r\n", "foreign\n");
    expect_text("OPTIONS * HTTP/1.0\n", "foreign\n");
    expect_text("GET key\r\n", "command [GET] [key]\n");
    expect_text("SET GET HTTP\r\n", "command [SET] [GET] [HTTP]\n");
}

Test(resp_parse, a_value_over_the_limit_is_skipped_and_the_connection_lives)
{
    struct feeding feeding;
    feeding_init(&feeding);
    feeding.limits.bulk_max = 100;
    const char *head = "*4\r\n$3\r\nSET\r\n$1\r\nk\r\n$3000\r\n";
    feed(&feeding, head, strlen(head));
    cr_assert_eq(feeding.rest_size, 0, "refused bytes are not kept");
    for (int i = 0; i < 100; i++) {
        feed(&feeding, "$123456789*012345678\r\n12345678", 30);
        cr_assert_eq(feeding.rest_size, 0);
        cr_assert_eq(feeding.report.size, 0);
    }
    const char *tail = "\r\n$2\r\nNX\r\n*1\r\n$4\r\nPING\r\n";
    feed(&feeding, tail, strlen(tail));
    cr_assert_str_eq(report_text(&feeding),
        "refused ERR value is larger than the limit of 100 bytes\ncommand [PING]\n");
    feeding_deinit(&feeding);
}

Test(resp_parse, a_command_over_the_limit_is_skipped_too)
{
    struct feeding feeding;
    feeding_init(&feeding);
    feeding.limits.command_max = 10;
    const char *input = "*3\r\n$4\r\nMGET\r\n$4\r\nabcd\r\n$4\r\nefgh\r\nPING\r\n";
    feed(&feeding, input, strlen(input));
    cr_assert_str_eq(report_text(&feeding),
        "refused ERR command is larger than the limit of 10 bytes\ncommand [PING]\n");
    feeding_deinit(&feeding);
}

Test(resp_parse, a_command_can_be_refused_half_way_at_any_byte)
{
    const char *input = "*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$12\r\nhello\r\nworld\r\nPING\r\n";
    size_t end = strlen(input) - strlen("PING\r\n");
    for (size_t cut = 1; cut < end; cut++) {
        struct feeding feeding;
        feeding_init(&feeding);
        feed(&feeding, input, cut);
        bool refused = resp_parser_refuse(&feeding.parser, "OOM no");
        cr_assert_eq(refused, cut >= 4, "at %zu", cut);
        for (size_t i = cut; i < strlen(input); i++)
            feed(&feeding, input + i, 1);
        cr_assert_str_eq(report_text(&feeding),
            refused ? "refused OOM no\ncommand [PING]\n"
                    : "command [SET] [key] [hello\r\nworld]\ncommand [PING]\n",
            "cut at %zu", cut);
        feeding_deinit(&feeding);
    }
}

Test(resp_parse, before_authentication_little_is_allowed)
{
    struct feeding feeding;
    feeding_init(&feeding);
    feeding.limits.arguments_max = 10;
    feeding.limits.bulk_max = 16384;
    feeding.limits.unauthenticated = true;
    feed(&feeding, "*11\r\n", 5);
    cr_assert_str_eq(
        report_text(&feeding), "error ERR Protocol error: unauthenticated multibulk length\n");
    feeding_deinit(&feeding);
    feeding_init(&feeding);
    feeding.limits.bulk_max = 16384;
    feeding.limits.unauthenticated = true;
    feed(&feeding, "*2\r\n$4\r\nAUTH\r\n$16385\r\n", 22);
    cr_assert_str_eq(
        report_text(&feeding), "error ERR Protocol error: unauthenticated bulk length\n");
    feeding_deinit(&feeding);
}

Test(resp_parse, announcing_much_allocates_nothing)
{
    struct feeding feeding;
    feeding_init(&feeding);
    const char *input = "*1048576\r\n$3\r\nSET\r\n$16777216\r\n";
    feed(&feeding, input, strlen(input));
    cr_assert_eq(feeding.report.size, 0);
    cr_assert_leq(feeding.parser.capacity, 16);
    cr_assert_eq(feeding.parser.scratch.capacity, 0);
    feeding_deinit(&feeding);
}

Test(resp_parse, many_arguments_arrive)
{
    enum { COUNT = 100000 };
    struct buffer input = {0};
    buffer_printf(&input, "*%d\r\n", COUNT);
    for (int i = 0; i < COUNT; i++)
        buffer_printf(&input, "$6\r\n%06d\r\n", i);
    struct resp_parser parser;
    resp_parser_init(&parser);
    size_t consumed;
    uint32_t argc = 0;
    const struct bytes *argv;
    const char *error;
    enum resp_result result = RESP_MORE;
    for (size_t size = 0; result == RESP_MORE; size += 4096) {
        if (size > input.size) size = input.size;
        result =
            resp_parse(&parser, &usual, bytes_of(input.at, size), &consumed, &argc, &argv, &error);
    }
    cr_assert_eq(result, RESP_COMMAND);
    cr_assert_eq(argc, COUNT);
    cr_assert_eq(consumed, input.size);
    cr_assert_eq(parser.total, 6 * COUNT);
    cr_assert_eq(memcmp(argv[COUNT - 1].at, "099999", 6), 0);
    resp_parser_trim(&parser);
    cr_assert_eq(parser.capacity, 0);
    buffer_deinit(&input);
    resp_parser_deinit(&parser);
}

static void expect_written(struct buffer *out, const char *wanted)
{
    cr_expect(bytes_equal(buffer_view(out), bytes_of_text(wanted)), "wrote %.*s, not %s",
        (int)(out->size - out->head), (const char *)out->at + out->head, wanted);
    buffer_deinit(out);
}

Test(resp_write, numbers_of_every_length)
{
    struct buffer out = {0};
    int64_t value = 0;
    for (int digits = 0; digits < 19; digits++) {
        char wanted[64];
        resp_integer(&out, value);
        resp_integer(&out, -value);
        snprintf(wanted, sizeof wanted, ":%lld\r\n:%lld\r\n", (long long)value, -(long long)value);
        expect_written(&out, wanted);
        value = value * 10 + (digits + 1) % 10;
    }
    resp_integer(&out, INT64_MIN);
    resp_integer(&out, INT64_MAX);
    expect_written(&out, ":-9223372036854775808\r\n:9223372036854775807\r\n");
    resp_array(&out, 0);
    resp_array(&out, 10);
    resp_array(&out, 99);
    resp_array(&out, 100);
    resp_array(&out, UINT64_MAX);
    expect_written(&out, "*0\r\n*10\r\n*99\r\n*100\r\n*18446744073709551615\r\n");
}

Test(resp_write, both_versions)
{
    struct buffer out = {0};
    resp_null(&out, 2);
    resp_null_array(&out, 2);
    resp_map(&out, 2, 3);
    resp_set(&out, 2, 3);
    resp_push(&out, 2, 3);
    resp_verbatim(&out, 2, bytes_of_text("text"));
    expect_written(&out, "$-1\r\n*-1\r\n*6\r\n*3\r\n*3\r\n$4\r\ntext\r\n");
    resp_null(&out, 3);
    resp_null_array(&out, 3);
    resp_map(&out, 3, 3);
    resp_set(&out, 3, 3);
    resp_push(&out, 3, 3);
    resp_verbatim(&out, 3, bytes_of_text("text"));
    expect_written(&out, "_\r\n_\r\n%3\r\n~3\r\n>3\r\n=8\r\ntxt:text\r\n");
    resp_simple(&out, "OK");
    resp_bulk(&out, bytes_of("a\0b", 3));
    resp_bulk(&out, bytes_of(NULL, 0));
    cr_assert(bytes_equal(buffer_view(&out), bytes_of("+OK\r\n$3\r\na\0b\r\n$0\r\n\r\n", 20)));
    buffer_deinit(&out);
}

Test(resp_write, an_error_stays_one_line)
{
    struct buffer out = {0};
    resp_simple(&out, "OK");
    resp_error(&out, "ERR unknown command '%s'", "a\r\n-ERR b\t\x01\x7f");
    expect_written(&out, "+OK\r\n-ERR unknown command 'a  -ERR b   '\r\n");
}
