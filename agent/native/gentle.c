// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The tree from /proc and the threads of the session must be the same: the module's own walk says
 * that nobody is missing. Only the registers come from the module; all else is read as ever.
 */
#include "agent/native/gentle.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "agent/native/asleep.h"
#include "agent/native/freeze.h"
#include "agent/native/freeze_internal.h"
#include "agent/util/kmod.h"
#include "kmod/uapi/decamp.h"

enum {
	LISTS_MAX = 4,
	ROOM_MORE = 64, /* for those born since the list */
	PARK_MS = 200,
	MODE_FILTER = 2, /* SECCOMP_MODE_FILTER */
	/* Linux: what a call that has not returned shows as its result. */
	IN_CALL = -ENOSYS,
};

struct native_gentle {
	int session;
	struct decamp_thread *threads;
	size_t count;
	uint8_t xsave[NATIVE_XSAVE_MAX];
};

_Static_assert(sizeof(struct user_regs_struct) == sizeof(((struct decamp_thread *)0)->regs),
	       "the module has ptrace's registers");

bool gentle_works(void)
{
	return kmod_works();
}

static uint64_t mono_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* -EAGAIN, for callers that say so in one line. */
static int __attribute__((format(printf, 2, 3)))
not_so(struct native_tree *tree, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(tree->not_gentle, sizeof(tree->not_gentle), fmt, ap);
	va_end(ap);
	return -EAGAIN;
}

/* All of them, as they are now. */
static int read_threads(struct native_tree *tree, struct native_gentle *g, size_t room)
{
	size_t total = room;
	int r = 0;

	do {
		room = total > room ? total + ROOM_MORE : room;
		g->threads = arena_alloc(tree->arena, room * sizeof(*g->threads));
		if (!g->threads)
			return -ENOMEM;
		r = kmod_threads(g->session, g->threads, room, &total);
	} while (r == 0 && total > room);
	if (r < 0)
		return not_so(tree, "the module does not list the threads: %s", strerror(-r));
	g->count = total;
	return 0;
}

/* Who did not stop until the end of the time, or was just woken up. */
static int check_stopped(struct native_tree *tree, const struct native_gentle *g)
{
	unsigned int blocked = 0, running = 0;

	for (size_t i = 0; i < g->count; i++) {
		blocked += g->threads[i].state == DECAMP_BLOCKED;
		running += g->threads[i].state == DECAMP_RUNNING;
	}
	if (blocked)
		return not_so(tree, "%u threads wait in the kernel", blocked);
	if (running)
		return not_so(tree, "%u threads do not stand still", running);
	return 0;
}

static size_t thread_count(const struct native_tree *tree)
{
	size_t count = 0;

	for (size_t i = 0; i < tree->task_count; i++)
		count += tree->tasks[i].zombie ? 0 : tree->tasks[i].thread_count;
	return count;
}

/* Where the last one was found: the threads of a process follow each other in both lists. */
struct place {
	struct native_task *task;
	size_t hint;
};

static struct native_thread *find(const struct native_tree *tree, struct place *p,
				  const struct decamp_thread *t)
{
	if (!p->task || p->task->pid != t->tgid)
		*p = (struct place){ .task = tree_find(tree, t->tgid) };
	return p->task && !p->task->zombie ? task_find_next(p->task, t->tid, &p->hint) : NULL;
}

/* Every thread that lives is in the tree, and the tree has no others. */
static bool matches(const struct native_tree *tree, const struct native_gentle *g)
{
	struct place place = { 0 };
	size_t alive = 0;

	for (size_t i = 0; i < g->count; i++) {
		if (g->threads[i].state == DECAMP_GONE)
			continue;
		if (!find(tree, &place, &g->threads[i]))
			return false;
		alive++;
	}
	return alive == thread_count(tree);
}

/* Nobody is born or ends any more: at most one more list is needed. */
static int match(struct native_tree *tree, const struct native_gentle *g)
{
	bool changed, by_scan = !list_has_children_files();
	pid_t left;
	int r = 0;

	for (int i = 0; r == 0 && i < LISTS_MAX; i++) {
		if (matches(tree, g))
			return 0;
		r = list_update(tree, by_scan, &changed, &left);
		tree_compact(tree);
	}
	return not_so(tree, "the processes are not those that the module holds");
}

