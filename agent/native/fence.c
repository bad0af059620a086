// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/native/fence.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/native/freeze_internal.h"
#include "agent/util/io.h"

enum { MEND_MS = 1000, LIST_MAX = 1 << 20 };

int fence_open(int dir, struct native_fence *ret_fence)
{
	struct native_fence f = NATIVE_NO_FENCE;

	f.dir = fcntl(dir, F_DUPFD_CLOEXEC, 0);
	if (f.dir < 0)
		return -errno;
	f.freeze = openat(f.dir, "cgroup.freeze", O_RDWR | O_CLOEXEC);
	if (f.freeze < 0) {
		close(f.dir);
		return -EOPNOTSUPP;
	}
	*ret_fence = f;
	return 0;
}

void fence_close(struct native_fence *f)
{
	if (f->freeze >= 0)
		close(f->freeze);
	if (f->dir >= 0)
		close(f->dir);
	*f = NATIVE_NO_FENCE;
}

static bool is_there(const struct native_fence *f)
{
	return f && f->freeze >= 0;
}

bool fence_raise(const struct native_fence *f)
{
	return is_there(f) && pwrite(f->freeze, "1", 1, 0) == 1;
}

void fence_lower(const struct native_fence *f)
{
	if (is_there(f))
		(void)!pwrite(f->freeze, "0", 1, 0);
}

bool fence_is_up(const struct native_fence *f)
{
	char state = '0';

	return is_there(f) && pread(f->freeze, &state, 1, 0) == 1 && state == '1';
}

/* fn for each number in a list of the cgroup's, until one returns false. */
static bool each(const struct native_fence *f, const char *list,
		 bool (*fn)(void *ctx, pid_t number), void *ctx)
{
	_cleanup_free_ char *text = NULL;
	bool all = true;

	if (read_file_at(f->dir, list, LIST_MAX, &text, NULL) < 0)
		return false;
	for (char *at = text, *end; all; at = end) {
		long number = strtol(at, &end, 10);

		if (end == at)
			break;
		all = fn(ctx, (pid_t)number);
	}
	return all;
}

static bool is_in_tree(void *ctx, pid_t pid)
{
	return tree_find(ctx, pid) != NULL;
}

bool fence_covers(const struct native_fence *f, const struct native_tree *tree)
{
	struct native_tree look = *tree;

	return is_there(f) && each(f, "cgroup.procs", is_in_tree, &look);
}

struct mending {
	struct freeze_tick tick;
	bool stuck; /* one that we trace did not stop */
};

/*
 * Until it stands where EINTR can be mended; another's thread, one that ends, and one that waits in
 * the kernel (a parent in vfork(2), whose child stands here) are passed over.
 */
static bool mend(void *ctx, pid_t tid)
{
	struct mending *m = ctx;
	struct user_regs_struct regs;
	siginfo_t si;
	pid_t tracer;
	long ax;

	if (tid <= 0 || list_state(tid, &tracer) == 'D' || ptrace(PTRACE_SEIZE, tid, 0, 0) < 0)
		return true;
	(void)ptrace(PTRACE_INTERRUPT, tid, 0, 0);
	for (;;) {
		int event;

		if (waitid(P_PID, (id_t)tid, &si, WEXITED | WSTOPPED | WNOWAIT | __WALL) < 0) {
			if (errno == EINTR && !tick_over(&m->tick))
				continue;
			m->stuck = m->stuck || errno == EINTR;
			return true;
		}
		if (si.si_code != CLD_TRAPPED && si.si_code != CLD_STOPPED) {
			(void)waitid(P_PID, (id_t)tid, &si, WEXITED | WNOHANG | __WALL);
			return true;
		}
		event = si.si_status >> 8;
		if (event == FREEZE_EVENT_STOP)
			break;
		(void)ptrace(PTRACE_INTERRUPT, tid, 0, 0);
		(void)ptrace(PTRACE_CONT, tid, 0, event ? 0 : si.si_status);
	}
	if ((si.si_status & 0xff) == SIGTRAP && ptrace(PTRACE_GETREGS, tid, 0, &regs) == 0) {
		ax = regs_repaired_ax(&regs);
		if (ax != (long)regs.rax)
			(void)ptrace(PTRACE_POKEUSER, tid, offsetof(struct user_regs_struct, rax),
				     ax);
	}
	(void)ptrace(PTRACE_DETACH, tid, 0, 0);
	return true;
}

int fence_mend(const struct native_fence *f)
{
	struct mending m = { 0 };

	if (!is_there(f))
		return 0;
	if (tick_start(&m.tick, MEND_MS, NULL, NULL) == 0) {
		(void)each(f, "cgroup.threads", mend, &m);
		tick_stop(&m.tick);
	}
	fence_lower(f);
	return m.stuck ? -ENOTRECOVERABLE : 0;
}
