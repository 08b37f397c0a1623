#ifndef SIM_SIM_CLIENT_H
#define SIM_SIM_CLIENT_H

#include "cluster/node/node.h"
#include "sim/model.h"
#include "sim/sim.h"

/* Clients and checks of the single-node simulation: random transactions on the node and on the model
 * at once, and comparisons of the two. All findings go to `detail`; the first one counts. */

struct sim_client {
    struct model model;
    struct prng prng;
    struct sim_counts *counts;
    uint16_t buckets[MODEL_BUCKETS];
    bool use_expiry, use_clear;
    bool damage_expected; /* stored bytes were damaged on purpose: ERR_CORRUPT is an answer */
    uint64_t proposed; /* number of the newest transaction */
    uint64_t hash; /* of everything that happened */
    bool violated;
    char *detail;
    size_t detail_size;
};

/* One random transaction; it may be refused (full, throttled). */
void sim_client_write(struct sim_client *client, struct node *node);
/* Some random reads, committed and pending. */
void sim_client_read(struct sim_client *client, struct node *node);
/* Compares everything: each key, walks, pages, counts. Only when nothing is pending. */
void sim_client_check_all(struct sim_client *client, struct node *node);
/* True if every key is what the model's committed state says; finds nothing wrong. */
bool sim_client_agrees(struct sim_client *client, struct node *node);
/* Makes the buckets the clients use. */
void sim_client_begin(struct sim_client *client, struct node *node);
void sim_violation(struct sim_client *client, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void sim_trace(struct sim_client *client, uint64_t event, uint64_t detail);

#endif
