/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Shards of an object: on which hosts, does it pay, and which are missing. docs/erasure.md
 *
 * Hosts are chosen as for copies (holders.h), each a new one, but never more than m in a room: one
 * that is switched off as a whole must not take the object with it.
 *
 * Automatic: the smallest scheme whose hosts, each on with the probability that it gives itself
 * (`stays`), miss the object half as often as copies on the hosts that would get these, or no more
 * often than SPREAD_ENOUGH. Half: all is reckoned as if nothing were repaired, but a copy is, when
 * one is left, and a shard only when several are missing. A host that says nothing of itself is not
 * counted on. None: copies pay more.
 *
 * Repair: lazily, when fewer than k + m/2 shards are there: all that are missing. Or when fewer than
 * that many are on hosts that may stay on: those of the others, on hosts that stay or not at all.
 *
 * Threading: pure functions.
 */
#pragma once

#include "overlay/core/holders.h"

struct core;

struct core_scheme {
	uint32_t k, m; /* 0, 0: whichever pays */
};

enum {
	SPREAD_SCALE = 1 << 30,
	SPREAD_ENOUGH = SPREAD_SCALE / 10000,
	SPREAD_MARGIN = 2, /* so many times better than copies, which are repaired sooner */
};

/* Who may not be chosen, and why. */
struct core_spread {
	const struct object_hash *hash;
	uint64_t size;		    /* of one shard */
	uint32_t room_max;	    /* shards in one room */
	const struct node_id *kept; /* holders; they count for their rooms */
	uint32_t kept_count;
	const struct node_id *refused; /* this host, and those that said no */
	uint32_t refused_count;
	bool stable_only;
};

/* One more host. False: there is none. */
bool core_spread_next(const struct core *core, const struct core_spread *spread,
		      struct node_id *ret_node);

/*
 * What to do with an object of this size whose owner is `self`: 0, or -EHOSTUNREACH if too few
 * hosts would do, or none pays. A scheme that is given is only asked for hosts that may stay: at
 * least k.
 */
int core_spread_scheme(const struct core *core, const struct object_hash *hash, uint32_t size,
		       const struct core_scheme *wish, struct core_scheme *ret_scheme);

/* In 1/SPREAD_SCALE: fewer than k of these are on; permille each, at most OV_SHARDS_MAX. */
uint64_t core_spread_unavailable(const uint32_t *permille, uint32_t count, uint32_t k);

/* A mask over the copies, one of each shard; 0 as well if fewer than k are there to make it from. */
uint32_t core_spread_missing(const struct core_place_rule *rule, const struct core_copy *copies,
			     uint32_t k, uint32_t m, bool *ret_stable_only);
/* The same from the table; 0 unless this host is the first of the holders that are there. */
uint32_t core_spread_repair(const struct core *core, const struct core_place_rule *rule,
			    const struct node_id *holders, uint32_t k, uint32_t m,
			    uint32_t *ret_there, bool *ret_stable_only);
/* A mask of those that are there. */
uint32_t core_spread_there(const struct core *core, const struct node_id *nodes, uint32_t count);
