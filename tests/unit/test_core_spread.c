// SPDX-License-Identifier: LGPL-2.1-or-later
/* Where shards go, when they pay, and which are missing. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "overlay/core/forecast.h"
#include "overlay/core/spread.h"
#include "overlay/core/state.h"
#include "tests/sim/simnet.h"

enum { HOSTS = 24, ROOMS = 3, SIZE = 4 << 20 };

static const struct simnet_rates calm = { .latency_ms = 2 };

static void report_all(struct simnet *net)
{
	for (uint32_t i = 0; i < net->node_count; i++)
		simnet_report(net, i);
	simnet_run(net, net->now_ms + 15000);
}

static struct simnet *lab(uint32_t count, uint32_t stays)
{
	struct simnet *net = simnet_create(21, count, &calm, NULL);

	for (uint32_t i = 0; i < count; i++) {
		net->nodes[i].report.stays = stays;
		simnet_start(net, i, 0);
	}
	simnet_run(net, 8000);
	report_all(net);
	return net;
}

static void chances_are_exact(void **state)
{
	static const struct {
		uint32_t permille, n, k;
		double unavailable; /* sum over i < k of (n over i) p^i (1 - p)^(n - i) */
	} known[] = {
		{ 990, 2, 1, 0.0001 },	     { 950, 2, 1, 0.0025 },
		{ 900, 2, 1, 0.01 },	     { 800, 2, 1, 0.04 },
		{ 500, 2, 1, 0.25 },	     { 400, 2, 1, 0.36 },
		{ 990, 3, 1, 1e-06 },	     { 950, 3, 1, 0.000125 },
		{ 900, 3, 1, 0.001 },	     { 800, 3, 1, 0.008 },
		{ 500, 3, 1, 0.125 },	     { 400, 3, 1, 0.216 },
		{ 990, 6, 4, 1.95536e-05 },  { 950, 6, 4, 0.00222984 },
		{ 900, 6, 4, 0.01585 },	     { 800, 6, 4, 0.09888 },
		{ 500, 6, 4, 0.65625 },	     { 400, 6, 4, 0.8208 },
		{ 990, 8, 4, 5.4612e-09 },   { 950, 8, 4, 1.54049e-05 },
		{ 900, 8, 4, 0.00043165 },   { 800, 8, 4, 0.0104064 },
		{ 500, 8, 4, 0.363281 },     { 400, 8, 4, 0.594086 },
		{ 990, 16, 8, 1.07386e-14 }, { 950, 16, 8, 1.61952e-08 },
		{ 900, 16, 8, 5.92432e-06 }, { 800, 16, 8, 0.00147594 },
		{ 500, 16, 8, 0.40181 },     { 400, 16, 8, 0.716063 },
		{ 1000, 6, 4, 0 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		uint32_t permille[OV_SHARDS_MAX];
		double found;

		for (uint32_t j = 0; j < OV_SHARDS_MAX; j++)
			permille[j] = known[i].permille;
		found = (double)core_spread_unavailable(permille, known[i].n, known[i].k) /
			SPREAD_SCALE;
		assert_true(fabs(found - known[i].unavailable) <
			    known[i].unavailable / 1000 + 2e-8);
	}
}

static int scheme(struct simnet *net, uint32_t k, uint32_t m, struct core_scheme *ret_scheme)
{
	struct object_hash hash = { { 5 } };
	struct core_scheme wish = { .k = k, .m = m };

	return core_spread_scheme(net->nodes[0].core, &hash, SIZE, &wish, ret_scheme);
}

/* The better hosts are, the fewer shards; where they are bad, copies on the few that stay win. */
static void what_pays_depends_on_who_stays(void **state)
{
	struct core_scheme found = { 0 };
	struct simnet *net = lab(HOSTS, 1 + 985);

	(void)state;
	assert_int_equal(scheme(net, 0, 0, &found), 0);
	assert_int_equal(found.k, 4);
	assert_int_equal(found.m, 2);
	simnet_destroy(net);
	net = lab(HOSTS, 1 + 900);
	assert_int_equal(scheme(net, 0, 0, &found), 0);
	assert_int_equal(found.k, 4);
	assert_int_equal(found.m, 4);
	for (uint32_t i = 0; i < HOSTS; i++)
		net->nodes[i].report.stays = 1 + 500;
	report_all(net);
	assert_int_equal(scheme(net, 0, 0, &found), -EHOSTUNREACH);
	/* Whoever insists gets it. */
	assert_int_equal(scheme(net, 8, 8, &found), 0);
	assert_int_equal(found.m, 8);
	/* Two that stay, and a crowd that leaves: copies on the two. */
	for (uint32_t i = 0; i < HOSTS; i++)
		net->nodes[i].report.stays = i < 3 ? 1 + 990 : 1 + 100;
	report_all(net);
	assert_int_equal(scheme(net, 0, 0, &found), -EHOSTUNREACH);
	assert_int_equal(scheme(net, 4, 4, &found), -EHOSTUNREACH);
	/* Nobody says anything: nothing is known to pay. */
	for (uint32_t i = 0; i < HOSTS; i++)
		net->nodes[i].report.stays = 0;
	report_all(net);
	assert_int_equal(scheme(net, 0, 0, &found), -EHOSTUNREACH);
	assert_int_equal(scheme(net, 4, 4, &found), 0);
	simnet_destroy(net);
}

