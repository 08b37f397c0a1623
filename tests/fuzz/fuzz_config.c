#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"
#include "server/config.h"

/* The configuration file as a pure function over a memory buffer: whatever the bytes are, it is read or refused with a
 * sentence, and what was read is a legal setting. */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void count_complaint(void *ctx, const char *sentence)
{
    unsigned *complaints = ctx;
    ASSERT(sentence[0] != '\0');
    (*complaints)++;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct config *config = malloc(sizeof *config);
    if (config == NULL || config_init(config) != OK) return 0;
    unsigned complaints = 0;
    enum err err =
        config_read(config, "fuzz.conf", bytes_of(data, size), count_complaint, &complaints);
    ASSERT(err == OK || err == ERR_INVALID);
    ASSERT((err == OK) == (complaints == 0));
    /* every text that was taken is one the same check takes again, unchanged */
    for (int i = 0; i < CONFIG_SETTINGS; i++) {
        const struct config_value *value = &config->values[i];
        if (value->text == NULL) continue;
        char *copy = strdup(value->text);
        if (copy == NULL) break;
        enum err again =
            config_set(config, i, CONFIG_FLAG, "--again", copy, count_complaint, &complaints);
        ASSERT(again == OK && strcmp(value->text, copy) == 0);
        free(copy);
    }
    config_deinit(config);
    free(config);
    return 0;
}
