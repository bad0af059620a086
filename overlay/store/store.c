// SPDX-License-Identifier: LGPL-2.1-or-later
#include "overlay/store/store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "agent/util/io.h"
#include "overlay/core/holders.h"
#include "overlay/store/internal.h"

enum { ENV_PATH_MAX = 1024 };

int store_lmdb_errno(int r)
{
	if (r > 0)
		return -r;
	switch (r) {
	case 0:
		return 0;
	case MDB_NOTFOUND:
		return -ENOENT;
	case MDB_MAP_FULL:
		return -ENOSPC;
	default:
		return -EIO;
	}
}

static int env_open(const char *path, MDB_env **ret_env)
{
	MDB_env *env = NULL;
	int r = mdb_env_create(&env);

	if (r)
		return store_lmdb_errno(r);
	r = mdb_env_set_mapsize(env, STORE_MAP_BYTES);
	if (!r)
		r = mdb_env_set_maxdbs(env, 8);
	if (!r)
		r = mdb_env_open(env, path, MDB_NOTLS, 0600);
	if (r) {
		mdb_env_close(env);
		return store_lmdb_errno(r);
	}
	*ret_env = env;
	return 0;
}

static int sync_folder(const struct store_io *io, int dirfd, const char *name)
{
	int fd = io->openat(io->ctx, dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC,
			    0);
	int r;

	if (fd < 0)
		return fd;
	r = io->fsync(io->ctx, fd);
	close(fd);
	return r;
}

/*
 * LMDB begins a file with a write that it does not sync, and takes a torn one for no database of
 * its own for ever. So the file begins under another name.
 */
static int env_make(const struct store *store, const char *path, const char *name)
{
	static const char *const files[] = { "/data.mdb", "/lock.mdb" };
	const struct store_io *io = store->io;
	char fresh[ENV_PATH_MAX], file[ENV_PATH_MAX];
	MDB_env *env = NULL;
	int r;

	if (snprintf(fresh, sizeof(fresh), "%s.new", name) >= (int)sizeof(fresh))
		return -ENAMETOOLONG;
	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		if (snprintf(file, sizeof(file), "%s%s", fresh, files[i]) >= (int)sizeof(file))
			return -ENAMETOOLONG;
		r = io->unlinkat(io->ctx, store->state_fd, file, 0);
		if (r < 0 && r != -ENOENT)
			return r;
	}
	r = io->mkdirat(io->ctx, store->state_fd, fresh, 0700);
	if (r < 0 && r != -EEXIST)
		return r;
	if (snprintf(file, sizeof(file), "%s.new", path) >= (int)sizeof(file))
		return -ENAMETOOLONG;
	r = env_open(file, &env);
	if (r < 0)
		return r;
	r = store_lmdb_errno(mdb_env_sync(env, 1));
	mdb_env_close(env);
	if (r == 0)
		r = sync_folder(io, store->state_fd, fresh);
	if (r == 0)
		r = io->renameat(io->ctx, store->state_fd, fresh, store->state_fd, name);
	return r == 0 ? io->fsync(io->ctx, store->state_fd) : r;
}

