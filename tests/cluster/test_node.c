#define _DEFAULT_SOURCE

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buffer.h"
#include "cluster/net_nng.h"
#include "cluster/node/join.h"
#include "cluster/node/node.h"
#include "wal/wal.h"

/* The driver over the real log, store and network: nodes of one process, each with its own folder, turned in a ring. */

enum { NODES = 4, RANGES = 4, KEYS = 300 };

struct machine {
    char folder[128], db[160], wal[160], address[64];
    struct io io;
    struct node *node;
    bool running;
    uint16_t number;
    uint64_t incarnation, next_tick_ns;
    uint8_t cluster_id[16], store_id[16];
    struct join_result joined;
};

static struct machine machines[NODES];
static void show(void);
static char top[160];

static void fail(const char *what)
{
    fprintf(stderr, "FAILED: %s\n", what);
    exit(1);
}

static uint64_t now_ns(void)
{
    struct clock clock = clock_real();
    return clock.monotonic_ns(clock.ctx);
}

/* body: 'S' u8 key size, key, value; 'G' u8 key size, key */
static bool execute(void *ctx, struct node_execution *execution)
{
    struct machine *machine = ctx;
    struct bytes body = execution->body;
    struct bytes key = bytes_of(body.at + 2, body.at[1]);
    struct bytes value = bytes_of(key.at + key.size, body.size - 2 - key.size);
    if (body.at[0] == 'S') {
        if (node_admit(machine->node, body.size) != OK) return false;
        node_txn_begin(machine->node);
        uint8_t *at = node_put(machine->node, 0, key, value.size, 0);
        if (at == NULL) fail("no room for a value");
        memcpy(at, value.at, value.size);
        execution->ticket = node_txn_commit(machine->node);
        return true;
    }
    struct value found;
    if (node_get(machine->node, NODE_PENDING, 0, key, &found) == OK)
        (void)!buffer_append(execution->reply, found.bytes.at, found.bytes.size);
    execution->ticket = node_read_ticket(machine->node, execution->range, NODE_PENDING);
    return true;
}

static void open_net(struct machine *machine)
{
    char detail[256];
    struct net_nng_config config = {
        .listen = machine->address[0] != '\0' ? machine->address : "127.0.0.1:0"};
    if (net_nng_open(&config, &machine->io.net, detail, sizeof detail) != OK) fail(detail);
    snprintf(machine->address, sizeof machine->address, "%s", net_nng_address(&machine->io.net));
}

static void machine_start(struct machine *machine, bool create, bool joined)
{
    machine->incarnation++;
    machine->io.seed = now_ns();
    struct node_config config = {
        .io = &machine->io,
        .kv = &kv_lmdb,
        .kv_folder = machine->db,
        .name = machine->folder + strlen(top) + 1,
        .number = machine->number,
        .incarnation = machine->incarnation,
        .peer = machine->address,
        .replicas = 3,
        .ranges = RANGES,
        .memory = 64 << 20,
        .log_bytes_max = 64 << 20,
        .slot_size = 4 << 20,
        .create = create,
        .joined = joined,
        .background = true,
        .peers = machine->joined.peers,
        .peer_count = machine->joined.peer_count,
        .ctx = machine,
        .execute = execute,
    };
    memcpy(config.cluster_id, machine->cluster_id, 16);
    memcpy(config.store_id, machine->store_id, 16);
    struct engine_report report = {0};
    enum err err = node_open(&config, &report, &machine->node);
    if (err != OK) {
        fprintf(stderr, "%s: %s\n", err_name(err), report.detail);
        fail("a node does not open");
    }
    machine->running = true;
}

static void machine_init(struct machine *machine, int i)
{
    snprintf(machine->folder, sizeof machine->folder, "%.90s/n%d", top, i + 1);
    mkdir(machine->folder, 0700);
    snprintf(machine->db, sizeof machine->db, "%.120s/db", machine->folder);
    snprintf(machine->wal, sizeof machine->wal, "%.120s/wal", machine->folder);
    mkdir(machine->db, 0700);
    memset(machine->store_id, i + 1, 16);
    machine->io.clock = clock_real();
    enum log_io mode;
    if (disk_open(machine->wal, LOG_IO_AUTO, &machine->io.disk, &mode) != OK) fail("disk");
    open_net(machine);
}

