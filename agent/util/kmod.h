/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The kernel module, where it is loaded (docs/kmod.md). All that it does is done without it by other
 * means, which the program may notice.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent/util/cleanup.h"

struct decamp_thread;

/* It is loaded, we may use it, and it has the calls that we know. */
bool kmod_works(void);
/*
 * A userfaultfd of the memory of a process, which runs on and has no part in it; flags as
 * userfaultfd(2). -ENODEV: no such module; -ESRCH: no such process, or its memory has gone.
 */
int kmod_uffd(pid_t pid, int flags, int *ret_fd) _must_check_;

/*
 * Sessions: calls of kmod/uapi/decamp.h. A session is a descriptor; to close it thaws, and so does our
 * end. Whoever sleeps in a system call when it begins is left asleep. -ENODEV: no such module.
 */
int kmod_freeze(pid_t root, int timeout_ms, int lease_ms, int *ret_session) _must_check_;
/*
 * As many as fit; *ret_total: how many there are. -ENOMEM: one was born that could not be stopped;
 * -EOWNERDEAD: the lease is over, as from all calls below.
 */
int kmod_threads(int session, struct decamp_thread *threads, size_t room,
		 size_t *ret_total) _must_check_;
/* -EMSGSIZE: more than room; -EAGAIN: it runs, or has since it had that many switches. */
int kmod_xstate(int session, pid_t tid, uint64_t switches, void *buffer, size_t room,
		size_t *ret_size) _must_check_;
/* Takes one out of its call. */
int kmod_park(int session, pid_t tid, int timeout_ms) _must_check_;
