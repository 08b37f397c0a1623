#define _GNU_SOURCE
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "server/loop.h"

/* The contract of server/loop.h, held against both back ends. A test is a server in the loop (this
 * thread) and a client in a thread of its own, which ends the test. */

enum { CONNECTIONS_MAX = 700, OUT_MAX = 1 << 20 };

struct world;

struct connection {
    struct loop_stream stream;
    struct world *world;
    uint64_t received;
    int closed;
    bool ended;
    uint8_t *out;
    size_t out_size;
    size_t out_capacity;
    uint8_t *sending;
};

struct world {
    struct loop *loop;
    int listen_fd;
    uint16_t port;
    struct connection *connections[CONNECTIONS_MAX];
    uint32_t accepted;
    uint32_t closed;
    bool echo;
    atomic_bool done;
    atomic_int wakes, ticks, turns;
    atomic_ullong asked; /* what the client thread wants seen */
    atomic_ullong seen;
    void (*on_data)(struct connection *connection, struct bytes bytes);
    void (*on_end)(struct connection *connection);
    void (*on_wake)(struct world *world);
    bool (*on_turn_end)(struct world *world);
    void (*client)(struct world *world);
    uint32_t streams_most;
};

static void flush_echo(struct connection *connection)
{
    while (!loop_sending(&connection->stream) && connection->out_size > 0) {
        free(connection->sending);
        connection->sending = connection->out;
        size_t size = connection->out_size;
        connection->out = NULL;
        connection->out_size = connection->out_capacity = 0;
        if (!loop_send(&connection->stream, connection->sending, size)) return;
    }
    if (connection->ended && connection->out_size == 0) loop_close_stream(&connection->stream);
}

static void echo(struct connection *connection, struct bytes bytes)
{
    if (connection->out_capacity - connection->out_size < bytes.size) {
        connection->out_capacity = (connection->out_size + bytes.size) * 2;
        connection->out = realloc(connection->out, connection->out_capacity);
        cr_assert_not_null(connection->out);
    }
    memcpy(connection->out + connection->out_size, bytes.at, bytes.size);
    connection->out_size += bytes.size;
    flush_echo(connection);
}

static void on_data(struct loop_stream *stream, struct bytes bytes)
{
    struct connection *connection = (struct connection *)(void *)stream;
    cr_assert_eq(connection->closed, 0, "data after on_closed");
    cr_assert_gt(bytes.size, 0);
    connection->received += bytes.size;
    if (connection->world->on_data != NULL) connection->world->on_data(connection, bytes);
    if (connection->world->echo) echo(connection, bytes);
}

static void on_end(struct loop_stream *stream)
{
    struct connection *connection = (struct connection *)(void *)stream;
    cr_assert_not(connection->ended, "on_end twice");
    connection->ended = true;
    if (connection->world->on_end != NULL) {
        connection->world->on_end(connection);
    } else if (!loop_sending(stream)) {
        flush_echo(connection);
    }
}

static void on_sent(struct loop_stream *stream)
{
    flush_echo((struct connection *)(void *)stream);
}

static void on_closed(struct loop_stream *stream)
{
    struct connection *connection = (struct connection *)(void *)stream;
    connection->closed++;
    connection->world->closed++;
    cr_assert_eq(connection->closed, 1, "on_closed twice");
}

static const struct loop_stream_ops stream_ops = {on_data, on_end, on_sent, on_closed};

static void on_accept(void *ctx, int fd)
{
    struct world *world = ctx;
    cr_assert_lt(world->accepted, CONNECTIONS_MAX);
    struct connection *connection = calloc(1, sizeof *connection);
    cr_assert_not_null(connection);
    connection->world = world;
    world->connections[world->accepted++] = connection;
    loop_start_stream(world->loop, &connection->stream, &stream_ops, fd);
}

static void world_on_wake(void *ctx)
{
    struct world *world = ctx;
    atomic_fetch_add(&world->wakes, 1);
    atomic_store(&world->seen, atomic_load(&world->asked));
    if (world->on_wake != NULL) world->on_wake(world);
}

static void world_on_tick(void *ctx)
{
    struct world *world = ctx;
    atomic_fetch_add(&world->ticks, 1);
}

