#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"
#include "wal/wal_internal.h"

/* Recovery: which slots carry the log, where it ends, and whether that end is honest.
 *
 * 1. Every slot's header is read. Valid ones form a chain, walked backwards from the newest by
 *    prev_sequence until the segment that holds applied + 1. Segments that are in no chain are
 *    leftovers: recycled slots, or the head start of a write that a crash took back.
 * 2. From there the batches are checked and replayed in order. A segment ends where its successor
 *    says it ended, whatever lies behind that place.
 * 3. The first thing that is not the expected batch, at LSN E, ends the log. It is a torn tail if nobody
 *    was ever told that E is durable. Somebody was, if any promise at or above E is found: in batch
 *    headers behind it, in other segments' headers, in batches of slots that lost their header, or in
 *    what the bottom store remembers. Then acknowledged records are damaged, and opening refuses.
 * 4. Damage below applied + 1 is skipped: the bottom store has those records.
 *
 * Promises are true for ever, wherever they are found, because the LSNs of a loss that an operator
 * accepted are never given out again; so all of them may be believed without asking in which life
 * of which slot they were written. */

enum { SCAN_WINDOW = 2 << 20, REPLAY_AHEAD = 16 };

/* Marks the number of a slot that was being made. */
#define HALF_MADE (1u << 31)
#define BOTTOM_STORE UINT32_MAX

struct segment {
    struct slot *slot;
    struct segment_header header;
    bool valid;
    bool chained;
    bool cut; /* the file is shorter than any slot was ever made */
    lsn_t cover; /* first LSN it answers for */
};

struct recovery {
    const struct wal_config *config;
    const struct disk *disk;
    uint32_t seed;
    struct wal_recovery *report;
    struct window window;
    bool read_only;

    uint32_t *numbers;
    size_t number_count;
    size_t number_capacity;
    bool list_failed;

    struct segment *segments; /* by number of the slot */
    size_t count;
    struct segment **chain; /* oldest first, from the one that holds applied + 1 */
    size_t chain_count;
    uint64_t hole; /* sequence of a segment that a newer one names and that is not there; 0: none */

    uint64_t sequence; /* highest seen anywhere */
    lsn_t promise; /* highest seen anywhere */
    uint32_t witness; /* number of the slot where that was, or BOTTOM_STORE */
    lsn_t seen; /* highest LSN in any intact batch header */
    bool hole_seen; /* a slot without header has batches of the hole */

    /* Where the scan ended. */
    size_t end_index;
    uint64_t end_offset;
    lsn_t expected;
    bool looks_torn;

    uint32_t damages;
    void (*found)(void *ctx, const char *sentence);
    void *found_ctx;
};

static void witness(struct recovery *r, lsn_t promise, uint32_t where)
{
    if (promise <= r->promise) return;
    r->promise = promise;
    r->witness = where;
}

/* Slots */

static void each_name(void *ctx, const char *name)
{
    struct recovery *r = ctx;
    if (strncmp(name, "slot-", 5) != 0) return;
    char *rest;
    unsigned long number = strtoul(name + 5, &rest, 10);
    if (rest - name < 9 || number > 9999999) return;
    if (*rest != 0 && strcmp(rest, ".new") != 0) return;
    uint32_t entry = (uint32_t)number | (*rest != 0 ? HALF_MADE : 0);
    if (r->number_count == r->number_capacity) {
        size_t capacity = r->number_capacity == 0 ? 64 : r->number_capacity * 2;
        uint32_t *numbers = realloc(r->numbers, capacity * sizeof *numbers);
        if (numbers == NULL) {
            r->list_failed = true;
            return;
        }
        r->numbers = numbers;
        r->number_capacity = capacity;
    }
    r->numbers[r->number_count++] = entry;
}

static int compare_numbers(const void *a, const void *b)
{
    const uint32_t *left = a;
    const uint32_t *right = b;
    return (*left > *right) - (*left < *right);
}

