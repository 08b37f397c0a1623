#include <stdio.h>
#include <stdlib.h>

#include "base/hash.h"
#include "cluster/map/reconcile.h"
#include "cluster/node/join.h"
#include "cluster/node/node_internal.h"

/* Who belongs to the cluster and who holds what. The table of members is data of range 0, which
 * every node has a copy of; its leader alone changes it. Each range's leader brings its group's
 * configuration to what the table's placement says, one guarded step at a time, and tells everybody
 * how its range is doing. The failure detector gives hints. */

enum {
    REPORT_MS = 1000,
    ANNOUNCE_MS = 1000,
    RECONCILE_MS = 100,
    HURRY_MS = 3000,
    TRANSFER_EVERY_MS = 60000,
    STALE_MS = 10000,
    ALONE_MS = 5000,
    REPORT_HEAD = 72,
    REPORT_REPLICA = 16,
    ANSWER_SLOTS = 64,
    ANSWER_NUMBER = 0xff40, /* addresses of nodes that ask to join */
};

/* ---- the table ---- */

static uint64_t boot_of(const struct node *node)
{
    return hash64(node->config.io->seed, bytes_of(&node->config.incarnation, 8)) | 1;
}

void membership_open(struct node *node)
{
    members_init(&node->members);
    struct swim_settings settings = swim_settings_default();
    swim_init(&node->swim, node->config.number, node->config.incarnation << 16, &settings,
        node->config.io->seed, node->now_ns / 1000000);
}

static bool load_one(void *ctx, struct bytes key, const struct value *value)
{
    struct node *node = ctx;
    if (load_u16_be(key.at) == META_BUCKET) return bucket_load(node, key, value);
    if (load_u16_be(key.at) != MEMBER_BUCKET) return true;
    struct bytes name = bytes_of(key.at + 2, key.size - 2);
    enum err err = members_apply(&node->members, value->version, name, &value->bytes);
    if (err != OK && err != ERR_NOT_FOUND)
        log_warn("a record of the member table cannot be read", "error=%s", err_name(err));
    return true;
}

enum err membership_load(struct node *node)
{
    enum err err = engine_scan(node->engine, META_RANGE, bytes_of(NULL, 0), false, load_one, node);
    engine_read_done(node->engine);
    return err;
}

void membership_applied(struct node *node, struct bytes effects)
{
    struct effect effect;
    uint64_t index = node->groups[META_RANGE]->applied + 1;
    while (effect_next(&effects, &effect) == OK) {
        if (effect.bucket == META_BUCKET && effect.kind == EFFECT_PUT) {
            uint8_t stored[KEY_SIZE_MAX_STORED];
            struct value value = {.bytes = effect.value};
            (void)bucket_load(node, effect_stored_key(stored, effect.bucket, effect.key), &value);
        }
        if (effect.bucket != MEMBER_BUCKET) continue;
        const struct bytes *value = effect.kind == EFFECT_PUT ? &effect.value : NULL;
        enum err err = members_apply(&node->members, index, effect.key, value);
        if (err != OK && err != ERR_NOT_FOUND)
            log_warn("a record of the member table cannot be read", "error=%s", err_name(err));
        node->members_epoch++;
    }
    if (node->members_epoch != node->placed_epoch && !node->opening) membership_table_changed(node);
}

static void place_ranges(struct node *node)
{
    uint16_t numbers[MEMBERS_MAX], zones[MEMBERS_MAX];
    uint32_t count = members_placeable(&node->members, numbers, zones);
    node->placeable = count;
    memset(node->placement, 0, node->group_slots * sizeof *node->placement);
    if (count == 0) return;
    place(numbers, zones, count, node->config.ranges, node->members.replicas, node->placement);
}

static void set_address(struct node *node, uint16_t number, const char *address)
{
    const struct net *net = &node->config.io->net;
    struct peer *peer = peer_of(node, number);
    if (net->ctx == NULL || peer == NULL) return;
    enum err err = net->set_peer(net->ctx, number, address);
    peer->addressed = address != NULL && err == OK;
    if (err != OK) log_warn("a member's address cannot be used", "member=%u", number);
}

void membership_first_peers(struct node *node)
{
    for (uint32_t i = 0; i < node->config.peer_count; i++) {
        const struct join_peer *peer = &node->config.peers[i];
        if (peer->number != node->config.number) set_address(node, peer->number, peer->address);
    }
}

