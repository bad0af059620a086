// SPDX-License-Identifier: LGPL-2.1-or-later
/* Objects that are here: rows, reading, and rot. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "agent/util/io.h"
#include "overlay/store/internal.h"

enum { IO_BYTES = 256 << 10, DAY_MS = 24 * 3600 * 1000, TRIES = 4 };

int store_row_read(struct store *store, MDB_txn *txn, const struct object_hash *hash,
		   struct object_row *ret_row)
{
	MDB_val key = { sizeof(*hash), (void *)hash }, value;
	int r = store_lmdb_errno(mdb_get(txn, store->objects, &key, &value));

	if (r == 0 && value.mv_size != sizeof(*ret_row))
		r = -EIO;
	if (r == 0)
		memcpy(ret_row, value.mv_data, sizeof(*ret_row));
	return r;
}

int store_row_write(struct store *store, MDB_txn *txn, const struct object_hash *hash,
		    const struct object_row *row)
{
	MDB_val key = { sizeof(*hash), (void *)hash }, value = { sizeof(*row), (void *)row };

	return store_lmdb_errno(mdb_put(txn, store->objects, &key, &value, 0));
}

void store_release(struct store *store, const struct extent *extent)
{
	segments_release(store->segments, extent, true);
	pthread_mutex_lock(&store->lock);
	store->kept_bytes -= extent_room(extent->size);
	pthread_mutex_unlock(&store->lock);
}

/*
 * Rot: the row, all references and the extent go. -EAGAIN: the object has gone or come again while
 * it was read, so what was read means nothing.
 */
static int drop_rotten(struct store *store, const struct object_hash *hash,
		       const struct object_row *read)
{
	MDB_val key = { sizeof(*hash), (void *)hash };
	struct extent extent = store_row_extent(read);
	struct object_row row;
	MDB_txn *txn = NULL;
	int r = store_lmdb_errno(mdb_txn_begin(store->index, NULL, 0, &txn));

	if (r < 0)
		return r;
	r = store_row_read(store, txn, hash, &row);
	if (r == -ENOENT || (r == 0 && !store_row_same_place(&row, read)))
		r = -EAGAIN;
	if (r == 0)
		r = store_lmdb_errno(mdb_del(txn, store->objects, &key, NULL));
	if (r == 0)
		r = store_prune_refs(store, txn);
	if (r < 0) {
		mdb_txn_abort(txn);
		return r;
	}
	r = store_lmdb_errno(mdb_txn_commit(txn));
	if (r < 0)
		return r;
	pthread_mutex_lock(&store->lock);
	store->stats.objects--;
	store->stats.object_bytes -= read->size;
	store->stats.bad_objects++;
	store->stats.rotten++;
	pthread_mutex_unlock(&store->lock);
	store_release(store, &extent);
	return 0;
}

int store_row_find(struct store *store, const struct object_hash *hash, struct object_row *ret_row)
{
	MDB_txn *txn = NULL;
	int r = store_lmdb_errno(mdb_txn_begin(store->index, NULL, MDB_RDONLY, &txn));

	if (r < 0)
		return r;
	r = store_row_read(store, txn, hash, ret_row);
	mdb_txn_abort(txn);
	return r;
}

/*
 * Reads the extent, hashes it, and leaves it in `out`, or in the file, if that is given. -EBADMSG: it
 * is not whole.
 */
