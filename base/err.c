#include "base/err.h"

#include <errno.h>

const char *err_text(enum err code)
{
    switch (code) {
    case OK:
        return "done";
#define ERR_TEXT(name, number, text)                                                               \
    case name:                                                                                     \
        return text;
        ERR_MAP(ERR_TEXT)
    }
    return "unknown error";
}

const char *err_name(enum err code)
{
    switch (code) {
    case OK:
        return "OK";
#define ERR_NAME(name, number, text)                                                               \
    case name:                                                                                     \
        return #name;
        ERR_MAP(ERR_NAME)
    }
    return "ERR_UNKNOWN";
}

enum err err_from_errno(int number)
{
    switch (number) {
    case 0:
        return OK;
    case ENOMEM:
        return ERR_NOMEM;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return ERR_FULL;
    case ENOENT:
        return ERR_NOT_FOUND;
    case EEXIST:
        return ERR_EXISTS;
    case EACCES:
    case EPERM:
    case EROFS:
        return ERR_PERMISSION;
    case EAGAIN:
    case EINTR:
        return ERR_AGAIN;
    case EBUSY:
        return ERR_BUSY;
    case EINVAL:
        return ERR_INVALID;
    case ENOSYS:
    case EOPNOTSUPP:
        return ERR_UNSUPPORTED;
    default:
        return ERR_IO;
    }
}
