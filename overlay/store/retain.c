// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "agent/util/io.h"
#include "overlay/store/internal.h"

int store_unref(struct store *store, MDB_txn *txn, const struct object_hash *hash,
		bool *ret_dropped, struct extent *ret_extent)
{
	MDB_val key = { sizeof(*hash), (void *)hash };
	struct object_row row;
	int r = store_row_read(store, txn, hash, &row);

	*ret_dropped = false;
	if (r < 0)
		return r == -ENOENT ? 0 : r;
	if (row.refs > 1) {
		row.refs--;
		return store_row_write(store, txn, hash, &row);
	}
	r = store_lmdb_errno(mdb_del(txn, store->objects, &key, NULL));
	if (r < 0)
		return r;
	*ret_extent = store_row_extent(&row);
	*ret_dropped = true;
	return 0;
}

/* Rows are listed first and then deleted by key: no cursor has to outlive changes of the tree. */
struct key_list {
	struct ref_key *keys;
	uint32_t count, room;
};

static int key_list_add(struct key_list *list, const struct ref_key *key)
{
	if (list->count == list->room) {
		uint32_t room = list->room ? list->room * 2 : 64;
		struct ref_key *more = realloc(list->keys, room * sizeof(*more));

		if (!more)
			return -ENOMEM;
		list->keys = more;
		list->room = room;
	}
	list->keys[list->count++] = *key;
	return 0;
}

static int delete_ref(struct store *store, MDB_txn *txn, const struct ref_key *name)
{
	MDB_val key = { sizeof(*name), (void *)name };

	int r = mdb_del(txn, store->holders, &key, NULL);

	if (r && r != MDB_NOTFOUND)
		return store_lmdb_errno(r);
	return store_lmdb_errno(mdb_del(txn, store->refs, &key, NULL));
}

static int list_dangling(struct store *store, MDB_txn *txn, struct key_list *list)
{
	MDB_cursor *cursor = NULL;
	MDB_val key, value, row;
	int r = mdb_cursor_open(txn, store->refs, &cursor), fault = 0;

	if (r)
		return store_lmdb_errno(r);
	r = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
	while (!r && !fault) {
		struct ref_key name;
		MDB_val object = { sizeof(name.hash), &name.hash };

		if (key.mv_size != sizeof(name)) {
			fault = -EIO;
			break;
		}
		memcpy(&name, key.mv_data, sizeof(name));
		r = mdb_get(txn, store->objects, &object, &row);
		if (r == MDB_NOTFOUND)
			fault = key_list_add(list, &name);
		else
			fault = store_lmdb_errno(r);
		r = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
	}
	mdb_cursor_close(cursor);
	if (fault)
		return fault;
	return r == MDB_NOTFOUND ? 0 : store_lmdb_errno(r);
}

int store_prune_refs(struct store *store, MDB_txn *txn)
{
	struct key_list list = { 0 };
	int r = list_dangling(store, txn, &list);

	for (uint32_t i = 0; i < list.count && r == 0; i++) {
		r = store_lost_add(store, txn, &list.keys[i]);
		if (r == 0)
			r = delete_ref(store, txn, &list.keys[i]);
	}
	free(list.keys);
	return r;
}

static int compare_hashes(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct object_hash));
}

/* The job's references that retain does not keep. */
static int list_unwanted(struct store *store, MDB_txn *txn, const struct ov_retain *retain,
			 const struct object_hash *kept, struct key_list *list)
{
	struct ref_key first = { .job = retain->job };
	MDB_val key = { sizeof(first), &first }, value;
	MDB_cursor *cursor = NULL;
	int r = mdb_cursor_open(txn, store->refs, &cursor), fault = 0;

	if (r)
		return store_lmdb_errno(r);
	r = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
	while (!r && !fault) {
		struct ref_key name;
		struct ref_row ref;

		if (key.mv_size != sizeof(name) || value.mv_size != sizeof(ref)) {
			fault = -EIO;
			break;
		}
		memcpy(&name, key.mv_data, sizeof(name));
		memcpy(&ref, value.mv_data, sizeof(ref));
		if (memcmp(&name.job, &retain->job, sizeof(name.job)) != 0)
			break;
		if (ref.seq <= retain->upto_seq &&
		    !bsearch(&name.hash, kept, retain->count, sizeof(*kept), compare_hashes))
			fault = key_list_add(list, &name);
		r = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
	}
	mdb_cursor_close(cursor);
	if (fault)
		return fault;
	return r == MDB_NOTFOUND ? 0 : store_lmdb_errno(r);
}

/* Extents of objects that nobody refers to any more. */
struct dropped {
	struct extent *extents;
	uint32_t count;
};

static int drop_references(struct store *store, MDB_txn *txn, const struct key_list *list,
			   struct dropped *ret_dropped)
{
	struct dropped gone = { .extents = calloc(list->count + 1, sizeof(*gone.extents)) };
	int r = gone.extents ? 0 : -ENOMEM;

	for (uint32_t i = 0; i < list->count && r == 0; i++) {
		bool dropped = false;

		r = delete_ref(store, txn, &list->keys[i]);
		if (r == 0)
			r = store_unref(store, txn, &list->keys[i].hash, &dropped,
					&gone.extents[gone.count]);
		gone.count += dropped;
	}
	if (r < 0) {
		free(gone.extents);
		return r;
	}
	*ret_dropped = gone;
	return 0;
}

/*
 * Commits if r is 0, and then gives the room back: the rows are gone for good before the bytes, so
 * a crash leaves room that the next open finds, and no row without its object.
 */
