// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <string.h>

#include "agent/pack/internal.h"

enum { CAPACITY_MIN = 1024 };

void block_index_deinit(struct block_index *x)
{
	free(x->entries);
	memset(x, 0, sizeof(*x));
}

static struct block_entry *probe(const struct block_index *x, struct block_hash hash)
{
	size_t i = hash.low & x->mask;

	while (x->entries[i].pack != 0 &&
	       (x->entries[i].hash.low != hash.low || x->entries[i].hash.high != hash.high))
		i = (i + 1) & x->mask;
	return &x->entries[i];
}

const struct block_entry *block_index_find(const struct block_index *x, struct block_hash hash)
{
	const struct block_entry *e;

	if (!x->entries)
		return NULL;
	e = probe(x, hash);
	return e->pack != 0 ? e : NULL;
}

static int grow(struct block_index *x)
{
	size_t capacity = x->entries ? (x->mask + 1) * 2 : CAPACITY_MIN;
	struct block_index bigger = { .mask = capacity - 1, .count = x->count };

	bigger.entries = calloc(capacity, sizeof(*bigger.entries));
	if (!bigger.entries)
		return -ENOMEM;
	for (size_t i = 0; x->entries && i <= x->mask; i++)
		if (x->entries[i].pack != 0)
			*probe(&bigger, x->entries[i].hash) = x->entries[i];
	free(x->entries);
	*x = bigger;
	return 0;
}

int block_index_insert(struct block_index *x, struct block_hash hash, uint32_t pack, uint32_t slot)
{
	struct block_entry *e;

	/* Three quarters full at most, so that probes stay short. */
	if (!x->entries || (x->count + 1) * 4 > (x->mask + 1) * 3) {
		int r = grow(x);

		if (r < 0)
			return r;
	}
	e = probe(x, hash);
	if (e->pack != 0)
		return 0;
	*e = (struct block_entry){ .hash = hash, .pack = pack + 1, .slot = slot };
	x->count++;
	return 0;
}

void block_index_sweep(struct block_index *x,
		       bool (*keep)(const void *ctx, uint32_t pack, uint32_t slot), const void *ctx)
{
	size_t start = 0;

	if (!x->entries)
		return;
	/*
	 * An entry behind a new hole would no longer be found, so each that stays is put in again.
	 * Starting behind a hole that was there before, no entry's probe path crosses the start:
	 * entries only ever move into places that have been passed.
	 */
	while (x->entries[start].pack != 0)
		start++;
	for (size_t n = 1; n <= x->mask; n++) {
		struct block_entry *e = &x->entries[(start + n) & x->mask];
		struct block_entry moved = *e;

		if (moved.pack == 0)
			continue;
		e->pack = 0;
		if (keep(ctx, moved.pack - 1, moved.slot))
			*probe(x, moved.hash) = moved;
		else
			x->count--;
	}
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
