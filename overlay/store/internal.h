/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the source files of the store share; nobody else includes this.
 */
#pragma once

#include <lmdb.h>
#include <openssl/evp.h>
#include <pthread.h>

#include "overlay/store/store.h"

enum { STORE_MAP_BYTES = 256 << 20 };

struct object_row {
	uint32_t size;
	uint32_t refs;		  /* rows of `refs` that name it */
	uint64_t put_wall_ms;	  /* for people */
	uint64_t checked_wall_ms; /* last read check, to the day */
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

struct store {
	int objects_fd, tmp_fd;
	MDB_env *index, *registers;
	MDB_dbi objects, refs, fences, holders;
	MDB_dbi records, meta, tombs;
	pthread_mutex_t lock; /* the numbers below */
	uint64_t quota_bytes, reserve_bytes;
	uint64_t arriving_bytes;
	uint32_t arriving_count;
	struct store_stats stats;
};

/* Of LMDB's errors, which mix errno and numbers of its own. */
int store_lmdb_errno(int r);
int store_env_open(const char *state_dir, const char *name, MDB_env **ret_env);
void store_object_path(const struct object_hash *hash, char path[static 3 + 64 + 1]);
int store_reconcile(struct store *store);
/*
 * Within txn: -ESTALE if the token is older than one seen for the job, or the job is over; else
 * remembers it, if that is asked for.
 */
int store_fence_check(struct store *store, MDB_txn *txn, const struct job_id *job,
		      const struct fence_token *token, bool remember);
/* Within txn: one reference less; deletes the row at zero. */
int store_unref(struct store *store, MDB_txn *txn, const struct object_hash *hash,
		bool *ret_dropped, uint32_t *ret_size);
/* Within txn. -ENOENT: never heard of. */
int store_job_read(struct store *store, MDB_txn *txn, const struct job_id *job,
		   struct job_row *ret_row);
int store_job_write(struct store *store, MDB_txn *txn, const struct job_id *job,
		    const struct job_row *row);
/* Within the registers' txn: what is left of a job that is over. */
int store_tomb_write(struct store *store, MDB_txn *txn, const struct core_write *write);
int store_tombs_expire(struct store *store);
/* Within txn: deletes references whose object has no row. */
int store_prune_refs(struct store *store, MDB_txn *txn);
