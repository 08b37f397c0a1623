#include "server/command_internal.h"

#include "base/check.h"
#include "server/glob.h"

/* COMMAND: the table describes itself. Clients read it to find the keys among a command's arguments, redis-cli
 * for its hints. What is not in the table (arguments by name, history) is not in the reply; every
 * field that is there has Redis's name and shape. */

static void reply_words(struct call *call, const char *const *words, uint64_t count)
{
    resp_set(call->out, call->version, count);
    for (uint64_t i = 0; i < count; i++)
        resp_simple(call->out, words[i]);
}

static void reply_flags(struct call *call, const struct command *command)
{
    static const struct {
        uint32_t flag;
        const char *word;
    } known[] = {
        {COMMAND_WRITE, "write"},
        {COMMAND_READ, "readonly"},
        {COMMAND_ADMIN, "admin"},
        {COMMAND_LOADING, "loading"},
        {COMMAND_FAST, "fast"},
        {COMMAND_NO_AUTH, "no_auth"},
        {COMMAND_NO_MULTI, "no_multi"},
    };
    const char *words[sizeof known / sizeof *known];
    uint64_t count = 0;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if ((command->flags & known[i].flag) != 0) words[count++] = known[i].word;
    }
    reply_words(call, words, count);
}

/* "@read @string" as a set of words. */
static void reply_categories(struct call *call, const struct command *command)
{
    uint64_t count = 0;
    for (const char *at = command->categories; *at != 0; at++)
        count += *at == '@';
    resp_set(call->out, call->version, count);
    const char *at = command->categories;
    while (*at != 0) {
        char word[24];
        size_t size = strcspn(at, " ");
        ASSERT(size < sizeof word);
        memcpy(word, at, size);
        word[size] = 0;
        resp_simple(call->out, word);
        at += size;
        at += *at == ' ';
    }
}

static void reply_pair(struct call *call, const char *name, int64_t value)
{
    reply_text(call, name);
    resp_integer(call->out, value);
}

static void reply_key_specs(struct call *call, const struct command *command)
{
    static const char *const reads[] = {"RO", "access"};
    static const char *const writes[] = {"RW", "update"};
    if (command->first_key == 0) {
        resp_set(call->out, call->version, 0);
        return;
    }
    resp_set(call->out, call->version, 1);
    resp_map(call->out, call->version, 3);
    reply_text(call, "flags");
    reply_words(call, (command->flags & COMMAND_WRITE) != 0 ? writes : reads, 2);
    reply_text(call, "begin_search");
    resp_map(call->out, call->version, 2);
    reply_text(call, "type");
    reply_text(call, "index");
    reply_text(call, "spec");
    resp_map(call->out, call->version, 1);
    reply_pair(call, "index", command->first_key);
    reply_text(call, "find_keys");
    resp_map(call->out, call->version, 2);
    reply_text(call, "type");
    reply_text(call, "range");
    reply_text(call, "spec");
    resp_map(call->out, call->version, 3);
    /* counted from the first key, unless from the end */
    reply_pair(call, "lastkey",
        command->last_key < 0 ? command->last_key : command->last_key - command->first_key);
    reply_pair(call, "keystep", command->step);
    reply_pair(call, "limit", 0);
}

static uint64_t count_subcommands(const struct command *container)
{
    uint32_t count;
    uint64_t found = 0;
    const struct command *table = command_table(&count);
    for (uint32_t i = 0; i < count; i++)
        found += command_is_subcommand_of(&table[i], container);
    return found;
}

/* A container has no own run(), or (COMMAND) subcommands beside it. */
static void each_subcommand(struct call *call, const struct command *container,
    void (*show)(struct call *, const struct command *))
{
    uint32_t count;
    const struct command *table = command_table(&count);
    for (uint32_t i = 0; i < count; i++) {
        if (command_is_subcommand_of(&table[i], container)) show(call, &table[i]);
    }
}

