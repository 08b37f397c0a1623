#ifndef SERVER_CLI_H
#define SERVER_CLI_H

#include <argp.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

struct config;

/* The program's subcommands. One table names them all: main, help, suggestions and the shell
 * completions read it. */

/* Exit codes, as README and manual list them. */
enum cli_exit { CLI_DONE = 0, CLI_FAILED = 1, CLI_USAGE = 2, CLI_DAMAGED = 3, CLI_DURABILITY = 4 };

struct cli_command {
    const char *name;
    const char *summary;
    const struct argp_option *options; /* NULL: see `flags` */
    bool settings; /* takes every setting of server/config.h as a flag */
    const char *flags; /* for completions only: of commands that parse by themselves */
    const char *words; /* for completions: what may follow, separated by spaces */
    /* argv[0] is "duramen NAME". Returns the exit code. */
    int (*run)(int argc, char **argv);
};

/* Ends with a NULL name. */
const struct cli_command *cli_commands(void);

/* Parses by argp (-h, --help and --usage included), after looking for unknown flags, for which argp has no suggestion.
 * Does not return on wrong usage (exit status 2) or after help. */
void cli_parse(const struct argp *argp, int argc, char **argv, void *input);
/* One sentence to stderr, with the program's name before it. */
void cli_complain(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* A config_complain. */
void cli_complain_setting(void *ctx, const char *sentence);

/* The flags of all settings, then `more` (ended by a zero entry): free() the result. NULL: no memory. */
struct argp_option *cli_setting_options(const struct argp_option *more);
/* Takes a flag's value if `key` is a setting's. ARGP_ERR_UNKNOWN if not. A wrong value ends the process. */
error_t cli_setting_flag(struct config *config, int key, char *argument, struct argp_state *state);

/* `--node`: fills target with "host:port". */
enum { CLI_NODE_SIZE = 96 };
enum {
    CLI_KEY_NODE = 0x2000,
    CLI_KEY_JSON,
    CLI_KEY_OUT,
    CLI_KEY_IN,
    CLI_KEY_DATA,
    CLI_KEY_DRY_RUN
};
void cli_node_flag(const char *argument, char *target, struct argp_state *state);

/* A byte count for people: "1.5 GiB". Returns target. */
const char *cli_bytes(double bytes, char *target, size_t capacity);

int cli_serve(int argc, char **argv);
int cli_config(int argc, char **argv);
int cli_passwd(int argc, char **argv);
int cli_status(int argc, char **argv);
int cli_member(int argc, char **argv);
int cli_leader(int argc, char **argv);
int cli_backup(int argc, char **argv);
int cli_restore(int argc, char **argv);
int cli_verify(int argc, char **argv);
int cli_completion(int argc, char **argv);
int cli_version(int argc, char **argv);

extern const struct argp_option cli_status_options[];
extern const struct argp_option cli_member_options[];
extern const struct argp_option cli_leader_options[];
extern const struct argp_option cli_backup_options[];
extern const struct argp_option cli_restore_options[];
extern const struct argp_option cli_config_options[];
extern const struct argp_option cli_no_options[];

#endif
