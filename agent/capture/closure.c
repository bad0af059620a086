// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/syscall.h>

#include "agent/capture/internal.h"
#include "agent/util/io.h"

enum { CLOSURE_LINKS_MAX = 40, CLOSURE_DEPTH_MAX = 200 };

int lower_open_root(struct lower *l)
{
	l->root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	return l->root < 0 ? -errno : 0;
}

void lower_close(struct lower *l)
{
	close_fdp(&l->root);
	l->root = -1;
}

static int open_beneath(int dirfd, const char *path, int flags)
{
	struct open_how how = { .flags = (uint64_t)(flags | O_CLOEXEC | O_NOFOLLOW),
				.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS |
					   RESOLVE_NO_MAGICLINKS };
	int fd = (int)syscall(SYS_openat2, dirfd, path, &how, sizeof(how));

	return fd < 0 ? -errno : fd;
}

int lower_open(const struct lower *l, const char *path, int flags)
{
	while (*path == '/')
		path++;
	return open_beneath(l->root, *path ? path : ".", flags);
}

/* Adds what fd (O_PATH) is. *ret_entry is NULL if it was in, or is nothing that travels. */
static int add_found(struct closure *c, const char *path, int fd, const struct stat *st,
		     struct entry **ret_entry)
{
	struct entry *e = NULL;
	int r;

	*ret_entry = NULL;
	while (*path == '/')
		path++;
	if (!*path || !(S_ISREG(st->st_mode) || S_ISDIR(st->st_mode) || S_ISLNK(st->st_mode)))
		return 0;
	r = entries_add(c->entries, SNAPSHOT_CLOSURE, path, st, &e);
	if (r == -EEXIST)
		return 0;
	if (r == 0 && S_ISLNK(st->st_mode))
		r = entry_read_link(e, fd, "");
	else if (r == 0)
		r = entry_read_xattrs(e, fd, "");
	if (r == 0 && S_ISREG(st->st_mode)) {
		struct timespec now;

		clock_gettime(CLOCK_REALTIME, &now);
		e->unsettled = capture_is_recent(&st->st_ctim, &now);
		e->content = !c->copy_all && past_find(c->past, e->kind, e->path, st) ?
				     CONTENT_UNCHANGED :
				     CONTENT_LOWER;
	}
	*ret_entry = r == 0 ? e : NULL;
	return r;
}

static bool stays_behind(const struct closure *c, const char *path)
{
	return capture_is_below(path, c->state_dir) || mounts_excludes(c->proc, path);
}

/* Replaces path by link target + the rest of the way. */
static int follow(char path[PATH_MAX], size_t parent, const char *target, const char *rest)
{
	char next[PATH_MAX];
	int n = target[0] == '/' ?
			snprintf(next, sizeof(next), "%s%s", target, rest) :
			snprintf(next, sizeof(next), "%.*s/%s%s", (int)parent, path, target, rest);

	if (n >= PATH_MAX)
		return -ENAMETOOLONG;
	memcpy(path, next, (size_t)n + 1);
	return 0;
}

enum step { STEP_ON, STEP_LINK, STEP_STOP };

/* Adds the first `length` bytes of path. STEP_LINK: target is where it leads. */
static int add_step(struct closure *c, const char *path, size_t length, bool last,
		    char target[PATH_MAX], enum step *ret_step)
{
	char prefix[PATH_MAX];
	_cleanup_close_ int fd = -1;
	struct entry *e;
	struct stat st;
	int r;

	memcpy(prefix, path, length);
	prefix[length] = '\0';
	*ret_step = STEP_STOP;
	if (stays_behind(c, prefix))
		return 0;
	fd = lower_open(c->lower, prefix, O_PATH);
	if (fd < 0)
		return fd == -ENOENT || fd == -ENOTDIR || fd == -ELOOP ? 0 : fd;
	if (fstat(fd, &st) < 0)
		return -errno;
	r = add_found(c, prefix, fd, &st, &e);
	if (r < 0)
		return r;
	if (S_ISLNK(st.st_mode)) {
		ssize_t n = readlinkat(fd, "", target, PATH_MAX - 1);

		if (n < 0)
			return -errno;
		target[n] = '\0';
		*ret_step = STEP_LINK;
	} else if (S_ISDIR(st.st_mode) && !last) {
		*ret_step = STEP_ON;
	}
	return 0;
}

