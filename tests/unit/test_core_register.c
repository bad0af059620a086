/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A job's life in a lab of five hosts. I1 and the chain of values are judged at every event. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "overlay/core/codec.h"
#include "overlay/ipc.h"
#include "tests/sim/hosts.h"

enum { HOSTS = 5, JOB = 0, HOLD_MS = 22000, SETTLE_MS = 3000 };

static const struct simnet_rates calm = { .latency_ms = 5, .drift_ppm = 400 };

/* One job, home and running on host 0, with some checkpoints. */
static struct hosts *lab_with(uint64_t seed, bool strict)
{
	struct hosts *hosts = hosts_create(seed, HOSTS, &calm);

	hosts_start(hosts);
	hosts_submit(hosts, 0, strict);
	simnet_run(hosts->net, hosts->net->now_ms + 20000);
	assert_int_equal(hosts->jobs[JOB].create_status, 0);
	assert_int_equal(hosts_running(hosts, JOB), 0);
	return hosts;
}

static struct hosts *lab(uint64_t seed)
{
	return lab_with(seed, true);
}

static void run_ms(struct hosts *hosts, uint64_t ms)
{
	simnet_run(hosts->net, hosts->net->now_ms + ms);
}

static const struct job_value *current(const struct hosts *hosts)
{
	return checker_current(&hosts->checker, &hosts->jobs[JOB].id);
}

/* Host index of an acceptor by rank. */
static uint32_t acceptor(const struct hosts *hosts, uint32_t rank)
{
	return simnet_index(hosts->net, &hosts->checker.jobs[JOB].acceptors.ids[rank]);
}

static int get(struct hosts *hosts, uint32_t node)
{
	uint64_t before = hosts->jobs[JOB].got_count;

	hosts_get(hosts, node, JOB);
	run_ms(hosts, 9000);
	assert_true(hosts->jobs[JOB].got_count > before);
	return hosts->jobs[JOB].got_status;
}

static int take(struct hosts *hosts, uint32_t node, uint32_t target)
{
	uint64_t before = hosts->jobs[JOB].take_count;

	hosts_take(hosts, node, JOB, target);
	for (uint32_t i = 0; i < 90 && hosts->jobs[JOB].take_count == before; i++)
		run_ms(hosts, 100);
	assert_true(hosts->jobs[JOB].take_count > before);
	return hosts->jobs[JOB].take_status;
}

static void checkpoints_are_committed(void **state)
{
	struct hosts *hosts = lab(1);

	(void)state;
	assert_int_equal(hosts->checker.jobs[JOB].acceptors.count, 5);
	assert_true(hosts->commits > 2);
	for (uint32_t i = 0; i < HOSTS; i++) {
		assert_int_equal(get(hosts, i), 0);
		assert_true(hosts->jobs[JOB].got.history[0].seq > 2);
	}
	assert_int_equal(hosts->losses, 0);
	hosts_destroy(hosts);
}

static void a_crashed_owner_is_replaced(void **state)
{
	struct hosts *hosts = lab(2);
	struct fence_token token = current(hosts)->token;
	uint64_t died_ms = hosts->net->now_ms, seq = current(hosts)->history[0].seq;

	(void)state;
	hosts_crash(hosts, 0, true);
	while (hosts_running(hosts, JOB) == SIMNET_NODES_MAX &&
	       hosts->net->now_ms < died_ms + 60000)
		run_ms(hosts, 100);
	assert_in_range(hosts->net->now_ms - died_ms, HOLD_MS - 5000 - 100, HOLD_MS + 6000);
	assert_true(hosts_running(hosts, JOB) != 0);
	assert_true(fence_token_compare(&current(hosts)->token, &token) > 0);
	assert_true(current(hosts)->history[0].seq >= seq);
	hosts_destroy(hosts);
}

