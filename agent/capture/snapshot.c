// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <string.h>

#include "agent/capture/internal.h"
#include "agent/util/deadlines.h"
#include "agent/util/io.h"

enum { RUNS_MAX = 512 << 20 };
#define IMAGE_BLOCKS_MAX ((uint64_t)1 << 36)

const struct snapshot_info *snapshot_info(const struct snapshot *s)
{
	return &s->info;
}

void snapshot_destroy(struct snapshot *s)
{
	if (!s)
		return;
	if (s->spool >= 0) {
		/* What cannot be removed now goes with the spool folder, which is the caller's. */
		(void)!remove_tree_at(s->spool, "images");
		(void)!remove_tree_at(s->spool, "files");
	}
	close_fdp(&s->images);
	close_fdp(&s->files);
	close_fdp(&s->spool);
	lower_close(&s->lower);
	entries_deinit(&s->entries);
	mounts_deinit(&s->layers);
	free(s->info.meta_json);
	free(s);
}

void snapshot_accept(struct capture *c, const struct snapshot *s)
{
	/* Without memory nothing is remembered, and the next capture copies all. */
	if (past_learn(&c->past, &s->entries) < 0)
		past_deinit(&c->past);
	c->copy_all = false;
	c->native_base = s->native_id;
}

static bool ends_with(const char *text, const char *end)
{
	size_t n = strlen(text), m = strlen(end);

	return n >= m && !strcmp(text + n - m, end);
}

/* Reads pages-N.runs; *ret_runs: the caller frees. */
static int read_runs(const struct snapshot *s, const char *name, struct native_run **ret_runs,
		     size_t *ret_count)
{
	_cleanup_close_ int fd = openat(s->images, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	struct native_run *runs;
	struct stat st;
	int r;

	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode) || st.st_size % (off_t)sizeof(*runs) || st.st_size > RUNS_MAX)
		return -EBADMSG;
	runs = malloc((size_t)st.st_size + 1);
	if (!runs)
		return -ENOMEM;
	r = pread_full(fd, runs, (size_t)st.st_size, 0);
	if (r < 0) {
		free(runs);
		return r;
	}
	*ret_runs = runs;
	*ret_count = (size_t)st.st_size / sizeof(*runs);
	return 0;
}

/* pages-N.runs stands for pages-N.img, which is nowhere as a whole. */
static int add_runs(struct snapshot *s, const char *name)
{
	char image[NAME_MAX + 1];
	_cleanup_free_ struct native_run *runs = NULL;
	struct stat st = { .st_mode = S_IFREG | 0600, .st_nlink = 1 };
	struct entry *e;
	uint64_t blocks = 0;
	size_t count;
	int r = read_runs(s, name, &runs, &count);

	if (r < 0)
		return r;
	for (size_t i = 0; i < count; i++) {
		if (runs[i].count > IMAGE_BLOCKS_MAX || blocks > IMAGE_BLOCKS_MAX)
			return -EBADMSG;
		blocks += runs[i].count;
	}
	snprintf(image, sizeof(image), "%.*s.img", (int)(strlen(name) - strlen(".runs")), name);
	st.st_size = (off_t)(blocks * NATIVE_PAGE);
	st.st_mtim = s->freeze;
	r = entries_add(&s->entries, SNAPSHOT_IMAGE, image, &st, &e);
	if (r < 0)
		return r;
	e->content = CONTENT_RUNS;
	s->info.mem_bytes += (uint64_t)st.st_size;
	return 0;
}

