// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Objects that rotted here: kept in mind, with those who had them too, until one of these has been
 * told that this host's copy is gone. Then it is theirs to make another.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "agent/util/io.h"
#include "overlay/store/internal.h"

/* After that the owner's next checkpoints have long found out who has what. */
#define LOST_MS (UINT64_C(7) * 24 * 3600 * 1000)

int store_lost_delete(struct store *store, MDB_txn *txn, const struct ref_key *name)
{
	MDB_val key = { sizeof(*name), (void *)name };
	int r = mdb_del(txn, store->lost, &key, NULL);

	return r == MDB_NOTFOUND ? 0 : store_lmdb_errno(r);
}

/* Reads what is known of a reference that is about to go. Nobody else had it: nothing to tell. */
int store_lost_add(struct store *store, MDB_txn *txn, const struct ref_key *name)
{
	MDB_val key = { sizeof(*name), (void *)name }, value;
	struct lost_row row = { .lost_wall_ms = now_wall_ms() };
	struct holders_row holders;
	struct job_row job = { 0 };
	struct ref_row ref;
	MDB_stat stat;
	int r = mdb_get(txn, store->holders, &key, &value);

	if (r || value.mv_size != sizeof(holders))
		return r == MDB_NOTFOUND ? 0 : r ? store_lmdb_errno(r) : -EIO;
	memcpy(&holders, value.mv_data, sizeof(holders));
	r = mdb_get(txn, store->refs, &key, &value);
	if (r || value.mv_size != sizeof(ref) || holders.count > OV_HOLDERS_MAX)
		return r ? store_lmdb_errno(r) : -EIO;
	memcpy(&ref, value.mv_data, sizeof(ref));
	r = store_job_read(store, txn, &name->job, &job);
	if (r < 0 && r != -ENOENT)
		return r;
	r = store_lmdb_errno(mdb_stat(txn, store->lost, &stat));
	/* So many at once is a dying disk; those that are told first will do. */
	if (r < 0 || stat.ms_entries >= STORE_LOST_MAX || job.over)
		return r;
	/* Under the newest token known, or those who know it would not listen. */
	row.token = fence_token_compare(&job.token, &ref.token) > 0 ? job.token : ref.token;
	row.seq = ref.seq;
	row.holder_count = holders.count;
	memcpy(row.holders, holders.ids, sizeof(row.holders));
	value = (MDB_val){ sizeof(row), &row };
	return store_lmdb_errno(mdb_put(txn, store->lost, &key, &value, 0));
}

static int read_lost(const MDB_val *key, const MDB_val *value, struct ov_object *ret_object,
		     bool *ret_expired)
{
	uint64_t now = now_wall_ms();
	struct ref_key name;
	struct lost_row row;

	if (key->mv_size != sizeof(name) || value->mv_size != sizeof(row))
		return -EIO;
	memcpy(&name, key->mv_data, sizeof(name));
	memcpy(&row, value->mv_data, sizeof(row));
	if (row.holder_count > OV_HOLDERS_MAX)
		return -EIO;
	*ret_object = (struct ov_object){ .job = name.job,
					  .token = row.token,
					  .hash = name.hash,
					  .seq = row.seq,
					  .holder_count = row.holder_count };
	memcpy(ret_object->holders, row.holders, sizeof(row.holders));
	*ret_expired = now > row.lost_wall_ms && now - row.lost_wall_ms > LOST_MS;
	return 0;
}

int store_list_lost(struct store *store, uint32_t max, struct ov_object *ret_objects,
		    uint32_t *ret_count)
{
	MDB_cursor *cursor = NULL;
	MDB_txn *txn = NULL;
	MDB_val key, value;
	uint32_t count = 0;
	int r = mdb_txn_begin(store->index, NULL, MDB_RDONLY, &txn), fault = 0;

	if (r)
		return store_lmdb_errno(r);
	r = mdb_cursor_open(txn, store->lost, &cursor);
	if (!r)
		r = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
	while (!r && !fault && count < max) {
		bool expired = false;

		fault = read_lost(&key, &value, &ret_objects[count], &expired);
		/* Without holders the caller drops it. */
		if (expired)
			ret_objects[count].holder_count = 0;
		count++;
		r = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
	}
	if (cursor)
		mdb_cursor_close(cursor);
	mdb_txn_abort(txn);
	if (fault)
		return fault;
	if (r && r != MDB_NOTFOUND)
		return store_lmdb_errno(r);
	*ret_count = count;
	return 0;
}

int store_lost_done(struct store *store, const struct job_id *job, const struct object_hash *hash)
{
	struct ref_key name = { .job = *job, .hash = *hash };
	MDB_txn *txn = NULL;
	int r = store_lmdb_errno(mdb_txn_begin(store->index, NULL, 0, &txn));

	if (r < 0)
		return r;
	r = store_lost_delete(store, txn, &name);
	if (r < 0) {
		mdb_txn_abort(txn);
		return r;
	}
	return store_lmdb_errno(mdb_txn_commit(txn));
}
