// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Groups of which a shard lies here: table `groups`, (hash of the whole object, job) -> group.
 *
 * A row lives as long as its object, or its group's name, is named by RETAIN, even if the shard
 * rots meanwhile: then it says what is to be made again. A shard whose group never arrived is an
 * object like any other, which no RETAIN names.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "overlay/net/frame.h"
#include "overlay/shard.h"
#include "overlay/store/internal.h"

struct group_key {
	struct object_hash hash;
	struct job_id job;
};

static int read_row(const MDB_val *value, struct ov_group *ret_group)
{
	return net_group_decode(value->mv_data, value->mv_size, ret_group) < 0 ? -EIO : 0;
}

/* Which of its shards lie here, by references. */
static uint32_t present(struct store *store, MDB_txn *txn, const struct ov_group *group)
{
	uint32_t mask = 0;

	for (uint32_t i = 0; i < group->k + group->m; i++) {
		struct ref_key name = { .job = group->job, .hash = group->shards[i] };
		MDB_val key = { sizeof(name), &name }, value;

		if (mdb_get(txn, store->refs, &key, &value) == 0)
			mask |= 1u << i;
	}
	return mask;
}

static int put_group(struct store *store, MDB_txn *txn, const struct ov_group *group)
{
	struct group_key name = { .hash = group->hash, .job = group->job };
	MDB_val key = { sizeof(name), &name }, value;
	uint8_t bytes[NET_GROUP_MAX];
	struct ov_group known = { 0 };
	int r = store_fence_check(store, txn, &group->job, &group->token, false);

	if (r < 0)
		return r;
	r = store_lmdb_errno(mdb_get(txn, store->groups, &key, &value));
	if (r == 0) {
		r = read_row(&value, &known);
		if (r < 0 ||
		    (known.revision >= group->revision && !net_group_supersedes(group, &known)))
			return r;
	} else if (r != -ENOENT) {
		return r;
	}
	/* A list of other shards takes the place of one only where one of them lies. */
	if ((r == -ENOENT || memcmp(known.shards, group->shards, sizeof(known.shards)) != 0) &&
	    !present(store, txn, group))
		return -ENOENT;
	value = (MDB_val){ net_group_encode(group, bytes), bytes };
	return store_lmdb_errno(mdb_put(txn, store->groups, &key, &value, 0));
}

int store_set_group(struct store *store, const struct ov_group *group)
{
	MDB_txn *txn = NULL;
	int r = store_lmdb_errno(mdb_txn_begin(store->index, NULL, 0, &txn));

	if (r < 0)
		return r;
	r = put_group(store, txn, group);
	if (r < 0) {
		mdb_txn_abort(txn);
		return r;
	}
	return store_lmdb_errno(mdb_txn_commit(txn));
}

int store_group_check(struct store *store, MDB_txn *txn, const struct ov_group *group)
{
	struct group_key name = { .hash = group->hash, .job = group->job };
	MDB_val key = { sizeof(name), &name }, value;
	struct ov_group known;
	int r = store_lmdb_errno(mdb_get(txn, store->groups, &key, &value));

	if (r == 0)
		r = read_row(&value, &known);
	if (r == 0 && (known.revision != group->revision ||
		       memcmp(known.shards, group->shards, sizeof(known.shards)) != 0 ||
		       memcmp(known.holders, group->holders, sizeof(known.holders)) != 0))
		r = -ESTALE;
	return r;
}

int store_group_tidy(struct store *store, MDB_txn *txn, const struct ov_group *group,
		     const struct node_id *self)
{
	struct group_key name = { .hash = group->hash, .job = group->job };
	MDB_val key = { sizeof(name), &name };

	for (uint32_t i = 0; i < group->k + group->m; i++)
		if (node_id_equal(&group->holders[i], self))
			return 0;
	if (present(store, txn, group))
		return 0;
	return store_lmdb_errno(mdb_del(txn, store->groups, &key, NULL));
}

int store_get_group(struct store *store, const struct object_hash *hash, struct ov_group *ret_group)
{
	struct group_key first = { .hash = *hash };
	MDB_val key = { sizeof(first), &first }, value;
	MDB_cursor *cursor = NULL;
	MDB_txn *txn = NULL;
	int r = mdb_txn_begin(store->index, NULL, MDB_RDONLY, &txn);

	if (r)
		return store_lmdb_errno(r);
	r = store_lmdb_errno(mdb_cursor_open(txn, store->groups, &cursor));
	if (r == 0)
		r = store_lmdb_errno(mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE));
	if (r == 0 && memcmp(key.mv_data, hash, sizeof(*hash)) != 0)
		r = -ENOENT;
	if (r == 0)
		r = read_row(&value, ret_group);
	if (cursor)
		mdb_cursor_close(cursor);
	mdb_txn_abort(txn);
	return r;
}

