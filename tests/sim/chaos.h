/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One whole run: hosts and jobs under faults drawn from the seed, then a quiet phase that must
 * converge. Safety is checked after every event, liveness at the end. Failure aborts.
 */
#pragma once

#include <stdint.h>

struct chaos_result {
	uint64_t events, messages, chosen, commits, grants, jobs, ended;
};

/* verbose: one line with the seed and all rates before, one with the counts after. */
void chaos_run(uint64_t seed, uint32_t node_count, uint32_t minutes, int verbose,
	       struct chaos_result *ret_result);
