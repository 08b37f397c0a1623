#define _POSIX_C_SOURCE 200809L
#include "storage/kv_check.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "storage/effect.h"

/* The sum of a range tells that an entry is missing, old or there twice; it does not tell that a search
 * would miss one because an inner page leads it astray. A search goes astray between two leaves, so
 * the first and the last key of each leaf are searched for as well: every key of a leaf between them takes
 * the same way. A new leaf shows by the page the borrowed key lies in. */

enum {
    PROGRESS_STEP = 4096,
    BUCKETS = 1 << 16,
    PAGE = 4096,
    KEY_MAX = KEY_SIZE_MAX + 2,
    SHOWN_SIZE = 600
};

struct walk {
    struct kv_check *check;
    uint64_t *counted; /* by bucket */
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

static void walk_range(struct walk *walk, uint16_t range)
{
    struct kv_check *check = walk->check;
    char shown[SHOWN_SIZE];
    uint8_t last[KEY_MAX];
    size_t last_size = 0;
    uintptr_t page = 0;
    uint64_t sum = 0, expected = 0;
    void *cursor;
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
        }
        if (range != 0) walk->counted[load_u16_be(key.at)]++;
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

static void walk_counts(struct walk *walk)
{
    struct kv_check *check = walk->check;
    for (uint32_t bucket = 0; bucket < BUCKETS; bucket++) {
        uint64_t count = 0;
        enum err err = check->ops->count(check->read, (uint16_t)bucket, &count);
        if (err == OK && count == walk->counted[bucket]) continue;
        found(check, true, "bucket %u has %" PRIu64 " keys, but its count says %" PRIu64, bucket,
            walk->counted[bucket], count);
    }
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
    walk.counted = calloc(BUCKETS, sizeof *walk.counted);
    if (walk.counted == NULL) return ERR_NOMEM;
    for (uint32_t range = 0; range <= check->ranges && !walk.stopped; range++) {
        go_on(&walk, range);
        if (!walk.stopped) walk_range(&walk, (uint16_t)range);
    }
    if (!walk.stopped) walk_counts(&walk);
    if (!walk.stopped && check->expiry) walk_expiry(&walk);
    check->complete = !walk.stopped;
    free(walk.counted);
    if (check->findings > KV_CHECK_FINDINGS_MAX) {
        uint64_t more = check->findings - KV_CHECK_FINDINGS_MAX;
        char sentence[64];
        snprintf(sentence, sizeof sentence, "%" PRIu64 " more damages", more);
        check->found(check->ctx, false, sentence);
    }
    return check->findings > 0 ? ERR_CORRUPT : OK;
}
