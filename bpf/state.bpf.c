// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the kernel knows of a stopped process and procfs does not tell, or tells slowly: one record
 * of bpf/state.h per thread, process, VMA and descriptor. Each program runs over one process that
 * the iterator's link names. Values are raw where the agent can compute: expiry times are absolute.
 * A field that some kernels lack is guarded by bpf_core_field_exists(); a field that no kernel
 * should lack is not, and the load fails.
 */
#include "bpf/kernel.h"
#include "bpf/state.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

enum {
	PID_LEVELS_MAX = 32,
	SIGNAL_STOP_STOPPED = 1,
	SIGNAL_GROUP_EXIT = 4,
	JOBCTL_STOP_SIGMASK = 0xffff,
	NO_NEW_PRIVS = 1,
	PF_EXITING = 4,
	HRTIMER_ENQUEUED = 1,
	REQUEUE_PENDING = 1,
	THREAD_ID = 4, /* SIGEV_THREAD_ID */
	ERESTART_RESTARTBLOCK = 516,
	NR_RESTART_SYSCALL = 219,
	NR_PTRACE = 101,
	NR_PROCESS_VM_WRITEV = 311,
	/* Of the futex calls, before and since 6.7. */
	FUTEX_REALTIME_OLD = 2,
	FUTEX_REALTIME = 0x20,
	FUTEX_HAS_TIMEOUT = 0x40,
	CLOCK_REALTIME = 0,
	CLOCK_MONOTONIC = 1,
	ERRNO_MAX = 4095,
	OVERLAYFS_MAGIC = 0x794c7630,
	FUSE_MAGIC = 0x65735546,
	PAGE_SHIFT = 12,
	AIO_MAX = 64,
	FILTERS_MAX = 64,
};

char _license[] SEC("license") = "GPL";

/* Inode of the reader's PID namespace. */
const volatile __u32 reader_pid_ns = 0;
/* 0 where the verifier takes mm->exe_file for a pointer that is not to be trusted. */
const volatile bool can_name_exe = 1;

/* Too large for the stack. Only one reader at a time runs these programs. */
struct state_thread thread = {};
struct state_process process = {};
struct state_vma vma = {};
struct state_fd fd = {};

static struct upid *upid_at(struct pid *pid, __u32 level)
{
	char *numbers = (char *)pid + bpf_core_field_offset(struct pid, numbers);

	return (struct upid *)(numbers + level * bpf_core_type_size(struct upid));
}

/*
 * Functions with loops are global and take plain numbers: the verifier looks at each of them once
 * and not wherever it is called, or loading would take most of a second. To the verifier a number
 * is what bpf_probe_read_kernel() gave, not a field that was read directly.
 */

/* As the reader knows it; 0: not at all. */
__noinline __u32 host_number_of(__u64 address)
{
	struct pid *pid = (struct pid *)address;
	__u32 level;

	if (!pid)
		return 0;
	level = BPF_CORE_READ(pid, level);
	for (__u32 i = 0; i < PID_LEVELS_MAX && i <= level; i++) {
		struct upid *upid = upid_at(pid, i);

		if (BPF_CORE_READ(upid, ns, ns.inum) == reader_pid_ns)
			return BPF_CORE_READ(upid, nr);
	}
	return 0;
}

static __u32 host_number(struct pid *pid)
{
	return host_number_of((__u64)pid);
}

/* As the process that has number `own` knows it; 0: not at all. */
static __s32 inner_number(struct pid *pid, struct pid *own)
{
	struct upid *upid;
	__u32 level;

	if (!pid || !own)
		return 0;
	level = BPF_CORE_READ(own, level);
	if (level >= PID_LEVELS_MAX || BPF_CORE_READ(pid, level) < level)
		return 0;
	upid = upid_at(pid, level);
	if (BPF_CORE_READ(upid, ns) != BPF_CORE_READ(upid_at(own, level), ns))
		return 0;
	return BPF_CORE_READ(upid, nr);
}

static __u64 read_caps(const void *from)
{
	__u64 caps = 0;

	bpf_probe_read_kernel(&caps, sizeof(caps), from);
	return caps;
}

