#ifndef TESTS_CLUSTER_NET_WORLD_H
#define TESTS_CLUSTER_NET_WORLD_H

#include <pthread.h>

#include "base/buffer.h"
#include "base/io.h"
#include "cluster/net_nng.h"

/* Real nets over loopback, several in one process, all owned by the test's thread; and a relay that records. */

struct got {
    struct net_peer from;
    enum net_lane lane;
    size_t offset, size; /* in bytes */
};

struct end {
    struct net net;
    struct net_identity self;
    char address[64];
    bool keep; /* the content of frames */
    struct got *got; /* every frame, in order, if keep */
    size_t got_count, got_capacity;
    struct buffer bytes;
    uint64_t frames;
    uint64_t events[16]; /* by enum net_event, of all peers */
    /* what each frame is given to, if not NULL */
    void (*on_frame)(
        struct end *end, const struct net_peer *from, enum net_lane lane, struct bytes frame);
    void *ctx;
};

/* Cluster ids and store ids are made of one letter; letter 0 is a node without a cluster. */
struct net_identity identity_of(char cluster, uint16_t node, uint64_t incarnation);
/* Opens on a free port of loopback and starts. `secret` may be NULL. */
void end_open(struct end *end, const struct net_identity *self, const char *secret);
/* The same on a port of loopback that may still be taken for a moment. */
void end_open_at(
    struct end *end, const struct net_identity *self, const char *secret, const char *port);
void end_close(struct end *end);
/* Polls all ends until `done` holds; false after `ms`. */
bool wait_for(struct end *ends[], size_t count, bool (*done)(void *ctx), void *ctx, int ms);
/* The same for a while, whatever happens. */
void run_for(struct end *ends[], size_t count, int ms);
/* Sends, polling on while the queue is full. */
void send_patiently(struct end *ends[], size_t count, struct end *from, uint16_t to,
    enum net_lane lane, struct bytes frame);
struct net_nng_counters counters_of(const struct end *end);
uint64_t now_in_ms(void);

/* Passes connections on to `target` and keeps what the clients send, connection by connection. */
struct relay {
    char address[64];
    char target[64];
    int listener;
    pthread_t thread;
    pthread_mutex_t lock;
    struct buffer recorded[64];
    size_t connections;
    struct relay_pair *pairs;
    bool stopping;
};

void relay_open(struct relay *relay, const char *target);
void relay_close(struct relay *relay);
/* A TCP connection to "127.0.0.1:port". */
int connect_to(const char *address);
/* Writes all, as far as the other side takes it; reads what comes within `ms` and throws it away. */
void write_all(int fd, const void *at, size_t size);
void drain_for(int fd, int ms);

#endif
