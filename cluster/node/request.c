#include <stdlib.h>

#include "cluster/node/node_internal.h"

/* Requests for any range from any node. Where it started, a request looks for the leader: it waits while there is
 * none, goes to the leader's node, and comes back here when that node says it does not lead. It is sent again
 * only if it certainly was not evaluated, or only reads. Where it is evaluated, requests of one node are taken in
 * the order they came, and a reply leaves when its ticket is done.
 *
 *   REQUEST  u64 id | u32 flags | u32 0 | body
 *   REPLY    u64 id | u32 how | u16 leader, if known | u16 0 | reply
 */

enum { HEAD = 16, PASSED_MS = 200, REQUEST_READ_ONLY = 1, REQUEST_ADMIN = 2 };

enum request_state { REQUEST_WAITING = 1, REQUEST_SENT, REQUEST_HERE };

enum reply_how { REPLY_DONE = 1, REPLY_NOT_LEADER, REPLY_UNKNOWN, REPLY_REFUSED };

struct execution_item {
    struct execution_item *next;
    uint64_t id;
    uint16_t origin; /* 0: here */
    uint16_t range;
    uint32_t flags;
    uint64_t deadline_ns;
    ticket_t ticket;
    struct buffer reply;
    size_t size;
    uint8_t body[];
};

/* ---- where a request started ---- */

static void unlink_request(struct node_request *request)
{
    if (request->at == NULL) return;
    *request->at = request->next;
    if (request->next != NULL) request->next->at = request->at;
    request->at = NULL;
    request->next = NULL;
}

static void finish(struct node_request *request, enum node_outcome outcome, struct bytes reply)
{
    unlink_request(request);
    buffer_deinit(&request->body);
    request->state = 0;
    request->done(request, outcome, reply);
}

/* What this replica's group says counts, unless a leader of a later term has reported: the group
 * may have gone on without this node. */
uint16_t node_range_leader(const struct node *node, uint16_t range)
{
    const struct group *group = group_of(node, range);
    const struct range_report *report = &node->reports[range];
    uint64_t age_ns = node->now_ns - report->heard_ns;
    bool fresh = report->leader != 0 && age_ns < UINT64_C(3000000000);
    bool newer = group == NULL || report->term > group->raft.term ||
        (group->raft.leader == 0 &&
            (group->stale_ns != 0 ||
                !raft_config_is_voter(&group->raft.config, node->config.number)));
    if (newer) return fresh ? report->leader : 0;
    return group->raft.leader;
}

static void enqueue_execution(struct node *node, struct execution_item *item)
{
    item->next = NULL;
    if (node->executions == NULL) {
        node->executions = item;
    } else {
        node->executions_last->next = item;
    }
    node->executions_last = item;
}

static struct execution_item *execution_new(struct node *node, uint16_t origin, uint16_t range,
    uint64_t id, uint32_t flags, struct bytes body)
{
    struct execution_item *item = malloc(sizeof *item + body.size);
    if (item == NULL) return NULL;
    *item = (struct execution_item){
        .id = id, .origin = origin, .range = range, .flags = flags, .size = body.size};
    item->deadline_ns = node->now_ns + (uint64_t)node->config.deadline_ms * 1000000;
    if (body.size > 0) memcpy(item->body, body.at, body.size);
    return item;
}

static uint32_t flags_of(const struct node_request *request)
{
    return (request->read_only ? REQUEST_READ_ONLY : 0) | (request->admin ? REQUEST_ADMIN : 0);
}

/* sends the request to whoever leads, or leaves it waiting */
static void route(struct node *node, struct node_request *request)
{
    struct group *group = group_of(node, request->range);
    struct bytes body = buffer_view(&request->body);
    if (group != NULL && group->raft.role == RAFT_LEADER) {
        if (!node_serves(node, request->range)) return;
        struct execution_item *item =
            execution_new(node, 0, request->range, request->id, flags_of(request), body);
        if (item == NULL) return;
        item->deadline_ns = request->deadline_ns;
        enqueue_execution(node, item);
        request->state = REQUEST_HERE;
        return;
    }
    uint16_t leader = node_range_leader(node, request->range);
    if (leader == 0 || leader == node->config.number) return;
    uint8_t head[HEAD] = {0};
    store_u64(head, request->id);
    store_u32(head + 8, flags_of(request));
    if (!wire_send(node, leader, NET_DATA, WIRE_REQUEST, request->range,
            bytes_of(head, sizeof head), body))
        return;
    request->state = REQUEST_SENT;
    request->sent_to = leader;
    node->stats.forwarded++;
}

