// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Stop and let go. Order of a freeze: seize every known thread and tell it to stop, wait for all,
 * then look whether anybody was born meanwhile, and so on until nobody was.
 *
 * A signal that is ignored is dropped when it is sent, unless the main thread has a tracer; then it
 * wakes any thread, whose call returns EINTR. So main threads are seized last and let go first, and
 * nobody is seized without being told to stop: in that stop the EINTR is repaired.
 *
 * Stops are looked at with WNOWAIT: wait(2) would take the signal out of a stopped thread, and if
 * we were killed just then, the kernel would have none to deliver.
 */
#include "agent/native/freeze.h"

#include <errno.h>
#include <linux/kcmp.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "agent/native/fence.h"
#include "agent/native/freeze_internal.h"
#include "agent/native/gentle.h"

enum {
	LISTS_BEFORE_MAX = 4, /* while it runs; later ones find what is left */
	LET_RUN_MAX = 32,
	POLL_US = 100,
	SEIZE_TRIES = 20,
	LOOKS_MAX = 256, /* threads whose calls are looked at, for the fence */
	STRAY_TICKS = 100,
	FOLLOW = PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE,
};

struct freezer {
	struct native_tree *tree;
	struct freeze_tick tick;
	volatile sig_atomic_t seizing;
	bool by_scan;
	bool follow; /* newborn threads and processes are ours from the start */
	bool relist; /* somebody has ended, or was born */
	bool stuck;  /* one beside the tree is traced and does not stop: our end alone frees it */
	bool fenced; /* the kernel holds all of it, whatever becomes of us */
	bool moved; /* as relist, but never taken back: somebody behind the fence may not be ours */
	bool lost;  /* somebody has ended who was to tell us of newborn ones */
	uint64_t noted_ns; /* the end of what is in tree->blocked_ns and tree->queued_ns */
	/* Children of vfork(2), whose parents cannot stop before they have called exec. */
	pid_t let_run[LET_RUN_MAX];
	size_t let_run_count;
};

/* Calls fn for each thread that is there; < 0 ends it. Indexes, because the tree may move. */
static int each_thread(struct freezer *f, int (*fn)(struct freezer *f, struct native_thread *t))
{
	int r = 0;

	for (size_t i = 0; i < f->tree->task_count; i++) {
		if (!f->tree->tasks[i].pid)
			continue;
		for (size_t k = 0; r == 0 && k < f->tree->tasks[i].thread_count; k++)
			if (f->tree->tasks[i].threads[k].tid)
				r = fn(f, &f->tree->tasks[i].threads[k]);
		if (r < 0)
			return r;
	}
	return 0;
}

/*
 * With one thread others may end, of exec(2) or exit(2), also such as stood already; and an exec
 * gives its number to another one. So all of its process must be seen again: stops are kept.
 */
static void forget(struct freezer *f, struct native_thread *t)
{
	struct native_task *task = t->task;

	f->relist = f->moved = true;
	f->lost = f->lost || f->follow;
	t->seized = false;
	for (size_t i = 0; i < task->thread_count; i++)
		task->threads[i].stopped = false;
	/* The list says whether a process that ended is still there, as a zombie. */
	if (t->tid == task->pid)
		task->zombie = true;
	else
		t->tid = 0;
}

/*
 * exec(2) waits for the other threads of its process to be reaped, by us if we trace them. First a
 * look: stops are given to a tracer whether it asks for them or not, and would be gone.
 */
static int reap_ended(struct freezer *f, struct native_thread *t)
{
	siginfo_t si = { 0 };

	if (!t->seized || t->tid == t->task->pid ||
	    waitid(P_PID, (id_t)t->tid, &si, WEXITED | WNOHANG | WNOWAIT | __WALL) < 0 ||
	    !si.si_pid || si.si_code == CLD_TRAPPED || si.si_code == CLD_STOPPED)
		return 0;
	(void)waitid(P_PID, (id_t)t->tid, &si, WEXITED | WNOHANG | __WALL);
	forget(f, t);
	return 0;
}

