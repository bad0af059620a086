/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Forty seeds of faults; a failing one is repeated by build/tests/sim_core SEED NODES MINUTESm. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/sim/chaos.h"

enum { SEEDS = 40, MINUTES = 4, LAB_SEEDS = 3, LAB_NODES = 50, LAB_MINUTES = 180 };

static void invariants_hold(void **state)
{
	struct chaos_result sum = { 0 }, one;

	(void)state;
	for (uint32_t seed = 1; seed <= SEEDS; seed++) {
		chaos_run(seed, seed % 8 == 0 ? 3 : 5 + seed % 3, MINUTES, 1, &one);
		sum.commits += one.commits;
		sum.grants += one.grants;
		sum.ended += one.ended;
	}
	/* The runs were not idle. */
	assert_true(sum.commits > 50 * SEEDS);
	assert_true(sum.grants > 5 * SEEDS);
	assert_true(sum.ended > 0);
}

/* People come and go, rooms close: acceptors are replaced all the time. */
static void invariants_hold_in_a_lab(void **state)
{
	struct chaos_result one;

	(void)state;
	for (uint32_t seed = 1; seed <= LAB_SEEDS; seed++) {
		chaos_run(seed, LAB_NODES, LAB_MINUTES, 1, &one);
		assert_true(one.commits > 0);
		assert_true(one.epochs > 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(invariants_hold),
		cmocka_unit_test(invariants_hold_in_a_lab),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
