// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a thread is doing, and what is in it. Only of threads that are off their processors before
 * and after, with the same number of switches: what is read is from one moment.
 */
#include "internal.h"

#include <linux/elf.h>
#include <linux/errno.h>
#include <linux/mm.h>
#include <linux/regset.h>
#include <linux/sched/signal.h>
#include <linux/sched/task_stack.h>
#include <linux/uaccess.h>

#include <asm/ptrace.h>
#include <asm/segment.h>
#include <asm/syscall.h>
#include <asm/unistd.h>
#include <asm/user.h>

#define REGS_FS_BASE 21 /* pt_regs up to ss, then fs_base, gs_base, ds, es, fs, gs */

static_assert(sizeof(struct user_regs_struct) == DECAMP_REGS * sizeof(u64));
static_assert(offsetof(struct user_regs_struct, fs_base) == REGS_FS_BASE * sizeof(u64));
static_assert(offsetof(struct pt_regs, ss) == (REGS_FS_BASE - 1) * sizeof(u64));
static_assert(sizeof(struct decamp_counts) == DECAMP_STATES * sizeof(u32));

/* In vfork(2) only a child in the same session can end the wait: it stands. */
static bool is_in_vfork(const struct member *m)
{
	struct member *c;
	bool is = false;

	rcu_read_lock();
	list_for_each_entry_rcu(c, &m->session->members, node)
		is = is || (READ_ONCE(c->task->vfork_done) &&
			    rcu_access_pointer(c->task->real_parent) == m->task);
	rcu_read_unlock();
	return is;
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
	if (m->worker)
		return DECAMP_WORKER;
	/* Pairs with finish_task(): off its processor, its registers are saved. */
	if (exiting || READ_ONCE(m->dying) || smp_load_acquire(&t->on_cpu))
		return DECAMP_RUNNING;
	if (READ_ONCE(m->parked))
		return DECAMP_PARKED;
	state = READ_ONCE(t->__state);
	if (state & (__TASK_STOPPED | __TASK_TRACED | TASK_FROZEN))
		return DECAMP_QUIESCED;
	if (state & TASK_INTERRUPTIBLE)
		return m->session->plain ? DECAMP_BLOCKED : DECAMP_QUIESCED;
	if (!(state & TASK_UNINTERRUPTIBLE))
		return DECAMP_RUNNING;
	return state & TASK_WAKEKILL && is_in_vfork(m) ? DECAMP_QUIESCED : DECAMP_BLOCKED;
}

void state_count(struct session *s, struct decamp_counts *ret_counts)
{
	struct member *m;

	memset(ret_counts, 0, sizeof(*ret_counts));
	list_for_each_entry_rcu(m, &s->members, node, true)
		((u32 *)ret_counts)[state_of(m)]++;
}

static bool is_off_cpu(enum decamp_state state)
{
	return state == DECAMP_PARKED || state == DECAMP_QUIESCED || state == DECAMP_BLOCKED;
}

/* The functions are not exported, their names are no secret. */
static enum decamp_restart restart_kind(const struct restart_block *rb)
{
	static const struct {
		const char *name;
		enum decamp_restart kind;
	} known[] = {
		{ "hrtimer_nanosleep_restart", DECAMP_RESTART_NANOSLEEP },
		{ "alarm_timer_nsleep_restart", DECAMP_RESTART_NANOSLEEP },
		{ "posix_cpu_nsleep_restart", DECAMP_RESTART_NANOSLEEP },
		{ "futex_wait_restart", DECAMP_RESTART_FUTEX },
		{ "do_restart_poll", DECAMP_RESTART_POLL },
		/* A futex wait takes its own away when it is restarted, and leaves the rest. */
		{ "do_no_restart_syscall", DECAMP_RESTART_FUTEX },
	};
	char name[64];

	snprintf(name, sizeof(name), "%ps", rb->fn);
	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if (!strcmp(name, known[i].name))
			return known[i].kind;
	return DECAMP_RESTART_OTHER;
}

static void read_restart(const struct restart_block *rb, struct decamp_thread *to)
{
	bool timed = true;

	to->restart = restart_kind(rb);
	switch (to->restart) {
	case DECAMP_RESTART_NANOSLEEP:
		to->restart_clock = rb->nanosleep.clockid;
		to->restart_deadline_ns = rb->nanosleep.expires;
		to->restart_pointer =
			rb->nanosleep.type == TT_NATIVE ? (uintptr_t)rb->nanosleep.rmtp : 0;
		break;
	case DECAMP_RESTART_FUTEX: /* only waits with a timeout restart this way */
		to->restart_deadline_ns = rb->futex.time;
		to->restart_pointer = (uintptr_t)rb->futex.uaddr;
		to->restart_count = (u64)rb->futex.bitset << 32 | rb->futex.val;
		break;
	case DECAMP_RESTART_POLL:
		timed = rb->poll.has_timeout;
		to->restart_clock = CLOCK_MONOTONIC;
		to->restart_deadline_ns =
			timed ? rb->poll.tv_sec * NSEC_PER_SEC + rb->poll.tv_nsec : 0;
		to->restart_pointer = (uintptr_t)rb->poll.ufds;
		to->restart_count = (u32)rb->poll.nfds;
		break;
	default:
		timed = false;
	}
	if (timed)
		to->flags |= DECAMP_THREAD_DEADLINE;
}

