#include <stdint.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/crc32c.h"
#include "wal/record.h"

/* Bytes of a damaged disk, given to every decoder of the log. The first byte chooses whether the
 * checksums are mended first, so that the checks behind them are reached too. */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void mend_segment(uint8_t *at, size_t size)
{
    if (size < SEGMENT_HEADER) return;
    store_u32(at, 0x47535744u);
    store_u32(at + 4, crc32c(0, at + 8, SEGMENT_HEADER - 8));
}

/* Gives every record that fits a right checksum and LSN, and the header the sum of them. */
static void mend_batch(uint8_t *at, size_t size, uint32_t seed)
{
    if (size < BATCH_HEADER) return;
    uint64_t first = load_u64(at + 24);
    uint32_t all = 0;
    uint32_t records = 0;
    size_t offset = BATCH_HEADER;
    while (size - offset >= RECORD_HEADER) {
        uint8_t *record = at + offset;
        size_t span = record_span(load_u32(record + 4) % 256);
        if (span > size - offset) break;
        store_u32(record + 4, load_u32(record + 4) % 256);
        store_u64(record + 8, first + records);
        uint32_t nonce_seed = record_seed(load_u64(at + 8), load_u64(at + 16));
        store_u32(record, record_sum_header(nonce_seed, record_sum_payload(record), record));
        all = crc32c(all, record, 4);
        records++;
        offset += span;
    }
    store_u32(at, 0x54425744u);
    store_u32(at + 48, records);
    store_u32(at + 52, (uint32_t)(offset - BATCH_HEADER));
    store_u32(at + 64, all);
    store_u32(at + 4, crc32c(seed, at + 8, BATCH_HEADER - 8));
}

static void decode_batch(struct bytes from, uint32_t seed)
{
    struct batch_header header;
    if (batch_decode(seed, from, &header) != OK) return;
    ASSERT(batch_span(&header) >= BATCH_HEADER);
    if (batch_check(&header, record_seed(header.sequence, header.nonce), from) != OK) return;
    struct bytes rest = bytes_of(from.at + BATCH_HEADER, header.bytes);
    struct wal_record record;
    uint64_t lsn = header.first_lsn;
    uint32_t sum = 0;
    while (record_next(&rest, &record) == OK) {
        ASSERT(record.lsn == lsn++);
        sum = crc32c(sum, record.payload.at, record.payload.size);
    }
    (void)sum;
    ASSERT(rest.size == 0 && lsn == header.first_lsn + header.records);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1) return 0;
    bool mend = (data[0] & 1) != 0;
    size_t rest = size - 1;
    /* Memory of the exact size: a read behind the end is seen. */
    uint8_t *copy = malloc(rest == 0 ? 1 : rest);
    if (copy == NULL) return 0;
    memcpy(copy, data + 1, rest);
    if (mend) {
        mend_segment(copy, rest);
    }
    struct segment_header segment;
    if (segment_decode(bytes_of(copy, rest), &segment) == OK) {
        ASSERT(segment.sequence > segment.prev_sequence);
        uint8_t block[DISK_BLOCK];
        struct segment_header again;
        segment_encode(&segment, block);
        ASSERT(segment_decode(bytes_of(block, sizeof block), &again) == OK);
        ASSERT(again.base_lsn == segment.base_lsn && again.nonce == segment.nonce);
    }
    memcpy(copy, data + 1, rest);
    uint32_t seed = batch_seed((const uint8_t[16]){1});
    if (mend) {
        mend_batch(copy, rest, seed);
    }
    decode_batch(bytes_of(copy, rest), seed);
    struct bytes raw = bytes_of(copy, rest);
    struct wal_record record;
    while (record_next(&raw, &record) == OK) {
        ASSERT(record.payload.size <= rest);
    }
    free(copy);
    return 0;
}
