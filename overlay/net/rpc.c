// SPDX-License-Identifier: LGPL-2.1-or-later
/* Calls over bulk connections, both sides. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "agent/util/cleanup.h"
#include "overlay/net/internal.h"

static struct pending **pending_slot(struct net *net, uint64_t id)
{
	for (unsigned int i = 0; i < NET_CALLS_MAX; i++) {
		if (net->pending[i] && net->pending[i]->id == id)
			return &net->pending[i];
	}
	return NULL;
}

/* Wrong connection: a peer named a call that was made to somebody else. */
static struct pending *find_pending(struct conn *conn, uint64_t id)
{
	struct pending **slot = pending_slot(conn->net, id);

	return slot && (*slot)->conn == conn ? *slot : NULL;
}

struct pending *rpc_wait(struct conn *conn, const struct net_caller *caller, void *ctx,
			 uint32_t stall_ms)
{
	struct net *net = conn->net;

	for (unsigned int i = 0; i < NET_CALLS_MAX; i++) {
		struct pending *pending;

		if (net->pending[i])
			continue;
		pending = calloc(1, sizeof(*pending));
		if (!pending)
			return NULL;
		pending->id = ++net->next_id;
		pending->conn = conn;
		pending->caller = caller;
		pending->ctx = ctx;
		pending->stall_ms = stall_ms;
		pending->moved_ms = net_now_ms();
		net->pending[i] = pending;
		return pending;
	}
	return NULL;
}

static void pending_free(struct pending *pending)
{
	if (!pending)
		return;
	free(pending->inline_bytes);
	free(pending);
}

void rpc_finish(struct net *net, struct pending *pending, int status)
{
	struct pending **slot = pending_slot(net, pending->id);

	if (pending->conn->state != CONN_DEAD)
		conn_drop_stream(pending->conn, pending->id);
	*slot = NULL;
	pending->caller->done(pending->ctx, status, pending->inline_bytes, pending->inline_size);
	pending_free(pending);
}

static int send_call(struct conn *conn, const struct net_call *call, uint64_t id, int stream_fd)
{
	uint8_t body[NET_CALL_MAX];
	struct net_call sent = *call;
	int r;

	sent.call = id;
	r = conn_queue(conn, NET_CALL, 0, body, net_call_encode(&sent, body), NULL, 0);
	if (r == 0 && sent.stream_size > 0)
		r = conn_add_stream(conn, id, stream_fd, NULL, sent.stream_size);
	return r;
}

int net_call(struct net *net, const struct node_id *to, const struct net_call *call, int stream_fd,
	     uint32_t stall_ms, const struct net_caller *caller, void *ctx, uint64_t *ret_id)
{
	struct conn *conn = net_find_conn(net, to, NET_BULK, true);
	struct pending *pending;
	int r;

	if (!conn) {
		r = net_dial_node(net, to, NET_BULK, &conn);
		if (r < 0)
			return r;
	}
	pending = rpc_wait(conn, caller, ctx, stall_ms);
	if (!pending)
		return -EAGAIN;
	r = send_call(conn, call, pending->id, stream_fd);
	if (r < 0) {
		*pending_slot(net, pending->id) = NULL;
		pending_free(pending);
		/* A CALL whose stream never comes would hold the peer's slot. */
		net_conn_closed(conn);
		return r;
	}
	*ret_id = pending->id;
	conn_kick(conn);
	return 0;
}

static void send_cancel(struct conn *conn, uint64_t id)
{
	uint8_t body[8];

	net_u64_encode(id, body);
	if (conn_queue(conn, NET_CANCEL, 0, body, sizeof(body), NULL, 0) == 0)
		conn_kick(conn);
}

void net_call_cancel(struct net *net, uint64_t id)
{
	struct pending **slot = pending_slot(net, id), *pending;

	if (!slot)
		return;
	pending = *slot;
	*slot = NULL;
	if (pending->conn->kind == NET_JOINING) {
		net_conn_closed(pending->conn);
	} else if (pending->conn->state != CONN_DEAD) {
		conn_drop_stream(pending->conn, id);
		send_cancel(pending->conn, id);
	}
	pending_free(pending);
}

void rpc_sent(struct conn *conn, uint64_t call)
{
	struct pending *pending = conn->dialled ? find_pending(conn, call) : NULL;

	if (pending)
		pending->moved_ms = net_now_ms();
}

