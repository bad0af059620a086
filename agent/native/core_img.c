// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * core-TID.img: one per thread, that of the first thread with what belongs to the process.
 */
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

#include "agent/native/img.h"
#include "agent/native/state_internal.h"

enum {
	MTYPE_X86_64 = 1,
	MODE_NATIVE = 1,
	CS_64 = 0x33,
	SEGMENTS = 3,
	SEGMENT_FIRST = 12, /* entry of the GDT */
	ACTIONS = STATE_SIGNALS - 2,
	CAP_WORDS = 2,
	CG_SET = 1,
	ROBUST_SIZE = 24, /* of a robust_list_head */
	POLICY_RESET_ON_FORK = 0x40000000,
};

/* The messages of one image. */
struct core {
	NatCore__Core core;
	NatCore__ThreadInfo info;
	NatCore__Regs regs;
	NatCore__Fpregs fpregs;
	NatCore__Xsave xsave;
	NatCore__Segment *segments[SEGMENTS];
	NatCore__Segment segment_array[SEGMENTS];
	NatCore__Task task;
	NatCore__Timers timers;
	NatCore__Itimer itimers[3];
	NatCore__PosixTimer posix[STATE_TIMERS_MAX], *posix_list[STATE_TIMERS_MAX];
	NatCore__Rlimits rlimits;
	NatCore__Rlimit limits[STATE_RLIMITS], *limit_list[STATE_RLIMITS];
	NatCore__Action actions[ACTIONS], *action_list[ACTIONS];
	NatCore__Signals shared, own;
	NatCore__Thread thread;
	NatCore__Altstack altstack;
	NatCore__Creds creds;
	uint32_t caps[5][CAP_WORDS];
	NatCore__Rseq rseq;
	char comm[STATE_COMM_MAX + 1];
	NatCore__Siginfo *infos; /* malloc'ed */
	NatCore__Siginfo **info_list;
	siginfo_t *bare;
};

static void core_free(struct core *c)
{
	if (!c)
		return;
	free(c->infos);
	free(c->info_list);
	free(c->bare);
	free(c);
}

static void core_freep(struct core **c)
{
	core_free(*c);
}

static void fill_regs(NatCore__Regs *to, const struct user_regs_struct *from)
{
	nat_core__regs__init(to);
	to->r15 = from->r15;
	to->r14 = from->r14;
	to->r13 = from->r13;
	to->r12 = from->r12;
	to->bp = from->rbp;
	to->bx = from->rbx;
	to->r11 = from->r11;
	to->r10 = from->r10;
	to->r9 = from->r9;
	to->r8 = from->r8;
	to->ax = from->rax;
	to->cx = from->rcx;
	to->dx = from->rdx;
	to->si = from->rsi;
	to->di = from->rdi;
	to->orig_ax = from->orig_rax;
	to->ip = from->rip;
	to->cs = from->cs;
	to->flags = from->eflags;
	to->sp = from->rsp;
	to->ss = from->ss;
	to->fs_base = from->fs_base;
	to->gs_base = from->gs_base;
	to->ds = from->ds;
	to->es = from->es;
	to->fs = from->fs;
	to->gs = from->gs;
	to->has_mode = true;
	to->mode = MODE_NATIVE;
}

/* Threads that use segments are not covered, so all are empty. */
static void fill_segments(struct core *c)
{
	for (uint32_t i = 0; i < SEGMENTS; i++) {
		NatCore__Segment *s = &c->segment_array[i];

		nat_core__segment__init(s);
		s->entry_number = SEGMENT_FIRST + i;
		s->read_exec_only = true;
		s->seg_not_present = true;
		c->segments[i] = s;
	}
	c->info.n_tls = SEGMENTS;
	c->info.tls = c->segments;
}

static int fill_info(struct native_tree *tree, struct core *c, const struct native_thread *t)
{
	int r;

	if (t->regs.cs != CS_64)
		return native_fail(tree, -EOPNOTSUPP, "thread %d runs 32-bit code", t->tid);
	nat_core__thread_info__init(&c->info);
	c->info.clear_tid_addr = t->state->clear_child_tid;
	fill_regs(&c->regs, &t->regs);
	c->info.gpregs = &c->regs;
	r = fpu_fill(tree, t, &c->fpregs, &c->xsave);
	if (r < 0)
		return r;
	c->info.fpregs = &c->fpregs;
	fill_segments(c);
	c->core.thread_info = &c->info;
	return 0;
}

static uint64_t set_of(const siginfo_t *queue, size_t count)
{
	uint64_t set = 0;

	for (size_t i = 0; i < count; i++) {
		if (queue[i].si_signo > 0 && queue[i].si_signo <= STATE_SIGNALS)
			set |= 1ull << (queue[i].si_signo - 1);
	}
	return set;
}

