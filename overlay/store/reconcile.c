// SPDX-License-Identifier: LGPL-2.1-or-later
/* At open: what the index names is there, and nothing else takes room. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "agent/util/io.h"
#include "overlay/store/internal.h"

struct placed {
	struct extent extent;
	struct object_hash hash;
};

struct inventory {
	struct placed *objects;
	uint32_t count, room;
};

static int inventory_add(struct inventory *list, const struct placed *object)
{
	if (list->count == list->room) {
		uint32_t room = list->room ? list->room * 2 : 1024;
		struct placed *more = realloc(list->objects, room * sizeof(*more));

		if (!more)
			return -ENOMEM;
		list->objects = more;
		list->room = room;
	}
	list->objects[list->count++] = *object;
	return 0;
}

static int list_objects(struct store *store, MDB_txn *txn, struct inventory *list)
{
	MDB_cursor *cursor = NULL;
	MDB_val key, value;
	int r = mdb_cursor_open(txn, store->objects, &cursor), fault = 0;

	if (r)
		return store_lmdb_errno(r);
	r = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
	while (!r && !fault) {
		struct placed object;
		struct object_row row;

		if (key.mv_size != sizeof(object.hash) || value.mv_size != sizeof(row)) {
			fault = -EIO;
			break;
		}
		memcpy(&object.hash, key.mv_data, sizeof(object.hash));
		memcpy(&row, value.mv_data, sizeof(row));
		object.extent = store_row_extent(&row);
		fault = inventory_add(list, &object);
		r = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
	}
	mdb_cursor_close(cursor);
	if (fault)
		return fault;
	return r == MDB_NOTFOUND ? 0 : store_lmdb_errno(r);
}

static int compare_placed(const void *a, const void *b)
{
	const struct placed *x = a, *y = b;

	if (x->extent.segment != y->extent.segment)
		return x->extent.segment < y->extent.segment ? -1 : 1;
	return x->extent.offset < y->extent.offset ? -1 : x->extent.offset > y->extent.offset;
}

/* Rows whose extent is not there go; the others are counted. */
static int drop_hollow(struct store *store, MDB_txn *txn, const struct inventory *list,
		       const bool *hollow)
{
	for (uint32_t i = 0; i < list->count; i++) {
		const struct placed *object = &list->objects[i];
		MDB_val key = { sizeof(object->hash), (void *)&object->hash };
		int r;

		if (!hollow[i]) {
			store->stats.objects++;
			store->stats.object_bytes += object->extent.size;
			store->kept_bytes += extent_room(object->extent.size);
			continue;
		}
		r = store_lmdb_errno(mdb_del(txn, store->objects, &key, NULL));
		if (r < 0)
			return r;
		store->stats.bad_objects++;
		store->stats.rotten++;
	}
	return store_prune_refs(store, txn);
}

static int settle(struct store *store, MDB_txn *txn, struct inventory *list)
{
	_cleanup_free_ struct extent *extents = calloc(list->count + 1, sizeof(*extents));
	_cleanup_free_ bool *hollow = calloc(list->count + 1, sizeof(*hollow));
	int r;

	if (!extents || !hollow)
		return -ENOMEM;
	if (list->count > 0)
		qsort(list->objects, list->count, sizeof(*list->objects), compare_placed);
	for (uint32_t i = 0; i < list->count; i++)
		extents[i] = list->objects[i].extent;
	r = segments_settle(store->segments, extents, list->count, hollow);
	return r == 0 ? drop_hollow(store, txn, list, hollow) : r;
}

int store_reconcile(struct store *store)
{
	struct inventory list = { 0 };
	MDB_txn *txn = NULL;
	int r = store_lmdb_errno(mdb_txn_begin(store->index, NULL, 0, &txn));

	if (r < 0)
		return r;
	r = list_objects(store, txn, &list);
	if (r == 0)
		r = settle(store, txn, &list);
	free(list.objects);
	if (r < 0) {
		mdb_txn_abort(txn);
		return r;
	}
	return store_lmdb_errno(mdb_txn_commit(txn));
}
