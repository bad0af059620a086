/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What our BPF programs read of the kernel: only the fields they use. CO-RE relocates each access
 * to where the running kernel has it, so the order and size of these structs mean nothing.
 *
 * Also the few constants of linux/bpf.h, whose header cannot be included for the BPF target on
 * distributions that keep asm/ in a per-architecture folder.
 */
#pragma once

typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u32 __wsum;
typedef _Bool bool;

enum { BPF_MAP_TYPE_HASH = 1, BPF_MAP_TYPE_RINGBUF = 27 };
enum { BPF_ANY = 0 };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	unsigned int val;
} kuid_t;

typedef struct {
	unsigned int val;
} kgid_t;

enum pid_type { PIDTYPE_PID, PIDTYPE_TGID, PIDTYPE_PGID, PIDTYPE_SID };

struct list_head {
	struct list_head *next;
};

/* Namespaces and PIDs */

struct ns_common {
	unsigned int inum;
};

struct pid_namespace {
	struct ns_common ns;
};

struct uts_namespace {
	struct ns_common ns;
};

struct ipc_ids {
	int in_use;
};

struct ipc_namespace {
	struct ipc_ids ids[3];
	struct ns_common ns;
};

struct mnt_namespace {
	struct ns_common ns;
};

struct cgroup_namespace {
	struct ns_common ns;
};

struct user_namespace {
	struct ns_common ns;
};

struct net {
	struct ns_common ns;
};

struct timespec64 {
	__s64 tv_sec;
	long tv_nsec;
};

struct timens_offsets {
	struct timespec64 monotonic, boottime;
};

struct time_namespace {
	struct ns_common ns;
	struct timens_offsets offsets;
};

struct nsproxy {
	struct uts_namespace *uts_ns;
	struct ipc_namespace *ipc_ns;
	struct mnt_namespace *mnt_ns;
	struct pid_namespace *pid_ns_for_children;
	struct net *net_ns;
	struct time_namespace *time_ns, *time_ns_for_children;
	struct cgroup_namespace *cgroup_ns;
};

struct upid {
	int nr;
	struct pid_namespace *ns;
};

struct pid {
	unsigned int level;
	struct upid numbers[1]; /* really level + 1 of them */
};

/* Files */

struct dentry {
	struct inode *d_inode;
};

struct vfsmount {
	int mnt_flags;
};

struct mount {
	struct vfsmount mnt;
	struct mnt_namespace *mnt_ns; /* an error number: of the kernel's own */
	int mnt_id;
};

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

struct super_block {
	unsigned int s_dev;
	unsigned long s_magic;
};

struct inode {
	unsigned short i_mode;
	unsigned long i_ino;
	unsigned int i_nlink;
	unsigned int i_rdev;
	long long i_size;
	struct super_block *i_sb;
	struct file_lock_context *i_flctx;
};

struct fown_struct {
	struct pid *pid;
	enum pid_type pid_type;
	kuid_t uid, euid;
	int signum;
};

struct file {
	unsigned int f_mode, f_flags;
	const struct file_operations *f_op;
	void *private_data;
	struct inode *f_inode;
	struct path f_path;
	long long f_pos;
	struct fown_struct *f_owner; /* since 6.12 */
};

struct file___owner_inside {
	struct fown_struct f_owner; /* before 6.12 */
};

struct backing_file {
	struct file file;
	struct path user_path;
};

struct fdtable {
	unsigned int max_fds;
	unsigned long *close_on_exec;
};

struct files_struct {
	struct fdtable *fdt;
};

struct fs_struct {
	int umask;
	struct path root, pwd;
};

/* Memory */

struct anon_vma_name {
	char name[1];
};

struct vm_userfaultfd_ctx {
	void *ctx;
};

struct vm_area_struct {
	unsigned long vm_start, vm_end;
	unsigned long vm_flags;
	unsigned long vm_pgoff;
	struct file *vm_file;
	struct anon_vma *anon_vma;
	const struct vm_operations_struct *vm_ops;
	struct anon_vma_name *anon_name;
	struct vm_userfaultfd_ctx vm_userfaultfd_ctx;
};

struct kioctx_table {
	unsigned int nr;
	struct kioctx *table[1];
};

typedef struct {
	void *vdso;
	struct ldt_struct *ldt;
} mm_context_t;

struct mm_struct {
	unsigned long start_code, end_code, start_data, end_data, start_stack, start_brk, brk;
	unsigned long arg_start, arg_end, env_start, env_end;
	unsigned long saved_auxv[1], task_size;
	unsigned long flags; /* before 6.18 */
	unsigned long def_flags;
	atomic_t membarrier_state;
	mm_context_t context;
	struct kioctx_table *ioctx_table;
	struct file *exe_file;
};

struct mm_flags___bitmap {
	unsigned long __mm_flags[1];
};

struct mm_struct___bitmap {
	struct mm_flags___bitmap flags; /* since 6.18 */
};

/* Signals and timers */

struct sigset {
	unsigned long sig[1];
};

struct sigpending {
	struct sigset signal;
};

struct sigaction {
	void *sa_handler;
	unsigned long sa_flags;
	void *sa_restorer;
	struct sigset sa_mask;
};

struct k_sigaction {
	struct sigaction sa;
};

struct sighand_struct {
	struct k_sigaction action[64];
};

struct hrtimer_clock_base {
	int clockid;
};

