/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The acceptor: promises and accepted values are durable before they are spoken of (the driver's
 * rule); the hold is not, and starts anew after a restart (A4).
 *
 * A node without a record never promises. That is why an ended job whose record was deleted can
 * not come back: a stale copy elsewhere never finds a majority of promises again.
 */
#include "overlay/core/state.h"

#include <errno.h>
#include <string.h>

bool core_acceptor_holds(const struct core *core, const struct job *job)
{
	/* An end that is accepted here and chosen nowhere does not say that the owner stopped. */
	return job->value.state != JOB_STATE_IDLE && core->now_ms < job->hold_until_ms;
}

static bool same_incarnation(const struct job_value *a, const struct job_value *b)
{
	return fence_token_compare(&a->token, &b->token) == 0 &&
	       node_id_equal(&a->owner, &b->owner);
}

/* The owner takes the job over from itself, under a token that it made. */
static bool is_claim(const struct job *job, const struct job_value *next)
{
	return node_id_equal(&next->token.node, &next->owner) &&
	       node_id_equal(&job->value.owner, &next->owner);
}

bool core_acceptor_set_value(struct core *core, struct job *job, const struct core_ballot *ballot,
			     const struct job_value *value, const struct core_acceptors *next)
{
	bool fresh = !job->has_record;
	bool claimed = !fresh && is_claim(job, value);
	bool changed = fresh || !same_incarnation(&job->value, value) ||
		       job->value.state != value->state;

	if (!core_job_mark_dirty(core, job))
		return false;
	if (fresh) /* only an epoch's first value, at its creation, makes a record here */
		job->installed = job->settled = true;
	job->has_record = true;
	job->accepted = *ballot;
	memset(&job->next, 0, sizeof(job->next));
	if (next)
		job->next = *next;
	if (core_ballot_compare(&job->promised, ballot) < 0)
		job->promised = *ballot;
	job->value = *value;
	core_job_saw(job, ballot);
	if (changed) {
		job->changed_ms = core->now_ms;
		job->hold_until_ms = core->now_ms + core->config.hold_ms;
		job->renewed = false;
		job->guard_ms = job->grant_ms = job->done_ms = 0;
		job->barren = 0;
		if (fresh || claimed) /* whoever made the token will renew by itself */
			job->grant_ms = core->now_ms + 2 * core->config.renew_ms;
		core_arm(core, core->now_ms);
	}
	if (job->next.count) {
		job->guard_ms = core->now_ms + CORE_SETTLE_EPOCH_MS;
		core_arm(core, job->guard_ms);
	}
	job->unknown_since_ms = 0;
	return true;
}

int core_acceptor_load(struct core *core, const void *bytes, size_t size)
{
	struct core_record record;
	struct job *job;
	int r = core_record_decode(bytes, size, &record);

	if (r < 0)
		return r;
	job = core_job_get(core, &record.job);
	if (!job)
		return -ENOSPC;
	job->epoch = record.epoch;
	job->acceptors = record.acceptors;
	job->installed = record.installed;
	job->settled = record.settled;
	job->previous = record.previous;
	job->next = record.next;
	job->has_record = true;
	job->promised = record.promised;
	job->accepted = record.accepted;
	job->value = record.value;
	core_job_saw(job, &record.promised);
	job->changed_ms = core->now_ms;
#ifndef MUTANT_A4
	job->hold_until_ms = core->now_ms + core->config.hold_ms; /* A4 */
#endif
	/* The owner gets a chance to renew before it is told again that it is the owner. */
	job->grant_ms = core->now_ms + 2 * core->config.renew_ms;
	/* Much may have happened meanwhile; the others' duties wait for this host's by rank. */
	job->confirm_ms = core->now_ms + CORE_RANK_MS + core_below(core, CORE_RANK_MS);
	core_arm(core, core->now_ms);
	return 0;
}

