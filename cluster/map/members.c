#define _GNU_SOURCE
#include "cluster/map/members.h"

#include <stdio.h>

#include "base/check.h"

/* The table itself and its stored form; what may change in it is decided in members_decide.c. */

enum { VERSION = 1, FIXED = 1 + 1 + 1 + 1 + 2 + 2 + 8 + 8 + MEMBERS_STORE_ID, CLUSTER_SIZE = 8 };
enum { FLAG_JOINED = 1, FLAG_REPLACEABLE = 2 };

_Static_assert(
    FIXED + 5 + MEMBERS_NAME_MAX + 3 * MEMBERS_ADDRESS_MAX + MEMBERS_ZONE_MAX <= MEMBERS_VALUE_MAX,
    "the largest record fits");

void members_init(struct members *members)
{
    memset(members, 0, sizeof *members);
    members->next_number = 1;
    members->replicas = 3;
}

/* ---- stored form ---- */

void members_key(uint16_t number, char key_out[MEMBERS_KEY_MAX])
{
    snprintf(key_out, MEMBERS_KEY_MAX, "node/%05u", (unsigned)number);
}

/* 0: it is no such key. */
static uint16_t number_of_key(struct bytes key)
{
    if (key.size != 10 || memcmp(key.at, "node/", 5) != 0) return 0;
    uint32_t number = 0;
    for (size_t i = 5; i < key.size; i++) {
        if (key.at[i] < '0' || key.at[i] > '9') return 0;
        number = number * 10 + (uint32_t)(key.at[i] - '0');
    }
    return number > UINT16_MAX ? 0 : (uint16_t)number;
}

static uint8_t *put_text(uint8_t *at, const char *text, size_t max)
{
    size_t size = strnlen(text, max);
    ASSERT(size < max);
    *at++ = (uint8_t)size;
    memcpy(at, text, size);
    return at + size;
}

size_t member_encode(const struct member *member, uint8_t *at)
{
    ASSERT(member->number != 0 && member->number != UINT16_MAX);
    ASSERT(member->state >= MEMBER_JOINING && member->state <= MEMBER_REMOVED);
    memset(at, 0, FIXED);
    at[0] = VERSION;
    at[1] = member->state;
    at[2] = (uint8_t)((member->joined ? FLAG_JOINED : 0) |
        (member->replaceable ? FLAG_REPLACEABLE : 0));
    store_u16(at + 4, member->number);
    store_u16(at + 6, member->successor);
    store_u64(at + 8, member->incarnation);
    store_u64(at + 16, member->boot);
    memcpy(at + 24, member->store_id, MEMBERS_STORE_ID);
    uint8_t *end = at + FIXED;
    end = put_text(end, member->name, MEMBERS_NAME_MAX);
    end = put_text(end, member->peer, MEMBERS_ADDRESS_MAX);
    end = put_text(end, member->resp, MEMBERS_ADDRESS_MAX);
    end = put_text(end, member->http, MEMBERS_ADDRESS_MAX);
    end = put_text(end, member->zone, MEMBERS_ZONE_MAX);
    ASSERT(end - at <= MEMBERS_VALUE_MAX);
    return (size_t)(end - at);
}

static bool take_text(struct bytes *rest, char *text_out, size_t max)
{
    if (rest->size == 0 || rest->at[0] >= max || rest->at[0] > rest->size - 1) return false;
    size_t size = rest->at[0];
    for (size_t i = 1; i <= size; i++) {
        if (rest->at[i] < 0x20 || rest->at[i] == 0x7f) return false;
    }
    memcpy(text_out, rest->at + 1, size);
    *rest = bytes_of(rest->at + 1 + size, rest->size - 1 - size);
    return true;
}

enum err member_decode(struct bytes value, struct member *member_out)
{
    if (value.size < 1 || value.at[0] == 0) return ERR_CORRUPT;
    if (value.at[0] > VERSION) return ERR_MISMATCH;
    if (value.size < FIXED || value.at[3] != 0) return ERR_CORRUPT;
    struct member member = {.state = value.at[1],
        .joined = (value.at[2] & FLAG_JOINED) != 0,
        .replaceable = (value.at[2] & FLAG_REPLACEABLE) != 0,
        .number = load_u16(value.at + 4),
        .successor = load_u16(value.at + 6),
        .incarnation = load_u64(value.at + 8),
        .boot = load_u64(value.at + 16)};
    if (member.state < MEMBER_JOINING || member.state > MEMBER_REMOVED) return ERR_CORRUPT;
    if ((value.at[2] & ~(FLAG_JOINED | FLAG_REPLACEABLE)) != 0) return ERR_CORRUPT;
    if (member.number == 0 || member.number == UINT16_MAX) return ERR_CORRUPT;
    memcpy(member.store_id, value.at + 24, MEMBERS_STORE_ID);
    struct bytes rest = bytes_of(value.at + FIXED, value.size - FIXED);
    if (!take_text(&rest, member.name, MEMBERS_NAME_MAX) || member.name[0] == '\0' ||
        !take_text(&rest, member.peer, MEMBERS_ADDRESS_MAX) ||
        !take_text(&rest, member.resp, MEMBERS_ADDRESS_MAX) ||
        !take_text(&rest, member.http, MEMBERS_ADDRESS_MAX) ||
        !take_text(&rest, member.zone, MEMBERS_ZONE_MAX) || rest.size != 0)
        return ERR_CORRUPT;
    *member_out = member;
    return OK;
}

