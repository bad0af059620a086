// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * From version 1, one file per object below objects/, to version 2:
 *
 *   all rows name a segment of their own (one transaction) -> each file is renamed to be it ->
 *   the rest of objects/ goes -> the new version is written
 *
 * No content is copied, and no step has to be undone: until the version is written every open
 * begins anew, and what is done already is passed over.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "agent/util/io.h"
#include "overlay/store/internal.h"

enum { OLD_PATH_SIZE = 3 + 64 + 1 };

struct old_rows {
	struct object_hash *hashes;
	struct object_row *rows; /* as they are to be */
	uint32_t count, room;
};

static int old_rows_add(struct old_rows *list, const struct object_hash *hash,
			const struct object_row *row)
{
	if (list->count == list->room) {
		uint32_t room = list->room ? list->room * 2 : 1024;
		struct object_hash *hashes = realloc(list->hashes, room * sizeof(*hashes));
		struct object_row *rows;

		if (!hashes)
			return -ENOMEM;
		list->hashes = hashes;
		rows = realloc(list->rows, room * sizeof(*rows));
		if (!rows)
			return -ENOMEM;
		list->rows = rows;
		list->room = room;
	}
	list->hashes[list->count] = *hash;
	list->rows[list->count++] = *row;
	return 0;
}

/* A row of version 1 gets the next segment; one of version 2 keeps what it has. */
static int read_old_row(const MDB_val *key, const MDB_val *value, uint32_t *next,
			struct old_rows *list)
{
	struct object_row_v1 old;
	struct object_row row = { 0 };
	struct object_hash hash;

	if (key->mv_size != sizeof(hash))
		return -EIO;
	memcpy(&hash, key->mv_data, sizeof(hash));
	if (value->mv_size == sizeof(row)) {
		memcpy(&row, value->mv_data, sizeof(row));
	} else if (value->mv_size == sizeof(old)) {
		memcpy(&old, value->mv_data, sizeof(old));
		row = (struct object_row){ .size = old.size,
					   .refs = old.refs,
					   .put_wall_ms = old.put_wall_ms,
					   .checked_wall_ms = old.checked_wall_ms,
					   .segment = (*next)++ };
	} else {
		return -EIO;
	}
	return old_rows_add(list, &hash, &row);
}

static int list_rows(struct store *store, MDB_txn *txn, struct old_rows *list)
{
	MDB_cursor *cursor = NULL;
	uint32_t next = 1;
	MDB_val key, value;
	int r = mdb_cursor_open(txn, store->objects, &cursor), fault = 0;

	if (r)
		return store_lmdb_errno(r);
	r = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
	while (!r && !fault) {
		fault = read_old_row(&key, &value, &next, list);
		r = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
	}
	mdb_cursor_close(cursor);
	if (fault)
		return fault;
	return r == MDB_NOTFOUND ? 0 : store_lmdb_errno(r);
}

static int convert_rows(struct store *store, struct old_rows *list)
{
	MDB_txn *txn = NULL;
	int r = store_lmdb_errno(mdb_txn_begin(store->index, NULL, 0, &txn));

	if (r < 0)
		return r;
	r = list_rows(store, txn, list);
	for (uint32_t i = 0; i < list->count && r == 0; i++)
		r = store_row_write(store, txn, &list->hashes[i], &list->rows[i]);
	if (r < 0) {
		mdb_txn_abort(txn);
		return r;
	}
	return store_lmdb_errno(mdb_txn_commit(txn));
}

/* A file that is not there was renamed before, or is lost: store_reconcile() finds out. */
static int rename_files(struct store *store, int objects_fd, int segments_fd,
			const struct old_rows *list)
{
	const struct store_io *io = store->io;

	for (uint32_t i = 0; i < list->count; i++) {
		char old_path[OLD_PATH_SIZE], name[9];
		int r;

		hex_encode(list->hashes[i].b, 1, old_path);
		old_path[2] = '/';
		hex_encode(list->hashes[i].b, sizeof(list->hashes[i].b), old_path + 3);
		snprintf(name, sizeof(name), "%08x", list->rows[i].segment);
		r = io->renameat(io->ctx, objects_fd, old_path, segments_fd, name);
		if (r < 0 && r != -ENOENT)
			return r;
	}
	return io->fsync(io->ctx, segments_fd);
}

/* What is left in one folder: objects that no row spoke of, and those that were arriving. */
static int remove_folder(struct store *store, int objects_fd, const char *folder)
{
	const struct store_io *io = store->io;
	_cleanup_closedir_ DIR *dir = NULL;
	struct dirent *entry;
	int fd = openat(objects_fd, folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	dir = fdopendir(fd);
	if (!dir) {
		close(fd);
		return -ENOMEM;
	}
	while ((entry = readdir(dir))) {
		int r;

		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		r = io->unlinkat(io->ctx, fd, entry->d_name, 0);
		if (r < 0 && r != -ENOENT)
			return r;
	}
	return io->unlinkat(io->ctx, objects_fd, folder, AT_REMOVEDIR);
}

static int remove_objects(struct store *store, int objects_fd)
{
	const struct store_io *io = store->io;
	int r = remove_folder(store, objects_fd, "tmp");

	for (unsigned int i = 0; i < 256 && r == 0; i++) {
		char folder[3];

		snprintf(folder, sizeof(folder), "%02x", i);
		r = remove_folder(store, objects_fd, folder);
	}
	return r == 0 ? io->unlinkat(io->ctx, store->state_fd, "objects", AT_REMOVEDIR) : r;
}

static int move_files(struct store *store, const struct old_rows *list)
{
	const int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
	const struct store_io *io = store->io;
	_cleanup_close_ int objects_fd = openat(store->state_fd, "objects", flags);
	_cleanup_close_ int segments_fd = -1;
	int r;

	if (objects_fd < 0)
		return errno == ENOENT ? 0 : -errno;
	r = io->mkdirat(io->ctx, store->state_fd, "segments", 0700);
	if (r < 0 && r != -EEXIST)
		return r;
	r = io->fsync(io->ctx, store->state_fd);
	if (r < 0)
		return r;
	segments_fd = openat(store->state_fd, "segments", flags);
	if (segments_fd < 0)
		return -errno;
	r = rename_files(store, objects_fd, segments_fd, list);
	return r == 0 ? remove_objects(store, objects_fd) : r;
}

int store_migrate(struct store *store)
{
	struct old_rows list = { 0 };
	int r = convert_rows(store, &list);

	if (r == 0)
		r = move_files(store, &list);
	if (r == 0)
		r = store_format_write(store->io, store->state_fd);
	free(list.hashes);
	free(list.rows);
	return r;
}
