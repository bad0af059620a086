/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * CRIU as an engine: one dump or one restore, run inside the job's namespaces by the keeper and
 * driven over `criu swrk` (SOCK_SEQPACKET, protobuf-c), so that our code runs at its notify points
 * while the job stands still. No shell, no script in the pause.
 *
 * Safety: a dump that fails, or whose `frozen` callback returns an error, leaves the job running
 * (G1); CRIU itself resumes it. If CRIU dies in the middle, its ptrace stops end with it.
 * Threading: blocking, one call per job at a time. Errors: -errno, text of CRIU's last error line in
 * `reason`. Source: CRIU 4.2 behaviour, criu.org RPC documentation; field numbers in criu_rpc.proto.
 */
#pragma once

#include <sys/types.h>

#include "agent/keeper/keeper.h"

enum { CRIU_REASON_MAX = 512, CRIU_WHY_MAX = 200 };

struct criu_dump {
	const char *criu;	/* binary, as seen inside the job's root */
	pid_t pid;		/* root of the tree, in the PID namespace of the job */
	const char *images_dir; /* exists, empty; passed by fd, so any mount namespace will do */
	bool shell_job;		/* session leader lies outside the tree (adopted jobs) */
	bool unprivileged;	/* run as the job's user with ambient capabilities */
	uid_t uid;
	gid_t gid;
	/* Called just before CRIU seizes the tasks; may thaw a frozen cgroup, in which CRIU could
	 * not work. May be NULL; < 0: nothing is dumped. */
	int (*before)(void *ctx);
	/* Called with the whole tree stopped and all images written; < 0: CRIU resumes the job. */
	int (*frozen)(void *ctx);
	void *ctx;
};

struct criu_times {
	uint64_t freezing_us, frozen_us; /* CRIU's stats-dump; 0 if absent */
	uint64_t wall_us;		 /* first stop to resume as we saw it: the reported pause */
	uint64_t pages_written;
};

int criu_run_dump(struct keeper *k, const struct criu_dump *dump, struct criu_times *ret_times,
		  char reason[CRIU_REASON_MAX]) _must_check_;

struct criu_restore {
	const char *criu;
	const char *images_dir;
	bool shell_job;
	bool lazy; /* memory is asked for over images_dir/lazy-pages.socket */
	/*
	 * Folder of our plugin (agent/image/plugin), used if there are deadlines beside the images.
	 * NULL, or it cannot be loaded: sleeps start in full.
	 */
	const char *plugin_dir;
	/* Called when all is restored and nothing runs yet; < 0: CRIU kills the copy. */
	int (*ready)(void *ctx);
	void *ctx;
};

struct criu_restored {
	pid_t pid;		     /* root of the tree inside the PID namespace */
	unsigned int timed, in_time; /* threads asleep in timed calls; those with their deadline */
	char not_in_time[CRIU_WHY_MAX]; /* why not all of them */
};

/* Returns with the tree running. */
int criu_run_restore(struct keeper *k, const struct criu_restore *restore,
		     struct criu_restored *ret_restored, char reason[CRIU_REASON_MAX]) _must_check_;
