// SPDX-License-Identifier: LGPL-2.1-or-later
/* Nine overlay halves as processes: objects become shards, and come back from those that are left. */
#include <errno.h>
#include <fcntl.h>
#include <openssl/sha.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/util/io.h"
#include "overlay/net/net.h"
#include "overlay/shard.h"
#include "overlay_host.h"
#include "overlay_liar.h"

enum {
	HOSTS = 9,
	LAZY_MS = 2000,
	ROUND_MS = 300,
	SIZE = 700001,
	SHARDS = 6,
	SUSPECT_MS = 6000,
	QUICK_MS = 11000, /* less than a call may stall */
	CREDIT_MS = 300,
	WAIT_MS = 60000,
	LOG_MAX = 65536,
};

struct fixture {
	struct test_cluster cluster;
	struct test_host hosts[HOSTS];
	struct ov_object object;
	struct ov_group group;
	uint32_t suspect_ms;
	pid_t liar;
	int fd;
};

/* Runs with its log in a file of its folder. */
static void run_logging(struct test_host *host)
{
	int saved = dup(STDERR_FILENO), fd;
	char path[100];

	snprintf(path, sizeof(path), "%s.log", host->dir);
	fd = open(path, O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600);
	assert_true(saved >= 0 && fd >= 0);
	assert_int_equal(dup2(fd, STDERR_FILENO), STDERR_FILENO);
	host_run(host);
	assert_int_equal(dup2(saved, STDERR_FILENO), STDERR_FILENO);
	close(saved);
	close(fd);
}

/* Once the hosts are gone. */
static void end_logging(struct test_host *host)
{
	char path[100];

	snprintf(path, sizeof(path), "%s.log", host->dir);
	assert_int_equal(unlink(path), 0);
}

static void read_log(struct test_host *host, char text[LOG_MAX])
{
	char path[100];
	ssize_t size;
	int fd;

	snprintf(path, sizeof(path), "%s.log", host->dir);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	size = read(fd, text, LOG_MAX - 1);
	assert_true(size >= 0);
	close(fd);
	text[size] = '\0';
}

static bool has_logged(struct test_host *host, const char *words)
{
	char text[LOG_MAX];

	read_log(host, text);
	return strstr(text, words) != NULL;
}

static void start_hosts(struct fixture *f, uint32_t lazy_ms)
{
	cluster_make_hosts(f->hosts, HOSTS, &f->cluster);
	for (int i = 0; i < HOSTS; i++) {
		f->hosts[i].repair_lazy_ms = lazy_ms;
		f->hosts[i].repair_round_ms = lazy_ms ? ROUND_MS : 0;
		host_be_stable(&f->hosts[i]);
		f->hosts[i].suspect_ms = f->suspect_ms;
		f->hosts[i].credit_round_ms = CREDIT_MS;
	}
	run_logging(&f->hosts[0]);
	cluster_start(f->hosts, HOSTS);
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	if (f->liar > 0) {
		assert_int_equal(kill(f->liar, SIGKILL), 0);
		assert_int_equal(waitpid(f->liar, NULL, 0), f->liar);
	}
	cluster_end(f->hosts, HOSTS);
	end_logging(&f->hosts[0]);
	close(f->fd);
	free(f);
	return 0;
}

static uint64_t objects(struct fixture *f)
{
	return cluster_objects(f->hosts, HOSTS);
}

static void wait_objects(struct fixture *f, uint64_t count, int timeout_ms)
{
	cluster_wait_objects(f->hosts, HOSTS, count, timeout_ms);
}

static struct test_host *host_of(struct fixture *f, const struct node_id *id)
{
	return &f->hosts[cluster_index(f->hosts, HOSTS, id)];
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

static struct fixture *fixture_new(uint32_t lazy_ms, uint32_t suspect_ms)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	f->suspect_ms = suspect_ms;
	start_hosts(f, lazy_ms);
	make_coded(f);
	return f;
}

static int setup(void **state)
{
	*state = fixture_new(0, SUSPECT_MS);
	return 0;
}

