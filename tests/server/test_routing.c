#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "server/forward.h"
#include "server/scatter.h"
#include "tests/server/fake_node.h"

/* Where commands run and what their replies wait for, on a node that a test controls. A request to
 * another node is evaluated by this same server when the test says so: its body and reply go through the same
 * code as between two nodes. */

static struct fixture {
    struct server server;
    struct node *node;
} * fixture;

static void on_turn_begin(void *ctx)
{
    struct server *server = ctx;
    server->turn++;
    server->now_ns += 1000000;
}

static bool on_turn_end(void *ctx)
{
    struct server *server = ctx;
    sessions_turn_end(server);
    loop_stop(server->loop);
    return false;
}

static void on_wake(void *ctx)
{
    sessions_retry(ctx);
}

static uint64_t still_ns(void *ctx)
{
    (void)ctx;
    return fixture->server.now_ns;
}

static void start(void)
{
    fixture = calloc(1, sizeof *fixture);
    struct server *server = &fixture->server;
    fixture->node = server->node = fake_node_new();
    server->config = (struct server_config){.connections_max = 16,
        .output_limit = 1 << 20,
        .client_memory = 64 << 20,
        .slowlog_us = UINT64_MAX,
        .deadline_ms = 100};
    server->io = (struct io){.clock = clock_real(), .seed = 1};
    server->io.clock.monotonic_ns = still_ns;
    server->now_ns = 1000000000;
    server->limits[1] = (struct resp_limits){.arguments_max = RESP_ARGUMENTS_MAX,
        .bulk_max = VALUE_SIZE_MAX,
        .inline_max = RESP_INLINE_MAX,
        .command_max = 64 << 20};
    struct loop_config loop_config = {.ctx = server,
        .on_turn_begin = on_turn_begin,
        .on_turn_end = on_turn_end,
        .on_wake = on_wake};
    cr_assert_eq(loop_open(&loop_config, &server->loop), OK);
}

static void turn(void)
{
    loop_wake(fixture->server.loop);
    loop_run(fixture->server.loop);
}

static void finish(void)
{
    struct server *server = &fixture->server;
    sessions_close_all(server);
    while (server->session_count > 0)
        turn();
    cr_assert_eq(fixture->node->request_count, 0, "a closed session's request goes on");
    cr_assert_eq(server->client_bytes, 0);
    loop_close(server->loop);
    forward_close(server);
    commands_close(server);
    fake_node_free(fixture->node);
    free(fixture);
}

static int dial(void)
{
    int pair[2];
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    session_accept(&fixture->server, pair[0]);
    return pair[1];
}

static void say(int fd, const char *text)
{
    size_t size = strlen(text);
    cr_assert_eq(send(fd, text, size, MSG_NOSIGNAL), (ssize_t)size);
    for (int i = 0; i < 3; i++)
        turn();
}

static const char *heard(int fd)
{
    static char text[1 << 16];
    size_t size = 0;
    for (int i = 0; i < 3; i++) {
        turn();
        ssize_t got = recv(fd, text + size, sizeof text - 1 - size, MSG_DONTWAIT);
        if (got > 0) size += (size_t)got;
    }
    text[size] = '\0';
    return text;
}

#define EXPECT(fd, wanted) cr_assert_str_eq(heard(fd), wanted)
#define ASK(fd, text, wanted)                                                                      \
    do {                                                                                           \
        say(fd, text);                                                                             \
        EXPECT(fd, wanted);                                                                        \
    } while (0)

/* This node leads nothing and has nothing. */
static void led_elsewhere(void)
{
    fixture->node->alone = false;
    memset(fixture->node->serves, 0, sizeof fixture->node->serves);
    memset(fixture->node->has, 0, sizeof fixture->node->has);
}

/* The oldest request is answered by the node that leads its range. */
static void answer(enum node_outcome outcome)
{
    struct node *node = fixture->node;
    cr_assert_gt(node->request_count, 0, "nobody was asked");
    struct node_request *request = node->requests[0];
    memmove(
        &node->requests[0], &node->requests[1], --node->request_count * sizeof node->requests[0]);
    struct buffer reply = {0}, body = request->body;
    request->body = (struct buffer){0};
    if (outcome == NODE_REPLIED) {
        struct node_execution execution = {
            .range = request->range, .body = buffer_view(&body), .reply = &reply};
        bool served = node->serves[request->range];
        node->serves[request->range] = true;
        cr_assert(forward_execute(&fixture->server, &execution));
        node->serves[request->range] = served;
    }
    request->done(request, outcome, buffer_view(&reply));
    buffer_deinit(&reply);
    buffer_deinit(&body);
    turn();
}

