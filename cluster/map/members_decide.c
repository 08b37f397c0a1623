#define _GNU_SOURCE
#include "cluster/map/members.h"

#include <stdarg.h>
#include <stdio.h>

#include "base/check.h"

/* Decisions of the meta leader about the table of nodes. Each starts from a table and gives records
 * to propose, or one sentence why not. A decision changes nothing by itself: it counts when its
 * records are applied, and the leader proposes one only on what is applied. */

static bool refuse(struct members_decision *decision, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static bool refuse(struct members_decision *decision, const char *format, ...)
{
    memset(decision, 0, sizeof *decision);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(decision->detail, sizeof decision->detail, format, arguments);
    va_end(arguments);
    return false;
}

static bool accept(struct members_decision *decision, uint16_t number, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static bool accept(struct members_decision *decision, uint16_t number, const char *format, ...)
{
    decision->accepted = true;
    decision->number = number;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(decision->detail, sizeof decision->detail, format, arguments);
    va_end(arguments);
    return true;
}

static void begin(struct members_decision *decision)
{
    memset(decision, 0, sizeof *decision);
}

static void change(struct members_decision *decision, const struct member *member)
{
    ASSERT(decision->changed_count < 2);
    decision->changed[decision->changed_count++] = *member;
}

static void change_cluster(
    struct members_decision *decision, uint16_t next_number, uint8_t replicas)
{
    decision->cluster_changed = true;
    decision->next_number = next_number;
    decision->replicas = replicas;
}

static bool looks_alive(struct members_alive alive, uint16_t number)
{
    for (uint32_t i = 0; i < alive.count; i++) {
        if (alive.numbers[i] == number) return true;
    }
    return false;
}

/* ---- would a range lose its majority ---- */

/* Nodes that may vote now, as long as all of them have everything. */
static void count_holders(const struct members *members, struct members_alive alive,
    uint32_t *holders_out, uint32_t *alive_out)
{
    *holders_out = 0;
    *alive_out = 0;
    for (uint32_t i = 0; i < members->count; i++) {
        const struct member *member = &members->at[i];
        if (!member->joined || member->state == MEMBER_REMOVED) continue;
        (*holders_out)++;
        *alive_out += looks_alive(alive, member->number);
    }
}

/* Without `victim`, whether a fresh node takes its place or not. Where every node has every range
 * the groups as they are need a majority to change at all. Afterwards even the range with the worst
 * luck, the one whose replicas are the dead ones as far as they go, must have a majority. */
static bool keeps_majorities(const struct members *members, const struct member *victim,
    bool replaced, struct members_alive alive, struct members_decision *decision)
{
    uint32_t holders, alive_holders;
    count_holders(members, alive, &holders, &alive_holders);
    if (holders <= members->replicas && alive_holders * 2 <= holders) {
        return refuse(decision,
            "only %u of %u nodes look alive, which is no majority; start the others first",
            (unsigned)alive_holders, (unsigned)holders);
    }
    struct members after = *members;
    for (uint32_t i = 0; i < after.count; i++) {
        if (after.at[i].number == victim->number) after.at[i].state = MEMBER_LEAVING;
    }
    uint16_t numbers[MEMBERS_MAX], zones[MEMBERS_MAX];
    uint32_t count = members_placeable(&after, numbers, zones), dead = 0;
    uint16_t first_dead = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (looks_alive(alive, numbers[i])) continue;
        dead++;
        if (first_dead == 0) first_dead = numbers[i];
    }
    if (count == 0) {
        return refuse(
            decision, "%s is the only member; the data would be lost with it", victim->name);
    }
    count += replaced;
    uint32_t replicas = members->replicas < count ? members->replicas : count;
    if (PLANTED_BUG(50) || dead <= (replicas - 1) / 2) return true;
    return refuse(decision,
        "%s looks dead; without %s as well, data would be without a majority: start %s again, or "
        "remove that "
        "one first",
        members_by_number(members, first_dead)->name, victim->name,
        members_by_number(members, first_dead)->name);
}

/* ---- texts of a node ---- */

static const char *text_or_empty(const char *text)
{
    return text == NULL ? "" : text;
}

static bool printable(const char *text, size_t max)
{
    size_t size = strnlen(text, max);
    for (size_t i = 0; i < size; i++) {
        if ((uint8_t)text[i] < 0x20 || text[i] == 0x7f) return false;
    }
    return size < max;
}

static bool name_legal(const char *name)
{
    static const char others[] = "0123456789._-";
    size_t size = strnlen(name, MEMBERS_NAME_MAX);
    for (size_t i = 0; i < size; i++) {
        bool letter = (name[i] >= 'a' && name[i] <= 'z') || (name[i] >= 'A' && name[i] <= 'Z');
        if (!letter && strchr(others, name[i]) == NULL) return false;
    }
    return size > 0 && size < MEMBERS_NAME_MAX;
}

static void copy_text(char *target, const char *text, size_t max)
{
    memset(target, 0, max);
    memcpy(target, text, strnlen(text, max - 1));
}

/* Addresses and zone are legal; the name is looked at where it matters. */
static bool texts_legal(const struct members_identity *identity, struct members_decision *decision)
{
    const char *addresses[] = {identity->peer, identity->resp, identity->http};
    for (uint32_t i = 0; i < 3; i++) {
        if (!printable(text_or_empty(addresses[i]), MEMBERS_ADDRESS_MAX)) {
            return refuse(decision, "an address has more than %u characters, or illegal ones",
                MEMBERS_ADDRESS_MAX - 1u);
        }
    }
    if (!printable(text_or_empty(identity->zone), MEMBERS_ZONE_MAX)) {
        return refuse(decision, "the zone has more than %u characters, or illegal ones",
            MEMBERS_ZONE_MAX - 1u);
    }
    return true;
}

static void set_texts(struct member *member, const struct members_identity *identity)
{
    copy_text(member->peer, text_or_empty(identity->peer), MEMBERS_ADDRESS_MAX);
    copy_text(member->resp, text_or_empty(identity->resp), MEMBERS_ADDRESS_MAX);
    copy_text(member->http, text_or_empty(identity->http), MEMBERS_ADDRESS_MAX);
    copy_text(member->zone, text_or_empty(identity->zone), MEMBERS_ZONE_MAX);
}

/* "node-7", or with the next number that is free if somebody is called so already. */
static void make_name(
    const struct members *members, uint16_t number, char name_out[MEMBERS_NAME_MAX])
{
    memset(name_out, 0, MEMBERS_NAME_MAX);
    for (unsigned i = number;; i++) {
        snprintf(name_out, MEMBERS_NAME_MAX, "node-%u", i);
        if (members_by_name(members, name_out) == NULL) return;
    }
}

/* ---- joining ---- */

/* Room for one more record: the oldest removed one makes place. */
static bool make_room(const struct members *members, struct members_decision *decision)
{
    if (members->next_number >= UINT16_MAX - 1)
        return refuse(decision, "the cluster has given out all its %u numbers", UINT16_MAX - 1u);
    if (members->count < MEMBERS_MAX) return true;
    for (uint32_t i = 0; i < members->count; i++) {
        if (members->at[i].state != MEMBER_REMOVED) continue;
        decision->erased = members->at[i].number;
        return true;
    }
    return refuse(decision, "the cluster has %u members already, its limit; remove one first",
        (unsigned)MEMBERS_MAX);
}

static bool admit(const struct members *members, const struct members_identity *identity,
    const struct member *replaced, struct members_decision *decision)
{
    if (!make_room(members, decision)) return false;
    struct member member = {.number = members->next_number,
        .state = MEMBER_JOINING,
        .incarnation = identity->incarnation,
        .boot = identity->boot};
    memcpy(member.store_id, identity->store_id, MEMBERS_STORE_ID);
    set_texts(&member, identity);
    const char *name = replaced != NULL ? replaced->name : text_or_empty(identity->name);
    if (name[0] == '\0') {
        make_name(members, member.number, member.name);
    } else {
        copy_text(member.name, name, MEMBERS_NAME_MAX);
    }
    change(decision, &member);
    if (replaced != NULL) {
        struct member old = *replaced;
        old.successor = member.number;
        old.state = MEMBER_LEAVING;
        old.replaceable = false;
        change(decision, &old);
    }
    change_cluster(decision, (uint16_t)(members->next_number + 1), members->replicas);
    return accept(decision, member.number, "%s is member %u%s", member.name,
        (unsigned)member.number, replaced != NULL ? ", in the place of the one before" : "");
}

/* A newer start of the same folder, or the same one asking again; else it is a copy. */
static bool start_is_new(const struct member *member, const struct members_identity *identity,
    struct members_decision *decision)
{
    if (identity->incarnation < member->incarnation) {
        return refuse(decision,
            "this folder is an older copy of that of %s: it counts %llu starts, the cluster has "
            "seen %llu; an "
            "old copy must not take part, so start with an empty folder and run `duramen member "
            "replace %s`",
            member->name, (unsigned long long)identity->incarnation,
            (unsigned long long)member->incarnation, member->name);
    }
    if (identity->incarnation == member->incarnation && identity->boot != member->boot) {
        return refuse(decision,
            "two processes use copies of the folder of %s; only the one that started first may go "
            "on",
            member->name);
    }
    return true;
}

/* What a restart changes; nothing is proposed if that is nothing. */
static void note_start(const struct member *before, const struct members_identity *identity,
    bool started, struct members_decision *decision)
{
    struct member member = *before;
    member.incarnation = identity->incarnation;
    member.boot = identity->boot;
    set_texts(&member, identity);
    if (started) {
        member.joined = true;
        member.replaceable = false;
        if (member.state == MEMBER_JOINING) member.state = MEMBER_MEMBER;
    }
    uint8_t old_value[MEMBERS_VALUE_MAX], new_value[MEMBERS_VALUE_MAX];
    size_t old_size = member_encode(before, old_value), size = member_encode(&member, new_value);
    if (bytes_equal(bytes_of(old_value, old_size), bytes_of(new_value, size))) return;
    change(decision, &member);
}

static bool join_again(const struct member *member, const struct members_identity *identity,
    struct members_decision *decision)
{
    if (member->state == MEMBER_REMOVED || member->successor != 0) {
        return refuse(decision,
            "this folder belongs to %s, member %u, which was removed; start with an empty folder",
            member->name, (unsigned)member->number);
    }
    if (member->state == MEMBER_LEAVING)
        return refuse(decision, "%s is being removed; start with an empty folder", member->name);
    /* once it has started with its number, an answer that came late must not set it back */
    if (!member->joined) {
        if (!start_is_new(member, identity, decision)) return false;
        note_start(member, identity, false, decision);
    }
    return accept(
        decision, member->number, "%s is member %u", member->name, (unsigned)member->number);
}

static bool join_taken(const struct members *members, const struct member *holder,
    const struct members_identity *identity, bool replace, struct members_alive alive,
    struct members_decision *decision)
{
    if (PLANTED_BUG(49)) {
        struct member member = *holder;
        memcpy(member.store_id, identity->store_id, MEMBERS_STORE_ID);
        change(decision, &member);
        return accept(decision, member.number, "%s is back", member.name);
    }
    if (!replace && !holder->replaceable) {
        return refuse(decision,
            "%s is a member with another data folder; if that folder is lost, run `duramen member "
            "replace %s`",
            holder->name, holder->name);
    }
    if (looks_alive(alive, holder->number)) {
        return refuse(decision,
            "%s runs with another data folder; stop it before another node takes its place",
            holder->name);
    }
    if (holder->state == MEMBER_LEAVING)
        return refuse(decision, "%s is being removed; choose another name", holder->name);
    if (holder->joined && !keeps_majorities(members, holder, true, alive, decision)) return false;
    return admit(members, identity, holder, decision);
}

bool members_decide_found(const struct members *members, const struct members_identity *identity,
    uint8_t replicas, struct members_decision *decision_out)
{
    ASSERT(members->count == 0 && members->next_number == 1);
    ASSERT(replicas >= 1 && replicas <= MEMBERS_REPLICAS_MAX);
    begin(decision_out);
    const char *name = text_or_empty(identity->name);
    if (name[0] != '\0' && !name_legal(name)) return refuse(decision_out, "the name is not legal");
    if (!texts_legal(identity, decision_out)) return false;
    if (!admit(members, identity, NULL, decision_out)) return false;
    decision_out->changed[0].state = MEMBER_MEMBER;
    decision_out->changed[0].joined = true;
    decision_out->replicas = replicas;
    return true;
}

bool members_decide_join(const struct members *members, const struct members_identity *identity,
    bool replace, struct members_alive alive, struct members_decision *decision_out)
{
    begin(decision_out);
    const char *name = text_or_empty(identity->name);
    if (name[0] != '\0' && !name_legal(name)) {
        return refuse(decision_out,
            "a name has up to %u letters, digits, '.', '_' and '-', and nothing else",
            MEMBERS_NAME_MAX - 1u);
    }
    if (!texts_legal(identity, decision_out)) return false;
    if (text_or_empty(identity->peer)[0] == '\0')
        return refuse(
            decision_out, "a node without a peer address cannot be reached by the others");
    const struct member *same = members_by_store(members, identity->store_id);
    if (same != NULL) return join_again(same, identity, decision_out);
    const struct member *holder = name[0] == '\0' ? NULL : members_by_name(members, name);
    if (holder != NULL) return join_taken(members, holder, identity, replace, alive, decision_out);
    if (replace) return refuse(decision_out, "there is no member called \"%s\" to replace", name);
    return admit(members, identity, NULL, decision_out);
}

/* ---- coming back ---- */

static bool identity_fits(const struct members *members, uint16_t number,
    const struct members_identity *identity, struct members_decision *decision)
{
    const struct member *member = members_by_number(members, number);
    if (member == NULL && number >= members->next_number) {
        return refuse(decision,
            "this cluster has not given out number %u; is this folder another cluster's?",
            (unsigned)number);
    }
    if (member == NULL || member->state == MEMBER_REMOVED) {
        return refuse(decision,
            "member %u was removed from the cluster; start with an empty folder to join anew",
            (unsigned)number);
    }
    if (memcmp(member->store_id, identity->store_id, MEMBERS_STORE_ID) != 0) {
        return refuse(decision,
            "%s, member %u, has another data folder; if that folder is lost, run `duramen member "
            "replace %s` "
            "and start with an empty one",
            member->name, (unsigned)number, member->name);
    }
    return start_is_new(member, identity, decision);
}

bool members_decide_restart(const struct members *members, uint16_t number,
    const struct members_identity *identity, struct members_decision *decision_out)
{
    begin(decision_out);
    if (!identity_fits(members, number, identity, decision_out)) return false;
    const struct member *member = members_by_number(members, number);
    if (member->successor != 0) {
        return refuse(decision_out,
            "member %u took the place of %s; start with an empty folder to join anew",
            (unsigned)member->successor, member->name);
    }
    if (!texts_legal(identity, decision_out)) return false;
    note_start(member, identity, true, decision_out);
    return accept(decision_out, number, "%s is member %u", member->name, (unsigned)number);
}

bool members_decide_renew(const struct members *members, uint16_t number,
    const struct members_identity *identity, const uint8_t new_store_id[MEMBERS_STORE_ID],
    struct members_alive alive, struct members_decision *decision_out)
{
    begin(decision_out);
    if (!identity_fits(members, number, identity, decision_out)) return false;
    const struct member *member = members_by_number(members, number);
    const struct member *heir = members_by_store(members, new_store_id);
    if (heir != NULL) {
        if (member->successor != heir->number)
            return refuse(
                decision_out, "the new folder belongs to member %u", (unsigned)heir->number);
        return accept(
            decision_out, heir->number, "%s is member %u", heir->name, (unsigned)heir->number);
    }
    if (member->successor != 0) {
        return refuse(decision_out, "member %u took the place of %s already",
            (unsigned)member->successor, member->name);
    }
    if (member->state == MEMBER_LEAVING)
        return refuse(decision_out, "%s is being removed", member->name);
    if (!texts_legal(identity, decision_out)) return false;
    /* it asks, so it runs; but what it held is gone, so the majorities must be those of the others */
    struct members_alive others = {.count = 0};
    uint16_t numbers[MEMBERS_MAX];
    others.numbers = numbers;
    for (uint32_t i = 0; i < alive.count && others.count < MEMBERS_MAX; i++) {
        if (alive.numbers[i] != number) numbers[others.count++] = alive.numbers[i];
    }
    if (!keeps_majorities(members, member, true, others, decision_out)) return false;
    struct members_identity fresh = *identity;
    memcpy(fresh.store_id, new_store_id, MEMBERS_STORE_ID);
    fresh.incarnation = 0;
    return admit(members, &fresh, member, decision_out);
}

/* ---- the operator's and the leader's own ---- */

static bool find_name(const struct members *members, const char *name,
    const struct member **member_out, struct members_decision *decision)
{
    *member_out = members_by_name(members, name);
    if (*member_out != NULL) return true;
    return refuse(decision, "there is no member called \"%.63s\"", name);
}

bool members_decide_remove(const struct members *members, const char *name,
    struct members_alive alive, struct members_decision *decision_out)
{
    begin(decision_out);
    const struct member *member;
    if (!find_name(members, name, &member, decision_out)) return false;
    if (member->state != MEMBER_LEAVING) {
        if (member->joined && !keeps_majorities(members, member, false, alive, decision_out))
            return false;
        struct member leaving = *member;
        leaving.state = MEMBER_LEAVING;
        leaving.replaceable = false;
        change(decision_out, &leaving);
    }
    return accept(decision_out, member->number,
        "%s leaves; it is removed when its data is with the others", member->name);
}

bool members_decide_replace(const struct members *members, const char *name,
    struct members_alive alive, struct members_decision *decision_out)
{
    begin(decision_out);
    const struct member *member;
    if (!find_name(members, name, &member, decision_out)) return false;
    if (looks_alive(alive, member->number)) {
        return refuse(decision_out,
            "%s looks alive; stop it first, or run `duramen member remove %s`", name, name);
    }
    if (member->state == MEMBER_LEAVING)
        return refuse(decision_out, "%s is being removed; join under another name", name);
    if (member->joined && !keeps_majorities(members, member, true, alive, decision_out))
        return false;
    if (!member->replaceable) {
        struct member marked = *member;
        marked.replaceable = true;
        change(decision_out, &marked);
    }
    return accept(decision_out, member->number,
        "a node that joins as %s with an empty folder will take its place", name);
}

static bool set_state(const struct member *member, uint8_t state, struct members_decision *decision)
{
    struct member changed = *member;
    changed.state = state;
    change(decision, &changed);
    static const char *const words[] = {"", "joining", "a member", "leaving", "down", "removed"};
    return accept(decision, member->number, "%s is %s", member->name, words[state]);
}

bool members_decide_down(const struct members *members, uint16_t number, struct members_alive alive,
    struct members_decision *decision_out)
{
    begin(decision_out);
    const struct member *member = members_by_number(members, number);
    if (member == NULL || member->state != MEMBER_MEMBER)
        return refuse(decision_out, "number %u is no running member", (unsigned)number);
    if (looks_alive(alive, number)) return refuse(decision_out, "%s looks alive", member->name);
    uint32_t total, living;
    count_holders(members, alive, &total, &living);
    if ((total - living) * 3 > total) {
        return refuse(decision_out, "%u of %u nodes look dead, more than a third: it may be us",
            (unsigned)(total - living), (unsigned)total);
    }
    return set_state(member, MEMBER_DOWN, decision_out);
}

bool members_decide_up(const struct members *members, uint16_t number, struct members_alive alive,
    struct members_decision *decision_out)
{
    begin(decision_out);
    const struct member *member = members_by_number(members, number);
    if (member == NULL || member->state != MEMBER_DOWN)
        return refuse(decision_out, "number %u is not down", (unsigned)number);
    if (!looks_alive(alive, number)) return refuse(decision_out, "%s looks dead", member->name);
    return set_state(member, MEMBER_MEMBER, decision_out);
}

bool members_decide_gone(const struct members *members, uint16_t number, bool named,
    struct members_decision *decision_out)
{
    begin(decision_out);
    const struct member *member = members_by_number(members, number);
    if (member == NULL || member->state != MEMBER_LEAVING)
        return refuse(decision_out, "number %u is not leaving", (unsigned)number);
    if (named) return refuse(decision_out, "%s still has replicas", member->name);
    return set_state(member, MEMBER_REMOVED, decision_out);
}

bool members_decide_replicas(
    const struct members *members, uint8_t replicas, struct members_decision *decision_out)
{
    begin(decision_out);
    if (replicas < 1 || replicas > MEMBERS_REPLICAS_MAX) {
        return refuse(decision_out, "replicas are from 1 to %u", (unsigned)MEMBERS_REPLICAS_MAX);
    }
    if (replicas != members->replicas) change_cluster(decision_out, members->next_number, replicas);
    return accept(decision_out, 0, "%u replicas of each range", (unsigned)replicas);
}
