#include "base/check.h"
#include "cluster/map/members.h"

/* Stored records of the table of nodes: whatever the bytes are, they are refused, or taken and
 * written again as the same bytes. Input: the size of a key, the key, a value. */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_table(const struct members *members)
{
    ASSERT(members->count <= MEMBERS_MAX);
    ASSERT(members->next_number != 0);
    ASSERT(members->replicas >= 1 && members->replicas <= MEMBERS_REPLICAS_MAX);
    uint16_t numbers[MEMBERS_MAX], zones[MEMBERS_MAX];
    ASSERT(members_placeable(members, numbers, zones) <= members->count);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1 || data[0] > size - 1) return 0;
    struct bytes key = bytes_of(data + 1, data[0]);
    struct bytes value = bytes_of(data + 1 + data[0], size - 1 - data[0]);
    struct member member;
    if (member_decode(value, &member) == OK) {
        uint8_t again[MEMBERS_VALUE_MAX];
        ASSERT(bytes_equal(value, bytes_of(again, member_encode(&member, again))));
    }
    struct members members;
    members_init(&members);
    enum err err = members_apply(&members, 5, key, &value);
    ASSERT((err == OK) == (members.epoch == 5));
    check_table(&members);
    if (err == OK && members.count == 1) {
        ASSERT(members_by_number(&members, members.at[0].number) != NULL);
        ASSERT(members_apply(&members, 6, key, NULL) == OK);
        ASSERT(members.count == 0);
    }
    return 0;
}
