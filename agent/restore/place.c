// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#include "agent/restore/internal.h"

int place_open(int dirfd, const char *path, int flags, mode_t mode)
{
	struct open_how how = { .flags = (uint64_t)(flags | O_CLOEXEC | O_NOFOLLOW),
				.mode = flags & O_CREAT ? mode : 0,
				.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS |
					   RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV };
	int fd = (int)syscall(SYS_openat2, dirfd, *path ? path : ".", &how, sizeof(how));

	return fd < 0 ? -errno : fd;
}

int place_parent(int dirfd, const char *path, const char **ret_name)
{
	const char *slash = strrchr(path, '/');
	char parent[PATH_MAX] = "";
	int fd;

	*ret_name = slash ? slash + 1 : path;
	if (slash) {
		if ((size_t)(slash - path) >= sizeof(parent))
			return -ENAMETOOLONG;
		memcpy(parent, path, (size_t)(slash - path));
	}
	fd = place_open(dirfd, parent, O_RDONLY | O_DIRECTORY, 0);
	if (fd == -ENOENT && slash) {
		const char *name;
		_cleanup_close_ int above = place_parent(dirfd, parent, &name);

		if (above < 0)
			return above;
		if (mkdirat(above, name, 0755) < 0 && errno != EEXIST)
			return -errno;
		fd = place_open(dirfd, parent, O_RDONLY | O_DIRECTORY, 0);
	}
	return fd;
}

static int make_folder(int parent, const char *name)
{
	struct stat st;

	if (mkdirat(parent, name, 0700) == 0)
		return 0;
	if (errno != EEXIST || fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return -errno;
	return S_ISDIR(st.st_mode) ? 0 : -EEXIST;
}

static int own_and_date(int parent, const char *name, const struct manifest_file *f)
{
	struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, f->st.st_mtim };

	if (fchownat(parent, name, f->st.st_uid, f->st.st_gid, AT_SYMLINK_NOFOLLOW) < 0)
		return -errno;
	if (!S_ISLNK(f->st.st_mode) && fchmodat(parent, name, f->st.st_mode & 07777, 0) < 0)
		return -errno;
	return utimensat(parent, name, times, AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
}

int place_node(int dirfd, const char *path, const struct manifest_file *f)
{
	const char *name;
	_cleanup_close_ int parent = -1;

	if (!*path)
		return 0;
	parent = place_parent(dirfd, path, &name);
	if (parent < 0)
		return parent;
	if (S_ISDIR(f->st.st_mode))
		return make_folder(parent, name);
	if (restore_is_whiteout(&f->st))
		return mknodat(parent, name, S_IFCHR, makedev(0, 0)) < 0 ? -errno : 0;
	if (S_ISLNK(f->st.st_mode)) {
		if (!f->link_target)
			return -EBADMSG;
		if (symlinkat(f->link_target, parent, name) < 0)
			return -errno;
		return own_and_date(parent, name, f);
	}
	if (S_ISFIFO(f->st.st_mode)) {
		if (mknodat(parent, name, S_IFIFO | 0600, 0) < 0)
			return -errno;
		return own_and_date(parent, name, f);
	}
	return 0;
}

int place_regular(int dirfd, const char *path)
{
	const char *name;
	_cleanup_close_ int parent = place_parent(dirfd, path, &name);

	if (parent < 0)
		return parent;
	return place_open(parent, name, O_RDWR | O_CREAT | O_EXCL, 0600);
}

int place_link(int from_dirfd, const char *from, int dirfd, const char *path)
{
	const char *name, *from_name;
	_cleanup_close_ int from_parent = place_parent(from_dirfd, from, &from_name);
	_cleanup_close_ int parent = place_parent(dirfd, path, &name);

	if (from_parent < 0 || parent < 0)
		return from_parent < 0 ? from_parent : parent;
	return linkat(from_parent, from_name, parent, name, 0) < 0 ? -errno : 0;
}

/* Only what capture lets travel, whatever a manifest says. */
static bool xattr_allowed(enum file_kind kind, const char *name)
{
	if (!strncmp(name, "user.", 5) || !strcmp(name, "security.capability") ||
	    !strcmp(name, "system.posix_acl_access") || !strcmp(name, "system.posix_acl_default"))
		return true;
	return kind == FILE_UPPER && (!strcmp(name, "trusted.overlay.opaque") ||
				      !strcmp(name, "trusted.overlay.redirect"));
}

static int place_xattrs(int fd, const struct manifest_file *f)
{
	size_t at = 0;

	while (at < f->xattrs_size) {
		const char *name = (const char *)f->xattrs + at;
		size_t name_size = strnlen(name, f->xattrs_size - at) + 1, size = 0;

		if (f->xattrs_size - at < name_size + 4)
			return -EBADMSG;
		at += name_size;
		for (int i = 3; i >= 0; i--)
			size = size << 8 | f->xattrs[at + (size_t)i];
		at += 4;
		if (size > f->xattrs_size - at)
			return -EBADMSG;
		/* A file system without user attributes still serves; one that loses ours does not. */
		if (xattr_allowed(f->kind, name) &&
		    fsetxattr(fd, name, f->xattrs + at, size, 0) < 0 &&
		    (errno != EOPNOTSUPP || !strncmp(name, "trusted.", 8)))
			return -errno;
		at += size;
	}
	return 0;
}

int place_looks(int fd, const struct manifest_file *f)
{
	struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, f->st.st_mtim };
	int r;

	/* In this order: chown takes set-id bits and capabilities away. */
	if (fchown(fd, f->st.st_uid, f->st.st_gid) < 0 || fchmod(fd, f->st.st_mode & 07777) < 0)
		return -errno;
	r = place_xattrs(fd, f);
	if (r < 0)
		return r;
	return futimens(fd, times) < 0 ? -errno : 0;
}
