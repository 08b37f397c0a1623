#define _GNU_SOURCE
#include "wal/wal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "base/crc32c.h"
#include "base/hash.h"
#include "base/logger.h"
#include "wal/wal_internal.h"

/* The log as its owner sees it: append, flush, durable, trim.
 *
 * Life of a record. wal_append() writes its header into the open chunk and hands out the place of
 * the payload. wal_flush() says that all payloads are there. As soon as fewer than `depth` writes
 * are in flight, the chunk is closed, given its place in the current slot (or in the next spare
 * one), its checksums and its promise, and submitted as one durable write; what is appended
 * meanwhile collects in the next chunk. On completion the durable mark moves, in order of LSN. The
 * chunk stays readable for wal_next_record() until released, then goes back to the pool.
 *
 * Placement is decided when a batch is sent, not when its records arrive, so the promise in it is as
 * fresh as can be and a batch may wait for a slot. The rule of placement is so simple (it fits into
 * the current slot or goes to the start of the next) that `plan` can run it ahead: admission refuses
 * what the slots at hand cannot take, and what was admitted never fails for lack of space.
 *
 * The part of a checksum that covers the payload is computed at flush even if the batch must wait,
 * so that little is left to do between two writes.
 *
 * A slot becomes spare again when all its records are trimmed, nobody reads it, and a later segment
 * has reached the disk: at any moment the newest durable segment is intact, whatever happens to the
 * first write of the next. */

static const uint64_t RETRY_NS = 1000000000;

static uint64_t now_ns(const struct wal *wal)
{
    return wal->io.clock.monotonic_ns(wal->io.clock.ctx);
}

static void count(_Atomic uint64_t *counter, uint64_t more)
{
    uint64_t value = atomic_load_explicit(counter, memory_order_relaxed);
    atomic_store_explicit(counter, value + more, memory_order_relaxed);
}

