/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "overlay/core/forecast.h"

#include <errno.h>
#include <string.h>

#include "overlay/core/codec.h"

enum {
	MAGIC = 0x31544346, /* "FCT1" */
	HOUR_S = 3600,
	SMOOTH_HOURS =
		6, /* averaged: one chance outage counts for little, a closing of 6 h for all */
	WEEK_MEMORY = 4, /* a sample counts for at least 1/4: half is forgotten in 17 days */
	DAY_MEMORY = 3,	 /* and here for 1/3: in 41 hours */
};

static uint16_t learn(uint16_t old, uint8_t *count, uint32_t sample, uint32_t memory)
{
	int32_t weight;

	if (*count < memory)
		++*count;
	weight = *count;
	return (uint16_t)((int32_t)old + ((int32_t)sample - (int32_t)old) / weight);
}

static void finish_hour(struct core_forecast *f)
{
	uint32_t on = f->on_s >= HOUR_S ? FORECAST_CERTAIN : f->on_s * FORECAST_CERTAIN / HOUR_S;
	uint16_t *then = &f->recent[f->hour % FORECAST_REACH_HOURS];

	if (f->recent_count >= FORECAST_REACH_HOURS) {
		uint64_t began = f->hour - FORECAST_REACH_HOURS;
		uint32_t week = (uint32_t)(began % FORECAST_WEEK_HOURS);
		uint32_t day = (uint32_t)(began % FORECAST_DAY_HOURS);
		uint32_t both = *then * on / FORECAST_CERTAIN;

		f->week[week] = learn(f->week[week], &f->week_count[week], both, WEEK_MEMORY);
		f->day[day] = learn(f->day[day], &f->day_count[day], both, DAY_MEMORY);
	}
	*then = (uint16_t)on;
	if (f->recent_count < FORECAST_REACH_HOURS)
		f->recent_count++;
	if (f->hours_known < UINT32_MAX)
		f->hours_known++;
	f->hour++;
	f->on_s = 0;
}

void core_forecast_note(struct core_forecast *f, uint64_t local_s, uint32_t on_s)
{
	uint64_t hour = local_s / HOUR_S;
	uint32_t this_hour_s = (uint32_t)(local_s % HOUR_S);

	/* The first hour is not known from its beginning. A clock that jumps teaches nothing. */
	if (!f->hour || hour < f->hour || hour - f->hour > FORECAST_GAP_HOURS) {
		if (hour < f->hour && f->hour - hour <= FORECAST_REACH_HOURS)
			return; /* the hour that comes twice in autumn, or a small correction */
		f->hour = hour;
		f->on_s = 0;
		f->recent_count = 0;
		return;
	}
	while (f->hour < hour) {
		/* How far the span reaches back into the hour that ends now. */
		uint64_t after_s = local_s - (f->hour + 1) * HOUR_S;
		uint64_t part_s = on_s > after_s ? on_s - after_s : 0;

		f->on_s += part_s > HOUR_S ? HOUR_S : (uint32_t)part_s;
		finish_hour(f);
	}
	f->on_s += on_s < this_hour_s ? on_s : this_hour_s;
}

/* On at this hour and 12 h later. The week knows weekends; the day learns quickly. */
static uint32_t estimate(const struct core_forecast *f, uint64_t hour)
{
	uint32_t week = (uint32_t)(hour % FORECAST_WEEK_HOURS);
	uint32_t day = (uint32_t)(hour % FORECAST_DAY_HOURS), count = f->week_count[week];
	uint32_t both = (f->week[week] * count + f->day[day]) / (count + 1);

	return both < f->day[day] ? both : f->day[day];
}

uint32_t core_forecast_stays(const struct core_forecast *f, uint64_t local_s, const uint8_t *closed)
{
	uint64_t hour = local_s / HOUR_S;
	uint32_t worst = FORECAST_CERTAIN * SMOOTH_HOURS, sum = 0;

	for (uint64_t h = hour; closed && h < hour + 2 * FORECAST_REACH_HOURS; h++) {
		uint32_t slot = (uint32_t)(h % FORECAST_WEEK_HOURS);

		if (closed[slot / 8] >> slot % 8 & 1)
			return 1;
	}
	if (f->hours_known < FORECAST_KNOWN_HOURS)
		return 0;
	for (uint64_t h = hour; h < hour + FORECAST_REACH_HOURS + SMOOTH_HOURS - 1; h++) {
		sum += estimate(f, h);
		if (h < hour + SMOOTH_HOURS - 1)
			continue;
		worst = sum < worst ? sum : worst;
		sum -= estimate(f, h + 1 - SMOOTH_HOURS);
	}
	return 1 + worst / SMOOTH_HOURS;
}