enum err node_request_start(
    struct node *node, struct node_request *request, uint16_t range, struct bytes body)
{
    if (body.size > NODE_REQUEST_MAX) return ERR_TOO_LARGE;
    request->body = (struct buffer){0};
    TRY(buffer_append(&request->body, body.at, body.size));
    request->id = node->request_next++;
    request->range = range;
    request->sent_to = 0;
    request->passed_ns = 0;
    request->state = REQUEST_WAITING;
    request->deadline_ns = node->now_ns + (uint64_t)node->config.deadline_ms * 1000000;
    request->next = node->requests;
    request->at = &node->requests;
    if (request->next != NULL) request->next->at = &request->next;
    node->requests = request;
    route(node, request);
    return OK;
}

void node_request_cancel(struct node *node, struct node_request *request)
{
    (void)node;
    unlink_request(request);
    buffer_deinit(&request->body);
    request->state = 0;
}

static struct node_request *find_request(struct node *node, uint64_t id)
{
    struct node_request *request = node->requests;
    while (request != NULL && request->id != id)
        request = request->next;
    return request;
}

/* what became of a request that was sent or evaluated */
static void settle(
    struct node *node, struct node_request *request, enum reply_how how, struct bytes reply)
{
    switch (how) {
    case REPLY_DONE:
        finish(request, NODE_REPLIED, reply);
        break;
    case REPLY_NOT_LEADER:
    case REPLY_REFUSED:
        /* certainly not applied: the next tick looks for the leader anew */
        request->state = REQUEST_WAITING;
        request->sent_to = 0;
        break;
    default:
        if (request->read_only || PLANTED_BUG(62)) {
            request->state = REQUEST_WAITING;
            request->sent_to = 0;
        } else {
            node->stats.unknown++;
            finish(request, NODE_UNKNOWN, bytes_of(NULL, 0));
        }
        break;
    }
}

void requests_peer_down(struct node *node, uint16_t number)
{
    for (struct node_request *request = node->requests, *next; request != NULL; request = next) {
        next = request->next;
        if (request->state == REQUEST_SENT && request->sent_to == number)
            settle(node, request, REPLY_UNKNOWN, bytes_of(NULL, 0));
    }
}

/* ---- where it is evaluated ---- */

static void item_free(struct execution_item *item)
{
    buffer_deinit(&item->reply);
    free(item);
}

static void answer(struct node *node, struct execution_item *item, enum reply_how how)
{
    struct bytes reply = how == REPLY_DONE ? buffer_view(&item->reply) : bytes_of(NULL, 0);
    if (item->origin == 0) {
        struct node_request *request = find_request(node, item->id);
        if (request != NULL && request->state == REQUEST_HERE) settle(node, request, how, reply);
    } else {
        uint8_t head[HEAD] = {0};
        store_u64(head, item->id);
        store_u32(head + 8, how);
        store_u16(head + 12, node_range_leader(node, item->range));
        wire_send(node, item->origin, NET_DATA, WIRE_REPLY, item->range,
            bytes_of(head, sizeof head), reply);
    }
    item_free(item);
}

/* false: no room now */
static bool evaluate(struct node *node, struct execution_item *item)
{
    struct bytes body = bytes_of(item->body, item->size);
    if ((item->flags & REQUEST_ADMIN) != 0) {
        item->ticket = membership_execute(node, body, &item->reply);
        return true;
    }
    struct node_execution execution = {.range = item->range, .body = body, .reply = &item->reply};
    if (node->config.execute == NULL) return true;
    if (!node->config.execute(node->config.ctx, &execution)) return false;
    item->ticket = execution.ticket;
    return true;
}

static bool blocked(const uint16_t *origins, uint32_t count, uint16_t origin)
{
    for (uint32_t i = 0; i < count; i++) {
        if (origins[i] == origin) return true;
    }
    return false;
}

