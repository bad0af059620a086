// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/cli/mount_work.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

/* The path below a working copy; its root itself is not to be changed. */
static int writable(const struct folders_node *n)
{
	if (n->type != FOLDERS_WORK || n->work->read_only)
		return -EROFS;
	return *n->path ? 0 : -EPERM;
}

/* Its owner reads all of it: what he could not read, no version could hold. */
static mode_t file_mode(mode_t mode)
{
	return (mode & 0777) | 0400;
}

static int changed(struct worktree *w, int r)
{
	if (r == 0)
		worktree_changed(w);
	pthread_mutex_unlock(&w->lock);
	return r;
}

int work_stat(const struct folders_node *n, struct stat *ret_stat)
{
	int r = *n->path ? fstatat(n->work->tree_fd, n->path, ret_stat, AT_SYMLINK_NOFOLLOW) :
			   fstat(n->work->tree_fd, ret_stat);

	if (r < 0)
		return -errno;
	/* A folder that was taken away is to be read only, and to be seen so. */
	if (n->work->read_only)
		ret_stat->st_mode &= ~(mode_t)0222;
	return 0;
}

int work_open(const struct folders_node *n, int flags, mode_t mode, struct work_file *ret_file)
{
	bool writes = (flags & O_ACCMODE) != O_RDONLY || flags & (O_TRUNC | O_CREAT);
	struct work_file file = { .work = n->work, .fd = -1, .writes = writes };
	bool made;
	struct stat st;
	int r = writes ? writable(n) : 0;

	if (r < 0)
		return r;
	/* The kernel gives the offset of each write, those that append, too; and reads for others. */
	flags &= O_ACCMODE | O_TRUNC | O_CREAT | O_EXCL;
	if ((flags & O_ACCMODE) == O_WRONLY)
		flags = (flags & ~O_ACCMODE) | O_RDWR;
	pthread_mutex_lock(&n->work->lock);
	made = flags & O_CREAT && work_stat(n, &st) == -ENOENT;
	r = made ? worktree_has_room(n->work, n->path, NULL) : 0;
	if (r == 0) {
		file.fd = openat(n->work->tree_fd, n->path,
				 (flags & ~O_TRUNC) | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC,
				 file_mode(mode));
		r = file.fd < 0 || fstat(file.fd, &st) < 0 ? -errno : 0;
	}
	if (r == 0 && made)
		worktree_count(n->work, n->path, NULL);
	if (r == 0 && !S_ISREG(st.st_mode))
		r = -EISDIR;
	if (r == 0 && writes) {
		file.ino = st.st_ino;
		r = worktree_writer_add(n->work, file.ino);
		/* Only after it is known to be written: no version has it empty. */
		if (r == 0 && flags & O_TRUNC && ftruncate(file.fd, 0) < 0) {
			r = -errno;
			worktree_writer_remove(n->work, file.ino);
		}
		if (r == 0)
			worktree_changed(n->work);
	}
	pthread_mutex_unlock(&n->work->lock);
	if (r < 0)
		close_fdp(&file.fd);
	else
		*ret_file = file;
	return r;
}

void work_close(struct work_file *file)
{
	if (file->writes) {
		pthread_mutex_lock(&file->work->lock);
		worktree_writer_remove(file->work, file->ino);
		worktree_changed(file->work);
		pthread_mutex_unlock(&file->work->lock);
	}
	close(file->fd);
}

int work_write(struct work_file *file, const char *bytes, size_t size, off_t offset)
{
	ssize_t n;

	if (!file->writes)
		return -EBADF;
	if (file->work->read_only)
		return -EROFS;
	if (offset + (off_t)size > WORK_FILE_MAX)
		return -EFBIG;
	n = pwrite(file->fd, bytes, size, offset);
	return n < 0 ? -errno : (int)n;
}

int work_sync(struct work_file *file)
{
	int r = fdatasync(file->fd) < 0 ? -errno : 0;

	if (r == 0 && file->writes)
		r = worktree_commit(file->work, file->ino, true);
	return r == -ENOSPC || r == -EROFS || r == 0 ? r : -EIO;
}

int work_truncate(const struct folders_node *n, struct work_file *file, off_t size)
{
	struct work_file own;
	int r = 0;

	if (size > WORK_FILE_MAX)
		return -EFBIG;
	if (file)
		return !file->writes		     ? -EBADF :
		       file->work->read_only	     ? -EROFS :
		       ftruncate(file->fd, size) < 0 ? -errno :
						       0;
	r = work_open(n, O_RDWR, 0, &own);
	if (r < 0)
		return r;
	r = ftruncate(own.fd, size) < 0 ? -errno : 0;
	work_close(&own);
	return r;
}

int work_mkdir(const struct folders_node *n, mode_t mode)
{
	int r = writable(n);

	if (r < 0)
		return r;
	pthread_mutex_lock(&n->work->lock);
	r = worktree_has_room(n->work, n->path, NULL);
	if (r == 0 && mkdirat(n->work->tree_fd, n->path, (mode & 0777) | 0700) < 0)
		r = -errno;
	if (r == 0)
		worktree_count(n->work, n->path, NULL);
	return changed(n->work, r);
}

int work_unlink(const struct folders_node *n, bool folder)
{
	int r = writable(n);

	if (r < 0)
		return r;
	pthread_mutex_lock(&n->work->lock);
	if (unlinkat(n->work->tree_fd, n->path, folder ? AT_REMOVEDIR : 0) < 0)
		r = -errno;
	else
		worktree_uncount(n->work, n->path);
	return changed(n->work, r);
}

int work_symlink(const char *target, const struct folders_node *n)
{
	int r = writable(n);

	if (r < 0 || strlen(target) >= WORK_PATH_MAX)
		return r < 0 ? r : -ENAMETOOLONG;
	pthread_mutex_lock(&n->work->lock);
	r = worktree_has_room(n->work, n->path, target);
	if (r == 0 && symlinkat(target, n->work->tree_fd, n->path) < 0)
		r = -errno;
	if (r == 0)
		worktree_count(n->work, n->path, target);
	return changed(n->work, r);
}

int work_rename(const struct folders_node *from, const struct folders_node *to, unsigned int flags)
{
	struct worktree *w = from->work;
	int r = writable(from);

	if (r == 0)
		r = writable(to);
	if (r == 0 && w != to->work)
		r = -EXDEV;
	if (r < 0)
		return r;
	pthread_mutex_lock(&w->lock);
	r = worktree_may_move(w, from->path, to->path);
	if (r == 0 && flags & RENAME_EXCHANGE)
		r = worktree_may_move(w, to->path, from->path);
	if (r == 0 && renameat2(w->tree_fd, from->path, w->tree_fd, to->path, flags) < 0)
		r = -errno;
	return changed(w, r);
}

int work_chmod(const struct folders_node *n, mode_t mode)
{
	struct stat st;
	int r = writable(n);

	if (r == 0)
		r = work_stat(n, &st);
	if (r < 0)
		return r;
	if (S_ISLNK(st.st_mode))
		return -EOPNOTSUPP;
	pthread_mutex_lock(&n->work->lock);
	mode = S_ISDIR(st.st_mode) ? (mode & 0777) | 0700 : file_mode(mode);
	return changed(n->work, fchmodat(n->work->tree_fd, n->path, mode, 0) < 0 ? -errno : 0);
}

int work_times(const struct folders_node *n, const struct timespec times[2])
{
	int r = writable(n);

	if (r < 0)
		return r;
	pthread_mutex_lock(&n->work->lock);
	r = utimensat(n->work->tree_fd, n->path, times, AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
	return changed(n->work, r);
}
