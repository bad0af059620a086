/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Whole reads and writes, small files, sealed memfds, datagrams with file descriptors, clocks.
 * All return 0 (or a count) or -errno; none log. Threading: reentrant.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent/util/cleanup.h"

/* Exactly size bytes, or -errno (-ENODATA at an early end of file). */
int read_full(int fd, void *buf, size_t size) _must_check_;
int pread_full(int fd, void *buf, size_t size, off_t off) _must_check_;
int write_full(int fd, const void *buf, size_t size) _must_check_;
int pwrite_full(int fd, const void *buf, size_t size, off_t off) _must_check_;

/* A whole small file below dirfd, NUL-terminated, at most max bytes (-EFBIG beyond). */
int read_file_at(int dirfd, const char *path, size_t max, char **ret_text,
		 size_t *ret_size) _must_check_;

/* Temporary name, write, fsync, rename, fsync of the folder. */
int write_file_atomic_at(int dirfd, const char *path, const void *buf, size_t size,
			 mode_t mode) _must_check_;

/* One value into a kernel file (cgroup.freeze, ns_last_pid); no create, no truncate. */
int write_kernel_file(const char *path, const char *value) _must_check_;

/* mkdir -p of an absolute path. */
int mkdir_parents(const char *path, mode_t mode) _must_check_;

/* rm -rf below dirfd, staying on its file system; a missing path is no error. */
int remove_tree_at(int dirfd, const char *path) _must_check_;

/* A memfd; seal it with memfd_seal() before it is handed to the other half. */
int memfd_new(const char *name) _must_check_;
int memfd_seal(int fd) _must_check_;
/* True if the memfd is sealed against writing, growing and shrinking. */
bool memfd_is_sealed(int fd);

/* Datagram of a SOCK_SEQPACKET socket with up to one fd (fd < 0: none). EINTR is retried. */
int send_with_fd(int sock, const void *buf, size_t size, int fd) _must_check_;
/*
 * Returns the size, 0 at the peer's close, -errno (-EAGAIN after timeout_ms, < 0 waits for ever;
 * -EMSGSIZE for a datagram larger than size). *ret_fd is -1 or an fd that the caller owns.
 */
ssize_t recv_with_fd(int sock, void *buf, size_t size, int *ret_fd, int timeout_ms) _must_check_;

/* CLOCK_BOOTTIME in ns: counts while the machine sleeps, the same for all processes of a host. */
uint64_t now_boot_ns(void);
/* CLOCK_REALTIME in ms since the epoch: for people, never for a decision. */
uint64_t now_wall_ms(void);

/* Lower-case hex; text has room for 2 * size + 1. */
void hex_encode(const void *bytes, size_t size, char *text);
/* Exactly size bytes from 2 * size hex digits; -EINVAL otherwise. */
int hex_decode(const char *text, void *bytes, size_t size) _must_check_;
