#ifndef TESTS_SERVER_FAKE_NODE_H
#define TESTS_SERVER_FAKE_NODE_H

#include "cluster/node/node.h"

/* A node as the server sees it, in the hands of a test: who leads what, when tickets are done, what becomes of a
 * request. Keys and values are in a short list; what is put is there at once, also for the committed view. Linked
 * instead of cluster/node. */

enum { FAKE_RANGES = 4, FAKE_KEYS = 4096, FAKE_TICKETS = 4096, FAKE_REQUESTS = 64 };

struct fake_key {
    bool used;
    uint16_t range, bucket;
    uint8_t key[64];
    size_t key_size;
    uint8_t *value;
    size_t value_size;
    int64_t expires_ms;
    uint64_t version;
};

struct fake_bytes {
    struct fake_bytes *next;
    uint8_t at[];
};

struct node {
    bool alone;
    bool serves[FAKE_RANGES + 1], has[FAKE_RANGES + 1];
    uint64_t terms[FAKE_RANGES + 1];
    bool hold_tickets; /* new ones wait until the test decides */
    enum ticket_state tickets[FAKE_TICKETS];
    ticket_t next_ticket;
    uint32_t writes; /* commits with effects */
    uint32_t read_tickets; /* asked for */
    enum err admits;
    uint64_t version;
    struct fake_key keys[FAKE_KEYS];
    struct fake_key *before; /* of the open transaction */
    bool wrote;
    struct fake_bytes *bytes; /* of all values there ever were */
    struct node_request *requests[FAKE_REQUESTS]; /* oldest first */
    uint32_t request_count, started;
    char bucket[65]; /* the one named bucket, id 16; "" until made */
};

struct node *fake_node_new(void);
void fake_node_free(struct node *node);

#endif
