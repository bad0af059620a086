// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Descriptors of events: eventfd, signalfd, timerfd, epoll and pidfd; inotify is in inotify.c.
 * All they are made of is in fdinfo, read in the pause.
 */
#include "agent/native/events_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <string.h>
#include <sys/syscall.h>

enum { FDINFO_SMALL = 1024, EPOLL_MAX = 65536, EPOLL_FD_MAX = 1 << 20 };

struct events_timer {
	uint32_t clock, flags;
	uint64_t ticks, value_s, value_ns, interval_s, interval_ns;
};

struct events_target {
	uint32_t tfd, events, dev;
	uint32_t nth; /* of those that were added under this number */
	uint64_t data, ino;
	int64_t pos;
};

struct events_epoll {
	struct events_target *targets;
	size_t count;
};

struct events_pidfd {
	uint32_t ino;
	int32_t inner_pid;
};

static bool match(const struct state_fd *fd, const char *path)
{
	(void)fd;
	return !strncmp(path, "anon_inode:", 11) || !strncmp(path, "pidfd:", 6);
}

/* Value of a line "key: ..." of fdinfo; NULL: there is none. */
const char *events_line(const char *text, const char *key)
{
	size_t length = strlen(key);

	while (text && *text) {
		if (!strncmp(text, key, length) && text[length] == ':')
			return text + length + 1;
		text = strchr(text, '\n');
		text = text ? text + 1 : NULL;
	}
	return NULL;
}

static int broken(struct native_files *f, const struct native_open *o)
{
	return files_refuse(f, o, "has a state that cannot be read");
}

static int read_small(struct native_files *f, const struct native_open *o, char text[FDINFO_SMALL],
		      const char *key, const char **ret_value)
{
	int r = open_fdinfo(f, o, text, FDINFO_SMALL);

	if (r < 0)
		return r;
	*ret_value = events_line(text, key);
	return *ret_value ? 0 : broken(f, o);
}

static int collect_eventfd(struct native_files *f, struct native_open *o)
{
	uint64_t *count = arena_alloc(f->tree->arena, sizeof(*count));
	char text[FDINFO_SMALL];
	const char *value;
	int r = count ? read_small(f, o, text, "eventfd-count", &value) : -ENOMEM;

	if (r < 0)
		return r;
	*count = strtoull(value, NULL, 16);
	value = events_line(text, "eventfd-semaphore");
	if (value && strtol(value, NULL, 10))
		return files_refuse(f, o, "counts as a semaphore");
	if (*count > UINT32_MAX)
		return files_refuse(f, o, "has counted to %llu", (unsigned long long)*count);
	o->facts = count;
	o->type = NAT_FILES__FILE_TYPE__EVENTFD;
	return 0;
}

static int collect_signalfd(struct native_files *f, struct native_open *o)
{
	uint64_t *mask = arena_alloc(f->tree->arena, sizeof(*mask));
	char text[FDINFO_SMALL];
	const char *value;
	int r = mask ? read_small(f, o, text, "sigmask", &value) : -ENOMEM;

	if (r < 0)
		return r;
	*mask = strtoull(value, NULL, 16);
	o->facts = mask;
	o->type = NAT_FILES__FILE_TYPE__SIGNALFD;
	return 0;
}

/* it_value is the time that is left, also of an absolute timer. */
static int collect_timerfd(struct native_files *f, struct native_open *o)
{
	struct events_timer *t = arena_alloc(f->tree->arena, sizeof(*t));
	char text[FDINFO_SMALL];
	const char *value;
	unsigned long long v[5];
	int r = t ? read_small(f, o, text, "clockid", &value) : -ENOMEM;

	if (r < 0)
		return r;
	if (sscanf(value,
		   " %u ticks: %llu settime flags: %o it_value: (%llu, %llu) it_interval: (%llu, %llu)",
		   &t->clock, &v[0], &t->flags, &v[1], &v[2], &v[3], &v[4]) != 7)
		return broken(f, o);
	t->ticks = v[0];
	t->value_s = v[1];
	t->value_ns = v[2];
	t->interval_s = v[3];
	t->interval_ns = v[4];
	o->facts = t;
	o->type = NAT_FILES__FILE_TYPE__TIMERFD;
	return 0;
}

