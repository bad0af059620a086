// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Surplus copies: counted as free room, given up when room is needed.
 *
 *   a round of repair's list -> which are surplus here? (core) -> in order, while room is short:
 *   VOUCH from the others -> still surplus without those who did not? -> drop, tell the others
 *
 * A list of holders may be old, so nobody is believed to have a copy who does not say so now. Who has vouched keeps
 * its copy for TRIM_PIN_MS, and who gives one up vouches for it to nobody: of two holders that would
 * both go by the other's copy, neither goes. All that is lost with a crash is a promise to keep,
 * and nothing is given up within repair's first wait after a start.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LOG_TAG "overlay"
#include "agent/util/log.h"
#include "overlay/half.h"
#include "overlay/net/internal.h"

enum { TRIM_PIN_MS = 10 * 60 * 1000, TRIM_ANSWER_MS = 60 * 1000 };

struct trim_op {
	struct store_task task;
	struct overlay *overlay;
	struct ov_object object;
	uint64_t started_ms;
	uint32_t vouched; /* mask over object.holders */
	struct fan fan;
	bool asking;
	int status;
};

static void op_free(struct trim_op *op)
{
	if (op->asking)
		fan_free(&op->fan);
	op->overlay->trim.op = NULL;
	free(op);
}

static bool is_same(const struct ov_object *a, const struct job_id *job,
		    const struct object_hash *hash)
{
	return memcmp(&a->job, job, sizeof(*job)) == 0 &&
	       memcmp(&a->hash, hash, sizeof(*hash)) == 0;
}

/* --- the promise to keep ----------------------------------------------------------------- */

bool trim_is_pinned(const struct overlay *overlay, const struct job_id *job,
		    const struct object_hash *hash)
{
	uint64_t now_ms = net_now_ms();

	for (uint32_t i = 0; i < OVERLAY_PINS_MAX; i++) {
		const struct pin *pin = &overlay->trim.pins[i];

		if (pin->until_ms > now_ms && !memcmp(&pin->job, job, sizeof(*job)) &&
		    !memcmp(&pin->hash, hash, sizeof(*hash)))
			return true;
	}
	return false;
}

int trim_pin(struct overlay *overlay, const struct job_id *job, const struct object_hash *hash)
{
	uint64_t now_ms = net_now_ms();
	struct trim *trim = &overlay->trim;

	if ((trim->op && is_same(&trim->op->object, job, hash)) ||
	    shed_is_leaving(overlay, job, hash))
		return -EBUSY;
	for (uint32_t i = 0; i < OVERLAY_PINS_MAX; i++) {
		struct pin *pin = &trim->pins[i];

		if (pin->until_ms > now_ms)
			continue;
		*pin = (struct pin){ .job = *job, .hash = *hash, .until_ms = now_ms + TRIM_PIN_MS };
		return 0;
	}
	return -EAGAIN;
}

/* --- one object -------------------------------------------------------------------------- */

static bool op_result(struct fan_leg *leg, int status)
{
	struct trim_op *op = leg->fan->owner;

	for (uint32_t i = 0; status == 0 && i < op->object.holder_count; i++)
		if (node_id_equal(&op->object.holders[i], &leg->node))
			op->vouched |= 1u << i;
	return status == 0;
}

static void drop_run(struct store_task *task)
{
	struct trim_op *op = container_of(task, struct trim_op, task);

	/* The others' promises end. */
	if (net_now_ms() > op->started_ms + TRIM_PIN_MS / 2)
		op->status = -ETIMEDOUT;
	else
		op->status = store_give_up(op->overlay->store, &op->object.job, &op->object.hash);
}

static void remove_self(struct ov_object *object, const struct node_id *self)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < object->holder_count; i++)
		if (!node_id_equal(&object->holders[i], self))
			object->holders[count++] = object->holders[i];
	memset(&object->holders[count], 0,
	       (object->holder_count - count) * sizeof(object->holders[0]));
	object->holder_count = count;
}

