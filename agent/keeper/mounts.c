// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The job's root: an overlay on every local disk file system, the rest as the host has it.
 *
 * Paths that come from a job (upper layers, the list of mounts) are only walked with
 * RESOLVE_IN_ROOT below the new root: a symlink that the job left behind cannot lead a mount astray.
 * Overlay layers are given as /proc/self/fd/N, so no path needs escaping or fits badly into the one
 * page of mount options.
 */
#include "agent/keeper/warden.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "agent/keeper/mountinfo.h"
#include "agent/util/io.h"

struct layout {
	const struct warden_config *config;
	int root_fd;			/* the new root, before it is one */
	int state_fd;			/* state_dir */
	int count;			/* rows of paths */
	char *paths[KEEPER_MOUNTS_MAX]; /* overlay number -> mount point; NULL: unused number */
	char hidden[2][PATH_MAX];	/* daemon's state and run folders */
};

static int open_in_root(int root_fd, const char *path, uint64_t flags)
{
	struct open_how how = { .flags = flags | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT };
	int fd = (int)syscall(SYS_openat2, root_fd, path, &how, sizeof(how));

	return fd < 0 ? -errno : fd;
}

/* The folder of this path in the new root, made if missing. */
static int make_folder(int root_fd, const char *path)
{
	_cleanup_close_ int at = open_in_root(root_fd, "/", O_PATH | O_DIRECTORY);
	char partial[PATH_MAX];
	size_t len = strlen(path);

	if (len >= sizeof(partial))
		return -ENAMETOOLONG;
	for (size_t i = 1; at >= 0 && i <= len; i++) {
		const char *name;
		int next;

		if (path[i] != '/' && path[i] != '\0')
			continue;
		memcpy(partial, path, i);
		partial[i] = '\0';
		next = open_in_root(root_fd, partial, O_PATH | O_DIRECTORY);
		name = strrchr(partial, '/') + 1;
		if (next == -ENOENT && mkdirat(at, name, 0755) == 0)
			next = open_in_root(root_fd, partial, O_PATH | O_DIRECTORY);
		close(at);
		at = next;
	}
	return take_fd(at);
}

static int mount_at_fd(const char *source, int target_fd, const char *type, unsigned long flags,
		       const char *options)
{
	char target[64];

	snprintf(target, sizeof(target), "/proc/self/fd/%d", target_fd);
	return mount(source, target, type, flags, options) < 0 ? -errno : 0;
}

static int make_readonly(int root_fd, const char *path)
{
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_RDONLY };
	_cleanup_close_ int fd = open_in_root(root_fd, path, O_PATH);

	if (fd < 0)
		return fd;
	return mount_setattr(fd, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof(attr)) < 0 ?
		       -errno :
		       0;
}

