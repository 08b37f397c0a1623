#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "server/command.h"

/* Sessions and dispatcher over a real node, whose log writes stop at a gate: a test decides when what
 * was proposed becomes durable, and looks at what clients have seen before and after. */

static struct fixture {
    char folder[64];
    struct disk real;
    struct disk_op *held; /* submitted, not yet let through */
    bool gate_shut;
    struct clock real_clock;
    uint64_t skipped_ns; /* the fake clock is ahead by this */
    struct server server;
    bool stop_at_turn_end;
} * fixture;

static void gate_submit(void *ctx, struct disk_op *op)
{
    (void)ctx;
    if (!fixture->gate_shut) {
        fixture->real.submit(fixture->real.ctx, op);
        return;
    }
    op->next = fixture->held;
    fixture->held = op;
}

static enum err gate_write_durable(
    void *ctx, disk_file file, uint64_t offset, const void *at, size_t size)
{
    (void)ctx;
    cr_assert_not(fixture->gate_shut, "the log was written inline though clients take turns");
    return fixture->real.write_durable(fixture->real.ctx, file, offset, at, size);
}

static uint64_t fake_monotonic_ns(void *ctx)
{
    (void)ctx;
    return fixture->real_clock.monotonic_ns(fixture->real_clock.ctx) + fixture->skipped_ns;
}

static void on_tickets(void *ctx)
{
    sessions_on_tickets(ctx);
}

static lsn_t last_record(void)
{
    struct wal_stats stats;
    wal_stats(engine_wal(node_engine(fixture->server.node)), &stats);
    return stats.last;
}

static void wake(void *ctx)
{
    loop_wake(((struct server *)ctx)->loop);
}

static void on_turn_begin(void *ctx)
{
    struct server *server = ctx;
    server->turn++;
    server->now_ns = fake_monotonic_ns(NULL);
    node_turn_begin(server->node);
}

static void on_wake(void *ctx)
{
    struct server *server = ctx;
    cr_assert_eq(node_poll(server->node), OK);
    sessions_retry(server);
}

static bool on_turn_end(void *ctx)
{
    struct server *server = ctx;
    node_turn_end(server->node, false);
    sessions_turn_end(server);
    loop_stop(server->loop);
    return false;
}

static void start(void)
{
    fixture = calloc(1, sizeof *fixture);
    snprintf(fixture->folder, sizeof fixture->folder, "/tmp/duramen-session-XXXXXX");
    cr_assert_not_null(mkdtemp(fixture->folder));
    char wal[80], db[80];
    snprintf(wal, sizeof wal, "%s/wal", fixture->folder);
    snprintf(db, sizeof db, "%s/db", fixture->folder);
    cr_assert_eq(disk_posix_open(wal, LOG_IO_POSIX, &fixture->real), OK);

    struct server *server = &fixture->server;
    server->config = (struct server_config){.connections_max = 4,
        .output_limit = 256 << 10,
        .client_memory = 8 << 20,
        .slowlog_us = UINT64_MAX};
    server->io = (struct io){.clock = clock_real(), .disk = fixture->real, .seed = 1};
    fixture->real_clock = server->io.clock;
    server->io.clock.monotonic_ns = fake_monotonic_ns;
    server->io.disk.submit = gate_submit;
    server->io.disk.write_durable = gate_write_durable;
    server->limits[1] = (struct resp_limits){.arguments_max = RESP_ARGUMENTS_MAX,
        .bulk_max = VALUE_SIZE_MAX,
        .inline_max = RESP_INLINE_MAX,
        .command_max = 64 << 20};
    struct loop_config loop_config = {.ctx = server,
        .on_turn_begin = on_turn_begin,
        .on_turn_end = on_turn_end,
        .on_wake = on_wake};
    cr_assert_eq(loop_open(&loop_config, &server->loop), OK);
    fixture->real.set_wake(fixture->real.ctx, wake, server);
    struct node_config config = {.io = &server->io,
        .kv = &kv_lmdb,
        .kv_folder = db,
        .ranges = 4,
        .memory = 64 << 20,
        .slot_size = 8 << 20,
        .log_bytes_max = 64 << 20,
        .map_size = 64 << 20,
        .create = true,
        .ctx = server,
        .number = 1,
        .incarnation = 1,
        .on_tickets = on_tickets,
        .wake = wake};
    struct engine_report report = {0};
    enum err err = node_open(&config, &report, &server->node);
    cr_assert_eq(err, OK, "%s: %s", err_name(err), report.detail);
    server->now_ns = fake_monotonic_ns(NULL);
    /* a node alone leads as soon as its vote for itself is written down */
    for (int range = 0; range <= 4;) {
        node_turn_begin(server->node);
        cr_assert_eq(node_poll(server->node), OK);
        node_tick(server->node);
        node_turn_end(server->node, false);
        while (range <= 4 && node_serves(server->node, (uint16_t)range))
            range++;
        usleep(200);
    }
}

