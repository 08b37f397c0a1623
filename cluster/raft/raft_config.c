#include "cluster/raft/raft_internal.h"

#include <string.h>

/* Who is in the group. An entry's payload: version 1, the three counts, then the nodes as u16. */

enum { CONFIG_VERSION = 1, CONFIG_HEADER = 4 };

static bool contains(const raft_node *nodes, size_t count, raft_node node)
{
    for (size_t i = 0; i < count; i++) {
        if (nodes[i] == node) return true;
    }
    return false;
}

static bool is_sorted_set(const raft_node *nodes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (nodes[i] == 0 || (i > 0 && nodes[i - 1] >= nodes[i])) return false;
    }
    return true;
}

static bool same_set(const raft_node *a, size_t a_count, const raft_node *b, size_t b_count)
{
    return a_count == b_count && (a_count == 0 || memcmp(a, b, a_count * sizeof *a) == 0);
}

bool raft_config_is_voter(const struct raft_config *config, raft_node node)
{
    return contains(config->voters, config->voter_count, node) ||
        contains(config->old_voters, config->old_count, node);
}

bool raft_config_is_learner(const struct raft_config *config, raft_node node)
{
    return contains(config->learners, config->learner_count, node);
}

bool raft_config_equal(const struct raft_config *a, const struct raft_config *b)
{
    return same_set(a->voters, a->voter_count, b->voters, b->voter_count) &&
        same_set(a->old_voters, a->old_count, b->old_voters, b->old_count) &&
        same_set(a->learners, a->learner_count, b->learners, b->learner_count);
}

bool raft_config_valid(const struct raft_config *config)
{
    if (config->voter_count == 0 || config->voter_count > RAFT_VOTERS_MAX) return false;
    if (config->old_count > RAFT_VOTERS_MAX || config->learner_count > RAFT_LEARNERS_MAX) {
        return false;
    }
    if (!is_sorted_set(config->voters, config->voter_count)) return false;
    if (!is_sorted_set(config->old_voters, config->old_count)) return false;
    if (!is_sorted_set(config->learners, config->learner_count)) return false;
    for (size_t i = 0; i < config->learner_count; i++) {
        if (raft_config_is_voter(config, config->learners[i])) return false;
    }
    return true;
}

static uint8_t *put_nodes(uint8_t *at, const raft_node *nodes, size_t count)
{
    for (size_t i = 0; i < count; i++, at += sizeof *nodes) {
        store_u16(at, nodes[i]);
    }
    return at;
}

static const uint8_t *get_nodes(const uint8_t *at, raft_node *nodes, size_t count)
{
    for (size_t i = 0; i < count; i++, at += sizeof *nodes) {
        nodes[i] = load_u16(at);
    }
    return at;
}

size_t raft_config_encode(uint8_t *at, const struct raft_config *config)
{
    ASSERT(raft_config_valid(config));
    at[0] = CONFIG_VERSION;
    at[1] = config->voter_count;
    at[2] = config->old_count;
    at[3] = config->learner_count;
    uint8_t *end = put_nodes(at + CONFIG_HEADER, config->voters, config->voter_count);
    end = put_nodes(end, config->old_voters, config->old_count);
    end = put_nodes(end, config->learners, config->learner_count);
    ASSERT(end <= at + RAFT_CONFIG_BYTES_MAX);
    return (size_t)(end - at);
}

enum err raft_config_decode(struct bytes bytes, struct raft_config *config_out)
{
    if (bytes.size < CONFIG_HEADER || bytes.at[0] != CONFIG_VERSION) return ERR_CORRUPT;
    struct raft_config config = {0};
    config.voter_count = bytes.at[1];
    config.old_count = bytes.at[2];
    config.learner_count = bytes.at[3];
    if (config.voter_count > RAFT_VOTERS_MAX || config.old_count > RAFT_VOTERS_MAX ||
        config.learner_count > RAFT_LEARNERS_MAX) {
        return ERR_CORRUPT;
    }
    size_t nodes = (size_t)config.voter_count + config.old_count + config.learner_count;
    if (bytes.size != CONFIG_HEADER + nodes * sizeof(raft_node)) return ERR_CORRUPT;
    const uint8_t *at = get_nodes(bytes.at + CONFIG_HEADER, config.voters, config.voter_count);
    at = get_nodes(at, config.old_voters, config.old_count);
    get_nodes(at, config.learners, config.learner_count);
    if (!raft_config_valid(&config)) return ERR_CORRUPT;
    *config_out = config;
    return OK;
}

