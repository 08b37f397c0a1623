#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/prng.h"
#include "storage/expiry_heap.h"

TestSuite(expiry_heap, .timeout = 20);

Test(expiry_heap, gives_the_earliest_first_and_nothing_that_is_not_due)
{
    struct expiry_heap heap = {0};
    struct prng prng;
    prng_init(&prng, 3);
    for (int i = 0; i < 10000; i++) {
        uint64_t expires = 1 + prng_below(&prng, 1000);
        char key[32];
        int size = snprintf(key, sizeof key, "%llu", (unsigned long long)expires);
        cr_assert_eq(expiry_heap_add(&heap, (int64_t)expires, 5, bytes_of(key, (size_t)size)), OK);
    }
    int64_t last = 0;
    int taken = 0;
    struct expiry_entry entry;
    while (expiry_heap_take(&heap, 500, &entry)) {
        cr_assert(entry.expires_ms >= last);
        cr_assert(entry.expires_ms <= 500);
        char key[32] = {0};
        memcpy(key, entry.key, entry.key_size);
        cr_assert_eq(atoll(key), entry.expires_ms);
        cr_assert_eq(entry.range, 5);
        last = entry.expires_ms;
        taken++;
    }
    cr_assert(taken > 4000 && taken < 6000);
    cr_assert_eq((size_t)taken + heap.count, 10000);
    cr_assert(heap.bytes > 0);
    expiry_heap_deinit(&heap);
}