static void nack(struct core *core, const struct node_id *to, const struct core_message *m,
		 enum core_nack_reason reason, const struct job *job)
{
	struct core_message *out = core_outbox_begin(core, CORE_MSG_NACK);

	out->job = m->job;
	out->epoch = m->epoch;
	out->acceptors = m->acceptors;
	out->ballot = m->ballot;
	out->reason = reason;
	if (job && reason == CORE_NACK_PROMISED)
		out->accepted = job->promised;
	if (job && reason == CORE_NACK_BUSY)
		out->hold_left_ms = (uint32_t)(job->hold_until_ms - core->now_ms);
	core_outbox_send(core, to);
}

enum standing { STRANGER, MEMBER, AHEAD };

/* Where this acceptor stands to the epoch of a message. */
static enum standing standing_of(const struct job *job, const struct core_message *m)
{
	if (!job || !job->acceptors.count)
		return STRANGER;
	if (job->epoch > m->epoch)
		return AHEAD;
#ifdef MUTANT_I6
	return job->has_record ? MEMBER : STRANGER;
#endif
	return job->has_record && job->installed && job->epoch == m->epoch &&
			       memcmp(&job->acceptors, &m->acceptors, sizeof(m->acceptors)) == 0 ?
		       MEMBER :
		       STRANGER;
}

static void handle_prepare(struct core *core, const struct node_id *from, struct core_message *m)
{
	struct job *job = core_job_find(core, &m->job);
	enum standing standing = standing_of(job, m);
	struct core_message *out;
	int order;

	if (standing == AHEAD) {
		core_epoch_tell(core, from, job, m->epoch);
		return;
	}
	if (standing == STRANGER || m->ballot.epoch != m->epoch) {
		if (!node_id_equal(from, core_self(core)))
			core_epoch_named(core, m);
		nack(core, from, m, CORE_NACK_UNKNOWN, NULL);
		return;
	}
	core_job_saw(job, &m->ballot);
	if (!(m->flags & CORE_FLAG_READ)) {
		/* A courtesy only, against needless disturbance; the safe test is at ACCEPT. */
#ifndef MUTANT_A1_ALL
		if (m->flags & CORE_FLAG_TAKEOVER && core_acceptor_holds(core, job)) {
			nack(core, from, m, CORE_NACK_BUSY, job);
			return;
		}
#endif
		order = core_ballot_compare(&m->ballot, &job->promised);
		if (order < 0) {
			nack(core, from, m, CORE_NACK_PROMISED, job);
			return;
		}
		if (order > 0) {
			if (!core_job_mark_dirty(core, job))
				return;
			job->promised = m->ballot;
		}
	}
	out = core_job_message(core, job, CORE_MSG_PROMISE);
	out->ballot = m->ballot;
	out->accepted = job->accepted;
	out->value = job->value;
	out->next = job->next;
	out->previous = job->previous;
	core_outbox_send(core, from);
}

/*
 * Rule A1, asked at ACCEPT and not (only) at PREPARE: a half-accepted takeover that a later ballot
 * of another kind picks up would slip past a test at PREPARE.
 */
static bool is_busy(const struct core *core, const struct job *job, const struct job_value *next)
{
#if defined(MUTANT_A1) || defined(MUTANT_A1_ALL)
	return false;
#endif
	if (!core_acceptor_holds(core, job) || same_incarnation(&job->value, next))
		return false;
	/* The owner's claim: nothing of what it ran under the old token is left there. */
	if (is_claim(job, next))
		return false;
	/* RELEASE: the owner froze the job before it said so. */
	return fence_token_compare(&job->value.token, &next->token) != 0 ||
	       !node_id_is_zero(&next->owner);
}

