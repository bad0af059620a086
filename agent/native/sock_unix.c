// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/native/sockets_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/un.h>

enum {
	UNIX_FILE = SIOCPROTOPRIVATE, /* SIOCUNIXFILE, since Linux 4.10 */
	NAME_TEXT_MAX = 160,
	SHUT_BOTH_WAYS = 3,
	LINK_MAX_BYTES = 4096,
};

static const char deleted_mark[] = " (deleted)";

/* Why it cannot be, in people's words: the peer is another program. */
static int refuse_peer(struct native_files *f, struct sock_area *a, struct native_open *o,
		       uint32_t peer)
{
	struct sock_unix_state other;
	char name[NAME_TEXT_MAX];

	if (sock_diag_unix(a, o->task, peer, &other) < 0)
		snprintf(name, sizeof(name), "socket %u", peer);
	else
		sock_unix_name(&other, name, sizeof(name));
	return files_refuse(f, o, "is connected to %s outside of the job", name);
}

static int ask(struct native_files *f, struct sock_area *a, struct native_open *o,
	       struct sock_unix_state *ret_state)
{
	int r = sock_diag_unix(a, o->task, (uint32_t)o->fd->ino, ret_state);

	if (r == -ENOENT)
		return files_refuse(f, o, "is a unix socket of another network namespace");
	if (r == -E2BIG || r == -ENAMETOOLONG)
		return files_refuse(f, o, "has too many connections waiting");
	if (r < 0)
		return files_refuse(f, o, "is a unix socket that unix_diag does not show (%s)",
				    strerror(-r));
	return 0;
}

static int check_kind(struct native_files *f, struct native_open *o,
		      const struct sock_unix_state *s)
{
	if (s->type != SOCK_STREAM && s->type != SOCK_DGRAM && s->type != SOCK_SEQPACKET)
		return files_refuse(f, o, "is a unix socket of type %u", s->type);
	if (s->state != SOCK_TCP_CLOSE && s->state != SOCK_TCP_LISTEN &&
	    s->state != SOCK_TCP_ESTABLISHED)
		return files_refuse(f, o, "is a unix socket in state %u", s->state);
	return 0;
}

int sock_unix_check(struct native_files *f, struct native_open *o, int fd)
{
	struct sock_area *a = sock_area_of(f);
	struct sock_unix_state s;
	int r;

	(void)fd;
	if (!a)
		return -ENOMEM;
	r = ask(f, a, o, &s);
	if (r == 0)
		r = check_kind(f, o, &s);
	if (r < 0)
		return r;
	return s.peer && !sock_by_ino(a, s.peer) ? refuse_peer(f, a, o, s.peer) : 0;
}

/* The socket's file: rights, whether it is still there, and where a relative name begins. */
static int read_file(struct native_files *f, struct sock *s, int fd)
{
	_cleanup_close_ int file = ioctl(fd, UNIX_FILE);
	const char *name = s->u->state.name;
	char path[LINK_MAX_BYTES], link[64];
	size_t length, name_length = strnlen(name, s->u->state.name_size);
	struct stat st;
	ssize_t n;

	if (file < 0)
		return errno == ENOENT ? 0 : -errno;
	if (fstat(file, &st) < 0)
		return -errno;
	s->u->bound = true;
	s->u->mode = st.st_mode;
	s->u->uid = st.st_uid;
	s->u->gid = st.st_gid;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", file);
	n = readlink(link, path, sizeof(path));
	if (n < 0 || (size_t)n == sizeof(path))
		return n < 0 ? -errno : -ENAMETOOLONG;
	length = (size_t)n;
	if (length > strlen(deleted_mark) &&
	    memcmp(path + length - strlen(deleted_mark), deleted_mark, strlen(deleted_mark)) == 0) {
		s->u->deleted = true;
		length -= strlen(deleted_mark);
	}
	if (name[0] == '/')
		return 0;
	while (name_length > 1 && name[0] == '.' && name[1] == '/') {
		name += 2;
		name_length -= 2;
	}
	if (length <= name_length + 1 || path[length - name_length - 1] != '/' ||
	    memcmp(path + length - name_length, name, name_length) != 0)
		return files_refuse(f, s->open, "is bound to the name %.*s of a file that moved",
				    s->u->state.name_size, s->u->state.name);
	length -= name_length + 1;
	s->u->folder = arena_alloc(f->tree->arena, length + 2);
	if (!s->u->folder)
		return -ENOMEM;
	memcpy(s->u->folder, length ? path : "/", length ? length : 1);
	return 0;
}

/* Not yet accepted, or the other end is closed: the kernel shows no peer, but its name. */
static int name_listener(struct native_files *f, struct sock *s, int fd)
{
	struct sock_unix_state other = { .ino = 0 };
	struct sockaddr_un a;
	socklen_t size = sizeof(a), before = offsetof(struct sockaddr_un, sun_path);

	if (getpeername(fd, (struct sockaddr *)&a, &size) < 0 || size <= before ||
	    size - before > sizeof(other.name))
		return 0;
	other.name_size = (uint8_t)(size - before);
	memcpy(other.name, a.sun_path, other.name_size);
	s->u->waits_for = arena_alloc(f->tree->arena, NAME_TEXT_MAX);
	if (!s->u->waits_for)
		return -ENOMEM;
	sock_unix_name(&other, s->u->waits_for, NAME_TEXT_MAX);
	return 0;
}