/*
 * Room for the queued signals of a process and a thread, and for those that are pending without
 * an entry in the queue, which the kernel does when it has no memory for one.
 */
static int room_for_signals(struct core *c, const struct native_task *task,
			    const struct native_thread *t)
{
	size_t count = task->queued_count + t->queued_count + 2 * STATE_SIGNALS;

	c->infos = calloc(count, sizeof(*c->infos));
	c->info_list = calloc(count, sizeof(*c->info_list));
	c->bare = calloc(2 * STATE_SIGNALS, sizeof(*c->bare));
	return c->infos && c->info_list && c->bare ? 0 : -ENOMEM;
}

/* Entries of this list start at `at`; returns where the next list starts. */
static size_t fill_signals(struct core *c, NatCore__Signals *to, size_t at, size_t *bare_at,
			   siginfo_t *queue, size_t count, uint64_t pending)
{
	uint64_t missing = pending & ~set_of(queue, count);
	size_t first = at;

	nat_core__signals__init(to);
	for (size_t i = 0; i < count; i++) {
		nat_core__siginfo__init(&c->infos[at]);
		c->infos[at].info.data = (uint8_t *)&queue[i];
		c->infos[at++].info.len = sizeof(siginfo_t);
	}
	for (int signal = 1; signal <= STATE_SIGNALS; signal++) {
		if (!(missing >> (signal - 1) & 1) || signal == SIGKILL)
			continue;
		c->bare[*bare_at].si_signo = signal;
		nat_core__siginfo__init(&c->infos[at]);
		c->infos[at].info.data = (uint8_t *)&c->bare[(*bare_at)++];
		c->infos[at++].info.len = sizeof(siginfo_t);
	}
	for (size_t i = first; i < at; i++)
		c->info_list[i] = &c->infos[i];
	to->n_queue = at - first;
	to->queue = c->info_list + first;
	return at;
}

static void fill_itimer(NatCore__Itimer *to, const struct state_itimer *from)
{
	uint64_t left_us = (from->value_ns + 999) / 1000;

	nat_core__itimer__init(to);
	/* With an interval and no time left a restore would arm it. */
	if (!from->value_ns)
		return;
	to->isec = from->interval_ns / 1000000000;
	to->iusec = from->interval_ns / 1000 % 1000000;
	to->vsec = left_us / 1000000;
	to->vusec = left_us % 1000000;
}

static int compare_timers(const void *a, const void *b)
{
	const NatCore__PosixTimer *const *x = a, *const *y = b;

	return (*x)->id < (*y)->id ? -1 : (*x)->id > (*y)->id;
}

static void fill_timers(struct core *c, const struct state_process *p)
{
	nat_core__timers__init(&c->timers);
	fill_itimer(&c->itimers[0], &p->real);
	fill_itimer(&c->itimers[1], &p->virt);
	fill_itimer(&c->itimers[2], &p->prof);
	c->timers.real = &c->itimers[0];
	c->timers.virt = &c->itimers[1];
	c->timers.prof = &c->itimers[2];
	for (uint32_t i = 0; i < p->timer_count; i++) {
		const struct state_posix_timer *from = &p->timers[i];
		NatCore__PosixTimer *to = &c->posix[i];
		uint64_t interval = from->value_ns ? from->interval_ns : 0;

		nat_core__posix_timer__init(to);
		to->id = (uint32_t)from->id;
		to->clock = (uint32_t)from->clock;
		to->signo = (uint32_t)from->signo;
		to->notify = (uint32_t)from->notify;
		to->sigval = from->sigval;
		to->overrun = (uint32_t)from->overrun;
		to->isec = interval / 1000000000;
		to->insec = interval % 1000000000;
		to->vsec = from->value_ns / 1000000000;
		to->vnsec = from->value_ns % 1000000000;
		to->has_thread = from->target_tid != 0;
		to->thread = from->target_tid;
		c->posix_list[i] = to;
	}
	qsort(c->posix_list, p->timer_count, sizeof(c->posix_list[0]), compare_timers);
	c->timers.n_posix = p->timer_count;
	c->timers.posix = c->posix_list;
	c->task.timers = &c->timers;
}

static void fill_rlimits(struct core *c, const struct state_process *p)
{
	nat_core__rlimits__init(&c->rlimits);
	for (int i = 0; i < STATE_RLIMITS; i++) {
		nat_core__rlimit__init(&c->limits[i]);
		c->limits[i].cur = p->rlim_cur[i];
		c->limits[i].max = p->rlim_max[i];
		c->limit_list[i] = &c->limits[i];
	}
	c->rlimits.n_limits = STATE_RLIMITS;
	c->rlimits.limits = c->limit_list;
	c->task.rlimits = &c->rlimits;
}

