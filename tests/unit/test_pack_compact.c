// SPDX-License-Identifier: LGPL-2.1-or-later
/* Forgotten packs are written anew between two checkpoints, or nothing changes. */
#include <stdio.h>
#include <stdlib.h>

#include "tests/unit/pack_lab.h"

enum { BLOCKS = 1500, SIZE = BLOCKS * PACK_BLOCK };

static const char path[] = "pages-1.img";

/* A job in whose packs little is live: what is left of its first checkpoint is forgotten. */
struct sparse {
	struct lab *lab;
	uint8_t *now;
	uint64_t wanted_bytes;
	int looks, looks_max; /* 0: compaction is never told to stop */
};

static int put_counted(void *ctx, int memfd, const struct object_hash *hash, uint32_t size,
		       uint32_t *ret_holder_count, struct node_id *ret_holders)
{
	struct sparse *s = ctx;

	return lab_put(&s->lab->store, memfd, hash, size, ret_holder_count, ret_holders);
}

static int get_counted(void *ctx, const struct object_hash *hash, uint32_t size,
		       const struct node_id *holders, uint32_t holder_count, int *ret_memfd)
{
	struct sparse *s = ctx;

	return lab_get(&s->lab->store, hash, size, holders, holder_count, ret_memfd);
}

static int open_last(void *ctx, struct manifest **ret_manifest)
{
	*ret_manifest = lab_open_manifest(((struct sparse *)ctx)->lab);
	return 0;
}

static bool goes_on(void *ctx)
{
	struct sparse *s = ctx;

	return s->looks_max == 0 || ++s->looks <= s->looks_max;
}

static uint64_t wanted_bytes(struct lab *lab)
{
	struct pack_wanted *wanted;
	uint64_t blocks = 0;
	size_t count;

	assert_int_equal(packer_wanted(lab->packer, 1 << 20, &wanted, &count), 0);
	for (size_t i = 0; i < count; i++)
		blocks += wanted[i].count;
	free(wanted);
	return blocks * PACK_BLOCK;
}

static void checkpoint_whole(struct sparse *s)
{
	int fd = lab_content_fd(s->now, SIZE);

	lab_begin(s->lab);
	assert_int_equal(lab_add(s->lab, FILE_IMAGE, path, fd), 0);
	lab_finish(s->lab);
	close(fd);
}

/* All of it old, as when nothing was written: fails if a block lies in a forgotten pack. */
static int checkpoint_old(struct sparse *s)
{
	struct pack_run run = { .from = (uint64_t)PACK_RUN_OLD << 56, .count = BLOCKS };
	struct pack_input in = lab_input_of(FILE_IMAGE, path, S_IFREG | 0600, -1);
	int r;

	in.st.st_size = SIZE;
	in.runs = &run;
	in.run_count = 1;
	lab_begin(s->lab);
	r = packer_add(s->lab->packer, &in);
	if (r < 0)
		packer_abort(s->lab->packer);
	else
		lab_finish(s->lab);
	return r;
}

static void make_sparse(struct sparse *s, struct lab *lab, uint64_t cache_bytes, bool deltas)
{
	struct packer_budget budget = { .cache_bytes = cache_bytes };

	*s = (struct sparse){ .lab = lab, .now = malloc(SIZE) };
	assert_int_equal(packer_set_budget(lab->packer, &budget), 0);
	lab_fill_random(s->now, SIZE);
	checkpoint_whole(s);
	/* Little differences to some blocks of what will be forgotten. */
	for (size_t i = 0; deltas && i < BLOCKS; i += 16)
		s->now[i * PACK_BLOCK + 100] ^= 1;
	if (deltas)
		checkpoint_whole(s);
	/* One of eight stays, and of the others less than half: most of what is kept is dead. */
	for (uint8_t step = 1; step <= 2; step++) {
		for (size_t i = 0; i < BLOCKS; i++)
			for (size_t j = 0; (step == 1 ? i % 8 : i % 2) && j < PACK_BLOCK; j += 2)
				s->now[i * PACK_BLOCK + j] ^= (uint8_t)(j / 2 + i + step);
		checkpoint_whole(s);
	}
	s->wanted_bytes = wanted_bytes(lab);
	assert_in_range(s->wanted_bytes, SIZE / 14, SIZE / 7);
	assert_int_equal(packer_forgotten_bytes(lab->packer), s->wanted_bytes);
	assert_int_equal(checkpoint_old(s), -ENOENT);
	atomic_store(&lab->store.gets, 0);
}

static int compact(struct sparse *s, uint64_t bytes_max, struct packer_compacted *ret_done)
{
	const struct packer_compaction c = { .token = s->lab->token,
					     .seq = s->lab->seq + 1,
					     .store = put_counted,
					     .fetch = get_counted,
					     .open_last = open_last,
					     .goes_on = goes_on,
					     .ctx = s,
					     .bytes_max = bytes_max };

	return packer_compact(s->lab->packer, &c, ret_done);
}

static void check_whole(struct sparse *s)
{
	assert_int_equal(wanted_bytes(s->lab), 0);
	assert_int_equal(packer_forgotten_bytes(s->lab->packer), 0);
	assert_int_equal(checkpoint_old(s), 0);
	lab_check_file(s->lab, path, s->now, SIZE);
	free(s->now);
}

