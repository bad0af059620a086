// SPDX-License-Identifier: LGPL-2.1-or-later
/* Invitations: one sealed message and its answer under a one-time PSK. */
#include <errno.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>

#include "agent/util/io.h"
#include "overlay/net/internal.h"

static void burn(struct invite *invite)
{
	OPENSSL_cleanse(invite, sizeof(*invite));
}

static struct invite *find_invite(struct net *net, const uint8_t token_id[static 16])
{
	uint64_t now = now_wall_ms();

	for (unsigned int i = 0; i < NET_INVITES_MAX; i++) {
		struct invite *row = &net->invites[i];

		if (row->live && row->invite.expires_wall_ms <= now)
			burn(row);
		if (row->live && CRYPTO_memcmp(row->invite.token_id, token_id, 16) == 0)
			return row;
	}
	return NULL;
}

int net_invite(struct net *net, const struct ov_invite *invite)
{
	struct invite *row;

	if (invite->expires_wall_ms <= now_wall_ms())
		return -EINVAL;
	row = find_invite(net, invite->token_id);
	for (unsigned int i = 0; i < NET_INVITES_MAX && !row; i++) {
		if (!net->invites[i].live)
			row = &net->invites[i];
	}
	if (!row)
		return -ENOSPC;
	*row = (struct invite){ .invite = *invite, .live = true };
	return 0;
}

/*
 * During the handshake. The kind is set already: if the binder proves wrong the handshake fails
 * and the connection is gone with it.
 */
bool join_find_psk(struct net_tls_link *link, const uint8_t token_id[static 16],
		   uint8_t ret_psk[static 32])
{
	struct conn *conn = (struct conn *)link;
	struct invite *row = find_invite(conn->net, token_id);

	if (!row || row->served)
		return false;
	memcpy(link->token_id, token_id, sizeof(link->token_id));
	memcpy(ret_psk, row->invite.psk, sizeof(row->invite.psk));
	conn->kind = NET_JOINING;
	return true;
}

static int on_join(struct conn *conn, const struct net_frame *frame)
{
	struct net *net = conn->net;
	struct invite *row = find_invite(net, conn->link.token_id);
	struct served *served;

	/* Burnt or taken between the handshake and now, or a second message. */
	if (!row || row->served || conn->join_id)
		return -EACCES;
	served = rpc_serve(conn, 0);
	if (!served)
		return -EAGAIN;
	served->whole = true;
	row->served = conn->join_id = served->id;
	net->handlers->join(net->ctx, served->id, conn->link.token_id, frame->body + 4,
			    frame->size - 4);
	return 0;
}

static int on_join_reply(struct conn *conn, const struct net_frame *frame)
{
	struct net *net = conn->net;

	for (unsigned int i = 0; i < NET_CALLS_MAX; i++) {
		struct pending *pending = net->pending[i];
		uint8_t bytes[OV_ORDER_MAX];

		if (!pending || pending->conn != conn)
			continue;
		memcpy(bytes, frame->body + 4, frame->size - 4);
		net->pending[i] = NULL;
		pending->caller->done(pending->ctx, net_status_decode(frame->body), bytes,
				      frame->size - 4);
		free(pending);
		break;
	}
	return -ESHUTDOWN;
}

int join_frame(struct conn *conn, const struct net_frame *frame)
{
	return frame->type == NET_JOIN ? on_join(conn, frame) : on_join_reply(conn, frame);
}

static struct invite *invite_of(struct net *net, uint64_t served)
{
	for (unsigned int i = 0; i < NET_INVITES_MAX; i++) {
		if (served && net->invites[i].live && net->invites[i].served == served)
			return &net->invites[i];
	}
	return NULL;
}

void net_join_reply(struct net *net, uint64_t id, int status, const void *bytes, uint32_t size)
{
	struct served *served = rpc_find_served(net, id);
	struct invite *row = invite_of(net, id);
	struct conn *conn = served ? served->conn : NULL;
	uint8_t head[4];

	/* Also when the joiner has left meanwhile: it was admitted, so the token is used up. */
	if (row && status == 0)
		burn(row);
	else if (row)
		row->served = 0;
	if (!served || size > OV_ORDER_MAX)
		return;
	rpc_forget_served(net, served);
	net_status_encode(status, head);
	if (conn->state == CONN_DEAD ||
	    conn_queue(conn, NET_JOIN_REPLY, 0, head, sizeof(head), bytes, size) < 0)
		return;
	conn->close_when_sent = true;
	conn_kick(conn);
}

int net_join(struct net *net, const struct ov_join *join, const struct net_caller *caller,
	     void *ctx, uint64_t *ret_id)
{
	uint8_t head[4] = { 0 };
	struct pending *pending;
	struct conn *conn;
	int r;

	if (join->size > OV_ORDER_MAX || !memchr(join->addr, '\0', sizeof(join->addr)))
		return -EINVAL;
	if (!net->joiner) {
		r = net_tls_joiner_context(&net->joiner);
		if (r < 0)
			return r;
	}
	r = conn_dial(net, NET_JOINING, join->addr, join->port, &conn);
	if (r < 0)
		return r;
	memcpy(conn->link.token_id, join->token_id, sizeof(join->token_id));
	memcpy(conn->link.psk, join->psk, sizeof(join->psk));
	pending = rpc_wait(conn, caller, ctx, NET_JOIN_MS);
	if (!pending ||
	    conn_queue(conn, NET_JOIN, 0, head, sizeof(head), join->bytes, join->size) < 0) {
		net_conn_closed(conn);
		if (pending)
			net_call_cancel(net, pending->id);
		return -ENOMEM;
	}
	*ret_id = pending->id;
	return 0;
}
