/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/sim/chaos.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "overlay/ipc.h"

enum { QUIET_MS = 400 * 1000, ANSWER_MS = 9000, DAY_MINUTES = 24 * 60 };

static void check_members(const struct chaos *chaos)
{
	const struct simnet *net = chaos->hosts->net;
	static const struct job_id none;

	for (uint32_t i = 0; i < net->node_count; i++) {
		const struct member_info *info;
		uint64_t now = simnet_local_ms(net, i);
		uint32_t alive = 0;

		for (uint32_t k = 0; (info = core_member(net->nodes[i].core, k, now)); k++)
			alive += info->state == MEMBER_ALIVE &&
				 simnet_index(net, &info->id) < SIMNET_NODES_MAX;
		if (alive != net->node_count)
			checker_fail(&chaos->hosts->checker, &none,
				     "quiet: a live member is not seen alive");
	}
}

static void check_job(struct chaos *chaos, uint32_t job, uint64_t got_before)
{
	struct hosts *hosts = chaos->hosts;
	struct hosts_job *j = &hosts->jobs[job];
	const struct job_value *current = checker_current(&hosts->checker, &j->id);

	if (!current)
		checker_fail(&hosts->checker, &j->id, "created, but never chosen");
	if (j->got_count > got_before && current->state >= JOB_STATE_COLLECTED &&
	    (j->got_status == -ENOENT || j->got_status == -EAGAIN))
		return; /* ended long ago, and forgotten by some or all */
	if (j->got_count == got_before || j->got_status != 0)
		fprintf(stderr, "sim: status %d\n", j->got_status);
	if (j->got_count == got_before || j->got_status != 0)
		checker_fail(&hosts->checker, &j->id, "quiet: cannot be read");
	if (fence_token_compare(&j->got.token, &current->token) != 0 ||
	    j->got.state != current->state)
		checker_fail(&hosts->checker, &j->id, "quiet: an old value was read");
	objects_check_restorable(hosts, current);
	if (current->state == JOB_STATE_COLLECTED || current->state == JOB_STATE_KILLED)
		return;
	/* Nobody is at home any more under the id that submitted it. */
	if (current->state == JOB_STATE_DONE &&
	    simnet_index(hosts->net, &current->home) == SIMNET_NODES_MAX)
		return;
	if (current->state != JOB_STATE_HELD)
		checker_fail(&hosts->checker, &j->id, "quiet: neither owned nor brought home");
	if (hosts_running(hosts, job) != simnet_index(hosts->net, &current->owner))
		checker_fail(&hosts->checker, &j->id, "quiet: its owner does not run it");
}

/* All jobs are read at once, each from some host. */
static void check_jobs(struct chaos *chaos)
{
	struct hosts *hosts = chaos->hosts;
	uint64_t before[HOSTS_JOBS_MAX];

	for (uint32_t i = 0; i < hosts->job_count; i++) {
		before[i] = hosts->jobs[i].got_count;
		if (hosts->jobs[i].created || checker_current(&hosts->checker, &hosts->jobs[i].id))
			hosts_get(hosts, chaos_draw_node(chaos), i);
	}
	simnet_run(hosts->net, hosts->net->now_ms + ANSWER_MS);
	for (uint32_t i = 0; i < hosts->job_count; i++)
		if (hosts->jobs[i].created || checker_current(&hosts->checker, &hosts->jobs[i].id))
			check_job(chaos, i, before[i]);
}

static void draw_lab(struct chaos_rates *r, struct simnet_dice *dice, uint32_t nodes,
		     uint32_t minutes)
{
	r->fault_ms = 20000 + dice_below(dice, 200000);
	r->user_ms = 30000;
	r->pause_ms = 120000;
	r->session_min = dice_below(dice, 4) ? 60 + dice_below(dice, 600) : 0;
	r->away_min = 5 + dice_below(dice, 240);
	r->announced = dice_below(dice, 101);
	r->notice_s = 30 + dice_below(dice, 600);
	r->rooms = nodes >= 20 ? 10 : 4;
	r->closing = nodes >= 8 && dice_below(dice, 4) ? r->rooms * 7 / 10 : 0;
	r->day_min = minutes < DAY_MINUTES ? minutes : DAY_MINUTES;
	r->night_min = r->day_min / 10 + dice_below(dice, r->day_min / 2);
	r->dawn_min = r->night_min + r->day_min / 3;
	r->jobs = nodes / 8 < 8 ? 8 : nodes / 8 > 64 ? 64 : nodes / 8;
	r->checkpoint_ms = 30000 + dice_below(dice, 300000);
	r->done_ppm = 5000;
	r->release_ppm = 20000;
	r->blip = 0;
}

