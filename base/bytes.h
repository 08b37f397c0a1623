#ifndef BASE_BYTES_H
#define BASE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A borrowed range of bytes. Never owns; passed by value. */
struct bytes {
    const uint8_t *at;
    size_t size;
};

static inline struct bytes bytes_of(const void *at, size_t size)
{
    return (struct bytes){.at = at, .size = size};
}

static inline struct bytes bytes_of_text(const char *text)
{
    return (struct bytes){.at = (const uint8_t *)text, .size = strlen(text)};
}

/* memcmp order, a prefix sorts first: the order of keys everywhere in the program. */
static inline int bytes_compare(struct bytes a, struct bytes b)
{
    size_t shared = a.size < b.size ? a.size : b.size;
    int order = shared == 0 ? 0 : memcmp(a.at, b.at, shared);
    if (order != 0) return order;
    return (a.size > b.size) - (a.size < b.size);
}

static inline bool bytes_equal(struct bytes a, struct bytes b)
{
    return a.size == b.size && (a.size == 0 || memcmp(a.at, b.at, a.size) == 0);
}

static inline bool bytes_have_prefix(struct bytes a, struct bytes prefix)
{
    return a.size >= prefix.size && (prefix.size == 0 || memcmp(a.at, prefix.at, prefix.size) == 0);
}

/* Little-endian scalars at any alignment: the byte order of every disk and wire format of ours. */
static inline uint16_t load_u16(const void *at)
{
    uint16_t v;
    memcpy(&v, at, sizeof v);
    return v;
}
static inline uint32_t load_u32(const void *at)
{
    uint32_t v;
    memcpy(&v, at, sizeof v);
    return v;
}
static inline uint64_t load_u64(const void *at)
{
    uint64_t v;
    memcpy(&v, at, sizeof v);
    return v;
}
static inline void store_u16(void *at, uint16_t v)
{
    memcpy(at, &v, sizeof v);
}
static inline void store_u32(void *at, uint32_t v)
{
    memcpy(at, &v, sizeof v);
}
static inline void store_u64(void *at, uint64_t v)
{
    memcpy(at, &v, sizeof v);
}
/* Big-endian, where memcmp order must equal numeric order. */
static inline uint16_t load_u16_be(const void *at)
{
    return __builtin_bswap16(load_u16(at));
}
static inline uint64_t load_u64_be(const void *at)
{
    return __builtin_bswap64(load_u64(at));
}
static inline void store_u16_be(void *at, uint16_t v)
{
    store_u16(at, __builtin_bswap16(v));
}
static inline void store_u64_be(void *at, uint64_t v)
{
    store_u64(at, __builtin_bswap64(v));
}

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "formats are little-endian");

static inline size_t round_up(size_t value, size_t unit)
{
    return (value + unit - 1) / unit * unit;
}

#endif
