#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "base/check.h"
#include "base/logger.h"
#include "server/cli.h"
#include "server/config.h"
#include "storage/folder.h"

/* serve, config and passwd: the commands that have to do with settings. */

extern char **environ;

enum { SECRET_MAX = 1024, HASH_SIZE = 128 };

static const char hashed_prefix[] = "$argon2id$";

/* Reads at most `limit` bytes; complains and returns false if that fails. */
static bool read_file(const char *path, size_t limit, struct buffer *content)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        cli_complain("%s cannot be opened: %m", path);
        return false;
    }
    for (;;) {
        uint8_t *at = buffer_reserve(content, 4096);
        if (at == NULL) {
            errno = ENOMEM;
            break;
        }
        ssize_t got = read(fd, at, 4096);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) break;
        buffer_wrote(content, (size_t)got);
        if (got == 0 || buffer_view(content).size > limit) {
            close(fd);
            return true;
        }
    }
    cli_complain("%s cannot be read: %m", path);
    close(fd);
    return false;
}

/* Flags are in `config` already; adds environment and file. Returns an exit code. */
static int complete_config(struct config *config)
{
    enum err err =
        config_environment(config, (const char *const *)environ, cli_complain_setting, NULL);
    if (err == ERR_NOMEM) return CLI_FAILED;
    int code = err == OK ? CLI_DONE : CLI_USAGE;
    if (config->file != NULL) {
        struct buffer content = {0};
        if (!read_file(config->file, CONFIG_FILE_MAX, &content)) {
            buffer_deinit(&content);
            return CLI_USAGE;
        }
        err = config_read(config, config->file, buffer_view(&content), cli_complain_setting, NULL);
        if (content.at != NULL) explicit_bzero(content.at, content.size);
        buffer_deinit(&content);
        if (err == ERR_NOMEM) return CLI_FAILED;
        if (err != OK) code = CLI_USAGE;
    }
    if (config_finish(config, cli_complain_setting, NULL) != OK) code = CLI_USAGE;
    return code;
}

struct serve_input {
    struct config *config;
    const char *action; /* of `config` */
};

static error_t parse_serve(int key, char *argument, struct argp_state *state)
{
    struct serve_input *input = state->input;
    if (key == ARGP_KEY_ARG) {
        argp_error(state,
            "'%s' is not a flag; flags take their values as --flag=VALUE or --flag VALUE",
            argument);
        return 0;
    }
    return cli_setting_flag(input->config, key, argument, state);
}

/* Hashes the password, unless it is hashed already, into target[HASH_SIZE]; "" for none. */
static int prepare_password(const struct config *config, char *target)
{
    char secret[SECRET_MAX] = "";
    const char *origin = "requirepass";
    if (config->password_file != NULL) {
        origin = config->password_file;
        struct buffer content = {0};
        bool read = read_file(config->password_file, 65536, &content);
        struct bytes text = buffer_view(&content);
        size_t size = 0;
        while (size < text.size && text.at[size] != '\n' && text.at[size] != '\r')
            size++;
        bool fits = size < sizeof secret && (size == 0 || memchr(text.at, '\0', size) == NULL);
        if (read && fits && size > 0) {
            memcpy(secret, text.at, size);
            secret[size] = '\0';
        }
        if (content.at != NULL) explicit_bzero(content.at, content.size);
        buffer_deinit(&content);
        if (!read) return CLI_USAGE;
        if (secret[0] == '\0') {
            cli_complain("%s must have a password of 1 to %d bytes in its first line", origin,
                SECRET_MAX - 1);
            return CLI_USAGE;
        }
    } else if (config->password != NULL) {
        if (strlen(config->password) >= sizeof secret) {
            cli_complain("requirepass must have less than %d bytes", SECRET_MAX);
            return CLI_USAGE;
        }
        snprintf(secret, sizeof secret, "%s", config->password);
    }

    target[0] = '\0';
    enum err err = OK;
    if (strncmp(secret, hashed_prefix, sizeof hashed_prefix - 1) == 0) {
        if (strlen(secret) >= HASH_SIZE) {
            cli_complain("%s is no password hash; make one with `duramen passwd`", origin);
            return CLI_USAGE;
        }
        memcpy(target, secret, strlen(secret) + 1);
    } else if (secret[0] != '\0') {
        err = auth_hash(secret, target, HASH_SIZE);
    }
    explicit_bzero(secret, sizeof secret);
    if (err != OK) {
        cli_complain("the password cannot be hashed: %s", err_text(err));
        return CLI_FAILED;
    }
    return CLI_DONE;
}

