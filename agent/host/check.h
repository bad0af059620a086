/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Inside of host_check(): one walk over a process tree, by procfs and sock_diag only.
 *
 *   tree -> each task: status, namespaces -> its fds -> its mappings -> sockets of the whole tree
 *
 * What vanishes during the walk is skipped: the answer is advice, the capture decides.
 * Threading: one struct check per call.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent/util/cleanup.h"

struct json_object;

enum {
	CHECK_TASKS_MAX = 4096,
	CHECK_SOCKETS_MAX = 65536,
	CHECK_FINDINGS_MAX = 64, /* problems, and as many notes; a last one says how many more */
	CHECK_FDS_MAX = 1 << 16, /* of one process */
};

/* One process of the tree, from /proc/PID/stat. */
struct check_task {
	pid_t pid, ppid, sid;
	int tty;
	unsigned int flags, threads;
	char state;
	char comm[64];
};

struct check_socket {
	uint64_t inode;
	pid_t pid;
	int fd;
	bool known; /* found in one of the tables of sockets */
};

struct check {
	pid_t pid;
	uid_t caller_uid;
	struct json_object *problems, *notes; /* borrowed from the report */
	size_t problem_count, note_count;
	size_t tty_count;	  /* open terminals */
	struct check_task *tasks; /* the root first */
	size_t task_count;
	struct check_socket *sockets; /* sorted by inode before they are looked up */
	size_t socket_count, socket_room;
};

void check_problem(struct check *c, const char *object, const char *reason, const char *next);
void check_note(struct check *c, const char *fmt, ...) _printf_(2, 3);

/* A file of /proc/PID, at most 1 MiB of it (NULL if it cannot be read); the caller frees it. */
char *check_read(pid_t pid, const char *name);
/* The number after "key:" in a status or fdinfo text, or fallback. */
long long check_number(const char *text, const char *key, int base, long long fallback);

/* /proc/PID/stat; -ESRCH, -EBADMSG. */
int check_read_task(pid_t pid, struct check_task *ret_task) _must_check_;
/* Fills tasks with the tree below pid; -E2BIG beyond CHECK_TASKS_MAX. */
int check_read_tree(struct check *c) _must_check_;

void check_fds(struct check *c, const struct check_task *task);
void check_maps(struct check *c, const struct check_task *task, bool host_ipc);
/* After all fds of the tree: what its sockets are connected to. */
void check_sockets(struct check *c);
