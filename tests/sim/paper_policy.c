// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/sim/paper_policy.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "agent/job/interval.h"
#include "agent/pack/pack.h"
#include "overlay/core/state.h"

#define EPSILON_S 1e-6
enum { COMPETES = 10 }; /* packing takes a tenth of its time from the program, says the rule */

void paper_policy_default(struct paper_policy *policy)
{
	*policy = (struct paper_policy){
		.unit_s = 60,
		.failures = 0.5,
		.available = 0.99,
		.pause_us = 1304,    /* longest of 30, 1 GiB: docs/native-proof.md */
		.total_us = 4100000, /* longest of 17: make bench-handover */
		.resume_s = 5,	     /* longest of 3: the same */
	};
}

double paper_policy_work_s(const struct paper_policy *policy)
{
	return PAPER_UNITS * policy->unit_s;
}

double paper_policy_failure_s(const struct paper_policy *policy, struct paper_dice *dice)
{
	if (policy->failures <= 0)
		return INFINITY;
	return -log(paper_dice_unit(dice)) * PAPER_SEGMENT * policy->unit_s / policy->failures;
}

double paper_policy_interval_s(const struct paper_policy *policy, bool first)
{
	struct ckpt_stat last = { .pause_us = policy->pause_us, .total_us = policy->total_us };

	if (policy->interval_s > 0)
		return policy->interval_s;
	return job_interval_rule_s(first ? NULL : &last);
}

void paper_life_init(struct paper_life *life, const struct paper_policy *policy, double now_s,
		     double done_s, bool first)
{
	*life = (struct paper_life){
		.policy = policy,
		.now_s = now_s,
		.done_s = done_s,
		.rate = 1,
		.capture_at_s = now_s + paper_policy_interval_s(policy, first),
	};
}

static double left_s(const struct paper_life *life)
{
	return paper_policy_work_s(life->policy) - life->done_s;
}

double paper_life_next(const struct paper_life *life)
{
	double end_s = life->now_s + left_s(life);

	if (life->storing)
		return life->stored_at_s;
	return end_s < life->capture_at_s ? end_s : life->capture_at_s;
}

static void advance(struct paper_life *life, double now_s)
{
	double work_s = paper_policy_work_s(life->policy);

	if (now_s > life->now_s)
		life->done_s += (now_s - life->now_s) * life->rate;
	if (life->done_s > work_s)
		life->done_s = work_s;
	life->now_s = now_s;
}

enum paper_event paper_life_step(struct paper_life *life)
{
	double pause_s = (double)life->policy->pause_us / 1e6;
	double total_s = (double)life->policy->total_us / 1e6;

	if (life->storing) {
		advance(life, life->stored_at_s);
		life->storing = false;
		life->rate = 1;
		return PAPER_STORED;
	}
	/* A rounding error must not leave a rest of work that takes no time. */
	life->ended = life->capture_at_s + EPSILON_S >= life->now_s + left_s(life);
	advance(life, paper_life_next(life));
	if (life->ended)
		life->done_s = paper_policy_work_s(life->policy);
	life->captured_s = life->done_s;
	life->storing = true;
	life->stored_at_s = life->now_s + total_s;
	life->now_s += pause_s;
	if (total_s > pause_s)
		life->rate = fmax(0, 1 - total_s / COMPETES / (total_s - pause_s));
	return PAPER_CAPTURE;
}

void paper_life_committed(struct paper_life *life, double now_s)
{
	advance(life, now_s);
	life->capture_at_s = now_s + paper_policy_interval_s(life->policy, false);
}

int paper_policy_choose(const struct paper_policy *policy, struct paper_dice *dice, uint32_t count,
			uint32_t *ret_index, double *ret_wait_s)
{
	*ret_wait_s = 0;
	for (uint32_t i = 0; i < count; i++) {
		if (paper_dice_unit(dice) < policy->available) {
			*ret_index = i;
			return 0;
		}
		*ret_wait_s += JOB_FETCH_TRIES * JOB_FETCH_PAUSE_S;
	}
	return -ENOENT;
}

struct trial {
	const struct paper_policy *policy;
	struct paper_dice *dice;
	double now_s, fail_at_s;
	double history[OV_HISTORY_MAX]; /* work in each, newest first */
	uint32_t count;
};

static void hand_over(struct trial *t, double now_s)
{
	const struct paper_policy *policy = t->policy;

	t->now_s = now_s;
	if (policy->handover_count)
		t->now_s += policy->handover_s[paper_dice_next(t->dice) % policy->handover_count];
	t->fail_at_s = t->now_s + paper_policy_failure_s(policy, t->dice);
}

/* From a failure to a job that runs, whatever fails meanwhile; returns the work it has. */
static double take_over(struct trial *t)
{
	hand_over(t, t->fail_at_s);
	for (;;) {
		uint32_t index;
		double wait_s = 0, ready_s;
		int r = t->count ?
				paper_policy_choose(t->policy, t->dice, t->count, &index, &wait_s) :
				0;

		ready_s = t->now_s + wait_s + (r == 0 ? t->policy->resume_s : 0);
		if (t->fail_at_s <= ready_s) {
			hand_over(t, t->fail_at_s);
		} else if (r == 0) {
			t->now_s = ready_s;
			return t->count ? t->history[index] : 0;
		} else { /* given back, and granted to another host */
			t->now_s = ready_s + CORE_GUARD_RETRY_MS / 1e3;
			t->fail_at_s = t->now_s + paper_policy_failure_s(t->policy, t->dice);
		}
	}
}

static double run(const struct paper_policy *policy, struct paper_dice *dice)
{
	struct trial t = { .policy = policy, .dice = dice };
	struct paper_life life;

	t.fail_at_s = paper_policy_failure_s(policy, dice);
	paper_life_init(&life, policy, 0, 0, true);
	for (;;) {
		double next_s = paper_life_next(&life);

		if (t.fail_at_s < next_s) {
			double done_s = take_over(&t);

			paper_life_init(&life, policy, t.now_s, done_s, t.count == 0);
		} else if (paper_life_step(&life) == PAPER_STORED) {
			if (life.ended)
				return next_s;
			memmove(&t.history[1], &t.history[0],
				(OV_HISTORY_MAX - 1) * sizeof(t.history[0]));
			t.history[0] = life.captured_s;
			t.count += t.count < OV_HISTORY_MAX;
			paper_life_committed(&life, next_s);
		}
	}
}

void paper_policy_simulate(const struct paper_policy *policy, struct paper_dice dice,
			   uint32_t trials, struct paper_estimate *ret_estimate)
{
	struct paper_sum sum = { 0 };

	for (uint32_t i = 0; i < trials; i++)
		paper_sum_add(&sum, run(policy, &dice));
	paper_sum_estimate(&sum, ret_estimate);
}

double paper_policy_exact(const struct paper_policy *policy)
{
	double rate = policy->failures / (PAPER_SEGMENT * policy->unit_s), detect_s = 0;
	double attempt_s = policy->interval_s + (double)policy->pause_us / 1e6;

	for (uint32_t i = 0; i < policy->handover_count; i++)
		detect_s += policy->handover_s[i] / policy->handover_count;
	return paper_policy_work_s(policy) / policy->interval_s * (1 / rate + detect_s) *
	       exp(rate * policy->resume_s) * expm1(rate * attempt_s);
}