static void answer_all(void)
{
    while (fixture->node->request_count > 0)
        answer(NODE_REPLIED);
}

static void decide(ticket_t ticket, enum ticket_state state)
{
    fixture->node->tickets[ticket] = state;
    sessions_on_tickets(&fixture->server);
    turn();
}

TestSuite(routing, .init = start, .fini = finish);

/* Tickets */

Test(routing, each_reply_waits_for_its_own_ticket_and_for_those_before_it)
{
    int fd = dial();
    fixture->node->hold_tickets = true;
    say(fd, "SET a 1\r\nSET b 2\r\nPING\r\nSET c 3\r\n");
    EXPECT(fd, "");
    decide(2, TICKET_DONE);
    EXPECT(fd, "");
    decide(1, TICKET_DONE);
    EXPECT(fd, "+OK\r\n+OK\r\n+PONG\r\n");
    decide(3, TICKET_DONE);
    EXPECT(fd, "+OK\r\n");
    close(fd);
}

Test(routing, an_outcome_that_is_not_known_is_an_error_in_its_place)
{
    int fd = dial();
    fixture->node->hold_tickets = true;
    say(fd, "SET a 1\r\nPING\r\nSET b 2\r\nPING x\r\nSET c 3\r\n");
    decide(2, TICKET_UNKNOWN);
    EXPECT(fd, "");
    decide(1, TICKET_DONE);
    const char *text = heard(fd);
    cr_assert(bytes_have_prefix(bytes_of_text(text),
                  bytes_of_text("+OK\r\n+PONG\r\n-UNKNOWN the outcome is not known")),
        "%s", text);
    cr_assert_not_null(strstr(text, "\r\n$1\r\nx\r\n"));
    cr_assert_null(strstr(text, "$1\r\nx\r\n+OK"));
    decide(3, TICKET_DONE);
    EXPECT(fd, "+OK\r\n");
    close(fd);
}

Test(routing, a_ticket_that_came_to_nothing_before_the_reply_was_written_holds_nothing_up)
{
    int fd = dial();
    fixture->node->alone = false;
    fixture->node->hold_tickets = true;
    fixture->node->tickets[1] = TICKET_WAITING;
    say(fd, "GET a\r\n");
    EXPECT(fd, "");
    decide(1, TICKET_REFUSED);
    cr_assert_not_null(strstr(heard(fd), "-CLUSTERDOWN "));
    ASK(fd, "PING\r\n", "+PONG\r\n");
    close(fd);
}

Test(routing, replies_that_were_switched_off_are_not_made_up_when_a_ticket_fails)
{
    int fd = dial();
    fixture->node->hold_tickets = true;
    say(fd, "CLIENT REPLY OFF\r\nSET a 1\r\nCLIENT REPLY ON\r\n");
    decide(1, TICKET_UNKNOWN);
    EXPECT(fd, "+OK\r\n");
    close(fd);
}

Test(routing, errors_may_be_longer_than_what_they_replace_and_shorter)
{
    int fd = dial();
    say(fd, "SET big 0123456789012345678901234567890123456789012345678901234567890123456789\r\n");
    EXPECT(fd, "+OK\r\n");
    fixture->node->alone = false;
    fixture->node->hold_tickets = true;
    say(fd,
        "MGET {big}x\r\nGETSET big "
        "22222222222222222222222222222222222222222222222222222222222222222222222222222222222222222"
        "22222222222222222222222222222222222222222222222222222222222222222\r\nGET big\r\nPING\r\n");
    decide(2, TICKET_REFUSED);
    decide(3, TICKET_UNKNOWN);
    decide(4, TICKET_UNKNOWN);
    const char *text = heard(fd);
    size_t errors = 0, lines = 0;
    for (const char *at = text; *at != '\0'; at = strchr(at, '\n') + 1) {
        errors += *at == '-';
        lines++;
    }
    cr_assert_eq(errors, 3, "%s", text);
    cr_assert_eq(lines, 4, "%s", text);
    cr_assert(strcmp(text + strlen(text) - 7, "+PONG\r\n") == 0, "%s", text);
    close(fd);
}

