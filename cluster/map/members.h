#ifndef CLUSTER_MAP_MEMBERS_H
#define CLUSTER_MAP_MEMBERS_H

#include "base/bytes.h"
#include "base/err.h"

/* The committed table of nodes: who belongs to the cluster. It is data of the meta group (range 0):
 * the leader of that group decides with members_decide_*(), proposes the records of the decision as
 * ordinary effects, and every replica gives what is applied to members_apply(). A packet alone
 * never makes anybody a member. Pure; base only.
 *
 * What the decisions protect: a number is given once and never again; a folder is known by its
 * store id, so a wiped disk never votes under its old name; an older copy of a folder, or a second
 * process on a copy, is refused; no change is taken that leaves a range without a majority of nodes
 * that look alive. Liveness is a hint of the failure detector: it can only make a decision be
 * refused, never be forced. */

enum {
    MEMBERS_MAX = 64,
    MEMBERS_NAME_MAX = 64, /* with the final NUL, like the next two */
    MEMBERS_ADDRESS_MAX = 80,
    MEMBERS_ZONE_MAX = 64,
    MEMBERS_STORE_ID = 16,
    MEMBERS_REPLICAS_MAX = 7,
    MEMBERS_DETAIL_MAX = 256,
    MEMBERS_KEY_MAX = 16,
    MEMBERS_VALUE_MAX = 512,
};

enum member_state {
    MEMBER_JOINING = 1, /* it has a number and has not started with it yet; holds nothing */
    MEMBER_MEMBER,
    MEMBER_LEAVING, /* its replicas move elsewhere; then members_decide_gone() */
    MEMBER_DOWN, /* committed as gone for long: its replicas are replaced if others can hold them */
    MEMBER_REMOVED, /* no group names it; it never comes back */
};

struct member {
    uint16_t number; /* from 1, never reused */
    uint16_t successor; /* who took its place and name; 0: nobody */
    uint8_t state; /* enum member_state */
    bool joined; /* has started with this number: groups may name it */
    bool replaceable; /* the operator allows that a new folder takes its name */
    uint64_t incarnation; /* starts of its folder, as of the last one the cluster knows */
    uint64_t boot; /* drawn at random by that process: tells it from a copy of its folder */
    uint8_t store_id[MEMBERS_STORE_ID];
    char name[MEMBERS_NAME_MAX];
    char peer[MEMBERS_ADDRESS_MAX], resp[MEMBERS_ADDRESS_MAX], http[MEMBERS_ADDRESS_MAX];
    char zone[MEMBERS_ZONE_MAX];
};

struct members {
    struct member at[MEMBERS_MAX]; /* by number; removed ones stay until their room is needed */
    uint32_t count;
    uint16_t next_number;
    uint8_t replicas; /* wanted per range */
    uint64_t epoch; /* index of the last change */
};

void members_init(struct members *members);

/* ---- stored form ---- */

/* Keys: "node/00007" and "cluster" (next number, replicas). Written with a final NUL. */
void members_key(uint16_t number, char key_out[MEMBERS_KEY_MAX]);
#define MEMBERS_CLUSTER_KEY "cluster"
/* Writes at most MEMBERS_VALUE_MAX bytes and returns how many. */
size_t member_encode(const struct member *member, uint8_t *at);
/* ERR_CORRUPT: not such a record; ERR_MISMATCH: of a newer version. */
enum err member_decode(struct bytes value, struct member *member_out) MUST_CHECK;
size_t members_cluster_encode(uint16_t next_number, uint8_t replicas, uint8_t *at);

/* An effect of the meta group was applied at `index`: the value of a key, or NULL if it was
 * deleted. ERR_NOT_FOUND: the key is none of this table's; ERR_CORRUPT, ERR_MISMATCH, ERR_FULL:
 * nothing was changed. */
enum err members_apply(struct members *members, uint64_t index, struct bytes key,
    const struct bytes *value) MUST_CHECK;

/* ---- who is who; NULL: nobody ---- */

