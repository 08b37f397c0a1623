#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/buffer.h"
#include "server/cli.h"
#include "server/client_http.h"
#include "server/config.h"
#include "storage/backup.h"

/* The commands that talk to a running node: status, member, leader and backup. */

enum { KEY_PASSWORD_FILE = 0x3000, KEY_RANGE, STATUS_MAX = 64 << 20 };

#define NODE_OPTION                                                                                \
    {.name = "node",                                                                               \
        .key = CLI_KEY_NODE,                                                                       \
        .arg = "HOST:HTTPPORT",                                                                    \
        .doc = "any node of the cluster (default 127.0.0.1:7380)"},                                \
    {                                                                                              \
        .name = "password-file", .key = KEY_PASSWORD_FILE, .arg = "FILE",                          \
        .doc = "file whose first line is the password, if the node wants one"                      \
    }

const struct argp_option cli_status_options[] = {NODE_OPTION,
    {.name = "json", .key = CLI_KEY_JSON, .doc = "print the node's answer as it is"}, {0}};
const struct argp_option cli_member_options[] = {NODE_OPTION, {0}};
const struct argp_option cli_leader_options[] = {NODE_OPTION,
    {.name = "range",
        .key = KEY_RANGE,
        .arg = "N",
        .doc = "only the range with this id (0 is the meta range); else all"},
    {0}};
const struct argp_option cli_backup_options[] = {NODE_OPTION,
    {.name = "out",
        .key = CLI_KEY_OUT,
        .arg = "FILE",
        .doc = "where the backup goes; - is standard output"},
    {0}};

struct operator_input {
    char node[CLI_NODE_SIZE];
    char password[1024];
    bool json;
    const char *out;
    const char *range;
    const char *words[4];
    size_t word_count;
    size_t word_max;
};

/* First line of the file. */
static void read_password(const char *path, struct operator_input *input, struct argp_state *state)
{
    FILE *file = fopen(path, "re");
    if (file == NULL || fgets(input->password, sizeof input->password, file) == NULL)
        argp_failure(state, CLI_FAILED, file == NULL ? errno : 0, "%s cannot be read", path);
    fclose(file);
    input->password[strcspn(input->password, "\r\n")] = '\0';
}

