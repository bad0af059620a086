// SPDX-License-Identifier: LGPL-2.1-or-later
/* Memory images given as runs of new and old blocks: the same bytes as if given whole. */
#include <stdio.h>
#include <stdlib.h>

#include "tests/unit/pack_lab.h"

enum { BLOCKS = 600, RUNS_MAX = 4096 };

static const char path[] = "pages-1.img";

struct image {
	uint8_t *now;	/* the whole file as it should be */
	uint8_t *fresh; /* pages.new */
	size_t blocks, fresh_blocks;
	struct pack_run runs[RUNS_MAX];
	size_t run_count;
};

static void push_run(struct image *m, uint64_t kind, uint64_t first, uint64_t count)
{
	assert_true(m->run_count < RUNS_MAX);
	m->runs[m->run_count++] = (struct pack_run){ kind << 56 | first, count };
}

static void push_new(struct image *m, const uint8_t *block)
{
	memcpy(m->fresh + m->fresh_blocks * PACK_BLOCK, block, PACK_BLOCK);
	memcpy(m->now + m->blocks++ * PACK_BLOCK, block, PACK_BLOCK);
	push_run(m, PACK_RUN_NEW, m->fresh_blocks++, 1);
}

static void push_old(struct image *m, const struct image *old, size_t first, size_t count)
{
	memcpy(m->now + m->blocks * PACK_BLOCK, old->now + first * PACK_BLOCK, count * PACK_BLOCK);
	m->blocks += count;
	push_run(m, PACK_RUN_OLD, first, count);
}

static struct image *image_new(void)
{
	struct image *m = calloc(1, sizeof(*m));

	m->now = calloc(2 * BLOCKS, PACK_BLOCK);
	m->fresh = calloc(2 * BLOCKS, PACK_BLOCK);
	return m;
}

static void image_free(struct image *m)
{
	free(m->now);
	free(m->fresh);
	free(m);
}

static int add_runs(struct lab *lab, struct image *m)
{
	int fd = lab_content_fd(m->fresh, m->fresh_blocks * PACK_BLOCK);
	struct pack_input in = lab_input_of(FILE_IMAGE, path, S_IFREG | 0600, fd);
	int r;

	in.st.st_size = (off_t)(m->blocks * PACK_BLOCK);
	in.runs = m->runs;
	in.run_count = m->run_count;
	r = packer_add(lab->packer, &in);
	close(fd);
	return r;
}

static void random_block(uint8_t *block, unsigned int *seed)
{
	for (size_t i = 0; i < PACK_BLOCK; i++)
		block[i] = (uint8_t)rand_r(seed);
	if (rand_r(seed) % 8 == 0)
		memset(block, 0, PACK_BLOCK);
}

/* An image that has blocks of its predecessor in any order, and new ones between them. */
static struct image *successor(const struct image *old, unsigned int *seed)
{
	struct image *m = image_new();
	uint8_t block[PACK_BLOCK];

	while (m->blocks < BLOCKS) {
		size_t left = BLOCKS - m->blocks, first, count;

		if (!old || rand_r(seed) % 3 == 0) {
			random_block(block, seed);
			push_new(m, block);
			continue;
		}
		first = (size_t)rand_r(seed) % old->blocks;
		count = 1 + (size_t)rand_r(seed) % 40;
		count = count < left ? count : left;
		count = count < old->blocks - first ? count : old->blocks - first;
		push_old(m, old, first, count);
	}
	return m;
}

static void test_runs_give_the_whole_file(void **state)
{
	struct lab *lab = *state;
	struct image *old = NULL;
	unsigned int seed = 7, with_old = 0;

	for (int round = 0; round < 9; round++) {
		_cleanup_free_ struct pack_wanted *wanted = NULL;
		struct packer_counts counts;
		struct image *m;
		size_t count;

		/* Where blocks are forgotten all is given anew. */
		assert_int_equal(packer_wanted(lab->packer, 1000, &wanted, &count), 0);
		m = successor(count ? NULL : old, &seed);
		with_old += old && !count;
		lab_begin(lab);
		assert_int_equal(add_runs(lab, m), 0);
		counts = lab_finish(lab);
		assert_true(counts.new_bytes <= m->fresh_blocks * PACK_BLOCK);
		lab_check_file(lab, path, m->now, m->blocks * PACK_BLOCK);
		if (old)
			image_free(old);
		old = m;
	}
	assert_true(with_old >= 4);
	image_free(old);
}

static void test_old_blocks_cost_nothing(void **state)
{
	struct lab *lab = *state;
	unsigned int seed = 9;
	struct image *first = successor(NULL, &seed), *second = image_new();
	struct packer_counts counts;

	lab_begin(lab);
	assert_int_equal(add_runs(lab, first), 0);
	lab_finish(lab);
	push_old(second, first, 0, first->blocks);
	lab_begin(lab);
	assert_int_equal(add_runs(lab, second), 0);
	counts = lab_finish(lab);
	assert_int_equal(counts.new_bytes, 0);
	assert_int_equal(counts.packs_new, 0);
	lab_check_file(lab, path, first->now, first->blocks * PACK_BLOCK);
	image_free(first);
	image_free(second);
}

