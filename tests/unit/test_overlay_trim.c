// SPDX-License-Identifier: LGPL-2.1-or-later
/* Five overlay halves with small stores: surplus copies make room, the last two of each stay. */
#include <errno.h>
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
	ROUND_MS = 300,
	QUOTA = 8 << 20,
	SIZE = 300000,
	OBJECTS = 32,
	PATIENCE_MS = 120000,
};

struct fixture {
	struct test_cluster cluster;
	struct test_host hosts[HOSTS];
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	cluster_make_hosts(f->hosts, HOSTS, &f->cluster);
	for (int i = 0; i < HOSTS; i++) {
		f->hosts[i].repair_lazy_ms = LAZY_MS;
		f->hosts[i].repair_round_ms = ROUND_MS;
		f->hosts[i].quota_bytes = QUOTA;
		host_be_stable(&f->hosts[i]);
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

/* Refused while there is no room; what is trimmed meanwhile makes some. */
static void put_patiently(struct fixture *f, uint8_t salt, struct ov_object *ret_object)
{
	uint64_t deadline = now_boot_ns() + UINT64_C(1000000) * PATIENCE_MS;
	int fd = object_make(SIZE, salt, ret_object), r;

	for (;;) {
		r = host_put(&f->hosts[0], fd, ret_object, 4);
		if (r == 0 && ret_object->holder_count >= 2)
			break;
		assert_true(now_boot_ns() < deadline);
		host_sleep_ms(200);
	}
	close(fd);
}

/*
 * 4 copies of 32 objects are 38 MB, for which the four other hosts have 33: some go. None of an
 * object that has only two: each is there with any one of its holders gone. Who vouched for an
 * object keeps it for ten minutes, so mostly one of four copies goes: 27 fit on each host, and
 * three of each object need 24 of those places.
 */
static void surplus_makes_room(void **state)
{
	struct fixture *f = *state;
	struct ov_object objects[OBJECTS];
	uint64_t copies = 0, wanted = 0;

	for (uint8_t i = 0; i < OBJECTS; i++) {
		put_patiently(f, i, &objects[i]);
		wanted += objects[i].holder_count;
	}
	for (int i = 1; i < HOSTS; i++) {
		struct ov_msg stats = { .op = OV_STATS };

		assert_int_equal(host_call(&f->hosts[i], &stats, -1, NULL), 0);
		assert_true(stats.u.stats.object_bytes <= QUOTA);
		copies += stats.u.stats.objects;
	}
	assert_true(copies >= 2 * OBJECTS);
	assert_true(copies < wanted); /* some were given up */
	host_kill(&f->hosts[2]);
	for (uint32_t i = 0; i < OBJECTS; i++)
		host_get_checked(&f->hosts[0], &objects[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(surplus_makes_room, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
