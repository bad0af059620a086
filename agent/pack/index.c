// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <string.h>

#include "agent/pack/internal.h"

enum { CAPACITY_MIN = 1024 };

void block_index_deinit(struct block_index *x)
{
	free(x->entries);
	*x = (struct block_index){ .bytes_max = x->bytes_max };
}

uint64_t block_index_bytes(const struct block_index *x)
{
	return x->entries ? (x->mask + 1) * sizeof(*x->entries) : 0;
}

static struct block_entry *probe(const struct block_index *x, uint64_t high, uint32_t low)
{
	size_t i = low & x->mask;

	while (x->entries[i].place != 0 && (x->entries[i].low != low || x->entries[i].high != high))
		i = (i + 1) & x->mask;
	return &x->entries[i];
}

bool block_index_find(const struct block_index *x, struct block_hash hash, uint32_t *ret_pack,
		      uint32_t *ret_slot)
{
	const struct block_entry *e;

	if (!x->entries)
		return false;
	e = probe(x, hash.high, (uint32_t)hash.low);
	if (e->place == 0)
		return false;
	*ret_pack = (e->place - 1) / PACK_BLOCKS_MAX;
	*ret_slot = (e->place - 1) % PACK_BLOCKS_MAX;
	return true;
}

void block_index_prefetch(const struct block_index *x, struct block_hash hash)
{
	if (x->entries)
		__builtin_prefetch(&x->entries[(uint32_t)hash.low & x->mask]);
}

/*
 * An entry behind a new hole would no longer be found, so each of the first `capacity` that stays is
 * put in again, by a mask that may be larger. Starting behind a hole that was there before, no
 * entry's probe path crosses the start: entries only ever move into places that have been passed.
 */
static void place_again(struct block_index *x, size_t capacity, size_t mask,
			bool (*keep)(const void *ctx, uint32_t pack, uint32_t slot),
			const void *ctx)
{
	size_t start = 0;

	x->mask = mask;
	if (capacity == 0)
		return;
	while (x->entries[start].place != 0)
		start++;
	for (size_t n = 1; n < capacity; n++) {
		struct block_entry *e = &x->entries[(start + n) & (capacity - 1)];
		struct block_entry moved = *e;

		if (moved.place == 0)
			continue;
		e->place = 0;
		if (keep(ctx, (moved.place - 1) / PACK_BLOCKS_MAX,
			 (moved.place - 1) % PACK_BLOCKS_MAX))
			*probe(x, moved.high, moved.low) = moved;
		else
			x->count--;
	}
}

static bool keep_all(const void *ctx, uint32_t pack, uint32_t slot)
{
	(void)ctx, (void)pack, (void)slot;
	return true;
}

/*
 * Of the same memory, so that growing needs no second table beside it: in the larger one an entry's
 * home is where it was or as far behind the old end, and the entries of a run come in order.
 */
static int grow(struct block_index *x)
{
	size_t old = x->entries ? x->mask + 1 : 0, capacity = old ? old * 2 : CAPACITY_MIN;
	struct block_entry *bigger;

	if (x->bytes_max > 0 && capacity * sizeof(*bigger) > x->bytes_max)
		return -E2BIG;
	bigger = reallocarray(x->entries, capacity, sizeof(*bigger));
	if (!bigger)
		return -ENOMEM;
	memset(bigger + old, 0, (capacity - old) * sizeof(*bigger));
	x->entries = bigger;
	place_again(x, old, capacity - 1, keep_all, NULL);
	return 0;
}

int block_index_insert(struct block_index *x, struct block_hash hash, uint32_t pack, uint32_t slot)
{
	struct block_entry *e;

	/* Three quarters full at most, so that probes stay short. */
	if (!x->entries || (x->count + 1) * 4 > (x->mask + 1) * 3) {
		int r = grow(x);

		if (r < 0)
			return r == -E2BIG ? 0 : r;
	}
	e = probe(x, hash.high, (uint32_t)hash.low);
	if (e->place != 0)
		return 0;
	*e = (struct block_entry){ .high = hash.high,
				   .low = (uint32_t)hash.low,
				   .place = 1 + pack * PACK_BLOCKS_MAX + slot };
	x->count++;
	return 0;
}

void block_index_sweep(struct block_index *x,
		       bool (*keep)(const void *ctx, uint32_t pack, uint32_t slot), const void *ctx)
{
	if (x->entries)
		place_again(x, x->mask + 1, x->mask, keep, ctx);
}

void slotmap_deinit(struct slotmap *x)
{
	free(x->slots);
	memset(x, 0, sizeof(*x));
}

static void slotmap_put(struct slotmap *x, uint64_t hash, uint32_t stored)
{
	size_t i = hash & x->mask;

	while (x->slots[i].value != 0)
		i = (i + 1) & x->mask;
	x->slots[i].hash = hash;
	x->slots[i].value = stored;
}

int slotmap_insert(struct slotmap *x, uint64_t hash, uint32_t value)
{
	if (!x->slots || (x->count + 1) * 4 > (x->mask + 1) * 3) {
		size_t capacity = x->slots ? (x->mask + 1) * 2 : 64;
		struct slotmap bigger = { .mask = capacity - 1, .count = x->count };

		bigger.slots = calloc(capacity, sizeof(*bigger.slots));
		if (!bigger.slots)
			return -ENOMEM;
		for (size_t i = 0; x->slots && i <= x->mask; i++)
			if (x->slots[i].value != 0)
				slotmap_put(&bigger, x->slots[i].hash, x->slots[i].value);
		free(x->slots);
		*x = bigger;
	}
	slotmap_put(x, hash, value + 1);
	x->count++;
	return 0;
}

bool slotmap_next(const struct slotmap *x, uint64_t hash, size_t *cursor, uint32_t *ret_value)
{
	if (!x->slots)
		return false;
	/* The cursor counts places behind the home slot; the map is never full, so this ends. */
	for (;; (*cursor)++) {
		size_t i = (hash + *cursor) & x->mask;

		if (x->slots[i].value == 0)
			return false;
		if (x->slots[i].hash == hash) {
			(*cursor)++;
			*ret_value = x->slots[i].value - 1;
			return true;
		}
	}
}
