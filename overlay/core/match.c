/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "overlay/core/match.h"

#include "overlay/core/needs.h"
#include "overlay/ipc.h"

static bool is_avoided(const struct node_id *id, const struct job_value *value, uint32_t *ret_index)
{
	for (uint32_t i = 0; i < value->avoid_count && i < OV_AVOID_MAX; i++) {
		if (node_id_equal(id, &value->avoid[i])) {
			*ret_index = i;
			return true;
		}
	}
	return false;
}

static bool lacks_cpu(const struct member_state_report *report, const struct job_value *value,
		      uint64_t lacks[4])
{
	bool any = false;

	for (size_t i = 0; i < 4; i++) {
		lacks[i] = value->cpu_need[i] & ~report->cpu_features[i];
		any |= lacks[i] != 0;
	}
	return any;
}

static uint32_t willing(const struct member_info *host)
{
	uint32_t flags = host->report.flags, bars = 0;

	if (host->state != MEMBER_ALIVE)
		bars |= MATCH_AWAY;
	if (flags & MEMBER_VACATING)
		bars |= MATCH_VACATING;
	else if (!(flags & MEMBER_TAKES_JOBS))
		bars |= MATCH_TAKES_NONE;
	return bars;
}

void core_match(const struct member_info *host, const struct job_value *value, uint32_t grants,
		struct core_match *ret_match)
{
	const struct member_state_report *report = &host->report;
	uint64_t mem_free_bytes = report->mem_free_bytes / (1 + (uint64_t)grants);
	struct core_match m = { .bars = willing(host) };

	if (is_avoided(&host->id, value, &m.avoid_index))
		m.bars |= MATCH_AVOIDED;
	if (value->arch && report->arch != value->arch)
		m.bars |= MATCH_ARCH;
	if (lacks_cpu(report, value, m.cpu_lacks))
		m.bars |= MATCH_CPU;
	m.kernel_lacks = value->kernel_need & ~report->kernel_features;
	if (m.kernel_lacks)
		m.bars |= MATCH_KERNEL;
	if (mem_free_bytes < value->mem_bytes)
		m.bars |= MATCH_MEMORY;
	if (value->fence == FENCE_STRICT && report->flags & MEMBER_LOSES_CLOCK)
		m.bars |= MATCH_CLOCK;
	if (!core_needs_met(value->needs, value->needs_size, report, mem_free_bytes,
			    &m.needs_blame))
		m.bars |= MATCH_NEEDS;
	*ret_match = m;
}
