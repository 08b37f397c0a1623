#ifndef CLUSTER_NET_NNG_H
#define CLUSTER_NET_NNG_H

#include "base/io.h"

/* The network between nodes, over NNG and TCP: the `struct net` of base/io.h. One listener takes all lanes of all
 * peers; each lane to a peer is a connection of its own. NNG's threads pack, seal, open and queue; everything else,
 * all calls below included, belongs to the owner's thread.
 *
 * With a secret every packet is sealed (XChaCha20-Poly1305); what does not open is dropped without a word. Without
 * one, packets carry a checksum and everybody who reaches the port is believed.
 *
 * Which processes are believed is the matter of cluster/net_gate.h; docs/formats/wire.md describes the packets. */

struct net_nng_config {
    const char *listen; /* "host:port"; port 0: any that is free */
    struct bytes
        secret; /* content of the secret file; empty: none. Borrowed until net_nng_open() returns */
};

struct net_nng_counters {
    uint64_t frames_sent, packets_sent, bytes_sent;
    uint64_t frames_received, packets_received, bytes_received; /* delivered */
    uint64_t full; /* send() said ERR_AGAIN */
    uint64_t stalls; /* connections closed because they took nothing for a second */
    uint64_t redials; /* dialers made anew */
    uint64_t refused_cluster; /* hellos we refused */
    uint64_t refused_clone;
    uint64_t was_refused; /* refusals we got */
    uint64_t dropped_malformed; /* packets: no envelope, wrong checksum, wrong version */
    uint64_t dropped_unauthentic; /* not sealed with our secret, or sealed and we have none */
    uint64_t dropped_stale; /* for another process of ours: recorded, or late */
    uint64_t dropped_stranger; /* before a hello, of a replaced process, for another number */
    uint64_t dropped_duplicate;
    uint64_t dropped_unsent; /* given to NNG and given back */
    uint64_t dropped_connections; /* beyond the limit of connections to us */
};

/* Listens. ERR_BUSY: the address is in use; ERR_INVALID: no address of ours; ERR_UNSUPPORTED: the crypto library does
 * not work. `detail` gets a sentence. Nothing is received before net->start(). */
enum err net_nng_open(const struct net_nng_config *config, struct net *net_out, char *detail,
    size_t detail_size) MUST_CHECK;
/* Ends all connections; not from within a callback. What is queued is lost. */
void net_nng_close(struct net *net);
/* "host:port" where it listens, with the port that was taken. */
const char *net_nng_address(const struct net *net);
/* Counts since open; from any thread. */
void net_nng_counters(const struct net *net, struct net_nng_counters *out);

#endif
