// SPDX-License-Identifier: LGPL-2.1-or-later
/* Objects: copies to peers, and what peers may forget. Back from peers: get.c. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#define LOG_TAG "overlay"
#include "agent/util/io.h"
#include "agent/util/log.h"
#include "overlay/half.h"

enum { IO_BYTES = 256 << 10 };

/* --- PUT ------------------------------------------------------------------------------- */

/*
 * Of an object that is offered the first candidates are asked whether they have it for another job
 * (REFER); what is still missing is sent (PUT). Any other object is sent at once.
 */
struct put_op {
	struct request *request;
	struct node_id *candidates; /* in order */
	uint32_t candidate_count;
	uint32_t asked;		     /* the first of them */
	int answers[OV_HOLDERS_MAX]; /* what these said */
	struct fan fan;
	int worst; /* why the last peer refused */
	bool timed;
};

static void put_timed(struct put_op *op, uint32_t bytes)
{
	if (op->timed)
		link_end(&op->request->overlay->link, now_boot_ns(), bytes);
	op->timed = false;
}

static void put_free(struct put_op *op)
{
	put_timed(op, 0);
	fan_free(&op->fan);
	free(op->candidates);
	free(op);
}

static void put_cancel(struct request *request)
{
	put_free(request->state);
}

static void put_holder(struct put_op *op, const struct node_id *node)
{
	struct ov_object *object = &op->request->msg.u.object;

	object->holders[object->holder_count++] = *node;
}

static bool put_result(struct fan_leg *leg, int status)
{
	struct put_op *op = leg->fan->owner;

	if (status < 0) {
		log_debug("put: peer=%02x%02x status=%d", leg->node.b[0], leg->node.b[1], status);
		/* -ESTALE is the register's word alone, and no single peer's. */
		if (op->worst != -ENOSPC)
			op->worst = status == -ENOSPC ? -ENOSPC : -EHOSTUNREACH;
		/* A peer that is gone took time that says nothing of the way to the others. */
		if (status != -ENOSPC)
			put_timed(op, 0);
		return false;
	}
	put_holder(op, &leg->node);
	op->request->msg.u.object.sent++;
	return true;
}

static void put_finished(struct fan *fan)
{
	struct put_op *op = fan->owner;
	struct request *request = op->request;
	struct ov_object *object = &request->msg.u.object;
	uint64_t kib_s, bytes = (uint64_t)object->size * fan->wanted / object->copies;
	int status = object->holder_count > 0 ? 0 : op->worst;

	/* An object counts once with all its copies: with some of them, that much of it. */
	put_timed(op, object->sent > 0 ? (uint32_t)bytes : 0);
	kib_s = link_bytes_per_s(&request->overlay->link) >> 10;
	object->link_kib_s = kib_s < UINT32_MAX ? (uint32_t)kib_s : UINT32_MAX;
	if (status == 0)
		repair_tell(request->overlay, object);
	if (status == 0)
		credit_put(request->overlay, object);
	request_finish(request, status, -1);
}

static const struct fan_ops put_ops = { .result = put_result, .finished = put_finished };

/* Those without it, in order; at last those that did not say so: they may be gone. */
static uint32_t put_targets(const struct put_op *op, struct node_id *ret_nodes)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < op->candidate_count; i++)
		if (i >= op->asked || op->answers[i] == -ENOENT)
			ret_nodes[count++] = op->candidates[i];
	for (uint32_t i = 0; i < op->asked; i++)
		if (op->answers[i] < 0 && op->answers[i] != -ENOENT)
			ret_nodes[count++] = op->candidates[i];
	return count;
}

/* What holders do not have yet. */
static int put_send(struct put_op *op)
{
	struct request *request = op->request;
	const struct ov_object *object = &request->msg.u.object;
	struct node_id *targets = malloc(op->candidate_count * sizeof(*targets));
	uint32_t missing = object->copies - object->holder_count;

	if (!targets)
		return -ENOMEM;
	op->fan = (struct fan){
		.overlay = request->overlay,
		.ops = &put_ops,
		.owner = op,
		.call = { .op = NET_OP_PUT, .stream_size = object->size, .object = *object },
		.stream_fd = request->fd,
		.stall_ms = OVERLAY_PUT_STALL_MS,
		.wanted = missing,
		.width = missing,
		.targets = targets,
		.target_count = put_targets(op, targets)
	};
	op->timed = missing > 0 && object->size >= LINK_OBJECT_MIN;
	if (op->timed)
		link_begin(&request->overlay->link, now_boot_ns());
	return fan_start(&op->fan);
}

static bool refer_result(struct fan_leg *leg, int status)
{
	struct put_op *op = leg->fan->owner;

	for (uint32_t i = 0; i < op->asked; i++)
		if (node_id_equal(&op->candidates[i], &leg->node))
			op->answers[i] = status;
	if (status < 0) {
		log_debug("refer: peer=%02x%02x status=%d", leg->node.b[0], leg->node.b[1], status);
		return false;
	}
	put_holder(op, &leg->node);
	return true;
}