/*
 * In the signal handler. PTRACE_SEIZE waits for an exec(2) that waits for us to reap: the known
 * deadlock. Only then is anything done, and nobody is changing the tree.
 */
static void on_tick(void *ctx)
{
	struct freezer *f = ctx;

	if (f->seizing)
		(void)each_thread(f, reap_ended);
}

static int refuse(struct freezer *f, const struct native_thread *t, pid_t tracer)
{
	if (t->task->pid == getpid())
		return native_fail(f->tree, -EOPNOTSUPP, "process %d is the one that would stop it",
				   t->task->pid);
	if (tracer)
		return native_fail(f->tree, -EOPNOTSUPP,
				   "thread %d of process %d is traced by process %d", t->tid,
				   t->task->pid, tracer);
	return native_fail(f->tree, -EOPNOTSUPP, "thread %d of process %d may not be traced",
			   t->tid, t->task->pid);
}

static int seize_now(struct freezer *f, const struct native_thread *t)
{
	int r;

	f->seizing = 1;
	r = ptrace(PTRACE_SEIZE, t->tid, 0, f->follow ? FOLLOW : 0) < 0 ? -errno : 0;
	f->seizing = 0;
	return r;
}

/* While an exec(2) hands a leader's number to another thread, the refusal is for one that has gone. */
static int seize(struct freezer *f, struct native_thread *t)
{
	bool leader = t->tid == t->task->pid;
	pid_t tracer = 0;
	char state;
	int r;

	if (t->seized || (leader && t->task->zombie))
		return 0;
	for (int i = 0; i < SEIZE_TRIES; i++) {
		r = seize_now(f, t);
		if (r == 0) {
			t->seized = true;
			return 0;
		}
		state = list_state(t->tid, &tracer);
		if (leader && state == 'Z' && list_thread_count(t->tid) > 1) {
			/* In the midst of an exec(2); else check_complete() will say so. */
			t->task->zombie = true;
			return 0;
		}
		if (r == -ESRCH || !state || state == 'Z' || state == 'X') {
			forget(f, t);
			return 0;
		}
		if (tracer == gettid()) { /* born of one that we follow */
			t->seized = true;
			return 0;
		}
		if (tracer || t->task->pid == getpid())
			break;
		usleep(POLL_US);
	}
	return refuse(f, t, tracer);
}

static bool waits(const struct native_thread *t)
{
	return t->tid && t->seized && !t->stopped;
}

static int interrupt(struct freezer *f, struct native_thread *t)
{
	(void)f;
	if (waits(t))
		(void)ptrace(PTRACE_INTERRUPT, t->tid, 0, 0);
	return 0;
}

/* The repair happens at once: if we are killed from here on, the program still sees no EINTR. */
static void settle(struct native_tree *tree, struct native_thread *t, int signo)
{
	long ax;

	t->stopped = true;
	t->in_group_stop = signo != SIGTRAP;
	t->regs_read = ptrace(PTRACE_GETREGS, t->tid, 0, &t->regs) == 0;
	if (!t->regs_read)
		return;
	ax = t->in_group_stop ? (long)t->regs.rax : regs_repaired_ax(&t->regs);
	if (ax == (long)t->regs.rax)
		return;
	tree->leaks = true;
	if (ptrace(PTRACE_POKEUSER, t->tid, offsetof(struct user_regs_struct, rax), ax) == 0)
		t->regs.rax = (unsigned long long)ax;
}

/* For each task: its threads, then the main one. */
static int take_all(struct freezer *f)
{
	for (size_t i = 0; i < f->tree->task_count; i++) {
		struct native_task *task = &f->tree->tasks[i];

		for (int leaders = 0; task->pid && leaders < 2; leaders++)
			for (size_t k = 0; k < task->thread_count; k++) {
				struct native_thread *t = &task->threads[k];
				int r;

				if (!t->tid || (t->tid == task->pid) != leaders)
					continue;
				r = seize(f, t);
				if (r < 0)
					return r;
				(void)interrupt(f, t);
			}
	}
	return 0;
}

