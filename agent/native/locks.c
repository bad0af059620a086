// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * File locks: flock, POSIX and open file description locks, from the "lock:" lines of fdinfo.
 *
 * Reading fdinfo of every file costs as much as the rest of a small pause, so it is asked only for
 * files that may have a lock: their record says so, or else /proc/locks does.
 */
#include "agent/native/files_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>

enum {
	LOCK_POSIX = 1, /* bits of the image */
	LOCK_FLOCK = 2,
	LOCK_OFD = 4,
	LOCKS_TEXT = 16384,
	LOCKS_BUCKETS = 256,
};

/* Inode number of the initial PID namespace: there /proc/locks hides nothing. */
#define FIRST_PID_NS "pid:[4026531836]"

struct lock {
	struct lock *next;
	uint32_t kind, type;
	int32_t pid, fd;
	int64_t start, length;
};

struct locks {
	struct lock *first, **last;
};

/* What /proc/locks names; complete only if it could be read as a whole. */
struct locked_inode {
	uint64_t ino;
	uint32_t dev;
};

struct lock_list {
	struct locked_inode *inodes;
	size_t count;
	bool complete;
};

static bool is_first_pid_ns(void)
{
	char name[sizeof(FIRST_PID_NS) + 1];
	ssize_t n = readlink("/proc/self/ns/pid", name, sizeof(name));

	return n == sizeof(FIRST_PID_NS) - 1 && !memcmp(name, FIRST_PID_NS, (size_t)n);
}

/* "1: FLOCK  ADVISORY  WRITE 14777 fe:00:10961458 0 EOF", also "1: -> ..." of one who waits. */
static bool parse_inode(const char *line, struct locked_inode *ret_inode)
{
	unsigned int major_number, minor_number;
	unsigned long long ino;
	const char *colon;

	colon = strchr(line, ':');
	for (colon = colon ? strchr(colon + 1, ':') : NULL; colon; colon = NULL) {
		/* Back to the start of the word. */
		while (colon > line && colon[-1] != ' ')
			colon--;
		if (sscanf(colon, "%x:%x:%llu", &major_number, &minor_number, &ino) != 3)
			return false;
		ret_inode->dev = major_number << 20 | minor_number;
		ret_inode->ino = ino;
		return true;
	}
	return false;
}

