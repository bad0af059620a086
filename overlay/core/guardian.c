/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What an acceptor does of its own accord for the jobs it keeps. The first live acceptor of the
 * job's list acts at once, the others after a wait by rank; ballots settle what still races.
 *
 *   IDLE, or HELD with a lapsed hold   choose a worker and propose a takeover
 *   HELD, owner has not renewed yet    GRANT to the owner
 *   DONE                               tell the home host
 *   KILLED, COLLECTED                  a tombstone, then forgotten
 */
#include "overlay/core/state.h"

#include <string.h>

void core_guardian_grant(struct core *core, struct job *job)
{
	struct core_message *m = core_job_message(core, job, CORE_MSG_GRANT);

	m->ballot = job->known_ballot;
	m->value = job->known_value;
	core_outbox_send(core, &job->known_value.owner);
}

/* How many live acceptors stand before this host in the job's list. */
static uint32_t live_before(const struct core *core, const struct job *job)
{
	uint32_t rank = core_job_rank(job, core_self(core)), live = 0;

	for (uint32_t i = 0; i < rank && i < job->acceptors.count; i++)
		live += core_member_is_alive(core, &job->acceptors.ids[i]);
	return live;
}

/* True if what this acceptor accepted is known to be chosen; else finds out. */
static bool is_chosen(struct core *core, struct job *job)
{
	if (job->known && core_ballot_compare(&job->known_ballot, &job->accepted) >= 0)
		return true;
	core_proposer_confirm(core, job, false);
	return false;
}

/* Only a quorum tells whether this copy is the newest: asks, once it is due. */
static void tick_confirm(struct core *core, struct job *job)
{
	if (core->now_ms < job->confirm_ms) {
		core_arm(core, job->confirm_ms);
		return;
	}
	job->confirm_ms = core->now_ms + CORE_CONFIRM_MS;
	core_proposer_confirm(core, job, false);
}

static void tick_takeover(struct core *core, struct job *job, uint64_t due_ms)
{
	uint64_t when_ms = due_ms + (uint64_t)live_before(core, job) * CORE_RANK_MS, wait_ms;
	struct node_id worker;

#ifdef MUTANT_G1
	if (core_job_rank(job, core_self(core)))
		return;
#endif
	if (when_ms < job->guard_ms)
		when_ms = job->guard_ms;
	if (core->now_ms < when_ms) {
		core_arm(core, when_ms);
		return;
	}
	wait_ms = (uint64_t)CORE_GUARD_RETRY_MS << job->barren;
	job->guard_ms = core->now_ms + wait_ms + core_below(core, CORE_GUARD_RETRY_MS / 4);
	core_arm(core, job->guard_ms);
	if (!core_proposer_may_ask(core, job))
		return;
	/* Without a worker a ballot would be a disk write on every acceptor for nothing. */
	if (core_place_worker(core, &job->value, job->value.state == JOB_STATE_HELD, &worker) ==
	    0) {
		job->barren = 0;
		core_proposer_takeover(core, job);
	} else {
		job->barren += job->barren < CORE_BARREN_MAX;
		tick_confirm(core, job);
	}
}

static void tick_grant(struct core *core, struct job *job)
{
	uint64_t when_ms = job->changed_ms;

	core_arm(core, job->hold_until_ms);
	if (job->renewed)
		return;
	if (!node_id_equal(&job->value.token.node, core_self(core)))
		when_ms += (uint64_t)live_before(core, job) * CORE_RANK_MS;
	if (job->grant_ms < when_ms)
		job->grant_ms = when_ms;
	if (core->now_ms >= job->grant_ms) {
		job->grant_ms = core->now_ms + CORE_GUARD_RETRY_MS;
		if (is_chosen(core, job) && job->known_value.state == JOB_STATE_HELD)
			core_guardian_grant(core, job);
	}
	if (core->now_ms < job->grant_ms)
		core_arm(core, job->grant_ms);
}

