// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/image/plugin/resleep.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>

enum {
	USER_CS_64 = 0x33,
	SYSCALL_SIZE = 2,
	SYSCALL_CODE = 0x050f, /* as a number, read from memory */
	SYSCALL_STOP = SIGTRAP | 0x80,
	EVENT_STOP = 128,      /* PTRACE_EVENT_STOP */
	RESTARTBLOCK = 516,    /* ERESTART_RESTARTBLOCK of Linux */
	RED_ZONE = 128,	       /* below the stack pointer, and yet in use */
	NS_LEFT_MIN = 1000000, /* poll(2) with 0 would not sleep at all */
};

/* 16 bytes of the program's that are put back: a struct timespec lies there meanwhile. */
struct kept {
	unsigned long at; /* 0: none */
	long words[2];
};

struct sleeper {
	const struct deadline *d;
	char *why;
	struct user_regs_struct regs; /* about to make the call */
	uint64_t mask;
	struct kept time, rest;
};

static int __attribute__((format(printf, 3, 4)))
not_so(const struct sleeper *s, int r, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(s->why, RESLEEP_WHY_MAX, fmt, ap);
	va_end(ap);
	return r;
}

static int keep(const struct sleeper *s, struct kept *k, unsigned long at)
{
	errno = 0;
	for (int i = 0; i < 2; i++)
		k->words[i] = ptrace(PTRACE_PEEKDATA, s->d->tid, at + i * sizeof(long), NULL);
	if (errno)
		return not_so(s, -errno, "its memory cannot be read: %s", strerror(errno));
	k->at = at;
	return 0;
}

static int put(const struct sleeper *s, const struct kept *k)
{
	for (int i = 0; k->at && i < 2; i++)
		if (ptrace(PTRACE_POKEDATA, s->d->tid, k->at + i * sizeof(long), k->words[i]) < 0)
			return not_so(s, -errno, "its memory cannot be written: %s",
				      strerror(errno));
	return 0;
}

/* Stands just before the instruction that makes this very call? */
static int check(struct sleeper *s)
{
	pid_t tid = s->d->tid;
	long code;

	if (ptrace(PTRACE_GETREGS, tid, NULL, &s->regs) < 0)
		return not_so(s, -errno, "it is not there: %s", strerror(errno));
	if (s->regs.cs != USER_CS_64 || s->regs.rax != s->d->call)
		return not_so(s, -EBADMSG, "it does not call %u", s->d->call);
	errno = 0;
	code = ptrace(PTRACE_PEEKTEXT, tid, s->regs.rip, NULL);
	if (errno || (code & 0xffff) != SYSCALL_CODE)
		return not_so(s, -EBADMSG, "it is not about to make a system call");
	if (ptrace(PTRACE_GETSIGMASK, tid, sizeof(s->mask), &s->mask) < 0)
		return not_so(s, -errno, "its signal mask: %s", strerror(errno));
	return 0;
}

/* The same call but for the time; what the kernel may write meanwhile is kept. */
static int set_time(struct sleeper *s, struct user_regs_struct *regs)
{
	uint64_t ns = s->d->left_ns > NS_LEFT_MIN ? s->d->left_ns : NS_LEFT_MIN;
	uint64_t ms = ns / 1000000 + (ns % 1000000 != 0);
	unsigned long rest = 0, at = (regs->rsp - RED_ZONE - sizeof(s->time.words)) & ~15ul;
	struct kept time = { .at = at, .words = { ns / 1000000000, ns % 1000000000 } };
	int r = 0;

	switch (s->d->call) {
	case SYS_poll:
		regs->rdx = ms < INT_MAX ? ms : INT_MAX;
		return 0;
	case SYS_nanosleep:
		rest = regs->rsi;
		regs->rdi = at;
		break;
	case SYS_clock_nanosleep:
		rest = regs->r10;
		regs->rdx = at;
		break;
	default: /* futex(2) */
		regs->r10 = at;
	}
	if (rest)
		r = keep(s, &s->rest, rest);
	if (r == 0)
		r = keep(s, &s->time, at);
	return r == 0 ? put(s, &time) : r;
}

