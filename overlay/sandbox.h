/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the overlay half gives up before it looks at the first foreign byte.
 *
 *   sandbox_enter()   as root: own mount and IPC namespaces with state_dir as the root folder,
 *                     uid and gid, all capabilities; as anybody: no_new_privs, no core dumps,
 *                     no ptrace, end with the parent, all other fds closed
 *   sandbox_filter()  the seccomp allow-list, for all threads; another call ends the process
 *
 * Between the two the store and the worker thread are set up: the filter allows no new thread.
 */
#pragma once

#include <sys/types.h>

struct sandbox_config {
	uid_t uid;
	gid_t gid;
	const char *state_dir;
	int keep_fd; /* the main channel; 0, 1 and 2 stay open too */
};

/* ret_root: how state_dir is called from now on. Borrowed from config or static. */
int sandbox_enter(const struct sandbox_config *config, const char **ret_root)
	__attribute__((warn_unused_result));
int sandbox_filter(void) __attribute__((warn_unused_result));
