/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Transfers that share links, against times and rates worked out by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/sim/flow.h"

enum { HOSTS = 8, MB = 1000000, TAGS = 64 };

static struct ended {
	uint64_t at_ms, left;
	uint32_t count;
	bool whole;
} ended[TAGS];
static uint64_t now_ms;

static void on_end(void *ctx, uint64_t tag, bool whole, uint64_t bytes_left)
{
	(void)ctx;
	ended[tag].at_ms = now_ms;
	ended[tag].whole = whole;
	ended[tag].left = bytes_left;
	ended[tag].count++;
}

/* All links 1000 bytes/ms, but for what a test sets. */
static struct flows *links(void)
{
	struct flows *flows = flows_create(HOSTS, on_end, NULL);

	now_ms = 0;
	for (uint32_t i = 0; i < TAGS; i++)
		ended[i] = (struct ended){ 0 };
	for (uint32_t i = 0; i < HOSTS; i++)
		flows_set_host(flows, i, 1000, 1000);
	return flows;
}

static void run(struct flows *flows)
{
	while (flows_next_ms(flows) != UINT64_MAX) {
		now_ms = flows_next_ms(flows);
		flows_run(flows, now_ms);
	}
}

static void one_has_the_link(void **state)
{
	struct flows *flows = links();

	(void)state;
	flows_set_host(flows, 1, 1, 250); /* the slower end counts */
	flows_start(flows, 0, 0, 1, MB, 0);
	assert_int_equal(flows_rate_up(flows, 0), 250);
	run(flows);
	assert_true(ended[0].whole);
	assert_int_equal(ended[0].at_ms, 4000);
	flows_destroy(flows);
}

/* 1 MB and 3 MB from one host: 500 B/ms each until 2000, then 1000 for the 2 MB that are left. */
static void two_share_an_uplink(void **state)
{
	struct flows *flows = links();

	(void)state;
	flows_start(flows, 0, 0, 1, MB, 0);
	flows_start(flows, 0, 0, 2, 3 * MB, 1);
	run(flows);
	assert_int_equal(ended[0].at_ms, 2000);
	assert_int_equal(ended[1].at_ms, 4000);
	flows_destroy(flows);
}

/* 0.4 MB are through when the second comes; the rest of the first takes 1200 ms at 500 B/ms. */
static void who_comes_later_shares_from_then_on(void **state)
{
	struct flows *flows = links();

	(void)state;
	flows_start(flows, 0, 0, 2, MB, 0);
	flows_start(flows, 400, 1, 2, MB, 1); /* they share its downlink */
	run(flows);
	assert_int_equal(ended[0].at_ms, 1600);
	assert_int_equal(ended[1].at_ms, 2000);
	flows_destroy(flows);
}

/*
 * Max-min: 0->2 and 0->3 and 1->3, where 3's downlink has 300. Those two get 150 each; 0->2 gets
 * the 850 that 0->3 leaves of the uplink, not half of it.
 */
static void what_one_cannot_use_others_get(void **state)
{
	struct flows *flows = links();

	(void)state;
	flows_set_host(flows, 3, 1000, 300);
	flows_start(flows, 0, 0, 2, 1700000, 0);
	flows_start(flows, 0, 0, 3, 600000, 1);
	flows_start(flows, 0, 1, 3, 900000, 2);
	assert_int_equal(flows_rate_up(flows, 0), 1000);
	assert_int_equal(flows_rate_up(flows, 1), 150);
	run(flows);
	assert_int_equal(ended[0].at_ms, 2000); /* 1.7 MB at 850 */
	assert_int_equal(ended[1].at_ms, 4000); /* 0.6 MB at 150 */
	assert_int_equal(ended[2].at_ms, 5000); /* 0.6 MB by then, then 300 */
	flows_destroy(flows);
}

/* Three links in a row: a change at one end is felt at the other. */
static void shares_change_along_a_chain(void **state)
{
	struct flows *flows = links();

	(void)state;
	flows_start(flows, 0, 0, 1, MB, 0);
	flows_start(flows, 0, 2, 1, 2 * MB, 1); /* shares 1's downlink */
	flows_start(flows, 0, 2, 3, 2 * MB, 2); /* shares 2's uplink */
	assert_int_equal(flows_rate_up(flows, 2), 1000);
	now_ms = 1000;
	flows_break(flows, now_ms, 3);
	assert_false(ended[2].whole);
	assert_int_equal(ended[2].left, 1500000);
	assert_int_equal(flows_rate_up(flows, 2), 500); /* its downlink is still shared */
	run(flows);
	assert_int_equal(ended[0].at_ms, 2000);
	assert_int_equal(ended[1].at_ms, 3000); /* 1 MB at 500, 1 MB at 1000 */
	flows_destroy(flows);
}

static void who_goes_down_breaks_both_ways(void **state)
{
	struct flows *flows = links();

	(void)state;
	flows_start(flows, 0, 0, 1, MB, 0);
	flows_start(flows, 0, 1, 2, MB, 1);
	flows_start(flows, 0, 3, 4, MB, 2);
	now_ms = 300;
	flows_break(flows, now_ms, 1);
	assert_int_equal(ended[0].count + ended[1].count + ended[2].count, 2);
	assert_int_equal(ended[0].left, 700000);
	assert_int_equal(ended[1].left, 700000);
	assert_int_equal(flows_count(flows), 1);
	run(flows);
	assert_true(ended[2].whole);
	assert_int_equal(ended[2].at_ms, 1000);
	flows_destroy(flows);
}

/*
 * Many at random: every flow ends once, no uplink is ever over its capacity, and one that is
 * crowded by flows to idle hosts is full.
 */
static void links_are_never_over_full(void **state)
{
	struct flows *flows = links();
	uint32_t seed = 1;

	(void)state;
	for (uint32_t i = 0; i < TAGS; i++) {
		uint32_t from, to;

		seed = seed * 1664525 + 1013904223;
		from = seed >> 16 & 7;
		to = (from + 1 + (seed >> 20) % 7) % HOSTS;
		now_ms = i * 37;
		flows_run(flows, now_ms);
		flows_start(flows, now_ms, from, to, 10000 + (seed >> 12), i);
		for (uint32_t k = 0; k < HOSTS; k++)
			assert_true(flows_rate_up(flows, k) <= 1000);
	}
	run(flows);
	for (uint32_t i = 0; i < TAGS; i++) {
		assert_int_equal(ended[i].count, 1);
		assert_true(ended[i].whole);
	}
	assert_int_equal(flows_count(flows), 0);
	flows_destroy(flows);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_has_the_link),
		cmocka_unit_test(two_share_an_uplink),
		cmocka_unit_test(who_comes_later_shares_from_then_on),
		cmocka_unit_test(what_one_cannot_use_others_get),
		cmocka_unit_test(shares_change_along_a_chain),
		cmocka_unit_test(who_goes_down_breaks_both_ways),
		cmocka_unit_test(links_are_never_over_full),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
