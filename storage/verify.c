#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/check.h"
#include "storage/backup.h"
#include "storage/engine_meta.h"
#include "storage/folder.h"
#include "storage/kv_check.h"
#include "storage/range_meta.h"

/* LMDB walks pages as it finds them: on a damaged file it may abort, fault, or follow a page into a circle. The
 * walk is therefore done by a forked child that reports through a pipe, one line each:
 *
 *   M applied promised segment absent store   what the meta database says, before anything else
 *   P range values                            it is alive, and where
 *   F sentence                                a damage
 *   D values version                          it came to the end; the highest version seen
 *
 * A child that ends without D met a page that LMDB cannot read: that is a finding as well, and so is one
 * that says nothing for minutes. The log needs no such care: its reader is ours and takes every
 * byte for hostile. It is checked after the store, because the store knows where it begins. */

enum { SILENCE_MS = 180000, LINE_MAX_SIZE = 2048 };

struct walk {
    int out;
    const struct kv_ops *ops;
    struct kv_read *read;
    uint32_t ranges; /* highest id */
    uint64_t values;
    uint64_t
        version; /* highest LSN of a value; 0 of a replicated node, whose versions are no LSNs */
};

/* ---- in the child */

__attribute__((format(printf, 2, 3))) static void say(struct walk *walk, const char *format, ...)
{
    char line[LINE_MAX_SIZE];
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (size >= (int)sizeof line - 1) size = (int)sizeof line - 2;
    line[size] = '\n';
    size_t done = 0;
    while (done < (size_t)size + 1) {
        ssize_t wrote = write(walk->out, line + done, (size_t)size + 1 - done);
        if (wrote < 0 && errno != EINTR) _exit(1);
        if (wrote > 0) done += (size_t)wrote;
    }
}

static uint64_t meta_number(struct walk *walk, const char *name)
{
    struct bytes value;
    if (walk->ops->meta_get(walk->read, name, &value) != OK) return 0;
    uint64_t number = 0;
    memcpy(&number, value.at, value.size < sizeof number ? value.size : sizeof number);
    return number;
}

static void walk_meta(struct walk *walk)
{
    char store[33] = "-";
    struct bytes value;
    if (walk->ops->meta_get(walk->read, META_STORE, &value) == OK && value.size == 16) {
        for (int i = 0; i < 16; i++)
            snprintf(store + 2 * i, 3, "%02x", value.at[i]);
        uint64_t ranges = meta_number(walk, META_RANGES);
        if (ranges != walk->ranges + 1)
            say(walk, "F db/data.mdb: it has %" PRIu64 " ranges, the identity says %u", ranges - 1,
                walk->ranges);
    }
    say(walk, "M %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %s",
        meta_number(walk, META_APPLIED), meta_number(walk, META_PROMISED),
        meta_number(walk, META_SEGMENT), meta_number(walk, META_LOG_ABSENT), store);
}

/* A range must not have values of entries that its meta knows nothing of. Says whether it is a replicated one. */
static bool check_range_meta(struct walk *walk, uint32_t range, uint64_t version)
{
    char name[32];
    struct bytes value;
    struct range_meta meta;
    snprintf(name, sizeof name, META_RANGE_FORMAT, range);
    enum err err = walk->ops->meta_get(walk->read, name, &value);
    if (err == ERR_NOT_FOUND || (err == OK && value.size == 8)) return false;
    if (err == OK) err = range_meta_decode(value, &meta);
    if (err != OK) {
        say(walk, "F db/data.mdb: range %u: what it says of itself cannot be read: %s", range,
            err_text(err));
        return true;
    }
    uint64_t most = meta.settled > meta.index ? meta.settled : meta.index;
    if (version > most && (meta.flags & RANGE_META_INSTALLING) == 0)
        say(walk,
            "F db/data.mdb: range %u has a value of entry %" PRIu64
            ", but says that it has entries up to %" PRIu64,
            range, version, most);
    return true;
}

static void check_range_metas(struct walk *walk, const uint64_t *versions)
{
    bool replicated = false;
    for (uint32_t range = 0; range <= walk->ranges; range++)
        replicated = check_range_meta(walk, range, versions[range]) || replicated;
    if (replicated) walk->version = 0;
}

static void on_finding(void *ctx, bool missing, const char *sentence)
{
    (void)missing;
    say(ctx, "F db/data.mdb: %s", sentence);
}

static bool on_progress(void *ctx, uint16_t range, uint64_t values)
{
    say(ctx, "P %u %" PRIu64, range, values);
    return true;
}

