// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Registers of stopped threads: what a stop did to a system call is undone, in the thread where
 * the kernel would show EINTR, in our copy where a restored thread shall make the call again.
 */
#include <elf.h>
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "agent/native/freeze.h"
#include "agent/native/freeze_internal.h"
#include "agent/native/gentle.h"
#include "agent/native/sleeps.h"

#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441
#endif

enum {
	USER_CS_64 = 0x33,
	SYSCALL_SIZE = 2, /* 0f 05, cd 80 */
	CODE_BEFORE = 48, /* bytes before a system call that are looked through */
	PEEK_BATCH = 16,
	RSEQ_BATCH = 64,
	RSEQ_CS_OFFSET = 8, /* of rseq_cs in struct rseq */
	RSEQ_NO_RESTART = 7,
	XSAVE_USUAL = 4096,	/* x87 to protection keys end before */
	XSAVE_FEATURES = 512,	/* xstate_bv: which parts are not in their first state */
	XSAVE_FIRST_LARGE = 10, /* number of the first part that may lie behind XSAVE_USUAL */
	PAGE_ZERO = 4096,
	FUTEX_FLAGS = 128 | 256, /* FUTEX_PRIVATE_FLAG, FUTEX_CLOCK_REALTIME */
	FUTEX_WAIT_OP = 0,
	FUTEX_WAIT_BITSET_OP = 9,
	CLOCKS_MAX = 16,
	PEEK_SHARED = 1, /* PTRACE_PEEKSIGINFO_SHARED */
};

/* linux/rseq.h is newer than some of our build hosts. */
struct rseq_section {
	uint32_t version, flags;
	uint64_t start_ip, post_commit_offset, abort_ip;
};

struct rseq_configuration {
	uint64_t pointer;
	uint32_t size, signature, flags, pad;
};

bool regs_are_64bit(const struct user_regs_struct *regs)
{
	return regs->cs == USER_CS_64;
}

/*
 * Calls that return EINTR for any stop, though no handler runs (signal(7), "Interruption of system
 * calls and library functions by stop signals"), and those that do so with a socket timeout or on a
 * file system in user space. All have done nothing yet when they say EINTR. Not here: close(2),
 * which has, ioctl(2), which may have.
 */
bool regs_leaks_eintr(unsigned long long nr)
{
	switch (nr) {
	case SYS_epoll_wait:
	case SYS_epoll_pwait:
	case SYS_epoll_pwait2:
	case SYS_semop:
	case SYS_semtimedop:
	case SYS_io_getevents:
	case SYS_io_uring_enter:
	case SYS_rt_sigtimedwait:
	case SYS_read:
	case SYS_readv:
	case SYS_pread64:
	case SYS_preadv:
	case SYS_preadv2:
	case SYS_write:
	case SYS_writev:
	case SYS_pwrite64:
	case SYS_pwritev:
	case SYS_pwritev2:
	case SYS_recvfrom:
	case SYS_recvmsg:
	case SYS_recvmmsg:
	case SYS_sendto:
	case SYS_sendmsg:
	case SYS_sendmmsg:
	case SYS_accept:
	case SYS_accept4:
	case SYS_connect: /* goes on with the connection that it had begun */
	case SYS_flock:
	case SYS_fcntl:
	case SYS_msgrcv:
	case SYS_msgsnd:
	case SYS_mq_timedreceive:
	case SYS_mq_timedsend:
		return true;
	default:
		return false;
	}
}

/*
 * ERESTARTNOHAND is the kernel's own word for it: the call is made again, unless a handler runs
 * first; then it returns EINTR, as it would have. So a signal that comes at the same time is no
 * matter. (ERESTARTSYS would restart epoll_wait after a handler with SA_RESTART: Linux never does.)
 */
long regs_repaired_ax(const struct user_regs_struct *regs)
{
	long ax = (long)regs->rax;

	if (ax == -EINTR && (long)regs->orig_rax >= 0 && regs_are_64bit(regs) &&
	    regs_leaks_eintr(regs->orig_rax))
		return -FREEZE_RESTARTNOHAND;
	return ax;
}

static int read_target(pid_t pid, uint64_t address, void *to, size_t size)
{
	struct iovec local = { to, size }, remote = { (void *)(uintptr_t)address, size };
	ssize_t n = process_vm_readv(pid, &local, 1, &remote, 1, 0);

	if (n < 0)
		return -errno;
	return (size_t)n == size ? 0 : -EFAULT;
}

