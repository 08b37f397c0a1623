#include "sim/sim_disk.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/hash.h"
#include "base/prng.h"

/* How it is built. A file's content is kept twice: `seen` is what reads return, `kept` what a power cut
 * leaves for certain, and a list of extents says where the two may differ. At a cut each sector of each
 * extent takes its content from `seen` or keeps it from `kept`, by the toss of a coin; a coin of its own
 * decides first whether the extent is kept whole, dropped whole or torn, so that both extremes are common.
 *
 * The folder is a list of names; its unsynced changes are a list that is replayed over the durable list
 * up to a random length. */

enum { NAME_MAX_SIZE = 64, FILES_MAX = 4096 };

struct extent {
    uint64_t offset;
    uint64_t size;
};

struct file {
    uint8_t *seen;
    uint8_t *kept;
    uint64_t seen_size;
    uint64_t kept_size;
    uint64_t capacity; /* of both arrays */
    struct extent *extents;
    size_t extent_count;
    size_t extent_capacity;
    uint64_t *broken; /* offsets of unreadable blocks */
    size_t broken_count;
    bool linked; /* some folder, seen or kept, knows it */
    uint64_t written; /* number of its newest durable write */
};

struct entry {
    char name[NAME_MAX_SIZE];
    size_t file;
};

struct folder {
    struct entry *entries;
    size_t count;
    size_t capacity;
};

enum change_kind { CHANGE_CREATE, CHANGE_RENAME, CHANGE_REMOVE };

struct change {
    enum change_kind kind;
    char name[NAME_MAX_SIZE];
    char to[NAME_MAX_SIZE];
    size_t file;
};

struct handle {
    size_t file;
    bool open;
    bool read_only;
};

struct flight {
    struct disk_op *op;
    uint64_t due_ns;
    uint64_t order; /* breaks ties */
    bool done;
    bool lied;
    enum sim_disk_lie lie;
    enum err result;
};

struct sim_disk {
    struct sim_disk_config config;
    struct prng prng;
    uint64_t now_ns;
    uint64_t operations;
    uint64_t cut_at;
    uint64_t fail_at;
    uint64_t fail_end;
    enum err fail_with;
    uint64_t lie_at;
    enum sim_disk_lie lie;
    bool cut;
    uint32_t vain;

    struct file *files;
    size_t file_count;
    struct folder seen;
    struct folder kept;
    struct change *changes;
    size_t change_count;
    struct handle *handles;
    size_t handle_count;
    struct flight *flights;
    size_t flight_count;
    uint64_t order;

    void (*wake)(void *wake_ctx);
    void *wake_ctx;
};

/* A simulation that runs out of memory cannot go on in a way worth testing. */
static void *grow(void *old, size_t count, size_t size)
{
    void *memory = realloc(old, count == 0 ? size : count * size);
    ASSERT(memory != NULL);
    return memory;
}

/* Folder */

static struct entry *find(const struct folder *folder, const char *name)
{
    for (size_t i = 0; i < folder->count; i++) {
        if (strcmp(folder->entries[i].name, name) == 0) return &folder->entries[i];
    }
    return NULL;
}

static void link_file(struct folder *folder, const char *name, size_t file)
{
    struct entry *entry = find(folder, name);
    if (entry == NULL) {
        if (folder->count == folder->capacity) {
            folder->capacity = folder->capacity * 2 + 8;
            folder->entries = grow(folder->entries, folder->capacity, sizeof *folder->entries);
        }
        entry = &folder->entries[folder->count++];
        (void)snprintf(entry->name, sizeof entry->name, "%s", name);
    }
    entry->file = file;
}

static void unlink_file(struct folder *folder, const char *name)
{
    struct entry *entry = find(folder, name);
    if (entry == NULL) return;
    *entry = folder->entries[--folder->count];
}

static void apply_change(struct folder *folder, const struct change *change)
{
    switch (change->kind) {
    case CHANGE_CREATE:
        link_file(folder, change->name, change->file);
        return;
    case CHANGE_RENAME:
        unlink_file(folder, change->name);
        link_file(folder, change->to, change->file);
        return;
    case CHANGE_REMOVE:
        unlink_file(folder, change->name);
        return;
    }
    UNREACHABLE();
}

