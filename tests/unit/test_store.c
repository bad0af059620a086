// SPDX-License-Identifier: LGPL-2.1-or-later
/* The store on a real disk: what is kept, what is refused, what survives a kill. */
#include <errno.h>
#include <fcntl.h>
#include <openssl/sha.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include <cmocka.h>

#include "agent/util/io.h"
#include "store_lab.h"

static void test_put_get(void **state)
{
	struct store_lab *f = *state;
	struct ov_object a = store_lab_put_new(f->store, 1, 1, 1, 1),
			 b = store_lab_put_new(f->store, 1 << 20, 2, 1, 1);
	struct ov_object absent = { .size = 5, .hash.b[0] = 9 };

	assert_int_equal(store_lab_get(f->store, &a), 0);
	assert_int_equal(store_lab_get(f->store, &b), 0);
	assert_int_equal(store_lab_get(f->store, &absent), -ENOENT);
	assert_int_equal(store_lab_stats(f->store).objects, 2);
	assert_int_equal(store_lab_stats(f->store).object_bytes, (1 << 20) + 1);
	/* The same again is one object. */
	store_lab_put_new(f->store, 1 << 20, 2, 1, 2);
	assert_int_equal(store_lab_stats(f->store).objects, 2);
	store_lab_reopen(f);
	assert_int_equal(store_lab_get(f->store, &b), 0);
	assert_int_equal(store_lab_stats(f->store).objects, 2);
	assert_int_equal(store_lab_stats(f->store).object_bytes, (1 << 20) + 1);
}

static void test_put_refusals(void **state)
{
	struct store_lab *f = *state;
	uint8_t bytes[4096];
	struct ov_object object = store_lab_describe(bytes, sizeof(bytes), 1, 1, 1), bad;
	struct store_put *p = NULL;

	bad = object;
	bad.size = 0;
	assert_int_equal(store_lab_put(f->store, &bad, bytes), -EINVAL);
	bad.size = OV_PACK_MAX + 1;
	assert_int_equal(store_lab_put(f->store, &bad, bytes), -EINVAL);
	bad = object;
	bad.hash.b[31] ^= 1;
	assert_int_equal(store_lab_put(f->store, &bad, bytes), -EBADMSG);
	assert_int_equal(store_lab_stats(f->store).bad_objects, 1);
	/* Too long, too short. */
	assert_int_equal(store_put_begin(f->store, &object, &p), 0);
	assert_int_equal(store_put_write(p, bytes, 4000), 0);
	assert_int_equal(store_put_write(p, bytes, 97), -EBADMSG);
	assert_int_equal(store_put_commit(p), -ENODATA);
	assert_int_equal(store_lab_stats(f->store).objects, 0);
	/* An older incarnation. */
	assert_int_equal(store_lab_put(f->store, &object, bytes), 0);
	object.token.counter = 9;
	assert_int_equal(store_lab_put(f->store, &object, bytes), -ESTALE);
	object.token.counter = 0;
	assert_int_equal(store_lab_put(f->store, &object, bytes), 0);
}

static void test_quota(void **state)
{
	struct store_lab *f = *state;
	uint8_t *bytes = malloc(1 << 20);
	struct ov_object a = store_lab_describe(bytes, 1 << 20, 1, 1, 1), b;
	struct store_put *p = NULL;

	assert_non_null(bytes);
	store_set_limits(f->store, (2 << 20) - 1, 0);
	assert_int_equal(store_lab_put(f->store, &a, bytes), 0);
	b = store_lab_describe(bytes, 1 << 20, 2, 1, 1);
	assert_int_equal(store_lab_put(f->store, &b, bytes), -ENOSPC);
	/* What is still arriving counts. */
	store_set_limits(f->store, 3 << 20, 0);
	assert_int_equal(store_put_begin(f->store, &b, &p), 0);
	b = store_lab_describe(bytes, (1 << 20) - 1, 3, 1, 1);
	assert_int_equal(store_room_bytes(f->store), 1 << 20);
	assert_int_equal(store_lab_put(f->store, &b, bytes), 0);
	b = store_lab_describe(bytes, 2, 4, 1, 1);
	assert_int_equal(store_lab_put(f->store, &b, bytes), -ENOSPC);
	store_put_abort(p);
	assert_int_equal(store_lab_put(f->store, &b, bytes), 0);
	/* Disk that is never touched. */
	store_set_limits(f->store, UINT64_MAX / 2, UINT64_MAX / 2);
	b = store_lab_describe(bytes, 3, 5, 1, 1);
	assert_int_equal(store_lab_put(f->store, &b, bytes), -ENOSPC);
	assert_int_equal(store_room_bytes(f->store), 0);
	free(bytes);
}

