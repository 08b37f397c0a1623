#include "bench/workload.h"

#include <math.h>
#include <string.h>

#include "base/check.h"

static const char *const operation_names[OPERATION_COUNT] = {
    [OPERATION_GET] = "get",
    [OPERATION_SET] = "set",
    [OPERATION_INSERT] = "insert",
    [OPERATION_SCAN] = "scan",
    [OPERATION_RMW] = "rmw",
};

const char *operation_name(enum operation operation)
{
    ASSERT(operation < OPERATION_COUNT);
    return operation_names[operation];
}

void key_patch(uint8_t *digits, uint64_t number)
{
    for (int i = KEY_DIGITS - 1; i >= 0; i--) {
        digits[i] = (uint8_t)('0' + number % 10);
        number /= 10;
    }
}

void key_write(uint8_t *at, uint64_t number)
{
    memcpy(at, "key:", KEY_PREFIX_SIZE);
    key_patch(at + KEY_PREFIX_SIZE, number);
}

double zipfian_zeta(uint64_t items, double theta)
{
    enum { EXACT = 100000 };
    double sum = 0;
    uint64_t exact = items < EXACT ? items : EXACT;
    for (uint64_t i = 1; i <= exact; i++)
        sum += pow((double)i, -theta);
    if (exact == items) return sum;
    /* Euler-Maclaurin for the rest: the integral, half of both ends, and the first correction */
    double from = (double)exact;
    double upto = (double)items;
    double integral = theta == 1.0 ? log(upto / from)
                                   : (pow(upto, 1 - theta) - pow(from, 1 - theta)) / (1 - theta);
    double ends = (pow(upto, -theta) - pow(from, -theta)) / 2;
    double correction = theta * (pow(from, -theta - 1) - pow(upto, -theta - 1)) / 12;
    return sum + integral + ends + correction;
}

void zipfian_init(struct zipfian *zipfian, uint64_t items, double theta)
{
    ASSERT(items > 0);
    ASSERT(theta > 0 && theta < 1);
    double zeta_two = 1 + pow(2, -theta);
    zipfian->items = items;
    zipfian->alpha = 1 / (1 - theta);
    zipfian->zeta = zipfian_zeta(items, theta);
    zipfian->second = zeta_two;
    zipfian->eta =
        (1 - pow(2 / (double)items, 1 - theta)) / (1 - (items > 2 ? zeta_two / zipfian->zeta : 0));
}

uint64_t zipfian_next(const struct zipfian *zipfian, struct prng *prng)
{
    double uniform = prng_double(prng);
    double weight = uniform * zipfian->zeta;
    if (weight < 1 || zipfian->items == 1) return 0;
    if (weight < zipfian->second || zipfian->items == 2) return 1;
    double rank =
        (double)zipfian->items * pow(zipfian->eta * uniform - zipfian->eta + 1, zipfian->alpha);
    uint64_t whole = (uint64_t)rank;
    return whole < zipfian->items ? whole : zipfian->items - 1;
}

/* the finaliser of splitmix64: neighbours in rank end up far apart in the key space */
static uint64_t scramble(uint64_t rank)
{
    rank += 0x9e3779b97f4a7c15u;
    rank = (rank ^ (rank >> 30)) * 0xbf58476d1ce4e5b9u;
    rank = (rank ^ (rank >> 27)) * 0x94d049bb133111ebu;
    return rank ^ (rank >> 31);
}

void workload_init(struct workload *workload, const struct workload_config *config,
    struct keyspace *keyspace, uint32_t index, const struct workload *prototype)
{
    memset(workload, 0, sizeof *workload);
    prng_init(&workload->prng, config->seed * 1000003 + index);
    workload->keyspace = keyspace;
    workload->distribution = config->distribution;
    workload->scan_max = config->scan_max == 0 ? 1 : config->scan_max;
    workload->only = -1;
    int used = 0;
    for (int i = 0; i < OPERATION_COUNT; i++) {
        workload->parts_total += config->parts[i];
        workload->bounds[i] = workload->parts_total;
        if (config->parts[i] > 0) {
            workload->only = i;
            used++;
        }
    }
    ASSERT(used > 0);
    if (used > 1) {
        workload->only = -1;
    }
    if (prototype != NULL) {
        workload->zipfian = prototype->zipfian;
    } else if (config->distribution != DISTRIBUTION_UNIFORM && keyspace->loaded > 0) {
        zipfian_init(&workload->zipfian, keyspace->loaded, config->theta);
    }
}

static enum operation choose_operation(struct workload *workload)
{
    if (workload->only >= 0) return (enum operation)workload->only;
    uint64_t drawn = prng_below(&workload->prng, workload->parts_total);
    int i = 0;
    while (drawn >= workload->bounds[i])
        i++;
    return (enum operation)i;
}

static uint64_t choose_key(struct workload *workload)
{
    struct keyspace *keyspace = workload->keyspace;
    uint64_t loaded = keyspace->loaded;
    if (loaded == 0) return 0;
    if (workload->distribution == DISTRIBUTION_UNIFORM) return prng_below(&workload->prng, loaded);
    uint64_t rank = zipfian_next(&workload->zipfian, &workload->prng);
    if (workload->distribution == DISTRIBUTION_ZIPFIAN) return scramble(rank) % loaded;
    uint64_t there = loaded + atomic_load_explicit(&keyspace->confirmed, memory_order_relaxed);
    return there - 1 - rank;
}

struct request workload_next(struct workload *workload)
{
    struct request request = {.operation = choose_operation(workload), .span = 1};
    if (request.operation == OPERATION_INSERT) {
        struct keyspace *keyspace = workload->keyspace;
        request.key = keyspace->loaded +
            atomic_fetch_add_explicit(&keyspace->claimed, 1, memory_order_relaxed);
        return request;
    }
    request.key = choose_key(workload);
    if (request.operation == OPERATION_SCAN) {
        request.span = 1 + (uint32_t)prng_below(&workload->prng, workload->scan_max);
        uint64_t loaded = workload->keyspace->loaded;
        if (request.key + request.span > loaded) {
            request.key = loaded > request.span ? loaded - request.span : 0;
        }
    }
    return request;
}

void workload_confirm(struct workload *workload)
{
    atomic_fetch_add_explicit(&workload->keyspace->confirmed, 1, memory_order_relaxed);
}

void value_fill(uint8_t *at, size_t size, struct prng *prng)
{
    while (size > 0) {
        uint64_t word = prng_next(prng);
        size_t part = size < sizeof word ? size : sizeof word;
        memcpy(at, &word, part);
        at += part;
        size -= part;
    }
}

void schedule_init(struct schedule *schedule, uint64_t start_ns, double rate)
{
    ASSERT(rate > 0);
    *schedule = (struct schedule){.start_ns = start_ns, .spacing_ns = 1e9 / rate};
}

uint64_t schedule_next_ns(const struct schedule *schedule)
{
    /* multiplied, not added up: no drift however long the run */
    return schedule->start_ns + (uint64_t)((double)schedule->taken * schedule->spacing_ns);
}

uint64_t schedule_due(const struct schedule *schedule, uint64_t now_ns)
{
    if (now_ns < schedule_next_ns(schedule)) return 0;
    uint64_t arrived = (uint64_t)((double)(now_ns - schedule->start_ns) / schedule->spacing_ns) + 1;
    return arrived > schedule->taken ? arrived - schedule->taken : 1;
}

uint64_t schedule_take(struct schedule *schedule)
{
    uint64_t at = schedule_next_ns(schedule);
    schedule->taken++;
    return at;
}
