/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Task state by BPF iterators, and the images of tasks: inventory, pstree, ids, core, timens,
 * seccomp. No code runs in the target. Without BPF there is no native engine.
 *
 * Records are those of bpf/state.h. Prepared iterators of known processes make the pause short; a
 * process born since is read all the same.
 */
#pragma once

#include "agent/native/tree.h"

struct native_state;

/* Loads the programs, once per process (some 40 ms). -EOPNOTSUPP with a reason if it cannot. */
int state_create(struct native_state **ret_state, char reason[NATIVE_REASON_MAX]) _must_check_;
void state_destroy(struct native_state *s);
/* Before the freeze: iterators for the tasks of tree_list(). */
int state_prepare(struct native_state *s, struct native_tree *tree) _must_check_;
/* Just before the freeze: reads all of it once and forgets it, so that the pause does it faster. */
void state_rehearse(struct native_state *s, struct native_tree *tree);
/* In the pause: fills task->state, vmas, fds, thread->state, inner PIDs, *_id numbers, clocks. */
int state_collect(struct native_state *s, struct native_tree *tree) _must_check_;
/* Before or in the pause: reasons for which tasks (not their memory or files) are not covered. */
int state_check(struct native_tree *tree) _must_check_;
/* After the pause: writes inventory, pstree, ids-, core-, timens-0, seccomp images. */
int state_write(struct native_tree *tree) _must_check_;

/* For tests, and before a freeze: VMAs and descriptors of one process. arena-allocated. */
int state_read_vmas(struct native_state *s, struct native_tree *tree, pid_t pid,
		    const struct state_vma **ret_vmas, size_t *ret_count) _must_check_;
int state_read_fds(struct native_state *s, struct native_tree *tree, pid_t pid,
		   const struct state_fd **ret_fds, size_t *ret_count) _must_check_;
/*
 * Is some process of this host in, or was it last in, a call that writes to another one's memory
 * (process_vm_writev, ptrace)? The caller is not counted.
 */
int state_find_writers(struct native_state *s, bool *ret_any) _must_check_;
