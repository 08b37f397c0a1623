#ifndef SERVER_PEER_H
#define SERVER_PEER_H

#include "server/server.h"
#include "storage/folder.h"

/* The way to the other nodes: the network, and how a new folder becomes a member's. Failures are told to the operator
 * in one sentence; what is returned is the process's exit code, 0 to go on. */

/* Checks --peer and the secret, and listens; fills in server->io.net and peer_text. */
int peer_open(struct server *server);
void peer_close(struct server *server);
/* What is known of the other nodes before the member table has come; borrows until peer_close(). */
void peer_known(struct server *server, struct node_config *config);
/* Settles which member this folder belongs to: asks to join where that is wanted, or starts a cluster of one, and
 * writes it down. Nothing happens for a folder that has a number. */
int peer_settle(struct server *server, struct folder *folder);

/* server/server.c: one sentence on standard error. */
void server_complain(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The text is "host:port" or "[v6]:port". True: only this machine reaches it. Exit code after complaining. */
int server_check_address(
    const char *flag, const char *text, bool *loopback_out, bool *wildcard_out);

#endif
