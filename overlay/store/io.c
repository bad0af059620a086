// SPDX-License-Identifier: LGPL-2.1-or-later
#include "overlay/store/io.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

static int or_errno(int r)
{
	return r < 0 ? -errno : r;
}

static int disk_openat(void *ctx, int dirfd, const char *name, int flags, mode_t mode)
{
	(void)ctx;
	return or_errno(openat(dirfd, name, flags, mode));
}

static ssize_t disk_pread(void *ctx, int fd, void *bytes, size_t size, uint64_t offset)
{
	ssize_t count = pread(fd, bytes, size, (off_t)offset);

	(void)ctx;
	return count < 0 ? -errno : count;
}

static ssize_t disk_pwrite(void *ctx, int fd, const void *bytes, size_t size, uint64_t offset)
{
	ssize_t count = pwrite(fd, bytes, size, (off_t)offset);

	(void)ctx;
	return count < 0 ? -errno : count;
}

static int disk_fsync(void *ctx, int fd)
{
	(void)ctx;
	return or_errno(fsync(fd));
}

static int disk_fdatasync(void *ctx, int fd)
{
	(void)ctx;
	return or_errno(fdatasync(fd));
}

static int disk_ftruncate(void *ctx, int fd, uint64_t size)
{
	(void)ctx;
	return or_errno(ftruncate(fd, (off_t)size));
}

static int disk_punch(void *ctx, int fd, uint64_t offset, uint64_t size)
{
	(void)ctx;
	return or_errno(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
				  (off_t)size));
}

static int disk_renameat(void *ctx, int old_dirfd, const char *old_name, int dirfd,
			 const char *name)
{
	(void)ctx;
	return or_errno(renameat(old_dirfd, old_name, dirfd, name));
}

static int disk_unlinkat(void *ctx, int dirfd, const char *name, int flags)
{
	(void)ctx;
	return or_errno(unlinkat(dirfd, name, flags));
}

static int disk_mkdirat(void *ctx, int dirfd, const char *name, mode_t mode)
{
	(void)ctx;
	return or_errno(mkdirat(dirfd, name, mode));
}

static int disk_free_bytes(void *ctx, int fd, uint64_t *ret_bytes)
{
	struct statvfs fs;

	(void)ctx;
	if (fstatvfs(fd, &fs) < 0)
		return -errno;
	*ret_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
	return 0;
}

const struct store_io store_io_disk = {
	.openat = disk_openat,
	.pread = disk_pread,
	.pwrite = disk_pwrite,
	.fsync = disk_fsync,
	.fdatasync = disk_fdatasync,
	.ftruncate = disk_ftruncate,
	.punch = disk_punch,
	.renameat = disk_renameat,
	.unlinkat = disk_unlinkat,
	.mkdirat = disk_mkdirat,
	.free_bytes = disk_free_bytes,
};

int store_io_write(const struct store_io *io, int fd, const void *bytes, size_t size,
		   uint64_t offset)
{
	for (size_t done = 0; done < size;) {
		ssize_t count = io->pwrite(io->ctx, fd, (const char *)bytes + done, size - done,
					   offset + done);

		if (count == -EINTR)
			continue;
		if (count <= 0)
			return count < 0 ? (int)count : -EIO;
		done += (size_t)count;
	}
	return 0;
}

int store_io_read(const struct store_io *io, int fd, void *bytes, size_t size, uint64_t offset)
{
	for (size_t done = 0; done < size;) {
		ssize_t count =
			io->pread(io->ctx, fd, (char *)bytes + done, size - done, offset + done);

		if (count == -EINTR)
			continue;
		if (count <= 0)
			return count < 0 ? (int)count : -ENODATA;
		done += (size_t)count;
	}
	return 0;
}
