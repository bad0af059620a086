// SPDX-License-Identifier: LGPL-2.1-or-later
/* Five overlay halves as processes: copies that are lost with their hosts are made again. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/util/io.h"
#include "overlay_host.h"

enum {
	HOSTS = 5,
	LAZY_MS = 2000,
	PATIENT_MS = 12000, /* longer than a host is suspected before it is dead */
	ROUND_MS = 300,
	NOTED_MS = 3500,
	SCRUB_MS = 500,
};

struct fixture {
	struct test_cluster cluster;
	struct test_host hosts[HOSTS];
};

static int start(void **state, uint32_t lazy_ms)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	cluster_make_hosts(f->hosts, HOSTS, &f->cluster);
	for (int i = 0; i < HOSTS; i++) {
		f->hosts[i].repair_lazy_ms = lazy_ms;
		f->hosts[i].repair_round_ms = ROUND_MS;
		f->hosts[i].scrub_age_ms = SCRUB_MS;
	}
	cluster_start(f->hosts, HOSTS);
	*state = f;
	return 0;
}

static int setup(void **state)
{
	return start(state, LAZY_MS);
}

/* Where none is killed: one that a busy machine keeps silent for some seconds is not missed. */
static int setup_patient(void **state)
{
	return start(state, PATIENT_MS);
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

static struct test_host *host_of(struct fixture *f, const struct node_id *id)
{
	return &f->hosts[cluster_index(f->hosts, HOSTS, id)];
}

static void lost_copies_are_made_again(void **state)
{
	struct fixture *f = *state;
	struct ov_object object;
	uint64_t early, found;
	int fd = object_make(700000, 3, &object);

	assert_int_equal(host_put(&f->hosts[0], fd, &object, 2), 0);
	close(fd);
	assert_int_equal(object.holder_count, 2);
	/* The holders know of each other, and nothing is missing. */
	host_sleep_ms(NOTED_MS);
	assert_int_equal(copies(f), 2);
	early = now_boot_ns() + LAZY_MS * UINT64_C(1000000);
	host_kill(host_of(f, &object.holders[0]));
	/* Not at once: it may come back. */
	host_sleep_ms(LAZY_MS / 2);
	found = copies(f);
	if (now_boot_ns() < early)
		assert_int_equal(found, 1);
	wait_copies(f, 3, 30000);
	/* Nobody goes on. */
	host_sleep_ms(5 * ROUND_MS + LAZY_MS);
	assert_int_equal(copies(f), 3);
	host_kill(host_of(f, &object.holders[1]));
	host_get_checked(&f->hosts[0], &object);
}

/* What the job does not need any more is not brought back. */
static void dropped_objects_stay_dropped(void **state)
{
	struct fixture *f = *state;
	struct ov_msg msg = { .op = OV_OBJECT_RETAIN };
	struct ov_object object;
	int fd = object_make(50000, 4, &object);

	assert_int_equal(host_put(&f->hosts[0], fd, &object, 2), 0);
	close(fd);
	host_sleep_ms(NOTED_MS);
	msg.u.retain =
		(struct ov_retain){ .job = object.job, .token = object.token, .upto_seq = 9 };
	assert_int_equal(host_call(&f->hosts[0], &msg, -1, NULL), 0);
	wait_copies(f, 0, 10000);
	host_kill(host_of(f, &object.holders[0]));
	host_wait_members(host_of(f, &object.holders[1]), MEMBER_DEAD, 1, 30000);
	host_sleep_ms(2 * LAZY_MS + 1000);
	assert_int_equal(copies(f), 0);
}

/* Told by one that knows how many are gone; all others have done it then. */
static void end_job(struct test_host *from, const struct ov_object *object, uint32_t gone)
{
	struct ov_msg msg = { .op = OV_OBJECT_RETAIN };

	msg.u.retain = (struct ov_retain){ .job = object->job,
					   .token = object->token,
					   .upto_seq = UINT64_MAX };
	host_wait_members(from, MEMBER_DEAD, gone, 30000);
	assert_int_equal(host_call(from, &msg, -1, NULL), 0);
}

static struct ov_stats stats_of(struct test_host *host)
{
	struct ov_msg stats = { .op = OV_STATS };

	assert_int_equal(host_call(host, &stats, -1, NULL), 0);
	return stats.u.stats;
}

/* One object of two jobs: what is made again is made for both, and stays for the one that lives. */
static void copies_of_two_jobs(void **state)
{
	struct fixture *f = *state;
	struct ov_object first, second;
	int fd = object_make(300000, 6, &first), another = HOSTS - 1;

	second = first;
	second.job.b[0] = 2;
	second.offer = 1;
	assert_int_equal(host_put(&f->hosts[0], fd, &first, 2), 0);
	assert_int_equal(host_put(&f->hosts[0], fd, &second, 2), 0);
	close(fd);
	assert_int_equal(second.holder_count, 2);
	assert_int_equal(second.sent, 0);
	host_sleep_ms(NOTED_MS);
	assert_int_equal(copies(f), 2);
	host_kill(host_of(f, &first.holders[0]));
	wait_copies(f, 3, 30000);
	end_job(host_of(f, &first.holders[1]), &first, 1);
	wait_copies(f, 3, 30000);
	/* Only what is known of the second job says now that some are missing. */
	host_kill(host_of(f, &first.holders[1]));
	while (f->hosts[another].pid <= 0 || stats_of(&f->hosts[another]).objects == 0)
		assert_true(--another > 0);
	host_kill(&f->hosts[another]);
	wait_copies(f, 2, 30000);
	host_get_checked(&f->hosts[0], &second);
	end_job(&f->hosts[0], &second, 3);
	wait_copies(f, 0, 30000);
}

static void report_user(struct test_host *host, uint32_t flags)
{
	struct ov_msg msg = { .op = OV_REPORT };

	msg.u.report.flags = MEMBER_TAKES_JOBS | MEMBER_STORES_PACKS | flags;
	msg.u.report.mem_free_bytes = 1 << 30;
	assert_int_equal(host_call(host, &msg, -1, NULL), 0);
}

/* Nobody reads it: the scrubber finds it, but not while somebody is at the machine. */
static void rot_is_found_and_made_good(void **state)
{
	struct fixture *f = *state;
	struct test_host *rotten;
	struct ov_object object;
	uint64_t before = 0;
	char path[200];
	int fd = object_make(700000, 5, &object);

	assert_int_equal(host_put(&f->hosts[0], fd, &object, 2), 0);
	close(fd);
	host_sleep_ms(NOTED_MS);
	assert_int_equal(copies(f), 2);
	rotten = host_of(f, &object.holders[0]);
	assert_int_equal(stats_of(rotten).rotten_objects, 0);
	for (int i = 0; stats_of(rotten).scrubbed_objects == 0; i++) {
		assert_true(i < 300);
		host_sleep_ms(100);
	}
	report_user(rotten, MEMBER_USER_PRESENT);
	/* What it had begun it ends. */
	for (int i = 0; i < 10; i++) {
		before = stats_of(rotten).scrubbed_objects;
		host_sleep_ms(SCRUB_MS);
		if (stats_of(rotten).scrubbed_objects == before)
			break;
	}
	snprintf(path, sizeof(path), "%s/segments/00000001", rotten->dir);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(pwrite_full(fd, "rot", 3, 654321), 0);
	close(fd);
	host_sleep_ms(4 * SCRUB_MS);
	assert_int_equal(stats_of(rotten).scrubbed_objects, before);
	report_user(rotten, 0);
	/* The other holder misses a copy and makes what the rule asks for. */
	wait_copies(f, 3, 30000);
	assert_int_equal(stats_of(rotten).rotten_objects, 1);
	host_kill(host_of(f, &object.holders[1]));
	host_get_checked(&f->hosts[0], &object);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(lost_copies_are_made_again, setup, teardown),
		cmocka_unit_test_setup_teardown(dropped_objects_stay_dropped, setup, teardown),
		cmocka_unit_test_setup_teardown(copies_of_two_jobs, setup, teardown),
		cmocka_unit_test_setup_teardown(rot_is_found_and_made_good, setup_patient,
						teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
