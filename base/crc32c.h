#ifndef BASE_CRC32C_H
#define BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* CRC-32C (Castagnoli, RFC 3720 B.4; check value of "123456789" is 0xe3069283). `seed` is the
 * result for the bytes before, 0 at the start: crc32c(crc32c(0, a), b) == crc32c(0, ab). */
uint32_t crc32c(uint32_t seed, const void *at, size_t size);

#endif