static bool world_on_turn_end(void *ctx)
{
    struct world *world = ctx;
    atomic_fetch_add(&world->turns, 1);
    uint32_t streams = loop_turn_streams(world->loop);
    if (streams > world->streams_most) world->streams_most = streams;
    if (atomic_load(&world->done)) {
        bool all = true;
        for (uint32_t i = 0; i < world->accepted; i++) {
            if (world->connections[i]->closed != 0) continue;
            all = false;
            loop_close_stream(&world->connections[i]->stream);
        }
        if (all) loop_stop(world->loop);
    }
    return world->on_turn_end != NULL && world->on_turn_end(world);
}

static void listen_on_loopback(struct world *world)
{
    world->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    cr_assert_eq(bind(world->listen_fd, (struct sockaddr *)&address, size), 0);
    cr_assert_eq(listen(world->listen_fd, 1024), 0);
    cr_assert_eq(getsockname(world->listen_fd, (struct sockaddr *)&address, &size), 0);
    world->port = ntohs(address.sin_port);
}

static int dial(const struct world *world)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET,
        .sin_port = htons(world->port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    cr_assert_eq(
        connect(fd, (struct sockaddr *)&address, sizeof address), 0, "%s", strerror(errno));
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct timeval limit = {.tv_sec = 20};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return fd;
}

static void send_all(int fd, const void *at, size_t size)
{
    const uint8_t *next = at;
    while (size > 0) {
        ssize_t sent = send(fd, next, size, MSG_NOSIGNAL);
        cr_assert_gt(sent, 0, "%s", strerror(errno));
        next += sent;
        size -= (size_t)sent;
    }
}

static void receive_all(int fd, void *at, size_t size)
{
    uint8_t *next = at;
    while (size > 0) {
        ssize_t got = recv(fd, next, size, 0);
        cr_assert_gt(got, 0, "%zd bytes missing: %s", size, strerror(errno));
        next += got;
        size -= (size_t)got;
    }
}

/* waits until the loop has been through on_wake after this call */
static void sync_with_loop(struct world *world)
{
    unsigned long long wanted = atomic_fetch_add(&world->asked, 1) + 1;
    loop_wake(world->loop);
    while (atomic_load(&world->seen) < wanted)
        sched_yield();
}

static void *client_thread(void *ctx)
{
    struct world *world = ctx;
    world->client(world);
    atomic_store(&world->done, true);
    loop_wake(world->loop);
    return NULL;
}

static void run_world(struct world *world, bool uring, uint32_t tick_ms)
{
    struct loop_config config = {
        .uring = uring,
        .tick_ms = tick_ms,
        .ctx = world,
        .on_turn_end = world_on_turn_end,
        .on_wake = world_on_wake,
        .on_tick = world_on_tick,
    };
    enum err err = loop_open(&config, &world->loop);
    if (uring && err == ERR_UNSUPPORTED) cr_skip_test("io_uring is not allowed here");
    cr_assert_eq(err, OK);
    cr_assert_str_eq(loop_name(world->loop), uring ? "uring" : "posix");
    listen_on_loopback(world);
    cr_assert_eq(loop_listen(world->loop, world->listen_fd, on_accept, world), OK);
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, client_thread, world), 0);
    loop_run(world->loop);
    pthread_join(thread, NULL);
    cr_assert_eq(world->closed, world->accepted);
    loop_unlisten(world->loop, world->listen_fd);
    close(world->listen_fd);
    loop_close(world->loop);
    for (uint32_t i = 0; i < world->accepted; i++) {
        free(world->connections[i]->out);
        free(world->connections[i]->sending);
        free(world->connections[i]);
    }
    free(world);
}

static struct world *new_world(void (*client)(struct world *world))
{
    struct world *world = calloc(1, sizeof *world);
    cr_assert_not_null(world);
    world->client = client;
    return world;
}

#define ON_BOTH(name)                                                                              \
    static void name(bool uring);                                                                  \
    Test(loop_epoll, name)                                                                         \
    {                                                                                              \
        name(false);                                                                               \
    }                                                                                              \
    Test(loop_uring, name)                                                                         \
    {                                                                                              \
        name(true);                                                                                \
    }                                                                                              \
    static void name(bool uring)

static void fill(uint8_t *at, size_t size, uint32_t seed)
{
    for (size_t i = 0; i < size; i++) {
        seed = seed * 1664525 + 1013904223;
        at[i] = (uint8_t)(seed >> 24);
    }
}

static void echo_client(struct world *world)
{
    int fd = dial(world);
    for (int i = 0; i < 1000; i++) {
        char sent[32] = {0}, got[32];
        snprintf(sent, sizeof sent, "message %d", i);
        send_all(fd, sent, sizeof sent);
        receive_all(fd, got, sizeof got);
        cr_assert_arr_eq(sent, got, sizeof sent);
    }
    close(fd);
}

