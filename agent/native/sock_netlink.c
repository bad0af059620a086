// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/native/sockets_internal.h"

#include <errno.h>
#include <linux/netlink.h>
#include <poll.h>
#include <string.h>
#include <strings.h>

enum {
	GROUP_WORDS = 64, /* of 32 groups each */
};

/* CRIU's format has 32 groups; more would be lost. */
static int collect_groups(struct native_files *f, struct sock *s, int fd)
{
	uint32_t groups[GROUP_WORDS] = { 0 };
	socklen_t size = sizeof(groups);

	if (getsockopt(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, groups, &size) < 0)
		return -errno;
	if (size > sizeof(groups))
		return files_refuse(f, s->open, "listens to a netlink group above %zu",
				    sizeof(groups) * 8);
	for (size_t i = 1; i < size / sizeof(groups[0]); i++)
		if (groups[i])
			return files_refuse(f, s->open, "listens to a netlink group above 32");
	s->n->groups = groups[0];
	return 0;
}

int sock_netlink_collect(struct native_files *f, struct sock *s, int fd)
{
	struct sockaddr_nl own = { 0 }, other = { 0 };
	socklen_t own_size = sizeof(own), other_size = sizeof(other);
	struct pollfd p = { .fd = fd, .events = POLLIN };
	int r;

	s->n = arena_alloc(f->tree->arena, sizeof(*s->n));
	if (!s->n)
		return -ENOMEM;
	if (getsockname(fd, (struct sockaddr *)&own, &own_size) < 0 ||
	    getpeername(fd, (struct sockaddr *)&other, &other_size) < 0)
		return -errno;
	r = collect_groups(f, s, fd);
	if (r < 0)
		return r;
	s->n->portid = own.nl_pid;
	s->n->dst_portid = other.nl_pid;
	s->n->dst_groups = other.nl_groups;
	if (s->n->groups && !s->n->portid)
		return files_refuse(f, s->open, "listens to netlink groups without an address");
	if (s->n->dst_portid)
		return files_refuse(f, s->open, "is a netlink socket connected to port %u",
				    s->n->dst_portid);
	if (!f->checking && poll(&p, 1, 0) > 0 && (p.revents & POLLIN))
		return files_refuse(f, s->open, "is a netlink socket with messages to read");
	return 0;
}

int sock_netlink_write(struct native_files *f, const struct sock *s)
{
	NatFiles__File file = NAT_FILES__FILE__INIT;
	NatFiles__NetlinkSock n = NAT_FILES__NETLINK_SOCK__INIT;
	uint32_t groups = s->n->groups;
	struct sock_message m;
	int r = sock_fill(s, &m);

	if (r < 0)
		return r;
	n.id = s->open->id;
	n.ino = (uint32_t)s->open->fd->ino;
	n.protocol = (uint32_t)s->protocol;
	n.flags = open_flags(s->open);
	n.portid = s->n->portid;
	n.groups = &groups;
	n.n_groups = groups ? 1 : 0;
	n.fown = &m.fown;
	n.opts = &m.opts;
	/* nl_groups of a peer is a set of one bit, the image has its number. */
	n.dst_group = (uint32_t)ffs((int)s->n->dst_groups);
	/* netlink's own "connected"; else the state that netlink_diag shows of a bound one. */
	n.state = n.dst_group ? 1 : n.portid ? SOCK_TCP_CLOSE : 0;
	file.nlsk = &n;
	files_put(f, s->open, &file);
	free(m.filter);
	return 0;
}
