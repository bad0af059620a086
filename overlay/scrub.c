// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Rot that nobody has met: everything that lies here is read once in a while, slowly, and not while
 * somebody is at the machine. What is found to be lost, here or by a reader, is told to who else
 * had it: a copy is missing then, and repair is theirs.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LOG_TAG "scrub"
#include "agent/util/io.h"
#include "agent/util/log.h"
#include "overlay/half.h"
#include "overlay/net/internal.h"

enum {
	RATE_BYTES_S = 2000000,
	AGE_MS = 7 * 24 * 3600 * 1000,
	PASS_MS = 3600 * 1000,	    /* at most so long between the end of a pass and the next */
	COST_BYTES_MIN = 128 << 10, /* of an object: it is sought, and its row may be written */
	TELL_MS = 5000,
	TELL_LATE_MS = 5 * 60 * 1000, /* if nobody was there to be told */
	LOST_MAX = 16,		      /* at one time */
};

enum scrub_step { SCRUB_READ, SCRUB_LIST, SCRUB_FORGET, SCRUB_ASK };

struct scrub_op {
	struct store_task task;
	struct overlay *overlay;
	enum scrub_step step;
	int status;
	/* SCRUB_READ */
	struct object_hash at;
	uint32_t size;
	bool rotten;
	/* the others */
	struct ov_object lost[LOST_MAX];
	uint32_t lost_count, lost_at, told;
	bool none_told;
	struct fan fan;
};

static void op_free(struct scrub_op *op)
{
	if (op->step == SCRUB_ASK)
		fan_free(&op->fan);
	op->overlay->scrub.op = NULL;
	free(op);
}

static void op_submit(struct scrub_op *op, enum scrub_step step)
{
	op->step = step;
	if (store_worker_submit(op->overlay->worker, &op->task) < 0)
		op_free(op);
}

static void op_run(struct store_task *task)
{
	struct scrub_op *op = container_of(task, struct scrub_op, task);
	struct store *store = op->overlay->store;
	const struct ov_object *lost = &op->lost[op->lost_at];

	switch (op->step) {
	case SCRUB_READ:
		op->status = store_scrub(store, op->overlay->scrub.age_ms, &op->at, &op->size,
					 &op->rotten);
		break;
	case SCRUB_LIST:
		op->status = store_list_lost(store, LOST_MAX, op->lost, &op->lost_count);
		break;
	default:
		op->status = store_lost_done(store, &lost->job, &lost->hash);
	}
}

/* --- who else had it --------------------------------------------------------------------- */

static bool tell_result(struct fan_leg *leg, int status)
{
	struct scrub_op *op = leg->fan->owner;

	op->told += status == 0;
	return status == 0;
}

static void tell_next(struct scrub_op *op);

static void tell_finished(struct fan *fan)
{
	struct scrub_op *op = fan->owner;
	const struct ov_object *lost = &op->lost[op->lost_at];

	fan_free(fan);
	log_warn("lost: object=%02x%02x%02x%02x job=%02x%02x holders=%u told=%u", lost->hash.b[0],
		 lost->hash.b[1], lost->hash.b[2], lost->hash.b[3], lost->job.b[0], lost->job.b[1],
		 lost->holder_count, op->told);
	if (op->told > 0) {
		op_submit(op, SCRUB_FORGET);
		return;
	}
	op->step = SCRUB_LIST;
	op->none_told = true;
	op->lost_at++;
	tell_next(op);
}

static const struct fan_ops tell_ops = { .result = tell_result, .finished = tell_finished };

/* Those who had it, without this host; the list as it is now goes along. */
static int tell_start(struct scrub_op *op)
{
	struct ov_object *object = &op->lost[op->lost_at];
	struct node_id *targets = calloc(OV_HOLDERS_MAX, sizeof(*targets));
	uint32_t count = 0;
	int r;

	if (!targets)
		return -ENOMEM;
	for (uint32_t i = 0; i < object->holder_count; i++)
		if (!node_id_equal(&object->holders[i], &op->overlay->self))
			targets[count++] = object->holders[i];
	memset(object->holders, 0, sizeof(object->holders));
	memcpy(object->holders, targets, count * sizeof(*targets));
	object->holder_count = count;
	if (count == 0) {
		free(targets);
		return -ENOENT;
	}
	op->told = 0;
	op->fan = (struct fan){ .overlay = op->overlay,
				.ops = &tell_ops,
				.owner = op,
				.call = { .op = NET_OP_HOLDERS, .object = *object },
				.stream_fd = -1,
				.stall_ms = OVERLAY_PUT_STALL_MS,
				.wanted = UINT32_MAX,
				.targets = targets,
				.target_count = count };
	op->step = SCRUB_ASK;
	r = fan_start(&op->fan);
	if (r < 0) {
		fan_free(&op->fan);
		op->step = SCRUB_LIST;
	}
	return r;
}

