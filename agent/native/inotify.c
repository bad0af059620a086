// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * inotify: watches are on inodes, images want paths. The kernel tells a file handle, which opens
 * on any folder of that file system; where handles do not open (overlays), the folders that the
 * job is likely to watch are looked at.
 */
#include "agent/native/events_internal.h"
#include "agent/native/reg_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>

enum {
	HANDLE_WORDS = 16, /* as images have it */
	WATCHES_MAX = 8192,
	FOLDER_MAX = 4096, /* entries looked at */
	MOUNTINFO_MAX = 1 << 20,
};

struct watch {
	int32_t wd;
	uint64_t ino;
	uint32_t dev, mask, ignored_mask;
	uint32_t bytes, type;
	uint64_t handle[HANDLE_WORDS];
	const char *path;
};

struct inotify {
	struct watch *watches;
	size_t count;
};

/* One search for the path of a watch. */
struct search {
	struct native_files *f;
	const struct native_open *o;
	struct watch *w;
	int root; /* of the job's mounts */
};

static int parse_handle(const char *hex, struct watch *w)
{
	uint8_t *bytes = (uint8_t *)w->handle;

	if (w->bytes > sizeof(w->handle))
		return -EOPNOTSUPP;
	for (uint32_t i = 0; i < w->bytes; i++) {
		unsigned int byte;

		if (sscanf(hex + 2 * i, "%2x", &byte) != 1)
			return -EBADMSG;
		bytes[i] = (uint8_t)byte;
	}
	return 0;
}

/* "1 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:.." */
static int parse_watch(const char *line, struct watch *w)
{
	unsigned long long ino;
	int at = 0;

	if (sscanf(line, "%x ino:%llx sdev:%x mask:%x ignored_mask:%x%n", (unsigned int *)&w->wd,
		   &ino, &w->dev, &w->mask, &w->ignored_mask, &at) != 5)
		return -EBADMSG;
	w->ino = ino;
	line += at;
	at = 0;
	if (sscanf(line, " fhandle-bytes:%x fhandle-type:%x f_handle:%n", &w->bytes, &w->type,
		   &at) == 2 &&
	    at > 0)
		return parse_handle(line + at, w);
	w->bytes = 0;
	return 0;
}

static int keep_path(struct search *s, int fd)
{
	char link[64], path[PATH_MAX];
	struct stat found, named;
	char *copy;
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, path, sizeof(path) - 1);
	if (n < 0)
		return -errno;
	path[n] = '\0';
	/* It must lead there again: not deleted, not hidden below another mount. */
	if (path[0] != '/' || fstat(fd, &found) < 0 ||
	    fstatat(s->root, path[1] ? path + 1 : ".", &named, AT_SYMLINK_NOFOLLOW) < 0 ||
	    found.st_ino != named.st_ino || found.st_dev != named.st_dev)
		return -ENOENT;
	copy = arena_alloc(s->f->tree->arena, (size_t)n + 1);
	if (!copy)
		return -ENOMEM;
	memcpy(copy, path, (size_t)n);
	s->w->path = copy;
	return 0;
}

static int open_handle(struct search *s, int mount)
{
	struct {
		struct file_handle head;
		uint64_t bytes[HANDLE_WORDS];
	} h = { .head = { .handle_bytes = s->w->bytes, .handle_type = (int)s->w->type } };
	_cleanup_close_ int fd = -1;

	if (s->w->bytes == 0)
		return -ENOENT;
	memcpy(h.head.f_handle, s->w->handle, s->w->bytes);
	fd = open_by_handle_at(mount, &h.head, O_PATH | O_CLOEXEC);
	return fd < 0 ? -errno : keep_path(s, fd);
}

