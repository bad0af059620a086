/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The choice of a lookup, and the one-hop one: ring order over the member table. */
#include "overlay/core/lookup.h"

#include <errno.h>
#include <string.h>

#include "overlay/core/chord.h"
#include "overlay/core/state.h"

enum lookup_kind lookup_choose(uint32_t ring_size, uint32_t one_hop_max)
{
	uint32_t limit = one_hop_max ? one_hop_max : LOOKUP_ONE_HOP_MAX;

	if (limit > OV_MEMBERS_MAX)
		limit = OV_MEMBERS_MAX;
	return ring_size <= limit ? LOOKUP_ONE_HOP : LOOKUP_CHORD;
}

struct ring_key lookup_job_key(const struct job_id *id)
{
	struct ring_key key;

	key.high = core_mix(ring_word(id->b) ^ core_mix(ring_word(id->b + 8)));
	key.low = core_mix(key.high ^ ring_word(id->b));
	return key;
}

bool lookup_walk_next(const struct core *core, struct lookup_walk *walk,
		      const struct member_info **ret_info)
{
	if (!walk->started)
		walk->first = core_member_ring_place(core, core->member_count, walk->key);
	walk->started = true;
	while (walk->passed < core->member_count) {
		uint32_t at = (walk->first + walk->passed++) % core->member_count;
		const struct member_info *info = &core->members[core->ring[at]].info;

		if (info->state != MEMBER_ALIVE || !info->incarnation)
			continue;
		*ret_info = info;
		return true;
	}
	return false;
}

static int find_one_hop(void *backend, uint64_t now_ms, struct ring_key key, uint32_t count,
			uint64_t request_id, struct lookup_result *ret_result)
{
	struct lookup_result result = { .request_id = request_id, .hops = 1 };
	struct lookup_walk walk = { .key = key };
	const struct core *core = backend;
	const struct member_info *info;

	(void)now_ms;
	while (result.count < count && lookup_walk_next(core, &walk, &info))
		result.nodes[result.count++] = info->id;
	if (!result.count)
		return -EHOSTUNREACH;
	*ret_result = result;
	return 0;
}

static int find_by_chord(void *backend, uint64_t now_ms, struct ring_key key, uint32_t count,
			 uint64_t request_id, struct lookup_result *ret_result)
{
	int r = chord_find(backend, now_ms, key, count, request_id);

	(void)ret_result;
	return r ? r : -EINPROGRESS;
}

struct lookup lookup_of_core(struct core *core)
{
	return (struct lookup){ .kind = LOOKUP_ONE_HOP, .find = find_one_hop, .backend = core };
}

struct lookup lookup_of_chord(struct chord *chord)
{
	return (struct lookup){ .kind = LOOKUP_CHORD, .find = find_by_chord, .backend = chord };
}

int lookup_find(const struct lookup *lookup, uint64_t now_ms, struct ring_key key, uint32_t count,
		uint64_t request_id, struct lookup_result *ret_result)
{
	if (!count || count > OV_REPLICAS_MAX)
		return -EINVAL;
	return lookup->find(lookup->backend, now_ms, key, count, request_id, ret_result);
}
