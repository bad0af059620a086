/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who keeps a register, who takes a job, who stores an object. Choices are hints: the register and
 * the manifest record what was chosen, so nothing here need ever be computed again elsewhere.
 *
 * Acceptors: the ring successors of hash(job). Objects: holders.c, from the rows of the table.
 */
#include "overlay/core/holders.h"
#include "overlay/core/lookup.h"
#include "overlay/core/match.h"
#include "overlay/core/state.h"

#include <errno.h>
#include <string.h>

enum {
	GRANT_MEMORY_MS = 10000, /* how long a grant counts as load that is not reported yet */
	ROWS_AHEAD = 6,		 /* that are fetched while one is looked at */
	SUCCESSORS = 16,	 /* on the ring, that may become acceptors of a job */
};

static uint64_t word_at(const uint8_t *bytes)
{
	uint64_t word = 0;

	for (size_t i = 0; i < 8; i++)
		word = word << 8 | bytes[i];
	return word;
}

static bool is_named(const struct node_id *id, const struct node_id *list, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		if (node_id_equal(id, &list[i]))
			return true;
	return false;
}

/* Alive, not about to leave, and not in the set yet. */
static bool may_accept(const struct member_info *info, const struct core_acceptors *set)
{
	return info->state == MEMBER_ALIVE && info->incarnation &&
	       !(info->report.flags & MEMBER_VACATING) &&
	       !is_named(&info->id, set->ids, set->count);
}

static bool is_new_room(const struct core *core, const struct member_info *info,
			const struct core_acceptors *set)
{
	for (uint32_t i = 0; i < set->count; i++) {
		const struct member *other = core_member_find(core, &set->ids[i]);

		if (other && !memcmp(other->info.room, info->room, sizeof(info->room)))
			return false;
	}
	return true;
}

/* Of the SUCCESSORS that may, the first in a room of its own, else the first. */
static const struct member_info *next_acceptor(const struct core *core, const struct job_id *id,
					       const struct core_acceptors *set)
{
	struct lookup_walk walk = { .key = lookup_job_key(id) };
	const struct member_info *first = NULL, *info;

	for (uint32_t n = 0; n < SUCCESSORS && lookup_walk_next(core, &walk, &info);) {
		if (!may_accept(info, set))
			continue;
		if (is_new_room(core, info, set))
			return info;
		if (!first)
			first = info;
		n++;
	}
	return first;
}

/* Five; three in a small cluster: four would bear no more losses than three. */
static uint32_t acceptors_wanted(const struct core *core)
{
	static const struct core_acceptors none;
	uint32_t live = 0;

	for (uint32_t i = 0; i < core->member_count && live < OV_REPLICAS_MAX; i++)
		live += may_accept(&core->members[i].info, &none);
	return live == 4 ? 3 : live;
}

void core_place_acceptors(const struct core *core, const struct job_id *id,
			  struct core_acceptors *ret_set)
{
	uint32_t wanted = acceptors_wanted(core);
	struct core_acceptors set;

	memset(&set, 0, sizeof(set));
	while (set.count < wanted) {
		const struct member_info *info = next_acceptor(core, id, &set);

		if (!info)
			break;
		set.ids[set.count++] = info->id;
	}
	/* A host that is alone and leaving keeps its own jobs' registers all the same. */
	if (!set.count)
		set.ids[set.count++] = *core_self(core);
	*ret_set = set;
}

/* Left, leaving, or silent for so long that it will not be back soon. */
static bool is_to_replace(const struct core *core, const struct node_id *id)
{
	const struct member *member = core_member_find(core, id);

	if (node_id_equal(id, core_self(core)))
		return core->members[0].info.report.flags & MEMBER_VACATING;
	if (!member)
		return core->now_ms >= core->born_ms + CORE_REPLACE_MS;
	if (member->info.state == MEMBER_LEFT)
		return true;
	if (member->info.state == MEMBER_DEAD)
		return core->now_ms >= member->heard_ms + CORE_REPLACE_MS;
	return member->info.report.flags & MEMBER_VACATING;
}

bool core_place_replacement(const struct core *core, const struct job *job,
			    struct core_acceptors *ret_set)
{
	struct core_acceptors set = job->acceptors, rest;
	uint32_t wanted = acceptors_wanted(core);
	const struct member_info *info;
	uint32_t at = 0;

