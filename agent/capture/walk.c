// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>

#include "agent/capture/internal.h"
#include "agent/util/io.h"

/* Each level holds a descriptor open, and recursion needs stack. */
enum { WALK_DEPTH_MAX = 200 };

int capture_fail(char reason[CAPTURE_REASON_MAX], int r, const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(reason, CAPTURE_REASON_MAX, fmt, ap);
	va_end(ap);
	if (n >= 0 && n < CAPTURE_REASON_MAX)
		snprintf(reason + n, (size_t)(CAPTURE_REASON_MAX - n), ": %s", strerror(-r));
	return r;
}

/* Some other name of the inode may be the one that is mapped. */
static bool is_mapped_shared(const struct walk *w, const struct stat *st)
{
	for (size_t i = 0; i < w->shared_count; i++) {
		if (w->shared[i].ino == st->st_ino && w->shared[i].dev == st->st_dev)
			return true;
	}
	return false;
}

static int note_shared(struct walk *w, const struct stat *st)
{
	struct walk_inode *more = realloc(w->shared, (w->shared_count + 1) * sizeof(*more));

	if (!more)
		return -ENOMEM;
	w->shared = more;
	w->shared[w->shared_count++] = (struct walk_inode){ .dev = st->st_dev, .ino = st->st_ino };
	return 0;
}

int walk_find_shared(struct walk *w, const char *state_dir)
{
	w->shared_known = true;
	for (size_t i = 0; w->view && i < w->view->use_count; i++) {
		const struct file_use *use = &w->view->uses[i];
		const struct mount_row *row;
		const char *rest = "";
		char path[PATH_MAX];
		struct stat st;
		int r;

		if (!(use->flags & USE_SHARED_MAP))
			continue;
		row = mounts_find(w->layers, use->path, &rest);
		if (!row || snprintf(path, sizeof(path), "%s/upper/%u/%s", state_dir, row->n,
				     rest) >= (int)sizeof(path))
			continue;
		if (lstat(path, &st) < 0 || !S_ISREG(st.st_mode))
			continue;
		r = note_shared(w, &st);
		if (r < 0)
			return r;
	}
	return 0;
}

/* As the packer has it; nothing of it needs to be looked at. */
static bool take_unchanged(struct walk *w, struct entry *e)
{
	const struct past_file *f;

	if (w->copy_all || !S_ISREG(e->st.st_mode) || is_mapped_shared(w, &e->st))
		return false;
	f = past_find(w->past, e->kind, e->path, &e->st);
	if (!f)
		return false;
	if (f->xattrs_size) {
		e->xattrs = malloc(f->xattrs_size);
		if (!e->xattrs)
			return false;
		memcpy(e->xattrs, f->xattrs, f->xattrs_size);
		e->xattrs_size = f->xattrs_size;
	}
	e->unsettled = capture_is_recent(&e->st.st_ctim, &w->freeze);
	e->content = CONTENT_UNCHANGED;
	return true;
}

/* A regular file that may have changed: a copy of it into the spool. */
static int take_content(struct walk *w, struct entry *e, int fd)
{
	char name[32];
	int r;

	e->unsettled = is_mapped_shared(w, &e->st) || capture_is_recent(&e->st.st_ctim, &w->freeze);
	if (w->ended) {
		e->content = CONTENT_LIVE;
		return 0;
	}
	snprintf(name, sizeof(name), "%zu", w->copies);
	r = capture_copy(fd, w->spool_files, name, e->st.st_size);
	if (r < 0)
		return capture_fail(w->reason, r,
				    "the copy of the job's file %s (%lld bytes) into the spool "
				    "folder failed",
				    e->path, (long long)e->st.st_size);
	e->content = CONTENT_SPOOL;
	e->spool_index = w->copies++;
	return 0;
}

static int open_regular(struct walk *w, int dirfd, const char *name, const struct stat *st)
{
	int fd = openat(dirfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOATIME | O_CLOEXEC);
	struct stat now;

	if (fd < 0)
		return capture_fail(w->reason, -errno, "the job's file %s cannot be read", name);
	if (fstat(fd, &now) == 0 && now.st_ino == st->st_ino && now.st_dev == st->st_dev &&
	    S_ISREG(now.st_mode))
		return fd;
	close(fd);
	return capture_fail(w->reason, -EAGAIN, "the job's file %s was replaced in the pause",
			    name);
}

/* Types that have no place in a checkpoint: CRIU makes sockets anew, devices are the host's. */
static bool is_left_out(const struct stat *st)
{
	return S_ISSOCK(st->st_mode) || S_ISBLK(st->st_mode) ||
	       (S_ISCHR(st->st_mode) && st->st_rdev != 0);
}

