// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Messages that wait in a unix socket, looked at without taking them out.
 *
 * One MSG_PEEK shows a whole stream. Messages beyond the first need SO_PEEK_OFF, which is an
 * attribute of the socket: it is set back at once. A message of no bytes is shown only once by it.
 */
#include "agent/native/sockets_internal.h"

#include <errno.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <string.h>
#include <sys/syscall.h>

#include "agent/native/ipc.pb-c.h"

enum {
	SCM_PIDFD_ = 4,				 /* since Linux 6.5: missing in older headers */
	CONTROL_MAX = SOCK_RIGHTS_MAX * 4 + 256, /* descriptors, and what else may come along */
	SHUT_RECEIVE = 1,			 /* bit of sk_shutdown */
};

/* What came along with bytes. The descriptors are ours until they are closed. */
struct extras {
	int fds[SOCK_RIGHTS_MAX];
	uint32_t fd_count;
	bool strange;
};

static void close_extras(struct extras *e)
{
	for (uint32_t i = 0; i < e->fd_count; i++)
		close(e->fds[i]);
	e->fd_count = 0;
}

static void take_fds(struct extras *e, const struct cmsghdr *c)
{
	size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

	for (size_t i = 0; i < count; i++) {
		int fd;

		memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
		if (e->fd_count < SOCK_RIGHTS_MAX)
			e->fds[e->fd_count++] = fd;
		else
			close(fd);
	}
}

/* Time stamps may be lost: the restored message gets new ones. */
static void read_control(struct extras *e, struct msghdr *m)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		bool rights = c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS;

		if (rights || (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_PIDFD_))
			take_fds(e, c);
		if (!rights && !(c->cmsg_level == SOL_SOCKET && (c->cmsg_type == SCM_TIMESTAMP ||
								 c->cmsg_type == SCM_TIMESTAMPNS)))
			e->strange = true;
	}
	if (m->msg_flags & MSG_CTRUNC)
		e->strange = true;
}

static ssize_t peek(int fd, void *bytes, size_t size, int flags, struct extras *e)
{
	union {
		struct cmsghdr align;
		uint8_t bytes[CONTROL_MAX];
	} control;
	struct iovec v = { .iov_base = bytes, .iov_len = size };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };
	ssize_t n;

	if (e) {
		m.msg_control = control.bytes;
		m.msg_controllen = sizeof(control.bytes);
	}
	n = recvmsg(fd, &m, flags | MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (n < 0)
		return -errno;
	if (e)
		read_control(e, &m);
	return n;
}

/* The open file of the job that a descriptor of ours is, too. */
static struct native_open *find_open(struct native_files *f, int fd)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return NULL;
	for (size_t i = 0; i < f->open_count; i++) {
		struct native_open *o = &f->opens[i];

		if (o->fd->ino == st.st_ino &&
		    o->fd->dev == (major(st.st_dev) << 20 | minor(st.st_dev)) &&
		    syscall(SYS_kcmp, getpid(), o->task->pid, KCMP_FILE, fd, o->fd->fd) == 0)
			return o;
	}
	return NULL;
}

static int add_packet(struct native_files *f, struct sock *s, struct sock_packet ***end,
		      uint8_t *bytes, size_t length, struct extras *e)
{
	struct sock_packet *p;

	if (e->strange)
		return files_refuse(f, s->open,
				    "has a queued message with credentials or the like");
	p = arena_alloc(f->tree->arena, sizeof(*p) + e->fd_count * sizeof(p->rights[0]));
	if (!p)
		return -ENOMEM;
	p->bytes = bytes;
	p->length = (uint32_t)length;
	p->right_count = e->fd_count;
	for (uint32_t i = 0; i < e->fd_count; i++) {
		const struct native_open *o = find_open(f, e->fds[i]);

		if (!o)
			return files_refuse(f, s->open,
					    "has a queued message with a descriptor that no "
					    "process of the job has open");
		p->rights[i] = o->id;
	}
	**end = p;
	*end = &p->next;
	return 0;
}

/*
 * A look at a stream goes on into the message that brings descriptors, and ends with it. Where it
 * begins: the same look again, with no room for the last byte, fails in that message and returns
 * what lay before. (Just less room does not tell: a full look shows the next message's descriptors.)
 */
static int find_rights(int fd, int at, uint8_t *bytes, size_t size, size_t *ret_start)
{
	struct iovec v[] = { { .iov_base = bytes, .iov_len = size - 1 },
			     { .iov_base = (void *)1, .iov_len = 1 } };
	struct msghdr m = { .msg_iov = v, .msg_iovlen = ARRAY_SIZE(v) };
	ssize_t n;

	if (setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &at, sizeof(at)) < 0)
		return -errno;
	n = recvmsg(fd, &m, MSG_PEEK | MSG_DONTWAIT);
	if (n < 0 && errno != EFAULT)
		return -errno;
	if (n >= (ssize_t)size)
		return -EIO;
	at += (int)size;
	if (setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &at, sizeof(at)) < 0)
		return -errno;
	*ret_start = n < 0 ? 0 : (size_t)n;
	return 0;
}

/* One look: what lies before a message with descriptors is a packet of its own. */
static int add_look(struct native_files *f, struct sock *s, int fd, int at,
		    struct sock_packet ***end, uint8_t *bytes, size_t size, struct extras *e)
{
	struct extras none = { .fd_count = 0 };
	size_t start = 0;
	int r = 0;

	if (e->fd_count > 0 && !e->strange)
		r = find_rights(fd, at, bytes, size, &start);
	if (r == 0 && start > 0)
		r = add_packet(f, s, end, bytes, start, &none);
	return r < 0 ? r : add_packet(f, s, end, bytes + start, size - start, e);
}

