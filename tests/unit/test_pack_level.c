// SPDX-License-Identifier: LGPL-2.1-or-later
/* How much is compressed, for links and processors of all speeds. */
#include <zstd.h>

#include "tests/unit/pack_lab.h"

/* What a memory image costs, in ns and bytes for each byte; as docs/pack.md has it. */
static void seal_one(struct level_control *c)
{
	static const struct {
		int level;
		double cpu, size;
	} costs[] = { { 0, 0.1, 1 },
		      { -7, 2.6, 0.32 },
		      { -3, 3.3, 0.2 },
		      { 1, 4.4, 0.18 },
		      { 6, 23, 0.17 } };
	int level = level_now(c);

	for (size_t i = 0; i < ARRAY_SIZE(costs); i++)
		if (costs[i].level == level)
			level_note(c, level, 1 << 18, (uint64_t)(costs[i].size * (1 << 18)),
				   (uint64_t)(costs[i].cpu * (1 << 18)));
}

/* The level of most of 10,000 frames. */
static int settled(uint64_t link, uint32_t cpu_percent)
{
	unsigned int seen[32] = { 0 }, best = 0;
	struct level_control c;

	level_init(&c, link, cpu_percent);
	for (int i = 0; i < 10000; i++) {
		seal_one(&c);
		seen[level_now(&c) + 8]++;
	}
	for (unsigned int i = 0; i < ARRAY_SIZE(seen); i++)
		if (seen[i] > seen[best])
			best = i;
	return (int)best - 8;
}

static void test_slower_one_decides(void **state)
{
	(void)state;
	assert_int_equal(settled(0, 0), 1); /* nothing is known */
	assert_int_equal(settled(10000000000, 100), 0);
	assert_int_equal(settled(40000000, 100), 1);
	assert_int_equal(settled(70000000, 100), -3);
	/* 10 Mbit/s; a lab's disks; 1 GB/s: not four times the bytes for a third of the time. */
	assert_int_equal(settled(1250000, 100), 6);
	assert_int_equal(settled(400000000, 100), -7);
	assert_int_equal(settled(600000000, 100), -7);
	assert_int_equal(settled(1000000, 100), 6);
	/* A tenth of a processor: a slow link is a fast one. */
	assert_int_equal(settled(25000000, 10), -7);
	assert_int_equal(settled(500000000, 10), 0);
	/* Eight processors. */
	assert_int_equal(settled(5000000, 800), 6);
}

/* What does not get smaller is not worked on harder, however slow the link is. */
static void test_noise_is_cheap(void **state)
{
	static const uint64_t links[] = { 1000000, 45000000, 400000000 };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(links); i++) {
		unsigned int dear = 0;
		struct level_control c;

		level_init(&c, links[i], 100);
		for (int n = 0; n < 10000; n++) {
			int level = level_now(&c);
			double cpu = level == 6 ? 15 : level == 1 ? 3 : level == 0 ? 0.1 : 1.5;

			level_note(&c, level, 1 << 18,
				   (uint64_t)((level == 6 ? .925 : .93) * (1 << 18)),
				   (uint64_t)(cpu * (1 << 18)));
			dear += level == 6;
		}
		print_message("link %llu: level 6 for %u of 10000 frames\n",
			      (unsigned long long)links[i], dear);
		assert_true(dear < 1000);
	}
}

static void test_it_follows_the_link(void **state)
{
	struct level_control c;

	(void)state;
	level_init(&c, 10000000000, 100);
	for (int i = 0; i < 1000; i++)
		seal_one(&c);
	assert_int_equal(level_now(&c), 0);
	atomic_store(&c.link_bytes_per_s, 1000000);
	for (int i = 0; i < 2000; i++)
		seal_one(&c);
	assert_int_equal(level_now(&c), 6);
}

