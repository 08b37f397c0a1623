#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#include "server/config.h"
#include "server/suggest.h"

TestSuite(config, .timeout = 20);
TestSuite(suggest, .timeout = 20);

struct complaints {
    unsigned count;
    char last[1024];
    char first[1024];
};

static void note(void *ctx, const char *sentence)
{
    struct complaints *complaints = ctx;
    if (complaints->count++ == 0)
        snprintf(complaints->first, sizeof complaints->first, "%s", sentence);
    snprintf(complaints->last, sizeof complaints->last, "%s", sentence);
}

static struct config *fresh(void)
{
    struct config *config = malloc(sizeof *config);
    cr_assert(config != NULL);
    cr_assert_eq(config_init(config), OK);
    return config;
}

static void drop(struct config *config)
{
    config_deinit(config);
    free(config);
}

static enum err set(struct config *config, const char *name, enum config_origin origin,
    const char *text, struct complaints *complaints)
{
    return config_set(config, config_find(name), origin, "here", text, note, complaints);
}

static enum err read_text(struct config *config, const char *text, struct complaints *complaints)
{
    return config_read(config, "x.conf", bytes_of_text(text), note, complaints);
}

Test(config, defaults_are_those_of_the_manual)
{
    struct complaints complaints = {0};
    struct config *config = fresh();
    cr_assert_eq(config_finish(config, note, &complaints), OK);
    cr_assert_str_eq(config->server.listen, "127.0.0.1:7379");
    cr_assert_str_eq(config->server.http, "127.0.0.1:7380");
    cr_assert_str_eq(config->server.peer, "127.0.0.1:7381");
    cr_assert_eq(config->server.ranges, 64);
    cr_assert_eq(config->server.memory, (uint64_t)512 << 20);
    cr_assert_eq(config->server.log_io, LOG_IO_AUTO);
    cr_assert(config->server.scrub);
    cr_assert(!config->server.debug_command);
    cr_assert(config->server.data == NULL);
    cr_assert(config->server.join == NULL);
    cr_assert_eq(complaints.count, 0);
    drop(config);
}

Test(config, the_log_io_words_are_in_the_order_of_the_enum)
{
    const char *const words[] = {"auto", "dsync", "ring-dsync", "ring-link", "posix"};
    const enum log_io modes[] = {
        LOG_IO_AUTO, LOG_IO_DSYNC, LOG_IO_RING_DSYNC, LOG_IO_RING_LINK, LOG_IO_POSIX};
    for (size_t i = 0; i < 5; i++) {
        struct complaints complaints = {0};
        struct config *config = fresh();
        cr_assert_eq(set(config, "log-io", CONFIG_FLAG, words[i], &complaints), OK);
        cr_assert_eq(config_finish(config, note, &complaints), OK);
        cr_assert_eq(config->server.log_io, modes[i]);
        drop(config);
    }
}

Test(config, a_stronger_place_wins_whatever_the_order)
{
    struct complaints complaints = {0};
    struct config *config = fresh();
    cr_assert_eq(set(config, "name", CONFIG_FLAG, "flag", &complaints), OK);
    cr_assert_eq(set(config, "name", CONFIG_ENVIRONMENT, "variable", &complaints), OK);
    cr_assert_eq(read_text(config, "name = file\nzone = file\n", &complaints), OK);
    cr_assert_eq(set(config, "zone", CONFIG_ENVIRONMENT, "variable", &complaints), OK);
    cr_assert_str_eq(config->server.name, "flag");
    cr_assert_str_eq(config->server.zone, "variable");
    cr_assert(config_given(config, "zone"));
    cr_assert(!config_given(config, "listen"));
    drop(config);
}

Test(config, a_wrong_value_is_refused_even_where_a_flag_hides_it)
{
    struct complaints complaints = {0};
    struct config *config = fresh();
    cr_assert_eq(set(config, "memory", CONFIG_FLAG, "1GiB", &complaints), OK);
    cr_assert_eq(read_text(config, "\n# x\nmemory = much\n", &complaints), ERR_INVALID);
    cr_assert(strstr(complaints.last, "x.conf:3: 'much'") != NULL, "%s", complaints.last);
    cr_assert_eq(config->server.memory, (uint64_t)1 << 30);
    drop(config);
}

Test(config, every_wrong_line_of_a_file_is_named)
{
    struct complaints complaints = {0};
    struct config *config = fresh();
    enum err err = read_text(config,
        "lisen = 1\nthis is nothing\n[part]\nlisten = 1\nlisten = 2\nconfig = y\n", &complaints);
    cr_assert_eq(err, ERR_INVALID);
    cr_assert_eq(complaints.count, 5, "%u: %s", complaints.count, complaints.last);
    cr_assert(strstr(complaints.first, "x.conf:1:") == complaints.first);
    cr_assert(strstr(complaints.first, "did you mean 'listen'?") != NULL);
    cr_assert(strstr(complaints.last, "x.conf:6:") == complaints.last);
    drop(config);
}