static void read_creds(struct state_creds *c, struct cred *cred)
{
	struct group_info *groups = BPF_CORE_READ(cred, group_info);
	__u32 count = BPF_CORE_READ(groups, ngroups), held = count;

	c->uid = BPF_CORE_READ(cred, uid.val);
	c->gid = BPF_CORE_READ(cred, gid.val);
	c->suid = BPF_CORE_READ(cred, suid.val);
	c->sgid = BPF_CORE_READ(cred, sgid.val);
	c->euid = BPF_CORE_READ(cred, euid.val);
	c->egid = BPF_CORE_READ(cred, egid.val);
	c->fsuid = BPF_CORE_READ(cred, fsuid.val);
	c->fsgid = BPF_CORE_READ(cred, fsgid.val);
	c->cap_inh = read_caps(__builtin_preserve_access_index(&cred->cap_inheritable));
	c->cap_prm = read_caps(__builtin_preserve_access_index(&cred->cap_permitted));
	c->cap_eff = read_caps(__builtin_preserve_access_index(&cred->cap_effective));
	c->cap_bnd = read_caps(__builtin_preserve_access_index(&cred->cap_bset));
	c->cap_amb = read_caps(__builtin_preserve_access_index(&cred->cap_ambient));
	c->secbits = BPF_CORE_READ(cred, securebits);
	c->group_count = count;
	if (held > STATE_GROUPS_MAX)
		held = STATE_GROUPS_MAX;
	bpf_probe_read_kernel(c->groups, held * sizeof(c->groups[0]),
			      __builtin_preserve_access_index(&groups->gid));
}

/*
 * The kernel says by the name of a function what a sleeping call goes on with after a stop. Looking
 * names up when the programs are loaded would take longer than all the rest of it.
 */
struct function_name {
	union {
		char text[32];
		__u64 word; /* the first eight letters tell these few functions apart */
	};
};

#define WORD(a, b, c, d, e, f, g, h)                                                             \
	((__u64)(a) | (__u64)(b) << 8 | (__u64)(c) << 16 | (__u64)(d) << 24 | (__u64)(e) << 32 | \
	 (__u64)(f) << 40 | (__u64)(g) << 48 | (__u64)(h) << 56)

/* The clock and the time at which a call that is about to be restarted ends. */
static void read_restart(struct state_thread *t, struct task_struct *task)
{
	struct restart_block *block = __builtin_preserve_access_index(&task->restart_block);
	struct restart_block___timespec *newer = (void *)block;
	const void *fn = BPF_CORE_READ(block, fn);
	struct function_name name = {};
	__u32 flags;

	t->restart_clock = -1;
	t->restart_expires_ns = 0;
	if (!t->in_syscall_restart)
		return;
	BPF_SNPRINTF(name.text, sizeof(name.text), "%ps", fn);
	if (name.word == WORD('h', 'r', 't', 'i', 'm', 'e', 'r', '_') ||
	    name.word == WORD('a', 'l', 'a', 'r', 'm', '_', 't', 'i')) {
		t->restart_clock = BPF_CORE_READ(block, nanosleep.clockid);
		t->restart_expires_ns = BPF_CORE_READ(block, nanosleep.expires);
	} else if (name.word == WORD('f', 'u', 't', 'e', 'x', '_', 'w', 'a') ||
		   name.word == WORD('d', 'o', '_', 'n', 'o', '_', 'r', 'e')) { /* in its restart */
		flags = BPF_CORE_READ(block, futex.flags);
		t->restart_clock = CLOCK_MONOTONIC;
		if (flags & (flags & FUTEX_HAS_TIMEOUT ? FUTEX_REALTIME : FUTEX_REALTIME_OLD))
			t->restart_clock = CLOCK_REALTIME;
		t->restart_expires_ns = BPF_CORE_READ(block, futex.time);
	} else if (name.word == WORD('d', 'o', '_', 'r', 'e', 's', 't', 'a') &&
		   BPF_CORE_READ(block, poll.has_timeout)) {
		t->restart_clock = CLOCK_MONOTONIC;
		if (bpf_core_field_exists(block->poll.tv_sec))
			t->restart_expires_ns = BPF_CORE_READ(block, poll.tv_sec) * 1000000000ull +
						BPF_CORE_READ(block, poll.tv_nsec);
		else if (bpf_core_field_exists(newer->poll.end_time))
			t->restart_expires_ns =
				BPF_CORE_READ(newer, poll.end_time.tv_sec) * 1000000000ull +
				BPF_CORE_READ(newer, poll.end_time.tv_nsec);
		else
			t->restart_clock = -1;
	}
}