static int setup_repair(void **state)
{
	*state = fixture_new(LAZY_MS, SUSPECT_MS);
	return 0;
}

/* A host that is killed is held for alive for long: another takes its place. */
static int setup_liar(void **state)
{
	*state = fixture_new(0, 600000);
	return 0;
}

static struct ov_stats stats_of(struct test_host *host)
{
	struct ov_msg stats = { .op = OV_STATS };

	assert_int_equal(host_call(host, &stats, -1, NULL), 0);
	return stats.u.stats;
}

static void what_does_not_fit_stays_with_copies(struct fixture *f)
{
	struct ov_group group = f->group;

	/* Sixteen hosts are not there; nor is there another scheme. */
	assert_int_equal(code(f, 8, 8), -EHOSTUNREACH);
	assert_int_equal(code(f, 3, 2), -EINVAL);
	f->object.size--;
	assert_int_equal(code(f, 4, 2), -EINVAL);
	f->object.size++;
	assert_memory_equal(&group, &f->group, sizeof(group));
}

/* Whether it answered in time, else it is not known. */
static bool ask_given(struct fixture *f, const struct node_id *id, struct ov_credit_sum *ret_given)
{
	struct ov_msg msg = { .op = OV_CREDIT };
	bool answered = false;
	int fd = -1;

	assert_int_equal(host_call(&f->hosts[0], &msg, -1, &fd), 0);
	for (uint64_t i = 0; i < msg.u.credits.count; i++) {
		struct ov_credit row;

		assert_int_equal(pread_full(fd, &row, sizeof(row), (off_t)(i * sizeof(row))), 0);
		if (!node_id_equal(&row.id, id))
			continue;
		answered = row.answered;
		*ret_given = row.given;
	}
	close(fd);
	return answered;
}

static struct ov_credit_sum given_by(struct fixture *f, const struct node_id *id)
{
	uint64_t deadline = now_boot_ns() + WAIT_MS * UINT64_C(1000000);
	struct ov_credit_sum given = { 0 };

	while (!ask_given(f, id, &given))
		assert_true(now_boot_ns() < deadline);
	return given;
}

/* A restore is one of each of the four that served it, and of a shard's bytes. */
static void wait_restore(struct fixture *f)
{
	uint64_t deadline = now_boot_ns() + WAIT_MS * UINT64_C(1000000), restores, bytes;

	do {
		assert_true(now_boot_ns() < deadline);
		host_sleep_ms(CREDIT_MS);
		restores = bytes = 0;
		for (int i = 0; i < SHARDS; i++) {
			struct ov_credit_sum given = given_by(f, &f->group.holders[i]);

			restores += given.restores;
			bytes += given.restored_bytes;
		}
	} while (restores < 4);
	assert_int_equal(restores, 4);
	assert_int_equal(bytes, 4 * shard_bytes(SIZE, 4));
}

/* The first six holders, and who came after the copies: all have kept a shard for some time. */
static void shards_earn(void **state)
{
	struct fixture *f = *state;
	struct test_host *reader = &f->hosts[0];
	struct ov_credit_sum before[SHARDS];
	uint64_t deadline;
	struct object_hash name;

	shard_group_name(&f->object.hash, &name);
	host_sleep_ms(3 * CREDIT_MS); /* what the copies have earned is told */
	for (int i = 0; i < SHARDS; i++)
		before[i] = given_by(f, &f->group.holders[i]);
	host_sleep_ms(200);
	assert_int_equal(retain(f, &name), 0);
	deadline = now_boot_ns() + WAIT_MS * UINT64_C(1000000);
	for (int i = 0; i < SHARDS; i++)
		while (given_by(f, &f->group.holders[i]).byte_hours <= before[i].byte_hours) {
			assert_true(now_boot_ns() < deadline);
			host_sleep_ms(100);
		}
	f->object.holder_count = 0;
	host_get_checked(reader, &f->object);
	wait_restore(f);
	/* And none is counted twice. */
	host_sleep_ms(3 * CREDIT_MS);
	wait_restore(f);
}

