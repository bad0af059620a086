/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "overlay/core/holders.h"

#include <string.h>

#include "overlay/core/forecast.h"
#include "overlay/core/state.h"

enum {
	FIRST_SHARE = 10, /* t_pri = 0.10 of PAST: of its free store an object may take 1/10 */
	LATER_SHARE = 20, /* t_div = 0.05, for who stands in for another */
	REFUSALS = 3,	  /* then the key is salted */
	TRUST_MIN = 30,	  /* weight of a host that never stays: its disk is of use by day */
	TRUST_NONE = 500, /* of one that says nothing */
	ROOMS_MAX = 64,	  /* rooms of earlier choices that are told apart */
};

const struct core_place_rule core_place_rule_default = { .copies = 3,
							 .stable = 2,
							 .low = 2,
							 .lazy_ms = 1800 * 1000,
							 .gone_ms = 24 * 3600 * 1000 };

static uint64_t word_at(const uint8_t *bytes)
{
	uint64_t word = 0;

	for (size_t i = 0; i < 8; i++)
		word = word << 8 | bytes[i];
	return word;
}

/* -log2(u / 2^64) in 1/65536, for u > 0: bit by bit, squaring the mantissa. */
static uint64_t minus_log2(uint64_t u)
{
	uint64_t whole = 63, mantissa, fraction = 0;

	while (!(u >> whole))
		whole--;
	mantissa = (u << (63 - whole)) >> 32; /* 1.0 is 2^31 */
	for (uint32_t bit = 0; bit < 16; bit++) {
		mantissa = mantissa * mantissa >> 31;
		fraction <<= 1;
		if (mantissa >> 32) {
			mantissa >>= 1;
			fraction |= 1;
		}
	}
	return (64 << 16) - (whole << 16) - fraction;
}

static bool is_stable(uint32_t stays)
{
	return stays >= FORECAST_STABLE;
}

static uint64_t weight_of(const struct core_holder *holder)
{
	uint64_t mib = holder->free_bytes >> 20, trust = TRUST_NONE;

	if (mib >= UINT64_C(1) << 30)
		mib = (UINT64_C(1) << 30) - 1;
	if (holder->stays)
		trust = holder->stays - 1 > TRUST_MIN ? holder->stays - 1 : TRUST_MIN;
	if (trust > FORECAST_CERTAIN)
		trust = FORECAST_CERTAIN;
	return (mib + 1) * trust / (1000 + (uint64_t)holder->load_milli) + 1;
}

static uint64_t score_of(const struct core_holder *holder, const struct object_hash *hash,
			 uint64_t salt)
{
	uint64_t key = core_mix(word_at(hash->b) ^ core_mix(word_at(holder->id->b) + salt) ^
				word_at(holder->id->b + 8));

	return (weight_of(holder) << 20) / (minus_log2(key | 1) + 1);
}

/* What was chosen so far, with what it was chosen for. */
struct choice {
	const struct core_holders *from;
	const struct object_hash *hash;
	uint64_t size, salt;
	const char *rooms[ROOMS_MAX];
	uint32_t room_count;
	const struct core_holder *kept;
	uint32_t kept_count;
	const uint32_t *rows;
	uint32_t count;
	uint64_t share;
};

enum tier { TIER_STABLE, TIER_UNKNOWN, TIER_SPARE, TIER_ANY, TIERS };

static bool is_of_tier(const struct core_holder *holder, enum tier tier)
{
	switch (tier) {
	case TIER_STABLE:
		return is_stable(holder->stays);
	case TIER_UNKNOWN:
		return !holder->stays;
	case TIER_SPARE:
		return !is_stable(holder->stays) || holder->free_bytes >= holder->used_bytes;
	default:
		return true;
	}
}

/* It has room, and no copy yet. */
static bool fits(const struct choice *c, uint32_t row, const struct core_holder *holder)
{
	if (holder->free_bytes / c->share < c->size)
		return false;
	for (uint32_t i = 0; i < c->count; i++)
		if (c->rows[i] == row)
			return false;
	for (uint32_t i = 0; i < c->kept_count; i++)
		if (node_id_equal(c->kept[i].id, holder->id))
			return false;
	return true;
}

