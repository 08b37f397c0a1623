#include "storage/range_meta.h"

#include "base/check.h"

/* u16 format | u16 flags | u16 vote | u16 config_size | u64 index | u64 term | u64 hash | u64 settled |
 * u64 hard_term | u64 config_index | config. A checksum is the meta database's business. */

enum { FORMAT = 2, FRONT = 56, FLAGS_KNOWN = RANGE_META_INSTALLING | RANGE_META_GENESIS | RANGE_META_FORGETFUL };
_Static_assert(FRONT + RANGE_META_CONFIG_MAX <= RANGE_META_BYTES_MAX, "an encoded range_meta fits");

size_t range_meta_encode(uint8_t *at, const struct range_meta *meta)
{
    ASSERT(meta->config_size <= RANGE_META_CONFIG_MAX);
    ASSERT((meta->flags & ~FLAGS_KNOWN) == 0);
    store_u16(at, FORMAT);
    store_u16(at + 2, meta->flags);
    store_u16(at + 4, meta->vote);
    store_u16(at + 6, meta->config_size);
    store_u64(at + 8, meta->index);
    store_u64(at + 16, meta->term);
    store_u64(at + 24, meta->hash);
    store_u64(at + 32, meta->settled);
    store_u64(at + 40, meta->hard_term);
    store_u64(at + 48, meta->config_index);
    if (meta->config_size > 0) memcpy(at + FRONT, meta->config, meta->config_size);
    return FRONT + (size_t)meta->config_size;
}

enum err range_meta_decode(struct bytes bytes, struct range_meta *meta_out)
{
    if (bytes.size < FRONT) return ERR_CORRUPT;
    const uint8_t *at = bytes.at;
    size_t config_size = load_u16(at + 6);
    uint16_t flags = load_u16(at + 2);
    if (load_u16(at) != FORMAT || (flags & ~FLAGS_KNOWN) != 0) return ERR_CORRUPT;
    if (config_size > RANGE_META_CONFIG_MAX || bytes.size != FRONT + config_size)
        return ERR_CORRUPT;
    struct range_meta meta = {
        .index = load_u64(at + 8),
        .term = load_u64(at + 16),
        .hash = load_u64(at + 24),
        .settled = load_u64(at + 32),
        .hard_term = load_u64(at + 40),
        .config_index = load_u64(at + 48),
        .vote = load_u16(at + 4),
        .flags = flags,
        .config_size = (uint16_t)config_size,
    };
    if (config_size > 0) memcpy(meta.config, at + FRONT, config_size);
    *meta_out = meta;
    return OK;
}
