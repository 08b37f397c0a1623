#include <stdio.h>
#include <string.h>

#include "server/cli.h"
#include "server/config.h"

/* Completions of bash, zsh and fish, written from the table of commands and the table of settings.
 * scripts/completion/ has the results, for packages; a test compares. */

/* Calls each() for every flag of a command. */
static void each_flag(const struct cli_command *command,
    void (*each)(const struct cli_command *command, const char *name, const char *help))
{
    if (command->settings) {
        for (int i = 0; i < CONFIG_SETTINGS; i++)
            each(command, config_settings()[i].name, config_settings()[i].help);
    }
    for (const struct argp_option *option = command->options;
         option != NULL && option->name != NULL; option++)
        each(command, option->name, option->doc);
    for (const char *flag = command->flags; flag != NULL && *flag != '\0';) {
        size_t size = strcspn(flag, " ");
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)size - 2, flag + 2);
        each(command, name, NULL);
        flag += size + strspn(flag + size, " ");
    }
    each(command, "help", "tells the flags");
}

static void print_word(const struct cli_command *command, const char *name, const char *help)
{
    (void)command;
    (void)help;
    printf(" --%s", name);
}

static void print_bash(void)
{
    puts("# bash completion of duramen; made by `duramen completion bash`\n"
         "_duramen()\n"
         "{\n"
         "    local word=${COMP_WORDS[COMP_CWORD]} command=${COMP_WORDS[1]} words\n"
         "    COMPREPLY=()\n"
         "    if [[ $COMP_CWORD -eq 1 ]]; then");
    printf("        words='");
    for (const struct cli_command *command = cli_commands(); command->name != NULL; command++)
        printf("%s ", command->name);
    puts("help --help --version'\n"
         "    else\n"
         "        case $command in");
    for (const struct cli_command *command = cli_commands(); command->name != NULL; command++) {
        printf(
            "        %s) words='%s", command->name, command->words != NULL ? command->words : "");
        each_flag(command, print_word);
        puts("' ;;");
    }
    puts("        esac\n"
         "    fi\n"
         "    mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$word\")\n"
         "}\n"
         "complete -o default -F _duramen duramen");
}

/* Single quotes and brackets mean something in zsh's descriptions. */
static void print_described(const struct cli_command *command, const char *name, const char *help)
{
    (void)command;
    printf(" '--%s", name);
    if (help != NULL) {
        putchar('[');
        for (; *help != '\0'; help++) {
            if (strchr("'[]:`\\", *help) == NULL) putchar(*help);
        }
        putchar(']');
    }
    putchar('\'');
}

static void print_zsh(void)
{
    puts("#compdef duramen\n"
         "# zsh completion of duramen; made by `duramen completion zsh`\n"
         "_duramen() {\n"
         "    local -a commands\n"
         "    commands=(");
    for (const struct cli_command *command = cli_commands(); command->name != NULL; command++)
        printf("        '%s:%s'\n", command->name, command->summary);
    puts("    )\n"
         "    if (( CURRENT == 2 )); then\n"
         "        _describe command commands\n"
         "        return\n"
         "    fi\n"
         "    local command=$words[2]\n"
         "    shift words\n"
         "    (( CURRENT-- ))\n"
         "    case $command in");
    for (const struct cli_command *command = cli_commands(); command->name != NULL; command++) {
        printf("    %s) _arguments", command->name);
        each_flag(command, print_described);
        if (command->words != NULL) printf(" '1:action:(%s)'", command->words);
        puts(" '*:file:_files' ;;");
    }
    puts("    esac\n"
         "}\n"
         "_duramen \"$@\"");
}

static void print_fish_flag(const struct cli_command *command, const char *name, const char *help)
{
    printf("complete -c duramen -n '__fish_seen_subcommand_from %s' -l %s", command->name, name);
    if (help != NULL) {
        printf(" -d '");
        for (; *help != '\0'; help++) {
            if (*help != '\'' && *help != '\\') putchar(*help);
        }
        putchar('\'');
    }
    putchar('\n');
}

static void print_fish(void)
{
    puts("# fish completion of duramen; made by `duramen completion fish`");
    for (const struct cli_command *command = cli_commands(); command->name != NULL; command++) {
        printf("complete -c duramen -n __fish_use_subcommand -f -a %s -d '%s'\n", command->name,
            command->summary);
        if (command->words != NULL)
            printf("complete -c duramen -n '__fish_seen_subcommand_from %s' -f -a '%s'\n",
                command->name, command->words);
        each_flag(command, print_fish_flag);
    }
}

static error_t parse_shell(int key, char *argument, struct argp_state *state)
{
    const char **shell = state->input;
    switch (key) {
    case ARGP_KEY_ARG:
        if (*shell != NULL) argp_error(state, "'%s' is one word too many", argument);
        *shell = argument;
        return 0;
    case ARGP_KEY_NO_ARGS:
        argp_error(state, "write which shell: bash, zsh or fish");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

int cli_completion(int argc, char **argv)
{
    static const struct argp argp = {.options = cli_no_options,
        .parser = parse_shell,
        .args_doc = "bash|zsh|fish",
        .doc = "Prints the completions of a shell.\vExample:\n"
               "  . <(duramen completion bash)"};
    const char *shell = NULL;
    cli_parse(&argp, argc, argv, &shell);
    if (strcmp(shell, "bash") == 0) {
        print_bash();
    } else if (strcmp(shell, "zsh") == 0) {
        print_zsh();
    } else if (strcmp(shell, "fish") == 0) {
        print_fish();
    } else {
        cli_complain("there are no completions for '%s'; there are for bash, zsh and fish", shell);
        return CLI_USAGE;
    }
    return CLI_DONE;
}
