#ifndef BASE_IO_H
#define BASE_IO_H

#include <stdbool.h>

#include "base/bytes.h"
#include "base/err.h"

/* The world, passed in. Everything below the server that needs time or the disk gets it through
 * these tables; the simulator passes its own. */

struct clock {
    void *ctx;
    /* Nanoseconds that never go back; for durations and time-outs. */
    uint64_t (*monotonic_ns)(void *ctx);
    /* Milliseconds since 1970; may jump. Only for expiry, and only on the node that proposes. */
    int64_t (*wall_ms)(void *ctx);
};

/* The system's clocks. */
struct clock clock_real(void);

enum { DISK_BLOCK = 4096 };

/* A file of the data folder, as the disk knows it. */
typedef int disk_file;

/* One durable write in flight: done when every byte is on stable storage. Embedded by its owner,
 * who leaves it and its memory alone until done() ran. done() runs exactly once, from poll(),
 * never inside submit(). */
struct disk_op {
    disk_file file;
    uint64_t offset;      /* multiple of DISK_BLOCK */
    const uint8_t *at;    /* aligned to DISK_BLOCK */
    size_t size;          /* multiple of DISK_BLOCK */
    uint32_t delay_us;    /* wait this long before the write starts (back-pressure); usually 0 */
    void (*done)(struct disk_op *op, enum err result);
    void *ctx;            /* the owner's */
    uint64_t submitted_ns; /* set by submit() */
    struct disk_op *next; /* the disk's, while in flight */
};

enum disk_open_flags {
    DISK_CREATE = 1,    /* create if absent */
    DISK_EXCLUSIVE = 2, /* with DISK_CREATE: ERR_EXISTS if present */
    DISK_DIRECT = 4,    /* bypass the page cache where the file system can; all transfers aligned */
    DISK_READ_ONLY = 8,
};

/* A folder of files. Names have no slash. All calls but submit(), poll() and write_durable()
 * block, and may be made from any thread; those three belong to the one thread that owns the log. */
struct disk {
    void *ctx;
    const char *name; /* "uring" or "posix" or "sim": what /status shows */

    enum err (*open)(void *ctx, const char *name, int flags, disk_file *file_out);
    void (*close)(void *ctx, disk_file file);
    enum err (*size)(void *ctx, disk_file file, uint64_t *size_out);
    /* Reads exactly `size` bytes; ERR_TRUNCATED past the end, ERR_IO if the device cannot. */
    enum err (*read)(void *ctx, disk_file file, uint64_t offset, void *at, size_t size);
    /* Writes all of it, not yet durable. */
    enum err (*write)(void *ctx, disk_file file, uint64_t offset, const void *at, size_t size);
    /* Makes content and size durable. After an error the content is unknown: never retried. */
    enum err (*sync)(void *ctx, disk_file file);
    /* Makes creations, renames and removals in the folder durable. */
    enum err (*sync_folder)(void *ctx);
    /* Writes zeros over [0, size) so that later overwrites touch no metadata, and syncs. Slow. */
    enum err (*fill)(void *ctx, disk_file file, uint64_t size);
    enum err (*rename)(void *ctx, const char *from, const char *to);
    enum err (*remove)(void *ctx, const char *name);
    /* Calls each() with every name, in no order. */
    enum err (*list)(void *ctx, void (*each)(void *each_ctx, const char *name), void *each_ctx);
    /* Bytes free for us. */
    enum err (*space)(void *ctx, uint64_t *free_out);

    /* Starts a durable write. Any number may be in flight. */
    void (*submit)(void *ctx, struct disk_op *op);
    /* Runs done() of every finished op; returns how many. Never blocks. */
    int (*poll)(void *ctx);
    /* The same durable write, in the caller's thread: for when nothing else could run meanwhile. */
    enum err (*write_durable)(
        void *ctx, disk_file file, uint64_t offset, const void *at, size_t size);
    /* Sets what is called, from any thread, when poll() has something to do. */
    void (*set_wake)(void *ctx, void (*wake)(void *wake_ctx), void *wake_ctx);
};