/* Where commands run */

Test(routing, a_node_alone_asks_nobody_and_waits_for_nothing_to_read)
{
    int fd = dial();
    ASK(fd, "MSET a 1 b 2 c 3\r\nMGET a b c\r\nDBSIZE\r\n",
        "+OK\r\n*3\r\n$1\r\n1\r\n$1\r\n2\r\n$1\r\n3\r\n:3\r\n");
    cr_assert_eq(fixture->node->started, 0);
    cr_assert_eq(fixture->node->read_tickets, 0);
    close(fd);
}

Test(routing, keys_of_several_ranges_are_refused_with_several_nodes)
{
    int fd = dial();
    fixture->node->alone = false;
    const char *crossslot = "-CROSSSLOT Keys in request don't hash to the same slot\r\n";
    ASK(fd, "MSET a 1 b 2\r\n", crossslot);
    ASK(fd, "MSET {t}a 1 {t}b 2\r\n", "+OK\r\n");
    ASK(fd, "MULTI\r\nSET a 1\r\nSET b 2\r\nEXEC\r\n",
        "+OK\r\n+QUEUED\r\n+QUEUED\r\n-CROSSSLOT "
        "Keys in request don't hash to the same "
        "slot\r\n");
    ASK(fd, "WATCH a\r\nMULTI\r\nSET b 2\r\nEXEC\r\n",
        "+OK\r\n+OK\r\n+QUEUED\r\n-CROSSSLOT Keys in request don't hash to the same slot\r\n");
    ASK(fd, "DURAMEN.ONCE me 1 MSET a 1 b 2\r\n", crossslot);
    cr_assert_eq(fixture->node->writes, 1);
    close(fd);
}

Test(routing, a_command_for_another_leader_is_answered_in_its_place)
{
    int fd = dial();
    led_elsewhere();
    say(fd, "PING a\r\nSET k v\r\nPING b\r\n");
    EXPECT(fd, "$1\r\na\r\n");
    cr_assert_eq(fixture->node->request_count, 1);
    answer(NODE_REPLIED);
    EXPECT(fd, "+OK\r\n$1\r\nb\r\n");
    say(fd, "GET k\r\n");
    answer(NODE_REPLIED);
    EXPECT(fd, "$1\r\nv\r\n");
    say(fd, "GETRANGE k 0\r\n");
    EXPECT(fd, "-ERR wrong number of arguments for 'getrange' command\r\n");
    say(fd, "INCR k\r\n");
    answer(NODE_REPLIED);
    EXPECT(fd, "-ERR value is not an integer or out of range\r\n");
    close(fd);
}

Test(routing, what_became_of_a_forwarded_command_is_told_and_never_tried_again)
{
    int fd = dial();
    led_elsewhere();
    say(fd, "INCR k\r\n");
    answer(NODE_UNKNOWN);
    cr_assert_not_null(strstr(heard(fd), "-UNKNOWN "));
    cr_assert_eq(fixture->node->started, 1, "it was sent again");
    say(fd, "INCR k\r\n");
    answer(NODE_UNAVAILABLE);
    cr_assert_not_null(strstr(heard(fd), "-CLUSTERDOWN "));
    say(fd, "GET k\r\n");
    answer(NODE_UNAVAILABLE);
    cr_assert_not_null(strstr(heard(fd), "-CLUSTERDOWN "));
    close(fd);
}

