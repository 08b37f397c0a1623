#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <lmdb.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "base/crc32c.h"
#include "base/logger.h"
#include "storage/kv.h"

/* The bottom store on LMDB. docs/formats/store.md describes the databases.
 *
 * Flags. MDB_NOTLS, because a snapshot here belongs to an object, not to a thread; MDB_NORDAHEAD,
 * because reads are random. Nothing else: without syncs a power cut can leave the file damaged, and
 * writing through the map wrote 4.6 times more.
 *
 * Writing. What decides the speed is pages, not keys, and the caller brings sorted runs of one range.
 * For each range the transaction keeps one cursor, which finds the next key without a new descent
 * while it stays on the leaf; one search says whether the key exists (for the counts), what its
 * expiry was (for the index), and is the place to write. Keys beyond the range's last are appended, so
 * that ordered loads leave full pages.
 *
 * Growing the map. mdb_env_set_mapsize moves the map, so no transaction may be active in the process.
 * `active` counts the snapshots in use. Growing waits for it to be zero and only then shuts the door
 * (-1) for the short time the call takes; it never makes a new snapshot wait for an old one, so a
 * thread that holds one may take another without a deadlock. Waiting has a limit: under readers that
 * overlap forever the write fails with ERR_FULL, as it would on a full disk, and is repeated later.
 *
 * One open a process. Closing a second descriptor of LMDB's lock file would drop the locks of the
 * first (they are POSIX locks); flock() on the folder, which is per descriptor, refuses the
 * second open, in this process as in any other.
 *
 * LMDB itself does not expect damage in the pages it walks. What it notices (MDB_CORRUPTED and its
 * like) is reported as ERR_CORRUPT; a damaged value is found by kv_value_decode. What is left is a key
 * that is not found although it was stored: a page in the place of another, an older page, a changed
 * key or pointer. Against that each range has a sum over its entries, kept in the transaction of the
 * data, that a walk of the range must arrive at (kv_check.h). Meta values carry a checksum. */

enum {
    FORMAT = 2,
    READERS_MAX = 510,
    KEY_MAX = 500, /* LMDB's 511 less the front of an expiry key */
    EXPIRY_FRONT = 10,
    WRITERS_MAX = 8,
    COUNT_NAME = 4,
    GROW_WAIT_S = 10,
    META_FRONT = 4,
};
#define SUM_FORMAT "sum/%05u"
#define GIB (UINT64_C(1) << 30)

/* what the write transaction knows of a range it has touched */
struct range_write {
    MDB_cursor *cursor; /* NULL: not in this transaction yet */
    size_t last_size; /* at least as great as the last key of the range; 0: the range is empty */
    uint8_t last[KEY_MAX];
    uint64_t sum; /* of the range, as it will be committed */
    bool sum_changed;
    bool sum_lost; /* a damaged value went, and nobody knows what it had added: count anew */
    uint16_t bucket; /* the bucket that `keys` is about: neighbours in key order share it */
    int64_t keys; /* came and went, not yet in kv_write.changes */
    int64_t expiring; /* the same of keys that expire */
};

struct count_change {
    uint16_t range;
    uint16_t bucket;
    int64_t by;
};

/* A thread's, kept for its next transaction. */
struct kv_write {
    struct kv *kv;
    bool owned;
    pthread_t owner;
    MDB_txn *txn; /* NULL: no transaction */
    enum err failed; /* why it is gone */
    MDB_cursor *expiry;
    struct range_write **ranges; /* by id; allocated at first use, kept */
    uint16_t *touched; /* ids of the ranges with a cursor */
    size_t touched_count;
    struct count_change *changes; /* in order of time */
    size_t change_count;
    size_t change_capacity;
};

struct kv {
    MDB_env *env;
    MDB_dbi meta;
    MDB_dbi expiry;
    MDB_dbi counts;
    MDB_dbi *ranges;
    uint32_t range_count;
    bool read_only;
    int folder_fd;
    char *folder;
    pthread_mutex_t
        writer; /* held from the begin of a write transaction to its end, map growth included */
    struct kv_write writes[WRITERS_MAX];

    atomic_int active; /* snapshots in use; -1 while the map moves */
    atomic_bool grow_waits;
    pthread_mutex_t lock;
    pthread_cond_t changed;
};

struct kv_read {
    struct kv *kv;
    MDB_txn *txn;
    bool active;
};

struct cursor {
    MDB_cursor *lmdb;
    uint16_t range;
};

static MDB_val val_of(struct bytes bytes)
{
    return (MDB_val){.mv_size = bytes.size, .mv_data = (void *)(uintptr_t)bytes.at};
}

static struct bytes bytes_of_val(MDB_val val)
{
    return bytes_of(val.mv_data, val.mv_size);
}

static enum err err_from_lmdb(int code)
{
    switch (code) {
    case MDB_SUCCESS:
        return OK;
    case MDB_NOTFOUND:
        return ERR_NOT_FOUND;
    case MDB_KEYEXIST:
        return ERR_EXISTS;
    case MDB_MAP_FULL:
        return ERR_FULL;
    case MDB_TXN_FULL:
        return ERR_TOO_LARGE;
    case MDB_BAD_VALSIZE:
        return ERR_INVALID;
    case MDB_VERSION_MISMATCH:
        return ERR_MISMATCH;
    case MDB_READERS_FULL:
        return ERR_BUSY;
    case MDB_CORRUPTED:
    case MDB_PAGE_NOTFOUND:
    case MDB_PANIC:
    case MDB_INVALID:
    case MDB_PAGE_FULL:
    case MDB_CURSOR_FULL:
    case MDB_INCOMPATIBLE:
    case MDB_BAD_TXN:
    case MDB_BAD_DBI:
        return ERR_CORRUPT;
    default:
        return code > 0 ? err_from_errno(code) : ERR_IO;
    }
}

/* ---- snapshots and the growing map */

static void snapshot_enter(struct kv *kv)
{
    int active = atomic_load(&kv->active);
    for (;;) {
        if (active >= 0) {
            if (atomic_compare_exchange_weak(&kv->active, &active, active + 1)) return;
            continue;
        }
        pthread_mutex_lock(&kv->lock);
        while (atomic_load(&kv->active) < 0)
            pthread_cond_wait(&kv->changed, &kv->lock);
        pthread_mutex_unlock(&kv->lock);
        active = atomic_load(&kv->active);
    }
}