static void free_unlinked(struct sim_disk *sim)
{
    for (size_t i = 0; i < sim->file_count; i++) {
        sim->files[i].linked = false;
    }
    for (size_t i = 0; i < sim->seen.count; i++) {
        sim->files[sim->seen.entries[i].file].linked = true;
    }
    for (size_t i = 0; i < sim->kept.count; i++) {
        sim->files[sim->kept.entries[i].file].linked = true;
    }
    for (size_t i = 0; i < sim->change_count; i++) {
        sim->files[sim->changes[i].file].linked = true;
    }
    for (size_t i = 0; i < sim->handle_count; i++) {
        if (sim->handles[i].open) {
            sim->files[sim->handles[i].file].linked = true;
        }
    }
    for (size_t i = 0; i < sim->file_count; i++) {
        struct file *file = &sim->files[i];
        if (file->linked || file->capacity == 0) continue;
        free(file->seen);
        free(file->kept);
        free(file->extents);
        free(file->broken);
        *file = (struct file){0};
    }
}

static void change_folder(
    struct sim_disk *sim, enum change_kind kind, const char *name, const char *to, size_t file)
{
    sim->changes = grow(sim->changes, sim->change_count + 1, sizeof *sim->changes);
    struct change *change = &sim->changes[sim->change_count++];
    *change = (struct change){.kind = kind, .file = file};
    (void)snprintf(change->name, sizeof change->name, "%s", name);
    (void)snprintf(change->to, sizeof change->to, "%s", to);
    apply_change(&sim->seen, change);
}

/* Content */

static uint64_t used_space(const struct sim_disk *sim)
{
    uint64_t used = 0;
    for (size_t i = 0; i < sim->file_count; i++) {
        used += sim->files[i].seen_size;
    }
    return used;
}

static void reserve(struct file *file, uint64_t size)
{
    if (size <= file->capacity) return;
    uint64_t capacity = size > file->capacity * 2 ? size : file->capacity * 2;
    file->seen = grow(file->seen, (size_t)capacity, 1);
    file->kept = grow(file->kept, (size_t)capacity, 1);
    memset(file->seen + file->capacity, 0, (size_t)(capacity - file->capacity));
    memset(file->kept + file->capacity, 0, (size_t)(capacity - file->capacity));
    file->capacity = capacity;
}

static void mend(struct file *file, uint64_t offset, uint64_t size)
{
    for (size_t i = 0; i < file->broken_count;) {
        uint64_t block = file->broken[i];
        if (block >= offset && block + DISK_BLOCK <= offset + size) {
            file->broken[i] = file->broken[--file->broken_count];
        } else {
            i++;
        }
    }
}

/* Changes what is seen; the extent is remembered unless it becomes durable right away. */
static void put(struct file *file, uint64_t offset, const uint8_t *at, uint64_t size)
{
    reserve(file, offset + size);
    memcpy(file->seen + offset, at, (size_t)size);
    if (offset + size > file->seen_size) {
        file->seen_size = offset + size;
    }
    mend(file, offset, size);
    if (file->extent_count == file->extent_capacity) {
        file->extent_capacity = file->extent_capacity * 2 + 8;
        file->extents = grow(file->extents, file->extent_capacity, sizeof *file->extents);
    }
    file->extents[file->extent_count++] = (struct extent){.offset = offset, .size = size};
}

static void keep(struct file *file, uint64_t offset, uint64_t size)
{
    memcpy(file->kept + offset, file->seen + offset, (size_t)size);
}

static void sync_file(struct file *file)
{
    for (size_t i = 0; i < file->extent_count; i++) {
        keep(file, file->extents[i].offset, file->extents[i].size);
    }
    file->extent_count = 0;
    file->kept_size = file->seen_size;
}

/* A durable write that completed. What else the file has unsynced stays so. */
static void put_durable(struct file *file, uint64_t offset, const uint8_t *at, uint64_t size)
{
    put(file, offset, at, size);
    file->extent_count--;
    keep(file, offset, size);
    if (offset + size > file->kept_size) {
        file->kept_size = offset + size;
    }
}

/* A random part of a write, sector by sector, both seen and kept. */
static void put_torn(
    struct sim_disk *sim, struct file *file, uint64_t offset, const uint8_t *at, uint64_t size)
{
    uint64_t fate = prng_below(&sim->prng, 4);
    if (fate == 0) return;
    for (uint64_t done = 0; done < size; done += sim->config.sector) {
        uint64_t part = size - done < sim->config.sector ? size - done : sim->config.sector;
        if (fate == 1 || prng_chance(&sim->prng, 1, 2)) {
            put_durable(file, offset + done, at + done, part);
        }
    }
}