static struct user_regs_struct *regs_of(struct decamp_thread *t)
{
	return (struct user_regs_struct *)(void *)t->regs;
}

/*
 * What is needed to make an image of one that sleeps, or -EAGAIN. Nobody is woken unless `wake`: not
 * for a snapshot that another thread makes ptrace's.
 */
static int judge(struct native_tree *tree, struct native_gentle *g, struct decamp_thread *t,
		 bool wake, bool *ret_wakes)
{
	long nr = (long)regs_of(t)->orig_rax;
	int r;

	if (t->state != DECAMP_PARKED && t->state != DECAMP_QUIESCED)
		return not_so(tree, "thread %d does not stand still", t->tid);
	if (!(t->flags & DECAMP_THREAD_REGS))
		return not_so(tree, "thread %d is in 32-bit code", t->tid);
	if (t->state == DECAMP_PARKED)
		return 0;
	/* Stopped by a signal, in a frozen cgroup, or at a page that somebody holds. */
	if (nr < 0 || (long)regs_of(t)->rax != IN_CALL)
		return not_so(tree, "thread %d stands elsewhere than in a system call", t->tid);
	switch (asleep_in(t->tgid, regs_of(t))) {
	case ASLEEP_AGAIN:
		return 0;
	case ASLEEP_WAKE:
		*ret_wakes = true;
		if (!wake)
			return 0;
		r = kmod_park(g->session, t->tid, PARK_MS);
		if (r < 0)
			return not_so(tree, "thread %d stays in system call %ld: %s", t->tid, nr,
				      strerror(-r));
		return 0;
	default:
		return not_so(tree, "thread %d sleeps in system call %ld", t->tid, nr);
	}
}

static int judge_all(struct native_tree *tree, struct native_gentle *g, bool wake, bool *ret_wakes)
{
	int r = 0;

	for (size_t k = 0; r == 0 && k < g->count; k++)
		if (g->threads[k].state != DECAMP_GONE)
			r = judge(tree, g, &g->threads[k], wake, ret_wakes);
	return r;
}

/*
 * Who had to be woken is read again, and with him all: somebody may have moved. Nobody who stands at
 * the last look falls asleep again.
 */
static int read_all(struct native_tree *tree, struct native_gentle *g)
{
	bool woken = true;
	int r = 0;

	for (int i = 0; r == 0 && woken && i < LISTS_MAX; i++) {
		r = read_threads(tree, g, thread_count(tree) + ROOM_MORE);
		if (r == 0)
			r = check_stopped(tree, g);
		if (r == 0)
			r = match(tree, g);
		woken = false;
		if (r == 0)
			r = judge_all(tree, g, false, &woken);
		if (r == 0 && woken)
			r = judge_all(tree, g, true, &woken);
	}
	return r == 0 && woken ? not_so(tree, "threads fall asleep again and again") : r;
}

/* As the kernel would: the call is made again (regs.c). */
static void give_regs(struct native_tree *tree, struct native_gentle *g)
{
	struct place place = { 0 };

	for (size_t i = 0; i < g->count; i++) {
		struct decamp_thread *from = &g->threads[i];
		struct native_thread *t;

		if (from->state == DECAMP_GONE)
			continue;
		t = find(tree, &place, from);
		t->stopped = t->regs_read = true;
		t->seized = t->in_group_stop = false;
		t->switches = from->switches;
		t->regs = *regs_of(from);
		if (from->state == DECAMP_QUIESCED)
			t->regs.rax = (unsigned long long)-FREEZE_RESTARTNOINTR;
	}
}

static int hold(struct native_tree *tree, int deadline_ms)
{
	struct native_gentle *g = arena_alloc(tree->arena, sizeof(*g));
	int r, ms = deadline_ms < GENTLE_FREEZE_MS ? deadline_ms : GENTLE_FREEZE_MS;

	if (!g)
		return -ENOMEM;
	r = kmod_freeze(tree->root, ms, GENTLE_LEASE_MS, &g->session);
	if (r == -EOPNOTSUPP)
		return not_so(tree, "it has threads of the kernel's");
	if (r < 0)
		return not_so(tree, "the module does not freeze it: %s", strerror(-r));
	r = read_all(tree, g);
	if (r < 0) {
		close(g->session);
		return r;
	}
	tree->gentle = g;
	give_regs(tree, g);
	return 0;
}

