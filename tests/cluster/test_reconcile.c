#include <criterion/criterion.h>
#include <stdio.h>

#include "base/prng.h"
#include "cluster/map/reconcile.h"

/* One group's way to what the map wants: the steps one by one in tables, then a small model of a group
 * that takes them while nodes die and come back. */

/* ---- tables: a configuration in words ---- */

/* "1 2 3x": 3 is dead; "4~": lags; "4s": gets a snapshot; "4?": never heard from */
struct scene {
    struct reconcile_input input;
    struct reconcile_peer peers[16];
    uint16_t observers[RECONCILE_LEARNERS_MAX];
};

static const char *read_node(const char *at, uint16_t *number_out, char *mark_out)
{
    while (*at == ' ')
        at++;
    if (*at == '\0') return NULL;
    *number_out = 0;
    for (; *at >= '0' && *at <= '9'; at++)
        *number_out = (uint16_t)(*number_out * 10 + (*at - '0'));
    *mark_out = ' ';
    if (*at != '\0' && *at != ' ') *mark_out = *at++;
    return at;
}

static void scene_node(struct scene *scene, uint16_t number, char mark)
{
    if (number == scene->input.self || mark == '?') return;
    scene->peers[scene->input.peer_count++] = (struct reconcile_peer){.number = number,
        .active = mark != 'x',
        .snapshotting = mark == 's',
        .match = mark == ' ' ? 9990
            : mark == 's'    ? 0
                             : 5000};
}

/* The first voter leads. Everything else is plain: nothing pending, room for learners and transfers. */
static void set_scene(
    struct scene *scene, const char *voters, const char *learners, const char *desired)
{
    memset(scene, 0, sizeof *scene);
    struct reconcile_input *input = &scene->input;
    input->last = 10000;
    input->commit = 9990;
    input->may_add = input->may_transfer = true;
    input->peers = scene->peers;
    uint16_t number;
    char mark;
    for (const char *at = voters; (at = read_node(at, &number, &mark)) != NULL;) {
        if (input->self == 0) input->self = number;
        input->voters[input->voter_count++] = number;
        scene_node(scene, number, mark);
    }
    for (const char *at = learners; (at = read_node(at, &number, &mark)) != NULL;) {
        input->learners[input->learner_count++] = number;
        scene_node(scene, number, mark);
    }
    for (const char *at = desired; (at = read_node(at, &number, &mark)) != NULL;)
        input->desired[input->desired_count++] = number;
}

static void describe(const struct reconcile_step *step, char text_out[64])
{
    static const char *const words[] = {
        "none", "add", "promote", "joint", "leave joint", "remove learner", "remove", "transfer"};
    int size = snprintf(text_out, 64, "%s", words[step->kind]);
    if (step->kind == RECONCILE_JOINT) {
        for (uint32_t i = 0; i < step->voter_count; i++)
            size += snprintf(text_out + size, 64 - (size_t)size, " %u", step->voters[i]);
    } else if (step->node != 0) {
        snprintf(text_out + size, 64 - (size_t)size, " %u", step->node);
    }
}

static void expect_step(const struct scene *scene, const char *expected)
{
    struct reconcile_step step = reconcile(&scene->input);
    char text[64];
    describe(&step, text);
    cr_expect_str_eq(text, expected, "%s, not %s", text, expected);
}

static void expect(
    const char *voters, const char *learners, const char *desired, const char *expected)
{
    struct scene scene;
    set_scene(&scene, voters, learners, desired);
    struct reconcile_step step = reconcile(&scene.input);
    char text[64];
    describe(&step, text);
    cr_expect_str_eq(text, expected, "voters %s, learners %s, desired %s: %s, not %s", voters,
        learners, desired, text, expected);
}

Test(reconcile, a_group_that_is_as_wanted_stays)
{
    expect("1 2 3", "", "3 2 1", "none");
    expect("1 2 3x", "", "1 2 3", "none");
    expect("1", "", "1", "none");
    expect("1 2 3", "", "", "none");
}

Test(reconcile, who_is_wanted_becomes_a_learner_first)
{
    expect("1", "", "1 2", "add 2");
    expect("1 2 3", "", "1 2 4", "add 4");
    expect("1 2 3x", "", "1 2 4", "add 4");
    expect("1", "2~", "1 2 3", "add 3");
}

