// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "agent/util/io.h"
#include "overlay/core/holders.h"
#include "overlay/store/internal.h"

enum { IO_BYTES = 256 << 10, DAY_MS = 24 * 3600 * 1000 };

struct store_put {
	struct store *store;
	struct ov_object object;
	char temporary[32];
	int fd;
	uint64_t written_bytes;
	EVP_MD_CTX *digest;
};

uint64_t store_room_bytes(struct store *store)
{
	uint64_t disk = 0, taken, room = 0;
	struct statvfs fs;

	if (fstatvfs(store->objects_fd, &fs) == 0)
		disk = (uint64_t)fs.f_bavail * fs.f_frsize;
	pthread_mutex_lock(&store->lock);
	taken = store->stats.object_bytes + store->arriving_bytes;
	if (store->quota_bytes > taken && disk > store->reserve_bytes + store->arriving_bytes) {
		room = store->quota_bytes - taken;
		disk -= store->reserve_bytes + store->arriving_bytes;
		room = disk < room ? disk : room;
	}
	pthread_mutex_unlock(&store->lock);
	return room;
}

uint64_t store_short_bytes(struct store *store)
{
	uint64_t room = store_room_bytes(store), margin;

	pthread_mutex_lock(&store->lock);
	margin = store->quota_bytes / 8;
	if (margin > OV_PACK_MAX)
		margin = OV_PACK_MAX;
	if (margin < store->quota_bytes / CORE_TRIM_SHARE)
		margin = store->quota_bytes / CORE_TRIM_SHARE;
	pthread_mutex_unlock(&store->lock);
	return room < margin ? margin - room : 0;
}

/* Room for `size` more bytes, counted as taken until arriving_done(). */
static int arriving_begin(struct store *store, uint32_t size)
{
	int r = 0;

	/* Puts begin in one thread, so nobody takes the room between the question and the entry. */
	if (store_room_bytes(store) < size)
		return -ENOSPC;
	pthread_mutex_lock(&store->lock);
	if (store->arriving_count >= STORE_ARRIVING_MAX) {
		r = -EAGAIN;
	} else {
		store->arriving_bytes += size;
		store->arriving_count++;
	}
	pthread_mutex_unlock(&store->lock);
	return r;
}

static void arriving_done(struct store *store, uint32_t size)
{
	pthread_mutex_lock(&store->lock);
	store->arriving_bytes -= size;
	store->arriving_count--;
	pthread_mutex_unlock(&store->lock);
}

static int fence_of_put(struct store *store, const struct ov_object *object)
{
	MDB_txn *txn = NULL;
	int r = mdb_txn_begin(store->index, NULL, MDB_RDONLY, &txn);

	if (r)
		return store_lmdb_errno(r);
	r = store_fence_check(store, txn, &object->job, &object->token, false);
	mdb_txn_abort(txn);
	return r;
}

