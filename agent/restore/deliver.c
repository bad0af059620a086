// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The half of restore_results() that runs as the job's user: whatever a path leads to, the kernel
 * lets it do no more than that user may.
 */
#define LOG_TAG "restore"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/random.h>
#include <sys/xattr.h>

#include "agent/restore/internal.h"
#include "agent/util/io.h"
#include "agent/util/log.h"

enum { DELIVER_COPY_CHUNK = 256 << 10, DELIVER_NAMES = 10, DELIVER_DEPTH_MAX = 200 };

/* Is it as it was when the job was submitted? */
static bool is_older(const struct deliver_order *o, const struct stat *st)
{
	return st->st_ctim.tv_sec >= 0 &&
	       (uint64_t)st->st_ctim.tv_sec * 1000 + (uint64_t)st->st_ctim.tv_nsec / 1000000 <
		       o->request->submit_wall_ms;
}

static bool has_same_content(const char *path, const struct stat *st, const struct delivery *d)
{
	_cleanup_close_ int fd = -1;
	uint8_t hash[32];

	if (!S_ISREG(st->st_mode) || st->st_size != d->file.st.st_size)
		return false;
	fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	return fd >= 0 && restore_hash(fd, (uint64_t)st->st_size, hash) == 0 &&
	       !memcmp(hash, d->file.content_hash, sizeof(hash));
}

static bool has_same_link(const char *path, const struct stat *st, const struct delivery *d)
{
	char target[PATH_MAX];
	ssize_t n;

	if (!S_ISLNK(st->st_mode))
		return false;
	n = readlink(path, target, sizeof(target));
	return n >= 0 && (size_t)n == strlen(d->file.link_target) &&
	       !memcmp(target, d->file.link_target, (size_t)n);
}

static bool is_there(const char *path, const struct stat *st, const struct delivery *d)
{
	return d->kind == DELIVER_LINK ? has_same_link(path, st, d) : has_same_content(path, st, d);
}

static int make_parents(const char *path)
{
	char parent[PATH_MAX];
	char *slash;

	if (snprintf(parent, sizeof(parent), "%s", path) >= (int)sizeof(parent))
		return -ENAMETOOLONG;
	slash = strrchr(parent, '/');
	if (!slash || slash == parent)
		return 0;
	*slash = '\0';
	return mkdir_parents(parent, 0755);
}

static int copy_data(int from, int to, off_t size)
{
	_cleanup_free_ uint8_t *buf = malloc(DELIVER_COPY_CHUNK);
	off_t at = 0;

	if (!buf)
		return -ENOMEM;
	if (ftruncate(to, size) < 0)
		return -errno;
	while (at < size) {
		off_t begin = lseek(from, at, SEEK_DATA), end;

		if (begin < 0 && errno == ENXIO)
			return 0;
		begin = begin < 0 ? at : begin;
		end = lseek(from, begin, SEEK_HOLE);
		end = end < 0 || end > size ? size : end;
		for (at = begin; at < end;) {
			size_t n = end - at > DELIVER_COPY_CHUNK ? DELIVER_COPY_CHUNK :
								   (size_t)(end - at);
			int r = pread_full(from, buf, n, at);

			if (r == 0)
				r = pwrite_full(to, buf, n, at);
			if (r < 0)
				return r;
			at += (off_t)n;
		}
	}
	return 0;
}

/* Attributes that users give; a file system without them keeps the content all the same. */
static void copy_user_xattrs(int fd, const struct manifest_file *f)
{
	for (size_t at = 0; at < f->xattrs_size;) {
		const char *name = (const char *)f->xattrs + at;
		size_t name_size = strnlen(name, f->xattrs_size - at) + 1, size = 0;

		if (f->xattrs_size - at < name_size + 4)
			return;
		at += name_size + 4;
		for (size_t i = 1; i <= 4; i++)
			size = size << 8 | f->xattrs[at - i];
		if (size > f->xattrs_size - at)
			return;
		if (!strncmp(name, "user.", 5))
			(void)!fsetxattr(fd, name, f->xattrs + at, size, 0);
		at += size;
	}
}

static int write_content(const char *path, const struct delivery *d)
{
	struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, d->file.st.st_mtim };
	_cleanup_close_ int fd =
		open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	int r;

	if (fd < 0)
		return -errno;
	r = copy_data(d->fd, fd, d->file.st.st_size);
	if (r < 0)
		return r;
	copy_user_xattrs(fd, &d->file);
	/* Set-id bits do not come home: they may mean somebody else here. */
	if (fchmod(fd, d->file.st.st_mode & 0777) < 0 || futimens(fd, times) < 0)
		return -errno;
	return fsync(fd) < 0 ? -errno : 0;
}

static int sync_parent(const char *path)
{
	char parent[PATH_MAX];
	const char *slash = strrchr(path, '/');
	_cleanup_close_ int fd = -1;

	snprintf(parent, sizeof(parent), "%.*s/", slash ? (int)(slash - path) : 0, path);
	fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	/* Some file systems cannot sync folders; the file itself is safe. */
	if (fd >= 0)
		(void)!fsync(fd);
	return 0;
}

