// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/native/files_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/syscall.h>

enum { FILES_LINK_MAX = 4096 };

/* Asked in this order: the first that matches takes a file. */
static const struct native_area *const areas[] = {
	&area_shm, &area_tty, &area_sockets, &area_pipes, &area_events, &area_reg, &area_locks,
};

uint32_t files_new_id(struct native_files *f)
{
	return f->next_id++;
}

int files_refuse(struct native_files *f, const struct native_open *o, const char *fmt, ...)
{
	char text[NATIVE_REASON_MAX];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return native_fail(f->tree, -EOPNOTSUPP, "descriptor %d of process %d (%.200s) %.200s",
			   o->fd->fd, o->task->inner_pid ? o->task->inner_pid : o->task->pid,
			   o->path, text);
}

static size_t hash_file(const struct native_files *f, uint64_t file)
{
	/* Struct files lie some hundred bytes apart. */
	return (size_t)((file >> 6) * 0x9e3779b97f4a7c15 >> 32) & f->bucket_mask;
}

/* The slot of the file, or the free one where it would be. */
static uint32_t *find_bucket(struct native_files *f, uint64_t file)
{
	size_t i = hash_file(f, file);

	while (f->buckets[i] && f->opens[f->buckets[i] - 1].fd->file != file)
		i = (i + 1) & f->bucket_mask;
	return &f->buckets[i];
}

struct native_open *files_by_file(struct native_files *f, uint64_t file)
{
	uint32_t *bucket = find_bucket(f, file);

	return *bucket ? &f->opens[*bucket - 1] : NULL;
}

struct native_open *files_of_fd(struct native_files *f, const struct native_task *task, int fd)
{
	const uint32_t *opens = f->fd_opens[task - f->tree->tasks];
	size_t low = 0, high = opens ? task->fd_count : 0;

	while (low < high) {
		size_t middle = (low + high) / 2;

		if (task->fds[middle].fd == fd)
			return &f->opens[opens[middle]];
		if (task->fds[middle].fd < fd)
			low = middle + 1;
		else
			high = middle;
	}
	return NULL;
}

bool files_in_tree(const struct native_files *f, pid_t pid)
{
	return tree_find(f->tree, pid) != NULL;
}

static int pidfd_of(struct native_files *f, const struct native_task *task)
{
	int *pidfd = &f->pidfds[task - f->tree->tasks];

	if (*pidfd < 0)
		*pidfd = (int)syscall(SYS_pidfd_open, task->pid, 0);
	return *pidfd < 0 ? -errno : *pidfd;
}

int open_local(struct native_files *f, struct native_open *o, int *ret_fd)
{
	int pidfd;

	if (o->local < 0) {
		pidfd = pidfd_of(f, o->task);
		if (pidfd >= 0)
			o->local = (int)syscall(SYS_pidfd_getfd, pidfd, o->fd->fd, 0);
		if (pidfd < 0 || o->local < 0) {
			int r = pidfd < 0 ? pidfd : -errno;

			return native_fail(f->tree, r, "descriptor %d of process %d: %s", o->fd->fd,
					   o->task->pid, strerror(-r));
		}
	}
	*ret_fd = o->local;
	return 0;
}

void open_local_close(struct native_open *o)
{
	close_fdp(&o->local);
	o->local = -1;
}

int open_fdinfo(struct native_files *f, const struct native_open *o, char *text, size_t size)
{
	_cleanup_close_ int fd = -1;
	char path[64];
	size_t used = 0;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", o->task->pid, o->fd->fd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return native_fail(f->tree, -errno, "%s: %s", path, strerror(errno));
	while ((n = read(fd, text + used, size - 1 - used)) > 0) {
		used += (size_t)n;
		if (used == size - 1)
			return files_refuse(f, o, "has more state than %zu bytes", size);
	}
	if (n < 0)
		return native_fail(f->tree, -errno, "%s: %s", path, strerror(errno));
	text[used] = '\0';
	return 0;
}

uint32_t open_flags(const struct native_open *o)
{
	return o->fd->f_flags & ~(uint32_t)O_CLOEXEC;
}

void open_fown(const struct native_open *o, NatFiles__Fown *fown)
{
	nat_files__fown__init(fown);
	fown->signum = (uint32_t)o->fd->owner_signum;
	if (o->fd->owner_pid == 0)
		return;
	fown->pid = (uint32_t)o->fd->owner_pid;
	fown->pid_type = o->fd->owner_type;
	fown->uid = o->fd->owner_uid;
	fown->euid = o->fd->owner_euid;
}