/* A host that hangs costs half a second: not the object, nor the 12 s until it is given up. */
static void who_hangs_is_not_waited_for(struct fixture *f, struct test_host *hanging)
{
	bool is_quick = false;

	/* A busy machine may need as long by itself, but not again and again. */
	for (int i = 0; i < 5 && !is_quick; i++) {
		uint64_t began;

		assert_int_equal(kill(hanging->pid, SIGSTOP), 0);
		began = now_boot_ns();
		host_get_checked(&f->hosts[0], &f->object);
		is_quick = now_boot_ns() - began < QUICK_MS * UINT64_C(1000000);
		assert_int_equal(kill(hanging->pid, SIGCONT), 0);
		/* It may have been held for dead. */
		host_wait_members(&f->hosts[0], MEMBER_ALIVE, HOSTS, WAIT_MS);
	}
	assert_true(is_quick);
}

static void shards_are_read_until_too_many_are_gone(void **state)
{
	struct fixture *f = *state;
	struct ov_msg msg = { .op = OV_OBJECT_GET };
	int r;

	what_does_not_fit_stays_with_copies(f);
	/* The owner, who knows of the copies that there were; a holder; one that knows nothing. */
	host_get_checked(&f->hosts[0], &f->object);
	host_get_checked(host_of(f, &f->group.holders[5]), &f->object);
	f->object.holder_count = 0;
	host_get_checked(&f->hosts[0], &f->object);
	who_hangs_is_not_waited_for(f, host_of(f, &f->group.holders[1]));
	host_kill(host_of(f, &f->group.holders[0]));
	host_kill(host_of(f, &f->group.holders[3]));
	host_get_checked(&f->hosts[0], &f->object);
	/* One loss more than there may be. */
	host_kill(host_of(f, &f->group.holders[4]));
	msg.u.object = f->object;
	assert_int_equal(host_call(&f->hosts[0], &msg, -1, NULL), -ENOENT);
	assert_int_equal(stats_of(&f->hosts[0]).bad_objects, 0);
	/* And the end of the job is the end of its shards. */
	/* Those that were just killed are asked as well, in vain: until then, to be said again. */
	for (int i = 0; (r = retain(f, NULL)) == -EAGAIN && i < 300; i++)
		host_sleep_ms(200);
	assert_int_equal(r, 0);
	wait_objects(f, 0, 5000);
}

static void lost_shards_are_made_again(void **state)
{
	struct fixture *f = *state;

	/* One of two may be missing: 4 + 2/2 are left. */
	host_kill(host_of(f, &f->group.holders[0]));
	host_sleep_ms(SUSPECT_MS + LAZY_MS + 6 * ROUND_MS);
	assert_int_equal(objects(f), SHARDS - 1);
	host_kill(host_of(f, &f->group.holders[1]));
	/* Both come back, by hosts that cannot read what it is. */
	wait_objects(f, SHARDS, WAIT_MS);
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
	wait_objects(f, SHARDS, WAIT_MS);
	assert_int_equal(stats_of(rotten).objects, 1);
	host_kill(host_of(f, &f->group.holders[0]));
	host_kill(host_of(f, &f->group.holders[1]));
	host_get_checked(&f->hosts[0], &f->object);
}

/* --- a hostile host ------------------------------------------------------------------------ */

/* It has shards that fit each other, of another object, and says that they are of this one. */
struct liar {
	struct net *net;
	struct ov_group truth, forged;
	uint8_t *shards[SHARDS];
	uint32_t bytes;
};

static void liar_send(struct liar *liar, uint64_t served, uint32_t index)
{
	int fd = memfd_new("lie");

	if (fd < 0 || write_full(fd, liar->shards[index], liar->bytes) < 0)
		_exit(3);
	net_reply(liar->net, served, 0, NULL, 0, fd, liar->bytes);
	close(fd);
}

