/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Acceptors of a job that die, leave or come, in a lab of eight hosts judged at every event. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "overlay/core/state.h"
#include "tests/sim/hosts.h"

enum { HOSTS = 8, JOB = 0, REPLACED_MS = 120 * 1000 };

static const struct simnet_rates calm = { .latency_ms = 5, .drift_ppm = 1000 };

static void run_ms(struct hosts *hosts, uint64_t ms)
{
	simnet_run(hosts->net, hosts->net->now_ms + ms);
}

/* One job, home and running on host 0, with some checkpoints. */
static struct hosts *lab(uint64_t seed)
{
	struct hosts *hosts = hosts_create(seed, HOSTS, &calm);

	hosts_start(hosts);
	hosts_submit(hosts, 0, true);
	run_ms(hosts, 20000);
	assert_int_equal(hosts->jobs[JOB].create_status, 0);
	assert_int_equal(hosts_running(hosts, JOB), 0);
	return hosts;
}

static const struct core_acceptors *acceptors(const struct hosts *hosts)
{
	return &hosts->checker.jobs[JOB].acceptors;
}

static uint32_t epoch(const struct hosts *hosts)
{
	return hosts->checker.jobs[JOB].epoch_count - 1;
}

static bool is_acceptor(const struct hosts *hosts, uint32_t node)
{
	return core_acceptors_rank(acceptors(hosts), &hosts->net->nodes[node].card.id) != CORE_NONE;
}

/* The first acceptor that is not host 0. */
static uint32_t victim(const struct hosts *hosts)
{
	for (uint32_t i = 1; i < HOSTS; i++)
		if (hosts->net->nodes[i].core && is_acceptor(hosts, i))
			return i;
	fail();
	return 0;
}

/* Runs until the set of acceptors is another; returns how long that took. */
static uint64_t wait_epoch(struct hosts *hosts, uint32_t wanted, uint64_t most_ms)
{
	uint64_t start_ms = hosts->net->now_ms;

	while (epoch(hosts) < wanted && hosts->net->now_ms < start_ms + most_ms) {
		run_ms(hosts, 100);
		/* The job itself notices nothing. */
		assert_int_equal(hosts_running(hosts, JOB), 0);
	}
	assert_int_equal(epoch(hosts), wanted);
	return hosts->net->now_ms - start_ms;
}

static int get(struct hosts *hosts, uint32_t node)
{
	uint64_t before = hosts->jobs[JOB].got_count;

	hosts_get(hosts, node, JOB);
	run_ms(hosts, 9000);
	assert_true(hosts->jobs[JOB].got_count > before);
	return hosts->jobs[JOB].got_status;
}

static void a_silent_one_is_replaced(void **state)
{
	struct hosts *hosts = lab(1);
	uint32_t dead = victim(hosts);
	uint64_t commits;

	(void)state;
	assert_int_equal(acceptors(hosts)->count, 5);
	assert_int_equal(epoch(hosts), 0);
	hosts_crash(hosts, dead, true);
	assert_in_range(wait_epoch(hosts, 1, REPLACED_MS), 60000, REPLACED_MS);
	assert_int_equal(acceptors(hosts)->count, 5);
	assert_false(is_acceptor(hosts, dead));
	commits = hosts->commits;
	run_ms(hosts, 60000);
	assert_true(hosts->commits > commits);
	assert_int_equal(epoch(hosts), 1);
	/* It comes back as a stranger, and is shown the way. */
	simnet_start(hosts->net, dead, 0);
	run_ms(hosts, 15000);
	assert_int_equal(get(hosts, dead), 0);
	assert_false(is_acceptor(hosts, dead));
	assert_int_equal(hosts->losses, 0);
	hosts_destroy(hosts);
}

static void who_says_that_it_leaves_is_replaced_at_once(void **state)
{
	struct hosts *hosts = lab(2);
	uint32_t leaving = victim(hosts);

	(void)state;
	hosts->net->nodes[leaving].report.flags |= MEMBER_VACATING;
	simnet_report(hosts->net, leaving);
	assert_in_range(wait_epoch(hosts, 1, REPLACED_MS), 0, 15000);
	assert_false(is_acceptor(hosts, leaving));
	leaving = victim(hosts);
	simnet_leave(hosts->net, leaving);
	run_ms(hosts, 100);
	hosts_crash(hosts, leaving, true);
	assert_in_range(wait_epoch(hosts, 2, REPLACED_MS), 0, 15000);
	assert_false(is_acceptor(hosts, leaving));
	hosts_destroy(hosts);
}

