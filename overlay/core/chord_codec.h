/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Chord's words on the wire, little-endian, field by field. Internal to chord*.c and its tests.
 *
 *   message = version:u8 type:u8 flags:u8 zero:u8, then the fields of its type in this order:
 *             seq:u64 digest:u64 key[16] avoid_count:u8 avoid[16]... peer[34] peer_count:u8 peers...
 *   peer    = id[16] ip[16] port:u16
 *
 *   type              flags                   says
 *   FIND -> FOUND     CLOSING JOIN REPLICAS   who is responsible for key; OWNER: I am (peers: who
 *                     OWNER LAST              follows me); LAST: the first of peers is, I believe;
 *                                             neither: peers are nearer, best first
 *   NEIGHBOURS->LIST  PRED UNCHANGED          predecessor and successor list; no list if its
 *                                             digest is the one asked with
 *   NOTIFY                                    peer: the sender believes it precedes the receiver
 *   PING -> PONG                              is it alive
 *   NUDGE                                     somebody joined behind you: stabilise now
 *   TABLE -> FINGERS                          a joiner's first routing table
 *
 * A decoder returns -EBADMSG for short, trailing or impossible bytes and never reads past size.
 * A decoded message encodes to the same bytes again. Threading: pure functions.
 */
#pragma once

#include <stddef.h>

#include "overlay/core/chord.h"
#include "overlay/core/ring.h"

enum {
	CHORD_AVOID_MAX = 8,
	CHORD_PEERS_MAX = CHORD_FINGERS_MAX, /* in one message */
};

_Static_assert((int)CHORD_PEERS_MAX >= (int)CHORD_SUCCESSORS_MAX, "a successor list fits");

enum chord_message_type {
	CHORD_MSG_FIND = 1,
	CHORD_MSG_FOUND,
	CHORD_MSG_NEIGHBOURS,
	CHORD_MSG_LIST,
	CHORD_MSG_NOTIFY,
	CHORD_MSG_PING,
	CHORD_MSG_PONG,
	CHORD_MSG_NUDGE,
	CHORD_MSG_TABLE,
	CHORD_MSG_FINGERS,
	CHORD_MSG_END,
};

enum chord_flag {
	CHORD_FLAG_CLOSING = 1 << 0, /* FIND: you should be the one */
	CHORD_FLAG_JOIN = 1 << 1,    /* FIND: only the key's predecessor answers LAST, whole list */
	CHORD_FLAG_REPLICAS = 1 << 2,  /* FIND: an owner also says who follows it */
	CHORD_FLAG_OWNER = 1 << 3,     /* FOUND */
	CHORD_FLAG_LAST = 1 << 4,      /* FOUND */
	CHORD_FLAG_PRED = 1 << 5,      /* LIST: `peer` is the predecessor */
	CHORD_FLAG_UNCHANGED = 1 << 6, /* LIST: peers left out */
};

struct chord_message {
	uint8_t type, flags;
	uint8_t avoid_count, peer_count;
	uint64_t seq;
	uint64_t digest;
	struct ring_key key;
	struct node_id avoid[CHORD_AVOID_MAX]; /* the asker found them silent */
	struct chord_peer peer;
	struct chord_peer peers[CHORD_PEERS_MAX];
};

/* Bytes written, or 0 if it is invalid or does not fit. */
size_t chord_message_encode(const struct chord_message *message, void *bytes, size_t max);
int chord_message_decode(const void *bytes, size_t size, struct chord_message *ret_message);