static void reply_info(struct call *call, const struct command *command)
{
    uint64_t subcommands = count_subcommands(command);
    resp_array(call->out, 10);
    reply_text(call, command->name);
    resp_integer(call->out, command->arity);
    reply_flags(call, command);
    resp_integer(call->out, command->first_key);
    resp_integer(call->out, command->last_key);
    resp_integer(call->out, command->step);
    reply_categories(call, command);
    resp_set(call->out, call->version, 0);
    reply_key_specs(call, command);
    if (subcommands == 0) {
        resp_set(call->out, call->version, 0);
    } else {
        resp_array(call->out, subcommands);
        each_subcommand(call, command, reply_info);
    }
}

static void reply_docs(struct call *call, const struct command *command)
{
    uint64_t subcommands = count_subcommands(command);
    reply_text(call, command->name);
    resp_map(call->out, call->version, subcommands == 0 ? 4 : 5);
    reply_text(call, "summary");
    reply_text(call, command->summary);
    reply_text(call, "since");
    reply_text(call, command->since);
    reply_text(call, "group");
    reply_text(call, command->group);
    reply_text(call, "complexity");
    reply_text(call, command->complexity);
    if (subcommands > 0) {
        reply_text(call, "subcommands");
        resp_map(call->out, call->version, subcommands);
        each_subcommand(call, command, reply_docs);
    }
}

static uint64_t count_top_level(void)
{
    uint32_t count;
    uint64_t found = 0;
    const struct command *table = command_table(&count);
    for (uint32_t i = 0; i < count; i++)
        found += command_is_top_level(&table[i]);
    return found;
}

static void each_top_level(struct call *call, void (*show)(struct call *, const struct command *))
{
    uint32_t count;
    const struct command *table = command_table(&count);
    for (uint32_t i = 0; i < count; i++) {
        if (command_is_top_level(&table[i])) show(call, &table[i]);
    }
}

static void run_command_all(struct call *call)
{
    resp_array(call->out, count_top_level());
    each_top_level(call, reply_info);
}

static void run_command_count(struct call *call)
{
    resp_integer(call->out, (int64_t)count_top_level());
}

static void run_command_info(struct call *call)
{
    if (call->argc == 2) {
        run_command_all(call);
        return;
    }
    resp_array(call->out, call->argc - 2);
    for (uint32_t i = 2; i < call->argc; i++) {
        const struct command *command = command_find(call->argv[i]);
        if (command == NULL) {
            resp_null(call->out, call->version);
        } else {
            reply_info(call, command);
        }
    }
}

static void run_command_docs(struct call *call)
{
    if (call->argc == 2) {
        resp_map(call->out, call->version, count_top_level());
        each_top_level(call, reply_docs);
        return;
    }
    uint64_t found = 0;
    for (uint32_t i = 2; i < call->argc; i++)
        found += command_find(call->argv[i]) != NULL;
    resp_map(call->out, call->version, found);
    for (uint32_t i = 2; i < call->argc; i++) {
        const struct command *command = command_find(call->argv[i]);
        if (command != NULL) reply_docs(call, command);
    }
}

static bool in_category(const struct command *command, struct bytes category)
{
    const char *at = command->categories;
    while (*at != 0) {
        size_t size = strcspn(at, " ");
        char word[24];
        ASSERT(size < sizeof word);
        memcpy(word, at + 1, size - 1);
        word[size - 1] = 0;
        if (argument_is(category, word)) return true;
        at += size;
        at += *at == ' ';
    }
    return false;
}

static void run_command_list(struct call *call)
{
    enum { ALL, MODULE, CATEGORY, PATTERN } filter = ALL;
    struct bytes argument = {0};
    if (call->argc > 2) {
        bool valid = call->argc == 5 && argument_is(call->argv[2], "filterby");
        if (valid && argument_is(call->argv[3], "module")) {
            filter = MODULE;
        } else if (valid && argument_is(call->argv[3], "aclcat")) {
            filter = CATEGORY;
        } else if (valid && argument_is(call->argv[3], "pattern")) {
            filter = PATTERN;
        } else {
            reply_syntax_error(call);
            return;
        }
        argument = call->argv[4];
    }
    uint32_t count;
    uint64_t found = 0;
    const struct command *table = command_table(&count);
    size_t mark = reply_array_begin(call);
    for (uint32_t i = 0; i < count; i++) {
        bool wanted = false;
        switch (filter) {
        case ALL:
            wanted = true;
            break;
        case MODULE:
            break; /* there are no modules */
        case CATEGORY:
            wanted = in_category(&table[i], argument);
            break;
        case PATTERN:
            wanted = glob_match(argument, bytes_of_text(table[i].name), true);
            break;
        }
        if (!wanted) continue;
        reply_text(call, table[i].name);
        found++;
    }
    reply_array_end(call, mark, found);
}