/* Operations and faults */

/* Counts an operation. OK to go on; else it fails, torn if it writes. */
static enum err begin(struct sim_disk *sim)
{
    if (sim->cut) return ERR_IO;
    sim->operations++;
    if (sim->operations == sim->cut_at) {
        sim->cut = true; /* the caller leaves its part behind; then sim_disk_cut() */
        return ERR_IO;
    }
    if (sim->operations >= sim->fail_at && sim->operations < sim->fail_end) return sim->fail_with;
    return OK;
}

/* Ends an operation that begin() refused. */
static enum err refuse(struct sim_disk *sim, enum err err)
{
    if (sim->cut && sim->operations == sim->cut_at) {
        sim->cut_at = 0;
        sim_disk_cut(sim);
    }
    return err;
}

static struct file *file_of(struct sim_disk *sim, disk_file file)
{
    ASSERT(file >= 0 && (size_t)file < sim->handle_count);
    struct handle *handle = &sim->handles[file];
    return handle->open ? &sim->files[handle->file] : NULL;
}

static bool lies(struct sim_disk *sim, enum sim_disk_lie *lie_out)
{
    if (sim->lie_at == 0 || sim->operations < sim->lie_at) return false;
    sim->lie_at = 0;
    *lie_out = sim->lie;
    return true;
}

static void put_lie(struct sim_disk *sim, struct file *file, enum sim_disk_lie lie, uint64_t offset,
    const uint8_t *at, uint64_t size)
{
    switch (lie) {
    case SIM_DISK_LOSE:
        return;
    case SIM_DISK_MISDIRECT:
        if (offset + DISK_BLOCK + size <= file->seen_size) {
            put_durable(file, offset + DISK_BLOCK, at, size);
        }
        return;
    case SIM_DISK_TEAR:
        put_torn(sim, file, offset, at, size);
        return;
    }
    UNREACHABLE();
}

/* The table */

static enum err table_open(void *ctx, const char *name, int flags, disk_file *file_out)
{
    struct sim_disk *sim = ctx;
    if (sim->cut) return ERR_IO;
    ASSERT(strlen(name) < NAME_MAX_SIZE && strchr(name, '/') == NULL);
    struct entry *entry = find(&sim->seen, name);
    if (entry != NULL && (flags & DISK_EXCLUSIVE) != 0) return ERR_EXISTS;
    if (entry == NULL) {
        if ((flags & DISK_CREATE) == 0) return ERR_NOT_FOUND;
        enum err err = begin(sim);
        if (err != OK) return refuse(sim, err);
        size_t index = 0;
        while (index < sim->file_count && sim->files[index].capacity > 0) {
            index++;
        }
        if (index == sim->file_count) {
            sim->files = grow(sim->files, ++sim->file_count, sizeof *sim->files);
        }
        ASSERT(index < FILES_MAX);
        sim->files[index] = (struct file){0};
        reserve(&sim->files[index], DISK_BLOCK);
        change_folder(sim, CHANGE_CREATE, name, "", index);
        entry = find(&sim->seen, name);
    }
    size_t handle = 0;
    while (handle < sim->handle_count && sim->handles[handle].open) {
        handle++;
    }
    if (handle == sim->handle_count) {
        sim->handles = grow(sim->handles, ++sim->handle_count, sizeof *sim->handles);
    }
    sim->handles[handle] = (struct handle){
        .file = entry->file, .open = true, .read_only = (flags & DISK_READ_ONLY) != 0};
    *file_out = (disk_file)handle;
    return OK;
}

static void table_close(void *ctx, disk_file file)
{
    struct sim_disk *sim = ctx;
    ASSERT(file >= 0 && (size_t)file < sim->handle_count);
    sim->handles[file].open = false;
    free_unlinked(sim);
}

static enum err table_size(void *ctx, disk_file file, uint64_t *size_out)
{
    struct sim_disk *sim = ctx;
    const struct file *content = file_of(sim, file);
    if (sim->cut || content == NULL) return ERR_IO;
    *size_out = content->seen_size;
    return OK;
}

