#ifndef BASE_HISTOGRAM_H
#define BASE_HISTOGRAM_H

#include <stdint.h>

/* Log-linear histogram in the manner of HdrHistogram: 128 steps per power of two, so a reported
 * value is within 0.8 % of the true one. Counts unsigned values, by convention nanoseconds. */
enum { HISTOGRAM_SUB_BITS = 7, HISTOGRAM_SLOTS = (64 - HISTOGRAM_SUB_BITS + 1) << HISTOGRAM_SUB_BITS };

struct histogram {
    uint64_t count;
    uint64_t sum;
    uint64_t min;
    uint64_t max;
    uint64_t slots[HISTOGRAM_SLOTS];
};

/* Zeroed memory is an empty histogram; this makes it so again. */
void histogram_reset(struct histogram *histogram);
void histogram_record(struct histogram *histogram, uint64_t value);
/* Records `value` `times` times. */
void histogram_record_many(struct histogram *histogram, uint64_t value, uint64_t times);
/* Adds every count of `from`. */
void histogram_merge(struct histogram *into, const struct histogram *from);
/* The value at or below which `quantile` (0..1) of all counts lie; 0 if empty. */
uint64_t histogram_quantile(const struct histogram *histogram, double quantile);
double histogram_mean(const struct histogram *histogram);
/* How many recorded values are at or below `value` (within the histogram's precision). */
uint64_t histogram_count_below(const struct histogram *histogram, uint64_t value);

#endif