Test(routing, only_a_readonly_connection_reads_what_this_node_has)
{
    int fd = dial();
    led_elsewhere();
    memset(fixture->node->has, 1, sizeof fixture->node->has);
    say(fd, "GET k\r\n");
    cr_assert_eq(fixture->node->request_count, 1, "a read was answered from what may be old");
    answer(NODE_REPLIED);
    EXPECT(fd, "$-1\r\n");
    ASK(fd, "READONLY\r\nGET k\r\n", "+OK\r\n$-1\r\n");
    say(fd, "SET k v\r\n");
    answer(NODE_REPLIED);
    EXPECT(fd, "+OK\r\n");
    ASK(fd, "GET k\r\n", "$1\r\nv\r\n");
    cr_assert_eq(fixture->node->started, 2);
    say(fd, "READWRITE\r\nGET k\r\n");
    answer(NODE_REPLIED);
    EXPECT(fd, "+OK\r\n$1\r\nv\r\n");
    close(fd);
}

Test(routing, a_closing_client_takes_its_request_back)
{
    int fd = dial();
    led_elsewhere();
    say(fd, "SET k v\r\n");
    cr_assert_eq(fixture->node->request_count, 1);
    sessions_close_all(&fixture->server);
    for (int i = 0; i < 5; i++)
        turn();
    cr_assert_eq(fixture->node->request_count, 0);
    close(fd);
}

Test(routing, an_executed_request_says_what_its_reply_waits_for)
{
    int fd = dial();
    led_elsewhere();
    say(fd, "SET k v\r\n");
    struct node_request *request = fixture->node->requests[0];
    struct buffer reply = {0};
    struct node_execution execution = {
        .range = request->range, .body = buffer_view(&request->body), .reply = &reply};
    fixture->node->admits = ERR_AGAIN;
    cr_assert_not(forward_execute(&fixture->server, &execution), "no room: to be asked later");
    cr_assert_eq(reply.size, 0);
    fixture->node->admits = OK;
    cr_assert(forward_execute(&fixture->server, &execution));
    cr_assert_neq(execution.ticket, 0);
    cr_assert_eq(fixture->node->writes, 1);
    buffer_deinit(&reply);
    close(fd);
}

/* Transactions */

Test(routing, a_forwarded_transaction_keeps_its_order_and_its_buckets)
{
    int fd = dial();
    led_elsewhere();
    ASK(fd, "MULTI\r\nSET k 1\r\nPING\r\nSELECT 3\r\nGET k\r\nSET k 3\r\nINCR k\r\n",
        "+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n");
    say(fd, "EXEC\r\n");
    cr_assert_eq(fixture->node->request_count, 1);
    answer(NODE_REPLIED);
    EXPECT(fd, "*6\r\n+OK\r\n+PONG\r\n+OK\r\n$-1\r\n+OK\r\n:4\r\n");
    cr_assert_eq(fixture->node->writes, 1, "not one transaction");
    say(fd, "GET k\r\n");
    answer(NODE_REPLIED);
    EXPECT(fd, "$1\r\n4\r\n");
    ASK(fd, "EXEC\r\n", "-ERR EXEC without MULTI\r\n");
    close(fd);
}

/* Says `change` on another connection between WATCH and EXEC; true: the transaction was given up. */
static bool exec_fails_after(const char *change)
{
    int fd = dial(), other = dial();
    say(fd, "WATCH {w}a {w}b\r\n");
    answer_all();
    EXPECT(fd, "+OK\r\n");
    say(other, change);
    answer_all();
    say(other, "");
    answer_all();
    ASK(fd, "MULTI\r\nSET {w}c 1\r\n", "+OK\r\n+QUEUED\r\n");
    say(fd, "EXEC\r\n");
    answer_all();
    const char *text = heard(fd);
    bool given_up = strcmp(text, "*-1\r\n") == 0;
    cr_assert(given_up || strcmp(text, "*1\r\n+OK\r\n") == 0, "%s", text);
    close(fd);
    close(other);
    return given_up;
}

Test(routing, watched_keys_are_watched_where_they_are_led)
{
    led_elsewhere();
    cr_assert_not(exec_fails_after("PING\r\n"));
    cr_assert(exec_fails_after("SET {w}a 1\r\n"));
    cr_assert_not(exec_fails_after("GET {w}a\r\n"));
    cr_assert(exec_fails_after("SET {w}a 2\r\n"));
}

