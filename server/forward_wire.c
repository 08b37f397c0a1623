#include "server/forward_wire.h"

#include <stdlib.h>

/* ---- writing ---- */

static void put(struct buffer *out, const void *at, size_t size)
{
    if (size > 0 && buffer_append(out, at, size) != OK) out->failed = true;
}

void forward_put_u8(struct buffer *out, uint8_t value)
{
    put(out, &value, sizeof value);
}

void forward_put_u16(struct buffer *out, uint16_t value)
{
    put(out, &value, sizeof value);
}

void forward_put_u32(struct buffer *out, uint32_t value)
{
    put(out, &value, sizeof value);
}

void forward_put_u64(struct buffer *out, uint64_t value)
{
    put(out, &value, sizeof value);
}

void forward_put_text(struct buffer *out, struct bytes text)
{
    forward_put_u32(out, (uint32_t)text.size);
    put(out, text.at, text.size);
}

void forward_put_head(struct buffer *out, enum forward_kind kind)
{
    forward_put_u8(out, FORWARD_VERSION);
    forward_put_u8(out, (uint8_t)kind);
}

void forward_put_arguments(struct buffer *out, uint32_t argc, const struct bytes *argv)
{
    forward_put_u32(out, argc);
    for (uint32_t i = 0; i < argc; i++)
        forward_put_text(out, argv[i]);
}

/* ---- reading ---- */

static const uint8_t *take(struct forward_reader *reader, size_t size)
{
    if (reader->failed || reader->rest.size < size) {
        reader->failed = true;
        reader->rest.size = 0;
        return NULL;
    }
    const uint8_t *at = reader->rest.at;
    reader->rest = bytes_of(at + size, reader->rest.size - size);
    return at;
}

uint8_t forward_get_u8(struct forward_reader *reader)
{
    const uint8_t *at = take(reader, 1);
    return at == NULL ? 0 : *at;
}

uint16_t forward_get_u16(struct forward_reader *reader)
{
    const uint8_t *at = take(reader, 2);
    return at == NULL ? 0 : load_u16(at);
}

uint32_t forward_get_u32(struct forward_reader *reader)
{
    const uint8_t *at = take(reader, 4);
    return at == NULL ? 0 : load_u32(at);
}

uint64_t forward_get_u64(struct forward_reader *reader)
{
    const uint8_t *at = take(reader, 8);
    return at == NULL ? 0 : load_u64(at);
}

struct bytes forward_get_text(struct forward_reader *reader)
{
    uint32_t size = forward_get_u32(reader);
    const uint8_t *at = take(reader, size);
    return at == NULL ? bytes_of("", 0) : bytes_of(at, size);
}

enum forward_kind forward_get_head(struct forward_reader *reader)
{
    uint8_t version = forward_get_u8(reader);
    uint8_t kind = forward_get_u8(reader);
    bool known = version == FORWARD_VERSION && kind >= FORWARD_COMMAND && kind <= FORWARD_BUCKET;
    return known ? (enum forward_kind)kind : 0;
}

bool forward_at_end(const struct forward_reader *reader)
{
    return !reader->failed && reader->rest.size == 0;
}

void forward_arguments_deinit(struct forward_arguments *arguments)
{
    free(arguments->argv);
    *arguments = (struct forward_arguments){0};
}

bool forward_get_arguments(struct forward_reader *reader, struct forward_arguments *arguments)
{
    uint32_t argc = forward_get_u32(reader);
    arguments->argc = 0;
    /* each takes four bytes at least: no more memory than the body's own size calls for */
    if (argc == 0 || argc > FORWARD_ARGUMENTS_MAX || argc > reader->rest.size / 4) {
        reader->failed = true;
        return false;
    }
    if (argc > arguments->capacity) {
        struct bytes *argv = realloc(arguments->argv, argc * sizeof *argv);
        if (argv == NULL) {
            reader->failed = true;
            return false;
        }
        arguments->argv = argv;
        arguments->capacity = argc;
    }
    for (uint32_t i = 0; i < argc; i++)
        arguments->argv[i] = forward_get_text(reader);
    if (reader->failed) return false;
    arguments->argc = argc;
    return true;
}

/* ---- requests to a key ---- */

enum { HAS_IF_MATCH = 1, HAS_IF_NONE_MATCH = 2 };

void forward_put_key(struct buffer *out, const struct forward_key *key)
{
    forward_put_u8(out, (uint8_t)key->method);
    forward_put_u16(out, key->bucket);
    forward_put_text(out, key->key);
    forward_put_u8(out,
        (uint8_t)((key->has_if_match ? HAS_IF_MATCH : 0) |
            (key->has_if_none_match ? HAS_IF_NONE_MATCH : 0)));
    forward_put_text(out, key->if_match);
    forward_put_text(out, key->if_none_match);
    forward_put_u64(out, key->ttl_ms);
    forward_put_text(out, key->client);
    forward_put_u64(out, key->sequence);
    forward_put_text(out, key->body);
}

