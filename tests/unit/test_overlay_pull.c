// SPDX-License-Identifier: LGPL-2.1-or-later
/* Five overlay halves that ask for jobs of which they hear nothing: what goes, and what stays. */
#include <errno.h>
#include <openssl/sha.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/util/io.h"
#include "overlay_host.h"

enum { HOSTS = 5, ROUND_MS = 1000, FORGET_MS = 2500, SIZE = 300000 };

struct fixture {
	struct test_cluster cluster;
	struct test_host hosts[HOSTS];
};

static void start(struct fixture *f, int i)
{
	host_run(&f->hosts[i]);
	assert_int_equal(host_start(&f->hosts[i], i ? &f->hosts[0] : NULL), 0);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	cluster_make_hosts(f->hosts, HOSTS, &f->cluster);
	for (int i = 0; i < HOSTS; i++) {
		f->hosts[i].pull_round_ms = ROUND_MS;
		f->hosts[i].pull_forget_ms = FORGET_MS;
	}
	cluster_start(f->hosts, HOSTS);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	cluster_end(f->hosts, HOSTS);
	free(f);
	return 0;
}

static uint64_t copies(struct fixture *f)
{
	return cluster_objects(f->hosts, HOSTS);
}

static void wait_copies(struct fixture *f, uint64_t count, int timeout_ms)
{
	cluster_wait_objects(f->hosts, HOSTS, count, timeout_ms);
}

static int index_of(const struct fixture *f, const struct node_id *id)
{
	return cluster_index(f->hosts, HOSTS, id);
}

static void create(struct fixture *f, struct job_value *ret_value)
{
	struct ov_msg msg = { .op = OV_JOB_CREATE };

	msg.u.value.job.b[0] = 1; /* as object_make() */
	msg.u.value.owner = msg.u.value.home = f->hosts[0].identity.card.id;
	msg.u.value.state = JOB_STATE_HELD;
	msg.u.value.fence = FENCE_COMMIT;
	assert_int_equal(host_call(&f->hosts[0], &msg, -1, NULL), 0);
	*ret_value = msg.u.value;
}

static void hold(struct fixture *f, const struct job_value *value)
{
	struct ov_msg msg = { .op = OV_JOB_HOLD,
			      .u.job = { .job = value->job, .token = value->token } };

	assert_int_equal(host_call(&f->hosts[0], &msg, -1, NULL), 0);
}

/*
 * A holder is away when the job ends and its owner drops everything. It asks when it is back;
 * what belongs to a job that lives is left alone for as long.
 */
static void who_missed_the_end_asks(void **state)
{
	struct fixture *f = *state;
	struct ov_msg msg = { .op = OV_JOB_CAS };
	struct job_value value;
	struct ov_object object;
	int fd = object_make(SIZE, 3, &object), away;

	create(f, &value);
	hold(f, &value);
	object.token = value.token;
	assert_int_equal(host_put(&f->hosts[0], fd, &object, 2), 0);
	host_sleep_ms(4 * ROUND_MS + FORGET_MS);
	assert_int_equal(copies(f), 2);
	away = index_of(f, &object.holders[0]);
	host_kill(&f->hosts[away]);
	msg.u.value = value;
	msg.u.value.state = JOB_STATE_KILLED;
	assert_int_equal(host_call(&f->hosts[0], &msg, -1, NULL), 0);
	msg = (struct ov_msg){ .op = OV_OBJECT_RETAIN };
	msg.u.retain = (struct ov_retain){ .job = value.job,
					   .token = value.token,
					   .upto_seq = UINT64_MAX };
	(void)host_call(&f->hosts[0], &msg, -1, NULL);
	wait_copies(f, 0, 10000);
	start(f, away);
	host_wait_members(&f->hosts[away], MEMBER_ALIVE, HOSTS, 15000);
	/* A repair that comes too late is refused by all who heard the last word. */
	assert_int_not_equal(host_put(&f->hosts[away], fd, &object, 2), 0);
	wait_copies(f, 0, 30000);
	close(fd);
}

static void restart_buried(struct fixture *f, const struct ov_object *object, int count)
{
	struct node_id acceptors[HOSTS];

	for (int i = 0; i < HOSTS; i++) {
		acceptors[i] = f->hosts[i].identity.card.id;
		host_kill(&f->hosts[i]);
	}
	for (int i = 0; i < count; i++)
		host_bury(&f->hosts[i], &object->job, acceptors, HOSTS);
	cluster_start(f->hosts, HOSTS);
}

