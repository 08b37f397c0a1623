#ifndef CLUSTER_MESSAGE_H
#define CLUSTER_MESSAGE_H

#include "base/buffer.h"
#include "base/bytes.h"

/* Messages between nodes, packed into the body of a frame: what the cores and the driver say to each other. The
 * frame around them (who sent it, its sequence number, its seal) is the transport's own (cluster/envelope.h). Pure.
 *
 * A message, little-endian, all of it a multiple of 8 bytes long:
 *
 *     0  u16  type   not 0
 *     2  u16  flags
 *     4  u32  group
 *     8  u32  size of the body
 *    12  u32  0
 *    16  body, then zeros up to the next multiple of 8
 *
 * A body begins at a multiple of 8 bytes from the begin of the frame's body. */

enum { MESSAGE_HEADER_SIZE = 16 };

struct message {
    uint16_t type;
    uint16_t flags;
    uint32_t group;
    struct bytes body; /* borrows from the frame */
};

/* Bytes a message with a body of `size` takes. */
static inline size_t message_size(size_t size)
{
    return MESSAGE_HEADER_SIZE + round_up(size, 8);
}

/* Appends a message with `size` zero bytes of body and returns where the body goes: valid until the next change of
 * `out`. NULL: no memory, `out` is as it was but for `failed`. */
uint8_t *message_add(struct buffer *out, uint16_t type, uint32_t group, size_t size) MUST_CHECK;

/* A message whose size is not known before: begin, then append the body to `out` piece by piece, then end. Returns
 * the mark for message_end(). A piece that finds no memory sets out->failed, which is looked at once, at the end. */
size_t message_begin(struct buffer *out, uint16_t type, uint32_t group);
/* ERR_NOMEM: some part found no memory since `out` was reset; the message begun is taken away again. */
enum err message_end(struct buffer *out, size_t mark) MUST_CHECK;

/* Takes the first message off `rest`. ERR_NOT_FOUND: nothing is left; ERR_CORRUPT: these are no messages, and `rest`
 * and `out` are as they were. */
enum err message_next(struct bytes *rest, struct message *out) MUST_CHECK;

#endif