Test(routing, a_watched_absent_key_that_came_and_went_is_a_change)
{
    int fd = dial(), other = dial();
    led_elsewhere();
    say(fd, "WATCH {w}a\r\n");
    answer_all();
    say(other, "SET {w}a 1\r\n");
    answer_all();
    say(other, "DEL {w}a\r\n");
    answer_all();
    say(fd, "MULTI\r\nSET {w}c 1\r\nEXEC\r\n");
    answer_all();
    EXPECT(fd, "+OK\r\n+OK\r\n+QUEUED\r\n*-1\r\n");
    close(fd);
    close(other);
}

Test(routing, a_watched_absent_key_does_not_outlive_a_change_of_leader)
{
    int fd = dial();
    led_elsewhere();
    say(fd, "WATCH {w}a\r\n");
    answer_all();
    for (int i = 0; i <= FAKE_RANGES; i++)
        fixture->node->terms[i]++;
    say(fd, "MULTI\r\nSET {w}c 1\r\nEXEC\r\n");
    answer_all();
    EXPECT(fd, "+OK\r\n+OK\r\n+QUEUED\r\n*-1\r\n");
    /* watched elsewhere, led here now */
    say(fd, "WATCH {w}a\r\n");
    answer_all();
    memset(fixture->node->serves, 1, sizeof fixture->node->serves);
    ASK(fd, "MULTI\r\nSET {w}c 1\r\nEXEC\r\n", "+OK\r\n+OK\r\n+QUEUED\r\n*-1\r\n");
    close(fd);
}

Test(routing, a_transaction_of_unknown_outcome_ends)
{
    int fd = dial();
    led_elsewhere();
    say(fd, "MULTI\r\nSET k 1\r\nEXEC\r\n");
    answer(NODE_UNKNOWN);
    cr_assert_not_null(strstr(heard(fd), "-UNKNOWN "));
    ASK(fd, "EXEC\r\n", "-ERR EXEC without MULTI\r\n");
    close(fd);
}

/* Exactly once */

static void say_answered(int fd, const char *text)
{
    say(fd, text);
    answer_all();
}

Test(routing, a_write_with_a_number_is_run_once)
{
    int fd = dial();
    led_elsewhere();
    say_answered(fd, "DURAMEN.ONCE me 1 INCR n\r\n");
    EXPECT(fd, ":1\r\n");
    say_answered(fd, "DURAMEN.ONCE me 1 INCR n\r\n");
    EXPECT(fd, ":1\r\n");
    say_answered(fd, "DURAMEN.ONCE me 2 INCR n\r\n");
    EXPECT(fd, ":2\r\n");
    say_answered(fd, "GET n\r\n");
    EXPECT(fd, "$1\r\n2\r\n");
    say_answered(fd, "DURAMEN.ONCE you 2 INCR n\r\n");
    cr_assert_not_null(strstr(heard(fd), "-SESSIONEXPIRED "));
    for (int i = 3; i <= 20; i++) {
        char text[64];
        snprintf(text, sizeof text, "DURAMEN.ONCE me %d INCR n\r\n", i);
        say_answered(fd, text);
    }
    (void)heard(fd);
    say_answered(fd, "DURAMEN.ONCE me 2 INCR n\r\n");
    cr_assert_not_null(strstr(heard(fd), "-SEQOLD "));
    say_answered(fd, "DURAMEN.ONCE me 5 INCR n\r\n");
    EXPECT(fd, ":5\r\n");
    say_answered(fd, "DURAMEN.ONCE me 21 INCR n\r\n");
    EXPECT(fd, ":21\r\n");
    close(fd);
}

Test(routing, what_is_remembered_of_clients_is_in_the_range_of_the_write_and_nowhere_shown)
{
    int fd = dial();
    fixture->node->alone = false;
    for (int i = 0; i < 8; i++) {
        char text[64];
        snprintf(text, sizeof text, "DURAMEN.ONCE c%d 1 SET key%d v\r\n", i, i);
        ASK(fd, text, "+OK\r\n");
    }
    const struct fake_key *keys = fixture->node->keys;
    for (int i = 0; i < FAKE_KEYS; i++) {
        if (!keys[i].used || keys[i].bucket != ONCE_BUCKET) continue;
        char client[2] = {(char)keys[i].key[keys[i].key_size - 1], '\0'};
        char key[8];
        snprintf(key, sizeof key, "key%s", client);
        cr_assert_eq(keys[i].range, node_range_of(fixture->node, bytes_of_text(key)));
    }
    say_answered(fd, "DBSIZE\r\n");
    EXPECT(fd, ":8\r\n");
    ASK(fd, "DURAMEN.ONCE c 1 GET key1\r\n",
        "-ERR DURAMEN.ONCE is for commands that write keys\r\n");
    ASK(fd, "DURAMEN.ONCE c 0 SET k v\r\n", "-ERR the sequence number counts from 1\r\n");
    close(fd);
}

