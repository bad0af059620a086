// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/native/sockets_internal.h"

#include <errno.h>
#include <linux/netlink.h>
#include <string.h>

enum {
	/* Since Linux 5.14; missing in older headers. */
	BUF_LOCK = 72,
};

/* Families that a program may have open, for the reason of a refusal. */
static const struct {
	int family;
	const char *name;
} families[] = {
	{ AF_PACKET, "a packet socket" },
	{ AF_VSOCK, "a socket between virtual machines" },
	{ AF_ALG, "a socket of the kernel's ciphers" },
	{ AF_XDP, "an XDP socket" },
	{ AF_BLUETOOTH, "a Bluetooth socket" },
	{ AF_CAN, "a CAN socket" },
	{ AF_TIPC, "a TIPC socket" },
	{ AF_RDS, "an RDS socket" },
	{ AF_SMC, "an SMC socket" },
};

static bool match(const struct state_fd *fd, const char *path)
{
	(void)path;
	return S_ISSOCK(fd->mode);
}

static int compare_entries(const void *a, const void *b)
{
	const struct sock_entry *x = a, *y = b;

	return x->ino < y->ino ? -1 : x->ino > y->ino;
}

static struct sock_area *make_area(struct native_files *f)
{
	struct sock_area *a = arena_alloc(f->tree->arena, sizeof(*a));
	size_t count = 0;

	for (size_t i = 0; i < f->open_count; i++)
		count += S_ISSOCK(f->opens[i].fd->mode);
	if (!a)
		return NULL;
	a->entries = arena_alloc(f->tree->arena, (count + 1) * sizeof(*a->entries));
	if (!a->entries)
		return NULL;
	for (size_t i = 0; i < f->open_count; i++) {
		struct native_open *o = &f->opens[i];

		if (S_ISSOCK(o->fd->mode))
			a->entries[a->entry_count++] = (struct sock_entry){ o->fd->ino, o };
	}
	qsort(a->entries, a->entry_count, sizeof(*a->entries), compare_entries);
	a->last = &a->first;
	a->diag = -1;
	return a;
}

struct sock_area *sock_area_of(struct native_files *f)
{
	if (!f->area_facts[AREA_SOCKETS])
		f->area_facts[AREA_SOCKETS] = make_area(f);
	return f->area_facts[AREA_SOCKETS];
}

struct native_open *sock_by_ino(const struct sock_area *a, uint64_t ino)
{
	const struct sock_entry key = { .ino = ino };
	const struct sock_entry *e = NULL;

	if (a->entry_count > 0)
		e = bsearch(&key, a->entries, a->entry_count, sizeof(key), compare_entries);
	return e ? e->open : NULL;
}

int sock_option(int fd, int level, int name, void *value, socklen_t size)
{
	socklen_t got = size;

	if (getsockopt(fd, level, name, value, &got) < 0)
		return -errno;
	return got == size ? 0 : -EPROTO;
}

int sock_int(int fd, int level, int name, int *ret_value)
{
	return sock_option(fd, level, name, ret_value, sizeof(*ret_value));
}

static int identify(int fd, struct sock *s)
{
	int r = sock_int(fd, SOL_SOCKET, SO_DOMAIN, &s->family);

	if (r == 0)
		r = sock_int(fd, SOL_SOCKET, SO_TYPE, &s->type);
	if (r == 0)
		r = sock_int(fd, SOL_SOCKET, SO_PROTOCOL, &s->protocol);
	return r;
}

static int refuse_family(struct native_files *f, struct native_open *o, int family)
{
	for (size_t i = 0; i < ARRAY_SIZE(families); i++)
		if (families[i].family == family)
			return files_refuse(f, o, "is %s", families[i].name);
	return files_refuse(f, o, "is a socket of family %d", family);
}

static int collect_filter(struct native_files *f, struct native_open *o, int fd,
			  struct sock_options *p)
{
	socklen_t count = 0;

	if (getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, NULL, &count) < 0)
		return files_refuse(f, o, "has a BPF filter that the kernel does not show");
	if (count == 0)
		return 0;
	if (count > SOCK_FILTER_MAX)
		return files_refuse(f, o, "has a filter of %u instructions", count);
	p->filter = arena_alloc(f->tree->arena, count * sizeof(*p->filter));
	if (!p->filter)
		return -ENOMEM;
	if (getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, p->filter, &count) < 0)
		return -errno;
	p->filter_count = count;
	return 0;
}