void forward_get_key(struct forward_reader *reader, struct forward_key *key_out)
{
    uint8_t method = forward_get_u8(reader);
    if (method > FORWARD_DELETE) reader->failed = true;
    key_out->method = (enum forward_method)method;
    key_out->bucket = forward_get_u16(reader);
    key_out->key = forward_get_text(reader);
    uint8_t has = forward_get_u8(reader);
    key_out->has_if_match = (has & HAS_IF_MATCH) != 0;
    key_out->has_if_none_match = (has & HAS_IF_NONE_MATCH) != 0;
    key_out->if_match = forward_get_text(reader);
    key_out->if_none_match = forward_get_text(reader);
    key_out->ttl_ms = forward_get_u64(reader);
    key_out->client = forward_get_text(reader);
    key_out->sequence = forward_get_u64(reader);
    key_out->body = forward_get_text(reader);
}

void forward_put_answer(struct buffer *out, const struct forward_answer *answer)
{
    forward_put_u16(out, answer->status);
    forward_put_u64(out, answer->version);
    forward_put_text(out, answer->code);
    forward_put_text(out, answer->message);
    forward_put_text(out, answer->body);
}

void forward_get_answer(struct forward_reader *reader, struct forward_answer *answer_out)
{
    answer_out->status = forward_get_u16(reader);
    answer_out->version = forward_get_u64(reader);
    answer_out->code = forward_get_text(reader);
    answer_out->message = forward_get_text(reader);
    answer_out->body = forward_get_text(reader);
}

void forward_put_entry(struct buffer *out, const struct forward_entry *entry)
{
    forward_put_text(out, entry->key);
    forward_put_text(out, entry->value);
    forward_put_u64(out, entry->version);
    forward_put_u64(out, (uint64_t)entry->expires_ms);
}

void forward_get_entry(struct forward_reader *reader, struct forward_entry *entry_out)
{
    entry_out->key = forward_get_text(reader);
    entry_out->value = forward_get_text(reader);
    entry_out->version = forward_get_u64(reader);
    entry_out->expires_ms = (int64_t)forward_get_u64(reader);
}

/* ---- exactly once ---- */

struct once_entry {
    uint64_t sequence;
    bool kept;
    struct bytes reply;
};

/* Returns how many; a record that does not add up counts as full of nothing: it refuses all it cannot show. */
static uint32_t once_read(struct bytes record, uint64_t *last_out, struct once_entry *entries)
{
    struct forward_reader reader = {.rest = record};
    uint8_t format = forward_get_u8(&reader);
    *last_out = forward_get_u64(&reader);
    uint32_t count = forward_get_u32(&reader);
    if (format != 1 || reader.failed || count > ONCE_WINDOW) return 0;
    for (uint32_t i = 0; i < count; i++) {
        entries[i].sequence = forward_get_u64(&reader);
        entries[i].kept = forward_get_u8(&reader) != 0;
        entries[i].reply = forward_get_text(&reader);
    }
    return reader.failed ? 0 : count;
}

enum once_verdict once_judge(struct bytes record, uint64_t sequence, struct bytes *reply_out)
{
    struct once_entry entries[ONCE_WINDOW];
    uint64_t last;
    if (record.at == NULL) return sequence > 1 ? ONCE_EXPIRED : ONCE_NEW;
    uint32_t count = once_read(record, &last, entries);
    if (sequence > last) return ONCE_NEW;
    for (uint32_t i = 0; i < count; i++) {
        if (entries[i].sequence != sequence) continue;
        *reply_out = entries[i].reply;
        return entries[i].kept ? ONCE_REPEATED : ONCE_OLD;
    }
    return ONCE_OLD;
}

void once_remember(struct buffer *out, struct bytes record, uint64_t sequence, struct bytes reply)
{
    struct once_entry entries[ONCE_WINDOW];
    uint64_t last;
    uint32_t count = record.at == NULL ? 0 : once_read(record, &last, entries);
    uint32_t first = count == ONCE_WINDOW ? 1 : 0;
    bool kept = reply.size <= ONCE_REPLY_MAX;
    forward_put_u8(out, 1);
    forward_put_u64(out, sequence);
    forward_put_u32(out, count - first + 1);
    for (uint32_t i = first; i < count; i++) {
        forward_put_u64(out, entries[i].sequence);
        forward_put_u8(out, entries[i].kept);
        forward_put_text(out, entries[i].reply);
    }
    forward_put_u64(out, sequence);
    forward_put_u8(out, kept);
    forward_put_text(out, kept ? reply : bytes_of("", 0));
}