static enum err table_read(void *ctx, disk_file file, uint64_t offset, void *at, size_t size)
{
    struct sim_disk *sim = ctx;
    const struct file *content = file_of(sim, file);
    if (sim->cut || content == NULL) return ERR_IO;
    for (size_t i = 0; i < content->broken_count; i++) {
        uint64_t block = content->broken[i];
        if (block < offset + size && offset < block + DISK_BLOCK) return ERR_IO;
    }
    if (offset + size > content->seen_size) return ERR_TRUNCATED;
    memcpy(at, content->seen + offset, size);
    return OK;
}

static enum err check_space(struct sim_disk *sim, const struct file *file, uint64_t end)
{
    if (sim->config.capacity == 0 || end <= file->seen_size) return OK;
    uint64_t more = end - file->seen_size;
    return used_space(sim) + more > sim->config.capacity ? ERR_FULL : OK;
}

static enum err table_write(void *ctx, disk_file file, uint64_t offset, const void *at, size_t size)
{
    struct sim_disk *sim = ctx;
    struct file *content = file_of(sim, file);
    if (content == NULL) return ERR_IO;
    ASSERT(!sim->handles[file].read_only);
    bool was_cut = sim->cut;
    enum err err = begin(sim);
    if (err == OK) {
        err = check_space(sim, content, offset + size);
    }
    if (err != OK) {
        if (err != ERR_FULL && !was_cut) {
            put_torn(sim, content, offset, at, size);
        }
        return refuse(sim, err);
    }
    put(content, offset, at, size);
    return OK;
}

static enum err table_sync(void *ctx, disk_file file)
{
    struct sim_disk *sim = ctx;
    struct file *content = file_of(sim, file);
    if (content == NULL) return ERR_IO;
    enum err err = begin(sim);
    if (err != OK) return refuse(sim, err);
    sync_file(content);
    return OK;
}

static enum err table_sync_folder(void *ctx)
{
    struct sim_disk *sim = ctx;
    enum err err = begin(sim);
    if (err != OK) return refuse(sim, err);
    for (size_t i = 0; i < sim->change_count; i++) {
        apply_change(&sim->kept, &sim->changes[i]);
    }
    sim->change_count = 0;
    free_unlinked(sim);
    return OK;
}

static enum err table_fill(void *ctx, disk_file file, uint64_t size)
{
    struct sim_disk *sim = ctx;
    struct file *content = file_of(sim, file);
    if (content == NULL) return ERR_IO;
    enum err err = begin(sim);
    if (err == OK) {
        err = check_space(sim, content, size);
    }
    bool cut_now = sim->cut && sim->operations == sim->cut_at;
    if (err != OK && err != ERR_FULL && !cut_now) return refuse(sim, err);
    uint64_t part = size;
    if (err != OK) {
        /* It got somewhere before it failed. */
        uint64_t room = size;
        if (sim->config.capacity > 0) {
            uint64_t used = used_space(sim);
            room = sim->config.capacity > used ? sim->config.capacity - used : 0;
        }
        room = room < size ? room : size;
        part = prng_below(&sim->prng, room / DISK_BLOCK + 1) * DISK_BLOCK;
    }
    uint8_t *zeros = calloc(1, (size_t)part + 1);
    ASSERT(zeros != NULL);
    if (part > 0) {
        put(content, 0, zeros, part);
    }
    free(zeros);
    if (err != OK) return refuse(sim, err);
    sync_file(content);
    return OK;
}

static enum err table_rename(void *ctx, const char *from, const char *to)
{
    struct sim_disk *sim = ctx;
    enum err err = begin(sim);
    const struct entry *entry = find(&sim->seen, from);
    if (err == OK && entry == NULL) err = ERR_NOT_FOUND;
    if (err != OK) return refuse(sim, err);
    change_folder(sim, CHANGE_RENAME, from, to, entry->file);
    return OK;
}

static enum err table_remove(void *ctx, const char *name)
{
    struct sim_disk *sim = ctx;
    enum err err = begin(sim);
    const struct entry *entry = find(&sim->seen, name);
    if (err == OK && entry == NULL) err = ERR_NOT_FOUND;
    if (err != OK) return refuse(sim, err);
    change_folder(sim, CHANGE_REMOVE, name, "", entry->file);
    free_unlinked(sim);
    return OK;
}

