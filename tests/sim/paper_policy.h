/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * decamp's own policy on the paper's axis. Hosts fail after exponential times, x per ten units of
 * time, and never bring their job back. What is the product's: the rule of the interval
 * (agent/job/interval.h), how many checkpoints the register keeps, newest first, how often one is
 * tried, how soon a job that was given back is granted again. What is measured and given here:
 * pause, time until a checkpoint is committed, time of a restore, hand-overs of real cores.
 *
 *   capture, `pause_us` -> runs on, a tenth of `total_us` slower -> committed, `total_us`
 *   host fails -> hand-over -> fetch and restore, `resume_s` -> runs from what was committed
 *
 * The end of a job is a checkpoint too. Times are in seconds.
 */
#pragma once

#include "overlay/types.h"
#include "tests/sim/paper.h"

struct paper_policy {
	double unit_s;	  /* one unit of the paper */
	double failures;  /* x */
	double available; /* of each checkpoint, drawn at each takeover */
	uint64_t pause_us, total_us;
	double resume_s;
	double interval_s; /* 0: the product's rule */
	const double *handover_s;
	uint32_t handover_count;
};

/* A job on one host. */
struct paper_life {
	const struct paper_policy *policy;
	double now_s, done_s, rate;
	double capture_at_s, stored_at_s;
	double captured_s; /* work in the checkpoint under way, or in the last one */
	bool storing, ended;
};

enum paper_event { PAPER_CAPTURE = 1, PAPER_STORED };

/* A unit is a minute, A is 0.99; the measured figures are those of docs/paper.md. */
void paper_policy_default(struct paper_policy *policy);
double paper_policy_work_s(const struct paper_policy *policy);
double paper_policy_failure_s(const struct paper_policy *policy, struct paper_dice *dice);
/* The product's interval after the first checkpoint. */
double paper_policy_interval_s(const struct paper_policy *policy, bool first);

/* It runs from now on with done_s of work behind it. first: nothing was committed yet. */
void paper_life_init(struct paper_life *life, const struct paper_policy *policy, double now_s,
		     double done_s, bool first);
double paper_life_next(const struct paper_life *life);
enum paper_event paper_life_step(struct paper_life *life);
/* What was stored is committed: the next interval begins. */
void paper_life_committed(struct paper_life *life, double now_s);

/*
 * Which of `count` checkpoints, newest first, a takeover can read; ret_wait_s: spent on those that
 * it cannot. -ENOENT: none (ret_wait_s is written all the same).
 */
int paper_policy_choose(const struct paper_policy *policy, struct paper_dice *dice, uint32_t count,
			uint32_t *ret_index, double *ret_wait_s);

void paper_policy_simulate(const struct paper_policy *policy, struct paper_dice dice,
			   uint32_t trials, struct paper_estimate *ret_estimate);
/*
 * In closed form, if nothing is stored after the pause, all checkpoints are there, the interval is
 * fixed and divides the work: (1/f + D) e^(f R) (e^(f (tau + C)) - 1) for each interval.
 */
double paper_policy_exact(const struct paper_policy *policy);

/* ---- paper_core.c: real cores ---- */
struct paper_cores {
	uint64_t seed;
	uint32_t hosts;
	uint32_t latency_ms, loss_ppm;
};

/* From the death of a job's host until another one holds the lease, each at a random moment. */
void paper_core_handovers(const struct paper_cores *cores, uint32_t count, double *ret_s);
/* A whole life: the policy's flows, but register, leases, guardians and grants are real. In s. */
double paper_core_life(const struct paper_cores *cores, const struct paper_policy *policy);
