#define _POSIX_C_SOURCE 200809L
#include "storage/backup_format.h"

#include <zstd.h>

#include "base/check.h"
#include "base/crc32c.h"

/* Header, 256 bytes:
 *   0 magic "DURABKUP" | 8 u32 format | 12 u32 header size | 16 cluster id | 32 name, 64 bytes, zero-filled |
 *   96 u32 ranges | 100 u32 zero | 104 u64 lsn | 112 i64 wall ms | zeros | 252 u32 crc32c of the 252 before
 * Block head, 32 bytes, then the stored bytes:
 *   0 u32 magic | 4 u8 kind | 5 u8 compressed | 6 u16 zero | 8 u32 sequence | 12 u32 raw size | 16 u32 stored size |
 *   20 u64 zero | 28 u32 crc32c, seeded with that of the block before, of the head's first 28 bytes
 *   and the stored bytes
 * The checksum covers what is stored, so that damaged bytes never reach the decompressor.
 *
 * Every block is a zstd frame of its own: memory stays bounded on both sides, a reader can stop
 * anywhere, and what does not compress is stored as it is. */

static const char header_magic[8] = {'D', 'U', 'R', 'A', 'B', 'K', 'U', 'P'};
enum { BLOCK_MAGIC = 0x4b4c4244 /* "DBLK" */, LEVEL = 1, CRC_AT = 252 };

void backup_header_encode(uint8_t at[BACKUP_HEADER_SIZE], const struct backup_header *header)
{
    ASSERT(header->ranges > 0 && header->ranges < UINT16_MAX);
    memset(at, 0, BACKUP_HEADER_SIZE);
    memcpy(at, header_magic, sizeof header_magic);
    store_u32(at + 8, BACKUP_FORMAT);
    store_u32(at + 12, BACKUP_HEADER_SIZE);
    memcpy(at + 16, header->cluster_id, 16);
    memcpy(at + 32, header->name, strnlen(header->name, sizeof header->name - 1));
    store_u32(at + 96, header->ranges);
    store_u64(at + 104, header->lsn);
    store_u64(at + 112, (uint64_t)header->wall_ms);
    store_u32(at + CRC_AT, crc32c(0, at, CRC_AT));
}

enum err backup_header_decode(
    const uint8_t at[BACKUP_HEADER_SIZE], struct backup_header *header_out, uint32_t *format_out)
{
    if (memcmp(at, header_magic, sizeof header_magic) != 0) return ERR_CORRUPT;
    if (load_u32(at + CRC_AT) != crc32c(0, at, CRC_AT)) return ERR_CORRUPT;
    *format_out = load_u32(at + 8);
    if (*format_out != BACKUP_FORMAT) return ERR_MISMATCH;
    struct backup_header header = {
        .ranges = load_u32(at + 96),
        .lsn = load_u64(at + 104),
        .wall_ms = (int64_t)load_u64(at + 112),
    };
    memcpy(header.cluster_id, at + 16, 16);
    memcpy(header.name, at + 32, sizeof header.name);
    if (header.name[sizeof header.name - 1] != 0) return ERR_CORRUPT;
    if (load_u32(at + 12) != BACKUP_HEADER_SIZE) return ERR_CORRUPT;
    if (header.ranges == 0 || header.ranges >= UINT16_MAX) return ERR_CORRUPT;
    if (header.lsn >= BACKUP_LSN_END) return ERR_CORRUPT;
    *header_out = header;
    return OK;
}

void backup_footer_encode(uint8_t at[BACKUP_FOOTER_SIZE], const struct backup_footer *footer)
{
    store_u64(at, footer->entries);
    store_u64(at + 8, footer->blocks);
    store_u64(at + 16, footer->bytes);
}

enum err backup_footer_decode(struct bytes raw, struct backup_footer *footer_out)
{
    if (raw.size != BACKUP_FOOTER_SIZE) return ERR_CORRUPT;
    *footer_out = (struct backup_footer){
        .entries = load_u64(raw.at),
        .blocks = load_u64(raw.at + 8),
        .bytes = load_u64(raw.at + 16),
    };
    return OK;
}

enum err backup_packer_init(struct backup_codec *codec, const uint8_t header[BACKUP_HEADER_SIZE])
{
    *codec = (struct backup_codec){.chain = load_u32(header + CRC_AT)};
    codec->zstd = ZSTD_createCCtx();
    return codec->zstd == NULL ? ERR_NOMEM : OK;
}

