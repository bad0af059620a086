// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Live blocks of forgotten packs -> packs of their own, between two checkpoints.
 *
 *   extents of the last files -> unusable runs -> cache ------------> block -> open pack -> store
 *                                            \-> reader, holders -'
 *
 * The files' extents are changed at the end, all of them, when every new pack is stored.
 */
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "agent/pack/internal.h"
#include "agent/pack/reader.h"
#include "agent/util/io.h"

enum { NAP_MS = 20 };

struct moved {
	uint64_t block;
	uint32_t file; /* of the last manifest, and of packer.last */
	uint32_t pack, slot;
};

struct compaction {
	struct packer *p;
	const struct packer_compaction *c;
	struct packer_compacted done;
	struct reader_range *ranges; /* what is not in the cache */
	size_t range_count, range_room;
	uint64_t blocks_left; /* of bytes_max */
	uint64_t began_ns, began_cpu_ns;

	pthread_mutex_t lock; /* guards the packer and the rest, while the reader's threads run */
	struct moved *moved;
	size_t moved_count, moved_room;
	bool stopped;
};

static uint64_t process_cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static bool goes_on(struct compaction *x)
{
	x->stopped = x->stopped || (x->c->goes_on && !x->c->goes_on(x->c->ctx));
	return !x->stopped;
}

/* Until this process has had no more of the processor than it should; false: no more at all. */
static bool pace(struct compaction *x)
{
	const struct timespec nap = { .tv_nsec = NAP_MS * 1000000 };
	uint64_t percent = x->c->cpu_percent ? x->c->cpu_percent : 100;

	while (goes_on(x)) {
		if ((process_cpu_ns() - x->began_cpu_ns) * 100 <=
		    (now_boot_ns() - x->began_ns) * percent)
			return true;
		nanosleep(&nap, NULL);
	}
	return false;
}

static int move_block(struct compaction *x, uint32_t file, uint64_t block, const uint8_t *bytes)
{
	struct moved m = { .block = block, .file = file };
	int r;

	if (x->moved_count == x->moved_room) {
		size_t room = x->moved_room ? 2 * x->moved_room : 256;
		struct moved *more = reallocarray(x->moved, room, sizeof(*more));

		if (!more)
			return -ENOMEM;
		x->moved = more;
		x->moved_room = room;
	}
	r = packer_rewrite(x->p, bytes, &m.pack, &m.slot);
	if (r == 0)
		x->moved[x->moved_count++] = m;
	return r;
}

/* ---- what to move ---- */

static int add_range(struct compaction *x, uint32_t file, uint64_t block)
{
	struct reader_range *tail = x->range_count ? &x->ranges[x->range_count - 1] : NULL;

	if (tail && tail->file == file && tail->first + tail->count == block) {
		tail->count++;
		return 0;
	}
	if (x->range_count == x->range_room) {
		size_t room = x->range_room ? 2 * x->range_room : 64;
		struct reader_range *more = reallocarray(x->ranges, room, sizeof(*more));

		if (!more)
			return -ENOMEM;
		x->ranges = more;
		x->range_room = room;
	}
	x->ranges[x->range_count++] =
		(struct reader_range){ .file = file, .first = block, .count = 1 };
	return 0;
}

/* One run of blocks in a forgotten pack: from the cache at once, the rest is remembered. */
static int move_run(struct compaction *x, uint32_t file, uint64_t block, const struct extent *e,
		    uint32_t from, uint32_t count)
{
	for (uint32_t i = 0; i < count && x->blocks_left > 0; i++) {
		uint64_t key = pack_cache_key(x->p, e->pack, e->slot + from + i);
		const uint8_t *content = block_cache_get(&x->p->cache, key);
		int r;

		if (content && !pace(x))
			return -ECANCELED;
		x->blocks_left--;
		if (content) {
			r = move_block(x, file, block + from + i, content);
			x->done.cached_bytes += PACK_BLOCK;
		} else {
			r = add_range(x, file, block + from + i);
		}
		if (r < 0)
			return r;
	}
	return 0;
}

static int move_file(struct compaction *x, uint32_t file)
{
	const struct extent_list *list = &x->p->last.items[file].extents;
	uint64_t block = 0;

	for (size_t j = 0; j < list->count; block += list->items[j++].count) {
		const struct extent *e = &list->items[j];
		uint32_t n;

		for (uint32_t i = 0; e->pack != PACK_ZERO && i < e->count; i += n) {
			bool usable;
			int r = 0;

			n = packer_usable_run(x->p, e->pack, e->slot + i, e->count - i, &usable);
			if (!usable)
				r = move_run(x, file, block, e, i, n);
			if (r < 0)
				return r;
		}
	}
	return 0;
}

uint64_t packer_forgotten_bytes(const struct packer *p)
{
	uint64_t blocks = 0;

	for (size_t f = 0; f < p->last.count; f++) {
		const struct extent_list *list = &p->last.items[f].extents;

		for (size_t j = 0; j < list->count; j++) {
			const struct extent *e = &list->items[j];
			uint32_t n;

			for (uint32_t i = 0; e->pack != PACK_ZERO && i < e->count; i += n) {
				bool usable;

				n = packer_usable_run(p, e->pack, e->slot + i, e->count - i,
						      &usable);
				blocks += usable ? 0 : n;
			}
		}
	}
	return blocks * PACK_BLOCK;
}

/* ---- from the holders ---- */