static int liar_call(void *ctx, struct net *net, uint64_t served, const struct net_call *call)
{
	struct liar *liar = ctx;
	uint8_t bytes[NET_GROUP_MAX];

	liar->net = net;
	if (call->op == NET_OP_GROUP_GET) {
		net_reply(liar->net, served, 0, bytes,
			  (uint32_t)net_group_encode(&liar->forged, bytes), -1, 0);
		return 0;
	}
	if (call->op != NET_OP_GET)
		return -ENOENT;
	if (!memcmp(&call->object.hash, &liar->truth.hash, sizeof(liar->truth.hash)))
		return -EREMOTE;
	for (uint32_t i = 0; i < SHARDS; i++) {
		/* Its own shard: as long, and another one. */
		if (memcmp(&call->object.hash, &liar->forged.shards[i],
			   sizeof(liar->forged.shards[i])) != 0 &&
		    (i > 0 || memcmp(&call->object.hash, &liar->truth.shards[0],
				     sizeof(liar->truth.shards[0])) != 0))
			continue;
		liar_send(liar, served, i);
		return 0;
	}
	return -ENOENT;
}

static void liar_run(const struct test_host *host, const struct ov_group *truth)
{
	struct shard_head head = { .k = 4, .m = 2, .size = SIZE, .hash = truth->hash };
	struct liar liar = { .truth = *truth, .forged = *truth, .bytes = shard_bytes(SIZE, 4) };
	uint8_t *object = calloc(1, SIZE);

	for (uint32_t i = 0; i < SHARDS; i++)
		liar.shards[i] = malloc(liar.bytes);
	if (!object || shard_encode(&head, object, liar.shards) < 0)
		_exit(3);
	for (uint32_t i = 0; i < SHARDS; i++)
		SHA256(liar.shards[i], liar.bytes, liar.forged.shards[i].b);
	liar.forged.revision = UINT32_MAX;
	liar_serve(host, liar_call, &liar);
}

/* How often the host has said this. */
static uint32_t count_logged(struct test_host *host, const char *words)
{
	char text[LOG_MAX];
	uint32_t count = 0;

	read_log(host, text);
	for (const char *at = text; (at = strstr(at, words)); at++)
		count++;
	return count;
}

/*
 * Its shard has another hash, its group leads to another object: both are named, neither believed.
 * Until it listens, and when it is slow, the others are enough, for the one or for the other.
 */
static void liars_are_named(void **state)
{
	static const char group[] = "the group that it told is of another object";
	struct fixture *f = *state;
	struct test_host *reader = &f->hosts[0], *host = host_of(f, &f->group.holders[0]);
	uint64_t deadline = now_boot_ns() + 2 * WAIT_MS * UINT64_C(1000000);
	char shard[100];

	snprintf(shard, sizeof(shard), "gather: peer=%s (", host->identity.card.hostname);
	host_kill(host);
	f->liar = fork();
	assert_true(f->liar >= 0);
	if (f->liar == 0)
		liar_run(host, &f->group);
	f->object.holder_count = 1;
	f->object.holders[0] = f->group.holders[0];
	while (!has_logged(reader, group) || !has_logged(reader, shard)) {
		if (now_boot_ns() >= deadline) {
			int status = 0, ended = waitpid(f->liar, &status, WNOHANG);
			char log[LOG_MAX];

			f->liar = ended ? 0 : f->liar;
			read_log(reader, log);
			fail_msg("the liar: %d, status %#x; the host:\n%s", ended,
				 (unsigned int)status, log);
		}
		host_sleep_ms(500);
		host_get_checked(reader, &f->object);
	}
	assert_int_equal(stats_of(reader).bad_objects,
			 count_logged(reader, group) + count_logged(reader, shard));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(shards_are_read_until_too_many_are_gone, setup,
						teardown),
		cmocka_unit_test_setup_teardown(shards_earn, setup, teardown),
		cmocka_unit_test_setup_teardown(lost_shards_are_made_again, setup_repair, teardown),
		cmocka_unit_test_setup_teardown(a_rotten_shard_is_made_again_where_it_lay,
						setup_repair, teardown),
		cmocka_unit_test_setup_teardown(liars_are_named, setup_liar, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