void membership_table_changed(struct node *node)
{
    node->placed_epoch = node->members_epoch;
    uint32_t present = 0;
    for (uint32_t i = 0; i < node->members.count; i++) {
        const struct member *member = &node->members.at[i];
        bool gone = member->state == MEMBER_REMOVED;
        present += gone ? 0 : 1;
        if (member->number == node->config.number) {
            if (!gone && member->name[0] != '\0')
                snprintf(node->name, sizeof node->name, "%s", member->name);
            continue;
        }
        set_address(node, member->number, gone ? NULL : member->peer);
        uint64_t store = load_u64(member->store_id);
        if (gone) {
            swim_remove_member(&node->swim, member->number);
        } else if (swim_set_member(&node->swim, member->number, store) != OK) {
            log_warn("too many members for the failure detector", "member=%u", member->number);
        }
    }
    const struct group *meta = node->groups[META_RANGE];
    bool sole = meta != NULL && meta->raft.config.voter_count == 1 &&
        meta->raft.config.old_count == 0 && meta->raft.config.learner_count == 0 &&
        meta->raft.config.voters[0] == node->config.number;
    node->alone = present <= 1 && sole;
    place_ranges(node);
}

bool membership_looks_alive(const struct node *node, uint16_t number)
{
    return number == node->config.number || swim_state(&node->swim, number) <= SWIM_SUSPECT;
}

static struct members_alive alive_now(const struct node *node, uint16_t *numbers)
{
    struct members_alive alive = {.numbers = numbers};
    for (uint32_t i = 0; i < node->members.count; i++) {
        uint16_t number = node->members.at[i].number;
        if (node->members.at[i].state != MEMBER_REMOVED && membership_looks_alive(node, number))
            numbers[alive.count++] = number;
    }
    return alive;
}

/* ---- decisions of the meta group's leader ---- */

static bool put_record(struct node *node, const char *key, const uint8_t *value, size_t size)
{
    uint8_t *at = node_put_in(node, META_RANGE, MEMBER_BUCKET, bytes_of_text(key), size, 0);
    if (at == NULL) return false;
    memcpy(at, value, size);
    return true;
}

static bool changes_table(const struct members_decision *decision)
{
    return decision->accepted &&
        (decision->changed_count > 0 || decision->cluster_changed || decision->erased != 0);
}

/* logs what was decided; 0: nothing to log, or not now */
static ticket_t propose(struct node *node, const struct members_decision *decision)
{
    if (!decision->accepted || !node_serves(node, META_RANGE)) return 0;
    if (!changes_table(decision)) return 0;
    /* decided by the table as applied: no change may be under way that the decision does not know of */
    const struct group *meta = node->groups[META_RANGE];
    if (meta->raft.last != meta->applied) return 0;
    if (node_admit(node, 4 * MEMBERS_VALUE_MAX) != OK) return 0;
    node_txn_begin(node);
    bool done = true;
    char key[MEMBERS_KEY_MAX];
    uint8_t value[MEMBERS_VALUE_MAX];
    if (decision->erased != 0) {
        members_key(decision->erased, key);
        struct effect effect = {.kind = EFFECT_DELETE,
            .range = META_RANGE,
            .bucket = MEMBER_BUCKET,
            .key = bytes_of_text(key)};
        done = txn_add_effect(node, &effect, 0) != NULL;
    }
    for (uint32_t i = 0; i < decision->changed_count && done; i++) {
        members_key(decision->changed[i].number, key);
        done = put_record(node, key, value, member_encode(&decision->changed[i], value));
    }
    if (decision->cluster_changed && done) {
        size_t size = members_cluster_encode(decision->next_number, decision->replicas, value);
        done = put_record(node, MEMBERS_CLUSTER_KEY, value, size);
    }
    if (!done) {
        node_txn_abort(node);
        return 0;
    }
    return node_txn_commit(node);
}

static const char *text_or_empty(const char *text)
{
    return text == NULL ? "" : text;
}

static struct members_identity own_identity(const struct node *node)
{
    struct members_identity identity = {
        .name = node->name,
        .zone = text_or_empty(node->config.zone),
        .peer = text_or_empty(node->config.peer),
        .resp = text_or_empty(node->config.resp),
        .http = text_or_empty(node->config.http),
        .incarnation = node->config.incarnation,
        .boot = boot_of(node),
    };
    memcpy(identity.store_id, node->config.store_id, 16);
    return identity;
}

/* the record says what this process is */
static bool announced(const struct node *node)
{
    const struct member *self = members_by_number(&node->members, node->config.number);
    return self != NULL && self->joined && self->incarnation == node->config.incarnation &&
        self->boot == boot_of(node) && strcmp(self->peer, text_or_empty(node->config.peer)) == 0 &&
        strcmp(self->resp, text_or_empty(node->config.resp)) == 0 &&
        strcmp(self->http, text_or_empty(node->config.http)) == 0;
}

/* to a node that the transport does not know by number: it has none yet, or none any more */
static void send_to_address(struct node *node, const char *address, const struct buffer *frame)
{
    const struct net *net = &node->config.io->net;
    uint16_t slot = (uint16_t)(ANSWER_NUMBER + node->joiner_slot++ % ANSWER_SLOTS);
    if (frame->size > 0 && net->set_peer(net->ctx, slot, address) == OK)
        (void)net->send(net->ctx, slot, NET_CONTROL, buffer_view(frame));
}

