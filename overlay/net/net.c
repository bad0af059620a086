// SPDX-License-Identifier: LGPL-2.1-or-later
/* Listener, members, seeds: which connections exist. */
#include "overlay/net/net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

#include "overlay/net/internal.h"

enum { LISTEN_BACKLOG = 128, ACCEPT_BURST = 32, STALL_MIN_MS = 2000, STALL_MAX_MS = 6000 };

static int on_tick(sd_event_source *source, uint64_t usec, void *arg);

uint64_t net_now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

int net_create(sd_event *event, const struct net_handlers *handlers, void *ctx,
	       struct net **ret_net)
{
	struct net *net = calloc(1, sizeof(*net));
	int r;

	if (!net)
		return -ENOMEM;
	net->event = sd_event_ref(event);
	net->handlers = handlers;
	net->ctx = ctx;
	net->listen_fd = -1;
	net->control_stall_ms = STALL_MAX_MS;
	LIST_INIT(&net->conns);
	LIST_INIT(&net->dead);
	r = sd_event_add_time_relative(event, &net->tick, CLOCK_MONOTONIC, TICK_MS * 1000, 10000,
				       on_tick, net);
	if (r < 0) {
		net_destroy(net);
		return r;
	}
	*ret_net = net;
	return 0;
}

void net_destroy(struct net *net)
{
	struct conn *conn;

	if (!net)
		return;
	while ((conn = LIST_FIRST(&net->conns)))
		net_conn_closed(conn);
	rpc_drop_all(net);
	while ((conn = LIST_FIRST(&net->dead)))
		conn_free(conn);
	sd_event_source_disable_unref(net->tick);
	sd_event_source_disable_unref(net->accept);
	if (net->listen_fd >= 0)
		close(net->listen_fd);
	SSL_CTX_free(net->server);
	SSL_CTX_free(net->client);
	SSL_CTX_free(net->joiner);
	sd_event_unref(net->event);
	OPENSSL_cleanse(net->invites, sizeof(net->invites));
	free(net);
}

/* The stranger that has had the longest time to show a card. */
static void drop_oldest_stranger(struct net *net)
{
	struct conn *conn, *oldest = NULL;

	LIST_FOREACH(conn, &net->conns, entry)
	{
		if (!conn->dialled && conn->state != CONN_OPEN)
			oldest = conn; /* new ones come in at the head */
	}
	if (oldest)
		net_conn_closed(oldest);
}

static int on_accept(sd_event_source *source, int fd, uint32_t events, void *arg)
{
	struct net *net = arg;

	(void)source;
	(void)events;
	for (int i = 0; i < ACCEPT_BURST; i++) {
		int peer = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (peer < 0)
			return 0;
		if (net->stranger_count >= NET_STRANGERS_MAX)
			drop_oldest_stranger(net);
		conn_accept(net, peer);
	}
	return 0;
}

static int open_listener(const char *addr, uint16_t port)
{
	struct sockaddr_in v4 = { .sin_family = AF_INET, .sin_port = htons(port) };
	struct sockaddr_in6 v6 = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	struct sockaddr *address = (struct sockaddr *)&v4;
	socklen_t size = sizeof(v4);
	int fd, one = 1, r;

	if (inet_pton(AF_INET, addr, &v4.sin_addr) != 1) {
		if (inet_pton(AF_INET6, addr, &v6.sin6_addr) != 1)
			return -EINVAL;
		address = (struct sockaddr *)&v6;
		size = sizeof(v6);
	}
	fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
	    bind(fd, address, size) < 0 || listen(fd, LISTEN_BACKLOG) < 0) {
		r = -errno;
		close(fd);
		return r;
	}
	return fd;
}

static int check_identity(const struct ov_identity *identity)
{
	uint8_t key[TLS_KEY_SIZE];

	if (identity->seed_count > NET_SEEDS_MAX || !net_card_sane(&identity->card))
		return -EINVAL;
	if (net_tls_public_of(identity->tls_secret, key) < 0 ||
	    memcmp(key, identity->card.tls_public, sizeof(key)) != 0)
		return -EBADMSG;
	return 0;
}

static void add_seeds(struct net *net, const struct ov_identity *identity)
{
	for (uint32_t i = 0; i < identity->seed_count; i++) {
		struct seed *seed = &net->seeds[net->seed_count];

		if (identity->seeds[i].port == 0 ||
		    !memchr(identity->seeds[i].addr, '\0', OV_ADDR_MAX))
			continue;
		memcpy(seed->addr, identity->seeds[i].addr, sizeof(seed->addr));
		seed->port = identity->seeds[i].port;
		net->seed_count++;
	}
}

