// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>

#include "agent/capture/internal.h"
#include "agent/util/io.h"

enum { COPY_CHUNK = 256 << 10 };

/* The kernel copies between these two file systems, or the caller must. */
static int copy_in_kernel(int in, int out, off_t from, off_t to)
{
	while (from < to) {
		off_t in_off = from, out_off = from;
		ssize_t n = copy_file_range(in, &in_off, out, &out_off, (size_t)(to - from), 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -ENODATA;
		from += n;
	}
	return 0;
}

static int copy_by_hand(int in, int out, off_t from, off_t to, uint8_t *buf)
{
	while (from < to) {
		size_t size = to - from > COPY_CHUNK ? COPY_CHUNK : (size_t)(to - from);
		int r = pread_full(in, buf, size, from);

		if (r == 0)
			r = pwrite_full(out, buf, size, from);
		if (r < 0)
			return r;
		from += (off_t)size;
	}
	return 0;
}

static int copy_range(int in, int out, off_t from, off_t to, bool *by_hand)
{
	_cleanup_free_ uint8_t *buf = NULL;

	if (!*by_hand) {
		int r = copy_in_kernel(in, out, from, to);

		if (r != -EXDEV && r != -EINVAL && r != -EOPNOTSUPP && r != -ENOSYS && r != -EPERM)
			return r;
		*by_hand = true;
	}
	buf = malloc(COPY_CHUNK);
	if (!buf)
		return -ENOMEM;
	return copy_by_hand(in, out, from, to, buf);
}

static int copy_extents(int in, int out, off_t size)
{
	bool by_hand = false;
	off_t at = 0;

	while (at < size) {
		off_t from = lseek(in, at, SEEK_DATA);
		off_t to;
		int r;

		if (from < 0 && errno == ENXIO)
			break;
		if (from < 0)
			from = at;
		to = lseek(in, from, SEEK_HOLE);
		if (to < 0 || to > size)
			to = size;
		if (from >= to)
			break;
		r = copy_range(in, out, from, to, &by_hand);
		if (r < 0)
			return r;
		at = to;
	}
	return 0;
}

int capture_copy(int in, int dirfd, const char *name, off_t size)
{
	_cleanup_close_ int out = openat(dirfd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	if (out < 0)
		return -errno;
	if (size == 0 || ioctl(out, FICLONE, in) == 0)
		return 0;
	if (ftruncate(out, size) < 0)
		return -errno;
	return copy_extents(in, out, size);
}
