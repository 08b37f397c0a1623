#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "server/cli.h"
#include "server/config.h"
#include "storage/backup.h"

/* The commands that work on files while no node runs on them: restore and verify. */

const struct argp_option cli_restore_options[] = {
    {.name = "in", .key = CLI_KEY_IN, .arg = "FILE", .doc = "the backup"},
    {.name = "data",
        .key = CLI_KEY_DATA,
        .arg = "DIR",
        .doc = "the new data folder; must be absent or empty"},
    {.name = "dry-run", .key = CLI_KEY_DRY_RUN, .doc = "read and check everything, change nothing"},
    {0}};

struct folder_input {
    const char *in;
    const char *data;
    bool dry_run;
    const char *path; /* of verify */
};

static error_t parse_folder(int key, char *argument, struct argp_state *state)
{
    struct folder_input *input = state->input;
    switch (key) {
    case CLI_KEY_IN:
        input->in = argument;
        return 0;
    case CLI_KEY_DATA:
        input->data = argument;
        return 0;
    case CLI_KEY_DRY_RUN:
        input->dry_run = true;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse_verify(int key, char *argument, struct argp_state *state)
{
    struct folder_input *input = state->input;
    switch (key) {
    case ARGP_KEY_ARG:
        if (input->path != NULL) argp_error(state, "'%s' is one word too many", argument);
        input->path = argument;
        return 0;
    case ARGP_KEY_NO_ARGS:
        argp_error(state, "write what to verify: a data folder or a backup file");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* Damage is exit code 3, whatever shape it has. */
static int exit_code_of(enum err err)
{
    if (err == OK) return CLI_DONE;
    bool damaged = err == ERR_CORRUPT || err == ERR_TRUNCATED || err == ERR_GAP;
    return damaged ? CLI_DAMAGED : CLI_FAILED;
}

static void show_restore(void *ctx, uint64_t done, uint64_t total)
{
    struct timespec *shown = ctx, now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    double since =
        (double)(now.tv_sec - shown->tv_sec) + (double)(now.tv_nsec - shown->tv_nsec) / 1e9;
    if (since < 0.1) return;
    *shown = now;
    if (total > 0)
        fprintf(stderr, "\r%llu of %llu, %.0f%%\033[K", (unsigned long long)done,
            (unsigned long long)total, 100.0 * (double)done / (double)total);
    else
        fprintf(stderr, "\r%llu\033[K", (unsigned long long)done);
}

static void print_backup(const char *path, const struct backup_info *info, const char *what)
{
    char size[32];
    printf("%s: %s, cluster %s, node %s, %u ranges, %llu entries as of LSN %llu, %s\n",
        path, what, info->cluster_id, info->name, info->ranges, (unsigned long long)info->entries,
        (unsigned long long)info->end_lsn,
        cli_bytes((double)info->bytes, size, sizeof size));
}

int cli_restore(int argc, char **argv)
{
    static const struct argp argp = {.options = cli_restore_options,
        .parser = parse_folder,
        .doc = "Makes a data folder from a backup. The folder appears only when all of it is on "
               "disk.\vExample:\n"
               "  duramen restore --in monday.backup --data ./data"};
    struct folder_input input = {0};
    cli_parse(&argp, argc, argv, &input);
    if (input.in == NULL || (input.data == NULL && !input.dry_run)) {
        cli_complain("restore needs --in FILE and --data DIR");
        return CLI_USAGE;
    }
    struct backup_info info = {0};
    char detail[512] = "";
    struct timespec shown = {0};
    bool terminal = isatty(STDERR_FILENO) != 0;
    enum err err;
    if (input.data == NULL)
        err = backup_verify(input.in, &info, detail, sizeof detail);
    else
        err = backup_restore(input.in, input.data, input.dry_run, terminal ? show_restore : NULL,
            &shown, &info, detail, sizeof detail);
    if (terminal) fputs("\r\033[K", stderr);
    if (err != OK) {
        cli_complain("%s", detail[0] != '\0' ? detail : err_text(err));
        return exit_code_of(err);
    }
    print_backup(input.dry_run ? input.in : input.data, &info,
        input.dry_run ? "can be restored" : "restored");
    return CLI_DONE;
}

static void print_damage(void *ctx, const char *sentence)
{
    uint64_t *count = ctx;
    (*count)++;
    fprintf(stderr, "%s\n", sentence);
}

static int verify_folder(const char *path)
{
    uint64_t damages = 0, values = 0, records = 0;
    enum err err = folder_verify(path, print_damage, &damages, &values, &records);
    if (err != OK) {
        if (damages > 0)
            cli_complain(
                "%s is damaged in %llu places; restore a backup, or see docs/OPERATIONS.md", path,
                (unsigned long long)damages);
        else if (err == ERR_BUSY)
            cli_complain("a node runs on %s; stop it first", path);
        else
            cli_complain("%s cannot be verified: %s", path, err_text(err));
        return exit_code_of(err);
    }
    printf("%s: sound, %llu values and %llu log records checked\n", path,
        (unsigned long long)values, (unsigned long long)records);
    return CLI_DONE;
}

int cli_verify(int argc, char **argv)
{
    static const struct argp argp = {.options = cli_no_options,
        .parser = parse_verify,
        .args_doc = "DIR|FILE",
        .doc = "Checks every checksum of a stopped node's data folder, or of a backup. Exit code 3 "
               "and a line for each damage on standard error if there is any."};
    struct folder_input input = {0};
    cli_parse(&argp, argc, argv, &input);
    struct stat status;
    if (stat(input.path, &status) != 0) {
        cli_complain("%s cannot be looked at: %m", input.path);
        return CLI_FAILED;
    }
    if (S_ISDIR(status.st_mode)) return verify_folder(input.path);

    struct backup_info info = {0};
    char detail[512] = "";
    enum err err = backup_verify(input.path, &info, detail, sizeof detail);
    if (err != OK) {
        cli_complain("%s: %s", input.path, detail[0] != '\0' ? detail : err_text(err));
        return exit_code_of(err);
    }
    print_backup(input.path, &info, "sound");
    return CLI_DONE;
}