/* More disks are lost than a register ever had; never two at a time. */
static void all_of_them_may_go_one_by_one(void **state)
{
	struct hosts *hosts = lab(3);
	uint64_t commits = hosts->commits;

	(void)state;
	for (uint32_t i = 0; i < HOSTS; i++) {
		uint32_t lost = victim(hosts);

		hosts_crash(hosts, lost, true);
		hosts_rollback(hosts, lost, true);
		simnet_start(hosts->net, lost, 0);
		run_ms(hosts, REPLACED_MS);
		assert_int_equal(hosts_running(hosts, JOB), 0);
		assert_true(epoch(hosts) > i);
		assert_true(hosts->commits > commits);
		commits = hosts->commits;
	}
	for (uint32_t i = 0; i < HOSTS; i++)
		assert_int_equal(get(hosts, i), 0);
	assert_int_equal(hosts->losses, 0);
	hosts_destroy(hosts);
}

static void a_lone_host_gets_company(void **state)
{
	struct hosts *hosts = hosts_create(4, HOSTS, &calm);

	(void)state;
	simnet_start(hosts->net, 0, 0);
	run_ms(hosts, 6000);
	hosts_submit(hosts, 0, true);
	run_ms(hosts, 2000);
	assert_int_equal(acceptors(hosts)->count, 1);
	simnet_start(hosts->net, 1, 0);
	run_ms(hosts, 30000);
	assert_int_equal(acceptors(hosts)->count, 1); /* of two, neither may fail */
	simnet_start(hosts->net, 2, 0);
	run_ms(hosts, 30000);
	assert_int_equal(acceptors(hosts)->count, 3);
	for (uint32_t i = 3; i < HOSTS; i++)
		simnet_start(hosts->net, i, 0);
	run_ms(hosts, 60000);
	assert_int_equal(acceptors(hosts)->count, 5);
	assert_int_equal(hosts_running(hosts, JOB), 0);
	/* So its own death is survived now. */
	hosts_crash(hosts, 0, true);
	run_ms(hosts, 40000);
	assert_in_range(hosts_running(hosts, JOB), 1, HOSTS - 1);
	hosts_destroy(hosts);
}

/* A host that was away while all acceptors it knew were replaced, and whose owner it still is. */
static void who_slept_through_epochs_finds_the_job(void **state)
{
	struct hosts *hosts = lab(5);
	struct fence_token token = hosts_at(hosts, 0, JOB)->token;

	(void)state;
	hosts->net->nodes[0].group = 1;
	run_ms(hosts, 60000);
	assert_in_range(hosts_running(hosts, JOB), 1, HOSTS - 1);
	for (uint32_t i = 0; i < 3; i++) {
		uint32_t lost = victim(hosts);

		hosts_crash(hosts, lost, true);
		run_ms(hosts, REPLACED_MS);
		simnet_start(hosts->net, lost, 7);
		run_ms(hosts, 10000);
	}
	assert_true(epoch(hosts) >= 3);
	hosts->net->nodes[0].group = 0;
	run_ms(hosts, 40000);
	/* Told that it lost; and the register can be read there. */
	assert_false(hosts_at(hosts, 0, JOB)->phase == HOST_RUNNING &&
		     fence_token_compare(&hosts_at(hosts, 0, JOB)->token, &token) == 0);
	assert_int_equal(get(hosts, 0), 0);
	hosts_destroy(hosts);
}

/*
 * At the first INSTALL, who sends it, who is new, and one acceptor more are cut off from the other
 * three, from the one that leaves and from the owner. Three of both epochs are on either side.
 */
static uint32_t proposer;

static bool cut_at_install(struct hosts *hosts, uint32_t node, const struct core_send *send)
{
	static struct core_message m;
	bool one_more = true;

	if (((const uint8_t *)send->bytes)[1] != CORE_MSG_INSTALL)
		return true;
	hosts->watch = NULL;
	proposer = node;
	assert_int_equal(core_message_decode(send->bytes, send->size, &m), 0);
	for (uint32_t i = 0; i < HOSTS; i++) {
		const struct node_id *id = &hosts->net->nodes[i].card.id;
		bool old = core_acceptors_rank(&m.previous, id) != CORE_NONE;
		bool new = core_acceptors_rank(&m.acceptors, id) != CORE_NONE;
		bool first_side = i == node || !old;

		if (old && new &&i && i != node &&one_more) {
			first_side = true;
			one_more = false;
		}
		hosts->net->nodes[i].group = !first_side || i == 0;
	}
	return true;
}

/* Of the first epoch. */
static bool was_acceptor(const struct hosts *hosts, uint32_t node)
{
	return core_acceptors_rank(&hosts->checker.jobs[JOB].epochs[0].acceptors,
				   &hosts->net->nodes[node].card.id) != CORE_NONE;
}

