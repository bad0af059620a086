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