const struct member *members_by_number(const struct members *members, uint16_t number);
/* Who has the name now: not removed, nobody took its place. */
const struct member *members_by_name(const struct members *members, const char *name);
const struct member *members_by_store(
    const struct members *members, const uint8_t store_id[MEMBERS_STORE_ID]);
/* Not removed. */
uint32_t members_present(const struct members *members);

/* Who may hold replicas, as place() wants it: all in state MEMBER; while they are fewer than
 * `replicas`, also those that are DOWN (a replica is replaced, not given up). zones_out[i]: equal
 * numbers for equal zones. Returns the count. */
uint32_t members_placeable(const struct members *members, uint16_t numbers_out[MEMBERS_MAX],
    uint16_t zones_out[MEMBERS_MAX]);

/* ---- decisions ---- */

/* Numbers of the nodes that look alive, the one deciding included. */
struct members_alive {
    const uint16_t *numbers;
    uint32_t count;
};

/* Accepted with nothing to propose (changed_count 0, no cluster change, nothing erased): it is so
 * already. */
struct members_decision {
    bool accepted;
    uint16_t number; /* accepted: of the node it is about */
    char detail
        [MEMBERS_DETAIL_MAX]; /* refused: why, one sentence with what to do; else what was done */
    struct member changed[2]; /* records to put */
    uint32_t changed_count;
    uint16_t erased; /* number whose record is to be deleted first; 0: none */
    bool cluster_changed; /* put the cluster record with the next two */
    uint16_t next_number;
    uint8_t replicas;
};

/* What a node says about itself. Texts may be NULL for "". */
struct members_identity {
    const char *name; /* join only; "": made up from the number */
    const char *zone, *peer, *resp, *http;
    uint8_t store_id[MEMBERS_STORE_ID];
    uint64_t incarnation;
    uint64_t boot;
};

/* All return decision_out->accepted. */

/* The first node of a new cluster, number 1, a member at once. */
bool members_decide_found(const struct members *members, const struct members_identity *identity,
    uint8_t replicas, struct members_decision *decision_out);
/* A node without a number asks for one. The same store again gets the same number. A name that
 * another store has is refused, unless `replace` is set (or `member replace` was run) and its
 * holder looks dead: then the newcomer takes its place. */
bool members_decide_join(const struct members *members, const struct members_identity *identity,
    bool replace, struct members_alive alive, struct members_decision *decision_out);
/* A node starts with the number its folder has; until it is accepted it must neither vote nor serve. */
bool members_decide_restart(const struct members *members, uint16_t number,
    const struct members_identity *identity, struct members_decision *decision_out);
/* The log of `number` is damaged: it asks to come back as a new node with an empty folder, under
 * the same name. identity is that of the damaged folder. The same new store again gets the same
 * number. */
bool members_decide_renew(const struct members *members, uint16_t number,
    const struct members_identity *identity, const uint8_t new_store_id[MEMBERS_STORE_ID],
    struct members_alive alive, struct members_decision *decision_out);
/* Operator: `member remove NAME`. */
bool members_decide_remove(const struct members *members, const char *name,
    struct members_alive alive, struct members_decision *decision_out);
/* Operator: `member replace NAME`: a join under that name with a new folder will be accepted. Void
 * when the old one comes back first. */
bool members_decide_replace(const struct members *members, const char *name,
    struct members_alive alive, struct members_decision *decision_out);
/* A member was not seen for long / is back for long enough (the caller measures how long). Down is
 * refused while more than a third look dead: then it is rather this node that is cut off. */
bool members_decide_down(const struct members *members, uint16_t number, struct members_alive alive,
    struct members_decision *decision_out);
bool members_decide_up(const struct members *members, uint16_t number, struct members_alive alive,
    struct members_decision *decision_out);
/* A leaving node; `named`: some group's configuration still names it. */
bool members_decide_gone(const struct members *members, uint16_t number, bool named,
    struct members_decision *decision_out);
/* Replicas wanted per range, 1 to MEMBERS_REPLICAS_MAX. */
bool members_decide_replicas(
    const struct members *members, uint8_t replicas, struct members_decision *decision_out);

#endif
