#include "sim/sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "sim/sim_client.h"
#include "sim/sim_clock.h"
#include "sim/sim_disk.h"
#include "sim/sim_kv.h"

/* One node in a world that fails. Small limits (64 KiB slots, a memtable of 64 KiB, checkpoint steps of
 * 16 entries) make the rare paths common: segments roll over and are recycled, checkpoints are cut in
 * the middle, recovery itself is cut. */

/* per mille of the steps in which a fault of the kind begins */
struct scenario {
    const char *name;
    unsigned cut; /* power cut now */
    unsigned cut_within; /* power cut in the middle of one of the next operations */
    unsigned kill; /* the process dies */
    unsigned io_error; /* an operation on the log's disk fails */
    unsigned full; /* the log's disk is full for a while */
    unsigned store; /* a commit of the bottom store fails */
    unsigned rot; /* a stored value is damaged */
    unsigned clock; /* the wall clock jumps forward, the rate drifts */
    bool expiry, clear;
};

static const struct scenario scenarios[] = {
    {.name = "calm", .expiry = true, .clear = true},
    {.name = "crash", .cut = 5, .kill = 5, .expiry = true, .clear = true},
    /* what a dead process left in a cache, and then the power goes */
    {.name = "cache", .cut = 25, .kill = 40, .clear = true},
    {.name = "torn", .cut_within = 10, .clear = true},
    {.name = "eio", .io_error = 8, .cut = 2, .expiry = true},
    {.name = "full", .full = 4, .cut = 2, .clear = true},
    {.name = "store", .store = 20, .cut = 3, .kill = 3, .clear = true},
    {.name = "rot", .rot = 4, .kill = 3, .expiry = true},
    {.name = "clock", .clock = 20, .kill = 3, .expiry = true},
    {.name = "mixed",
        .cut = 2,
        .cut_within = 4,
        .kill = 2,
        .io_error = 3,
        .full = 2,
        .store = 6,
        .clock = 4,
        .expiry = true,
        .clear = true},
};

enum {
    SCENARIOS = sizeof scenarios / sizeof scenarios[0],
    RANGES = 8,
    SLOT_SIZE = 64 * 1024,
    MEMORY = 160 * 1024,
    LOG_BYTES = 1024 * 1024,
    CHUNK_PUTS = 16,
    RECOVERY_ATTEMPTS = 50,
    HEALED_STEPS = 5000,
    SERVE_STEPS = 2000,
};

struct world {
    const struct sim_options *options;
    struct sim_result *result;
    const struct scenario *scenario;
    struct prng prng;
    struct sim_clock clock;
    struct sim_disk *disk;
    struct sim_kv_world *stores;
    char store_folder[SIM_KV_FOLDER];
    struct io io;
    struct node *node;
    struct sim_client client;
    uint64_t starts;
    bool made; /* the folder was opened once */
    bool told; /* the model knows what this start of the node found */
    bool refused; /* damage was found at the start, and said so */
    bool faults_planned; /* an error may come from what was injected */
    uint64_t full_until; /* step at which the disk has room again */
    uint64_t step;
};

const char *const *sim_scenarios(void)
{
    static const char *names[SCENARIOS + 1];
    for (int i = 0; i < SCENARIOS; i++)
        names[i] = scenarios[i].name;
    return names;
}

/* Whatever is done is acknowledged; they are done in order. */
static void on_tickets(void *ctx)
{
    struct world *world = ctx;
    struct model *model = &world->client.model;
    if (world->node == NULL || !world->told) return;
    while (model->first != NULL) {
        enum ticket_state state = node_ticket(world->node, model->first->node_ticket);
        if (state == TICKET_WAITING) break;
        if (state != TICKET_DONE) {
            sim_violation(&world->client, "a node alone gave up a transaction");
            break;
        }
        sim_trace(&world->client, 3, model->first->ticket);
        model_commit(model, model->first->ticket);
        world->result->counts.commits++;
    }
    for (struct model_transaction *later = model->first; later != NULL; later = later->next) {
        if (node_ticket(world->node, later->node_ticket) == TICKET_DONE)
            sim_violation(&world->client, "transactions were committed out of order");
    }
}

/* What was acknowledged must be there, whole, and after it nothing but a prefix of what was proposed. How long
 * the prefix is says the content. */
