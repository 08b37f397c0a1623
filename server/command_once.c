#include "server/command_internal.h"

#include <stdio.h>
#include <stdlib.h>

#include "server/forward_wire.h"

/* Exactly-once writes: DURAMEN.ONCE client sequence command ...
 *
 * The range of the command's key remembers, for each client that names itself, the last sequence number and
 * the last replies (server/forward_wire.h has the form). Both go into the same transaction as the write, so they are
 * replicated, recovered and moved with it. Who does not know whether a write was applied sends it again with the same
 * number, to any node: it is run once, and the reply is the same.
 *
 * The record has to lie in the range of the write. Its key starts with a hash tag that was looked for until
 * it fell into that range: a function of range and number of ranges alone, so all nodes agree. */

static uint32_t tag_of(struct server *server, uint16_t range)
{
    struct command_state *state = commands_state(server);
    if (state != NULL && state->once_tags == NULL)
        state->once_tags = calloc(node_ranges(server->node) + 1, sizeof *state->once_tags);
    uint32_t *known = state == NULL || state->once_tags == NULL ? NULL : &state->once_tags[range];
    if (known != NULL && *known != 0) return *known;
    for (uint32_t tag = 1;; tag++) {
        char text[16];
        int size = snprintf(text, sizeof text, "%u", tag);
        if (node_range_of(server->node, bytes_of(text, (size_t)size)) != range) continue;
        if (known != NULL) *known = tag;
        return tag;
    }
}

size_t once_key(struct server *server, uint16_t range, char front, struct bytes client,
    uint8_t at[KEY_SIZE_MAX])
{
    char head[20];
    int size = snprintf(head, sizeof head, "{%u}%c", tag_of(server, range), front);
    memcpy(at, head, (size_t)size);
    memcpy(at + size, client.at, client.size);
    return (size_t)size + client.size;
}

/* The command that is wrapped, if it may be; else its error is written. */
static const struct command *wrapped(struct call *call)
{
    const struct command *inner =
        command_resolve(call->argc - WRAPPED, call->argv + WRAPPED, call->out);
    if (inner == NULL) return NULL;
    uint32_t needed = COMMAND_WRITE | COMMAND_KEYS;
    if ((inner->flags & needed) == needed) return inner;
    resp_error(call->out, "ERR DURAMEN.ONCE is for commands that write keys");
    return NULL;
}

/* Writes down the reply that begins at `mark`; false: no room, the error is written. */
static bool remember(
    struct call *call, struct bytes key, struct bytes record, int64_t sequence, size_t mark)
{
    struct buffer next = {0};
    struct bytes reply = bytes_of(call->out->at + call->out->head + mark, reply_mark(call) - mark);
    once_remember(&next, record, (uint64_t)sequence, reply);
    struct bytes text = buffer_view(&next);
    uint8_t *at = next.failed ? NULL
                              : node_put(call->node, ONCE_BUCKET, key, text.size,
                                    node_now_ms(call->node) + ONCE_EXPIRY_MS);
    if (at != NULL) memcpy(at, text.at, text.size);
    buffer_deinit(&next);
    if (at != NULL) return true;
    reply_back(call, mark);
    call->abort = true;
    resp_error(call->out, "OOM no room for this write; nothing was changed");
    return false;
}

static void run_new(struct call *call, const struct command *inner, struct bytes key,
    struct bytes record, int64_t sequence)
{
    size_t mark = reply_mark(call);
    struct call one = *call;
    one.command = inner;
    one.argc -= WRAPPED;
    one.argv += WRAPPED;
    dispatch_run(&one);
    call->abort = one.abort;
    call->retry = one.retry;
    bool failed = reply_mark(call) == mark || call->out->at[call->out->head + mark] == '-';
    if (call->abort || failed) return;
    (void)remember(call, key, record, sequence, mark);
}

static void run_once(struct call *call)
{
    struct bytes client = call->argv[1];
    int64_t sequence;
    uint32_t first, last, step;
    if (client.size == 0 || client.size > ONCE_CLIENT_MAX) {
        resp_error(call->out, "ERR the client's id has 1 to %d bytes", (int)ONCE_CLIENT_MAX);
        return;
    }
    if (!argument_integer(call->argv[2], &sequence) || sequence < 1) {
        resp_error(call->out, "ERR the sequence number counts from 1");
        return;
    }
    const struct command *inner = wrapped(call);
    if (inner == NULL || !command_keys(call->command, call->argc, call->argv, &first, &last, &step))
        return;
    uint8_t at[KEY_SIZE_MAX];
    uint16_t range = node_range_of(call->node, call->argv[first]);
    struct bytes key = bytes_of(at, once_key(call->server, range, 'r', client, at));
    struct value value = {0};
    struct bytes reply = {0};
    enum err found = node_get(call->node, NODE_PENDING, ONCE_BUCKET, key, &value);
    if (found != OK && found != ERR_NOT_FOUND) {
        resp_error(
            call->out, "ERR what is known of this client cannot be read: %s", err_text(found));
        return;
    }
    struct bytes record = found == OK ? value.bytes : (struct bytes){0};
    switch (once_judge(record, (uint64_t)sequence, &reply)) {
    case ONCE_NEW:
        run_new(call, inner, key, record, sequence);
        break;
    case ONCE_REPEATED:
        if (buffer_append(call->out, reply.at, reply.size) != OK) call->out->failed = true;
        break;
    case ONCE_OLD:
        resp_error(call->out, "SEQOLD this number was used before; its reply is not kept");
        break;
    case ONCE_EXPIRED:
        resp_error(call->out,
            "SESSIONEXPIRED nothing is known of this client here; nothing was run: "
            "start anew with another id and number 1");
        break;
    }
}

const struct command commands_once[] = {
    {"duramen.once", -5, COMMAND_WRITE | COMMAND_WRAPS | COMMAND_NO_MULTI, 0, 0, 0, run_once,
        "generic", "1.0.0", "That of the command",
        "Run a command that writes once for a client and sequence number, however often it is sent",
        "@keyspace @write @slow"},
    {.name = NULL},
};