static void snapshot_leave(struct kv *kv)
{
    int before = atomic_fetch_sub(&kv->active, 1);
    ASSERT(before >= 1);
    if (before == 1 && atomic_load(&kv->grow_waits)) {
        pthread_mutex_lock(&kv->lock);
        pthread_cond_broadcast(&kv->changed);
        pthread_mutex_unlock(&kv->lock);
    }
}

/* Doubles the map; no write transaction may be open. */
static bool map_grow(struct kv *kv)
{
    MDB_envinfo info;
    mdb_env_info(kv->env, &info);
    if (info.me_mapsize > SIZE_MAX / 2) return false;
    size_t size = info.me_mapsize * 2;

    struct timespec limit;
    clock_gettime(CLOCK_REALTIME, &limit);
    limit.tv_sec += GROW_WAIT_S;
    bool waited_out = false;
    atomic_store(&kv->grow_waits, true);
    pthread_mutex_lock(&kv->lock);
    int none = 0;
    while (!atomic_compare_exchange_strong(&kv->active, &none, -1) && !waited_out) {
        none = 0;
        waited_out = pthread_cond_timedwait(&kv->changed, &kv->lock, &limit) == ETIMEDOUT;
    }
    bool shut = atomic_load(&kv->active) == -1;
    pthread_mutex_unlock(&kv->lock);
    atomic_store(&kv->grow_waits, false);
    if (!shut) return false;

    /* mdb_env_set_mapsize gives up the old map first, and cannot go back: so ask before whether
     * there is room for the new one */
    void *room = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    bool grows = room != MAP_FAILED;
    if (grows) {
        munmap(room, size);
        int code = mdb_env_set_mapsize(kv->env, size);
        ASSERT(code == MDB_SUCCESS);
    }

    pthread_mutex_lock(&kv->lock);
    atomic_store(&kv->active, 0);
    pthread_cond_broadcast(&kv->changed);
    pthread_mutex_unlock(&kv->lock);
    if (grows) log_info("the map of the bottom store has grown", "bytes=%zu", size);
    return grows;
}

static enum err lmdb_read_begin(struct kv *kv, struct kv_read **read_out)
{
    struct kv_read *read = calloc(1, sizeof *read);
    if (read == NULL) return ERR_NOMEM;
    read->kv = kv;
    snapshot_enter(kv);
    int code = mdb_txn_begin(kv->env, NULL, MDB_RDONLY, &read->txn);
    if (code != MDB_SUCCESS) {
        snapshot_leave(kv);
        free(read);
        return err_from_lmdb(code);
    }
    read->active = true;
    *read_out = read;
    return OK;
}

static void lmdb_read_reset(struct kv_read *read)
{
    if (!read->active) return;
    mdb_txn_reset(read->txn);
    read->active = false;
    snapshot_leave(read->kv);
}

static enum err lmdb_read_renew(struct kv_read *read)
{
    lmdb_read_reset(read);
    snapshot_enter(read->kv);
    int code = mdb_txn_renew(read->txn);
    if (code != MDB_SUCCESS) {
        snapshot_leave(read->kv);
        return err_from_lmdb(code);
    }
    read->active = true;
    return OK;
}

static void lmdb_read_end(struct kv_read *read)
{
    if (read == NULL) return;
    mdb_txn_abort(read->txn);
    if (read->active) snapshot_leave(read->kv);
    free(read);
}

static enum err lmdb_get(
    struct kv_read *read, uint16_t range, struct bytes key, struct value *value_out)
{
    ASSERT(read->active);
    ASSERT(range < read->kv->range_count);
    MDB_val name = val_of(key), stored;
    int code = mdb_get(read->txn, read->kv->ranges[range], &name, &stored);
    if (code != MDB_SUCCESS) return err_from_lmdb(code);
    return kv_value_decode(range, key, bytes_of_val(stored), value_out);
}

/* Name in the database of counts: u16 range, u16 bucket, both big-endian; the range alone names the number of
 * its keys that expire. */
static MDB_val count_name(uint8_t at[COUNT_NAME], uint16_t range, const uint16_t *bucket)
{
    store_u16_be(at, range);
    if (bucket != NULL) store_u16_be(at + 2, *bucket);
    return (MDB_val){.mv_size = bucket == NULL ? 2 : COUNT_NAME, .mv_data = at};
}

static enum err count_get(
    MDB_txn *txn, const struct kv *kv, uint16_t range, const uint16_t *bucket, uint64_t *count_out)
{
    uint8_t name[COUNT_NAME];
    MDB_val key = count_name(name, range, bucket), stored;
    int code = mdb_get(txn, kv->counts, &key, &stored);
    *count_out = 0;
    if (code == MDB_NOTFOUND) return OK;
    if (code != MDB_SUCCESS) return err_from_lmdb(code);
    if (stored.mv_size != sizeof(uint64_t)) return ERR_CORRUPT;
    *count_out = load_u64(stored.mv_data);
    return OK;
}

static enum err lmdb_count(
    struct kv_read *read, uint16_t range, uint16_t bucket, uint64_t *count_out)
{
    ASSERT(read->active);
    return count_get(read->txn, read->kv, range, &bucket, count_out);
}

static enum err lmdb_counts(struct kv_read *read, uint16_t range,
    void (*each)(void *ctx, uint16_t bucket, uint64_t count), void *ctx)
{
    ASSERT(read->active);
    MDB_cursor *cursor;
    int code = mdb_cursor_open(read->txn, read->kv->counts, &cursor);
    if (code != MDB_SUCCESS) return err_from_lmdb(code);
    uint8_t front[COUNT_NAME];
    MDB_val key = count_name(front, range, NULL), stored;
    struct bytes prefix = bytes_of(front, 2);
    code = mdb_cursor_get(cursor, &key, &stored, MDB_SET_RANGE);
    while (code == MDB_SUCCESS && bytes_have_prefix(bytes_of_val(key), prefix)) {
        const uint8_t *at = key.mv_data;
        if (key.mv_size == COUNT_NAME && stored.mv_size == sizeof(uint64_t))
            each(ctx, load_u16_be(at + 2), load_u64(stored.mv_data));
        code = mdb_cursor_get(cursor, &key, &stored, MDB_NEXT);
    }
    mdb_cursor_close(cursor);
    return code == MDB_NOTFOUND ? OK : err_from_lmdb(code);
}

