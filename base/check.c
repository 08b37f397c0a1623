#include "base/check.h"

#include <stdio.h>
#include <stdlib.h>

_Noreturn void check_failed(const char *condition, const char *file, int line)
{
    fprintf(stderr, "duramen: bug: assertion failed: %s (%s:%d)\n", condition, file, line);
    fflush(stderr);
    abort();
}

#ifdef DURAMEN_BUG_BANK
static int planted_bug;

__attribute__((constructor)) static void choose_planted_bug(void)
{
    const char *chosen = getenv("DURAMEN_BUG");
    planted_bug = chosen == NULL ? 0 : (int)strtol(chosen, NULL, 10);
}

int check_planted_bug(void)
{
    return planted_bug;
}
#endif