static enum err load_slot(struct recovery *r, uint32_t number)
{
    const struct disk *disk = r->disk;
    struct slot *slot = calloc(1, sizeof *slot);
    if (slot == NULL) return ERR_NOMEM;
    slot->number = number;
    char name[SLOT_NAME];
    slot_name(number, name);
    int flags = DISK_DIRECT | (r->read_only ? DISK_READ_ONLY : 0);
    enum err err = disk->open(disk->ctx, name, flags, &slot->file);
    if (err != OK) {
        free(slot);
        (void)snprintf(r->report->detail, sizeof r->report->detail, "%s cannot be opened: %s", name,
            err_text(err));
        return err;
    }
    struct segment *segment = &r->segments[r->count++];
    segment->slot = slot;
    TRY(disk->size(disk->ctx, slot->file, &slot->size));
    segment->cut = slot->size % DISK_BLOCK != 0 || slot->size < 2 * DISK_BLOCK;
    slot->size -= slot->size % DISK_BLOCK;
    if (slot->size < 2 * DISK_BLOCK) return OK;
    struct bytes block;
    window_seek(&r->window, slot->file, slot->size);
    size_t keep = r->window.capacity;
    r->window.capacity = DISK_BLOCK;
    err = window_get(&r->window, 0, DISK_BLOCK, &block);
    r->window.capacity = keep;
    TRY(err);
    struct segment_header *header = &segment->header;
    err = segment_decode(block, header);
    if (err == ERR_CORRUPT) return OK;
    if (err == ERR_MISMATCH) {
        (void)snprintf(r->report->detail, sizeof r->report->detail,
            "%s was written by a newer version of the program", name);
        return err;
    }
    if (memcmp(header->store_id, r->config->store_id, 16) != 0) {
        (void)snprintf(
            r->report->detail, sizeof r->report->detail, "%s belongs to another store", name);
        return ERR_MISMATCH;
    }
    segment->valid = true;
    segment->cut = segment->cut || slot->size < header->slot_size;
    segment->cover = header->prev_end_lsn + 1;
    if ((header->flags & SEGMENT_CUT) == 0 && segment->cover != header->base_lsn) {
        segment->cover = header->base_lsn;
    }
    slot->sequence = header->sequence;
    slot->nonce = header->nonce;
    slot->crc = header->crc;
    slot->base = header->base_lsn;
    slot->cover = segment->cover;
    slot->end = header->base_lsn - 1;
    slot->end_offset = DISK_BLOCK;
    if (header->sequence > r->sequence) {
        r->sequence = header->sequence;
    }
    if (header->base_lsn - 1 > r->seen) {
        r->seen = header->base_lsn - 1;
    }
    witness(r, header->promise, number);
    return OK;
}

static enum err load(struct recovery *r)
{
    const struct disk *disk = r->disk;
    TRY(disk->list(disk->ctx, each_name, r));
    if (r->list_failed) return ERR_NOMEM;
    if (r->number_count > 0) {
        qsort(r->numbers, r->number_count, sizeof *r->numbers, compare_numbers);
    }
    r->segments = calloc(r->number_count + 1, sizeof *r->segments);
    r->chain = calloc(r->number_count + 1, sizeof *r->chain);
    if (r->segments == NULL || r->chain == NULL) return ERR_NOMEM;
    for (size_t i = 0; i < r->number_count; i++) {
        uint32_t number = r->numbers[i] & ~HALF_MADE;
        if (number == r->numbers[i]) {
            TRY(load_slot(r, number));
            continue;
        }
        if (r->read_only) continue;
        char name[SLOT_NAME + 4];
        slot_name(number, name);
        memcpy(name + strlen(name), ".new", 5);
        /* A slot that was being made when the process ended; a leftover does no harm. */
        (void)!disk->remove(disk->ctx, name);
    }
    return OK;
}

/* Chain */

static struct segment *newest_below(struct recovery *r, uint64_t sequence)
{
    struct segment *best = NULL;
    for (size_t i = 0; i < r->count; i++) {
        struct segment *segment = &r->segments[i];
        if (!segment->valid || segment->header.sequence >= sequence) continue;
        if (best == NULL || segment->header.sequence > best->header.sequence) {
            best = segment;
        }
    }
    return best;
}

static bool links(const struct segment *older, const struct segment *newer)
{
    return older != NULL && older->header.sequence == newer->header.prev_sequence;
}

/* Fills r->chain. If a segment on the way is not there, what is newer than the hole cannot be used and
 * the chain ends below it; the promises of the newer ones will tell whether that is a loss. */