Test(config, a_line_that_inih_would_cut_is_refused)
{
    struct complaints complaints = {0};
    struct config *config = fresh();
    char text[512];
    snprintf(text, sizeof text, "requirepass = %0*d\nname = n\n", 184, 0);
    cr_assert_eq(read_text(config, text, &complaints), OK, "%s", complaints.last);
    cr_assert_eq(strlen(config->password), 184);
    drop(config);
    config = fresh();
    snprintf(text, sizeof text, "requirepass = %0*d\nname = n\n", 185, 0);
    cr_assert_eq(read_text(config, text, &complaints), ERR_INVALID);
    cr_assert(strstr(complaints.last, "longer than 198 bytes") != NULL, "%s", complaints.last);
    cr_assert_str_eq(config->server.name, "n");
    drop(config);
}

Test(config, an_indented_line_is_a_line_of_its_own)
{
    struct complaints complaints = {0};
    struct config *config = fresh();
    cr_assert_eq(read_text(config, "name = n\r\n\t zone = z ; why\r\n", &complaints), OK);
    cr_assert_str_eq(config->server.name, "n");
    cr_assert_str_eq(config->server.zone, "z");
    drop(config);
}

Test(config, a_secret_is_never_in_a_complaint)
{
    struct complaints complaints = {0};
    struct config *config = fresh();
    char secret[5000];
    memset(secret, 's', sizeof secret - 1);
    secret[sizeof secret - 1] = '\0';
    cr_assert_eq(set(config, "requirepass", CONFIG_FLAG, secret, &complaints), ERR_INVALID);
    cr_assert(strstr(complaints.last, "sss") == NULL);
    drop(config);
}

Test(config, variables_are_named_after_settings)
{
    struct complaints complaints = {0};
    struct config *config = fresh();
    const char *const variables[] = {"PATH=/bin", "DURAMEN=/bin/duramen", "DURAMEN_LOG_BYTES=1GiB",
        "DURAMEN_NAME=", "DURAMEN_LONG=1", NULL};
    cr_assert_eq(config_environment(config, variables, note, &complaints), OK);
    cr_assert_eq(config->server.log_bytes, (uint64_t)1 << 30);
    cr_assert(!config_given(config, "name"));
    cr_assert_eq(complaints.count, 0, "%s", complaints.last);
    const char *const mistyped[] = {"DURAMEN_LISTN=1", NULL};
    cr_assert_eq(config_environment(config, mistyped, note, &complaints), OK);
    cr_assert(strstr(complaints.last, "did you mean DURAMEN_LISTEN?") != NULL);
    const char *const wrong[] = {"DURAMEN_RANGES=many", NULL};
    cr_assert_eq(config_environment(config, wrong, note, &complaints), ERR_INVALID);
    drop(config);
}

Test(config, what_contradicts_itself_is_refused)
{
    struct complaints complaints = {0};
    struct config *config = fresh();
    cr_assert_eq(set(config, "ranges", CONFIG_FLAG, "63", &complaints), OK);
    cr_assert_eq(config_finish(config, note, &complaints), ERR_INVALID);
    cr_assert_eq(set(config, "ranges", CONFIG_FLAG, "128", &complaints), OK);
    cr_assert_eq(config_finish(config, note, &complaints), OK);
    cr_assert_eq(set(config, "requirepass", CONFIG_FLAG, "x", &complaints), OK);
    cr_assert_eq(set(config, "password-file", CONFIG_FILE, "y", &complaints), OK);
    cr_assert_eq(config_finish(config, note, &complaints), ERR_INVALID);
    drop(config);
}

Test(config, sizes_have_units)
{
    struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"0", 0}, {"1048576", 1048576}, {"64MiB", 64 << 20}, {"64mib", 64 << 20},
        {"64M", 64 << 20}, {"1GB", 1000000000}, {"2k", 2048}, {"3KB", 3000},
        {"18446744073709551615", UINT64_MAX}, {"1TiB", (uint64_t)1 << 40}};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        uint64_t bytes = 7;
        cr_assert_eq(config_parse_size(good[i].text, &bytes), OK, "%s", good[i].text);
        cr_assert_eq(bytes, good[i].bytes, "%s", good[i].text);
    }
    const char *bad[] = {"", "-1", "+1", " 1", "1 ", "1.5GiB", "MiB", "1XiB",
        "18446744073709551616", "18014398509481984KiB", "0x10", "1e3"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        uint64_t bytes = 7;
        cr_assert_eq(config_parse_size(bad[i], &bytes), ERR_INVALID, "%s", bad[i]);
        cr_assert_eq(bytes, 7);
    }
}