size_t members_cluster_encode(uint16_t next_number, uint8_t replicas, uint8_t *at)
{
    ASSERT(next_number != 0);
    ASSERT(replicas >= 1 && replicas <= MEMBERS_REPLICAS_MAX);
    memset(at, 0, CLUSTER_SIZE);
    at[0] = VERSION;
    at[1] = replicas;
    store_u16(at + 2, next_number);
    return CLUSTER_SIZE;
}

static enum err apply_cluster(struct members *members, const struct bytes *value)
{
    if (value == NULL || value->size < 1 || value->at[0] == 0) return ERR_CORRUPT;
    if (value->at[0] > VERSION) return ERR_MISMATCH;
    if (value->size != CLUSTER_SIZE || load_u32(value->at + 4) != 0) return ERR_CORRUPT;
    uint8_t replicas = value->at[1];
    uint16_t next_number = load_u16(value->at + 2);
    if (replicas < 1 || replicas > MEMBERS_REPLICAS_MAX || next_number == 0) return ERR_CORRUPT;
    members->replicas = replicas;
    members->next_number = next_number;
    return OK;
}

static enum err apply_member(struct members *members, uint16_t number, const struct bytes *value)
{
    struct member member;
    if (value != NULL) {
        TRY(member_decode(*value, &member));
        if (member.number != number) return ERR_CORRUPT;
    }
    uint32_t at = 0;
    while (at < members->count && members->at[at].number < number)
        at++;
    bool known = at < members->count && members->at[at].number == number;
    if (value != NULL && !known && members->count == MEMBERS_MAX) return ERR_FULL;
    struct member *place = &members->at[at];
    if (value != NULL && !known) {
        memmove(place + 1, place, (members->count - at) * sizeof *place);
        members->count++;
    } else if (value == NULL && known) {
        memmove(place, place + 1, (members->count - at - 1) * sizeof *place);
        members->count--;
        memset(&members->at[members->count], 0, sizeof *place);
    }
    if (value != NULL) *place = member;
    return OK;
}

enum err members_apply(
    struct members *members, uint64_t index, struct bytes key, const struct bytes *value)
{
    uint16_t number = number_of_key(key);
    if (number == 0 && !bytes_equal(key, bytes_of_text(MEMBERS_CLUSTER_KEY))) return ERR_NOT_FOUND;
    TRY(number == 0 ? apply_cluster(members, value) : apply_member(members, number, value));
    members->epoch = index;
    return OK;
}

/* ---- who is who ---- */

const struct member *members_by_number(const struct members *members, uint16_t number)
{
    for (uint32_t i = 0; i < members->count; i++) {
        if (members->at[i].number == number) return &members->at[i];
    }
    return NULL;
}

const struct member *members_by_name(const struct members *members, const char *name)
{
    for (uint32_t i = 0; i < members->count; i++) {
        const struct member *member = &members->at[i];
        if (member->state == MEMBER_REMOVED || member->successor != 0) continue;
        if (strcmp(member->name, name) == 0) return member;
    }
    return NULL;
}

const struct member *members_by_store(
    const struct members *members, const uint8_t store_id[MEMBERS_STORE_ID])
{
    for (uint32_t i = 0; i < members->count; i++) {
        if (memcmp(members->at[i].store_id, store_id, MEMBERS_STORE_ID) == 0)
            return &members->at[i];
    }
    return NULL;
}

uint32_t members_present(const struct members *members)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < members->count; i++)
        count += members->at[i].state != MEMBER_REMOVED;
    return count;
}

static uint16_t zone_of(const struct members *members, uint32_t index)
{
    for (uint32_t i = 0; i < index; i++) {
        if (strcmp(members->at[i].zone, members->at[index].zone) == 0) return (uint16_t)i;
    }
    return (uint16_t)index;
}

uint32_t members_placeable(const struct members *members, uint16_t numbers_out[MEMBERS_MAX],
    uint16_t zones_out[MEMBERS_MAX])
{
    static const uint8_t states[] = {MEMBER_MEMBER, MEMBER_DOWN};
    uint32_t count = 0;
    for (uint32_t pass = 0; pass < 2; pass++) {
        for (uint32_t i = 0; i < members->count; i++) {
            if (members->at[i].state != states[pass]) continue;
            if (pass == 1 && count >= members->replicas) break;
            numbers_out[count] = members->at[i].number;
            zones_out[count++] = zone_of(members, i);
        }
    }
    return count;
}
