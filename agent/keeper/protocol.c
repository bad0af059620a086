// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/keeper/protocol.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

union fd_control {
	char bytes[CMSG_SPACE(sizeof(int) * (KEEPER_FDS_MAX + 1))];
	struct cmsghdr align;
};

int keeper_send(int sock, const void *buf, size_t size, const int *fds, int fd_count)
{
	struct iovec iov = { .iov_base = (void *)buf, .iov_len = size };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	union fd_control control = { 0 };
	ssize_t n;

	if (fd_count < 0 || fd_count > KEEPER_FDS_MAX + 1)
		return -E2BIG;
	if (fd_count > 0) {
		size_t bytes = sizeof(int) * (size_t)fd_count;
		struct cmsghdr *cmsg;

		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(bytes);
		cmsg = CMSG_FIRSTHDR(&msg);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(bytes);
		memcpy(CMSG_DATA(cmsg), fds, bytes);
	}
	do {
		n = sendmsg(sock, &msg, MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : 0;
}

static int take_fds(struct msghdr *msg, int *fds, int fds_max)
{
	int count = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		size_t got;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		got = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < got; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (count < fds_max)
				fds[count++] = fd;
			else
				close(fd);
		}
	}
	return count;
}

int keeper_receive(int sock, void *buf, size_t size, int *fds, int fds_max, int *ret_count)
{
	struct iovec iov = { .iov_base = buf, .iov_len = size };
	union fd_control control;
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = control.bytes,
			      .msg_controllen = sizeof(control.bytes) };
	ssize_t n;
	int count;

	do {
		n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	count = take_fds(&msg, fds, fds_max);
	if (n == 0 || (size_t)n != size || (msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC))) {
		while (count > 0)
			close(fds[--count]);
		return n == 0 ? -EPIPE : -EBADMSG;
	}
	if (ret_count)
		*ret_count = count;
	return 0;
}

unsigned keeper_address(int dirfd, struct sockaddr_un *ret_address)
{
	*ret_address = (struct sockaddr_un){ .sun_family = AF_UNIX };
	snprintf(ret_address->sun_path, sizeof(ret_address->sun_path),
		 "/proc/self/fd/%d/keeper.sock", dirfd);
	return (unsigned)(offsetof(struct sockaddr_un, sun_path) + strlen(ret_address->sun_path) +
			  1);
}
