// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Copies that are missing, made by those who have one: no owner has to be there, nor a guardian.
 *
 *   a round: list what lies here -> who is missing? (core) -> in order: bucket, read, PUT, tell
 *
 * Of an object's holders that are there the first one in the list acts. What another has made
 * meanwhile is known when it says so; if it could not, one copy too many is made, and kept.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LOG_TAG "overlay"
#include "agent/util/io.h"
#include "agent/util/log.h"
#include "overlay/half.h"
#include "overlay/net/internal.h"

enum { ROUND_MS = 5 * 60 * 1000, RATE_BYTES_S = 2000000, FLUSH_MS = 2000 };

/* --- who has it ------------------------------------------------------------------------ */

struct tell {
	LIST_ENTRY(tell) entry;
	struct fan fan;
};

static bool tell_result(struct fan_leg *leg, int status)
{
	if (status < 0)
		log_debug("holders: peer=%02x%02x status=%d", leg->node.b[0], leg->node.b[1],
			  status);
	return status == 0;
}

static void tell_finished(struct fan *fan)
{
	struct tell *tell = fan->owner;

	fan->overlay->repair.tell_count--;
	LIST_REMOVE(tell, entry);
	fan_free(fan);
	free(tell);
}

static const struct fan_ops tell_ops = { .result = tell_result, .finished = tell_finished };

void repair_tell(struct overlay *overlay, const struct ov_object *object)
{
	struct tell *tell = calloc(1, sizeof(*tell));
	struct node_id *targets = calloc(OV_HOLDERS_MAX, sizeof(*targets));
	uint32_t count = 0;

	for (uint32_t i = 0; targets && i < object->holder_count; i++)
		if (!node_id_equal(&object->holders[i], &overlay->self))
			targets[count++] = object->holders[i];
	if (!tell || count == 0 || overlay->repair.tell_count >= OVERLAY_TELLS_MAX) {
		free(targets);
		free(tell);
		return;
	}
	tell->fan = (struct fan){ .overlay = overlay,
				  .ops = &tell_ops,
				  .owner = tell,
				  .call = { .op = NET_OP_HOLDERS, .object = *object },
				  .stream_fd = -1,
				  .stall_ms = OVERLAY_PUT_STALL_MS,
				  .wanted = UINT32_MAX,
				  .targets = targets,
				  .target_count = count };
	LIST_INSERT_HEAD(&overlay->repair.tells, tell, entry);
	overlay->repair.tell_count++;
	if (fan_start(&tell->fan) < 0)
		tell_finished(&tell->fan);
}

struct note {
	struct store_task task;
	struct overlay *overlay;
	int status;
	uint32_t count;
	struct ov_object objects[];
};

static void note_run(struct store_task *task)
{
	struct note *note = container_of(task, struct note, task);

	note->status = store_set_holders(note->overlay->store, note->objects, note->count);
}

static void note_done(struct store_task *task)
{
	struct note *note = container_of(task, struct note, task);

	if (note->status < 0 && !task->cancelled)
		log_errno(note->status, "holders: write: count=%u", note->count);
	free(note);
}

/* What is lost here with a crash is known to the other holders. */
static void flush_heard(struct overlay *overlay)
{
	struct heard *heard = &overlay->repair.heard;
	struct note *note = calloc(1, sizeof(*note) + heard->count * sizeof(note->objects[0]));

	if (!note)
		return;
	note->task.run = note_run;
	note->task.done = note_done;
	note->overlay = overlay;
	note->count = heard->count;
	memcpy(note->objects, heard->objects, heard->count * sizeof(note->objects[0]));
	if (store_worker_submit(overlay->worker, &note->task) < 0) {
		free(note);
		return;
	}
	heard->count = 0;
}

void repair_heard(struct overlay *overlay, const struct ov_object *object)
{
	struct heard *heard = &overlay->repair.heard;

	if (heard->count == OVERLAY_HEARD_MAX)
		flush_heard(overlay);
	if (heard->count == OVERLAY_HEARD_MAX)
		return;
	if (heard->count == 0)
		heard->since_ms = net_now_ms();
	heard->objects[heard->count++] = *object;
}

/* --- one object ------------------------------------------------------------------------ */

struct repair_op {
	struct store_task task;
	struct overlay *overlay;
	struct ov_object object; /* holders: those before */
	struct node_id *targets;
	uint32_t target_count, made_count;
	struct node_id made[CORE_PLACE_MAX];
	struct fan fan;
	bool sending;
	int fd, status;
	uint32_t size;
};

static void op_free(struct repair_op *op)
{
	if (op->sending)
		fan_free(&op->fan);
	else
		free(op->targets);
	op->overlay->repair.op = NULL;
	close_fdp(&op->fd);
	free(op);
}