static uint64_t get(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

static void set(_Atomic uint64_t *counter, uint64_t value)
{
    atomic_store_explicit(counter, value, memory_order_relaxed);
}

/* Slots */

void slot_name(uint32_t number, char name[SLOT_NAME])
{
    (void)snprintf(name, SLOT_NAME, "slot-%04u", number);
}

void slot_list_push(struct slot_list *list, struct slot *slot)
{
    slot->next = NULL;
    if (list->last != NULL) {
        list->last->next = slot;
    } else {
        list->first = slot;
    }
    list->last = slot;
    list->count++;
}

struct slot *slot_list_pop(struct slot_list *list)
{
    struct slot *slot = list->first;
    if (slot == NULL) return NULL;
    list->first = slot->next;
    if (list->first == NULL) {
        list->last = NULL;
    }
    list->count--;
    slot->next = NULL;
    return slot;
}

void slot_mark(struct slot *slot, lsn_t first, uint64_t offset, uint32_t previous_crc)
{
    size_t part = (size_t)(offset / (slot->size / SLOT_MARKS + 1));
    ASSERT(part < SLOT_MARKS);
    if (slot->marks[part].lsn != 0) return;
    slot->marks[part] =
        (struct slot_mark){.lsn = first, .offset = offset, .previous_crc = previous_crc};
}

struct slot_mark slot_find(const struct slot *slot, lsn_t lsn)
{
    struct slot_mark best = {.lsn = slot->base, .offset = DISK_BLOCK, .previous_crc = slot->crc};
    for (int i = 0; i < SLOT_MARKS; i++) {
        if (slot->marks[i].lsn > lsn) break;
        if (slot->marks[i].lsn != 0) {
            best = slot->marks[i];
        }
    }
    return best;
}

static void slot_free(struct wal *wal, struct slot *slot)
{
    wal->io.disk.close(wal->io.disk.ctx, slot->file);
    free(slot);
}

static uint32_t slot_count(const struct wal *wal)
{
    return wal->used.count + wal->spare.count;
}

static void slots_changed(struct wal *wal)
{
    uint64_t bytes = 0;
    for (struct slot *slot = wal->used.first; slot != NULL; slot = slot->next) {
        bytes += slot->size;
    }
    bytes += wal->spare.count * wal->config.slot_size;
    set(&wal->bytes, bytes);
    atomic_store_explicit(&wal->slots_spare, wal->spare.count, memory_order_relaxed);
}

/* Makes a filled slot. It gets its name only when every block is written, so a slot file is never
 * half made. Runs in the filler's thread or the owner's; touches nothing of the log. */
static enum err slot_create(
    const struct disk *disk, uint32_t number, uint64_t size, struct slot **slot_out)
{
    char name[SLOT_NAME];
    char fresh[SLOT_NAME + 4];
    slot_name(number, name);
    (void)snprintf(fresh, sizeof fresh, "%s.new", name);
    struct slot *slot = calloc(1, sizeof *slot);
    if (slot == NULL) return ERR_NOMEM;
    slot->number = number;
    slot->size = size;
    enum err err = disk->open(disk->ctx, fresh, DISK_CREATE | DISK_DIRECT, &slot->file);
    if (err != OK) {
        free(slot);
        return err;
    }
    err = disk->fill(disk->ctx, slot->file, size);
    if (err == OK) {
        err = disk->rename(disk->ctx, fresh, name);
    }
    if (err == OK) {
        err = disk->sync_folder(disk->ctx);
    }
    if (err != OK) {
        disk->close(disk->ctx, slot->file);
        /* Gives the space back; if even that fails, opening removes it. */
        (void)!disk->remove(disk->ctx, fresh);
        free(slot);
        return err;
    }
    *slot_out = slot;
    return OK;
}

static void *filler_main(void *argument)
{
    struct wal *wal = argument;
    struct filler *filler = &wal->filler;
    /* Filling must not compete with the log's own writes. */
    (void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 10);
    pthread_mutex_lock(&filler->lock);
    while (!filler->stop) {
        if (!filler->wanted || atomic_load(&filler->ready)) {
            pthread_cond_wait(&filler->work, &filler->lock);
            continue;
        }
        uint32_t number = filler->number;
        pthread_mutex_unlock(&filler->lock);
        struct slot *slot = NULL;
        enum err err = slot_create(&wal->io.disk, number, wal->config.slot_size, &slot);
        pthread_mutex_lock(&filler->lock);
        filler->slot = slot;
        filler->result = err;
        atomic_store(&filler->ready, true);
        if (err == OK && wal->config.wake != NULL) {
            pthread_mutex_unlock(&filler->lock);
            wal->config.wake(wal->config.ctx);
            pthread_mutex_lock(&filler->lock);
        }
    }
    pthread_mutex_unlock(&filler->lock);
    return NULL;
}

static enum err filler_start(struct wal *wal)
{
    struct filler *filler = &wal->filler;
    pthread_mutex_init(&filler->lock, NULL);
    pthread_cond_init(&filler->work, NULL);
    if (pthread_create(&filler->thread, NULL, filler_main, wal) != 0) {
        pthread_cond_destroy(&filler->work);
        pthread_mutex_destroy(&filler->lock);
        return ERR_NOMEM;
    }
    filler->running = true;
    return OK;
}

static void filler_stop(struct wal *wal)
{
    struct filler *filler = &wal->filler;
    if (!filler->running) return;
    pthread_mutex_lock(&filler->lock);
    filler->stop = true;
    pthread_cond_signal(&filler->work);
    pthread_mutex_unlock(&filler->lock);
    pthread_join(filler->thread, NULL);
    if (filler->slot != NULL) {
        slot_free(wal, filler->slot);
    }
    pthread_cond_destroy(&filler->work);
    pthread_mutex_destroy(&filler->lock);
    filler->running = false;
}

static void slot_made(struct wal *wal, struct slot *slot, enum err err)
{
    if (err == OK) {
        slot_list_push(&wal->spare, slot);
        wal->retry_ns = 0;
        slots_changed(wal);
        return;
    }
    log_warn("a slot of the log cannot be created; trying again every second", "error=%s spare=%u",
        err_name(err), wal->spare.count);
    wal->retry_ns = now_ns(wal) + RETRY_NS;
}

static bool slot_wanted(const struct wal *wal)
{
    if (wal->spare.count >= wal->config.spare_slots) return false;
    uint64_t bytes = get(&wal->bytes) + wal->config.slot_size;
    return bytes <= wal->config.bytes_max;
}

/* Takes what the filler made and asks for more, or fills here. */
static void maintain(struct wal *wal)
{
    struct filler *filler = &wal->filler;
    if (filler->running && atomic_load_explicit(&filler->ready, memory_order_acquire)) {
        pthread_mutex_lock(&filler->lock);
        struct slot *slot = filler->slot;
        enum err err = filler->result;
        filler->slot = NULL;
        filler->wanted = false;
        atomic_store(&filler->ready, false);
        pthread_mutex_unlock(&filler->lock);
        wal->next_number -= err != OK;
        slot_made(wal, slot, err);
    }
    if (wal->poisoned || !slot_wanted(wal)) return;
    if (wal->retry_ns != 0 && now_ns(wal) < wal->retry_ns) return;
    if (!filler->running) {
        while (slot_wanted(wal)) {
            struct slot *slot = NULL;
            enum err err =
                slot_create(&wal->io.disk, wal->next_number, wal->config.slot_size, &slot);
            wal->next_number += err == OK;
            slot_made(wal, slot, err);
            if (err != OK) return;
        }
        return;
    }
    /* `wanted` is written by this thread alone. */
    if (filler->wanted) return;
    pthread_mutex_lock(&filler->lock);
    filler->wanted = true;
    filler->number = wal->next_number++;
    pthread_cond_signal(&filler->work);
    pthread_mutex_unlock(&filler->lock);
}

/* A slot is being filled and nothing has gone wrong with it: room comes by itself, in milliseconds. */
static bool slot_coming(const struct wal *wal)
{
    return wal->filler.running && wal->filler.wanted && wal->retry_ns == 0;
}

/* Gives trimmed slots back, oldest first. */
static void recycle(struct wal *wal)
{
    bool any = false;
    while (wal->used.count > 1) {
        struct slot *slot = wal->used.first;
        lsn_t last = PLANTED_BUG(6) ? slot->base : slot->end;
        if (slot->pins > 0 || last > get(&wal->trimmed)) break;
        if (slot->next->base > get(&wal->durable)) break;
        (void)slot_list_pop(&wal->used);
        any = true;
        if (slot->size == wal->config.slot_size) {
            memset(slot->marks, 0, sizeof slot->marks);
            slot_list_push(&wal->spare, slot);
            continue;
        }
        char name[SLOT_NAME];
        slot_name(slot->number, name);
        /* The size was changed by configuration. A file that stays is found again at open. */
        (void)!wal->io.disk.remove(wal->io.disk.ctx, name);
        slot_free(wal, slot);
    }
    if (any) {
        slots_changed(wal);
    }
}

/* Chunks */

static struct chunk *chunk_make(struct wal *wal, size_t span)
{
    size_t memory = wal->chunk_size;
    bool ordinary = DISK_BLOCK + BATCH_HEADER + span <= memory;
    if (ordinary && wal->pool != NULL) {
        struct chunk *chunk = wal->pool;
        wal->pool = chunk->next;
        wal->pooled--;
        return chunk;
    }
    if (!ordinary) {
        memory = DISK_BLOCK + round_up(BATCH_HEADER + span, DISK_BLOCK);
    }
    struct chunk *chunk = calloc(1, sizeof *chunk);
    if (chunk == NULL) return NULL;
    chunk->memory = aligned_alloc(DISK_BLOCK, memory);
    if (chunk->memory == NULL) {
        free(chunk);
        return NULL;
    }
    chunk->capacity = memory - DISK_BLOCK;
    chunk->pooled = ordinary;
    return chunk;
}

static void chunk_free(struct chunk *chunk)
{
    free(chunk->memory);
    free(chunk);
}

static void chunk_drop(struct wal *wal, struct chunk *chunk)
{
    if (wal->seek_chunk == chunk) {
        wal->seek_chunk = NULL;
    }
    if (!chunk->pooled || wal->pooled >= CHUNK_POOL) {
        chunk_free(chunk);
        return;
    }
    chunk->next = wal->pool;
    wal->pool = chunk;
    wal->pooled++;
}

static void plan_place(struct wal_plan *plan, uint64_t slot_size, size_t batch)
{
    uint64_t span = round_up(batch, DISK_BLOCK);
    if (plan->offset + span > slot_size) {
        plan->slots++;
        plan->offset = DISK_BLOCK;
    }
    plan->offset += span;
}

static void chunk_close(struct wal *wal)
{
    struct chunk *chunk = wal->open;
    if (chunk == NULL) return;
    plan_place(&wal->plan, wal->config.slot_size, chunk->size);
    wal->open = NULL;
}

static struct chunk *chunk_open(struct wal *wal, size_t span)
{
    struct chunk *chunk = chunk_make(wal, span);
    if (chunk == NULL) return NULL;
    chunk_close(wal);
    chunk->next = NULL;
    chunk->wal = wal;
    chunk->size = BATCH_HEADER;
    chunk->summed = BATCH_HEADER;
    chunk->first = wal->next;
    chunk->records = 0;
    chunk->sent = false;
    chunk->done = false;
    chunk->result = OK;
    if (wal->newest != NULL) {
        wal->newest->next = chunk;
    } else {
        wal->oldest = chunk;
    }
    wal->newest = chunk;
    if (wal->unsent == NULL) {
        wal->unsent = chunk;
    }
    if (wal->undurable == NULL) {
        wal->undurable = chunk;
    }
    wal->open = chunk;
    return chunk;
}

/* Sums the payloads that are complete. */
static void chunk_sum(struct chunk *chunk)
{
    uint8_t *batch = chunk_batch(chunk);
    size_t offset = chunk->summed;
    while (offset < chunk->size) {
        uint8_t *at = batch + offset;
        store_u32(at, record_sum_payload(at));
        offset += record_span(load_u32(at + 4));
    }
    chunk->summed = offset;
}

/* Starts a segment in the next spare slot. The header goes into the block in front of the batch
 * that opens it, and with it to the disk. */
static bool segment_start(struct wal *wal, lsn_t base, uint8_t *block)
{
    struct slot *slot = slot_list_pop(&wal->spare);
    if (slot == NULL) return false;
    struct slot *before = wal->used.last;
    struct segment_header header = {
        .sequence = ++wal->sequence,
        .base_lsn = base,
        .promise = get(&wal->durable),
        .slot_size = slot->size,
        .wall_ms = wal->io.clock.wall_ms(wal->io.clock.ctx),
    };
    memcpy(header.store_id, wal->config.store_id, 16);
    if (wal->starting) {
        header.prev_sequence = wal->recovered.prev_sequence;
        header.prev_end_lsn = wal->recovered.end;
        header.prev_end_offset = wal->recovered.prev_offset;
        header.flags = wal->recovered.lost ? SEGMENT_CUT : 0;
        wal->starting = false;
    } else {
        header.prev_sequence = before->sequence;
        header.prev_end_lsn = before->end;
        header.prev_end_offset = before->end_offset;
    }
    /* Differs between lives of a slot even if the sequence should repeat after a lost header. */
    uint64_t mixed[4] = {header.sequence, base, (uint64_t)header.wall_ms, now_ns(wal)};
    header.nonce = hash64(wal->io.seed, bytes_of(mixed, sizeof mixed));
    segment_encode(&header, block);
    slot->sequence = header.sequence;
    slot->nonce = header.nonce;
    slot->crc = header.crc;
    slot->base = base;
    slot->cover = header.prev_end_lsn + 1;
    slot->end = base - 1;
    slot->end_offset = DISK_BLOCK;
    memset(slot->marks, 0, sizeof slot->marks);
    slot_list_push(&wal->used, slot);
    wal->previous_crc = header.crc;
    slots_changed(wal);
    return true;
}

/* Gives the batch its place, checksums and promise. False: no slot is free for it yet. */
static bool chunk_place(struct wal *wal, struct chunk *chunk)
{
    uint8_t *batch = chunk_batch(chunk);
    size_t span = round_up(chunk->size, DISK_BLOCK);
    struct slot *slot = wal->used.last;
    bool fresh = wal->starting || slot->end_offset + span > slot->size;
    if (fresh) {
        if (!segment_start(wal, chunk->first, chunk->memory)) return false;
        slot = wal->used.last;
        if (wal->plan.slots > 0) {
            wal->plan.slots--;
        }
    }
    ASSERT(chunk->summed == chunk->size);
    ASSERT(slot->end + 1 == chunk->first);
    memset(batch + chunk->size, 0, span - chunk->size);
    uint32_t seed = record_seed(slot->sequence, slot->nonce);
    uint32_t all = 0;
    for (size_t offset = BATCH_HEADER; offset < chunk->size;) {
        uint8_t *at = batch + offset;
        store_u32(at, record_sum_header(seed, load_u32(at), at));
        all = crc32c(all, at, 4);
        offset += record_span(load_u32(at + 4));
    }
    chunk->promise = get(&wal->durable);
    chunk->sequence = slot->sequence;
    struct batch_header header = {
        .sequence = slot->sequence,
        .nonce = slot->nonce,
        .first_lsn = chunk->first,
        .promise = chunk->promise,
        .wall_ms = wal->io.clock.wall_ms(wal->io.clock.ctx),
        .records = chunk->records,
        .bytes = (uint32_t)(chunk->size - BATCH_HEADER),
        .block = (uint32_t)(slot->end_offset / DISK_BLOCK),
        .previous_crc = wal->previous_crc,
        .records_crc = all,
    };
    batch_encode(wal->seed, &header, batch);
    slot_mark(slot, chunk->first, slot->end_offset, wal->previous_crc);
    wal->previous_crc = header.crc;
    chunk->op.file = slot->file;
    chunk->op.offset = fresh ? 0 : slot->end_offset;
    chunk->op.at = fresh ? chunk->memory : batch;
    chunk->op.size = fresh ? DISK_BLOCK + span : span;
    slot->end = chunk_last(chunk);
    slot->end_offset += span;
    return true;
}

/* A write ended; the order of LSN is restored by advance(). */
static void chunk_written(struct disk_op *op, enum err result)
{
    struct chunk *chunk = op->ctx;
    struct wal *wal = chunk->wal;
    ASSERT(chunk->sent && !chunk->done && wal->in_flight > 0);
    wal->in_flight--;
    chunk->done = true;
    chunk->result = result;
    uint64_t waited = (uint64_t)op->delay_us * 1000;
    uint64_t took = now_ns(wal) - chunk->started_ns;
    histogram_record(&wal->sync_ns, took > waited ? took - waited : 0);
    if (result == OK || PLANTED_BUG(3)) return;
    if (!wal->poisoned) {
        log_error("a write of the log failed; durability is lost", "error=%s first_lsn=%llu",
            err_name(result), (unsigned long long)chunk->first);
    }
    wal->poisoned = true;
}

/* Moves the durable mark over what is complete, in order of LSN. */
static void advance(struct wal *wal)
{
    while (wal->undurable != NULL && wal->undurable->done && !wal->poisoned) {
        struct chunk *chunk = wal->undurable;
        set(&wal->durable, chunk_last(chunk));
        wal->promised = chunk->promise;
        wal->durable_sequence = chunk->sequence;
        wal->undurable = chunk->next;
    }
}

static void report_durable(struct wal *wal)
{
    lsn_t durable = get(&wal->durable);
    if (durable <= wal->reported) return;
    wal->reported = durable;
    if (wal->config.on_durable != NULL) {
        wal->config.on_durable(wal->config.ctx, durable);
    }
}

/* Readies the next batch that may go. */
static struct chunk *chunk_take(struct wal *wal)
{
    struct chunk *chunk = wal->unsent;
    if (chunk == NULL || wal->poisoned || chunk_last(chunk) > wal->flushed) return NULL;
    if (chunk == wal->open) {
        chunk_close(wal);
    }
    chunk_sum(chunk);
    if (!chunk_place(wal, chunk)) return NULL;
    chunk->sent = true;
    chunk->started_ns = now_ns(wal);
    chunk->op.delay_us = wal->delay_us;
    chunk->op.done = chunk_written;
    chunk->op.ctx = chunk;
    wal->delay_us = 0;
    wal->unsent = chunk->next;
    wal->in_flight++;
    count(&wal->batches, 1);
    count(&wal->written_bytes, chunk->op.size);
    histogram_record(&wal->batch_records, chunk->records);
    return chunk;
}

static void pump(struct wal *wal)
{
    while (wal->in_flight < wal->config.depth) {
        struct chunk *chunk = chunk_take(wal);
        if (chunk == NULL) return;
        wal->io.disk.submit(wal->io.disk.ctx, &chunk->op);
        if (PLANTED_BUG(1)) {
            wal->config.on_durable(wal->config.ctx, chunk_last(chunk));
        }
    }
}

static void mark_flushed(struct wal *wal)
{
    wal->flushed = wal->next - 1;
    for (struct chunk *chunk = wal->unsent; chunk != NULL; chunk = chunk->next) {
        chunk_sum(chunk);
    }
}

/* Admission */

static bool slots_suffice(const struct wal *wal, size_t size)
{
    uint64_t slot_size = wal->config.slot_size;
    struct wal_plan plan = wal->plan;
    size_t span = record_span(size);
    size_t batch = BATCH_HEADER + span;
    if (wal->open != NULL) {
        if (wal->open->capacity - wal->open->size >= span) {
            batch = wal->open->size + span;
        } else {
            plan_place(&plan, slot_size, wal->open->size);
        }
    }
    plan_place(&plan, slot_size, batch);
    /* Room for one MARK, which nobody asks admission for. */
    plan_place(&plan, slot_size, DISK_BLOCK);
    return plan.slots <= wal->spare.count;
}

enum err wal_admit(struct wal *wal, size_t size)
{
    if (wal->poisoned) return ERR_POISONED;
    if (size > wal_record_size_max(wal)) return ERR_TOO_LARGE;
    bool refused = atomic_load_explicit(&wal->full, memory_order_relaxed);
    size_t open = wal->open == NULL ? 0 : wal->open->size;
    uint64_t most = wal->plan.offset + open + record_span(size) + 4 * (uint64_t)DISK_BLOCK;
    if (wal->plan.slots == 0 && most <= wal->config.slot_size && !refused) return OK;
    bool fits = slots_suffice(wal, size);
    if (!fits) {
        maintain(wal);
        fits = slots_suffice(wal, size);
        /* to refuse for want of space that is on its way would be a lie */
        if (!fits && slot_coming(wal)) return ERR_AGAIN;
    }
    if (fits == refused) {
        atomic_store_explicit(&wal->full, !fits, memory_order_relaxed);
        if (!fits) {
            log_warn("the log is full; writes are refused", "slots=%u bytes=%llu", slot_count(wal),
                (unsigned long long)get(&wal->bytes));
        }
    }
    return fits ? OK : ERR_FULL;
}

size_t wal_record_size_max(const struct wal *wal)
{
    return (size_t)(wal->config.slot_size / 2) - DISK_BLOCK;
}

/* The owner's calls */

void *wal_append(struct wal *wal, uint8_t type, uint64_t group, size_t size, lsn_t *lsn_out)
{
    ASSERT(size <= wal_record_size_max(wal));
    size_t span = record_span(size);
    struct chunk *chunk = wal->open;
    if (chunk == NULL || chunk->capacity - chunk->size < span) {
        chunk = chunk_open(wal, span);
        if (chunk == NULL) return NULL;
    }
    uint8_t *at = chunk_batch(chunk) + chunk->size;
    lsn_t lsn = wal->next++;
    record_begin(at, type, group, size, lsn);
    chunk->size += span;
    chunk->records++;
    set(&wal->last, lsn);
    count(&wal->payload_bytes, size);
    if (type != WAL_RECORD_MARK) {
        wal->last_data = lsn;
    }
    if (lsn_out != NULL) {
        *lsn_out = lsn;
    }
    return at + RECORD_HEADER;
}

lsn_t wal_next(const struct wal *wal)
{
    return wal->next;
}

void wal_flush(struct wal *wal, uint32_t delay_us)
{
    wal->delay_us = delay_us;
    mark_flushed(wal);
    pump(wal);
    maintain(wal);
}

void wal_flush_inline(struct wal *wal)
{
    if (wal->in_flight > 0) {
        wal_flush(wal, 0);
        return;
    }
    wal->delay_us = 0;
    mark_flushed(wal);
    for (;;) {
        struct chunk *chunk = chunk_take(wal);
        if (chunk == NULL) break;
        struct disk_op *op = &chunk->op;
        enum err err =
            wal->io.disk.write_durable(wal->io.disk.ctx, op->file, op->offset, op->at, op->size);
        chunk_written(op, err);
    }
    advance(wal);
    maintain(wal);
    report_durable(wal);
}

enum err wal_poll(struct wal *wal)
{
    if (wal->in_flight > 0) {
        (void)wal->io.disk.poll(wal->io.disk.ctx);
    }
    advance(wal);
    /* The next write first: the owner's work on what is durable now goes on beside it. An owner that
     * works in turns sends it at the end of this one, with what arrives until then. */
    if (!wal->config.turns) pump(wal);
    report_durable(wal);
    if (wal->poisoned) return ERR_POISONED;
    maintain(wal);
    if (atomic_load_explicit(&wal->full, memory_order_relaxed) && slots_suffice(wal, 0)) {
        atomic_store_explicit(&wal->full, false, memory_order_relaxed);
    }
    return OK;
}

static bool mark_due(const struct wal *wal)
{
    return !wal->poisoned && wal->undurable == NULL && wal->promised < wal->last_data;
}

void wal_idle(struct wal *wal)
{
    if (!mark_due(wal)) return;
    if (wal_append(wal, WAL_RECORD_MARK, 0, 0, NULL) == NULL) return;
    wal_flush(wal, 0);
}

bool wal_waiting(const struct wal *wal)
{
    return wal->unsent != NULL;
}

bool wal_in_flight(const struct wal *wal)
{
    return wal->in_flight > 0;
}

bool wal_next_record(struct wal *wal, lsn_t lsn, struct wal_record *record_out)
{
    struct chunk *chunk = wal->seek_chunk;
    size_t offset = wal->seek_offset;
    if (chunk == NULL || wal->seek_lsn != lsn) {
        chunk = wal->oldest;
        while (chunk != NULL && chunk_last(chunk) <= lsn) {
            chunk = chunk->next;
        }
        offset = BATCH_HEADER;
    } else if (offset == chunk->size) {
        chunk = chunk->next;
        offset = BATCH_HEADER;
    }
    if (chunk == NULL) return false;
    struct bytes rest = bytes_of(chunk_batch(chunk) + offset, chunk->size - offset);
    do {
        enum err err = record_next(&rest, record_out);
        ASSERT(err == OK);
    } while (record_out->lsn <= lsn);
    wal->seek_chunk = chunk;
    wal->seek_offset = (size_t)(rest.at - chunk_batch(chunk));
    wal->seek_lsn = record_out->lsn;
    return true;
}

void wal_release(struct wal *wal, lsn_t lsn)
{
    if (lsn > wal->released) {
        wal->released = lsn;
    }
    lsn_t durable = get(&wal->durable);
    lsn_t upto = wal->released < durable ? wal->released : durable;
    while (wal->oldest != NULL && chunk_last(wal->oldest) <= upto) {
        struct chunk *chunk = wal->oldest;
        /* Reported durable by another batch's completion cannot be: order of LSN. */
        ASSERT(chunk->done && chunk != wal->open);
        wal->oldest = chunk->next;
        if (wal->oldest == NULL) {
            wal->newest = NULL;
        }
        chunk_drop(wal, chunk);
    }
}

void wal_trim(struct wal *wal, lsn_t lsn)
{
    ASSERT(lsn <= get(&wal->durable));
    if (lsn <= get(&wal->trimmed)) return;
    set(&wal->trimmed, lsn);
    recycle(wal);
    pump(wal);
    maintain(wal);
}

lsn_t wal_lsn_before_end(const struct wal *wal, uint64_t bytes)
{
    uint64_t left = 0;
    for (const struct slot *slot = wal->used.first; slot != NULL; slot = slot->next)
        left += slot->size;
    lsn_t lsn = 0;
    for (const struct slot *slot = wal->used.first; slot->next != NULL; slot = slot->next) {
        if (left <= bytes) break;
        left -= slot->size;
        lsn = slot->end;
    }
    return lsn;
}

uint64_t wal_segment(const struct wal *wal)
{
    return wal->durable_sequence;
}

void wal_stats(const struct wal *wal, struct wal_stats *stats_out)
{
    *stats_out = (struct wal_stats){
        .last = get(&wal->last),
        .durable = get(&wal->durable),
        .trimmed = get(&wal->trimmed),
        .bytes = get(&wal->bytes),
        .batches = get(&wal->batches),
        .payload_bytes = get(&wal->payload_bytes),
        .written_bytes = get(&wal->written_bytes),
        .slots_spare = atomic_load_explicit(&wal->slots_spare, memory_order_relaxed),
        .full = atomic_load_explicit(&wal->full, memory_order_relaxed),
        .sync_ns = &wal->sync_ns,
        .batch_records = &wal->batch_records,
    };
}

/* Opening and closing */

/* Writes the batch that opens the segment of this run: one MARK, durable before anything is served.
 * From here on it is recorded where the log of the run before ended. On a full disk the segment waits for
 * a slot and then opens with the first batch: until then nothing is written, so nothing is decided. */
static enum err segment_first(struct wal *wal)
{
    wal->starting = true;
    if (wal->spare.count == 0) {
        struct slot *slot = NULL;
        enum err err = slot_create(&wal->io.disk, wal->next_number, wal->config.slot_size, &slot);
        if (err == ERR_FULL && wal->used.count > 0) {
            slot_made(wal, NULL, err);
            wal->plan = (struct wal_plan){.offset = wal->config.slot_size};
            return OK;
        }
        TRY(err);
        wal->next_number++;
        slot_list_push(&wal->spare, slot);
    }
    if (wal_append(wal, WAL_RECORD_MARK, 0, 0, NULL) == NULL) return ERR_NOMEM;
    struct chunk *chunk = wal->open;
    chunk_sum(chunk);
    wal->open = NULL;
    wal->unsent = NULL;
    bool placed = chunk_place(wal, chunk);
    ASSERT(placed);
    struct disk_op *op = &chunk->op;
    TRY(wal->io.disk.write_durable(wal->io.disk.ctx, op->file, op->offset, op->at, op->size));
    chunk->sent = true;
    chunk->done = true;
    wal->undurable = chunk->next;
    wal->flushed = chunk->first;
    wal->reported = chunk->first;
    wal->promised = chunk->promise;
    wal->durable_sequence = chunk->sequence;
    set(&wal->durable, chunk->first);
    wal->plan = (struct wal_plan){.offset = wal->used.last->end_offset};
    if (wal->config.on_replay == NULL) return OK;
    struct wal_record mark = {.lsn = chunk->first, .type = WAL_RECORD_MARK};
    return wal->config.on_replay(wal->config.ctx, &mark);
}

static void wal_free(struct wal *wal)
{
    filler_stop(wal);
    while (wal->oldest != NULL) {
        struct chunk *chunk = wal->oldest;
        wal->oldest = chunk->next;
        chunk_free(chunk);
    }
    while (wal->pool != NULL) {
        struct chunk *chunk = wal->pool;
        wal->pool = chunk->next;
        chunk_free(chunk);
    }
    struct slot *slot;
    while (
        (slot = slot_list_pop(&wal->used)) != NULL || (slot = slot_list_pop(&wal->spare)) != NULL) {
        slot_free(wal, slot);
    }
    free(wal);
}

static void config_defaults(struct wal_config *config)
{
    if (config->slot_size == 0) {
        config->slot_size = 64u << 20;
    }
    if (config->spare_slots == 0) {
        config->spare_slots = 2;
    }
    if (config->bytes_max == 0) {
        config->bytes_max = 4ull << 30;
    }
    if (config->depth == 0) {
        config->depth = 1;
    }
    /* With less than the current slot, the one before it and a spare the log cannot turn over. */
    if (config->bytes_max < 3 * config->slot_size) {
        config->bytes_max = 3 * config->slot_size;
    }
}

enum err wal_open(
    const struct wal_config *config, struct wal_recovery *report, struct wal **wal_out)
{
    ASSERT(config->io != NULL);
    memset(report, 0, sizeof *report);
    struct wal *wal = calloc(1, sizeof *wal);
    if (wal == NULL) return ERR_NOMEM;
    wal->config = *config;
    wal->io = *config->io;
    config_defaults(&wal->config);
    uint64_t slot_size = wal->config.slot_size;
    if (slot_size % DISK_BLOCK != 0 || slot_size < 8 * (uint64_t)DISK_BLOCK ||
        slot_size > 1u << 31) {
        (void)snprintf(report->detail, sizeof report->detail,
            "the slot size %llu is not a multiple of %d between 32 KiB and 2 GiB",
            (unsigned long long)slot_size, DISK_BLOCK);
        free(wal);
        return ERR_INVALID;
    }
    wal->seed = batch_seed(config->store_id);
    wal->chunk_size = slot_size / 2 < CHUNK_SIZE ? (size_t)slot_size / 2 : CHUNK_SIZE;
    wal->chunk_size -= wal->chunk_size % DISK_BLOCK;
    enum err err = recovery_run(wal, report, &wal->recovered);
    if (err != OK) goto out;
    /* a slot's name may be in the cache alone, if the process that made it died before it could sync the folder */
    err = config->io->disk.sync_folder(config->io->disk.ctx);
    if (err != OK) {
        (void)snprintf(report->detail, sizeof report->detail,
            "the folder of the log cannot be synced: %s", err_text(err));
        goto out;
    }
    wal->next = wal->recovered.base;
    wal->last_data = 0;
    wal->reported = wal->recovered.end;
    wal->flushed = wal->recovered.end;
    wal->durable_sequence = wal->used.last == NULL ? 0 : wal->used.last->sequence;
    set(&wal->last, wal->recovered.end);
    set(&wal->durable, wal->recovered.end);
    set(&wal->trimmed, config->applied);
    err = segment_first(wal);
    if (err != OK) {
        (void)snprintf(report->detail, sizeof report->detail,
            "the log cannot start a new segment: %s", err_text(err));
        goto out;
    }
    recycle(wal);
    if (wal->config.background) {
        err = filler_start(wal);
        if (err != OK) goto out;
    }
    maintain(wal);
    report->last = get(&wal->durable);
    report->slots = slot_count(wal);
    *wal_out = wal;
    return OK;
out:
    if (report->detail[0] == 0) {
        (void)snprintf(
            report->detail, sizeof report->detail, "the log cannot be read: %s", err_text(err));
    }
    wal_free(wal);
    return err;
}

void wal_close(struct wal *wal)
{
    if (wal == NULL) return;
    wal->config.on_durable = NULL;
    int rounds = 0;
    while (wal->in_flight > 0) {
        if (wal->io.disk.poll(wal->io.disk.ctx) > 0) {
            rounds = 0;
        } else if (++rounds > 2000) {
            nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
        }
        advance(wal);
        pump(wal);
    }
    if (mark_due(wal) && wal_append(wal, WAL_RECORD_MARK, 0, 0, NULL) != NULL) {
        wal_flush_inline(wal);
    }
    wal_free(wal);
}
