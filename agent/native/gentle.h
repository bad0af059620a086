/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The freeze by the kernel module (docs/kmod.md), behind freeze_tree() and thaw_tree(): nobody is
 * traced, and who sleeps in a system call is left asleep, or taken out of it in such a way that the
 * program cannot notice.
 *
 *   freeze -> state (BPF), covers -> registers, files, memory -> verify: has nobody moved? -> thaw
 *
 * Nothing is written to any thread. If we die, or hang for longer than the lease, the module lets go.
 * What it cannot do is left to ptrace: sleepers whose calls are not known (asleep.h), queued
 * signals, seccomp filters, threads that are on no processor and yet do not stand.
 */
#pragma once

#include "agent/native/tree.h"

enum {
	GENTLE_FREEZE_MS = 500, /* until all stand; then it is ptrace's turn */
	GENTLE_LEASE_MS = 12000,
};

bool gentle_works(void);
/*
 * Instead of freeze_tree(): the same before and after, but that nothing is seized. -EAGAIN: not in
 * this way, see tree->not_gentle; the job runs.
 */
int gentle_freeze(struct native_tree *tree, int deadline_ms) _must_check_;
/* Never fails. */
void gentle_thaw(struct native_tree *tree);
/*
 * With what state.h read, before the freeze or in the pause: can this way of stopping say all that an
 * image needs? If not, tree->not_gentle says why.
 */
bool gentle_covers(struct native_tree *tree);
/* Fills in t->xsave. -EAGAIN: it moved. */
int gentle_xsave(struct native_tree *tree, struct native_thread *t) _must_check_;
/*
 * The last act of a pause: -EAGAIN if some call ended since the freeze, or anything else moved: what was
 * read may be torn. -ETIMEDOUT: the lease is over.
 */
int gentle_verify(struct native_tree *tree) _must_check_;
