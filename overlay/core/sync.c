/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Anti-entropy: two members compare their tables and tell each other what differs, no more.
 *
 *   DIGEST            a sum over each part of the sender's table
 *   SUMMARY, "mine"   incarnation and state of each row in parts that differ
 *   SYNC              rows that are newer here, or unknown there
 *   SUMMARY, "wants"  rows that are newer there, or unknown here; answered by a SYNC
 *
 * What differs in a table that is about the same is news that rides on probes anyway, so little of
 * it is looked at each time. Who knows next to nothing is told everything, by one member only.
 */
#include "overlay/core/state.h"

#include <string.h>

enum {
	ROWS_LOOKED_AT = 64, /* in one comparison of tables that are about the same */
	BUCKETS_STRANGE = CORE_BUCKETS * 3 / 4, /* that differ in tables that are not */
	ROWS_FETCHED = 64, /* more than that are asked of one member at a time */
};

static bool is_newer(uint64_t incarnation, uint32_t state, uint64_t than, uint32_t than_state)
{
	return incarnation > than || (incarnation == than && state > than_state);
}

static uint32_t popcount(uint64_t mask)
{
	uint32_t count = 0;

	for (; mask; mask &= mask - 1)
		count++;
	return count;
}

void core_member_send_digest(struct core *core, const struct node_id *to)
{
	struct core_message *m = core_outbox_begin(core, CORE_MSG_DIGEST);

	memcpy(m->digests, core->digests, sizeof(m->digests));
	core_member_add_record(m, &core->members[0]);
	core_outbox_send(core, to);
}

static void add_summary(struct core_message *m, const struct member_info *info)
{
	struct core_summary *summary = &m->summaries[m->summary_count++];

	summary->id = info->id;
	summary->incarnation = info->incarnation;
	summary->state = info->incarnation ? info->state : 0;
}

/* Those that were only greeted, too; and the rows are sent for. */
static uint32_t bucket_count(const struct core *core, uint32_t bucket)
{
	uint32_t count = 0;

	for (uint32_t row = core->bucket_rows[bucket]; row; row = core->bucket_next[row - 1]) {
		__builtin_prefetch(&core->members[row - 1]);
		count++;
	}
	return count;
}

static void add_bucket(const struct core *core, struct core_message *m, uint32_t bucket)
{
	m->seq |= UINT64_C(1) << bucket;
	for (uint32_t row = core->bucket_rows[bucket]; row; row = core->bucket_next[row - 1])
		if (core->members[row - 1].info.incarnation && m->summary_count < CORE_SUMMARY_MAX)
			add_summary(m, &core->members[row - 1].info);
}

static void flush(struct core *core, struct core_message *m, const struct node_id *to)
{
	m->flags = CORE_FLAG_WANT_REPLY;
	core_outbox_send(core, to);
}

/* A DIGEST: shows what is here of the parts that differ, from any of them on. */
void core_member_compare(struct core *core, const struct node_id *from,
			 const struct core_message *m)
{
	struct core_message *out = core_outbox_begin(core, CORE_MSG_SUMMARY);
	uint32_t start = core_below(core, CORE_BUCKETS), rows = 0, max = ROWS_LOOKED_AT;
	uint64_t differ = 0;

	for (uint32_t i = 0; i < CORE_BUCKETS; i++)
		differ |= (uint64_t)(m->digests[i] != core->digests[i]) << i;
	if (popcount(differ) >= BUCKETS_STRANGE)
		max = OV_MEMBERS_MAX;
	for (uint32_t i = 0; i < CORE_BUCKETS; i++) {
		uint32_t bucket = (start + i) % CORE_BUCKETS, count;

		if (!(differ >> bucket & 1))
			continue;
		count = bucket_count(core, bucket);
		if (rows && rows + count > max)
			break;
		if (out->summary_count && out->summary_count + count > CORE_SUMMARY_MAX) {
			flush(core, out, from);
			out = core_outbox_begin(core, CORE_MSG_SUMMARY);
		}
		add_bucket(core, out, bucket);
		rows += count;
	}
	if (out->seq)
		flush(core, out, from);
}

/* known: there it has a row, with a card. Of who is gone, no more is needed then. */
static struct core_message *tell_row(struct core *core, struct core_message *out,
				     const struct member *member, const struct node_id *to,
				     bool known)
{
	if (out->record_count == CORE_GOSSIP_RECORDS_MAX) {
		core_outbox_send(core, to);
		out = core_outbox_begin(core, CORE_MSG_SYNC);
	}
	if (known && member->info.state != MEMBER_ALIVE)
		core_member_add_news(out, member);
	else
		core_member_add_record(out, member);
	return out;
}

/* Rows that are newer here; of the parts named in the message, also those that it does not name. */
static void tell_newer(struct core *core, const struct node_id *to, const struct core_message *m)
{
	uint64_t buckets = m->flags & CORE_FLAG_WANT_REPLY ? m->seq : 0;
	struct core_message *out = core_outbox_begin(core, CORE_MSG_SYNC);
	uint8_t named[OV_MEMBERS_MAX / 8] = { 0 };

	for (uint32_t i = 0; i < m->summary_count; i++) {
		const struct core_summary *summary = &m->summaries[i];
		const struct member *member = core_member_find(core, &summary->id);
		uint32_t row;

		if (!member)
			continue;
		row = (uint32_t)(member - core->members);
		named[row / 8] |= (uint8_t)(1u << row % 8);
		if (is_newer(member->info.incarnation, member->info.state, summary->incarnation,
			     summary->state))
			out = tell_row(core, out, member, to, summary->incarnation > 0);
	}
	for (uint32_t bucket = 0; bucket < CORE_BUCKETS; bucket++) {
		uint32_t row = buckets >> bucket & 1 ? core->bucket_rows[bucket] : 0;

		for (; row; row = core->bucket_next[row - 1])
			if (!(named[(row - 1) / 8] & 1u << (row - 1) % 8))
				out = tell_row(core, out, &core->members[row - 1], to, false);
	}
	if (out->record_count)
		core_outbox_send(core, to);
}

static void ask_for_newer(struct core *core, const struct node_id *from,
			  const struct core_message *m)
{
	struct core_message *out = core_outbox_begin(core, CORE_MSG_SUMMARY);
	bool fetching = core->now_ms < core->fetch_ms + core_round_ms(core) &&
			!node_id_equal(&core->fetch_from, from);

	for (uint32_t i = 0; i < m->summary_count; i++) {
		const struct core_summary *theirs = &m->summaries[i];
		const struct member *member = core_member_find(core, &theirs->id);
		const struct member_info stranger = { .id = theirs->id };

		if (!theirs->incarnation ||
		    (member && !is_newer(theirs->incarnation, theirs->state,
					 member->info.incarnation, member->info.state)))
			continue;
		add_summary(out, member ? &member->info : &stranger);
	}
	if (!out->summary_count || (fetching && out->summary_count > ROWS_FETCHED))
		return;
	if (out->summary_count > ROWS_FETCHED) {
		core->fetch_ms = core->now_ms;
		core->fetch_from = *from;
	}
	core_outbox_send(core, from);
}

void core_member_summary(struct core *core, const struct node_id *from,
			 const struct core_message *m)
{
	for (uint32_t stage = 0; stage < 2; stage++)
		for (uint32_t i = 0; i < m->summary_count; i++)
			core_member_prefetch(core, &m->summaries[i].id, stage, 1);
	tell_newer(core, from, m);
	if (m->flags & CORE_FLAG_WANT_REPLY)
		ask_for_newer(core, from, m);
}
