// SPDX-License-Identifier: LGPL-2.1-or-later
/* An object that is here for one job is kept for another one, too: nothing arrives. */
#include <errno.h>

#include "overlay/store/internal.h"

enum { TRIES = 4 };

/* Within txn. -EAGAIN: the object has gone, or come again, since it was read. */
static int index_refer(struct store *store, MDB_txn *txn, const struct ov_object *object,
		       const struct object_row *read)
{
	struct object_row row;
	bool is_new = false;
	int r = store_fence_check(store, txn, &object->job, &object->token, true);

	if (r < 0)
		return r;
	r = store_row_read(store, txn, &object->hash, &row);
	if (r == -ENOENT || (r == 0 && !store_row_same_place(&row, read)))
		return -EAGAIN;
	if (r == 0)
		r = store_reference(store, txn, object, &is_new);
	if (r < 0)
		return r;
	row.refs += is_new;
	return store_row_write(store, txn, &object->hash, &row);
}

/* What was read is what is referred to: an extent is never written twice. */
static int refer_once(struct store *store, const struct ov_object *object)
{
	struct object_row row;
	MDB_txn *txn = NULL;
	int r = store_row_find(store, &object->hash, &row);

	if (r == 0 && row.size != object->size)
		r = -ENOENT;
	if (r == 0)
		r = store_read_object(store, &object->hash, &row, NULL, -1);
	if (r == 0)
		r = store_lmdb_errno(mdb_txn_begin(store->index, NULL, 0, &txn));
	if (r < 0)
		return r;
	r = index_refer(store, txn, object, &row);
	if (r < 0) {
		mdb_txn_abort(txn);
		return r;
	}
	/* If nobody knows whether it happened: a reference too many, which a retain drops. */
	return store_lmdb_errno(mdb_txn_commit(txn));
}

int store_refer(struct store *store, const struct ov_object *object)
{
	int r = store_fence_look(store, object);

	if (r < 0)
		return r;
	for (int i = 0; i < TRIES; i++) {
		r = refer_once(store, object);
		if (r != -EAGAIN)
			break;
	}
	return r;
}
