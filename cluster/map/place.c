#include "cluster/map/place.h"

#include "base/check.h"
#include "base/hash.h"

/* Bounded loads on a ring (Mirrokni, Thorup, Zadimoghaddam 2018), with two changes.
 *
 * A ring of its own for every range, which is the order of rendezvous hashing, instead of one for
 * all: on one ring a lost node's ranges all fall to its next neighbours, whose own bound then
 * pushes ranges further; here they fall to all others alike, and the bound rarely has to push at
 * all, which is what keeps the moves few.
 *
 * Zones of unequal size cannot all have the same load: if a range must have a replica in each of
 * three zones, the one node of the smallest zone holds every range. So the average that the bound
 * refers to is that of the zones whose share is not dictated: fill_level() leaves the others out,
 * one after the other. */

enum { LOAD_PERCENT = 110, LEADER_PERCENT = 115, RELIEF_MAX = 512 };

struct placing {
    uint32_t count, ranges, replicas;
    uint16_t number[PLACE_NODES_MAX]; /* sorted */
    uint16_t zone[PLACE_NODES_MAX]; /* 0 .. zone_count - 1 */
    uint32_t zone_count;
    uint32_t zone_nodes[PLACE_NODES_MAX];
    uint32_t cap[PLACE_NODES_MAX]; /* of ranges a node takes */
    uint32_t load[PLACE_NODES_MAX];
    uint32_t leads[PLACE_NODES_MAX];
    struct place_range *out;
};

/* One range's choice. Sets of nodes and of zones are bit masks. */
struct choice {
    uint16_t order[PLACE_NODES_MAX];
    uint64_t nodes, zones;
    uint32_t wanted, wanted_zones;
    struct place_range *range;
};

static uint64_t bit(uint32_t index)
{
    return UINT64_C(1) << index;
}

static void sort_nodes(struct placing *placing, const uint16_t *numbers, const uint16_t *zones)
{
    uint16_t zone_name[PLACE_NODES_MAX];
    uint16_t named[PLACE_NODES_MAX];
    for (uint32_t i = 0; i < placing->count; i++) {
        uint32_t at = i;
        for (; at > 0 && placing->number[at - 1] > numbers[i]; at--) {
            placing->number[at] = placing->number[at - 1];
            named[at] = named[at - 1];
        }
        ASSERT(numbers[i] != 0);
        ASSERT_IF(at > 0, placing->number[at - 1] != numbers[i]);
        placing->number[at] = numbers[i];
        named[at] = zones[i];
    }
    for (uint32_t i = 0; i < placing->count; i++) {
        uint32_t zone = 0;
        while (zone < placing->zone_count && zone_name[zone] != named[i])
            zone++;
        if (zone == placing->zone_count) zone_name[placing->zone_count++] = named[i];
        placing->zone[i] = (uint16_t)zone;
        placing->zone_nodes[zone]++;
    }
}

/* LOAD_PERCENT of total / parts, rounded down for some nodes and up for others, for each always at
 * the same fraction: when the average sinks because a node is added, the bounds sink one after the
 * other and not all at once. */
static uint32_t bound_of(uint64_t total, uint64_t parts, uint16_t number)
{
    uint8_t text[2];
    store_u16(text, number);
    uint64_t unit = parts * 100, fraction = hash64(0, bytes_of(text, sizeof text)) % 1000;
    return (uint32_t)((total * LOAD_PERCENT + unit * fraction / 1000) / unit);
}

/* What a node may hold. */
static void fill_level(struct placing *placing)
{
    uint64_t ranges = placing->ranges, left = ranges * placing->replicas, nodes = placing->count;
    bool scarce = placing->zone_count < placing->replicas; /* then every zone has all ranges */
    uint64_t dictated = 0;
    for (bool again = true; again && nodes > 0;) {
        again = false;
        for (uint32_t zone = 0; zone < placing->zone_count && nodes > 0; zone++) {
            uint64_t share = placing->zone_nodes[zone] * left;
            bool beyond = scarce ? share < ranges * nodes : share > ranges * nodes;
            if ((dictated & bit(zone)) != 0 || !beyond) continue;
            dictated |= bit(zone);
            left -= ranges;
            nodes -= placing->zone_nodes[zone];
            again = true;
        }
    }
    for (uint32_t i = 0; i < placing->count; i++) {
        uint32_t zone = placing->zone[i];
        bool fixed = (dictated & bit(zone)) != 0;
        placing->cap[i] = bound_of(
            fixed ? ranges : left, fixed ? placing->zone_nodes[zone] : nodes, placing->number[i]);
    }
}

