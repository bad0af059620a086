// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a thread is doing, and what is in it. Only of threads that are off their processors before
 * and after, with the same number of switches: what is read is from one moment.
 */
#include "internal.h"

#include <linux/elf.h>
#include <linux/mm.h>
#include <linux/regset.h>
#include <linux/sched/task_stack.h>
#include <linux/uaccess.h>

#include <asm/ptrace.h>
#include <asm/segment.h>
#include <asm/unistd.h>
#include <asm/user.h>

static_assert(sizeof(struct user_regs_struct) == DECAMP_REGS * sizeof(u64));
static_assert(offsetof(struct user_regs_struct, fs_base) == sizeof(struct pt_regs));

/* In vfork(2) only a child in the same session can end the wait: it stands. */
static bool is_in_vfork(const struct member *m)
{
	struct member *c;

	list_for_each_entry_rcu(c, &m->session->members, node, true)
		if (READ_ONCE(c->task->vfork_done) &&
		    rcu_access_pointer(c->task->real_parent) == m->task)
			return true;
	return false;
}

static u64 switches_of(const struct task_struct *t)
{
	return READ_ONCE(t->nvcsw) + READ_ONCE(t->nivcsw);
}

enum decamp_state state_of(const struct member *m)
{
	struct task_struct *t = m->task;
	bool exiting = READ_ONCE(t->flags) & PF_EXITING;
	unsigned int state;

	/* Until its memory is no longer its own it may clear its number there, and futexes. */
	if (READ_ONCE(t->exit_state) || (exiting && !READ_ONCE(t->mm)))
		return DECAMP_GONE;
	/* Pairs with finish_task(): off its processor, its registers are saved. */
	if (exiting || !READ_ONCE(m->queued) || smp_load_acquire(&t->on_cpu))
		return DECAMP_RUNNING;
	/* Not yet if it was only preempted on its way to sleep. */
	if (smp_load_acquire(&m->parked))
		return READ_ONCE(t->nvcsw) == m->switches ? DECAMP_RUNNING : DECAMP_PARKED;
	state = READ_ONCE(t->__state);
	if (state & (__TASK_STOPPED | __TASK_TRACED | TASK_FROZEN | TASK_INTERRUPTIBLE))
		return DECAMP_QUIESCED;
	if (!(state & TASK_UNINTERRUPTIBLE))
		return DECAMP_RUNNING;
	return state & TASK_WAKEKILL && is_in_vfork(m) ? DECAMP_QUIESCED : DECAMP_BLOCKED;
}

/* It stands, and has stood since it had so many switches. */
static bool stands(const struct member *m, u64 switches)
{
	smp_rmb(); /* first what the caller has read of it */
	return state_of(m) <= DECAMP_QUIESCED && switches_of(m->task) == switches;
}

/* The functions are not exported, their names are no secret. */
static void read_restart(const struct restart_block *rb, struct decamp_thread *to)
{
	char name[64];

	snprintf(name, sizeof(name), "%ps", rb->fn);
	if (strstr(name, "sleep_restart")) { /* hrtimer_nano-, alarm_timer_n-, posix_cpu_n- */
		to->restart = DECAMP_RESTART_NANOSLEEP;
		to->restart_clock = rb->nanosleep.clockid;
		to->restart_deadline_ns = rb->nanosleep.expires;
		if (rb->nanosleep.type == TT_NATIVE)
			to->restart_pointer = (uintptr_t)rb->nanosleep.rmtp;
	} else if (!strcmp(name, "do_restart_poll")) {
		to->restart = DECAMP_RESTART_POLL;
		to->restart_clock = CLOCK_MONOTONIC;
		if (rb->poll.has_timeout)
			to->restart_deadline_ns = rb->poll.tv_sec * NSEC_PER_SEC + rb->poll.tv_nsec;
		to->restart_pointer = (uintptr_t)rb->poll.ufds;
		to->restart_count = (u32)rb->poll.nfds;
	} else if (!strcmp(name, "futex_wait_restart") || !strcmp(name, "do_no_restart_syscall")) {
		/* The latter: it takes its own away when it is restarted, and leaves the rest. */
		to->restart = DECAMP_RESTART_FUTEX;
		to->restart_deadline_ns = rb->futex.time;
		to->restart_pointer = (uintptr_t)rb->futex.uaddr;
		to->restart_count = (u64)rb->futex.bitset << 32 | rb->futex.val;
	} else {
		to->restart = DECAMP_RESTART_OTHER;
	}
}