static bool op_result(struct fan_leg *leg, int status)
{
	struct repair_op *op = leg->fan->owner;

	if (status < 0) {
		log_debug("repair: peer=%02x%02x status=%d", leg->node.b[0], leg->node.b[1],
			  status);
		return false;
	}
	op->made[op->made_count++] = leg->node;
	return true;
}

static bool is_alive(struct overlay *overlay, const struct node_id *id)
{
	const struct member_info *row;

	for (uint32_t i = 0; (row = core_member(overlay->core, i, net_now_ms())); i++)
		if (node_id_equal(&row->id, id))
			return row->state == MEMBER_ALIVE;
	return false;
}

/* Those that are there, then the new ones, then the rest: the list has an end. */
static void merge_holders(struct repair_op *op)
{
	struct ov_object *object = &op->object;
	struct node_id old[OV_HOLDERS_MAX];
	uint32_t old_count = object->holder_count, count = 0;

	memcpy(old, object->holders, sizeof(old));
	memset(object->holders, 0, sizeof(object->holders));
	for (uint32_t pass = 0; pass < 2; pass++) {
		for (uint32_t i = 0; i < old_count && count < OV_HOLDERS_MAX; i++)
			if (is_alive(op->overlay, &old[i]) == (pass == 0))
				object->holders[count++] = old[i];
		for (uint32_t i = 0; pass == 0 && i < op->made_count && count < OV_HOLDERS_MAX; i++)
			object->holders[count++] = op->made[i];
	}
	object->holder_count = count;
}

static void op_finished(struct fan *fan)
{
	struct repair_op *op = fan->owner;
	struct overlay *overlay = op->overlay;

	if (op->made_count > 0) {
		merge_holders(op);
		log_info("repair: object=%02x%02x%02x%02x copies=%u holders=%u",
			 op->object.hash.b[0], op->object.hash.b[1], op->object.hash.b[2],
			 op->object.hash.b[3], op->made_count, op->object.holder_count);
		repair_heard(overlay, &op->object);
		flush_heard(overlay); /* before the next round lists it */
		repair_tell(overlay, &op->object);
	}
	op_free(op);
}

static const struct fan_ops op_ops = { .result = op_result, .finished = op_finished };

static void op_read(struct store_task *task)
{
	struct repair_op *op = container_of(task, struct repair_op, task);

	op->status = store_get(op->overlay->store, &op->object.hash, &op->fd, &op->size);
}

static void op_send(struct store_task *task)
{
	struct repair_op *op = container_of(task, struct repair_op, task);

	if (task->cancelled || op->status < 0 || op->size != op->object.size) {
		op_free(op);
		return;
	}
	op->fan = (struct fan){
		.overlay = op->overlay,
		.ops = &op_ops,
		.owner = op,
		.call = { .op = NET_OP_PUT, .stream_size = op->size, .object = op->object },
		.stream_fd = op->fd,
		.stall_ms = OVERLAY_PUT_STALL_MS,
		.wanted = op->target_count,
		.width = 1,
		.targets = op->targets,
		.target_count = op->target_count
	};
	op->sending = true;
	if (fan_start(&op->fan) < 0)
		op_free(op);
}

static void op_start(struct overlay *overlay, const struct ov_object *object,
		     const struct node_id *nodes, uint32_t count)
{
	struct repair_op *op = calloc(1, sizeof(*op));

	if (!op)
		return;
	op->task.run = op_read;
	op->task.done = op_send;
	op->overlay = overlay;
	op->object = *object;
	op->fd = -1;
	op->target_count = count;
	op->targets = malloc(count * sizeof(*nodes));
	if (op->targets)
		memcpy(op->targets, nodes, count * sizeof(*nodes));
	overlay->repair.op = op;
	if (!op->targets || store_worker_submit(overlay->worker, &op->task) < 0)
		op_free(op);
}

/* --- a round --------------------------------------------------------------------------- */

struct list {
	struct store_task task;
	struct overlay *overlay;
	struct store_item *items;
	uint32_t count;
	int status;
};

static void list_run(struct store_task *task)
{
	struct list *list = container_of(task, struct list, task);

	list->status = store_list_held(list->overlay->store, &list->items, &list->count);
}

static uint32_t plan(struct overlay *overlay, const struct store_item *item, uint32_t *ret_there,
		     struct node_id *ret_nodes)
{
	const struct ov_object *object = &item->object;

	return core_place_repair(overlay->core, &overlay->repair.rule, &object->hash, object->size,
				 object->holders, object->holder_count, ret_there, ret_nodes);
}

struct ranked {
	struct core_repair_item rank;
	struct store_item item;
};

