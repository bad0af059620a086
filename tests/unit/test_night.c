/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The short form of `make night`: rooms close every night, and checkpoints must still be there. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include "tests/sim/night.h"

enum { HOSTS = 200, DAYS = 10, OBJECTS = 1000, SEEDS = 4, CODED_SEEDS = 2 };

#define TARGET 1e-3

static void run(const struct night_setup *set, struct night_result *ret_result)
{
	night_run(set, ret_result);
	printf("%s: unavailable %.2e, by night %.2e, by day %.2e, lost %llu, repaired %.3f a day\n",
	       set->name, ret_result->unavailable, ret_result->by_night, ret_result->by_day,
	       (unsigned long long)ret_result->lost, ret_result->repairs);
}

static void what_was_learned_keeps_checkpoints_there(void **state)
{
	double by_night = 0, unavailable = 0, repairs = 0;
	struct night_result result;

	(void)state;
	for (uint64_t seed = 1; seed <= SEEDS; seed++) {
		struct night_setup set = night_default(seed, HOSTS, DAYS, OBJECTS);

		set.name = "learned-2-stable";
		set.knowledge = NIGHT_LEARNED;
		run(&set, &result);
		by_night += result.by_night / SEEDS;
		unavailable += result.unavailable / SEEDS;
		repairs += result.repairs / SEEDS;
		assert_int_equal(result.lost, 0);
		assert_true(result.stored < 6);
		assert_true(result.wrong_stays < 0.01);
	}
	assert_true(by_night < TARGET);
	assert_true(unavailable < TARGET);
	/* There was something to repair, and it was little. */
	assert_true(repairs > 0.01 && repairs < 0.5);
}

/* The judge sees what it must: the same lab, choices that know nothing of closing. */
static void class_blind_placement_fails(void **state)
{
	struct night_setup set = night_default(1, HOSTS, DAYS, OBJECTS);
	struct night_result result;

	(void)state;
	set.name = "blind-3";
	set.knowledge = NIGHT_BLIND;
	set.rule.stable = 0;
	run(&set, &result);
	assert_true(result.by_night > 20 * TARGET);
	set.name = "blind-3-no-repair";
	set.repair = false;
	run(&set, &result);
	assert_true(result.by_night > 100 * TARGET);
}

/*
 * One more room closes for good, and the stores of those that are left are full: what is given up
 * is not what is made again, and nights get well while they stay full.
 */
static void full_stores_do_not_chase_their_own_tail(void **state)
{
	struct night_setup set = night_default(1, HOSTS, 16, 2 * OBJECTS);
	struct night_result result;
	double late = 0;

	(void)state;
	set.name = "one-more-closes";
	set.knowledge = NIGHT_LEARNED;
	set.change_day = set.learn_days + 3;
	run(&set, &result);
	for (uint32_t day = set.change_day + 5; day + 1 < set.learn_days + set.days; day++)
		late += result.nightly[day] / (set.days - 9);
	printf("%s: from the 6th night on %.2e, given up %llu\n", set.name, late,
	       (unsigned long long)result.given_up);
	assert_true(result.given_up > 1000); /* they were full */
	assert_true(result.by_night < TARGET);
	assert_true(late < 1.5 * TARGET);
	assert_true(result.repairs < 0.6);
	assert_int_equal(result.lost, 0);
}

static void run_coded(const char *name, uint64_t seed, uint32_t k, uint32_t m,
		      struct night_result *ret_result)
{
	struct night_setup set = night_default(seed, HOSTS, DAYS, OBJECTS / 2);

	set.name = name;
	set.knowledge = NIGHT_LEARNED;
	set.coded = true;
	set.scheme = (struct core_scheme){ .k = k, .m = m };
	night_run(&set, ret_result);
	printf("%s: by night %.2e, by day %.2e, %.2f times the size, coded %.3f (%u, %u, %u), "
	       "lost %llu, repaired %.3f a day\n",
	       name, ret_result->coded_by_night, ret_result->coded_by_day, ret_result->coded_size,
	       ret_result->coded, ret_result->schemes[0], ret_result->schemes[1],
	       ret_result->schemes[2], (unsigned long long)ret_result->lost, ret_result->repairs);
}

/* What `auto` takes holds by night at twice the size; a scheme that bears too little is seen. */
static void shards_are_there_by_night(void **state)
{
	struct night_result result;
	double by_night = 0, by_day = 0;

	(void)state;
	for (uint64_t seed = 1; seed <= CODED_SEEDS; seed++) {
		run_coded("shards-auto", seed, 0, 0, &result);
		by_night += result.coded_by_night / CODED_SEEDS;
		by_day += result.coded_by_day / CODED_SEEDS;
		assert_int_equal(result.lost, 0);
		assert_true(result.coded > 0.3); /* of some the copies are as good, so far */
		assert_true(result.coded_size < 2.1);
		assert_true(result.repairs > 0.01 && result.repairs < 2);
	}
	assert_true(by_night < TARGET);
	assert_true(by_day < TARGET);
	run_coded("shards-4+2", 1, 4, 2, &result);
	assert_true(result.coded_by_night > 5 * TARGET);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_learned_keeps_checkpoints_there),
		cmocka_unit_test(class_blind_placement_fails),
		cmocka_unit_test(full_stores_do_not_chase_their_own_tail),
		cmocka_unit_test(shards_are_there_by_night),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
