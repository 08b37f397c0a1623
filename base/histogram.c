#include "base/histogram.h"

#include <string.h>

static unsigned slot_of(uint64_t value)
{
    if (value < (1u << HISTOGRAM_SUB_BITS)) return (unsigned)value;
    unsigned exponent = 63u - (unsigned)__builtin_clzll(value) - HISTOGRAM_SUB_BITS;
    return (exponent << HISTOGRAM_SUB_BITS) + (unsigned)(value >> exponent);
}

/* the largest value that falls into the slot */
static uint64_t slot_top(unsigned slot)
{
    unsigned exponent = slot >> HISTOGRAM_SUB_BITS;
    if (exponent <= 1) return slot;
    exponent -= 1;
    uint64_t base = (slot & ((1u << HISTOGRAM_SUB_BITS) - 1)) | (1u << HISTOGRAM_SUB_BITS);
    return ((base + 1) << exponent) - 1;
}

void histogram_reset(struct histogram *histogram)
{
    memset(histogram, 0, sizeof *histogram);
}

void histogram_record_many(struct histogram *histogram, uint64_t value, uint64_t times)
{
    if (times == 0) return;
    if (histogram->count == 0 || value < histogram->min) histogram->min = value;
    if (value > histogram->max) histogram->max = value;
    histogram->count += times;
    histogram->sum += value * times;
    histogram->slots[slot_of(value)] += times;
}

void histogram_record(struct histogram *histogram, uint64_t value)
{
    histogram_record_many(histogram, value, 1);
}

void histogram_merge(struct histogram *into, const struct histogram *from)
{
    if (from->count == 0) return;
    if (into->count == 0 || from->min < into->min) into->min = from->min;
    if (from->max > into->max) into->max = from->max;
    into->count += from->count;
    into->sum += from->sum;
    for (unsigned i = 0; i < HISTOGRAM_SLOTS; i++)
        into->slots[i] += from->slots[i];
}

uint64_t histogram_quantile(const struct histogram *histogram, double quantile)
{
    if (histogram->count == 0) return 0;
    double exact = quantile * (double)histogram->count;
    uint64_t rank = (uint64_t)exact;
    if ((double)rank < exact) rank++;
    if (rank == 0) rank = 1;
    uint64_t seen = 0;
    for (unsigned i = 0; i < HISTOGRAM_SLOTS; i++) {
        seen += histogram->slots[i];
        if (seen >= rank) {
            uint64_t top = slot_top(i);
            return top > histogram->max ? histogram->max : top;
        }
    }
    return histogram->max;
}

double histogram_mean(const struct histogram *histogram)
{
    return histogram->count == 0 ? 0 : (double)histogram->sum / (double)histogram->count;
}

uint64_t histogram_count_below(const struct histogram *histogram, uint64_t value)
{
    uint64_t seen = 0;
    for (unsigned i = 0; i < HISTOGRAM_SLOTS && slot_top(i) <= value; i++)
        seen += histogram->slots[i];
    return seen;
}
