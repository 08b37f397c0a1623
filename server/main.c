#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/bench.h"
#include "server/cli.h"
#include "server/suggest.h"
#include "sim/sim.h"

/* The program: finds the subcommand and hands over. */

#define BENCH_FLAGS                                                                                \
    "--node --engine --workload --clients --pipeline --rate --seconds --requests --warmup "        \
    "--rounds --value-size --keys --distribution --load --json --plot"

static const struct cli_command commands[] = {
    {.name = "serve", .summary = "run a node", .settings = true, .run = cli_serve},
    {.name = "status",
        .summary = "show members, ranges, log, memory, disk and health of a node",
        .options = cli_status_options,
        .run = cli_status},
    {.name = "member",
        .summary = "list, remove or replace members of the cluster",
        .options = cli_member_options,
        .words = "list remove replace",
        .run = cli_member},
    {.name = "leader",
        .summary = "move the leadership of ranges to a member",
        .options = cli_leader_options,
        .words = "transfer",
        .run = cli_leader},
    {.name = "backup",
        .summary = "copy a running node's data into one file",
        .options = cli_backup_options,
        .run = cli_backup},
    {.name = "restore",
        .summary = "make a data folder from a backup",
        .options = cli_restore_options,
        .run = cli_restore},
    {.name = "verify",
        .summary = "check every checksum of a stopped node's folder or of a backup",
        .options = cli_no_options,
        .run = cli_verify},
    {.name = "bench",
        .summary = "measure a server or an engine under load",
        .flags = BENCH_FLAGS,
        .run = bench_main},
    {.name = "sim",
        .summary = "run the deterministic simulator",
        .flags = "--seed --runs --nodes --ticks --scenario --verbose",
        .run = sim_main},
    {.name = "passwd",
        .summary = "turn a password into the form that configuration files take",
        .options = cli_no_options,
        .run = cli_passwd},
    {.name = "config",
        .summary = "check or list the settings, or show where each came from",
        .settings = true,
        .words = "check show list",
        .run = cli_config},
    {.name = "completion",
        .summary = "print the completions of a shell",
        .options = cli_no_options,
        .words = "bash zsh fish",
        .run = cli_completion},
    {.name = "version",
        .summary = "print the version",
        .options = cli_no_options,
        .run = cli_version},
    {.name = NULL},
};

const struct cli_command *cli_commands(void)
{
    return commands;
}

static void print_help(FILE *out)
{
    fputs("Usage: duramen COMMAND [FLAG...]\n"
          "A durable key-value store that speaks the Redis protocol and HTTP.\n\n",
        out);
    for (const struct cli_command *command = commands; command->name != NULL; command++)
        fprintf(out, "  %-11s %s\n", command->name, command->summary);
    fputs("\n`duramen COMMAND --help` tells the flags of a command.\n"
          "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 data is damaged, 4 durability lost.\n",
        out);
}

static const struct cli_command *find_command(const char *name)
{
    struct suggest suggest;
    suggest_begin(&suggest, name);
    for (const struct cli_command *command = commands; command->name != NULL; command++) {
        if (strcmp(command->name, name) == 0) return command;
        suggest_offer(&suggest, command->name);
    }
    suggest_offer(&suggest, "help");
    const char *meant = suggest_best(&suggest);
    if (meant != NULL)
        cli_complain("there is no command '%s'; did you mean '%s'?", name, meant);
    else
        cli_complain("there is no command '%s'; `duramen --help` lists them", name);
    return NULL;
}

int cli_version(int argc, char **argv)
{
    static const struct argp argp = {.options = cli_no_options, .doc = "Prints the version."};
    cli_parse(&argp, argc, argv, NULL);
    puts("duramen " DURAMEN_VERSION);
    return CLI_DONE;
}

struct outer {
    int command; /* index in argv; 0: none */
    bool version;
};

static error_t parse_outer(int key, char *argument, struct argp_state *state)
{
    struct outer *outer = state->input;
    (void)argument;
    switch (key) {
    case 'h':
        outer->command = -1;
        break;
    case 'V':
        outer->version = true;
        break;
    case ARGP_KEY_ARG:
        outer->command = state->next - 1;
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    state->next = state->argc; /* what follows is the command's */
    return 0;
}

/* A process started with 0, 1 or 2 closed would give those numbers to its data files and then print
 * into them. */
static void occupy_standard_streams(void)
{
    for (int fd = 0; fd <= 2; fd++) {
        if (fcntl(fd, F_GETFD) != -1) continue;
        int opened = open("/dev/null", O_RDWR);
        if (opened != fd) _exit(CLI_FAILED);
    }
}

/* Output that did not reach its file is a failure like any other. */
static int finish(int code)
{
    if (fflush(stdout) == 0 && !ferror(stdout)) return code;
    cli_complain("standard output cannot be written: %m");
    return code == CLI_DONE ? CLI_FAILED : code;
}

int main(int argc, char **argv)
{
    occupy_standard_streams();
    static const struct argp_option options[] = {
        {.name = "help", .key = 'h'}, {.name = "version", .key = 'V'}, {0}};
    static const struct argp argp = {.options = options, .parser = parse_outer};
    struct outer outer = {0};
    argp_err_exit_status = CLI_USAGE;
    char program[] = "duramen";
    if (argc > 0) argv[0] = program;
    error_t error = argp_parse(&argp, argc, argv, ARGP_IN_ORDER | ARGP_NO_HELP, NULL, &outer);
    if (error != 0) return CLI_USAGE;
    if (outer.version) {
        puts("duramen " DURAMEN_VERSION);
        return finish(CLI_DONE);
    }
    bool help =
        outer.command < 0 || (outer.command > 0 && strcmp(argv[outer.command], "help") == 0);
    if (help || outer.command == 0) {
        print_help(help ? stdout : stderr);
        return finish(help ? CLI_DONE : CLI_USAGE);
    }

    const struct cli_command *command = find_command(argv[outer.command]);
    if (command == NULL) return CLI_USAGE;
    char name[64];
    snprintf(name, sizeof name, "duramen %s", command->name);
    argv[outer.command] = name;
    /* the others take -h themselves */
    char help_flag[] = "--help";
    char **first = argv + outer.command + 1;
    if (command->flags != NULL && *first != NULL && strcmp(*first, "-h") == 0) *first = help_flag;
    return finish(command->run(argc - outer.command, argv + outer.command));
}
