#define _POSIX_C_SOURCE 200809L
#include "storage/kv_check.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "storage/effect.h"

/* The sum of a range tells that an entry is missing, old or there twice; it does not tell that a search
 * would miss one because an inner page leads it astray. A search goes astray between two leaves, so
 * the first and the last key of each leaf are searched for as well: every key of a leaf between them takes
 * the same way. A new leaf shows by the page the borrowed key lies in. */

enum { PROGRESS_STEP = 4096, PAGE = 4096, KEY_MAX = KEY_SIZE_MAX + 2, SHOWN_SIZE = 600 };

struct walk {
    struct kv_check *check;
    uint64_t counted; /* keys of the range by its walk */
    uint64_t counted_bucket; /* and of `bucket`, the one the walk is in */
    uint16_t bucket;
    uint16_t range;
    uint64_t expiring; /* values with an expiry, and entries of the index that fit one */
    uint64_t indexed;
    bool stopped;
};

__attribute__((format(printf, 3, 4))) static void found(
    struct kv_check *check, bool missing, const char *format, ...)
{
    char sentence[1500];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    if (check->findings++ < KV_CHECK_FINDINGS_MAX) check->found(check->ctx, missing, sentence);
}

/* bucket and key as a person reads them */
static const char *show_key(struct bytes key, char at[SHOWN_SIZE])
{
    enum { SHOWN = 100 };
    if (key.size < 2) {
        snprintf(at, SHOWN_SIZE, "a key of %zu bytes", key.size);
        return at;
    }
    size_t used = (size_t)snprintf(at, SHOWN_SIZE, "bucket %u, key \"", load_u16_be(key.at));
    for (size_t i = 2; i < key.size && i < SHOWN; i++) {
        uint8_t c = key.at[i];
        bool plain = c >= ' ' && c < 127 && c != '"' && c != '\\';
        used += (size_t)snprintf(at + used, SHOWN_SIZE - used, plain ? "%c" : "\\x%02x", c);
    }
    snprintf(at + used, SHOWN_SIZE - used, "%s", key.size > SHOWN ? "...\"" : "\"");
    return at;
}

static void go_on(struct walk *walk, uint32_t range)
{
    struct kv_check *check = walk->check;
    if (check->go_on != NULL && !check->go_on(check->ctx, (uint16_t)range, check->values))
        walk->stopped = true;
}

static void search(struct walk *walk, uint16_t range, struct bytes key)
{
    struct kv_check *check = walk->check;
    char shown[SHOWN_SIZE];
    struct value value;
    enum err err = check->ops->get(check->read, range, key, &value);
    if (err != OK && err != ERR_CORRUPT)
        found(check, true, "range %u, %s: the key is there but a search does not find it", range,
            show_key(key, shown));
}

static void check_count(struct walk *walk)
{
    struct kv_check *check = walk->check;
    uint64_t count = 0;
    if (walk->counted_bucket == 0) return;
    enum err err = check->ops->count(check->read, walk->range, walk->bucket, &count);
    if (err == OK && count == walk->counted_bucket) return;
    found(check, true, "range %u, bucket %u has %" PRIu64 " keys, but its count says %" PRIu64,
        walk->range, walk->bucket, walk->counted_bucket, count);
}

static void add_count(void *ctx, uint16_t bucket, uint64_t count)
{
    (void)bucket;
    *(uint64_t *)ctx += count;
}

/* Buckets whose keys are all gone were not met by the walk: they show in the sum of all counts. */
static void check_counts(struct walk *walk)
{
    struct kv_check *check = walk->check;
    uint64_t total = 0;
    enum err err = check->ops->counts(check->read, walk->range, add_count, &total);
    if (err == OK && total == walk->counted) return;
    found(check, true, "range %u has %" PRIu64 " keys, but its counts say %" PRIu64, walk->range,
        walk->counted, total);
}

static void count_key(struct walk *walk, struct bytes key)
{
    uint16_t bucket = load_u16_be(key.at);
    if (bucket != walk->bucket) {
        check_count(walk);
        walk->counted_bucket = 0;
        walk->bucket = bucket;
    }
    walk->counted_bucket++;
    walk->counted++;
}

