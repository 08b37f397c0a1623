#include <criterion/criterion.h>

#include "base/crc32c.h"
#include "wal/record.h"

/* The codec: what is written is read back, and nothing else is taken for it. */

static struct segment_header sample_segment(void)
{
    return (struct segment_header){
        .sequence = 9,
        .nonce = 0x1122334455667788u,
        .store_id = {9, 8, 7, 6, 5, 4, 3, 2, 1},
        .base_lsn = 101,
        .promise = 99,
        .prev_sequence = 7,
        .prev_end_lsn = 100,
        .prev_end_offset = 40960,
        .slot_size = 65536,
        .wall_ms = 1700000000000,
        .flags = 0,
    };
}

Test(record, segment_header_comes_back_as_written)
{
    uint8_t block[DISK_BLOCK];
    memset(block, 0xee, sizeof block);
    struct segment_header in = sample_segment();
    segment_encode(&in, block);
    struct segment_header out;
    cr_assert_eq(segment_decode(bytes_of(block, sizeof block), &out), OK);
    cr_assert_eq(out.sequence, in.sequence);
    cr_assert_eq(out.nonce, in.nonce);
    cr_assert_eq(memcmp(out.store_id, in.store_id, 16), 0);
    cr_assert_eq(out.base_lsn, in.base_lsn);
    cr_assert_eq(out.promise, in.promise);
    cr_assert_eq(out.prev_sequence, in.prev_sequence);
    cr_assert_eq(out.prev_end_lsn, in.prev_end_lsn);
    cr_assert_eq(out.prev_end_offset, in.prev_end_offset);
    cr_assert_eq(out.slot_size, in.slot_size);
    cr_assert_eq(out.wall_ms, in.wall_ms);
    cr_assert_eq(out.crc, in.crc);
    for (size_t i = SEGMENT_HEADER; i < sizeof block; i++) {
        cr_assert_eq(block[i], 0, "nothing of the memory before may reach the disk");
    }
}

Test(record, every_flipped_bit_of_a_segment_header_is_seen)
{
    uint8_t block[DISK_BLOCK];
    struct segment_header header = sample_segment();
    segment_encode(&header, block);
    for (size_t bit = 0; bit < (size_t)SEGMENT_HEADER * 8; bit++) {
        block[bit / 8] = (uint8_t)(block[bit / 8] ^ (1u << bit % 8));
        struct segment_header out;
        cr_assert_eq(
            segment_decode(bytes_of(block, sizeof block), &out), ERR_CORRUPT, "bit %zu", bit);
        block[bit / 8] = (uint8_t)(block[bit / 8] ^ (1u << bit % 8));
    }
}

Test(record, short_or_empty_input_is_corrupt)
{
    uint8_t block[DISK_BLOCK] = {0};
    struct segment_header segment;
    struct batch_header batch;
    cr_assert_eq(segment_decode(bytes_of(block, sizeof block), &segment), ERR_CORRUPT);
    cr_assert_eq(segment_decode(bytes_of(block, 3), &segment), ERR_CORRUPT);
    cr_assert_eq(batch_decode(1, bytes_of(block, sizeof block), &batch), ERR_CORRUPT);
    cr_assert_eq(batch_decode(1, bytes_of(block, 3), &batch), ERR_CORRUPT);
}

enum { SAMPLE = 3 };
static const size_t sample_sizes[SAMPLE] = {0, 5, 64};

/* A batch of three records as wal.c builds it; returns its size. */
static size_t sample_batch(uint8_t *at, struct batch_header *header)
{
    size_t size = BATCH_HEADER;
    uint32_t seed = record_seed(9, 77);
    uint8_t sums[SAMPLE * 4];
    for (uint32_t i = 0; i < SAMPLE; i++) {
        uint8_t *record = at + size;
        record_begin(record, WAL_RECORD_WRITE, 3 + i, sample_sizes[i], 500 + i);
        memset(record + RECORD_HEADER, 'a' + (int)i, sample_sizes[i]);
        uint32_t sum = record_sum_header(seed, record_sum_payload(record), record);
        store_u32(record, sum);
        store_u32(sums + (size_t)i * 4, sum);
        size += record_span(sample_sizes[i]);
    }
    *header = (struct batch_header){
        .sequence = 9,
        .nonce = 77,
        .first_lsn = 500,
        .promise = 490,
        .wall_ms = 1,
        .records = SAMPLE,
        .bytes = (uint32_t)(size - BATCH_HEADER),
        .block = 3,
        .previous_crc = 0xabcdef,
    };
    header->records_crc = crc32c(0, sums, sizeof sums);
    batch_encode(batch_seed((const uint8_t[16]){1}), header, at);
    return size;
}

