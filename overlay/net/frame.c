// SPDX-License-Identifier: LGPL-2.1-or-later
#include "overlay/net/frame.h"

#include <errno.h>
#include <string.h>

/*
 * Cards and register values pass as they lie in memory. This is the little-endian form on all
 * machines that decamp runs on; a port to another kind has to write codecs for them.
 */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "see above");
_Static_assert(sizeof(struct fence_token) == 24, "no padding");

struct limit {
	uint16_t type;
	uint32_t size_min, size_max;
};

static const struct limit limits[NET_PHASE_COUNT][4] = {
	[NET_PHASE_CARD] = { { NET_HELLO, sizeof(struct node_card), sizeof(struct node_card) } },
	[NET_PHASE_CONTROL] = { { NET_CORE, 1, CORE_MESSAGE_MAX } },
	[NET_PHASE_CALLED] = { { NET_CALL, 16, NET_CALL_MAX },
			       { NET_DATA, 9, NET_BODY_MAX },
			       { NET_CANCEL, 8, 8 } },
	[NET_PHASE_CALLING] = { { NET_REPLY, 16, NET_REPLY_MAX }, { NET_DATA, 9, NET_BODY_MAX } },
	[NET_PHASE_JOIN] = { { NET_JOIN, 4, 4 + OV_ORDER_MAX } },
	[NET_PHASE_JOIN_REPLY] = { { NET_JOIN_REPLY, 4, 4 + OV_ORDER_MAX } },
};

