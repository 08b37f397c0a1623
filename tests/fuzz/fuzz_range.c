#include <stdlib.h>

#include "base/check.h"
#include "base/crc32c.h"
#include "storage/effect.h"
#include "storage/range_chunk.h"
#include "storage/range_meta.h"

/* What a node reads of a range from another: its meta and the chunks of its snapshot, whose sizes and
 * checksums are filled in as if they fitted. The first byte chooses. */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void touch(struct bytes bytes)
{
    volatile uint8_t sum = 0;
    for (size_t i = 0; i < bytes.size; i++)
        sum = (uint8_t)(sum + bytes.at[i]);
}

static void meta(struct bytes bytes)
{
    struct range_meta decoded;
    if (range_meta_decode(bytes, &decoded) != OK) return;
    uint8_t again[RANGE_META_BYTES_MAX];
    size_t size = range_meta_encode(again, &decoded);
    ASSERT(bytes_equal(bytes, bytes_of(again, size)));
}

static void check(struct bytes key, const struct value *value)
{
    ASSERT(key.size >= 2 && key.size <= KEY_SIZE_MAX_STORED);
    ASSERT(value->bytes.size <= VALUE_SIZE_MAX);
    ASSERT(value->version >> 48 == 0);
    touch(key);
    touch(value->bytes);
}

static void chunk(const uint8_t *data, size_t size)
{
    if (size <= RANGE_CHUNK_FRONT) return;
    uint8_t *at = malloc(size);
    if (at == NULL) return;
    memcpy(at, data, size);
    store_u32(at, UINT32_C(0x6b6e6863));
    store_u32(at + 8, (uint32_t)size);
    store_u32(at + 4, crc32c(0, at + 8, size - 8));
    struct range_chunk_front front;
    struct bytes rest, key;
    struct value value;
    size_t offset, whole;
    if (range_chunk_open(bytes_of(at, size), &front, &rest) == OK) {
        if (range_chunk_part_get(rest, &key, &value, &offset, &whole) == OK) {
            ASSERT(offset + value.bytes.size <= whole && whole <= VALUE_SIZE_MAX);
            check(key, &value);
        }
        while (range_chunk_next(&rest, &key, &value) == OK)
            check(key, &value);
    }
    free(at);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    if (data[0] % 2 == 0) {
        meta(bytes_of(data + 1, size - 1));
    } else {
        chunk(data + 1, size - 1);
    }
    return 0;
}
