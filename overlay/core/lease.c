/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The owner's renewals. A round that a quorum acknowledged lets the job run until lease_ms after
 * the round's first message was *sent* (O1). A lease may run out and come back with the same
 * token (O3); it is lost for good when the register says so.
 */
#include "overlay/core/state.h"

#include <errno.h>
#include <string.h>

static uint32_t popcount(uint32_t mask)
{
	uint32_t count = 0;

	for (; mask; mask &= mask - 1)
		count++;
	return count;
}

static void send_renew(struct core *core, struct job *job)
{
	struct core_message *m = core_job_message(core, job, CORE_MSG_RENEW);

	job->lease.resend_ms = core->now_ms + core->config.renew_ms / 4 + 1;
	core_arm(core, job->lease.resend_ms);
	/* The old acceptors are sealed, the new ones not all there: it is a matter of moments. */
	if (job->installed && !job->settled)
		return;
	m->token = job->lease.token;
	m->seq = job->lease.seq;
	core_outbox_seal(core);
	for (uint32_t i = 0; i < job->acceptors.count; i++)
		if (!(job->lease.acked & 1u << i))
			core_outbox_to(core, &job->acceptors.ids[i]);
}

static void start_round(struct core *core, struct job *job)
{
	struct lease *lease = &job->lease;

	lease->seq = ++core->seq;
	lease->sent_ms = core->now_ms;
	lease->sent_boot_ns = core->boot_ns;
	lease->acked = lease->lost = 0;
	lease->had_quorum = false;
	if (job->acceptors.count) {
		send_renew(core, job);
	} else {
		core_job_locate(core, job);
		lease->resend_ms = core->now_ms + CORE_RESEND_MS;
		core_arm(core, lease->resend_ms);
	}
}

void core_lease_moved(struct core *core, struct job *job)
{
	if (job->lease.active)
		start_round(core, job);
}

/* The job is no longer ours; `told`: the agent knows, it asked for it. */
static void lose(struct core *core, struct job *job, bool told)
{
	struct lease *lease = &job->lease;

	if (lease->waiting)
		core_outbox_answer(core, lease->request_id, -ESTALE, NULL);
	if (!lease->waiting && !told) {
		core->lost_count += !job->lost_pending;
		job->lost_pending = true;
		job->lost_token = lease->token;
		core_arm(core, core->now_ms);
	}
	memset(lease, 0, sizeof(*lease));
}

void core_lease_check(struct core *core, struct job *job, const struct job_value *chosen)
{
	int order = fence_token_compare(&chosen->token, &job->lease.token);
	bool own;

	if (!job->lease.active || order < 0 || (order == 0 && chosen->state == JOB_STATE_HELD))
		return;
	/* Only the owner itself releases a job or reports its end; anybody may kill it. */
	own = order == 0 && (chosen->state == JOB_STATE_IDLE || chosen->state == JOB_STATE_DONE ||
			     core_proposer_wishes(core, job, chosen->state));
	lose(core, job, own);
}

void core_lease_hold(struct core *core, const struct core_event *event)
{
	struct job *job = event->value ? core_job_get(core, &event->value->job) : NULL;
	const struct fence_token *token;
	struct lease *lease;
	bool again;

	if (!job) {
		core_outbox_answer(core, event->request_id, event->value ? -ENOSPC : -EINVAL, NULL);
		return;
	}
	token = &event->value->token;
	if (job->known && (fence_token_compare(&job->known_value.token, token) > 0 ||
			   (fence_token_compare(&job->known_value.token, token) == 0 &&
			    job->known_value.state != JOB_STATE_HELD))) {
		core_outbox_answer(core, event->request_id, -ESTALE, NULL);
		return;
	}
	lease = &job->lease;
	again = lease->active && fence_token_compare(&lease->token, token) == 0;
	if (lease->waiting)
		core_outbox_answer(core, lease->request_id, -EAGAIN, NULL);
	if (!again) {
		memset(lease, 0, sizeof(*lease));
		lease->run_until_ms = core->now_ms;
	}
	lease->active = lease->waiting = true;
	lease->token = *token;
	lease->request_id = event->request_id;
	lease->answer_by_ms = core->now_ms + CORE_OP_TIMEOUT_MS;
	core_arm(core, lease->answer_by_ms);
	start_round(core, job);
}