static int remove_entry(const char *path, const struct stat *status, int type, struct FTW *walk)
{
    (void)status;
    (void)type;
    (void)walk;
    return remove(path);
}

static void turn(void)
{
    loop_wake(fixture->server.loop);
    loop_run(fixture->server.loop);
}

static void open_gate(void)
{
    fixture->gate_shut = false;
    while (fixture->held != NULL) {
        struct disk_op *op = fixture->held;
        fixture->held = op->next;
        fixture->real.submit(fixture->real.ctx, op);
    }
}

static void finish(void)
{
    struct server *server = &fixture->server;
    open_gate();
    sessions_close_all(server);
    while (server->session_count > 0)
        turn();
    cr_assert_eq(server->client_bytes, 0, "%llu bytes are still accounted",
        (unsigned long long)server->client_bytes);
    node_close(server->node, false);
    disk_posix_close(&fixture->real);
    loop_close(server->loop);
    commands_close(server);
    slowlog_reset(server);
    nftw(fixture->folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    free(fixture);
}

static int dial(void)
{
    int pair[2];
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    session_accept(&fixture->server, pair[0]);
    return pair[1];
}

/* Returns what has arrived after the loop has turned a few times, as text. */
static const char *seen_by(int fd)
{
    static char text[1 << 16];
    size_t size = 0;
    for (int i = 0; i < 5; i++) {
        turn();
        ssize_t got = recv(fd, text + size, sizeof text - 1 - size, MSG_DONTWAIT);
        if (got > 0) size += (size_t)got;
    }
    text[size] = '\0';
    return text;
}

static void say(int fd, const char *text)
{
    size_t size = strlen(text);
    cr_assert_eq(send(fd, text, size, MSG_NOSIGNAL), (ssize_t)size);
}

/* Turns until `wanted` has arrived in full. */
static void expect(int fd, const char *wanted)
{
    char text[4096];
    size_t size = 0, length = strlen(wanted);
    uint64_t end = fake_monotonic_ns(NULL) + 10000000000u;
    while (size < length && fake_monotonic_ns(NULL) < end) {
        turn();
        ssize_t got = recv(fd, text + size, length - size, MSG_DONTWAIT);
        if (got == 0) break;
        if (got > 0) size += (size_t)got;
    }
    text[size] = '\0';
    cr_assert_str_eq(text, wanted);
    cr_assert_str_eq(seen_by(fd), "", "more than was expected");
}

static bool is_closed(int fd)
{
    char byte;
    for (int i = 0; i < 20; i++) {
        turn();
        ssize_t got = recv(fd, &byte, 1, MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN)) return true;
    }
    return false;
}

TestSuite(session, .init = start, .fini = finish);

Test(session, a_write_is_answered_when_it_is_durable_and_not_before)
{
    int fd = dial();
    fixture->gate_shut = true;
    say(fd, "SET k v\r\n");
    cr_assert_str_eq(seen_by(fd), "");
    cr_assert_not_null(fixture->held);
    open_gate();
    expect(fd, "+OK\r\n");
    close(fd);
}

