/* Framing, fed whole and byte by byte: both must come to the same verdict about the same bytes, and to the
 * same place where a request ends. The first byte chooses the step; behind the framing, the same bytes go
 * through every small parser, whose results must be consistent with what they were given. */

#include <stdint.h>
#include <stdlib.h>

#include "base/check.h"
#include "server/http_parse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct verdict {
    enum http_feed result;
    int status;
    size_t taken;
};

static struct verdict judge(struct bytes input, size_t step)
{
    struct http_framing framing;
    struct verdict verdict = {.result = HTTP_FEED_MORE};
    size_t shown = 0;
    http_framing_init(&framing, 4096);
    while (shown < input.size && verdict.result == HTTP_FEED_MORE) {
        shown = input.size - shown < step ? input.size : shown + step;
        for (;;) {
            size_t skip;
            size_t pass;
            verdict.result = http_framing_feed(
                &framing, bytes_of(input.at + verdict.taken, shown - verdict.taken), &skip, &pass);
            ASSERT(skip <= pass && pass <= shown - verdict.taken);
            verdict.taken += pass;
            if (verdict.result != HTTP_FEED_MORE || skip == 0) break;
        }
    }
    verdict.status = framing.status;
    ASSERT_IF(verdict.result == HTTP_FEED_ERROR, framing.reason != NULL && framing.status >= 400);
    return verdict;
}

static void check_framing(struct bytes input, size_t step)
{
    struct verdict whole = judge(input, input.size);
    struct verdict pieces = judge(input, step);
    ASSERT(whole.result == pieces.result);
    ASSERT(whole.status == pieces.status);
    ASSERT(whole.taken == pieces.taken);
}

static void check_small(struct bytes input)
{
    struct http_target target;
    uint8_t decoded[512];
    size_t size;
    if (http_target_parse(input, &target) == OK) {
        ASSERT(target.path.size > 0 && target.path.at[0] == '/');
        struct bytes rest = target.query;
        struct bytes name;
        struct bytes value;
        while (http_query_next(&rest, &name, &value))
            ASSERT(name.size + value.size <= target.query.size);
    }
    if (http_percent_decode(input, true, decoded, sizeof decoded, &size) == OK)
        ASSERT(size <= input.size && size <= sizeof decoded);
    bool match;
    struct bytes host;
    uint16_t port;
    if (http_tags_match(input, 5, false, &match) == OK && match) {
        ASSERT(http_tags_match(input, 5, true, &match) == OK && match);
    }
    if (http_host_parse(input, &host, &port) == OK) ASSERT(host.size > 0 && host.size <= 255);
    (void)!http_origin_host(input, &host);
    if (http_base64_decode(input, decoded, sizeof decoded, &size) == OK) {
        /* one text per byte string, but for the alphabet and the padding */
        struct buffer out = {0};
        ASSERT(http_base64_append(&out, bytes_of(decoded, size), true) == OK);
        uint8_t again[512];
        size_t again_size;
        ASSERT(http_base64_decode(buffer_view(&out), again, sizeof again, &again_size) == OK);
        ASSERT(bytes_equal(bytes_of(decoded, size), bytes_of(again, again_size)));
        buffer_deinit(&out);
    }
    struct buffer json = {0};
    ASSERT(http_json_string(&json, input) == OK);
    ASSERT(http_utf8_valid(buffer_view(&json)));
    buffer_deinit(&json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2) return 0;
    /* a copy of exactly this size: reading past it is seen */
    uint8_t *copy = malloc(size - 1);
    if (copy == NULL) return 0;
    memcpy(copy, data + 1, size - 1);
    check_framing(bytes_of(copy, size - 1), (size_t)data[0] % 64 + 1);
    check_small(bytes_of(copy, size - 1));
    free(copy);
    return 0;
}
