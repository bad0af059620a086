// SPDX-License-Identifier: LGPL-2.1-or-later
/* Nine overlay halves as processes: a shard that was made again elsewhere is given up, if it is there. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define LOG_TAG "test"
#include "agent/util/io.h"
#include "agent/util/log.h"
#include "overlay/shard.h"
#include "overlay_host.h"
#include "overlay_liar.h"

enum {
	HOSTS = 9,
	SHARDS = 6,
	SIZE = 700001,
	LAZY_MS = 2000,
	ROUND_MS = 300,
	SUSPECT_MS = 6000,
	WAIT_MS = 60000,
	DENIALS = 3, /* that the liar has it, before it says that it does */
	LOG_MAX = 1 << 20,
};

struct fixture {
	struct test_cluster cluster;
	struct test_host hosts[HOSTS];
	struct ov_object object;
	struct ov_group group;
	pid_t liar;
	int fd;
};

static void log_path(const struct test_host *host, char path[100])
{
	snprintf(path, 100, "%s.log", host->dir);
}

/* Each with its log in a file: all of it, as what stays is said only there. */
static void run_logging(struct test_host *host)
{
	int saved = dup(STDERR_FILENO), fd;
	char path[100];

	log_path(host, path);
	fd = open(path, O_CREAT | O_APPEND | O_RDWR | O_CLOEXEC, 0600);
	assert_true(saved >= 0 && fd >= 0);
	assert_int_equal(dup2(fd, STDERR_FILENO), STDERR_FILENO);
	log_init(LOG_DEBUG_, "host");
	host_run(host);
	log_init(LOG_INFO_, "test");
	assert_int_equal(dup2(saved, STDERR_FILENO), STDERR_FILENO);
	close(saved);
	close(fd);
}

static bool has_logged(struct test_host *host, const char *words)
{
	char *text = calloc(1, LOG_MAX), path[100];
	bool found;
	int fd;

	log_path(host, path);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(text && fd >= 0);
	assert_true(read(fd, text, LOG_MAX - 1) >= 0);
	close(fd);
	found = strstr(text, words) != NULL;
	free(text);
	return found;
}

static void wait_logged(struct test_host *host, const char *words)
{
	uint64_t deadline = now_boot_ns() + WAIT_MS * UINT64_C(1000000);

	while (!has_logged(host, words)) {
		if (now_boot_ns() >= deadline)
			fail_msg("no word of: %s", words);
		host_sleep_ms(100);
	}
}

static struct test_host *holder(struct fixture *f, uint32_t shard)
{
	return &f->hosts[cluster_index(f->hosts, HOSTS, &f->group.holders[shard])];
}

static uint64_t objects_at(struct test_host *host)
{
	struct ov_msg stats = { .op = OV_STATS };

	assert_int_equal(host_call(host, &stats, -1, NULL), 0);
	return stats.u.stats.objects;
}

static void wait_objects_at(struct test_host *host, uint64_t count)
{
	uint64_t deadline = now_boot_ns() + WAIT_MS * UINT64_C(1000000);

	while (objects_at(host) != count) {
		if (now_boot_ns() >= deadline)
			fail_msg("%d objects", (int)objects_at(host));
		host_sleep_ms(100);
	}
}

static void wait_objects(struct fixture *f, uint64_t count)
{
	cluster_wait_objects(f->hosts, HOSTS, count, WAIT_MS);
}