void core_lease_drop(struct core *core, const struct core_event *event)
{
	struct job *job = event->value ? core_job_find(core, &event->value->job) : NULL;

	if (job) {
		if (job->lease.waiting)
			core_outbox_answer(core, job->lease.request_id, -ECANCELED, NULL);
		memset(&job->lease, 0, sizeof(job->lease));
		core->lost_count -= job->lost_pending;
		job->lost_pending = false;
	}
	core_outbox_answer(core, event->request_id, 0, NULL);
}

static void round_won(struct core *core, struct job *job)
{
	struct lease *lease = &job->lease;
#ifdef MUTANT_O1
	uint64_t until_ns = core->boot_ns + core->config.lease_ms * UINT64_C(1000000);
#else
	uint64_t until_ns = lease->sent_boot_ns + core->config.lease_ms * UINT64_C(1000000);
#endif
	struct core_notice *notice;
	struct core_answer *answer;

	lease->had_quorum = true;
	job->locate_ms = job->locate_wait_ms = 0;
	lease->run_until_ms = lease->sent_ms + core->config.lease_ms;
	notice = core_outbox_notice(core, CORE_LEASE);
	if (notice) {
		notice->value.job = job->id;
		notice->value.token = lease->token;
		notice->run_until_boot_ns = until_ns;
	}
	if (!lease->waiting)
		return;
	lease->waiting = false;
	answer = core_outbox_answer(core, lease->request_id, 0, NULL);
	if (answer)
		answer->run_until_boot_ns = until_ns;
}

/* An acceptor that missed a value gets it: more disks know the newest checkpoint. */
static void catch_up(struct core *core, struct job *job, const struct node_id *acceptor,
		     const struct core_ballot *its)
{
	struct core_message *m;

	if (!job->known || !job->settled || core_ballot_compare(its, &job->known_ballot) >= 0)
		return;
	m = core_job_message(core, job, CORE_MSG_LEARN);
	m->ballot = job->known_ballot;
	m->value = job->known_value;
	core_outbox_send(core, acceptor);
}

void core_lease_message(struct core *core, const struct node_id *from, struct core_message *m)
{
	struct job *job = core_job_find(core, &m->job);
	uint32_t rank = job ? core_job_rank(job, from) : CORE_NONE;
	struct lease *lease = job ? &job->lease : NULL;
	bool unknown;

	if (rank == CORE_NONE || !lease->active || m->epoch != job->epoch || m->seq != lease->seq ||
	    fence_token_compare(&m->token, &lease->token) != 0) {
		core->refusals.replies += rank != CORE_NONE && lease->active;
		return;
	}
	if (m->type == CORE_MSG_RENEWED) {
		lease->acked |= 1u << rank;
		catch_up(core, job, from, &m->accepted);
		if (!lease->had_quorum && popcount(lease->acked) >= core_job_quorum(job))
			round_won(core, job);
		return;
	}
	unknown = m->accepted.number.counter == 0;
	if (!unknown && fence_token_compare(&m->accepted.number, &lease->token) < 0) {
		catch_up(core, job, from, &m->accepted); /* it has not heard of us yet */
		return;
	}
	lease->lost |= 1u << rank;
	/*
	 * One refusal may be a takeover that was accepted here and chosen nowhere. When too few are
	 * left for a quorum, renewing would only keep the job from everybody.
	 */
	if (popcount(lease->lost) > job->acceptors.count - core_job_quorum(job))
		lose(core, job, false);
}

void core_lease_tick(struct core *core, struct job *job)
{
	struct lease *lease = &job->lease;

	if (!lease->active)
		return;
	if (lease->waiting && core->now_ms >= lease->answer_by_ms &&
	    core_outbox_answer(core, lease->request_id, -EAGAIN, NULL))
		lease->waiting = false;
	if (core->now_ms >= lease->sent_ms + core->config.renew_ms) {
		if (lease->lost && core->now_ms > lease->run_until_ms + core->config.hold_ms) {
			lose(core, job, false);
			return;
		}
		/* Nobody there has answered for long: has the job moved on without us? */
		if (!lease->had_quorum && core->now_ms > lease->run_until_ms)
			core_job_relocate(core, job);
		start_round(core, job);
	} else if (core->now_ms >= lease->resend_ms && !job->acceptors.count) {
		start_round(core, job);
	} else if (core->now_ms >= lease->resend_ms && !lease->had_quorum) {
		send_renew(core, job);
	}
	if (core->now_ms < lease->resend_ms && !lease->had_quorum)
		core_arm(core, lease->resend_ms);
	if (lease->waiting)
		core_arm(core, lease->answer_by_ms);
	core_arm(core, lease->sent_ms + core->config.renew_ms);
}
