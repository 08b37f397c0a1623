#ifndef TESTS_STORAGE_HARNESS_H
#define TESTS_STORAGE_HARNESS_H

#include "base/buffer.h"
#include "storage/engine.h"
#include "storage/folder.h"

/* A small store for tests: folder, log and engine in one thread, every step asked for. Each call
 * checks its own success and ends the test otherwise. */

struct harness {
    char root[64];
    struct folder folder;
    struct io io;
    struct engine *engine;
    lsn_t applied;
};

/* A new temporary folder with a store of `ranges` ranges in root/data. */
void harness_create(struct harness *harness, uint32_t ranges);
/* Opens a store that exists at `path`; `harness` is zeroed or closed. */
void harness_open(struct harness *harness, const char *path);
/* As the former, but failing is the caller's business. */
enum err harness_try_open(struct harness *harness, const char *path, struct engine_report *report);
void harness_close(struct harness *harness, bool checkpoint);
/* Closes and removes everything below root. */
void harness_destroy(struct harness *harness);

/* Durable and applied on return. The range follows from the key. */
void harness_put(struct harness *harness, uint16_t bucket, const char *key, struct bytes value,
    int64_t expires_ms);
void harness_delete(struct harness *harness, uint16_t bucket, const char *key);
void harness_clear(struct harness *harness, uint16_t bucket);
void harness_checkpoint(struct harness *harness);

/* Everything in the store as text, one line a key, sorted by range and key. */
void harness_dump(struct harness *harness, struct buffer *text);
/* Reads a whole file, or writes one. */
void harness_read_file(const char *path, struct buffer *content);
void harness_write_file(const char *path, struct bytes content);
/* Number of entries of a folder. */
int harness_entries(const char *path);

#endif
