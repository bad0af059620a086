// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Sockets of a program as the native engine writes them: the same as CRIU does, entry by entry;
 * restored by CRIU with what was queued; untouched in the program that runs on.
 */
#include "tests/unit/ipc_lab.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "agent/native/ipc.pb-c.h"
#include "agent/util/io.h"

enum { FD_A = 10, FD_B, FD_C, FD_D, FD_E };

/* Where the child binds; set before it is made. */
static char bind_folder[80];

#define CHECK(condition)                 \
	do {                             \
		if (!(condition))        \
			return __LINE__; \
	} while (0)

static int move(int from, int to)
{
	int fd = dup2(from, to);

	if (fd >= 0 && from != to)
		close(from);
	return fd;
}

static int make_pair(int type, int a, int b)
{
	int fds[2];

	if (socketpair(AF_UNIX, type, 0, fds) < 0)
		return -1;
	/* High numbers first: none of them is overwritten. */
	fds[0] = move(fds[0], 100);
	fds[1] = move(fds[1], 101);
	return fds[0] == 100 && fds[1] == 101 && move(100, a) == a && move(101, b) == b ? 0 : -1;
}

static bool says(int fd, const char *text)
{
	char bytes[4096];
	ssize_t n = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);

	return n == (ssize_t)strlen(text) && memcmp(bytes, text, (size_t)n) == 0;
}

static bool is_dry(int fd)
{
	char byte;

	return recv(fd, &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN;
}

/* ---- pairs ---- */

static int stream_prepare(void)
{
	struct timeval t = { .tv_sec = 7, .tv_usec = 500000 };
	int one = 1, size = 70000;

	CHECK(make_pair(SOCK_STREAM, FD_A, FD_B) == 0);
	CHECK(setsockopt(FD_A, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t)) == 0);
	CHECK(setsockopt(FD_A, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)) == 0);
	CHECK(setsockopt(FD_A, SOL_SOCKET, SO_OOBINLINE, &one, sizeof(one)) == 0);
	CHECK(fcntl(FD_B, F_SETFL, O_NONBLOCK) == 0);
	CHECK(send(FD_A, "first ", 6, 0) == 6);
	CHECK(send(FD_A, "second", 6, 0) == 6);
	CHECK(send(FD_B, "back", 4, 0) == 4);
	CHECK(make_pair(SOCK_STREAM, FD_C, FD_D) == 0);
	CHECK(send(FD_C, "end", 3, 0) == 3);
	return shutdown(FD_C, SHUT_WR) < 0;
}

static int stream_verify(void)
{
	struct timeval t;
	socklen_t size = sizeof(t);

	CHECK(getsockopt(FD_A, SOL_SOCKET, SO_RCVTIMEO, &t, &size) == 0);
	CHECK(t.tv_sec == 7 && t.tv_usec == 500000);
	CHECK(fcntl(FD_B, F_GETFL) & O_NONBLOCK);
	CHECK(says(FD_B, "first second") && is_dry(FD_B));
	CHECK(says(FD_A, "back") && is_dry(FD_A));
	CHECK(send(FD_A, "more", 4, 0) == 4 && says(FD_B, "more"));
	CHECK(says(FD_D, "end"));
	CHECK(recv(FD_D, &t, 1, MSG_DONTWAIT) == 0);
	return 0;
}

static int messages_prepare(void)
{
	char big[30000];

	memset(big, 'b', sizeof(big));
	for (int i = 0; i < 2; i++) {
		int a = i ? FD_C : FD_A;

		CHECK(make_pair(i ? SOCK_SEQPACKET : SOCK_DGRAM, a, a + 1) == 0);
		CHECK(send(a, "one", 3, 0) == 3);
		CHECK(send(a, "second", 6, 0) == 6);
		CHECK(send(a, big, sizeof(big), 0) == sizeof(big));
		CHECK(send(a + 1, "back", 4, 0) == 4);
	}
	return 0;
}

static int messages_verify(void)
{
	char big[30001];

	for (int i = 0; i < 2; i++) {
		int a = i ? FD_C : FD_A;

		CHECK(says(a + 1, "one"));
		CHECK(says(a + 1, "second"));
		CHECK(recv(a + 1, big, sizeof(big), MSG_DONTWAIT) == 30000 && big[29999] == 'b');
		CHECK(is_dry(a + 1));
		CHECK(says(a, "back") && is_dry(a));
	}
	return 0;
}

