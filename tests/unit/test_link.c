// SPDX-License-Identifier: LGPL-2.1-or-later
/* The speed of the way out, by given times. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "overlay/link.h"

#define MS UINT64_C(1000000)

static void one(struct link_speed *l, uint64_t *now, uint32_t bytes, uint64_t ms)
{
	link_begin(l, *now);
	*now += ms * MS;
	link_end(l, *now, bytes);
}

static void test_not_known_at_first(void **state)
{
	struct link_speed l = { 0 };
	uint64_t now = 5 * MS;

	(void)state;
	assert_int_equal(link_bytes_per_s(&l), 0);
	one(&l, &now, 512 << 10, 100);
	assert_int_equal(link_bytes_per_s(&l), 0);
	one(&l, &now, 512 << 10, 100);
	assert_in_range(link_bytes_per_s(&l), 5242000, 5243000);
}

/* 80 kbit/s: less than is known of a fast link, but for long. */
static void test_slow_link(void **state)
{
	struct link_speed l = { 0 };
	uint64_t now = 0;

	(void)state;
	for (int i = 0; i < 10; i++)
		one(&l, &now, 300000, 30000);
	assert_in_range(link_bytes_per_s(&l), 9999, 10001);
}

static void test_idle_time_counts_not(void **state)
{
	struct link_speed l = { 0 };
	uint64_t now = 0;

	(void)state;
	for (int i = 0; i < 20; i++) {
		one(&l, &now, 4 << 20, 40);
		now += 60000 * MS;
	}
	assert_in_range(link_bytes_per_s(&l), 104857500, 104857700);
}

/* Three at a time share the link: together they are as fast as it. */
static void test_several_at_once(void **state)
{
	struct link_speed l = { 0 };
	uint64_t now = 0;

	(void)state;
	for (int i = 0; i < 3; i++)
		link_begin(&l, now);
	for (int i = 0; i < 30; i++) {
		now += 100 * MS;
		link_end(&l, now, 1 << 20);
		link_begin(&l, now);
	}
	assert_in_range(link_bytes_per_s(&l), 10485000, 10486000);
}

static void test_failures_say_nothing(void **state)
{
	struct link_speed l = { 0 };
	uint64_t now = 0;

	(void)state;
	one(&l, &now, 4 << 20, 40);
	one(&l, &now, 0, 10000);
	link_begin(&l, now);
	one(&l, &now, 0, 10000); /* beside one that goes on */
	now += 40 * MS;
	link_end(&l, now, 4 << 20);
	assert_in_range(link_bytes_per_s(&l), 104857500, 104857700);
	link_end(&l, now, 4 << 20); /* of nothing that began */
	assert_in_range(link_bytes_per_s(&l), 104857500, 104857700);
}

static void test_it_follows(void **state)
{
	struct link_speed l = { 0 };
	uint64_t now = 0;

	(void)state;
	for (int i = 0; i < 1000; i++)
		one(&l, &now, 4 << 20, 40);
	for (int i = 0; i < 20; i++)
		one(&l, &now, 4 << 20, 4000);
	assert_in_range(link_bytes_per_s(&l), 1048000, 1200000);
	for (int i = 0; i < 60; i++)
		one(&l, &now, 4 << 20, 40);
	assert_in_range(link_bytes_per_s(&l), 80000000, 105000000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_not_known_at_first),   cmocka_unit_test(test_slow_link),
		cmocka_unit_test(test_idle_time_counts_not), cmocka_unit_test(test_several_at_once),
		cmocka_unit_test(test_failures_say_nothing), cmocka_unit_test(test_it_follows),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