Test(session, others_see_a_write_only_once_it_is_durable)
{
    int writer = dial(), reader = dial();
    say(writer, "SET k old\r\n");
    expect(writer, "+OK\r\n");
    fixture->gate_shut = true;
    say(writer, "SET k new\r\n");
    cr_assert_str_eq(seen_by(writer), "");
    say(reader, "GET k\r\n");
    expect(reader, "$3\r\nold\r\n");
    open_gate();
    expect(writer, "+OK\r\n");
    say(reader, "GET k\r\n");
    expect(reader, "$3\r\nnew\r\n");
    close(writer);
    close(reader);
}

Test(session, a_read_behind_a_write_of_the_same_client_sees_it_and_waits_with_it)
{
    int fd = dial();
    fixture->gate_shut = true;
    say(fd, "SET k v\r\nGET k\r\n");
    cr_assert_str_eq(seen_by(fd), "");
    say(fd, "STRLEN k\r\nPING\r\nINCR n\r\nINCR n\r\n");
    cr_assert_str_eq(seen_by(fd), "");
    open_gate();
    expect(fd, "+OK\r\n$1\r\nv\r\n:1\r\n+PONG\r\n:1\r\n:2\r\n");
    close(fd);
}

Test(session, a_write_without_effect_waits_for_what_it_has_seen)
{
    int first = dial(), second = dial();
    fixture->gate_shut = true;
    say(first, "SET k v\r\n");
    cr_assert_str_eq(seen_by(first), "");
    say(second, "SETNX k w\r\n");
    cr_assert_str_eq(seen_by(second), "");
    say(second, "PING\r\n");
    cr_assert_str_eq(seen_by(second), "");
    open_gate();
    expect(first, "+OK\r\n");
    expect(second, ":0\r\n+PONG\r\n");
    close(first);
    close(second);
}

Test(session, what_stands_before_a_held_reply_leaves_at_once)
{
    int fd = dial();
    fixture->gate_shut = true;
    say(fd, "PING\r\nPING a\r\nSET k v\r\nPING b\r\n");
    cr_assert_str_eq(seen_by(fd), "+PONG\r\n$1\r\na\r\n");
    open_gate();
    expect(fd, "+OK\r\n$1\r\nb\r\n");
    close(fd);
}

Test(session, a_transaction_is_one_record_and_answers_when_it_is_durable)
{
    int fd = dial();
    say(fd, "MULTI\r\nSET a 1\r\nINCR a\r\nGET a\r\n");
    expect(fd, "+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n");
    lsn_t before = last_record();
    fixture->gate_shut = true;
    say(fd, "EXEC\r\n");
    cr_assert_str_eq(seen_by(fd), "");
    open_gate();
    expect(fd, "*3\r\n+OK\r\n:2\r\n$1\r\n2\r\n");
    cr_assert_eq(last_record(), before + 1);
    close(fd);
}

Test(session, a_client_that_sends_no_more_gets_its_replies_and_is_closed)
{
    int fd = dial();
    fixture->gate_shut = true;
    say(fd, "SET k v\r\nGET k\r\n");
    shutdown(fd, SHUT_WR);
    cr_assert_str_eq(seen_by(fd), "");
    cr_assert_eq(fixture->server.session_count, 1);
    open_gate();
    expect(fd, "+OK\r\n$1\r\nv\r\n");
    cr_assert(is_closed(fd));
    close(fd);
}

Test(session, quit_answers_what_came_before_it_and_nothing_after)
{
    int fd = dial();
    fixture->gate_shut = true;
    say(fd, "SET k v\r\nQUIT\r\nPING\r\n");
    cr_assert_str_eq(seen_by(fd), "");
    open_gate();
    expect(fd, "+OK\r\n+OK\r\n");
    cr_assert(is_closed(fd));
    close(fd);
}

