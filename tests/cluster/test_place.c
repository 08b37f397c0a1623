#include <criterion/criterion.h>
#include <stdio.h>

#include "base/prng.h"
#include "cluster/map/place.h"

/* Placement as a list of properties, over many clusters. */

enum { RANGES_MOST = 1024 };

struct cluster {
    uint16_t numbers[PLACE_NODES_MAX], zones[PLACE_NODES_MAX];
    uint32_t count;
};

/* Nodes 1..count, with gaps where numbers were used up, dealt out to the zones in turn. */
static struct cluster cluster_of(uint32_t count, uint32_t zones, uint32_t gap)
{
    struct cluster cluster = {.count = count};
    for (uint32_t i = 0; i < count; i++) {
        cluster.numbers[i] = (uint16_t)(1 + i * gap);
        cluster.zones[i] = (uint16_t)(100 + i % zones);
    }
    return cluster;
}

static void place_all(
    const struct cluster *cluster, uint32_t ranges, uint32_t replicas, struct place_range *out)
{
    place(cluster->numbers, cluster->zones, cluster->count, ranges, replicas, out);
}

static uint32_t position_of(const struct cluster *cluster, uint16_t number)
{
    for (uint32_t i = 0; i < cluster->count; i++) {
        if (cluster->numbers[i] == number) return i;
    }
    cr_assert_fail("node %u is not in the cluster", number);
    return 0;
}

static bool holds(const struct place_range *range, uint16_t number)
{
    for (uint32_t i = 0; i < range->count; i++) {
        if (range->nodes[i] == number) return true;
    }
    return false;
}

static uint32_t zones_of(const struct cluster *cluster, const struct place_range *range)
{
    uint64_t seen = 0;
    for (uint32_t i = 0; i < range->count; i++)
        seen |= UINT64_C(1) << (cluster->zones[position_of(cluster, range->nodes[i])] % 64);
    return (uint32_t)__builtin_popcountll(seen);
}

static uint32_t zones_in(const struct cluster *cluster)
{
    uint64_t seen = 0;
    for (uint32_t i = 0; i < cluster->count; i++)
        seen |= UINT64_C(1) << (cluster->zones[i] % 64);
    return (uint32_t)__builtin_popcountll(seen);
}

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static void check_range(
    const struct cluster *cluster, const struct place_range *range, uint32_t replicas)
{
    cr_assert_eq(range->count, smaller(replicas, cluster->count));
    cr_assert(holds(range, range->leader), "the leader has the data");
    for (uint32_t i = 0; i < range->count; i++) {
        for (uint32_t j = i + 1; j < range->count; j++)
            cr_assert_neq(range->nodes[i], range->nodes[j]);
    }
    cr_assert_eq(zones_of(cluster, range), smaller(range->count, zones_in(cluster)),
        "as many zones as there can be");
}

static void loads_of(const struct cluster *cluster, const struct place_range *out, uint32_t ranges,
    uint32_t *most_replicas_out, uint32_t *most_leads_out)
{
    uint32_t load[PLACE_NODES_MAX] = {0}, leads[PLACE_NODES_MAX] = {0};
    *most_replicas_out = *most_leads_out = 0;
    for (uint32_t r = 1; r <= ranges; r++) {
        for (uint32_t i = 0; i < out[r].count; i++) {
            uint32_t node = position_of(cluster, out[r].nodes[i]);
            if (++load[node] > *most_replicas_out) *most_replicas_out = load[node];
        }
        uint32_t node = position_of(cluster, out[r].leader);
        if (++leads[node] > *most_leads_out) *most_leads_out = leads[node];
    }
}

static uint32_t moves_between(
    const struct place_range *before, const struct place_range *after, uint32_t ranges)
{
    uint32_t moves = 0;
    for (uint32_t r = 1; r <= ranges; r++) {
        for (uint32_t i = 0; i < after[r].count; i++)
            moves += !holds(&before[r], after[r].nodes[i]);
    }
    return moves;
}

/* A power of two, at least 64 and at least eight for each node. */
static uint32_t ranges_for(uint32_t count)
{
    uint32_t ranges = 64;
    while (ranges < 8 * count)
        ranges *= 2;
    return ranges;
}

static struct place_range here[RANGES_MOST + 1], there[RANGES_MOST + 1];

Test(place, every_range_has_its_replicas_in_as_many_zones_as_there_are)
{
    struct prng prng;
    prng_init(&prng, 1);
    for (int round = 0; round < 400; round++) {
        uint32_t count = 1 + (uint32_t)prng_below(&prng, PLACE_NODES_MAX);
        struct cluster cluster = cluster_of(count, 1, 1 + (uint32_t)prng_below(&prng, 900));
        uint32_t zones = 1 + (uint32_t)prng_below(&prng, 8);
        for (uint32_t i = 0; i < count; i++)
            cluster.zones[i] = (uint16_t)prng_below(&prng, 1 + prng_below(&prng, zones));
        uint32_t replicas = 1 + (uint32_t)prng_below(&prng, PLACE_REPLICAS_MAX);
        uint32_t ranges = 1u << prng_below(&prng, 8);
        place_all(&cluster, ranges, replicas, here);
        for (uint32_t r = 1; r <= ranges; r++)
            check_range(&cluster, &here[r], replicas);
        check_range(&cluster, &here[0], zones_in(&cluster) >= 5 ? 5 : 3);
    }
}

