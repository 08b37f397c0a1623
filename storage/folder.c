#define _GNU_SOURCE
#include "storage/folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "base/crc32c.h"

/* The identity file decides what a folder is, so it is written last-but-nothing: whole under another
 * name, synced, renamed, folder synced. A folder with an identity is ours; one with wal/ or db/ and
 * no identity has lost it and is not touched; one with only what an interrupted creation leaves is
 * still empty; anything else belongs to somebody else.
 *
 * Three lines hold for every format there will ever be, so that any version can tell "damaged" from
 * "newer": the first (what this is), the second (format N) and the last (CRC of all before it). */

static const char magic_line[] = "duramen data folder\n";

static void to_hex(char *at, const uint8_t *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++)
        snprintf(at + 2 * i, 3, "%02x", bytes[i]);
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
}

static bool from_hex(const char *text, uint8_t *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        int high = hex_digit(text[2 * i]);
        int low = high < 0 ? -1 : hex_digit(text[2 * i + 1]);
        if (low < 0) return false;
        bytes[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

bool folder_name_valid(const char *name)
{
    size_t size = strnlen(name, sizeof((struct folder_identity *)0)->name);
    if (size == 0 || size >= sizeof((struct folder_identity *)0)->name) return false;
    for (size_t i = 0; i < size; i++) {
        char c = name[i];
        bool fine = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
            c == '_' || c == '-' || (c == '.' && i > 0);
        if (!fine) return false;
    }
    return true;
}

size_t folder_identity_encode(char *at, const struct folder_identity *identity)
{
    ASSERT(folder_name_valid(identity->name));
    char cluster[33], node[33], restored[33];
    to_hex(cluster, identity->cluster_id, 16);
    to_hex(node, identity->node_id, 16);
    to_hex(restored, identity->restored_from, 16);
    int size = snprintf(at, FOLDER_IDENTITY_MAX,
        "%sformat %" PRIu32 "\ncluster %s\nnode %s\nname %s\nranges %" PRIu32 "\nnumber %u"
        "\nrestored_from %s %" PRIu64 "\n",
        magic_line, identity->format, cluster, node, identity->name, identity->ranges,
        identity->node_number, restored, identity->restored_lsn);
    ASSERT(size > 0 && size < FOLDER_IDENTITY_MAX - 16);
    uint32_t crc = crc32c(0, at, (size_t)size);
    size += snprintf(at + size, FOLDER_IDENTITY_MAX - (size_t)size, "crc %08" PRIx32 "\n", crc);
    return (size_t)size;
}

/* Takes one line that starts with `word` and a space off the front; NULL if it is another. */
static const char *take_line(struct bytes *rest, const char *word, size_t *size_out)
{
    size_t word_size = strlen(word);
    if (rest->size == 0) return NULL;
    const uint8_t *end = memchr(rest->at, '\n', rest->size);
    if (end == NULL) return NULL;
    size_t size = (size_t)(end - rest->at);
    if (size < word_size + 1 || memcmp(rest->at, word, word_size) != 0) return NULL;
    if (rest->at[word_size] != ' ') return NULL;
    const char *value = (const char *)rest->at + word_size + 1;
    *size_out = size - word_size - 1;
    *rest = bytes_of(end + 1, rest->size - size - 1);
    return value;
}

static bool to_number(const char *text, size_t size, uint64_t max, uint64_t *number_out)
{
    if (size == 0 || size > 20) return false;
    uint64_t number = 0;
    for (size_t i = 0; i < size; i++) {
        if (text[i] < '0' || text[i] > '9') return false;
        uint64_t digit = (uint64_t)(text[i] - '0');
        if (number > (max - digit) / 10) return false;
        number = number * 10 + digit;
    }
    *number_out = number;
    return true;
}

enum err folder_identity_decode(struct bytes text, struct folder_identity *identity_out)
{
    enum { CRC_LINE = 13 }; /* "crc 01234567\n" */
    struct folder_identity identity = {0};
    if (text.size < sizeof magic_line - 1 + CRC_LINE || text.size > FOLDER_IDENTITY_MAX)
        return ERR_CORRUPT;
    if (memcmp(text.at, magic_line, sizeof magic_line - 1) != 0) return ERR_CORRUPT;
    size_t body = text.size - CRC_LINE;
    char wanted[CRC_LINE + 1];
    snprintf(wanted, sizeof wanted, "crc %08" PRIx32 "\n", crc32c(0, text.at, body));
    if (memcmp(text.at + body, wanted, CRC_LINE) != 0) return ERR_CORRUPT;

    struct bytes rest = bytes_of(text.at + sizeof magic_line - 1, body - (sizeof magic_line - 1));
    size_t size;
    uint64_t number;
    const char *value = take_line(&rest, "format", &size);
    if (value == NULL || !to_number(value, size, UINT32_MAX, &number)) return ERR_CORRUPT;
    identity.format = (uint32_t)number;
    if (number != FOLDER_FORMAT) {
        identity_out->format = identity.format;
        return ERR_MISMATCH;
    }
    value = take_line(&rest, "cluster", &size);
    if (value == NULL || size != 32 || !from_hex(value, identity.cluster_id, 16))
        return ERR_CORRUPT;
    value = take_line(&rest, "node", &size);
    if (value == NULL || size != 32 || !from_hex(value, identity.node_id, 16)) return ERR_CORRUPT;
    value = take_line(&rest, "name", &size);
    if (value == NULL || size >= sizeof identity.name) return ERR_CORRUPT;
    memcpy(identity.name, value, size);
    if (strnlen(identity.name, size) != size || !folder_name_valid(identity.name))
        return ERR_CORRUPT;
    value = take_line(&rest, "ranges", &size);
    if (value == NULL || !to_number(value, size, UINT16_MAX - 1, &number) || number == 0)
        return ERR_CORRUPT;
    identity.ranges = (uint32_t)number;
    value = take_line(&rest, "number", &size);
    if (value == NULL || !to_number(value, size, UINT16_MAX, &number)) return ERR_CORRUPT;
    identity.node_number = (uint16_t)number;
    value = take_line(&rest, "restored_from", &size);
    if (value == NULL || size < 34 || value[32] != ' ') return ERR_CORRUPT;
    if (!from_hex(value, identity.restored_from, 16)) return ERR_CORRUPT;
    if (!to_number(value + 33, size - 33, UINT64_MAX, &identity.restored_lsn)) return ERR_CORRUPT;
    if (rest.size != 0) return ERR_CORRUPT;
    *identity_out = identity;
    return OK;
}

enum err folder_random_id(uint8_t id_out[16])
{
    size_t done = 0;
    while (done < 16) {
        ssize_t got = getrandom(id_out + done, 16 - done, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return err_from_errno(errno);
        done += (size_t)got;
    }
    return OK;
}

static enum err read_identity(int folder_fd, const char *path, struct folder_identity *identity_out,
    char *detail, size_t detail_size)
{
    char text[FOLDER_IDENTITY_MAX + 1];
    int fd = openat(folder_fd, "identity", O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT) return ERR_NOT_FOUND;
    if (fd < 0 && errno == ELOOP) {
        snprintf(detail, detail_size,
            "%s/identity is a symbolic link, which is not followed; put the file itself there.",
            path);
        return ERR_MISMATCH;
    }
    if (fd < 0) {
        enum err err = err_from_errno(errno);
        snprintf(detail, detail_size,
            "%s/identity cannot be read (%s); run as the owner of the folder.", path,
            strerror(errno));
        return err;
    }
    size_t size = 0;
    ssize_t got = 1;
    while (size < sizeof text && got != 0) {
        got = read(fd, text + size, sizeof text - size);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) break;
        size += (size_t)got;
    }
    enum err err = got < 0 ? err_from_errno(errno) : OK;
    close(fd);
    if (err != OK) {
        snprintf(detail, detail_size, "%s/identity cannot be read: %s.", path, err_text(err));
        return err;
    }
    err = folder_identity_decode(bytes_of(text, size), identity_out);
    if (err == ERR_MISMATCH && identity_out->format < FOLDER_FORMAT)
        snprintf(detail, detail_size,
            "%s was made by a pre-release of Duramen; take a backup with that version and restore "
            "it "
            "into a new folder.",
            path);
    else if (err == ERR_MISMATCH)
        snprintf(detail, detail_size,
            "%s was written by a newer version of Duramen; start that version.", path);
    else if (err != OK)
        snprintf(detail, detail_size,
            "%s/identity is damaged (its checksum does not fit); put the file back from a copy, or "
            "restore a backup into a new folder.",
            path);
    return err;
}

enum err folder_read_identity(
    const char *path, struct folder_identity *identity_out, char *detail, size_t detail_size)
{
    if (detail_size > 0) detail[0] = 0;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        enum err err = err_from_errno(errno);
        snprintf(detail, detail_size, "%s cannot be opened: %s.", path, strerror(errno));
        return err;
    }
    enum err err = read_identity(fd, path, identity_out, detail, detail_size);
    if (err == ERR_NOT_FOUND)
        snprintf(detail, detail_size,
            "%s has no identity file: it is not a Duramen data folder, or the file is lost.", path);
    close(fd);
    return err;
}

static enum err write_all(int fd, const char *at, size_t size)
{
    while (size > 0) {
        ssize_t wrote = write(fd, at, size);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote < 0) return err_from_errno(errno);
        at += wrote;
        size -= (size_t)wrote;
    }
    return OK;
}

