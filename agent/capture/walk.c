// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>

#include "agent/capture/internal.h"
#include "agent/util/io.h"

/* Each level holds a descriptor open, and recursion needs stack. */
enum {
	WALK_DEPTH_MAX = 200,
	WALK_NAMES_STEP = 32 << 10, /* of one call; more than one name needs */
};

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
	r = w->ready ? ready_stage(w->ready, e, fd) : 0;
	if (r > 0)
		return 0;
	snprintf(name, sizeof(name), "%zu", w->copies);
	if (r == 0)
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

/*
 * A pause would wait for the disk that a file has to be read from. Errors are those of files that come
 * and go.
 */
static void rehearse_file(struct walk *w, struct entry *e, int dirfd, const char *name)
{
	_cleanup_close_ int fd = -1;
	off_t size = e->st.st_size, at = 0;

	if (!w->scratch || (w->past && take_unchanged(w, e)) || !ready_is_fit(&e->st) ||
	    size > READY_LARGE - (off_t)w->read_bytes)
		return;
	fd = openat(dirfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOATIME | O_CLOEXEC);
	while (fd >= 0 && at < size) {
		ssize_t n = pread(fd, w->scratch, READY_STAGE, at);

		if (n <= 0)
			break;
		at += n;
	}
	w->read_bytes += (uint64_t)size;
	if (size > READY_STAGE_FILE)
		w->large_bytes += (uint64_t)size;
}

/* Types that have no place in a checkpoint: CRIU makes sockets anew, devices are the host's. */
static bool is_left_out(const struct stat *st)
{
	return S_ISSOCK(st->st_mode) || S_ISBLK(st->st_mode) ||
	       (S_ISCHR(st->st_mode) && st->st_rdev != 0);
}

/* Adds dirfd/name, found as *st, under `path`. folder: it is one, and open; -1. */
static int take_entry(struct walk *w, int dirfd, const char *name, int folder, const char *path,
		      const struct stat *st)
{
	_cleanup_close_ int file = -1;
	struct entry *e;
	int r = entries_add(w->entries, SNAPSHOT_UPPER, path, st, &e);

	if (r == -EEXIST)
		return 0;
	if (r == -EFBIG)
		return capture_fail(w->reason, r, "the job has more than %d files",
				    CAPTURE_FILES_MAX);
	if (r == 0 && w->rehearsal && S_ISREG(st->st_mode)) {
		rehearse_file(w, e, dirfd, name);
		return 0;
	}
	if (r == 0 && take_unchanged(w, e))
		return 0;
	if (r == 0 && S_ISLNK(st->st_mode))
		r = entry_read_link(e, dirfd, name);
	if (r == 0 && S_ISREG(st->st_mode)) {
		file = open_regular(w, dirfd, name, st);
		if (file < 0)
			return file;
		r = entry_read_xattrs_of(e, file);
	} else if (r == 0 && S_ISDIR(st->st_mode)) {
		r = folder >= 0 ? entry_read_xattrs_of(e, folder) :
				  entry_read_xattrs(e, dirfd, name);
	}
	if (r == -EOPNOTSUPP)
		return capture_fail(w->reason, r,
				    "the job's file %s has its content in a lower layer "
				    "(overlayfs metacopy=on): mount without it",
				    path);
	if (r < 0)
		return capture_fail(w->reason, r, "the job's file %s cannot be read", path);
	if (file < 0)
		return 0;
	r = take_content(w, e, file);
	ready_close(w->ready, take_fd(file));
	return r;
}

/* The whole listing of a folder, as the kernel gives it, to the end of w->names. */
static int read_names(struct walk *w, int fd)
{
	struct walk_names *names = &w->names;
	ssize_t n;

	do {
		if (names->room - names->used < WALK_NAMES_STEP) {
			size_t room = names->room ? 2 * names->room : 2 * (size_t)WALK_NAMES_STEP;
			char *more = realloc(names->v, room);

			if (!more)
				return -ENOMEM;
			names->v = more;
			names->room = room;
		}
		n = getdents64(fd, names->v + names->used, names->room - names->used);
		if (n < 0)
			return -errno;
		names->used += (size_t)n;
	} while (n > 0);
	return 0;
}

static int walk_folder(struct walk *w, int fd, char path[PATH_MAX], int depth);

/* Folder dirfd/name below `path`; *st: of it. */
static int walk_child(struct walk *w, int dirfd, const char *name, char path[PATH_MAX],
		      const struct stat *st, int depth)
{
	/* A time of access is written to the file system's journal, which may be busy. */
	int fd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NOATIME | O_CLOEXEC);
	int r;

	if (fd < 0)
		return capture_fail(w->reason, -errno, "the job's folder %s cannot be read", path);
	r = take_entry(w, dirfd, name, fd, path, st);
	if (r == 0)
		r = walk_folder(w, fd, path, depth);
	ready_close(w->ready, fd);
	return r;
}