static bool is_thread_of(pid_t pid, pid_t tid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task/%d", pid, tid);
	return access(path, F_OK) == 0;
}

/* A thread that we follow has just made another one, which stops by itself. Moves the tree. */
static int newborn(struct freezer *f, pid_t pid, pid_t tid)
{
	struct native_thread *t = NULL;
	struct native_task *task;
	unsigned long born;
	int r;

	f->relist = f->moved = true;
	if (ptrace(PTRACE_GETEVENTMSG, tid, 0, &born) < 0 || !born)
		return 0;
	task = tree_find(f->tree, pid);
	if (!is_thread_of(pid, (pid_t)born))
		task = tree_find(f->tree, (pid_t)born);
	if (!task) {
		r = tree_add_task(f->tree, (pid_t)born, pid, &task);
		if (r < 0)
			return r;
	}
	t = task_find_thread(task, (pid_t)born);
	if (!t) {
		r = tree_add_thread(f->tree, task, (pid_t)born, &t);
		if (r < 0)
			return r;
	}
	t->seized = true;
	return 0;
}

static int reap(struct freezer *f, struct native_thread *t)
{
	siginfo_t si = { 0 };

	(void)waitid(P_PID, (id_t)t->tid, &si, WEXITED | WNOHANG | __WALL);
	forget(f, t);
	return 0;
}

/* One report of a thread. again: it shall stop; else it was let run for its parent. Moves the tree. */
static int handle(struct freezer *f, struct native_thread *t, const siginfo_t *si, bool again)
{
	int signo = si->si_status & 0xff, event = si->si_status >> 8, r = 0;
	pid_t tid = t->tid;

	if (si->si_code != CLD_TRAPPED && si->si_code != CLD_STOPPED)
		return reap(f, t);
	if (event == FREEZE_EVENT_STOP && again) {
		settle(f->tree, t, signo);
		return 0;
	}
	if (event >= FREEZE_EVENT_FORK && event <= FREEZE_EVENT_CLONE)
		r = newborn(f, t->task->pid, tid);
	/* Any report takes back that it was told to stop. */
	if (again)
		(void)ptrace(PTRACE_INTERRUPT, tid, 0, 0);
	(void)ptrace(PTRACE_CONT, tid, 0, event ? 0 : signo);
	return r;
}

/* Several may be let run at the same time: "make -j". */
static bool is_let_run(const struct freezer *f, pid_t pid)
{
	for (size_t i = 0; i < f->let_run_count; i++)
		if (f->let_run[i] == pid)
			return true;
	return false;
}

static bool same_memory(pid_t a, pid_t b)
{
	long r = syscall(SYS_kcmp, a, b, KCMP_VM, 0, 0);

	/* Without kcmp(2) any child is taken for one: it runs a moment longer. */
	return r == 0 || (r < 0 && errno != ESRCH);
}

/* All that we trace are mended or will stop first. Others may be behind it: of these we see to it. */
static void drop_fence(struct freezer *f, bool sure)
{
	if (f->fenced && sure)
		fence_lower(f->tree->fence);
	else if (f->fenced && fence_mend(f->tree->fence) < 0)
		f->stuck = true;
	f->fenced = false;
}

/* In vfork(2) nothing stops the parent: its child must go on until it calls exec or ends. */
static void let_child_run(struct freezer *f, const struct native_thread *t)
{
	if (!list_is_birth(list_syscall(t->tid)))
		return;
	for (size_t i = 0; i < f->tree->task_count; i++) {
		struct native_task *c = &f->tree->tasks[i];

		if (c->parent != t->task || !c->pid || c->zombie || is_let_run(f, c->pid) ||
		    f->let_run_count >= LET_RUN_MAX || !same_memory(t->tid, c->pid))
			continue;
		drop_fence(f, false);
		f->let_run[f->let_run_count++] = c->pid;
		for (size_t k = 0; k < c->thread_count; k++) {
			if (!c->threads[k].tid || !c->threads[k].stopped)
				continue;
			c->threads[k].stopped = false;
			(void)ptrace(PTRACE_CONT, c->threads[k].tid, 0, 0);
		}
	}
}

