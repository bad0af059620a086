// SPDX-License-Identifier: LGPL-2.1-or-later
/* Reads what nobody has read for long: rot is found while others still have copies. */
#include <errno.h>
#include <string.h>

#include "agent/util/io.h"
#include "overlay/store/internal.h"

/* The first object behind *at that is due; *at goes there. -ENOENT: none. */
static int find_due(struct store *store, uint64_t age_ms, struct object_hash *at,
		    struct object_row *ret_row)
{
	MDB_val key = { sizeof(*at), at }, value;
	uint64_t now = now_wall_ms();
	struct object_hash found;
	MDB_cursor *cursor = NULL;
	MDB_txn *txn = NULL;
	bool due = false;
	int r = mdb_txn_begin(store->index, NULL, MDB_RDONLY, &txn);

	if (r)
		return store_lmdb_errno(r);
	r = mdb_cursor_open(txn, store->objects, &cursor);
	if (!r)
		r = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
	while (!r && !due) {
		struct object_row row;

		if (key.mv_size != sizeof(found) || value.mv_size != sizeof(row)) {
			r = MDB_CORRUPTED;
			break;
		}
		memcpy(&found, key.mv_data, sizeof(found));
		memcpy(&row, value.mv_data, sizeof(row));
		/* A clock that was set back makes everything due. */
		due = memcmp(&found, at, sizeof(found)) != 0 &&
		      (now < row.checked_wall_ms || now - row.checked_wall_ms >= age_ms);
		if (due)
			*ret_row = row;
		else
			r = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
	}
	if (cursor)
		mdb_cursor_close(cursor);
	mdb_txn_abort(txn);
	if (due)
		*at = found;
	return store_lmdb_errno(r);
}

int store_scrub(struct store *store, uint64_t age_ms, struct object_hash *at, uint32_t *ret_size,
		bool *ret_rotten)
{
	struct object_hash found = *at;
	struct object_row row;
	int r = find_due(store, age_ms, &found, &row);

	if (r < 0)
		return r;
	r = store_read_object(store, &found, &row, NULL, -1);
	/* -EAGAIN: it has gone, or come again and was read then. */
	if (r < 0 && r != -ENOENT && r != -EAGAIN)
		return r;
	pthread_mutex_lock(&store->lock);
	store->stats.scrubbed++;
	store->stats.scrubbed_bytes += row.size;
	pthread_mutex_unlock(&store->lock);
	*at = found;
	*ret_size = row.size;
	*ret_rotten = r == -ENOENT;
	return 0;
}
