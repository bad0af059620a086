// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * One system call in a running process.
 *
 *   stop -> registers of ours -> [entry stop] -> [exit stop] -> stop -> registers put back -> go
 *
 * Stops at entry and exit are used, not single steps: a step ends with SIGTRAP, which the kernel
 * forces upon a program that blocks or ignores it by taking away its handler. The last stop is one
 * on the way back from a signal check, where the kernel restarts an interrupted system call: so the
 * registers put back may say "restart", with the time that is left. Should we die between the first
 * registers and the last ones, inject_net.h brings the thread back; where that net cannot be spread
 * (no code for it, no stack for it), the program could not live on without us.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "agent/native/fence.h"
#include "agent/native/freeze.h"
#include "agent/native/freeze_internal.h"
#include "agent/native/inject_net.h"
#include "agent/util/io.h"

enum {
	INJECT_MS = 2000,
	MAPS_MAX = 16 << 20,
	SCAN_BLOCK = 65536,
	SCAN_MAX = 8 << 20, /* of one mapping */
	STATUS_MAX = 8192,
	AUXV_WORDS = 128,
	VDSO_MAX = 16384,
	CALL_STOP = SIGTRAP | 0x80,
};

struct injection {
	pid_t tid;
	struct freeze_tick tick;
	struct user_regs_struct saved;
	uint64_t saved_mask;
	uint64_t call_ip; /* of a system call instruction */
	struct inject_net net;
	bool stopped, moved, masked;
	bool safe; /* the net is spread: whoever lets go, the thread goes on as it was */
};

struct dispatch_configuration {
	uint64_t mode, selector, offset, length;
};

static ssize_t read_memory(pid_t pid, uint64_t from, void *to, size_t size)
{
	struct iovec local = { to, size }, remote = { (void *)(uintptr_t)from, size };

	return process_vm_readv(pid, &local, 1, &remote, 1, 0);
}

/* 0f 05 anywhere: nothing after it will ever be run. 0: none. */
static uint64_t scan_mapping(pid_t pid, uint64_t start, uint64_t end)
{
	_cleanup_free_ uint8_t *bytes = malloc(SCAN_BLOCK);

	if (end - start > SCAN_MAX)
		end = start + SCAN_MAX;
	/* Blocks overlap by a byte. */
	for (uint64_t at = start; bytes && at + 1 < end; at += SCAN_BLOCK - 1) {
		size_t want = end - at < SCAN_BLOCK ? (size_t)(end - at) : SCAN_BLOCK;
		ssize_t n = read_memory(pid, at, bytes, want);
		const uint8_t *found = n > 1 ? memmem(bytes, (size_t)n, "\x0f\x05", 2) : NULL;

		if (found)
			return at + (uint64_t)(found - bytes);
		if (n <= 0)
			break;
	}
	return 0;
}

/* Where the kernel says that the vdso lies; it has system calls for clocks that it cannot read. */
static uint64_t find_in_vdso(pid_t pid)
{
	_cleanup_close_ int fd = -1;
	uint64_t auxv[AUXV_WORDS];
	char path[64], magic[4];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/auxv", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, auxv, sizeof(auxv));
	for (ssize_t i = 0; i + 1 < n / 8 && auxv[i] != AT_NULL; i += 2)
		if (auxv[i] == AT_SYSINFO_EHDR &&
		    read_memory(pid, auxv[i + 1], magic, sizeof(magic)) == sizeof(magic) &&
		    !memcmp(magic, ELFMAG, SELFMAG))
			return scan_mapping(pid, auxv[i + 1], auxv[i + 1] + VDSO_MAX);
	return 0;
}

/* While it stands: an exec(2) would take it all away. Without a vdso, in any code that it has. */
static int find_call(pid_t pid, uint64_t *ret_ip)
{
	_cleanup_free_ char *maps = NULL;
	uint64_t start, end, ip = find_in_vdso(pid);
	char path[64], *line, *next = NULL;
	size_t size;
	int r;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	r = ip ? 0 : read_file_at(AT_FDCWD, path, MAPS_MAX, &maps, &size);
	if (r < 0)
		return r;
	for (line = maps; line && *line && !ip; line = next ? next + 1 : NULL) {
		char perms[5];

		next = strchr(line, '\n');
		if (sscanf(line, "%lx-%lx %4s", &start, &end, perms) == 3 && perms[2] == 'x' &&
		    (int64_t)start >= 0)
			ip = scan_mapping(pid, start, end);
	}
	if (!ip)
		return -EOPNOTSUPP;
	*ret_ip = ip;
	return 0;
}

static bool has_seccomp(pid_t pid)
{
	char path[64], text[STATUS_MAX];
	_cleanup_close_ int fd = -1;
	const char *line;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (n < 0)
		return true;
	text[n] = '\0';
	line = strstr(text, "\nSeccomp:\t");
	return line && line[10] != '0';
}

