#ifndef CLUSTER_ENVELOPE_H
#define CLUSTER_ENVELOPE_H

#include "base/bytes.h"
#include "base/err.h"
#include "base/io.h"

/* What travels between two nodes on the wire: an envelope of one fixed header, and frames behind it. Pure; sealing
 * and sending is the transport's (cluster/net_nng.c), and whom to believe is cluster/net_gate.h. The page with
 * the layout is docs/formats/wire.md. */

enum {
    ENVELOPE_SIZE = 96,
    ENVELOPE_PUBLIC_SIZE =
        72, /* of the header: what is authenticated as it stands; then the nonce */
    ENVELOPE_NONCE_SIZE = 24,
    ENVELOPE_TAG_SIZE = 16, /* behind the body of a sealed envelope */
    ENVELOPE_GREETING_SIZE = 16, /* body of hello and welcome: the sender's store id */
    ENVELOPE_FRAME_HEADER_SIZE = 8,
    ENVELOPE_BODY_MAX = NET_FRAME_MAX + ENVELOPE_FRAME_HEADER_SIZE,
    ENVELOPE_PACKET_MAX = ENVELOPE_SIZE + ENVELOPE_BODY_MAX + ENVELOPE_TAG_SIZE,
};

enum envelope_kind {
    ENVELOPE_HELLO = 1, /* first on every connection; seq is a nonce */
    ENVELOPE_WELCOME = 2, /* the answer, on the same connection; repeats the nonce */
    ENVELOPE_REFUSED_CLUSTER = 3, /* the other answers, with the nonce and no body */
    ENVELOPE_REFUSED_CLONE = 4,
    ENVELOPE_FRAMES = 5,
};

enum envelope_flags {
    ENVELOPE_JOIN = 1, /* the sender has no number and no cluster yet */
    ENVELOPE_SEALED = 2, /* encrypted and authenticated instead of summed */
};

struct envelope {
    uint8_t lane;
    uint8_t kind;
    uint8_t flags;
    uint8_t cluster_id[16];
    uint16_t from;
    uint16_t to; /* 0: whoever listens there */
    uint32_t count; /* of frames in the body */
    uint64_t from_boot;
    uint64_t to_boot; /* 0: not known */
    uint64_t incarnation;
    uint64_t seq; /* grows with every envelope of frames of a process on a lane */
    uint32_t body_size;
};

/* Writes the header with sum and nonce zero. */
void envelope_encode(const struct envelope *envelope, uint8_t at[ENVELOPE_SIZE]);
/* Puts the sum of an unsealed packet, header and body, into its header. */
void envelope_sum(uint8_t *packet, size_t size);
/* Reads and checks the header; the size of the packet must be exactly what it says. ERR_CORRUPT: no envelope of
 * ours; ERR_MISMATCH: of another version. The body is at packet.at + ENVELOPE_SIZE; neither sum nor seal nor body
 * is looked at. */
enum err envelope_decode(struct bytes packet, struct envelope *out) MUST_CHECK;
/* ERR_CORRUPT if the sum of an unsealed packet is wrong. `packet` was accepted by envelope_decode(). */
enum err envelope_check_sum(struct bytes packet) MUST_CHECK;
/* ERR_CORRUPT unless the body, opened, is what kind and count promise. */
enum err envelope_check_body(const struct envelope *envelope, struct bytes body) MUST_CHECK;

/* Bytes a frame of `size` takes in the body. */
static inline size_t envelope_frame_span(size_t size)
{
    return ENVELOPE_FRAME_HEADER_SIZE + round_up(size, 8);
}
/* Writes a frame of envelope_frame_span() bytes. */
void envelope_put_frame(uint8_t *at, struct bytes frame);
/* Takes the first frame off the body. ERR_NOT_FOUND: none is left; ERR_CORRUPT: no frame, and `rest` and
 * `frame_out` are as they were. */
enum err envelope_next_frame(struct bytes *rest, struct bytes *frame_out) MUST_CHECK;

#endif
