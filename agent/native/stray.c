// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/native/stray.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>

#include "agent/native/freeze.h"
#include "agent/util/io.h"

static bool is_stray(pid_t pid, const struct state_fd *fd)
{
	_cleanup_free_ char *text = NULL;
	unsigned long features = 0;
	const char *api;
	char path[64];

	if (!strstr(fd->path, "[userfaultfd]") || !fd->cloexec || !(fd->f_flags & O_NONBLOCK))
		return false;
	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", pid, fd->fd);
	if (read_file_at(AT_FDCWD, path, 4096, &text, NULL) < 0)
		return false;
	/* API, features in use, features there are. */
	api = strstr(text, "API:");
	return api && sscanf(api, "API: %*x:%lx:", &features) == 1 && features == 0;
}

static int close_there(void *ctx, struct injection *i)
{
	const uint64_t args[6] = { (uint64_t) * (const int *)ctx };
	int64_t result;
	int r = inject_syscall(i, SYS_close, args, &result);

	return r < 0 ? r : (int)result;
}

int stray_check(struct native_tree *tree, uint64_t *seen)
{
	for (size_t i = 0; i < tree->task_count; i++) {
		const struct native_task *task = &tree->tasks[i];

		for (size_t k = 0; !task->zombie && k < task->fd_count; k++) {
			const struct state_fd *fd = &task->fds[k];
			int number = fd->fd, r = 0;

			if (!is_stray(task->pid, fd))
				continue;
			if (*seen == fd->file)
				r = inject(task->pid, tree, close_there, &number);
			*seen = fd->file;
			return r == -ENOTRECOVERABLE ?
				       r :
				       native_fail(tree, -EAGAIN,
						   "descriptor %d of process %d is a userfaultfd "
						   "that nobody uses",
						   number, task->pid);
		}
	}
	return 0;
}