/* A meta value is stored behind u32 crc32c of its name and itself. */
static uint32_t meta_checksum(const char *name, struct bytes value)
{
    return crc32c(crc32c(0, name, strlen(name)), value.at, value.size);
}

static enum err meta_read(
    MDB_txn *txn, const struct kv *kv, const char *name, struct bytes *value_out)
{
    MDB_val key = val_of(bytes_of_text(name)), stored;
    int code = mdb_get(txn, kv->meta, &key, &stored);
    if (code != MDB_SUCCESS) return err_from_lmdb(code);
    if (stored.mv_size < META_FRONT) return ERR_CORRUPT;
    struct bytes value =
        bytes_of((const uint8_t *)stored.mv_data + META_FRONT, stored.mv_size - META_FRONT);
    if (load_u32(stored.mv_data) != meta_checksum(name, value)) return ERR_CORRUPT;
    *value_out = value;
    return OK;
}

static int meta_write(MDB_txn *txn, const struct kv *kv, const char *name, struct bytes value)
{
    MDB_val key = val_of(bytes_of_text(name));
    MDB_val stored = {.mv_size = META_FRONT + value.size};
    int code = mdb_put(txn, kv->meta, &key, &stored, MDB_RESERVE);
    if (code != MDB_SUCCESS) return code;
    uint8_t *at = stored.mv_data;
    store_u32(at, meta_checksum(name, value));
    if (value.size > 0) memcpy(at + META_FRONT, value.at, value.size);
    return MDB_SUCCESS;
}

static enum err lmdb_meta_get(struct kv_read *read, const char *name, struct bytes *value_out)
{
    ASSERT(read->active);
    return meta_read(read->txn, read->kv, name, value_out);
}

static enum err sum_read(MDB_txn *txn, const struct kv *kv, uint16_t range, uint64_t *sum_out)
{
    char name[32];
    struct bytes value;
    *sum_out = 0;
    snprintf(name, sizeof name, SUM_FORMAT, (unsigned)range);
    enum err err = meta_read(txn, kv, name, &value);
    if (err == ERR_NOT_FOUND) return OK; /* nothing was ever written to the range */
    if (err == OK && value.size != sizeof *sum_out) err = ERR_CORRUPT;
    if (err == OK) *sum_out = load_u64(value.at);
    return err;
}

static enum err lmdb_sum(struct kv_read *read, uint16_t range, uint64_t *sum_out)
{
    ASSERT(read->active);
    return sum_read(read->txn, read->kv, range, sum_out);
}

static enum err lmdb_cursor_open(struct kv_read *read, uint16_t range, void **cursor_out)
{
    ASSERT(read->active);
    ASSERT(range < read->kv->range_count);
    struct cursor *cursor = calloc(1, sizeof *cursor);
    if (cursor == NULL) return ERR_NOMEM;
    cursor->range = range;
    int code = mdb_cursor_open(read->txn, read->kv->ranges[range], &cursor->lmdb);
    if (code != MDB_SUCCESS) {
        free(cursor);
        return err_from_lmdb(code);
    }
    *cursor_out = cursor;
    return OK;
}

static enum err cursor_result(const struct cursor *cursor, int code, MDB_val key, MDB_val stored,
    struct bytes *key_out, struct value *value_out)
{
    if (code != MDB_SUCCESS) return err_from_lmdb(code);
    *key_out = bytes_of_val(key);
    enum err err = kv_value_decode(cursor->range, *key_out, bytes_of_val(stored), value_out);
    if (err != OK) *value_out = (struct value){.version = kv_value_version(bytes_of_val(stored))};
    return err;
}

static enum err lmdb_cursor_seek(
    void *ctx, struct bytes from, struct bytes *key_out, struct value *value_out)
{
    struct cursor *cursor = ctx;
    MDB_val key = val_of(from), stored = {0};
    int code =
        mdb_cursor_get(cursor->lmdb, &key, &stored, from.size == 0 ? MDB_FIRST : MDB_SET_RANGE);
    return cursor_result(cursor, code, key, stored, key_out, value_out);
}

/* The checksum reads every byte, so a walk waits for memory. LMDB fills a page from its end: the
 * entries that follow lie below this one, mostly. Only a hint, to addresses that may be anything. */
static void entry_prefetch(MDB_val key, MDB_val stored)
{
    enum { AHEAD = 4, LINE = 64, LARGE = 1024 };
    size_t size = key.mv_size + stored.mv_size;
    if (size > LARGE) return;
    uintptr_t at = (uintptr_t)key.mv_data - AHEAD * size;
    for (size_t line = 0; line < 2 * size; line += LINE)
        __builtin_prefetch((const void *)(at + line));
}

static enum err lmdb_cursor_next(void *ctx, struct bytes *key_out, struct value *value_out)
{
    struct cursor *cursor = ctx;
    MDB_val key, stored;
    int code = mdb_cursor_get(cursor->lmdb, &key, &stored, MDB_NEXT);
    if (code == MDB_SUCCESS) entry_prefetch(key, stored);
    return cursor_result(cursor, code, key, stored, key_out, value_out);
}

static void lmdb_cursor_close(void *ctx)
{
    struct cursor *cursor = ctx;
    if (cursor == NULL) return;
    mdb_cursor_close(cursor->lmdb);
    free(cursor);
}

static enum err lmdb_expired(struct kv_read *read, int64_t from, int64_t until,
    bool (*each)(void *ctx, uint16_t range, struct bytes key, int64_t expires_ms), void *ctx)
{
    ASSERT(read->active);
    MDB_cursor *cursor;
    int code = mdb_cursor_open(read->txn, read->kv->expiry, &cursor);
    if (code != MDB_SUCCESS) return err_from_lmdb(code);
    uint8_t start[8];
    store_u64_be(start, from > 1 ? (uint64_t)from : 1);
    MDB_val name = {.mv_size = sizeof start, .mv_data = start}, stored;
    code = mdb_cursor_get(cursor, &name, &stored, MDB_SET_RANGE);
    while (code == MDB_SUCCESS) {
        const uint8_t *at = name.mv_data;
        if (name.mv_size < EXPIRY_FRONT) {
            code = MDB_CORRUPTED;
            break;
        }
        int64_t expires_ms = (int64_t)load_u64_be(at);
        struct bytes key = bytes_of(at + EXPIRY_FRONT, name.mv_size - EXPIRY_FRONT);
        if (expires_ms > until || !each(ctx, load_u16_be(at + 8), key, expires_ms)) break;
        code = mdb_cursor_get(cursor, &name, &stored, MDB_NEXT);
    }
    mdb_cursor_close(cursor);
    return code == MDB_NOTFOUND ? OK : err_from_lmdb(code);
}