Test(reconcile, a_learner_that_is_no_more_wanted_goes)
{
    expect("1 2 3", "4", "1 2 3", "remove learner 4");
    expect("1 2 3", "4 5", "1 2 5", "joint 1 2 5");
    expect("1 2x 3x", "4", "1 2 3", "none");
}

Test(reconcile, one_grows_to_three_at_once)
{
    expect("1", "2 3", "1 2 3", "joint 1 2 3");
    expect("1", "2 3~", "1 2 3", "none");
    expect("1", "2 3s", "1 2 3", "none");
    expect("1", "2", "1 2 3", "add 3");
    expect("1", "2 3x", "1 2 3", "promote 2");
    expect("1", "2 3?", "1 2 3", "promote 2");
    expect("1 2 3", "4 5", "1 2 3 4 5", "joint 1 2 3 4 5");
}

Test(reconcile, a_lone_second_node_is_promoted_too)
{
    expect("1", "2", "1 2", "promote 2");
    expect("1 2", "3", "1 2 3", "promote 3");
    struct scene scene;
    set_scene(&scene, "1", "2 3~", "1 2 3");
    scene.input.hurry = true;
    expect_step(&scene, "promote 2");
    set_scene(&scene, "1", "2", "1 2 3");
    scene.input.may_add = false;
    expect_step(&scene, "promote 2");
}

Test(reconcile, who_lags_is_not_promoted)
{
    expect("1", "2~", "1 2", "none");
    expect("1", "2x", "1 2", "none");
    expect("1", "2s", "1 2", "none");
    expect("1 2 3", "4~", "1 2 4", "none");
    struct scene scene;
    set_scene(&scene, "1", "2", "1 2");
    scene.input.last = 20;
    scene.input.commit = 20;
    scene.peers[0].match = 0;
    expect_step(&scene, "none");
    scene.peers[0].match = 1;
    expect_step(&scene, "promote 2");
    set_scene(&scene, "1", "2", "1 2");
    scene.peers[0].match = 10000 - RECONCILE_LAG_MAX;
    expect_step(&scene, "promote 2");
    scene.peers[0].match--;
    expect_step(&scene, "none");
}

Test(reconcile, a_dead_voter_is_replaced_in_one_joint_step)
{
    expect("1 2 3x", "4", "1 2 4", "joint 1 2 4");
    expect("1 2 3x", "4~", "1 2 4", "none");
    expect("1 2x 3x", "4", "1 2 4", "none");
    expect("1 2 3", "5", "1 4 5", "joint 1 3 5");
}

Test(reconcile, dead_voters_go_before_live_ones)
{
    expect("1 2 3x", "4", "1 4 5", "joint 1 2 4");
    expect("1 2x 3", "4", "1 4 5", "joint 1 3 4");
    expect("1 2 3 4x 5", "", "1 2 3", "remove 4");
    expect("1 2 3 4 5x", "", "1 2 3", "remove 5");
    /* before growth too: it is the dead one that takes the slack away */
    expect("1 2 3x", "4 5", "1 2 4 5 6", "joint 1 2 4");
}

Test(reconcile, what_is_too_much_is_removed_one_by_one)
{
    expect("1 2 3 4 5", "", "1 2 3", "remove 4");
    expect("1 2 3 4", "", "1 2 3", "remove 4");
    expect("1 2 3", "", "1", "remove 2");
    expect("1 2", "", "1", "remove 2");
    /* the replacement of a live one is waited for; a dead one too many is not kept for it */
    expect("1 2 3 4", "5~", "1 2 5", "none");
    expect("1 2 3 4x", "5~", "1 2 5", "remove 4");
}

Test(reconcile, nothing_is_done_that_would_lose_the_majority)
{
    expect("1 2x", "", "1", "none");
    expect("1 2 3x", "", "1 3", "none");
    expect("1 2 3x", "4", "1 3 4", "joint 1 3 4");
    expect("1 2 3x 4x", "5", "1 2 5", "none");
    expect("1 2 3x 4x 5", "", "1 3 4", "none");
}

Test(reconcile, the_leader_hands_over_before_it_goes)
{
    expect("1 2 3", "", "2 3", "transfer 2");
    expect("1 2 3", "4", "2 3 4", "transfer 2");
    expect("1 2", "", "2", "transfer 2");
    expect("1", "2", "2", "promote 2");
    expect("1 2~", "", "2", "none");
    struct scene scene;
    set_scene(&scene, "1 2 3", "4", "2 3 4");
    scene.input.preferred = 3;
    expect_step(&scene, "transfer 3");
}

