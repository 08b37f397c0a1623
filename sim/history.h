#ifndef SIM_HISTORY_H
#define SIM_HISTORY_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/bytes.h"
#include "base/err.h"

/* What clients did and saw: a list of operations, each on one key, with the times between which it took
 * effect. Recorded by the simulator and by scripts, judged by sim/linear.h.
 *
 * As text, one operation a line, in any order:
 *
 *     INVOKE RETURN CLIENT OUTCOME KEY KIND [ARGUMENT ...] [= RESULT]
 *
 *     100 110 1 ok      k GET          = v1      a value, or - where there is none
 *     100 110 1 ok      k SET v1
 *     100 110 1 ok      k SETNX v1     = 1       1: was set; 0: there was a value
 *     100 110 1 ok      k CAS v1 v2    = 1       from v1 (- for: no value) to v2; 1: done, 0: it was not v1
 *     100 110 1 ok      k INCR 5       = 7       the new number
 *     100 110 1 ok      k APPEND xy    = 4       the new length
 *     100 110 1 ok      k DEL          = 1       1: there was a value
 *     100 110 1 ok      k GETSET v2    = v1      the value before
 *     100 -   1 unknown k SET v1                 no answer, or one that does not say
 *     100 110 1 failed  k SET v1                 certainly without effect
 *
 * Times and clients are whole numbers; a time is of any unit, but the same clock for all, and at least 1. Keys
 * and values are bytes: all but letters, digits and ._:/+@{}[]~,- are written as %XX; a value of
 * one "-" is %2D and the empty value a lone %. RETURN is - where no answer came. Empty lines and lines that
 * begin with # do not count. */

enum history_kind {
    HISTORY_GET,
    HISTORY_SET,
    HISTORY_SETNX,
    HISTORY_CAS,
    HISTORY_INCR,
    HISTORY_APPEND,
    HISTORY_DEL,
    HISTORY_GETSET,
};
enum { HISTORY_KINDS = HISTORY_GETSET + 1 };

/* OK: took effect once between invoke and return, with that result. FAILED: never took effect. UNKNOWN: took
 * effect once at some time after invoke, or never. */
enum history_outcome { HISTORY_OK, HISTORY_FAILED, HISTORY_UNKNOWN };

/* Number of an interned value; equal values have equal numbers. */
typedef uint32_t history_value;
enum { HISTORY_NONE = 0 /* the key has no value */ };
enum { HISTORY_VALUE_MAX = 1 << 20 };

struct history_op {
    uint32_t client;
    uint32_t key; /* any number; history_key() makes one of a name, do not mix the two */
    enum history_kind kind;
    enum history_outcome outcome;
    history_value argument; /* SET, SETNX, APPEND, GETSET: what is written; CAS: the new value */
    history_value expected; /* CAS: the old value */
    history_value result; /* GET, GETSET */
    int64_t delta; /* INCR */
    int64_t answer; /* SETNX, CAS, DEL: 0 or 1; INCR: new number; APPEND: new length */
    uint64_t invoke; /* at least 1 */
    uint64_t ret; /* at least invoke; not looked at if UNKNOWN */
    uint32_t line; /* of the file it was read from; 0: none */
};

/* Byte strings, each once. */
struct history_strings {
    uint32_t count, capacity;
    struct history_string *all; /* [0] is not used */
    uint32_t slot_count;
    uint32_t *slots;
    size_t bytes; /* of all strings */
};

struct history {
    uint32_t count, capacity;
    struct history_op *ops;
    struct history_strings values, keys;
};

void history_init(struct history *history);
void history_deinit(struct history *history);
/* Forgets the operations and keeps the values. */
void history_clear(struct history *history);

/* The number of a value, the same for the same bytes. HISTORY_NONE if there is no memory. */
history_value history_intern(struct history *history, struct bytes bytes);
/* Valid until the next history_intern. `value` is not HISTORY_NONE. */
struct bytes history_bytes(const struct history *history, history_value value);
/* The number of a key; 0: no memory. */
uint32_t history_key(struct history *history, struct bytes name);
/* Empty for a key that was not made by history_key(). */
struct bytes history_key_name(const struct history *history, uint32_t key);

/* Copies the operation. ERR_INVALID: its times are wrong; ERR_NOMEM. */
enum err history_add(struct history *history, const struct history_op *op) MUST_CHECK;

/* Reads the text form and adds to the history. ERR_INVALID, ERR_IO, ERR_NOMEM; then *line_out is the line,
 * and *why_out a constant sentence. */
enum err history_read(
    struct history *history, FILE *file, uint32_t *line_out, const char **why_out) MUST_CHECK;
/* Writes one operation as a line of the text form. */
void history_write(const struct history *history, const struct history_op *op, FILE *file);

/* What `op` does to a key with value `state`: false if it cannot have the result it had (an UNKNOWN one: if it
 * would be refused). *state_out is the value after. HISTORY_NONE stands for no value. Sets *exhausted and
 * says false if there is no memory for a new value. */
bool history_apply(struct history *history, const struct history_op *op, history_value state,
    history_value *state_out, bool *exhausted);

#endif
