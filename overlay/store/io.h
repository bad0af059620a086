/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Every call by which the store changes or reads its own files, so that a test can let each of
 * them fail, end the process or take the power away. LMDB's files are not seen here.
 *
 * Each function is the system call of its name and returns what that returns, but -errno for -1.
 * They may be short where the call may; store_io_write() and store_io_read() are whole.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct store_io {
	int (*openat)(void *ctx, int dirfd, const char *name, int flags, mode_t mode);
	ssize_t (*pread)(void *ctx, int fd, void *bytes, size_t size, uint64_t offset);
	ssize_t (*pwrite)(void *ctx, int fd, const void *bytes, size_t size, uint64_t offset);
	int (*fsync)(void *ctx, int fd);
	int (*fdatasync)(void *ctx, int fd);
	int (*ftruncate)(void *ctx, int fd, uint64_t size);
	int (*punch)(void *ctx, int fd, uint64_t offset, uint64_t size); /* fallocate */
	int (*renameat)(void *ctx, int old_dirfd, const char *old_name, int dirfd,
			const char *name);
	int (*unlinkat)(void *ctx, int dirfd, const char *name, int flags);
	int (*mkdirat)(void *ctx, int dirfd, const char *name, mode_t mode);
	/* Bytes that this user may still write to the file system of fd. */
	int (*free_bytes)(void *ctx, int fd, uint64_t *ret_bytes);
	void *ctx;
};

extern const struct store_io store_io_disk;

int store_io_write(const struct store_io *io, int fd, const void *bytes, size_t size,
		   uint64_t offset) __attribute__((warn_unused_result));
/* -ENODATA at an early end of the file. */
int store_io_read(const struct store_io *io, int fd, void *bytes, size_t size, uint64_t offset)
	__attribute__((warn_unused_result));
