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

/* Twice soon, for a message may be lost; then who does not answer is likely to be off. */
static void op_arm_resend(struct core *core, struct op *op)
{
	uint32_t shift = op->resends < 2 ? 0 : op->resends - 1;

	op->resend_ms = core->now_ms + ((uint64_t)CORE_RESEND_MS << (shift < 2 ? shift : 2));
	op->resends++;
	core_arm(core, op->resend_ms);
}

static void op_message(struct core *core, struct op *op, enum core_message_type type, uint32_t skip)
{
	struct job *job = &core->jobs[op->job];
	const struct core_acceptors *to = &op->set;
	struct core_message *m = core_job_message(core, job, type);

	m->epoch = op->epoch;
	m->acceptors = op->set;
	m->ballot = op->ballot;
	if (op->phase == OP_READ)
		m->flags = CORE_FLAG_READ;
	else if (op->kind == OP_TAKEOVER || (op->kind == OP_TAKE && !op->claim))
		m->flags = CORE_FLAG_TAKEOVER;
	if (type == CORE_MSG_ACCEPT) {
		m->value = op->sending;
		m->next = op->sending_next;
	}
	if (type == CORE_MSG_INSTALL) {
		m->flags = 0;
		m->epoch = op->epoch + 1;
		m->previous = op->set;
		m->acceptors = op->sending_next;
		m->accepted.epoch = m->epoch;
		m->value = op->sending;
		to = &op->sending_next;
	}
	core_outbox_seal(core);
	for (uint32_t i = 0; i < to->count; i++)
		if (!(skip & 1u << i))
			core_outbox_to(core, &to->ids[i]);
	op_arm_resend(core, op);
}

static void op_clear_masks(struct op *op)
{
	op->promised = op->accepted = op->busy = op->unknown = op->moved = op->refused = 0;
	op->previous_known = false;
	op->resends = 0;
	op->settle_ms = UINT64_MAX;
}

static void op_send_accept(struct core *core, struct op *op, const struct job_value *value,
			   const struct core_acceptors *next, bool finishing)
{
	op->phase = OP_ACCEPT;
	op->finishing = finishing;
	op->sending = *value;
	memset(&op->sending_next, 0, sizeof(op->sending_next));
	if (next)
		op->sending_next = *next;
	op_clear_masks(op);
	op_message(core, op, CORE_MSG_ACCEPT, 0);
}