/* All ranges */

static void fill(int fd, int count)
{
    for (int i = 0; i < count; i++) {
        char text[64];
        snprintf(text, sizeof text, "SET key:%d v\r\n", i);
        say(fd, text);
    }
    (void)heard(fd);
}

Test(routing, what_is_about_all_keys_asks_all_ranges)
{
    int fd = dial();
    fixture->node->alone = false;
    fill(fd, 100);
    led_elsewhere();
    say(fd, "DBSIZE\r\n");
    cr_assert_eq(fixture->node->request_count, FAKE_RANGES);
    answer_all();
    EXPECT(fd, ":100\r\n");
    say_answered(fd, "KEYS key:1*\r\n");
    cr_assert(bytes_have_prefix(bytes_of_text(heard(fd)), bytes_of_text("*11\r\n")));
    say_answered(fd, "RANDOMKEY\r\n");
    cr_assert_not_null(strstr(heard(fd), "key:"));
    say_answered(fd, "FLUSHALL\r\n");
    EXPECT(fd, "+OK\r\n");
    say_answered(fd, "DBSIZE\r\n");
    EXPECT(fd, ":0\r\n");
    say_answered(fd, "RANDOMKEY\r\n");
    EXPECT(fd, "$-1\r\n");
    close(fd);
}

Test(routing, a_part_of_the_keys_is_never_taken_for_all)
{
    int fd = dial();
    fixture->node->alone = false;
    fill(fd, 20);
    led_elsewhere();
    say(fd, "DBSIZE\r\n");
    answer(NODE_REPLIED);
    answer(NODE_UNAVAILABLE);
    answer_all();
    cr_assert_not_null(strstr(heard(fd), "-CLUSTERDOWN "));
    say(fd, "FLUSHDB\r\n");
    answer(NODE_REPLIED);
    answer(NODE_UNAVAILABLE);
    answer_all();
    cr_assert_not_null(strstr(heard(fd), "-UNKNOWN "), "some ranges were emptied");
    close(fd);
}

Test(routing, a_scan_meets_each_key_once)
{
    int fd = dial();
    fixture->node->alone = false;
    fill(fd, 57);
    led_elsewhere();
    char cursor[32] = "0";
    int met[57] = {0}, calls = 0;
    do {
        char text[64];
        snprintf(text, sizeof text, "SCAN %s COUNT 5\r\n", cursor);
        say_answered(fd, text);
        const char *reply = heard(fd);
        cr_assert_eq(sscanf(reply, "*2\r\n$%*d\r\n%31[0-9]", cursor), 1, "%s", reply);
        for (const char *at = strstr(reply, "key:"); at != NULL; at = strstr(at + 1, "key:"))
            met[atoi(at + 4)]++;
        cr_assert_lt(++calls, 100);
    } while (strcmp(cursor, "0") != 0);
    for (int i = 0; i < 57; i++)
        cr_assert_eq(met[i], 1, "key:%d was met %d times", i, met[i]);
    close(fd);
}

Test(routing, selecting_a_new_bucket_waits_until_it_is_known_here)
{
    int fd = dial();
    led_elsewhere();
    say(fd, "SELECT users\r\n");
    cr_assert_eq(fixture->node->request_count, 1);
    cr_assert_eq(fixture->node->requests[0]->range, 0);
    answer(NODE_REPLIED);
    EXPECT(fd, "");
    bucket_requests_poll(&fixture->server);
    EXPECT(fd, "+OK\r\n");
    say_answered(fd, "SET k v\r\n");
    EXPECT(fd, "+OK\r\n");
    const struct fake_key *key = fixture->node->keys;
    while (!key->used)
        key++;
    cr_assert_eq(key->bucket, NODE_BUCKETS_NUMBERED);
    close(fd);
}
