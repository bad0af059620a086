// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Which block a new one may be a difference to, and what such differences keep alive.
 *
 * A block's last version is the block at the same place of the file in the last checkpoint. Two
 * contents are tried: that version, and the whole block at the end of its chain. The whole block is
 * taken unless the version is clearly nearer: then a restore needs one more block, not up to sixteen.
 * While the difference to the whole block is a few words, versions between are not even kept.
 */
#include <errno.h>
#include <string.h>

#include "agent/pack/internal.h"

/* ---- deltas of a pack ---- */

void pack_info_clear(struct pack_info *info)
{
	free(info->deltas);
	free(info->delta_slots);
	if (info->shared_key)
		key_wipe(info->shared_key, sizeof(*info->shared_key));
	free(info->shared_key);
	memset(info, 0, sizeof(*info));
}

/* The delta of a slot, or where it would be. */
static size_t place_of(const struct delta_slots *s, uint32_t slot)
{
	uint64_t below = ((uint64_t)1 << slot % 64) - 1;

	return s->before[slot / 64] + (size_t)__builtin_popcountll(s->bits[slot / 64] & below);
}

const struct delta_info *pack_delta_find(const struct pack_info *info, uint32_t slot)
{
	const struct delta_slots *s = info->delta_slots;

	if (!s || slot >= PACK_BLOCKS_MAX || !(s->bits[slot / 64] >> slot % 64 & 1))
		return NULL;
	return &info->deltas[place_of(s, slot)];
}

/* Room for one more delta. */
static int grow_deltas(struct pack_info *info)
{
	size_t room = info->delta_room ? 2 * info->delta_room : 64;
	struct delta_info *more;

	if (!info->delta_slots)
		info->delta_slots = calloc(1, sizeof(*info->delta_slots));
	if (!info->delta_slots)
		return -ENOMEM;
	if (info->delta_count < info->delta_room)
		return 0;
	more = reallocarray(info->deltas, room, sizeof(*more));
	if (!more)
		return -ENOMEM;
	info->deltas = more;
	info->delta_room = room;
	return 0;
}

int pack_delta_add(struct pack_info *info, const struct delta_info *delta)
{
	uint32_t slot = delta->slot;
	struct delta_slots *s;
	size_t at;
	int r = slot < PACK_BLOCKS_MAX ? grow_deltas(info) : -EINVAL;

	if (r < 0)
		return r;
	s = info->delta_slots;
	at = place_of(s, slot);
	if (s->bits[slot / 64] >> slot % 64 & 1) {
		info->deltas[at] = *delta;
		return 0;
	}
	/* Slots are written, and read back, in order; elsewhere is rare. */
	memmove(&info->deltas[at + 1], &info->deltas[at],
		(info->delta_count - at) * sizeof(*info->deltas));
	info->deltas[at] = *delta;
	info->delta_count++;
	s->bits[slot / 64] |= (uint64_t)1 << slot % 64;
	for (size_t i = slot / 64 + 1; i < ARRAY_SIZE(s->before); i++)
		s->before[i]++;
	return 0;
}

/* ---- what is still to be had ---- */

static bool pack_usable(const struct pack_info *info)
{
	return info->state == PACK_OPEN || info->state == PACK_KNOWN;
}

bool packer_slot_usable(const struct packer *p, uint32_t pack, uint32_t slot)
{
	/* A base is of an earlier checkpoint than its delta, so this ends. */
	for (;;) {
		const struct pack_info *info = &p->packs[pack];
		const struct delta_info *d;

		if (!pack_usable(info))
			return false;
		d = info->delta_count ? pack_delta_find(info, slot) : NULL;
		if (!d)
			return true;
		pack = d->base_pack;
		slot = d->base_slot;
	}
}

uint32_t packer_usable_run(const struct packer *p, uint32_t pack, uint32_t slot, uint32_t count,
			   bool *ret_usable)
{
	bool usable = packer_slot_usable(p, pack, slot);
	uint32_t n = 1;

	*ret_usable = usable;
	if (p->packs[pack].delta_count == 0 || !pack_usable(&p->packs[pack]))
		return count;
	while (n < count && packer_slot_usable(p, pack, slot + n) == usable)
		n++;
	return n;
}

uint64_t pack_cache_key(const struct packer *p, uint32_t pack, uint32_t slot)
{
	return (uint64_t)p->packs[pack].uid << 32 | slot;
}

/* ---- the file of the last checkpoint ---- */