/* no leader of the meta group for a while: perhaps the others go on without this node and cannot tell it */
static bool left_alone(const struct node *node)
{
    const struct group *meta = node->groups[META_RANGE];
    if (meta == NULL || meta->raft.role == RAFT_LEADER) return false;
    return meta->raft.now_ms - meta->raft.heard_ms > ALONE_MS;
}

static void announce(struct node *node)
{
    if (announced(node) && !left_alone(node)) return;
    if (node->now_ns < node->announce_ns) return;
    bool founding = node->members.count == 0 && node->config.number == 1;
    if (founding && !node_serves(node, META_RANGE)) return;
    node->announce_ns = node->now_ns + (uint64_t)ANNOUNCE_MS * 1000000;
    struct members_identity identity = own_identity(node);
    struct members_decision decision;
    if (node_serves(node, META_RANGE)) {
        bool first = members_by_number(&node->members, node->config.number) == NULL;
        if (first) {
            members_decide_found(
                &node->members, &identity, (uint8_t)node->config.replicas, &decision);
        } else {
            members_decide_restart(&node->members, node->config.number, &identity, &decision);
        }
        if (!decision.accepted) log_warn(decision.detail, "node=%s", node->name);
        (void)propose(node, &decision);
        return;
    }
    struct join_question question = {
        .incarnation = node->config.incarnation, .boot = boot_of(node)};
    memcpy(question.store_id, node->config.store_id, 16);
    snprintf(question.name, sizeof question.name, "%s", node->name);
    snprintf(question.zone, sizeof question.zone, "%s", identity.zone);
    snprintf(question.peer, sizeof question.peer, "%s", identity.peer);
    snprintf(question.resp, sizeof question.resp, "%s", identity.resp);
    snprintf(question.http, sizeof question.http, "%s", identity.http);
    uint8_t bytes[JOIN_MESSAGE_MAX];
    size_t size = join_question_encode(bytes, &question);
    for (uint32_t i = 0; i < node->peers_end; i++) {
        if (node->peers[i] != NULL && node->peers[i]->addressed)
            wire_send(node, (uint16_t)(i + 1), NET_CONTROL, WIRE_ANNOUNCE, node->config.number,
                bytes_of(bytes, size), bytes_of(NULL, 0));
    }
}

static struct members_identity identity_of(const struct join_question *question)
{
    struct members_identity identity = {
        .name = question->name,
        .zone = question->zone,
        .peer = question->peer,
        .resp = question->resp,
        .http = question->http,
        .incarnation = question->incarnation,
        .boot = question->boot,
    };
    memcpy(identity.store_id, question->store_id, 16);
    return identity;
}

/* Tells a process that it must not go on. */
static void refuse_restart(struct node *node, uint16_t number, const char *address, const char *why)
{
    log_warn("a node is refused", "number=%u why=\"%s\"", number, why);
    struct buffer frame = {0};
    struct bytes text = bytes_of_text(why);
    uint8_t *at = message_add(&frame, WIRE_ANNOUNCE, number, text.size);
    if (at != NULL) {
        memcpy(at, text.at, text.size);
        store_u16(at - MESSAGE_HEADER_SIZE + 2, 1);
        send_to_address(node, address, &frame);
    }
    buffer_deinit(&frame);
}

static void on_announce(struct node *node, uint16_t from, const struct message *message)
{
    struct join_question question;
    if (message->flags == 1) {
        /* the answer: this process must not go on */
        if (message->group != node->config.number) return;
        log_error("the cluster refuses this node", "why=\"%.*s\"", (int)message->body.size,
            (const char *)message->body.at);
        node->refused = true;
        return;
    }
    if (join_question_decode(message->body, &question) != OK || message->group != from) return;
    const struct member *member = members_by_number(&node->members, from);
    /* that a member is gone stays true: everybody who knows may say it */
    bool gone = member != NULL && (member->state == MEMBER_REMOVED || member->successor != 0);
    if (gone) {
        refuse_restart(node, from, question.peer,
            member->successor != 0 ? "another node has taken its place"
                                   : "it was removed from the cluster; start with an empty folder "
                                     "and --join to come back");
        return;
    }
    if (!node_serves(node, META_RANGE)) return;
    struct members_identity identity = identity_of(&question);
    struct members_decision decision;
    members_decide_restart(&node->members, from, &identity, &decision);
    if (decision.accepted) {
        (void)propose(node, &decision);
    } else {
        refuse_restart(node, from, question.peer, decision.detail);
    }
}

/* ---- joining ---- */