static int drop_end(struct store *store, MDB_txn *txn, int r, struct dropped *dropped)
{
	if (r < 0)
		mdb_txn_abort(txn);
	else
		r = store_lmdb_errno(mdb_txn_commit(txn));
	for (uint32_t i = 0; r == 0 && i < dropped->count; i++) {
		store_release(store, &dropped->extents[i]);
		pthread_mutex_lock(&store->lock);
		store->stats.objects--;
		store->stats.object_bytes -= dropped->extents[i].size;
		pthread_mutex_unlock(&store->lock);
	}
	free(dropped->extents);
	return r;
}

int store_vouch(struct store *store, const struct job_id *job, const struct object_hash *hash)
{
	struct ref_key name = { .job = *job, .hash = *hash };
	MDB_val key = { sizeof(name), &name }, value;
	struct object_row row;
	struct extent extent;
	MDB_txn *txn = NULL;
	int r = store_lmdb_errno(mdb_txn_begin(store->index, NULL, MDB_RDONLY, &txn));

	if (r < 0)
		return r;
	r = store_lmdb_errno(mdb_get(txn, store->refs, &key, &value));
	if (r == 0)
		r = store_row_read(store, txn, hash, &row);
	if (r == 0) {
		extent = store_row_extent(&row);
		r = segments_has(store->segments, &extent) ? 0 : -ENOENT;
	}
	mdb_txn_abort(txn);
	return r;
}

int store_give_up(struct store *store, const struct job_id *job, const struct object_hash *hash)
{
	struct ref_key name = { .job = *job, .hash = *hash };
	struct key_list list = { .keys = &name, .count = 1, .room = 1 };
	struct dropped dropped = { 0 };
	MDB_txn *txn = NULL;
	int r = store_lmdb_errno(mdb_txn_begin(store->index, NULL, 0, &txn));

	if (r < 0)
		return r;
	r = drop_references(store, txn, &list, &dropped);
	return drop_end(store, txn, r, &dropped);
}

int store_shed(struct store *store, const struct ov_group *group, uint32_t index,
	       const struct node_id *self)
{
	struct ref_key name = { .job = group->job, .hash = group->shards[index] };
	struct key_list list = { .keys = &name, .count = 1, .room = 1 };
	struct dropped dropped = { 0 };
	MDB_txn *txn = NULL;
	int r;

	if (node_id_equal(&group->holders[index], self))
		return -ESTALE;
	r = store_lmdb_errno(mdb_txn_begin(store->index, NULL, 0, &txn));
	if (r < 0)
		return r;
	r = store_group_check(store, txn, group);
	if (r == 0)
		r = drop_references(store, txn, &list, &dropped);
	if (r == 0)
		r = store_group_tidy(store, txn, group, self);
	return drop_end(store, txn, r, &dropped);
}

int store_drop_job(struct store *store, const struct job_id *job, bool is_over,
		   uint32_t *ret_dropped)
{
	struct ov_retain all = { .job = *job, .upto_seq = UINT64_MAX };
	_cleanup_free_ struct object_hash *none = calloc(1, sizeof(*none));
	struct dropped dropped = { 0 };
	struct key_list list = { 0 };
	struct job_row row = { 0 };
	MDB_txn *txn = NULL;
	int r = none ? store_lmdb_errno(mdb_txn_begin(store->index, NULL, 0, &txn)) : -ENOMEM;

	if (r < 0)
		return r;
	r = store_job_read(store, txn, job, &row);
	if (r == -ENOENT)
		r = 0;
	row.over = is_over;
	if (r == 0)
		r = store_job_write(store, txn, job, &row);
	if (r == 0)
		r = store_groups_retain(store, txn, &all, &none);
	if (r == 0)
		r = list_unwanted(store, txn, &all, none, &list);
	if (r == 0)
		r = drop_references(store, txn, &list, &dropped);
	r = drop_end(store, txn, r, &dropped);
	if (r == 0)
		*ret_dropped = dropped.count;
	free(list.keys);
	return r;
}

/* Who speaks for the job lives, or says that it has ended: all that was ever put may go. */
static int note_retain(struct store *store, MDB_txn *txn, const struct ov_retain *retain)
{
	struct job_row row = { 0 };
	int r = store_job_read(store, txn, &retain->job, &row);

	if (r < 0 && r != -ENOENT)
		return r;
	row.heard_wall_ms = now_wall_ms();
	row.quiet_ms = 0;
	row.over = retain->count == 0 && retain->upto_seq == UINT64_MAX;
	return store_job_write(store, txn, &retain->job, &row);
}

int store_retain(struct store *store, const struct ov_retain *retain,
		 const struct object_hash *hashes, uint32_t *ret_dropped)
{
	_cleanup_free_ struct object_hash *kept = NULL;
	struct key_list list = { 0 };
	struct dropped dropped = { 0 };
	struct ov_retain with_shards = *retain;
	MDB_txn *txn = NULL;
	int r;

	if (retain->count > STORE_RETAIN_MAX)
		return -EINVAL;
	kept = malloc((retain->count + 1) * sizeof(*kept));
	if (!kept)
		return -ENOMEM;
	if (retain->count > 0)
		memcpy(kept, hashes, retain->count * sizeof(*kept));
	qsort(kept, retain->count, sizeof(*kept), compare_hashes);
	r = store_lmdb_errno(mdb_txn_begin(store->index, NULL, 0, &txn));
	if (r < 0)
		return r;
	r = store_fence_check(store, txn, &retain->job, &retain->token, true);
	if (r == 0)
		r = note_retain(store, txn, retain);
	if (r == 0)
		r = store_groups_retain(store, txn, &with_shards, &kept);
	if (r == 0)
		r = list_unwanted(store, txn, &with_shards, kept, &list);
	if (r == 0)
		r = drop_references(store, txn, &list, &dropped);
	r = drop_end(store, txn, r, &dropped);
	if (r == 0)
		*ret_dropped = dropped.count;
	free(list.keys);
	return r;
}