static int on_reply(struct conn *conn, const struct net_frame *frame)
{
	struct net_reply reply;
	struct pending *pending;
	int r = net_reply_decode(frame->body, frame->size, &reply);

	if (r < 0)
		return r;
	pending = find_pending(conn, reply.call);
	if (!pending)
		return 0; /* cancelled meanwhile */
	if (pending->replied)
		return -EBADMSG;
	/* A refusal in the middle of our stream: the rest need not travel. */
	conn_drop_stream(conn, pending->id);
	pending->moved_ms = net_now_ms();
	pending->replied = true;
	pending->status = reply.status;
	pending->stream_size = reply.stream_size;
	if (reply.inline_size > 0) {
		pending->inline_bytes = malloc(reply.inline_size);
		if (!pending->inline_bytes)
			return -ENOMEM;
		memcpy(pending->inline_bytes, reply.inline_bytes, reply.inline_size);
		pending->inline_size = reply.inline_size;
	}
	if (pending->stream_size == 0)
		rpc_finish(conn->net, pending, pending->status);
	return 0;
}

static int on_reply_data(struct conn *conn, uint64_t call, const uint8_t *bytes, uint32_t size)
{
	struct pending *pending = find_pending(conn, call);
	int r;

	if (!pending)
		return 0;
	if (!pending->replied || size > pending->stream_size - pending->received)
		return -EBADMSG;
	pending->moved_ms = net_now_ms();
	r = pending->caller->data(pending->ctx, pending->stream_size, bytes, size);
	if (r < 0) {
		send_cancel(conn, pending->id);
		rpc_finish(conn->net, pending, r);
		return 0;
	}
	pending->received += size;
	if (pending->received == pending->stream_size)
		rpc_finish(conn->net, pending, pending->status);
	return 0;
}

struct served *rpc_find_served(struct net *net, uint64_t id)
{
	for (unsigned int i = 0; i < NET_SERVED_MAX; i++) {
		if (net->served[i] && net->served[i]->id == id)
			return net->served[i];
	}
	return NULL;
}

static struct served *find_call(struct conn *conn, uint64_t call)
{
	struct net *net = conn->net;

	for (unsigned int i = 0; i < NET_SERVED_MAX; i++) {
		struct served *served = net->served[i];

		if (served && served->conn == conn && served->call == call)
			return served;
	}
	return NULL;
}

struct served *rpc_serve(struct conn *conn, uint64_t call)
{
	struct net *net = conn->net;
	struct served **free_slot = NULL, *served;
	unsigned int count = 0;

	for (unsigned int i = 0; i < NET_SERVED_MAX; i++) {
		if (!net->served[i])
			free_slot = &net->served[i];
		else if (net->served[i]->conn == conn)
			count++;
	}
	if (!free_slot || count >= NET_SERVED_CONN_MAX)
		return NULL;
	served = calloc(1, sizeof(*served));
	if (!served)
		return NULL;
	served->id = ++net->next_id;
	served->conn = conn;
	served->call = call;
	served->moved_ms = net_now_ms();
	*free_slot = served;
	return served;
}

void rpc_forget_served(struct net *net, struct served *served)
{
	for (unsigned int i = 0; i < NET_SERVED_MAX; i++) {
		if (net->served[i] == served)
			net->served[i] = NULL;
	}
	if (served->sink)
		net->handlers->gone(net->ctx, served->sink);
	free(served);
}

/* The stream, if it is to have one, is stream_fd or stream_take. */
static int send_reply(struct conn *conn, const struct net_reply *reply, int stream_fd,
		      uint8_t *stream_take)
{
	uint8_t body[NET_REPLY_MAX];
	int r = conn_queue(conn, NET_REPLY, 0, body, net_reply_encode(reply, body), NULL, 0);

	if (r == 0 && reply->stream_size > 0)
		r = conn_add_stream(conn, reply->call, stream_fd, take_ptr(stream_take),
				    reply->stream_size);
	free(stream_take);
	conn_kick(conn);
	return r;
}

/* The call is answered: to whom, if they are still there. */
static struct conn *end_served(struct net *net, uint64_t id, uint64_t *ret_call)
{
	struct served *served = rpc_find_served(net, id);
	struct conn *conn = served ? served->conn : NULL;

	if (!served)
		return NULL;
	*ret_call = served->call;
	rpc_forget_served(net, served);
	return conn->state == CONN_DEAD ? NULL : conn;
}

void net_reply(struct net *net, uint64_t id, int status, const void *bytes, uint32_t size,
	       int stream_fd, uint32_t stream_size)
{
	struct net_reply reply = { .status = status };
	struct conn *conn;

	if (size > NET_INLINE_MAX || stream_size > NET_STREAM_MAX)
		return;
	if (status >= 0) {
		reply.stream_size = stream_size;
		reply.inline_size = size;
		reply.inline_bytes = bytes;
	}
	conn = end_served(net, id, &reply.call);
	if (conn && send_reply(conn, &reply, stream_fd, NULL) < 0)
		net_conn_closed(conn);
}

void net_reply_stream(struct net *net, uint64_t id, uint8_t *stream, uint32_t size)
{
	struct net_reply reply = { .stream_size = size };
	struct conn *conn = size <= NET_STREAM_MAX ? end_served(net, id, &reply.call) : NULL;

	if (!conn)
		free(stream);
	else if (send_reply(conn, &reply, -1, stream) < 0)
		net_conn_closed(conn);
}