static int collect_pidfd(struct native_files *f, struct native_open *o)
{
	struct events_pidfd *p = arena_alloc(f->tree->arena, sizeof(*p));
	const struct native_task *target;
	char text[FDINFO_SMALL];
	const char *value;
	long pid;
	int r = p ? read_small(f, o, text, "Pid", &value) : -ENOMEM;

	if (r < 0)
		return r;
	pid = strtol(value, NULL, 10);
	if (o->fd->f_flags & O_EXCL)
		return files_refuse(f, o, "is of a thread");
	value = events_line(text, "ino");
	/* Those of one process that has ended are known by it. */
	p->ino = value ? (uint32_t)strtoull(value, NULL, 10) : 0;
	p->inner_pid = -1;
	if (pid != -1) {
		target = tree_find(f->tree, (pid_t)pid);
		if (!target)
			return files_refuse(f, o, "is of process %ld, outside of the job", pid);
		p->inner_pid = target->inner_pid;
	} else if (!value) {
		return broken(f, o);
	}
	o->facts = p;
	o->type = NAT_FILES__FILE_TYPE__PIDFD;
	return 0;
}

/* fdinfo of any length: an epoll has a line for each of its targets. */
int events_read_all(struct native_files *f, struct native_open *o, char **ret_text)
{
	size_t size = FDINFO_SMALL;

	for (;;) {
		char *text = arena_alloc(f->tree->arena, size);
		_cleanup_close_ int fd = -1;
		size_t used = 0;
		ssize_t n = 0;
		char path[64];

		if (!text)
			return -ENOMEM;
		snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", o->task->pid, o->fd->fd);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			return native_fail(f->tree, -errno, "%s: %s", path, strerror(errno));
		while (used < size - 1 && (n = read(fd, text + used, size - 1 - used)) > 0)
			used += (size_t)n;
		if (n < 0)
			return native_fail(f->tree, -errno, "%s: %s", path, strerror(errno));
		if (used < size - 1) {
			*ret_text = text;
			return 0;
		}
		if (size > (size_t)EVENTS_FDINFO_MAX / 8)
			return files_refuse(f, o, "has too much state");
		size *= 8;
	}
}

/* Files are put back by the process with the lowest PID, so its numbers are the ones that count. */
static struct native_task *restorer_of(struct native_files *f, const struct native_open *o,
				       int *ret_fd)
{
	struct native_task *best = NULL;

	for (size_t t = 0; t < f->tree->task_count; t++) {
		struct native_task *task = &f->tree->tasks[t];
		const uint32_t *opens = f->fd_opens[t];

		if (task->zombie || !opens || (best && best->inner_pid < task->inner_pid))
			continue;
		for (size_t i = 0; i < task->fd_count; i++) {
			if (&f->opens[opens[i]] == o) {
				best = task;
				*ret_fd = task->fds[i].fd;
				break;
			}
		}
	}
	return best;
}

/* 1: the descriptor shows the file that the epoll watches; 0: another one. */
static int is_target(const struct native_task *task, int epfd, const struct events_target *t,
		     int fd)
{
	struct kcmp_epoll_slot slot = { .efd = (uint32_t)epfd, .tfd = t->tfd, .toff = t->nth };
	long r = syscall(SYS_kcmp, task->pid, task->pid, KCMP_EPOLL_TFD, (unsigned long)fd, &slot);

	return r < 0 ? -errno : r == 0;
}

/* Descriptors are closed, dup'ed and given again while the epoll keeps the first number. */
static int find_target(struct native_files *f, const struct native_open *o,
		       const struct native_task *task, int epfd, struct events_target *t)
{
	const struct native_open *seen = files_of_fd(f, task, (int)t->tfd);

	if (seen && seen->fd->ino == t->ino && seen->fd->dev == t->dev) {
		int r = S_ISSOCK(seen->fd->mode) ? 1 : is_target(task, epfd, t, (int)t->tfd);

		/* Without kcmp(2) the inode has to do. */
		if (r == 1 || r == -ENOSYS || r == -EOPNOTSUPP)
			return 0;
	}
	for (size_t i = 0; i < task->fd_count; i++) {
		const struct state_fd *fd = &task->fds[i];

		if (fd->ino != t->ino || fd->dev != t->dev)
			continue;
		if (is_target(task, epfd, t, fd->fd) == 1) {
			t->tfd = (uint32_t)fd->fd;
			return 0;
		}
	}
	return files_refuse(
		f, o, "watches a file that was descriptor %u and that process %d no longer has",
		t->tfd, task->inner_pid);
}

static int number_targets(struct native_files *f, const struct native_open *o,
			  struct events_epoll *e)
{
	uint32_t last = 0, *counts;