	while (at < set.count && !is_to_replace(core, &set.ids[at]))
		at++;
	/* Of two, neither may fail: it is three at once, if there are three. */
	if (at == set.count && (set.count >= wanted || wanted < 3))
		return false;
	/* The room of the one that goes is free again. */
	rest = set;
	if (at < set.count)
		memset(&rest.ids[at], 0, sizeof(rest.ids[at]));
	info = next_acceptor(core, &job->id, &rest);
	if (!info || is_named(&info->id, set.ids, set.count))
		return false;
	set.ids[at] = info->id;
	if (at == set.count)
		set.count++;
	if (set.count == 2) {
		info = next_acceptor(core, &job->id, &set);
		if (info)
			set.ids[set.count++] = info->id;
		else if (job->acceptors.count == 1)
			return false;
	}
	*ret_set = set;
	return true;
}

bool core_place_can_run(const struct member *member, const struct job_value *value)
{
	struct core_match match;

	core_match(&member->info, value, member->grants, &match);
	return !(match.bars & MATCH_CANNOT);
}

static bool is_worker(struct core *core, struct member *member, const struct job_value *value)
{
	struct core_match match;

	if (member->grants && core->now_ms >= member->granted_ms + GRANT_MEMORY_MS)
		member->grants = 0;
	if (member->info.state != MEMBER_ALIVE)
		return false;
	core_match(&member->info, value, member->grants, &match);
	return !match.bars;
}

/* Smaller is better; ties fall by hash, so that guardians of different jobs spread them. */
static uint64_t worker_cost(const struct member *member, const struct job_value *value, bool lapsed)
{
	const struct member_state_report *report = &member->info.report;
	uint64_t load = report->load_milli + UINT64_C(1000) * (report->jobs + member->grants);
	uint64_t tie = core_mix(word_at(member->info.id.b) ^ word_at(value->job.b)) >> 56;

	if (load >= UINT64_C(1) << 40)
		load = (UINT64_C(1) << 40) - 1;
	if (lapsed && node_id_equal(&member->info.id, &value->owner))
		load += UINT64_C(1) << 40;
	return load << 8 | tie;
}

/* A walk over a large table waits for nothing but its rows. */
static void send_for(const struct core *core, uint32_t row)
{
	const struct member_info *info = &core->members[row % OV_MEMBERS_MAX].info;

	__builtin_prefetch(info);
	__builtin_prefetch(&info->report);
	__builtin_prefetch((const uint8_t *)&info->report + 64);
}

int core_place_worker(struct core *core, const struct job_value *value, bool lapsed,
		      struct node_id *ret_worker)
{
	struct member *best = NULL;
	uint64_t best_cost = 0;

	for (uint32_t i = 0; i < core->member_count; i++) {
		struct member *member = &core->members[i];
		uint64_t cost;

		send_for(core, i + ROWS_AHEAD);
		if (!is_worker(core, member, value))
			continue;
		cost = worker_cost(member, value, lapsed);
		if (node_id_equal(&member->info.id, &value->target))
			cost = 0;
		if (best && cost >= best_cost)
			continue;
		best = member;
		best_cost = cost;
	}
	if (!best)
		return -EHOSTUNREACH;
	*ret_worker = best->info.id;
	return 0;
}

void core_place_granted(struct core *core, const struct node_id *worker)
{
	struct member *member = core_member_find(core, worker);

	if (!member)
		return;
	member->grants++;
	member->granted_ms = core->now_ms;
}

struct candidates {
	const struct core *core;
	const struct node_id *exclude;
};

static bool may_hold(const void *ctx, uint32_t row, struct core_holder *ret_holder)
{
	const struct candidates *c = ctx;
	const struct member_info *info = &c->core->members[row].info;
	const struct member_state_report *report = &info->report;

	send_for(c->core, row + ROWS_AHEAD);
	if (info->state != MEMBER_ALIVE || !(report->flags & MEMBER_STORES_PACKS) ||
	    report->flags & MEMBER_VACATING || (c->exclude && node_id_equal(&info->id, c->exclude)))
		return false;
	*ret_holder = (struct core_holder){ .id = &info->id,
					    .room = info->room,
					    .free_bytes = report->store_free_bytes,
					    .used_bytes = report->store_used_bytes,
					    .load_milli = report->load_milli,
					    .stays = report->stays };
	return true;
}