int gentle_freeze(struct native_tree *tree, int deadline_ms)
{
	int r = tree->births > 0 && tree->births == list_last_pid() ? 0 : tree_list(tree);

	if (r < 0)
		return r;
	tree->not_gentle[0] = '\0';
	freeze_raise();
	tree->stop_ns = mono_ns();
	r = hold(tree, deadline_ms);
	if (r < 0) {
		tree->vain_ns = mono_ns() - tree->stop_ns;
		tree->stop_ns = 0;
		freeze_lower();
		/* What was said meanwhile was about this way of stopping. */
		if (tree->reason)
			tree->reason[0] = '\0';
	}
	return r;
}

void gentle_thaw(struct native_tree *tree)
{
	close(tree->gentle->session);
	tree->go_ns = mono_ns();
	freeze_lower();
	tree->gentle = NULL;
	for (size_t i = 0; i < tree->task_count; i++)
		for (size_t k = 0; k < tree->tasks[i].thread_count; k++)
			tree->tasks[i].threads[k].stopped = false;
}

bool gentle_covers(struct native_tree *tree)
{
	for (size_t i = 0; i < tree->task_count; i++) {
		const struct native_task *task = &tree->tasks[i];

		if (task->zombie)
			continue;
		if (!task->state)
			return not_so(tree, "nothing is known of process %d", task->pid), false;
		if (task->state->shared_pending)
			return not_so(tree, "signals wait for process %d", task->pid), false;
		for (size_t k = 0; k < task->thread_count; k++) {
			const struct native_thread *t = &task->threads[k];

			if (!t->state)
				return not_so(tree, "nothing is known of thread %d", t->tid), false;
			if (t->state->pending)
				return not_so(tree, "signals wait for thread %d", t->tid), false;
			if (t->state->seccomp_mode == MODE_FILTER)
				return not_so(tree, "thread %d has a seccomp filter", t->tid),
				       false;
		}
	}
	return true;
}

int gentle_xsave(struct native_tree *tree, struct native_thread *t)
{
	struct native_gentle *g = tree->gentle;
	size_t size;
	int r = kmod_xstate(g->session, t->tid, t->switches, g->xsave, sizeof(g->xsave), &size);

	if (r == -EMSGSIZE)
		return native_fail(tree, -EOPNOTSUPP,
				   "thread %d has more than %d bytes of registers", t->tid,
				   NATIVE_XSAVE_MAX);
	if (r == -EAGAIN)
		return native_fail(tree, -EAGAIN, "thread %d moved in the pause", t->tid);
	if (r < 0)
		return native_fail(tree, r, "registers of thread %d cannot be read: %s", t->tid,
				   strerror(-r));
	t->xsave = arena_alloc(tree->arena, size);
	if (!t->xsave)
		return -ENOMEM;
	memcpy(t->xsave, g->xsave, size);
	t->xsave_size = size;
	return 0;
}

int gentle_verify(struct native_tree *tree)
{
	struct native_gentle now = { .session = tree->gentle->session };
	const struct native_gentle *was = tree->gentle;
	size_t total = 0;
	int r;

	now.threads = arena_alloc(tree->arena, was->count * sizeof(*now.threads));
	if (!now.threads)
		return native_fail(tree, -EAGAIN, "no memory to look at the threads again");
	r = kmod_threads(now.session, now.threads, was->count, &total);
	if (r == -EOWNERDEAD)
		return native_fail(tree, -ETIMEDOUT, "it stood for longer than %d ms",
				   GENTLE_LEASE_MS);
	if (r < 0)
		return native_fail(tree, r, "the module does not list the threads: %s",
				   strerror(-r));
	if (total != was->count)
		return native_fail(tree, -EAGAIN, "threads were born in the pause");
	for (size_t i = 0; i < total; i++) {
		const struct decamp_thread *a = &was->threads[i], *b = &now.threads[i];

		if (a->state == DECAMP_GONE && b->state == DECAMP_GONE)
			continue;
		if (a->tid != b->tid || a->state != b->state || a->switches != b->switches)
			return native_fail(tree, -EAGAIN, "thread %d moved in the pause", a->tid);
	}
	return 0;
}