/* The active guardian and the owner die at once: a later acceptor does the duty. */
static void guardians_stand_in(void **state)
{
	struct hosts *hosts = lab(3);
	uint32_t first = acceptor(hosts, 0) ? acceptor(hosts, 0) : acceptor(hosts, 1);

	(void)state;
	hosts_crash(hosts, first, true);
	hosts_crash(hosts, 0, true);
	run_ms(hosts, HOLD_MS + 12000);
	assert_in_range(hosts_running(hosts, JOB), 1, HOSTS - 1);
	hosts_destroy(hosts);
}

static void a_release_moves_at_once(void **state)
{
	struct hosts *hosts = lab(4);

	(void)state;
	hosts_release(hosts, 0, JOB, 3);
	run_ms(hosts, 1000);
	assert_int_equal(hosts_running(hosts, JOB), 3);
	assert_true(node_id_is_zero(&current(hosts)->target));
	/* The target is dead: any other. */
	hosts_crash(hosts, 2, true);
	run_ms(hosts, 12000);
	hosts_release(hosts, 3, JOB, 2);
	run_ms(hosts, SETTLE_MS);
	assert_true(hosts_running(hosts, JOB) < HOSTS);
	hosts_destroy(hosts);
}

static void nobody_willing_means_waiting(void **state)
{
	struct hosts *hosts = lab(5);
	uint64_t chosen;

	(void)state;
	for (uint32_t i = 0; i < HOSTS; i++) {
		hosts->net->nodes[i].report.flags = MEMBER_USER_PRESENT;
		simnet_report(hosts->net, i);
	}
	hosts_release(hosts, 0, JOB, SIMNET_NODES_MAX);
	run_ms(hosts, 30000);
	assert_int_equal(hosts_running(hosts, JOB), SIMNET_NODES_MAX);
	assert_int_equal(current(hosts)->state, JOB_STATE_IDLE);
	chosen = hosts->checker.chosen_count;
	run_ms(hosts, 30000);
	assert_int_equal(hosts->checker.chosen_count, chosen); /* no ballots for nothing */
	hosts->net->nodes[2].report.flags = MEMBER_TAKES_JOBS;
	simnet_report(hosts->net, 2);
	run_ms(hosts, SETTLE_MS);
	assert_int_equal(hosts_running(hosts, JOB), 2);
	hosts_destroy(hosts);
}

static void take_waits_for_the_lease(void **state)
{
	struct hosts *hosts = lab(6);

	(void)state;
	assert_int_equal(take(hosts, 4, 2), -EBUSY);
	assert_int_equal(hosts_running(hosts, JOB), 0);
	assert_int_equal(take(hosts, 4, 0), -EBUSY);
	hosts_crash(hosts, 0, true);
	run_ms(hosts, 1000);
	assert_int_equal(take(hosts, 4, 2), -EBUSY); /* dead, but the lease runs */
	for (uint32_t i = 1; i < HOSTS; i++) {
		hosts->net->nodes[i].report.flags = 0;
		simnet_report(hosts->net, i);
	}
	run_ms(hosts, HOLD_MS);
	assert_int_equal(take(hosts, 4, 0), -EHOSTUNREACH); /* the lease is over, the host dead */
	hosts_destroy(hosts);
}

static void take_of_an_idle_job(void **state)
{
	struct hosts *hosts = lab(7);

	(void)state;
	for (uint32_t i = 0; i < HOSTS; i++) {
		hosts->net->nodes[i].report.flags = MEMBER_USER_PRESENT;
		simnet_report(hosts->net, i);
	}
	hosts_release(hosts, 0, JOB, SIMNET_NODES_MAX);
	run_ms(hosts, SETTLE_MS);
	assert_int_equal(take(hosts, 1, 3), 0); /* by hand, somebody sits there or not */
	run_ms(hosts, SETTLE_MS);
	assert_int_equal(hosts_running(hosts, JOB), 3);
	hosts_destroy(hosts);
}

