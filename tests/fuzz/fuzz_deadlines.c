/* SPDX-License-Identifier: LGPL-2.1-or-later */
// sources: agent/util/deadlines.c
/* Whatever is taken for a file of deadlines lies wholly within it and is sound. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "agent/util/deadlines.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	uint8_t *exact = malloc(size ? size : 1);
	const struct deadline *all;
	size_t count;

	if (!exact)
		abort();
	memcpy(exact, bytes, size);
	if (deadlines_parse(exact, size, &all, &count) == 0) {
		if (count > DEADLINES_MAX || (const uint8_t *)(all + count) != exact + size)
			abort();
		for (size_t i = 0; i < count; i++)
			if (all[i].tid <= 0 || all[i].pid <= 0 || all[i].left_ns >> 63 ||
			    !deadlines_is_timed(all[i].call))
				abort();
	}
	free(exact);
	return 0;
}
