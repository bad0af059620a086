// SPDX-License-Identifier: LGPL-2.1-or-later
/* The packer with threads does what it does without, and fails as it does. */
#include "tests/unit/pack_lab.h"

enum { SIZE = 40 << 20 };

static void set_threads(struct lab *lab, uint32_t threads)
{
	struct packer_budget budget = PACKER_BUDGET_DEFAULT;

	budget.threads = threads;
	assert_int_equal(packer_set_budget(lab->packer, &budget), 0);
}

/* A third random, a third half zeros, a third text. */
static void fill(uint8_t *bytes)
{
	lab_fill_random(bytes, SIZE);
	for (size_t i = SIZE / 3 / 512 * 512; i < SIZE; i += 512)
		memset(bytes + i, i < SIZE / 3 * 2 ? 0 : (int)(i / 512),
		       i < SIZE / 3 * 2 ? 256 : 480);
}

static void fresh(struct lab **lab, void **state)
{
	lab_teardown(state);
	lab_setup(state);
	*lab = *state;
}

static struct packer_counts checkpoint(struct lab *lab, int fd)
{
	lab_begin(lab);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "a", fd), 0);
	return lab_finish(lab);
}

static void test_threads_change_nothing(void **state)
{
	static const uint32_t threads[] = { 1, 2, 8, 100 };
	struct lab *lab = *state;
	uint8_t *bytes = malloc(SIZE);
	struct packer_counts alone[3] = { 0 };
	int fd;

	for (size_t i = 0; i <= ARRAY_SIZE(threads); i++) {
		if (i)
			fresh(&lab, state);
		set_threads(lab, i ? threads[i - 1] : 0);
		memset(bytes, 1, SIZE);
		for (size_t j = 0; j < SIZE; j += 8)
			memcpy(bytes + j, &(uint64_t){ (j * 0x9e3779b97f4a7c15u) >> (j >> 20) }, 8);
		fd = lab_content_fd(bytes, SIZE);
		for (int k = 0; k < 3; k++) {
			struct packer_counts counts = checkpoint(lab, fd);

			if (i == 0)
				alone[k] = counts;
			assert_int_equal(counts.new_bytes, alone[k].new_bytes);
			assert_int_equal(counts.delta_bytes, alone[k].delta_bytes);
			assert_true(counts.sent_bytes > 0);
			lab_check_file(lab, "a", bytes, SIZE);
			for (size_t j = 0; j < SIZE; j += 3 * 4096)
				bytes[j]++;
			assert_int_equal(pwrite_full(fd, bytes, SIZE, 0), 0);
		}
		assert_true(alone[0].packs > 1 && alone[1].delta_bytes > 0);
		close(fd);
	}
	free(bytes);
}

/* A put that fails, whichever it is: the checkpoint fails with its error, the next one is whole. */
static void test_every_store_error_arrives(void **state)
{
	struct lab *lab = *state;
	uint8_t *bytes = malloc(SIZE);
	int fd, failed = 0;

	fill(bytes);
	fd = lab_content_fd(bytes, SIZE);
	for (int n = 1; n < 20; n++) {
		int r;

		fresh(&lab, state);
		set_threads(lab, 2);
		lab->store.fail_after = n;
		lab_begin(lab);
		r = lab_add(lab, FILE_IMAGE, "a", fd);
		if (r == 0)
			r = lab_try_finish(lab);
		else
			packer_abort(lab->packer);
		lab->store.fail = lab->store.fail_after = 0;
		if (r == 0)
			break; /* so many puts are not needed */
		assert_int_equal(r, -EHOSTUNREACH);
		assert_int_equal(lab->store.count, n - 1);
		failed++;
		checkpoint(lab, fd);
		lab_check_file(lab, "a", bytes, SIZE);
	}
	assert_true(failed > 3 && failed < 18);
	close(fd);
	free(bytes);
}

struct slow_store {
	struct lab *lab;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	uint32_t now, most;
};

/* The first two wait for each other. */
static int put_slowly(void *ctx, int memfd, const struct object_hash *hash, uint32_t size,
		      uint32_t *ret_holder_count, struct node_id *ret_holders)
{
	struct slow_store *s = ctx;
	struct timespec until;
	int r = 0;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 60;
	pthread_mutex_lock(&s->lock);
	s->most = ++s->now > s->most ? s->now : s->most;
	pthread_cond_broadcast(&s->changed);
	while (s->most < 2 && r == 0)
		r = pthread_cond_timedwait(&s->changed, &s->lock, &until);
	s->now--;
	pthread_mutex_unlock(&s->lock);
	return lab_put(&s->lab->store, memfd, hash, size, ret_holder_count, ret_holders);
}

/* One pack is sent while the holders of the other sync it; more are not in memory. */
static void test_two_packs_are_on_their_way(void **state)
{
	struct lab *lab = *state;
	struct slow_store slow = { lab, PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0 };
	uint8_t *bytes = malloc(SIZE);
	int fd;

	fill(bytes);
	fd = lab_content_fd(bytes, SIZE);
	set_threads(lab, 1);
	lab->seq++;
	assert_int_equal(packer_begin(lab->packer, &lab->token, lab->seq, put_slowly, &slow), 0);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "a", fd), 0);
	lab_finish(lab);
	assert_int_equal(slow.most, PACKER_STORES_MAX);
	lab_check_file(lab, "a", bytes, SIZE);
	close(fd);
	free(bytes);
}

static void test_abort_and_destroy_under_way(void **state)
{
	struct lab *lab = *state;
	uint8_t *bytes = malloc(SIZE);
	int fd;

	fill(bytes);
	fd = lab_content_fd(bytes, SIZE);
	set_threads(lab, 3);
	for (int i = 0; i < 5; i++) {
		lab_begin(lab);
		assert_int_equal(lab_add(lab, FILE_IMAGE, "a", fd), 0);
		packer_abort(lab->packer);
	}
	checkpoint(lab, fd);
	lab_check_file(lab, "a", bytes, SIZE);
	lab_begin(lab);
	lab_fill_random(bytes, SIZE / 2);
	assert_int_equal(pwrite_full(fd, bytes, SIZE, 0), 0);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "a", fd), 0);
	/* The teardown destroys it as it is. */
	close(fd);
	free(bytes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_threads_change_nothing),
		TEST(test_every_store_error_arrives),
		TEST(test_two_packs_are_on_their_way),
		TEST(test_abort_and_destroy_under_way),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
