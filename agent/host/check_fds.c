// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/host/check.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/major.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "agent/util/io.h"
#include "agent/util/objects.h"

enum { MAPS_BYTES_MAX = 32 << 20, MOUNTINFO_BYTES_MAX = 4 << 20, GHOST_NOTE_BYTES = 64 << 20 };

/* What is read once for all the fds of a process. */
struct fd_walk {
	struct check *c;
	const struct check_task *task;
	char *mountinfo;
	bool noted_inotify, noted_lock, noted_network; /* one note of a kind per process */
};

struct device_class {
	const char *prefix, *reason, *next;
};

static const struct device_class devices[] = {
	{ "/dev/nvidia", "holds an NVIDIA GPU, whose state cannot be saved",
	  "run it on the CPU, or let the program write its own checkpoints" },
	{ "/dev/dri/", "holds a GPU (or a display), whose state cannot be saved",
	  "run it on the CPU and without a display" },
	{ "/dev/kfd", "holds an AMD GPU, whose state cannot be saved",
	  "run it on the CPU, or let the program write its own checkpoints" },
	{ "/dev/kvm", "runs a virtual machine", "checkpoint the virtual machine by its own means" },
	{ "/dev/infiniband/", "holds an InfiniBand device",
	  "use TCP or shared memory instead (MPI has a setting for that)" },
	{ "/dev/fuse", "serves a FUSE file system", "let the file system be served outside" },
	{ "/dev/snd/", "holds a sound device", "run it without sound" },
	{ "/dev/input/", "reads an input device", "run it without input devices" },
};

static void describe(const struct fd_walk *walk, int fd, const char *target, char *object,
		     size_t size)
{
	snprintf(object, size, "fd %d of PID %d (%.63s): %.160s", fd, walk->task->pid,
		 walk->task->comm, target);
}

static bool is_tty(const char *path, const struct stat *st)
{
	unsigned int device = major(st->st_rdev);

	return !strncmp(path, "/dev/pts/", 9) || !strncmp(path, "/dev/tty", 8) ||
	       !strcmp(path, "/dev/console") || !strcmp(path, "/dev/ptmx") || device == TTY_MAJOR ||
	       device == TTYAUX_MAJOR ||
	       (device >= UNIX98_PTY_MASTER_MAJOR && device < UNIX98_PTY_SLAVE_MAJOR + 8);
}

/* null, zero, full, random, urandom: the same everywhere. */
static bool is_harmless(const struct stat *st)
{
	unsigned int device = minor(st->st_rdev);

	return major(st->st_rdev) == MEM_MAJOR &&
	       (device == 3 || device == 5 || (device >= 7 && device <= 9));
}

static void device_problem(struct check *c, const char *path, const char *object)
{
	for (size_t i = 0; i < ARRAY_SIZE(devices); i++) {
		if (!strncmp(path, devices[i].prefix, strlen(devices[i].prefix))) {
			check_problem(c, object, devices[i].reason, devices[i].next);
			return;
		}
	}
	check_problem(c, object, "is a device of this machine",
		      "let the program close it, or run without it");
}

static void check_device(const struct fd_walk *walk, int fd, const char *target)
{
	char path[64], object[320];
	struct stat st;

	/* Below /dev only: a stat of a file on a dead network file system would hang. */
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", walk->task->pid, fd);
	if (stat(path, &st) < 0 || !(S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode)))
		return;
	if (S_ISCHR(st.st_mode) && is_harmless(&st))
		return;
	describe(walk, fd, target, object, sizeof(object));
	if (!S_ISCHR(st.st_mode) || !is_tty(target, &st)) {
		device_problem(walk->c, target, object);
		return;
	}
	walk->c->tty_count++;
	check_problem(walk->c, object, "is a terminal",
		      "start it with decamp run, or with its input from a file and its output "
		      "to one");
}