static void build_chain(struct recovery *r)
{
    lsn_t wanted = r->config->applied + 1;
    struct segment *segment = newest_below(r, UINT64_MAX);
    while (segment != NULL) {
        r->chain[r->chain_count++] = segment;
        if (segment->cover <= wanted) break;
        struct segment *before = newest_below(r, segment->header.prev_sequence + 1);
        if (!links(before, segment) && segment->header.prev_sequence != 0) {
            r->hole = segment->header.prev_sequence;
            r->chain_count = 0;
        } else if (segment->header.prev_sequence == 0) {
            before = NULL;
        }
        segment = before;
    }
    for (size_t i = 0; i < r->chain_count / 2; i++) {
        struct segment *other = r->chain[i];
        r->chain[i] = r->chain[r->chain_count - 1 - i];
        r->chain[r->chain_count - 1 - i] = other;
    }
    for (size_t i = 0; i < r->chain_count; i++) {
        r->chain[i]->chained = true;
    }
}

/* Promises */

/* Looks at every block of [offset, end) for an intact batch header. */
static enum err gather_slot(struct recovery *r, const struct segment *segment, uint64_t offset)
{
    const struct slot *slot = segment->slot;
    window_seek(&r->window, slot->file, slot->size);
    for (; offset + DISK_BLOCK <= slot->size; offset += DISK_BLOCK) {
        struct bytes block;
        TRY(window_get(&r->window, offset, DISK_BLOCK, &block));
        struct batch_header header;
        if (batch_decode(r->seed, block, &header) != OK) continue;
        bool own = segment->valid && header.sequence == slot->sequence;
        /* A batch of this very life was written by us, so its promise holds wherever it lies now. */
        if (!own && header.block != offset / DISK_BLOCK) continue;
        /* A leftover of the slot's life before: it was complete and trimmed. */
        if (segment->valid && !own) continue;
        if (own && header.nonce != slot->nonce) continue;
        witness(r, header.promise, slot->number);
        lsn_t last = header.first_lsn + header.records - 1;
        if (last > r->seen) {
            r->seen = last;
        }
        if (header.sequence > r->sequence) {
            r->sequence = header.sequence;
        }
        if (own) {
            r->looks_torn = true;
        } else if (header.sequence == r->hole) {
            r->hole_seen = true;
        }
    }
    return OK;
}

/* Reads every promise that could contradict an end at `segment`, `offset`. */
static enum err gather(struct recovery *r, const struct segment *segment, uint64_t offset)
{
    for (size_t i = 0; i < r->count; i++) {
        const struct segment *other = &r->segments[i];
        if (other == segment) {
            TRY(gather_slot(r, other, offset));
            continue;
        }
        bool newer = segment == NULL || other->header.sequence > segment->header.sequence;
        if (other->valid && !newer) continue;
        TRY(gather_slot(r, other, DISK_BLOCK));
    }
    return OK;
}

/* Scan */

static struct expect expectation(const struct segment *segment)
{
    return (struct expect){
        .sequence = segment->header.sequence,
        .nonce = segment->header.nonce,
        .first = segment->header.base_lsn,
        .previous_crc = segment->header.crc,
        .chained = true,
    };
}

/* The next intact batch of the segment behind a damaged place, or ERR_NOT_FOUND. */
static enum err resume(
    struct recovery *r, const struct segment *segment, uint64_t *offset, struct expect *expect)
{
    struct expect any = *expect;
    any.first = 0;
    any.chained = false;
    for (uint64_t at = *offset + DISK_BLOCK; at < segment->slot->size; at += DISK_BLOCK) {
        struct batch_header header;
        struct bytes records;
        enum err err = window_batch(&r->window, r->seed, at, &any, &header, &records);
        if (err == ERR_NOMEM) return err;
        if (err != OK || header.first_lsn < expect->first) continue;
        expect->first = header.first_lsn;
        expect->chained = false;
        *offset = at;
        return OK;
    }
    return ERR_NOT_FOUND;
}

static enum err replay(struct recovery *r, struct bytes records)
{
    const struct wal_config *config = r->config;
    struct wal_record ahead[REPLAY_AHEAD];
    enum err err = OK;
    while (err == OK) {
        size_t count = 0;
        while (count < REPLAY_AHEAD && (err = record_next(&records, &ahead[count])) == OK) {
            if (ahead[count].lsn <= config->applied) continue;
            r->report->records++;
            r->report->bytes += ahead[count].payload.size;
            if (r->read_only || config->on_replay == NULL) continue;
            if (config->on_ahead != NULL) config->on_ahead(config->ctx, &ahead[count]);
            count++;
        }
        for (size_t i = 0; i < count; i++)
            TRY(config->on_replay(config->ctx, &ahead[i]));
    }
    ASSERT(err == ERR_NOT_FOUND);
    return OK;
}

