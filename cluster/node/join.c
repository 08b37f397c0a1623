#include "cluster/node/join.h"

#include <stdio.h>

#include "base/check.h"
#include "cluster/message.h"
#include "cluster/node/node_internal.h"

enum { ASK_EVERY_MS = 300, SEED_NUMBER = 0xff00, SEEDS_MAX = 64 };

/* ---- codec: fixed parts, then texts as u8 size | bytes ---- */

static uint8_t *put_text(uint8_t *at, const char *text)
{
    size_t size = strlen(text);
    ASSERT(size < 256);
    *at++ = (uint8_t)size;
    memcpy(at, text, size);
    return at + size;
}

static bool take_text(struct bytes *rest, char *out, size_t capacity)
{
    if (rest->size < 1) return false;
    size_t size = rest->at[0];
    if (size >= capacity || size > rest->size - 1 || memchr(rest->at + 1, 0, size) != NULL)
        return false;
    memcpy(out, rest->at + 1, size);
    out[size] = '\0';
    *rest = bytes_of(rest->at + 1 + size, rest->size - 1 - size);
    return true;
}

size_t join_question_encode(uint8_t *at, const struct join_question *question)
{
    uint8_t *start = at;
    memcpy(at, question->store_id, 16);
    memcpy(at + 16, question->renew_store_id, 16);
    store_u64(at + 32, question->incarnation);
    store_u64(at + 40, question->boot);
    store_u16(at + 48, question->renew_number);
    store_u16(at + 50, question->replace ? 1 : 0);
    at = put_text(at + 52, question->name);
    at = put_text(at, question->zone);
    at = put_text(at, question->peer);
    at = put_text(at, question->resp);
    at = put_text(at, question->http);
    return (size_t)(at - start);
}

enum err join_question_decode(struct bytes bytes, struct join_question *question_out)
{
    struct join_question question = {0};
    if (bytes.size < 52) return ERR_CORRUPT;
    memcpy(question.store_id, bytes.at, 16);
    memcpy(question.renew_store_id, bytes.at + 16, 16);
    question.incarnation = load_u64(bytes.at + 32);
    question.boot = load_u64(bytes.at + 40);
    question.renew_number = load_u16(bytes.at + 48);
    question.replace = load_u16(bytes.at + 50) != 0;
    struct bytes rest = bytes_of(bytes.at + 52, bytes.size - 52);
    bool whole = take_text(&rest, question.name, sizeof question.name) &&
        take_text(&rest, question.zone, sizeof question.zone) &&
        take_text(&rest, question.peer, sizeof question.peer) &&
        take_text(&rest, question.resp, sizeof question.resp) &&
        take_text(&rest, question.http, sizeof question.http);
    if (!whole) return ERR_CORRUPT;
    *question_out = question;
    return OK;
}

size_t join_answer_encode(uint8_t *at, bool refused, const struct join_result *result)
{
    uint8_t *start = at;
    store_u16(at, refused ? 1 : 0);
    store_u16(at + 2, result->number);
    store_u32(at + 4, result->ranges);
    store_u32(at + 8, result->replicas);
    memcpy(at + 12, result->cluster_id, 16);
    at = put_text(at + 28, result->name);
    at = put_text(at, result->detail);
    *at++ = (uint8_t)result->peer_count;
    for (uint32_t i = 0; i < result->peer_count; i++) {
        store_u16(at, result->peers[i].number);
        at = put_text(at + 2, result->peers[i].address);
    }
    return (size_t)(at - start);
}

enum err join_answer_decode(struct bytes bytes, bool *refused_out, struct join_result *result_out)
{
    if (bytes.size < 28) return ERR_CORRUPT;
    struct join_result result = {
        .number = load_u16(bytes.at + 2),
        .ranges = load_u32(bytes.at + 4),
        .replicas = load_u32(bytes.at + 8),
    };
    memcpy(result.cluster_id, bytes.at + 12, 16);
    struct bytes rest = bytes_of(bytes.at + 28, bytes.size - 28);
    if (!take_text(&rest, result.name, sizeof result.name) ||
        !take_text(&rest, result.detail, sizeof result.detail) || rest.size < 1)
        return ERR_CORRUPT;
    result.peer_count = rest.at[0];
    rest = bytes_of(rest.at + 1, rest.size - 1);
    if (result.peer_count > JOIN_PEERS_MAX) return ERR_CORRUPT;
    for (uint32_t i = 0; i < result.peer_count; i++) {
        struct join_peer *peer = &result.peers[i];
        if (rest.size < 2) return ERR_CORRUPT;
        peer->number = load_u16(rest.at);
        rest = bytes_of(rest.at + 2, rest.size - 2);
        if (!take_text(&rest, peer->address, sizeof peer->address)) return ERR_CORRUPT;
    }
    *refused_out = load_u16(bytes.at) != 0;
    if (!*refused_out && result.number == 0) return ERR_CORRUPT;
    *result_out = result;
    return OK;
}

