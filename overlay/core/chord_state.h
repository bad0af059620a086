/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The inside of struct chord, shared by its own sources and the judges of its tests.
 *
 *   chord.c       the door, ring upkeep: join, stabilise, rectify
 *   chord_find.c  look-ups, fingers
 *
 * A peer whose port is 0 is nobody.
 */
#pragma once

#include "overlay/core/chord_codec.h"

enum {
	CHORD_CANDIDATES_MAX = 8,
	CHORD_NEARER_MAX = 4, /* peers that a node names for a key */
	CHORD_ASKED_MAX = 32, /* nodes of one path, hence its longest */
	CHORD_RESTARTS_MAX = 2,
	CHORD_SILENT_MS = 60000,    /* how long a silent peer is not used to route by */
	CHORD_NUDGE_MS = 500,	    /* between rounds that others asked for */
	CHORD_FINGER_STEPS = 4,	    /* back along predecessors before the search begins anew */
	CHORD_JOIN_RETRY_MS = 2000, /* after no seed answered */
};

/*
 * Rules that tests switch off to see what breaks without them; constant true in the product.
 * The test includes the sources with CHORD_MUTANTS defined.
 */
enum {
	CHORD_RULE_JOIN_LIST = 1 << 0,	/* a joiner copies the whole list */
	CHORD_RULE_ASK_FIRST = 1 << 1,	/* a predecessor is adopted only after it answered */
	CHORD_RULE_ONE_CHANGE = 1 << 2, /* successor and list change together */
};
#ifdef CHORD_MUTANTS
extern uint32_t chord_mutants;
#define CHORD_RULE(rule) (!(chord_mutants & (rule)))
#else
#define CHORD_RULE(rule) (true)
#endif

struct chord_request {
	struct chord_peer to; /* port 0: none is waiting */
	uint8_t tries;
	uint64_t seq, due_ms;
};

enum chord_purpose { CHORD_FREE = 0, CHORD_FIND, CHORD_FIX_FINGER, CHORD_JOIN };

struct chord_candidate {
	struct chord_peer peer;
	bool closing; /* at or after the key: it may be the one */
};

/* One path of a look-up. */
struct chord_path {
	uint8_t purpose, finger, done, closing;
	uint8_t wanted; /* nodes */
	uint8_t hops, silent, restarts, back;
	uint8_t candidate_count, avoid_count, asked_count, found_count;
	uint64_t request_id;
	struct ring_key key;
	struct chord_request request;
	struct chord_candidate candidates[CHORD_CANDIDATES_MAX]; /* the next to ask is last */
	struct node_id avoid[CHORD_AVOID_MAX];
	uint64_t asked[CHORD_ASKED_MAX];
	struct node_id found[OV_REPLICAS_MAX]; /* the responsible node first */
};

struct chord_silent {
	struct node_id id;
	uint64_t until_ms;
};

struct chord {
	struct chord_config config;
	struct ring_key self;
	enum chord_state state;
	uint64_t now_ms, next_ms, random;

	uint64_t stabilise_due_ms, stabilised_ms, finger_due_ms, join_due_ms;
	uint64_t digest;      /* of our list */
	uint64_t head_digest; /* of succ[0]'s list that ours was made of; 0: ask for it whole */
	struct chord_request stabilise, rectify, table;
	struct chord_peer notifier; /* becomes the predecessor if `rectify` stays unanswered */
	bool asks_between;	    /* `stabilise` waits for the predecessor of succ[0] */
	bool joining;		    /* a path of purpose CHORD_JOIN is on its way */

	uint32_t successor_count;
	struct chord_peer predecessor;
	struct chord_peer successors[CHORD_SUCCESSORS_MAX];
	struct chord_peer fingers[CHORD_FINGERS_MAX];
	uint32_t finger_next;
	struct chord_silent silent[CHORD_AVOID_MAX];
	uint32_t seed_count, seed_next;
	struct chord_peer seeds[CHORD_SEEDS_MAX];

	struct chord_path paths[]; /* config.lookup_max */
};

static inline struct ring_key chord_position(const struct chord_peer *peer)
{
	return ring_of(&peer->id);
}

/* chord.c */
uint64_t chord_random(struct chord *chord);
uint64_t chord_jitter(struct chord *chord, uint32_t period_ms); /* 7/8 .. 9/8 of it */
void chord_send(struct chord_update *update, const struct chord_peer *to,
		const struct chord_message *m, bool for_lookup);
/* A new number, a new deadline, the first try. The caller sends. */
void chord_request_start(struct chord *chord, struct chord_request *request,
			 const struct chord_peer *to);
/* Not due: 0. To be sent again: 1. All tries used up: 2, and the peer is marked silent. */
int chord_request_check(struct chord *chord, struct chord_request *request);
/* The answer that is waited for; it is waited for no longer then. */
bool chord_request_answered(struct chord_request *request, const struct node_id *from,
			    uint64_t seq);
bool chord_is_silent(const struct chord *chord, const struct node_id *id);
void chord_joined(struct chord *chord, const struct chord_peer *predecessor,
		  const struct chord_message *m);

/* chord_find.c */
void chord_answer_find(const struct chord *chord, const struct chord_message *ask,
		       struct chord_message *answer);
void chord_found(struct chord *chord, const struct node_id *from, const struct chord_message *m);
/* Everything of look-ups and fingers that is due. */
void chord_find_tick(struct chord *chord, struct chord_update *update);
uint64_t chord_find_deadline(const struct chord *chord);
int chord_find_join(struct chord *chord, const struct chord_peer *seed);
void chord_learn_finger(struct chord *chord, const struct chord_peer *peer);
void chord_drop_finger(struct chord *chord, const struct node_id *id);