static void answer_join(
    struct node *node, const char *address, const struct members_decision *decision)
{
    struct join_result result = {
        .number = decision->number,
        .ranges = node->config.ranges,
        .replicas = node->members.replicas,
    };
    memcpy(result.cluster_id, node->config.cluster_id, 16);
    const struct member *member = members_by_number(&node->members, decision->number);
    if (decision->accepted && member == NULL) return; /* it will ask again */
    if (member != NULL) snprintf(result.name, sizeof result.name, "%s", member->name);
    snprintf(result.detail, sizeof result.detail, "%.190s", decision->detail);
    for (uint32_t i = 0; i < node->members.count && result.peer_count < JOIN_PEERS_MAX; i++) {
        const struct member *known = &node->members.at[i];
        if (known->state == MEMBER_REMOVED || known->number == decision->number) continue;
        struct join_peer *peer = &result.peers[result.peer_count++];
        peer->number = known->number;
        snprintf(peer->address, sizeof peer->address, "%s", known->peer);
    }
    uint8_t bytes[JOIN_MESSAGE_MAX];
    size_t size = join_answer_encode(bytes, !decision->accepted, &result);
    struct buffer frame = {0};
    uint8_t *at = message_add(&frame, WIRE_JOIN_REPLY, 0, size);
    if (at != NULL) {
        memcpy(at, bytes, size);
        send_to_address(node, address, &frame);
    }
    buffer_deinit(&frame);
}

static void on_join(struct node *node, const struct message *message)
{
    struct join_question question;
    if (join_question_decode(message->body, &question) != OK) return;
    if (!node_serves(node, META_RANGE)) {
        const struct group *meta = node->groups[META_RANGE];
        uint16_t leader = meta == NULL ? 0 : meta->raft.leader;
        if (leader != 0 && leader != node->config.number)
            wire_send(node, leader, NET_CONTROL, WIRE_JOIN, 0, message->body, bytes_of(NULL, 0));
        return;
    }
    if (members_by_number(&node->members, node->config.number) == NULL) return;
    uint16_t numbers[MEMBERS_MAX];
    struct members_alive alive = alive_now(node, numbers);
    struct members_identity identity = identity_of(&question);
    struct members_decision decision;
    if (question.renew_number != 0) {
        struct members_identity old = identity;
        memcpy(old.store_id, question.renew_store_id, 16);
        members_decide_renew(
            &node->members, question.renew_number, &old, question.store_id, alive, &decision);
    } else {
        members_decide_join(&node->members, &identity, question.replace, alive, &decision);
    }
    if (changes_table(&decision)) {
        /* the answer comes to the next question, when this is committed */
        if (propose(node, &decision) != 0)
            log_info("a node joins", "name=%s number=%u", question.name, decision.number);
        return;
    }
    answer_join(node, question.peer, &decision);
}

/* ---- the failure detector ---- */

static void send_swim(struct node *node)
{
    for (uint32_t i = 0; i < node->swim.message_count; i++) {
        const struct swim_message *message = &node->swim.messages[i];
        wire_send(node, message->to, NET_CONTROL, WIRE_SWIM, 0,
            bytes_of(message->bytes, message->size), bytes_of(NULL, 0));
    }
    for (uint32_t i = 0; i < node->swim.event_count; i++) {
        const struct swim_event *event = &node->swim.events[i];
        log_info("a member's state changed", "member=%u state=%s", event->node,
            swim_state_name(event->state));
        const struct net *net = &node->config.io->net;
        if (event->state == SWIM_ALIVE && net->ctx != NULL) net->kick(net->ctx, event->node);
    }
}

static void hint_down(struct node *node, uint16_t number)
{
    for (uint32_t i = 0; i < node->group_slots; i++) {
        struct group *group = node->groups[i];
        if (group == NULL || group->raft.leader != number) continue;
        raft_hint_down(&group->raft, number);
        group_ready(group);
    }
    requests_peer_down(node, number);
    catchup_peer_down(node, number);
}

void membership_event(struct node *node, uint16_t number, enum net_event event)
{
    struct peer *peer = number <= NODE_NUMBERS_MAX ? peer_of(node, number) : NULL;
    switch (event) {
    case NET_PEER_UP:
        if (peer != NULL) peer->up = true;
        swim_hint(&node->swim, number, true);
        break;
    case NET_PEER_DOWN:
        if (peer != NULL) peer->up = false;
        swim_hint(&node->swim, number, false);
        hint_down(node, number);
        break;
    case NET_PEER_STALLED:
        swim_hint(&node->swim, number, false);
        break;
    case NET_REFUSED_CLUSTER:
    case NET_REFUSED_CLONE:
        log_error(event == NET_REFUSED_CLUSTER
                ? "a peer refuses this node: it belongs to another cluster"
                : "a peer refuses this node: another process runs on (a copy of) this data folder",
            "peer=%u", number);
        node->refused = true;
        break;
    }
}

/* ---- reports ---- */

static uint32_t replicas_of(struct group *group, struct node_replica *out, uint32_t max)
{
    struct node *node = group->node;
    const struct raft_config *config = &group->raft.config;
    uint32_t count = 0;
    for (uint32_t i = 0; i < node->members.count && count < max; i++) {
        uint16_t number = node->members.at[i].number;
        bool voter = raft_config_is_voter(config, number);
        if (!voter && !raft_config_is_learner(config, number)) continue;
        bool self = number == node->config.number;
        const struct raft_progress *progress = self ? NULL : raft_progress_of(&group->raft, number);
        out[count++] = (struct node_replica){
            .number = number,
            .voter = voter,
            .local = self,
            .faulty = self && group->quarantined,
            .match = self          ? group->raft.last
                : progress != NULL ? progress->match
                                   : 0,
        };
    }
    return count;
}

