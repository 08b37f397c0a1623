#ifndef SERVER_SUGGEST_H
#define SERVER_SUGGEST_H

#include <stdbool.h>
#include <stddef.h>

/* "Did you mean": finds, among names offered one by one, the one a mistyped word is closest to. */

enum { SUGGEST_WORD_MAX = 40 };

struct suggest {
    char word[SUGGEST_WORD_MAX + 1];
    const char *best; /* borrowed from suggest_offer() */
    size_t distance;
};

void suggest_begin(struct suggest *suggest, const char *word);
void suggest_offer(struct suggest *suggest, const char *name);
/* The closest name offered, or NULL if none is close enough to be what was meant. */
const char *suggest_best(const struct suggest *suggest);

#endif