Test(reconcile, the_preferred_leader_leads_in_the_end)
{
    struct scene scene;
    set_scene(&scene, "1 2 3", "", "1 2 3");
    scene.input.preferred = 3;
    expect_step(&scene, "transfer 3");
    scene.input.may_transfer = false;
    expect_step(&scene, "none");
    set_scene(&scene, "1 2 3~", "", "1 2 3");
    scene.input.preferred = 3;
    expect_step(&scene, "none");
    set_scene(&scene, "1 2 3", "4s", "1 2 3 4");
    scene.input.preferred = 3;
    expect_step(&scene, "none");
}

Test(reconcile, one_change_at_a_time)
{
    struct scene scene;
    set_scene(&scene, "1 2 3x", "4", "1 2 4");
    scene.input.change_pending = true;
    expect_step(&scene, "none");
    scene.input.change_pending = false;
    scene.input.old_voters[0] = 1;
    scene.input.old_voters[1] = 2;
    scene.input.old_count = 2;
    expect_step(&scene, "leave joint");
    scene.input.change_pending = true;
    expect_step(&scene, "none");
}

Test(reconcile, a_group_restored_alone_only_grows)
{
    struct scene scene;
    set_scene(&scene, "1 2", "", "1");
    scene.input.restored_alone = true;
    expect_step(&scene, "none");
    set_scene(&scene, "1", "2 3", "1 2 3");
    scene.input.restored_alone = true;
    scene.input.preferred = 2;
    expect_step(&scene, "joint 1 2 3");
    set_scene(&scene, "1 2 3", "4", "2 3 4");
    scene.input.restored_alone = true;
    expect_step(&scene, "none");
}

Test(reconcile, observers_stay_learners)
{
    struct scene scene;
    set_scene(&scene, "1 2 3", "4", "1 2 3");
    static const uint16_t observers[] = {4, 5};
    scene.input.observers = observers;
    scene.input.observer_count = 2;
    expect_step(&scene, "add 5");
    scene.input.may_add = false;
    expect_step(&scene, "none");
}

Test(reconcile, observers_leave_room_for_replicas)
{
    struct scene scene;
    set_scene(&scene, "1 2 3", "", "1 2 3");
    for (uint16_t i = 0; i < RECONCILE_LEARNERS_MAX; i++)
        scene.observers[i] = (uint16_t)(100 + i);
    scene.input.observers = scene.observers;
    scene.input.observer_count = RECONCILE_LEARNERS_MAX;
    for (uint8_t i = 0; i < RECONCILE_LEARNERS_MAX - RECONCILE_VOTERS_MAX; i++)
        scene.input.learners[scene.input.learner_count++] = scene.observers[i];
    expect_step(&scene, "none");
    scene.input.desired[2] = 4;
    expect_step(&scene, "add 4");
}

/* ---- the model ---- */

enum { NODES = 8, WINDOW = 3, CHUNK = 400 };

struct model {
    uint32_t voters, old_voters, learners; /* bit masks by number */
    uint32_t desired;
    uint16_t preferred, leader;
    bool alive[NODES + 1];
    uint32_t silent[NODES + 1]; /* ticks since the leader heard from it */
    uint64_t match[NODES + 1], last, commit, config_index;
    uint32_t snapshot[NODES + 1]; /* ticks left */
    uint32_t since_transfer, since_change;
    uint32_t adds, changes, transfers;
};

static uint32_t mask(uint16_t number)
{
    return 1u << number;
}

static bool majority_of(
    const struct model *model, uint32_t set, bool (*has)(const struct model *, uint16_t))
{
    int yes = 0;
    for (uint16_t i = 1; i <= NODES; i++)
        yes += (set & mask(i)) != 0 && has(model, i);
    return yes * 2 > __builtin_popcount(set);
}

static bool is_alive(const struct model *model, uint16_t number)
{
    return model->alive[number];
}

static bool is_heard(const struct model *model, uint16_t number)
{
    return number == model->leader || model->silent[number] < WINDOW;
}