/* A folder below state_dir, made if missing. */
static int state_folder(const struct layout *l, const char *name)
{
	int fd;

	if (mkdirat(l->state_fd, name, 0755) < 0 && errno != EEXIST)
		return -errno;
	fd = openat(l->state_fd, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* The host's folder at path, or an empty one where the host has none. */
static int lower_folder(const struct layout *l, const char *path)
{
	int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);

	return fd >= 0 ? fd : state_folder(l, "empty");
}

static int mount_overlay(const struct layout *l, int index, const char *path, int target_fd,
			 unsigned long flags)
{
	char name[32], options[320];
	_cleanup_close_ int upper = -1, work = -1, lower = -1;

	snprintf(name, sizeof(name), "upper/%d", index);
	upper = state_folder(l, name);
	snprintf(name, sizeof(name), "work/%d", index);
	work = state_folder(l, name);
	lower = lower_folder(l, path);
	if (upper < 0 || work < 0 || lower < 0)
		return upper < 0 ? upper : work < 0 ? work : lower;
	/* The upper layer must be whole by itself: it is captured and laid out on other hosts. */
	snprintf(options, sizeof(options),
		 "lowerdir=/proc/self/fd/%d,upperdir=/proc/self/fd/%d,workdir=/proc/self/fd/%d,"
		 "index=off,metacopy=off,redirect_dir=off",
		 lower, upper, work);
	return mount_at_fd("decamp", target_fd, "overlay", flags, options);
}

/* A new upper layer must look like the folder it covers: same owner and mode. */
static int copy_folder_looks(const struct layout *l, int index, const char *path)
{
	char name[32];
	struct stat st;
	_cleanup_close_ int upper = -1;

	snprintf(name, sizeof(name), "upper/%d", index);
	if (faccessat(l->state_fd, name, F_OK, 0) == 0 || stat(path, &st) < 0)
		return 0;
	upper = state_folder(l, name);
	if (upper < 0)
		return upper;
	if (fchownat(l->state_fd, name, st.st_uid, st.st_gid, 0) < 0 ||
	    fchmodat(l->state_fd, name, st.st_mode & 07777, 0) < 0)
		return -errno;
	return 0;
}

static bool is_hidden(const struct layout *l, const char *path)
{
	static const char *const own[] = { "/proc", "/sys", "/dev", "/run" };

	for (size_t i = 0; i < ARRAY_SIZE(own); i++) {
		if (path_is_below(path, own[i]))
			return true;
	}
	return path_is_below(path, l->hidden[0]) || path_is_below(path, l->hidden[1]);
}

static int overlay_number(struct layout *l, const char *path)
{
	for (int i = 0; i < l->count; i++) {
		if (l->paths[i] && !strcmp(l->paths[i], path))
			return i;
	}
	if (l->count == KEEPER_MOUNTS_MAX)
		return -ENOSPC;
	l->paths[l->count] = strdup(path);
	return l->paths[l->count] ? l->count++ : -ENOMEM;
}

static int place_overlay(struct layout *l, const char *path, unsigned long flags)
{
	_cleanup_close_ int target = make_folder(l->root_fd, path);
	int index, r;

	if (target < 0)
		return target;
	index = overlay_number(l, path);
	if (index < 0)
		return index;
	r = copy_folder_looks(l, index, path);
	return r < 0 ? r : mount_overlay(l, index, path, target, flags);
}

static int place_bind(struct layout *l, const char *path, bool readonly)
{
	struct statx stx;
	_cleanup_close_ int target = -1;
	int r;

	if (statx(AT_FDCWD, path, AT_STATX_DONT_SYNC, STATX_TYPE, &stx) < 0)
		return -errno;
	target = S_ISDIR(stx.stx_mode) ? make_folder(l->root_fd, path) :
					 open_in_root(l->root_fd, path, O_PATH);
	if (target < 0)
		return target;
	r = mount_at_fd(path, target, NULL, MS_BIND, NULL);
	return r == 0 && readonly ? make_readonly(l->root_fd, path) : r;
}

/*
 * Logs. A mount that cannot be had is left out and the job sees the folder beneath; but what the
 * job's own layers need must be there.
 */
static int place_mount(struct layout *l, const struct mountinfo_row *row)
{
	enum mountinfo_class class = mountinfo_classify(row);
	int r = 0;

	if (!strcmp(row->path, "/") && !strcmp(row->type, "overlay"))
		warden_log("mount: path=/: the host's root is an overlay: CRIU cannot dump what "
			   "maps its files");
	if (!strcmp(row->path, "/") || is_hidden(l, row->path) || class == MOUNT_CLASS_SKIP)
		return 0;
	if (class == MOUNT_CLASS_LOCAL) {
		r = place_overlay(l, row->path, row->flags);
		if (r == 0)
			return 0;
		if (r != -ENOTDIR)
			warden_log("mount: path=%s: no overlay: %s", row->path, strerror(-r));
		if (!strcmp(row->type, MOUNTINFO_TYPE_OVERLAY))
			return r;
	}
	r = place_bind(l, row->path, class != MOUNT_CLASS_NETWORK);
	if (r < 0)
		warden_log("mount: path=%s: not in the job: %s", row->path, strerror(-r));
	else if (class == MOUNT_CLASS_LOCAL)
		warden_log("mount: path=%s: read-only in the job", row->path);
	return 0;
}

/* "N path" lines. A list that was carried here from another host is foreign: numbers and paths
 * are checked. */
static int load_list(struct layout *l)
{
	_cleanup_free_ char *text = NULL;
	char *save = NULL;
	int r = read_file_at(l->state_fd, "mounts", KEEPER_MOUNTS_MAX * (PATH_MAX + 8), &text,
			     NULL);

	if (r == -ENOENT)
		return 0;
	if (r < 0)
		return r;
	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		char *end;
		unsigned long index = strtoul(line, &end, 10);

		if (end == line || *end != ' ' || end[1] != '/' || index >= KEEPER_MOUNTS_MAX ||
		    l->paths[index] || strlen(end + 1) >= PATH_MAX || strstr(end + 1, "/../") ||
		    (index == 0) != !strcmp(end + 1, "/"))
			return -EBADMSG;
		l->paths[index] = strdup(end + 1);
		if (!l->paths[index])
			return -ENOMEM;
		if ((int)index >= l->count)
			l->count = (int)index + 1;
	}
	return 0;
}

