// SPDX-License-Identifier: LGPL-2.1-or-later
/* Three overlay halves as processes, driven over their channels as the agent does. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>

#include <cmocka.h>
#include <openssl/sha.h>

#include "agent/util/io.h"
#include "overlay_host.h"

enum { HOSTS = 3, OBJECT_BYTES = 3 << 20 };

struct fixture {
	struct test_cluster cluster;
	struct test_host hosts[HOSTS];
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	cluster_make_hosts(f->hosts, HOSTS, &f->cluster);
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

static void test_put_get(void **state)
{
	struct fixture *f = *state;
	struct ov_object object;
	struct ov_msg stats = { .op = OV_STATS };
	int fd = object_make(OBJECT_BYTES, 1, &object);

	assert_int_equal(host_put(&f->hosts[0], fd, &object, 5), 0);
	assert_int_equal(object.holder_count, 2);
	for (uint32_t i = 0; i < object.holder_count; i++)
		assert_false(node_id_equal(&object.holders[i], &f->hosts[0].identity.card.id));
	assert_false(node_id_equal(&object.holders[0], &object.holders[1]));
	for (int i = 0; i < HOSTS; i++)
		host_get_checked(&f->hosts[i], &object);
	/* Without knowing who has it. */
	object.holder_count = 0;
	host_get_checked(&f->hosts[0], &object);
	close(fd);
	assert_int_equal(host_call(&f->hosts[0], &stats, -1, NULL), 0);
	assert_true(stats.u.stats.sent_bytes > 2 * OBJECT_BYTES);
	assert_true(stats.u.stats.received_bytes > OBJECT_BYTES);
	/* The answer told it, too. */
	assert_true(object.link_kib_s > 0);
	assert_int_equal(stats.u.stats.link_bytes_per_s >> 10, object.link_kib_s);
	/* Who was slow for a while is called anew. */
	for (int i = 0; stats.u.stats.peers_connected != 2; i++) {
		assert_true(i < 300);
		host_sleep_ms(100);
		assert_int_equal(host_call(&f->hosts[0], &stats, -1, NULL), 0);
	}
}

static void test_put_refusals(void **state)
{
	struct fixture *f = *state;
	struct ov_object object;
	int fd = object_make(4096, 2, &object);

	object.size = 4095;
	assert_int_equal(host_put(&f->hosts[0], fd, &object, 1), -EINVAL);
	object.size = 4096;
	assert_int_equal(host_put(&f->hosts[0], fd, &object, 9), -EINVAL);
	assert_int_equal(host_put(&f->hosts[0], -1, &object, 1), -EINVAL);
	/* A hash that is not the content's: every peer refuses. */
	object.hash.b[0] ^= 1;
	assert_int_equal(host_put(&f->hosts[0], fd, &object, 2), -EHOSTUNREACH);
	close(fd);
}

/* What was put is not read any more: the agent writes its next pack into the same memory. */
static void test_memory_serves_again(void **state)
{
	enum { COUNT = 4 };
	struct fixture *f = *state;
	struct ov_object objects[COUNT];
	int file = memfd_new("again");

	assert_true(file >= 0);
	for (int i = 0; i < COUNT; i++) {
		int fd = object_make(OBJECT_BYTES - (uint32_t)i * 4096, (uint8_t)(20 + i),
				     &objects[i]);
		off_t at = 0;

		assert_int_equal(ftruncate(file, objects[i].size), 0);
		assert_int_equal(lseek(file, 0, SEEK_SET), 0);
		assert_int_equal(sendfile(file, fd, &at, objects[i].size), objects[i].size);
		assert_int_equal(host_put(&f->hosts[0], file, &objects[i], 2), 0);
		assert_int_equal(objects[i].holder_count, 2);
		close(fd);
	}
	close(file);
	for (int i = 0; i < COUNT; i++)
		host_get_checked(&f->hosts[1], &objects[i]);
}

