#include "storage/engine.h"

enum err snapshot_open(struct engine *engine, uint16_t range, struct range_meta *meta_out,
    struct snapshot **snapshot_out)
{
    (void)engine, (void)range, (void)meta_out, (void)snapshot_out;
    return ERR_UNSUPPORTED;
}

enum err snapshot_next(struct snapshot *snapshot, struct bytes *chunk_out)
{
    (void)snapshot, (void)chunk_out;
    return ERR_UNSUPPORTED;
}

void snapshot_progress(const struct snapshot *snapshot, uint64_t *entries_out, uint64_t *bytes_out)
{
    (void)snapshot;
    *entries_out = *bytes_out = 0;
}

void snapshot_close(struct snapshot *snapshot)
{
    (void)snapshot;
}

enum err install_begin(struct engine *engine, uint16_t range, const struct range_meta *meta_while,
    void (*done)(void *ctx, enum err result), void *ctx, struct install **install_out)
{
    (void)engine, (void)range, (void)meta_while, (void)done, (void)ctx, (void)install_out;
    return ERR_UNSUPPORTED;
}

enum err install_add(struct install *install, struct bytes chunk)
{
    (void)install, (void)chunk;
    return ERR_UNSUPPORTED;
}

void install_finish(struct install *install, const struct range_meta *meta)
{
    (void)install, (void)meta;
}

void install_close(struct install *install)
{
    (void)install;
}
