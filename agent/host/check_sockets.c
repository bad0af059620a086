// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/host/check.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include "agent/util/io.h"

enum { TABLE_BYTES_MAX = 64 << 20, REPLY_BYTES = 32 << 10, REPLY_WAIT_S = 1 };

static int by_inode(const void *a, const void *b)
{
	const struct check_socket *x = a, *y = b;

	if (x->inode != y->inode)
		return x->inode < y->inode ? -1 : 1;
	return x->pid != y->pid ? x->pid - y->pid : x->fd - y->fd;
}

/* The first of the tree's fds that stand for this socket. */
static struct check_socket *find(struct check *c, uint64_t inode)
{
	size_t low = 0, high = c->socket_count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (c->sockets[middle].inode < inode)
			low = middle + 1;
		else
			high = middle;
	}
	return low < c->socket_count && c->sockets[low].inode == inode ? &c->sockets[low] : NULL;
}

static void describe(const struct check_socket *s, const char *what, char *object, size_t size)
{
	snprintf(object, size, "fd %d of PID %d: %s", s->fd, s->pid, what);
}

/* "0100007F:1F90" or 32 digits of IPv6: words in the host's byte order. */
static void print_address(const char *hex, char *text, size_t size)
{
	char addr[INET6_ADDRSTRLEN] = "?";
	uint32_t words[4] = { 0 };
	const char *colon = strchr(hex, ':');
	size_t count = colon && colon - hex == 32 ? 4 : 1;

	for (size_t i = 0; i < count; i++) {
		char word[9] = "";

		memcpy(word, hex + 8 * i, strnlen(hex + 8 * i, 8));
		words[i] = (uint32_t)strtoul(word, NULL, 16);
	}
	inet_ntop(count == 4 ? AF_INET6 : AF_INET, words, addr, sizeof(addr));
	snprintf(text, size, count == 4 ? "[%s]:%lu" : "%s:%lu", addr,
		 colon ? strtoul(colon + 1, NULL, 16) : 0);
}

static void check_tcp(struct check *c, const struct check_socket *s, unsigned int state,
		      const char *local, const char *remote)
{
	char here[64], there[64], what[160], object[224];

	print_address(local, here, sizeof(here));
	print_address(remote, there, sizeof(there));
	if (state == TCP_LISTEN) {
		check_note(c,
			   "PID %d listens on TCP %s: after a move it listens there on the new "
			   "host, and cannot be restored where that port is taken.",
			   s->pid, here);
		return;
	}
	if (state == TCP_CLOSE || state == TCP_TIME_WAIT)
		return;
	snprintf(what, sizeof(what), "TCP %s to %s", here, there);
	describe(s, what, object, sizeof(object));
	check_problem(c, object, "is an open network connection, which cannot move to another host",
		      "wait until it is closed, or let the program work on local files");
}

/*
 * A table of /proc/PID/net: "SL: LOCAL REMOTE STATE TX:RX TR:WHEN RETRANS UID TIMEOUT INODE …".
 */
static void read_inet_table(struct check *c, const char *name, bool tcp)
{
	_cleanup_free_ char *text = NULL;
	char path[64], *next, *line;

	snprintf(path, sizeof(path), "/proc/%d/net/%s", c->pid, name);
	if (read_file_at(AT_FDCWD, path, TABLE_BYTES_MAX, &text, NULL) < 0)
		return;
	next = text;
	while ((line = strsep(&next, "\n"))) {
		char local[48], remote[48];
		struct check_socket *s;
		unsigned int state;
		uint64_t inode;

		if (sscanf(line, " %*d: %47s %47s %x %*s %*s %*s %*s %*s %" SCNu64, local, remote,
			   &state, &inode) != 4)
			continue;
		s = inode ? find(c, inode) : NULL;
		if (!s)
			continue;
		if (tcp && !s->known)
			check_tcp(c, s, state, local, remote);
		s->known = true;
	}
}

