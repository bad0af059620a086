// SPDX-License-Identifier: LGPL-2.1-or-later
// sources: overlay/net/frame.c overlay/net/group.c
/* What a peer may send after the TLS record layer: frames of each phase and their bodies. */
#include <stdlib.h>
#include <string.h>

#include "overlay/net/frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void decode_verdict(const uint8_t *bytes, size_t size)
{
	uint8_t again[NET_VERDICT_MAX];
	struct net_verdict verdict;

	if (net_verdict_decode(bytes, size, &verdict) == 0 &&
	    (net_verdict_encode(&verdict, again) != size || memcmp(again, bytes, size) != 0))
		abort();
}

static void decode_newest(const uint8_t *bytes, size_t size)
{
	struct ov_object rows[NET_NEWEST_ROWS];
	uint8_t again[NET_NEWEST_MAX];
	uint32_t count;

	if (net_newest_decode(bytes, size, rows, &count) == 0 &&
	    (net_newest_encode(rows, count, again) != size || memcmp(again, bytes, size) != 0))
		abort();
}

static void decode_group(const uint8_t *bytes, size_t size)
{
	uint8_t again[NET_GROUP_MAX];
	struct ov_group group;

	if (net_group_decode(bytes, size, &group) == 0 &&
	    (net_group_encode(&group, again) != size || memcmp(again, bytes, size) != 0))
		abort();
}

static void decode_body(const struct net_frame *frame)
{
	uint8_t again[NET_CALL_MAX > NET_REPLY_MAX ? NET_CALL_MAX : NET_REPLY_MAX];
	struct node_card card;
	struct net_reply reply;
	struct net_call call;

	switch (frame->type) {
	case NET_HELLO:
		memcpy(&card, frame->body, sizeof(card));
		(void)net_card_sane(&card);
		break;
	case NET_CALL:
		if (net_call_decode(frame->body, frame->size, &call) == 0 &&
		    (net_call_encode(&call, again) != frame->size ||
		     memcmp(again, frame->body, frame->size) != 0))
			abort();
		break;
	case NET_REPLY:
		if (net_reply_decode(frame->body, frame->size, &reply) == 0 &&
		    net_reply_encode(&reply, again) != frame->size)
			abort();
		if (net_reply_decode(frame->body, frame->size, &reply) == 0)
			decode_verdict(reply.inline_bytes, reply.inline_size);
		break;
	default:
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	struct job_value value;

	decode_verdict(bytes, size);
	decode_newest(bytes, size);
	decode_group(bytes, size);

	for (int phase = 0; phase < NET_PHASE_COUNT; phase++) {
		size_t used = 0;
		struct net_frame frame;

		while (net_frame_decode((enum net_phase)phase, bytes + used, size - used, &frame) ==
		       1) {
			if (frame.body + frame.size > bytes + size ||
			    NET_HEADER_SIZE + frame.size > net_frame_room((enum net_phase)phase))
				abort();
			decode_body(&frame);
			used += NET_HEADER_SIZE + frame.size;
		}
	}
	if (size >= sizeof(value)) {
		memcpy(&value, bytes, sizeof(value));
		if (net_value_sane(&value) && value.sealed_size > sizeof(value.sealed))
			abort();
	}
	return 0;
}