static void take_recovered(struct world *world)
{
    struct model *model = &world->client.model;
    while (model->first != NULL && !sim_client_agrees(&world->client, world->node))
        model_commit(model, model->first->ticket);
    sim_trace(&world->client, 5, model->acknowledged);
    model_recover(model, model->acknowledged);
    world->told = true;
}

static bool serves(const struct world *world)
{
    for (uint16_t range = 0; range <= RANGES; range++) {
        if (!node_serves(world->node, range)) return false;
    }
    return true;
}

/* The group of one elects itself and commits what it found. Ends early if the power goes. */
static void wait_until_it_serves(struct world *world)
{
    for (int i = 0; i < SERVE_STEPS && !serves(world); i++) {
        sim_clock_advance(&world->clock, 5000000);
        sim_disk_run_until(world->disk, world->io.clock.monotonic_ns(world->io.clock.ctx));
        node_turn_begin(world->node);
        enum err err = node_poll(world->node);
        if (sim_disk_is_cut(world->disk)) return;
        if (err != OK) {
            sim_violation(&world->client, "the node stops itself right after its start");
            return;
        }
        node_tick(world->node);
        node_turn_end(world->node, false);
    }
    if (!serves(world) && !sim_disk_is_cut(world->disk))
        sim_violation(&world->client, "the node does not serve after its start");
}

static enum err open_node(struct world *world)
{
    struct node_config config = {
        .io = &world->io,
        .kv = &sim_kv,
        .kv_folder = world->store_folder,
        .name = "sim",
        .cluster_id = {1},
        .store_id = {2},
        .number = 1,
        .incarnation = ++world->starts,
        .replicas = 1,
        .deadline_ms = 3600 * 1000,
        .ranges = RANGES,
        .memory = MEMORY,
        .log_bytes_max = LOG_BYTES,
        .slot_size = SLOT_SIZE,
        .chunk_puts = CHUNK_PUTS,
        .create = !world->made,
        .ctx = world,
        .on_tickets = on_tickets,
    };
    struct engine_report report;
    world->told = false;
    enum err err = node_open(&config, &report, &world->node);
    if (err != OK) {
        world->node = NULL;
        sim_trace(&world->client, 4, (uint64_t)(int64_t)err);
        /* refusing to start is a definite answer to damage */
        world->refused = err == ERR_CORRUPT && world->client.damage_expected;
        if (!sim_disk_is_cut(world->disk) && !world->faults_planned && !world->refused)
            sim_violation(&world->client, "recovery refuses: %s", report.detail);
        return err;
    }
    world->result->counts.torn += report.log.torn_tail ? 1 : 0;
    world->made = true;
    node_turn_begin(world->node);
    wait_until_it_serves(world);
    if (!sim_disk_is_cut(world->disk) && !world->client.violated) take_recovered(world);
    return OK;
}

static void check_recovered(struct world *world)
{
    if (world->client.violated) return;
    world->result->counts.recoveries++;
    sim_client_begin(&world->client, world->node);
    sim_client_check_all(&world->client, world->node);
    node_turn_end(world->node, false);
}

/* Tears the node down as a crash does and starts it again; recovery may be cut too. */
static void restart(struct world *world, bool power)
{
    struct prng *prng = &world->prng;
    world->result->counts.crashes++;
    if (power && !sim_disk_is_cut(world->disk)) sim_disk_cut(world->disk);
    node_close(world->node, false);
    world->node = NULL;
    if (!power && !sim_disk_is_cut(world->disk)) sim_disk_kill(world->disk);
    for (int attempt = 0; attempt < RECOVERY_ATTEMPTS; attempt++) {
        sim_disk_restart(world->disk);
        sim_disk_set_capacity(world->disk, 0);
        world->full_until = 0;
        sim_clock_restart(&world->clock);
        bool cut_again = attempt < 3 && prng_chance(prng, world->scenario->cut_within, 20);
        world->faults_planned = cut_again;
        if (cut_again) sim_disk_cut_at(world->disk, 1 + prng_below(prng, 12));
        enum err err = open_node(world);
        if (err == OK && !sim_disk_is_cut(world->disk)) {
            sim_disk_cut_at(world->disk, 0);
            world->faults_planned = false;
            check_recovered(world);
            return;
        }
        if (err == OK) {
            node_close(world->node, false);
            world->node = NULL;
        }
        if (world->client.violated || world->refused) return;
        if (!sim_disk_is_cut(world->disk)) sim_disk_cut(world->disk);
    }
    sim_violation(&world->client, "the node does not come back");
}

