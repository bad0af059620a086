/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "overlay/core/forecast.h"
#include "overlay/core/holders.h"

enum { HOSTS = 20, ROOMS = 5, MIB = 1 << 20, LAZY_MS = 1800 * 1000, HOUR_MS = 3600 * 1000 };

struct lab {
	struct core_holder holders[HOSTS];
	struct node_id ids[HOSTS];
	char rooms[ROOMS][OV_NAME_MAX];
	bool off[HOSTS];
};

static bool get(const void *ctx, uint32_t row, struct core_holder *ret_holder)
{
	const struct lab *lab = ctx;

	*ret_holder = lab->holders[row];
	return !lab->off[row];
}

/* Rooms 0 and 1 stay on. */
static void lab_init(struct lab *lab)
{
	memset(lab, 0, sizeof(*lab));
	for (uint32_t i = 0; i < ROOMS; i++)
		snprintf(lab->rooms[i], OV_NAME_MAX, "room-%u", i);
	for (uint32_t i = 0; i < HOSTS; i++) {
		lab->ids[i].b[0] = (uint8_t)(i * 37);
		lab->ids[i].b[9] = (uint8_t)i;
		lab->holders[i] = (struct core_holder){ .id = &lab->ids[i],
							.room = lab->rooms[i % ROOMS],
							.free_bytes = UINT64_C(10) << 30,
							.stays = i % ROOMS < 2 ? 900 : 20 };
	}
}

static uint32_t choose(const struct lab *lab, uint32_t key, uint64_t size, uint32_t max,
		       uint32_t *ret_rows)
{
	struct core_holders from = { .ctx = lab, .count = HOSTS, .get = get };
	struct object_hash hash = { { (uint8_t)key, (uint8_t)(key >> 8), 3 } };

	return core_holders_choose(&core_place_rule_default, &from, &hash, size, NULL, 0, max,
				   ret_rows);
}

static bool is_stable(const struct lab *lab, uint32_t row)
{
	return lab->holders[row].stays >= FORECAST_STABLE;
}

static void two_stay_on_and_all_rooms_differ(void **state)
{
	uint32_t rows[HOSTS], seen[HOSTS] = { 0 };
	struct lab lab;

	(void)state;
	lab_init(&lab);
	for (uint32_t key = 0; key < 400; key++) {
		assert_int_equal(choose(&lab, key, MIB, 3, rows), 3);
		assert_true(is_stable(&lab, rows[0]) && is_stable(&lab, rows[1]));
		for (uint32_t i = 0; i < 3; i++) {
			assert_int_not_equal(rows[i] % ROOMS, rows[(i + 1) % 3] % ROOMS);
			seen[rows[i]]++;
		}
	}
	for (uint32_t i = 0; i < HOSTS; i++)
		assert_true(seen[i] > 10); /* nobody is spared */
}

static void a_stable_host_counts_more_than_a_new_room(void **state)
{
	uint32_t rows[HOSTS];
	struct lab lab;

	(void)state;
	lab_init(&lab);
	for (uint32_t i = 1; i < HOSTS; i += ROOMS)
		lab.off[i] = true;
	assert_int_equal(choose(&lab, 1, MIB, 3, rows), 3);
	assert_int_equal(rows[0] % ROOMS, 0);
	assert_int_equal(rows[1] % ROOMS, 0);
	assert_int_not_equal(rows[2] % ROOMS, 0);
}

static void unknown_is_better_than_known_to_leave(void **state)
{
	uint32_t rows[HOSTS];
	struct lab lab;

	(void)state;
	lab_init(&lab);
	for (uint32_t i = 0; i < HOSTS; i++)
		lab.holders[i].stays = i % ROOMS < 2 ? 0 : 20;
	for (uint32_t key = 0; key < 50; key++) {
		assert_int_equal(choose(&lab, key, MIB, 3, rows), 3);
		assert_true(rows[0] % ROOMS < 2 && rows[1] % ROOMS < 2);
	}
	/* Nobody knows anything: rooms alone decide. */
	for (uint32_t i = 0; i < HOSTS; i++)
		lab.holders[i].stays = 0;
	assert_int_equal(choose(&lab, 3, MIB, 5, rows), 5);
	for (uint32_t i = 0, mask = 0; i < 5; i++) {
		mask |= 1u << rows[i] % ROOMS;
		assert_true(i < 4 || mask == 31);
	}
}

