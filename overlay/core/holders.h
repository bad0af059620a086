/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who keeps the copies of an object, and when one more is made. Choices only: what was chosen
 * stands in the manifest or is found by asking, so nothing here need be computed again elsewhere.
 *
 * Choosing: first copies on hosts predicted to stay on (FORECAST_STABLE), as many as `stable`, else
 * on hosts that have no forecast yet, rather than on those that are known to go; each in a room of
 * its own as long as there is one; what is above that quota goes anywhere, but leaves the second
 * half of a stable host's store to those who need it; among equals by weighted rendezvous, score =
 * w / -ln(u), u = hash(object, salt, host) in (0, 1), w = free store * stays / (1 + load), in whole
 * numbers so that every host and every simulation agrees. A list that is longer than `copies`
 * goes on with who takes the place of a host that refuses (PAST's replica diversion); after every
 * three of those the object's key is salted anew (PAST's file diversion). Of the hosts' free
 * store a first choice takes at most 1/10, a later one 1/20.
 *
 * Repair: lazy. A host that is away for less than lazy_ms counts as there. A copy is made if fewer than `low` are there, or if fewer than `stable` are
 * left whose holders may stay on, as far as one knows (FORECAST_LEAVES): before a closing, not after
 * it. Copies that return are kept.
 *
 * Trimming: a surplus copy is a cache. Its bytes count as free, so nobody is refused for its sake,
 * and it goes when less than 1/CORE_TRIM_SHARE of the store is really free: of an object with most
 * copies first. So full stores end up with copies that are spread evenly over the objects; a fixed
 * level at which everything surplus goes would have repair make again what was just given up.
 *
 * Rate: a token bucket per host that sends. Order: core_repair_before().
 *
 * Threading: pure functions.
 */
#pragma once

#include "overlay/types.h"

struct core_holder {
	const struct node_id *id;
	const char *room; /* OV_NAME_MAX bytes, zero-padded; valid until the choice is made */
	uint64_t free_bytes, used_bytes;
	uint32_t load_milli;
	uint32_t stays; /* as in the report: 0 not known, else 1 + permille */
};

enum { CORE_COPIES_MAX = 32 }; /* of one object, that are known of */

/* Hosts by row. get: false if this one may not be chosen now. */
struct core_holders {
	const void *ctx;
	uint32_t count;
	bool (*get)(const void *ctx, uint32_t row, struct core_holder *ret_holder);
};

struct core_place_rule {
	uint32_t copies;	   /* of a new object */
	uint32_t stable;	   /* of them, on hosts predicted to stay */
	uint32_t low;		   /* repair if fewer are there */
	uint32_t lazy_ms, gone_ms; /* away: not there any more; not coming back */
};

/* Three copies, two of them stable; half an hour, a day. */
extern const struct core_place_rule core_place_rule_default;

/*
 * Rows for more copies of an object, best first; at most max. kept: who has one already; at most
 * CORE_COPIES_MAX of them count. Returns how many were written.
 */
uint32_t core_holders_choose(const struct core_place_rule *rule, const struct core_holders *from,
			     const struct object_hash *hash, uint64_t size,
			     const struct core_holder *kept, uint32_t kept_count, uint32_t max,
			     uint32_t *ret_rows);

/* One copy, as far as it is known. */
struct core_copy {
	struct core_holder holder; /* as it was when last heard of */
	uint64_t away_ms;	   /* 0: it is there */
};

/* How many copies to make now; 0 as well if none is there to make them from. */
uint32_t core_repair_missing(const struct core_place_rule *rule, const struct core_copy *copies,
			     uint32_t count, bool *ret_stable_only);

/*
 * Rows for the copies that are missing, best first; 0 if none are, or if nobody would do: what is
 * missing for want of hosts that stay on is made on such a host or not at all. At most
 * CORE_COPIES_MAX copies; ret_rows has room for rule->copies.
 */
uint32_t core_repair_plan(const struct core_place_rule *rule, const struct core_holders *from,
			  const struct object_hash *hash, uint64_t size,
			  const struct core_copy *copies, uint32_t count, uint32_t *ret_rows);

/*
 * Space is short at the holder of copies[self]: may it give its copy up? A stable host's third
 * stable copy may go; another host's, if as many as a new object has stay, the stable ones among
 * them. Of hosts of one class that see the same, one: the least likely to stay, then the last.
 */
bool core_repair_surplus(const struct core_place_rule *rule, const struct core_copy *copies,
			 uint32_t count, uint32_t self);

struct core_repair_item {
	bool newest;	/* of the job's newest committed checkpoint */
	uint32_t there; /* copies */
	uint64_t committed_ms;
};

/* The newest checkpoints first; of those, who has fewer copies; then the later one. */
bool core_repair_before(const struct core_repair_item *a, const struct core_repair_item *b);

enum { CORE_TRIM_SHARE = 32 };

/* Copies that are there now on hosts that stay. */
uint32_t core_copies_stable(const struct core_copy *copies, uint32_t count);

/*
 * Which of two surplus copies goes first; `there` is core_copies_stable() here. Who has more; of
 * those, what no newest checkpoint was put with; then the earlier one.
 */
bool core_give_up_before(const struct core_repair_item *a, const struct core_repair_item *b);

/* Bytes that repair may send: rate per second, saved up to burst. */
struct core_bucket {
	uint64_t rate_bytes, burst_bytes;
	uint64_t level_bytes; /* at at_ms */
	uint64_t at_ms;
};

/* False, and nothing is taken, if there are not as many yet. More than the burst costs all of it. */
bool core_bucket_take(struct core_bucket *bucket, uint64_t now_ms, uint64_t bytes);
