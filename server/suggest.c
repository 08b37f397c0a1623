#include "server/suggest.h"

#include <stdint.h>
#include <string.h>

/* The distance is that of Damerau and Levenshtein with adjacent swaps (optimal string alignment): one
 * letter wrong, left out, added or swapped counts 1. */

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static size_t distance(const char *a, const char *b)
{
    size_t a_size = strlen(a), b_size = strlen(b);
    size_t rows[3][SUGGEST_WORD_MAX + 1];
    for (size_t j = 0; j <= b_size; j++)
        rows[0][j] = j;
    for (size_t i = 1; i <= a_size; i++) {
        size_t *row = rows[i % 3];
        const size_t *above = rows[(i + 2) % 3];
        const size_t *above_that = rows[(i + 1) % 3];
        row[0] = i;
        for (size_t j = 1; j <= b_size; j++) {
            size_t changed = above[j - 1] + (a[i - 1] != b[j - 1]);
            row[j] = least(changed, least(above[j], row[j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                row[j] = least(row[j], above_that[j - 2] + 1);
        }
    }
    return rows[a_size % 3][b_size];
}

void suggest_begin(struct suggest *suggest, const char *word)
{
    suggest->best = NULL;
    suggest->distance = SIZE_MAX;
    size_t size = strlen(word);
    /* longer than any name of ours: nothing can be close */
    if (size > SUGGEST_WORD_MAX) size = 0;
    memcpy(suggest->word, word, size);
    suggest->word[size] = '\0';
}

void suggest_offer(struct suggest *suggest, const char *name)
{
    if (suggest->word[0] == '\0' || strlen(name) > SUGGEST_WORD_MAX) return;
    size_t found = distance(suggest->word, name);
    if (found < suggest->distance) {
        suggest->distance = found;
        suggest->best = name;
    }
}

const char *suggest_best(const struct suggest *suggest)
{
    if (suggest->best == NULL) return NULL;
    /* a third of the letters may be wrong, and at least one and at most three */
    size_t allowed = strlen(suggest->word) / 3;
    if (allowed < 1) allowed = 1;
    if (allowed > 3) allowed = 3;
    return suggest->distance <= allowed ? suggest->best : NULL;
}
