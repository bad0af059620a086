// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/util/kmod.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kmod/uapi/decamp.h"

static int open_device(int *ret_fd)
{
	struct decamp_version v = { .size = sizeof(v) };
	_cleanup_close_ int fd = open(DECAMP_DEVICE, O_RDWR | O_CLOEXEC);

	if (fd < 0 || ioctl(fd, DECAMP_IOC_VERSION, &v) < 0 || v.abi != DECAMP_ABI)
		return -ENODEV;
	*ret_fd = fd;
	fd = -1;
	return 0;
}

bool kmod_works(void)
{
	_cleanup_close_ int fd = -1;

	return open_device(&fd) == 0;
}

int kmod_uffd(pid_t pid, int flags, int *ret_fd)
{
	_cleanup_close_ int device = -1, pidfd = -1, uffd = -1, made = -1;
	struct decamp_uffd args = { .size = sizeof(args), .flags = (__u32)flags, .pid = pid };
	int r = open_device(&device);

	if (r < 0)
		return r;
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (pidfd < 0)
		return -errno;
	uffd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (uffd < 0)
		return -ENODEV;
	args.device = uffd;
	made = ioctl(device, DECAMP_IOC_UFFD, &args);
	if (made < 0)
		return -errno;
	/* The module knows a number only: it was this process's if it still is. */
	if (syscall(SYS_pidfd_send_signal, pidfd, 0, NULL, 0) < 0)
		return -errno;
	*ret_fd = made;
	made = -1;
	return 0;
}

int kmod_freeze(pid_t root, int timeout_ms, int lease_ms, struct decamp_counts *ret_counts,
		int *ret_session)
{
	__s32 roots[1] = { root };
	struct decamp_freeze args = { .size = sizeof(args),
				      .roots = (uintptr_t)roots,
				      .roots_count = 1,
				      .timeout_ms = (__u32)timeout_ms,
				      .lease_ms = (__u32)lease_ms };
	_cleanup_close_ int device = -1;
	int r = open_device(&device), session;

	if (r < 0)
		return r;
	session = ioctl(device, DECAMP_IOC_FREEZE, &args);
	if (session < 0)
		return -errno;
	*ret_counts = args.counts;
	*ret_session = session;
	return 0;
}

int kmod_threads(int session, struct decamp_thread *threads, size_t room, size_t *ret_total)
{
	struct decamp_threads args = { .size = sizeof(args),
				       .threads = (uintptr_t)threads,
				       .thread_size = sizeof(*threads),
				       .room = (__u32)room };

	if (ioctl(session, DECAMP_IOC_THREADS, &args) < 0)
		return -errno;
	if (args.missed)
		return -ENOMEM;
	*ret_total = args.total;
	return 0;
}

int kmod_xstate(int session, pid_t tid, void *buffer, size_t room, size_t *ret_size,
		uint64_t *ret_switches)
{
	struct decamp_xstate args = {
		.size = sizeof(args), .tid = tid, .bytes = (__u32)room, .buffer = (uintptr_t)buffer
	};

	if (ioctl(session, DECAMP_IOC_XSTATE, &args) < 0)
		return -errno;
	*ret_size = args.bytes;
	*ret_switches = args.switches;
	return 0;
}

int kmod_park(int session, pid_t tid, int timeout_ms)
{
	struct decamp_park args = { .size = sizeof(args),
				    .tid = tid,
				    .timeout_ms = (__u32)timeout_ms };

	return ioctl(session, DECAMP_IOC_PARK, &args) < 0 ? -errno : 0;
}