/* replace: an old file may be there. Without it a file that appears meanwhile wins. */
static int put_file(const char *path, const struct delivery *d, bool replace)
{
	char temporary[PATH_MAX];
	uint32_t salt;
	int r = make_parents(path);

	if (r < 0)
		return r;
	if (getrandom(&salt, sizeof(salt), 0) < 0)
		return -errno;
	if (snprintf(temporary, sizeof(temporary), "%s.%08x.tmp", path, salt) >=
	    (int)sizeof(temporary))
		return -ENAMETOOLONG;
	if (d->kind == DELIVER_LINK)
		r = symlink(d->file.link_target, temporary) < 0 ? -errno : 0;
	else
		r = write_content(temporary, d);
	if (r == 0 &&
	    renameat2(AT_FDCWD, temporary, AT_FDCWD, path, replace ? 0 : RENAME_NOREPLACE) < 0)
		r = -errno;
	/* A file system without NOREPLACE (NFS): a hard link refuses to replace just as well. */
	if (r == -EINVAL && !replace)
		r = linkat(AT_FDCWD, temporary, AT_FDCWD, path, 0) < 0 ? -errno :
		    unlink(temporary) < 0			       ? -errno :
									 0;
	if (r < 0) {
		unlink(temporary);
		return r;
	}
	return sync_parent(path);
}

static int side_path(const struct deliver_order *o, const char *path, int try, char out[PATH_MAX])
{
	const char *cwd = o->request->cwd;
	const char *rest = restore_is_below(path, cwd) ? path + strlen(cwd) : path;
	char suffix[16] = "";

	while (*rest == '/')
		rest++;
	if (try > 0)
		snprintf(suffix, sizeof(suffix), ".%d", try);
	return snprintf(out, PATH_MAX, "%s/%s/%s%s", cwd, o->request->side_folder, rest, suffix) <
			       PATH_MAX ?
		       0 :
		       -ENAMETOOLONG;
}

static void set_aside(const struct deliver_order *o, const struct delivery *d,
		      struct results_report *report)
{
	int r = -EEXIST;

	for (int try = 0; try < DELIVER_NAMES && r == -EEXIST; try++) {
		char path[PATH_MAX];
		struct stat st;

		r = side_path(o, d->path, try, path);
		if (r < 0)
			break;
		/* An earlier attempt may have come this far. */
		if (lstat(path, &st) == 0)
			r = is_there(path, &st, d) ? 0 : -EEXIST;
		else
			r = put_file(path, d, false);
	}
	if (r < 0) {
		log_errno(r, "results: %s: can be written neither there nor beside it", d->path);
		report->failed++;
		return;
	}
	if (report->set_aside++ == 0)
		snprintf(report->first_set_aside, sizeof(report->first_set_aside), "%s", d->path);
}

static void deliver_file(const struct deliver_order *o, const struct delivery *d,
			 struct results_report *report)
{
	struct stat st;
	bool exists = lstat(d->path, &st) == 0;

	if (exists && is_there(d->path, &st, d)) {
		report->written++;
		return;
	}
	if (exists && (S_ISDIR(st.st_mode) || !is_older(o, &st))) {
		set_aside(o, d, report);
		return;
	}
	if (put_file(d->path, d, exists) == 0)
		report->written++;
	else
		set_aside(o, d, report);
}

static void deliver_folder(const struct delivery *d)
{
	/* What cannot be made shows when its files are set aside. */
	if (make_parents(d->path) == 0)
		(void)!mkdir(d->path, (d->file.st.st_mode & 0777) | 0700);
}

/* ---- removal ---- */

static bool all_older(const struct deliver_order *o, const char *path, int depth)
{
	struct stat st;
	_cleanup_closedir_ DIR *dir = NULL;
	struct dirent *item;

	if (lstat(path, &st) < 0)
		return errno == ENOENT;
	if (!S_ISDIR(st.st_mode))
		return is_older(o, &st);
	dir = depth < DELIVER_DEPTH_MAX ? opendir(path) : NULL;
	if (!dir)
		return false;
	while ((item = readdir(dir))) {
		char child[PATH_MAX];

		if (!strcmp(item->d_name, ".") || !strcmp(item->d_name, ".."))
			continue;
		if (snprintf(child, sizeof(child), "%s/%s", path, item->d_name) >=
			    (int)sizeof(child) ||
		    !all_older(o, child, depth + 1))
			return false;
	}
	return true;
}

static void remove_one(const struct deliver_order *o, const char *path,
		       struct results_report *report)
{
	struct stat st;
	int r;

	if (lstat(path, &st) < 0)
		return;
	/* The time of a folder itself says nothing: results are being written into it. */
	if (!all_older(o, path, 0)) {
		log_info("results: %s: the job removed it; kept, because it changed since", path);
		return;
	}
	r = remove_tree_at(AT_FDCWD, path);
	if (r == 0) {
		report->deleted++;
	} else {
		log_errno(r, "results: %s: the job removed it", path);
		report->failed++;
	}
}

/* The job made the folder anew: what was in the old one is gone. */
static void clear_folder(const struct deliver_order *o, const char *path,
			 struct results_report *report)
{
	_cleanup_closedir_ DIR *dir = opendir(path);
	struct dirent *item;

	while (dir && (item = readdir(dir))) {
		char child[PATH_MAX];

		if (!strcmp(item->d_name, ".") || !strcmp(item->d_name, ".."))
			continue;
		if (snprintf(child, sizeof(child), "%s/%s", path, item->d_name) <
			    (int)sizeof(child) &&
		    !o->is_ours(o->ctx, child))
			remove_one(o, child, report);
	}
}

void deliver(const struct deliver_order *order, struct results_report *report)
{
	for (size_t i = 0; i < order->count; i++) {
		const struct delivery *d = &order->items[i];

		switch (d->kind) {
		case DELIVER_FILE:
		case DELIVER_LINK:
			deliver_file(order, d, report);
			break;
		case DELIVER_FOLDER:
			deliver_folder(d);
			break;
		case DELIVER_REMOVE:
			remove_one(order, d->path, report);
			break;
		case DELIVER_CLEAR:
			clear_folder(order, d->path, report);
			break;
		}
	}
}