/* ---- writing */

static void write_forget(struct kv_write *write)
{
    for (size_t i = 0; i < write->touched_count; i++)
        write->ranges[write->touched[i]]->cursor = NULL; /* closed with the transaction */
    write->touched_count = 0;
    write->change_count = 0;
    write->expiry = NULL;
    write->txn = NULL;
}

static void lmdb_abort(struct kv_write *write)
{
    if (write == NULL || write->txn == NULL) return;
    mdb_txn_abort(write->txn);
    write_forget(write);
    pthread_mutex_unlock(&write->kv->writer);
}

static bool disk_is_full(const struct kv *kv)
{
    struct statvfs status;
    if (fstatvfs(kv->folder_fd, &status) != 0) return false;
    return status.f_bavail * status.f_frsize < (1 << 20);
}

/* Ends the transaction because of `code` and says what the caller should know. */
static enum err write_fail(struct kv_write *write, int code, bool committing)
{
    enum err err = err_from_lmdb(code);
    struct kv *kv = write->kv;
    if (committing) {
        /* LMDB reports a write cut short by a full disk as EIO */
        if (code == EIO && disk_is_full(kv)) err = ERR_FULL;
    } else {
        mdb_txn_abort(write->txn);
    }
    write_forget(write);
    if (code == MDB_MAP_FULL && map_grow(kv)) err = ERR_AGAIN;
    pthread_mutex_unlock(&kv->writer);
    write->failed = err;
    return err;
}

static enum err write_give_up(struct kv_write *write, enum err err)
{
    lmdb_abort(write);
    return write->failed = err;
}

/* The caller's, from earlier or new; kv->writer is held. */
static struct kv_write *write_of_thread(struct kv *kv)
{
    pthread_t self = pthread_self();
    struct kv_write *unused = NULL;
    for (int i = 0; i < WRITERS_MAX; i++) {
        struct kv_write *write = &kv->writes[i];
        if (write->owned && pthread_equal(write->owner, self)) return write;
        if (!write->owned && unused == NULL) unused = write;
    }
    /* more threads than were ever meant to write: a program error */
    ASSERT(unused != NULL);
    unused->kv = kv;
    if (unused->ranges == NULL) unused->ranges = calloc(kv->range_count, sizeof(void *));
    if (unused->touched == NULL) unused->touched = calloc(kv->range_count, sizeof(uint16_t));
    if (unused->ranges == NULL || unused->touched == NULL) return NULL;
    unused->owner = self;
    unused->owned = true;
    return unused;
}

static enum err lmdb_write_begin(struct kv *kv, struct kv_write **write_out)
{
    ASSERT(!kv->read_only);
    pthread_mutex_lock(&kv->writer);
    struct kv_write *write = write_of_thread(kv);
    if (write == NULL) {
        pthread_mutex_unlock(&kv->writer);
        return ERR_NOMEM;
    }
    ASSERT(write->txn == NULL);
    int code = mdb_txn_begin(kv->env, NULL, 0, &write->txn);
    if (code != MDB_SUCCESS) {
        write->txn = NULL;
        pthread_mutex_unlock(&kv->writer);
        /* a commit that failed at its last step leaves LMDB unsure of what is on the disk */
        if (code == MDB_PANIC) return ERR_IO;
        return err_from_lmdb(code);
    }
    write->failed = OK;
    *write_out = write;
    return OK;
}

static enum err write_range(struct kv_write *write, uint16_t range, struct range_write **out)
{
    ASSERT(range < write->kv->range_count);
    struct range_write *state = write->ranges[range];
    if (state != NULL && state->cursor != NULL) {
        *out = state;
        return OK;
    }
    if (state == NULL) {
        state = write->ranges[range] = calloc(1, sizeof *state);
        if (state == NULL) return write_give_up(write, ERR_NOMEM);
    }
    int code = mdb_cursor_open(write->txn, write->kv->ranges[range], &state->cursor);
    if (code != MDB_SUCCESS) {
        state->cursor = NULL;
        return write_fail(write, code, false);
    }
    write->touched[write->touched_count++] = range;
    state->sum_changed = false;
    state->keys = state->expiring = 0;
    enum err err = sum_read(write->txn, write->kv, range, &state->sum);
    state->sum_lost = err == ERR_CORRUPT;
    if (err != OK && err != ERR_CORRUPT) return write_give_up(write, err);
    MDB_val last, ignored;
    code = mdb_cursor_get(state->cursor, &last, &ignored, MDB_LAST);
    state->last_size = 0;
    if (code == MDB_SUCCESS) {
        state->last_size = last.mv_size < KEY_MAX ? last.mv_size : KEY_MAX;
        memcpy(state->last, last.mv_data, state->last_size);
    } else if (code != MDB_NOTFOUND) {
        return write_fail(write, code, false);
    }
    *out = state;
    return OK;
}

static void sum_add(struct range_write *state, struct bytes key, uint64_t version)
{
    state->sum += kv_entry_sum(key, version);
    state->sum_changed = true;
}

/* `stored` is what was there and is about to go. */
static void sum_remove(
    struct range_write *state, uint16_t range, struct bytes key, struct bytes stored)
{
    struct value value;
    if (kv_value_decode(range, key, stored, &value) == OK)
        state->sum -= kv_entry_sum(key, value.version);
    else
        state->sum_lost = true;
    state->sum_changed = true;
}

/* What the range adds up to now. */
static int sum_recount(struct range_write *state)
{
    MDB_val name, stored;
    state->sum = 0;
    int code = mdb_cursor_get(state->cursor, &name, &stored, MDB_FIRST);
    while (code == MDB_SUCCESS) {
        state->sum += kv_entry_sum(bytes_of_val(name), kv_value_version(bytes_of_val(stored)));
        code = mdb_cursor_get(state->cursor, &name, &stored, MDB_NEXT);
    }
    return code == MDB_NOTFOUND ? MDB_SUCCESS : code;
}

