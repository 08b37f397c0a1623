#ifndef STORAGE_BACKUP_FORMAT_H
#define STORAGE_BACKUP_FORMAT_H

#include <stdbool.h>

#include "base/buffer.h"
#include "storage/effect.h"
#include "storage/memtable.h"

/* The bytes of a backup file (docs/formats/backup.md): a header, blocks, a footer block. Pure:
 * no files, no clock. Decoding treats every byte as hostile: sizes are bounded before anything
 * is allocated or read. */

enum {
    BACKUP_FORMAT = 2,
    BACKUP_HEADER_SIZE = 256,
    BACKUP_BLOCK_HEAD_SIZE = 32,
    BACKUP_RAW_TARGET = 1 << 20, /* a block is closed when it has this much */
    BACKUP_RAW_MAX = 64 << 20, /* one entry may be larger than the target */
    BACKUP_STORED_MAX = BACKUP_RAW_MAX + (BACKUP_RAW_MAX >> 7),
    BACKUP_ENTRY_HEAD = 16,
    BACKUP_RANGE_SIZE = 24,
};

/* A value's version has 48 bits in the store, and LSNs are kept below that, too. */
#define BACKUP_LSN_END (UINT64_C(1) << 48)

struct backup_header {
    uint8_t cluster_id[16];
    char name[64];
    uint32_t ranges; /* data ranges; ids 0..ranges occur */
    uint64_t lsn; /* of the log, at the moment the backup is of: a new log begins after it */
    int64_t wall_ms; /* when it was begun */
};

enum backup_kind {
    BACKUP_ENTRIES = 1,
    BACKUP_RANGES = 2, /* the first block, and no other */
    BACKUP_FOOTER = 3,
};

struct backup_footer {
    uint64_t entries;
    uint64_t blocks; /* before the footer */
    uint64_t bytes; /* of the file before the footer */
};
enum { BACKUP_FOOTER_SIZE = 24 };

void backup_header_encode(uint8_t at[BACKUP_HEADER_SIZE], const struct backup_header *header);
/* ERR_CORRUPT: not a backup, or damaged. ERR_MISMATCH: of another format, *format_out. */
enum err backup_header_decode(const uint8_t at[BACKUP_HEADER_SIZE],
    struct backup_header *header_out, uint32_t *format_out) MUST_CHECK;
void backup_footer_encode(uint8_t at[BACKUP_FOOTER_SIZE], const struct backup_footer *footer);
enum err backup_footer_decode(struct bytes raw, struct backup_footer *footer_out) MUST_CHECK;

/* Compression state and the chain of checksums: each block's checksum is seeded with the one
 * before, the first with the header's, so that a block that is missing, moved or of another file
 * is found like a flipped bit. One codec writes or reads one file, from its start. */
struct backup_codec {
    void *zstd;
    uint32_t chain;
    uint32_t sequence;
};
enum err backup_packer_init(
    struct backup_codec *codec, const uint8_t header[BACKUP_HEADER_SIZE]) MUST_CHECK;
void backup_packer_deinit(struct backup_codec *codec);
/* Appends one block that holds `raw` to out. */
enum err backup_pack(struct backup_codec *codec, enum backup_kind kind, struct bytes raw,
    struct buffer *out) MUST_CHECK;

struct backup_block {
    enum backup_kind kind;
    uint32_t raw_size;
    uint32_t stored_size;
    uint32_t checksum;
    uint32_t expected; /* seed and head, so far */
    bool compressed;
};
enum err backup_unpacker_init(
    struct backup_codec *codec, const uint8_t header[BACKUP_HEADER_SIZE]) MUST_CHECK;
void backup_unpacker_deinit(struct backup_codec *codec);
/* Reads the head of the next block; its stored_size bytes follow. ERR_CORRUPT. */
enum err backup_block_head(struct backup_codec *codec, const uint8_t at[BACKUP_BLOCK_HEAD_SIZE],
    struct backup_block *block_out) MUST_CHECK;
/* Checks and decompresses into raw, whose former content is dropped. ERR_CORRUPT, ERR_NOMEM. */
enum err backup_unpack(struct backup_codec *codec, const struct backup_block *block,
    struct bytes stored, struct buffer *raw) MUST_CHECK;

/* One key of the image. `key` is bucket-prefixed. */
struct backup_entry {
    uint16_t range;
    struct bytes key;
    struct value value;
};
enum err backup_entry_append(struct buffer *raw, const struct backup_entry *entry) MUST_CHECK;
/* Takes one entry off the front; it borrows. ERR_NOT_FOUND at the end, ERR_CORRUPT. */
enum err backup_entry_next(
    struct bytes *rest, uint32_t ranges, struct backup_entry *entry_out) MUST_CHECK;

/* Where one range was. The block has all of them, ranges 0 to header.ranges, in order. */
struct backup_range {
    uint64_t index;
    uint64_t term;
    uint64_t hash;
};
enum err backup_range_append(struct buffer *raw, const struct backup_range *range) MUST_CHECK;
/* ERR_NOT_FOUND at the end, ERR_CORRUPT. */
enum err backup_range_next(struct bytes *rest, struct backup_range *range_out) MUST_CHECK;

#endif
