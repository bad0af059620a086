// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/util/deadlines.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* Not the headers' numbers, which are those of the machine that this is built on. */
enum { POLL = 7, NANOSLEEP = 35, FUTEX = 202, CLOCK_NANOSLEEP = 230 };

bool deadlines_is_timed(uint32_t call)
{
	return call == POLL || call == NANOSLEEP || call == FUTEX || call == CLOCK_NANOSLEEP;
}

void deadlines_plugin_dir(const char *keeper, char ret_path[PATH_MAX])
{
	const char *slash = strrchr(keeper, '/');

	snprintf(ret_path, PATH_MAX, "%.*scriu", slash ? (int)(slash + 1 - keeper) : 0, keeper);
}

static bool is_sound(const struct deadline *d)
{
	return d->pid > 0 && d->tid > 0 && deadlines_is_timed(d->call) && !d->reserved &&
	       d->left_ns <= INT64_MAX;
}

int deadlines_parse(const void *bytes, size_t size, const struct deadline **ret_deadlines,
		    size_t *ret_count)
{
	const struct deadlines_head *head = bytes;
	const struct deadline *all;

	if (size < sizeof(*head) || head->magic != DEADLINES_MAGIC ||
	    head->version != DEADLINES_VERSION || head->reserved || head->count > DEADLINES_MAX ||
	    size != sizeof(*head) + head->count * sizeof(*all))
		return -EBADMSG;
	all = (const struct deadline *)(head + 1);
	for (size_t i = 0; i < head->count; i++)
		if (!is_sound(&all[i]))
			return -EBADMSG;
	*ret_deadlines = all;
	*ret_count = head->count;
	return 0;
}