static void run_executions(struct node *node)
{
    struct execution_item *item = node->executions;
    node->executions = node->executions_last = NULL;
    uint16_t origins[NODE_MEMBERS_MAX]; /* whose earlier request found no room */
    uint32_t origin_count = 0;
    while (item != NULL) {
        struct execution_item *next = item->next;
        if (blocked(origins, origin_count, item->origin)) {
            enqueue_execution(node, item);
        } else if (node->now_ns >= item->deadline_ns) {
            answer(node, item, REPLY_REFUSED);
        } else if (!node_serves(node, item->range)) {
            answer(node, item, REPLY_NOT_LEADER);
        } else if (!evaluate(node, item)) {
            buffer_reset(&item->reply, 0);
            if (origin_count < NODE_MEMBERS_MAX) origins[origin_count++] = item->origin;
            enqueue_execution(node, item);
        } else {
            node->stats.executed++;
            item->next = node->replies;
            node->replies = item;
        }
        item = next;
    }
}

static void send_replies(struct node *node)
{
    struct execution_item **at = &node->replies;
    while (*at != NULL) {
        struct execution_item *item = *at;
        enum ticket_state state = item->ticket == 0 ? TICKET_DONE : node_ticket(node, item->ticket);
        if (state == TICKET_WAITING) {
            at = &item->next;
            continue;
        }
        *at = item->next;
        answer(node, item,
            state == TICKET_DONE          ? REPLY_DONE
                : state == TICKET_UNKNOWN ? REPLY_UNKNOWN
                                          : REPLY_REFUSED);
    }
}

void requests_turn(struct node *node)
{
    if (node->executions != NULL) run_executions(node);
    if (node->replies != NULL) send_replies(node);
}

/* Somebody else leads the range now, and the one that was asked has not answered for a while: it hangs. */
static bool passed_over(const struct node *node, struct node_request *request)
{
    uint16_t leader = node_range_leader(node, request->range);
    if (leader == 0 || leader == request->sent_to) {
        request->passed_ns = 0;
        return false;
    }
    if (request->passed_ns == 0) request->passed_ns = node->now_ns;
    return node->now_ns - request->passed_ns > (uint64_t)PASSED_MS * 1000000;
}

void requests_tick(struct node *node)
{
    for (struct node_request *request = node->requests; request != NULL;) {
        if (node->now_ns < request->deadline_ns) {
            request = request->next;
            continue;
        }
        bool sure = request->state == REQUEST_WAITING || request->read_only;
        if (!sure) node->stats.unknown++;
        finish(request, sure ? NODE_UNAVAILABLE : NODE_UNKNOWN, bytes_of(NULL, 0));
        /* done() may have cancelled others or started new ones */
        request = node->requests;
    }
    for (struct node_request *request = node->requests; request != NULL;) {
        struct node_request *next = request->next;
        if (request->state == REQUEST_WAITING) {
            route(node, request);
        } else if (request->state == REQUEST_SENT && passed_over(node, request)) {
            settle(node, request, REPLY_UNKNOWN, bytes_of(NULL, 0));
            next = node->requests; /* done() may have changed the list */
        }
        request = next;
    }
}

void requests_on_message(struct node *node, uint16_t from, const struct message *message)
{
    if (message->body.size < HEAD || message->group >= node->group_slots) return;
    const uint8_t *at = message->body.at;
    struct bytes body = bytes_of(at + HEAD, message->body.size - HEAD);
    uint64_t id = load_u64(at);
    if (message->type == WIRE_REQUEST) {
        struct execution_item *item =
            execution_new(node, from, (uint16_t)message->group, id, load_u32(at + 8), body);
        if (item != NULL) enqueue_execution(node, item);
        return;
    }
    uint32_t how = load_u32(at + 8);
    struct node_request *request = find_request(node, id);
    if (request == NULL || request->state != REQUEST_SENT || request->sent_to != from) return;
    if (how < REPLY_DONE || how > REPLY_REFUSED) return;
    if (how == REPLY_NOT_LEADER && group_of(node, request->range) == NULL)
        node->reports[request->range].leader = load_u16(at + 12);
    settle(node, request, (enum reply_how)how, body);
}

void requests_free(struct node *node)
{
    struct execution_item *lists[] = {node->executions, node->replies};
    for (int i = 0; i < 2; i++) {
        while (lists[i] != NULL) {
            struct execution_item *next = lists[i]->next;
            item_free(lists[i]);
            lists[i] = next;
        }
    }
    node->executions = node->replies = NULL;
    while (node->requests != NULL)
        node_request_cancel(node, node->requests);
}