static void read_arch(struct state_thread *t, struct task_struct *task)
{
	t->arch_features = 0;
	t->segments = 0;
	t->in_syscall_restart = 0;
#ifdef __TARGET_ARCH_x86
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);
	__u64 segments[3] = {};

	if (bpf_core_field_exists(task->thread.features))
		t->arch_features = BPF_CORE_READ(task, thread.features);
	bpf_probe_read_kernel(segments, sizeof(segments),
			      __builtin_preserve_access_index(&task->thread.tls_array));
	t->segments = (segments[0] | segments[1] | segments[2]) != 0;
	t->in_syscall_restart = BPF_CORE_READ(regs, ax) == (__u64)-ERESTART_RESTARTBLOCK ||
				BPF_CORE_READ(regs, orig_ax) == NR_RESTART_SYSCALL;
#endif
}

static void read_rseq(struct state_thread *t, struct task_struct *task)
{
	struct task_struct___rseq_inside *newer = (void *)task;

	t->rseq = 0;
	t->rseq_size = 0;
	t->rseq_sig = 0;
	if (bpf_core_field_exists(newer->rseq.usrptr)) {
		t->rseq = (__u64)BPF_CORE_READ(newer, rseq.usrptr);
		t->rseq_size = BPF_CORE_READ(newer, rseq.len);
		t->rseq_sig = BPF_CORE_READ(newer, rseq.sig);
	} else if (bpf_core_field_exists(task->rseq_sig)) {
		t->rseq = (__u64)BPF_CORE_READ(task, rseq);
		t->rseq_size = 32; /* the only size before it was recorded */
		if (bpf_core_field_exists(task->rseq_len))
			t->rseq_size = BPF_CORE_READ(task, rseq_len);
		t->rseq_sig = BPF_CORE_READ(task, rseq_sig);
	}
}

static void read_signal_state(struct state_thread *t, struct task_struct *task)
{
	t->sas_sp = task->sas_ss_sp;
	t->sas_size = task->sas_ss_size;
	t->sas_flags = task->sas_ss_flags;
	t->pdeath_signal = task->pdeath_signal;
	t->clear_child_tid = (__u64)task->clear_child_tid;
	t->robust_list = (__u64)task->robust_list;
	t->blocked = BPF_CORE_READ(task, blocked.sig[0]);
	t->pending = BPF_CORE_READ(task, pending.signal.sig[0]);
	t->saved_blocked = BPF_CORE_READ(task, real_blocked.sig[0]) ?: t->blocked;
	if (bpf_core_field_exists(task->restore_sigmask) &&
	    BPF_CORE_READ_BITFIELD_PROBED(task, restore_sigmask))
		t->saved_blocked = BPF_CORE_READ(task, saved_sigmask.sig[0]);
}

static void read_sched(struct state_thread *t, struct task_struct *task)
{
	t->policy = task->policy;
	t->rt_priority = task->rt_priority;
	t->nice = task->static_prio - 120;
	t->reset_on_fork = BPF_CORE_READ_BITFIELD_PROBED(task, sched_reset_on_fork);
	t->dl_runtime = BPF_CORE_READ(task, dl.dl_runtime);
	t->dl_deadline = BPF_CORE_READ(task, dl.dl_deadline);
	t->dl_period = BPF_CORE_READ(task, dl.dl_period);
}

static __u32 read_tracer(struct task_struct *task)
{
	__u32 number;

	if (!task->ptrace)
		return 0;
	number = host_number(BPF_CORE_READ(task, parent, group_leader, thread_pid));
	return number ? number : ~0u;
}

/* More filters than anyone has count as one: it is not known. */
__noinline __u32 has_listener(__u64 address)
{
	struct seccomp_filter *filter = (struct seccomp_filter *)address;

	for (int i = 0; i < FILTERS_MAX && filter; i++) {
		if (BPF_CORE_READ(filter, notif))
			return 1;
		filter = BPF_CORE_READ(filter, prev);
	}
	return filter != 0;
}

static void read_seccomp(struct state_thread *t, struct task_struct *task)
{
	t->seccomp_mode = BPF_CORE_READ(task, seccomp.mode);
	t->seccomp_filter = (__u64)BPF_CORE_READ(task, seccomp.filter);
	t->seccomp_filter_count = BPF_CORE_READ(task, seccomp.filter_count.counter);
	t->seccomp_listener = has_listener(t->seccomp_filter);
}