/* The numbers that are either there or fail the whole. */
static int collect_numbers(int fd, struct sock_options *p)
{
	const struct {
		int name;
		void *value;
	} numbers[] = {
		{ SO_SNDBUF, &p->sndbuf },	 { SO_RCVBUF, &p->rcvbuf },
		{ SO_PRIORITY, &p->priority },	 { SO_RCVLOWAT, &p->rcvlowat },
		{ SO_MARK, &p->mark },		 { SO_REUSEADDR, &p->reuseaddr },
		{ SO_REUSEPORT, &p->reuseport }, { SO_DONTROUTE, &p->dontroute },
		{ SO_NO_CHECK, &p->no_check },	 { SO_BROADCAST, &p->broadcast },
		{ SO_KEEPALIVE, &p->keepalive }, { SO_OOBINLINE, &p->oobinline },
	};
	int r = 0;

	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(numbers); i++)
		r = sock_option(fd, SOL_SOCKET, numbers[i].name, numbers[i].value, sizeof(int));
	return r;
}

static int collect_options(struct native_files *f, struct sock *s, int fd)
{
	struct sock_options *p = &s->options;
	socklen_t size = sizeof(p->device);
	int r = collect_numbers(fd, p);

	if (r == 0)
		r = sock_option(fd, SOL_SOCKET, SO_SNDTIMEO, &p->sndtimeo, sizeof(p->sndtimeo));
	if (r == 0)
		r = sock_option(fd, SOL_SOCKET, SO_RCVTIMEO, &p->rcvtimeo, sizeof(p->rcvtimeo));
	if (r == 0)
		r = sock_option(fd, SOL_SOCKET, SO_LINGER, &p->linger, sizeof(p->linger));
	if (r < 0)
		return native_fail(f->tree, r,
				   "descriptor %d of process %d: options of a socket: %s",
				   s->open->fd->fd, s->open->task->pid, strerror(-r));
	p->has_buf_lock =
		sock_option(fd, SOL_SOCKET, BUF_LOCK, &p->buf_lock, sizeof(p->buf_lock)) == 0;
	if (s->family == AF_UNIX || s->family == AF_NETLINK) {
		p->has_passcred = sock_int(fd, SOL_SOCKET, SO_PASSCRED, &p->passcred) == 0;
		p->has_passsec = sock_int(fd, SOL_SOCKET, SO_PASSSEC, &p->passsec) == 0;
	}
	if (getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, p->device, &size) < 0)
		p->device[0] = '\0';
	p->device[sizeof(p->device) - 1] = '\0';
	return collect_filter(f, s->open, fd, p);
}

/* What the family knows; the socket's options come on top. */
static int collect_family(struct native_files *f, struct sock *s, int fd)
{
	switch (s->family) {
	case AF_UNIX:
		s->open->type = NAT_FILES__FILE_TYPE__UNIXSK;
		return sock_unix_collect(f, s, fd);
	case AF_INET:
	case AF_INET6:
		s->open->type = NAT_FILES__FILE_TYPE__INETSK;
		return sock_inet_collect(f, s, fd);
	case AF_NETLINK:
		s->open->type = NAT_FILES__FILE_TYPE__NETLINKSK;
		return sock_netlink_collect(f, s, fd);
	default:
		return refuse_family(f, s->open, s->family);
	}
}

/* The job runs: the descriptor may be gone, which is no reason. */
static int check(struct native_files *f, struct native_open *o)
{
	bool had_reason = f->tree->reason[0] != '\0';
	struct sock s = { .open = o };
	int fd, r;

	r = open_local(f, o, &fd);
	if (r < 0) {
		if (!had_reason)
			f->tree->reason[0] = '\0';
		return 0;
	}
	r = identify(fd, &s);
	if (r == 0)
		r = s.family == AF_UNIX ? sock_unix_check(f, o, fd) : collect_family(f, &s, fd);
	open_local_close(o);
	return r == -EOPNOTSUPP || r == -ENOMEM ? r : 0;
}

static int collect(struct native_files *f, struct native_open *o)
{
	struct sock *s = arena_alloc(f->tree->arena, sizeof(*s));
	struct sock_area *a = sock_area_of(f);
	int fd, r;

	if (!s || !a)
		return -ENOMEM;
	r = open_local(f, o, &fd);
	if (r < 0)
		return r;
	s->open = o;
	r = identify(fd, s);
	if (r == 0)
		r = collect_family(f, s, fd);
	if (r == 0)
		r = collect_options(f, s, fd);
	open_local_close(o);
	if (r < 0)
		return native_fail(f->tree, r, "descriptor %d of process %d: a socket: %s",
				   o->fd->fd, o->task->pid, strerror(-r));
	o->facts = s;
	*a->last = s;
	a->last = &s->next;
	return 0;
}

