#include "base/buffer.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"

void buffer_deinit(struct buffer *buffer)
{
    free(buffer->at);
    *buffer = (struct buffer){0};
}

void *buffer_reserve(struct buffer *buffer, size_t more)
{
    ASSERT(buffer->head <= buffer->size && buffer->size <= buffer->capacity);
    if (buffer->capacity - buffer->size >= more) return buffer->at + buffer->size;
    size_t live = buffer->size - buffer->head;
    if (more > SIZE_MAX / 4 - live) {
        buffer->failed = true;
        return NULL;
    }
    /* slide before growing, if at least half of the memory is consumed already */
    if (buffer->head >= buffer->capacity / 2 && buffer->capacity - live >= more) {
        memmove(buffer->at, buffer->at + buffer->head, live);
    } else {
        size_t capacity = buffer->capacity < 64 ? 64 : buffer->capacity * 2;
        while (capacity < live + more)
            capacity *= 2;
        uint8_t *at = malloc(capacity);
        if (at == NULL) {
            buffer->failed = true;
            return NULL;
        }
        if (live > 0) memcpy(at, buffer->at + buffer->head, live);
        free(buffer->at);
        buffer->at = at;
        buffer->capacity = capacity;
    }
    buffer->head = 0;
    buffer->size = live;
    return buffer->at + buffer->size;
}

enum err buffer_append(struct buffer *buffer, const void *at, size_t size)
{
    void *target = buffer_reserve(buffer, size);
    if (target == NULL && size > 0) return ERR_NOMEM;
    if (size > 0) memcpy(target, at, size);
    buffer->size += size;
    return OK;
}

enum err buffer_vprintf(struct buffer *buffer, const char *format, va_list arguments)
{
    va_list again;
    va_copy(again, arguments);
    int length = vsnprintf(NULL, 0, format, arguments);
    ASSERT(length >= 0);
    char *target = buffer_reserve(buffer, (size_t)length + 1);
    if (target != NULL) {
        vsnprintf(target, (size_t)length + 1, format, again);
        buffer->size += (size_t)length;
    }
    va_end(again);
    return target == NULL ? ERR_NOMEM : OK;
}

enum err buffer_printf(struct buffer *buffer, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    enum err err = buffer_vprintf(buffer, format, arguments);
    va_end(arguments);
    return err;
}

void buffer_consume(struct buffer *buffer, size_t count)
{
    ASSERT(count <= buffer->size - buffer->head);
    buffer->head += count;
    if (buffer->head == buffer->size) buffer->head = buffer->size = 0;
}

void buffer_reset(struct buffer *buffer, size_t keep)
{
    if (buffer->capacity > keep) {
        buffer_deinit(buffer);
    } else {
        buffer->head = buffer->size = 0;
    }
}
