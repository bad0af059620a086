// SPDX-License-Identifier: LGPL-2.1-or-later
/* An object that is kept for one job is kept for another, too, without being sent again. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "overlay/store/io.h"
#include "store_lab.h"

enum { SIZE = 9000, TOKEN = 10 };

/* Of store_lab_put_new(), as another job names it. */
static struct ov_object of_job(const struct ov_object *object, uint8_t job, uint64_t seq)
{
	struct ov_object other = *object;

	other.job.b[0] = job;
	other.seq = seq;
	return other;
}

/* All of the job that is not newer goes; with UINT64_MAX its end. */
static void retain_nothing(struct store *store, const struct ov_object *object, uint64_t upto_seq)
{
	struct ov_retain retain = { .job = object->job,
				    .token = object->token,
				    .upto_seq = upto_seq };
	uint32_t dropped = 0;

	assert_int_equal(store_retain(store, &retain, NULL, &dropped), 0);
}

static uint32_t count_jobs(struct store *store)
{
	struct store_job *jobs = NULL;
	uint32_t count = 77;

	assert_int_equal(store_list_jobs(store, &jobs, &count), 0);
	free(jobs);
	return count;
}

/* It lives as long as one of its jobs wants it, however often they said so. */
static void test_lives_on(void **state)
{
	struct store_lab *f = *state;
	struct ov_object first = store_lab_put_new(f->store, SIZE, 1, 1, 1);
	struct ov_object second = of_job(&first, 2, 1), third = of_job(&first, 3, 1);
	uint32_t dropped = 0;

	assert_int_equal(store_refer(f->store, &second), 0);
	assert_int_equal(store_refer(f->store, &second), 0);
	assert_int_equal(store_refer(f->store, &third), 0);
	/* Nothing has come. */
	assert_int_equal(store_lab_stats(f->store).objects, 1);
	assert_int_equal(store_lab_stats(f->store).puts, 1);
	assert_int_equal(store_lab_stats(f->store).disk_bytes, 3 * 4096);
	retain_nothing(f->store, &first, 1);
	assert_int_equal(store_vouch(f->store, &first.job, &first.hash), -ENOENT);
	assert_int_equal(store_lab_get(f->store, &second), 0);
	store_lab_reopen(f);
	assert_int_equal(store_lab_stats(f->store).objects, 1);
	assert_int_equal(store_vouch(f->store, &second.job, &second.hash), 0);
	assert_int_equal(store_drop_job(f->store, &second.job, true, &dropped), 0);
	assert_int_equal(dropped, 0);
	assert_int_equal(store_lab_get(f->store, &third), 0);
	/* The first one comes back to it. */
	assert_int_equal(store_refer(f->store, &first), 0);
	assert_int_equal(store_give_up(f->store, &third.job, &third.hash), 0);
	assert_int_equal(store_lab_get(f->store, &first), 0);
	assert_int_equal(store_give_up(f->store, &first.job, &first.hash), 0);
	assert_int_equal(store_lab_get(f->store, &first), -ENOENT);
	assert_int_equal(store_lab_stats(f->store).objects, 0);
	assert_int_equal(store_lab_stats(f->store).disk_bytes, 0);
	assert_int_equal(store_lab_disk_bytes(f), 0);
}

/* The newer number counts, as of a put. */
static void test_numbers(void **state)
{
	struct store_lab *f = *state;
	struct ov_object first = store_lab_put_new(f->store, SIZE, 1, 1, 1);
	struct ov_object second = of_job(&first, 2, 7), older = of_job(&first, 2, 3);

	assert_int_equal(store_refer(f->store, &second), 0);
	assert_int_equal(store_refer(f->store, &older), 0);
	retain_nothing(f->store, &first, 9);
	retain_nothing(f->store, &second, 6);
	assert_int_equal(store_lab_get(f->store, &second), 0);
	retain_nothing(f->store, &second, 7);
	assert_int_equal(store_lab_get(f->store, &second), -ENOENT);
}

