#include "cluster/swim/wire.h"

#include "base/check.h"
#include "cluster/swim/swim.h"

_Static_assert(SWIM_HEADER_BYTES + SWIM_UPDATES_MAX * SWIM_UPDATE_BYTES <= SWIM_MESSAGE_MAX,
    "a full message fits");

static void update_encode(uint8_t *at, const struct swim_update *update)
{
    ASSERT(update->node != 0);
    ASSERT(update->state <= SWIM_LEFT);
    ASSERT_IF(update->accuser != 0, update->state == SWIM_SUSPECT);
    ASSERT(update->incarnation <= SWIM_INCARNATION_MAX);
    store_u16(at, update->node);
    store_u16(at + 2, update->accuser);
    at[4] = update->state;
    at[5] = 0;
    store_u64(at + 6, update->incarnation);
}

uint16_t swim_wire_encode(uint8_t *at, const struct swim_wire *wire)
{
    ASSERT(wire->type >= SWIM_PING && wire->type <= SWIM_GOSSIP);
    ASSERT(wire->state == SWIM_ALIVE || wire->state == SWIM_LEFT);
    ASSERT(wire->count <= SWIM_UPDATES_MAX);
    ASSERT(wire->target != 0);
    at[0] = SWIM_WIRE_VERSION;
    at[1] = wire->type;
    at[2] = wire->state;
    at[3] = wire->count;
    store_u32(at + 4, wire->sequence);
    store_u64(at + 8, wire->incarnation);
    store_u16(at + 16, wire->target);
    store_u16(at + 18, 0);
    for (unsigned i = 0; i < wire->count; i++)
        update_encode(at + SWIM_HEADER_BYTES + i * SWIM_UPDATE_BYTES, &wire->updates[i]);
    return (uint16_t)(SWIM_HEADER_BYTES + wire->count * SWIM_UPDATE_BYTES);
}

static enum err update_decode(const uint8_t *at, struct swim_update *update)
{
    update->node = load_u16(at);
    update->accuser = load_u16(at + 2);
    update->state = at[4];
    update->incarnation = load_u64(at + 6);
    if (update->node == 0 || update->state > SWIM_LEFT || at[5] != 0) return ERR_CORRUPT;
    if (update->accuser != 0 && update->state != SWIM_SUSPECT) return ERR_CORRUPT;
    return update->incarnation <= SWIM_INCARNATION_MAX ? OK : ERR_CORRUPT;
}

enum err swim_wire_decode(struct bytes bytes, struct swim_wire *wire_out)
{
    const uint8_t *at = bytes.at;
    if (bytes.size < SWIM_HEADER_BYTES) return ERR_CORRUPT;
    if (at[0] != SWIM_WIRE_VERSION || load_u16(at + 18) != 0) return ERR_CORRUPT;
    wire_out->type = at[1];
    wire_out->state = at[2];
    wire_out->count = at[3];
    wire_out->sequence = load_u32(at + 4);
    wire_out->incarnation = load_u64(at + 8);
    wire_out->target = load_u16(at + 16);
    if (wire_out->type < SWIM_PING || wire_out->type > SWIM_GOSSIP) return ERR_CORRUPT;
    if (wire_out->state != SWIM_ALIVE && wire_out->state != SWIM_LEFT) return ERR_CORRUPT;
    if (wire_out->target == 0 || wire_out->incarnation > SWIM_INCARNATION_MAX) return ERR_CORRUPT;
    if (wire_out->count > SWIM_UPDATES_MAX) return ERR_CORRUPT;
    if (bytes.size != SWIM_HEADER_BYTES + (size_t)wire_out->count * SWIM_UPDATE_BYTES)
        return ERR_CORRUPT;
    for (unsigned i = 0; i < wire_out->count; i++) {
        if (update_decode(at + SWIM_HEADER_BYTES + i * SWIM_UPDATE_BYTES, &wire_out->updates[i]) !=
            OK)
            return ERR_CORRUPT;
    }
    return OK;
}