static enum err table_list(
    void *ctx, void (*each)(void *each_ctx, const char *name), void *each_ctx)
{
    struct sim_disk *sim = ctx;
    if (sim->cut) return ERR_IO;
    for (size_t i = 0; i < sim->seen.count; i++) {
        each(each_ctx, sim->seen.entries[i].name);
    }
    return OK;
}

static enum err table_space(void *ctx, uint64_t *free_out)
{
    struct sim_disk *sim = ctx;
    if (sim->cut) return ERR_IO;
    uint64_t used = used_space(sim);
    uint64_t capacity = sim->config.capacity == 0 ? UINT64_MAX / 2 : sim->config.capacity;
    *free_out = capacity > used ? capacity - used : 0;
    return OK;
}

static void table_submit(void *ctx, struct disk_op *op)
{
    struct sim_disk *sim = ctx;
    ASSERT(op->offset % DISK_BLOCK == 0 && op->size % DISK_BLOCK == 0 && op->size > 0);
    ASSERT((uintptr_t)op->at % DISK_BLOCK == 0);
    op->submitted_ns = sim->now_ns;
    struct flight flight = {.op = op, .order = sim->order++, .due_ns = sim->now_ns};
    uint64_t spread = sim->config.latency_max_ns - sim->config.latency_min_ns;
    flight.due_ns += (uint64_t)op->delay_us * 1000 + sim->config.latency_min_ns;
    if (spread > 0) {
        flight.due_ns += prng_below(&sim->prng, spread + 1);
    }
    sim->flights = grow(sim->flights, sim->flight_count + 1, sizeof *sim->flights);
    struct flight *kept = &sim->flights[sim->flight_count++];
    *kept = flight;
    enum err err = begin(sim);
    if (err != OK) {
        kept->result = err;
        if (sim->cut && sim->operations == sim->cut_at) {
            (void)refuse(sim, err); /* tears it with the others in flight */
            return;
        }
        if (!sim->cut && err != ERR_FULL) {
            struct file *content = file_of(sim, op->file);
            put_torn(sim, content, op->offset, op->at, op->size);
        }
        kept->done = true;
        return;
    }
    kept->lied = lies(sim, &kept->lie);
}

static void land(struct sim_disk *sim, struct flight *flight)
{
    struct disk_op *op = flight->op;
    struct file *content = file_of(sim, op->file);
    flight->done = true;
    if (flight->result != OK) return;
    ASSERT(content != NULL);
    flight->result = check_space(sim, content, op->offset + op->size);
    if (flight->result != OK) return;
    if (flight->lied) {
        put_lie(sim, content, flight->lie, op->offset, op->at, op->size);
    } else {
        put_durable(content, op->offset, op->at, op->size);
    }
    content->written = sim->order++;
}

static int table_poll(void *ctx)
{
    struct sim_disk *sim = ctx;
    uint64_t now = sim->now_ns;
    if (sim->vain >= 1000 && sim_disk_next_due(sim) != UINT64_MAX) {
        now = sim_disk_next_due(sim);
    }
    for (size_t i = 0; i < sim->flight_count; i++) {
        struct flight *flight = &sim->flights[i];
        if (!flight->done && flight->due_ns <= now) {
            land(sim, flight);
        }
    }
    int count = 0;
    for (size_t i = 0; i < sim->flight_count;) {
        struct flight flight = sim->flights[i];
        if (!flight.done) {
            i++;
            continue;
        }
        memmove(&sim->flights[i], &sim->flights[i + 1],
            (--sim->flight_count - i) * sizeof *sim->flights);
        flight.op->done(flight.op, flight.result);
        count++;
        i = 0; /* done() may have submitted more */
    }
    sim->vain = count > 0 ? 0 : sim->vain + 1;
    return count;
}

static enum err table_write_durable(
    void *ctx, disk_file file, uint64_t offset, const void *at, size_t size)
{
    struct sim_disk *sim = ctx;
    struct file *content = file_of(sim, file);
    if (content == NULL) return ERR_IO;
    bool was_cut = sim->cut;
    enum err err = begin(sim);
    if (err == OK) {
        err = check_space(sim, content, offset + size);
    }
    if (err != OK) {
        if (err != ERR_FULL && !was_cut) {
            put_torn(sim, content, offset, at, size);
        }
        return refuse(sim, err);
    }
    enum sim_disk_lie lie;
    if (lies(sim, &lie)) {
        put_lie(sim, content, lie, offset, at, size);
    } else {
        put_durable(content, offset, at, size);
    }
    content->written = sim->order++;
    return OK;
}

