// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/native/reg_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>

enum {
	GHOST_BUFFER = 256 << 10,
	GHOST_CHUNK_MAX = 1 << 30, /* bytes of one record of the image */
};

bool reg_is_deleted(const char *path)
{
	size_t length = strlen(path), suffix = sizeof(REG_DELETED) - 1;

	return length > suffix && !strcmp(path + length - suffix, REG_DELETED);
}

static int refuse(struct native_files *f, const struct reg_source *source, const char *seen,
		  const char *why)
{
	if (source->open)
		return files_refuse(f, source->open, "%s", why);
	return native_fail(f->tree, -EOPNOTSUPP, "%s (%.200s) %s", source->link, seen, why);
}

static int stat_source(const struct reg_source *source, struct stat *ret_st)
{
	_cleanup_close_ int fd = open(source->link, O_PATH | O_CLOEXEC);

	if (fd < 0 || fstat(fd, ret_st) < 0)
		return -errno;
	return 0;
}

static struct reg_ghost *find_ghost(const struct reg_area *a, const struct stat *st)
{
	struct reg_ghost *g = a->ghosts;

	while (g && (g->st.st_dev != st->st_dev || g->st.st_ino != st->st_ino))
		g = g->next;
	return g;
}

bool reg_is_ghost(const struct native_files *f, uint32_t dev, uint64_t ino)
{
	const struct reg_area *a = f->area_facts[AREA_REG];

	for (const struct reg_ghost *g = a ? a->ghosts : NULL; g; g = g->next)
		if (g->st.st_ino == ino && (major(g->st.st_dev) << 20 | minor(g->st.st_dev)) == dev)
			return true;
	return false;
}

