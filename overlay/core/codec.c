/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "overlay/core/codec.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

#include "overlay/core/forecast.h"
#include "overlay/core/needs.h"
#include "overlay/ipc.h"

/*
 * One walk per struct serves both directions, so that encoder and decoder cannot drift apart.
 * While writing a walk only reads the struct it is given.
 */
struct cursor {
	const uint8_t *in;
	uint8_t *out;
	size_t size, at;
	bool writing, bad;
	bool plain; /* a record of version 1: no epochs */
	bool free;  /* a record of version 1 or 2: jobs need no more than memory and a CPU */
};

enum { WIRE_VERSION = 3, RECORD_MAGIC = 0x47524344, RECORD_VERSION = 3 };

enum {
	F_SEQ = 1 << 0,
	F_SUBJECT = 1 << 1,
	F_DIGEST = 1 << 2,
	F_RECORDS = 1 << 3,
	F_JOB = 1 << 4,
	F_ACCEPTORS = 1 << 5,
	F_BALLOT = 1 << 6,
	F_ACCEPTED = 1 << 7,
	F_TOKEN = 1 << 8,
	F_REASON = 1 << 9,
	F_VALUE = 1 << 10,
	F_NO_ACCEPTORS_OK = 1 << 11,
	F_NEXT = 1 << 12,
	F_PREVIOUS = 1 << 13,
	F_SUMMARY = 1 << 14,
	F_REGISTER = F_JOB | F_ACCEPTORS,
};

static const uint16_t message_fields[CORE_MSG_END] = {
	[CORE_MSG_PING] = F_SEQ | F_SUBJECT | F_RECORDS,
	[CORE_MSG_ACK] = F_SEQ | F_SUBJECT | F_RECORDS,
	[CORE_MSG_PING_REQ] = F_SEQ | F_SUBJECT | F_RECORDS,
	[CORE_MSG_GOSSIP] = F_RECORDS,
	[CORE_MSG_DIGEST] = F_DIGEST | F_RECORDS,
	[CORE_MSG_SYNC] = F_RECORDS,
	[CORE_MSG_PREPARE] = F_REGISTER | F_BALLOT,
	[CORE_MSG_PROMISE] = F_REGISTER | F_BALLOT | F_ACCEPTED | F_VALUE | F_NEXT | F_PREVIOUS,
	[CORE_MSG_NACK] = F_REGISTER | F_BALLOT | F_ACCEPTED | F_REASON,
	[CORE_MSG_ACCEPT] = F_REGISTER | F_BALLOT | F_VALUE | F_NEXT,
	[CORE_MSG_ACCEPTED] = F_REGISTER | F_BALLOT,
	[CORE_MSG_LEARN] = F_REGISTER | F_BALLOT | F_VALUE,
	[CORE_MSG_RENEW] = F_SEQ | F_REGISTER | F_TOKEN,
	[CORE_MSG_RENEWED] = F_SEQ | F_REGISTER | F_TOKEN | F_ACCEPTED,
	[CORE_MSG_LOST] = F_SEQ | F_REGISTER | F_TOKEN | F_ACCEPTED,
	[CORE_MSG_GRANT] = F_REGISTER | F_BALLOT | F_VALUE,
	[CORE_MSG_DONE] = F_REGISTER | F_BALLOT | F_VALUE,
	[CORE_MSG_WHOHAS] = F_JOB,
	[CORE_MSG_IHAVE] = F_REGISTER | F_NO_ACCEPTORS_OK,
	[CORE_MSG_INSTALL] = F_REGISTER | F_PREVIOUS | F_ACCEPTED | F_VALUE,
	[CORE_MSG_INSTALLED] = F_REGISTER,
	[CORE_MSG_MOVED] = F_REGISTER | F_PREVIOUS | F_VALUE,
	[CORE_MSG_CLOSE] = F_REGISTER,
	[CORE_MSG_CLOSED] = F_REGISTER,
	[CORE_MSG_SUMMARY] = F_SEQ | F_SUMMARY,
};

int core_ballot_compare(const struct core_ballot *a, const struct core_ballot *b)
{
	int order = fence_token_compare(&a->number, &b->number);

	if (a->epoch != b->epoch)
		return a->epoch < b->epoch ? -1 : 1;
	if (order)
		return order;
	return a->life < b->life ? -1 : a->life > b->life;
}