Test(config, durations_have_units)
{
    uint64_t us;
    cr_assert_eq(config_parse_duration("10s", 1, &us), OK);
    cr_assert_eq(us, 10000000);
    cr_assert_eq(config_parse_duration("500ms", 1, &us), OK);
    cr_assert_eq(us, 500000);
    cr_assert_eq(config_parse_duration("5m", 1, &us), OK);
    cr_assert_eq(us, 300000000);
    cr_assert_eq(config_parse_duration("7", 1000000, &us), OK);
    cr_assert_eq(us, 7000000);
    cr_assert_eq(config_parse_duration("ten", 1, &us), ERR_INVALID);
    cr_assert_eq(config_parse_duration("5124095576030432h", 1, &us), ERR_INVALID);

    struct complaints complaints = {0};
    struct config *config = fresh();
    cr_assert_eq(set(config, "idle-timeout", CONFIG_FLAG, "5m", &complaints), OK);
    cr_assert_eq(config->server.idle_timeout_s, 300);
    cr_assert_eq(set(config, "idle-timeout", CONFIG_FLAG, "1500ms", &complaints), ERR_INVALID);
    cr_assert_eq(set(config, "slowlog-us", CONFIG_FLAG, "off", &complaints), OK);
    cr_assert_eq(config->server.slowlog_us, UINT64_MAX);
    cr_assert_eq(set(config, "slowlog-us", CONFIG_FLAG, "10ms", &complaints), OK);
    cr_assert_eq(config->server.slowlog_us, 10000);
    drop(config);
}

Test(config, addresses_have_four_forms)
{
    struct {
        const char *text, *full;
    } good[] = {{"7379", "127.0.0.1:7379"}, {"0", "127.0.0.1:0"}, {"off", "off"},
        {"10.0.0.1:80", "10.0.0.1:80"}, {"db-1.example:1", "db-1.example:1"},
        {"[::1]:7379", "[::1]:7379"}, {"[fe80::1]:0", "[fe80::1]:0"}};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        char full[96];
        cr_assert_eq(config_parse_address(good[i].text, full, sizeof full), OK, "%s", good[i].text);
        cr_assert_str_eq(full, good[i].full);
    }
    const char *bad[] = {"", ":7379", "host", "host:", "host:x", "host:65536", "65536", "::1",
        "[::1]", "[::1:1", "[x]:1", "a b:1", "a:1:2", "[]:1", "OFF", "http://x:1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char full[96];
        cr_assert_eq(config_parse_address(bad[i], full, sizeof full), ERR_INVALID, "%s", bad[i]);
    }
    char small[8];
    cr_assert_eq(config_parse_address("127.0.0.1:7379", small, sizeof small), ERR_INVALID);
}

Test(config, lists_check_every_element)
{
    struct complaints complaints = {0};
    struct config *config = fresh();
    cr_assert_eq(set(config, "join", CONFIG_FLAG, "a:1,7381,[::1]:2", &complaints), OK);
    cr_assert_str_eq(config->server.join, "a:1,127.0.0.1:7381,[::1]:2");
    cr_assert_eq(set(config, "join", CONFIG_FLAG, "a:1,", &complaints), ERR_INVALID);
    cr_assert_eq(set(config, "join", CONFIG_FLAG, "off", &complaints), ERR_INVALID);
    cr_assert_eq(set(config, "allowed-hosts", CONFIG_FLAG, "a.example,b", &complaints), OK);
    cr_assert_eq(
        set(config, "allowed-hosts", CONFIG_FLAG, "a.example:80", &complaints), ERR_INVALID);
    drop(config);
}

Test(suggest, finds_what_was_meant)
{
    struct {
        const char *word, *meant;
    } cases[] = {{"serv", "serve"}, {"sevre", "serve"}, {"stats", "status"}, {"x", NULL},
        {"backpu", "backup"}, {"frobnicate", NULL}, {"", NULL}, {"serve", "serve"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct suggest suggest;
        suggest_begin(&suggest, cases[i].word);
        suggest_offer(&suggest, "serve");
        suggest_offer(&suggest, "status");
        suggest_offer(&suggest, "backup");
        const char *best = suggest_best(&suggest);
        if (cases[i].meant == NULL)
            cr_assert(best == NULL, "%s", cases[i].word);
        else
            cr_assert(best != NULL && strcmp(best, cases[i].meant) == 0, "%s", cases[i].word);
    }
}

Test(suggest, a_word_longer_than_all_names_is_close_to_none)
{
    char word[5000];
    memset(word, 'a', sizeof word - 1);
    word[sizeof word - 1] = '\0';
    struct suggest suggest;
    suggest_begin(&suggest, word);
    suggest_offer(&suggest, "serve");
    cr_assert(suggest_best(&suggest) == NULL);
}