static void refer_finished(struct fan *fan)
{
	struct put_op *op = fan->owner;
	int r;

	fan_free(fan);
	*fan = (struct fan){ 0 };
	r = put_send(op);
	if (r < 0)
		request_finish(op->request, r, -1);
}

static const struct fan_ops refer_ops = { .result = refer_result, .finished = refer_finished };

static int refer_ask(struct put_op *op)
{
	struct request *request = op->request;
	const struct ov_object *object = &request->msg.u.object;
	uint32_t count = op->candidate_count < object->copies ? op->candidate_count :
								object->copies;
	struct node_id *targets = malloc(count * sizeof(*targets));

	if (!targets)
		return -ENOMEM;
	memcpy(targets, op->candidates, count * sizeof(*targets));
	op->asked = count;
	op->fan = (struct fan){ .overlay = request->overlay,
				.ops = &refer_ops,
				.owner = op,
				.call = { .op = NET_OP_REFER, .object = *object },
				.stream_fd = -1,
				.stall_ms = OVERLAY_PUT_STALL_MS,
				.wanted = count,
				.width = count,
				.targets = targets,
				.target_count = count };
	return fan_start(&op->fan);
}

/* Put into the own store: only a host that is alone does so. */
struct local_put {
	struct store_task task;
	struct overlay *overlay;
	uint64_t request_id;
	struct ov_object object;
	int fd;
	int status;
};

static void local_put_run(struct store_task *task)
{
	struct local_put *local = container_of(task, struct local_put, task);
	_cleanup_free_ uint8_t *buf = malloc(IO_BYTES);
	struct store_put *put = NULL;
	uint32_t done = 0;
	int r = buf ? 0 : -ENOMEM;

	if (r == 0)
		r = store_put_begin(local->overlay->store, &local->object, &put);
	while (r == 0 && done < local->object.size) {
		uint32_t left = local->object.size - done;
		uint32_t part = left < IO_BYTES ? left : IO_BYTES;

		r = pread_full(local->fd, buf, part, (off_t)done);
		if (r == 0)
			r = store_put_write(put, buf, part);
		done += part;
	}
	if (r == 0)
		r = store_put_commit(put);
	else
		store_put_abort(put);
	local->status = r;
}

static void local_put_done(struct store_task *task)
{
	struct local_put *local = container_of(task, struct local_put, task);
	struct request *request = request_find(local->overlay, local->request_id);

	if (request && !task->cancelled) {
		if (local->status == 0) {
			request->msg.u.object.holders[0] = local->overlay->self;
			request->msg.u.object.holder_count = 1;
			request->msg.u.object.sent = 1;
		}
		request_finish(request, local->status, -1);
	}
	close_fdp(&local->fd);
	free(local);
}

static void put_alone(struct request *request)
{
	struct local_put *local = calloc(1, sizeof(*local));
	int r = local ? 0 : -ENOMEM;

	if (r == 0) {
		local->task.run = local_put_run;
		local->task.done = local_put_done;
		local->overlay = request->overlay;
		local->request_id = request->id;
		local->object = request->msg.u.object;
		local->fd = fcntl(request->fd, F_DUPFD_CLOEXEC, 3);
		r = local->fd < 0 ? -errno : 0;
	}
	if (r == 0)
		r = store_worker_submit(request->overlay->worker, &local->task);
	if (r == 0)
		return;
	if (local)
		close_fdp(&local->fd);
	free(local);
	request_finish(request, r, -1);
}

static int put_check(const struct request *request)
{
	const struct ov_object *object = &request->msg.u.object;
	uint64_t size = 0;
	int r = memfd_size(request->fd, OV_PACK_MAX, &size);

	if (r < 0)
		return r;
	if (size == 0 || size != object->size)
		return -EINVAL;
	if (object->copies == 0 || object->copies > OV_HOLDERS_MAX)
		return -EINVAL;
	return 0;
}

static int put_start(struct request *request, struct node_id *candidates_take, uint32_t count)
{
	struct put_op *op = calloc(1, sizeof(*op));

	if (!op) {
		free(candidates_take);
		return -ENOMEM;
	}
	op->request = request;
	op->candidates = candidates_take;
	op->candidate_count = count;
	op->worst = -EHOSTUNREACH;
	request->state = op;
	request->cancel = put_cancel;
	return request->msg.u.object.offer ? refer_ask(op) : put_send(op);
}

void object_put(struct request *request)
{
	struct overlay *overlay = request->overlay;
	struct ov_object *object = &request->msg.u.object;
	struct node_id *nodes = NULL, *live = NULL;
	uint32_t count = 0, live_count;
	int r = put_check(request);

	object->holder_count = object->sent = 0;
	memset(object->holders, 0, sizeof(object->holders));
	if (r == 0) {
		nodes = malloc(OVERLAY_PUT_CANDIDATES_MAX * sizeof(*nodes));
		r = nodes ? 0 : -ENOMEM;
	}
	if (r == 0)
		count = core_place(overlay->core, &object->hash, object->size, &overlay->self,
				   OVERLAY_PUT_CANDIDATES_MAX, nodes);
	if (r == 0 && count == 0) {
		free(nodes);
		live_count = driver_live_peers(overlay, &live);
		free(live);
		if (live_count == 0) {
			put_alone(request);
			return;
		}
		/* There are others, and none of them has room or is willing. */
		request_finish(request, -ENOSPC, -1);
		return;
	}
	if (r == 0)
		r = put_start(request, nodes, count);
	else
		free(nodes);
	if (r < 0)
		request_finish(request, r, -1);
}