static int save_list(const struct layout *l)
{
	_cleanup_free_ char *text = NULL;
	size_t size = 0;
	FILE *f = open_memstream(&text, &size);

	if (!f)
		return -ENOMEM;
	for (int i = 0; i < l->count; i++) {
		/* A newline would break the list; such a mount keeps its layer on this host only. */
		if (l->paths[i] && !strchr(l->paths[i], '\n'))
			fprintf(f, "%d %s\n", i, l->paths[i]);
	}
	if (fclose(f) != 0)
		return -ENOMEM;
	return write_file_atomic_at(l->state_fd, "mounts", text, size, 0600);
}

static int place_all(struct layout *l)
{
	struct mountinfo table;
	int r = mountinfo_read(&table);

	if (r < 0)
		return r;
	/* Layers come along from hosts with other mount points. */
	for (int i = 1; r == 0 && i < l->count; i++) {
		if (l->paths[i])
			r = mountinfo_add(&table, l->paths[i], MS_NOSUID | MS_NODEV);
	}
	for (size_t i = 0; r == 0 && i < table.count; i++)
		r = place_mount(l, &table.rows[i]);
	mountinfo_deinit(&table);
	return r;
}

static int place_tmpfs(struct layout *l, const char *path, unsigned long flags, const char *options)
{
	_cleanup_close_ int target = make_folder(l->root_fd, path);

	if (target < 0)
		return target;
	return mount_at_fd("decamp", target, "tmpfs", flags, options);
}

/* What a resolver needs of the host's /run; a missing one is no error. */
static void place_resolver(struct layout *l)
{
	static const char *const paths[] = { "/run/systemd/resolve", "/run/resolvconf",
					     "/run/NetworkManager" };

	for (size_t i = 0; i < ARRAY_SIZE(paths); i++) {
		struct stat st;

		if (stat(paths[i], &st) == 0 && S_ISDIR(st.st_mode))
			(void)!place_bind(l, paths[i], true);
	}
}