uint64_t regs_leave_rseq(pid_t pid, uint64_t cs, uint64_t ip)
{
	struct rseq_section section;

	if (!cs || read_target(pid, cs, &section, sizeof(section)) < 0)
		return ip;
	if (section.flags & RSEQ_NO_RESTART)
		return ip;
	return ip - section.start_ip < section.post_commit_offset ? section.abort_ip : ip;
}

void regs_rseq(struct native_thread *t)
{
	struct rseq_configuration conf = { 0 };

	t->rseq_ptr = 0;
	if (ptrace(FREEZE_GET_RSEQ, t->tid, sizeof(conf), &conf) < 0)
		return;
	t->rseq_ptr = conf.pointer;
	t->rseq_size = conf.size;
	t->rseq_signature = conf.signature;
	t->rseq_flags = conf.flags;
}

/*
 * The call that restart_syscall(2) goes on with: its number is kept nowhere. Nearly always it is
 * loaded by "mov $nr, %eax" just before the system call.
 */
static long call_from_code(pid_t pid, uint64_t ip)
{
	uint8_t code[CODE_BEFORE];
	int32_t nr;

	if (read_target(pid, ip - SYSCALL_SIZE - sizeof(code), code, sizeof(code)) < 0)
		return -1;
	for (size_t i = sizeof(code) - 5; i > 0; i--) {
		if (code[i] != 0xb8 && !(i >= 2 && code[i] == 0xc0 && code[i - 1] == 0xc7))
			continue;
		memcpy(&nr, &code[i + 1], sizeof(nr));
		if (nr == SYS_poll || nr == SYS_nanosleep || nr == SYS_clock_nanosleep ||
		    nr == SYS_futex)
			return nr;
	}
	return -1;
}

/* Is there a time at this address? */
static bool is_timespec(pid_t pid, uint64_t address)
{
	int64_t t[2];

	return address >= PAGE_ZERO && read_target(pid, address, t, sizeof(t)) == 0 && t[0] >= 0 &&
	       t[1] >= 0 && t[1] < 1000000000;
}

static bool may_be_futex(pid_t pid, const struct user_regs_struct *r)
{
	unsigned int op = (unsigned int)r->rsi & ~(unsigned int)FUTEX_FLAGS;
	uint32_t word;

	return (op == FUTEX_WAIT_OP || op == FUTEX_WAIT_BITSET_OP) && r->rdi % sizeof(word) == 0 &&
	       is_timespec(pid, r->r10) && read_target(pid, r->rdi, &word, sizeof(word)) == 0;
}

static bool may_be_clock_nanosleep(pid_t pid, const struct user_regs_struct *r)
{
	uint32_t clock = (uint32_t)r->rdi;

	return (clock < CLOCKS_MAX || clock >> 31) && !r->rsi && is_timespec(pid, r->rdx);
}

/* By what the arguments can be: a program may come by a function that takes any number. */
static long call_from_arguments(pid_t pid, const struct user_regs_struct *r)
{
	if (r->rdi < PAGE_ZERO || r->rdi >> 47)
		return may_be_clock_nanosleep(pid, r) ? SYS_clock_nanosleep : SYS_poll;
	if (may_be_futex(pid, r))
		return SYS_futex;
	if ((!r->rsi || r->rsi >= PAGE_ZERO) && is_timespec(pid, r->rdi))
		return SYS_nanosleep;
	if (may_be_clock_nanosleep(pid, r))
		return SYS_clock_nanosleep;
	return r->rsi && r->rsi < PAGE_ZERO ? SYS_poll : -1;
}

static long restarted_call(const struct native_thread *t)
{
	long nr = call_from_code(t->tid, t->regs.rip);

	if (nr < 0 || (nr == SYS_futex && !may_be_futex(t->tid, &t->regs)) ||
	    (nr == SYS_clock_nanosleep && !may_be_clock_nanosleep(t->tid, &t->regs)))
		nr = call_from_arguments(t->tid, &t->regs);
	return nr;
}

/* The handler that will run first on the way back to the program; NULL: none. */
static const struct state_sigaction *waiting_handler(const struct native_thread *t)
{
	const struct native_task *task = t->task;
	const struct state_sigaction *found = NULL;
	int lowest = STATE_SIGNALS + 1;

	if (!task->state)
		return NULL;
	for (int shared = 0; shared < (task->thread_count == 1 ? 2 : 1); shared++) {
		const siginfo_t *si = shared ? task->queued : t->queued;
		size_t count = shared ? task->queued_count : t->queued_count;

		for (size_t i = 0; i < count; i++) {
			int n = si[i].si_signo;

			if (n < 1 || n >= lowest || t->sigmask >> (n - 1) & 1 ||
			    task->state->actions[n - 1].handler <= (uintptr_t)SIG_IGN)
				continue;
			lowest = n;
			found = &task->state->actions[n - 1];
		}
		if (found)
			break;
	}
	return found;
}

