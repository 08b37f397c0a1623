#define XXH_INLINE_ALL
#include "base/hash.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#include <xxhash.h>
#pragma GCC diagnostic pop

uint64_t hash64(uint64_t seed, struct bytes bytes)
{
    return XXH3_64bits_withSeed(bytes.at, bytes.size, seed);
}
