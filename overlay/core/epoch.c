/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Acceptors that change, one at a time (Lamport, Malkhi, Zhou: stoppable Paxos).
 *
 *   seal:    a value with `next` is chosen in epoch e; nothing else can follow it there (P2)
 *   install: next's members begin epoch e+1 with that value, their holds anew (A3)
 *   settle:  a majority of them has; from now on the job is there
 *   close:   a majority of epoch e's acceptors has noted that, so that those who sleep through
 *            it all can never seal and install once more what has long been forgotten
 *
 * The proposer does the first two (OP_REPLACE); whoever finds a seal finishes it first. What is
 * told here are facts: a settled epoch stands whatever the hearer knew before.
 */
#include "overlay/core/state.h"

#include <string.h>

/*
 * Answers somebody whose epoch is over. A member of an epoch that may not stand yet says what it
 * was installed with: he who asks then has the seal's value and one vote for it.
 */
void core_epoch_tell(struct core *core, const struct node_id *to, const struct job *job,
		     uint32_t epoch)
{
	struct core_message *m = core_job_message(core, job, CORE_MSG_MOVED);

	m->value = job->value;
	m->value.job = job->id;
	if (!job->has_record)
		m->value = job->known_value;
	if (job->settled) {
		m->flags = CORE_FLAG_SETTLED;
	} else if (epoch + 1 < job->epoch) {
		m->flags = CORE_FLAG_SETTLED;
		m->epoch = job->epoch - 1;
		m->acceptors = job->previous;
	} else {
		m->previous = job->previous;
	}
	core_outbox_send(core, to);
}

static void tell_settled(struct core *core, const struct node_id *to)
{
	if (!node_id_equal(to, core_self(core)))
		core_outbox_to(core, to);
}

/* A new epoch stands: its acceptors, the old ones and the owner hear of it. */
void core_epoch_announce(struct core *core, struct job *job, const struct core_acceptors *old)
{
	struct core_message *m = core_job_message(core, job, CORE_MSG_MOVED);
	const struct job_value *value = job->known ? &job->known_value : &job->value;

	m->flags = CORE_FLAG_SETTLED;
	m->value = *value;
	m->value.job = job->id;
	core_outbox_seal(core);
	for (uint32_t i = 0; i < job->acceptors.count; i++)
		tell_settled(core, &job->acceptors.ids[i]);
	for (uint32_t i = 0; i < old->count; i++)
		if (core_job_rank(job, &old->ids[i]) == CORE_NONE)
			tell_settled(core, &old->ids[i]);
	if (!node_id_is_zero(&value->owner) && core_job_rank(job, &value->owner) == CORE_NONE &&
	    core_acceptors_rank(old, &value->owner) == CORE_NONE)
		tell_settled(core, &value->owner);
}

static bool install(struct core *core, struct job *job, const struct core_message *m)
{
	/* A signpost has noted that the epoch stands, and may have said so (CLOSED). */
	bool stands = m->flags & CORE_FLAG_SETTLED || (job->settled && job->epoch == m->epoch);

	if (!core_job_mark_dirty(core, job))
		return false;
	job->epoch = m->epoch;
	job->acceptors = m->acceptors;
	job->previous = m->previous;
	job->has_record = job->installed = true;
	job->settled = stands;
	job->promised = job->accepted = m->accepted;
	job->value = m->value;
	memset(&job->next, 0, sizeof(job->next));
	job->changed_ms = core->now_ms;
#ifndef MUTANT_A3
	/* The owner may have renewed with others a moment ago. */
	job->hold_until_ms = core->now_ms + core->config.hold_ms;
#endif
	job->renewed = false;
	job->closed = 0;
	job->join_ms = 0;
	job->done_ms = job->confirm_ms = job->unknown_since_ms = job->close_ms = 0;
	job->grant_ms = core->now_ms + 2 * core->config.renew_ms;
	job->guard_ms = core->now_ms + CORE_SETTLE_EPOCH_MS;
	job->members_ms = core->now_ms + CORE_MEMBERS_MS;
	core_proposer_moved(core, job);
	core_job_learn(core, job, &m->accepted, &m->value);
	core_arm(core, core->now_ms);
	return true;
}

