/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A scratch state folder, run folder and cgroup for tests that start keepers; all of it is gone
 * after fixture_deinit(), whatever the test did. Needs root.
 */
#pragma once

#include <limits.h>
#include <stdbool.h>

#include "agent/keeper/keeper.h"

struct fixture {
	char base[64];
	char state_dir[128], run_dir[128];
	char cgroup_parent[PATH_MAX / 2], cgroup_dir[PATH_MAX];
	struct keeper_config config;
	struct keeper *k;
};

/* NULL if such tests can run here, else why not. */
const char *fixture_missing(void);
/* decamp-capture of this build. */
const char *fixture_capture_binary(void);
/* NULL if there is a CRIU, else why not. */
const char *fixture_find_criu(char criu[PATH_MAX]);
/* Kills the child process of that name in so many ms; the process to wait for. Asserts. */
pid_t fixture_kill_child_later(const char *name, int ms);
void fixture_init(struct fixture *f);
void fixture_deinit(struct fixture *f);
/* Second life of the same job: kills the keeper, then a new one over a copy of the upper layers. */
void fixture_move(struct fixture *f);

/* Starts argv (up to a NULL) as uid and gid with both outputs in FIXTURE_OUT; asserts. */
#define FIXTURE_OUT "/var/tmp/decamp-test-out"
void fixture_run(struct fixture *f, uid_t uid, const char *const argv[]);
void fixture_run_shell(struct fixture *f, uid_t uid, const char *script);
/* The job's view of a path, as a path of ours. */
void fixture_path(const struct fixture *f, const char *path, char ret_path[PATH_MAX]);
/* Content of the job's output so far; the caller frees it. */
char *fixture_output(const struct fixture *f);
long fixture_output_size(const struct fixture *f);
/* Waits until the output has this many lines; false after timeout_ms. */
bool fixture_wait_lines(const struct fixture *f, int lines, int timeout_ms);
/* Waits for the exit of the main process; its wait(2) status. Asserts that it comes. */
int fixture_wait_exit(struct fixture *f, int timeout_ms);
/* A zombie is dead; the host's PID 1 reaps it when it likes. */
bool fixture_wait_dead(pid_t pid, int timeout_ms);
void sleep_ms(int ms);