int net_start(struct net *net, const struct ov_identity *identity, const struct ov_start *start)
{
	SSL_CTX *server = NULL, *client = NULL;
	sd_event_source *accept = NULL;
	uint32_t stall_ms = start->suspect_ms;
	int fd = -1, r;

	if (net->started)
		return -EALREADY;
	r = check_identity(identity);
	if (r < 0)
		return r;
	r = net_tls_member_context(identity->tls_secret, true, &server);
	if (r == 0)
		r = net_tls_member_context(identity->tls_secret, false, &client);
	if (r == 0)
		r = fd = open_listener(start->listen_addr, start->port);
	if (r >= 0)
		r = sd_event_add_io(net->event, &accept, fd, EPOLLIN, on_accept, net);
	if (r < 0) {
		if (fd >= 0)
			close(fd);
		SSL_CTX_free(server);
		SSL_CTX_free(client);
		return r;
	}
	net->server = server;
	net->client = client;
	net->listen_fd = fd;
	net->accept = accept;
	net->card = identity->card;
	stall_ms = stall_ms < STALL_MIN_MS ? STALL_MIN_MS : stall_ms;
	net->control_stall_ms = stall_ms > STALL_MAX_MS ? STALL_MAX_MS : stall_ms;
	add_seeds(net, identity);
	net->started = true;
	return 0;
}

struct conn *net_find_conn(struct net *net, const struct node_id *node, enum net_kind kind,
			   bool dialled)
{
	struct conn *conn, *found = NULL;

	/* Newest first, and a usable one before one that is coming up. */
	LIST_FOREACH(conn, &net->conns, entry)
	{
		if (!conn->node_known || conn->kind != kind || (dialled && !conn->dialled) ||
		    !node_id_equal(&conn->node, node))
			continue;
		if (conn->state == CONN_OPEN)
			return conn;
		if (!found && conn->dialled)
			found = conn;
	}
	return found;
}

static struct peer_backoff *find_backoff(struct net *net, const struct node_id *node, bool add)
{
	struct peer_backoff *row;

	for (unsigned int i = 0; i < net->backoff_count; i++) {
		if (node_id_equal(&net->backoff[i].node, node))
			return &net->backoff[i];
	}
	if (!add)
		return NULL;
	if (net->backoff_count < OV_MEMBERS_MAX)
		row = &net->backoff[net->backoff_count++];
	else /* a wrong guess costs one early dial */
		row = &net->backoff[node->b[0] % OV_MEMBERS_MAX];
	*row = (struct peer_backoff){ .node = *node };
	return row;
}

void net_backoff_failed(struct net *net, const struct node_id *node)
{
	struct peer_backoff *row = find_backoff(net, node, true);

	row->delay_ms = row->delay_ms ? row->delay_ms * 2 : BACKOFF_MIN_MS;
	if (row->delay_ms > BACKOFF_MAX_MS)
		row->delay_ms = BACKOFF_MAX_MS;
	row->next_ms = net_now_ms() + row->delay_ms;
}

int net_dial_node(struct net *net, const struct node_id *node, enum net_kind kind,
		  struct conn **ret_conn)
{
	struct peer_backoff *row = find_backoff(net, node, false);
	const char *addr;
	uint16_t port;
	int r;

	if (!net->started)
		return -EPERM;
	/* Who waits for a call has a stall timeout, and the next peer to go to. */
	if (kind == NET_CONTROL && row && net_now_ms() < row->next_ms)
		return -EAGAIN;
	if (!net->handlers->address(net->ctx, node, &addr, &port))
		return -EHOSTUNREACH;
	r = conn_dial(net, kind, addr, port, ret_conn);
	if (r < 0) {
		net_backoff_failed(net, node);
		return r;
	}
	(*ret_conn)->node = *node;
	(*ret_conn)->node_known = true;
	return 0;
}

void net_send(struct net *net, const struct node_id *to, const void *bytes, size_t size)
{
	struct conn *conn = net_find_conn(net, to, NET_CONTROL, false);

	if (size == 0 || size > CORE_MESSAGE_MAX)
		return;
	if (!conn && net_dial_node(net, to, NET_CONTROL, &conn) < 0)
		return;
	if (conn_queue(conn, NET_CORE, 0, bytes, size, NULL, 0) == 0)
		conn_kick(conn);
}

void net_reset(struct net *net, const struct node_id *node, bool bulk_too)
{
	struct peer_backoff *row = find_backoff(net, node, false);
	struct conn *conn, *next;

	/* The callbacks of a closed call could open others: those are of use, and stay. */
	for (conn = LIST_FIRST(&net->conns); conn; conn = next) {
		next = LIST_NEXT(conn, entry);
		if (!conn->node_known || !node_id_equal(&conn->node, node))
			continue;
		if (conn->kind == NET_BULK && !bulk_too)
			continue;
		conn_close(conn);
	}
	if (row)
		row->next_ms = 0;
}