/* A slot that may have had the end of the log and is shorter than it was made. Slots have their size
 * before they get their name, so no crash does that; what was cut off may have held the promise. */
static const struct segment *cut_off(const struct recovery *r, const struct segment *segment)
{
    for (size_t i = 0; i < r->count; i++) {
        const struct segment *other = &r->segments[i];
        bool older =
            segment != NULL && other->valid && other->header.sequence < segment->header.sequence;
        if (other->cut && !older) return other;
    }
    return NULL;
}

/* Tells a torn tail (OK) from damage (ERR_CORRUPT, ERR_GAP) at the place where the scan stopped. */
static enum err judge(struct recovery *r, const struct segment *segment, uint64_t offset, lsn_t lsn)
{
    const struct wal_config *config = r->config;
    lsn_t needed = lsn > config->applied ? lsn : config->applied + 1;
    witness(r, config->promised, BOTTOM_STORE);
    TRY(gather(r, segment, offset));
    r->expected = lsn;
    r->end_offset = offset;
    lsn_t known = r->promise;
    if (PLANTED_BUG(2) && segment != NULL) {
        known = config->promised;
    }
    char *detail = r->report->detail;
    size_t room = sizeof r->report->detail;
    char name[SLOT_NAME] = "no slot";
    const struct segment *cut = known < needed ? cut_off(r, segment) : NULL;
    if (cut != NULL) {
        slot_name(cut->slot->number, name);
        (void)snprintf(detail, room,
            "%s is cut off: nobody can say what the log had from LSN %llu on; accept the loss with "
            "--accept-loss %llu, or restore a backup",
            name, (unsigned long long)needed, (unsigned long long)needed);
        return ERR_CORRUPT;
    }
    if (known < needed) return OK;
    char says[SLOT_NAME] = "the bottom store";
    if (segment != NULL) {
        slot_name(segment->slot->number, name);
    }
    if (r->witness != BOTTOM_STORE) {
        slot_name(r->witness, says);
    }
    if (r->hole != 0 && !r->hole_seen) {
        (void)snprintf(detail, room,
            "segment %llu of the log is missing: LSN %llu and later up to %llu were durable (%s "
            "says "
            "so); accept their loss with --accept-loss %llu, or restore a backup",
            (unsigned long long)r->hole, (unsigned long long)needed, (unsigned long long)known,
            says, (unsigned long long)needed);
        return ERR_GAP;
    }
    (void)snprintf(detail, room,
        "%s, offset %llu: the batch with LSN %llu is damaged, but up to LSN %llu all was durable "
        "(%s "
        "says so); accept the loss with --accept-loss %llu, or restore a backup",
        name, (unsigned long long)offset, (unsigned long long)needed, (unsigned long long)known,
        says, (unsigned long long)needed);
    return ERR_CORRUPT;
}

static void damage(struct recovery *r, const char *sentence)
{
    r->damages++;
    if (r->found != NULL) {
        r->found(r->found_ctx, sentence);
    }
}

/* Checks one segment to its end. *stop_out: the log ends in it. */
static enum err scan_segment(struct recovery *r, size_t index, bool *stop_out)
{
    struct segment *segment = r->chain[index];
    struct slot *slot = segment->slot;
    const struct segment *after = index + 1 < r->chain_count ? r->chain[index + 1] : NULL;
    struct expect expect = expectation(segment);
    uint64_t offset = DISK_BLOCK;
    lsn_t applied = r->config->applied;
    window_seek(&r->window, slot->file, slot->size);
    for (;;) {
        if (after != NULL && offset == after->header.prev_end_offset &&
            expect.first == after->header.prev_end_lsn + 1)
            break;
        struct batch_header header;
        struct bytes records;
        enum err err = window_batch(&r->window, r->seed, offset, &expect, &header, &records);
        if (err == ERR_NOMEM) return err;
        if (err == OK) {
            TRY(replay(r, records));
            slot_mark(slot, expect.first, offset, header.previous_crc);
            witness(r, header.promise, slot->number);
            offset += batch_span(&header);
            expect.first += header.records;
            expect.previous_crc = header.crc;
            expect.chained = true;
            continue;
        }
        uint64_t bad = offset;
        lsn_t lsn = expect.first;
        if (lsn <= applied) {
            /* The bottom store has these; go on where the log is good again, if that is in time. */
            err = resume(r, segment, &offset, &expect);
            if (err == ERR_NOMEM) return err;
            if (err == OK && expect.first <= applied + 1) {
                if (r->read_only) {
                    char sentence[160];
                    (void)snprintf(sentence, sizeof sentence,
                        "slot-%04u, offset %llu: LSN %llu to %llu are damaged; they are in the "
                        "bottom store already",
                        slot->number, (unsigned long long)bad, (unsigned long long)lsn,
                        (unsigned long long)expect.first - 1);
                    damage(r, sentence);
                }
                continue;
            }
            offset = bad;
            expect.first = lsn;
        }
        r->end_index = index;
        err = judge(r, segment, bad, lsn);
        if (err == OK || !r->read_only || err == ERR_NOMEM) {
            *stop_out = true;
            return err;
        }
        damage(r, r->report->detail);
        window_seek(&r->window, slot->file, slot->size);
        err = resume(r, segment, &offset, &expect);
        if (err == ERR_NOMEM) return err;
        if (err != OK) break;
    }
    slot->end = after != NULL ? after->header.prev_end_lsn : expect.first - 1;
    slot->end_offset = offset;
    r->end_index = index;
    r->end_offset = offset;
    r->expected = expect.first;
    return OK;
}