static void handle_install(struct core *core, const struct node_id *from, struct core_message *m)
{
	struct job *job = core_job_get(core, &m->job);

	if (!job || !m->epoch || m->accepted.epoch != m->epoch ||
	    core_acceptors_rank(&m->acceptors, core_self(core)) == CORE_NONE ||
	    (job->over && !job->has_record))
		return;
	if (job->acceptors.count && job->epoch > m->epoch) {
		core_epoch_tell(core, from, job, m->epoch);
		return;
	}
	if (!(job->has_record && job->installed && job->epoch == m->epoch) &&
	    !install(core, job, m))
		return;
	(void)core_job_message(core, job, CORE_MSG_INSTALLED);
	core_outbox_send(core, from);
}

/* A host that forgot the job can say so as well: it has no vote in the epoch before either. */
static void handle_close(struct core *core, const struct node_id *from, struct core_message *m)
{
	struct job *job = core_job_find(core, &m->job);
	struct core_message *out;

	if (job && job->has_record) {
		(void)core_job_move(core, job, m->epoch, &m->acceptors);
		if (job->epoch < m->epoch || !job->settled)
			return;
		if (m->flags & CORE_FLAG_SETTLED && job->epoch == m->epoch && job->previous.count &&
		    core_job_mark_dirty(core, job))
			memset(&job->previous, 0, sizeof(job->previous));
	}
	out = core_outbox_begin(core, CORE_MSG_CLOSED);
	out->job = m->job;
	out->epoch = m->epoch;
	out->acceptors = m->acceptors;
	core_outbox_send(core, from);
}

static uint32_t popcount(uint32_t mask)
{
	uint32_t count = 0;

	for (; mask; mask &= mask - 1)
		count++;
	return count;
}

static void handle_closed(struct core *core, const struct node_id *from, struct core_message *m)
{
	struct job *job = core_job_find(core, &m->job);
	uint32_t rank = job ? core_acceptors_rank(&job->previous, from) : CORE_NONE;

	if (rank == CORE_NONE || !job->installed || !job->settled || job->epoch != m->epoch)
		return;
	job->closed |= 1u << rank;
	if (popcount(job->closed) < core_acceptors_quorum(&job->previous) ||
	    !core_job_mark_dirty(core, job))
		return;
	memset(&job->previous, 0, sizeof(job->previous));
	m = core_job_message(core, job, CORE_MSG_CLOSE);
	m->flags = CORE_FLAG_SETTLED;
	core_outbox_seal(core);
	for (uint32_t i = 0; i < job->acceptors.count; i++)
		if (!node_id_equal(&job->acceptors.ids[i], core_self(core)))
			core_outbox_to(core, &job->acceptors.ids[i]);
}

static void handle_moved(struct core *core, struct core_message *m)
{
	struct job *job = core_job_find(core, &m->job);

	if (job && m->flags & CORE_FLAG_SETTLED)
		(void)core_job_move(core, job, m->epoch, &m->acceptors);
}

void core_epoch_message(struct core *core, const struct node_id *from, struct core_message *m)
{
	switch (m->type) {
	case CORE_MSG_INSTALL:
		handle_install(core, from, m);
		break;
	case CORE_MSG_CLOSE:
		handle_close(core, from, m);
		break;
	case CORE_MSG_CLOSED:
		handle_closed(core, from, m);
		break;
	case CORE_MSG_MOVED:
		handle_moved(core, m);
		core_proposer_message(core, from, m);
		break;
	default:
		core_proposer_message(core, from, m);
	}
}

static uint64_t my_turn_ms(const struct core *core, const struct job *job)
{
	uint32_t rank = core_job_rank(job, core_self(core)), live = 0;

	for (uint32_t i = 0; i < rank && i < job->acceptors.count; i++)
		live += core_member_is_alive(core, &job->acceptors.ids[i]);
	return (uint64_t)live * CORE_RANK_MS;
}