static void tick_done(struct core *core, struct job *job)
{
	struct core_message *m;

	if (core->now_ms < job->done_ms) {
		core_arm(core, job->done_ms);
		return;
	}
	/* A later rank speaks more seldom, but speaks: the first may be behind the times. */
	job->done_ms = core->now_ms + (1 + (uint64_t)live_before(core, job)) * CORE_DONE_NOTICE_MS;
	core_arm(core, job->done_ms);
	if (!core_member_is_alive(core, &job->value.home))
		return;
	if (!is_chosen(core, job) || job->known_value.state != JOB_STATE_DONE)
		return;
	m = core_job_message(core, job, CORE_MSG_DONE);
	m->ballot = job->known_ballot;
	m->value = job->known_value;
	core_outbox_send(core, &job->value.home);
}

static void bury(struct core *core, struct job *job)
{
	if (!core_job_mark_dirty(core, job)) {
		core_arm(core, core->now_ms);
		return;
	}
	/* The value stays in the row until the update is out, see outbox_flush_writes(). */
	job->buried = job->over && job->known;
	job->has_record = job->installed = job->known = job->attempted = false;
	job->unknown_since_ms = 0;
}

static void tick_ended(struct core *core, struct job *job)
{
	uint64_t until_ms = job->changed_ms + CORE_TOMBSTONE_MS;

	if (core->now_ms < job->guard_ms) {
		core_arm(core, job->guard_ms);
		return;
	}
	/* Asked at once, not when the others have forgotten the job. Until then it is no end. */
	if (!is_chosen(core, job)) {
		job->changed_ms = core->now_ms;
		job->guard_ms = core->now_ms + CORE_CONFIRM_MS;
		core_arm(core, job->guard_ms);
#ifndef MUTANT_F1
	} else if (job->previous.count) {
		/*
		 * The epoch before could still begin this one anew; core_epoch_tick() closes it. What
		 * its sleepers said before that is on its way for a while: the time counts from here.
		 */
		job->changed_ms = core->now_ms;
		job->guard_ms = core->now_ms + CORE_CLOSE_MS;
		core_arm(core, job->guard_ms);
#endif
	} else if (core->now_ms < until_ms) {
		core_arm(core, until_ms);
	} else {
		bury(core, job);
	}
}

/* A former acceptor shows the way for as long as the job may be asked for. */
static void tick_signpost(struct core *core, struct job *job)
{
	bool over = job->known && (job->known_value.state == JOB_STATE_COLLECTED ||
				   job->known_value.state == JOB_STATE_KILLED);

	if (over && core->now_ms >= job->changed_ms + CORE_TOMBSTONE_MS) {
		bury(core, job);
		return;
	}
	if (!job->confirm_ms)
		job->confirm_ms = core->now_ms + CORE_SIGNPOST_MS;
	if (core->now_ms >= job->confirm_ms) {
		job->confirm_ms = core->now_ms + CORE_SIGNPOST_MS;
		core_proposer_confirm(core, job, false);
	}
	core_arm(core, job->confirm_ms);
}

void core_guardian_tick(struct core *core, struct job *job)
{
	if (!job->has_record || core->left || !job->settled || job->next.count)
		return;
	/* The others have long forgotten it: no majority will ever promise for it again. */
	if (job->unknown_since_ms && core->now_ms >= job->unknown_since_ms + CORE_TOMBSTONE_MS) {
		bury(core, job);
		return;
	}
	if (!job->installed) {
		tick_signpost(core, job);
		return;
	}
	if (job->confirm_ms && !job->known)
		tick_confirm(core, job);
	switch (job->value.state) {
	case JOB_STATE_HELD:
		if (core->now_ms < job->hold_until_ms)
			tick_grant(core, job);
		else
			tick_takeover(core, job, job->hold_until_ms);
		break;
	case JOB_STATE_IDLE:
		tick_takeover(core, job, job->changed_ms);
		break;
	case JOB_STATE_DONE:
		tick_done(core, job);
		break;
	default:
		tick_ended(core, job);
	}
}

