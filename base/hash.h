#ifndef BASE_HASH_H
#define BASE_HASH_H

#include "base/bytes.h"

/* XXH3-64 with a seed. Tables that hold clients' keys take a random seed, so that nobody can
 * choose colliding keys; identifiers that are stored or sent take seed 0. */
uint64_t hash64(uint64_t seed, struct bytes bytes);

#endif
