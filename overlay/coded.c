// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * CODE: an object becomes shards, each on a host of its own, all of whom know the group.
 * GET of such an object: a group from somebody who has a shard, k shards, and the object of them.
 *
 * A request may be gone while the worker computes: the operation outlives it then, as `orphan`.
 */
#include <errno.h>
#include <openssl/sha.h>
#include <stdlib.h>
#include <string.h>

#define LOG_TAG "overlay"
#include "agent/util/io.h"
#include "agent/util/log.h"
#include "overlay/coded.h"

enum { TELLERS_MAX = 32 };

/* --- CODE -------------------------------------------------------------------------------- */

struct code_op {
	struct store_task task;
	struct request *request;
	struct overlay *overlay;
	bool working, orphan, scattering, telling;
	struct ov_group group;
	int object_fd, status; /* of the work */
	int fds[OV_SHARDS_MAX];
	struct scatter scatter;
	struct fan tell;
};

static void code_free(struct code_op *op)
{
	if (op->scattering)
		scatter_stop(&op->scatter);
	if (op->telling)
		fan_free(&op->tell);
	for (uint32_t i = 0; i < OV_SHARDS_MAX; i++)
		close_fdp(&op->fds[i]);
	close_fdp(&op->object_fd);
	op->overlay->coded_ops--;
	free(op);
}

static void code_cancel(struct request *request)
{
	struct code_op *op = request->state;

	op->orphan = true;
	if (!op->working)
		code_free(op);
}

static bool tell_result(struct fan_leg *leg, int status)
{
	if (status < 0)
		log_debug("group: peer=%02x%02x status=%d", leg->node.b[0], leg->node.b[1], status);
	return status == 0;
}

/* Who does not know the group would drop its shard at the next RETAIN. */
static void tell_finished(struct fan *fan)
{
	struct code_op *op = fan->owner;
	struct request *request = op->request;
	uint32_t count = op->group.k + op->group.m;

	if (fan->yes < count) {
		request_finish(request, -EAGAIN, -1);
		return;
	}
	log_info("coded: object=%02x%02x%02x%02x size=%u k=%u m=%u", op->group.hash.b[0],
		 op->group.hash.b[1], op->group.hash.b[2], op->group.hash.b[3], op->group.size,
		 op->group.k, op->group.m);
	credit_coded(op->overlay, &op->group);
	request->msg.u.group = op->group;
	request_finish(request, 0, -1);
}

static const struct fan_ops tell_ops = { .result = tell_result, .finished = tell_finished };

static void scattered(struct scatter *scatter, int status)
{
	struct code_op *op = scatter->owner;
	uint32_t count = op->group.k + op->group.m;
	struct node_id *targets = status == 0 ? calloc(count, sizeof(*targets)) : NULL;
	int r = status < 0 ? status : targets ? 0 : -ENOMEM;

	if (r == 0) {
		memcpy(targets, op->group.holders, count * sizeof(*targets));
		op->tell = (struct fan){ .overlay = op->overlay,
					 .ops = &tell_ops,
					 .owner = op,
					 .call = { .op = NET_OP_GROUP, .group = op->group },
					 .stream_fd = -1,
					 .stall_ms = OVERLAY_PUT_STALL_MS,
					 .wanted = UINT32_MAX,
					 .targets = targets,
					 .target_count = count };
		op->telling = true;
		r = fan_start(&op->tell);
	}
	if (r < 0)
		request_finish(op->request, r, -1);
}

static int shard_file(struct code_op *op, uint32_t index, const uint8_t *shard, uint32_t bytes)
{
	int r;

	SHA256(shard, bytes, op->group.shards[index].b);
	op->fds[index] = memfd_new("shard");
	if (op->fds[index] < 0)
		return op->fds[index];
	r = pwrite_full(op->fds[index], shard, bytes, 0);
	return r < 0 ? r : memfd_seal(op->fds[index]);
}