/* Peeking leaves an own offset as it was. */
static int peek_prepare(void)
{
	int offset = 3;

	CHECK(make_pair(SOCK_STREAM, FD_A, FD_B) == 0);
	CHECK(send(FD_A, "abcdef", 6, 0) == 6);
	return setsockopt(FD_B, SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof(offset)) < 0;
}

static int peek_verify(void)
{
	char bytes[8];
	int offset = 0;
	socklen_t size = sizeof(offset);

	CHECK(getsockopt(FD_B, SOL_SOCKET, SO_PEEK_OFF, &offset, &size) == 0 && offset == 3);
	CHECK(recv(FD_B, bytes, sizeof(bytes), MSG_PEEK) == 3 && memcmp(bytes, "def", 3) == 0);
	return 0;
}

static int send_fd(int sock, int fd)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = { .bytes = { 0 } };
	struct iovec v = { .iov_base = (char[]){ 'x' }, .iov_len = 1 };
	struct msghdr m = { .msg_iov = &v,
			    .msg_iovlen = 1,
			    .msg_control = control.bytes,
			    .msg_controllen = sizeof(control.bytes) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	return sendmsg(sock, &m, 0) == 1 ? 0 : -1;
}

static int take_fd_from(int sock)
{
	char byte, control[CMSG_SPACE(sizeof(int))];
	struct iovec v = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr m = { .msg_iov = &v,
			    .msg_iovlen = 1,
			    .msg_control = control,
			    .msg_controllen = sizeof(control) };
	struct cmsghdr *c;
	int fd = -1;

	if (recvmsg(sock, &m, MSG_DONTWAIT) != 1)
		return -1;
	c = CMSG_FIRSTHDR(&m);
	if (c && c->cmsg_type == SCM_RIGHTS)
		memcpy(&fd, CMSG_DATA(c), sizeof(fd));
	return fd;
}

/* Bytes, a descriptor, bytes: a stream of three parts. The descriptor is a pipe's end. */
static int rights_prepare(void)
{
	int pipe_fds[2];

	CHECK(make_pair(SOCK_STREAM, FD_A, FD_B) == 0);
	CHECK(pipe(pipe_fds) == 0);
	CHECK(move(pipe_fds[0], FD_C) == FD_C && move(pipe_fds[1], FD_D) == FD_D);
	CHECK(send(FD_A, "before", 6, 0) == 6);
	CHECK(send_fd(FD_A, FD_D) == 0);
	CHECK(send(FD_A, "after", 5, 0) == 5);
	return 0;
}

static int rights_verify(void)
{
	char bytes[8];
	int fd;

	CHECK(recv(FD_B, bytes, 6, MSG_DONTWAIT) == 6 && memcmp(bytes, "before", 6) == 0);
	fd = take_fd_from(FD_B);
	CHECK(fd >= 0 && write(fd, "p", 1) == 1 && read(FD_C, bytes, 1) == 1 && bytes[0] == 'p');
	CHECK(says(FD_B, "after"));
	return 0;
}

static int lost_rights_prepare(void)
{
	int pipe_fds[2];

	CHECK(make_pair(SOCK_STREAM, FD_A, FD_B) == 0);
	CHECK(pipe(pipe_fds) == 0 && send_fd(FD_A, pipe_fds[0]) == 0);
	return close(pipe_fds[0]) + close(pipe_fds[1]);
}

static int empty_message_prepare(void)
{
	CHECK(make_pair(SOCK_DGRAM, FD_A, FD_B) == 0);
	CHECK(send(FD_A, "", 0, 0) == 0);
	return send(FD_A, "x", 1, 0) != 1;
}

static int empty_message_verify(void)
{
	char byte;

	CHECK(recv(FD_B, &byte, 1, MSG_DONTWAIT) == 0);
	CHECK(says(FD_B, "x") && is_dry(FD_B));
	return 0;
}

static int halves_prepare(void)
{
	int fd;

	CHECK(make_pair(SOCK_STREAM, FD_A, FD_B) == 0);
	CHECK(send(FD_B, "last words", 10, 0) == 10);
	CHECK(close(FD_B) == 0);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	CHECK(move(fd, FD_C) == FD_C);
	fd = socket(AF_UNIX, SOCK_DGRAM, 0);
	CHECK(move(fd, FD_D) == FD_D);
	return 0;
}

