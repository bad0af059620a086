/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * System calls that block: how each is set up, made, and given what it waits for. SIGUSR1 has a
 * handler in who makes them. Who releases a call may be any process that shares the slots.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "slow.h"

extern int blocking_stretch; /* grows where a machine turns out to be too slow */
#define BLOCKING_TIMED_MS (slow(1500) * blocking_stretch)

enum { BLOCKING_SETTLE_MS = 10000 };

/* What one call waits with; in memory that all processes share. */
struct slot {
	pid_t pid;
	int fd[2];
	int id;
	atomic_uint word;
	atomic_int done;
	long result; /* 0: as it should be; else the step that was wrong, or an errno */
	uint64_t us;
	char path[64];
};

struct blocking {
	const char *name;
	long nr; /* that a restored thread must make again */
	void (*prepare)(struct slot *s);
	long (*block)(struct slot *s);
	void (*release)(struct slot *s);
	bool timed; /* returns by itself, with the time that was left */
	bool full;  /* the time starts anew with each freeze */
};

extern const struct blocking blocking_calls[];
extern const size_t blocking_count;

/* Memory for all calls, prepared; files go to the folder. blocking_end() also removes what else stays. */
struct slot *blocking_prepare(const char *folder);
void blocking_end(struct slot *slots);
/*
 * One process for each call, below one stem, so that who freezes is not their parent; returns the
 * stem when all are asleep in their calls. The stem ends when all have ended.
 */
pid_t blocking_start(struct slot *slots);
/* Gives each call what it waits for, once it sleeps: a restarted futex(2) would see the new word. */
void blocking_release(struct slot *slots);

/* System V objects stay until they are removed. */
void blocking_remove(const struct blocking *b, struct slot *s);