static void a_minority_cannot_commit(void **state)
{
	struct hosts *hosts = lab(8);
	uint64_t commits;

	(void)state;
	hosts->net->nodes[0].group = hosts->net->nodes[1].group = 1;
	run_ms(hosts, 1000);
	commits = hosts->commits;
	run_ms(hosts, 14000);
	assert_int_equal(hosts->commits, commits);
	run_ms(hosts, 6000); /* its lease is over */
	assert_true(hosts_running(hosts, JOB) != 0);
	run_ms(hosts, 12000);
	assert_in_range(hosts_running(hosts, JOB), 2, 4);
	hosts->net->nodes[0].group = hosts->net->nodes[1].group = 0;
	run_ms(hosts, 20000);
	assert_int_equal(hosts_at(hosts, 0, JOB)->phase, HOST_NONE); /* told that it lost */
	assert_in_range(hosts_running(hosts, JOB), 2, 4);
	assert_true(hosts->losses > 0);
	hosts_destroy(hosts);
}

static void values_and_holds_outlive_a_power_cut(void **state)
{
	struct hosts *hosts = lab(9);
	struct fence_token token = current(hosts)->token;
	uint64_t seq = current(hosts)->history[0].seq, back_ms;

	(void)state;
	for (uint32_t i = 0; i < HOSTS; i++)
		hosts_crash(hosts, i, true);
	run_ms(hosts, 60000);
	for (uint32_t i = 1; i < HOSTS; i++)
		simnet_start(hosts->net, i, 1);
	back_ms = hosts->net->now_ms;
	while (hosts_running(hosts, JOB) == SIMNET_NODES_MAX &&
	       hosts->net->now_ms < back_ms + 60000)
		run_ms(hosts, 100);
	/* A4: every hold started anew. */
	assert_in_range(hosts->net->now_ms - back_ms, HOLD_MS - 100, HOLD_MS + 8000);
	assert_true(fence_token_compare(&current(hosts)->token, &token) > 0);
	assert_true(current(hosts)->history[0].seq >= seq);
	hosts_destroy(hosts);
}

/* All daemons restart while the job runs on under its old lease: the same incarnation goes on. */
static void an_upgrade_leaves_the_job_running(void **state)
{
	struct hosts *hosts = lab(10);
	struct fence_token token = current(hosts)->token;

	(void)state;
	for (uint32_t i = 0; i < HOSTS; i++) {
		hosts_crash(hosts, i, false);
		run_ms(hosts, 500);
		simnet_start(hosts->net, i, (i + 1) % HOSTS);
	}
	for (uint32_t i = 0; i < 600; i++) {
		run_ms(hosts, 100);
		assert_int_equal(hosts_running(hosts, JOB), 0);
	}
	assert_int_equal(fence_token_compare(&current(hosts)->token, &token), 0);
	hosts_destroy(hosts);
}

static void stale_tokens_are_refused(void **state)
{
	struct hosts *hosts = lab(11);

	(void)state;
	assert_int_equal(get(hosts, 1), 0);
	hosts_release(hosts, 0, JOB, 2);
	run_ms(hosts, SETTLE_MS);
	assert_int_equal(hosts_running(hosts, JOB), 2);
	hosts_kill(hosts, 1, JOB); /* with the token read before */
	run_ms(hosts, 1000);
	assert_int_equal(hosts->jobs[JOB].kill_status, -ESTALE);
	assert_int_equal(hosts_running(hosts, JOB), 2);
	assert_int_equal(get(hosts, 1), 0);
	hosts_kill(hosts, 1, JOB);
	run_ms(hosts, 1000);
	assert_int_equal(hosts->jobs[JOB].kill_status, 0);
	assert_int_equal(hosts_running(hosts, JOB), SIMNET_NODES_MAX);
	hosts_kill(hosts, 1, JOB); /* a retry is a success */
	run_ms(hosts, 1000);
	assert_int_equal(hosts->jobs[JOB].kill_status, 0);
	run_ms(hosts, 60000);
	assert_int_equal(hosts_running(hosts, JOB), SIMNET_NODES_MAX);
	hosts_destroy(hosts);
}

static uint32_t record_count(const struct hosts *hosts)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < HOSTS; i++)
		count += hosts->net->nodes[i].disk.count;
	return count;
}

