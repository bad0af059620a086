/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * May this job go on at that host? The one answer that guardians choose by, owners hand over by and
 * people are told; all that bars it is said, not only the first.
 *
 * Threading: pure functions.
 */
#pragma once

#include "overlay/types.h"

enum match_bar {
	MATCH_AWAY = 1 << 0, /* not alive as far as is known here */
	MATCH_VACATING = 1 << 1,
	MATCH_TAKES_NONE = 1 << 2, /* for now or for good */
	MATCH_AVOIDED = 1 << 3,
	MATCH_ARCH = 1 << 4,
	MATCH_CPU = 1 << 5,
	MATCH_KERNEL = 1 << 6,
	MATCH_MEMORY = 1 << 7,
	MATCH_CLOCK = 1 << 8,
	MATCH_NEEDS = 1 << 9,
	/* What no wish of a user's can change. */
	MATCH_CANNOT = MATCH_ARCH | MATCH_CPU | MATCH_KERNEL | MATCH_MEMORY | MATCH_CLOCK |
		       MATCH_NEEDS,
};

struct core_match {
	uint32_t bars;	       /* enum match_bar; 0: it fits */
	uint32_t avoid_index;  /* of AVOIDED, in the value's list */
	uint32_t needs_blame;  /* of NEEDS, see core_needs_met() */
	uint32_t kernel_lacks; /* of KERNEL, enum kernel_feature */
	uint64_t cpu_lacks[4]; /* of CPU */
};

/* grants: jobs given to it since its last report, whose memory still shows as free. */
void core_match(const struct member_info *host, const struct job_value *value, uint32_t grants,
		struct core_match *ret_match);