static void test_retain(void **state)
{
	struct store_lab *f = *state;
	struct ov_object old = store_lab_put_new(f->store, 1000, 1, 1, 1);
	struct ov_object kept = store_lab_put_new(f->store, 1000, 2, 1, 1);
	struct ov_object fresh = store_lab_put_new(f->store, 1000, 3, 1, 7);
	struct ov_object other = store_lab_put_new(f->store, 1000, 4, 2, 1);
	struct ov_object shared = store_lab_put_new(f->store, 1000, 5, 1, 1);
	struct object_hash list[] = { fresh.hash, kept.hash };
	struct ov_retain retain = { .job = old.job, .token = old.token, .upto_seq = 5, .count = 2 };
	uint32_t dropped = 0;

	store_lab_put_new(f->store, 1000, 5, 2, 1);
	assert_int_equal(store_retain(f->store, &retain, list, &dropped), 0);
	assert_int_equal(dropped, 1);
	assert_int_equal(store_lab_get(f->store, &old), -ENOENT);
	assert_int_equal(store_lab_get(f->store, &kept), 0);
	assert_int_equal(store_lab_get(f->store, &fresh), 0);
	assert_int_equal(store_lab_get(f->store, &other), 0);
	assert_int_equal(store_lab_get(f->store, &shared), 0);
	assert_int_equal(store_lab_stats(f->store).objects, 4);
	/* A newer incarnation, then the old one again. */
	retain.token.counter = 11;
	assert_int_equal(store_retain(f->store, &retain, list, &dropped), 0);
	retain.token.counter = 10;
	retain.count = 0;
	assert_int_equal(store_retain(f->store, &retain, NULL, &dropped), -ESTALE);
	store_lab_reopen(f);
	assert_int_equal(store_retain(f->store, &retain, NULL, &dropped), -ESTALE);
	assert_int_equal(store_lab_get(f->store, &kept), 0);
	/* The end of the job: everything of it goes, and nothing of the other. */
	retain.token.counter = 11;
	retain.upto_seq = UINT64_MAX;
	assert_int_equal(store_retain(f->store, &retain, NULL, &dropped), 0);
	assert_int_equal(dropped, 2);
	assert_int_equal(store_lab_get(f->store, &shared), 0);
	assert_int_equal(store_lab_stats(f->store).objects, 2);
	assert_int_equal(store_lab_stats(f->store).object_bytes, 2000);
	retain.count = STORE_RETAIN_MAX + 1;
	assert_int_equal(store_retain(f->store, &retain, NULL, &dropped), -EINVAL);
}

/* Who else has it: kept across a restart, gone with the reference, refused from a job that was lost. */
static void test_holders(void **state)
{
	struct store_lab *f = *state;
	struct ov_object words[3] = { store_lab_put_new(f->store, 1000, 1, 1, 1),
				      store_lab_put_new(f->store, 1000, 2, 1, 4),
				      store_lab_put_new(f->store, 1000, 3, 2, 2) };
	struct ov_retain retain = { .job = words[0].job, .token.counter = 11, .upto_seq = 3 };
	struct store_item *items;
	uint32_t count = 77, dropped = 0;

	for (uint32_t i = 0; i < 3; i++) {
		words[i].holder_count = 2;
		words[i].holders[1].b[0] = (uint8_t)(i + 1);
	}
	words[2].hash.b[0] ^= 1; /* not here */
	assert_int_equal(store_set_holders(f->store, words, 3), 0);
	store_lab_reopen(f);
	assert_int_equal(store_list_held(f->store, &items, &count), 0);
	assert_int_equal(count, 2);
	for (uint32_t i = 0; i < count; i++) {
		assert_int_equal(items[i].newest, items[i].object.seq == 4);
		assert_int_equal(items[i].object.size, 1000);
		assert_int_equal(items[i].object.holder_count, 2);
		assert_int_equal(items[i].object.holders[1].b[0], items[i].newest ? 2 : 1);
	}
	free(items);
	assert_int_equal(store_retain(f->store, &retain, NULL, &dropped), 0);
	words[1].holders[1].b[0] = 99; /* under the token that was lost just now */
	assert_int_equal(store_set_holders(f->store, &words[1], 1), 0);
	assert_int_equal(store_list_held(f->store, &items, &count), 0);
	assert_int_equal(count, 1);
	assert_int_equal(items[0].object.holders[1].b[0], 2);
	free(items);
}