static void check_anon(const struct fd_walk *walk, int fd, const char *target)
{
	static const char *const saved[] = { "[eventfd]", "[eventpoll]", "[signalfd]", "[timerfd]",
					     "inotify",	  "[fanotify]",	 "[pidfd]" };
	const char *name = target + strlen("anon_inode:");
	char object[320];

	for (size_t i = 0; i < ARRAY_SIZE(saved); i++) {
		if (!strcmp(name, saved[i]))
			return;
	}
	describe(walk, fd, target, object, sizeof(object));
	check_problem(walk->c, object, "is a kernel object that cannot be saved",
		      "run the program without the feature that needs it");
}

static void add_socket(const struct fd_walk *walk, int fd, const char *target)
{
	struct check *c = walk->c;

	if (c->socket_count == CHECK_SOCKETS_MAX)
		return;
	if (c->socket_count == c->socket_room) {
		size_t room = c->socket_room ? 2 * c->socket_room : 64;
		void *more = realloc(c->sockets, room * sizeof(*c->sockets));

		if (!more)
			return;
		c->sockets = more;
		c->socket_room = room;
	}
	c->sockets[c->socket_count++] = (struct check_socket){
		.inode = strtoull(target + strlen("socket:["), NULL, 10),
		.pid = walk->task->pid,
		.fd = fd,
	};
}

/* "ID PARENT MAJ:MIN ROOT POINT OPTIONS [TAGS] - TYPE SOURCE …" of the mount; false: not there. */
static bool mount_type(const char *mountinfo, long long id, char type[32], char point[128])
{
	const char *line = mountinfo;

	while (line && *line) {
		const char *end = strchrnul(line, '\n');
		const char *dash = strstr(line, " - ");

		if (strtoll(line, NULL, 10) == id && dash && dash < end)
			return sscanf(line, "%*d %*d %*s %*s %127s", point) == 1 &&
			       sscanf(dash, " - %31s", type) == 1;
		line = *end ? end + 1 : NULL;
	}
	return false;
}

static bool is_network_type(const char *type)
{
	static const char *const types[] = { "nfs",  "nfs4",  "cifs",	  "smb3", "afs",
					     "ceph", "9p",    "lustre",	  "gpfs", "beegfs",
					     "fuse", "ncpfs", "glusterfs" };

	for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
		if (!strcmp(type, types[i]))
			return true;
	}
	return !strncmp(type, "fuse.", 5);
}