/* As the kernel would on the way back, or make the call afresh: a restore starts in user mode. */
static int fix_call(struct native_tree *tree, struct native_thread *t)
{
	const struct state_sigaction *handler;
	struct user_regs_struct *r = &t->regs;
	long what = -(long)r->rax, nr = (long)r->orig_rax;

	t->timed_call = 0;
	if (nr < 0 || (what != FREEZE_RESTARTSYS && what != FREEZE_RESTARTNOINTR &&
		       what != FREEZE_RESTARTNOHAND && what != FREEZE_RESTARTBLOCK))
		return 0;
	handler = what == FREEZE_RESTARTNOINTR ? NULL : waiting_handler(t);
	if (handler && !(what == FREEZE_RESTARTSYS && handler->flags & SA_RESTART)) {
		r->rax = (unsigned long long)-EINTR;
		return 0;
	}
	if (nr == SYS_restart_syscall)
		nr = restarted_call(t);
	if (nr < 0)
		return native_fail(tree, -EOPNOTSUPP,
				   "thread %d of process %d goes on with a system call that cannot "
				   "be told",
				   t->tid, t->task->pid);
	sleeps_note(tree, t, nr);
	r->rax = (unsigned long long)nr;
	r->rip -= SYSCALL_SIZE;
	return 0;
}

/* *ret_size: of what was there, at most room. */
static int read_xsave(struct native_tree *tree, struct native_thread *t, size_t room,
		      size_t *ret_size)
{
	struct iovec iov = { arena_alloc(tree->arena, room), room };

	if (!iov.iov_base)
		return -ENOMEM;
	if (ptrace(PTRACE_GETREGSET, t->tid, NT_X86_XSTATE, &iov) < 0)
		return native_fail(tree, -errno, "registers of thread %d cannot be read: %s",
				   t->tid, strerror(errno));
	t->xsave = iov.iov_base;
	*ret_size = iov.iov_len;
	return 0;
}

/*
 * The area has room for AMX tiles wherever the processor has them, four times of all the rest. They
 * are read only if the thread has some: half of the time for many threads.
 */
static int collect_xsave(struct native_tree *tree, struct native_thread *t)
{
	uint64_t features;
	size_t size;
	int r = read_xsave(tree, t, XSAVE_USUAL, &size);

	if (r < 0)
		return r;
	memcpy(&features, t->xsave + XSAVE_FEATURES, sizeof(features));
	if (size == XSAVE_USUAL && features >> XSAVE_FIRST_LARGE) {
		r = read_xsave(tree, t, NATIVE_XSAVE_MAX, &size);
		if (r < 0)
			return r;
		if (size == NATIVE_XSAVE_MAX)
			return native_fail(tree, -EOPNOTSUPP,
					   "thread %d has more than %d bytes of registers", t->tid,
					   NATIVE_XSAVE_MAX);
	}
	t->xsave_size = size;
	return 0;
}

static int collect_queue(struct native_tree *tree, pid_t tid, uint32_t flags,
			 siginfo_t **ret_queued, size_t *ret_count)
{
	struct __ptrace_peeksiginfo_args args = { .flags = flags, .nr = PEEK_BATCH };
	siginfo_t batch[PEEK_BATCH], *all = NULL;
	size_t count = 0;
	long n;

	for (;;) {
		args.off = count;
		n = ptrace(PTRACE_PEEKSIGINFO, tid, &args, batch);
		if (n < 0)
			return native_fail(tree, -errno, "signals of thread %d cannot be read: %s",
					   tid, strerror(errno));
		if (n == 0)
			break;
		if (count + (size_t)n > NATIVE_SIGINFO_MAX)
			return native_fail(tree, -EOPNOTSUPP,
					   "more than %d signals are queued for thread %d",
					   NATIVE_SIGINFO_MAX, tid);
		if (count == 0 || count == PEEK_BATCH) {
			size_t room = count ? NATIVE_SIGINFO_MAX : PEEK_BATCH;
			siginfo_t *more = arena_alloc(tree->arena, room * sizeof(*more));

			if (!more)
				return -ENOMEM;
			if (count)
				memcpy(more, all, count * sizeof(*all));
			all = more;
		}
		memcpy(all + count, batch, (size_t)n * sizeof(*all));
		count += (size_t)n;
		if (n < PEEK_BATCH)
			break;
	}
	*ret_queued = all;
	*ret_count = count;
	return 0;
}