static error_t parse_operator(int key, char *argument, struct argp_state *state)
{
    struct operator_input *input = state->input;
    switch (key) {
    case CLI_KEY_NODE:
        cli_node_flag(argument, input->node, state);
        return 0;
    case KEY_PASSWORD_FILE:
        read_password(argument, input, state);
        return 0;
    case CLI_KEY_JSON:
        input->json = true;
        return 0;
    case CLI_KEY_OUT:
        input->out = argument;
        return 0;
    case KEY_RANGE:
        if (argument[0] == '\0' || strlen(argument) > 5 ||
            strspn(argument, "0123456789") != strlen(argument))
            argp_error(state, "--range takes the id of a range, a number");
        input->range = argument;
        return 0;
    case ARGP_KEY_ARG:
        if (input->word_count == input->word_max)
            argp_error(state, "'%s' is one word too many", argument);
        input->words[input->word_count++] = argument;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static struct operator_input operator_defaults(size_t words)
{
    return (struct operator_input){.node = "127.0.0.1:7380", .word_max = words};
}

static const char *password_of(const struct operator_input *input)
{
    return input->password[0] != '\0' ? input->password : NULL;
}

static bool collect(void *ctx, struct bytes bytes)
{
    struct buffer *body = ctx;
    return body->size + bytes.size <= STATUS_MAX && buffer_append(body, bytes.at, bytes.size) == OK;
}

/* status */

static const char *text_of(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text != NULL ? text : "-";
}

static json_int_t number_of(const json_t *object, const char *name)
{
    return json_integer_value(json_object_get(object, name));
}

static void print_members(const json_t *members)
{
    size_t index;
    const json_t *member;
    printf(
        "\n%-20s %-8s %-22s %-22s %-22s %s\n", "MEMBER", "STATE", "RESP", "HTTP", "PEER", "ZONE");
    json_array_foreach(members, index, member)
    {
        printf("%-20s %-8s %-22s %-22s %-22s %s\n", text_of(member, "name"),
            text_of(member, "state"), text_of(member, "resp"), text_of(member, "http"),
            text_of(member, "peer"), text_of(member, "zone"));
    }
}

/* One line a leader: how many ranges it leads, and how far the slowest voter of any of them is behind. */
static void print_leader(const json_t *ranges, const char *leader)
{
    size_t index, place, led = 0;
    json_int_t lag = 0, unapplied = 0;
    const json_t *range, *replica;
    json_array_foreach(ranges, index, range)
    {
        if (strcmp(text_of(range, "leader"), leader) != 0) continue;
        led++;
        json_int_t committed = number_of(range, "committed");
        if (committed - number_of(range, "applied") > unapplied)
            unapplied = committed - number_of(range, "applied");
        json_array_foreach(json_object_get(range, "replicas"), place, replica)
        {
            json_int_t behind = committed - number_of(replica, "match");
            if (behind > lag) lag = behind;
        }
    }
    printf("%-20s %-8zu %-12" JSON_INTEGER_FORMAT " %" JSON_INTEGER_FORMAT "\n",
        strcmp(leader, "-") == 0 ? "(none)" : leader, led, lag, unapplied);
}

static void print_ranges(const json_t *ranges)
{
    printf("\n%-20s %-8s %-12s %s\n", "LEADER", "RANGES", "LAG", "UNAPPLIED");
    size_t index;
    const json_t *range;
    json_array_foreach(ranges, index, range)
    {
        const char *leader = text_of(range, "leader");
        bool first = true;
        for (size_t i = 0; i < index && first; i++)
            first = strcmp(text_of(json_array_get(ranges, i), "leader"), leader) != 0;
        if (first) print_leader(ranges, leader);
    }
}

/* "12.5 MiB" for what counts bytes, else the value as JSON has it, without quotes. */
static void print_value(const char *name, const json_t *value, bool bytes)
{
    char size[32];
    size_t length = strlen(name);
    bool named = length > 6 && strcmp(name + length - 6, "_bytes") == 0;
    if ((bytes || named) && json_is_integer(value)) {
        fputs(cli_bytes((double)json_integer_value(value), size, sizeof size), stdout);
    } else if (json_is_string(value)) {
        fputs(json_string_value(value), stdout);
    } else {
        char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(4));
        fputs(text != NULL ? text : "-", stdout);
        free(text);
    }
}

/* Whatever else the node says about itself, in its order: "memory  rss 12.5 MiB, memtable 19 KiB". */
static void print_details(const json_t *status)
{
    static const char *const known[] = {
        "node", "cluster_id", "version", "members", "ranges", "wal", "meta", "io"};
    const char *name, *part;
    const json_t *value, *part_value;
    json_object_foreach((json_t *)status, name, value)
    {
        bool shown = json_is_array(value);
        for (size_t i = 0; i < sizeof known / sizeof *known; i++)
            shown = shown || strcmp(known[i], name) == 0;
        if (shown) continue;
        bool bytes = strcmp(name, "memory") == 0 || strcmp(name, "disk") == 0;
        int width = printf("%s ", name);
        printf("%*s", width < 12 ? 12 - width : 0, "");
        if (!json_is_object(value)) print_value(name, value, bytes);
        const char *separator = "";
        json_object_foreach((json_t *)value, part, part_value)
        {
            printf("%s%s ", separator, part);
            print_value(part, part_value, bytes);
            separator = ", ";
        }
        putchar('\n');
    }
}

/* What is not as it should be: ranges without a leader or with too few voters, learners, replicas under repair. */
static void print_trouble(const json_t *ranges)
{
    size_t index, place, leaderless = 0, learners = 0, faulty = 0, incoming = 0;
    double progress = 0;
    const json_t *range, *replica;
    json_array_foreach(ranges, index, range)
    {
        if (json_is_null(json_object_get(range, "leader"))) leaderless++;
        double done = json_number_value(json_object_get(range, "catching_up"));
        if (done < 1) {
            incoming++;
            progress += done;
        }
        json_array_foreach(json_object_get(range, "replicas"), place, replica)
        {
            if (strcmp(text_of(replica, "role"), "learner") == 0) learners++;
            if (json_is_true(json_object_get(replica, "faulty"))) faulty++;
        }
    }
    if (leaderless > 0) printf("\n%zu ranges have no leader that this node knows of\n", leaderless);
    if (learners > 0) printf("\n%zu replicas are learners: they catch up, then vote\n", learners);
    if (faulty > 0) printf("\n%zu replicas are under repair\n", faulty);
    if (incoming > 0)
        printf("\n%zu ranges are being copied to this node, %.0f%% of them so far\n", incoming,
            100 * progress / (double)incoming);
}

static int print_status(const struct buffer *body, const char *node)
{
    json_error_t error;
    struct bytes text = buffer_view(body);
    json_t *status = json_loadb((const char *)text.at, text.size, 0, &error);
    if (status == NULL) {
        cli_complain("the answer of %s is no JSON (line %d: %s)", node, error.line, error.text);
        return CLI_FAILED;
    }
    printf("node        %s at %s, version %s\n", text_of(status, "node"), node,
        text_of(status, "version"));
    printf("cluster     %s\n", text_of(status, "cluster_id"));
    const json_t *wal = json_object_get(status, "wal");
    char size[32];
    printf("log         last %" JSON_INTEGER_FORMAT ", durable %" JSON_INTEGER_FORMAT
           ", checkpoint %" JSON_INTEGER_FORMAT ", %s on disk, %s\n",
        number_of(wal, "last"), number_of(wal, "durable"), number_of(wal, "checkpoint"),
        cli_bytes((double)number_of(wal, "bytes"), size, sizeof size), text_of(status, "io"));
    print_details(status);
    print_members(json_object_get(status, "members"));
    print_ranges(json_object_get(status, "ranges"));
    print_trouble(json_object_get(status, "ranges"));
    json_decref(status);
    return CLI_DONE;
}

/* Fetches /status into body; complains if that fails. */
static bool fetch_status(const struct operator_input *input, struct buffer *body)
{
    char detail[512];
    struct client_request request = {.node = input->node,
        .path = "/status",
        .password = password_of(input),
        .on_body = collect,
        .ctx = body};
    if (client_get(&request, detail, sizeof detail) == OK) return true;
    cli_complain("%s", detail);
    return false;
}

int cli_status(int argc, char **argv)
{
    static const struct argp argp = {.options = cli_status_options,
        .parser = parse_operator,
        .doc = "Shows a node and its cluster: members, leaders, lag, log, memory, disk, health."};
    struct operator_input input = operator_defaults(0);
    cli_parse(&argp, argc, argv, &input);
    struct buffer body = {0};
    int code = CLI_FAILED;
    if (fetch_status(&input, &body)) {
        if (input.json) {
            struct bytes text = buffer_view(&body);
            fwrite(text.at, 1, text.size, stdout);
            if (text.size > 0 && text.at[text.size - 1] != '\n') putchar('\n');
            code = CLI_DONE;
        } else {
            code = print_status(&body, input.node);
        }
    }
    buffer_deinit(&body);
    return code;
}

/* member, leader */

/* Sends a change to the node and says what came of it. */
static int change(const struct operator_input *input, const char *action, const char *name)
{
    char path[512], detail[512];
    size_t used = (size_t)snprintf(path, sizeof path, "/admin/%s?name=", action);
    for (const char *at = name; *at != '\0'; at++) {
        if (used + 4 >= sizeof path) {
            cli_complain("'%.80s' is no name of a member", name);
            return CLI_USAGE;
        }
        used += (size_t)snprintf(path + used, sizeof path - used, "%%%02X", (unsigned char)*at);
    }
    if (input->range != NULL) snprintf(path + used, sizeof path - used, "&range=%s", input->range);
    struct buffer body = {0};
    struct client_request request = {.node = input->node,
        .path = path,
        .password = password_of(input),
        .post = true,
        .on_body = collect,
        .ctx = &body};
    int code = client_get(&request, detail, sizeof detail) == OK ? CLI_DONE : CLI_FAILED;
    if (code == CLI_DONE) {
        struct bytes text = buffer_view(&body);
        json_t *answer = json_loadb((const char *)text.at, text.size, 0, NULL);
        printf("%s\n", answer == NULL ? "done" : text_of(answer, "done"));
        json_decref(answer);
    } else {
        cli_complain("%s", detail);
    }
    buffer_deinit(&body);
    return code;
}

static int list_members(const struct operator_input *input)
{
    struct buffer body = {0};
    int code = CLI_FAILED;
    if (fetch_status(input, &body)) {
        struct bytes text = buffer_view(&body);
        json_t *status = json_loadb((const char *)text.at, text.size, 0, NULL);
        print_members(json_object_get(status, "members"));
        code = status != NULL ? CLI_DONE : CLI_FAILED;
        json_decref(status);
    }
    buffer_deinit(&body);
    return code;
}

int cli_member(int argc, char **argv)
{
    static const struct argp argp = {.options = cli_member_options,
        .parser = parse_operator,
        .args_doc = "list\nremove NAME\nreplace NAME",
        .doc = "Lists the members of the cluster, removes one for good, or takes the replicas away "
               "from a dead one so that others carry them.\v"
               "A change is refused if a quorum of some range would be lost by it."};
    struct operator_input input = operator_defaults(2);
    cli_parse(&argp, argc, argv, &input);
    const char *action = input.words[0];
    if (action == NULL ||
        (strcmp(action, "list") != 0 && strcmp(action, "remove") != 0 &&
            strcmp(action, "replace") != 0)) {
        cli_complain("write what to do: member list, member remove NAME or member replace NAME");
        return CLI_USAGE;
    }
    if (strcmp(action, "list") == 0) {
        if (input.word_count == 1) return list_members(&input);
        cli_complain("'%s' is one word too many", input.words[1]);
        return CLI_USAGE;
    }
    if (input.word_count < 2) {
        cli_complain("member %s needs the NAME of a member", action);
        return CLI_USAGE;
    }
    return change(
        &input, strcmp(action, "remove") == 0 ? "member/remove" : "member/replace", input.words[1]);
}

int cli_leader(int argc, char **argv)
{
    static const struct argp argp = {.options = cli_leader_options,
        .parser = parse_operator,
        .args_doc = "transfer NAME",
        .doc = "Moves the leadership of ranges to a member."};
    struct operator_input input = operator_defaults(2);
    cli_parse(&argp, argc, argv, &input);
    if (input.word_count == 0 || strcmp(input.words[0], "transfer") != 0) {
        cli_complain("write what to do: leader transfer NAME");
        return CLI_USAGE;
    }
    if (input.word_count < 2) {
        cli_complain("leader transfer needs the NAME of a member");
        return CLI_USAGE;
    }
    return change(&input, "leader/transfer", input.words[1]);
}

/* backup */

struct download {
    int fd;
    uint64_t bytes;
    int error; /* errno of a failed write */
    bool terminal;
    struct timespec started, shown;
};

static double seconds_between(struct timespec from, struct timespec to)
{
    return (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9;
}

static bool write_body(void *ctx, struct bytes bytes)
{
    struct download *download = ctx;
    while (bytes.size > 0) {
        ssize_t wrote = write(download->fd, bytes.at, bytes.size);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote < 0) {
            download->error = errno;
            return false;
        }
        download->bytes += (uint64_t)wrote;
        bytes = bytes_of(bytes.at + wrote, bytes.size - (size_t)wrote);
    }
    return true;
}

/* One line on a terminal, ten times a second at most, removed at the end. */
static void show_download(void *ctx, uint64_t received, uint64_t total)
{
    enum { WIDTH = 24 };
    struct download *download = ctx;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (seconds_between(download->shown, now) < 0.1) return;
    download->shown = now;
    double elapsed = seconds_between(download->started, now);
    double rate = elapsed > 0 ? (double)received / elapsed : 0;
    char done[32], speed[32];
    cli_bytes((double)received, done, sizeof done);
    cli_bytes(rate, speed, sizeof speed);
    if (total >= received && total > 0) {
        char bar[WIDTH + 1];
        size_t filled = (size_t)((double)received / (double)total * WIDTH);
        memset(bar, '-', WIDTH);
        memset(bar, '#', filled);
        bar[WIDTH] = '\0';
        fprintf(stderr, "\r[%s] %3.0f%% %s %s/s ETA %.0fs\033[K", bar,
            100.0 * (double)received / (double)total, done, speed,
            rate > 0 ? (double)(total - received) / rate : 0);
    } else {
        fprintf(stderr, "\r%s %s/s %.0fs\033[K", done, speed, elapsed);
    }
}

static bool fetch_backup(const struct operator_input *input, struct download *download)
{
    char detail[512];
    download->terminal = isatty(STDERR_FILENO) != 0;
    clock_gettime(CLOCK_MONOTONIC, &download->started);
    download->shown = download->started;
    struct client_request request = {.node = input->node,
        .path = "/backup",
        .password = password_of(input),
        .on_body = write_body,
        .on_progress = download->terminal ? show_download : NULL,
        .ctx = download};
    enum err err = client_get(&request, detail, sizeof detail);
    if (download->terminal) fputs("\r\033[K", stderr);
    if (err == OK) return true;
    if (download->error != 0)
        cli_complain("%s cannot be written: %s", input->out, strerror(download->error));
    else
        cli_complain("%s", detail);
    return false;
}

/* Makes the rename itself durable. */
static bool sync_folder_of(const char *file)
{
    char *copy = strdup(file);
    if (copy == NULL) return false;
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(copy);
    bool done = fd >= 0 && fsync(fd) == 0;
    if (fd >= 0) close(fd);
    return done;
}

/* The file under its temporary name: complete, durable and checked, or a complaint. */
static int make_backup(const struct operator_input *input, const char *partial,
    struct backup_info *info, struct download *download)
{
    download->fd = open(partial, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (download->fd < 0) {
        cli_complain("%s cannot be created: %m", partial);
        return CLI_FAILED;
    }
    bool fetched = fetch_backup(input, download);
    bool synced = fetched && fsync(download->fd) == 0;
    if (fetched && !synced) cli_complain("%s cannot be synced: %m", partial);
    if (close(download->fd) != 0 || !synced) return CLI_FAILED;
    char detail[512] = "";
    enum err err = backup_verify(partial, info, detail, sizeof detail);
    if (err == OK) return CLI_DONE;
    cli_complain("the backup came over damaged or incomplete and was thrown away: %s",
        detail[0] != '\0' ? detail : err_text(err));
    return CLI_FAILED;
}

int cli_backup(int argc, char **argv)
{
    static const struct argp argp = {.options = cli_backup_options,
        .parser = parse_operator,
        .doc =
            "Copies a running node's data, as of one moment, into one compressed and "
            "checksummed file. FILE appears, or is replaced, only when the whole backup is on disk "
            "and was checked; until then it is called FILE.partial.\v"
            "Examples:\n"
            "  duramen backup --out monday.backup\n"
            "  duramen backup --node db1:7380 --out - | ssh vault 'cat > db1.backup'"};
    struct operator_input input = operator_defaults(0);
    cli_parse(&argp, argc, argv, &input);
    if (input.out == NULL || input.out[0] == '\0') {
        cli_complain("where shall the backup go? give --out FILE (- is standard output)");
        return CLI_USAGE;
    }
    struct download download = {0};
    if (strcmp(input.out, "-") == 0) {
        if (isatty(STDOUT_FILENO)) {
            cli_complain("a backup is no text for a terminal; redirect it or give --out FILE");
            return CLI_USAGE;
        }
        download.fd = STDOUT_FILENO;
        input.out = "standard output";
        return fetch_backup(&input, &download) ? CLI_DONE : CLI_FAILED;
    }

    char *partial;
    if (asprintf(&partial, "%s.partial", input.out) < 0) return CLI_FAILED;
    struct backup_info info;
    int code = make_backup(&input, partial, &info, &download);
    if (code == CLI_DONE && rename(partial, input.out) != 0) {
        cli_complain("%s cannot be renamed to %s: %m", partial, input.out);
        code = CLI_FAILED;
    }
    if (code != CLI_DONE) {
        if (download.fd >= 0) unlink(partial);
    } else if (!sync_folder_of(input.out)) {
        cli_complain("the folder of %s cannot be synced: %m", input.out);
        code = CLI_FAILED;
    } else {
        char size[32];
        printf("%s: %llu entries as of LSN %llu, %s, checked\n", input.out,
            (unsigned long long)info.entries, (unsigned long long)info.end_lsn,
            cli_bytes((double)download.bytes, size, sizeof size));
    }
    free(partial);
    return code;
}
