/* SPDX-License-Identifier: LGPL-2.1-or-later */
// sources: overlay/core/chord_codec.c overlay/core/chord.c overlay/core/chord_find.c
/*
 * A message that decodes must encode again to the same bytes; and a member takes any sequence of
 * messages: the input is cut into messages, each with a length and a sender before it. A number of
 * zero stands for that of the last request to the sender, which no fuzzer would guess.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "overlay/core/chord_codec.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

enum { LOOKUPS = 4, PEERS = 6, STEP_MS = 200, SEQ_AT = 4 };

static struct chord_message message;
static struct chord_update update;
static uint8_t again[CHORD_MESSAGE_MAX];
static uint64_t memory[4096];
static uint8_t asked[16][8]; /* the number of the last request to each peer */

static struct chord_peer peer_of(uint8_t number)
{
	struct chord_peer peer = { .port = 1 };

	peer.id.b[0] = (uint8_t)(number * 16);
	peer.id.b[15] = 1;
	return peer;
}

static struct chord *member(void)
{
	struct chord *chord = (struct chord *)memory;
	struct chord_config config = { .self = peer_of(3),
				       .successors = 4,
				       .paths = 2,
				       .tries = 2,
				       .stabilise_ms = 1000,
				       .finger_ms = 1000,
				       .retry_ms = 300,
				       .lookup_max = LOOKUPS };
	struct chord_peer peers[PEERS];
	struct ring_key key = { UINT64_C(0xa000000000000000), 0 };

	for (uint8_t i = 0; i < PEERS; i++)
		peers[i] = peer_of(i * 2);
	if (chord_size(LOOKUPS) > sizeof(memory) || chord_init(chord, &config) ||
	    chord_boot(chord, 1, peers, PEERS) || chord_join(chord, 1, peers, 2) ||
	    chord_find(chord, 1, key, 2, 1))
		abort();
	return chord;
}

/* Whatever was said: the list stays in ring order, bounded, and without self. */
static void judge(const struct chord *chord)
{
	struct chord_peer self = peer_of(3);
	struct ring_key last = { 0, 0 };
	const struct chord_peer *peer;

	for (uint32_t i = 0; (peer = chord_successor(chord, i)); i++) {
		struct ring_key at = ring_distance(ring_of(&self.id), ring_of(&peer->id));

		if (i >= CHORD_SUCCESSORS_MAX || !ring_less(last, at))
			abort();
		last = at;
	}
}

static void step(struct chord *chord, struct chord_event *event, const uint8_t *bytes, size_t size,
		 uint8_t sender)
{
	static const uint8_t zero[8];

	memcpy(again, bytes, size);
	if (size >= SEQ_AT + 8 && memcmp(again + SEQ_AT, zero, 8) == 0)
		memcpy(again + SEQ_AT, asked[sender], 8);
	event->from = peer_of(sender).id;
	event->bytes = again;
	event->size = size;
	event->now_ms += STEP_MS;
	(void)chord_step(chord, event, &update);
	for (uint32_t i = 0; i < update.send_count; i++)
		if (update.sends[i].to.port && update.sends[i].size >= SEQ_AT + 8)
			memcpy(asked[update.sends[i].to.id.b[0] / 16],
			       update.sends[i].bytes + SEQ_AT, 8);
	judge(chord);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	struct chord_event event = { .type = CHORD_EV_MESSAGE, .now_ms = 1 };
	struct chord *chord = member();
	size_t length;

	memset(asked, 0, sizeof(asked));
	if (chord_message_decode(bytes, size, &message) == 0) {
		length = chord_message_encode(&message, again, sizeof(again));
		if (length != size || memcmp(again, bytes, size) != 0)
			abort();
	}
	while (size > 2) {
		length = bytes[0] < size - 2 ? bytes[0] : size - 2;
		step(chord, &event, bytes + 2, length, bytes[1] % 16);
		bytes += 2 + length;
		size -= 2 + length;
	}
	return 0;
}
