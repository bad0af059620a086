/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The proposer: one operation at a time per job and node, others wait.
 *
 *   LOCATE -> READ (GET only) -> PREPARE -> ACCEPT (finish what was found) -> PREPARE -> ACCEPT
 *
 * A value found that is not known to be chosen is finished first, unchanged; the own wish follows
 * under the next ballot. Values named by too few promises to have been chosen are passed over.
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

static void op_message(struct core *core, struct op *op, enum core_message_type type, uint32_t skip)
{
	struct job *job = &core->jobs[op->job];
	struct core_message *m = core_job_message(core, job, type);

	m->ballot = op->ballot;
	if (op->phase == OP_READ)
		m->flags = CORE_FLAG_READ;
	else if (op->kind == OP_TAKEOVER || op->kind == OP_TAKE)
		m->flags = CORE_FLAG_TAKEOVER;
	if (type == CORE_MSG_ACCEPT)
		m->value = op->sending;
	core_outbox_seal(core);
	for (uint32_t i = 0; i < job->acceptors.count; i++)
		if (!(skip & 1u << i))
			core_outbox_to(core, &job->acceptors.ids[i]);
	op->resend_ms = core->now_ms + CORE_RESEND_MS;
	core_arm(core, op->resend_ms);
}

static void op_clear_masks(struct op *op)
{
	op->promised = op->accepted = op->busy = op->unknown = 0;
	op->settle_ms = UINT64_MAX;
}

static void op_send_accept(struct core *core, struct op *op, const struct job_value *value,
			   bool finishing)
{
	op->phase = OP_ACCEPT;
	op->finishing = finishing;
	op->sending = *value;
	op_clear_masks(op);
	op_message(core, op, CORE_MSG_ACCEPT, 0);
}

static void op_begin(struct core *core, struct op *op)
{
	struct job *job = &core->jobs[op->job];
	bool create = op->kind == OP_CREATE && !op->tries;

	op->ballot.number.counter = create ? job->attempt_counter : ++job->max_counter;
	op->ballot.number.node = *core_self(core);
	op->ballot.life = core->config.incarnation;
	op_clear_masks(op);
	op->tries++;
	if (create) {
		/* No value can have been accepted under a lower ballot: no phase 1. */
		op->wish.token = op->ballot.number;
		op_send_accept(core, op, &op->wish, false);
		return;
	}
	op->phase = op->kind == OP_GET && op->tries == 1 ? OP_READ : OP_PREPARE;
	op_message(core, op, CORE_MSG_PREPARE, 0);
}

/* Another round with a higher ballot, after a while that keeps two proposers from dancing. */
static void op_retry(struct core *core, struct op *op, uint32_t delay_ms)
{
	op->phase = OP_BACKOFF;
	op->start_ms = core->now_ms + delay_ms;
	core_arm(core, op->start_ms);
}

static uint32_t op_backoff_ms(struct core *core, const struct op *op)
{
	uint32_t shift = op->tries < 5 ? op->tries : 5;

	return 10 + core_below(core, 20u << shift);
}

static void op_end(struct core *core, struct op *op, int status, const struct job_value *value)
{
	if (op->has_request)
		core_outbox_answer(core, op->request_id, status, value);
	if (op->then_grant && status == 0)
		core_guardian_granted(core, value);
	op->used = false;
	core->op_count--;
	core_arm(core, core->now_ms); /* the next one of this job may begin */
}

static bool op_is_first(const struct core *core, const struct op *op)
{
	for (uint32_t i = 0; i < CORE_OPS_MAX; i++) {
		const struct op *other = &core->ops[i];

		if (other->used && other->job == op->job && other->order < op->order)
			return false;
	}
	return true;
}

static void op_enter(struct core *core, struct op *op)
{
	struct job *job = &core->jobs[op->job];

	if (!op_is_first(core, op)) {
		op->phase = OP_WAIT;
	} else if (!job->acceptors.count) {
		op->phase = OP_LOCATE;
		core_job_locate(core, &job->id);
		op->resend_ms = core->now_ms + CORE_RESEND_MS;
		core_arm(core, op->resend_ms);
	} else {
		op_begin(core, op);
	}
}

static struct op *op_new(struct core *core, enum op_kind kind, struct job *job)
{
	for (uint32_t i = 0; i < CORE_OPS_MAX; i++) {
		struct op *op = &core->ops[i];

		if (op->used)
			continue;
		memset(op, 0, offsetof(struct op, seen));
		memset(op->denied, 0, sizeof(op->denied));
		op->used = true;
		core->op_count++;
		op->kind = kind;
		op->job = core_job_row(core, job);
		op->order = ++core->op_order;
		op->deadline_ms = core->now_ms + CORE_OP_TIMEOUT_MS;
		core_arm(core, op->deadline_ms);
		return op;
	}
	return NULL;
}

