// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/native/sockets_internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>

enum {
	FREEBIND6 = 78, /* IPV6_FREEBIND, since Linux 4.15 */
	PROTOCOL_MPTCP = 262,
	NAME_TEXT = INET6_ADDRSTRLEN + 8,
	SHUT_IN = 1,
	SHUT_OUT = 2,
};

union address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

static void address_text(const union address *a, char *text, size_t size)
{
	char host[INET6_ADDRSTRLEN] = "?";

	if (a->any.sa_family == AF_INET6) {
		inet_ntop(AF_INET6, &a->v6.sin6_addr, host, sizeof(host));
		snprintf(text, size, "[%s]:%u", host, ntohs(a->v6.sin6_port));
	} else {
		inet_ntop(AF_INET, &a->v4.sin_addr, host, sizeof(host));
		snprintf(text, size, "%s:%u", host, ntohs(a->v4.sin_port));
	}
}

static void split(const union address *a, uint32_t words[4], uint32_t *ret_port)
{
	if (a->any.sa_family == AF_INET6) {
		memcpy(words, &a->v6.sin6_addr, sizeof(a->v6.sin6_addr));
		*ret_port = ntohs(a->v6.sin6_port);
	} else if (a->any.sa_family == AF_INET) {
		memcpy(words, &a->v4.sin_addr, sizeof(a->v4.sin_addr));
		*ret_port = ntohs(a->v4.sin_port);
	}
}

/* Link-local addresses mean something on one interface only. */
static int collect_device(struct native_files *f, struct sock *s, int fd, const union address *own)
{
	struct ifreq r = { .ifr_ifindex = (int)own->v6.sin6_scope_id };

	if (s->family != AF_INET6 || !s->i->src_port || !own->v6.sin6_scope_id)
		return 0;
	if (ioctl(fd, SIOCGIFNAME, &r) < 0)
		return files_refuse(f, s->open, "is bound to an interface without a name");
	r.ifr_name[sizeof(r.ifr_name) - 1] = '\0';
	memcpy(s->i->device, r.ifr_name, sizeof(s->i->device));
	return 0;
}

static int collect_addresses(struct native_files *f, struct sock *s, int fd, union address *own,
			     union address *other)
{
	socklen_t own_size = sizeof(*own), other_size = sizeof(*other);

	if (getsockname(fd, &own->any, &own_size) < 0)
		return -errno;
	split(own, s->i->src, &s->i->src_port);
	if (getpeername(fd, &other->any, &other_size) == 0)
		split(other, s->i->dst, &s->i->dst_port);
	else if (errno != ENOTCONN)
		return -errno;
	return collect_device(f, s, fd, own);
}

/* Of one that is not connected: the kernel says it only by what poll(2) reports. */
static uint32_t shutdown_of(int fd, bool half)
{
	struct pollfd p = { .fd = fd, .events = POLLRDHUP | POLLHUP };

	if (poll(&p, 1, 0) != 1)
		return 0;
	if (p.revents & POLLHUP)
		return p.revents & POLLRDHUP ? SHUT_IN | (half ? SHUT_OUT : 0) : 0;
	return half && p.revents & POLLRDHUP ? SHUT_IN : 0;
}

static int refuse_connection(struct native_files *f, struct sock *s, const union address *own,
			     const union address *other, unsigned int state)
{
	char from[NAME_TEXT], to[NAME_TEXT];

	address_text(own, from, sizeof(from));
	address_text(other, to, sizeof(to));
	return files_refuse(f, s->open, "is a TCP connection %s -> %s (state %u)", from, to, state);
}

static int collect_tcp_options(struct sock *s, int fd)
{
	const struct {
		int name;
		int *value;
	} options[] = {
		{ TCP_NODELAY, &s->i->nodelay },     { TCP_CORK, &s->i->cork },
		{ TCP_KEEPCNT, &s->i->keepcnt },     { TCP_KEEPIDLE, &s->i->keepidle },
		{ TCP_KEEPINTVL, &s->i->keepintvl },
	};
	int r = 0;

	for (size_t n = 0; r == 0 && n < ARRAY_SIZE(options); n++)
		r = sock_int(fd, IPPROTO_TCP, options[n].name, options[n].value);
	return r;
}

static int collect_tcp(struct native_files *f, struct sock *s, int fd, const union address *own,
		       const union address *other)
{
	struct tcp_info info = { 0 };
	socklen_t size = sizeof(info);
	int unread = 0;

	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) < 0)
		return -errno;
	if (size < offsetof(struct tcp_info, tcpi_sacked) + sizeof(info.tcpi_sacked))
		return -EPROTO;
	s->i->state = info.tcpi_state;
	if (info.tcpi_state == SOCK_TCP_LISTEN) {
		/* Of a listener these two say: connections that wait, and how many may. */
		if (info.tcpi_unacked > 0 && !f->checking)
			return files_refuse(f, s->open, "has %u connections waiting",
					    info.tcpi_unacked);
		s->i->backlog = info.tcpi_sacked;
	} else if (info.tcpi_state == SOCK_TCP_CLOSE) {
		if (ioctl(fd, SIOCINQ, &unread) == 0 && unread > 0)
			return files_refuse(f, s->open, "has %d bytes of a closed connection",
					    unread);
		s->i->shutdown = shutdown_of(fd, false);
	} else {
		return refuse_connection(f, s, own, other, info.tcpi_state);
	}
	return collect_tcp_options(s, fd);
}