void files_put_entry(struct native_files *f, const NatFiles__File *file)
{
	img_put(f->image, &file->base);
}

void files_put(struct native_files *f, const struct native_open *o, NatFiles__File *file)
{
	file->type = (NatFiles__FileType)o->type;
	file->id = o->id;
	files_put_entry(f, file);
}

/* F_SETOWN names somebody: he must exist when it is set again. */
static bool owner_is_known(const struct native_files *f, const struct state_fd *fd)
{
	for (size_t i = 0; fd->owner_pid && i < f->tree->task_count; i++) {
		const struct native_task *t = &f->tree->tasks[i];

		switch (fd->owner_type) {
		case F_OWNER_PID:
			if (t->inner_pid == fd->owner_pid)
				return true;
			break;
		case F_OWNER_PGRP:
			if (t->state && t->state->pgid == fd->owner_pid)
				return true;
			break;
		default:
			/* Threads come after the files. */
			if (fd->owner_type == F_OWNER_TID && t->inner_pid == fd->owner_pid)
				return true;
		}
	}
	return fd->owner_pid == 0;
}

static int long_path(struct native_files *f, struct native_open *o)
{
	char link[64], path[FILES_LINK_MAX];
	ssize_t n;
	char *copy;

	snprintf(link, sizeof(link), "/proc/%d/fd/%d", o->task->pid, o->fd->fd);
	n = readlink(link, path, sizeof(path));
	if (n < 0 && errno == ENOENT && f->checking)
		n = 0;
	if (n < 0)
		return native_fail(f->tree, -errno, "%s: %s", link, strerror(errno));
	if (n == sizeof(path))
		return native_fail(f->tree, -EOPNOTSUPP,
				   "descriptor %d of process %d has a path of over %d bytes",
				   o->fd->fd, o->task->pid, FILES_LINK_MAX - 1);
	copy = arena_alloc(f->tree->arena, (size_t)n + 1);
	if (!copy)
		return -ENOMEM;
	memcpy(copy, path, (size_t)n);
	o->path = copy;
	return 0;
}

static int match(struct native_files *f, struct native_open *o)
{
	/* Such a descriptor is a place in a folder, whatever lies there. */
	if ((o->fd->f_flags & O_PATH) && o->path[0] == '/') {
		o->area = &area_reg;
		return 0;
	}
	for (size_t i = 0; i < ARRAY_SIZE(areas); i++) {
		if (areas[i]->match && areas[i]->match(o->fd, o->path)) {
			o->area = areas[i];
			return 0;
		}
	}
	if (f->checking && !o->path[0])
		return 0;
	return files_refuse(f, o, "is of a kind that the native engine does not cover");
}

static int add_open(struct native_files *f, struct native_task *task, const struct state_fd *fd,
		    uint32_t *ret_index)
{
	uint32_t *bucket = find_bucket(f, fd->file);
	struct native_open *o;
	int r = 0;

	if (*bucket) {
		*ret_index = *bucket - 1;
		return 0;
	}
	o = &f->opens[f->open_count];
	*o = (struct native_open){ .task = task, .fd = fd, .path = fd->path, .local = -1 };
	if (!fd->path[0])
		r = long_path(f, o);
	if (r == 0)
		r = match(f, o);
	if (r == 0 && !owner_is_known(f, fd))
		r = files_refuse(f, o, "sends its signals to process %d, outside of the job",
				 fd->owner_pid);
	if (r < 0)
		return r;
	o->id = files_new_id(f);
	*ret_index = (uint32_t)f->open_count++;
	*bucket = *ret_index + 1;
	return 0;
}

static int count_fds(struct native_files *f, size_t *ret_count)
{
	const struct native_tree *tree = f->tree;
	size_t count = 0;

	for (size_t i = 0; i < tree->task_count; i++)
		count += tree->tasks[i].zombie ? 0 : tree->tasks[i].fd_count;
	if (count > FILES_FD_MAX)
		return native_fail(f->tree, -EOPNOTSUPP, "the job has %zu descriptors (limit %d)",
				   count, FILES_FD_MAX);
	*ret_count = count;
	return 0;
}