static int halves_verify(void)
{
	char byte;

	CHECK(says(FD_A, "last words"));
	CHECK(recv(FD_A, &byte, 1, 0) == 0);
	CHECK(send(FD_A, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
	CHECK(send(FD_C, "x", 1, MSG_NOSIGNAL) < 0 && errno == ENOTCONN);
	return 0;
}

/* ---- names ---- */

static socklen_t unix_address(struct sockaddr_un *a, const char *name, bool abstract)
{
	*a = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (!abstract) {
		snprintf(a->sun_path, sizeof(a->sun_path), "%s", name);
		return sizeof(*a);
	}
	snprintf(a->sun_path + 1, sizeof(a->sun_path) - 1, "%s", name);
	return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name));
}

static int bound_socket(int type, const char *name, bool abstract, int to)
{
	struct sockaddr_un a;
	socklen_t size = unix_address(&a, name, abstract);
	int fd = socket(AF_UNIX, type, 0);

	return fd < 0 || bind(fd, (struct sockaddr *)&a, size) < 0 ? -1 : move(fd, to);
}

static int connected_socket(int type, const char *name, bool abstract, int to)
{
	struct sockaddr_un a;
	socklen_t size = unix_address(&a, name, abstract);
	int fd = socket(AF_UNIX, type, 0);

	return fd < 0 || connect(fd, (struct sockaddr *)&a, size) < 0 ? -1 : move(fd, to);
}

/* A listener with an accepted connection and one that waits. */
static int listen_prepare(void)
{
	char path[120];
	int fd;

	snprintf(path, sizeof(path), "%s/listen", bind_folder);
	CHECK(bound_socket(SOCK_STREAM, path, false, FD_A) == FD_A);
	CHECK(chmod(path, 0640) == 0 && listen(FD_A, 5) == 0);
	CHECK(connected_socket(SOCK_STREAM, path, false, FD_B) == FD_B);
	fd = accept(FD_A, NULL, NULL);
	CHECK(move(fd, FD_C) == FD_C);
	CHECK(connected_socket(SOCK_STREAM, path, false, FD_D) == FD_D);
	return send(FD_B, "hello", 5, 0) != 5;
}

static int listen_verify(void)
{
	char path[120];
	struct stat st;
	int fd;

	snprintf(path, sizeof(path), "%s/listen", bind_folder);
	CHECK(stat(path, &st) == 0 && (st.st_mode & 0777) == 0640);
	CHECK(says(FD_C, "hello"));
	fd = accept4(FD_A, NULL, NULL, SOCK_NONBLOCK);
	CHECK(fd >= 0 && send(FD_D, "inflight", 8, 0) == 8 && says(fd, "inflight"));
	close(fd);
	CHECK(connected_socket(SOCK_STREAM, path, false, FD_E) == FD_E);
	return 0;
}

/* A relative name, one that was deleted, an abstract one; datagrams to those. */
static int names_prepare(void)
{
	CHECK(chdir(bind_folder) == 0);
	CHECK(bound_socket(SOCK_DGRAM, "relative", false, FD_A) == FD_A);
	CHECK(bound_socket(SOCK_DGRAM, "deleted", false, FD_B) == FD_B);
	CHECK(bound_socket(SOCK_DGRAM, bind_folder, true, FD_C) == FD_C);
	CHECK(connected_socket(SOCK_DGRAM, "relative", false, FD_D) == FD_D);
	CHECK(connected_socket(SOCK_DGRAM, bind_folder, true, FD_E) == FD_E);
	CHECK(send(FD_D, "to relative", 11, 0) == 11);
	return unlink("deleted");
}

static int names_verify(void)
{
	CHECK(says(FD_A, "to relative"));
	CHECK(send(FD_E, "to abstract", 11, 0) == 11 && says(FD_C, "to abstract"));
	CHECK(connected_socket(SOCK_DGRAM, "relative", false, 30) == 30);
	CHECK(access("deleted", F_OK) < 0);
	return 0;
}

/* ---- inet and netlink ---- */

enum { PORT_FIRST = 8192, PORTS = 2048, PORT_TRIES = 64 };

/*
 * At a port below those that the kernel gives to whoever connects, and below those of test hosts:
 * between a dump and a restore it is free.
 */