/* What is reckoned is without repair, and copies are repaired sooner: shards must be twice as good. */
static void shards_must_be_better_than_copies(void **state)
{
	struct core_scheme found = { 0 };
	struct simnet *net = lab(HOSTS, 1 + 500);

	(void)state;
	for (uint32_t i = 0; i < HOSTS; i++) {
		struct member_state_report *report = &net->nodes[i].report;

		report->stays = i < HOSTS / 2 ? 1 + 950 : 1 + 10;
		/* No third copy goes to a host that stays. */
		report->store_used_bytes = report->store_free_bytes + 1;
	}
	report_all(net);
	/* 4+2 is at 2.2e-3 and the copies at 2.5e-3: 4+4 it is. */
	assert_int_equal(scheme(net, 0, 0, &found), 0);
	assert_int_equal(found.k, 4);
	assert_int_equal(found.m, 4);
	/* 5.8e-2 for 4+4, and 8.9e-2 for copies. */
	for (uint32_t i = 0; i < HOSTS / 2; i++)
		net->nodes[i].report.stays = 1 + 700;
	report_all(net);
	assert_int_equal(scheme(net, 0, 0, &found), -EHOSTUNREACH);
	simnet_destroy(net);
}

static void small_clusters_keep_copies(void **state)
{
	struct core_scheme found = { 0 };
	struct simnet *net = lab(6, 1 + 990);

	(void)state;
	/* Five others: no scheme fits. */
	assert_int_equal(scheme(net, 0, 0, &found), -EHOSTUNREACH);
	assert_int_equal(scheme(net, 4, 2, &found), -EHOSTUNREACH);
	simnet_destroy(net);
}

/* Whichever room is switched off, k are left. */
static void no_room_holds_more_than_may_be_lost(void **state)
{
	struct simnet *net = lab(HOSTS, 1 + 950);

	(void)state;
	for (uint32_t salt = 0; salt < 50; salt++) {
		struct object_hash hash = { { (uint8_t)salt, 9 } };
		uint32_t in_room[ROOMS] = { 0 };
		struct node_id kept[OV_SHARDS_MAX];
		struct core_spread spread = { .hash = &hash,
					      .size = SIZE / 4,
					      .room_max = 4,
					      .kept = kept,
					      .refused = &net->nodes[0].card.id,
					      .refused_count = 1 };

		while (spread.kept_count < 8) {
			struct node_id next;

			assert_true(core_spread_next(net->nodes[0].core, &spread, &next));
			for (uint32_t i = 0; i < spread.kept_count; i++)
				assert_false(node_id_equal(&kept[i], &next));
			assert_int_not_equal(simnet_index(net, &next), 0);
			in_room[simnet_index(net, &next) % ROOMS]++;
			kept[spread.kept_count++] = next;
		}
		for (uint32_t i = 0; i < ROOMS; i++)
			assert_in_range(in_room[i], 1, 4);
	}
	simnet_destroy(net);
}

static void repair_waits_and_looks_ahead(void **state)
{
	const struct core_place_rule *rule = &core_place_rule_default;
	struct core_copy copies[OV_SHARDS_MAX];
	bool stable_only = true;

	(void)state;
	memset(copies, 0, sizeof(copies));
	for (uint32_t i = 0; i < 8; i++)
		copies[i].holder.stays = 1 + 900;
	assert_int_equal(core_spread_missing(rule, copies, 4, 4, &stable_only), 0);
	/* Two of four may be away for long, and all for a while. */
	copies[0].away_ms = copies[1].away_ms = rule->lazy_ms;
	copies[2].away_ms = rule->lazy_ms - 1;
	assert_int_equal(core_spread_missing(rule, copies, 4, 4, &stable_only), 0);
	copies[2].away_ms = rule->lazy_ms;
	assert_int_equal(core_spread_missing(rule, copies, 4, 4, &stable_only), 0x07);
	assert_false(stable_only);
	/* Fewer than k: nobody can. */
	copies[3].away_ms = copies[4].away_ms = 1;
	assert_int_equal(core_spread_missing(rule, copies, 4, 4, &stable_only), 0);
	/* All there, three about to close: before they do, and only to those who stay. */
	memset(copies, 0, sizeof(copies));
	for (uint32_t i = 0; i < 8; i++)
		copies[i].holder.stays = i < 3 ? FORECAST_LEAVES - 1 : 1 + 900;
	assert_int_equal(core_spread_missing(rule, copies, 4, 4, &stable_only), 0x07);
	assert_true(stable_only);
	copies[0].holder.stays = 1 + 900;
	assert_int_equal(core_spread_missing(rule, copies, 4, 4, &stable_only), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(chances_are_exact),
		cmocka_unit_test(what_pays_depends_on_who_stays),
		cmocka_unit_test(shards_must_be_better_than_copies),
		cmocka_unit_test(small_clusters_keep_copies),
		cmocka_unit_test(no_room_holds_more_than_may_be_lost),
		cmocka_unit_test(repair_waits_and_looks_ahead),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
