// SPDX-License-Identifier: LGPL-2.1-or-later
/* The contents that differences are made to: what is kept where, and what a bad disk does to it. */
#include <sys/mman.h>

#include "tests/unit/pack_lab.h"

static void test_cache_is_bounded(void **state)
{
	enum { PLACES = 1000, KEYS = 5000 };
	struct block_cache c;
	uint8_t block[PACK_BLOCK];
	size_t found = 0, hot = 0;

	(void)state;
	block_cache_init(&c, (uint64_t)PLACES * (PACK_BLOCK + CACHE_OVERHEAD), 0, NULL);
	for (uint64_t key = 1; key <= KEYS; key++) {
		memset(block, (int)(key % 251), sizeof(block));
		block_cache_put(&c, key, block, CACHE_ONCE);
		/* The first hundred are asked for all the time. */
		if (key % 100 == 0)
			for (uint64_t i = 1; i <= 100; i++)
				(void)block_cache_get(&c, i);
	}
	for (uint64_t key = 1; key <= KEYS; key++) {
		const uint8_t *there = block_cache_get(&c, key);

		if (!there)
			continue;
		assert_int_equal(there[77], key % 251);
		found++;
		hot += key <= 100;
	}
	assert_int_equal(found, PLACES);
	assert_int_equal(hot, 100);
	for (uint64_t key = 1; key <= KEYS; key++)
		block_cache_drop(&c, key);
	for (uint64_t key = 1; key <= KEYS; key++)
		assert_null(block_cache_get(&c, key));
	block_cache_put(&c, 7, block, CACHE_ONCE);
	assert_memory_equal(block_cache_get(&c, 7), block, sizeof(block));
	block_cache_deinit(&c);
}

static void fill_words(uint8_t block[PACK_BLOCK], uint64_t seed, size_t first, size_t count)
{
	for (size_t i = first; i < first + count; i++) {
		uint64_t word = (seed * 4096 + i + 1) * 0x9e3779b97f4a7c15u;

		memcpy(block + i * 8, &word, sizeof(word));
	}
}

/* In memory and in the file: what has nothing in common with a block is not given for it. */
static void test_cache_gives_what_is_alike(void **state)
{
	enum { PLACES = 300, KEYS = 400 };
	const uint64_t place = PACK_BLOCK + CACHE_OVERHEAD;
	struct block_cache c;
	uint8_t block[PACK_BLOCK];
	bool unlike;

	(void)state;
	block_cache_init(&c, PLACES * place, KEYS * place, "/tmp");
	for (uint64_t key = 1; key <= KEYS; key++) {
		fill_words(block, key, 0, PACK_BLOCK_WORDS);
		block_cache_put(&c, key, block, CACHE_ONCE);
	}
	for (uint64_t key = 1; key <= KEYS; key++) {
		const uint8_t *there;

		fill_words(block, key, 0, PACK_BLOCK_WORDS);
		there = block_cache_get_like(&c, key, block, &unlike);
		assert_non_null(there);
		assert_memory_equal(there, block, sizeof(block));
		/* Half of it differs. */
		fill_words(block, key + KEYS, 0, PACK_BLOCK_WORDS / 2);
		assert_non_null(block_cache_get_like(&c, key, block, &unlike));
		fill_words(block, key + KEYS, 0, PACK_BLOCK_WORDS);
		assert_null(block_cache_get_like(&c, key, block, &unlike));
		assert_non_null(block_cache_get(&c, key));
	}
	assert_null(block_cache_get_like(&c, KEYS + 1, block, &unlike));
	block_cache_deinit(&c);
}