static void test_refusals(void **state)
{
	struct store_lab *f = *state;
	struct ov_object first = store_lab_put_new(f->store, SIZE, 1, 1, 1), bad;
	struct ov_object second = of_job(&first, 2, 1);

	bad = second;
	bad.hash.b[0] ^= 1;
	assert_int_equal(store_refer(f->store, &bad), -ENOENT);
	bad = second;
	bad.size--;
	assert_int_equal(store_refer(f->store, &bad), -ENOENT);
	assert_int_equal(count_jobs(f->store), 1);
	/* Refused, it has left no token either. */
	bad = second;
	bad.hash.b[0] ^= 1;
	bad.token.counter = TOKEN + 5;
	assert_int_equal(store_refer(f->store, &bad), -ENOENT);
	assert_int_equal(store_refer(f->store, &second), 0);
	/* An older incarnation, from now on; one without a token may, as it may put. */
	second.token.counter = TOKEN + 1;
	assert_int_equal(store_refer(f->store, &second), 0);
	second.token.counter = TOKEN;
	assert_int_equal(store_refer(f->store, &second), -ESTALE);
	second.token.counter = 0;
	assert_int_equal(store_refer(f->store, &second), 0);
	/* The job is over: a word that comes late brings nothing back. */
	second.token.counter = TOKEN + 1;
	retain_nothing(f->store, &second, UINT64_MAX);
	assert_int_equal(store_refer(f->store, &second), -ESTALE);
	second.token.counter = 0;
	assert_int_equal(store_refer(f->store, &second), -ESTALE);
	assert_int_equal(count_jobs(f->store), 1);
	assert_int_equal(store_lab_get(f->store, &first), 0);
}

/* A reference takes no room, so there is some where no object would be taken. */
static void test_full(void **state)
{
	struct store_lab *f = *state;
	struct ov_object first = store_lab_put_new(f->store, SIZE, 1, 1, 1);
	struct ov_object second = of_job(&first, 2, 1);
	uint8_t bytes[SIZE];

	store_set_limits(f->store, 4096, 0);
	store_lab_fill(bytes, SIZE, 1);
	assert_int_equal(store_lab_put(f->store, &second, bytes), -ENOSPC);
	assert_int_equal(store_refer(f->store, &second), 0);
	retain_nothing(f->store, &first, 1);
	assert_int_equal(store_lab_get(f->store, &second), 0);
}

/* Nobody counts on what is not whole: it is found out before the answer. */
static void test_rotten(void **state)
{
	struct store_lab *f = *state;
	struct ov_object first = store_lab_put_new(f->store, SIZE, 1, 1, 1);
	struct ov_object second = of_job(&first, 2, 1), lost[4];
	uint32_t count = 77;
	char path[256];

	store_lab_overwrite(path, store_lab_place(f, &first, path) + SIZE - 1, "x");
	assert_int_equal(store_refer(f->store, &second), -ENOENT);
	assert_int_equal(store_lab_stats(f->store).objects, 0);
	assert_int_equal(store_lab_stats(f->store).rotten, 1);
	assert_int_equal(store_lab_stats(f->store).bad_objects, 1);
	assert_int_equal(count_jobs(f->store), 0);
	/* It rots later: then both have lost it, and it is told for both. */
	first = store_lab_put_new(f->store, SIZE, 1, 1, 1);
	assert_int_equal(store_refer(f->store, &second), 0);
	first.holder_count = second.holder_count = 1;
	first.holders[0].b[0] = second.holders[0].b[0] = 1;
	assert_int_equal(store_set_holders(f->store, (struct ov_object[]){ first, second }, 2), 0);
	store_lab_overwrite(path, store_lab_place(f, &first, path) + SIZE - 1, "x");
	assert_int_equal(store_lab_get(f->store, &second), -ENOENT);
	assert_int_equal(count_jobs(f->store), 0);
	assert_int_equal(store_list_lost(f->store, 4, lost, &count), 0);
	assert_int_equal(count, 2);
	/* One of them has it again. */
	(void)store_lab_put_new(f->store, SIZE, 1, 1, 1);
	assert_int_equal(store_refer(f->store, &second), 0);
	assert_int_equal(store_list_lost(f->store, 4, lost, &count), 0);
	assert_int_equal(count, 0);
}

/* --- what happens while it is read ------------------------------------------------------- */

static struct {
	struct store *store;
	struct ov_object object; /* the first job's */
	void (*before)(void);	 /* once each time it is read */
	void (*after)(void);
	uint32_t readings;
} meanwhile;

