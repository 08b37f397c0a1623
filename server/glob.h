#ifndef SERVER_GLOB_H
#define SERVER_GLOB_H

#include "base/bytes.h"

/* Redis's glob patterns, as KEYS, SCAN MATCH and CONFIG GET take them:
 *   *  any bytes, ?  one byte, [abc] [a-z] [^abc]  one of a class, \x  x itself.
 * Quirks kept: a class that is not closed ends with the pattern, a range may be written backwards, "[]"
 * matches nothing, "[^]" any byte, a backslash at the very end is itself.
 *
 * Work is bounded: at most GLOB_STEPS_MAX comparisons, after which the answer is false. */
enum { GLOB_STEPS_MAX = 1 << 18 };

/* fold_case: ASCII letters compare equal whatever their case. */
bool glob_match(struct bytes pattern, struct bytes text, bool fold_case);

#endif
