#include "cluster/map/reconcile.h"

#include "base/check.h"

/* Why growth goes 1 -> 3 and not 1 -> 2 -> 3: two voters need both of them, so a group that rests
 * at two stands still with either node, where one voter stands still with one only. From an odd
 * number on, two learners that are ready become voters together, by a joint change; one that is
 * ready waits while a second one is coming (a learner that answers and catches up, or one that can
 * be added now). If no second one comes (only two nodes exist, or the other is silent, or the
 * caller says `hurry`), it is promoted alone: two copies are still worth more than one, as they
 * survive the loss of a disk.
 *
 * Why a replacement is joint: single steps would pass through four voters, whose majority of three
 * has no slack while the dead one is among them; {a,b,x} to {a,b,d} needs a and b only.
 *
 * A learner with match 0 is never ready, however short the log is: what the group holds may lie in
 * front of the log. */

struct set {
    uint16_t at[RECONCILE_VOTERS_MAX + 2];
    uint32_t count;
};

static bool listed(const uint16_t *numbers, uint32_t count, uint16_t number)
{
    for (uint32_t i = 0; i < count; i++) {
        if (numbers[i] == number) return true;
    }
    return false;
}

static bool is_voter(const struct reconcile_input *input, uint16_t number)
{
    return listed(input->voters, input->voter_count, number);
}

static bool is_learner(const struct reconcile_input *input, uint16_t number)
{
    return listed(input->learners, input->learner_count, number);
}

static bool is_desired(const struct reconcile_input *input, uint16_t number)
{
    return listed(input->desired, input->desired_count, number);
}

static const struct reconcile_peer *peer_of(const struct reconcile_input *input, uint16_t number)
{
    for (uint32_t i = 0; i < input->peer_count; i++) {
        if (input->peers[i].number == number) return &input->peers[i];
    }
    return NULL;
}

static bool is_active(const struct reconcile_input *input, uint16_t number)
{
    if (number == input->self) return true;
    const struct reconcile_peer *peer = peer_of(input, number);
    return peer != NULL && peer->active;
}

static uint64_t match_of(const struct reconcile_input *input, uint16_t number)
{
    if (number == input->self) return input->last;
    const struct reconcile_peer *peer = peer_of(input, number);
    return peer == NULL ? 0 : peer->match;
}

static bool caught_up(const struct reconcile_input *input, uint16_t number)
{
    if (number == input->self) return true;
    const struct reconcile_peer *peer = peer_of(input, number);
    return peer != NULL && peer->active && !peer->snapshotting && peer->match > 0 &&
        peer->match + RECONCILE_LAG_MAX >= input->last;
}

static bool majority_active(
    const struct reconcile_input *input, const uint16_t *voters, uint32_t count)
{
    uint32_t active = 0;
    for (uint32_t i = 0; i < count; i++)
        active += is_active(input, voters[i]);
    return active * 2 > count;
}

/* The guards that depend on who is alive: whether the group may go over to these voters now. */
static bool may_become(const struct reconcile_input *input, const struct set *next)
{
    if (next->count == 0 || next->count > RECONCILE_VOTERS_MAX) return false;
    if (!majority_active(input, input->voters, input->voter_count)) return false;
    if (!majority_active(input, next->at, next->count)) return false;
    for (uint32_t i = 0; i < next->count; i++) {
        if (is_active(input, next->at[i]) && match_of(input, next->at[i]) >= input->commit)
            return true;
    }
    return false;
}

static void set_add(struct set *set, uint16_t number)
{
    ASSERT(set->count < RECONCILE_VOTERS_MAX + 2);
    uint32_t at = set->count++;
    for (; at > 0 && set->at[at - 1] > number; at--)
        set->at[at] = set->at[at - 1];
    ASSERT_IF(at > 0, set->at[at - 1] != number);
    set->at[at] = number;
}

/* The present voters without one (0: with all). */
static struct set voters_without(const struct reconcile_input *input, uint16_t number)
{
    struct set set = {.count = 0};
    for (uint32_t i = 0; i < input->voter_count; i++) {
        if (input->voters[i] != number) set_add(&set, input->voters[i]);
    }
    return set;
}

static struct reconcile_step step_of(enum reconcile_kind kind, uint16_t node)
{
    return (struct reconcile_step){.kind = kind, .node = node};
}

static struct reconcile_step none(void)
{
    return step_of(RECONCILE_NONE, 0);
}

static struct reconcile_step joint(const struct reconcile_input *input, const struct set *next)
{
    ASSERT(may_become(input, next));
    ASSERT(listed(next->at, next->count, input->self));
    struct reconcile_step step = {.kind = RECONCILE_JOINT, .voter_count = (uint8_t)next->count};
    memcpy(step.voters, next->at, next->count * sizeof next->at[0]);
    return step;
}