/* What is not needed there leaves the second half to what is. */
static void the_third_copy_leaves_stable_hosts_room(void **state)
{
	uint32_t rows[HOSTS], third = 0;
	struct lab lab;

	(void)state;
	lab_init(&lab);
	for (uint32_t i = 0; i < HOSTS; i++)
		lab.holders[i].stays = i % ROOMS < 3 ? 900 : 20;
	for (uint32_t key = 0; key < 100; key++) {
		assert_int_equal(choose(&lab, key, MIB, 3, rows), 3);
		third += is_stable(&lab, rows[2]);
	}
	assert_true(third > 80);
	for (uint32_t i = 0; i < HOSTS; i++)
		lab.holders[i].used_bytes = lab.holders[i].free_bytes + 1;
	for (uint32_t key = 0; key < 100; key++) {
		assert_int_equal(choose(&lab, key, MIB, 3, rows), 3);
		assert_true(is_stable(&lab, rows[0]) && is_stable(&lab, rows[1]));
		assert_false(is_stable(&lab, rows[2]));
	}
}

static void load_and_room_weigh(void **state)
{
	uint32_t rows[HOSTS], busy = 0, rich = 0;
	struct lab lab;

	(void)state;
	lab_init(&lab);
	for (uint32_t i = 0; i < HOSTS; i++)
		lab.holders[i].stays = 900;
	lab.holders[7].load_milli = 9000;
	lab.holders[8].free_bytes *= 4;
	for (uint32_t key = 0; key < 2000; key++) {
		assert_int_equal(choose(&lab, key, MIB, 1, rows), 1);
		busy += rows[0] == 7;
		rich += rows[0] == 8;
	}
	/* 22.1 shares in all: 9 and 362 expected. */
	assert_in_range(busy, 1, 25);
	assert_in_range(rich, 300, 430);
}

static void past_refuses_what_is_too_large(void **state)
{
	uint32_t rows[HOSTS], first[HOSTS], count;
	struct lab lab;

	(void)state;
	lab_init(&lab);
	/* A tenth for a first choice, a twentieth for one that stands in. */
	assert_int_equal(choose(&lab, 5, UINT64_C(1) << 30, HOSTS, rows), 3);
	assert_int_equal(choose(&lab, 5, (UINT64_C(1) << 30) + 1, HOSTS, rows), 0);
	assert_int_equal(choose(&lab, 5, UINT64_C(1) << 29, HOSTS, rows), HOSTS);
	/* Who stands in for a stable host is one, as long as there is one. */
	for (uint32_t i = 3; i < 9; i++)
		assert_true(is_stable(&lab, rows[i]));
	/* The first ones are full: the list goes on with the same others, and names all once. */
	count = choose(&lab, 5, MIB, HOSTS, first);
	assert_int_equal(count, HOSTS);
	for (uint32_t i = 0; i < count; i++)
		for (uint32_t k = 0; k < i; k++)
			assert_int_not_equal(first[i], first[k]);
}

/* After three refusals the order is another one than the unsalted key's. */
static void three_refusals_salt_the_key(void **state)
{
	uint32_t rows[HOSTS], other = 0;
	struct lab lab;

	(void)state;
	lab_init(&lab);
	for (uint32_t i = 0; i < HOSTS; i++)
		lab.holders[i].stays = 0;
	for (uint32_t key = 0; key < 100; key++) {
		uint32_t shown = choose(&lab, key, MIB, 6, rows), next;
		uint32_t seventh[HOSTS];

		assert_int_equal(shown, 6);
		assert_int_equal(choose(&lab, key, MIB, 7, seventh), 7);
		assert_memory_equal(rows, seventh, 6 * sizeof(*rows));
		/* Of the same rooms' rest, whom would the key itself name first? */
		for (uint32_t i = 0; i < 6; i++)
			lab.off[rows[i]] = true;
		assert_int_equal(choose(&lab, key, MIB, 1, &next), 1);
		memset(lab.off, 0, sizeof(lab.off));
		other += next != seventh[6];
	}
	assert_true(other > 50); /* 13 of 14 expected; none without a salt */
}

