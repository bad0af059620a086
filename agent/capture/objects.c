// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Kernel objects that no engine can take. CRIU finds them when it has stopped the job already, for
 * nothing; here they are looked for before that.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <unistd.h>

#include "agent/capture/internal.h"
#include "agent/util/io.h"
#include "agent/util/objects.h"

enum { ENDING_MS = 2000 };

static const struct unsaved_object *look_at(const char *fd_link)
{
	char target[64]; /* the beginning is enough */
	ssize_t n = readlink(fd_link, target, sizeof(target) - 1);

	if (n <= 0)
		return NULL;
	target[n] = '\0';
	return unsaved_object(target);
}

/* A process, or a descriptor, that is gone by now is none of them. */
static int check_process(pid_t pid, char reason[CAPTURE_REASON_MAX])
{
	char path[320];
	_cleanup_closedir_ DIR *dir = NULL;
	struct dirent *entry;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	while (dir && (entry = readdir(dir))) {
		const struct unsaved_object *o;

		if (!isdigit((unsigned char)entry->d_name[0]))
			continue;
		snprintf(path, sizeof(path), "/proc/%d/fd/%s", pid, entry->d_name);
		o = look_at(path);
		if (o)
			return capture_fail(reason, -EOPNOTSUPP,
					    "descriptor %s of process %d %s: %s", entry->d_name,
					    pid, o->reason, o->next);
	}
	return 0;
}

int capture_check_objects(const struct proc_view *v, char reason[CAPTURE_REASON_MAX])
{
	int r = 0;

	for (size_t i = 0; i < v->pid_count && r == 0; i++)
		r = check_process(v->pids[i], reason);
	return r;
}

int capture_await_whole(const struct proc_view *v, char reason[CAPTURE_REASON_MAX])
{
	uint64_t end_ns = now_boot_ns() + ENDING_MS * 1000000ull;

	for (size_t i = 0; i < v->pid_count; i++) {
		while (proc_is_headless(v->pids[i])) {
			if (now_boot_ns() > end_ns)
				return capture_fail(reason, -EOPNOTSUPP,
						    "the first thread of process %d has ended, "
						    "others have not",
						    v->pids[i]);
			usleep(1000);
		}
	}
	return 0;
}
