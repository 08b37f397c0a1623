#ifndef BASE_ERR_H
#define BASE_ERR_H

/* The one list of errors: what the world may say to us. A bug is not in it: bugs ASSERT.
 * Numbers are append-only, because they are stored and sent. */

#define ERR_MAP(X)                                                                                 \
    X(ERR_NOMEM, -1, "out of memory")                                                              \
    X(ERR_IO, -2, "the operating system reported an input/output error")                           \
    X(ERR_CORRUPT, -3, "stored data fails its checksum")                                           \
    X(ERR_FULL, -4, "no space left on the device")                                                 \
    X(ERR_NOT_FOUND, -5, "not found")                                                              \
    X(ERR_EXISTS, -6, "exists already")                                                            \
    X(ERR_TOO_LARGE, -7, "larger than the limit")                                                  \
    X(ERR_INVALID, -8, "invalid argument")                                                         \
    X(ERR_BUSY, -9, "in use by another process")                                                   \
    X(ERR_MISMATCH, -10, "belongs to another store or a newer version")                            \
    X(ERR_PERMISSION, -11, "permission denied")                                                    \
    X(ERR_CLOSED, -12, "closed")                                                                   \
    X(ERR_UNSUPPORTED, -13, "not supported here")                                                  \
    X(ERR_POISONED, -14, "the log failed; durability is lost")                                     \
    X(ERR_AGAIN, -15, "not now; try again")                                                        \
    X(ERR_TRUNCATED, -16, "ends too early")                                                        \
    X(ERR_GAP, -17, "a part of the log is missing")

#define ERR_ENUM(name, number, text) name = number,

enum err { OK = 0, ERR_MAP(ERR_ENUM) };

/* Put on every function whose error must not be dropped. A deliberate drop is (void)!call(), with
 * the reason beside it. */
#define MUST_CHECK __attribute__((warn_unused_result))

/* Returns the sentence for code; never NULL. */
const char *err_text(enum err code);
/* Returns the symbolic name, e.g. "ERR_FULL"; never NULL. */
const char *err_name(enum err code);
/* Maps a positive errno value to the closest code (ENOSPC, EDQUOT, EFBIG: ERR_FULL, ...; else ERR_IO). */
enum err err_from_errno(int number);

/* Early return where nothing is held. */
#define TRY(call)                                                                                  \
    do {                                                                                           \
        enum err try_err_ = (call);                                                                \
        if (try_err_ != OK) return try_err_;                                                       \
    } while (0)

#endif