static int open_content(const char *link)
{
	int fd = open(link, O_RDONLY | O_CLOEXEC | O_NOATIME);

	/* Some file systems do not let even root go without. */
	if (fd < 0 && errno == EPERM)
		fd = open(link, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static int nameless_file(int images)
{
	static const char name[] = "ghost.tmp";
	int fd = openat(images, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

	if (fd < 0) {
		fd = openat(images, name, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
		if (fd >= 0)
			unlinkat(images, name, 0);
	}
	return fd < 0 ? -errno : fd;
}

/* The next piece with data at or after *at; *ret_length 0: none. */
static int next_data(int fd, off_t size, off_t *at, off_t *ret_length)
{
	off_t from = lseek(fd, *at, SEEK_DATA), to;

	*ret_length = 0;
	if (from < 0 && errno == ENXIO)
		return 0;
	to = from < 0 ? -1 : lseek(fd, from, SEEK_HOLE);
	if (from < 0 || to < 0) {
		if (errno != EINVAL)
			return -errno;
		/* A file system that knows of no holes. */
		from = *at;
		to = size;
	}
	if (to > size)
		to = size;
	if (from >= to)
		return 0;
	*at = from;
	*ret_length = to - from;
	return 0;
}

static int copy_piece(int in, int out, off_t at, off_t length)
{
	off_t from = at, to = at;
	bool plain = false;

	while (length > 0) {
		ssize_t n = -1;

		if (!plain)
			n = copy_file_range(in, &from, out, &to, (size_t)length, 0);
		if (n <= 0) {
			plain = true;
			if (lseek(out, to, SEEK_SET) < 0)
				return -errno;
			n = sendfile(out, in, &from, (size_t)length);
			to = from;
		}
		if (n < 0)
			return -errno;
		/* Shorter than it was: only somebody outside of the job can do that. */
		if (n == 0)
			return -EIO;
		length -= n;
	}
	return 0;
}

static int copy_content(int in, int out, off_t size)
{
	off_t at = 0, length;
	int r;

	if (ioctl(out, FICLONE, in) == 0)
		return 0;
	if (ftruncate(out, size) < 0)
		return -errno;
	for (;;) {
		r = next_data(in, size, &at, &length);
		if (r < 0 || length == 0)
			return r;
		r = copy_piece(in, out, at, length);
		if (r < 0)
			return r;
		at += length;
	}
}

int reg_ghost_copy(struct native_files *f, struct reg_ghost *g, const char *link)
{
	_cleanup_close_ int copy = -1;
	int r;

	if (g->copy >= 0 || !S_ISREG(g->st.st_mode))
		return 0;
	if (g->source < 0) {
		g->source = open_content(link);
		if (g->source < 0)
			return native_fail(f->tree, g->source, "%s: %s", link,
					   strerror(-g->source));
	}
	copy = nameless_file(f->tree->images);
	r = copy < 0 ? copy : copy_content(g->source, copy, g->st.st_size);
	if (r < 0)
		return native_fail(f->tree, r, "copy of the deleted file %s (%llu bytes): %s", link,
				   (unsigned long long)g->st.st_size, strerror(-r));
	close_fdp(&g->source);
	g->source = -1;
	g->copy = take_fd(copy);
	return 0;
}

static int add_ghost(struct native_files *f, const struct reg_source *source, const struct stat *st,
		     struct reg_ghost **ret_ghost)
{
	struct reg_ghost *g;
	struct reg_area *a;
	int r = reg_area_get(f, &a);

	if (r < 0)
		return r;
	g = find_ghost(a, st);
	if (!g) {
		g = arena_alloc(f->tree->arena, sizeof(*g));
		if (!g)
			return -ENOMEM;
		g->id = a->next_ghost++;
		g->st = *st;
		g->source = g->copy = -1;
		g->next = a->ghosts;
		a->ghosts = g;
	}
	if (source->writable)
		r = reg_ghost_copy(f, g, source->link);
	else if (S_ISREG(st->st_mode) && g->source < 0 && g->copy < 0) {
		g->source = open_content(source->link);
		if (g->source < 0)
			r = native_fail(f->tree, g->source, "%s: %s", source->link,
					strerror(-g->source));
	}
	*ret_ghost = g;
	return r;
}

static int copy_string(struct native_files *f, const char *text, size_t length,
		       const char **ret_copy)
{
	char *copy = arena_alloc(f->tree->arena, length + 1);

	if (!copy)
		return -ENOMEM;
	memcpy(copy, text, length);
	*ret_copy = copy;
	return 0;
}

static bool is_same(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* Another name in the same folder: the file was linked there before its first name went. */
static int scan_folder(int root, const char *path, const struct stat *st, char name[NAME_MAX + 1])
{
	_cleanup_closedir_ DIR *dir = NULL;
	_cleanup_close_ int fd = -1;
	char folder[PATH_MAX];
	struct dirent *e;
	struct stat found;
	size_t length = (size_t)(strrchr(path, '/') - path);

	snprintf(folder, sizeof(folder), "./%.*s", (int)length, path);
	fd = openat(root, folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	dir = fdopendir(fd);
	if (!dir)
		return -errno;
	(void)take_fd(fd);
	for (int i = 0; i < REG_SCAN_MAX && (e = readdir(dir)) != NULL; i++) {
		if (e->d_ino != st->st_ino ||
		    fstatat(dirfd(dir), e->d_name, &found, AT_SYMLINK_NOFOLLOW) < 0 ||
		    !is_same(&found, st))
			continue;
		snprintf(name, NAME_MAX + 1, "%s", e->d_name);
		return 0;
	}
	return -ENOENT;
}

/* It still has names: find one, since a copy would no longer be the same file as those. */
static int other_name(struct native_files *f, const struct reg_source *source, const char *seen,
		      const struct stat *st, const char **ret_path)
{
	size_t length = strlen(seen) - (sizeof(REG_DELETED) - 1);
	char name[NAME_MAX + 1], path[PATH_MAX], link[32];
	_cleanup_close_ int root = -1;
	struct stat found;

	for (size_t i = 0; source->open && i < f->open_count; i++) {
		const struct native_open *o = &f->opens[i];

		if (o->fd->dev == source->open->fd->dev && o->fd->ino == source->open->fd->ino &&
		    o->path[0] == '/' && !reg_is_deleted(o->path)) {
			*ret_path = o->path;
			return 0;
		}
	}
	if (strcmp(source->task->state->root, "/") != 0 || length >= sizeof(path))
		return -ENOENT;
	snprintf(link, sizeof(link), "/proc/%d/root", source->task->pid);
	root = open(link, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (root < 0)
		return -errno;
	/* A name that just happens to end like this. */
	if (fstatat(root, seen + 1, &found, AT_SYMLINK_NOFOLLOW) == 0 && is_same(&found, st))
		return copy_string(f, seen, strlen(seen), ret_path);
	snprintf(path, sizeof(path), "%.*s", (int)length, seen);
	if (scan_folder(root, path, st, name) < 0)
		return -ENOENT;
	length = (size_t)(strrchr(path, '/') - path);
	if (length + strlen(name) + 2 > sizeof(path))
		return -ENOENT;
	snprintf(path + length, sizeof(path) - length, "/%s", name);
	return copy_string(f, path, strlen(path), ret_path);
}

int reg_lost_name(struct native_files *f, const struct reg_source *source, const char *seen,
		  struct reg_name *ret_name)
{
	struct reg_name name = { 0 };
	struct stat st;
	int r;

	if (!strncmp(seen, "/proc/", 6))
		return refuse(f, source, seen, "is about a process that has ended");
	r = stat_source(source, &st);
	if (r < 0)
		return native_fail(f->tree, r, "%s: %s", source->link, strerror(-r));
	/* On an overlay only the record knows that the last name is gone. */
	if (st.st_nlink > 0 && !(source->open && source->nlink == 0) && !S_ISDIR(st.st_mode)) {
		r = other_name(f, source, seen, &st, &ret_name->path);
		if (r == -ENOENT)
			return refuse(f, source, seen,
				      "was deleted but has another name elsewhere");
		return r;
	}
	r = copy_string(f, seen, strlen(seen) - (sizeof(REG_DELETED) - 1), &name.path);
	if (r < 0)
		return r;
	/* Terminals come and go with their master, not with a name. */
	if (strncmp(seen, "/dev/pts/", 9) != 0) {
		if (S_ISLNK(st.st_mode) || S_ISBLK(st.st_mode) || S_ISSOCK(st.st_mode))
			return refuse(f, source, seen, "was deleted");
		r = add_ghost(f, source, &st, &name.ghost);
		if (r < 0)
			return r;
	}
	*ret_name = name;
	return 0;
}

int reg_add_remap(struct native_files *f, uint32_t file_id, const struct reg_ghost *ghost)
{
	struct reg_remap *remap = arena_alloc(f->tree->arena, sizeof(*remap));
	struct reg_area *a;
	int r = remap ? reg_area_get(f, &a) : -ENOMEM;

	if (r < 0)
		return r;
	remap->file_id = file_id;
	remap->ghost_id = ghost->id;
	remap->next = a->remaps;
	a->remaps = remap;
	return 0;
}

static int write_content(struct img *img, int fd, off_t size)
{
	_cleanup_free_ uint8_t *buffer = malloc(GHOST_BUFFER);
	off_t at = 0, length;
	int r;

	if (!buffer)
		return -ENOMEM;
	for (;;) {
		NatFiles__GhostChunk chunk = NAT_FILES__GHOST_CHUNK__INIT;

		r = next_data(fd, size, &at, &length);
		if (r < 0 || length == 0)
			return r;
		if (length > GHOST_CHUNK_MAX)
			length = GHOST_CHUNK_MAX;
		chunk.off = (uint64_t)at;
		chunk.len = (uint64_t)length;
		img_put(img, &chunk.base);
		while (length > 0) {
			size_t n = length < GHOST_BUFFER ? (size_t)length : GHOST_BUFFER;
			ssize_t got = pread(fd, buffer, n, at);

			if (got <= 0)
				return got < 0 ? -errno : -EIO;
			img_put_raw(img, buffer, (size_t)got);
			at += got;
			length -= got;
		}
	}
}

/* Whoever could write to it is outside of the job. */
static bool has_changed(const struct reg_ghost *g)
{
	struct stat st;

	return fstat(g->source, &st) < 0 || st.st_size != g->st.st_size ||
	       st.st_mtim.tv_sec != g->st.st_mtim.tv_sec ||
	       st.st_mtim.tv_nsec != g->st.st_mtim.tv_nsec;
}

static void put_ghost(struct img *img, const struct reg_ghost *g)
{
	NatFiles__Timeval atim = NAT_FILES__TIMEVAL__INIT, mtim = NAT_FILES__TIMEVAL__INIT;
	NatFiles__Ghost e = NAT_FILES__GHOST__INIT;

	e.uid = g->st.st_uid;
	e.gid = g->st.st_gid;
	e.mode = g->st.st_mode;
	e.has_dev = e.has_ino = true;
	e.dev = major(g->st.st_dev) << 20 | minor(g->st.st_dev);
	e.ino = g->st.st_ino;
	atim.tv_sec = (uint64_t)g->st.st_atim.tv_sec;
	atim.tv_usec = (uint64_t)g->st.st_atim.tv_nsec / 1000;
	mtim.tv_sec = (uint64_t)g->st.st_mtim.tv_sec;
	mtim.tv_usec = (uint64_t)g->st.st_mtim.tv_nsec / 1000;
	e.atim = &atim;
	e.mtim = &mtim;
	if (S_ISCHR(g->st.st_mode)) {
		e.has_rdev = true;
		e.rdev = (uint32_t)g->st.st_rdev;
	}
	if (S_ISREG(g->st.st_mode)) {
		e.has_chunks = e.chunks = true;
		e.has_size = true;
		e.size = (uint64_t)g->st.st_size;
	}
	img_put(img, &e.base);
}

static int write_ghost(struct native_files *f, struct reg_ghost *g)
{
	int fd = g->copy >= 0 ? g->copy : g->source, r, closed;
	struct img *img;
	char name[32];

	snprintf(name, sizeof(name), "ghost-file-%x", g->id);
	r = img_create(f->tree->images, name, &img);
	if (r < 0)
		return r;
	put_ghost(img, g);
	if (S_ISREG(g->st.st_mode))
		r = write_content(img, fd, g->st.st_size);
	if (r == 0 && g->source >= 0 && has_changed(g))
		r = native_fail(f->tree, -EBUSY, "a deleted file changed while it was copied");
	closed = img_close(img);
	return r < 0 ? r : closed;
}

int reg_write_ghosts(struct native_files *f)
{
	struct reg_area *a = f->area_facts[AREA_REG];
	struct img *img;
	int r;

	if (!a->remaps)
		return 0;
	r = img_create(f->tree->images, "remap-fpath", &img);
	if (r < 0)
		return r;
	for (const struct reg_remap *m = a->remaps; m; m = m->next) {
		NatFiles__RemapPath e = NAT_FILES__REMAP_PATH__INIT;

		e.orig_id = m->file_id;
		e.remap_id = m->ghost_id;
		e.has_remap_type = true;
		e.remap_type = NAT_FILES__REMAP_TYPE__GHOST;
		img_put(img, &e.base);
	}
	r = img_close(img);
	for (struct reg_ghost *g = a->ghosts; r == 0 && g; g = g->next)
		r = write_ghost(f, g);
	return r;
}

void reg_destroy_ghosts(struct reg_area *a)
{
	for (struct reg_ghost *g = a->ghosts; g; g = g->next) {
		close_fdp(&g->source);
		close_fdp(&g->copy);
		g->source = g->copy = -1;
	}
}