static bool majority_in(
    const raft_node *nodes, size_t count, bool (*has)(void *ctx, raft_node node), void *ctx)
{
    size_t yes = 0;
    for (size_t i = 0; i < count; i++) {
        yes += has(ctx, nodes[i]);
    }
    return yes > count / 2;
}

bool raft_config_majority(
    const struct raft_config *config, bool (*has)(void *ctx, raft_node node), void *ctx)
{
    if (!majority_in(config->voters, config->voter_count, has, ctx)) return false;
    if (config->old_count == 0 || PLANTED_BUG(33)) return true;
    return majority_in(config->old_voters, config->old_count, has, ctx);
}

static uint64_t reached_in(const raft_node *nodes, size_t count,
    uint64_t (*value_of)(const struct raft *raft, raft_node node), const struct raft *raft)
{
    uint64_t sorted[RAFT_VOTERS_MAX + RAFT_LEARNERS_MAX];
    for (size_t i = 0; i < count; i++) {
        uint64_t value = value_of(raft, nodes[i]);
        size_t at = i;
        for (; at > 0 && sorted[at - 1] < value; at--) {
            sorted[at] = sorted[at - 1];
        }
        sorted[at] = value;
    }
    return count == 0 ? 0 : sorted[count / 2];
}

uint64_t raft_config_reached(const struct raft_config *config,
    uint64_t (*value_of)(const struct raft *raft, raft_node node), const struct raft *raft)
{
    uint64_t reached = reached_in(config->voters, config->voter_count, value_of, raft);
    if (config->old_count > 0 && !PLANTED_BUG(33)) {
        uint64_t old = reached_in(config->old_voters, config->old_count, value_of, raft);
        if (old < reached) reached = old;
    }
    if (PLANTED_BUG(34)) {
        uint64_t learners = reached_in(config->learners, config->learner_count, value_of, raft);
        if (learners > reached) reached = learners;
    }
    return reached;
}

void raft_config_leave(const struct raft_config *joint, struct raft_config *out)
{
    ASSERT(joint->old_count > 0);
    struct raft_config left = *joint;
    left.old_count = 0;
    memset(left.old_voters, 0, sizeof left.old_voters);
    *out = left;
}

static size_t count_missing(
    const raft_node *nodes, size_t count, const raft_node *in, size_t in_count)
{
    size_t missing = 0;
    for (size_t i = 0; i < count; i++) {
        missing += !contains(in, in_count, nodes[i]);
    }
    return missing;
}

bool raft_config_may_follow(const struct raft_config *from, const struct raft_config *to)
{
    if (from->old_count > 0) {
        return to->old_count == 0 &&
            same_set(from->voters, from->voter_count, to->voters, to->voter_count);
    }
    if (to->old_count > 0) {
        return same_set(from->voters, from->voter_count, to->old_voters, to->old_count);
    }
    return count_missing(from->voters, from->voter_count, to->voters, to->voter_count) +
        count_missing(to->voters, to->voter_count, from->voters, from->voter_count) <=
        1;
}

void raft_config_apply(struct raft *raft, const struct raft_config *config, uint64_t index)
{
    ASSERT(index > raft->config_index);
    ASSERT(raft_config_valid(config));
    raft->config_before = raft->config;
    raft->config_before_index = raft->config_index;
    raft->config = *config;
    raft->config_index = index;
    raft_progress_sync(raft);
}

void raft_config_roll_back(struct raft *raft)
{
    /* one step is enough: a leader appends a change only after the one before is committed */
    raft->config = raft->config_before;
    raft->config_index = raft->config_before_index;
    ASSERT(raft->config_index <= raft->last);
    raft_progress_sync(raft);
}

void raft_config_reset(struct raft *raft, const struct raft_config *config, uint64_t index)
{
    raft->config = *config;
    raft->config_index = index;
    raft->config_before = *config;
    raft->config_before_index = index;
    raft_progress_sync(raft);
}