static ssize_t pread_meanwhile(void *ctx, int fd, void *bytes, size_t size, uint64_t offset)
{
	ssize_t r;

	meanwhile.readings++;
	if (meanwhile.before)
		meanwhile.before();
	r = store_io_disk.pread(ctx, fd, bytes, size, offset);
	if (meanwhile.after)
		meanwhile.after();
	return r;
}

static void drop_it(void)
{
	assert_int_equal(
		store_give_up(meanwhile.store, &meanwhile.object.job, &meanwhile.object.hash), 0);
}

static void put_it(void)
{
	uint8_t bytes[SIZE];

	store_lab_fill(bytes, SIZE, 1);
	assert_int_equal(store_lab_put(meanwhile.store, &meanwhile.object, bytes), 0);
}

static void drop_and_put_once(void)
{
	if (meanwhile.readings > 1)
		return;
	drop_it();
	put_it();
}

static void end_second_job(void)
{
	struct job_id second = { { 2 } };
	uint32_t dropped;

	assert_int_equal(store_drop_job(meanwhile.store, &second, true, &dropped), 0);
}

/* Returns what a second job's word comes to, with these things done while the object is read. */
static int refer_while(struct store_lab *f, void (*before)(void), void (*after)(void))
{
	struct store_io io = store_io_disk;
	char why[STORE_WHY_MAX];
	struct ov_object second;
	int r;

	store_close(f->store);
	memset(&meanwhile, 0, sizeof(meanwhile));
	io.pread = pread_meanwhile;
	assert_int_equal(store_open_io(f->dir, &io, why, &f->store), 0);
	store_set_limits(f->store, STORE_LAB_QUOTA, 0);
	meanwhile.store = f->store;
	meanwhile.object = store_lab_put_new(f->store, SIZE, 1, 1, 1);
	meanwhile.readings = 0;
	meanwhile.before = before;
	meanwhile.after = after;
	second = of_job(&meanwhile.object, 2, 1);
	r = store_refer(f->store, &second);
	/* No reference without its object, and none that was not promised. */
	assert_int_equal(store_vouch(f->store, &second.job, &second.hash), r == 0 ? 0 : -ENOENT);
	store_lab_reopen(f);
	assert_int_equal(store_vouch(f->store, &second.job, &second.hash), r == 0 ? 0 : -ENOENT);
	return r;
}

static void test_meanwhile(void **state)
{
	struct store_lab *f = *state;

	assert_int_equal(refer_while(f, NULL, NULL), 0);
	assert_int_equal(meanwhile.readings, 1);
	assert_int_equal(store_give_up(f->store, &(struct job_id){ { 2 } }, &meanwhile.object.hash),
			 0);
	/* It goes: while its bytes are still to be read, and when they have been. */
	assert_int_equal(refer_while(f, drop_it, NULL), -ENOENT);
	assert_int_equal(store_lab_stats(f->store).objects, 0);
	assert_int_equal(refer_while(f, NULL, drop_it), -ENOENT);
	assert_int_equal(store_lab_stats(f->store).objects, 0);
	assert_int_equal(count_jobs(f->store), 0);
	/* It goes, and comes to another place: that one is read, too. */
	assert_int_equal(refer_while(f, NULL, drop_and_put_once), 0);
	assert_int_equal(meanwhile.readings, 2);
	assert_int_equal(store_give_up(f->store, &(struct job_id){ { 2 } }, &meanwhile.object.hash),
			 0);
	assert_int_equal(store_lab_get(f->store, &meanwhile.object), 0);
	/* It comes again all the time. */
	assert_int_equal(refer_while(f, NULL, put_it), -EAGAIN);
	assert_int_equal(store_lab_get(f->store, &meanwhile.object), 0);
	/* The job that asks ends. */
	assert_int_equal(refer_while(f, NULL, end_second_job), -ESTALE);
	assert_int_equal(store_lab_get(f->store, &meanwhile.object), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_lives_on, store_lab_setup, store_lab_teardown),
		cmocka_unit_test_setup_teardown(test_numbers, store_lab_setup, store_lab_teardown),
		cmocka_unit_test_setup_teardown(test_refusals, store_lab_setup, store_lab_teardown),
		cmocka_unit_test_setup_teardown(test_full, store_lab_setup, store_lab_teardown),
		cmocka_unit_test_setup_teardown(test_rotten, store_lab_setup, store_lab_teardown),
		cmocka_unit_test_setup_teardown(test_meanwhile, store_lab_setup,
						store_lab_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
