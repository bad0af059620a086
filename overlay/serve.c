// SPDX-License-Identifier: LGPL-2.1-or-later
/* What peers ask of this host. Everything that waits for the disk goes through the worker. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LOG_TAG "overlay"
#include "agent/util/io.h"
#include "agent/util/log.h"
#include "overlay/half.h"
#include "overlay/net/tls.h"

/* A peer's call on its way through the worker; as `sink` it collects the stream before. */
struct service {
	struct store_task task;
	struct overlay *overlay;
	uint64_t served;
	uint16_t op; /* enum net_op */
	struct store_put *put;
	struct ov_retain retain;
	uint8_t *hashes;
	size_t hashes_size;
	struct job_id job;
	struct object_hash hash;
	struct store_verdict verdict;
	struct ov_group group;
	struct ov_object refer;
	struct ov_object newest[STORE_NEWEST_MAX];
	uint32_t newest_count;
	uint8_t *object; /* what was read */
	int status;
	uint32_t size;
};

static void service_free(struct service *service)
{
	store_put_abort(service->put);
	free(service->hashes);
	free(service->object);
	free(service);
}

/* Objects that have arrived wait for the disk together. */
static void service_put(struct store_task *const *tasks, uint32_t count)
{
	struct store_put *puts[WORKER_GROUP_MAX] = { NULL };
	int status[WORKER_GROUP_MAX] = { 0 };

	for (uint32_t i = 0; i < count; i++)
		puts[i] = take_ptr(container_of(tasks[i], struct service, task)->put);
	store_puts_commit(puts, count, status);
	for (uint32_t i = 0; i < count; i++)
		container_of(tasks[i], struct service, task)->status = status[i];
}

_Static_assert((int)WORKER_GROUP_MAX <= (int)STORE_ARRIVING_MAX, "one commit takes a group");

static void service_run(struct store_task *task)
{
	struct service *service = container_of(task, struct service, task);
	struct store *store = service->overlay->store;
	uint32_t dropped = 0;

	switch (service->op) {
	case NET_OP_GET:
		service->status =
			store_read(store, &service->hash, &service->object, &service->size);
		/* Not here, but a shard of it: the caller asks for the group. */
		if (service->status == -ENOENT &&
		    store_get_group(store, &service->hash, &service->group) == 0)
			service->status = -EREMOTE;
		break;
	case NET_OP_REFER:
		service->status = store_refer(store, &service->refer);
		break;
	case NET_OP_GROUP:
		service->status = store_set_group(store, &service->group);
		break;
	case NET_OP_GROUP_GET:
		service->status = store_get_group(store, &service->hash, &service->group);
		break;
	case NET_OP_NEWEST:
		service->status =
			store_newest(store, &service->job, service->newest, &service->newest_count);
		break;
	case NET_OP_VERDICT:
		service->status = store_verdict(store, &service->job, &service->verdict);
		break;
	case NET_OP_VOUCH:
		service->status = store_vouch(store, &service->job, &service->hash);
		break;
	default:
		service->status = store_retain(store, &service->retain,
					       (const struct object_hash *)service->hashes,
					       &dropped);
	}
}

static void reply_verdict(struct service *service)
{
	struct net_verdict verdict = { .tombstone = service->verdict.tombstone,
				       .heard_ago_ms = service->verdict.heard_ago_ms };
	uint8_t bytes[NET_VERDICT_MAX];
	size_t size = service->status < 0 ? 0 : net_verdict_encode(&verdict, bytes);

	net_reply(service->overlay->net, service->served, service->status, bytes, (uint32_t)size,
		  -1, 0);
}

_Static_assert((int)STORE_NEWEST_MAX == (int)NET_NEWEST_ROWS, "what is kept fits the reply");

static void reply_newest(struct service *service)
{
	uint8_t bytes[NET_NEWEST_MAX];
	size_t size = 0;

	if (service->status == 0)
		size = net_newest_encode(service->newest, service->newest_count, bytes);
	net_reply(service->overlay->net, service->served, service->status, bytes, (uint32_t)size,
		  -1, 0);
}

static void reply_group(struct service *service)
{
	uint8_t bytes[NET_GROUP_MAX];
	size_t size = service->status < 0 ? 0 : net_group_encode(&service->group, bytes);

	net_reply(service->overlay->net, service->served, service->status, bytes, (uint32_t)size,
		  -1, 0);
}

