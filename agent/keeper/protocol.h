/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Private to the keeper and its client: what passes over keeper.sock.
 *
 *   client --keeper_request [+ fds]--> keeper        one at a time per connection
 *   client <--keeper_reply  [+ 1 fd]-- keeper        always answered, in order
 *
 * SOCK_SEQPACKET, each message a whole struct. Both ends come from one installation but may be of
 * different age (an upgrade leaves old keepers alone, G6): HELLO carries the version, and a struct
 * never changes without a new one. Only root talks here (file mode and SO_PEERCRED).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

#include "agent/keeper/keeper.h"

enum {
	KEEPER_VERSION = 1,
	KEEPER_FDS_MAX = 8,
	KEEPER_SPAWN_TEXT_MAX = 4096,
	KEEPER_SPAWN_ARGS_MAX = 32,
	KEEPER_STEP_MAX = 64,
	KEEPER_PATH_MAX = 4096,
	/* PIDs of helpers; the kernel never hands out numbers below 300 after a wrap-around. */
	KEEPER_HELPER_FIRST_PID = 2,
	KEEPER_HELPER_PIDS = 250,
};

enum keeper_op {
	KEEPER_OP_HELLO = 1, /* -> fd: eventfd */
	KEEPER_OP_RUN,	     /* fd: memfd with struct keeper_run_order and its text */
	KEEPER_OP_WATCH,
	KEEPER_OP_EXPECT,
	KEEPER_OP_SPAWN, /* fds: [stdio,] then the helper's; -> fd: pidfd */
	KEEPER_OP_REAP,
	KEEPER_OP_FREEZE,
	KEEPER_OP_THAW,
	KEEPER_OP_KILL,
	KEEPER_OP_SIGNAL,
	KEEPER_OP_QUIT,
	KEEPER_OP_LEASE,
	KEEPER_OP_STATUS,
	KEEPER_OP_HOLD, /* fd: kept open; without one: all are let go */
};

enum {
	KEEPER_SPAWN_STDIO = 1 << 0,
	KEEPER_SPAWN_IN_CGROUP = 1 << 1,
	KEEPER_SPAWN_HOST_IPC = 1 << 2,
	KEEPER_SPAWN_AS_USER = 1 << 3,
};

struct keeper_spawn_order {
	uint32_t flags;
	uid_t uid;
	gid_t gid;
	uint32_t arg_count;
	uint32_t text_size;
	char text[KEEPER_SPAWN_TEXT_MAX]; /* binary, then the arguments, each with its NUL */
};

struct keeper_request {
	uint32_t op;
	uint32_t version;
	union {
		struct keeper_spawn_order spawn;
		int32_t pid;
		int32_t signal;
		int32_t timeout_ms;
		uint64_t deadline_boot_ns;
		struct {
			uint32_t spawn_id;
			int32_t timeout_ms;
		} reap;
	} u;
};

struct keeper_reply {
	uint32_t op;
	int32_t status;
	union {
		char step[KEEPER_STEP_MAX];
		uint32_t spawn_id;
		int32_t wait_status;
		struct keeper_status status;
	} u;
};

/* Followed by argv, env, cwd, stdin, stdout, stderr: text of these sizes (0: not given). */
struct keeper_run_order {
	uint32_t argv_size;
	uint32_t env_size;
	uint32_t path_size[4];
	uid_t uid;
	gid_t gid;
	uint32_t group_count;
	uint32_t have_rlimits;
	uint32_t umask;
	gid_t groups[KEEPER_GROUPS_MAX];
	uint64_t rlim_cur[RLIM_NLIMITS];
	uint64_t rlim_max[RLIM_NLIMITS];
};

/* What decampd reads from a keeper that starts: status 0, or -errno of this step. */
struct keeper_started {
	int32_t status;
	char step[KEEPER_STEP_MAX];
};

/* One datagram with up to KEEPER_FDS_MAX + 1 fds. -EAGAIN from a full or empty socket. */
int keeper_send(int sock, const void *buf, size_t size, const int *fds, int fd_count) _must_check_;
/* Exactly size bytes, else -EBADMSG; -EPIPE at the peer's end. Received fds are the caller's. */
int keeper_receive(int sock, void *buf, size_t size, int *fds, int fds_max,
		   int *ret_count) _must_check_;
/* Address of "keeper.sock" below a folder's fd: paths of any length. Returns the size. */
struct sockaddr_un;
unsigned keeper_address(int dirfd, struct sockaddr_un *ret_address);