static int collect_udp(struct native_files *f, struct sock *s, int fd)
{
	int cork = 0, r = sock_int(fd, IPPROTO_UDP, UDP_CORK, &cork);

	if (r < 0)
		return r;
	if (cork)
		return files_refuse(f, s->open, "is a corked UDP socket");
	s->i->state = s->i->dst_port ? SOCK_TCP_ESTABLISHED : SOCK_TCP_CLOSE;
	s->i->shutdown = shutdown_of(fd, true);
	return 0;
}

static int collect_ip_options(struct sock *s, int fd)
{
	int r = 0;

	if (s->family == AF_INET6) {
		if (sock_int(fd, IPPROTO_IPV6, FREEBIND6, &s->i->freebind) < 0)
			r = sock_int(fd, IPPROTO_IP, IP_FREEBIND, &s->i->freebind);
		if (r == 0)
			r = sock_int(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &s->i->pktinfo);
		return r < 0 ? r : sock_int(fd, IPPROTO_IPV6, IPV6_V6ONLY, &s->i->v6only);
	}
	r = sock_int(fd, IPPROTO_IP, IP_FREEBIND, &s->i->freebind);
	if (r == 0)
		r = sock_int(fd, IPPROTO_IP, IP_PKTINFO, &s->i->pktinfo);
	if (r == 0)
		r = sock_int(fd, IPPROTO_IP, IP_TOS, &s->i->tos);
	return r < 0 ? r : sock_int(fd, IPPROTO_IP, IP_TTL, &s->i->ttl);
}

static int refuse_protocol(struct native_files *f, const struct sock *s)
{
	if (s->protocol == PROTOCOL_MPTCP)
		return files_refuse(f, s->open,
				    "is an MPTCP socket (in Go: GODEBUG=multipathtcp=0)");
	if (s->type == SOCK_RAW)
		return files_refuse(f, s->open, "is a raw socket");
	return files_refuse(f, s->open, "is a socket of type %d, protocol %d", s->type,
			    s->protocol);
}

int sock_inet_collect(struct native_files *f, struct sock *s, int fd)
{
	union address own = { .any.sa_family = (sa_family_t)s->family }, other = own;
	bool tcp = s->type == SOCK_STREAM && s->protocol == IPPROTO_TCP;
	bool udp = s->type == SOCK_DGRAM && s->protocol == IPPROTO_UDP;
	int r;

	if (!tcp && !udp)
		return refuse_protocol(f, s);
	s->i = arena_alloc(f->tree->arena, sizeof(*s->i));
	if (!s->i)
		return -ENOMEM;
	r = collect_addresses(f, s, fd, &own, &other);
	if (r == 0)
		r = tcp ? collect_tcp(f, s, fd, &own, &other) : collect_udp(f, s, fd);
	return r < 0 ? r : collect_ip_options(s, fd);
}

static void fill_ip(const struct sock_inet *i, NatFiles__IpOpts *ip)
{
	ip->has_freebind = ip->freebind = i->freebind != 0;
	ip->has_pktinfo = ip->pktinfo = i->pktinfo != 0;
	ip->has_tos = i->tos != 0;
	ip->tos = (uint32_t)i->tos;
	ip->has_ttl = i->ttl != 0;
	ip->ttl = (uint32_t)i->ttl;
}

static void fill_tcp(const struct sock_inet *i, NatFiles__TcpOpts *tcp)
{
	tcp->has_nodelay = tcp->nodelay = i->nodelay != 0;
	tcp->has_cork = tcp->cork = i->cork != 0;
	tcp->has_keepcnt = i->keepcnt != 0;
	tcp->keepcnt = (uint32_t)i->keepcnt;
	tcp->has_keepidle = i->keepidle != 0;
	tcp->keepidle = (uint32_t)i->keepidle;
	tcp->has_keepintvl = i->keepintvl != 0;
	tcp->keepintvl = (uint32_t)i->keepintvl;
}

int sock_inet_write(struct native_files *f, const struct sock *s)
{
	NatFiles__File file = NAT_FILES__FILE__INIT;
	NatFiles__InetSock i = NAT_FILES__INET_SOCK__INIT;
	NatFiles__IpOpts ip = NAT_FILES__IP_OPTS__INIT;
	NatFiles__TcpOpts tcp = NAT_FILES__TCP_OPTS__INIT;
	struct sock_message m;
	int r = sock_fill(s, &m);

	if (r < 0)
		return r;
	i.id = s->open->id;
	i.ino = (uint32_t)s->open->fd->ino;
	i.family = (uint32_t)s->family;
	i.type = (uint32_t)s->type;
	i.proto = (uint32_t)s->protocol;
	i.state = s->i->state;
	i.src_port = s->i->src_port;
	i.dst_port = s->i->dst_port;
	i.flags = open_flags(s->open);
	i.backlog = s->i->backlog;
	i.n_src_addr = i.n_dst_addr = s->family == AF_INET6 ? 4 : 1;
	i.src_addr = (uint32_t *)s->i->src;
	i.dst_addr = (uint32_t *)s->i->dst;
	i.fown = &m.fown;
	i.opts = &m.opts;
	i.has_v6only = s->family == AF_INET6;
	i.v6only = s->i->v6only != 0;
	fill_ip(s->i, &ip);
	i.ip_opts = &ip;
	if (s->i->device[0])
		i.ifname = (char *)s->i->device;
	i.has_shutdown = s->i->shutdown != 0;
	i.shutdown = (NatFiles__SockShutdown)s->i->shutdown;
	fill_tcp(s->i, &tcp);
	i.tcp_opts = &tcp;
	file.isk = &i;
	files_put(f, s->open, &file);
	free(m.filter);
	return 0;
}
