#ifndef WEB_ASSETS_H
#define WEB_ASSETS_H

#include <stdbool.h>

#include "base/bytes.h"

/* The dashboard's files, in the program's read-only data. */
struct web_asset {
    const char *type; /* Content-Type */
    struct bytes content;
    uint64_t version; /* made of the content, never 0: the entity tag */
};

/* False: there is no such path. */
bool web_asset_find(struct bytes path, struct web_asset *asset_out);

#endif
