/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One-hop look-ups in a core's member table, which is filled by gossip messages as on the wire: a
 * third of its rows are not alive. Judged against a search of its own over the same members.
 */
#pragma once

#include <stdint.h>

#include "overlay/core/lookup.h"

struct tablelab_result {
	uint32_t rows, live;
	uint64_t lookups, failed, wrong, hops;
	double cpu_seconds;
};

/* rows: 2.., self included; beyond OV_MEMBERS_MAX those of the dead are used again. Each look-up is for `count` nodes. */
void tablelab_run(uint64_t seed, uint32_t rows, uint32_t lookups, uint32_t count,
		  struct tablelab_result *ret_result);