void old_file_find(const struct packer *p, const struct pack_input *in, struct old_file *ret_old)
{
	const struct packed_file *f = file_list_find(&p->last, in->kind, in->path);

	*ret_old = (struct old_file){ .end = UINT64_MAX };
	if (f && f->hardlink == 0 && S_ISREG(f->st.st_mode))
		ret_old->extents = &f->extents;
}

int old_file_seek(struct old_file *old, uint64_t block)
{
	if (!old->extents)
		return -ENOENT;
	if (block < old->before) {
		old->index = 0;
		old->before = 0;
	}
	while (old->index < old->extents->count &&
	       block - old->before >= old->extents->items[old->index].count)
		old->before += old->extents->items[old->index++].count;
	return old->index < old->extents->count ? 0 : -ENOENT;
}

/* ---- what a difference saves ---- */

enum { DELTA_ALWAYS = 16 };

/* Words that are not zero; more than `enough` are as good as all. */
static uint32_t words_used(const uint8_t *block, uint32_t enough)
{
	uint32_t n = 0;

	for (size_t i = 0; i < PACK_BLOCK && n <= enough; i += PACK_BLOCK / 8)
		for (size_t j = 0; j < PACK_BLOCK / 8; j += 8) {
			uint64_t x;

			memcpy(&x, block + i + j, 8);
			n += x != 0;
		}
	return n;
}

/*
 * Words of a difference compress less than those of a block, where more is alike: measured on memory
 * images, 0.6 against 0.35 of their size on the average.
 */
static bool delta_pays(uint32_t words, const uint8_t *block)
{
	if (words <= DELTA_ALWAYS)
		return true;
	return words <= PACK_DELTA_WORDS_MAX && words * 5 < words_used(block, words * 5 / 3) * 3;
}

/* Words that a delta of so many saves, once compressed. */
static uint32_t delta_saves(uint32_t words, const uint8_t *block)
{
	uint32_t whole = words_used(block, PACK_BLOCK_WORDS) * 35, delta = words * 60;

	return whole > delta + 100 ? (whole - delta) / 100 : 1;
}

/* ---- keeping ---- */

/*
 * What replaced something unlike is mostly replaced by something unlike. Some such contents are
 * always kept, to see what differences to them save; the others only while that is worth it.
 */
enum { UNLIKE_SAVES_MIN = 4, UNLIKE_SAMPLE = 8, UNLIKE_WINDOW = 4096, UNLIKE_FIRST = 256 };

static void note_unlike(struct packer *p, uint32_t saved)
{
	struct unlike_seen *u = &p->unlike;

	if (u->tried == 0)
		*u = (struct unlike_seen){ UNLIKE_FIRST, 2 * UNLIKE_FIRST * UNLIKE_SAVES_MIN };
	u->tried++;
	u->saved_words += saved;
	if (u->tried < UNLIKE_WINDOW)
		return;
	u->tried /= 2;
	u->saved_words /= 2;
}

static bool keeps_unlike(const struct packer *p, uint32_t slot)
{
	const struct unlike_seen *u = &p->unlike;

	return slot % UNLIKE_SAMPLE == 0 || u->saved_words >= u->tried * UNLIKE_SAVES_MIN;
}

void packer_keep_content(struct packer *p, const uint8_t *block, const struct base_choice *choice,
			 uint32_t slot)
{
	enum cache_kind kind = choice->delta	? CACHE_AGAIN :
			       choice->has_last ? CACHE_UNLIKE :
						  CACHE_ONCE;

	/* A version in the middle of a chain is of no more use; one that is whole is, as a base. */
	if (choice->has_last &&
	    (!choice->delta || choice->info.base_pack != choice->last_pack ||
	     choice->info.base_slot != choice->last_slot || !choice->last_whole))
		block_cache_drop(&p->cache,
				 pack_cache_key(p, choice->last_pack, choice->last_slot));
	/* The whole block is near enough to be the next version's base, too. */
	if (choice->delta && choice->info.depth == 1 && choice->delta->count <= PACK_DELTA_NEAR)
		return;
	if (kind != CACHE_UNLIKE || keeps_unlike(p, slot))
		block_cache_put(&p->cache, pack_cache_key(p, p->open_pack, slot), block, kind);
}

/* ---- choosing ---- */