/* The last piece of the file comes first in that of new blocks: each still meets its last version. */
static void test_pieces_come_in_any_order(void **state)
{
	struct lab *lab = *state;
	unsigned int seed = 10;
	struct image *first = successor(NULL, &seed), *second = image_new();
	struct packer_counts counts;
	size_t changed = 0;

	lab_begin(lab);
	assert_int_equal(add_runs(lab, first), 0);
	lab_finish(lab);
	memcpy(second->now, first->now, BLOCKS * PACK_BLOCK);
	for (size_t i = 0; i < BLOCKS; i++) {
		uint8_t *block = second->now + i * PACK_BLOCK;
		size_t at = BLOCKS - 1 - i;

		if (!block_is_zero(block)) {
			block[i] ^= 1;
			changed++;
		}
		memcpy(second->fresh + at * PACK_BLOCK, block, PACK_BLOCK);
		push_run(second, PACK_RUN_NEW, at, 1);
	}
	second->blocks = second->fresh_blocks = BLOCKS;
	lab_begin(lab);
	assert_int_equal(add_runs(lab, second), 0);
	counts = lab_finish(lab);
	assert_int_equal(counts.new_bytes, changed * PACK_BLOCK);
	assert_int_equal(counts.delta_bytes, counts.new_bytes);
	lab_check_file(lab, path, second->now, BLOCKS * PACK_BLOCK);
	image_free(first);
	image_free(second);
}

static bool nobody(void *ctx, const struct node_id *node)
{
	(void)ctx;
	(void)node;
	return false;
}

static void test_lost_blocks_are_asked_for(void **state)
{
	struct lab *lab = *state;
	unsigned int seed = 11;
	struct image *first = successor(NULL, &seed), *second = image_new();
	_cleanup_free_ struct pack_wanted *wanted = NULL;
	uint64_t blocks = 0;
	size_t count;

	lab_begin(lab);
	assert_int_equal(add_runs(lab, first), 0);
	lab_finish(lab);
	assert_int_equal(packer_wanted(lab->packer, 1000, &wanted, &count), 0);
	assert_int_equal(count, 0);
	free(take_ptr(wanted));

	packer_forget_weak(lab->packer, 1, nobody, NULL);
	assert_int_equal(packer_wanted(lab->packer, 0, &wanted, &count), -E2BIG);
	assert_int_equal(packer_wanted(lab->packer, 1000, &wanted, &count), 0);
	assert_true(count > 0);
	for (size_t i = 0; i < count; i++) {
		assert_int_equal(wanted[i].pages_id, 1);
		assert_true(wanted[i].first + wanted[i].count <= BLOCKS);
		blocks += wanted[i].count;
	}
	assert_true(blocks > BLOCKS / 2 && blocks < BLOCKS); /* zeros need no pack */

	/* Who does not give them again is refused; nothing is half done. */
	push_old(second, first, 0, first->blocks);
	lab_begin(lab);
	assert_int_equal(add_runs(lab, second), -ENOENT);
	packer_abort(lab->packer);

	/* Who does is fine. */
	second->blocks = second->run_count = 0;
	for (size_t i = 0, at = 0; i < count; i++) {
		if (wanted[i].first > at)
			push_old(second, first, at, wanted[i].first - at);
		for (uint64_t k = 0; k < wanted[i].count; k++)
			push_new(second, first->now + (wanted[i].first + k) * PACK_BLOCK);
		at = wanted[i].first + wanted[i].count;
		if (i + 1 == count && at < first->blocks)
			push_old(second, first, at, first->blocks - at);
	}
	lab_begin(lab);
	assert_int_equal(add_runs(lab, second), 0);
	lab_finish(lab);
	lab_check_file(lab, path, first->now, first->blocks * PACK_BLOCK);
	image_free(first);
	image_free(second);
}

static void test_wrong_runs_are_refused(void **state)
{
	struct lab *lab = *state;
	unsigned int seed = 13;
	struct image *first = successor(NULL, &seed), *m = image_new();
	const struct {
		struct pack_run run;
		int error;
	} wrong[] = {
		{ { (uint64_t)PACK_RUN_OLD << 56 | BLOCKS, 1 }, -ENOENT },
		{ { (uint64_t)PACK_RUN_OLD << 56 | (BLOCKS - 1), 2 }, -ENOENT },
		{ { (uint64_t)PACK_RUN_OLD << 56 | ((uint64_t)1 << 55), 1 }, -EINVAL },
		{ { (uint64_t)PACK_RUN_NEW << 56 | 7, 1 }, -ENODATA },
		{ { (uint64_t)3 << 56, 1 }, -EINVAL },
		{ { 0, 1 }, -EINVAL },
		{ { (uint64_t)PACK_RUN_OLD << 56, 0 }, -EINVAL },
		{ { (uint64_t)PACK_RUN_OLD << 56, UINT64_MAX }, -EINVAL },
	};

	lab_begin(lab);
	assert_int_equal(add_runs(lab, first), 0);
	lab_finish(lab);
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		m->run_count = 1;
		m->runs[0] = wrong[i].run;
		m->blocks = wrong[i].run.count < BLOCKS ? wrong[i].run.count : 1;
		lab_begin(lab);
		assert_int_equal(add_runs(lab, m), wrong[i].error);
		packer_abort(lab->packer);
	}
	/* Too few and too many blocks for the size. */
	m->runs[0] = (struct pack_run){ (uint64_t)PACK_RUN_OLD << 56, 2 };
	for (m->blocks = 1; m->blocks <= 3; m->blocks += 2) {
		lab_begin(lab);
		assert_int_equal(add_runs(lab, m), -EINVAL);
		packer_abort(lab->packer);
	}
	image_free(first);
	image_free(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_runs_give_the_whole_file), TEST(test_old_blocks_cost_nothing),
		TEST(test_pieces_come_in_any_order), TEST(test_lost_blocks_are_asked_for),
		TEST(test_wrong_runs_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
