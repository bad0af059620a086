/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The fence: the kernel's own hold on the job for the moment in which threads have been torn out of
 * their calls, but not mended yet.
 *
 * A stop makes some calls return EINTR; freeze.c mends that in each stopped thread. Whoever is killed
 * between stop and mend would let the program see it: ptrace lets go of all when the tracer dies. So the
 * job's cgroup is frozen before the first stop and thawed after the last mend. If we die in between,
 * the threads stay where no instruction of theirs runs, the EINTR still in their saved registers, until
 * the next tracer has mended them (fence_mend): decampd starts one at once.
 *
 * The cgroup is one that nobody else freezes: the leaf `tasks` of the job's (agent/keeper). Without
 * cgroup v2 there is no fence, and the window stays open: some ten microseconds per stop.
 * Source: kernel/cgroup/freezer.c, get_signal() in kernel/signal.c.
 */
#pragma once

#include "agent/native/tree.h"

struct native_fence {
	int dir, freeze; /* the cgroup, its cgroup.freeze; -1: none */
};

#define NATIVE_NO_FENCE ((struct native_fence){ .dir = -1, .freeze = -1 })

/* Keeps a descriptor of its own. -EOPNOTSUPP: no cgroup that freezes. */
int fence_open(int dir, struct native_fence *ret_fence) _must_check_;
void fence_close(struct native_fence *f);
/* False: there is none, or the kernel refused. All below accept NULL. */
bool fence_raise(const struct native_fence *f);
bool fence_is_up(const struct native_fence *f);
/* Every process in the cgroup is one of the tree's: nobody else would be torn out of a call. */
bool fence_covers(const struct native_fence *f, const struct native_tree *tree);
/*
 * Only if all threads behind it are mended. fence_mend() mends those that this thread does not trace
 * (and nobody else), then lowers it; mostly at once, in a second at most. Who waits in the kernel and
 * does not hear signals was torn out of nothing and is passed over. -ENOTRECOVERABLE: one of them went
 * to wait so in that very moment; it would stop for ever, unless the calling process ends.
 * One that is down stays so: then the call takes as long as somebody else changes cgroups, all of which the
 * kernel does under one mutex.
 */
void fence_lower(const struct native_fence *f);
int fence_mend(const struct native_fence *f) _must_check_;
