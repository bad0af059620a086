// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Contents of blocks that deltas may be made against. Bounded: a full cache evicts by the clock
 * algorithm, and only a hit marks an entry, so that blocks which come once (a first checkpoint) do
 * not drive out those that change again and again. Whatever is not here is sent whole: a lost
 * cache costs bytes, never correctness.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "agent/pack/internal.h"

enum { PLACES_MIN = 256 };

struct cache_place {
	uint64_t key;  /* 0: free */
	uint32_t next; /* + 1, in the chain of its bucket or of the free places */
	bool used;     /* hit since the hand passed */
};

void block_cache_init(struct block_cache *c, uint64_t budget_bytes)
{
	*c = (struct block_cache){ 0 };
	c->limit = budget_bytes / (PACK_BLOCK + CACHE_OVERHEAD);
	if (c->limit > CACHE_PLACES_MAX)
		c->limit = CACHE_PLACES_MAX;
	if (c->limit < PLACES_MIN)
		c->limit = 0;
}

void block_cache_deinit(struct block_cache *c)
{
	uint64_t limit = c->limit;

	if (c->bytes) {
		key_wipe(c->bytes, c->high * PACK_BLOCK);
		munmap(c->bytes, c->limit * PACK_BLOCK);
	}
	free(c->places);
	free(c->buckets);
	*c = (struct block_cache){ .limit = limit };
}

/* Address space for all of it at once; memory comes as it is used. */
static int allocate(struct block_cache *c)
{
	size_t buckets = 1;
	uint8_t *bytes;

	while (buckets < c->limit)
		buckets *= 2;
	bytes = mmap(NULL, c->limit * PACK_BLOCK, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (bytes == MAP_FAILED)
		return -errno;
	/* Pages of the job: not into a core dump of ours. */
	(void)madvise(bytes, c->limit * PACK_BLOCK, MADV_DONTDUMP);
	c->places = calloc(c->limit, sizeof(*c->places));
	c->buckets = calloc(buckets, sizeof(*c->buckets));
	if (!c->places || !c->buckets) {
		free(c->places);
		free(c->buckets);
		c->places = NULL;
		c->buckets = NULL;
		munmap(bytes, c->limit * PACK_BLOCK);
		return -ENOMEM;
	}
	c->bytes = bytes;
	c->mask = buckets - 1;
	return 0;
}

static uint32_t *bucket(const struct block_cache *c, uint64_t key)
{
	return &c->buckets[(key * 0x9e3779b97f4a7c15u) >> 32 & c->mask];
}

/* The link that names the place of a key, or that ends its chain. */
static uint32_t *find_link(const struct block_cache *c, uint64_t key)
{
	uint32_t *link = bucket(c, key);

	while (*link != 0 && c->places[*link - 1].key != key)
		link = &c->places[*link - 1].next;
	return link;
}

const uint8_t *block_cache_get(struct block_cache *c, uint64_t key)
{
	uint32_t place;

	if (!c->bytes)
		return NULL;
	place = *find_link(c, key);
	if (place == 0)
		return NULL;
	c->places[place - 1].used = true;
	return c->bytes + (size_t)(place - 1) * PACK_BLOCK;
}

void block_cache_drop(struct block_cache *c, uint64_t key)
{
	uint32_t *link, place;

	if (!c->bytes)
		return;
	link = find_link(c, key);
	place = *link;
	if (place == 0)
		return;
	*link = c->places[place - 1].next;
	c->places[place - 1] = (struct cache_place){ .next = c->free };
	c->free = place;
}

static uint32_t evict(struct block_cache *c)
{
	/* Ends: after one round nothing is marked any more. */
	for (;;) {
		struct cache_place *p = &c->places[c->hand];
		uint32_t place = (uint32_t)c->hand + 1;

		c->hand = (c->hand + 1) % c->limit;
		if (p->used) {
			p->used = false;
			continue;
		}
		*find_link(c, p->key) = p->next;
		return place;
	}
}

void block_cache_put(struct block_cache *c, uint64_t key, const uint8_t *block)
{
	uint32_t *link, place;

	if (c->limit == 0 || (!c->bytes && allocate(c) < 0))
		return; /* then there are no deltas */
	place = *find_link(c, key);
	if (place == 0) {
		if (c->free != 0) {
			place = c->free;
			c->free = c->places[place - 1].next;
		} else if (c->high < c->limit) {
			place = (uint32_t)++c->high;
		} else {
			place = evict(c);
		}
		link = bucket(c, key);
		c->places[place - 1] = (struct cache_place){ .key = key, .next = *link };
		*link = place;
	}
	memcpy(c->bytes + (size_t)(place - 1) * PACK_BLOCK, block, PACK_BLOCK);
}
