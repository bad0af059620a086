/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Stop a process tree by ptrace, look at it, let it go: nothing of it is seen by the program.
 *
 * freeze_tree() seizes and interrupts every thread of the tree, follows threads and processes that
 * are born meanwhile, and repairs at once, in the stopped thread, what the stop did to a blocking
 * call: -EINTR where no signal is pending becomes a restart. Threads of a tree in a frozen cgroup
 * can be stopped too. Whoever is the calling thread becomes the tracer: all calls from one thread.
 *
 * Speed: the caller runs SCHED_FIFO with locked memory (freeze_prepare_self), for which the rights
 * may be missing: then it is slower, never wrong. If the tracer dies, the kernel lets all go, and a fence
 * (fence.h) keeps what was not mended yet.
 * Source: ptrace(2), kernel/ptrace.c, kernel/signal.c.
 */
#pragma once

#include "agent/native/tree.h"

/* Once per process: SCHED_FIFO, mlockall. Returns false if something of it was refused. */
bool freeze_prepare_self(void);
/* The priority holds only in a pause, for the thread that freezes. */
void freeze_raise(void);
void freeze_lower(void);

/*
 * Before: tree->root set, tree->arena there, tree->fence or NULL. After: tree->tasks and their threads complete, all
 * stopped. -ETIMEDOUT after deadline_ms (all was let go), -ESRCH: the root is gone; -EOPNOTSUPP:
 * somebody else traces a task. A tree that was listed before (tree_list) stops faster.
 * -ENOTRECOVERABLE: a thread hangs in the kernel and only the end of the calling process takes the
 * tracer off it: end at once. Raises and lowers the priority by itself. pthread signals: one real-
 * time signal (SIGRTMAX - 3) is used while it works.
 */
int freeze_tree(struct native_tree *tree, int deadline_ms) _must_check_;
/*
 * Before: waits until no listed thread is in a wait that keeps it from stopping (of a disk, of a
 * child in vfork), for patience_ns at most. False: one still was, the last time that it was looked at.
 */
bool freeze_await_calm(const struct native_tree *tree, uint64_t patience_ns,
		       uint64_t *ret_waited_ns);
/* The tasks and threads as /proc lists them now; nothing is stopped. */
int tree_list(struct native_tree *tree) _must_check_;
/* Let go of all threads; never fails. Job-control stops are as they were. */
void thaw_tree(struct native_tree *tree);

/* Registers, xsave, masks, queued signals, rseq of all threads, into the tree; fix-ups applied to
 * what is stored there, never to the thread. */
int regs_collect(struct native_tree *tree) _must_check_;

/*
 * One system call in a thread of a process that is not stopped by us: seizes that thread, runs
 * `nr`, puts everything back, lets go. fn may be called with the thread still stopped (to fetch a
 * descriptor that the call made) and may run further calls by inject_syscall(). -EOPNOTSUPP where
 * there is no system call instruction to be found, or seccomp forbids. tree: what is known of its job
 * (fence, stacks for handlers), or NULL.
 */
struct injection;
int inject_syscall(struct injection *i, long nr, const uint64_t args[6],
		   int64_t *ret_result) _must_check_;
int inject(pid_t pid, const struct native_tree *tree, int (*fn)(void *ctx, struct injection *i),
	   void *ctx) _must_check_;