/* A host's own record: replaced whole, refused if larger than it should be. */
static void test_own_record(void **state)
{
	struct store_lab *f = *state;
	uint8_t bytes[8];
	size_t size = 0;

	assert_int_equal(store_own_load(f->store, "habits", bytes, sizeof(bytes), &size), -ENOENT);
	assert_int_equal(store_own_save(f->store, "habits", "12345678", 8), 0);
	assert_int_equal(store_own_save(f->store, "habits", "abcd", 4), 0);
	store_lab_reopen(f);
	assert_int_equal(store_own_load(f->store, "habits", bytes, sizeof(bytes), &size), 0);
	assert_int_equal(size, 4);
	assert_memory_equal(bytes, "abcd", 4);
	assert_int_equal(store_own_load(f->store, "habits", bytes, 3, &size), -EBADMSG);
}

static void test_retain_many(void **state)
{
	enum { COUNT = 150 };
	struct store_lab *f = *state;
	struct ov_object objects[COUNT];
	struct object_hash list[COUNT / 2];
	struct ov_retain retain = { .upto_seq = 1, .count = COUNT / 2, .token.counter = 10 };
	uint32_t dropped = 0;

	for (uint32_t i = 0; i < COUNT; i++) {
		objects[i] = store_lab_put_new(f->store, 100, i, 3, 1);
		if (i % 2)
			list[i / 2] = objects[i].hash;
	}
	retain.job = objects[0].job;
	assert_int_equal(store_retain(f->store, &retain, list, &dropped), 0);
	assert_int_equal(dropped, COUNT / 2);
	for (uint32_t i = 0; i < COUNT; i++)
		assert_int_equal(store_lab_get(f->store, &objects[i]), i % 2 ? 0 : -ENOENT);
}

static int count_records(void *ctx, const struct job_id *job, const void *bytes, size_t size)
{
	uint32_t *sum = ctx;

	assert_int_equal(((const uint8_t *)bytes)[0], job->b[0]);
	*sum += (uint32_t)size;
	return 0;
}

static int fail_record(void *ctx, const struct job_id *job, const void *bytes, size_t size)
{
	(void)ctx;
	(void)job;
	(void)bytes;
	(void)size;
	return -EBADMSG;
}

static void test_records(void **state)
{
	struct store_lab *f = *state;
	uint8_t one[100] = { 1 }, two[CORE_RECORD_MAX] = { 2 };
	struct core_write writes[] = { { .job.b[0] = 1, .size = sizeof(one), .bytes = one },
				       { .job.b[0] = 2, .size = sizeof(two), .bytes = two },
				       { .job.b[0] = 3 } };
	uint64_t first = 0, second = 0;
	uint32_t sum = 0;

	assert_int_equal(store_write_records(f->store, writes, 3), 0);
	assert_int_equal(store_write_records(f->store, NULL, 0), 0);
	store_lab_reopen(f);
	assert_int_equal(store_each_record(f->store, count_records, &sum), 0);
	assert_int_equal(sum, sizeof(one) + sizeof(two));
	assert_int_equal(store_each_record(f->store, fail_record, NULL), -EBADMSG);
	writes[0].size = 0;
	assert_int_equal(store_write_records(f->store, writes, 1), 0);
	sum = 0;
	assert_int_equal(store_each_record(f->store, count_records, &sum), 0);
	assert_int_equal(sum, sizeof(two));
	assert_int_equal(store_next_incarnation(f->store, 1000, &first), 0);
	assert_int_equal(first, 1000);
	store_lab_reopen(f);
	/* The wall clock was set back. */
	assert_int_equal(store_next_incarnation(f->store, 5, &second), 0);
	assert_int_equal(second, 1001);
	/* The host has a new id: the registers go, its own words stay. */
	assert_int_equal(store_drop_records(f->store), 0);
	store_lab_reopen(f);
	sum = 0;
	assert_int_equal(store_each_record(f->store, count_records, &sum), 0);
	assert_int_equal(sum, 0);
	assert_int_equal(store_next_incarnation(f->store, 5, &second), 0);
	assert_int_equal(second, 1002);
}

