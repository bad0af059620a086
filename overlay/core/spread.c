// SPDX-License-Identifier: LGPL-2.1-or-later
#include "overlay/core/spread.h"

#include <errno.h>
#include <string.h>

#include "overlay/core/forecast.h"
#include "overlay/core/state.h"

enum {
	CERTAIN = 990, /* permille: nobody is on for more of a day than that */
	ALIGN = 128,   /* head and rounding of a shard, for its size */
};

static bool is_named(const struct node_id *id, const struct node_id *list, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		if (node_id_equal(id, &list[i]))
			return true;
	return false;
}

struct candidates {
	const struct core *core;
	const struct core_spread *spread;
	const char *rooms[OV_SHARDS_MAX]; /* of those kept */
	uint32_t room_count;
};

static bool may_hold(const void *ctx, uint32_t row, struct core_holder *ret_holder)
{
	const struct candidates *c = ctx;
	const struct member_info *info = &c->core->members[row].info;
	const struct member_state_report *report = &info->report;
	uint32_t in_room = 0;

	if (info->state != MEMBER_ALIVE || !(report->flags & MEMBER_STORES_PACKS) ||
	    report->flags & MEMBER_VACATING ||
	    (c->spread->stable_only && report->stays < FORECAST_STABLE) ||
	    is_named(&info->id, c->spread->kept, c->spread->kept_count) ||
	    is_named(&info->id, c->spread->refused, c->spread->refused_count))
		return false;
	for (uint32_t i = 0; i < c->room_count; i++)
		in_room += !memcmp(c->rooms[i], info->room, sizeof(info->room));
	if (in_room >= c->spread->room_max)
		return false;
	*ret_holder = (struct core_holder){ .id = &info->id,
					    .room = info->room,
					    .free_bytes = report->store_free_bytes,
					    .used_bytes = report->store_used_bytes,
					    .load_milli = report->load_milli,
					    .stays = report->stays };
	return true;
}

bool core_spread_next(const struct core *core, const struct core_spread *spread,
		      struct node_id *ret_node)
{
	struct core_place_rule rule = { .copies = OV_SHARDS_MAX, .stable = OV_SHARDS_MAX };
	struct candidates ctx = { .core = core, .spread = spread };
	struct core_holders from = { .ctx = &ctx, .count = core->member_count, .get = may_hold };
	struct core_holder kept[OV_SHARDS_MAX];
	uint32_t kept_count = 0, row;

	for (uint32_t i = 0; i < spread->kept_count && kept_count < OV_SHARDS_MAX; i++) {
		const struct member *member = core_member_find(core, &spread->kept[i]);

		if (!member)
			continue;
		kept[kept_count++] =
			(struct core_holder){ .id = &member->info.id, .room = member->info.room };
		ctx.rooms[ctx.room_count++] = member->info.room;
	}
	if (!core_holders_choose(&rule, &from, spread->hash, spread->size, kept, kept_count, 1,
				 &row))
		return false;
	*ret_node = core->members[row].info.id;
	return true;
}

uint64_t core_spread_unavailable(const uint32_t *permille, uint32_t count, uint32_t k)
{
	/* Twenty bits more than are asked for: each step cuts one off. */
	uint64_t on[OV_SHARDS_MAX + 1] = { (uint64_t)SPREAD_SCALE << 20 }, sum = 0;

	for (uint32_t i = 0; i < count && i < OV_SHARDS_MAX; i++) {
		uint64_t p = permille[i] < 1000 ? permille[i] : 1000;

		for (uint32_t j = i + 1; j > 0; j--)
			on[j] = (on[j] * (1000 - p) + on[j - 1] * p) / 1000;
		on[0] = on[0] * (1000 - p) / 1000;
	}
	for (uint32_t j = 0; j < k && j <= OV_SHARDS_MAX; j++)
		sum += on[j];
	return sum >> 20;
}

static uint32_t stays_of(const struct core *core, const struct node_id *id)
{
	const struct member *member = core_member_find(core, id);

	return member ? member->info.report.stays : 0;
}

static uint32_t permille_of(uint32_t stays)
{
	uint32_t permille = stays ? stays - 1 : 0;

	return permille < CERTAIN ? permille : CERTAIN;
}