/* Until the next stop; which < 0: PTRACE_EVENT_STOP. */
static int go(const struct sleeper *s, int request, int which)
{
	int status, signal;

	if (ptrace(request, s->d->tid, NULL, NULL) < 0)
		return not_so(s, -errno, "it does not go on: %s", strerror(errno));
	while (waitpid(s->d->tid, &status, __WALL) < 0)
		if (errno != EINTR)
			return not_so(s, -errno, "it cannot be waited for: %s", strerror(errno));
	if (!WIFSTOPPED(status))
		return not_so(s, -ESRCH, "it has ended");
	signal = WSTOPSIG(status);
	if (which < 0 ? status >> 16 == EVENT_STOP : signal == which && status >> 16 == 0)
		return 0;
	/* SIGSTOP, which cannot be blocked: it shall come again when all is as it was. */
	if (status >> 16 == 0 && !(signal & 0x80) && signal != SIGTRAP)
		kill(s->d->pid, signal);
	return not_so(s, -EAGAIN, "it stops in between, status %x", status);
}

/* Its result: -RESTARTBLOCK if the kernel has its deadline now. */
static int call(const struct sleeper *s, long *ret_result)
{
	struct user_regs_struct regs;
	int r = go(s, PTRACE_SYSCALL, SYSCALL_STOP);

	if (r < 0)
		return r;
	/* The stop is due as soon as it goes on: a call that would sleep sees it as a signal. */
	if (ptrace(PTRACE_INTERRUPT, s->d->tid, NULL, NULL) < 0)
		return not_so(s, -errno, "it cannot be interrupted: %s", strerror(errno));
	r = go(s, PTRACE_CONT, -1);
	if (r < 0)
		return r;
	if (ptrace(PTRACE_GETREGS, s->d->tid, NULL, &regs) < 0)
		return not_so(s, -errno, "its registers: %s", strerror(errno));
	*ret_result = (long)regs.rax;
	return 0;
}

/* As the call would have left them. */
static int set_result(const struct sleeper *s, long result, struct user_regs_struct *regs)
{
	bool over = s->d->call == SYS_futex ? result == -ETIMEDOUT : result == 0;

	if (result != -RESTARTBLOCK && !over)
		return not_so(s, -EAGAIN, "its call returns %ld", result);
	regs->rax = (unsigned long long)result;
	regs->rip += SYSCALL_SIZE;
	if (!over)
		regs->orig_rax = s->d->call;
	return 0;
}

static int put_back(const struct sleeper *s, struct user_regs_struct *regs)
{
	int r = put(s, &s->time), e = put(s, &s->rest);

	if (ptrace(PTRACE_SETREGS, s->d->tid, NULL, regs) < 0 ||
	    ptrace(PTRACE_SETSIGMASK, s->d->tid, sizeof(s->mask), &s->mask) < 0)
		return not_so(s, -errno, "it cannot be put back: %s", strerror(errno));
	return r < 0 ? r : e;
}

int resleep(const struct deadline *d, char why[RESLEEP_WHY_MAX])
{
	struct sleeper s = { .d = d, .why = why };
	struct user_regs_struct regs, after;
	uint64_t all = ~UINT64_C(0);
	long result = 0;
	int r = check(&s), e;

	if (r < 0)
		return r;
	regs = after = s.regs;
	/* At the entry of a call this calls it off; it is no call that could be restarted. */
	after.orig_rax = -1ull;
	r = set_time(&s, &regs);
	if (r == 0 && (ptrace(PTRACE_SETSIGMASK, d->tid, sizeof(all), &all) < 0 ||
		       ptrace(PTRACE_SETREGS, d->tid, NULL, &regs) < 0))
		r = not_so(&s, -errno, "it cannot be written to: %s", strerror(errno));
	if (r == 0)
		r = call(&s, &result);
	if (r == 0)
		r = set_result(&s, result, &after);
	e = put_back(&s, &after);
	return r < 0 ? r : e;
}