/* Its guardians have forgotten the job: a majority that buried it is as good, two of five are not. */
static void tombstones_speak_for_guardians(void **state)
{
	struct fixture *f = *state;
	struct ov_object object;
	int fd = object_make(SIZE, 4, &object);

	assert_int_equal(host_put(&f->hosts[0], fd, &object, 2), 0);
	close(fd);
	restart_buried(f, &object, 2);
	host_sleep_ms(6000 + 3 * ROUND_MS);
	assert_int_equal(copies(f), 2);
	restart_buried(f, &object, 3);
	wait_copies(f, 0, 30000);
}

/* Nobody knows it, and for long: still it stays until room is short. */
static void the_unknown_stay_until_room_is_short(void **state)
{
	struct fixture *f = *state;
	struct ov_object object;
	int fd = object_make(SIZE, 5, &object), first;

	assert_int_equal(host_put(&f->hosts[0], fd, &object, 2), 0);
	close(fd);
	host_sleep_ms(6000 + 3 * ROUND_MS + 2 * FORGET_MS);
	assert_int_equal(copies(f), 2);
	first = index_of(f, &object.holders[0]);
	host_kill(&f->hosts[first]);
	f->hosts[first].quota_bytes = SIZE + SIZE / 16;
	start(f, first);
	wait_copies(f, 1, 40000);
	host_get_checked(&f->hosts[0], &object);
}

static void put_manifest(struct fixture *f, uint64_t token, uint64_t seq, struct ov_object *ret)
{
	uint8_t bytes[1000] = "DECAMPMF";
	struct ov_object object = { .job.b[0] = 1, .size = sizeof(bytes), .seq = seq };
	int fd = memfd_new("test");

	object.token.counter = token;
	bytes[20] = (uint8_t)token;
	bytes[21] = (uint8_t)seq;
	SHA256(bytes, sizeof(bytes), object.hash.b);
	assert_int_equal(write_full(fd, bytes, sizeof(bytes)), 0);
	assert_int_equal(memfd_seal(fd), 0);
	assert_int_equal(host_put(&f->hosts[0], fd, &object, 2), 0);
	assert_int_equal(object.holder_count, 2);
	close(fd);
	*ret = object;
}

/* Until as many are named, the first by so many holders: who is slow is not waited for. */
static void wait_newest(struct fixture *f, uint64_t count, uint32_t holders, struct ov_found *rows)
{
	uint64_t deadline = now_boot_ns() + UINT64_C(60000000000);

	do {
		struct ov_msg msg = { .op = OV_JOB_NEWEST, .u.job.job.b[0] = 1 };
		int fd = -1;

		assert_true(now_boot_ns() < deadline);
		memset(rows, 0, count * sizeof(*rows));
		assert_int_equal(host_call(&f->hosts[0], &msg, -1, &fd), 0);
		if (msg.u.count >= count)
			assert_int_equal(pread_full(fd, rows, count * sizeof(*rows), 0), 0);
		close(fd);
		for (uint64_t i = 0; i < count; i++)
			if (rows[i].holder_count < holders)
				rows[0].holder_count = 0;
	} while (rows[0].holder_count == 0);
}

/* No guardian ever knew the job; its holders name what they keep, the newest first. */
static void holders_name_the_newest(void **state)
{
	struct fixture *f = *state;
	struct ov_object objects[3];
	struct ov_found rows[3];

	put_manifest(f, 4, 9, &objects[2]);
	put_manifest(f, 5, 3, &objects[1]);
	put_manifest(f, 5, 4, &objects[0]);
	wait_newest(f, 3, 2, rows);
	for (int i = 0; i < 3; i++) {
		assert_memory_equal(&rows[i].manifest, &objects[i].hash, sizeof(objects[i].hash));
		assert_int_equal(rows[i].seq, objects[i].seq);
		assert_int_equal(rows[i].token.counter, objects[i].token.counter);
		assert_int_equal(rows[i].size, 1000);
		assert_int_equal(rows[i].holder_count, 2);
	}
	/* Who is off is not waited for; the others still say. */
	host_kill(&f->hosts[index_of(f, &objects[0].holders[0])]);
	wait_newest(f, 1, 1, rows);
	assert_memory_equal(&rows[0].manifest, &objects[0].hash, sizeof(objects[0].hash));
	assert_int_equal(rows[0].holder_count, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(who_missed_the_end_asks, setup, teardown),
		cmocka_unit_test_setup_teardown(tombstones_speak_for_guardians, setup, teardown),
		cmocka_unit_test_setup_teardown(holders_name_the_newest, setup, teardown),
		cmocka_unit_test_setup_teardown(the_unknown_stay_until_room_is_short, setup,
						teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
