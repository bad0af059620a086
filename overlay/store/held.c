// SPDX-License-Identifier: LGPL-2.1-or-later
/* Who else has what lies here: kept for repair, which no owner has to be there for. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "overlay/store/internal.h"

static int put_holders(struct store *store, MDB_txn *txn, const struct ov_object *object)
{
	struct ref_key name = { .job = object->job, .hash = object->hash };
	struct holders_row row = { .count = object->holder_count };
	MDB_val key = { sizeof(name), &name }, value;
	int r = store_lmdb_errno(mdb_get(txn, store->refs, &key, &value));

	if (r < 0)
		return r;
	memcpy(row.ids, object->holders, row.count * sizeof(row.ids[0]));
	value = (MDB_val){ sizeof(row), &row };
	return store_lmdb_errno(mdb_put(txn, store->holders, &key, &value, 0));
}

int store_set_holders(struct store *store, const struct ov_object *objects, uint32_t count)
{
	MDB_txn *txn = NULL;
	int r = store_lmdb_errno(mdb_txn_begin(store->index, NULL, 0, &txn));

	if (r < 0)
		return r;
	for (uint32_t i = 0; i < count && r == 0; i++) {
		const struct ov_object *object = &objects[i];

		if (object->holder_count == 0 || object->holder_count > OV_HOLDERS_MAX)
			continue;
		r = store_fence_check(store, txn, &object->job, &object->token, false);
		if (r == 0)
			r = put_holders(store, txn, object);
		if (r == -ENOENT || r == -ESTALE)
			r = 0; /* dropped since, or said by one that lost the job */
	}
	if (r < 0) {
		mdb_txn_abort(txn);
		return r;
	}
	return store_lmdb_errno(mdb_txn_commit(txn));
}

/* Reads one row of `holders` with what belongs to it; 0 if its object or reference is gone. */
static int read_item(struct store *store, MDB_txn *txn, const MDB_val *key, const MDB_val *value,
		     struct store_item *ret_item)
{
	struct store_item item = { 0 };
	struct holders_row holders;
	struct object_row object;
	struct ref_key name;
	struct ref_row ref;
	MDB_val found, hash;

	if (key->mv_size != sizeof(name) || value->mv_size != sizeof(holders))
		return -EIO;
	memcpy(&name, key->mv_data, sizeof(name));
	memcpy(&holders, value->mv_data, sizeof(holders));
	hash = (MDB_val){ sizeof(name.hash), &name.hash };
	if (mdb_get(txn, store->refs, (MDB_val *)key, &found) || found.mv_size != sizeof(ref))
		return 0;
	memcpy(&ref, found.mv_data, sizeof(ref));
	if (mdb_get(txn, store->objects, &hash, &found) || found.mv_size != sizeof(object))
		return 0;
	memcpy(&object, found.mv_data, sizeof(object));
	item.object = (struct ov_object){ .job = name.job,
					  .token = ref.token,
					  .hash = name.hash,
					  .seq = ref.seq,
					  .size = object.size,
					  .holder_count = holders.count };
	if (holders.count > OV_HOLDERS_MAX)
		return -EIO;
	memcpy(item.object.holders, holders.ids, sizeof(item.object.holders));
	item.put_wall_ms = object.put_wall_ms;
	*ret_item = item;
	return 1;
}

/* Rows of one job lie together: their keys begin with it. */
static void mark_newest(struct store_item *items, uint32_t count)
{
	for (uint32_t first = 0, end; first < count; first = end) {
		uint64_t newest = 0;

		for (end = first; end < count; end++) {
			if (memcmp(&items[end].object.job, &items[first].object.job,
				   sizeof(items[end].object.job)) != 0)
				break;
			if (items[end].object.seq > newest)
				newest = items[end].object.seq;
		}
		for (uint32_t i = first; i < end; i++)
			items[i].newest = items[i].object.seq == newest;
	}
}

int store_list_held(struct store *store, struct store_item **ret_items, uint32_t *ret_count)
{
	struct store_item *items = NULL;
	MDB_cursor *cursor = NULL;
	uint32_t count = 0;
	MDB_txn *txn = NULL;
	MDB_val key, value;
	MDB_stat stat = { 0 };
	size_t room = 0;
	int r = mdb_txn_begin(store->index, NULL, MDB_RDONLY, &txn), one = 0;

	if (r)
		return store_lmdb_errno(r);
	r = mdb_stat(txn, store->holders, &stat);
	room = stat.ms_entries < STORE_LIST_MAX ? stat.ms_entries : STORE_LIST_MAX;
	items = calloc(room + 1, sizeof(*items));
	if (!r)
		r = items ? mdb_cursor_open(txn, store->holders, &cursor) : ENOMEM;
	if (!r)
		r = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
	while (!r && one >= 0 && count < room) {
		one = read_item(store, txn, &key, &value, &items[count]);
		count += one > 0;
		r = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
	}
	if (cursor)
		mdb_cursor_close(cursor);
	mdb_txn_abort(txn);
	r = r == MDB_NOTFOUND ? 0 : store_lmdb_errno(r);
	if (one < 0)
		r = one;
	if (r < 0) {
		free(items);
		return r;
	}
	mark_newest(items, count);
	*ret_items = items;
	*ret_count = count;
	return 0;
}
