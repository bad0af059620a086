// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Real cores on a simnet: how long a hand-over takes, and a job's whole life. The cores run with
 * the product's default timings, whatever the simulator's own are.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/host/host.h"
#include "overlay/core/state.h"
#include "tests/sim/paper_policy.h"
#include "tests/sim/simnet.h"

enum {
	MEET_MS = 6000,		  /* hosts get to know each other */
	REBOOT_MS = 60 * 1000,	  /* a host that failed comes back, without the job */
	SETTLE_MS = 90 * 1000,	  /* between hand-overs: it is back, its holds have run out */
	SPREAD_MS = 20 * 1000,	  /* and the next failure comes at any moment of some renewals */
	PER_NET = 25,		  /* hand-overs of one job */
	PATIENCE_MS = 600 * 1000, /* for one hand-over */
	SEQ_MAX = 4096,
	NOBODY = SIMNET_NODES_MAX,
};

enum ask { ASK_CREATE = 1, ASK_HOLD, ASK_CAS };

struct bed {
	struct simnet *net;
	struct paper_dice dice;
	const struct paper_policy *policy; /* NULL: it only holds the lease */
	struct paper_life life;
	struct job_value value, wish; /* the owner's; what it asks for */
	uint32_t node;		      /* that holds it or is about to, or NOBODY */
	bool running;
	uint64_t running_ms;	/* since when it holds the lease */
	uint64_t turn;		/* counts asks and owners: what belongs to an earlier one is void */
	double done_s[SEQ_MAX]; /* work in each checkpoint */
	double restore_from_s, ended_s;
	uint64_t first; /* the creation's token: no restore, it begins */
	bool ended;
};

static void die(const char *what)
{
	fprintf(stderr, "paper_core: %s\n", what);
	abort();
}

static double now_s(const struct bed *bed)
{
	return (double)bed->net->now_ms / 1e3;
}

static void at_s(struct bed *bed, double when_s, simnet_action *action, uint64_t argument)
{
	uint64_t when_ms = (uint64_t)ceil(when_s * 1e3);

	simnet_at(bed->net, when_ms > bed->net->now_ms ? when_ms : bed->net->now_ms, action, bed,
		  argument);
}

static void start(struct bed *bed, uint32_t node)
{
	struct host_config product;
	struct core_config *config;

	simnet_start(bed->net, node, node);
	host_config_default(&product);
	config = &bed->net->nodes[node].core->config;
	config->probe_ms = product.probe_ms;
	config->suspect_ms = product.suspect_ms;
	config->renew_ms = product.renew_ms;
	config->lease_ms = product.lease_ms;
	config->hold_ms = product.hold_ms;
}

static void reboot(void *ctx, uint64_t node)
{
	start(ctx, (uint32_t)node);
}

static void ask(struct bed *bed, enum ask kind)
{
	static const enum core_request requests[] = {
		[ASK_CREATE] = CORE_REQ_CREATE,
		[ASK_HOLD] = CORE_REQ_HOLD,
		[ASK_CAS] = CORE_REQ_CAS,
	};

	simnet_request(bed->net, bed->node, requests[kind],
		       kind == ASK_HOLD ? &bed->value : &bed->wish, ++bed->turn << 8 | kind);
}

/* A hook must not step the core whose update it reads: its asks come as events of their own. */
static void ask_again(void *ctx, uint64_t id)
{
	struct bed *bed = ctx;

	if (bed->turn == id >> 8 && bed->node != NOBODY && bed->net->nodes[bed->node].core)
		ask(bed, (enum ask)(id & 0xff));
}

static void ask_soon(struct bed *bed, enum ask kind, uint32_t wait_ms)
{
	simnet_at(bed->net, bed->net->now_ms + wait_ms, ask_again, bed, bed->turn << 8 | kind);
}

static void fail(void *ctx, uint64_t node)
{
	struct bed *bed = ctx;

	if (bed->ended || bed->node != node || !bed->running)
		return;
	simnet_crash(bed->net, (uint32_t)node);
	simnet_at(bed->net, bed->net->now_ms + REBOOT_MS, reboot, bed, node);
	bed->node = NOBODY;
	bed->running = false;
	bed->turn++;
}