static int take_blocks(void *ctx, uint32_t file, uint64_t block, uint32_t count,
		       const uint8_t *bytes)
{
	struct compaction *x = ctx;
	int r = 0;

	pthread_mutex_lock(&x->lock);
	if (!pace(x))
		r = -ECANCELED;
	for (uint32_t i = 0; r == 0 && i < count; i++)
		r = move_block(x, file, block + i, bytes + (size_t)i * PACK_BLOCK);
	if (r == 0)
		x->done.fetched_bytes += (uint64_t)count * PACK_BLOCK;
	pthread_mutex_unlock(&x->lock);
	return r;
}

/* Files are in one order in both; which manifest it is, the store's hash says. */
static bool is_last(const struct packer *p, const struct manifest *m)
{
	return p->object_count > 0 && m->pb->n_files == p->last.count &&
	       memcmp(&m->hash, &p->objects[p->object_count - 1].hash, sizeof(m->hash)) == 0;
}

static int fetch_rest(struct compaction *x)
{
	struct reader_config config = { .job_key = &x->p->job_key,
					.fetch = x->c->fetch,
					.fetch_ctx = x->c->ctx,
					.sink = take_blocks,
					.ctx = x };
	struct pack_reader *reader = NULL;
	struct manifest *m = NULL;
	int r = x->c->open_last(x->c->ctx, &m);

	if (r < 0)
		return r;
	config.manifest = m;
	r = is_last(x->p, m) ? reader_create(&config, x->ranges, x->range_count, &reader) : -EINVAL;
	if (r == 0)
		r = reader_run(reader);
	reader_destroy(reader);
	manifest_destroy(m);
	return r;
}

/* ---- the files as they are from now on ---- */

static int compare_moved(const void *a, const void *b)
{
	const struct moved *x = a, *y = b;

	if (x->file != y->file)
		return x->file < y->file ? -1 : 1;
	return x->block < y->block ? -1 : x->block > y->block;
}

/* An extent of a file, but for the blocks that have moved; *at goes on in the sorted list. */
static int copy_extent(const struct compaction *x, uint32_t file, uint64_t block,
		       const struct extent *e, size_t *at, struct extent_list *list)
{
	uint32_t done = 0;

	while (done < e->count) {
		const struct moved *m = *at < x->moved_count ? &x->moved[*at] : NULL;
		uint64_t next = m && m->file == file ? m->block - block : e->count;
		uint32_t n = next < e->count ? (uint32_t)next - done : e->count - done;
		int r = n == 0 ? 0 : extent_append(list, e->pack, e->slot + done, n);

		done += n;
		if (r == 0 && done < e->count) {
			r = extent_append(list, m->pack, m->slot, 1);
			done++;
			(*at)++;
		}
		if (r < 0)
			return r;
	}
	return 0;
}

static int new_extents(const struct compaction *x, struct extent_list *lists)
{
	size_t at = 0;

	while (at < x->moved_count) {
		uint32_t file = x->moved[at].file;
		const struct extent_list *old = &x->p->last.items[file].extents;
		uint64_t block = 0;

		for (size_t j = 0; j < old->count; block += old->items[j++].count) {
			int r = copy_extent(x, file, block, &old->items[j], &at, &lists[file]);

			if (r < 0)
				return r;
		}
	}
	return 0;
}

/* A block may have come more than once, as packs are read again. */
static void sort_moved(struct compaction *x)
{
	size_t n = 0;

	if (x->moved_count == 0)
		return;
	qsort(x->moved, x->moved_count, sizeof(*x->moved), compare_moved);
	for (size_t i = 1; i < x->moved_count; i++)
		if (compare_moved(&x->moved[n], &x->moved[i]) != 0)
			x->moved[++n] = x->moved[i];
	x->moved_count = n + 1;
}

static int apply(struct compaction *x)
{
	struct packer *p = x->p;
	struct extent_list *lists = calloc(p->last.count + 1, sizeof(*lists));
	int r = lists ? 0 : -ENOMEM;

	sort_moved(x);
	if (r == 0)
		r = new_extents(x, lists);
	for (size_t i = 0; lists && i < p->last.count; i++) {
		struct extent_list *list = &p->last.items[i].extents;

		if (r == 0 && lists[i].count > 0) {
			free(list->items);
			*list = lists[i];
		} else {
			free(lists[i].items);
		}
	}
	free(lists);
	return r;
}

int packer_compact(struct packer *p, const struct packer_compaction *c,
		   struct packer_compacted *ret_done)
{
	struct compaction x = { .p = p,
				.c = c,
				.blocks_left = c->bytes_max / PACK_BLOCK,
				.began_ns = now_boot_ns(),
				.began_cpu_ns = process_cpu_ns(),
				.lock = PTHREAD_MUTEX_INITIALIZER };
	int r;

	if (p->seeding)
		return -EBUSY;
	r = packer_begin(p, &c->token, c->seq, c->store, c->ctx);
	for (size_t i = 0; r == 0 && i < p->last.count && x.blocks_left > 0; i++)
		r = move_file(&x, (uint32_t)i);
	if (r == 0 && x.range_count > 0)
		r = fetch_rest(&x);
	if (r == -ECANCELED && x.stopped)
		r = 0;
	if (r == 0)
		r = packer_flush(p);
	if (r == 0)
		r = apply(&x);
	x.done.sent_bytes = p->counts.sent_bytes;
	/* What is not live now goes; a new pack that no file has goes with the next checkpoint. */
	if (r == 0 && x.moved_count > 0 && packer_count_live(p, &p->last) == 0)
		packer_retire(p);
	packer_abort(p);
	free(x.ranges);
	free(x.moved);
	if (r == 0)
		*ret_done = x.done;
	return r;
}
