#define _GNU_SOURCE
#include "server/renew.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/logger.h"
#include "cluster/node/join.h"
#include "server/peer.h"

enum { POLL_MS = 10, PATH_SIZE = 4200, FILE_SIZE = JOIN_PEERS_MAX * 96 };

static size_t describe_peers(struct server *server, char *text, size_t size)
{
    struct node_member members[NODE_MEMBERS_MAX];
    uint32_t count = node_members(server->node, members, NODE_MEMBERS_MAX);
    size_t used = 0, lines = 0;
    for (uint32_t i = 0; i < count && i < NODE_MEMBERS_MAX && lines < JOIN_PEERS_MAX; i++) {
        if (members[i].peer[0] == '\0' || strcmp(members[i].peer, "off") == 0) continue;
        int wrote = snprintf(
            text + used, size - used, "%u %s\n", members[i].number, members[i].peer);
        if (wrote < 0 || (size_t)wrote >= size - used) break;
        used += (size_t)wrote;
        lines++;
    }
    return used;
}

void renew_note_peers(struct server *server, const struct folder *folder)
{
    char text[FILE_SIZE], path[PATH_SIZE], fresh[PATH_SIZE];
    size_t size = describe_peers(server, text, sizeof text);
    uint64_t hash = hash64(0, bytes_of(text, size));
    if (size == 0 || hash == server->peers_hash) return;
    snprintf(path, sizeof path, "%s/peers", folder->path);
    snprintf(fresh, sizeof fresh, "%s/peers.new", folder->path);
    FILE *file = fopen(fresh, "we");
    bool written = file != NULL && fwrite(text, 1, size, file) == size;
    if (file != NULL) written = fclose(file) == 0 && written;
    /* an older or missing file only makes a later repair need the operator */
    if (written && rename(fresh, path) == 0) server->peers_hash = hash;
}

uint32_t renew_known_peers(const struct folder *folder, struct join_peer *out, uint32_t max)
{
    char path[PATH_SIZE], line[128];
    snprintf(path, sizeof path, "%s/peers", folder->path);
    FILE *file = fopen(path, "re");
    if (file == NULL) return 0;
    uint32_t count = 0;
    while (count < max && fgets(line, sizeof line, file) != NULL) {
        char *end;
        unsigned long number = strtoul(line, &end, 10);
        if (number == 0 || number > UINT16_MAX || *end != ' ') continue;
        end[1 + strcspn(end + 1, "\r\n ")] = '\0';
        size_t size = strlen(end + 1);
        if (size == 0 || size >= sizeof out->address) continue;
        out[count].number = (uint16_t)number;
        memcpy(out[count].address, end + 1, size + 1);
        count++;
    }
    fclose(file);
    return count;
}

/* The same damaged folder asks for the same new store, so that a repair that was cut off is gone on with. */
static void new_store_id(const struct folder_identity *identity, uint8_t id_out[16])
{
    struct bytes old = bytes_of(identity->node_id, sizeof identity->node_id);
    store_u64(id_out, hash64(identity->node_number + 1u, old));
    store_u64(id_out + 8, hash64(identity->node_number + 2u, old));
}

static bool ask(struct server *server, const struct join_request *request, struct join_result *result_out)
{
    struct join *join = calloc(1, sizeof *join);
    if (join == NULL) return false;
    const struct clock *clock = &server->io.clock;
    uint64_t until_ns =
        clock->monotonic_ns(clock->ctx) + server->config.join_timeout_s * UINT64_C(1000000000);
    enum err err = ERR_AGAIN;
    while (err != OK && clock->monotonic_ns(clock->ctx) < until_ns) {
        join_start(join, &server->io, request);
        /* a refusal may be for now only: the others may not have noticed yet that this node is down */
        while ((err = join_poll(join)) == ERR_AGAIN &&
            clock->monotonic_ns(clock->ctx) < until_ns) {
            struct pollfd signals = {.fd = server->signal_fd, .events = POLLIN};
            if (poll(&signals, 1, POLL_MS) > 0) until_ns = 0;
        }
        if (err == ERR_PERMISSION) {
            log_warn("the cluster does not give a new number yet", "why=\"%s\"",
                join->result.detail);
            (void)poll(NULL, 0, 500);
        }
    }
    *result_out = join->result;
    free(join);
    return err == OK;
}

