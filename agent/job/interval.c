// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/job/interval.h"

#include <math.h>

#include "agent/pack/pack.h"

enum { MTBF_S = 8 * 3600 };

uint32_t job_interval_rule_s(const struct ckpt_stat *last)
{
	double cost_s, tau_s, floor_s;

	if (!last)
		return JOB_INTERVAL_MIN_S;
	cost_s = (double)last->pause_us / 1e6 + (double)last->total_us / 1e7;
	tau_s = sqrt(2 * cost_s * MTBF_S);
	floor_s = (double)last->total_us / 1e5;
	if (tau_s < floor_s)
		tau_s = floor_s;
	if (tau_s < JOB_INTERVAL_MIN_S)
		return JOB_INTERVAL_MIN_S;
	return tau_s > JOB_INTERVAL_MAX_S ? JOB_INTERVAL_MAX_S : (uint32_t)tau_s;
}
