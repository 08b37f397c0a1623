#include "cluster/map/map.h"

#include "base/check.h"

static uint16_t crc16_table[256];

__attribute__((constructor)) static void crc16_prepare(void)
{
    for (unsigned i = 0; i < 256; i++) {
        unsigned crc = i << 8;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc << 1) ^ ((crc & 0x8000u) != 0 ? 0x1021u : 0);
        crc16_table[i] = (uint16_t)crc;
    }
}

/* CRC16/XMODEM: the Redis Cluster specification, appendix A; "123456789" gives 0x31c3. */
static uint16_t crc16(struct bytes bytes)
{
    unsigned crc = 0;
    for (size_t i = 0; i < bytes.size; i++)
        crc = ((crc << 8) & 0xffffu) ^ crc16_table[((crc >> 8) ^ bytes.at[i]) & 0xffu];
    return (uint16_t)crc;
}

static struct bytes hash_tag(struct bytes key)
{
    const uint8_t *open = key.size == 0 ? NULL : memchr(key.at, '{', key.size);
    if (open == NULL) return key;
    size_t left = key.size - (size_t)(open + 1 - key.at);
    const uint8_t *close = left == 0 ? NULL : memchr(open + 1, '}', left);
    if (close == NULL || close == open + 1) return key;
    return bytes_of(open + 1, (size_t)(close - open - 1));
}

uint16_t map_slot(struct bytes key)
{
    return crc16(hash_tag(key)) & (MAP_SLOTS - 1);
}

int map_ranges_valid(uint32_t ranges)
{
    return ranges >= 1 && ranges <= MAP_RANGES_MAX && (ranges & (ranges - 1)) == 0;
}

uint16_t map_range(struct bytes key, uint32_t ranges)
{
    ASSERT(map_ranges_valid(ranges));
    return (uint16_t)(map_slot(key) / (MAP_SLOTS / ranges) + 1);
}