/* Six shards, and no copy. */
static void make_coded(struct fixture *f)
{
	struct ov_msg code = { .op = OV_OBJECT_CODE }, retain = { .op = OV_OBJECT_RETAIN };
	struct object_hash name;
	int fd = memfd_new("retain");

	f->fd = object_make(SIZE, 3, &f->object);
	assert_int_equal(host_put(&f->hosts[0], f->fd, &f->object, 2), 0);
	code.u.group = (struct ov_group){ .job = f->object.job,
					  .token = f->object.token,
					  .hash = f->object.hash,
					  .seq = f->object.seq,
					  .size = f->object.size,
					  .k = 4,
					  .m = 2 };
	assert_int_equal(host_call(&f->hosts[0], &code, f->fd, NULL), 0);
	f->group = code.u.group;
	shard_group_name(&f->object.hash, &name);
	retain.u.retain = (struct ov_retain){
		.job = f->object.job, .token = f->object.token, .upto_seq = 9, .count = 1
	};
	assert_int_equal(write_full(fd, &name, sizeof(name)), 0);
	assert_int_equal(memfd_seal(fd), 0);
	assert_int_equal(host_call(&f->hosts[0], &retain, fd, NULL), 0);
	close(fd);
	wait_objects(f, SHARDS);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	cluster_make_hosts(f->hosts, HOSTS, &f->cluster);
	for (int i = 0; i < HOSTS; i++) {
		f->hosts[i].repair_lazy_ms = LAZY_MS;
		f->hosts[i].repair_round_ms = ROUND_MS;
		f->hosts[i].suspect_ms = SUSPECT_MS;
		host_be_stable(&f->hosts[i]);
		run_logging(&f->hosts[i]);
	}
	cluster_start(f->hosts, HOSTS);
	make_coded(f);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	char path[100];

	if (f->liar > 0) {
		assert_int_equal(kill(f->liar, SIGKILL), 0);
		assert_int_equal(waitpid(f->liar, NULL, 0), f->liar);
	}
	cluster_end(f->hosts, HOSTS);
	for (int i = 0; i < HOSTS; i++) {
		log_path(&f->hosts[i], path);
		assert_int_equal(unlink(path), 0);
	}
	close(f->fd);
	free(f);
	return 0;
}

/* With as many objects as it had when it went. */
static void come_back(struct fixture *f, struct test_host *host, uint64_t objects)
{
	run_logging(host);
	assert_int_equal(objects_at(host), objects);
	assert_int_equal(host_start(host, &f->hosts[0]), 0);
}

/* By the heads of what was ever written there. */
static bool had_shard(const struct test_host *host, uint32_t shard)
{
	static uint8_t bytes[4 << 20];
	bool found = false;
	char path[100];
	ssize_t size;
	int fd;

	snprintf(path, sizeof(path), "%s/segments/00000001", host->dir);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	size = read(fd, bytes, sizeof(bytes));
	close(fd);
	for (ssize_t at = 0; at + SHARD_HEAD_BYTES <= size; at += 4096)
		found |= !memcmp(bytes + at, "DECAMPSH", 8) && bytes[at + 14] == shard;
	return found;
}

/* Two holders go for long enough: what they had is made again on the two hosts that had nothing. */
static void lose_two(struct fixture *f)
{
	host_kill(holder(f, 0));
	host_kill(holder(f, 1));
	wait_objects(f, SHARDS);
}

static void what_was_made_again_is_given_up(void **state)
{
	struct fixture *f = *state;

	lose_two(f);
	come_back(f, holder(f, 0), 1);
	come_back(f, holder(f, 1), 1);
	wait_objects_at(holder(f, 0), 0);
	wait_objects_at(holder(f, 1), 0);
	/* Each of the six is there once: any two may go. */
	wait_objects(f, SHARDS);
	host_kill(holder(f, 2));
	host_kill(holder(f, 3));
	host_get_checked(&f->hosts[0], &f->object);
}

static void vacate(struct test_host *host)
{
	struct ov_msg msg = { .op = OV_REPORT };

	msg.u.report.flags = MEMBER_VACATING;
	assert_int_equal(host_call(host, &msg, -1, NULL), 0);
}

/* What those that are being emptied have is made again while they are there. */
static void who_is_emptied_gives_up_what_it_has(void **state)
{
	struct fixture *f = *state;

	vacate(holder(f, 0));
	vacate(holder(f, 1));
	wait_objects_at(holder(f, 0), 0);
	wait_objects_at(holder(f, 1), 0);
	wait_objects(f, SHARDS);
	host_kill(holder(f, 0));
	host_kill(holder(f, 1));
	host_get_checked(&f->hosts[0], &f->object);
}

