// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Who belongs to a tree, from /proc. A list made of running processes may miss one: "children"
 * skips an entry when another ends while it is read. So a list counts only if it came out the same
 * twice, or if everybody stood still.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "agent/native/freeze.h"
#include "agent/native/freeze_internal.h"
#include "agent/util/io.h"

enum {
	LIST_ROUNDS = 8,
	LIST_TEXT_MAX = 4096,
};

/* One walk over the tree. */
struct walk {
	struct native_tree *tree;
	bool seen[NATIVE_TASKS_MAX];
	bool changed;
};

/* A small file in one read; the number of bytes, text ends with a NUL. */
static ssize_t read_small(const char *path, char *text, size_t room)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -errno;
	n = read(fd, text, room - 1);
	if (n < 0)
		return -errno;
	text[n] = '\0';
	return n;
}

long list_last_pid(void)
{
	char text[128];
	const char *last;

	if (read_small("/proc/loadavg", text, sizeof(text)) <= 0)
		return -1;
	last = strrchr(text, ' ');
	return last ? atol(last + 1) : -1;
}

char list_state(pid_t tid, pid_t *ret_tracer)
{
	char path[64], text[LIST_TEXT_MAX];
	const char *line;
	char state = 0;

	*ret_tracer = 0;
	snprintf(path, sizeof(path), "/proc/%d/status", tid);
	if (read_small(path, text, sizeof(text)) <= 0)
		return 0;
	line = strstr(text, "\nState:\t");
	if (line)
		state = line[8];
	line = strstr(text, "\nTracerPid:\t");
	if (line)
		*ret_tracer = (pid_t)atol(line + 12);
	return state;
}

uint64_t list_stolen_us(void)
{
	unsigned long long ticks = 0;
	char text[256];

	/* cpu user nice system idle iowait irq softirq steal */
	if (read_small("/proc/stat", text, sizeof(text)) <= 0 ||
	    sscanf(text, "cpu %*u %*u %*u %*u %*u %*u %*u %llu", &ticks) != 1)
		return 0;
	return ticks * 1000000 / (unsigned long long)sysconf(_SC_CLK_TCK);
}

/* Once for each time that it gave up the processor to wait. */
static uint64_t count_switches(const char *text)
{
	const char *line = strstr(text, "\nvoluntary_ctxt_switches:\t");

	return line ? strtoull(line + sizeof("\nvoluntary_ctxt_switches:\t") - 1, NULL, 10) : 0;
}

bool list_blocked(pid_t tid, uint64_t *ret_switches)
{
	char path[64], text[LIST_TEXT_MAX];
	const char *line;

	*ret_switches = 0;
	snprintf(path, sizeof(path), "/proc/%d/status", tid);
	if (read_small(path, text, sizeof(text)) <= 0)
		return false;
	line = strstr(text, "\nState:\t");
	*ret_switches = count_switches(text);
	return line && line[8] == 'D';
}

long list_syscall(pid_t tid)
{
	char path[64], text[256];

	snprintf(path, sizeof(path), "/proc/%d/syscall", tid);
	if (read_small(path, text, sizeof(text)) <= 0 || !isdigit((unsigned char)text[0]))
		return -1;
	return atol(text);
}

bool list_is_birth(long nr)
{
	return nr == SYS_clone || nr == SYS_clone3 || nr == SYS_fork || nr == SYS_vfork;
}

/*
 * A new number is given out some time before its owner can be seen, much later if the parent loses
 * the processor in between. Who sleeps in another call now is not at it.
 */
void list_begin(struct native_tree *tree)
{
	tree->births = list_last_pid();
	for (size_t i = 0; i < tree->task_count; i++)
		for (size_t k = 0; k < tree->tasks[i].thread_count; k++) {
			struct native_thread *t = &tree->tasks[i].threads[k];
			long nr = t->tid && !t->stopped ? list_syscall(t->tid) : 0;

			t->busy = nr < 0 || list_is_birth(nr);
		}
}

static int see_task(struct walk *w, pid_t pid, pid_t parent_pid)
{
	struct native_tree *tree = w->tree;
	struct native_task *task = tree_find(tree, pid);
	int r;

	if (!task) {
		r = tree_add_task(tree, pid, parent_pid, &task);
		if (r < 0)
			return r;
		w->changed = true;
	}
	if (parent_pid)
		task->parent = tree_find(tree, parent_pid);
	w->seen[task - tree->tasks] = true;
	return 0;
}

static int see_children(struct walk *w, pid_t pid, const char *text)
{
	char *end;
	int r;

	for (;;) {
		long child = strtol(text, &end, 10);

		if (end == text || child <= 0)
			return 0;
		r = see_task(w, (pid_t)child, pid);
		if (r < 0)
			return r;
		text = end;
	}
}

