/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A tracer that was killed between the two calls that it makes in a process leaves its userfaultfd
 * behind there: nobody's, without use, and in the way of every snapshot. It is known by never having
 * been set up (UFFDIO_API), which a program does at once with one of its own; so only one that is
 * found like that twice, a while apart, is closed. Threading: that of take.h.
 */
#pragma once

#include "agent/native/tree.h"

/*
 * *seen: identity of the one that was found before, 0 at first; kept by the caller. -EAGAIN: look
 * again after a moment. The job runs; its descriptors are in the tree.
 */
int stray_check(struct native_tree *tree, uint64_t *seen) _must_check_;
