#ifndef STORAGE_ENGINE_META_H
#define STORAGE_ENGINE_META_H

/* Names in the bottom store's meta database. Numbers are little-endian. */

/* u64: every record up to this LSN is in the bottom store. Some of later ones may be too, while a
 * checkpoint is half way; replaying from here over them is right, because effects are absolute. */
#define META_APPLIED "applied"
/* u64: the highest LSN that was known durable at the last checkpoint (a promise for recovery). */
#define META_PROMISED "promised"
/* u64: newest log segment sequence number at the last checkpoint. */
#define META_SEGMENT "segment"
/* u64 under "range/00001" and so on: applied index of one range, written with its data. */
#define META_RANGE_FORMAT "range/%05u"
/* 16 bytes: the store the log must belong to (wal_config.store_id). */
#define META_STORE "store"
/* u32: highest range id + 1, fixed at creation. */
#define META_RANGES "ranges"
/* u8 1: restored from a backup; the log is absent until the first start, which removes the mark by
 * writing 0. */
#define META_LOG_ABSENT "log_absent"

#endif