/* Adds dirfd/name, found as *st, under `path`. *ret_index: where. */
static int take_entry(struct walk *w, int dirfd, const char *name, const char *path,
		      const struct stat *st)
{
	struct entry *e;
	int r = entries_add(w->entries, SNAPSHOT_UPPER, path, st, &e);

	if (r == -EEXIST)
		return 0;
	if (r == -EFBIG)
		return capture_fail(w->reason, r, "the job has more than %d files",
				    CAPTURE_FILES_MAX);
	if (r == 0 && take_unchanged(w, e))
		return 0;
	if (r == 0 && S_ISLNK(st->st_mode))
		r = entry_read_link(e, dirfd, name);
	if (r == 0 && (S_ISREG(st->st_mode) || S_ISDIR(st->st_mode)))
		r = entry_read_xattrs(e, dirfd, name);
	if (r == -EOPNOTSUPP)
		return capture_fail(w->reason, r,
				    "the job's file %s has its content in a lower layer "
				    "(overlayfs metacopy=on): mount without it",
				    path);
	if (r < 0)
		return capture_fail(w->reason, r, "the job's file %s cannot be read", path);
	if (S_ISREG(st->st_mode)) {
		_cleanup_close_ int fd = open_regular(w, dirfd, name, st);

		return fd < 0 ? fd : take_content(w, e, fd);
	}
	return 0;
}