/* Whoever is alive, has the longest log and a majority behind it. */
static void elect(struct model *model)
{
    uint32_t all = model->voters | model->old_voters;
    bool stands =
        model->leader != 0 && model->alive[model->leader] && (all & mask(model->leader)) != 0;
    bool able = majority_of(model, model->voters, is_alive) &&
        (model->old_voters == 0 || majority_of(model, model->old_voters, is_alive));
    if (stands && able) return;
    model->leader = 0;
    if (!able) return;
    for (uint16_t i = 1; i <= NODES; i++) {
        if ((all & mask(i)) == 0 || !model->alive[i]) continue;
        if (model->leader == 0 || model->match[i] > model->match[model->leader]) model->leader = i;
    }
    cr_assert_geq(model->match[model->leader], model->commit, "nothing committed was lost");
    model->last = model->match[model->leader];
    if (model->config_index > model->last) model->config_index = model->last;
    for (uint16_t i = 1; i <= NODES; i++) {
        model->silent[i] = 0;
        if (model->match[i] > model->last) model->match[i] = model->last;
    }
}

static uint64_t held_by_majority(const struct model *model, uint32_t set)
{
    uint64_t best = 0;
    for (uint16_t i = 1; i <= NODES; i++) {
        int have = 0;
        for (uint16_t j = 1; j <= NODES; j++)
            have += (set & mask(j)) != 0 && model->match[j] >= model->match[i];
        if ((set & mask(i)) != 0 && have * 2 > __builtin_popcount(set) && model->match[i] > best)
            best = model->match[i];
    }
    return best;
}

static void replicate(struct model *model)
{
    uint32_t all = model->voters | model->old_voters | model->learners;
    for (uint16_t i = 1; i <= NODES; i++) {
        if ((all & mask(i)) == 0 || i == model->leader) continue;
        if (!model->alive[i]) {
            model->silent[i]++;
            continue;
        }
        model->silent[i] = 0;
        if (model->match[i] == 0 && model->snapshot[i] == 0) {
            model->snapshot[i] = 4;
        } else if (model->snapshot[i] > 0) {
            if (--model->snapshot[i] == 0) model->match[i] = model->commit;
        } else {
            model->match[i] += CHUNK;
            if (model->match[i] > model->last) model->match[i] = model->last;
        }
    }
    uint64_t commit = held_by_majority(model, model->voters);
    uint64_t before = model->old_voters == 0 ? commit : held_by_majority(model, model->old_voters);
    if (before < commit) commit = before;
    if (commit > model->commit) model->commit = commit;
}

static uint8_t spread(uint32_t set, uint16_t *out)
{
    uint8_t count = 0;
    for (uint16_t i = 1; i <= NODES; i++) {
        if ((set & mask(i)) != 0) out[count++] = i;
    }
    return count;
}

/* What must hold of every change, said independently of how it was chosen. */
static void check_change(const struct model *model, uint32_t voters)
{
    cr_assert_eq(model->old_voters, 0);
    cr_assert_leq(model->config_index, model->commit, "one change at a time");
    cr_assert(majority_of(model, model->voters, is_heard), "the present majority answers");
    cr_assert(majority_of(model, voters, is_heard), "the next majority answers");
    cr_assert_neq(voters & mask(model->leader), 0, "the leader does not remove itself");
    uint32_t dropped = model->voters & ~voters, added = voters & ~model->voters;
    cr_assert_eq(dropped & model->desired, 0, "who is wanted stays");
    cr_assert_eq(added & ~model->desired, 0);
    cr_assert_leq(__builtin_popcount(dropped), 1, "one at a time");
    for (uint16_t i = 1; i <= NODES; i++) {
        if ((added & mask(i)) != 0) {
            cr_assert_neq(model->learners & mask(i), 0);
            cr_assert_gt(model->match[i], 0);
            cr_assert_geq(model->match[i] + RECONCILE_LAG_MAX, model->last);
        }
        if ((dropped & mask(i)) == 0 || !is_heard(model, i)) continue;
        for (uint16_t j = 1; j <= NODES; j++) {
            bool extra = (model->voters & ~model->desired & ~dropped & mask(j)) != 0;
            cr_assert(!extra || is_heard(model, j), "dead ones go first");
        }
    }
}

static void change_voters(struct model *model, uint32_t voters, bool joint)
{
    check_change(model, voters);
    if (joint) model->old_voters = model->voters;
    model->voters = voters;
    model->learners &= ~voters;
    model->changes++;
}

static void append_config(struct model *model)
{
    model->config_index = ++model->last;
    model->match[model->leader] = model->last;
    model->since_change = 0;
}