static struct reconcile_step promote(const struct reconcile_input *input, uint16_t node)
{
    struct set next = voters_without(input, 0);
    set_add(&next, node);
    if (!may_become(input, &next)) return none();
    return step_of(RECONCILE_PROMOTE, node);
}

/* ---- learners ---- */

/* Places of the learners' list that observers leave to replicas on their way in. */
enum { LEARNERS_KEPT = RECONCILE_VOTERS_MAX };

static struct reconcile_step step_learners(const struct reconcile_input *input)
{
    for (uint32_t i = 0; i < input->learner_count; i++) {
        uint16_t node = input->learners[i];
        if (is_desired(input, node)) continue;
        if (listed(input->observers, input->observer_count, node)) continue;
        if (!majority_active(input, input->voters, input->voter_count)) return none();
        return step_of(RECONCILE_REMOVE_LEARNER, node);
    }
    if (!input->may_add) return none();
    for (uint32_t i = 0; i < input->desired_count; i++) {
        uint16_t node = input->desired[i];
        if (is_voter(input, node) || is_learner(input, node)) continue;
        if (input->learner_count == RECONCILE_LEARNERS_MAX) break;
        return step_of(RECONCILE_ADD_LEARNER, node);
    }
    for (uint32_t i = 0; i < input->observer_count; i++) {
        uint16_t node = input->observers[i];
        if (is_voter(input, node) || is_learner(input, node)) continue;
        if (input->learner_count >= RECONCILE_LEARNERS_MAX - LEARNERS_KEPT) break;
        return step_of(RECONCILE_ADD_LEARNER, node);
    }
    return none();
}

/* ---- voters ---- */

struct view {
    uint16_t ready[RECONCILE_VOTERS_MAX]; /* desired learners that may become voters */
    uint32_t ready_count;
    uint32_t coming; /* desired learners that answer and are not ready yet */
    uint32_t outside; /* desired nodes that are not in the group at all */
    uint32_t missing; /* desired nodes that are no voters */
    uint16_t extra; /* the voter that goes first; 0: none but self */
    bool extra_dead;
    bool extra_self; /* this node is not desired */
};

/* Dead before live, then the one that is furthest behind. */
static bool goes_before(const struct reconcile_input *input, uint16_t a, uint16_t b)
{
    bool a_active = is_active(input, a), b_active = is_active(input, b);
    if (PLANTED_BUG(51)) return a_active && !b_active;
    if (a_active != b_active) return b_active;
    return match_of(input, a) < match_of(input, b);
}

static struct view look(const struct reconcile_input *input)
{
    struct view view = {.ready_count = 0};
    for (uint32_t i = 0; i < input->desired_count; i++) {
        uint16_t node = input->desired[i];
        if (is_voter(input, node)) continue;
        view.missing++;
        if (!is_learner(input, node)) {
            view.outside++;
        } else if (caught_up(input, node)) {
            view.ready[view.ready_count++] = node;
        } else if (is_active(input, node)) {
            view.coming++;
        }
    }
    for (uint32_t i = 0; i < input->voter_count; i++) {
        uint16_t node = input->voters[i];
        if (is_desired(input, node)) continue;
        if (node == input->self) {
            view.extra_self = true;
        } else if (view.extra == 0 || goes_before(input, node, view.extra)) {
            view.extra = node;
        }
    }
    view.extra_dead = view.extra != 0 && !is_active(input, view.extra);
    return view;
}

/* A voter that is wanted, alive and nearly there; the preferred one if it is. 0: none. */
static uint16_t heir(const struct reconcile_input *input)
{
    uint16_t best = 0;
    for (uint32_t i = 0; i < input->voter_count; i++) {
        uint16_t node = input->voters[i];
        if (node == input->self || !is_desired(input, node) || !caught_up(input, node)) continue;
        if (node == input->preferred) return node;
        if (best == 0 || match_of(input, node) > match_of(input, best)) best = node;
    }
    return best;
}

static struct reconcile_step step_swap(
    const struct reconcile_input *input, uint16_t victim, uint16_t node)
{
    struct set next = voters_without(input, victim);
    set_add(&next, node);
    return may_become(input, &next) ? joint(input, &next) : none();
}

static struct reconcile_step step_grow(const struct reconcile_input *input, const struct view *view)
{
    bool odd = input->voter_count % 2 == 1;
    bool two_fit = input->voter_count + 2u <= input->desired_count;
    if (odd && two_fit && view->ready_count >= 2) {
        struct set next = voters_without(input, 0);
        set_add(&next, view->ready[0]);
        set_add(&next, view->ready[1]);
        if (may_become(input, &next)) return joint(input, &next);
    }
    if (view->ready_count == 0) return none();
    bool second_coming = view->coming > 0 || (view->outside > 0 && input->may_add);
    if (odd && two_fit && second_coming && !input->hurry) return none();
    return promote(input, view->ready[0]);
}