static int cut(struct code_op *op, uint8_t *object, uint8_t *all, uint32_t bytes)
{
	const struct ov_group *group = &op->group;
	struct shard_head head = {
		.k = group->k, .m = group->m, .size = group->size, .hash = group->hash
	};
	uint8_t *shards[OV_SHARDS_MAX];
	struct object_hash found;
	int r = pread_full(op->object_fd, object, group->size, 0);

	if (r < 0)
		return r;
	SHA256(object, group->size, found.b);
	if (memcmp(&found, &group->hash, sizeof(found)) != 0)
		return -EBADMSG;
	for (uint32_t i = 0; i < group->k + group->m; i++)
		shards[i] = all + (size_t)bytes * i;
	r = shard_encode(&head, object, shards);
	for (uint32_t i = 0; i < group->k + group->m && r == 0; i++)
		r = shard_file(op, i, shards[i], bytes);
	return r;
}

static void code_run(struct store_task *task)
{
	struct code_op *op = container_of(task, struct code_op, task);
	uint32_t bytes = shard_bytes(op->group.size, op->group.k);
	_cleanup_free_ uint8_t *object = malloc(op->group.size);
	_cleanup_free_ uint8_t *all = malloc((size_t)bytes * (op->group.k + op->group.m));

	op->status = object && all ? cut(op, object, all, bytes) : -ENOMEM;
}

static void code_done(struct store_task *task)
{
	struct code_op *op = container_of(task, struct code_op, task);
	int r = op->status;

	op->working = false;
	if (op->orphan) {
		code_free(op);
		return;
	}
	if (task->cancelled)
		r = -ECANCELED;
	if (r == 0) {
		op->scatter = (struct scatter){ .overlay = op->overlay,
						.group = &op->group,
						.want = (1u << (op->group.k + op->group.m)) - 1,
						.refused = { op->overlay->self },
						.refused_count = 1,
						.done = scattered,
						.owner = op };
		memcpy(op->scatter.fds, op->fds, sizeof(op->fds));
		op->scattering = true;
		r = scatter_start(&op->scatter);
	}
	if (r < 0)
		request_finish(op->request, r, -1);
}

static int code_check(struct request *request, struct core_scheme *ret_scheme)
{
	const struct ov_group *group = &request->msg.u.group;
	struct core_scheme wish = { .k = group->k, .m = group->m };
	uint64_t size = 0;
	int r = memfd_size(request->fd, OV_PACK_MAX, &size);

	if (r < 0 || size == 0 || size != group->size || !memfd_is_sealed(request->fd) ||
	    ((group->k || group->m) && !shard_scheme_valid(group->k, group->m)))
		return -EINVAL;
	if (request->overlay->coded_ops >= CODED_OPS_MAX)
		return -EAGAIN;
	return core_spread_scheme(request->overlay->core, &group->hash, group->size, &wish,
				  ret_scheme);
}

void coded_put(struct request *request)
{
	struct core_scheme scheme;
	struct code_op *op = NULL;
	int r = code_check(request, &scheme);

	if (r == 0) {
		op = calloc(1, sizeof(*op));
		r = op ? 0 : -ENOMEM;
	}
	if (r < 0) {
		request_finish(request, r, -1);
		return;
	}
	op->task.run = code_run;
	op->task.done = code_done;
	op->request = request;
	op->overlay = request->overlay;
	op->group = request->msg.u.group;
	op->group.k = scheme.k;
	op->group.m = scheme.m;
	/* Coded once more, as by an owner that went back to an older checkpoint: this one counts. */
	op->group.revision = (uint32_t)(now_wall_ms() / 1000);
	memset(op->group.shards, 0, sizeof(op->group.shards));
	memset(op->group.holders, 0, sizeof(op->group.holders));
	for (uint32_t i = 0; i < OV_SHARDS_MAX; i++)
		op->fds[i] = -1;
	op->object_fd = take_fd(request->fd);
	op->overlay->coded_ops++;
	request->state = op;
	request->cancel = code_cancel;
	r = store_worker_submit(op->overlay->worker, &op->task);
	op->working = r == 0;
	if (r < 0)
		request_finish(request, r, -1);
}

