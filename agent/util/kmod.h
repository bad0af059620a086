/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The kernel module, where it is loaded (docs/kmod.md). All that it does is done without it by other
 * means, which the program may notice.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include "agent/util/cleanup.h"

/* It is loaded, we may use it, and it has the calls that we know. */
bool kmod_works(void);
/*
 * A userfaultfd of the memory of a process, which runs on and has no part in it; flags as
 * userfaultfd(2). -ENODEV: no such module; -ESRCH: no such process, or its memory has gone.
 */
int kmod_uffd(pid_t pid, int flags, int *ret_fd) _must_check_;