static int read_checked(struct store *store, const struct extent *extent, int in, uint8_t *out,
			int file, const struct object_hash *hash)
{
	EVP_MD_CTX *digest = EVP_MD_CTX_new();
	_cleanup_free_ uint8_t *room = out ? NULL : malloc(IO_BYTES);
	struct object_hash found;
	unsigned int found_size = sizeof(found.b);
	uint32_t done = 0;
	int r = 0;

	/* Advice only: the disk goes on while what it has read is hashed. */
	(void)posix_fadvise(in, (off_t)extent->offset, extent->size, POSIX_FADV_WILLNEED);
	if (!digest || (!out && !room) || EVP_DigestInit_ex(digest, EVP_sha256(), NULL) != 1)
		r = -ENOMEM;
	while (r == 0 && done < extent->size) {
		size_t left = extent->size - done, part = left < IO_BYTES ? left : IO_BYTES;
		uint8_t *buf = out ? out + done : room;

		/* Piece by piece: what was just read is hashed, and written, while the cache has it. */
		r = store_io_read(store->io, in, buf, part, extent->offset + done);
		/* A sector that cannot be read twice is rot, too; once may be the cable. */
		if (r == -EIO)
			r = store_io_read(store->io, in, buf, part, extent->offset + done);
		if (r == -ENODATA || r == -EIO)
			r = -EBADMSG;
		if (r == 0 && EVP_DigestUpdate(digest, buf, part) != 1)
			r = -ENOMEM;
		if (r == 0 && file >= 0)
			r = write_full(file, buf, part);
		done += (uint32_t)part;
	}
	if (r == 0 && EVP_DigestFinal_ex(digest, found.b, &found_size) != 1)
		r = -ENOMEM;
	if (r == 0 && memcmp(&found, hash, sizeof(found)) != 0)
		r = -EBADMSG;
	EVP_MD_CTX_free(digest);
	return r;
}

static void note_checked(struct store *store, const struct object_hash *hash,
			 const struct object_row *old)
{
	uint64_t now = now_wall_ms();
	struct object_row row;
	MDB_txn *txn = NULL;

	/* To the day: a read shall not cost a write. */
	if (now >= old->checked_wall_ms && now - old->checked_wall_ms < DAY_MS)
		return;
	if (mdb_txn_begin(store->index, NULL, 0, &txn))
		return;
	if (store_row_read(store, txn, hash, &row) < 0) {
		mdb_txn_abort(txn);
		return;
	}
	row.checked_wall_ms = now;
	if (store_row_write(store, txn, hash, &row) < 0)
		mdb_txn_abort(txn);
	else
		(void)mdb_txn_commit(txn);
}

int store_read_object(struct store *store, const struct object_hash *hash,
		      const struct object_row *row, uint8_t *out, int file)
{
	const struct extent extent = store_row_extent(row);
	_cleanup_close_ int in = -1;
	int r = segments_open_extent(store->segments, &extent, &in);

	r = r == -ENOENT ? -EBADMSG : r;
	if (r == 0)
		r = read_checked(store, &extent, in, out, file, hash);
	if (r == -EBADMSG) {
		r = drop_rotten(store, hash, row);
		if (r == 0)
			segments_distrust(store->segments, &extent);
		return r < 0 ? r : -ENOENT;
	}
	if (r == 0)
		note_checked(store, hash, row);
	return r;
}

/* Into memory, or into a file if ret_file is given. */
static int read_out(struct store *store, const struct object_hash *hash, uint8_t **ret_bytes,
		    int *ret_file, uint32_t *ret_size)
{
	for (int i = 0; i < TRIES; i++) {
		_cleanup_free_ uint8_t *bytes = NULL;
		_cleanup_close_ int file = -1;
		struct object_row row;
		int r = store_row_find(store, hash, &row);

		if (r < 0)
			return r;
		if (ret_file)
			file = memfd_new("object");
		else
			bytes = malloc(row.size);
		if (!bytes && file < 0)
			return ret_file ? file : -ENOMEM;
		r = store_read_object(store, hash, &row, bytes, file);
		if (r == -EAGAIN)
			continue;
		if (r < 0)
			return r;
		*ret_size = row.size;
		if (ret_file)
			*ret_file = take_fd(file);
		else
			*ret_bytes = take_ptr(bytes);
		return 0;
	}
	return -EAGAIN;
}

int store_read(struct store *store, const struct object_hash *hash, uint8_t **ret_bytes,
	       uint32_t *ret_size)
{
	return read_out(store, hash, ret_bytes, NULL, ret_size);
}

int store_get(struct store *store, const struct object_hash *hash, int *ret_memfd,
	      uint32_t *ret_size)
{
	_cleanup_close_ int file = -1;
	uint32_t size;
	int r = read_out(store, hash, NULL, &file, &size);

	if (r == 0)
		r = memfd_seal(file);
	if (r < 0)
		return r;
	*ret_size = size;
	*ret_memfd = take_fd(file);
	return 0;
}