/* Messages between nodes. A lane to a peer is one-way and keeps order; a frame either arrives whole and
 * once, or not at all: "sent" never means delivered. Lanes have own connections and queues, so that bulk
 * data never delays a vote. */
enum net_lane { NET_CONTROL, NET_DATA, NET_BULK, NET_LANES };

enum {
    NET_FRAME_MAX = 1 << 20,
    NET_BY_ADDRESS = 0xff00, /* from here on numbers name addresses, not nodes */
};

/* Where a frame came from; the transport has checked that it belongs to this cluster, is not a replay, and (with a
 * secret) that a holder of the secret made it. It has not checked that the number is a member's, nor its store id. */
struct net_peer {
    uint16_t node; /* the sender's number; 0: it has none yet (it asks to join); its frames say where it listens */
    uint64_t boot; /* random, of the sender's process */
    uint64_t incarnation; /* counts the starts of the sender's folder */
    uint8_t store_id[16];
};

enum net_event {
    NET_PEER_UP, /* a connection to the peer's process stands */
    NET_PEER_DOWN, /* broke: its process has probably died */
    NET_PEER_STALLED, /* takes nothing for a second; it will be up again when it does */
    /* The peer does not talk to us, and says so about twice a second: */
    NET_REFUSED_CLUSTER, /* it belongs to another cluster */
    NET_REFUSED_CLONE, /* another process speaks for our number: of a later start of our folder, or of a copy of it */
};

struct net_identity {
    uint8_t cluster_id[16]; /* zeros if node is 0, and only then */
    uint16_t node; /* 0: none yet. Such a node hears every cluster, and is heard as node 0 */
    uint64_t incarnation; /* grows with each start of the folder; decides who may speak for a number */
    uint8_t store_id[16];
};

/* All calls belong to one thread and never block; on_frame and on_event run from poll(). */
struct net {
    void *ctx;
    const char *name; /* "nng" or "sim" */
    /* Once, before anything else. `at` of a frame borrows until on_frame returns, and has no alignment. on_event's
     * node is the one given to set_peer. wake: from any thread, poll() has something to do. */
    void (*start)(void *ctx, const struct net_identity *self, void *receiver,
        void (*on_frame)(
            void *receiver, const struct net_peer *from, enum net_lane lane, struct bytes frame),
        void (*on_event)(void *receiver, uint16_t node, enum net_event event),
        void (*wake)(void *receiver));
    /* After a join: who we are now. */
    void (*set_identity)(void *ctx, const struct net_identity *self);
    /* Peer `node` listens at "host:port"; NULL forgets it. Changing the address reconnects. Numbers from
     * NET_BY_ADDRESS are for peers known by address alone: members to ask for joining, and those who asked.
     * ERR_INVALID: no address. */
    enum err (*set_peer)(void *ctx, uint16_t node, const char *address);
    /* Queues a frame of at most NET_FRAME_MAX bytes; copies it. ERR_AGAIN: the lane's queue is full (nothing
     * was queued); ERR_NOT_FOUND: no such peer; ERR_TOO_LARGE. */
    enum err (*send)(void *ctx, uint16_t node, enum net_lane lane, struct bytes frame);
    /* Bytes queued and not yet taken by the transport. */
    size_t (*queued)(void *ctx, uint16_t node, enum net_lane lane);
    /* Reconnects now (the peer is said to be back). */
    void (*kick)(void *ctx, uint16_t node);
    /* Delivers what came in, up to `limit` frames; returns how many. */
    int (*poll)(void *ctx, int limit);
};

/* What a node is given at open. */
struct io {
    struct clock clock;
    struct disk disk;
    struct net net; /* ctx NULL: a node that stays alone (embedded stores) */
    uint64_t seed; /* of every random choice, hash seeds included */
};

#endif