int sock_unix_collect(struct native_files *f, struct sock *s, int fd)
{
	struct sock_area *a = sock_area_of(f);
	int r;

	s->u = arena_alloc(f->tree->arena, sizeof(*s->u));
	if (!s->u)
		return -ENOMEM;
	r = ask(f, a, s->open, &s->u->state);
	if (r == 0)
		r = check_kind(f, s->open, &s->u->state);
	if (r == 0 && s->u->state.name_size > 0 && s->u->state.name[0] != '\0')
		r = read_file(f, s, fd);
	if (r == 0 && s->u->state.state == SOCK_TCP_ESTABLISHED && s->u->state.peer == 0)
		r = name_listener(f, s, fd);
	return r < 0 ? r : sock_queue_collect(f, s, fd);
}

/* The listener in whose line a connected but not yet accepted socket stands. */
static const struct sock *find_listener(const struct sock_area *a, uint32_t ino)
{
	for (const struct sock *s = a->first; s; s = s->next) {
		if (s->family != AF_UNIX || s->u->state.state != SOCK_TCP_LISTEN)
			continue;
		for (uint32_t i = 0; i < s->u->state.icon_count; i++)
			if (s->u->state.icons[i] == ino)
				return s;
	}
	return NULL;
}

static int connect_waiting(struct native_files *f, struct sock_area *a, struct sock *s)
{
	const struct sock_unix_state *state = &s->u->state;
	const struct sock *listener = find_listener(a, state->ino);

	if (!listener) {
		if (state->shutdown == SHUT_BOTH_WAYS)
			return 0; /* the other end is closed */
		return files_refuse(f, s->open, "waits to be accepted by %s outside of the job",
				    s->u->waits_for ?: "a program");
	}
	if (state->wqueue > 0)
		return files_refuse(f, s->open,
				    "has sent bytes to a connection that is not yet "
				    "accepted");
	s->u->peer = listener->u->state.ino;
	return 0;
}

static int check_icons(struct native_files *f, struct sock_area *a, struct sock *s)
{
	for (uint32_t i = 0; i < s->u->state.icon_count; i++)
		if (!sock_by_ino(a, s->u->state.icons[i]))
			return files_refuse(f, s->open,
					    "has a connection waiting, from outside of the job");
	return 0;
}

static int connect_peer(struct native_files *f, struct sock_area *a, struct sock *s)
{
	struct native_open *o = sock_by_ino(a, s->u->peer);
	const struct sock *peer = o ? o->facts : NULL;

	if (!peer || peer->family != AF_UNIX)
		return refuse_peer(f, a, s->open, s->u->peer);
	if (peer->u->state.peer != s->u->state.ino && peer->u->state.name_size == 0)
		return files_refuse(f, s->open,
				    "is connected to a socket without a name that is "
				    "connected elsewhere");
	return 0;
}

int sock_unix_connect(struct native_files *f, struct sock *s)
{
	struct sock_area *a = sock_area_of(f);
	const struct sock_unix_state *state = &s->u->state;
	int r = 0;

	s->u->peer = state->peer;
	if (state->state == SOCK_TCP_LISTEN)
		r = check_icons(f, a, s);
	else if (state->peer)
		r = connect_peer(f, a, s);
	else if (state->state == SOCK_TCP_ESTABLISHED && s->type != SOCK_DGRAM)
		r = connect_waiting(f, a, s);
	return r;
}

/*
 * The restorer finds the peer of a socket if it has read it before, or if that one names this one
 * as its peer. So what many are connected to comes first. Each step makes one more socket written:
 * the way ends.
 */
static int write_target(struct native_files *f, const struct sock *s)
{
	struct sock_area *a = sock_area_of(f);
	const struct native_open *o = s->u->peer ? sock_by_ino(a, s->u->peer) : NULL;
	struct sock *peer = o ? o->facts : NULL;

	if (!peer || peer->family != AF_UNIX || peer->u->written ||
	    peer->u->peer == s->u->state.ino)
		return 0;
	return sock_unix_write(f, peer);
}

int sock_unix_write(struct native_files *f, struct sock *s)
{
	NatFiles__File file = NAT_FILES__FILE__INIT;
	NatFiles__UnixSock u = NAT_FILES__UNIX_SOCK__INIT;
	NatFiles__FilePerms perms = NAT_FILES__FILE_PERMS__INIT;
	struct sock_message m;
	int r;

	if (s->u->written)
		return 0;
	s->u->written = true;
	r = write_target(f, s);
	if (r == 0)
		r = sock_fill(s, &m);
	if (r < 0)
		return r;
	u.id = s->open->id;
	u.ino = s->u->state.ino;
	u.type = (uint32_t)s->type;
	u.state = s->u->state.state;
	u.flags = open_flags(s->open);
	u.backlog = s->u->state.wqueue;
	u.peer = s->u->peer;
	u.fown = &m.fown;
	u.opts = &m.opts;
	u.name.data = (uint8_t *)s->u->state.name;
	u.name.len = s->u->state.name_size;
	u.has_shutdown = s->u->state.shutdown != 0;
	u.shutdown = (NatFiles__SockShutdown)s->u->state.shutdown;
	if (s->u->bound) {
		perms.mode = s->u->mode;
		perms.uid = s->u->uid;
		perms.gid = s->u->gid;
		u.file_perms = &perms;
	}
	u.has_deleted = u.deleted = s->u->deleted;
	u.name_dir = s->u->folder;
	file.usk = &u;
	files_put(f, s->open, &file);
	free(m.filter);
	return 0;
}