/* What memory has no room for is in a file; what happens to that file costs hits only. */
static void test_cache_has_a_file(void **state)
{
	enum { PLACES = 300, ON_DISK = 1000, KEYS = 1250 };
	/* The last few wait to be written. */
	enum { WRITTEN = (KEYS - PLACES) / CACHE_PENDING_MAX * CACHE_PENDING_MAX };
	const uint64_t place = PACK_BLOCK + CACHE_OVERHEAD;
	struct block_cache c;
	uint8_t block[PACK_BLOCK], byte;
	size_t found = 0;

	(void)state;
	block_cache_init(&c, PLACES * place, ON_DISK * place, "/tmp");
	for (uint64_t key = 1; key <= KEYS; key++) {
		memset(block, (int)(key % 251), sizeof(block));
		block_cache_put(&c, key, block, CACHE_ONCE);
	}
	for (uint64_t key = 1; key <= KEYS; key++) {
		const uint8_t *there = block_cache_get(&c, key);

		assert_non_null(there);
		assert_true(there[0] == key % 251 && there[4095] == key % 251);
	}
	/* Not in the clear: no two blocks begin alike, no block is one byte 4096 times. */
	for (off_t i = 0; i < WRITTEN; i++) {
		size_t same = 0;

		assert_int_equal(pread_full(c.fd, block, sizeof(block), i * PACK_BLOCK), 0);
		for (size_t j = 1; j < sizeof(block); j++)
			same += block[j] == block[0];
		assert_true(same < 100);
	}
	byte = (uint8_t)~block[9];
	assert_int_equal(pwrite_full(c.fd, &byte, 1, (off_t)(WRITTEN - 1) * PACK_BLOCK + 9), 0);
	assert_int_equal(ftruncate(c.fd, (off_t)WRITTEN * PACK_BLOCK), 0);
	for (uint64_t key = 1; key <= KEYS; key++)
		found += block_cache_get(&c, key) != NULL;
	assert_int_equal(found, KEYS - 1);
	assert_int_equal(ftruncate(c.fd, 0), 0);
	for (uint64_t key = found = 1; key <= KEYS; key++)
		found += block_cache_get(&c, key) != NULL;
	assert_int_equal(found - 1, KEYS - WRITTEN);
	block_cache_deinit(&c);
	/* A folder that is none: memory only. */
	block_cache_init(&c, PLACES * place, ON_DISK * place, "/nowhere");
	for (uint64_t key = 1; key <= KEYS; key++)
		block_cache_put(&c, key, block, CACHE_ONCE);
	for (uint64_t key = found = 1; key <= KEYS; key++)
		found += block_cache_get(&c, key) != NULL;
	assert_int_equal(found - 1, PLACES);
	block_cache_deinit(&c);
}

static size_t in_memory(struct block_cache *c, uint64_t from, uint64_t to)
{
	size_t found = 0;

	/* Without its file. */
	assert_int_equal(ftruncate(c->fd, 0), 0);
	c->ahead_count = c->pending_count = 0;
	for (uint64_t key = from; key <= to; key++)
		found += block_cache_get(c, key) != NULL;
	return found;
}

/* What comes once does not push out what changes again and again, nor what came before. */
static void test_once_goes_to_the_file(void **state)
{
	enum { PLACES = 300, AGAIN = 100, KEYS = 1000 };
	const uint64_t place = PACK_BLOCK + CACHE_OVERHEAD;
	uint8_t block[PACK_BLOCK] = { 1 };
	struct block_cache c;

	(void)state;
	block_cache_init(&c, PLACES * place, KEYS * place, "/tmp");
	for (uint64_t key = 1; key <= KEYS - AGAIN; key++)
		block_cache_put(&c, key, block, CACHE_ONCE);
	for (uint64_t key = KEYS - AGAIN + 1; key <= KEYS; key++)
		block_cache_put(&c, key, block, CACHE_AGAIN);
	assert_int_equal(in_memory(&c, KEYS - AGAIN + 1, KEYS), AGAIN);
	assert_int_equal(in_memory(&c, 1, PLACES), PLACES - AGAIN);
	assert_int_equal(in_memory(&c, PLACES + 1, KEYS - AGAIN), 0);
	block_cache_deinit(&c);
}