/* Messages that take half a minute, cuts, and acceptors that change under both. */
static void draw_storm(struct chaos_rates *r)
{
	r->net.slow_ppm = 400000;
	r->net.slow_ms = 25000;
	r->fault_ms = 4000;
	r->user_ms = 600;
	r->vacate = 20;
	r->partition = 40;
	r->crash = 10;
	r->jobs = 4;
	r->release_ppm = 0;
	r->done_ppm = 1000;
}

/* Drawn before the net exists, from the seed alone. */
static void draw_rates(struct chaos_rates *r, uint64_t seed, uint32_t nodes, uint32_t minutes)
{
	struct simnet_dice dice = { .state = seed ^ UINT64_C(0x5eed) };

	*r = (struct chaos_rates){
		.net = {
			.loss_ppm = dice_below(&dice, 4) ? dice_below(&dice, 80000) : 0,
			.double_ppm = dice_below(&dice, 50000),
			.slow_ppm = dice_below(&dice, dice_below(&dice, 3) ? 30000 : 400000),
			.latency_ms = 2 + dice_below(&dice, 60),
			.slow_ms = 1 + dice_below(&dice, dice_below(&dice, 2) ? 6000 : 25000),
			.torn_ppm = dice_below(&dice, 3) ? 0 : dice_below(&dice, 10000),
			.drift_ppm = 1000,
		},
		.fault_ms = 3000 + dice_below(&dice, 6000),
		.user_ms = 3000,
		.crash = 10 + dice_below(&dice, 30),
		.partition = dice_below(&dice, 25),
		.one_way = dice_below(&dice, 15),
		.pause = dice_below(&dice, 15),
		.rollback = dice_below(&dice, 3) ? dice_below(&dice, 8) : 0,
		.pause_ms = 1000 + dice_below(&dice, 60000),
		.clockless = dice_below(&dice, 3) ? 0 : 20,
		.rooms = 3,
		.jobs = 4 + dice_below(&dice, 8),
		.checkpoint_ms = 4000,
		.done_ppm = 10000,
		.release_ppm = 60000,
		.vacate = dice_below(&dice, 3) ? dice_below(&dice, 20) : 0,
	};
	if (dice_below(&dice, 4) == 0)
		draw_storm(r);
	else if (dice_below(&dice, 2))
		r->blip = dice_below(&dice, 40);
	if (minutes > SIM_DENSE_MINUTES)
		draw_lab(r, &dice, nodes, minutes);
	r->plan = (enum chaos_plan)dice_below(&dice, PLAN_COUNT);
}

static void print_rates(const struct chaos_rates *r, uint64_t seed, uint32_t nodes,
			uint32_t minutes)
{
	static const char *const plans[PLAN_COUNT] = {
		"none",	     "absence",	   "leaving", "stall",	  "oblivion",
		"strangers", "standstill", "amnesia", "blackout",
	};
	const char *commit = getenv("SIM_COMMIT");

	printf("sim: seed=%" PRIu64 " nodes=%u minutes=%u commit=%s loss=%u double=%u slow=%u "
	       "torn=%u drift=%u ppm latency=%u slow=%u ms fault=%u user=%u ms crash=%u "
	       "partition=%u one_way=%u pause=%u rollback=%u %% pause=%u ms session=%u away=%u "
	       "min announced=%u %% rooms=%u closing=%u notice=%u s night=%u-%u/%u min "
	       "clockless=%u %% jobs=%u checkpoint=%u ms done=%u release=%u ppm vacate=%u blip=%u "
	       "%% plan=%s\n",
	       seed, nodes, minutes, commit ? commit : "unknown", r->net.loss_ppm,
	       r->net.double_ppm, r->net.slow_ppm, r->net.torn_ppm, r->net.drift_ppm,
	       r->net.latency_ms, r->net.slow_ms, r->fault_ms, r->user_ms, r->crash, r->partition,
	       r->one_way, r->pause, r->rollback, r->pause_ms, r->session_min, r->away_min,
	       r->announced, r->rooms, r->closing, r->notice_s, r->night_min, r->dawn_min,
	       r->day_min, r->clockless, r->jobs, r->checkpoint_ms, r->done_ppm, r->release_ppm,
	       r->vacate, r->blip, plans[r->plan]);
	fflush(stdout);
}