int store_env_open(const struct store *store, const char *state_dir, const char *name,
		   MDB_env **ret_env)
{
	char path[ENV_PATH_MAX];
	struct stat st;
	int r;

	if (snprintf(path, sizeof(path), "%s/%s", state_dir, name) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	if (fstatat(store->state_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
		r = errno == ENOENT ? env_make(store, path, name) : -errno;
		if (r < 0)
			return r;
	}
	return env_open(path, ret_env);
}

static int open_tables(struct store *store)
{
	MDB_txn *txn = NULL;
	int r = mdb_txn_begin(store->index, NULL, 0, &txn);

	if (r)
		return store_lmdb_errno(r);
	r = mdb_dbi_open(txn, "objects", MDB_CREATE, &store->objects);
	if (!r)
		r = mdb_dbi_open(txn, "refs", MDB_CREATE, &store->refs);
	if (!r)
		r = mdb_dbi_open(txn, "fences", MDB_CREATE, &store->fences);
	if (!r)
		r = mdb_dbi_open(txn, "holders", MDB_CREATE, &store->holders);
	if (!r)
		r = mdb_dbi_open(txn, "lost", MDB_CREATE, &store->lost);
	if (!r)
		r = mdb_dbi_open(txn, "groups", MDB_CREATE, &store->groups);
	if (r) {
		mdb_txn_abort(txn);
		return store_lmdb_errno(r);
	}
	r = mdb_txn_commit(txn);
	if (r)
		return store_lmdb_errno(r);
	r = mdb_txn_begin(store->registers, NULL, 0, &txn);
	if (r)
		return store_lmdb_errno(r);
	r = mdb_dbi_open(txn, "records", MDB_CREATE, &store->records);
	if (!r)
		r = mdb_dbi_open(txn, "meta", MDB_CREATE, &store->meta);
	if (!r)
		r = mdb_dbi_open(txn, "tombs", MDB_CREATE, &store->tombs);
	if (r) {
		mdb_txn_abort(txn);
		return store_lmdb_errno(r);
	}
	return store_lmdb_errno(mdb_txn_commit(txn));
}

/* Whose store it is and of which version; nothing has been touched if it is refused. */
static int open_state(struct store *store, const char *state_dir, char why[static STORE_WHY_MAX],
		      uint32_t *ret_version)
{
	int r;

	store->state_fd = open(state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (store->state_fd < 0)
		return -errno;
	r = store_format_read(store->io, store->state_fd, why, ret_version);
	if (r == 0)
		r = store_lock(store->state_fd, why, &store->lock_fd);
	/* Whoever had it open a moment ago may have been newer. */
	return r == 0 ? store_format_read(store->io, store->state_fd, why, ret_version) : r;
}

int store_open_io(const char *state_dir, const struct store_io *io, char why[static STORE_WHY_MAX],
		  struct store **ret_store)
{
	struct store *store = calloc(1, sizeof(*store));
	uint32_t version = 0;
	int r;

	why[0] = '\0';
	if (!store)
		return -ENOMEM;
	store->io = io;
	store->state_fd = store->lock_fd = -1;
	pthread_mutex_init(&store->lock, NULL);
	r = open_state(store, state_dir, why, &version);
	if (r == 0)
		r = store_env_open(store, state_dir, "index", &store->index);
	if (r == 0)
		r = store_env_open(store, state_dir, "registers", &store->registers);
	if (r == 0)
		r = open_tables(store);
	if (r == 0 && version < STORE_VERSION)
		r = store_migrate(store);
	if (r == 0)
		r = segments_open(store->io, store->state_fd, &store->segments);
	if (r == 0)
		r = store_reconcile(store);
	if (r == 0)
		r = store_tombs_expire(store);
	if (r < 0) {
		store_close(store);
		return r;
	}
	*ret_store = store;
	return 0;
}

int store_open(const char *state_dir, struct store **ret_store)
{
	char why[STORE_WHY_MAX];

	return store_open_io(state_dir, &store_io_disk, why, ret_store);
}

void store_close(struct store *store)
{
	if (!store)
		return;
	if (store->index)
		mdb_env_close(store->index);
	if (store->registers)
		mdb_env_close(store->registers);
	segments_close(store->segments);
	close_fdp(&store->lock_fd);
	close_fdp(&store->state_fd);
	pthread_mutex_destroy(&store->lock);
	free(store);
}

/* --- room -------------------------------------------------------------------------------- */

uint64_t store_room_of(const struct store *store, uint64_t free_bytes, uint64_t dead_bytes)
{
	uint64_t taken = store->kept_bytes + store->arriving_bytes + dead_bytes, room;
	uint64_t spoken_for = store->reserve_bytes + store->arriving_bytes;

	if (store->quota_bytes <= taken || free_bytes <= spoken_for)
		return 0;
	room = store->quota_bytes - taken;
	free_bytes -= spoken_for;
	return free_bytes < room ? free_bytes : room;
}

uint64_t store_room_bytes(struct store *store)
{
	uint64_t free_bytes = 0, dead = segments_dead_bytes(store->segments), room;

	if (store->io->free_bytes(store->io->ctx, store->state_fd, &free_bytes) < 0)
		return 0;
	pthread_mutex_lock(&store->lock);
	room = store_room_of(store, free_bytes, dead);
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

void store_set_limits(struct store *store, uint64_t quota_bytes, uint64_t reserve_bytes)
{
	pthread_mutex_lock(&store->lock);
	store->quota_bytes = quota_bytes;
	store->reserve_bytes = reserve_bytes;
	pthread_mutex_unlock(&store->lock);
}

void store_get_stats(struct store *store, struct store_stats *ret_stats)
{
	uint64_t dead = segments_dead_bytes(store->segments);

	pthread_mutex_lock(&store->lock);
	*ret_stats = store->stats;
	ret_stats->disk_bytes = store->kept_bytes + dead;
	pthread_mutex_unlock(&store->lock);
}

void store_count_bad(struct store *store)
{
	pthread_mutex_lock(&store->lock);
	store->stats.bad_objects++;
	pthread_mutex_unlock(&store->lock);
}

int store_write_records(struct store *store, const struct core_write *writes, uint32_t count)
{
	MDB_txn *txn = NULL;
	int r;

	if (count == 0)
		return 0;
	r = mdb_txn_begin(store->registers, NULL, 0, &txn);
	if (r)
		return store_lmdb_errno(r);
	for (uint32_t i = 0; i < count && !r; i++) {
		MDB_val key = { sizeof(writes[i].job), (void *)&writes[i].job };
		MDB_val value = { writes[i].size, (void *)writes[i].bytes };

		if (writes[i].size > 0) {
			r = mdb_put(txn, store->records, &key, &value, 0);
		} else {
			r = mdb_del(txn, store->records, &key, NULL);
			if (r == MDB_NOTFOUND)
				r = 0;
		}
		if (!r && writes[i].is_over)
			r = store_tomb_write(store, txn, &writes[i]);
	}
	if (r) {
		mdb_txn_abort(txn);
		return store_lmdb_errno(r);
	}
	return store_lmdb_errno(mdb_txn_commit(txn));
}

int store_each_record(struct store *store,
		      int (*each)(void *ctx, const struct job_id *job, const void *bytes,
				  size_t size),
		      void *ctx)
{
	MDB_txn *txn = NULL;
	MDB_cursor *cursor = NULL;
	MDB_val key, value;
	int r = mdb_txn_begin(store->registers, NULL, MDB_RDONLY, &txn), fault = 0;

	if (r)
		return store_lmdb_errno(r);
	r = mdb_cursor_open(txn, store->records, &cursor);
	if (!r) {
		r = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
		while (!r && !fault) {
			if (key.mv_size != sizeof(struct job_id) || value.mv_size > CORE_RECORD_MAX)
				fault = -EBADMSG;
			else
				fault = each(ctx, key.mv_data, value.mv_data, value.mv_size);
			r = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
		}
		mdb_cursor_close(cursor);
	}
	mdb_txn_abort(txn);
	if (fault)
		return fault;
	return r == MDB_NOTFOUND ? 0 : store_lmdb_errno(r);
}

int store_drop_records(struct store *store)
{
	MDB_txn *txn = NULL;
	int r = mdb_txn_begin(store->registers, NULL, 0, &txn);

	if (r)
		return store_lmdb_errno(r);
	r = mdb_drop(txn, store->records, 0);
	if (r)
		mdb_txn_abort(txn);
	else
		r = mdb_txn_commit(txn);
	return store_lmdb_errno(r);
}

int store_next_incarnation(struct store *store, uint64_t wall_ms, uint64_t *ret_incarnation)
{
	static const char name[] = "incarnation";
	MDB_val key = { sizeof(name), (void *)name }, value;
	MDB_txn *txn = NULL;
	uint64_t next = wall_ms, last;
	int r = mdb_txn_begin(store->registers, NULL, 0, &txn);

	if (r)
		return store_lmdb_errno(r);
	r = mdb_get(txn, store->meta, &key, &value);
	if (!r && value.mv_size == sizeof(last)) {
		memcpy(&last, value.mv_data, sizeof(last));
		/* The wall clock may have been set back since. */
		if (next <= last)
			next = last + 1;
	}
	if (!r || r == MDB_NOTFOUND) {
		value = (MDB_val){ sizeof(next), &next };
		r = mdb_put(txn, store->meta, &key, &value, 0);
	}
	if (r) {
		mdb_txn_abort(txn);
		return store_lmdb_errno(r);
	}
	r = mdb_txn_commit(txn);
	if (r)
		return store_lmdb_errno(r);
	*ret_incarnation = next;
	return 0;
}

int store_own_save(struct store *store, const char *name, const void *bytes, size_t size)
{
	MDB_val key = { strlen(name) + 1, (void *)name }, value = { size, (void *)bytes };
	MDB_txn *txn = NULL;
	int r = mdb_txn_begin(store->registers, NULL, 0, &txn);

	if (r)
		return store_lmdb_errno(r);
	r = mdb_put(txn, store->meta, &key, &value, 0);
	if (r)
		mdb_txn_abort(txn);
	else
		r = mdb_txn_commit(txn);
	return store_lmdb_errno(r);
}

int store_own_load(struct store *store, const char *name, void *bytes, size_t max, size_t *ret_size)
{
	MDB_val key = { strlen(name) + 1, (void *)name }, value;
	MDB_txn *txn = NULL;
	int r = mdb_txn_begin(store->registers, NULL, MDB_RDONLY, &txn);

	if (r)
		return store_lmdb_errno(r);
	r = store_lmdb_errno(mdb_get(txn, store->meta, &key, &value));
	if (r == 0 && value.mv_size > max)
		r = -EBADMSG;
	if (r == 0) {
		memcpy(bytes, value.mv_data, value.mv_size);
		*ret_size = value.mv_size;
	}
	mdb_txn_abort(txn);
	return r;
}