/* Those that were let run go on whatever happens to them: signals, births. */
static int keep_running(struct freezer *f, struct native_thread *t)
{
	siginfo_t si = { 0 };

	if (!waits(t) || !is_let_run(f, t->task->pid) ||
	    waitid(P_PID, (id_t)t->tid, &si, WEXITED | WSTOPPED | WNOHANG | WNOWAIT | __WALL) < 0 ||
	    !si.si_pid)
		return 0;
	return handle(f, t, &si, false);
}

static int too_late(struct freezer *f, const struct native_thread *t)
{
	pid_t tracer;
	char state = list_state(t->tid, &tracer);
	const char *why = "";

	if (state == 'Z' && t->tid == t->task->pid)
		return native_fail(f->tree, -EOPNOTSUPP,
				   "the main thread of process %d has ended before the others",
				   t->task->pid);
	if (state == 'D')
		why = f->let_run_count ? ": it waits for a child in vfork" :
					 ": it waits in the kernel";
	return native_fail(f->tree, -ETIMEDOUT, "thread %d of process %d did not stop in time%s",
			   t->tid, t->task->pid, why);
}

uint64_t freeze_mono_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* What it is that takes so long. */
static void note_wait(struct freezer *f, bool blocked)
{
	uint64_t now_ns = freeze_mono_ns();

	*(blocked ? &f->tree->blocked_ns : &f->tree->queued_ns) += now_ns - f->noted_ns;
	f->noted_ns = now_ns;
}

/* Every millisecond of a wait for this thread. Moves the tree. */
static int look_around(struct freezer *f, const struct native_thread *t)
{
	pid_t tracer;
	bool blocked = list_state(t->tid, &tracer) == 'D';

	note_wait(f, blocked);
	if (tick_over(&f->tick))
		return too_late(f, t);
	if (blocked)
		let_child_run(f, t);
	(void)each_thread(f, reap_ended);
	return each_thread(f, keep_running);
}

static int wait_thread(struct freezer *f, size_t task, size_t thread)
{
	for (;;) {
		struct native_thread *t = &f->tree->tasks[task].threads[thread];
		siginfo_t si = { 0 };
		int r;

		if (!waits(t) || is_let_run(f, t->task->pid))
			return 0;
		if (waitid(P_PID, (id_t)t->tid, &si, WEXITED | WSTOPPED | WNOWAIT | __WALL) == 0)
			r = handle(f, t, &si, true);
		else if (errno == EINTR)
			r = look_around(f, t);
		else
			return forget(f, t), 0;
		if (r < 0)
			return r;
	}
}

static int wait_all(struct freezer *f, bool *ret_left)
{
	bool left = false;
	int r;

	for (size_t i = 0; i < f->tree->task_count; i++)
		for (size_t k = 0; k < f->tree->tasks[i].thread_count; k++) {
			r = wait_thread(f, i, k);
			if (r < 0)
				return r;
		}
	for (size_t i = 0; i < f->tree->task_count; i++)
		for (size_t k = 0; k < f->tree->tasks[i].thread_count; k++)
			left = left || waits(&f->tree->tasks[i].threads[k]);
	*ret_left = left;
	return 0;
}

static int stop_all(struct freezer *f)
{
	bool left = true;
	int r = take_all(f);

	while (r == 0 && left) {
		r = wait_all(f, &left);
		f->let_run_count = 0;
		if (r == 0 && left)
			r = each_thread(f, interrupt);
	}
	return r;
}

static int update(struct freezer *f, bool *ret_changed, pid_t *ret_left)
{
	tree_compact(f->tree);
	f->relist = false;
	list_begin(f->tree);
	return list_update(f->tree, f->by_scan, ret_changed, ret_left);
}