static struct core_copy copy(const struct lab *lab, uint32_t row, uint64_t away_ms)
{
	return (struct core_copy){ .holder = lab->holders[row], .away_ms = away_ms };
}

static uint32_t missing(const struct core_copy *copies, uint32_t count)
{
	bool stable_only;

	return core_repair_missing(&core_place_rule_default, copies, count, &stable_only);
}

static void repair_is_lazy(void **state)
{
	struct core_copy copies[3];
	struct lab lab;

	(void)state;
	lab_init(&lab);
	copies[0] = copy(&lab, 0, 0);
	copies[1] = copy(&lab, 1, LAZY_MS - 1);
	copies[2] = copy(&lab, 2, 23 * HOUR_MS);
	assert_int_equal(missing(copies, 3), 0);
	copies[1].away_ms = LAZY_MS;
	assert_int_equal(missing(copies, 3), 2);
	copies[2].away_ms = 1;
	assert_int_equal(missing(copies, 3), 0);
	/* Nobody is there to make one from. */
	copies[0].away_ms = copies[1].away_ms = copies[2].away_ms = 2 * HOUR_MS;
	assert_int_equal(missing(copies, 3), 0);
}

static void repair_comes_before_the_closing(void **state)
{
	struct core_holders from;
	struct object_hash hash = { { 9 } };
	struct core_copy copies[3];
	uint32_t rows[3];
	struct lab lab;

	(void)state;
	lab_init(&lab);
	from = (struct core_holders){ .ctx = &lab, .count = HOSTS, .get = get };
	for (uint32_t i = 0; i < 3; i++)
		copies[i] = copy(&lab, i + 1, 0); /* rooms 1, 2, 3: one stays */
	assert_int_equal(missing(copies, 3), 1);
	assert_int_equal(
		core_repair_plan(&core_place_rule_default, &from, &hash, MIB, copies, 3, rows), 1);
	assert_int_equal(rows[0] % ROOMS, 0);
	/* A host that wavers is still counted on, one that is not known too. */
	copies[1].holder.stays = FORECAST_LEAVES;
	assert_int_equal(missing(copies, 3), 0);
	copies[1].holder.stays = 0;
	assert_int_equal(missing(copies, 3), 0);
	copies[1].holder.stays = FORECAST_LEAVES - 1;
	assert_int_equal(missing(copies, 3), 1);
	/* No stable host has room: what would be made is no better than what there is. */
	for (uint32_t i = 0; i < HOSTS; i++)
		lab.off[i] = i % ROOMS < 2;
	assert_int_equal(
		core_repair_plan(&core_place_rule_default, &from, &hash, MIB, copies, 3, rows), 0);
	/* Too few copies: then any host will do. */
	copies[0].away_ms = copies[1].away_ms = 2 * HOUR_MS;
	assert_int_equal(
		core_repair_plan(&core_place_rule_default, &from, &hash, MIB, copies, 3, rows), 2);
	for (uint32_t i = 0; i < 2; i++)
		assert_int_not_equal(rows[i], 3); /* it has one */
}

static uint32_t surplus(const struct core_copy *copies, uint32_t count)
{
	uint32_t mask = 0;

	for (uint32_t i = 0; i < count; i++)
		mask |= (uint32_t)core_repair_surplus(&core_place_rule_default, copies, count, i)
			<< i;
	return mask;
}