static void read_thread(struct state_thread *t, struct task_struct *task)
{
	struct pid *own = BPF_CORE_READ(task, thread_pid);

	t->host_tid = host_number(own);
	t->host_tgid = host_number(BPF_CORE_READ(task, group_leader, thread_pid));
	t->tid = inner_number(own, own);
	t->tgid = inner_number(BPF_CORE_READ(task, group_leader, thread_pid), own);
	t->task = (__u64)task;
	t->files = (__u64)task->files;
	t->fs = (__u64)task->fs;
	t->personality = task->personality;
	t->exit_state = task->exit_state;
	t->flags = task->flags;
	t->nvcsw = task->nvcsw;
	t->nivcsw = task->nivcsw;
	t->ptraced = read_tracer(task);
	t->io_uring = 0;
	if (bpf_core_field_exists(task->io_uring))
		t->io_uring = task->io_uring != 0;
	t->syscall_dispatch = 0;
	if (bpf_core_field_exists(task->syscall_dispatch))
		t->syscall_dispatch = BPF_CORE_READ(task, syscall_dispatch.selector) ||
				      BPF_CORE_READ(task, syscall_dispatch.len);
	bpf_core_read(t->comm, sizeof(t->comm), &task->comm);
	t->creds.no_new_privs = task->atomic_flags & NO_NEW_PRIVS;
	read_creds(&t->creds, task->real_cred);
	read_seccomp(t, task);
	read_signal_state(t, task);
	read_sched(t, task);
	read_rseq(t, task);
	read_arch(t, task);
	read_restart(t, task);
}

static void read_mm(struct state_process *p, struct mm_struct *mm)
{
	struct mm_struct___bitmap *newer = (void *)mm;
	__u32 auxv_bytes = bpf_core_field_size(mm->saved_auxv);

	p->start_code = BPF_CORE_READ(mm, start_code);
	p->end_code = BPF_CORE_READ(mm, end_code);
	p->start_data = BPF_CORE_READ(mm, start_data);
	p->end_data = BPF_CORE_READ(mm, end_data);
	p->start_stack = BPF_CORE_READ(mm, start_stack);
	p->start_brk = BPF_CORE_READ(mm, start_brk);
	p->brk = BPF_CORE_READ(mm, brk);
	p->arg_start = BPF_CORE_READ(mm, arg_start);
	p->arg_end = BPF_CORE_READ(mm, arg_end);
	p->env_start = BPF_CORE_READ(mm, env_start);
	p->env_end = BPF_CORE_READ(mm, env_end);
	if (bpf_core_field_exists(newer->flags.__mm_flags))
		p->mm_flags = BPF_CORE_READ(newer, flags.__mm_flags[0]);
	else
		p->mm_flags = BPF_CORE_READ(mm, flags);
	p->dumpable = p->mm_flags & 3;
	p->mm_def_flags = BPF_CORE_READ(mm, def_flags);
	p->task_size = BPF_CORE_READ(mm, task_size);
	p->vdso = (__u64)BPF_CORE_READ(mm, context.vdso);
	p->ldt = 0;
	if (bpf_core_field_exists(mm->context.ldt))
		p->ldt = (__u64)BPF_CORE_READ(mm, context.ldt);
	p->membarrier = BPF_CORE_READ(mm, membarrier_state.counter);
	p->exe_file = (__u64)BPF_CORE_READ(mm, exe_file);
	if (auxv_bytes > sizeof(p->auxv))
		auxv_bytes = sizeof(p->auxv);
	bpf_probe_read_kernel(p->auxv, auxv_bytes,
			      __builtin_preserve_access_index(&mm->saved_auxv));
}

__noinline __u64 count_aio(__u64 address)
{
	struct mm_struct *mm = (struct mm_struct *)address;
	struct kioctx_table *table;
	__u64 count = 0;
	char *slots;
	__u32 nr;

	if (!bpf_core_field_exists(mm->ioctx_table))
		return 0;
	table = BPF_CORE_READ(mm, ioctx_table);
	if (!table)
		return 0;
	nr = BPF_CORE_READ(table, nr);
	slots = (char *)table + bpf_core_field_offset(struct kioctx_table, table);
	for (__u32 i = 0; i < AIO_MAX && i < nr; i++) {
		void *context = 0;

		bpf_probe_read_kernel(&context, sizeof(context), slots + i * sizeof(context));
		count += context != 0;
	}
	return nr > AIO_MAX ? count + nr - AIO_MAX : count;
}

/* 2: expired, and to be set again when its signal is taken. */
static __u32 timer_status(struct k_itimer *t)
{
	struct k_itimer___older *older = (void *)t;

	if (bpf_core_field_exists(t->it_status))
		return BPF_CORE_READ(t, it_status);
	if (BPF_CORE_READ(older, it_active))
		return 1;
	return BPF_CORE_READ(older, it_requeue_pending) & REQUEUE_PENDING ? 2 : 0;
}