ON_BOTH(what_is_sent_comes_back)
{
    struct world *world = new_world(echo_client);
    world->echo = true;
    run_world(world, uring, 0);
}

struct bulk_sender {
    int fd;
    const uint8_t *at;
    size_t size;
};

static void *send_bulk(void *ctx)
{
    struct bulk_sender *sender = ctx;
    send_all(sender->fd, sender->at, sender->size);
    return NULL;
}

/* The peer reads nothing while it writes, so sends must wait for room and go on in order. */
static void bulk_client(struct world *world)
{
    enum { SIZE = 24 << 20 };
    uint8_t *sent = malloc(SIZE), *got = malloc(SIZE);
    fill(sent, SIZE, 7);
    struct bulk_sender sender = {dial(world), sent, SIZE};
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, send_bulk, &sender), 0);
    pthread_join(thread, NULL);
    receive_all(sender.fd, got, SIZE);
    cr_assert_eq(memcmp(sent, got, SIZE), 0);
    close(sender.fd);
    free(sent);
    free(got);
}

ON_BOTH(bulk_data_keeps_its_order_through_a_full_socket)
{
    struct world *world = new_world(bulk_client);
    world->echo = true;
    run_world(world, uring, 0);
}

static void many_client(struct world *world)
{
    enum { COUNT = 300 };
    int fds[COUNT];
    for (int i = 0; i < COUNT; i++)
        fds[i] = dial(world);
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < COUNT; i++) {
            uint32_t number = (uint32_t)(round * COUNT + i);
            send_all(fds[i], &number, sizeof number);
        }
        for (int i = 0; i < COUNT; i++) {
            uint32_t number;
            receive_all(fds[i], &number, sizeof number);
            cr_assert_eq(number, (uint32_t)(round * COUNT + i));
        }
    }
    for (int i = 0; i < COUNT; i++)
        close(fds[i]);
}

ON_BOTH(many_connections_do_not_mix)
{
    struct world *world = new_world(many_client);
    world->echo = true;
    run_world(world, uring, 0);
}

/* Pausing: the server stops at the first byte. */

static void pause_at_first(struct connection *connection, struct bytes bytes)
{
    (void)bytes;
    if (connection->received == bytes.size) loop_pause(&connection->stream);
}

static void resume_first(struct world *world)
{
    if (atomic_load(&world->asked) == 2 && world->accepted > 0)
        loop_resume(&world->connections[0]->stream);
}