void backup_packer_deinit(struct backup_codec *codec)
{
    ZSTD_freeCCtx(codec->zstd);
    codec->zstd = NULL;
}

enum err backup_pack(
    struct backup_codec *codec, enum backup_kind kind, struct bytes raw, struct buffer *out)
{
    ASSERT(raw.size > 0 && raw.size <= BACKUP_RAW_MAX);
    size_t bound = ZSTD_compressBound(raw.size);
    uint8_t *head = buffer_reserve(out, BACKUP_BLOCK_HEAD_SIZE + bound);
    if (head == NULL) return ERR_NOMEM;
    uint8_t *stored = head + BACKUP_BLOCK_HEAD_SIZE;
    size_t size = ZSTD_compressCCtx(codec->zstd, stored, bound, raw.at, raw.size, LEVEL);
    bool compressed = !ZSTD_isError(size) && size < raw.size;
    if (!compressed) {
        size = raw.size;
        memcpy(stored, raw.at, raw.size);
    }
    memset(head, 0, BACKUP_BLOCK_HEAD_SIZE);
    store_u32(head, BLOCK_MAGIC);
    head[4] = (uint8_t)kind;
    head[5] = compressed;
    store_u32(head + 8, codec->sequence);
    store_u32(head + 12, (uint32_t)raw.size);
    store_u32(head + 16, (uint32_t)size);
    uint32_t checksum = crc32c(crc32c(codec->chain, head, 28), stored, size);
    store_u32(head + 28, checksum);
    buffer_wrote(out, BACKUP_BLOCK_HEAD_SIZE + size);
    codec->chain = checksum;
    codec->sequence++;
    return OK;
}

enum err backup_unpacker_init(struct backup_codec *codec, const uint8_t header[BACKUP_HEADER_SIZE])
{
    *codec = (struct backup_codec){.chain = load_u32(header + CRC_AT)};
    codec->zstd = ZSTD_createDCtx();
    return codec->zstd == NULL ? ERR_NOMEM : OK;
}

void backup_unpacker_deinit(struct backup_codec *codec)
{
    ZSTD_freeDCtx(codec->zstd);
    codec->zstd = NULL;
}

enum err backup_block_head(struct backup_codec *codec, const uint8_t at[BACKUP_BLOCK_HEAD_SIZE],
    struct backup_block *block_out)
{
    if (load_u32(at) != BLOCK_MAGIC || load_u32(at + 8) != codec->sequence) return ERR_CORRUPT;
    if (at[4] < BACKUP_ENTRIES || at[4] > BACKUP_FOOTER || at[5] > 1) return ERR_CORRUPT;
    struct backup_block block = {
        .kind = (enum backup_kind)at[4],
        .compressed = at[5] == 1,
        .raw_size = load_u32(at + 12),
        .stored_size = load_u32(at + 16),
        .checksum = load_u32(at + 28),
        .expected = crc32c(codec->chain, at, 28),
    };
    if (block.raw_size == 0 || block.raw_size > BACKUP_RAW_MAX) return ERR_CORRUPT;
    if (block.stored_size == 0 || block.stored_size > BACKUP_STORED_MAX) return ERR_CORRUPT;
    if (!block.compressed && block.raw_size != block.stored_size) return ERR_CORRUPT;
    *block_out = block;
    return OK;
}

enum err backup_unpack(struct backup_codec *codec, const struct backup_block *block,
    struct bytes stored, struct buffer *raw)
{
    ASSERT(stored.size == block->stored_size);
    uint32_t checksum = crc32c(block->expected, stored.at, stored.size);
    if (PLANTED_BUG(18)) checksum = block->checksum;
    if (checksum != block->checksum) return ERR_CORRUPT;
    buffer_reset(raw, 2 * (size_t)BACKUP_RAW_TARGET);
    if (block->compressed) {
        /* The frame says its size, too; believing neither before they agree bounds the memory. */
        unsigned long long content = ZSTD_getFrameContentSize(stored.at, stored.size);
        if (content != block->raw_size) return ERR_CORRUPT;
    }
    uint8_t *at = buffer_reserve(raw, block->raw_size);
    if (at == NULL) return ERR_NOMEM;
    if (block->compressed) {
        size_t size = ZSTD_decompressDCtx(codec->zstd, at, block->raw_size, stored.at, stored.size);
        if (ZSTD_isError(size) || size != block->raw_size) return ERR_CORRUPT;
    } else {
        memcpy(at, stored.at, stored.size);
    }
    buffer_wrote(raw, block->raw_size);
    codec->chain = block->checksum;
    codec->sequence++;
    return OK;
}