/* Puts for ever; says the number of each object once it is acknowledged. */
static void put_until_killed(const char *dir, int report)
{
	struct store *store = NULL;
	uint8_t bytes[20000];

	if (store_open(dir, &store) < 0)
		_exit(1);
	store_set_limits(store, UINT64_MAX / 2, 0);
	for (uint32_t i = 0;; i++) {
		struct ov_object object = store_lab_describe(bytes, sizeof(bytes), i, 1, 1);
		struct core_write record = { .job.b = { (uint8_t)i, (uint8_t)(i >> 8) },
					     .size = 1,
					     .bytes = (uint8_t[]){ (uint8_t)i } };

		if (store_lab_put(store, &object, bytes) < 0 ||
		    store_write_records(store, &record, 1) < 0 ||
		    write_full(report, &i, sizeof(i)) < 0)
			_exit(2);
	}
}

static void test_kill(void **state)
{
	struct store_lab *f = *state;

	store_close(f->store);
	f->store = NULL;
	for (int round = 0; round < 8; round++) {
		struct timespec ts = { .tv_nsec = 30000000 + round * 17000000 };
		uint32_t last, count = 0, sum = 0;
		uint8_t bytes[20000];
		int pipes[2];
		pid_t pid;

		assert_int_equal(pipe(pipes), 0);
		pid = fork();
		assert_true(pid >= 0);
		if (pid == 0)
			put_until_killed(f->dir, pipes[1]);
		close(pipes[1]);
		nanosleep(&ts, NULL);
		assert_int_equal(kill(pid, SIGKILL), 0);
		assert_int_equal(waitpid(pid, NULL, 0), pid);
		while (read(pipes[0], &last, sizeof(last)) == sizeof(last))
			count = last + 1;
		close(pipes[0]);
		store_lab_open(f);
		for (uint32_t i = 0; i < count; i++) {
			struct ov_object object = store_lab_describe(bytes, sizeof(bytes), i, 1, 1);

			assert_int_equal(store_lab_get(f->store, &object), 0);
		}
		assert_int_equal(store_lab_stats(f->store).bad_objects, 0);
		assert_int_equal(store_each_record(f->store, count_records, &sum), 0);
		assert_true(sum >= count);
		store_close(f->store);
		f->store = NULL;
	}
	store_lab_open(f);
}

/* A copy that others count on, and one that goes for want of room. */
static void test_give_up(void **state)
{
	struct store_lab *f = *state;
	struct ov_object a = store_lab_put_new(f->store, 9000, 1, 1, 5),
			 b = store_lab_put_new(f->store, 8000, 2, 1, 5);
	struct ov_object shared = a;
	uint8_t bytes[9000];
	char path[256];

	store_lab_fill(bytes, sizeof(bytes), 1);
	shared.job.b[0] = 2;
	assert_int_equal(store_lab_put(f->store, &shared, bytes), 0);
	assert_int_equal(store_vouch(f->store, &a.job, &a.hash), 0);
	assert_int_equal(store_vouch(f->store, &shared.job, &b.hash), -ENOENT);
	/* The other job has it still. */
	assert_int_equal(store_give_up(f->store, &a.job, &a.hash), 0);
	assert_int_equal(store_vouch(f->store, &a.job, &a.hash), -ENOENT);
	assert_int_equal(store_vouch(f->store, &shared.job, &a.hash), 0);
	assert_int_equal(store_give_up(f->store, &a.job, &a.hash), -ENOENT);
	assert_int_equal(store_lab_get(f->store, &a), 0);
	assert_int_equal(store_give_up(f->store, &shared.job, &a.hash), 0);
	assert_int_equal(store_lab_get(f->store, &a), -ENOENT);
	assert_int_equal(store_lab_stats(f->store).objects, 1);
	assert_int_equal(store_lab_stats(f->store).object_bytes, 8000);
	store_lab_reopen(f);
	assert_int_equal(store_lab_stats(f->store).objects, 1);
	/* Nobody vouches for a file that is gone. */
	(void)store_lab_place(f, &b, path);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(store_vouch(f->store, &b.job, &b.hash), -ENOENT);
}