static int inet_socket(int family, int type, int to)
{
	struct sockaddr_in v4 = { .sin_family = AF_INET };
	struct sockaddr_in6 v6 = { .sin6_family = AF_INET6 };
	int fd = socket(family, type, 0), one = 1, r = -1;

	v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	v6.sin6_addr = in6addr_loopback;
	if (fd < 0)
		return -1;
	(void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	for (int i = 0; i < PORT_TRIES && r < 0; i++) {
		v4.sin_port = v6.sin6_port =
			htons((uint16_t)(PORT_FIRST + (getpid() * PORT_TRIES + i) % PORTS));
		r = family == AF_INET ? bind(fd, (struct sockaddr *)&v4, sizeof(v4)) :
					bind(fd, (struct sockaddr *)&v6, sizeof(v6));
	}
	return r < 0 ? -1 : move(fd, to);
}

static int inet_prepare(void)
{
	struct sock_filter code[] = { { BPF_RET | BPF_K, 0, 0, 0xffff } };
	struct sock_fprog filter = { .len = 1, .filter = code };
	int fd, one = 1;

	CHECK(inet_socket(AF_INET, SOCK_STREAM, FD_A) == FD_A);
	CHECK(setsockopt(FD_A, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) == 0);
	CHECK(listen(FD_A, 17) == 0);
	CHECK(inet_socket(AF_INET, SOCK_DGRAM, FD_B) == FD_B);
	CHECK(setsockopt(FD_B, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter)) == 0);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	CHECK(move(fd, FD_C) == FD_C);
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	CHECK(move(fd, FD_D) == FD_D);
	/* Hosts without IPv6 have the others. */
	return inet_socket(AF_INET6, SOCK_STREAM, FD_E) == FD_E ? listen(FD_E, 3) : 0;
}

static int inet_verify(void)
{
	struct sockaddr_in a;
	socklen_t size = sizeof(a);
	int one = 0, fd = socket(AF_INET, SOCK_STREAM, 0);

	CHECK(getsockname(FD_A, (struct sockaddr *)&a, &size) == 0 && a.sin_port != 0);
	CHECK(connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0);
	size = sizeof(one);
	CHECK(getsockopt(FD_A, IPPROTO_TCP, TCP_NODELAY, &one, &size) == 0 && one == 1);
	size = sizeof(a);
	CHECK(getsockname(FD_B, (struct sockaddr *)&a, &size) == 0 && a.sin_port != 0);
	CHECK(sendto(FD_D, "udp", 3, 0, (struct sockaddr *)&a, sizeof(a)) == 3);
	CHECK(says(FD_B, "udp"));
	close(fd);
	fd = accept(FD_A, NULL, NULL);
	return fd < 0 ? __LINE__ : close(fd);
}

static int netlink_prepare(void)
{
	struct sockaddr_nl a = { .nl_family = AF_NETLINK, .nl_groups = RTMGRP_LINK };
	int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);

	CHECK(move(fd, FD_A) == FD_A);
	fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
	CHECK(bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0);
	CHECK(move(fd, FD_B) == FD_B);
	return 0;
}

static int netlink_verify(void)
{
	struct nlmsghdr noop = { .nlmsg_len = sizeof(noop), .nlmsg_type = NLMSG_NOOP };
	struct sockaddr_nl a;
	socklen_t size = sizeof(a);

	CHECK(getsockname(FD_B, (struct sockaddr *)&a, &size) == 0);
	CHECK(a.nl_groups == RTMGRP_LINK && a.nl_pid != 0);
	return send(FD_A, &noop, sizeof(noop), 0) != sizeof(noop);
}

/* ---- what is not covered ---- */

static uint16_t outside_port;

static int outside_prepare(void)
{
	return connected_socket(SOCK_STREAM, bind_folder, true, FD_A) != FD_A;
}

static int connection_prepare(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(outside_port) };
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	CHECK(connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0);
	return move(fd, FD_A) != FD_A;
}

static int raw_prepare(void)
{
	int fd = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);

	return move(fd, FD_A) != FD_A;
}

static int packet_prepare(void)
{
	int fd = socket(AF_PACKET, SOCK_DGRAM, 0);

	return move(fd, FD_A) != FD_A;
}

static int unread_prepare(void)
{
	CHECK(inet_socket(AF_INET, SOCK_STREAM, FD_A) == FD_A && listen(FD_A, 4) == 0);
	return 0;
}

/* ---- tests ---- */