/* Owned by this host and not renewed by it yet. */
static bool is_ours_to_run(const struct core *core, const struct job *job,
			   const struct job_value *value)
{
	return value->state == JOB_STATE_HELD && node_id_equal(&value->owner, core_self(core)) &&
	       !(job->lease.active && fence_token_compare(&job->lease.token, &value->token) == 0);
}

void core_guardian_granted(struct core *core, const struct job_value *value)
{
	struct job *job = core_job_find(core, &value->job);
	struct core_notice *notice;

	if (!job || !is_ours_to_run(core, job, value))
		return;
	notice = core_outbox_notice(core, CORE_GRANT);
	if (notice)
		notice->value = *value;
}

/* GRANT and DONE: a chosen value for this host's agent, unless we know a newer one. */
static void handle_chosen(struct core *core, const struct node_id *from, struct core_message *m)
{
	bool grant = m->type == CORE_MSG_GRANT;
	struct job *job = core_job_get(core, &m->job);
	struct core_notice *notice;
	struct core_message *out;

	if (!job || m->ballot.epoch > m->epoch)
		return;
	(void)core_job_move(core, job, m->epoch, &m->acceptors);
	core_job_learn(core, job, &m->ballot, &m->value);
	/* An epoch that may not stand yet is not named: who learns of one takes it for settled. */
	if (job->settled && core_ballot_compare(&job->known_ballot, &m->ballot) > 0) {
		out = core_job_message(core, job, CORE_MSG_LEARN);
		out->ballot = job->known_ballot;
		out->value = job->known_value;
		core_outbox_send(core, from);
	}
	if (grant) {
		/*
		 * A late GRANT may name a token under which this host has run and committed before
		 * it went down. So the newest value is read before the agent restores anything.
		 */
		if (is_ours_to_run(core, job, &job->known_value))
			core_proposer_confirm(core, job, true);
		return;
	}
	if (job->known_value.state != JOB_STATE_DONE ||
	    !node_id_equal(&job->known_value.home, core_self(core)))
		return;
	notice = core_outbox_notice(core, CORE_DONE);
	if (notice)
		notice->value = job->known_value;
}

static void handle_whohas(struct core *core, const struct node_id *from, struct core_message *m)
{
	struct job *job = core_job_find(core, &m->job);
	struct core_message *out = core_outbox_begin(core, CORE_MSG_IHAVE);

	out->job = m->job;
	if (job && (job->has_record || job->known || job->lease.active)) {
		/* An epoch that may not stand yet is reached by way of the one before. */
		out->epoch = job->settled ? job->epoch : job->epoch - 1;
		out->acceptors = job->settled ? job->acceptors : job->previous;
	}
	core_outbox_send(core, from);
}

static void handle_ihave(struct core *core, const struct node_id *from, struct core_message *m)
{
	struct job *job = core_job_find(core, &m->job);

	if (!job)
		return;
	if (!m->acceptors.count) {
		if (!job->acceptors.count)
			core_proposer_denied(core, from, &m->job);
		return;
	}
	if (job->acceptors.count) {
		(void)core_job_move(core, job, m->epoch, &m->acceptors);
		return;
	}
	(void)core_job_move(core, job, m->epoch, &m->acceptors);
	if (job->lease.active) {
		job->lease.resend_ms = core->now_ms;
		core_arm(core, core->now_ms);
	}
	core_proposer_located(core, job);
}

void core_guardian_message(struct core *core, const struct node_id *from, struct core_message *m)
{
	switch (m->type) {
	case CORE_MSG_GRANT:
	case CORE_MSG_DONE:
		handle_chosen(core, from, m);
		break;
	case CORE_MSG_WHOHAS:
		handle_whohas(core, from, m);
		break;
	case CORE_MSG_IHAVE:
		handle_ihave(core, from, m);
		break;
	default:
		break;
	}
}
