#ifndef SERVER_HTTP_KEY_H
#define SERVER_HTTP_KEY_H

#include "server/forward_wire.h"
#include "server/server.h"

/* One request to one key over HTTP, evaluated: the same for clients of this node and of others. */

/* Texts of the answer are constants or borrow until the turn ends. `range`: the key's, or 0 while the node is
 * alone. False: no room for the write now; ask again. */
bool http_key_evaluate(struct server *server, uint16_t range, const struct forward_key *request,
    struct forward_answer *answer_out, ticket_t *ticket_out);

#endif
