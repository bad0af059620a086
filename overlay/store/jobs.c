// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * What is known of jobs whose objects or registers were here: the highest token, when their owners
 * were heard of, and that they are over.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "agent/util/io.h"
#include "overlay/store/internal.h"

enum { TOMBS_MAX = 1 << 16 };

/* A tombstone only spares others a wait: who missed the end for longer keeps what he has. */
#define TOMB_MS (UINT64_C(30) * 24 * 3600 * 1000)

int store_job_read(struct store *store, MDB_txn *txn, const struct job_id *job,
		   struct job_row *ret_row)
{
	MDB_val key = { sizeof(*job), (void *)job }, value;
	struct job_row row = { 0 };
	int r = store_lmdb_errno(mdb_get(txn, store->fences, &key, &value));

	if (r < 0)
		return r;
	if (value.mv_size != sizeof(row.token) && value.mv_size != sizeof(row))
		return -EIO;
	memcpy(&row, value.mv_data, value.mv_size);
	*ret_row = row;
	return 0;
}

int store_job_write(struct store *store, MDB_txn *txn, const struct job_id *job,
		    const struct job_row *row)
{
	MDB_val key = { sizeof(*job), (void *)job }, value = { sizeof(*row), (void *)row };

	return store_lmdb_errno(mdb_put(txn, store->fences, &key, &value, 0));
}

int store_fence_check(struct store *store, MDB_txn *txn, const struct job_id *job,
		      const struct fence_token *token, bool remember)
{
	struct job_row row = { 0 };
	int r = store_job_read(store, txn, job, &row), order;

	if (r < 0 && r != -ENOENT)
		return r;
	if (row.over)
		return -ESTALE;
	/* Objects may be sent before the job's register exists; they carry no token yet. */
	if (token->counter == 0)
		return 0;
	order = fence_token_compare(token, &row.token);
	if (order < 0)
		return -ESTALE;
	if (order == 0 || !remember)
		return 0;
	row.token = *token;
	return store_job_write(store, txn, job, &row);
}

/* One transaction; makes the row if there is none. */
static int set_quiet(struct store *store, const struct job_id *job, uint64_t quiet_ms, bool heard)
{
	struct job_row row = { 0 };
	MDB_txn *txn = NULL;
	int r = store_lmdb_errno(mdb_txn_begin(store->index, NULL, 0, &txn));

	if (r < 0)
		return r;
	r = store_job_read(store, txn, job, &row);
	if (r == -ENOENT)
		r = 0;
	row.quiet_ms = quiet_ms;
	if (heard)
		row.heard_wall_ms = now_wall_ms();
	if (r == 0)
		r = store_job_write(store, txn, job, &row);
	if (r < 0) {
		mdb_txn_abort(txn);
		return r;
	}
	return store_lmdb_errno(mdb_txn_commit(txn));
}

int store_job_heard(struct store *store, const struct job_id *job)
{
	return set_quiet(store, job, 0, true);
}

int store_job_quiet(struct store *store, const struct job_id *job, uint64_t quiet_ms)
{
	return set_quiet(store, job, quiet_ms, false);
}

static int compare_jobs(const void *a, const void *b)
{
	const struct store_job *x = a, *y = b;

	if (x->quiet_ms != y->quiet_ms)
		return x->quiet_ms > y->quiet_ms ? -1 : 1;
	return memcmp(&x->job, &y->job, sizeof(x->job));
}

/* Keys of `refs` begin with the job: from each one to the next job's first. */
static int list_jobs(struct store *store, MDB_txn *txn, struct store_job *jobs, uint32_t *ret_count)
{
	MDB_cursor *cursor = NULL;
	struct ref_key next = { 0 };
	MDB_val key, value;
	uint32_t count = 0;
	int r = mdb_cursor_open(txn, store->refs, &cursor), fault = 0;

	if (r)
		return store_lmdb_errno(r);
	r = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
	while (!r && !fault && count < STORE_LIST_MAX) {
		struct job_row row = { 0 };

		if (key.mv_size != sizeof(next)) {
			fault = -EIO;
			break;
		}
		memcpy(&next, key.mv_data, sizeof(next));
		fault = store_job_read(store, txn, &next.job, &row);
		if (fault == -ENOENT)
			fault = 0;
		jobs[count++] = (struct store_job){ .job = next.job,
						    .heard_wall_ms = row.heard_wall_ms,
						    .quiet_ms = row.quiet_ms };
		memset(&next.hash, 0xff, sizeof(next.hash));
		key = (MDB_val){ sizeof(next), &next };
		r = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
		/* An object of this very hash is the job's last one. */
		if (!r && key.mv_size == sizeof(next) && !memcmp(key.mv_data, &next, sizeof(next)))
			r = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
	}
	mdb_cursor_close(cursor);
	*ret_count = count;
	if (fault)
		return fault;
	return r == MDB_NOTFOUND ? 0 : store_lmdb_errno(r);
}

