// SPDX-License-Identifier: LGPL-2.1-or-later
/* One connection: connect, handshake, cards, then whole frames in and out. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "agent/util/io.h"
#include "overlay/net/internal.h"

enum {
	BULK_STALL_MS = 5000,
	CHUNK_BYTES = NET_CHUNK_MAX - NET_HEADER_SIZE - 8, /* of a stream in one frame */
};

_Static_assert(NET_CHUNK_MAX % SSL3_RT_MAX_PLAIN_LENGTH == 0, "frames fill their records");

static int on_io(sd_event_source *source, int fd, uint32_t events, void *arg);

static void set_option(int fd, int level, int name, int value)
{
	/* A kernel without one of these only notices a dead peer later. */
	(void)setsockopt(fd, level, name, &value, sizeof(value));
}

static void set_stall(struct conn *conn)
{
	uint32_t ms = conn->kind == NET_CONTROL ? conn->net->control_stall_ms : BULK_STALL_MS;

	set_option(conn->fd, IPPROTO_TCP, TCP_USER_TIMEOUT, (int)ms);
}

static struct conn *conn_new(struct net *net, int fd)
{
	struct conn *conn;

	if (net->conn_count >= NET_CONNS_MAX)
		return NULL;
	conn = calloc(1, sizeof(*conn));
	if (!conn)
		return NULL;
	conn->net = net;
	conn->fd = fd;
	conn->seed = -1;
	conn->created_ms = conn->used_ms = net_now_ms();
	STAILQ_INIT(&conn->frames);
	TAILQ_INIT(&conn->streams);
	set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
	set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, 2);
	set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, 1);
	set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
	/* Little unsent data in the kernel: a small frame overtakes what is still queued here. */
	set_option(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, 256 << 10);
	LIST_INSERT_HEAD(&net->conns, conn, entry);
	net->conn_count++;
	return conn;
}

static int conn_watch(struct conn *conn, uint32_t events)
{
	int r = sd_event_add_io(conn->net->event, &conn->io, conn->fd, events, on_io, conn);

	if (r < 0)
		return r;
	return sd_event_source_set_priority(conn->io, conn->kind == NET_BULK ? 10 : 0);
}