static void machine_stop(struct machine *machine)
{
    machine->running = false;
    /* first: its threads wake the node */
    net_nng_close(&machine->io.net);
    machine->io.net.ctx = NULL;
    node_close(machine->node, false);
    machine->node = NULL;
    disk_close(&machine->io.disk);
}

static void machine_restart(struct machine *machine)
{
    enum log_io mode;
    if (disk_open(machine->wal, LOG_IO_AUTO, &machine->io.disk, &mode) != OK) fail("disk");
    open_net(machine);
    machine_start(machine, false, machine->number != 1);
}

static void turn(void)
{
    for (int i = 0; i < NODES; i++) {
        struct machine *machine = &machines[i];
        if (!machine->running) continue;
        node_turn_begin(machine->node);
        if (node_poll(machine->node) != OK) fail("a node failed");
        if (now_ns() >= machine->next_tick_ns) {
            machine->next_tick_ns = now_ns() + 10000000;
            node_tick(machine->node);
        }
        node_turn_end(machine->node, false);
    }
    usleep(100);
}

static void join(struct machine *machine)
{
    const char *seeds[] = {machines[0].address, NULL};
    struct join_request request = {
        .seeds = seeds, .name = "", .zone = "", .peer = machine->address, .resp = "", .http = ""};
    memcpy(request.store_id, machine->store_id, 16);
    struct join state;
    join_start(&state, &machine->io, &request);
    uint64_t end_ns = now_ns() + 20000000000ull;
    enum err err;
    while ((err = join_poll(&state)) == ERR_AGAIN) {
        turn();
        if (now_ns() > end_ns) fail("joining takes too long");
    }
    if (err != OK) fail(state.result.detail);
    if (state.result.ranges != RANGES) fail("the number of ranges is not told");
    machine->number = state.result.number;
    machine->joined = state.result;
    memcpy(machine->cluster_id, state.result.cluster_id, 16);
    machine_start(machine, true, true);
}

/* ---- operations ---- */

struct operation {
    struct node_request request;
    bool done;
    enum node_outcome outcome;
    char reply[200];
};

static void on_done(struct node_request *request, enum node_outcome outcome, struct bytes reply)
{
    struct operation *operation = request->ctx;
    operation->done = true;
    operation->outcome = outcome;
    snprintf(operation->reply, sizeof operation->reply, "%.*s", (int)reply.size,
        (const char *)reply.at);
}

static struct operation run(struct machine *machine, char what, const char *key, const char *value)
{
    struct operation operation = {.request = {.done = on_done, .read_only = what == 'G'}};
    operation.request.ctx = &operation;
    uint8_t body[300];
    body[0] = (uint8_t)what;
    body[1] = (uint8_t)strlen(key);
    memcpy(body + 2, key, strlen(key));
    memcpy(body + 2 + strlen(key), value, strlen(value));
    uint16_t range = node_range_of(machine->node, bytes_of_text(key));
    if (node_request_start(machine->node, &operation.request, range,
            bytes_of(body, 2 + strlen(key) + strlen(value))) != OK)
        fail("request");
    while (!operation.done)
        turn();
    return operation;
}

static void write_keys(int from, int to, int nodes)
{
    char key[32], value[32];
    for (int i = from; i < to; i++) {
        snprintf(key, sizeof key, "key:%d", i);
        snprintf(value, sizeof value, "value:%d", i);
        struct operation operation = {0};
        for (int tries = 0; tries < 10; tries++) {
            struct machine *machine = &machines[(i + tries) % nodes];
            if (!machine->running) continue;
            operation = run(machine, 'S', key, value);
            if (operation.outcome == NODE_REPLIED) break;
        }
        if (operation.outcome != NODE_REPLIED) fail("a write was not taken");
    }
}