/* Calls each() for every row until it says something else than 0. */
static int each_group(struct store *store, MDB_txn *txn,
		      int (*each)(void *ctx, const struct ov_group *group), void *ctx)
{
	MDB_cursor *cursor = NULL;
	MDB_val key, value;
	struct ov_group group;
	int r = store_lmdb_errno(mdb_cursor_open(txn, store->groups, &cursor)), said = 0;

	if (r < 0)
		return r;
	r = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
	while (!r && said == 0) {
		said = read_row(&value, &group);
		if (said == 0)
			said = each(ctx, &group);
		r = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
	}
	mdb_cursor_close(cursor);
	if (said < 0)
		return said;
	return r == MDB_NOTFOUND ? 0 : store_lmdb_errno(r);
}

/* --- RETAIN ------------------------------------------------------------------------------ */

struct sorting {
	const struct ov_retain *retain;
	const struct object_hash *named; /* in order */
	struct object_hash *more;
	uint32_t more_count, more_room;
	struct group_key *gone;
	uint32_t gone_count, gone_room;
};

static int compare_hashes(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct object_hash));
}

static bool is_named(const struct sorting *s, const struct object_hash *hash)
{
	return bsearch(hash, s->named, s->retain->count, sizeof(*hash), compare_hashes);
}

static int grow(void **items, uint32_t count, uint32_t *room, uint32_t more, size_t size)
{
	void *bigger;

	if (count + more <= *room)
		return 0;
	bigger = reallocarray(*items, (size_t)*room * 2 + more, size);
	if (!bigger)
		return -ENOMEM;
	*items = bigger;
	*room = *room * 2 + more;
	return 0;
}

static int sort_group(void *ctx, const struct ov_group *group)
{
	struct sorting *s = ctx;
	uint32_t count = group->k + group->m;
	struct object_hash name;
	int r;

	if (memcmp(&group->job, &s->retain->job, sizeof(group->job)) != 0)
		return 0;
	shard_group_name(&group->hash, &name);
	if (group->seq > s->retain->upto_seq || is_named(s, &group->hash) || is_named(s, &name)) {
		r = grow((void **)&s->more, s->more_count, &s->more_room, count, sizeof(*s->more));
		if (r < 0)
			return r;
		memcpy(s->more + s->more_count, group->shards, count * sizeof(*s->more));
		s->more_count += count;
		return 0;
	}
	r = grow((void **)&s->gone, s->gone_count, &s->gone_room, 1, sizeof(*s->gone));
	if (r == 0)
		s->gone[s->gone_count++] =
			(struct group_key){ .hash = group->hash, .job = group->job };
	return r;
}

int store_groups_retain(struct store *store, MDB_txn *txn, struct ov_retain *retain,
			struct object_hash **kept)
{
	struct sorting s = { .retain = retain, .named = *kept };
	struct object_hash *all;
	int r = each_group(store, txn, sort_group, &s);

	for (uint32_t i = 0; i < s.gone_count && r == 0; i++) {
		MDB_val key = { sizeof(s.gone[i]), &s.gone[i] };

		r = store_lmdb_errno(mdb_del(txn, store->groups, &key, NULL));
	}
	if (r == 0 && s.more_count > 0) {
		all = reallocarray(*kept, (size_t)retain->count + s.more_count, sizeof(*all));
		r = all ? 0 : -ENOMEM;
		if (all) {
			memcpy(all + retain->count, s.more, s.more_count * sizeof(*all));
			retain->count += s.more_count;
			qsort(all, retain->count, sizeof(*all), compare_hashes);
			*kept = all;
		}
	}
	free(s.more);
	free(s.gone);
	return r;
}

/* --- for repair -------------------------------------------------------------------------- */

struct listing {
	struct store *store;
	MDB_txn *txn;
	struct store_group *items;
	uint32_t count, room;
};

static int list_group(void *ctx, const struct ov_group *group)
{
	struct listing *l = ctx;

	if (l->count == l->room)
		return 1;
	l->items[l->count++] = (struct store_group){ .group = *group,
						     .present = present(l->store, l->txn, group) };
	return 0;
}

int store_list_groups(struct store *store, struct store_group **ret_items, uint32_t *ret_count)
{
	struct listing l = { .store = store };
	MDB_stat stat = { 0 };
	int r = store_lmdb_errno(mdb_txn_begin(store->index, NULL, MDB_RDONLY, &l.txn));

	if (r < 0)
		return r;
	r = store_lmdb_errno(mdb_stat(l.txn, store->groups, &stat));
	l.room = stat.ms_entries < STORE_LIST_MAX ? (uint32_t)stat.ms_entries : STORE_LIST_MAX;
	l.items = calloc(l.room + 1, sizeof(*l.items));
	if (r == 0)
		r = l.items ? each_group(store, l.txn, list_group, &l) : -ENOMEM;
	mdb_txn_abort(l.txn);
	if (r < 0) {
		free(l.items);
		return r;
	}
	*ret_items = l.items;
	*ret_count = l.count;
	return 0;
}