static void put_keys(struct block_cache *c, uint64_t from, uint64_t to, uint8_t content)
{
	uint8_t block[PACK_BLOCK];

	for (uint64_t key = from; key <= to; key++) {
		memset(block, (int)(uint8_t)(key + content), sizeof(block));
		block_cache_put(c, key, block, CACHE_ONCE);
	}
}

static void check_keys(struct block_cache *c, uint64_t from, uint64_t to, uint8_t content)
{
	for (uint64_t key = from; key <= to; key++) {
		const uint8_t *there = block_cache_get(c, key);

		assert_non_null(there);
		assert_int_equal(there[5], (uint8_t)(key + content));
	}
}

/* What was read ahead is not what is there once its place has another content. */
static void test_read_ahead_is_never_old(void **state)
{
	enum { PLACES = 300, LAST = 600, CHANGED = 380, FLUSHED = CHANGED + CACHE_PENDING_MAX };
	const uint64_t place = PACK_BLOCK + CACHE_OVERHEAD;
	struct block_cache c;

	(void)state;
	block_cache_init(&c, PLACES * place, PLACES * place, "/tmp");
	put_keys(&c, 1, LAST, 0);
	check_keys(&c, 350, CHANGED, 0);
	assert_true(c.ahead_count > 1);
	for (uint8_t content = 1; content < 100; content += 33) {
		/* Waiting, then written. */
		put_keys(&c, 350, CHANGED, content);
		check_keys(&c, 350, CHANGED, content);
		put_keys(&c, 350, FLUSHED, content + 1);
		check_keys(&c, CHANGED, CHANGED, content + 1);
		check_keys(&c, 350, FLUSHED, content + 1);
		check_keys(&c, FLUSHED + 1, LAST, 0);
		check_keys(&c, 350, CHANGED, content + 1);
	}
	block_cache_deinit(&c);
}

/* A write that was lost: the place has what it had before. It is dropped, not given. */
static void test_older_content_of_a_place_is_refused(void **state)
{
	enum { PLACES = 300, LAST = 600, KEY = 400 };
	const uint64_t place = PACK_BLOCK + CACHE_OVERHEAD;
	uint8_t older[CACHE_PENDING_MAX * 2 * PACK_BLOCK];
	const off_t at = (KEY - PLACES - CACHE_PENDING_MAX) * PACK_BLOCK;
	struct block_cache c;

	(void)state;
	block_cache_init(&c, PLACES * place, PLACES * place, "/tmp");
	put_keys(&c, 1, LAST, 0);
	put_keys(&c, LAST - 20, LAST - 20, 0); /* elsewhere: what was pending is written */
	assert_int_equal(pread_full(c.fd, older, sizeof(older), at), 0);
	put_keys(&c, KEY, KEY, 1);
	check_keys(&c, KEY, KEY, 1);
	put_keys(&c, LAST - 20, LAST - 20, 0);
	check_keys(&c, KEY, KEY, 1);
	assert_int_equal(pwrite_full(c.fd, older, sizeof(older), at), 0);
	c.ahead_count = 0;
	assert_null(block_cache_get(&c, KEY));
	check_keys(&c, KEY - 1, KEY - 1, 0);
	block_cache_deinit(&c);
}

static uint64_t resident(const struct block_cache *c)
{
	uint8_t pages[8192];
	uint64_t n = 0;

	assert_true(c->memory.most <= sizeof(pages));
	assert_int_equal(mincore(c->bytes, c->memory.most * PACK_BLOCK, pages), 0);
	for (uint64_t i = 0; i < c->memory.most; i++)
		n += pages[i] & 1;
	return n;
}

