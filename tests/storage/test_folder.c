#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "storage/folder.h"

static char root[64];
static char path[128];
static char detail[512];
static const struct folder_identity wanted = {.name = "alpha", .ranges = 8};

static int remove_one(const char *name, const struct stat *status, int kind, struct FTW *where)
{
    (void)status, (void)kind, (void)where;
    return remove(name);
}

static void setup(void)
{
    strcpy(root, "/tmp/duramen-folder-XXXXXX");
    cr_assert_not_null(mkdtemp(root));
    snprintf(path, sizeof path, "%s/data", root);
    detail[0] = 0;
}

static void teardown(void)
{
    nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

TestSuite(folder, .init = setup, .fini = teardown);

static void write_file(const char *name, const char *text, size_t size)
{
    char full[256];
    snprintf(full, sizeof full, "%s/%s", path, name);
    int fd = open(full, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    cr_assert(fd >= 0);
    cr_assert_eq(write(fd, text, size), (ssize_t)size);
    close(fd);
}

static size_t read_file(const char *name, char *text, size_t capacity)
{
    char full[256];
    snprintf(full, sizeof full, "%s/%s", path, name);
    int fd = open(full, O_RDONLY);
    cr_assert(fd >= 0);
    ssize_t size = read(fd, text, capacity);
    cr_assert(size >= 0);
    close(fd);
    return (size_t)size;
}

static bool exists(const char *name)
{
    char full[256];
    snprintf(full, sizeof full, "%s/%s", path, name);
    return access(full, F_OK) == 0;
}

static unsigned mode_of(const char *name)
{
    char full[256];
    struct stat status;
    snprintf(full, sizeof full, "%s/%s", path, name);
    cr_assert_eq(stat(full, &status), 0);
    return status.st_mode & 0777;
}

static void create_and_close(void)
{
    struct folder folder;
    cr_assert_eq(
        folder_open(path, false, &wanted, &folder, detail, sizeof detail), OK, "%s", detail);
    folder_close(&folder);
}

static enum err open_again(bool existing)
{
    struct folder folder;
    enum err err = folder_open(path, existing, &wanted, &folder, detail, sizeof detail);
    if (err == OK) folder_close(&folder);
    return err;
}

Test(folder, creation_makes_a_private_folder)
{
    umask(0);
    struct folder folder;
    cr_assert_eq(folder_open(path, false, &wanted, &folder, detail, sizeof detail), OK);
    cr_assert(folder.created);
    cr_assert_eq(mode_of("."), 0700);
    cr_assert_eq(mode_of("wal"), 0700);
    cr_assert_eq(mode_of("db"), 0700);
    cr_assert_eq(mode_of("identity"), 0600);
    cr_assert_eq(mode_of("lock"), 0600);
    cr_assert_str_eq(folder.identity.name, "alpha");
    cr_assert_eq(folder.identity.ranges, 8);
    cr_assert(strstr(folder.wal, "/data/wal") != NULL);
    folder_close(&folder);
}

Test(folder, an_empty_folder_is_taken_and_made_private)
{
    cr_assert_eq(mkdir(path, 0755), 0);
    cr_assert_eq(open_again(false), OK);
    cr_assert_eq(mode_of("."), 0700);
}

Test(folder, a_restart_finds_the_identity_it_was_created_with)
{
    struct folder first, second;
    struct folder_identity other = {.name = "beta", .ranges = 99};
    cr_assert_eq(folder_open(path, false, &wanted, &first, detail, sizeof detail), OK);
    folder_close(&first);
    cr_assert_eq(folder_open(path, true, &other, &second, detail, sizeof detail), OK);
    cr_assert(!second.created);
    cr_assert_eq(memcmp(&first.identity, &second.identity, sizeof first.identity), 0);
    folder_close(&second);
}

Test(folder, two_folders_get_different_ids)
{
    struct folder first, second;
    cr_assert_eq(folder_open(path, false, &wanted, &first, detail, sizeof detail), OK);
    strcat(path, "2");
    cr_assert_eq(folder_open(path, false, &wanted, &second, detail, sizeof detail), OK);
    cr_assert_neq(memcmp(first.identity.cluster_id, second.identity.cluster_id, 16), 0);
    cr_assert_neq(memcmp(first.identity.node_id, second.identity.node_id, 16), 0);
    folder_close(&first);
    folder_close(&second);
}

Test(folder, a_name_is_made_up_if_none_is_given)
{
    struct folder folder;
    struct folder_identity nameless = {.ranges = 1};
    cr_assert_eq(folder_open(path, false, &nameless, &folder, detail, sizeof detail), OK);
    cr_assert(folder_name_valid(folder.identity.name));
    folder_close(&folder);
}

Test(folder, a_second_process_is_refused_and_told_who_has_it)
{
    struct folder folder;
    cr_assert_eq(folder_open(path, false, &wanted, &folder, detail, sizeof detail), OK);
    pid_t pid = fork();
    if (pid == 0) {
        char pid_text[32];
        snprintf(pid_text, sizeof pid_text, "(%d)", (int)getppid());
        enum err err = open_again(true);
        _exit(err == ERR_BUSY && strstr(detail, pid_text) != NULL ? 0 : 1);
    }
    int status;
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    folder_close(&folder);
    cr_assert_eq(open_again(true), OK, "the lock must go with folder_close()");
}

Test(folder, a_killed_process_leaves_no_lock)
{
    create_and_close();
    int ready[2];
    cr_assert_eq(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* goes with the test, should that fail */
        struct folder folder;
        enum err err = folder_open(path, true, &wanted, &folder, detail, sizeof detail);
        (void)!write(ready[1], err == OK ? "y" : "n", 1);
        pause();
        _exit(0);
    }
    char answer = 0;
    cr_assert_eq(read(ready[0], &answer, 1), 1);
    cr_assert_eq(answer, 'y');
    enum err while_held = open_again(true);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    cr_assert_eq(while_held, ERR_BUSY);
    cr_assert_eq(open_again(true), OK);
}

Test(folder, a_foreign_folder_is_refused_and_left_alone)
{
    cr_assert_eq(mkdir(path, 0755), 0);
    write_file("holiday.jpg", "x", 1);
    cr_assert_eq(open_again(false), ERR_MISMATCH);
    cr_assert_not_null(strstr(detail, "not empty and not a Duramen data folder"));
    cr_assert_not_null(strstr(detail, "holiday.jpg"));
    cr_assert(!exists("lock"));
    cr_assert(!exists("identity"));
    cr_assert_eq(mode_of("."), 0755);
}

Test(folder, an_interrupted_creation_is_completed)
{
    cr_assert_eq(mkdir(path, 0700), 0);
    write_file("lock", "", 0);
    write_file("identity.new", "dura", 4);
    cr_assert_eq(open_again(false), OK, "%s", detail);
    cr_assert(!exists("identity.new"));
}

Test(folder, data_without_identity_is_damage_not_a_new_folder)
{
    create_and_close();
    char full[256];
    snprintf(full, sizeof full, "%s/identity", path);
    cr_assert_eq(unlink(full), 0);
    cr_assert_eq(open_again(false), ERR_CORRUPT);
    cr_assert_not_null(strstr(detail, "identity"));
    cr_assert(!exists("identity"));
}

Test(folder, every_flipped_bit_of_the_identity_is_noticed)
{
    create_and_close();
    char text[FOLDER_IDENTITY_MAX], damaged[FOLDER_IDENTITY_MAX];
    size_t size = read_file("identity", text, sizeof text);
    struct folder_identity identity;
    cr_assert_eq(folder_identity_decode(bytes_of(text, size), &identity), OK);
    for (size_t i = 0; i < size * 8; i++) {
        memcpy(damaged, text, size);
        damaged[i / 8] = (char)(damaged[i / 8] ^ (1 << i % 8));
        cr_assert_eq(
            folder_identity_decode(bytes_of(damaged, size), &identity), ERR_CORRUPT, "bit %zu", i);
    }
    for (size_t i = 0; i < size; i++)
        cr_assert_eq(
            folder_identity_decode(bytes_of(text, i), &identity), ERR_CORRUPT, "cut at %zu", i);
    damaged[0] = (char)(text[0] ^ 1);
    write_file("identity", damaged, size);
    cr_assert_eq(open_again(true), ERR_CORRUPT);
    cr_assert_not_null(strstr(detail, "damaged"));
}

static void write_format(int format)
{
    char text[256];
    int size =
        snprintf(text, sizeof text, "duramen data folder\nformat %d\nsomething else\n", format);
    size += snprintf(
        text + size, sizeof text - (size_t)size, "crc %08x\n", crc32c(0, text, (size_t)size));
    write_file("identity", text, (size_t)size);
}

Test(folder, another_format_is_refused_as_such_not_as_damaged)
{
    create_and_close();
    write_format(FOLDER_FORMAT + 1);
    cr_assert_eq(open_again(true), ERR_MISMATCH);
    cr_assert_not_null(strstr(detail, "newer version"));
    write_format(1);
    cr_assert_eq(open_again(true), ERR_MISMATCH);
    cr_assert_not_null(strstr(detail, "pre-release"));
    cr_assert_not_null(strstr(detail, "backup"));
}

Test(folder, an_identity_is_replaced_as_a_whole)
{
    struct folder folder, again;
    cr_assert_eq(folder_open(path, false, &wanted, &folder, detail, sizeof detail), OK);
    struct folder_identity identity = folder.identity;
    identity.node_number = 7;
    identity.ranges = 64;
    memset(identity.cluster_id, 0xab, 16);
    write_file("identity.new", "left over", 9);
    cr_assert_eq(folder_rewrite_identity(&folder, &identity), OK);
    cr_assert_eq(folder.identity.node_number, 7);
    cr_assert_not(exists("identity.new"));
    folder_close(&folder);
    cr_assert_eq(folder_open(path, true, &wanted, &again, detail, sizeof detail), OK);
    cr_assert_eq(again.identity.node_number, 7);
    cr_assert_eq(again.identity.ranges, 64);
    cr_assert_eq(again.identity.cluster_id[3], 0xab);
    cr_assert_eq(memcmp(again.identity.node_id, identity.node_id, 16), 0);
    folder_close(&again);
}

Test(folder, incarnations_count_up_and_damage_shows)
{
    struct folder folder;
    uint64_t number = 0;
    for (uint64_t start = 1; start <= 12; start++) {
        cr_assert_eq(folder_open(path, false, &wanted, &folder, detail, sizeof detail), OK);
        cr_assert_eq(folder_next_incarnation(&folder, &number), OK);
        cr_assert_eq(number, start);
        folder_close(&folder);
    }
    char text[128], damaged[128];
    size_t size = read_file("incarnation", text, sizeof text);
    cr_assert_eq(folder_open(path, true, &wanted, &folder, detail, sizeof detail), OK);
    for (size_t i = 0; i < size * 8; i++) {
        memcpy(damaged, text, size);
        damaged[i / 8] = (char)(damaged[i / 8] ^ (1 << i % 8));
        write_file("incarnation", damaged, size);
        cr_assert_eq(folder_next_incarnation(&folder, &number), ERR_CORRUPT, "bit %zu", i);
    }
    for (size_t i = 0; i < size; i++) {
        write_file("incarnation", text, i);
        cr_assert_eq(folder_next_incarnation(&folder, &number), ERR_CORRUPT, "cut at %zu", i);
    }
    write_file("incarnation", text, size);
    cr_assert_eq(folder_next_incarnation(&folder, &number), OK);
    cr_assert_eq(number, 13);
    folder_close(&folder);
}

Test(folder, symbolic_links_inside_are_not_followed)
{
    create_and_close();
    char full[256], elsewhere[256];
    snprintf(full, sizeof full, "%s/identity", path);
    snprintf(elsewhere, sizeof elsewhere, "%s/elsewhere", root);
    cr_assert_eq(rename(full, elsewhere), 0);
    cr_assert_eq(symlink(elsewhere, full), 0);
    cr_assert_eq(open_again(true), ERR_MISMATCH);
    cr_assert_not_null(strstr(detail, "symbolic link"));
    cr_assert_eq(unlink(full), 0);
    cr_assert_eq(rename(elsewhere, full), 0);

    snprintf(full, sizeof full, "%s/lock", path);
    cr_assert_eq(unlink(full), 0);
    cr_assert_eq(symlink(elsewhere, full), 0);
    cr_assert_eq(open_again(true), ERR_MISMATCH);
    cr_assert_neq(access(elsewhere, F_OK), 0, "the lock was made behind the link");
}

Test(folder, a_folder_without_write_permission_is_refused_with_a_sentence)
{
    create_and_close();
    cr_assert_eq(chmod(root, 0755), 0);
    char full[256];
    snprintf(full, sizeof full, "%s/lock", path);
    cr_assert_eq(unlink(full), 0);
    cr_assert_eq(chmod(path, 0555), 0);
    snprintf(full, sizeof full, "%s/identity", path);
    cr_assert_eq(chmod(full, 0644), 0);
    pid_t pid = fork();
    if (pid == 0) {
        if (geteuid() == 0 && setuid(65534) != 0) _exit(2);
        enum err err = open_again(true);
        _exit(err == ERR_PERMISSION && strstr(detail, "writable") != NULL ? 0 : 1);
    }
    int status;
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %d", status);
}

Test(folder, what_must_exist_is_not_created)
{
    cr_assert_eq(open_again(true), ERR_NOT_FOUND);
    cr_assert_neq(access(path, F_OK), 0);
    cr_assert_eq(mkdir(path, 0700), 0);
    cr_assert_eq(open_again(true), ERR_NOT_FOUND);
    cr_assert(!exists("lock"));
}

Test(folder, a_file_is_no_folder)
{
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    cr_assert(fd >= 0);
    close(fd);
    cr_assert_eq(open_again(false), ERR_MISMATCH);
    cr_assert_gt(strlen(detail), 10);
}

Test(folder, impossible_wishes_are_refused_before_anything_is_written)
{
    struct folder folder;
    struct folder_identity bad_name = {.name = "a b", .ranges = 1};
    struct folder_identity no_ranges = {.name = "a"};
    cr_assert_eq(folder_open(path, false, &bad_name, &folder, detail, sizeof detail), ERR_INVALID);
    cr_assert(!exists("identity"));
    cr_assert_eq(folder_open(path, false, &no_ranges, &folder, detail, sizeof detail), ERR_INVALID);
    cr_assert(!exists("identity"));
    cr_assert_eq(folder_open("", false, &wanted, &folder, detail, sizeof detail), ERR_INVALID);
}

Test(folder, names_are_checked)
{
    static const char *const good[] = {"a", "node-1", "A_b.c", "0"};
    static const char *const bad[] = {"", ".", "..", ".x", "a/b", "a\nb", "\xc3\xa4", "a b",
        "0123456789012345678901234567890123456789012345678901234567890123"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        cr_assert(folder_name_valid(good[i]), "%s", good[i]);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        cr_assert(!folder_name_valid(bad[i]), "%s", bad[i]);
}
