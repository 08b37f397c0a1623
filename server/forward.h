#ifndef SERVER_FORWARD_H
#define SERVER_FORWARD_H

#include "server/command.h"
#include "server/forward_wire.h"

/* Commands whose range another node leads.
 *
 * Asking: the session is blocked, the request goes to whoever leads the range (node_request_start()), and its reply is
 * appended when it comes. Nothing is ever sent again from here: a request whose outcome is not known is told so.
 *
 * Answering: forward_execute() evaluates a request on a call of its own, by the same code as the commands of
 * this node's clients. */

/* Each blocks call->session and answers it later; call->range says where. */
void forward_command(struct call *call);
void forward_exec(struct call *call);
void forward_watch(struct call *call);
/* Memory of what the session has others do. */
size_t forward_bytes(const struct session *session);
/* The session closes: nobody waits for the reply any more. Frees what it had. */
void forward_cancel(struct session *session);

/* As node_config.execute; ctx is the server. */
bool forward_execute(void *ctx, struct node_execution *execution);
void forward_close(struct server *server);

/* The end of whatever blocked a session (server/scatter.c too): its reply was appended at `before`. */
void forward_finish(struct session *session, size_t before);
/* Replies the error of an outcome that is not NODE_REPLIED, or of a request that could not be started. */
void forward_outcome_error(struct buffer *out, enum node_outcome outcome, bool writes);
void forward_start_error(struct buffer *out, enum err err);

#endif
