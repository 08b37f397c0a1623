#define _GNU_SOURCE
#include "server/config.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <ini.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#include "base/check.h"
#include "cluster/map/map.h"
#include "server/suggest.h"

/* The order in which the places are read does not matter: a value is stored only over one of the
 * same or a weaker origin.
 *
 * The file is read with inih, through a reader of our own, for three reasons: inih cuts lines of more than
 * 199 bytes in two without saying so, it takes an indented line as the continuation of the one
 * before, and its handler does not know the line number. The reader hands it one trimmed line
 * a call, refuses long ones, and counts. */

#define FIELD(member) offsetof(struct config, member)

static const struct config_setting settings[CONFIG_SETTINGS] = {
    {.name = "data",
        .kind = CONFIG_TEXT,
        .offset = FIELD(server.data),
        .fallback = "",
        .argument = "DIR",
        .help = "folder of this node's data; made if absent"},
    {.name = "listen",
        .kind = CONFIG_ADDRESS,
        .offset = FIELD(server.listen),
        .fallback = "127.0.0.1:7379",
        .argument = "HOST:PORT",
        .help = "address for Redis clients; port 0 picks a free one, off serves none"},
    {.name = "http",
        .kind = CONFIG_ADDRESS,
        .offset = FIELD(server.http),
        .fallback = "127.0.0.1:7380",
        .argument = "HOST:PORT",
        .help = "address of the HTTP interface, metrics and dashboard, or off"},
    {.name = "peer",
        .kind = CONFIG_ADDRESS,
        .offset = FIELD(server.peer),
        .fallback = "127.0.0.1:7381",
        .argument = "HOST:PORT",
        .help = "address other nodes reach this one by; port 0 picks a free one, off stays alone"},
    {.name = "join",
        .kind = CONFIG_ADDRESSES,
        .offset = FIELD(server.join),
        .fallback = "",
        .argument = "HOST:PORT[,...]",
        .help = "peer address of any running node of the cluster that a new folder becomes a "
                "member of"},
    {.name = "join-timeout",
        .kind = CONFIG_SECONDS,
        .offset = FIELD(server.join_timeout_s),
        .fallback = "60s",
        .argument = "TIME",
        .least = 1,
        .most = 86400,
        .help = "gives up joining after this long"},
    {.name = "cluster-secret-file",
        .kind = CONFIG_TEXT,
        .offset = FIELD(server.cluster_secret_file),
        .fallback = "",
        .argument = "FILE",
        .help = "file with the secret all nodes share; needed unless peer is on loopback"},
    {.name = "name",
        .kind = CONFIG_NAME,
        .offset = FIELD(server.name),
        .fallback = "",
        .argument = "NAME",
        .help = "name of this node, fixed at the first start; made up if not given"},
    {.name = "zone",
        .kind = CONFIG_NAME,
        .offset = FIELD(server.zone),
        .fallback = "",
        .argument = "ZONE",
        .help = "failure domain of this node"},
    {.name = "replicas",
        .kind = CONFIG_COUNT,
        .offset = FIELD(server.replicas),
        .fallback = "3",
        .argument = "N",
        .least = 1,
        .most = 7,
        .help = "copies of every range once there are enough nodes"},
    {.name = "deadline-ms",
        .kind = CONFIG_COUNT,
        .offset = FIELD(server.deadline_ms),
        .fallback = "2000",
        .argument = "MILLISECONDS",
        .least = 100,
        .most = 60000,
        .help = "after this long a request that needs other nodes is answered with an error"},
    {.name = "leases",
        .kind = CONFIG_SWITCH,
        .offset = FIELD(server.leases),
        .fallback = "no",
        .argument = "yes|no",
        .help = "leaders answer reads without asking a majority; needs clocks that run evenly"},
    {.name = "ranges",
        .kind = CONFIG_COUNT,
        .offset = FIELD(server.ranges),
        .fallback = "64",
        .argument = "N",
        .least = 1,
        .most = MAP_RANGES_MAX,
        .help = "parts of the key space, a power of two; fixed at the first start"},
    {.name = "memory",
        .kind = CONFIG_SIZE,
        .offset = FIELD(server.memory),
        .fallback = "512MiB",
        .argument = "SIZE",
        .least = 16 << 20,
        .most = (uint64_t)1 << 46,
        .help = "budget of the memtables, between two checkpoints"},
    {.name = "log-bytes",
        .kind = CONFIG_SIZE,
        .offset = FIELD(server.log_bytes),
        .fallback = "4GiB",
        .argument = "SIZE",
        .least = 256 << 20,
        .most = (uint64_t)1 << 46,
        .help = "disk space the log may take; writes are refused when it is full"},
    {.name = "log-io",
        .kind = CONFIG_CHOICE,
        .offset = FIELD(log_io),
        .fallback = "auto",
        .words = "auto|dsync|ring-dsync|ring-link|posix",
        .argument = "HOW",
        .help = "how the log writes: auto, dsync, ring-dsync, ring-link or posix"},
    {.name = "io",
        .kind = CONFIG_WORD,
        .offset = FIELD(server.io),
        .fallback = "auto",
        .words = "auto|uring|posix",
        .argument = "HOW",
        .help = "how connections are served: auto, uring or posix (epoll)"},
    {.name = "requirepass",
        .kind = CONFIG_SECRET,
        .offset = FIELD(password),
        .fallback = "",
        .argument = "SECRET",
        .help = "password of all clients, plain or as `duramen passwd` prints it; other users of "
                "the machine can see flags, so prefer password-file"},
    {.name = "password-file",
        .kind = CONFIG_TEXT,
        .offset = FIELD(password_file),
        .fallback = "",
        .argument = "FILE",
        .help = "file whose first line is the password, plain or as `duramen passwd` prints it"},
    {.name = "connections",
        .kind = CONFIG_COUNT,
        .offset = FIELD(server.connections_max),
        .fallback = "10000",
        .argument = "N",
        .least = 1,
        .most = 1000000,
        .help = "clients at once; more are refused with an error"},
    {.name = "output-limit",
        .kind = CONFIG_SIZE,
        .offset = FIELD(server.output_limit),
        .fallback = "64MiB",
        .argument = "SIZE",
        .least = 64 << 10,
        .most = (uint64_t)1 << 40,
        .help = "replies held for one slow reader before it is dropped"},
    {.name = "client-memory",
        .kind = CONFIG_SIZE,
        .offset = FIELD(server.client_memory),
        .fallback = "256MiB",
        .argument = "SIZE",
        .least = 1 << 20,
        .most = (uint64_t)1 << 46,
        .help = "memory of all connections together; beyond it reading pauses"},
    {.name = "idle-timeout",
        .kind = CONFIG_SECONDS,
        .offset = FIELD(server.idle_timeout_s),
        .fallback = "off",
        .argument = "TIME",
        .most = 31536000,
        .help = "closes connections idle for longer, or off"},
    {.name = "slowlog-us",
        .kind = CONFIG_MICROS,
        .offset = FIELD(server.slowlog_us),
        .fallback = "10000",
        .argument = "MICROSECONDS",
        .most = UINT64_MAX,
        .help = "commands that take longer go to SLOWLOG; off for none"},
    {.name = "slowlog-len",
        .kind = CONFIG_COUNT,
        .offset = FIELD(server.slowlog_max),
        .fallback = "128",
        .argument = "N",
        .most = 100000,
        .help = "entries SLOWLOG keeps"},
    {.name = "enable-debug-command",
        .kind = CONFIG_SWITCH,
        .offset = FIELD(server.debug_command),
        .fallback = "no",
        .argument = "yes|no",
        .help = "allows DEBUG"},
    {.name = "scrub",
        .kind = CONFIG_SWITCH,
        .offset = FIELD(server.scrub),
        .fallback = "yes",
        .argument = "yes|no",
        .help = "checks every stored value in the background"},
    {.name = "accept-loss",
        .kind = CONFIG_NUMBER,
        .offset = FIELD(server.accept_loss),
        .fallback = "",
        .argument = "LSN",
        .most = UINT64_MAX,
        .help = "cuts a damaged log at this LSN, as the refusal to start named it; what was "
                "acknowledged after it is lost"},
    {.name = "allowed-hosts",
        .kind = CONFIG_HOSTS,
        .offset = FIELD(server.allowed_hosts),
        .fallback = "",
        .argument = "NAME[,...]",
        .help = "names the HTTP Host header may have beside those of this machine"},
    {.name = "log-level",
        .kind = CONFIG_WORD,
        .offset = FIELD(server.log_level),
        .fallback = "info",
        .words = "debug|info|warn|error",
        .argument = "LEVEL",
        .help = "debug, info, warn or error"},
    {.name = "log-format",
        .kind = CONFIG_CHOICE,
        .offset = FIELD(log_format),
        .fallback = "logfmt",
        .words = "logfmt|json",
        .argument = "FORMAT",
        .help = "logfmt or json, one line an event on standard error"},
    {.name = "config",
        .kind = CONFIG_TEXT,
        .offset = FIELD(file),
        .fallback = "",
        .argument = "FILE",
        .not_in_file = true,
        .help = "file with settings, one `name = value` a line"},
};