static void report(const struct chaos *chaos, int verbose, struct chaos_result *ret_result)
{
	const struct hosts *hosts = chaos->hosts;
	struct chaos_result result = {
		.events = hosts->net->event_count,
		.messages = hosts->net->message_count,
		.chosen = hosts->checker.chosen_count,
		.commits = hosts->commits,
		.grants = hosts->grants,
		.jobs = hosts->job_count,
		.epochs = hosts->checker.epoch_count,
		.virtual_ms = hosts->net->now_ms,
	};

	for (uint32_t i = 0; i < hosts->job_count; i++) {
		const struct job_value *value =
			checker_current(&hosts->checker, &hosts->jobs[i].id);

		result.ended += value && value->state >= JOB_STATE_DONE;
	}
	if (verbose)
		printf("sim: ok events=%" PRIu64 " messages=%" PRIu64 " chosen=%" PRIu64
		       " commits=%" PRIu64 " grants=%" PRIu64 " jobs=%" PRIu64 " ended=%" PRIu64
		       " epochs=%" PRIu64 " rollbacks=%" PRIu64 " planned=%u\n",
		       result.events, result.messages, result.chosen, result.commits, result.grants,
		       result.jobs, result.ended, result.epochs, chaos->rollbacks, chaos->planned);
	*ret_result = result;
}

/* A calm start: hosts meet, three jobs run. */
static void begin(struct chaos *chaos, uint64_t seed, uint32_t node_count)
{
	struct simnet_rates calm = { .latency_ms = 10, .drift_ppm = chaos->rates.net.drift_ppm };
	struct simnet *net;

	chaos->hosts = hosts_create(seed, node_count, &calm);
	net = chaos->hosts->net;
	for (uint32_t i = 0; i < node_count; i++) {
		snprintf(net->nodes[i].card.room, sizeof(net->nodes[i].card.room), "room%u",
			 i % chaos->rates.rooms);
		if (i && simnet_below(net, 100) < chaos->rates.clockless)
			net->nodes[i].report.flags |= MEMBER_LOSES_CLOCK;
	}
	hosts_start(chaos->hosts);
	for (uint32_t i = 0; i < 3; i++)
		hosts_submit(chaos->hosts, 0, true);
	simnet_run(net, net->now_ms + 2000);
	chaos->hosts->release_ppm = chaos->rates.release_ppm;
	chaos->hosts->done_ppm = chaos->rates.done_ppm;
	chaos->hosts->checkpoint_ms = chaos->rates.checkpoint_ms;
	chaos->hosts->aim = true;
}

static void be_quiet(struct chaos *chaos)
{
	faults_end(chaos);
	simnet_run(chaos->hosts->net, chaos->hosts->net->now_ms + QUIET_MS);
	check_members(chaos);
	check_jobs(chaos);
}

/* A run of a large lab takes minutes: who watches it sees how far it is. */
static void run_until(struct simnet *net, uint64_t until_ms)
{
	const uint64_t hour_ms = UINT64_C(3600000), hours = (until_ms - net->now_ms) / hour_ms;
	bool watched = isatty(STDERR_FILENO);

	for (uint64_t hour = 1; hour <= hours; hour++) {
		simnet_run(net, net->now_ms + hour_ms);
		if (watched)
			fprintf(stderr,
				"sim: hour %" PRIu64 " of %" PRIu64 ", %.1f million "
				"events, %.1f s of CPU\n",
				hour, hours, (double)net->event_count / 1e6,
				(double)clock() / CLOCKS_PER_SEC);
	}
	simnet_run(net, until_ms);
}

void chaos_run(uint64_t seed, uint32_t node_count, uint32_t minutes, int verbose,
	       struct chaos_result *ret_result)
{
	struct chaos *chaos = calloc(1, sizeof(*chaos));
	struct simnet *net;

	if (!chaos)
		abort();
	draw_rates(&chaos->rates, seed, node_count, minutes);
	if (verbose)
		print_rates(&chaos->rates, seed, node_count, minutes);
	begin(chaos, seed, node_count);
	net = chaos->hosts->net;
	chaos->until_ms = net->now_ms + minutes * UINT64_C(60000);
	faults_begin(chaos);
	run_until(net, chaos->until_ms);
	be_quiet(chaos);
	if (chaos->rates.plan) {
		plans_run(chaos);
		be_quiet(chaos);
	}
	report(chaos, verbose, ret_result);
	hosts_destroy(chaos->hosts);
	free(chaos);
}