static void tell_next(struct scrub_op *op)
{
	struct scrub *scrub = &op->overlay->scrub;
	int r;

	if (op->lost_at == op->lost_count) {
		scrub->tell_ms = net_now_ms() + (op->none_told ? TELL_LATE_MS : TELL_MS);
		op_free(op);
		return;
	}
	r = tell_start(op);
	if (r == -ENOENT)
		op_submit(op, SCRUB_FORGET); /* nobody is left to be told */
	else if (r < 0)
		op_free(op);
}

/* --- steps ------------------------------------------------------------------------------- */

static void read_done(struct scrub_op *op)
{
	struct scrub *scrub = &op->overlay->scrub;

	if (op->status == 0) {
		scrub->at = op->at;
		scrub->owed_bytes = op->size > COST_BYTES_MIN ? op->size : COST_BYTES_MIN;
		if (op->rotten) {
			log_warn("rot: object=%02x%02x%02x%02x size=%u", op->at.b[0], op->at.b[1],
				 op->at.b[2], op->at.b[3], op->size);
			scrub->tell_ms = 0;
		}
	} else {
		if (op->status != -ENOENT)
			log_errno(op->status, "read");
		memset(&scrub->at, 0, sizeof(scrub->at));
		scrub->next_ms = net_now_ms() + (scrub->age_ms < PASS_MS ? scrub->age_ms : PASS_MS);
	}
	op_free(op);
}

static void op_done(struct store_task *task)
{
	struct scrub_op *op = container_of(task, struct scrub_op, task);

	if (task->cancelled) {
		op_free(op);
		return;
	}
	switch (op->step) {
	case SCRUB_READ:
		read_done(op);
		return;
	case SCRUB_LIST:
		if (op->status < 0)
			log_errno(op->status, "list of what was lost");
		tell_next(op);
		return;
	default:
		if (op->status < 0)
			log_errno(op->status, "forget what was lost");
		op->lost_at++;
		tell_next(op);
	}
}

static void op_start(struct overlay *overlay, enum scrub_step step)
{
	struct scrub_op *op = calloc(1, sizeof(*op));

	if (!op)
		return;
	op->task.run = op_run;
	op->task.done = op_done;
	op->overlay = overlay;
	op->at = overlay->scrub.at;
	overlay->scrub.op = op;
	op_submit(op, step);
}

void scrub_tick(struct overlay *overlay, uint64_t now_ms)
{
	struct scrub *scrub = &overlay->scrub;

	if (scrub->op || scrub->age_ms == 0)
		return;
	if (now_ms >= scrub->tell_ms) {
		scrub->tell_ms = now_ms + TELL_MS;
		op_start(overlay, SCRUB_LIST);
		return;
	}
	if (now_ms < scrub->next_ms || (overlay->report.flags & MEMBER_USER_PRESENT))
		return;
	if (scrub->owed_bytes && !core_bucket_take(&scrub->bucket, now_ms, scrub->owed_bytes))
		return;
	scrub->owed_bytes = 0;
	op_start(overlay, SCRUB_READ);
}

void scrub_start(struct overlay *overlay, const struct ov_start *start)
{
	struct scrub *scrub = &overlay->scrub;
	uint64_t rate = start->scrub_bytes_s ? start->scrub_bytes_s : RATE_BYTES_S;

	/* No burst but what the largest object needs: nobody waits for this. */
	scrub->bucket = (struct core_bucket){ .rate_bytes = rate,
					      .burst_bytes = OV_PACK_MAX,
					      .at_ms = net_now_ms() };
	scrub->age_ms = start->scrub_age_ms ? start->scrub_age_ms : AGE_MS;
	scrub->tell_ms = net_now_ms() + TELL_MS;
}

void scrub_stop(struct overlay *overlay)
{
	struct scrub *scrub = &overlay->scrub;

	scrub->age_ms = 0;
	/* What waits for the worker is freed by its end. */
	if (scrub->op && scrub->op->step == SCRUB_ASK)
		op_free(scrub->op);
}