Test(place, the_order_in_which_nodes_are_named_does_not_matter)
{
    struct prng prng;
    prng_init(&prng, 2);
    struct cluster cluster = cluster_of(17, 4, 7), shuffled = cluster;
    place_all(&cluster, 256, 3, here);
    for (int round = 0; round < 20; round++) {
        for (uint32_t i = 0; i < shuffled.count; i++) {
            uint32_t j = (uint32_t)prng_below(&prng, shuffled.count);
            uint16_t number = shuffled.numbers[i], zone = shuffled.zones[i];
            shuffled.numbers[i] = shuffled.numbers[j];
            shuffled.zones[i] = shuffled.zones[j];
            shuffled.numbers[j] = number;
            shuffled.zones[j] = zone;
        }
        /* what zones are called does not matter either */
        for (uint32_t i = 0; i < shuffled.count; i++)
            shuffled.zones[i] = (uint16_t)(shuffled.zones[i] * 3 + 1);
        place_all(&shuffled, 256, 3, there);
        for (uint32_t r = 0; r <= 256; r++) {
            cr_assert_eq(memcmp(here[r].nodes, there[r].nodes, sizeof here[r].nodes), 0);
            cr_assert_eq(here[r].leader, there[r].leader);
        }
    }
}

/* Nodes of one version and the next must agree: a change here moves data in every cluster there is. */
Test(place, the_result_is_the_one_of_all_versions)
{
    struct cluster cluster = cluster_of(5, 1, 1);
    place_all(&cluster, 64, 3, here);
    uint64_t sum = 0;
    for (uint32_t r = 0; r <= 64; r++) {
        for (uint32_t i = 0; i < here[r].count; i++)
            sum = sum * 31 + here[r].nodes[i];
        sum = sum * 31 + here[r].leader;
    }
    cr_assert_eq(sum, UINT64_C(2458508201087383585), "%llu", (unsigned long long)sum);
}

Test(place, with_no_more_nodes_than_replicas_everybody_has_everything)
{
    for (uint32_t count = 1; count <= 3; count++) {
        struct cluster cluster = cluster_of(count, 1, 1);
        place_all(&cluster, 64, 3, here);
        for (uint32_t r = 0; r <= 64; r++)
            cr_assert_eq(here[r].count, count);
        uint32_t most, most_leads;
        loads_of(&cluster, here, 64, &most, &most_leads);
        cr_assert_leq(most_leads * count * 100, 64u * 116u, "%u of 64 led by one", most_leads);
    }
    struct cluster nobody = {.count = 0};
    place_all(&nobody, 64, 3, here);
    cr_assert_eq(here[1].count, 0);
    cr_assert_eq(here[1].leader, 0);
}

Test(place, loads_are_within_their_bounds)
{
    double worst = 0, worst_leads = 0;
    for (uint32_t count = 3; count <= PLACE_NODES_MAX; count++) {
        for (uint32_t zones = 1; zones <= 5; zones++) {
            if (count % zones != 0) continue;
            for (uint32_t gap = 1; gap <= 3; gap++) {
                struct cluster cluster = cluster_of(count, zones, gap);
                uint32_t ranges = ranges_for(count), most, most_leads;
                place_all(&cluster, ranges, 3, here);
                loads_of(&cluster, here, ranges, &most, &most_leads);
                double replicas = most * (double)count / (ranges * 3);
                double leads = most_leads * (double)count / ranges;
                cr_expect_leq(replicas, 1.15, "%u nodes, %u zones: %g", count, zones, replicas);
                cr_expect_leq(leads, 1.2, "%u nodes, %u zones: %g leads", count, zones, leads);
                if (replicas > worst) worst = replicas;
                if (leads > worst_leads) worst_leads = leads;
            }
        }
    }
    printf("load: %.3f of the mean at most, leaders %.3f\n", worst, worst_leads);
}

/* Few ranges for many nodes: whole ranges are the grain, so the bound is the rounded one. */
Test(place, with_few_ranges_the_bound_is_the_next_whole_one)
{
    for (uint32_t count = 4; count <= PLACE_NODES_MAX; count++) {
        struct cluster cluster = cluster_of(count, 1, 1);
        uint32_t most, most_leads;
        place_all(&cluster, 64, 3, here);
        loads_of(&cluster, here, 64, &most, &most_leads);
        cr_expect_leq(most, (64 * 3 * 11 + count * 10 - 1) / (count * 10), "%u nodes", count);
        cr_expect_leq(most_leads, smaller(64, 64 / count + 2), "%u nodes", count);
    }
}

