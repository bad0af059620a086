// SPDX-License-Identifier: LGPL-2.1-or-later
/* Five overlay halves: what holders have for one job is not sent again for another one. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/util/io.h"
#include "overlay_host.h"

enum {
	HOSTS = 5,
	COPIES = 3,
	OBJECT_BYTES = 3 << 20,
	PROBE_MS = 2000, /* who gets nothing of a busy machine for less is no worse a place */
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
	for (int i = 0; i < HOSTS; i++)
		f->hosts[i].probe_ms = PROBE_MS;
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

static struct test_host *holder(struct fixture *f, const struct ov_object *object, uint32_t i)
{
	return &f->hosts[cluster_index(f->hosts, HOSTS, &object->holders[i])];
}

static bool is_holder(const struct ov_object *object, const struct node_id *id)
{
	for (uint32_t i = 0; i < object->holder_count; i++)
		if (node_id_equal(&object->holders[i], id))
			return true;
	return false;
}

/* How many of these holders are the other's, too; none is there twice. */
static uint32_t count_common(const struct ov_object *a, const struct ov_object *b)
{
	uint32_t common = 0;

	for (uint32_t i = 0; i < a->holder_count; i++) {
		for (uint32_t j = 0; j < i; j++)
			assert_false(node_id_equal(&a->holders[i], &a->holders[j]));
		common += is_holder(b, &a->holders[i]);
	}
	return common;
}

static struct ov_stats stats_of(struct test_host *host)
{
	struct ov_msg stats = { .op = OV_STATS };

	assert_int_equal(host_call(host, &stats, -1, NULL), 0);
	return stats.u.stats;
}

static void retain_nothing(struct fixture *f, const struct ov_object *object)
{
	struct ov_msg msg = { .op = OV_OBJECT_RETAIN };

	msg.u.retain = (struct ov_retain){ .job = object->job,
					   .token = object->token,
					   .upto_seq = UINT64_MAX };
	assert_int_equal(host_call(&f->hosts[0], &msg, -1, NULL), 0);
}

/* Each object is the first of a job of its own. */
static int make(uint8_t number, struct ov_object *ret_object)
{
	int fd = object_make(OBJECT_BYTES, number, ret_object);

	ret_object->job.b[0] = number;
	return fd;
}

/* The same object, of another job. */
static int offer(struct test_host *host, int fd, const struct ov_object *object, uint8_t job,
		 struct ov_object *ret_object)
{
	*ret_object = *object;
	ret_object->job.b[0] = job;
	ret_object->offer = 1;
	ret_object->sent = 77;
	return host_put(host, fd, ret_object, COPIES);
}

static void nothing_is_sent(void **state)
{
	struct fixture *f = *state;
	struct ov_object first, second, other;
	struct ov_stats before, after;
	int fd = make(10, &first);

	/* Nobody has it: an offer is a put. */
	assert_int_equal(offer(&f->hosts[0], fd, &first, 10, &first), 0);
	assert_int_equal(first.holder_count, COPIES);
	assert_int_equal(first.sent, COPIES);
	assert_true(first.link_kib_s > 0);
	before = stats_of(&f->hosts[0]);
	assert_int_equal(offer(&f->hosts[0], fd, &first, 11, &second), 0);
	assert_int_equal(second.holder_count, COPIES);
	assert_int_equal(second.sent, 0);
	assert_int_equal(count_common(&second, &first), COPIES);
	/* What is not sent says nothing of the link. */
	assert_int_equal(second.link_kib_s, first.link_kib_s);
	after = stats_of(&f->hosts[0]);
	assert_true(after.sent_bytes - before.sent_bytes < OBJECT_BYTES / 2);
	assert_int_equal(cluster_objects(f->hosts, HOSTS), COPIES);
	/* It is the second job's own: the first one may end, and only then the second. */
	retain_nothing(f, &first);
	assert_int_equal(cluster_objects(f->hosts, HOSTS), COPIES);
	for (int i = 0; i < HOSTS; i++)
		host_get_checked(&f->hosts[i], &second);
	retain_nothing(f, &second);
	assert_int_equal(cluster_objects(f->hosts, HOSTS), 0);
	/* Holders that know that the job is over take nothing of it, one way or the other. */
	assert_int_equal(offer(&f->hosts[0], fd, &first, 11, &other), -EHOSTUNREACH);
	/* Without an offer nobody is asked. */
	second.job.b[0] = 12;
	second.offer = 0;
	assert_int_equal(host_put(&f->hosts[0], fd, &second, COPIES), 0);
	second.job.b[0] = 13;
	assert_int_equal(host_put(&f->hosts[0], fd, &second, COPIES), 0);
	assert_int_equal(second.sent, COPIES);
	close(fd);
}