static int sums_write(struct kv_write *write)
{
    for (size_t i = 0; i < write->touched_count; i++) {
        uint16_t range = write->touched[i];
        struct range_write *state = write->ranges[range];
        if (!state->sum_changed) continue;
        int code = state->sum_lost ? sum_recount(state) : MDB_SUCCESS;
        if (code != MDB_SUCCESS) return code;
        char name[32];
        uint8_t sum[8];
        snprintf(name, sizeof name, SUM_FORMAT, (unsigned)range);
        store_u64(sum, state->sum);
        code = meta_write(write->txn, write->kv, name, bytes_of(sum, sizeof sum));
        if (code != MDB_SUCCESS) return code;
    }
    return MDB_SUCCESS;
}

static int changes_add(struct kv_write *write, uint16_t range, uint16_t bucket, int64_t by)
{
    if (write->change_count == write->change_capacity) {
        size_t capacity = write->change_capacity == 0 ? 64 : write->change_capacity * 2;
        struct count_change *changes = realloc(write->changes, capacity * sizeof *changes);
        if (changes == NULL) return ENOMEM;
        write->changes = changes;
        write->change_capacity = capacity;
    }
    write->changes[write->change_count++] =
        (struct count_change){.range = range, .bucket = bucket, .by = by};
    return MDB_SUCCESS;
}

static int count_change(struct kv_write *write, uint16_t range, struct bytes key, int64_t by)
{
    if (key.size < 2) return MDB_SUCCESS;
    struct range_write *state = write->ranges[range];
    uint16_t bucket = load_u16_be(key.at);
    int code = MDB_SUCCESS;
    if (state->keys != 0 && state->bucket != bucket) {
        code = changes_add(write, range, state->bucket, state->keys);
        state->keys = 0;
    }
    state->bucket = bucket;
    state->keys += by;
    return code;
}

static int expiry_change(
    struct kv_write *write, uint16_t range, struct bytes key, int64_t expires_ms, bool add)
{
    uint8_t name[EXPIRY_FRONT + KEY_MAX];
    store_u64_be(name, (uint64_t)expires_ms);
    store_u16_be(name + 8, range);
    memcpy(name + EXPIRY_FRONT, key.at, key.size);
    MDB_val entry = {.mv_size = EXPIRY_FRONT + key.size, .mv_data = name}, nothing = {0};
    if (write->expiry == NULL) {
        int code = mdb_cursor_open(write->txn, write->kv->expiry, &write->expiry);
        if (code != MDB_SUCCESS) return code;
    }
    int code = add ? mdb_cursor_put(write->expiry, &entry, &nothing, MDB_NOOVERWRITE)
                   : mdb_cursor_get(write->expiry, &entry, &nothing, MDB_SET);
    if (code == MDB_SUCCESS) write->ranges[range]->expiring += add ? 1 : -1;
    if (code == MDB_SUCCESS && !add) code = mdb_cursor_del(write->expiry, 0);
    return code == MDB_NOTFOUND || code == MDB_KEYEXIST ? MDB_SUCCESS : code;
}

/* Brings the index from the old expiry of a key (0: none) to the new one. */
static int expiry_move(
    struct kv_write *write, uint16_t range, struct bytes key, int64_t old_ms, int64_t new_ms)
{
    if (old_ms == new_ms) return MDB_SUCCESS;
    if (old_ms > 0 && !(PLANTED_BUG(10) && new_ms != 0)) {
        int code = expiry_change(write, range, key, old_ms, false);
        if (code != MDB_SUCCESS) return code;
    }
    return new_ms > 0 ? expiry_change(write, range, key, new_ms, true) : MDB_SUCCESS;
}

static enum err lmdb_put(
    struct kv_write *write, uint16_t range, struct bytes key, const struct value *value)
{
    if (write->txn == NULL) return write->failed;
    ASSERT(key.size > 0);
    if (key.size > KEY_MAX) return write_give_up(write, ERR_TOO_LARGE);
    struct range_write *state;
    TRY(write_range(write, range, &state));
    MDB_val name = val_of(key);
    MDB_val place = {.mv_size = kv_value_size(value)};
    int64_t old_ms = 0;
    bool beyond = bytes_compare(key, bytes_of(state->last, state->last_size)) > 0;
    /* with MDB_RESERVE and MDB_NOOVERWRITE, `place` comes back as the old value if there is one */
    int code = mdb_cursor_put(state->cursor, &name, &place,
        MDB_RESERVE | (beyond ? (unsigned)MDB_APPEND : (unsigned)MDB_NOOVERWRITE));
    if (code == MDB_KEYEXIST && beyond) {
        /* only if the range's last key is longer than we ever write: a damaged page */
        beyond = false;
        place = (MDB_val){.mv_size = kv_value_size(value)};
        code = mdb_cursor_put(state->cursor, &name, &place, MDB_RESERVE | MDB_NOOVERWRITE);
    }
    if (code == MDB_KEYEXIST) {
        old_ms = kv_value_expires(bytes_of_val(place));
        sum_remove(state, range, key, bytes_of_val(place));
        place = (MDB_val){.mv_size = kv_value_size(value)};
        code = mdb_cursor_put(state->cursor, &name, &place, MDB_RESERVE | MDB_CURRENT);
    } else if (code == MDB_SUCCESS) {
        code = count_change(write, range, key, 1);
    }
    if (code != MDB_SUCCESS) return write_fail(write, code, false);
    kv_value_encode(place.mv_data, range, key, value);
    sum_add(state, key, value->version);
    if (beyond) {
        state->last_size = key.size;
        memcpy(state->last, key.at, key.size);
    }
    code = expiry_move(write, range, key, old_ms, value->expires_ms);
    return code == MDB_SUCCESS ? OK : write_fail(write, code, false);
}

