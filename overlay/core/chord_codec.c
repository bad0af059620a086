/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "overlay/core/chord_codec.h"

#include <errno.h>
#include <string.h>

#include "overlay/ipc.h"

/* As in codec.c: one walk serves both directions; a writing walk only reads the struct. */
struct cursor {
	const uint8_t *in;
	uint8_t *out;
	size_t size, at;
	bool bad;
};

enum { WIRE_VERSION = 0x81 }; /* no version of the core's own messages */

enum {
	F_SEQ = 1 << 0,
	F_DIGEST = 1 << 1,
	F_KEY = 1 << 2, /* and who to avoid */
	F_PEER = 1 << 3,
	F_PEERS = 1 << 4,
};

static const struct {
	uint8_t fields, flags;
} layouts[CHORD_MSG_END] = {
	[CHORD_MSG_FIND] = { F_SEQ | F_KEY,
			     CHORD_FLAG_CLOSING | CHORD_FLAG_JOIN | CHORD_FLAG_REPLICAS },
	[CHORD_MSG_FOUND] = { F_SEQ | F_PEERS, CHORD_FLAG_OWNER | CHORD_FLAG_LAST },
	[CHORD_MSG_NEIGHBOURS] = { F_SEQ | F_DIGEST, 0 },
	[CHORD_MSG_LIST] = { F_SEQ | F_DIGEST | F_PEER | F_PEERS,
			     CHORD_FLAG_PRED | CHORD_FLAG_UNCHANGED },
	[CHORD_MSG_NOTIFY] = { F_PEER, 0 },
	[CHORD_MSG_PING] = { F_SEQ, 0 },
	[CHORD_MSG_PONG] = { F_SEQ, 0 },
	[CHORD_MSG_NUDGE] = { 0, 0 },
	[CHORD_MSG_TABLE] = { F_SEQ, 0 },
	[CHORD_MSG_FINGERS] = { F_SEQ | F_PEERS, 0 },
};

static void require(struct cursor *c, bool condition)
{
	if (!condition)
		c->bad = true;
}

static void walk_bytes(struct cursor *c, void *bytes, size_t size)
{
	if (c->bad || size > c->size - c->at) {
		c->bad = true;
		return;
	}
	if (c->out)
		memcpy(c->out + c->at, bytes, size);
	else
		memcpy(bytes, c->in + c->at, size);
	c->at += size;
}

static void walk_u64(struct cursor *c, uint64_t *value)
{
	uint8_t raw[8];
	uint64_t result = 0;

	for (size_t i = 0; c->out && i < sizeof(raw); i++)
		raw[i] = (uint8_t)(*value >> (8 * i));
	walk_bytes(c, raw, sizeof(raw));
	if (c->out || c->bad)
		return;
	for (size_t i = 0; i < sizeof(raw); i++)
		result |= (uint64_t)raw[i] << (8 * i);
	*value = result;
}

/* A position is written as an id is: big-endian. */
static void walk_key(struct cursor *c, struct ring_key *key)
{
	struct node_id id;

	for (size_t i = 0; c->out && i < 8; i++) {
		id.b[i] = (uint8_t)(key->high >> (56 - 8 * i));
		id.b[8 + i] = (uint8_t)(key->low >> (56 - 8 * i));
	}
	walk_bytes(c, &id, sizeof(id));
	if (!c->out && !c->bad)
		*key = ring_of(&id);
}

static void walk_peer(struct cursor *c, struct chord_peer *peer)
{
	uint8_t raw[2] = { 0 };

	if (c->out) {
		raw[0] = (uint8_t)peer->port;
		raw[1] = (uint8_t)(peer->port >> 8);
	}
	walk_bytes(c, &peer->id, sizeof(peer->id));
	walk_bytes(c, peer->ip, sizeof(peer->ip));
	walk_bytes(c, raw, sizeof(raw));
	if (!c->out && !c->bad)
		peer->port = (uint16_t)(raw[0] | raw[1] << 8);
	require(c, !c->bad && peer->port && !node_id_is_zero(&peer->id));
}

static uint32_t walk_count(struct cursor *c, uint8_t *count, uint32_t max)
{
	walk_bytes(c, count, sizeof(*count));
	require(c, !c->bad && *count <= max);
	return c->bad ? 0 : *count;
}

static void walk_message(struct cursor *c, struct chord_message *m)
{
	uint8_t head[4] = { WIRE_VERSION, m->type, m->flags, 0 };
	uint32_t fields, count;

	walk_bytes(c, head, sizeof(head));
	require(c, !c->bad && head[0] == WIRE_VERSION && !head[3] && head[1] > 0 &&
			   head[1] < CHORD_MSG_END);
	if (c->bad || (head[2] & ~layouts[head[1]].flags)) {
		c->bad = true;
		return;
	}
	if (!c->out) {
		m->type = head[1];
		m->flags = head[2];
	}
	fields = layouts[m->type].fields;
	if (fields & F_SEQ)
		walk_u64(c, &m->seq);
	if (fields & F_DIGEST)
		walk_u64(c, &m->digest);
	if (fields & F_KEY) {
		walk_key(c, &m->key);
		count = walk_count(c, &m->avoid_count, CHORD_AVOID_MAX);
		walk_bytes(c, m->avoid, count * sizeof(m->avoid[0]));
	}
	if (fields & F_PEER && (m->type != CHORD_MSG_LIST || m->flags & CHORD_FLAG_PRED))
		walk_peer(c, &m->peer);
	if (fields & F_PEERS && !(m->flags & CHORD_FLAG_UNCHANGED)) {
		count = walk_count(c, &m->peer_count, CHORD_PEERS_MAX);
		for (uint32_t i = 0; i < count && !c->bad; i++)
			walk_peer(c, &m->peers[i]);
	}
	require(c, (~m->flags & (CHORD_FLAG_OWNER | CHORD_FLAG_LAST)) != 0);
}

size_t chord_message_encode(const struct chord_message *message, void *bytes, size_t max)
{
	struct cursor c = { .out = bytes, .size = max };

	walk_message(&c, (struct chord_message *)(uintptr_t)message);
	return c.bad || c.at > CHORD_MESSAGE_MAX ? 0 : c.at;
}

int chord_message_decode(const void *bytes, size_t size, struct chord_message *ret_message)
{
	struct cursor c = { .in = bytes, .size = size };

	if (size > CHORD_MESSAGE_MAX)
		return -EBADMSG;
	memset(ret_message, 0, offsetof(struct chord_message, peers));
	walk_message(&c, ret_message);
	return c.bad || c.at != size ? -EBADMSG : 0;
}