bool core_proposer_is_busy(const struct core *core, const struct job *job)
{
	for (uint32_t i = 0; core->op_count && i < CORE_OPS_MAX; i++)
		if (core->ops[i].used && core->ops[i].job == core_job_row(core, job))
			return true;
	return false;
}

bool core_proposer_wishes(const struct core *core, const struct job *job, uint32_t state)
{
	for (uint32_t i = 0; i < CORE_OPS_MAX; i++) {
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

static void decide_cas(struct core *core, struct op *op, const struct job_value *current)
{
	struct job_value next;
	int r = core_proposer_apply(current, &op->wish, &next);

	op->old_owner = current->owner;
	if (r == 0)
		op_send_accept(core, op, &next, false);
	else
		op_end(core, op, r == 1 ? 0 : r, current);
}

/* The worker of a takeover, or an end of the operation. */
static int choose_worker(struct core *core, struct op *op, const struct job_value *current,
			 struct node_id *ret_worker)
{
	const struct member *member;

	if (op->kind == OP_TAKEOVER)
		return core_place_worker(core, current, current->state == JOB_STATE_HELD,
					 ret_worker);
	member = core_member_find(core, &op->wish.target);
	if (!member || member->info.state != MEMBER_ALIVE || !core_place_can_run(member, current))
		return -EHOSTUNREACH;
	*ret_worker = op->wish.target;
	return 0;
}

static void decide_takeover(struct core *core, struct op *op, const struct job_value *current)
{
	struct job_value next = *current;
	bool other = op->kind == OP_TAKEOVER &&
		     fence_token_compare(&current->token, &op->expected) != 0;
	int r;

	if (core_job_value_ended(current)) {
		op_end(core, op, -ESTALE, current);
		return;
	}
	if (other) {
		op_end(core, op, 0, current);
		return;
	}
	/* The new token must be larger than the old one in number, not only in life. */
	if (fence_token_compare(&op->ballot.number, &current->token) <= 0) {
		op_retry(core, op, 0);
		return;
	}
	r = choose_worker(core, op, current, &next.owner);
	if (r < 0) {
		op_end(core, op, r, current);
		return;
	}
	op->old_owner = current->owner;
	next.state = JOB_STATE_HELD;
	next.token = op->ballot.number;
	memset(&next.target, 0, sizeof(next.target));
	core_place_granted(core, &next.owner);
	op_send_accept(core, op, &next, false);
}

/* The current value is known: go on from it. */
static void op_decide(struct core *core, struct op *op, const struct job_value *current)
{
	switch (op->kind) {
	case OP_CREATE:
		if (fence_token_compare(&current->token, &op->wish.token) == 0)
			op_end(core, op, 0, current);
		else
			op_end(core, op, -ESTALE, current);
		break;
	case OP_CAS:
		decide_cas(core, op, current);
		break;
	case OP_GET:
		op_end(core, op, 0, current);
		break;
	case OP_TAKE:
	case OP_TAKEOVER:
		decide_takeover(core, op, current);
		break;
	}
}

/*
 * Looks for what is chosen among the promises. Returns the index of an answer that carries it and
 * says in *ret_chosen whether it is certain; CORE_NONE while there are too few promises.
 *
 * The answers with the highest ballot may be left out as long as a quorum remains: that quorum
 * has not accepted it and, having promised, never will; so it is not and will not be chosen.
 */
static uint32_t find_current(const struct job *job, const struct op *op, bool *ret_chosen)
{
	uint32_t quorum = core_job_quorum(job), set = op->promised;

	while (popcount(set) >= quorum) {
		uint32_t top = CORE_NONE, group = 0;

		for (uint32_t i = 0; i < job->acceptors.count; i++) {
			int order;

			if (!(set & 1u << i))
				continue;
			order = top == CORE_NONE ?
					1 :
					core_ballot_compare(&op->seen[i], &op->seen[top]);
			if (order > 0) {
				top = i;
				group = 0;
			}
			if (order >= 0)
				group |= 1u << i;
		}
		*ret_chosen = popcount(group) >= quorum ||
			      (job->known &&
			       core_ballot_compare(&job->known_ballot, &op->seen[top]) == 0);
		if (*ret_chosen || popcount(set & ~group) < quorum || op->phase == OP_READ)
			return top;
		set &= ~group;
	}
	return CORE_NONE;
}

static void op_evaluate(struct core *core, struct op *op)
{
	struct job *job = &core->jobs[op->job];
	uint32_t all = (1u << job->acceptors.count) - 1, top;
	bool chosen = false, settled;

	top = find_current(job, op, &chosen);
	if (top == CORE_NONE)
		return;
	settled = (op->promised | op->busy | op->unknown) == all || core->now_ms >= op->settle_ms;
	if (!chosen && !settled) {
		if (op->settle_ms == UINT64_MAX)
			op->settle_ms = core->now_ms + CORE_SETTLE_MS;
		core_arm(core, op->settle_ms);
		return;
	}
	if (chosen) {
		core_job_learn(core, job, &op->seen[top], &op->values[top]);
		op_decide(core, op, &op->values[top]);
	} else if (op->phase == OP_READ) {
		op_retry(core, op, 0); /* reading was not enough: a full round */
	} else {
		op_send_accept(core, op, &op->values[top], true);
	}
}

/* Tells those whom the new value concerns; the acceptors had it already. */
static void announce(struct core *core, struct op *op)
{
	struct job *job = &core->jobs[op->job];
	const struct job_value *value = &op->sending;
	const struct node_id *told[2] = { &op->old_owner, &value->owner };
	struct core_message *m;

	if (op->kind != OP_TAKE && op->kind != OP_TAKEOVER && !core_job_value_ended(value))
		return;
	m = core_job_message(core, job, CORE_MSG_LEARN);
	m->ballot = op->ballot;
	m->value = *value;
	core_outbox_seal(core);
	for (uint32_t i = 0; i < 2; i++)
		if (!node_id_is_zero(told[i]) && !node_id_equal(told[i], core_self(core)))
			core_outbox_to(core, told[i]);
	if (value->state == JOB_STATE_HELD)
		core_guardian_grant(core, job);
}

static void op_chosen(struct core *core, struct op *op)
{
	struct job *job = &core->jobs[op->job];

	core_job_learn(core, job, &op->ballot, &op->sending);
	if (op->finishing && op->kind == OP_GET) {
		op_end(core, op, 0, &op->sending);
	} else if (op->finishing) {
		op_retry(core, op, 0); /* now the own wish */
	} else {
		announce(core, op);
		op_end(core, op, 0, &op->sending);
	}
}

static struct op *op_of_message(struct core *core, const struct core_message *m, struct job *job)
{
	for (uint32_t i = 0; i < CORE_OPS_MAX; i++) {
		struct op *op = &core->ops[i];

		if (op->used && op->job == core_job_row(core, job) &&
		    core_ballot_compare(&op->ballot, &m->ballot) == 0)
			return op;
	}
	return NULL;
}

static void handle_nack(struct core *core, struct op *op, const struct core_message *m,
			uint32_t bit)
{
	struct job *job = &core->jobs[op->job];
	uint32_t spare = job->acceptors.count - core_job_quorum(job);

	switch (m->reason) {
	case CORE_NACK_PROMISED:
		core_job_saw(job, &m->accepted);
		op_retry(core, op, op_backoff_ms(core, op));
		return;
	case CORE_NACK_BUSY:
		op->busy |= bit;
		if (m->hold_left_ms > op->hold_left_ms)
			op->hold_left_ms = m->hold_left_ms;
		break;
	default:
		op->unknown |= bit;
	}
	if (popcount(op->unknown) > spare && op->kind != OP_CREATE) {
		if (!job->unknown_since_ms)
			job->unknown_since_ms = core->now_ms;
		op_end(core, op, -ENOENT, NULL);
	} else if (popcount(op->busy) > spare) {
		if (op->kind == OP_TAKE || op->kind == OP_TAKEOVER) {
			/* Asking again soon would only disturb the owner. */
			job->guard_ms = core->now_ms + core->config.renew_ms +
					core_below(core, CORE_GUARD_RETRY_MS);
			op_end(core, op, -EBUSY, NULL);
		} else {
			op_retry(core, op, CORE_RESEND_MS);
		}
	} else if (op->phase == OP_PREPARE || op->phase == OP_READ) {
		op_evaluate(core, op);
	}
}

void core_proposer_message(struct core *core, const struct node_id *from, struct core_message *m)
{
	struct job *job = core_job_find(core, &m->job);
	struct op *op = job ? op_of_message(core, m, job) : NULL;
	uint32_t rank = job ? core_job_rank(job, from) : CORE_NONE;

	if (!op || rank == CORE_NONE)
		return;
	switch (op->phase) {
	case OP_READ:
	case OP_PREPARE:
		if (m->type == CORE_MSG_NACK) {
			handle_nack(core, op, m, 1u << rank);
		} else if (m->type == CORE_MSG_PROMISE) {
			op->promised |= 1u << rank;
			op->seen[rank] = m->accepted;
			op->values[rank] = m->value;
			core_job_saw(job, &m->accepted);
			op_evaluate(core, op);
		}
		break;
	case OP_ACCEPT:
		if (m->type == CORE_MSG_NACK) {
			handle_nack(core, op, m, 1u << rank);
		} else if (m->type == CORE_MSG_ACCEPTED) {
			op->accepted |= 1u << rank;
			if (popcount(op->accepted) >= core_job_quorum(job))
				op_chosen(core, op);
		}
		break;
	default:
		break;
	}
}

void core_proposer_located(struct core *core, const struct job *job)
{
	for (uint32_t i = 0; i < CORE_OPS_MAX; i++)
		if (core->ops[i].used && core->ops[i].job == core_job_row(core, job) &&
		    core->ops[i].phase == OP_LOCATE)
			op_enter(core, &core->ops[i]);
}

/*
 * Absence is a strong word: every member that has not left must say so, the dead included, and
 * this host must have had time to hear of them.
 */
static bool all_denied(const struct core *core, const struct op *op)
{
	if (core->now_ms < core->born_ms + CORE_SETTLED_MS || core->member_count < 2)
		return false;
	for (uint32_t i = 1; i < core->member_count; i++)
		if (core->members[i].info.state != MEMBER_LEFT &&
		    !(op->denied[i / 8] & 1u << i % 8))
			return false;
	return true;
}

void core_proposer_denied(struct core *core, const struct node_id *from, const struct job_id *id)
{
	const struct job *job = core_job_find(core, id);
	const struct member *member = core_member_find(core, from);

	if (!job || !member)
		return;
	for (uint32_t i = 0; i < CORE_OPS_MAX; i++) {
		struct op *op = &core->ops[i];
		uint32_t row = (uint32_t)(member - core->members);

		if (!op->used || op->job != core_job_row(core, job) || op->phase != OP_LOCATE)
			continue;
		op->denied[row / 8] |= (uint8_t)(1u << row % 8);
		if (all_denied(core, op))
			op_end(core, op, -ENOENT, NULL);
	}
}

void core_proposer_takeover(struct core *core, struct job *job)
{
	struct op *op = op_new(core, OP_TAKEOVER, job);

	if (!op)
		return;
	op->expected = job->value.token;
	op_enter(core, op);
}

void core_proposer_confirm(struct core *core, struct job *job, bool then_grant)
{
	struct op *op = core_proposer_is_busy(core, job) ? NULL : op_new(core, OP_GET, job);

	if (!op)
		return;
	op->then_grant = then_grant;
	op_enter(core, op);
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
	job = core_job_get(core, &value.job);
	if (!job)
		return -ENOSPC;
	if (event->request == CORE_REQ_CREATE) {
		r = check_create(core, job, &value);
		if (r < 0)
			return r;
	}
	op = op_new(core, kinds[event->request], job);
	if (!op)
		return -EAGAIN;
	op->has_request = true;
	op->request_id = event->request_id;
	op->wish = value;
	op_enter(core, op);
	return 0;
}

void core_proposer_request(struct core *core, const struct core_event *event)
{
	int r = start_request(core, event);

	if (r < 0)
		core_outbox_answer(core, event->request_id, r, NULL);
}

static void op_resend(struct core *core, struct op *op)
{
	struct job *job = &core->jobs[op->job];

	if (core->now_ms < op->resend_ms) {
		core_arm(core, op->resend_ms);
		return;
	}
	if (op->phase == OP_LOCATE) {
		core_job_locate(core, &job->id);
		op->resend_ms = core->now_ms + CORE_RESEND_MS;
		core_arm(core, op->resend_ms);
	} else if (op->phase == OP_ACCEPT) {
		op_message(core, op, CORE_MSG_ACCEPT, op->accepted | op->busy);
	} else {
		op_message(core, op, CORE_MSG_PREPARE, op->promised | op->busy | op->unknown);
	}
}

static void op_tick(struct core *core, struct op *op)
{
	if (core->now_ms >= op->deadline_ms) {
		op_end(core, op, -EAGAIN, NULL);
		return;
	}
	core_arm(core, op->deadline_ms);
	switch (op->phase) {
	case OP_WAIT:
		if (op_is_first(core, op))
			op_enter(core, op);
		break;
	case OP_BACKOFF:
		if (core->now_ms >= op->start_ms)
			op_begin(core, op);
		else
			core_arm(core, op->start_ms);
		break;
	case OP_READ:
	case OP_PREPARE:
		if (core->now_ms >= op->settle_ms)
			op_evaluate(core, op);
		else if (op->settle_ms != UINT64_MAX)
			core_arm(core, op->settle_ms);
		if (op->used && (op->phase == OP_READ || op->phase == OP_PREPARE))
			op_resend(core, op);
		break;
	default:
		op_resend(core, op);
	}
}

void core_proposer_tick(struct core *core)
{
	for (uint32_t i = 0; core->op_count && i < CORE_OPS_MAX; i++) {
		if (core->update.answer_count > CORE_ANSWERS_MAX - 16) {
			core_arm(core, core->now_ms);
			return;
		}
		if (core->ops[i].used)
			op_tick(core, &core->ops[i]);
	}
}