int snapshot_add_images(struct snapshot *s)
{
	int fd = openat(s->images, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_closedir_ DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *item;

	if (!dir) {
		int r = -errno;

		close_fdp(&fd);
		return r;
	}
	while ((item = readdir(dir))) {
		struct entry *e;
		struct stat st;
		int r;

		/* Logs and statistics are of this run only; all that CRIU reads is *.img. */
		if (ends_with(item->d_name, ".runs")) {
			r = add_runs(s, item->d_name);
			if (r < 0)
				return r;
			continue;
		}
		if (!ends_with(item->d_name, ".img") && strcmp(item->d_name, DEADLINES_FILE))
			continue;
		if (fstatat(s->images, item->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
			return -errno;
		if (!S_ISREG(st.st_mode))
			continue;
		r = entries_add(&s->entries, SNAPSHOT_IMAGE, item->d_name, &st, &e);
		if (r < 0)
			return r;
		e->content = CONTENT_IMAGE;
		if (!strncmp(item->d_name, "pages-", 6))
			s->info.mem_bytes += (uint64_t)st.st_size;
	}
	return 0;
}

static int put(struct json_object *o, const char *key, struct json_object *value)
{
	if (!value)
		return -ENOMEM;
	if (json_object_object_add(o, key, value) < 0) {
		json_object_put(value);
		return -ENOMEM;
	}
	return 0;
}

static int put_list_item(struct json_object *list, struct json_object *value)
{
	if (!value)
		return -ENOMEM;
	if (json_object_array_add(list, value) < 0) {
		json_object_put(value);
		return -ENOMEM;
	}
	return 0;
}

static int put_lists(struct json_object *o, const struct snapshot *s, const struct proc_view *view)
{
	struct json_object *pids = json_object_new_array(), *mounts = json_object_new_array();
	int r = put(o, "pids", pids), r2 = put(o, "mounts", mounts);

	r = r < 0 ? r : r2;
	for (size_t i = 0; r == 0 && i < view->inner_count; i++)
		r = put_list_item(pids, json_object_new_int(view->inner[i]));
	for (size_t i = 0; r == 0 && i < s->layers.count; i++) {
		char row[PATH_MAX + 16];

		snprintf(row, sizeof(row), "%u %s", s->layers.v[i].n, s->layers.v[i].path);
		r = put_list_item(mounts, json_object_new_string(row));
	}
	return r;
}

int snapshot_make_meta(struct snapshot *s, const struct proc_view *view, const char *hostname,
		       const char *cwd)
{
	struct json_object *o = json_object_new_object();
	int r = o ? 0 : -ENOMEM;

	if (r == 0 && view->root_inner > 0)
		r = put(o, "root_pid", json_object_new_int(view->root_inner));

	if (r == 0)
		r = put(o, "shell_job", json_object_new_boolean(view->shell_job));
	if (r == 0)
		r = put(o, "hostname", json_object_new_string(hostname));
	if (r == 0)
		r = put(o, "cwd", json_object_new_string(cwd));
	if (r == 0)
		r = put_lists(o, s, view);
	if (r == 0 && view->pins.count)
		r = put(o, "affinity", pins_to_json(&view->pins));
	if (r == 0) {
		const char *text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN);

		s->info.meta_json = text ? strdup(text) : NULL;
		r = s->info.meta_json ? 0 : -ENOMEM;
	}
	json_object_put(o);
	return r;
}

/* Where an upper file of "N/rest" lies now. */
static int live_path(const struct snapshot *s, const char *path, char out[PATH_MAX])
{
	char *rest;
	unsigned long n = strtoul(path, &rest, 10);
	int size;

	if (!s->capture->config.adopted) {
		size = snprintf(out, PATH_MAX, "%s/upper/%s", s->capture->state_dir, path);
		return size < PATH_MAX ? 0 : -ENAMETOOLONG;
	}
	for (size_t i = 0; i < s->layers.count; i++) {
		if (s->layers.v[i].n != n)
			continue;
		size = snprintf(out, PATH_MAX, "%s%s", s->layers.v[i].path, rest);
		return size < PATH_MAX ? 0 : -ENAMETOOLONG;
	}
	return -EINVAL;
}

static bool is_same_state(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
	       a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec &&
	       a->st_ctim.tv_sec == b->st_ctim.tv_sec && a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

/* The frozen instant is over: the file counts only if it is still as it was then. */
static int check_unchanged(struct snapshot *s, const struct entry *e, int fd)
{
	struct stat now;

	if (fstat(fd, &now) == 0 && is_same_state(&now, &e->st))
		return 0;
	s->capture->copy_all = true;
	return -ESTALE;
}

static int open_lower(struct snapshot *s, struct entry *e)
{
	int fd = lower_open(&s->lower, e->path, O_RDONLY | O_NONBLOCK);
	struct timespec now;

	if (fd < 0)
		return fd;
	if (fstat(fd, &e->st) < 0 || !S_ISREG(e->st.st_mode)) {
		close(fd);
		return -ENOENT;
	}
	clock_gettime(CLOCK_REALTIME, &now);
	e->unsettled = capture_is_recent(&e->st.st_ctim, &now);
	return fd;
}

static int open_content(struct snapshot *s, struct entry *e)
{
	char path[PATH_MAX];
	int fd, r;

	switch (e->content) {
	case CONTENT_IMAGE:
		fd = openat(s->images, e->path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
		return fd < 0 ? -errno : fd;
	case CONTENT_RUNS:
		fd = openat(s->images, "pages.new", O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
		return fd < 0 ? -errno : fd;
	case CONTENT_SPOOL:
		snprintf(path, sizeof(path), "%zu", e->spool_index);
		fd = openat(s->files, path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
		return fd < 0 ? -errno : fd;
	case CONTENT_LOWER:
		return open_lower(s, e);
	case CONTENT_STAGED: /* never beyond capture_take() */
		return -ESTALE;
	case CONTENT_LIVE:
	case CONTENT_UNCHANGED:
	case CONTENT_NONE:
		break;
	}
	if (e->kind == SNAPSHOT_CLOSURE)
		return open_lower(s, e);
	r = live_path(s, e->path, path);
	if (r < 0)
		return r;
	fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	r = fd < 0 ? -errno : check_unchanged(s, e, fd);
	if (r < 0) {
		close_fdp(&fd);
		s->capture->copy_all = true;
		return -ESTALE;
	}
	return fd;
}

static bool is_opaque(const struct entry *e)
{
	static const char name[] = "trusted.overlay.opaque";

	return e->xattrs && memmem(e->xattrs, e->xattrs_size, name, sizeof(name));
}

/*
 * What the job wrote or removed in its upper layer hides the lower file of that path; a folder
 * that it removed, replaced or made anew hides all that is below.
 */
static bool is_hidden(const struct snapshot *s, const struct entry *e)
{
	char path[PATH_MAX], upper[PATH_MAX];
	const struct mount_row *row;
	const char *rest;
	size_t at, i;

	if (e->kind != SNAPSHOT_CLOSURE)
		return false;
	snprintf(path, sizeof(path), "/%s", e->path);
	row = mounts_find(&s->layers, path, &rest);
	if (!row || snprintf(upper, sizeof(upper), "%u/%s", row->n, rest) >= (int)sizeof(upper))
		return false;
	for (at = strcspn(upper, "/"); upper[at];) {
		const struct entry *above;
		bool last;

		at += 1 + strcspn(upper + at + 1, "/");
		last = !upper[at];
		upper[at] = '\0';
		if (paths_find(&s->entries.index, SNAPSHOT_UPPER, upper, &i)) {
			above = &s->entries.v[i];
			if (!S_ISDIR(above->st.st_mode) || (!last && is_opaque(above)))
				return true;
		}
		if (!last)
			upper[at] = '/';
	}
	return false;
}

static int give(struct snapshot *s, struct entry *e, bool force_content,
		int (*fn)(void *ctx, const struct snapshot_file *file), void *ctx)
{
	struct snapshot_file file = { .kind = e->kind,
				      .path = e->path,
				      .link_target = e->link_target,
				      .xattrs = e->xattrs,
				      .xattrs_size = e->xattrs_size,
				      .fd = -1 };
	_cleanup_free_ struct native_run *runs = NULL;
	_cleanup_close_ int fd = -1;
	int r;

	if (e->content == CONTENT_RUNS) {
		char name[NAME_MAX + 1];

		snprintf(name, sizeof(name), "%.*s.runs", (int)(strlen(e->path) - strlen(".img")),
			 e->path);
		r = read_runs(s, name, &runs, &file.run_count);
		if (r < 0)
			return r;
		file.runs = runs;
	}
	if (S_ISREG(e->st.st_mode) && (force_content || e->content != CONTENT_UNCHANGED)) {
		fd = open_content(s, e);
		/* A file of the host that went away: nobody can carry it along any more. */
		if (fd == -ENOENT && e->kind == SNAPSHOT_CLOSURE) {
			e->unsettled = true;
			return 0;
		}
		if (fd < 0)
			return fd;
	}
	file.fd = fd;
	file.st = e->st;
	r = fn(ctx, &file);
	if (r == 0 && fd >= 0 && e->content == CONTENT_UNCHANGED && e->kind == SNAPSHOT_UPPER)
		r = check_unchanged(s, e, fd);
	return r;
}

int snapshot_each(struct snapshot *s, bool force_content,
		  int (*fn)(void *ctx, const struct snapshot_file *file), void *ctx)
{
	/* Images first: a restore that unpacks in batches lets its packer learn from the first. */
	for (size_t i = 0; i < 2 * s->entries.count; i++) {
		struct entry *e = &s->entries.v[i % s->entries.count];
		bool images = i < s->entries.count;
		int r;

		if ((e->kind == SNAPSHOT_IMAGE) != images)
			continue;
		if (is_hidden(s, e)) {
			/* The packer does not get it, so its next showing is not "unchanged". */
			e->unsettled = true;
			continue;
		}
		r = give(s, e, force_content, fn, ctx);
		if (r < 0)
			return r;
	}
	return 0;
}