/* --- GET --------------------------------------------------------------------------------- */

struct coded_op {
	struct store_task task;
	struct request *request;
	struct overlay *overlay;
	bool working, orphan, calling;
	struct node_id tellers[TELLERS_MAX]; /* of whom the first said that it has a shard */
	uint32_t count, at;
	uint64_t call_id;
	struct object_hash hash;
	struct ov_group group;
	struct gather *gather;
	int fd, status;
};

static void ask_next(struct coded_op *op);

static void get_free(struct coded_op *op)
{
	if (op->calling)
		net_call_cancel(op->overlay->net, op->call_id);
	gather_free(op->gather);
	close_fdp(&op->fd);
	op->overlay->coded_ops--;
	free(op);
}

static void get_cancel(struct request *request)
{
	struct coded_op *op = request->state;

	op->orphan = true;
	if (!op->working)
		get_free(op);
}

/* No group was of use: somebody may have it whole. */
static void get_fallback(struct coded_op *op)
{
	struct request *request = op->request;

	request->cancel(request);
	request->state = NULL;
	request->cancel = NULL;
	object_get_whole(request);
}

static int join(struct coded_op *op)
{
	struct gather *g = op->gather;
	uint32_t first = (1u << g->group.k) - 1;
	_cleanup_free_ uint8_t *object = malloc(g->group.size);
	_cleanup_close_ int fd = memfd_new("object");
	struct object_hash found;
	int r = fd < 0 ? fd : object ? 0 : -ENOMEM;

	for (uint32_t i = 0; i < g->group.k && r == 0; i++)
		r = gather_room(g, i);
	if (r == 0)
		r = shard_rebuild(&g->head, g->have, first & ~g->have, g->shards);
	if (r < 0)
		return r;
	shard_join(&g->head, g->shards, object);
	SHA256(object, g->group.size, found.b);
	if (memcmp(&found, &g->group.hash, sizeof(found)) != 0)
		return -EBADMSG;
	r = pwrite_full(fd, object, g->group.size, 0);
	if (r == 0)
		r = memfd_seal(fd);
	if (r == 0)
		op->fd = take_fd(fd);
	return r;
}

static void join_run(struct store_task *task)
{
	struct coded_op *op = container_of(task, struct coded_op, task);

	op->status = join(op);
}

static void join_done(struct store_task *task)
{
	struct coded_op *op = container_of(task, struct coded_op, task);
	struct request *request = op->request;

	op->working = false;
	if (op->orphan) {
		get_free(op);
		return;
	}
	if (task->cancelled) {
		request_finish(request, -ECANCELED, -1);
		return;
	}
	if (op->status == 0) {
		struct ov_object *object = &request->msg.u.object;

		credit_gathered(op->overlay, object, &op->group, op->gather->served);
		object->size = op->group.size;
		object->holder_count = OV_HOLDERS_MAX;
		_Static_assert(OV_HOLDERS_MAX <= 6, "every scheme has as many");
		memcpy(object->holders, op->group.holders, sizeof(object->holders));
		request_finish(request, 0, take_fd(op->fd));
		return;
	}
	if (op->status == -EBADMSG) {
		const struct node_id *teller = &op->tellers[op->at - 1];

		store_count_bad(op->overlay->store);
		log_warn("get: peer=%02x%02x%02x%02x: the group that it told is of another object",
			 teller->b[0], teller->b[1], teller->b[2], teller->b[3]);
	}
	gather_free(op->gather);
	op->gather = NULL;
	ask_next(op);
}

static void gathered(struct gather *gather, int status)
{
	struct coded_op *op = gather->owner;

	if (status == 0) {
		op->task.run = join_run;
		op->task.done = join_done;
		status = store_worker_submit(op->overlay->worker, &op->task);
		op->working = status == 0;
	}
	if (status < 0) {
		op->gather = NULL;
		gather_free(gather);
		ask_next(op);
	}
}