static void pausing_client(struct world *world)
{
    enum { SIZE = 64 << 20 };
    uint8_t *sent = malloc(SIZE);
    fill(sent, SIZE, 3);
    struct bulk_sender sender = {dial(world), sent, SIZE};
    send_all(sender.fd, "x", 1);
    struct pollfd ready = {.fd = sender.fd, .events = POLLOUT};
    size_t before = 0;
    /* until the pause reaches us: nothing more can be written for a while */
    while (before < SIZE && poll(&ready, 1, 500) == 1) {
        ssize_t wrote = send(sender.fd, sent, 65536, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (wrote > 0) before += (size_t)wrote;
    }
    cr_assert_lt(before, SIZE, "a paused connection took everything");
    sync_with_loop(world);
    uint64_t received = world->connections[0]->received;
    cr_assert_lt(received, 4 << 20, "a paused connection delivered %llu bytes",
        (unsigned long long)received);
    sync_with_loop(world); /* resumes */
    sender.size = 1 << 20;
    send_all(sender.fd, sender.at, sender.size);
    shutdown(sender.fd, SHUT_WR);
    char none;
    cr_assert_eq(recv(sender.fd, &none, 1, 0), 0);
    sync_with_loop(world);
    cr_assert_eq(world->connections[0]->received, 1 + before + sender.size);
    close(sender.fd);
    free(sent);
}

ON_BOTH(a_paused_connection_pushes_back_and_loses_nothing)
{
    struct world *world = new_world(pausing_client);
    world->on_data = pause_at_first;
    world->on_wake = resume_first;
    run_world(world, uring, 0);
}

/* The end of input is not the end of the connection. */

static void half_closing_client(struct world *world)
{
    int fd = dial(world);
    enum { SIZE = 3 << 20 };
    uint8_t *sent = malloc(SIZE), *got = malloc(SIZE);
    fill(sent, SIZE, 11);
    send_all(fd, sent, SIZE);
    shutdown(fd, SHUT_WR);
    receive_all(fd, got, SIZE);
    cr_assert_eq(memcmp(sent, got, SIZE), 0);
    char none;
    cr_assert_eq(recv(fd, &none, 1, 0), 0);
    close(fd);
    free(sent);
    free(got);
}

ON_BOTH(a_peer_that_shut_down_its_side_still_gets_its_replies)
{
    struct world *world = new_world(half_closing_client);
    world->echo = true;
    run_world(world, uring, 0);
}

static void close_at_once(struct connection *connection, struct bytes bytes)
{
    (void)bytes;
    loop_close_stream(&connection->stream);
    loop_close_stream(&connection->stream);
}

static void closed_client(struct world *world)
{
    for (int i = 0; i < 100; i++) {
        int fd = dial(world);
        send_all(fd, "x", 1);
        char none;
        cr_assert_leq(recv(fd, &none, 1, 0), 0);
        close(fd);
    }
    sync_with_loop(world);
    cr_assert_eq(world->closed, 100);
}

ON_BOTH(closing_inside_on_data_ends_the_connection_once)
{
    struct world *world = new_world(closed_client);
    world->on_data = close_at_once;
    run_world(world, uring, 0);
}

static void resetting_client(struct world *world)
{
    for (int i = 0; i < 50; i++) {
        int fd = dial(world);
        char text[1024] = {0};
        send_all(fd, text, sizeof text);
        struct linger linger = {.l_onoff = 1};
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
        close(fd);
    }
    while (atomic_load(&world->turns) >= 0) {
        sync_with_loop(world);
        if (world->closed == 50) break;
    }
}

ON_BOTH(a_reset_by_the_peer_closes)
{
    struct world *world = new_world(resetting_client);
    world->echo = true;
    run_world(world, uring, 0);
}

static void waking_client(struct world *world)
{
    for (int i = 0; i < 20000; i++)
        sync_with_loop(world);
    cr_assert_geq(atomic_load(&world->wakes), 20000);
    /* a wake that nobody asked for would be a busy loop */
    cr_assert_leq(atomic_load(&world->turns), 70000);
}

ON_BOTH(no_wake_is_lost)
{
    run_world(new_world(waking_client), uring, 0);
}

static void ticking_client(struct world *world)
{
    while (atomic_load(&world->ticks) < 20)
        usleep(1000);
    cr_assert_leq(atomic_load(&world->turns), 60, "the loop turns without need");
}

ON_BOTH(ticks_come_and_an_idle_loop_sleeps)
{
    run_world(new_world(ticking_client), uring, 5);
}

/* Two clients whose bytes are both there when the loop looks are two streams of that turn. */

static void counting_client(struct world *world)
{
    int one = dial(world), two = dial(world);
    char byte;
    send_all(one, "a", 1);
    receive_all(one, &byte, 1);
    send_all(two, "a", 1);
    receive_all(two, &byte, 1);
    cr_assert_eq(world->streams_most, 1);
    atomic_store(&world->asked, 1000000); /* the loop waits for both, see below */
    loop_wake(world->loop);
    while (atomic_load(&world->seen) != 1000000)
        sched_yield();
    send_all(one, "a", 1);
    send_all(two, "a", 1);
    atomic_store(&world->asked, 1000001);
    receive_all(one, &byte, 1);
    receive_all(two, &byte, 1);
    sync_with_loop(world);
    cr_assert_eq(world->streams_most, 2);
    close(one);
    close(two);
}

static void hold_the_loop(struct world *world)
{
    while (atomic_load(&world->seen) == 1000000 && atomic_load(&world->asked) == 1000000)
        sched_yield();
}

ON_BOTH(streams_with_data_in_one_turn_are_counted)
{
    struct world *world = new_world(counting_client);
    world->echo = true;
    world->on_wake = hold_the_loop;
    run_world(world, uring, 0);
}

/* More connections with data than there are buffers to receive into. */

static void flooding_client(struct world *world)
{
    enum { COUNT = 600, SIZE = 40000 };
    static int fds[COUNT];
    static uint8_t sent[SIZE], got[SIZE];
    for (int i = 0; i < COUNT; i++)
        fds[i] = dial(world);
    sync_with_loop(world);
    atomic_store(&world->asked, 1000000);
    loop_wake(world->loop);
    while (atomic_load(&world->seen) != 1000000)
        sched_yield();
    for (int i = 0; i < COUNT; i++) {
        fill(sent, SIZE, (uint32_t)i);
        send_all(fds[i], sent, SIZE);
    }
    atomic_store(&world->asked, 1000001);
    for (int i = 0; i < COUNT; i++) {
        fill(sent, SIZE, (uint32_t)i);
        receive_all(fds[i], got, SIZE);
        cr_assert_eq(memcmp(sent, got, SIZE), 0);
        close(fds[i]);
    }
}

ON_BOTH(more_data_than_buffers_is_all_delivered)
{
    struct world *world = new_world(flooding_client);
    world->echo = true;
    world->on_wake = hold_the_loop;
    run_world(world, uring, 0);
}

static bool again_ten_times(struct world *world)
{
    return atomic_load(&world->turns) < 10;
}

static void idle_client(struct world *world)
{
    sync_with_loop(world);
    while (atomic_load(&world->turns) < 10)
        sched_yield();
}

ON_BOTH(a_turn_that_asks_for_another_is_not_followed_by_sleep)
{
    struct world *world = new_world(idle_client);
    world->on_turn_end = again_ten_times;
    run_world(world, uring, 0);
}

/* Watched descriptors */

struct watched {
    struct world *world;
    int fd;
    int calls;
};

static void read_one(void *ctx)
{
    struct watched *watched = ctx;
    char byte;
    cr_assert_eq(read(watched->fd, &byte, 1), 1);
    watched->calls++;
    if (byte == 'u') loop_unwatch(watched->world->loop, watched->fd);
    if (byte == 'e') loop_stop(watched->world->loop);
}

ON_BOTH(a_watched_descriptor_is_reported_until_it_is_empty)
{
    struct world *world = new_world(NULL);
    struct loop_config config = {.uring = uring, .ctx = world};
    enum err err = loop_open(&config, &world->loop);
    if (uring && err == ERR_UNSUPPORTED) cr_skip_test("io_uring is not allowed here");
    cr_assert_eq(err, OK);
    int one[2], two[2];
    cr_assert_eq(pipe(one) | pipe(two), 0);
    struct watched first = {world, one[0], 0}, second = {world, two[0], 0};
    cr_assert_eq(loop_watch(world->loop, one[0], read_one, &first), OK);
    cr_assert_eq(loop_watch(world->loop, two[0], read_one, &second), OK);
    cr_assert_eq(write(one[1], "aaauaa", 6), 6);
    cr_assert_eq(write(two[1], "bbbbbbbbbbe", 11), 11);
    loop_run(world->loop);
    cr_assert_eq(first.calls, 4, "%d calls", first.calls);
    cr_assert_eq(second.calls, 11);
    loop_unwatch(world->loop, two[0]);
    loop_close(world->loop);
    for (int i = 0; i < 2; i++) {
        close(one[i]);
        close(two[i]);
    }
    free(world);
}

/* Out of descriptors: who cannot be accepted waits until somebody leaves. */

enum { CROWD = 40 };
static int crowd[CROWD];

static void crowding_client(struct world *world)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
        .sin_port = htons(world->port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (int i = 0; i < CROWD; i++) {
        cr_assert_eq(connect(crowd[i], (struct sockaddr *)&address, sizeof address), 0);
        send_all(crowd[i], "x", 1);
    }
    char byte;
    receive_all(crowd[0], &byte, 1);
    sync_with_loop(world);
    cr_assert_lt(world->accepted, CROWD);
    for (int i = 0; i < CROWD; i++) {
        if (i > 0) receive_all(crowd[i], &byte, 1);
        close(crowd[i]);
    }
}

ON_BOTH(accepting_goes_on_after_descriptors_ran_out)
{
    struct world *world = new_world(crowding_client);
    world->echo = true;
    for (int i = 0; i < CROWD; i++)
        crowd[i] = socket(AF_INET, SOCK_STREAM, 0);
    /* before the loop opens: io_uring takes the limit of the time when the accept was asked for */
    struct rlimit limit;
    cr_assert_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
    int next = dup(0);
    close(next);
    limit.rlim_cur = (rlim_t)next + 20;
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    run_world(world, uring, 5);
}

Test(loop_uring, the_environment_can_forbid_it)
{
    setenv("DURAMEN_NO_URING", "1", 1);
    struct loop_config config = {.uring = true};
    struct loop *loop = NULL;
    cr_assert_eq(loop_open(&config, &loop), ERR_UNSUPPORTED);
    cr_assert_null(loop);
    config.uring = false;
    cr_assert_eq(loop_open(&config, &loop), OK);
    loop_close(loop);
}