static struct core_write burial(uint8_t job, uint32_t state)
{
	struct core_write write = { .job.b[0] = job, .is_over = true };

	write.tombstone.state = state;
	write.tombstone.acceptor_count = 1;
	write.tombstone.acceptors[0].b[2] = 7;
	return write;
}

/* Jobs that are over: what others are told, and that nothing of them is taken again. */
static void test_jobs(void **state)
{
	struct core_write write = burial(3, JOB_STATE_COLLECTED);
	struct store_lab *f = *state;
	struct ov_object a = store_lab_put_new(f->store, 5000, 1, 3, 5);
	struct ov_object b = store_lab_put_new(f->store, 5000, 2, 4, 5);
	struct ov_retain retain = { .job = b.job, .token.counter = 10, .upto_seq = 9, .count = 1 };
	struct store_verdict verdict;
	struct store_job *jobs = NULL;
	uint32_t count = 0, dropped = 0;
	uint8_t bytes[5000];

	(void)store_lab_put_new(f->store, 5000, 3, 4, 6);
	assert_int_equal(store_verdict(f->store, &a.job, &verdict), 0);
	assert_int_equal(verdict.tombstone.state, 0);
	assert_true(verdict.heard_ago_ms == UINT64_MAX); /* a PUT may be a repairer's */
	assert_int_equal(store_retain(f->store, &retain, &b.hash, &dropped), 0);
	assert_int_equal(dropped, 1);
	assert_int_equal(store_verdict(f->store, &b.job, &verdict), 0);
	assert_true(verdict.heard_ago_ms < 60000);

	assert_int_equal(store_job_quiet(f->store, &a.job, 1000), 0);
	store_lab_reopen(f);
	assert_int_equal(store_list_jobs(f->store, &jobs, &count), 0);
	assert_int_equal(count, 2);
	assert_memory_equal(&jobs[0].job, &a.job, sizeof(a.job)); /* the quiet one */
	assert_int_equal(jobs[0].quiet_ms, 1000);
	assert_int_equal(jobs[0].heard_wall_ms, 0);
	assert_true(jobs[1].heard_wall_ms > 0);
	free(jobs);
	assert_int_equal(store_job_heard(f->store, &a.job), 0);
	assert_int_equal(store_list_jobs(f->store, &jobs, &count), 0);
	assert_int_equal(jobs[0].quiet_ms, 0);
	free(jobs);

	assert_int_equal(store_write_records(f->store, &write, 1), 0);
	store_lab_reopen(f);
	assert_int_equal(store_verdict(f->store, &a.job, &verdict), 0);
	assert_memory_equal(&verdict.tombstone, &write.tombstone, sizeof(write.tombstone));
	/* Dropped, but not known to be over: it may come back. */
	assert_int_equal(store_drop_job(f->store, &a.job, false, &dropped), 0);
	assert_int_equal(dropped, 1);
	assert_int_equal(store_lab_get(f->store, &a), -ENOENT);
	assert_int_equal(store_lab_get(f->store, &b), 0);
	a = store_lab_put_new(f->store, 5000, 1, 3, 5);
	assert_int_equal(store_drop_job(f->store, &a.job, true, &dropped), 0);
	store_lab_fill(bytes, sizeof(bytes), 1);
	assert_int_equal(store_lab_put(f->store, &a, bytes), -ESTALE);
	a.token.counter = 0;
	assert_int_equal(store_lab_put(f->store, &a, bytes), -ESTALE);
	store_lab_reopen(f);
	assert_int_equal(store_lab_put(f->store, &a, bytes), -ESTALE);
	/* The owner's last word: a repair that comes late brings nothing back. */
	retain.count = 0;
	retain.upto_seq = UINT64_MAX;
	assert_int_equal(store_retain(f->store, &retain, NULL, &dropped), 0);
	assert_int_equal(dropped, 1);
	store_lab_fill(bytes, sizeof(bytes), 2);
	assert_int_equal(store_lab_put(f->store, &b, bytes), -ESTALE);
	assert_int_equal(store_lab_stats(f->store).objects, 0);
}

