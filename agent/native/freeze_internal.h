/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What tree.c, list.c, freeze.c, inject.c and regs.c share: growing a tree, listing it from /proc,
 * the timer that bounds every wait, and the repair of a stopped system call.
 *
 * While a tree is being frozen, a thread or task that has gone keeps its place with the number 0,
 * until tree_compact().
 */
#pragma once

#include <signal.h>
#include <sys/ptrace.h>
#include <time.h>

#include "agent/native/tree.h"

/* Since Linux 4.3, 3.11, 5.13 and 6.4: missing in older headers. */
#define FREEZE_O_SUSPEND_SECCOMP (1 << 21)
#define FREEZE_GET_RSEQ 0x420f
#define FREEZE_GET_DISPATCH 0x4211

enum {
	FREEZE_EVENT_FORK = 1,
	FREEZE_EVENT_VFORK = 2,
	FREEZE_EVENT_CLONE = 3,
	FREEZE_EVENT_STOP = 128,

	FREEZE_LINGER_MS = 2000, /* for a thread that hangs in the kernel, after the deadline */
};

/* What the kernel says inside a system call that a stop has interrupted (linux/errno.h). */
enum {
	FREEZE_RESTARTSYS = 512,
	FREEZE_RESTARTNOINTR = 513,
	FREEZE_RESTARTNOHAND = 514,
	FREEZE_RESTARTBLOCK = 516,
};

/* tree.c. New ones come last; pointers to tasks and threads do not outlive these calls. */
int tree_add_task(struct native_tree *tree, pid_t pid, pid_t parent_pid,
		  struct native_task **ret_task) _must_check_;
int tree_add_thread(struct native_tree *tree, struct native_task *task, pid_t tid,
		    struct native_thread **ret_thread) _must_check_;
struct native_thread *task_find_thread(const struct native_task *task, pid_t tid);
/* For many in the order of the kernel's lists, as a rule that of the task's: begin with *hint = 0. */
struct native_thread *task_find_next(const struct native_task *task, pid_t tid, size_t *hint);
void tree_compact(struct native_tree *tree);

/* list.c */

/*
 * The number last given to a process or thread: while it stays, nobody has begun to be born. Who had
 * begun before may be in no list yet: list_begin() notes it, and which threads may be at it;
 * list_holds() looks at what those have, once all stand still.
 */
long list_last_pid(void);
void list_begin(struct native_tree *tree);
bool list_holds(const struct native_tree *tree, bool by_scan);
/* All threads stand, and are as many as there are: reading a folder ends early if one ends. */
bool list_counts(const struct native_tree *tree);
bool list_is_birth(long nr);
/*
 * Adds what /proc shows, takes away what has gone and was not seized. *ret_left: a seized process
 * that is no longer below the root, or 0. by_scan: without the kernel's lists of children.
 */
int list_update(struct native_tree *tree, bool by_scan, bool *ret_changed,
		pid_t *ret_left) _must_check_;
bool list_has_children_files(void);
/* 0: it has gone. If it is 1 and the state is Z thereafter, the process has ended. */
size_t list_thread_count(pid_t pid);
/* The letter of a thread's state, 0: gone. *ret_tracer: who traces it, or 0. */
char list_state(pid_t tid, pid_t *ret_tracer);
/* freeze.c: CLOCK_MONOTONIC */
uint64_t freeze_mono_ns(void);
/*
 * It waits in the kernel for something that no signal ends, a disk mostly. *ret_switches: how often it
 * has gone to wait; another number, another wait.
 */
bool list_blocked(pid_t tid, uint64_t *ret_switches);
/* What a virtual machine's host has kept from all processors since the boot; 0 on real ones. */
uint64_t list_stolen_us(void);
/* The system call that a thread sleeps in; -1: none, or not to be seen. */
long list_syscall(pid_t tid);

/*
 * tick.c: a signal to this thread a millisecond after the last one was handled, so that no system
 * call blocks for ever.
 */
struct freeze_tick {
	timer_t timer;
	bool armed;
	int signal;
	struct sigaction old_action;
	sigset_t old_mask;
	void (*fn)(void *ctx); /* in the signal handler */
	void *ctx;
	uint64_t deadline_ns; /* CLOCK_MONOTONIC */
};

int tick_start(struct freeze_tick *t, int deadline_ms, void (*fn)(void *ctx),
	       void *ctx) _must_check_;
void tick_stop(struct freeze_tick *t);
bool tick_over(const struct freeze_tick *t);

/* regs.c */

/*
 * What rax shall be in a thread that was stopped with these registers, so that no EINTR is seen:
 * the same, or a restart. Only calls known to return EINTR for a mere stop are restarted.
 */
long regs_repaired_ax(const struct user_regs_struct *regs);
/* Such a call: a stop alone makes it return EINTR. */
bool regs_leaks_eintr(unsigned long long nr);
/* A thread that was stopped in the critical section at cs starts it anew: where; else ip. */
uint64_t regs_leave_rseq(pid_t pid, uint64_t cs, uint64_t ip);
/* The rseq configuration of a stopped thread and what is in its area; all 0: none. */
void regs_rseq(struct native_thread *t);
bool regs_are_64bit(const struct user_regs_struct *regs);
