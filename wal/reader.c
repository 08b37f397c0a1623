#include <stdlib.h>

#include "base/check.h"
#include "wal/wal_internal.h"

/* Reading slots: the window that recovery and readers share, and readers of a live log.
 *
 * A reader works on copies of what it needs to know about the slots it pinned, so it shares no memory
 * with the owner; the owner only hands it a new end between two reads. Its window may hold blocks that
 * were read while a write to them was in flight, so whatever lies behind the known end is dropped
 * when the end moves. */

enum { READER_WINDOW = 256 << 10 };

enum err window_init(struct window *window, const struct disk *disk, size_t capacity)
{
    *window = (struct window){.disk = disk, .capacity = round_up(capacity, DISK_BLOCK)};
    window->memory = aligned_alloc(DISK_BLOCK, window->capacity);
    return window->memory == NULL ? ERR_NOMEM : OK;
}

void window_deinit(struct window *window)
{
    free(window->memory);
    window->memory = NULL;
}

void window_seek(struct window *window, disk_file file, uint64_t limit)
{
    window->file = file;
    window->limit = limit - limit % DISK_BLOCK;
    window->offset = 0;
    window->size = 0;
}

static void window_fill(struct window *window, uint64_t offset, size_t size)
{
    const struct disk *disk = window->disk;
    window->offset = offset;
    window->size = size;
    if (disk->read(disk->ctx, window->file, offset, window->memory, size) == OK) return;
    /* Somewhere in there is a block that cannot be read: it counts as damaged, the others not. */
    for (size_t at = 0; at < size; at += DISK_BLOCK) {
        uint8_t *block = window->memory + at;
        if (disk->read(disk->ctx, window->file, offset + at, block, DISK_BLOCK) != OK) {
            memset(block, 0, DISK_BLOCK);
            window->unreadable++;
        }
    }
}

enum err window_get(struct window *window, uint64_t offset, size_t size, struct bytes *out)
{
    if (offset >= window->limit) return ERR_NOT_FOUND;
    size = round_up(size, DISK_BLOCK);
    if (size > window->limit - offset) {
        size = (size_t)(window->limit - offset);
    }
    bool held = offset >= window->offset && offset + size <= window->offset + window->size;
    if (!held) {
        if (size > window->capacity) {
            uint8_t *memory = aligned_alloc(DISK_BLOCK, size);
            if (memory == NULL) return ERR_NOMEM;
            free(window->memory);
            window->memory = memory;
            window->capacity = size;
        }
        uint64_t left = window->limit - offset;
        window_fill(window, offset, left < window->capacity ? (size_t)left : window->capacity);
    }
    size_t skip = (size_t)(offset - window->offset);
    *out = bytes_of(window->memory + skip, window->size - skip);
    return OK;
}

enum err window_header(struct window *window, uint32_t seed, uint64_t offset,
    const struct expect *expect, struct batch_header *header_out)
{
    struct bytes bytes;
    TRY(window_get(window, offset, DISK_BLOCK, &bytes));
    struct batch_header header;
    TRY(batch_decode(seed, bytes, &header));
    if (!PLANTED_BUG(4)) {
        if (header.sequence != expect->sequence || header.nonce != expect->nonce)
            return ERR_CORRUPT;
        if (expect->chained && header.previous_crc != expect->previous_crc) return ERR_CORRUPT;
    }
    if (header.block != offset / DISK_BLOCK) return ERR_CORRUPT;
    if (expect->first != 0 && header.first_lsn != expect->first) return ERR_CORRUPT;
    if (batch_span(&header) > window->limit - offset) return ERR_CORRUPT;
    *header_out = header;
    return OK;
}

enum err window_batch(struct window *window, uint32_t seed, uint64_t offset,
    const struct expect *expect, struct batch_header *header_out, struct bytes *records_out)
{
    struct batch_header header;
    TRY(window_header(window, seed, offset, expect, &header));
    struct bytes bytes;
    TRY(window_get(window, offset, (size_t)batch_span(&header), &bytes));
    TRY(batch_check(&header, record_seed(header.sequence, header.nonce), bytes));
    *header_out = header;
    *records_out = bytes_of(bytes.at + BATCH_HEADER, header.bytes);
    return OK;
}

/* A pinned slot, as the reader sees it. */
struct piece {
    struct slot *slot; /* the owner's; the reading thread does not look inside */
    disk_file file;
    uint64_t size;
    uint64_t sequence;
    uint64_t nonce;
    lsn_t end; /* LSN_OPEN while it is the current slot */
};

#define LSN_OPEN UINT64_MAX

struct wal_reader {
    struct wal *wal;
    struct disk disk;
    uint32_t seed;
    lsn_t upto;
    lsn_t next; /* not before this one */
    struct piece *pieces;
    size_t count;
    size_t capacity;
    size_t at; /* piece being read */
    size_t unpinned; /* pieces before this one are read and let go of */
    uint64_t offset; /* of the next batch in it */
    uint32_t previous_crc;
    struct window window;
    struct bytes records; /* left of the batch at hand */
};

