/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What this host keeps for others: objects (packs and manifests, ciphertext only) and the durable
 * records of the registers for which it is an acceptor.
 *
 *   <state_dir>/store-format    the version; one that is newer is refused, an older one migrated
 *   <state_dir>/store-lock      held while the store is open; says by whom
 *   <state_dir>/segments/       the objects; see segment.h
 *   <state_dir>/index/          LMDB: objects (hash), refs, holders, lost (job + hash), fences (job)
 *   <state_dir>/registers/      LMDB: records and tombs (job), meta
 *
 * An object stays while any job refers to it. A put is answered only after its bytes, the name of
 * their file and the index are on the disk; a record likewise. Every read hashes the whole object
 * again: a rotten one is deleted and counted, never handed out, and remembered until another holder
 * has been told.
 *
 * Limits: OV_PACK_MAX bytes per object, quota_bytes of disk in all (those still arriving included),
 * and reserve_bytes of the file system stay free. Errors: -ENOSPC refused for one of these,
 * -ESTALE the token is older than one seen for the job, or the job is over, -EBADMSG wrong hash, -ENOENT, -EIO.
 * Threading: all functions may be called from any thread; one struct store_put by one thread at
 * a time. The registers have an environment of their own, so that a record never waits for the
 * disk behind a pack.
 */
#pragma once

#include "overlay/core/core.h"
#include "overlay/ipc.h"

struct store;
struct store_put;

struct store_io;

enum {
	STORE_RETAIN_MAX = 65536, /* hashes that one retain names */
	STORE_ARRIVING_MAX = 64,  /* objects that arrive at one time */
	STORE_WHY_MAX = 160,
};

struct store_stats {
	uint64_t objects, object_bytes;
	uint64_t disk_bytes;  /* what they take, and what could not be given back */
	uint64_t bad_objects; /* wrong hash, on receipt or on read, since open */
	uint64_t rotten;      /* of these on read: they were whole when they came */
	uint64_t scrubbed, scrubbed_bytes;
	uint64_t puts, put_syncs; /* objects that came, and how often that waited for the disk */
};

/* Opens or makes the store below state_dir and sets right what a crash left behind. */
int store_open(const char *state_dir, struct store **ret_store) __attribute__((warn_unused_result));
/*
 * Likewise with another disk (borrowed until store_close()) and a reason for people: -EBUSY another
 * process has it open, -EPROTONOSUPPORT it is of a version from the future; nothing was touched.
 */
int store_open_io(const char *state_dir, const struct store_io *io, char why[static STORE_WHY_MAX],
		  struct store **ret_store) __attribute__((warn_unused_result));
void store_close(struct store *store);

/* Before this is called the quota is 0: every put is refused. */
void store_set_limits(struct store *store, uint64_t quota_bytes, uint64_t reserve_bytes);
void store_get_stats(struct store *store, struct store_stats *ret_stats);
/* What another put could have: the smaller of quota and disk. */
uint64_t store_room_bytes(struct store *store);
/*
 * How many bytes the free room is below what should be free: 1/CORE_TRIM_SHARE of the quota, and as
 * much as one object may need, unless that is more than 1/8. 0 before limits are set.
 */
uint64_t store_short_bytes(struct store *store);
/* A peer sent an object with a wrong hash that never came to this store. */
void store_count_bad(struct store *store);

/* An arriving object: begin, write its bytes in order, then commit or abort; both free it. */
int store_put_begin(struct store *store, const struct ov_object *object, struct store_put **ret_put)
	__attribute__((warn_unused_result));
int store_put_write(struct store_put *put, const void *bytes, size_t size)
	__attribute__((warn_unused_result));
int store_put_commit(struct store_put *put) __attribute__((warn_unused_result));
void store_put_abort(struct store_put *put);
/*
 * Several at once, which costs the disk little more than one: they share the syncs. At most
 * STORE_ARRIVING_MAX, of one store. Frees all; status[i] is what store_put_commit() had returned.
 */
void store_puts_commit(struct store_put *const *puts, uint32_t count, int *status);

/*
 * An object that is here, with that size, is kept for this job, too: as if it had been put again.
 * It is read first, so this says as much as a put does. -ENOENT: it is not here, or has just been
 * found rotten; -EAGAIN: it came and went all the time.
 */
int store_refer(struct store *store, const struct ov_object *object)
	__attribute__((warn_unused_result));

/* Into memory that the caller frees, once its hash was found right. */
int store_read(struct store *store, const struct object_hash *hash, uint8_t **ret_bytes,
	       uint32_t *ret_size) __attribute__((warn_unused_result));
/* Into a sealed memfd that the caller owns. */
int store_get(struct store *store, const struct object_hash *hash, int *ret_memfd,
	      uint32_t *ret_size) __attribute__((warn_unused_result));

/*
 * Drops the job's references with seq <= upto_seq to all but the named hashes, then the objects
 * that nobody refers to. retain->count hashes, in any order.
 */
int store_retain(struct store *store, const struct ov_retain *retain,
		 const struct object_hash *hashes, uint32_t *ret_dropped)
	__attribute__((warn_unused_result));

/*
 * Remembers who has copies of these objects (object->holders), all in one transaction. Objects that
 * are not here and words of an older token are passed over.
 */
int store_set_holders(struct store *store, const struct ov_object *objects, uint32_t count)
	__attribute__((warn_unused_result));

/* What may need repair: an object here whose other holders are known. */
struct store_item {
	struct ov_object object;
	bool newest; /* no object of the job here has a higher seq */
	uint64_t put_wall_ms;
};

enum { STORE_LIST_MAX = 65536 };