static size_t encode_report(struct group *group, uint8_t *at)
{
    struct node_replica replicas[16];
    uint32_t count = replicas_of(group, replicas, 16);
    const struct index_hash *hash = &group->hashes[group->hash_at];
    if (group->hash_index != hash->index) {
        group->hash_index = hash->index;
        memset(group->peer_hash, 0, sizeof group->peer_hash);
    }
    store_u64(at, group->raft.term);
    store_u64(at + 8, group->applied);
    store_u64(at + 16, group->raft.commit);
    store_u64(at + 24, group->raft.config_index);
    store_u64(at + 32, hash->index);
    store_u64(at + 40, hash->hash);
    store_u64(at + 48, count);
    store_u64(at + 56, group->raft.first);
    store_u64(at + 64, group->raft.config_index <= group->raft.commit ? 1 : 0);
    for (uint32_t i = 0; i < count; i++) {
        uint8_t *replica = at + REPORT_HEAD + (size_t)i * REPORT_REPLICA;
        store_u64(replica, replicas[i].number | (uint64_t)replicas[i].voter << 16);
        store_u64(replica + 8, replicas[i].match);
    }
    return REPORT_HEAD + (size_t)count * REPORT_REPLICA;
}

/* A node that was down while members came has a table without them, and could not answer a leader among them. */
static void tell_address(struct node *node)
{
    struct bytes address = bytes_of_text(text_or_empty(node->config.peer));
    for (uint32_t m = 0; m < node->members.count; m++) {
        const struct member *member = &node->members.at[m];
        if (member->state == MEMBER_REMOVED || member->number == node->config.number) continue;
        wire_send(node, member->number, NET_CONTROL, WIRE_ADDRESS, 0, address, bytes_of(NULL, 0));
    }
}

static void on_address(struct node *node, uint16_t from, struct bytes address)
{
    char text[MEMBERS_ADDRESS_MAX];
    const struct peer *peer = peer_of(node, from);
    if (peer == NULL || peer->addressed || address.size == 0 || address.size >= sizeof text) return;
    if (memchr(address.at, 0, address.size) != NULL) return;
    memcpy(text, address.at, address.size);
    text[address.size] = '\0';
    set_address(node, from, text);
}

static void report_ranges(struct node *node)
{
    uint8_t bytes[REPORT_HEAD + 16 * REPORT_REPLICA];
    bool leads = false;
    for (uint32_t i = 0; i < node->group_slots; i++) {
        struct group *group = node->groups[i];
        if (group == NULL || group->raft.role != RAFT_LEADER) continue;
        leads = true;
        size_t size = encode_report(group, bytes);
        for (uint32_t m = 0; m < node->members.count; m++) {
            const struct member *member = &node->members.at[m];
            if (member->state == MEMBER_REMOVED || member->number == node->config.number) continue;
            wire_send(node, member->number, NET_CONTROL, WIRE_REPORT, i, bytes_of(bytes, size),
                bytes_of(NULL, 0));
        }
    }
    if (leads) tell_address(node);
}

/* compares with what this replica had at the same index and tells the leader */
static void compare_hash(
    struct node *node, uint16_t from, struct group *group, uint64_t index, uint64_t hash)
{
    if (index == 0) return;
    for (int i = 0; i < HASHES_KEPT; i++) {
        if (group->hashes[i].index != index) continue;
        if (group->hashes[i].hash != hash)
            log_error("this replica differs from its leader", "range=%u index=%llu", group->id,
                (unsigned long long)index);
        uint8_t *at = wire_add(node, from, NET_CONTROL, WIRE_HASH, group->id, 16);
        if (at == NULL) return;
        store_u64(at, index);
        store_u64(at + 8, group->hashes[i].hash);
        return;
    }
}

