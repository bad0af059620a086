/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The inside of the keeper program; no other program includes this.
 *
 *   main.c    start: arguments, cgroup, namespaces, socket
 *   server.c  the poll loop: connections, lease, deaths
 *   freezer.c cgroup.freeze, cgroup.kill, or signals where there is no cgroup
 *   spawn.c   helpers inside the job's namespaces
 *   loader.c  with the host's libraries
 *   init.c    PID 1 of the job; run.c the job's main process
 *   mounts.c  the job's root
 *
 * Single-threaded; nothing in the loop waits for anything but poll(), so that the lease deadline is
 * always met. Functions do not log unless they say so; the log is run_dir/keeper.log.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent/keeper/protocol.h"

enum {
	WARDEN_CONNS_MAX = 16,
	WARDEN_SPAWNS_MAX = 32,
	WARDEN_HELD_MAX = 256,	/* userfaultfds of a job that is not all there yet */
	WARDEN_TREE_MAX = 4096, /* processes of an adopted tree */
};

struct warden_config {
	const char *run_dir;
	const char *state_dir;	/* NULL for an adopted job */
	const char *cgroup_dir; /* NULL: none */
	const char *hostname;
	bool adopted;
	pid_t adopt_pid;
	pid_t helper_pid;
	int started_fd; /* struct keeper_started goes here */
};

struct spawn {
	bool used;
	bool ended;
	uint32_t id;
	int owner; /* index of the connection that asked; -1: it is gone, nobody will reap */
	pid_t pid; /* host view */
	int status;
	int exec_fd; /* -1: the exec is over; else it carries its errno */
	int pidfd;
};

struct conn {
	int fd; /* -1: free */
	int event_fd;
	uint32_t waiting; /* op that is not answered yet, 0: none */
	uint32_t spawn_id;
	uint64_t deadline_ns;
};

struct warden {
	struct warden_config config;
	int run_fd, listen_fd, signal_fd, timer_fd;
	int cgroup_fd, freeze_fd, events_fd; /* -1: no cgroup */
	int tasks_fd;			     /* the leaf that the processes are in; -1: no cgroup */
	pid_t init_pid;			     /* 0: none or gone */
	int init_pidfd, init_sock;
	int main_pidfd; /* -1: none yet */
	pid_t main_pid; /* host view; 0: none yet or gone */
	pid_t main_inside;
	bool exited, exit_status_known, exit_suspect;
	int32_t exit_status;
	bool freeze_wanted, lease_frozen; /* who wants it frozen */
	bool freeze_applied, freezing;	  /* what the kernel was told; not confirmed yet */
	uint64_t freeze_start_ns, freeze_worst_us, lease_boot_ns;
	uint64_t helper_killed_ns; /* when a helper last died of a signal; 0: never */
	uint32_t spawn_next_id;
	int held[WARDEN_HELD_MAX];
	int held_count, held_owner; /* index of the connection that gave them; -1: it is gone */
	bool quit;
	struct conn conns[WARDEN_CONNS_MAX];
	struct spawn spawns[WARDEN_SPAWNS_MAX];
};

static inline void forget_fd(int *fd)
{
	close_fdp(fd);
	*fd = -1;
}

/* One line into keeper.log. */
void warden_log(const char *fmt, ...) _printf_(1, 2);

/* server.c */
int server_listen(struct warden *w) _must_check_;
void server_loop(struct warden *w);
int server_handle_init(struct warden *w); /* reads one message of PID 1; -EAGAIN: none */

/* freezer.c */
int freezer_open(struct warden *w) _must_check_;
/* Tells the kernel what is wanted now. */
int freezer_apply(struct warden *w) _must_check_;
/* Notes a freeze that came to pass; false: not yet. */
bool freezer_check(struct warden *w);
int freezer_kill(struct warden *w) _must_check_;
/* True when nothing of the job lives. */
bool freezer_empty(struct warden *w);
/* Moves a tree of host processes into the cgroup, until no new one shows up. */
int freezer_adopt_tree(struct warden *w, pid_t root) _must_check_;
void freezer_remove(struct warden *w);
/* Puts the keeper itself where a stop of the daemon's unit does not reach. */
void freezer_leave_daemon(const struct warden *w);

/* spawn.c: fds are borrowed. */
int spawn_start(struct warden *w, const struct keeper_spawn_order *order, const int *fds,
		int fd_count, int owner, uint32_t *ret_id) _must_check_;
struct spawn *spawn_find(struct warden *w, uint32_t id);
void spawn_free(struct spawn *s);
/* Like fork(2), with the flags and the wished PID of clone3(2). */
pid_t raw_clone(uint64_t flags, int *ret_pidfd, int cgroup_fd, pid_t set_tid);

/*
 * loader.c: the host's dynamic loader, its folders of libraries and a program, opened outside of the
 * job's root. In a child that will execute it; nothing is closed.
 */
enum { LOADER_FOLDERS = 7 };
struct loader {
	int interpreter, program; /* -1: the program needs none, or is not there */
	int folders[LOADER_FOLDERS];
};
void loader_open(struct loader *l, const char *binary);
/* Returns if there is no interpreter, or the kernel refuses. */
void loader_exec(const struct loader *l, char *const argv[], char *const env[]);

/* mounts.c: called in the new mount namespace. ret_step says where it failed. */
int mounts_build(const struct warden_config *config, const char **ret_step) _must_check_;

/* init.c */
enum init_op {
	INIT_READY = 1, /* init -> keeper: status, step */
	INIT_RUN,	/* -> init: fd memfd, [fd cgroup]; -> keeper: status, step, fd pidfd */
	INIT_WATCH,	/* -> init: pid; -> keeper: status, fd pidfd */
	INIT_EXPECT,	/* the same, not confirmed yet; pid 0: forget it */
	INIT_STOP,	/* -> init; -> keeper: status */
	INIT_CONT,
	INIT_EXITED, /* init -> keeper: status is that of wait(2) */
};
struct init_msg {
	uint32_t op;
	int32_t status;
	int32_t pid;
	char step[KEEPER_STEP_MAX];
};
/* Never returns. */
void init_main(const struct warden_config *config, int sock) __attribute__((noreturn));

/* run.c: starts the main process from init; its PID inside, or -errno. fds are borrowed. */
pid_t run_start(int order_fd, int cgroup_fd, int *ret_pidfd, const char **ret_step) _must_check_;
/* Signals to their defaults, none blocked, new session. */
void run_reset_process(void);