static void add_checkpoint(struct bed *bed)
{
	struct ckpt_ref *ckpt = &bed->wish.history[0];
	uint64_t seq = bed->wish.history_count ? ckpt->seq + 1 : 1;

	if (seq >= SEQ_MAX)
		die("too many checkpoints");
	memmove(&bed->wish.history[1], &bed->wish.history[0],
		(OV_HISTORY_MAX - 1) * sizeof(bed->wish.history[0]));
	memset(ckpt, 0, sizeof(*ckpt));
	ckpt->seq = seq;
	ckpt->manifest_size = 1000;
	memcpy(ckpt->manifest.b, &seq, sizeof(seq));
	if (bed->wish.history_count < OV_HISTORY_MAX)
		bed->wish.history_count++;
	bed->done_s[seq] = bed->life.captured_s;
}

static void next_event(void *ctx, uint64_t turn);

static void plan(struct bed *bed)
{
	at_s(bed, paper_life_next(&bed->life), next_event, bed->turn);
}

static void next_event(void *ctx, uint64_t turn)
{
	struct bed *bed = ctx;

	if (turn != bed->turn)
		return;
	if (paper_life_step(&bed->life) == PAPER_CAPTURE) {
		plan(bed);
		return;
	}
	bed->wish = bed->value;
	add_checkpoint(bed);
	if (bed->life.ended)
		bed->wish.state = JOB_STATE_DONE;
	ask(bed, ASK_CAS);
}

static void runs(void *ctx, uint64_t turn)
{
	struct bed *bed = ctx;

	if (turn != bed->turn)
		return;
	paper_life_init(&bed->life, bed->policy, now_s(bed), bed->restore_from_s,
			bed->value.history_count == 0);
	plan(bed);
}

static void give_back(void *ctx, uint64_t turn)
{
	struct bed *bed = ctx;

	if (turn != bed->turn)
		return;
	bed->wish = bed->value;
	bed->wish.state = JOB_STATE_IDLE;
	memset(&bed->wish.owner, 0, sizeof(bed->wish.owner));
	if (bed->wish.avoid_count == OV_AVOID_MAX)
		bed->wish.avoid_count = 0;
	bed->wish.avoid[bed->wish.avoid_count++] = bed->net->nodes[bed->node].card.id;
	ask(bed, ASK_CAS);
}

/* The lease is ours: restore what the register names. */
static void got_lease(struct bed *bed)
{
	const struct job_value *value = &bed->value;
	double wait_s = 0;
	uint32_t index = 0;
	int r = 0;

	bed->running = true;
	bed->running_ms = bed->net->now_ms;
	if (!bed->policy)
		return;
	at_s(bed, now_s(bed) + fmin(paper_policy_failure_s(bed->policy, &bed->dice), 1e9), fail,
	     bed->node);
	bed->restore_from_s = 0;
	if (value->history_count) {
		r = paper_policy_choose(bed->policy, &bed->dice, value->history_count, &index,
					&wait_s);
		if (r == 0)
			bed->restore_from_s = bed->done_s[value->history[index].seq];
	}
	if (r < 0)
		at_s(bed, now_s(bed) + wait_s, give_back, bed->turn);
	else if (value->token.counter == bed->first)
		runs(bed, bed->turn);
	else
		at_s(bed, now_s(bed) + wait_s + bed->policy->resume_s, runs, bed->turn);
}

static void cas_done(struct bed *bed, const struct job_value *value)
{
	bed->value = *value;
	if (value->state == JOB_STATE_HELD) {
		bed->turn++;
		paper_life_committed(&bed->life, now_s(bed));
		plan(bed);
		return;
	}
	bed->ended = value->state == JOB_STATE_DONE;
	bed->ended_s = now_s(bed);
	bed->node = NOBODY;
	bed->running = false;
	bed->turn++;
}