/* A stream from the peek offset on, which is 0; or all of it in one look, if nothing is in between. */
static int peek_stream(struct native_files *f, struct sock *s, int fd, struct sock_packet **end,
		       bool once)
{
	size_t size = s->u->state.rqueue, at = 0;
	uint8_t *bytes = arena_alloc(f->tree->arena, size);

	if (!bytes)
		return -ENOMEM;
	while (at < size) {
		struct extras e = { .fd_count = 0 };
		ssize_t n = peek(fd, bytes + at, size - at, 0, &e);
		int r;

		if (n <= 0 || (once && ((size_t)n < size || e.fd_count > 0))) {
			close_extras(&e);
			return once ? -EAGAIN : n < 0 && n != -EAGAIN ? (int)n : -ENODATA;
		}
		r = add_look(f, s, fd, (int)at, &end, bytes + at, (size_t)n, &e);
		close_extras(&e);
		if (r < 0)
			return r;
		at += (size_t)n;
	}
	return 0;
}

/* The first look at a message shows its length and what came along, the second one its bytes. */
static int peek_message(struct native_files *f, struct sock *s, int fd, struct sock_packet ***end,
			size_t *total)
{
	struct extras e = { .fd_count = 0 };
	ssize_t n = peek(fd, NULL, 0, MSG_TRUNC, &e);
	uint8_t *bytes = NULL;
	int r = 0;

	if (n < 0)
		return (int)n;
	if (n == 0 && s->type == SOCK_SEQPACKET && (s->u->state.shutdown & SHUT_RECEIVE))
		return -EAGAIN;
	*total += (size_t)n;
	if (*total > SOCK_QUEUE_MAX) {
		r = files_refuse(f, s->open, "has more than %d bytes queued", SOCK_QUEUE_MAX);
	} else if (n > 0) {
		bytes = arena_alloc(f->tree->arena, (size_t)n);
		if (!bytes)
			r = -ENOMEM;
		else if (peek(fd, bytes, (size_t)n, 0, NULL) != n)
			r = -EIO;
	}
	if (r == 0)
		r = add_packet(f, s, end, bytes, (size_t)n, &e);
	close_extras(&e);
	return r;
}

static int peek_messages(struct native_files *f, struct sock *s, int fd, struct sock_packet **end)
{
	size_t total = 0;
	int r;

	for (unsigned int count = 0; count < SOCK_PACKETS_MAX; count++) {
		r = peek_message(f, s, fd, &end, &total);
		if (r == -EAGAIN) {
			if (s->type == SOCK_SEQPACKET && total != s->u->state.rqueue)
				return files_refuse(f, s->open,
						    "has queued messages that cannot be seen");
			return 0;
		}
		if (r < 0)
			return r;
	}
	return files_refuse(f, s->open, "has more than %d messages queued", SOCK_PACKETS_MAX);
}

static int with_peek_offset(struct native_files *f, struct sock *s, int fd)
{
	int zero = 0, before, r;

	r = sock_int(fd, SOL_SOCKET, SO_PEEK_OFF, &before);
	if (r < 0)
		return r;
	if (setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &zero, sizeof(zero)) < 0)
		return -errno;
	s->u->queue = NULL;
	r = s->type == SOCK_STREAM ? peek_stream(f, s, fd, &s->u->queue, false) :
				     peek_messages(f, s, fd, &s->u->queue);
	if (setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &before, sizeof(before)) < 0 && r == 0)
		r = -errno;
	if (r == -ENODATA)
		r = files_refuse(f, s->open, "has queued bytes that cannot be seen");
	return r;
}

/* For messages, rqueue alone does not tell an empty one from none. */
static bool has_messages(const struct sock *s, int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	if (s->u->state.rqueue > 0)
		return true;
	return poll(&p, 1, 0) == 1 && (p.revents & POLLIN) &&
	       !(s->u->state.shutdown & SHUT_RECEIVE);
}

int sock_queue_collect(struct native_files *f, struct sock *s, int fd)
{
	int r;

	if (s->u->state.state == SOCK_TCP_LISTEN)
		return 0;
	if (s->u->state.rqueue > SOCK_QUEUE_MAX)
		return files_refuse(f, s->open, "has more than %d bytes queued", SOCK_QUEUE_MAX);
	if (s->type == SOCK_STREAM) {
		int offset;

		if (s->u->state.rqueue == 0)
			return 0;
		r = sock_int(fd, SOL_SOCKET, SO_PEEK_OFF, &offset);
		if (r == 0 && offset < 0) {
			r = peek_stream(f, s, fd, &s->u->queue, true);
			if (r != -EAGAIN)
				return r;
		}
		return with_peek_offset(f, s, fd);
	}
	if (!has_messages(s, fd))
		return 0;
	r = with_peek_offset(f, s, fd);
	if (r == 0 && !s->u->queue)
		r = files_refuse(f, s->open, "has an empty message queued");
	return r;
}

void sock_queue_write(struct img *image, const struct sock *s)
{
	for (const struct sock_packet *p = s->u->queue; p; p = p->next) {
		NatIpc__Packet message = NAT_IPC__PACKET__INIT;
		NatIpc__Rights rights = NAT_IPC__RIGHTS__INIT;
		NatIpc__Rights *all[] = { &rights };

		message.id_for = s->open->id;
		message.length = p->length;
		if (p->right_count > 0) {
			rights.type = SCM_RIGHTS;
			rights.n_rights = p->right_count;
			rights.rights = (uint32_t *)p->rights;
			message.n_scm = 1;
			message.scm = all;
		}
		img_put(image, &message.base);
		if (p->length > 0)
			img_put_raw(image, p->bytes, p->length);
	}
}
