#include "sim/model.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"

struct bytes model_key(uint8_t key, uint8_t *at)
{
    int size = snprintf((char *)at, 64, "key:%08u", (unsigned)key * 7919u);
    ASSERT(size > 0);
    size_t total = (size_t)size;
    /* every fifth key is long, every ninth full-length */
    size_t wanted = key % 9 == 0 ? 400 : key % 5 == 0 ? 120 : total;
    for (; total < wanted; total++)
        at[total] = (uint8_t)('a' + (total * 31 + key) % 26);
    return bytes_of(at, total);
}

void model_fill(uint64_t token, uint8_t *at, uint32_t size)
{
    struct prng prng;
    prng_init(&prng, token);
    for (uint32_t i = 0; i < size; i++)
        at[i] = (uint8_t)(i % 8 == 0 ? prng_next(&prng) : at[i - 1] * 5u + i);
}

bool model_matches(const struct model_value *value, struct bytes bytes)
{
    if (bytes.size != value->size) return false;
    uint8_t *expected = malloc(value->size + 1);
    ASSERT(expected != NULL);
    model_fill(value->token, expected, value->size);
    bool same = value->size == 0 || memcmp(expected, bytes.at, value->size) == 0;
    free(expected);
    return same;
}

static void apply(
    struct model_value (*keys)[MODEL_KEYS], const struct model_transaction *transaction)
{
    for (uint32_t i = 0; i < transaction->count; i++) {
        const struct model_effect *effect = &transaction->effects[i];
        switch (effect->kind) {
        case MODEL_PUT:
            keys[effect->bucket][effect->key] = effect->value;
            keys[effect->bucket][effect->key].present = true;
            keys[effect->bucket][effect->key].version = transaction->ticket;
            break;
        case MODEL_DELETE:
            keys[effect->bucket][effect->key] = (struct model_value){0};
            break;
        case MODEL_CLEAR:
            memset(keys[effect->bucket], 0, sizeof keys[effect->bucket]);
            break;
        }
    }
}

void model_propose(struct model *model, const struct model_transaction *transaction)
{
    struct model_transaction *copy = malloc(sizeof *copy);
    ASSERT(copy != NULL);
    *copy = *transaction;
    copy->next = NULL;
    if (model->last == NULL) {
        model->first = copy;
    } else {
        ASSERT(model->last->ticket < copy->ticket);
        model->last->next = copy;
    }
    model->last = copy;
    apply(model->pending, copy);
}

static void drop_first(struct model *model)
{
    struct model_transaction *first = model->first;
    model->first = first->next;
    if (model->first == NULL) model->last = NULL;
    free(first);
}

void model_commit(struct model *model, uint64_t ticket)
{
    while (model->first != NULL && model->first->ticket <= ticket) {
        apply(model->committed, model->first);
        drop_first(model);
    }
    if (ticket > model->acknowledged) model->acknowledged = ticket;
}

void model_recover(struct model *model, uint64_t ticket)
{
    model_commit(model, ticket);
    while (model->first != NULL)
        drop_first(model);
    memcpy(model->pending, model->committed, sizeof model->pending);
}

void model_deinit(struct model *model)
{
    while (model->first != NULL)
        drop_first(model);
}