/* One that has ended is no error, being unable to look is one. */
static int unreadable(const struct walk *w, pid_t pid)
{
	if (errno == ENOENT || errno == ESRCH)
		return 0;
	return native_fail(w->tree, -errno, "process %d cannot be listed: %s", pid,
			   strerror(errno));
}

/* The file is read piecewise: a program may have any number of children. */
static int list_children(struct walk *w, pid_t pid, pid_t tid)
{
	char path[64], text[LIST_TEXT_MAX];
	_cleanup_close_ int fd = -1;
	size_t kept = 0, cut;
	ssize_t n;
	int r;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", pid, tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return unreadable(w, pid);
	for (;;) {
		n = read(fd, text + kept, sizeof(text) - 1 - kept);
		if (n <= 0)
			return n ? unreadable(w, pid) : 0;
		kept += (size_t)n;
		for (cut = kept; cut > 0 && text[cut - 1] != ' '; cut--)
			;
		if (!cut)
			return 0;
		text[cut - 1] = '\0';
		r = see_children(w, pid, text);
		if (r < 0)
			return r;
		memmove(text, text + cut, kept - cut);
		kept -= cut;
	}
}

size_t list_thread_count(pid_t pid)
{
	char path[64];
	struct stat st;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	return stat(path, &st) == 0 && st.st_nlink > 2 ? st.st_nlink - 2 : 0;
}

/* Stopped threads neither end nor start others: their number tells whether one is unknown. */
static bool threads_known(const struct native_task *task)
{
	size_t known = 0;

	for (size_t i = 0; i < task->thread_count; i++) {
		if (!task->threads[i].tid)
			continue;
		if (!task->threads[i].stopped)
			return false;
		known++;
	}
	return known && list_thread_count(task->pid) == known;
}

static int list_threads(struct walk *w, struct native_task *task)
{
	_cleanup_closedir_ DIR *dir = NULL;
	struct native_thread *t;
	struct dirent *e;
	size_t old = task->thread_count;
	char path[64];
	pid_t tracer;
	int r;

	if (threads_known(task))
		return 0;
	snprintf(path, sizeof(path), "/proc/%d/task", task->pid);
	dir = opendir(path);
	if (!dir)
		return unreadable(w, task->pid);
	/* Marked by inner_tid, which nobody needs before the tree is complete. */
	for (size_t i = 0; i < old; i++)
		task->threads[i].inner_tid = 0;
	while ((e = readdir(dir))) {
		pid_t tid = (pid_t)atol(e->d_name);

		if (tid <= 0)
			continue;
		t = task_find_thread(task, tid);
		if (!t) {
			r = tree_add_thread(w->tree, task, tid, &t);
			if (r < 0)
				return r;
			w->changed = true;
		}
		t->inner_tid = tid;
	}
	for (size_t i = 0; i < old; i++) {
		t = &task->threads[i];
		if (t->tid && !t->inner_tid && !t->seized) {
			t->tid = 0;
			w->changed = true;
		}
	}
	t = task_find_thread(task, task->pid);
	if (!t || !t->seized)
		task->zombie = list_thread_count(task->pid) == 1 &&
			       list_state(task->pid, &tracer) == 'Z';
	return 0;
}

/* Processes below the tree by their parent's number, without "children" files. */
static int scan_children(struct walk *w)
{
	_cleanup_closedir_ DIR *dir = opendir("/proc");
	char path[sizeof("/proc//stat") + 256], text[1024];
	struct native_task *parent;
	struct dirent *e;
	const char *p;
	int r;

	if (!dir)
		return native_fail(w->tree, -errno, "/proc cannot be read");
	while ((e = readdir(dir))) {
		if (!isdigit((unsigned char)e->d_name[0]))
			continue;
		snprintf(path, sizeof(path), "/proc/%s/stat", e->d_name);
		if (read_small(path, text, sizeof(text)) <= 0)
			continue;
		/* "pid (name) S ppid": the name may hold anything, a ")" as well. */
		p = strrchr(text, ')');
		if (!p || strlen(p) < 5)
			continue;
		parent = tree_find(w->tree, (pid_t)atol(p + 4));
		if (!parent || !parent->pid || !w->seen[parent - w->tree->tasks])
			continue;
		r = see_task(w, (pid_t)atol(e->d_name), parent->pid);
		if (r < 0)
			return r;
	}
	return 0;
}

