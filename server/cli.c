#define _GNU_SOURCE
#include "server/cli.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/config.h"
#include "server/suggest.h"

/* Flags are parsed by glibc's argp, which gives --help, --usage and wrapping. Three things it does not have are
 * here: -h, exit status 2 for wrong usage, and "did you mean". */

enum { KEY_SETTING = 0x1000 };

const struct argp_option cli_no_options[] = {{0}};

void cli_complain(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("duramen: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
}

void cli_complain_setting(void *ctx, const char *sentence)
{
    (void)ctx;
    cli_complain("%s", sentence);
}

/* What getopt would accept for --word: the name itself or a prefix that only one option has. */
static const struct argp_option *find_option(
    const struct argp_option *options, const char *word, size_t size)
{
    const struct argp_option *found = NULL;
    for (; options->name != NULL || options->key != 0 || options->doc != NULL; options++) {
        if (options->name == NULL || strncmp(options->name, word, size) != 0) continue;
        if (options->name[size] == '\0') return options;
        found = options;
    }
    return found;
}

static void check_flags(const struct argp_option *options, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (strcmp(word, "--") == 0) return;
        if (strncmp(word, "--", 2) != 0) continue;
        word += 2;
        size_t size = strcspn(word, "=");
        if (strncmp("help", word, size) == 0 || strncmp("usage", word, size) == 0) continue;
        const struct argp_option *option = find_option(options, word, size);
        if (option != NULL) {
            /* its value may begin with dashes itself */
            bool value_follows = option->arg != NULL && (option->flags & OPTION_ARG_OPTIONAL) == 0;
            if (value_follows && word[size] != '=') i++;
            continue;
        }
        char name[SUGGEST_WORD_MAX + 2];
        snprintf(name, sizeof name, "%.*s", (int)size, word);
        struct suggest suggest;
        suggest_begin(&suggest, name);
        suggest_offer(&suggest, "help");
        for (const struct argp_option *each = options; each->name != NULL; each++)
            suggest_offer(&suggest, each->name);
        const char *meant = suggest_best(&suggest);
        if (meant != NULL)
            fprintf(
                stderr, "%s: there is no flag --%s; did you mean --%s?\n", argv[0], name, meant);
        else
            fprintf(stderr, "%s: there is no flag --%s; `%s --help` lists them\n", argv[0], name,
                argv[0]);
        exit(CLI_USAGE);
    }
}

/* argp's own parser runs as a child of this one, which only adds -h. */
static error_t parse_help(int key, char *argument, struct argp_state *state)
{
    (void)argument;
    if (key == ARGP_KEY_INIT) {
        state->child_inputs[0] = state->input;
        return 0;
    }
    if (key != 'h') return ARGP_ERR_UNKNOWN;
    argp_state_help(state, state->out_stream, ARGP_HELP_STD_HELP);
    return 0;
}

void cli_parse(const struct argp *argp, int argc, char **argv, void *input)
{
    static const struct argp_option help_options[] = {{.key = 'h', .flags = OPTION_HIDDEN}, {0}};
    const struct argp_child children[] = {{.argp = argp}, {0}};
    const struct argp outer = {.options = help_options, .parser = parse_help, .children = children};
    argp_err_exit_status = CLI_USAGE;
    if (argp->options != NULL) check_flags(argp->options, argc, argv);
    error_t error = argp_parse(&outer, argc, argv, 0, NULL, input);
    if (error != 0) {
        cli_complain("%s", strerror(error));
        exit(CLI_FAILED);
    }
}

struct argp_option *cli_setting_options(const struct argp_option *more)
{
    size_t more_count = 0;
    while (more[more_count].name != NULL)
        more_count++;
    size_t count = CONFIG_SETTINGS + more_count + 1;
    enum { DOC_SIZE = 320 };
    /* one block: the entries, then the texts they point to */
    struct argp_option *options =
        calloc(1, count * sizeof *options + (size_t)CONFIG_SETTINGS * DOC_SIZE);
    if (options == NULL) return NULL;
    char *docs = (char *)(options + count);
    const struct config_setting *settings = config_settings();
    for (int i = 0; i < CONFIG_SETTINGS; i++) {
        char *doc = docs + (size_t)i * DOC_SIZE;
        bool unset = settings[i].fallback[0] == '\0';
        snprintf(doc, DOC_SIZE, "%s%s%s%s", settings[i].help, unset ? "" : " (default ",
            settings[i].fallback, unset ? "" : ")");
        options[i] = (struct argp_option){.name = settings[i].name,
            .key = KEY_SETTING + i,
            .arg = settings[i].argument,
            .flags = settings[i].kind == CONFIG_SWITCH ? OPTION_ARG_OPTIONAL : 0,
            .doc = doc};
    }
    memcpy(options + CONFIG_SETTINGS, more, more_count * sizeof *more);
    return options;
}

error_t cli_setting_flag(struct config *config, int key, char *argument, struct argp_state *state)
{
    if (key < KEY_SETTING || key >= KEY_SETTING + CONFIG_SETTINGS) return ARGP_ERR_UNKNOWN;
    int index = key - KEY_SETTING;
    const struct config_setting *setting = &config_settings()[index];
    char place[64];
    snprintf(place, sizeof place, "--%s", setting->name);
    const char *text = argument != NULL ? argument : "yes";
    if (text[0] == '\0') argp_error(state, "--%s needs a value", setting->name);
    enum err err = config_set(config, index, CONFIG_FLAG, place, text, cli_complain_setting, NULL);
    /* the process list shows argv to every user of the machine */
    if (setting->kind == CONFIG_SECRET && argument != NULL) memset(argument, '*', strlen(argument));
    if (err == ERR_NOMEM) return ENOMEM;
    if (err != OK) exit(CLI_USAGE);
    return 0;
}

void cli_node_flag(const char *argument, char *target, struct argp_state *state)
{
    if (config_parse_address(argument, target, CLI_NODE_SIZE) != OK || strcmp(target, "off") == 0)
        argp_error(state, "--node %s is no address; write HOST:HTTPPORT", argument);
}

const char *cli_bytes(double bytes, char *target, size_t capacity)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    size_t unit = 0;
    while (bytes >= 1024 && unit + 1 < sizeof units / sizeof *units) {
        bytes /= 1024;
        unit++;
    }
    snprintf(
        target, capacity, unit == 0 || bytes >= 100 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
    return target;
}