/* Takes over fd, an open folder. */
static int walk_folder(struct walk *w, int fd, char path[PATH_MAX], int depth)
{
	_cleanup_closedir_ DIR *dir = fdopendir(fd);
	size_t length = strlen(path);
	struct dirent *item;
	int r = 0;

	if (!dir) {
		r = -errno;
		close(fd);
		return capture_fail(w->reason, r, "the job's folder %s cannot be read", path);
	}
	if (depth > WALK_DEPTH_MAX)
		return capture_fail(w->reason, -ENAMETOOLONG,
				    "the job's folder %s is nested more than %d levels deep", path,
				    WALK_DEPTH_MAX);
	while (r == 0 && (errno = 0, item = readdir(dir))) {
		struct stat st;
		int child;

		if (!strcmp(item->d_name, ".") || !strcmp(item->d_name, ".."))
			continue;
		if (fstatat(dirfd(dir), item->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
			return capture_fail(w->reason, -errno,
					    "the job's file %s/%s cannot be read", path,
					    item->d_name);
		if (is_left_out(&st))
			continue;
		if (snprintf(path + length, PATH_MAX - length, "/%s", item->d_name) >=
		    (int)(PATH_MAX - length))
			return capture_fail(w->reason, -ENAMETOOLONG,
					    "the path of the job's file %s is too long",
					    item->d_name);
		r = take_entry(w, dirfd(dir), item->d_name, path, &st);
		if (r == 0 && S_ISDIR(st.st_mode)) {
			child = openat(dirfd(dir), item->d_name,
				       O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
			r = child < 0 ? capture_fail(w->reason, -errno,
						     "the job's folder %s cannot be read", path) :
					walk_folder(w, child, path, depth + 1);
		}
		path[length] = '\0';
	}
	return r;
}

/* The layer's own folder is the looks of the mount point. */
static int walk_upper(struct walk *w, int fd, unsigned int n)
{
	char path[PATH_MAX];
	struct stat st;
	int r;

	snprintf(path, sizeof(path), "%u", n);
	r = fstat(fd, &st) < 0 ? -errno : take_entry(w, fd, ".", path, &st);
	if (r < 0) {
		close(fd);
		return r;
	}
	return walk_folder(w, fd, path, 0);
}

/* The topmost part of path (in the layers) that is not there any more gets a whiteout. */
static int note_removed(struct walk *w, char *path)
{
	struct stat whiteout = { .st_mode = S_IFCHR };
	struct entry *e;
	size_t at = strcspn(path, "/"), i;

	while (path[at]) {
		char after;
		int r = 0;
		bool there;

		at += 1 + strcspn(path + at + 1, "/");
		after = path[at];
		path[at] = '\0';
		there = paths_find(&w->entries->index, SNAPSHOT_UPPER, path, &i);
		if (!there)
			r = entries_add(w->entries, SNAPSHOT_UPPER, path, &whiteout, &e);
		if (!there || !S_ISDIR(w->entries->v[i].st.st_mode))
			return r == -EEXIST ? 0 : r;
		path[at] = after;
	}
	return 0;
}

/*
 * What was carried here and removed by the job leaves no trace in a layer over a host that never
 * had it; on a host that has it, it would be back.
 */
static int note_all_removed(struct walk *w, const char *state_dir)
{
	_cleanup_free_ char *list = NULL;
	char path[PATH_MAX];
	size_t size;
	int r;

	if (snprintf(path, sizeof(path), "%s/carried.list", state_dir) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	r = read_file_at(AT_FDCWD, path, CLOSURE_LIST_MAX, &list, &size);
	if (r < 0)
		return r == -ENOENT ? 0 : r;
	for (char *p = list; r == 0 && p < list + size;) {
		size_t length = strlen(p);

		r = note_removed(w, p);
		p += length + 1;
	}
	return r;
}

int walk_uppers(struct walk *w, const char *state_dir)
{
	int r = w->shared_known ? 0 : walk_find_shared(w, state_dir);

	for (size_t i = 0; r == 0 && i < w->layers->count; i++) {
		char path[PATH_MAX];
		int fd;

		if (snprintf(path, sizeof(path), "%s/upper/%u", state_dir, w->layers->v[i].n) >=
		    (int)sizeof(path))
			return capture_fail(w->reason, -ENAMETOOLONG, "state folder %s", state_dir);
		fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		/* A mount that the keeper could only bind has no layer. */
		if (fd < 0 && errno == ENOENT)
			continue;
		if (fd < 0)
			return capture_fail(w->reason, -errno, "upper layer %s", path);
		r = walk_upper(w, fd, w->layers->v[i].n);
	}
	return r == 0 ? note_all_removed(w, state_dir) : r;
}

int walk_shm(struct walk *w, pid_t pid)
{
	bool copy_all = w->copy_all;
	char path[64];
	int fd, r;

	snprintf(path, sizeof(path), "/proc/%d/root/dev/shm", pid);
	fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? 0 : capture_fail(w->reason, -errno, "the job's /dev/shm");
	/* Mapped shared by its very purpose. It is memory, so it is not much. */
	w->copy_all = true;
	r = walk_upper(w, fd, CAPTURE_SHM_LAYER);
	w->copy_all = copy_all;
	return r;
}

/* Folders on the way to a host file, so that the new upper layer has them with their owners. */
static int take_parents(struct walk *w, const struct mount_row *row, const char *rest)
{
	char host[PATH_MAX], path[PATH_MAX];

	for (const char *slash = strchr(rest, '/'); slash; slash = strchr(slash + 1, '/')) {
		int n = (int)(slash - rest);
		struct stat st;
		int r;

		if (snprintf(host, sizeof(host), "%s/%.*s", row->path, n, rest) >=
			    (int)sizeof(host) ||
		    snprintf(path, sizeof(path), "%u/%.*s", row->n, n, rest) >= (int)sizeof(path))
			return -ENAMETOOLONG;
		if (lstat(host, &st) < 0)
			return -errno;
		r = take_entry(w, AT_FDCWD, host, path, &st);
		if (r < 0)
			return r;
	}
	return 0;
}

static int take_open_file(struct walk *w, const struct mount_row *row, const char *rest,
			  const char *host)
{
	char path[PATH_MAX];
	struct stat st;
	int r;

	if (snprintf(path, sizeof(path), "%u/%s", row->n, rest) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	if (lstat(host, &st) < 0)
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISREG(st.st_mode))
		return 0;
	r = take_parents(w, row, rest);
	return r < 0 ? r : take_entry(w, AT_FDCWD, host, path, &st);
}

int walk_open_files(struct walk *w, const struct mounts *host)
{
	static char shm_path[] = "/dev/shm";
	const struct mount_row shm = { .n = CAPTURE_SHM_LAYER, .path = shm_path };

	for (size_t i = 0; i < w->view->use_count; i++) {
		const struct file_use *use = &w->view->uses[i];
		const struct mount_row *row;
		const char *rest = "";
		struct stat st;
		int r;

		bool is_shm = capture_is_below(use->path, shm_path);

		if (!(use->flags & (USE_WRITABLE | USE_SHARED_MAP)) ||
		    (!is_shm && mounts_excludes(host, use->path)))
			continue;
		if ((use->flags & USE_SHARED_MAP) && lstat(use->path, &st) == 0) {
			r = note_shared(w, &st);
			if (r < 0)
				return r;
		}
		row = is_shm ? &shm : mounts_find(w->layers, use->path, &rest);
		if (is_shm)
			rest = use->path + strlen(shm_path) + 1;
		r = row && *rest ? take_open_file(w, row, rest, use->path) : 0;
		if (r < 0)
			return w->reason[0] ? r :
					      capture_fail(w->reason, r,
							   "the open file %s cannot be captured",
							   use->path);
	}
	return 0;
}
