/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the source files of the transport share; nobody else includes this.
 *
 * A connection that fails becomes CONN_DEAD at once and is freed by the next tick, so that any
 * function up the stack may still look at its state.
 */
#pragma once

#include <sys/queue.h>

#include "overlay/net/net.h"
#include "overlay/net/tls.h"

enum {
	TICK_MS = 100,
	SEED_RETRY_MS = 2000,
	SEED_KNOWN_RETRY_MS = 10000,
	BACKOFF_MIN_MS = 200,
	BACKOFF_MAX_MS = 2000,
	IO_BUDGET_BYTES = 1 << 20, /* of one connection in one turn of the loop */
};

enum conn_state { CONN_CONNECTING = 1, CONN_HANDSHAKE, CONN_CARD, CONN_OPEN, CONN_DEAD };

struct out_frame {
	STAILQ_ENTRY(out_frame) next;
	size_t size;
	uint8_t bytes[];
};

struct out_stream {
	TAILQ_ENTRY(out_stream) next;
	uint64_t call;
	int fd;		/* -1: bytes */
	uint8_t *bytes; /* owned */
	uint32_t size, offset;
};

struct conn {
	struct net_tls_link link; /* first: the TLS callbacks get it */
	LIST_ENTRY(conn) entry;
	struct net *net;
	enum conn_state state;
	enum net_kind kind;
	enum net_phase phase;
	bool dialled, node_known;
	int seed; /* index of the seed it was dialled for, or -1 */
	int fd;
	SSL *ssl;
	sd_event_source *io, *again;
	bool write_blocked;
	struct node_id node; /* expected if node_known, verified once CONN_OPEN */
	struct node_card card;
	uint8_t peer_key[TLS_KEY_SIZE];
	char addr[OV_ADDR_MAX];
	uint16_t port;
	uint64_t created_ms, used_ms;
	uint8_t *in;
	size_t in_size, in_room;
	struct out_frame *out; /* the frame being written */
	size_t out_offset;
	STAILQ_HEAD(, out_frame) frames;
	unsigned int frame_count;
	TAILQ_HEAD(, out_stream) streams;
	uint64_t join_id; /* served or pending */
	bool close_when_sent;
};

/* An own call that waits. */
struct pending {
	uint64_t id;
	struct conn *conn;
	const struct net_caller *caller;
	void *ctx;
	uint32_t stall_ms;
	uint64_t moved_ms;
	bool replied;
	int status;
	uint32_t stream_size, received, inline_size;
	uint8_t *inline_bytes;
};

/* A peer's call, or a joiner's request, that we answer. */
struct served {
	uint64_t id;
	struct conn *conn;
	uint64_t call;
	uint32_t stream_size, received;
	uint64_t moved_ms;
	bool whole;
	void *sink;
};

struct peer_backoff {
	struct node_id node;
	uint32_t delay_ms;
	uint64_t next_ms;
};

struct seed {
	char addr[OV_ADDR_MAX];
	uint16_t port;
	bool self, known;
	uint64_t next_ms;
};

struct invite {
	struct ov_invite invite;
	bool live;
	uint64_t served; /* a joiner that is being answered, or 0 */
};

struct net {
	sd_event *event;
	sd_event_source *tick, *accept;
	const struct net_handlers *handlers;
	void *ctx;
	bool started;
	struct node_card card;
	SSL_CTX *server, *client, *joiner;
	int listen_fd;
	uint32_t control_stall_ms;
	uint64_t next_id;
	LIST_HEAD(, conn) conns, dead;
	unsigned int conn_count, stranger_count;
	struct pending *pending[NET_CALLS_MAX];
	struct served *served[NET_SERVED_MAX];
	struct peer_backoff backoff[OV_MEMBERS_MAX];
	unsigned int backoff_count;
	struct seed seeds[NET_SEEDS_MAX];
	unsigned int seed_count;
	struct invite invites[NET_INVITES_MAX];
	uint64_t lent_bytes; /* of streams that leave from memory */
	struct net_stats stats;
};

uint64_t net_now_ms(void);

/* conn.c */
int conn_dial(struct net *net, enum net_kind kind, const char *addr, uint16_t port,
	      struct conn **ret_conn);
void conn_accept(struct net *net, int fd_take);
void conn_close(struct conn *conn);
void conn_free(struct conn *conn);
/* Queues a frame of two parts; tail may be NULL. */
int conn_queue(struct conn *conn, uint16_t type, uint16_t flags, const void *head, size_t head_size,
	       const void *tail, size_t tail_size);
/* fd is duplicated; or it is -1, and bytes_take are sent. */
int conn_add_stream(struct conn *conn, uint64_t call, int fd, uint8_t *bytes_take, uint32_t size);
void conn_drop_stream(struct conn *conn, uint64_t call);
/* Sets what the socket is watched for after something was queued. */
void conn_kick(struct conn *conn);
void conn_set_phase(struct conn *conn, enum net_phase phase);

/* net.c: what a connection tells the rest */
void net_conn_open(struct conn *conn);
void net_conn_closed(struct conn *conn);
int net_conn_frame(struct conn *conn, const struct net_frame *frame);
void net_backoff_failed(struct net *net, const struct node_id *node);
struct conn *net_find_conn(struct net *net, const struct node_id *node, enum net_kind kind,
			   bool dialled);
int net_dial_node(struct net *net, const struct node_id *node, enum net_kind kind,
		  struct conn **ret_conn);

/* rpc.c */
int rpc_frame(struct conn *conn, const struct net_frame *frame);
void rpc_conn_closed(struct conn *conn);
void rpc_sent(struct conn *conn, uint64_t call);
void rpc_tick(struct net *net, uint64_t now_ms);
bool rpc_conn_busy(const struct conn *conn);
struct served *rpc_serve(struct conn *conn, uint64_t call);
struct served *rpc_find_served(struct net *net, uint64_t id);
void rpc_forget_served(struct net *net, struct served *served);
struct pending *rpc_wait(struct conn *conn, const struct net_caller *caller, void *ctx,
			 uint32_t stall_ms);
/* Ends it: frees and calls done(). */
void rpc_finish(struct net *net, struct pending *pending, int status);

/* At the end: without done(). */
void rpc_drop_all(struct net *net);

/* join.c */
bool join_find_psk(struct net_tls_link *link, const uint8_t token_id[static 16],
		   uint8_t ret_psk[static 32]);
int join_frame(struct conn *conn, const struct net_frame *frame);
