/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Inside of the state part: its BPF iterators, and the pieces of a task's image.
 *
 * state.c     load, prepare, read iterators    state_collect.c  records into the tree
 * timers.c    time that is left                state_check.c    what is not covered
 * core_img.c  core images                      tree_img.c       inventory, pstree, ids, timens
 * fpu.c       xsave areas                      seccomp.c        filters
 */
#pragma once

#include "agent/native/core.pb-c.h"
#include "agent/native/state.h"

enum state_iterator {
	ITER_TASKS,
	ITER_VMAS,
	ITER_FDS,
	ITER_KINDS, /* above: those of one process, prepared before a freeze */
	ITER_WRITERS = ITER_KINDS,
};

/*
 * Runs one iterator over a process and leaves its records in s' buffer, valid until the next call.
 * prepared: the one of state_prepare(), which is used up.
 */
int state_iterate(struct native_state *s, enum state_iterator kind, pid_t pid, bool prepared,
		  const uint8_t **ret_records, size_t *ret_size) _must_check_;
/*
 * VMAs of a process that runs are not of one instant: one that changed meanwhile may come twice, with
 * other bounds. Keeps what is new of it, so that none overlaps another; returns how many are left.
 */
size_t state_part_vmas(struct state_vma *vmas, size_t count);
/* Lives in a user, network or cgroup namespace other than ours. */
bool state_is_foreign(const struct native_state *s, const struct state_process *p,
		      const char **ret_what);

/* The clocks now, as the host has them: that is how the kernel keeps timers. */
void state_read_clocks(const struct native_state *s, struct native_tree *tree);
/* Makes "time that is left" of the absolute expiry times that the kernel half gives. */
int state_time_left(struct native_tree *tree, struct state_process *p) _must_check_;

/* Filters of all tasks that have some; in the pause. Index of a thread's last filter; -1: none. */
int seccomp_collect(struct native_tree *tree) _must_check_;
int seccomp_index(const struct native_tree *tree, const struct native_thread *thread);
int seccomp_write(struct native_tree *tree) _must_check_;

/* -EOPNOTSUPP: the registers hold what the image has no place for. The arrays of the messages lie
 * in the thread's area, or are those of the caller. */
int fpu_fill(struct native_tree *tree, const struct native_thread *thread,
	     NatCore__Fpregs *ret_fpregs, NatCore__Xsave *ret_xsave) _must_check_;

int core_write(struct native_tree *tree, const struct native_task *task) _must_check_;
