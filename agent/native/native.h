/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The native engine as capture uses it: a process of its own per job, decamp-capture, that traces
 * the job, follows its memory and writes CRIU-compatible images.
 *
 *   decampd --(socketpair)--> decamp-capture --(ptrace, userfaultfd, BPF)--> job
 *
 * Why a process: the tracer may have real-time priority and locked memory for itself; and if decampd
 * is killed at any moment, decamp-capture still puts every register back and lets the job go (G1,
 * G6). It lives as long as its struct native, and ends by itself when decampd is gone.
 *
 * Threading: one thread at a time. Errors: -errno with a sentence in reason; -EOPNOTSUPP: native
 * does not cover this job as it is now, use the criu engine; the job runs on in any case.
 */
#pragma once

#include "agent/native/mem.h"
#include "agent/native/tree.h"

struct native;

enum {
	NATIVE_PAUSE_MS = 10000,     /* a frozen() that hangs longer does not keep the job */
	NATIVE_TAKE_MS = 30 * 60000, /* for a whole snapshot */
	NATIVE_WANTED_MAX = 1 << 20,
};

struct native_config {
	const char *binary; /* decamp-capture */
	pid_t root;	    /* main process of the job, as decampd sees it */
	const char *cgroup; /* the job's, as keeper_config.cgroup_dir; NULL: none */
	int nice_rounds;    /* niceness of pre-copy */
	struct native_mem_config mem;
};

int native_start(const struct native_config *config, struct native **ret_native,
		 char reason[NATIVE_REASON_MAX]) _must_check_;
/*
 * A decamp-capture that was killed may have left the job behind its fence (fence.h), where no thread
 * runs until its call is mended. native_start() sees to that, and so does this; fast if there is
 * nothing to mend. If nothing can be started, the fence is lowered all the same.
 */
void native_mend(const char *binary, const char *cgroup);
/* Detaches from the job and ends the process; NULL is accepted. */
void native_stop(struct native *n);
/* False once its process has ended, or was given up. */
bool native_alive(const struct native *n);

/* A file that the job used at the frozen instant. Values as USE_* of agent/capture/internal.h. */
enum {
	NATIVE_USE_SHARED_MAP = 1 << 0, /* mapped MAP_SHARED */
	NATIVE_USE_WRITABLE = 1 << 1,	/* open for writing */
	NATIVE_USE_FOLDER = 1 << 2,	/* working directory, or open folder */
};

struct native_take {
	int images;    /* folder, empty */
	uint64_t base; /* id of the snapshot that the packer has; 0: none, copy everything */
	bool shell_job;
	bool own_ipc_ns;
	const struct native_wanted *wanted; /* blocks of the base to give again */
	size_t wanted_count;
	int deadline_ms; /* of the freeze */
	/* frozen() freezes the job's cgroup, which tears sleepers out of their calls: stop by ptrace. */
	bool traced;
	/*
	 * < 0 from any of these: the snapshot is called off. before: pre-copy is done, the job still
	 * runs; last looks. frozen: in the pause, at the same time as native collects: copy files,
	 * freeze the cgroup; the job stands until it returns, NATIVE_PAUSE_MS at most. Both may come
	 * again when an attempt was given up: what counts is the last.
	 */
	int (*before)(void *ctx);
	int (*frozen)(void *ctx);
	/* After the pause, what was true in it: files in use, threads as the job numbers them. */
	int (*use)(void *ctx, const char *path, unsigned int flags);
	int (*thread)(void *ctx, pid_t inner_tid);
	void *ctx;
};

struct native_result {
	uint64_t id;	     /* base for the next take, once the packer has it all */
	uint64_t pause_us;   /* first thread stopped to last one let go; of all attempts */
	uint64_t earlier_us; /* of it, in attempts that were given up and made anew */
	uint32_t freeze_us, state_us, regs_us, files_us, scan_us, copy_us, wait_us,
		thaw_us; /* of the last attempt */
	/* Of freeze_us: for a thread that waited in the kernel, for a disk mostly; for one that was
	 * ready and had no processor. */
	uint32_t blocked_us, queued_us;
	/* All processors together, by the kernel's ticks, a little longer than the pause: what the host of
	 * this virtual machine did not let them have. */
	uint32_t stolen_us;
	uint32_t calm_us; /* before the pause: so long the job ran on until no thread waited so */
	/* From freeze to wait: the tracer did not run; a virtual machine's host, mostly. */
	uint32_t away_us;
	uint64_t cpu_us; /* of decamp-capture, whole snapshot */
	uint32_t tasks, threads;
	struct native_mem_counts mem;
	char stopped_by[16];		 /* "module", "ptrace" */
	char not_gentle[NATIVE_WHY_MAX]; /* there is a module, but this was stopped by ptrace */
};

/*
 * What most of the pause went into: "disk" (a thread waited in the kernel, for a disk mostly),
 * "processor" (a ready one had none), "stolen" (the same, and the host of this virtual machine had
 * taken it), "freeze", "state", "memory", "files" (decampd's copies), "thaw",
 * "retries" (attempts that were given up).
 */
const char *native_mostly(const struct native_result *result);

int native_take(struct native *n, const struct native_take *take, struct native_result *ret_result,
		char reason[NATIVE_REASON_MAX]) _must_check_;

/* What `decamp check` says: would a take be covered? Nothing is stopped. -EOPNOTSUPP + reason. */
int native_check(const char *binary, pid_t root, char reason[NATIVE_REASON_MAX]) _must_check_;
