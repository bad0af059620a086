// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Does a path lead to the file it was read from? Not if its mount is none of the job's (a message
 * queue, a mount that was detached), nor if another mount lies over it. Looked at when the job runs
 * again: mounts seldom change, and reading them all is slow.
 */
#include "agent/native/reg_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>

enum { MOUNTS_MAX = 16384, MOUNT_DEPTH_MAX = 64 };

struct mount {
	uint32_t id, parent;
	char *point; /* as written there, with escapes */
};

struct mount_table {
	struct mount *v;
	size_t count;
};

static void table_deinit(struct mount_table *t)
{
	for (size_t i = 0; i < t->count; i++)
		free(t->v[i].point);
	free(t->v);
}

static int add_mount(struct mount_table *t, const char *line, size_t *room)
{
	struct mount *m;
	int start = 0, end = 0;

	if (t->count == *room) {
		*room = *room ? 2 * *room : 64;
		m = *room <= MOUNTS_MAX ? reallocarray(t->v, *room, sizeof(*m)) : NULL;
		if (!m)
			return -ENOMEM;
		t->v = m;
	}
	m = &t->v[t->count];
	if (sscanf(line, "%u %u %*s %*s %n%*s%n", &m->id, &m->parent, &start, &end) < 2 ||
	    end <= start)
		return -EBADMSG;
	m->point = strndup(line + start, (size_t)(end - start));
	if (!m->point)
		return -ENOMEM;
	t->count++;
	return 0;
}

/* -ENOENT: the process has ended. */
static int read_mounts(pid_t pid, struct mount_table *t)
{
	_cleanup_fclose_ FILE *file = NULL;
	_cleanup_free_ char *line = NULL;
	size_t size = 0, room = 0;
	char path[64];
	int r = 0;

	snprintf(path, sizeof(path), "/proc/%d/mountinfo", pid);
	file = fopen(path, "re");
	if (!file)
		return -ENOENT;
	while (r == 0 && getline(&line, &size, file) > 0)
		r = add_mount(t, line, &room);
	if (r == 0 && (ferror(file) || t->count == 0))
		r = -ENOENT;
	return r;
}

static const struct mount *find_mount(const struct mount_table *t, uint32_t id)
{
	for (size_t i = 0; i < t->count; i++)
		if (t->v[i].id == id)
			return &t->v[i];
	return NULL;
}

/* Mounted later, on a folder above: earlier, it would be the parent. */
static bool lies_above(const struct mount *top, const struct mount *m)
{
	size_t length = strcmp(top->point, "/") != 0 ? strlen(top->point) : 0;

	return top != m && top->parent == m->parent && strcmp(top->point, m->point) != 0 &&
	       !strncmp(top->point, m->point, length) && m->point[length] == '/';
}

static bool is_hidden(const struct mount_table *t, const struct mount *m)
{
	for (size_t i = 0; i < t->count; i++)
		if (&t->v[i] != m && t->v[i].parent == m->id && !strcmp(t->v[i].point, m->point))
			return true;
	for (int depth = 0; m && depth < MOUNT_DEPTH_MAX; depth++) {
		for (size_t i = 0; i < t->count; i++)
			if (lies_above(&t->v[i], m))
				return true;
		m = m->parent == m->id ? NULL : find_mount(t, m->parent);
	}
	return false;
}

/* Opened in another mount namespace, as standard output often is: the same file here? */
static bool is_found_by_path(const struct native_open *o)
{
	char path[PATH_MAX + 64];
	struct stat st;

	if (strcmp(o->task->state->root, "/") != 0)
		return false;
	snprintf(path, sizeof(path), "/proc/%d/root%s", o->task->pid, o->path);
	return lstat(path, &st) == 0 && st.st_ino == o->fd->ino &&
	       (major(st.st_dev) << 20 | minor(st.st_dev)) == o->fd->dev;
}

static int check_open(struct native_files *f, const struct mount_table *t,
		      const struct native_open *o)
{
	const struct mount *m = find_mount(t, o->fd->mnt_id);

	if (!m && is_found_by_path(o))
		return 0;
	if (!m)
		return files_refuse(f, o, "lies on a mount that the job cannot reach");
	if (is_hidden(t, m))
		return files_refuse(f, o, "lies below another mount");
	return 0;
}

int reg_check_mounts(struct native_files *f)
{
	_cleanup_(table_deinit) struct mount_table t = { 0 };
	uint32_t good = 0;
	bool read = false;
	int r = 0;

	for (size_t i = 0; r == 0 && i < f->open_count; i++) {
		const struct native_open *o = &f->opens[i];

		/* Most files lie on the same few mounts. */
		if (o->path[0] != '/' || (o->area != &area_reg && o->area != &area_pipes) ||
		    (read && o->fd->mnt_id == good))
			continue;
		for (size_t k = 0; !read && k < f->tree->task_count; k++) {
			r = f->tree->tasks[k].zombie ? -ENOENT :
						       read_mounts(f->tree->tasks[k].pid, &t);
			read = r == 0;
			if (r < 0 && r != -ENOENT)
				return r;
		}
		/* The whole job has ended meanwhile. */
		if (!read)
			return 0;
		r = check_open(f, &t, o);
		if (find_mount(&t, o->fd->mnt_id))
			good = o->fd->mnt_id;
	}
	return r;
}
