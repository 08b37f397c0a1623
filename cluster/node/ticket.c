#include <stdlib.h>

#include "cluster/node/node_internal.h"

/* Tickets are kept in a ring until nobody can ask for them any more: done ones go at once, the others after
 * LOST_KEPT_NS, which is longer than any reply is held back. */

#define LOST_KEPT_NS UINT64_C(10000000000)

static struct ticket_slot *slot_of(const struct node *node, ticket_t ticket)
{
    return &node->tickets[ticket & (node->ticket_capacity - 1)];
}

static bool grow(struct node *node)
{
    size_t capacity = node->ticket_capacity == 0 ? 1024 : node->ticket_capacity * 2;
    struct ticket_slot *slots = calloc(capacity, sizeof *slots);
    if (slots == NULL) return false;
    for (ticket_t ticket = node->ticket_base; ticket < node->ticket_next; ticket++)
        slots[ticket & (capacity - 1)] = *slot_of(node, ticket);
    free(node->tickets);
    node->tickets = slots;
    node->ticket_capacity = capacity;
    return true;
}

ticket_t ticket_new(struct node *node, uint16_t parts)
{
    ASSERT(parts > 0);
    if (node->ticket_next - node->ticket_base == node->ticket_capacity && !grow(node)) {
        /* a ticket that never is done: no reply leaves */
        node_fail(node, "no memory for a ticket");
        return UINT64_MAX;
    }
    ticket_t ticket = node->ticket_next++;
    *slot_of(node, ticket) = (struct ticket_slot){
        .started_ns = node->now_ns, .state = TICKET_WAITING, .remaining = parts};
    return ticket;
}

enum ticket_state node_ticket(const struct node *node, ticket_t ticket)
{
    if (ticket < node->ticket_base) return TICKET_DONE;
    if (ticket >= node->ticket_next) return TICKET_WAITING;
    return slot_of(node, ticket)->state;
}

static void advance(struct node *node)
{
    while (node->ticket_base < node->ticket_next) {
        const struct ticket_slot *slot = slot_of(node, node->ticket_base);
        if (slot->state == TICKET_WAITING) return;
        if (slot->state != TICKET_DONE && node->now_ns - slot->started_ns < LOST_KEPT_NS) return;
        node->ticket_base++;
    }
}

void ticket_part_done(struct node *node, ticket_t ticket)
{
    if (ticket < node->ticket_base || ticket >= node->ticket_next) return;
    struct ticket_slot *slot = slot_of(node, ticket);
    if (slot->state != TICKET_WAITING) return;
    ASSERT(slot->remaining > 0);
    if (--slot->remaining > 0) return;
    slot->state = TICKET_DONE;
    node->tickets_moved = true;
    advance(node);
}

void ticket_fail(struct node *node, ticket_t ticket, enum ticket_state state)
{
    if (ticket < node->ticket_base || ticket >= node->ticket_next) return;
    struct ticket_slot *slot = slot_of(node, ticket);
    if (slot->state != TICKET_WAITING) return;
    if (state == TICKET_UNKNOWN) node->stats.unknown++;
    slot->state = (uint8_t)state;
    node->tickets_moved = true;
}

void tickets_tick(struct node *node)
{
    uint64_t deadline_ns = (uint64_t)node->config.deadline_ms * 1000000;
    for (ticket_t ticket = node->ticket_base; ticket < node->ticket_next; ticket++) {
        const struct ticket_slot *slot = slot_of(node, ticket);
        if (node->now_ns - slot->started_ns < deadline_ns) break;
        ticket_fail(node, ticket, TICKET_UNKNOWN);
    }
    advance(node);
}

/* ---- what waits on a group ---- */

bool waiting_push(struct waiting_queue *queue, struct waiting waiting)
{
    if (queue->count == queue->capacity) {
        size_t capacity = queue->capacity == 0 ? 16 : queue->capacity * 2;
        struct waiting *at = calloc(capacity, sizeof *at);
        if (at == NULL) return false;
        for (size_t i = 0; i < queue->count; i++)
            at[i] = queue->at[(queue->first + i) & (queue->capacity - 1)];
        free(queue->at);
        *queue = (struct waiting_queue){.at = at, .count = queue->count, .capacity = capacity};
    }
    queue->at[(queue->first + queue->count++) & (queue->capacity - 1)] = waiting;
    return true;
}

struct waiting *waiting_first(struct waiting_queue *queue)
{
    return queue->count == 0 ? NULL : &queue->at[queue->first];
}

void waiting_pop(struct waiting_queue *queue)
{
    ASSERT(queue->count > 0);
    queue->first = (queue->first + 1) & (queue->capacity - 1);
    queue->count--;
}
