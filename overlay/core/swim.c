/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who is alive: probe rounds, probes by way of others, suspicion (SWIM, DSN 2002; the habit of
 * telling a suspect that it is suspected is Lifeguard's).
 *
 * Who does not answer in one round is asked once more in the next, and by way of more others. Only
 * then is it suspected in public, but from the first round on, so that the dead are known as soon
 * as ever. Where messages get lost, nearly all suspicions end there, and nobody has to be told.
 *
 * A dead row is still probed now and then: that is how two halves of a healed partition meet
 * again. Nothing here matters for the safety of a register.
 */
#include "overlay/core/state.h"

#include <string.h>

enum {
	INDIRECT = 3,	   /* members asked to probe on our behalf; one the first time */
	PIGGYBACK = 6,	   /* rows riding on a probe */
	HOT_LOOKED_AT = 6, /* the hottest of so many */
	DEAD_ROUNDS = 5,   /* a dead member is probed every so many rounds */
	SYNC_ROUNDS = 8,
	HUSH_ROUNDS = 3, /* how much longer a rumour may be told at most */
	WAVE = 16,	 /* more news than that are a wave */
};

static void cool(struct core *core, struct member *member)
{
	if (--core->transmits[member - core->members] == 0)
		core_member_hush(core, member);
}

/* When all of a large cluster is new, most of it is not told before it is old. */
static void hush_old(struct core *core)
{
	if (core->now_ms < core->hush_ms)
		return;
	core->hush_ms = UINT64_MAX; /* in a wave there are hundreds: not in every round */
	for (uint32_t i = core->hot.count; i-- > 0;) {
		uint32_t row = core->hot.rows[i];
		uint64_t until_ms = core->spread_until_ms[row];

		if (core->now_ms >= until_ms)
			core_member_hush(core, &core->members[row]);
		else if (until_ms < core->hush_ms)
			core->hush_ms = until_ms;
	}
	if (core->hush_ms < core->now_ms + HUSH_ROUNDS * core_round_ms(core))
		core->hush_ms = core->now_ms + HUSH_ROUNDS * core_round_ms(core);
}

/* The hottest of a few, not yet among those told; 0 (self): none. */
static uint32_t draw_hot(struct core *core, uint32_t peer, const uint32_t *told, uint32_t count)
{
	uint32_t start = core_below(core, core->hot.count), best = 0;

	for (uint32_t i = 0; i < core->hot.count && i < HOT_LOOKED_AT; i++) {
		uint32_t row = core->hot.rows[(start + i) % core->hot.count];
		bool is_told = row == 0 || row == peer;

		for (uint32_t k = 0; k < count; k++)
			is_told |= told[k] == row;
		if (!is_told && (!best || core->transmits[row] > core->transmits[best]))
			best = row;
	}
	return best;
}

/* What is told of one that is alive. All rows of a message are fetched at once, not in turn. */
static void prefetch_news(const struct member *member)
{
	const uint8_t *line = (const uint8_t *)member;

	for (size_t at = 0; at < offsetof(struct member, info.hostname); at += 64)
		__builtin_prefetch(line + at, 0);
	__builtin_prefetch(member->info.addr, 0);
}

/* Self first, as long as it is news, to who may not know it; then what is hottest. */
static void add_gossip(struct core *core, struct core_message *m, const struct member *peer)
{
	uint32_t peer_row = peer ? (uint32_t)(peer - core->members) : 0;
	uint32_t told[PIGGYBACK], count = 0;
	struct member *self = &core->members[0];

	if (!peer || peer->info.state != MEMBER_ALIVE)
		core_member_add_record(m, self);
	else if (core->transmits[0])
		core_member_add_news(m, self);
	if (core->transmits[0])
		cool(core, self);
	if (peer && peer->info.state != MEMBER_ALIVE)
		core_member_add_news(m, peer); /* let it refute */
	while (count < PIGGYBACK && core->hot.count) {
		uint32_t row = draw_hot(core, peer_row, told, count);

		if (!row)
			break;
		told[count++] = row;
		prefetch_news(&core->members[row]);
	}
	for (uint32_t i = 0; i < count; i++) {
		core_member_add_news(m, &core->members[told[i]]);
		cool(core, &core->members[told[i]]);
	}
}

/* peer: the row of who it is sent to; NULL: a stranger. */
static void send_probe_row(struct core *core, enum core_message_type type, const struct node_id *to,
			   const struct member *peer, const struct node_id *subject, uint64_t seq)
{
	struct core_message *m = core_outbox_begin(core, type);

	m->seq = seq;
	m->subject = *subject;
	add_gossip(core, m, peer);
	core_outbox_send(core, to);
}

static void send_probe(struct core *core, enum core_message_type type, const struct node_id *to,
		       const struct node_id *subject, uint64_t seq)
{
	send_probe_row(core, type, to, core_member_find(core, to), subject, seq);
}

static bool is_probed(const struct core *core, const struct member *member)
{
	for (uint32_t i = 0; i < CORE_PROBES_MAX; i++)
		if (core->probes[i].active &&
		    node_id_equal(&core->probes[i].target, &member->info.id))
			return true;
	return false;
}

static void shuffle_order(struct core *core)
{
	for (uint32_t left = core->member_count; left > 1; left--) {
		uint32_t at = core_below(core, left);
		uint16_t row = core->order[at];

		core->order[at] = core->order[left - 1];
		core->order[left - 1] = row;
	}
	core->order_next = 0;
}

/* Each in turn, in an order that is shuffled each time through (SWIM 4.3): nobody waits for long. */
static struct member *next_target(struct core *core)
{
	struct member *found = NULL;

	for (uint32_t tried = 0; tried < core->member_count && !found; tried++) {
		struct member *member;

		if (core->order_next >= core->member_count)
			shuffle_order(core);
		member = &core->members[core->order[core->order_next++]];
		if (member->info.state == MEMBER_DEAD)
			core->dead_row = (uint32_t)(member - core->members);
		if (!member->info.is_self && member->info.state <= MEMBER_SUSPECT &&
		    !is_probed(core, member))
			found = member;
	}
	core->next_row = core->order_next < core->member_count ? core->order[core->order_next] : 0;
	return found;
}

static void start_probe(struct core *core, struct probe *probe, const struct member *target)
{
	probe->active = true;
	probe->seq = ++core->seq;
	send_probe_row(core, CORE_MSG_PING, &probe->target, target, &probe->target, probe->seq);
}

/* The first probes may be those of the last round, to be asked again: end_round() left them. */
static void start_round(struct core *core)
{
	uint32_t count = core->member_count > CORE_PROBES_FULL ? 1 : CORE_PROBES, at = 0;

	for (; at < CORE_PROBES && core->probes[at].active; at++)
		start_probe(core, &core->probes[at],
			    core_member_find(core, &core->probes[at].target));
	for (uint32_t i = 0; i < count; i++) {
		struct probe *probe = &core->probes[at++];
		struct member *target = next_target(core);

		if (!target)
			break;
		probe->target = target->info.id;
		probe->since_ms = core->now_ms;
		start_probe(core, probe, target);
	}
	core->half_ms = core->now_ms + core_round_ms(core) / 2;
	core->round_ms = core->now_ms + core_round_ms(core);
}

static void ask_others(struct core *core, struct probe *probe)
{
	uint32_t start = core_below(core, core->member_count), asked = 0;
	uint32_t count = probe->first_seq ? INDIRECT : 1;

	for (uint32_t i = 0; i < core->member_count && asked < count; i++) {
		struct member *member = &core->members[(start + i) % core->member_count];

		if (member->info.is_self || member->info.state != MEMBER_ALIVE ||
		    node_id_equal(&member->info.id, &probe->target))
			continue;
		send_probe(core, CORE_MSG_PING_REQ, &member->info.id, &probe->target, probe->seq);
		asked++;
	}
}

static void suspect(struct core *core, struct member *member, uint64_t since_ms)
{
	core_member_set_state(core, member, MEMBER_SUSPECT);
	member->found_silent = true;
	core_member_suspect_until(core, member, since_ms + core_suspect_ms(core));
	/* It is told first: a rumour would take half of the time that is left to reach it. */
	send_probe(core, CORE_MSG_PING, &member->info.id, &member->info.id, ++core->seq);
}

/* Leaves those at the beginning that are to be asked again. */
static void end_round(struct core *core)
{
	struct probe again[CORE_PROBES_MAX] = { 0 };
	uint32_t count = 0;

	for (uint32_t i = 0; i < CORE_PROBES_MAX; i++) {
		struct probe *probe = &core->probes[i];
		struct member *target;

		if (!probe->active || probe->acked)
			continue;
		target = core_member_find(core, &probe->target);
		if (!target || target->info.state != MEMBER_ALIVE)
			continue;
		if (probe->first_seq || count == CORE_PROBES) {
			suspect(core, target, probe->since_ms);
			continue;
		}
		again[count] = *probe;
		again[count++].first_seq = probe->seq;
	}
	memcpy(core->probes, again, sizeof(again));
}

static void tick_suspects(struct core *core)
{
	if (!core->suspects.count)
		return;
	if (core->now_ms < core->suspects_ms) {
		core_arm(core, core->suspects_ms);
		return;
	}
	core->suspects_ms = UINT64_MAX;
	/* From the end: one that is declared dead leaves the set. */
	for (uint32_t i = core->suspects.count; i-- > 0;) {
		struct member *member = &core->members[core->suspects.rows[i]];
		uint64_t heard_until = member->heard_ms + core_suspect_ms(core);
		bool own = member->found_silent;

		/* A rumour against what we hear ourselves: wait for real silence. */
		if (member->suspect_until_ms < heard_until)
			member->suspect_until_ms = heard_until;
		if (core->now_ms < member->suspect_until_ms) {
			core_member_suspect_until(core, member, member->suspect_until_ms);
			continue;
		}
		core_member_set_state(core, member, MEMBER_DEAD);
		/*
		 * A few hosts found out by themselves: the others need not wait. Of a wave of deaths, as
		 * when the network is cut, all find out by themselves.
		 */
		if (own && core->hot.count <= WAVE)
			core_member_broadcast(core, member);
	}
}

/* What is due only now and then is looked at in a round that is due anyway: no tick of its own. */
static uint64_t rounds_from_now(const struct core *core, uint32_t rounds)
{
	return core->now_ms + rounds * core_round_ms(core) - core_round_ms(core) / 2;
}

static void tick_dead(struct core *core)
{
	struct member *dead;

	if (core->now_ms < core->dead_ping_ms)
		return;
	core->dead_ping_ms = rounds_from_now(core, DEAD_ROUNDS);
	dead = &core->members[core->dead_row];
	core->dead_row = 0;
	if (dead->info.state != MEMBER_DEAD)
		return;
	send_probe(core, CORE_MSG_PING, &dead->info.id, &dead->info.id, ++core->seq);
}

static void tick_sync(struct core *core)
{
	uint32_t start;

	if (core->now_ms < core->sync_ms)
		return;
	start = core_below(core, core->member_count);
	core->sync_ms = rounds_from_now(core, SYNC_ROUNDS + core_below(core, 2));
	for (uint32_t i = 0; i < core->member_count; i++) {
		struct member *member = &core->members[(start + i) % core->member_count];

		if (member->info.is_self || member->info.state != MEMBER_ALIVE)
			continue;
		core_member_send_digest(core, &member->info.id);
		return;
	}
}

static void tick_minor(struct core *core)
{
	struct member *self = &core->members[0];

	/* So that a disk of before that write is known as such: rule A5, see lost_from. */
	if (core->wrote_ms && core->now_ms >= core->wrote_ms + core->config.hold_ms) {
		core->wrote_ms = 0;
		core->self_minor = true;
	} else if (core->wrote_ms) {
		core_arm(core, core->wrote_ms + core->config.hold_ms);
	}
	if (!core->self_minor)
		return;
	if (core->now_ms >= core->minor_ms) {
		core->self_minor = false;
		core->minor_ms = core->now_ms + CORE_MINOR_REPORT_MS;
		self->info.incarnation++; /* rides on our own probes */
		core_member_changed(core, self);
		core_member_spread(core, self);
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
		for (uint32_t i = 0; i < CORE_PROBES_MAX; i++)
			if (core->probes[i].active && !core->probes[i].acked)
				ask_others(core, &core->probes[i]);
	}
	if (core->now_ms >= core->round_ms) {
		end_round(core);
		hush_old(core);
		start_round(core);
		tick_dead(core);
		tick_sync(core);
	}
	tick_suspects(core);
	tick_minor(core);
	core_arm(core, core->round_ms);
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
	relay->until_ms = core->now_ms + core_round_ms(core);
	core->relayed_until_ms = relay->until_ms;
	send_probe(core, CORE_MSG_PING, &relay->target, &relay->target, relay->seq);
}

static void handle_ack(struct core *core, const struct core_message *m)
{
	bool waiting = false;

	for (uint32_t i = 0; i < CORE_PROBES_MAX; i++) {
		struct probe *probe = &core->probes[i];

		if (probe->active && (probe->seq == m->seq || probe->first_seq == m->seq) &&
		    node_id_equal(&probe->target, &m->subject)) {
			probe->acked = true;
			core_member_heard(core, &m->subject);
		}
		waiting |= probe->active && !probe->acked;
	}
	if (!waiting)
		core->half_ms = UINT64_MAX; /* nobody need be asked for help */
	for (uint32_t i = 0; core->now_ms <= core->relayed_until_ms && i < CORE_RELAYS_MAX; i++) {
		struct relay *relay = &core->relays[i];

		if (relay->seq != m->seq || !relay->seq || core->now_ms > relay->until_ms ||
		    !node_id_equal(&relay->target, &m->subject))
			continue;
		relay->seq = 0;
		send_probe(core, CORE_MSG_ACK, &relay->origin, &relay->target, relay->origin_seq);
	}
}

/*
 * Who begins a new life hears what was known of the one before: its disk may not (rule A5). Such a
 * one shows its card, in whatever arrives first.
 */
static void remind(struct core *core, const struct node_id *from, const struct core_gossip *own)
{
	const struct member *known = core_member_find(core, from);
	struct core_message *out;

	if (core->left || own->kind != CORE_GOSSIP_FULL || !known ||
	    own->incarnation <= known->info.incarnation)
		return;
	out = core_outbox_begin(core, CORE_MSG_GOSSIP);
	core_member_add_news(out, known);
	if (out->record_count)
		core_outbox_send(core, from);
}

/* The rows it speaks of are all over a large table: they are fetched at once, not in turn. */
static void prefetch_records(const struct core *core, const struct core_message *m)
{
	size_t size = m->type == CORE_MSG_SYNC ? sizeof(struct member) : 1;

	for (uint32_t stage = 0; stage < 2; stage++)
		for (uint32_t i = 0; i < m->record_count; i++)
			core_member_prefetch(core, &m->records[i].id, stage, size);
}

void core_member_message(struct core *core, const struct node_id *from, struct core_message *m)
{
	bool reminded = false;
	uint32_t news = 0;

	prefetch_records(core, m);
	for (uint32_t i = 0; i < m->record_count; i++) {
		bool own = node_id_equal(&m->records[i].id, from);

		if (own && !reminded)
			remind(core, from, &m->records[i]);
		reminded |= own;
		/* A table is no rumour: of much that is new here, the others know most. */
		news += core_member_apply(core, from, &m->records[i],
					  m->type != CORE_MSG_SYNC || own || news < PIGGYBACK);
	}
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
		core_member_compare(core, from, m);
		break;
	case CORE_MSG_SUMMARY:
		core_member_summary(core, from, m);
		break;
	default:
		break;
	}
}