static void walk_store(struct walk *walk, const char *folder)
{
    struct kv *kv;
    struct kv_config config = {.folder = folder, .ranges = walk->ranges + 1, .read_only = true};
    enum err err = walk->ops->open(&config, &kv);
    if (err == OK) err = walk->ops->read_begin(kv, &walk->read);
    if (err != OK) {
        say(walk, "F db/data.mdb: it cannot be opened: %s", err_text(err));
        return;
    }
    walk_meta(walk);
    uint64_t *versions = calloc((size_t)walk->ranges + 1, sizeof *versions);
    if (versions == NULL) {
        say(walk, "F db/data.mdb: not checked: %s", err_text(ERR_NOMEM));
        return;
    }
    struct kv_check check = {
        .versions = versions,
        .ops = walk->ops,
        .read = walk->read,
        .ranges = walk->ranges,
        .expiry = true,
        .ctx = walk,
        .found = on_finding,
        .go_on = on_progress,
    };
    err = kv_check(&check);
    if (err != OK && err != ERR_CORRUPT) say(walk, "F db/data.mdb: not checked: %s", err_text(err));
    walk->values = check.values;
    walk->version = check.version;
    check_range_metas(walk, versions);
    /* Nothing is closed or freed: the process ends here, and damaged structures are best left alone. */
}

_Noreturn static void child(int out, const char *folder, uint32_t ranges)
{
    /* What LMDB prints when it aborts is said better by the parent; no core file of user data. */
    static const int fatal[] = {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL, SIGPIPE};
    for (size_t i = 0; i < sizeof fatal / sizeof *fatal; i++)
        signal(fatal[i], SIG_DFL);
    struct rlimit none = {0};
    setrlimit(RLIMIT_CORE, &none);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null >= 0) dup2(null, STDERR_FILENO);
    struct walk walk = {.out = out, .ops = &kv_lmdb, .ranges = ranges};
    walk_store(&walk, folder);
    say(&walk, "D %" PRIu64 " %" PRIu64, walk.values, walk.version);
    _exit(0);
}

/* ---- in the parent */

struct inspection {
    void (*found)(void *ctx, const char *sentence);
    void *ctx;
    uint64_t findings;
    uint64_t values;
    uint64_t version;
    uint64_t range;
    uint64_t applied, promised, segment, absent;
    char store[33];
    bool meta, done;
};

static void on_found(void *ctx, const char *sentence)
{
    struct inspection *inspection = ctx;
    inspection->findings++;
    inspection->found(inspection->ctx, sentence);
}

__attribute__((format(printf, 2, 3))) static void report(
    struct inspection *inspection, const char *format, ...)
{
    char sentence[LINE_MAX_SIZE];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    on_found(inspection, sentence);
}

static void take_line(struct inspection *inspection, const char *line)
{
    switch (line[0]) {
    case 'M':
        inspection->meta = sscanf(line, "M %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %32s",
                               &inspection->applied, &inspection->promised, &inspection->segment,
                               &inspection->absent, inspection->store) == 5;
        break;
    case 'P':
        (void)sscanf(line, "P %" SCNu64 " %" SCNu64, &inspection->range, &inspection->values);
        break;
    case 'D':
        inspection->done =
            sscanf(line, "D %" SCNu64 " %" SCNu64, &inspection->values, &inspection->version) == 2;
        break;
    case 'F':
        on_found(inspection, line + 2);
        break;
    default:
        break;
    }
}

/* Reads lines until the child is gone or silent; false if it was silent. */
static bool listen_to(struct inspection *inspection, int in)
{
    char text[4 * LINE_MAX_SIZE];
    size_t size = 0;
    for (;;) {
        struct pollfd ready = {.fd = in, .events = POLLIN};
        int count = poll(&ready, 1, SILENCE_MS);
        if (count < 0 && errno == EINTR) continue;
        if (count == 0) return false;
        ssize_t got = read(in, text + size, sizeof text - 1 - size);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return true;
        size += (size_t)got;
        char *start = text;
        for (char *end; (end = memchr(start, '\n', size - (size_t)(start - text))) != NULL;
             start = end + 1) {
            *end = 0;
            take_line(inspection, start);
        }
        size -= (size_t)(start - text);
        memmove(text, start, size);
        if (size == sizeof text - 1) size = 0; /* cannot be: lines are shorter */
    }
}

static enum err inspect_store(struct inspection *inspection, const struct folder *folder)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return err_from_errno(errno);
    pid_t pid = fork();
    if (pid < 0) {
        enum err err = err_from_errno(errno);
        close(ends[0]);
        close(ends[1]);
        return err;
    }
    if (pid == 0) {
        close(ends[0]);
        child(ends[1], folder->db, folder->identity.ranges);
    }
    close(ends[1]);
    bool heard = listen_to(inspection, ends[0]);
    if (!heard) kill(pid, SIGKILL);
    close(ends[0]);
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        continue;
    if (inspection->done) return OK;
    const char *how = !heard  ? "does not end"
        : WIFSIGNALED(status) ? "ends the reader by a fault"
                              : "cannot be finished";
    report(inspection,
        "db/data.mdb: its pages are damaged: reading %s, in range %" PRIu64 " after %" PRIu64
        " values%s%s",
        how, inspection->range, inspection->values,
        heard && WIFSIGNALED(status) ? ", signal: " : "",
        heard && WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : "");
    return OK;
}