static int place_kernel(struct layout *l, const char **ret_step)
{
	static const char *const trees[] = { "/dev", "/sys" };
	int r;

	for (size_t i = 0; i < ARRAY_SIZE(trees); i++) {
		_cleanup_close_ int target = make_folder(l->root_fd, trees[i]);

		*ret_step = trees[i];
		r = target < 0 ? target :
				 mount_at_fd(trees[i], target, NULL, MS_BIND | MS_REC, NULL);
		if (r < 0)
			return r;
	}
	if (make_readonly(l->root_fd, "/sys") < 0)
		warden_log("mount: path=/sys: stays writable");
	*ret_step = "/proc";
	_cleanup_close_ int proc = make_folder(l->root_fd, "/proc");
	r = proc < 0 ? proc :
		       mount_at_fd("proc", proc, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	if (r < 0)
		return r;
	*ret_step = "/run";
	r = place_tmpfs(l, "/run", MS_NOSUID | MS_NODEV, "mode=0755,size=256m");
	if (r < 0)
		return r;
	place_resolver(l);
	*ret_step = "/dev/shm";
	r = place_tmpfs(l, "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777");
	if (r < 0)
		return r;
	/* The host's queue file system belongs to the host's IPC namespace. */
	_cleanup_close_ int mqueue = open_in_root(l->root_fd, "/dev/mqueue", O_PATH | O_DIRECTORY);
	if (mqueue >= 0)
		(void)!mount_at_fd("mqueue", mqueue, "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC,
				   NULL);
	return 0;
}

/* Jobs see neither other jobs' files nor the daemon's. */
static int hide_daemon(struct layout *l)
{
	for (size_t i = 0; i < ARRAY_SIZE(l->hidden); i++) {
		_cleanup_close_ int target =
			open_in_root(l->root_fd, l->hidden[i], O_PATH | O_DIRECTORY);
		int r;

		if (target == -ENOENT)
			continue;
		r = target < 0 ? target :
				 mount_at_fd("decamp", target, "tmpfs",
					     MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC,
					     "mode=0000,size=4k");
		if (r < 0)
			return r;
	}
	return 0;
}

/* STATE of STATE/jobs/ID; a folder that is laid out otherwise hides itself. */
static int set_hidden(char hidden[PATH_MAX], const char *job_dir)
{
	char *slash;
	size_t len;

	if (!realpath(job_dir, hidden))
		return -errno;
	len = strlen(hidden);
	slash = memrchr(hidden, '/', len);
	if (!slash || slash - hidden < 6 || memcmp(slash - 5, "/jobs", 5))
		return 0;
	slash[-5] = '\0';
	return 0;
}

static int enter_root(struct layout *l)
{
	if (fchdir(l->root_fd) < 0 || syscall(SYS_pivot_root, ".", ".") < 0)
		return -errno;
	/* The old root lies over the new one now; the overlays keep their own hold on its parts. */
	if (umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
		return -errno;
	return 0;
}

static int open_layout(struct layout *l, const char **ret_step)
{
	_cleanup_close_ int staging = -1;
	struct stat st;
	int r;

	*ret_step = "state folder";
	if (stat(l->config->state_dir, &st) < 0)
		return -errno;
	r = set_hidden(l->hidden[0], l->config->state_dir);
	if (r == 0)
		r = set_hidden(l->hidden[1], l->config->run_dir);
	if (r < 0)
		return r;
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return -errno;
	l->state_fd = open(l->config->state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (l->state_fd < 0)
		return -errno;
	(void)mkdirat(l->state_fd, "upper", 0755);
	(void)mkdirat(l->state_fd, "work", 0700);
	r = load_list(l);
	if (r < 0)
		return r;
	if (l->count == 0) {
		l->paths[0] = strdup("/");
		l->count = 1;
	}
	*ret_step = "root overlay";
	staging = state_folder(l, "root");
	r = l->paths[0] ? copy_folder_looks(l, 0, "/") : -EBADMSG;
	if (r == 0)
		r = mount_overlay(l, 0, "/", staging, 0);
	if (r < 0)
		return r;
	l->root_fd = openat(l->state_fd, "root", O_PATH | O_DIRECTORY | O_CLOEXEC);
	return l->root_fd < 0 ? -errno : 0;
}

static int build(struct layout *l, const char **ret_step)
{
	int r = open_layout(l, ret_step);

	if (r < 0)
		return r;
	*ret_step = "mounts";
	r = place_all(l);
	if (r == 0)
		r = save_list(l);
	if (r == 0)
		r = place_kernel(l, ret_step);
	if (r < 0)
		return r;
	*ret_step = "hiding the daemon's folders";
	r = hide_daemon(l);
	if (r < 0)
		return r;
	*ret_step = "pivot_root";
	return enter_root(l);
}

int mounts_build(const struct warden_config *config, const char **ret_step)
{
	struct layout l = { .config = config, .root_fd = -1, .state_fd = -1 };
	int r = build(&l, ret_step);

	close_fdp(&l.root_fd);
	close_fdp(&l.state_fd);
	for (int i = 0; i < l.count; i++)
		free(l.paths[i]);
	return r;
}