/* Inlined all the way, a walk is compiled once for each direction. */
#define WALK static inline __attribute__((always_inline))

WALK void walk_bytes(struct cursor *c, void *bytes, size_t size)
{
	if (c->bad || size > c->size - c->at) {
		c->bad = true;
		return;
	}
	if (c->writing)
		memcpy(c->out + c->at, bytes, size);
	else
		memcpy(bytes, c->in + c->at, size);
	c->at += size;
}

WALK uint64_t walk_uint(struct cursor *c, uint64_t value, size_t width)
{
	uint64_t raw = c->writing ? htole64(value) : 0;

	walk_bytes(c, &raw, width);
	return c->bad ? 0 : le64toh(raw);
}

WALK void walk_u64(struct cursor *c, uint64_t *value)
{
	uint64_t result = walk_uint(c, *value, 8);

	if (!c->writing)
		*value = result;
}

WALK void walk_u32(struct cursor *c, uint32_t *value)
{
	uint64_t result = walk_uint(c, *value, 4);

	if (!c->writing)
		*value = (uint32_t)result;
}

WALK void walk_u16(struct cursor *c, uint16_t *value)
{
	uint64_t result = walk_uint(c, *value, 2);

	if (!c->writing)
		*value = (uint16_t)result;
}

WALK void walk_u8(struct cursor *c, uint8_t *value)
{
	walk_bytes(c, value, 1);
}

WALK void require(struct cursor *c, bool condition)
{
	if (!condition)
		c->bad = true;
}

/* Returns the number of elements that follow; 0 once anything is wrong. */
WALK uint32_t walk_count(struct cursor *c, uint32_t *count, uint32_t max)
{
	walk_u32(c, count);
	require(c, *count <= max);
	return c->bad ? 0 : *count;
}

WALK void walk_text(struct cursor *c, char *text, size_t size)
{
	walk_bytes(c, text, size);
	require(c, !c->bad && text[size - 1] == 0);
}

WALK void walk_token(struct cursor *c, struct fence_token *token)
{
	walk_u64(c, &token->counter);
	walk_bytes(c, &token->node, sizeof(token->node));
	require(c, token->counter < CORE_COUNTER_MAX);
}

WALK void walk_ballot(struct cursor *c, struct core_ballot *ballot)
{
	if (!c->plain)
		walk_u64(c, &ballot->epoch);
	require(c, ballot->epoch < CORE_EPOCH_MAX);
	walk_token(c, &ballot->number);
	walk_u64(c, &ballot->life);
}

WALK void walk_acceptors(struct cursor *c, struct core_acceptors *set, bool empty_ok)
{
	uint32_t count = walk_count(c, &set->count, OV_REPLICAS_MAX);

	require(c, empty_ok || count > 0);
	for (uint32_t i = 0; i < count; i++) {
		walk_bytes(c, &set->ids[i], sizeof(set->ids[i]));
		for (uint32_t k = 0; k < i && !c->bad; k++)
			require(c, !node_id_equal(&set->ids[i], &set->ids[k]));
	}
}

WALK void walk_checkpoint(struct cursor *c, struct ckpt_ref *ckpt)
{
	uint32_t count;

	walk_u64(c, &ckpt->seq);
	require(c, ckpt->seq > 0);
	walk_bytes(c, &ckpt->manifest, sizeof(ckpt->manifest));
	walk_u32(c, &ckpt->manifest_size);
	require(c, ckpt->manifest_size <= OV_PACK_MAX);
	count = walk_count(c, &ckpt->holder_count, OV_HOLDERS_MAX);
	for (uint32_t i = 0; i < count; i++)
		walk_bytes(c, &ckpt->holders[i], sizeof(ckpt->holders[i]));
	walk_u64(c, &ckpt->wall_ms);
}

/* What a host must have, and why some do not count. Came with version 3. */
WALK void walk_match(struct cursor *c, struct job_value *v)
{
	uint32_t count;

	for (uint32_t i = 0; i < v->avoid_count && !c->bad; i++) {
		walk_u64(c, &v->avoid_wall_ms[i]);
		walk_u32(c, &v->avoid_why[i]);
		require(c, v->avoid_why[i] <= AVOID_NO_CHECKPOINT);
	}
	walk_u32(c, &v->arch);
	require(c, v->arch < CPU_ARCH_END);
	walk_u32(c, &v->kernel_need);
	require(c, !(v->kernel_need & ~(uint32_t)KERNEL_FEATURES));
	count = walk_count(c, &v->needs_size, OV_NEEDS_MAX);
	walk_bytes(c, v->needs, count);
	require(c, !c->bad && (!count || core_needs_valid(v->needs, count)));
}