/* --- RETAIN ---------------------------------------------------------------------------- */

struct retain_op {
	struct request *request;
	struct fan fan;
	bool stale, silent;
	uint32_t answered_count;
	struct node_id answered[OV_MEMBERS_MAX];
};

/* However it ends: some have answered by now. */
static void retain_cancel(struct request *request)
{
	struct retain_op *op = request->state;

	credit_retained(request->overlay, &request->msg.u.retain, request->fd, op->answered,
			op->answered_count, op->stale && op->answered_count == 0);
	fan_free(&op->fan);
	free(op);
}

static bool retain_result(struct fan_leg *leg, int status)
{
	struct retain_op *op = leg->fan->owner;

	if (status == -ESTALE)
		op->stale = true;
	else if (status < 0)
		op->silent = true;
	else if (op->answered_count < OV_MEMBERS_MAX)
		op->answered[op->answered_count++] = leg->node;
	return status == 0;
}

/* Some peer did not hear of it: it keeps too much until the next retain. */
static void retain_finished(struct fan *fan)
{
	struct retain_op *op = fan->owner;
	int status = 0;

	if (fan->yes == 0 && op->stale)
		status = -ESTALE;
	else if (op->silent)
		status = -EAGAIN;
	request_finish(op->request, status, -1);
}

static const struct fan_ops retain_ops = { .result = retain_result, .finished = retain_finished };

struct local_retain {
	struct store_task task;
	struct overlay *overlay;
	struct ov_retain retain;
	struct object_hash *hashes;
};

static void local_retain_run(struct store_task *task)
{
	struct local_retain *local = container_of(task, struct local_retain, task);
	uint32_t dropped = 0;
	int r = store_retain(local->overlay->store, &local->retain, local->hashes, &dropped);

	if (r < 0)
		log_debug("retain: own store: status=%d", r);
}

static void local_retain_done(struct store_task *task)
{
	struct local_retain *local = container_of(task, struct local_retain, task);

	free(local->hashes);
	free(local);
}

/* The own store too; its answer is not waited for. */
static int retain_local(struct request *request)
{
	const struct ov_retain *retain = &request->msg.u.retain;
	size_t size = retain->count * sizeof(struct object_hash);
	struct local_retain *local = calloc(1, sizeof(*local));
	int r;

	if (!local)
		return -ENOMEM;
	local->task.run = local_retain_run;
	local->task.done = local_retain_done;
	local->overlay = request->overlay;
	local->retain = *retain;
	local->hashes = malloc(size + 1);
	r = local->hashes ? 0 : -ENOMEM;
	if (r == 0 && size > 0)
		r = pread_full(request->fd, local->hashes, size, 0);
	if (r == 0)
		r = store_worker_submit(request->overlay->worker, &local->task);
	if (r < 0)
		local_retain_done(&local->task);
	return r;
}

static int retain_check(const struct request *request)
{
	const struct ov_retain *retain = &request->msg.u.retain;
	uint64_t size = 0;
	int r;

	if (retain->count > STORE_RETAIN_MAX)
		return -EINVAL;
	if (retain->count == 0)
		return 0;
	r = memfd_size(request->fd, STORE_RETAIN_MAX * sizeof(struct object_hash), &size);
	if (r < 0)
		return r;
	return size == retain->count * sizeof(struct object_hash) ? 0 : -EINVAL;
}

void object_retain(struct request *request)
{
	const struct ov_retain *retain = &request->msg.u.retain;
	uint32_t stream_size = (uint32_t)(retain->count * sizeof(struct object_hash));
	struct retain_op *op = NULL;
	int r = retain_check(request);

	if (r == 0)
		r = retain_local(request);
	if (r == 0) {
		op = calloc(1, sizeof(*op));
		r = op ? 0 : -ENOMEM;
	}
	if (r < 0) {
		request_finish(request, r, -1);
		return;
	}
	op->request = request;
	op->fan = (struct fan){
		.overlay = request->overlay,
		.ops = &retain_ops,
		.owner = op,
		.call = { .op = NET_OP_RETAIN, .stream_size = stream_size, .retain = *retain },
		.stream_fd = request->fd,
		.stall_ms = OVERLAY_PUT_STALL_MS,
		.wanted = UINT32_MAX
	};
	request->state = op;
	request->cancel = retain_cancel;
	op->fan.target_count = driver_live_peers(request->overlay, &op->fan.targets);
	r = fan_start(&op->fan);
	if (r < 0)
		request_finish(request, r, -1);
}