static void read_timer_signal(struct state_posix_timer *p, struct k_itimer *t)
{
	struct k_itimer___older *older = (void *)t;
	struct sigqueue *queue;
	struct {
		__s32 signo, errno, code, pad, tid, overrun;
		__u64 value;
	} info = {};

	if (bpf_core_field_exists(t->sigq.info))
		queue = __builtin_preserve_access_index(&t->sigq);
	else
		queue = BPF_CORE_READ(older, sigq);
	bpf_probe_read_kernel(&info, sizeof(info), __builtin_preserve_access_index(&queue->info));
	p->signo = info.signo;
	p->sigval = info.value;
}

__noinline int read_timer(__u32 index, __u64 address, __u64 owner)
{
	struct k_itimer *t = (struct k_itimer *)address;
	struct pid *own = (struct pid *)owner;
	struct state_posix_timer *p;

	if (index >= STATE_TIMERS_MAX)
		return 0;
	p = &process.timers[index];
	p->id = BPF_CORE_READ(t, it_id);
	p->clock = BPF_CORE_READ(t, it_clock);
	p->notify = BPF_CORE_READ(t, it_sigev_notify);
	p->interval_ns = BPF_CORE_READ(t, it_interval);
	p->overrun = BPF_CORE_READ(t, it_overrun_last);
	p->armed = timer_status(t);
	p->own_thread = 0;
	p->target_tid = 0;
	p->base_clock = p->clock;
	if (p->notify & THREAD_ID)
		p->target_tid = inner_number(BPF_CORE_READ(t, it_pid), own);
	if (p->clock < 0) {
		p->value_ns = BPF_CORE_READ(t, it.cpu.node.expires);
		p->own_thread = host_number(BPF_CORE_READ(t, it.cpu.pid));
	} else if (p->clock == 8 || p->clock == 9) { /* CLOCK_*_ALARM */
		p->value_ns = BPF_CORE_READ(t, it.alarm.alarmtimer.node.expires);
	} else {
		p->value_ns = BPF_CORE_READ(t, it.real.timer._softexpires);
		p->base_clock = BPF_CORE_READ(t, it.real.timer.base, clockid);
	}
	read_timer_signal(p, t);
	return 0;
}

/* The list is an hlist since 6.12 and was a ring before: its end is NULL or its head. */
static void read_timers(struct state_process *p, struct signal_struct *signal, struct pid *own)
{
	struct list_head *head = __builtin_preserve_access_index(&signal->posix_timers);
	struct signal_struct___atomic *newer = (void *)signal;
	struct list_head *node = 0;

	if (bpf_core_field_exists(newer->next_posix_timer_id.counter))
		p->timer_next_id = BPF_CORE_READ(newer, next_posix_timer_id.counter);
	else if (bpf_core_field_exists(signal->next_posix_timer_id))
		p->timer_next_id = BPF_CORE_READ(signal, next_posix_timer_id);
	p->timer_count = 0;
	bpf_probe_read_kernel(&node, sizeof(node), head);
	for (int i = 0; i < STATE_TIMERS_MAX && node && node != head; i++) {
		char *timer = (char *)node - bpf_core_field_offset(struct k_itimer, list);

		read_timer((__u32)i, (__u64)timer, (__u64)own);
		p->timer_count = i + 1;
		bpf_probe_read_kernel(&node, sizeof(node), node);
	}
	if (node && node != head)
		p->timer_count = STATE_TIMERS_MAX + 1;
}

static void read_itimers(struct state_process *p, struct signal_struct *signal)
{
	struct cpu_itimer it[2] = {};

	p->real.interval_ns = BPF_CORE_READ(signal, it_real_incr);
	p->real.value_ns = BPF_CORE_READ(signal, real_timer._softexpires);
	p->real_armed = BPF_CORE_READ(signal, real_timer.state) & HRTIMER_ENQUEUED;
	if (!p->real_armed && p->real.interval_ns)
		p->real_armed = 2;
	bpf_core_read(&it, sizeof(it), &signal->it);
	p->prof.value_ns = it[0].expires;
	p->prof.interval_ns = it[0].incr;
	p->virt.value_ns = it[1].expires;
	p->virt.interval_ns = it[1].incr;
}

static void read_terminal(struct state_process *p, struct signal_struct *signal, struct pid *own)
{
	struct tty_struct *tty = BPF_CORE_READ(signal, tty);

	p->tty_nr = p->tty_pgrp = 0;
	if (!tty)
		return;
	p->tty_nr = BPF_CORE_READ(tty, driver, major) << 20 |
		    (BPF_CORE_READ(tty, driver, minor_start) + BPF_CORE_READ(tty, index));
	p->tty_pgrp = inner_number(BPF_CORE_READ(tty, ctrl.pgrp), own);
}

