/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For the tests of freezing: victims that share a page with the test, and one freeze at a time.
 * Victims end with the test, however that ends. Functions assert.
 */
#pragma once

#include <stdatomic.h>
#include <sys/types.h>

#include "agent/native/freeze.h"

#include "slow.h"

enum { FREEZE_LAB_SLOTS = 64, FREEZE_LAB_DEADLINE_MS = 30000, FREEZE_LAB_VICTIMS = 8 };

/* What a victim tells; shared memory. */
struct freeze_page {
	atomic_long count[FREEZE_LAB_SLOTS];
	atomic_int ready, stop, wrong;
	long value[FREEZE_LAB_SLOTS];
};

struct freeze_lab {
	struct freeze_page *page;
	struct native_arena *arena;
	struct native_tree tree;
	char reason[NATIVE_REASON_MAX];
	pid_t victims[FREEZE_LAB_VICTIMS];
	size_t victim_count;
};

void freeze_lab_init(struct freeze_lab *lab);
/* Lets go of what is frozen and ends the victims. */
void freeze_lab_deinit(struct freeze_lab *lab);
/* The same as fixtures of cmocka: *state is the lab. */
int freeze_lab_setup(void **state);
int freeze_lab_teardown(void **state);
/* A child that runs fn(page) and then _exit(0). */
pid_t freeze_lab_start(struct freeze_lab *lab, void (*fn)(struct freeze_page *page));
/*
 * In a victim: handlers that count SIGRTMIN in count[1], wrong unless the values that come with it
 * are 0, 1, 2..., and SIGUSR1 in count[2].
 */
void freeze_lab_count_signals(struct freeze_page *page);
/* To be called by whatever a victim forks: it dies with its parent. */
void freeze_lab_die_with_parent(void);
void freeze_lab_await_ready(struct freeze_lab *lab, int count);
/* SIGKILL and reap; of no matter for one that has ended. */
void freeze_lab_end(pid_t pid);

/* An empty tree for root, then freeze_tree(): its result. */
int freeze_lab_try(struct freeze_lab *lab, pid_t root, int deadline_ms);
/* The same; must succeed, registers and all. */
void freeze_lab_freeze(struct freeze_lab *lab, pid_t root);
/* By /proc: every thread of every process below root is in a ptrace stop, or a zombie. */
void freeze_lab_check_stopped(pid_t root);
/* The letter in /proc/TID/stat, 0: gone. */
char freeze_lab_state(pid_t tid);
void freeze_lab_sleep_us(unsigned int us);
/* Until the cgroup that has this folder stands. */
bool freeze_lab_await_frozen(const char *folder);
/* In a victim: a detached thread with a small stack. */
void freeze_lab_thread(void *(*fn)(void *arg), void *arg);