static int setup(void **state)
{
	static struct ipc_lab lab;

	if (!ipc_lab_init(&lab))
		return 0;
	snprintf(bind_folder, sizeof(bind_folder), "%s/bind", lab.folder);
	*state = &lab;
	return mkdir(bind_folder, 0700);
}

static int teardown(void **state)
{
	if (*state)
		ipc_lab_deinit(*state);
	return 0;
}

static void empty_folder(const char *path)
{
	(void)!remove_tree_at(AT_FDCWD, path);
	assert_int_equal(mkdir(path, 0700), 0);
}

static void test_same_as_criu(void **state)
{
	struct ipc_lab *lab = *state;
	static const struct {
		struct ipc_lab_program program;
		int first, last;
	} rows[] = {
		{ { stream_prepare, stream_verify, 0 }, FD_A, FD_D },
		{ { messages_prepare, messages_verify, 0 }, FD_A, FD_D },
		{ { rights_prepare, rights_verify, 0 }, FD_A, FD_B },
		{ { halves_prepare, halves_verify, 0 }, FD_A, FD_A },
		{ { listen_prepare, listen_verify, 0 }, FD_A, FD_D },
		{ { inet_prepare, inet_verify, 0 }, FD_A, FD_D },
		{ { netlink_prepare, netlink_verify, 0 }, FD_A, FD_B },
		{ { names_prepare, names_verify, 0 }, FD_A, FD_E },
	};

	if (!lab || !lab->binary[0])
		skip();
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		empty_folder(bind_folder);
		ipc_lab_start(lab, &rows[i].program);
		if (ipc_lab_take(lab) < 0)
			fail_msg("row %zu: %s", i, lab->reason);
		print_message("row %zu: files_collect took %llu us\n", i,
			      (unsigned long long)lab->files_ns / 1000);
		ipc_lab_dump(lab);
		for (int fd = rows[i].first; fd <= rows[i].last; fd++)
			ipc_lab_same_file(lab, fd);
		ipc_lab_stop(lab);
	}
}

/* Looking twice changes nothing: each program finds what it left. */
static void test_untouched(void **state)
{
	struct ipc_lab *lab = *state;
	static const struct ipc_lab_program programs[] = {
		{ stream_prepare, stream_verify, 0 }, { messages_prepare, messages_verify, 0 },
		{ rights_prepare, rights_verify, 0 }, { halves_prepare, halves_verify, 0 },
		{ peek_prepare, peek_verify, 0 },     { listen_prepare, listen_verify, 0 },
		{ inet_prepare, inet_verify, 0 },
	};

	if (!lab)
		skip();
	for (size_t i = 0; i < ARRAY_SIZE(programs); i++) {
		ipc_lab_start(lab, &programs[i]);
		for (int n = 0; n < 2; n++)
			if (ipc_lab_take(lab) < 0)
				fail_msg("program %zu: %s", i, lab->reason);
		assert_int_equal(ipc_lab_ask(lab), 0);
		ipc_lab_stop(lab);
		empty_folder(bind_folder);
	}
}

static void test_restored(void **state)
{
	struct ipc_lab *lab = *state;
	static const struct ipc_lab_program programs[] = {
		{ stream_prepare, stream_verify, 0 }, { messages_prepare, messages_verify, 0 },
		{ rights_prepare, rights_verify, 0 }, { halves_prepare, halves_verify, 0 },
		{ listen_prepare, listen_verify, 0 }, { names_prepare, names_verify, 0 },
		{ inet_prepare, inet_verify, 0 },     { netlink_prepare, netlink_verify, 0 },
	};

	if (!lab || !lab->binary[0])
		skip();
	for (size_t i = 0; i < ARRAY_SIZE(programs); i++) {
		int r;

		empty_folder(bind_folder);
		ipc_lab_start(lab, &programs[i]);
		r = ipc_lab_return(lab);
		if (r != 0)
			fail_msg("program %zu: %d %s", i, r, lab->reason);
	}
}

static size_t packet_bytes(const ProtobufCMessage *m)
{
	return ((const NatIpc__Packet *)m)->length;
}