static void run_command_getkeys(struct call *call)
{
    uint32_t argc = call->argc - 2;
    const struct bytes *argv = call->argv + 2;
    const struct command *command = command_find(argv[0]);
    if (command != NULL && argc > 1 && count_subcommands(command) > 0) {
        struct buffer ignored = {0};
        command = command_resolve(argc, argv, &ignored);
        buffer_deinit(&ignored);
    }
    if (command == NULL) {
        resp_error(call->out, "ERR Invalid command specified");
        return;
    }
    if (command->first_key == 0 && (command->flags & COMMAND_WRAPS) == 0) {
        resp_error(call->out, "ERR The command has no key arguments");
        return;
    }
    int64_t count = argc;
    if (command->arity >= 0 ? count != command->arity : count < -(int64_t)command->arity) {
        resp_error(call->out, "ERR Invalid number of arguments specified for command");
        return;
    }
    uint32_t first, last, step;
    if (!command_keys(command, argc, argv, &first, &last, &step)) {
        resp_error(call->out, "ERR The command has no key arguments");
        return;
    }
    resp_array(call->out, (last - first) / step + 1);
    for (uint32_t i = first; i <= last; i += step)
        resp_bulk(call->out, argv[i]);
}

static void run_command_help(struct call *call)
{
    static const char *const lines[] = {
        "(no subcommand)",
        "    Return details about all commands.",
        "COUNT",
        "    Return the total number of commands in this server.",
        "LIST [FILTERBY (MODULE|ACLCAT|PATTERN) <filter>]",
        "    Return a list of all commands in this server.",
        "INFO [<command-name> ...]",
        "    Return details about multiple commands.",
        "    If no command names are given, details for all commands are returned.",
        "DOCS [<command-name> ...]",
        "    Return documentation details about multiple commands.",
        "    If no command names are given, details for all commands are returned.",
        "GETKEYS <full-command>",
        "    Return the keys from a full command.",
        NULL,
    };
    reply_help(call, lines);
}

#define ANY_TIME COMMAND_LOADING
#define CONNECTION "@slow @connection"

const struct command commands_describe[] = {
    {"command", -1, ANY_TIME, 0, 0, 0, run_command_all, "server", "2.8.13",
        "O(N) where N is the total number of commands", "Get array of command details", CONNECTION},
    {"command|count", 2, ANY_TIME, 0, 0, 0, run_command_count, "server", "2.8.13", "O(1)",
        "Get total number of commands", CONNECTION},
    {"command|docs", -2, ANY_TIME, 0, 0, 0, run_command_docs, "server", "7.0.0",
        "O(N) where N is the number of commands to look up",
        "Get array of specific command documentation", CONNECTION},
    {"command|getkeys", -4, ANY_TIME, 0, 0, 0, run_command_getkeys, "server", "2.8.13",
        "O(N) where N is the number of arguments to the command",
        "Extract keys given a full command", CONNECTION},
    {"command|help", 2, ANY_TIME, 0, 0, 0, run_command_help, "server", "5.0.0", "O(1)",
        "Show helpful text about the different subcommands", CONNECTION},
    {"command|info", -2, ANY_TIME, 0, 0, 0, run_command_info, "server", "2.8.13",
        "O(N) where N is the number of commands to look up",
        "Get array of specific command details, or all when no argument is given.", CONNECTION},
    {"command|list", -2, ANY_TIME, 0, 0, 0, run_command_list, "server", "7.0.0",
        "O(N) where N is the total number of commands", "Get an array of command names",
        CONNECTION},
    {.name = NULL},
};