static void service_done(struct store_task *task)
{
	struct service *service = container_of(task, struct service, task);
	struct overlay *overlay = service->overlay;

	if (service->op == NET_OP_GET || service->op == NET_OP_REFER)
		overlay->reads--;
	if (!task->cancelled && service->op == NET_OP_VERDICT)
		reply_verdict(service);
	else if (!task->cancelled && service->op == NET_OP_NEWEST)
		reply_newest(service);
	else if (!task->cancelled && service->op == NET_OP_GROUP_GET)
		reply_group(service);
	else if (!task->cancelled && service->object)
		net_reply_stream(overlay->net, service->served, take_ptr(service->object),
				 service->size);
	else if (!task->cancelled)
		net_reply(overlay->net, service->served, service->status, NULL, 0, -1, 0);
	service_free(service);
}

static struct service *service_new(struct overlay *overlay, uint64_t served, uint16_t op)
{
	struct service *service = calloc(1, sizeof(*service));

	if (!service)
		return NULL;
	service->task.run = service_run;
	service->task.done = service_done;
	service->overlay = overlay;
	service->served = served;
	service->op = op;
	return service;
}

static int serve_put(struct overlay *overlay, uint64_t served, const struct net_call *call,
		     void **ret_sink)
{
	struct service *service = service_new(overlay, served, call->op);
	int r;

	if (!service)
		return -ENOMEM;
	service->task.run_group = service_put;
	r = store_put_begin(overlay->store, &call->object, &service->put);
	if (r < 0) {
		service_free(service);
		return r;
	}
	*ret_sink = service;
	return 0;
}

static int serve_get(struct overlay *overlay, uint64_t served, const struct net_call *call)
{
	struct service *service;
	int r;

	if (overlay->reads >= OVERLAY_READS_MAX ||
	    net_lent_bytes(overlay->net) >= OVERLAY_LENT_BYTES_MAX)
		return -EAGAIN;
	service = service_new(overlay, served, call->op);
	if (!service)
		return -ENOMEM;
	service->hash = call->object.hash;
	r = store_worker_submit(overlay->worker, &service->task);
	if (r < 0)
		service_free(service);
	else
		overlay->reads++;
	return r;
}

/* A reading like a GET's, of which nothing is sent. */
static int serve_refer(struct overlay *overlay, uint64_t served, const struct net_call *call)
{
	struct service *service;
	int r;

	if (overlay->reads >= OVERLAY_READS_MAX)
		return -EAGAIN;
	service = service_new(overlay, served, call->op);
	if (!service)
		return -ENOMEM;
	service->refer = call->object;
	r = store_worker_submit(overlay->worker, &service->task);
	if (r < 0)
		service_free(service);
	else
		overlay->reads++;
	return r;
}

static int serve_retain(struct overlay *overlay, uint64_t served, const struct net_call *call,
			void **ret_sink)
{
	struct service *service;
	int r;

	if (call->retain.count > STORE_RETAIN_MAX)
		return -EBADMSG;
	service = service_new(overlay, served, call->op);
	if (!service)
		return -ENOMEM;
	service->retain = call->retain;
	service->hashes = malloc(call->stream_size + 1);
	if (!service->hashes) {
		service_free(service);
		return -ENOMEM;
	}
	if (call->stream_size > 0) {
		*ret_sink = service;
		return 0;
	}
	r = store_worker_submit(overlay->worker, &service->task);
	if (r < 0)
		service_free(service);
	return r;
}

/* What a host knows, or is told, of one job or object. */
static int serve_job(struct overlay *overlay, uint64_t served, const struct net_call *call)
{
	struct service *service = service_new(overlay, served, call->op);
	int r;

	if (!service)
		return -ENOMEM;
	service->job = call->object.job;
	service->hash = call->object.hash;
	service->group = call->group;
	r = store_worker_submit(overlay->worker, &service->task);
	if (r < 0)
		service_free(service);
	return r;
}

static int serve_vouch(struct overlay *overlay, uint64_t served, const struct net_call *call)
{
	struct service *service;
	int r = trim_pin(overlay, &call->object.job, &call->object.hash);

	if (r < 0)
		return r;
	service = service_new(overlay, served, call->op);
	if (!service)
		return -ENOMEM;
	service->job = call->object.job;
	service->hash = call->object.hash;
	r = store_worker_submit(overlay->worker, &service->task);
	if (r < 0)
		service_free(service);
	return r;
}