/* The number of ranges is fixed when a folder is created: a restart takes the folder's, and a flag that says
 * otherwise is refused. What else may be wrong with the folder, server_run() finds and says. */
static int settle_ranges(struct config *config)
{
    struct folder *folder = malloc(sizeof *folder);
    if (folder == NULL) return CLI_FAILED;
    struct folder_identity wanted = {0};
    char detail[512];
    enum err err = folder_open(config->server.data, true, &wanted, folder, detail, sizeof detail);
    int code = CLI_DONE;
    if (err == OK) {
        uint32_t ranges = folder->identity.ranges;
        if (config_given(config, "ranges") && config->server.ranges != ranges) {
            cli_complain("%s: ranges is %u, but %s was created with %u, which cannot be changed; "
                         "leave the setting out, or restore a backup into a new folder",
                config->values[config_find("ranges")].place, config->server.ranges,
                config->server.data, ranges);
            code = CLI_USAGE;
        }
        config->server.ranges = ranges;
        folder_close(folder);
    }
    free(folder);
    return code;
}

static enum log_level level_of(const char *word)
{
    static const char *const words[] = {"debug", "info", "warn", "error"};
    for (int level = 0; level < 4; level++) {
        if (strcmp(words[level], word) == 0) return (enum log_level)level;
    }
    UNREACHABLE();
}

static int run_server(struct config *config)
{
    int code = complete_config(config);
    if (code != CLI_DONE) return code;
    if (config->server.data == NULL) {
        cli_complain("where is the data? give --data DIR (a folder; made if absent)");
        return CLI_USAGE;
    }
    char hash[HASH_SIZE];
    code = prepare_password(config, hash);
    if (code == CLI_DONE) code = settle_ranges(config);
    if (code != CLI_DONE) return code;
    if (hash[0] != '\0') config->server.password_hash = hash;
    logger_setup(level_of(config->server.log_level), config->server.log_json);
    signal(SIGPIPE, SIG_IGN);
    return server_run(&config->server);
}

int cli_serve(int argc, char **argv)
{
    static const struct argp_option no_more[] = {{0}};
    struct config *config = malloc(sizeof *config);
    struct argp_option *options = cli_setting_options(no_more);
    int code = CLI_FAILED;
    if (config != NULL && options != NULL && config_init(config) == OK) {
        struct argp argp = {.options = options,
            .parser = parse_serve,
            .doc =
                "Runs a node. The first start needs --data and makes a cluster of one there; "
                "later ones need no more than --data.\v"
                "Every flag is also an environment variable (--log-bytes: DURAMEN_LOG_BYTES) and a "
                "line of the configuration file (log-bytes = 4GiB); a flag is stronger than the "
                "environment, which is stronger than the file.\n\n"
                "Examples:\n"
                "  duramen serve --data /var/lib/duramen\n"
                "  duramen serve --data ./data --listen 7000 --http off\n"
                "  duramen serve --config /etc/duramen/duramen.conf"};
        struct serve_input input = {.config = config};
        cli_parse(&argp, argc, argv, &input);
        code = run_server(config);
        config_deinit(config);
    } else {
        cli_complain("%s", err_text(ERR_NOMEM));
    }
    free(options);
    free(config);
    return code;
}

const struct argp_option cli_config_options[] = {{0}};

static error_t parse_config(int key, char *argument, struct argp_state *state)
{
    struct serve_input *input = state->input;
    if (key == ARGP_KEY_ARG) {
        if (input->action != NULL) argp_error(state, "'%s' is one word too many", argument);
        if (strcmp(argument, "check") != 0 && strcmp(argument, "show") != 0 &&
            strcmp(argument, "list") != 0)
            argp_error(state, "'%s' is no action; write check, show or list", argument);
        input->action = argument;
        return 0;
    }
    if (key == ARGP_KEY_NO_ARGS) argp_error(state, "write what to do: check, show or list");
    return cli_setting_flag(input->config, key, argument, state);
}