Test(place, zones_of_unequal_size_share_what_is_not_dictated)
{
    /* one zone of 1, one of 2, one of 6: with three replicas each zone has every range once */
    struct cluster cluster = cluster_of(9, 1, 1);
    static const uint16_t zones[] = {1, 2, 2, 3, 3, 3, 3, 3, 3};
    memcpy(cluster.zones, zones, sizeof zones);
    uint32_t load[9] = {0};
    place_all(&cluster, 256, 3, here);
    for (uint32_t r = 1; r <= 256; r++) {
        for (uint32_t i = 0; i < 3; i++)
            load[position_of(&cluster, here[r].nodes[i])]++;
    }
    cr_assert_eq(load[0], 256);
    for (uint32_t i = 1; i <= 2; i++)
        cr_expect_leq(load[i], 141, "%u", load[i]);
    for (uint32_t i = 3; i <= 8; i++)
        cr_expect_leq(load[i], 47, "%u", load[i]);
    /* two zones for three replicas: the single node has all, the rest is shared */
    for (uint32_t i = 1; i < 9; i++)
        cluster.zones[i] = 2;
    memset(load, 0, sizeof load);
    place_all(&cluster, 256, 3, here);
    for (uint32_t r = 1; r <= 256; r++) {
        for (uint32_t i = 0; i < 3; i++)
            load[position_of(&cluster, here[r].nodes[i])]++;
    }
    cr_assert_eq(load[0], 256);
    for (uint32_t i = 1; i <= 8; i++)
        cr_expect_leq(load[i], 71, "%u", load[i]);
}

Test(place, one_node_more_or_less_moves_little)
{
    double worst = 0, sum = 0;
    uint32_t cases = 0;
    for (uint32_t count = 4; count < PLACE_NODES_MAX; count++) {
        for (uint32_t zones = 1; zones <= 3; zones += 2) {
            for (uint32_t gap = 1; gap <= 2; gap++) {
                /* beside a power of two the number of ranges stays */
                uint32_t ranges = ranges_for(count + 1);
                struct cluster fewer = cluster_of(count, zones, gap);
                struct cluster more = cluster_of(count + 1, zones, gap);
                place_all(&fewer, ranges, 3, here);
                place_all(&more, ranges, 3, there);
                double ideal = ranges * 3.0 / (count + 1);
                double added = moves_between(here, there, ranges) / ideal;
                double removed = moves_between(there, here, ranges) / ideal;
                cr_expect_leq(
                    added, 1.9, "%u nodes and one more, %u zones: %g", count, zones, added);
                cr_expect_leq(removed, 1.9, "%u nodes, one less: %g", count + 1, removed);
                worst = added > worst ? added : worst;
                worst = removed > worst ? removed : worst;
                sum += added;
                cases++;
            }
        }
    }
    printf("moves: %.2f of the ideal at most, %.2f on average\n", worst, sum / cases);
}

Test(place, a_lost_node_is_taken_over_by_all_others)
{
    struct cluster cluster = cluster_of(9, 1, 1), rest = cluster;
    rest.count = 8;
    place_all(&cluster, 256, 3, here);
    place_all(&rest, 256, 3, there);
    uint32_t more[9] = {0};
    for (uint32_t r = 1; r <= 256; r++) {
        for (uint32_t i = 0; i < 3; i++) {
            if (!holds(&here[r], there[r].nodes[i])) more[position_of(&rest, there[r].nodes[i])]++;
        }
    }
    for (uint32_t i = 0; i < 8; i++)
        cr_expect_gt(more[i], 2, "node %u takes %u", i + 1, more[i]);
}

Test(place, the_meta_group_has_three_voters_or_five_from_five_zones_on)
{
    for (uint32_t zones = 1; zones <= 7; zones++) {
        struct cluster cluster = cluster_of(14, zones, 1);
        place_all(&cluster, 64, 1, here);
        cr_assert_eq(here[0].count, zones >= 5 ? 5 : 3);
        cr_assert_eq(zones_of(&cluster, &here[0]), smaller(here[0].count, zones));
    }
}

Test(place, the_largest_cluster_is_placed)
{
    static struct place_range all[PLACE_RANGES_MAX + 1];
    struct cluster cluster = cluster_of(PLACE_NODES_MAX, 4, 1000);
    place_all(&cluster, PLACE_RANGES_MAX, PLACE_REPLICAS_MAX, all);
    uint32_t most, most_leads;
    loads_of(&cluster, all, PLACE_RANGES_MAX, &most, &most_leads);
    cr_assert_leq(most, 1972); /* 1.1 times the mean of 1792 */
    cr_assert_leq(most_leads, 294);
}