WALK void walk_value(struct cursor *c, struct job_value *v)
{
	uint32_t count, status = (uint32_t)v->exit_status;

	walk_bytes(c, &v->job, sizeof(v->job));
	walk_token(c, &v->token);
	walk_bytes(c, &v->owner, sizeof(v->owner));
	walk_bytes(c, &v->home, sizeof(v->home));
	walk_bytes(c, &v->target, sizeof(v->target));
	walk_u32(c, &v->state);
	require(c, v->state >= JOB_STATE_IDLE && v->state <= JOB_STATE_KILLED);
	walk_u32(c, &v->fence);
	require(c, v->fence == FENCE_STRICT || v->fence == FENCE_COMMIT);
	walk_u32(c, &status);
	if (!c->writing)
		v->exit_status = (int32_t)status;
	count = walk_count(c, &v->history_count, OV_HISTORY_MAX);
	for (uint32_t i = 0; i < count; i++) {
		walk_checkpoint(c, &v->history[i]);
		require(c, i == 0 || v->history[i].seq < v->history[i - 1].seq);
	}
	count = walk_count(c, &v->avoid_count, OV_AVOID_MAX);
	for (uint32_t i = 0; i < count; i++)
		walk_bytes(c, &v->avoid[i], sizeof(v->avoid[i]));
	walk_u64(c, &v->submit_wall_ms);
	walk_u64(c, &v->mem_bytes);
	for (size_t i = 0; i < 4; i++)
		walk_u64(c, &v->cpu_need[i]);
	if (!c->free)
		walk_match(c, v);
	count = walk_count(c, &v->sealed_size, OV_SEALED_MAX);
	walk_bytes(c, v->sealed, count);
	require(c, (v->state == JOB_STATE_HELD) <= !node_id_is_zero(&v->owner));
	require(c, (v->state == JOB_STATE_IDLE) <= node_id_is_zero(&v->owner));
}

WALK void walk_card(struct cursor *c, struct node_card *card)
{
	walk_u32(c, &card->version);
	walk_u32(c, &card->reserved);
	walk_bytes(c, &card->id, sizeof(card->id));
	walk_bytes(c, card->tls_public, sizeof(card->tls_public));
	walk_bytes(c, card->sign_public, sizeof(card->sign_public));
	walk_u64(c, &card->issued_wall_ms);
	walk_u64(c, &card->expires_wall_ms);
	walk_text(c, card->hostname, sizeof(card->hostname));
	walk_text(c, card->room, sizeof(card->room));
	walk_bytes(c, card->signature, sizeof(card->signature));
}

WALK void walk_tags(struct cursor *c, char tags[OV_TAGS_MAX])
{
	uint8_t length = c->writing ? (uint8_t)core_tags_length(tags) : 0;

	walk_u8(c, &length);
	require(c, !c->bad && length < OV_TAGS_MAX);
	if (!c->writing)
		memset(tags, 0, OV_TAGS_MAX);
	walk_bytes(c, tags, c->bad ? 0 : length);
	require(c, !c->bad && core_tags_valid(tags, length));
}

WALK void walk_report(struct cursor *c, struct member_state_report *report)
{
	walk_u32(c, &report->flags);
	walk_u32(c, &report->load_milli);
	walk_u64(c, &report->mem_free_bytes);
	walk_u64(c, &report->store_free_bytes);
	walk_u64(c, &report->store_used_bytes);
	for (size_t i = 0; i < 4; i++)
		walk_u64(c, &report->cpu_features[i]);
	walk_u32(c, &report->jobs);
	walk_u32(c, &report->stays);
	require(c, report->stays <= 1 + FORECAST_CERTAIN);
	walk_u16(c, &report->arch);
	require(c, report->arch < CPU_ARCH_END);
	walk_u16(c, &report->cores);
	walk_u32(c, &report->kernel_version);
	walk_u32(c, &report->kernel_features);
	walk_tags(c, report->tags);
}