/* netlink and packet sockets: the inode is the last word of a line. */
static void read_simple_table(struct check *c, const char *name)
{
	_cleanup_free_ char *text = NULL;
	char path[64], *next, *line;

	snprintf(path, sizeof(path), "/proc/%d/net/%s", c->pid, name);
	if (read_file_at(AT_FDCWD, path, TABLE_BYTES_MAX, &text, NULL) < 0)
		return;
	next = text;
	while ((line = strsep(&next, "\n"))) {
		struct check_socket *s;
		size_t len = strlen(line);
		const char *word;

		while (len && isspace((unsigned char)line[len - 1]))
			line[--len] = '\0';
		word = strrchr(line, ' ');
		s = word ? find(c, strtoull(word + 1, NULL, 10)) : NULL;
		if (s)
			s->known = true;
	}
}

/* A Unix socket of this network namespace. */
struct unix_row {
	uint32_t inode, peer;
	uint8_t type, state;
	bool unaccepted;
	char name[sizeof(((struct sockaddr_un *)NULL)->sun_path) + 2];
};

struct unix_table {
	struct unix_row *rows;
	size_t count, room;
};

static struct unix_row *add_row(struct unix_table *t)
{
	if (t->count == t->room) {
		size_t room = t->room ? 2 * t->room : 256;
		void *more;

		if (room > CHECK_SOCKETS_MAX * 4)
			return NULL;
		more = realloc(t->rows, room * sizeof(*t->rows));
		if (!more)
			return NULL;
		t->rows = more;
		t->room = room;
	}
	t->rows[t->count] = (struct unix_row){ 0 };
	return &t->rows[t->count++];
}

/* An abstract name begins with a NUL, shown as '@'. */
static void copy_name(struct unix_row *row, const void *bytes, size_t size)
{
	size_t n = size < sizeof(row->name) - 1 ? size : sizeof(row->name) - 1;

	memcpy(row->name, bytes, n);
	if (n && !row->name[0])
		row->name[0] = '@';
	for (size_t i = 0; i < n; i++) {
		if (row->name[i] && !isprint((unsigned char)row->name[i]))
			row->name[i] = '?';
	}
}

static int add_unix(struct unix_table *t, const struct nlmsghdr *h)
{
	const struct unix_diag_msg *diag = NLMSG_DATA(h);
	struct unix_row *row;
	struct rtattr *attr;
	int left;

	if (h->nlmsg_len < NLMSG_LENGTH(sizeof(*diag)))
		return -EBADMSG;
	row = add_row(t);
	if (!row)
		return -ENOMEM;
	row->inode = diag->udiag_ino;
	row->type = diag->udiag_type;
	row->state = diag->udiag_state;
	left = (int)(h->nlmsg_len - NLMSG_LENGTH(sizeof(*diag)));
	attr = (struct rtattr *)((char *)diag + NLMSG_ALIGN(sizeof(*diag)));
	for (; RTA_OK(attr, left); attr = RTA_NEXT(attr, left)) {
		if (attr->rta_type == UNIX_DIAG_NAME)
			copy_name(row, RTA_DATA(attr), RTA_PAYLOAD(attr));
		else if (attr->rta_type == UNIX_DIAG_PEER && RTA_PAYLOAD(attr) >= 4) {
			memcpy(&row->peer, RTA_DATA(attr), 4);
			row->unaccepted = row->peer == 0;
		}
	}
	return 0;
}

/* Returns 1 at the end of the dump. */
static int take_reply(struct unix_table *t, struct nlmsghdr *h, int size)
{
	int r;

	for (; NLMSG_OK(h, (unsigned int)size); h = NLMSG_NEXT(h, size)) {
		if (h->nlmsg_type == NLMSG_DONE)
			return 1;
		if (h->nlmsg_type == NLMSG_ERROR)
			return -EOPNOTSUPP;
		if (h->nlmsg_type != SOCK_DIAG_BY_FAMILY)
			continue;
		r = add_unix(t, h);
		if (r < 0)
			return r;
	}
	return 0;
}