static enum err make_subfolder(int folder_fd, const char *name)
{
    if (mkdirat(folder_fd, name, 0700) == 0 || errno == EEXIST) return OK;
    return err_from_errno(errno);
}

/* Makes `name` have this content, at once and durably: whole under another name, synced, renamed. */
static enum err replace_file(int folder_fd, const char *name, const char *text, size_t size)
{
    char fresh[32];
    snprintf(fresh, sizeof fresh, "%s.new", name);
    /* A left-over of an interruption; if it cannot go, the exclusive open says so. */
    (void)unlinkat(folder_fd, fresh, 0);
    int fd = openat(folder_fd, fresh, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return err_from_errno(errno);
    enum err err = write_all(fd, text, size);
    if (err == OK && fsync(fd) != 0) err = err_from_errno(errno);
    if (close(fd) != 0 && err == OK) err = err_from_errno(errno);
    if (err == OK && renameat(folder_fd, fresh, folder_fd, name) != 0) err = err_from_errno(errno);
    if (err == OK && fsync(folder_fd) != 0) err = err_from_errno(errno);
    return err;
}

static enum err write_identity(int folder_fd, const struct folder_identity *identity)
{
    char text[FOLDER_IDENTITY_MAX];
    size_t size = folder_identity_encode(text, identity);
    TRY(replace_file(folder_fd, "identity", text, size));
    TRY(make_subfolder(folder_fd, "wal"));
    TRY(make_subfolder(folder_fd, "db"));
    return fsync(folder_fd) == 0 ? OK : err_from_errno(errno);
}

enum err folder_write_identity(const char *path, const struct folder_identity *identity)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return err_from_errno(errno);
    enum err err = write_identity(fd, identity);
    close(fd);
    return err;
}