static int compare_ranked(const void *a, const void *b)
{
	const struct ranked *x = a, *y = b;

	if (core_repair_before(&x->rank, &y->rank))
		return -1;
	return core_repair_before(&y->rank, &x->rank);
}

/* Keeps those that miss copies, in order. */
static void rank_items(struct overlay *overlay, struct list *list)
{
	struct ranked *ranked = calloc(list->count + 1, sizeof(*ranked));
	struct node_id nodes[CORE_PLACE_MAX];
	uint32_t count = 0, there;

	for (uint32_t i = 0; ranked && i < list->count; i++) {
		if (!plan(overlay, &list->items[i], &there, nodes))
			continue;
		ranked[count++] =
			(struct ranked){ .rank = { .newest = list->items[i].newest,
						   .there = there,
						   .committed_ms = list->items[i].put_wall_ms },
					 .item = list->items[i] };
	}
	if (ranked)
		qsort(ranked, count, sizeof(*ranked), compare_ranked);
	for (uint32_t i = 0; i < count; i++)
		list->items[i] = ranked[i].item;
	free(ranked);
	overlay->repair.items = list->items;
	overlay->repair.count = count;
	overlay->repair.at = 0;
}

static void list_done(struct store_task *task)
{
	struct list *list = container_of(task, struct list, task);
	struct repair *repair = &list->overlay->repair;

	repair->listing = false;
	repair->next_ms = net_now_ms() + repair->round_ms;
	if (task->cancelled || list->status < 0) {
		if (!task->cancelled)
			log_errno(list->status, "repair: list");
		free(list->items);
	} else {
		trim_look(list->overlay, list->items, list->count);
		rank_items(list->overlay, list);
	}
	free(list);
}

static void start_round(struct overlay *overlay)
{
	struct list *list = calloc(1, sizeof(*list));

	free(overlay->repair.items);
	overlay->repair.items = NULL;
	overlay->repair.count = 0;
	if (!list)
		return;
	list->task.run = list_run;
	list->task.done = list_done;
	list->overlay = overlay;
	overlay->repair.listing = true;
	if (store_worker_submit(overlay->worker, &list->task) < 0) {
		overlay->repair.listing = false;
		free(list);
	}
}

void repair_tick(struct overlay *overlay, uint64_t now_ms)
{
	struct repair *repair = &overlay->repair;
	struct node_id nodes[CORE_PLACE_MAX];
	const struct store_item *item;
	uint32_t count, there;

	if (repair->heard.count && now_ms >= repair->heard.since_ms + FLUSH_MS)
		flush_heard(overlay);
	if (!repair->round_ms || repair->listing || repair->op)
		return;
	if (repair->at == repair->count) {
		if (now_ms >= repair->next_ms)
			start_round(overlay);
		return;
	}
	item = &repair->items[repair->at];
	/* Things have changed since the round began. */
	count = plan(overlay, item, &there, nodes);
	if (count &&
	    !core_bucket_take(&repair->bucket, now_ms, (uint64_t)item->object.size * count))
		return;
	repair->at++;
	if (count)
		op_start(overlay, &item->object, nodes, count);
}

void repair_start(struct overlay *overlay, const struct ov_start *start)
{
	struct repair *repair = &overlay->repair;
	uint64_t rate = start->repair_bytes_s ? start->repair_bytes_s : RATE_BYTES_S;
	uint64_t burst = rate * 10 > 2 * OV_PACK_MAX ? rate * 10 : 2 * OV_PACK_MAX;

	repair->rule = core_place_rule_default;
	if (start->repair_lazy_ms)
		repair->rule.lazy_ms = start->repair_lazy_ms;
	if (start->repair_gone_ms)
		repair->rule.gone_ms = start->repair_gone_ms;
	repair->round_ms = start->repair_round_ms ? start->repair_round_ms : ROUND_MS;
	repair->bucket = (struct core_bucket){ .rate_bytes = rate,
					       .burst_bytes = burst,
					       .level_bytes = burst,
					       .at_ms = net_now_ms() };
	/* Who is missing is known when those who are not have had time to be heard. */
	repair->next_ms = net_now_ms() + repair->rule.lazy_ms;
}

void repair_stop(struct overlay *overlay)
{
	struct repair *repair = &overlay->repair;

	repair->round_ms = 0;
	while (!LIST_EMPTY(&repair->tells))
		tell_finished(&LIST_FIRST(&repair->tells)->fan);
	/* An op that still reads is freed by the worker's end. */
	if (repair->op && repair->op->sending)
		op_free(repair->op);
	free(repair->items);
	repair->items = NULL;
	repair->count = repair->at = 0;
}