static bool is_fresh(const struct freezer *f)
{
	return f->tree->births > 0 && !f->relist && list_last_pid() == f->tree->births;
}

/* While it runs: what is known now need not be looked for in the pause. */
static int list_known(struct freezer *f)
{
	bool changed = true;
	pid_t left;
	int r = 0;

	for (int i = 0; r == 0 && changed && i < LISTS_BEFORE_MAX && !is_fresh(f); i++)
		r = update(f, &changed, &left);
	return r;
}

/* Nobody that is known can give birth any more: an unchanged list is the whole tree. */
static int stop_the_rest(struct freezer *f)
{
	bool changed = true;
	pid_t left;
	int r = 0;

	if (is_fresh(f) && list_holds(f->tree, f->by_scan))
		return 0;
	f->follow = true;
	while (r == 0 && (changed || f->relist || !list_counts(f->tree))) {
		if (tick_over(&f->tick))
			return native_fail(f->tree, -ETIMEDOUT,
					   "processes are born faster than they can be stopped");
		r = update(f, &changed, &left);
		if (r == 0 && left)
			return native_fail(f->tree, -EOPNOTSUPP,
					   "process %d has left the tree: its parent ended", left);
		if (r == 0)
			r = stop_all(f);
	}
	return r;
}

/*
 * Who sleeps in a call that a stop ends with EINTR goes behind the fence, and all with him. A job
 * that computes has none such and is spared the price, some 40 us. (The look says little of the
 * moment after it, so at first, and for many snapshots after such a call, nobody asks it; whoever goes
 * to sleep so for the first time after those, between look and stop, has no fence: a tracer that is
 * killed in that very moment is the price.)
 */
static bool needs_fence(struct native_tree *tree)
{
	size_t looks = 0;

	for (size_t i = 0; !tree->leaks && i < tree->task_count; i++)
		for (size_t k = 0; !tree->leaks && k < tree->tasks[i].thread_count; k++) {
			long nr = list_syscall(tree->tasks[i].threads[k].tid);

			tree->leaks = ++looks > LOOKS_MAX ||
				      (nr >= 0 && regs_leaks_eintr((unsigned long long)nr));
		}
	return tree->leaks;
}

static int check_complete(struct native_tree *tree)
{
	const struct native_task *root;

	for (size_t i = 0; i < tree->task_count; i++) {
		struct native_task *t = &tree->tasks[i];

		for (size_t k = 0; t->zombie && k < t->thread_count; k++)
			if (t->threads[k].stopped)
				return native_fail(tree, -EOPNOTSUPP,
						   "the main thread of process %d has ended before "
						   "the others",
						   t->pid);
	}
	root = tree_find(tree, tree->root);
	if (!root || root->zombie || !root->thread_count)
		return native_fail(tree, -ESRCH, "process %d has ended", tree->root);
	return 0;
}

/* Followed, but its parent was killed before it could tell: still stopped, and in no list. */
static void free_strays(const struct native_tree *tree)
{
	_cleanup_closedir_ DIR *dir = opendir("/proc");
	struct dirent *e;
	siginfo_t si;
	pid_t tracer;

	while (dir && (e = readdir(dir))) {
		pid_t pid = (pid_t)atol(e->d_name);

		if (pid <= 0 || tree_find(tree, pid) || !list_state(pid, &tracer) ||
		    tracer != gettid())
			continue;
		for (int i = 0; i < STRAY_TICKS; i++)
			if (waitid(P_PID, (id_t)pid, &si, WEXITED | WSTOPPED | WNOWAIT | __WALL) ==
				    0 ||
			    errno != EINTR)
				break;
		(void)ptrace(PTRACE_DETACH, pid, 0, 0);
	}
}