static void show_config(const struct config *config)
{
    const struct config_setting *settings = config_settings();
    for (int i = 0; i < CONFIG_SETTINGS; i++) {
        const struct config_value *value = &config->values[i];
        bool hidden = settings[i].kind == CONFIG_SECRET && value->text != NULL;
        const char *text = hidden ? "(set)" : value->text != NULL ? value->text : "";
        /* what is printed is a valid file again, so what cannot stand in one is a comment */
        bool comment = hidden || settings[i].not_in_file;
        printf("%s%-20s = %-24s ; %s\n", comment ? "# " : "", settings[i].name, text,
            value->origin == CONFIG_DEFAULT ? "default" : value->place);
    }
}

/* In the form of scdoc, the manual's source. */
static void list_settings(void)
{
    const struct config_setting *settings = config_settings();
    for (int i = 0; i < CONFIG_SETTINGS; i++) {
        char variable[64];
        config_variable(&settings[i], variable, sizeof variable);
        bool unset = settings[i].fallback[0] == '\0';
        printf("*--%s* %s, %s%s%s%s\n\t%s\n\n", settings[i].name, settings[i].argument, variable,
            settings[i].not_in_file ? ", not in a file" : "", unset ? "" : ", default ",
            settings[i].fallback, settings[i].help);
    }
}

int cli_config(int argc, char **argv)
{
    struct config *config = malloc(sizeof *config);
    struct argp_option *options = cli_setting_options(cli_config_options);
    int code = CLI_FAILED;
    if (config != NULL && options != NULL && config_init(config) == OK) {
        struct argp argp = {.options = options,
            .parser = parse_config,
            .args_doc = "check|show|list",
            .doc = "Reads flags, environment and configuration file as `duramen serve` does. "
                   "check: says what is wrong (exit code 2) or that all is well. "
                   "show: prints every setting and where it came from. "
                   "list: prints what settings there are, as the manual has them."};
        struct serve_input input = {.config = config};
        cli_parse(&argp, argc, argv, &input);
        bool list = strcmp(input.action, "list") == 0;
        code = list ? CLI_DONE : complete_config(config);
        if (list)
            list_settings();
        else if (code == CLI_DONE && strcmp(input.action, "show") == 0)
            show_config(config);
        else if (code == CLI_DONE)
            puts("all settings are valid");
        config_deinit(config);
    } else {
        cli_complain("%s", err_text(ERR_NOMEM));
    }
    free(options);
    free(config);
    return code;
}

/* Reads one line without its end; on a terminal with a prompt and without echo. */
static bool read_secret(const char *prompt, char *target, size_t capacity)
{
    struct termios shown;
    bool terminal = isatty(STDIN_FILENO) && tcgetattr(STDIN_FILENO, &shown) == 0;
    if (terminal) {
        fprintf(stderr, "%s: ", prompt);
        struct termios hidden = shown;
        hidden.c_lflag &= ~(tcflag_t)ECHO;
        tcsetattr(STDIN_FILENO, TCSAFLUSH, &hidden);
    }
    char *line = fgets(target, (int)capacity, stdin);
    if (terminal) {
        tcsetattr(STDIN_FILENO, TCSAFLUSH, &shown);
        fputc('\n', stderr);
    }
    if (line == NULL) return false;
    size_t size = strcspn(target, "\r\n");
    bool whole = target[size] != '\0' || feof(stdin);
    target[size] = '\0';
    return whole;
}

int cli_passwd(int argc, char **argv)
{
    static const struct argp argp = {.options = cli_no_options,
        .doc = "Reads a password from the terminal or from standard input and prints its argon2id "
               "hash, for requirepass or a password-file."};
    cli_parse(&argp, argc, argv, NULL);
    char secret[SECRET_MAX], again[SECRET_MAX], hash[HASH_SIZE];
    int code = CLI_FAILED;
    if (!read_secret("Password", secret, sizeof secret) || secret[0] == '\0') {
        cli_complain("the password must have 1 to %d bytes", SECRET_MAX - 2);
    } else if (isatty(STDIN_FILENO) &&
        (!read_secret("Again", again, sizeof again) || strcmp(secret, again) != 0)) {
        cli_complain("the two are not the same; nothing was made");
    } else {
        enum err err = auth_hash(secret, hash, sizeof hash);
        if (err == OK) {
            puts(hash);
            code = CLI_DONE;
        } else {
            cli_complain("the password cannot be hashed: %s", err_text(err));
        }
    }
    explicit_bzero(secret, sizeof secret);
    explicit_bzero(again, sizeof again);
    return code;
}
