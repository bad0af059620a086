/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What is asked of the register, by this host's agent or by its guardian, and what may follow. */
#include "overlay/core/state.h"

#include <errno.h>
#include <string.h>

bool core_proposer_is_busy(const struct core *core, const struct job *job)
{
	for (uint32_t i = 0; i < core->op_high; i++)
		if (core->ops[i].used && core->ops[i].job == core_job_row(core, job))
			return true;
	return false;
}

bool core_proposer_wishes(const struct core *core, const struct job *job, uint32_t state)
{
	for (uint32_t i = 0; i < core->op_high; i++) {
		const struct op *op = &core->ops[i];

		if (op->used && op->kind == OP_CAS && op->job == core_job_row(core, job) &&
		    op->wish.state == state)
			return true;
	}
	return false;
}

/* Keeps what was committed while the proposer did not know it yet. */
static void keep_newer_history(const struct job_value *current, struct job_value *next)
{
	uint64_t seq = next->history_count ? next->history[0].seq : 0;

	if (!current->history_count || current->history[0].seq <= seq)
		return;
	next->history_count = current->history_count;
	memcpy(next->history, current->history, sizeof(next->history));
}

static bool may_follow(const struct job_value *current, const struct job_value *next)
{
	switch (current->state) {
	case JOB_STATE_HELD:
		return next->state != JOB_STATE_COLLECTED &&
		       (next->state != JOB_STATE_HELD ||
			node_id_equal(&next->owner, &current->owner));
	case JOB_STATE_IDLE:
		return next->state == JOB_STATE_IDLE || next->state == JOB_STATE_KILLED;
	case JOB_STATE_DONE:
		return next->state == JOB_STATE_COLLECTED;
	default:
		return false;
	}
}

int core_proposer_apply(const struct job_value *current, const struct job_value *wish,
			struct job_value *ret_value)
{
	struct job_value next = *wish;
	uint64_t current_seq = current->history_count ? current->history[0].seq : 0;
	uint64_t next_seq = next.history_count ? next.history[0].seq : 0;

	if (fence_token_compare(&current->token, &wish->token) != 0)
		return -ESTALE;
	if (!node_id_equal(&current->home, &wish->home) || current->fence != wish->fence)
		return -EINVAL;
	if (next.state == JOB_STATE_HELD && current->state == JOB_STATE_HELD &&
	    next_seq < current_seq)
		return -EINVAL;
	keep_newer_history(current, &next);
	if (memcmp(current, &next, sizeof(next)) == 0)
		return 1;
	if (!may_follow(current, &next))
		return -ESTALE;
	*ret_value = next;
	return 0;
}

/* Not while no quorum answered a moment ago: see count_failure(). */
bool core_proposer_may_ask(const struct core *core, const struct job *job)
{
	return core->now_ms >= job->ask_ms && !core_proposer_is_busy(core, job);
}

void core_proposer_takeover(struct core *core, struct job *job)
{
	struct op *op = core_proposer_new(core, OP_TAKEOVER, job);

	if (!op)
		return;
	op->expected = job->value.token;
	core_proposer_enter(core, op);
}

void core_proposer_replace(struct core *core, struct job *job)
{
	struct op *op = core_proposer_new(core, OP_REPLACE, job);

	if (op)
		core_proposer_enter(core, op);
}

void core_proposer_settle(struct core *core, struct job *job)
{
	bool may = core_proposer_may_ask(core, job);
	struct op *op = may ? core_proposer_new(core, OP_SETTLE, job) : NULL;

	if (op)
		core_proposer_enter(core, op);
}

static bool is_granting(const struct core *core, const struct job *job)
{
	for (uint32_t i = 0; i < core->op_high; i++)
		if (core->ops[i].used && core->ops[i].job == core_job_row(core, job) &&
		    core->ops[i].then_grant)
			return true;
	return false;
}

void core_proposer_confirm(struct core *core, struct job *job, bool then_grant)
{
	/* A grant waits behind what this host is about, as its own takeover that came second. */
	bool may = then_grant ? !is_granting(core, job) : core_proposer_may_ask(core, job);
	struct op *op = may ? core_proposer_new(core, OP_GET, job) : NULL;

	if (!op)
		return;
	op->then_grant = then_grant;
	core_proposer_enter(core, op);
}

/*
 * A creation that is tried again goes on under its first ballot: another value under the same
 * ballot, or a new ballot without phase 1, would not be Paxos.
 */
static int check_create(struct core *core, struct job *job, struct job_value *value)
{
	uint64_t hash;

	if (value->state != JOB_STATE_HELD || !node_id_equal(&value->owner, core_self(core)))
		return -EINVAL;
	memset(&value->token, 0, sizeof(value->token));
	hash = core_checksum(value, sizeof(*value));
	if (job->attempted)
		return hash == job->attempt_hash ? 0 : -EEXIST;
	if (job->acceptors.count)
		return -EEXIST;
	core_place_acceptors(core, &value->job, &job->acceptors);
	job->settled = true;
	job->attempted = true;
	job->attempt_hash = hash;
	job->attempt_counter = ++job->max_counter;
	return 0;
}

static int start_request(struct core *core, const struct core_event *event)
{
	static const enum op_kind kinds[] = {
		[CORE_REQ_CREATE] = OP_CREATE,
		[CORE_REQ_CAS] = OP_CAS,
		[CORE_REQ_GET] = OP_GET,
		[CORE_REQ_TAKE] = OP_TAKE,
	};
	bool whole = event->request == CORE_REQ_CREATE || event->request == CORE_REQ_CAS;
	bool is_claim = false;
	struct job_value value;
	struct job *job;
	struct op *op;
	int r;

	if (event->request > CORE_REQ_TAKE || !kinds[event->request] || !event->value)
		return -EINVAL;
	value = *event->value;
	if (whole) {
		r = core_value_normalize(event->value, &value);
		if (r < 0)
			return r;
	}
	if (event->request == CORE_REQ_TAKE) {
		is_claim = value.token.counter > 0;
		if (is_claim && !node_id_equal(&value.target, core_self(core)))
			return -EINVAL;
	}
	job = core_job_get(core, &value.job);
	if (!job)
		return -ENOSPC;
	if (event->request == CORE_REQ_CREATE) {
		r = check_create(core, job, &value);
		if (r < 0)
			return r;
	}
	op = core_proposer_new(core, kinds[event->request], job);
	if (!op)
		return -EAGAIN;
	op->has_request = true;
	op->request_id = event->request_id;
	op->claim = is_claim;
	op->wish = value;
	core_proposer_enter(core, op);
	return 0;
}

void core_proposer_request(struct core *core, const struct core_event *event)
{
	int r = start_request(core, event);

	if (r < 0)
		core_outbox_answer(core, event->request_id, r, NULL);
}
