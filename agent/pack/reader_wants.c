// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Blocks of which a difference was read. It waits, as the words that differ, for its base's pack to
 * be read; if that base is a difference too, both become one to the base after that. As packs are
 * read newest first, a pack is mostly read once, with all differences to it known.
 *
 * Nothing bounds how many differences a manifest needs, so their memory is: beyond it a pack is put
 * off, and read again when older packs have taken some away. Somebody who waits is not put off.
 */
#include <errno.h>
#include <string.h>

#include "agent/pack/reader_internal.h"
#include "agent/util/io.h"

enum { WANT_BUCKETS = 1 << 16 };

static uint64_t want_bytes(uint32_t words)
{
	return sizeof(struct want) + (uint64_t)words * 8;
}

static struct want **bucket_of(const struct pack_reader *r, uint32_t file, uint64_t block)
{
	uint64_t mixed = (block ^ (uint64_t)file << 40) * 0x9e3779b97f4a7c15u;

	return &r->wants[mixed >> 32 & (WANT_BUCKETS - 1)];
}

struct want *want_find(const struct pack_reader *r, uint32_t file, uint64_t block)
{
	struct want *w = r->wants ? *bucket_of(r, file, block) : NULL;

	while (w && (w->file != file || w->block != block))
		w = w->chain;
	return w;
}

void wants_deinit(struct pack_reader *r)
{
	for (size_t i = 0; r->wants && i < WANT_BUCKETS; i++) {
		struct want *w = r->wants[i];

		while (w) {
			struct want *next = w->chain;

			key_wipe(w->words, (size_t)w->count * 8);
			free(w->words);
			free(w);
			w = next;
		}
	}
	free(take_ptr(r->wants));
}

/* Block `slot` of the pack at hand is a difference. */
static int find_base(const struct pack_reader *r, const struct worker *me,
		     const struct pack_view *v, uint32_t pack, uint32_t slot, uint32_t depth,
		     struct base_ref *ret_base)
{
	struct base_ref from = { .pack = pack,
				 .slot = slot,
				 .depth = depth,
				 .ref = me->bases[slot % PACK_FRAME_BLOCKS] };

	return links_base(&r->links, r->c.manifest, v, &from, ret_base);
}

static void set_base(struct want *want, const struct base_ref *base)
{
	want->pack = base->pack;
	want->slot = base->slot;
	want->depth = base->depth;
}

/* ---- life of a want ---- */

/* The exclusive or of two blocks -> a want's words. */
static int keep_mask(struct worker *me, const uint8_t *mask, struct want *want)
{
	static const uint8_t zeros[PACK_BLOCK];
	uint64_t *words;

	block_delta(mask, zeros, &me->delta);
	words = malloc(me->delta.count * 8 + 8);
	if (!words)
		return -ENOMEM;
	memcpy(words, me->delta.words, (size_t)me->delta.count * 8);
	memcpy(want->map, me->delta.map, sizeof(want->map));
	if (want->words)
		key_wipe(want->words, (size_t)want->count * 8);
	free(want->words);
	want->words = words;
	want->count = me->delta.count;
	return 0;
}

static void push(struct pack_reader *r, struct want *want)
{
	struct work *w = &r->work[r->work_of[want->pack]];

	want->next = w->wants;
	w->wants = want;
	reader_reopen(r, w);
	if (want->urgent)
		reader_urge_work(r, w, want->slot / PACK_FRAME_BLOCKS);
}

/* The caller has the lock. */
static int make_room(struct pack_reader *r, bool urged)
{
	uint64_t max = r->c.wants_max ? r->c.wants_max : READER_WANTS_MAX;

	if (!urged && r->wants_bytes >= max)
		return -ENOBUFS;
	if (!r->wants)
		r->wants = calloc(WANT_BUCKETS, sizeof(struct want *));
	return r->wants ? 0 : -ENOMEM;
}