static enum err reader_add(struct wal_reader *reader, struct slot *slot)
{
    if (reader->count == reader->capacity) {
        size_t capacity = reader->capacity == 0 ? 4 : reader->capacity * 2;
        struct piece *pieces = realloc(reader->pieces, capacity * sizeof *pieces);
        if (pieces == NULL) return ERR_NOMEM;
        reader->pieces = pieces;
        reader->capacity = capacity;
    }
    slot->pins++;
    reader->pieces[reader->count++] = (struct piece){
        .slot = slot,
        .file = slot->file,
        .size = slot->size,
        .sequence = slot->sequence,
        .nonce = slot->nonce,
        .end = slot->next == NULL ? LSN_OPEN : slot->end,
    };
    return OK;
}

static void reader_seek(struct wal_reader *reader, size_t piece, struct slot_mark mark)
{
    reader->at = piece;
    reader->offset = mark.offset;
    reader->previous_crc = mark.previous_crc;
    window_seek(&reader->window, reader->pieces[piece].file, reader->pieces[piece].size);
}

enum err wal_reader_open(struct wal *wal, lsn_t after, lsn_t upto, struct wal_reader **reader_out)
{
    ASSERT(upto <= atomic_load(&wal->durable));
    struct slot *slot = wal->used.first;
    ASSERT(slot != NULL);
    if (slot->cover > after + 1) return ERR_GAP;
    while (slot->next != NULL && slot->next->cover <= after + 1) {
        slot = slot->next;
    }
    struct wal_reader *reader = calloc(1, sizeof *reader);
    if (reader == NULL) return ERR_NOMEM;
    reader->wal = wal;
    reader->disk = wal->io.disk;
    reader->seed = wal->seed;
    reader->upto = upto;
    reader->next = after + 1;
    struct slot_mark mark = slot_find(slot, after + 1);
    enum err err = window_init(&reader->window, &reader->disk, READER_WINDOW);
    for (; err == OK && slot != NULL; slot = slot->next) {
        err = reader_add(reader, slot);
    }
    if (err != OK) {
        wal_reader_close(reader);
        return err;
    }
    reader_seek(reader, 0, mark);
    *reader_out = reader;
    return OK;
}

void wal_reader_extend(struct wal_reader *reader, lsn_t upto)
{
    struct wal *wal = reader->wal;
    ASSERT(upto >= reader->upto && upto <= atomic_load(&wal->durable));
    /* a reader that follows for long must not keep the whole log */
    for (; reader->unpinned < reader->at; reader->unpinned++)
        reader->pieces[reader->unpinned].slot->pins--;
    struct piece *last = &reader->pieces[reader->count - 1];
    bool grown = true;
    for (struct slot *slot = last->slot->next; slot != NULL && grown; slot = slot->next) {
        last = &reader->pieces[reader->count - 1];
        last->end = last->slot->end;
        /* Without memory the reader stays where it is: the next extension tries again. */
        grown = reader_add(reader, slot) == OK;
    }
    if (!grown) {
        reader->pieces[reader->count - 1].end = LSN_OPEN;
        return;
    }
    reader->upto = upto;
    /* What lies behind the batch at hand was read before it was complete. The batch stays. */
    struct window *window = &reader->window;
    if (reader->offset < window->offset + window->size) {
        window->size =
            reader->offset > window->offset ? (size_t)(reader->offset - window->offset) : 0;
    }
}

enum err wal_reader_next(struct wal_reader *reader, struct wal_record *record_out)
{
    while (reader->next <= reader->upto) {
        while (record_next(&reader->records, record_out) == OK) {
            if (record_out->lsn < reader->next) continue;
            reader->next = record_out->lsn + 1;
            return OK;
        }
        struct piece *piece = &reader->pieces[reader->at];
        if (reader->next > piece->end) {
            if (reader->at + 1 == reader->count) return ERR_NOT_FOUND;
            struct piece *following = piece + 1;
            struct bytes block;
            window_seek(&reader->window, following->file, following->size);
            TRY(window_get(&reader->window, 0, DISK_BLOCK, &block));
            struct segment_header header;
            if (segment_decode(block, &header) != OK || header.sequence != following->sequence)
                return ERR_CORRUPT;
            reader->at++;
            reader->offset = DISK_BLOCK;
            reader->previous_crc = header.crc;
            if (reader->next < header.base_lsn) {
                reader->next = header.base_lsn;
            }
            continue;
        }
        struct expect expect = {
            .sequence = piece->sequence,
            .nonce = piece->nonce,
            .previous_crc = reader->previous_crc,
            .chained = true,
        };
        struct batch_header header;
        enum err err =
            window_header(&reader->window, reader->seed, reader->offset, &expect, &header);
        /* of what lies before the place asked for only the headers are looked at: they lead there */
        bool before = err == OK && header.first_lsn + header.records <= reader->next;
        if (err == OK && !before)
            err = window_batch(
                &reader->window, reader->seed, reader->offset, &expect, &header, &reader->records);
        if (err != OK) {
            reader->records = bytes_of(NULL, 0);
            return err == ERR_NOT_FOUND ? ERR_CORRUPT : err;
        }
        reader->offset += batch_span(&header);
        reader->previous_crc = header.crc;
    }
    return ERR_NOT_FOUND;
}

void wal_reader_close(struct wal_reader *reader)
{
    if (reader == NULL) return;
    for (size_t i = reader->unpinned; i < reader->count; i++) {
        ASSERT(reader->pieces[i].slot->pins > 0);
        reader->pieces[i].slot->pins--;
    }
    window_deinit(&reader->window);
    free(reader->pieces);
    free(reader);
}