uint64_t net_lent_bytes(const struct net *net)
{
	return net->lent_bytes;
}

static int on_call(struct conn *conn, const struct net_frame *frame)
{
	struct net *net = conn->net;
	struct net_call call;
	struct served *served;
	uint64_t id;
	int r = net_call_decode(frame->body, frame->size, &call);

	if (r < 0)
		return r;
	if (find_call(conn, call.call))
		return -EBADMSG;
	served = rpc_serve(conn, call.call);
	if (!served)
		return send_reply(conn, &(struct net_reply){ .call = call.call, .status = -EAGAIN },
				  -1, NULL);
	served->stream_size = call.stream_size;
	served->whole = call.stream_size == 0;
	id = served->id;
	r = net->handlers->call(net->ctx, id, &conn->node, &call, &served->sink);
	if (r < 0)
		net_reply(net, id, r, NULL, 0, -1, 0);
	return 0;
}

static int on_call_data(struct conn *conn, uint64_t call, const uint8_t *bytes, uint32_t size)
{
	struct net *net = conn->net;
	struct served *served = find_call(conn, call);
	void *sink;
	int r;

	if (!served)
		return 0; /* refused or cancelled meanwhile */
	if (served->whole || size > served->stream_size - served->received)
		return -EBADMSG;
	served->moved_ms = net_now_ms();
	r = net->handlers->data(net->ctx, served->sink, bytes, size);
	if (r < 0) {
		net_reply(net, served->id, r, NULL, 0, -1, 0);
		return 0;
	}
	served->received += size;
	if (served->received < served->stream_size)
		return 0;
	sink = served->sink;
	served->sink = NULL;
	served->whole = true;
	net->handlers->whole(net->ctx, served->id, sink);
	return 0;
}

int rpc_frame(struct conn *conn, const struct net_frame *frame)
{
	uint64_t call = net_u64_decode(frame->body);
	struct served *served;

	switch (frame->type) {
	case NET_CALL:
		return on_call(conn, frame);
	case NET_REPLY:
		return on_reply(conn, frame);
	case NET_CANCEL:
		served = find_call(conn, call);
		if (served)
			rpc_forget_served(conn->net, served);
		conn_drop_stream(conn, call);
		return 0;
	case NET_DATA:
		if (conn->phase == NET_PHASE_CALLING)
			return on_reply_data(conn, call, frame->body + 8, frame->size - 8);
		return on_call_data(conn, call, frame->body + 8, frame->size - 8);
	default:
		return -EBADMSG;
	}
}

void rpc_conn_closed(struct conn *conn)
{
	struct net *net = conn->net;

	for (unsigned int i = 0; i < NET_CALLS_MAX; i++) {
		if (net->pending[i] && net->pending[i]->conn == conn)
			rpc_finish(net, net->pending[i], -ECONNRESET);
	}
	for (unsigned int i = 0; i < NET_SERVED_MAX; i++) {
		if (net->served[i] && net->served[i]->conn == conn)
			rpc_forget_served(net, net->served[i]);
	}
}

void rpc_drop_all(struct net *net)
{
	for (unsigned int i = 0; i < NET_CALLS_MAX; i++) {
		pending_free(net->pending[i]);
		net->pending[i] = NULL;
	}
	for (unsigned int i = 0; i < NET_SERVED_MAX; i++) {
		if (net->served[i])
			rpc_forget_served(net, net->served[i]);
	}
}

bool rpc_conn_busy(const struct conn *conn)
{
	const struct net *net = conn->net;

	if (!TAILQ_EMPTY(&conn->streams))
		return true;
	for (unsigned int i = 0; i < NET_CALLS_MAX; i++) {
		if (net->pending[i] && net->pending[i]->conn == conn)
			return true;
	}
	for (unsigned int i = 0; i < NET_SERVED_MAX; i++) {
		if (net->served[i] && net->served[i]->conn == conn)
			return true;
	}
	return false;
}

void rpc_tick(struct net *net, uint64_t now_ms)
{
	for (unsigned int i = 0; i < NET_CALLS_MAX; i++) {
		struct pending *pending = net->pending[i];

		if (!pending || now_ms - pending->moved_ms <= pending->stall_ms)
			continue;
		if (pending->conn->kind == NET_JOINING)
			net_conn_closed(pending->conn);
		else if (pending->conn->state != CONN_DEAD)
			send_cancel(pending->conn, pending->id);
		rpc_finish(net, pending, -EAGAIN);
	}
	for (unsigned int i = 0; i < NET_SERVED_MAX; i++) {
		struct served *served = net->served[i];

		/* What is whole waits for our own disk or agent, which have limits of their own. */
		if (served && !served->whole && now_ms - served->moved_ms > NET_SERVED_STALL_MS)
			net_reply(net, served->id, -EAGAIN, NULL, 0, -1, 0);
	}
}