/* One that could not be let go at once: it was running, or it is about to end. */
static void let_go_later(struct native_tree *tree, struct native_thread *t)
{
	siginfo_t si = { 0 };
	int event;

	if (waitid(P_PID, (id_t)t->tid, &si, WEXITED | WSTOPPED | WNOHANG | WNOWAIT | __WALL) < 0) {
		t->seized = false;
		return;
	}
	if (!si.si_pid)
		return;
	if (si.si_code != CLD_TRAPPED && si.si_code != CLD_STOPPED) {
		(void)waitid(P_PID, (id_t)t->tid, &si, WEXITED | WNOHANG | __WALL);
		t->seized = false;
		return;
	}
	event = si.si_status >> 8;
	if (event == FREEZE_EVENT_STOP)
		settle(tree, t, si.si_status & 0xff);
	if (ptrace(PTRACE_DETACH, t->tid, 0, event ? 0 : si.si_status) == 0)
		t->seized = t->stopped = false;
}

/* Those not stopped must stop first: nothing else takes a tracer off a thread. Number left. */
static size_t let_go(struct native_tree *tree)
{
	struct freezer f = { .tree = tree };
	size_t left = 0;
	uint64_t until;

	for (size_t i = 0; i < tree->task_count; i++)
		for (size_t k = 0; k < tree->tasks[i].thread_count; k++) {
			struct native_thread *t = &tree->tasks[i].threads[k];

			if (t->seized && t->stopped && ptrace(PTRACE_DETACH, t->tid, 0, 0) == 0)
				t->seized = t->stopped = false;
			left += t->seized;
		}
	/* Before we are of common priority again: from then on the job may run first. */
	tree->go_ns = freeze_mono_ns();
	freeze_lower();
	if (left)
		(void)each_thread(&f, interrupt);
	/* By the clock: a round may take much longer than the sleep in it. */
	until = tree->go_ns + FREEZE_LINGER_MS * UINT64_C(1000000);
	while (left && freeze_mono_ns() < until) {
		left = 0;
		for (size_t i = 0; i < tree->task_count; i++)
			for (size_t k = 0; k < tree->tasks[i].thread_count; k++) {
				struct native_thread *t = &tree->tasks[i].threads[k];

				if (t->seized)
					let_go_later(tree, t);
				left += t->seized;
			}
		if (left)
			usleep(POLL_US);
		tree->go_ns = freeze_mono_ns();
	}
	return left;
}

void thaw_tree(struct native_tree *tree)
{
	if (tree->gentle)
		gentle_thaw(tree);
	else
		(void)let_go(tree);
}

static int trace_tree(struct native_tree *tree, int deadline_ms)
{
	struct freezer f = { .tree = tree, .by_scan = !list_has_children_files() };
	int r = tick_start(&f.tick, deadline_ms, on_tick, &f);

	if (r < 0)
		return native_fail(tree, r, "no timer for the deadline: %s", strerror(-r));
	r = list_known(&f);
	f.fenced = r == 0 && (tree->expects_leaks || needs_fence(tree)) &&
		   fence_covers(tree->fence, tree);
	freeze_raise();
	tree->stop_ns = f.noted_ns = freeze_mono_ns();
	f.fenced = f.fenced && fence_raise(tree->fence);
	if (r == 0)
		r = stop_all(&f);
	if (r == 0)
		r = stop_the_rest(&f);
	tree_compact(tree);
	if (r == 0)
		r = check_complete(tree);
	if (f.lost)
		free_strays(tree);
	drop_fence(&f, r == 0 && !f.moved);
	tick_stop(&f.tick);
	if (f.stuck)
		r = native_fail(tree, -ENOTRECOVERABLE,
				"a thread beside the tree hangs in the kernel");
	if (r < 0 && let_go(tree))
		r = native_fail(tree, -ENOTRECOVERABLE, "a thread hangs in the kernel");
	return r;
}

int freeze_tree(struct native_tree *tree, int deadline_ms)
{
	int r = tree->may_gentle ? gentle_freeze(tree, deadline_ms) : -EAGAIN;

	return r == -EAGAIN ? trace_tree(tree, deadline_ms) : r;
}
