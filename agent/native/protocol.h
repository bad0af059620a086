/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What decampd and decamp-capture say to each other over the SOCK_SEQPACKET socket at descriptor 3.
 *
 *   START (fence, if any) ->          <- DONE
 *   MEND (fence) ->   <- DONE
 *   CHECK ->          <- DONE
 *   TAKE (images), WANTED (memfd, if any) ->
 *                     <- BEFORE n    ANSWER n ->
 *                     <- FROZEN n    (native collects meanwhile)    ANSWER n ->
 *                     <- DONE (memfd of struct native_record)
 *
 * An attempt that is given up asks BEFORE and FROZEN anew, with other numbers; answers to old
 * numbers are passed over. Both programs are of one build: structs go as they lie in memory, and
 * the version says so. The end of the socket means: let go, end.
 */
#pragma once

#include "agent/native/native.h"

enum { NATIVE_FD = 3, NATIVE_VERSION = 5 };

enum native_op {
	NATIVE_START = 1,
	NATIVE_CHECK,
	NATIVE_TAKE,
	NATIVE_WANTED,
	NATIVE_ANSWER,
	NATIVE_BEFORE,
	NATIVE_FROZEN,
	NATIVE_DONE,
	NATIVE_MEND,
};

/* To decamp-capture. */
struct native_order {
	uint32_t op, version;
	uint32_t number; /* ANSWER: of the question */
	int32_t status;	 /* ANSWER */
	int32_t root, nice_rounds;
	struct native_mem_config mem;
	uint64_t base;
	uint32_t shell_job, own_ipc_ns;
	int32_t deadline_ms;
	uint32_t wanted_count;
	uint32_t traced, reserved;
};

/* To decampd. BEFORE and FROZEN are the head alone. */
struct native_news {
	uint32_t op, number;
	int32_t status; /* DONE: 0 or -errno. BEFORE, FROZEN: the processor that will be busy */
	uint32_t reserved;
	struct native_result result; /* DONE, as the reason */
	char reason[NATIVE_REASON_MAX];
};

#define NATIVE_NEWS_HEAD offsetof(struct native_news, result)

/* In the memfd of DONE: a file in use, or a thread (path empty, value: inner TID). */
struct native_record {
	uint32_t size; /* with the path and its NUL */
	uint32_t flags;
	uint64_t value;
	char path[];
};
