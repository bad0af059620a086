// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Garbage, pulled: of whom nothing was heard for long the guardians are asked. Whatever a RETAIN or
 * a repair that raced with it left behind goes this way.
 *
 *   a round: list jobs -> one at a time: quorum read of the register
 *     it stands (HELD, IDLE, DONE)      -> keep; its owner's next RETAIN says what may go
 *     COLLECTED, KILLED                 -> drop all, and take nothing of it any more
 *     unknown, or no answer             -> VERDICT from the ring: have you buried it?
 *        a majority of its acceptors    -> drop all, as above
 *        else, and unknown              -> keep; one more stretch of quiet. After forget_ms of it,
 *                                          nobody having heard of the owner for as long, and only
 *                                          if room is short: drop
 *
 * No answer is never quiet: a job whose acceptors are all switched off stays.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LOG_TAG "overlay"
#include "agent/util/io.h"
#include "agent/util/log.h"
#include "overlay/half.h"
#include "overlay/net/internal.h"

enum {
	ROUND_MS = 3600 * 1000,
	FORGET_MS = 7 * 24 * 3600 * 1000,
	GAP_MS = 1000, /* between two questions */
	ANSWER_MS = 10 * 1000,
};

enum pull_step { PULL_LIST, PULL_READ, PULL_LOCAL, PULL_ASK, PULL_WRITE };

/* One job that is being asked for, or the list of all. */
struct pull_op {
	struct store_task task;
	struct overlay *overlay;
	enum pull_step step;
	struct store_job job;
	struct store_job *jobs; /* LIST */
	uint32_t job_count;
	bool unknown; /* the register's word; else it had none */
	struct fan fan;
	bool asking;
	uint32_t count;
	struct node_id nodes[OVERLAY_RING_MAX];
	struct core_tombstone says[OVERLAY_RING_MAX];
	struct store_verdict own;
	uint64_t heard_ago_ms; /* the least of all that answered */
	enum { PULL_HEARD, PULL_QUIET, PULL_OVER, PULL_FORGET } verdict;
	uint64_t quiet_ms;
	uint32_t dropped;
	int status;
};

static void op_free(struct pull_op *op)
{
	if (op->asking)
		fan_free(&op->fan);
	op->overlay->pull.op = NULL;
	op->overlay->pull.next_ms = net_now_ms() + GAP_MS;
	free(op->jobs);
	free(op);
}

static void op_submit(struct pull_op *op, enum pull_step step)
{
	op->step = step;
	if (store_worker_submit(op->overlay->worker, &op->task) < 0)
		op_free(op);
}

static void write_verdict(struct pull_op *op)
{
	struct store *store = op->overlay->store;
	const struct job_id *job = &op->job.job;

	switch (op->verdict) {
	case PULL_HEARD:
		op->status = store_job_heard(store, job);
		break;
	case PULL_QUIET:
		op->status = store_job_quiet(store, job, op->quiet_ms);
		break;
	case PULL_OVER:
	case PULL_FORGET:
		op->status = store_drop_job(store, job, op->verdict == PULL_OVER, &op->dropped);
		break;
	}
}

static void op_run(struct store_task *task)
{
	struct pull_op *op = container_of(task, struct pull_op, task);

	switch (op->step) {
	case PULL_LIST:
		op->status = store_list_jobs(op->overlay->store, &op->jobs, &op->job_count);
		break;
	case PULL_LOCAL:
		op->status = store_verdict(op->overlay->store, &op->job.job, &op->own);
		break;
	default:
		write_verdict(op);
	}
}

static void conclude(struct pull_op *op, int verdict)
{
	op->verdict = verdict;
	op_submit(op, PULL_WRITE);
}

/* --- the ring ---------------------------------------------------------------------------- */

static bool ask_result(struct fan_leg *leg, int status)
{
	(void)leg;
	return status == 0;
}

static void ask_answer(struct fan_leg *leg, const uint8_t *bytes, size_t size)
{
	struct pull_op *op = leg->fan->owner;
	struct net_verdict verdict;

	if (net_verdict_decode(bytes, size, &verdict) < 0)
		return;
	for (uint32_t i = 0; i < op->count; i++)
		if (node_id_equal(&op->nodes[i], &leg->node))
			op->says[i] = verdict.tombstone;
	if (verdict.heard_ago_ms < op->heard_ago_ms)
		op->heard_ago_ms = verdict.heard_ago_ms;
}

static void judge_unknown(struct pull_op *op)
{
	struct overlay *overlay = op->overlay;
	struct pull *pull = &overlay->pull;
	uint64_t quiet_ms = 1; /* the first time says nothing of how long */

	/* What lies between two questions of one life; what was spent off does not count. */
	if (op->job.quiet_ms)
		quiet_ms = op->job.quiet_ms + pull->between_ms;
	if (op->heard_ago_ms < quiet_ms)
		quiet_ms = op->heard_ago_ms + 1;
	op->quiet_ms = quiet_ms;
	if (quiet_ms > pull->forget_ms && store_short_bytes(overlay->store))
		conclude(op, PULL_FORGET);
	else
		conclude(op, PULL_QUIET);
}

static void ask_finished(struct fan *fan)
{
	struct pull_op *op = fan->owner;

	fan_free(&op->fan);
	op->asking = false;
	if (core_is_over(op->says, op->nodes, op->count))
		conclude(op, PULL_OVER);
	else if (op->unknown)
		judge_unknown(op);
	else
		op_free(op);
}