/* A voter that is not wanted goes without anybody taking its place: when all that are wanted vote,
 * or when it is dead and there are more than enough. */
static struct reconcile_step step_shrink(
    const struct reconcile_input *input, const struct view *view)
{
    if (view->extra == 0 || input->restored_alone) return none();
    bool surplus = view->extra_dead && input->voter_count > input->desired_count;
    if (view->missing > 0 && !surplus) return none();
    struct set next = voters_without(input, view->extra);
    return may_become(input, &next) ? step_of(RECONCILE_REMOVE_VOTER, view->extra) : none();
}

/* This node leads and is to go: somebody wanted must be able to lead first. */
static struct reconcile_step step_go(const struct reconcile_input *input, const struct view *view)
{
    if (input->restored_alone) return none();
    uint16_t to = heir(input);
    if (to != 0) return step_of(RECONCILE_TRANSFER, to);
    bool wanted_voter = false;
    for (uint32_t i = 0; i < input->voter_count; i++)
        wanted_voter = wanted_voter || is_desired(input, input->voters[i]);
    if (wanted_voter || view->ready_count == 0) return none();
    return promote(input, view->ready[0]);
}

static struct reconcile_step step_voters(const struct reconcile_input *input)
{
    struct view view = look(input);
    struct reconcile_step step = none();
    bool may_swap = view.ready_count > 0 && view.extra != 0 && !input->restored_alone;
    /* a dead voter is replaced before anything grows: it is what takes the slack away */
    if (may_swap && view.extra_dead) step = step_swap(input, view.extra, view.ready[0]);
    if (step.kind == RECONCILE_NONE && input->voter_count < input->desired_count)
        return step_grow(input, &view);
    if (step.kind == RECONCILE_NONE && may_swap) step = step_swap(input, view.extra, view.ready[0]);
    if (step.kind == RECONCILE_NONE) step = step_shrink(input, &view);
    if (step.kind == RECONCILE_NONE && view.extra == 0 && view.extra_self)
        step = step_go(input, &view);
    return step;
}

static struct reconcile_step step_leader(const struct reconcile_input *input)
{
    uint16_t to = input->preferred;
    if (to == 0 || to == input->self || !input->may_transfer || input->restored_alone)
        return none();
    if (!is_voter(input, to) || !is_desired(input, to) || !caught_up(input, to)) return none();
    for (uint32_t i = 0; i < input->peer_count; i++) {
        if (input->peers[i].snapshotting) return none();
    }
    return step_of(RECONCILE_TRANSFER, to);
}

static bool dead_extra(const struct reconcile_input *input)
{
    for (uint32_t i = 0; i < input->voter_count; i++) {
        uint16_t node = input->voters[i];
        if (!is_desired(input, node) && !is_active(input, node)) return true;
    }
    return false;
}

/* Of the result, whatever way it was found. */
static void check_step(const struct reconcile_input *input, const struct reconcile_step *step)
{
    if (step->kind != RECONCILE_REMOVE_VOTER && step->kind != RECONCILE_JOINT) return;
    ASSERT(!input->change_pending && input->old_count == 0);
    for (uint32_t i = 0; i < input->voter_count; i++) {
        uint16_t node = input->voters[i];
        bool stays = step->kind == RECONCILE_JOINT ? listed(step->voters, step->voter_count, node)
                                                   : node != step->node;
        if (stays) continue;
        ASSERT(node != input->self);
        ASSERT(!is_desired(input, node));
        ASSERT(!input->restored_alone);
        ASSERT_IF(is_active(input, node), !dead_extra(input));
    }
}

struct reconcile_step reconcile(const struct reconcile_input *input)
{
    ASSERT(input->voter_count <= RECONCILE_VOTERS_MAX);
    ASSERT(input->old_count <= RECONCILE_VOTERS_MAX);
    ASSERT(input->desired_count <= RECONCILE_VOTERS_MAX);
    ASSERT(input->learner_count <= RECONCILE_LEARNERS_MAX);
    ASSERT(input->commit <= input->last);
    if (input->change_pending) return none();
    if (input->old_count > 0) {
        bool safe = majority_active(input, input->voters, input->voter_count);
        return safe ? step_of(RECONCILE_LEAVE_JOINT, 0) : none();
    }
    if (input->desired_count == 0 || !is_voter(input, input->self)) return none();
    struct reconcile_step step = step_voters(input);
    if (step.kind == RECONCILE_NONE) step = step_learners(input);
    if (step.kind == RECONCILE_NONE) step = step_leader(input);
    check_step(input, &step);
    return step;
}