/* path, of that length, is the folder's; what it gets appended is taken off again. */
static int walk_name(struct walk *w, int fd, const char *name, char path[PATH_MAX], size_t length,
		     int depth)
{
	size_t size = strlen(name) + 1;
	struct stat st;
	int r;

	if (fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return capture_fail(w->reason, -errno, "the job's file %s/%s cannot be read", path,
				    name);
	if (is_left_out(&st))
		return 0;
	if (length + 1 + size > PATH_MAX)
		return capture_fail(w->reason, -ENAMETOOLONG,
				    "the path of the job's file %s is too long", name);
	path[length] = '/';
	memcpy(path + length + 1, name, size);
	if (S_ISDIR(st.st_mode))
		r = walk_child(w, fd, name, path, &st, depth + 1);
	else
		r = take_entry(w, fd, name, -1, path, &st);
	path[length] = '\0';
	return r;
}

/* fd: the open folder, at its first entry. */
static int walk_folder(struct walk *w, int fd, char path[PATH_MAX], int depth)
{
	size_t length = strlen(path), from = w->names.used, end;
	int r;

	if (depth > WALK_DEPTH_MAX)
		return capture_fail(w->reason, -ENAMETOOLONG,
				    "the job's folder %s is nested more than %d levels deep", path,
				    WALK_DEPTH_MAX);
	r = read_names(w, fd);
	if (r < 0)
		return capture_fail(w->reason, r, "the job's folder %s cannot be read", path);
	end = w->names.used;
	for (size_t at = from; r == 0 && at < end;) {
		/* Folders below this one may move the listing. */
		const struct dirent64 *item = (const void *)(w->names.v + at);

		at += item->d_reclen;
		if (strcmp(item->d_name, ".") && strcmp(item->d_name, ".."))
			r = walk_name(w, fd, item->d_name, path, length, depth);
	}
	w->names.used = from;
	return r;
}

/* The layer's own folder is the looks of the mount point. Takes over fd. */
static int walk_upper(struct walk *w, int fd, unsigned int n)
{
	char path[PATH_MAX];
	struct stat st;
	int r;

	snprintf(path, sizeof(path), "%u", n);
	r = fstat(fd, &st) < 0 ? -errno : take_entry(w, fd, ".", fd, path, &st);
	if (r == 0)
		r = walk_folder(w, fd, path, 0);
	ready_close(w->ready, fd);
	free(take_ptr(w->names.v));
	w->names = (struct walk_names){ 0 };
	return r;
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

int walk_read_carried(const char *state_dir, char **ret_list, size_t *ret_size)
{
	char path[PATH_MAX];
	int r;

	if (snprintf(path, sizeof(path), "%s/carried.list", state_dir) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	r = read_file_at(AT_FDCWD, path, CLOSURE_LIST_MAX, ret_list, ret_size);
	if (r != -ENOENT)
		return r;
	*ret_list = NULL;
	*ret_size = 0;
	return 0;
}

/*
 * What was carried here and removed by the job leaves no trace in a layer over a host that never
 * had it; on a host that has it, it would be back.
 */
static int note_all_removed(struct walk *w, const char *state_dir)
{
	_cleanup_free_ char *own = NULL;
	char *list = w->ready ? w->ready->carried : NULL;
	size_t size = w->ready ? w->ready->carried_size : 0;
	int r = 0;

	if (!w->ready) {
		r = walk_read_carried(state_dir, &own, &size);
		list = own;
	}
	for (char *p = list; r == 0 && p && p < list + size;) {
		size_t length = strlen(p);

		r = note_removed(w, p);
		p += length + 1;
	}
	return r;
}

int walk_open_upper(const char *state_dir, const struct mount_row *row)
{
	char path[PATH_MAX];
	int fd;

	if (snprintf(path, sizeof(path), "%s/upper/%u", state_dir, row->n) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NOATIME | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

int walk_uppers(struct walk *w, const char *state_dir)
{
	int r = w->shared_known ? 0 : walk_find_shared(w, state_dir);

	for (size_t i = 0; r == 0 && i < w->layers->count; i++) {
		const struct mount_row *row = &w->layers->v[i];
		int fd = w->ready ? take_fd(w->ready->uppers[i]) : walk_open_upper(state_dir, row);

		/* A mount that the keeper could only bind has no layer. */
		if (fd == -ENOENT)
			continue;
		if (fd < 0)
			return capture_fail(w->reason, fd, "upper layer %s/upper/%u", state_dir,
					    row->n);
		r = walk_upper(w, fd, row->n);
	}
	return r == 0 ? note_all_removed(w, state_dir) : r;
}

int walk_open_shm(pid_t pid)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/root/dev/shm", pid);
	fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

int walk_shm(struct walk *w, pid_t pid)
{
	bool copy_all = w->copy_all;
	int fd = w->ready ? take_fd(w->ready->shm) : -1, r;

	if (fd < 0)
		fd = walk_open_shm(pid);
	if (fd < 0)
		return fd == -ENOENT ? 0 : capture_fail(w->reason, fd, "the job's /dev/shm");
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
		r = take_entry(w, AT_FDCWD, host, -1, path, &st);
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
	return r < 0 ? r : take_entry(w, AT_FDCWD, host, -1, path, &st);
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
