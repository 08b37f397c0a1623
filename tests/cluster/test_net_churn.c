#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/check.h"
#include "base/prng.h"
#include "tests/cluster/net_world.h"

/* A peer is killed and started again, over and over, while frames flow both ways: nobody crashes, what arrives is in
 * order and arrives once, and each time the traffic resumes.
 *
 *     test_net_churn [ROUNDS]
 *     test_net_churn peer ADDRESS PORT INCARNATION     the peer: sends every number back
 *
 * No Criterion here: NNG does not survive a fork, and the peer is a process of its own. */

enum { PARENT = 1, PEER = 2, ROUND_FRAMES = 500, RESUME_MS = 15000 };

static const char secret[] = "churn";

/* ---- the peer ---- */

static uint64_t peer_last[NET_LANES];

static void send_back(
    struct end *end, const struct net_peer *from, enum net_lane lane, struct bytes frame)
{
    ASSERT(from->node == PARENT && frame.size == 8);
    uint64_t number = load_u64(frame.at);
    ASSERT(number > peer_last[lane]); /* seen by the parent as a peer that dies by itself */
    peer_last[lane] = number;
    uint64_t echo[2] = {number, end->self.incarnation};
    (void)end->net.send(end->net.ctx, PARENT, lane, bytes_of(echo, sizeof echo));
}

static int run_peer(char **argv)
{
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    static struct end end;
    struct end *ends[] = {&end};
    struct net_identity self = identity_of('c', PEER, strtoull(argv[4], NULL, 10));
    end_open_at(&end, &self, secret, argv[3]);
    end.on_frame = send_back;
    ASSERT(end.net.set_peer(end.net.ctx, PARENT, argv[2]) == OK);
    for (;;) {
        run_for(ends, 1, 1000);
    }
}

/* ---- the parent ---- */

static struct end parent;
static struct end *ends[] = {&parent};
static uint64_t incarnation;
static uint64_t echoes_now[NET_LANES]; /* of this incarnation */
static uint64_t echoes_all;
static uint64_t last_echo[NET_LANES];
static uint64_t last_incarnation;

static void take_echo(
    struct end *end, const struct net_peer *from, enum net_lane lane, struct bytes frame)
{
    (void)end;
    ASSERT(from->node == PEER && frame.size == 16);
    uint64_t number = load_u64(frame.at);
    uint64_t whose = load_u64(frame.at + 8);
    ASSERT(from->incarnation == whose);
    ASSERT(whose <= incarnation);
    ASSERT(number > last_echo[lane]);
    ASSERT(whose >= last_incarnation); /* the dead do not speak after the living */
    last_echo[lane] = number;
    last_incarnation = whose;
    echoes_all++;
    if (whose == incarnation) echoes_now[lane]++;
}

static pid_t start_peer(const char *program, const char *address, const char *port)
{
    char text[32];
    (void)snprintf(text, sizeof text, "%llu", (unsigned long long)++incarnation);
    memset(echoes_now, 0, sizeof echoes_now);
    pid_t child = vfork(); /* exec follows at once: NNG's threads are not there in the child */
    if (child == 0) {
        execl(program, program, "peer", address, port, text, (char *)NULL);
        _exit(127);
    }
    ASSERT(child > 0);
    return child;
}

static uint64_t numbers;

static void send_some(void)
{
    for (int i = 0; i < 20; i++) {
        uint64_t number = ++numbers;
        (void)parent.net.send(parent.net.ctx, PEER, (enum net_lane)(i % 2), bytes_of(&number, 8));
    }
    run_for(ends, 1, 1);
}

/* One life of the peer. Returns how long it took to hear of it. */
static uint64_t one_round(const char *program, const char *port, struct prng *prng)
{
    pid_t child = start_peer(program, parent.address, port);
    uint64_t started = now_in_ms();
    uint64_t heard_after = 0;
    while (echoes_now[NET_CONTROL] < ROUND_FRAMES || echoes_now[NET_DATA] < ROUND_FRAMES) {
        send_some();
        if (echoes_now[NET_CONTROL] > 0 && heard_after == 0) heard_after = now_in_ms() - started;
        ASSERT(now_in_ms() - started < RESUME_MS);
        ASSERT(waitpid(child, NULL, WNOHANG) == 0);
    }
    for (uint64_t until = now_in_ms() + prng_below(prng, 30); now_in_ms() < until;) {
        send_some();
    }
    kill(child, SIGKILL);
    ASSERT(waitpid(child, NULL, 0) == child);
    for (uint64_t until = now_in_ms() + prng_below(prng, 60); now_in_ms() < until;) {
        send_some();
    }
    return heard_after;
}

int main(int argc, char **argv)
{
    if (argc == 5 && strcmp(argv[1], "peer") == 0) return run_peer(argv);
    int rounds = argc > 1 ? (int)strtol(argv[1], NULL, 10) : 30;
    struct net_identity self = identity_of('c', PARENT, 1);
    end_open(&parent, &self, secret);
    parent.on_frame = take_echo;
    /* a port for the peer that nobody else will take: it is ours for a moment */
    struct end probe = {0};
    end_open(&probe, &self, NULL);
    char address[64];
    (void)snprintf(address, sizeof address, "%s", probe.address);
    end_close(&probe);
    ASSERT(parent.net.set_peer(parent.net.ctx, PEER, address) == OK);
    struct prng prng;
    prng_init(&prng, 7);
    uint64_t slowest = 0;
    for (int i = 0; i < rounds; i++) {
        uint64_t heard_after = one_round(argv[0], strrchr(address, ':') + 1, &prng);
        if (heard_after > slowest) slowest = heard_after;
    }
    run_for(ends, 1, 1000);
    ASSERT(parent.events[NET_PEER_UP] >= (uint64_t)rounds);
    ASSERT(parent.events[NET_PEER_DOWN] >= (uint64_t)rounds);
    printf("%d lives, %llu numbers sent, %llu came back, resumed after %llu ms at most\n", rounds,
        (unsigned long long)numbers, (unsigned long long)echoes_all, (unsigned long long)slowest);
    end_close(&parent);
    return 0;
}
