#ifndef STORAGE_RANGE_META_H
#define STORAGE_RANGE_META_H

#include "base/bytes.h"
#include "base/err.h"

/* What the bottom store keeps of a replicated range beside its data, written in the transaction that completes
 * the range's part of a checkpoint or of an installed snapshot: up to where the data is, and the state of the
 * range's Raft group at that time. Pure codec (docs/formats/store.md). */

enum { RANGE_META_CONFIG_MAX = 256, RANGE_META_BYTES_MAX = 96 + RANGE_META_CONFIG_MAX };

enum range_meta_flags {
    RANGE_META_INSTALLING = 1, /* a snapshot was begun and not finished: the data is not usable */
    RANGE_META_FORGETFUL = 4, /* what the replica had acknowledged is not all in its log: it must not vote until
                                 everything up to settled is applied */
    RANGE_META_GENESIS = 2, /* made by a restore: whoever starts on it is the range's only member */
};

struct range_meta {
    uint64_t index; /* every entry up to here is in the data; later ones may be in parts */
    uint64_t term; /* of that entry */
    uint64_t hash; /* rolling hash of everything applied up to index */
    uint64_t settled; /* the data is whole only once entries up to here are applied (0: it is) */
    uint64_t hard_term;
    uint64_t config_index;
    uint16_t vote;
    uint16_t flags;
    uint16_t config_size; /* of the group's encoded configuration as of index */
    uint8_t config[RANGE_META_CONFIG_MAX];
};

/* Returns the size; `at` has room for RANGE_META_BYTES_MAX. */
size_t range_meta_encode(uint8_t *at, const struct range_meta *meta);
/* ERR_CORRUPT if it is not well-formed. */
enum err range_meta_decode(struct bytes bytes, struct range_meta *meta_out) MUST_CHECK;

#endif