static int put_open(struct store_put *put)
{
	uint8_t salt[12];

	if (getrandom(salt, sizeof(salt), 0) != sizeof(salt))
		return -EIO;
	hex_encode(salt, sizeof(salt), put->temporary);
	put->fd = openat(put->store->tmp_fd, put->temporary,
			 O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (put->fd < 0)
		return -errno;
	put->digest = EVP_MD_CTX_new();
	if (!put->digest || EVP_DigestInit_ex(put->digest, EVP_sha256(), NULL) != 1)
		return -ENOMEM;
	return 0;
}

int store_put_begin(struct store *store, const struct ov_object *object, struct store_put **ret_put)
{
	struct store_put *put;
	int r;

	if (object->size == 0 || object->size > OV_PACK_MAX)
		return -EINVAL;
	r = fence_of_put(store, object);
	if (r < 0)
		return r;
	r = arriving_begin(store, object->size);
	if (r < 0)
		return r;
	put = calloc(1, sizeof(*put));
	if (!put) {
		arriving_done(store, object->size);
		return -ENOMEM;
	}
	put->store = store;
	put->object = *object;
	put->fd = -1;
	r = put_open(put);
	if (r < 0) {
		store_put_abort(put);
		return r;
	}
	*ret_put = put;
	return 0;
}

int store_put_write(struct store_put *put, const void *bytes, size_t size)
{
	int r;

	if (size > put->object.size - put->written_bytes)
		return -EBADMSG;
	if (EVP_DigestUpdate(put->digest, bytes, size) != 1)
		return -ENOMEM;
	r = write_full(put->fd, bytes, size);
	if (r < 0)
		return r;
	put->written_bytes += size;
	return 0;
}

void store_put_abort(struct store_put *put)
{
	if (!put)
		return;
	if (put->fd >= 0) {
		close(put->fd);
		unlinkat(put->store->tmp_fd, put->temporary, 0);
	}
	EVP_MD_CTX_free(put->digest);
	arriving_done(put->store, put->object.size);
	free(put);
}

static int fsync_folder(struct store *store, const char *path)
{
	char folder[3] = { path[0], path[1], '\0' };
	_cleanup_close_ int fd =
		openat(store->objects_fd, folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	return fsync(fd) < 0 ? -errno : 0;
}

/* Adds the job's reference; ret_new: the object had no row before. */
static int index_reference(struct store *store, MDB_txn *txn, const struct ov_object *object,
			   bool *ret_new)
{
	struct object_row row = { .size = object->size, .put_wall_ms = now_wall_ms() };
	struct ref_row ref = { .token = object->token, .seq = object->seq };
	struct ref_key ref_name = { .job = object->job, .hash = object->hash };
	MDB_val key = { sizeof(object->hash), (void *)&object->hash }, value;
	MDB_val ref_key = { sizeof(ref_name), &ref_name };
	bool fresh = false;
	int r = mdb_get(txn, store->objects, &key, &value);

	if (r == MDB_NOTFOUND)
		fresh = true;
	else if (!r && value.mv_size == sizeof(row))
		memcpy(&row, value.mv_data, sizeof(row));
	else
		return r ? store_lmdb_errno(r) : -EIO;
	row.checked_wall_ms = now_wall_ms();
	r = mdb_get(txn, store->refs, &ref_key, &value);
	if (r == MDB_NOTFOUND) {
		row.refs++;
	} else if (!r && value.mv_size == sizeof(ref)) {
		struct ref_row old;

		memcpy(&old, value.mv_data, sizeof(old));
		if (old.seq > ref.seq)
			ref.seq = old.seq;
	} else {
		return r ? store_lmdb_errno(r) : -EIO;
	}
	value = (MDB_val){ sizeof(ref), &ref };
	r = mdb_put(txn, store->refs, &ref_key, &value, 0);
	value = (MDB_val){ sizeof(row), &row };
	if (!r)
		r = mdb_put(txn, store->objects, &key, &value, 0);
	if (r)
		return store_lmdb_errno(r);
	*ret_new = fresh;
	return 0;
}

static int index_put(struct store *store, const struct ov_object *object)
{
	MDB_txn *txn = NULL;
	bool fresh = false;
	int r = mdb_txn_begin(store->index, NULL, 0, &txn);

	if (r)
		return store_lmdb_errno(r);
	r = store_fence_check(store, txn, &object->job, &object->token, true);
	if (r == 0)
		r = index_reference(store, txn, object, &fresh);
	if (r < 0) {
		mdb_txn_abort(txn);
		return r;
	}
	r = store_lmdb_errno(mdb_txn_commit(txn));
	if (r == 0 && fresh) {
		pthread_mutex_lock(&store->lock);
		store->stats.objects++;
		store->stats.object_bytes += object->size;
		pthread_mutex_unlock(&store->lock);
	}
	return r;
}

static int put_finish(struct store_put *put)
{
	struct store *store = put->store;
	struct object_hash hash;
	char path[3 + 64 + 1];
	unsigned int size = sizeof(hash.b);
	int r;

	if (put->written_bytes != put->object.size)
		return -ENODATA;
	if (EVP_DigestFinal_ex(put->digest, hash.b, &size) != 1)
		return -EIO;
	if (memcmp(&hash, &put->object.hash, sizeof(hash)) != 0) {
		store_count_bad(store);
		return -EBADMSG;
	}
	if (fsync(put->fd) < 0)
		return -errno;
	store_object_path(&hash, path);
	if (renameat(store->tmp_fd, put->temporary, store->objects_fd, path) < 0)
		return -errno;
	close(put->fd);
	put->fd = -1;
	r = fsync_folder(store, path);
	if (r < 0)
		return r;
	/* A failure from here on leaves a file without a row: the next open removes it. */
	return index_put(store, &put->object);
}

int store_put_commit(struct store_put *put)
{
	int r = put_finish(put);

	store_put_abort(put);
	return r;
}

/* Rot: the row, all references and the file go. */
static int drop_rotten(struct store *store, const struct object_hash *hash, uint32_t size)
{
	MDB_val key = { sizeof(*hash), (void *)hash };
	MDB_txn *txn = NULL;
	char path[3 + 64 + 1];
	int r = mdb_txn_begin(store->index, NULL, 0, &txn);

	if (r)
		return store_lmdb_errno(r);
	r = store_lmdb_errno(mdb_del(txn, store->objects, &key, NULL));
	if (r == 0)
		r = store_prune_refs(store, txn);
	if (r < 0) {
		mdb_txn_abort(txn);
		return r == -ENOENT ? 0 : r;
	}
	r = store_lmdb_errno(mdb_txn_commit(txn));
	if (r < 0)
		return r;
	store_object_path(hash, path);
	unlinkat(store->objects_fd, path, 0);
	pthread_mutex_lock(&store->lock);
	store->stats.objects--;
	store->stats.object_bytes -= size;
	store->stats.bad_objects++;
	pthread_mutex_unlock(&store->lock);
	return 0;
}

static int read_row(struct store *store, const struct object_hash *hash, struct object_row *ret_row)
{
	MDB_val key = { sizeof(*hash), (void *)hash }, value;
	MDB_txn *txn = NULL;
	int r = mdb_txn_begin(store->index, NULL, MDB_RDONLY, &txn);

	if (r)
		return store_lmdb_errno(r);
	r = store_lmdb_errno(mdb_get(txn, store->objects, &key, &value));
	if (r == 0 && value.mv_size != sizeof(*ret_row))
		r = -EIO;
	if (r == 0)
		memcpy(ret_row, value.mv_data, sizeof(*ret_row));
	mdb_txn_abort(txn);
	return r;
}

/* Copies in -> out and hashes; -EBADMSG if it is not `size` bytes of that hash. */
static int copy_checked(int in, int out, uint32_t size, const struct object_hash *hash)
{
	EVP_MD_CTX *digest = EVP_MD_CTX_new();
	_cleanup_free_ uint8_t *buf = malloc(IO_BYTES);
	struct object_hash found;
	unsigned int found_size = sizeof(found.b);
	uint32_t left = size;
	int r = 0;

	if (!digest || !buf || EVP_DigestInit_ex(digest, EVP_sha256(), NULL) != 1)
		r = -ENOMEM;
	while (r == 0 && left > 0) {
		size_t part = left < IO_BYTES ? left : IO_BYTES;

		r = read_full(in, buf, part);
		if (r == -ENODATA || r == -EIO)
			r = -EBADMSG;
		if (r == 0 && EVP_DigestUpdate(digest, buf, part) != 1)
			r = -ENOMEM;
		if (r == 0)
			r = write_full(out, buf, part);
		left -= (uint32_t)part;
	}
	if (r == 0 && EVP_DigestFinal_ex(digest, found.b, &found_size) != 1)
		r = -EIO;
	if (r == 0 && memcmp(&found, hash, sizeof(found)) != 0)
		r = -EBADMSG;
	EVP_MD_CTX_free(digest);
	return r;
}

static void note_checked(struct store *store, const struct object_hash *hash,
			 const struct object_row *old)
{
	MDB_val key = { sizeof(*hash), (void *)hash }, value;
	uint64_t now = now_wall_ms();
	struct object_row row;
	MDB_txn *txn = NULL;

	/* To the day: a read shall not cost a write. */
	if (now >= old->checked_wall_ms && now - old->checked_wall_ms < DAY_MS)
		return;
	if (mdb_txn_begin(store->index, NULL, 0, &txn))
		return;
	if (mdb_get(txn, store->objects, &key, &value) || value.mv_size != sizeof(row)) {
		mdb_txn_abort(txn);
		return;
	}
	memcpy(&row, value.mv_data, sizeof(row));
	row.checked_wall_ms = now;
	value = (MDB_val){ sizeof(row), &row };
	if (mdb_put(txn, store->objects, &key, &value, 0))
		mdb_txn_abort(txn);
	else
		(void)mdb_txn_commit(txn);
}

int store_get(struct store *store, const struct object_hash *hash, int *ret_memfd,
	      uint32_t *ret_size)
{
	_cleanup_close_ int in = -1, out = -1;
	char path[3 + 64 + 1];
	struct object_row row;
	int r = read_row(store, hash, &row);

	if (r < 0)
		return r;
	store_object_path(hash, path);
	in = openat(store->objects_fd, path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (in < 0 && errno != ENOENT)
		return -errno;
	out = memfd_new("object");
	if (out < 0)
		return out;
	r = in < 0 ? -EBADMSG : copy_checked(in, out, row.size, hash);
	if (r == -EBADMSG) {
		r = drop_rotten(store, hash, row.size);
		return r < 0 ? r : -ENOENT;
	}
	if (r == 0)
		r = memfd_seal(out);
	if (r < 0)
		return r;
	note_checked(store, hash, &row);
	*ret_size = row.size;
	*ret_memfd = take_fd(out);
	return 0;
}
