#ifndef CLUSTER_SWIM_WIRE_H
#define CLUSTER_SWIM_WIRE_H

#include <stdint.h>

#include "base/bytes.h"
#include "base/err.h"

/* Messages of the failure detector, little-endian:
 *
 *    0 u8  version, 1         8 u64 the sender's own incarnation
 *    1 u8  type              16 u16 target
 *    2 u8  own state         18 u16 0
 *    3 u8  count             20 count updates of 14 bytes:
 *    4 u32 sequence             u16 node, u16 accuser, u8 state, u8 0, u64 incarnation
 *
 * The target is whom the message is about: PING and GOSSIP the receiver, PING_REQ who shall be probed,
 * ACK and NACK who was. The accuser is one whose probe failed; 0 where the state is not SUSPECT. What
 * decodes encodes to the same bytes again. */

enum swim_type { SWIM_PING = 1, SWIM_ACK, SWIM_PING_REQ, SWIM_NACK, SWIM_GOSSIP };

enum {
    SWIM_WIRE_VERSION = 1,
    SWIM_HEADER_BYTES = 20,
    SWIM_UPDATE_BYTES = 14,
    SWIM_UPDATES_MAX = 84,
};

struct swim_update {
    uint16_t node, accuser;
    uint8_t state; /* enum swim_state */
    uint64_t incarnation;
};

struct swim_wire {
    uint8_t type; /* enum swim_type */
    uint8_t state; /* of the sender: SWIM_ALIVE or SWIM_LEFT */
    uint8_t count;
    uint16_t target;
    uint32_t sequence;
    uint64_t incarnation;
    struct swim_update updates[SWIM_UPDATES_MAX];
};

/* Writes the message to `at`, which has room for SWIM_MESSAGE_MAX bytes; returns its size. */
uint16_t swim_wire_encode(uint8_t *at, const struct swim_wire *wire);
/* ERR_CORRUPT if it is not well-formed; *wire_out is undefined then. */
enum err swim_wire_decode(struct bytes bytes, struct swim_wire *wire_out) MUST_CHECK;

#endif
