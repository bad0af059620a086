// SPDX-License-Identifier: LGPL-2.1-or-later
/* Objects that arrive: room, bytes, and several at a time to the disk. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "agent/util/io.h"
#include "overlay/store/internal.h"

struct store_put {
	struct store *store;
	struct ov_object object;
	struct extent extent, old; /* old: what the index named before, if it did */
	bool reserved, replaces, fresh;
	uint64_t written_bytes;
	EVP_MD_CTX *digest;
};

/* Room for `size` more bytes, counted as taken until arriving_done(). */
static int arriving_begin(struct store *store, uint32_t size)
{
	uint64_t free_bytes = 0, dead = segments_dead_bytes(store->segments);
	int r = store->io->free_bytes(store->io->ctx, store->state_fd, &free_bytes);

	if (r < 0)
		return r;
	pthread_mutex_lock(&store->lock);
	if (store_room_of(store, free_bytes, dead) < extent_room(size)) {
		r = -ENOSPC;
	} else if (store->arriving_count >= STORE_ARRIVING_MAX) {
		r = -EAGAIN;
	} else {
		store->arriving_bytes += extent_room(size);
		store->arriving_count++;
	}
	pthread_mutex_unlock(&store->lock);
	return r;
}

static void arriving_done(struct store *store, uint32_t size)
{
	pthread_mutex_lock(&store->lock);
	store->arriving_bytes -= extent_room(size);
	store->arriving_count--;
	pthread_mutex_unlock(&store->lock);
}

int store_fence_look(struct store *store, const struct ov_object *object)
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
	int r = segments_reserve(put->store->segments, put->object.size, &put->extent);

	if (r < 0)
		return r;
	put->reserved = true;
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
	r = store_fence_look(store, object);
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
	r = segments_write(put->store->segments, &put->extent, (uint32_t)put->written_bytes, bytes,
			   size);
	if (r < 0)
		return r;
	put->written_bytes += size;
	return 0;
}

void store_put_abort(struct store_put *put)
{
	if (!put)
		return;
	if (put->reserved)
		segments_release(put->store->segments, &put->extent, false);
	EVP_MD_CTX_free(put->digest);
	arriving_done(put->store, put->object.size);
	free(put);
}

/* The bytes are what was announced. */
static int put_check(struct store_put *put)
{
	struct object_hash hash;
	unsigned int size = sizeof(hash.b);

	if (put->written_bytes != put->object.size)
		return -ENODATA;
	if (EVP_DigestFinal_ex(put->digest, hash.b, &size) != 1)
		return -EIO;
	if (memcmp(&hash, &put->object.hash, sizeof(hash)) != 0) {
		store_count_bad(put->store);
		return -EBADMSG;
	}
	return 0;
}

int store_reference(struct store *store, MDB_txn *txn, const struct ov_object *object,
		    bool *ret_new)
{
	struct ref_row ref = { .token = object->token, .seq = object->seq }, old;
	struct ref_key name = { .job = object->job, .hash = object->hash };
	MDB_val key = { sizeof(name), &name }, value;
	int r = mdb_get(txn, store->refs, &key, &value);

	*ret_new = r == MDB_NOTFOUND;
	if (r && r != MDB_NOTFOUND)
		return store_lmdb_errno(r);
	if (!r && value.mv_size != sizeof(old))
		return -EIO;
	if (!r) {
		memcpy(&old, value.mv_data, sizeof(old));
		if (old.seq > ref.seq)
			ref.seq = old.seq;
	}
	value = (MDB_val){ sizeof(ref), &ref };
	r = store_lmdb_errno(mdb_put(txn, store->refs, &key, &value, 0));
	return r == 0 ? store_lost_delete(store, txn, &name) : r;
}

/*
 * The object that has just come is known to be whole; the one that the index names may have rotted.
 * So the new one stays.
 */