struct writer {
	uint8_t *at;
};

static void put(struct writer *w, uint64_t value, uint32_t size)
{
	for (uint32_t i = 0; i < size; i++)
		*w->at++ = (uint8_t)(value >> 8 * i);
}

static uint64_t take(const uint8_t **at, uint32_t size)
{
	uint64_t value = 0;

	for (uint32_t i = 0; i < size; i++)
		value |= (uint64_t) * (*at)++ << 8 * i;
	return value;
}

enum {
	BODY_BYTES = 4 + 8 + 4 + 4 + 4 + 2 * FORECAST_REACH_HOURS + 3 * FORECAST_WEEK_HOURS +
		     3 * FORECAST_DAY_HOURS,
	SUM_AT = FORECAST_BYTES - 8,
};
_Static_assert(BODY_BYTES <= SUM_AT, "fits");

void core_forecast_encode(const struct core_forecast *f, uint8_t bytes[FORECAST_BYTES])
{
	struct writer w = { .at = bytes };

	memset(bytes, 0, FORECAST_BYTES);
	put(&w, MAGIC, 4);
	put(&w, f->hour, 8);
	put(&w, f->on_s, 4);
	put(&w, f->hours_known, 4);
	put(&w, f->recent_count, 4);
	for (uint32_t i = 0; i < FORECAST_REACH_HOURS; i++)
		put(&w, f->recent[i], 2);
	for (uint32_t i = 0; i < FORECAST_WEEK_HOURS; i++) {
		put(&w, f->week[i], 2);
		put(&w, f->week_count[i], 1);
	}
	for (uint32_t i = 0; i < FORECAST_DAY_HOURS; i++) {
		put(&w, f->day[i], 2);
		put(&w, f->day_count[i], 1);
	}
	w.at = bytes + SUM_AT;
	put(&w, core_checksum(bytes, SUM_AT), 8);
}

static bool is_sane(const struct core_forecast *f)
{
	bool sane = f->on_s <= HOUR_S && f->recent_count <= FORECAST_REACH_HOURS;

	for (uint32_t i = 0; i < FORECAST_REACH_HOURS; i++)
		sane &= f->recent[i] <= FORECAST_CERTAIN;
	for (uint32_t i = 0; i < FORECAST_WEEK_HOURS; i++)
		sane &= f->week[i] <= FORECAST_CERTAIN && f->week_count[i] <= WEEK_MEMORY;
	for (uint32_t i = 0; i < FORECAST_DAY_HOURS; i++)
		sane &= f->day[i] <= FORECAST_CERTAIN && f->day_count[i] <= DAY_MEMORY;
	return sane;
}

int core_forecast_decode(const void *bytes, size_t size, struct core_forecast *ret_forecast)
{
	const uint8_t *at = bytes, *sum = at + SUM_AT;
	struct core_forecast f = { 0 };

	if (size != FORECAST_BYTES || take(&at, 4) != MAGIC ||
	    take(&sum, 8) != core_checksum(bytes, SUM_AT))
		return -EBADMSG;
	f.hour = take(&at, 8);
	f.on_s = (uint32_t)take(&at, 4);
	f.hours_known = (uint32_t)take(&at, 4);
	f.recent_count = (uint32_t)take(&at, 4);
	for (uint32_t i = 0; i < FORECAST_REACH_HOURS; i++)
		f.recent[i] = (uint16_t)take(&at, 2);
	for (uint32_t i = 0; i < FORECAST_WEEK_HOURS; i++) {
		f.week[i] = (uint16_t)take(&at, 2);
		f.week_count[i] = (uint8_t)take(&at, 1);
	}
	for (uint32_t i = 0; i < FORECAST_DAY_HOURS; i++) {
		f.day[i] = (uint16_t)take(&at, 2);
		f.day_count[i] = (uint8_t)take(&at, 1);
	}
	while (at < (const uint8_t *)bytes + SUM_AT)
		if (*at++)
			return -EBADMSG;
	if (!is_sane(&f))
		return -EBADMSG;
	*ret_forecast = f;
	return 0;
}