/* Under decamp_lock, with m->queued: its stack is there. */
static void read_regs(struct task_struct *t, struct decamp_thread *to)
{
	struct user_regs_struct *r = (struct user_regs_struct *)to->regs;
	const struct pt_regs *regs = task_pt_regs(t);

	if (regs->cs != __USER_CS || task_thread_info(t)->status & TS_COMPAT)
		return;
	/* Without these instructions a base that came from a segment is in no structure. */
	if (!boot_cpu_has(X86_FEATURE_FSGSBASE) && (t->thread.fsindex || t->thread.gsindex))
		return;
	memcpy(r, regs, sizeof(*regs));
	r->cs = regs->cs;
	r->ss = regs->ss;
	if (test_tsk_thread_flag(t, TIF_FORCED_TF))
		r->flags &= ~X86_EFLAGS_TF;
	r->fs_base = t->thread.fsbase;
	r->gs_base = t->thread.gsbase;
	r->ds = t->thread.ds;
	r->es = t->thread.es;
	r->fs = t->thread.fsindex;
	r->gs = t->thread.gsindex;
	to->flags = DECAMP_THREAD_REGS;
	/* Interrupted, or in the midst of its restart. */
	if (regs->ax == (unsigned long)-ERESTART_RESTARTBLOCK ||
	    (regs->orig_ax == __NR_restart_syscall && regs->ax == (unsigned long)-ENOSYS))
		read_restart(&t->restart_block, to);
}

static void read_thread(struct member *m, struct decamp_thread *to)
{
	memset(to, 0, sizeof(*to));
	to->tid = task_pid_vnr(m->task);
	to->tgid = task_tgid_vnr(m->task);
	to->switches =
		switches_of(m->task); /* before the state, which then is of no earlier moment */
	to->state = state_of(m);
	if (to->state > DECAMP_QUIESCED)
		return;
	spin_lock(&decamp_lock);
	if (m->queued)
		read_regs(m->task, to);
	spin_unlock(&decamp_lock);
	if (!stands(m, to->switches)) {
		to->state = DECAMP_RUNNING;
		to->flags = 0;
	}
}

int state_threads(struct session *s, const struct decamp_threads *args)
{
	struct decamp_thread __user *to = u64_to_user_ptr(args->threads);
	struct decamp_thread thread;
	unsigned int count = 0;
	struct member *m;

	list_for_each_entry_rcu(m, &s->members, node, true) {
		read_thread(m, &thread);
		if (count < args->room && copy_to_user(&to[count], &thread, sizeof(thread)))
			return -EFAULT;
		count++;
		cond_resched();
	}
	return READ_ONCE(s->missed) ? -ENOMEM : count;
}

/* What the kernel itself calls the extended registers of 64-bit code; NULL: none. */
static const struct user_regset *xstate_regset(void)
{
	const struct user_regset_view *view = task_user_regset_view(current);

	for (unsigned int i = 0; i < view->n; i++)
		if (view->regsets[i].core_note_type == NT_X86_XSTATE)
			return &view->regsets[i];
	return NULL;
}

int state_xstate(struct session *s, const struct decamp_xstate *args)
{
	const struct user_regset *regset = xstate_regset();
	struct member *m = session_find(s, args->tid);
	void *buffer = NULL;
	int r;

	if (!m)
		return -ESRCH;
	if (!regset)
		return -EOPNOTSUPP;
	if (!stands(m, args->switches))
		return -EAGAIN;
	r = regset_get_alloc(m->task, regset, regset->n * regset->size, &buffer);
	if (r >= 0 && !stands(m, args->switches))
		r = -EAGAIN;
	if (r > 0 && r <= args->room && copy_to_user(u64_to_user_ptr(args->buffer), buffer, r))
		r = -EFAULT;
	kvfree(buffer);
	return r;
}
