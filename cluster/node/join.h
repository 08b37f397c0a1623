#ifndef CLUSTER_NODE_JOIN_H
#define CLUSTER_NODE_JOIN_H

#include "base/io.h"

/* How a new node enters a cluster: it asks any running node, by its peer address, and is a member when the meta group
 * has committed its entry; then it knows its number, the cluster's id and number of ranges, and can make its folder. A
 * pure little machine over the network vtable; repeated requests are harmless (the store id tells who asks). */

struct join_request {
    const char *const *seeds; /* "host:port" of peers, NULL-terminated */
    const char *name; /* "": made up from the number */
    const char *zone, *peer, *resp, *http; /* own addresses as others reach them */
    uint8_t store_id[16];
    bool replace; /* takes the place of a dead member of that name */
};

struct join_result {
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