static int alloc_tables(struct native_files *f, size_t fd_count)
{
	struct native_arena *arena = f->tree->arena;
	size_t tasks = f->tree->task_count, buckets = 16;

	while (buckets < 2 * fd_count)
		buckets *= 2;
	f->bucket_mask = buckets - 1;
	f->opens = arena_alloc(arena, (fd_count + 1) * sizeof(*f->opens));
	f->buckets = arena_alloc(arena, buckets * sizeof(*f->buckets));
	f->fd_opens = arena_alloc(arena, (tasks + 1) * sizeof(*f->fd_opens));
	f->pidfds = arena_alloc(arena, (tasks + 1) * sizeof(*f->pidfds));
	if (!f->opens || !f->buckets || !f->fd_opens || !f->pidfds)
		return -ENOMEM;
	for (size_t i = 0; i < tasks; i++)
		f->pidfds[i] = -1;
	return 0;
}

static int add_task(struct native_files *f, struct native_task *task)
{
	size_t index = (size_t)(task - f->tree->tasks);
	uint32_t *opens = arena_alloc(f->tree->arena, (task->fd_count + 1) * sizeof(*opens));

	if (!opens)
		return -ENOMEM;
	f->fd_opens[index] = opens;
	for (size_t i = 0; i < task->fd_count; i++) {
		int r = add_open(f, task, &task->fds[i], &opens[i]);

		if (r < 0)
			return r;
	}
	return 0;
}

/* Tasks with one files_struct have one table: that of the first of them. */
static int add_tasks(struct native_files *f)
{
	struct native_tree *tree = f->tree;
	uint32_t **by_files = arena_alloc(tree->arena, (tree->task_count + 1) * sizeof(*by_files));

	if (!by_files)
		return -ENOMEM;
	for (size_t i = 0; i < tree->task_count; i++) {
		struct native_task *task = &tree->tasks[i];
		bool numbered = task->files_id > 0 && task->files_id <= tree->task_count;
		int r;

		if (task->zombie)
			continue;
		task->fdinfo_id = task->files_id;
		if (numbered && by_files[task->files_id]) {
			f->fd_opens[i] = by_files[task->files_id];
			continue;
		}
		r = add_task(f, task);
		if (r < 0)
			return r;
		if (numbered)
			by_files[task->files_id] = f->fd_opens[i];
	}
	return 0;
}

static int build(struct native_tree *tree, struct native_mem *mem, bool checking,
		 struct native_files **ret_files)
{
	struct native_files *f = arena_alloc(tree->arena, sizeof(*f));
	size_t fd_count = 0;
	int r;

	if (!f)
		return -ENOMEM;
	f->tree = tree;
	f->mem = mem;
	f->checking = checking;
	f->next_id = 1;
	r = count_fds(f, &fd_count);
	if (r == 0)
		r = alloc_tables(f, fd_count);
	if (r < 0)
		return r;
	/* From here on there may be descriptors to close. */
	*ret_files = f;
	return add_tasks(f);
}

static void close_locals(struct native_files *f)
{
	for (size_t i = 0; i < f->open_count; i++)
		if (f->opens[i].local >= 0)
			open_local_close(&f->opens[i]);
	for (size_t i = 0; i < f->tree->task_count; i++)
		if (f->pidfds[i] >= 0)
			close_fdp(&f->pidfds[i]);
	for (size_t i = 0; i < f->tree->task_count; i++)
		f->pidfds[i] = -1;
}

static int collect_vmas(struct native_files *f, struct native_task *task)
{
	task->vma_file_ids =
		arena_alloc(f->tree->arena, (task->vma_count + 1) * sizeof(*task->vma_file_ids));
	task->vma_status =
		arena_alloc(f->tree->arena, (task->vma_count + 1) * sizeof(*task->vma_status));
	if (!task->vma_file_ids || !task->vma_status)
		return -ENOMEM;
	for (size_t i = 0; i < task->vma_count; i++) {
		const struct state_vma *vma = &task->vmas[i];
		size_t a = 0;
		int r;

		while (a < ARRAY_SIZE(areas) && !(areas[a]->match_vma && areas[a]->match_vma(vma)))
			a++;
		if (a == ARRAY_SIZE(areas))
			continue;
		r = areas[a]->collect_vma(f, task, i);
		if (r < 0)
			return r;
	}
	return 0;
}

/* Tasks with one mm: all of them see the arrays of the first. */
static int collect_all_vmas(struct native_files *f)
{
	struct native_tree *tree = f->tree;
	struct native_task **by_vm =
		arena_alloc(tree->arena, (tree->task_count + 1) * sizeof(*by_vm));

	if (!by_vm)
		return -ENOMEM;
	for (size_t i = 0; i < tree->task_count; i++) {
		struct native_task *task = &tree->tasks[i];
		bool numbered = task->vm_id > 0 && task->vm_id <= tree->task_count;
		int r;

		if (task->zombie)
			continue;
		if (numbered && by_vm[task->vm_id]) {
			task->vma_file_ids = by_vm[task->vm_id]->vma_file_ids;
			task->vma_status = by_vm[task->vm_id]->vma_status;
			continue;
		}
		r = collect_vmas(f, task);
		if (r < 0)
			return r;
		if (numbered)
			by_vm[task->vm_id] = task;
	}
	return 0;
}