/* The nodes in the order in which they stand on this range's ring. */
static void ring_order(const struct placing *placing, uint32_t range, uint16_t *order_out)
{
    uint64_t position[PLACE_NODES_MAX];
    for (uint32_t i = 0; i < placing->count; i++) {
        uint8_t text[8] = {0};
        store_u32(text, range);
        store_u16(text + 4, placing->number[i]);
        uint64_t here = hash64(0, bytes_of(text, sizeof text));
        uint32_t at = i;
        for (; at > 0 && position[at - 1] > here; at--) {
            position[at] = position[at - 1];
            order_out[at] = order_out[at - 1];
        }
        position[at] = here;
        order_out[at] = (uint16_t)i;
    }
}

static bool has_room(const struct placing *placing, uint32_t node)
{
    return placing->load[node] < placing->cap[node];
}

static bool eligible(const struct placing *placing, const struct choice *choice, uint32_t node)
{
    if ((choice->nodes & bit(node)) != 0) return false;
    return choice->range->count >= choice->wanted_zones ||
        (choice->zones & bit(placing->zone[node])) == 0;
}

static void take(struct placing *placing, struct choice *choice, uint32_t node)
{
    ASSERT((choice->nodes & bit(node)) == 0);
    choice->nodes |= bit(node);
    choice->zones |= bit(placing->zone[node]);
    choice->range->nodes[choice->range->count++] = placing->number[node];
    placing->load[node]++;
}

static uint32_t index_of(const struct placing *placing, uint16_t number)
{
    uint32_t low = 0, high = placing->count;
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if (placing->number[middle] <= number) {
            low = middle;
        } else {
            high = middle;
        }
    }
    ASSERT(placing->number[low] == number);
    return low;
}

/* Somebody with room who could stand in for `node` in a range without its zones becoming fewer;
 * else count. */
static uint32_t stand_in(
    const struct placing *placing, const struct place_range *range, uint32_t node)
{
    uint64_t nodes = 0, zones = 0;
    for (uint32_t i = 0; i < range->count; i++) {
        uint32_t other = index_of(placing, range->nodes[i]);
        nodes |= bit(other);
        if (other != node) zones |= bit(placing->zone[other]);
    }
    bool doubled = (zones & bit(placing->zone[node])) != 0;
    for (uint32_t i = 0; i < placing->count; i++) {
        if ((nodes & bit(i)) != 0 || !has_room(placing, i)) continue;
        if (doubled || (zones & bit(placing->zone[i])) == 0) return i;
    }
    return placing->count;
}

/* Everybody suitable is full: one of them gives an earlier range to somebody who is not. */
static uint32_t relieve(struct placing *placing, const struct choice *choice)
{
    uint32_t current = (uint32_t)(choice->range - placing->out);
    uint32_t from = current > RELIEF_MAX ? current - RELIEF_MAX : 1;
    for (uint32_t i = 0; i < placing->count; i++) {
        uint32_t node = choice->order[i];
        if (!eligible(placing, choice, node)) continue;
        for (uint32_t r = from; r < current; r++) {
            struct place_range *range = &placing->out[r];
            uint32_t at = 0;
            while (at < range->count && range->nodes[at] != placing->number[node])
                at++;
            if (at == range->count) continue;
            uint32_t other = stand_in(placing, range, node);
            if (other == placing->count) continue;
            range->nodes[at] = placing->number[other];
            placing->load[other]++;
            placing->load[node]--;
            return node;
        }
    }
    return placing->count;
}

static uint32_t least_loaded(const struct placing *placing, const struct choice *choice)
{
    uint32_t best = placing->count;
    for (uint32_t i = 0; i < placing->count; i++) {
        uint32_t node = choice->order[i];
        if (!eligible(placing, choice, node)) continue;
        if (best == placing->count || placing->load[node] < placing->load[best]) best = node;
    }
    ASSERT(best < placing->count);
    return best;
}

