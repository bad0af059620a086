/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* When rooms are open, when hosts are on, and what each of them learns of itself. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/sim/night_internal.h"

enum { JITTER_S = 900, MEAN_ON_S = 8 * HOUR, FIRST_WEEKDAY = 4 /* day 0 is a Thursday */ };

double night_exponential(struct night *n, double mean_s)
{
	double u = (1 + (double)dice_below(&n->dice, 1u << 30)) / (1u << 30);

	return -log(u) * mean_s;
}

static bool closes_at_night(const struct night_setup *set, uint32_t room, uint64_t day)
{
	bool changed = set->change_day && day >= set->change_day;

	if (changed && room == set->closing)
		return true;
	return room < set->closing && !(changed && set->swap && room == 0);
}

static bool closed_all_day(const struct night_setup *set, uint32_t room, uint64_t day)
{
	uint64_t weekday = (day + FIRST_WEEKDAY) % 7; /* 0: Sunday */

	if (room >= set->closing)
		return false;
	return (set->weekends && (weekday == 0 || weekday == 6)) ||
	       (set->holiday_day && day == set->holiday_day);
}

bool night_is_closed(const struct night_setup *set, uint32_t room, uint64_t time_s)
{
	uint64_t day = time_s / DAY, hour = time_s % DAY / HOUR;

	if (closed_all_day(set, room, day))
		return true;
	if (hour >= NIGHT_CLOSES_H)
		return closes_at_night(set, room, day);
	/* The night that began yesterday. */
	return hour < NIGHT_OPENS_H && closes_at_night(set, room, day ? day - 1 : 0);
}

static bool is_open(const struct night *n, const struct host *host, uint64_t time_s)
{
	uint64_t at = time_s > host->jitter_s ? time_s - host->jitter_s : 0;

	return !night_is_closed(&n->set, host->room_index, at);
}

void night_hosts_init(struct night *n)
{
	for (uint32_t i = 0; i < n->set.hosts; i++) {
		struct host *host = &n->hosts[i];

		for (size_t k = 0; k < sizeof(host->id.b); k++)
			host->id.b[k] = (uint8_t)dice_below(&n->dice, 256);
		host->room_index = i % n->set.rooms;
		snprintf(host->room, sizeof(host->room), "room-%u", host->room_index);
		host->jitter_s = dice_below(&n->dice, JITTER_S);
		host->up = true;
		host->flips_s = (uint64_t)night_exponential(n, MEAN_ON_S);
		host->wiped_s = (uint64_t)night_exponential(n, (double)n->set.wipe_days * DAY);
		host->said_free_bytes = n->set.quota_bytes;
		host->bucket = (struct core_bucket){ .rate_bytes = n->set.repair_bytes_s,
						     .burst_bytes = 2 * n->set.object_bytes,
						     .level_bytes = 2 * n->set.object_bytes };
		host->on = is_open(n, host, 0);
		core_forecast_note(&host->forecast, 0, 0);
	}
}

/* The configured closing hours, as a host of that room has them in its file. */
static void closed_hours(const struct night_setup *set, uint32_t room,
			 uint8_t closed[FORECAST_CLOSED_BYTES])
{
	memset(closed, 0, FORECAST_CLOSED_BYTES);
	for (uint64_t h = 0; h < FORECAST_WEEK_HOURS; h++)
		if (night_is_closed(set, room, h * HOUR + (h < 24 ? 7 * DAY : 0)))
			closed[h / 8] |= (uint8_t)(1u << h % 8);
}

/* The truth: does it go for a night within the next day? */
static bool will_close(const struct night *n, const struct host *host)
{
	for (uint64_t t = n->now_s; t < n->now_s + DAY; t += HOUR)
		if (!is_open(n, host, t))
			return true;
	return false;
}

static void speak(struct night *n, struct host *host)
{
	uint8_t closed[FORECAST_CLOSED_BYTES];
	bool closes = will_close(n, host);

	host->said_free_bytes = n->set.quota_bytes - host->used_bytes + host->surplus_bytes;
	switch (n->set.knowledge) {
	case NIGHT_BLIND:
		break;
	case NIGHT_CLASS:
		host->stays = closes ? FORECAST_STABLE - 1 : FORECAST_STABLE;
		break;
	case NIGHT_PERFECT:
		host->stays = closes ? 1 : 1 + FORECAST_CERTAIN - 10 * n->set.off_percent;
		break;
	case NIGHT_LEARNED:
		host->stays = core_forecast_stays(&host->forecast, n->now_s, NULL);
		break;
	case NIGHT_CONFIGURED:
		closed_hours(&n->set, host->room_index, closed);
		host->stays = core_forecast_stays(&host->forecast, n->now_s, closed);
		break;
	}
	if (n->now_s < n->begin_s || !host->stays)
		return;
	n->hours_judged++;
	n->wrong_stays += closes && host->stays >= FORECAST_STABLE;
	n->wrong_leaves += !closes && host->stays < FORECAST_STABLE;
}

static void say(struct night *n, struct host *host)
{
	speak(n, host);
	night_table_host(n, (uint32_t)(host - n->hosts));
}

static void note(struct night *n, struct host *host)
{
	core_forecast_note(&host->forecast, n->now_s, (uint32_t)(n->now_s - host->noted_s));
	host->noted_s = n->now_s;
}

static void set_on(struct night *n, uint32_t i, bool on, bool orderly)
{
	struct host *host = &n->hosts[i];

	if (host->on == on)
		return;
	host->on = on;
	if (on) {
		core_forecast_note(&host->forecast, n->now_s, 0);
		host->noted_s = host->on_since_s = n->now_s;
		say(n, host);
		night_store_came(n, i);
		return;
	}
	if (orderly)
		note(n, host); /* else what was not saved yet is gone */
	host->off_since_s = n->now_s;
	night_table_host(n, i);
	night_store_went(n, i);
}

/* A new disk, a new id, and nothing learned. */
static void wipe(struct night *n, uint32_t i)
{
	struct host *host = &n->hosts[i];

	host->wiped_s = n->now_s + (uint64_t)night_exponential(n, (double)n->set.wipe_days * DAY);
	n->result.wipes++;
	night_store_wiped(n, i);
	night_table_leave(n, i);
	for (size_t k = 0; k < sizeof(host->id.b); k++)
		host->id.b[k] = (uint8_t)dice_below(&n->dice, 256);
	memset(&host->forecast, 0, sizeof(host->forecast));
	core_forecast_note(&host->forecast, n->now_s, 0);
	host->noted_s = n->now_s;
	host->stays = 0;
	host->used_bytes = host->surplus_bytes = host->superseded_bytes = 0;
	night_table_join(n, i);
}

void night_hosts_step(struct night *n)
{
	double mean_off_s = (double)MEAN_ON_S * n->set.off_percent / (100 - n->set.off_percent);

	for (uint32_t i = 0; i < n->set.hosts; i++) {
		struct host *host = &n->hosts[i];
		bool open = is_open(n, host, n->now_s);

		if (n->now_s >= host->wiped_s)
			wipe(n, i);
		if (n->now_s >= host->flips_s) {
			double mean_s = host->up ? mean_off_s : MEAN_ON_S;

			host->up = !host->up;
			host->flips_s = n->now_s + 1 + (uint64_t)night_exponential(n, mean_s);
		}
		set_on(n, i, host->up && open, !open);
		if (host->on && n->now_s >= host->noted_s + NOTE_S) {
			note(n, host);
			say(n, host);
		}
	}
}
