#ifndef BENCH_WORKLOAD_H
#define BENCH_WORKLOAD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/prng.h"

/* What a run asks for: which operation next, on which key, with which value, and when. Pure but for
 * the counters that threads share; the same seed gives the same requests. */

enum { KEY_DIGITS = 12, KEY_PREFIX_SIZE = 4, KEY_SIZE = KEY_PREFIX_SIZE + KEY_DIGITS };

enum operation {
    OPERATION_GET,
    OPERATION_SET,
    OPERATION_INSERT, /* SET of a key that did not exist */
    OPERATION_SCAN, /* a short range of consecutive keys */
    OPERATION_RMW, /* GET, and when it is answered SET of the same key */
    OPERATION_COUNT,
};

const char *operation_name(enum operation operation);

enum distribution {
    DISTRIBUTION_UNIFORM,
    DISTRIBUTION_ZIPFIAN, /* scrambled: the popular keys are spread over the key space */
    DISTRIBUTION_LATEST, /* zipfian by age, the newest key first */
};

/* Writes "key:" and twelve decimal digits, KEY_SIZE bytes, no NUL. */
void key_write(uint8_t *at, uint64_t number);
/* Only the digits, over a key that is there. */
void key_patch(uint8_t *digits, uint64_t number);

/* Ranks 0 .. items-1, rank r with a weight of 1 / (r+1)^theta (Gray et al., SIGMOD 1994). */
struct zipfian {
    uint64_t items;
    double alpha;
    double zeta;
    double eta;
    double second; /* cumulated weight of the two first ranks, before division by zeta */
};

void zipfian_init(struct zipfian *zipfian, uint64_t items, double theta);
uint64_t zipfian_next(const struct zipfian *zipfian, struct prng *prng);

/* The generalised harmonic number: sum of 1/i^theta for i in 1..items, exact to 1e-9 relative. */
double zipfian_zeta(uint64_t items, double theta);

/* What the key space holds; shared by the threads of a run. */
struct keyspace {
    uint64_t loaded; /* keys 0 .. loaded-1 are there before the run */
    _Atomic uint64_t claimed; /* inserts begun */
    _Atomic uint64_t confirmed; /* inserts acknowledged */
};

struct workload_config {
    uint32_t parts[OPERATION_COUNT]; /* relative frequency */
    enum distribution distribution;
    double theta;
    uint32_t scan_max; /* a scan has 1 .. scan_max keys */
    uint64_t seed;
};

struct workload {
    struct prng prng;
    struct keyspace *keyspace;
    enum distribution distribution;
    uint32_t scan_max;
    uint32_t parts_total;
    uint32_t bounds[OPERATION_COUNT]; /* running sums of the parts */
    int only; /* the one operation, or -1 */
    struct zipfian zipfian;
};

struct request {
    enum operation operation;
    uint32_t span; /* keys of a scan */
    uint64_t key;
};

/* `prototype` gives zipfian constants that are costly to find (NULL: find them). Threads differ by
 * `index`. Asserts that some part is not 0. */
void workload_init(struct workload *workload, const struct workload_config *config,
    struct keyspace *keyspace, uint32_t index, const struct workload *prototype);
struct request workload_next(struct workload *workload);
/* An insert was acknowledged: `latest` may choose it from now on. */
void workload_confirm(struct workload *workload);

/* Fills `size` bytes that no compressor can shrink. */
void value_fill(uint8_t *at, size_t size, struct prng *prng);

/* Open loop: arrivals at a fixed rate, decided by the clock and never by how fast answers come. A
 * request's latency counts from its arrival, so time spent waiting to be sent is in it; measuring from
 * the moment of sending would leave out exactly the slow moments (coordinated omission). */
struct schedule {
    uint64_t start_ns;
    double spacing_ns;
    uint64_t taken;
};

void schedule_init(struct schedule *schedule, uint64_t start_ns, double rate);
/* How many arrivals at or before `now` have not been taken. */
uint64_t schedule_due(const struct schedule *schedule, uint64_t now_ns);
/* When the next one not taken arrives. */
uint64_t schedule_next_ns(const struct schedule *schedule);
/* Takes it and returns its time. */
uint64_t schedule_take(struct schedule *schedule);

#endif
