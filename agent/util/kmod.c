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
	_cleanup_close_ int fd = open(DECAMP_DEVICE, O_RDWR | O_CLOEXEC);

	if (fd < 0 || ioctl(fd, DECAMP_IOC_VERSION, NULL) != DECAMP_ABI)
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
	struct decamp_uffd args = { .size = sizeof(args), .pid = pid, .mode = (__u32)flags };
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

int kmod_freeze(pid_t root, int timeout_ms, int lease_ms, int *ret_session)
{
	struct decamp_freeze args = { .size = sizeof(args),
				      .pid = root,
				      .timeout_ms = (__u32)timeout_ms,
				      .lease_ms = (__u32)lease_ms };
	_cleanup_close_ int device = -1;
	int r = open_device(&device), session;

	if (r < 0)
		return r;
	session = ioctl(device, DECAMP_IOC_FREEZE, &args);
	if (session < 0)
		return -errno;
	*ret_session = session;
	return 0;
}

int kmod_threads(int session, struct decamp_thread *threads, size_t room, size_t *ret_total)
{
	struct decamp_threads args = { .size = sizeof(args),
				       .threads = (uintptr_t)threads,
				       .room = room };
	int total = ioctl(session, DECAMP_IOC_THREADS, &args);

	if (total < 0)
		return -errno;
	*ret_total = (size_t)total;
	return 0;
}

int kmod_xstate(int session, pid_t tid, uint64_t switches, void *buffer, size_t room,
		size_t *ret_size)
{
	struct decamp_xstate args = { .size = sizeof(args),
				      .buffer = (uintptr_t)buffer,
				      .switches = switches,
				      .tid = tid,
				      .room = (__u32)room };
	int size = ioctl(session, DECAMP_IOC_XSTATE, &args);

	if (size < 0)
		return -errno;
	if ((size_t)size > room)
		return -EMSGSIZE;
	*ret_size = (size_t)size;
	return 0;
}

int kmod_park(int session, pid_t tid, int timeout_ms)
{
	struct decamp_park args = { .size = sizeof(args),
				    .tid = tid,
				    .timeout_ms = (__u32)timeout_ms };

	return ioctl(session, DECAMP_IOC_PARK, &args) < 0 ? -errno : 0;
}
