#ifndef STORAGE_KV_CHECK_H
#define STORAGE_KV_CHECK_H

#include "storage/kv.h"

/* Is everything that was stored still there, and found? Walks a store at one snapshot and compares: keys in
 * order, values by their checksums, each range by its sum, each bucket of it by its count, and, at the borders of
 * pages, that a search arrives where the walk does. After a complete walk without a finding a key
 * that is not found was not stored. Used when a node starts and by `duramen verify`. */

struct kv_check {
    const struct kv_ops *ops;
    struct kv_read *read;
    uint32_t ranges; /* highest range id */
    bool expiry; /* the index by expiry, too */
    void *ctx;
    /* A damage. `missing`: keys may be missing or old; else one value is unreadable, and reading it says so. */
    void (*found)(void *ctx, bool missing, const char *sentence);
    /* Every few thousand values; false stops the walk. May be NULL. */
    bool (*go_on)(void *ctx, uint16_t range, uint64_t values);

    /* The result. */
    uint64_t values;
    uint64_t version; /* highest seen */
    uint64_t *versions; /* the same by range id, if the caller gives the room; zeroed by it */
    uint64_t unreadable;
    uint64_t findings; /* both kinds */
    bool complete;
};

enum { KV_CHECK_FINDINGS_MAX = 1000 };

/* ERR_CORRUPT if there was any finding. */
enum err kv_check(struct kv_check *check) MUST_CHECK;

#endif