static void walk_range(struct walk *walk, uint16_t range)
{
    struct kv_check *check = walk->check;
    char shown[SHOWN_SIZE];
    uint8_t last[KEY_MAX];
    size_t last_size = 0;
    uintptr_t page = 0;
    uint64_t sum = 0, expected = 0;
    void *cursor;
    walk->range = range;
    walk->bucket = 0;
    walk->counted = walk->counted_bucket = 0;
    if (check->ops->cursor_open(check->read, range, &cursor) != OK) {
        found(check, true, "range %u cannot be read", range);
        return;
    }
    struct bytes key = {0};
    struct value value = {0};
    enum err err = check->ops->cursor_seek(cursor, bytes_of(NULL, 0), &key, &value);
    while (err == OK || err == ERR_CORRUPT) {
        /* A key that did not move on comes from pages in a circle or in disorder. */
        bool moved = key.size >= 2 && key.size <= sizeof last &&
            (last_size == 0 || bytes_compare(key, bytes_of(last, last_size)) > 0);
        if (!moved) break;
        if (page != (uintptr_t)key.at / PAGE) {
            if (last_size > 0) search(walk, range, bytes_of(last, last_size));
            search(walk, range, key);
            page = (uintptr_t)key.at / PAGE;
        }
        memcpy(last, key.at, key.size);
        last_size = key.size;
        sum += kv_entry_sum(key, value.version);
        if (err == ERR_CORRUPT) {
            check->unreadable++;
            found(check, false, "range %u, %s: the value fails its checksum", range,
                show_key(key, shown));
        } else {
            if (value.expires_ms != 0) walk->expiring++;
            if (value.version > check->version) check->version = value.version;
            if (check->versions != NULL && value.version > check->versions[range])
                check->versions[range] = value.version;
        }
        count_key(walk, key);
        if (++check->values % PROGRESS_STEP == 0) go_on(walk, range);
        if (walk->stopped) break;
        err = check->ops->cursor_next(cursor, &key, &value);
    }
    check->ops->cursor_close(cursor);
    if (walk->stopped) return;
    if (err != ERR_NOT_FOUND) {
        found(check, true,
            "range %u: the keys after %s are in disorder or cannot be read; the rest of the range "
            "was not "
            "checked",
            range, last_size == 0 ? "its start" : show_key(bytes_of(last, last_size), shown));
        return;
    }
    if (last_size > 0) search(walk, range, bytes_of(last, last_size));
    check_count(walk);
    check_counts(walk);
    if (check->ops->sum == NULL) return;
    err = check->ops->sum(check->read, range, &expected);
    if (err != OK)
        found(check, true, "range %u: its sum cannot be read: %s", range, err_text(err));
    else if (expected != sum)
        found(check, true,
            "range %u: its entries do not add up to what was written: keys are missing, old or "
            "changed",
            range);
}

static bool check_expiry(void *ctx, uint16_t range, struct bytes key, int64_t expires_ms)
{
    struct walk *walk = ctx;
    struct kv_check *check = walk->check;
    char shown[SHOWN_SIZE];
    struct value value;
    enum err err = range > check->ranges || key.size < 2 || key.size > KEY_MAX
        ? ERR_NOT_FOUND
        : check->ops->get(check->read, range, key, &value);
    if (err == OK && value.expires_ms == expires_ms)
        walk->indexed++;
    else if (err != ERR_CORRUPT) /* a damaged value is reported by its range */
        found(check, false, "the index by expiry names range %u, %s, which does not expire then",
            range, show_key(key, shown));
    /* An index in a circle would never end. */
    return walk->indexed <= walk->expiring && check->findings < KV_CHECK_FINDINGS_MAX;
}

static void walk_expiry(struct walk *walk)
{
    struct kv_check *check = walk->check;
    if (check->ops->expired(check->read, 0, INT64_MAX, check_expiry, walk) != OK)
        found(check, false, "the index by expiry cannot be read to its end");
    if (walk->indexed != walk->expiring)
        found(check, false,
            "%" PRIu64 " values expire, but the index by expiry has %" PRIu64 " of them",
            walk->expiring, walk->indexed);
}

enum err kv_check(struct kv_check *check)
{
    struct walk walk = {.check = check};
    for (uint32_t range = 0; range <= check->ranges && !walk.stopped; range++) {
        go_on(&walk, range);
        if (!walk.stopped) walk_range(&walk, (uint16_t)range);
    }
    if (!walk.stopped && check->expiry) walk_expiry(&walk);
    check->complete = !walk.stopped;
    if (check->findings > KV_CHECK_FINDINGS_MAX) {
        uint64_t more = check->findings - KV_CHECK_FINDINGS_MAX;
        char sentence[64];
        snprintf(sentence, sizeof sentence, "%" PRIu64 " more damages", more);
        check->found(check->ctx, false, sentence);
    }
    return check->findings > 0 ? ERR_CORRUPT : OK;
}
