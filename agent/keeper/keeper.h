/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The keeper: a tiny static process per job that owns the job's namespaces and its life.
 *
 *   decampd --(keeper.sock)--> keeper --> init (PID 1 of the job's PID namespace) --> the job
 *
 * It outlives decampd (G6): the daemon attaches again after a restart or an upgrade. It is the
 * warden too: with a lease deadline set, it freezes the job's cgroup by itself when the deadline
 * passes (G3), with memory locked and real-time priority where the host allows, and writes that
 * down in its status. It never kills for a missed lease.
 *
 * Namespaces of a launched or restored job: PID, mount, IPC, UTS (host name of the submitting
 * host); network and user are the host's. Mounts: overlay on each local disk file system, lower =
 * host, upper = the job's files and those carried along; network file systems pass through; fresh
 * /proc, own tmpfs on /run (with the host's resolver file bound in) and on /dev/shm; /dev and /sys
 * are the host's.
 * An adopted process keeps the host's namespaces until it is restored: then the keeper only has
 * its cgroup and watches it.
 *
 * PIDs: init is 1, helpers that the keeper spawns get PIDs below KEEPER_FIRST_PID, the job's own
 * begin there, so that a later restore never meets a taken PID. (An adopted job may have low PIDs:
 * keeper_config.helper_pid says where helpers go then.)
 *
 * Threading: a struct keeper is one connection, for one thread; open as many as are needed.
 * All calls block, at most timeout KEEPER_CALL_MS unless said. Errors: -errno.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent/util/cleanup.h"

enum {
	KEEPER_FIRST_PID = 1000,
	KEEPER_CALL_MS = 10000,
	KEEPER_EXPECT_MS = 5000,
	KEEPER_MOUNTS_MAX = 32,
	KEEPER_ARGS_MAX = 128 << 10, /* bytes of argv or environment, NUL-separated */
	KEEPER_GROUPS_MAX = 256,
};

/* Below cgroup_dir, where the processes are: for who would hold them beside the warden. */
#define KEEPER_TASKS "tasks"

struct keeper;

struct keeper_config {
	const char *binary;	/* decamp-keeper */
	const char *run_dir;	/* RUN/jobs/ID, exists: keeper.sock, keeper.pid go here */
	const char *state_dir;	/* STATE/jobs/ID, on a real file system: upper/, work/, root/ */
	const char *cgroup_dir; /* v2 folder made for the job, or NULL: freeze by SIGSTOP */
	const char *hostname;	/* for the UTS namespace */
	bool adopted;		/* no namespaces: watch adopt_pid */
	pid_t adopt_pid;
	pid_t helper_pid; /* first PID for helpers; 0: low ones */
};

/* Forks and execs the keeper, which builds the namespaces; returns when PID 1 is up. */
int keeper_start(const struct keeper_config *config, struct keeper **ret_keeper) _must_check_;
/* Connects to a living keeper; -ECONNREFUSED or -ENOENT if there is none. */
int keeper_attach(const char *run_dir, struct keeper **ret_keeper) _must_check_;
/* Closes the connection only. */
void keeper_detach(struct keeper *k);

struct keeper_command {
	const char *argv; /* NUL-separated, argv_size bytes */
	size_t argv_size;
	const char *env;
	size_t env_size;
	const char *cwd;
	const char *stdin_path;	 /* NULL: /dev/null */
	const char *stdout_path; /* opened O_APPEND|O_CREAT 0644 as the user, inside the root */
	const char *stderr_path;
	uid_t uid;
	gid_t gid;
	gid_t groups[KEEPER_GROUPS_MAX];
	uint32_t group_count;
	uint64_t rlim_cur[16], rlim_max[16]; /* RLIMIT_*; used if have_rlimits */
	bool have_rlimits;
	mode_t umask;
};

/*
 * Starts the job's main process as session leader with PID KEEPER_FIRST_PID; it is execve'd
 * before this returns, or -errno of what failed (with which step in ret_step, static text).
 */
int keeper_run(struct keeper *k, const struct keeper_command *command,
	       const char **ret_step) _must_check_;

/* Tells the keeper which PID (inside) is the main process of a tree that CRIU just restored. */
int keeper_watch(struct keeper *k, pid_t main_pid) _must_check_;
/*
 * The same while that tree is still stopped: its PIDs will count on from the highest one, and an
 * end of main_pid is held back until keeper_watch() confirms it (at most KEEPER_EXPECT_MS). 0: the
 * restore failed, forget it. criu_run_restore() does all this.
 */
int keeper_expect(struct keeper *k, pid_t main_pid) _must_check_;

/*
 * Runs a helper inside the job's PID, mount, IPC and UTS namespaces (host's for an adopted job),
 * with fds[i] as its fd 3 + i, stdio on stdio_fd (or /dev/null if -1). in_cgroup: as a member of
 * the job's cgroup, so that what it forks starts there. Returns a pidfd of it; the keeper reaps it:
 * keeper_reap() waits for its wait(2) status.
 */
int keeper_spawn(struct keeper *k, const char *binary, char *const argv[], const int *fds,
		 int fd_count, int stdio_fd, bool in_cgroup, int *ret_pidfd,
		 uint32_t *ret_spawn_id) _must_check_;
/* The same with all choices; keeper_spawn() is short for it. */
struct keeper_helper {
	const char *binary; /* as the keeper's host sees it, else as the job does */
	char *const *argv;
	const int *fds;
	int fd_count;
	int stdio_fd;
	bool in_cgroup;
	bool host_ipc; /* stay in the keeper's IPC namespace */
	bool as_user;  /* run as uid and gid, yet with all of root's capabilities */
	uid_t uid;
	gid_t gid;
};
int keeper_spawn_helper(struct keeper *k, const struct keeper_helper *helper, int *ret_pidfd,
			uint32_t *ret_spawn_id) _must_check_;
int keeper_reap(struct keeper *k, uint32_t spawn_id, int timeout_ms, int *ret_status) _must_check_;

int keeper_freeze(struct keeper *k, int timeout_ms) _must_check_; /* returns when frozen */
int keeper_thaw(struct keeper *k) _must_check_;
/* SIGKILL to everything, namespace and all; returns when all are dead and mounts gone. */
int keeper_kill(struct keeper *k) _must_check_;
/* A signal to the main process only. */
int keeper_signal(struct keeper *k, int signal) _must_check_;
/* Ends the keeper of a job whose main process is gone; also removes its cgroup. */
int keeper_quit(struct keeper *k) _must_check_;

/* CLOCK_BOOTTIME ns; 0: no lease (fence=commit). A later deadline thaws a lease freeze. */
int keeper_lease(struct keeper *k, uint64_t deadline_boot_ns) _must_check_;

/*
 * Keeps a userfaultfd of the job open as long as the keeper lives, so that memory that is not there
 * yet never turns into zeros. If this connection ends before keeper_hold(k, -1), which lets all of
 * them go, the keeper freezes the job (a "frozen by request" that a thaw ends).
 */
int keeper_hold(struct keeper *k, int fd) _must_check_;

struct keeper_status {
	pid_t keeper_pid;
	pid_t init_pid;	     /* host view; 0 for an adopted job */
	pid_t main_pid;	     /* host view; 0: none yet or gone */
	int32_t exit_status; /* wait(2) status, valid if exited */
	bool running;	     /* main process exists */
	bool exited;
	/*
	 * It failed soon after a helper was killed. A CRIU that is killed while its
	 * code runs inside the job takes the job with it: not the job's own end, restore it.
	 */
	bool exit_suspect;
	bool exit_status_known; /* an adopted process' status is known only with eBPF */
	bool frozen;		/* by request */
	bool lease_frozen;	/* by the warden */
	bool freeze_by_signal;	/* no cgroup: freezing is SIGSTOP, which the job may notice */
	uint64_t lease_boot_ns;
	uint64_t freeze_worst_us; /* slowest freeze seen */
};
int keeper_status(struct keeper *k, struct keeper_status *ret_status) _must_check_;

/* Becomes readable when the job's main process exits or the warden freezes it: then ask status. */
int keeper_event_fd(struct keeper *k);