/* From a host that is a holder itself: another one takes its place, as of any put from there. */
static void what_is_missing_is_sent(void **state)
{
	struct fixture *f = *state;
	struct ov_object first, second, third;
	struct test_host *from;
	uint64_t before;
	int fd = make(20, &first);

	before = cluster_objects(f->hosts, HOSTS);
	assert_int_equal(host_put(&f->hosts[0], fd, &first, COPIES), 0);
	assert_int_equal(first.sent, COPIES);
	from = holder(f, &first, 0);
	assert_int_equal(offer(from, fd, &first, 21, &second), 0);
	assert_int_equal(second.holder_count, COPIES);
	assert_int_equal(second.sent, 1);
	assert_int_equal(count_common(&second, &first), COPIES - 1);
	assert_false(is_holder(&second, &from->identity.card.id));
	assert_int_equal(cluster_objects(f->hosts, HOSTS), before + COPIES + 1);
	/* The first of all places that had none: where it goes by a put. */
	third = first;
	third.job.b[0] = 22;
	assert_int_equal(host_put(from, fd, &third, COPIES), 0);
	assert_int_equal(count_common(&third, &second), COPIES);
	close(fd);
}

/* A copy that has rotted is none: it is found out before anybody counts on it, and made good. */
static void rot_is_sent_again(void **state)
{
	struct fixture *f = *state;
	struct ov_object first, second;
	struct test_host *rotten;
	uint64_t before = cluster_objects(f->hosts, HOSTS);
	int fd = make(30, &first), file;
	off_t at;

	assert_int_equal(host_put(&f->hosts[0], fd, &first, COPIES), 0);
	rotten = holder(f, &first, 1);
	file = host_place_of(rotten, fd, &first, &at);
	assert_int_equal(pwrite_full(file, "rot", 3, at + 2654321), 0);
	close(file);
	assert_int_equal(offer(&f->hosts[0], fd, &first, 31, &second), 0);
	assert_int_equal(second.sent, 1);
	assert_int_equal(count_common(&second, &first), COPIES);
	assert_int_equal(stats_of(rotten).rotten_objects, 1);
	assert_int_equal(cluster_objects(f->hosts, HOSTS), before + COPIES);
	close(fd);
}

static void one_holder_is_gone(void **state)
{
	struct fixture *f = *state;
	struct ov_object first, second, third;
	const struct node_id *gone;
	int fd = make(40, &first);

	assert_int_equal(host_put(&f->hosts[0], fd, &first, COPIES), 0);
	gone = &first.holders[2];
	host_kill(holder(f, &first, 2));
	/* Whether or not that is known already. */
	assert_int_equal(offer(&f->hosts[0], fd, &first, 41, &second), 0);
	assert_int_equal(second.holder_count, COPIES);
	assert_int_equal(second.sent, 1);
	assert_int_equal(count_common(&second, &first), COPIES - 1);
	assert_false(is_holder(&second, gone));
	host_wait_members(&f->hosts[0], MEMBER_DEAD, 1, 30000);
	/* By now three others have it, and nobody else is left. */
	assert_int_equal(offer(&f->hosts[0], fd, &first, 42, &third), 0);
	assert_int_equal(third.holder_count, COPIES);
	assert_int_equal(third.sent, 0);
	assert_int_equal(count_common(&third, &second), COPIES);
	close(fd);
}

/* A channel that closes while holders are asked, or while it is sent, leaves nothing behind. */
static void who_offers_goes_away(void **state)
{
	struct fixture *f = *state;
	struct ov_object first, again;
	int fd = make(50, &first);

	assert_int_equal(host_put(&f->hosts[0], fd, &first, COPIES), 0);
	for (unsigned int i = 0; i < 20; i++) {
		struct ov_msg msg = { .op = OV_OBJECT_PUT, .call = 1, .u.object = first };
		int channel = ov_open_channel(f->hosts[0].main);

		assert_true(channel >= 0);
		msg.u.object.job.b[0] = (uint8_t)(100 + i);
		msg.u.object.offer = 1;
		msg.u.object.copies = COPIES + 1;
		assert_int_equal(send_with_fd(channel, &msg, sizeof(msg), fd), 0);
		host_sleep_ms(i);
		close(channel);
	}
	assert_int_equal(offer(&f->hosts[0], fd, &first, 51, &again), 0);
	assert_int_equal(again.sent, 0);
	assert_int_equal(count_common(&again, &first), COPIES);
	close(fd);
}

/* A host that is alone has nobody to ask. */
static void alone(void **state)
{
	struct test_cluster cluster;
	struct test_host host;
	struct ov_object first, second;
	int fd = make(60, &first);

	(void)state;
	cluster_make(&cluster);
	host_make(&host, &cluster, 1);
	host_run(&host);
	assert_int_equal(host_start(&host, NULL), 0);
	for (uint8_t job = 1; job < 3; job++) {
		assert_int_equal(offer(&host, fd, &first, job, &second), 0);
		assert_int_equal(second.holder_count, 1);
		assert_int_equal(second.sent, 1);
	}
	host_get_checked(&host, &second);
	host_end(&host);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest five[] = {
		cmocka_unit_test(nothing_is_sent),    cmocka_unit_test(what_is_missing_is_sent),
		cmocka_unit_test(rot_is_sent_again),  cmocka_unit_test(who_offers_goes_away),
		cmocka_unit_test(one_holder_is_gone),
	};
	const struct CMUnitTest one[] = {
		cmocka_unit_test(alone),
	};
	int failed = cmocka_run_group_tests(five, setup, teardown);

	return failed + cmocka_run_group_tests(one, NULL, NULL);
}