/* The mounts of that file system, as the job has them. */
static int try_mounts(struct search *s)
{
	_cleanup_free_ char *text = NULL;
	_cleanup_fclose_ FILE *file = NULL;
	unsigned int major_number, minor_number;
	char link[64], point[PATH_MAX];
	size_t size = 0;
	int r = -ENOENT;

	snprintf(link, sizeof(link), "/proc/%d/mountinfo", s->o->task->pid);
	file = fopen(link, "re");
	if (!file)
		return -errno;
	while (r < 0 && getline(&text, &size, file) > 0) {
		_cleanup_close_ int mount = -1;

		if (sscanf(text, "%*d %*d %u:%u %*s %4095s", &major_number, &minor_number, point) !=
			    3 ||
		    (major_number << 20 | minor_number) != s->w->dev)
			continue;
		mount = openat(s->root, point[1] ? point + 1 : ".",
			       O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (mount >= 0)
			r = open_handle(s, mount);
	}
	return r;
}

static bool is_watched(const struct search *s, const struct stat *st)
{
	return st->st_ino == s->w->ino &&
	       (major(st->st_dev) << 20 | minor(st->st_dev)) == s->w->dev;
}

/* A folder itself, then what lies in it. */
static int try_folder(struct search *s, const char *path)
{
	_cleanup_closedir_ DIR *dir = NULL;
	_cleanup_close_ int fd = -1;
	struct dirent *e;
	struct stat st;

	fd = openat(s->root, path[1] ? path + 1 : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	if (is_watched(s, &st))
		return keep_path(s, fd);
	dir = fdopendir(fd);
	if (!dir)
		return -errno;
	(void)take_fd(fd);
	for (int i = 0; i < FOLDER_MAX && (e = readdir(dir)) != NULL; i++) {
		_cleanup_close_ int found = -1;

		if (!strcmp(e->d_name, "..") ||
		    fstatat(dirfd(dir), e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
		    !is_watched(s, &st))
			continue;
		found = openat(dirfd(dir), e->d_name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
		return found < 0 ? -errno : keep_path(s, found);
	}
	return -ENOENT;
}

static int try_parent(struct search *s, const char *path)
{
	char folder[PATH_MAX];
	const char *slash = strrchr(path, '/');

	if (path[0] != '/' || !slash)
		return -ENOENT;
	snprintf(folder, sizeof(folder), "%.*s", slash == path ? 1 : (int)(slash - path), path);
	return try_folder(s, folder);
}

static int try_likely(struct search *s)
{
	static const char *const folders[] = { "/", "/tmp", "/etc", "/var/tmp", "/home" };
	struct native_files *f = s->f;
	int r = -ENOENT;

	for (size_t i = 0; r < 0 && i < f->tree->task_count; i++)
		if (!f->tree->tasks[i].zombie && f->tree->tasks[i].state->cwd[0] == '/')
			r = try_folder(s, f->tree->tasks[i].state->cwd);
	for (size_t i = 0; r < 0 && i < ARRAY_SIZE(folders); i++)
		r = try_folder(s, folders[i]);
	for (size_t i = 0; r < 0 && i < f->open_count; i++)
		if (f->opens[i].area == &area_reg)
			r = try_parent(s, f->opens[i].path);
	return r;
}

static int find_path(struct search *s)
{
	int r = open_handle(s, s->root);

	if (r < 0)
		r = try_mounts(s);
	if (r < 0)
		r = try_likely(s);
	return r < 0 ? files_refuse(s->f, s->o, "watches inode %llu, whose path is not known",
				    (unsigned long long)s->w->ino) :
		       0;
}

int inotify_find_paths(struct native_files *f, struct native_open *o)
{
	struct inotify *in = o->facts;
	_cleanup_close_ int root = -1;
	char link[64];
	int r = 0;

	if (strcmp(o->task->state->root, "/") != 0)
		return files_refuse(f, o, "belongs to a process with a root of its own");
	snprintf(link, sizeof(link), "/proc/%d/root", o->task->pid);
	/* Handles do not open on an O_PATH descriptor. */
	root = open(link, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (root < 0)
		return native_fail(f->tree, -errno, "%s: %s", link, strerror(errno));
	for (size_t i = 0; r == 0 && i < in->count; i++) {
		struct search s = { .f = f, .o = o, .w = &in->watches[i], .root = root };

		/* A file without a name is found by restore as the ghost that it is. */
		if (!reg_is_ghost(f, s.w->dev, s.w->ino))
			r = find_path(&s);
	}
	return r;
}

/* Events that wait would be lost; there may be none a moment later. */
static int check_queue(struct native_files *f, struct native_open *o)
{
	int fd, queued = 0, r = open_local(f, o, &fd);

	if (r < 0)
		return r;
	if (ioctl(fd, FIONREAD, &queued) < 0 || queued > 0)
		r = files_refuse(f, o, "has events that nobody has read yet");
	open_local_close(o);
	return r;
}

int inotify_collect(struct native_files *f, struct native_open *o)
{
	struct inotify *in = arena_alloc(f->tree->arena, sizeof(*in));
	size_t room = 0;
	char *text;
	int r = in ? events_read_all(f, o, &text) : -ENOMEM;

	if (r == 0)
		r = check_queue(f, o);
	if (r < 0)
		return r;
	for (const char *at = text; (at = strstr(at, "inotify wd:")) != NULL; at++)
		room++;
	if (room > WATCHES_MAX)
		return files_refuse(f, o, "has %zu watches", room);
	in->watches = arena_alloc(f->tree->arena, (room + 1) * sizeof(*in->watches));
	if (!in->watches)
		return -ENOMEM;
	for (const char *at = text; (at = strstr(at, "inotify wd:")) != NULL; at++) {
		r = parse_watch(at + strlen("inotify wd:"), &in->watches[in->count++]);
		if (r < 0)
			return files_refuse(f, o, "has a watch that cannot be read");
		if (in->watches[in->count - 1].mask & (IN_ONESHOT | IN_EXCL_UNLINK))
			return files_refuse(f, o, "has a watch with IN_ONESHOT or IN_EXCL_UNLINK");
	}
	o->facts = in;
	o->type = NAT_FILES__FILE_TYPE__INOTIFY;
	return 0;
}

static void fill_watch(const struct native_open *o, const struct watch *w,
		       NatFiles__InotifyWatch *e, NatFiles__Handle *handle)
{
	nat_files__inotify_watch__init(e);
	nat_files__handle__init(handle);
	handle->bytes = w->bytes;
	handle->type = w->type;
	handle->n_handle = HANDLE_WORDS;
	handle->handle = (uint64_t *)w->handle;
	handle->path = (char *)w->path;
	e->id = o->id;
	e->i_ino = w->ino;
	e->mask = w->mask;
	e->ignored_mask = w->ignored_mask;
	e->s_dev = w->dev;
	e->wd = (uint32_t)w->wd;
	e->f_handle = handle;
}

int inotify_put(struct native_files *f, struct native_open *o, NatFiles__Fown *fown)
{
	const struct inotify *in = o->facts;
	_cleanup_free_ NatFiles__InotifyWatch *watches = calloc(in->count + 1, sizeof(*watches));
	_cleanup_free_ NatFiles__InotifyWatch **list = calloc(in->count + 1, sizeof(*list));
	_cleanup_free_ NatFiles__Handle *handles = calloc(in->count + 1, sizeof(*handles));
	NatFiles__File file = NAT_FILES__FILE__INIT;
	NatFiles__Inotify e = NAT_FILES__INOTIFY__INIT;

	if (!watches || !list || !handles)
		return -ENOMEM;
	for (size_t i = 0; i < in->count; i++) {
		fill_watch(o, &in->watches[i], &watches[i], &handles[i]);
		list[i] = &watches[i];
	}
	e.id = o->id;
	e.flags = open_flags(o);
	e.fown = fown;
	e.n_wd = in->count;
	e.wd = list;
	file.ify = &e;
	files_put(f, o, &file);
	return 0;
}