static void take_step(struct model *model, const struct reconcile_step *step)
{
    uint32_t next = 0;
    switch (step->kind) {
    case RECONCILE_NONE:
        return;
    case RECONCILE_ADD_LEARNER:
        cr_assert_eq((model->voters | model->learners) & mask(step->node), 0);
        model->learners |= mask(step->node);
        model->silent[step->node] = 0;
        model->adds++;
        break;
    case RECONCILE_PROMOTE:
        change_voters(model, model->voters | mask(step->node), false);
        break;
    case RECONCILE_REMOVE_VOTER:
        change_voters(model, model->voters & ~mask(step->node), false);
        break;
    case RECONCILE_JOINT:
        for (uint32_t i = 0; i < step->voter_count; i++)
            next |= mask(step->voters[i]);
        change_voters(model, next, true);
        break;
    case RECONCILE_LEAVE_JOINT:
        cr_assert_neq(model->old_voters, 0);
        cr_assert_leq(model->config_index, model->commit);
        model->old_voters = 0;
        break;
    case RECONCILE_REMOVE_LEARNER:
        cr_assert_neq(model->learners & mask(step->node), 0);
        cr_assert_eq(model->desired & mask(step->node), 0);
        model->learners &= ~mask(step->node);
        break;
    case RECONCILE_TRANSFER:
        cr_assert_neq(model->voters & mask(step->node), 0);
        cr_assert_neq(step->node, model->leader);
        model->transfers++;
        model->since_transfer = 0;
        if (model->alive[step->node]) {
            model->match[step->node] = model->last;
            model->leader = step->node;
        }
        return;
    }
    append_config(model);
}

static struct reconcile_step ask(const struct model *model)
{
    struct reconcile_peer peers[NODES];
    struct reconcile_input input = {.self = model->leader,
        .preferred = model->preferred,
        .peers = peers,
        .last = model->last,
        .commit = model->commit,
        .change_pending = model->config_index > model->commit,
        .may_add = true,
        .may_transfer = model->since_transfer > 10,
        .hurry = model->since_change > 20};
    input.desired_count = spread(model->desired, input.desired);
    input.voter_count = spread(model->voters, input.voters);
    input.old_count = spread(model->old_voters, input.old_voters);
    input.learner_count = spread(model->learners, input.learners);
    for (uint16_t i = 1; i <= NODES; i++) {
        if (i == model->leader) continue;
        peers[input.peer_count++] = (struct reconcile_peer){.number = i,
            .active = is_heard(model, i),
            .snapshotting = model->snapshot[i] > 0,
            .match = model->match[i]};
    }
    return reconcile(&input);
}

static void tick(struct model *model, uint64_t writes)
{
    model->since_transfer++;
    model->since_change++;
    elect(model);
    if (model->leader == 0) return;
    model->last += writes;
    model->match[model->leader] = model->last;
    replicate(model);
    struct reconcile_step step = ask(model);
    take_step(model, &step);
    /* a node outside of the group forgets what it had */
    uint32_t all = model->voters | model->old_voters | model->learners;
    for (uint16_t i = 1; i <= NODES; i++) {
        if ((all & mask(i)) != 0) continue;
        model->match[i] = 0;
        model->snapshot[i] = 0;
    }
}

static void model_init(struct model *model, uint32_t voters, uint32_t desired)
{
    *model = (struct model){.voters = voters, .desired = desired, .last = 1000, .commit = 1000};
    for (uint16_t i = 1; i <= NODES; i++) {
        model->alive[i] = true;
        if ((voters & mask(i)) != 0) model->match[i] = 1000;
    }
}

static bool is_settled(const struct model *model)
{
    return model->leader != 0 && model->voters == model->desired && model->old_voters == 0 &&
        model->learners == 0 && model->leader == model->preferred;
}

static uint32_t settle(struct model *model, uint32_t ticks_max)
{
    for (uint32_t ticks = 0; ticks < ticks_max; ticks++) {
        if (is_settled(model)) return ticks;
        tick(model, 3);
    }
    cr_assert_fail("not settled: voters %x old %x learners %x desired %x leader %u", model->voters,
        model->old_voters, model->learners, model->desired, model->leader);
    return 0;
}

/* Every set of up to five voters to every other out of six nodes, with every leader: it gets there,
 * and with no more learners and changes than it takes. */