static void table_set_wake(void *ctx, void (*wake)(void *wake_ctx), void *wake_ctx)
{
    struct sim_disk *sim = ctx;
    sim->wake = wake;
    sim->wake_ctx = wake_ctx;
}

struct disk sim_disk_table(struct sim_disk *sim)
{
    return (struct disk){
        .ctx = sim,
        .name = "sim",
        .open = table_open,
        .close = table_close,
        .size = table_size,
        .read = table_read,
        .write = table_write,
        .sync = table_sync,
        .sync_folder = table_sync_folder,
        .fill = table_fill,
        .rename = table_rename,
        .remove = table_remove,
        .list = table_list,
        .space = table_space,
        .submit = table_submit,
        .poll = table_poll,
        .write_durable = table_write_durable,
        .set_wake = table_set_wake,
    };
}

/* Control */

struct sim_disk *sim_disk_create(const struct sim_disk_config *config)
{
    struct sim_disk *sim = calloc(1, sizeof *sim);
    ASSERT(sim != NULL);
    sim->config = *config;
    if (sim->config.sector == 0) {
        sim->config.sector = 512;
    }
    ASSERT(sim->config.latency_max_ns >= sim->config.latency_min_ns);
    prng_init(&sim->prng, config->seed);
    return sim;
}

void sim_disk_destroy(struct sim_disk *sim)
{
    if (sim == NULL) return;
    for (size_t i = 0; i < sim->file_count; i++) {
        free(sim->files[i].seen);
        free(sim->files[i].kept);
        free(sim->files[i].extents);
        free(sim->files[i].broken);
    }
    free(sim->files);
    free(sim->seen.entries);
    free(sim->kept.entries);
    free(sim->changes);
    free(sim->handles);
    free(sim->flights);
    free(sim);
}

void sim_disk_run_until(struct sim_disk *sim, uint64_t now_ns)
{
    if (now_ns > sim->now_ns) {
        sim->now_ns = now_ns;
    }
    bool any = false;
    for (size_t i = 0; i < sim->flight_count; i++) {
        any = any || sim->flights[i].done || sim->flights[i].due_ns <= sim->now_ns;
    }
    if (any && sim->wake != NULL) {
        sim->wake(sim->wake_ctx);
    }
}

void sim_disk_run_all(struct sim_disk *sim)
{
    size_t left = 0;
    for (size_t i = 0; i < sim->flight_count; i++) {
        left += !sim->flights[i].done;
    }
    for (; left > 0; left--) {
        size_t pick = (size_t)prng_below(&sim->prng, left);
        for (size_t i = 0; i < sim->flight_count; i++) {
            if (sim->flights[i].done) continue;
            if (pick-- > 0) continue;
            land(sim, &sim->flights[i]);
            break;
        }
    }
    if (sim->flight_count > 0 && sim->wake != NULL) {
        sim->wake(sim->wake_ctx);
    }
}

uint64_t sim_disk_next_due(const struct sim_disk *sim)
{
    uint64_t next = UINT64_MAX;
    for (size_t i = 0; i < sim->flight_count; i++) {
        if (!sim->flights[i].done && sim->flights[i].due_ns < next) {
            next = sim->flights[i].due_ns;
        }
    }
    return next;
}

uint64_t sim_disk_operations(const struct sim_disk *sim)
{
    return sim->operations;
}

/* Writes in flight leave a random part of themselves behind and end with an error. */
static void drop_flights(struct sim_disk *sim)
{
    for (size_t i = 0; i < sim->flight_count; i++) {
        struct flight *flight = &sim->flights[i];
        if (flight->done) continue;
        struct file *content = file_of(sim, flight->op->file);
        if (content != NULL) {
            put_torn(sim, content, flight->op->offset, flight->op->at, flight->op->size);
        }
        flight->done = true;
        flight->result = ERR_IO;
    }
}