/* Removes the entry the cursor of the range stands on. */
static int remove_current(
    struct kv_write *write, uint16_t range, MDB_cursor *cursor, struct bytes key, MDB_val stored)
{
    sum_remove(write->ranges[range], range, key, bytes_of_val(stored));
    int64_t old_ms = kv_value_expires(bytes_of_val(stored));
    int code = expiry_move(write, range, key, old_ms, 0);
    if (code == MDB_SUCCESS) code = count_change(write, range, key, -1);
    return code == MDB_SUCCESS ? mdb_cursor_del(cursor, 0) : code;
}

static enum err lmdb_del(struct kv_write *write, uint16_t range, struct bytes key)
{
    if (write->txn == NULL) return write->failed;
    if (key.size == 0 || key.size > KEY_MAX) return OK; /* nothing of that size was ever stored */
    struct range_write *state;
    TRY(write_range(write, range, &state));
    MDB_val name = val_of(key), stored;
    int code = mdb_cursor_get(state->cursor, &name, &stored, MDB_SET);
    if (code == MDB_NOTFOUND) return OK;
    if (code == MDB_SUCCESS) code = remove_current(write, range, state->cursor, key, stored);
    return code == MDB_SUCCESS ? OK : write_fail(write, code, false);
}

/* Keys of the range that expire, as the transaction has it; more than there are if nobody knows. */
static uint64_t expiring_now(struct kv_write *write, uint16_t range)
{
    uint64_t stored;
    if (count_get(write->txn, write->kv, range, NULL, &stored) != OK) return UINT64_MAX;
    return stored + (uint64_t)write->ranges[range]->expiring;
}

/* The database of a range is emptied: LMDB frees the pages without looking at them. */
static int drop_entries(struct kv_write *write, uint16_t range)
{
    struct range_write *state = write->ranges[range];
    state->last_size = 0;
    state->sum = 0;
    state->sum_changed = true;
    state->sum_lost = false;
    return mdb_drop(write->txn, write->kv->ranges[range], 0);
}

/* Empties a range at once if all of it is in the bucket and nothing of it is in the expiry index. */
static int clear_whole(struct kv_write *write, uint16_t range, struct range_write *state,
    struct bytes bucket, bool *done_out)
{
    MDB_stat entries;
    MDB_val first, last, ignored;
    *done_out = false;
    if (expiring_now(write, range) > 0) return MDB_SUCCESS;
    int code = mdb_cursor_get(state->cursor, &first, &ignored, MDB_FIRST);
    if (code == MDB_NOTFOUND) return MDB_SUCCESS;
    if (code != MDB_SUCCESS) return code;
    if (!bytes_have_prefix(bytes_of_val(first), bucket)) return MDB_SUCCESS;
    code = mdb_cursor_get(state->cursor, &last, &ignored, MDB_LAST);
    if (code != MDB_SUCCESS) return code;
    if (!bytes_have_prefix(bytes_of_val(last), bucket)) return MDB_SUCCESS;
    code = mdb_stat(write->txn, write->kv->ranges[range], &entries);
    if (code == MDB_SUCCESS)
        code = count_change(write, range, bucket, -(int64_t)entries.ms_entries);
    if (code != MDB_SUCCESS) return code;
    *done_out = true;
    return drop_entries(write, range);
}

static enum err lmdb_clear(
    struct kv_write *write, uint16_t range, uint16_t bucket, uint32_t limit, bool *done_out)
{
    if (write->txn == NULL) return write->failed;
    struct range_write *state;
    TRY(write_range(write, range, &state));
    uint8_t prefix[2];
    store_u16_be(prefix, bucket);
    struct bytes front = bytes_of(prefix, sizeof prefix);
    bool done = false;
    int code = clear_whole(write, range, state, front, &done);
    if (code != MDB_SUCCESS) return write_fail(write, code, false);

    MDB_val name = val_of(front), stored;
    if (!done) code = mdb_cursor_get(state->cursor, &name, &stored, MDB_SET_RANGE);
    for (uint32_t removed = 0; !done && code == MDB_SUCCESS; removed++) {
        struct bytes key = bytes_of_val(name);
        done = !bytes_have_prefix(key, front);
        if (done || removed == limit) break;
        code = remove_current(write, range, state->cursor, key, stored);
        /* after a removal the cursor stands before the entry that followed */
        if (code == MDB_SUCCESS) code = mdb_cursor_get(state->cursor, &name, &stored, MDB_NEXT);
    }
    if (code != MDB_SUCCESS && code != MDB_NOTFOUND) return write_fail(write, code, false);
    *done_out = done || code == MDB_NOTFOUND;
    return OK;
}

/* Forgets all counts of a range, those of this transaction included. */
static int counts_drop(struct kv_write *write, uint16_t range)
{
    struct range_write *state = write->ranges[range];
    state->keys = state->expiring = 0;
    size_t kept = 0;
    for (size_t i = 0; i < write->change_count; i++) {
        if (write->changes[i].range != range) write->changes[kept++] = write->changes[i];
    }
    write->change_count = kept;
    MDB_cursor *cursor;
    int code = mdb_cursor_open(write->txn, write->kv->counts, &cursor);
    if (code != MDB_SUCCESS) return code;
    uint8_t front[COUNT_NAME];
    MDB_val name = count_name(front, range, NULL), stored;
    struct bytes prefix = bytes_of(front, 2);
    code = mdb_cursor_get(cursor, &name, &stored, MDB_SET_RANGE);
    while (code == MDB_SUCCESS && bytes_have_prefix(bytes_of_val(name), prefix)) {
        code = mdb_cursor_del(cursor, 0);
        if (code == MDB_SUCCESS) code = mdb_cursor_get(cursor, &name, &stored, MDB_NEXT);
    }
    mdb_cursor_close(cursor);
    return code == MDB_NOTFOUND ? MDB_SUCCESS : code;
}

static enum err lmdb_range_reset(
    struct kv_write *write, uint16_t range, uint32_t limit, bool *done_out)
{
    if (write->txn == NULL) return write->failed;
    struct range_write *state;
    TRY(write_range(write, range, &state));
    MDB_val name, stored;
    int code = mdb_cursor_get(state->cursor, &name, &stored, MDB_FIRST);
    uint64_t expiring = expiring_now(write, range) - (uint64_t)state->expiring;
    for (uint32_t removed = 0; code == MDB_SUCCESS; removed++) {
        if (expiring + (uint64_t)state->expiring == 0) break;
        if (removed == limit) {
            *done_out = false;
            return OK;
        }
        code = remove_current(write, range, state->cursor, bytes_of_val(name), stored);
        if (code == MDB_SUCCESS) code = mdb_cursor_get(state->cursor, &name, &stored, MDB_NEXT);
    }
    if (code == MDB_NOTFOUND) code = MDB_SUCCESS;
    if (code == MDB_SUCCESS) code = drop_entries(write, range);
    if (code == MDB_SUCCESS) code = counts_drop(write, range);
    if (code != MDB_SUCCESS) return write_fail(write, code, false);
    *done_out = true;
    return OK;
}