/* A lab whose job is changing its acceptors when it is cut in two; the proposer is not host 0. */
static struct hosts *cut_lab(uint64_t first_seed)
{
	for (uint64_t seed = first_seed;; seed++) {
		struct hosts *hosts = lab(seed);
		uint32_t leaving = victim(hosts);

		hosts->watch = cut_at_install;
		hosts->net->nodes[leaving].report.flags |= MEMBER_VACATING;
		simnet_report(hosts->net, leaving);
		while (hosts->watch)
			run_ms(hosts, 10);
		/* Host 0 is an acceptor of both epochs, so that its side is a majority of the old. */
		if (proposer && was_acceptor(hosts, 0) && hosts->net->nodes[leaving].group)
			return hosts;
		hosts_destroy(hosts);
	}
}

/* A2, A3: the old majority has the owner, the new one waits for its lease, never both. */
static void a_cut_between_seal_and_install(void **state)
{
	(void)state;
	for (uint64_t seed = 100; seed < 600; seed += 100) {
		struct hosts *hosts = cut_lab(seed);

		run_ms(hosts, 90000);
		assert_in_range(hosts_running(hosts, JOB), 1, HOSTS - 1);
		for (uint32_t i = 0; i < HOSTS; i++)
			hosts->net->nodes[i].group = 0;
		run_ms(hosts, 60000);
		assert_int_equal(get(hosts, 0), 0);
		hosts_destroy(hosts);
	}
}

/* F1: who slept through a job's last epoch and its end can not begin that epoch once more. */
static void what_has_ended_is_not_installed_again(void **state)
{
	(void)state;
	for (uint64_t seed = 100; seed < 600; seed += 100) {
		struct hosts *hosts = cut_lab(seed);
		uint32_t reader = 0;

		run_ms(hosts, 60000);
		reader = hosts_running(hosts, JOB);
		assert_in_range(reader, 1, HOSTS - 1);
		for (uint32_t i = 0; i < HOSTS; i++)
			if (hosts->net->nodes[i].group)
				simnet_crash(hosts->net, i);
		assert_int_equal(get(hosts, reader), 0);
		hosts_kill(hosts, reader, JOB);
		run_ms(hosts, 25 * 60000);
		/* The sleepers come back; of the others, only those who are new are still there. */
		for (uint32_t i = 0; i < HOSTS; i++)
			if (!hosts->net->nodes[i].group) {
				/* What they remember of it is gone, too. */
				simnet_crash(hosts->net, i);
				if (!was_acceptor(hosts, i))
					simnet_start(hosts->net, i, i);
			}
		for (uint32_t i = 0; i < HOSTS; i++) {
			if (hosts->net->nodes[i].group)
				simnet_start(hosts->net, i, i);
			hosts->net->nodes[i].group = 0;
		}
		for (uint32_t i = 1; i < HOSTS; i++)
			if (hosts->net->nodes[0].core && hosts->net->nodes[i].core)
				simnet_greet(hosts->net, 0, i);
		run_ms(hosts, 5 * 60000);
		assert_int_equal(hosts_running(hosts, JOB), SIMNET_NODES_MAX);
		hosts_destroy(hosts);
	}
}

static uint32_t record_count(const struct hosts *hosts)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < HOSTS; i++)
		count += hosts->net->nodes[i].disk.count;
	return count;
}

static void signposts_are_taken_down(void **state)
{
	struct hosts *hosts = lab(6);
	uint32_t dead = victim(hosts);

	(void)state;
	hosts_crash(hosts, dead, true);
	run_ms(hosts, REPLACED_MS);
	simnet_start(hosts->net, dead, 0);
	run_ms(hosts, 30000);
	assert_int_equal(record_count(hosts), 6); /* five acceptors, one signpost */
	assert_int_equal(get(hosts, 1), 0);
	hosts_kill(hosts, 1, JOB);
	run_ms(hosts, 45 * 60000);
	assert_int_equal(record_count(hosts), 0);
	assert_int_equal(hosts_running(hosts, JOB), SIMNET_NODES_MAX);
	hosts_destroy(hosts);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_silent_one_is_replaced),
		cmocka_unit_test(who_says_that_it_leaves_is_replaced_at_once),
		cmocka_unit_test(all_of_them_may_go_one_by_one),
		cmocka_unit_test(a_lone_host_gets_company),
		cmocka_unit_test(who_slept_through_epochs_finds_the_job),
		cmocka_unit_test(signposts_are_taken_down),
		cmocka_unit_test(a_cut_between_seal_and_install),
		cmocka_unit_test(what_has_ended_is_not_installed_again),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