static int walk_by_scan(struct walk *w)
{
	size_t before, after = 0;
	int r;

	do {
		before = after;
		r = scan_children(w);
		if (r < 0)
			return r;
		after = 0;
		for (size_t i = 0; i < w->tree->task_count; i++)
			after += w->seen[i];
	} while (after != before);
	for (size_t i = 0; i < w->tree->task_count; i++) {
		if (!w->seen[i] || !w->tree->tasks[i].pid)
			continue;
		r = list_threads(w, &w->tree->tasks[i]);
		if (r < 0)
			return r;
	}
	return 0;
}

/* Parents come first in the tree, an orphan's new parent too: one pass is enough. */
static int walk_by_files(struct walk *w)
{
	struct native_tree *tree = w->tree;
	int r;

	for (size_t i = 0; i < tree->task_count; i++) {
		pid_t pid = tree->tasks[i].pid;

		if (!pid || !w->seen[i])
			continue;
		r = list_threads(w, &tree->tasks[i]);
		if (r < 0)
			return r;
		if (tree->tasks[i].zombie)
			continue;
		for (size_t k = 0; k < tree->tasks[i].thread_count; k++) {
			pid_t tid = tree->tasks[i].threads[k].tid;

			/* Moves tree->tasks when it grows. */
			r = tid ? list_children(w, pid, tid) : 0;
			if (r < 0)
				return r;
		}
	}
	return 0;
}

bool list_counts(const struct native_tree *tree)
{
	for (size_t i = 0; i < tree->task_count; i++) {
		const struct native_task *task = &tree->tasks[i];

		if (task->pid && !task->zombie && !threads_known(task))
			return false;
	}
	return true;
}

static bool children_known(const struct native_tree *tree, pid_t pid, pid_t tid)
{
	char path[64], text[LIST_TEXT_MAX], *next = text, *end;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", pid, tid);
	n = read_small(path, text, sizeof(text));
	/* Longer than we look at here: let it be listed. */
	if (n < 0 || n == LIST_TEXT_MAX - 1)
		return false;
	for (long child = strtol(next, &end, 10); end != next; child = strtol(next, &end, 10)) {
		if (!tree_find(tree, (pid_t)child))
			return false;
		next = end;
	}
	return true;
}

bool list_holds(const struct native_tree *tree, bool by_scan)
{
	for (size_t i = 0; i < tree->task_count; i++) {
		const struct native_task *task = &tree->tasks[i];
		bool busy = false;

		if (!task->pid || task->zombie)
			continue;
		for (size_t k = 0; k < task->thread_count; k++) {
			const struct native_thread *t = &task->threads[k];

			if (!t->tid || !t->busy)
				continue;
			busy = true;
			if (by_scan || !children_known(tree, task->pid, t->tid))
				return false;
		}
		if (busy && !threads_known(task))
			return false;
	}
	return true;
}

bool list_has_children_files(void)
{
	return access("/proc/thread-self/children", F_OK) == 0;
}

int list_update(struct native_tree *tree, bool by_scan, bool *ret_changed, pid_t *ret_left)
{
	struct walk w = { .tree = tree };
	pid_t tracer, left = 0;
	int r;

	if (!list_thread_count(tree->root))
		return native_fail(tree, -ESRCH, "process %d has ended", tree->root);
	r = see_task(&w, tree->root, 0);
	if (r == 0)
		r = by_scan ? walk_by_scan(&w) : walk_by_files(&w);
	if (r < 0)
		return r;
	for (size_t i = 0; i < tree->task_count; i++) {
		struct native_task *t = &tree->tasks[i];
		bool ours = false, empty = true;

		for (size_t k = 0; k < t->thread_count; k++) {
			empty = empty && !t->threads[k].tid;
			ours = ours || (t->threads[k].tid && t->threads[k].seized);
		}
		if (!t->pid || (w.seen[i] && !empty))
			continue;
		if (ours && list_state(t->pid, &tracer)) {
			left = t->pid;
			continue;
		}
		/* Children that it had are in no list that was read before it ended. */
		if (w.seen[i])
			tree->births = -1;
		t->pid = 0;
		w.changed = true;
	}
	*ret_changed = w.changed;
	*ret_left = left;
	return 0;
}

int tree_list(struct native_tree *tree)
{
	bool by_scan = !list_has_children_files(), changed = true;
	pid_t left, tracer;
	int r;

	for (int i = 0; changed && i < LIST_ROUNDS; i++) {
		list_begin(tree);
		r = list_update(tree, by_scan, &changed, &left);
		if (r < 0)
			return r;
	}
	tree_compact(tree);
	if (changed)
		tree->births = -1;
	if (!tree->task_count || !tree->tasks[0].thread_count || tree->tasks[0].zombie ||
	    !list_state(tree->root, &tracer))
		return native_fail(tree, -ESRCH, "process %d has ended", tree->root);
	return 0;
}
