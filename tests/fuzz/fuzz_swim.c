#include <stdint.h>
#include <string.h>

#include "base/check.h"
#include "cluster/swim/swim.h"
#include "cluster/swim/wire.h"

/* Packets from a hostile member: whatever arrives, no member is added, knowledge only moves up and the answer
 * is at most one message. The first byte of a packet chooses who sends it and its second how much time passes;
 * the third is its length. */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct swim swim;

static void check_codec(struct bytes bytes)
{
    static struct swim_wire wire;
    uint8_t again[SWIM_MESSAGE_MAX];
    if (swim_wire_decode(bytes, &wire) != OK) return;
    ASSERT(swim_wire_encode(again, &wire) == bytes.size);
    ASSERT(memcmp(again, bytes.at, bytes.size) == 0);
}

static void check_step(uint16_t from, struct bytes bytes, uint64_t now_ms)
{
    enum { MEMBERS = 7 };
    uint64_t incarnations[MEMBERS + 1];
    enum swim_state states[MEMBERS + 1];
    for (uint16_t node = 1; node <= MEMBERS; node++) {
        incarnations[node] = swim_incarnation(&swim, node);
        states[node] = swim_state(&swim, node);
    }
    swim_step(&swim, from, bytes, now_ms);
    ASSERT(swim.peer_count == MEMBERS - 1);
    ASSERT(swim.message_count <= 1);
    for (uint16_t node = 1; node <= MEMBERS; node++) {
        ASSERT(swim_incarnation(&swim, node) >= incarnations[node]);
        ASSERT_IF(swim_incarnation(&swim, node) == incarnations[node],
            swim_state(&swim, node) >= states[node]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct swim_settings settings = swim_settings_default();
    uint64_t now_ms = 1;
    swim_init(&swim, 1, UINT64_C(3) << 16, &settings, size, now_ms);
    for (uint16_t node = 2; node <= 7; node++)
        ASSERT(swim_set_member(&swim, node, node) == OK);
    while (size >= 3) {
        uint16_t from = data[0] % 9;
        now_ms += data[1];
        size_t length = data[2] < size - 3 ? data[2] : size - 3;
        struct bytes bytes = bytes_of(data + 3, length);
        data += 3 + length;
        size -= 3 + length;
        check_codec(bytes);
        check_step(from, bytes, now_ms);
        swim_tick(&swim, now_ms += 100);
        for (uint32_t i = 0; i < swim.message_count; i++)
            check_codec(bytes_of(swim.messages[i].bytes, swim.messages[i].size));
    }
    return 0;
}