static int collect_all(struct native_files *f)
{
	struct sock_area *a = f->area_facts[AREA_SOCKETS];
	int r = 0;

	for (struct sock *s = a ? a->first : NULL; r == 0 && s; s = s->next)
		if (s->family == AF_UNIX)
			r = sock_unix_connect(f, s);
	if (a)
		sock_diag_close(a);
	return r;
}

static void fill_flags(const struct sock_options *p, NatFiles__SockOpts *o)
{
	o->has_reuseaddr = o->has_so_reuseport = o->has_so_dontroute = o->has_so_no_check = true;
	o->has_so_broadcast = o->has_so_keepalive = o->has_so_oobinline = true;
	o->reuseaddr = p->reuseaddr != 0;
	o->so_reuseport = p->reuseport != 0;
	o->so_dontroute = p->dontroute != 0;
	o->so_no_check = p->no_check != 0;
	o->so_broadcast = p->broadcast != 0;
	o->so_keepalive = p->keepalive != 0;
	o->so_oobinline = p->oobinline != 0;
	o->has_so_passcred = p->has_passcred;
	o->so_passcred = p->passcred != 0;
	o->has_so_passsec = p->has_passsec;
	o->so_passsec = p->passsec != 0;
}

int sock_fill(const struct sock *s, struct sock_message *m)
{
	const struct sock_options *p = &s->options;
	NatFiles__SockOpts *o = &m->opts;

	m->filter = NULL;
	open_fown(s->open, &m->fown);
	nat_files__sock_opts__init(o);
	o->so_sndbuf = p->sndbuf;
	o->so_rcvbuf = p->rcvbuf;
	o->has_so_buf_lock = p->has_buf_lock;
	o->so_buf_lock = p->buf_lock;
	o->has_so_priority = o->has_so_rcvlowat = true;
	o->so_priority = p->priority;
	o->so_rcvlowat = p->rcvlowat;
	o->has_so_mark = p->mark != 0;
	o->so_mark = p->mark;
	o->so_snd_tmo_sec = (uint64_t)p->sndtimeo.tv_sec;
	o->so_snd_tmo_usec = (uint64_t)p->sndtimeo.tv_usec;
	o->so_rcv_tmo_sec = (uint64_t)p->rcvtimeo.tv_sec;
	o->so_rcv_tmo_usec = (uint64_t)p->rcvtimeo.tv_usec;
	o->has_so_linger = p->linger.l_onoff != 0;
	o->so_linger = (uint32_t)p->linger.l_linger;
	fill_flags(p, o);
	if (p->device[0])
		o->so_bound_dev = (char *)p->device;
	if (p->filter_count == 0)
		return 0;
	m->filter = malloc(p->filter_count * sizeof(*m->filter));
	if (!m->filter)
		return -ENOMEM;
	for (uint32_t i = 0; i < p->filter_count; i++)
		m->filter[i] = (uint64_t)p->filter[i].code << 48 | (uint64_t)p->filter[i].jt << 40 |
			       (uint64_t)p->filter[i].jf << 32 | p->filter[i].k;
	o->n_so_filter = p->filter_count;
	o->so_filter = m->filter;
	return 0;
}

static int write_one(struct native_files *f, struct native_open *o)
{
	struct sock *s = o->facts;

	switch (s->family) {
	case AF_UNIX:
		return sock_unix_write(f, s);
	case AF_NETLINK:
		return sock_netlink_write(f, s);
	default:
		return sock_inet_write(f, s);
	}
}

static int write_all(struct native_files *f)
{
	const struct sock_area *a = f->area_facts[AREA_SOCKETS];
	const struct sock *s = a ? a->first : NULL;
	struct img *image;
	int r;

	while (s && !(s->u && s->u->queue))
		s = s->next;
	if (!s)
		return 0;
	r = img_create(f->tree->images, "sk-queues", &image);
	if (r < 0)
		return r;
	for (; s; s = s->next)
		if (s->u)
			sock_queue_write(image, s);
	return img_close(image);
}

static void destroy(struct native_files *f)
{
	struct sock_area *a = f->area_facts[AREA_SOCKETS];

	if (a)
		sock_diag_close(a);
}

const struct native_area area_sockets = {
	.index = AREA_SOCKETS,
	.name = "sockets",
	.match = match,
	.check = check,
	.collect = collect,
	.collect_all = collect_all,
	.write = write_one,
	.write_all = write_all,
	.destroy = destroy,
};