/* Who has it by now: one that had no shard before, and is not the host that does the asking. */
static struct test_host *new_holder(struct fixture *f, uint32_t shard)
{
	for (int i = 1; i < HOSTS; i++) {
		bool is_new = f->hosts[i].pid > 0 && had_shard(&f->hosts[i], shard);

		for (uint32_t k = 0; k < SHARDS; k++)
			is_new &= holder(f, k) != &f->hosts[i];
		if (is_new)
			return &f->hosts[i];
	}
	return NULL;
}

/* Who is named is away when the old holder comes back, and returns later. */
static void it_stays_while_the_new_holder_is_away(void **state)
{
	struct fixture *f = *state;
	struct test_host *old, *new;
	uint32_t shard = 0;

	lose_two(f);
	if (!new_holder(f, shard))
		shard = 1;
	old = holder(f, shard);
	new = new_holder(f, shard);
	assert_non_null(new);
	host_kill(new);
	host_wait_members(&f->hosts[0], MEMBER_ALIVE, HOSTS - 3, WAIT_MS);
	come_back(f, old, 1);
	wait_logged(old, "stays: who is named is not there");
	assert_int_equal(objects_at(old), 1);
	come_back(f, new, 1);
	wait_objects_at(old, 0);
	assert_int_equal(objects_at(new), 1);
}

/* --- a hostile host ----------------------------------------------------------------------- */

/* It says that shard 1 is with itself; then that it has it not; then that it has. */
struct liar {
	struct ov_group forged;
	uint32_t denials;
};

static int liar_call(void *ctx, struct net *net, uint64_t served, const struct net_call *call)
{
	struct liar *liar = ctx;
	uint8_t bytes[NET_GROUP_MAX];
	uint32_t size;
	int fd;

	switch (call->op) {
	case NET_OP_GROUP_GET:
		size = (uint32_t)net_group_encode(&liar->forged, bytes);
		net_reply(net, served, 0, bytes, size, -1, 0);
		return 0;
	case NET_OP_VOUCH:
		if (liar->denials++ < DENIALS)
			return -ENOENT;
		net_reply(net, served, 0, NULL, 0, -1, 0);
		return 0;
	case NET_OP_GET:
		if (memcmp(&call->object.hash, &liar->forged.shards[1], sizeof(call->object.hash)))
			return -ENOENT;
		size = shard_bytes(SIZE, 4);
		fd = memfd_new("lie");
		if (fd < 0 || ftruncate(fd, size) < 0)
			_exit(3);
		net_reply(net, served, 0, NULL, 0, fd, size);
		close(fd);
		return 0;
	default:
		return -ENOENT;
	}
}

static void it_stays_if_who_is_named_lies(void **state)
{
	struct fixture *f = *state;
	struct test_host *victim = holder(f, 1);
	struct liar liar = { .forged = f->group };

	host_kill(holder(f, 0));
	liar.forged.revision = UINT32_MAX;
	liar.forged.holders[0] = f->group.holders[1];
	liar.forged.holders[1] = f->group.holders[0];
	f->liar = fork();
	assert_true(f->liar >= 0);
	if (f->liar == 0)
		liar_serve(holder(f, 0), liar_call, &liar);
	wait_logged(victim, "stays: who is named does not vouch for it");
	wait_logged(victim, "shed: peer=");
	wait_logged(victim, "stays: it is not to be had from who is named");
	/* Its own, and the one that it is said to have. */
	wait_objects_at(victim, 2);
	assert_false(has_logged(victim, "is elsewhere"));
	host_get_checked(&f->hosts[0], &f->object);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(what_was_made_again_is_given_up, setup, teardown),
		cmocka_unit_test_setup_teardown(who_is_emptied_gives_up_what_it_has, setup,
						teardown),
		cmocka_unit_test_setup_teardown(it_stays_while_the_new_holder_is_away, setup,
						teardown),
		cmocka_unit_test_setup_teardown(it_stays_if_who_is_named_lies, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