static void test_queues(void **state)
{
	struct ipc_lab *lab = *state;
	static const struct ipc_lab_program program = { rights_prepare, rights_verify, 0 };
	static const char *const parts[] = { "before", "x", "after" };
	NatFiles__File *socket_b, *pipe_end;

	if (!lab)
		skip();
	ipc_lab_start(lab, &program);
	assert_int_equal(ipc_lab_take(lab), 0);
	socket_b = ipc_lab_file(lab, lab->native, FD_B);
	pipe_end = ipc_lab_file(lab, lab->native, FD_D);
	for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
		uint8_t *bytes = NULL;
		NatIpc__Packet *p = (void *)ipc_lab_record(lab->native, "sk-queues",
							   &nat_ipc__packet__descriptor, i,
							   packet_bytes, &bytes);

		assert_non_null(p);
		assert_int_equal(p->length, strlen(parts[i]));
		assert_memory_equal(bytes, parts[i], p->length);
		assert_int_equal(p->id_for, socket_b->id);
		assert_int_equal(p->n_scm, i == 1);
		if (p->n_scm > 0)
			assert_int_equal(p->scm[0]->rights[0], pipe_end->id);
		nat_ipc__packet__free_unpacked(p, NULL);
		free(bytes);
	}
	nat_files__file__free_unpacked(socket_b, NULL);
	nat_files__file__free_unpacked(pipe_end, NULL);
}

static void test_refused(void **state)
{
	struct ipc_lab *lab = *state;
	static const struct {
		struct ipc_lab_program program;
		const char *word;
	} rows[] = {
		{ { outside_prepare, NULL, 0 }, "/bind outside of the job" },
		{ { connection_prepare, NULL, 0 }, "-> 127.0.0.1:" },
		{ { raw_prepare, NULL, 0 }, "raw socket" },
		{ { packet_prepare, NULL, 0 }, "packet socket" },
		{ { lost_rights_prepare, NULL, 0 }, "no process of the job" },
	};
	struct sockaddr_un a;
	struct sockaddr_in in = { .sin_family = AF_INET };
	socklen_t size = sizeof(in);
	_cleanup_close_ int un = -1, tcp = -1, accepted = -1;

	if (!lab)
		skip();
	un = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(un, (struct sockaddr *)&a, unix_address(&a, bind_folder, true)), 0);
	assert_int_equal(listen(un, 5), 0);
	tcp = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	assert_int_equal(bind(tcp, (struct sockaddr *)&in, sizeof(in)), 0);
	assert_int_equal(listen(tcp, 5), 0);
	assert_int_equal(getsockname(tcp, (struct sockaddr *)&in, &size), 0);
	outside_port = ntohs(in.sin_port);
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		ipc_lab_start(lab, &rows[i].program);
		ipc_lab_refuses(lab, rows[i].word);
		print_message("%s\n", lab->reason);
		if (rows[i].program.prepare == outside_prepare) {
			accepted = accept4(un, NULL, NULL, SOCK_CLOEXEC);
			assert_true(accepted >= 0);
			ipc_lab_refuses(lab, "is connected to @");
		}
		ipc_lab_stop(lab);
	}
}

/* A connection that waits on the job's listener, from outside. */
static void test_waiting_connection(void **state)
{
	struct ipc_lab *lab = *state;
	static const struct ipc_lab_program program = { unread_prepare, NULL, 0 };
	NatFiles__File *file;
	struct sockaddr_in a = { .sin_family = AF_INET };
	_cleanup_close_ int fd = -1;

	if (!lab)
		skip();
	ipc_lab_start(lab, &program);
	assert_int_equal(ipc_lab_take(lab), 0);
	file = ipc_lab_file(lab, lab->native, FD_A);
	assert_non_null(file->isk);
	a.sin_port = htons((uint16_t)file->isk->src_port);
	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	nat_files__file__free_unpacked(file, NULL);
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	ipc_lab_refuses(lab, "1 connections waiting");
	ipc_lab_stop(lab);
}

/* A message of no bytes at the head of a queue; once looked at, it hides. Never taken for none. */
static void test_empty_message(void **state)
{
	struct ipc_lab *lab = *state;
	static const struct ipc_lab_program program = { empty_message_prepare, empty_message_verify,
							0 };

	if (!lab)
		skip();
	ipc_lab_start(lab, &program);
	assert_int_equal(ipc_lab_take(lab), 0);
	assert_int_equal(ipc_lab_ask(lab), 0);
	ipc_lab_stop(lab);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_same_as_criu),
		cmocka_unit_test(test_untouched),
		cmocka_unit_test(test_queues),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_waiting_connection),
		cmocka_unit_test(test_empty_message),
		cmocka_unit_test(test_restored),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
