#ifndef BASE_CHECK_H
#define BASE_CHECK_H

/* Assertions that stay on in every build: a broken invariant stops the process before it can
 * acknowledge or write anything more. Never used on bytes from a client, a peer or the disk. */

#define ASSERT(condition)                                                                          \
    ((__builtin_expect(!!(condition), 1)) ? (void)0 : check_failed(#condition, __FILE__, __LINE__))

/* implication: whenever a holds, b must hold */
#define ASSERT_IF(a, b) ASSERT(!(a) || (b))

/* A place the control flow cannot reach. */
#define UNREACHABLE() check_failed("unreachable", __FILE__, __LINE__)

/* Prints the condition and its place to stderr and aborts. */
_Noreturn void check_failed(const char *condition, const char *file, int line);

/* A planted bug: the bank of planted bugs (docs/TESTING.md) proves that the tests can fail. They
 * exist only in a build with DURAMEN_BUG_BANK, where the environment variable DURAMEN_BUG chooses
 * one; in every other build this is the constant 0. */
#ifdef DURAMEN_BUG_BANK
int check_planted_bug(void);
#define PLANTED_BUG(number) (check_planted_bug() == (number))
#else
#define PLANTED_BUG(number) (0 == (number))
#endif

#endif
