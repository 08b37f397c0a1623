#define _GNU_SOURCE
#include "server/peer.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/logger.h"
#include "cluster/net_nng.h"
#include "cluster/node/join.h"

enum {
    EXIT_FAILED = 1,
    EXIT_USAGE = 2,
    SECRET_MIN = 16,
    SECRET_MAX = 4096,
    SEEDS_MAX = 16,
    JOIN_POLL_MS = 10,
    JOIN_SAY_MS = 5000,
    FIRST_NUMBER = 1,
};

struct peers {
    char *text; /* --join, cut at its commas */
    const char *seeds[SEEDS_MAX + 1];
    struct join_result joined;
};

static bool is_off(const char *text)
{
    return text == NULL || text[0] == '\0' || strcmp(text, "off") == 0;
}

static bool is_set(const char *text)
{
    return text != NULL && text[0] != '\0';
}

/* The file's bytes without the line end; others must not be able to read it. */
static int read_secret(const char *path, uint8_t *at, size_t *size_out)
{
    struct stat status;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) != 0) {
        server_complain("--cluster-secret-file %s cannot be read: %m", path);
        if (fd >= 0) close(fd);
        return EXIT_USAGE;
    }
    ssize_t got = read(fd, at, SECRET_MAX);
    close(fd);
    while (got > 0 && (at[got - 1] == '\n' || at[got - 1] == '\r'))
        got--;
    if ((status.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
        server_complain(
            "--cluster-secret-file %s can be read by other users; make it private: chmod 600 %s",
            path, path);
        return EXIT_USAGE;
    }
    if (got < SECRET_MIN) {
        server_complain("--cluster-secret-file %s must hold at least %d bytes; make one with: head "
                        "-c 32 /dev/urandom | base64 > %s",
            path, SECRET_MIN, path);
        return EXIT_USAGE;
    }
    *size_out = (size_t)got;
    return 0;
}

static int cut_seeds(struct server *server)
{
    struct peers *peers = server->peers;
    if (!is_set(server->config.join)) return 0;
    peers->text = strdup(server->config.join);
    if (peers->text == NULL) return EXIT_FAILED;
    char *rest = peers->text;
    size_t count = 0;
    for (char *seed; count < SEEDS_MAX && (seed = strsep(&rest, ", ")) != NULL;) {
        if (seed[0] != '\0') peers->seeds[count++] = seed;
    }
    return 0;
}

int peer_open(struct server *server)
{
    const struct server_config *config = &server->config;
    const char *text = config->peer;
    bool loopback, wildcard;
    server->peers = calloc(1, sizeof *server->peers);
    if (server->peers == NULL) return EXIT_FAILED;
    int code = cut_seeds(server);
    if (code != 0) return code;
    snprintf(server->peer_text, sizeof server->peer_text, "off");
    if (is_off(text)) {
        if (!is_set(config->join)) return 0;
        server_complain(
            "--join %s needs --peer, the address other nodes reach this one by", config->join);
        return EXIT_USAGE;
    }
    code = server_check_address("peer", text, &loopback, &wildcard);
    if (code != 0) return code;
    if (wildcard) {
        server_complain(
            "--peer %s: other nodes have to be told an address that they reach this one "
            "by; write that instead",
            text);
        return EXIT_USAGE;
    }
    uint8_t secret[SECRET_MAX];
    size_t secret_size = 0;
    if (is_set(config->cluster_secret_file)) {
        code = read_secret(config->cluster_secret_file, secret, &secret_size);
    } else if (!loopback) {
        server_complain(
            "--peer %s can be reached from other machines, so it needs a secret that all "
            "nodes share: set --cluster-secret-file, or use 127.0.0.1",
            text);
        code = EXIT_USAGE;
    }
    if (code == 0) {
        char detail[256] = "";
        struct net_nng_config net_config = {
            .listen = text, .secret = bytes_of(secret, secret_size)};
        enum err err = net_nng_open(&net_config, &server->io.net, detail, sizeof detail);
        if (err == ERR_BUSY) {
            server_complain(
                "--peer %s: the port is in use by another process; stop it or choose another",
                text);
        } else if (err != OK) {
            server_complain("--peer %s cannot be listened on: %s", text,
                detail[0] != '\0' ? detail : err_text(err));
        }
        code = err == OK ? 0 : EXIT_FAILED;
    }
    explicit_bzero(secret, sizeof secret);
    if (code == 0)
        snprintf(
            server->peer_text, sizeof server->peer_text, "%s", net_nng_address(&server->io.net));
    return code;
}

void peer_close(struct server *server)
{
    if (server->io.net.ctx != NULL) net_nng_close(&server->io.net);
    server->io.net.ctx = NULL;
    if (server->peers == NULL) return;
    free(server->peers->text);
    free(server->peers);
    server->peers = NULL;
}

