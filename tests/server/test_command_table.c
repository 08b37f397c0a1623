#include "server/command.h"

#include <criterion/criterion.h>
#include <stdlib.h>

/* What the table promises to the dispatcher and to clients. */

Test(command_table, every_command_is_found_by_its_name_in_any_case)
{
    uint32_t count;
    const struct command *table = command_table(&count);
    cr_assert_gt(count, 90);
    for (uint32_t i = 0; i < count; i++) {
        char upper[32] = {0};
        size_t size = strlen(table[i].name);
        for (size_t k = 0; k < size; k++)
            upper[k] =
                (char)(table[i].name[k] >= 'a' && table[i].name[k] <= 'z' ? table[i].name[k] - 32
                                                                          : table[i].name[k]);
        cr_assert_eq(command_find(bytes_of_text(table[i].name)), &table[i], "%s", table[i].name);
        cr_assert_eq(command_find(bytes_of_text(upper)), &table[i], "%s", upper);
        cr_assert_null(command_find(bytes_of(upper, size - 1)) == &table[i] ? "found" : NULL);
    }
}

Test(command_table, unknown_names_are_not_found)
{
    cr_assert_null(command_find(bytes_of_text("nosuch")));
    cr_assert_null(command_find(bytes_of("", 0)));
    cr_assert_null(command_find(bytes_of("get\0", 4)));
    cr_assert_null(command_find(bytes_of_text("getgetgetgetgetgetgetgetgetgetgetgetget")));
}

Test(command_table, entries_are_complete_and_consistent)
{
    uint32_t count;
    const struct command *table = command_table(&count);
    for (uint32_t i = 0; i < count; i++) {
        const struct command *command = &table[i];
        cr_assert(command->arity != 0, "%s", command->name);
        cr_assert_not_null(command->summary);
        cr_assert_not_null(command->since);
        cr_assert_not_null(command->complexity);
        cr_assert_not_null(command->group);
        cr_assert_eq(command->categories[0], '@', "%s", command->name);
        cr_assert_eq(
            (command->flags & COMMAND_KEYS) != 0, command->first_key > 0, "%s", command->name);
        cr_assert((command->flags & COMMAND_WRITE) == 0 || (command->flags & COMMAND_READ) == 0,
            "%s", command->name);
        if (command->first_key > 0) cr_assert_gt(command->step, 0, "%s", command->name);
    }
}

static const char *resolve(struct buffer *out, uint32_t argc, const char *const *words)
{
    struct bytes argv[16];
    for (uint32_t i = 0; i < argc; i++)
        argv[i] = bytes_of_text(words[i]);
    buffer_reset(out, 0);
    const struct command *command = command_resolve(argc, argv, out);
    if (command != NULL) return command->name;
    (void)!buffer_append(out, "", 1);
    return (const char *)out->at;
}

#define RESOLVE(...)                                                                               \
    resolve(&out, sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *),                          \
        (const char *[]){__VA_ARGS__})

Test(command_table, resolving_checks_name_subcommand_and_count)
{
    struct buffer out = {0};
    cr_assert_str_eq(RESOLVE("Get", "k"), "get");
    cr_assert_str_eq(RESOLVE("client", "setname", "x"), "client|setname");
    cr_assert_str_eq(RESOLVE("COMMAND"), "command");
    cr_assert_str_eq(RESOLVE("COMMAND", "COUNT"), "command|count");
    cr_assert_str_eq(RESOLVE("GET"), "-ERR wrong number of arguments for 'get' command\r\n");
    cr_assert_str_eq(
        RESOLVE("GET", "a", "b"), "-ERR wrong number of arguments for 'get' command\r\n");
    cr_assert_str_eq(RESOLVE("CLIENT"), "-ERR wrong number of arguments for 'client' command\r\n");
    cr_assert_str_eq(RESOLVE("CLIENT", "setname", "a", "b"),
        "-ERR wrong number of arguments for 'client|setname' command\r\n");
    cr_assert_str_eq(
        RESOLVE("client", "Foo"), "-ERR unknown subcommand 'Foo'. Try CLIENT HELP.\r\n");
    cr_assert_str_eq(RESOLVE("FOO"), "-ERR unknown command 'FOO', with args beginning with: \r\n");
    cr_assert_str_eq(RESOLVE("NOSUCH", "a", "b"),
        "-ERR unknown command 'NOSUCH', with args beginning with: 'a' 'b' \r\n");
    cr_assert_str_eq(RESOLVE("client|id", "a"),
        "-ERR unknown command 'client|id', with args beginning with: 'a' \r\n");
    buffer_deinit(&out);
}

Test(command_table, an_unknown_command_shows_only_the_start_of_its_arguments)
{
    struct buffer out = {0};
    char word[300];
    memset(word, 'x', sizeof word);
    struct bytes argv[4] = {bytes_of_text("foo"), bytes_of(word, sizeof word),
        bytes_of(word, sizeof word), bytes_of_text("b")};
    cr_assert_null(command_resolve(4, argv, &out));
    cr_assert_lt(out.size, 240);
    buffer_deinit(&out);
}

Test(command_table, integers_are_parsed_as_strictly_as_redis_does)
{
    static const struct {
        const char *text;
        bool valid;
        int64_t value;
    } cases[] = {
        {"0", true, 0},
        {"-1", true, -1},
        {"12", true, 12},
        {"9223372036854775807", true, INT64_MAX},
        {"-9223372036854775808", true, INT64_MIN},
        {"9223372036854775808", false, 0},
        {"-9223372036854775809", false, 0},
        {"99999999999999999999", false, 0},
        {"", false, 0},
        {"-", false, 0},
        {"-0", false, 0},
        {"+1", false, 0},
        {"01", false, 0},
        {"00", false, 0},
        {" 1", false, 0},
        {"1 ", false, 0},
        {"1x", false, 0},
        {"0x1", false, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t value = 7;
        cr_assert_eq(argument_integer(bytes_of_text(cases[i].text), &value), cases[i].valid, "%s",
            cases[i].text);
        if (cases[i].valid) cr_assert_eq(value, cases[i].value);
    }
    int64_t value;
    cr_assert_not(argument_integer(bytes_of("1\0", 2), &value));
}
