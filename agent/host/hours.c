// SPDX-License-Identifier: LGPL-2.1-or-later
/* closed_hours = days FROM-TO, ... */
#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <strings.h>

#include "agent/host/host.h"

enum { DAY_HOURS = 24, WEEK_HOURS = 168 };

/* The week begins with the day of 1970-01-01, as hours since then do. */
static const char days[7][4] = { "thu", "fri", "sat", "sun", "mon", "tue", "wed" };

static void skip_blanks(const char **at)
{
	while (isspace((unsigned char)**at))
		++*at;
}

static bool take_day(const char **at, unsigned int *ret_day)
{
	for (unsigned int day = 0; day < 7; day++) {
		if (strncasecmp(*at, days[day], 3) != 0 || isalpha((unsigned char)(*at)[3]))
			continue;
		*at += 3;
		*ret_day = day;
		return true;
	}
	return false;
}

static bool take_hour(const char **at, unsigned int *ret_hour)
{
	unsigned int hour = 0, digits = 0;

	while (isdigit((unsigned char)**at) && digits++ < 2)
		hour = hour * 10 + (unsigned int)(*(*at)++ - '0');
	*ret_hour = hour;
	return digits > 0 && hour <= DAY_HOURS;
}

static int take_span(const char **at, uint8_t hours[21])
{
	unsigned int first, last, from, to;

	if (!take_day(at, &first))
		return -EINVAL;
	last = first;
	if (**at == '-') {
		++*at;
		if (!take_day(at, &last))
			return -EINVAL;
	}
	skip_blanks(at);
	if (!take_hour(at, &from) || from == DAY_HOURS || *(*at)++ != '-' || !take_hour(at, &to))
		return -EINVAL;
	if (to <= from)
		to += DAY_HOURS;
	for (unsigned int day = first;; day = (day + 1) % 7) {
		for (unsigned int hour = from; hour < to; hour++) {
			unsigned int bit = (day * DAY_HOURS + hour) % WEEK_HOURS;

			hours[bit / 8] |= (uint8_t)(1u << bit % 8);
		}
		if (day == last)
			return 0;
	}
}

int host_hours_parse(const char *text, uint8_t ret_hours[21])
{
	uint8_t hours[21] = { 0 };
	int r;

	skip_blanks(&text);
	while (*text) {
		r = take_span(&text, hours);
		if (r < 0)
			return r;
		skip_blanks(&text);
		if (!*text)
			break;
		if (*text++ != ',')
			return -EINVAL;
		skip_blanks(&text);
		if (!*text)
			return -EINVAL;
	}
	memcpy(ret_hours, hours, sizeof(hours));
	return 0;
}
