// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Stopping and ending all of a job at once. With a cgroup the kernel does both; without one, PID 1
 * sends signals (an adopted job: the keeper itself, along the tree).
 */
#include "agent/keeper/warden.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "agent/util/io.h"

/* A freeze mostly takes some 100 us; the kernel reports it at most every 10 ms. */
enum { FREEZE_SPIN_US = 1000, FREEZE_SPIN_STEP_US = 50 };

/*
 * The processes are in a leaf below the cgroup, so that the tracer can hold them for a moment
 * (agent/native/fence.h) without a word about the job's own freeze: it takes both to be thawed.
 */
static int open_tasks(struct warden *w)
{
	if (mkdirat(w->cgroup_fd, KEEPER_TASKS, 0755) < 0 && errno != EEXIST)
		return -errno;
	w->tasks_fd = openat(w->cgroup_fd, KEEPER_TASKS, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return w->tasks_fd < 0 ? -errno : 0;
}

int freezer_open(struct warden *w)
{
	w->cgroup_fd = w->freeze_fd = w->events_fd = w->tasks_fd = -1;
	if (!w->config.cgroup_dir)
		return 0;
	w->cgroup_fd = open(w->config.cgroup_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (w->cgroup_fd < 0)
		return -errno;
	w->freeze_fd = openat(w->cgroup_fd, "cgroup.freeze", O_WRONLY | O_CLOEXEC);
	w->events_fd = openat(w->cgroup_fd, "cgroup.events", O_RDONLY | O_CLOEXEC);
	return w->freeze_fd < 0 || w->events_fd < 0 ? -errno : open_tasks(w);
}

/* Reads "name 0|1" of cgroup.events. */
static bool cgroup_event(const struct warden *w, const char *name)
{
	char text[256], *at;
	ssize_t n = pread(w->events_fd, text, sizeof(text) - 1, 0);

	if (n <= 0)
		return false;
	text[n] = '\0';
	at = strstr(text, name);
	return at && at[strlen(name)] == ' ' && at[strlen(name) + 1] == '1';
}

static void frozen_now(struct warden *w)
{
	uint64_t us = (now_boot_ns() - w->freeze_start_ns) / 1000;

	w->freezing = false;
	w->freeze_worst_us = us > w->freeze_worst_us ? us : w->freeze_worst_us;
}

bool freezer_check(struct warden *w)
{
	if (w->freezing && w->events_fd >= 0 && cgroup_event(w, "frozen"))
		frozen_now(w);
	return w->freeze_applied && !w->freezing;
}

/* Parent of a process, 0 if it is gone. */
static pid_t parent_of(pid_t pid)
{
	char path[64], text[512], *at;
	_cleanup_close_ int fd = -1;
	ssize_t n;
	int parent = 0;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (n <= 0)
		return 0;
	text[n] = '\0';
	at = strrchr(text, ')');
	return at && sscanf(at + 1, " %*c %d", &parent) == 1 ? parent : 0;
}

/* root and its descendants; the count, or -errno. */
static int collect_tree(pid_t root, pid_t pids[WARDEN_TREE_MAX])
{
	int count = 1;
	bool grew = true;

	pids[0] = root;
	while (grew) {
		_cleanup_closedir_ DIR *proc = opendir("/proc");
		struct dirent *entry;

		if (!proc)
			return -errno;
		grew = false;
		while ((entry = readdir(proc))) {
			pid_t pid = atoi(entry->d_name), parent = pid > 1 ? parent_of(pid) : 0;
			bool known = false, belongs = false;

			for (int i = 0; parent > 1 && i < count; i++) {
				known |= pids[i] == pid;
				belongs |= pids[i] == parent;
			}
			if (!belongs || known)
				continue;
			if (count == WARDEN_TREE_MAX)
				return -E2BIG;
			pids[count++] = pid;
			grew = true;
		}
	}
	return count;
}

/* Applies fn to the tree until its size stays the same. */
static int for_tree(struct warden *w, pid_t root, int (*fn)(struct warden *w, pid_t pid, int arg),
		    int arg)
{
	_cleanup_free_ pid_t *pids = calloc(WARDEN_TREE_MAX, sizeof(*pids));
	int before = 0;

	if (!pids)
		return -ENOMEM;
	for (int pass = 0; pass < 20; pass++) {
		int count = collect_tree(root, pids);

		if (count < 0)
			return count;
		for (int i = 0; i < count; i++) {
			int r = fn(w, pids[i], arg);

			if (r < 0 && r != -ESRCH)
				return r;
		}
		if (count == before)
			return 0;
		before = count;
	}
	return -EAGAIN;
}

static int move_one(struct warden *w, pid_t pid, int arg)
{
	char text[16];
	_cleanup_close_ int fd = openat(w->tasks_fd, "cgroup.procs", O_WRONLY | O_CLOEXEC);

	(void)arg;
	if (fd < 0)
		return -errno;
	snprintf(text, sizeof(text), "%d", pid);
	return write_full(fd, text, strlen(text));
}

static int signal_one(struct warden *w, pid_t pid, int arg)
{
	(void)w;
	return kill(pid, arg) < 0 ? -errno : 0;
}

int freezer_adopt_tree(struct warden *w, pid_t root)
{
	return w->cgroup_fd < 0 ? 0 : for_tree(w, root, move_one, 0);
}

static int signal_job(struct warden *w, bool stop)
{
	struct init_msg msg = { .op = stop ? INIT_STOP : INIT_CONT };

	if (w->config.adopted) {
		int r = w->main_pid ?
				for_tree(w, w->main_pid, signal_one, stop ? SIGSTOP : SIGCONT) :
				0;

		if (r == 0 && stop)
			frozen_now(w);
		return r;
	}
	/* PID 1 answers, see server_handle_init(). */
	return w->init_pid ? keeper_send(w->init_sock, &msg, sizeof(msg), NULL, 0) : 0;
}

int freezer_apply(struct warden *w)
{
	bool want = w->freeze_wanted || w->lease_frozen;
	int r;

	if (want == w->freeze_applied)
		return 0;
	if (want) {
		w->freeze_start_ns = now_boot_ns();
		w->freezing = true;
	}
	if (w->freeze_fd >= 0)
		r = pwrite(w->freeze_fd, want ? "1" : "0", 1, 0) < 0 ? -errno : 0;
	else
		r = signal_job(w, want);
	if (r < 0) {
		w->freezing = want ? false : w->freezing;
		return r;
	}
	w->freeze_applied = want;
	if (!want)
		w->freezing = false;
	for (int us = 0; w->freezing && w->events_fd >= 0 && us < FREEZE_SPIN_US;
	     us += FREEZE_SPIN_STEP_US) {
		struct timespec step = { .tv_nsec = FREEZE_SPIN_STEP_US * 1000 };

		if (!freezer_check(w))
			nanosleep(&step, NULL);
	}
	return 0;
}

int freezer_kill(struct warden *w)
{
	int r = 0;

	if (w->cgroup_fd >= 0) {
		_cleanup_close_ int fd = openat(w->cgroup_fd, "cgroup.kill", O_WRONLY | O_CLOEXEC);

		if (fd < 0 || write(fd, "1", 1) < 0)
			r = -errno;
	} else if (w->config.adopted && w->main_pid) {
		r = for_tree(w, w->main_pid, signal_one, SIGKILL);
	}
	/* The namespace's end is the end of all in it. */
	if (w->init_pid)
		r = kill(w->init_pid, SIGKILL) < 0 ? -errno : 0;
	return r;
}

bool freezer_empty(struct warden *w)
{
	if (w->init_pid)
		return false;
	if (w->events_fd >= 0)
		return !cgroup_event(w, "populated");
	return w->main_pid == 0;
}

/* Folders that the job made below its own, depth first; a populated one stays. */
static void remove_below(int dirfd, int depth)
{
	_cleanup_closedir_ DIR *dir = fdopendir(dup(dirfd));
	struct dirent *entry;

	if (dir)
		rewinddir(dir); /* the offset is dirfd's own */
	while (dir && depth < 8 && (entry = readdir(dir))) {
		int child;

		if (entry->d_type != DT_DIR || entry->d_name[0] == '.')
			continue;
		child = openat(dirfd, entry->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (child < 0)
			continue;
		remove_below(child, depth + 1);
		close(child);
		unlinkat(dirfd, entry->d_name, AT_REMOVEDIR);
	}
}

/* A file or folder beside the job's cgroup; false if the path is too long. */
static bool beside(const struct warden *w, const char *name, char ret_path[PATH_MAX])
{
	const char *own = w->config.cgroup_dir, *slash = strrchr(own, '/');
	int parent = slash ? (int)(slash - own) : 0;

	return snprintf(ret_path, PATH_MAX, "%.*s/%s", parent, own, name) < PATH_MAX;
}

void freezer_remove(struct warden *w)
{
	char path[PATH_MAX];

	if (w->cgroup_fd < 0)
		return;
	/* A dead process may still be counted for a moment. */
	for (int i = 0; i < 100; i++) {
		remove_below(w->cgroup_fd, 0);
		if (rmdir(w->config.cgroup_dir) == 0 || errno != EBUSY)
			break;
		usleep(10000);
	}
	/* The keepers' own group goes with the last of them. */
	if (beside(w, "cgroup.procs", path) && write_kernel_file(path, "0") == 0 &&
	    beside(w, "keepers", path))
		rmdir(path);
}

void freezer_leave_daemon(const struct warden *w)
{
	char path[PATH_MAX];
	int r = -ENAMETOOLONG;

	if (!w->config.cgroup_dir)
		return;
	/* A leaf of its own: a group that hands controllers on to its children has no processes. */
	if (beside(w, "keepers", path))
		r = mkdir(path, 0755) < 0 && errno != EEXIST ? -errno : 0;
	if (r == 0)
		r = beside(w, "keepers/cgroup.procs", path) ? write_kernel_file(path, "0") :
							      -ENAMETOOLONG;
	if (r < 0)
		warden_log("cgroup: stay in the daemon's: %s", strerror(-r));
}