/* In sigsuspend(2) and the like: the one that is put back. */
static int collect_mask(struct native_tree *tree, struct native_thread *t)
{
	if (t->state) {
		t->sigmask = t->state->saved_blocked;
		return 0;
	}
	if (ptrace(PTRACE_GETSIGMASK, t->tid, sizeof(t->sigmask), &t->sigmask) < 0)
		return native_fail(tree, -errno, "signal mask of thread %d cannot be read: %s",
				   t->tid, strerror(errno));
	return 0;
}

/* What state.h has of it need not be asked for again: each call costs half a microsecond. */
static int collect_thread(struct native_tree *tree, struct native_thread *t)
{
	const struct state_thread *state = t->state;
	int r;

	if (!t->regs_read && ptrace(PTRACE_GETREGS, t->tid, 0, &t->regs) < 0)
		return native_fail(tree, -errno, "thread %d cannot be read: %s", t->tid,
				   strerror(errno));
	if (!regs_are_64bit(&t->regs))
		return native_fail(tree, -EOPNOTSUPP, "thread %d of process %d runs 32-bit code",
				   t->tid, t->task->pid);
	r = collect_mask(tree, t);
	if (r == 0)
		r = tree->gentle ? gentle_xsave(tree, t) : collect_xsave(tree, t);
	if (r < 0)
		return r;
	if (state && state->rseq) {
		t->rseq_ptr = state->rseq;
		t->rseq_size = state->rseq_size;
		t->rseq_signature = state->rseq_sig;
		t->rseq_flags = 0;
	} else if (tree->gentle) {
		t->rseq_ptr = 0;
	} else {
		regs_rseq(t);
	}
	/* One that comes after the look is one that comes after the snapshot. */
	t->queued = NULL;
	t->queued_count = 0;
	return state && !state->pending ?
		       0 :
		       collect_queue(tree, t->tid, 0, &t->queued, &t->queued_count);
}

/* One call for many threads; an area that cannot be read is 0: the kernel would not use it. */
static void collect_rseq(struct native_task *task, size_t from, size_t to)
{
	struct iovec local[RSEQ_BATCH], remote[RSEQ_BATCH];
	struct native_thread *threads[RSEQ_BATCH];
	unsigned long count = 0;

	for (size_t i = from; i < to; i++) {
		struct native_thread *t = &task->threads[i];

		t->rseq_cs = 0;
		if (!t->rseq_ptr)
			continue;
		threads[count] = t;
		local[count] = (struct iovec){ &t->rseq_cs, sizeof(t->rseq_cs) };
		remote[count] = (struct iovec){ (void *)(uintptr_t)(t->rseq_ptr + RSEQ_CS_OFFSET),
						sizeof(t->rseq_cs) };
		count++;
	}
	if (!count || process_vm_readv(task->pid, local, count, remote, count, 0) ==
			      (ssize_t)(count * sizeof(uint64_t)))
		return;
	for (unsigned long i = 0; i < count; i++)
		if (read_target(task->pid, threads[i]->rseq_ptr + RSEQ_CS_OFFSET,
				&threads[i]->rseq_cs, sizeof(uint64_t)) < 0)
			threads[i]->rseq_cs = 0;
}

static int collect_task(struct native_tree *tree, struct native_task *task)
{
	int r = 0;

	for (size_t i = 0; i < task->thread_count && r == 0; i++)
		r = collect_thread(tree, &task->threads[i]);
	task->queued = NULL;
	task->queued_count = 0;
	if (r == 0 && (!task->state || task->state->shared_pending))
		r = collect_queue(tree, task->pid, PEEK_SHARED, &task->queued, &task->queued_count);
	for (size_t i = 0; i < task->thread_count && r == 0; i += RSEQ_BATCH) {
		size_t left = task->thread_count - i;

		collect_rseq(task, i, i + (left < RSEQ_BATCH ? left : RSEQ_BATCH));
	}
	for (size_t i = 0; i < task->thread_count && r == 0; i++) {
		struct native_thread *t = &task->threads[i];

		t->regs_read = false; /* from here on they are the image's */
		t->regs.rip = regs_leave_rseq(task->pid, t->rseq_cs, t->regs.rip);
		r = fix_call(tree, t);
	}
	return r;
}

int regs_collect(struct native_tree *tree)
{
	int r;

	for (size_t i = 0; i < tree->task_count; i++) {
		if (tree->tasks[i].zombie)
			continue;
		r = collect_task(tree, &tree->tasks[i]);
		if (r < 0)
			return r;
	}
	return 0;
}