/* All but SIGKILL and SIGSTOP. */
static void fill_actions(struct core *c, const struct state_process *p)
{
	size_t n = 0;

	for (int signal = 1; signal <= STATE_SIGNALS; signal++) {
		const struct state_sigaction *from = &p->actions[signal - 1];
		NatCore__Action *to = &c->actions[n];

		if (signal == SIGKILL || signal == SIGSTOP)
			continue;
		nat_core__action__init(to);
		to->handler = from->handler;
		to->flags = from->flags;
		to->restorer = from->restorer;
		to->mask = from->mask;
		to->has_compat = true;
		c->action_list[n++] = to;
	}
	c->task.n_actions = n;
	c->task.actions = c->action_list;
}

/* The kernel's state bits as the commands of membarrier(2) that set them. */
static uint32_t membarrier_commands(uint32_t state)
{
	static const struct {
		uint32_t state, command;
	} map[] = { { 1 << 1, 1 << 4 }, { 1 << 3, 1 << 2 }, { 1 << 5, 1 << 6 }, { 1 << 7, 1 << 8 } };
	uint32_t commands = 0;

	for (size_t i = 0; i < ARRAY_SIZE(map); i++) {
		if (state & map[i].state)
			commands |= map[i].command;
	}
	return commands;
}

static void fill_task(struct core *c, const struct native_task *task, const struct native_thread *t)
{
	const struct state_process *p = task->state;

	c->task.state = NAT_CORE__TASK_STATE__ALIVE;
	c->task.personality = t->state->personality;
	c->task.flags = t->state->flags;
	c->task.blocked = t->sigmask;
	c->task.comm = c->comm;
	if (p->group_stop_signal) {
		c->task.state = NAT_CORE__TASK_STATE__STOPPED;
		c->task.has_stop_signal = true;
		c->task.stop_signal = (uint32_t)p->group_stop_signal;
	}
	c->task.has_loginuid = true;
	c->task.loginuid = p->loginuid;
	c->task.has_oom_score_adj = true;
	c->task.oom_score_adj = p->oom_score_adj;
	c->task.has_child_subreaper = true;
	c->task.child_subreaper = p->is_child_subreaper;
	c->task.membarrier = membarrier_commands(p->membarrier);
	c->task.has_membarrier = c->task.membarrier != 0;
	c->task.shared = &c->shared;
	fill_timers(c, p);
	fill_rlimits(c, p);
	fill_actions(c, p);
	c->core.task = &c->task;
}

static void fill_caps(uint32_t to[CAP_WORDS], uint64_t from, size_t *ret_count, uint32_t **ret_caps)
{
	to[0] = (uint32_t)from;
	to[1] = (uint32_t)(from >> 32);
	*ret_count = CAP_WORDS;
	*ret_caps = to;
}

static void fill_creds(struct core *c, const struct state_creds *from)
{
	NatCore__Creds *to = &c->creds;

	nat_core__creds__init(to);
	to->uid = from->uid;
	to->gid = from->gid;
	to->euid = from->euid;
	to->egid = from->egid;
	to->suid = from->suid;
	to->sgid = from->sgid;
	to->fsuid = from->fsuid;
	to->fsgid = from->fsgid;
	fill_caps(c->caps[0], from->cap_inh, &to->n_cap_inh, &to->cap_inh);
	fill_caps(c->caps[1], from->cap_prm, &to->n_cap_prm, &to->cap_prm);
	fill_caps(c->caps[2], from->cap_eff, &to->n_cap_eff, &to->cap_eff);
	fill_caps(c->caps[3], from->cap_bnd, &to->n_cap_bnd, &to->cap_bnd);
	fill_caps(c->caps[4], from->cap_amb, &to->n_cap_amb, &to->cap_amb);
	to->secbits = from->secbits;
	to->n_groups = from->group_count;
	to->groups = (uint32_t *)from->groups;
	to->has_no_new_privs = from->no_new_privs != 0;
	to->no_new_privs = from->no_new_privs;
	c->thread.creds = to;
}

static void fill_rseq(struct core *c, const struct native_thread *t)
{
	if (!t->rseq_ptr)
		return;
	nat_core__rseq__init(&c->rseq);
	c->rseq.area = t->rseq_ptr;
	c->rseq.size = t->rseq_size;
	c->rseq.signature = t->rseq_signature;
	c->rseq.has_cs = t->rseq_cs != 0;
	c->rseq.cs = t->rseq_cs;
	c->thread.rseq = &c->rseq;
}

