/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the source files of the store share; besides them only its tests include this.
 */
#pragma once

#include <lmdb.h>
#include <openssl/evp.h>
#include <pthread.h>

#include "overlay/store/io.h"
#include "overlay/store/segment.h"
#include "overlay/store/store.h"

enum { STORE_MAP_BYTES = 1 << 30, STORE_VERSION = 2 };

struct object_row {
	uint32_t size;
	uint32_t refs;		  /* rows of `refs` that name it */
	uint64_t put_wall_ms;	  /* for people */
	uint64_t checked_wall_ms; /* last read check, to the day */
	uint64_t offset;
	uint32_t segment;
	uint32_t reserved;
};

/* Of a store of version 1, where the object is a file named by its hash. */
struct object_row_v1 {
	uint32_t size;
	uint32_t refs;
	uint64_t put_wall_ms;
	uint64_t checked_wall_ms;
};

struct ref_key {
	struct job_id job;
	struct object_hash hash;
};

struct ref_row {
	struct fence_token token;
	uint64_t seq;
};

/* Who else has it, as its owner or a repairer said last; key: struct ref_key. */
struct holders_row {
	uint32_t count;
	uint32_t reserved;
	struct node_id ids[OV_HOLDERS_MAX];
};

/*
 * What this host has heard of a job. Rows of earlier versions end after the token. `over`: nothing
 * of it is needed any more, and nothing of it is taken.
 */
struct job_row {
	struct fence_token token;
	uint64_t heard_wall_ms; /* of its owner, or that its register still is */
	uint64_t quiet_ms;	/* this host was on and asked for it in vain; 0: never yet */
	uint32_t over, reserved;
};

struct tomb_row {
	struct core_tombstone tombstone;
	uint64_t buried_wall_ms;
};

/* An object that was lost here: who else had it is still to be told. Key: struct ref_key. */
struct lost_row {
	struct fence_token token;
	uint64_t seq;
	uint64_t lost_wall_ms;
	uint32_t holder_count;
	uint32_t reserved;
	struct node_id holders[OV_HOLDERS_MAX];
};

struct store {
	const struct store_io *io;
	int state_fd, lock_fd;
	struct segments *segments;
	MDB_env *index, *registers;
	MDB_dbi objects, refs, fences, holders, lost, groups;
	MDB_dbi records, meta, tombs;
	pthread_mutex_t lock; /* the numbers below */
	uint64_t quota_bytes, reserve_bytes;
	uint64_t kept_bytes;	 /* room of all objects on the disk */
	uint64_t arriving_bytes; /* likewise of those that arrive */
	uint32_t arriving_count;
	struct store_stats stats;
};

/* Of LMDB's errors, which mix errno and numbers of its own. */
int store_lmdb_errno(int r);
int store_env_open(const struct store *store, const char *state_dir, const char *name,
		   MDB_env **ret_env);
/* Held: lock. What may still come, by quota and disk. */
uint64_t store_room_of(const struct store *store, uint64_t free_bytes, uint64_t dead_bytes);

/* format.c: -EBUSY, -EPROTONOSUPPORT, -EBADMSG with the reason for people. 0: a new store. */
int store_format_read(const struct store_io *io, int state_fd, char why[static STORE_WHY_MAX],
		      uint32_t *ret_version);
int store_format_write(const struct store_io *io, int state_fd);
/* The lock is that of the fd's file and ends with it. */
int store_lock(int state_fd, char why[static STORE_WHY_MAX], int *ret_fd);

/* migrate.c: what a store of version 1 kept in files becomes segments; the files are not copied. */
int store_migrate(struct store *store);

/* reconcile.c: at open. Counts what is there, and sets right what a crash left behind. */
int store_reconcile(struct store *store);

/* Within txn. */
int store_row_read(struct store *store, MDB_txn *txn, const struct object_hash *hash,
		   struct object_row *ret_row);
int store_row_write(struct store *store, MDB_txn *txn, const struct object_hash *hash,
		    const struct object_row *row);
static inline struct extent store_row_extent(const struct object_row *row)
{
	return (struct extent){ .segment = row->segment, .size = row->size, .offset = row->offset };
}
static inline bool store_row_same_place(const struct object_row *a, const struct object_row *b)
{
	return a->segment == b->segment && a->offset == b->offset;
}
/* In a transaction of its own. */
int store_row_find(struct store *store, const struct object_hash *hash, struct object_row *ret_row);
/*
 * One reading of what the row names, into `out` of row->size bytes unless it is NULL, and to the end
 * of `file` unless that is -1: then only what is returned says whether it may be used. -ENOENT: it had
 * rotted and is gone now; -EAGAIN: by now the row names something else.
 */
int store_read_object(struct store *store, const struct object_hash *hash,
		      const struct object_row *row, uint8_t *out, int file);
/* An object that was kept is not any more: its room is given back. */
void store_release(struct store *store, const struct extent *extent);
/*
 * Within txn: -ESTALE if the token is older than one seen for the job, or the job is over; else
 * remembers it, if that is asked for.
 */
int store_fence_check(struct store *store, MDB_txn *txn, const struct job_id *job,
		      const struct fence_token *token, bool remember);
/* Likewise in a transaction of its own, and nothing is remembered. */
int store_fence_look(struct store *store, const struct ov_object *object);
/* Within txn: the job's reference, of which the newer number counts; the row counts new ones. */
int store_reference(struct store *store, MDB_txn *txn, const struct ov_object *object,
		    bool *ret_new);
/* Within txn: one reference less; deletes the row at zero. */
int store_unref(struct store *store, MDB_txn *txn, const struct object_hash *hash,
		bool *ret_dropped, struct extent *ret_extent);
/* Within txn. -ENOENT: never heard of. */
int store_job_read(struct store *store, MDB_txn *txn, const struct job_id *job,
		   struct job_row *ret_row);
int store_job_write(struct store *store, MDB_txn *txn, const struct job_id *job,
		    const struct job_row *row);
/* Within the registers' txn: what is left of a job that is over. */
int store_tomb_write(struct store *store, MDB_txn *txn, const struct core_write *write);
int store_tombs_expire(struct store *store);
/* Within txn: deletes references whose object has no row; who else had it goes to `lost`. */
int store_prune_refs(struct store *store, MDB_txn *txn);
/* Within txn: the object came again, or the job is over. */
int store_lost_delete(struct store *store, MDB_txn *txn, const struct ref_key *name);
/* -ESTALE unless it is just this list that is known; -ENOENT. */
int store_group_check(struct store *store, MDB_txn *txn, const struct ov_group *group);
/* Drops the list if it does not name self and none of its shards is here. */
int store_group_tidy(struct store *store, MDB_txn *txn, const struct ov_group *group,
		     const struct node_id *self);
/*
 * Within txn: drops groups that are not named, and adds the shards of the others to *kept, which is
 * sorted, of retain->count hashes, and may move.
 */
int store_groups_retain(struct store *store, MDB_txn *txn, struct ov_retain *retain,
			struct object_hash **kept);
int store_lost_add(struct store *store, MDB_txn *txn, const struct ref_key *name);
