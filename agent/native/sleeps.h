/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Threads asleep in calls with a relative timeout: how much of it is left, which no image of CRIU's
 * has a place for (agent/util/deadlines.h). Known where the kernel has written down how it would
 * restart the call (state.h); else the call is made again in full.
 */
#pragma once

#include "agent/native/tree.h"

/* In the pause, with what state.h read: t makes this call again after a restore. */
void sleeps_note(const struct native_tree *tree, struct native_thread *t, long call);
/* After the pause; no file if nobody sleeps so. */
int sleeps_write(struct native_tree *tree) _must_check_;