/* Smaller, larger, smaller: what has to leave memory is in the file, and that memory is given back. */
static void test_memory_can_shrink(void **state)
{
	enum { MOST = 1500, KEYS = 2500 };
	static const uint64_t sizes[] = { 700, 1500, 300, 1100, 1100, 9000, 256 };
	const uint64_t place = PACK_BLOCK + CACHE_OVERHEAD;
	struct block_cache c;

	(void)state;
	block_cache_init(&c, MOST * place, KEYS * place, "/tmp");
	block_cache_fit(&c, 1000 * place); /* before there is anything */
	put_keys(&c, 1, KEYS, 0);
	assert_int_equal(c.memory.high, 1000);
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		uint64_t limit = sizes[i] < MOST ? sizes[i] : MOST;

		block_cache_drop(&c, 5 + i); /* a free place below and maybe one above */
		block_cache_drop(&c, 990 - i);
		block_cache_fit(&c, sizes[i] * place);
		assert_int_equal(c.memory.limit, limit);
		assert_true(c.memory.high <= limit);
		put_keys(&c, 5 + i, 5 + i, 0);
		put_keys(&c, 990 - i, 990 - i, 0);
		check_keys(&c, 1, KEYS, 0);
		assert_true(resident(&c) <= (limit + 63) / 64 * 64);
	}
	/* Too little for anything stays as it is. */
	block_cache_fit(&c, 10 * place);
	assert_int_equal(c.memory.limit, 256);
	check_keys(&c, 1, KEYS, 0);
	block_cache_deinit(&c);
}

/* Of a large cache the kernel may give 2 MiB at a time: at most that more, and nothing once it shrinks. */
static void test_large_memory_can_shrink(void **state)
{
	enum { MOST = 8000, LIMIT = 4900, LESS = 2301, LARGE = 512 };
	const uint64_t place = PACK_BLOCK + CACHE_OVERHEAD;
	struct block_cache c;

	(void)state;
	block_cache_init(&c, MOST * place, 2 * MOST * place, "/tmp");
	block_cache_fit(&c, LIMIT * place);
	put_keys(&c, 1, MOST, 0);
	assert_int_equal(c.memory.high, LIMIT);
	assert_true(resident(&c) >= LIMIT && resident(&c) < LIMIT + LARGE);
	block_cache_fit(&c, LESS * place);
	assert_true(resident(&c) <= LESS);
	check_keys(&c, 1, MOST, 0);
	assert_true(resident(&c) <= LESS);
	block_cache_deinit(&c);
}

/* What a content had replaced is known in memory, in the file, and on the way from one to the other. */
static void test_unlike_is_remembered(void **state)
{
	enum { PLACES = 300, KEYS = 900 };
	const uint64_t place = PACK_BLOCK + CACHE_OVERHEAD;
	uint8_t block[PACK_BLOCK] = { 1 };
	struct block_cache c;
	bool unlike;

	(void)state;
	block_cache_init(&c, PLACES * place, KEYS * place, "/tmp");
	for (uint64_t key = 1; key <= KEYS; key++)
		block_cache_put(&c, key, block, key % 3 ? CACHE_ONCE : CACHE_UNLIKE);
	for (uint64_t key = KEYS + 1; key <= KEYS + PLACES / 2; key++)
		block_cache_put(&c, key, block,
				CACHE_AGAIN); /* drives half of memory into the file */
	for (uint64_t key = 1; key <= KEYS; key++) {
		assert_non_null(block_cache_get_like(&c, key, block, &unlike));
		assert_int_equal(unlike, key % 3 == 0);
	}
	assert_non_null(block_cache_get_like(&c, KEYS + 1, block, &unlike));
	assert_false(unlike);
	assert_null(block_cache_get_like(&c, KEYS + PLACES, block, &unlike));
	assert_false(unlike);
	block_cache_deinit(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_cache_is_bounded),
		cmocka_unit_test(test_cache_gives_what_is_alike),
		cmocka_unit_test(test_cache_has_a_file),
		cmocka_unit_test(test_once_goes_to_the_file),
		cmocka_unit_test(test_read_ahead_is_never_old),
		cmocka_unit_test(test_older_content_of_a_place_is_refused),
		cmocka_unit_test(test_memory_can_shrink),
		cmocka_unit_test(test_large_memory_can_shrink),
		cmocka_unit_test(test_unlike_is_remembered),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