static bool dispatches_calls(pid_t tid)
{
	struct dispatch_configuration c = { 0 };

	return ptrace(FREEZE_GET_DISPATCH, tid, sizeof(c), &c) == 0 && c.mode;
}

/* The next report: signal | event << 8. Only the deadline ends it early. WNOWAIT: see freeze.c. */
static int wait_report(struct injection *i, int *ret_report)
{
	siginfo_t si = { 0 };

	while (waitid(P_PID, (id_t)i->tid, &si, WEXITED | WSTOPPED | WNOWAIT | __WALL) < 0) {
		if (errno != EINTR)
			return -ESRCH;
		if (tick_over(&i->tick))
			return -ETIMEDOUT;
	}
	if (si.si_code != CLD_TRAPPED && si.si_code != CLD_STOPPED) {
		(void)waitid(P_PID, (id_t)i->tid, &si, WEXITED | WNOHANG | __WALL);
		return -ESRCH;
	}
	*ret_report = si.si_status;
	return 0;
}

/*
 * Until it stands at a place where the kernel will look at signals and restarts when it goes on.
 * Other reports on the way are let pass, signals with the next step: only SIGSTOP can be, once all
 * others are blocked, and a group stop does not stop who is traced from making system calls.
 */
static int stop(struct injection *i)
{
	int report, signo = 0, r;

	for (;;) {
		(void)ptrace(PTRACE_INTERRUPT, i->tid, 0, 0);
		if (i->stopped && ptrace(PTRACE_CONT, i->tid, 0, signo) < 0)
			return -ESRCH;
		i->stopped = false;
		r = wait_report(i, &report);
		if (r < 0)
			return r;
		i->stopped = true;
		if (report >> 8 == FREEZE_EVENT_STOP)
			return 0;
		signo = report == CALL_STOP || report >> 8 ? 0 : report;
	}
}

/* To the next entry or exit of a system call. */
static int step(struct injection *i)
{
	int report, signo = 0, r;

	for (;;) {
		if (ptrace(PTRACE_SYSCALL, i->tid, 0, signo) < 0)
			return -ESRCH;
		i->stopped = false;
		r = wait_report(i, &report);
		if (r < 0)
			return r;
		i->stopped = true;
		if (report == CALL_STOP)
			return 0;
		signo = report >> 8 ? 0 : report;
	}
}

int inject_syscall(struct injection *i, long nr, const uint64_t args[6], int64_t *ret_result)
{
	struct user_regs_struct regs = i->saved;
	int r;

	regs.rip = i->call_ip;
	if (i->safe)
		regs.rsp = i->net.frame;
	regs.rax = (unsigned long long)nr;
	regs.orig_rax = ~0ull; /* no call to restart */
	regs.rdi = args[0];
	regs.rsi = args[1];
	regs.rdx = args[2];
	regs.r10 = args[3];
	regs.r8 = args[4];
	regs.r9 = args[5];
	regs.eflags &= ~0x100ull; /* no single steps */
	if (ptrace(PTRACE_SETREGS, i->tid, 0, &regs) < 0)
		return -ESRCH;
	i->moved = true;
	r = step(i);
	if (r == 0)
		r = step(i);
	if (r == 0 && ptrace(PTRACE_GETREGS, i->tid, 0, &regs) < 0)
		r = -ESRCH;
	if (r < 0)
		return r;
	*ret_result = (int64_t)regs.rax;
	return 0;
}

static uint64_t read_rseq_cs(struct native_thread *t)
{
	uint64_t cs = 0;

	regs_rseq(t);
	if (!t->rseq_ptr || read_memory(t->tid, t->rseq_ptr + 8, &cs, sizeof(cs)) < 0)
		return 0;
	return cs;
}

/*
 * From here on the thread, if it were let go, would return by its frame. So the mask, which the frame
 * gives back as well, is changed only after this.
 */
static int spread_net(struct injection *i)
{
	struct user_regs_struct regs = i->saved;

	if (!net_spread(i->tid, &i->net, &i->saved, i->saved_mask))
		return 0;
	i->safe = true;
	i->call_ip = i->net.call_ip;
	regs.rip = i->net.return_ip;
	regs.rsp = i->net.frame + sizeof(uint64_t);
	regs.orig_rax = ~0ull;
	if (ptrace(PTRACE_SETREGS, i->tid, 0, &regs) < 0)
		return -ESRCH;
	i->moved = true;
	return 0;
}

/* At once: an EINTR that the stop has made becomes a restart. */
static int mend(struct injection *i)
{
	long ax;

	if (ptrace(PTRACE_GETREGS, i->tid, 0, &i->saved) < 0)
		return -ESRCH;
	ax = regs_repaired_ax(&i->saved);
	if (ax != (long)i->saved.rax &&
	    ptrace(PTRACE_POKEUSER, i->tid, offsetof(struct user_regs_struct, rax), ax) == 0)
		i->saved.rax = (unsigned long long)ax;
	return 0;
}