static int parse_address(const char *addr, uint16_t port, struct sockaddr_storage *ret_address,
			 socklen_t *ret_size)
{
	struct sockaddr_storage address = { 0 };
	struct sockaddr_in *v4 = (struct sockaddr_in *)&address;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&address;

	if (inet_pton(AF_INET, addr, &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons(port);
		*ret_size = sizeof(*v4);
	} else if (inet_pton(AF_INET6, addr, &v6->sin6_addr) == 1) {
		v6->sin6_family = AF_INET6;
		v6->sin6_port = htons(port);
		*ret_size = sizeof(*v6);
	} else {
		return -EINVAL;
	}
	*ret_address = address;
	return 0;
}

int conn_dial(struct net *net, enum net_kind kind, const char *addr, uint16_t port,
	      struct conn **ret_conn)
{
	struct sockaddr_storage address;
	socklen_t size;
	struct conn *conn;
	int fd, r = parse_address(addr, port, &address, &size);

	if (r < 0)
		return r;
	fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	conn = conn_new(net, fd);
	if (!conn) {
		close(fd);
		return -ENOBUFS;
	}
	conn->dialled = true;
	conn->kind = kind;
	conn->state = CONN_CONNECTING;
	conn->port = port;
	snprintf(conn->addr, sizeof(conn->addr), "%s", addr);
	set_stall(conn);
	r = connect(fd, (struct sockaddr *)&address, size) < 0 && errno != EINPROGRESS ? -errno : 0;
	if (r == 0)
		r = conn_watch(conn, EPOLLOUT);
	if (r < 0) {
		conn_close(conn);
		return r;
	}
	*ret_conn = conn;
	return 0;
}

static int start_tls(struct conn *conn)
{
	struct net *net = conn->net;
	SSL_CTX *context = !conn->dialled	     ? net->server :
			   conn->kind == NET_JOINING ? net->joiner :
						       net->client;

	conn->ssl = SSL_new(context);
	if (!conn->ssl || SSL_set_fd(conn->ssl, conn->fd) != 1)
		return -ENOMEM;
	SSL_set_app_data(conn->ssl, &conn->link);
	if (conn->dialled)
		SSL_set_connect_state(conn->ssl);
	else
		SSL_set_accept_state(conn->ssl);
	conn->state = CONN_HANDSHAKE;
	return 0;
}

void conn_accept(struct net *net, int fd)
{
	struct conn *conn = conn_new(net, fd);

	if (!conn) {
		close(fd);
		return;
	}
	net->stranger_count++;
	conn->link.find_psk = join_find_psk;
	if (start_tls(conn) < 0 || conn_watch(conn, EPOLLIN) < 0)
		conn_close(conn);
}

void conn_close(struct conn *conn)
{
	struct net *net = conn->net;
	struct out_stream *stream;
	enum conn_state was = conn->state;

	if (was == CONN_DEAD)
		return;
	conn->state = CONN_DEAD;
	if (!conn->dialled && was != CONN_OPEN)
		net->stranger_count--;
	sd_event_source_disable_unref(conn->io);
	sd_event_source_disable_unref(conn->again);
	conn->io = conn->again = NULL;
	/* No close_notify: a stranger gets silence, and a member's frames say when they are whole. */
	SSL_free(conn->ssl);
	conn->ssl = NULL;
	ERR_clear_error();
	close(conn->fd);
	conn->fd = -1;
	while ((stream = TAILQ_FIRST(&conn->streams)))
		conn_drop_stream(conn, stream->call);
	LIST_REMOVE(conn, entry);
	LIST_INSERT_HEAD(&net->dead, conn, entry);
	net->conn_count--;
	if (conn->dialled && was != CONN_OPEN && conn->node_known)
		net_backoff_failed(net, &conn->node);
}

void conn_free(struct conn *conn)
{
	struct out_frame *frame;

	while ((frame = STAILQ_FIRST(&conn->frames))) {
		STAILQ_REMOVE_HEAD(&conn->frames, next);
		free(frame);
	}
	free(conn->out);
	free(conn->in);
	OPENSSL_cleanse(&conn->link, sizeof(conn->link));
	LIST_REMOVE(conn, entry);
	free(conn);
}

void conn_set_phase(struct conn *conn, enum net_phase phase)
{
	conn->phase = phase;
}

/* A bulk queue that is full is a peer that does not read; a control queue drops its oldest. */
static int make_room(struct conn *conn)
{
	struct out_frame *oldest = STAILQ_FIRST(&conn->frames);

	if (conn->kind != NET_CONTROL)
		return conn->frame_count >= NET_BULK_QUEUE_MAX ? -ENOBUFS : 0;
	if (conn->frame_count < NET_CONTROL_QUEUE_MAX)
		return 0;
	STAILQ_REMOVE_HEAD(&conn->frames, next);
	conn->frame_count--;
	free(oldest);
	return 0;
}

static struct out_frame *new_frame(uint32_t size, uint16_t type, uint16_t flags)
{
	struct out_frame *frame = malloc(sizeof(*frame) + NET_HEADER_SIZE + size);

	if (!frame)
		return NULL;
	frame->size = NET_HEADER_SIZE + size;
	net_frame_header(frame->bytes, size, type, flags);
	return frame;
}

int conn_queue(struct conn *conn, uint16_t type, uint16_t flags, const void *head, size_t head_size,
	       const void *tail, size_t tail_size)
{
	struct out_frame *frame;
	int r;

	if (conn->state == CONN_DEAD)
		return -ECONNRESET;
	r = make_room(conn);
	if (r < 0)
		return r;
	frame = new_frame((uint32_t)(head_size + tail_size), type, flags);
	if (!frame)
		return -ENOMEM;
	memcpy(frame->bytes + NET_HEADER_SIZE, head, head_size);
	if (tail_size > 0)
		memcpy(frame->bytes + NET_HEADER_SIZE + head_size, tail, tail_size);
	/* The card goes before whatever was queued while the connection came up. */
	if (type == NET_HELLO)
		STAILQ_INSERT_HEAD(&conn->frames, frame, next);
	else
		STAILQ_INSERT_TAIL(&conn->frames, frame, next);
	conn->frame_count++;
	return 0;
}

int conn_add_stream(struct conn *conn, uint64_t call, int fd, uint8_t *bytes, uint32_t size)
{
	struct out_stream *stream = calloc(1, sizeof(*stream));

	if (!stream) {
		free(bytes);
		return -ENOMEM;
	}
	stream->fd = bytes ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (!bytes && stream->fd < 0) {
		free(stream);
		return -errno;
	}
	stream->call = call;
	stream->bytes = bytes;
	conn->net->lent_bytes += bytes ? size : 0;
	stream->size = size;
	TAILQ_INSERT_TAIL(&conn->streams, stream, next);
	return 0;
}

void conn_drop_stream(struct conn *conn, uint64_t call)
{
	struct out_stream *stream;

	TAILQ_FOREACH(stream, &conn->streams, next)
	{
		if (stream->call != call)
			continue;
		TAILQ_REMOVE(&conn->streams, stream, next);
		conn->net->lent_bytes -= stream->bytes ? stream->size : 0;
		close_fdp(&stream->fd);
		free(stream->bytes);
		free(stream);
		return;
	}
}

/* What may leave now: before the peer's card is verified nothing but our own card. */
static bool may_send(const struct conn *conn)
{
	const struct out_frame *next = STAILQ_FIRST(&conn->frames);

	if (conn->out)
		return true;
	if (conn->state == CONN_OPEN)
		return next || !TAILQ_EMPTY(&conn->streams);
	return conn->state == CONN_CARD && next && next->bytes[4] == NET_HELLO;
}

void conn_kick(struct conn *conn)
{
	uint32_t events = EPOLLIN;

	if (conn->state == CONN_DEAD || conn->state == CONN_CONNECTING)
		return;
	if (conn->state == CONN_HANDSHAKE ? conn->write_blocked : may_send(conn))
		events |= EPOLLOUT;
	if (sd_event_source_set_io_events(conn->io, events) < 0)
		net_conn_closed(conn);
}

/*
 * The next part of the first stream as a frame. It fills its TLS records: with a few bytes more each
 * frame would end in a record, a write and a segment for those alone.
 */
static int next_chunk(struct conn *conn, struct out_frame **ret_frame)
{
	struct out_stream *stream = TAILQ_FIRST(&conn->streams);
	uint32_t left = stream->size - stream->offset;
	uint32_t part = left < CHUNK_BYTES ? left : CHUNK_BYTES;
	struct out_frame *frame = new_frame(8 + part, NET_DATA, 0);
	uint8_t *to;
	int r = 0;

	if (!frame)
		return -ENOMEM;
	net_u64_encode(stream->call, frame->bytes + NET_HEADER_SIZE);
	to = frame->bytes + NET_HEADER_SIZE + 8;
	if (stream->bytes)
		memcpy(to, stream->bytes + stream->offset, part);
	else
		r = pread_full(stream->fd, to, part, (off_t)stream->offset);
	if (r < 0) {
		free(frame);
		return r;
	}
	stream->offset += part;
	rpc_sent(conn, stream->call);
	if (stream->offset == stream->size)
		conn_drop_stream(conn, stream->call);
	*ret_frame = frame;
	return 0;
}

static int fill_out(struct conn *conn)
{
	if (conn->out || !may_send(conn))
		return 0;
	conn->out_offset = 0;
	conn->out = STAILQ_FIRST(&conn->frames);
	if (!conn->out)
		return next_chunk(conn, &conn->out);
	STAILQ_REMOVE_HEAD(&conn->frames, next);
	conn->frame_count--;
	return 0;
}

/* 0: go on; -EAGAIN: wait for the socket; another error: the connection is gone. */
static int tls_result(struct conn *conn, int n)
{
	switch (SSL_get_error(conn->ssl, n)) {
	case SSL_ERROR_WANT_READ:
		return -EAGAIN;
	case SSL_ERROR_WANT_WRITE:
		conn->write_blocked = true;
		return -EAGAIN;
	default:
		return -ECONNRESET;
	}
}

/* While a stream leaves: the kernel makes full segments of records, else each is one of its own. */
static void set_cork(const struct conn *conn, bool corked)
{
	set_option(conn->fd, IPPROTO_TCP, TCP_CORK, corked);
}

static int write_frames(struct conn *conn)
{
	bool corked = !TAILQ_EMPTY(&conn->streams);
	size_t budget = IO_BUDGET_BYTES;
	int r = 0;

	if (corked)
		set_cork(conn, true);
	while (budget > 0) {
		size_t left, done = 0;
		int n;

		r = fill_out(conn);
		if (r < 0 || !conn->out)
			break;
		left = conn->out->size - conn->out_offset;
		ERR_clear_error();
		n = SSL_write_ex(conn->ssl, conn->out->bytes + conn->out_offset, left, &done);
		if (n != 1) {
			r = tls_result(conn, n);
			break;
		}
		conn->out_offset += done;
		conn->net->stats.sent_bytes += done;
		conn->used_ms = net_now_ms();
		budget -= done < budget ? done : budget;
		if (conn->out_offset == conn->out->size) {
			free(conn->out);
			conn->out = NULL;
		}
	}
	if (corked)
		set_cork(conn, false);
	if (r == 0 && conn->close_when_sent && !conn->out && STAILQ_EMPTY(&conn->frames))
		return -ESHUTDOWN;
	return r == -EAGAIN ? 0 : r;
}

/* The peer's card: the end of being a stranger. */
static int take_card(struct conn *conn, const struct net_frame *frame)
{
	struct net *net = conn->net;
	struct node_card card;

	memcpy(&card, frame->body, sizeof(card));
	if (frame->flags != NET_CONTROL && frame->flags != NET_BULK)
		return -EBADMSG;
	if (conn->dialled && frame->flags != conn->kind)
		return -EBADMSG;
	if (memcmp(card.tls_public, conn->peer_key, sizeof(conn->peer_key)) != 0 ||
	    !net->handlers->verify_card(net->ctx, &card))
		return -EACCES;
	if (node_id_equal(&card.id, &net->card.id)) {
		if (conn->seed >= 0)
			net->seeds[conn->seed].self = true;
		return -EACCES;
	}
	if (conn->node_known && !node_id_equal(&card.id, &conn->node))
		return -EACCES;
	conn->card = card;
	conn->node = card.id;
	conn->node_known = true;
	conn->kind = (enum net_kind)frame->flags;
	if (!conn->dialled) {
		int r = conn_queue(conn, NET_HELLO, (uint16_t)conn->kind, &net->card,
				   sizeof(net->card), NULL, 0);

		if (r < 0)
			return r;
		net->stranger_count--;
		set_stall(conn);
	}
	conn->state = CONN_OPEN;
	if (conn->kind == NET_CONTROL)
		conn_set_phase(conn, NET_PHASE_CONTROL);
	else
		conn_set_phase(conn, conn->dialled ? NET_PHASE_CALLING : NET_PHASE_CALLED);
	net_conn_open(conn);
	return conn->state == CONN_DEAD ? -ECONNRESET : 0;
}

static int take_frames(struct conn *conn)
{
	size_t used = 0;
	int r;

	for (;;) {
		struct net_frame frame;

		r = net_frame_decode(conn->phase, conn->in + used, conn->in_size - used, &frame);
		if (r <= 0)
			break;
		used += NET_HEADER_SIZE + frame.size;
		r = conn->phase == NET_PHASE_CARD ? take_card(conn, &frame) :
						    net_conn_frame(conn, &frame);
		if (r < 0 || conn->state == CONN_DEAD)
			return r < 0 ? r : -ECONNRESET;
	}
	memmove(conn->in, conn->in + used, conn->in_size - used);
	conn->in_size -= used;
	return r;
}

static int on_again(sd_event_source *source, void *arg)
{
	struct conn *conn = arg;

	return on_io(source, conn->fd, EPOLLIN, conn);
}

/* TLS still holds bytes that the socket will not announce again. */
static int read_again(struct conn *conn)
{
	int r;

	if (conn->again)
		return sd_event_source_set_enabled(conn->again, SD_EVENT_ONESHOT);
	r = sd_event_add_defer(conn->net->event, &conn->again, on_again, conn);
	if (r < 0)
		return r;
	return sd_event_source_set_priority(conn->again, conn->kind == NET_BULK ? 10 : 0);
}

static int read_frames(struct conn *conn)
{
	size_t budget = IO_BUDGET_BYTES;

	while (budget > 0) {
		size_t room = net_frame_room(conn->phase), done = 0;
		int n, r;

		if (room > conn->in_room) {
			uint8_t *more = realloc(conn->in, room);

			if (!more)
				return -ENOMEM;
			conn->in = more;
			conn->in_room = room;
		}
		/* A whole frame never stays in the buffer, so there is always room. */
		ERR_clear_error();
		n = SSL_read_ex(conn->ssl, conn->in + conn->in_size, room - conn->in_size, &done);
		if (n != 1) {
			r = tls_result(conn, n);
			return r == -EAGAIN ? 0 : r;
		}
		conn->in_size += done;
		conn->net->stats.received_bytes += done;
		conn->used_ms = net_now_ms();
		budget -= done < budget ? done : budget;
		r = take_frames(conn);
		if (r < 0)
			return r;
	}
	return read_again(conn);
}

static int handshake_done(struct conn *conn)
{
	struct net *net = conn->net;

	if (conn->kind == NET_JOINING) {
		/* Either side: the PSK is proven, no certificate was shown. */
		conn->state = CONN_OPEN;
		if (!conn->dialled)
			net->stranger_count--;
		conn_set_phase(conn, conn->dialled ? NET_PHASE_JOIN_REPLY : NET_PHASE_JOIN);
		return 0;
	}
	conn->state = CONN_CARD;
	conn_set_phase(conn, NET_PHASE_CARD);
	if (net_tls_peer_key(conn->ssl, conn->peer_key) < 0)
		return -EACCES;
	if (!conn->dialled)
		return 0;
	return conn_queue(conn, NET_HELLO, (uint16_t)conn->kind, &net->card, sizeof(net->card),
			  NULL, 0);
}

static int handshake(struct conn *conn)
{
	int n, r;

	conn->write_blocked = false;
	ERR_clear_error();
	n = SSL_do_handshake(conn->ssl);
	if (n == 1)
		return handshake_done(conn);
	r = tls_result(conn, n);
	return r == -EAGAIN ? 0 : r;
}

static int connected(struct conn *conn)
{
	socklen_t size = sizeof(int);
	int error = 0;

	if (getsockopt(conn->fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0)
		return -errno;
	return error ? -error : start_tls(conn);
}

static int on_io(sd_event_source *source, int fd, uint32_t events, void *arg)
{
	struct conn *conn = arg;
	int r = 0;

	(void)source;
	(void)fd;
	if (conn->state == CONN_CONNECTING)
		r = connected(conn);
	if (r == 0 && conn->state == CONN_HANDSHAKE)
		r = handshake(conn);
	if (r == 0 && conn->state >= CONN_CARD && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
		r = read_frames(conn);
	if (r >= 0 && (conn->state == CONN_CARD || conn->state == CONN_OPEN))
		r = write_frames(conn);
	if (r == -EBADMSG && conn->state == CONN_OPEN)
		conn->net->stats.garbled++;
	if (r < 0)
		net_conn_closed(conn);
	else
		conn_kick(conn);
	return 0;
}