static void cut_file(struct sim_disk *sim, struct file *file)
{
    for (size_t i = 0; i < file->extent_count; i++) {
        const struct extent *extent = &file->extents[i];
        uint64_t fate = prng_below(&sim->prng, 4);
        for (uint64_t done = 0; done < extent->size; done += sim->config.sector) {
            uint64_t part = extent->size - done;
            part = part < sim->config.sector ? part : sim->config.sector;
            if (fate == 1 || (fate > 1 && prng_chance(&sim->prng, 1, 2))) {
                keep(file, extent->offset + done, part);
            }
        }
    }
    file->extent_count = 0;
    if (file->seen_size > file->kept_size) {
        file->kept_size += prng_below(&sim->prng, file->seen_size - file->kept_size + 1);
    }
    /* What lies behind the end must read as zeros if the file grows again. */
    memset(file->kept + file->kept_size, 0, (size_t)(file->capacity - file->kept_size));
    memcpy(file->seen, file->kept, (size_t)file->capacity);
    file->seen_size = file->kept_size;
}

void sim_disk_cut(struct sim_disk *sim)
{
    sim->cut = true;
    drop_flights(sim);
    for (size_t i = 0; i < sim->file_count; i++) {
        if (sim->files[i].capacity > 0) {
            cut_file(sim, &sim->files[i]);
        }
    }
    size_t survive = (size_t)prng_below(&sim->prng, sim->change_count + 1);
    for (size_t i = 0; i < survive; i++) {
        apply_change(&sim->kept, &sim->changes[i]);
    }
    sim->change_count = 0;
    sim->seen.count = 0;
    for (size_t i = 0; i < sim->kept.count; i++) {
        link_file(&sim->seen, sim->kept.entries[i].name, sim->kept.entries[i].file);
    }
}

void sim_disk_cut_at(struct sim_disk *sim, uint64_t operation)
{
    sim->cut_at = operation == 0 ? 0 : sim->operations + operation;
}

bool sim_disk_is_cut(const struct sim_disk *sim)
{
    return sim->cut;
}

void sim_disk_kill(struct sim_disk *sim)
{
    for (size_t i = 0; i < sim->flight_count; i++) {
        struct flight *flight = &sim->flights[i];
        struct file *content = file_of(sim, flight->op->file);
        if (flight->done || content == NULL) continue;
        if (prng_chance(&sim->prng, 1, 2)) {
            /* Written, but its flush never came. */
            put(content, flight->op->offset, flight->op->at, flight->op->size);
        }
        flight->done = true;
        flight->result = ERR_IO;
    }
    sim->cut = true;
}

void sim_disk_restart(struct sim_disk *sim)
{
    ASSERT(sim->flight_count == 0);
    sim->cut = false;
    sim->cut_at = 0;
    sim->fail_at = 0;
    sim->fail_end = 0;
    sim->lie_at = 0;
    sim->wake = NULL;
    for (size_t i = 0; i < sim->handle_count; i++) {
        sim->handles[i].open = false;
    }
    free_unlinked(sim);
}

void sim_disk_fail_at(struct sim_disk *sim, uint64_t operation, uint64_t count, enum err error)
{
    sim->fail_at = operation == 0 ? 0 : sim->operations + operation;
    sim->fail_end = operation == 0 ? 0 : sim->fail_at + count;
    sim->fail_with = error;
}

void sim_disk_lie_at(struct sim_disk *sim, uint64_t operation, enum sim_disk_lie lie)
{
    sim->lie_at = operation == 0 ? 0 : sim->operations + operation;
    sim->lie = lie;
}

void sim_disk_set_capacity(struct sim_disk *sim, uint64_t capacity)
{
    sim->config.capacity = capacity;
}

void sim_disk_set_latency(struct sim_disk *sim, uint64_t min_ns, uint64_t max_ns)
{
    ASSERT(max_ns >= min_ns);
    sim->config.latency_min_ns = min_ns;
    sim->config.latency_max_ns = max_ns;
}

static struct file *named(const struct sim_disk *sim, const char *name)
{
    const struct entry *entry = find(&sim->seen, name);
    return entry == NULL ? NULL : &sim->files[entry->file];
}

bool sim_disk_flip(struct sim_disk *sim, const char *name, uint64_t offset, int bit)
{
    struct file *file = named(sim, name);
    if (file == NULL || offset >= file->seen_size) return false;
    file->seen[offset] = (uint8_t)(file->seen[offset] ^ (1u << bit));
    file->kept[offset] = (uint8_t)(file->kept[offset] ^ (1u << bit));
    return true;
}

