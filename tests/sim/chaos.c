/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/sim/chaos.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "overlay/ipc.h"
#include "tests/sim/hosts.h"

enum { QUIET_MS = 180 * 1000, FAULT_EVERY_MS = 6000, USER_EVERY_MS = 3000 };

struct chaos {
	struct hosts *hosts;
	uint64_t until_ms;
	uint32_t crash_weight, partition_weight;
	uint32_t jobs_max;
};

static uint32_t draw_node(struct chaos *chaos)
{
	return simnet_below(chaos->hosts->net, chaos->hosts->net->node_count);
}

static void restart(void *ctx, uint64_t node)
{
	struct chaos *chaos = ctx;

	simnet_start(chaos->hosts->net, (uint32_t)node, (uint32_t)node);
}

static void heal(void *ctx, uint64_t argument)
{
	struct chaos *chaos = ctx;

	(void)argument;
	for (uint32_t i = 0; i < chaos->hosts->net->node_count; i++)
		chaos->hosts->net->nodes[i].group = 0;
}

static void fault(void *ctx, uint64_t argument)
{
	struct chaos *chaos = ctx;
	struct simnet *net = chaos->hosts->net;
	uint32_t draw = simnet_below(net, 100), node = draw_node(chaos);
	uint64_t now = net->now_ms;

	if (now >= chaos->until_ms)
		return;
	if (draw < chaos->crash_weight && net->nodes[node].core) {
		hosts_crash(chaos->hosts, node, simnet_chance(net, 600000));
	} else if (draw < chaos->crash_weight + chaos->partition_weight) {
		bool alone = simnet_chance(net, 500000);

		for (uint32_t i = 0; i < net->node_count; i++)
			net->nodes[i].group = alone ? i == node : simnet_below(net, 2);
		simnet_at(net, now + 1000 + simnet_below(net, 60000), heal, chaos, 0);
	}
	for (uint32_t i = 0; i < net->node_count; i++)
		if (!net->nodes[i].core && simnet_chance(net, 250000))
			simnet_at(net, now + simnet_below(net, 5000), restart, chaos, i);
	simnet_at(net, now + 1 + simnet_below(net, 2 * FAULT_EVERY_MS), fault, chaos, argument);
}

static void user(void *ctx, uint64_t argument)
{
	struct chaos *chaos = ctx;
	struct hosts *hosts = chaos->hosts;
	struct simnet *net = hosts->net;
	uint32_t draw = simnet_below(net, 100), node = draw_node(chaos);
	uint32_t job = simnet_below(net, hosts->job_count);

	if (net->now_ms >= chaos->until_ms)
		return;
	if (net->nodes[node].core) {
		if (hosts->job_count < chaos->jobs_max && draw < 25)
			hosts_submit(hosts, node, simnet_chance(net, 800000));
		else if (hosts->job_count && draw < 45)
			hosts_get(hosts, node, job);
		else if (hosts->job_count && draw < 65)
			hosts_take(hosts, node, job, draw_node(chaos));
		else if (hosts->job_count && draw < 67 && hosts->jobs[job].got_count &&
			 hosts->jobs[job].got_status == 0)
			hosts_kill(hosts, node, job);
		else if (draw < 80) {
			net->nodes[node].report.flags ^= MEMBER_TAKES_JOBS;
			simnet_report(net, node);
		}
	}
	simnet_at(net, net->now_ms + 1 + simnet_below(net, 2 * USER_EVERY_MS), user, chaos,
		  argument);
}

static void quieten(struct chaos *chaos)
{
	struct hosts *hosts = chaos->hosts;
	struct simnet *net = hosts->net;

	memset(&net->rates, 0, sizeof(net->rates));
	net->rates.latency_ms = 10;
	hosts->release_ppm = hosts->done_ppm = 0;
	heal(chaos, 0);
	for (uint32_t i = 0; i < net->node_count; i++) {
		simnet_start(net, i, i);
		net->nodes[i].report.flags |= MEMBER_TAKES_JOBS;
		simnet_report(net, i);
		simnet_greet(net, i, 0); /* drivers keep calling their seeds */
	}
}

static void check_members(const struct chaos *chaos)
{
	const struct simnet *net = chaos->hosts->net;
	static const struct job_id none;

	for (uint32_t i = 0; i < net->node_count; i++)
		for (uint32_t k = 0; k < net->node_count; k++)
			if (simnet_view(net, i, k) != MEMBER_ALIVE)
				checker_fail(&chaos->hosts->checker, &none,
					     "quiet: a live member is not seen alive");
}