struct hrtimer {
	long long _softexpires;
	unsigned char state;
	struct hrtimer_clock_base *base;
};

struct timerqueue_node {
	long long expires;
};

struct cpu_timer {
	struct timerqueue_node node;
	struct pid *pid;
};

struct alarm {
	struct timerqueue_node node;
};

struct kernel_siginfo {
	int si_signo;
};

struct sigqueue {
	struct kernel_siginfo info;
};

struct k_itimer {
	struct list_head list; /* an hlist_node since 6.12: next comes first in both */
	int it_id;
	int it_clock;
	int it_sigev_notify;
	int it_status; /* since 6.12 */
	long long it_overrun_last;
	long long it_interval;
	struct pid *it_pid;
	struct sigqueue sigq; /* since 6.12 */
	union {
		struct {
			struct hrtimer timer;
		} real;
		struct cpu_timer cpu;
		struct {
			struct alarm alarmtimer;
		} alarm;
	} it;
};

struct k_itimer___older {
	struct sigqueue *sigq;
	int it_active;
	int it_requeue_pending;
};

struct cpu_itimer {
	__u64 expires, incr;
};

struct rlimit {
	unsigned long rlim_cur, rlim_max;
};

/* Terminals */

struct tty_driver {
	int major, minor_start;
};

struct tty_struct {
	int index;
	struct tty_driver *driver;
	struct {
		struct pid *pgrp;
	} ctrl;
};

/* Tasks */

typedef struct {
	__u64 val; /* two words before 6.3, at the same place */
} kernel_cap_t;

struct group_info {
	int ngroups;
	kgid_t gid[1];
};

struct cred {
	kuid_t uid, suid, euid, fsuid;
	kgid_t gid, sgid, egid, fsgid;
	unsigned int securebits;
	kernel_cap_t cap_inheritable, cap_permitted, cap_effective, cap_bset, cap_ambient;
	struct user_namespace *user_ns;
	struct group_info *group_info;
};

struct seccomp_filter {
	struct seccomp_filter *prev;
	struct notification *notif;
};

struct seccomp {
	int mode;
	atomic_t filter_count;
	struct seccomp_filter *filter;
};

struct restart_block {
	long (*fn)(struct restart_block *block);
	union {
		struct {
			__u32 flags;
			__u64 time;
		} futex;
		struct {
			int clockid;
			__u64 expires;
		} nanosleep;
		struct {
			int has_timeout;
			unsigned long tv_sec, tv_nsec;
		} poll;
	};
};

struct restart_poll___timespec {
	int has_timeout;
	struct timespec64 end_time;
};

struct restart_block___timespec {
	struct restart_poll___timespec poll;
};

struct sched_dl_entity {
	__u64 dl_runtime, dl_deadline, dl_period;
};

struct syscall_user_dispatch {
	char *selector;
	unsigned long len;
};

struct desc_struct {
	unsigned short limit0;
};

struct thread_struct {
	struct desc_struct tls_array[3];
	unsigned long features;
};

struct signal_struct {
	atomic_t live;
	unsigned int flags;
	int group_exit_code;
	struct sigpending shared_pending;
	unsigned int is_child_subreaper : 1;
	unsigned int next_posix_timer_id; /* before 6.10 */
	struct list_head posix_timers;
	struct hrtimer real_timer;
	long long it_real_incr;
	struct cpu_itimer it[2];
	struct pid *pids[4];
	struct tty_struct *tty;
	struct rlimit rlim[16];
	short oom_score_adj;
	int nr_threads;
};

struct signal_struct___atomic {
	atomic_t next_posix_timer_id;
};

struct pt_regs {
	unsigned long ax, orig_ax;
};

struct task_struct {
	int pid;
	int tgid;
	int exit_state;
	int exit_code;
	int pdeath_signal;
	unsigned int flags;
	unsigned int ptrace;
	unsigned long jobctl;
	unsigned int personality;
	unsigned int sched_reset_on_fork : 1;
	unsigned int restore_sigmask : 1;
	unsigned long atomic_flags;
	int static_prio;
	unsigned int rt_priority;
	unsigned int policy;
	struct sched_dl_entity dl;
	struct restart_block restart_block;
	__u64 start_boottime;
	struct task_struct *group_leader, *real_parent, *parent;
	struct pid *thread_pid;
	int *clear_child_tid;
	unsigned long nvcsw, nivcsw;
	struct cred *real_cred;
	char comm[16];
	struct fs_struct *fs;
	struct files_struct *files;
	struct mm_struct *mm;
	struct io_uring_task *io_uring;
	struct nsproxy *nsproxy;
	struct signal_struct *signal;
	struct sighand_struct *sighand;
	struct sigset blocked, real_blocked, saved_sigmask;
	struct sigpending pending;
	unsigned long sas_ss_sp;
	unsigned long sas_ss_size;
	unsigned int sas_ss_flags;
	kuid_t loginuid;
	struct seccomp seccomp;
	struct syscall_user_dispatch syscall_dispatch;
	struct robust_list_head *robust_list;
	struct rseq *rseq;
	__u32 rseq_len, rseq_sig;
	struct thread_struct thread;
};

struct rseq_data___inside {
	void *usrptr;
	__u32 len, sig;
};

struct task_struct___rseq_inside {
	struct rseq_data___inside rseq; /* since 6.19 */
};

/* Iterators */

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

struct bpf_iter__task_vma {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	struct vm_area_struct *vma;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
};

#pragma clang attribute pop