enum err folder_rewrite_identity(struct folder *folder, const struct folder_identity *identity)
{
    TRY(folder_write_identity(folder->path, identity));
    folder->identity = *identity;
    return OK;
}

static const char incarnation_line[] = "duramen incarnation\n";
enum { INCARNATION_MAX = 80 };

static size_t incarnation_encode(char at[INCARNATION_MAX], uint64_t number)
{
    int size = snprintf(at, INCARNATION_MAX, "%scount %" PRIu64 "\n", incarnation_line, number);
    uint32_t crc = crc32c(0, at, (size_t)size);
    size += snprintf(at + size, INCARNATION_MAX - (size_t)size, "crc %08" PRIx32 "\n", crc);
    return (size_t)size;
}

static enum err incarnation_decode(struct bytes text, uint64_t *number_out)
{
    char again[INCARNATION_MAX];
    size_t size, front = sizeof incarnation_line - 1;
    if (text.size < front || memcmp(text.at, incarnation_line, front) != 0) return ERR_CORRUPT;
    struct bytes rest = bytes_of(text.at + front, text.size - front);
    uint64_t number;
    const char *value = take_line(&rest, "count", &size);
    if (value == NULL || !to_number(value, size, UINT64_MAX - 1, &number)) return ERR_CORRUPT;
    /* one form for each number, checksum included */
    size = incarnation_encode(again, number);
    if (!bytes_equal(text, bytes_of(again, size))) return ERR_CORRUPT;
    *number_out = number;
    return OK;
}

static enum err incarnation_read(int folder_fd, uint64_t *number_out)
{
    char text[INCARNATION_MAX];
    *number_out = 0;
    int fd = openat(folder_fd, "incarnation", O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) return errno == ENOENT ? OK : err_from_errno(errno);
    ssize_t got = read(fd, text, sizeof text);
    enum err err = got < 0 ? err_from_errno(errno) : OK;
    close(fd);
    return err == OK ? incarnation_decode(bytes_of(text, (size_t)got), number_out) : err;
}