static bool sync_folder(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool done = fd >= 0 && fsync(fd) == 0;
    if (fd >= 0) close(fd);
    return done;
}

static void opening_path(const struct folder *folder, char *path)
{
    snprintf(path, PATH_SIZE, "%s/opening", folder->path);
}

bool renew_open_begins(const struct folder *folder)
{
    char path[PATH_SIZE];
    struct stat status;
    opening_path(folder, path);
    bool twice = stat(path, &status) == 0 && status.st_size >= 2;
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    /* one byte a start; without it, only the operator can tell */
    if (fd >= 0 && write(fd, "x", 1) != 1) log_warn("a start cannot be marked", "path=%s", path);
    if (fd >= 0) close(fd);
    return twice;
}

void renew_open_done(const struct folder *folder)
{
    char path[PATH_SIZE];
    opening_path(folder, path);
    (void)unlink(path); /* absent is as good */
}

bool renew_unfinished(const struct folder *folder)
{
    char aside[PATH_SIZE];
    snprintf(aside, sizeof aside, "%s/damaged-%u", folder->path, folder->identity.node_number);
    return access(aside, F_OK) == 0;
}

/* wal/ and db/ are kept under another name for whoever wants to look. The name says which member it was: while the
 * identity still says the same, the repair is not finished (renew_unfinished). */
static bool set_aside(const struct folder *folder, uint16_t number)
{
    char aside[PATH_SIZE], to[PATH_SIZE + 16];
    snprintf(aside, sizeof aside, "%s/damaged-%u", folder->path, number);
    if (mkdir(aside, 0700) != 0 && errno != EEXIST) return false;
    if (!sync_folder(folder->path)) return false;
    snprintf(to, sizeof to, "%s/wal", aside);
    if (rename(folder->wal, to) != 0 && errno != ENOENT) return false;
    snprintf(to, sizeof to, "%s/db", aside);
    if (rename(folder->db, to) != 0 && errno != ENOENT) return false;
    bool made = (mkdir(folder->wal, 0700) == 0 || errno == EEXIST) &&
        (mkdir(folder->db, 0700) == 0 || errno == EEXIST);
    return made && sync_folder(folder->path);
}

bool renew_possible(const struct server *server, const struct folder *folder)
{
    struct join_peer peers[JOIN_PEERS_MAX];
    uint32_t known = renew_known_peers(folder, peers, JOIN_PEERS_MAX);
    bool others = known > 1 || (known == 1 && peers[0].number != folder->identity.node_number);
    return others && server->io.net.ctx != NULL && server->config.accept_loss == 0;
}

bool renew_folder(struct server *server, struct folder *folder, const char *why)
{
    struct join_peer peers[JOIN_PEERS_MAX];
    const char *seeds[JOIN_PEERS_MAX + 1] = {NULL};
    uint32_t known = renew_known_peers(folder, peers, JOIN_PEERS_MAX), count = 0;
    for (uint32_t i = 0; i < known; i++) {
        if (peers[i].number != folder->identity.node_number) seeds[count++] = peers[i].address;
    }
    if (count == 0 || !renew_possible(server, folder)) return false;
    log_error("this node's data is damaged; its peers have it: asking them to be rebuilt",
        "data=%s why=\"%s\"", folder->path, why);
    struct join_request request = {.seeds = seeds,
        .name = folder->identity.name,
        .zone = server->config.zone == NULL ? "" : server->config.zone,
        .peer = server->peer_text,
        .resp = server->resp_text,
        .http = server->http_text,
        .renew_number = folder->identity.node_number};
    new_store_id(&folder->identity, request.store_id);
    memcpy(request.renew_store_id, folder->identity.node_id, 16);
    if (folder_next_incarnation(folder, &request.incarnation) != OK) return false;
    struct join_result result;
    if (!ask(server, &request, &result)) return false;
    uint16_t old = folder->identity.node_number;
    struct folder_identity identity = folder->identity;
    memcpy(identity.node_id, request.store_id, sizeof identity.node_id);
    identity.node_number = result.number;
    if (!set_aside(folder, old) || folder_rewrite_identity(folder, &identity) != OK) {
        server_complain("%s: the damaged files cannot be set aside: %m", folder->path);
        return false;
    }
    log_warn("rebuilding from the peers", "data=%s number=%u was=%u", folder->path, result.number,
        old);
    return true;
}