static void check_file(struct fd_walk *walk, int fd, const char *target, const char *fdinfo)
{
	char type[32], point[128], path[64];
	bool network = mount_type(walk->mountinfo ? walk->mountinfo : "",
				  check_number(fdinfo, "mnt_id", 10, -1), type, point) &&
		       is_network_type(type);
	size_t len = strlen(target);
	struct stat st;

	if (network && !walk->noted_network) {
		walk->noted_network = true;
		check_note(walk->c,
			   "%.200s is on %s (%s): a host that takes the job must have the same "
			   "file system mounted there.",
			   target, point, type);
	}
	if (network || len < 10 || strcmp(target + len - 10, " (deleted)"))
		return;
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", walk->task->pid, fd);
	if (stat(path, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > GHOST_NOTE_BYTES)
		check_note(walk->c,
			   "%.200s has no name any more: its %lld MiB are part of every "
			   "checkpoint.",
			   target, (long long)st.st_size >> 20);
}

static void check_fdinfo(struct fd_walk *walk, int fd, const char *target)
{
	_cleanup_free_ char *fdinfo = NULL;
	char name[32];

	snprintf(name, sizeof(name), "fdinfo/%d", fd);
	fdinfo = check_read(walk->task->pid, name);
	if (!fdinfo)
		return;
	if (target[0] == '/')
		check_file(walk, fd, target, fdinfo);
	if (strstr(fdinfo, "\ninotify wd:") && !walk->noted_inotify) {
		walk->noted_inotify = true;
		check_note(walk->c,
			   "PID %d (%s) watches files by inotify: after a move it watches the same "
			   "paths, but hears nothing of changes in between.",
			   walk->task->pid, walk->task->comm);
	}
	if (strstr(fdinfo, "\nlock:") && !walk->noted_lock) {
		walk->noted_lock = true;
		check_note(walk->c,
			   "PID %d (%s) holds a lock on %.200s: after a move the lock is held on "
			   "the new host's copy.",
			   walk->task->pid, walk->task->comm, target);
	}
}

static void check_fd(struct fd_walk *walk, int fd)
{
	char path[64], target[PATH_MAX], object[320];
	const struct unsaved_object *o;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", walk->task->pid, fd);
	n = readlink(path, target, sizeof(target) - 1);
	if (n <= 0)
		return;
	target[n] = '\0';
	for (char *p = target; *p; p++) {
		if (iscntrl((unsigned char)*p))
			*p = '?';
	}
	if (!strncmp(target, "socket:[", 8)) {
		add_socket(walk, fd, target);
		return;
	}
	o = unsaved_object(target);
	if (o) {
		describe(walk, fd, target, object, sizeof(object));
		check_problem(walk->c, object, o->reason, o->next);
		return;
	}
	if (!strncmp(target, "anon_inode:", 11))
		check_anon(walk, fd, target);
	else if (!strncmp(target, "/dev/", 5) && strncmp(target, "/dev/shm/", 9))
		check_device(walk, fd, target);
	check_fdinfo(walk, fd, target);
}

void check_fds(struct check *c, const struct check_task *task)
{
	struct fd_walk walk = { .c = c, .task = task };
	_cleanup_closedir_ DIR *dir = NULL;
	char path[64];
	struct dirent *d;
	size_t count = 0;

	snprintf(path, sizeof(path), "/proc/%d/mountinfo", task->pid);
	if (read_file_at(AT_FDCWD, path, MOUNTINFO_BYTES_MAX, &walk.mountinfo, NULL) < 0)
		walk.mountinfo = NULL;
	snprintf(path, sizeof(path), "/proc/%d/fd", task->pid);
	dir = opendir(path);
	while (dir && (d = readdir(dir)) && count++ < CHECK_FDS_MAX) {
		if (isdigit((unsigned char)d->d_name[0]))
			check_fd(&walk, atoi(d->d_name));
	}
	free(walk.mountinfo);
}

/* One line: "START-END PERM OFFSET DEV INODE   PATH". */
static bool check_mapping(struct check *c, const struct check_task *task, const char *path,
			  bool host_ipc)
{
	char object[320];

	snprintf(object, sizeof(object), "memory of PID %d (%.63s): %.160s", task->pid, task->comm,
		 path);
	if (!strncmp(path, "/SYSV", 5)) {
		if (host_ipc)
			check_problem(c, object, "is System V shared memory of the host",
				      "start the job with decamp run, which gives it its own");
		return host_ipc;
	}
	if (!strncmp(path, "anon_inode:", 11)) {
		check_problem(c, object, "is shared with the kernel and cannot be saved",
			      "run the program without the feature that needs it (io_uring, perf)");
		return true;
	}
	if (!strncmp(path, "/secretmem", 10)) {
		check_problem(c, object, "is memory that nobody else may read",
			      "run the program without it");
		return true;
	}
	if (strncmp(path, "/dev/", 5) || !strncmp(path, "/dev/shm/", 9) ||
	    !strncmp(path, "/dev/zero", 9) || !strncmp(path, "/dev/hugepages/", 15))
		return false;
	device_problem(c, path, object);
	return true;
}

void check_maps(struct check *c, const struct check_task *task, bool host_ipc)
{
	_cleanup_free_ char *maps = NULL;
	char path[64], *next, *line;

	snprintf(path, sizeof(path), "/proc/%d/maps", task->pid);
	if (read_file_at(AT_FDCWD, path, MAPS_BYTES_MAX, &maps, NULL) < 0)
		return;
	next = maps;
	while ((line = strsep(&next, "\n"))) {
		int at = 0;

		if (sscanf(line, "%*s %*s %*s %*s %*s %n", &at) < 0 || at == 0 || !line[at])
			continue;
		/* One finding of a process is enough to know; a GPU has hundreds of mappings. */
		if (check_mapping(c, task, line + at, host_ipc))
			return;
	}
}
