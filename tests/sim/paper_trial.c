// SPDX-License-Identifier: LGPL-2.1-or-later
/* The paper's rules as they are told in paper.h, one unit step after the other. */
#include <math.h>

#include "tests/sim/paper.h"

enum { AGREE_ERRORS = 3 };

struct task {
	const struct paper_case *c;
	enum paper_mutant mutant;
	struct paper_dice dice;
	uint64_t flip; /* a draw below it: the worker changes its state */
	uint32_t timeout;
	uint32_t saved; /* newest checkpoint that other workers may find */
	uint32_t own;	/* the worker's own */
	uint32_t open, timer;
	uint32_t drawn, there; /* masks for PAPER_DRAWN_ONCE */
	uint64_t now;
	bool works;
};

void paper_dice_init(struct paper_dice *dice, uint64_t seed, uint64_t stream)
{
	dice->state = seed;
	dice->state = paper_dice_next(dice) ^ stream;
	dice->state = paper_dice_next(dice);
}

uint64_t paper_dice_next(struct paper_dice *dice)
{
	uint64_t x = dice->state += UINT64_C(0x9e3779b97f4a7c15);

	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

double paper_dice_unit(struct paper_dice *dice)
{
	return ((double)(paper_dice_next(dice) >> 11) + 0.5) * 0x1p-53;
}

void paper_sum_add(struct paper_sum *sum, double value)
{
	sum->sum += value;
	sum->square += value * value;
	sum->count++;
}

void paper_sum_estimate(const struct paper_sum *sum, struct paper_estimate *ret_estimate)
{
	double n = sum->count, mean = sum->sum / n;
	double variance = n > 1 ? (sum->square - n * mean * mean) / (n - 1) : 0;

	ret_estimate->mean = mean;
	ret_estimate->error = sqrt((variance > 0 ? variance : 0) / n);
	ret_estimate->trials = sum->count;
}

static bool is_available(struct task *t, uint32_t checkpoint)
{
	uint32_t mask = 1u << checkpoint;
	bool there = paper_dice_unit(&t->dice) < t->c->available;

	if (t->mutant != PAPER_DRAWN_ONCE)
		return there;
	if (!(t->drawn & mask))
		t->there |= there ? mask : 0;
	t->drawn |= mask;
	return t->there & mask;
}

static void assign(struct task *t)
{
	uint32_t from = t->c->shared ? t->saved : 0;

	while (from > 0 && !is_available(t, from))
		from = t->mutant == PAPER_NEWEST_ONLY ? 0 : from - 1;
	if (!t->c->keeps)
		t->saved = from;
	t->own = from;
	t->open = t->timer = 0;
	t->works = true;
}

static void complete_segment(struct task *t)
{
	t->open = 0;
	t->own++;
	if (t->own > t->saved)
		t->saved = t->own;
	if (t->c->shared && t->mutant != PAPER_TIMER_RUNS_ON)
		t->timer = 0;
}

static uint64_t run(struct task *t)
{
	t->saved = t->drawn = t->there = 0;
	t->now = 0;
	assign(t);
	for (;;) {
		if ((t->works || t->c->recovers) && paper_dice_next(&t->dice) < t->flip) {
			t->works = !t->works;
			if (!t->works && t->mutant != PAPER_SEGMENT_KEPT)
				t->open = 0;
		}
		t->now++;
		t->timer++;
		if (t->works) {
			t->open++;
			if (t->c->shared && t->mutant == PAPER_TIMER_FOLLOWS)
				t->timer = 0;
		}
		if (t->open == PAPER_SEGMENT)
			complete_segment(t);
		if (t->own == PAPER_SEGMENTS)
			return t->now;
		/* Nothing happens to a stopped worker before the timer ends. */
		if (!t->works && !t->c->recovers) {
			t->now += t->timeout - t->timer;
			t->timer = t->timeout;
		}
		if (t->timer == t->timeout)
			assign(t);
	}
}

void paper_simulate(const struct paper_case *c, struct paper_dice dice, uint32_t trials,
		    enum paper_mutant mutant, struct paper_estimate *ret_estimate)
{
	struct task task = {
		.c = c,
		.mutant = mutant,
		.dice = dice,
		.flip = (uint64_t)(c->failures / PAPER_SEGMENT * 0x1p64),
		.timeout = c->shared ? PAPER_SHARED_TIMEOUT : PAPER_PRIVATE_TIMEOUT,
	};
	struct paper_sum sum = { 0 };

	task.timeout -= mutant == PAPER_TIMER_SHORT;
	for (uint32_t i = 0; i < trials; i++)
		paper_sum_add(&sum, (double)run(&task));
	paper_sum_estimate(&sum, ret_estimate);
}

double paper_distance(const struct paper_estimate *estimate, double exact)
{
	double gap = estimate->mean - exact;

	if (fabs(gap) <= 1e-9 * exact)
		return 0;
	return estimate->error > 0 ? gap / estimate->error : INFINITY;
}

bool paper_agrees(const struct paper_case *c, uint64_t seed, uint64_t stream, uint32_t trials,
		  enum paper_mutant mutant, struct paper_estimate *ret_estimate, double *ret_first)
{
	double exact = paper_exact(c);
	struct paper_dice dice;

	paper_dice_init(&dice, seed, 2 * stream);
	paper_simulate(c, dice, trials, mutant, ret_estimate);
	*ret_first = paper_distance(ret_estimate, exact);
	if (fabs(*ret_first) <= AGREE_ERRORS)
		return true;
	paper_dice_init(&dice, seed, 2 * stream + 1);
	paper_simulate(c, dice, 4 * trials, mutant, ret_estimate);
	return fabs(paper_distance(ret_estimate, exact)) <= AGREE_ERRORS;
}