static void fill_sched(NatCore__Thread *to, const struct state_thread *s)
{
	to->has_nice = true;
	to->nice = s->nice;
	to->has_policy = true;
	to->policy = s->policy | (s->reset_on_fork ? POLICY_RESET_ON_FORK : 0);
	to->has_priority = s->policy == SCHED_FIFO || s->policy == SCHED_RR;
	to->priority = s->rt_priority;
}

static void fill_thread(struct core *c, const struct native_tree *tree,
			const struct native_thread *t, bool leads)
{
	const struct state_thread *s = t->state;
	NatCore__Thread *to = &c->thread;
	int filter = seccomp_index(tree, t);

	nat_core__thread__init(to);
	to->robust_list = s->robust_list;
	to->robust_list_size = ROBUST_SIZE;
	fill_sched(to, s);
	to->has_blocked = !leads;
	to->blocked = t->sigmask;
	nat_core__altstack__init(&c->altstack);
	c->altstack.sp = s->sas_sp;
	c->altstack.size = s->sas_size;
	c->altstack.flags = s->sas_size ? s->sas_flags : s->sas_flags | SS_DISABLE;
	to->altstack = &c->altstack;
	to->has_pdeath_signal = s->pdeath_signal != 0;
	to->pdeath_signal = (uint32_t)s->pdeath_signal;
	to->own = &c->own;
	fill_creds(c, &s->creds);
	/* Filters that all threads share are put in place by the first one. */
	to->has_seccomp_mode = s->seccomp_mode != 0 && (s->seccomp_mode == 1 || filter >= 0);
	to->seccomp_mode = s->seccomp_mode;
	to->has_seccomp_filter = filter >= 0;
	to->seccomp_filter = filter >= 0 ? (uint32_t)filter : 0;
	to->comm = c->comm;
	fill_rseq(c, t);
	to->has_cg_set = true;
	to->cg_set = CG_SET;
	c->core.thread = to;
}

static int put(struct native_tree *tree, pid_t inner_tid, const NatCore__Core *core)
{
	char name[32];
	struct img *i;
	int r;

	snprintf(name, sizeof(name), "core-%d", inner_tid);
	r = img_create(tree->images, name, &i);
	if (r < 0)
		return r;
	img_put(i, &core->base);
	return img_close(i);
}

static int write_thread(struct native_tree *tree, const struct native_task *task,
			struct native_thread *t)
{
	_cleanup_(core_freep) struct core *c = calloc(1, sizeof(*c));
	bool leads = t->tid == task->pid;
	size_t at = 0, bare_at = 0;
	int r;

	if (!c)
		return -ENOMEM;
	if (!t->state)
		return native_fail(tree, -EBADMSG, "thread %d: no state of it", t->tid);
	nat_core__core__init(&c->core);
	nat_core__task__init(&c->task);
	c->core.mtype = MTYPE_X86_64;
	memcpy(c->comm, t->state->comm, STATE_COMM_MAX);
	r = room_for_signals(c, task, t);
	if (r == 0)
		r = fill_info(tree, c, t);
	if (r < 0)
		return r;
	if (leads) {
		at = fill_signals(c, &c->shared, at, &bare_at, task->queued, task->queued_count,
				  task->state->shared_pending);
		fill_task(c, task, t);
	}
	fill_signals(c, &c->own, at, &bare_at, t->queued, t->queued_count, t->state->pending);
	fill_thread(c, tree, t, leads);
	return put(tree, t->inner_tid, &c->core);
}

static int write_zombie(struct native_tree *tree, const struct native_task *task)
{
	char comm[STATE_COMM_MAX + 1] = "";
	NatCore__Core core;
	NatCore__Task t;

	nat_core__core__init(&core);
	nat_core__task__init(&t);
	core.mtype = MTYPE_X86_64;
	core.task = &t;
	t.state = NAT_CORE__TASK_STATE__DEAD;
	t.exit_code = (uint32_t)task->state->exit_code;
	if (task->thread_count > 0 && task->threads[0].state)
		memcpy(comm, task->threads[0].state->comm, STATE_COMM_MAX);
	t.comm = comm;
	return put(tree, task->inner_pid, &core);
}

int core_write(struct native_tree *tree, const struct native_task *task)
{
	int r = 0;

	if (task->zombie)
		return write_zombie(tree, task);
	for (size_t i = 0; r == 0 && i < task->thread_count; i++)
		r = write_thread(tree, task, &task->threads[i]);
	return r;
}