/* The job has this object here, and its file is whole by size. -ENOENT. */
int store_vouch(struct store *store, const struct job_id *job, const struct object_hash *hash)
	__attribute__((warn_unused_result));
/* Drops the job's reference to one object, and the object if it was the last. -ENOENT. */
int store_give_up(struct store *store, const struct job_id *job, const struct object_hash *hash)
	__attribute__((warn_unused_result));

/*
 * Remembers the shards of an object, of which one is here (else -ENOENT), unless it is known with
 * the same or a higher revision.
 */
int store_set_group(struct store *store, const struct ov_group *group)
	__attribute__((warn_unused_result));
/* By the hash of the whole object. -ENOENT. */
int store_get_group(struct store *store, const struct object_hash *hash, struct ov_group *ret_group)
	__attribute__((warn_unused_result));
/*
 * Drops a shard that this list, the one that is known here, gives to another host; the list as well,
 * if it names this host nowhere and no shard of it is left. -ESTALE: another list is known by now,
 * or it names this host; -ENOENT.
 */
int store_shed(struct store *store, const struct ov_group *group, uint32_t index,
	       const struct node_id *self) __attribute__((warn_unused_result));
struct store_group {
	struct ov_group group;
	uint32_t present; /* mask: shards that are here */
	uint32_t rank;	  /* for the caller */
};
/* At most STORE_LIST_MAX; the caller frees. */
int store_list_groups(struct store *store, struct store_group **ret_items, uint32_t *ret_count)
	__attribute__((warn_unused_result));

/* At most STORE_LIST_MAX; the caller frees. */
int store_list_held(struct store *store, struct store_item **ret_items, uint32_t *ret_count)
	__attribute__((warn_unused_result));

/*
 * Reads the next object behind *at that was not read for age_ms, by its hash; *at goes there. Zero
 * is the beginning. -ENOENT: the end, and *at is as before.
 */
int store_scrub(struct store *store, uint64_t age_ms, struct object_hash *at, uint32_t *ret_size,
		bool *ret_rotten) __attribute__((warn_unused_result));

/*
 * Objects that were lost here, with those who had them as it was known (this host among them, it
 * may be; none: it is too late to tell), until store_lost_done() or until they come again.
 */
enum { STORE_LOST_MAX = 4096 };
int store_list_lost(struct store *store, uint32_t max, struct ov_object *ret_objects,
		    uint32_t *ret_count) __attribute__((warn_unused_result));
int store_lost_done(struct store *store, const struct job_id *job, const struct object_hash *hash)
	__attribute__((warn_unused_result));

/* A job of which something is kept here. */
struct store_job {
	struct job_id job;
	uint64_t heard_wall_ms; /* of its owner or that its register still is; 0: never */
	uint64_t quiet_ms; /* asked for in vain for so long, this host's own time; 0: never yet */
};

/* The longest quiet first; at most STORE_LIST_MAX; the caller frees. */
int store_list_jobs(struct store *store, struct store_job **ret_jobs, uint32_t *ret_count)
	__attribute__((warn_unused_result));
/* Its register still is: what was asked in vain before does not count. */
int store_job_heard(struct store *store, const struct job_id *job)
	__attribute__((warn_unused_result));
/* Nobody knows the job; quiet_ms is the new sum. */
int store_job_quiet(struct store *store, const struct job_id *job, uint64_t quiet_ms)
	__attribute__((warn_unused_result));
/* Drops all that is kept for the job; is_over: and takes nothing of it any more. */
int store_drop_job(struct store *store, const struct job_id *job, bool is_over,
		   uint32_t *ret_dropped) __attribute__((warn_unused_result));

/* What this host can say of a job to one that asks. */
struct store_verdict {
	struct core_tombstone tombstone; /* state 0: none */
	uint64_t heard_ago_ms;		 /* of its owner, by the wall clock; UINT64_MAX: never */
};
int store_verdict(struct store *store, const struct job_id *job, struct store_verdict *ret_verdict)
	__attribute__((warn_unused_result));

/*
 * The job's manifests here, newest first by token and number, as they were named when they came.
 * What a manifest is, its first bytes say; that they are true is for who has the job's key.
 */
enum { STORE_NEWEST_MAX = 8 };
int store_newest(struct store *store, const struct job_id *job,
		 struct ov_object ret_objects[static STORE_NEWEST_MAX], uint32_t *ret_count)
	__attribute__((warn_unused_result));

/* All writes of one core update in one durable transaction. */
int store_write_records(struct store *store, const struct core_write *writes, uint32_t count)
	__attribute__((warn_unused_result));
/* Calls each(ctx, ...) for every record; stops at its first error and returns that. */
int store_each_record(struct store *store,
		      int (*each)(void *ctx, const struct job_id *job, const void *bytes,
				  size_t size),
		      void *ctx) __attribute__((warn_unused_result));
/* Empties the registers; what is under this host's own names stays. */
int store_drop_records(struct store *store) __attribute__((warn_unused_result));
/* A small record of this host's own under a fixed name: replaced whole, durable. */
int store_own_save(struct store *store, const char *name, const void *bytes, size_t size)
	__attribute__((warn_unused_result));
/* -ENOENT; -EBADMSG if it is larger than max. */
int store_own_load(struct store *store, const char *name, void *bytes, size_t max, size_t *ret_size)
	__attribute__((warn_unused_result));
/* A number larger than any returned before, at least wall_ms; durable. */
int store_next_incarnation(struct store *store, uint64_t wall_ms, uint64_t *ret_incarnation)
	__attribute__((warn_unused_result));