static void read_group(struct state_process *p, struct task_struct *task, struct pid *own)
{
	struct signal_struct *signal = task->signal;
	struct rlimit rlim[STATE_RLIMITS] = {};
	__u32 flags = BPF_CORE_READ(signal, flags);

	p->signal = (__u64)signal;
	p->pgid = inner_number(BPF_CORE_READ(signal, pids[PIDTYPE_PGID]), own);
	p->sid = inner_number(BPF_CORE_READ(signal, pids[PIDTYPE_SID]), own);
	p->shared_pending = BPF_CORE_READ(signal, shared_pending.signal.sig[0]);
	p->is_child_subreaper = BPF_CORE_READ_BITFIELD_PROBED(signal, is_child_subreaper);
	p->oom_score_adj = BPF_CORE_READ(signal, oom_score_adj);
	p->thread_count = BPF_CORE_READ(signal, nr_threads);
	p->group_exit = !!(flags & SIGNAL_GROUP_EXIT);
	p->exit_code = p->group_exit ? BPF_CORE_READ(signal, group_exit_code) : task->exit_code;
	p->group_stop_signal = 0;
	if (flags & SIGNAL_STOP_STOPPED) {
		p->group_stop_signal = task->jobctl & JOBCTL_STOP_SIGMASK;
		if (!p->group_stop_signal)
			p->group_stop_signal = BPF_CORE_READ(signal, group_exit_code);
	}
	bpf_core_read(&rlim, sizeof(rlim), &signal->rlim);
	for (int i = 0; i < STATE_RLIMITS; i++) {
		p->rlim_cur[i] = rlim[i].rlim_cur;
		p->rlim_max[i] = rlim[i].rlim_max;
	}
	read_itimers(p, signal);
	read_timers(p, signal, own);
	read_terminal(p, signal, own);
}

/* Segments, semaphore sets and message queues. */
static __u32 count_ipc(struct ipc_namespace *ipc)
{
	if (!bpf_core_field_exists(ipc->ids) || !ipc)
		return ~0u;
	return BPF_CORE_READ(ipc, ids[0].in_use) + BPF_CORE_READ(ipc, ids[1].in_use) +
	       BPF_CORE_READ(ipc, ids[2].in_use);
}

static void read_namespaces(struct state_process *p, struct task_struct *task, struct pid *own)
{
	struct nsproxy *ns = task->nsproxy;
	struct time_namespace *time;

	p->ns_user = BPF_CORE_READ(task, real_cred, user_ns, ns.inum);
	p->ns_pid = 0;
	if (own) {
		__u32 level = BPF_CORE_READ(own, level);

		p->ns_pid = BPF_CORE_READ(upid_at(own, level), ns, ns.inum);
	}
	p->ns_mnt = BPF_CORE_READ(ns, mnt_ns, ns.inum);
	p->ns_net = BPF_CORE_READ(ns, net_ns, ns.inum);
	p->ns_uts = BPF_CORE_READ(ns, uts_ns, ns.inum);
	p->ns_ipc = BPF_CORE_READ(ns, ipc_ns, ns.inum);
	p->ipc_objects = count_ipc(BPF_CORE_READ(ns, ipc_ns));
	p->ns_cgroup = BPF_CORE_READ(ns, cgroup_ns, ns.inum);
	p->ns_pid_children = BPF_CORE_READ(ns, pid_ns_for_children, ns.inum);
	p->ns_time = p->ns_time_children = p->timens_monotonic_ns = p->timens_boot_ns = 0;
	if (!bpf_core_field_exists(ns->time_ns))
		return;
	time = BPF_CORE_READ(ns, time_ns);
	p->ns_time = BPF_CORE_READ(time, ns.inum);
	p->ns_time_children = BPF_CORE_READ(ns, time_ns_for_children, ns.inum);
	p->timens_monotonic_ns = BPF_CORE_READ(time, offsets.monotonic.tv_sec) * 1000000000ll +
				 BPF_CORE_READ(time, offsets.monotonic.tv_nsec);
	p->timens_boot_ns = BPF_CORE_READ(time, offsets.boottime.tv_sec) * 1000000000ll +
			    BPF_CORE_READ(time, offsets.boottime.tv_nsec);
}

static void read_actions(struct state_process *p, struct sighand_struct *sighand)
{
	/* x86-64 and arm64 lay a signal's action out as the record does. */
	if (bpf_core_type_size(struct k_sigaction) != sizeof(struct state_sigaction))
		return;
	bpf_probe_read_kernel(p->actions, sizeof(p->actions),
			      __builtin_preserve_access_index(&sighand->action));
}

