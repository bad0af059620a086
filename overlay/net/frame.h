/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Frames between overlay halves: pure encoding and decoding, no I/O.
 *
 *   frame  = u32 size, u16 type, u16 flags, size bytes of body      (all little-endian)
 *   HELLO  = card; flags: enum net_kind             first frame of each side, before any other
 *   CORE   = bytes of a core message                                        control only
 *   CALL   = u64 call, u16 op, u16 0, u32 stream_size, fields of the op     bulk, dialler ->
 *   DATA   = u64 call, bytes: the next part of that call's stream           bulk, both ways
 *   REPLY  = u64 call, i32 status, u32 stream_size, inline bytes            bulk, -> dialler
 *   CANCEL = u64 call: the dialler does not wait any more                   bulk, dialler ->
 *   JOIN, JOIN_REPLY = i32 status (0 in JOIN), sealed bytes                 join connections
 *
 *   PUT    = job, token, hash, u64 seq, u32 size; the stream is the object
 *   GET    = hash; the reply's stream is the object
 *   REFER  = fields of PUT: you keep this object for some job; keep it for this one, too
 *   RETAIN = job, token, u64 upto_seq, u32 count; the stream is the hashes
 *   ORDER  = u32 timeout_ms, u32 size, bytes; the reply's inline bytes are the answer
 *   LIST   = nothing; the reply's stream is struct job_value[]
 *   HOLDERS = job, token, hash, u32 count, count ids: who has this object, of which you keep a copy
 *   VOUCH  = job, hash: you keep this object for the job, and will not give it up for want of room
 *            within 10 minutes: the caller is about to
 *   VERDICT = job; the reply's inline bytes: u32 state, token, u32 count, count acceptors, u64
 *            heard_ago_ms. state 0: no tombstone here, and the fields up to count are zero
 *   NEWEST = job; the reply's inline bytes: u32 count, then of each manifest that is kept, newest
 *            first: token, u64 seq, hash, u32 size
 *   RECEIPT = a receipt, see core/receipt.h; the reply's inline bytes: the one of this pair that is
 *            kept, which is on the disk
 *   CREDIT = nothing; the reply's stream is all receipts kept there, by submitter
 *   GROUP  = group: the shards of an object of which you keep one. Answered when it is on the disk
 *   GROUP_GET = hash of an object; the reply's inline bytes: the group of which a shard is kept
 *   group  = job, token, hash, u64 seq, u32 size, u32 k, u32 m, u32 revision, k + m hashes,
 *            k + m ids
 *
 * What a connection may carry depends on its phase; anything else is -EBADMSG and ends it.
 * Decoders never assert, never allocate, and lend pointers into the bytes given.
 */
#pragma once

#include <stddef.h>

#include "overlay/core/core.h"
#include "overlay/core/receipt.h"
#include "overlay/ipc.h"

enum {
	NET_HEADER_SIZE = 8,
	NET_CHUNK_MAX = 64 << 10, /* stream bytes of one DATA frame */
	NET_INLINE_MAX = OV_ORDER_MAX,
	NET_CALL_MAX = 24 + OV_ORDER_MAX + 128,
	NET_REPLY_MAX = 16 + NET_INLINE_MAX,
	NET_BODY_MAX = NET_CHUNK_MAX + 8,
	NET_STREAM_MAX = OV_PACK_MAX,
	NET_NEWEST_ROWS = 8,
	NET_NEWEST_MAX = 4 + NET_NEWEST_ROWS * (24 + 8 + 32 + 4),
	NET_GROUP_MAX = 16 + 24 + 32 + 8 + 16 + OV_SHARDS_MAX * (32 + 16),
	NET_VERDICT_MAX = 4 + 24 + 4 + OV_REPLICAS_MAX * 16 + 8,
};

enum net_frame_type {
	NET_HELLO = 1,
	NET_CORE,
	NET_CALL,
	NET_DATA,
	NET_REPLY,
	NET_CANCEL,
	NET_JOIN,
	NET_JOIN_REPLY,
};

enum net_kind { NET_CONTROL = 1, NET_BULK = 2, NET_JOINING = 3 };

