// SPDX-License-Identifier: LGPL-2.1-or-later
/* What this half only carries: register lists, agents' orders, joins. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define LOG_TAG "overlay"
#include "agent/util/io.h"
#include "agent/util/log.h"
#include "overlay/half.h"

/* --- LIST ------------------------------------------------------------------------------ */

struct list_leg {
	size_t size;
	struct job_value value; /* being received */
};

struct list_op {
	struct request *request;
	struct fan fan;
	struct list_leg legs[OVERLAY_FAN_WIDTH];
	struct job_value *values;
	uint32_t count, room;
};

static void list_cancel(struct request *request)
{
	struct list_op *op = request->state;

	fan_free(&op->fan);
	free(op->values);
	free(op);
}

/* Within one token: held, then released, then ended, then collected. */
static int state_rank(uint32_t state)
{
	switch (state) {
	case JOB_STATE_HELD:
		return 1;
	case JOB_STATE_IDLE:
		return 2;
	case JOB_STATE_COLLECTED:
		return 4;
	default:
		return 3;
	}
}

static bool is_newer(const struct job_value *a, const struct job_value *b)
{
	int order = fence_token_compare(&a->token, &b->token);
	uint64_t seq_a = a->history_count ? a->history[0].seq : 0;
	uint64_t seq_b = b->history_count ? b->history[0].seq : 0;

	if (order == 0)
		order = state_rank(a->state) - state_rank(b->state);
	return order ? order > 0 : seq_a > seq_b;
}

static int list_merge(struct list_op *op, const struct job_value *value)
{
	for (uint32_t i = 0; i < op->count; i++) {
		if (memcmp(&op->values[i].job, &value->job, sizeof(value->job)) != 0)
			continue;
		if (is_newer(value, &op->values[i]))
			op->values[i] = *value;
		return 0;
	}
	if (op->count >= OVERLAY_LIST_MAX)
		return -EFBIG;
	if (op->count == op->room) {
		uint32_t room = op->room ? op->room * 2 : 32;
		struct job_value *more = realloc(op->values, room * sizeof(*more));

		if (!more)
			return -ENOMEM;
		op->values = more;
		op->room = room;
	}
	op->values[op->count++] = *value;
	return 0;
}

static struct list_leg *leg_of(struct fan_leg *leg)
{
	struct list_op *op = leg->fan->owner;

	return &op->legs[leg - leg->fan->legs];
}

static void list_begin(struct fan_leg *leg)
{
	leg_of(leg)->size = 0;
}

static int list_data(struct fan_leg *leg, uint32_t total, const uint8_t *bytes, size_t size)
{
	struct list_leg *part = leg_of(leg);

	if (total % sizeof(part->value) != 0 || total / sizeof(part->value) > OV_JOBS_MAX)
		return -EBADMSG;
	while (size > 0) {
		size_t room = sizeof(part->value) - part->size;
		size_t take = size < room ? size : room;
		int r;

		memcpy((uint8_t *)&part->value + part->size, bytes, take);
		part->size += take;
		bytes += take;
		size -= take;
		if (part->size < sizeof(part->value))
			break;
		part->size = 0;
		if (!net_value_sane(&part->value))
			return -EBADMSG;
		r = list_merge(leg->fan->owner, &part->value);
		if (r < 0)
			return r;
	}
	return 0;
}

static bool list_result(struct fan_leg *leg, int status)
{
	(void)leg;
	return status == 0;
}

static void list_finished(struct fan *fan)
{
	struct list_op *op = fan->owner;
	struct request *request = op->request;
	_cleanup_close_ int fd = memfd_new("jobs");
	int r = fd < 0 ? fd : 0;

	if (r == 0 && op->count > 0)
		r = write_full(fd, op->values, op->count * sizeof(*op->values));
	if (r == 0)
		r = memfd_seal(fd);
	memset(&request->msg.u, 0, sizeof(request->msg.u));
	request->msg.u.count = op->count;
	request_finish(request, r, r < 0 ? -1 : take_fd(fd));
}

static const struct fan_ops list_ops = { .data = list_data,
					 .begin = list_begin,
					 .result = list_result,
					 .finished = list_finished };

void relay_list(struct request *request)
{
	struct overlay *overlay = request->overlay;
	struct list_op *op = calloc(1, sizeof(*op));
	const struct job_value *value;
	int r = op ? 0 : -ENOMEM;

	for (uint32_t i = 0; r == 0 && (value = core_register(overlay->core, i)); i++)
		r = list_merge(op, value);
	if (r < 0) {
		if (op)
			free(op->values);
		free(op);
		request_finish(request, r, -1);
		return;
	}
	op->request = request;
	op->fan = (struct fan){ .overlay = overlay,
				.ops = &list_ops,
				.owner = op,
				.call = { .op = NET_OP_LIST },
				.stream_fd = -1,
				.stall_ms = OVERLAY_LIST_STALL_MS,
				.wanted = UINT32_MAX };
	op->fan.target_count = driver_live_peers(overlay, &op->fan.targets);
	request->state = op;
	request->cancel = list_cancel;
	r = fan_start(&op->fan);
	if (r < 0)
		request_finish(request, r, -1);
}