/* What is fetched comes in the caller's memory, if there is some; from the own store in a file. */
static void test_memory_is_lent(void **state)
{
	enum { COUNT = 4 };
	struct fixture *f = *state;
	uint8_t *bytes = malloc(OBJECT_BYTES);
	int file = memfd_new("lent");

	assert_true(bytes && file >= 0);
	for (int i = 0; i < COUNT; i++) {
		struct ov_msg msg = { .op = OV_OBJECT_GET };
		struct ov_object object;
		struct object_hash hash;
		int fd = object_make(OBJECT_BYTES - (uint32_t)i * 4097, (uint8_t)(60 + i), &object);

		assert_int_equal(host_put(&f->hosts[0], fd, &object, 2), 0);
		assert_int_equal(object.holder_count, 2);
		close(fd);
		/* Of a holder that was slow for a moment the other one is asked, and gives a file. */
		for (int tries = 0; fd >= 0; tries++) {
			assert_true(tries < 60);
			fd = -1;
			msg.u.object = object;
			assert_int_equal(host_call(&f->hosts[0], &msg, file, &fd), 0);
			close_fdp(&fd);
		}
		assert_int_equal(msg.u.object.size, object.size);
		assert_int_equal(pread_full(file, bytes, object.size, 0), 0);
		SHA256(bytes, object.size, hash.b);
		assert_memory_equal(&hash, &object.hash, sizeof(hash));
		/* This host holds it. */
		msg.u.object = object;
		assert_int_equal(host_call(&f->hosts[1], &msg, file, &fd), 0);
		assert_true(fd >= 0 && memfd_is_sealed(fd));
		close(fd);
	}
	close(file);
	free(bytes);
}

static void test_many_objects_at_once(void **state)
{
	enum { COUNT = 12 };
	struct fixture *f = *state;
	struct ov_object objects[COUNT];
	int fds[COUNT];

	/* Several requests on the one main channel; answers in any order, with their call. */
	for (int i = 0; i < COUNT; i++) {
		struct ov_msg msg = { .op = OV_OBJECT_PUT, .call = (uint64_t)i + 1 };

		fds[i] = object_make(700000 + (uint32_t)i, (uint8_t)(10 + i), &objects[i]);
		msg.u.object = objects[i];
		msg.u.object.copies = 2;
		assert_int_equal(send_with_fd(f->hosts[1].main, &msg, sizeof(msg), fds[i]), 0);
	}
	for (int i = 0; i < COUNT; i++) {
		struct ov_msg msg;

		host_event(&f->hosts[1], OV_OBJECT_PUT, &msg, 20000);
		assert_int_equal(msg.status, 0);
		assert_in_range(msg.call, 1, COUNT);
		assert_int_equal(msg.u.object.holder_count, 2);
		objects[msg.call - 1] = msg.u.object;
	}
	for (int i = 0; i < COUNT; i++) {
		host_get_checked(&f->hosts[i % HOSTS], &objects[i]);
		close(fds[i]);
	}
}

static void test_retain(void **state)
{
	struct fixture *f = *state;
	struct ov_object kept, dropped;
	struct ov_msg msg = { .op = OV_OBJECT_RETAIN }, get = { .op = OV_OBJECT_GET };
	int fds[] = { object_make(5000, 30, &kept), object_make(5000, 31, &dropped) }, list;

	kept.job.b[0] = dropped.job.b[0] = 9;
	assert_int_equal(host_put(&f->hosts[0], fds[0], &kept, 2), 0);
	assert_int_equal(host_put(&f->hosts[0], fds[1], &dropped, 2), 0);
	list = memfd_new("list");
	assert_int_equal(write_full(list, &kept.hash, sizeof(kept.hash)), 0);
	msg.u.retain = (struct ov_retain){
		.job = kept.job, .token = kept.token, .upto_seq = 1, .count = 1
	};
	msg.u.retain.token.counter = 5;
	assert_int_equal(host_call(&f->hosts[2], &msg, list, NULL), 0);
	host_get_checked(&f->hosts[0], &kept);
	get.u.object = dropped;
	assert_int_equal(host_call(&f->hosts[0], &get, -1, NULL), -ENOENT);
	/* An older incarnation may neither drop nor put. */
	msg.op = OV_OBJECT_RETAIN;
	msg.u.retain = (struct ov_retain){ .job = kept.job, .token = kept.token, .upto_seq = 9 };
	assert_int_equal(host_call(&f->hosts[0], &msg, -1, NULL), -ESTALE);
	host_get_checked(&f->hosts[1], &kept);
	assert_int_equal(host_put(&f->hosts[0], fds[1], &dropped, 2), -EHOSTUNREACH);
	close(list);
	close(fds[0]);
	close(fds[1]);
}