static void results_wait_for_home(void **state)
{
	struct hosts *hosts = lab(12);

	(void)state;
	hosts_release(hosts, 0, JOB, 2);
	run_ms(hosts, SETTLE_MS);
	hosts_crash(hosts, 0, true);
	run_ms(hosts, 15000);
	hosts_end(hosts, 2, JOB);
	run_ms(hosts, 60000);
	assert_int_equal(current(hosts)->state, JOB_STATE_DONE);
	simnet_start(hosts->net, 0, 1);
	run_ms(hosts, 10000);
	assert_int_equal(current(hosts)->state, JOB_STATE_COLLECTED);
	assert_int_equal(record_count(hosts), HOSTS);
	run_ms(hosts, 9 * 60000); /* a tombstone first, then nothing */
	assert_int_equal(record_count(hosts), HOSTS);
	assert_int_equal(hosts->checker.jobs[JOB].tombstones, 0);
	run_ms(hosts, 3 * 60000);
	assert_int_equal(record_count(hosts), 0);
	assert_int_equal(hosts->checker.jobs[JOB].tombstones, HOSTS); /* on the store's side */
	assert_int_equal(get(hosts, 3), -ENOENT);
	assert_int_equal(hosts_running(hosts, JOB), SIMNET_NODES_MAX);
	hosts_destroy(hosts);
}

/* A host that slept through the end and the burial still has the job as its own, and lets go. */
static void the_dead_stay_dead(void **state)
{
	struct hosts *hosts = lab(13);

	(void)state;
	hosts->net->nodes[4].group = 1;
	run_ms(hosts, 1000);
	assert_int_equal(get(hosts, 1), 0);
	hosts_kill(hosts, 1, JOB);
	run_ms(hosts, 12 * 60000);
	assert_int_equal(record_count(hosts), 1);
	assert_int_equal(hosts->checker.jobs[JOB].tombstones, 4);
	hosts->net->nodes[4].group = 0;
	run_ms(hosts, 5 * 60000);
	assert_int_equal(hosts_running(hosts, JOB), SIMNET_NODES_MAX);
	run_ms(hosts, 10 * 60000);
	assert_int_equal(record_count(hosts), 0);
	hosts_destroy(hosts);
}

/* Of the RELEASE that host 0 sends, only host 4 hears. */
static bool released;

static bool only_one_hears(struct hosts *hosts, uint32_t node, const struct core_send *send)
{
	static struct core_message m;

	if (((const uint8_t *)send->bytes)[1] != CORE_MSG_ACCEPT)
		return true;
	assert_int_equal(core_message_decode(send->bytes, send->size, &m), 0);
	if (node || m.value.state != JOB_STATE_IDLE)
		return true;
	released = true;
	return simnet_index(hosts->net, &send->to) == 4;
}

/*
 * The owner's last word was its RELEASE, then the power fails everywhere. It is given the job again
 * and runs it. When that RELEASE is found at last, it must not free the job under that run.
 */
static void a_release_of_before_the_power_cut_frees_nothing(void **state)
{
	struct hosts *hosts = lab(14);
	struct fence_token token = current(hosts)->token;

	(void)state;
	for (uint32_t i = 0; i < HOSTS; i++) {
		hosts->net->nodes[i].report.flags &= ~(uint32_t)MEMBER_STORES_PACKS;
		simnet_report(hosts->net, i);
	}
	run_ms(hosts, 16000); /* no checkpoint is under way */
	released = false;
	hosts->watch = only_one_hears;
	hosts_release(hosts, 0, JOB, SIMNET_NODES_MAX);
	while (!released)
		run_ms(hosts, 1);
	run_ms(hosts, 20);
	hosts->watch = NULL;
	for (uint32_t i = 0; i < HOSTS; i++)
		hosts_crash(hosts, i, true);
	for (uint32_t i = 0; i < 4; i++)
		simnet_start(hosts->net, i, i);
	for (uint32_t i = 0; i < 200 && hosts_running(hosts, JOB) != 0; i++)
		run_ms(hosts, 100);
	assert_int_equal(hosts_running(hosts, JOB), 0);
	hosts->net->nodes[0].group = hosts->net->nodes[3].group = 1;
	simnet_start(hosts->net, 4, 1);
	run_ms(hosts, 1000);
	assert_int_equal(get(hosts, 1), 0);
	assert_int_equal(hosts->jobs[JOB].got.state, JOB_STATE_HELD);
	assert_int_equal(hosts_running(hosts, JOB), 0);
	/* It restored nothing under the old token. */
	assert_true(fence_token_compare(&hosts_at(hosts, 0, JOB)->token, &token) > 0);
	run_ms(hosts, HOLD_MS + 6000);
	assert_true(hosts_running(hosts, JOB) == 1 || hosts_running(hosts, JOB) == 2 ||
		    hosts_running(hosts, JOB) == 4);
	hosts_destroy(hosts);
}

