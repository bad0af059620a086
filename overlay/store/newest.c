// SPDX-License-Identifier: LGPL-2.1-or-later
/* The newest manifests of a job, for when nobody is left who could name them. */
#include <errno.h>
#include <string.h>

#include "agent/util/io.h"
#include "overlay/store/internal.h"

static bool is_manifest(struct store *store, const struct extent *extent)
{
	static const char magic[] = { 'D', 'E', 'C', 'A', 'M', 'P', 'M', 'F' };
	_cleanup_close_ int fd = -1;
	char found[sizeof(magic)];

	return extent->size >= sizeof(magic) &&
	       segments_open_extent(store->segments, extent, &fd) == 0 &&
	       store_io_read(store->io, fd, found, sizeof(found), extent->offset) == 0 &&
	       memcmp(found, magic, sizeof(magic)) == 0;
}

static bool is_newer(const struct ov_object *a, const struct ov_object *b)
{
	int order = fence_token_compare(&a->token, &b->token);

	return order ? order > 0 : a->seq > b->seq;
}

/* Keeps the list in order and short. */
static void insert(struct ov_object *list, uint32_t *count, const struct ov_object *object)
{
	uint32_t at = *count;

	while (at > 0 && is_newer(object, &list[at - 1]))
		at--;
	if (at == STORE_NEWEST_MAX)
		return;
	if (*count < STORE_NEWEST_MAX)
		(*count)++;
	memmove(&list[at + 1], &list[at], (*count - at - 1) * sizeof(list[0]));
	list[at] = *object;
}

/* A file is opened only of what would stand in the list. */
static int consider(struct store *store, MDB_txn *txn, const MDB_val *key, const MDB_val *value,
		    struct ov_object *list, uint32_t *count)
{
	struct ov_object object = { 0 };
	struct ref_key name;
	struct ref_row ref;
	struct object_row row;
	struct extent extent;
	int r;

	if (value->mv_size != sizeof(ref))
		return -EIO;
	memcpy(&name, key->mv_data, sizeof(name));
	memcpy(&ref, value->mv_data, sizeof(ref));
	object.job = name.job;
	object.hash = name.hash;
	object.token = ref.token;
	object.seq = ref.seq;
	if (*count == STORE_NEWEST_MAX && !is_newer(&object, &list[STORE_NEWEST_MAX - 1]))
		return 0;
	r = store_row_read(store, txn, &name.hash, &row);
	if (r < 0)
		return r == -ENOENT ? 0 : r;
	object.size = row.size;
	extent = store_row_extent(&row);
	if (is_manifest(store, &extent))
		insert(list, count, &object);
	return 0;
}

int store_newest(struct store *store, const struct job_id *job,
		 struct ov_object ret_objects[static STORE_NEWEST_MAX], uint32_t *ret_count)
{
	struct ref_key first = { .job = *job };
	MDB_val key = { sizeof(first), &first }, value;
	MDB_cursor *cursor = NULL;
	MDB_txn *txn = NULL;
	uint32_t count = 0;
	int r = mdb_txn_begin(store->index, NULL, MDB_RDONLY, &txn), fault = 0;

	if (r)
		return store_lmdb_errno(r);
	r = mdb_cursor_open(txn, store->refs, &cursor);
	if (!r)
		r = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
	while (!r && !fault) {
		if (key.mv_size != sizeof(first)) {
			fault = -EIO;
			break;
		}
		if (memcmp(key.mv_data, job, sizeof(*job)) != 0)
			break;
		fault = consider(store, txn, &key, &value, ret_objects, &count);
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