static bool happens(struct world *world, unsigned per_mille)
{
    return per_mille > 0 && prng_chance(&world->prng, per_mille, 1000);
}

static void inject(struct world *world)
{
    const struct scenario *scenario = world->scenario;
    struct prng *prng = &world->prng;
    struct sim_counts *counts = &world->result->counts;
    if (happens(world, scenario->cut_within)) {
        sim_disk_cut_at(world->disk, 1 + prng_below(prng, 20));
        world->faults_planned = true;
    }
    if (happens(world, scenario->io_error)) {
        sim_disk_fail_at(world->disk, 1 + prng_below(prng, 20), 1, ERR_IO);
        world->faults_planned = true;
        counts->io_errors++;
    }
    if (happens(world, scenario->full)) {
        sim_disk_set_capacity(world->disk, 3 * SLOT_SIZE);
        world->full_until = world->step + 50 + prng_below(prng, 400);
    }
    if (world->full_until != 0 && world->step >= world->full_until) {
        sim_disk_set_capacity(world->disk, 0);
        world->full_until = 0;
    }
    if (happens(world, scenario->store)) {
        sim_kv_fail_commit(world->stores, "node", 1 + prng_below(prng, 3),
            prng_chance(prng, 1, 2) ? ERR_FULL : ERR_IO);
        counts->map_errors++;
    }
    if (happens(world, scenario->rot)) {
        uint16_t range;
        struct bytes key;
        /* the store may still be empty */
        if (sim_kv_rot_any(world->stores, "node", prng, &range, &key) == OK)
            world->client.damage_expected = true;
    }
    if (happens(world, scenario->clock)) {
        sim_clock_jump_wall(&world->clock, (int64_t)prng_below(prng, 5000));
        sim_clock_set_drift(&world->clock, (int64_t)prng_below(prng, 400000) - 200000);
        counts->clock_jumps++;
    }
}

/* One turn of the node's loop. False: the node is gone and was not brought back. */
static bool turn(struct world *world, bool chaos)
{
    struct prng *prng = &world->prng;
    world->step++;
    sim_clock_advance(&world->clock, 1000 + prng_below(prng, 2000000));
    sim_disk_run_until(world->disk, world->io.clock.monotonic_ns(world->io.clock.ctx));
    node_turn_begin(world->node);
    enum err err = node_poll(world->node);
    if (sim_disk_is_cut(world->disk) || err != OK) {
        if (err != OK && !sim_disk_is_cut(world->disk) && !world->faults_planned)
            sim_violation(&world->client, "the log failed although the disk did not");
        restart(world, sim_disk_is_cut(world->disk));
        return !world->client.violated && world->node != NULL;
    }
    uint64_t writes = prng_below(prng, 4);
    for (uint64_t i = 0; i < writes; i++)
        sim_client_write(&world->client, world->node);
    sim_client_read(&world->client, world->node);
    if (prng_chance(prng, 1, 16)) node_tick(world->node);
    node_turn_end(world->node, prng_chance(prng, 1, 8));
    for (uint64_t steps = prng_below(prng, 4); steps > 0; steps--)
        engine_checkpoint_step(node_engine(world->node));
    if (prng_chance(prng, 1, 64) && !sim_disk_is_cut(world->disk)) {
        sim_client_check_all(&world->client, world->node);
        node_turn_end(world->node, false);
    }
    if (chaos) {
        inject(world);
        bool power = happens(world, world->scenario->cut);
        if (power || happens(world, world->scenario->kill)) restart(world, power);
    }
    return !world->client.violated && world->node != NULL;
}

struct checkpoint_result {
    bool done;
    enum err err;
};

static void on_checkpoint(void *ctx, enum err err)
{
    struct checkpoint_result *state = ctx;
    state->done = true;
    state->err = err;
}

