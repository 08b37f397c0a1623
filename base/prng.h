#ifndef BASE_PRNG_H
#define BASE_PRNG_H

#include <stdint.h>

/* xoshiro256** (Blackman, Vigna 2018), seeded by splitmix64. Not for secrets.
 * The only source of randomness in cores and simulator: one seed decides everything. */
struct prng {
    uint64_t s[4];
};

void prng_init(struct prng *prng, uint64_t seed);
uint64_t prng_next(struct prng *prng);
/* Uniform in [0, bound); bound > 0. */
uint64_t prng_below(struct prng *prng, uint64_t bound);
/* Uniform in [0, 1). */
double prng_double(struct prng *prng);
/* True with probability numerator / denominator. */
int prng_chance(struct prng *prng, uint64_t numerator, uint64_t denominator);

#endif