enum err folder_next_incarnation(struct folder *folder, uint64_t *incarnation_out)
{
    int fd = open(folder->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return err_from_errno(errno);
    uint64_t number;
    char text[INCARNATION_MAX];
    enum err err = incarnation_read(fd, &number);
    if (err == OK)
        err = replace_file(fd, "incarnation", text, incarnation_encode(text, number + 1));
    close(fd);
    if (err == OK) *incarnation_out = number + 1;
    return err;
}

/* What the folder holds besides what an interrupted creation, or the file system itself, leaves in an
 * empty one: "" if nothing. `lost` tells that it is our own data without an identity. */
static enum err look_around(int folder_fd, char *foreign, size_t foreign_size, bool *lost_out)
{
    int fd = openat(folder_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = fd < 0 ? NULL : fdopendir(fd);
    if (folder == NULL) {
        enum err err = err_from_errno(errno);
        if (fd >= 0) close(fd);
        return err;
    }
    bool wal = false, db = false;
    foreign[0] = 0;
    for (struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
        const char *name = entry->d_name;
        static const char *const harmless[] = {
            ".", "..", "lock", "identity.new", "incarnation", "incarnation.new", "lost+found"};
        bool known = false;
        for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++)
            known = known || strcmp(name, harmless[i]) == 0;
        if (known) continue;
        if (strcmp(name, "wal") == 0) {
            wal = true;
        } else if (strcmp(name, "db") == 0) {
            db = true;
        } else if (foreign[0] == 0) {
            snprintf(foreign, foreign_size, "%s", name);
        }
    }
    closedir(folder);
    *lost_out = wal && db;
    if (foreign[0] == 0 && wal != db) snprintf(foreign, foreign_size, "%s", wal ? "wal" : "db");
    return OK;
}

static enum err sync_parent(const char *path)
{
    char parent[4096];
    size_t size = strlen(path);
    while (size > 1 && path[size - 1] == '/')
        size--;
    while (size > 0 && path[size - 1] != '/')
        size--;
    if (size == 0)
        snprintf(parent, sizeof parent, ".");
    else
        snprintf(parent, sizeof parent, "%.*s", (int)size, path);
    int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return err_from_errno(errno);
    enum err err = fsync(fd) == 0 ? OK : err_from_errno(errno);
    close(fd);
    return err;
}

static enum err take_lock(
    int folder_fd, const char *path, int *lock_out, char *detail, size_t detail_size)
{
    int fd =
        openat(folder_fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    if (fd < 0 && errno == ELOOP) {
        snprintf(detail, detail_size, "%s/lock is a symbolic link; remove it.", path);
        return ERR_MISMATCH;
    }
    if (fd < 0) {
        bool permission = errno == EACCES || errno == EPERM || errno == EROFS;
        enum err err = permission ? ERR_PERMISSION : err_from_errno(errno);
        snprintf(detail, detail_size, "%s cannot be written to (%s); %s.", path, strerror(errno),
            permission ? "make it writable for this user, or run as its owner"
                       : "check the file system it is on");
        return err;
    }
    int locked = PLANTED_BUG(19) ? 0 : flock(fd, LOCK_EX | LOCK_NB);
    if (locked != 0 && (errno == EWOULDBLOCK || errno == EINTR)) {
        char owner[24] = {0};
        ssize_t got = pread(fd, owner, sizeof owner - 1, 0);
        uint64_t pid = 0;
        size_t digits = got > 0 ? strspn(owner, "0123456789") : 0;
        if (digits > 0) (void)to_number(owner, digits, INT32_MAX, &pid);
        if (pid > 0)
            snprintf(detail, detail_size,
                "%s is in use by another process (%" PRIu64 "); stop it first.", path, pid);
        else
            snprintf(detail, detail_size, "%s is in use by another process; stop it first.", path);
        close(fd);
        return ERR_BUSY;
    }
    if (locked != 0) {
        enum err err = err_from_errno(errno);
        snprintf(detail, detail_size, "%s cannot be locked (%s); use a local file system.", path,
            strerror(errno));
        close(fd);
        return err;
    }
    /* Who holds it, for the sentence above only: that it could not be noted is no reason to stop. */
    char text[24];
    int size = snprintf(text, sizeof text, "%ld\n", (long)getpid());
    (void)!ftruncate(fd, 0);
    (void)!pwrite(fd, text, (size_t)size, 0);
    *lock_out = fd;
    return OK;
}

static enum err create(int folder_fd, const char *path, const struct folder_identity *wanted,
    struct folder_identity *identity_out, char *detail, size_t detail_size)
{
    static const uint8_t zeros[16];
    struct folder_identity identity = *wanted;
    identity.format = FOLDER_FORMAT;
    enum err err = OK;
    if (memcmp(identity.cluster_id, zeros, 16) == 0) err = folder_random_id(identity.cluster_id);
    if (err == OK && memcmp(identity.node_id, zeros, 16) == 0)
        err = folder_random_id(identity.node_id);
    if (identity.name[0] == 0)
        snprintf(identity.name, sizeof identity.name, "node-%02x%02x%02x%02x", identity.node_id[0],
            identity.node_id[1], identity.node_id[2], identity.node_id[3]);
    if (!folder_name_valid(identity.name)) {
        snprintf(detail, detail_size,
            "A node's name has 1 to 63 letters, digits, '_', '-' and '.' and does not begin with "
            "'.'; choose another.");
        return ERR_INVALID;
    }
    if (identity.ranges == 0 || identity.ranges >= UINT16_MAX) {
        snprintf(detail, detail_size, "The number of ranges must be between 1 and 65534.");
        return ERR_INVALID;
    }
    if (err == OK && fchmod(folder_fd, 0700) != 0) err = err_from_errno(errno);
    if (err == OK) err = write_identity(folder_fd, &identity);
    if (err == OK) err = sync_parent(path);
    if (err != OK)
        snprintf(detail, detail_size,
            "%s cannot be set up: %s; check its permissions and free space.", path, err_text(err));
    *identity_out = identity;
    return err;
}

enum err folder_open(const char *path, bool existing, const struct folder_identity *wanted,
    struct folder *folder_out, char *detail, size_t detail_size)
{
    ASSERT(detail_size > 0);
    detail[0] = 0;
    struct folder folder = {.lock_fd = -1};
    if (path[0] == 0 || strlen(path) >= sizeof folder.path) {
        snprintf(detail, detail_size, "The path of the data folder is %s; choose another.",
            path[0] == 0 ? "empty" : "too long");
        return ERR_INVALID;
    }
    snprintf(folder.path, sizeof folder.path, "%s", path);
    snprintf(folder.wal, sizeof folder.wal, "%s/wal", path);
    snprintf(folder.db, sizeof folder.db, "%s/db", path);

    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT && !existing) {
        if (mkdir(path, 0700) != 0 && errno != EEXIST) {
            enum err err = err_from_errno(errno);
            snprintf(detail, detail_size, "%s cannot be created (%s); %s.", path, strerror(errno),
                errno == ENOENT ? "create the folder above it first"
                                : "check the permissions of the folder above it");
            return errno == EROFS ? ERR_PERMISSION : err;
        }
        fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    }
    if (fd < 0) {
        enum err err = errno == ENOTDIR ? ERR_MISMATCH : err_from_errno(errno);
        snprintf(detail, detail_size, "%s cannot be opened as a folder (%s); check the path.", path,
            strerror(errno));
        return err;
    }

    /* Before the lock, because making the lock file already would change somebody else's folder. */
    char foreign[256] = {0};
    bool lost = false;
    enum err err = read_identity(fd, path, &folder.identity, detail, detail_size);
    bool absent = err == ERR_NOT_FOUND;
    if (absent) err = look_around(fd, foreign, sizeof foreign, &lost);
    if (err != OK && detail[0] == 0)
        snprintf(detail, detail_size, "%s cannot be read: %s.", path, err_text(err));
    if (err != OK) goto fail;
    if (absent && lost) {
        snprintf(detail, detail_size,
            "%s holds data but its identity file is missing; put the file back from a copy, or "
            "restore a backup into a new folder.",
            path);
        err = ERR_CORRUPT;
        goto fail;
    }
    if (absent && foreign[0] != 0) {
        snprintf(detail, detail_size,
            "The folder %s is not empty and not a Duramen data folder (it has '%.60s'); choose "
            "another.",
            path, foreign);
        err = ERR_MISMATCH;
        goto fail;
    }
    if (absent && existing) {
        snprintf(detail, detail_size, "%s is not a Duramen data folder: it is empty.", path);
        err = ERR_NOT_FOUND;
        goto fail;
    }

    err = take_lock(fd, path, &folder.lock_fd, detail, detail_size);
    if (err != OK) goto fail;
    if (absent) {
        /* Somebody else may have created it between the look and the lock. */
        err = read_identity(fd, path, &folder.identity, detail, detail_size);
        if (err == ERR_NOT_FOUND) {
            err = create(fd, path, wanted, &folder.identity, detail, detail_size);
            folder.created = err == OK;
        }
        if (err != OK) goto fail;
    }
    close(fd);
    *folder_out = folder;
    return OK;

fail:
    if (folder.lock_fd >= 0) close(folder.lock_fd);
    close(fd);
    return err;
}

void folder_close(struct folder *folder)
{
    if (folder->lock_fd >= 0) close(folder->lock_fd);
    folder->lock_fd = -1;
}
