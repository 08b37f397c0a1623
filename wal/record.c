#include "wal/record.h"

#include "base/check.h"
#include "base/crc32c.h"

/* Magic numbers as text: "DWSG" and "DWBT". */
#define SEGMENT_MAGIC 0x47535744u
#define BATCH_MAGIC 0x54425744u

uint32_t batch_seed(const uint8_t store_id[16])
{
    return crc32c(0, store_id, 16);
}

uint32_t record_seed(uint64_t sequence, uint64_t nonce)
{
    uint8_t both[16];
    store_u64(both, sequence);
    store_u64(both + 8, nonce);
    return crc32c(0, both, sizeof both);
}

void segment_encode(struct segment_header *header, uint8_t *at)
{
    ASSERT(header->sequence > 0 && header->base_lsn > 0);
    memset(at, 0, DISK_BLOCK);
    store_u32(at, SEGMENT_MAGIC);
    store_u16(at + 8, WAL_VERSION);
    store_u16(at + 10, 12); /* log2 of the block size */
    store_u32(at + 12, header->flags);
    store_u64(at + 16, header->sequence);
    store_u64(at + 24, header->nonce);
    memcpy(at + 32, header->store_id, 16);
    store_u64(at + 48, header->base_lsn);
    store_u64(at + 56, header->promise);
    store_u64(at + 64, header->prev_sequence);
    store_u64(at + 72, header->prev_end_lsn);
    store_u64(at + 80, header->prev_end_offset);
    store_u64(at + 88, header->slot_size);
    store_u64(at + 96, (uint64_t)header->wall_ms);
    header->crc = crc32c(0, at + 8, SEGMENT_HEADER - 8);
    store_u32(at + 4, header->crc);
}

enum err segment_decode(struct bytes from, struct segment_header *header_out)
{
    const uint8_t *at = from.at;
    if (from.size < SEGMENT_HEADER || load_u32(at) != SEGMENT_MAGIC) return ERR_CORRUPT;
    uint32_t crc = crc32c(0, at + 8, SEGMENT_HEADER - 8);
    if (load_u32(at + 4) != crc) return ERR_CORRUPT;
    if (load_u16(at + 8) > WAL_VERSION) return ERR_MISMATCH;
    struct segment_header header = {
        .flags = load_u32(at + 12),
        .sequence = load_u64(at + 16),
        .nonce = load_u64(at + 24),
        .base_lsn = load_u64(at + 48),
        .promise = load_u64(at + 56),
        .prev_sequence = load_u64(at + 64),
        .prev_end_lsn = load_u64(at + 72),
        .prev_end_offset = load_u64(at + 80),
        .slot_size = load_u64(at + 88),
        .wall_ms = (int64_t)load_u64(at + 96),
        .crc = crc,
    };
    memcpy(header.store_id, at + 32, 16);
    if (load_u16(at + 10) != 12 || header.sequence == 0 || header.base_lsn == 0) return ERR_CORRUPT;
    if (header.prev_sequence >= header.sequence) return ERR_CORRUPT;
    if (header.prev_end_lsn >= header.base_lsn) return ERR_CORRUPT;
    *header_out = header;
    return OK;
}

void batch_encode(uint32_t seed, struct batch_header *header, uint8_t *at)
{
    ASSERT(header->records > 0 && header->promise < header->first_lsn);
    store_u32(at, BATCH_MAGIC);
    store_u64(at + 8, header->sequence);
    store_u64(at + 16, header->nonce);
    store_u64(at + 24, header->first_lsn);
    store_u64(at + 32, header->promise);
    store_u64(at + 40, (uint64_t)header->wall_ms);
    store_u32(at + 48, header->records);
    store_u32(at + 52, header->bytes);
    store_u32(at + 56, header->block);
    store_u32(at + 60, header->previous_crc);
    store_u32(at + 64, header->records_crc);
    store_u32(at + 68, 0);
    header->crc = crc32c(seed, at + 8, BATCH_HEADER - 8);
    store_u32(at + 4, header->crc);
}

enum err batch_decode(uint32_t seed, struct bytes from, struct batch_header *header_out)
{
    const uint8_t *at = from.at;
    if (from.size < BATCH_HEADER || load_u32(at) != BATCH_MAGIC) return ERR_CORRUPT;
    uint32_t crc = crc32c(seed, at + 8, BATCH_HEADER - 8);
    if (load_u32(at + 4) != crc) return ERR_CORRUPT;
    struct batch_header header = {
        .sequence = load_u64(at + 8),
        .nonce = load_u64(at + 16),
        .first_lsn = load_u64(at + 24),
        .promise = load_u64(at + 32),
        .wall_ms = (int64_t)load_u64(at + 40),
        .records = load_u32(at + 48),
        .bytes = load_u32(at + 52),
        .block = load_u32(at + 56),
        .previous_crc = load_u32(at + 60),
        .records_crc = load_u32(at + 64),
        .crc = crc,
    };
    if (header.records == 0 || header.first_lsn == 0 || header.promise >= header.first_lsn)
        return ERR_CORRUPT;
    if (header.bytes % RECORD_ALIGN != 0 || header.bytes / RECORD_HEADER < header.records)
        return ERR_CORRUPT;
    *header_out = header;
    return OK;
}

enum err batch_check(const struct batch_header *header, uint32_t seed, struct bytes from)
{
    if (from.size < BATCH_HEADER || from.size - BATCH_HEADER < header->bytes) return ERR_TRUNCATED;
    const uint8_t *at = from.at + BATCH_HEADER;
    const uint8_t *end = at + header->bytes;
    uint32_t all = 0;
    for (uint32_t i = 0; i < header->records; i++) {
        size_t left = (size_t)(end - at);
        if (left < RECORD_HEADER || record_span(load_u32(at + 4)) > left) return ERR_CORRUPT;
        if (load_u64(at + 8) != header->first_lsn + i) return ERR_CORRUPT;
        uint32_t crc = record_sum_header(seed, record_sum_payload(at), at);
        if (!PLANTED_BUG(5) && load_u32(at) != crc) return ERR_CORRUPT;
        all = crc32c(all, at, 4);
        at += record_span(load_u32(at + 4));
    }
    if (at != end || (!PLANTED_BUG(5) && all != header->records_crc)) return ERR_CORRUPT;
    return OK;
}

uint32_t record_sum_payload(const uint8_t *at)
{
    size_t payload = load_u32(at + 4);
    return crc32c(0, at + RECORD_HEADER, record_span(payload) - RECORD_HEADER);
}

uint32_t record_sum_header(uint32_t seed, uint32_t payload_sum, const uint8_t *at)
{
    /* The seed enters last: until then the sum is the same wherever the record goes. */
    return crc32c(payload_sum, at + 4, RECORD_HEADER - 4) ^ seed;
}

enum err record_next(struct bytes *rest, struct wal_record *record_out)
{
    if (rest->size == 0) return ERR_NOT_FOUND;
    if (rest->size < RECORD_HEADER) return ERR_CORRUPT;
    const uint8_t *at = rest->at;
    size_t payload = load_u32(at + 4);
    size_t span = record_span(payload);
    if (span > rest->size) return ERR_CORRUPT;
    *record_out = (struct wal_record){
        .lsn = load_u64(at + 8),
        .group = load_u64(at + 16),
        .type = at[24],
        .payload = bytes_of(at + RECORD_HEADER, payload),
    };
    *rest = bytes_of(at + span, rest->size - span);
    return OK;
}
