// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Contents of blocks that deltas may be made against: a tier in memory and, behind it, one in a file
 * without a name, encrypted with a key that nobody but this cache has. Both are bounded; a full tier
 * evicts by the clock algorithm, memory into the file. What comes once goes into the file at once
 * when memory is full, so that a first checkpoint does not drive out what changes again and again,
 * and costs one copy less.
 * Whatever is not here is sent whole: a lost cache costs bytes, never correctness.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "agent/pack/internal.h"
#include "agent/util/io.h"

enum {
	/* Rounds of the hand. What changes again and again would be written into the file anew. */
	USED_ONCE = 1,
	USED_AGAIN = 3,
	PLACES_MIN = 256,
	POPULATE = 64,
	LARGE_MIN = 4096, /* one large page, 512 places, more than the limit is not much then */
	PENDING_BYTES = CACHE_PENDING_MAX * PACK_BLOCK,
	AHEAD_BYTES = CACHE_AHEAD_MAX * PACK_BLOCK,
};

struct cache_place {
	uint64_t key;  /* 0: free */
	uint32_t next; /* + 1, in the chain of its bucket or of the free places */
	uint8_t used;  /* so often the hand passes it by */
	bool unlike;   /* what its last version had nothing to do with */
};

/*
 * What the file should have in a place. Under the number, which never comes again, it is encrypted;
 * the hash tells when the disk has something else, were it an older content of that place.
 */
struct cache_seal {
	uint64_t number;
	uint64_t sketch;
	struct block_hash hash;
};

/* ---- likeness ---- */

enum { SKETCH_WORDS = 8, SKETCH_ALIKE = 2 };

/* No two of these lie at the same offset of 512 bytes. */
static size_t sketch_offset(size_t i)
{
	return (i * PACK_BLOCK_WORDS / SKETCH_WORDS + 11 + i * 5) * 8;
}

/* A byte of the hash of each of some words. */
static uint64_t sketch_of(const uint8_t *block)
{
	uint64_t sketch = 0;

	for (size_t i = 0; i < SKETCH_WORDS; i++) {
		uint64_t word;

		memcpy(&word, block + sketch_offset(i), 8);
		sketch = sketch << 8 | word * 0x9e3779b97f4a7c15u >> 56;
	}
	return sketch;
}

/* A delta pays where less than 60 % of the words differ: then hardly ever all but one of these. */
static bool sketches_alike(uint64_t a, uint64_t b)
{
	uint32_t equal = 0;

	for (uint64_t x = a ^ b, i = 0; i < SKETCH_WORDS; i++, x >>= 8)
		equal += (x & 0xff) == 0;
	return equal >= SKETCH_ALIKE;
}

/* ---- one tier: which key is in which place ---- */

static int tier_allocate(struct cache_tier *t)
{
	size_t buckets = 1;

	while (buckets < t->most)
		buckets *= 2;
	t->places = calloc(t->most, sizeof(*t->places));
	t->buckets = calloc(buckets, sizeof(*t->buckets));
	if (!t->places || !t->buckets) {
		free(take_ptr(t->places));
		free(take_ptr(t->buckets));
		return -ENOMEM;
	}
	t->mask = buckets - 1;
	return 0;
}

static void tier_deinit(struct cache_tier *t)
{
	free(t->places);
	free(t->buckets);
	*t = (struct cache_tier){ .limit = t->limit, .most = t->most };
}

static uint32_t *bucket_of(const struct cache_tier *t, uint64_t key)
{
	return &t->buckets[(key * 0x9e3779b97f4a7c15u) >> 32 & t->mask];
}

/* The link that names the place of a key, or that ends its chain. */
static uint32_t *find_link(const struct cache_tier *t, uint64_t key)
{
	uint32_t *link = bucket_of(t, key);

	while (*link != 0 && t->places[*link - 1].key != key)
		link = &t->places[*link - 1].next;
	return link;
}

/* Place + 1 or 0. */
static uint32_t tier_find(const struct cache_tier *t, uint64_t key)
{
	return t->places ? *find_link(t, key) : 0;
}

/* false: it was not there. */
static bool tier_drop(struct cache_tier *t, uint64_t key)
{
	uint32_t *link = t->places ? find_link(t, key) : NULL, place;

	if (!link || *link == 0)
		return false;
	place = *link;
	*link = t->places[place - 1].next;
	t->places[place - 1] = (struct cache_place){ .next = t->free };
	t->free = place;
	return true;
}

static uint32_t tier_evict(struct cache_tier *t)
{
	/* Ends: after USED_AGAIN rounds nothing is marked any more. */
	for (;;) {
		struct cache_place *p = &t->places[t->hand];
		uint32_t place = (uint32_t)t->hand + 1;

		t->hand = (t->hand + 1) % t->limit;
		if (!p->used) {
			*find_link(t, p->key) = p->next;
			return place;
		}
		p->used--;
	}
}

