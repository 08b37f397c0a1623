#ifndef SERVER_RENEW_H
#define SERVER_RENEW_H

#include "server/server.h"
#include "storage/folder.h"

/* A member whose data is damaged comes back by itself: its peers have everything. It must not go on
 * under its number, since it may have promised what it no longer knows; so it asks the cluster for
 * a new number under its old name, sets the damaged files aside and starts empty (docs/decisions,
 * self-replacement).
 *
 * For that it must find the others when its own copy of the member table cannot be read: a small
 * text file `peers` in the folder says where they were. */

/* Rewrites the file if the members have changed; cheap to call often. */
void renew_note_peers(struct server *server, const struct folder *folder);
/* What the file says; returns how many. */
uint32_t renew_known_peers(const struct folder *folder, struct join_peer *out, uint32_t max);
/* Before and after the store is opened. A start that dies in between, as LMDB does on some damaged
 * pages, leaves its mark; true: the last two did. */
bool renew_open_begins(const struct folder *folder);
void renew_open_done(const struct folder *folder);
/* A repair of this very member was begun and cut off: what is in the folder must not be used. */
bool renew_unfinished(const struct folder *folder);
/* There are peers to be rebuilt from. */
bool renew_possible(const struct server *server, const struct folder *folder);
/* The folder cannot be opened (`why`). True: it is an empty folder of a new member now; start
 * again. False: the caller tells the operator; nothing was changed. */
bool renew_folder(struct server *server, struct folder *folder, const char *why);

#endif
