#include "cluster/message.h"

#include "base/check.h"

enum { TYPE = 0, FLAGS = 2, GROUP = 4, SIZE = 8, ZERO = 12 };

static void store_header(uint8_t *at, uint16_t type, uint32_t group, size_t size)
{
    ASSERT(size <= UINT32_MAX);
    store_u16(at + TYPE, type);
    store_u16(at + FLAGS, 0);
    store_u32(at + GROUP, group);
    store_u32(at + SIZE, (uint32_t)size);
    store_u32(at + ZERO, 0);
}

uint8_t *message_add(struct buffer *out, uint16_t type, uint32_t group, size_t size)
{
    ASSERT(type != 0);
    uint8_t *at = buffer_reserve(out, message_size(size));
    if (at == NULL) {
        out->failed = true;
        return NULL;
    }
    store_header(at, type, group, size);
    memset(at + MESSAGE_HEADER_SIZE, 0, message_size(size) - MESSAGE_HEADER_SIZE);
    buffer_wrote(out, message_size(size));
    return at + MESSAGE_HEADER_SIZE;
}

size_t message_begin(struct buffer *out, uint16_t type, uint32_t group)
{
    size_t mark =
        out->size - out->head; /* counted from the head: appending may move what is consumed */
    (void)!message_add(out, type, group, 0); /* out->failed says it too */
    return mark;
}

enum err message_end(struct buffer *out, size_t mark)
{
    static const uint8_t zeros[8];
    size_t live = out->size - out->head;
    ASSERT(mark <= live);
    if (!out->failed) {
        size_t size = live - mark - MESSAGE_HEADER_SIZE;
        ASSERT(live - mark >= MESSAGE_HEADER_SIZE);
        if (buffer_append(out, zeros, round_up(size, 8) - size) == OK) {
            store_u32(out->at + out->head + mark + SIZE, (uint32_t)size);
            ASSERT(size <= UINT32_MAX);
            return OK;
        }
    }
    out->size = out->head + mark;
    return ERR_NOMEM;
}

enum err message_next(struct bytes *rest, struct message *out)
{
    if (rest->size == 0) return ERR_NOT_FOUND;
    if (rest->size < MESSAGE_HEADER_SIZE) return ERR_CORRUPT;
    const uint8_t *at = rest->at;
    size_t size = load_u32(at + SIZE);
    if (load_u16(at + TYPE) == 0 || load_u32(at + ZERO) != 0) return ERR_CORRUPT;
    if (size > rest->size - MESSAGE_HEADER_SIZE) return ERR_CORRUPT;
    size_t whole = message_size(size);
    if (whole > rest->size) return ERR_CORRUPT;
    for (size_t i = MESSAGE_HEADER_SIZE + size; i < whole; i++) {
        if (at[i] != 0) return ERR_CORRUPT;
    }
    *out = (struct message){
        .type = load_u16(at + TYPE),
        .flags = load_u16(at + FLAGS),
        .group = load_u32(at + GROUP),
        .body = bytes_of(at + MESSAGE_HEADER_SIZE, size),
    };
    rest->at += whole;
    rest->size -= whole;
    return OK;
}