Test(reconcile, every_configuration_reaches_every_other_in_few_steps)
{
    uint32_t most = 0, pairs = 0;
    for (uint32_t from = 1; from < 64; from++) {
        for (uint32_t to = 1; to < 64; to++) {
            uint32_t voters = from << 1, desired = to << 1;
            if (__builtin_popcount(from) > 5 || __builtin_popcount(to) > 5) continue;
            for (uint16_t leader = 1; leader <= 6; leader++) {
                if ((voters & mask(leader)) == 0) continue;
                struct model model;
                model_init(&model, voters, desired);
                model.leader = leader;
                model.preferred = (uint16_t)__builtin_ctz(desired);
                uint32_t ticks = settle(&model, 200);
                uint32_t in = (uint32_t)__builtin_popcount(desired & ~voters);
                uint32_t out = (uint32_t)__builtin_popcount(voters & ~desired);
                cr_assert_eq(model.adds, in);
                uint32_t needed = in > out ? in : out;
                /* one more: a lone leader that goes needs its heir beside it first */
                cr_assert_leq(
                    model.changes, needed + 1, "%x to %x: %u", voters, desired, model.changes);
                cr_assert_leq(model.transfers, 2);
                if (ticks > most) most = ticks;
                pairs++;
            }
        }
    }
    printf("%u ways, %u ticks at most\n", pairs, most);
}

Test(reconcile, it_converges_through_deaths_and_changes_of_mind)
{
    struct prng prng;
    prng_init(&prng, 4);
    uint64_t changes = 0, stalls = 0;
    for (int round = 0; round < 3000; round++) {
        struct model model;
        uint32_t first = 1 + (uint32_t)prng_below(&prng, NODES);
        model_init(&model, mask((uint16_t)first), mask((uint16_t)first));
        model.preferred = (uint16_t)first;
        for (uint32_t now = 0; now < 150; now++) {
            if (prng_chance(&prng, 1, 25)) {
                uint32_t wanted = 1 + (uint32_t)prng_below(&prng, 5);
                model.desired = 0;
                while ((uint32_t)__builtin_popcount(model.desired) < wanted)
                    model.desired |= mask((uint16_t)(1 + prng_below(&prng, NODES)));
                do {
                    model.preferred = (uint16_t)(1 + prng_below(&prng, NODES));
                } while ((model.desired & mask(model.preferred)) == 0);
            }
            if (prng_chance(&prng, 1, 12)) {
                uint16_t node = (uint16_t)(1 + prng_below(&prng, NODES));
                model.alive[node] = prng_chance(&prng, 2, 5);
            }
            tick(&model, prng_below(&prng, 30));
            stalls += model.leader == 0;
        }
        for (uint16_t i = 1; i <= NODES; i++)
            model.alive[i] = true;
        settle(&model, 200);
        changes += model.changes;
    }
    printf("%llu changes of voters, %llu of %u ticks without a majority\n",
        (unsigned long long)changes, (unsigned long long)stalls, 3000u * 150u);
    cr_assert_gt(changes, 3000u);
}

/* With at most one node dead at a time and time to heal between, a group of three or five never
 * stands still. */
Test(reconcile, one_death_at_a_time_never_stops_the_group)
{
    struct prng prng;
    prng_init(&prng, 5);
    for (int round = 0; round < 500; round++) {
        struct model model;
        model_init(&model, 0xe, 0xe);
        model.preferred = 1;
        uint16_t dead = 0;
        for (uint32_t now = 0; now < 600; now++) {
            if (now % 60 == 0) {
                if (dead != 0) model.alive[dead] = true;
                dead = (uint16_t)(1 + prng_below(&prng, NODES));
                model.alive[dead] = false;
                /* the map gives the place of the dead one, and maybe of another, to somebody */
                model.desired &= ~mask(dead);
                if (prng_chance(&prng, 1, 3))
                    model.desired &= ~mask((uint16_t)__builtin_ctz(model.desired));
                while (__builtin_popcount(model.desired) < 3) {
                    uint16_t node = (uint16_t)(1 + prng_below(&prng, NODES));
                    if (node != dead) model.desired |= mask(node);
                }
                model.preferred = (uint16_t)__builtin_ctz(model.desired);
            }
            tick(&model, 5);
            cr_assert_neq(model.leader, 0, "round %d, tick %u", round, now);
        }
        cr_assert(is_settled(&model));
    }
}