static void op_begin(struct core *core, struct op *op)
{
	struct job *job = &core->jobs[op->job];
	bool create = op->kind == OP_CREATE && !op->tries;
	/* Whether an epoch stands that this host was installed in, the one before it tells. */
	bool before = job->installed && !job->settled;

	op->epoch = before ? job->epoch - 1 : job->epoch;
	op->set = before ? job->previous : job->acceptors;
	op->ballot.epoch = op->epoch;
	op->ballot.number.counter = create ? job->attempt_counter : ++job->max_counter;
	op->ballot.number.node = *core_self(core);
#ifndef MUTANT_LIFE
	op->ballot.life = core->config.incarnation;
#endif
	op_clear_masks(op);
	op->tries++;
	if (create) {
		/* No value can have been accepted under a lower ballot: no phase 1. */
		op->wish.token = op->ballot.number;
		op_send_accept(core, op, &op->wish, NULL, false);
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

/* What this host does of its own accord is tried more seldom while nobody answers, or knows. */
static void count_failure(struct core *core, const struct op *op, int status)
{
	struct job *job = &core->jobs[op->job];

	if (status != -EAGAIN && status != -ENOENT) {
		job->failures = 0;
		job->ask_ms = 0;
	} else if (!op->has_request) {
		job->ask_ms = core->now_ms + ((uint64_t)CORE_RESEND_MS << job->failures);
		job->failures += job->failures < CORE_FAILURES_MAX;
	}
}

static void op_end(struct core *core, struct op *op, int status, const struct job_value *value)
{
	if (op->has_request)
		core_outbox_answer(core, op->request_id, status, value);
	if (op->then_grant && status == 0)
		core_guardian_granted(core, value);
	op->used = false;
	while (core->op_high && !core->ops[core->op_high - 1].used)
		core->op_high--;
	count_failure(core, op, status);
	core_arm(core, core->now_ms); /* the next one of this job may begin */
}

/* By either clock: what was asked before a sleep must not be said again after it. */
static bool op_is_over(const struct core *core, const struct op *op)
{
	return core->now_ms >= op->deadline_ms || core->boot_ns >= op->deadline_boot_ns;
}

static bool op_is_first(const struct core *core, const struct op *op)
{
	for (uint32_t i = 0; i < core->op_high; i++) {
		const struct op *other = &core->ops[i];

		if (other->used && other->job == op->job && other->order < op->order)
			return false;
	}
	return true;
}

void core_proposer_enter(struct core *core, struct op *op)
{
	struct job *job = &core->jobs[op->job];

	if (!op_is_first(core, op)) {
		op->phase = OP_WAIT;
	} else if (!job->acceptors.count) {
		op->phase = OP_LOCATE;
		op->resends = 0;
		core_job_locate(core, job);
		op_arm_resend(core, op);
	} else {
		op_begin(core, op);
	}
}

struct op *core_proposer_new(struct core *core, enum op_kind kind, struct job *job)
{
	for (uint32_t i = 0; i < CORE_OPS_MAX; i++) {
		struct op *op = &core->ops[i];

		if (op->used)
			continue;
		memset(op, 0, offsetof(struct op, seen));
		memset(op->denied, 0, sizeof(op->denied));
		op->used = true;
		if (core->op_high <= i)
			core->op_high = i + 1;
		op->kind = kind;
		op->job = core_job_row(core, job);
		op->order = ++core->op_order;
		op->deadline_ms = core->now_ms + CORE_OP_TIMEOUT_MS;
		op->deadline_boot_ns = core->boot_ns + CORE_OP_TIMEOUT_MS * UINT64_C(1000000);
		core_arm(core, op->deadline_ms);
		return op;
	}
	return NULL;
}

/* The seal is chosen: its members begin the next epoch. */
static void op_install(struct core *core, struct op *op)
{
	op->phase = OP_INSTALL;
	op_clear_masks(op);
	op_message(core, op, CORE_MSG_INSTALL, 0);
}

static void op_installed(struct core *core, struct op *op)
{
	struct job *job = &core->jobs[op->job];
	struct core_acceptors old = op->set, set = op->sending_next;
	uint32_t epoch = op->epoch + 1;

	/* Ends the round of this operation too, see core_proposer_moved(). */
	if (!core_job_move(core, job, epoch, &set) || job->epoch != epoch)
		return;
	core_epoch_announce(core, job, &old);
	if (!op->used || op->phase != OP_INSTALL)
		return;
	if (op->kind == OP_REPLACE || op->kind == OP_SETTLE)
		op_end(core, op, 0, &op->sending);
	else
		op_retry(core, op, 0);
}

/* The current value is known: go on from it. */
static void op_decide(struct core *core, struct op *op, const struct job_value *current)
{
	struct core_acceptors set = { 0 };
	struct job_value next;
	int status = 0;

	switch (core_decide(core, op, current, &next, &set, &status)) {
	case DECIDE_END:
		op_end(core, op, status, current);
		break;
	case DECIDE_RETRY:
		op_retry(core, op, 0);
		break;
	case DECIDE_SEND:
		op_send_accept(core, op, &next, set.count ? &set : NULL, false);
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
	uint32_t quorum = core_acceptors_quorum(&op->set), set = op->promised;

	while (popcount(set) >= quorum) {
		uint32_t top = CORE_NONE, group = 0;

		for (uint32_t i = 0; i < op->set.count; i++) {
			int order;

			if (!(set & 1u << i))
				continue;
			order = top == CORE_NONE ?
					1 :
					core_ballot_compare(&op->seen[i], &op->seen[top]);
#ifdef MUTANT_P1
			order = top == CORE_NONE ? 1 : -order;
#endif
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

/*
 * A member that missed the beginning of an epoch hears of it from who has just asked a majority:
 * never from memory, which may be of a job that is long over.
 */
static void op_repair(struct core *core, struct op *op, uint32_t top)
{
	struct core_message *m;

	if (!op->epoch || !op->unknown || !op->previous_known)
		return;
	m = core_job_message(core, &core->jobs[op->job], CORE_MSG_INSTALL);
	m->flags = CORE_FLAG_SETTLED;
	m->epoch = op->epoch;
	m->acceptors = op->set;
	m->previous = op->previous;
	m->accepted = op->seen[top];
	m->value = op->values[top];
	core_outbox_seal(core);
	for (uint32_t i = 0; i < op->set.count; i++)
		if (op->unknown & 1u << i)
			core_outbox_to(core, &op->set.ids[i]);
}

/* Enough answers to go on, and the one with the current value; else waits for more. */
static bool op_is_settled(struct core *core, struct op *op)
{
	uint32_t all = (1u << op->set.count) - 1;

	if ((op->promised | op->busy | op->unknown | op->moved) == all ||
	    core->now_ms >= op->settle_ms)
		return true;
	if (op->settle_ms == UINT64_MAX)
		op->settle_ms = core->now_ms + CORE_SETTLE_MS;
	core_arm(core, op->settle_ms);
	return false;
}

static void op_evaluate(struct core *core, struct op *op)
{
	struct job *job = &core->jobs[op->job];
	bool chosen = false, sealed;
	uint32_t top;

	if (op->moved) {
		/* The seal is chosen, whoever else knows. A majority must still be there to say so. */
		if (popcount(op->moved | op->promised) >= core_acceptors_quorum(&op->set))
			op_install(core, op);
		return;
	}
	top = find_current(job, op, &chosen);
	if (top == CORE_NONE)
		return;
	if (job->epoch == op->epoch)
		(void)core_job_move(core, job, op->epoch, &op->set); /* a majority answers for it */
	sealed = op->nexts[top].count > 0;
#ifdef MUTANT_P2
	sealed = false;
#endif
	if (sealed && op->phase == OP_READ) {
		op_retry(core, op, 0);
		return;
	}
	if (sealed && (chosen || op_is_settled(core, op))) {
		op_send_accept(core, op, &op->values[top], &op->nexts[top], true); /* P2 */
		return;
	}
	if (sealed)
		return;
	if (!chosen && !op_is_settled(core, op))
		return;
	if (chosen) {
		op_repair(core, op, top);
		core_job_learn(core, job, &op->seen[top], &op->values[top]);
		op_decide(core, op, &op->values[top]);
	} else if (op->phase == OP_READ) {
		op_retry(core, op, 0); /* reading was not enough: a full round */
	} else {
		op_send_accept(core, op, &op->values[top], NULL, true);
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
	if (op->claim) /* who asked for it is the owner, and has the answer */
		return;
	m = core_job_message(core, job, CORE_MSG_LEARN);
	m->epoch = op->epoch;
	m->acceptors = op->set;
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

	if (op->sending_next.count) {
		op_install(core, op);
		return;
	}
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
	for (uint32_t i = 0; i < core->op_high; i++) {
		struct op *op = &core->ops[i];

		if (op->used && op->job == core_job_row(core, job) &&
		    core_ballot_compare(&op->ballot, &m->ballot) == 0)
			return op;
	}
	return NULL;
}

/* Those of the acceptors that said BUSY whose holds are not over by then. */
static uint32_t busy_at(const struct op *op, uint64_t when_ms)
{
	uint32_t busy = 0;

	for (uint32_t i = 0; i < op->set.count; i++)
		if (op->busy & 1u << i && op->busy_until_ms[i] > when_ms)
			busy |= 1u << i;
	return busy;
}

static void handle_nack(struct core *core, struct op *op, const struct core_message *m,
			uint32_t rank)
{
	struct job *job = &core->jobs[op->job];
	uint32_t bit = 1u << rank;
	uint32_t spare = op->set.count - core_acceptors_quorum(&op->set);

	switch (m->reason) {
	case CORE_NACK_PROMISED:
		core_job_saw(job, &m->accepted);
		op->refused |= bit & ~op->accepted;
		/* The others may still choose it, and this is then not a round for nothing. */
		if (op->phase != OP_ACCEPT || popcount(op->refused | op->unknown) > spare)
			op_retry(core, op, op_backoff_ms(core, op));
		return;
	case CORE_NACK_BUSY:
		if ((op->promised | op->accepted) & bit)
			return; /* an earlier word of it, overtaken */
		op->busy |= bit;
		op->busy_until_ms[rank] = core->now_ms + m->hold_left_ms + 1;
		core_arm(core, op->busy_until_ms[rank]);
		break;
	default:
		op->unknown |= bit;
	}
	if (popcount(op->unknown) > spare && op->kind != OP_CREATE) {
		if (!job->unknown_since_ms)
			job->unknown_since_ms = core->now_ms;
		op_end(core, op, -ENOENT, NULL);
	} else if (popcount(busy_at(op, core->now_ms + CORE_RESEND_MS)) > spare) {
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

/*
 * An acceptor of this round's epoch is in the next one, which may not stand yet. It speaks for the
 * seal: it was installed with what was chosen.
 */
static void op_heard_moved(struct core *core, struct op *op, const struct core_message *m,
			   uint32_t bit)
{
	bool same = memcmp(&m->acceptors, &op->sending_next, sizeof(m->acceptors)) == 0 &&
		    memcmp(&m->value, &op->sending, sizeof(m->value)) == 0;

#ifdef MUTANT_VOTE
	same = op->sending_next.count > 0;
#endif
	if (op->phase == OP_READ || op->phase == OP_PREPARE) {
		op->moved |= bit;
		op->sending = m->value;
		op->sending_next = m->acceptors;
		op_evaluate(core, op);
	} else if (op->phase == OP_ACCEPT && !same) {
		/* Another seal is the chosen one: this round's value never will be. */
		op_retry(core, op, op_backoff_ms(core, op));
	} else if (op->phase == OP_ACCEPT) {
		op->moved |= bit;
		if (popcount(op->accepted | op->moved) >= core_acceptors_quorum(&op->set))
			op_chosen(core, op);
	}
}

/* Neither carries a ballot: they belong to whatever this host asks about that epoch. */
static void epoch_answered(struct core *core, const struct node_id *from, struct core_message *m,
			   struct job *job)
{
	for (uint32_t i = 0; i < core->op_high; i++) {
		struct op *op = &core->ops[i];
		uint32_t rank;

		if (!op->used || op->job != core_job_row(core, job) || op_is_over(core, op) ||
		    m->epoch != op->epoch + 1)
			continue;
		if (m->type == CORE_MSG_MOVED) {
			rank = core_acceptors_rank(&op->set, from);
			if (rank != CORE_NONE && !(m->flags & CORE_FLAG_SETTLED) &&
			    !memcmp(&m->previous, &op->set, sizeof(op->set)))
				op_heard_moved(core, op, m, 1u << rank);
			continue;
		}
		rank = core_acceptors_rank(&op->sending_next, from);
		if (op->phase != OP_INSTALL || rank == CORE_NONE ||
		    memcmp(&m->acceptors, &op->sending_next, sizeof(m->acceptors)) != 0)
			continue;
		op->accepted |= 1u << rank;
		if (popcount(op->accepted) >= core_acceptors_quorum(&op->sending_next))
			op_installed(core, op);
	}
}

void core_proposer_moved(struct core *core, struct job *job)
{
	for (uint32_t i = 0; i < core->op_high; i++) {
		struct op *op = &core->ops[i];

		if (!op->used || op->job != core_job_row(core, job) || !job->settled ||
		    op->phase < OP_READ || op->phase == OP_BACKOFF)
			continue;
		/* One that installs this very epoch still counts who has done it. */
		if (op->epoch + (op->phase == OP_INSTALL) < job->epoch)
			op_retry(core, op, 0);
	}
}

void core_proposer_message(struct core *core, const struct node_id *from, struct core_message *m)
{
	struct job *job = core_job_find(core, &m->job);
	struct op *op = NULL;
	uint32_t rank;

	if (job && (m->type == CORE_MSG_MOVED || m->type == CORE_MSG_INSTALLED))
		epoch_answered(core, from, m, job);
	else if (job)
		op = op_of_message(core, m, job);
	rank = op ? core_acceptors_rank(&op->set, from) : CORE_NONE;
	/* After a long pause, what was asked is no evidence any more. */
	if (rank == CORE_NONE || op_is_over(core, op))
		return;
	switch (op->phase) {
	case OP_READ:
	case OP_PREPARE:
		if (m->type == CORE_MSG_NACK) {
			handle_nack(core, op, m, rank);
		} else if (m->type == CORE_MSG_PROMISE) {
			op->promised |= 1u << rank;
			op->busy &= ~(1u << rank);
			op->seen[rank] = m->accepted;
			op->values[rank] = m->value;
			op->nexts[rank] = m->next;
			/* One that knows the epoch before to be closed is enough. */
			if (!op->previous_known || !m->previous.count)
				op->previous = m->previous;
			op->previous_known = true;
			core_job_saw(job, &m->accepted);
			op_evaluate(core, op);
		}
		break;
	case OP_ACCEPT:
		if (m->type == CORE_MSG_NACK) {
			handle_nack(core, op, m, rank);
		} else if (m->type == CORE_MSG_ACCEPTED) {
			op->accepted |= 1u << rank;
			op->busy &= ~(1u << rank);
#ifdef MUTANT_SEAL
			if (op->sending_next.count) {
				op_chosen(core, op);
				return;
			}
#endif
			if (popcount(op->accepted | op->moved) >= core_acceptors_quorum(&op->set))
				op_chosen(core, op);
		}
		break;
	default:
		break;
	}
}

void core_proposer_located(struct core *core, const struct job *job)
{
	for (uint32_t i = 0; i < core->op_high; i++)
		if (core->ops[i].used && core->ops[i].job == core_job_row(core, job) &&
		    core->ops[i].phase == OP_LOCATE)
			core_proposer_enter(core, &core->ops[i]);
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
	for (uint32_t i = 0; i < core->op_high; i++) {
		struct op *op = &core->ops[i];
		uint32_t row = (uint32_t)(member - core->members);

		if (!op->used || op->job != core_job_row(core, job) || op->phase != OP_LOCATE)
			continue;
		op->denied[row / 8] |= (uint8_t)(1u << row % 8);
		if (all_denied(core, op))
			op_end(core, op, -ENOENT, NULL);
	}
}

/* What was lost; and whoever said BUSY is asked again as soon as its hold is over. */
static void op_resend(struct core *core, struct op *op)
{
	struct job *job = &core->jobs[op->job];
	uint32_t busy = busy_at(op, core->now_ms);

	for (uint32_t i = 0; i < op->set.count; i++)
		if (busy & 1u << i)
			core_arm(core, op->busy_until_ms[i]);
	if (core->now_ms < op->resend_ms && busy == op->busy) {
		core_arm(core, op->resend_ms);
		return;
	}
	op->busy = busy;
	if (op->refused) {
		op_retry(core, op, op_backoff_ms(core, op));
	} else if (op->phase == OP_LOCATE) {
		op->resends = 0; /* there are more to be asked each time */
		core_job_locate(core, job);
		op_arm_resend(core, op);
	} else if (op->phase == OP_INSTALL) {
		op_message(core, op, CORE_MSG_INSTALL, op->accepted);
	} else if (op->phase == OP_ACCEPT) {
		op_message(core, op, CORE_MSG_ACCEPT, op->accepted | op->busy);
	} else {
		/* Those who were asked may be gone long since, and the job with others. */
		if (core->now_ms + CORE_OP_TIMEOUT_MS / 2 >= op->deadline_ms && !op->located) {
			op->located = true;
			if (op->has_request)
				core_job_locate(core, job);
			else
				core_job_relocate(core, job);
		}
		op_message(core, op, CORE_MSG_PREPARE,
			   op->promised | op->busy | op->unknown | op->moved);
	}
}

static void op_tick(struct core *core, struct op *op)
{
	if (op_is_over(core, op)) {
		op_end(core, op, -EAGAIN, NULL);
		return;
	}
	core_arm(core, op->deadline_ms);
	switch (op->phase) {
	case OP_WAIT:
		if (op_is_first(core, op))
			core_proposer_enter(core, op);
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
	for (uint32_t i = 0; i < core->op_high; i++) {
		if (core->scratch->update.answer_count > CORE_ANSWERS_MAX - 16) {
			core_arm(core, core->now_ms);
			return;
		}
		if (core->ops[i].used)
			op_tick(core, &core->ops[i]);
	}
}
