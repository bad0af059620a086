/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who is responsible for a key: the first member at or after it on the ring, and who follows.
 *
 *   lookup_find(key) -> nodes    one-hop: the member table knows them all, the answer is at once
 *                                Chord: asks O(log N) nodes; the answer comes from a later step
 *
 * An answer is a hint. Two members may hold different views for a while, so nothing that must be
 * true may depend on one: a register names its acceptors itself (overlay/core/codec.h).
 *
 * Choice: by ring size, lookup_choose(). Full membership is cheaper to ask and has no anomalies
 * in small rings; its upkeep grows with the ring. The default limit is LOOKUP_ONE_HOP_MAX
 * members; the member table ends before that, at OV_MEMBERS_MAX rows, and so does the choice.
 *
 * Ownership: a struct lookup borrows its backend, a `struct core` or a `struct chord`, which must
 * outlive it; results are plain copies. Threading: none, as the backend.
 * Limits: OV_REPLICAS_MAX nodes in an answer; Chord: as many look-ups in flight as given at init.
 * Units: times in ms of the backend's clock; hops in nodes asked, the responsible one included
 * (a table costs one hop: asking that node).
 * Errors: -EINPROGRESS is no error (see lookup_find); -EAGAIN: too many in flight; -EHOSTUNREACH:
 * nobody known, or nobody answered; -EINVAL: a count of 0 or too large.
 *
 * Sources: Stoica et al., Chord (SIGCOMM 2001); Zave, How to Make Chord Correct (arXiv 1610.01140);
 * Gupta, Liskov, Rodrigues, One Hop Lookups (HotOS 2003).
 */
#pragma once

#include "overlay/core/ring.h"
#include "overlay/types.h"

struct chord;
struct core;

enum { LOOKUP_ONE_HOP_MAX = 10000 }; /* members; beyond it a ring is looked up by Chord */

enum lookup_kind { LOOKUP_ONE_HOP = 1, LOOKUP_CHORD };

struct lookup_result {
	uint64_t request_id;
	int32_t status;	 /* 0, or -EHOSTUNREACH with count 0 */
	uint32_t count;	 /* the responsible node, then its successors */
	uint32_t hops;	 /* nodes asked one after another, silent ones included */
	uint32_t silent; /* of these, how many did not answer */
	struct node_id nodes[OV_REPLICAS_MAX];
};

struct lookup {
	enum lookup_kind kind;
	/* As lookup_find(). */
	int (*find)(void *backend, uint64_t now_ms, struct ring_key key, uint32_t count,
		    uint64_t request_id, struct lookup_result *ret_result);
	void *backend;
};

/* For a ring of so many members. one_hop_max 0: LOOKUP_ONE_HOP_MAX. */
enum lookup_kind lookup_choose(uint32_t ring_size, uint32_t one_hop_max);

/* lookup_of_core() answers from the member table, self included, the dead left out. */
struct lookup lookup_of_core(struct core *core);
struct lookup lookup_of_chord(struct chord *chord);

/*
 * 0: *ret_result is the answer. -EINPROGRESS: it will be in an update of the backend under
 * request_id, which must differ from all that are in flight; step the backend at its deadline.
 */
int lookup_find(const struct lookup *lookup, uint64_t now_ms, struct ring_key key, uint32_t count,
		uint64_t request_id, struct lookup_result *ret_result);

/* The position of hash(job): where the register's acceptors are named from. */
struct ring_key lookup_job_key(const struct job_id *id);

/*
 * The live rows of the member table in ring order, one per call, for who has more conditions:
 * start with a key, call until it returns false. The table must not change in between.
 */
struct lookup_walk {
	struct ring_key key;
	uint32_t first, passed; /* rows, in ring order */
	bool started;
};

bool lookup_walk_next(const struct core *core, struct lookup_walk *walk,
		      const struct member_info **ret_info);