/* Fills r->expected, end_index, end_offset. */
static enum err scan(struct recovery *r)
{
    const struct wal_config *config = r->config;
    r->expected = config->applied + 1;
    if (r->chain_count == 0 || r->chain[0]->cover > config->applied + 1) {
        /* Nothing holds applied + 1. That is right only for a log that never held anything else. */
        r->chain_count = 0;
        TRY(judge(r, NULL, 0, config->applied + 1));
        /* A log was there; all it lost is in the bottom store. */
        if (r->sequence > 0 && r->sequence >= config->segment_floor) return OK;
        /* A new store, or a restored one, which has what its backup had of the log in the bottom store.
         * Slots without content are those that an interrupted first opening made. */
        bool new = config->applied == 0 && config->segment_floor == 0;
        if (r->sequence == 0 && (new || config->fresh)) return OK;
        (void)snprintf(r->report->detail, sizeof r->report->detail,
            "the log after LSN %llu is missing: no slot holds it; restore a backup, or accept the "
            "loss with --accept-loss %llu",
            (unsigned long long)config->applied, (unsigned long long)config->applied + 1);
        return ERR_GAP;
    }
    bool stop = false;
    for (size_t i = 0; i < r->chain_count && !stop; i++) {
        TRY(scan_segment(r, i, &stop));
    }
    if (r->sequence < config->segment_floor) {
        (void)snprintf(r->report->detail, sizeof r->report->detail,
            "the newest segment is %llu, but a checkpoint has seen segment %llu: slots are missing "
            "or older than the bottom store; records after LSN %llu may be lost",
            (unsigned long long)r->sequence, (unsigned long long)config->segment_floor,
            (unsigned long long)r->expected - 1);
        return ERR_GAP;
    }
    return OK;
}

/* Puts the verdict into *out. A loss that the operator accepted becomes an end with a gap behind it. */
static enum err conclude(struct recovery *r, enum err err, struct recovered *out)
{
    const struct wal_config *config = r->config;
    out->end = r->expected - 1 > config->applied ? r->expected - 1 : config->applied;
    out->base = out->end + 1;
    if (r->chain_count > 0) {
        out->prev_sequence = r->chain[r->end_index]->header.sequence;
        out->prev_offset = r->end_offset;
    }
    r->report->recovered = r->report->last = out->end;
    r->report->slots = (uint32_t)r->count;
    r->report->torn_tail = err == OK && r->looks_torn;
    if (err == OK) {
        (void)snprintf(r->report->detail, sizeof r->report->detail,
            "%llu records up to LSN %llu replayed%s", (unsigned long long)r->report->records,
            (unsigned long long)out->end,
            r->report->torn_tail ? "; an unfinished write behind them was dropped" : "");
        return OK;
    }
    bool damaged = err == ERR_CORRUPT || err == ERR_GAP;
    if (!damaged || config->accept_loss == 0 || config->accept_loss > out->base) return err;
    out->lost = true;
    lsn_t highest = r->promise > r->seen ? r->promise : r->seen;
    if (config->promised > highest) {
        highest = config->promised;
    }
    if (highest >= out->base) {
        out->base = highest + 1;
    }
    if (config->segment_floor > r->sequence) {
        r->sequence = config->segment_floor;
    }
    (void)snprintf(r->report->detail, sizeof r->report->detail,
        "the loss of LSN %llu to %llu was accepted", (unsigned long long)out->end + 1,
        (unsigned long long)out->base - 1);
    return OK;
}