static void place_one(struct placing *placing, uint32_t index)
{
    struct choice choice = {.range = &placing->out[index], .wanted = placing->replicas};
    choice.wanted_zones = placing->zone_count < choice.wanted ? placing->zone_count : choice.wanted;
    if (PLANTED_BUG(52)) choice.wanted_zones = 0;
    ring_order(placing, index, choice.order);
    while (choice.range->count < choice.wanted) {
        uint32_t node = placing->count;
        for (uint32_t i = 0; i < placing->count && node == placing->count; i++) {
            uint32_t other = choice.order[i];
            if (eligible(placing, &choice, other) && has_room(placing, other)) node = other;
        }
        if (node == placing->count) node = relieve(placing, &choice);
        if (node == placing->count) node = least_loaded(placing, &choice);
        take(placing, &choice, node);
    }
}

/* The meta group is small and for all: its load does not count. */
static void place_meta(const struct placing *placing)
{
    struct placing alone = *placing;
    alone.replicas = placing->zone_count >= 5 ? 5 : 3;
    if (alone.replicas > alone.count) alone.replicas = alone.count;
    for (uint32_t zone = 0; zone < alone.zone_count; zone++)
        alone.cap[zone] = UINT32_MAX;
    place_one(&alone, 0);
    placing->out[0].leader = placing->out[0].nodes[0];
}

/* A leader of another range, all of whose nodes lead enough, steps back for this one. */
static uint32_t relieve_leader(struct placing *placing, uint32_t index, uint32_t cap)
{
    struct place_range *range = &placing->out[index];
    uint32_t from = index > RELIEF_MAX ? index - RELIEF_MAX : 1;
    for (uint32_t i = 0; i < range->count; i++) {
        for (uint32_t r = from; r < index; r++) {
            struct place_range *other = &placing->out[r];
            if (other->leader != range->nodes[i]) continue;
            for (uint32_t j = 0; j < other->count; j++) {
                uint32_t node = index_of(placing, other->nodes[j]);
                if (placing->leads[node] >= cap) continue;
                placing->leads[node]++;
                placing->leads[index_of(placing, other->leader)]--;
                other->leader = other->nodes[j];
                return index_of(placing, range->nodes[i]);
            }
        }
    }
    return placing->count;
}

static void choose_leaders(struct placing *placing)
{
    uint32_t cap = (placing->ranges + placing->count - 1) / placing->count;
    uint32_t loose = placing->ranges * LEADER_PERCENT / (placing->count * 100);
    if (loose > cap) cap = loose;
    for (uint32_t r = 1; r <= placing->ranges; r++) {
        struct place_range *range = &placing->out[r];
        uint32_t least = index_of(placing, range->nodes[0]), node = placing->count;
        for (uint32_t i = 0; i < range->count && node == placing->count; i++) {
            uint32_t other = index_of(placing, range->nodes[i]);
            if (placing->leads[other] < placing->leads[least]) least = other;
            if (placing->leads[other] < cap) node = other;
        }
        if (node == placing->count) node = relieve_leader(placing, r, cap);
        if (node == placing->count) node = least;
        placing->leads[node]++;
        range->leader = placing->number[node];
    }
}

void place(const uint16_t *numbers, const uint16_t *zones, uint32_t count, uint32_t ranges,
    uint32_t replicas, struct place_range *out_ranges)
{
    ASSERT(count <= PLACE_NODES_MAX);
    ASSERT(ranges >= 1 && ranges <= PLACE_RANGES_MAX);
    ASSERT(replicas >= 1 && replicas <= PLACE_REPLICAS_MAX);
    memset(out_ranges, 0, (ranges + 1) * sizeof *out_ranges);
    if (count == 0) return;
    struct placing placing = {.count = count,
        .ranges = ranges,
        .replicas = replicas < count ? replicas : count,
        .out = out_ranges};
    sort_nodes(&placing, numbers, zones);
    fill_level(&placing);
    place_meta(&placing);
    for (uint32_t r = 1; r <= ranges; r++)
        place_one(&placing, r);
    choose_leaders(&placing);
}