static int collect(struct native_files *f)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < f->open_count; i++)
		if (f->opens[i].area->collect)
			r = f->opens[i].area->collect(f, &f->opens[i]);
	if (r == 0)
		r = collect_all_vmas(f);
	for (size_t a = 0; r == 0 && a < ARRAY_SIZE(areas); a++)
		if (areas[a]->collect_all)
			r = areas[a]->collect_all(f);
	return r;
}

int files_collect(struct native_tree *tree, struct native_mem *mem, struct native_files **ret_files)
{
	struct native_files *f = NULL;
	int r = build(tree, mem, false, &f);

	if (r == 0)
		r = collect(f);
	if (f)
		close_locals(f);
	if (r < 0) {
		files_destroy(f);
		return r;
	}
	*ret_files = f;
	return 0;
}

int files_check(struct native_tree *tree)
{
	struct native_files *f = NULL;
	int r = build(tree, NULL, true, &f);

	for (size_t i = 0; r == 0 && i < f->open_count; i++)
		if (f->opens[i].area && f->opens[i].area->check)
			r = f->opens[i].area->check(f, &f->opens[i]);
	for (size_t a = 0; r == 0 && a < ARRAY_SIZE(areas); a++)
		if (areas[a]->check_all)
			r = areas[a]->check_all(f);
	files_destroy(f);
	return r;
}

void files_destroy(struct native_files *f)
{
	if (!f)
		return;
	close_locals(f);
	for (size_t a = 0; a < ARRAY_SIZE(areas); a++)
		if (areas[a]->destroy)
			areas[a]->destroy(f);
}

static int write_fdinfo(struct native_files *f, const struct native_task *task)
{
	const uint32_t *opens = f->fd_opens[task - f->tree->tasks];
	struct img *img;
	char name[32];
	int r;

	snprintf(name, sizeof(name), "fdinfo-%u", task->fdinfo_id);
	r = img_create(f->tree->images, name, &img);
	if (r < 0)
		return r;
	for (size_t i = 0; i < task->fd_count; i++) {
		NatFiles__Fdinfo e = NAT_FILES__FDINFO__INIT;
		const struct native_open *o = &f->opens[opens[i]];

		e.id = o->id;
		e.type = (NatFiles__FileType)o->type;
		e.flags = task->fds[i].cloexec ? FD_CLOEXEC : 0;
		e.fd = (uint32_t)task->fds[i].fd;
		img_put(img, &e.base);
	}
	return img_close(img);
}

static int write_fs(struct native_files *f, const struct native_task *task)
{
	NatFiles__Fs e = NAT_FILES__FS__INIT;
	struct img *img;
	char name[32];
	int r;

	snprintf(name, sizeof(name), "fs-%d", task->inner_pid);
	r = img_create(f->tree->images, name, &img);
	if (r < 0)
		return r;
	e.cwd_id = task->cwd_id;
	e.root_id = task->root_id;
	e.has_umask = true;
	e.umask = task->state->umask;
	img_put(img, &e.base);
	return img_close(img);
}

static int write_tasks(struct native_files *f)
{
	for (size_t i = 0; i < f->tree->task_count; i++) {
		const struct native_task *task = &f->tree->tasks[i];
		int r = 0;

		if (task->zombie)
			continue;
		if (tree_is_first_files(f->tree, task))
			r = write_fdinfo(f, task);
		if (r == 0)
			r = write_fs(f, task);
		if (r < 0)
			return r;
	}
	return 0;
}

int files_write(struct native_files *f)
{
	int r, closed;

	r = img_create(f->tree->images, "files", &f->image);
	if (r < 0)
		return native_fail(f->tree, r, "files.img: %s", strerror(-r));
	for (size_t i = 0; r == 0 && i < f->open_count; i++)
		r = f->opens[i].area->write(f, &f->opens[i]);
	for (size_t a = 0; r == 0 && a < ARRAY_SIZE(areas); a++)
		if (areas[a]->write_all)
			r = areas[a]->write_all(f);
	closed = img_close(f->image);
	f->image = NULL;
	if (r == 0)
		r = closed;
	if (r == 0)
		r = write_tasks(f);
	return r == 0 ? 0 : native_fail(f->tree, r, "images of files: %s", strerror(-r));
}