static void drop_done(struct store_task *task)
{
	struct trim_op *op = container_of(task, struct trim_op, task);
	struct overlay *overlay = op->overlay;

	if (!task->cancelled && op->status == 0) {
		remove_self(&op->object, &overlay->self);
		log_info("trim: object=%02x%02x%02x%02x holders=%u", op->object.hash.b[0],
			 op->object.hash.b[1], op->object.hash.b[2], op->object.hash.b[3],
			 op->object.holder_count);
		repair_tell(overlay, &op->object);
	} else if (!task->cancelled && op->status != -ENOENT) {
		log_errno(op->status, "trim: drop");
	}
	op_free(op);
}

static void op_asked(struct fan *fan)
{
	struct trim_op *op = fan->owner;
	struct overlay *overlay = op->overlay;
	uint32_t stable;

	fan_free(&op->fan);
	op->asking = false;
	op->task.run = drop_run;
	op->task.done = drop_done;
	if (!core_place_surplus(overlay->core, &overlay->repair.rule, op->object.holders,
				op->object.holder_count, &op->vouched, &stable) ||
	    trim_is_pinned(overlay, &op->object.job, &op->object.hash) ||
	    store_worker_submit(overlay->worker, &op->task) < 0)
		op_free(op);
}

static const struct fan_ops op_ops = { .result = op_result, .finished = op_asked };

static void op_start(struct overlay *overlay, const struct ov_object *object, uint64_t now_ms)
{
	struct trim_op *op = calloc(1, sizeof(*op));
	struct node_id *targets = calloc(OV_HOLDERS_MAX, sizeof(*targets));
	uint32_t count = 0;

	for (uint32_t i = 0; targets && i < object->holder_count; i++)
		if (!node_id_equal(&object->holders[i], &overlay->self))
			targets[count++] = object->holders[i];
	if (!op || !targets) {
		free(op);
		free(targets);
		return;
	}
	op->overlay = overlay;
	op->object = *object;
	op->started_ms = now_ms;
	op->asking = true;
	op->fan = (struct fan){ .overlay = overlay,
				.ops = &op_ops,
				.owner = op,
				.call = { .op = NET_OP_VOUCH, .object = *object },
				.stream_fd = -1,
				.stall_ms = TRIM_ANSWER_MS,
				.wanted = UINT32_MAX,
				.targets = targets,
				.target_count = count };
	overlay->trim.op = op;
	if (fan_start(&op->fan) < 0)
		op_free(op);
}

/* --- what is surplus --------------------------------------------------------------------- */

static int compare_surplus(const void *a, const void *b)
{
	const struct surplus *x = a, *y = b;

	if (core_give_up_before(&x->rank, &y->rank))
		return -1;
	return core_give_up_before(&y->rank, &x->rank);
}

void trim_look(struct overlay *overlay, const struct store_item *items, uint32_t count)
{
	struct trim *trim = &overlay->trim;

	free(trim->items);
	trim->count = trim->at = 0;
	trim->surplus_bytes = 0;
	trim->items = calloc(count + 1, sizeof(*trim->items));
	for (uint32_t i = 0; trim->items && i < count; i++) {
		const struct store_item *item = &items[i];
		uint32_t stable;

		if (!core_place_surplus(overlay->core, &overlay->repair.rule, item->object.holders,
					item->object.holder_count, NULL, &stable))
			continue;
		trim->items[trim->count++] =
			(struct surplus){ .object = item->object,
					  .rank = { .newest = item->newest,
						    .there = stable,
						    .committed_ms = item->put_wall_ms } };
		trim->surplus_bytes += item->object.size;
	}
	if (trim->items)
		qsort(trim->items, trim->count, sizeof(*trim->items), compare_surplus);
}

void trim_tick(struct overlay *overlay, uint64_t now_ms)
{
	struct trim *trim = &overlay->trim;

	while (!trim->op && trim->at < trim->count && store_short_bytes(overlay->store)) {
		const struct surplus *next = &trim->items[trim->at++];

		trim->surplus_bytes -= next->object.size;
		if (!trim_is_pinned(overlay, &next->object.job, &next->object.hash))
			op_start(overlay, &next->object, now_ms);
	}
}

void trim_stop(struct overlay *overlay)
{
	struct trim *trim = &overlay->trim;

	/* An op that drops already is freed by the worker's end. */
	if (trim->op && trim->op->asking)
		op_free(trim->op);
	free(trim->items);
	trim->items = NULL;
	trim->count = trim->at = 0;
	trim->surplus_bytes = 0;
}