Test(session, a_command_may_come_in_bytes)
{
    int fd = dial();
    const char *text =
        "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\nhello\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n";
    for (const char *at = text; *at != '\0'; at++) {
        cr_assert_eq(send(fd, at, 1, MSG_NOSIGNAL), 1);
        turn();
    }
    expect(fd, "+OK\r\n$5\r\nhello\r\n");
    close(fd);
}

Test(session, switched_off_replies_do_not_come)
{
    int fd = dial();
    say(fd, "CLIENT REPLY SKIP\r\nSET a 1\r\nGET a\r\n");
    expect(fd, "$1\r\n1\r\n");
    say(fd, "CLIENT REPLY OFF\r\nSET a 2\r\nGET a\r\nCLIENT REPLY ON\r\nGET a\r\n");
    expect(fd, "+OK\r\n$1\r\n2\r\n");
    close(fd);
}

/* Limits */

Test(session, a_key_over_the_limit_is_refused_by_name)
{
    int fd = dial();
    char text[600], key[402] = {0};
    memset(key, 'k', 401);
    snprintf(text, sizeof text, "GET %s\r\nSET k v\r\n", key);
    say(fd, text);
    expect(fd, "-ERR key is longer than 400 bytes\r\n+OK\r\n");
    snprintf(text, sizeof text, "MSET a 1 %s 2\r\nEXISTS a\r\n", key);
    say(fd, text);
    expect(fd, "-ERR key is longer than 400 bytes\r\n:0\r\n");
    close(fd);
}

