// SPDX-License-Identifier: LGPL-2.1-or-later
/* Which version a store is of, and who has it open. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "agent/util/io.h"
#include "overlay/store/internal.h"

enum { TEXT_MAX = 64 };

static const char format_name[] = "store-format", format_new[] = "store-format.new";

int store_format_read(const struct store_io *io, int state_fd, char why[static STORE_WHY_MAX],
		      uint32_t *ret_version)
{
	_cleanup_close_ int fd =
		io->openat(io->ctx, state_fd, format_name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC, 0);
	char text[TEXT_MAX + 1] = { 0 };
	unsigned int version = 0;
	ssize_t size;
	struct stat st;

	if (fd == -ENOENT) {
		*ret_version = fstatat(state_fd, "objects", &st, AT_SYMLINK_NOFOLLOW) == 0 ? 1 : 0;
		return 0;
	}
	if (fd < 0)
		return fd;
	size = io->pread(io->ctx, fd, text, TEXT_MAX, 0);
	if (size < 0)
		return (int)size;
	if (sscanf(text, "decamp store %u\n", &version) != 1 || version < 2) {
		snprintf(why, STORE_WHY_MAX, "%s is not what decamp wrote", format_name);
		return -EBADMSG;
	}
	if (version > STORE_VERSION) {
		snprintf(why, STORE_WHY_MAX, "version %u, this daemon knows up to %u", version,
			 (unsigned int)STORE_VERSION);
		return -EPROTONOSUPPORT;
	}
	*ret_version = version;
	return 0;
}

int store_format_write(const struct store_io *io, int state_fd)
{
	char text[TEXT_MAX];
	int size = snprintf(text, sizeof(text), "decamp store %u\n", (unsigned int)STORE_VERSION);
	int fd = io->openat(io->ctx, state_fd, format_new,
			    O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	int r;

	if (fd < 0)
		return fd;
	r = store_io_write(io, fd, text, (size_t)size, 0);
	if (r == 0)
		r = io->fsync(io->ctx, fd);
	close(fd);
	if (r == 0)
		r = io->renameat(io->ctx, state_fd, format_new, state_fd, format_name);
	return r == 0 ? io->fsync(io->ctx, state_fd) : r;
}

static void describe_holder(int fd, char why[static STORE_WHY_MAX])
{
	char text[TEXT_MAX + 1] = { 0 };
	ssize_t size = pread(fd, text, TEXT_MAX, 0);

	/* Written by its holder, read by people: printable or nothing. */
	for (ssize_t i = 0; i < size; i++)
		if (text[i] < ' ' || text[i] > '~')
			text[i] = '\0';
	snprintf(why, STORE_WHY_MAX, "in use by %s", text[0] ? text : "another process");
}

/* Nothing here has to outlive a crash, so it does not go through store_io. */
int store_lock(int state_fd, char why[static STORE_WHY_MAX], int *ret_fd)
{
	_cleanup_close_ int fd =
		openat(state_fd, "store-lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	char text[TEXT_MAX];
	int size;

	if (fd < 0)
		return -errno;
	if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		int r = errno == EWOULDBLOCK ? -EBUSY : -errno;

		if (r == -EBUSY)
			describe_holder(fd, why);
		return r;
	}
	size = snprintf(text, sizeof(text), "process %d since %" PRIu64 "\n", (int)getpid(),
			now_wall_ms() / 1000);
	/* Who it is, is for people only: on a full disk nobody is told. */
	if (ftruncate(fd, 0) < 0 || pwrite(fd, text, (size_t)size, 0) != size)
		(void)ftruncate(fd, 0);
	*ret_fd = take_fd(fd);
	return 0;
}