static void on_report(struct node *node, uint16_t from, const struct message *message)
{
    if (message->group >= node->group_slots || message->body.size < REPORT_HEAD) return;
    const uint8_t *at = message->body.at;
    uint64_t count = load_u64(at + 48);
    if (count > 16 || message->body.size < REPORT_HEAD + count * REPORT_REPLICA) return;
    struct range_report *report = &node->reports[message->group];
    uint64_t term = load_u64(at);
    if (term < report->term) return;
    *report = (struct range_report){
        .term = term,
        .applied = load_u64(at + 8),
        .committed = load_u64(at + 16),
        .config_index = load_u64(at + 24),
        .heard_ns = node->now_ns,
        .leader = from,
        .count = (uint32_t)count,
    };
    bool named = false;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t word = load_u64(at + REPORT_HEAD + i * REPORT_REPLICA);
        report->replicas[i] = (struct node_replica){
            .number = (uint16_t)word,
            .voter = (word >> 16 & 1) != 0,
            .match = load_u64(at + REPORT_HEAD + i * REPORT_REPLICA + 8),
        };
        if (report->replicas[i].number == node->config.number) {
            named = true;
            report->replicas[i].local = true;
        }
    }
    struct group *group = node->groups[message->group];
    if (group == NULL) return;
    if (named) {
        group->stale_ns = 0;
        if (term == group->raft.term)
            compare_hash(node, from, group, load_u64(at + 32), load_u64(at + 40));
    } else if (load_u64(at + 64) == 0) {
        group->stale_ns = 0; /* a change that is not committed may still be undone */
    } else if (group->stale_ns == 0 && report->config_index >= group->raft.config_index) {
        group->stale_ns = node->now_ns;
    }
}

void membership_on_message(
    struct node *node, const struct net_peer *from, const struct message *message)
{
    switch (message->type) {
    case WIRE_SWIM:
        /* the message is padded to 8; the failure detector's codec knows its own end */
        swim_step(&node->swim, from->node, message->body, node->now_ns / 1000000);
        send_swim(node);
        break;
    case WIRE_JOIN:
        on_join(node, message);
        break;
    case WIRE_ANNOUNCE:
        on_announce(node, from->node, message);
        break;
    case WIRE_REPORT:
        on_report(node, from->node, message);
        break;
    case WIRE_ADDRESS:
        on_address(node, from->node, message->body);
        break;
    default:
        break;
    }
}

/* ---- reconciling ---- */

_Static_assert((int)RECONCILE_VOTERS_MAX == (int)RAFT_VOTERS_MAX &&
        (int)RECONCILE_LEARNERS_MAX == (int)RAFT_LEARNERS_MAX,
    "the reconciler and the core mean the same sets");

static void fill_desired(struct node *node, const struct group *group,
    struct reconcile_input *input, uint16_t *observers)
{
    const struct place_range *wanted = &node->placement[group->id];
    for (uint8_t i = 0; i < wanted->count; i++)
        input->desired[input->desired_count++] = wanted->nodes[i];
    if (group->id != META_RANGE) return;
    for (uint32_t i = 0; i < node->members.count; i++) {
        const struct member *member = &node->members.at[i];
        if (member->state == MEMBER_REMOVED || !member->joined) continue;
        bool voter = false;
        for (uint8_t d = 0; d < wanted->count; d++)
            voter = voter || wanted->nodes[d] == member->number;
        if (!voter) observers[input->observer_count++] = member->number;
    }
}

static bool take_step(struct group *group, const struct reconcile_step *step)
{
    struct raft_config next = group->raft.config;
    switch (step->kind) {
    case RECONCILE_NONE:
        return false;
    case RECONCILE_TRANSFER:
        group->transfer_ns = group->node->now_ns;
        raft_transfer(&group->raft, step->node);
        group_ready(group);
        return true;
    case RECONCILE_LEAVE_JOINT:
        raft_config_leave(&group->raft.config, &next);
        break;
    default:
        group_next_config(&next, step->kind, step->node, step->voters, step->voter_count);
        break;
    }
    return group_propose_config(group, &next);
}

static void reconcile_group(struct node *node, struct group *group)
{
    struct raft *raft = &group->raft;
    const struct raft_config *config = &raft->config;
    if (raft->transfer_to != 0) return;
    struct reconcile_peer peers[RAFT_PEERS_MAX];
    uint16_t observers[MEMBERS_MAX];
    bool crowded = node->placeable > node->members.replicas;
    struct reconcile_input input = {
        .self = node->config.number,
        .preferred = crowded ? node->placement[group->id].leader : 0,
        .observers = observers,
        .voter_count = config->voter_count,
        .old_count = config->old_count,
        .learner_count = config->learner_count,
        .peers = peers,
        .peer_count = raft->progress_count,
        .last = raft->last,
        .commit = raft->commit,
        .change_pending = raft->config_index > raft->commit || !raft_serving(raft),
        .may_add = true,
        .may_transfer = node->now_ns - group->transfer_ns > (uint64_t)TRANSFER_EVERY_MS * 1000000,
        .hurry = group->reconcile_ns != 0 &&
            node->now_ns - group->reconcile_ns > (uint64_t)HURRY_MS * 1000000,
    };
    fill_desired(node, group, &input, observers);
    memcpy(input.voters, config->voters, sizeof input.voters);
    memcpy(input.old_voters, config->old_voters, sizeof input.old_voters);
    memcpy(input.learners, config->learners, sizeof input.learners);
    for (uint32_t i = 0; i < raft->progress_count; i++) {
        const struct raft_progress *progress = &raft->progress[i];
        peers[i] = (struct reconcile_peer){
            .number = progress->node,
            .active = progress->heard_ms != 0 &&
                raft->now_ms - progress->heard_ms < 2 * raft->settings.election_ms,
            .snapshotting = progress->state == RAFT_SNAPSHOT,
            .match = progress->match,
        };
    }
    struct reconcile_step step = reconcile(&input);
    bool settled = config->learner_count == input.observer_count && config->old_count == 0;
    /* how long it has been on the way somewhere */
    if (settled && step.kind == RECONCILE_NONE) {
        group->reconcile_ns = 0;
    } else if (group->reconcile_ns == 0) {
        group->reconcile_ns = node->now_ns;
    }
    if (take_step(group, &step) && step.kind == RECONCILE_PROMOTE)
        log_info("a learner became a voter", "range=%u member=%u", group->id, step.node);
}

