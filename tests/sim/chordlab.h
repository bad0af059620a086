/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A lab's day over a ring of chords, and what look-ups see of it.
 *
 *   warm-up 10 min | day | closing 15 min | night | opening 15 min | day | quiet 10 min
 *
 * There are 1.5 * nodes hosts, each on for 8 h and off for 4 h on average (exponential), so that
 * `nodes` are on. At closing, half of those that are on go off within 15 minutes and come back at
 * opening. Nobody says goodbye: every departure is a crash. Look-ups come from members at random,
 * for random keys, and are judged when their answer arrives, against the ring of that instant.
 * With transfers (chordpush.h), members also push checkpoint deltas to holders they look up.
 * In the quiet phase nothing dies or is lost, and every list and predecessor must become right;
 * no push begins then, and those under way must end.
 */
#pragma once

#include <stdint.h>

#include "tests/sim/chordnet.h"
#include "tests/sim/chordpush.h"

enum { CHORDLAB_NODES_MAX = 1000000 };

enum chordlab_phase {
	CHORDLAB_WARM,
	CHORDLAB_DAY,
	CHORDLAB_CLOSING,
	CHORDLAB_NIGHT,
	CHORDLAB_OPENING,
	CHORDLAB_EVENING,
	CHORDLAB_QUIET,
	CHORDLAB_PHASES,
};

struct chordlab_config {
	uint64_t seed;
	uint32_t nodes;
	double hours;	  /* from the end of the warm-up to the quiet phase, at least 0.6 */
	uint32_t lookups; /* in all that time, about */
	uint32_t paths;
	uint32_t push_ms; /* each member pushes so often on average; 0: no transfers */
};

struct chordlab_sums {
	uint64_t lookups, failed, wrong; /* wrong: another node than the ring's */
	uint64_t wrong_sets;		 /* right node, but not the right successors with it */
	uint64_t hops, silent, latency_ms;
	double target; /* sum of 0.5 log2(members) + 0.5, at each look-up */
	double member_seconds;
	uint64_t upkeep_bytes, lookup_bytes;
	uint64_t lost; /* the asking host went off meanwhile */
};

struct chordlab_result {
	struct chordlab_sums phases[CHORDLAB_PHASES];
	struct chordlab_sums sum; /* day to evening */
	uint32_t wrong_members;	  /* at the end of the quiet phase */
	uint32_t members_min, members_max;
	struct chordpush_sums transfers;
	uint32_t transfers_left; /* at the end of the quiet phase */
	uint64_t events, messages, departures, arrivals;
	double virtual_hours, cpu_seconds;
};

/* All that a run is made of, for its first line; the same memory each time. */
const char *chordlab_rates(void);
void chordlab_run(const struct chordlab_config *config, struct chordlab_result *ret_result);