static const struct fan_ops ask_ops = { .answer = ask_answer,
					.result = ask_result,
					.finished = ask_finished };

static void ask_ring(struct pull_op *op)
{
	struct overlay *overlay = op->overlay;
	struct node_id *targets = calloc(OVERLAY_RING_MAX, sizeof(*targets));
	uint32_t count = 0;

	op->count = core_ring(overlay->core, &op->job.job, OVERLAY_RING_MAX, op->nodes);
	op->heard_ago_ms = op->own.heard_ago_ms;
	for (uint32_t i = 0; targets && i < op->count; i++) {
		if (node_id_equal(&op->nodes[i], &overlay->self))
			op->says[i] = op->own.tombstone;
		else
			targets[count++] = op->nodes[i];
	}
	if (!targets) {
		op_free(op);
		return;
	}
	op->step = PULL_ASK;
	op->asking = true;
	op->fan = (struct fan){ .overlay = overlay,
				.ops = &ask_ops,
				.owner = op,
				.call = { .op = NET_OP_VERDICT, .object.job = op->job.job },
				.stream_fd = -1,
				.stall_ms = ANSWER_MS,
				.wanted = UINT32_MAX,
				.targets = targets,
				.target_count = count };
	if (fan_start(&op->fan) < 0)
		op_free(op);
}

/* --- the register ------------------------------------------------------------------------ */

void pull_answer(struct overlay *overlay, int status, const struct job_value *value)
{
	struct pull_op *op = overlay->pull.op;

	if (!op || op->step != PULL_READ)
		return;
	if (status == 0 && value) {
		bool over = value->state == JOB_STATE_COLLECTED || value->state == JOB_STATE_KILLED;

		conclude(op, over ? PULL_OVER : PULL_HEARD);
		return;
	}
	op->unknown = status == -ENOENT;
	op_submit(op, PULL_LOCAL);
}

static void take_list(struct pull_op *op)
{
	struct pull *pull = &op->overlay->pull;

	free(pull->jobs);
	pull->jobs = take_ptr(op->jobs);
	pull->count = op->job_count;
	pull->at = 0;
}

static void op_done(struct store_task *task)
{
	struct pull_op *op = container_of(task, struct pull_op, task);

	if (task->cancelled || op->status < 0) {
		if (!task->cancelled)
			log_errno(op->status, "pull: step=%d", op->step);
	} else if (op->step == PULL_LIST) {
		take_list(op);
	} else if (op->step == PULL_LOCAL) {
		ask_ring(op);
		return;
	} else if (op->dropped) {
		log_info("pull: job=%02x%02x%02x%02x dropped=%u %s", op->job.job.b[0],
			 op->job.job.b[1], op->job.job.b[2], op->job.job.b[3], op->dropped,
			 op->verdict == PULL_OVER ? "it is over" : "nobody knows it");
	}
	op_free(op);
}

/* --- a round ----------------------------------------------------------------------------- */

static struct pull_op *op_new(struct overlay *overlay)
{
	struct pull_op *op = calloc(1, sizeof(*op));

	if (!op)
		return NULL;
	op->overlay = overlay;
	op->task.run = op_run;
	op->task.done = op_done;
	overlay->pull.op = op;
	return op;
}

static void start_round(struct overlay *overlay, uint64_t now_ms)
{
	struct pull *pull = &overlay->pull;
	struct pull_op *op = op_new(overlay);

	if (pull->asked_ms)
		pull->between_ms = now_ms - pull->asked_ms;
	pull->asked_ms = now_ms;
	pull->round_at_ms = now_ms + pull->round_ms;
	if (op)
		op_submit(op, PULL_LIST);
}

static bool heard_lately(const struct overlay *overlay, const struct store_job *job)
{
	uint64_t now = now_wall_ms();

	return job->heard_wall_ms && now >= job->heard_wall_ms &&
	       now - job->heard_wall_ms < overlay->pull.round_ms;
}

void pull_tick(struct overlay *overlay, uint64_t now_ms)
{
	struct pull *pull = &overlay->pull;
	struct pull_op *op;

	if (!pull->round_ms || pull->op || now_ms < pull->next_ms)
		return;
	while (pull->at < pull->count && heard_lately(overlay, &pull->jobs[pull->at]))
		pull->at++;
	if (pull->at == pull->count) {
		if (now_ms >= pull->round_at_ms)
			start_round(overlay, now_ms);
		return;
	}
	op = op_new(overlay);
	if (!op)
		return;
	op->job = pull->jobs[pull->at++];
	op->step = PULL_READ;
	driver_pull(overlay, &op->job.job);
}

void pull_start(struct overlay *overlay, const struct ov_start *start)
{
	struct pull *pull = &overlay->pull;

	pull->round_ms = start->pull_round_ms ? start->pull_round_ms : ROUND_MS;
	pull->forget_ms = start->pull_forget_ms ? start->pull_forget_ms : FORGET_MS;
	pull->round_at_ms = net_now_ms() + pull->round_ms;
}

void pull_stop(struct overlay *overlay)
{
	struct pull *pull = &overlay->pull;

	pull->round_ms = 0;
	/* What waits for the worker is freed by its end. */
	if (pull->op && (pull->op->asking || pull->op->step == PULL_READ))
		op_free(pull->op);
	free(pull->jobs);
	pull->jobs = NULL;
	pull->count = pull->at = 0;
}