static int serve_list(struct overlay *overlay, uint64_t served)
{
	_cleanup_close_ int fd = -1;
	uint32_t count = 0;
	int r = driver_registers(overlay, &fd, &count);

	if (r < 0)
		return r;
	net_reply(overlay->net, served, 0, NULL, 0, fd,
		  (uint32_t)(count * sizeof(struct job_value)));
	return 0;
}

static int serve_order(struct overlay *overlay, uint64_t served, const struct node_id *from,
		       const struct net_call *call)
{
	struct ov_msg event = { .op = OV_EV_ORDER };
	struct ov_order *order = &event.u.order;

	order->node = *from;
	order->call_id = served;
	order->timeout_ms = call->order_timeout_ms;
	order->size = call->order_size;
	if (call->order_size > 0)
		memcpy(order->bytes, call->order_bytes, call->order_size);
	overlay_event(overlay, &event);
	return 0;
}

static int on_call(void *ctx, uint64_t served, const struct node_id *from,
		   const struct net_call *call, void **ret_sink)
{
	struct overlay *overlay = ctx;

	switch (call->op) {
	case NET_OP_PUT:
		return serve_put(overlay, served, call, ret_sink);
	case NET_OP_GET:
		return serve_get(overlay, served, call);
	case NET_OP_REFER:
		return serve_refer(overlay, served, call);
	case NET_OP_RETAIN:
		return serve_retain(overlay, served, call, ret_sink);
	case NET_OP_ORDER:
		return serve_order(overlay, served, from, call);
	case NET_OP_LIST:
		return serve_list(overlay, served);
	case NET_OP_NEWEST:
	case NET_OP_VERDICT:
	case NET_OP_GROUP:
	case NET_OP_GROUP_GET:
		return serve_job(overlay, served, call);
	case NET_OP_VOUCH:
		return serve_vouch(overlay, served, call);
	case NET_OP_RECEIPT:
		return serve_receipt(overlay, served, from, call);
	case NET_OP_CREDIT:
		return serve_credit(overlay, served);
	case NET_OP_HOLDERS:
		repair_heard(overlay, &call->object);
		net_reply(overlay->net, served, 0, NULL, 0, -1, 0);
		return 0;
	default:
		return -EBADMSG;
	}
}

static int on_data(void *ctx, void *sink, const uint8_t *bytes, size_t size)
{
	struct service *service = sink;

	(void)ctx;
	if (service->op == NET_OP_PUT)
		return store_put_write(service->put, bytes, size);
	/* The stream is as long as its call said, and so is the buffer. */
	memcpy(service->hashes + service->hashes_size, bytes, size);
	service->hashes_size += size;
	return 0;
}

static void on_whole(void *ctx, uint64_t served, void *sink)
{
	struct service *service = sink;
	struct overlay *overlay = ctx;
	int r = store_worker_submit(overlay->worker, &service->task);

	if (r < 0) {
		service_free(service);
		net_reply(overlay->net, served, r, NULL, 0, -1, 0);
	}
}

static void on_gone(void *ctx, void *sink)
{
	(void)ctx;
	service_free(sink);
}

static bool on_verify(void *ctx, const struct node_card *card)
{
	struct overlay *overlay = ctx;

	return net_tls_card_valid(card, overlay->cluster_public, now_wall_ms());
}

static bool on_address(void *ctx, const struct node_id *node, const char **ret_addr,
		       uint16_t *ret_port)
{
	struct overlay *overlay = ctx;

	return overlay->core && core_address(overlay->core, node, ret_addr, ret_port);
}

static void on_connected(void *ctx, const struct node_card *card, const char *addr, uint16_t port)
{
	driver_greet(ctx, card, addr, port);
}

static void on_message(void *ctx, const struct node_id *from, const void *bytes, size_t size)
{
	driver_message(ctx, from, bytes, size);
}

static void on_join(void *ctx, uint64_t served, const uint8_t token_id[static 16],
		    const uint8_t *bytes, size_t size)
{
	struct ov_msg event = { .op = OV_EV_JOIN };
	struct ov_join *join = &event.u.join;

	join->call_id = served;
	memcpy(join->token_id, token_id, sizeof(join->token_id));
	join->size = (uint32_t)size;
	if (size > 0)
		memcpy(join->bytes, bytes, size);
	overlay_event(ctx, &event);
}

const struct net_handlers overlay_net_handlers = {
	.verify_card = on_verify,
	.address = on_address,
	.connected = on_connected,
	.message = on_message,
	.call = on_call,
	.data = on_data,
	.whole = on_whole,
	.gone = on_gone,
	.join = on_join,
};
