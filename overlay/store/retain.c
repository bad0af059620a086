// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "agent/util/io.h"
#include "overlay/store/internal.h"

int store_unref(struct store *store, MDB_txn *txn, const struct object_hash *hash,
		bool *ret_dropped, uint32_t *ret_size)
{
	MDB_val key = { sizeof(*hash), (void *)hash }, value;
	struct object_row row;
	int r = mdb_get(txn, store->objects, &key, &value);

	if (r == MDB_NOTFOUND) {
		*ret_dropped = false;
		return 0;
	}
	if (r || value.mv_size != sizeof(row))
		return r ? store_lmdb_errno(r) : -EIO;
	memcpy(&row, value.mv_data, sizeof(row));
	if (row.refs > 1) {
		row.refs--;
		value = (MDB_val){ sizeof(row), &row };
		*ret_dropped = false;
		return store_lmdb_errno(mdb_put(txn, store->objects, &key, &value, 0));
	}
	r = store_lmdb_errno(mdb_del(txn, store->objects, &key, NULL));
	if (r < 0)
		return r;
	*ret_size = row.size;
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

	for (uint32_t i = 0; i < list.count && r == 0; i++)
		r = delete_ref(store, txn, &list.keys[i]);
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

/* Leaves in *list those whose object nobody refers to any more. */
static int drop_references(struct store *store, MDB_txn *txn, struct key_list *list,
			   uint64_t *ret_bytes)
{
	uint32_t count = 0;
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < list->count; i++) {
		struct ref_key name = list->keys[i];
		bool dropped = false;
		uint32_t size = 0;
		int r = delete_ref(store, txn, &name);

		if (r == 0)
			r = store_unref(store, txn, &name.hash, &dropped, &size);
		if (r < 0)
			return r;
		if (dropped) {
			list->keys[count++] = name;
			bytes += size;
		}
	}
	list->count = count;
	*ret_bytes = bytes;
	return 0;
}

static void unlink_dropped(struct store *store, const struct key_list *list, uint64_t bytes)
{
	for (uint32_t i = 0; i < list->count; i++) {
		char path[3 + 64 + 1];

		store_object_path(&list->keys[i].hash, path);
		unlinkat(store->objects_fd, path, 0);
	}
	pthread_mutex_lock(&store->lock);
	store->stats.objects -= list->count;
	store->stats.object_bytes -= bytes;
	pthread_mutex_unlock(&store->lock);
}