static void check_keys(int count, int nodes)
{
    char key[32], value[32];
    for (int i = 0; i < count; i++) {
        struct machine *machine = &machines[(i + 1) % nodes];
        if (!machine->running) continue;
        snprintf(key, sizeof key, "key:%d", i);
        snprintf(value, sizeof value, "value:%d", i);
        struct operation operation = run(machine, 'G', key, "");
        if (operation.outcome != NODE_REPLIED || strcmp(operation.reply, value) != 0) {
            fprintf(stderr, "%s: outcome %d reply \"%s\"\n", key, operation.outcome,
                operation.reply);
            show();
            fail("a key has not its value");
        }
    }
}

static void show(void)
{
    for (int i = 0; i < NODES; i++) {
        struct net_nng_counters c;
        if (!machines[i].running) continue;
        net_nng_counters(&machines[i].io.net, &c);
        fprintf(stderr,
            "%d: sent %llu received %llu refused %llu/%llu was %llu malformed %llu stale %llu "
            "stranger %llu duplicate %llu unsent %llu\n",
            machines[i].number, (unsigned long long)c.frames_sent,
            (unsigned long long)c.frames_received, (unsigned long long)c.refused_cluster,
            (unsigned long long)c.refused_clone, (unsigned long long)c.was_refused,
            (unsigned long long)c.dropped_malformed, (unsigned long long)c.dropped_stale,
            (unsigned long long)c.dropped_stranger, (unsigned long long)c.dropped_duplicate,
            (unsigned long long)c.dropped_unsent);
    }
    for (uint16_t r = 0; r <= RANGES; r++) {
        struct node_range range;
        node_range_status(machines[0].node, r, &range);
        fprintf(stderr, "range %u leader %u term %llu applied %llu:", r, range.leader,
            (unsigned long long)range.term, (unsigned long long)range.applied);
        for (uint32_t i = 0; i < range.replica_count; i++)
            fprintf(stderr, " %u%s@%llu", range.replicas[i].number,
                range.replicas[i].voter ? "v" : "l", (unsigned long long)range.replicas[i].match);
        fprintf(stderr, "\n");
    }
}

static void wait_voters(uint32_t wanted)
{
    uint64_t end_ns = now_ns() + 30000000000ull;
    for (;;) {
        turn();
        uint32_t good = 0;
        for (uint16_t r = 0; r <= RANGES; r++) {
            struct node_range range;
            node_range_status(machines[0].node, r, &range);
            uint32_t voters = 0;
            for (uint32_t i = 0; i < range.replica_count; i++)
                voters += range.replicas[i].voter ? 1 : 0;
            good += voters == wanted ? 1 : 0;
        }
        if (good == RANGES + 1) return;
        if (now_ns() > end_ns) {
            show();
            fail("the replicas do not become voters");
        }
    }
}

int main(void)
{
    snprintf(top, sizeof top, "/tmp/duramen-node-XXXXXX");
    if (mkdtemp(top) == NULL) fail("mkdtemp");
    memset(machines[0].cluster_id, 7, 16);
    for (int i = 0; i < NODES; i++)
        machine_init(&machines[i], i);
    machines[0].number = 1;
    machine_start(&machines[0], true, false);
    write_keys(0, 100, 1);
    fprintf(stderr, "one node writes\n");
    join(&machines[1]);
    join(&machines[2]);
    wait_voters(3);
    fprintf(stderr, "three voters\n");
    write_keys(100, KEYS, 3);
    check_keys(KEYS, 3);
    fprintf(stderr, "written and read everywhere\n");
    machine_stop(&machines[0]);
    write_keys(KEYS, KEYS + 50, 3);
    check_keys(KEYS + 50, 3);
    fprintf(stderr, "two of three go on\n");
    machine_restart(&machines[0]);
    check_keys(KEYS + 50, 3);
    for (int i = 0; i < 3; i++)
        machine_stop(&machines[i]);
    for (int i = 0; i < 3; i++)
        machine_restart(&machines[i]);
    check_keys(KEYS + 50, 3);
    fprintf(stderr, "all there after a stop of all\n");
    join(&machines[3]);
    write_keys(KEYS + 50, KEYS + 100, 4);
    check_keys(KEYS + 100, 4);
    show();
    for (int i = 0; i < NODES; i++)
        machine_stop(&machines[i]);
    char command[200];
    snprintf(command, sizeof command, "rm -rf '%s'", top);
    if (system(command) != 0) fail("clean-up");
    return 0;
}
