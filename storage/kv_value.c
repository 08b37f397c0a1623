#include "base/check.h"
#include "base/crc32c.h"
#include "base/hash.h"
#include "storage/kv.h"

/* LMDB checks nothing it reads: a flipped bit on the disk would be served as data. So every value
 * carries a checksum, and the range and key it belongs to are part of what is summed: a value that is
 * whole but in the wrong place (a lost or misdirected page write) does not pass either. */

enum {
    CRC = 0,
    FLAGS = 4,
    OPTIONS = 5,
    VERSION = 6, /* 48 bits */
    EXPIRES = 12,
    HEADER = 12,
    HEADER_EXPIRES = 20,

    OPTION_EXPIRES = 1,
};

static size_t header_size(int64_t expires_ms)
{
    return expires_ms != 0 ? HEADER_EXPIRES : HEADER;
}

static uint32_t checksum(uint16_t range, struct bytes key, const uint8_t *rest, size_t size)
{
    uint8_t place[2];
    store_u16(place, range);
    uint32_t crc = crc32c(0, place, sizeof place);
    crc = crc32c(crc, key.at, key.size);
    return crc32c(crc, rest, size);
}

size_t kv_value_size(const struct value *value)
{
    return header_size(value->expires_ms) + value->bytes.size;
}

void kv_value_encode(uint8_t *at, uint16_t range, struct bytes key, const struct value *value)
{
    ASSERT(value->version >> 48 == 0);
    size_t header = header_size(value->expires_ms);
    at[FLAGS] = value->flags;
    at[OPTIONS] = value->expires_ms != 0 ? OPTION_EXPIRES : 0;
    store_u32(at + VERSION, (uint32_t)value->version);
    store_u16(at + VERSION + 4, (uint16_t)(value->version >> 32));
    if (value->expires_ms != 0) store_u64(at + EXPIRES, (uint64_t)value->expires_ms);
    if (value->bytes.size > 0) memcpy(at + header, value->bytes.at, value->bytes.size);
    store_u32(at + CRC, checksum(range, key, at + FLAGS, header - FLAGS + value->bytes.size));
}

int64_t kv_value_expires(struct bytes stored)
{
    if (stored.size < HEADER_EXPIRES || (stored.at[OPTIONS] & OPTION_EXPIRES) == 0) return 0;
    return (int64_t)load_u64(stored.at + EXPIRES);
}

uint64_t kv_value_version(struct bytes stored)
{
    if (stored.size < HEADER) return 0;
    const uint8_t *at = stored.at + VERSION;
    return load_u32(at) | (uint64_t)load_u16(at + 4) << 32;
}

uint64_t kv_entry_sum(struct bytes key, uint64_t version)
{
    return hash64(version, key);
}

enum err kv_value_decode(
    uint16_t range, struct bytes key, struct bytes stored, struct value *value_out)
{
    if (stored.size < HEADER) return ERR_CORRUPT;
    uint32_t crc = checksum(range, key, stored.at + FLAGS, stored.size - FLAGS);
    if (crc != load_u32(stored.at + CRC) && !PLANTED_BUG(7)) return ERR_CORRUPT;
    if ((stored.at[OPTIONS] & ~OPTION_EXPIRES) != 0) return ERR_CORRUPT;
    int64_t expires_ms = kv_value_expires(stored);
    bool has_expiry = (stored.at[OPTIONS] & OPTION_EXPIRES) != 0;
    if (has_expiry != (expires_ms != 0)) return ERR_CORRUPT;
    size_t header = header_size(expires_ms);
    *value_out = (struct value){
        .bytes = bytes_of(stored.at + header, stored.size - header),
        .expires_ms = expires_ms,
        .version = kv_value_version(stored),
        .flags = stored.at[FLAGS],
    };
    return OK;
}
