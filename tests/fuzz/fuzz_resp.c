#include <stdint.h>
#include <stdlib.h>

#include "base/check.h"
#include "server/resp.h"

/* The RESP parser, fed in two ways that must agree: all bytes at once, and in pieces, as a connection
 * gets them. The first byte chooses limits and pieces. */

enum { RESULTS_MAX = 1 << 14 };

struct outcome {
    uint64_t digest; /* of all commands and errors, in order */
    uint64_t results;
};

static void mix(struct outcome *outcome, const void *at, size_t size)
{
    for (size_t i = 0; i < size; i++)
        outcome->digest = (outcome->digest ^ ((const uint8_t *)at)[i]) * 1099511628211u;
    outcome->digest = (outcome->digest ^ size) * 1099511628211u;
}

/* Returns the bytes consumed; *ended_out once the connection would be closed. */
static size_t parse_all(struct resp_parser *parser, const struct resp_limits *limits,
    struct bytes input, struct outcome *outcome, bool *ended_out)
{
    size_t used = 0;
    while (outcome->results < RESULTS_MAX) {
        size_t consumed = 0;
        uint32_t argc = 0;
        const struct bytes *argv = NULL;
        const char *error = NULL;
        enum resp_result result = resp_parse(parser, limits,
            bytes_of(input.at + used, input.size - used), &consumed, &argc, &argv, &error);
        ASSERT(consumed <= input.size - used);
        used += consumed;
        if (result == RESP_MORE) break;
        outcome->results++;
        mix(outcome, &result, sizeof result);
        if (result == RESP_COMMAND) {
            ASSERT(consumed > 0);
            for (uint32_t i = 0; i < argc; i++)
                mix(outcome, argv[i].at, argv[i].size);
        } else if (result == RESP_FOREIGN) {
            *ended_out = true;
            break;
        } else {
            mix(outcome, error, strlen(error));
            if (result == RESP_ERROR) {
                *ended_out = true;
                break;
            }
        }
    }
    return used;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    uint8_t choice = data[0];
    struct bytes input = bytes_of(data + 1, size - 1);
    struct resp_limits limits = {
        .arguments_max = (choice & 1) != 0 ? 10 : RESP_ARGUMENTS_MAX,
        .bulk_max = (choice & 2) != 0 ? 16 : 1 << 20,
        .inline_max = (choice & 4) != 0 ? 64 : RESP_INLINE_MAX,
        .command_max = (choice & 2) != 0 ? 64 : 1 << 22,
        .unauthenticated = (choice & 1) != 0,
    };
    struct resp_parser parser;
    struct outcome whole = {0}, pieces = {0};
    bool ended = false;
    resp_parser_init(&parser);
    parse_all(&parser, &limits, input, &whole, &ended);
    resp_parser_deinit(&parser);

    resp_parser_init(&parser);
    size_t step = (size_t)(choice >> 3) + 1, start = 0, end = 0;
    ended = false;
    while (!ended && end < input.size) {
        end = input.size - end < step ? input.size : end + step;
        /* a copy of its own: views into the last one are dead */
        uint8_t *copy = malloc(end - start + 1);
        if (copy == NULL) break;
        memcpy(copy, input.at + start, end - start);
        start += parse_all(&parser, &limits, bytes_of(copy, end - start), &pieces, &ended);
        free(copy);
    }
    resp_parser_deinit(&parser);
    /* with a small inline limit the piece decides whether a line was too long when its end came */
    ASSERT((choice & 4) != 0 || whole.digest == pieces.digest);
    return 0;
}