/* Removes ".", ".." and empty components; what a symlink on the way meant is lost already. */
static void normalize(char *path)
{
	char *to = path;

	for (char *from = path; *from;) {
		size_t n;

		while (*from == '/')
			from++;
		n = strcspn(from, "/");
		if (n == 0 || (n == 1 && from[0] == '.')) {
			from += n;
		} else if (n == 2 && from[0] == '.' && from[1] == '.') {
			while (to > path && *--to != '/')
				;
			from += n;
		} else {
			*to++ = '/';
			memmove(to, from, n);
			to += n;
			from += n;
		}
	}
	*to = '\0';
}

int closure_add(struct closure *c, const char *path)
{
	char way[PATH_MAX], target[PATH_MAX];

	if (path[0] != '/' || snprintf(way, sizeof(way), "%s", path) >= (int)sizeof(way))
		return -EINVAL;
	for (int links = 0; links < CLOSURE_LINKS_MAX; links++) {
		size_t parent = 0, at = 0;
		enum step step = STEP_STOP;

		normalize(way);
		while (way[at]) {
			int r;

			parent = at;
			at += 1 + strcspn(way + at + 1, "/");
			r = add_step(c, way, at, !way[at], target, &step);
			if (r < 0)
				return r;
			if (step != STEP_ON)
				break;
		}
		if (step != STEP_LINK)
			return 0;
		int r = follow(way, parent, target, way + at);

		if (r < 0)
			return r;
	}
	return 0;
}

struct tree {
	struct closure *c;
	uint64_t *bytes, max_bytes;
	uint64_t child_bytes, biggest_bytes; /* of the folders right below the top */
	char biggest[NAME_MAX + 1];
	char path[PATH_MAX];
};

/* Rounded up: "0 MiB" would be no help. */
static unsigned long long in_mib(uint64_t bytes)
{
	return (bytes + (1 << 20) - 1) >> 20;
}

static int too_big(struct tree *t, const char *top)
{
	return capture_fail(
		t->c->reason, -EFBIG,
		"%s holds more than %llu MiB of files to carry along, most of them in "
		"%s/%s (%llu MiB): name what the job reads with --input and submit with "
		"--no-cwd, or raise closure_max",
		top, in_mib(t->max_bytes), top, t->biggest, in_mib(t->biggest_bytes));
}