int want_add(struct pack_reader *r, struct worker *me, const struct pack_view *v,
	     struct placement *p, uint32_t i, const uint8_t *mask)
{
	struct want *want = calloc(1, sizeof(*want)), **bucket;
	uint64_t bit = (uint64_t)1 << i;
	struct base_ref base;
	int e = want ? keep_mask(me, mask, want) : -ENOMEM;

	if (e == 0) {
		want->file = p->file;
		want->block = p->block + i;
		want->origin_pack = p->pack;
		want->origin_slot = p->slot + i;
		e = find_base(r, me, v, p->pack, p->slot + i, 0, &base);
	}
	if (e == 0) {
		pthread_mutex_lock(&r->lock);
		e = make_room(r, p->urged & bit);
		if (e == 0) {
			set_base(want, &base);
			want->urgent = p->urged & bit;
			bucket = bucket_of(r, want->file, want->block);
			want->chain = *bucket;
			*bucket = want;
			r->wants_bytes += want_bytes(want->count);
			p->left &= ~bit;
			push(r, want);
		}
		pthread_mutex_unlock(&r->lock);
	}
	if (e < 0 && want) {
		free(want->words);
		free(want);
	}
	return e;
}

int want_move(struct pack_reader *r, struct worker *me, const struct pack_view *v,
	      struct want *want, const uint8_t *mask)
{
	uint32_t old_count = want->count;
	struct base_ref base;
	int e = find_base(r, me, v, want->pack, want->slot, want->depth, &base);

	if (e < 0)
		return e;
	want_resolve(me, want, mask);
	e = keep_mask(me, me->block, want);
	if (e < 0)
		return e;
	pthread_mutex_lock(&r->lock);
	r->wants_bytes += want_bytes(want->count) - want_bytes(old_count);
	set_base(want, &base);
	push(r, want);
	pthread_mutex_unlock(&r->lock);
	return 0;
}

void want_resolve(struct worker *me, const struct want *want, const uint8_t *base)
{
	block_delta_mask(want->map, (const uint8_t *)want->words, me->block);
	for (size_t i = 0; i < PACK_BLOCK; i++)
		me->block[i] ^= base[i];
}

void want_end(struct pack_reader *r, struct want *want)
{
	struct want **link;

	pthread_mutex_lock(&r->lock);
	link = bucket_of(r, want->file, want->block);
	while (*link != want)
		link = &(*link)->chain;
	*link = want->chain;
	r->wants_bytes -= want_bytes(want->count);
	r->done_bytes += PACK_BLOCK;
	pthread_mutex_unlock(&r->lock);
	key_wipe(want->words, (size_t)want->count * 8);
	free(want->words);
	free(want);
}

void want_put_back(struct pack_reader *r, struct work *w, struct want *want)
{
	pthread_mutex_lock(&r->lock);
	want->urgent = false; /* else it would be tried again without a pause */
	want->next = w->wants;
	w->wants = want;
	pthread_mutex_unlock(&r->lock);
}

void wants_put_back(struct pack_reader *r, struct worker *me, struct work *w)
{
	for (size_t i = 0; i < me->want_count; i++)
		if (me->wants[i])
			want_put_back(r, w, take_ptr(me->wants[i]));
}

static int compare_slots(const void *a, const void *b)
{
	const struct want *x = *(struct want *const *)a, *y = *(struct want *const *)b;

	return x->slot < y->slot ? -1 : x->slot > y->slot;
}

int wants_take(struct pack_reader *r, struct worker *me, struct work *w)
{
	size_t n = 0;

	free(take_ptr(me->wants));
	me->want_count = 0;
	pthread_mutex_lock(&r->lock);
	for (const struct want *want = w->wants; want; want = want->next)
		n++;
	me->wants = n > 0 ? calloc(n, sizeof(struct want *)) : NULL;
	while (me->wants && w->wants) {
		me->wants[me->want_count++] = w->wants;
		w->wants = w->wants->next;
	}
	pthread_mutex_unlock(&r->lock);
	if (n > 0 && !me->wants)
		return -ENOMEM;
	if (n > 0)
		qsort(me->wants, n, sizeof(struct want *), compare_slots);
	return 0;
}