static bool is_new_room(const struct choice *c, const struct core_holder *holder)
{
	for (uint32_t i = 0; i < c->room_count; i++)
		if (!memcmp(c->rooms[i], holder->room, OV_NAME_MAX))
			return false;
	return true;
}

struct best {
	bool found;
	uint32_t row;
	uint64_t score;
	struct core_holder holder;
};

static void compete(struct best *best, const struct best *other)
{
	if (!best->found || other->score > best->score)
		*best = *other;
}

/* The best of each tier, first in a room of its own, then in any: one walk over the rows. */
static void find_best(const struct choice *c, struct best best[TIERS][2])
{
	for (uint32_t row = 0; row < c->from->count; row++) {
		struct best this = { .found = true, .row = row };
		bool new_room;

		if (!c->from->get(c->from->ctx, row, &this.holder) || !fits(c, row, &this.holder))
			continue;
		this.score = score_of(&this.holder, c->hash, c->salt);
		new_room = is_new_room(c, &this.holder);
		for (enum tier tier = TIER_STABLE; tier < TIERS; tier++) {
			if (!is_of_tier(&this.holder, tier))
				continue;
			if (new_room)
				compete(&best[tier][0], &this);
			compete(&best[tier][1], &this);
		}
	}
}

/* A stable host in a known room is better than another elsewhere: closing is sure, failure is not. */
static bool pick(const struct choice *c, bool stable, uint32_t *ret_row,
		 struct core_holder *ret_holder)
{
	struct best best[TIERS][2] = { 0 };

	find_best(c, best);
	for (enum tier tier = stable ? TIER_STABLE : TIER_SPARE; tier < TIERS; tier++) {
		for (uint32_t i = 0; i < 2; i++) {
			if (!best[tier][i].found)
				continue;
			*ret_row = best[tier][i].row;
			*ret_holder = best[tier][i].holder;
			return true;
		}
	}
	return false;
}

static void add_room(struct choice *c, const char *room)
{
	if (c->room_count < ROOMS_MAX)
		c->rooms[c->room_count++] = room;
}

uint32_t core_holders_choose(const struct core_place_rule *rule, const struct core_holders *from,
			     const struct object_hash *hash, uint64_t size,
			     const struct core_holder *kept, uint32_t kept_count, uint32_t max,
			     uint32_t *ret_rows)
{
	struct choice c = {
		.from = from, .hash = hash, .size = size, .rows = ret_rows, .kept = kept
	};
	uint32_t stable = 0, wanted;

	c.kept_count = kept_count < CORE_COPIES_MAX ? kept_count : CORE_COPIES_MAX;
	for (uint32_t i = 0; i < c.kept_count; i++) {
		add_room(&c, kept[i].room);
		stable += is_stable(kept[i].stays);
	}
	wanted = c.kept_count < rule->copies ? rule->copies - c.kept_count : 1;
	while (c.count < max) {
		bool later = c.count >= wanted;
		struct core_holder holder;

		c.share = later ? LATER_SHARE : FIRST_SHARE;
		c.salt = later ? (c.count - wanted) / REFUSALS : 0;
		/* Whoever stands in for a stable host should be one. */
		if (!pick(&c, rule->stable && (later || stable < rule->stable), &ret_rows[c.count],
			  &holder))
			break;
		c.count++;
		stable += is_stable(holder.stays);
		add_room(&c, holder.room);
	}
	return c.count;
}

uint32_t core_repair_missing(const struct core_place_rule *rule, const struct core_copy *copies,
			     uint32_t count, bool *ret_stable_only)
{
	uint32_t there = 0, near = 0, stable = 0;

	for (uint32_t i = 0; i < count; i++) {
		uint32_t stays = copies[i].holder.stays;

		there += !copies[i].away_ms;
		near += copies[i].away_ms < rule->lazy_ms;
		stable += copies[i].away_ms < rule->gone_ms && (!stays || stays >= FORECAST_LEAVES);
	}
	if (!there)
		return 0;
	*ret_stable_only = near >= rule->low;
	if (near < rule->low)
		return rule->copies - near;
	return stable < rule->stable ? rule->stable - stable : 0;
}