static void test_order(void **state)
{
	struct fixture *f = *state;
	struct ov_msg call = { .op = OV_ORDER_CALL, .call = 5 }, event, reply;

	call.u.order.node = f->hosts[2].identity.card.id;
	call.u.order.timeout_ms = 60000;
	call.u.order.size = 5;
	memcpy(call.u.order.bytes, "hello", 5);
	assert_int_equal(send_with_fd(f->hosts[0].main, &call, sizeof(call), -1), 0);
	host_event(&f->hosts[2], OV_EV_ORDER, &event, 8000);
	assert_true(node_id_equal(&event.u.order.node, &f->hosts[0].identity.card.id));
	assert_int_equal(event.u.order.size, 5);
	assert_memory_equal(event.u.order.bytes, "hello", 5);
	reply = event;
	reply.op = OV_ORDER_REPLY;
	reply.u.order.size = 3;
	memcpy(reply.u.order.bytes, "yes", 3);
	assert_int_equal(send_with_fd(f->hosts[2].main, &reply, sizeof(reply), -1), 0);
	host_event(&f->hosts[0], OV_ORDER_CALL, &event, 8000);
	assert_int_equal(event.status, 0);
	assert_int_equal(event.call, 5);
	assert_int_equal(event.u.order.size, 3);
	assert_memory_equal(event.u.order.bytes, "yes", 3);
	/* To itself, and nobody answers in time. */
	call.u.order.node = f->hosts[0].identity.card.id;
	call.u.order.timeout_ms = 300;
	assert_int_equal(host_call(&f->hosts[0], &call, -1, NULL), -EAGAIN);
	host_event(&f->hosts[0], OV_EV_ORDER, &event, 1000);
}

static void make_job(struct test_host *host, uint8_t number, struct ov_msg *ret_msg)
{
	struct job_value *value = &ret_msg->u.value;

	memset(ret_msg, 0, sizeof(*ret_msg));
	ret_msg->op = OV_JOB_CREATE;
	value->job.b[0] = number;
	value->job.b[1] = 0x77;
	value->owner = value->home = host->identity.card.id;
	value->state = JOB_STATE_HELD;
	value->fence = FENCE_STRICT;
	value->mem_bytes = 4096;
	assert_int_equal(host_call(host, ret_msg, -1, NULL), 0);
	assert_true(ret_msg->u.value.token.counter > 0);
}

static void test_job(void **state)
{
	struct fixture *f = *state;
	struct ov_msg msg, hold = { .op = OV_JOB_HOLD }, list = { .op = OV_JOB_LIST };
	struct job_value value;
	uint64_t before;
	int fd = -1;

	make_job(&f->hosts[0], 1, &msg);
	value = msg.u.value;
	hold.u.job.job = value.job;
	hold.u.job.token = value.token;
	before = now_boot_ns();
	assert_int_equal(host_call(&f->hosts[0], &hold, -1, NULL), 0);
	assert_true(hold.u.lease.run_until_boot_ns > before);
	host_event(&f->hosts[0], OV_EV_LEASE, &msg, 3000);
	msg = (struct ov_msg){ .op = OV_JOB_GET };
	msg.u.value.job = value.job;
	assert_int_equal(host_call(&f->hosts[2], &msg, -1, NULL), 0);
	assert_memory_equal(&msg.u.value.token, &value.token, sizeof(value.token));
	assert_int_equal(host_call(&f->hosts[1], &list, -1, &fd), 0);
	assert_true(list.u.count >= 1);
	close(fd);
	value.state = JOB_STATE_KILLED;
	msg = (struct ov_msg){ .op = OV_JOB_CAS, .u.value = value };
	assert_int_equal(host_call(&f->hosts[0], &msg, -1, NULL), 0);
	hold = (struct ov_msg){ .op = OV_JOB_DROP };
	hold.u.job = (struct ov_job){ .job = value.job, .token = value.token };
	assert_int_equal(host_call(&f->hosts[0], &hold, -1, NULL), 0);
}