static enum err lmdb_meta_put(struct kv_write *write, const char *name, struct bytes value)
{
    if (write->txn == NULL) return write->failed;
    int code = meta_write(write->txn, write->kv, name, value);
    return code == MDB_SUCCESS ? OK : write_fail(write, code, false);
}

static int count_store(
    struct kv_write *write, uint16_t range, const uint16_t *bucket, int64_t delta)
{
    uint64_t count;
    if (delta == 0) return MDB_SUCCESS;
    if (count_get(write->txn, write->kv, range, bucket, &count) != OK) return MDB_CORRUPTED;
    if (delta < 0 && count < (uint64_t)-delta) return MDB_CORRUPTED;
    count += (uint64_t)delta;
    uint8_t name[COUNT_NAME], stored[8];
    store_u64(stored, count);
    MDB_val key = count_name(name, range, bucket);
    MDB_val value = {.mv_size = sizeof stored, .mv_data = stored};
    int code = count > 0 ? mdb_put(write->txn, write->kv->counts, &key, &value, 0)
                         : mdb_del(write->txn, write->kv->counts, &key, NULL);
    return code == MDB_NOTFOUND ? MDB_SUCCESS : code;
}

static int counts_write(struct kv_write *write)
{
    int code = MDB_SUCCESS;
    for (size_t i = 0; i < write->touched_count && code == MDB_SUCCESS; i++) {
        uint16_t range = write->touched[i];
        struct range_write *state = write->ranges[range];
        if (state->keys != 0) code = changes_add(write, range, state->bucket, state->keys);
        state->keys = 0;
        if (code == MDB_SUCCESS) code = count_store(write, range, NULL, state->expiring);
        state->expiring = 0;
    }
    for (size_t i = 0; i < write->change_count && code == MDB_SUCCESS; i++) {
        const struct count_change *change = &write->changes[i];
        code = count_store(write, change->range, &change->bucket, change->by);
    }
    return code;
}

static enum err lmdb_commit(struct kv_write *write)
{
    if (write->txn == NULL) return write->failed;
    int code = counts_write(write);
    if (code == MDB_SUCCESS) code = sums_write(write);
    if (code != MDB_SUCCESS) return write_fail(write, code, false);
    code = mdb_txn_commit(write->txn);
    if (code != MDB_SUCCESS) return write_fail(write, code, true);
    write_forget(write);
    pthread_mutex_unlock(&write->kv->writer);
    return OK;
}

/* ---- opening */

static size_t map_size_for(const struct kv *kv, uint64_t wanted)
{
    if (wanted > 0) return round_up((size_t)wanted, 4096);
    struct statvfs status;
    uint64_t size = 0;
    if (fstatvfs(kv->folder_fd, &status) == 0) size = (uint64_t)status.f_blocks * status.f_frsize;
    return (size_t)((size / GIB + 1) * GIB);
}

static enum err env_open(struct kv *kv, const struct kv_config *config)
{
    unsigned flags = MDB_NOTLS | MDB_NORDAHEAD | (config->read_only ? MDB_RDONLY : 0);
    size_t map_size = map_size_for(kv, config->map_size);
    for (;;) {
        int code = mdb_env_create(&kv->env);
        if (code != MDB_SUCCESS) return err_from_lmdb(code);
        code = mdb_env_set_mapsize(kv->env, map_size);
        if (code == MDB_SUCCESS) code = mdb_env_set_maxdbs(kv->env, config->ranges + 3);
        if (code == MDB_SUCCESS) code = mdb_env_set_maxreaders(kv->env, READERS_MAX);
        if (code == MDB_SUCCESS) code = mdb_env_open(kv->env, config->folder, flags, 0600);
        if (code == MDB_SUCCESS) return OK;
        mdb_env_close(kv->env);
        kv->env = NULL;
        /* the address space may be limited (ulimit -v, containers) */
        if (code != ENOMEM || config->map_size > 0 || map_size <= (64 << 20)) {
            log_error("cannot open the bottom store", "folder=%s reason=\"%s\"", config->folder,
                mdb_strerror(code));
            return err_from_lmdb(code);
        }
        map_size /= 2;
    }
}

static int format_check(struct kv *kv, MDB_txn *txn)
{
    uint8_t format[4];
    store_u32(format, FORMAT);
    MDB_val name = val_of(bytes_of_text("format"));
    MDB_val value = {.mv_size = sizeof format, .mv_data = format}, stored;
    int code = mdb_get(txn, kv->meta, &name, &stored);
    if (code == MDB_NOTFOUND && !kv->read_only) return mdb_put(txn, kv->meta, &name, &value, 0);
    if (code != MDB_SUCCESS) return code;
    return stored.mv_size == 4 && load_u32(stored.mv_data) == FORMAT ? MDB_SUCCESS
                                                                     : MDB_VERSION_MISMATCH;
}

static enum err databases_open(struct kv *kv)
{
    unsigned create = kv->read_only ? 0 : MDB_CREATE;
    MDB_txn *txn;
    int code = mdb_txn_begin(kv->env, NULL, kv->read_only ? MDB_RDONLY : 0, &txn);
    if (code != MDB_SUCCESS) return err_from_lmdb(code);
    code = mdb_dbi_open(txn, "meta", create, &kv->meta);
    if (code == MDB_SUCCESS) code = mdb_dbi_open(txn, "expiry", create, &kv->expiry);
    if (code == MDB_SUCCESS) code = mdb_dbi_open(txn, "counts", create, &kv->counts);
    if (code == MDB_SUCCESS) code = format_check(kv, txn);
    for (uint32_t range = 0; range < kv->range_count && code == MDB_SUCCESS; range++) {
        char name[16];
        snprintf(name, sizeof name, "r%05u", (unsigned)range);
        code = mdb_dbi_open(txn, name, create, &kv->ranges[range]);
    }
    if (code != MDB_SUCCESS) {
        mdb_txn_abort(txn);
        /* a store without one of its databases is not one of ours, or of fewer ranges */
        return code == MDB_NOTFOUND ? ERR_MISMATCH : err_from_lmdb(code);
    }
    /* in a read transaction too this is what keeps the handles */
    return err_from_lmdb(mdb_txn_commit(txn));
}

