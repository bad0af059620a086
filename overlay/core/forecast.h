/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Will this host be on tomorrow? Learned from its own past, hour by hour.
 *
 *   the seconds it was on -> finished hours -> "on then and still on 12 h later" -> two histograms
 *
 * Each host keeps this of itself and says the outcome in its report (stays), so that a host that
 * sleeps every night knows of the others what it could never see. Of each hour of the local week:
 * how often it was on and, 12 h later, on as well; aged exponentially. The same by hour of the
 * day, with a much shorter memory: seven samples a week teach in days what one takes weeks for, and
 * a room that begins to close is distrusted after two nights.
 *
 * stays = the worst part of the day that comes: of the starting hours from now on, each with the
 * hour 12 h later, the worst six neighbours, averaged so that one chance outage counts for little.
 * An hour that is configured as closed makes it nothing, learned or not.
 *
 * Time is local time in seconds since 1970 (the driver adds its zone): hour 0 of the week is that
 * of Thursday 00:00. Whole numbers only. Threading: pure functions on one struct.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	FORECAST_WEEK_HOURS = 168,
	FORECAST_DAY_HOURS = 24,
	FORECAST_REACH_HOURS = 12,	 /* "still on in" */
	FORECAST_KNOWN_HOURS = 36,	 /* before that nothing is said: no sample of some hours */
	FORECAST_GAP_HOURS = 6 * 168,	 /* away for longer: nothing is learned from that */
	FORECAST_CLOSED_BYTES = 168 / 8, /* a bit for each hour of the week, from Thursday 00:00 */
	FORECAST_BYTES = 640,		 /* of an encoded one */
	FORECAST_CERTAIN = 1000,	 /* stays is 1 + permille; 0: not known */
	FORECAST_LEAVES = 1 + 250,	 /* below: copies there are not counted on. The gap to */
	FORECAST_STABLE =
		1 + 400, /* this keeps a wavering host's copies in place. Above: it stays on */
};

struct core_forecast {
	uint64_t hour;	       /* being counted, since 1970; 0: nothing was noted yet */
	uint32_t on_s;	       /* seconds of it that the host was on */
	uint32_t hours_known;  /* finished ones, saturating */
	uint32_t recent_count; /* of the hours before this one, in `recent`, without a break */
	uint16_t recent[FORECAST_REACH_HOURS]; /* permille on, of finished hours, by hour % 12 */
	uint16_t week[FORECAST_WEEK_HOURS];    /* permille, of the hour the 12 h began with */
	uint8_t week_count[FORECAST_WEEK_HOURS];
	uint16_t day[FORECAST_DAY_HOURS];
	uint8_t day_count[FORECAST_DAY_HOURS];
};

/*
 * The host was on for the last on_s seconds (at most until the note before, if that is known), and
 * off for the rest since then. Called at least each quarter of an hour, and once at start with 0.
 * A clock that jumps far, either way, starts the count anew and leaves what was learned.
 */
void core_forecast_note(struct core_forecast *forecast, uint64_t local_s, uint32_t on_s);

/* 1 + permille, or 0 if too little is known. closed: FORECAST_CLOSED_BYTES, or NULL. */
uint32_t core_forecast_stays(const struct core_forecast *forecast, uint64_t local_s,
			     const uint8_t *closed);

static inline uint32_t core_forecast_week_hour(uint64_t local_s)
{
	return (uint32_t)(local_s / 3600 % FORECAST_WEEK_HOURS);
}

/* For the disk; little-endian, with a checksum. Decoding refuses (-EBADMSG) what is not whole. */
void core_forecast_encode(const struct core_forecast *forecast, uint8_t bytes[FORECAST_BYTES]);
int core_forecast_decode(const void *bytes, size_t size, struct core_forecast *ret_forecast)
	__attribute__((warn_unused_result));
