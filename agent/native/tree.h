/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A stopped process tree as the native engine holds it: raw facts in locked memory. What is filled
 * in while the job stands still (the pause) is only copied; images are made of it afterwards.
 *
 *   tree ── task (process) ── thread
 *            ├── vmas   (state iterator)      parallel: vma_file_ids, filled by files.h
 *            └── fds    (state iterator; shared by tasks with one files_struct)
 *
 * Ownership: everything hangs on the tree's arena and dies with it. Threading: one thread, the
 * tracer of all tasks. Errors: -errno with a sentence in tree->reason; -EOPNOTSUPP always means
 * "native does not cover this job as it is now": the criu engine takes over.
 */
#pragma once

#include <linux/types.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

#include "agent/util/cleanup.h"
#include "bpf/state.h"

enum {
	NATIVE_TASKS_MAX = 1024,
	NATIVE_THREADS_MAX = 16384,
	NATIVE_REASON_MAX = 512,
	NATIVE_WHY_MAX = 128,
	NATIVE_SIGINFO_MAX = 1024, /* queued signals of one thread or process */
	NATIVE_XSAVE_MAX = 16384,
};

#define NATIVE_PAGE 4096

struct native_thread {
	struct native_task *task;
	pid_t tid, inner_tid; /* as this process sees it; as the job does */

	bool busy; /* list.c: may have been in clone(2) before the list, and still be */

	/* freeze.c */
	bool seized, stopped;
	bool in_group_stop; /* was stopped by a signal before we came */
	bool regs_read;	    /* regs are those of the stop, mended */
	uint64_t switches;  /* of context, at the stop; only by gentle.c */

	/* regs.c, in the pause. regs are as a restore shall load them: restarts repaired. */
	struct user_regs_struct regs;
	uint8_t *xsave; /* NT_X86_XSTATE, xsave_size bytes */
	size_t xsave_size;
	uint64_t sigmask;
	siginfo_t *queued;
	size_t queued_count;
	uint64_t rseq_ptr; /* PTRACE_GET_RSEQ_CONFIGURATION; 0: none */
	uint32_t rseq_size, rseq_signature, rseq_flags;
	uint64_t rseq_cs;    /* as found in its area */
	uint32_t timed_call; /* sleeps.h; 0: in none, or its time is not known */
	uint64_t left_ns;    /* of that one's timeout */

	/* state.c, in the pause */
	const struct state_thread *state;
};

struct native_task {
	pid_t pid, inner_pid;
	struct native_task *parent; /* NULL: the root */
	struct native_thread *threads;
	size_t thread_count, thread_room;
	bool zombie; /* ended, not reaped: only pid, exit code, ids */

	siginfo_t *queued; /* shared ones */
	size_t queued_count;

	const struct state_process *state;
	const struct state_vma *vmas;
	size_t vma_count;
	const struct state_fd *fds;
	size_t fd_count;

	/* files.h fills these; ids of files.img; 0: none */
	uint32_t *vma_file_ids; /* [vma_count]: shmid of the image's VMA entry */
	uint32_t *vma_status;	/* [vma_count]: extra bits of the VMA entry (SysV, memfd, ...) */
	uint32_t exe_id, cwd_id, root_id;
	uint32_t fdinfo_id; /* the same for tasks that share descriptors */

	/* take.c: dense numbers, the same where the kernel object is the same */
	uint32_t vm_id, files_id, fs_id, sighand_id;
};

struct native_tree {
	struct native_task *tasks; /* parents before children */
	size_t task_count, task_room;
	pid_t root;	 /* as this process sees it */
	long births;	 /* list.c: the last PID given out when it was listed; 0: not listed */
	int images;	 /* folder */
	bool shell_job;	 /* some session leader lies outside the tree */
	bool own_ipc_ns; /* the job has its own IPC namespace, with something in it in the pause */
	/* Number of the ipcns-* images (sysv.c), for the ids of all tasks; never that of the
	 * inventory's root ids. 0: no System V objects, the restorer's namespace will do. */
	uint32_t ipc_ns_id;
	const struct native_fence *fence; /* fence.h; NULL: none */
	bool expects_leaks;	      /* of EINTR (regs.c): some call did so at an earlier stop */
	bool leaks;		      /* freeze.c: seen, before the stop or by it */
	bool may_gentle;	      /* freeze it by the kernel module, if that can be */
	struct native_gentle *gentle; /* gentle.h: held by the module; NULL: by ptrace */
	char not_gentle[NATIVE_WHY_MAX]; /* may_gentle, but by ptrace: why */
	struct native_filters *filters;	 /* seccomp.c; NULL: none */
	char *reason;			 /* NATIVE_REASON_MAX bytes */
	/* freeze.c: CLOCK_MONOTONIC, before the first thread was stopped; all were let go */
	uint64_t stop_ns, go_ns;
	/* freeze.c: from the stop on it was waited for a thread that waited in the kernel itself, or
	 * that was ready and had no processor; by the millisecond */
	uint64_t blocked_ns, queued_ns;
	uint64_t vain_ns; /* how long it stood for the module in vain, before it was traced */
	uint64_t freeze_boot_ns, freeze_mono_ns, freeze_wall_ns; /* clocks at the frozen instant */
	struct native_arena *arena;
};

/* Locked, touched memory that a pause can use at once; freed as a whole. */
int arena_create(size_t bytes, struct native_arena **ret_arena) _must_check_;
void arena_destroy(struct native_arena *a);
void arena_reset(struct native_arena *a);
/* Zeroed, aligned to 64; NULL: no memory at all (it grows, at the price of page faults). */
void *arena_alloc(struct native_arena *a, size_t size) _must_check_;

/* Sets the reason unless there is one already; returns r. */
int native_fail(struct native_tree *tree, int r, const char *fmt, ...) _printf_(3, 4);

struct native_task *tree_find(const struct native_tree *tree, pid_t pid);
struct native_task *tree_find_inner(const struct native_tree *tree, pid_t inner_pid);
/* The first task with this mm, files_struct...: whoever writes an object once asks this. */
bool tree_is_first_vm(const struct native_tree *tree, const struct native_task *task);
bool tree_is_first_files(const struct native_tree *tree, const struct native_task *task);
