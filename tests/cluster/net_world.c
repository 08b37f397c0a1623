#define _GNU_SOURCE
#include "tests/cluster/net_world.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/check.h"

/* This NNG forgets the message it is about to write when the connection breaks (nanomsg/nng issue 1713). */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:libnng\n";
}

static pthread_mutex_t wake_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake_cond = PTHREAD_COND_INITIALIZER;
static bool woken;

uint64_t now_in_ms(void)
{
    struct clock clock = clock_real();
    return clock.monotonic_ns(clock.ctx) / 1000000;
}

struct net_identity identity_of(char cluster, uint16_t node, uint64_t incarnation)
{
    struct net_identity self = {.node = node, .incarnation = incarnation};
    if (cluster != 0) memset(self.cluster_id, cluster, sizeof self.cluster_id);
    memset(self.store_id, '0' + node, sizeof self.store_id);
    return self;
}

static void on_frame(
    void *receiver, const struct net_peer *from, enum net_lane lane, struct bytes frame)
{
    struct end *end = receiver;
    end->frames++;
    if (end->on_frame != NULL) end->on_frame(end, from, lane, frame);
    if (!end->keep) return;
    if (end->got_count == end->got_capacity) {
        end->got_capacity = end->got_capacity == 0 ? 64 : end->got_capacity * 2;
        end->got = realloc(end->got, end->got_capacity * sizeof *end->got);
        ASSERT(end->got != NULL);
    }
    end->got[end->got_count++] =
        (struct got){.from = *from, .lane = lane, .offset = end->bytes.size, .size = frame.size};
    ASSERT(buffer_append(&end->bytes, frame.at, frame.size) == OK);
}

static void on_event(void *receiver, uint16_t node, enum net_event event)
{
    struct end *end = receiver;
    (void)node;
    end->events[event]++;
}

static void on_wake(void *receiver)
{
    (void)receiver;
    pthread_mutex_lock(&wake_lock);
    woken = true;
    pthread_cond_signal(&wake_cond);
    pthread_mutex_unlock(&wake_lock);
}

void end_open_at(
    struct end *end, const struct net_identity *self, const char *secret, const char *port)
{
    char detail[200] = "";
    char listen[64];
    (void)snprintf(listen, sizeof listen, "127.0.0.1:%s", port);
    struct net_nng_config config = {.listen = listen};
    if (secret != NULL) config.secret = bytes_of_text(secret);
    enum err result = net_nng_open(&config, &end->net, detail, sizeof detail);
    for (int i = 0; i < 1000 && result == ERR_BUSY; i++) {
        usleep(5000);
        result = net_nng_open(&config, &end->net, detail, sizeof detail);
    }
    if (result != OK) fprintf(stderr, "%s\n", detail);
    ASSERT(result == OK);
    end->self = *self;
    (void)snprintf(end->address, sizeof end->address, "%s", net_nng_address(&end->net));
    end->net.start(end->net.ctx, self, end, on_frame, on_event, on_wake);
}

void end_open(struct end *end, const struct net_identity *self, const char *secret)
{
    end_open_at(end, self, secret, "0");
}

void end_close(struct end *end)
{
    net_nng_close(&end->net);
    free(end->got);
    end->got = NULL;
    buffer_deinit(&end->bytes);
}

static int poll_all(struct end *ends[], size_t count)
{
    int delivered = 0;
    for (size_t i = 0; i < count; i++) {
        if (ends[i]->net.ctx != NULL) delivered += ends[i]->net.poll(ends[i]->net.ctx, 1000);
    }
    return delivered;
}

static void sleep_until_woken(void)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 2000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_mutex_lock(&wake_lock);
    if (!woken) pthread_cond_timedwait(&wake_cond, &wake_lock, &until);
    woken = false;
    pthread_mutex_unlock(&wake_lock);
}

bool wait_for(struct end *ends[], size_t count, bool (*done)(void *ctx), void *ctx, int ms)
{
    uint64_t end = now_in_ms() + (uint64_t)ms;
    while (!done(ctx)) {
        if (now_in_ms() >= end) return false;
        if (poll_all(ends, count) == 0) sleep_until_woken();
    }
    return true;
}

static bool never(void *ctx)
{
    (void)ctx;
    return false;
}

void run_for(struct end *ends[], size_t count, int ms)
{
    (void)wait_for(ends, count, never, NULL, ms);
}

void send_patiently(struct end *ends[], size_t count, struct end *from, uint16_t to,
    enum net_lane lane, struct bytes frame)
{
    uint64_t end = now_in_ms() + 20000;
    for (;;) {
        enum err result = from->net.send(from->net.ctx, to, lane, frame);
        if (result == OK) return;
        ASSERT(result == ERR_AGAIN && now_in_ms() < end);
        if (poll_all(ends, count) == 0) sleep_until_woken();
    }
}

struct net_nng_counters counters_of(const struct end *end)
{
    struct net_nng_counters counters;
    net_nng_counters(&end->net, &counters);
    return counters;
}

/* ---- raw TCP ---- */

