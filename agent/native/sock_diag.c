// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/native/sockets_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <sched.h>
#include <string.h>

enum {
	ANSWER_MAX = 8192, /* the kernel ends an answer at a page */
	NO_COOKIE = -1,
};

static int open_diag(void)
{
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);

	return fd < 0 ? -errno : fd;
}

/* A socket stays in the network namespace that it was made in: go there, and back at once. */
static int open_diag_in(pid_t pid)
{
	_cleanup_close_ int home = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	_cleanup_close_ int there = -1;
	char path[64];
	int fd;

	if (home < 0)
		return -errno;
	snprintf(path, sizeof(path), "/proc/%d/ns/net", pid);
	there = open(path, O_RDONLY | O_CLOEXEC);
	if (there < 0 || setns(there, CLONE_NEWNET) < 0)
		return -errno;
	fd = open_diag();
	if (setns(home, CLONE_NEWNET) < 0) {
		int r = -errno;

		if (fd >= 0)
			close(fd);
		return r;
	}
	return fd;
}

static int diag_for(struct sock_area *a, const struct native_task *task)
{
	uint32_t ns = task->state ? task->state->ns_net : 0;
	struct stat own;

	if (a->diag >= 0 && a->diag_ns == ns)
		return 0;
	sock_diag_close(a);
	if (stat("/proc/thread-self/ns/net", &own) < 0)
		return -errno;
	a->diag = ns == 0 || own.st_ino == ns ? open_diag() : open_diag_in(task->pid);
	a->diag_ns = ns;
	if (a->diag < 0) {
		int r = a->diag;

		a->diag = -1;
		return r;
	}
	return 0;
}

void sock_diag_close(struct sock_area *a)
{
	if (a->diag >= 0)
		close(a->diag);
	a->diag = -1;
}

static uint32_t get_u32(const struct rtattr *attr)
{
	uint32_t value = 0;

	if (RTA_PAYLOAD(attr) >= sizeof(value))
		memcpy(&value, RTA_DATA(attr), sizeof(value));
	return value;
}

static int parse_icons(struct sock_unix_state *s, const struct rtattr *attr)
{
	size_t count = RTA_PAYLOAD(attr) / sizeof(uint32_t);

	if (count > SOCK_ICONS_MAX)
		return -E2BIG;
	memcpy(s->icons, RTA_DATA(attr), count * sizeof(uint32_t));
	s->icon_count = (uint32_t)count;
	return 0;
}

static int parse_attr(struct sock_unix_state *s, const struct rtattr *attr)
{
	size_t size = RTA_PAYLOAD(attr);
	const void *bytes = RTA_DATA(attr);

	switch (attr->rta_type) {
	case UNIX_DIAG_NAME:
		if (size > sizeof(s->name))
			return -ENAMETOOLONG;
		memcpy(s->name, bytes, size);
		s->name_size = (uint8_t)size;
		break;
	case UNIX_DIAG_PEER:
		s->peer = get_u32(attr);
		break;
	case UNIX_DIAG_ICONS:
		return parse_icons(s, attr);
	case UNIX_DIAG_RQLEN:
		if (size >= sizeof(struct unix_diag_rqlen)) {
			struct unix_diag_rqlen q;

			memcpy(&q, bytes, sizeof(q));
			s->rqueue = q.udiag_rqueue;
			s->wqueue = q.udiag_wqueue;
		}
		break;
	case UNIX_DIAG_SHUTDOWN:
		if (size >= 1)
			memcpy(&s->shutdown, bytes, 1);
		break;
	default:
		break;
	}
	return 0;
}

static int parse_answer(const struct nlmsghdr *h, size_t size, uint32_t ino,
			struct sock_unix_state *ret_state)
{
	const struct unix_diag_msg *m = NLMSG_DATA(h);
	const struct rtattr *attr = (const void *)(m + 1);
	struct sock_unix_state *s = ret_state;
	ssize_t left;
	int r;

	if (!NLMSG_OK(h, size))
		return -EBADMSG;
	if (h->nlmsg_type == NLMSG_ERROR && h->nlmsg_len >= NLMSG_LENGTH(sizeof(struct nlmsgerr)))
		return ((const struct nlmsgerr *)NLMSG_DATA(h))->error ?: -EBADMSG;
	if (h->nlmsg_type != SOCK_DIAG_BY_FAMILY || h->nlmsg_len < NLMSG_LENGTH(sizeof(*m)) ||
	    m->udiag_ino != ino)
		return -EBADMSG;
	/* Only what is counted is ever read: no need to clear the tables. */
	s->ino = ino;
	s->type = m->udiag_type;
	s->state = m->udiag_state;
	s->peer = s->rqueue = s->wqueue = s->icon_count = 0;
	s->shutdown = s->name_size = 0;
	left = (ssize_t)(h->nlmsg_len - NLMSG_LENGTH(sizeof(*m)));
	for (; RTA_OK(attr, left); attr = RTA_NEXT(attr, left)) {
		r = parse_attr(s, attr);
		if (r < 0)
			return r;
	}
	return 0;
}

int sock_diag_unix(struct sock_area *a, const struct native_task *task, uint32_t ino,
		   struct sock_unix_state *ret_state)
{
	struct {
		struct nlmsghdr h;
		struct unix_diag_req r;
	} ask = {
		.h = { .nlmsg_len = sizeof(ask),
		       .nlmsg_type = SOCK_DIAG_BY_FAMILY,
		       .nlmsg_flags = NLM_F_REQUEST },
		.r = { .sdiag_family = AF_UNIX,
		       .udiag_states = ~0U,
		       .udiag_ino = ino,
		       .udiag_show = UDIAG_SHOW_NAME | UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS |
				     UDIAG_SHOW_RQLEN,
		       .udiag_cookie = { (uint32_t)NO_COOKIE, (uint32_t)NO_COOKIE } },
	};
	_Alignas(struct nlmsghdr) uint8_t answer[ANSWER_MAX];
	ssize_t n;
	int r = diag_for(a, task);

	if (r < 0)
		return r;
	if (send(a->diag, &ask, sizeof(ask), 0) != (ssize_t)sizeof(ask))
		return -errno;
	/* The kernel has answered before send() returned. */
	n = recv(a->diag, answer, sizeof(answer), MSG_DONTWAIT | MSG_TRUNC);
	if (n < 0)
		return -errno;
	if ((size_t)n > sizeof(answer))
		return -E2BIG;
	return parse_answer((const void *)answer, (size_t)n, ino, ret_state);
}

void sock_unix_name(const struct sock_unix_state *s, char *text, size_t size)
{
	if (s->name_size == 0)
		snprintf(text, size, "socket %u", s->ino);
	else if (s->name[0] == '\0')
		snprintf(text, size, "@%.*s", s->name_size - 1, s->name + 1);
	else
		snprintf(text, size, "%.*s", s->name_size, s->name);
}
