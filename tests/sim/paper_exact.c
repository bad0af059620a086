// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Exact mean turnaround. A period is what lies between two starts of the timer: it begins with a
 * working worker and an empty segment, so its length and its outcome depend on p alone. They come
 * from the distribution over the worker's states, carried forward step by step. What is left is a
 * chain from period to period: a few linear equations.
 */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "tests/sim/paper.h"

enum { STATES = PAPER_SEGMENTS * (PAPER_SEGMENTS + 1) / 2 };

struct period {
	double length;	/* mean */
	double success; /* its goal was reached before the timer ran out */
};

/* Distribution over segments done in this period, and units of the open one or "down". */
struct spread {
	double up[PAPER_SEGMENTS][PAPER_SEGMENT], down[PAPER_SEGMENTS];
};

/* One unit step; returns the share that reached the goal. */
static double spread_step(struct spread *s, double p, bool recovers, uint32_t goal)
{
	struct spread next;
	double done = 0;

	memset(&next, 0, sizeof(next));
	for (uint32_t seg = 0; seg < goal; seg++) {
		for (uint32_t open = 0; open <= PAPER_SEGMENT; open++) {
			/* The last round: those who were down and recover now. */
			double from = open == PAPER_SEGMENT ? s->down[seg] : s->up[seg][open];
			double up = open == PAPER_SEGMENT ? (recovers ? p : 0) : 1 - p;
			uint32_t at = open == PAPER_SEGMENT ? 1 : open + 1;

			next.down[seg] += from * (1 - up);
			if (at < PAPER_SEGMENT)
				next.up[seg][at] += from * up;
			else if (seg + 1 < goal)
				next.up[seg + 1][0] += from * up;
			else
				done += from * up;
		}
	}
	*s = next;
	return done;
}

static struct period period_of(double p, bool recovers, uint32_t goal, uint32_t timeout)
{
	struct period period = { 0, 0 };
	struct spread s;

	memset(&s, 0, sizeof(s));
	s.up[0][0] = 1;
	for (uint32_t step = 0; step < timeout; step++) {
		period.length += 1 - period.success; /* who is not done yet spends this step */
		period.success += spread_step(&s, p, recovers, goal);
	}
	return period;
}

/* Gaussian elimination with pivoting; the solution replaces b. */
static void solve(double m[STATES][STATES], double b[STATES])
{
	for (uint32_t k = 0; k < STATES; k++) {
		uint32_t pivot = k;

		for (uint32_t i = k + 1; i < STATES; i++)
			if (fabs(m[i][k]) > fabs(m[pivot][k]))
				pivot = i;
		assert(m[pivot][k] != 0);
		for (uint32_t j = 0; j < STATES; j++) {
			double swap = m[k][j];

			m[k][j] = m[pivot][j];
			m[pivot][j] = swap;
		}
		double swap = b[k];

		b[k] = b[pivot];
		b[pivot] = swap;
		for (uint32_t i = 0; i < STATES; i++) {
			double factor = i == k ? 0 : m[i][k] / m[k][k];

			for (uint32_t j = k; j < STATES; j++)
				m[i][j] -= factor * m[k][j];
			b[i] -= factor * b[k];
		}
	}
	for (uint32_t k = 0; k < STATES; k++)
		b[k] /= m[k][k];
}

/* Row of: this worker stands at checkpoint `at`, the newest that counts is `saved`. */
static uint32_t row_of(uint32_t at, uint32_t saved)
{
	return saved * (saved + 1) / 2 + at;
}

/* E[row] = length + success * E[after one more checkpoint] + (1 - success) * sum P(k) E[k] */
static double solve_shared(const struct period *period, double available, bool keeps)
{
	double m[STATES][STATES], b[STATES];

	memset(m, 0, sizeof(m));
	for (uint32_t saved = 0; saved < PAPER_SEGMENTS; saved++) {
		for (uint32_t at = 0; at <= saved; at++) {
			uint32_t row = row_of(at, saved);
			double none_newer = 1;

			b[row] = period->length;
			m[row][row] += 1;
			if (at + 1 < PAPER_SEGMENTS)
				m[row][row_of(at + 1, at + 1 > saved ? at + 1 : saved)] -=
					period->success;
			for (uint32_t k = saved; k > 0; k--) {
				m[row][row_of(k, keeps ? saved : k)] -=
					(1 - period->success) * none_newer * available;
				none_newer *= 1 - available;
			}
			m[row][row_of(0, keeps ? saved : 0)] -= (1 - period->success) * none_newer;
		}
	}
	solve(m, b);
	return b[row_of(0, 0)];
}

double paper_exact(const struct paper_case *c)
{
	double p = c->failures / PAPER_SEGMENT;
	struct period period;

	if (!c->shared) {
		period = period_of(p, c->recovers, PAPER_SEGMENTS, PAPER_PRIVATE_TIMEOUT);
		return period.length / period.success; /* each attempt is like the first */
	}
	period = period_of(p, c->recovers, 1, PAPER_SHARED_TIMEOUT);
	return solve_shared(&period, c->available, c->keeps);
}