static void read_paths(struct state_process *p, struct task_struct *task)
{
	p->exe[0] = p->cwd[0] = p->root[0] = '\0';
	if (task->fs) {
		p->umask = task->fs->umask;
		if (bpf_d_path(&task->fs->pwd, p->cwd, sizeof(p->cwd)) < 0)
			p->cwd[0] = '\0';
		if (bpf_d_path(&task->fs->root, p->root, sizeof(p->root)) < 0)
			p->root[0] = '\0';
	}
	if (can_name_exe && task->mm && task->mm->exe_file &&
	    bpf_d_path(&task->mm->exe_file->f_path, p->exe, sizeof(p->exe)) < 0)
		p->exe[0] = '\0';
}

static void read_process(struct state_process *p, struct task_struct *task)
{
	struct pid *own = BPF_CORE_READ(task, thread_pid);

	p->host_pid = host_number(own);
	p->pid = inner_number(own, own);
	p->ppid = inner_number(BPF_CORE_READ(task, real_parent, group_leader, thread_pid), own);
	p->mm = (__u64)task->mm;
	p->files = (__u64)task->files;
	p->fs = (__u64)task->fs;
	p->sighand = (__u64)task->sighand;
	p->loginuid = ~0u;
	if (bpf_core_field_exists(task->loginuid))
		p->loginuid = BPF_CORE_READ(task, loginuid.val);
	p->umask = p->aio_contexts = 0;
	if (task->mm) {
		read_mm(p, task->mm);
		p->aio_contexts = count_aio((__u64)BPF_CORE_READ(task, mm));
	}
	if (task->sighand)
		read_actions(p, task->sighand);
	read_group(p, task, own);
	read_namespaces(p, task, own);
	read_paths(p, task);
	if ((p->ending = !!(task->flags & PF_EXITING)))
		p->ending += !BPF_CORE_READ(task, signal, pids[PIDTYPE_SID]);
}

/*
 * Threads whose last system call, perhaps still under way, writes to the memory of another process
 * through pinned pages, unseen by any tracker.
 */
SEC("iter/task")
int state_writers(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;

	if (!task)
		return 0;
#ifdef __TARGET_ARCH_x86
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);
	__u64 nr = BPF_CORE_READ(regs, orig_ax);
	__u32 tid = task->pid;

	if (nr == NR_PROCESS_VM_WRITEV || nr == NR_PTRACE)
		bpf_seq_write(ctx->meta->seq, &tid, sizeof(tid));
#endif
	return 0;
}

/* Of every thread; of a process' leader the process follows. */
SEC("iter/task")
int state_tasks(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct seq_file *seq = ctx->meta->seq;

	if (!task)
		return 0;
	read_thread(&thread, task);
	bpf_seq_write(seq, &thread, sizeof(thread));
	if (task->pid != task->tgid)
		return 0;
	read_process(&process, task);
	bpf_seq_write(seq, &process, sizeof(process));
	return 0;
}

static struct mount *mount_of(struct file *file)
{
	char *mnt = (char *)BPF_CORE_READ(file, f_path.mnt);

	return (struct mount *)(mnt - bpf_core_field_offset(struct mount, mnt));
}

/*
 * Since 6.8 overlayfs maps a file of its upper or lower layer, on a mount of its own that is in no
 * namespace, and remembers beside it the one that was opened. The flag that says so has been moved
 * and is not looked at.
 */
static struct inode *opened_inode(struct file *file)
{
	struct backing_file *backing = (void *)file;
	unsigned long ns = (unsigned long)BPF_CORE_READ(mount_of(file), mnt_ns);
	struct inode *inode;
	__u64 magic;

	if (!bpf_core_field_exists(backing->user_path) || ns < -(unsigned long)ERRNO_MAX)
		return 0;
	inode = BPF_CORE_READ(backing, user_path.dentry, d_inode);
	magic = BPF_CORE_READ(inode, i_sb, s_magic);
	return magic == OVERLAYFS_MAGIC || magic == FUSE_MAGIC ? inode : 0;
}

