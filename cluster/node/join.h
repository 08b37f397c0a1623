#ifndef CLUSTER_NODE_JOIN_H
#define CLUSTER_NODE_JOIN_H

#include "base/bytes.h"
#include "base/io.h"

/* How a new node enters a cluster: it asks any running node, by its peer address, and is a member
 * when the meta group has committed its entry; then it knows its number, the cluster's id and
 * number of ranges, and can make its folder. A pure little machine over the network vtable;
 * repeated requests are harmless (the store id tells who asks). */

struct join_request {
    const char *const *seeds; /* "host:port" of peers, NULL-terminated */
    const char *name; /* "": made up from the number */
    const char *zone, *peer, *resp, *http; /* own addresses as others reach them */
    uint8_t store_id[16];
    bool replace; /* takes the place of a dead member of that name */
    /* this is member renew_number, whose folder was damaged, with a new folder: */
    uint16_t renew_number; /* 0: no */
    uint8_t renew_store_id[16];
    uint64_t incarnation; /* of the damaged folder's last start */
};

/* Question and answer on the wire. */
enum { JOIN_MESSAGE_MAX = 2048 };
struct join_question {
    uint8_t store_id[16], renew_store_id[16];
    uint64_t incarnation, boot;
    uint16_t renew_number;
    bool replace;
    char name[64], zone[64], peer[80], resp[80], http[80];
};
struct join_result;
size_t join_question_encode(uint8_t *at, const struct join_question *question);
enum err join_question_decode(struct bytes bytes, struct join_question *question_out) MUST_CHECK;
/* refused: only detail counts. */
size_t join_answer_encode(uint8_t *at, bool refused, const struct join_result *result);
enum err join_answer_decode(
    struct bytes bytes, bool *refused_out, struct join_result *result_out) MUST_CHECK;

/* Where members can be found: enough to reach the others before the member table has come. */
enum { JOIN_PEERS_MAX = 8 };
struct join_peer {
    uint16_t number;
    char address[80];
};

struct join_result {
    struct join_peer peers[JOIN_PEERS_MAX];
    uint32_t peer_count;
    uint8_t cluster_id[16];
    uint16_t number;
    uint32_t ranges;
    uint32_t replicas;
    char name[64];
    char detail[200]; /* why not, one sentence */
};

struct join {
    struct join_request request;
    const struct io *io;
    struct join_result result;
    bool done, refused;
    uint64_t ask_at_ns;
    uint32_t attempts;
};

void join_start(struct join *join, const struct io *io, const struct join_request *request);
/* From a loop every 10 ms or when woken: asks again when due and takes answers. OK: joined; ERR_AGAIN: not yet;
 * ERR_PERMISSION: refused, result.detail says why. */
enum err join_poll(struct join *join) MUST_CHECK;

#endif