static bool has_file(struct store *store, const struct object_hash *hash, uint32_t size)
{
	char path[3 + 64 + 1];
	struct stat st;

	store_object_path(hash, path);
	return fstatat(store->objects_fd, path, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
	       S_ISREG(st.st_mode) && st.st_size == size;
}

int store_vouch(struct store *store, const struct job_id *job, const struct object_hash *hash)
{
	struct ref_key name = { .job = *job, .hash = *hash };
	MDB_val key = { sizeof(name), &name }, hash_key = { sizeof(*hash), (void *)hash }, value;
	struct object_row row;
	MDB_txn *txn = NULL;
	int r = store_lmdb_errno(mdb_txn_begin(store->index, NULL, MDB_RDONLY, &txn));

	if (r < 0)
		return r;
	r = store_lmdb_errno(mdb_get(txn, store->refs, &key, &value));
	if (r == 0)
		r = store_lmdb_errno(mdb_get(txn, store->objects, &hash_key, &value));
	if (r == 0 && value.mv_size != sizeof(row))
		r = -EIO;
	if (r == 0) {
		memcpy(&row, value.mv_data, sizeof(row));
		r = has_file(store, hash, row.size) ? 0 : -ENOENT;
	}
	mdb_txn_abort(txn);
	return r;
}

int store_give_up(struct store *store, const struct job_id *job, const struct object_hash *hash)
{
	struct ref_key name = { .job = *job, .hash = *hash };
	struct key_list list = { .keys = &name, .count = 1, .room = 1 };
	uint64_t bytes = 0;
	MDB_txn *txn = NULL;
	int r = store_lmdb_errno(mdb_txn_begin(store->index, NULL, 0, &txn));

	if (r < 0)
		return r;
	r = drop_references(store, txn, &list, &bytes);
	if (r < 0)
		mdb_txn_abort(txn);
	else
		r = store_lmdb_errno(mdb_txn_commit(txn));
	if (r == 0)
		unlink_dropped(store, &list, bytes);
	return r;
}

int store_drop_job(struct store *store, const struct job_id *job, bool is_over,
		   uint32_t *ret_dropped)
{
	const struct ov_retain all = { .job = *job, .upto_seq = UINT64_MAX };
	const struct object_hash none = { 0 };
	struct key_list list = { 0 };
	struct job_row row = { 0 };
	uint64_t bytes = 0;
	MDB_txn *txn = NULL;
	int r = store_lmdb_errno(mdb_txn_begin(store->index, NULL, 0, &txn));

	if (r < 0)
		return r;
	r = store_job_read(store, txn, job, &row);
	if (r == -ENOENT)
		r = 0;
	row.over = is_over;
	if (r == 0)
		r = store_job_write(store, txn, job, &row);
	if (r == 0)
		r = list_unwanted(store, txn, &all, &none, &list);
	if (r == 0)
		r = drop_references(store, txn, &list, &bytes);
	if (r < 0)
		mdb_txn_abort(txn);
	else
		r = store_lmdb_errno(mdb_txn_commit(txn));
	if (r == 0) {
		unlink_dropped(store, &list, bytes);
		*ret_dropped = list.count;
	}
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
	uint64_t bytes = 0;
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
		r = list_unwanted(store, txn, retain, kept, &list);
	if (r == 0)
		r = drop_references(store, txn, &list, &bytes);
	if (r < 0)
		mdb_txn_abort(txn);
	else
		r = store_lmdb_errno(mdb_txn_commit(txn));
	/* The rows are gone for good before the files: a crash here leaves orphans, not holes. */
	if (r == 0) {
		unlink_dropped(store, &list, bytes);
		*ret_dropped = list.count;
	}
	free(list.keys);
	return r;
}

/* A file that no row speaks of; `name` is one of folder `prefix`. */
static bool is_orphan(struct store *store, MDB_txn *txn, const char *prefix, const char *name)
{
	struct object_hash hash;
	MDB_val key = { sizeof(hash), &hash }, value;

	if (strncmp(prefix, name, 2) != 0 || hex_decode(name, hash.b, sizeof(hash.b)) < 0)
		return true;
	return mdb_get(txn, store->objects, &key, &value) == MDB_NOTFOUND;
}

static int sweep_folder(struct store *store, MDB_txn *txn, const char *folder)
{
	_cleanup_closedir_ DIR *dir = NULL;
	struct dirent *entry;
	int fd = openat(store->objects_fd, folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	dir = fdopendir(fd);
	if (!dir) {
		close(fd);
		return -ENOMEM;
	}
	while ((entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		if (txn && !is_orphan(store, txn, folder, entry->d_name))
			continue;
		if (unlinkat(dirfd(dir), entry->d_name, 0) < 0 && errno != ENOENT)
			return -errno;
	}
	return 0;
}

/* Counts the objects; lists rows whose file is missing or has another size. */
static int list_hollow(struct store *store, MDB_txn *txn, struct key_list *list)
{
	MDB_cursor *cursor = NULL;
	MDB_val key, value;
	int r = mdb_cursor_open(txn, store->objects, &cursor), fault = 0;

	if (r)
		return store_lmdb_errno(r);
	r = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
	while (!r && !fault) {
		struct ref_key name = { 0 };
		struct object_row row;

		if (key.mv_size != sizeof(name.hash) || value.mv_size != sizeof(row)) {
			fault = -EIO;
			break;
		}
		memcpy(&name.hash, key.mv_data, sizeof(name.hash));
		memcpy(&row, value.mv_data, sizeof(row));
		if (has_file(store, &name.hash, row.size)) {
			store->stats.objects++;
			store->stats.object_bytes += row.size;
		} else {
			fault = key_list_add(list, &name);
		}
		r = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
	}
	mdb_cursor_close(cursor);
	if (fault)
		return fault;
	return r == MDB_NOTFOUND ? 0 : store_lmdb_errno(r);
}

static int check_rows(struct store *store, MDB_txn *txn)
{
	struct key_list list = { 0 };
	int r = list_hollow(store, txn, &list);

	for (uint32_t i = 0; i < list.count && r == 0; i++) {
		MDB_val key = { sizeof(struct object_hash), &list.keys[i].hash };

		r = store_lmdb_errno(mdb_del(txn, store->objects, &key, NULL));
	}
	free(list.keys);
	return r == 0 ? store_prune_refs(store, txn) : r;
}

int store_reconcile(struct store *store)
{
	MDB_txn *txn = NULL;
	int r = store_lmdb_errno(mdb_txn_begin(store->index, NULL, 0, &txn));

	if (r < 0)
		return r;
	r = check_rows(store, txn);
	if (r < 0) {
		mdb_txn_abort(txn);
		return r;
	}
	r = store_lmdb_errno(mdb_txn_commit(txn));
	if (r < 0)
		return r;
	r = store_lmdb_errno(mdb_txn_begin(store->index, NULL, MDB_RDONLY, &txn));
	if (r < 0)
		return r;
	for (unsigned int i = 0; i < 256 && r == 0; i++) {
		char folder[3];

		snprintf(folder, sizeof(folder), "%02x", i);
		r = sweep_folder(store, txn, folder);
	}
	mdb_txn_abort(txn);
	return r < 0 ? r : sweep_folder(store, NULL, "tmp");
}
