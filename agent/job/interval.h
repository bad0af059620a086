/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * When a job is checkpointed next, and how long a takeover waits for an old one: what a model of a
 * job's life needs too. Pure; no state, no clock.
 */
#pragma once

#include <stdint.h>

struct ckpt_stat;

enum {
	JOB_INTERVAL_MIN_S = 5,
	JOB_INTERVAL_MAX_S = 900,
	JOB_FETCH_TRIES = 4,   /* of one checkpoint, before the one before it is taken */
	JOB_FETCH_PAUSE_S = 2, /* after each */
};

/*
 * Young's interval sqrt(2 C M) with C = what the checkpoint costs the program (its pause, and a
 * tenth of the time that packing competes with it) and M = 8 h, a lab machine's usual time
 * between its owner's returns. At least ten times a checkpoint's own duration. last: the newest
 * checkpoint, NULL if there is none yet.
 */
uint32_t job_interval_rule_s(const struct ckpt_stat *last);
