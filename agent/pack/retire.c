// SPDX-License-Identifier: LGPL-2.1-or-later
/* Which packs stay: what is live, what is written anew, and what the index no longer knows. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "agent/pack/internal.h"

static bool slot_usable(const void *ctx, uint32_t pack, uint32_t slot)
{
	return packer_slot_usable(ctx, pack, slot);
}

void packer_sweep(struct packer *p)
{
	block_index_sweep(&p->index, slot_usable, p);
	p->unswept = false;
}

void packer_forget(struct packer *p, struct pack_info *info)
{
	info->state = PACK_FORGOTTEN;
	p->unswept = true;
}

enum { BITMAP = PACK_BLOCKS_MAX / 8 };

/* Live, with all that it is a difference to. */
static void mark(struct packer *p, uint8_t *bits, uint32_t pack, uint32_t slot)
{
	for (;;) {
		struct pack_info *info = &p->packs[pack];
		uint8_t *byte = bits + (size_t)pack * BITMAP + slot / 8;
		uint8_t bit = (uint8_t)(1 << (slot % 8));
		const struct delta_info *d;

		if (*byte & bit)
			return;
		*byte |= bit;
		info->live++;
		d = info->delta_count ? pack_delta_find(info, slot) : NULL;
		if (!d)
			return;
		pack = d->base_pack;
		slot = d->base_slot;
	}
}

int packer_count_live(struct packer *p, const struct file_list *files)
{
	_cleanup_free_ uint8_t *bits = calloc(p->pack_count + 1, BITMAP);

	if (!bits)
		return -ENOMEM;
	for (size_t i = 0; i < p->pack_count; i++)
		p->packs[i].live = 0;
	for (size_t i = 0; i < files->count; i++) {
		const struct extent_list *list = &files->items[i].extents;

		for (size_t j = 0; j < list->count; j++) {
			const struct extent *e = &list->items[j];

			for (uint32_t k = 0; e->pack != PACK_ZERO && k < e->count; k++)
				mark(p, bits, e->pack, e->slot + k);
		}
	}
	return 0;
}

static int compare_live(const void *a, const void *b, void *ctx)
{
	const struct pack_info *packs = ctx;
	uint32_t x = packs[*(const uint32_t *)a].live, y = packs[*(const uint32_t *)b].live;

	return x < y ? -1 : x > y;
}

/*
 * Many small packs make restore slow and manifests long: once there are too many, the least live
 * are written anew, a batch at a time. Full packs of a big job are many by right.
 */
static void forget_surplus(struct packer *p, size_t known)
{
	_cleanup_free_ uint32_t *order = malloc((known + 1) * sizeof(*order));
	size_t small = 0;

	if (known <= PACKS_REFERENCED_MAX || !order)
		return; /* without memory: at the next checkpoint */
	for (size_t i = 0; i < p->pack_count; i++)
		if (p->packs[i].state == PACK_KNOWN && !p->packs[i].shared_key &&
		    p->packs[i].live < PACK_SMALL_LIVE)
			order[small++] = (uint32_t)i;
	if (small < PACKS_REFERENCED_MAX - PACKS_REFERENCED_KEEP)
		return;
	qsort_r(order, small, sizeof(*order), compare_live, p->packs);
	for (size_t i = 0; i < small && known > PACKS_REFERENCED_KEEP; i++, known--)
		packer_forget(p, &p->packs[order[i]]);
}

/* Bytes of a pack that nothing refers to; deltas are taken for as large as blocks. */
static uint64_t dead_bytes(const struct pack_info *info)
{
	return (uint64_t)info->size * (info->blocks - info->live) / info->blocks;
}

static bool is_sparser(const struct pack_info *a, const struct pack_info *b)
{
	return (uint64_t)a->live * b->blocks < (uint64_t)b->live * a->blocks;
}

static struct pack_info *sparsest(const struct packer *p)
{
	struct pack_info *least = NULL;

	for (size_t i = 0; i < p->pack_count; i++) {
		struct pack_info *info = &p->packs[i];

		if (info->state == PACK_KNOWN && !info->shared_key &&
		    (!least || is_sparser(info, least)))
			least = info;
	}
	return least;
}

/*
 * To write anew what is left of a pack costs as much as is left, and gives back the rest. So the
 * sparsest go first, and only while half of all that is kept is dead: a pack at hand then is more than
 * half dead itself, and most packs die as a whole before it is their turn.
 */
static size_t forget_dead(struct packer *p, size_t known)
{
	uint64_t kept = 0, dead = 0;

	for (size_t i = 0; i < p->pack_count; i++) {
		const struct pack_info *info = &p->packs[i];

		if (info->state != PACK_KNOWN || info->shared_key)
			continue;
		kept += info->size;
		dead += dead_bytes(info);
	}
	while (dead * 100 > kept * PACK_DEAD_PERCENT_MAX) {
		struct pack_info *least = sparsest(p);

		if (!least) /* rounding */
			break;
		packer_forget(p, least);
		kept -= least->size;
		dead -= dead_bytes(least);
		known--;
	}
	return known;
}

void packer_retire(struct packer *p)
{
	size_t known = 0;

	for (size_t i = 0; i < p->pack_count; i++) {
		struct pack_info *info = &p->packs[i];

		if (info->state == PACK_UNUSED)
			continue;
		if (info->live == 0) {
			pack_info_clear(info);
			p->unswept = true;
		} else if ((uint64_t)info->live * 100 <
			   (uint64_t)info->blocks * PACK_LIVE_PERCENT_MIN) {
			packer_forget(p, info);
		}
		if (info->state == PACK_KNOWN && !info->shared_key)
			known++;
	}
	known = forget_dead(p, known);
	forget_surplus(p, known);
	/* Else all that the index knows still is where it was. */
	if (p->unswept)
		packer_sweep(p);
}

void packer_forget_weak(struct packer *p, uint32_t copies,
			bool (*alive)(void *ctx, const struct node_id *node), void *ctx)
{
	for (size_t i = 0; i < p->pack_count; i++) {
		struct pack_info *info = &p->packs[i];
		uint32_t living = 0;

		if (info->state != PACK_KNOWN)
			continue;
		for (uint32_t j = 0; j < info->holder_count; j++)
			living += alive(ctx, &info->holders[j]);
		/* A pack in shards can be read from k of them, and the peers make lost ones again. */
		if (living < (info->k ? info->k : copies))
			packer_forget(p, info);
	}
	if (p->unswept)
		packer_sweep(p);
}