static int index_object(struct store_put *put, MDB_txn *txn)
{
	const struct ov_object *object = &put->object;
	struct object_row row = { .size = object->size, .put_wall_ms = now_wall_ms() };
	struct store *store = put->store;
	bool is_new = false;
	int r = store_fence_check(store, txn, &object->job, &object->token, true);

	if (r == 0)
		r = store_row_read(store, txn, &object->hash, &row);
	put->fresh = r == -ENOENT;
	put->replaces = r == 0;
	if (r < 0 && r != -ENOENT)
		return r;
	if (put->replaces)
		put->old = store_row_extent(&row);
	r = store_reference(store, txn, object, &is_new);
	if (r < 0)
		return r;
	row.refs += is_new;
	row.size = object->size;
	row.checked_wall_ms = now_wall_ms();
	row.segment = put->extent.segment;
	row.offset = put->extent.offset;
	return store_row_write(store, txn, &object->hash, &row);
}

/*
 * One transaction for all whose status is 0. Returns what ended it as a whole; *ret_unknown: it may
 * be on the disk all the same.
 */
static int index_puts(struct store *store, struct store_put *const *puts, uint32_t count,
		      int *status, bool *ret_unknown)
{
	MDB_txn *txn = NULL;
	int r = store_lmdb_errno(mdb_txn_begin(store->index, NULL, 0, &txn));

	*ret_unknown = false;
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < count && r == 0; i++) {
		if (status[i] < 0)
			continue;
		r = index_object(puts[i], txn);
		if (r == -ESTALE) {
			status[i] = r; /* and nothing of it was written */
			r = 0;
		}
	}
	if (r < 0) {
		mdb_txn_abort(txn);
		return r;
	}
	r = store_lmdb_errno(mdb_txn_commit(txn));
	*ret_unknown = r < 0;
	return r;
}

static void put_kept(struct store_put *put)
{
	struct store *store = put->store;

	segments_keep(store->segments, &put->extent);
	put->reserved = false;
	pthread_mutex_lock(&store->lock);
	store->kept_bytes += extent_room(put->object.size);
	if (put->fresh) {
		store->stats.objects++;
		store->stats.object_bytes += put->object.size;
	}
	store->stats.puts++;
	pthread_mutex_unlock(&store->lock);
}

static void puts_index(struct store *store, struct store_put *const *puts, uint32_t count,
		       int *status)
{
	bool unknown;
	int r = index_puts(store, puts, count, status, &unknown);

	if (r < 0 && !unknown && count > 1) {
		/* What one of them met is not for the others to bear. */
		for (uint32_t i = 0; i < count; i++)
			puts_index(store, &puts[i], 1, &status[i]);
		return;
	}
	for (uint32_t i = 0; i < count; i++) {
		if (status[i] < 0)
			continue;
		status[i] = r;
		if (r == 0)
			put_kept(puts[i]);
		if (r < 0 && unknown) {
			segments_abandon(store->segments, &puts[i]->extent);
			puts[i]->reserved = false;
		}
	}
	/* One of these may have come in this very group. */
	for (uint32_t i = 0; i < count; i++)
		if (status[i] == 0 && puts[i]->replaces)
			store_release(store, &puts[i]->old);
}

void store_puts_commit(struct store_put *const *puts, uint32_t count, int *status)
{
	struct extent extents[STORE_ARRIVING_MAX] = { 0 };
	int synced[STORE_ARRIVING_MAX];
	uint32_t good = 0, at = 0;
	struct store *store;

	if (count == 0)
		return;
	store = puts[0]->store;
	for (uint32_t i = 0; i < count; i++) {
		status[i] = put_check(puts[i]);
		if (status[i] == 0)
			extents[good++] = puts[i]->extent;
	}
	segments_sync(store->segments, extents, good, synced);
	for (uint32_t i = 0; i < count; i++)
		if (status[i] == 0)
			status[i] = synced[at++];
	pthread_mutex_lock(&store->lock);
	store->stats.put_syncs++;
	pthread_mutex_unlock(&store->lock);
	puts_index(store, puts, count, status);
	for (uint32_t i = 0; i < count; i++)
		store_put_abort(puts[i]);
}

int store_put_commit(struct store_put *put)
{
	int status;

	store_puts_commit(&put, 1, &status);
	return status;
}