static int dump_unix(struct unix_table *t)
{
	struct {
		struct nlmsghdr header;
		struct unix_diag_req body;
	} request = {
		.header = { .nlmsg_len = sizeof(request),
			    .nlmsg_type = SOCK_DIAG_BY_FAMILY,
			    .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP },
		.body = { .sdiag_family = AF_UNIX,
			  .udiag_states = UINT32_MAX,
			  .udiag_show = UDIAG_SHOW_NAME | UDIAG_SHOW_PEER },
	};
	struct timeval wait = { .tv_sec = REPLY_WAIT_S };
	_cleanup_close_ int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
	_cleanup_free_ void *reply = malloc(REPLY_BYTES);
	int r = 0;

	if (fd < 0)
		return -errno;
	if (!reply)
		return -ENOMEM;
	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait)) < 0 ||
	    send(fd, &request, sizeof(request), 0) < 0)
		return -errno;
	while (r == 0) {
		ssize_t n = recv(fd, reply, REPLY_BYTES, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -ENODATA;
		r = take_reply(t, reply, (int)n);
	}
	return r < 0 ? r : 0;
}

static const struct unix_row *row_of(const struct unix_table *t, uint32_t inode)
{
	for (size_t i = 0; i < t->count; i++) {
		if (t->rows[i].inode == inode)
			return &t->rows[i];
	}
	return NULL;
}

static void check_unix(struct check *c, const struct unix_table *t, const struct unix_row *row,
		       const struct check_socket *s)
{
	const struct unix_row *peer = row->peer ? row_of(t, row->peer) : NULL;
	char what[160], object[224];

	if (row->state == TCP_LISTEN) {
		check_note(c,
			   "PID %d listens on the Unix socket %s: only programs inside the job "
			   "reach it after a move.",
			   s->pid, row->name[0] ? row->name : "(no name)");
		return;
	}
	/* Its other end was made by the kernel, but the server has not accepted it so far. */
	if (row->unaccepted) {
		describe(s, "Unix socket", object, sizeof(object));
		check_problem(c, object, "is connected to a server that has not accepted it yet",
			      "try again in a moment");
		return;
	}
	if (!row->peer || find(c, row->peer))
		return;
	snprintf(what, sizeof(what), "Unix socket connected to %s",
		 peer && peer->name[0] ? peer->name : "a process outside of the job");
	describe(s, what, object, sizeof(object));
	check_problem(c, object, "its other end is outside of the job and stays behind",
		      "start the program without that service (for D-Bus: env -u "
		      "DBUS_SESSION_BUS_ADDRESS), or together with it by decamp run");
}

static void check_unix_sockets(struct check *c)
{
	struct unix_table t = { 0 };
	int r = dump_unix(&t);

	if (r < 0) {
		check_note(c, "The other ends of Unix sockets could not be looked up: %s.",
			   strerror(-r));
		read_simple_table(c, "unix");
	}
	for (size_t i = 0; i < t.count; i++) {
		struct check_socket *s = find(c, t.rows[i].inode);

		if (!s || s->known)
			continue;
		s->known = true;
		check_unix(c, &t, &t.rows[i], s);
	}
	free(t.rows);
}

void check_sockets(struct check *c)
{
	static const char *const datagram[] = { "udp", "udp6", "udplite", "udplite6",
						"raw", "raw6", "icmp",	  "icmp6" };
	static const char *const simple[] = { "netlink", "packet" };
	char object[64];

	if (!c->socket_count)
		return;
	qsort(c->sockets, c->socket_count, sizeof(*c->sockets), by_inode);
	read_inet_table(c, "tcp", true);
	read_inet_table(c, "tcp6", true);
	for (size_t i = 0; i < ARRAY_SIZE(datagram); i++)
		read_inet_table(c, datagram[i], false);
	for (size_t i = 0; i < ARRAY_SIZE(simple); i++)
		read_simple_table(c, simple[i]);
	check_unix_sockets(c);
	for (size_t i = 0; i < c->socket_count; i++) {
		const struct check_socket *s = &c->sockets[i];

		/* One socket may have many fds; the first row stands for all. A TCP socket that is
		 * neither bound nor connected is in no table at all. */
		if (s->known || (i > 0 && s[-1].inode == s->inode))
			continue;
		snprintf(object, sizeof(object), "fd %d of PID %d: socket", s->fd, s->pid);
		check_note(c,
			   "%s is in no table of sockets: unused, or of a rare kind that "
			   "cannot be saved.",
			   object);
	}
}