	for (size_t i = 0; i < e->count; i++)
		last = e->targets[i].tfd > last ? e->targets[i].tfd : last;
	if (last >= EPOLL_FD_MAX)
		return broken(f, o);
	counts = arena_alloc(f->tree->arena, (last + 1) * sizeof(*counts));
	if (!counts)
		return -ENOMEM;
	for (size_t i = 0; i < e->count; i++)
		e->targets[i].nth = counts[e->targets[i].tfd]++;
	return 0;
}

static int parse_targets(struct native_files *f, const struct native_open *o, const char *text,
			 struct events_epoll *e)
{
	size_t room = 0;

	for (const char *at = events_line(text, "tfd"); at; at = events_line(at, "tfd"))
		room++;
	if (room > EPOLL_MAX)
		return files_refuse(f, o, "watches %zu files", room);
	e->targets = arena_alloc(f->tree->arena, (room + 1) * sizeof(*e->targets));
	if (!e->targets)
		return -ENOMEM;
	for (const char *at = events_line(text, "tfd"); at; at = events_line(at, "tfd")) {
		struct events_target *t = &e->targets[e->count++];
		unsigned long long data, ino;
		long long pos;

		if (sscanf(at, " %u events: %x data: %llx pos:%lld ino:%llx sdev:%x", &t->tfd,
			   &t->events, &data, &pos, &ino, &t->dev) != 6)
			return broken(f, o);
		t->data = data;
		t->ino = ino;
		t->pos = pos;
	}
	return number_targets(f, o, e);
}

static int collect_epoll(struct native_files *f, struct native_open *o)
{
	struct events_epoll *e = arena_alloc(f->tree->arena, sizeof(*e));
	char *text;
	int r = e ? events_read_all(f, o, &text) : -ENOMEM;

	if (r < 0)
		return r;
	o->facts = e;
	o->type = NAT_FILES__FILE_TYPE__EVENTPOLL;
	return parse_targets(f, o, text, e);
}

static int find_targets(struct native_files *f, struct native_open *o)
{
	struct events_epoll *e = o->facts;
	int epfd = -1, r = 0;
	struct native_task *task = restorer_of(f, o, &epfd);

	if (!task)
		return broken(f, o);
	for (size_t i = 0; r == 0 && i < e->count; i++)
		r = find_target(f, o, task, epfd, &e->targets[i]);
	return r;
}

static const struct {
	const char *path;
	int (*collect)(struct native_files *f, struct native_open *o);
} kinds[] = {
	{ "anon_inode:[eventfd]", collect_eventfd },   { "anon_inode:[eventpoll]", collect_epoll },
	{ "anon_inode:[signalfd]", collect_signalfd }, { "anon_inode:[timerfd]", collect_timerfd },
	{ "anon_inode:[pidfd]", collect_pidfd },       { "anon_inode:inotify", inotify_collect },
};

static int collect(struct native_files *f, struct native_open *o)
{
	if (!strncmp(o->path, "pidfd:", 6))
		return collect_pidfd(f, o);
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
		if (!strcmp(o->path, kinds[i].path))
			return kinds[i].collect(f, o);
	return files_refuse(f, o, "is of a kind that the native engine does not cover");
}

/* Only what stays as it is: whether there is such a kind at all. */
static int check(struct native_files *f, struct native_open *o)
{
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
		if (!strcmp(o->path, kinds[i].path))
			return 0;
	if (!strncmp(o->path, "pidfd:", 6))
		return 0;
	return files_refuse(f, o, "is of a kind that the native engine does not cover");
}

/* Every descriptor is known now. */
static int collect_all(struct native_files *f)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < f->open_count; i++) {
		struct native_open *o = &f->opens[i];

		if (o->area == &area_events && o->type == NAT_FILES__FILE_TYPE__EVENTPOLL)
			r = find_targets(f, o);
		else if (o->area == &area_events && o->type == NAT_FILES__FILE_TYPE__INOTIFY)
			r = inotify_find_paths(f, o);
	}
	return r;
}

static void put_eventfd(struct native_files *f, struct native_open *o, NatFiles__Fown *fown)
{
	NatFiles__File file = NAT_FILES__FILE__INIT;
	NatFiles__Eventfd e = NAT_FILES__EVENTFD__INIT;

	e.id = o->id;
	e.flags = open_flags(o);
	e.fown = fown;
	e.counter = *(const uint64_t *)o->facts;
	file.efd = &e;
	files_put(f, o, &file);
}

