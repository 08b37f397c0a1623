/* Bodies and replies between nodes, and the records of exactly-once clients: whatever the bytes are, reading stays
 * within them, takes memory in proportion to them, and what was read can be written and read again. The first byte
 * chooses. */

#include <stdint.h>
#include <stdlib.h>

#include "base/check.h"
#include "server/forward_wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void within(struct bytes part, struct bytes whole)
{
    if (part.size == 0) return;
    ASSERT(part.at >= whole.at && part.at + part.size <= whole.at + whole.size);
}

static void check_arguments(struct bytes input)
{
    struct forward_reader reader = {.rest = input};
    struct forward_arguments arguments = {0};
    (void)forward_get_head(&reader);
    while (forward_get_arguments(&reader, &arguments)) {
        ASSERT(arguments.argc > 0 && arguments.argc <= input.size);
        for (uint32_t i = 0; i < arguments.argc; i++)
            within(arguments.argv[i], input);
    }
    ASSERT(!forward_at_end(&reader) || input.size == 0);
    forward_arguments_deinit(&arguments);
}

static void check_key(struct bytes input)
{
    struct forward_reader reader = {.rest = input};
    struct forward_key key = {0}, again = {0};
    forward_get_key(&reader, &key);
    within(key.key, input);
    within(key.body, input);
    if (!forward_at_end(&reader)) return;
    struct buffer out = {0};
    forward_put_key(&out, &key);
    reader = (struct forward_reader){.rest = buffer_view(&out)};
    forward_get_key(&reader, &again);
    ASSERT(forward_at_end(&reader));
    ASSERT(key.method == again.method && key.sequence == again.sequence);
    ASSERT(bytes_equal(key.key, again.key) && bytes_equal(key.body, again.body));
    buffer_deinit(&out);
}

static void check_replies(struct bytes input)
{
    struct forward_reader reader = {.rest = input};
    struct forward_answer answer;
    struct forward_entry entry;
    forward_get_answer(&reader, &answer);
    within(answer.message, input);
    while (!reader.failed && reader.rest.size > 0) {
        forward_get_entry(&reader, &entry);
        within(entry.value, input);
    }
}

static void check_once(struct bytes input)
{
    struct bytes reply = {0};
    uint64_t sequence = input.size >= 9 ? load_u64(input.at + 1) : 1;
    if (once_judge(input, sequence, &reply) == ONCE_REPEATED) within(reply, input);
    struct buffer next = {0};
    uint64_t later = sequence == UINT64_MAX ? sequence : sequence + 1;
    once_remember(&next, input, later, bytes_of_text(":1\r\n"));
    ASSERT(once_judge(buffer_view(&next), later, &reply) == ONCE_REPEATED);
    ASSERT(bytes_equal(reply, bytes_of_text(":1\r\n")));
    buffer_deinit(&next);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1) return 0;
    /* a copy of exactly this size: reading past it is seen */
    uint8_t *copy = malloc(size);
    if (copy == NULL) return 0;
    memcpy(copy, data + 1, size - 1);
    struct bytes input = bytes_of(copy, size - 1);
    switch (data[0] % 4) {
    case 0:
        check_arguments(input);
        break;
    case 1:
        check_key(input);
        break;
    case 2:
        check_replies(input);
        break;
    default:
        check_once(input);
        break;
    }
    free(copy);
    return 0;
}