int store_list_jobs(struct store *store, struct store_job **ret_jobs, uint32_t *ret_count)
{
	struct store_job *jobs = NULL;
	MDB_stat stat = { 0 };
	MDB_txn *txn = NULL;
	uint32_t count = 0;
	size_t room;
	int r = store_lmdb_errno(mdb_txn_begin(store->index, NULL, MDB_RDONLY, &txn));

	if (r < 0)
		return r;
	r = store_lmdb_errno(mdb_stat(txn, store->refs, &stat));
	room = stat.ms_entries < STORE_LIST_MAX ? stat.ms_entries : STORE_LIST_MAX;
	if (r == 0) {
		jobs = calloc(room + 1, sizeof(*jobs));
		r = jobs ? list_jobs(store, txn, jobs, &count) : -ENOMEM;
	}
	mdb_txn_abort(txn);
	if (r < 0) {
		free(jobs);
		return r;
	}
	qsort(jobs, count, sizeof(*jobs), compare_jobs);
	*ret_jobs = jobs;
	*ret_count = count;
	return 0;
}

/* --- tombstones -------------------------------------------------------------------------- */

static int tombs_count(struct store *store, MDB_txn *txn, size_t *ret_count)
{
	MDB_stat stat;
	int r = mdb_stat(txn, store->tombs, &stat);

	if (!r)
		*ret_count = stat.ms_entries;
	return r;
}

int store_tomb_write(struct store *store, MDB_txn *txn, const struct core_write *write)
{
	struct tomb_row row = { .tombstone = write->tombstone, .buried_wall_ms = now_wall_ms() };
	MDB_val key = { sizeof(write->job), (void *)&write->job }, value = { sizeof(row), &row };
	size_t count = 0;
	int r = tombs_count(store, txn, &count);

	/* More than anybody has: one that is missing only makes others wait. */
	if (r || count >= TOMBS_MAX)
		return r;
	return mdb_put(txn, store->tombs, &key, &value, 0);
}

int store_tombs_expire(struct store *store)
{
	uint64_t now = now_wall_ms();
	MDB_cursor *cursor = NULL;
	MDB_txn *txn = NULL;
	MDB_val key, value;
	int r = mdb_txn_begin(store->registers, NULL, 0, &txn), fault = 0;

	if (r)
		return store_lmdb_errno(r);
	r = mdb_cursor_open(txn, store->tombs, &cursor);
	if (!r)
		r = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
	while (!r && !fault) {
		struct tomb_row row;
		bool whole = value.mv_size == sizeof(row);

		if (whole)
			memcpy(&row, value.mv_data, sizeof(row));
		if (!whole || (now > row.buried_wall_ms && now - row.buried_wall_ms > TOMB_MS))
			fault = mdb_cursor_del(cursor, 0);
		r = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
	}
	if (cursor)
		mdb_cursor_close(cursor);
	if (r == MDB_NOTFOUND)
		r = 0;
	if (!r)
		r = fault;
	if (r) {
		mdb_txn_abort(txn);
		return store_lmdb_errno(r);
	}
	return store_lmdb_errno(mdb_txn_commit(txn));
}

static int read_tomb(struct store *store, const struct job_id *job,
		     struct core_tombstone *ret_tombstone)
{
	MDB_val key = { sizeof(*job), (void *)job }, value;
	struct tomb_row row;
	MDB_txn *txn = NULL;
	int r = store_lmdb_errno(mdb_txn_begin(store->registers, NULL, MDB_RDONLY, &txn));

	if (r < 0)
		return r;
	r = store_lmdb_errno(mdb_get(txn, store->tombs, &key, &value));
	if (r == 0 && value.mv_size != sizeof(row))
		r = -EIO;
	if (r == 0) {
		memcpy(&row, value.mv_data, sizeof(row));
		*ret_tombstone = row.tombstone;
	}
	mdb_txn_abort(txn);
	return r;
}

int store_verdict(struct store *store, const struct job_id *job, struct store_verdict *ret_verdict)
{
	struct store_verdict verdict = { .heard_ago_ms = UINT64_MAX };
	uint64_t now = now_wall_ms();
	struct job_row row = { 0 };
	MDB_txn *txn = NULL;
	int r = read_tomb(store, job, &verdict.tombstone);

	if (r < 0 && r != -ENOENT)
		return r;
	r = store_lmdb_errno(mdb_txn_begin(store->index, NULL, MDB_RDONLY, &txn));
	if (r < 0)
		return r;
	r = store_job_read(store, txn, job, &row);
	mdb_txn_abort(txn);
	if (r < 0 && r != -ENOENT)
		return r;
	if (row.heard_wall_ms)
		verdict.heard_ago_ms = now > row.heard_wall_ms ? now - row.heard_wall_ms : 0;
	*ret_verdict = verdict;
	return 0;
}
