/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Up to some 150,000 chords on one thread, with a network and a clock made of one seed.
 *
 *   wheel of 1-ms slots -> chord_step() -> sends back into the wheel, encoded as on the wire
 *
 * Latency of a pair is a hash of (seed, source, target) plus jitter, so messages overtake each
 * other; they are lost and doubled by chance. Hosts are numbered in ring order; a host's id ends
 * in its number. A host has one timer in the wheel, for its deadline; one that came too early,
 * because the deadline moved since, costs a look.
 *
 * The truth of the ring is a bit per host: is it a member. Errors of the harness itself abort.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "overlay/core/chord.h"

enum {
	CHORDNET_HEADER_BYTES = 68, /* IP, UDP, the record's header and AEAD tag */
};

struct chordnet_config {
	uint64_t seed;
	uint32_t hosts;
	uint32_t loss_ppm, double_ppm;
	uint32_t latency_min_ms, latency_max_ms, jitter_ms;
	struct chord_config chord; /* but for self and seed */
};

struct chordnet_counts {
	uint64_t messages, upkeep_bytes, lookup_bytes, events;
};

struct chordnet; /* opaque */

typedef void chordnet_result(void *ctx, uint32_t host, const struct lookup_result *result);

struct chordnet *chordnet_create(const struct chordnet_config *config, chordnet_result *result,
				 void *ctx);
void chordnet_destroy(struct chordnet *net);

uint64_t chordnet_now(const struct chordnet *net);
uint64_t chordnet_random(struct chordnet *net);
uint32_t chordnet_below(struct chordnet *net, uint32_t limit);
const struct chordnet_counts *chordnet_counts(const struct chordnet *net);
const struct chord *chordnet_chord(const struct chordnet *net, uint32_t host);

/* Hosts for which up[] is set become members of a ring that is right from the beginning. */
void chordnet_boot(struct chordnet *net, const bool *up);
/* By way of members drawn at random; without any: a ring of one. */
void chordnet_start(struct chordnet *net, uint32_t host);
void chordnet_crash(struct chordnet *net, uint32_t host);
bool chordnet_is_up(const struct chordnet *net, uint32_t host);
/* From now on it claims every key that it is asked for. */
void chordnet_corrupt(struct chordnet *net, uint32_t host);
/* Neither loss nor doubling from now on. */
void chordnet_calm(struct chordnet *net);
int chordnet_find(struct chordnet *net, uint32_t host, struct ring_key key, uint32_t count,
		  uint64_t request_id);
void chordnet_run(struct chordnet *net, uint64_t until_ms);

/* The truth. */
uint32_t chordnet_members(const struct chordnet *net);
/* The first member at or after; there must be one. */
uint32_t chordnet_member_from(const struct chordnet *net, uint32_t host);
uint32_t chordnet_owner(const struct chordnet *net, struct ring_key key);
uint32_t chordnet_host(const struct node_id *id);
/* Members whose list or predecessor is not what it should be. */
uint32_t chordnet_wrong_members(const struct chordnet *net);