/* Where copies would be, were there none yet. */
static uint64_t copies_unavailable(const struct core *core, const struct object_hash *hash,
				   uint32_t size)
{
	struct node_id nodes[OV_HOLDERS_MAX];
	uint32_t permille[OV_HOLDERS_MAX], count;

	count = core_place(core, hash, size, core_self(core), core_place_rule_default.copies,
			   nodes);
	for (uint32_t i = 0; i < count; i++)
		permille[i] = permille_of(stays_of(core, &nodes[i]));
	return core_spread_unavailable(permille, count, 1);
}

struct tried {
	uint32_t count, stable, unknown;
	uint32_t permille[OV_SHARDS_MAX];
};

static void try_scheme(const struct core *core, const struct object_hash *hash, uint32_t size,
		       const struct core_scheme *scheme, struct tried *ret_tried)
{
	struct node_id nodes[OV_SHARDS_MAX];
	struct core_spread spread = { .hash = hash,
				      .size = size / scheme->k + ALIGN,
				      .room_max = scheme->m,
				      .kept = nodes,
				      .refused = core_self(core),
				      .refused_count = 1 };
	struct tried tried = { 0 };

	while (tried.count < scheme->k + scheme->m &&
	       core_spread_next(core, &spread, &nodes[tried.count])) {
		uint32_t stays = stays_of(core, &nodes[tried.count]);

		tried.permille[tried.count] = permille_of(stays);
		tried.stable += stays >= FORECAST_STABLE;
		tried.unknown += !stays;
		spread.kept_count = ++tried.count;
	}
	*ret_tried = tried;
}

int core_spread_scheme(const struct core *core, const struct object_hash *hash, uint32_t size,
		       const struct core_scheme *wish, struct core_scheme *ret_scheme)
{
	/* The smallest first. */
	static const struct core_scheme all[] = { { 4, 2 }, { 4, 4 }, { 8, 8 } };
	uint64_t limit = copies_unavailable(core, hash, size);
	struct tried tried;

	if (wish->k) {
		try_scheme(core, hash, size, wish, &tried);
		if (tried.count < wish->k + wish->m || tried.stable + tried.unknown < wish->k)
			return -EHOSTUNREACH;
		*ret_scheme = *wish;
		return 0;
	}
	limit /= SPREAD_MARGIN;
	if (limit < SPREAD_ENOUGH)
		limit = SPREAD_ENOUGH;
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		uint32_t k = all[i].k, m = all[i].m;

		try_scheme(core, hash, size, &all[i], &tried);
		if (tried.count < k + m || tried.unknown || tried.stable < k + m / 2 ||
		    core_spread_unavailable(tried.permille, k + m, k) > limit)
			continue;
		*ret_scheme = all[i];
		return 0;
	}
	return -EHOSTUNREACH;
}

uint32_t core_spread_missing(const struct core_place_rule *rule, const struct core_copy *copies,
			     uint32_t k, uint32_t m, bool *ret_stable_only)
{
	uint32_t low = k + m / 2, there = 0, near = 0, staying = 0, away = 0, leaving = 0;

	for (uint32_t i = 0; i < k + m; i++) {
		uint32_t stays = copies[i].holder.stays;

		there += !copies[i].away_ms;
		if (copies[i].away_ms < rule->lazy_ms)
			near++;
		else
			away |= 1u << i;
		if (copies[i].away_ms < rule->gone_ms && (!stays || stays >= FORECAST_LEAVES))
			staying++;
		else
			leaving |= 1u << i;
	}
	if (there < k)
		return 0;
	*ret_stable_only = near >= low;
	if (near < low)
		return away;
	return staying < low ? leaving : 0;
}

uint32_t core_spread_repair(const struct core *core, const struct core_place_rule *rule,
			    const struct node_id *holders, uint32_t k, uint32_t m,
			    uint32_t *ret_there, bool *ret_stable_only)
{
	struct core_copy copies[OV_SHARDS_MAX];
	const struct node_id *first = NULL;
	uint32_t there = 0;

	for (uint32_t i = 0; i < k + m; i++) {
		copies[i] = core_copy_at(core, &holders[i]);
		there += !copies[i].away_ms;
		if (!first && !copies[i].away_ms)
			first = &holders[i];
	}
	*ret_there = there;
	if (!first || !node_id_equal(first, core_self(core)))
		return 0;
	return core_spread_missing(rule, copies, k, m, ret_stable_only);
}

uint32_t core_spread_there(const struct core *core, const struct node_id *nodes, uint32_t count)
{
	uint32_t mask = 0;

	for (uint32_t i = 0; i < count; i++)
		if (!core_copy_at(core, &nodes[i]).away_ms)
			mask |= 1u << i;
	return mask;
}
