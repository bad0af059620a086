// SPDX-License-Identifier: LGPL-2.1-or-later
#include "overlay/ipc.h"

#include <errno.h>
#include <sys/socket.h>

#include "agent/util/io.h"

int ov_call(int channel, struct ov_msg *msg, int send_fd, int *ret_fd, int timeout_ms)
{
	_cleanup_close_ int fd = -1;
	uint32_t op = msg->op;
	ssize_t n;
	int r = send_with_fd(channel, msg, sizeof(*msg), send_fd);

	if (r < 0)
		return r;
	n = recv_with_fd(channel, msg, sizeof(*msg), &fd, timeout_ms);
	if (n < 0)
		return (int)n;
	if (n == 0)
		return -ECONNRESET;
	if (n != sizeof(*msg) || msg->op != op)
		return -EBADMSG;
	if (msg->status < 0)
		return msg->status;
	if (ret_fd)
		*ret_fd = take_fd(fd);
	return 0;
}

int ov_open_channel(int main_channel)
{
	struct ov_msg msg = { .op = OV_CHANNEL };
	_cleanup_close_ int ours = -1, theirs = -1;
	int pair[2], r;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	ours = pair[0];
	theirs = pair[1];
	r = send_with_fd(main_channel, &msg, sizeof(msg), theirs);
	if (r < 0)
		return r;
	return take_fd(ours);
}