static uint16_t get16(const uint8_t *p)
{
	return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t get32(const uint8_t *p)
{
	return (uint32_t)get16(p) | (uint32_t)get16(p + 2) << 16;
}

static void put16(uint8_t *p, uint16_t v)
{
	p[0] = (uint8_t)v;
	p[1] = (uint8_t)(v >> 8);
}

static void put32(uint8_t *p, uint32_t v)
{
	put16(p, (uint16_t)v);
	put16(p + 2, (uint16_t)(v >> 16));
}

uint64_t net_u64_decode(const uint8_t *body)
{
	return (uint64_t)get32(body) | (uint64_t)get32(body + 4) << 32;
}

void net_u64_encode(uint64_t value, uint8_t *body)
{
	put32(body, (uint32_t)value);
	put32(body + 4, (uint32_t)(value >> 32));
}

int32_t net_status_decode(const uint8_t *body)
{
	uint32_t magnitude = 0u - get32(body);

	/* Only 0 and what -errno can be; a positive status must not pass for a success. */
	return magnitude <= 4095 ? -(int32_t)magnitude : -EBADMSG;
}

void net_status_encode(int32_t status, uint8_t *body)
{
	put32(body, (uint32_t)status);
}

int net_frame_decode(enum net_phase phase, const uint8_t *bytes, size_t size,
		     struct net_frame *ret_frame)
{
	struct net_frame frame;

	if (size < NET_HEADER_SIZE)
		return 0;
	frame.size = get32(bytes);
	frame.type = get16(bytes + 4);
	frame.flags = get16(bytes + 6);
	frame.body = bytes + NET_HEADER_SIZE;
	for (size_t i = 0; i < 4; i++) {
		const struct limit *limit = &limits[phase][i];

		if (limit->type == 0 || limit->type != frame.type)
			continue;
		if (frame.size < limit->size_min || frame.size > limit->size_max)
			return -EBADMSG;
		if (frame.type != NET_HELLO && frame.flags != 0)
			return -EBADMSG;
		if (size - NET_HEADER_SIZE < frame.size)
			return 0;
		*ret_frame = frame;
		return 1;
	}
	return -EBADMSG;
}

size_t net_frame_room(enum net_phase phase)
{
	uint32_t room = 0;

	for (size_t i = 0; i < 4; i++) {
		if (limits[phase][i].size_max > room)
			room = limits[phase][i].size_max;
	}
	return NET_HEADER_SIZE + room;
}

void net_frame_header(uint8_t header[static NET_HEADER_SIZE], uint32_t size, uint16_t type,
		      uint16_t flags)
{
	put32(header, size);
	put16(header + 4, type);
	put16(header + 6, flags);
}

/* A reader that never passes its end; `bad` sticks. */
struct reader {
	const uint8_t *p;
	size_t left;
	bool bad;
};

static const uint8_t *take(struct reader *in, size_t size)
{
	const uint8_t *p = in->p;

	if (in->bad || size > in->left) {
		in->bad = true;
		return NULL;
	}
	in->p += size;
	in->left -= size;
	return p;
}

static void take_bytes(struct reader *in, void *to, size_t size)
{
	const uint8_t *p = take(in, size);

	if (p)
		memcpy(to, p, size);
}

static uint32_t take32(struct reader *in)
{
	const uint8_t *p = take(in, 4);

	return p ? get32(p) : 0;
}

static uint64_t take64(struct reader *in)
{
	const uint8_t *p = take(in, 8);

	return p ? net_u64_decode(p) : 0;
}

static void take_token(struct reader *in, struct fence_token *token)
{
	token->counter = take64(in);
	take_bytes(in, &token->node, sizeof(token->node));
}

static bool take_put(struct reader *in, struct net_call *call)
{
	take_bytes(in, &call->object.job, sizeof(call->object.job));
	take_token(in, &call->object.token);
	take_bytes(in, &call->object.hash, sizeof(call->object.hash));
	call->object.seq = take64(in);
	call->object.size = take32(in);
	return call->object.size > 0 && call->object.size <= OV_PACK_MAX &&
	       call->stream_size == (call->op == NET_OP_PUT ? call->object.size : 0);
}

static bool take_holders(struct reader *in, struct net_call *call)
{
	take_bytes(in, &call->object.job, sizeof(call->object.job));
	take_token(in, &call->object.token);
	take_bytes(in, &call->object.hash, sizeof(call->object.hash));
	call->object.holder_count = take32(in);
	if (call->object.holder_count == 0 || call->object.holder_count > OV_HOLDERS_MAX)
		return false;
	for (uint32_t i = 0; i < call->object.holder_count; i++)
		take_bytes(in, &call->object.holders[i], sizeof(call->object.holders[i]));
	return call->stream_size == 0;
}

static bool take_retain(struct reader *in, struct net_call *call)
{
	take_bytes(in, &call->retain.job, sizeof(call->retain.job));
	take_token(in, &call->retain.token);
	call->retain.upto_seq = take64(in);
	call->retain.count = take32(in);
	return (uint64_t)call->retain.count * sizeof(struct object_hash) == call->stream_size;
}

static bool take_order(struct reader *in, struct net_call *call)
{
	call->order_timeout_ms = take32(in);
	call->order_size = take32(in);
	if (call->order_size > OV_ORDER_MAX)
		return false;
	call->order_bytes = take(in, call->order_size);
	return call->stream_size == 0;
}

int net_call_decode(const uint8_t *body, size_t size, struct net_call *ret_call)
{
	struct reader in = { .p = body, .left = size };
	struct net_call call = { 0 };
	uint32_t op;
	bool good;

	call.call = take64(&in);
	op = take32(&in);
	call.op = (uint16_t)op;
	call.stream_size = take32(&in);
	if (in.bad || op > UINT16_MAX || call.stream_size > NET_STREAM_MAX)
		return -EBADMSG;
	switch (call.op) {
	case NET_OP_PUT:
	case NET_OP_REFER:
		good = take_put(&in, &call);
		break;
	case NET_OP_GET:
		take_bytes(&in, &call.object.hash, sizeof(call.object.hash));
		good = call.stream_size == 0;
		break;
	case NET_OP_RETAIN:
		good = take_retain(&in, &call);
		break;
	case NET_OP_ORDER:
		good = take_order(&in, &call);
		break;
	case NET_OP_LIST:
	case NET_OP_CREDIT:
		good = call.stream_size == 0;
		break;
	case NET_OP_RECEIPT:
		call.receipt = take(&in, CORE_RECEIPT_BYTES);
		good = call.stream_size == 0;
		break;
	case NET_OP_HOLDERS:
		good = take_holders(&in, &call);
		break;
	case NET_OP_GROUP:
		good = call.stream_size == 0 && net_group_decode(in.p, in.left, &call.group) == 0;
		in.left = 0;
		break;
	case NET_OP_GROUP_GET:
		take_bytes(&in, &call.object.hash, sizeof(call.object.hash));
		good = call.stream_size == 0;
		break;
	case NET_OP_VERDICT:
	case NET_OP_NEWEST:
		take_bytes(&in, &call.object.job, sizeof(call.object.job));
		good = call.stream_size == 0;
		break;
	case NET_OP_VOUCH:
		take_bytes(&in, &call.object.job, sizeof(call.object.job));
		take_bytes(&in, &call.object.hash, sizeof(call.object.hash));
		good = call.stream_size == 0;
		break;
	default:
		good = false;
	}
	if (!good || in.bad || in.left > 0)
		return -EBADMSG;
	*ret_call = call;
	return 0;
}

static uint8_t *add_bytes(uint8_t *p, const void *bytes, size_t size)
{
	if (size > 0)
		memcpy(p, bytes, size);
	return p + size;
}

static uint8_t *add32(uint8_t *p, uint32_t v)
{
	put32(p, v);
	return p + 4;
}

static uint8_t *add64(uint8_t *p, uint64_t v)
{
	net_u64_encode(v, p);
	return p + 8;
}

static uint8_t *add_token(uint8_t *p, const struct fence_token *token)
{
	p = add64(p, token->counter);
	return add_bytes(p, &token->node, sizeof(token->node));
}

size_t net_call_encode(const struct net_call *call, uint8_t body[static NET_CALL_MAX])
{
	uint8_t *p = add64(body, call->call);

	p = add32(p, call->op);
	p = add32(p, call->stream_size);
	switch (call->op) {
	case NET_OP_PUT:
	case NET_OP_REFER:
		p = add_bytes(p, &call->object.job, sizeof(call->object.job));
		p = add_token(p, &call->object.token);
		p = add_bytes(p, &call->object.hash, sizeof(call->object.hash));
		p = add64(p, call->object.seq);
		p = add32(p, call->object.size);
		break;
	case NET_OP_GROUP:
		p += net_group_encode(&call->group, p);
		break;
	case NET_OP_GET:
	case NET_OP_GROUP_GET:
		p = add_bytes(p, &call->object.hash, sizeof(call->object.hash));
		break;
	case NET_OP_RETAIN:
		p = add_bytes(p, &call->retain.job, sizeof(call->retain.job));
		p = add_token(p, &call->retain.token);
		p = add64(p, call->retain.upto_seq);
		p = add32(p, call->retain.count);
		break;
	case NET_OP_ORDER:
		p = add32(p, call->order_timeout_ms);
		p = add32(p, call->order_size);
		p = add_bytes(p, call->order_bytes, call->order_size);
		break;
	case NET_OP_RECEIPT:
		p = add_bytes(p, call->receipt, CORE_RECEIPT_BYTES);
		break;
	case NET_OP_HOLDERS:
		p = add_bytes(p, &call->object.job, sizeof(call->object.job));
		p = add_token(p, &call->object.token);
		p = add_bytes(p, &call->object.hash, sizeof(call->object.hash));
		p = add32(p, call->object.holder_count);
		p = add_bytes(p, call->object.holders,
			      call->object.holder_count * sizeof(call->object.holders[0]));
		break;
	case NET_OP_VERDICT:
	case NET_OP_NEWEST:
		p = add_bytes(p, &call->object.job, sizeof(call->object.job));
		break;
	case NET_OP_VOUCH:
		p = add_bytes(p, &call->object.job, sizeof(call->object.job));
		p = add_bytes(p, &call->object.hash, sizeof(call->object.hash));
		break;
	default:
		break;
	}
	return (size_t)(p - body);
}

int net_reply_decode(const uint8_t *body, size_t size, struct net_reply *ret_reply)
{
	struct net_reply reply;

	if (size < 16 || size - 16 > NET_INLINE_MAX)
		return -EBADMSG;
	reply.call = net_u64_decode(body);
	reply.status = net_status_decode(body + 8);
	reply.stream_size = get32(body + 12);
	reply.inline_size = (uint32_t)(size - 16);
	reply.inline_bytes = body + 16;
	if (reply.stream_size > NET_STREAM_MAX || (reply.status < 0 && reply.stream_size > 0))
		return -EBADMSG;
	*ret_reply = reply;
	return 0;
}

size_t net_reply_encode(const struct net_reply *reply, uint8_t body[static NET_REPLY_MAX])
{
	uint8_t *p = add64(body, reply->call);

	p = add32(p, (uint32_t)reply->status);
	p = add32(p, reply->stream_size);
	p = add_bytes(p, reply->inline_bytes, reply->inline_size);
	return (size_t)(p - body);
}

/* Only an end, and then with its acceptors; nothing at all otherwise. */
static bool tombstone_sane(const struct core_tombstone *tombstone)
{
	static const struct core_tombstone none;

	if (!tombstone->state)
		return memcmp(tombstone, &none, sizeof(none)) == 0;
	return (tombstone->state == JOB_STATE_COLLECTED || tombstone->state == JOB_STATE_KILLED) &&
	       tombstone->acceptor_count > 0;
}

int net_verdict_decode(const uint8_t *bytes, size_t size, struct net_verdict *ret_verdict)
{
	struct reader in = { .p = bytes, .left = size };
	struct net_verdict verdict = { 0 };
	struct core_tombstone *tombstone = &verdict.tombstone;

	tombstone->state = take32(&in);
	take_token(&in, &tombstone->token);
	tombstone->acceptor_count = take32(&in);
	if (tombstone->acceptor_count > OV_REPLICAS_MAX)
		return -EBADMSG;
	for (uint32_t i = 0; i < tombstone->acceptor_count; i++)
		take_bytes(&in, &tombstone->acceptors[i], sizeof(tombstone->acceptors[i]));
	verdict.heard_ago_ms = take64(&in);
	if (in.bad || in.left > 0 || !tombstone_sane(tombstone))
		return -EBADMSG;
	*ret_verdict = verdict;
	return 0;
}

size_t net_verdict_encode(const struct net_verdict *verdict, uint8_t bytes[static NET_VERDICT_MAX])
{
	const struct core_tombstone *tombstone = &verdict->tombstone;
	uint8_t *p = add32(bytes, tombstone->state);

	p = add_token(p, &tombstone->token);
	p = add32(p, tombstone->acceptor_count);
	p = add_bytes(p, tombstone->acceptors,
		      tombstone->acceptor_count * sizeof(tombstone->acceptors[0]));
	p = add64(p, verdict->heard_ago_ms);
	return (size_t)(p - bytes);
}

int net_newest_decode(const uint8_t *bytes, size_t size,
		      struct ov_object ret_objects[static NET_NEWEST_ROWS], uint32_t *ret_count)
{
	struct reader in = { .p = bytes, .left = size };
	uint32_t count = take32(&in);

	if (count > NET_NEWEST_ROWS)
		return -EBADMSG;
	for (uint32_t i = 0; i < count; i++) {
		struct ov_object object = { 0 };

		take_token(&in, &object.token);
		object.seq = take64(&in);
		take_bytes(&in, &object.hash, sizeof(object.hash));
		object.size = take32(&in);
		if (object.size == 0 || object.size > OV_PACK_MAX)
			return -EBADMSG;
		ret_objects[i] = object;
	}
	if (in.bad || in.left > 0)
		return -EBADMSG;
	*ret_count = count;
	return 0;
}

size_t net_newest_encode(const struct ov_object *objects, uint32_t count,
			 uint8_t bytes[static NET_NEWEST_MAX])
{
	uint8_t *p = add32(bytes, count);

	for (uint32_t i = 0; i < count; i++) {
		p = add_token(p, &objects[i].token);
		p = add64(p, objects[i].seq);
		p = add_bytes(p, &objects[i].hash, sizeof(objects[i].hash));
		p = add32(p, objects[i].size);
	}
	return (size_t)(p - bytes);
}

static bool text_sane(const char *text, size_t room)
{
	size_t len = strnlen(text, room);

	if (len == room)
		return false;
	for (size_t i = 0; i < len; i++) {
		if (text[i] < 0x21 || text[i] > 0x7e)
			return false;
	}
	return true;
}

bool net_card_sane(const struct node_card *card)
{
	return card->version == 1 && card->reserved == 0 && !node_id_is_zero(&card->id) &&
	       text_sane(card->hostname, sizeof(card->hostname)) &&
	       text_sane(card->room, sizeof(card->room));
}

bool net_value_sane(const struct job_value *value)
{
	if (value->state < JOB_STATE_IDLE || value->state > JOB_STATE_KILLED)
		return false;
	if (value->fence != FENCE_STRICT && value->fence != FENCE_COMMIT)
		return false;
	if (value->history_count > OV_HISTORY_MAX || value->avoid_count > OV_AVOID_MAX ||
	    value->sealed_size > OV_SEALED_MAX || value->needs_size > OV_NEEDS_MAX ||
	    value->arch >= CPU_ARCH_END)
		return false;
	for (uint32_t i = 0; i < value->history_count; i++) {
		if (value->history[i].holder_count > OV_HOLDERS_MAX ||
		    value->history[i].manifest_size > OV_PACK_MAX)
			return false;
	}
	return true;
}
