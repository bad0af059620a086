/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "overlay/core/forecast.h"

enum { HOUR = 3600, DAY = 24 * HOUR, NOTE = 600, START = 20000 };

typedef bool timetable(uint64_t day, uint32_t hour);

static bool always(uint64_t day, uint32_t hour)
{
	(void)day;
	(void)hour;
	return true;
}

static bool by_day(uint64_t day, uint32_t hour)
{
	(void)day;
	return hour >= 8 && hour < 20;
}

static bool six_hours_off(uint64_t day, uint32_t hour)
{
	(void)day;
	return hour >= 6;
}

static bool not_at_weekends(uint64_t day, uint32_t hour)
{
	(void)hour;
	return day % 7 != 2 && day % 7 != 3; /* day 0 of the scale is a Thursday */
}

/* A day on the wall: while it is on the host counts, then it stops; at start it notes 0 s. */
static void live(struct core_forecast *f, timetable *on, uint64_t from_day, uint64_t days)
{
	bool was_on = f->hour != 0;

	for (uint64_t t = from_day * DAY; t < (from_day + days) * DAY; t += NOTE) {
		bool is_on = on(t / DAY, (uint32_t)(t % DAY / HOUR));

		if (is_on)
			core_forecast_note(f, t, was_on ? NOTE : 0);
		was_on = is_on;
	}
}

static bool is_stable(const struct core_forecast *f, uint64_t day, uint32_t hour)
{
	return core_forecast_stays(f, day * DAY + hour * HOUR, NULL) >= FORECAST_STABLE;
}

static void nothing_is_said_of_the_unknown(void **state)
{
	struct core_forecast f = { 0 };

	(void)state;
	assert_int_equal(core_forecast_stays(&f, START * (uint64_t)DAY, NULL), 0);
	live(&f, always, START, 1);
	assert_int_equal(core_forecast_stays(&f, (START + 1) * (uint64_t)DAY, NULL), 0);
	live(&f, always, START + 1, 1);
	assert_true(is_stable(&f, START + 2, 0));
}

static void a_host_that_stays_is_stable_at_any_hour(void **state)
{
	struct core_forecast f = { 0 };

	(void)state;
	live(&f, always, START, 8);
	for (uint32_t hour = 0; hour < 168; hour++)
		assert_true(core_forecast_stays(&f, (START + 8) * (uint64_t)DAY + hour * HOUR,
						NULL) > 950);
}

static void a_night_off_is_seen_all_day_before(void **state)
{
	timetable *tables[] = { by_day, six_hours_off };

	(void)state;
	for (size_t k = 0; k < 2; k++) {
		struct core_forecast f = { 0 };

		live(&f, tables[k], START, 4);
		for (uint32_t hour = 8; hour < 24; hour++) {
			uint64_t at = (START + 4) * (uint64_t)DAY + hour * HOUR;
			uint32_t stays = core_forecast_stays(&f, at, NULL);

			assert_in_range(stays, 1, FORECAST_LEAVES - 1);
		}
	}
}

static void weekends_are_learned_by_the_week(void **state)
{
	struct core_forecast f = { 0 };
	uint64_t thursday = 20006; /* 20006 % 7 == 0 */

	(void)state;
	assert_int_equal(thursday % 7, 0);
	live(&f, not_at_weekends, thursday - 28, 28);
	assert_true(is_stable(&f, thursday, 9));
	live(&f, not_at_weekends, thursday, 1);
	assert_false(is_stable(&f, thursday + 1, 9)); /* Friday, off at midnight */
	live(&f, not_at_weekends, thursday + 1, 5);
	assert_true(is_stable(&f, thursday + 6, 9)); /* Wednesday: trust came back */
}

