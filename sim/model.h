#ifndef SIM_MODEL_H
#define SIM_MODEL_H

#include <stdbool.h>

#include <stdint.h>

#include "base/bytes.h"
#include "base/prng.h"

/* What the node must say: a plain array of keys, and the transactions that are not committed yet. */

enum { MODEL_BUCKETS = 3, MODEL_KEYS = 48, MODEL_EFFECTS_MAX = 12 };

struct model_value {
    bool present;
    uint32_t size;
    uint64_t token; /* the value's bytes are made from it */
    int64_t expires_ms; /* 0: never */
    uint64_t version;
};

enum model_kind { MODEL_PUT, MODEL_DELETE, MODEL_CLEAR };

struct model_effect {
    enum model_kind kind;
    uint8_t bucket;
    uint8_t key;
    struct model_value value;
};

struct model_transaction {
    uint64_t ticket; /* our own number, over all starts of the node */
    uint64_t node_ticket; /* the node's, of this start */
    uint32_t count;
    struct model_effect effects[MODEL_EFFECTS_MAX];
    struct model_transaction *next;
};

struct model {
    struct model_value committed[MODEL_BUCKETS][MODEL_KEYS];
    struct model_value pending[MODEL_BUCKETS][MODEL_KEYS]; /* committed and all transactions */
    struct model_transaction *first, *last;
    uint64_t acknowledged; /* highest ticket that was reported committed */
};

void model_deinit(struct model *model);
/* The bytes of key number `key`; some are short, some nearly as long as the limit. `at` has room for 400. */
struct bytes model_key(uint8_t key, uint8_t *at);
/* Fills `size` bytes that belong to `token`. */
void model_fill(uint64_t token, uint8_t *at, uint32_t size);
bool model_matches(const struct model_value *value, struct bytes bytes);

/* Takes over a proposed transaction (copied). */
void model_propose(struct model *model, const struct model_transaction *transaction);
/* Transactions up to `ticket` are acknowledged. */
void model_commit(struct model *model, uint64_t ticket);
/* After a crash: the log ended at `ticket`; what was proposed after it never happened. */
void model_recover(struct model *model, uint64_t ticket);

#endif
