#include "base/crc32c.h"

#include <stdbool.h>
#include <string.h>

/* The SSE4.2 instruction where the processor has it (20 ns for a 132-byte record), else
 * slicing by 8 (Kounavis, Berry 2005). */

static uint32_t table[8][256];
static bool has_instruction;

__attribute__((constructor)) static void crc32c_prepare(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78u : 0);
        table[0][i] = crc;
    }
    for (int slice = 1; slice < 8; slice++) {
        for (int i = 0; i < 256; i++)
            table[slice][i] = (table[slice - 1][i] >> 8) ^ table[0][table[slice - 1][i] & 0xff];
    }
#if defined(__x86_64__)
    has_instruction = __builtin_cpu_supports("sse4.2");
#endif
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc_instruction(
    uint32_t crc, const uint8_t *at, size_t size)
{
    uint64_t wide = crc;
    while (size >= 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        wide = __builtin_ia32_crc32di(wide, word);
        at += 8;
        size -= 8;
    }
    crc = (uint32_t)wide;
    /* keys and values are short: a tail byte by byte would cost as much as all before it */
    if ((size & 4) != 0) {
        uint32_t word;
        memcpy(&word, at, 4);
        crc = __builtin_ia32_crc32si(crc, word);
        at += 4;
    }
    if ((size & 2) != 0) {
        uint16_t word;
        memcpy(&word, at, 2);
        crc = __builtin_ia32_crc32hi(crc, word);
        at += 2;
    }
    if ((size & 1) != 0) crc = __builtin_ia32_crc32qi(crc, *at);
    return crc;
}
#endif

static uint32_t crc_table(uint32_t crc, const uint8_t *at, size_t size)
{
    while (size >= 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        word ^= crc;
        crc = 0;
        for (int i = 0; i < 8; i++)
            crc ^= table[7 - i][(word >> (8 * i)) & 0xff];
        at += 8;
        size -= 8;
    }
    while (size-- > 0)
        crc = (crc >> 8) ^ table[0][(crc ^ *at++) & 0xff];
    return crc;
}

uint32_t crc32c(uint32_t seed, const void *at, size_t size)
{
    uint32_t crc = ~seed;
#if defined(__x86_64__)
    if (has_instruction) return ~crc_instruction(crc, at, size);
#endif
    return ~crc_table(crc, at, size);
}
