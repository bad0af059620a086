// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Which manifests of a job are kept anywhere: every reachable member is asked, and this host's own
 * store. It is a hint for people, see docs/overlay.md: nothing here decides who owns a job.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "agent/util/io.h"
#include "overlay/half.h"

struct newest_op {
	struct request *request;
	struct fan fan;
	uint32_t count;
	struct ov_found found[OV_FOUND_MAX]; /* in order */
};

static void newest_cancel(struct request *request)
{
	struct newest_op *op = request->state;

	fan_free(&op->fan);
	free(op);
}

static int compare(const struct ov_found *found, const struct ov_object *object)
{
	int order = fence_token_compare(&object->token, &found->token);

	if (order == 0 && object->seq != found->seq)
		order = object->seq > found->seq ? 1 : -1;
	return order ? order : memcmp(&object->hash, &found->manifest, sizeof(object->hash));
}

static void add(struct newest_op *op, const struct ov_object *object, const struct node_id *node)
{
	struct ov_found *row;
	uint32_t at = 0;

	while (at < op->count && compare(&op->found[at], object) < 0)
		at++;
	if (at == OV_FOUND_MAX)
		return;
	row = &op->found[at];
	if (at == op->count || compare(row, object) != 0) {
		if (op->count < OV_FOUND_MAX)
			op->count++;
		memmove(row + 1, row, (op->count - at - 1) * sizeof(*row));
		*row = (struct ov_found){ .token = object->token,
					  .seq = object->seq,
					  .manifest = object->hash,
					  .size = object->size };
	}
	if (row->holder_count < OV_HOLDERS_MAX)
		row->holders[row->holder_count++] = *node;
}

static void newest_answer(struct fan_leg *leg, const uint8_t *bytes, size_t size)
{
	struct ov_object objects[NET_NEWEST_ROWS];
	uint32_t count;

	if (net_newest_decode(bytes, size, objects, &count) < 0)
		return;
	for (uint32_t i = 0; i < count; i++)
		add(leg->fan->owner, &objects[i], &leg->node);
}

static bool newest_result(struct fan_leg *leg, int status)
{
	(void)leg;
	return status == 0;
}

static void finish(struct newest_op *op)
{
	struct request *request = op->request;
	_cleanup_close_ int fd = memfd_new("found");
	int r = fd < 0 ? fd : 0;

	if (r == 0 && op->count > 0)
		r = write_full(fd, op->found, op->count * sizeof(op->found[0]));
	if (r == 0)
		r = memfd_seal(fd);
	memset(&request->msg.u, 0, sizeof(request->msg.u));
	request->msg.u.count = op->count;
	request_finish(request, r, r < 0 ? -1 : take_fd(fd));
}

static void newest_finished(struct fan *fan)
{
	finish(fan->owner);
}

static const struct fan_ops newest_ops = { .answer = newest_answer,
					   .result = newest_result,
					   .finished = newest_finished };

/* The own store first; its disk is waited for by the worker. */
struct own {
	struct store_task task;
	struct overlay *overlay;
	uint64_t request_id;
	struct job_id job;
	struct ov_object objects[STORE_NEWEST_MAX];
	uint32_t count;
	int status;
};

static void own_run(struct store_task *task)
{
	struct own *own = container_of(task, struct own, task);

	own->status = store_newest(own->overlay->store, &own->job, own->objects, &own->count);
}

static void own_done(struct store_task *task)
{
	struct own *own = container_of(task, struct own, task);
	struct request *request = request_find(own->overlay, own->request_id);
	struct newest_op *op = request ? request->state : NULL;

	if (op && !task->cancelled) {
		for (uint32_t i = 0; own->status == 0 && i < own->count; i++)
			add(op, &own->objects[i], &own->overlay->self);
		op->fan.target_count = driver_live_peers(own->overlay, &op->fan.targets);
		if (fan_start(&op->fan) < 0)
			request_finish(request, -ENOMEM, -1);
	}
	free(own);
}

void newest_find(struct request *request)
{
	struct newest_op *op = calloc(1, sizeof(*op));
	struct own *own = calloc(1, sizeof(*own));
	int r = op && own ? 0 : -ENOMEM;

	if (r == 0) {
		op->request = request;
		op->fan = (struct fan){ .overlay = request->overlay,
					.ops = &newest_ops,
					.owner = op,
					.call = { .op = NET_OP_NEWEST,
						  .object.job = request->msg.u.job.job },
					.stream_fd = -1,
					.stall_ms = OVERLAY_LIST_STALL_MS,
					.wanted = UINT32_MAX };
		own->task.run = own_run;
		own->task.done = own_done;
		own->overlay = request->overlay;
		own->request_id = request->id;
		own->job = request->msg.u.job.job;
		r = store_worker_submit(request->overlay->worker, &own->task);
	}
	if (r < 0) {
		free(op);
		free(own);
		request_finish(request, r, -1);
		return;
	}
	request->state = op;
	request->cancel = newest_cancel;
}
