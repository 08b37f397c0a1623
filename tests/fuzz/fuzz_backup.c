#include <stdlib.h>

#include "base/check.h"
#include "base/crc32c.h"
#include "storage/backup_format.h"
#include "storage/folder.h"

/* Everything that decodes bytes of a backup, or of a folder's identity. Checksums would keep the fuzzer at
 * the door, so for whole files they are filled in as if they fitted. The first byte chooses what
 * the rest is. */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void touch(struct bytes bytes)
{
    volatile uint8_t sum = 0;
    for (size_t i = 0; i < bytes.size; i++)
        sum = (uint8_t)(sum + bytes.at[i]);
}

static void entries(struct bytes rest, uint32_t ranges)
{
    struct backup_entry entry;
    struct buffer again = {0};
    while (backup_entry_next(&rest, ranges, &entry) == OK) {
        ASSERT(entry.range <= ranges);
        ASSERT(entry.key.size >= 2 && entry.key.size <= KEY_SIZE_MAX + 2);
        touch(entry.key);
        touch(entry.value.bytes);
        /* What decodes can be encoded, and then says the same. */
        buffer_reset(&again, 4096);
        if (backup_entry_append(&again, &entry) != OK) break;
        struct bytes copy = buffer_view(&again);
        struct backup_entry second;
        ASSERT(backup_entry_next(&copy, ranges, &second) == OK);
        ASSERT(bytes_equal(second.value.bytes, entry.value.bytes));
        ASSERT(second.value.version == entry.value.version);
        ASSERT(second.value.expires_ms == entry.value.expires_ms);
    }
    buffer_deinit(&again);
}

static void ranges(struct bytes rest)
{
    struct backup_range range;
    struct buffer again = {0};
    while (backup_range_next(&rest, &range) == OK) {
        ASSERT(range.index < BACKUP_LSN_END);
        buffer_reset(&again, 4096);
        if (backup_range_append(&again, &range) != OK) break;
        ASSERT(bytes_equal(
            buffer_view(&again), bytes_of(rest.at - BACKUP_RANGE_SIZE, BACKUP_RANGE_SIZE)));
    }
    buffer_deinit(&again);
}

static void file(const uint8_t *at, size_t size)
{
    uint8_t head[BACKUP_HEADER_SIZE];
    struct backup_header header;
    struct backup_codec codec;
    if (size < sizeof head) return;
    memcpy(head, at, sizeof head);
    store_u32(head + 252, crc32c(0, head, 252));
    uint32_t format;
    if (backup_header_decode(head, &header, &format) != OK) return;
    if (backup_unpacker_init(&codec, head) != OK) return;
    struct buffer raw = {0};
    size_t offset = sizeof head;
    while (size - offset >= BACKUP_BLOCK_HEAD_SIZE) {
        struct backup_block block;
        if (backup_block_head(&codec, at + offset, &block) != OK) break;
        offset += BACKUP_BLOCK_HEAD_SIZE;
        if (block.stored_size > size - offset || block.raw_size > 1 << 20) break;
        struct bytes stored = bytes_of(at + offset, block.stored_size);
        block.checksum = crc32c(block.expected, stored.at, stored.size);
        if (backup_unpack(&codec, &block, stored, &raw) != OK) break;
        ASSERT(buffer_view(&raw).size == block.raw_size);
        struct backup_footer footer;
        if (block.kind == BACKUP_ENTRIES) entries(buffer_view(&raw), header.ranges);
        if (block.kind == BACKUP_RANGES) ranges(buffer_view(&raw));
        if (block.kind == BACKUP_FOOTER) (void)!backup_footer_decode(buffer_view(&raw), &footer);
        offset += block.stored_size;
    }
    buffer_deinit(&raw);
    backup_unpacker_deinit(&codec);
}

static void identity(const uint8_t *at, size_t size)
{
    struct folder_identity decoded;
    char text[FOLDER_IDENTITY_MAX];
    enum { CRC_LINE = 13 };
    if (size > sizeof text - CRC_LINE - 1) return;
    memcpy(text, at, size);
    static const char digits[] = "0123456789abcdef";
    uint32_t crc = crc32c(0, text, size);
    memcpy(text + size, "crc ", 4);
    for (int i = 0; i < 8; i++)
        text[size + 4 + (size_t)i] = digits[crc >> (28 - 4 * i) & 15];
    text[size + 12] = '\n';
    if (folder_identity_decode(bytes_of(text, size + CRC_LINE), &decoded) != OK) return;
    char again[FOLDER_IDENTITY_MAX];
    struct folder_identity second;
    size_t length = folder_identity_encode(again, &decoded);
    ASSERT(folder_identity_decode(bytes_of(again, length), &second) == OK);
    ASSERT(memcmp(&second, &decoded, sizeof second) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    switch (data[0] % 4) {
    case 0:
        file(data + 1, size - 1);
        break;
    case 1:
        entries(bytes_of(data + 1, size - 1), 64);
        break;
    case 2:
        ranges(bytes_of(data + 1, size - 1));
        break;
    case 3:
        identity(data + 1, size - 1);
        break;
    }
    return 0;
}