WALK void walk_gossip(struct cursor *c, struct core_gossip *g)
{
	walk_bytes(c, &g->id, sizeof(g->id));
	walk_u64(c, &g->incarnation);
	require(c, g->incarnation > 0 && g->incarnation < CORE_COUNTER_MAX);
	walk_u32(c, &g->state);
	require(c, g->state >= MEMBER_ALIVE && g->state <= MEMBER_LEFT);
	walk_u32(c, &g->kind);
	require(c, g->kind <= CORE_GOSSIP_REPORT);
	require(c, g->kind != CORE_GOSSIP_BRIEF || g->state != MEMBER_ALIVE);
	if (c->bad || g->kind == CORE_GOSSIP_BRIEF)
		return;
	if (g->kind == CORE_GOSSIP_FULL) {
		walk_card(c, &g->card);
		require(c, node_id_equal(&g->card.id, &g->id) && !node_id_is_zero(&g->id));
	}
	walk_text(c, g->addr, sizeof(g->addr));
	walk_u16(c, &g->port);
	walk_report(c, &g->report);
}

WALK void walk_summary(struct cursor *c, struct core_summary *s)
{
	uint8_t state = (uint8_t)s->state;

	walk_bytes(c, &s->id, sizeof(s->id));
	walk_u64(c, &s->incarnation);
	walk_u8(c, &state);
	require(c, s->incarnation < CORE_COUNTER_MAX && state <= MEMBER_LEFT &&
			   !s->incarnation == !state);
	if (!c->writing)
		s->state = state;
}

WALK void walk_register(struct cursor *c, struct core_message *m, uint32_t fields)
{
	if (fields & F_JOB) {
		walk_bytes(c, &m->job, sizeof(m->job));
		walk_u32(c, &m->epoch);
		require(c, m->epoch < CORE_EPOCH_MAX);
	}
	if (fields & F_ACCEPTORS)
		walk_acceptors(c, &m->acceptors, fields & F_NO_ACCEPTORS_OK);
	if (fields & F_PREVIOUS)
		walk_acceptors(c, &m->previous, true);
	if (fields & F_BALLOT)
		walk_ballot(c, &m->ballot);
	if (fields & F_ACCEPTED)
		walk_ballot(c, &m->accepted);
	if (fields & F_TOKEN)
		walk_token(c, &m->token);
	if (fields & F_REASON) {
		walk_u32(c, &m->reason);
		require(c, m->reason >= CORE_NACK_PROMISED && m->reason <= CORE_NACK_FULL);
		walk_u32(c, &m->hold_left_ms);
	}
	if (fields & F_VALUE) {
		if (!c->writing)
			memset(&m->value, 0, sizeof(m->value));
		walk_value(c, &m->value);
		require(c, !c->bad && memcmp(&m->value.job, &m->job, sizeof(m->job)) == 0);
	}
	if (fields & F_NEXT)
		walk_acceptors(c, &m->next, true);
}

WALK void walk_message(struct cursor *c, struct core_message *m)
{
	uint8_t version = WIRE_VERSION, zero = 0;
	uint32_t fields, count;

	walk_u8(c, &version);
	walk_u8(c, &m->type);
	walk_u8(c, &m->flags);
	walk_u8(c, &zero);
	require(c, !c->bad && version == WIRE_VERSION && !zero);
	require(c, m->type > 0 && m->type < CORE_MSG_END);
	require(c, m->flags < CORE_FLAG_SETTLED << 1);
	if (c->bad)
		return;
	fields = message_fields[m->type];
	if (fields & F_SEQ)
		walk_u64(c, &m->seq);
	if (fields & F_SUBJECT)
		walk_bytes(c, &m->subject, sizeof(m->subject));
	if (fields & F_DIGEST)
		for (uint32_t i = 0; i < CORE_BUCKETS; i++)
			walk_u64(c, &m->digests[i]);
	if (fields & F_SUMMARY) {
		count = walk_count(c, &m->summary_count, CORE_SUMMARY_MAX);
		for (uint32_t i = 0; i < count && !c->bad; i++)
			walk_summary(c, &m->summaries[i]);
	}
	if (fields & F_RECORDS) {
		count = walk_count(c, &m->record_count, CORE_GOSSIP_RECORDS_MAX);
		for (uint32_t i = 0; i < count && !c->bad; i++)
			walk_gossip(c, &m->records[i]);
	}
	walk_register(c, m, fields);
}