static void try_base(struct packer *p, const uint8_t *block, uint32_t pack, uint32_t slot,
		     uint32_t depth, struct block_delta *room, struct base_choice *choice)
{
	uint32_t max = p->budget.chain_max;
	const uint8_t *content;
	bool unlike;

	if (max == 0 || max > PACK_CHAIN_MAX)
		max = PACK_CHAIN_MAX;
	/* A base in a pack of this checkpoint has no name yet. */
	if (depth > max || p->packs[pack].seq >= p->seq || p->packs[pack].state != PACK_KNOWN)
		return;
	content = block_cache_get_like(&p->cache, pack_cache_key(p, pack, slot), block, &unlike);
	choice->unlike |= unlike;
	if (!content)
		return;
	block_delta(block, content, room);
	/* An eighth more words for one block less to fetch at each restore. */
	if (choice->delta && room->count * 9 / 8 + 1 >= choice->delta->count)
		return;
	choice->delta = room;
	choice->info = (struct delta_info){ .depth = depth, .base_pack = pack, .base_slot = slot };
}

/* The last version of the block that old->next stands for; false: it has none. */
static bool last_version(struct old_file *old, uint32_t *ret_pack, uint32_t *ret_slot)
{
	const struct extent *e;

	if (old->next >= old->end || old_file_seek(old, old->next) < 0)
		return false;
	e = &old->extents->items[old->index];
	*ret_pack = e->pack;
	*ret_slot = e->slot + (uint32_t)(old->next - old->before);
	return e->pack != PACK_ZERO;
}

void packer_bases_ahead(const struct packer *p, const struct old_file *old, uint32_t which)
{
	struct old_file at = *old;
	uint32_t packs[PACK_AHEAD], slots[PACK_AHEAD];
	uint64_t keys[2 * PACK_AHEAD];
	size_t count = 0, n;

	if (p->cache.memory.limit == 0 || !old->extents)
		return;
	for (; which != 0; which >>= 1, at.next++) {
		const struct pack_info *info;

		if (!(which & 1) || !last_version(&at, &packs[count], &slots[count]))
			continue;
		info = &p->packs[packs[count]];
		if (info->delta_slots) {
			__builtin_prefetch(&info->delta_slots->bits[slots[count] / 64]);
			__builtin_prefetch(&info->delta_slots->before[slots[count] / 64]);
		}
		count++;
	}
	for (size_t i = 0; i < count; i++) {
		const struct delta_info *d = pack_delta_find(&p->packs[packs[i]], slots[i]);

		if (d)
			__builtin_prefetch(d);
		keys[i] = pack_cache_key(p, packs[i], slots[i]);
	}
	n = count;
	for (size_t i = 0; i < count; i++) {
		const struct delta_info *d = pack_delta_find(&p->packs[packs[i]], slots[i]),
					*up = d;

		for (; up; up = pack_delta_find(&p->packs[up->base_pack], up->base_slot))
			d = up;
		if (d)
			keys[n++] = pack_cache_key(p, d->base_pack, d->base_slot);
	}
	block_cache_ahead(&p->cache, keys, n);
}

void packer_choose_base(struct packer *p, const uint8_t *block, struct old_file *old,
			struct base_choice *ret_choice)
{
	struct base_choice *c = ret_choice;
	const struct delta_info *d, *up;
	uint32_t whole_pack, whole_slot;
	bool usable = true;
	uint32_t pack, slot;

	*c = (struct base_choice){ 0 };
	if (!old || p->cache.memory.limit == 0 || !last_version(old, &pack, &slot))
		return;
	c->has_last = true;
	c->last_pack = pack;
	c->last_slot = slot;
	d = pack_delta_find(&p->packs[pack], slot);
	whole_pack = pack;
	whole_slot = slot;
	for (up = d; up; up = pack_delta_find(&p->packs[whole_pack], whole_slot)) {
		usable = usable && pack_usable(&p->packs[whole_pack]);
		whole_pack = up->base_pack;
		whole_slot = up->base_slot;
	}
	if (!pack_usable(&p->packs[whole_pack]))
		return;
	c->last_whole = !d;
	if (d)
		try_base(p, block, whole_pack, whole_slot, 1, &p->deltas[0], c);
	if (usable && (!c->delta || c->delta->count > PACK_DELTA_NEAR))
		try_base(p, block, pack, slot, d ? d->depth + 1 : 1, &p->deltas[1], c);
	if (c->delta && !delta_pays(c->delta->count, block))
		c->delta = NULL;
	if (c->unlike)
		note_unlike(p, c->delta ? delta_saves(c->delta->count, block) : 0);
}