/* Of the end that host 1 proposes, only host 4 hears, and is alone from then on. */
static bool only_one_hears_the_end(struct hosts *hosts, uint32_t node, const struct core_send *send)
{
	static struct core_message m;

	if (((const uint8_t *)send->bytes)[1] != CORE_MSG_ACCEPT)
		return true;
	assert_int_equal(core_message_decode(send->bytes, send->size, &m), 0);
	if (node != 1 || m.value.state != JOB_STATE_KILLED)
		return true;
	released = true;
	return simnet_index(hosts->net, &send->to) == 4;
}

/*
 * An end that was accepted long ago and is chosen only now is remembered for ten minutes from now:
 * what speaks against it may have been said a moment ago.
 */
static void an_old_end_is_remembered_once_it_is_chosen(void **state)
{
	struct hosts *hosts = lab(17);

	(void)state;
	assert_int_equal(get(hosts, 1), 0);
	released = false;
	hosts->watch = only_one_hears_the_end;
	hosts_kill(hosts, 1, JOB);
	while (!released)
		run_ms(hosts, 1);
	run_ms(hosts, 20);
	hosts->watch = NULL;
	for (uint32_t i = 0; i < 4; i++)
		hosts_crash(hosts, i, true);
	run_ms(hosts, 12 * 60000);
	for (uint32_t i = 0; i < 2; i++) /* a bare majority: what was accepted is finished */
		simnet_start(hosts->net, i, i);
	run_ms(hosts, 30000);
	assert_int_equal(current(hosts)->state, JOB_STATE_KILLED);
	assert_int_equal(record_count(hosts), HOSTS);
	for (uint32_t i = 2; i < 4; i++)
		simnet_start(hosts->net, i, i);
	run_ms(hosts, 25 * 60000);
	assert_int_equal(record_count(hosts), 0);
	hosts_destroy(hosts);
}

static bool lost;

static bool lose_checkpoints(struct hosts *hosts, uint32_t node, const struct core_send *send)
{
	bool accept = ((const uint8_t *)send->bytes)[1] == CORE_MSG_ACCEPT;

	(void)hosts;
	lost |= !node && accept;
	return node || !accept;
}

/*
 * The owner's machine stands still, clock and all, in the midst of a commit. When it goes on, the
 * job has long been taken over, ended and forgotten; the commit must not begin it anew.
 */
static void a_clock_that_stood_still_wakes_no_dead(void **state)
{
	struct hosts *hosts = lab_with(16, false); /* strict jobs do not go there */

	(void)state;
	lost = false;
	hosts->watch = lose_checkpoints;
	while (!lost)
		run_ms(hosts, 1);
	hosts->watch = NULL;
	simnet_pause(hosts->net, 0, 30 * 60000, true);
	run_ms(hosts, HOLD_MS + 10000);
	assert_int_equal(get(hosts, 1), 0);
	hosts_kill(hosts, 1, JOB);
	run_ms(hosts, 28 * 60000);
	assert_int_equal(record_count(hosts), 1);
	run_ms(hosts, 3 * 60000);
	assert_int_equal(current(hosts)->state, JOB_STATE_KILLED);
	assert_int_equal(hosts_running(hosts, JOB), SIMNET_NODES_MAX);
	assert_int_equal(record_count(hosts), 1);
	run_ms(hosts, 12 * 60000);
	assert_int_equal(record_count(hosts), 0);
	hosts_destroy(hosts);
}