static enum err folder_prepare(struct kv *kv, const struct kv_config *config)
{
    kv->folder = strdup(config->folder);
    if (kv->folder == NULL) return ERR_NOMEM;
    bool make = config->create && !config->read_only;
    if (make && mkdir(config->folder, 0700) != 0 && errno != EEXIST) return err_from_errno(errno);
    kv->folder_fd = open(config->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (kv->folder_fd < 0) return err_from_errno(errno);
    if (flock(kv->folder_fd, LOCK_EX | LOCK_NB) != 0)
        return errno == EWOULDBLOCK ? ERR_BUSY : err_from_errno(errno);
    if (!make && faccessat(kv->folder_fd, "data.mdb", F_OK, 0) != 0) return err_from_errno(errno);
    return OK;
}

static void write_free(struct kv_write *write)
{
    ASSERT(write->txn == NULL);
    for (uint32_t range = 0; write->ranges != NULL && range < write->kv->range_count; range++)
        free(write->ranges[range]);
    free(write->ranges);
    free(write->touched);
    free(write->changes);
}

static void lmdb_close(struct kv *kv)
{
    if (kv == NULL) return;
    ASSERT(atomic_load(&kv->active) == 0);
    if (kv->env != NULL) mdb_env_close(kv->env);
    if (kv->folder_fd >= 0) close(kv->folder_fd);
    for (int i = 0; i < WRITERS_MAX; i++)
        write_free(&kv->writes[i]);
    pthread_mutex_destroy(&kv->writer);
    pthread_cond_destroy(&kv->changed);
    pthread_mutex_destroy(&kv->lock);
    free(kv->ranges);
    free(kv->folder);
    free(kv);
}

static enum err lmdb_open(const struct kv_config *config, struct kv **kv_out)
{
    ASSERT(config->ranges >= 1 && config->ranges <= UINT16_MAX + 1u);
    struct kv *kv = calloc(1, sizeof *kv);
    if (kv == NULL) return ERR_NOMEM;
    kv->folder_fd = -1;
    kv->read_only = config->read_only;
    kv->range_count = config->ranges;
    pthread_mutex_init(&kv->writer, NULL);
    pthread_mutex_init(&kv->lock, NULL);
    pthread_cond_init(&kv->changed, NULL);
    kv->ranges = calloc(config->ranges, sizeof *kv->ranges);
    enum err err = kv->ranges == NULL ? ERR_NOMEM : folder_prepare(kv, config);
    if (err == OK) err = env_open(kv, config);
    if (err == OK) {
        /* slots of processes that died; on failure they only cost file space */
        int dead = 0;
        (void)mdb_reader_check(kv->env, &dead);
        err = databases_open(kv);
    }
    if (err != OK) {
        lmdb_close(kv);
        return err;
    }
    *kv_out = kv;
    return OK;
}

/* ---- stats */

static uint64_t free_pages(MDB_txn *txn)
{
    enum { FREE_DBI = 0 }; /* LMDB's own: transaction -> list of free pages, its length first */
    MDB_cursor *cursor;
    uint64_t pages = 0;
    if (mdb_cursor_open(txn, FREE_DBI, &cursor) != MDB_SUCCESS) return 0;
    MDB_val key, list;
    while (mdb_cursor_get(cursor, &key, &list, MDB_NEXT) == MDB_SUCCESS) {
        if (list.mv_size >= sizeof(size_t)) pages += load_u64(list.mv_data);
    }
    mdb_cursor_close(cursor);
    return pages;
}

static void lmdb_stats(struct kv *kv, struct kv_stats *stats_out)
{
    *stats_out = (struct kv_stats){0};
    struct stat file;
    if (fstatat(kv->folder_fd, "data.mdb", &file, 0) == 0)
        stats_out->file_bytes = (uint64_t)file.st_size;
    struct kv_read *read;
    if (lmdb_read_begin(kv, &read) != OK) return;
    MDB_envinfo info;
    mdb_env_info(kv->env, &info);
    stats_out->map_bytes = info.me_mapsize;
    stats_out->readers = info.me_numreaders;
    uint64_t page = 4096;
    for (uint32_t range = 0; range < kv->range_count; range++) {
        MDB_stat stat;
        if (mdb_stat(read->txn, kv->ranges[range], &stat) != MDB_SUCCESS) continue;
        page = stat.ms_psize;
        stats_out->entries += stat.ms_entries;
        if (stat.ms_depth > stats_out->depth) stats_out->depth = stat.ms_depth;
    }
    uint64_t pages = info.me_last_pgno + 1;
    uint64_t unused = free_pages(read->txn);
    stats_out->used_bytes = (pages > unused ? pages - unused : 0) * page;
    lmdb_read_end(read);
}

const struct kv_ops kv_lmdb = {
    .name = "lmdb",
    .open = lmdb_open,
    .close = lmdb_close,
    .read_begin = lmdb_read_begin,
    .read_reset = lmdb_read_reset,
    .read_renew = lmdb_read_renew,
    .read_end = lmdb_read_end,
    .get = lmdb_get,
    .count = lmdb_count,
    .counts = lmdb_counts,
    .meta_get = lmdb_meta_get,
    .sum = lmdb_sum,
    .cursor_open = lmdb_cursor_open,
    .cursor_seek = lmdb_cursor_seek,
    .cursor_next = lmdb_cursor_next,
    .cursor_close = lmdb_cursor_close,
    .expired = lmdb_expired,
    .write_begin = lmdb_write_begin,
    .put = lmdb_put,
    .del = lmdb_del,
    .clear = lmdb_clear,
    .range_reset = lmdb_range_reset,
    .meta_put = lmdb_meta_put,
    .commit = lmdb_commit,
    .abort = lmdb_abort,
    .stats = lmdb_stats,
};
