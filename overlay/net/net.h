/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * TLS 1.3 transport between overlay halves. See docs/net.md.
 *
 *   control connection: core messages; either side's serves both; oldest dropped when full
 *   bulk connection:    calls of the side that dialled it and their streams; closed when idle
 *   join connection:    one sealed message and its answer, under an invitation's PSK
 *
 * Every member connection begins with one card of each side, the dialler's first. Nothing is
 * answered, and no other byte is looked at, before the card has been verified and found to
 * name the key of the peer's certificate.
 *
 * Callbacks come from the event loop only, never from within a net_* function. They may call any
 * net_* function but net_destroy(). Threading: the event loop's thread. None log.
 */
#pragma once

#include <systemd/sd-event.h>

#include "overlay/net/frame.h"

struct net;

enum {
	NET_CONNS_MAX = 4096,
	NET_STRANGERS_MAX = 64, /* inbound and not yet authenticated; the oldest goes first */
	NET_CALLS_MAX = 1024,	/* own calls that wait for a reply */
	NET_SERVED_MAX = 512,	/* calls of peers being answered; 64 of one connection */
	NET_SERVED_CONN_MAX = 64,
	NET_INVITES_MAX = 64,
	NET_CONTROL_QUEUE_MAX = 64, /* frames */
	NET_BULK_QUEUE_MAX = 1024,  /* frames beside streams */
	NET_SEEDS_MAX = 16,
	NET_CONNECT_MS = 2500,	 /* TCP connect */
	NET_HANDSHAKE_MS = 5000, /* connect to the peer's card */
	NET_BULK_IDLE_MS = 60 * 1000,
	NET_CONTROL_IDLE_MS = 300 * 1000,
	NET_JOIN_MS = 30 * 1000,
	NET_SERVED_STALL_MS = 30 * 1000,
};

struct net_handlers {
	bool (*verify_card)(void *ctx, const struct node_card *card);
	/* Where to dial; the text is copied at once. */
	bool (*address)(void *ctx, const struct node_id *node, const char **ret_addr,
			uint16_t *ret_port);
	/* A control connection came up; addr is NULL unless we dialled it. */
	void (*connected)(void *ctx, const struct node_card *card, const char *addr, uint16_t port);
	void (*message)(void *ctx, const struct node_id *from, const void *bytes, size_t size);
	/*
	 * A peer's call. < 0: refused with this status. 0: answered later with net_reply(served);
	 * if it has a stream, data() gets it part by part with *ret_sink, then whole() takes the
	 * sink, or gone() does if the caller went away or data() failed (that status is replied).
	 */
	int (*call)(void *ctx, uint64_t served, const struct node_id *from,
		    const struct net_call *call, void **ret_sink);
	int (*data)(void *ctx, void *sink, const uint8_t *bytes, size_t size);
	void (*whole)(void *ctx, uint64_t served, void *sink);
	void (*gone)(void *ctx, void *sink);
	/* A joiner under an invitation; answered with net_join_reply(served). */
	void (*join)(void *ctx, uint64_t served, const uint8_t token_id[static 16],
		     const uint8_t *bytes, size_t size);
};

/* Own calls. data() gets the reply's stream; done() comes once, last. */
struct net_caller {
	int (*data)(void *ctx, uint32_t total, const uint8_t *bytes, size_t size);
	void (*done)(void *ctx, int status, const uint8_t *bytes, size_t size);
};

struct net_stats {
	uint64_t sent_bytes, received_bytes; /* TLS payload */
	uint64_t refused;		     /* strangers turned away */
	uint64_t garbled; /* members' connections that ended for what they carried */
	uint32_t peers;	  /* members with an open control connection */
};

int net_create(sd_event *event, const struct net_handlers *handlers, void *ctx,
	       struct net **ret_net) __attribute__((warn_unused_result));
void net_destroy(struct net *net);

/* Becomes a member: certificate, listener, seeds. -EALREADY the second time. */
int net_start(struct net *net, const struct ov_identity *identity, const struct ov_start *start)
	__attribute__((warn_unused_result));

/* Best effort: dropped if the node cannot be dialled now. */
void net_send(struct net *net, const struct node_id *to, const void *bytes, size_t size);
/* Closes what leads to this node, so that the next message dials anew. */
void net_reset(struct net *net, const struct node_id *node, bool bulk_too);

/*
 * stream_fd: a file of call->stream_size bytes, borrowed for the call (duplicated), or -1.
 * Fails at done() with -EAGAIN when nothing moved for stall_ms, -ECONNRESET, -EBADMSG, or with
 * the peer's status. caller is borrowed until done().
 */
int net_call(struct net *net, const struct node_id *to, const struct net_call *call, int stream_fd,
	     uint32_t stall_ms, const struct net_caller *caller, void *ctx, uint64_t *ret_id)
	__attribute__((warn_unused_result));
/* No callback follows. An unknown id is ignored. */
void net_call_cancel(struct net *net, uint64_t id);
/* stream_fd as above (size 0: none). A caller that is gone is ignored. */
void net_reply(struct net *net, uint64_t served, int status, const void *bytes, uint32_t size,
	       int stream_fd, uint32_t stream_size);
/* The stream is memory, which is freed when it has left, or when nobody wants it any more. */
void net_reply_stream(struct net *net, uint64_t served, uint8_t *stream_take, uint32_t size);
/* What such streams take by now. */
uint64_t net_lent_bytes(const struct net *net);

/* The same token again replaces the invitation. -ENOSPC beyond NET_INVITES_MAX live ones. */
int net_invite(struct net *net, const struct ov_invite *invite) __attribute__((warn_unused_result));
/* status 0 burns the invitation. */
void net_join_reply(struct net *net, uint64_t served, int status, const void *bytes, uint32_t size);
/* As joiner; caller->done() gets the sealed answer. */
int net_join(struct net *net, const struct ov_join *join, const struct net_caller *caller,
	     void *ctx, uint64_t *ret_id) __attribute__((warn_unused_result));

void net_get_stats(const struct net *net, struct net_stats *ret_stats);
