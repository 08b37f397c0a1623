#include "cluster/node/records.h"

#include "base/check.h"

void entry_record_encode(uint8_t *at, const struct entry_record *entry)
{
    store_u64(at, entry->index);
    store_u64(at + 8, entry->term);
    store_u64(at + 16, entry->commit);
    store_u64(at + 24, entry->kind);
}

enum err entry_record_decode(struct bytes payload, struct entry_record *entry_out)
{
    if (payload.size < ENTRY_RECORD_HEADER) return ERR_CORRUPT;
    *entry_out = (struct entry_record){
        .index = load_u64(payload.at),
        .term = load_u64(payload.at + 8),
        .commit = load_u64(payload.at + 16),
        .kind = payload.at[24],
        .data = bytes_of(payload.at + ENTRY_RECORD_HEADER, payload.size - ENTRY_RECORD_HEADER),
    };
    bool known = entry_out->kind >= ENTRY_NOOP && entry_out->kind <= ENTRY_CONFIG;
    bool time = entry_out->kind != ENTRY_EFFECTS || entry_out->data.size >= 8;
    return known && time && entry_out->index > 0 && entry_out->term > 0 ? OK : ERR_CORRUPT;
}

size_t entry_part_size(size_t data)
{
    return 8 + round_up(entry_record_size(data), 8);
}

uint8_t *entry_part_encode(uint8_t *at, uint16_t group, const struct entry_record *entry)
{
    size_t size = entry_record_size(entry->data.size);
    size_t padded = round_up(size, 8);
    if (padded > size) store_u64(at + 8 + padded - 8, 0);
    store_u32(at, group);
    store_u32(at + 4, (uint32_t)size);
    entry_record_encode(at + 8, entry);
    return at + 8 + ENTRY_RECORD_HEADER;
}

enum err entry_part_next(struct bytes *rest, uint16_t *group_out, struct entry_record *entry_out)
{
    if (rest->size == 0) return ERR_NOT_FOUND;
    if (rest->size < 8) return ERR_CORRUPT;
    uint32_t group = load_u32(rest->at), size = load_u32(rest->at + 4);
    size_t padded = round_up(size, 8);
    if (group > UINT16_MAX || padded > rest->size - 8) return ERR_CORRUPT;
    TRY(entry_record_decode(bytes_of(rest->at + 8, size), entry_out));
    *group_out = (uint16_t)group;
    *rest = bytes_of(rest->at + 8 + padded, rest->size - 8 - padded);
    return OK;
}

void hard_record_encode(uint8_t *at, uint64_t term, uint16_t vote)
{
    store_u64(at, term);
    store_u64(at + 8, vote);
}

enum err hard_record_decode(struct bytes payload, uint64_t *term_out, uint16_t *vote_out)
{
    if (payload.size != HARD_RECORD_SIZE || load_u64(payload.at + 8) > UINT16_MAX)
        return ERR_CORRUPT;
    *term_out = load_u64(payload.at);
    *vote_out = (uint16_t)load_u64(payload.at + 8);
    return OK;
}