static void test_side_channel_ends(void **state)
{
	struct fixture *f = *state;

	/* A worker thread that goes away in the middle of its request. */
	for (int i = 0; i < 20; i++) {
		struct ov_object object;
		struct ov_msg msg = { .op = OV_OBJECT_PUT, .call = 1 };
		int fd = object_make(1 << 20, (uint8_t)(60 + i % 3), &object);
		int channel = ov_open_channel(f->hosts[0].main);

		assert_true(channel >= 0);
		msg.u.object = object;
		msg.u.object.copies = 2;
		assert_int_equal(send_with_fd(channel, &msg, sizeof(msg), fd), 0);
		host_sleep_ms((unsigned int)i);
		close(channel);
		close(fd);
	}
	/* Its loop goes on, for the others too; a suspicion of one that got no processor passes. */
	host_wait_members(&f->hosts[0], MEMBER_ALIVE, HOSTS, 20000);
	host_wait_members(&f->hosts[1], MEMBER_ALIVE, HOSTS, 20000);
}

static void test_kill_and_restart(void **state)
{
	struct fixture *f = *state;
	struct ov_object object;
	struct ov_msg msg;
	int fd = object_make(OBJECT_BYTES, 90, &object);
	int victim;

	assert_int_equal(host_put(&f->hosts[0], fd, &object, 2), 0);
	make_job(&f->hosts[0], 2, &msg);
	/* The holder that is asked first dies; and the other way round it is the second. */
	victim = node_id_equal(&object.holders[0], &f->hosts[1].identity.card.id) ? 1 : 2;
	host_kill(&f->hosts[victim]);
	host_get_checked(&f->hosts[0], &object);
	host_wait_members(&f->hosts[0], MEMBER_DEAD, 1, 15000);
	host_get_checked(&f->hosts[0], &object);
	/* With one candidate there is one copy. */
	assert_int_equal(host_put(&f->hosts[0], fd, &object, 3), 0);
	assert_int_equal(object.holder_count, 1);
	host_run(&f->hosts[victim]);
	assert_int_equal(host_start(&f->hosts[victim], &f->hosts[0]), 0);
	for (int i = 0; i < HOSTS; i++)
		host_wait_members(&f->hosts[i], MEMBER_ALIVE, HOSTS, 20000);
	host_get_checked(&f->hosts[victim], &object);
	msg.op = OV_JOB_GET;
	assert_int_equal(host_call(&f->hosts[victim], &msg, -1, NULL), 0);
	close(fd);
}

/* Rot on a peer's disk is found by that peer, and the other holder serves. */
static void test_rot(void **state)
{
	struct fixture *f = *state;
	struct ov_object object;
	struct ov_msg stats = { .op = OV_STATS };
	int fd = object_make(100000, 95, &object), file, first;
	uint8_t left[4096], none[4096] = { 0 };
	off_t at;

	assert_int_equal(host_put(&f->hosts[0], fd, &object, 2), 0);
	first = node_id_equal(&object.holders[0], &f->hosts[1].identity.card.id) ? 1 : 2;
	file = host_place_of(&f->hosts[first], fd, &object, &at);
	assert_int_equal(pwrite_full(file, "rot", 3, at + 50000), 0);
	object.holder_count = 1;
	/* If it is slow the other one may be faster: it reads all the same, or the next time. */
	for (int i = 0; stats.u.stats.bad_objects == 0; i++) {
		assert_true(i < 100);
		host_get_checked(&f->hosts[0], &object);
		assert_int_equal(host_call(&f->hosts[first], &stats, -1, NULL), 0);
		host_sleep_ms(i ? 300 : 0);
	}
	/* Its room was given back. */
	assert_int_equal(pread_full(file, left, sizeof(left), at), 0);
	assert_memory_equal(left, none, sizeof(none));
	close(file);
	close(fd);
}

