/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The experiment of "A DHT-based Infrastructure for Sharing Checkpoints in Desktop Grid Computing"
 * (Domingues, Araujo, Silva), table 1, and decamp's own policy on the same axis.
 *
 *   paper_exact.c    the paper's rules as a Markov chain, solved
 *   paper_trial.c    the same rules, step by step, with dice
 *   paper_policy.c   decamp's policy at the level of flows: a job's life as a handful of events
 *   paper_core.c     hand-overs, and whole lives, with real cores on a simnet
 *
 * Step rule. At the start of each unit step the worker flips its state with probability p = x / 10
 * (crash-stop: one way only). A working one then advances by one unit; a crash loses the segment
 * that is open. Private: 150 units after its assignment the task goes to a new worker and starts
 * from scratch. Shared: the timer of 30 units starts anew with each completed checkpoint and each
 * assignment; the new worker takes the newest checkpoint that is available, each with probability
 * A, drawn afresh; newer ones count no more. A worker that recovers has its own disk. New workers
 * start working.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum {
	PAPER_SEGMENT = 10,			      /* units between checkpoints */
	PAPER_SEGMENTS = 5,			      /* per task */
	PAPER_UNITS = PAPER_SEGMENT * PAPER_SEGMENTS, /* t_exec */
	PAPER_SHARED_TIMEOUT = 3 * PAPER_SEGMENT,     /* t_p */
	PAPER_PRIVATE_TIMEOUT = 3 * PAPER_UNITS,      /* t_t */
};

struct paper_case {
	bool recovers; /* crash-recovery, else crash-stop */
	bool shared;
	double failures;  /* x: per PAPER_SEGMENT units */
	double available; /* A */
	bool keeps;	  /* another reading: what was not available may be found later */
};

/* Rules broken on purpose: a comparison with the exact values has to notice each. */
enum paper_mutant {
	PAPER_RIGHT,
	PAPER_TIMER_RUNS_ON, /* a completed checkpoint does not restart the timer */
	PAPER_TIMER_FOLLOWS, /* every unit of work restarts it */
	PAPER_TIMER_SHORT,   /* it ends a unit early */
	PAPER_SEGMENT_KEPT,  /* a crash loses nothing of the open segment */
	PAPER_NEWEST_ONLY,   /* the newest is not available: from scratch */
	PAPER_MUTANTS,
	/* Another reading, not a mutant: what is available now always is. The mean is the same. */
	PAPER_DRAWN_ONCE = PAPER_MUTANTS,
};

struct paper_estimate {
	double mean, error; /* standard error of the mean */
	uint32_t trials;
};

/* A stream of numbers of its own for each (seed, stream). */
struct paper_dice {
	uint64_t state;
};
void paper_dice_init(struct paper_dice *dice, uint64_t seed, uint64_t stream);
uint64_t paper_dice_next(struct paper_dice *dice);
double paper_dice_unit(struct paper_dice *dice); /* in (0, 1) */

/* Mean turnaround in units. */
double paper_exact(const struct paper_case *c);
void paper_simulate(const struct paper_case *c, struct paper_dice dice, uint32_t trials,
		    enum paper_mutant mutant, struct paper_estimate *ret_estimate);

/* How many standard errors lie between an estimate and what it should be. */
double paper_distance(const struct paper_estimate *estimate, double exact);
/*
 * Is the simulation within 3 standard errors? One right point in 370 is not. So a point that fails
 * is simulated once more, with four times as many trials and dice of its own, and that counts.
 * ret_first: the distance at first.
 */
bool paper_agrees(const struct paper_case *c, uint64_t seed, uint64_t stream, uint32_t trials,
		  enum paper_mutant mutant, struct paper_estimate *ret_estimate, double *ret_first);

/* Adds up numbers one by one; all zero at first. */
struct paper_sum {
	double sum, square;
	uint32_t count;
};
void paper_sum_add(struct paper_sum *sum, double value);
void paper_sum_estimate(const struct paper_sum *sum, struct paper_estimate *ret_estimate);