/* Entry: u16 range | u16 key size | u32 value size | u8 flags | u8 options | u48 version |
 * [i64 expires_ms, if bit 0 of options] | key | value. */
enum { OPTION_EXPIRES = 1 };

enum err backup_entry_append(struct buffer *raw, const struct backup_entry *entry)
{
    const struct value *value = &entry->value;
    ASSERT(entry->key.size >= 2 && entry->key.size <= KEY_SIZE_MAX + 2);
    size_t most = BACKUP_ENTRY_HEAD + 8 + entry->key.size + value->bytes.size;
    uint8_t *at = buffer_reserve(raw, most);
    if (at == NULL) return ERR_NOMEM;
    bool expires = value->expires_ms != 0;
    store_u16(at, entry->range);
    store_u16(at + 2, (uint16_t)entry->key.size);
    store_u32(at + 4, (uint32_t)value->bytes.size);
    store_u64(at + 8, value->version << 16 | (uint64_t)expires << 8 | value->flags);
    uint8_t *end = at + BACKUP_ENTRY_HEAD;
    if (expires) {
        store_u64(end, (uint64_t)value->expires_ms);
        end += 8;
    }
    memcpy(end, entry->key.at, entry->key.size);
    end += entry->key.size;
    if (value->bytes.size > 0) memcpy(end, value->bytes.at, value->bytes.size);
    end += value->bytes.size;
    buffer_wrote(raw, (size_t)(end - at));
    return OK;
}

enum err backup_entry_next(struct bytes *rest, uint32_t ranges, struct backup_entry *entry_out)
{
    if (rest->size == 0) return ERR_NOT_FOUND;
    if (rest->size < BACKUP_ENTRY_HEAD) return ERR_CORRUPT;
    const uint8_t *at = rest->at;
    size_t key_size = load_u16(at + 2);
    size_t value_size = load_u32(at + 4);
    uint64_t packed = load_u64(at + 8);
    uint8_t options = (uint8_t)(packed >> 8);
    if (options > OPTION_EXPIRES || load_u16(at) > ranges) return ERR_CORRUPT;
    if (key_size < 2 || key_size > KEY_SIZE_MAX + 2 || value_size > VALUE_SIZE_MAX)
        return ERR_CORRUPT;
    size_t head = BACKUP_ENTRY_HEAD + (options == OPTION_EXPIRES ? 8u : 0u);
    size_t size = head + key_size + value_size;
    if (rest->size < size) return ERR_CORRUPT;
    int64_t expires_ms = head > BACKUP_ENTRY_HEAD ? (int64_t)load_u64(at + BACKUP_ENTRY_HEAD) : 0;
    if (options == OPTION_EXPIRES && expires_ms <= 0) return ERR_CORRUPT;
    *entry_out = (struct backup_entry){
        .range = load_u16(at),
        .key = bytes_of(at + head, key_size),
        .value =
            {
                .bytes = bytes_of(at + head + key_size, value_size),
                .expires_ms = expires_ms,
                .version = packed >> 16,
                .flags = (uint8_t)packed,
            },
    };
    *rest = bytes_of(at + size, rest->size - size);
    return OK;
}

/* Range: u64 index | u64 term | u64 hash. */
enum err backup_range_append(struct buffer *raw, const struct backup_range *range)
{
    uint8_t *at = buffer_reserve(raw, BACKUP_RANGE_SIZE);
    if (at == NULL) return ERR_NOMEM;
    store_u64(at, range->index);
    store_u64(at + 8, range->term);
    store_u64(at + 16, range->hash);
    buffer_wrote(raw, BACKUP_RANGE_SIZE);
    return OK;
}

enum err backup_range_next(struct bytes *rest, struct backup_range *range_out)
{
    if (rest->size == 0) return ERR_NOT_FOUND;
    if (rest->size < BACKUP_RANGE_SIZE) return ERR_CORRUPT;
    *range_out = (struct backup_range){
        .index = load_u64(rest->at),
        .term = load_u64(rest->at + 8),
        .hash = load_u64(rest->at + 16),
    };
    if (range_out->index >= BACKUP_LSN_END) return ERR_CORRUPT;
    *rest = bytes_of(rest->at + BACKUP_RANGE_SIZE, rest->size - BACKUP_RANGE_SIZE);
    return OK;
}
