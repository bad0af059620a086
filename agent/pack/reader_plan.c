// SPDX-License-Identifier: LGPL-2.1-or-later
/* What a reader is to read: which blocks lie where, pack by pack. */
#include <errno.h>
#include <string.h>

#include "agent/pack/reader_internal.h"
#include "agent/util/io.h"

static uint64_t bits(uint32_t count)
{
	return count >= 64 ? UINT64_MAX : ((uint64_t)1 << count) - 1;
}

static int place(struct pack_reader *r, const struct placement *p)
{
	if (r->count == r->capacity) {
		size_t capacity = r->capacity ? r->capacity * 2 : 256;
		struct placement *bigger = reallocarray(r->items, capacity, sizeof(*bigger));

		if (!bigger)
			return -ENOMEM;
		r->items = bigger;
		r->capacity = capacity;
	}
	r->items[r->count++] = *p;
	r->total_bytes += (uint64_t)p->count * PACK_BLOCK;
	return 0;
}

/* `count` slots of one extent, cut where frames end. */
static int place_extent(struct pack_reader *r, struct placement p, uint32_t slot, uint64_t count)
{
	while (count > 0) {
		uint64_t n = PACK_FRAME_BLOCKS - slot % PACK_FRAME_BLOCKS;
		int e;

		n = n < count ? n : count;
		p.slot = (uint16_t)slot;
		p.count = (uint16_t)n;
		p.left = bits(p.count);
		e = place(r, &p);
		if (e < 0)
			return e;
		slot += (uint32_t)n;
		p.block += n;
		count -= n;
	}
	return 0;
}

static int place_range(struct pack_reader *r, const struct reader_range *range)
{
	const Decamp__File *f = r->c.manifest->pb->files[range->file];
	uint64_t at = 0, end = range->first + range->count;

	for (size_t i = 0; i < f->n_extent_pack && at < end; at += f->extent_count[i++]) {
		uint64_t first = at > range->first ? at : range->first;
		uint64_t last = at + f->extent_count[i] < end ? at + f->extent_count[i] : end;
		struct placement p = { .pack = f->extent_pack[i],
				       .file = range->file,
				       .block = first };
		int e;

		if (last <= first || p.pack == PACK_ZERO)
			continue;
		e = place_extent(r, p, f->extent_slot[i] + (uint32_t)(first - at), last - first);
		if (e < 0)
			return e;
	}
	return 0;
}

static int compare_placements(const void *a, const void *b)
{
	const struct placement *x = a, *y = b;

	if (x->pack != y->pack)
		return x->pack < y->pack ? -1 : 1;
	if (x->slot != y->slot)
		return x->slot < y->slot ? -1 : 1;
	return 0;
}

static int compare_blocks(const void *a, const void *b, void *ctx)
{
	const struct placement *items = ctx, *x = items + *(const uint32_t *)a,
			       *y = items + *(const uint32_t *)b;

	if (x->file != y->file)
		return x->file < y->file ? -1 : 1;
	return x->block < y->block ? -1 : x->block > y->block;
}

/* Newest first; packs of one checkpoint as they were written. */
static int compare_seqs(const void *a, const void *b)
{
	const struct work *x = a, *y = b;

	if (x->seq != y->seq)
		return x->seq > y->seq ? -1 : 1;
	return x->pack < y->pack ? -1 : x->pack > y->pack;
}

static int plan_deltas(struct pack_reader *r)
{
	r->deltas = calloc(r->work_count + 1, sizeof(struct work *));
	if (!r->deltas)
		return -ENOMEM;
	for (size_t i = 0; i < r->work_count; i++)
		if (r->c.manifest->pb->packs[r->work[i].pack]->deltas)
			r->deltas[r->delta_count++] = &r->work[i];
	return links_init(&r->links, r->c.manifest);
}

/* One for each pack of the manifest: any of them may be wanted for bases, which frames tell. */
static int make_work(struct pack_reader *r)
{
	const Decamp__Manifest *pb = r->c.manifest->pb;
	size_t at = 0;

	if (r->count > UINT32_MAX)
		return -EFBIG;
	if (r->count > 0)
		qsort(r->items, r->count, sizeof(*r->items), compare_placements);
	r->work_count = pb->n_packs;
	r->work = calloc(pb->n_packs + 1, sizeof(*r->work));
	r->work_of = calloc(pb->n_packs + 1, sizeof(*r->work_of));
	if (!r->work || !r->work_of)
		return -ENOMEM;
	for (size_t i = 0; i < pb->n_packs; i++) {
		struct work *w = &r->work[i];

		*w = (struct work){ .pack = (uint32_t)i,
				    .seq = pb->packs[i]->seq,
				    .first = at,
				    .state = WORK_DONE };
		for (; at < r->count && r->items[at].pack == i; at++)
			w->count++;
		if (w->count > 0) {
			w->state = WORK_TODO;
			r->open++;
		}
	}
	if (r->work_count > 0)
		qsort(r->work, r->work_count, sizeof(*r->work), compare_seqs);
	for (size_t i = 0; i < r->work_count; i++)
		r->work_of[r->work[i].pack] = (uint32_t)i;
	return plan_deltas(r);
}

int reader_plan(struct pack_reader *r, const struct reader_range *ranges, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		int e = place_range(r, &ranges[i]);

		if (e < 0)
			return e;
	}
	return make_work(r);
}

int reader_plan_demand(struct pack_reader *r)
{
	r->by_block = calloc(r->count + 1, sizeof(*r->by_block));
	if (!r->by_block)
		return -ENOMEM;
	for (size_t i = 0; i < r->count; i++)
		r->by_block[i] = (uint32_t)i;
	qsort_r(r->by_block, r->count, sizeof(*r->by_block), compare_blocks, r->items);
	return 0;
}

struct placement *reader_find(const struct pack_reader *r, uint32_t file, uint64_t block)
{
	size_t low = 0, high = r->count;

	/* The last one that does not begin behind it. */
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		const struct placement *p = &r->items[r->by_block[middle]];

		if (p->file < file || (p->file == file && p->block <= block))
			low = middle + 1;
		else
			high = middle;
	}
	if (low > 0) {
		struct placement *p = &r->items[r->by_block[low - 1]];

		if (p->file == file && block - p->block < p->count)
			return p;
	}
	return NULL;
}