bool sim_disk_break_block(struct sim_disk *sim, const char *name, uint64_t offset)
{
    struct file *file = named(sim, name);
    if (file == NULL || offset >= file->seen_size) return false;
    file->broken = grow(file->broken, file->broken_count + 1, sizeof *file->broken);
    file->broken[file->broken_count++] = offset / DISK_BLOCK * DISK_BLOCK;
    return true;
}

bool sim_disk_peek(struct sim_disk *sim, const char *name, uint64_t offset, void *at, size_t size)
{
    const struct file *file = named(sim, name);
    if (file == NULL || offset + size > file->seen_size) return false;
    memcpy(at, file->seen + offset, size);
    return true;
}

void sim_disk_poke(
    struct sim_disk *sim, const char *name, uint64_t offset, const void *at, size_t size)
{
    disk_file handle;
    bool was_cut = sim->cut;
    sim->cut = false;
    enum err err = table_open(sim, name, DISK_CREATE, &handle);
    ASSERT(err == OK);
    put_durable(file_of(sim, handle), offset, at, size);
    table_close(sim, handle);
    err = table_sync_folder(sim);
    ASSERT(err == OK);
    sim->cut = was_cut;
}

void sim_disk_newest(const struct sim_disk *sim, char *name_out, size_t size)
{
    uint64_t newest = 0;
    name_out[0] = '\0';
    for (size_t i = 0; i < sim->seen.count; i++) {
        const struct entry *entry = &sim->seen.entries[i];
        if (sim->files[entry->file].written < newest) continue;
        newest = sim->files[entry->file].written;
        (void)snprintf(name_out, size, "%s", entry->name);
    }
}

uint64_t sim_disk_file_size(const struct sim_disk *sim, const char *name)
{
    const struct file *file = named(sim, name);
    return file == NULL ? 0 : file->seen_size;
}

static void *copy_of(const void *from, size_t count, size_t size)
{
    void *to = grow(NULL, count, size);
    if (count > 0) {
        memcpy(to, from, count * size);
    }
    return to;
}

static void clone_folder(struct folder *to, const struct folder *from)
{
    for (size_t i = 0; i < from->count; i++) {
        link_file(to, from->entries[i].name, from->entries[i].file);
    }
}

struct sim_disk *sim_disk_clone(const struct sim_disk *sim, uint64_t seed)
{
    ASSERT(sim->flight_count == 0);
    struct sim_disk_config config = sim->config;
    config.seed = seed;
    struct sim_disk *copy = sim_disk_create(&config);
    copy->now_ns = sim->now_ns;
    copy->files = grow(NULL, sim->file_count, sizeof *copy->files);
    copy->file_count = sim->file_count;
    for (size_t i = 0; i < sim->file_count; i++) {
        const struct file *from = &sim->files[i];
        struct file *to = &copy->files[i];
        *to = (struct file){0};
        if (from->capacity == 0) continue;
        reserve(to, from->capacity);
        memcpy(to->seen, from->seen, (size_t)from->capacity);
        memcpy(to->kept, from->kept, (size_t)from->capacity);
        to->seen_size = from->seen_size;
        to->kept_size = from->kept_size;
        to->extents = copy_of(from->extents, from->extent_count, sizeof *to->extents);
        to->extent_count = from->extent_count;
        to->extent_capacity = from->extent_count == 0 ? 1 : from->extent_count;
        to->broken = copy_of(from->broken, from->broken_count, sizeof *to->broken);
        to->broken_count = from->broken_count;
    }
    clone_folder(&copy->seen, &sim->seen);
    clone_folder(&copy->kept, &sim->kept);
    copy->changes = copy_of(sim->changes, sim->change_count, sizeof *copy->changes);
    copy->change_count = sim->change_count;
    return copy;
}

uint64_t sim_disk_hash(const struct sim_disk *sim)
{
    /* The order of the list depends on removals; the sum does not. */
    uint64_t sum = 0;
    for (size_t i = 0; i < sim->kept.count; i++) {
        const struct entry *entry = &sim->kept.entries[i];
        const struct file *file = &sim->files[entry->file];
        uint64_t seed = hash64(0, bytes_of_text(entry->name));
        sum += hash64(seed, bytes_of(file->kept, (size_t)file->kept_size));
    }
    return sum;
}
