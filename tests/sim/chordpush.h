/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Checkpoint deltas on their way from the members of a ring to holders that a look-up names.
 *
 *   look-up of a random key -> a flow to each of the first two members named, at once
 *     a holder goes down     the copy starts anew, after 5 s and another look-up, at another one
 *     the sender goes down   the push is lost
 *
 * A push comes from a member at random, each member one each interval_ms on average. Sizes are
 * uniform around their mean; one host of five has 100 Mbit/s, the others 1 Gbit/s, both ways.
 * What a holder that came back still has of a broken copy is not used.
 */
#pragma once

#include "tests/sim/chordnet.h"
#include "tests/sim/flow.h"

enum { CHORDPUSH_COPIES = 2 };

struct chordpush_sums {
	uint64_t pushes, durable;
	uint64_t lost;	   /* the sender went off */
	uint64_t given_up; /* no holder found in many tries */
	uint64_t restarts; /* copies begun anew, or at a holder that turned out to be off */
	uint64_t bytes, wasted_bytes; /* of whole and of broken copies */
	uint64_t durable_ms;	      /* from the beginning to the last copy, summed */
	uint64_t ideal_ms;	      /* the same, had the sender its whole uplink */
	uint32_t flows_max;
};

struct chordpush; /* opaque */

/* first_ms: when the first one may begin. */
struct chordpush *chordpush_create(struct chordnet *net, uint32_t hosts, uint32_t members,
				   uint32_t interval_ms, uint64_t first_ms);
void chordpush_destroy(struct chordpush *push);
/* No more of them begin. */
void chordpush_stop(struct chordpush *push);
uint64_t chordpush_next_ms(const struct chordpush *push);
/* What is due at the net's time. */
void chordpush_run(struct chordpush *push);
bool chordpush_is_ours(uint64_t request_id);
void chordpush_result(struct chordpush *push, const struct lookup_result *result);
/* The host has gone off. */
void chordpush_crash(struct chordpush *push, uint32_t host);
uint32_t chordpush_in_flight(const struct chordpush *push);
const struct chordpush_sums *chordpush_sums(const struct chordpush *push);
