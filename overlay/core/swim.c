/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who is alive: probe rounds, probes by way of others, suspicion, anti-entropy (SWIM, DSN 2002;
 * the habit of telling a suspect that it is suspected is Lifeguard's).
 *
 * A dead row is still probed now and then: that is how two halves of a healed partition meet
 * again. Nothing here matters for the safety of a register.
 */
#include "overlay/core/state.h"

#include <string.h>

enum {
	INDIRECT = 3,	 /* members asked to probe on our behalf */
	PIGGYBACK = 6,	 /* rows riding on a probe */
	DEAD_ROUNDS = 5, /* a dead member is probed every so many rounds */
	SYNC_ROUNDS = 8,
};

/* Self first (a probe introduces the prober), then what is hottest. */
static void add_gossip(struct core *core, struct core_message *m, const struct node_id *to)
{
	struct member *peer = core_member_find(core, to);

	core_member_add_record(m, &core->members[0]);
	if (peer && peer->info.state != MEMBER_ALIVE)
		core_member_add_record(m, peer); /* let it refute */
	for (uint32_t n = 0; n < PIGGYBACK; n++) {
		struct member *best = NULL;
		uint32_t start = core_below(core, core->member_count);

		for (uint32_t i = 0; i < core->member_count; i++) {
			struct member *member = &core->members[(start + i) % core->member_count];

			if (member->transmits && member != peer && !member->info.is_self &&
			    (!best || member->transmits > best->transmits))
				best = member;
		}
		if (!best)
			return;
		best->transmits--;
		core_member_add_record(m, best);
	}
}

static void send_probe(struct core *core, enum core_message_type type, const struct node_id *to,
		       const struct node_id *subject, uint64_t seq)
{
	struct core_message *m = core_outbox_begin(core, type);

	m->seq = seq;
	m->subject = *subject;
	add_gossip(core, m, to);
	core_outbox_send(core, to);
}

/* The member of the given states that was not probed for longest, other than those in flight. */
static struct member *next_target(struct core *core, uint32_t from_state, uint32_t to_state)
{
	uint32_t start = core_below(core, core->member_count);
	struct member *best = NULL;

	for (uint32_t i = 0; i < core->member_count; i++) {
		struct member *member = &core->members[(start + i) % core->member_count];

		if (member->info.is_self || member->info.state < from_state ||
		    member->info.state > to_state || member->probed_ms > core->now_ms)
			continue;
		if (!best || member->probed_ms < best->probed_ms)
			best = member;
	}
	return best;
}

static void start_round(struct core *core)
{
	for (uint32_t i = 0; i < CORE_PROBES; i++) {
		struct probe *probe = &core->probes[i];
		struct member *target = next_target(core, MEMBER_ALIVE, MEMBER_SUSPECT);

		memset(probe, 0, sizeof(*probe));
		/* Marked a little ahead: one round never probes the same member twice. */
		if (!target)
			break;
		target->probed_ms = core->now_ms + 1;
		probe->active = true;
		probe->target = target->info.id;
		probe->seq = ++core->seq;
		send_probe(core, CORE_MSG_PING, &probe->target, &probe->target, probe->seq);
	}
	core->half_ms = core->now_ms + core->config.probe_ms / 2;
	core->round_ms = core->now_ms + core->config.probe_ms;
}

static void ask_others(struct core *core, struct probe *probe)
{
	uint32_t start = core_below(core, core->member_count), asked = 0;

	probe->indirect = true;
	for (uint32_t i = 0; i < core->member_count && asked < INDIRECT; i++) {
		struct member *member = &core->members[(start + i) % core->member_count];

		if (member->info.is_self || member->info.state != MEMBER_ALIVE ||
		    node_id_equal(&member->info.id, &probe->target))
			continue;
		send_probe(core, CORE_MSG_PING_REQ, &member->info.id, &probe->target, probe->seq);
		asked++;
	}
}

static void end_round(struct core *core)
{
	for (uint32_t i = 0; i < CORE_PROBES; i++) {
		struct probe *probe = &core->probes[i];
		struct member *target;

		if (!probe->active || probe->acked)
			continue;
		probe->active = false;
		target = core_member_find(core, &probe->target);
		if (target && target->info.state == MEMBER_ALIVE)
			core_member_set_state(core, target, MEMBER_SUSPECT);
	}
}

static void tick_suspects(struct core *core)
{
	for (uint32_t i = 1; i < core->member_count; i++) {
		struct member *member = &core->members[i];
		uint64_t heard_until = member->heard_ms + core->config.suspect_ms;

		if (member->info.state != MEMBER_SUSPECT)
			continue;
		/* A rumour against what we hear ourselves: wait for real silence. */
		if (member->suspect_until_ms < heard_until)
			member->suspect_until_ms = heard_until;
		if (core->now_ms >= member->suspect_until_ms)
			core_member_set_state(core, member, MEMBER_DEAD);
		else
			core_arm(core, member->suspect_until_ms);
	}
}

static void tick_dead(struct core *core)
{
	struct member *dead;

	if (core->now_ms < core->dead_ping_ms)
		return;
	core->dead_ping_ms = core->now_ms + DEAD_ROUNDS * core->config.probe_ms;
	dead = next_target(core, MEMBER_DEAD, MEMBER_DEAD);
	if (!dead)
		return;
	dead->probed_ms = core->now_ms;
	send_probe(core, CORE_MSG_PING, &dead->info.id, &dead->info.id, ++core->seq);
}

static uint64_t table_digest(const struct core *core)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < core->member_count; i++) {
		const struct member_info *info = &core->members[i].info;
		uint64_t word;

		memcpy(&word, info->id.b, sizeof(word));
		if (info->incarnation)
			sum ^= core_mix(word ^ core_mix(info->incarnation * 8 + info->state));
	}
	return sum;
}

