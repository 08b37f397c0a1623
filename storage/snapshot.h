#ifndef STORAGE_SNAPSHOT_H
#define STORAGE_SNAPSHOT_H

#include "storage/engine.h"
#include "storage/range_table.h"

/* Behind engine.h's snapshot_* and install_*: the two worker threads of an engine. Sources read a range's
 * stored state into chunks, sinks replace a range by chunks. Without `background` there are no threads and
 * the step functions do the work. */

struct streams_config {
    const struct kv_ops *ops;
    struct kv *kv;
    struct range_table *table;
    bool background;
    void *wake_ctx;
    void (*wake)(void *ctx); /* from the threads; may be NULL */
};

struct sources;
enum err sources_new(const struct streams_config *config, struct sources **sources_out) MUST_CHECK;
/* No snapshot is open. */
void sources_free(struct sources *sources);
/* One chunk of one snapshot; false: nothing to do. */
bool sources_step(struct sources *sources);
enum err sources_open(struct sources *sources, uint16_t range, struct range_meta *meta_out,
    struct snapshot **snapshot_out) MUST_CHECK;

struct sinks;
enum err sinks_new(const struct streams_config *config, struct sinks **sinks_out) MUST_CHECK;
/* No install is open. */
void sinks_free(struct sinks *sinks);
/* One transaction of one install; false: nothing to do. */
bool sinks_step(struct sinks *sinks);
enum err sinks_begin(struct sinks *sinks, uint16_t range, const struct range_meta *meta_while,
    void (*done)(void *ctx, enum err result), void *ctx, struct install **install_out) MUST_CHECK;
/* Owner's thread: for every install that has ended, first ended(), then its done(). */
void sinks_collect(struct sinks *sinks,
    void (*ended)(void *ctx, uint16_t range, enum err result, const struct range_meta *meta),
    void *ctx);
/* Empties a range in the caller's thread and leaves `meta`. */
enum err sinks_remove(
    const struct streams_config *config, uint16_t range, const struct range_meta *meta) MUST_CHECK;

#endif