SEC("iter/task_vma")
int state_vmas(struct bpf_iter__task_vma *ctx)
{
	struct vm_area_struct *v = ctx->vma;
	struct inode *inode, *opened;
	struct file *file;

	if (!ctx->task || !v)
		return 0;
	file = v->vm_file;
	vma.start = v->vm_start;
	vma.end = v->vm_end;
	vma.offset = file ? v->vm_pgoff << PAGE_SHIFT : 0;
	vma.moved = file ? 0 : v->vm_start - (v->vm_pgoff << PAGE_SHIFT);
	vma.vm_flags = BPF_CORE_READ(v, vm_flags);
	vma.file = (__u64)file;
	vma.ino = vma.size = vma.dev = vma.mode = vma.nlink = 0;
	vma.traits = (BPF_CORE_READ(v, vm_ops) ? 0 : STATE_VMA_NO_OPS) |
		     (BPF_CORE_READ(v, anon_vma) ? 0 : STATE_VMA_NO_OWN);
	vma.uffd = bpf_core_field_exists(v->vm_userfaultfd_ctx.ctx) &&
		   BPF_CORE_READ(v, vm_userfaultfd_ctx.ctx) != 0;
	vma.path[0] = vma.anon_name[0] = '\0';
	if (file) {
		opened = opened_inode(file);
		/* What stat(2) shows, but on file systems that show another device. */
		inode = opened ?: BPF_CORE_READ(file, f_inode);
		vma.ino = BPF_CORE_READ(inode, i_ino);
		vma.size = BPF_CORE_READ(inode, i_size);
		vma.mode = BPF_CORE_READ(inode, i_mode);
		vma.nlink = BPF_CORE_READ(inode, i_nlink);
		vma.dev = BPF_CORE_READ(inode, i_sb, s_dev);
		/* The layer's path would be wrong. */
		if (opened || bpf_d_path(&file->f_path, vma.path, sizeof(vma.path)) < 0)
			vma.path[0] = '\0';
	} else if (bpf_core_field_exists(v->anon_name)) {
		struct anon_vma_name *name = BPF_CORE_READ(v, anon_name);

		if (name)
			bpf_core_read_str(vma.anon_name, sizeof(vma.anon_name), &name->name);
	}
	bpf_seq_write(ctx->meta->seq, &vma, sizeof(vma));
	return 0;
}

static void read_owner(struct state_fd *f, struct file *file, struct task_struct *task)
{
	struct file___owner_inside *older = (void *)file;
	struct fown_struct *owner;

	f->owner_pid = f->owner_signum = 0;
	f->owner_type = f->owner_uid = f->owner_euid = 0;
	if (bpf_core_field_exists(older->f_owner.pid))
		owner = __builtin_preserve_access_index(&older->f_owner);
	else
		owner = BPF_CORE_READ(file, f_owner);
	if (!owner)
		return;
	f->owner_pid = inner_number(BPF_CORE_READ(owner, pid), task->thread_pid);
	f->owner_type = BPF_CORE_READ(owner, pid_type);
	f->owner_uid = BPF_CORE_READ(owner, uid.val);
	f->owner_euid = BPF_CORE_READ(owner, euid.val);
	f->owner_signum = BPF_CORE_READ(owner, signum);
}

static bool closes_on_exec(struct task_struct *task, __u32 number)
{
	unsigned long *words = BPF_CORE_READ(task, files, fdt, close_on_exec);
	unsigned long word = 0;

	bpf_probe_read_kernel(&word, sizeof(word), words + number / 64);
	return word >> (number % 64) & 1;
}

SEC("iter/task_file")
int state_fds(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct inode *inode;

	if (!task || !file)
		return 0;
	inode = file->f_inode;
	fd.fd = (__s32)ctx->fd;
	fd.cloexec = closes_on_exec(task, ctx->fd);
	fd.file = (__u64)file;
	fd.op = (__u64)file->f_op;
	fd.private_data = (__u64)file->private_data;
	fd.pos = file->f_pos;
	fd.f_flags = file->f_flags;
	fd.f_mode = file->f_mode;
	fd.ino = inode->i_ino;
	fd.size = inode->i_size;
	fd.dev = BPF_CORE_READ(inode, i_sb, s_dev);
	fd.locks = STATE_LOCKS_UNKNOWN;
	if (bpf_core_field_exists(inode->i_flctx))
		fd.locks = BPF_CORE_READ(inode, i_flctx) ? STATE_LOCKS_MAYBE : STATE_LOCKS_NONE;
	fd.rdev = inode->i_rdev;
	fd.mode = inode->i_mode;
	fd.nlink = BPF_CORE_READ(inode, i_nlink);
	fd.mnt_id = BPF_CORE_READ(mount_of(file), mnt_id);
	read_owner(&fd, file, task);
	if (bpf_d_path(&file->f_path, fd.path, sizeof(fd.path)) < 0)
		fd.path[0] = '\0';
	bpf_seq_write(ctx->meta->seq, &fd, sizeof(fd));
	return 0;
}
