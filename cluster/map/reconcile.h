#ifndef CLUSTER_MAP_RECONCILE_H
#define CLUSTER_MAP_RECONCILE_H

#include "base/bytes.h"

/* The next step of one group's configuration towards what the map wants, asked by its leader each
 * second and on events. Pure; base only. One guarded step at a time: learner, caught up, voter
 * (jointly with the removal of a voter that is not wanted), the rest is removed, the preferred
 * leader leads.
 *
 * Guards, asserted: no second change while one is under way; the present and the next configuration
 * have a majority that was heard from just now; a dead voter goes before a live one; one that
 * remains and is alive has every committed entry; the leader never removes itself, it hands over
 * first. Never fed by the failure detector: `active` is what the group's own leader hears. */

enum { RECONCILE_VOTERS_MAX = 7, RECONCILE_LEARNERS_MAX = 57, RECONCILE_LAG_MAX = 128 };

struct reconcile_peer {
    uint16_t number;
    /* heard from within the last election time-out, or new in the group; not only within the present
     * check-quorum window, as each of those begins with silence */
    bool active;
    bool snapshotting; /* gets a snapshot */
    uint64_t match; /* 0: unknown */
};

struct reconcile_input {
    uint16_t self; /* the leader that asks */
    /* wanted by the map, from an epoch not older than the one that made the present configuration */
    uint16_t desired[RECONCILE_VOTERS_MAX];
    uint8_t desired_count; /* 0: the map is not known yet; nothing is done */
    uint16_t preferred; /* leader; 0: nobody in particular */
    const uint16_t *observers; /* wanted as learners for good (meta group) */
    uint32_t observer_count;
    /* the configuration in force */
    uint16_t voters[RECONCILE_VOTERS_MAX], old_voters[RECONCILE_VOTERS_MAX];
    uint16_t learners[RECONCILE_LEARNERS_MAX];
    uint8_t voter_count, old_count, learner_count;
    /* of all but self; one that is missing counts as never heard from */
    const struct reconcile_peer *peers;
    uint32_t peer_count;
    uint64_t last, commit;
    bool
        change_pending; /* the newest configuration is not committed, or nothing of the own term is */
    bool restored_alone; /* this node has the only copy (restored): the group only grows */
    bool may_add; /* there is room for one more learner that catches up */
    bool may_transfer; /* the last hand-over to the preferred leader is long enough ago */
    bool hurry; /* waited long enough for a second learner: one is promoted alone */
};

enum reconcile_kind {
    RECONCILE_NONE,
    RECONCILE_ADD_LEARNER,
    RECONCILE_PROMOTE, /* learner to voter, plain */
    RECONCILE_JOINT, /* to `voters` */
    RECONCILE_LEAVE_JOINT,
    RECONCILE_REMOVE_LEARNER,
    RECONCILE_REMOVE_VOTER, /* plain */
    RECONCILE_TRANSFER,
};

struct reconcile_step {
    enum reconcile_kind kind;
    uint16_t node; /* of all but JOINT and LEAVE_JOINT */
    uint16_t
        voters[RECONCILE_VOTERS_MAX]; /* JOINT: sorted; those that were learners are so no more */
    uint8_t voter_count;
};

struct reconcile_step reconcile(const struct reconcile_input *input);

#endif