uint32_t core_repair_plan(const struct core_place_rule *rule, const struct core_holders *from,
			  const struct object_hash *hash, uint64_t size,
			  const struct core_copy *copies, uint32_t count, uint32_t *ret_rows)
{
	struct core_holder kept[CORE_COPIES_MAX], holder;
	bool stable_only = false;
	uint32_t missing = core_repair_missing(rule, copies, count, &stable_only);
	uint32_t kept_count = 0, chosen, good = 0;

	if (!missing)
		return 0;
	for (uint32_t i = 0; i < count && kept_count < CORE_COPIES_MAX; i++)
		if (copies[i].away_ms < (stable_only ? rule->gone_ms : rule->lazy_ms))
			kept[kept_count++] = copies[i].holder;
	chosen = core_holders_choose(rule, from, hash, size, kept, kept_count, missing, ret_rows);
	for (uint32_t i = 0; i < chosen; i++)
		if (!stable_only ||
		    (from->get(from->ctx, ret_rows[i], &holder) && is_stable(holder.stays)))
			ret_rows[good++] = ret_rows[i];
	return good;
}

/* Who gives up first: the least likely to stay, then the later in the list. */
static bool goes_before(const struct core_copy *copies, uint32_t a, uint32_t b)
{
	uint32_t stays_a = copies[a].holder.stays, stays_b = copies[b].holder.stays;

	return stays_a != stays_b ? stays_a < stays_b : a > b;
}

bool core_repair_surplus(const struct core_place_rule *rule, const struct core_copy *copies,
			 uint32_t count, uint32_t self)
{
	bool self_stable = is_stable(copies[self].holder.stays);
	uint32_t there = 0, stable = 0;

	for (uint32_t i = 0; i < count; i++) {
		bool other_stable = is_stable(copies[i].holder.stays);

		if (copies[i].away_ms || i == self)
			continue;
		/* One of a class at a time. The two classes do not count on each other. */
		if (other_stable == self_stable && goes_before(copies, i, self))
			return false;
		there++;
		stable += other_stable;
	}
	if (copies[self].away_ms || stable < rule->stable)
		return false;
	return there >= (self_stable && rule->stable >= rule->low ? rule->stable : rule->copies);
}

bool core_repair_before(const struct core_repair_item *a, const struct core_repair_item *b)
{
	if (a->newest != b->newest)
		return a->newest;
	if (a->there != b->there)
		return a->there < b->there;
	return a->committed_ms > b->committed_ms;
}

uint32_t core_copies_stable(const struct core_copy *copies, uint32_t count)
{
	uint32_t stable = 0;

	for (uint32_t i = 0; i < count; i++)
		stable += !copies[i].away_ms && is_stable(copies[i].holder.stays);
	return stable;
}

bool core_give_up_before(const struct core_repair_item *a, const struct core_repair_item *b)
{
	if (a->there != b->there)
		return a->there > b->there;
	if (a->newest != b->newest)
		return b->newest;
	return a->committed_ms < b->committed_ms;
}

bool core_bucket_take(struct core_bucket *bucket, uint64_t now_ms, uint64_t bytes)
{
	uint64_t past_ms = now_ms > bucket->at_ms ? now_ms - bucket->at_ms : 0;
	uint64_t room = bucket->burst_bytes - bucket->level_bytes;
	uint64_t cost = bytes < bucket->burst_bytes ? bytes : bucket->burst_bytes;

	/* No overflow: a level that is full needs no product. */
	if (bucket->rate_bytes && past_ms / 1000 >= room / bucket->rate_bytes + 1)
		bucket->level_bytes = bucket->burst_bytes;
	else
		bucket->level_bytes += past_ms * bucket->rate_bytes / 1000;
	if (bucket->level_bytes > bucket->burst_bytes)
		bucket->level_bytes = bucket->burst_bytes;
	bucket->at_ms = now_ms;
	if (bucket->level_bytes < cost)
		return false;
	bucket->level_bytes -= cost;
	return true;
}