static bool is_due(struct core *core, uint64_t when_ms)
{
	if (core->now_ms >= when_ms)
		return true;
	core_arm(core, when_ms);
	return false;
}

/* Sealed, or installed without knowing of a majority: somebody stopped half-way. */
static void tick_settle(struct core *core, struct job *job)
{
	/* Its former acceptors have forgotten the job: it is over, see guardian.c. */
	if (job->unknown_since_ms && core->now_ms >= job->unknown_since_ms + CORE_TOMBSTONE_MS &&
	    core_job_mark_dirty(core, job)) {
		job->has_record = job->installed = job->known = job->attempted = false;
		job->unknown_since_ms = 0;
		return;
	}
	if (!is_due(core, job->guard_ms))
		return;
	job->guard_ms = core->now_ms + CORE_CLOSE_MS + my_turn_ms(core, job) +
			core_below(core, CORE_RANK_MS);
	core_arm(core, job->guard_ms);
	core_proposer_settle(core, job);
}

static void tick_close(struct core *core, struct job *job)
{
	if (!job->close_ms) {
		job->close_ms = core->now_ms + 1 + my_turn_ms(core, job);
		if (core_acceptors_rank(&job->previous, core_self(core)) != CORE_NONE)
			job->closed |= 1u << core_acceptors_rank(&job->previous, core_self(core));
	}
	if (!is_due(core, job->close_ms))
		return;
	job->close_ms = core->now_ms + CORE_CLOSE_MS + my_turn_ms(core, job);
	core_arm(core, job->close_ms);
	(void)core_job_message(core, job, CORE_MSG_CLOSE);
	core_outbox_seal(core);
	for (uint32_t i = 0; i < job->previous.count; i++)
		if (!(job->closed & 1u << i))
			core_outbox_to(core, &job->previous.ids[i]);
}

/* Rule G2: an acceptor that is gone, or says that it goes, gives its place to another host. */
static void tick_members(struct core *core, struct job *job)
{
	struct core_acceptors set;

#ifdef MUTANT_G2
	return;
#endif
	if (!is_due(core, job->members_ms))
		return;
	job->members_ms = core->now_ms + CORE_MEMBERS_MS;
	core_arm(core, job->members_ms);
	if (job->value.state == JOB_STATE_COLLECTED || job->value.state == JOB_STATE_KILLED ||
	    !core_proposer_may_ask(core, job) || !core_place_replacement(core, job, &set))
		return;
	if (!job->replace_ms)
		job->replace_ms = core->now_ms + my_turn_ms(core, job);
	if (!is_due(core, job->replace_ms))
		return;
	job->replace_ms = 0;
	core_proposer_replace(core, job);
}

/*
 * A member of an epoch that slept when it began. It asks like anybody else, and the answers of a
 * majority make it install itself, see op_repair().
 */
static void tick_join(struct core *core, struct job *job)
{
	if (!job->join_ms || !is_due(core, job->join_ms))
		return;
	job->join_ms = job->has_record ? core->now_ms + CORE_CLOSE_MS : 0;
	if (job->join_ms)
		core_arm(core, job->join_ms);
	core_proposer_confirm(core, job, false);
}

/* Somebody takes this host for an acceptor of the job, and it is none. */
void core_epoch_named(struct core *core, const struct core_message *m)
{
	struct job *job;

	if (!m->epoch || core_acceptors_rank(&m->acceptors, core_self(core)) == CORE_NONE)
		return;
	job = core_job_get(core, &m->job);
	if (!job || !core_job_move(core, job, m->epoch, &m->acceptors) || job->installed ||
	    job->join_ms)
		return;
	job->join_ms = core->now_ms + CORE_JOIN_MS;
	core_arm(core, job->join_ms);
}

void core_epoch_tick(struct core *core, struct job *job)
{
	if (!job->installed) {
		tick_join(core, job);
		return;
	}
	if (!job->settled || job->next.count)
		tick_settle(core, job);
	else if (job->previous.count)
		tick_close(core, job);
	else
		tick_members(core, job);
}