static void a_new_timetable_is_learned_in_days(void **state)
{
	struct core_forecast f = { 0 };
	uint64_t day = START + 56;

	(void)state;
	live(&f, always, START, 56);
	assert_true(is_stable(&f, day, 12));
	live(&f, by_day, day, 4);
	assert_false(is_stable(&f, day + 4, 12));
	/* Trust comes back as well, but not before it was earned for some nights. */
	live(&f, by_day, day + 4, 28);
	live(&f, always, day + 32, 1);
	assert_false(is_stable(&f, day + 33, 12));
	live(&f, always, day + 33, 14);
	assert_true(is_stable(&f, day + 47, 12));
}

static void configured_hours_count_at_once(void **state)
{
	uint8_t closed[FORECAST_CLOSED_BYTES] = { 0 };
	struct core_forecast f = { 0 };
	uint64_t day = START - START % 7; /* a Thursday */

	(void)state;
	closed[22 / 8] = 1 << 22 % 8; /* Thursday 22 h */
	assert_int_equal(core_forecast_stays(&f, day * DAY + 9 * HOUR, closed), 1);
	assert_int_equal(core_forecast_stays(&f, day * DAY + 23 * HOUR, closed), 0);
	live(&f, always, day, 14);
	assert_int_equal(core_forecast_stays(&f, (day + 14) * DAY + 9 * HOUR, closed), 1);
	assert_true(core_forecast_stays(&f, (day + 15) * DAY + 9 * HOUR, closed) > 950);
}

static void clocks_that_jump_do_no_harm(void **state)
{
	struct core_forecast f = { 0 }, before;
	uint64_t now = (START + 8) * (uint64_t)DAY;

	(void)state;
	live(&f, always, START, 8);
	before = f;
	core_forecast_note(&f, now - 2 * HOUR, NOTE); /* an hour comes twice */
	assert_memory_equal(&f, &before, sizeof(f));
	core_forecast_note(&f, now + HOUR, UINT32_MAX); /* more than there was */
	assert_true(is_stable(&f, START + 8, 1));
	core_forecast_note(&f, now + 365 * (uint64_t)DAY, 0);
	assert_true(is_stable(&f, START, 0)); /* a year away: nothing is learned from that */
	core_forecast_note(&f, 0, 0);	      /* a clock without a battery */
	core_forecast_note(&f, 2 * HOUR, HOUR);
	core_forecast_note(&f, now, 0);
	assert_true(is_stable(&f, START, 0));
	core_forecast_note(&f, UINT64_MAX, UINT32_MAX);
	core_forecast_note(&f, UINT64_MAX, UINT32_MAX);
	(void)core_forecast_stays(&f, UINT64_MAX, NULL);
}

static void it_survives_the_disk(void **state)
{
	struct core_forecast f = { 0 }, back;
	uint8_t bytes[FORECAST_BYTES];

	(void)state;
	live(&f, by_day, START, 17);
	core_forecast_encode(&f, bytes);
	memset(&back, 0xff, sizeof(back));
	assert_int_equal(core_forecast_decode(bytes, sizeof(bytes), &back), 0);
	for (uint64_t t = (START + 17) * (uint64_t)DAY; t < (START + 24) * (uint64_t)DAY; t += HOUR)
		assert_int_equal(core_forecast_stays(&f, t, NULL),
				 core_forecast_stays(&back, t, NULL));
	for (size_t i = 0; i < sizeof(bytes); i++) {
		bytes[i] ^= 4;
		assert_int_equal(core_forecast_decode(bytes, sizeof(bytes), &back), -EBADMSG);
		bytes[i] ^= 4;
	}
	assert_int_equal(core_forecast_decode(bytes, sizeof(bytes) - 1, &back), -EBADMSG);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nothing_is_said_of_the_unknown),
		cmocka_unit_test(a_host_that_stays_is_stable_at_any_hour),
		cmocka_unit_test(a_night_off_is_seen_all_day_before),
		cmocka_unit_test(weekends_are_learned_by_the_week),
		cmocka_unit_test(a_new_timetable_is_learned_in_days),
		cmocka_unit_test(configured_hours_count_at_once),
		cmocka_unit_test(clocks_that_jump_do_no_harm),
		cmocka_unit_test(it_survives_the_disk),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