static void a_full_store_gives_up_what_is_surplus(void **state)
{
	struct core_copy copies[5];
	struct lab lab;

	(void)state;
	lab_init(&lab);
	for (uint32_t i = 0; i < 4; i++)
		copies[i] = copy(&lab, i, 0); /* 0 and 1 stay */
	copies[4] = copy(&lab, 5, 0);	      /* and so does this one */
	assert_int_equal(surplus(copies, 4), 1 << 3);
	assert_int_equal(surplus(copies, 5), 1 << 3 | 1 << 4); /* one of each class */
	/* By night: the third stable copy may go, the second never. */
	copies[2].away_ms = copies[3].away_ms = 1;
	assert_int_equal(surplus(copies, 5), 1 << 4);
	assert_int_equal(surplus(copies, 4), 0);
	copies[2].away_ms = 0;
	copies[1].holder.stays = 1; /* only one stays: keep what there is */
	assert_int_equal(surplus(copies, 4), 0);
}

static void the_newest_are_repaired_first(void **state)
{
	struct core_repair_item old = { .there = 1, .committed_ms = 9 };
	struct core_repair_item many = { .newest = true, .there = 2, .committed_ms = 8 };
	struct core_repair_item few = { .newest = true, .there = 1, .committed_ms = 3 };
	struct core_repair_item late = { .newest = true, .there = 1, .committed_ms = 4 };

	(void)state;
	assert_true(core_repair_before(&many, &old) && !core_repair_before(&old, &many));
	assert_true(core_repair_before(&few, &many) && !core_repair_before(&many, &few));
	assert_true(core_repair_before(&late, &few) && !core_repair_before(&few, &late));
	assert_false(core_repair_before(&few, &few));
}

static void most_copies_are_given_up_first(void **state)
{
	struct core_repair_item three = { .newest = true, .there = 3, .committed_ms = 1 };
	struct core_repair_item four = { .newest = true, .there = 4, .committed_ms = 9 };
	struct core_repair_item old = { .there = 3, .committed_ms = 9 };
	struct core_repair_item early = { .there = 3, .committed_ms = 8 };
	struct core_copy copies[3];
	struct lab lab;

	(void)state;
	assert_true(core_give_up_before(&four, &old) && !core_give_up_before(&old, &four));
	assert_true(core_give_up_before(&old, &three) && !core_give_up_before(&three, &old));
	assert_true(core_give_up_before(&early, &old) && !core_give_up_before(&old, &early));
	assert_false(core_give_up_before(&old, &old));
	lab_init(&lab);
	copies[0] = copy(&lab, 0, 0);
	copies[1] = copy(&lab, 1, 1);
	copies[2] = copy(&lab, 2, 0); /* closes at night */
	assert_int_equal(core_copies_stable(copies, 3), 1);
}

static void the_bucket_limits_the_rate(void **state)
{
	struct core_bucket b = { .rate_bytes = 1000, .burst_bytes = 5000, .level_bytes = 5000 };
	uint64_t sent = 0;

	(void)state;
	for (uint64_t t = 0; t <= 100000; t += 10)
		sent += core_bucket_take(&b, t, 700) ? 700 : 0;
	assert_in_range(sent, 104000, 105000);
	assert_false(core_bucket_take(&b, 100000, 1000000)); /* never free: it costs the burst */
	assert_true(core_bucket_take(&b, 106000, 1000000));
	assert_int_equal(b.level_bytes, 0);
	assert_false(core_bucket_take(&b, 50, 1)); /* a clock that goes back earns nothing */
	assert_true(core_bucket_take(&b, UINT64_MAX, 5000));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(two_stay_on_and_all_rooms_differ),
		cmocka_unit_test(a_stable_host_counts_more_than_a_new_room),
		cmocka_unit_test(unknown_is_better_than_known_to_leave),
		cmocka_unit_test(the_third_copy_leaves_stable_hosts_room),
		cmocka_unit_test(load_and_room_weigh),
		cmocka_unit_test(past_refuses_what_is_too_large),
		cmocka_unit_test(three_refusals_salt_the_key),
		cmocka_unit_test(repair_is_lazy),
		cmocka_unit_test(repair_comes_before_the_closing),
		cmocka_unit_test(a_full_store_gives_up_what_is_surplus),
		cmocka_unit_test(the_newest_are_repaired_first),
		cmocka_unit_test(most_copies_are_given_up_first),
		cmocka_unit_test(the_bucket_limits_the_rate),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