/* Whatever the level, what comes back is what went in, and no pack is more than 1 % too large. */
static void test_every_level_comes_back(void **state)
{
	enum { SIZE = 20 << 20 };
	static const uint64_t links[] = { 0, 1, 1000000, 40000000, 100000000000 };
	struct lab *lab = *state;
	uint8_t *bytes = malloc(SIZE);
	uint64_t least = UINT64_MAX, most = 0;
	int fd = memfd_new("x");

	for (size_t i = 0; i < ARRAY_SIZE(links); i++) {
		struct packer_budget budget = PACKER_BUDGET_DEFAULT;
		struct packer_counts counts;

		lab_fill_random(bytes, SIZE);
		for (size_t j = 0; j < SIZE; j += 64)
			memset(bytes + j, (int)(j / 64), 48);
		assert_int_equal(pwrite_full(fd, bytes, SIZE, 0), 0);
		budget.link_bytes_per_s = links[i];
		budget.cache_bytes = 0;
		assert_int_equal(packer_set_budget(lab->packer, &budget), 0);
		lab_begin(lab);
		assert_int_equal(lab_add(lab, FILE_IMAGE, "a", fd), 0);
		counts = lab_finish(lab);
		print_message("link %llu: %llu sent\n", (unsigned long long)links[i],
			      (unsigned long long)counts.sent_bytes);
		assert_true(counts.sent_bytes < SIZE / 100 * 101);
		least = counts.sent_bytes < least ? counts.sent_bytes : least;
		most = counts.sent_bytes > most ? counts.sent_bytes : most;
		lab_check_file(lab, "a", bytes, SIZE);
	}
	assert_true(least * 5 < most * 4);
	close(fd);
	free(bytes);
}

/* Digits, and what their changes differ by: two tables of codes are better than one for both. */
static void test_differences_have_codes_of_their_own(void **state)
{
	enum { BLOCKS = 20 * PACK_BLOCK, WORDS = 12000 * 8, SIZE = BLOCKS + WORDS };
	uint8_t *body = malloc(SIZE), *back = malloc(SIZE);
	struct frame_scratch s = { 0 };
	size_t together, apart;
	uint64_t noise = 7;

	(void)state;
	for (size_t i = 0; i < SIZE; i++) {
		noise = noise * 6364136223846793005u + 1442695040888963407u;
		body[i] = (uint8_t)((noise >> 33) % 10 ^ (i < BLOCKS ? '0' : 0));
	}
	assert_int_equal(frame_scratch_init(&s), 0);
	together = frame_compress(&s, 1, body, SIZE, 0);
	assert_int_equal(ZSTD_decompress(back, SIZE, s.packed, together), SIZE);
	assert_memory_equal(back, body, SIZE);
	for (int level = -3; level <= 5; level += 4) {
		memset(back, 0, SIZE);
		apart = frame_compress(&s, level, body, SIZE, WORDS);
		assert_true(apart > 0);
		assert_int_equal(ZSTD_decompress(back, SIZE, s.packed, apart), SIZE);
		assert_memory_equal(back, body, SIZE);
		print_message("level %d: %zu, in one %zu\n", level, apart, together);
		if (level == 1)
			assert_true(apart * 100 < together * 95);
	}
	/* A few words go with the rest, as do all of a frame without blocks. */
	assert_true(frame_compress(&s, 1, body, SIZE, 64) <= together + 64);
	apart = frame_compress(&s, 1, body + BLOCKS - 100, WORDS + 100, WORDS);
	assert_int_equal(ZSTD_decompress(back, SIZE, s.packed, apart), WORDS + 100);
	assert_memory_equal(back, body + BLOCKS - 100, WORDS + 100);
	frame_scratch_deinit(&s);
	free(body);
	free(back);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_slower_one_decides),
		TEST(test_noise_is_cheap),
		TEST(test_it_follows_the_link),
		TEST(test_every_level_comes_back),
		cmocka_unit_test(test_differences_have_codes_of_their_own),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
