#ifndef BASE_BUFFER_H
#define BASE_BUFFER_H

#include <stdarg.h>

#include "base/bytes.h"
#include "base/err.h"

/* A growable byte buffer that owns its memory. Zero-initialised is empty and valid.
 * `head` bytes at the front are consumed already; live bytes are at[head .. size). */
struct buffer {
    uint8_t *at;
    size_t head;
    size_t size;
    size_t capacity;
    bool failed; /* an append found no memory: for writers that check once, at the end */
};

/* Frees the memory; the buffer is empty and usable again. */
void buffer_deinit(struct buffer *buffer);
/* Makes room for `more` bytes after the end (may move what was there) and returns where they go,
 * or NULL if there is no memory. Call buffer_wrote() with what was really written. */
void *buffer_reserve(struct buffer *buffer, size_t more);
/* Appends; ERR_NOMEM leaves the buffer as it was. */
enum err buffer_append(struct buffer *buffer, const void *at, size_t size) MUST_CHECK;
/* Appends printf-formatted text, without the final NUL. */
enum err buffer_printf(struct buffer *buffer, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
enum err buffer_vprintf(struct buffer *buffer, const char *format, va_list arguments);
/* Drops `count` live bytes from the front. */
void buffer_consume(struct buffer *buffer, size_t count);
/* Forgets the content; frees the memory if it is more than `keep` bytes. */
void buffer_reset(struct buffer *buffer, size_t keep);

static inline void buffer_wrote(struct buffer *buffer, size_t size)
{
    buffer->size += size;
}

static inline struct bytes buffer_view(const struct buffer *buffer)
{
    return bytes_of(buffer->at + buffer->head, buffer->size - buffer->head);
}

#endif