/* With what somebody said of it; what it is worth shows at the end. */
static void try_group(struct coded_op *op, const struct ov_group *group)
{
	const struct ov_object *object = &op->request->msg.u.object;

	if (memcmp(&group->hash, &object->hash, sizeof(group->hash)) != 0 ||
	    (object->size && object->size != group->size)) {
		ask_next(op);
		return;
	}
	op->group = *group;
	if (gather_start(op->overlay, group, gathered, op, &op->gather) < 0)
		ask_next(op);
}

static int on_data(void *ctx, uint32_t total, const uint8_t *bytes, size_t size)
{
	(void)ctx;
	(void)total;
	(void)bytes;
	(void)size;
	return -EBADMSG;
}

static void on_group(void *ctx, int status, const uint8_t *bytes, size_t size)
{
	struct coded_op *op = ctx;
	struct ov_group group;

	op->calling = false;
	if (status == 0)
		status = net_group_decode(bytes, size, &group);
	if (status == 0)
		try_group(op, &group);
	else
		ask_next(op);
}

static const struct net_caller caller = { .data = on_data, .done = on_group };

static void own_run(struct store_task *task)
{
	struct coded_op *op = container_of(task, struct coded_op, task);

	op->status = store_get_group(op->overlay->store, &op->hash, &op->group);
}

static void own_done(struct store_task *task)
{
	struct coded_op *op = container_of(task, struct coded_op, task);
	struct ov_group group = op->group;

	op->working = false;
	if (op->orphan)
		get_free(op);
	else if (task->cancelled)
		request_finish(op->request, -ECANCELED, -1);
	else if (op->status == 0)
		try_group(op, &group);
	else
		ask_next(op);
}

static void ask_next(struct coded_op *op)
{
	struct net_call call = { .op = NET_OP_GROUP_GET, .object.hash = op->hash };

	while (op->at < op->count) {
		const struct node_id *teller = &op->tellers[op->at++];

		if (node_id_equal(teller, &op->overlay->self)) {
			op->task.run = own_run;
			op->task.done = own_done;
			op->working = store_worker_submit(op->overlay->worker, &op->task) == 0;
			if (op->working)
				return;
			continue;
		}
		op->calling = net_call(op->overlay->net, teller, &call, -1, OVERLAY_GET_STALL_MS,
				       &caller, op, &op->call_id) == 0;
		if (op->calling)
			return;
	}
	get_fallback(op);
}

static void list_tellers(struct coded_op *op, const struct node_id *first)
{
	_cleanup_free_ struct node_id *live = NULL;
	uint32_t count = driver_live_peers(op->overlay, &live);

	op->tellers[op->count++] = *first;
	if (!node_id_equal(first, &op->overlay->self))
		op->tellers[op->count++] = op->overlay->self;
	for (uint32_t i = 0; i < count && op->count < TELLERS_MAX; i++)
		if (!node_id_equal(&live[i], first))
			op->tellers[op->count++] = live[i];
}

void coded_get(struct request *request, const struct node_id *teller)
{
	struct overlay *overlay = request->overlay;
	struct node_id first = *teller; /* it may be the old operation's */
	struct coded_op *op;

	if (request->cancel)
		request->cancel(request);
	request->cancel = NULL;
	request->state = NULL;
	op = overlay->coded_ops < CODED_OPS_MAX ? calloc(1, sizeof(*op)) : NULL;
	if (!op) {
		request_finish(request, overlay->coded_ops < CODED_OPS_MAX ? -ENOMEM : -EAGAIN, -1);
		return;
	}
	op->request = request;
	op->overlay = overlay;
	op->hash = request->msg.u.object.hash;
	op->fd = -1;
	overlay->coded_ops++;
	request->state = op;
	request->cancel = get_cancel;
	list_tellers(op, &first);
	ask_next(op);
}