static void drop_stale(struct node *node, struct group *group)
{
    bool old =
        group->stale_ns != 0 && node->now_ns - group->stale_ns > (uint64_t)STALE_MS * 1000000;
    if (!old || group->id == META_RANGE || group->raft.role == RAFT_LEADER) return;
    if (group->applied == 0 && group->raft.last == 0) return;
    catchup_drop_data(group);
}

static void meta_duties(struct node *node)
{
    uint16_t numbers[MEMBERS_MAX];
    struct members_alive alive = alive_now(node, numbers);
    for (uint32_t i = 0; i < node->members.count; i++) {
        const struct member *member = &node->members.at[i];
        uint16_t number = member->number;
        struct members_decision decision = {0};
        bool looks_alive = membership_looks_alive(node, number);
        uint64_t *since = &node->seen_ns[number % MEMBERS_MAX];
        bool expected = member->state == MEMBER_MEMBER ? looks_alive : !looks_alive;
        if (expected || *since == 0) *since = node->now_ns;
        uint64_t for_s = (node->now_ns - *since) / 1000000000;
        if (member->state == MEMBER_MEMBER && for_s >= 600) {
            members_decide_down(&node->members, number, alive, &decision);
        } else if (member->state == MEMBER_DOWN && for_s >= 300) {
            members_decide_up(&node->members, number, alive, &decision);
        } else if (member->state == MEMBER_LEAVING) {
            bool named = false;
            for (uint32_t r = 0; r < node->group_slots; r++) {
                struct node_range range;
                node_range_status(node, (uint16_t)r, &range);
                named = named || range.leader == 0;
                /* a copy of the meta group's data goes when the member has gone */
                for (uint32_t k = 0; k < range.replica_count; k++)
                    named = named ||
                        (range.replicas[k].number == number &&
                            (r != META_RANGE || range.replicas[k].voter));
            }
            members_decide_gone(&node->members, number, named, &decision);
        }
        if (decision.accepted && propose(node, &decision) != 0) return;
    }
}

void membership_tick(struct node *node)
{
    if (node->config.io->net.ctx == NULL) {
        announce(node);
        return;
    }
    swim_tick(&node->swim, node->now_ns / 1000000);
    send_swim(node);
    announce(node);
    if (node->now_ns >= node->reconcile_ns) {
        node->reconcile_ns = node->now_ns + (uint64_t)RECONCILE_MS * 1000000;
        for (uint32_t i = 0; i < node->group_slots && !node->handing_over; i++) {
            struct group *group = node->groups[i];
            if (group == NULL) continue;
            if (group->raft.role == RAFT_LEADER) {
                group->stale_ns = 0; /* whoever left it out leads no more */
                reconcile_group(node, group);
            } else {
                drop_stale(node, group);
            }
        }
    }
    if (node->now_ns >= node->report_ns) {
        node->report_ns = node->now_ns + (uint64_t)REPORT_MS * 1000000;
        report_ranges(node);
        if (node_serves(node, META_RANGE)) meta_duties(node);
    }
}

/* ---- operator's changes ---- */

static void reply_text(struct buffer *reply, bool done, const char *text)
{
    (void)buffer_printf(reply, "%c%s", done ? '+' : '-', text);
}

static ticket_t execute_transfer(
    struct node *node, uint16_t range, const char *name, struct buffer *reply)
{
    const struct member *member = members_by_name(&node->members, name);
    struct group *group = group_of(node, range);
    if (member == NULL || group == NULL) {
        reply_text(reply, false, "there is no such member or range");
    } else if (member->number == node->config.number) {
        reply_text(reply, true, "it leads already");
    } else if (!raft_config_is_voter(&group->raft.config, member->number)) {
        reply_text(reply, false, "that member has no vote in the range");
    } else if (!membership_looks_alive(node, member->number)) {
        reply_text(reply, false, "that member does not answer");
    } else if (!raft_transfer(&group->raft, member->number)) {
        reply_text(reply, false, "the hand-over cannot start now; try again");
    } else {
        reply_text(reply, true, "the leadership is being handed over");
        group_ready(group);
    }
    return 0;
}