/* Granted again and again, it takes as many tokens, and nobody else is disturbed. */
static void every_restore_has_a_token_of_its_own(void **state)
{
	struct hosts *hosts = lab(15);
	struct fence_token token = current(hosts)->token;

	(void)state;
	for (uint32_t i = 0; i < 3; i++) {
		/* Back before the hold is over, everywhere: nobody knows that it renewed. */
		for (uint32_t k = 0; k < HOSTS; k++)
			hosts_crash(hosts, k, true);
		for (uint32_t k = 0; k < HOSTS; k++)
			simnet_start(hosts->net, k, k);
		run_ms(hosts, 18000);
		assert_int_equal(hosts_running(hosts, JOB), 0);
		assert_true(fence_token_compare(&current(hosts)->token, &token) > 0);
		assert_true(
			node_id_equal(&current(hosts)->token.node, &hosts->net->nodes[0].card.id));
		token = current(hosts)->token;
	}
	hosts_destroy(hosts);
}

static uint64_t renewed_ms; /* when the last renewal for the ranks that still hear was sent */

/* Of the owner's renewals only two acceptors hear, by rank the third and fourth of the others. */
static bool two_hear_renewals(struct hosts *hosts, uint32_t node, const struct core_send *send)
{
	const uint32_t *others = hosts->watch_ctx;
	uint32_t to = simnet_index(hosts->net, &send->to);

	if (node || ((const uint8_t *)send->bytes)[1] != CORE_MSG_RENEW)
		return true;
	if (to == others[2])
		renewed_ms = hosts->net->now_ms;
	return to == others[2] || to == others[3];
}

/*
 * The owner dies, an acceptor itself. When the first guardian's hold and another one's are over,
 * the last two still hold the job for the dead owner's last renewal: two promises and two BUSY of
 * five decide nothing. Whoever said BUSY has to be asked again as soon as its hold is over; and
 * who asks is the only one that may run the job, so that no other guardian can do it instead.
 */
static bool ask_again(uint64_t seed)
{
	struct hosts *hosts = lab(seed);
	uint32_t others[HOSTS - 1], count = 0;
	uint64_t over_ms;
	bool at_once;

	for (uint32_t rank = 0; rank < HOSTS; rank++)
		if (acceptor(hosts, rank))
			others[count++] = acceptor(hosts, rank);
	assert_int_equal(count, HOSTS - 1);
	for (uint32_t i = 1; i < HOSTS - 1; i++) {
		hosts->net->nodes[others[i]].report.flags = MEMBER_STORES_PACKS;
		simnet_report(hosts->net, others[i]);
	}
	run_ms(hosts, 1000);
	renewed_ms = 0;
	hosts->watch_ctx = others;
	hosts->watch = two_hear_renewals;
	while (!renewed_ms)
		run_ms(hosts, 1);
	run_ms(hosts, 500);
	assert_true(hosts->net->now_ms < renewed_ms + 1000); /* no other round meanwhile */
	hosts_crash(hosts, 0, true);
	over_ms = renewed_ms + HOLD_MS;
	while (hosts_running(hosts, JOB) == SIMNET_NODES_MAX && hosts->net->now_ms < over_ms + 9000)
		run_ms(hosts, 10);
	if (hosts_running(hosts, JOB) != SIMNET_NODES_MAX)
		assert_int_equal(hosts_running(hosts, JOB), others[0]);
	assert_true(hosts->net->now_ms >= over_ms - 50);
	/* Clock rates, some messages each way, and what the new owner says before it runs. */
	at_once = hosts->net->now_ms <= over_ms + 500;
	hosts_destroy(hosts);
	return at_once;
}