Test(record, batch_and_records_come_back_as_written)
{
    uint8_t block[DISK_BLOCK] = {0};
    struct batch_header in;
    size_t size = sample_batch(block, &in);
    struct batch_header out;
    uint32_t seed = batch_seed((const uint8_t[16]){1});
    cr_assert_eq(batch_decode(seed, bytes_of(block, sizeof block), &out), OK);
    cr_assert_eq(memcmp(&in, &out, sizeof in), 0);
    cr_assert_eq(batch_check(&out, record_seed(9, 77), bytes_of(block, size)), OK);
    cr_assert_eq(batch_span(&out), DISK_BLOCK);
    struct bytes rest = bytes_of(block + BATCH_HEADER, out.bytes);
    for (uint32_t i = 0; i < SAMPLE; i++) {
        struct wal_record record;
        cr_assert_eq(record_next(&rest, &record), OK);
        cr_assert_eq(record.lsn, 500 + i);
        cr_assert_eq(record.group, 3 + i);
        cr_assert_eq(record.type, WAL_RECORD_WRITE);
        cr_assert_eq(record.payload.size, sample_sizes[i]);
        for (size_t byte = 0; byte < record.payload.size; byte++) {
            cr_assert_eq(record.payload.at[byte], 'a' + (int)i);
        }
    }
    struct wal_record none;
    cr_assert_eq(record_next(&rest, &none), ERR_NOT_FOUND);
}

Test(record, every_flipped_bit_of_a_batch_is_seen)
{
    uint8_t block[DISK_BLOCK] = {0};
    struct batch_header header;
    size_t size = sample_batch(block, &header);
    uint32_t seed = batch_seed((const uint8_t[16]){1});
    for (size_t bit = 0; bit < size * 8; bit++) {
        block[bit / 8] = (uint8_t)(block[bit / 8] ^ (1u << bit % 8));
        struct batch_header out;
        enum err err = batch_decode(seed, bytes_of(block, sizeof block), &out);
        if (err == OK) {
            cr_assert_geq(bit / 8, (size_t)BATCH_HEADER, "the header's sum missed bit %zu", bit);
            err = batch_check(&out, record_seed(9, 77), bytes_of(block, sizeof block));
        }
        cr_assert_eq(err, ERR_CORRUPT, "bit %zu", bit);
        block[bit / 8] = (uint8_t)(block[bit / 8] ^ (1u << bit % 8));
    }
}

Test(record, a_batch_of_another_store_or_life_is_refused)
{
    uint8_t block[DISK_BLOCK] = {0};
    struct batch_header header;
    size_t size = sample_batch(block, &header);
    struct batch_header out;
    uint32_t other = batch_seed((const uint8_t[16]){2});
    cr_assert_eq(batch_decode(other, bytes_of(block, sizeof block), &out), ERR_CORRUPT);
    cr_assert_eq(batch_check(&header, record_seed(9, 78), bytes_of(block, size)), ERR_CORRUPT);
    cr_assert_eq(batch_check(&header, record_seed(8, 77), bytes_of(block, size)), ERR_CORRUPT);
}

Test(record, a_batch_cut_short_is_truncated)
{
    uint8_t block[DISK_BLOCK] = {0};
    struct batch_header header;
    size_t size = sample_batch(block, &header);
    cr_assert_eq(
        batch_check(&header, record_seed(9, 77), bytes_of(block, size - 1)), ERR_TRUNCATED);
}

Test(record, lengths_that_lie_do_not_lead_outside)
{
    uint8_t block[DISK_BLOCK] = {0};
    struct batch_header header;
    size_t size = sample_batch(block, &header);
    store_u32(block + BATCH_HEADER + 4, UINT32_MAX);
    cr_assert_eq(batch_check(&header, record_seed(9, 77), bytes_of(block, size)), ERR_CORRUPT);
    struct bytes rest = bytes_of(block + BATCH_HEADER, header.bytes);
    struct wal_record record;
    cr_assert_eq(record_next(&rest, &record), ERR_CORRUPT);
}

Test(record, a_header_of_a_newer_version_says_so)
{
    uint8_t block[DISK_BLOCK];
    struct segment_header header = sample_segment();
    segment_encode(&header, block);
    store_u16(block + 8, WAL_VERSION + 1);
    store_u32(block + 4, crc32c(0, block + 8, SEGMENT_HEADER - 8));
    struct segment_header out;
    cr_assert_eq(segment_decode(bytes_of(block, sizeof block), &out), ERR_MISMATCH);
}
