// SPDX-License-Identifier: LGPL-2.1-or-later
/* How much slower than usual the machine is: TEST_SLOW=10 for one whose code is translated. */
#pragma once

#include <stdlib.h>

enum { SLOW_MAX = 100 };

/* A time limit of a test, in any unit. */
static inline int slow(int limit)
{
	const char *text = getenv("TEST_SLOW");
	int factor = text ? atoi(text) : 1;

	return factor > 1 && factor <= SLOW_MAX ? limit * factor : limit;
}