/*
 * Some latencies let the first one ask while the second one's hold still has some ms to go. In a
 * few, another guardian asks in the same ms with a higher ballot, and two acceptors begin a hold
 * for the one who is refused by the third: not what this is about. Without being asked again, it
 * takes 3 s with every seed.
 */
static void who_said_busy_is_asked_again(void **state)
{
	uint32_t late = 0;

	(void)state;
	for (uint64_t seed = 17; seed < 27; seed++)
		late += !ask_again(seed);
	assert_in_range(late, 0, 2);
}

struct recording {
	uint32_t from;
	uint8_t bytes[CORE_MESSAGE_MAX];
	size_t size;
};

/* Keeps the last RENEWED of one acceptor to host 0; it arrives all the same. */
static bool record_renewed(struct hosts *hosts, uint32_t node, const struct core_send *send)
{
	struct recording *recording = hosts->watch_ctx;

	if (node != recording->from || ((const uint8_t *)send->bytes)[1] != CORE_MSG_RENEWED ||
	    simnet_index(hosts->net, &send->to) != 0)
		return true;
	memcpy(recording->bytes, send->bytes, send->size);
	recording->size = send->size;
	return true;
}

/* Acknowledgements of before, said again while the owner is cut off, extend no lease. */
static void replayed_renewals_extend_nothing(void **state)
{
	struct hosts *hosts = lab(23);
	static struct recording recordings[2];
	const struct core_update *update;
	uint64_t cut_ms;

	(void)state;
	for (uint32_t i = 0; i < 2; i++) {
		recordings[i].from = i + 1;
		hosts->watch_ctx = &recordings[i];
		hosts->watch = record_renewed;
		run_ms(hosts, 6000);
		assert_true(recordings[i].size > 0);
	}
	run_ms(hosts, 6000);
	assert_int_equal(core_refusals(hosts->net->nodes[0].core)->replies, 0);
	hosts->net->nodes[0].group = 1;
	cut_ms = hosts->net->now_ms;
	while (hosts->net->now_ms < cut_ms + HOLD_MS) {
		for (uint32_t i = 0; i < 2; i++) {
			struct core_event event = {
				.type = CORE_EV_MESSAGE,
				.now_ms = simnet_local_ms(hosts->net, 0),
				.node = hosts->net->nodes[i + 1].card.id,
				.bytes = recordings[i].bytes,
				.size = recordings[i].size,
			};

			assert_int_equal(core_step(hosts->net->nodes[0].core, &event, &update), 0);
			for (uint32_t k = 0; k < update->notice_count; k++)
				assert_int_not_equal(update->notices[k].type, CORE_LEASE);
		}
		run_ms(hosts, 500);
	}
	assert_true(core_refusals(hosts->net->nodes[0].core)->replies > 40);
	assert_int_not_equal(hosts_running(hosts, JOB), 0);
	hosts_destroy(hosts);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(checkpoints_are_committed),
		cmocka_unit_test(a_crashed_owner_is_replaced),
		cmocka_unit_test(guardians_stand_in),
		cmocka_unit_test(a_release_moves_at_once),
		cmocka_unit_test(nobody_willing_means_waiting),
		cmocka_unit_test(take_waits_for_the_lease),
		cmocka_unit_test(take_of_an_idle_job),
		cmocka_unit_test(a_minority_cannot_commit),
		cmocka_unit_test(values_and_holds_outlive_a_power_cut),
		cmocka_unit_test(an_upgrade_leaves_the_job_running),
		cmocka_unit_test(stale_tokens_are_refused),
		cmocka_unit_test(results_wait_for_home),
		cmocka_unit_test(the_dead_stay_dead),
		cmocka_unit_test(a_release_of_before_the_power_cut_frees_nothing),
		cmocka_unit_test(an_old_end_is_remembered_once_it_is_chosen),
		cmocka_unit_test(a_clock_that_stood_still_wakes_no_dead),
		cmocka_unit_test(every_restore_has_a_token_of_its_own),
		cmocka_unit_test(who_said_busy_is_asked_again),
		cmocka_unit_test(replayed_renewals_extend_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
