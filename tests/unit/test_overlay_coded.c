// SPDX-License-Identifier: LGPL-2.1-or-later
/* Nine overlay halves as processes: objects become shards, and come back from those that are left. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/util/io.h"
#include "overlay/shard.h"
#include "overlay_host.h"

enum { HOSTS = 9, LAZY_MS = 2000, ROUND_MS = 300, SIZE = 700001, SHARDS = 6 };

struct fixture {
	struct test_cluster cluster;
	struct test_host hosts[HOSTS];
	struct ov_object object;
	struct ov_group group;
	int fd;
};

static void start_hosts(struct fixture *f, uint32_t lazy_ms)
{
	cluster_make(&f->cluster);
	for (int i = 0; i < HOSTS; i++) {
		host_make(&f->hosts[i], &f->cluster, (uint8_t)(i + 1));
		f->hosts[i].repair_lazy_ms = lazy_ms;
		f->hosts[i].repair_round_ms = lazy_ms ? ROUND_MS : 0;
		host_be_stable(&f->hosts[i]);
		host_run(&f->hosts[i]);
		assert_int_equal(host_start(&f->hosts[i], i ? &f->hosts[0] : NULL), 0);
	}
	for (int i = 0; i < HOSTS; i++)
		host_wait_members(&f->hosts[i], MEMBER_ALIVE, HOSTS, 20000);
	host_sleep_ms(1000);
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	for (int i = 0; i < HOSTS; i++)
		host_end(&f->hosts[i]);
	close(f->fd);
	free(f);
	return 0;
}

static uint64_t objects(struct fixture *f)
{
	uint64_t count = 0;

	for (int i = 0; i < HOSTS; i++) {
		struct ov_msg stats = { .op = OV_STATS };

		if (f->hosts[i].pid <= 0)
			continue;
		assert_int_equal(host_call(&f->hosts[i], &stats, -1, NULL), 0);
		count += stats.u.stats.objects;
	}
	return count;
}

static void wait_objects(struct fixture *f, uint64_t count, int timeout_ms)
{
	uint64_t deadline = now_boot_ns() + (uint64_t)timeout_ms * 1000000;

	while (objects(f) != count) {
		assert_true(now_boot_ns() < deadline);
		host_sleep_ms(100);
	}
}

static struct test_host *host_of(struct fixture *f, const struct node_id *id)
{
	for (int i = 0; i < HOSTS; i++)
		if (node_id_equal(&f->hosts[i].identity.card.id, id))
			return &f->hosts[i];
	fail();
	return NULL;
}

static int code(struct fixture *f, uint32_t k, uint32_t m)
{
	struct ov_msg msg = { .op = OV_OBJECT_CODE };
	int r;

	msg.u.group = (struct ov_group){ .job = f->object.job,
					 .token = f->object.token,
					 .hash = f->object.hash,
					 .seq = f->object.seq,
					 .size = f->object.size,
					 .k = k,
					 .m = m };
	r = host_call(&f->hosts[0], &msg, f->fd, NULL);
	if (r == 0)
		f->group = msg.u.group;
	return r;
}

static int retain(struct fixture *f, const struct object_hash *hash)
{
	struct ov_msg msg = { .op = OV_OBJECT_RETAIN };
	int fd = memfd_new("retain"), r;

	msg.u.retain = (struct ov_retain){
		.job = f->object.job, .token = f->object.token, .upto_seq = 9, .count = hash ? 1 : 0
	};
	if (hash)
		assert_int_equal(write_full(fd, hash, sizeof(*hash)), 0);
	assert_int_equal(memfd_seal(fd), 0);
	r = host_call(&f->hosts[0], &msg, fd, NULL);
	close(fd);
	return r;
}

/* Two copies, then 4+2 shards and no copy. */
static void make_coded(struct fixture *f)
{
	struct object_hash name;

	f->fd = object_make(SIZE, 3, &f->object);
	assert_int_equal(host_put(&f->hosts[0], f->fd, &f->object, 2), 0);
	assert_int_equal(objects(f), 2);
	assert_int_equal(code(f, 4, 2), 0);
	for (uint32_t i = 0; i < SHARDS; i++) {
		assert_false(node_id_equal(&f->group.holders[i], &f->hosts[0].identity.card.id));
		for (uint32_t j = 0; j < i; j++)
			assert_false(node_id_equal(&f->group.holders[i], &f->group.holders[j]));
	}
	/* Who names the object keeps everything. */
	assert_int_equal(objects(f), 2 + SHARDS);
	assert_int_equal(retain(f, &f->object.hash), 0);
	assert_int_equal(objects(f), 2 + SHARDS);
	shard_group_name(&f->object.hash, &name);
	assert_int_equal(retain(f, &name), 0);
	wait_objects(f, SHARDS, 5000);
}

static struct fixture *fixture_new(uint32_t lazy_ms)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	start_hosts(f, lazy_ms);
	make_coded(f);
	return f;
}

static int setup(void **state)
{
	*state = fixture_new(0);
	return 0;
}

static int setup_repair(void **state)
{
	*state = fixture_new(LAZY_MS);
	return 0;
}