static void on_answer(void *ctx, uint32_t node, const struct core_answer *answer)
{
	struct bed *bed = ctx;
	enum ask kind = (enum ask)(answer->request_id & 0xff);

	if (node != bed->node || answer->request_id >> 8 != bed->turn)
		return;
	if (answer->status == -EAGAIN) {
		ask_soon(bed, kind, 100);
		return;
	}
	if (answer->status == -ESTALE) { /* it will be granted to somebody */
		bed->node = NOBODY;
		bed->running = false;
		bed->turn++;
		return;
	}
	if (answer->status < 0)
		die("an unexpected status");
	switch (kind) {
	case ASK_CREATE:
		bed->value = answer->value;
		bed->first = answer->value.token.counter;
		ask_soon(bed, ASK_HOLD, 0);
		break;
	case ASK_HOLD:
		got_lease(bed);
		break;
	case ASK_CAS:
		cas_done(bed, &answer->value);
		break;
	}
}

static void on_notice(void *ctx, uint32_t node, const struct core_notice *notice)
{
	struct bed *bed = ctx;

	if (notice->type != CORE_GRANT || bed->ended ||
	    fence_token_compare(&notice->value.token, &bed->value.token) <= 0)
		return;
	bed->value = notice->value;
	bed->node = node;
	bed->running = false;
	bed->turn++;
	ask_soon(bed, ASK_HOLD, 0);
}

static struct bed *bed_create(const struct paper_cores *cores, uint64_t stream,
			      const struct paper_policy *policy)
{
	struct simnet_rates rates = {
		.latency_ms = cores->latency_ms,
		.loss_ppm = cores->loss_ppm,
		.drift_ppm = 400,
	};
	struct bed *bed = calloc(1, sizeof(*bed));
	struct simnet_hooks hooks = { .ctx = bed, .answer = on_answer, .notice = on_notice };

	if (!bed)
		die("out of memory");
	paper_dice_init(&bed->dice, cores->seed, stream);
	bed->net = simnet_create(paper_dice_next(&bed->dice), cores->hosts, &rates, &hooks);
	bed->policy = policy;
	for (uint32_t i = 0; i < cores->hosts; i++)
		start(bed, i);
	simnet_run(bed->net, MEET_MS);
	bed->wish = (struct job_value){
		.owner = bed->net->nodes[0].card.id,
		.home = bed->net->nodes[0].card.id,
		.state = JOB_STATE_HELD,
		.fence = FENCE_STRICT,
		.mem_bytes = 1 << 20,
		.sealed_size = 16,
	};
	for (uint32_t k = 0; k < sizeof(bed->wish.job.b); k++)
		bed->wish.job.b[k] = (uint8_t)paper_dice_next(&bed->dice);
	ask(bed, ASK_CREATE);
	return bed;
}

static void bed_destroy(struct bed *bed)
{
	simnet_destroy(bed->net);
	free(bed);
}

static void run_until_held(struct bed *bed)
{
	uint64_t until_ms = bed->net->now_ms + PATIENCE_MS;

	while (!bed->running && bed->net->now_ms < until_ms)
		simnet_run(bed->net, bed->net->now_ms + 100);
	if (!bed->running)
		die("nobody takes the job over");
}

void paper_core_handovers(const struct paper_cores *cores, uint32_t count, double *ret_s)
{
	struct bed *bed = NULL;

	for (uint32_t i = 0; i < count; i++) {
		uint64_t failed_ms;

		if (i % PER_NET == 0) {
			if (bed)
				bed_destroy(bed);
			bed = bed_create(cores, i, NULL);
			run_until_held(bed);
		}
		simnet_run(bed->net,
			   bed->net->now_ms + SETTLE_MS + paper_dice_next(&bed->dice) % SPREAD_MS);
		failed_ms = bed->net->now_ms;
		fail(bed, bed->node);
		run_until_held(bed);
		ret_s[i] = (double)(bed->running_ms - failed_ms) / 1e3;
	}
	if (bed)
		bed_destroy(bed);
}

double paper_core_life(const struct paper_cores *cores, const struct paper_policy *policy)
{
	struct bed *bed = bed_create(cores, UINT64_MAX, policy);
	double began_s = now_s(bed), life_s;
	uint64_t until_ms = bed->net->now_ms + (uint64_t)(1000 * paper_policy_work_s(policy) * 1e3);

	while (!bed->ended && bed->net->now_ms < until_ms)
		simnet_run(bed->net, bed->net->now_ms + 1000);
	if (!bed->ended)
		die("the job does not end");
	life_s = bed->ended_s - began_s;
	bed_destroy(bed);
	return life_s;
}