static bool tier_full(const struct cache_tier *t)
{
	return t->free == 0 && t->high == t->limit;
}

/* A place for a key that has none; *ret_victim: what had it until now, of key 0 if nothing. */
static uint32_t tier_add(struct cache_tier *t, uint64_t key, struct cache_place *ret_victim)
{
	uint32_t place = t->free, *link;

	ret_victim->key = 0;
	if (place != 0) {
		t->free = t->places[place - 1].next;
	} else if (t->high < t->limit) {
		place = (uint32_t)++t->high;
	} else {
		place = tier_evict(t);
		*ret_victim = t->places[place - 1];
	}
	link = bucket_of(t, key);
	t->places[place - 1] = (struct cache_place){ .key = key, .next = *link };
	*link = place;
	return place;
}

/* ---- the file ---- */

static uint64_t places_of(uint64_t bytes)
{
	uint64_t n = bytes / (PACK_BLOCK + CACHE_OVERHEAD);

	if (n > CACHE_PLACES_MAX)
		n = CACHE_PLACES_MAX;
	return n < PLACES_MIN ? 0 : n;
}

/* Without a name from the start: nothing of it is left behind, whatever happens. */
static int file_open(struct block_cache *c)
{
	struct secret_key key;
	int r;

	c->fd = open(c->dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (c->fd < 0)
		return -errno;
	r = random_bytes(c->hash_secret, sizeof(c->hash_secret));
	if (r == 0)
		r = random_bytes(key.b, sizeof(key.b));
	if (r == 0)
		r = stream_create(&key, &c->stream);
	key_wipe(&key, sizeof(key));
	if (r < 0)
		return r;
	c->seals = calloc(c->disk.limit, sizeof(*c->seals));
	c->plain = malloc(PACK_BLOCK);
	c->pending = malloc(PENDING_BYTES);
	c->ahead = malloc(AHEAD_BYTES);
	c->pending_count = c->ahead_count = 0;
	return c->seals && c->plain && c->pending && c->ahead ? tier_allocate(&c->disk) : -ENOMEM;
}

static void file_close(struct block_cache *c)
{
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
	free(take_ptr(c->seals));
	free(take_ptr(c->pending));
	free(take_ptr(c->ahead));
	if (c->plain)
		key_wipe(c->plain, PACK_BLOCK);
	free(take_ptr(c->plain));
	tier_deinit(&c->disk);
	stream_destroy(take_ptr(c->stream));
	key_wipe(c->hash_secret, sizeof(c->hash_secret));
}

/* Room for the encrypted content of a place: mostly they come in order, and are written together. */
static int pending_slot(struct block_cache *c, uint64_t place, uint8_t **ret_slot)
{
	int r = 0;

	if (c->pending_count == CACHE_PENDING_MAX || place != c->pending_first + c->pending_count) {
		r = pwrite_full(c->fd, c->pending, c->pending_count * PACK_BLOCK,
				(off_t)(c->pending_first * PACK_BLOCK));
		c->ahead_count = 0; /* may be of those */
		c->pending_first = place;
		c->pending_count = 0;
	}
	*ret_slot = c->pending + c->pending_count++ * PACK_BLOCK;
	return r;
}

static void file_put(struct block_cache *c, uint64_t key, const uint8_t *block, bool unlike)
{
	struct cache_place victim;
	struct cache_seal *seal;
	uint8_t *slot;
	uint32_t place;

	if (c->disk.limit == 0)
		return;
	place = tier_find(&c->disk, key);
	if (place == 0)
		place = tier_add(&c->disk, key, &victim);
	c->disk.places[place - 1].unlike = unlike;
	seal = &c->seals[place - 1];
	seal->number = ++c->number;
	seal->sketch = sketch_of(block);
	seal->hash = block_hash_with(c->hash_secret, block);
	if (pending_slot(c, place - 1, &slot) < 0 ||
	    stream_apply(c->stream, seal->number, block, PACK_BLOCK, slot) < 0) {
		/* Full or broken: without a file from now on. */
		file_close(c);
		c->disk.limit = 0;
	}
}

/* Encrypted contents of a place. Neighbours change together, so some are read ahead. */
static const uint8_t *file_read(struct block_cache *c, uint64_t place)
{
	uint64_t count = CACHE_AHEAD_MAX, left = c->disk.high - place;

	if (place >= c->pending_first && place - c->pending_first < c->pending_count)
		return c->pending + (place - c->pending_first) * PACK_BLOCK;
	if (place >= c->ahead_first && place - c->ahead_first < c->ahead_count)
		return c->ahead + (place - c->ahead_first) * PACK_BLOCK;
	/* Not in order: no more than that one. */
	if (place != c->ahead_first + c->ahead_count)
		count = 1;
	/* What is pending may lie beyond the file's end. */
	if (c->pending_first > place && c->pending_first - place < left)
		left = c->pending_first - place;
	count = count < left ? count : left;
	c->ahead_first = place;
	c->ahead_count = 0;
	if (pread_full(c->fd, c->ahead, count * PACK_BLOCK, (off_t)(place * PACK_BLOCK)) < 0)
		return NULL;
	c->ahead_count = count;
	return c->ahead;
}

static const uint8_t *file_get(struct block_cache *c, uint64_t key, const uint8_t *like,
			       bool *ret_unlike)
{
	uint32_t place = tier_find(&c->disk, key);
	const struct cache_seal *seal;
	struct block_hash hash;
	const uint8_t *from;

	if (place == 0)
		return NULL;
	seal = &c->seals[place - 1];
	*ret_unlike = c->disk.places[place - 1].unlike;
	if (like && !sketches_alike(sketch_of(like), seal->sketch))
		return NULL;
	from = file_read(c, place - 1);
	if (!from || stream_apply(c->stream, seal->number, from, PACK_BLOCK, c->plain) < 0)
		goto bad;
	hash = block_hash_with(c->hash_secret, c->plain);
	if (hash.low != seal->hash.low || hash.high != seal->hash.high)
		goto bad;
	c->disk.places[place - 1].used = USED_ONCE;
	return c->plain;
bad:
	(void)tier_drop(&c->disk, key);
	return NULL;
}

/* ---- both ---- */

void block_cache_init(struct block_cache *c, uint64_t memory_bytes, uint64_t disk_bytes,
		      const char *dir)
{
	*c = (struct block_cache){ .fd = -1 };
	c->memory.limit = c->memory.most = places_of(memory_bytes);
	if (c->memory.limit == 0 || !dir || !dir[0])
		return;
	c->disk.limit = c->disk.most = places_of(disk_bytes);
	snprintf(c->dir, sizeof(c->dir), "%s", dir);
}

void block_cache_deinit(struct block_cache *c)
{
	if (c->bytes) {
		key_wipe(c->bytes, c->memory.high * PACK_BLOCK);
		munmap(c->bytes, c->memory.most * PACK_BLOCK);
	}
	c->bytes = NULL;
	tier_deinit(&c->memory);
	file_close(c);
}

/* Address space for all of it at once; memory comes as it is used. */
static int allocate(struct block_cache *c)
{
	uint8_t *bytes = mmap(NULL, c->memory.most * PACK_BLOCK, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	int r;

	if (bytes == MAP_FAILED)
		return -errno;
	/* Pages of the job: not into a core dump of ours. */
	(void)madvise(bytes, c->memory.most * PACK_BLOCK, MADV_DONTDUMP);
	/* Contents are looked at in no order: with large pages fewer translations are missed. */
	if (c->memory.most >= LARGE_MIN)
		(void)madvise(bytes, c->memory.most * PACK_BLOCK, MADV_HUGEPAGE);
	r = tier_allocate(&c->memory);
	if (r < 0) {
		munmap(bytes, c->memory.most * PACK_BLOCK);
		return r;
	}
	c->bytes = bytes;
	if (c->disk.limit > 0 && file_open(c) < 0) {
		file_close(c);
		c->disk.limit = 0;
	}
	return 0;
}

/* The places from `limit` on are given up; what they have goes into the file. */
static void shrink(struct block_cache *c, uint64_t limit)
{
	struct cache_tier *t = &c->memory;
	uint64_t high = t->high;
	uint8_t *rest = c->bytes + limit * PACK_BLOCK;

	for (uint64_t i = limit; i < high; i++) {
		struct cache_place *p = &t->places[i];

		if (p->key == 0)
			continue;
		file_put(c, p->key, c->bytes + i * PACK_BLOCK, p->unlike);
		(void)tier_drop(t, p->key);
	}
	t->limit = limit;
	t->high = high < limit ? high : limit;
	t->hand = 0;
	t->free = 0;
	for (uint64_t i = 0; i < t->high; i++) {
		if (t->places[i].key != 0)
			continue;
		t->places[i].next = t->free;
		t->free = (uint32_t)i + 1;
	}
	if (high <= limit)
		return;
	key_wipe(rest, (high - limit) * PACK_BLOCK);
	/* Behind the last place in use may be the rest of a large page. */
	(void)madvise(rest, (t->most - limit) * PACK_BLOCK, MADV_DONTNEED);
}

void block_cache_fit(struct block_cache *c, uint64_t memory_bytes)
{
	uint64_t limit = places_of(memory_bytes);

	limit = limit < c->memory.most ? limit : c->memory.most;
	if (limit == 0 || limit == c->memory.limit)
		return;
	if (c->bytes && limit < c->memory.limit)
		shrink(c, limit);
	else
		c->memory.limit = limit;
}

static const uint8_t *get(struct block_cache *c, uint64_t key, const uint8_t *like,
			  bool *ret_unlike)
{
	uint32_t place = tier_find(&c->memory, key);
	struct cache_place *p;
	const uint8_t *content;

	*ret_unlike = false;
	if (place == 0)
		return file_get(c, key, like, ret_unlike);
	p = &c->memory.places[place - 1];
	*ret_unlike = p->unlike;
	content = c->bytes + (size_t)(place - 1) * PACK_BLOCK;
	if (like && !sketches_alike(sketch_of(like), sketch_of(content)))
		return NULL;
	if (p->used == 0)
		p->used = USED_ONCE;
	return content;
}

const uint8_t *block_cache_get(struct block_cache *c, uint64_t key)
{
	bool unlike;

	return get(c, key, NULL, &unlike);
}

const uint8_t *block_cache_get_like(struct block_cache *c, uint64_t key, const uint8_t *block,
				    bool *ret_unlike)
{
	return get(c, key, block, ret_unlike);
}

/* Where keys are: the heads of their chains, then the first of each. */
static void tier_ahead(const struct cache_tier *t, const uint64_t *keys, size_t count)
{
	if (!t->places)
		return;
	for (size_t i = 0; i < count; i++)
		__builtin_prefetch(bucket_of(t, keys[i]));
	for (size_t i = 0; i < count; i++) {
		uint32_t place = *bucket_of(t, keys[i]);

		if (place != 0)
			__builtin_prefetch(&t->places[place - 1]);
	}
}

void block_cache_ahead(const struct block_cache *c, const uint64_t *keys, size_t count)
{
	const struct cache_tier *t = &c->memory;
	uint64_t missing[2 * PACK_AHEAD];
	size_t n = 0;

	if (!t->places)
		return;
	tier_ahead(t, keys, count);
	for (size_t i = 0; i < count; i++) {
		uint32_t place = *find_link(t, keys[i]);

		if (place == 0 && n < ARRAY_SIZE(missing))
			missing[n++] = keys[i];
		for (size_t j = 0; place != 0 && j < SKETCH_WORDS; j++)
			__builtin_prefetch(c->bytes + (size_t)(place - 1) * PACK_BLOCK +
					   sketch_offset(j));
	}
	tier_ahead(&c->disk, missing, n);
	for (size_t i = 0; c->disk.places && i < n; i++) {
		uint32_t place = *find_link(&c->disk, missing[i]);

		if (place != 0)
			__builtin_prefetch(&c->seals[place - 1]);
	}
}

void block_cache_drop(struct block_cache *c, uint64_t key)
{
	/* What was put twice may be in both: it is the same content, and the hand finds it. */
	if (!tier_drop(&c->memory, key))
		(void)tier_drop(&c->disk, key);
}

/* One call for the faults of several places. Where the kernel has none, they come one by one. */
static void populate(const struct block_cache *c, uint64_t place)
{
#ifdef MADV_POPULATE_WRITE
	uint64_t left = c->memory.limit - place;

	if (place % POPULATE == 0)
		(void)madvise(c->bytes + place * PACK_BLOCK,
			      (left < POPULATE ? left : POPULATE) * PACK_BLOCK,
			      MADV_POPULATE_WRITE);
#endif
}

void block_cache_put(struct block_cache *c, uint64_t key, const uint8_t *block,
		     enum cache_kind kind)
{
	struct cache_place *p, victim = { 0 };
	uint64_t high = c->memory.high;
	uint8_t *bytes;
	uint32_t place;

	if (c->memory.limit == 0 || (!c->bytes && allocate(c) < 0))
		return; /* then there are no deltas */
	place = tier_find(&c->memory, key);
	if (place == 0 && kind != CACHE_AGAIN && c->disk.places && tier_full(&c->memory)) {
		file_put(c, key, block, kind == CACHE_UNLIKE);
		return;
	}
	if (place == 0)
		place = tier_add(&c->memory, key, &victim);
	p = &c->memory.places[place - 1];
	p->unlike = kind == CACHE_UNLIKE;
	if (kind == CACHE_AGAIN)
		p->used = USED_AGAIN;
	bytes = c->bytes + (size_t)(place - 1) * PACK_BLOCK;
	if (c->memory.high > high)
		populate(c, high);
	if (victim.key != 0)
		file_put(c, victim.key, bytes, victim.unlike);
	memcpy(bytes, block, PACK_BLOCK);
}