static void check_job(struct chaos *chaos, uint32_t job)
{
	struct hosts *hosts = chaos->hosts;
	struct hosts_job *j = &hosts->jobs[job];
	const struct job_value *current = checker_current(&hosts->checker, &j->id);
	uint64_t before = j->got_count;

	if (!current) {
		if (j->created)
			checker_fail(&hosts->checker, &j->id, "created, but never chosen");
		return;
	}
	hosts_get(hosts, draw_node(chaos), job);
	simnet_run(hosts->net, hosts->net->now_ms + 9000);
	current = checker_current(&hosts->checker, &j->id);
	if (j->got_count > before && j->got_status == -ENOENT &&
	    current->state >= JOB_STATE_COLLECTED)
		return; /* ended long ago, and forgotten */
	if (j->got_count == before || j->got_status != 0)
		checker_fail(&hosts->checker, &j->id, "quiet: cannot be read");
	if (fence_token_compare(&j->got.token, &current->token) != 0 ||
	    j->got.state != current->state)
		checker_fail(&hosts->checker, &j->id, "quiet: an old value was read");
	if (current->state == JOB_STATE_COLLECTED || current->state == JOB_STATE_KILLED)
		return;
	if (current->state != JOB_STATE_HELD)
		checker_fail(&hosts->checker, &j->id, "quiet: neither owned nor brought home");
	if (hosts_running(hosts, job) != simnet_index(hosts->net, &current->owner))
		checker_fail(&hosts->checker, &j->id, "quiet: its owner does not run it");
}

static void draw_rates(struct chaos *chaos, struct simnet_rates *rates, uint64_t seed)
{
	/* Drawn before the net exists, from the seed alone. */
	struct simnet_dice dice = { .state = seed ^ UINT64_C(0x5eed) };

	*rates = (struct simnet_rates){
		.loss_ppm = dice_below(&dice, 4) ? dice_below(&dice, 80000) : 0,
		.double_ppm = dice_below(&dice, 50000),
		.slow_ppm = dice_below(&dice, dice_below(&dice, 3) ? 30000 : 400000),
		.latency_ms = 2 + dice_below(&dice, 60),
		.slow_ms = 1 + dice_below(&dice, dice_below(&dice, 2) ? 6000 : 25000),
		.torn_ppm = dice_below(&dice, 3) ? 0 : dice_below(&dice, 10000),
		.drift_ppm = 400,
	};
	chaos->crash_weight = 10 + dice_below(&dice, 40);
	chaos->partition_weight = dice_below(&dice, 40);
	chaos->jobs_max = 4 + dice_below(&dice, 8);
}

static void print_rates(const struct chaos *chaos, const struct simnet_rates *r, uint64_t seed,
			uint32_t nodes, uint32_t minutes)
{
	printf("sim: seed=%" PRIu64 " nodes=%u minutes=%u loss=%u double=%u slow=%u torn=%u ppm "
	       "latency=%u slow=%u ms drift=%u ppm crash=%u partition=%u %% jobs=%u\n",
	       seed, nodes, minutes, r->loss_ppm, r->double_ppm, r->slow_ppm, r->torn_ppm,
	       r->latency_ms, r->slow_ms, r->drift_ppm, chaos->crash_weight,
	       chaos->partition_weight, chaos->jobs_max);
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
	};

	for (uint32_t i = 0; i < hosts->job_count; i++) {
		const struct job_value *value =
			checker_current(&hosts->checker, &hosts->jobs[i].id);

		result.ended += value && value->state >= JOB_STATE_DONE;
	}
	if (verbose)
		printf("sim: ok events=%" PRIu64 " messages=%" PRIu64 " chosen=%" PRIu64
		       " commits=%" PRIu64 " grants=%" PRIu64 " jobs=%" PRIu64 " ended=%" PRIu64
		       "\n",
		       result.events, result.messages, result.chosen, result.commits, result.grants,
		       result.jobs, result.ended);
	*ret_result = result;
}

void chaos_run(uint64_t seed, uint32_t node_count, uint32_t minutes, int verbose,
	       struct chaos_result *ret_result)
{
	struct simnet_rates calm = { .latency_ms = 10, .drift_ppm = 400 }, rates;
	struct chaos chaos = { 0 };

	draw_rates(&chaos, &rates, seed);
	if (verbose)
		print_rates(&chaos, &rates, seed, node_count, minutes);
	chaos.hosts = hosts_create(seed, node_count, &calm);
	hosts_start(chaos.hosts);
	for (uint32_t i = 0; i < 3; i++)
		hosts_submit(chaos.hosts, draw_node(&chaos), true);
	simnet_run(chaos.hosts->net, chaos.hosts->net->now_ms + 2000);
	chaos.hosts->net->rates = rates;
	chaos.hosts->release_ppm = 60000;
	chaos.hosts->done_ppm = 10000;
	chaos.hosts->aim = true;
	chaos.until_ms = chaos.hosts->net->now_ms + minutes * UINT64_C(60000);
	fault(&chaos, 0);
	user(&chaos, 0);
	simnet_run(chaos.hosts->net, chaos.until_ms);
	quieten(&chaos);
	simnet_run(chaos.hosts->net, chaos.until_ms + QUIET_MS);
	check_members(&chaos);
	for (uint32_t i = 0; i < chaos.hosts->job_count; i++)
		check_job(&chaos, i);
	report(&chaos, verbose, ret_result);
	hosts_destroy(chaos.hosts);
}