/* --- ORDER ----------------------------------------------------------------------------- */

struct call_op {
	struct request *request;
	uint64_t id;
};

static void call_cancel(struct request *request)
{
	struct call_op *op = request->state;

	if (op->id)
		net_call_cancel(request->overlay->net, op->id);
	free(op);
}

static int no_stream(void *ctx, uint32_t total, const uint8_t *bytes, size_t size)
{
	(void)ctx;
	(void)total;
	(void)bytes;
	(void)size;
	return -EBADMSG;
}

static void order_answer(struct request *request, int status, const uint8_t *bytes, size_t size)
{
	struct ov_order *order = &request->msg.u.order;

	order->size = 0;
	if (status == 0 && size <= sizeof(order->bytes)) {
		if (size > 0)
			memcpy(order->bytes, bytes, size);
		order->size = (uint32_t)size;
	}
	request_finish(request, status, -1);
}

static void order_done(void *ctx, int status, const uint8_t *bytes, size_t size)
{
	struct call_op *op = ctx;

	op->id = 0;
	/* It may have been carried out all the same: the caller has to ask, not to repeat. */
	order_answer(op->request, status == -ECONNRESET ? -EAGAIN : status, bytes, size);
}

static const struct net_caller order_caller = { .data = no_stream, .done = order_done };

static int order_send(struct request *request, uint32_t timeout_ms)
{
	struct ov_order *order = &request->msg.u.order;
	struct net_call call = { .op = NET_OP_ORDER,
				 .order_timeout_ms = timeout_ms,
				 .order_size = order->size,
				 .order_bytes = order->bytes };
	struct call_op *op = calloc(1, sizeof(*op));

	if (!op)
		return -ENOMEM;
	op->request = request;
	request->state = op;
	request->cancel = call_cancel;
	return net_call(request->overlay->net, &order->node, &call, -1, timeout_ms, &order_caller,
			op, &op->id);
}

void relay_order(struct request *request)
{
	struct overlay *overlay = request->overlay;
	struct ov_order *order = &request->msg.u.order;
	uint32_t timeout_ms = order->timeout_ms;
	struct ov_msg event = { .op = OV_EV_ORDER };
	int r = 0;

	if (timeout_ms == 0 || timeout_ms > OVERLAY_ORDER_MS_MAX)
		timeout_ms = OVERLAY_ORDER_MS_MAX;
	if (order->size > OV_ORDER_MAX)
		r = -EINVAL;
	else
		request->deadline_ms = request->deadline_ms - OVERLAY_REQUEST_MS + timeout_ms;
	if (r == 0 && node_id_equal(&order->node, &overlay->self)) {
		event.u.order = *order;
		event.u.order.call_id = request->id | OVERLAY_LOCAL_CALL;
		overlay_event(overlay, &event);
		return;
	}
	if (r == 0)
		r = order_send(request, timeout_ms);
	if (r < 0)
		request_finish(request, r, -1);
}

void relay_order_reply(struct overlay *overlay, const struct ov_msg *msg)
{
	const struct ov_order *order = &msg->u.order;
	struct request *request;
	int status = msg->status > 0 ? -EINVAL : msg->status;

	if (order->size > OV_ORDER_MAX)
		return;
	if (!(order->call_id & OVERLAY_LOCAL_CALL)) {
		net_reply(overlay->net, order->call_id, status, order->bytes, order->size, -1, 0);
		return;
	}
	request = request_find(overlay, order->call_id & ~OVERLAY_LOCAL_CALL);
	if (request && request->msg.op == OV_ORDER_CALL)
		order_answer(request, status, order->bytes, order->size);
}

/* --- JOIN ------------------------------------------------------------------------------ */

static void join_done(void *ctx, int status, const uint8_t *bytes, size_t size)
{
	struct call_op *op = ctx;
	struct request *request = op->request;
	struct ov_join *join = &request->msg.u.join;

	op->id = 0;
	memset(join, 0, sizeof(*join));
	if (size > 0 && size <= sizeof(join->bytes)) {
		memcpy(join->bytes, bytes, size);
		join->size = (uint32_t)size;
	}
	/* A closed connection is all that one learns of a wrong or used token. */
	request_finish(request, status == -ECONNRESET ? -EPERM : status, -1);
}

static const struct net_caller join_caller = { .data = no_stream, .done = join_done };

void relay_join(struct request *request)
{
	struct call_op *op = calloc(1, sizeof(*op));
	int r = op ? 0 : -ENOMEM;

	if (r == 0) {
		op->request = request;
		request->state = op;
		request->cancel = call_cancel;
		r = net_join(request->overlay->net, &request->msg.u.join, &join_caller, op,
			     &op->id);
	}
	if (r < 0)
		request_finish(request, r, -1);
}

void relay_join_reply(struct overlay *overlay, const struct ov_msg *msg)
{
	const struct ov_join *join = &msg->u.join;
	int status = msg->status > 0 ? -EINVAL : msg->status;

	if (join->size <= OV_ORDER_MAX)
		net_join_reply(overlay->net, join->call_id, status, join->bytes, join->size);
}