static void put_signalfd(struct native_files *f, struct native_open *o, NatFiles__Fown *fown)
{
	NatFiles__File file = NAT_FILES__FILE__INIT;
	NatFiles__Signalfd e = NAT_FILES__SIGNALFD__INIT;

	e.id = o->id;
	e.flags = open_flags(o);
	e.fown = fown;
	e.sigmask = *(const uint64_t *)o->facts;
	file.sgfd = &e;
	files_put(f, o, &file);
}

static void put_timerfd(struct native_files *f, struct native_open *o, NatFiles__Fown *fown)
{
	const struct events_timer *t = o->facts;
	NatFiles__File file = NAT_FILES__FILE__INIT;
	NatFiles__Timerfd e = NAT_FILES__TIMERFD__INIT;

	e.id = o->id;
	e.flags = open_flags(o);
	e.fown = fown;
	e.clockid = t->clock;
	e.ticks = t->ticks;
	e.settime_flags = t->flags;
	e.value_s = t->value_s;
	e.value_ns = t->value_ns;
	e.interval_s = t->interval_s;
	e.interval_ns = t->interval_ns;
	file.tfd = &e;
	files_put(f, o, &file);
}

static void put_pidfd(struct native_files *f, struct native_open *o, NatFiles__Fown *fown)
{
	const struct events_pidfd *p = o->facts;
	NatFiles__File file = NAT_FILES__FILE__INIT;
	NatFiles__Pidfd e = NAT_FILES__PIDFD__INIT;

	e.id = o->id;
	/* The kernel sets O_RDWR by itself and takes no such flag. */
	e.flags = open_flags(o) & ~(uint32_t)(O_RDWR | KERNEL_O_LARGEFILE);
	e.fown = fown;
	e.ino = p->ino;
	e.nspid = p->inner_pid;
	file.pidfd = &e;
	files_put(f, o, &file);
}

static int put_epoll(struct native_files *f, struct native_open *o, NatFiles__Fown *fown)
{
	const struct events_epoll *epoll = o->facts;
	_cleanup_free_ NatFiles__EpollTarget *targets = calloc(epoll->count + 1, sizeof(*targets));
	_cleanup_free_ NatFiles__EpollTarget **list = calloc(epoll->count + 1, sizeof(*list));
	NatFiles__File file = NAT_FILES__FILE__INIT;
	NatFiles__Epoll e = NAT_FILES__EPOLL__INIT;

	if (!targets || !list)
		return -ENOMEM;
	for (size_t i = 0; i < epoll->count; i++) {
		const struct events_target *t = &epoll->targets[i];

		nat_files__epoll_target__init(&targets[i]);
		targets[i].id = o->id;
		targets[i].tfd = t->tfd;
		targets[i].events = t->events;
		targets[i].data = t->data;
		targets[i].has_dev = targets[i].has_inode = targets[i].has_pos = true;
		targets[i].dev = t->dev;
		targets[i].inode = t->ino;
		targets[i].pos = (uint64_t)t->pos;
		list[i] = &targets[i];
	}
	e.id = o->id;
	e.flags = open_flags(o);
	e.fown = fown;
	e.n_tfd = epoll->count;
	e.tfd = list;
	file.epfd = &e;
	files_put(f, o, &file);
	return 0;
}

static int write_open(struct native_files *f, struct native_open *o)
{
	NatFiles__Fown fown = NAT_FILES__FOWN__INIT;

	open_fown(o, &fown);
	switch (o->type) {
	case NAT_FILES__FILE_TYPE__EVENTFD:
		put_eventfd(f, o, &fown);
		return 0;
	case NAT_FILES__FILE_TYPE__SIGNALFD:
		put_signalfd(f, o, &fown);
		return 0;
	case NAT_FILES__FILE_TYPE__TIMERFD:
		put_timerfd(f, o, &fown);
		return 0;
	case NAT_FILES__FILE_TYPE__PIDFD:
		put_pidfd(f, o, &fown);
		return 0;
	case NAT_FILES__FILE_TYPE__INOTIFY:
		return inotify_put(f, o, &fown);
	default:
		return put_epoll(f, o, &fown);
	}
}

const struct native_area area_events = {
	.index = AREA_EVENTS,
	.name = "events",
	.match = match,
	.check = check,
	.collect = collect,
	.collect_all = collect_all,
	.write = write_open,
};