/* Faults have ended: writes must commit and a checkpoint must complete, within a bound. */
static void demand_progress(struct world *world)
{
    sim_disk_cut_at(world->disk, 0);
    sim_disk_fail_at(world->disk, 0, 0, OK);
    sim_kv_fail_commit(world->stores, "node", 0, OK);
    sim_disk_set_capacity(world->disk, 0);
    world->full_until = 0;
    uint64_t commits = world->result->counts.commits;
    struct checkpoint_result checkpoint = {0};
    bool asked = false;
    for (int i = 0; i < HEALED_STEPS; i++) {
        if (!turn(world, false)) return;
        world->faults_planned = false;
        if (!asked && i > 20) {
            asked = true;
            engine_checkpoint(node_engine(world->node), on_checkpoint, &checkpoint);
        }
        if (world->result->counts.commits > commits + 10 && checkpoint.done) break;
    }
    if (world->result->counts.commits <= commits + 10 || !checkpoint.done) {
        world->result->outcome = SIM_STUCK;
        snprintf(world->result->detail, sizeof world->result->detail,
            "%s within %d steps after the faults ended",
            checkpoint.done ? "too few writes were committed" : "no checkpoint was completed",
            HEALED_STEPS);
        return;
    }
    if (checkpoint.err != OK)
        sim_violation(
            &world->client, "a checkpoint without faults failed: %s", err_name(checkpoint.err));
}

/* A clean stop leaves nothing to replay. */
static void stop_and_start(struct world *world)
{
    for (int i = 0; i < 1000 && world->client.model.first != NULL; i++) {
        sim_clock_advance(&world->clock, 1000000);
        sim_disk_run_until(world->disk, world->io.clock.monotonic_ns(world->io.clock.ctx));
        if (node_poll(world->node) != OK) sim_violation(&world->client, "poll fails at the end");
        node_turn_end(world->node, false);
    }
    struct engine_stats stats;
    engine_stats(node_engine(world->node), &stats);
    world->result->counts.checkpoints = stats.checkpoints;
    world->result->counts.expired = node_expired_count(world->node);
    node_close(world->node, true);
    world->node = NULL;
    sim_disk_kill(world->disk);
    sim_disk_restart(world->disk);
    if (open_node(world) == OK) check_recovered(world);
}

static const struct scenario *choose(const struct sim_options *options, struct prng *prng)
{
    const struct scenario *drawn = &scenarios[prng_below(prng, SCENARIOS)];
    for (int i = 0; options->scenario != NULL && i < SCENARIOS; i++) {
        if (strcmp(scenarios[i].name, options->scenario) == 0) return &scenarios[i];
    }
    return drawn;
}

static void world_open(
    struct world *world, const struct sim_options *options, struct sim_result *result)
{
    *result = (struct sim_result){0};
    *world = (struct world){.options = options, .result = result};
    prng_init(&world->prng, options->seed);
    world->scenario = choose(options, &world->prng);
    result->scenario = world->scenario->name;
    sim_clock_init(&world->clock, 1700000000000);
    world->disk = sim_disk_create(&(struct sim_disk_config){
        .seed = prng_next(&world->prng),
        .latency_min_ns = 50000,
        .latency_max_ns = 50000 + prng_below(&world->prng, 5000000),
        .sector = prng_chance(&world->prng, 1, 2) ? 512 : 4096,
    });
    world->stores = sim_kv_world_new();
    ASSERT(world->disk != NULL && world->stores != NULL);
    sim_kv_folder(world->stores, "node", world->store_folder);
    world->io = (struct io){.clock = sim_clock_io(&world->clock),
        .disk = sim_disk_table(world->disk),
        .seed = prng_next(&world->prng)};
    world->client = (struct sim_client){
        .counts = &result->counts,
        .use_expiry = world->scenario->expiry,
        .use_clear = world->scenario->clear,
        .hash = options->seed,
        .detail = result->detail,
        .detail_size = sizeof result->detail,
    };
    prng_init(&world->client.prng, prng_next(&world->prng));
}

void sim_engine_run(const struct sim_options *options, struct sim_result *result)
{
    struct world world;
    world_open(&world, options, result);
    if (open_node(&world) == OK) {
        check_recovered(&world);
        while (world.step < options->ticks && turn(&world, true)) {
        }
        if (!world.client.violated && world.node != NULL) demand_progress(&world);
        bool going = !world.client.violated && world.node != NULL;
        if (going && result->outcome == SIM_OK) stop_and_start(&world);
    }
    if (world.client.violated) result->outcome = SIM_UNSAFE;
    result->simulated_ms = world.clock.true_ns / 1000000;
    result->trace_hash = world.client.hash;
    if (world.node != NULL) {
        sim_disk_cut(world.disk);
        node_close(world.node, false);
    }
    model_deinit(&world.client.model);
    sim_kv_world_free(world.stores);
    sim_disk_destroy(world.disk);
}