static struct ov_stats stats_of(struct test_host *host)
{
	struct ov_msg stats = { .op = OV_STATS };

	assert_int_equal(host_call(host, &stats, -1, NULL), 0);
	return stats.u.stats;
}

static void shards_are_read_until_too_many_are_gone(void **state)
{
	struct fixture *f = *state;
	struct ov_msg msg = { .op = OV_OBJECT_GET };
	uint64_t began;

	/* The owner, who knows of the copies that there were; a holder; one that knows nothing. */
	host_get_checked(&f->hosts[0], &f->object);
	host_get_checked(host_of(f, &f->group.holders[5]), &f->object);
	f->object.holder_count = 0;
	host_get_checked(&f->hosts[0], &f->object);
	/* A host that hangs in the middle costs half a second, not the object. */
	assert_int_equal(kill(host_of(f, &f->group.holders[1])->pid, SIGSTOP), 0);
	began = now_boot_ns();
	host_get_checked(&f->hosts[0], &f->object);
	assert_true(now_boot_ns() - began < UINT64_C(8000000000));
	assert_int_equal(kill(host_of(f, &f->group.holders[1])->pid, SIGCONT), 0);
	host_kill(host_of(f, &f->group.holders[0]));
	host_kill(host_of(f, &f->group.holders[3]));
	host_get_checked(&f->hosts[0], &f->object);
	/* One loss more than there may be. */
	host_kill(host_of(f, &f->group.holders[4]));
	msg.u.object = f->object;
	assert_int_equal(host_call(&f->hosts[0], &msg, -1, NULL), -ENOENT);
	assert_int_equal(stats_of(&f->hosts[0]).bad_objects, 0);
	/* And the end of the job is the end of its shards. */
	assert_int_equal(retain(f, NULL), 0);
	wait_objects(f, 0, 5000);
}

static void lost_shards_are_made_again(void **state)
{
	struct fixture *f = *state;

	/* One of two may be missing: 4 + 2/2 are left. */
	host_kill(host_of(f, &f->group.holders[0]));
	host_sleep_ms(LAZY_MS + 6 * ROUND_MS);
	assert_int_equal(objects(f), SHARDS - 1);
	host_kill(host_of(f, &f->group.holders[1]));
	/* Both come back, by hosts that cannot read what it is. */
	wait_objects(f, SHARDS, 30000);
	/* Nobody goes on. */
	host_sleep_ms(5 * ROUND_MS + LAZY_MS);
	assert_int_equal(objects(f), SHARDS);
	host_get_checked(&f->hosts[0], &f->object);
	/* The new ones count: as many may be lost once more. */
	host_kill(host_of(f, &f->group.holders[2]));
	host_kill(host_of(f, &f->group.holders[3]));
	host_get_checked(&f->hosts[0], &f->object);
}

static void a_rotten_shard_is_made_again_where_it_lay(void **state)
{
	struct fixture *f = *state;
	struct test_host *rotten = host_of(f, &f->group.holders[2]);
	struct ov_msg msg = { .op = OV_OBJECT_GET };
	char path[200];
	int fd;

	snprintf(path, sizeof(path), "%s/segments/00000001", rotten->dir);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	/* Wherever in its segment it lies: behind a copy that was there before, or alone. */
	assert_int_equal(pwrite_full(fd, "rot", 3, 100000), 0);
	assert_int_equal(pwrite_full(fd, "rot", 3, 800000), 0);
	close(fd);
	/* Somebody reads it. */
	msg.u.object = (struct ov_object){ .job = f->object.job,
					   .hash = f->group.shards[2],
					   .holder_count = 1,
					   .holders = { f->group.holders[2] } };
	assert_int_equal(host_call(&f->hosts[0], &msg, -1, NULL), -ENOENT);
	assert_int_equal(stats_of(rotten).rotten_objects, 1);
	wait_objects(f, SHARDS, 30000);
	assert_int_equal(stats_of(rotten).objects, 1);
	host_kill(host_of(f, &f->group.holders[0]));
	host_kill(host_of(f, &f->group.holders[1]));
	host_get_checked(&f->hosts[0], &f->object);
}

static void what_does_not_fit_stays_with_copies(void **state)
{
	struct fixture *f = *state;

	/* Sixteen hosts are not there; nor is there another scheme. */
	assert_int_equal(code(f, 8, 8), -EHOSTUNREACH);
	assert_int_equal(code(f, 3, 2), -EINVAL);
	/* All say that they stay: the smallest scheme is enough. */
	assert_int_equal(code(f, 0, 0), 0);
	assert_int_equal(f->group.k, 4);
	assert_int_equal(f->group.m, 2);
	host_get_checked(&f->hosts[0], &f->object);
	f->object.size--;
	assert_int_equal(code(f, 4, 2), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(shards_are_read_until_too_many_are_gone, setup,
						teardown),
		cmocka_unit_test_setup_teardown(what_does_not_fit_stays_with_copies, setup,
						teardown),
		cmocka_unit_test_setup_teardown(lost_shards_are_made_again, setup_repair, teardown),
		cmocka_unit_test_setup_teardown(a_rotten_shard_is_made_again_where_it_lay,
						setup_repair, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
