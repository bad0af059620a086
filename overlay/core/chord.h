/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Chord with Zave's corrected operations, for rings that no member table holds. Sans-IO, as core.h.
 *
 *   event -> chord_step() -> update: messages, results of look-ups
 *
 *   OUT -- chord_boot(): one of the first members --> MEMBER
 *    ^ \-- chord_join(): by way of seeds ---------> JOINING -> MEMBER
 *    +---- the whole successor list is dead: joins again by the seeds --+
 *
 * Ring: each member keeps its next `successors` members in ring order and its predecessor.
 *   Join        asks the member m that j falls behind, copies m's whole list, predecessor m.
 *   Stabilise   asks succ[0]: silent - drop it, ask the next; else list = succ[0] + its list.
 *               A predecessor of succ[0] that lies between is asked first and adopted, with its
 *               list, only if it answers. Then succ[0] is notified.
 *   Rectify     notified by n: predecessor n if n is nearer, or if the old one does not answer.
 * With >= successors + 1 members that no list skips, and never a whole list dying within one
 * round, the ring stays one ordered ring (Zave). Smaller rings work, without that proof: use the
 * member table there (lookup.h).
 * Fingers: finger i is the first member at or after self + 2^(127-i); one is asked a round.
 * Look-up: iterative. Each node asked names nearer ones; who does not answer is avoided, from then
 * on and by those asked later; at the end the responsible node itself confirms. With paths > 1,
 * that many look-ups run over disjoint nodes and the nearest member found counts: a liar can hide
 * members, but not make them.
 *
 * Bytes are from an authenticated sender; every request bears a number and is sent `tries` times.
 * Lost, doubled, late and reordered messages cost time only. A full update loses messages.
 * Limits: CHORD_* below. Memory: chord_size(lookup_max), all at init. Times in ms, monotonic.
 * Errors: -EBADMSG for undecodable bytes, -EAGAIN too many look-ups, -EHOSTUNREACH not a member,
 * -EINVAL for a config beyond the limits.
 * Threading: none; one caller at a time.
 * Sources: Stoica et al. (SIGCOMM 2001); Zave, arXiv 1610.01140; Castro et al., Secure routing
 * for structured p2p overlays (OSDI 2002) for disjoint look-ups.
 */
#pragma once

#include <stddef.h>

#include "overlay/core/lookup.h"

struct chord; /* opaque */

enum {
	CHORD_SUCCESSORS_MAX = 16,
	CHORD_FINGERS_MAX = 24, /* of distance 2^127 .. 2^104: rings of millions */
	CHORD_SEEDS_MAX = 4,
	CHORD_PATHS_MAX = 3,
	CHORD_LOOKUPS_MAX = 255,  /* paths in flight on one node, fingers and joining included */
	CHORD_MESSAGE_MAX = 1024, /* bytes */
	CHORD_SENDS_MAX = 32,	  /* messages of one step */
	CHORD_RESULTS_MAX = 8,

	/* Defaults, in ms: what lab churn needs, at about 50 bytes a second and node. */
	CHORD_STABILISE_MS = 10000,
	CHORD_FINGER_MS = 15000,
	CHORD_RETRY_MS = 400,
	CHORD_TRIES = 3,
};

/* ip: IPv6, or IPv4 mapped. */
struct chord_peer {
	struct node_id id;
	uint8_t ip[16];
	uint16_t port;
};

struct chord_config {
	struct chord_peer self;
	uint16_t successors;   /* 1..CHORD_SUCCESSORS_MAX */
	uint8_t paths;	       /* of one look-up, 1..CHORD_PATHS_MAX */
	uint8_t tries;	       /* then a peer is silent; >= 1 */
	uint32_t stabilise_ms; /* between two rounds */
	uint32_t finger_ms;    /* between two fingers */
	uint32_t retry_ms;     /* for an answer; longer than the slowest round trip */
	uint32_t lookup_max;   /* 2..CHORD_LOOKUPS_MAX */
	uint64_t seed;	       /* of jitter and request numbers */
};

enum chord_event_type {
	CHORD_EV_TICK = 1, /* time passed: at chord_deadline() or later */
	CHORD_EV_MESSAGE,  /* bytes from an authenticated peer */
};

struct chord_event {
	enum chord_event_type type;
	uint64_t now_ms;
	struct node_id from;
	const void *bytes; /* borrowed for the call */
	size_t size;
};

struct chord_send {
	struct chord_peer to; /* port 0: an answer to the sender of the event's message */
	bool for_lookup;      /* of the application, not upkeep */
	size_t size;
	uint8_t bytes[CHORD_MESSAGE_MAX];
};

/* The caller's memory, shared by as many chords as it likes; overwritten by each step. */
struct chord_update {
	uint32_t send_count, result_count;
	struct lookup_result results[CHORD_RESULTS_MAX];
	struct chord_send sends[CHORD_SENDS_MAX];
};

enum chord_state { CHORD_OUT = 0, CHORD_JOINING, CHORD_MEMBER };

size_t chord_size(uint32_t lookup_max);

/* memory: chord_size(config->lookup_max) bytes, aligned as malloc does. Starts OUT. */
int chord_init(struct chord *chord, const struct chord_config *config);

/*
 * A member of a ring that begins with these peers (any order, self may be among them): the nearest
 * become successors and predecessor, the others fingers. All first members must be given the
 * same ring around them. No peers: a ring of one, which others may join.
 */
int chord_boot(struct chord *chord, uint64_t now_ms, const struct chord_peer *peers,
	       uint32_t peer_count);

/* Joins, and joins again after a loss of all successors, by way of 1..CHORD_SEEDS_MAX seeds. */
int chord_join(struct chord *chord, uint64_t now_ms, const struct chord_peer *seeds,
	       uint32_t seed_count);

/* Starts a look-up; its messages leave in the next step, which is due at once. */
int chord_find(struct chord *chord, uint64_t now_ms, struct ring_key key, uint32_t count,
	       uint64_t request_id);

/* 0, or -EBADMSG with an empty update. */
int chord_step(struct chord *chord, const struct chord_event *event, struct chord_update *update);

/* When chord_step(TICK) is due next; UINT64_MAX: never. */
uint64_t chord_deadline(const struct chord *chord);

enum chord_state chord_state(const struct chord *chord);
/* NULL past the end; valid until the next step. */
const struct chord_peer *chord_successor(const struct chord *chord, uint32_t index);
const struct chord_peer *chord_finger(const struct chord *chord, uint32_t index);
const struct chord_peer *chord_predecessor(const struct chord *chord);