void net_conn_open(struct conn *conn)
{
	struct net *net = conn->net;
	struct peer_backoff *row = find_backoff(net, &conn->node, false);

	if (row)
		*row = (struct peer_backoff){ .node = conn->node };
	if (conn->seed >= 0)
		net->seeds[conn->seed].known = true;
	if (conn->kind == NET_CONTROL)
		net->handlers->connected(net->ctx, &conn->card, conn->dialled ? conn->addr : NULL,
					 conn->port);
}

void net_conn_closed(struct conn *conn)
{
	if (conn->state != CONN_DEAD && !conn->dialled && conn->state != CONN_OPEN)
		conn->net->stats.refused++;
	conn_close(conn);
}

int net_conn_frame(struct conn *conn, const struct net_frame *frame)
{
	struct net *net = conn->net;

	switch (frame->type) {
	case NET_CORE:
		net->handlers->message(net->ctx, &conn->node, frame->body, frame->size);
		return 0;
	case NET_JOIN:
	case NET_JOIN_REPLY:
		return join_frame(conn, frame);
	default:
		return rpc_frame(conn, frame);
	}
}

static bool is_expired(const struct conn *conn, uint64_t now)
{
	switch (conn->state) {
	case CONN_CONNECTING:
		return now - conn->created_ms > NET_CONNECT_MS;
	case CONN_HANDSHAKE:
	case CONN_CARD:
		return now - conn->created_ms > NET_HANDSHAKE_MS;
	case CONN_OPEN:
		break;
	default:
		return false;
	}
	switch (conn->kind) {
	case NET_CONTROL:
		return now - conn->used_ms > NET_CONTROL_IDLE_MS;
	case NET_BULK:
		return now - conn->used_ms > NET_BULK_IDLE_MS && !rpc_conn_busy(conn);
	default:
		return now - conn->created_ms > NET_JOIN_MS;
	}
}

static void expire_conns(struct net *net, uint64_t now)
{
	struct conn *conn, *next;

	for (conn = LIST_FIRST(&net->conns); conn; conn = next) {
		next = LIST_NEXT(conn, entry);
		if (is_expired(conn, now))
			net_conn_closed(conn);
	}
}

static bool seed_connected(struct net *net, int index)
{
	struct conn *conn;

	LIST_FOREACH(conn, &net->conns, entry)
	{
		if (conn->seed == index)
			return true;
	}
	return false;
}

/*
 * A seed is dialled again for ever: after a long partition each side holds the other for dead
 * and would not call by itself.
 */
static void dial_seeds(struct net *net, uint64_t now)
{
	for (unsigned int i = 0; i < net->seed_count; i++) {
		struct seed *seed = &net->seeds[i];
		struct conn *conn;

		if (seed->self || now < seed->next_ms || seed_connected(net, (int)i))
			continue;
		seed->next_ms = now + (seed->known ? SEED_KNOWN_RETRY_MS : SEED_RETRY_MS);
		if (conn_dial(net, NET_CONTROL, seed->addr, seed->port, &conn) == 0)
			conn->seed = (int)i;
	}
}

static int on_tick(sd_event_source *source, uint64_t usec, void *arg)
{
	struct net *net = arg;
	uint64_t now = net_now_ms();
	struct conn *conn, *next;

	(void)usec;
	/* The dead of before this tick: nobody up the stack holds one now. */
	for (conn = LIST_FIRST(&net->dead); conn; conn = next) {
		next = LIST_NEXT(conn, entry);
		rpc_conn_closed(conn);
		conn_free(conn);
	}
	expire_conns(net, now);
	rpc_tick(net, now);
	if (net->started)
		dial_seeds(net, now);
	if (sd_event_source_set_time_relative(source, TICK_MS * 1000) < 0)
		return -EIO;
	return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

void net_get_stats(const struct net *net, struct net_stats *ret_stats)
{
	struct net_stats stats = net->stats;
	const struct conn *conn, *other;

	LIST_FOREACH(conn, &net->conns, entry)
	{
		if (conn->state != CONN_OPEN || conn->kind != NET_CONTROL)
			continue;
		LIST_FOREACH(other, &net->conns, entry)
		{
			if (other == conn ||
			    (other->state == CONN_OPEN && other->kind == NET_CONTROL &&
			     node_id_equal(&other->node, &conn->node)))
				break;
		}
		stats.peers += other == conn;
	}
	*ret_stats = stats;
}
