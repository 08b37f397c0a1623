#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "base/err.h"

static const enum err all[] = {
#define LISTED(name, number, text) name,
    ERR_MAP(LISTED)};
enum { COUNT = sizeof all / sizeof *all };

Test(err, every_code_has_its_own_number_name_and_text)
{
    for (size_t i = 0; i < COUNT; i++) {
        cr_assert_lt((int)all[i], 0);
        cr_assert_eq(strncmp(err_name(all[i]), "ERR_", 4), 0);
        cr_assert_gt(strlen(err_text(all[i])), 3);
        for (size_t k = 0; k < i; k++) {
            cr_assert_neq(all[i], all[k]);
            cr_assert_str_neq(err_text(all[i]), err_text(all[k]));
        }
    }
}

/* They are stored and sent: a change of these is a break of the formats. */
Test(err, numbers_do_not_change)
{
    cr_assert_eq(OK, 0);
    cr_assert_eq(ERR_NOMEM, -1);
    cr_assert_eq(ERR_CORRUPT, -3);
    cr_assert_eq(ERR_NOT_FOUND, -5);
    cr_assert_eq(ERR_POISONED, -14);
    cr_assert_eq(ERR_GAP, -17);
}

Test(err, unknown_codes_have_a_text_too)
{
    cr_assert_str_eq(err_text((enum err) - 1000), "unknown error");
    cr_assert_str_eq(err_name((enum err) - 1000), "ERR_UNKNOWN");
    cr_assert_str_eq(err_name(OK), "OK");
}

Test(err, errno_values_map_to_the_closest_code)
{
    cr_assert_eq(err_from_errno(0), OK);
    cr_assert_eq(err_from_errno(ENOSPC), ERR_FULL);
    cr_assert_eq(err_from_errno(EDQUOT), ERR_FULL);
    cr_assert_eq(err_from_errno(ENOENT), ERR_NOT_FOUND);
    cr_assert_eq(err_from_errno(EACCES), ERR_PERMISSION);
    cr_assert_eq(err_from_errno(ENOMEM), ERR_NOMEM);
    cr_assert_eq(err_from_errno(EIO), ERR_IO);
    cr_assert_eq(err_from_errno(EXDEV), ERR_IO, "what is not listed");
}

static enum err tried(enum err err, int *reached)
{
    TRY(err);
    *reached = 1;
    return ERR_EXISTS;
}

Test(err, try_returns_early_only_on_errors)
{
    int reached = 0;
    cr_assert_eq(tried(ERR_IO, &reached), ERR_IO);
    cr_assert_eq(reached, 0);
    cr_assert_eq(tried(OK, &reached), ERR_EXISTS);
    cr_assert_eq(reached, 1);
}
