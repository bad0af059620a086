/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One snapshot from its first look to its last image: the order in which the parts of the native
 * engine work, in the process that traces.
 *
 *   list, look, checks, pre-copy, before(), catch up, rehearse
 *     -> [ stop, frozen(), collect, collected(), go ] -> write
 *
 * A taker belongs to one job and outlives its snapshots: what it knows of the job's memory makes
 * the next one small. Whatever fails, the job runs on. A process that is born, or that execs,
 * between look and stop is met by letting go and looking again, TAKE_ATTEMPTS times.
 *
 * Threading: all calls from one thread, which becomes the tracer. Errors: -errno with a sentence
 * in reason; -EOPNOTSUPP: not covered, nothing was stopped or all is let go; -ENOTRECOVERABLE: end this
 * process at once, only that lets go of a thread that hangs in the kernel.
 */
#pragma once

#include "agent/native/native.h"

enum {
	TAKE_ATTEMPTS = 8,
	TAKE_GENTLE_OFF = 16, /* snapshots without the module after it could not stop a job */
	TAKE_STUCK_S = 15,    /* a pause as long as this ends by the death of the tracer */
};

struct taker;

struct take_config {
	pid_t root;	      /* main process of the job, as this process sees it */
	const int *fence_dir; /* the cgroup that a fence may freeze (fence.h); borrowed; NULL: none */
	struct native_mem_config mem;
};

struct take_order {
	int images;	/* folder, empty */
	uint64_t base;	/* id of the snapshot that the caller still has; 0: copy everything */
	bool shell_job; /* some session leader lies outside the tree */
	bool own_ipc_ns;
	bool hold; /* stand still until all is written and after() has been called */
	const struct native_wanted *wanted;
	size_t wanted_count;
	int deadline_ms; /* of the freeze */
	bool traced;	 /* by ptrace in any case, as with hold: see native_take */
	/*
	 * All may be NULL; < 0 calls the snapshot off. before: the job runs, the long part of pre-copy is done.
	 * frozen: it stands, collecting begins; must not wait. collected: about to be let go.
	 * These three may come again after an attempt that was given up. after: all is written; the
	 * job runs, but with hold, and the tree says how it was.
	 */
	int (*before)(void *ctx);
	int (*frozen)(void *ctx);
	int (*collected)(void *ctx);
	int (*after)(void *ctx, struct native_tree *tree);
	void *ctx;
};

int take_create(const struct take_config *config, struct taker **ret_taker,
		char reason[NATIVE_REASON_MAX]) _must_check_;
/* Lets go of the job's memory; NULL is accepted. */
void take_destroy(struct taker *t);

int take_snapshot(struct taker *t, const struct take_order *order, struct native_result *ret_result,
		  char reason[NATIVE_REASON_MAX]) _must_check_;
/* Would a snapshot be covered? Nothing is stopped, no memory is attached to. */
int take_check(struct taker *t, char reason[NATIVE_REASON_MAX]) _must_check_;