/*
 * The first stop. A thread asleep in a call that a stop ends with EINTR goes behind the fence for it,
 * and all of its job with it, which is mended as well; others need none, and the job runs on.
 */
static int first_stop(struct injection *i, const struct native_fence *fence)
{
	long nr = fence ? list_syscall(i->tid) : -1;
	bool up = nr >= 0 && regs_leaks_eintr((unsigned long long)nr) && fence_raise(fence);
	int r = stop(i);

	if (r == 0)
		r = mend(i);
	if (up && fence_mend(fence) < 0)
		r = -ENOTRECOVERABLE;
	return r;
}

/* What will be put back. */
static int save(struct injection *i)
{
	struct native_thread t = { .tid = i->tid };
	const uint64_t all = ~0ull;
	int r;

	if (!regs_are_64bit(&i->saved) || dispatches_calls(i->tid))
		return -EOPNOTSUPP;
	/* Refused without CAP_SYS_ADMIN, and to a tracer that has a filter of its own. */
	if (has_seccomp(i->tid) && ptrace(PTRACE_SETOPTIONS, i->tid, 0,
					  PTRACE_O_TRACESYSGOOD | FREEZE_O_SUSPEND_SECCOMP) < 0)
		return -EOPNOTSUPP;
	r = find_call(i->tid, &i->call_ip);
	if (r < 0)
		return r;
	/* Its system call elsewhere would make the kernel forget the section. */
	i->saved.rip = regs_leave_rseq(i->tid, read_rseq_cs(&t), i->saved.rip);
	if (ptrace(PTRACE_GETSIGMASK, i->tid, sizeof(i->saved_mask), &i->saved_mask) < 0)
		return -ESRCH;
	r = spread_net(i);
	if (r < 0 || ptrace(PTRACE_SETSIGMASK, i->tid, sizeof(all), &all) < 0)
		return -ESRCH;
	i->masked = true;
	return 0;
}

/* Stuck, in a frozen cgroup perhaps, or about to end: it is stopped again before it is let go. */
static void recover(struct injection *i)
{
	tick_stop(&i->tick);
	if (tick_start(&i->tick, FREEZE_LINGER_MS, NULL, NULL) < 0)
		return;
	(void)stop(i);
}

static int put_back(struct injection *i, int r)
{
	int r2 = 0;

	if (i->moved || !i->stopped) {
		if (i->stopped)
			r2 = stop(i);
		if (!i->stopped && r2 != -ESRCH && r != -ESRCH)
			recover(i);
	}
	if (!i->stopped)
		return r == -ESRCH || r2 == -ESRCH ? -ESRCH : -ENOTRECOVERABLE;
	/* Registers last: until then the frame would bring it back, with the same mask. */
	if (i->masked)
		(void)ptrace(PTRACE_SETSIGMASK, i->tid, sizeof(i->saved_mask), &i->saved_mask);
	if (i->moved && ptrace(PTRACE_SETREGS, i->tid, 0, &i->saved) < 0)
		r2 = -ESRCH;
	(void)ptrace(PTRACE_DETACH, i->tid, 0, 0);
	return r < 0 ? r : r2;
}

/* The main thread's stack for handlers: it may have its other ones in the heap. */
static void find_alternate(const struct native_tree *tree, pid_t pid, struct inject_net *net)
{
	const struct native_task *task = tree_find(tree, pid);

	for (size_t k = 0; task && k < task->thread_count; k++) {
		const struct native_thread *t = &task->threads[k];

		if (t->tid != pid || !t->state)
			continue;
		net->alternate_start = t->state->sas_sp;
		net->alternate_end = t->state->sas_sp + t->state->sas_size;
	}
}

static int attach(struct injection *i)
{
	pid_t tracer;
	char state;

	if (ptrace(PTRACE_SEIZE, i->tid, 0, PTRACE_O_TRACESYSGOOD) == 0)
		return 0;
	if (errno != EPERM)
		return -errno;
	state = list_state(i->tid, &tracer);
	return !state || state == 'Z' || state == 'X' ? -ESRCH : -EOPNOTSUPP;
}

int inject(pid_t pid, const struct native_tree *tree, int (*fn)(void *ctx, struct injection *i),
	   void *ctx)
{
	struct injection i = { .tid = pid };
	int r;

	net_find(pid, &i.net);
	if (tree)
		find_alternate(tree, pid, &i.net);
	r = tick_start(&i.tick, INJECT_MS, NULL, NULL);
	if (r < 0)
		return r;
	r = attach(&i);
	if (r == 0) {
		r = first_stop(&i, tree ? tree->fence : NULL);
		if (r == 0)
			r = save(&i);
		if (r == 0)
			r = fn(ctx, &i);
		r = put_back(&i, r);
	}
	tick_stop(&i.tick);
	/* A task of a frozen cgroup stands before it makes any call. */
	return r == -ETIMEDOUT ? -EOPNOTSUPP : r;
}