static struct ov_object put_manifest(struct store *store, uint8_t job, uint64_t token, uint64_t seq)
{
	struct ov_object object;
	uint8_t bytes[500];

	store_lab_fill(bytes, sizeof(bytes), (uint32_t)(100 * token + seq));
	memcpy(bytes, "DECAMPMF", 8);
	object = (struct ov_object){ .size = sizeof(bytes), .seq = seq, .job.b[0] = job };
	object.token.counter = token;
	SHA256(bytes, sizeof(bytes), object.hash.b);
	assert_int_equal(store_lab_put(store, &object, bytes), 0);
	return object;
}

static void test_newest(void **state)
{
	struct store_lab *f = *state;
	struct ov_object found[STORE_NEWEST_MAX], old, newest;
	uint32_t count = 77;

	(void)store_lab_put_new(f->store, 500, 1, 1, 90); /* a pack */
	(void)put_manifest(f->store, 2, 99, 99);	  /* another job's */
	assert_int_equal(store_newest(f->store, &(struct job_id){ { 1 } }, found, &count), 0);
	assert_int_equal(count, 0);
	old = put_manifest(f->store, 1, 10, 70);
	for (uint64_t seq = 60; seq < 69; seq++)
		newest = put_manifest(f->store, 1, 11, seq);
	assert_int_equal(store_newest(f->store, &old.job, found, &count), 0);
	assert_int_equal(count, STORE_NEWEST_MAX);
	assert_memory_equal(&found[0].hash, &newest.hash, sizeof(newest.hash));
	for (uint32_t i = 0; i < count; i++) {
		assert_int_equal(found[i].seq,
				 68 - i); /* the older token's is out, higher or not */
		assert_int_equal(found[i].token.counter, 11);
		assert_int_equal(found[i].size, 500);
	}
	assert_int_equal(store_newest(f->store, &(struct job_id){ { 3 } }, found, &count), 0);
	assert_int_equal(count, 0);
}

static void test_short(void **state)
{
	struct store_lab *f = *state;
	uint64_t margin = STORE_LAB_QUOTA / 8,
		 room = STORE_LAB_QUOTA; /* less than the largest object */

	assert_int_equal(store_short_bytes(f->store), 0);
	for (uint32_t i = 0; room >= margin; i++) {
		assert_int_equal(store_short_bytes(f->store), 0);
		(void)store_lab_put_new(f->store, 3 << 20, i, 1, 1);
		room -= 3 << 20;
	}
	assert_int_equal(store_short_bytes(f->store), margin - room);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_put_get, store_lab_setup, store_lab_teardown),
		cmocka_unit_test_setup_teardown(test_put_refusals, store_lab_setup,
						store_lab_teardown),
		cmocka_unit_test_setup_teardown(test_quota, store_lab_setup, store_lab_teardown),
		cmocka_unit_test_setup_teardown(test_holders, store_lab_setup, store_lab_teardown),
		cmocka_unit_test_setup_teardown(test_own_record, store_lab_setup,
						store_lab_teardown),
		cmocka_unit_test_setup_teardown(test_retain, store_lab_setup, store_lab_teardown),
		cmocka_unit_test_setup_teardown(test_retain_many, store_lab_setup,
						store_lab_teardown),
		cmocka_unit_test_setup_teardown(test_records, store_lab_setup, store_lab_teardown),
		cmocka_unit_test_setup_teardown(test_give_up, store_lab_setup, store_lab_teardown),
		cmocka_unit_test_setup_teardown(test_jobs, store_lab_setup, store_lab_teardown),
		cmocka_unit_test_setup_teardown(test_newest, store_lab_setup, store_lab_teardown),
		cmocka_unit_test_setup_teardown(test_short, store_lab_setup, store_lab_teardown),
		cmocka_unit_test_setup_teardown(test_kill, store_lab_setup, store_lab_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