void peer_known(struct server *server, struct node_config *config)
{
    config->peers = server->peers->joined.peers;
    config->peer_count = server->peers->joined.peer_count;
}

/* What --join names, NULL-terminated; NULL: nothing. */
static const char *const *peer_seeds(struct server *server)
{
    return server->peers->seeds[0] == NULL ? NULL : server->peers->seeds;
}

/* Waits a moment; true: the operator wants to stop. */
static bool interrupted(struct server *server)
{
    struct pollfd signals = {.fd = server->signal_fd, .events = POLLIN};
    return poll(&signals, 1, JOIN_POLL_MS) > 0;
}

/* Asks until it is answered; the exit code. */
static int ask_to_join(struct server *server, struct join *join)
{
    const struct server_config *config = &server->config;
    const struct clock *clock = &server->io.clock;
    uint64_t began_ns = clock->monotonic_ns(clock->ctx), said_ns = 0;
    for (;;) {
        enum err err = join_poll(join);
        if (err == OK) return 0;
        if (err != ERR_AGAIN) {
            server_complain("--join %s was refused: %s", config->join,
                join->result.detail[0] != '\0' ? join->result.detail : err_text(err));
            return EXIT_FAILED;
        }
        uint64_t now_ns = clock->monotonic_ns(clock->ctx);
        if (now_ns - began_ns > config->join_timeout_s * UINT64_C(1000000000)) {
            server_complain("--join %s: nobody has let this node in within %u seconds; check the "
                            "address, the secret, and that a majority of the cluster runs",
                config->join, config->join_timeout_s);
            return EXIT_FAILED;
        }
        if (said_ns == 0 || now_ns - said_ns > JOIN_SAY_MS * UINT64_C(1000000)) {
            server_complain("asking %s to let this node join", config->join);
            said_ns = now_ns;
        }
        if (interrupted(server)) {
            server_complain("stopped before this node was a member");
            return EXIT_FAILED;
        }
    }
}

static int join_cluster(struct server *server, struct folder *folder)
{
    const struct server_config *config = &server->config;
    struct join *join = calloc(1, sizeof *join);
    if (join == NULL) return EXIT_FAILED;
    struct join_request request = {.seeds = peer_seeds(server),
        .name = is_set(config->name) ? config->name : "",
        .zone = is_set(config->zone) ? config->zone : "",
        .peer = server->peer_text,
        .resp = server->resp_text,
        .http = server->http_text};
    memcpy(request.store_id, folder->identity.node_id, sizeof request.store_id);
    join_start(join, &server->io, &request);
    int code = ask_to_join(server, join);
    server->peers->joined = join->result;
    if (code == 0) {
        struct folder_identity identity = folder->identity;
        memcpy(identity.cluster_id, join->result.cluster_id, sizeof identity.cluster_id);
        snprintf(identity.name, sizeof identity.name, "%s", join->result.name);
        identity.ranges = join->result.ranges;
        identity.node_number = join->result.number;
        enum err err = folder_rewrite_identity(folder, &identity);
        if (err == OK) {
            folder->identity = identity;
            log_info("joined", "cluster=%02x%02x%02x%02x number=%u name=%s", identity.cluster_id[0],
                identity.cluster_id[1], identity.cluster_id[2], identity.cluster_id[3],
                identity.node_number, identity.name);
        } else {
            server_complain(
                "%s: who this node is cannot be written down: %s", folder->path, err_text(err));
            code = EXIT_FAILED;
        }
    }
    free(join);
    return code;
}

static bool has_data(const struct folder *folder)
{
    char path[sizeof folder->db + 16];
    snprintf(path, sizeof path, "%s/data.mdb", folder->db);
    return access(path, F_OK) == 0;
}

int peer_settle(struct server *server, struct folder *folder)
{
    struct folder_identity identity = folder->identity;
    if (identity.node_number != 0) {
        /* a member that never heard from the others asks again: they answer who asks twice the same */
        bool early = identity.node_number != FIRST_NUMBER && !has_data(folder);
        return early && peer_seeds(server) != NULL ? join_cluster(server, folder) : 0;
    }
    uint8_t nothing[sizeof identity.restored_from] = {0};
    bool restored = memcmp(identity.restored_from, nothing, sizeof nothing) != 0;
    if (peer_seeds(server) != NULL && restored) {
        server_complain("%s holds data of a backup and cannot join another cluster; start it "
                        "without --join, then let empty nodes join it",
            folder->path);
        return EXIT_FAILED;
    }
    if (peer_seeds(server) != NULL) return join_cluster(server, folder);
    identity.node_number = FIRST_NUMBER;
    enum err err = folder_rewrite_identity(folder, &identity);
    if (err != OK) {
        server_complain(
            "%s: who this node is cannot be written down: %s", folder->path, err_text(err));
        return EXIT_FAILED;
    }
    folder->identity = identity;
    return 0;
}