/* sends without blocking while the loop takes it */
static void pour(int fd, const char *pattern, size_t size)
{
    size_t length = strlen(pattern), sent = 0;
    while (sent < size) {
        size_t at = sent % length;
        size_t left = size - sent < length - at ? size - sent : length - at;
        ssize_t done = send(fd, pattern + at, left, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (done > 0) sent += (size_t)done;
        if (done < 0) {
            cr_assert_eq(errno, EAGAIN);
            turn();
        }
    }
}

static char *long_text(size_t size)
{
    char *text = malloc(size + 1);
    memset(text, 'x', size);
    text[size] = '\0';
    return text;
}

Test(session, a_value_over_the_limit_costs_no_memory_and_not_the_connection)
{
    int fd = dial();
    char *block = long_text(65536);
    uint64_t most = 0;
    say(fd, "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$17825792\r\n");
    for (int i = 0; i < 17 * 16; i++) {
        pour(fd, block, 65536);
        turn();
        if (fixture->server.client_bytes > most) most = fixture->server.client_bytes;
    }
    say(fd, "\r\nGET k\r\n");
    expect(fd, "-ERR value is larger than the limit of 16777216 bytes\r\n$-1\r\n");
    cr_assert_lt(most, 256 << 10);
    free(block);
    close(fd);
}

Test(session, over_the_budget_of_all_clients_big_commands_are_refused)
{
    int fd = dial(), other = dial();
    char *block = long_text(65536);
    fixture->server.config.client_memory = 1 << 20;
    uint64_t most = 0;
    say(fd, "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$8388608\r\n");
    for (int i = 0; i < 8 * 16; i++) {
        pour(fd, block, 65536);
        turn();
        if (fixture->server.client_bytes > most) most = fixture->server.client_bytes;
        if (i == 64) {
            say(other, "SET small v\r\n");
            expect(other, "+OK\r\n");
        }
    }
    say(fd, "\r\nPING\r\n");
    expect(fd, "-OOM command refused: connections use all the memory they may\r\n+PONG\r\n");
    cr_assert_lt(most, 3 << 20);
    free(block);
    close(fd);
    close(other);
}

static void store_value(int fd, size_t size)
{
    char head[64];
    char *block = long_text(size);
    snprintf(head, sizeof head, "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%zu\r\n", size);
    say(fd, head);
    pour(fd, block, size);
    say(fd, "\r\n");
    expect(fd, "+OK\r\n");
    free(block);
}

Test(session, a_reply_over_the_output_limit_ends_the_connection)
{
    int fd = dial();
    store_value(fd, 1 << 20);
    say(fd, "GET k\r\n");
    cr_assert(is_closed(fd));
    cr_assert_eq(fixture->server.counters.slow_readers, 1);
    close(fd);
}

Test(session, a_client_that_does_not_read_is_dropped_and_costs_little_until_then)
{
    int fd = dial();
    store_value(fd, 16 << 10);
    uint64_t most = 0;
    for (int i = 0; i < 1000; i++) {
        say(fd, "GET k\r\n");
        turn();
        if (fixture->server.client_bytes > most) most = fixture->server.client_bytes;
    }
    cr_assert_eq(fixture->server.counters.slow_readers, 0);
    cr_assert_lt(most, 2 * fixture->server.config.output_limit);
    uint64_t run = fixture->server.counters.commands;
    cr_assert_lt(run, 100, "%llu commands were run for it", (unsigned long long)run);
    for (int i = 0; i < 8; i++) {
        turn();
        sessions_tick(&fixture->server);
        fixture->skipped_ns += 1000000000;
    }
    turn();
    cr_assert_eq(fixture->server.counters.slow_readers, 1);
    cr_assert_eq(fixture->server.session_count, 0);
    close(fd);
}

Test(session, a_client_that_reads_late_gets_everything)
{
    int fd = dial();
    store_value(fd, 16 << 10);
    for (int i = 0; i < 1000; i++) {
        say(fd, "GET k\r\n");
        turn();
    }
    static char text[1 << 16];
    size_t wanted = 1000 * ((16 << 10) + 10), size = 0;
    for (int idle = 0; size < wanted && idle < 1000; idle++) {
        ssize_t got = recv(fd, text, sizeof text, MSG_DONTWAIT);
        if (got > 0) {
            size += (size_t)got;
            idle = 0;
        }
        turn();
    }
    cr_assert_eq(size, wanted);
    cr_assert_eq(fixture->server.counters.slow_readers, 0);
    close(fd);
}

Test(session, one_connection_too_many_is_told_so)
{
    int fds[5];
    for (int i = 0; i < 5; i++)
        fds[i] = dial();
    expect(fds[4], "-ERR max number of clients reached\r\n");
    cr_assert(is_closed(fds[4]));
    say(fds[0], "PING\r\n");
    expect(fds[0], "+PONG\r\n");
    for (int i = 0; i < 5; i++)
        close(fds[i]);
}

Test(session, idle_connections_are_closed_after_their_time)
{
    int fd = dial();
    fixture->server.config.idle_timeout_s = 60;
    fixture->skipped_ns += 59000000000;
    turn();
    sessions_tick(&fixture->server);
    say(fd, "PING\r\n");
    expect(fd, "+PONG\r\n");
    fixture->skipped_ns += 61000000000;
    turn();
    sessions_tick(&fixture->server);
    cr_assert(is_closed(fd));
    close(fd);
}

Test(session, an_idle_connection_gives_its_buffers_back)
{
    int fd = dial();
    store_value(fd, 10 << 10);
    say(fd, "GET k\r\n");
    say(fd, "MGET k k k\r\n");
    cr_assert_gt(strlen(seen_by(fd)), 10 << 10);
    fixture->skipped_ns += 5000000000;
    while (recv(fd, (char[65536]){0}, 65536, MSG_DONTWAIT) > 0)
        turn();
    fixture->skipped_ns += 5000000000;
    turn();
    sessions_tick(&fixture->server);
    cr_assert_eq(fixture->server.client_bytes, sizeof(struct session));
    close(fd);
}

Test(session, protocol_errors_are_answered_and_end_the_connection)
{
    int fd = dial();
    say(fd, "SET k v\r\n*1\r\n$-5\r\nPING\r\n");
    expect(fd, "+OK\r\n-ERR Protocol error: invalid bulk length\r\n");
    cr_assert(is_closed(fd));
    cr_assert_eq(fixture->server.counters.protocol_errors, 1);
    int http = dial();
    say(http, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    cr_assert(is_closed(http));
    close(fd);
    close(http);
}