ticket_t membership_execute(struct node *node, struct bytes body, struct buffer *reply)
{
    char name[MEMBERS_NAME_MAX] = "";
    if (body.size < 4 || body.size - 4 >= sizeof name) {
        reply_text(reply, false, "malformed request");
        return 0;
    }
    memcpy(name, body.at + 4, body.size - 4);
    uint16_t what = load_u16(body.at), range = load_u16(body.at + 2);
    if (what == NODE_LEADER_TRANSFER) return execute_transfer(node, range, name, reply);
    uint16_t numbers[MEMBERS_MAX];
    struct members_alive alive = alive_now(node, numbers);
    struct members_decision decision = {0};
    if (what == NODE_MEMBER_REMOVE) {
        members_decide_remove(&node->members, name, alive, &decision);
    } else if (what == NODE_MEMBER_REPLACE) {
        members_decide_replace(&node->members, name, alive, &decision);
    } else {
        snprintf(decision.detail, sizeof decision.detail, "unknown change");
    }
    ticket_t ticket = propose(node, &decision);
    if (ticket == 0 && changes_table(&decision))
        reply_text(reply, false, "another change is under way; try again");
    else
        reply_text(reply, decision.accepted, decision.detail);
    return ticket;
}

enum err node_admin_start(struct node *node, struct node_request *request, enum node_admin what,
    const char *name, uint16_t range)
{
    uint8_t body[4 + MEMBERS_NAME_MAX];
    size_t size = strlen(name);
    if (size >= MEMBERS_NAME_MAX) return ERR_TOO_LARGE;
    store_u16(body, (uint16_t)what);
    store_u16(body + 2, range);
    memcpy(body + 4, name, size);
    request->admin = true;
    request->read_only = false;
    bool transfer = what == NODE_LEADER_TRANSFER;
    if (transfer && range >= node->group_slots) return ERR_INVALID;
    return node_request_start(
        node, request, transfer ? range : META_RANGE, bytes_of(body, 4 + size));
}

/* ---- what others may ask ---- */

uint32_t node_members(const struct node *node, struct node_member *out, uint32_t max)
{
    uint32_t count = 0;
    /* in the first moments its own record is not committed yet */
    if (members_by_number(&node->members, node->config.number) == NULL && max > 0) {
        struct node_member *to = &out[count++];
        *to = (struct node_member){.number = node->config.number};
        snprintf(to->name, sizeof to->name, "%s", node->name);
        snprintf(to->peer, sizeof to->peer, "%s", text_or_empty(node->config.peer));
        snprintf(to->resp, sizeof to->resp, "%s", text_or_empty(node->config.resp));
        snprintf(to->http, sizeof to->http, "%s", text_or_empty(node->config.http));
        snprintf(to->zone, sizeof to->zone, "%s", text_or_empty(node->config.zone));
    }
    for (uint32_t i = 0; i < node->members.count; i++) {
        const struct member *member = &node->members.at[i];
        if (member->state == MEMBER_REMOVED) continue;
        if (count < max) {
            struct node_member *to = &out[count];
            *to = (struct node_member){.number = member->number};
            enum swim_state state = member->number == node->config.number
                ? SWIM_ALIVE
                : swim_state(&node->swim, member->number);
            to->state = (enum node_state)state;
            snprintf(to->name, sizeof to->name, "%s", member->name);
            snprintf(to->peer, sizeof to->peer, "%s", member->peer);
            snprintf(to->resp, sizeof to->resp, "%s", member->resp);
            snprintf(to->http, sizeof to->http, "%s", member->http);
            snprintf(to->zone, sizeof to->zone, "%s", member->zone);
        }
        count++;
    }
    return count;
}

const char *node_member_name(const struct node *node, uint16_t number)
{
    if (number == node->config.number) return node->name;
    const struct member *member = members_by_number(&node->members, number);
    return member == NULL ? NULL : member->name;
}

void node_range_status(const struct node *node, uint16_t range, struct node_range *out)
{
    *out = (struct node_range){.id = range, .catching_up = 1};
    struct group *group = group_of(node, range);
    const struct range_report *report = &node->reports[range];
    bool member = group != NULL &&
        (group->raft.role == RAFT_LEADER || report->term < group->raft.term || report->count == 0);
    if (member) {
        out->replica_count = replicas_of(group, out->replicas, 16);
    } else {
        out->replica_count = report->count;
        memcpy(out->replicas, report->replicas, sizeof out->replicas);
    }
    bool fresh = report->heard_ns != 0 && node->now_ns - report->heard_ns < UINT64_C(5000000000);
    if (group != NULL && group->raft.last > 0) {
        out->term = group->raft.term;
        out->leader = group->raft.leader;
        out->applied = group->applied;
        out->committed = group->raft.commit;
        out->catching_up = catchup_progress(group);
    } else {
        out->term = report->term;
        out->applied = report->applied;
        out->committed = report->committed;
        out->leader = fresh ? report->leader : 0;
    }
}