static int read_lock_list(struct native_files *f, struct lock_list *list)
{
	_cleanup_close_ int fd = -1;
	char text[LOCKS_TEXT];
	size_t used = 0, lines = 0;
	ssize_t n = 0;

	*list = (struct lock_list){ 0 };
	if (!is_first_pid_ns())
		return 0;
	fd = open("/proc/locks", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	while (used < sizeof(text) - 1 && (n = read(fd, text + used, sizeof(text) - 1 - used)) > 0)
		used += (size_t)n;
	if (n < 0 || used == sizeof(text) - 1)
		return 0;
	text[used] = '\0';
	for (const char *at = text; (at = strchr(at, '\n')) != NULL; at++)
		lines++;
	list->inodes = arena_alloc(f->tree->arena, (lines + 1) * sizeof(*list->inodes));
	if (!list->inodes)
		return -ENOMEM;
	list->complete = true;
	for (char *at = text, *end; (end = strchr(at, '\n')) != NULL; at = end + 1) {
		*end = '\0';
		if (parse_inode(at, &list->inodes[list->count]))
			list->count++;
		else
			list->complete = false;
	}
	return 0;
}

static bool may_be_locked(const struct lock_list *list, const struct state_fd *fd)
{
	if (fd->locks != STATE_LOCKS_UNKNOWN)
		return fd->locks == STATE_LOCKS_MAYBE;
	for (size_t i = 0; i < list->count; i++)
		if (list->inodes[i].ino == fd->ino && list->inodes[i].dev == fd->dev)
			return true;
	return !list->complete;
}

/* Descriptors of files that can have locks. */
static bool is_candidate(const struct native_open *o)
{
	return o->area == &area_reg && !(o->fd->f_flags & O_PATH) &&
	       (S_ISREG(o->fd->mode) || S_ISDIR(o->fd->mode) || S_ISCHR(o->fd->mode));
}

static int parse_lock(struct native_files *f, const struct native_open *o, const char *line,
		      struct lock *lock)
{
	char kind[16], way[16], type[16], end[32];
	long long start;
	int number, pid;

	if (sscanf(line, "%d: %15s %15s %15s %d %*x:%*x:%*u %lld %31s", &number, kind, way, type,
		   &pid, &start, end) != 7)
		return files_refuse(f, o, "has a lock that cannot be read");
	if (!strcmp(kind, "POSIX"))
		lock->kind = LOCK_POSIX;
	else if (!strcmp(kind, "FLOCK"))
		lock->kind = LOCK_FLOCK;
	else if (!strcmp(kind, "OFDLCK"))
		lock->kind = LOCK_OFD;
	else
		return files_refuse(f, o, "has a lock of kind %s", kind);
	if (strcmp(way, "ADVISORY") != 0)
		return files_refuse(f, o, "has a lock of kind %s %s", kind, way);
	if (!strcmp(type, "READ"))
		lock->type = F_RDLCK;
	else if (!strcmp(type, "WRITE"))
		lock->type = F_WRLCK;
	else
		return files_refuse(f, o, "has a lock of type %s", type);
	lock->start = start;
	/* 0: up to the end, wherever that will be. */
	if (strcmp(end, "EOF") != 0)
		lock->length = strtoll(end, NULL, 10) - start + 1;
	return 0;
}

static int add_locks(struct native_files *f, struct locks *all, const struct native_open *o,
		     const char *text)
{
	static const char word[] = "\nlock:\t";

	for (const char *at = text; (at = strstr(at, word)) != NULL; at++) {
		struct lock *lock = arena_alloc(f->tree->arena, sizeof(*lock));
		int r = lock ? parse_lock(f, o, at + sizeof(word) - 1, lock) : -ENOMEM;

		if (r < 0)
			return r;
		lock->pid = o->task->inner_pid;
		lock->fd = o->fd->fd;
		*all->last = lock;
		all->last = &lock->next;
	}
	return 0;
}

/*
 * A POSIX lock belongs to a table of descriptors and shows in fdinfo of that table's processes
 * only, the others belong to the struct file: then one process is enough.
 */
static int collect_open(struct native_files *f, struct locks *all, struct native_open *o,
			char *text)
{
	for (size_t t = 0; t < f->tree->task_count; t++) {
		struct native_task *task = &f->tree->tasks[t];
		const uint32_t *opens = f->fd_opens[t];
		struct native_open view = *o;
		size_t i = 0;
		int r;

		if (task->zombie || !opens || !tree_is_first_files(f->tree, task))
			continue;
		while (i < task->fd_count && &f->opens[opens[i]] != o)
			i++;
		if (i == task->fd_count)
			continue;
		view.task = task;
		view.fd = &task->fds[i];
		r = open_fdinfo(f, &view, text, FILES_FDINFO_MAX);
		if (r == 0)
			r = add_locks(f, all, &view, text);
		if (r < 0)
			return r;
	}
	return 0;
}

/* A lock of a shared struct file was found once for each process that has it. */
static bool is_repeated(const struct native_files *f, const struct locks *all,
			const struct lock *lock)
{
	struct native_task *task = tree_find_inner(f->tree, lock->pid);
	struct native_open *o = files_of_fd((struct native_files *)f, task, lock->fd);

	if (lock->kind == LOCK_POSIX)
		return false;
	for (const struct lock *l = all->first; l != lock; l = l->next) {
		struct native_task *other = tree_find_inner(f->tree, l->pid);

		if (l->kind == lock->kind && l->start == lock->start && l->length == lock->length &&
		    l->type == lock->type &&
		    files_of_fd((struct native_files *)f, other, l->fd) == o)
			return true;
	}
	return false;
}

static int collect_all(struct native_files *f)
{
	struct lock_list list = { 0 };
	struct locks *all = NULL;
	bool listed = false;
	char *text = NULL;
	int r = 0;

	for (size_t i = 0; r == 0 && i < f->open_count; i++) {
		struct native_open *o = &f->opens[i];

		if (!is_candidate(o) || o->fd->locks == STATE_LOCKS_NONE)
			continue;
		if (o->fd->locks == STATE_LOCKS_UNKNOWN && !listed) {
			r = read_lock_list(f, &list);
			listed = true;
		}
		if (r < 0 || !may_be_locked(&list, o->fd))
			continue;
		if (!all) {
			all = arena_alloc(f->tree->arena, sizeof(*all));
			text = arena_alloc(f->tree->arena, FILES_FDINFO_MAX);
			if (!all || !text)
				return -ENOMEM;
			all->last = &all->first;
			f->area_facts[AREA_LOCKS] = all;
		}
		r = collect_open(f, all, o, text);
	}
	return r;
}

static int write_all(struct native_files *f)
{
	const struct locks *all = f->area_facts[AREA_LOCKS];
	struct img *img;
	int r;

	if (!all || !all->first)
		return 0;
	r = img_create(f->tree->images, "filelocks", &img);
	if (r < 0)
		return r;
	for (const struct lock *l = all->first; l; l = l->next) {
		NatFiles__Lock e = NAT_FILES__LOCK__INIT;

		if (is_repeated(f, all, l))
			continue;
		e.flag = l->kind;
		e.type = l->type;
		e.pid = l->pid;
		e.fd = l->fd;
		e.start = l->start;
		e.len = l->length;
		img_put(img, &e.base);
	}
	return img_close(img);
}

const struct native_area area_locks = {
	.index = AREA_LOCKS,
	.name = "locks",
	.collect_all = collect_all,
	.write_all = write_all,
};