uint32_t core_place(const struct core *core, const struct object_hash *hash, uint64_t size,
		    const struct node_id *exclude, uint32_t max, struct node_id *ret_nodes)
{
	struct candidates ctx = { .core = core, .exclude = exclude };
	struct core_holders from = { .ctx = &ctx, .count = core->member_count, .get = may_hold };
	uint32_t rows[CORE_PLACE_MAX], count;

	if (max > CORE_PLACE_MAX)
		max = CORE_PLACE_MAX;
	count = core_holders_choose(&core_place_rule_default, &from, hash, size, NULL, 0, max,
				    rows);
	for (uint32_t i = 0; i < count; i++)
		ret_nodes[i] = core->members[rows[i]].info.id;
	return count;
}

struct core_copy core_copy_at(const struct core *core, const struct node_id *id)
{
	static const char nowhere[OV_NAME_MAX];
	const struct member *member = core_member_find(core, id);
	struct core_copy copy = { .holder = { .id = id, .room = nowhere }, .away_ms = UINT64_MAX };

	if (!member)
		return copy;
	copy.holder.room = member->info.room;
	copy.holder.stays = member->info.report.stays;
	if (member->info.report.flags & MEMBER_VACATING)
		copy.holder.stays = 1;
	copy.away_ms = 0;
	if (member->info.state != MEMBER_ALIVE)
		copy.away_ms = 1 + core->now_ms - member->heard_ms;
	return copy;
}

uint32_t core_place_repair(const struct core *core, const struct core_place_rule *rule,
			   const struct object_hash *hash, uint64_t size,
			   const struct node_id *holders, uint32_t count, uint32_t *ret_there,
			   struct node_id *ret_nodes)
{
	struct candidates ctx = { .core = core };
	struct core_holders from = { .ctx = &ctx, .count = core->member_count, .get = may_hold };
	struct core_copy copies[OV_HOLDERS_MAX];
	const struct node_id *first = NULL;
	uint32_t rows[CORE_PLACE_MAX], there = 0, chosen;

	for (uint32_t i = 0; i < count && i < OV_HOLDERS_MAX; i++) {
		copies[i] = core_copy_at(core, &holders[i]);
		there += !copies[i].away_ms;
		if (!first && !copies[i].away_ms)
			first = &holders[i];
	}
	*ret_there = there;
	if (count > OV_HOLDERS_MAX || !first || !node_id_equal(first, core_self(core)))
		return 0;
	chosen = core_repair_plan(rule, &from, hash, size, copies, count, rows);
	for (uint32_t i = 0; i < chosen; i++)
		ret_nodes[i] = core->members[rows[i]].info.id;
	return chosen;
}

bool core_place_surplus(const struct core *core, const struct core_place_rule *rule,
			const struct node_id *holders, uint32_t count, const uint32_t *vouched,
			uint32_t *ret_stable)
{
	struct core_copy copies[OV_HOLDERS_MAX + 1];
	uint32_t self = CORE_NONE;

	if (count > OV_HOLDERS_MAX)
		return false;
	for (uint32_t i = 0; i < count; i++) {
		copies[i] = core_copy_at(core, &holders[i]);
		if (node_id_equal(&holders[i], core_self(core)))
			self = i;
		else if (vouched && !(*vouched & 1u << i))
			copies[i].away_ms = UINT64_MAX;
	}
	if (self == CORE_NONE) {
		self = count++;
		copies[self] = core_copy_at(core, core_self(core));
	}
	*ret_stable = core_copies_stable(copies, count);
	return core_repair_surplus(rule, copies, count, self);
}

uint32_t core_ring(const struct core *core, const struct job_id *job, uint32_t max,
		   struct node_id *ret_nodes)
{
	struct lookup_walk walk = { .key = lookup_job_key(job) };
	const struct member_info *info;
	uint32_t count = 0;

	while (count < max && lookup_walk_next(core, &walk, &info))
		ret_nodes[count++] = info->id;
	return count;
}

bool core_is_over(const struct core_tombstone *says, const struct node_id *nodes, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		const struct core_tombstone *named = &says[i];
		uint32_t agree = 0;

		if (!named->state || !named->acceptor_count ||
		    named->acceptor_count > OV_REPLICAS_MAX)
			continue;
		for (uint32_t k = 0; k < count; k++)
			agree += says[k].state &&
				 is_named(&nodes[k], named->acceptors, named->acceptor_count);
		if (agree > named->acceptor_count / 2)
			return true;
	}
	return false;
}