int connect_to(const char *address)
{
    const char *colon = strrchr(address, ':');
    struct sockaddr_in at = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)strtol(colon + 1, NULL, 10))};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ASSERT(fd >= 0);
    if (connect(fd, (struct sockaddr *)&at, sizeof at) != 0) {
        close(fd);
        return -1;
    }
    int one = 1;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

void write_all(int fd, const void *at, size_t size)
{
    const uint8_t *from = at;
    while (size > 0) {
        ssize_t wrote = send(fd, from, size, MSG_NOSIGNAL);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) return;
        from += wrote;
        size -= (size_t)wrote;
    }
}

void drain_for(int fd, int ms)
{
    uint64_t end = now_in_ms() + (uint64_t)ms;
    char scratch[4096];
    for (;;) {
        uint64_t now = now_in_ms();
        struct pollfd watch = {.fd = fd, .events = POLLIN};
        if (now >= end || poll(&watch, 1, (int)(end - now)) <= 0) return;
        if (recv(fd, scratch, sizeof scratch, 0) <= 0) return;
    }
}

enum { PAIRS_MAX = 64 };

struct relay_pair {
    int client, server;
    size_t record;
};

static void pair_close(struct relay_pair *pair)
{
    close(pair->client);
    close(pair->server);
    pair->client = pair->server = -1;
}

/* Moves what one side sent to the other; false at its end. */
static bool move(struct relay *relay, struct relay_pair *pair, bool from_client)
{
    uint8_t scratch[65536];
    ssize_t size = recv(from_client ? pair->client : pair->server, scratch, sizeof scratch, 0);
    if (size <= 0) return false;
    if (from_client) {
        pthread_mutex_lock(&relay->lock);
        ASSERT(buffer_append(&relay->recorded[pair->record], scratch, (size_t)size) == OK);
        pthread_mutex_unlock(&relay->lock);
    }
    write_all(from_client ? pair->server : pair->client, scratch, (size_t)size);
    return true;
}

static void relay_accept(struct relay *relay)
{
    int client = accept4(relay->listener, NULL, NULL, SOCK_CLOEXEC);
    if (client < 0) return;
    int server = relay->connections < PAIRS_MAX ? connect_to(relay->target) : -1;
    if (server < 0) {
        close(client);
        return;
    }
    pthread_mutex_lock(&relay->lock);
    relay->pairs[relay->connections] =
        (struct relay_pair){.client = client, .server = server, .record = relay->connections};
    relay->connections++;
    pthread_mutex_unlock(&relay->lock);
}

static bool relay_turn(struct relay *relay)
{
    struct pollfd watch[1 + 2 * PAIRS_MAX];
    watch[0] = (struct pollfd){.fd = relay->listener, .events = POLLIN};
    pthread_mutex_lock(&relay->lock);
    size_t count = relay->connections;
    bool stopping = relay->stopping;
    pthread_mutex_unlock(&relay->lock);
    for (size_t i = 0; i < count; i++) {
        watch[1 + 2 * i] = (struct pollfd){.fd = relay->pairs[i].client, .events = POLLIN};
        watch[2 + 2 * i] = (struct pollfd){.fd = relay->pairs[i].server, .events = POLLIN};
    }
    if (stopping) return false;
    if (poll(watch, 1 + 2 * count, 20) <= 0) return true;
    for (size_t i = 0; i < count; i++) {
        struct relay_pair *pair = &relay->pairs[i];
        bool alive = true;
        if (watch[1 + 2 * i].revents != 0) alive = move(relay, pair, true);
        if (alive && watch[2 + 2 * i].revents != 0) alive = move(relay, pair, false);
        if (!alive) pair_close(pair);
    }
    if (watch[0].revents != 0) relay_accept(relay);
    return true;
}

static void *relay_run(void *arg)
{
    struct relay *relay = arg;
    while (relay_turn(relay)) {
    }
    return NULL;
}

void relay_open(struct relay *relay, const char *target)
{
    memset(relay, 0, sizeof *relay);
    (void)snprintf(relay->target, sizeof relay->target, "%s", target);
    relay->pairs = calloc(PAIRS_MAX, sizeof *relay->pairs);
    ASSERT(relay->pairs != NULL);
    relay->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in at = {.sin_family = AF_INET};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof at;
    ASSERT(bind(relay->listener, (struct sockaddr *)&at, sizeof at) == 0);
    ASSERT(listen(relay->listener, 64) == 0);
    ASSERT(getsockname(relay->listener, (struct sockaddr *)&at, &size) == 0);
    (void)snprintf(relay->address, sizeof relay->address, "127.0.0.1:%d", ntohs(at.sin_port));
    pthread_mutex_init(&relay->lock, NULL);
    ASSERT(pthread_create(&relay->thread, NULL, relay_run, relay) == 0);
}

void relay_close(struct relay *relay)
{
    pthread_mutex_lock(&relay->lock);
    relay->stopping = true;
    pthread_mutex_unlock(&relay->lock);
    pthread_join(relay->thread, NULL);
    close(relay->listener);
    for (size_t i = 0; i < relay->connections; i++) {
        if (relay->pairs[i].client >= 0) pair_close(&relay->pairs[i]);
        buffer_deinit(&relay->recorded[i]);
    }
    free(relay->pairs);
    pthread_mutex_destroy(&relay->lock);
}