/* What the next frame may be. */
enum net_phase {
	NET_PHASE_CARD,	      /* the peer's card and nothing else */
	NET_PHASE_CONTROL,    /* core messages */
	NET_PHASE_CALLED,     /* we answer calls */
	NET_PHASE_CALLING,    /* we wait for replies */
	NET_PHASE_JOIN,	      /* one JOIN */
	NET_PHASE_JOIN_REPLY, /* its answer */
	NET_PHASE_COUNT,
};

enum net_op {
	NET_OP_PUT = 1,
	NET_OP_GET,
	NET_OP_RETAIN,
	NET_OP_ORDER,
	NET_OP_LIST,
	NET_OP_HOLDERS,
	NET_OP_VOUCH,
	NET_OP_VERDICT,
	NET_OP_NEWEST,
	NET_OP_RECEIPT,
	NET_OP_CREDIT,
	NET_OP_GROUP,
	NET_OP_GROUP_GET,
	NET_OP_REFER,
};

struct net_frame {
	uint32_t size;
	uint16_t type, flags;
	const uint8_t *body; /* in the bytes given */
};

struct net_call {
	uint64_t call;
	uint16_t op; /* enum net_op; says which fields count */
	uint32_t stream_size;
	struct ov_object object; /* PUT, REFER: job, token, hash, seq, size; others: see above */
	struct ov_retain retain;
	struct ov_group group;
	uint32_t order_timeout_ms, order_size;
	const uint8_t *order_bytes;
	const uint8_t *receipt; /* CORE_RECEIPT_BYTES */
};

struct net_reply {
	uint64_t call;
	int32_t status;
	uint32_t stream_size, inline_size;
	const uint8_t *inline_bytes;
};

/* 1: a whole frame; 0: more bytes needed; -EBADMSG: not allowed in this phase. */
int net_frame_decode(enum net_phase phase, const uint8_t *bytes, size_t size,
		     struct net_frame *ret_frame);
/* Bytes of the largest frame of a phase, header included. */
size_t net_frame_room(enum net_phase phase);
void net_frame_header(uint8_t header[static NET_HEADER_SIZE], uint32_t size, uint16_t type,
		      uint16_t flags);

/* Bodies. The encoders return the size; their buffers have room for the _MAX above. */
int net_call_decode(const uint8_t *body, size_t size, struct net_call *ret_call);
size_t net_call_encode(const struct net_call *call, uint8_t body[static NET_CALL_MAX]);
int net_reply_decode(const uint8_t *body, size_t size, struct net_reply *ret_reply);
size_t net_reply_encode(const struct net_reply *reply, uint8_t body[static NET_REPLY_MAX]);
uint64_t net_u64_decode(const uint8_t *body);
void net_u64_encode(uint64_t value, uint8_t *body);
int32_t net_status_decode(const uint8_t *body); /* 0 or -errno, -EBADMSG for anything else */
void net_status_encode(int32_t status, uint8_t *body);

/* What a peer knows of a job: did it bury it, when did it hear of its owner? */
struct net_verdict {
	struct core_tombstone tombstone;
	uint64_t heard_ago_ms;
};
int net_verdict_decode(const uint8_t *bytes, size_t size, struct net_verdict *ret_verdict);
size_t net_verdict_encode(const struct net_verdict *verdict, uint8_t bytes[static NET_VERDICT_MAX]);

/* A valid scheme, a possible size, and no host twice; else -EBADMSG. */
int net_group_decode(const uint8_t *bytes, size_t size, struct ov_group *ret_group);
/*
 * A newer list of the same shards: of a higher revision, or of the same one and larger, so that of
 * two that were made at one time all choose the same.
 */
bool net_group_supersedes(const struct ov_group *group, const struct ov_group *known);
size_t net_group_encode(const struct ov_group *group, uint8_t bytes[static NET_GROUP_MAX]);

/* Manifests of one job: token, hash, seq and size of each. */
int net_newest_decode(const uint8_t *bytes, size_t size,
		      struct ov_object ret_objects[static NET_NEWEST_ROWS], uint32_t *ret_count);
size_t net_newest_encode(const struct ov_object *objects, uint32_t count,
			 uint8_t bytes[static NET_NEWEST_MAX]);

/* A card's form: version, reserved, texts end inside their arrays and are printable. */
bool net_card_sane(const struct node_card *card);
/* A register value from a peer's LIST: counts and states within their bounds. */
bool net_value_sane(const struct job_value *value);
