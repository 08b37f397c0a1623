#ifndef CLUSTER_MAP_MAP_H
#define CLUSTER_MAP_MAP_H

#include "base/bytes.h"

/* Where a key lives. Pure functions; base only.
 *
 * A key's slot is Redis Cluster's: CRC16/XMODEM of the hash tag (the bytes between the first '{' and
 * the next '}', if not empty) or of the whole key, mod 16384. The slots are cut into a power of two
 * of equal arcs, the ranges; range ids count from 1, range 0 is the system's. */

enum { MAP_SLOTS = 16384, MAP_RANGES_MAX = 16384 };

uint16_t map_slot(struct bytes key);
/* `ranges` is a power of two <= MAP_RANGES_MAX. */
uint16_t map_range(struct bytes key, uint32_t ranges);
/* True if `ranges` is a legal number of ranges. */
int map_ranges_valid(uint32_t ranges);

#endif