static void test_from_the_holders(void **state)
{
	struct packer_compacted done;
	struct sparse s;

	make_sparse(&s, *state, 0, false);
	assert_int_equal(compact(&s, UINT64_MAX, &done), 0);
	assert_int_equal(done.fetched_bytes, s.wanted_bytes);
	assert_int_equal(done.cached_bytes, 0);
	assert_in_range(done.sent_bytes, s.wanted_bytes, s.wanted_bytes + s.wanted_bytes / 50);
	assert_true(atomic_load(&s.lab->store.gets) > 0);
	/* The manifest that is there is as good as before. */
	lab_check_file(s.lab, path, s.now, SIZE);
	check_whole(&s);
}

static void test_from_the_cache(void **state)
{
	struct packer_compacted done;
	struct sparse s;

	make_sparse(&s, *state, 64 << 20, false);
	assert_int_equal(compact(&s, UINT64_MAX, &done), 0);
	assert_int_equal(done.cached_bytes, s.wanted_bytes);
	assert_int_equal(done.fetched_bytes, 0);
	assert_int_equal(atomic_load(&s.lab->store.gets), 0);
	check_whole(&s);
}

static void test_differences_become_whole(void **state)
{
	struct packer_compacted done;
	struct sparse s;

	/* A cache too small for all: some from here, some from there. */
	make_sparse(&s, *state, 5 << 20, true);
	assert_int_equal(compact(&s, UINT64_MAX, &done), 0);
	assert_int_equal(done.cached_bytes + done.fetched_bytes, s.wanted_bytes);
	assert_true(done.fetched_bytes > 0);
	/* Packs of which little was live but for these bases are forgotten now, and so on. */
	for (int i = 0; i < 3 && packer_forgotten_bytes(s.lab->packer) > 0; i++)
		assert_int_equal(compact(&s, UINT64_MAX, &done), 0);
	check_whole(&s);
}

static void test_a_part_at_a_time(void **state)
{
	struct packer_compacted done;
	uint64_t left;
	struct sparse s;

	make_sparse(&s, *state, 0, false);
	for (left = s.wanted_bytes; left > 0; left = packer_forgotten_bytes(s.lab->packer)) {
		assert_int_equal(compact(&s, 256 << 10, &done), 0);
		assert_true(done.fetched_bytes == 256 << 10 || done.fetched_bytes == left);
		assert_int_equal(packer_forgotten_bytes(s.lab->packer), left - done.fetched_bytes);
	}
	check_whole(&s);
}

/* Told to stop: what was done counts, what was not is as before. */
static void test_stopped(void **state)
{
	struct packer_compacted done;
	struct sparse s;

	make_sparse(&s, *state, 0, false);
	s.looks_max = 20;
	assert_int_equal(compact(&s, UINT64_MAX, &done), 0);
	assert_in_range(done.fetched_bytes, 1, s.wanted_bytes - 1);
	assert_int_equal(packer_forgotten_bytes(s.lab->packer),
			 s.wanted_bytes - done.fetched_bytes);
	lab_check_file(s.lab, path, s.now, SIZE);
	s.looks_max = 0;
	assert_int_equal(compact(&s, UINT64_MAX, &done), 0);
	check_whole(&s);
}

/* No one takes it, no one gives it, what they give is not it: all as before. */
static void test_failures_change_nothing(void **state)
{
	struct packer_compacted done = { .sent_bytes = 7 };
	struct lab *lab = *state;
	struct sparse s;

	make_sparse(&s, lab, 0, false);
	for (int i = 0; i < 3; i++) {
		int r;

		lab->store.fail_after = i == 0;
		lab->store.lie = i == 1;
		lab->store.fail = i == 2 ? -EHOSTUNREACH : 0;
		r = compact(&s, UINT64_MAX, &done);
		lab->store.fail = lab->store.fail_after = 0;
		lab->store.lie = false;
		assert_true(r < 0);
		assert_int_equal(done.sent_bytes, 7);
		assert_int_equal(wanted_bytes(lab), s.wanted_bytes);
		lab_check_file(lab, path, s.now, SIZE);
	}
	/* The next checkpoint is given all of it again, as without compaction. */
	checkpoint_whole(&s);
	check_whole(&s);
}

/* A life without it: checkpoints, compactions and a packer that begins anew, at random. */
static void test_a_long_life(void **state)
{
	struct lab *lab = *state;
	unsigned int seed = 5;
	struct sparse s = { .lab = lab, .now = malloc(SIZE) };

	lab_fill_random(s.now, SIZE);
	checkpoint_whole(&s);
	for (int round = 0; round < 25; round++) {
		struct packer_compacted done;

		for (int n = 0; n < BLOCKS / 3; n++)
			s.now[(size_t)rand_r(&seed) % SIZE] ^= (uint8_t)(1 + rand_r(&seed) % 255);
		for (int n = 0; n < BLOCKS / 4; n++) {
			uint8_t *block = s.now + (size_t)rand_r(&seed) % BLOCKS * PACK_BLOCK;

			for (size_t j = 0; j < PACK_BLOCK; j++)
				block[j] = (uint8_t)rand_r(&seed);
		}
		checkpoint_whole(&s);
		s.looks = 0;
		s.looks_max = rand_r(&seed) % 3 ? 0 : 1 + rand_r(&seed) % 30;
		assert_int_equal(compact(&s, rand_r(&seed) % 2 ? UINT64_MAX : 1 << 20, &done), 0);
		if (round % 5 == 4)
			lab_check_file_seeding(lab, path, s.now, SIZE, lab->packer);
	}
	s.looks_max = 0;
	free(s.now);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_from_the_holders),
		TEST(test_from_the_cache),
		TEST(test_differences_become_whole),
		TEST(test_a_part_at_a_time),
		TEST(test_stopped),
		TEST(test_failures_change_nothing),
		TEST(test_a_long_life),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