const struct config_setting *config_settings(void)
{
    return settings;
}

int config_find(const char *name)
{
    for (int i = 0; i < CONFIG_SETTINGS; i++) {
        if (strcmp(settings[i].name, name) == 0) return i;
    }
    return -1;
}

void config_variable(const struct config_setting *setting, char *target, size_t capacity)
{
    int size = snprintf(target, capacity, "DURAMEN_%s", setting->name);
    ASSERT(size > 0 && (size_t)size < capacity);
    for (; *target != '\0'; target++)
        *target = *target == '-' ? '_' : (char)toupper((unsigned char)*target);
}

static void complain_about(config_complain complain, void *ctx, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void complain_about(config_complain complain, void *ctx, const char *format, ...)
{
    char sentence[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    complain(ctx, sentence);
}

/* Digits only, without sign, space or overflow; *rest_out is what follows them. */
static bool parse_digits(const char *text, uint64_t *value_out, const char **rest_out)
{
    if (!isdigit((unsigned char)text[0])) return false;
    errno = 0;
    char *end;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0) return false;
    *value_out = value;
    *rest_out = end;
    return true;
}

struct unit {
    const char *name;
    uint64_t factor;
};

static enum err scale(const struct unit *units, const char *name, uint64_t *value)
{
    for (; units->name != NULL; units++) {
        if (strcasecmp(units->name, name) != 0) continue;
        if (__builtin_mul_overflow(*value, units->factor, value)) return ERR_INVALID;
        return OK;
    }
    return ERR_INVALID;
}

enum err config_parse_size(const char *text, uint64_t *bytes_out)
{
    static const struct unit units[] = {{"", 1}, {"b", 1}, {"k", 1ull << 10}, {"kb", 1000},
        {"kib", 1ull << 10}, {"m", 1ull << 20}, {"mb", 1000000}, {"mib", 1ull << 20},
        {"g", 1ull << 30}, {"gb", 1000000000}, {"gib", 1ull << 30}, {"t", 1ull << 40},
        {"tb", 1000000000000}, {"tib", 1ull << 40}, {NULL, 0}};
    uint64_t value;
    const char *rest;
    if (!parse_digits(text, &value, &rest)) return ERR_INVALID;
    TRY(scale(units, rest, &value));
    *bytes_out = value;
    return OK;
}

enum err config_parse_duration(const char *text, uint64_t unit_us, uint64_t *us_out)
{
    const struct unit units[] = {{"", unit_us}, {"us", 1}, {"ms", 1000}, {"s", 1000000},
        {"m", 60000000}, {"min", 60000000}, {"h", 3600000000}, {NULL, 0}};
    uint64_t value;
    const char *rest;
    if (!parse_digits(text, &value, &rest)) return ERR_INVALID;
    TRY(scale(units, rest, &value));
    *us_out = value;
    return OK;
}

static bool port_valid(const char *text)
{
    uint64_t port;
    const char *rest;
    return parse_digits(text, &port, &rest) && *rest == '\0' && port <= 65535;
}

static bool host_valid(const char *text, size_t size)
{
    if (size == 0 || size > 63) return false;
    for (size_t i = 0; i < size; i++) {
        if (!isalnum((unsigned char)text[i]) && strchr("._-", text[i]) == NULL) return false;
    }
    return true;
}

enum err config_parse_address(const char *text, char *target, size_t capacity)
{
    if (strlen(text) >= 80) return ERR_INVALID;
    const char *host = "";
    if (strcmp(text, "off") == 0) {
    } else if (port_valid(text)) {
        host = "127.0.0.1:";
    } else if (text[0] == '[') {
        const char *close = strchr(text, ']');
        if (close == NULL || close[1] != ':' || !port_valid(close + 2)) return ERR_INVALID;
        char inner[80];
        size_t size = (size_t)(close - text) - 1;
        memcpy(inner, text + 1, size);
        inner[size] = '\0';
        struct in6_addr address;
        if (inet_pton(AF_INET6, inner, &address) != 1) return ERR_INVALID;
    } else {
        const char *colon = strchr(text, ':');
        if (colon == NULL || !port_valid(colon + 1)) return ERR_INVALID;
        if (!host_valid(text, (size_t)(colon - text))) return ERR_INVALID;
    }
    int size = snprintf(target, capacity, "%s%s", host, text);
    return size > 0 && (size_t)size < capacity ? OK : ERR_INVALID;
}

/* Index of `text` among words separated by '|', or -1. */
static int find_word(const char *words, const char *text)
{
    size_t size = strlen(text);
    for (int index = 0;; index++) {
        size_t word_size = strcspn(words, "|");
        if (word_size == size && strncmp(words, text, size) == 0) return index;
        if (words[word_size] == '\0') return -1;
        words += word_size + 1;
    }
}

static bool parse_switch(const char *text, bool *value_out)
{
    static const char *const words[][2] = {
        {"yes", "no"}, {"true", "false"}, {"on", "off"}, {"1", "0"}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (strcasecmp(text, words[i][0]) == 0 || strcasecmp(text, words[i][1]) == 0) {
            *value_out = strcasecmp(text, words[i][0]) == 0;
            return true;
        }
    }
    return false;
}

static bool name_valid(const char *text)
{
    return isalnum((unsigned char)text[0]) && host_valid(text, strlen(text));
}

/* Checks every element of a comma-separated list and joins them again in full form. */
static bool parse_list(enum config_kind kind, const char *text, char *target, size_t capacity)
{
    size_t used = 0;
    for (;;) {
        size_t size = strcspn(text, ",");
        char element[80], full[96];
        if (size >= sizeof element) return false;
        memcpy(element, text, size);
        element[size] = '\0';
        if (kind == CONFIG_HOSTS) {
            if (!host_valid(element, size)) return false;
            snprintf(full, sizeof full, "%s", element);
        } else {
            if (strcmp(element, "off") == 0) return false;
            if (config_parse_address(element, full, sizeof full) != OK) return false;
        }
        int more = snprintf(target + used, capacity - used, "%s%s", used > 0 ? "," : "", full);
        if (more < 0 || (size_t)more >= capacity - used) return false;
        used += (size_t)more;
        if (text[size] == '\0') return true;
        text += size + 1;
    }
}

/* A value that passed its check: what goes into the field, and its text. */
struct parsed {
    char text[4096];
    uint64_t number;
};

/* Returns NULL if `text` is legal for the setting, else what to write ("write ..."). */
static const char *parse_value(
    const struct config_setting *setting, const char *text, struct parsed *parsed)
{
    bool is_switch = false;
    if (strlen(text) >= sizeof parsed->text) return "write less than 4096 bytes";
    snprintf(parsed->text, sizeof parsed->text, "%s", text);
    parsed->number = 0;
    const char *rest = "";
    switch (setting->kind) {
    case CONFIG_TEXT:
    case CONFIG_SECRET:
        return NULL;
    case CONFIG_NAME:
        if (!name_valid(text))
            return "write up to 63 letters, digits, '_', '.' or '-', first a letter or digit";
        return NULL;
    case CONFIG_HOSTS:
        if (!parse_list(setting->kind, text, parsed->text, sizeof parsed->text))
            return "write host names without ports, separated by commas";
        return NULL;
    case CONFIG_ADDRESS:
        if (config_parse_address(text, parsed->text, sizeof parsed->text) != OK)
            return "write HOST:PORT, a port alone, [::1]:PORT or off";
        return NULL;
    case CONFIG_ADDRESSES:
        if (!parse_list(setting->kind, text, parsed->text, sizeof parsed->text))
            return "write HOST:PORT, several separated by commas";
        return NULL;
    case CONFIG_SIZE:
        if (config_parse_size(text, &parsed->number) != OK)
            return "write a size such as 64MiB, 1GB or 1048576";
        break;
    case CONFIG_COUNT:
    case CONFIG_NUMBER:
        if (!parse_digits(text, &parsed->number, &rest) || *rest != '\0')
            return "write a whole number";
        break;
    case CONFIG_MICROS:
        parsed->number = UINT64_MAX;
        if (strcmp(text, "off") != 0 && strcmp(text, "-1") != 0 &&
            config_parse_duration(text, 1, &parsed->number) != OK)
            return "write microseconds, a time such as 10ms, or off";
        break;
    case CONFIG_SECONDS:
        if (strcmp(text, "off") != 0 && config_parse_duration(text, 1000000, &parsed->number) != OK)
            return "write seconds, a time such as 5m, or off";
        if (parsed->number % 1000000 != 0) return "write whole seconds";
        parsed->number /= 1000000;
        break;
    case CONFIG_CHOICE:
    case CONFIG_WORD:
        if (find_word(setting->words, text) < 0) return "write one of ";
        parsed->number = (uint64_t)find_word(setting->words, text);
        return NULL;
    case CONFIG_SWITCH:
        if (!parse_switch(text, &is_switch)) return "write yes or no";
        parsed->number = is_switch;
        return NULL;
    }
    if (parsed->number < setting->least) return "the least is ";
    if (parsed->number > setting->most) return "the most is ";
    return NULL;
}

static void store_value(struct config *config, const struct config_setting *setting,
    const struct parsed *parsed, char *text)
{
    uint8_t *field = (uint8_t *)config + setting->offset;
    uint32_t narrow = (uint32_t)parsed->number;
    bool flag = parsed->number != 0;
    switch (setting->kind) {
    case CONFIG_TEXT:
    case CONFIG_NAME:
    case CONFIG_HOSTS:
    case CONFIG_ADDRESS:
    case CONFIG_ADDRESSES:
    case CONFIG_WORD:
    case CONFIG_SECRET:
        memcpy(field, &text, sizeof text);
        break;
    case CONFIG_SIZE:
    case CONFIG_NUMBER:
    case CONFIG_MICROS:
        memcpy(field, &parsed->number, sizeof parsed->number);
        break;
    case CONFIG_COUNT:
    case CONFIG_SECONDS:
    case CONFIG_CHOICE:
        memcpy(field, &narrow, sizeof narrow);
        break;
    case CONFIG_SWITCH:
        memcpy(field, &flag, sizeof flag);
        break;
    }
}

static void complain_value(const struct config_setting *setting, const char *place,
    const char *text, const char *advice, config_complain complain, void *ctx)
{
    char more[64] = "";
    if (setting->kind == CONFIG_CHOICE || setting->kind == CONFIG_WORD)
        snprintf(more, sizeof more, "%s", setting->words);
    else if (strcmp(advice, "the least is ") == 0)
        snprintf(more, sizeof more, "%llu", (unsigned long long)setting->least);
    else if (strcmp(advice, "the most is ") == 0)
        snprintf(more, sizeof more, "%llu", (unsigned long long)setting->most);
    bool secret = setting->kind == CONFIG_SECRET;
    complain_about(complain, ctx, "%s: '%.120s' is no value for %s; %s%s", place,
        secret ? "(hidden)" : text, setting->name, advice, more);
}

enum err config_set(struct config *config, int index, enum config_origin origin, const char *place,
    const char *text, config_complain complain, void *ctx)
{
    ASSERT(index >= 0 && index < CONFIG_SETTINGS);
    const struct config_setting *setting = &settings[index];
    struct config_value *value = &config->values[index];
    struct parsed parsed;
    /* empty means "as if not given": how an environment variable is unset in many places */
    const char *wanted = text[0] != '\0' ? text : setting->fallback;
    char *copy = NULL;
    if (wanted[0] != '\0') {
        const char *advice = parse_value(setting, wanted, &parsed);
        if (advice != NULL) {
            complain_value(setting, place, text, advice, complain, ctx);
            return ERR_INVALID;
        }
        if (origin < value->origin) return OK;
        copy = strdup(parsed.text);
        if (copy == NULL) return ERR_NOMEM;
    } else {
        if (origin < value->origin) return OK;
        parsed.number = 0;
    }
    store_value(config, setting, &parsed, copy);
    free(value->text);
    value->text = copy;
    value->origin = text[0] != '\0' ? origin : CONFIG_DEFAULT;
    snprintf(value->place, sizeof value->place, "%s", value->origin == CONFIG_DEFAULT ? "" : place);
    return OK;
}

static void complain_nowhere(void *ctx, const char *sentence)
{
    (void)ctx;
    (void)sentence;
}

enum err config_init(struct config *config)
{
    memset(config, 0, sizeof *config);
    for (int i = 0; i < CONFIG_SETTINGS; i++) {
        enum err err = config_set(config, i, CONFIG_DEFAULT, "", "", complain_nowhere, NULL);
        ASSERT(err == OK || err == ERR_NOMEM);
        if (err != OK) {
            config_deinit(config);
            return err;
        }
    }
    return OK;
}

void config_deinit(struct config *config)
{
    for (int i = 0; i < CONFIG_SETTINGS; i++) {
        char *text = config->values[i].text;
        if (text != NULL && settings[i].kind == CONFIG_SECRET) explicit_bzero(text, strlen(text));
        free(text);
    }
    memset(config, 0, sizeof *config);
}

bool config_given(const struct config *config, const char *name)
{
    int index = config_find(name);
    ASSERT(index >= 0);
    return config->values[index].origin != CONFIG_DEFAULT;
}

struct file_reader {
    struct config *config;
    const char *file_name;
    struct bytes rest;
    unsigned line;
    unsigned seen[CONFIG_SETTINGS]; /* line of the first setting; 0: none */
    unsigned open_line; /* given to inih, whose handler was not called for it yet */
    unsigned errors;
    bool no_memory;
    config_complain complain;
    void *ctx;
};

static void complain_line(struct file_reader *reader, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void complain_line(struct file_reader *reader, const char *format, ...)
{
    char sentence[700];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    complain_about(
        reader->complain, reader->ctx, "%s:%u: %s", reader->file_name, reader->line, sentence);
    reader->errors++;
}

/* inih calls its handler for a pair before it asks for the next line; a line without that was none. */
static void close_line(struct file_reader *reader)
{
    if (reader->open_line != 0) complain_line(reader, "is no setting; write `name = value`");
    reader->open_line = 0;
}

static bool is_space(uint8_t byte)
{
    return byte == ' ' || byte == '\t' || byte == '\r';
}

/* inih's reader: the next line into `line`, as fgets would, trimmed at its front. */
static char *next_line(char *line, int capacity, void *stream)
{
    struct file_reader *reader = stream;
    close_line(reader);
    if (reader->rest.size == 0) return NULL;
    ASSERT(capacity > CONFIG_LINE_MAX);
    reader->line++;
    const uint8_t *end = memchr(reader->rest.at, '\n', reader->rest.size);
    size_t size = end != NULL ? (size_t)(end - reader->rest.at) : reader->rest.size;
    struct bytes text = bytes_of(reader->rest.at, size);
    size_t taken = size + (end != NULL ? 1 : 0);
    reader->rest = bytes_of(reader->rest.at + taken, reader->rest.size - taken);

    while (text.size > 0 && is_space(text.at[0]))
        text = bytes_of(text.at + 1, text.size - 1);
    while (text.size > 0 && is_space(text.at[text.size - 1]))
        text.size--;
    line[0] = '\0';
    bool comment = text.size > 0 && (text.at[0] == '#' || text.at[0] == ';');
    if (text.size == 0 || comment) return line;
    if (memchr(text.at, '\0', text.size) != NULL) {
        complain_line(reader, "has a NUL byte; a configuration file is text");
    } else if (text.at[0] == '[') {
        complain_line(reader, "has a section; the file is flat, one `name = value` a line");
    } else if (text.size > CONFIG_LINE_MAX) {
        complain_line(reader,
            "is longer than %d bytes; shorten it, or use a flag or the environment",
            CONFIG_LINE_MAX);
    } else {
        memcpy(line, text.at, text.size);
        line[text.size] = '\0';
        reader->open_line = reader->line;
    }
    return line;
}

static int handle_pair(void *user, const char *section, const char *name, const char *value)
{
    struct file_reader *reader = user;
    (void)section;
    int index = config_find(name);
    reader->open_line = 0;
    if (index < 0 || settings[index].not_in_file) {
        struct suggest suggest;
        suggest_begin(&suggest, name);
        for (int i = 0; i < CONFIG_SETTINGS && index < 0; i++) {
            if (!settings[i].not_in_file) suggest_offer(&suggest, settings[i].name);
        }
        const char *meant = suggest_best(&suggest);
        complain_line(reader, "there is no setting '%.100s' for files%s%s%s", name,
            meant != NULL ? "; did you mean '" : "; `duramen config show` lists all",
            meant != NULL ? meant : "", meant != NULL ? "'?" : "");
        return 1;
    }
    if (reader->seen[index] != 0) {
        complain_line(reader, "sets '%s' again, after line %u; remove one of them", name,
            reader->seen[index]);
        return 1;
    }
    reader->seen[index] = reader->line;
    char place[280];
    snprintf(place, sizeof place, "%s:%u", reader->file_name, reader->line);
    enum err err =
        config_set(reader->config, index, CONFIG_FILE, place, value, reader->complain, reader->ctx);
    if (err == ERR_NOMEM) reader->no_memory = true;
    if (err != OK) reader->errors++;
    return 1;
}

enum err config_read(struct config *config, const char *file_name, struct bytes content,
    config_complain complain, void *ctx)
{
    if (content.size > CONFIG_FILE_MAX) {
        complain_about(
            complain, ctx, "%s: is larger than 1 MiB; this is no configuration file", file_name);
        return ERR_INVALID;
    }
    struct file_reader reader = {.config = config,
        .file_name = file_name,
        .rest = content,
        .complain = complain,
        .ctx = ctx};
    int result = ini_parse_stream(next_line, &reader, handle_pair, &reader);
    if (result < 0 || reader.no_memory) return ERR_NOMEM;
    return reader.errors == 0 ? OK : ERR_INVALID;
}

/* A variable of that prefix that no setting has: only a likely slip of the keyboard is worth a word. */
static void complain_variable(const char *name, config_complain complain, void *ctx)
{
    char variables[CONFIG_SETTINGS][64];
    struct suggest suggest;
    size_t prefix = strlen("DURAMEN_");
    suggest_begin(&suggest, name + prefix);
    for (int i = 0; i < CONFIG_SETTINGS; i++) {
        config_variable(&settings[i], variables[i], sizeof variables[i]);
        suggest_offer(&suggest, variables[i] + prefix);
    }
    const char *meant = suggest_best(&suggest);
    if (meant != NULL)
        complain_about(complain, ctx, "%s: is unknown; did you mean DURAMEN_%s?", name, meant);
}

enum err config_environment(
    struct config *config, const char *const *variables, config_complain complain, void *ctx)
{
    enum err result = OK;
    for (; *variables != NULL; variables++) {
        const char *text = strchr(*variables, '=');
        char name[64];
        if (text == NULL || (size_t)(text - *variables) >= sizeof name) continue;
        snprintf(name, sizeof name, "%.*s", (int)(text - *variables), *variables);
        if (strncmp(name, "DURAMEN_", 8) != 0) continue;
        bool known = false;
        for (int i = 0; i < CONFIG_SETTINGS && !known; i++) {
            char variable[64];
            config_variable(&settings[i], variable, sizeof variable);
            known = strcmp(variable, name) == 0;
            if (!known) continue;
            enum err err = config_set(config, i, CONFIG_ENVIRONMENT, name, text + 1, complain, ctx);
            if (err != OK) result = err;
        }
        if (!known) complain_variable(name, complain, ctx);
    }
    return result;
}

enum err config_finish(struct config *config, config_complain complain, void *ctx)
{
    struct server_config *server = &config->server;
    enum err result = OK;
    if (!map_ranges_valid(server->ranges)) {
        complain_about(complain, ctx, "%s: ranges must be a power of two, up to %d",
            config->values[config_find("ranges")].place, MAP_RANGES_MAX);
        result = ERR_INVALID;
    }
    if (config->password != NULL && config->password_file != NULL) {
        complain_about(complain, ctx,
            "%s: requirepass and password-file are both set; remove one of them",
            config->values[config_find("requirepass")].place);
        result = ERR_INVALID;
    }
    server->log_io = (enum log_io)config->log_io;
    server->log_json = config->log_format == 1;
    return result;
}
