/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the state iterators (state.bpf.c) say of a stopped process: records of fixed size, in the
 * order of the iterator, read by agent/native as they lie. Kernel pointers are identities only:
 * equal pointers mean "the same object", nobody follows them.
 *
 * PIDs are those of the process' own PID namespace ("inner"), unless the name says host.
 * Times are nanoseconds. Layouts are shared by two compilers: fixed-width types, no padding.
 */
#pragma once

enum {
	STATE_PATH_MAX = 256, /* with the NUL; a longer path is left empty: readlink(2) it */
	STATE_COMM_MAX = 16,
	STATE_GROUPS_MAX = 64,
	STATE_TIMERS_MAX = 32,
	STATE_RLIMITS = 16,
	STATE_SIGNALS = 64,
	STATE_AUXV_MAX = 64, /* words */
};

struct state_sigaction {
	__u64 handler, flags, restorer, mask;
};

struct state_itimer {
	__u64 interval_ns, value_ns; /* value: time that is left */
};

struct state_posix_timer {
	__s32 id;
	__s32 clock;
	__s32 notify; /* SIGEV_* with SIGEV_THREAD_ID as flag */
	__s32 signo;
	__u64 sigval;
	__u64 interval_ns, value_ns; /* value: time that is left; 0: disarmed */
	__s32 overrun;
	__s32 target_tid; /* inner; SIGEV_THREAD_ID */
	__u32 armed;	  /* 2: it has expired, its signal waits */
	__u32 own_thread; /* of a thread's CPU clock: the host TID of that thread; 0: of none here */
	__s32 base_clock; /* by which it expires: relative ones of CLOCK_REALTIME go by another */
	__s32 reserved;
};

struct state_creds {
	__u32 uid, gid, suid, sgid, euid, egid, fsuid, fsgid;
	__u64 cap_inh, cap_prm, cap_eff, cap_bnd, cap_amb;
	__u32 secbits, no_new_privs, group_count, reserved;
	__u32 groups[STATE_GROUPS_MAX]; /* group_count above the limit: read /proc */
};

/* One per thread. */
struct state_thread {
	__u32 host_tid, host_tgid; /* as the reader's PID namespace numbers them */
	__s32 tid, tgid;
	__u64 task; /* identities */
	__u64 sas_sp, sas_size;
	__u32 sas_flags;
	__s32 pdeath_signal;
	__u64 clear_child_tid, robust_list;
	__u64 rseq;
	__u32 rseq_size, rseq_sig;
	__u64 blocked, pending; /* sets of signals */
	__u64 saved_blocked;	/* the mask to be put back after sigsuspend, sigtimedwait, ... */
	__u32 seccomp_mode, seccomp_filter_count;
	__u64 seccomp_filter; /* identity */
	__u32 policy, rt_priority;
	__s32 nice;
	__u32 personality;
	__u32 exit_state;
	__u32 ptraced;			    /* the tracer's host PID; ~0: one that cannot be seen */
	__u32 io_uring, in_syscall_restart; /* io_uring: task->io_uring set */
	__u64 nvcsw, nivcsw;		    /* context switches */
	__u64 restart_expires_ns; /* absolute end of the sleep that a restart goes on with; 0 */
	__s32 restart_clock;	  /* of the above; -1: not known */
	__u32 flags;		  /* PF_* */
	__u64 dl_runtime, dl_deadline, dl_period;
	char comm[STATE_COMM_MAX];
	struct state_creds creds;
	__u64 files, fs;	/* identities */
	__u64 arch_features;	/* x86: shadow stack in use */
	__u32 segments;		/* x86: set_thread_area(2) was used */
	__u32 syscall_dispatch; /* PR_SET_SYSCALL_USER_DISPATCH in use */
	__u32 seccomp_listener; /* a process decides on its system calls */
	__u32 reset_on_fork;	/* SCHED_RESET_ON_FORK */
};