static void tick_sync(struct core *core)
{
	uint32_t start = core_below(core, core->member_count);
	struct core_message *m;

	if (core->now_ms < core->sync_ms)
		return;
	core->sync_ms = core->now_ms + SYNC_ROUNDS * core->config.probe_ms +
			core_below(core, core->config.probe_ms);
	for (uint32_t i = 0; i < core->member_count; i++) {
		struct member *member = &core->members[(start + i) % core->member_count];

		if (member->info.is_self || member->info.state != MEMBER_ALIVE)
			continue;
		m = core_outbox_begin(core, CORE_MSG_DIGEST);
		m->digest = table_digest(core);
		core_member_add_record(m, &core->members[0]);
		core_outbox_send(core, &member->info.id);
		return;
	}
}

static void tick_minor(struct core *core)
{
	struct member *self = &core->members[0];

	if (!core->self_minor)
		return;
	if (core->now_ms >= core->minor_ms) {
		core->self_minor = false;
		core->minor_ms = core->now_ms + CORE_MINOR_REPORT_MS;
		self->info.incarnation++; /* rides on our own probes */
	} else {
		core_arm(core, core->minor_ms);
	}
}

void core_member_tick(struct core *core)
{
	if (core->left)
		return;
	if (core->now_ms >= core->half_ms) {
		core->half_ms = UINT64_MAX;
		for (uint32_t i = 0; i < CORE_PROBES; i++)
			if (core->probes[i].active && !core->probes[i].acked)
				ask_others(core, &core->probes[i]);
	}
	if (core->now_ms >= core->round_ms) {
		end_round(core);
		start_round(core);
	}
	tick_suspects(core);
	tick_dead(core);
	tick_sync(core);
	tick_minor(core);
	core_arm(core, core->half_ms);
	core_arm(core, core->round_ms);
	core_arm(core, core->dead_ping_ms);
	core_arm(core, core->sync_ms);
}

static void handle_ping_req(struct core *core, const struct node_id *from,
			    const struct core_message *m)
{
	struct relay *relay = &core->relays[core->relay_next++ % CORE_RELAYS_MAX];

	if (!core_member_find(core, &m->subject))
		return;
	relay->origin = *from;
	relay->origin_seq = m->seq;
	relay->target = m->subject;
	relay->seq = ++core->seq;
	relay->until_ms = core->now_ms + core->config.probe_ms;
	send_probe(core, CORE_MSG_PING, &relay->target, &relay->target, relay->seq);
}

static void handle_ack(struct core *core, const struct core_message *m)
{
	for (uint32_t i = 0; i < CORE_PROBES; i++) {
		struct probe *probe = &core->probes[i];

		if (probe->active && probe->seq == m->seq &&
		    node_id_equal(&probe->target, &m->subject)) {
			probe->acked = true;
			core_member_heard(core, &m->subject);
		}
	}
	for (uint32_t i = 0; i < CORE_RELAYS_MAX; i++) {
		struct relay *relay = &core->relays[i];

		if (relay->seq != m->seq || !relay->seq || core->now_ms > relay->until_ms ||
		    !node_id_equal(&relay->target, &m->subject))
			continue;
		relay->seq = 0;
		send_probe(core, CORE_MSG_ACK, &relay->origin, &relay->target, relay->origin_seq);
	}
}

void core_member_message(struct core *core, const struct node_id *from, struct core_message *m)
{
	for (uint32_t i = 0; i < m->record_count; i++)
		core_member_apply(core, &m->records[i]);
	if (core->left)
		return;
	switch (m->type) {
	case CORE_MSG_PING:
		send_probe(core, CORE_MSG_ACK, from, core_self(core), m->seq);
		break;
	case CORE_MSG_ACK:
		handle_ack(core, m);
		break;
	case CORE_MSG_PING_REQ:
		handle_ping_req(core, from, m);
		break;
	case CORE_MSG_DIGEST:
		if (m->digest != table_digest(core))
			core_member_sync(core, from, true);
		break;
	case CORE_MSG_SYNC:
		if (m->flags & CORE_FLAG_WANT_REPLY)
			core_member_sync(core, from, false);
		break;
	default:
		break;
	}
}