static enum err inspect_log(
    struct inspection *inspection, const struct folder *folder, uint64_t *records_out)
{
    struct io io = {.clock = clock_real()};
    TRY(disk_posix_open(folder->wal, LOG_IO_POSIX, &io.disk));
    struct wal_config config = {
        .io = &io,
        .slot_size = 64 << 20,
        .segment_floor = inspection->segment,
        .applied = inspection->applied,
        .promised = inspection->promised,
        .fresh = inspection->absent != 0,
    };
    memcpy(config.store_id, folder->identity.node_id, 16);
    struct wal_recovery log = {0};
    enum err err = wal_verify(&config, on_found, inspection, &log);
    disk_posix_close(&io.disk);
    *records_out = log.records;
    if (err == ERR_CORRUPT) return OK; /* was counted */
    if (err != OK) return err;
    uint64_t end = log.last > inspection->applied ? log.last : inspection->applied;
    if (inspection->version > end)
        report(inspection,
            "wal: it ends at LSN %" PRIu64 ", but db/data.mdb has a value of LSN %" PRIu64, end,
            inspection->version);
    return OK;
}

static bool is_folder(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

static bool is_empty_folder(const char *path)
{
    DIR *folder = opendir(path);
    if (folder == NULL) return errno == ENOENT;
    int count = 0;
    for (struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder))
        count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(folder);
    return count == 0;
}

static void hex_of(const uint8_t id[16], char at[33])
{
    for (int i = 0; i < 16; i++)
        snprintf(at + 2 * i, 3, "%02x", id[i]);
}

static enum err inspect(
    struct inspection *inspection, const struct folder *folder, uint64_t *records_out)
{
    char data[4200];
    snprintf(data, sizeof data, "%s/data.mdb", folder->db);
    bool has_store = access(data, F_OK) == 0;
    bool has_log = is_folder(folder->wal);
    /* A node that was created and never got as far as its first store. */
    bool untouched = !has_store && is_empty_folder(folder->wal);
    if (untouched && folder->identity.restored_lsn == 0) return OK;
    if (!has_store) {
        report(inspection, "db/data.mdb is missing; the log could not be checked without it");
        return OK;
    }
    TRY(inspect_store(inspection, folder));
    if (!inspection->meta) {
        report(inspection,
            "wal: it could not be checked, because db/data.mdb does not say where it begins");
        return OK;
    }
    char id[33];
    hex_of(folder->identity.node_id, id);
    if (strcmp(inspection->store, "-") == 0) {
        if (inspection->values > 0)
            report(inspection, "db/data.mdb: it does not say which node it belongs to");
    } else if (strcmp(inspection->store, id) != 0) {
        report(inspection, "db/data.mdb belongs to node %s, the identity file is of node %s",
            inspection->store, id);
    }
    if (!has_log) {
        if (inspection->absent == 0) report(inspection, "wal: the folder of the log is missing");
        return OK;
    }
    return inspect_log(inspection, folder, records_out);
}

enum err folder_verify(const char *path, void (*found)(void *ctx, const char *sentence), void *ctx,
    uint64_t *values_out, uint64_t *records_out)
{
    struct inspection inspection = {.found = found, .ctx = ctx};
    *values_out = *records_out = 0;
    struct folder folder = {.lock_fd = -1};
    if (path[0] == 0 || strlen(path) >= sizeof folder.path) return ERR_INVALID;
    snprintf(folder.path, sizeof folder.path, "%s", path);
    snprintf(folder.wal, sizeof folder.wal, "%s/wal", path);
    snprintf(folder.db, sizeof folder.db, "%s/db", path);
    if (!is_folder(path)) return ERR_NOT_FOUND;

    char lock[4100], detail[512];
    snprintf(lock, sizeof lock, "%s/lock", path);
    folder.lock_fd = open(lock, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (folder.lock_fd >= 0 && flock(folder.lock_fd, LOCK_EX | LOCK_NB) != 0 &&
        errno == EWOULDBLOCK) {
        close(folder.lock_fd);
        return ERR_BUSY;
    }
    enum err err = folder_read_identity(path, &folder.identity, detail, sizeof detail);
    if (err == OK) {
        err = inspect(&inspection, &folder, records_out);
    } else if (err == ERR_CORRUPT || (err == ERR_NOT_FOUND && is_folder(folder.db))) {
        on_found(&inspection, detail);
        err = OK;
    }
    if (folder.lock_fd >= 0) close(folder.lock_fd);
    *values_out = inspection.values;
    return err == OK && inspection.findings > 0 ? ERR_CORRUPT : err;
}