static int compare_sequences(const void *a, const void *b)
{
    const struct segment *left = a;
    const struct segment *right = b;
    uint64_t one = left->valid ? left->header.sequence : 0;
    uint64_t two = right->valid ? right->header.sequence : 0;
    return (one > two) - (one < two);
}

/* Segments that are still needed stay in use, oldest first; all other slots are spare, those whose
 * content is oldest first. What was replayed is made durable: after the death of a process it may
 * never have left the page cache or the drive's. */
static enum err hand_over(struct recovery *r, struct wal *wal, const struct recovered *out)
{
    for (size_t i = 0; i < r->chain_count; i++) {
        struct slot *slot = r->chain[i]->slot;
        if (i > r->end_index) {
            r->chain[i]->chained = false;
            continue;
        }
        if (i == r->end_index) {
            slot->end = out->end;
            slot->end_offset = r->end_offset;
        }
        if (!PLANTED_BUG(27)) TRY(r->disk->sync(r->disk->ctx, slot->file));
    }
    for (size_t i = 0; i < r->chain_count && i <= r->end_index; i++) {
        slot_list_push(&wal->used, r->chain[i]->slot);
        r->chain[i]->slot = NULL;
    }
    qsort(r->segments, r->count, sizeof *r->segments, compare_sequences);
    for (size_t i = 0; i < r->count; i++) {
        struct slot *slot = r->segments[i].slot;
        if (slot == NULL) continue;
        if (slot->size == wal->config.slot_size) {
            slot_list_push(&wal->spare, slot);
            r->segments[i].slot = NULL;
            continue;
        }
        char name[SLOT_NAME];
        slot_name(slot->number, name);
        TRY(r->disk->remove(r->disk->ctx, name));
    }
    return OK;
}

static void recovery_deinit(struct recovery *r)
{
    for (size_t i = 0; i < r->count; i++) {
        struct slot *slot = r->segments[i].slot;
        if (slot == NULL) continue;
        r->disk->close(r->disk->ctx, slot->file);
        free(slot);
    }
    free(r->segments);
    free(r->chain);
    free(r->numbers);
    window_deinit(&r->window);
}

static enum err prepare(struct recovery *r)
{
    uint64_t slot_size = r->config->slot_size;
    size_t capacity = slot_size != 0 && slot_size < SCAN_WINDOW ? (size_t)slot_size : SCAN_WINDOW;
    TRY(window_init(&r->window, r->disk, capacity));
    TRY(load(r));
    build_chain(r);
    return OK;
}

enum err recovery_run(struct wal *wal, struct wal_recovery *report, struct recovered *out)
{
    struct recovery r = {
        .config = &wal->config, .disk = &wal->io.disk, .seed = wal->seed, .report = report};
    enum err err = prepare(&r);
    if (err == OK) {
        err = scan(&r);
        err = conclude(&r, err, out);
    }
    if (err == OK) {
        wal->sequence = r.sequence;
        wal->next_number = 0;
        for (size_t i = 0; i < r.number_count; i++) {
            /* Beyond every slot there is: making one must never replace another. */
            uint32_t number = r.numbers[i] & ~HALF_MADE;
            if (number >= wal->next_number) {
                wal->next_number = number + 1;
            }
        }
        err = hand_over(&r, wal, out);
    }
    recovery_deinit(&r);
    return err;
}

enum err wal_verify(const struct wal_config *config, void (*found)(void *ctx, const char *sentence),
    void *ctx, struct wal_recovery *report)
{
    memset(report, 0, sizeof *report);
    struct recovery r = {
        .config = config,
        .disk = &config->io->disk,
        .seed = batch_seed(config->store_id),
        .report = report,
        .read_only = true,
        .found = found,
        .found_ctx = ctx,
    };
    enum err err = prepare(&r);
    if (err == OK) {
        err = scan(&r);
        if (err == ERR_CORRUPT || err == ERR_GAP) {
            damage(&r, report->detail);
            err = OK;
        }
        report->last = r.expected - 1;
        report->slots = (uint32_t)r.count;
        report->torn_tail = r.looks_torn && r.damages == 0;
    }
    recovery_deinit(&r);
    return err == OK && r.damages > 0 ? ERR_CORRUPT : err;
}