size_t core_message_encode(const struct core_message *message, void *bytes, size_t max)
{
	struct cursor c = { .out = bytes, .size = max, .writing = true };

	/* A writing walk does not change the struct. */
	walk_message(&c, (struct core_message *)(uintptr_t)message);
	return c.bad || c.at > CORE_MESSAGE_MAX ? 0 : c.at;
}

int core_message_decode(const void *bytes, size_t size, struct core_message *ret_message)
{
	struct cursor c = { .in = bytes, .size = size };

	if (size > CORE_MESSAGE_MAX)
		return -EBADMSG;
	memset(ret_message, 0, offsetof(struct core_message, value));
	ret_message->record_count = ret_message->summary_count = 0;
	walk_message(&c, ret_message);
	return c.bad || c.at != size ? -EBADMSG : 0;
}

uint64_t core_checksum(const void *bytes, size_t size)
{
	uint64_t hash = UINT64_C(0xcbf29ce484222325);
	const uint8_t *at = bytes;

	for (size_t i = 0; i < size; i++)
		hash = (hash ^ at[i]) * UINT64_C(0x100000001b3);
	return hash;
}

WALK void walk_record(struct cursor *c, struct core_record *record)
{
	uint32_t magic = RECORD_MAGIC, version = RECORD_VERSION;
	struct core_record *r = record;

	walk_u32(c, &magic);
	walk_u32(c, &version);
	require(c, magic == RECORD_MAGIC && version > 0 && version <= RECORD_VERSION);
	c->plain = version == 1;
	c->free = version < 3;
	walk_bytes(c, &record->job, sizeof(record->job));
	walk_u32(c, &record->epoch);
	require(c, record->epoch < CORE_EPOCH_MAX && !(c->plain && record->epoch));
	walk_acceptors(c, &record->acceptors, false);
	if (c->plain) {
		/* Written before acceptors could change. */
		r->installed = r->settled = 1;
	} else {
		walk_u32(c, &r->installed);
		walk_u32(c, &r->settled);
		require(c, r->installed <= 1 && r->settled <= 1);
		walk_acceptors(c, &r->previous, true);
	}
	walk_ballot(c, &record->promised);
	walk_ballot(c, &record->accepted);
	require(c, core_ballot_compare(&record->accepted, &record->promised) <= 0);
	walk_value(c, &record->value);
	require(c, !c->bad && !memcmp(&record->value.job, &record->job, sizeof(record->job)));
	if (!c->plain)
		walk_acceptors(c, &record->next, true);
}

size_t core_record_encode(const struct core_record *record, void *bytes, size_t max)
{
	struct cursor c = { .out = bytes, .size = max, .writing = true };
	uint64_t sum;

	walk_record(&c, (struct core_record *)(uintptr_t)record);
	if (c.bad)
		return 0;
	sum = core_checksum(bytes, c.at);
	walk_u64(&c, &sum);
	return c.bad || c.at > CORE_RECORD_BYTES_MAX ? 0 : c.at;
}

int core_record_decode(const void *bytes, size_t size, struct core_record *ret_record)
{
	struct cursor c = { .in = bytes, .size = size };
	uint64_t sum = 0;
	size_t covered;

	if (size > CORE_RECORD_MAX)
		return -EBADMSG;
	memset(ret_record, 0, sizeof(*ret_record));
	walk_record(&c, ret_record);
	covered = c.at;
	walk_u64(&c, &sum);
	return c.bad || c.at != size || sum != core_checksum(bytes, covered) ? -EBADMSG : 0;
}

int core_value_normalize(const struct job_value *value, struct job_value *ret_value)
{
	uint8_t bytes[CORE_RECORD_BYTES_MAX];
	struct cursor writing = { .out = bytes, .size = sizeof(bytes), .writing = true };
	struct cursor reading = { .in = bytes };
	struct job_value normal;

	walk_value(&writing, (struct job_value *)(uintptr_t)value);
	if (writing.bad)
		return -EINVAL;
	memset(&normal, 0, sizeof(normal));
	reading.size = writing.at;
	walk_value(&reading, &normal);
	if (reading.bad)
		return -EINVAL;
	*ret_value = normal;
	return 0;
}
