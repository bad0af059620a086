/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What an operation on a register proposes, once the current value is known. */
#include "overlay/core/state.h"

#include <errno.h>
#include <string.h>

static enum core_decision end(int *ret_status, int status)
{
	*ret_status = status;
	return DECIDE_END;
}

static enum core_decision decide_cas(struct op *op, const struct job_value *current,
				     struct job_value *ret_next, int *ret_status)
{
	int r = core_proposer_apply(current, &op->wish, ret_next);

	op->old_owner = current->owner;
	return r == 0 ? DECIDE_SEND : end(ret_status, r == 1 ? 0 : r);
}

/* The worker of a takeover, or an end of the operation. */
static int choose_worker(struct core *core, struct op *op, const struct job_value *current,
			 struct node_id *ret_worker)
{
	const struct member *member;

	if (op->kind == OP_TAKEOVER)
		return core_place_worker(core, current, current->state == JOB_STATE_HELD,
					 ret_worker);
	if (op->claim) {
		*ret_worker = *core_self(core);
		return 0;
	}
	member = core_member_find(core, &op->wish.target);
	if (!member || member->info.state != MEMBER_ALIVE || !core_place_can_run(member, current))
		return -EHOSTUNREACH;
	*ret_worker = op->wish.target;
	return 0;
}

static bool is_held_by_self(const struct core *core, const struct job_value *value)
{
	return value->state == JOB_STATE_HELD && node_id_equal(&value->owner, core_self(core));
}

static enum core_decision decide_takeover(struct core *core, struct op *op,
					  const struct job_value *current,
					  struct job_value *ret_next, int *ret_status)
{
	bool other = op->kind == OP_TAKEOVER &&
		     fence_token_compare(&current->token, &op->expected) != 0;
	int r;

	if (core_job_value_ended(current) || (op->claim && !is_held_by_self(core, current)))
		return end(ret_status, -ESTALE);
	if (other)
		return end(ret_status, 0);
	/* The new token must be larger than the old one in number, not only in life. */
	if (fence_token_compare(&op->ballot.number, &current->token) <= 0)
		return DECIDE_RETRY;
	*ret_next = *current;
	r = choose_worker(core, op, current, &ret_next->owner);
	if (r < 0)
		return end(ret_status, r);
	op->old_owner = current->owner;
	ret_next->state = JOB_STATE_HELD;
	ret_next->token = op->ballot.number;
	memset(&ret_next->target, 0, sizeof(ret_next->target));
	if (!op->claim)
		core_place_granted(core, &ret_next->owner);
	return DECIDE_SEND;
}

/*
 * Rule G2: the same value, and the set of acceptors that goes on with it. Only after the last
 * change was closed, and only if it is still due now that everything is known.
 */
static enum core_decision decide_replace(struct core *core, struct op *op,
					 const struct job_value *current,
					 struct job_value *ret_next, struct core_acceptors *ret_set,
					 int *ret_status)
{
	struct job *job = &core->jobs[op->job];

	if (!job->installed || !job->settled || job->previous.count || job->epoch != op->epoch ||
	    job->epoch + 1 >= CORE_EPOCH_MAX || current->state == JOB_STATE_COLLECTED ||
	    current->state == JOB_STATE_KILLED || !core_place_replacement(core, job, ret_set))
		return end(ret_status, 0);
	*ret_next = *current;
	return DECIDE_SEND;
}

enum core_decision core_decide(struct core *core, struct op *op, const struct job_value *current,
			       struct job_value *ret_next, struct core_acceptors *ret_set,
			       int *ret_status)
{
	switch (op->kind) {
	case OP_CREATE:
		if (fence_token_compare(&current->token, &op->wish.token) != 0)
			return end(ret_status, -ESTALE);
		break;
	case OP_CAS:
		return decide_cas(op, current, ret_next, ret_status);
	case OP_TAKE:
	case OP_TAKEOVER:
		return decide_takeover(core, op, current, ret_next, ret_status);
	case OP_REPLACE:
		return decide_replace(core, op, current, ret_next, ret_set, ret_status);
	case OP_GET:
	case OP_SETTLE:
		break;
	}
	return end(ret_status, 0);
}
