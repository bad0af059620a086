/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the parts of the socket area share.
 *
 *   sockets.c     the area, what all families have in common   sock_diag.c   questions to sock_diag
 *   sock_unix.c   unix sockets, peers, waiting connections     sock_queue.c  queued unix messages
 *   sock_inet.c   unconnected inet sockets                     sock_netlink.c
 *
 * A socket is looked at through our own descriptor of it (open_local), and a unix socket by one
 * exact question to unix_diag: a list of all sockets of the host would cost milliseconds.
 * Threading: none. Allocation: the tree's arena.
 */
#pragma once

#include <linux/filter.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "agent/native/files_internal.h"

enum {
	SOCK_ICONS_MAX = 256,	   /* connections that wait on one unix listener */
	SOCK_NAME_MAX = 108,	   /* sun_path */
	SOCK_PACKETS_MAX = 65536,  /* queued messages of a socket */
	SOCK_QUEUE_MAX = 64 << 20, /* queued bytes of a socket */
	SOCK_RIGHTS_MAX = 253,	   /* SCM_MAX_FD */
	SOCK_FILTER_MAX = 4096,	   /* BPF_MAXINSNS */
	SOCK_DEVICE_MAX = 16,	   /* IFNAMSIZ */
	SOCK_TCP_CLOSE = 7,	   /* states as the kernel and CRIU count them */
	SOCK_TCP_LISTEN = 10,
	SOCK_TCP_ESTABLISHED = 1,
};

/* An answer of unix_diag. */
struct sock_unix_state {
	uint32_t ino, peer; /* peer: 0 none, or it has no inode */
	uint32_t rqueue, wqueue;
	uint8_t type, state, shutdown;
	uint8_t name_size;
	char name[SOCK_NAME_MAX];
	uint32_t icon_count;
	uint32_t icons[SOCK_ICONS_MAX]; /* 0: already closed */
};

/* What CRIU keeps of SOL_SOCKET. */
struct sock_options {
	uint32_t sndbuf, rcvbuf, buf_lock, priority, rcvlowat, mark;
	struct timeval sndtimeo, rcvtimeo;
	int reuseaddr, reuseport, passcred, passsec, dontroute, no_check, broadcast, keepalive,
		oobinline;
	struct linger linger;
	bool has_buf_lock, has_passcred, has_passsec;
	char device[SOCK_DEVICE_MAX];
	struct sock_filter *filter;
	uint32_t filter_count;
};

/* A message in the receive queue; for a stream, what one look could show. */
struct sock_packet {
	struct sock_packet *next;
	uint32_t length, right_count;
	uint8_t *bytes;
	uint32_t rights[]; /* ids of files.img */
};

struct sock_unix {
	struct sock_unix_state state;
	struct sock_packet *queue;
	uint32_t peer; /* as the image says it */
	uint32_t mode, uid, gid;
	char *folder;	 /* that a relative name is relative to */
	char *waits_for; /* whose line it stands in, for people; NULL: not known */
	bool bound, deleted;
	bool written; /* into files.img */
};

struct sock_inet {
	uint32_t src[4], dst[4];
	uint32_t src_port, dst_port, state, backlog, shutdown;
	int v6only, freebind, pktinfo, tos, ttl;
	int nodelay, cork, keepcnt, keepidle, keepintvl;
	char device[SOCK_DEVICE_MAX];
};

struct sock_netlink {
	uint32_t portid, groups, dst_portid, dst_groups;
};

struct sock {
	struct sock *next;
	struct native_open *open;
	int family, type, protocol;
	struct sock_options options;
	struct sock_unix *u;
	struct sock_inet *i;
	struct sock_netlink *n;
};

/* On files->area_facts[AREA_SOCKETS]. */
struct sock_area {
	struct sock *first, **last;
	struct sock_entry {
		uint64_t ino;
		struct native_open *open;
	} * entries; /* all sockets that are open in the job, by inode */
	size_t entry_count;
	int diag; /* -1: not needed yet */
	uint32_t diag_ns;
};

/* sockets.c */
struct sock_area *sock_area_of(struct native_files *f);
/* A socket of the job; NULL: not one of its. */
struct native_open *sock_by_ino(const struct sock_area *a, uint64_t ino);
int sock_option(int fd, int level, int name, void *value, socklen_t size) _must_check_;
int sock_int(int fd, int level, int name, int *ret_value) _must_check_;
struct sock_message {
	NatFiles__Fown fown;
	NatFiles__SockOpts opts;
	uint64_t *filter;
};
/* flags and owner and SOL_SOCKET; free filter afterwards. */
int sock_fill(const struct sock *s, struct sock_message *m) _must_check_;

/* sock_diag.c */

/* A question to the network namespace that the task lives in. -ENOENT: no such socket there. */
int sock_diag_unix(struct sock_area *a, const struct native_task *task, uint32_t ino,
		   struct sock_unix_state *ret_state) _must_check_;
void sock_diag_close(struct sock_area *a);
/* A name for people: "/run/x", "@abstract" or "socket 77". */
void sock_unix_name(const struct sock_unix_state *s, char *text, size_t size);

/* sock_unix.c */
int sock_unix_check(struct native_files *f, struct native_open *o, int fd) _must_check_;
int sock_unix_collect(struct native_files *f, struct sock *s, int fd) _must_check_;
/* All sockets are known: who is connected to whom. */
int sock_unix_connect(struct native_files *f, struct sock *s) _must_check_;
int sock_unix_write(struct native_files *f, struct sock *s) _must_check_;

/* sock_queue.c */
int sock_queue_collect(struct native_files *f, struct sock *s, int fd) _must_check_;
void sock_queue_write(struct img *image, const struct sock *s);

/* sock_inet.c, sock_netlink.c; collect with s->open only is a check */
int sock_inet_collect(struct native_files *f, struct sock *s, int fd) _must_check_;
int sock_inet_write(struct native_files *f, const struct sock *s) _must_check_;
int sock_netlink_collect(struct native_files *f, struct sock *s, int fd) _must_check_;
int sock_netlink_write(struct native_files *f, const struct sock *s) _must_check_;