/* Under decamp_lock, with m->hold: its stack is there. */
static void read_regs(struct task_struct *t, struct decamp_thread *to)
{
	const struct pt_regs *regs = task_pt_regs(t);

	if (regs->cs != __USER_CS) {
		to->flags |= DECAMP_THREAD_COMPAT;
		return;
	}
	if (task_thread_info(t)->status & TS_COMPAT)
		to->flags |= DECAMP_THREAD_COMPAT;
	/* Without these instructions a base that came from a segment is in no structure. */
	if (!boot_cpu_has(X86_FEATURE_FSGSBASE) && (t->thread.fsindex || t->thread.gsindex))
		return;
	memcpy(to->regs, regs, REGS_FS_BASE * sizeof(u64));
	to->regs[offsetof(struct user_regs_struct, cs) / sizeof(u64)] = regs->cs;
	to->regs[offsetof(struct user_regs_struct, ss) / sizeof(u64)] = regs->ss;
	if (test_tsk_thread_flag(t, TIF_FORCED_TF))
		to->regs[offsetof(struct user_regs_struct, flags) / sizeof(u64)] &= ~X86_EFLAGS_TF;
	to->regs[REGS_FS_BASE] = t->thread.fsbase;
	to->regs[REGS_FS_BASE + 1] = t->thread.gsbase;
	to->regs[REGS_FS_BASE + 2] = t->thread.ds;
	to->regs[REGS_FS_BASE + 3] = t->thread.es;
	to->regs[REGS_FS_BASE + 4] = t->thread.fsindex;
	to->regs[REGS_FS_BASE + 5] = t->thread.gsindex;
	to->flags |= DECAMP_THREAD_REGS;
	/* Interrupted, or in the midst of its restart. */
	if (regs->ax == (unsigned long)-ERESTART_RESTARTBLOCK ||
	    (regs->orig_ax == __NR_restart_syscall && regs->ax == (unsigned long)-ENOSYS))
		read_restart(&t->restart_block, to);
}

static void read_thread(struct member *m, struct decamp_thread *to)
{
	struct task_struct *t = m->task;

	memset(to, 0, sizeof(*to));
	to->tid = task_pid_vnr(t);
	to->tgid = task_tgid_vnr(t);
	to->switches = switches_of(t);
	to->state = state_of(m);
	if (!is_off_cpu(to->state))
		return;
	spin_lock(&decamp_lock);
	if (m->hold)
		read_regs(t, to);
	spin_unlock(&decamp_lock);
	smp_rmb(); /* the registers first */
	if (state_of(m) != to->state || switches_of(t) != to->switches) {
		to->state = DECAMP_RUNNING;
		to->flags = 0;
		to->restart = DECAMP_RESTART_NONE;
	}
}

int state_threads(struct session *s, struct decamp_threads *args)
{
	struct decamp_thread __user *to = u64_to_user_ptr(args->threads);
	struct decamp_thread thread;
	struct member *m;

	args->total = 0;
	memset(&args->counts, 0, sizeof(args->counts));
	list_for_each_entry_rcu(m, &s->members, node, true) {
		read_thread(m, &thread);
		((u32 *)&args->counts)[thread.state]++;
		if (args->total < args->room &&
		    copy_to_user(&to[args->total], &thread, sizeof(thread)))
			return -EFAULT;
		args->total++;
		cond_resched();
	}
	args->missed = READ_ONCE(s->missed);
	return 0;
}

/* What the kernel itself calls the extended registers of 64-bit code; NULL: none. */
static const struct user_regset *xstate_regset(void)
{
	const struct user_regset_view *view = task_user_regset_view(current);

	for (unsigned int i = 0; view->e_machine == EM_X86_64 && i < view->n; i++)
		if (view->regsets[i].core_note_type == NT_X86_XSTATE)
			return &view->regsets[i];
	return NULL;
}

int state_xstate(struct session *s, struct decamp_xstate *args)
{
	const struct user_regset *regset = xstate_regset();
	struct member *m = session_find(s, args->tid);
	unsigned int room = args->bytes;
	void *buffer;
	int r;

	if (!m)
		return -ESRCH;
	if (!regset)
		return -EOPNOTSUPP;
	args->bytes = regset->n * regset->size;
	args->switches = switches_of(m->task);
	if (!is_off_cpu(state_of(m)))
		return -EAGAIN;
	buffer = kvzalloc(args->bytes, GFP_KERNEL_ACCOUNT);
	if (!buffer)
		return -ENOMEM;
	r = regset_get(m->task, regset, args->bytes, buffer);
	smp_rmb(); /* the registers first */
	if (r >= 0 && (!is_off_cpu(state_of(m)) || switches_of(m->task) != args->switches))
		r = -EAGAIN;
	if (r >= 0) {
		args->bytes = r;
		r = args->bytes > room ? -EMSGSIZE : 0;
	}
	if (!r && copy_to_user(u64_to_user_ptr(args->buffer), buffer, args->bytes))
		r = -EFAULT;
	kvfree(buffer);
	return r;
}
