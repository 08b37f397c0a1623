#define _GNU_SOURCE
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/prng.h"
#include "tests/cluster/net_world.h"

/* Strangers at the port, and a strange host at a peer's address: two nodes talk on as if nothing were there. */

TestSuite(net_hostile, .timeout = 60);

static struct end a, b;
static struct end *all[] = {&a, &b};
static uint64_t sent;

/* What NNG's peers say first: protocol 0x30 is req, 0x31 rep. */
static const uint8_t req_greeting[8] = {0, 'S', 'P', 0, 0, 0x30, 0, 0};
static const uint8_t rep_greeting[8] = {0, 'S', 'P', 0, 0, 0x31, 0, 0};

static bool all_came(void *ctx)
{
    (void)ctx;
    return b.frames == sent;
}

static void talk(int frames)
{
    for (int i = 0; i < frames; i++) {
        uint64_t number = ++sent;
        send_patiently(all, 2, &a, 2, (enum net_lane)(i % 2), bytes_of(&number, 8));
    }
    cr_assert(wait_for(all, 2, all_came, NULL, 10000));
}

static void setup(void)
{
    struct net_identity first = identity_of('c', 1, 1);
    struct net_identity second = identity_of('c', 2, 1);
    end_open(&a, &first, NULL);
    end_open(&b, &second, NULL);
    cr_assert_eq(a.net.set_peer(a.net.ctx, 2, b.address), OK);
    cr_assert_eq(b.net.set_peer(b.net.ctx, 1, a.address), OK);
    talk(100);
}

static void teardown(void)
{
    talk(1000);
    end_close(&a);
    end_close(&b);
}

static void close_hard(int fd, bool hard)
{
    struct linger linger = {.l_onoff = 1};
    if (hard) (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    close(fd);
}

Test(net_hostile, a_thousand_greetings_that_hang_up, .init = setup, .fini = teardown)
{
    for (int i = 0; i < 1000; i++) {
        int fd = connect_to(b.address);
        cr_assert_geq(fd, 0);
        write_all(fd, req_greeting, sizeof req_greeting);
        if (i % 3 == 0) usleep(200);
        close_hard(fd, i % 2 == 0);
        if (i % 100 == 0) talk(10);
    }
}

Test(net_hostile, noise_of_every_kind, .init = setup, .fini = teardown)
{
    struct prng prng;
    prng_init(&prng, 11);
    for (int i = 0; i < 400; i++) {
        int fd = connect_to(b.address);
        cr_assert_geq(fd, 0);
        uint8_t noise[512];
        for (size_t k = 0; k < sizeof noise; k++) {
            noise[k] = (uint8_t)prng_next(&prng);
        }
        if (i % 2 == 0) write_all(fd, req_greeting, sizeof req_greeting);
        if (i % 4 == 0)
            store_u64_be(noise, prng_below(&prng, sizeof noise)); /* a length that fits */
        if (i % 8 == 0) noise[8] |= 0x80;
        write_all(fd, noise, i % 4 == 0 ? sizeof noise : (size_t)prng_below(&prng, sizeof noise));
        if (i % 8 == 0) drain_for(fd, 2);
        close_hard(fd, i % 5 == 0);
        if (i % 50 == 0) talk(10);
    }
    cr_assert_gt(counters_of(&b).dropped_malformed, 0);
}

Test(net_hostile, announced_sizes_are_not_believed, .init = setup, .fini = teardown)
{
    static const uint64_t sizes[] = {
        1 << 22, 1ull << 32, 1ull << 40, UINT64_MAX / 2, UINT64_MAX, (1 << 20) + 4096};
    int fds[300];
    for (size_t i = 0; i < 300; i++) {
        fds[i] = connect_to(b.address);
        cr_assert_geq(fds[i], 0);
        uint8_t head[8];
        store_u64_be(head, sizes[i % 6]);
        write_all(fds[i], req_greeting, sizeof req_greeting);
        write_all(fds[i], head, sizeof head);
        write_all(fds[i], "abc", 3);
    }
    talk(1000);
    for (size_t i = 0; i < 300; i++) {
        close(fds[i]);
    }
}

Test(net_hostile, there_is_an_end_to_connections, .init = setup, .fini = teardown)
{
    enum { MANY = 1200 };
    static int fds[MANY];
    size_t opened = 0;
    for (size_t i = 0; i < MANY; i++) {
        fds[i] = connect_to(b.address);
        if (fds[i] < 0) break;
        opened++;
        write_all(fds[i], req_greeting, sizeof req_greeting);
    }
    talk(100);
    run_for(all, 2, 200);
    if (opened == MANY) cr_assert_gt(counters_of(&b).dropped_connections, 0);
    for (size_t i = 0; i < opened; i++) {
        close(fds[i]);
    }
}

/* ---- a strange host where a peer should be ---- */

static atomic_int visits;

static void *strange_host(void *arg)
{
    int listener = *(int *)arg;
    struct prng prng;
    prng_init(&prng, 3);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0) return NULL;
        atomic_fetch_add(&visits, 1);
        uint8_t noise[64] = {0};
        uint64_t what = prng_below(&prng, 5);
        write_all(fd, rep_greeting, sizeof rep_greeting);
        if (what >= 2) {
            for (size_t k = 0; k < sizeof noise; k++) {
                noise[k] = (uint8_t)prng_next(&prng);
            }
            write_all(fd, noise, sizeof noise);
            drain_for(fd, 1);
        }
        close_hard(fd, what % 2 == 0);
    }
}

Test(net_hostile, a_strange_host_at_a_peers_address, .init = setup, .fini = teardown)
{
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    cr_assert_eq(bind(listener, (struct sockaddr *)&at, sizeof at), 0);
    cr_assert_eq(listen(listener, 16), 0);
    cr_assert_eq(getsockname(listener, (struct sockaddr *)&at, &size), 0);
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, strange_host, &listener), 0);
    char address[64];
    (void)snprintf(address, sizeof address, "127.0.0.1:%d", ntohs(at.sin_port));
    for (uint16_t node = 10; node < 20; node++) {
        cr_assert_eq(a.net.set_peer(a.net.ctx, node, address), OK);
        cr_assert_eq(a.net.send(a.net.ctx, node, NET_BULK, bytes_of("abc", 3)), OK);
    }
    uint64_t ups = a.events[NET_PEER_UP];
    for (int i = 0; i < 30; i++) {
        talk(50);
        run_for(all, 2, 50);
        if (i % 10 == 0) a.net.kick(a.net.ctx, 12);
    }
    cr_assert_geq(atomic_load(&visits), 100);
    cr_assert_eq(a.events[NET_PEER_UP], ups);
    for (uint16_t node = 10; node < 20; node++) {
        cr_assert_eq(a.net.set_peer(a.net.ctx, node, NULL), OK);
    }
    (void)shutdown(listener, SHUT_RDWR);
    pthread_join(thread, NULL);
    close(listener);
}
