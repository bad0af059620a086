/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * What decamp.ko and the agent say to each other. x86-64.
 *
 *   /dev/decamp (0600)   VERSION, UFFD, FREEZE -> a session: a descriptor, O_CLOEXEC
 *   session              THREADS, XSTATE, PARK; close(2) thaws
 *
 * Each call of the device needs CAP_SYS_PTRACE and CAP_CHECKPOINT_RESTORE in the initial user namespace.
 * PIDs are those of the caller's PID namespace. The module cannot hold a pidfd: the agent holds one and
 * looks after each call whether the process still lives.
 *
 * A session thaws when it is closed, when its owner dies, and when its lease is over, which is
 * compulsory. After that each of its calls fails with EOWNERDEAD: what was read may be torn.
 *
 * Every structure of a call begins with its size, as the caller knows it. A longer one than the module's
 * must be zero beyond (E2BIG); a shorter one than the first version's is refused (EINVAL), as are
 * unknown bits in `flags`. Results are what ioctl(2) returns, and what is written to the caller's arrays.
 */
#ifndef DECAMP_UAPI_H
#define DECAMP_UAPI_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define DECAMP_DEVICE "/dev/decamp"
/* Of the calls' numbers, and of struct decamp_thread, which has no size of its own. */
#define DECAMP_ABI 1

#define DECAMP_LEASE_MS_MIN 100
#define DECAMP_LEASE_MS_MAX 30000

#define DECAMP_IOC 0xdc
#define DECAMP_IOC_VERSION _IO(DECAMP_IOC, 0) /* returns DECAMP_ABI */
#define DECAMP_IOC_FREEZE _IO(DECAMP_IOC, 1)  /* returns the session */
#define DECAMP_IOC_UFFD _IO(DECAMP_IOC, 2)    /* returns the userfaultfd */
#define DECAMP_IOC_THREADS _IO(DECAMP_IOC, 16)
#define DECAMP_IOC_XSTATE _IO(DECAMP_IOC, 17)
#define DECAMP_IOC_PARK _IO(DECAMP_IOC, 18)

/*
 * Freezes a process and all its descendants. Returns the session if all stand still, and also if
 * timeout_ms is over: THREADS tells, the caller decides. EBUSY: another session that is not closed yet
 * has one of them. EDEADLK: the caller is one of them. EOPNOTSUPP: one of them is init, a kernel thread
 * or a worker of io_uring's. ESRCH: there is no such process.
 *
 * The freeze is gentle: whoever sleeps in a system call is left asleep. The call may end while the
 * session lives: the thread's count of switches moves, and what was read of it is void.
 */
struct decamp_freeze {
	__u32 size;
	__u32 flags; /* 0 */
	__s32 pid;
	__u32 timeout_ms;
	__u32 lease_ms;
};

/* The first three stand still. */
enum decamp_state {
	DECAMP_PARKED,	 /* held on the way to user mode, or within io_uring_enter(2) */
	DECAMP_QUIESCED, /* asleep in the kernel, undisturbed; parks before it reaches user mode */
	DECAMP_GONE,	 /* ended: no user mode again, no user memory */
	DECAMP_BLOCKED,	 /* asleep in the kernel where it may end any moment (state D) */
	DECAMP_RUNNING,	 /* not stopped yet */
};

enum decamp_restart {
	DECAMP_RESTART_NONE,
	DECAMP_RESTART_NANOSLEEP, /* nanosleep, clock_nanosleep */
	DECAMP_RESTART_FUTEX,
	DECAMP_RESTART_POLL,
	DECAMP_RESTART_OTHER, /* one that this module does not know */
};

/* What follows is there: it is parked or quiesced, not in 32-bit code nor in a 32-bit call. */
#define DECAMP_THREAD_REGS 0x1

#define DECAMP_REGS 27

struct decamp_thread {
	__s32 tid;
	__s32 tgid;
	__u32 state;		 /* enum decamp_state */
	__u32 flags;		 /* DECAMP_THREAD_... */
	__u64 switches;		 /* voluntary and involuntary context switches so far */
	__u64 regs[DECAMP_REGS]; /* struct user_regs_struct; orig_rax >= 0: in a system call */
	/*
	 * How an interrupted call goes on, if rax is -ERESTART_RESTARTBLOCK or the call is
	 * restart_syscall(2). The kernel fills this when a call is interrupted: one that sleeps for
	 * the first time has none (PARK makes it one).
	 */
	__u32 restart;	     /* enum decamp_restart */
	__s32 restart_clock; /* of nanosleep; poll: CLOCK_MONOTONIC; futex: as its arguments say */
	__u64 restart_deadline_ns; /* absolute; 0: none */
	__u64 restart_pointer;	   /* user memory: rmtp, the word, the array of struct pollfd */
	__u64 restart_count; /* poll: nfds; futex: the value in bits 0 to 31, the mask above */
};

/*
 * Returns how many threads there are, and writes as many as there is room for. ENOMEM: one was born
 * that could not be stopped, for lack of memory: the image is void.
 */
struct decamp_threads {
	__u32 size;
	__u32 flags;   /* 0 */
	__u64 threads; /* array of struct decamp_thread; may be 0 if room is */
	__u64 room;    /* how many fit */
};

/*
 * The extended registers of one thread, in the layout of PTRACE_GETREGSET with NT_X86_XSTATE. Returns
 * how many bytes they are, and writes them if there is room. EAGAIN: it runs, or has done so since it
 * had that many switches.
 */
struct decamp_xstate {
	__u32 size;
	__u32 flags; /* 0 */
	__u64 buffer;
	__u64 switches; /* as in struct decamp_thread */
	__s32 tid;
	__u32 room; /* bytes */
};

/*
 * Takes one quiesced thread out of its call, as a signal without a handler would: the kernel then knows
 * how the call is to be restarted, with its true deadline, or how much of a write(2) was done. Some
 * calls return EINTR for that (epoll_wait, semop, ...). ETIMEDOUT: it did not park.
 */
struct decamp_park {
	__u32 size;
	__u32 flags; /* 0 */
	__s32 tid;
	__u32 timeout_ms;
};

/*
 * A userfaultfd of the memory of another process, whether it is frozen or not; the process is not
 * touched. Returns a descriptor, O_CLOEXEC. ESRCH: no such process, or it has no memory any more.
 */
struct decamp_uffd {
	__u32 size;
	__u32 flags; /* 0 */
	__s32 pid;
	__s32 device; /* /dev/userfaultfd, opened by the caller */
	__u32 mode;   /* O_NONBLOCK, O_CLOEXEC, UFFD_USER_MODE_ONLY, as userfaultfd(2) */
};

#endif