static void handle_accept(struct core *core, const struct node_id *from, struct core_message *m)
{
	struct job *job = core_job_find(core, &m->job);
	struct core_message *out;
	int order;

	enum standing standing = standing_of(job, m);

	if (standing == AHEAD) {
		core_epoch_tell(core, from, job, m->epoch);
		return;
	}
	/*
	 * A creation makes a record out of nothing; whatever comes later needs an INSTALL (I6). A
	 * proposer whose clock stood still may come after the burial: then nothing is made.
	 */
	if (m->ballot.epoch != m->epoch ||
	    (standing == STRANGER && (m->epoch || (job && (job->has_record || job->over))))) {
		nack(core, from, m, CORE_NACK_UNKNOWN, NULL);
		return;
	}
	if (core_acceptors_rank(&m->acceptors, core_self(core)) == CORE_NONE)
		return;
	if (!job)
		job = core_job_get(core, &m->job);
	if (!job) {
		nack(core, from, m, CORE_NACK_FULL, NULL);
		return;
	}
	if (!core_job_move(core, job, m->epoch, &m->acceptors))
		return;
	order = job->has_record ? core_ballot_compare(&m->ballot, &job->promised) : 1;
	if (order < 0) {
		nack(core, from, m, CORE_NACK_PROMISED, job);
		return;
	}
	if (!job->has_record || core_ballot_compare(&m->ballot, &job->accepted) != 0) {
		if (job->has_record && is_busy(core, job, &m->value)) {
			nack(core, from, m, CORE_NACK_BUSY, job);
			return;
		}
		if (!core_acceptor_set_value(core, job, &m->ballot, &m->value, &m->next))
			return;
	}
	out = core_job_message(core, job, CORE_MSG_ACCEPTED);
	out->ballot = m->ballot;
	core_outbox_send(core, from);
}

/* Rule A2. No disk write: a hold need not outlive the acceptor, A4 sees to that. */
static void handle_renew(struct core *core, const struct node_id *from, struct core_message *m)
{
	struct job *job = core_job_find(core, &m->job);
	enum standing standing = standing_of(job, m);
	bool mine = standing == MEMBER, ok;
	struct core_message *out;

	if (standing == AHEAD) {
		core_epoch_tell(core, from, job, m->epoch);
		return;
	}
	if (!mine) {
		core_epoch_named(core, m);
		/* It is about to be installed: no word on who owns the job. */
		if (job && job->has_record)
			return;
	}
	ok = mine && job->value.state == JOB_STATE_HELD && node_id_equal(&job->value.owner, from) &&
	     fence_token_compare(&job->value.token, &m->token) == 0;
#ifndef MUTANT_A2
	/* Sealed: it is for the next epoch to say, very soon. */
	if (ok && job->next.count)
		return;
#endif
	out = core_outbox_begin(core, ok ? CORE_MSG_RENEWED : CORE_MSG_LOST);
	out->job = m->job;
	out->epoch = m->epoch;
	out->acceptors = m->acceptors;
	out->token = m->token;
	out->seq = m->seq;
	if (mine)
		out->accepted = job->accepted;
	if (ok) {
		job->hold_until_ms = core->now_ms + core->config.hold_ms;
		job->renewed = true;
	}
	core_outbox_send(core, from);
}

static void handle_learn(struct core *core, struct core_message *m)
{
	struct job *job = core_job_find(core, &m->job);

	/* It never makes a record: the sender may be the last to hear that the job is over. */
	if (!job || m->ballot.epoch > m->epoch)
		return;
	(void)core_job_move(core, job, m->epoch, &m->acceptors);
	core_job_learn(core, job, &m->ballot, &m->value);
}

void core_acceptor_message(struct core *core, const struct node_id *from, struct core_message *m)
{
	switch (m->type) {
	case CORE_MSG_PREPARE:
		handle_prepare(core, from, m);
		break;
	case CORE_MSG_ACCEPT:
		handle_accept(core, from, m);
		break;
	case CORE_MSG_RENEW:
		handle_renew(core, from, m);
		break;
	default:
		handle_learn(core, m);
	}
}