static int add_item(struct tree *t, int dirfd, const char *name, struct stat *st)
{
	struct entry *e;
	_cleanup_close_ int fd = openat(dirfd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	int r;

	if (fd < 0 || fstat(fd, st) < 0)
		return errno == ENOENT ? 1 : -errno;
	r = add_found(t->c, t->path, fd, st, &e);
	if (r == 0 && e && S_ISREG(st->st_mode)) {
		*t->bytes += (uint64_t)st->st_size;
		t->child_bytes += (uint64_t)st->st_size;
	}
	return r;
}

static void end_child(struct tree *t, const char *name)
{
	if (t->child_bytes >= t->biggest_bytes) {
		t->biggest_bytes = t->child_bytes;
		snprintf(t->biggest, sizeof(t->biggest), "%s", name);
	}
	t->child_bytes = 0;
}

/* Takes over fd. Goes on to twice the limit, so that the biggest folder is named well. */
static int add_folder(struct tree *t, int fd, dev_t dev, int depth)
{
	_cleanup_closedir_ DIR *dir = fdopendir(fd);
	size_t length = strlen(t->path);
	struct dirent *item;
	int r = 0;

	if (!dir) {
		r = -errno;
		close(fd);
		return r;
	}
	if (depth > CLOSURE_DEPTH_MAX)
		return -ENAMETOOLONG;
	while (r == 0 && *t->bytes / 2 <= t->max_bytes && (errno = 0, item = readdir(dir))) {
		struct stat st;

		if (!strcmp(item->d_name, ".") || !strcmp(item->d_name, ".."))
			continue;
		if (snprintf(t->path + length, PATH_MAX - length, "/%s", item->d_name) >=
		    (int)(PATH_MAX - length))
			return -ENAMETOOLONG;
		r = capture_is_below(t->path, t->c->state_dir) ?
			    1 :
			    add_item(t, dirfd(dir), item->d_name, &st);
		if (r == 0 && S_ISDIR(st.st_mode) &&
		    (st.st_dev == dev || !stays_behind(t->c, t->path))) {
			int child = openat(dirfd(dir), item->d_name,
					   O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

			r = child < 0 ? -errno : add_folder(t, child, st.st_dev, depth + 1);
		}
		r = r > 0 || r == -ENOENT ? 0 : r;
		if (depth == 0)
			end_child(t, item->d_name);
		t->path[length] = '\0';
	}
	return r;
}

int closure_add_tree(struct closure *c, const char *path, uint64_t *bytes, uint64_t max_bytes)
{
	struct tree t = { .c = c, .bytes = bytes, .max_bytes = max_bytes };
	char real[PATH_MAX];
	struct stat st;
	int fd, r;

	r = closure_add(c, path);
	if (r < 0)
		return capture_fail(c->reason, r, "%s cannot be carried along", path);
	/* The way to it may have symlinks, which closure_add() has just recorded. */
	if (!realpath(path, real) || stays_behind(c, real))
		return 0;
	fd = lower_open(c->lower, real, O_RDONLY | O_NONBLOCK);
	if (fd < 0 || fstat(fd, &st) < 0)
		return capture_fail(c->reason, fd < 0 ? fd : -errno, "%s cannot be read", path);
	if (!S_ISDIR(st.st_mode)) {
		close(fd);
		*bytes += S_ISREG(st.st_mode) ? (uint64_t)st.st_size : 0;
	} else {
		snprintf(t.path, sizeof(t.path), "%s", real);
		r = add_folder(&t, fd, st.st_dev, 0);
	}
	if (r == -EFBIG)
		return capture_fail(c->reason, r,
				    "%s holds more than %d files to carry along: name "
				    "what the job reads with --input and submit with --no-cwd",
				    path, CAPTURE_FILES_MAX);
	if (r < 0)
		return capture_fail(c->reason, r, "%s cannot be read", t.path);
	return *bytes > max_bytes ? too_big(&t, path) : 0;
}

int closure_add_list(struct closure *c)
{
	_cleanup_free_ char *text = NULL;
	char path[PATH_MAX];
	size_t size;
	int r;

	if (snprintf(path, sizeof(path), "%s/closure.list", c->state_dir) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	r = read_file_at(AT_FDCWD, path, CLOSURE_LIST_MAX, &text, &size);
	if (r < 0)
		return r;
	for (const char *p = text; p < text + size; p += strlen(p) + 1) {
		r = closure_add(c, p);
		if (r < 0 && r != -EINVAL)
			return r;
	}
	return 0;
}

static bool has_entry(const struct closure *c, const char *folder, const char *target)
{
	char path[PATH_MAX];

	if (snprintf(path, sizeof(path), "%s/%s", target[0] == '/' ? "" : folder, target) >=
	    (int)sizeof(path))
		return false;
	normalize(path);
	return path[0] && paths_find(&c->entries->index, SNAPSHOT_CLOSURE, path + 1, NULL);
}

/* Links in folder that name something in the closure: libz.so.1 -> libz.so.1.2, lib64 -> usr/lib64. */
static int add_links(struct closure *c, const char *folder)
{
	int fd = lower_open(c->lower, folder, O_RDONLY | O_DIRECTORY);
	_cleanup_closedir_ DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *item;

	if (!dir)
		return 0;
	while ((item = readdir(dir))) {
		char target[PATH_MAX], path[PATH_MAX];
		ssize_t n;
		int r;

		if (item->d_type != DT_LNK)
			continue;
		n = readlinkat(dirfd(dir), item->d_name, target, sizeof(target) - 1);
		if (n < 0)
			continue;
		target[n] = '\0';
		if (!has_entry(c, folder, target) || snprintf(path, sizeof(path), "%s/%s", folder,
							      item->d_name) >= (int)sizeof(path))
			continue;
		r = closure_add(c, path);
		if (r < 0)
			return r;
	}
	return 0;
}

/* Once for each folder. seen owns its names. */
static int add_links_once(struct closure *c, struct paths *seen, const char *folder, size_t length)
{
	_cleanup_free_ char *name = strndup(folder, length);
	int r;

	if (!name)
		return -ENOMEM;
	r = paths_add(seen, 0, name, 0);
	if (r < 0)
		return r == -EEXIST ? 0 : r;
	return add_links(c, take_ptr(name));
}

int closure_add_view(struct closure *c, const struct proc_view *view)
{
	struct paths seen = { 0 };
	int r = 0;

	for (size_t i = 0; r == 0 && i < view->use_count; i++)
		r = closure_add(c, view->uses[i].path);
	for (size_t i = 0; r == 0 && i < view->use_count; i++) {
		const char *path = view->uses[i].path, *slash = strrchr(path, '/');

		if (!view->uses[i].flags && !stays_behind(c, path))
			r = add_links_once(c, &seen, path, (size_t)(slash - path));
	}
	if (r == 0)
		r = add_links_once(c, &seen, "", 0);
	for (size_t i = 0; i < seen.room; i++)
		free((char *)seen.slots[i].path);
	paths_deinit(&seen);
	return r;
}
