#ifndef SERVER_CONFIG_H
#define SERVER_CONFIG_H

#include "base/bytes.h"
#include "server/server.h"

/* Every setting of a node, from four places: flag > environment > file > default.
 *
 * One table (config_settings) drives the flags, the environment variables, the keys of the file, the
 * help text, the completions, `config show` and the manual's list. A value is checked wherever it
 * comes from, also where a stronger place overrides it: a wrong line in the file is an error even
 * while a flag hides it. Nothing here opens files or reads the environment: the texts are passed in. */

enum config_kind {
    CONFIG_TEXT,
    CONFIG_NAME, /* a letter or digit, then letters, digits, '_', '.', '-' */
    CONFIG_HOSTS, /* comma-separated host names */
    CONFIG_ADDRESS, /* "host:port" or "off" */
    CONFIG_ADDRESSES, /* comma-separated, never "off" */
    CONFIG_SIZE, /* bytes: 64MiB, 1GB, 1048576 */
    CONFIG_COUNT, /* uint32_t between least and most */
    CONFIG_NUMBER, /* uint64_t */
    CONFIG_MICROS, /* uint64_t microseconds; "off" is UINT64_MAX */
    CONFIG_SECONDS, /* uint32_t seconds; 10s, 5m, off */
    CONFIG_CHOICE, /* uint32_t: index of the word in `words` */
    CONFIG_WORD, /* the word itself, one of `words` */
    CONFIG_SWITCH, /* bool */
    CONFIG_SECRET, /* text that is never shown */
};

enum config_origin { CONFIG_DEFAULT, CONFIG_FILE, CONFIG_ENVIRONMENT, CONFIG_FLAG };

struct config_setting {
    const char *name; /* flag and file key; the environment has DURAMEN_NAME */
    enum config_kind kind;
    size_t offset; /* of the field in struct config */
    const char *fallback; /* "" for unset */
    const char *argument; /* how help names the value */
    const char *words; /* of CONFIG_CHOICE and CONFIG_WORD, separated by '|' */
    uint64_t least, most; /* of numbers, in the field's unit */
    bool not_in_file; /* makes no sense there */
    const char *help;
};

enum { CONFIG_SETTINGS = 32, CONFIG_LINE_MAX = 198, CONFIG_FILE_MAX = 1 << 20 };

struct config_value {
    char *text; /* as given, checked; addresses in full form; NULL: unset */
    enum config_origin origin;
    char place[280]; /* "file:line", "DURAMEN_X", "--x"; "" for a default */
};

struct config {
    struct server_config
        server; /* its texts borrow from `values`; complete after config_finish() */
    char *file;
    char *password;
    char *password_file;
    uint32_t log_io;
    uint32_t log_format;
    struct config_value values[CONFIG_SETTINGS];
};

/* Gets each sentence that says what is wrong and what to write instead. */
typedef void (*config_complain)(void *ctx, const char *sentence);

const struct config_setting *config_settings(void);
/* Index of the setting, or -1. */
int config_find(const char *name);
/* "DURAMEN_LOG_BYTES" for "log-bytes". */
void config_variable(const struct config_setting *setting, char *target, size_t capacity);

/* Fills in the defaults. ERR_NOMEM. */
enum err config_init(struct config *config) MUST_CHECK;
void config_deinit(struct config *config);
/* Checks `text` and stores it unless a stronger place has set it before. ERR_INVALID after
 * complaining, ERR_NOMEM. `place` is for messages and `config show`. */
enum err config_set(struct config *config, int index, enum config_origin origin, const char *place,
    const char *text, config_complain complain, void *ctx) MUST_CHECK;
/* Reads a whole configuration file; every wrong line is complained about. */
enum err config_read(struct config *config, const char *file_name, struct bytes content,
    config_complain complain, void *ctx) MUST_CHECK;
/* Reads the variables DURAMEN_*, as environ has them. Unknown ones that look mistyped are
 * complained about without failing. */
enum err config_environment(struct config *config, const char *const *variables,
    config_complain complain, void *ctx) MUST_CHECK;
/* Checks what concerns several settings, and completes config->server (but for password_hash). */
enum err config_finish(struct config *config, config_complain complain, void *ctx) MUST_CHECK;
/* True if it was set anywhere. */
bool config_given(const struct config *config, const char *name);

/* 64MiB, 1GB, 512k, 1048576; ERR_INVALID. KiB and K are 1024, KB is 1000. */
enum err config_parse_size(const char *text, uint64_t *bytes_out) MUST_CHECK;
/* 10s, 500ms, 2m, 1h, 250us; a plain number counts units of `unit_us` microseconds. */
enum err config_parse_duration(const char *text, uint64_t unit_us, uint64_t *us_out) MUST_CHECK;
/* host:port, port, [::1]:port or off, into "host:port" or "off". */
enum err config_parse_address(const char *text, char *target, size_t capacity) MUST_CHECK;

#endif