/* ---- the machine ---- */

static void on_frame(
    void *receiver, const struct net_peer *from, enum net_lane lane, struct bytes frame)
{
    (void)from;
    (void)lane;
    struct join *join = receiver;
    struct message message;
    while (message_next(&frame, &message) == OK) {
        if (message.type != WIRE_JOIN_REPLY || join->done) continue;
        bool refused;
        struct join_result result;
        /* the body is padded: the texts end where they say */
        if (join_answer_decode(message.body, &refused, &result) != OK) continue;
        join->result = result;
        join->refused = refused;
        join->done = true;
    }
}

static void on_event(void *receiver, uint16_t number, enum net_event event)
{
    (void)receiver;
    (void)number;
    (void)event;
}

static void on_wake(void *receiver)
{
    (void)receiver;
}

void join_start(struct join *join, const struct io *io, const struct join_request *request)
{
    *join = (struct join){.request = *request, .io = io};
    struct net_identity identity = {0};
    memcpy(identity.store_id, request->store_id, sizeof identity.store_id);
    const struct net *net = &io->net;
    net->start(net->ctx, &identity, join, on_frame, on_event, on_wake);
    for (uint16_t i = 0; request->seeds[i] != NULL && i < SEEDS_MAX; i++)
        (void)net->set_peer(net->ctx, (uint16_t)(SEED_NUMBER + i), request->seeds[i]);
}

static void ask(struct join *join)
{
    const struct join_request *request = &join->request;
    struct join_question question = {
        .incarnation = request->incarnation,
        .renew_number = request->renew_number,
        .replace = request->replace,
        .boot = load_u64(request->store_id),
    };
    memcpy(question.store_id, request->store_id, 16);
    memcpy(question.renew_store_id, request->renew_store_id, 16);
    snprintf(question.name, sizeof question.name, "%s", request->name);
    snprintf(question.zone, sizeof question.zone, "%s", request->zone);
    snprintf(question.peer, sizeof question.peer, "%s", request->peer);
    snprintf(question.resp, sizeof question.resp, "%s", request->resp);
    snprintf(question.http, sizeof question.http, "%s", request->http);
    uint8_t bytes[JOIN_MESSAGE_MAX];
    size_t size = join_question_encode(bytes, &question);
    struct buffer frame = {0};
    uint8_t *at = message_add(&frame, WIRE_JOIN, 0, size);
    const struct net *net = &join->io->net;
    /* one seed a time; a lost question is asked again */
    uint16_t count = 0;
    while (request->seeds[count] != NULL && count < SEEDS_MAX)
        count++;
    if (at != NULL && count > 0) {
        memcpy(at, bytes, size);
        uint16_t seed = (uint16_t)(SEED_NUMBER + join->attempts++ % count);
        (void)net->send(net->ctx, seed, NET_CONTROL, buffer_view(&frame));
    }
    buffer_deinit(&frame);
}

enum err join_poll(struct join *join)
{
    const struct net *net = &join->io->net;
    const struct clock *clock = &join->io->clock;
    (void)net->poll(net->ctx, 64);
    if (!join->done) {
        uint64_t now_ns = clock->monotonic_ns(clock->ctx);
        if (now_ns >= join->ask_at_ns) {
            ask(join);
            join->ask_at_ns = now_ns + (uint64_t)ASK_EVERY_MS * 1000000;
        }
        return ERR_AGAIN;
    }
    for (uint16_t i = 0; join->request.seeds[i] != NULL && i < SEEDS_MAX; i++)
        (void)net->set_peer(net->ctx, (uint16_t)(SEED_NUMBER + i), NULL);
    return join->refused ? ERR_PERMISSION : OK;
}
