/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * What decamp.ko and the agent say to each other. x86-64.
 *
 *   /dev/decamp (0600)   VERSION, UFFD, FREEZE -> a session: a descriptor, O_CLOEXEC
 *   session              THREADS, XSTATE, PARK, RENEW; close(2) thaws
 *
 * Opening the device and each of its calls needs CAP_SYS_PTRACE and CAP_CHECKPOINT_RESTORE in the initial
 * user namespace. PIDs are those of the caller's PID namespace. The module cannot hold a pidfd: the
 * agent holds one and looks after each call whether the process still lives.
 *
 * A session thaws when it is closed, when its owner dies, and when its lease is over, which is
 * compulsory. After that each of its calls fails with EOWNERDEAD: what was read may be torn.
 *
 * Every structure begins with its size, as the caller knows it. A longer one than the module's must
 * be zero beyond (E2BIG); a shorter one than the first version's is refused (EINVAL), as are unknown bits in
 * `flags` and reserved fields that are not zero.
 */
#ifndef DECAMP_UAPI_H
#define DECAMP_UAPI_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define DECAMP_DEVICE "/dev/decamp"
#define DECAMP_ABI 1

#define DECAMP_ROOTS_MAX 64
#define DECAMP_THREADS_MAX 65536
#define DECAMP_TIMEOUT_MS_MAX 30000
#define DECAMP_LEASE_MS_MIN 100
#define DECAMP_LEASE_MS_MAX 30000

#define DECAMP_IOC 0xdc
#define DECAMP_IOC_VERSION _IO(DECAMP_IOC, 0)
#define DECAMP_IOC_FREEZE _IO(DECAMP_IOC, 1) /* returns the session */
#define DECAMP_IOC_UFFD _IO(DECAMP_IOC, 2)   /* returns the userfaultfd */
#define DECAMP_IOC_THREADS _IO(DECAMP_IOC, 16)
#define DECAMP_IOC_XSTATE _IO(DECAMP_IOC, 17)
#define DECAMP_IOC_PARK _IO(DECAMP_IOC, 18)
#define DECAMP_IOC_RENEW _IO(DECAMP_IOC, 19)

struct decamp_version {
	__u32 size;
	__u32 flags;   /* 0 */
	__u32 abi;     /* out: DECAMP_ABI */
	__u32 pending; /* out: threads with a callback, also such as earlier sessions left asleep */
};

/* Threads of a session by what they do; FREEZE: at the moment when all stood, or time was over. */
struct decamp_counts {
	__u32 parked;	/* held on the way to user mode, or within io_uring_enter(2) */
	__u32 quiesced; /* asleep in the kernel, undisturbed; park before they reach user mode */
	__u32 workers;	/* io_uring's and the like: run on, they have no user mode */
	__u32 gone;	/* ended: no user mode again, no user memory */
	__u32 blocked;	/* asleep in the kernel where it may end any moment (state D) */
	__u32 running;	/* not stopped yet */
};

/*
 * Freezes the roots and all their descendants. Returns the session if all stand still, and also if
 * timeout_ms is over: the counts tell, the caller decides. EBUSY: another session holds one of them.
 * EDEADLK: the caller is one of them. EINVAL: init or a kernel thread. ESRCH: a root has ended.
 *
 * Without flags the freeze is gentle: whoever sleeps in a system call is left asleep. The call may
 * end while the session lives: the thread's count of switches moves, and what was read of it is void.
 */
#define DECAMP_FREEZE_PLAIN 0x1 /* wake sleepers, as a signal without handler would */

struct decamp_freeze {
	__u32 size;
	__u32 flags;
	__u64 roots; /* array of __s32 */
	__u32 roots_count;
	__u32 timeout_ms;
	__u32 lease_ms;
	__u32 passes;		     /* out: how often the list of processes was walked */
	struct decamp_counts counts; /* out */
};

enum decamp_state {
	DECAMP_PARKED,
	DECAMP_QUIESCED,
	DECAMP_WORKER,
	DECAMP_GONE,
	DECAMP_BLOCKED,
	DECAMP_RUNNING,
	DECAMP_STATES,
};

enum decamp_restart {
	DECAMP_RESTART_NONE,
	DECAMP_RESTART_NANOSLEEP, /* nanosleep, clock_nanosleep */
	DECAMP_RESTART_FUTEX,
	DECAMP_RESTART_POLL,
	DECAMP_RESTART_OTHER, /* one that this module does not know */
};

/* regs[] is there. */
#define DECAMP_THREAD_REGS 0x1
/* In a 32-bit system call or in 32-bit code; regs[] is there only for the former. */
#define DECAMP_THREAD_COMPAT 0x2
/* The restart has a deadline. */
#define DECAMP_THREAD_DEADLINE 0x4

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
	__u64 restart_deadline_ns; /* absolute */
	__u64 restart_pointer;	   /* user memory: rmtp, the word, the array of struct pollfd */
	__u64 restart_count; /* poll: nfds; futex: the value in bits 0 to 31, the mask above */
};

struct decamp_threads {
	__u32 size;
	__u32 flags;	   /* 0 */
	__u64 threads;	   /* array of struct decamp_thread; may be 0 if room is */
	__u32 thread_size; /* sizeof(struct decamp_thread) */
	__u32 room;	   /* how many fit */
	__u32 total;	   /* out: how many there are; min(room, total) were written */
	/* out: a thread was born that could not be stopped, for lack of memory: the image is void. */
	__u32 missed;
	struct decamp_counts counts; /* out */
};

/*
 * The extended registers of one thread that is off its processor, in the layout of PTRACE_GETREGSET
 * with NT_X86_XSTATE. EAGAIN: it runs. EMSGSIZE: `bytes` says how much is needed.
 */
struct decamp_xstate {
	__u32 size;
	__u32 flags; /* 0 */
	__s32 tid;
	__u32 bytes; /* in: room; out: written, or needed */
	__u64 buffer;
	__u64 switches; /* out: as in struct decamp_thread */
};

/*
 * Takes one quiesced thread out of its call, as a plain freeze does: the kernel then knows how the
 * call is to be restarted, with its true deadline, or how much of a write(2) was done. Some calls
 * return EINTR for that (epoll_wait, semop, ...). ETIMEDOUT: it did not park.
 */
struct decamp_park {
	__u32 size;
	__u32 flags; /* 0 */
	__s32 tid;
	__u32 timeout_ms;
};

struct decamp_renew {
	__u32 size;
	__u32 flags;	/* 0 */
	__u32 lease_ms; /* from now on */
	__u32 reserved;
};

/*
 * A userfaultfd of the memory of another process, whether it is frozen or not; the process is not
 * touched. Returns a descriptor, O_CLOEXEC. ESRCH: no such process, or it has no memory any more.
 */
struct decamp_uffd {
	__u32 size;
	__u32 flags; /* O_NONBLOCK, O_CLOEXEC, UFFD_USER_MODE_ONLY, as userfaultfd(2) */
	__s32 pid;
	__s32 device; /* /dev/userfaultfd, opened by the caller */
};

#endif