/* One per process (thread group). */
struct state_process {
	__u32 host_pid;
	__u32 real_armed; /* of ITIMER_REAL; 2: it has expired, its signal waits */
	__s32 pid, ppid, pgid, sid;
	__u64 mm, files, fs, sighand, signal; /* identities */
	__u64 start_code, end_code, start_data, end_data, start_stack, start_brk, brk;
	__u64 arg_start, arg_end, env_start, env_end;
	__u64 mm_flags, mm_def_flags;
	__u64 vdso;
	__u64 auxv[STATE_AUXV_MAX];
	struct state_sigaction actions[STATE_SIGNALS]; /* [signal - 1] */
	__u64 shared_pending;
	struct state_itimer real, virt, prof;
	__u32 timer_count, timer_next_id; /* more than STATE_TIMERS_MAX: not covered */
	struct state_posix_timer timers[STATE_TIMERS_MAX];
	__u64 rlim_cur[STATE_RLIMITS], rlim_max[STATE_RLIMITS];
	__s32 exit_code, group_stop_signal; /* group_stop_signal: 0 if not stopped */
	__u32 group_exit, is_child_subreaper, dumpable, membarrier;
	__s32 oom_score_adj;
	__u32 loginuid, umask, thread_count;
	__s32 tty_nr, tty_pgrp;
	__u32 ns_pid, ns_mnt, ns_net, ns_uts, ns_ipc, ns_user, ns_cgroup,
		ns_time;    /* inode numbers */
	__u64 aio_contexts; /* count of AIO rings */
	__u64 exe_file;	    /* identity */
	char exe[STATE_PATH_MAX], cwd[STATE_PATH_MAX], root[STATE_PATH_MAX];
	__u32 ns_pid_children, ns_time_children;   /* of children to come */
	__s64 timens_monotonic_ns, timens_boot_ns; /* its clock is the host's plus this */
	__u64 ldt;				   /* identity; 0: none */
	__u64 task_size;   /* end of its address space: 32-bit programs have less than 4 GiB */
	__u32 ipc_objects; /* System V ones, in its IPC namespace; ~0: not known */
	/* Read last; not 0: some of the above may be gone already; 2: the process has been reaped. */
	__u32 ending;
};

/* Zero if not known. */
enum state_vma_traits {
	STATE_VMA_NO_OPS = 1, /* anonymous to the kernel, whatever file it was made of: /dev/zero */
	STATE_VMA_NO_OWN = 2, /* no page that is not the file's was ever in it (no anon_vma) */
};

struct state_vma {
	__u64 start, end, offset; /* bytes */
	__u64 vm_flags;
	__u64 file;  /* identity; 0: anonymous */
	__u64 moved; /* anonymous: bytes from where it was written first, by mremap(2) */
	__u64 ino, size;
	__u32 dev;  /* as stat(2) shows it, major << 20 | minor */
	__u32 mode; /* of the inode */
	__u32 nlink;
	__u32 uffd; /* a userfaultfd is registered */
	__u32 traits;
	__u32 reserved;
	char path[STATE_PATH_MAX];
	char anon_name[80];
};

/* By inode->i_flctx: an inode that never had a lock or a lease has none. */
enum state_locks { STATE_LOCKS_UNKNOWN, STATE_LOCKS_NONE, STATE_LOCKS_MAYBE };

/* One per descriptor. */
struct state_fd {
	__s32 fd;
	__u32 cloexec;
	__u64 file; /* identity: equal for dup'ed and inherited ones */
	__u64 op, private_data;
	__u64 pos;
	__u32 f_flags, f_mode;
	__u64 ino, size;
	__u32 dev, rdev, mode, nlink; /* dev, rdev: major << 20 | minor */
	__s32 owner_pid;	      /* F_SETOWN, inner; 0: none */
	__u32 owner_type, owner_uid, owner_euid;
	__s32 owner_signum;
	__u32 mnt_id;
	__u32 locks; /* enum state_locks, of the inode */
	__u32 reserved;
	char path[STATE_PATH_MAX];
};
