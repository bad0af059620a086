/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The unprivileged half's entry: called in the forked child, never returns to the parent's code.
 *
 * Drops to `uid`/`gid`, no capabilities, no_new_privs, a seccomp filter, then runs an sd-event
 * loop: core (sans-IO) <-> net (TLS 1.3) <-> store (packs on disk) <-> ipc (the agent).
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

struct overlay_config {
	int main_channel; /* its end of the socketpair */
	uid_t uid;	  /* decamp */
	gid_t gid;
	const char *state_dir; /* made and owned by uid: registers/, index/, objects/ */
	bool no_seccomp;       /* sanitizers make system calls of their own */
};

/* Returns the exit code of the process: 0 after the agent closed the channel. */
int overlay_main(const struct overlay_config *config);