static void test_before_cluster(void **state)
{
	struct test_cluster cluster;
	struct test_host host;
	struct ov_msg msg = { .op = OV_STATS };

	(void)state;
	cluster_make(&cluster);
	host_make(&host, &cluster, 1);
	host_run(&host);
	assert_int_equal(host_call(&host, &msg, -1, NULL), 0);
	for (uint32_t op = OV_JOB_CREATE; op <= OV_REPORT; op++) {
		msg = (struct ov_msg){ .op = op };
		assert_int_equal(host_call(&host, &msg, -1, NULL), -EPERM);
	}
	msg = (struct ov_msg){ .op = OV_CLUSTER_START };
	assert_int_equal(host_call(&host, &msg, -1, NULL), -EINVAL);
	/* A card of another cluster. */
	host.identity.cluster_public[0] ^= 1;
	assert_int_equal(host_start(&host, NULL), -EBADMSG);
	host.identity.cluster_public[0] ^= 1;
	assert_int_equal(host_start(&host, NULL), 0);
	assert_int_equal(host_start(&host, NULL), -EALREADY);
	assert_int_equal(host_count_members(&host, MEMBER_ALIVE), 1);
	host_end(&host);
}

/* A host that is alone keeps its own objects, over a kill too. */
static void test_alone(void **state)
{
	struct test_cluster cluster;
	struct test_host host;
	struct ov_object object;
	int fd = object_make(OBJECT_BYTES, 100, &object);

	(void)state;
	cluster_make(&cluster);
	host_make(&host, &cluster, 1);
	host_run(&host);
	assert_int_equal(host_start(&host, NULL), 0);
	assert_int_equal(host_put(&host, fd, &object, 3), 0);
	assert_int_equal(object.holder_count, 1);
	host_get_checked(&host, &object);
	host_kill(&host);
	host_run(&host);
	assert_int_equal(host_start(&host, NULL), 0);
	host_get_checked(&host, &object);
	host_end(&host);
	close(fd);
}

static void test_leave(void **state)
{
	struct fixture *f = *state;
	struct ov_msg msg = { .op = OV_LEAVE };

	assert_int_equal(host_call(&f->hosts[2], &msg, -1, NULL), 0);
	host_wait_members(&f->hosts[0], MEMBER_LEFT, 1, 5000);
	/* A core without a next deadline leaves the loop sound. */
	host_sleep_ms(2000);
	assert_true(host_count_members(&f->hosts[2], MEMBER_LEFT) >= 1);
}

int main(void)
{
	const struct CMUnitTest alone[] = {
		cmocka_unit_test(test_before_cluster),
		cmocka_unit_test(test_alone),
	};
	const struct CMUnitTest three[] = {
		cmocka_unit_test(test_put_get),
		cmocka_unit_test(test_put_refusals),
		cmocka_unit_test(test_memory_serves_again),
		cmocka_unit_test(test_memory_is_lent),
		cmocka_unit_test(test_many_objects_at_once),
		cmocka_unit_test(test_retain),
		cmocka_unit_test(test_order),
		cmocka_unit_test(test_job),
		cmocka_unit_test(test_side_channel_ends),
		cmocka_unit_test(test_rot),
		cmocka_unit_test(test_kill_and_restart),
		cmocka_unit_test(test_leave),
	};
	int failed;

	signal(SIGPIPE, SIG_IGN);
	failed = cmocka_run_group_tests(alone, NULL, NULL);
	return failed + cmocka_run_group_tests(three, setup, teardown);
}
