#ifndef CLUSTER_MAP_PLACE_H
#define CLUSTER_MAP_PLACE_H

#include "base/bytes.h"

/* Which nodes shall hold which range: a pure function of the committed map, the same on every node.
 * Base only.
 *
 * Each range has a ring of its own: a node stands on it at the hash of (range, number), and the
 * range takes the first nodes from its point on that have room: at most 1.1 times the average,
 * distinct zones first. One node more or less therefore moves little, and what a lost node held is
 * taken over by all others alike. */

enum { PLACE_NODES_MAX = 64, PLACE_REPLICAS_MAX = 7, PLACE_RANGES_MAX = 16384 };

struct place_range {
    uint16_t nodes[PLACE_REPLICAS_MAX]; /* in the order of preference */
    uint16_t leader; /* preferred; one of nodes; 0: there are no nodes */
    uint8_t count;
};

/* `numbers`: distinct, any order; zones[i]: equal for equal zones. out_ranges has ranges + 1
 * places: [0] is the meta group's, 3 voters, or 5 from five zones on, whatever `replicas` is; every
 * other node shall be its learner. With fewer nodes than replicas everybody has everything. About
 * ranges * nodes hashes: keep the result per epoch. */
void place(const uint16_t *numbers, const uint16_t *zones, uint32_t count, uint32_t ranges,
    uint32_t replicas, struct place_range *out_ranges);

#endif
